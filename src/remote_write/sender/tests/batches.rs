//! Rows become requests, and acknowledgements move the cursor.

use super::*;

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
async fn a_score_is_sent_at_once_and_those_within_the_deadline_share_a_request() {
    let rows = rows(1, 1, |_, _| 0.0);
    let during_request = rows.clone();
    let fake = FakeReceiver::start(move |request, _| {
        if request == 0 {
            during_request.push(0.0);
        }
        reply(204)
    })
    .await;
    let deadline = Duration::from_secs(3600);
    let config = Config { batch_send_deadline: deadline, ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    sender.wake.notify_one();
    wait_until("the first is written", || rows.state().advances.len() == 1).await;
    for i in 1..=5 {
        rows.push(f64::from(i));
        sender.wake.notify_one();
        tokio::task::yield_now().await;
    }
    sender.finish().await;
    let sizes: Vec<usize> = fake.requests().iter().map(ReceivedRequest::n_samples).collect();
    assert_eq!(sizes, [1, 6]);
}

#[tokio::test]
async fn a_deadline_of_zero_sends_each_score_at_once() {
    let fake = FakeReceiver::start(|_, _| reply(204)).await;
    let rows = rows(1, 1, |_, _| 0.0);
    let mut sender = RunningSender::start(
        &rows,
        Config { batch_send_deadline: Duration::ZERO, ..config(fake.url.clone()) },
    );
    for n_sent in 1..=5 {
        sender.wake.notify_one();
        wait_until("it is written", || rows.state().advances.len() == n_sent).await;
        rows.push(1.0);
    }
    sender.finish().await;
    assert_eq!(fake.requests().len(), 6);
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
        tenant: None,
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
