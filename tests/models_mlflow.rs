//! Models that a Python client keeps in MLflow are read as they are.

mod support;

use promforest::config::Config;
use promforest::models::registry::{Aliases, Registry};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use support::mlflow::{Mlflow, MlflowKind, registry_section};

/// Fits, logs, registers and promotes a forest as a data scientist does; prints the run and its scores.
const TRAIN: &str = r#"
import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
from sklearn.ensemble import IsolationForest

columns = ["eth0 - Rx in", "eth0 - Tx out", "lo -  Pck in"]
rows = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 3)), columns=columns)
forest = IsolationForest(n_estimators=10, random_state=0).fit(rows)
with mlflow.start_run() as run:
    mlflow.sklearn.log_model(
        forest, name="model", serialization_format="cloudpickle", input_example=rows[:3],
        registered_model_name="net")
mlflow.MlflowClient().set_registered_model_alias("net", "champion", "1")
print(run.info.run_id)
print(rows.to_csv(index=False), end="")
print("---")
for score in forest.score_samples(rows):
    print(f"{score:.17g}")
"#;

/// Moves the alias as the pages of MLflow do.
const MOVE_ALIAS: &str = r#"
import sys
import mlflow

mlflow.MlflowClient().set_registered_model_alias("net", "champion", sys.argv[1])
"#;

#[test]
fn a_python_clients_model_is_served_and_imported() {
    let mlflow = Mlflow::start(MlflowKind::V3);
    let printed = mlflow.python(TRAIN, &[]);
    let (run, rest) = printed.split_once('\n').expect("the run's line");
    let (table, scores) = rest.split_once("---\n").expect("both parts");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_string();
    fs::write(path("table.csv"), table).expect("writable");
    let config = format!("registry: {{mlflow: {{tracking_uri: '{}', model: net}}}}\n", mlflow.url());
    fs::write(path("promforest.yml"), config).expect("writable");

    let models = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_promforest"))
            .arg("models")
            .args(args)
            .args(["--config.file", &path("promforest.yml")])
            .output()
            .expect("the program runs");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let check = |model: &str| {
        let (table, out) = (path("table.csv"), path("scores.csv"));
        models(&["score", "--model", model, "--input", &table, "--output", &out]);
        let found = fs::read_to_string(out).expect("scores");
        assert_eq!(found.lines().count(), 201);
        for (line, expected) in found.lines().skip(1).zip(scores.lines()) {
            let score: f64 = line.split(',').next().expect("a cell").parse().expect("a number");
            let expected: f64 = expected.parse().expect("a number");
            assert!((score - expected).abs() <= 2.3e-16, "{model}: {score} is not {expected}");
        }
    };
    check("net@champion");
    for (i, source) in
        ["models:/net@champion", "models:/net/1", &format!("runs:/{run}/model")].iter().enumerate()
    {
        let copy = path(&format!("copy{i}"));
        models(&["import", source, "--model", &copy]);
        check(&copy);
    }
    let imported = models(&["import", "models:/net/1"]);
    assert!(
        imported.starts_with("net version 2: isolation_forest of 3 features, from scikit-learn"),
        "{imported}"
    );
    models(&["promote", "net", "2"]);
    let aliases = || -> Vec<Value> {
        let list: Vec<Value> = serde_json::from_str(&models(&["list", "--output", "json"])).expect("JSON");
        list.into_iter().map(|mut version| version["aliases"].take()).collect()
    };
    assert_eq!(aliases(), [json!([]), json!(["champion"])]);
    check("net@champion");
    let pinned = || -> Vec<Value> {
        let list: Vec<Value> = serde_json::from_str(&models(&["list", "--output", "json"])).expect("JSON");
        list.into_iter().map(|mut version| version["pinned"].take()).collect()
    };
    let (free, first_pinned) = ([json!([]), json!([])], [json!(["champion"]), json!([])]);
    assert_eq!(pinned(), free);
    mlflow.python(MOVE_ALIAS, &["1"]);
    assert_eq!(pinned(), first_pinned, "a move back by MLflow's client");
    models(&["unpin", "net"]);
    assert_eq!(pinned(), free);
    models(&["pin", "net"]);
    assert_eq!(pinned(), first_pinned);
    models(&["promote", "net", "2"]);
    assert_eq!(pinned(), free, "a promotion releases");
    assert_eq!(models(&["unalias", "net"]), "net: champion 2 -> none\n");
    assert_eq!(aliases(), [json!([]), json!([])]);
}

#[test]
fn a_maintenance_is_kept_in_the_experiment() {
    for kind in [MlflowKind::V2, MlflowKind::V3] {
        let mlflow = Mlflow::start(kind);
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("promforest.yml");
        let text = format!("registry: {{mlflow: {{tracking_uri: '{}'}}}}\n", mlflow.url());
        fs::write(&config, text).expect("writable");
        let run = |args: &[&str]| {
            let output = Command::new(env!("CARGO_BIN_EXE_promforest"))
                .arg("maintenance")
                .args(args)
                .arg("--config.file")
                .arg(&config)
                .output()
                .expect("the program runs");
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
            (output.status.success(), text(output.stdout), text(output.stderr))
        };
        assert_eq!(run(&["list"]), (true, String::new(), String::new()), "before there is an experiment");
        let start = ["start", r#"{job="node"}"#, "--start", "2026-01-31T12:00:00Z", "--for", "2h"];
        let line = "{job=\"node\"}, from 2026-01-31T12:00:00.000Z to 2026-01-31T14:00:00.000Z: move\n";
        assert_eq!(run(&[&start[..], &["--comment", "move"]].concat()).1, line);
        assert!(run(&["start", r#"{job="web"}"#]).0);
        let (_, listed, _) = run(&["list"]);
        assert!(listed.starts_with(line) && listed.ends_with("until it is ended, active\n"), "{listed}");
        assert_eq!(run(&["end", r#"{job="web"}"#]).1, "{job=\"web\"}: ended\n");
        let nothing = "promforest: there is no maintenance of {job=\"web\"} to end: `promforest maintenance list` has all\n";
        assert_eq!(run(&["end", r#"{job="web"}"#]), (false, String::new(), nothing.into()));
        assert_eq!(run(&["list"]).1.lines().count(), 2);
    }
}

/// Registers these models, each with one version; the last one has the alias.
const REGISTER: &str = r#"
import sys
import mlflow

client = mlflow.MlflowClient()
run = client.create_run(client.create_experiment("fleet"))
for name in sys.argv[1:]:
    client.create_registered_model(name)
client.create_model_version(name, run.info.artifact_uri + "/model", run.info.run_id)
client.set_registered_model_alias(name, "champion", "1")
"#;

/// Version 2 cannot search for a list of names.
#[test]
fn the_aliases_of_own_groups_are_read_from_a_shared_server() {
    for kind in [MlflowKind::V2, MlflowKind::V3] {
        let mlflow = Mlflow::start(kind);
        // More names than one request holds.
        let name = |host: usize| format!("node_network.host{host}-{}", "x".repeat(100));
        let registered: Vec<String> = (0..60).map(name).collect();
        mlflow.python(REGISTER, &registered.iter().map(String::as_str).collect::<Vec<_>>());
        let config = Config::parse(&registry_section(&mlflow.url(), "")).expect("valid");
        let registry = Registry::open(&config.registry, Path::new("")).expect("a client");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let read = |models: BTreeSet<String>| -> Aliases {
            let listing = runtime.block_on(registry.list_aliases(&models)).expect("the server answers");
            assert!(listing.unreadable.is_empty());
            listing.aliases
        };
        for _ in 0..2 {
            let own: BTreeSet<String> =
                (10..70).map(name).chain(["node_network".into(), "other".into()]).collect();
            let aliases = read(own);
            assert!(aliases.keys().eq(registered[10..].iter().collect::<BTreeSet<_>>()), "{aliases:?}");
            assert_eq!(aliases[&registered[59]].version("champion"), Some(1));
        }
        assert!(read(BTreeSet::new()).is_empty());
    }
}
