//! The bound on connections, and running out of file descriptors.

use crate::support::remote_write::{response_status, series};
use crate::support::sidecar::Sidecar;
use crate::support::{PROGRAM, each_version, free_port, http, now_ms};
use crate::{MAX_CONNECTIONS, prometheus_beside};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Ten thousand, or as many as this process may have.
fn n_idle_connections() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").expect("Linux");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit");
    let limit: usize =
        line.split_whitespace().next().and_then(|soft| soft.parse().ok()).unwrap_or(usize::MAX);
    10_000.min(limit - 200)
}

#[test]
fn b50_idle_connections_are_bounded_and_do_not_block_writes() {
    let mut sidecar = Sidecar::start(&[]);
    let first = sidecar.write_series(vec![series("a", 0, &[(now_ms(), 1.0)])]).expect("an answer");
    assert_eq!(first, 204);
    let before = sidecar.process.resident_bytes();
    let stop = AtomicBool::new(false);
    let (sent, evicted) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut idle = Vec::new();
    thread::scope(|scope| {
        // A sender that keeps its connection and has it taken away now and then, as Prometheus would.
        scope.spawn(|| {
            let mut stream = sidecar.connect();
            while !stop.load(Ordering::Relaxed) {
                match stream
                    .write_all(b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n")
                    .and_then(|()| response_status(&mut stream))
                {
                    Ok(code) => {
                        assert_eq!(code, 200);
                        sent.fetch_add(1, Ordering::Relaxed);
                        // The rest of the answer.
                        let _ = stream.read(&mut [0; 1024]).expect("the rest of the response");
                    }
                    Err(_) => {
                        evicted.fetch_add(1, Ordering::Relaxed);
                        stream = sidecar.connect();
                    }
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        for i in 0..n_idle_connections() {
            idle.push(sidecar.connect());
            if i % 1000 == 999 {
                // A new connection is served at once.
                let code =
                    sidecar.write_series(vec![series("a", 0, &[(now_ms(), i as f64)])]).expect("an answer");
                assert_eq!(code, 204);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(sent.load(Ordering::Relaxed) > 10, "{sent:?}");
    let connections = sidecar.metric("promforest_http_connections");
    assert!(connections <= MAX_CONNECTIONS, "{connections}");
    let n_evicted = sidecar.metric("promforest_http_connections_evicted_total");
    assert!(n_evicted >= idle.len() as f64 - MAX_CONNECTIONS, "{n_evicted} of {}", idle.len());
    let grown = sidecar.process.resident_bytes().saturating_sub(before);
    println!(
        "{} idle connections: {grown} bytes more, a sender that goes on lost its connection {evicted:?} times in {sent:?} requests",
        idle.len()
    );
    assert!(grown < 64 << 20, "{grown} bytes more for {} connections", idle.len());
    drop(idle);
    sidecar.wait_for_metric("promforest_http_connections", |n| n < 10.0);
}

/// A complete request is answered beside as many unfinished ones as there may be.
#[test]
fn b50_unfinished_requests_are_evicted() {
    let mut sidecar = Sidecar::start(&[]);
    let mut slow: Vec<TcpStream> = (0..MAX_CONNECTIONS as usize).map(|_| sidecar.connect()).collect();
    let head = "POST /api/v1/write HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 99\r\n\r\n";
    let start_upload = |stream: &mut TcpStream| {
        stream.write_all(head.as_bytes()).and_then(|()| stream.read_exact(&mut [0; 25]))?;
        stream.write_all(b"x")
    };
    // Some may be sent away before they are asked for the rest.
    let n_started = slow.iter_mut().filter_map(|stream| start_upload(stream).ok()).count();
    assert!(n_started > 0, "none was asked");
    for i in 0..100 {
        let written = sidecar.write_series(vec![series("a", 0, &[(now_ms() + i, 1.0)])]);
        assert_eq!(written.expect("an answer"), 204);
    }
    // A connection that receives the timeout was not evicted before.
    let is_closed = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).expect("a socket");
        matches!(stream.read(&mut [0; 1]), Ok(0))
    };
    let n_closed = slow.iter_mut().filter_map(|stream| is_closed(stream).then_some(())).count();
    assert!(n_closed > 0, "none made room");
    drop(slow);
    sidecar.wait_for_metric("promforest_http_connections", |n| n < 10.0);
    assert_eq!(sidecar.metric("promforest_ingest_samples_total"), 100.0);
}

/// Both servers are served as if they were alone beside clients that announce the largest bodies and send nothing,
/// and as many as there are places for that send a byte now and then, and come again when they are sent away.
#[test]
fn b50_f29_prometheus_writes_beside_slow_and_greedy_clients() {
    each_version(|version| {
        let mut sidecar = Sidecar::start(&[]);
        let (address, port) = (sidecar.address(), free_port());
        sidecar.write_file(
            "prometheus.yml",
            &format!(
                "global: {{scrape_interval: 1s}}\n\
                 scrape_configs: [{{job_name: prometheus, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n\
                 remote_write: [{{url: 'http://{address}/api/v1/write', queue_config: {{batch_send_deadline: 1s}}}}]\n"
            ),
        );
        let mut prometheus = prometheus_beside(&sidecar, version, port);
        let begin_upload = |length: usize| {
            let mut stream = TcpStream::connect(&address).ok()?;
            let head = format!("POST /api/v1/write HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).ok()?;
            Some(stream)
        };
        sidecar.wait_for_metric("promforest_ingest_samples_total", |samples| samples > 100.0);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let lengths = [32 << 20; 4].into_iter().chain([1000; MAX_CONNECTIONS as usize]);
                let mut clients: Vec<(usize, Option<TcpStream>)> =
                    lengths.map(|length| (length, None)).collect();
                while !stop.load(Ordering::Relaxed) {
                    for (length, stream) in &mut clients {
                        if stream.as_mut().is_none_or(|stream| stream.write_all(b"x").is_err()) {
                            *stream = begin_upload(*length);
                        }
                    }
                    thread::sleep(Duration::from_millis(200));
                }
            });
            sidecar.wait_for_metric("promforest_http_connections_evicted_total", |evicted| evicted > 100.0);
            let before = sidecar.metric("promforest_ingest_samples_total");
            sidecar.wait_for_metric("promforest_ingest_samples_total", |samples| samples > before + 5000.0);
            stop.store(true, Ordering::Relaxed);
        });
        let page = http::get(&address, "/metrics").expect("a page").body;
        let overloaded = http::metric(&page, "promforest_ingest_requests_total", &[("reason", "overloaded")]);
        assert_eq!(overloaded, None, "{version}");
        prometheus.assert_running();
        // Prometheus logs each failure to send.
        assert!(!prometheus.log().contains("non-recoverable"), "{version}: {}", prometheus.tail());
    });
}

#[test]
fn f43_running_out_of_file_descriptors_is_survived() {
    let limited = ["sh", "-c", "ulimit -n 64; exec \"$0\" \"$@\"", PROGRAM];
    let mut sidecar = Sidecar::start_with_command(&limited, &[]);
    let idle: Vec<TcpStream> = (0..200).map(|_| sidecar.connect()).collect();
    for i in 0..5 {
        let code =
            sidecar.write_series(vec![series("a", 0, &[(now_ms(), f64::from(i))])]).expect("an answer");
        assert_eq!(code, 204);
    }
    assert!(sidecar.metric("promforest_http_accept_failures_total") >= 1.0);
    let lines = sidecar.process.log().matches("cannot accept a connection").count();
    assert!((1..=10).contains(&lines), "{lines} lines");
    drop(idle);
    let failures = sidecar.metric("promforest_http_accept_failures_total");
    assert_eq!(sidecar.write_series(vec![series("a", 0, &[(now_ms(), 1.0)])]).expect("an answer"), 204);
    assert_eq!(sidecar.metric("promforest_http_accept_failures_total"), failures);
    sidecar.process.assert_running();
}
