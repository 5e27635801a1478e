//! The sender against a target that answers what a test wants, over real connections.

use super::*;
use crate::http::server::{Answer as Reply, Server};
use crate::prom::wire::snappy;
use crate::prom::{Labels, METRIC_NAME, Sample, proto};
use crate::publish::Position;
use http_body_util::BodyExt;
use prost::Message as _;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard};
use std::task::Poll;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What a sample carries that a target of these tests does not like.
const BAD: f64 = -1.0;
/// Long enough for anything that happens at all, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn now_ms() -> i64 {
    duration::now_ms()
}

/// A request as the target saw it.
#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    headers: HeaderMap,
    body: Bytes,
    series: Vec<Series>,
    status: StatusCode,
}

impl Seen {
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
fn decode(headers: &HeaderMap, body: &[u8]) -> Vec<Series> {
    let mut buffer = Vec::new();
    let message = snappy::decompress(body, 32 << 20, &mut buffer).expect("snappy");
    let series = |labels: Vec<(String, String)>, samples: Vec<(i64, f64)>| {
        let mut sorted = labels.clone();
        sorted.sort();
        assert_eq!(labels, sorted, "labels leave sorted by name");
        let sample = |(timestamp_ms, value)| Sample { timestamp_ms, value };
        let samples = samples.into_iter().map(sample).collect();
        Series { labels: Labels::new(labels).expect("valid labels"), samples }
    };
    if headers["x-prometheus-remote-write-version"] == "2.0.0" {
        let proto::v2::Request { symbols, timeseries } = proto::v2::Request::decode(message).expect("2.0");
        let text = |i: u32| symbols[i as usize].clone();
        let of = |one: proto::v2::TimeSeries| {
            let labels = one.labels_refs.chunks(2).map(|pair| (text(pair[0]), text(pair[1]))).collect();
            series(labels, one.samples.iter().map(|s| (s.timestamp, s.value)).collect())
        };
        return timeseries.into_iter().map(of).collect();
    }
    let request = proto::WriteRequest::decode(message).expect("a WriteRequest");
    let of = |one: proto::TimeSeries| {
        let labels = one.labels.into_iter().map(|label| (label.name, label.value)).collect();
        series(labels, one.samples.iter().map(|s| (s.timestamp, s.value)).collect())
    };
    request.timeseries.into_iter().map(of).collect()
}

/// A target, and what it saw.
struct Fake {
    url: client::Url,
    seen: Arc<Mutex<Vec<Seen>>>,
    _stop: watch::Sender<bool>,
}

fn reply(status: u16) -> Reply {
    let mut reply = Reply::new("because\nof reasons".into());
    *reply.status_mut() = StatusCode::from_u16(status).expect("a status");
    reply
}

fn has_bad(series: &[Series]) -> bool {
    series.iter().any(|series| series.samples.iter().any(|sample| sample.value == BAD))
}

impl Fake {
    /// `script` gets the number of the request, from 0, and its series.
    async fn start(script: impl Fn(usize, &[Series]) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::on(listener, script)
    }

    fn on(listener: TcpListener, script: impl Fn(usize, &[Series]) -> Reply + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().expect("bound");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(script);
        let (stop, stopped) = watch::channel(false);
        let log = seen.clone();
        let route = move |request: hyper::Request<crate::http::server::Arriving>| {
            let (log, script) = (log.clone(), script.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.expect("a whole body").to_bytes();
                let series = decode(&head.headers, &body);
                let mut log: MutexGuard<'_, Vec<Seen>> = log.lock().expect("no panic");
                let reply = script(log.len(), &series);
                let status = reply.status();
                log.push(Seen { at: Instant::now(), headers: head.headers, body, series, status });
                reply
            }
        };
        tokio::spawn(Server::default().serve(listener, route, stopped));
        let url = format!("http://{address}/api/v1/write").parse().expect("a URL");
        Self { url, seen, _stop: stop }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    /// The samples that were accepted, in the order of their arrival.
    fn written(&self) -> Vec<(String, i64, f64)> {
        let accepted = self.seen().into_iter().filter(|seen| seen.status.is_success());
        let series = accepted.flat_map(|seen| seen.series);
        let pairs = series.flat_map(|series| {
            let name = series.labels.to_string();
            series.samples.into_iter().map(move |sample| (name.clone(), sample.timestamp_ms, sample.value))
        });
        pairs.collect()
    }
}

/// Rows of some series, and a cursor over them.
#[derive(Clone, Default)]
struct Rows(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    series: Vec<Labels>,
    /// Timestamp, and a value for each series.
    rows: Vec<(i64, Vec<f64>)>,
    done_ms: i64,
    /// Where it stood, each time it moved.
    advances: Vec<i64>,
}

impl Rows {
    fn new(n_series: usize, rows: Vec<(i64, Vec<f64>)>) -> Self {
        let labels = |i: usize| {
            Labels::new([("zone", "b"), ("instance", &*format!("host{i}")), (METRIC_NAME, "node_anomaly")])
                .expect("valid")
        };
        let state = State { series: (0..n_series).map(labels).collect(), rows, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic")
    }

    /// Everything that is to be written.
    fn all(&self) -> Vec<(String, i64, f64)> {
        let state = self.state();
        let rows = state.rows.iter().flat_map(|(timestamp_ms, values)| {
            let cells = state.series.iter().zip(values);
            cells.map(|(labels, value)| (labels.to_string(), *timestamp_ms, *value))
        });
        rows.collect()
    }
}

impl Windows for Rows {
    async fn next_batch(&self, max_samples: usize) -> Option<Batch> {
        let state = self.state();
        let beyond: Vec<_> = state
            .rows
            .iter()
            .filter(|(timestamp_ms, _)| *timestamp_ms > state.done_ms)
            .take(max_samples / state.series.len())
            .collect();
        let timestamp_ms = beyond.last()?.0;
        let series = state.series.iter().enumerate().map(|(i, labels)| Series {
            labels: labels.clone(),
            samples: beyond
                .iter()
                .map(|(timestamp_ms, values)| Sample { timestamp_ms: *timestamp_ms, value: values[i] })
                .collect(),
        });
        let position = Position { group: 0, timestamp_ms, received: Instant::now() };
        Some(Batch { series: series.collect(), positions: vec![position] })
    }

    async fn advance(&self, positions: Vec<Position>) {
        let mut state = self.state();
        state.done_ms = positions[0].timestamp_ms;
        state.advances.push(positions[0].timestamp_ms);
    }
}

/// Rows a second apart, the last one now. `value` gets the row and the series.
fn rows(n_rows: usize, n_series: usize, value: impl Fn(usize, usize) -> f64) -> Rows {
    let now_ms = now_ms();
    let row = |i: usize| {
        let timestamp_ms = now_ms - 1000 * (n_rows - 1 - i) as i64;
        (timestamp_ms, (0..n_series).map(|j| value(i, j)).collect())
    };
    Rows::new(n_series, (0..n_rows).map(row).collect())
}

fn config(url: client::Url) -> Config {
    Config {
        url,
        batch_send_deadline: Duration::from_millis(1),
        min_backoff: Duration::from_millis(10),
        max_backoff: Duration::from_millis(40),
        ..Config::default()
    }
}

/// A sender at work.
struct Running {
    metrics: Metrics,
    bell: Arc<Notify>,
    closing: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(rows: &Rows, config: Config) -> Self {
        Self::with_client(rows, config, Client::default())
    }

    fn with_client(rows: &Rows, config: Config, client: Client) -> Self {
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        let bell = Arc::new(Notify::new());
        let (closing, closed) = watch::channel(false);
        let sender = Sender {
            windows: rows.clone(),
            config,
            client,
            metrics: metrics.clone(),
            bell: bell.clone(),
            closing: closed,
        };
        Self { metrics, bell, closing, task: tokio::spawn(sender.run()) }
    }

    fn lost(&self, reason: Lost) -> u64 {
        self.metrics.lost.get_or_create(&reason.label()).get()
    }

    /// Written, rejected, too old.
    fn counts(&self) -> (u64, u64, u64) {
        (self.metrics.written.get(), self.lost(Lost::Rejected), self.lost(Lost::TooOld))
    }

    /// Sends everything there is, and ends.
    async fn finish(&mut self) {
        self.closing.send_replace(true);
        tokio::time::timeout(PATIENCE, &mut self.task).await.expect("it ends").expect("no panic");
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn sorted(mut samples: Vec<(String, i64, f64)>) -> Vec<(String, i64, f64)> {
    samples.sort_by(|a, b| a.partial_cmp(b).expect("no NaN"));
    samples
}

#[tokio::test]
async fn batches_are_whole_rows_of_at_most_max_samples() {
    let fake = Fake::start(|_, _| reply(204)).await;
    let rows = rows(25, 3, |i, j| (100 * i + j) as f64);
    let mut sender = Running::start(&rows, Config { max_samples_per_send: 10, ..config(fake.url.clone()) });
    sender.finish().await;
    let sizes: Vec<usize> = fake.seen().iter().map(Seen::n_samples).collect();
    assert_eq!(sizes, [9, 9, 9, 9, 9, 9, 9, 9, 3]);
    let metadata = |seen: &Seen| {
        let mut buffer = Vec::new();
        let message = snappy::decompress(&seen.body, 1 << 20, &mut buffer).expect("snappy");
        proto::WriteRequest::decode(message).expect("a WriteRequest").metadata.len()
    };
    let told: Vec<usize> = fake.seen().iter().map(metadata).collect();
    assert_eq!(told, [1, 0, 0, 0, 0, 0, 0, 0, 0], "type and help go along once a minute");
    assert_eq!(sorted(fake.written()), sorted(rows.all()));
    assert_eq!(sender.counts(), (75, 0, 0));
}

#[tokio::test]
async fn requests_are_remote_write_1_0() {
    let fake = Fake::start(|_, _| reply(200)).await;
    let values = [f64::INFINITY, 5e-324, 1.5, f64::from_bits(crate::prom::STALE_BITS)];
    let rows = rows(4, 1, |i, _| values[i]);
    Running::start(&rows, config(fake.url.clone())).finish().await;
    let seen = &fake.seen()[0];
    for (name, value) in [
        ("content-type", "application/x-protobuf"),
        ("content-encoding", "snappy"),
        ("x-prometheus-remote-write-version", "0.1.0"),
        ("user-agent", client::AGENT),
    ] {
        assert_eq!(seen.headers[name], value, "{name}");
    }
    assert_eq!(seen.retry_attempt(), None);
    let labels: Vec<(&str, &str)> = seen.series[0].labels.iter().collect();
    assert_eq!(labels, [("__name__", "node_anomaly"), ("instance", "host0"), ("zone", "b")]);
    let bits: Vec<u64> = seen.series[0].samples.iter().map(|sample| sample.value.to_bits()).collect();
    assert_eq!(bits, values.map(f64::to_bits), "values leave bit for bit");
    let times: Vec<i64> = seen.series[0].samples.iter().map(|sample| sample.timestamp_ms).collect();
    assert!(times.is_sorted());
}

#[tokio::test]
async fn a_failing_target_gets_the_same_bytes_again_after_doubling_pauses() {
    let statuses = [500, 500, 502, 429, 408, 204];
    let fake = Fake::start(move |i, _| reply(statuses.get(i).copied().unwrap_or(204))).await;
    let rows = rows(1, 2, |_, j| j as f64);
    let mut sender = Running::start(&rows, config(fake.url.clone()));
    sender.finish().await;
    let seen = fake.seen();
    assert_eq!(seen.len(), statuses.len());
    assert!(seen.iter().all(|request| request.body == seen[0].body));
    let attempts: Vec<Option<&str>> = seen.iter().map(Seen::retry_attempt).collect();
    assert_eq!(attempts, [None, Some("1"), Some("2"), Some("3"), Some("4"), Some("5")]);
    // 10 ms, doubled, and no longer than 40 ms
    for (pair, least) in seen.windows(2).zip([10, 20, 40, 40, 40]) {
        let pause = pair[1].at - pair[0].at;
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
async fn f12_retry_after_is_honoured() {
    for status in [429, 503] {
        let answer = move |i, _: &[Series]| if i == 0 { with_retry_after(status, "1") } else { reply(204) };
        let fake = Fake::start(answer).await;
        let rows = rows(4, 1, |i, _| i as f64);
        let config = Config { max_samples_per_send: 2, ..config(fake.url.clone()) };
        let mut sender = Running::start(&rows, config);
        sender.finish().await;
        let seen = fake.seen();
        let pause = seen[1].at - seen[0].at;
        assert!(pause >= Duration::from_secs(1), "{status}: {pause:?}");
        assert_eq!(fake.written(), rows.all(), "{status}: in their order");
        assert_eq!(sender.counts(), (4, 0, 0));
    }
}

#[tokio::test]
async fn b80_a_useless_retry_after_leaves_the_usual_pause() {
    let values = ["0", "-5", "1.5", "Wed, 21 Oct 2015 07:28:00 GMT", "soon"];
    let fake = Fake::start(move |i, _| values.get(i).map_or(reply(204), |v| with_retry_after(503, v))).await;
    let mut sender = Running::start(&rows(1, 1, |_, _| 1.0), config(fake.url.clone()));
    sender.finish().await;
    let seen = fake.seen();
    assert_eq!(seen.len(), values.len() + 1);
    for ((pair, value), least) in seen.windows(2).zip(values).zip([10, 20, 40, 40, 40]) {
        let pause = pair[1].at - pair[0].at;
        assert!(pause >= Duration::from_millis(least), "{value:?}: {pause:?} is below {least} ms");
    }
}

#[test]
fn b80_a_retry_after_is_seconds_or_a_date_and_has_an_end() {
    // Wed, 21 Oct 2015 07:28:00 GMT
    let now_ms = 1_445_412_480_000;
    let pause = |text| retry_after(text, now_ms).map(|pause| pause.as_secs());
    assert_eq!(pause(" 30 "), Some(30));
    assert_eq!(pause("Wed, 21 Oct 2015 07:28:20 GMT"), Some(20));
    for long in ["301", "1000000000", "18446744073709551615", "Thu, 22 Oct 2015 07:28:00 GMT"] {
        assert_eq!(pause(long), Some(300), "{long}");
    }
    for useless in
        ["0", "-5", "soon", "", "1e9", "Wed, 21 Oct 2015 07:28:00 GMT", "Tue, 20 Oct 2015 07:28:00 GMT"]
    {
        assert_eq!(pause(useless), None, "{useless}");
    }
}

#[tokio::test]
async fn f13_one_bad_series_of_a_batch_costs_its_own_sample() {
    for bad in 0..7 {
        let fake = Fake::start(|_, series| reply(if has_bad(series) { 400 } else { 204 })).await;
        let rows = rows(1, 7, |_, j| if j == bad { BAD } else { j as f64 });
        let mut sender = Running::start(&rows, config(fake.url.clone()));
        sender.finish().await;
        let good: Vec<_> = rows.all().into_iter().filter(|(_, _, value)| *value != BAD).collect();
        assert_eq!(sorted(fake.written()), sorted(good), "the others, each once");
        assert_eq!(sender.counts(), (6, 1, 0));
        assert_eq!(sender.metrics.retries.get(), 0, "a part is another request");
        assert!(fake.seen().len() <= 7, "two requests a halving: {}", fake.seen().len());
    }
}

#[tokio::test]
async fn one_bad_sample_of_a_series_costs_itself_and_order_is_kept() {
    let fake = Fake::start(|_, series| reply(if has_bad(series) { 400 } else { 204 })).await;
    let rows = rows(100, 1, |i, _| if i == 61 { BAD } else { i as f64 });
    let mut sender = Running::start(&rows, config(fake.url.clone()));
    sender.finish().await;
    let good: Vec<_> = rows.all().into_iter().filter(|(_, _, value)| *value != BAD).collect();
    assert_eq!(fake.written(), good, "the others, each once, the older first");
    assert_eq!(sender.counts(), (99, 1, 0));
}

#[tokio::test]
async fn a_series_whose_every_sample_is_refused_leaves_the_others_alone() {
    let fake = Fake::start(|_, series| reply(if has_bad(series) { 422 } else { 204 })).await;
    let rows = rows(8, 4, |_, j| if j == 2 { BAD } else { j as f64 });
    let mut sender = Running::start(&rows, config(fake.url.clone()));
    sender.finish().await;
    assert_eq!(sender.counts(), (24, 8, 0));
    assert_eq!(fake.written().len(), 24);
}

#[tokio::test]
async fn too_large_a_request_is_sent_in_parts() {
    let too_large = |series: &[Series]| series.iter().map(|series| series.samples.len()).sum::<usize>() > 5;
    let fake = Fake::start(move |_, series| reply(if too_large(series) { 413 } else { 204 })).await;
    let rows = rows(8, 4, |i, j| (10 * i + j) as f64);
    let mut sender = Running::start(&rows, config(fake.url.clone()));
    sender.finish().await;
    assert_eq!(sorted(fake.written()), sorted(rows.all()));
    assert_eq!(sender.counts(), (32, 0, 0));
}

/// Once asked for less, less is sent.
#[tokio::test]
async fn after_413_requests_are_smaller() {
    let size = |series: &[Series]| series.iter().map(|series| series.samples.len()).sum::<usize>();
    let fake = Fake::start(move |_, series| reply(if size(series) > 60 { 413 } else { 204 })).await;
    let rows = rows(100, 4, |i, j| (10 * i + j) as f64);
    let config = Config { max_samples_per_send: 200, ..config(fake.url.clone()) };
    let mut sender = Running::start(&rows, config);
    sender.finish().await;
    assert_eq!(sorted(fake.written()), sorted(rows.all()));
    let refused = fake.seen().iter().filter(|seen| seen.status == 413).count();
    assert_eq!(refused, 3, "200, and its halves, once");
    assert_eq!(sender.counts(), (400, 0, 0));
}

#[tokio::test]
async fn a_refusal_that_does_not_accuse_the_data_is_not_answered_with_more_requests() {
    for status in [301, 405, 415, 429] {
        let fake = Fake::start(move |i, _| reply(if i == 0 { status } else { 204 })).await;
        let rows = rows(4, 2, |i, j| (10 * i + j) as f64);
        let config = Config { max_samples_per_send: 4, retry_on_http_429: false, ..config(fake.url.clone()) };
        let mut sender = Running::start(&rows, config);
        sender.finish().await;
        assert_eq!(fake.seen().len(), 2, "{status}: one request for each batch");
        assert_eq!(sender.counts(), (4, 4, 0), "{status}");
    }
}

#[tokio::test]
async fn a_target_that_is_set_up_wrong_is_asked_again() {
    for status in [401, 403, 404] {
        let fake = Fake::start(move |i, _| reply(if i < 3 { status } else { 204 })).await;
        let rows = rows(2, 2, |i, j| (10 * i + j) as f64);
        let mut sender = Running::start(&rows, config(fake.url.clone()));
        sender.finish().await;
        assert_eq!(fake.seen().len(), 4, "{status}");
        assert_eq!(sender.counts(), (4, 0, 0), "{status}");
        assert_eq!(sorted(fake.written()), sorted(rows.all()));
    }
}

#[tokio::test]
async fn f8_a_target_that_comes_up_late_gets_everything() {
    // An address of its own: nobody else takes the port in between.
    let listener = TcpListener::bind("127.0.0.9:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let rows = rows(3, 2, |i, j| (10 * i + j) as f64);
    let url = format!("http://{address}/api/v1/write").parse().expect("a URL");
    let mut sender = Running::start(&rows, config(url));
    sender.bell.notify_one();
    until("three refused connections", || sender.metrics.retries.get() >= 3).await;
    assert!(rows.state().advances.is_empty());
    let fake = Fake::on(TcpListener::bind(address).await.expect("still free"), |_, _| reply(204));
    sender.finish().await;
    assert_eq!(sorted(fake.written()), sorted(rows.all()));
    assert_eq!(sender.counts(), (6, 0, 0));
}

#[tokio::test]
async fn b81_f41_an_answer_that_breaks_off_or_does_not_come_is_a_failure() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url: client::Url =
        format!("http://{}/", listener.local_addr().expect("bound")).parse().expect("a URL");
    let broken = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_exact(&mut [0; 64]).await.expect("a request");
        stream.write_all(b"HTTP/1.1 204").await.expect("a beginning");
        drop(stream);
        let (silent, _) = listener.accept().await.expect("a second connection");
        (listener, silent)
    });
    let rows = rows(1, 1, |_, _| 1.0);
    let mut sender =
        Running::start(&rows, Config { remote_timeout: Duration::from_millis(300), ..config(url) });
    sender.bell.notify_one();
    let (listener, silent) = tokio::time::timeout(PATIENCE, broken).await.expect("soon").expect("no panic");
    until("the silent one times out", || sender.metrics.retries.get() >= 2).await;
    assert_eq!(sender.counts(), (0, 0, 0));
    let fake = Fake::on(listener, |_, _| reply(204));
    sender.finish().await;
    drop(silent);
    assert_eq!(fake.written(), rows.all());
    assert_eq!(sender.counts(), (1, 0, 0));
}

#[tokio::test]
async fn f11_the_age_limit_frees_a_batch_that_is_refused_for_ever() {
    let fake = Fake::start(|_, series| reply(if has_bad(series) { 500 } else { 204 })).await;
    let rows = rows(1, 2, |_, _| BAD);
    let config = Config { sample_age_limit: Duration::from_millis(500), ..config(fake.url.clone()) };
    let mut sender = Running::start(&rows, config);
    sender.bell.notify_one();
    until("the batch is tried", || fake.seen().len() >= 3).await;
    until("it is given up", || sender.lost(Lost::TooOld) == 2).await;
    until("the cursor moves", || rows.state().advances.len() == 1).await;
    let later_ms = now_ms() + 1000;
    rows.state().rows.push((later_ms, vec![1.0, 2.0]));
    sender.finish().await;
    assert_eq!(sender.counts(), (2, 0, 2));
    assert!(fake.written().iter().all(|(_, timestamp_ms, _)| *timestamp_ms == later_ms));
}

#[tokio::test]
async fn f9_what_is_too_old_is_counted_and_not_sent() {
    let fake = Fake::start(|_, _| reply(204)).await;
    let rows = rows(100, 1, |i, _| i as f64);
    let config = Config { sample_age_limit: Duration::from_millis(49_500), ..config(fake.url.clone()) };
    let mut sender = Running::start(&rows, config);
    sender.finish().await;
    let (written, rejected, too_old) = sender.counts();
    assert_eq!((written + too_old, rejected), (100, 0));
    // Fifty rows are younger, fewer if the test was held up.
    assert!((20..=50).contains(&written), "{written}");
    assert_eq!(fake.written().len() as u64, written);
    assert_eq!(fake.written().last(), rows.all().last());
}

#[tokio::test]
async fn the_cursor_moves_when_a_batch_is_dealt_with_and_not_before() {
    let fake = Fake::start(|i, _| reply(if i < 2 { 503 } else { 204 })).await;
    let rows = rows(4, 1, |i, _| i as f64);
    let times: Vec<i64> = rows.state().rows.iter().map(|(timestamp_ms, _)| *timestamp_ms).collect();
    let config = Config {
        max_samples_per_send: 2,
        min_backoff: Duration::from_millis(150),
        max_backoff: Duration::from_millis(150),
        ..config(fake.url.clone())
    };
    let mut sender = Running::start(&rows, config);
    sender.bell.notify_one();
    until("a failure", || fake.seen().len() == 1).await;
    assert!(rows.state().advances.is_empty());
    until("another failure", || fake.seen().len() == 2).await;
    assert!(rows.state().advances.is_empty());
    until("all is sent", || rows.state().advances.len() == 2).await;
    assert_eq!(rows.state().advances, [times[1], times[3]]);
    assert_eq!(fake.written(), rows.all());
    sender.finish().await;
    assert_eq!(fake.seen().len(), 4, "nothing is sent twice");
}

#[tokio::test]
async fn nothing_is_sent_before_the_bell_and_closing_flushes() {
    let fake = Fake::start(|_, _| reply(204)).await;
    let rows = rows(10, 2, |i, j| (10 * i + j) as f64);
    let deadline = Duration::from_secs(3600);
    let mut sender =
        Running::start(&rows, Config { batch_send_deadline: deadline, ..config(fake.url.clone()) });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(fake.seen().is_empty());
    sender.finish().await;
    assert_eq!(sorted(fake.written()), sorted(rows.all()));
}

#[tokio::test]
async fn scores_of_a_moment_share_a_request() {
    let fake = Fake::start(|_, _| reply(204)).await;
    let rows = rows(1, 1, |_, _| 0.0);
    let config = Config { batch_send_deadline: Duration::from_millis(400), ..config(fake.url.clone()) };
    let mut sender = Running::start(&rows, config);
    for i in 1..=5 {
        sender.bell.notify_one();
        let timestamp_ms = rows.state().rows.last().expect("one at least").0 + 1000;
        rows.state().rows.push((timestamp_ms, vec![f64::from(i)]));
        tokio::task::yield_now().await;
    }
    until("they are written", || fake.written().len() == 6).await;
    assert_eq!(fake.seen().len(), 1);
    sender.finish().await;
}

#[tokio::test]
async fn an_owner_that_is_gone_does_not_hold_up_the_end() {
    struct Gone;
    impl Windows for Gone {
        async fn next_batch(&self, _: usize) -> Option<Batch> {
            None
        }
        async fn advance(&self, _: Vec<Position>) {
            unreachable!("there was no batch");
        }
    }
    let fake = Fake::start(|_, _| reply(204)).await;
    let (closing, closed) = watch::channel(false);
    let sender = Sender {
        windows: Gone,
        config: config(fake.url.clone()),
        client: Client::default(),
        metrics: Metrics::new(&mut prometheus_client::registry::Registry::default()),
        bell: Arc::new(Notify::new()),
        closing: closed,
    };
    let mut run = pin!(sender.run());
    let pending = poll_fn(|context| Poll::Ready(run.as_mut().poll(context).is_pending())).await;
    assert!(pending, "it waits for the bell");
    drop(closing);
    tokio::time::timeout(PATIENCE, run).await.expect("it ends");
    assert!(fake.seen().is_empty());
}

#[test]
fn halving_loses_nothing() {
    let rows = rows(5, 3, |i, j| (10 * i + j) as f64);
    let series = |labels: &Labels| {
        let samples =
            rows.state().rows.iter().map(|(t, v)| Sample { timestamp_ms: *t, value: v[0] }).collect();
        Series { labels: labels.clone(), samples }
    };
    let labels = rows.state().series.clone();
    let whole: Vec<Series> = labels.iter().map(series).collect();
    let mut parts = vec![whole.clone()];
    let mut single = Vec::new();
    while let Some(part) = parts.pop() {
        match halves(part.clone()) {
            Some([older, newer]) => parts.extend([newer, older]),
            None => single.extend(part),
        }
    }
    assert!(single.iter().all(|series| series.samples.len() == 1));
    let cut = whole.iter().flat_map(|series| {
        series.samples.iter().map(|sample| Series { labels: series.labels.clone(), samples: vec![*sample] })
    });
    assert_eq!(single, cut.collect::<Vec<_>>());
    assert!(halves(Vec::new()).is_none());
}

// ------------------------------------------------------------------------------------- remote write 2.0

fn v2(url: client::Url) -> Config {
    Config { protobuf_message: Message::V2, ..config(url) }
}

/// An answer with the count of what was written.
fn counting(status: u16, samples: &str) -> Reply {
    let mut reply = reply(status);
    let name = HeaderName::from_static("x-prometheus-remote-write-samples-written");
    reply.headers_mut().insert(name, samples.parse().expect("a header"));
    reply
}

fn all_written(status: u16, series: &[Series]) -> Reply {
    counting(status, &n_samples(series).to_string())
}

#[tokio::test]
async fn b78_requests_are_remote_write_2_0_when_asked_for() {
    for status in [200, 202, 204] {
        let fake = Fake::start(move |_, series| all_written(status, series)).await;
        let values = [f64::INFINITY, 5e-324, 1.5, f64::from_bits(crate::prom::STALE_BITS)];
        let rows = rows(4, 3, |i, _| values[i]);
        let mut sender = Running::start(&rows, v2(fake.url.clone()));
        sender.finish().await;
        let [seen] = &fake.seen()[..] else { panic!("one request") };
        for (name, value) in [
            ("content-type", "application/x-protobuf;proto=io.prometheus.write.v2.Request"),
            ("content-encoding", "snappy"),
            ("x-prometheus-remote-write-version", "2.0.0"),
            ("user-agent", client::AGENT),
        ] {
            assert_eq!(seen.headers[name], value, "{name}");
        }
        for series in &seen.series {
            let bits: Vec<u64> = series.samples.iter().map(|sample| sample.value.to_bits()).collect();
            assert_eq!(bits, values.map(f64::to_bits), "values leave bit for bit");
        }
        assert_eq!(sender.counts(), (12, 0, 0), "{status}");
        assert_eq!(sender.metrics.fallbacks.get(), 0);
    }
}

/// A target of 1.0 that does not look at the type finds nothing in a message of 2.0, and is content.
#[tokio::test]
async fn b82_b84_a_target_that_does_not_know_2_0_gets_1_0_from_then_on() {
    let unaware: [fn() -> Reply; 4] = [|| reply(204), || reply(200), || counting(204, "0"), || reply(415)];
    for (n, answer) in unaware.into_iter().enumerate() {
        let fake = Fake::start(move |i, _| if i == 0 { answer() } else { reply(204) }).await;
        let rows = rows(6, 2, |i, j| (10 * i + j) as f64);
        let config = Config { max_samples_per_send: 4, ..v2(fake.url.clone()) };
        let mut sender = Running::start(&rows, config);
        sender.finish().await;
        let seen = fake.seen();
        let versions: Vec<&str> = seen.iter().map(Seen::version).collect();
        assert_eq!(versions, ["2.0.0", "0.1.0", "0.1.0", "0.1.0"], "{n}");
        assert_eq!(seen[0].series, seen[1].series, "{n}: the same once more");
        let in_1_0: usize = seen[1..].iter().map(Seen::n_samples).sum();
        assert_eq!((in_1_0, sender.counts()), (12, (12, 0, 0)), "{n}");
        assert_eq!((sender.metrics.fallbacks.get(), sender.metrics.retries.get()), (1, 0), "{n}");
    }
}

#[tokio::test]
async fn b84_a_target_that_refuses_both_messages_is_not_asked_for_ever() {
    let fake = Fake::start(|_, _| reply(415)).await;
    let mut sender = Running::start(&rows(1, 2, |_, j| j as f64), v2(fake.url.clone()));
    sender.finish().await;
    assert_eq!(fake.seen().len(), 2);
    assert_eq!(sender.counts(), (0, 2, 0));
}

#[tokio::test]
async fn b83_counts_that_are_lower_or_junk_are_losses_and_nothing_is_sent_again() {
    for (count, written) in [("5", 5), ("many", 0), ("-3", 0), ("7", 6)] {
        let fake = Fake::start(move |_, _| counting(204, count)).await;
        let mut sender = Running::start(&rows(3, 2, |i, j| (10 * i + j) as f64), v2(fake.url.clone()));
        sender.finish().await;
        assert_eq!(fake.seen().len(), 1, "{count}");
        assert_eq!(sender.counts(), (written, 0, 0), "{count}");
        assert_eq!(sender.lost(Lost::Unconfirmed), 6 - written, "{count}");
    }
}

#[tokio::test]
async fn a_refusal_of_2_0_that_keeps_the_rest_is_believed() {
    let fake = Fake::start(|_, _| counting(400, "5")).await;
    let mut sender = Running::start(&rows(3, 2, |i, j| (10 * i + j) as f64), v2(fake.url.clone()));
    sender.finish().await;
    assert_eq!((fake.seen().len(), sender.counts()), (1, (5, 1, 0)));

    let fake = Fake::start(|_, series| match has_bad(series) {
        true => reply(400),
        false => all_written(204, series),
    })
    .await;
    let bad = rows(3, 2, |i, j| if (i, j) == (1, 1) { BAD } else { 1.0 });
    let mut sender = Running::start(&bad, v2(fake.url.clone()));
    sender.finish().await;
    assert_eq!(sender.counts(), (5, 1, 0), "who keeps nothing gets the others again");
}

// ---------------------------------------------------------------------------------- answers and faults

#[tokio::test]
async fn b79_of_an_endless_refusal_the_beginning_is_read() {
    for (status, requests) in [(400, 1), (503, 2)] {
        let answer = move |i, _: &[Series]| {
            if i > 0 {
                return reply(204);
            }
            let mut reply = Reply::new("no! ".repeat(10 << 18).into());
            *reply.status_mut() = StatusCode::from_u16(status).expect("a status");
            reply
        };
        let fake = Fake::start(answer).await;
        let mut sender = Running::start(&rows(1, 1, |_, _| 1.0), config(fake.url.clone()));
        sender.finish().await;
        assert_eq!(fake.seen().len(), requests, "{status}");
        assert_eq!(sender.lost(Lost::Rejected), u64::from(status == 400), "{status}");
    }
}

#[tokio::test]
async fn b81_without_a_name_or_a_handshake_it_is_tried_again() {
    let fake = Fake::start(|_, _| reply(204)).await;
    let no_tls = fake.url.to_string().replace("http:", "https:");
    for url in [no_tls.as_str(), "http://promforest.invalid/api/v1/write"] {
        let rows = rows(1, 1, |_, _| 1.0);
        let sender = Running::start(&rows, config(url.parse().expect("a URL")));
        sender.bell.notify_one();
        until("it is tried again", || sender.metrics.retries.get() >= 2).await;
        assert_eq!(sender.counts(), (0, 0, 0), "{url}");
        assert!(rows.state().advances.is_empty(), "{url}");
        sender.task.abort();
    }
}

/// Each target has its own sender and its own cursor.
#[tokio::test]
async fn f10_a_slow_target_delays_no_other_and_has_one_request_at_a_time() {
    use tokio::io::AsyncReadExt;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let slow: client::Url =
        format!("http://{}/", listener.local_addr().expect("bound")).parse().expect("a URL");
    // It takes what comes, and does not answer.
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
    let fake = Fake::start(|_, _| reply(204)).await;
    let of_slow = rows(20, 2, |i, j| (10 * i + j) as f64);
    let of_other = rows(20, 2, |i, j| (10 * i + j) as f64);
    let waiting = Running::start(&of_slow, config(slow));
    waiting.bell.notify_one();
    until("the slow one is asked", || *connections.lock().expect("no panic") == 1).await;
    let config = Config { max_samples_per_send: 4, ..config(fake.url.clone()) };
    let mut other = Running::start(&of_other, config);
    other.finish().await;
    waiting.bell.notify_one();
    assert_eq!(other.counts(), (40, 0, 0));
    assert_eq!(*connections.lock().expect("no panic"), 1);
    assert!(of_slow.state().advances.is_empty());
    waiting.task.abort();
}

#[tokio::test]
async fn f35_a_second_writer_is_told_from_bad_data() {
    let says = |text: &'static str| {
        move |_: usize, _: &[Series]| {
            let mut reply = Reply::new(text.into());
            *reply.status_mut() = StatusCode::BAD_REQUEST;
            reply
        }
    };
    for (text, contradicted) in
        [("out of order sample", 8), ("duplicate sample for timestamp", 8), ("label name is too long", 0)]
    {
        let fake = Fake::start(says(text)).await;
        let rows = rows(4, 2, |i, j| (10 * i + j) as f64);
        let config = Config { max_samples_per_send: 2, ..config(fake.url.clone()) };
        let mut sender = Running::start(&rows, config);
        sender.finish().await;
        assert_eq!(sender.counts(), (0, 8, 0), "{text}");
        assert_eq!(sender.metrics.contradicted.get(), contradicted, "{text}");
    }
}

/// A token that has run out costs nothing: the new one is read when it is there.
#[tokio::test]
async fn f42_a_token_that_is_renewed_in_its_file_is_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "old").expect("writable");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let renewed = Arc::new(Mutex::new(false));
    let is_renewed = renewed.clone();
    // The token itself is looked at below.
    let fake =
        Fake::on(listener, move |_, _| reply(if *is_renewed.lock().expect("no panic") { 204 } else { 401 }));
    let text = format!(
        "remote_write: [{{url: '{}', authorization: {{credentials_file: '{}'}}}}]",
        fake.url,
        file.display()
    );
    let http = crate::config::Config::parse(&text).expect("valid").remote_write.remove(0).http;
    let rows = rows(3, 1, |i, _| i as f64);
    let client = Client::new(&http).expect("a client");
    let mut sender = Running::with_client(&rows, config(fake.url.clone()), client);
    sender.bell.notify_one();
    until("it is refused", || fake.seen().len() >= 2).await;
    assert!(rows.state().advances.is_empty());
    std::fs::write(&file, "new").expect("writable");
    *renewed.lock().expect("no panic") = true;
    sender.finish().await;
    let seen = fake.seen();
    let shown = |seen: &Seen| seen.headers[hyper::header::AUTHORIZATION].to_str().expect("ASCII").to_string();
    assert_eq!(shown(&seen[0]), "Bearer old");
    assert_eq!(seen.last().map(shown).as_deref(), Some("Bearer new"));
    assert_eq!(fake.written(), rows.all());
    assert_eq!(sender.counts(), (3, 0, 0));
}
