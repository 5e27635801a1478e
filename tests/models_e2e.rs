//! A model's life beside real servers: promforest trains it, MLflow keeps it on PostgreSQL and S3, the
//! sidecar takes it into service, people move aliases, and the registry goes away and comes back. All the
//! while Prometheus gets one score for each scrape.

mod support;

use serde_json::Value;
use std::net::TcpListener;
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};
use support::mlflow::{Mlflow, MlflowKind, PASSWORD, USERNAME, registry_section};
use support::prometheus::list;
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, RANGE_MS, RemoteWriteReceiver, SHORT_TIMEOUT, Stack, StackApi,
};
use support::{PrometheusVersion, http, now_ms};

/// The detector of these scenarios; `GATE` is what a model has to show. A model of so little history is
/// made anew every 15 s.
const DETECTOR: &str = r#"
  - name: node_network
    match: ['{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device="lo"}']
    transform: rate(10s)
    window: 10m
    grace: 5s
    training: {history: 1h, min_history: 10s, interval: 1h, gate: {GATE}}
    model: {kind: isolation_forest}
"#;

/// No model passes.
const REJECT_ALL: &str = "max_kl: 0.000001";
/// Every model passes.
const ACCEPT_ALL: &str = "max_kl: 1000";

fn detector(gate: &str) -> String {
    DETECTOR.replace("GATE", gate)
}

/// Prometheus 3 with node_exporter, whose samples the sidecar gets once it runs.
fn stack_with_prometheus() -> Stack {
    let mut stack = Stack::new(PrometheusVersion::V3, Collectors::Network, &JOB_NODE);
    stack.start_prometheus(RemoteWriteReceiver::Enabled);
    stack
}

/// Waits until Prometheus holds this much of what the detector watches.
fn wait_for_history(stack: &mut Stack, scrapes: usize) {
    stack.wait("history", MODEL_TIMEOUT, |at| {
        let n = at.stored(r#"node_network_receive_bytes_total{device="lo"}"#)?.samples.len();
        if n >= scrapes { Ok(()) } else { Err(format!("{n} scrapes")) }
    });
}

/// The lines of a stream.
fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_string).collect()
}

/// Trains by the command line; what it prints as JSON of the one model.
fn train(stack: &Stack, file: &str, more: &[&str]) -> Value {
    let mut args = vec!["train", "--config.file", file, "--output", "json"];
    args.extend(more);
    let Output { status, stdout, stderr } = stack.command(&args);
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
    let mut outcomes: Value = serde_json::from_slice(&stdout)
        .unwrap_or_else(|err| panic!("{err}: {}", String::from_utf8_lossy(&stdout)));
    assert_eq!(list(&outcomes).len(), 1, "{outcomes}");
    outcomes[0].take()
}

fn version(outcome: &Value) -> String {
    outcome["version"].as_u64().unwrap_or_else(|| panic!("not registered: {outcome}")).to_string()
}

/// Trainings of the sidecar with this outcome.
fn training_runs(at: &StackApi, outcome: &str) -> f64 {
    at.metric("promforest_training_runs_total", &[("outcome", outcome)]).unwrap_or(0.0)
}

/// Waits until rows that are scraped from now on are scored and stored, and checks all there are.
fn check_scores_continue(stack: &mut Stack) {
    stack.wait_for_score_at(now_ms() + 2_000);
    stack.check_scores(RANGE_MS);
    stack.check_nothing_lost();
    assert_eq!(stack.api.ready().expect("promforest answers").0, 200);
}

/// Every scored row has been written once: a decision and a score.
fn check_nothing_written_twice(stack: &mut Stack) {
    stack.wait("every row is written once", SHORT_TIMEOUT, |at| {
        let page = http::get(&at.promforest, "/metrics").map_err(|err| err.to_string())?.body;
        let count = |name, labels: &[_]| http::metric(&page, name, labels).unwrap_or(0.0);
        let rows = count("promforest_rows_total", &[("state", "complete")]);
        let written = count("promforest_remote_write_samples_total", &[]);
        assert!(written <= 2.0 * rows, "{written} samples of {rows} rows");
        if written == 2.0 * rows { Ok(()) } else { Err(format!("{written} samples of {rows} rows")) }
    });
}

// ------------------------------------------------------------------------------- MLflow's own client

/// The parts of a registered model with the alias champion, as JSON; and that MLflow's own way of
/// loading it scores its golden rows as promforest does.
const INSPECT: &str = r#"
import json
import pathlib
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa

client = mlflow.MlflowClient()
[model] = client.search_registered_models()
version = client.get_model_version_by_alias(model.name, "champion")
run = client.get_run(version.run_id)
experiment = client.get_experiment_by_name("promforest")
children = client.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{run.info.run_id}'")

def folds(run):
    return {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "kl_divergence")}

# Not by the run: for that, this client asks an old server for what only new ones know.
logged = pathlib.Path(mlflow.artifacts.download_artifacts(run.info.artifact_uri))
uri = f"models:/{model.name}@champion"
folder = mlflow.artifacts.download_artifacts(uri)
with pa.memory_map(folder + "/golden.arrow") as source:
    golden = pa.ipc.open_file(source).read_all()
loaded = mlflow.pyfunc.load_model(uri)
columns = loaded.metadata.get_input_schema().input_names()
rows = np.array(golden.column(0).to_pylist(), dtype=np.float64)
scores = loaded.predict(pd.DataFrame(rows, columns=columns))
for name in ["score_samples", "decision", "score"]:
    np.testing.assert_allclose(scores[name], golden[name].to_numpy(), rtol=1e-12, atol=0, err_msg=name)
print(json.dumps({
    "name": model.name,
    "version": version.version,
    "status": run.info.status,
    "params": run.data.params,
    "metrics": run.data.metrics,
    "tags": {**run.data.tags, **{"version." + key: value for key, value in version.tags.items()}},
    "folds": folds(run),
    "children": [
        {"size": child.data.params["max_samples"], "status": child.info.status, "folds": folds(child)}
        for child in children
    ],
    "artifacts": [path.relative_to(logged).as_posix() for path in logged.rglob("*")],
    "columns": columns,
    "rows": len(rows),
}))
"#;

/// Moves an alias as the pages of MLflow do, or deletes it where there is no version.
const MOVE_ALIAS: &str = r#"
import sys
import mlflow

model, alias, version = sys.argv[1:]
client = mlflow.MlflowClient()
if version:
    client.set_registered_model_alias(model, alias, version)
else:
    client.delete_registered_model_alias(model, alias)
"#;

fn inspect(mlflow: &Mlflow) -> Value {
    let printed = mlflow.python(INSPECT, &[]);
    serde_json::from_str(&printed).unwrap_or_else(|err| panic!("{err}: {printed}"))
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default()
}

// ---------------------------------------------------------------------------------------- scenarios

#[test]
fn f23_models_are_kept_in_mlflow() {
    let (mut mlflow, mut stack) = thread::scope(|scope| {
        let mlflow = scope.spawn(|| Mlflow::start(MlflowKind::V3));
        let mut stack = stack_with_prometheus();
        wait_for_history(&mut stack, 30);
        (mlflow.join().expect("MLflow starts"), stack)
    });
    let section = registry_section(&mlflow.url(), "");
    stack.configure_file("train.yml", &section, &detector(ACCEPT_ALL));
    // What the sidecar itself trains stays out of service: the versions are those of the command line.
    stack.configure_file("promforest.yml", &section, &detector(REJECT_ALL));

    let outcome = train(&stack, "train.yml", &["--sweep", "5,50,256"]);
    let first = version(&outcome);
    let name = outcome["model"].as_str().expect("it has a name").to_string();
    check_registered(&inspect(&mlflow), &outcome);

    stack.start_promforest();
    stack.wait("the champion is in service", MODEL_TIMEOUT, |at| at.check_serving("champion", &first));
    assert_eq!((training_runs(&stack.api, "loaded"), training_runs(&stack.api, "trained")), (1.0, 0.0));
    stack.wait("the first scores", SHORT_TIMEOUT, |at| at.scores().map(drop));

    let second = version(&train(&stack, "train.yml", &["--sweep", "20", "--alias", "candidate"]));
    assert_ne!(first, second);
    stack.wait_for_score_at(now_ms() + 2_000);
    stack.api.check_serving("champion", &first).expect("another alias changes nothing");

    let move_alias_and_check = |stack: &mut Stack, version: &str| {
        mlflow.python(MOVE_ALIAS, &[&name, "champion", version]);
        let began = Instant::now();
        stack.wait("the alias is followed", SHORT_TIMEOUT, |at| at.check_serving("champion", version));
        println!("champion is version {version} after {:?}", began.elapsed());
        check_scores_continue(stack);
        check_nothing_written_twice(stack);
    };
    move_alias_and_check(&mut stack, &second);
    // Rollback.
    move_alias_and_check(&mut stack, &first);
    check_challenger(&mut stack, &mlflow, &name, &second);
    check_rollback_stays(&mut stack, &first);
    check_registry_outage(&mut stack, &mut mlflow, &first);
}

/// A run with its children, and a version with its files.
fn check_registered(found: &Value, outcome: &Value) {
    assert_eq!(found["name"], outcome["model"]);
    assert_eq!(found["version"].to_string().trim_matches('"'), version(outcome));
    assert_eq!(found["status"], "FINISHED", "{found}");
    for param in ["max_samples", "n_estimators", "training_from", "training_to"] {
        assert!(found["params"][param].is_string(), "no parameter {param}: {found}");
    }
    for metric in [
        "kl_divergence",
        "kl_divergence_mean",
        "sweep_kl_divergence",
        "quantile_kl_divergence_mean",
        "alert_rate",
        "n_rows",
        "n_features",
    ] {
        assert!(found["metrics"][metric].is_number(), "no metric {metric}: {found}");
    }
    assert_eq!(found["tags"]["promforest.detector"], "node_network");
    assert!(found["tags"]["version.promforest.promoted_at"].is_string(), "{found}");
    assert_eq!(keys(&found["folds"]), ["0", "1", "2", "3", "4"], "{found}");
    let mut sizes = Vec::new();
    for child in list(&found["children"]) {
        assert_eq!(child["status"], "FINISHED");
        assert_eq!(keys(&child["folds"]), ["0", "1", "2", "3", "4"], "{child}");
        let size: u64 = child["size"].as_str().and_then(|size| size.parse().ok()).expect("a number");
        let trials = list(&outcome["sweep"]);
        let trial = trials.iter().find(|trial| trial["max_samples"] == size).expect("it was printed");
        for (fold, kl) in list(&trial["kl"]).iter().enumerate() {
            assert_eq!(child["folds"][fold.to_string()], *kl, "{child} and {trial}");
        }
        sizes.push(size);
    }
    sizes.sort_unstable();
    let printed: Vec<u64> =
        list(&outcome["sweep"]).iter().filter_map(|t| t["max_samples"].as_u64()).collect();
    assert_eq!(sizes, printed, "{found}");
    let artifacts: Vec<&str> = list(&found["artifacts"]).iter().filter_map(Value::as_str).collect();
    for file in ["MLmodel", "model.json", "forest.arrow", "golden.arrow", "code/promforest_model.py"] {
        assert!(artifacts.contains(&format!("model/{file}").as_str()), "no {file}: {artifacts:?}");
    }
    assert!(artifacts.contains(&"report.html"), "{artifacts:?}");
    assert_eq!(list(&found["columns"]).len(), 4, "{found}");
    assert!(found["rows"].as_u64().is_some_and(|rows| rows >= 10), "{found}");
}

/// Another model speaks beside the one in service as long as the alias is there.
fn check_challenger(stack: &mut Stack, mlflow: &Mlflow, name: &str, version: &str) {
    let selector = r#"node_network_anomaly{model="challenger"}"#;
    assert!(stack.api.stored(selector).is_err(), "nobody has asked for it");
    mlflow.python(MOVE_ALIAS, &[name, "challenger", version]);
    stack.wait("the challenger is at work", SHORT_TIMEOUT, |at| at.check_serving("challenger", version));
    let since_ms = now_ms() + 1_000;
    stack.wait_for_score_at(since_ms + 3_000);
    // They travel with the champion's.
    let timestamps = |stack: &Stack, selector: &str| {
        let times = stack.api.stored(selector).unwrap_or_else(|err| panic!("{err}")).timestamps();
        times.into_iter().filter(|time| *time >= since_ms).collect::<Vec<_>>()
    };
    let challenger = timestamps(stack, selector);
    let champion = timestamps(stack, r#"node_network_anomaly{model=""}"#);
    assert!(challenger.len() >= 3 && champion.starts_with(&challenger), "{champion:?}, {challenger:?}");
    let scores = timestamps(stack, r#"anomaly_score{detector="node_network", model="challenger"}"#);
    assert!(scores.starts_with(&challenger), "{scores:?}, {challenger:?}");

    mlflow.python(MOVE_ALIAS, &[name, "challenger", ""]);
    stack.wait("the challenger is gone", SHORT_TIMEOUT, |at| match at.check_serving("challenger", version) {
        Ok(()) => Err("it is there".into()),
        Err(_) => Ok(()),
    });
    let gone_ms = now_ms() + 500;
    stack.wait_for_score_at(gone_ms + 3_000);
    let newest_ms = timestamps(stack, selector).last().copied().expect("it was there");
    assert!(newest_ms <= gone_ms, "the challenger goes on for {} ms", newest_ms - gone_ms);
    check_scores_continue(stack);
}

/// The alias was moved back: trainings register as challenger.
fn check_rollback_stays(stack: &mut Stack, version: &str) {
    stack.wait("the rollback pins", SHORT_TIMEOUT, |at| match at.metric("promforest_model_pinned", &[])? {
        1.0 => Ok(()),
        pinned => Err(format!("promforest_model_pinned is {pinned}")),
    });
    for _ in 0..3 {
        let outcome = train(stack, "train.yml", &["--sweep", "20"]);
        assert_eq!(outcome["pinned"].to_string(), version, "{outcome}");
    }
    stack.api.check_serving("champion", version).expect("the rollback stays");
}

/// A registry that dies takes nothing along.
fn check_registry_outage(stack: &mut Stack, mlflow: &mut Mlflow, version: &str) {
    let wait_for_registry_up = |stack: &mut Stack, wanted: f64| {
        stack.wait("the gauge follows the registry", SHORT_TIMEOUT, |at| {
            let up = at.metric("promforest_model_registry_up", &[])?;
            if up == wanted { Ok(()) } else { Err(format!("it is {up}")) }
        });
    };
    wait_for_registry_up(stack, 1.0);
    let failed = training_runs(&stack.api, "failed");
    mlflow.kill();
    wait_for_registry_up(stack, 0.0);
    assert!(stack.metric("promforest_model_registry_failures_total", &[]) >= 1.0);
    stack.wait("a training fails", MODEL_TIMEOUT, |at| {
        if training_runs(at, "failed") > failed { Ok(()) } else { Err("it does not".into()) }
    });
    stack.api.check_serving("champion", version).expect("what serves goes on");
    check_scores_continue(stack);
    mlflow.restart();
    wait_for_registry_up(stack, 1.0);
    stack.api.check_serving("champion", version).expect("what serves goes on");
    check_scores_continue(stack);
}

#[test]
fn f23_models_are_kept_in_a_directory() {
    let mut stack = stack_with_prometheus();
    stack.configure(&detector(REJECT_ALL));
    stack.start_promforest();
    stack.wait("the first model", MODEL_TIMEOUT, |at| at.check_serving("champion", "1"));
    assert_eq!((training_runs(&stack.api, "loaded"), training_runs(&stack.api, "trained")), (0.0, 1.0));
    stack.wait("a model is gated", MODEL_TIMEOUT, |at| {
        if training_runs(at, "gated") >= 1.0 { Ok(()) } else { Err("no model is gated".into()) }
    });
    stack.api.check_serving("champion", "1").expect("what serves goes on");
    let gate_reason = "the KL divergence of held-out rows is ";
    let log = stack.promforest.as_ref().expect("it runs").log();
    assert!(log.contains(gate_reason), "{log}");
    check_scores_continue(&mut stack);
    check_gated_on_the_command_line(&stack, gate_reason);

    let end = stack.promforest.take().expect("it runs").terminate(Duration::from_secs(12));
    assert_eq!(end.code(), Some(0), "the end by SIGTERM");
    check_restart(&mut stack);
    stack.kill_promforest();
    check_restart(&mut stack);

    stack.kill_promforest();
    check_start_with_a_hanging_registry(&mut stack);
}

/// The gate of the command line is the sidecar's.
fn check_gated_on_the_command_line(stack: &Stack, gate_reason: &str) {
    let Output { status, stdout, stderr } = stack.command(&["train", "--config.file", "promforest.yml"]);
    let (stdout, stderr) = (lines(&stdout), lines(&stderr));
    assert!(status.success(), "{status}: {stderr:?}");
    assert!(stdout.iter().any(|line| line.starts_with("registered as version ")), "{stdout:?}");
    let reason = stdout.iter().find_map(|line| line.strip_prefix("not promoted: "));
    assert!(reason.is_some_and(|reason| reason.starts_with(gate_reason)), "{stdout:?}");
    assert!(!stdout.iter().any(|line| line.starts_with("promoted")), "{stdout:?}");
    stack.api.check_serving("champion", "1").expect("what serves goes on");
}

/// After a pause it goes on with the model that it had, and the pause has scores.
fn check_restart(stack: &mut Stack) {
    thread::sleep(Duration::from_secs(3));
    stack.start_promforest();
    stack.wait("the model is back", SHORT_TIMEOUT, |at| at.check_serving("champion", "1"));
    assert_eq!((training_runs(&stack.api, "loaded"), training_runs(&stack.api, "trained")), (1.0, 0.0));
    check_scores_continue(stack);
}

/// A first model comes all the same, and is not registered.
fn check_start_with_a_hanging_registry(stack: &mut Stack) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    stack.configure_file("promforest.yml", &registry_section(&url, ""), &detector(ACCEPT_ALL));
    // The system takes connections for it; nobody reads them.
    stack.start_promforest();
    let began = Instant::now();
    stack.wait("a model that is not registered", Duration::from_secs(25), |at| {
        at.check_serving("champion", "")
    });
    println!("beside a registry that hangs, a model after {:?}", began.elapsed());
    assert_eq!((training_runs(&stack.api, "loaded"), training_runs(&stack.api, "trained")), (0.0, 1.0));
    check_scores_continue(stack);
    drop(listener);
}

#[test]
fn older_and_authenticated_servers_accept_models() {
    let (old, guarded, stack) = thread::scope(|scope| {
        let old = scope.spawn(|| Mlflow::start(MlflowKind::V2));
        let guarded = scope.spawn(|| Mlflow::start(MlflowKind::V3WithAccounts));
        let mut stack = stack_with_prometheus();
        wait_for_history(&mut stack, 25);
        (old.join().expect("MLflow 2 starts"), guarded.join().expect("MLflow starts"), stack)
    });
    let account = |password: &str| format!(", basic_auth: {{username: {USERNAME}, password: {password}}}");
    for (mlflow, more) in [(&old, String::new()), (&guarded, account(PASSWORD))] {
        stack.configure_file("train.yml", &registry_section(&mlflow.url(), &more), &detector(ACCEPT_ALL));
        let outcome = train(&stack, "train.yml", &["--sweep", "5,50,256"]);
        assert_eq!(outcome["promoted"], "champion");
        check_registered(&inspect(mlflow), &outcome);
    }
    stack.configure_file(
        "wrong.yml",
        &registry_section(&guarded.url(), &account("guess")),
        &detector(ACCEPT_ALL),
    );
    let Output { status, stdout, stderr } = stack.command(&["train", "--config.file", "wrong.yml"]);
    let (stdout, stderr) = (lines(&stdout), lines(&stderr));
    assert_eq!((status.code(), stdout.len(), stderr.len()), (Some(1), 0, 1), "{stdout:?} {stderr:?}");
    println!("{}", stderr[0]);
    assert!(stderr[0].contains(&guarded.url()) && stderr[0].contains("401"), "{stderr:?}");
}
