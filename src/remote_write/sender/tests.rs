//! The sender against an endpoint with scripted responses, over real connections.

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
            .collect();
        let timestamp_ms = unsent.last()?.0;
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

#[tokio::test]
async fn batches_are_whole_rows_of_at_most_max_samples() {
    let fake = FakeReceiver::start(|_, _| reply(204)).await;
    let rows = rows(25, 3, |i, j| (100 * i + j) as f64);
    let mut sender =
        RunningSender::start(&rows, Config { max_samples_per_send: 10, ..config(fake.url.clone()) });
    sender.finish().await;
    let sizes: Vec<usize> = fake.requests().iter().map(ReceivedRequest::n_samples).collect();
    assert_eq!(sizes, [9, 9, 9, 9, 9, 9, 9, 9, 3]);
    let metadata = |request: &ReceivedRequest| {
        let mut buffer = Vec::new();
        let message = snappy::decompress(&request.body, 1 << 20, &mut buffer).expect("snappy");
        proto::WriteRequest::decode(message).expect("a WriteRequest").metadata.len()
    };
    let n_metadata: Vec<usize> = fake.requests().iter().map(metadata).collect();
    assert_eq!(n_metadata, [1, 0, 0, 0, 0, 0, 0, 0, 0], "type and help are included once a minute");
    assert_eq!(sorted(fake.written()), sorted(rows.all()));
    assert_eq!(sender.counts(), (75, 0, 0));
}

#[tokio::test]
async fn requests_are_remote_write_1_0() {
    let fake = FakeReceiver::start(|_, _| reply(200)).await;
    let values = [f64::INFINITY, 5e-324, 1.5, f64::from_bits(crate::prom::STALE_BITS)];
    let rows = rows(4, 1, |i, _| values[i]);
    RunningSender::start(&rows, config(fake.url.clone())).finish().await;
    let request = &fake.requests()[0];
    for (name, value) in [
        ("content-type", "application/x-protobuf"),
        ("content-encoding", "snappy"),
        ("x-prometheus-remote-write-version", "0.1.0"),
        ("user-agent", client::AGENT),
    ] {
        assert_eq!(request.headers[name], value, "{name}");
    }
    assert_eq!(request.retry_attempt(), None);
    let labels: Vec<(&str, &str)> = request.series[0].labels.iter().collect();
    assert_eq!(labels, [("__name__", "node_anomaly"), ("instance", "host0"), ("zone", "b")]);
    let bits: Vec<u64> = request.series[0].samples.iter().map(|sample| sample.value.to_bits()).collect();
    assert_eq!(bits, values.map(f64::to_bits), "values leave bit for bit");
    let times: Vec<i64> = request.series[0].samples.iter().map(|sample| sample.timestamp_ms).collect();
    assert!(times.is_sorted());
}

#[tokio::test]
async fn a_failing_endpoint_gets_the_same_bytes_again_after_doubling_pauses() {
    let statuses = [500, 500, 502, 429, 408, 204];
    let fake = FakeReceiver::start(move |i, _| reply(statuses.get(i).copied().unwrap_or(204))).await;
    let rows = rows(1, 2, |_, j| j as f64);
    let mut sender = RunningSender::start(&rows, config(fake.url.clone()));
    sender.finish().await;
    let requests = fake.requests();
    assert_eq!(requests.len(), statuses.len());
    assert!(requests.iter().all(|request| request.body == requests[0].body));
    let attempts: Vec<Option<&str>> = requests.iter().map(ReceivedRequest::retry_attempt).collect();
    assert_eq!(attempts, [None, Some("1"), Some("2"), Some("3"), Some("4"), Some("5")]);
    // 10 ms, doubled up to 40 ms.
    for (pair, least) in requests.windows(2).zip([10, 20, 40, 40, 40]) {
        let pause = pair[1].received_at - pair[0].received_at;
        assert!(pause >= Duration::from_millis(least), "{pause:?} is below {least} ms");
        assert!(pause < Duration::from_secs(5), "{pause:?}");
    }
    assert_eq!(sender.metrics.retries.get(), 5);
    assert_eq!(sender.counts(), (2, 0, 0));
}

fn with_retry_after(status: u16, value: &'static str) -> Reply {
    let mut reply = reply(status);
    reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(value));
    reply
}

#[tokio::test]
async fn f12_the_sender_waits_for_retry_after() {
    for status in [429, 503] {
        let script =
            move |i, _: &[TimeSeries]| if i == 0 { with_retry_after(status, "1") } else { reply(204) };
        let fake = FakeReceiver::start(script).await;
        let rows = rows(4, 1, |i, _| i as f64);
        let config = Config { max_samples_per_send: 2, ..config(fake.url.clone()) };
        let mut sender = RunningSender::start(&rows, config);
        sender.finish().await;
        let requests = fake.requests();
        let pause = requests[1].received_at - requests[0].received_at;
        assert!(pause >= Duration::from_secs(1), "{status}: {pause:?}");
        assert_eq!(fake.written(), rows.all(), "{status}: in their order");
        assert_eq!(sender.counts(), (4, 0, 0));
    }
}

#[tokio::test]
async fn b80_an_unusable_retry_after_leaves_the_default_pause() {
    let values = ["0", "-5", "1.5", "Wed, 21 Oct 2015 07:28:00 GMT", "soon"];
    let fake =
        FakeReceiver::start(move |i, _| values.get(i).map_or(reply(204), |v| with_retry_after(503, v))).await;
    let mut sender = RunningSender::start(&rows(1, 1, |_, _| 1.0), config(fake.url.clone()));
    sender.finish().await;
    let requests = fake.requests();
    assert_eq!(requests.len(), values.len() + 1);
    for ((pair, value), least) in requests.windows(2).zip(values).zip([10, 20, 40, 40, 40]) {
        let pause = pair[1].received_at - pair[0].received_at;
        assert!(pause >= Duration::from_millis(least), "{value:?}: {pause:?} is below {least} ms");
    }
}

#[tokio::test]
async fn f13_one_bad_series_of_a_batch_loses_only_its_own_sample() {
    for bad in 0..7 {
        let fake =
            FakeReceiver::start(|_, series| reply(if has_bad_sample(series) { 400 } else { 204 })).await;
        let rows = rows(1, 7, |_, j| if j == bad { BAD } else { j as f64 });
        let mut sender = RunningSender::start(&rows, config(fake.url.clone()));
        sender.finish().await;
        let good: Vec<_> = rows.all().into_iter().filter(|(_, _, value)| *value != BAD).collect();
        assert_eq!(sorted(fake.written()), sorted(good), "the others, each once");
        assert_eq!(sender.counts(), (6, 1, 0));
        assert_eq!(sender.metrics.retries.get(), 0, "a part is another request");
        assert!(fake.requests().len() <= 7, "two requests a halving: {}", fake.requests().len());
    }
}

#[tokio::test]
async fn one_bad_sample_of_a_series_is_the_only_one_lost_and_order_is_kept() {
    let fake = FakeReceiver::start(|_, series| reply(if has_bad_sample(series) { 400 } else { 204 })).await;
    let rows = rows(100, 1, |i, _| if i == 61 { BAD } else { i as f64 });
    let mut sender = RunningSender::start(&rows, config(fake.url.clone()));
    sender.finish().await;
    let good: Vec<_> = rows.all().into_iter().filter(|(_, _, value)| *value != BAD).collect();
    assert_eq!(fake.written(), good, "the others, each once, the older first");
    assert_eq!(sender.counts(), (99, 1, 0));
}

#[tokio::test]
async fn a_series_with_only_rejected_samples_does_not_affect_the_others() {
    let fake = FakeReceiver::start(|_, series| reply(if has_bad_sample(series) { 422 } else { 204 })).await;
    let rows = rows(8, 4, |_, j| if j == 2 { BAD } else { j as f64 });
    let mut sender = RunningSender::start(&rows, config(fake.url.clone()));
    sender.finish().await;
    assert_eq!(sender.counts(), (24, 8, 0));
    assert_eq!(fake.written().len(), 24);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_sent_in_parts() {
    let too_large =
        |series: &[TimeSeries]| series.iter().map(|series| series.samples.len()).sum::<usize>() > 5;
    let fake = FakeReceiver::start(move |_, series| reply(if too_large(series) { 413 } else { 204 })).await;
    let rows = rows(8, 4, |i, j| (10 * i + j) as f64);
    let mut sender = RunningSender::start(&rows, config(fake.url.clone()));
    sender.finish().await;
    assert_eq!(sorted(fake.written()), sorted(rows.all()));
    assert_eq!(sender.counts(), (32, 0, 0));
}

/// Later requests stay below the size of the rejected one.
#[tokio::test]
async fn after_413_requests_are_smaller() {
    let size = |series: &[TimeSeries]| series.iter().map(|series| series.samples.len()).sum::<usize>();
    let fake = FakeReceiver::start(move |_, series| reply(if size(series) > 60 { 413 } else { 204 })).await;
    let rows = rows(100, 4, |i, j| (10 * i + j) as f64);
    let config = Config { max_samples_per_send: 200, ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    sender.finish().await;
    assert_eq!(sorted(fake.written()), sorted(rows.all()));
    let rejected = fake.requests().iter().filter(|request| request.status == 413).count();
    assert_eq!(rejected, 3, "200, and its halves, once");
    assert_eq!(sender.counts(), (400, 0, 0));
}

#[tokio::test]
async fn a_rejection_that_is_not_about_the_data_causes_no_further_requests() {
    for status in [301, 405, 415, 429] {
        let fake = FakeReceiver::start(move |i, _| reply(if i == 0 { status } else { 204 })).await;
        let rows = rows(4, 2, |i, j| (10 * i + j) as f64);
        let config = Config { max_samples_per_send: 4, retry_on_http_429: false, ..config(fake.url.clone()) };
        let mut sender = RunningSender::start(&rows, config);
        sender.finish().await;
        assert_eq!(fake.requests().len(), 2, "{status}: one request for each batch");
        assert_eq!(sender.counts(), (4, 4, 0), "{status}");
    }
}

/// The number of requests does not grow with the number of samples.
#[tokio::test]
async fn an_endpoint_that_rejects_everything_gets_few_requests() {
    let fake = FakeReceiver::start(|_, _| reply(400)).await;
    let rows = rows(400, 10, |i, j| (10 * i + j) as f64);
    let config = Config { max_samples_per_send: 100, ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    sender.finish().await;
    assert_eq!(sender.counts(), (0, 4000, 0));
    // 40 batches of 100 samples: 99 splits of the first one, 8 of the next two, then one each.
    assert_eq!(fake.requests().len(), 199 + 2 * 17 + 37 * 3);
}

/// Between two batches of which nothing was accepted there are pauses that double; scores accumulate meanwhile.
#[tokio::test]
async fn rejected_batches_are_paced() {
    let fake = FakeReceiver::start(|_, _| reply(400)).await;
    let rows = rows(5, 1, |i, _| i as f64);
    let config = Config { max_samples_per_send: 1, ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    sender.wake.notify_one();
    wait_until("five rejections", || fake.requests().len() == 5).await;
    let times: Vec<Instant> = fake.requests().iter().map(|request| request.received_at).collect();
    for (pair, least) in times.windows(2).zip([10, 20, 40, 40]) {
        let pause = pair[1].duration_since(pair[0]);
        assert!(pause >= Duration::from_millis(least), "{pause:?}, must be at least {least} ms");
    }
    sender.finish().await;
    assert_eq!(sender.counts(), (0, 5, 0));
}

/// After an endpoint has rejected everything, it accepts all but one series.
#[tokio::test]
async fn a_bad_series_is_found_after_batches_of_which_nothing_was_accepted() {
    let fake =
        FakeReceiver::start(|i, series| reply(if i < 20 || has_bad_sample(series) { 400 } else { 204 }))
            .await;
    let rows = rows(100, 4, |i, j| if j == 2 { BAD } else { (10 * i + j) as f64 });
    let config = Config { max_samples_per_send: 4, ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    sender.finish().await;
    let (written, rejected, _) = sender.counts();
    assert!(written >= 3 * 80 && written + rejected == 400, "{written} {rejected}");
}

/// After a batch of which nothing was accepted, only the older rows of the next one may be bad.
#[tokio::test]
async fn an_endpoint_that_accepts_again_loses_only_what_is_bad() {
    let fake = FakeReceiver::start(|_, series| reply(if has_bad_sample(series) { 409 } else { 204 })).await;
    let rows = rows(64, 10, |i, j| if i < 35 { BAD } else { (10 * i + j) as f64 });
    let config = Config { max_samples_per_send: 320, ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    sender.finish().await;
    assert_eq!(sender.counts(), (290, 350, 0));
}

#[tokio::test]
async fn a_misconfigured_endpoint_is_retried() {
    for status in [401, 403, 404] {
        let fake = FakeReceiver::start(move |i, _| reply(if i < 3 { status } else { 204 })).await;
        let rows = rows(2, 2, |i, j| (10 * i + j) as f64);
        let mut sender = RunningSender::start(&rows, config(fake.url.clone()));
        sender.finish().await;
        assert_eq!(fake.requests().len(), 4, "{status}");
        assert_eq!(sender.counts(), (4, 0, 0), "{status}");
        assert_eq!(sorted(fake.written()), sorted(rows.all()));
    }
}

#[tokio::test]
async fn f8_an_endpoint_that_starts_late_gets_everything() {
    // No other test uses this address, so that the port stays free.
    let listener = TcpListener::bind("127.0.0.9:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let rows = rows(3, 2, |i, j| (10 * i + j) as f64);
    let url = format!("http://{address}/api/v1/write").parse().expect("a URL");
    let mut sender = RunningSender::start(&rows, config(url));
    sender.wake.notify_one();
    wait_until("three refused connections", || sender.metrics.retries.get() >= 3).await;
    assert!(rows.state().advances.is_empty());
    let fake = FakeReceiver::on_listener(
        TcpListener::bind(address).await.expect("the port is still free"),
        |_, _| reply(204),
    );
    sender.finish().await;
    assert_eq!(sorted(fake.written()), sorted(rows.all()));
    assert_eq!(sender.counts(), (6, 0, 0));
}

#[tokio::test]
async fn b79_a_success_with_a_large_body_is_a_success() {
    let large = || {
        let mut response = reply(200);
        *response.body_mut() = vec![b'x'; 1 << 20].into();
        response
    };
    let fake = FakeReceiver::start(move |_, _| large()).await;
    let rows = rows(3, 1, |_, _| 1.0);
    let mut sender = RunningSender::start(&rows, config(fake.url.clone()));
    sender.wake.notify_one();
    wait_until("they are sent", || !fake.requests().is_empty()).await;
    sender.finish().await;
    assert_eq!((fake.requests().len(), sender.counts()), (1, (3, 0, 0)));
}

#[tokio::test]
async fn b81_f41_a_truncated_or_missing_response_is_a_failure() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url: Url = format!("http://{}/", listener.local_addr().expect("bound")).parse().expect("a URL");
    let broken = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_exact(&mut [0; 64]).await.expect("a request");
        stream.write_all(b"HTTP/1.1 204").await.expect("the peer accepts the data");
        drop(stream);
        let (silent, _) = listener.accept().await.expect("a second connection");
        (listener, silent)
    });
    let rows = rows(1, 1, |_, _| 1.0);
    let mut sender =
        RunningSender::start(&rows, Config { remote_timeout: Duration::from_millis(300), ..config(url) });
    sender.wake.notify_one();
    let (listener, silent) =
        tokio::time::timeout(TEST_TIMEOUT, broken).await.expect("the task ends").expect("no panic");
    wait_until("the silent one times out", || sender.metrics.retries.get() >= 2).await;
    assert_eq!(sender.counts(), (0, 0, 0));
    let fake = FakeReceiver::on_listener(listener, |_, _| reply(204));
    sender.finish().await;
    drop(silent);
    assert_eq!(fake.written(), rows.all());
    assert_eq!(sender.counts(), (1, 0, 0));
}

#[tokio::test]
async fn f11_the_age_limit_ends_the_retries_of_a_batch() {
    let fake = FakeReceiver::start(|_, series| reply(if has_bad_sample(series) { 500 } else { 204 })).await;
    let rows = rows(1, 2, |_, _| BAD);
    let config = Config { sample_age_limit: Duration::from_millis(500), ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    sender.wake.notify_one();
    wait_until("the batch is tried", || fake.requests().len() >= 3).await;
    wait_until("it is given up", || sender.failed(FailureReason::TooOld) == 2).await;
    wait_until("the cursor moves", || rows.state().advances.len() == 1).await;
    let later_ms = now_ms() + 1000;
    rows.state().rows.push((later_ms, vec![1.0, 2.0]));
    sender.finish().await;
    assert_eq!(sender.counts(), (2, 0, 2));
    assert!(fake.written().iter().all(|(_, timestamp_ms, _)| *timestamp_ms == later_ms));
}

#[tokio::test]
async fn f9_samples_that_are_too_old_are_counted_and_not_sent() {
    let fake = FakeReceiver::start(|_, _| reply(204)).await;
    let rows = rows(100, 1, |i, _| i as f64);
    let config = Config { sample_age_limit: Duration::from_millis(49_500), ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    sender.finish().await;
    let (written, rejected, too_old) = sender.counts();
    assert_eq!((written + too_old, rejected), (100, 0));
    // Fifty rows are younger, fewer if the test was held up.
    assert!((20..=50).contains(&written), "{written}");
    assert_eq!(fake.written().len() as u64, written);
    assert_eq!(fake.written().last(), rows.all().last());
}

#[tokio::test]
async fn the_cursor_advances_when_a_batch_is_finished_and_not_before() {
    let fake = FakeReceiver::start(|i, _| reply(if i < 2 { 503 } else { 204 })).await;
    let rows = rows(4, 1, |i, _| i as f64);
    let times: Vec<i64> = rows.state().rows.iter().map(|(timestamp_ms, _)| *timestamp_ms).collect();
    let config = Config {
        max_samples_per_send: 2,
        min_backoff: Duration::from_millis(150),
        max_backoff: Duration::from_millis(150),
        ..config(fake.url.clone())
    };
    let mut sender = RunningSender::start(&rows, config);
    sender.wake.notify_one();
    wait_until("a failure", || fake.requests().len() == 1).await;
    assert!(rows.state().advances.is_empty());
    wait_until("another failure", || fake.requests().len() == 2).await;
    assert!(rows.state().advances.is_empty());
    wait_until("all is sent", || rows.state().advances.len() == 2).await;
    assert_eq!(rows.state().advances, [times[1], times[3]]);
    assert_eq!(fake.written(), rows.all());
    sender.finish().await;
    assert_eq!(fake.requests().len(), 4, "nothing is sent twice");
}

#[tokio::test]
async fn nothing_is_sent_before_the_wake_up_and_closing_flushes() {
    let fake = FakeReceiver::start(|_, _| reply(204)).await;
    let rows = rows(10, 2, |i, j| (10 * i + j) as f64);
    let deadline = Duration::from_secs(3600);
    let mut sender =
        RunningSender::start(&rows, Config { batch_send_deadline: deadline, ..config(fake.url.clone()) });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(fake.requests().is_empty());
    sender.finish().await;
    assert_eq!(sorted(fake.written()), sorted(rows.all()));
}

#[tokio::test]
async fn scores_within_the_deadline_share_a_request() {
    let fake = FakeReceiver::start(|_, _| reply(204)).await;
    let rows = rows(1, 1, |_, _| 0.0);
    let config = Config { batch_send_deadline: Duration::from_millis(400), ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    for i in 1..=5 {
        sender.wake.notify_one();
        let timestamp_ms = rows.state().rows.last().expect("at least one row").0 + 1000;
        rows.state().rows.push((timestamp_ms, vec![f64::from(i)]));
        tokio::task::yield_now().await;
    }
    wait_until("they are written", || fake.written().len() == 6).await;
    assert_eq!(fake.requests().len(), 1);
    sender.finish().await;
}

#[tokio::test]
async fn a_closed_batch_source_does_not_delay_shutdown() {
    struct ClosedSource;
    impl BatchSource for ClosedSource {
        async fn next_batch(&self, _: usize) -> Option<Batch> {
            None
        }
        async fn advance(&self, _: Vec<CursorPosition>) {
            unreachable!("there was no batch");
        }
    }
    let fake = FakeReceiver::start(|_, _| reply(204)).await;
    let (closing, closed) = watch::channel(false);
    let sender = Sender {
        source: ClosedSource,
        config: config(fake.url.clone()),
        client: Client::default(),
        metrics: Metrics::new(&mut prometheus_client::registry::Registry::default()),
        wake: Arc::new(Notify::new()),
        closing: closed,
    };
    let mut run = pin!(sender.run());
    let pending = poll_fn(|context| Poll::Ready(run.as_mut().poll(context).is_pending())).await;
    assert!(pending, "it waits for a notification");
    drop(closing);
    tokio::time::timeout(TEST_TIMEOUT, run).await.expect("the task ends");
    assert!(fake.requests().is_empty());
}

#[test]
fn halving_loses_nothing() {
    let rows = rows(5, 3, |i, j| (10 * i + j) as f64);
    let series = |labels: &Labels| {
        let samples =
            rows.state().rows.iter().map(|(t, v)| Sample { timestamp_ms: *t, value: v[0] }).collect();
        TimeSeries { labels: labels.clone(), samples }
    };
    let labels = rows.state().series.clone();
    let whole: Vec<TimeSeries> = labels.iter().map(series).collect();
    let mut parts = vec![whole.clone()];
    let mut single = Vec::new();
    while let Some(part) = parts.pop() {
        match split_in_half(part.clone()) {
            Some([older, newer]) => parts.extend([newer, older]),
            None => single.extend(part),
        }
    }
    assert!(single.iter().all(|series| series.samples.len() == 1));
    let cut = whole.iter().flat_map(|series| {
        series
            .samples
            .iter()
            .map(|sample| TimeSeries { labels: series.labels.clone(), samples: vec![*sample] })
    });
    assert_eq!(single, cut.collect::<Vec<_>>());
    assert!(split_in_half(Vec::new()).is_none());
}

// ------------------------------------------------------------------------------------- remote write 2.0

fn v2(url: Url) -> Config {
    Config { protobuf_message: ProtobufMessage::V2, ..config(url) }
}

/// A response with the count of written samples.
fn reply_with_written(status: u16, samples: &str) -> Reply {
    let mut reply = reply(status);
    let name = HeaderName::from_static("x-prometheus-remote-write-samples-written");
    reply.headers_mut().insert(name, samples.parse().expect("a header"));
    reply
}

fn reply_all_written(status: u16, series: &[TimeSeries]) -> Reply {
    reply_with_written(status, &n_samples(series).to_string())
}

#[tokio::test]
async fn b78_requests_are_remote_write_2_0_when_configured() {
    for status in [200, 202, 204] {
        let fake = FakeReceiver::start(move |_, series| reply_all_written(status, series)).await;
        let values = [f64::INFINITY, 5e-324, 1.5, f64::from_bits(crate::prom::STALE_BITS)];
        let rows = rows(4, 3, |i, _| values[i]);
        let mut sender = RunningSender::start(&rows, v2(fake.url.clone()));
        sender.finish().await;
        let [request] = &fake.requests()[..] else { panic!("one request") };
        for (name, value) in [
            ("content-type", "application/x-protobuf;proto=io.prometheus.write.v2.Request"),
            ("content-encoding", "snappy"),
            ("x-prometheus-remote-write-version", "2.0.0"),
            ("user-agent", client::AGENT),
        ] {
            assert_eq!(request.headers[name], value, "{name}");
        }
        for series in &request.series {
            let bits: Vec<u64> = series.samples.iter().map(|sample| sample.value.to_bits()).collect();
            assert_eq!(bits, values.map(f64::to_bits), "values leave bit for bit");
        }
        assert_eq!(sender.counts(), (12, 0, 0), "{status}");
        assert_eq!(sender.metrics.fallbacks.get(), 0);
    }
}

/// An endpoint of 1.0 that ignores the content type finds nothing in a message of 2.0 and accepts it.
#[tokio::test]
async fn b82_b84_an_endpoint_that_does_not_support_2_0_gets_1_0_from_then_on() {
    let unaware: [fn() -> Reply; 4] =
        [|| reply(204), || reply(200), || reply_with_written(204, "0"), || reply(415)];
    for (n, first_reply) in unaware.into_iter().enumerate() {
        let fake = FakeReceiver::start(move |i, _| if i == 0 { first_reply() } else { reply(204) }).await;
        let rows = rows(6, 2, |i, j| (10 * i + j) as f64);
        let config = Config { max_samples_per_send: 4, ..v2(fake.url.clone()) };
        let mut sender = RunningSender::start(&rows, config);
        sender.finish().await;
        let requests = fake.requests();
        let versions: Vec<&str> = requests.iter().map(ReceivedRequest::version).collect();
        assert_eq!(versions, ["2.0.0", "0.1.0", "0.1.0", "0.1.0"], "{n}");
        assert_eq!(requests[0].series, requests[1].series, "{n}: the same once more");
        let in_1_0: usize = requests[1..].iter().map(ReceivedRequest::n_samples).sum();
        assert_eq!((in_1_0, sender.counts()), (12, (12, 0, 0)), "{n}");
        assert_eq!((sender.metrics.fallbacks.get(), sender.metrics.retries.get()), (1, 0), "{n}");
    }
}

#[tokio::test]
async fn b84_an_endpoint_that_rejects_both_versions_is_not_retried_forever() {
    let fake = FakeReceiver::start(|_, _| reply(415)).await;
    let mut sender = RunningSender::start(&rows(1, 2, |_, j| j as f64), v2(fake.url.clone()));
    sender.finish().await;
    assert_eq!(fake.requests().len(), 2);
    assert_eq!(sender.counts(), (0, 2, 0));
}

#[tokio::test]
async fn b83_lower_or_invalid_counts_are_losses_and_nothing_is_sent_again() {
    for (count, written) in [("5", 5), ("many", 0), ("-3", 0), ("7", 6)] {
        let fake = FakeReceiver::start(move |_, _| reply_with_written(204, count)).await;
        let mut sender = RunningSender::start(&rows(3, 2, |i, j| (10 * i + j) as f64), v2(fake.url.clone()));
        sender.finish().await;
        assert_eq!(fake.requests().len(), 1, "{count}");
        assert_eq!(sender.counts(), (written, 0, 0), "{count}");
        assert_eq!(sender.failed(FailureReason::Unconfirmed), 6 - written, "{count}");
    }
}

#[tokio::test]
async fn a_rejection_of_2_0_with_a_written_count_is_trusted() {
    let fake = FakeReceiver::start(|_, _| reply_with_written(400, "5")).await;
    let mut sender = RunningSender::start(&rows(3, 2, |i, j| (10 * i + j) as f64), v2(fake.url.clone()));
    sender.finish().await;
    assert_eq!((fake.requests().len(), sender.counts()), (1, (5, 1, 0)));

    let fake = FakeReceiver::start(|_, series| match has_bad_sample(series) {
        true => reply(400),
        false => reply_all_written(204, series),
    })
    .await;
    let bad = rows(3, 2, |i, j| if (i, j) == (1, 1) { BAD } else { 1.0 });
    let mut sender = RunningSender::start(&bad, v2(fake.url.clone()));
    sender.finish().await;
    assert_eq!(sender.counts(), (5, 1, 0), "the valid samples are sent again where none was written");
}

// ---------------------------------------------------------------------------------- responses and faults

#[tokio::test]
async fn b79_only_the_beginning_of_an_endless_rejection_is_read() {
    for (status, requests) in [(400, 1), (503, 2)] {
        let script = move |i, _: &[TimeSeries]| {
            if i > 0 {
                return reply(204);
            }
            let mut reply = Reply::new("no! ".repeat(10 << 18).into());
            *reply.status_mut() = StatusCode::from_u16(status).expect("a status");
            reply
        };
        let fake = FakeReceiver::start(script).await;
        let mut sender = RunningSender::start(&rows(1, 1, |_, _| 1.0), config(fake.url.clone()));
        sender.finish().await;
        assert_eq!(fake.requests().len(), requests, "{status}");
        assert_eq!(sender.failed(FailureReason::Rejected), u64::from(status == 400), "{status}");
    }
}

#[tokio::test]
async fn b81_a_failed_name_lookup_or_handshake_is_retried() {
    let fake = FakeReceiver::start(|_, _| reply(204)).await;
    let no_tls = fake.url.to_string().replace("http:", "https:");
    for url in [no_tls.as_str(), "http://promforest.invalid/api/v1/write"] {
        let rows = rows(1, 1, |_, _| 1.0);
        let sender = RunningSender::start(&rows, config(url.parse().expect("a URL")));
        sender.wake.notify_one();
        wait_until("it is tried again", || sender.metrics.retries.get() >= 2).await;
        assert_eq!(sender.counts(), (0, 0, 0), "{url}");
        assert!(rows.state().advances.is_empty(), "{url}");
        sender.task.abort();
    }
}

/// Each endpoint has its own sender and its own cursor.
#[tokio::test]
async fn f10_a_slow_endpoint_delays_no_other_and_has_one_request_at_a_time() {
    use tokio::io::AsyncReadExt;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let slow: Url = format!("http://{}/", listener.local_addr().expect("bound")).parse().expect("a URL");
    // It reads every request and never responds.
    let connections = Arc::new(Mutex::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            *count.lock().expect("no panic") += 1;
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
            });
        }
    });
    let fake = FakeReceiver::start(|_, _| reply(204)).await;
    let slow_source = rows(20, 2, |i, j| (10 * i + j) as f64);
    let other_source = rows(20, 2, |i, j| (10 * i + j) as f64);
    let slow_sender = RunningSender::start(&slow_source, config(slow));
    slow_sender.wake.notify_one();
    wait_until("the slow endpoint has a connection", || *connections.lock().expect("no panic") == 1).await;
    let config = Config { max_samples_per_send: 4, ..config(fake.url.clone()) };
    let mut other_sender = RunningSender::start(&other_source, config);
    other_sender.finish().await;
    slow_sender.wake.notify_one();
    assert_eq!(other_sender.counts(), (40, 0, 0));
    assert_eq!(*connections.lock().expect("no panic"), 1);
    assert!(slow_source.state().advances.is_empty());
    slow_sender.task.abort();
}

#[tokio::test]
async fn f35_a_second_writer_is_distinguished_from_bad_data() {
    let reject_with = |text: &'static str| {
        move |_: usize, _: &[TimeSeries]| {
            let mut reply = Reply::new(text.into());
            *reply.status_mut() = StatusCode::BAD_REQUEST;
            reply
        }
    };
    for (text, conflicting) in
        [("out of order sample", 8), ("duplicate sample for timestamp", 8), ("label name is too long", 0)]
    {
        let fake = FakeReceiver::start(reject_with(text)).await;
        let rows = rows(4, 2, |i, j| (10 * i + j) as f64);
        let config = Config { max_samples_per_send: 2, ..config(fake.url.clone()) };
        let mut sender = RunningSender::start(&rows, config);
        sender.finish().await;
        assert_eq!(sender.counts(), (0, 8, 0), "{text}");
        assert_eq!(sender.metrics.conflicting.get(), conflicting, "{text}");
    }
}

/// An expired token loses no samples: the new one is read from the file.
#[tokio::test]
async fn f42_a_token_that_is_renewed_in_its_file_is_used() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("token");
    std::fs::write(&file, "old").expect("writable");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let renewed = Arc::new(Mutex::new(false));
    let is_renewed = renewed.clone();
    // The token itself is checked below.
    let fake = FakeReceiver::on_listener(listener, move |_, _| {
        reply(if *is_renewed.lock().expect("no panic") { 204 } else { 401 })
    });
    let text = format!(
        "remote_write: [{{url: '{}', authorization: {{credentials_file: '{}'}}}}]",
        fake.url,
        file.display()
    );
    let http = crate::config::Config::parse(&text).expect("valid").remote_write.remove(0).http;
    let rows = rows(3, 1, |i, _| i as f64);
    let client = Client::new(&http).expect("a client");
    let mut sender = RunningSender::with_client(&rows, config(fake.url.clone()), client);
    sender.wake.notify_one();
    wait_until("the request is rejected", || fake.requests().len() >= 2).await;
    assert!(rows.state().advances.is_empty());
    std::fs::write(&file, "new").expect("writable");
    *renewed.lock().expect("no panic") = true;
    sender.finish().await;
    let requests = fake.requests();
    let authorization = |request: &ReceivedRequest| {
        request.headers[hyper::header::AUTHORIZATION].to_str().expect("ASCII").to_string()
    };
    assert_eq!(authorization(&requests[0]), "Bearer old");
    assert_eq!(requests.last().map(authorization).as_deref(), Some("Bearer new"));
    assert_eq!(fake.written(), rows.all());
    assert_eq!(sender.counts(), (3, 0, 0));
}
