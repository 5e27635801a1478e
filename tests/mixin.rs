//! The mixin renders exactly the rules and dashboards that are shipped, and each key of its configuration has an effect.

mod support;

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::PrometheusVersion;

const RULES: &str = "deploy/prometheus/promforest.rules.yml";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The output of jsonnet, run at the top of the repository.
fn render(args: &[&str]) -> String {
    let output =
        Command::new(support::jsonnet()).args(args).current_dir(root()).output().expect("jsonnet runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    assert!(output.status.success(), "{args:?}: {}", text(output.stderr));
    text(output.stdout)
}

#[test]
fn the_rules_are_those_of_the_mixin() {
    let shipped = fs::read_to_string(root().join(RULES)).expect("the rules");
    let rendered = render(&["-S", "deploy/mixin/rules.jsonnet"]);
    assert_eq!(rendered, shipped, "jsonnet -S -o {RULES} deploy/mixin/rules.jsonnet");
    let is_same = format!(
        "std.parseYaml(importstr '{RULES}') == (import 'deploy/mixin/mixin.libsonnet').prometheusAlerts"
    );
    assert_eq!(render(&["-e", &is_same]), "true\n", "the YAML has other rules");
}

#[test]
fn the_dashboards_are_those_of_the_mixin() {
    let folder = root().join("deploy/grafana/dashboards");
    let mut shipped = serde_json::Map::new();
    for path in fs::read_dir(&folder).expect("dashboards").map(|entry| entry.expect("an entry").path()) {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_string();
        let board = fs::read_to_string(&path).expect("a dashboard");
        shipped.insert(name, serde_json::from_str(&board).expect("JSON"));
    }
    assert_eq!(shipped.len(), 3);
    let rendered = render(&["-e", "(import 'deploy/mixin/mixin.libsonnet').grafanaDashboards"]);
    let rendered: Value = serde_json::from_str(&rendered).expect("JSON");
    assert_eq!(rendered, Value::Object(shipped));
}

#[test]
fn each_key_of_the_configuration_has_an_effect() {
    let overrides = [
        ("promforestSelector", r#"'job="forest"'"#),
        ("detectorSelector", r#"'detector!~"test_.*"'"#),
        ("groupLabels", "[['queue'], ['instance', 'device']]"),
        ("deviceSelector", r#"'device="eth0"'"#),
        ("runbookUrl", "'https://wiki.example.org/alerts.md'"),
        ("incidentFor", "'7m'"),
        ("targetDownFor", "'7m'"),
        ("promforestDownFor", "'7m'"),
        ("scoresStoppedFor", "'7m'"),
        ("scoresNotAcknowledgedFor", "'7m'"),
        ("featuresMissingFor", "'7m'"),
        ("trainingNotFinishedFor", "'7m'"),
        ("registryDownFor", "'7m'"),
        ("dashboards", "{fleet: 'uid-fleet', group: 'uid-group', itself: 'uid-self'}"),
        ("dashboardTags", "['mine']"),
        ("dashboardRefresh", "'7s'"),
    ];
    let names = render(&["-e", "std.objectFields((import 'deploy/mixin/mixin.libsonnet')._config)"]);
    let names: Vec<String> = serde_json::from_str(&names).expect("a list");
    let mut known = overrides.map(|(name, _)| name);
    known.sort_unstable();
    assert_eq!(names, known, "the keys of _config");

    let mixin =
        |entries: &str| format!("(import 'deploy/mixin/mixin.libsonnet') + {{_config+:: {{{entries}}}}}");
    let shown = |entries: &str| {
        format!("(local mixin = {}; [mixin.prometheusAlerts, mixin.grafanaDashboards])", mixin(entries))
    };
    let changed = overrides.map(|(name, value)| {
        format!("{{name: '{name}', is_same: {} == default}}", shown(&format!("{name}: {value}")))
    });
    let without_effect = format!(
        "local default = {}; [each.name for each in [{}] if each.is_same]",
        shown(""),
        changed.join(", ")
    );
    let without_effect: Vec<String> =
        serde_json::from_str(&render(&["-e", &without_effect])).expect("a list");
    assert_eq!(without_effect, [] as [&str; 0]);

    let all = overrides.map(|(name, value)| format!("{name}: {value}")).join(", ");
    let text = render(&["-e", &shown(&all)]);
    for old in
        ["promforest-fleet", "promforest-group", "promforest-self", "job=\\\"promforest\\\"", "file://"]
    {
        assert!(!text.contains(old), "{old} is left");
    }
    let rules = format!("std.manifestYamlDoc(({}).prometheusAlerts)", mixin(&all));
    let folder = tempfile::tempdir().expect("a folder");
    let file: PathBuf = folder.path().join("rules.yml");
    fs::write(&file, render(&["-S", "-e", &rules])).expect("the rules are written");
    for version in PrometheusVersion::ALL {
        let output = Command::new(version.promtool()).args(["check", "rules"]).arg(&file).output();
        let output = output.expect("promtool runs");
        assert!(output.status.success(), "{version}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
