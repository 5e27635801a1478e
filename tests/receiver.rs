//! The receiver as a sender meets it: the real program, and real bytes over TCP, good and bad.
//!
//! A request that is refused as a whole must leave nothing behind; one that is refused in part must
//! leave its good part. Both show on `/metrics`: a sample that is sent again is a duplicate if it
//! was stored before, and not one otherwise.

use promforest::prom::proto::histogram::Count;
use promforest::prom::proto::{self, BucketSpan, Histogram, v2};
use promforest::prom::wire::snappy;
use prost::Message;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Long enough for anything that happens at all, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;
const LIMIT: usize = 32 * MIB;
/// `Content-Type` of version 2.0.
const V2: &str = "application/x-protobuf;proto=io.prometheus.write.v2.Request";

const CONFIG: &str = r#"
remote_write: []
remote_read: []
detectors:
  - name: net
    match: ['{job="node"}', '{__name__=~"promforest_.*|net_anomaly|anomaly_score"}']
    by: [instance]
    transform: value
"#;

// The program

struct Program {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    _folder: tempfile::TempDir,
}

impl Program {
    fn start() -> Self {
        Self::with_config(CONFIG)
    }

    fn with_config(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("promforest.yml");
        fs::write(&file, config).expect("writable");
        let mut child = Command::new(env!("CARGO_BIN_EXE_promforest"))
            .arg("--config.file")
            .arg(&file)
            .args(["--web.listen-address", "127.0.0.1:0", "--storage.path"])
            .arg(folder.path().join("data"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let address = loop {
            let line = lines.next().expect("the program listens").expect("UTF-8");
            if let Some((_, after)) = line.split_once("address=") {
                break after.split(' ').next().expect("an address").parse().expect("an address");
            }
        };
        let shared_log = log.clone();
        thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| shared_log.lock().expect("no panic").push(line));
        });
        Self { child, address, log, _folder: folder }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        stream.set_nodelay(true).expect("a socket");
        stream
    }

    /// One request on a connection of its own. A server that has heard enough may close before it
    /// has read everything.
    fn request(&self, head: &str, body: &[u8]) -> Response {
        let mut stream = self.connect();
        let _ = stream.write_all(format!("{head}\r\nHost: test\r\n\r\n").as_bytes());
        let _ = stream.write_all(body);
        Response::read(&mut stream)
    }

    fn get(&self, path: &str) -> Response {
        self.request(&format!("GET {path} HTTP/1.1"), b"")
    }

    fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.request(&post_head(headers, body.len()), body)
    }

    /// A protobuf message, compressed, with the headers that Prometheus sends.
    fn write(&self, message: &[u8]) -> Response {
        self.post(
            &[
                ("Content-Type", "application/x-protobuf"),
                ("Content-Encoding", "snappy"),
                ("X-Prometheus-Remote-Write-Version", "0.1.0"),
            ],
            &snappy::compress(message),
        )
    }

    /// The same for version 2.0.
    fn write_v2(&self, message: &[u8]) -> Response {
        self.post(&[("Content-Type", V2), ("Content-Encoding", "snappy")], &snappy::compress(message))
    }

    fn counts(&self) -> IngestCounters {
        let page = self.get("/metrics").body;
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.strip_prefix("promforest_ingest_")?.to_string(), value.parse().expect("a number")))
        });
        IngestCounters(pairs.collect())
    }

    /// The most memory that was ever resident, in bytes.
    fn peak_memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux");
        let kib: usize = peak.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1024
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().expect("kill").success());
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !thread::panicking() {
            let log = self.log.lock().expect("no panic");
            assert!(!log.iter().any(|line| line.contains("panicked")), "{log:#?}");
        }
    }
}

fn post_head(headers: &[(&str, &str)], length: usize) -> String {
    let lines: String = headers.iter().map(|(name, value)| format!("\r\n{name}: {value}")).collect();
    format!("POST /api/v1/write HTTP/1.1\r\nContent-Length: {length}{lines}")
}

#[derive(Debug)]
struct Response {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Response {
    fn read(stream: &mut TcpStream) -> Self {
        Self::read_for_method(stream, "GET")
    }

    fn read_for_method(stream: &mut TcpStream, method: &str) -> Self {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap_or_else(|error| {
                panic!("no answer, only {:?}: {error}", String::from_utf8_lossy(&head))
            });
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("ASCII");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_string()))
            .collect();
        let length = headers.get("content-length").map_or(0, |length| length.parse().expect("a length"));
        let mut body = vec![0; if method == "HEAD" { 0 } else { length }];
        stream.read_exact(&mut body).expect("the whole body");
        Self { status, headers, body: String::from_utf8(body).expect("UTF-8") }
    }

    /// The text of an answer: one line.
    #[track_caller]
    fn only_line(&self) -> &str {
        let line = self.body.strip_suffix('\n').expect("a line");
        assert!(!line.contains('\n') && !line.is_empty(), "{:?}", self.body);
        line
    }
}

/// `promforest_ingest_*`, without the prefix.
struct IngestCounters(BTreeMap<String, f64>);

impl IngestCounters {
    fn value(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    fn received(&self) -> f64 {
        self.value("samples_total")
    }

    fn dropped(&self, reason: &str) -> f64 {
        self.value(&format!("samples_dropped_total{{reason=\"{reason}\"}}"))
    }

    /// Received and not dropped.
    fn stored(&self) -> f64 {
        let dropped: f64 = self
            .0
            .iter()
            .filter(|(name, _)| name.starts_with("samples_dropped_total"))
            .map(|(_, count)| count)
            .sum();
        self.received() - dropped
    }

    fn responses(&self, status: u16) -> f64 {
        let start = format!("requests_total{{code=\"{status}\",");
        self.0.iter().filter(|(name, _)| name.starts_with(&start)).map(|(_, count)| count).sum()
    }

    fn responses_for(&self, status: u16, reason: &str, version: &str) -> f64 {
        self.value(&format!("requests_total{{code=\"{status}\",reason=\"{reason}\",version=\"{version}\"}}"))
    }

    fn rejected(&self, reason: &str) -> f64 {
        self.value(&format!("rejected_total{{reason=\"{reason}\"}}"))
    }

    fn ignored(&self, kind: &str) -> f64 {
        self.value(&format!("ignored_total{{kind=\"{kind}\"}}"))
    }
}

// Protobuf by hand, so that it can be wrong

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn key(number: u64, wire_type: u64) -> Vec<u8> {
    varint(number << 3 | wire_type)
}

fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [key(number, 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn label(name: &[u8], value: &[u8]) -> Vec<u8> {
    field(1, &[field(1, name), field(2, value)].concat())
}

fn labels(pairs: &[(&str, &str)]) -> Vec<u8> {
    pairs.iter().flat_map(|(name, value)| label(name.as_bytes(), value.as_bytes())).collect()
}

fn sample(value: f64, timestamp_ms: i64) -> Vec<u8> {
    let value = [key(1, 1), value.to_bits().to_le_bytes().to_vec()].concat();
    field(2, &[value, key(2, 0), varint(timestamp_ms as u64)].concat())
}

/// A `TimeSeries` of ready fields.
fn raw_series(fields: &[Vec<u8>]) -> Vec<u8> {
    field(1, &fields.concat())
}

/// A series that the detector watches.
fn series(name: &str, samples: &[(i64, f64)]) -> Vec<u8> {
    let samples = samples.iter().map(|(timestamp_ms, value)| sample(*value, *timestamp_ms));
    raw_series(&[watched(name), samples.collect::<Vec<_>>().concat()])
}

fn watched(name: &str) -> Vec<u8> {
    labels(&[("__name__", name), ("instance", "a"), ("job", "node")])
}

/// `good 1` at a time of its own, so that no two cases meet.
struct ValidSeries {
    timestamp_ms: i64,
}

impl ValidSeries {
    fn new(number: usize) -> Self {
        Self { timestamp_ms: now_ms() - 1000 * number as i64 }
    }

    fn series(&self) -> Vec<u8> {
        series("good", &[(self.timestamp_ms, 1.0)])
    }

    /// Sends it alone, and tells whether it was there already.
    fn is_duplicate(&self, program: &Program) -> bool {
        let before = program.counts();
        assert_eq!(program.write(&self.series()).status, 204);
        let after = program.counts();
        assert_eq!(after.received() - before.received(), 1.0);
        after.dropped("duplicate") > before.dropped("duplicate")
    }
}

/// Posts what must be refused as a whole, whatever the headers.
#[track_caller]
fn assert_rejected(
    program: &Program,
    what: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    status: u16,
    text: &str,
) {
    let before = program.counts();
    let answer = program.post(headers, body);
    let after = program.counts();
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    assert_eq!(answer.only_line(), text, "{what}");
    assert_eq!(after.responses(status) - before.responses(status), 1.0, "{what}");
    assert_eq!(after.received(), before.received(), "{what}");
}

/// Writes a message that must be refused as a whole, with a good series before and after.
#[track_caller]
fn assert_malformed(program: &Program, number: usize, what: &str, message: &[u8], text: &str) {
    let good = ValidSeries::new(number);
    let body = snappy::compress(&[good.series(), message.to_vec(), good.series()].concat());
    assert_rejected(program, what, &[], &body, 400, &format!("the body is not a write request: {text}"));
    assert!(!good.is_duplicate(program), "{what}: nothing of the request is used");
}

/// Writes series of which `n_invalid` samples must be refused, and the good one used.
#[track_caller]
fn assert_partly_rejected(
    program: &Program,
    number: usize,
    what: &str,
    bad: &[u8],
    reason: &str,
    n: usize,
    text: &str,
) {
    let good = ValidSeries::new(number);
    let before = program.counts();
    let answer = program.write(&[bad, &good.series()].concat());
    let after = program.counts();
    assert_eq!(answer.status, 400, "{what}: {answer:?}");
    assert_eq!(answer.only_line(), partial_rejection_text(n, reason, text), "{what}");
    assert_eq!(after.rejected(reason) - before.rejected(reason), n as f64, "{what}");
    assert_eq!(after.responses(400) - before.responses(400), 1.0, "{what}");
    assert_eq!(after.dropped(reason) - before.dropped(reason), n as f64, "{what}");
    assert_eq!(after.received() - before.received(), n as f64 + 1.0, "{what}");
    assert_eq!(after.stored() - before.stored(), 1.0, "{what}");
    assert!(good.is_duplicate(program), "{what}: the good series is used");
}

fn partial_rejection_text(n: usize, reason: &str, example: &str) -> String {
    format!("the valid part was accepted, rejected: {n} {reason}; for example: {example}")
}

/// Writes a message that must be accepted; returns by how much the counters went up: used,
/// duplicate, conflict.
#[track_caller]
fn write_accepted(program: &Program, what: &str, message: &[u8]) -> (f64, f64, f64) {
    let before = program.counts();
    let answer = program.write(message);
    let after = program.counts();
    assert_eq!(answer.status, 204, "{what}: {answer:?}");
    assert_eq!(answer.body, "", "{what}");
    assert!(!answer.headers.keys().any(|name| name.contains("written")), "{what}: {answer:?}");
    assert_eq!(after.responses(204) - before.responses(204), 1.0, "{what}");
    (
        after.stored() - before.stored(),
        after.dropped("duplicate") - before.dropped("duplicate"),
        after.dropped("conflict") - before.dropped("conflict"),
    )
}

// The head of a request

#[test]
fn b1_other_methods() {
    let program = Program::start();
    for method in ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"] {
        let mut stream = program.connect();
        stream
            .write_all(format!("{method} /api/v1/write HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
            .expect("sent");
        let answer = Response::read_for_method(&mut stream, method);
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.headers["allow"], "POST", "{method}");
        if method != "HEAD" {
            assert_eq!(answer.only_line(), "allowed here: POST");
        }
    }
    assert_eq!(program.counts().responses(405), 6.0);
}

#[test]
fn b2_b3_b6_other_types_and_encodings() {
    let program = Program::start();
    let valid = snappy::compress(&ValidSeries::new(1).series());
    // The headers are looked at before the body: a corrupt one makes no difference.
    for body in [&valid[..], b"corrupt"] {
        for (number, value) in [
            ("B2", "application/json"),
            ("B2", "image/png"),
            ("B3", "yolo"),
            ("B3", "application/x-protobuf;proto=yolo"),
            ("B3", "application/x-protobuf;proto"),
        ] {
            let text = format!(
                "content type {value:?} is not supported: send application/x-protobuf;proto=prometheus.WriteRequest or application/x-protobuf;proto=io.prometheus.write.v2.Request"
            );
            assert_rejected(&program, number, &[("Content-Type", value)], body, 415, &text);
        }
        for value in ["gzip", "deflate", "zstd", "identity", "snappy, gzip"] {
            let text =
                format!("content encoding {value:?} is not supported: send snappy, in its block format");
            assert_rejected(&program, "B6", &[("Content-Encoding", value)], body, 415, &text);
        }
    }
}

#[test]
fn b4_b5_b7_headers_that_do_not_matter() {
    let program = Program::start();
    let many: &[&[(&str, &str)]] = &[
        &[],
        &[("Content-Type", ""), ("Content-Encoding", "")],
        &[("Content-Type", "application/x-protobuf")],
        &[("Content-Type", "application/x-protobuf;proto=prometheus.WriteRequest")],
        &[("Content-Type", "Application/X-Protobuf ; Proto = \"prometheus.WriteRequest\"")],
        &[("Content-Encoding", "SNAPPY")],
        &[("X-Prometheus-Remote-Write-Version", "9.9.9")],
        &[("X-Prometheus-Remote-Write-Version", "2.0.0"), ("Content-Type", "application/x-protobuf")],
        &[("User-Agent", "somebody/1"), ("Retry-Attempt", "17"), ("X-Other", "\u{e9}")],
    ];
    for (i, headers) in many.iter().enumerate() {
        let good = ValidSeries::new(i + 1);
        let answer = program.post(headers, &snappy::compress(&good.series()));
        assert_eq!((answer.status, &*answer.body), (204, ""), "{headers:?}");
        assert!(good.is_duplicate(&program), "{headers:?}");
    }
}

// Snappy

#[test]
fn b8_b9_b10_b11_b12_b15_b16_bodies_that_are_not_snappy() {
    let program = Program::start();
    let valid = snappy::compress(&ValidSeries::new(1).series());
    let overwritten = |byte: u8| [&[byte], &valid[1..]].concat();
    // One literal of `ab`, and a header that says 1 and 3.
    let header = |declared: u8| vec![declared, 0x04, b'a', b'b'];
    let not_snappy = "the body is not in snappy's block format";
    for (what, body) in [
        ("B8: nothing", Vec::new()),
        ("B11: first byte", overwritten(b'0')),
        ("B11: first byte", overwritten(0x7f)),
        ("B15: the header says less", header(1)),
        ("B15: the header says more", header(3)),
        ("B16: a copy with offset 0", vec![0x08, 0x00, b'a', 0x0d, 0x00]),
        ("B16: a copy beyond the start", vec![0x08, 0x00, b'a', 0x0d, 0x09]),
        ("half of a body", valid[..valid.len() / 2].to_vec()),
    ] {
        assert_rejected(&program, what, &[], &body, 400, not_snappy);
    }
    // Read as a header, these say what cannot be.
    for (what, body, declared) in
        [("B10: text", &b"up 1\n"[..], 117), ("B12: frames", b"\xff\x06\x00\x00sNaPpY", 895)]
    {
        let length = body.len();
        let text = format!(
            "the snappy header declares {declared} bytes, more than a body of {length} bytes can hold"
        );
        assert_rejected(&program, what, &[], body, 400, &text);
    }
    let answer = program.post(&[], &overwritten(0xff));
    assert_eq!(answer.status, 400, "B11: first byte");
    assert!(answer.only_line().contains("snappy"), "{answer:?}");
    let answer = program.request("POST /api/v1/write HTTP/1.1", b"");
    assert_eq!((answer.status, answer.only_line()), (400, not_snappy), "B8: no length either");
    assert_eq!(program.post(&[], &[0]).status, 204, "B9: an empty request");
    assert_eq!(program.counts().received(), 0.0);
}

#[test]
fn b13_b14_bombs_are_refused_by_their_header() {
    let program = Program::start();
    assert_eq!(program.get("/metrics").status, 200);
    let before = program.peak_memory();
    for body in [&b"\xff\xff\xff\xff\x0f"[..], b"\xff\xff\xff\xff\x0f\x00\x00\x00\x00\x00"] {
        assert_rejected(
            &program,
            "B13",
            &[],
            body,
            400,
            "the snappy header declares 4294967295 bytes, above the limit of 33554432",
        );
    }
    assert_rejected(
        &program,
        "B13: within the limit, and impossible",
        &[],
        b"\x80\x80\x80\x10\x00",
        400,
        "the snappy header declares 33554432 bytes, more than a body of 5 bytes can hold",
    );
    let grown = program.peak_memory() - before;
    assert!(grown < 4 * MIB, "B13: {} KiB", grown / 1024);

    // An honest one: a literal, then copies of 64 bytes for 3 each.
    let bomb = [varint(64 * MIB as u64), vec![0, 0], [0xfe, 0x01, 0x00].repeat(MIB - 1)].concat();
    for _ in 0..3 {
        assert_rejected(
            &program,
            "B14",
            &[],
            &bomb,
            400,
            "the snappy header declares 67108864 bytes, above the limit of 33554432",
        );
    }
    let grown = program.peak_memory() - before;
    assert!(grown < 24 * MIB, "B14: {} KiB, for bodies of 3 MiB", grown / 1024);
}

// Size

#[test]
fn b17_bodies_above_the_limit() {
    let program = Program::start();
    let before = program.peak_memory();
    let text = "the body is larger than the limit of 33554432 bytes";
    // Announced: refused before the first byte is sent.
    let mut stream = program.connect();
    let head = format!("{}\r\nHost: test\r\n\r\n", post_head(&[], LIMIT + 1));
    stream.write_all(head.as_bytes()).expect("sent");
    let answer = Response::read(&mut stream);
    assert_eq!((answer.status, answer.only_line()), (413, text));
    let grown = program.peak_memory() - before;
    assert!(grown < 4 * MIB, "announced: {} KiB", grown / 1024);

    // Chunked: refused when the limit is passed, long before the end.
    let mut stream = program.connect();
    let head = "POST /api/v1/write HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("sent");
    let mut sender = stream.try_clone().expect("a socket");
    let sent = thread::spawn(move || {
        let chunk = [b"100000\r\n", &vec![0; MIB][..], b"\r\n"].concat();
        // 16 GiB, if nobody stops it.
        (0..16 << 10).find(|_| sender.write_all(&chunk).is_err())
    });
    let answer = Response::read(&mut stream);
    assert_eq!((answer.status, answer.only_line()), (413, text));
    drop(stream);
    let chunks = sent.join().expect("no panic").expect("it is stopped");
    assert!((32..200).contains(&chunks), "stopped after {chunks} MiB");
    assert_eq!(program.counts().responses(413), 2.0);
    let grown = program.peak_memory() - before;
    assert!(grown < 128 * MIB, "chunked: {} KiB", grown / 1024);

    // The limit itself is allowed.
    let mut stream = program.connect();
    let head = format!("{}\r\nHost: test\r\n\r\n", post_head(&[], LIMIT));
    stream.write_all(head.as_bytes()).expect("sent");
    stream.write_all(&vec![0xff; LIMIT]).expect("it is read");
    assert_eq!(Response::read(&mut stream).status, 400);
}

// Protobuf

#[test]
fn b18_messages_that_are_cut() {
    let program = Program::start();
    let good = ValidSeries::new(1);
    let message = good.series();
    for end in 1..message.len() {
        let answer = program.write(&message[..end]);
        let text = "the body is not a write request: the message ends inside a field";
        assert_eq!((answer.status, answer.only_line()), (400, text), "cut at {end}");
    }
    assert_eq!(program.counts().received(), 0.0);
    assert!(!good.is_duplicate(&program));
}

#[test]
fn b19_b20_b21_broken_messages() {
    let program = Program::start();
    let long = |length: u64| [key(1, 2), varint(length), vec![0; 8]].concat();
    let inside = "the message ends inside a field";
    let timestamp = || [key(2, 0), varint(now_ms() as u64)].concat();
    let in_series = |bytes: Vec<u8>| raw_series(&[watched("bad"), bytes]);
    let in_sample = |bytes: Vec<u8>| in_series(field(2, &bytes));
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("B19: a length of 2^32 - 1", long(u64::from(u32::MAX)), inside),
        ("B19: a length of 2^63", long(1 << 63), inside),
        ("B19: a length of 2^64 - 1", long(u64::MAX), inside),
        ("B19: inside a series", raw_series(&[long(1 << 63)]), inside),
        (
            "B20: a varint of 11 bytes",
            in_sample([key(2, 0), vec![0xff; 10], vec![0x01]].concat()),
            "a varint does not fit 64 bits",
        ),
        (
            "B20: a varint of 70 bits",
            in_sample([key(2, 0), vec![0xff; 9], vec![0x7f]].concat()),
            "a varint does not fit 64 bits",
        ),
        ("B20: field 0", field(0, b""), "0x2 is not a field key"),
        ("B20: a group begins", key(99, 3), "0x31b is not a field key"),
        ("B20: a group ends", key(99, 4), "0x31c is not a field key"),
        ("B20: wire type 6", key(99, 6), "0x31e is not a field key"),
        ("B20: wire type 7", key(99, 7), "0x31f is not a field key"),
        (
            "B21: the series as a number",
            [key(1, 0), vec![1]].concat(),
            "field 1 of WriteRequest has wire type 0",
        ),
        (
            "B21: metadata as a number",
            [key(3, 5), vec![0; 4]].concat(),
            "field 3 of WriteRequest has wire type 5",
        ),
        (
            "B21: samples as a number",
            in_series([key(2, 1), vec![0; 8]].concat()),
            "field 2 of TimeSeries has wire type 1",
        ),
        (
            "B21: labels as a number",
            in_series([key(1, 0), vec![1]].concat()),
            "field 1 of TimeSeries has wire type 0",
        ),
        (
            "B21: the value as an integer",
            in_sample([vec![0x08, 1], timestamp()].concat()),
            "field 1 of Sample has wire type 0",
        ),
        (
            "B21: the timestamp as bytes",
            in_sample(field(2, b"12345678")),
            "field 2 of Sample has wire type 2",
        ),
    ];
    for (i, (what, message, text)) in cases.iter().enumerate() {
        assert_malformed(&program, i + 1, what, message, text);
    }
    // The labels are looked into series by series.
    let bad = raw_series(&[field(1, &[0x08, 1]), sample(1.0, now_ms())]);
    assert_partly_rejected(
        &program,
        100,
        "B21: a label name as a number",
        &bad,
        "invalid_labels",
        1,
        "a label is not a protobuf message: field 1 of Label has wire type 0",
    );
}

#[test]
fn b22_unknown_fields_are_skipped() {
    let program = Program::start();
    let unknown = [
        [key(99, 0), vec![0xff, 0xff, 0x01]].concat(),
        [key(98, 1), vec![7; 8]].concat(),
        field(97, b"anything"),
        [key((1 << 29) - 1, 5), vec![7; 4]].concat(),
    ]
    .concat();
    let now = now_ms();
    let with_unknown = |fields: Vec<u8>| [&unknown[..], &fields, &unknown].concat();
    let value = [key(1, 1), 1.0_f64.to_bits().to_le_bytes().to_vec()].concat();
    let inner = with_unknown([value, key(2, 0), varint(now as u64)].concat());
    let message = with_unknown(raw_series(&[with_unknown(
        [with_unknown(watched("known")), field(2, &inner)].concat(),
    )]));
    assert_eq!(write_accepted(&program, "B22", &message), (1.0, 0.0, 0.0));
    let without_unknown = series("known", &[(now, 1.0)]);
    assert_eq!(write_accepted(&program, "the same without", &without_unknown), (0.0, 1.0, 0.0));
}

#[test]
fn b24_bombs_of_many_empty_messages() {
    let program = Program::start();
    assert!(!ValidSeries::new(1).is_duplicate(&program));
    let before = program.peak_memory();
    let many = |tag: u8| [tag, 0].repeat(16_000_000);

    assert_malformed_bomb(&program, "series", &many(0x0a), "the request has more than 100000 series");
    let samples = field(1, &[watched("bomb"), many(0x12)].concat());
    assert_malformed_bomb(&program, "samples", &samples, "the request has more than 1000000 samples");
    let labels = field(1, &[many(0x0a), sample(1.0, now_ms())].concat());
    assert_partly_rejected(
        &program,
        10,
        "B24: labels",
        &labels,
        "invalid_labels",
        1,
        "the series has 16000000 labels, above the limit of 64",
    );

    // The message itself is 32 MiB, and so is a copy of its labels.
    let grown = program.peak_memory() - before;
    assert!(grown < 128 * MIB, "{} MiB", grown / MIB);
}

#[track_caller]
fn assert_malformed_bomb(program: &Program, what: &str, message: &[u8], text: &str) {
    let text = format!("the body is not a write request: {text}");
    assert_rejected(program, what, &[], &snappy::compress(message), 400, &text);
}

// Labels

#[test]
fn b25_b26_b27_b29_b30_f32_series_with_invalid_labels_are_rejected_alone() {
    let program = Program::start();
    let now = now_ms();
    let with = |labels: Vec<u8>| raw_series(&[labels, sample(1.0, now), sample(2.0, now - 1)]);
    let named = |more: Vec<u8>| with([label(b"__name__", b"bad"), more].concat());
    let many: Vec<u8> = (0..10_000).flat_map(|i| label(format!("l{i:04}").as_bytes(), b"x")).collect();
    let forty = "x".repeat(40);
    let cases: Vec<(&str, Vec<u8>, String)> = vec![
        ("B25: labels", named(many), "the series has 10001 labels, above the limit of 64".into()),
        (
            "B25: a value of 1 MiB",
            named(label(b"a", &b"x".repeat(MIB))),
            format!("the label value {forty:?}... has 1048576 bytes, above the limit of 16384"),
        ),
        (
            "B25: a name of 64 KiB",
            named(label(&b"x".repeat(64 << 10), b"v")),
            format!("the label name {forty:?}... has 65536 bytes, above the limit of 1024"),
        ),
        (
            "B26: no metric name",
            with(labels(&[("job", "node"), ("instance", "b")])),
            r#"series {instance="b", job="node"} has no metric name"#.into(),
        ),
        ("B26: no label", with(Vec::new()), "series {} has no metric name".into()),
        (
            "B26: an empty metric name",
            with(labels(&[("__name__", ""), ("job", "node")])),
            r#"series {job="node"} has no metric name"#.into(),
        ),
        (
            "B27: a name twice",
            named(labels(&[("job", "node"), ("job", "other")])),
            "label name \"job\" is not unique".into(),
        ),
        (
            "B27: a name twice, with the same value",
            named(labels(&[("job", "node"), ("job", "node")])),
            "label name \"job\" is not unique".into(),
        ),
        (
            "B29: an empty label name",
            named(labels(&[("", "x")])),
            "a label has an empty name (its value is \"x\")".into(),
        ),
        (
            "B30: a name that is not UTF-8",
            named(label(b"a\xff", b"x")),
            "a label name or value is not UTF-8: \"a\u{fffd}\"".into(),
        ),
        (
            "B30: a value that is not UTF-8",
            named(label(b"a", b"\xc3\x28")),
            "a label name or value is not UTF-8: \"\u{fffd}(\"".into(),
        ),
    ];
    for (i, (what, bad, text)) in cases.iter().enumerate() {
        // The second time it is remembered, and refused all the same.
        assert_partly_rejected(&program, 2 * i + 1, what, bad, "invalid_labels", 2, text);
        assert_partly_rejected(&program, 2 * i + 2, what, bad, "invalid_labels", 2, text);
    }
    // Several at once: all are counted, the first is shown.
    let all: Vec<u8> = cases[3..].iter().flat_map(|(_, bad, _)| bad.clone()).collect();
    assert_partly_rejected(&program, 100, "all", &all, "invalid_labels", 2 * (cases.len() - 3), &cases[3].2);
}

#[test]
fn labels_at_their_limits_are_accepted() {
    let program = Program::start();
    let many: Vec<u8> = (0..61).flat_map(|i| label(format!("l{i:02}").as_bytes(), b"x")).collect();
    let most = raw_series(&[watched("most"), many, sample(1.0, now_ms())]);
    assert_eq!(write_accepted(&program, "64 labels", &most).0, 1.0);
    let longest = label(&b"n".repeat(1024), &b"v".repeat(16384));
    let longest = raw_series(&[watched("longest"), longest, sample(1.0, now_ms())]);
    assert_eq!(write_accepted(&program, "longest name and value", &longest).0, 1.0);
}

#[test]
fn an_invalid_series_without_samples_is_no_error() {
    let program = Program::start();
    let empty = raw_series(&[labels(&[("job", "node")])]);
    let message = [empty, ValidSeries::new(1).series()].concat();
    assert_eq!(write_accepted(&program, "nothing is lost", &message), (1.0, 0.0, 0.0));
}

#[test]
fn b28_b29_equivalent_encodings_are_the_same_series() {
    let program = Program::start();
    let sample = sample(1.0, now_ms());
    let sorted = labels(&[("__name__", "x"), ("a", "1"), ("instance", "a"), ("job", "node")]);
    let plain = raw_series(&[sorted, sample.clone()]);
    assert_eq!(write_accepted(&program, "new", &plain), (1.0, 0.0, 0.0));
    let unsorted = labels(&[("job", "node"), ("a", "1"), ("__name__", "x"), ("instance", "a")]);
    let empty = labels(&[("__name__", "x"), ("a", "1"), ("b", ""), ("instance", "a"), ("job", "node")]);
    let (first, second) =
        (labels(&[("__name__", "x"), ("a", "1")]), labels(&[("instance", "a"), ("job", "node")]));
    for (what, message) in [
        ("B28: unsorted", raw_series(&[unsorted, sample.clone()])),
        ("B29: an empty value", raw_series(&[empty, sample.clone()])),
        ("the sample between the labels", raw_series(&[first.clone(), sample.clone(), second.clone()])),
        ("the sample first", raw_series(&[sample.clone(), first, second])),
    ] {
        assert_eq!(write_accepted(&program, what, &message), (0.0, 1.0, 0.0), "{what}");
    }
}

#[test]
fn b31_any_utf8_is_a_name() {
    let program = Program::start();
    for name in ["with.dots", "with blanks", "new\nline", "\u{1f332}", "a\"b\\c", "job{x=\"y\"}", "0"] {
        let message = series(name, &[(now_ms(), 1.0)]);
        assert_eq!(write_accepted(&program, name, &message), (1.0, 0.0, 0.0), "{name:?}");
        assert_eq!(write_accepted(&program, name, &message), (0.0, 1.0, 0.0), "{name:?}");
        let label_name = [watched("x"), label(name.as_bytes(), b"1"), sample(1.0, now_ms())];
        assert_eq!(write_accepted(&program, name, &raw_series(&label_name)).0, 1.0, "{name:?}");
    }
    assert_eq!(program.get("/metrics").status, 200, "labels of groups are escaped");
}

// Values and timestamps

#[test]
fn b32_b34_values_keep_their_bits() {
    let program = Program::start();
    let start = now_ms();
    // Every value is stored, known when it comes again, and differs in its bits from the next.
    let bits = [
        f64::NAN.to_bits(),
        0x7ff8_0000_0000_0001,
        0x7ff0_0000_0000_0002,
        0x7ff0_0000_0000_0001,
        0xfff8_0000_0000_beef,
        f64::INFINITY.to_bits(),
        f64::NEG_INFINITY.to_bits(),
        0.0_f64.to_bits(),
        (-0.0_f64).to_bits(),
        1,
        f64::MAX.to_bits(),
        1.5_f64.to_bits(),
    ];
    for (i, bits_here) in bits.iter().enumerate() {
        let message = |bits: u64| series("v", &[(start - 1000 * i as i64, f64::from_bits(bits))]);
        let other = bits[(i + 1) % bits.len()];
        assert_eq!(write_accepted(&program, "new", &message(*bits_here)), (1.0, 0.0, 0.0), "{bits_here:#x}");
        assert_eq!(
            write_accepted(&program, "again", &message(*bits_here)),
            (0.0, 1.0, 0.0),
            "{bits_here:#x}"
        );
        assert_eq!(
            write_accepted(&program, "other", &message(other)),
            (0.0, 0.0, 1.0),
            "{bits_here:#x} {other:#x}"
        );
    }
    // A sample that is all default on the wire has value 0, at the beginning of 1970.
    let empty = raw_series(&[watched("v"), field(2, b"")]);
    let text = r#"v{instance="a", job="node"} has timestamp 0, before the year 2000: timestamps are in milliseconds"#;
    assert_partly_rejected(&program, 3000, "an empty sample", &empty, "invalid_timestamp", 1, text);
}

#[test]
fn b33_staleness_markers() {
    let program = Program::start();
    let stale = f64::from_bits(0x7ff0_0000_0000_0002);
    let now = now_ms();
    let unknown = series("s", &[(now - 30_000, stale)]);
    assert_eq!(write_accepted(&program, "of an unknown series", &unknown), (1.0, 0.0, 0.0));
    let second = series("s", &[(now - 15_000, stale)]);
    assert_eq!(write_accepted(&program, "two in a row", &second), (1.0, 0.0, 0.0));
    let value = series("s", &[(now - 15_000, 1.0)]);
    assert_eq!(write_accepted(&program, "a value at the time of a marker", &value), (0.0, 0.0, 1.0));
    assert_eq!(write_accepted(&program, "the marker stays", &second), (0.0, 1.0, 0.0));
    assert_eq!(write_accepted(&program, "and a value later", &series("s", &[(now, 1.0)])), (1.0, 0.0, 0.0));
}

#[test]
fn b35_b36_impossible_timestamps_are_rejected() {
    let program = Program::start();
    let early = |timestamp: i64| {
        format!(
            r#"t{{instance="a", job="node"}} has timestamp {timestamp}, before the year 2000: timestamps are in milliseconds"#
        )
    };
    for (i, timestamp) in [0, -1, i64::MIN, now_ms() / 1000, 946_684_799_999].into_iter().enumerate() {
        let bad = series("t", &[(timestamp, 1.0)]);
        assert_partly_rejected(
            &program,
            i + 1,
            "B35: early",
            &bad,
            "invalid_timestamp",
            1,
            &early(timestamp),
        );
    }
    for (what, timestamp) in
        [("B36: 11 minutes", now_ms() + 660_000), ("B35: microseconds", 1000 * now_ms()), ("B35", i64::MAX)]
    {
        let before = program.counts();
        let answer =
            program.write(&[series("t", &[(timestamp, 1.0)]), ValidSeries::new(50).series()].concat());
        assert_eq!(answer.status, 400, "{what}");
        let text = answer.only_line();
        let start = format!(
            r#"the valid part was accepted, rejected: 1 invalid_timestamp; for example: t{{instance="a", job="node"}} has timestamp {timestamp}, "#
        );
        assert!(text.starts_with(&start), "{what}: {text}");
        assert!(text.ends_with(" s ahead of this clock, above the limit of 600 s"), "{what}: {text}");
        let after = program.counts();
        assert_eq!(after.dropped("invalid_timestamp") - before.dropped("invalid_timestamp"), 1.0);
    }
    // One bad sample among good ones of its series costs itself.
    let now = now_ms();
    let mixed = series("t", &[(now - 2000, 1.0), (7, 2.0), (now - 1000, 3.0)]);
    let before = program.counts();
    let answer = program.write(&mixed);
    assert_eq!(answer.status, 400);
    assert_eq!(answer.only_line(), partial_rejection_text(1, "invalid_timestamp", &early(7)));
    assert_eq!(program.counts().stored() - before.stored(), 2.0);

    let ahead = series("t", &[(now_ms() + 540_000, 1.0)]);
    assert_eq!(write_accepted(&program, "B36: 9 minutes", &ahead), (1.0, 0.0, 0.0));
    let first = series("t2", &[(946_684_800_000, 1.0)]);
    assert_eq!(program.write(&first).status, 204, "the beginning of the year 2000");
}

#[test]
fn b37_b38_repeated_requests() {
    let program = Program::start();
    let now = now_ms();
    let message: Vec<u8> =
        (0..10).flat_map(|i| series(&format!("r{i}"), &[(now - 1000, 1.0), (now, 2.0)])).collect();
    assert_eq!(write_accepted(&program, "first", &message), (20.0, 0.0, 0.0));
    for i in 0..100 {
        assert_eq!(write_accepted(&program, "again", &message), (0.0, 20.0, 0.0), "B37: {i}");
    }
    let other = series("r0", &[(now, 3.0)]);
    assert_eq!(write_accepted(&program, "B38: another value", &other), (0.0, 0.0, 1.0));
    assert_eq!(write_accepted(&program, "the first stays", &message), (0.0, 20.0, 0.0));
    assert_eq!(write_accepted(&program, "the other did not", &other), (0.0, 0.0, 1.0));
}

#[test]
fn b39_b40_any_order() {
    let program = Program::start();
    let now = now_ms();
    let at = |minutes: i64| now - minutes * 60_000;
    assert_eq!(write_accepted(&program, "newest", &series("o", &[(at(0), 1.0)])).0, 1.0);
    let before = program.counts();
    assert_eq!(write_accepted(&program, "B39: inside", &series("o", &[(at(30), 2.0)])).0, 1.0);
    assert_eq!(write_accepted(&program, "B39: barely inside", &series("o", &[(at(359), 2.0)])).0, 1.0);
    let after = program.counts();
    assert_eq!(after.value("samples_late_total") - before.value("samples_late_total"), 2.0);
    let before = program.counts();
    assert_eq!(
        write_accepted(&program, "B39: older than the window", &series("o", &[(at(361), 3.0)])).0,
        0.0
    );
    assert_eq!(program.counts().dropped("too_old") - before.dropped("too_old"), 1.0);

    let samples = [(at(3), 3.0), (at(1), 1.0), (at(5), 5.0), (at(2), 2.0)];
    assert_eq!(write_accepted(&program, "B40: unsorted", &series("u", &samples)).0, 4.0);
    let mut sorted = samples;
    sorted.sort_by_key(|(timestamp_ms, _)| *timestamp_ms);
    assert_eq!(write_accepted(&program, "the same sorted", &series("u", &sorted)), (0.0, 4.0, 0.0));
    let twice = [series("w", &samples[..2]), series("w", &samples[1..])].concat();
    assert_eq!(write_accepted(&program, "B40: in two entries", &twice), (4.0, 1.0, 0.0));
}

// Version 2.0

/// Symbols that a request refers to, numbered in the order in which they are first named.
struct SymbolTable(Vec<String>);

impl SymbolTable {
    fn new() -> Self {
        Self(vec![String::new()])
    }

    fn intern(&mut self, text: &str) -> u32 {
        let position = self.0.iter().position(|symbol| symbol == text);
        position.unwrap_or_else(|| {
            self.0.push(text.into());
            self.0.len() - 1
        }) as u32
    }

    fn labels(&mut self, pairs: &[(&str, &str)]) -> Vec<u32> {
        pairs.iter().flat_map(|(name, value)| [self.intern(name), self.intern(value)]).collect()
    }

    /// A series that the detector watches.
    fn watched(&mut self, name: &str, samples: &[(i64, f64)]) -> v2::TimeSeries {
        let labels_refs = self.labels(&[("__name__", name), ("instance", "a"), ("job", "node")]);
        v2::TimeSeries { labels_refs, samples: v2_samples(samples), ..Default::default() }
    }

    fn request(self, timeseries: Vec<v2::TimeSeries>) -> Vec<u8> {
        v2::Request { symbols: self.0, timeseries }.encode_to_vec()
    }
}

fn v2_samples(samples: &[(i64, f64)]) -> Vec<v2::Sample> {
    let sample = |(timestamp, value): &(i64, f64)| v2::Sample {
        value: *value,
        timestamp: *timestamp,
        start_timestamp: 0,
    };
    samples.iter().map(sample).collect()
}

/// Checks what a sender of 2.0 is told: samples, histograms, exemplars.
#[track_caller]
fn assert_written_counts(what: &str, answer: &Response, status: u16, written: [usize; 3]) {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    for (name, count) in ["samples", "histograms", "exemplars"].iter().zip(written) {
        let header = format!("x-prometheus-remote-write-{name}-written");
        assert_eq!(answer.headers.get(&header), Some(&count.to_string()), "{what}: {answer:?}");
    }
}

/// Writes a request of 2.0, checks what the sender is told, and returns by how much the counters went up:
/// used, duplicate.
#[track_caller]
fn write_v2_checked(
    program: &Program,
    what: &str,
    message: &[u8],
    status: u16,
    written: [usize; 3],
) -> (f64, f64) {
    let before = program.counts();
    let answer = program.write_v2(message);
    assert_written_counts(what, &answer, status, written);
    let after = program.counts();
    (after.stored() - before.stored(), after.dropped("duplicate") - before.dropped("duplicate"))
}

#[test]
fn b5_b7_f37_both_versions_mean_the_same_series() {
    let program = Program::start();
    let now = now_ms();
    assert_eq!(write_accepted(&program, "1.0", &series("x", &[(now, 1.0)])).0, 1.0);
    let message = |samples: &[(i64, f64)]| {
        let mut symbols = SymbolTable::new();
        let series = symbols.watched("x", samples);
        symbols.request(vec![series])
    };
    assert_eq!(write_v2_checked(&program, "2.0", &message(&[(now, 1.0)]), 204, [1, 0, 0]), (0.0, 1.0));
    let newer = message(&[(now + 1000, 2.0), (now + 2000, 2.0)]);
    assert_eq!(write_v2_checked(&program, "2.0, newer", &newer, 204, [2, 0, 0]), (2.0, 0.0));
    let back = series("x", &[(now + 1000, 2.0), (now + 3000, 3.0)]);
    assert_eq!(write_accepted(&program, "1.0 again", &back), (1.0, 1.0, 0.0));
    let body = snappy::compress(&newer);
    for headers in [
        &[("Content-Type", "application/x-protobuf; proto=io.prometheus.write.v2.Request")][..],
        &[("Content-Type", "APPLICATION/X-PROTOBUF ; PROTO=\"io.prometheus.write.v2.Request\"")],
        &[("Content-Type", V2), ("X-Prometheus-Remote-Write-Version", "0.1.0")],
        &[("Content-Type", V2), ("X-Prometheus-Remote-Write-Version", "9.9.9")],
    ] {
        assert_written_counts("B5, B7", &program.post(headers, &body), 204, [2, 0, 0]);
    }
    let counts = program.counts();
    assert_eq!(counts.responses_for(204, "", "1.0"), 2.0);
    assert_eq!(counts.responses_for(204, "", "2.0"), 6.0);
    assert_eq!(counts.stored(), 4.0, "of ten that were sent");
}

#[test]
fn b9_b23_empty_requests_and_the_other_version() {
    let program = Program::start();
    assert_eq!(write_v2_checked(&program, "B9", &[], 204, [0, 0, 0]).0, 0.0);
    let now = now_ms();
    assert_eq!(
        write_v2_checked(&program, "B23: 1.0 as 2.0", &series("x", &[(now, 1.0)]), 204, [0, 0, 0]).0,
        0.0
    );
    let mut symbols = SymbolTable::new();
    let series = symbols.watched("x", &[(now, 1.0)]);
    assert_eq!(write_accepted(&program, "B23: 2.0 as 1.0", &symbols.request(vec![series])).0, 0.0);
    assert_eq!(program.counts().ignored("other_version"), 2.0);
    let log = program.log.lock().expect("no panic");
    let warned = log.iter().filter(|line| line.contains("the body is of the other")).count();
    assert_eq!(warned, 1, "once in a minute: {log:#?}");
}

#[test]
fn b8_b10_b18_b20_b24_b43_malformed_requests_of_2_0() {
    let program = Program::start();
    let before = program.peak_memory();
    let assert_rejected_v2 = |what: &str, body: &[u8], text: &str| {
        let answer = program.post(&[("Content-Type", V2)], body);
        assert_written_counts(what, &answer, 400, [0, 0, 0]);
        assert_eq!(answer.only_line(), text, "{what}");
    };
    assert_rejected_v2("B8", b"", "the body is not in snappy's block format");
    let assert_malformed_v2 = |what: &str, message: &[u8], text: &str| {
        assert_rejected_v2(
            what,
            &snappy::compress(message),
            &format!("the body is not a write request: {text}"),
        );
    };
    let mut symbols = SymbolTable::new();
    let good = symbols.watched("good", &[(now_ms(), 1.0)]);
    let good = symbols.request(vec![good]);
    assert_malformed_v2("B18", &good[..good.len() - 1], "the message ends inside a field");
    assert_malformed_v2("B20", &[&good[..], &[0x2b]].concat(), "0x2b is not a field key");
    let first = "the first symbol is not the empty one";
    assert_malformed_v2(
        "B43: no symbol",
        &v2::Request { symbols: vec![], timeseries: vec![v2::TimeSeries::default()] }.encode_to_vec(),
        first,
    );
    assert_malformed_v2(
        "B43: another first symbol",
        &v2::Request { symbols: vec!["a".into()], timeseries: vec![] }.encode_to_vec(),
        first,
    );
    assert_malformed_v2(
        "B24: symbols",
        &[0x22, 0].repeat(16_000_000),
        "the request has more than 1000000 symbols",
    );
    let series = [&[0x22, 0][..], &[0x2a, 0].repeat(16_000_000)].concat();
    assert_malformed_v2("B24: series", &series, "the request has more than 100000 series");
    let references =
        [field(4, b""), field(5, &[field(1, &vec![0; 30_000_000]), field(2, b"")].concat())].concat();
    let answer = program.write_v2(&references);
    assert_written_counts("B24: references", &answer, 400, [0, 0, 0]);
    assert_eq!(program.counts().received(), 1.0);
    let grown = program.peak_memory() - before;
    assert!(grown < 160 * MIB, "{} MiB", grown / MIB);
    assert_eq!(write_v2_checked(&program, "nothing was used", &good, 204, [1, 0, 0]), (1.0, 0.0));
    let counts = program.counts();
    for (reason, count) in
        [("snappy", 1.0), ("malformed", 4.0), ("symbols_limit", 1.0), ("series_limit", 1.0)]
    {
        assert_eq!(counts.responses_for(400, reason, "2.0"), count, "{reason}");
    }
}

#[test]
fn b26_b27_b29_b30_b41_b42_b44_invalid_series_of_2_0_are_rejected_alone() {
    let program = Program::start();
    let now = now_ms();
    let texts = ["", "__name__", "bad", "job", "node", "instance", "a"];
    let refs = |refs: &[u32]| v2::TimeSeries {
        labels_refs: refs.to_vec(),
        samples: v2_samples(&[(now, 1.0), (now - 1, 1.0)]),
        ..Default::default()
    };
    let metadata = |help_ref, unit_ref| v2::TimeSeries {
        metadata: Some(v2::Metadata { r#type: 1, help_ref, unit_ref }),
        ..refs(&[1, 2, 3, 4, 5, 6])
    };
    let exemplar = v2::Exemplar { labels_refs: vec![3, 4], value: 1.0, timestamp: now };
    let without_samples = v2::TimeSeries { samples: vec![], ..refs(&[1, 2, 3, 4]) };
    let (labels, no_samples) = ("invalid_labels", "no_samples");
    let neither = "a series has neither samples nor histograms nor exemplars";
    // The series, what is refused of it, and how many of its samples are written all the same.
    let cases: Vec<(&str, v2::TimeSeries, usize, &str, &str, usize)> = vec![
        ("B26: no metric name", refs(&[3, 4]), 2, labels, r#"series {job="node"} has no metric name"#, 0),
        ("B26: no label", refs(&[]), 2, labels, "series {} has no metric name", 0),
        (
            "B26: an empty name",
            refs(&[1, 0, 3, 4]),
            2,
            labels,
            r#"series {job="node"} has no metric name"#,
            0,
        ),
        ("B27", refs(&[1, 2, 3, 4, 3, 6]), 2, labels, "label name \"job\" is not unique", 0),
        ("B29", refs(&[1, 2, 0, 4]), 2, labels, "a label has an empty name (its value is \"node\")", 0),
        (
            "B41: odd",
            refs(&[1, 2, 3]),
            2,
            labels,
            "the series has 3 label references, which is not an even number",
            0,
        ),
        ("B41: beyond", refs(&[1, 8]), 2, labels, "the series refers to symbol 8 of 8", 0),
        ("B41: u32::MAX", refs(&[1, u32::MAX]), 2, labels, "the series refers to symbol 4294967295 of 8", 0),
        ("B42: help", metadata(8, 0), 1, "invalid_metadata", "metadata refers to symbol 8 of 8", 2),
        (
            "B42: unit",
            metadata(0, u32::MAX),
            1,
            "invalid_metadata",
            "metadata refers to symbol 4294967295 of 8",
            2,
        ),
        ("B44: nothing", without_samples.clone(), 1, no_samples, neither, 0),
        (
            "B44: exemplars alone, and no name",
            v2::TimeSeries { exemplars: vec![exemplar], labels_refs: vec![3, 4], ..without_samples.clone() },
            1,
            labels,
            r#"series {job="node"} has no metric name"#,
            0,
        ),
        (
            "B44: metadata alone",
            v2::TimeSeries { samples: vec![], ..metadata(2, 2) },
            1,
            no_samples,
            neither,
            0,
        ),
    ];
    for (i, (what, bad, n, reason, text, n_written)) in cases.into_iter().enumerate() {
        // The second time it is remembered.
        for again in 0..2 {
            let before = program.counts();
            let good = v2::TimeSeries {
                samples: v2_samples(&[(now - 1000 * (2 * i + again + 1) as i64, 1.0)]),
                ..refs(&[1, 7, 3, 4])
            };
            let symbols = texts.iter().copied().chain(["good"]).map(String::from).collect();
            let message = v2::Request { symbols, timeseries: vec![bad.clone(), good] }.encode_to_vec();
            let answer = program.write_v2(&message);
            assert_written_counts(what, &answer, 400, [1 + n_written, 0, 0]);
            assert_eq!(answer.only_line(), partial_rejection_text(n, reason, text), "{what}");
            let after = program.counts();
            assert_eq!(after.rejected(reason) - before.rejected(reason), n as f64, "{what}");
            let duplicates = after.dropped("duplicate") - before.dropped("duplicate");
            assert_eq!(after.stored() + duplicates - before.stored(), 1.0 + n_written as f64, "{what}");
        }
    }
    // Symbols that are not UTF-8 cost the series that use them.
    let good = raw_v2(&["good".as_bytes(), b"\xff"], &[&[1, 2, 3, 4], &[1, 2, 3, 5]], now);
    let answer = program.write_v2(&good);
    assert_written_counts("B30", &answer, 400, [1, 0, 0]);
    assert_eq!(
        answer.only_line(),
        partial_rejection_text(1, labels, "a label name or value is not UTF-8: \"\u{fffd}\"")
    );
}

/// A request whose symbols are the empty one, `__name__`, `x`, `job` and these, with one sample a series.
fn raw_v2(symbols: &[&[u8]], series: &[&[u8]], timestamp_ms: i64) -> Vec<u8> {
    let symbols = [&b""[..], b"__name__", b"x", b"job"].into_iter().chain(symbols.iter().copied());
    let symbols = symbols.flat_map(|symbol| field(4, symbol));
    let series =
        series.iter().flat_map(|refs| field(5, &[field(1, refs), sample(1.0, timestamp_ms)].concat()));
    symbols.chain(series).collect()
}

#[test]
fn b28_b31_b46_equivalent_encodings_of_2_0_are_the_same_series() {
    let program = Program::start();
    let now = now_ms();
    let plain = raw_v2(&[b"node"], &[&[1, 2, 3, 4]], now);
    assert_eq!(write_v2_checked(&program, "new", &plain, 204, [1, 0, 0]), (1.0, 0.0));
    let unpacked: Vec<u8> = [1, 2, 3, 4].into_iter().flat_map(|r| [key(1, 0), varint(r)].concat()).collect();
    let halves = [field(1, &[1, 2]), sample(1.0, now), field(1, &[3, 4])].concat();
    let metadata = [field(1, &[1, 2, 3, 4]), sample(1.0, now), field(5, &[8, 1]), field(5, &[8, 2])].concat();
    let created = [field(1, &[1, 2, 3, 4]), sample(1.0, now), key(6, 0), varint(now as u64 - 5000)].concat();
    for (what, symbols, fields) in [
        ("B28: unsorted", &[&b"node"[..]][..], [field(1, &[3, 4, 1, 2]), sample(1.0, now)].concat()),
        (
            "B29: an empty value",
            &[b"node", b"empty"],
            [field(1, &[1, 2, 3, 4, 5, 0]), sample(1.0, now)].concat(),
        ),
        ("B46: unpacked", &[b"node"], [unpacked, sample(1.0, now)].concat()),
        ("B46: in two halves", &[b"node"], halves),
        ("B46: metadata twice", &[b"node"], metadata),
        ("B46: created timestamp", &[b"node"], created),
    ] {
        let message = [raw_v2(symbols, &[], now), field(5, &fields)].concat();
        assert_eq!(write_v2_checked(&program, what, &message, 204, [1, 0, 0]), (0.0, 1.0), "{what}");
    }
    for name in ["with.dots", "with blanks", "new\nline", "\u{1f332}"] {
        let mut symbols = SymbolTable::new();
        let series = symbols.watched(name, &[(now, 1.0)]);
        assert_eq!(
            write_v2_checked(&program, "B31", &symbols.request(vec![series]), 204, [1, 0, 0]),
            (1.0, 0.0)
        );
    }
}

#[test]
fn b32_b33_b35_b36_b38_b39_b40_values_and_times_of_2_0() {
    let program = Program::start();
    let now = now_ms();
    let message = |samples: &[(i64, f64)]| {
        let mut symbols = SymbolTable::new();
        let series = symbols.watched("x", samples);
        symbols.request(vec![series.clone(), series])
    };
    let odd = [f64::NAN, f64::INFINITY, -0.0, 5e-324, f64::from_bits(0x7ff0_0000_0000_0002)];
    let samples: Vec<(i64, f64)> = odd.iter().enumerate().map(|(i, v)| (now - 1000 * i as i64, *v)).collect();
    assert_eq!(write_v2_checked(&program, "B32, B33, B40", &message(&samples), 204, [10, 0, 0]), (5.0, 5.0));
    let other = [(now, 1.0), (now - 7 * 3_600_000, 1.0)];
    assert_eq!(
        write_v2_checked(&program, "B38, B39: not used, and written", &message(&other), 204, [4, 0, 0]).0,
        0.0
    );
    let bad = [(0, 1.0), (now / 1000, 1.0), (i64::MIN, 1.0), (now + 660_000, 1.0), (now + 540_000, 1.0)];
    let answer = program.write_v2(&message(&bad));
    assert_written_counts("B35, B36", &answer, 400, [2, 0, 0]);
    assert!(
        answer
            .only_line()
            .starts_with("the valid part was accepted, rejected: 8 invalid_timestamp; for example: x{")
    );
}

fn histogram(timestamp: i64) -> Histogram {
    Histogram {
        count: Some(Count::CountInt(6)),
        sum: 12.5,
        schema: 3,
        positive_spans: vec![BucketSpan { offset: -3, length: 3 }],
        positive_deltas: vec![3, -2, 1],
        timestamp,
        ..Default::default()
    }
}

fn float_histogram(timestamp: i64) -> Histogram {
    Histogram {
        count: Some(Count::CountFloat(6.5)),
        positive_deltas: vec![],
        positive_counts: vec![3.0, 1.0, 2.5],
        ..histogram(timestamp)
    }
}

/// A series of histograms in both versions.
fn histograms(name: &str, histograms: &[Histogram], samples: &[(i64, f64)]) -> (Vec<u8>, Vec<u8>) {
    let pairs = [("__name__", name), ("instance", "a"), ("job", "node")];
    let label = |(name, value): &(&str, &str)| proto::Label { name: (*name).into(), value: (*value).into() };
    let v1 = proto::TimeSeries {
        labels: pairs.iter().map(label).collect(),
        samples: samples
            .iter()
            .map(|(timestamp, value)| proto::Sample { value: *value, timestamp: *timestamp })
            .collect(),
        histograms: histograms.to_vec(),
        ..Default::default()
    };
    let mut symbols = SymbolTable::new();
    let v2 = v2::TimeSeries { histograms: histograms.to_vec(), ..symbols.watched(name, samples) };
    (field(1, &v1.encode_to_vec()), symbols.request(vec![v2]))
}

#[test]
fn b45_b47_native_histograms_are_two_series() {
    let program = Program::start();
    let now = now_ms();
    let (v1, v2) = histograms("h", &[histogram(now), float_histogram(now - 1000)], &[]);
    assert_eq!(write_v2_checked(&program, "new", &v2, 204, [0, 2, 0]), (4.0, 0.0));
    assert_eq!(write_accepted(&program, "the same in 1.0", &v1), (0.0, 4.0, 0.0));
    // They are what a classic histogram has.
    let classic =
        [series("h_count", &[(now, 6.0), (now - 1000, 6.5)]), series("h_sum", &[(now, 12.5)])].concat();
    assert_eq!(write_accepted(&program, "the same as floats", &classic), (0.0, 3.0, 0.0));
    assert_eq!(
        write_accepted(&program, "others", &series("h", &[(now, 6.0)])).0,
        1.0,
        "h itself has no value"
    );

    let (v1, v2) = histograms("both", &[histogram(now)], &[(now, 1.0)]);
    assert_eq!(write_v2_checked(&program, "B45", &v2, 204, [1, 1, 0]), (3.0, 0.0));
    assert_eq!(write_accepted(&program, "B45 in 1.0", &v1), (0.0, 3.0, 0.0));

    let stale =
        Histogram { sum: f64::from_bits(0x7ff0_0000_0000_0002), timestamp: now, ..Default::default() };
    let (v1, v2) = histograms("ended", &[stale], &[]);
    assert_eq!(write_v2_checked(&program, "a stale histogram", &v2, 204, [0, 1, 0]), (2.0, 0.0));
    assert_eq!(write_accepted(&program, "in 1.0", &v1), (0.0, 2.0, 0.0));
    let marker = f64::from_bits(0x7ff0_0000_0000_0002);
    let ends = [series("ended_count", &[(now, marker)]), series("ended_sum", &[(now, marker)])].concat();
    assert_eq!(write_accepted(&program, "both are at their end", &ends), (0.0, 2.0, 0.0));

    let before = program.counts().received();
    let count = Some(Count::CountInt(7));
    let custom = Histogram {
        schema: -53,
        zero_count: Some(proto::histogram::ZeroCount::ZeroCountInt(1)),
        ..histogram(now)
    };
    for (bad, text) in [
        (
            Histogram { count, ..histogram(now) },
            "a histogram counts 7 observations, and 6 are in its buckets",
        ),
        (
            Histogram { positive_deltas: vec![3, -2], ..histogram(now) },
            "the positive spans of a histogram have 3 buckets, and there are 2",
        ),
        (Histogram { schema: 99, ..histogram(now) }, "a histogram has the unknown schema 99"),
        (
            Histogram { custom_values: vec![1.0, 2.0], ..custom },
            "a histogram of schema -53 has a bucket of zero",
        ),
    ] {
        let good = histogram(now - 2000);
        let (v1, v2) = histograms("h", &[bad, good], &[]);
        for (version, answer) in [("2.0", program.write_v2(&v2)), ("1.0", program.write(&v1))] {
            assert_eq!(answer.status, 400, "{version}");
            assert_eq!(answer.only_line(), partial_rejection_text(1, "invalid_histogram", text), "{version}");
        }
        assert_written_counts("B47", &program.write_v2(&v2), 400, [0, 1, 0]);
    }
    // Twelve requests with a count and a sum of each of two.
    let counts = program.counts();
    assert_eq!(counts.dropped("invalid_histogram"), 12.0 * 2.0);
    assert_eq!(counts.received() - before, 12.0 * 4.0);
    let (_, future) = histograms("h", &[histogram(now + 660_000), histogram(now)], &[]);
    let answer = program.write_v2(&future);
    assert_written_counts("from the future", &answer, 400, [0, 1, 0]);
    assert!(
        answer
            .only_line()
            .starts_with("the valid part was accepted, rejected: 1 invalid_timestamp; for example: h_count{")
    );
    let mut symbols = SymbolTable::new();
    let nameless = v2::TimeSeries {
        labels_refs: symbols.labels(&[("job", "node")]),
        histograms: vec![histogram(now)],
        ..Default::default()
    };
    let answer = program.write_v2(&symbols.request(vec![nameless]));
    assert_written_counts("no name", &answer, 400, [0, 0, 0]);
    assert!(answer.only_line().contains(" 1 invalid_labels;"), "{answer:?}");
    assert_eq!(
        program.counts().value("histograms_total"),
        2.0 + 2.0 + 1.0 + 1.0 + 1.0 + 1.0 + 4.0 * 6.0 + 2.0 + 1.0
    );
}

#[test]
fn b48_exemplars_are_counted() {
    let program = Program::start();
    let now = now_ms();
    let write = |what: &str, exemplar: v2::Exemplar, status: u16, exemplars: usize| {
        let mut symbols = SymbolTable::new();
        let series = symbols.watched("x", &[(now, 1.0)]);
        let valid =
            v2::Exemplar { labels_refs: symbols.labels(&[("trace_id", "1")]), value: 1.0, timestamp: now };
        let series = v2::TimeSeries { exemplars: vec![exemplar, valid], ..series };
        let answer = program.write_v2(&symbols.request(vec![series]));
        assert_written_counts(what, &answer, status, [1, 0, exemplars]);
        answer.body
    };
    let plain = v2::Exemplar { labels_refs: vec![], value: f64::NAN, timestamp: 0 };
    write("no labels, NaN, no timestamp", plain.clone(), 204, 2);
    let text = write("the future", v2::Exemplar { timestamp: now + 700_000, ..plain.clone() }, 400, 1);
    assert!(text.contains("refused: 1 invalid_exemplar; for example: an exemplar has timestamp"), "{text}");
    let text = write("symbol 99", v2::Exemplar { labels_refs: vec![1, 99], ..plain.clone() }, 400, 1);
    assert!(text.contains("1 invalid_exemplar; for example: an exemplar refers to symbol 99 of"), "{text}");
    write("odd", v2::Exemplar { labels_refs: vec![1], ..plain }, 400, 1);
    assert_eq!(program.counts().ignored("exemplar"), 8.0);

    // Prometheus sends them as series of their own.
    let mut symbols = SymbolTable::new();
    let alone =
        v2::TimeSeries { exemplars: vec![v2::Exemplar::default()], ..symbols.watched("nothing_else", &[]) };
    assert_written_counts("B44: alone", &program.write_v2(&symbols.request(vec![alone])), 204, [0, 0, 1]);

    // In 1.0 they stand in the series too.
    let v1 = |timestamp: i64| {
        let exemplar = field(3, &[key(3, 0), varint(timestamp as u64)].concat());
        raw_series(&[watched("x"), sample(1.0, now), exemplar])
    };
    assert_eq!(write_accepted(&program, "1.0", &v1(now)), (0.0, 1.0, 0.0));
    assert_eq!(program.write(&v1(now + 700_000)).status, 400);
}

#[test]
fn b52_a_late_request_is_stored_in_order() {
    let program = Program::start();
    let now = now_ms();
    let late = snappy::compress(&series("x", &[(now - 1000, 1.0)]));
    let mut stream = program.connect();
    let head = post_head(&[("Expect", "100-continue")], late.len());
    stream.write_all(format!("{head}\r\nHost: a\r\n\r\n").as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 100);
    assert_eq!(write_accepted(&program, "the later one first", &series("x", &[(now, 2.0)])).0, 1.0);
    stream.write_all(&late).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 204);
    let counts = program.counts();
    assert_eq!((counts.stored(), counts.value("samples_late_total")), (2.0, 1.0));
}

#[test]
fn f17_a_replay_of_two_hours_is_204_or_503() {
    let program = Program::start();
    let now = now_ms();
    let statuses: Vec<u16> = thread::scope(|scope| {
        let shard = |shard: i64| {
            let program = &program;
            scope.spawn(move || {
                let request = |i: i64| {
                    let mut symbols = SymbolTable::new();
                    let start = now - 7_200_000 + i * 1_800_000;
                    let series: Vec<_> = (0..50)
                        .map(|n| {
                            let samples: Vec<_> = (0..20).map(|k| (start + k * 15_000, 1.0)).collect();
                            symbols.watched(&format!("r{shard}_{n}"), &samples)
                        })
                        .collect();
                    program.write_v2(&symbols.request(series)).status
                };
                (0..4).map(request).collect::<Vec<_>>()
            })
        };
        let shards: Vec<_> = (0..20).map(shard).collect();
        shards.into_iter().flat_map(|shard| shard.join().expect("no panic")).collect()
    });
    assert!(statuses.iter().all(|status| [204, 503].contains(status)), "{statuses:?}");
    let n_accepted = statuses.iter().filter(|status| **status == 204).count();
    assert_eq!(program.counts().received(), 1000.0 * n_accepted as f64);
    assert_eq!(program.counts().stored(), 1000.0 * n_accepted as f64);
}

#[test]
fn f30_many_new_series_leave_the_known_ones_alone() {
    let program = Program::start();
    let now = now_ms();
    assert_eq!(write_accepted(&program, "known", &series("known", &[(now, 1.0)])).0, 1.0);
    for i in 0..20 {
        let mut symbols = SymbolTable::new();
        let all: Vec<_> = (0..2000)
            .map(|n| v2::TimeSeries {
                labels_refs: symbols.labels(&[("__name__", "new"), ("n", &(2000 * i + n).to_string())]),
                samples: v2_samples(&[(now, 1.0)]),
                ..Default::default()
            })
            .collect();
        assert_written_counts("F30", &program.write_v2(&symbols.request(all)), 204, [2000, 0, 0]);
    }
    assert_eq!(program.counts().dropped("unwatched"), 40_000.0);
    let known = [series("known", &[(now, 1.0)]), series("known", &[(now + 1000, 1.0)])].concat();
    assert_eq!(write_accepted(&program, "known", &known), (1.0, 1.0, 0.0));
}

// Connections

#[test]
fn b50_a_slow_body_and_a_slow_head() {
    let program = Program::start();
    let started = Instant::now();
    let body = snappy::compress(&ValidSeries::new(1).series());
    let slow_body = {
        let mut stream = program.connect();
        let head = format!("{}\r\nHost: test\r\n\r\n", post_head(&[], body.len()));
        stream.write_all(head.as_bytes()).expect("sent");
        let mut sender = stream.try_clone().expect("a socket");
        // It ends when the other side has closed the connection.
        thread::spawn(move || {
            for byte in body {
                thread::sleep(Duration::from_secs(1));
                if sender.write_all(&[byte]).is_err() {
                    break;
                }
            }
        });
        stream
    };
    let mut slow_head = program.connect();
    slow_head.write_all(b"POST /api/v1/write HTTP/1.1\r\nHost: te").expect("sent");
    // Whoever is slow holds up nobody else.
    assert_eq!(program.write(&ValidSeries::new(2).series()).status, 204);

    let mut slow_body = slow_body;
    let answer = Response::read(&mut slow_body);
    // Not 408: a sender drops what is answered so.
    assert_eq!((answer.status, answer.only_line()), (503, "the body did not arrive within 10s"));
    assert_eq!(answer.headers["retry-after"], "5");
    let mut rest = Vec::new();
    // The end of the connection, or its reset by the bytes that still come.
    assert!(slow_body.read_to_end(&mut rest).map_or_else(|e| e.kind() != ErrorKind::WouldBlock, |n| n == 0));
    let took = started.elapsed();
    assert!((Duration::from_secs(9)..TIMEOUT).contains(&took), "{took:?}");
    let mut rest = Vec::new();
    slow_head.read_to_end(&mut rest).expect("it is closed");
    assert_eq!(program.counts().responses_for(503, "read_timeout", "1.0"), 1.0);
    assert!(!ValidSeries::new(1).is_duplicate(&program));
}

#[test]
fn b50_connections_that_are_cut() {
    let program = Program::start();
    let good = ValidSeries::new(1);
    let body = snappy::compress(&good.series());
    let whole = [format!("{}\r\nHost: a\r\n\r\n", post_head(&[], body.len())).into_bytes(), body].concat();
    for end in 0..whole.len() {
        let mut stream = program.connect();
        stream.write_all(&whole[..end]).expect("sent");
    }
    assert_eq!(program.counts().received(), 0.0);
    assert!(!good.is_duplicate(&program), "nothing is used");
}

#[test]
fn malformed_heads_are_counted() {
    let program = Program::start();
    let heads = [
        "GET\r\n\r\n".to_string(),
        "GET / HTTP/9.9\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost test\r\n\r\n".into(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000)),
        format!("GET / HTTP/1.1\r\nHost: test\r\nX: {}\r\n\r\n", "x".repeat(200_000)),
    ];
    for head in &heads {
        let mut stream = program.connect();
        // It may be closed before it is sent.
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let page = program.get("/metrics").body;
    let line = format!("promforest_http_requests_malformed_total {}\n", heads.len());
    assert!(page.contains(&line), "{page}");
}

#[test]
fn b50_continue_pipelining_and_keep_alive() {
    let program = Program::start();
    let bodies: Vec<Vec<u8>> = (1..=3).map(|i| snappy::compress(&ValidSeries::new(i).series())).collect();

    let mut stream = program.connect();
    let head = post_head(&[("Expect", "100-continue")], bodies[0].len());
    stream.write_all(format!("{head}\r\nHost: a\r\n\r\n").as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 100);
    stream.write_all(&bodies[0]).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 204);
    // A request that is refused by its head is not asked for its body.
    let mut rejected_stream = program.connect();
    let head = post_head(&[("Expect", "100-continue"), ("Content-Encoding", "gzip")], 1000);
    rejected_stream.write_all(format!("{head}\r\nHost: a\r\n\r\n").as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut rejected_stream).status, 415);

    // On the connection that was used before: one after another, without waiting for answers.
    let mut pipeline = Vec::new();
    for body in &bodies[1..] {
        pipeline.extend(format!("{}\r\nHost: a\r\n\r\n", post_head(&[], body.len())).into_bytes());
        pipeline.extend(body);
    }
    pipeline.extend(b"POST /api/v1/write HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
    pipeline.extend(b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.write_all(&pipeline).expect("sent");
    let statuses: Vec<u16> = (0..4).map(|_| Response::read(&mut stream).status).collect();
    assert_eq!(statuses, [204, 204, 400, 200]);
    assert_eq!(program.counts().stored(), 3.0);

    // An empty chunked body, and one in chunks of a byte.
    let mut chunked =
        b"POST /api/v1/write HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    chunked.extend(bodies[0].iter().flat_map(|byte| [b"1\r\n", &[*byte][..], b"\r\n"].concat()));
    chunked.extend(b"0\r\n\r\n");
    stream.write_all(&chunked).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 204);
    assert_eq!(program.counts().dropped("duplicate"), 1.0);
}

#[test]
fn b50_idle_connections_do_not_block_writes() {
    let program = Program::start();
    let idle: Vec<TcpStream> = (0..300).map(|_| program.connect()).collect();
    let started = Instant::now();
    assert_eq!(program.write(&ValidSeries::new(1).series()).status, 204);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    drop(idle);
}

/// Begins a body, of which so many bytes are sent, and waits until it is asked for.
fn begin_upload(program: &Program, extra: &str, sent: &[u8]) -> TcpStream {
    let mut stream = program.connect();
    let head = "POST /api/v1/write HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n";
    stream.write_all(format!("{head}{extra}\r\n\r\n").as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 100, "{extra}");
    stream.write_all(sent).expect("it is read");
    stream
}

fn in_flight_bytes(counts: &IngestCounters) -> usize {
    counts.value("in_flight_bytes") as usize
}

fn wait_until(program: &Program, what: &str, condition: impl Fn(&IngestCounters) -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let counts = program.counts();
        if condition(&counts) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {:#?}", counts.0);
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn overload_is_503_and_never_429() {
    let program = Program::start();
    let body = snappy::compress(&ValidSeries::new(1).series());
    // Small bodies may take the whole budget.
    let almost_whole_body = vec![0xff; MIB - 1];
    let slow_uploads: Vec<TcpStream> = (0..64)
        .map(|_| begin_upload(&program, &format!("Content-Length: {MIB}"), &almost_whole_body))
        .collect();
    wait_until(&program, "all is taken", |counts| in_flight_bytes(counts) == 64 * MIB);
    let before = program.counts();
    thread::scope(|scope| {
        for i in 0..50 {
            let (program, body) = (&program, &body);
            scope.spawn(move || {
                let answer = if i % 2 == 0 {
                    program.post(&[], body)
                } else {
                    let head = "POST /api/v1/write HTTP/1.1\r\nTransfer-Encoding: chunked";
                    program.request(head, b"1\r\nx\r\n0\r\n\r\n")
                };
                assert_eq!(answer.status, 503);
                assert_eq!(answer.only_line(), "overloaded: too many bytes in flight; try again");
                let retry_after_seconds: u16 = answer.headers["retry-after"].parse().expect("seconds");
                assert!((1..=5).contains(&retry_after_seconds), "{retry_after_seconds}");
            });
        }
    });
    let after = program.counts();
    assert_eq!(after.responses_for(503, "overloaded", "1.0"), 50.0);
    assert_eq!(after.responses(429), 0.0);
    assert_eq!(after.received(), before.received());
    assert_written_counts("2.0", &program.write_v2(&ValidSeries::new(1).series()), 503, [0, 0, 0]);
    // The pages stay.
    assert_eq!(program.get("/-/healthy").status, 200);
    drop(slow_uploads);
    wait_until(&program, "all is given back", |counts| in_flight_bytes(counts) == 0);
    assert_eq!(program.post(&[], &body).status, 204, "the budget is given back");
}

/// What is announced takes nothing; what is large leaves room for what is small.
#[test]
fn f29_stalled_large_bodies_do_not_block_small_ones() {
    let program = Program::start();
    let large = format!("Content-Length: {LIMIT}");
    let announced: Vec<TcpStream> = [&large, "Transfer-Encoding: chunked"]
        .into_iter()
        .cycle()
        .take(8)
        .map(|extra| begin_upload(&program, extra, b""))
        .collect();
    assert_eq!(program.write(&ValidSeries::new(1).series()).status, 204);
    assert_eq!(in_flight_bytes(&program.counts()), 0);

    let almost_whole_body = vec![0xff; LIMIT - 1];
    let mut first = begin_upload(&program, &large, &almost_whole_body);
    wait_until(&program, "it is there but for a byte", |counts| in_flight_bytes(counts) == LIMIT);
    // A second one finds no room, and gives back what it had.
    let mut second = begin_upload(&program, &large, b"");
    // It may be closed before it is sent.
    let _ = second.write_all(&almost_whole_body);
    wait_until(&program, "the second is refused", |counts| {
        counts.responses_for(503, "overloaded", "1.0") == 1.0 && in_flight_bytes(counts) == LIMIT
    });
    assert_eq!(program.write(&ValidSeries::new(2).series()).status, 204);
    assert_eq!(in_flight_bytes(&program.counts()), LIMIT);
    // Nothing is wrong with the first.
    first.write_all(b"\xff").expect("it is read");
    assert_eq!(Response::read(&mut first).status, 400);
    wait_until(&program, "all is given back", |counts| in_flight_bytes(counts) == 0);
    drop(announced);
}

#[test]
fn many_senders_at_once() {
    let program = Program::start();
    let now = now_ms();
    thread::scope(|scope| {
        for sender in 0..16 {
            let program = &program;
            scope.spawn(move || {
                for i in 0..20 {
                    let message = series(&format!("s{sender}"), &[(now - i * 1000, 1.0)]);
                    assert_eq!(program.write(&message).status, 204);
                }
            });
        }
    });
    let counts = program.counts();
    assert_eq!((counts.received(), counts.stored()), (320.0, 320.0));
}

// What comes back, and what is not a sample

#[test]
fn b51_f33_f34_own_outputs_are_ignored() {
    let program = Program::start();
    let now = now_ms();
    let own_output: Vec<Vec<u8>> = [
        &[("__name__", "net_anomaly"), ("instance", "a"), ("job", "node")][..],
        &[("__name__", "anomaly_score"), ("detector", "net"), ("instance", "a"), ("job", "node")],
        &[("__name__", "anomaly_incident"), ("detector", "net"), ("job", "node")],
        &[("__name__", "promforest_ingest_samples_total"), ("job", "node")],
    ]
    .iter()
    .map(|pairs| raw_series(&[labels(pairs), sample(1.0, now)]))
    .collect();
    assert_eq!(write_accepted(&program, "B51", &own_output.concat()), (0.0, 0.0, 0.0));
    let counts = program.counts();
    assert_eq!((counts.received(), counts.dropped("own_output")), (4.0, 4.0));
    // Another detector's are no outputs of this process.
    let other = labels(&[("__name__", "anomaly_score"), ("detector", "other"), ("job", "node")]);
    assert_eq!(write_accepted(&program, "a stranger's", &raw_series(&[other, sample(1.0, now)])).0, 1.0);
    assert_eq!(program.counts().dropped("own_output"), 4.0);
}

#[test]
fn b49_unwatched_series_exemplars_and_metadata_are_counted() {
    let program = Program::start();
    let now = now_ms();
    let unwatched = raw_series(&[labels(&[("__name__", "up"), ("job", "other")]), sample(1.0, now)]);
    let message =
        [unwatched, raw_series(&[watched("h"), field(3, b""), field(3, b"")]), field(3, b"")].concat();
    assert_eq!(write_accepted(&program, "B49: metadata, too", &message), (0.0, 0.0, 0.0));
    let counts = program.counts();
    assert_eq!(counts.dropped("unwatched"), 1.0);
    for (kind, count) in [("exemplar", 2.0), ("metadata", 1.0)] {
        assert_eq!(counts.ignored(kind), count, "{kind}");
    }
    // Types that contradict each other, and one that does not exist.
    let family = |kind: u64| field(3, &[key(1, 0), varint(kind), field(2, b"family")].concat());
    assert_eq!(
        write_accepted(&program, "B49: metadata alone", &[family(1), family(2), family(99)].concat()).0,
        0.0
    );
    assert_eq!(program.counts().ignored("metadata"), 4.0);
}

// Pages and process

#[test]
fn health_and_readiness() {
    let program = Program::start();
    let healthy = program.get("/-/healthy");
    assert_eq!((healthy.status, healthy.only_line()), (200, "promforest is healthy"));
    let wait_for_ready_text = |text: &str| {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let answer = program.get("/-/ready");
            assert_eq!(answer.status, 503, "{answer:?}");
            if answer.only_line().starts_with(text) {
                return;
            }
            assert!(Instant::now() < deadline, "{answer:?} and not {text}");
            thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for_ready_text("net: no samples yet");
    assert_eq!(program.write(&ValidSeries::new(1).series()).status, 204);
    wait_for_ready_text("net: 0 % of the 1h of history that a first model needs");

    let mut stream = program.connect();
    for (path, status) in [("/-/healthy", 200), ("/-/ready", 503), ("/metrics", 200), ("/", 200)] {
        stream.write_all(format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).expect("sent");
        assert_eq!(Response::read_for_method(&mut stream, "HEAD").status, status, "HEAD {path}");
    }
    stream.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
    assert_eq!(Response::read(&mut stream).body, "promforest is healthy\n", "no body was sent before");
    for path in ["/nowhere", "/api/v1/write/", "/api/v1", "/-/", "/metrics/x"] {
        let answer = program.get(path);
        assert_eq!((answer.status, answer.only_line()), (404, "not found"), "{path}");
    }
    let posted = program.request("POST /-/healthy HTTP/1.1\r\nContent-Length: 0", b"");
    assert_eq!((posted.status, &*posted.headers["allow"]), (405, "GET, HEAD"));
    assert!(program.get("/").body.contains("<a href=\"metrics\">"));
}

#[test]
fn every_metric_parses_and_has_help() {
    use prometheus_parse::{LineInfo, Scrape};
    let program = Program::start();
    // So that every kind of label is there.
    assert_eq!(program.write(&series("x", &[(now_ms(), 1.0), (7, 1.0)])).status, 400);
    let metadata = [ValidSeries::new(1).series(), field(3, b"")].concat();
    assert_eq!(program.write(&metadata).status, 204);
    thread::sleep(Duration::from_millis(1500));
    let page = program.get("/metrics");
    assert_eq!(page.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(page.body.ends_with("# EOF\n"));
    for line in page.body.lines().filter(|line| *line != "# EOF") {
        assert!(!matches!(LineInfo::parse(line), LineInfo::Ignored | LineInfo::Empty), "{line}");
    }
    let scrape = Scrape::parse(page.body.lines().map(|line| Ok(line.to_string()))).expect("a page");
    let own_metrics: Vec<&str> = scrape
        .samples
        .iter()
        .map(|sample| &*sample.metric)
        .filter(|name| name.starts_with("promforest_"))
        .collect();
    assert!(own_metrics.len() > 20, "{own_metrics:?}");
    for name in &own_metrics {
        let family = ["_total", "_bucket", "_sum", "_count", "_info"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix).filter(|stem| scrape.docs.contains_key(*stem)))
            .unwrap_or(name);
        assert!(scrape.docs.get(family).is_some_and(|help| help.len() > 5), "{name} has no HELP");
    }
    for name in [
        "promforest_build_info",
        "promforest_config_last_reload_successful",
        "promforest_ingest_requests_total",
        "promforest_ingest_samples_dropped_total",
        "promforest_training_progress_ratio",
        "promforest_remote_write_samples_failed_total",
    ] {
        assert!(own_metrics.contains(&name), "{name} is missing: {own_metrics:?}");
    }
    assert!(page.body.contains("process_resident_memory_bytes "));
    assert!(program.counts().value("samples_dropped_total{reason=\"invalid_timestamp\"}") >= 1.0);
}

#[test]
fn f27_f28_shuts_down_gracefully_on_a_signal() {
    for signal in ["TERM", "INT"] {
        let mut program = Program::start();
        assert_eq!(program.write(&ValidSeries::new(1).series()).status, 204);
        // A connection that is kept alive does not hold it up.
        let mut idle = program.connect();
        idle.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
        assert_eq!(Response::read(&mut idle).status, 200);
        let started = Instant::now();
        program.signal(signal);
        let status = program.wait();
        assert_eq!(status.code(), Some(0), "SIG{signal}");
        assert!(started.elapsed() < Duration::from_secs(1), "SIG{signal}: {:?}", started.elapsed());
        assert!(TcpStream::connect(program.address).is_err());
    }
}

#[test]
fn f27_a_request_under_way_is_answered_before_the_end() {
    let mut program = Program::start();
    let body = snappy::compress(&ValidSeries::new(1).series());
    let mut stream = program.connect();
    let head = post_head(&[("Expect", "100-continue")], body.len());
    stream.write_all(format!("{head}\r\nHost: a\r\n\r\n").as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 100);
    program.signal("TERM");
    thread::sleep(Duration::from_millis(300));
    stream.write_all(&body).expect("the connection is still there");
    assert_eq!(Response::read(&mut stream).status, 204);
    assert_eq!(program.wait().code(), Some(0));
}

#[test]
fn f25_an_address_in_use_is_one_clear_line() {
    let program = Program::start();
    let port = program.address.port();
    for address in [program.address.to_string(), format!(":{port}")] {
        let second = Command::new(env!("CARGO_BIN_EXE_promforest"))
            .args(["--web.listen-address", &address])
            .output()
            .expect("it runs");
        assert_eq!(second.status.code(), Some(1));
        let text = String::from_utf8(second.stderr).expect("UTF-8");
        assert_eq!(
            text,
            format!("promforest: cannot listen on {address}: Address already in use (os error 98)\n")
        );
        assert!(second.stdout.is_empty());
    }
    assert_eq!(program.get("/-/healthy").status, 200, "the first one goes on");
}

#[test]
fn an_invalid_address_is_one_clear_line() {
    for address in [":99999", ":http", "9599"] {
        let output = Command::new(env!("CARGO_BIN_EXE_promforest"))
            .args(["--web.listen-address", address])
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(text.starts_with(&format!("promforest: cannot listen on {address}: ")), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
