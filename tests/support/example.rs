//! An example of `deploy/examples` that runs: its files as they are, except for the addresses.

use super::hosts::Hosts;
use super::{PROGRAM, Process, free_port, http, now_ms, remote_write, wait};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// Long enough for every step, on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(120);
/// The scrape interval of the examples.
const INTERVAL_MS: i64 = 15_000;
/// More than the history that a first model needs.
const HISTORY_MS: i64 = 75 * 60_000;
/// Rows of a request of history.
const ROWS_PER_REQUEST: usize = 60;

/// A copy of an example.
pub struct Example {
    /// The folder of the copy.
    pub folder: TempDir,
    /// promforest's address.
    pub promforest: String,
    /// The exporter.
    pub hosts: Hosts,
}

impl Example {
    /// Copies an example. Each of these addresses must be in its files, and is replaced, as are those of the exporter and
    /// of promforest.
    pub fn new(name: &str, addresses: &[(&str, &str)]) -> Self {
        let hosts = Hosts::start();
        let promforest = format!("127.0.0.1:{}", free_port());
        let own = [("localhost:9100", hosts.address()), ("localhost:9599", promforest.clone())];
        let all: Vec<(&str, &str)> =
            addresses.iter().copied().chain(own.iter().map(|(from, to)| (*from, &**to))).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples").join(name);
        let mut replaced = vec![false; all.len()];
        for entry in fs::read_dir(source).expect("an example") {
            let path = entry.expect("a file").path();
            let mut text = fs::read_to_string(&path).expect("a text");
            for ((from, to), replaced) in all.iter().zip(&mut replaced) {
                *replaced |= text.contains(from);
                text = text.replace(from, to);
            }
            fs::write(folder.path().join(path.file_name().expect("a name")), text).expect("writable");
        }
        let unknown: Vec<&str> =
            all.iter().zip(&replaced).filter(|(_, is)| !**is).map(|((from, _), _)| *from).collect();
        assert!(unknown.is_empty(), "not in the example {name}: {unknown:?}");
        Self { folder, promforest, hosts }
    }

    /// Writes more than an hour of the exporter's samples to a server, with these labels beside `job` and `instance`.
    pub fn write_history(&self, server: &str, path: &str, headers: &str, labels: &[(&str, &str)]) {
        let instance = self.hosts.address();
        let labels: Vec<(&str, &str)> =
            [("instance", &*instance), ("job", "node")].into_iter().chain(labels.iter().copied()).collect();
        let end_ms = now_ms() - INTERVAL_MS;
        let times: Vec<i64> = (end_ms - HISTORY_MS..end_ms).step_by(INTERVAL_MS as usize).collect();
        for times in times.chunks(ROWS_PER_REQUEST) {
            let body = remote_write::body(Hosts::series("metrics", &labels, times));
            let headers =
                format!("Content-Encoding: snappy\r\nContent-Type: application/x-protobuf\r\n{headers}");
            let response = http::post_body(server, path, &headers, &body).expect("a response");
            assert!((200..300).contains(&response.status), "{server}{path}: {response:?}");
        }
    }

    /// Starts a program in the example's folder.
    pub fn start(&self, name: &str, program: &Path, args: &[&str]) -> Process {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        Process::start(name, program, &args, self.folder.path())
    }

    /// Starts promforest with the example's configuration.
    pub fn start_promforest(&self) -> Process {
        let listen = format!("--web.listen-address={}", self.promforest);
        self.start("promforest", Path::new(PROGRAM), &["--config.file=promforest.yml", &listen])
    }

    /// One of promforest's metrics, the sum over the series with these labels; 0 if there is none.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = http::get(&self.promforest, "/metrics").expect("a page").body;
        http::metric(&page, name, labels).unwrap_or(0.0)
    }
}

/// Waits until a server answers a path with 200.
pub fn wait_for_ok(process: &mut Process, address: &str, path: &str) {
    wait(&format!("{address}{path} is 200"), TIMEOUT, &mut [process], || {
        let answer = http::get(address, path).map_err(|err| err.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
}
