//! Hosts are replaced, senders restart and repeat requests, endpoints answer 503 for a while: memory stays bounded, and
//! every score is written or counted.
//!
//! Nothing waits for real scrapes: a second here is a scrape interval there, and a host lives for a minute or two.
//! `cargo test --test soak` takes a minute; `PROMFOREST_SOAK_MINUTES=60` takes longer.

mod support;

use promforest::prom::proto::{Label, Sample, TimeSeries, WriteRequest};
use promforest::prom::wire::snappy;
use promforest::prom::{METRIC_NAME, STALE_BITS};
use prost::Message as _;
use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::{Process, free_port, http, now_ms, wait};
use tempfile::TempDir;

/// Hosts at a time, and how many of them are replaced every second.
const HOSTS: usize = 200;
const REPLACED: usize = 3;
/// Series of a host that are watched, and others: with [`REPLACED`], 10,000 new series a minute.
const WATCHED: usize = 4;
const OTHERS: usize = 51;
/// Seconds of a part of the run: rows are scored in each but the first, which has the first models in it.
const PART: u32 = 30;
const SECOND: Duration = Duration::from_secs(1);
/// Three times what was measured, 43 MB: a bound of the design and not of a machine.
const MAX_BYTES: f64 = 150e6;

const DETECTORS: &str = r#"
  - name: soak
    match: ['{__name__=~"watched_.*"}']
    transform: rate(10s)
    window: 30s
    grace: 3s
    training: {history: 1h, min_history: 10s, interval: 1h}
    model: {kind: isolation_forest, n_estimators: 20}
"#;

/// A remote write endpoint that accepts everything, or answers 503.
struct FakeEndpoint {
    port: u16,
    unavailable: Arc<AtomicBool>,
    scores: Arc<AtomicU64>,
    /// Staleness markers.
    stale_markers: Arc<AtomicU64>,
}

impl FakeEndpoint {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let unavailable: Arc<AtomicBool> = Arc::default();
        let [scores, stale_markers]: [Arc<AtomicU64>; 2] = Default::default();
        let endpoint = Self {
            port,
            unavailable: unavailable.clone(),
            scores: scores.clone(),
            stale_markers: stale_markers.clone(),
        };
        // The thread ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (unavailable, scores, stale_markers) =
                    (unavailable.clone(), scores.clone(), stale_markers.clone());
                // A sender that goes away ends its connection's thread.
                thread::spawn(move || {
                    while Self::answer(&stream, &unavailable, [&scores, &stale_markers]).is_some() {}
                });
            }
        });
        endpoint
    }

    fn answer(
        mut stream: &TcpStream,
        unavailable: &AtomicBool,
        [scores, stale_markers]: [&AtomicU64; 2],
    ) -> Option<()> {
        // Nothing is sent before the answer: no byte of a next request is lost in the buffer.
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        if unavailable.load(Ordering::Relaxed) {
            return stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").ok();
        }
        let mut buffer = Vec::new();
        let message = snappy::decompress(&body, 32 << 20, &mut buffer).expect("snappy");
        let request = WriteRequest::decode(message).expect("a WriteRequest");
        for sample in request.timeseries.iter().flat_map(|series| &series.samples) {
            let kind = if sample.value.to_bits() == STALE_BITS { stale_markers } else { scores };
            kind.fetch_add(1, Ordering::Relaxed);
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").ok()
    }
}

/// The counters of one scrape of a host, or their end.
fn scrape(host: u64, timestamp: i64, is_end: bool) -> Vec<TimeSeries> {
    let label = |name: &str, value: String| Label { name: name.into(), value };
    let series = |number: usize| {
        let (kind, number) = if number < WATCHED { ("watched", number) } else { ("other", number - WATCHED) };
        let labels = vec![
            label(METRIC_NAME, format!("{kind}_{number}_total")),
            label("instance", format!("host{host}:9100")),
            label("job", "node".into()),
        ];
        let value = timestamp as f64 * (1.0 + ((host as usize * 31 + number * 7) % 13) as f64);
        let value = if is_end { f64::from_bits(STALE_BITS) } else { value };
        TimeSeries { labels, samples: vec![Sample { value, timestamp }], ..Default::default() }
    };
    (0..WATCHED + OTHERS).map(series).collect()
}

/// Sends until it is taken, as Prometheus does; how many samples these were.
fn deliver(address: &str, timeseries: &[TimeSeries]) -> u64 {
    let samples = timeseries.iter().map(|series| series.samples.len() as u64).sum();
    let request = WriteRequest { timeseries: timeseries.to_vec(), metadata: Vec::new() };
    let body = snappy::compress(&request.encode_to_vec());
    for _ in 0..100 {
        match http::post_message(address, "/api/v1/write", &body) {
            Ok((204, _)) => return samples,
            Ok((503, _)) | Err(_) => thread::sleep(Duration::from_millis(100)),
            Ok((status, text)) => panic!("{status}: {}", String::from_utf8_lossy(&text)),
        }
    }
    panic!("{address} takes nothing")
}

/// The metrics of promforest.
struct MetricsPage(String);

impl MetricsPage {
    fn read(address: &str) -> Self {
        Self(http::get(address, "/metrics").unwrap_or_else(|err| panic!("{address}: {err}")).body)
    }

    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        http::metric(&self.0, name, labels).unwrap_or(0.0)
    }

    fn resident(&self) -> f64 {
        self.value("process_resident_memory_bytes", &[])
    }
}

/// A process that writes to this endpoint, and its address.
fn start(endpoint: &FakeEndpoint, dir: &Path) -> (Process, String) {
    let config = format!(
        "global: {{scrape_interval: 1s}}\n\
         remote_write: [{{url: 'http://127.0.0.1:{}/api/v1/write'}}]\n\
         remote_read: []\n\
         detectors:{DETECTORS}",
        endpoint.port
    );
    std::fs::write(dir.join("promforest.yml"), config).expect("the folder is writable");
    let address = format!("127.0.0.1:{}", free_port());
    let args = ["--config.file=promforest.yml".into(), format!("--web.listen-address={address}")];
    let program = Path::new(env!("CARGO_BIN_EXE_promforest"));
    let mut promforest = Process::start("promforest", program, &args, dir);
    let healthy = || http::get(&address, "/-/healthy").map_err(|err| err.to_string());
    wait("promforest is healthy", Duration::from_secs(30), &mut [&mut promforest], healthy);
    (promforest, address)
}

/// Everything that was sent is counted, and every score is written or counted as lost.
fn check_counts(page: &MetricsPage, endpoint: &FakeEndpoint, sent: u64, rows: &[f64], promforest: &Process) {
    assert_eq!(page.value("promforest_ingest_samples_total", &[]), sent as f64, "samples received and sent");
    let [scores, stale_markers] =
        [&endpoint.scores, &endpoint.stale_markers].map(|count| count.load(Ordering::Relaxed) as f64);
    let written = page.value("promforest_remote_write_samples_total", &[]);
    assert_eq!(written, scores + stale_markers, "samples written and received");
    let failed = page.value("promforest_remote_write_samples_failed_total", &[]);
    let samples_of_rows = |state| 2.0 * page.value("promforest_rows_total", &[("state", state)]);
    let increases = rows.windows(2).skip(1).all(|between| between[0] < between[1]);
    assert!(increases, "rows scored, every {PART} s: {rows:?}\n{}", promforest.tail());
    let scored = samples_of_rows("complete");
    assert!(scored > 0.0, "nothing was scored\n{}", promforest.tail());
    assert_eq!(scored, scores + failed, "samples scored, and written ({scores}) or lost ({failed})");
    // A host that was never scored has no end.
    assert!(
        stale_markers <= samples_of_rows("stale"),
        "{stale_markers} series ended, of {} of rows",
        samples_of_rows("stale")
    );
}

#[test]
fn f8_f18_f31_memory_is_flat_under_churn() {
    let minutes: f64 = std::env::var("PROMFOREST_SOAK_MINUTES")
        .map_or(1.0, |text| text.parse().expect("the variable has minutes"));
    let endpoint = FakeEndpoint::start();
    let dir = TempDir::with_prefix("promforest-soak-").expect("a temporary directory");
    let (mut promforest, address) = start(&endpoint, dir.path());

    let began = Instant::now();
    let length = Duration::from_secs_f64(minutes * 60.0);
    let mut hosts: VecDeque<u64> = (0..HOSTS as u64).collect();
    let (mut next, mut sent, mut last) = (HOSTS as u64, 0, Vec::new());
    let (mut resident, mut rows): (Vec<f64>, Vec<f64>) = Default::default();
    for second in 0.. {
        let due = began + second * SECOND;
        if due > began + length {
            break;
        }
        // On a machine that is too slow for this, the scrapes are further apart.
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let timestamp = now_ms();
        let mut requests: Vec<Vec<TimeSeries>> = Vec::new();
        for _ in 0..REPLACED {
            let gone = hosts.pop_front().expect("there are hosts");
            requests.push(scrape(gone, timestamp, true));
            hosts.push_back(next);
            next += 1;
        }
        let hosts: Vec<u64> = hosts.iter().copied().collect();
        for part in hosts.chunks(HOSTS / 10) {
            requests.push(part.iter().flat_map(|host| scrape(*host, timestamp, false)).collect());
        }
        // A sender that is restarted repeats what it is not sure of.
        if second % 20 == 19 {
            requests.append(&mut last);
        }
        sent += requests.iter().map(|request| deliver(&address, request)).sum::<u64>();
        last = requests;
        endpoint.unavailable.store(second % 30 >= 20, Ordering::Relaxed);
        if second % 5 == 0 {
            let page = MetricsPage::read(&address);
            let scored = page.value("promforest_rows_total", &[("state", "complete")]);
            resident.push(page.resident());
            if second % PART == 0 {
                rows.push(scored);
            }
            if second % 60 == 0 {
                println!(
                    "{:4} s: {:6.1} MB resident, {} series remembered, {} rows, {} samples written, {} lost",
                    began.elapsed().as_secs(),
                    page.resident() / 1e6,
                    page.value("promforest_index_series", &[]),
                    scored,
                    page.value("promforest_remote_write_samples_total", &[]),
                    page.value("promforest_remote_write_samples_failed_total", &[]),
                );
            }
        }
        promforest.assert_running();
    }
    endpoint.unavailable.store(false, Ordering::Relaxed);
    let settled = || match MetricsPage::read(&address) {
        page if page.value("promforest_remote_write_groups_pending", &[]) == 0.0 => Ok(page),
        _ => Err("scores are pending".to_string()),
    };
    wait("everything is written", Duration::from_secs(60), &mut [&mut promforest], settled);
    // Rows whose time was not up are closed.
    thread::sleep(Duration::from_secs(5));
    let page = MetricsPage::read(&address);

    check_counts(&page, &endpoint, sent, &rows, &promforest);

    // Everything that a host leaves behind goes within a window and a look around, a minute and a half.
    let (early, late) = resident.split_at(resident.len() / 2);
    let max_bytes = |bytes: &[f64]| bytes.iter().copied().fold(0.0, f64::max);
    println!(
        "{next} hosts, {sent} samples; at most {:.1} MB, then {:.1} MB",
        max_bytes(early) / 1e6,
        max_bytes(late) / 1e6
    );
    assert!(max_bytes(&resident) < MAX_BYTES, "{} bytes", max_bytes(&resident));
    let warm = length > Duration::from_secs(300);
    assert!(
        !warm || max_bytes(late) < 1.25 * max_bytes(early),
        "{} bytes, then {}",
        max_bytes(early),
        max_bytes(late)
    );
}
