//! Remote write into the real program: real bytes over TCP, valid and invalid.
//!
//! A request that is rejected as a whole leaves nothing behind; one that is rejected in part leaves its valid part.
//! Both show on `/metrics`: a sample that is sent again is a duplicate if it was stored before, and not one otherwise.

#[path = "../support/mod.rs"]
mod support;

mod connections;
mod encode;
mod headers;
mod histograms;
mod labels;
mod process;
mod protobuf;
mod snappy;
mod v2;
mod values;

use encode::series;
use promforest::prom::wire;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::time::Duration;
use support::http::Response;
use support::now_ms;
use support::sidecar::Sidecar;

/// Long enough for every step, on a busy machine.
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

/// A sidecar that only receives.
struct Receiver(Sidecar);

impl Deref for Receiver {
    type Target = Sidecar;

    fn deref(&self) -> &Sidecar {
        &self.0
    }
}

impl DerefMut for Receiver {
    fn deref_mut(&mut self) -> &mut Sidecar {
        &mut self.0
    }
}

impl Receiver {
    fn start() -> Self {
        Self::with_config(CONFIG)
    }

    fn with_config(config: &str) -> Self {
        Self(Sidecar::start(&[("promforest.yml", config)]))
    }

    /// One request on a connection of its own. The server may close the connection before the end of the body.
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
            &wire::snappy::compress(message),
        )
    }

    /// The same for version 2.0.
    fn write_v2(&self, message: &[u8]) -> Response {
        self.post(&[("Content-Type", V2), ("Content-Encoding", "snappy")], &wire::snappy::compress(message))
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
}

fn post_head(headers: &[(&str, &str)], length: usize) -> String {
    let lines: String = headers.iter().map(|(name, value)| format!("\r\n{name}: {value}")).collect();
    format!("POST /api/v1/write HTTP/1.1\r\nContent-Length: {length}{lines}")
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

    /// Sends it alone; true if it was stored before.
    fn is_duplicate(&self, receiver: &Receiver) -> bool {
        let before = receiver.counts();
        assert_eq!(receiver.write(&self.series()).status, 204);
        let after = receiver.counts();
        assert_eq!(after.received() - before.received(), 1.0);
        after.dropped("duplicate") > before.dropped("duplicate")
    }
}

/// Posts a request that must be rejected as a whole.
#[track_caller]
fn assert_rejected(
    receiver: &Receiver,
    what: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    status: u16,
    text: &str,
) {
    let before = receiver.counts();
    let answer = receiver.post(headers, body);
    let after = receiver.counts();
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    assert_eq!(answer.only_line(), text, "{what}");
    assert_eq!(after.responses(status) - before.responses(status), 1.0, "{what}");
    assert_eq!(after.received(), before.received(), "{what}");
}

/// Writes a message that must be rejected as a whole, with a good series before and after.
#[track_caller]
fn assert_malformed(receiver: &Receiver, number: usize, what: &str, message: &[u8], text: &str) {
    let good = ValidSeries::new(number);
    let body = wire::snappy::compress(&[good.series(), message.to_vec(), good.series()].concat());
    assert_rejected(receiver, what, &[], &body, 400, &format!("the body is not a write request: {text}"));
    assert!(!good.is_duplicate(receiver), "{what}: nothing of the request is used");
}

/// Writes series of which `n` samples must be rejected, and a valid one that must be stored.
#[track_caller]
fn assert_partly_rejected(
    receiver: &Receiver,
    number: usize,
    what: &str,
    bad: &[u8],
    reason: &str,
    n: usize,
    text: &str,
) {
    let good = ValidSeries::new(number);
    let before = receiver.counts();
    let answer = receiver.write(&[bad, &good.series()].concat());
    let after = receiver.counts();
    assert_eq!(answer.status, 400, "{what}: {answer:?}");
    assert_eq!(answer.only_line(), partial_rejection_text(n, reason, text), "{what}");
    assert_eq!(after.rejected(reason) - before.rejected(reason), n as f64, "{what}");
    assert_eq!(after.responses(400) - before.responses(400), 1.0, "{what}");
    assert_eq!(after.dropped(reason) - before.dropped(reason), n as f64, "{what}");
    assert_eq!(after.received() - before.received(), n as f64 + 1.0, "{what}");
    assert_eq!(after.stored() - before.stored(), 1.0, "{what}");
    assert!(good.is_duplicate(receiver), "{what}: the good series is used");
}

fn partial_rejection_text(n: usize, reason: &str, example: &str) -> String {
    format!("the valid part was accepted, rejected: {n} {reason}; for example: {example}")
}

/// Writes a message that must be accepted; returns the increases of the counters: stored, duplicate, conflict.
#[track_caller]
fn write_accepted(receiver: &Receiver, what: &str, message: &[u8]) -> (f64, f64, f64) {
    let before = receiver.counts();
    let answer = receiver.write(message);
    let after = receiver.counts();
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
