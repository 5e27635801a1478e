//! Real servers as senders: an old Prometheus in version 1.0 of remote write, and a current one in both, with exemplars and
//! native histograms. Every request is accepted, and no log has a warning.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::Duration;
use support::{Process, PrometheusVersion, free_port, http, wait};

/// For what takes some seconds on an idle machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A histogram of Prometheus' own becomes two series, and an exporter's counter is one.
const DETECTORS: &str = r#"
remote_write: []
remote_read: []
detectors:
  - {name: counts, match: [prometheus_http_request_duration_seconds_count], transform: value}
  - {name: sums, match: [prometheus_http_request_duration_seconds_sum], transform: value}
  - {name: floats, match: [demo_requests_total], transform: value}
"#;

/// An exporter whose counter has an exemplar. It ends with the test's process.
fn exporter() -> u16 {
    const PAGE: &str = "# TYPE demo_requests counter\n# HELP demo_requests Requests.\n\
                        demo_requests_total 5 # {trace_id=\"abc\"} 1.0\n# EOF\n";
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            // A client that closed the connection requests again.
            let _ = stream.read(&mut head);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\
                 Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\r\n{PAGE}",
                PAGE.len()
            );
        }
    });
    port
}

/// A sender, what its `remote_write` says of the version, and that version.
fn check_accepts(version: PrometheusVersion, message: &str, expected: &str) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (prometheus_port, promforest_port) = (free_port(), free_port());
    fs::write(dir.path().join("promforest.yml"), DETECTORS).expect("the folder is writable");
    let (scrape, flag) = match version {
        // Its own histograms are classic ones.
        PrometheusVersion::V2 => ("", "--enable-feature=exemplar-storage"),
        PrometheusVersion::V3 => ("scrape_native_histograms: true", "--enable-feature=exemplar-storage"),
    };
    let config = format!(
        "global: {{scrape_interval: 1s{}{scrape}}}\n\
         scrape_configs:\n\
         - {{job_name: prometheus, static_configs: [{{targets: ['127.0.0.1:{prometheus_port}']}}]}}\n\
         - {{job_name: demo, static_configs: [{{targets: ['127.0.0.1:{}']}}]}}\n\
         remote_write:\n\
         - url: http://127.0.0.1:{promforest_port}/api/v1/write\n  \
           send_exemplars: true\n  \
           send_native_histograms: true\n  \
           metadata_config: {{send_interval: 1s}}\n  \
           queue_config: {{batch_send_deadline: 1s}}\n{message}",
        if scrape.is_empty() { "" } else { ", " },
        exporter(),
    );
    fs::write(dir.path().join("prometheus.yml"), config).expect("the folder is writable");

    let listen = |port: u16| format!("--web.listen-address=127.0.0.1:{port}");
    let args = ["--config.file=promforest.yml".into(), listen(promforest_port)];
    let program = Path::new(env!("CARGO_BIN_EXE_promforest"));
    let mut promforest = Process::start("promforest", program, &args, dir.path());
    let args = [
        "--config.file=prometheus.yml".into(),
        "--storage.tsdb.path=data".into(),
        listen(prometheus_port),
        flag.into(),
    ];
    let mut prometheus = Process::start("prometheus", &version.prometheus(), &args, dir.path());

    let page = |port: u16| http::get(&format!("127.0.0.1:{port}"), "/metrics").map(|answer| answer.body);
    let metrics_page = || page(promforest_port).map_err(|err| err.to_string());
    let what = format!("{version} {expected}: histograms, exemplars, metadata and floats arrive");
    wait(&what, TIMEOUT, &mut [&mut promforest, &mut prometheus], || {
        let page = metrics_page()?;
        let mut wanted = vec![
            ("promforest_ingest_ignored_total", vec![("kind", "exemplar")]),
            ("promforest_ingest_ignored_total", vec![("kind", "metadata")]),
            ("promforest_ingest_requests_total", vec![("code", "204"), ("version", expected)]),
        ];
        if version == PrometheusVersion::V3 {
            wanted.push(("promforest_ingest_histograms_total", vec![]));
        }
        let groups = [("counts", "prometheus"), ("sums", "prometheus"), ("floats", "demo")];
        let group_metric = "promforest_missing_features";
        wanted
            .extend(groups.map(|(detector, job)| (group_metric, vec![("detector", detector), ("job", job)])));
        for (name, labels) in wanted {
            let value = http::metric(&page, name, &labels);
            // A group is there, whatever it lacks.
            if !value.is_some_and(|value| value > 0.0 || name == group_metric) {
                return Err(format!("{name} {labels:?} is {value:?}"));
            }
        }
        Ok(())
    });
    // For a while longer.
    thread::sleep(Duration::from_secs(3));
    let page_of_prometheus = page(prometheus_port).expect("Prometheus answers");
    let metrics = metrics_page().expect("promforest answers");
    let requests =
        |labels: &[(&str, &str)]| http::metric(&metrics, "promforest_ingest_requests_total", labels);
    assert_eq!(
        requests(&[]),
        requests(&[("code", "204"), ("version", expected)]),
        "{version}\n{}",
        promforest.tail()
    );
    for kind in ["samples", "histograms", "exemplars", "metadata"] {
        let name = format!("prometheus_remote_storage_{kind}_failed_total");
        let failed = http::metric(&page_of_prometheus, &name, &[]);
        // Metadata has no counter of its own in 2.0.
        assert_eq!(failed.unwrap_or(0.0), 0.0, "{version} {expected}: {kind}\n{}", prometheus.tail());
    }
    let log = prometheus.log();
    assert!(!log.contains("not written") && !log.contains("non-recoverable"), "{version}: {log}");
}

#[test]
fn prometheus_2_sends_1_0() {
    check_accepts(PrometheusVersion::V2, "", "1.0");
}

#[test]
fn prometheus_3_sends_1_0() {
    check_accepts(PrometheusVersion::V3, "", "1.0");
}

#[test]
fn prometheus_3_sends_2_0() {
    check_accepts(PrometheusVersion::V3, "  protobuf_message: io.prometheus.write.v2.Request\n", "2.0");
}
