//! `promforest train --input`: a table that could be misread is rejected, and its model serves on request only.

mod support;

use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use support::command::{CommandOutput, run_in};

const MINUTE_MS: i64 = 60_000;
/// 1 January 2026.
const BEGIN_MS: i64 = 1_767_225_600_000;
const RX: &str = "node_network_receive_bytes_total{device=\"eth0\"}";

/// A table of 300 minutes. `rows` returns timestamp and cells of a minute.
fn write_table(dir: &Path, columns: &[&str], rows: impl Fn(i64) -> (i64, String)) {
    let names: Vec<String> =
        columns.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
    let mut csv = format!("timestamp,{}\n", names.join(","));
    for minute in 0..300 {
        let (timestamp, cells) = rows(minute);
        writeln!(csv, "{timestamp},{cells}").expect("text");
    }
    fs::write(dir.join("table.csv"), csv).expect("the folder is writable");
}

fn minute_ms(minute: i64) -> i64 {
    BEGIN_MS + minute * MINUTE_MS
}

/// Two gauges, one of them with an empty cell in every tenth row.
fn write_gauges(dir: &Path) {
    write_table(dir, &["load", "temperature"], |minute| {
        let temperature = if minute % 10 == 9 { String::new() } else { (minute * 13 % 31).to_string() };
        (minute_ms(minute), format!("{},{temperature}", minute * 7 % 23))
    });
}

fn train(dir: &Path, args: &[&str]) -> CommandOutput {
    run_in(
        dir,
        &[&["train", "--input", "table.csv", "--sweep", "64", "--storage.path", "data"], args].concat(),
    )
}

fn models(dir: &Path, args: &[&str]) -> CommandOutput {
    run_in(dir, &[&["models"], args, &["--storage.path", "data"]].concat())
}

/// The aliases of each version.
fn aliases(dir: &Path) -> Vec<Value> {
    let output = models(dir, &["list", "--output", "json"]);
    let list: Vec<Value> = serde_json::from_str(&output.stdout).expect("JSON");
    list.into_iter().map(|mut version| version["aliases"].take()).collect()
}

#[test]
fn a_model_of_a_table_is_promoted_on_request_and_its_alias_can_be_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    write_gauges(dir);
    let output = train(dir, &[]);
    assert_eq!(output.status, 0, "{}", output.stderr);
    for line in [
        "node_network: 2 features, 270 rows, 0 excluded, 30 incomplete\n",
        "registered as version 1\nput it into service for every group: \
         promforest models promote --storage.path data node_network 1\n",
    ] {
        assert!(output.stdout.contains(line), "{line}\n{}", output.stdout);
    }
    assert_eq!(aliases(dir), [serde_json::json!([])]);

    let output = train(dir, &["--alias", "champion", "--output", "json"]);
    let results: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!((&results[0]["promoted"], &results[0]["n_incomplete"]), (&"champion".into(), &30.into()));
    assert_eq!(aliases(dir)[1], serde_json::json!(["champion"]));
    assert_eq!(models(dir, &["unalias", "node_network"]).stdout, "node_network: champion 2 -> none\n");
    assert_eq!(aliases(dir)[1], serde_json::json!([]));
    let output = models(dir, &["unalias", "node_network"]);
    assert_eq!(output.stderr, "promforest: model node_network has no alias champion\n");
}

/// A table that is saved to a folder changes no alias.
#[test]
fn a_model_of_a_table_can_be_saved_to_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    write_gauges(dir);
    let output = train(dir, &["--model", "model", "--report", "report.html"]);
    assert!(output.stdout.contains("written to model\nreport: report.html\n"), "{output:?}");
    let page = fs::read_to_string(dir.join("report.html")).expect("the report was written");
    assert!(page.contains("Saved, not in service"));
    let listed = models(dir, &["list"]);
    assert_eq!(listed.status, 1);
    assert_eq!(
        listed.stderr,
        "promforest: there is no registry in data/models: give --storage.path and --config.file as the sidecar has them\n"
    );
}

#[test]
fn a_table_that_could_be_misread_is_rejected_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    let cells = |minute: i64| format!("{},{}", minute * 1000, minute % 5);
    let assert_rejected = |message: &str| {
        let output = train(dir, &["--model", "model"]);
        assert_eq!((output.status, &*output.stdout), (1, ""), "{message}");
        assert_eq!(output.stderr, format!("promforest: {message}\n"));
    };
    let columns = ["load", "temperature"];
    write_table(dir, &columns, |minute| (minute_ms(minute - minute / 299), cells(minute)));
    assert_rejected(&format!("table.csv has timestamp {} twice", minute_ms(298)));
    write_table(dir, &columns, |minute| (minute_ms(minute) / 1000, cells(minute)));
    assert_rejected(&format!(
        "table.csv: timestamp {} is in seconds, must be in milliseconds since 1970",
        BEGIN_MS / 1000
    ));
    write_table(dir, &["__index_level_0__", "load"], |minute| (minute_ms(minute), cells(minute)));
    assert_rejected(
        "table.csv: column \"__index_level_0__\" is the index of a data frame: write the file without it, \
         or name it timestamp",
    );
    write_table(dir, &[RX, "temperature"], |minute| (minute_ms(minute), cells(minute)));
    assert_rejected(&format!(
        "column \"temperature\" is no series that detector node_network selects, but {RX:?} is one: \
         a table has raw samples only, or none"
    ));
    write_table(dir, &["eth0 - Rx in", "the temperature"], |minute| (minute_ms(minute), cells(minute)));
    assert_rejected(
        "column \"the temperature\" is no series: write it as \
         rate(node_network_receive_bytes_total{device=\"eth0\"}[1m]), or map it to one",
    );
}

/// A table has no alerts, and a given model is not trained.
#[test]
fn options_without_effect_are_wrong_usage() {
    for (args, pair) in [
        (&["train", "--input", "t.csv", "--exclude-alert", "A"][..], ["--input", "--exclude-alert"]),
        (
            &["backtest", "--input", "t.csv", "--history", "h.csv", "--exclude-alert", "A"],
            ["--input", "--exclude-alert"],
        ),
        (
            &["backtest", "--start", "2026-01-01T00:00:00Z", "--model", "m", "--exclude-alert", "A"],
            ["--model", "--exclude-alert"],
        ),
    ] {
        let output = run_in(Path::new("."), args);
        assert_eq!(output.status, 2, "{args:?}: {}", output.stderr);
        assert!(pair.iter().all(|flag| output.stderr.contains(flag)), "{}", output.stderr);
    }
}
