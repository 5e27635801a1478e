//! The sender against a target that answers what a test wants, over real connections.

use super::*;
use crate::http::server::{self, Answer as Reply};
use crate::prom::{Labels, METRIC_NAME};
use crate::publish::Position;
use http_body_util::BodyExt;
use hyper::header::HeaderMap;
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

    fn retry_attempt(&self) -> Option<&str> {
        self.headers.get("retry-attempt").map(|value| value.to_str().expect("ASCII"))
    }
}

fn decode(body: &[u8]) -> Vec<Series> {
    let mut buffer = Vec::new();
    let message = snappy::decompress(body, 32 << 20, &mut buffer).expect("snappy");
    let request = proto::WriteRequest::decode(message).expect("a WriteRequest");
    let labels = |labels: Vec<proto::Label>| {
        let sent: Vec<_> = labels.into_iter().map(|label| (label.name, label.value)).collect();
        let mut sorted = sent.clone();
        sorted.sort();
        assert_eq!(sent, sorted, "labels leave sorted by name");
        Labels::new(sent).expect("valid labels")
    };
    let series = |series: proto::TimeSeries| Series {
        labels: labels(series.labels),
        samples: series
            .samples
            .iter()
            .map(|sample| Sample { timestamp_ms: sample.timestamp, value: sample.value })
            .collect(),
    };
    request.timeseries.into_iter().map(series).collect()
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
        let route = move |request: hyper::Request<hyper::body::Incoming>| {
            let (log, script) = (log.clone(), script.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.expect("a whole body").to_bytes();
                let series = decode(&body);
                let mut log: MutexGuard<'_, Vec<Seen>> = log.lock().expect("no panic");
                let reply = script(log.len(), &series);
                let status = reply.status();
                log.push(Seen { at: Instant::now(), headers: head.headers, body, series, status });
                reply
            }
        };
        tokio::spawn(server::serve(listener, route, stopped));
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
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        let bell = Arc::new(Notify::new());
        let (closing, closed) = watch::channel(false);
        let sender = Sender {
            windows: rows.clone(),
            config,
            client: Client::default(),
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
async fn retry_after_is_honoured() {
    let fake = Fake::start(|i, _| if i == 0 { with_retry_after(503, "1") } else { reply(204) }).await;
    let mut sender = Running::start(&rows(1, 1, |_, _| 1.0), config(fake.url.clone()));
    sender.finish().await;
    let seen = fake.seen();
    let pause = seen[1].at - seen[0].at;
    assert!((Duration::from_secs(1)..Duration::from_secs(10)).contains(&pause), "{pause:?}");
    assert_eq!(sender.counts(), (1, 0, 0));
}

#[tokio::test]
async fn a_useless_retry_after_leaves_the_usual_pause() {
    let values = ["0", "-5", "1000000000", "Wed, 21 Oct 2015 07:28:00 GMT", "soon"];
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

#[tokio::test]
async fn one_bad_series_of_a_batch_costs_its_own_sample() {
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
async fn a_target_that_comes_up_late_gets_everything() {
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
async fn an_answer_that_breaks_off_or_does_not_come_is_a_failure() {
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
async fn the_age_limit_frees_a_batch_that_is_refused_for_ever() {
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
async fn what_is_too_old_is_counted_and_not_sent() {
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
