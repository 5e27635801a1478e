//! The HTTP server of the real program: access control, bounds on connections, shutdown, reload. An old and a current
//! Prometheus connect through TLS and passwords.

#[path = "../support/mod.rs"]
mod support;

mod access;
mod admin;
mod connections;
mod reload;
mod shutdown;
mod storage;

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;
use support::remote_write::response_status;
use support::sidecar::Sidecar;
use support::{Process, PrometheusVersion};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Long enough for every step, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Of the program, as deploy/reference/operations.md has it.
const MAX_CONNECTIONS: f64 = 512.0;

fn get_healthy(stream: &mut TcpStream) -> u16 {
    stream.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
    response_status(stream).expect("an answer")
}

/// Prometheus in the sidecar's folder, by the `prometheus.yml` there.
fn prometheus_beside(sidecar: &Sidecar, version: PrometheusVersion, port: u16) -> Process {
    let args = [
        "--config.file=prometheus.yml".to_string(),
        "--storage.tsdb.path=prometheus".into(),
        format!("--web.listen-address=127.0.0.1:{port}"),
    ];
    Process::start("prometheus", &version.prometheus(), &args, sidecar.folder.path())
}
