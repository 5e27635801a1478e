//! Answers of a real Prometheus, and a server that answers what a test wants.

use super::*;
use crate::http::server::{self, Answer as Reply};
use crate::prom::proto::{self, QueryResult};
use http_body_util::BodyExt;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::watch;

fn capture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/data/captures/remote-read/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn decompressed(body: &[u8]) -> Vec<u8> {
    snappy::decompress(body, ANSWER_LIMIT, &mut Vec::new()).expect("snappy").to_vec()
}

/// The labels and samples of a CSV with the columns `labels_json,timestamp_ms,value`.
fn expected(name: &str) -> BTreeMap<Labels, Vec<Sample>> {
    let text = String::from_utf8(capture(name)).expect("UTF-8");
    let mut series: BTreeMap<Labels, Vec<Sample>> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let (json, rest) = line.trim_start_matches('"').split_once("}\",").expect("a quoted object");
        let json = json.replace("\"\"", "\"") + "}";
        let labels: BTreeMap<String, String> = serde_json::from_str(&json).expect("an object");
        let (timestamp, value) = rest.split_once(',').expect("two numbers");
        let sample = Sample {
            timestamp_ms: timestamp.parse().expect("a timestamp"),
            value: value.parse().expect("a value"),
        };
        series.entry(Labels::new(labels).expect("valid")).or_default().push(sample);
    }
    series
}

/// Takes off the labels that remote read adds, after a look at them.
fn without_external(labels: &Labels) -> Labels {
    let (external, own) = labels.split(&["monitor".into(), "replica".into()]);
    assert_eq!(external.to_string(), r#"{monitor="demo", replica="a"}"#);
    own
}

/// Compares sample by sample; returns the staleness markers, which only remote read has.
fn compare(series: &[Series], csv: &str) -> Vec<(String, i64)> {
    let mut expected = expected(csv);
    let mut markers = Vec::new();
    for (labels, samples) in series {
        let labels = without_external(labels);
        assert!(samples.is_sorted_by_key(|sample| sample.timestamp_ms));
        let (stale, values): (Vec<Sample>, Vec<Sample>) = samples.iter().partition(|s| s.is_stale());
        markers.extend(stale.iter().map(|sample| (labels.metric_name().to_string(), sample.timestamp_ms)));
        assert_eq!(Some(values), expected.remove(&labels), "{labels}");
    }
    assert!(expected.is_empty(), "missing: {:?}", expected.keys());
    markers
}

#[test]
fn decodes_what_prometheus_answers() {
    let message = decompressed(&capture("netdev-rx.samples.response.bin"));
    let series = decode(&message, i64::MIN, i64::MAX).expect("valid");
    assert_eq!(series.len(), 5);
    assert!(series.iter().all(|(_, samples)| samples.len() == 60));
    assert_eq!(compare(&series, "netdev-rx.expected.csv"), []);
}

#[test]
fn keeps_gaps_and_staleness_markers() {
    let message = decompressed(&capture("go-heap-gap.samples.response.bin"));
    let series = decode(&message, i64::MIN, i64::MAX).expect("valid");
    assert_eq!(series.len(), 7);
    let markers = compare(&series, "go-heap-gap.expected.csv");
    assert_eq!(markers.len(), 2, "{markers:?}");
    assert_eq!(markers[0].1, markers[1].1, "one target ended");
    // The markers stand at the beginning of a gap of at least the 17 s that the target was away.
    for (labels, samples) in &series {
        let Some(i) = samples.iter().position(Sample::is_stale) else { continue };
        let gap_ms = samples[i + 1].timestamp_ms - samples[i - 1].timestamp_ms;
        assert!(gap_ms >= 17_000, "{labels}: {gap_ms}");
    }
}

#[test]
fn clips_to_the_range() {
    let message = decompressed(&capture("netdev-rx.samples.response.bin"));
    let all = decode(&message, i64::MIN, i64::MAX).expect("valid");
    let (first, last) = (all[0].1[10], all[0].1[20]);
    let clipped = decode(&message, first.timestamp_ms, last.timestamp_ms).expect("valid");
    assert_eq!(clipped[0].1, all[0].1[10..=20], "both ends are inside");
}

#[test]
fn sorts_what_comes_unsorted() {
    let sample = |timestamp, value| proto::Sample { timestamp, value };
    let result = QueryResult {
        timeseries: vec![proto::TimeSeries {
            labels: vec![label("b", "2"), label("__name__", "up")],
            samples: vec![sample(30, 3.0), sample(10, 1.0), sample(20, 2.0)],
            ..Default::default()
        }],
    };
    let message = ReadResponse { results: vec![result] }.encode_to_vec();
    let series = decode(&message, 0, 100).expect("valid");
    assert_eq!(series[0].0.to_string(), r#"up{b="2"}"#);
    let times: Vec<i64> = series[0].1.iter().map(|sample| sample.timestamp_ms).collect();
    assert_eq!(times, [10, 20, 30]);
}

fn label(name: &str, value: &str) -> proto::Label {
    proto::Label { name: name.into(), value: value.into() }
}

#[test]
fn refuses_what_is_no_answer() {
    let twice = QueryResult {
        timeseries: vec![proto::TimeSeries {
            labels: vec![label("a", "1"), label("a", "2")],
            ..Default::default()
        }],
    };
    for (response, message) in [
        (ReadResponse { results: Vec::new() }, "remote read: 0 results for one query"),
        (
            ReadResponse { results: vec![QueryResult::default(), QueryResult::default()] },
            "remote read: 2 results for one query",
        ),
        (
            ReadResponse { results: vec![twice] },
            "remote read: an invalid series: label name \"a\" is not unique",
        ),
    ] {
        let error = decode(&response.encode_to_vec(), 0, 1).expect_err(message);
        assert_eq!(crate::yaml::chain(&error), message);
    }
    let whole = decompressed(&capture("netdev-rx.samples.response.bin"));
    assert!(matches!(decode(&whole[..whole.len() - 1], 0, 1), Err(Error::Protobuf(_))));
}

/// A server for remote read, and the requests that it saw.
struct Fake {
    config: Config,
    seen: Arc<Mutex<Vec<ReadRequest>>>,
    _stop: watch::Sender<bool>,
}

impl Fake {
    async fn start(script: impl Fn(&Query) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = watch::channel(false);
        let (script, log) = (Arc::new(script), seen.clone());
        let route = move |request: hyper::Request<hyper::body::Incoming>| {
            let (script, log) = (script.clone(), log.clone());
            async move {
                let (head, body) = request.into_parts();
                for (name, value) in [
                    ("content-type", "application/x-protobuf"),
                    ("content-encoding", "snappy"),
                    ("accept-encoding", "snappy"),
                    ("x-prometheus-remote-read-version", "0.1.0"),
                    ("user-agent", client::AGENT),
                ] {
                    assert_eq!(head.headers[name], value, "{name}");
                }
                assert_eq!((head.method, head.uri.path()), (hyper::Method::POST, "/api/v1/read"));
                let body = body.collect().await.expect("a whole body").to_bytes();
                let request = ReadRequest::decode(&*decompressed(&body)).expect("a ReadRequest");
                let reply = script(&request.queries[0]);
                log.lock().expect("no panic").push(request);
                reply
            }
        };
        tokio::spawn(server::serve(listener, route, stopped));
        let url = format!("http://{address}/api/v1/read").parse().expect("a URL");
        Self { config: Config { url, ..Config::default() }, seen, _stop: stop }
    }

    /// Reads a range; the result has the slices in the order in which they came.
    async fn read(&self, range: (i64, i64)) -> (Vec<Vec<Series>>, Result<(), Error>) {
        let selector = Selector::parse("up").expect("a selector");
        let group = [Matcher::equal("job", "node")];
        let mut slices = Vec::new();
        let each = |slice| slices.push(slice);
        let result = read(&Client::default(), &self.config, &selector, &group, range, each).await;
        (slices, result)
    }

    /// The ranges that were asked for.
    fn ranges(&self) -> Vec<(i64, i64)> {
        let seen = self.seen.lock().expect("no panic");
        seen.iter().map(|r| (r.queries[0].start_timestamp_ms, r.queries[0].end_timestamp_ms)).collect()
    }
}

fn reply(content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Reply::new(body.into().into());
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

fn refuse(status: u16, text: &'static str) -> Reply {
    let mut reply = reply("text/plain; charset=utf-8", text);
    *reply.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
    reply
}

/// A sample at every full minute of the query.
fn minutes(query: &Query) -> Reply {
    let first = query.start_timestamp_ms.div_euclid(60_000) + 1;
    let last = query.end_timestamp_ms.div_euclid(60_000);
    let samples =
        (first..=last).map(|minute| proto::Sample { value: minute as f64, timestamp: minute * 60_000 });
    let labels = vec![label("__name__", "up"), label("job", "node")];
    let series = proto::TimeSeries { labels, samples: samples.collect(), ..Default::default() };
    let response = ReadResponse { results: vec![QueryResult { timeseries: vec![series] }] };
    reply("application/x-protobuf", snappy::compress(&response.encode_to_vec()))
}

const DAY_MS: i64 = 86_400_000;

#[tokio::test]
async fn asks_as_prometheus_itself_asks() {
    for (name, selector) in [
        ("netdev-rx", r#"node_network_receive_bytes_total{job="node"}"#),
        (
            "go-heap-gap",
            r#"{__name__=~"go_memstats_heap_alloc_bytes|up|prometheus_remote_storage_shards|process_cpu_seconds_total",job!="netdev-fast"}"#,
        ),
    ] {
        let request = decompressed(&capture(&format!("{name}.samples.request.snappy")));
        let request = ReadRequest::decode(&*request).expect("a ReadRequest");
        let (start_ms, end_ms) = (request.queries[0].start_timestamp_ms, request.queries[0].end_timestamp_ms);
        let answer = capture(&format!("{name}.samples.response.bin"));
        let fake = Fake::start(move |_| reply("application/x-protobuf", answer.clone())).await;
        let selector = Selector::parse(selector).expect("a selector");
        let mut series = Vec::new();
        read(&Client::default(), &fake.config, &selector, &[], (start_ms - 1, end_ms), |slice| {
            series.extend(slice);
        })
        .await
        .expect("it answers");
        assert_eq!(*fake.seen.lock().expect("no panic"), [request]);
        compare(&series, &format!("{name}.expected.csv"));
    }
}

#[tokio::test]
async fn reads_day_by_day_every_moment_once() {
    let fake = Fake::start(minutes).await;
    let (slices, result) = fake.read((1000, 1000 + 5 * DAY_MS / 2)).await;
    result.expect("it answers");
    let ends = [1000, 1000 + DAY_MS, 1000 + 2 * DAY_MS, 1000 + 5 * DAY_MS / 2];
    let expected: Vec<(i64, i64)> = ends.windows(2).map(|pair| (pair[0] + 1, pair[1])).collect();
    assert_eq!(fake.ranges(), expected);
    let times: Vec<i64> =
        slices.iter().flatten().flat_map(|(_, samples)| samples).map(|sample| sample.timestamp_ms).collect();
    assert_eq!(times, (1..=3600).map(|minute| minute * 60_000).collect::<Vec<i64>>());
    let matchers = fake.seen.lock().expect("no panic")[0].queries[0].matchers.clone();
    let names: Vec<(&str, &str)> = matchers.iter().map(|m| (&*m.name, &*m.value)).collect();
    assert_eq!(names, [("__name__", "up"), ("job", "node")]);
}

#[tokio::test]
async fn an_empty_range_is_not_asked_for() {
    let fake = Fake::start(minutes).await;
    let (slices, result) = fake.read((1000, 1000)).await;
    result.expect("nothing to do");
    assert!(slices.is_empty() && fake.ranges().is_empty());
}

#[tokio::test]
async fn halves_a_slice_that_is_above_the_other_sides_limit() {
    let longest_ms = DAY_MS / 4;
    let fake = Fake::start(move |query| {
        if query.end_timestamp_ms - query.start_timestamp_ms >= longest_ms {
            refuse(400, "exceeded sample limit (50000000)\n")
        } else {
            minutes(query)
        }
    })
    .await;
    let (slices, result) = fake.read((0, DAY_MS)).await;
    result.expect("a shorter slice succeeds");
    let lengths: Vec<i64> = fake.ranges().iter().map(|(start, end)| end - start + 1).collect();
    let quarter = DAY_MS / 4;
    assert_eq!(lengths, [DAY_MS, DAY_MS / 2, quarter, quarter, quarter, quarter]);
    let n_samples: usize = slices.iter().flatten().map(|(_, samples)| samples.len()).sum();
    assert_eq!(n_samples, 1440, "every minute once");
}

#[tokio::test]
async fn gives_up_halving_at_a_minute() {
    let fake = Fake::start(|_| refuse(400, "exceeded sample limit (5)")).await;
    let (slices, result) = fake.read((0, DAY_MS)).await;
    let error = result.expect_err("never short enough");
    let expected =
        format!("remote read: {} answered 400 Bad Request: exceeded sample limit (5)", fake.config.url);
    assert_eq!(error.to_string(), expected);
    assert!(slices.is_empty());
    let shortest = fake.ranges().iter().map(|(start, end)| end - start + 1).min().expect("asked");
    assert!((30_000..=60_000).contains(&shortest), "{shortest} ms");
}

#[tokio::test]
async fn halves_a_slice_that_is_above_the_own_limit() {
    // What the header of a body of four bytes declares is above the limit.
    let fake = Fake::start(move |query| {
        if query.end_timestamp_ms - query.start_timestamp_ms >= DAY_MS / 2 {
            reply("application/x-protobuf", &b"\xff\xff\xff\xff\x0f\x00"[..])
        } else {
            minutes(query)
        }
    })
    .await;
    let (_, result) = fake.read((0, DAY_MS)).await;
    result.expect("a shorter slice succeeds");
    assert_eq!(fake.ranges().len(), 3);
}

#[tokio::test]
async fn any_other_failure_ends_the_reading_at_once() {
    type Script = fn(&Query) -> Reply;
    let cases: [(Script, &str); 6] = [
        (
            |_| refuse(500, "error parsing regexp\nand more"),
            "remote read: URL answered 500 Internal Server Error: error parsing regexp",
        ),
        (
            |_| refuse(400, "unknown matcher type"),
            "remote read: URL answered 400 Bad Request: unknown matcher type",
        ),
        (
            |_| reply("application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse", ""),
            "remote read: URL answered with content type \
             \"application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse\", not application/x-protobuf",
        ),
        (
            |_| reply("text/html", "<html>"),
            "remote read: URL answered with content type \"text/html\", not application/x-protobuf",
        ),
        (
            |_| reply("application/x-protobuf", "not snappy"),
            "remote read: the answer cannot be decompressed: the body is not in snappy's block format",
        ),
        (|_| reply("application/x-protobuf", snappy::compress(b"")), "remote read: 0 results for one query"),
    ];
    for (script, expected) in cases {
        let fake = Fake::start(script).await;
        let (slices, result) = fake.read((0, 10 * DAY_MS)).await;
        let text = crate::yaml::chain(&result.expect_err(expected));
        let text = text.replace(&fake.config.url.to_string(), "URL");
        assert!(text.starts_with(expected), "{text}");
        assert!(!text.contains('\n'), "{text}");
        assert!(slices.is_empty());
        assert_eq!(fake.ranges().len(), 1, "{expected}");
    }
}

#[tokio::test]
async fn what_came_before_a_failure_stays() {
    let fake =
        Fake::start(|query| if query.start_timestamp_ms > DAY_MS { refuse(500, "") } else { minutes(query) })
            .await;
    let (slices, result) = fake.read((0, 3 * DAY_MS)).await;
    assert!(matches!(result, Err(Error::Refused { .. })));
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0][0].1.len(), 1440);
}

#[tokio::test]
async fn nobody_there() {
    let listener = TcpListener::bind("127.0.0.10:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let url = format!("http://{address}/api/v1/read").parse().expect("a URL");
    let selector = Selector::parse("up").expect("a selector");
    let config = Config { url, ..Config::default() };
    let result = read(&Client::default(), &config, &selector, &[], (0, DAY_MS), |_| ()).await;
    let text = crate::yaml::chain(&result.expect_err("nobody answers"));
    assert!(text.contains(&address.to_string()) && text.contains("refused"), "{text}");
}
