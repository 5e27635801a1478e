//! Health, metrics, shutdown and errors at start.

use crate::encode::{field, series};
use crate::support::http::Response;
use crate::support::{PrometheusVersion, now_ms, reference};
use crate::{Receiver, TIMEOUT, ValidSeries, post_head};
use promforest::prom::wire::snappy;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn health_and_readiness() {
    let receiver = Receiver::start();
    let healthy = receiver.get("/-/healthy");
    assert_eq!((healthy.status, healthy.only_line()), (200, "promforest is healthy"));
    let wait_for_ready_text = |text: &str| {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let answer = receiver.get("/-/ready");
            assert_eq!(answer.status, 503, "{answer:?}");
            if answer.only_line().starts_with(text) {
                return;
            }
            assert!(Instant::now() < deadline, "{answer:?} and not {text}");
            thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for_ready_text("net: no samples yet");
    assert_eq!(receiver.write(&ValidSeries::new(1).series()).status, 204);
    wait_for_ready_text("net: 0 % of the 1h of history that a first model needs");

    let mut stream = receiver.connect();
    for (path, status) in [("/-/healthy", 200), ("/-/ready", 503), ("/metrics", 200), ("/", 200)] {
        stream.write_all(format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).expect("sent");
        assert_eq!(Response::read_for_method(&mut stream, "HEAD").status, status, "HEAD {path}");
    }
    stream.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
    assert_eq!(Response::read(&mut stream).body, "promforest is healthy\n", "no body was sent before");
    for path in ["/nowhere", "/api/v1/write/", "/api/v1", "/-/", "/metrics/x"] {
        let answer = receiver.get(path);
        assert_eq!((answer.status, answer.only_line()), (404, "not found"), "{path}");
    }
    let posted = receiver.request("POST /-/healthy HTTP/1.1\r\nContent-Length: 0", b"");
    assert_eq!((posted.status, &*posted.headers["allow"]), (405, "GET, HEAD"));
    assert!(receiver.get("/").body.contains("<a href=\"metrics\">"));
}

/// Prometheus' own linter of the text format; also enforces its naming conventions.
fn check_with_promtool(page: &str) {
    let promtool = PrometheusVersion::V3.prometheus().with_file_name("promtool");
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    check.stdin.take().expect("piped").write_all(page.as_bytes()).expect("promtool reads");
    let output = check.wait_with_output().expect("promtool ends");
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{text}");
}

#[test]
fn every_metric_parses_and_has_help() {
    use prometheus_parse::{LineInfo, Scrape};
    let receiver = Receiver::start();
    // So that every kind of label is there.
    assert_eq!(receiver.write(&series("x", &[(now_ms(), 1.0), (7, 1.0)])).status, 400);
    let metadata = [ValidSeries::new(1).series(), field(3, b"")].concat();
    assert_eq!(receiver.write(&metadata).status, 204);
    thread::sleep(Duration::from_millis(1500));
    let page = receiver.request("GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text", b"");
    assert_eq!(page.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(page.body.ends_with("# EOF\n"));
    let page = receiver.get("/metrics");
    assert_eq!(page.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    for line in page.body.lines() {
        assert!(!matches!(LineInfo::parse(line), LineInfo::Ignored | LineInfo::Empty), "{line}");
    }
    check_with_promtool(&page.body);
    reference::check_metrics(&page.body);
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
    let build = page.body.lines().find(|line| line.starts_with("promforest_build_info{")).expect("the build");
    for label in ["version=\"", "revision=\"", "rustversion=\"1."] {
        assert!(build.contains(label), "{label}: {build}");
    }
    assert!(page.body.contains("process_resident_memory_bytes "));
    assert!(receiver.counts().value("samples_dropped_total{reason=\"invalid_timestamp\"}") >= 1.0);
}

#[test]
fn f27_f28_shuts_down_gracefully_on_a_signal() {
    for signal in ["TERM", "INT"] {
        let mut receiver = Receiver::start();
        assert_eq!(receiver.write(&ValidSeries::new(1).series()).status, 204);
        // A connection that is kept alive does not hold it up.
        let mut idle = receiver.connect();
        idle.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
        assert_eq!(Response::read(&mut idle).status, 200);
        let started = Instant::now();
        receiver.process.signal(signal);
        let status = receiver.process.wait_for_exit(TIMEOUT);
        assert_eq!(status.code(), Some(0), "SIG{signal}");
        assert!(started.elapsed() < Duration::from_secs(1), "SIG{signal}: {:?}", started.elapsed());
        assert!(TcpStream::connect(receiver.address()).is_err());
    }
}

#[test]
fn f27_a_request_under_way_is_answered_before_the_end() {
    let mut receiver = Receiver::start();
    let body = snappy::compress(&ValidSeries::new(1).series());
    let mut stream = receiver.connect();
    let head = post_head(&[("Expect", "100-continue")], body.len());
    stream.write_all(format!("{head}\r\nHost: a\r\n\r\n").as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 100);
    receiver.process.signal("TERM");
    thread::sleep(Duration::from_millis(300));
    stream.write_all(&body).expect("the connection is still there");
    assert_eq!(Response::read(&mut stream).status, 204);
    assert_eq!(receiver.process.wait_for_exit(TIMEOUT).code(), Some(0));
}

#[test]
fn f25_an_address_in_use_is_one_clear_line() {
    let receiver = Receiver::start();
    let port = receiver.port;
    for address in [receiver.address().to_string(), format!(":{port}")] {
        let second = Command::new(env!("CARGO_BIN_EXE_promforest"))
            .args(["--web.listen-address", &address])
            .output()
            .expect("the program runs");
        assert_eq!(second.status.code(), Some(1));
        let text = String::from_utf8(second.stderr).expect("UTF-8");
        assert_eq!(
            text,
            format!("promforest: cannot listen on {address}: Address already in use (os error 98)\n")
        );
        assert!(second.stdout.is_empty());
    }
    assert_eq!(receiver.get("/-/healthy").status, 200, "the first one goes on");
}

#[test]
fn an_invalid_address_is_one_clear_line() {
    for address in [":99999", ":http", "9599"] {
        let output = Command::new(env!("CARGO_BIN_EXE_promforest"))
            .args(["--web.listen-address", address])
            .output()
            .expect("the program runs");
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(text.starts_with(&format!("promforest: cannot listen on {address}: ")), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
