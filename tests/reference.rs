//! The reference of the configuration and of the metrics agrees with the program.

use promforest::config::{Config, key_tables};
use promforest::remote_write::message::OUTPUT_METADATA;
use promforest::yaml::{DefaultValue, KeyTable};
use regex::Regex;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A file with these entries of a section, and with the required keys of the sections around it.
fn file_with(path: &str, entries: &str) -> String {
    let (parents, section) = path.rsplit_once('.').unwrap_or(("", path));
    let body = [required_entries(path), entries.to_string()].into_iter().filter(|text| !text.is_empty());
    let body = body.collect::<Vec<_>>().join(", ");
    match (path, section.strip_suffix("[]")) {
        ("", _) => format!("{{{body}}}"),
        (_, Some(list)) => file_with(parents, &format!("{list}: [{{{body}}}]")),
        (_, None) => file_with(parents, &format!("{section}: {{{body}}}")),
    }
}

/// The required keys of a section, with the examples of the reference.
fn required_entries(path: &str) -> String {
    let tables = key_tables();
    let keys = tables.iter().filter(|table| table.paths.contains(&path)).flat_map(|table| table.keys);
    let entries = keys.filter_map(|key| match key.default {
        DefaultValue::Required(example) => Some(format!("{}: {example}", key.name)),
        _ => None,
    });
    entries.collect::<Vec<_>>().join(", ")
}

/// The line of a table's condition, in front of other entries.
fn with_condition(table: &KeyTable, entries: &str) -> String {
    if table.condition.is_empty() { entries.to_string() } else { format!("{}, {entries}", table.condition) }
}

/// The keys that the reader of a section knows, by its error for an unknown key.
fn accepted_keys(path: &str, condition: &str) -> BTreeSet<String> {
    let condition = if condition.is_empty() { String::new() } else { format!("{condition}, ") };
    let file = file_with(path, &format!("{condition}no_key: 1"));
    let errors = Config::parse(&file).expect_err("an unknown key");
    let keys = errors.iter().find_map(|error| error.message.split_once("\"no_key\"")?.1.split_once(": "));
    let (_, keys) = keys.unwrap_or_else(|| panic!("{file}: {errors:?}"));
    keys.split(", ").map(String::from).collect()
}

#[test]
fn the_keys_of_the_reference_are_those_of_the_reader() {
    let tables = key_tables();
    let paths: BTreeSet<&str> = tables.iter().flat_map(|table| table.paths).copied().collect();
    assert!(paths.len() > 20, "{paths:?}");
    for path in paths {
        let of_path: Vec<&KeyTable> = tables.iter().filter(|table| table.paths.contains(&path)).collect();
        let conditions: BTreeSet<&str> = of_path.iter().map(|table| table.condition).collect();
        let only_some = conditions.len() > 1;
        for condition in conditions.into_iter().filter(|condition| !(only_some && condition.is_empty())) {
            let applies = |table: &&&KeyTable| table.condition.is_empty() || table.condition == condition;
            let described: Vec<&str> =
                of_path.iter().filter(applies).flat_map(|table| table.keys).map(|key| key.name).collect();
            let distinct: BTreeSet<String> = described.iter().map(ToString::to_string).collect();
            assert_eq!(distinct.len(), described.len(), "{path}: a key twice: {described:?}");
            assert_eq!(distinct, accepted_keys(path, condition), "{path} {condition}");
        }
    }
}

#[test]
fn the_defaults_of_the_reference_are_those_of_the_reader() {
    let mut compared = 0;
    for table in key_tables() {
        for path in table.paths {
            for key in table.keys {
                let DefaultValue::Yaml(value) = key.default else { continue };
                let with = file_with(path, &with_condition(&table, &format!("{}: {value}", key.name)));
                let without = file_with(path, table.condition);
                assert_eq!(Config::parse(&with), Config::parse(&without), "{with}");
                compared += 1;
            }
        }
    }
    assert!(compared > 40, "{compared}");
}

#[test]
fn the_generated_pages_are_current() {
    for page in ["configuration", "metrics"] {
        let output = Command::new(env!("CARGO_BIN_EXE_promforest")).args(["docs", page]).output();
        let output = output.expect("the program runs");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("deploy/reference/{page}.md"));
        let file = fs::read_to_string(&path).expect("the page");
        let line = text.lines().zip(file.lines()).position(|(new, old)| new != old);
        assert!(
            text == file,
            "line {line:?}: promforest docs {page} > deploy/reference/{page}.md brings the page up to date"
        );
    }
}

/// The regular expression of the rule that keeps promforest's own series from being sent back to it.
fn drop_pattern(path: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a file");
    let rules = text.split_once("write_relabel_configs:").expect("a drop rule").1;
    let pattern = rules.lines().find_map(|line| line.trim_start().strip_prefix("regex: "));
    pattern.unwrap_or_else(|| panic!("{path}: no regex")).to_string()
}

#[test]
fn the_drop_rule_names_every_output() {
    let pattern = drop_pattern("deploy/prometheus/prometheus.yml");
    assert_eq!(drop_pattern("deploy/quickstart.sh"), pattern, "the quickstart");
    let anchored = Regex::new(&format!("^(?:{pattern})$")).expect("a regular expression");
    let is_sent = |name: &str| !anchored.is_match(name);
    for name in
        OUTPUT_METADATA.map(|(name, _)| name).into_iter().chain(["node_network_anomaly", "disk_anomaly"])
    {
        assert!(!is_sent(name), "{name} is sent back");
    }
    let metrics =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/reference/metrics.md"));
    let metrics = metrics.expect("the generated page");
    let own: Vec<&str> = metrics.split('`').filter(|name| name.starts_with("promforest_")).collect();
    assert!(own.len() > 50, "{own:?}");
    assert_eq!(own.into_iter().find(|name| is_sent(name)), None, "is sent back");
    for name in ["node_network_receive_bytes_total", "up", "anomaly_tickets_total", "my_anomaly_score"] {
        assert!(is_sent(name), "{name} is dropped");
    }
    let (_, list) = pattern.split_once("anomaly_(").expect("a list of outputs");
    let listed = list.split_once(')').expect("the end of the list").0.split('|');
    let listed: BTreeSet<String> = listed.map(|name| format!("anomaly_{name}")).collect();
    assert_eq!(
        listed,
        OUTPUT_METADATA.map(|(name, _)| name.to_string()).into(),
        "nothing is listed in excess"
    );
}
