//! The sender against an endpoint with scripted responses, over real connections.

mod batches;
mod rejections;
mod retries;
mod v2;

use super::*;
use crate::http::response::Response as Reply;
use crate::http::server::Server;
use crate::http::{Url, client};
use crate::prom::wire::snappy;
use crate::prom::{Labels, METRIC_NAME, Sample, proto};
use crate::remote_write::CursorPosition;
use crate::time;
use http_body_util::BodyExt;
use hyper::header::RETRY_AFTER;
use prost::Message as _;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard};
use std::task::Poll;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The value of samples that the endpoints of these tests reject.
const BAD: f64 = -1.0;

/// Long enough for every expected event on a busy machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

fn now_ms() -> i64 {
    time::now_ms()
}

/// A request as the endpoint received it.
#[derive(Clone, Debug)]
struct ReceivedRequest {
    received_at: Instant,
    headers: HeaderMap,
    body: Bytes,
    series: Vec<TimeSeries>,
    status: StatusCode,
}

impl ReceivedRequest {
    fn n_samples(&self) -> usize {
        self.series.iter().map(|series| series.samples.len()).sum()
    }

    fn version(&self) -> &str {
        self.headers["x-prometheus-remote-write-version"].to_str().expect("ASCII")
    }

    fn retry_attempt(&self) -> Option<&str> {
        self.headers.get("retry-attempt").map(|value| value.to_str().expect("ASCII"))
    }
}

/// The series of a body of either message.
fn decode(headers: &HeaderMap, body: &[u8]) -> Vec<TimeSeries> {
    let mut buffer = Vec::new();
    let message = snappy::decompress(body, 32 << 20, &mut buffer).expect("snappy");
    let series = |labels: Vec<(String, String)>, samples: Vec<(i64, f64)>| {
        let mut sorted = labels.clone();
        sorted.sort();
        assert_eq!(labels, sorted, "labels leave sorted by name");
        let sample = |(timestamp_ms, value)| Sample { timestamp_ms, value };
        let samples = samples.into_iter().map(sample).collect();
        TimeSeries { labels: Labels::new(labels).expect("valid labels"), samples }
    };
    if headers["x-prometheus-remote-write-version"] == "2.0.0" {
        let proto::v2::Request { symbols, timeseries } =
            proto::v2::Request::decode(message).expect("a Request of 2.0");
        let text = |i: u32| symbols[i as usize].clone();
        let to_series = |one: proto::v2::TimeSeries| {
            let labels = one.labels_refs.chunks(2).map(|pair| (text(pair[0]), text(pair[1]))).collect();
            series(labels, one.samples.iter().map(|s| (s.timestamp, s.value)).collect())
        };
        return timeseries.into_iter().map(to_series).collect();
    }
    let request = proto::WriteRequest::decode(message).expect("a WriteRequest");
    let to_series = |one: proto::TimeSeries| {
        let labels = one.labels.into_iter().map(|label| (label.name, label.value)).collect();
        series(labels, one.samples.iter().map(|s| (s.timestamp, s.value)).collect())
    };
    request.timeseries.into_iter().map(to_series).collect()
}

/// An endpoint and the requests that it received.
struct FakeReceiver {
    url: Url,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
    _stop: watch::Sender<bool>,
}

fn reply(status: u16) -> Reply {
    let mut reply = Reply::new("because\nof reasons".into());
    *reply.status_mut() = StatusCode::from_u16(status).expect("a status");
    reply
}

fn has_bad_sample(series: &[TimeSeries]) -> bool {
    series.iter().any(|series| series.samples.iter().any(|sample| sample.value == BAD))
}

impl FakeReceiver {
    /// `script` gets the number of the request, from 0, and its series.
    async fn start(script: impl Fn(usize, &[TimeSeries]) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::on_listener(listener, script)
    }

    fn on_listener(
        listener: TcpListener,
        script: impl Fn(usize, &[TimeSeries]) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("bound");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(script);
        let (stop, stopped) = watch::channel(false);
        let log = requests.clone();
        let route = move |request: hyper::Request<crate::http::server::RequestBody>| {
            let (log, script) = (log.clone(), script.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.expect("a whole body").to_bytes();
                let series = decode(&head.headers, &body);
                let mut log: MutexGuard<'_, Vec<ReceivedRequest>> = log.lock().expect("no panic");
                let reply = script(log.len(), &series);
                let status = reply.status();
                log.push(ReceivedRequest {
                    received_at: Instant::now(),
                    headers: head.headers,
                    body,
                    series,
                    status,
                });
                reply
            }
        };
        tokio::spawn(Server::default().serve(listener, route, stopped));
        let url = format!("http://{address}/api/v1/write").parse().expect("a URL");
        Self { url, requests, _stop: stop }
    }

    fn requests(&self) -> Vec<ReceivedRequest> {
        self.requests.lock().expect("no panic").clone()
    }

    /// The samples that were accepted, in the order of their arrival.
    fn written(&self) -> Vec<(String, i64, f64)> {
        let accepted = self.requests().into_iter().filter(|request| request.status.is_success());
        let series = accepted.flat_map(|request| request.series);
        let pairs = series.flat_map(|series| {
            let name = series.labels.to_string();
            series.samples.into_iter().map(move |sample| (name.clone(), sample.timestamp_ms, sample.value))
        });
        pairs.collect()
    }
}

/// Rows of some series and a cursor.
#[derive(Clone, Default)]
struct FakeBatchSource(Arc<Mutex<FakeSourceState>>);

#[derive(Default)]
struct FakeSourceState {
    series: Vec<Labels>,
    /// Timestamp, and a value for each series.
    rows: Vec<(i64, Vec<f64>)>,
    cursor_ms: i64,
    /// All positions of the cursor.
    advances: Vec<i64>,
}

impl FakeBatchSource {
    fn new(n_series: usize, rows: Vec<(i64, Vec<f64>)>) -> Self {
        let labels = |i: usize| {
            Labels::new([("zone", "b"), ("instance", &*format!("host{i}")), (METRIC_NAME, "node_anomaly")])
                .expect("valid")
        };
        let state = FakeSourceState {
            series: (0..n_series).map(labels).collect(),
            rows,
            ..FakeSourceState::default()
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, FakeSourceState> {
        self.0.lock().expect("no panic")
    }

    /// Adds a row of one series, a second after the last.
    fn push(&self, value: f64) {
        let mut state = self.state();
        let timestamp_ms = state.rows.last().expect("at least one row").0 + 1000;
        state.rows.push((timestamp_ms, vec![value]));
    }

    /// All samples, in order of time.
    fn all(&self) -> Vec<(String, i64, f64)> {
        let state = self.state();
        let rows = state.rows.iter().flat_map(|(timestamp_ms, values)| {
            let cells = state.series.iter().zip(values);
            cells.map(|(labels, value)| (labels.to_string(), *timestamp_ms, *value))
        });
        rows.collect()
    }
}

impl BatchSource for FakeBatchSource {
    async fn next_batch(&self, max_samples: usize) -> Option<Batch> {
        let state = self.state();
        let unsent: Vec<_> = state
            .rows
            .iter()
            .filter(|(timestamp_ms, _)| *timestamp_ms > state.cursor_ms)
            .take(max_samples / state.series.len())
            .cloned()
            .collect();
        let &(timestamp_ms, _) = unsent.last()?;
        let series = state.series.iter().enumerate().map(|(i, labels)| TimeSeries {
            labels: labels.clone(),
            samples: unsent
                .iter()
                .map(|(timestamp_ms, values)| Sample { timestamp_ms: *timestamp_ms, value: values[i] })
                .collect(),
        });
        let position = CursorPosition { group: 0, timestamp_ms, received_at: Instant::now() };
        Some(Batch { series: series.collect(), positions: vec![position] })
    }

    async fn advance(&self, positions: Vec<CursorPosition>) {
        let mut state = self.state();
        state.cursor_ms = positions[0].timestamp_ms;
        state.advances.push(positions[0].timestamp_ms);
    }
}

/// Rows a second apart, the last one now. `value` gets the row and the series.
fn rows(n_rows: usize, n_series: usize, value: impl Fn(usize, usize) -> f64) -> FakeBatchSource {
    let now_ms = now_ms();
    let row = |i: usize| {
        let timestamp_ms = now_ms - 1000 * (n_rows - 1 - i) as i64;
        (timestamp_ms, (0..n_series).map(|j| value(i, j)).collect())
    };
    FakeBatchSource::new(n_series, (0..n_rows).map(row).collect())
}

fn config(url: Url) -> Config {
    Config {
        url,
        batch_send_deadline: Duration::from_millis(1),
        min_backoff: Duration::from_millis(10),
        max_backoff: Duration::from_millis(40),
        ..Config::default()
    }
}

/// A running sender.
struct RunningSender {
    metrics: Metrics,
    wake: Arc<Notify>,
    closing: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl RunningSender {
    fn start(rows: &FakeBatchSource, config: Config) -> Self {
        Self::with_client(rows, config, Client::default())
    }

    fn with_client(rows: &FakeBatchSource, config: Config, client: Client) -> Self {
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        let wake = Arc::new(Notify::new());
        let (closing, closed) = watch::channel(false);
        let sender = Sender {
            tenant: None,
            source: rows.clone(),
            config,
            client,
            metrics: metrics.clone(),
            wake: wake.clone(),
            closing: closed,
        };
        Self { metrics, wake, closing, task: tokio::spawn(sender.run()) }
    }

    fn failed(&self, reason: FailureReason) -> u64 {
        self.metrics.failed.get_or_create(&reason.label()).get()
    }

    /// Written, rejected, too old.
    fn counts(&self) -> (u64, u64, u64) {
        (self.metrics.written.get(), self.failed(FailureReason::Rejected), self.failed(FailureReason::TooOld))
    }

    /// Waits until the sender has sent everything.
    async fn finish(&mut self) {
        self.closing.send_replace(true);
        tokio::time::timeout(TEST_TIMEOUT, &mut self.task).await.expect("the task ends").expect("no panic");
    }
}

async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "timeout: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn sorted(mut samples: Vec<(String, i64, f64)>) -> Vec<(String, i64, f64)> {
    samples.sort_by(|a, b| a.partial_cmp(b).expect("no NaN"));
    samples
}
