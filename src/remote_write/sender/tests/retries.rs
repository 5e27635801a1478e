//! Failures that are sent again, and the pauses before that.

use super::*;

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
