//! The command line: usage, exit codes, and `promforest match` against a page that this test serves.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::thread;
use support::command::run;

/// Answers every request with the same bytes; returns the address.
fn serve(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
            }
            assert!(head.starts_with(b"GET /metrics HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&head));
            // The other side may have left.
            let _ = stream.write_all(&answer);
        }
    });
    address
}

fn response(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn serve_file(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/match").join(name);
    serve(response("200 OK", &fs::read(file).expect("the page")))
}

/// Runs `promforest match` with a configuration of these detectors.
fn run_match(address: &str, detectors: &str, more: &[&str]) -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("promforest.yml");
    fs::write(&file, format!("detectors:\n{detectors}")).expect("writable");
    let url = format!("http://{address}/metrics");
    let file = file.to_str().expect("UTF-8");
    let args = [&["match", "--url", &url, "--output", "json", "--config.file", file], more].concat();
    let output = run(&args);
    assert_eq!((output.status, &*output.stderr), (0, ""));
    serde_json::from_str(&output.stdout).expect("JSON")
}

#[test]
fn help_and_version() {
    let version = run(&["--version"]);
    assert_eq!(version.status, 0);
    let expected = format!("promforest {} (revision ", env!("CARGO_PKG_VERSION"));
    assert!(
        version.stdout.starts_with(&expected) && version.stdout.contains(", rust 1."),
        "{}",
        version.stdout
    );
    for (args, words) in [
        (["completions", "bash"], ["complete -F _promforest", "--web.listen-address"]),
        (["completions", "zsh"], ["#compdef promforest", "--config.file"]),
    ] {
        let output = run(&args);
        assert_eq!((output.status, &*output.stderr), (0, ""), "{args:?}");
        assert!(words.iter().all(|word| output.stdout.contains(word)), "{}", output.stdout);
    }
    let manual = run(&["man"]);
    assert!(
        manual.stdout.contains(".TH promforest 1") && manual.stdout.contains("storage.path"),
        "{manual:?}"
    );
    for args in [&["--help"][..], &["-h"], &["help"]] {
        let help = run(args);
        assert_eq!((help.status, &*help.stderr), (0, ""), "{args:?}");
        for word in ["run", "check", "match", "--config.file", "--web.listen-address", ":9599", "--log.level"]
        {
            assert!(help.stdout.contains(word), "{args:?}: {word}\n{}", help.stdout);
        }
    }
    for (args, word) in [
        (["run", "--help"], "--log.format"),
        (["check", "--help"], "config"),
        (["doctor", "--help"], "--no-write"),
        (["match", "--help"], "http://localhost:9100/metrics"),
    ] {
        let help = run(&args);
        assert_eq!(help.status, 0);
        assert!(help.stdout.contains(word), "{args:?}: {word}\n{}", help.stdout);
    }
}

const NO_TIME: &str = "\"noon\" is no time: write it as 2026-01-31T12:00:00Z or in seconds since 1970";

#[test]
fn wrong_usage_exits_with_2() {
    for (args, text) in [
        (&["--nonsense"][..], "unexpected argument '--nonsense'"),
        (&["nonsense"], "unrecognized subcommand 'nonsense'"),
        (&["run", "--config.fil", "x"], "unexpected argument '--config.fil'"),
        (&["check"], "Usage: promforest check"),
        (&["check", "config"], "<FILE>"),
        (&["check", "config", "a", "b"], "unexpected argument 'b'"),
        (
            &["match", "--url", "ftp://localhost/metrics"],
            "\"ftp://localhost/metrics\" is not an http:// or https:// URL with a host",
        ),
        (&["match", "--url", "localhost"], "\"localhost\" is not an http:// or https:// URL with a host"),
        (&["match", "--label", "job"], "write NAME=VALUE"),
        (&["match", "--label", "=node"], "write NAME=VALUE"),
        (&["backtest", "--start", "noon"], NO_TIME),
        (&["train", "--start", "noon"], NO_TIME),
        (&["train", "--end", "noon"], NO_TIME),
        (&["train", "--exclude", "noon..2026-01-31T13:00:00Z"], NO_TIME),
        (
            &["train", "--exclude", "noon"],
            "\"noon\" is not START..END, as in 2026-01-31T12:00:00Z..2026-01-31T13:00:00Z",
        ),
        (
            &["train", "--exclude", "9..8"],
            "the range from 1970-01-01T00:00:09.000Z to 1970-01-01T00:00:08.000Z is empty",
        ),
        (&["train", "--group", "job=node"], "expected"),
        (&["match", "--output", "xml"], "[possible values: text, json]"),
        (&["--log.level", "trace"], "[possible values: debug, info, warn, error]"),
        (&["--log.format", "xml"], "[possible values: logfmt, json]"),
        (&["--log.level", "info", "match"], "cannot be used with"),
    ] {
        let output = run(args);
        assert_eq!((output.status, &*output.stdout), (2, ""), "{args:?}");
        assert!(output.stderr.contains(text), "{args:?}: {}", output.stderr);
    }
}

#[test]
fn match_shows_columns_as_text() {
    let address = serve_file("node_exporter.prom");
    let url = format!("http://{address}/metrics");
    let output = run(&["match", "--url", &url, "--label", "job=node"]);
    assert_eq!((output.status, &*output.stderr), (0, ""));
    let mut expected = format!(
        "{url}: 51 series\n\ndetector node_network selects 16 of them\n  group {{instance={address:?}, job=\"node\"}}: 16 columns\n"
    );
    for (direction, unit) in
        [("receive", "bytes"), ("receive", "packets"), ("transmit", "bytes"), ("transmit", "packets")]
    {
        for device in ["eth0", "ifb0", "ifb1", "lo"] {
            let series = format!("node_network_{direction}_{unit}_total{{device={device:?}}}");
            expected += &format!("    rate({series}[1m])\n");
        }
    }
    assert_eq!(output.stdout, expected);
}

#[test]
fn match_shows_groups_as_json() {
    let address = serve_file("node_exporter.prom");
    let detectors = "
  - {name: drops, match: ['node_network_receive_drop_total{device!~\"ifb.*\"}'], by: [device, zone], transform: rate(5m)}
  - {name: load, match: [node_load1, go_goroutines], transform: value}
  - {name: nothing, match: [absent]}
";
    let more = ["--label", "job=node", "--label", "instance=alpha", "--label", "zone=b"];
    let group = |device: &str| {
        json!({
            "labels": {"device": device, "zone": "b"},
            "columns": [r#"rate(node_network_receive_drop_total{instance="alpha", job="node"}[5m])"#],
        })
    };
    assert_eq!(
        run_match(&address, detectors, &more),
        json!([
            {"detector": "drops", "selected": 2, "groups": [group("eth0"), group("lo")]},
            {"detector": "load", "selected": 2, "groups": [{
                "labels": {"instance": "alpha", "job": "node"},
                "columns": [r#"go_goroutines{zone="b"}"#, r#"node_load1{zone="b"}"#],
            }]},
            {"detector": "nothing", "selected": 0, "groups": []},
        ])
    );
}

#[test]
fn match_shows_labels_as_on_the_wire() {
    let columns = |address: &str, detectors: &str| {
        run_match(address, detectors, &[])[0]["groups"][0]["columns"].clone()
    };
    let address = serve_file("node_exporter.prom");
    // A value with parentheses of its own.
    let info = columns(&address, "  - {name: a, match: ['node_os_info']}\n");
    let info = info[0].as_str().expect("a text");
    assert!(info.starts_with(r#"rate(node_os_info{id="debian", "#), "{info}");
    assert!(info.contains(r#"pretty_name="Debian GNU/Linux 12 (bookworm)""#), "{info}");
    assert!(info.ends_with(r#"version_id="12"}[1m])"#), "{info}");
    let summary = columns(&address, "  - {name: a, match: ['{__name__=~\"go_gc_.*\"}'], transform: value}\n");
    let quantiles = ["0", "0.25", "0.5", "0.75", "1"];
    let mut expected: Vec<String> =
        quantiles.iter().map(|q| format!("go_gc_duration_seconds{{quantile={q:?}}}")).collect();
    expected.extend(["go_gc_duration_seconds_count".into(), "go_gc_duration_seconds_sum".into()]);
    assert_eq!(summary, json!(expected));

    let address = serve_file("requests.prom");
    let all = columns(&address, "  - {name: a, match: ['{__name__=~\".+\"}'], transform: value}\n");
    assert_eq!(
        all,
        json!([
            r#"http_request_duration_seconds_bucket{le="+Inf", path="/"}"#,
            r#"http_request_duration_seconds_bucket{le="0.5", path="/"}"#,
            r#"http_request_duration_seconds_count{path="/"}"#,
            r#"http_request_duration_seconds_sum{path="/"}"#,
        ])
    );
}

/// Braces, commas, equals signs and quotes in label values, colons in names, exemplars and timestamps.
#[test]
fn match_finds_every_series_of_an_unusual_page() {
    let address = serve_file("unusual.prom");
    let all = "  - {name: a, match: ['{__name__=~\".+\"}'], transform: value}\n";
    let columns = run_match(&address, all, &[])[0]["groups"][0]["columns"].clone();
    assert_eq!(
        columns,
        json!([
            r#"http_requests_total{agent="say \"hi\", then \\o", path="/"}"#,
            r#"http_requests_total{path="/q?a=1&b=2,3"}"#,
            r#"http_requests_total{path="/users/{id}"}"#,
            "job:http_requests:rate5m",
            r#"rpc_bucket{le="+Inf"}"#,
            "rpc_count",
            "rpc_sum",
        ])
    );
}

#[test]
fn match_fails_with_one_line() {
    let listener = TcpListener::bind("127.0.0.11:0").expect("a free port");
    let closed = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let broken = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nup 1\n".to_vec();
    for (address, text) in [
        (
            closed,
            "request to URL failed: client error (Connect): tcp connect error: Connection refused (os error 111)",
        ),
        (
            serve(response("404 Not Found", b"404 page not found\nreally\n")),
            "URL answered 404 Not Found: 404 page not found",
        ),
        (serve(response("500 Internal Server Error", b"")), "URL answered 500 Internal Server Error: "),
        (serve(response("200 OK", b"up{a=\"\xff\"} 1\n")), "invalid utf-8 sequence of 1 bytes from index 6"),
        (
            serve(response("200 OK", b"up 1\nup{job=\"a\" 1\n")),
            "line 2 of the page: \"up{job=\\\"a\\\" 1\": '1' follows a label, must be a comma or a closing brace",
        ),
        (
            serve(broken),
            "the response of URL cannot be read: error reading a body from connection: end of file before message length reached",
        ),
    ] {
        let url = format!("http://{address}/metrics");
        let output = run(&["match", "--url", &url]);
        assert_eq!((output.status, &*output.stdout), (1, ""), "{text}");
        assert_eq!(output.stderr.replace(&url, "URL"), format!("promforest: {text}\n"));
    }
    let address = serve_file("requests.prom");
    let url = format!("http://{address}/metrics");
    let output = run(&["match", "--url", &url, "--config.file", "absent.yml"]);
    assert_eq!(output.status, 1);
    assert_eq!(
        output.stderr,
        "promforest: cannot read the configuration file absent.yml: No such file or directory (os error 2)\n"
    );
}

#[test]
fn a_misspelt_flag_names_the_nearest_one() {
    let output = run(&["--web.listen-adress=:1"]);
    assert_eq!(output.status, 2);
    assert!(output.stderr.contains("'--web.listen-address'"), "{}", output.stderr);
}

#[test]
fn feedback_sends_the_credentials_of_the_file() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = Vec::new();
        let mut bytes = [0; 4096];
        // The body is the end: it has the word of the feedback.
        while !String::from_utf8_lossy(&request).contains("\"real\"") {
            let n = stream.read(&mut bytes).expect("the request");
            request.extend_from_slice(&bytes[..n]);
        }
        stream.write_all(&response("200 OK", b"done")).expect("the client reads");
        String::from_utf8_lossy(&request).to_lowercase()
    });
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("http.yml");
    fs::write(&file, "basic_auth: {username: me, password: secret}\n").expect("writable");
    let file = file.to_str().expect("UTF-8");
    let output = run(&["feedback", "--url", &url, "--http.config.file", file, "--at", "1769860800", "real"]);
    assert_eq!((output.status, &*output.stdout, &*output.stderr), (0, "done", ""));
    let request = server.join().expect("a request");
    assert!(request.contains("authorization: basic bwu6c2vjcmv0"), "{request}");
}

#[test]
fn probes_print_the_answer_and_fail_for_another_status_than_200() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = "net: 0 of 2 groups have a model";
    for (probe, status, body, code, stderr) in [
        ("healthy", "200 OK", "promforest is healthy\n", 0, ""),
        (
            "ready",
            "503 Service Unavailable",
            missing,
            1,
            "promforest: URL answered 503 Service Unavailable\n",
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).expect("the request");
                request.push(byte[0]);
            }
            stream.write_all(&response(status, body.as_bytes())).expect("the client reads");
            String::from_utf8_lossy(&request).to_lowercase()
        });
        let file = folder.path().join("http.yml");
        fs::write(&file, "basic_auth: {username: me, password: secret}\n").expect("writable");
        let file = file.to_str().expect("UTF-8");
        let output = run(&["check", probe, "--url", &url, "--http.config.file", file]);
        assert_eq!((output.status, &*output.stderr.replace(&url, "URL")), (code, stderr));
        assert_eq!(output.stdout, format!("{}\n", body.trim_end()));
        let request = server.join().expect("a request");
        assert!(request.starts_with(&format!("get /-/{probe} http/1.1\r\n")), "{request}");
        assert!(request.contains("authorization: basic bwu6c2vjcmv0"), "{request}");
    }
}
