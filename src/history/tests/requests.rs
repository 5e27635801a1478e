//! The client against a server with scripted responses.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A remote-read server and the requests that it received.
struct FakeReadServer {
    client: HistoryClient,
    requests: Arc<Mutex<Vec<ReadRequest>>>,
    _stop: watch::Sender<bool>,
}

impl FakeReadServer {
    async fn start(script: impl Fn(&Query) -> Reply + Send + Sync + 'static) -> Self {
        Self::with_timeout(Config::default().remote_timeout, move |request| script(&request.queries[0])).await
    }

    /// A server whose script gets the request, for a client with this timeout.
    async fn with_timeout(
        remote_timeout: Duration,
        script: impl Fn(&ReadRequest) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = watch::channel(false);
        let (script, log) = (Arc::new(script), requests.clone());
        let route = move |request: hyper::Request<crate::http::server::RequestBody>| {
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
                let reply = script(&request);
                log.lock().expect("no panic").push(request);
                reply
            }
        };
        tokio::spawn(Server::default().serve(listener, route, stopped));
        let url = format!("http://{address}/api/v1/read").parse().expect("a URL");
        let config = Config { url, remote_timeout, ..Config::default() };
        let client = HistoryClient::new(&config, &Metrics::default()).expect("a client");
        Self { client, requests, _stop: stop }
    }

    /// Reads a range; returns the slices in the order of their arrival.
    async fn read(&self, range: (i64, i64)) -> (Vec<Vec<SeriesSamples>>, Result<(), Error>) {
        let selector = Selector::parse("up").expect("a selector");
        let group = [Matcher::equal("job", "node")];
        let mut slices = Vec::new();
        let result = self.client.read(None, &selector, &group, range, |slice| slices.push(slice)).await;
        (slices, result)
    }

    /// The requested ranges.
    fn ranges(&self) -> Vec<(i64, i64)> {
        let requests = self.requests.lock().expect("no panic");
        requests.iter().map(|r| (r.queries[0].start_timestamp_ms, r.queries[0].end_timestamp_ms)).collect()
    }
}

/// The number of slices with this outcome.
fn slice_count(client: &HistoryClient, outcome: &'static str) -> u64 {
    client.metrics.slices.get_or_create(&[("outcome", outcome.into())]).get()
}

fn reply(content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Reply::new(body.into().into());
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

fn error_reply(status: u16, text: &'static str) -> Reply {
    let mut reply = reply("text/plain; charset=utf-8", text);
    *reply.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
    reply
}

/// A sample at every full minute of the query.
fn one_sample_a_minute(query: &Query) -> Reply {
    let first = query.start_timestamp_ms.div_euclid(60_000) + 1;
    let last = query.end_timestamp_ms.div_euclid(60_000);
    let samples =
        (first..=last).map(|minute| proto::Sample { value: minute as f64, timestamp: minute * 60_000 });
    let labels = vec![label("__name__", "up"), label("job", "node")];
    let series = proto::TimeSeries { labels, samples: samples.collect(), ..Default::default() };
    let response = ReadResponse { results: vec![QueryResult { timeseries: vec![series] }] };
    reply(SAMPLES_CONTENT_TYPE, snappy::compress(&response.encode_to_vec()))
}

#[tokio::test]
async fn sends_the_same_requests_as_prometheus() {
    for (name, selector) in [
        ("netdev-rx", r#"node_network_receive_bytes_total{job="node"}"#),
        (
            "go-heap-gap",
            r#"{__name__=~"go_memstats_heap_alloc_bytes|up|prometheus_remote_storage_shards|process_cpu_seconds_total",job!="netdev-fast"}"#,
        ),
    ] {
        let request = decompressed(&capture(&format!("{name}.stream.request.snappy")));
        let request = ReadRequest::decode(&*request).expect("a ReadRequest");
        let (start_ms, end_ms) = (request.queries[0].start_timestamp_ms, request.queries[0].end_timestamp_ms);
        let selector = Selector::parse(selector).expect("a selector");
        for (content_type, kind) in [(SAMPLES_CONTENT_TYPE, "samples"), (STREAMED_CONTENT_TYPE, "stream")] {
            let response = capture(&format!("{name}.{kind}.response.bin"));
            let fake = FakeReadServer::start(move |_| reply(content_type, response.clone())).await;
            let mut series = Vec::new();
            let range = (start_ms - 1, end_ms);
            fake.client
                .read(None, &selector, &[], range, |slice| series.extend(slice))
                .await
                .expect("a response");
            assert_eq!(*fake.requests.lock().expect("no panic"), std::slice::from_ref(&request));
            compare(&series, &format!("{name}.expected.csv"));
        }
    }
}

#[tokio::test]
async fn reads_day_by_day_every_timestamp_once() {
    let fake = FakeReadServer::start(one_sample_a_minute).await;
    let (slices, result) = fake.read((1000, 1000 + 5 * DAY_MS / 2)).await;
    result.expect("a response");
    let ends = [1000, 1000 + DAY_MS, 1000 + 2 * DAY_MS, 1000 + 5 * DAY_MS / 2];
    let expected: Vec<(i64, i64)> = ends.windows(2).map(|pair| (pair[0] + 1, pair[1])).collect();
    assert_eq!(fake.ranges(), expected);
    let times: Vec<i64> =
        slices.iter().flatten().flat_map(|(_, samples)| samples).map(|sample| sample.timestamp_ms).collect();
    assert_eq!(times, (1..=3600).map(|minute| minute * 60_000).collect::<Vec<i64>>());
    let matchers = fake.requests.lock().expect("no panic")[0].queries[0].matchers.clone();
    let names: Vec<(&str, &str)> = matchers.iter().map(|m| (&*m.name, &*m.value)).collect();
    assert_eq!(names, [("__name__", "up"), ("job", "node")]);
}

#[tokio::test]
async fn an_empty_range_is_not_requested() {
    let fake = FakeReadServer::start(one_sample_a_minute).await;
    let (slices, result) = fake.read((1000, 1000)).await;
    result.expect("no request is needed");
    assert!(slices.is_empty() && fake.ranges().is_empty());
}

#[tokio::test]
async fn halves_a_slice_above_the_limit_of_the_server() {
    let longest_ms = DAY_MS / 4;
    let fake = FakeReadServer::start(move |query| {
        if query.end_timestamp_ms - query.start_timestamp_ms >= longest_ms {
            error_reply(400, "exceeded sample limit (50000000)\n")
        } else {
            one_sample_a_minute(query)
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
    let fake = FakeReadServer::start(|_| error_reply(400, "exceeded sample limit (5)")).await;
    let (slices, result) = fake.read((0, DAY_MS)).await;
    let error = result.expect_err("never short enough");
    let expected =
        format!("history: {} answered 400 Bad Request: exceeded sample limit (5)", fake.client.config.url);
    assert_eq!(error.to_string(), expected);
    assert!(slices.is_empty());
    let shortest =
        fake.ranges().iter().map(|(start, end)| end - start + 1).min().expect("at least one request");
    assert!((30_000..=60_000).contains(&shortest), "{shortest} ms");
}

#[tokio::test]
async fn b67_halves_a_slice_above_the_limit_of_the_client() {
    // The snappy header declares a size above the limit.
    let fake = FakeReadServer::start(move |query| {
        if query.end_timestamp_ms - query.start_timestamp_ms >= DAY_MS / 2 {
            reply("application/x-protobuf", &b"\xff\xff\xff\xff\x0f\x00"[..])
        } else {
            one_sample_a_minute(query)
        }
    })
    .await;
    let (_, result) = fake.read((0, DAY_MS)).await;
    result.expect("a shorter slice succeeds");
    assert_eq!(fake.ranges().len(), 3);
}

#[tokio::test]
async fn b53_b64_any_other_failure_ends_the_read_at_once() {
    type Script = fn(&Query) -> Reply;
    let cases: [(Script, &str); 6] = [
        (
            |_| error_reply(500, "error parsing regexp\nand more"),
            "history: URL answered 500 Internal Server Error: error parsing regexp",
        ),
        (
            |_| error_reply(400, "unknown matcher type"),
            "history: URL answered 400 Bad Request: unknown matcher type",
        ),
        (
            |_| reply(STREAMED_CONTENT_TYPE, "timeout"),
            "remote read: the stream is broken: the response ends inside a frame, after 7 bytes of it",
        ),
        (
            |_| reply("text/html", "<html>"),
            "history: URL answered with content type \"text/html\", not application/x-protobuf or",
        ),
        (
            |_| reply("application/x-protobuf", "not snappy"),
            "remote read: the response cannot be decompressed: the body is not in snappy's block format",
        ),
        (|_| reply("application/x-protobuf", snappy::compress(b"")), "remote read: 0 results for one query"),
    ];
    for (script, expected) in cases {
        let fake = FakeReadServer::start(script).await;
        let (slices, result) = fake.read((0, 10 * DAY_MS)).await;
        let text = crate::error::chain(&result.expect_err(expected));
        let text = text.replace(&fake.client.config.url.to_string(), "URL");
        assert!(text.starts_with(expected), "{text}");
        assert!(!text.contains('\n'), "{text}");
        assert!(slices.is_empty());
        assert_eq!(fake.ranges().len(), 1, "{expected}");
    }
}

#[tokio::test]
async fn b61_f39_chunks_of_an_unknown_encoding_are_requested_as_samples() {
    let script = |request: &ReadRequest| match request.accepted_response_types[..] {
        [1, 0] => reply(STREAMED_CONTENT_TYPE, framed(0, &[("up", vec![chunk(4, &[(60_000, 1.0)])])])),
        _ => one_sample_a_minute(&request.queries[0]),
    };
    let fake = FakeReadServer::with_timeout(Duration::from_secs(60), script).await;
    let (slices_read, result) = fake.read((0, 3 * DAY_MS)).await;
    result.expect("a SAMPLES response");
    assert_eq!(slices_read.len(), 3);
    let requests = fake.requests.lock().expect("no panic");
    let response_types: Vec<&[i32]> =
        requests.iter().map(|request| &request.accepted_response_types[..]).collect();
    assert_eq!(response_types, [&[1, 0][..], &[0], &[0], &[0]], "the client remembers the encoding");
    assert_eq!(slice_count(&fake.client, "unknown_encoding"), 1);
}

#[tokio::test]
async fn an_unknown_encoding_where_samples_were_requested_is_an_error() {
    let fake =
        FakeReadServer::start(|_| reply(STREAMED_CONTENT_TYPE, framed(0, &[("up", vec![chunk(4, &[])])])))
            .await;
    let (_, result) = fake.read((0, DAY_MS)).await;
    assert!(matches!(result, Err(Error::Encoding { encoding: 4 })));
    assert_eq!(fake.ranges().len(), 2);
}

#[tokio::test]
async fn b56_b57_a_broken_stream_yields_no_samples() {
    let good = framed(0, &[("up", vec![chunk(1, &[(1, 1.0)])])]);
    let text = [&good[..], b"query timed out in expression evaluation\n"].concat();
    let truncated = good[..good.len() - 1].to_vec();
    for body in [text, truncated] {
        let fake = FakeReadServer::start(move |_| reply(STREAMED_CONTENT_TYPE, body.clone())).await;
        let (slices_read, result) = fake.read((0, DAY_MS)).await;
        assert!(result.expect_err("broken").is_recoverable());
        assert!(slices_read.is_empty());
        assert_eq!(slice_count(&fake.client, "failed"), 1);
    }
    // The connection ends between two frames, but not with the body.
    let fake = FakeReadServer::start(move |_| {
        let (writer, body) = Body::channel();
        let good = Bytes::from(good.clone());
        tokio::spawn(async move { writer.send(good).await });
        streamed_reply(body)
    })
    .await;
    let (slices_read, result) = fake.read((0, DAY_MS)).await;
    assert!(matches!(result, Err(Error::Http(client::Error::Body { .. }))), "{result:?}");
    assert!(slices_read.is_empty());
}

fn streamed_reply(body: Body) -> Reply {
    let mut reply = Reply::new(body);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(STREAMED_CONTENT_TYPE));
    reply
}

#[tokio::test]
async fn a_stream_without_a_length_is_rejected() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/api/v1/read", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.expect("a connection");
        let mut request = [0; 4096];
        while connection.read(&mut request).await.expect("a request") == request.len() {}
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {STREAMED_CONTENT_TYPE}\r\n\r\n");
        connection.write_all(head.as_bytes()).await.expect("the client reads");
    });
    let config = Config { url: url.parse().expect("a URL"), ..Config::default() };
    let client = HistoryClient::new(&config, &Metrics::default()).expect("a client");
    let selector = Selector::parse("up").expect("a selector");
    let result = client.read(None, &selector, &[], (0, DAY_MS), |_| ()).await;
    assert!(matches!(result, Err(Error::MissingLength { .. })), "{result:?}");
}

#[tokio::test]
async fn b66_endless_frames_end_with_a_timeout() {
    let fake = FakeReadServer::with_timeout(Duration::from_millis(300), |_| {
        let (writer, body) = Body::channel();
        let good = Bytes::from(framed(0, &[("up", vec![chunk(1, &[(1, 1.0)])])]));
        tokio::spawn(async move {
            while writer.send(good.clone()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        streamed_reply(body)
    })
    .await;
    let (slices_read, result) = fake.read((0, DAY_MS)).await;
    let error = result.expect_err("no end");
    assert!(matches!(error, Error::Http(client::Error::Timeout { .. })), "{error}");
    assert!(error.is_recoverable() && slices_read.is_empty());
    let lengths: Vec<i64> = fake.ranges().iter().map(|(start, end)| end - start + 1).collect();
    assert_eq!(
        lengths,
        [DAY_MS, DAY_MS / 2, DAY_MS / 4],
        "shorter slices were tried a bounded number of times"
    );
}

#[tokio::test]
async fn f40_a_slice_that_takes_too_long_is_halved() {
    let fake = FakeReadServer::with_timeout(Duration::from_millis(500), |request| {
        let query = &request.queries[0];
        if query.end_timestamp_ms - query.start_timestamp_ms < DAY_MS / 4 {
            return one_sample_a_minute(query);
        }
        let (writer, body) = Body::channel();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            writer.end().await
        });
        streamed_reply(body)
    })
    .await;
    let (slices_read, result) = fake.read((0, 2 * DAY_MS)).await;
    result.expect("shorter slices succeed");
    let samples: usize = slices_read.iter().flatten().map(|(_, samples)| samples.len()).sum();
    assert_eq!(samples, 2 * 1440, "every minute once");
    assert_eq!((slice_count(&fake.client, "split"), slice_count(&fake.client, "read")), (2, 8));
}

#[tokio::test]
async fn f38_a_server_without_remote_read_gets_one_request() {
    for status in [404, 405, 501] {
        let fake = FakeReadServer::start(move |_| error_reply(status, "no such thing")).await;
        let (_, result) = fake.read((0, 10 * DAY_MS)).await;
        assert!(!result.expect_err("rejected").is_recoverable(), "{status}");
        assert_eq!(fake.ranges().len(), 1);
    }
}

#[tokio::test]
async fn slices_before_a_failure_stay() {
    let fake = FakeReadServer::start(|query| {
        if query.start_timestamp_ms > DAY_MS { error_reply(500, "") } else { one_sample_a_minute(query) }
    })
    .await;
    let (slices, result) = fake.read((0, 3 * DAY_MS)).await;
    assert!(matches!(result, Err(Error::UnexpectedStatus { .. })));
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0][0].1.len(), 1440);
}

#[tokio::test]
async fn a_refused_connection_is_an_error() {
    let listener = TcpListener::bind("127.0.0.10:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let url = format!("http://{address}/api/v1/read").parse().expect("a URL");
    let selector = Selector::parse("up").expect("a selector");
    let config = Config { url, ..Config::default() };
    let client = HistoryClient::new(&config, &Metrics::default()).expect("a client");
    let result = client.read(None, &selector, &[], (0, DAY_MS), |_| ()).await;
    let text = crate::error::chain(&result.expect_err("no listener"));
    assert!(text.contains(&address.to_string()) && text.contains("refused"), "{text}");
}

/// A server that returns too much of any slice gets a bounded number of requests, also for a range of a millisecond.
#[tokio::test]
async fn a_slice_is_never_empty() {
    for (range, n_requests) in [((0, 1), 1), ((0, 60_000), 1), ((0, 60_001), 2), ((0, 200_000), 3)] {
        let fake = FakeReadServer::start(|_| error_reply(400, "exceeded sample limit (1)")).await;
        let (slices_read, result) = fake.read(range).await;
        assert!(result.expect_err("too large").is_too_large());
        assert!(slices_read.is_empty());
        assert_eq!(fake.ranges().len(), n_requests, "{range:?}");
        assert!(fake.ranges().iter().all(|(start, end)| start <= end));
    }
    // The server recovers after it rejected the last, short slice.
    let n_answered = std::sync::atomic::AtomicUsize::new(0);
    let fake = FakeReadServer::start(move |query| {
        match n_answered.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            1 => error_reply(400, "exceeded sample limit (1)"),
            _ => one_sample_a_minute(query),
        }
    })
    .await;
    let (_, result) = fake.read((0, DAY_MS + 1)).await;
    assert!(result.expect_err("a slice of a millisecond is not halved").is_too_large());
    assert_eq!(fake.ranges().len(), 2);
}

/// The histories of two groups: one request at a time, while small reads do not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reads_at_a_pace_take_turns() {
    let most_at_once = async |pace| {
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let most_seen = most.clone();
        let fake = FakeReadServer::start(move |query| {
            most.fetch_max(1 + running.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(20));
            running.fetch_sub(1, Ordering::SeqCst);
            one_sample_a_minute(query)
        })
        .await;
        let selector = Selector::parse("up").expect("a selector");
        let read = async || {
            let read = fake.client.read_at_pace(pace, None, &selector, &[], (0, 10 * DAY_MS), |_| Ok(()));
            read.await.expect("a response");
        };
        tokio::join!(read(), read());
        let seconds = fake.client.metrics.seconds.get();
        assert_eq!(seconds > 20.0 * 0.02, pace != Pace::Immediate, "{pace:?}: {seconds}");
        most_seen.load(Ordering::SeqCst)
    };
    assert_eq!(most_at_once(Pace::Quarter).await, 1);
    assert_eq!(most_at_once(Pace::Half).await, 1);
    assert_eq!(most_at_once(Pace::Immediate).await, 2);
}

/// The header is the tenant's, no matcher names the label, and what is read has it, whatever the server returns.
#[tokio::test]
async fn a_request_names_its_tenant_and_what_is_read_has_its_label() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/api/v1/read", listener.local_addr().expect("bound"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let route = move |request: hyper::Request<crate::http::server::RequestBody>| {
        let log = log.clone();
        async move {
            let (head, body) = request.into_parts();
            let tenant = head.headers["x-scope-orgid"].to_str().expect("ASCII").to_string();
            let body = body.collect().await.expect("a whole body").to_bytes();
            let mut request = ReadRequest::decode(&*decompressed(&body)).expect("a ReadRequest");
            let matchers = request.queries.remove(0).matchers.into_iter();
            log.lock()
                .expect("no panic")
                .push((tenant, matchers.map(|m| (m.name, m.value)).collect::<Vec<_>>()));
            let label = |name: &str, value: &str| proto::Label { name: name.into(), value: value.into() };
            let timeseries = proto::TimeSeries {
                labels: vec![label("__name__", "up"), label("job", "node"), label("tenant", "b")],
                samples: vec![proto::Sample { timestamp: 5, value: 1.0 }],
                ..Default::default()
            };
            let results = vec![QueryResult { timeseries: vec![timeseries] }];
            reply(SAMPLES_CONTENT_TYPE, snappy::compress(&ReadResponse { results }.encode_to_vec()))
        }
    };
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(Server::default().serve(listener, route, stopped));
    let text = format!("{{tenants: {{}}, remote_read: [{{url: '{url}'}}]}}");
    let config = crate::config::Config::parse(&text).expect("valid").history.remove(0);
    let client = HistoryClient::new(&config, &Metrics::default()).expect("a client");
    let a = "a".parse().expect("an ID");
    let read = async |tenant, selector: &str, group: &[Matcher]| {
        let selector = Selector::parse(selector).expect("a selector");
        let mut read = Vec::new();
        let result = client.read(tenant, &selector, group, (0, 10), |slice| read.extend(slice)).await;
        (read.iter().map(|(labels, _)| labels.to_string()).collect::<Vec<_>>(), result)
    };
    let of_group = [Matcher::equal("job", "node"), Matcher::one_of("tenant", ["a", ""])];
    let (series, result) = read(Some(&a), r#"up{tenant=~"a|b"}"#, &of_group).await;
    result.expect("a response");
    assert_eq!(series, [r#"up{job="node", tenant="a"}"#]);
    let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
    let expected = [("a".to_string(), vec![pair("__name__", "up"), pair("job", "node")])];
    assert_eq!(*asked.lock().expect("no panic"), expected);
    // Neither of these is sent.
    let (series, result) = read(Some(&a), r#"up{tenant="b"}"#, &[]).await;
    assert!(series.is_empty() && result.is_ok());
    assert!(matches!(read(None, "up", &[]).await.1, Err(Error::NoTenant)));
    assert_eq!(asked.lock().expect("no panic").len(), 1);
}
