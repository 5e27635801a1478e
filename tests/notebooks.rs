//! Windows and scores as tables: read with pandas, polars and DuckDB, and compared with remote read bit by bit.

mod support;

use arrow_ipc::reader::StreamReader;
use promforest::prom::proto::{
    Label, LabelMatcher, Query, ReadRequest, ReadResponse, Sample, TimeSeries, WriteRequest,
};
use promforest::prom::wire::snappy;
use promforest::prom::{Labels, METRIC_NAME, STALE_BITS};
use prost::Message;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use support::sidecar::Sidecar;
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, NODE_NETWORK_EXTENDED, RemoteWriteReceiver, Stack,
};
use support::{PrometheusVersion, http, mlflow, now_ms};

/// Groups of two shapes; one label has the name of a column.
const CONFIG: &str = r#"
remote_write: []
remote_read: []
detectors:
  - {name: net, match: ['{job="node"}'], by: [instance], transform: value}
  - {name: app, match: ['{job="app"}'], by: [service, value], transform: value}
"#;

/// The samples of series, by labels: timestamp and bits.
type SeriesBits = BTreeMap<Labels, Vec<(i64, String)>>;

fn start() -> Sidecar {
    Sidecar::start(&[("promforest.yml", CONFIG)])
}

fn time_series(labels: &[(&str, &str)], samples: impl IntoIterator<Item = (i64, f64)>) -> TimeSeries {
    let label = |(name, value): &(&str, &str)| Label { name: (*name).into(), value: (*value).into() };
    let samples = samples.into_iter().map(|(timestamp, value)| Sample { timestamp, value });
    TimeSeries {
        labels: labels.iter().map(label).collect(),
        samples: samples.collect(),
        ..TimeSeries::default()
    }
}

/// Writes series of both detectors, with values of every kind. Returns the time of the first row.
fn fill(sidecar: &Sidecar) -> i64 {
    let start_ms = now_ms() - 600_000;
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e-320, 0.1, f64::from_bits(STALE_BITS)];
    let samples = |n: usize| odd.into_iter().cycle().take(n).enumerate();
    let samples = |n| samples(n).map(move |(i, value)| (start_ms + i as i64 * 1000, value));
    let node = |device, instance, n| {
        let labels = [("__name__", "rx"), ("device", device), ("instance", instance), ("job", "node")];
        time_series(&labels, samples(n))
    };
    let app = [("__name__", "requests"), ("job", "app"), ("service", "shop"), ("value", "gross, \"net\"")];
    let app_of_all = [("__name__", "requests"), ("job", "app"), ("service", "shop")];
    let series = vec![
        node("eth0", "b", 20),
        node("eth2", "a", 4),
        node("eth1", "a", 20),
        node("größe \"\n", "a", 7),
        time_series(&app, samples(3)),
        time_series(&app_of_all, samples(2)),
    ];
    assert_eq!(sidecar.write_series(series).expect("a response"), 204);
    start_ms
}

/// A table as the three libraries read it: the types of its columns, and its rows.
fn read_table(address: &str, path: &str) -> (Value, Vec<Value>) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/notebooks_agree.py");
    let url = format!("http://{address}/api/v1/{path}");
    let output = Command::new(mlflow::python()).arg(script).arg(url).output().expect("Python runs");
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    (lines.next().expect("types"), lines.collect())
}

/// The same of remote read.
fn remote_read(address: &str, name: &str, value: &str, range: (i64, i64)) -> SeriesBits {
    let matchers = vec![LabelMatcher { r#type: 2, name: name.into(), value: value.into() }];
    let query = Query { start_timestamp_ms: range.0, end_timestamp_ms: range.1, matchers };
    let request = ReadRequest { queries: vec![query], accepted_response_types: Vec::new() };
    let body = snappy::compress(&request.encode_to_vec());
    let (status, body) = http::post_message(address, "/api/v1/read", &body).expect("a response");
    assert_eq!(status, 200);
    let mut buffer = Vec::new();
    let message = snappy::decompress(&body, 1 << 30, &mut buffer).expect("snappy");
    let result = ReadResponse::decode(message).expect("a ReadResponse").results.remove(0);
    let series = result.timeseries.into_iter().map(|series| {
        let labels = Labels::new(series.labels.into_iter().map(|label| (label.name, label.value)));
        let sample = |sample: &Sample| (sample.timestamp, bits(sample.value));
        (labels.expect("valid"), series.samples.iter().map(sample).collect())
    });
    series.collect()
}

fn bits(value: f64) -> String {
    format!("{:016x}", value.to_bits())
}

fn encode(selector: &str) -> String {
    format!("match[]={}", http::encode(selector))
}

/// The rows of the window that remote read has, in the order of the table.
fn expected_window(address: &str, range: (i64, i64)) -> Vec<Value> {
    let mut rows = Vec::new();
    for (labels, samples) in remote_read(address, "job", ".+", range) {
        let (detector, by) = match labels.get("job") {
            "node" => ("net", vec!["instance".into()]),
            _ => ("app", vec!["service".into(), "value".into()]),
        };
        let (group, feature) = labels.split(&by);
        rows.push((detector, group, feature, samples));
    }
    rows.sort();
    let text = |labels: &Labels, name: &str| match labels.get(name) {
        "" => Value::Null,
        value => value.into(),
    };
    let rows = rows.iter().flat_map(|(detector, group, feature, samples)| {
        let [instance, service, value] = ["instance", "service", "value"].map(|name| text(group, name));
        samples.iter().map(move |(timestamp_ms, bits)| {
            json!([timestamp_ms, detector, instance, service, value, feature.to_string(), bits])
        })
    });
    rows.collect()
}

#[test]
fn a_window_has_the_samples_of_remote_read_bit_by_bit() {
    let sidecar = start();
    let start_ms = fill(&sidecar);
    let address = sidecar.address();
    let (types, rows) = read_table(&address, "window");
    let dictionary = "dictionary<values=string, indices=int32, ordered=0>";
    assert_eq!(
        types,
        json!({
            "timestamp": "timestamp[ms, tz=UTC]", "detector": dictionary, "instance": dictionary,
            "service": dictionary, "exported_value": dictionary, "feature": dictionary, "value": "double",
        })
    );
    let all = (0, i64::MAX);
    assert_eq!(rows.len(), 56);
    assert!(rows.iter().any(|row| row[6] == bits(f64::from_bits(STALE_BITS))));
    assert_eq!(rows, expected_window(&address, all));

    // Both ends belong to a range; a sample at each.
    let range = (start_ms + 1000, start_ms + 2000);
    let seconds = |at_ms: i64| format!("{}.{:03}", at_ms / 1000, at_ms % 1000);
    let (_, in_range) =
        read_table(&address, &format!("window?start={}&end={}", seconds(range.0), seconds(range.1)));
    assert_eq!(in_range.len(), 11);
    assert_eq!(in_range, expected_window(&address, range));

    // Selectors are of groups, and any of them suffices.
    let selectors = [encode(r#"{detector="app", value=~"gross.*"}"#), encode(r#"{instance="b"}"#)].join("&");
    let (types, selected) = read_table(&address, &format!("window?{selectors}"));
    assert!(types["exported_value"].is_string());
    let groups: BTreeSet<String> =
        selected.iter().map(|row| format!("{} {} {}", row[1], row[2], row[4])).collect();
    let expected = [r#""app" null "gross, \"net\"""#, r#""net" "b" null"#];
    assert_eq!(groups.into_iter().collect::<Vec<_>>(), expected);
    assert_eq!(selected.len(), 23);
}

#[test]
fn an_empty_table_has_its_columns() {
    let sidecar = start();
    fill(&sidecar);
    let names = |path: &str| {
        let (types, rows) = read_table(&sidecar.address(), path);
        assert_eq!(rows, Vec::<Value>::new(), "{path}");
        let names: BTreeSet<&String> = types.as_object().expect("types").keys().collect();
        names.into_iter().map(String::as_str).collect::<Vec<_>>().join(" ")
    };
    // No group, groups without a score, groups without a sample in the range.
    assert_eq!(names(&format!("window?{}", encode("up"))), "detector feature timestamp value");
    assert_eq!(
        names(&format!("scores?{}", encode(r#"{detector="net"}"#))),
        "anomaly_score decision detector incident instance threshold timestamp"
    );
    assert_eq!(
        names(&format!("window?start=2100-01-01T00:00:00Z&{}", encode(r#"{instance="a"}"#))),
        "detector feature instance timestamp value"
    );
}

#[test]
fn bad_requests_are_told_what_is_wrong() {
    let sidecar = start();
    let address = sidecar.address();
    for (path, headers, status, text) in [
        (
            "window",
            "Accept: text/csv\r\n",
            406,
            "none of the accepted types \"text/csv\" is available: application/vnd.apache.arrow.stream and \
             application/vnd.apache.parquet are",
        ),
        ("scores", "Accept: \u{fffd}\u{fffd}\r\n", 406, "none of the accepted types "),
        ("scores", "Accept: application/vnd.apache.parquet;q=0\r\n", 406, "none of the accepted types "),
        ("window?match=up", "", 400, "parameter \"match\" is not known: match[], start and end are"),
        (&format!("window?{}", encode("{a=~\"(\"}")), "", 400, "match[]: selector "),
        ("window?start=noon", "", 400, "parameter start: \"noon\" is no time"),
        ("scores?start=2&end=1", "", 400, "the end 1970-01-01T00:00:01.000Z is before the start "),
        (
            &format!("window?{}", vec![encode("{}"); 17].join("&")),
            "",
            400,
            "the query exceeds the limit of 16 ",
        ),
    ] {
        let code = [("code", &*status.to_string())];
        let before = sidecar.metric_with("promforest_notebook_requests_total", &code);
        let answer = http::get_with(&address, &format!("/api/v1/{path}"), headers).expect("a response");
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert!(answer.only_line().starts_with(text), "{path}: {}", answer.body);
        let counted = sidecar.metric_with("promforest_notebook_requests_total", &code) - before;
        assert_eq!(counted, 1.0, "{path}");
    }
    let answer = http::post(&address, "/api/v1/window").expect("a response");
    assert_eq!((answer.status, answer.headers["allow"].as_str()), (405, "GET"));
}

/// Tables and remote read share their turns.
#[test]
fn clients_that_do_not_read_take_no_memory_and_no_turn_for_ever() {
    let mut sidecar = start();
    let address = sidecar.address();
    let start_ms = now_ms() - 1_400_000;
    let mut state = 1_u64;
    for from in (0..1400).step_by(40) {
        let mut sample = |i: i64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (start_ms + i * 1000, f64::from_bits(state ^ state >> 29))
        };
        let series = |i: usize| {
            let name = format!("m{i:03}");
            let labels = [("__name__", name.as_str()), ("instance", "a"), ("job", "node")];
            time_series(&labels, (from..from + 40).map(&mut sample))
        };
        let request = WriteRequest { timeseries: (0..500).map(series).collect(), metadata: Vec::new() };
        let body = snappy::compress(&request.encode_to_vec());
        assert_eq!(support::remote_write::post(&address, &body).expect("a response"), 204);
    }
    let before = sidecar.process.resident_bytes();
    let get = |accept: &str| {
        let mut stream = TcpStream::connect(&address).expect("the program listens");
        write!(stream, "GET /api/v1/window HTTP/1.0\r\nHost: a\r\nAccept: {accept}\r\n\r\n")
            .expect("writable");
        let mut line = [0; 12];
        stream.read_exact(&mut line).expect("a response");
        (stream, String::from_utf8_lossy(&line).into_owned())
    };
    // More than the sockets of both sides hold; the responses begin, and nothing more is read of them.
    let accepts = ["*/*", "application/vnd.apache.parquet"].into_iter().cycle();
    let stalled: Vec<_> = accepts.take(10).map(get).collect();
    assert!(stalled.iter().all(|(_, line)| line == "HTTP/1.0 200"), "{stalled:?}");
    sidecar.wait_for_metric("promforest_remote_read_server_requests_in_flight", |n| n == 10.0);
    // The eleventh waits for a turn, and receives 503 if none ends.
    let (_, line) = get("*/*");
    assert!(["HTTP/1.0 503", "HTTP/1.0 200"].contains(&&*line), "{line}");
    let grown = sidecar.process.resident_bytes().saturating_sub(before);
    assert!(grown < 96 << 20, "{} MiB", grown >> 20);
    drop(stalled);
    sidecar.wait_for_metric("promforest_remote_read_server_requests_in_flight", |n| n == 0.0);
    assert!(sidecar.metric("promforest_notebook_responses_truncated_total") >= 10.0);
    let (status, body) = http::get_bytes(&address, "/api/v1/window").expect("a response");
    let batches = StreamReader::try_new(&body[..], None).expect("a stream");
    let n_rows: usize = batches.map(|batch| batch.expect("a batch").num_rows()).sum();
    assert_eq!((status, n_rows), (200, 700_000));
}

/// Runs the examples of the reference.
fn run_examples(address: &str) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/reference/notebooks.md");
    let page = fs::read_to_string(page).expect("a page").replace("localhost:9599", address);
    let examples: Vec<&str> =
        page.split("```python\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 3);
    for example in examples {
        let output = Command::new(mlflow::python()).args(["-c", example]).output().expect("Python runs");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{example}{}", String::from_utf8_lossy(&output.stderr));
        assert!(printed.contains("127.0.0.1:"), "{example}{printed}");
    }
}

#[test]
fn scores_are_those_of_remote_read_bit_by_bit() {
    let mut stack = Stack::new(PrometheusVersion::V3, Collectors::Network, &JOB_NODE);
    stack.start_prometheus(RemoteWriteReceiver::Enabled);
    stack.configure(NODE_NETWORK_EXTENDED);
    stack.start_promforest();
    stack.wait("the first scores", 4 * MODEL_TIMEOUT, |at| at.scores().map(drop));
    stack.wait_for_score_at(now_ms() + 5_000);
    let address = stack.api.promforest.clone();
    run_examples(&address);
    let (types, rows) = read_table(&address, &format!("scores?end={}", now_ms() / 1000 - 2));
    let names: BTreeSet<&String> = types.as_object().expect("types").keys().collect();
    let expected = ["anomaly_score", "decision", "detector", "incident", "threshold", "timestamp"];
    assert!(expected.iter().all(|name| names.contains(&(*name).to_string())), "{types}");
    assert_eq!((&types["anomaly_score"], &types["incident"]), (&json!("double"), &json!("bool")));
    let last_ms = rows.last().and_then(|row| row[0].as_i64()).expect("scores");
    assert!(rows.len() > 3, "{} rows", rows.len());

    let read = remote_read(&address, METRIC_NAME, "anomaly_.*|node_network_anomaly", (0, last_ms));
    let of_metric = |name: &str| {
        let mut series = read.iter().filter(|(labels, _)| labels.metric_name() == name);
        series.next().map(|(_, samples)| samples.clone()).unwrap_or_default()
    };
    let n = rows[0].as_array().expect("a row").len();
    let of_column = |column: usize| -> Vec<(i64, String)> {
        let cells = rows.iter().filter(|row| !row[column].is_null()).map(|row| {
            let cell = match &row[column] {
                Value::Bool(is_incident) => bits(f64::from(u8::from(*is_incident))),
                cell => cell.as_str().expect("bits").to_string(),
            };
            (row[0].as_i64().expect("a timestamp"), cell)
        });
        cells.collect()
    };
    for (column, name) in [
        (n - 4, "anomaly_score"),
        (n - 3, "anomaly_threshold"),
        (n - 2, "anomaly_incident"),
        (n - 1, "node_network_anomaly"),
    ] {
        assert!(!of_column(column).is_empty(), "{name}");
        assert_eq!(of_column(column), of_metric(name), "{name}");
    }
}
