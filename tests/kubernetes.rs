//! The objects of `deploy/kubernetes`: rendered by Helm's and kustomize's packages, and read with the types of Kubernetes and
//! of the Prometheus operator (`tests/components/kubernetes`).

mod support;

use regex::Regex;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use support::prometheus::{list, text};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The ordinal of a StatefulSet's pod.
const POD_INDEX_LABEL: &str = "metadata.labels['apps.kubernetes.io/pod-index']";
const CHART: &str = "deploy/kubernetes/chart";
/// Values files, each with the name of a release and the number of objects.
const VALUES: [(&str, &[&str], usize); 5] = [
    ("promforest", &[], 10),
    ("pf", &[], 10),
    ("promforest", &["deploy/examples/kube-prometheus-stack/promforest.yaml"], 10),
    ("promforest", &["tests/data/kubernetes/everything.yaml"], 10),
    ("promforest", &["tests/data/kubernetes/bare.yaml"], 3),
];

/// Runs the program with an input, at the top of the repository.
fn manifests(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new(support::manifests());
    command.args(arguments).current_dir(ROOT);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    // A program that refuses its arguments does not read.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("the program ends");
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("UTF-8"));
    if output.status.success() { Ok(stdout) } else { Err(stderr) }
}

fn render(release: &str, values: &[&str]) -> String {
    manifests(&[&["render", release, CHART], values].concat(), "").expect("the chart renders")
}

/// The objects of a text, sorted by kind and name.
fn objects(text_of_objects: &str) -> Vec<Value> {
    let json = manifests(&["json", "-"], text_of_objects).expect("YAML");
    let mut objects: Vec<Value> = serde_json::from_str(&json).expect("JSON");
    objects.sort_by_key(id);
    objects
}

fn id(object: &Value) -> String {
    format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

fn find<'a>(objects: &'a [Value], wanted: &str) -> &'a Value {
    let names = || objects.iter().map(id).collect::<Vec<_>>();
    objects
        .iter()
        .find(|object| id(object) == wanted)
        .unwrap_or_else(|| panic!("no {wanted} in {:?}", names()))
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// `promforest check config` on the configuration of a ConfigMap, with credentials in a folder of the test.
fn check_config(config_map: &Value) -> support::command::CommandOutput {
    let folder = tempfile::tempdir().expect("a folder");
    let credentials = folder.path().display().to_string();
    let config =
        text(&config_map["data"]["promforest.yml"]).replace("/etc/promforest/credentials", &credentials);
    fs::write(folder.path().join("password"), "secret").expect("writable");
    fs::write(folder.path().join("promforest.yml"), config).expect("writable");
    support::command::run_in(folder.path(), &["check", "config", "promforest.yml"])
}

/// The NetworkPolicy lets out to the ports of the servers and brokers that the configuration names.
fn check_egress(objects: &[Value]) {
    let server = Regex::new(r"(?m)^\s*(?:- )?url: (https?)://[^:/]+(?::(\d+))?/|^\s*- [^:/ ]+:(\d+)$")
        .expect("a valid regex");
    let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind);
    let config = objects.iter().find_map(|object| object["data"]["promforest.yml"].as_str());
    let (Some(policy), Some(config)) = (of_kind("NetworkPolicy"), config) else { return };
    let rules = list(&policy["spec"]["egress"]);
    let allowed: Vec<u64> =
        rules.iter().flat_map(|rule| list(&rule["ports"])).filter_map(|port| port["port"].as_u64()).collect();
    let mut n_servers = 0;
    for found in server.captures_iter(config) {
        let default =
            if found.get(1).is_some_and(|scheme| scheme.as_str() == "https") { "443" } else { "80" };
        let port = found.get(2).or(found.get(3)).map_or(default, |port| port.as_str());
        assert!(allowed.contains(&port.parse().expect("a port")), "{}: {allowed:?}", &found[0]);
        n_servers += 1;
    }
    assert!(n_servers > 0, "{config}");
}

#[test]
fn the_objects_of_the_chart_are_valid() {
    for (release, values, n_objects) in VALUES {
        let rendered = render(release, values);
        manifests(&["check", "-"], &rendered).unwrap_or_else(|err| panic!("{release} {values:?}: {err}"));
        let objects = objects(&rendered);
        assert_eq!(objects.len(), n_objects, "{release} {values:?}: {rendered}");
        for config_map in objects.iter().filter(|object| !object["data"]["promforest.yml"].is_null()) {
            let checked = check_config(config_map);
            assert_eq!((checked.status, &*checked.stderr), (0, ""), "{release} {values:?}");
        }
        check_egress(&objects);
    }
}

#[test]
fn values_reach_their_objects() {
    let everything = objects(&render("promforest", &["tests/data/kubernetes/everything.yaml"]));
    let set = find(&everything, "StatefulSet/anomalies");
    assert_eq!(set["spec"]["replicas"], 3);
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "registry.example.com/promforest:0.1.0");
    assert_eq!(
        list(&container["args"]).last().map(text).as_deref(),
        Some("--web.external-url=https://promforest.example.com/")
    );
    assert!(list(&container["args"]).contains(&"--shard=$(POD_INDEX)/3".into()), "{container}");
    let index = &container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"];
    assert_eq!((&container["env"][0]["name"], index), (&"POD_INDEX".into(), &POD_INDEX_LABEL.into()));
    assert_eq!(list(&pod["volumes"])[1]["secret"]["secretName"], "prometheus-password");
    assert_eq!(find(&everything, "ServiceMonitor/anomalies")["spec"]["endpoints"][0]["interval"], "15s");
    assert_eq!(find(&everything, "ServiceMonitor/anomalies")["metadata"]["labels"]["team"], "infrastructure");
    let rules = find(&everything, "PrometheusRule/anomalies").to_string();
    assert!(
        rules.contains("\"runbook_url\":\"https://wiki.example.org/alerts.md#anomalyincident\""),
        "{rules}"
    );
    assert!(!rules.contains("file://"), "{rules}");
    let dashboard = find(&everything, "ConfigMap/anomalies-dashboard-fleet");
    assert_eq!(dashboard["metadata"]["annotations"]["grafana_folder"], "Anomalies");

    let bare = objects(&render("promforest", &["tests/data/kubernetes/bare.yaml"]));
    let pod = &find(&bare, "StatefulSet/promforest")["spec"]["template"];
    assert_eq!(pod["spec"]["volumes"][0]["secret"]["secretName"], "promforest-config");
    assert!(pod["metadata"]["annotations"].is_null(), "{pod}");
}

/// The pod starts again when its configuration changes, and only then.
#[test]
fn a_changed_configuration_changes_the_pod() {
    let checksum = |values: &[&str]| {
        let objects = objects(&render("promforest", values));
        let pod = &find(&objects, "StatefulSet/promforest")["spec"]["template"];
        text(&pod["metadata"]["annotations"]["checksum/config"])
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, values: &str| {
        let path = folder.path().join(name);
        fs::write(&path, values).expect("writable");
        path.display().to_string()
    };
    let changed = file("changed.yaml", "config: {registry: {keep_versions: 2}}");
    let elsewhere = file("elsewhere.yaml", "dashboards: {enabled: false}");
    assert_ne!(checksum(&[]), checksum(&[&changed]));
    assert_eq!(checksum(&[]), checksum(&[&elsewhere]));
}

#[test]
fn wrong_values_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("values.yaml");
    let path = path.to_str().expect("UTF-8");
    for (values, message) in [
        ("replica: 2", "additional properties 'replica' not allowed"),
        ("image: {repo: promforest}", "additional properties 'repo' not allowed"),
        ("serviceMonitor: {label: {}}", "additional properties 'label' not allowed"),
        ("replicas: -1", "/replicas': minimum"),
        ("replicas: two", "/replicas': got string, want integer"),
        ("config: text", "/config': got string, want object"),
        ("extraArgs: [--storage.path=/tmp]", "/extraArgs/0': 'not' failed"),
        ("extraArgs: [web.enable-lifecycle]", "/extraArgs/0': 'web.enable-lifecycle' does not match pattern"),
        ("storage: {size: much}", "/storage/size': 'much' does not match pattern"),
        ("fullnameOverride: Upper", "/fullnameOverride': 'Upper' does not match pattern"),
        ("networkPolicy: {from: []}", "/networkPolicy/from': minItems"),
        ("image: {pullPolicy: Sometimes}", "/image/pullPolicy': value must be one of"),
    ] {
        fs::write(path, values).expect("writable");
        let error = manifests(&["render", "promforest", CHART, path], "").expect_err(values);
        assert!(error.contains(message), "{values}: {error}");
    }
}

/// Each check of the objects fails on an object that is wrong in this one point.
#[test]
fn wrong_objects_are_refused() {
    let rendered = render("promforest", &[]);
    for (from, to, message) in [
        ("serviceName: promforest", "serviceNames: promforest", "unknown field \"spec.serviceNames\""),
        ("  replicas: 1", "  replicas: one", "json: cannot unmarshal string"),
        ("  replicas: 1", "  replicas: 1\n  replicas: 2", "key \"replicas\" already set"),
        ("policy/v1\n", "policy/v0\n", "no kind \"PodDisruptionBudget\" is registered"),
        ("honorLabels: true", "honourLabels: true", "unknown field \"spec.endpoints[0].honourLabels\""),
        (
            "  maxUnavailable: 1",
            "  maxUnavailable: 1\n  maxAvailable: 1",
            "unknown field \"spec.maxAvailable\"",
        ),
        ("    - alert: ", "    - alarm: ", "unknown field \"spec.groups[0].rules[0].alarm\""),
        ("name: promforest\n", "name: prom_forest\n", "RFC 1123 subdomain"),
        (
            "kind: Service\nmetadata:\n",
            "kind: Service\nmetadata:\n  namespace: other\n",
            "namespace \"other\"",
        ),
        ("serviceName: promforest", "serviceName: forest", "no headless Service \"forest\""),
        ("clusterIP: None", "clusterIP: \"\"", "no headless Service \"promforest\""),
        ("targetPort: http", "targetPort: web", "no container has the port web"),
        ("\n    - port: http\n", "\n    - port: web\n", "Service/promforest has no port \"web\""),
        ("jobLabel: app.kubernetes.io/name", "jobLabel: app", "Service/promforest has no label \"app\""),
        (
            "        - port: http\n",
            "        - port: 80\n",
            "NetworkPolicy/promforest: no container has the port 80",
        ),
        (
            "path: /-/ready\n              port: http",
            "path: /-/ready\n              port: web",
            "readinessProbe: no such port",
        ),
        ("memory: 512Mi", "memory: 4Gi", "request of memory 4Gi is above its limit 2Gi"),
        (
            "- name: storage\n              mountPath",
            "- name: store\n              mountPath",
            "no volume store",
        ),
        (
            "        - name: config\n          configMap",
            "        - name: unused\n          configMap",
            "volume unused is not mounted",
        ),
        (
            "mountPath: /etc/promforest/config",
            "mountPath: /var/lib/promforest",
            "two volumes at /var/lib/promforest",
        ),
        (
            "configMap:\n            name: promforest",
            "configMap:\n            name: other",
            "no ConfigMap other",
        ),
        (
            "readOnlyRootFilesystem: true",
            "readOnlyRootFilesystem: false",
            "the root file system of promforest is not read-only",
        ),
        ("runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot != true"),
        ("drop: [ALL]", "drop: []", "unrestricted capabilities"),
        ("type: RuntimeDefault", "type: Unconfined", "seccompProfile"),
        (
            "allowPrivilegeEscalation: false",
            "allowPrivilegeEscalation: true",
            "allowPrivilegeEscalation != false",
        ),
        ("kind: PodDisruptionBudget", "kind: StatefulSet", "no kind \"StatefulSet\" is registered"),
    ] {
        assert!(rendered.contains(from), "{from}");
        let error = manifests(&["check", "-"], &rendered.replacen(from, to, 1)).expect_err(from);
        assert!(error.contains(message), "{from} -> {to}: {error}");
    }
    // Selectors: each object that has one matches nothing once the pod's labels differ.
    let pod = "    metadata:\n      labels:\n        app.kubernetes.io/name: promforest";
    let other = pod.replace("name: promforest", "name: other");
    let error = manifests(&["check", "-"], &rendered.replacen(pod, &other, 1)).expect_err("selectors");
    for object in ["StatefulSet", "Service", "NetworkPolicy", "PodDisruptionBudget"] {
        assert!(error.contains(&format!("{object}/promforest: selector")), "{object}: {error}");
    }
    let twice = format!("{rendered}\n---\n{rendered}");
    let error = manifests(&["check", "-"], &twice).expect_err("twice");
    assert!(error.contains("Service/promforest: is there twice"), "{error}");
}

#[test]
fn rules_and_dashboards_are_the_tested_ones() {
    let objects = objects(&render("pf", &[]));
    let rules = self::objects_of("deploy/prometheus/promforest.rules.yml");
    assert_eq!(find(&objects, "PrometheusRule/pf-promforest")["spec"], rules);
    for name in ["fleet", "group", "promforest"] {
        let config_map = find(&objects, &format!("ConfigMap/pf-promforest-dashboard-{name}"));
        assert_eq!(config_map["metadata"]["labels"]["grafana_dashboard"], "1");
        let dashboard = text(&config_map["data"][format!("{name}.json")]);
        let tested = read(&format!("deploy/grafana/dashboards/{name}.json"));
        assert_eq!(dashboard.trim_end(), tested.trim_end(), "{name}");
    }
}

/// The one document of a YAML file.
fn objects_of(path: &str) -> Value {
    let json = manifests(&["json", path], "").expect("YAML");
    serde_json::from_str::<Vec<Value>>(&json).expect("JSON").remove(0)
}

#[test]
fn the_job_of_the_scrape_is_the_one_of_the_rules() {
    let objects = objects(&render("pf", &[]));
    let label = text(&find(&objects, "ServiceMonitor/pf-promforest")["spec"]["jobLabel"]);
    assert_eq!(find(&objects, "Service/pf-promforest")["metadata"]["labels"][label], "promforest");
    assert!(read("deploy/prometheus/promforest.rules.yml").contains("up{job=\"promforest\"}"));
}

#[test]
fn the_kustomization_has_the_objects_of_the_chart() {
    let built = manifests(&["build", "deploy/kubernetes/kustomize/base"], "").expect("it builds");
    manifests(&["check", "-"], &built).expect("valid");
    let (built, rendered) = (objects(&built), objects(&render("promforest", &[])));
    assert_eq!(built.iter().map(id).collect::<Vec<_>>(), rendered.iter().map(id).collect::<Vec<_>>());
    for (built, rendered) in built.iter().zip(&rendered) {
        if !built["data"].is_null() && built["data"]["promforest.yml"].is_null() {
            // A kustomization reads the file; the chart's text ends with one line feed.
            let json = |object: &Value| {
                let data = object["data"].as_object().and_then(|data| data.iter().next()).expect("one file");
                (data.0.clone(), text(data.1).trim_end().to_string(), object["metadata"].clone())
            };
            assert_eq!(json(built), json(rendered));
        } else {
            assert_eq!(
                built, rendered,
                "make it anew: deploy/kubernetes/kustomize/base/kustomization.yaml says how"
            );
        }
    }
}

/// The objects of an overlay, which are valid.
fn overlay(name: &str) -> Vec<Value> {
    let built = manifests(&["build", &format!("deploy/kubernetes/kustomize/overlays/{name}")], "");
    let built = built.expect("it builds");
    manifests(&["check", "-"], &built).expect("valid");
    let objects = objects(&built);
    check_egress(&objects);
    objects
}

#[test]
fn the_overlay_of_kube_prometheus_stack_is_the_base_with_another_image() {
    let objects = overlay("kube-prometheus-stack");
    let base = manifests(&["build", "deploy/kubernetes/kustomize/base"], "").expect("it builds");
    let base = self::objects(&base);
    assert_eq!(objects.iter().map(id).collect::<Vec<_>>(), base.iter().map(id).collect::<Vec<_>>());
    for (object, of_base) in objects.iter().zip(&base) {
        let mut expected = of_base.clone();
        expected["metadata"]["namespace"] = "monitoring".into();
        if expected["kind"] == "StatefulSet" {
            let image = &mut expected["spec"]["template"]["spec"]["containers"][0]["image"];
            *image = "registry.example.com/promforest:0.1.0".into();
        }
        assert_eq!(object, &expected);
    }
}

#[test]
fn the_example_overlay_changes_what_it_says() {
    let objects = overlay("example");
    let pod = &find(&objects, "StatefulSet/promforest")["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["image"], "registry.example.com/promforest:0.1.0");
    assert_eq!(pod["containers"][0]["resources"]["limits"]["memory"], "4Gi");
    let config_map = objects.iter().find(|object| !object["data"]["promforest.yml"].is_null()).expect("one");
    let checked = check_config(config_map);
    assert_eq!((checked.status, &*checked.stderr), (0, ""));
    let name = text(&config_map["metadata"]["name"]);
    assert!(name.len() > "promforest-config-".len(), "{name} has a hash");
    let volumes = pod["volumes"].as_array().expect("volumes");
    assert!(volumes.iter().any(|volume| volume["configMap"]["name"] == name), "{name} is mounted");
    for kind in ["ServiceMonitor", "PrometheusRule"] {
        let object = find(&objects, &format!("{kind}/promforest"));
        assert_eq!(object["metadata"]["labels"]["release"], "monitoring");
    }
}

#[test]
fn the_chart_has_the_version_of_the_program() {
    let chart = objects_of("deploy/kubernetes/chart/Chart.yaml");
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_values_of_kube_prometheus_stack_are_valid() {
    const PATH: &str = "deploy/examples/kube-prometheus-stack/kube-prometheus-stack.yaml";
    manifests(&["prometheus", PATH], "").expect("a PrometheusSpec");
    let misspelt = read(PATH).replace("enableRemoteWriteReceiver", "enableRemoteWriteReceivers");
    let error = manifests(&["prometheus", "-"], &misspelt).expect_err("misspelt");
    assert!(error.contains("unknown field \"enableRemoteWriteReceivers\""), "{error}");

    // The address is the Service's, and what is not sent is as in prometheus.yml.
    let spec = &objects_of(PATH)["prometheus"]["prometheusSpec"];
    let remote_write = &spec["remoteWrite"][0];
    let objects = objects(&render("promforest", &[]));
    let port = &find(&objects, "Service/promforest")["spec"]["ports"][0]["port"];
    assert_eq!(remote_write["url"], format!("http://promforest.monitoring.svc:{port}/api/v1/write"));
    let tested = objects_of("deploy/prometheus/prometheus.yml");
    let tested = &tested["remote_write"][0]["write_relabel_configs"][0]["regex"];
    assert_eq!(&remote_write["writeRelabelConfigs"][0]["regex"], tested);
}

#[test]
fn the_notes_name_each_address() {
    let address = "http://anomalies-2.anomalies.monitoring.svc:9599/api/v1/write";
    let rendered = render("promforest", &["tests/data/kubernetes/everything.yaml"]);
    assert!(rendered.contains(address), "{rendered}");
    let rendered = render("promforest", &[]);
    assert!(rendered.contains("- url: http://promforest.monitoring.svc:9599/api/v1/write"), "{rendered}");
}

/// Each pod is a member of the consumer group by its own name.
#[cfg(feature = "kafka")]
#[test]
fn the_pods_of_the_kafka_example_are_members_by_their_names() {
    let rendered = render("promforest", &["deploy/examples/kafka/kubernetes.yaml"]);
    manifests(&["check", "-"], &rendered).expect("valid objects");
    let objects = objects(&rendered);
    let set = find(&objects, "StatefulSet/promforest");
    assert_eq!(set["spec"]["podManagementPolicy"], "Parallel");
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let arguments = list(&container["args"]);
    assert!(
        arguments.iter().any(|argument| argument == "--kafka.group-instance-id=$(POD_NAME)"),
        "{arguments:?}"
    );
    let field = &container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"];
    assert_eq!((&container["env"][0]["name"], field), (&"POD_NAME".into(), &"metadata.name".into()));
    let checked = check_config(find(&objects, "ConfigMap/promforest"));
    assert_eq!((checked.status, &*checked.stderr), (0, ""), "{}", checked.stdout);
    check_egress(&objects);
}
