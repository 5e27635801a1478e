//! Exporters of hosts whose traffic a test sets.

use super::now_ms;
use super::stack::Stack;
use promforest::prom::proto::{Label, Sample, TimeSeries};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;

/// The `scrape_configs` of [`Hosts::write_targets`].
pub const JOB_OF_FILE: &str = "  - {job_name: node, file_sd_configs: [{files: [targets.yml]}]}";

/// The labels on the pages.
const METRIC_LABELS: &str = "{device=\"lo\"}";

/// For each host, times in milliseconds and the factors of the traffic from then on.
type Factors = Arc<Mutex<BTreeMap<String, Vec<(i64, f64)>>>>;

/// Serves every host at a path of its own, until the end of the process.
pub struct Hosts {
    port: u16,
    factors: Factors,
}

impl Hosts {
    /// Starts the server: ordinary traffic.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let factors = Factors::default();
        let served = factors.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut head = [0; 4096];
                let length = stream.read(&mut head).unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..length]).into_owned();
                let host = head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
                let factors = served.lock().expect("no thread panics with it").get(host).cloned();
                let page = metrics_page(host, now_ms(), &factors.unwrap_or_default());
                // A client that closed the connection requests again.
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/plain; version=0.0.4\r\n\
                     Content-Length: {}\r\n\r\n{page}",
                    page.len()
                );
            }
        });
        Self { port, factors }
    }

    /// Host and port of the server.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The series of a host with these labels, as scrapes at these times would return them.
    pub fn series(host: &str, labels: &[(&str, &str)], times: &[i64]) -> Vec<TimeSeries> {
        let mut series: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
        for timestamp in times {
            for line in metrics_page(host, *timestamp, &[]).lines() {
                let Some((name, value)) = line.split_once(METRIC_LABELS) else { continue };
                let value = value.trim().parse().expect("a value");
                series.entry(name.into()).or_default().push(Sample { timestamp: *timestamp, value });
            }
        }
        let with_labels = |(name, samples): (String, Vec<Sample>)| {
            let own = [("__name__", &*name), ("device", "lo")];
            let labels = own.iter().chain(labels);
            let mut labels: Vec<Label> =
                labels.map(|(name, value)| Label { name: (*name).into(), value: (*value).into() }).collect();
            labels.sort_by(|a, b| a.name.cmp(&b.name));
            TimeSeries { labels, samples, ..Default::default() }
        };
        series.into_iter().map(with_labels).collect()
    }

    /// Multiplies the traffic of these hosts from now on.
    pub fn set_factor(&self, hosts: &[&str], factor: f64) {
        let mut factors = self.factors.lock().expect("no thread panics with it");
        for host in hosts {
            factors.entry((*host).to_string()).or_default().push((now_ms(), factor));
        }
    }

    /// Lets Prometheus scrape these hosts.
    pub fn write_targets(&self, stack: &Stack, hosts: &[&str]) {
        let port = self.port;
        let target = |host: &&str| {
            format!(
                "- {{targets: ['127.0.0.1:{port}'], labels: {{instance: {host}, __metrics_path__: /{host}}}}}\n"
            )
        };
        let folder = stack.dir.path();
        // By a rename: Prometheus reads the file at each change.
        fs::write(folder.join("targets.new"), hosts.iter().map(target).collect::<String>())
            .expect("the folder is writable");
        fs::rename(folder.join("targets.new"), folder.join("targets.yml")).expect("the same directory");
    }
}

/// A number in [0, 1) for each number (splitmix64, finalizer).
fn noise(number: u64) -> f64 {
    let mut x = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

/// The page of a host at a time: ordinary traffic, with an amount and a noise of its own, times the factors.
fn metrics_page(host: &str, now_ms: i64, factors: &[(i64, f64)]) -> String {
    let number = u64::from(host.as_bytes().last().copied().unwrap_or_default());
    let extra = |i: usize| {
        let ends = factors.get(i + 1).map_or(now_ms, |next| next.0);
        (factors[i].1 - 1.0) * (ends - factors[i].0) as f64 / 1000.0
    };
    let seconds = now_ms as f64 / 1000.0 % 1e6 + (0..factors.len()).map(extra).sum::<f64>();
    let mut page = String::new();
    for (i, direction) in [(0, "receive"), (1, "transmit")] {
        for (j, (unit, scale)) in [(0, ("bytes", 1e6)), (1, ("packets", 1e3))] {
            // Packets are of all sizes.
            let seed = (number << 40) + (i << 36) + (j << 34) + now_ms.unsigned_abs() / 1000;
            let load = 0.8 + 0.1 * (number % 5) as f64;
            let total = scale * (load * seconds + 0.4 * noise(seed));
            let name = format!("node_network_{direction}_{unit}_total");
            writeln!(page, "# TYPE {name} counter\n{name}{METRIC_LABELS} {total}").expect("a string");
        }
    }
    page
}
