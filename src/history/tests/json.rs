//! The sources that answer with JSON, against a server with scripted responses.

use super::*;
use crate::http::parse_query;
use crate::http::server::RequestBody;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A form, by name.
type Form = BTreeMap<String, String>;

/// A server with one of the APIs, and the forms that it received.
struct FakeApi {
    client: HistoryClient,
    forms: Arc<Mutex<Vec<Form>>>,
    _stop: watch::Sender<bool>,
}

impl FakeApi {
    async fn start(api: Api, script: impl Fn(&Form) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/prom", listener.local_addr().expect("bound"));
        let forms = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = watch::channel(false);
        let (script, log) = (Arc::new(script), forms.clone());
        let path = match api {
            Api::Export => "/prom/api/v1/export",
            _ => "/prom/api/v1/query",
        };
        let route = move |request: hyper::Request<RequestBody>| {
            let (script, log) = (script.clone(), log.clone());
            async move {
                let (head, body) = request.into_parts();
                assert_eq!((head.method, head.uri.path()), (hyper::Method::POST, path));
                assert_eq!(head.headers[CONTENT_TYPE], "application/x-www-form-urlencoded");
                let body = body.collect().await.expect("a whole body").to_bytes();
                let form: Form = parse_query(std::str::from_utf8(&body).expect("text")).into_iter().collect();
                let reply = script(&form);
                log.lock().expect("no panic").push(form);
                reply
            }
        };
        tokio::spawn(Server::default().serve(listener, route, stopped));
        let config = Config { api, url: url.parse().expect("a URL"), ..Config::default() };
        let client = HistoryClient::new(&config, &Metrics::default()).expect("a client");
        Self { client, forms, _stop: stop }
    }

    async fn read(&self, range: (i64, i64)) -> (Vec<SeriesSamples>, Result<(), Error>) {
        let selector = Selector::parse(r#"{"my.metric",path=~"a\\d|\"b\"","é"!=""}"#).expect("a selector");
        let group =
            [Matcher::equal("job", "back\\slash \"quote\"\nline"), Matcher::one_of("instance", ["a.b", ""])];
        let mut series = Vec::new();
        let result = self.client.read(None, &selector, &group, range, |slice| series.extend(slice)).await;
        (series, result)
    }

    /// The values of a field, one of each request.
    fn fields(&self, name: &str) -> Vec<String> {
        self.forms.lock().expect("no panic").iter().map(|form| form[name].clone()).collect()
    }
}

const MATCHERS: &str = r#"{__name__="my.metric",path=~"a\\d|\"b\"","é"!="",job="back\\slash \"quote\"\nline",instance=~"a\\.b|"}"#;

fn reply(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Reply::new(body.into().into());
    *reply.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

const LINE: &str = "{\"metric\":{\"__name__\":\"a\"},\"values\":[1.5,null],\"timestamps\":[1000,2000]}\n";
const MATRIX: &str = r#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"__name__":"a"},"values":[[1,"1.5"]]}]}}"#;

fn exported(body: &'static str) -> Reply {
    reply(200, "application/stream+json; charset=utf-8", body)
}

#[tokio::test]
async fn an_export_asks_for_a_slice_of_raw_samples() {
    let fake = FakeApi::start(Api::Export, |_| exported(LINE)).await;
    let (series, result) = fake.read((999, 90_061_007)).await;
    result.expect("valid");
    assert_eq!(series[0].1, [Sample { timestamp_ms: 1000, value: 1.5 }, Sample::stale(2000)]);
    assert_eq!(fake.fields("match[]"), [MATCHERS, MATCHERS]);
    assert_eq!(fake.fields("start"), ["1.000", "86401.000"]);
    assert_eq!(fake.fields("end"), ["86400.999", "90061.007"]);
    assert_eq!(Selector::parse(MATCHERS).expect("PromQL").matchers().len(), 5);
}

#[tokio::test]
async fn a_query_asks_for_a_range_selector_of_the_length_of_the_slice() {
    let fake = FakeApi::start(Api::Query, |_| reply(200, "application/json", MATRIX)).await;
    let (series, result) = fake.read((999, 90_061_007)).await;
    result.expect("valid");
    assert_eq!(series[0].1, [Sample { timestamp_ms: 1000, value: 1.5 }]);
    assert_eq!(fake.fields("query"), [format!("{MATCHERS}[86400000ms]"), format!("{MATCHERS}[3660008ms]")]);
    assert_eq!(fake.fields("time"), ["86400.999", "90061.007"]);
}

/// As with remote read: the histories of two groups are read one request at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_at_a_pace_take_turns_with_each_api() {
    type Script = fn() -> Reply;
    let cases: [(Api, Script); 2] =
        [(Api::Export, || exported(LINE)), (Api::Query, || reply(200, "application/json", MATRIX))];
    for (api, script) in cases {
        let running = AtomicUsize::new(0);
        let fake = FakeApi::start(api, move |_| {
            assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "{api:?}: a second request at once");
            std::thread::sleep(Duration::from_millis(20));
            running.fetch_sub(1, Ordering::SeqCst);
            script()
        })
        .await;
        let selector = Selector::parse("a").expect("a selector");
        let read = async || {
            let read =
                fake.client.read_at_pace(Pace::Half, None, &selector, &[], (0, 3 * DAY_MS), |_| Ok(()));
            read.await.expect("a response");
        };
        tokio::join!(read(), read());
        let seconds = fake.client.metrics.seconds.get();
        assert!(seconds > 6.0 * 0.02, "{api:?}: {seconds}");
    }
}

#[tokio::test]
async fn a_slice_above_a_limit_of_the_server_or_the_client_is_halved() {
    const TOO_MANY: &str = r#"{"status":"error","errorType":"execution","error":"query processing would load too many samples into memory in query execution"}"#;
    let fake = FakeApi::start(Api::Query, |form| match form["query"].ends_with("[21600000ms]") {
        true => reply(200, "application/json", MATRIX),
        false => reply(422, "application/json", TOO_MANY),
    })
    .await;
    let (_, result) = fake.read((0, DAY_MS)).await;
    result.expect("shorter slices succeed");
    assert_eq!(fake.forms.lock().expect("no panic").len(), 6, "a day, a half, four quarters");
    let fake = FakeApi::start(Api::Query, |form| match form["query"].ends_with("[43200000ms]") {
        true => reply(200, "application/json", MATRIX),
        false => reply(200, "application/json", vec![b' '; RESPONSE_LIMIT + 1]),
    })
    .await;
    fake.read((0, DAY_MS)).await.1.expect("shorter slices succeed");
    assert_eq!(fake.forms.lock().expect("no panic").len(), 3);
}

#[tokio::test]
async fn a_failure_names_the_server_and_what_it_says() {
    type Script = fn(&Form) -> Reply;
    let cases: [(Api, Script, &str, bool); 7] = [
        (
            Api::Export,
            |_| reply(422, "text/plain", "unknown function\nmore"),
            "history: URL answered 422 Unprocessable Entity: unknown function",
            false,
        ),
        (
            Api::Query,
            |_| {
                reply(
                    400,
                    "application/json",
                    r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#,
                )
            },
            "history: URL answered 400 Bad Request: parse error",
            false,
        ),
        (
            Api::Query,
            |_| reply(503, "text/plain", "later"),
            "history: URL answered 503 Service Unavailable: later",
            true,
        ),
        (
            Api::Export,
            |_| reply(200, "text/html", "<html>"),
            "history: URL answered with content type \"text/html\", not application/stream+json",
            false,
        ),
        (
            Api::Query,
            |_| reply(200, "text/html", "<html>"),
            "history: URL answered with content type \"text/html\", not application/json",
            false,
        ),
        (
            Api::Export,
            |_| exported(&LINE[..20]),
            "history: the response ends inside a line, after 20 bytes of it",
            true,
        ),
        (
            Api::Export,
            |_| exported("nonsense\n"),
            "history: the response is not the JSON of the API: expected ident",
            false,
        ),
    ];
    for (api, script, expected, is_recoverable) in cases {
        let fake = FakeApi::start(api, script).await;
        let (series, result) = fake.read((0, 10 * DAY_MS)).await;
        let error = result.expect_err(expected);
        let text = crate::error::chain(&error).replace(&fake.client.config.url.to_string(), "URL");
        assert!(text.starts_with(expected) && !text.contains('\n'), "{text}");
        assert_eq!(error.is_recoverable(), is_recoverable, "{text}");
        assert!(series.is_empty());
        assert_eq!(fake.forms.lock().expect("no panic").len(), 1, "{text}");
    }
}

#[tokio::test]
async fn a_rate_limit_is_temporary_and_its_pause_is_known() {
    let fake = FakeApi::start(Api::Query, |_| {
        let mut reply = reply(429, "text/plain", "too many requests");
        reply.headers_mut().insert("retry-after", HeaderValue::from_static("7"));
        reply
    })
    .await;
    let error = fake.read((0, 60_000)).await.1.expect_err("limited");
    assert!(error.is_recoverable());
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn an_export_that_breaks_off_yields_no_samples() {
    let fake = FakeApi::start(Api::Export, |_| {
        let (writer, body) = Body::channel();
        tokio::spawn(async move { writer.send(Bytes::from(LINE)).await });
        let mut reply = Reply::new(body);
        reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/stream+json"));
        reply
    })
    .await;
    let (series, result) = fake.read((0, DAY_MS)).await;
    assert!(matches!(result, Err(Error::Http(client::Error::Body { .. }))), "{result:?}");
    assert!(series.is_empty());
}

#[test]
fn a_source_serves_the_endpoint_of_its_server_and_tenant() {
    let http = crate::http::config::ClientConfig::default();
    let serves = |api, url: &str, endpoint: &str| {
        let config = Config { api, url: url.parse().expect("a URL"), ..Config::default() };
        config.serves(&endpoint.parse().expect("a URL"), &http)
    };
    assert!(serves(Api::Export, "http://vm:8428", "http://vm:8428/api/v1/write"));
    assert!(serves(Api::Query, "http://vm:8428/", "http://vm:8428/api/v1/write"));
    assert!(serves(Api::RemoteRead, "http://a/api/v1/read", "http://a/api/v1/write"));
    assert!(!serves(Api::Export, "http://vm:8428", "http://other:8428/api/v1/write"));
    assert!(!serves(Api::Query, "http://vm:8428/prometheus", "http://vm:8428/api/v1/write"));
}
