//! The reference in `deploy/reference`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Documented labels of the metrics, by name; those of groups too are marked by `labels of `by``.
fn documented_labels() -> BTreeMap<String, Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/reference/metrics.md");
    let page = fs::read_to_string(path).expect("the page of metrics");
    let row = |line: &str| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.split(" | ").collect();
        let [name, _kind, _unit, labels, _text] = *cells else { return None };
        let labels = labels.split(", ").filter(|label| !label.trim().is_empty());
        Some((name.trim_end_matches('`').to_string(), labels.map(|label| label.trim().to_string()).collect()))
    };
    page.lines().filter_map(row).collect()
}

/// Fails unless the reference has every metric of a page in the text format, with its labels.
pub fn check_metrics(page: &str) {
    let documented = documented_labels();
    let mut wrong = BTreeSet::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once('{').unwrap_or((line.split(' ').next().unwrap_or(""), ""));
        let stem = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let Some(known) = documented.get(name).or_else(|| documented.get(stem?)) else {
            wrong.insert(format!("{name} is not documented"));
            continue;
        };
        let has_group = known.iter().any(|label| label.starts_with("labels of"));
        let labels: BTreeSet<&str> =
            labels.split("\",").filter_map(|label| Some(label.split_once("=\"")?.0)).collect();
        for label in &labels {
            if !has_group && !known.contains(&format!("`{label}`")) {
                wrong.insert(format!("{name} has the label {label}"));
            }
        }
        let names = known.iter().map(|label| label.trim_matches('`'));
        let mut missing = names.filter(|label| *label != "le" && !label.starts_with("labels of"));
        if let Some(label) = missing.find(|label| !labels.contains(label)) {
            wrong.insert(format!("{name} has no label {label}"));
        }
    }
    assert!(wrong.is_empty(), "deploy/reference/metrics.md and the page differ: {wrong:#?}");
}
