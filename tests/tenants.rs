//! Tenants with the same jobs and instances: two Prometheus that send and store, behind a proxy that tells the tenants apart
//! by their header, as Mimir does, and answers 401 without it.

mod support;

use promforest::config::Config;
use promforest::prom::proto::{Label, ReadRequest, Sample, TimeSeries, WriteRequest};
use promforest::prom::wire::snappy;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use support::hosts::Hosts;
use support::prometheus::PrometheusApi;
use support::sidecar::Sidecar;
use support::victoriametrics::read_source;
use support::{Process, PrometheusVersion, free_port, http, now_ms, remote_write, wait};

/// Long enough for every step, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(300);
/// The tenants with a back end.
const TENANTS: [&str; 2] = ["a", "b"];

/// A request that the proxy got.
struct Passed {
    tenant: String,
    path: String,
    body: Vec<u8>,
}

/// Passes requests to the server of their tenant.
struct TenantProxy {
    address: String,
    passed: Arc<Mutex<Vec<Passed>>>,
    /// The tenants whose writes are answered 429.
    limited: Arc<Mutex<BTreeSet<String>>>,
}

impl TenantProxy {
    fn start(servers: BTreeMap<String, String>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (passed, limited) = (Arc::default(), Arc::default());
        let proxy = Self { address, passed, limited };
        let (passed, limited) = (proxy.passed.clone(), proxy.limited.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (servers, passed, limited) = (servers.clone(), passed.clone(), limited.clone());
                // A client that closed the connection requests again.
                thread::spawn(move || drop(pass(stream, &servers, &passed, &limited)));
            }
        });
        proxy
    }

    fn limit(&self, tenant: &str, is_limited: bool) {
        let mut limited = self.limited.lock().expect("no panic");
        if is_limited {
            limited.insert(tenant.into())
        } else {
            limited.remove(tenant)
        };
    }
}

/// Answers one request.
fn pass(
    mut stream: TcpStream,
    servers: &BTreeMap<String, String>,
    passed: &Mutex<Vec<Passed>>,
    limited: &Mutex<BTreeSet<String>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("ASCII");
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect::<Vec<_>>()
    };
    let length = header("content-length").first().map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let path = head.split(' ').nth(1).expect("a request line").to_string();
    let names = header("x-scope-orgid");
    let tenant = names.join(",");
    passed.lock().expect("no panic").push(Passed {
        tenant: tenant.clone(),
        path: path.clone(),
        body: body.clone(),
    });
    let is_limited = path.ends_with("/write") && limited.lock().expect("no panic").contains(&tenant);
    let status = match servers.get(&tenant) {
        None => "401 Unauthorized",
        Some(_) if is_limited => "429 Too Many Requests",
        Some(address) => {
            let mut server = TcpStream::connect(address)?;
            let kept = head.trim_end().lines().filter(|line| !line.to_lowercase().starts_with("connection:"));
            let head: Vec<&str> = kept.collect();
            write!(server, "{}\r\nConnection: close\r\n\r\n", head.join("\r\n"))?;
            server.write_all(&body)?;
            return std::io::copy(&mut server, &mut stream).map(drop);
        }
    };
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
}

/// A Prometheus of a tenant: it scrapes a host of its own under the labels that all have, sends to the sidecar, and stores
/// the scores.
struct Server {
    process: Process,
    api: PrometheusApi,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(tenant: &str, hosts: &Hosts, sidecar: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let address = format!("127.0.0.1:{}", free_port());
        let config = format!(
            "global: {{scrape_interval: 1s}}\n\
             scrape_configs: [{{job_name: node, static_configs: [{{targets: ['{}'], labels: {{instance: host, \
             __metrics_path__: /{tenant}}}}}]}}]\n\
             remote_write: [{{url: 'http://{sidecar}/api/v1/write', headers: {{X-Scope-OrgID: {tenant}}}, \
             queue_config: {{batch_send_deadline: 1s}}}}]\n\
             storage: {{tsdb: {{out_of_order_time_window: 10m}}}}\n",
            hosts.address()
        );
        std::fs::write(folder.path().join("prometheus.yml"), config).expect("writable");
        let args = [
            format!("--config.file={}", folder.path().join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", folder.path().join("data").display()),
            format!("--web.listen-address={address}"),
            "--web.enable-remote-write-receiver".into(),
        ];
        // Debian's 2.42 leaves the headers out.
        let program = PrometheusVersion::V3.prometheus();
        let mut process = Process::start(&format!("prometheus-{tenant}"), &program, &args, folder.path());
        wait("Prometheus is ready", TIMEOUT, &mut [&mut process], || {
            let answer = http::get(&address, "/-/ready").map_err(|err| err.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.body) }
        });
        Self { process, api: PrometheusApi(address), _folder: folder }
    }

    /// The times of the one series that a selector has.
    fn times(&self, selector: &str) -> Result<Vec<i64>, String> {
        match &self.api.query(&format!("{selector}[20m]"))?[..] {
            [series] => Ok(series.timestamps()),
            all => Err(format!("{} series for {selector}", all.len())),
        }
    }

    fn wait_for_score_after(&mut self, after_ms: i64, sidecar: &Sidecar) {
        let Self { process, api, .. } = self;
        wait("a score", TIMEOUT, &mut [process], || {
            let stored = api.query(r#"anomaly_score{detector="net"}[20m]"#)?;
            let newest = stored.iter().flat_map(|series| series.timestamps()).max().unwrap_or(0);
            let short = || format!("{} s short\n{}", (after_ms - newest) / 1000, sidecar.process.tail());
            if newest > after_ms { Ok(()) } else { Err(short()) }
        });
    }

    /// Every scrape since the first score has one, at its time.
    fn check_nothing_lost(&self) {
        let scores = self.times(r#"anomaly_score{detector="net"}"#).expect("one series of scores");
        let scrapes = self.times(r#"node_network_receive_bytes_total{device="lo"}"#).expect("one series");
        let span = scores[0]..=scores[scores.len() - 1];
        let scrapes: Vec<i64> = scrapes.into_iter().filter(|at_ms| span.contains(at_ms)).collect();
        assert_eq!(scores, scrapes);
    }
}

fn config(proxy: &TenantProxy) -> String {
    format!(
        "tenants: {{group_limit: 2}}\n\
         remote_write: [{{url: 'http://{address}/api/v1/write'}}]\n\
         remote_read: [{{url: 'http://{address}/api/v1/read'}}]\n\
         detectors:\n  - name: net\n    match: ['{{__name__=~\"node_network_.+\", device=\"lo\"}}']\n    \
         transform: rate(10s)\n    window: 10m\n    grace: 5s\n    \
         training: {{history: 1h, min_history: 10s, interval: 1h}}\n    model: {{kind: isolation_forest}}\n",
        address = proxy.address
    )
}

/// A write request of a tenant; the status and the text.
fn post(sidecar: &Sidecar, headers: &str, instances: &[&str], label: &str) -> (u16, String) {
    let series = |instance: &&str| {
        let labels = [
            ("__name__", "node_network_receive_bytes_total"),
            ("device", "lo"),
            ("instance", instance),
            ("job", "node"),
            ("tenant", label),
        ];
        TimeSeries {
            labels: labels.map(|(name, value)| Label { name: name.into(), value: value.into() }).to_vec(),
            samples: vec![Sample { value: 1.0, timestamp: now_ms() }],
            ..Default::default()
        }
    };
    let body = remote_write::body(instances.iter().map(series).collect());
    let answer = http::post_body(&sidecar.address(), "/api/v1/write", headers, &body).expect("a response");
    (answer.status, answer.body)
}

#[test]
fn nothing_of_one_tenant_reaches_another() {
    let hosts = Hosts::start();
    hosts.set_factor(&["b"], 100.0);
    let sidecar_port = free_port();
    let [mut a, mut b] =
        TENANTS.map(|tenant| Server::start(tenant, &hosts, &format!("127.0.0.1:{sidecar_port}")));
    let servers = TENANTS.iter().zip([&a, &b]);
    let proxy =
        TenantProxy::start(servers.map(|(id, server)| ((*id).into(), server.api.0.clone())).collect());
    // History from before the sidecar.
    thread::sleep(Duration::from_secs(25));
    let mut sidecar = Sidecar::start_at(sidecar_port, &[("promforest.yml", &config(&proxy))]);
    for server in [&mut a, &mut b] {
        server.wait_for_score_after(0, &sidecar);
    }
    check_requests(&sidecar);
    check_limits(&mut sidecar);
    for server in [&mut a, &mut b] {
        server.wait_for_score_after(now_ms(), &sidecar);
    }

    // The back end of one tenant takes nothing for a while.
    proxy.limit("b", true);
    thread::sleep(Duration::from_secs(3));
    let limited_ms = now_ms();
    a.wait_for_score_after(limited_ms + 5_000, &sidecar);
    let behind = b.times(r#"anomaly_score{detector="net"}"#).expect("one series");
    assert!(behind.last().is_some_and(|newest_ms| *newest_ms < limited_ms), "b is limited");
    assert!(sidecar.metric("promforest_remote_write_retries_total") > 0.0);
    proxy.limit("b", false);
    b.wait_for_score_after(limited_ms + 5_000, &sidecar);

    sidecar.kill();
    thread::sleep(Duration::from_secs(3));
    sidecar.restart();
    for server in [&mut a, &mut b] {
        server.wait_for_score_after(now_ms(), &sidecar);
        server.check_nothing_lost();
    }
    check_stored(&a, &b);
    check_windows(&a, &b, &sidecar);
    check_passed(&proxy);
    assert!(sidecar.metric("promforest_history_samples_total") > 0.0);
}

/// A request without a tenant is refused, whatever it asks for.
fn check_requests(sidecar: &Sidecar) {
    let address = sidecar.address();
    let missing = "the header x-scope-orgid is missing: it names the tenant\n";
    assert_eq!(post(sidecar, "", &["x"], ""), (400, missing.to_string()));
    let (status, text) = post(sidecar, "X-Scope-OrgID: a|b\r\n", &["x"], "");
    assert!(status == 400 && text.contains("\"a|b\" names several tenants"), "{text}");
    let (status, text) = post(sidecar, "X-Scope-OrgID: a\r\nX-Scope-OrgID: b\r\n", &["x"], "");
    assert!(status == 400 && text.contains("more than once"), "{text}");
    for path in ["/api/v1/window", "/api/v1/scores"] {
        let answer = http::get(&address, path).expect("a response");
        assert_eq!((answer.status, answer.body.as_str()), (400, missing), "{path}");
        let answer = http::get_with(&address, path, "X-Scope-OrgID: a\r\n").expect("a response");
        assert_eq!(answer.status, 200, "{path}");
    }
    let (status, body) =
        http::post_message(&address, "/api/v1/read", &snappy::compress(&[])).expect("a response");
    assert_eq!((status, body.as_slice()), (400, missing.as_bytes()));
    let refused = [("code", "400"), ("reason", "tenant")];
    assert_eq!(sidecar.metric_with("promforest_ingest_requests_total", &refused), 3.0);
}

/// A third tenant is at its limit, and pretends to be another.
fn check_limits(sidecar: &mut Sidecar) {
    let hosts = ["one", "two", "three", "four", "five"];
    assert_eq!(post(sidecar, "X-Scope-OrgID: c\r\n", &hosts, "a").0, 204);
    let dropped = |id| sidecar.metric_with("promforest_tenant_samples_dropped_total", &[("tenant", id)]);
    assert_eq!((dropped("c"), dropped("a"), dropped("b")), (3.0, 0.0, 0.0));
    let page = http::get(&sidecar.address(), "/metrics").expect("a page").body;
    let of = |tenant: &str| {
        let is_of =
            |line: &&str| line.contains("instance=\"one\"") && line.contains(&format!("tenant=\"{tenant}\""));
        page.lines().filter(is_of).count()
    };
    wait("the metrics of the new group", TIMEOUT, &mut [&mut sidecar.process], || match (of("c"), of("a")) {
        (_, 0) => Ok(()),
        counts => Err(format!("{counts:?}")),
    });
}

/// Each server has scores of its own scrapes, and no label that is the sidecar's own.
fn check_stored(a: &Server, b: &Server) {
    let selector = r#"{__name__=~"anomaly_.+|net_anomaly"}[20m]"#;
    let [of_a, of_b] = [a, b].map(|server| server.api.query(selector).expect("an answer"));
    for series in of_a.iter().chain(&of_b) {
        let names: BTreeSet<&str> = series.labels.keys().map(String::as_str).collect();
        assert!(!names.contains("tenant") && series.labels["instance"] == "host", "{series:?}");
    }
    let labels = |all: &[support::prometheus::Series]| {
        all.iter().map(|series| series.labels["__name__"].clone()).collect::<BTreeSet<_>>()
    };
    assert!(labels(&of_a).is_superset(&["anomaly_score".into(), "net_anomaly".into()].into()));
}

/// A tenant reads the scrapes of its server from the sidecar, to the bit, and no others.
fn check_windows(a: &Server, b: &Server, sidecar: &Sidecar) {
    const SELECTOR: &str = r#"node_network_receive_bytes_total{job="node",instance="host"}"#;
    for (id, server) in TENANTS.iter().zip([a, b]) {
        let text = format!(
            "remote_read: [{{url: 'http://{}/api/v1/read', headers: {{X-Scope-OrgID: {id}}}}}]",
            sidecar.address()
        );
        let source = Config::parse(&text).expect("valid").history.remove(0);
        let read = read_source(&source, SELECTOR, &[], (now_ms() - 600_000, now_ms()));
        let stored = server.api.query(&format!("{SELECTOR}[20m]")).expect("an answer").remove(0);
        let stored: BTreeMap<i64, f64> = stored.samples.into_iter().collect();
        let [(labels, samples)] = &read.into_iter().collect::<Vec<_>>()[..] else { panic!("not one series") };
        assert_eq!(labels.get("tenant"), "");
        assert!(samples.len() > 20, "{id}: {} samples", samples.len());
        for sample in samples {
            assert_eq!(stored.get(&sample.timestamp_ms), Some(&sample.value), "{id}: {sample:?}");
        }
    }
}

/// Each request that left the sidecar is of one tenant, and none names the label.
fn check_passed(proxy: &TenantProxy) {
    let passed = proxy.passed.lock().expect("no panic");
    let mut kinds = BTreeSet::new();
    let mut buffer = Vec::new();
    for Passed { tenant, path, body } in &*passed {
        let message = snappy::decompress(body, 32 << 20, &mut buffer).expect("snappy");
        let names: Vec<String> = if path.ends_with("/write") {
            let request = WriteRequest::decode(message).expect("a write request");
            request.timeseries.into_iter().flat_map(|series| series.labels).map(|label| label.name).collect()
        } else {
            let request = ReadRequest::decode(message).expect("a read request");
            request.queries.into_iter().flat_map(|query| query.matchers).map(|matcher| matcher.name).collect()
        };
        assert!(!names.iter().any(|name| name == "tenant"), "{path}: {names:?}");
        assert!(["a", "b", "c"].contains(&tenant.as_str()), "{path} has tenant {tenant:?}");
        kinds.insert((tenant.clone(), path.clone()));
    }
    for tenant in TENANTS {
        for path in ["/api/v1/write", "/api/v1/read"] {
            assert!(kinds.contains(&(tenant.into(), path.into())), "{kinds:?}");
        }
    }
}
