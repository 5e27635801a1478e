//! A forest of a data scientist, served as it is: scikit-learn fits it on rates that Prometheus computes, MLflow keeps
//! it with a signature of the data frame's column names, and its alias decides which version scores the live rows.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};
use support::http;
use support::mlflow::{Mlflow, MlflowKind, registry_section};
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, RemoteWriteReceiver, SHORT_TIMEOUT, Scraping, Stack,
};
use support::{PrometheusVersion, now_ms};

const DEVICES: [&str; 5] = ["br-0c6e79cd156e", "br-8fbdbc8e9f6a", "docker0", "eth0", "lo"];
const METRICS: [&str; 4] = [
    "node_network_receive_bytes_total",
    "node_network_transmit_bytes_total",
    "node_network_receive_packets_total",
    "node_network_transmit_packets_total",
];
/// Range of the rates.
const RANGE_MS: i64 = 60_000;
/// Scrapes before the training: the range, and 45 rows.
const HISTORY: usize = 105;

/// The detector. No model that the sidecar trains passes the gate.
const DETECTOR: &str = r#"
  - name: node_network
    match: ['{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total"}']
    transform: rate(1m)
    window: 10m
    grace: 5s
    training: {history: 1h, min_history: 10s, interval: 1h, gate: {max_kl: 0.000001}}
    model: {kind: isolation_forest}
"#;

/// Reads the rates of a range of time from Prometheus, with the column names of a notebook.
const READ_RATES: &str = r#"
import json
import sys
import urllib.parse
import urllib.request
import mlflow
import numpy as np
import pandas as pd

NAMES = {
    "node_network_receive_bytes_total": "Rx in",
    "node_network_transmit_bytes_total": "Tx out",
    "node_network_receive_packets_total": "Pck in",
    "node_network_transmit_packets_total": "Pck out",
}

def rates(prometheus, call, **times):
    rows = {}
    for metric, name in NAMES.items():
        query = urllib.parse.urlencode({"query": f'rate({metric}{{job="node"}}[1m])', **times})
        with urllib.request.urlopen(f"http://{prometheus}/api/v1/{call}?{query}") as response:
            for series in json.load(response)["data"]["result"]:
                column = f"{series['metric']['device']} - {name}"
                values = series.get("values") or [series["value"]]
                rows[column] = {time: float(value) for time, value in values}
    return pd.DataFrame(rows).dropna()
"#;

/// Registers a forest for each of two sizes; the first has the alias. Prints the column names.
const TRAIN: &str = r#"
from mlflow.models import infer_signature
from sklearn.ensemble import IsolationForest

prometheus, start, end = sys.argv[1:]
network_df = rates(prometheus, "query_range", start=start, end=end, step=1)
mlflow.set_experiment("/Network_Bytes_and_Packets_Isolation_Forest")
for max_samples in [20, 40]:
    with mlflow.start_run(run_name=f"{max_samples}"):
        clf = IsolationForest(max_samples=max_samples, random_state=0)
        clf.fit(network_df)
        mlflow.sklearn.log_model(
            clf, name="model", serialization_format="cloudpickle",
            signature=infer_signature(network_df, clf.decision_function(network_df)),
            registered_model_name="network")
mlflow.MlflowClient().set_registered_model_alias("network", "champion", "1")
print("\n".join(sorted(network_df.columns)), end="")
"#;

/// Prints the decisions of the version for the rates at these times.
const DECIDE: &str = r#"
prometheus, version, *times = sys.argv[1:]
clf = mlflow.sklearn.load_model(f"models:/network/{version}")
for time in times:
    rows = rates(prometheus, "query", time=time)[clf.feature_names_in_]
    print(f"{clf.decision_function(rows)[0]:.17g}")
"#;

/// Serves counters that grow with a wave of their own each.
fn serve_counters() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let began = Instant::now();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut head = [0; 4096];
            // Prometheus may have closed the connection.
            let _ = stream.read(&mut head);
            let body = counters(began.elapsed().as_secs_f64());
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close";
            let _ = write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    address
}

/// The page of the counters after some seconds.
fn counters(seconds: f64) -> String {
    let mut page = String::new();
    for (i, metric) in METRICS.iter().enumerate() {
        page += &format!("# TYPE {metric} counter\n");
        for (j, device) in DEVICES.iter().enumerate() {
            let frequency = 0.05 + 0.013 * (i * DEVICES.len() + j) as f64;
            let total = 1e4 * (1 + i + j) as f64 * (seconds - 0.6 / frequency * (frequency * seconds).cos());
            page += &format!("{metric}{{device=\"{device}\"}} {}\n", total.round() + 1e7);
        }
    }
    page
}

/// Fails unless the decisions that are stored since a time are those of scikit-learn with this version.
fn check_decisions(stack: &Stack, mlflow: &Mlflow, version: &str, since_ms: i64) {
    let decisions =
        stack.api.stored(r#"node_network_anomaly{model=""}"#).expect("decisions are stored").samples;
    let decisions: Vec<(i64, f64)> =
        decisions.into_iter().filter(|(time_ms, _)| *time_ms >= since_ms).collect();
    assert!(decisions.len() >= 3, "{decisions:?}");
    let times: Vec<String> =
        decisions.iter().map(|(time_ms, _)| format!("{:.3}", *time_ms as f64 / 1000.0)).collect();
    let args: Vec<&str> = [stack.api.prometheus.0.as_str(), version]
        .into_iter()
        .chain(times.iter().map(String::as_str))
        .collect();
    let printed = mlflow.python(&format!("{READ_RATES}{DECIDE}"), &args);
    assert_eq!(printed.lines().count(), decisions.len(), "{printed}");
    for (line, (time_ms, decision)) in printed.lines().zip(decisions) {
        let expected: f64 = line.parse().expect("Python prints a number");
        assert!((decision - expected).abs() <= 1e-12, "{time_ms}: {decision}, not {expected}");
    }
}

/// Waits for the version, and for some of its scores; checks them and that every scrape has one.
fn check_served(stack: &mut Stack, mlflow: &Mlflow, version: &str) {
    stack.wait("the alias is followed", MODEL_TIMEOUT, |at| at.check_serving("champion", version));
    let since_ms = now_ms();
    stack.wait_for_score_at(since_ms + 4_000);
    check_decisions(stack, mlflow, version, since_ms);
    stack.check_scores(RANGE_MS);
    stack.check_nothing_lost();
}

#[test]
fn a_registered_scikit_learn_forest_is_served_and_rolled_back() {
    let (mlflow, mut stack) = thread::scope(|scope| {
        let mlflow = scope.spawn(|| Mlflow::start(MlflowKind::V3));
        let jobs = format!("  - {{job_name: node, static_configs: [{{targets: ['{}']}}]}}", serve_counters());
        let scraping = Scraping { jobs: &jobs, ..JOB_NODE };
        let mut stack = Stack::new(PrometheusVersion::V3, Collectors::Network, &scraping);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.wait("history", Duration::from_secs(180), |at| {
            let n = at.stored(r#"node_network_receive_bytes_total{device="lo"}"#)?.samples.len();
            if n >= HISTORY { Ok(()) } else { Err(format!("{n} scrapes")) }
        });
        (mlflow.join().expect("MLflow starts"), stack)
    });
    let now = now_ms() / 1000;
    let (start, end) = ((now - 40).to_string(), now.to_string());
    let columns = mlflow.python(&format!("{READ_RATES}{TRAIN}"), &[&stack.api.prometheus.0, &start, &end]);
    let columns: Vec<&str> = columns.lines().collect();
    assert_eq!((columns.len(), columns[0]), (20, "br-0c6e79cd156e - Pck in"));

    stack.configure_file("promforest.yml", &registry_section(&mlflow.url(), ", model: network"), DETECTOR);
    stack.start_promforest();
    check_served(&mut stack, &mlflow, "1");
    let page = http::get(&stack.api.promforest, "/metrics").expect("promforest answers").body;
    let features = http::metric(&page, "promforest_missing_features", &[]);
    assert_eq!(features, Some(0.0), "{page}");

    assert_eq!(stack.run(&["models", "promote", "network", "2"]), "network: champion 2\n");
    check_served(&mut stack, &mlflow, "2");
    // The client of MLflow set the alias before.
    assert_eq!(stack.run(&["models", "rollback", "network"]), "network: champion 2 -> 1\n");
    check_served(&mut stack, &mlflow, "1");
    let set_alias = r#"mlflow.MlflowClient().set_registered_model_alias("network", "champion", "2")"#;
    mlflow.python(&format!("import mlflow\n{set_alias}"), &[]);
    check_served(&mut stack, &mlflow, "2");
    stack.promforest.take().expect("the program runs").terminate(SHORT_TIMEOUT);
}
