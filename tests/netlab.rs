//! The network lab, live: a real Prometheus scrapes hosts with real traffic, each a network namespace. A fault becomes an
//! incident within some rows, whose first device is one of the fault's, and which ends after the fault.
//!
//! An incident ends ten minutes after its deviation, and the threshold of a model of minutes is three times as high. Times
//! are therefore stretched between Prometheus and promforest, as in a recording of the lab: a row is a minute, and counters
//! are multiplied likewise, so that rates stay what they were.

mod support;

use promforest::prom::proto::WriteRequest;
use promforest::prom::wire::snappy;
use prost::Message as _;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;
use support::example::{TIMEOUT, wait_for_ok};
use support::mlflow::python;
use support::prometheus::{PrometheusApi, Series};
use support::{
    PROGRAM, Process, PrometheusVersion, free_port, http, node_exporter, now_ms, remote_write, wait,
};

const N_HOSTS: usize = 3;
/// Kinds of faults that are at the same time, on different hosts. Silence is not among them: it is measured by the least
/// traffic of a day.
const ROUNDS: [&[&str]; 3] = [
    &["burst", "port scan", "backup at the wrong hour"],
    &["broadcast storm"],
    &["load moved", "exfiltration at noon"],
];
/// Interval of rows.
const ROW_MS: i64 = 200;
/// A row becomes a minute.
const STRETCH: i64 = 60_000 / ROW_MS;
/// Longest duration of the test: at its end, stretched time would be ahead of the clock.
const LIMIT: Duration = Duration::from_secs(600);
/// Models are trained on the window: the lab's own Prometheus has times that are not stretched. promforest looks every minute
/// whether there is enough of it.
const CONFIG: &str = r#"
global: {scrape_interval: 1m}
remote_write: [{url: 'http://STORE/api/v1/write', queue_config: {sample_age_limit: 10d}}]
remote_read: []
detectors:
  - name: node_network
    match: ['{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total"}']
    transform: rate(4m)
    window: 10d
    training: {min_history: 9h}
"#;
/// Rows of a fault.
const FAULT_ROWS: usize = 25;
/// Most rows of a fault before its incident.
const MAX_DELAY_ROWS: usize = 10;
/// Most rows of an incident after its fault: it is unsteady for twelve more, and then ten pass.
const MAX_END_ROWS: usize = 40;

/// The effect of a fault on a host.
#[derive(Debug, Deserialize)]
struct Label {
    host: String,
    devices: Vec<String>,
}

/// A scored row of a host.
#[derive(Debug)]
struct Row {
    at_ms: i64,
    is_incident: bool,
}

/// By host.
type Rows = BTreeMap<String, Vec<Row>>;

/// The lab. Its processes, networks and files end with it.
struct Lab {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Lab {
    /// Starts the lab, which sends what it scrapes to an address, and waits for its ordinary traffic.
    fn start(folder: &Path, address: &str) -> Self {
        let log = folder.join("lab.log");
        let mut process = Command::new(python())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quality/netlab/lab.py"))
            .args(["live", &format!("http://{address}/api/v1/write")])
            .args(["--row-seconds", &(ROW_MS as f64 / 1000.0).to_string()])
            .env("PROMETHEUS_3", PrometheusVersion::V3.prometheus())
            .env("NODE_EXPORTER", node_exporter())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("writable"))
            .spawn()
            .expect("Python runs");
        let commands = process.stdin.take().expect("a pipe");
        let answers = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut lab = Self { process, commands, answers, log };
        lab.command("stop");
        lab
    }

    /// Starts a fault or ends all; the labels of what has started.
    fn command(&mut self, command: &str) -> Vec<Label> {
        let mut answer = String::new();
        // A lab that has ended takes no command and answers nothing.
        let _ = writeln!(self.commands, "{command}");
        let _ = self.answers.read_line(&mut answer);
        let log = || fs::read_to_string(&self.log).unwrap_or_default();
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{command}: answer {answer:?}\n{}", log()))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Stretches time before its end.
#[derive(Clone, Copy)]
struct Stretch {
    end_ms: i64,
}

impl Stretch {
    fn time(self, timestamp_ms: i64) -> i64 {
        self.end_ms - STRETCH * (self.end_ms - timestamp_ms)
    }

    fn now(self) -> i64 {
        self.time(now_ms())
    }

    fn request(self, body: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::new();
        let message = snappy::decompress(body, 32 << 20, &mut buffer).expect("snappy");
        let mut request = WriteRequest::decode(message).expect("a write request");
        for sample in request.timeseries.iter_mut().flat_map(|series| &mut series.samples) {
            sample.timestamp = self.time(sample.timestamp);
            // The product with a staleness marker is another NaN.
            if !sample.value.is_nan() {
                sample.value *= STRETCH as f64;
            }
        }
        remote_write::body(request.timeseries)
    }
}

/// Passes write requests on to a program, stretched, until the end of the process; its address.
fn start_relay(stretch: Stretch, receiver: String) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound socket has an address").to_string();
    let pass = move |mut stream: TcpStream| {
        let (_, body) = http::read_request(&mut stream)?;
        let (status, _) = http::post_message(&receiver, "/api/v1/write", &stretch.request(&body))?;
        write!(stream, "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A sender without an answer sends again.
            let _ = pass(stream);
        }
    });
    address
}

/// Starts a program that the kernel ends with this thread, even if nothing else does.
fn start(name: &str, program: &Path, args: &[String], folder: &Path) -> Process {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program).args(args);
    Process::spawn(name, command, folder)
}

/// The lab and what watches it: promforest, and the Prometheus that it writes to.
struct Scene {
    lab: Lab,
    stretch: Stretch,
    store: Process,
    promforest: Process,
    api: PrometheusApi,
}

impl Scene {
    /// Starts all, and waits for models of ordinary traffic.
    fn start(folder: &Path) -> Self {
        let [store_address, address] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
        fs::write(folder.join("store.yml"), "storage: {tsdb: {out_of_order_time_window: 10d}}\n")
            .expect("writable");
        let args = [
            "--config.file=store.yml".into(),
            "--storage.tsdb.path=store".into(),
            "--web.enable-remote-write-receiver".into(),
            format!("--web.listen-address={store_address}"),
        ];
        let mut store = start("store", &PrometheusVersion::V3.prometheus(), &args, folder);
        wait_for_ok(&mut store, &store_address, "/-/ready");
        let config = CONFIG.replace("STORE", &store_address);
        fs::write(folder.join("promforest.yml"), config).expect("writable");
        let args = ["--config.file=promforest.yml".into(), format!("--web.listen-address={address}")];
        let mut promforest = start("promforest", Path::new(PROGRAM), &args, folder);
        wait_for_ok(&mut promforest, &address, "/-/healthy");
        let stretch = Stretch { end_ms: now_ms() + LIMIT.as_millis() as i64 };
        let lab = Lab::start(folder, &start_relay(stretch, address));
        let mut scene = Self { lab, stretch, store, promforest, api: PrometheusApi(store_address) };
        scene.wait_for_rows("rows have scores", LIMIT, i64::MIN, |rows| !rows.is_empty());
        scene
    }

    /// Waits until the rows of all hosts since a time are as wanted, and returns them.
    fn wait_for_rows(
        &mut self,
        what: &str,
        limit: Duration,
        since_ms: i64,
        is_wanted: impl Fn(&[Row]) -> bool,
    ) -> Rows {
        let Self { store, promforest, api, .. } = self;
        wait(what, limit, &mut [promforest, store], || {
            let mut rows = Rows::new();
            for series in api.query("anomaly_incident[10d]")? {
                let samples = series.samples.iter().filter(|(at_ms, _)| *at_ms >= since_ms);
                let samples = samples.map(|(at_ms, value)| Row { at_ms: *at_ms, is_incident: *value == 1.0 });
                rows.insert(series.labels["instance"].clone(), samples.collect());
            }
            let is_wanted = rows.len() == N_HOSTS && rows.values().all(|rows| is_wanted(rows));
            if is_wanted { Ok(rows) } else { Err(format!("{rows:?}")) }
        })
    }

    /// Waits until no incident is open.
    fn wait_for_calm(&mut self) {
        let is_calm = |rows: &[Row]| rows.last().is_some_and(|row| !row.is_incident);
        let is_decided = |rows: &[Row]| is_calm(rows) || rows.len() > MAX_END_ROWS;
        let rows = self.wait_for_rows("no incident is open", TIMEOUT, self.stretch.now(), is_decided);
        let is_over = rows.values().all(|rows| is_calm(rows));
        assert!(is_over, "an incident does not end: {rows:?}\n{}", self.promforest.tail());
    }

    /// The device that a row of an incident names first.
    fn first_device(&self, host: &str, at_ms: i64) -> String {
        let at = at_ms as f64 / 1000.0;
        let shares = format!("last_over_time(anomaly_contribution{{instance=\"{host}\"}}[1s] @ {at:.3})");
        let shares = self.api.query(&shares).expect("an answer");
        let share = |series: &Series| series.samples[0].1;
        let first = shares.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
        first.expect("a contribution").labels["device"].clone()
    }

    /// Plays faults, and checks their incidents.
    fn play(&mut self, kinds: &[&str]) {
        let start_ms = self.stretch.now();
        let start = |kind: &&str| (kind.to_string(), self.lab.command(&format!("start {kind}")));
        let labels: Vec<(String, Vec<Label>)> = kinds.iter().map(start).collect();
        let rows =
            self.wait_for_rows("rows of the faults", TIMEOUT, start_ms, |rows| rows.len() >= FAULT_ROWS);
        self.lab.command("stop");
        for (kind, labels) in labels {
            let mut n_found = 0;
            for Label { host, devices } in labels {
                let Some(delay) = rows[&host].iter().position(|row| row.is_incident) else { continue };
                let device = self.first_device(&host, rows[&host][delay].at_ms);
                println!("{kind} on {host}: an incident after {delay} rows names {device}");
                assert!(devices.contains(&device), "{kind} on {host}: {device} is none of {devices:?}");
                n_found += usize::from(delay <= MAX_DELAY_ROWS);
            }
            let scores = format!("anomaly_score[30m] @ {}", self.stretch.now() / 1000);
            assert!(
                n_found > 0,
                "{kind}: no incident: {:?}\n{}",
                self.api.query(&scores),
                self.promforest.tail()
            );
        }
        self.wait_for_calm();
    }
}

#[test]
fn faults_become_incidents_that_name_the_device_and_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut scene = Scene::start(folder.path());
    scene.wait_for_calm();
    for kinds in ROUNDS {
        scene.play(kinds);
    }
}
