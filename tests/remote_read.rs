//! The remote read server with bad requests, clients that do not read, and real Prometheus servers, old and current. Their
//! PromQL finds the window and the scores, also scores that could not be written.

mod support;

use promforest::prom::proto::{
    Label, LabelMatcher, Query, ReadRequest, ReadResponse, Sample, TimeSeries, WriteRequest,
};
use promforest::prom::wire::snappy;
use prost::Message;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, NODE_NETWORK, RemoteWriteReceiver, SHORT_TIMEOUT, Stack, StackApi,
};
use support::{Process, each_version, free_port, http, now_ms, wait};

/// Long enough for every step on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;

const CONFIG: &str = r#"
remote_write: []
remote_read: []
detectors:
  - {name: net, match: ['{job="node"}'], by: [instance], transform: value}
"#;

/// The program with a window that only the test fills.
struct Program {
    process: Process,
    address: String,
    _folder: tempfile::TempDir,
}

/// An answer.
struct Response {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Response {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim_end().to_string()
    }
}

impl Program {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("promforest.yml"), CONFIG).expect("writable");
        let address = format!("127.0.0.1:{}", free_port());
        let args = ["--config.file=promforest.yml".into(), format!("--web.listen-address={address}")];
        let program = Path::new(env!("CARGO_BIN_EXE_promforest"));
        let mut process = Process::start("promforest", program, &args, folder.path());
        let poll = || http::get(&address, "/-/healthy").map_err(|err| err.to_string());
        wait("promforest is healthy", TIMEOUT, &mut [&mut process], poll);
        Self { process, address, _folder: folder }
    }

    /// Writes so many series of so many samples up to now, with values that nothing can compress.
    fn fill(&self, n_series: usize, n_samples: usize) {
        const AT_ONCE: usize = 20;
        let first_ms = now_ms() - n_samples as i64 * 1000;
        let mut state = 1_u64;
        for from in (0..n_samples).step_by(AT_ONCE) {
            let label = |name: &str, value: &str| Label { name: name.into(), value: value.into() };
            let mut sample = |i: usize| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                Sample { value: f64::from_bits(state ^ state >> 29), timestamp: first_ms + i as i64 * 1000 }
            };
            let mut series = |i: usize| TimeSeries {
                labels: vec![
                    label("__name__", &format!("m{i:04}")),
                    label("instance", "a"),
                    label("job", "node"),
                ],
                samples: (from..n_samples.min(from + AT_ONCE)).map(&mut sample).collect(),
                ..TimeSeries::default()
            };
            let timeseries = (0..n_series).map(&mut series).collect();
            let request = WriteRequest { timeseries, metadata: Vec::new() };
            let answer = post(&self.address, "write", &snappy::compress(&request.encode_to_vec()));
            assert_eq!(answer.status, 204, "{}", answer.text());
        }
    }

    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = http::get(&self.address, "/metrics").expect("a page").body;
        http::metric(&page, name, labels).unwrap_or(0.0)
    }

    /// Waits until a metric has a value.
    fn wait_for_metric(&mut self, name: &str, value: f64) {
        let address = self.address.clone();
        wait(&format!("{name} is {value}"), TIMEOUT, &mut [&mut self.process], || {
            let page = http::get(&address, "/metrics").map_err(|err| err.to_string())?.body;
            match http::metric(&page, name, &[]) {
                Some(now) if now == value => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    /// Memory that is resident now, in bytes.
    fn resident_bytes(&self) -> usize {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("the program runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    }
}

/// Posts a body and returns the connection before the response is read. HTTP/1.0 has no chunked responses.
fn begin_request(address: &str, path: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the program listens");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    let length = body.len();
    let head = format!("POST /api/v1/{path} HTTP/1.0\r\nHost: test\r\nContent-Length: {length}\r\n\r\n");
    // The server may close the connection before it has read the body.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    stream
}

/// Reads the beginning of an answer.
fn status_line(stream: &mut TcpStream) -> [u8; 12] {
    let mut line = [0; 12];
    stream.read_exact(&mut line).expect("an answer");
    line
}

fn post(address: &str, path: &str, body: &[u8]) -> Response {
    let mut bytes = Vec::new();
    begin_request(address, path, body).read_to_end(&mut bytes).expect("an answer");
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    Response { status, head, body: bytes.split_off(end + 4) }
}

fn matcher(kind: i32, name: &str, value: &str) -> LabelMatcher {
    LabelMatcher { r#type: kind, name: name.into(), value: value.into() }
}

/// The range of all timestamps.
fn query(matchers: Vec<LabelMatcher>) -> Query {
    Query { start_timestamp_ms: 0, end_timestamp_ms: i64::MAX, matchers }
}

fn request(queries: Vec<Query>, accepted_response_types: Vec<i32>) -> Vec<u8> {
    snappy::compress(&ReadRequest { queries, accepted_response_types }.encode_to_vec())
}

fn everything() -> Query {
    query(vec![matcher(0, "instance", "a")])
}

/// The samples of an answer of type SAMPLES, by series.
fn samples(answer: &Response) -> Vec<BTreeMap<String, Vec<(i64, f64)>>> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.head.contains("content-type: application/x-protobuf\r\n"), "{}", answer.head);
    assert!(answer.head.contains("content-encoding: snappy"), "{}", answer.head);
    let mut buffer = Vec::new();
    let message = snappy::decompress(&answer.body, 1 << 30, &mut buffer).expect("snappy");
    let name = |labels: &[Label]| {
        let pairs = labels.iter().map(|label| format!("{}={:?}", label.name, label.value));
        pairs.collect::<Vec<_>>().join(",")
    };
    let results = ReadResponse::decode(message).expect("a ReadResponse").results;
    let series = |series: &TimeSeries| {
        let samples = series.samples.iter().map(|sample| (sample.timestamp, sample.value)).collect();
        (name(&series.labels), samples)
    };
    results.iter().map(|result| result.timeseries.iter().map(series).collect()).collect()
}

#[test]
fn b68_b69_b70_b71_b72_b73_b74_b75_bad_requests() {
    let program = Program::start();
    program.fill(3, 5);
    let assert_refused = |what: &str, body: &[u8], status: u16, text: &str| {
        let code = status.to_string();
        let count = || program.metric("promforest_remote_read_server_requests_total", &[("code", &code)]);
        let before = count();
        let answer = post(&program.address, "read", body);
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        assert!(answer.text().starts_with(text) && answer.text().len() < 400, "{what}: {}", answer.text());
        assert_eq!(count() - before, 1.0, "{what}");
    };
    assert_refused("B68", b"garbage", 400, "the ");
    assert_refused(
        "B68",
        &snappy::compress(b"\x0a\xff"),
        400,
        "the body is no ReadRequest: the message ends inside",
    );
    assert_refused(
        "B69",
        &[0xff, 0xff, 0xff, 0xff, 0x0f, 0x00],
        400,
        "the snappy header declares 4294967295 bytes",
    );
    assert_refused("B69", &vec![0; 5 * MIB], 413, "the body is larger than the limit of 4194304 bytes");
    let types = request(vec![everything()], vec![7]);
    assert_refused("B70", &types, 400, "none of the accepted response types [7] is known");
    for pattern in ["(", "a)(b", &"x".repeat(1_000_000), "(a{1000}){1000}", r"(?=x)", "a{2000}{2000}"] {
        for kind in [2, 3] {
            let body = request(vec![query(vec![matcher(kind, "instance", pattern)])], vec![]);
            assert_refused("B71", &body, 400, "query 1: selector ");
        }
    }
    let unknown = request(vec![query(vec![matcher(9, "instance", "a")])], vec![]);
    assert_refused(
        "B72",
        &unknown,
        400,
        r#"query 1: selector "{instance?\"a\"}": there is no matcher of type 9"#,
    );
    let all = "at least one matcher must not match the empty value";
    for matchers in [vec![], vec![matcher(2, "instance", ".*")], vec![matcher(1, "instance", "b")]] {
        let answer = post(&program.address, "read", &request(vec![query(matchers)], vec![]));
        assert_eq!(answer.status, 400, "B73");
        assert!(answer.text().ends_with(all), "B73: {}", answer.text());
    }
    let many = request(vec![everything(); 10_000], vec![]);
    assert_refused("B75", &many, 400, "the query exceeds the limit of 16 queries");
    let answer = http::get(&program.address, "/api/v1/read").expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (405, "allowed here: POST\n"));

    // And what is good beside them.
    let known = post(&program.address, "read", &request(vec![everything()], vec![7, 0]));
    assert_eq!(samples(&known)[0].len(), 3, "B70");
    let backwards = Query { start_timestamp_ms: 2, end_timestamp_ms: 1, ..everything() };
    let answer = post(&program.address, "read", &request(vec![backwards, everything()], vec![]));
    let results = samples(&answer);
    assert_eq!((results[0].len(), results[1].len()), (0, 3), "B74");
    let chunks = post(&program.address, "read", &request(vec![everything()], vec![1, 0]));
    let kind = "content-type: application/x-streamed-protobuf; proto=prometheus.chunkedreadresponse";
    assert!(chunks.head.contains(kind) && !chunks.head.contains("content-encoding"), "{}", chunks.head);
    assert_eq!(program.metric("promforest_remote_read_server_samples_total", &[]), 3.0 * 15.0);
}

#[test]
fn b76_b77_clients_that_do_not_read_take_no_memory_and_no_slot_for_ever() {
    let mut program = Program::start();
    // More than the sockets of both sides hold.
    program.fill(1000, 1400);
    let before = program.resident_bytes();
    let body = request(vec![everything()], vec![]);
    let mut stalled: Vec<TcpStream> =
        (0..10).map(|_| begin_request(&program.address, "read", &body)).collect();
    // Their answers begin, and nothing more is read of them.
    let begun = stalled.iter_mut().map(status_line).filter(|line| line == b"HTTP/1.0 200").count();
    assert_eq!(begun, 10);
    program.wait_for_metric("promforest_remote_read_server_requests_in_flight", 10.0);
    // The eleventh request waits for a permit, and receives 503.
    let mut eleventh = begin_request(&program.address, "read", &body);
    let status = status_line(&mut eleventh);
    assert!([b"HTTP/1.0 503", b"HTTP/1.0 200"].contains(&&status), "{status:?}");
    let grown = program.resident_bytes().saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB for answers of {} MiB", grown / MIB, 10 * 1000 * 1400 * 18 / MIB);
    // A request ends with its connection.
    drop((stalled, eleventh));
    program.wait_for_metric("promforest_remote_read_server_requests_in_flight", 0.0);
    assert!(program.metric("promforest_remote_read_server_responses_truncated_total", &[]) >= 10.0);
    let answer = post(&program.address, "read", &body);
    let series = samples(&answer).remove(0);
    assert_eq!((series.len(), series.values().map(Vec::len).sum::<usize>()), (1000, 1_400_000));
}

/// Clients that send a head and no body take no permit.
#[test]
fn heads_without_bodies_block_no_reader() {
    let mut program = Program::start();
    program.fill(1, 10);
    let stalled: Vec<TcpStream> = (0..30)
        .map(|_| {
            let mut stream = TcpStream::connect(&program.address).expect("the program listens");
            stream
                .write_all(b"POST /api/v1/read HTTP/1.0\r\nHost: test\r\nContent-Length: 100\r\n\r\n")
                .expect("the client reads the response");
            stream
        })
        .collect();
    program.wait_for_metric("promforest_http_connections", 31.0);
    let answer = post(&program.address, "read", &request(vec![everything()], vec![]));
    assert_eq!(samples(&answer)[0].len(), 1);
    drop(stalled);
}

/// Patterns that take seconds to match the labels of a group delay no sample.
#[test]
fn samples_do_not_wait_for_patterns() {
    const SERIES: usize = 1000;
    let program = Program::start();
    let write = |label: &dyn Fn(usize) -> String, n_series: usize| {
        let series = |i: usize| TimeSeries {
            labels: [
                ("__name__", format!("m{i:04}")),
                ("device", label(i)),
                ("instance", "a".into()),
                ("job", "node".into()),
            ]
            .map(|(name, value)| Label { name: name.into(), value })
            .to_vec(),
            samples: vec![Sample { value: 1.0, timestamp: now_ms() }],
            ..TimeSeries::default()
        };
        let request = WriteRequest { timeseries: (0..n_series).map(series).collect(), metadata: Vec::new() };
        post(&program.address, "write", &snappy::compress(&request.encode_to_vec())).status
    };
    assert_eq!(write(&|i| format!("{}{i}", "ab".repeat(2000)), SERIES), 204);
    // Every one holds, so that none spares the next ones.
    let heavy = (0..31).map(|i| matcher(2, "device", &format!("(a|b|{i})*[ab][a-z]{{{}}}.*", 200 + i)));
    let body = request(vec![query(heavy.chain([matcher(0, "instance", "a")]).collect())], vec![]);
    let began = Instant::now();
    let answered = AtomicBool::new(false);
    let (answer, took, written) = thread::scope(|scope| {
        let read = scope.spawn(|| {
            let answer = post(&program.address, "read", &body);
            answered.store(true, Ordering::Relaxed);
            (answer, began.elapsed())
        });
        let mut written = Vec::new();
        while !answered.load(Ordering::Relaxed) {
            let at = began.elapsed();
            assert_eq!(write(&|_| "c".into(), 1), 204);
            written.push(at..began.elapsed());
        }
        let (answer, took) = read.join().expect("no panic");
        (answer, took, written)
    });
    assert_eq!(samples(&answer)[0].len(), SERIES);
    // Most of that time the labels are looked through.
    let is_amid = |write: &&Range<Duration>| write.start > took / 3 && write.end < took * 2 / 3;
    let amid = written.iter().filter(is_amid).count();
    assert!(amid >= 5, "{amid} of {} writes in the middle of {took:?}", written.len());
}

/// The samples of a metric in a range, by remote read of promforest.
fn promforest_samples(
    at: &StackApi,
    name: &str,
    start_ms: i64,
    end_ms: i64,
) -> BTreeMap<String, Vec<(i64, f64)>> {
    let matchers = vec![matcher(0, "__name__", name), matcher(0, "job", "node")];
    let query = Query { start_timestamp_ms: start_ms, end_timestamp_ms: end_ms, matchers };
    samples(&post(&at.promforest, "read", &request(vec![query], vec![]))).remove(0)
}

#[test]
fn prometheus_reads_scores_that_were_never_written() {
    each_version(|version| {
        let mut stack = Stack::new(version, Collectors::Network, &JOB_NODE);
        stack.add_remote_read(", filter_external_labels: false");
        // Prometheus accepts no scores, and none are sent.
        stack.start_prometheus(RemoteWriteReceiver::Disabled);
        let config = stack.configure(NODE_NETWORK);
        let write = config.lines().find(|line| line.starts_with("remote_write")).expect("a section");
        let config = config.replace(write, "remote_write: []");
        fs::write(stack.config_file(), config).expect("the folder is writable");
        stack.start_promforest();
        stack.wait("scores by remote read", MODEL_TIMEOUT + SHORT_TIMEOUT, |at| {
            match at.scores()?.samples.len() {
                n if n >= 10 => Ok(()),
                n => Err(format!("{n} scores")),
            }
        });
        for name in ["anomaly_score", "node_network_anomaly"] {
            let seen = stack.api.stored(name).unwrap_or_else(|err| panic!("{version}: {err}"));
            let (first_ms, last_ms) = (seen.samples[0].0, seen.samples[seen.samples.len() - 1].0);
            let read_samples = promforest_samples(&stack.api, name, first_ms, last_ms);
            assert_eq!(read_samples.into_values().collect::<Vec<_>>(), [seen.samples], "{version}: {name}");
        }
        let labels = &stack.api.scores().expect("the series is stored").labels;
        assert_eq!(labels["detector"], "node_network", "{version}: {labels:?}");
        // A function of PromQL, over time.
        let worst = stack.api.prometheus.query(r#"max_over_time(anomaly_score{job="node"}[10m]) >= 0"#);
        assert_eq!(worst.map(|series| series.len()), Ok(1), "{version}");
        assert!(stack.metric("promforest_remote_read_server_samples_total", &[]) > 0.0, "{version}");
    });
}

#[test]
fn promforest_serves_the_samples_that_prometheus_stores() {
    each_version(|version| {
        let mut stack = Stack::with_scores(version);
        let at = stack.api.clone();
        let until_ms = now_ms() + 5_000;
        stack.wait_for_score_at(until_ms);
        let stored = stack.api.scores().expect("scores");
        let (first_ms, last_ms) = (stored.samples[0].0, stored.samples[stored.samples.len() - 1].0);
        let check_same = |name: &str, stored: Vec<(i64, f64)>| {
            let read_samples = promforest_samples(&at, name, first_ms, last_ms);
            assert_eq!(read_samples.into_values().collect::<Vec<_>>(), [stored], "{version}: {name}");
        };
        let clip = |selector: &str| {
            let series = at.stored(selector).unwrap_or_else(|err| panic!("{version}: {err}"));
            let samples = series.samples.into_iter();
            samples.filter(|(timestamp_ms, _)| (first_ms..=last_ms).contains(timestamp_ms)).collect()
        };
        check_same("anomaly_score", stored.samples.clone());
        check_same("node_network_anomaly", clip("node_network_anomaly"));
        for name in ["node_network_receive_bytes_total", "node_network_transmit_packets_total"] {
            check_same(name, clip(&format!(r#"{name}{{device="lo"}}"#)));
        }
        // Both at once: nothing is there twice.
        stack.stop_prometheus();
        stack.add_remote_read(", required_matchers: {detector: node_network}");
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.wait("an answer of promforest's", SHORT_TIMEOUT, |at| {
            at.scores()?;
            let answered = at.metric("promforest_remote_read_server_requests_total", &[("code", "200")])?;
            let own_requests = 4.0;
            if answered > own_requests { Ok(()) } else { Err(format!("{answered} answers")) }
        });
        let both: Vec<(i64, f64)> = clip(r#"anomaly_score{detector="node_network"}"#);
        assert_eq!(both, stored.samples, "{version}");
    });
}
