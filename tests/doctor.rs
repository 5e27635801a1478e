//! `promforest doctor` against servers that work, and against each fault of them.

mod support;

use promforest::prom::proto::{Label, Sample, TimeSeries};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Output;
use std::thread;
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, NODE_NETWORK, RemoteWriteReceiver, SHORT_TIMEOUT, Stack,
};
use support::{PrometheusVersion, each_version, now_ms, remote_write};

/// Status, message and remedy of each check; of several findings of a check, the worst.
type Findings = BTreeMap<String, (String, String, String)>;

fn output(stack: &Stack, file: &str, more: &[&str]) -> Output {
    let url = format!("http://{}", stack.api.promforest);
    stack.command(&[&["doctor", "--config.file", file, "--url", &url], more].concat())
}

/// The exit code and the findings.
fn examine(stack: &Stack, file: &str, more: &[&str]) -> (i32, Findings) {
    let output = output(stack, file, &[&["--output", "json"], more].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    let mut findings = Findings::new();
    let rank = |status: &str| {
        ["ok", "not_checked", "waiting", "warning", "error"].iter().position(|other| *other == status)
    };
    for finding in report["findings"].as_array().expect("a list") {
        let text = |key: &str| finding[key].as_str().unwrap_or_default().to_string();
        let known = findings.get(&text("check")).and_then(|(status, ..)| rank(status));
        if known <= rank(&text("status")) {
            findings.insert(text("check"), (text("status"), text("message"), text("remedy")));
        }
    }
    (output.status.code().expect("no signal ends it"), findings)
}

/// The checks that found something.
fn found(findings: &Findings) -> Vec<&str> {
    let is_found = |status: &str| status == "warning" || status == "error";
    findings.iter().filter(|(_, finding)| is_found(&finding.0)).map(|(check, _)| check.as_str()).collect()
}

#[track_caller]
fn assert_finding(findings: &Findings, check: &str, status: &str, remedy: &str) {
    let finding = findings.get(check).unwrap_or_else(|| panic!("no {check}: {findings:?}"));
    assert_eq!(finding.0, status, "{check}: {finding:?}");
    assert!(finding.2.contains(remedy), "{check}: {finding:?}");
}

/// Changes the configuration of Prometheus and waits until it is in force.
fn reconfigure(stack: &mut Stack, changes: &[(&str, &str)], in_force: &str) {
    let file = stack.dir.path().join("prometheus.yml");
    let mut text = fs::read_to_string(&file).expect("it was written");
    for (from, to) in changes {
        assert!(text.contains(from), "{from}: {text}");
        text = text.replace(from, to);
    }
    fs::write(file, text).expect("the folder is writable");
    stack.prometheus.as_ref().expect("it runs").signal("HUP");
    stack.wait("the configuration is in force", SHORT_TIMEOUT, |at| {
        let config = at.prometheus.data("status/config")?;
        let text = config["yaml"].as_str().unwrap_or_default();
        if text.contains(in_force) { Ok(()) } else { Err(text.to_string()) }
    });
}

/// Writes series of one instance whose label `shard` changed, the newest of which is present.
fn write_unstable_series(stack: &Stack) {
    let label = |(name, value): (&str, &str)| Label { name: name.into(), value: value.into() };
    for (shard, age_ms) in [("a", 1_200_000), ("b", 900_000), ("c", 600_000), ("d", 0)] {
        let labels = [("__name__", "churn_total"), ("instance", "x"), ("job", "node"), ("shard", shard)];
        let samples = vec![Sample { value: 1.0, timestamp: now_ms() - age_ms }];
        let series = TimeSeries { labels: labels.map(label).into(), samples, ..Default::default() };
        let status = remote_write::post(&stack.api.prometheus.0, &remote_write::body(vec![series]));
        assert_eq!(status.expect("an answer") / 100, 2, "{}", stack.version);
    }
}

const WRONG_DETECTORS: &str = r"
  - {name: unknown, match: [node_network_recieve_bytes_total], transform: value, by: [job, instance]}
";
const CHURN_DETECTOR: &str = r"
  - {name: churn, match: [churn_total], transform: rate(1s), by: [cluster, job, instance]}
";

#[test]
fn each_fault_of_a_set_up_is_found() {
    each_version(|version| {
        let mut stack = Stack::new(version, Collectors::Network, &JOB_NODE);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure(NODE_NETWORK);
        stack.start_promforest();
        stack.wait("the first scores", MODEL_TIMEOUT, |at| at.scores().map(drop));
        stack.wait("promforest is scraped", SHORT_TIMEOUT, |at| {
            let found = at.prometheus.query("promforest_build_info")?;
            if found.is_empty() { Err("no series".into()) } else { Ok(()) }
        });
        a_new_set_up_needs_time_alone(&stack);
        the_configuration_of_detectors_is_compared(&stack);
        faults_of_the_configuration_of_prometheus_are_found(&mut stack);
        servers_that_refuse_or_do_not_run_are_found(&mut stack);
    });
}

fn a_new_set_up_needs_time_alone(stack: &Stack) {
    let version = stack.version;
    let (code, findings) = examine(stack, "promforest.yml", &[]);
    assert_eq!((code, found(&findings)), (0, Vec::new()), "{version}: {findings:?}");
    assert_finding(&findings, "history", "waiting", "");
    assert!(findings["history"].1.contains("a day of history is complete at 20"), "{version}: {findings:?}");
    assert!(findings["disk"].1.contains(" are free, and models"), "{version}: {findings:?}");
    assert!(findings.values().all(|(status, ..)| status != "not_checked"), "{version}: {findings:?}");
    for check in
        ["read-back", "rules", "scrape", "sender", "write-relabel", "second-writer", "replicas", "clock"]
    {
        assert_finding(&findings, check, "ok", "");
    }
    let written =
        || stack.api.prometheus.query("count_over_time(promforest_doctor_write[10m])").expect("an answer");
    assert_eq!(written()[0].samples[0].1, 1.0, "{version}: one sample");
    let (_, findings) = examine(stack, "promforest.yml", &["--no-write"]);
    assert_finding(&findings, "remote-write", "not_checked", "");
    assert_eq!(written()[0].samples[0].1, 1.0, "{version}: none");
    let text = String::from_utf8(output(stack, "promforest.yml", &[]).stdout).expect("UTF-8");
    assert!(text.ends_with(" ok, 1 waiting, 0 warnings, 0 errors, 0 not checked\n"), "{text}");
    assert_eq!(output(stack, "absent.yml", &[]).status.code(), Some(2), "{version}");
}

fn the_configuration_of_detectors_is_compared(stack: &Stack) {
    stack.configure_file("wrong.yml", "", WRONG_DETECTORS);
    let (_, findings) = examine(stack, "wrong.yml", &[]);
    assert_finding(&findings, "watched-series", "error", "node_network_receive_bytes_total");
    assert_finding(&findings, "configuration", "warning", "change this key");
    write_unstable_series(stack);
    stack.configure_file("churn.yml", "", CHURN_DETECTOR);
    let (_, findings) = examine(stack, "churn.yml", &[]);
    assert_finding(&findings, "unstable-labels", "warning", "add `shard` to `ignore`");
    assert_finding(&findings, "rate-range", "error", "rate(4s)");
    assert_finding(&findings, "group-labels", "warning", "remove `cluster` from `by`");
}

fn faults_of_the_configuration_of_prometheus_are_found(stack: &mut Stack) {
    let drops = "    write_relabel_configs: [{source_labels: [__name__], regex: node_network_.*, action: drop}]\n\
                 \x20   queue_config: {batch_send_deadline: 5s}";
    let changes = [
        ("out_of_order_time_window: 30m", "out_of_order_time_window: 0s"),
        ("external_labels: {}", "external_labels: {tier: x}"),
        ("honor_labels: true", "honor_labels: false"),
        ("rule_files:", "# rule_files:"),
        ("    queue_config: {batch_send_deadline: 1s}", drops),
    ];
    reconfigure(stack, &changes, "tier: x");
    let (_, findings) = examine(stack, "promforest.yml", &[]);
    for (check, status, remedy) in [
        ("out-of-order-window", "warning", "out_of_order_time_window: 30m"),
        ("group-labels", "warning", "add `tier` to `by`"),
        ("scrape", "warning", "honor_labels: true"),
        ("rules", "warning", "promforest.rules.yml"),
        ("write-relabel", "error", "keep these series"),
        ("batch-deadline", "warning", "batch_send_deadline: 1s"),
    ] {
        assert_finding(&findings, check, status, remedy);
    }
    reconfigure(
        stack,
        &[
            ("/api/v1/write", "/api/v1/elsewhere"),
            ("honor_labels: false", "honor_labels: true"),
            ("remote_write:", "# remote_write:"),
            ("  - url:", "# - url:"),
            ("    write_relabel_configs", "#   write_relabel_configs"),
            ("    queue_config", "#   queue_config"),
        ],
        "honor_labels: true",
    );
    // A sidecar that has just begun has received nothing.
    stack.kill_promforest();
    stack.start_promforest();
    let (_, findings) = examine(stack, "promforest.yml", &[]);
    assert_finding(&findings, "sender", "error", "add remote_write");
    assert_finding(&findings, "samples", "waiting", "");
}

fn servers_that_refuse_or_do_not_run_are_found(stack: &mut Stack) {
    stack.kill_promforest();
    stack.stop_prometheus();
    stack.start_prometheus(RemoteWriteReceiver::Disabled);
    let (code, findings) = examine(stack, "promforest.yml", &[]);
    assert_eq!(code, 1, "{}", stack.version);
    assert_finding(&findings, "remote-write", "error", "--web.enable-remote-write-receiver");
    assert_finding(&findings, "sidecar", "error", "start promforest");
    stack.stop_prometheus();
    let (code, findings) = examine(stack, "promforest.yml", &[]);
    assert_eq!(code, 1, "{}", stack.version);
    for check in ["remote-write", "history-source", "prometheus"] {
        assert_finding(&findings, check, "error", "start the server");
    }
}

/// Answers 429 to each POST, and an empty result with the time of 1994 to each GET.
fn serve_limited() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or_default();
            let status =
                if request[..length].starts_with(b"POST") { "429 Too Many Requests" } else { "200 OK" };
            let body = r#"{"status":"success","data":{"version":"1"}}"#;
            let head = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nConnection: close\r\n";
            // The client may have closed the connection.
            let _ = write!(stream, "HTTP/1.1 {status}\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    port
}

#[test]
fn a_rate_limit_and_a_wrong_clock_are_found() {
    let port = serve_limited();
    let stack = Stack::new(PrometheusVersion::V3, Collectors::Network, &JOB_NODE);
    let config =
        format!("remote_write: [{{url: 'http://127.0.0.1:{port}/api/v1/write'}}]\nremote_read: []\n");
    fs::write(stack.dir.path().join("limited.yml"), config).expect("the folder is writable");
    let (code, findings) = examine(&stack, "limited.yml", &[]);
    assert_eq!(code, 1);
    assert_finding(&findings, "rate-limit", "error", "retry_on_http_429");
    assert_finding(&findings, "clock", "error", "synchronise");
    // What is no configuration of a Prometheus is not checked.
    assert_finding(&findings, "out-of-order-window", "not_checked", "");
}
