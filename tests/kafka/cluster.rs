//! A broker, a router, a Prometheus that stores the scores, and a sidecar that gets the same rows by HTTP.

use crate::support::kafka::Broker;
use crate::support::sidecar::Sidecar;
use crate::support::victoriametrics::read_history;
use crate::support::{
    PROGRAM, Process, PrometheusVersion, command, free_port, http, now_ms, remote_write, wait,
};
use promforest::history::Api;
use promforest::prom::proto::TimeSeries;
use promforest::prom::{Labels, Sample};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// Long enough for every step, on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(120);
/// The topic.
pub const TOPIC: &str = "samples";
/// The consumer group.
pub const GROUP: &str = "sidecars";
/// Partitions of the topic.
pub const N_PARTITIONS: i32 = 4;
/// Hosts, numbered from 0.
const N_HOSTS: usize = 8;
/// Distance of rows.
const INTERVAL_MS: i64 = 10_000;
/// Age of the first row.
const START_AGE_MS: i64 = 100 * 60_000;
/// The written series that depend on rows alone.
const SCORES: &str = r#"{__name__=~"net_anomaly|anomaly_score|anomaly_threshold|anomaly_incident"}"#;

/// Scores by series.
pub type Scores = BTreeMap<Labels, Vec<Sample>>;

/// See the [module](self).
pub struct Cluster {
    /// The broker.
    pub broker: Broker,
    /// The router.
    pub router: Process,
    /// Host and port of the router.
    pub router_address: String,
    reference: Sidecar,
    _prometheus: Process,
    prometheus_address: String,
    models: String,
    /// The brokers, the encryption and the credentials of the clients.
    connection: String,
    /// True if Prometheus stores the rows too.
    stores_samples: bool,
    start_ms: i64,
    n_rows: i64,
    _folder: TempDir,
}

impl Cluster {
    /// Starts all but the members. The broker compresses the batches of the router anew, unless it is to keep the
    /// `producer`'s.
    pub fn start(compression: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let broker = Broker::start(folder.path());
        let connection = format!("brokers: ['{}']", broker.address);
        Self::start_beside(folder, broker, &connection, compression)
    }

    /// Starts all but the members beside a broker, to which router and members connect in this way.
    pub fn start_beside(folder: TempDir, broker: Broker, connection: &str, compression: &str) -> Self {
        broker.create_topic(TOPIC, N_PARTITIONS, compression);
        let models = train(folder.path());
        let (prometheus, prometheus_address) = start_prometheus(folder.path());
        let config = format!("remote_write: []\nremote_read: []\n{}", detectors(&models));
        let reference = Sidecar::start(&[("promforest.yml", &config)]);
        let (router, router_address) = start_router(folder.path(), connection, "");
        let start_ms = (now_ms() - START_AGE_MS) / INTERVAL_MS * INTERVAL_MS;
        Self {
            broker,
            router,
            router_address,
            reference,
            _prometheus: prometheus,
            prometheus_address,
            models,
            connection: connection.into(),
            stores_samples: false,
            start_ms,
            n_rows: 0,
            _folder: folder,
        }
    }

    /// Lets Prometheus store the rows too.
    pub fn store_samples(&mut self) {
        self.stores_samples = true;
    }

    /// The configuration of a member that reads history from Prometheus.
    pub fn config_with_history(&self, id: &str) -> String {
        let history = format!("{{url: 'http://{}/api/v1/read'}}", self.prometheus_address);
        self.config(id, &history)
    }

    fn config(&self, id: &str, history: &str) -> String {
        format!(
            "remote_write: [{{url: 'http://{}/api/v1/write', queue_config: {{sample_age_limit: 6h}}}}]\n\
             remote_read: [{history}]\n\
             kafka: {{{}, topic: {TOPIC}, group_id: {GROUP}, group_instance_id: {id}, \
             session_timeout: 5s, rewind: 2h, linger: 1m}}\n{}",
            self.prometheus_address,
            self.connection,
            detectors(&self.models)
        )
    }

    /// Starts a sidecar that reads the topic.
    pub fn start_member(&self, id: &str) -> Sidecar {
        Sidecar::start(&[("promforest.yml", &self.config(id, ""))])
    }

    /// Sends the next rows of all hosts, by the router and to the reference.
    pub fn send_rows(&mut self, n_rows: i64) {
        for _ in 0..n_rows {
            let body = remote_write::body(self.row(self.n_rows));
            self.n_rows += 1;
            let stored = self.stores_samples.then_some(&self.prometheus_address);
            for address in [&self.router_address, &self.reference.address()].into_iter().chain(stored) {
                let status = remote_write::post(address, &body).expect("a response");
                assert_eq!(status, 204, "{address}\n{}", self.router.tail());
            }
        }
    }

    /// A row of all hosts.
    pub fn row(&self, row: i64) -> Vec<TimeSeries> {
        let timestamp_ms = self.start_ms + row * INTERVAL_MS;
        assert!(timestamp_ms < now_ms(), "too many rows");
        let series = |host: usize| {
            let [load, temperature] = values(host as i64, row);
            [("load", load), ("temperature", temperature)]
                .map(|(name, value)| remote_write::series(name, host, &[(timestamp_ms, value)]))
        };
        (0..N_HOSTS).flat_map(series).collect()
    }

    /// The records of the topic.
    pub fn n_records(&self) -> i64 {
        self.broker.watermarks(TOPIC, N_PARTITIONS).iter().map(|(_, next)| next).sum()
    }

    /// The records before the committed offsets.
    pub fn n_committed(&self) -> i64 {
        self.broker.committed(GROUP, TOPIC, N_PARTITIONS).iter().sum()
    }

    fn range(&self) -> (i64, i64) {
        (self.start_ms - 1, now_ms())
    }

    /// The scores of the sidecar that gets the rows by HTTP.
    pub fn expected_scores(&self) -> Scores {
        let url = format!("http://{}/api/v1/read", self.reference.address());
        read_history(Api::RemoteRead, &url, SCORES, &[], self.range())
    }

    /// The scores that the members wrote.
    pub fn written_scores(&self) -> Scores {
        let url = format!("http://{}/api/v1/read", self.prometheus_address);
        read_history(Api::RemoteRead, &url, SCORES, &[], self.range())
    }

    /// Waits until the scores of every row are written, with the bits of the reference.
    pub fn wait_for_scores(&self, members: &mut [&mut Sidecar]) {
        let mut processes: Vec<&mut Process> = members.iter_mut().map(|member| &mut member.process).collect();
        wait("every row is scored", TIMEOUT, &mut processes, || {
            let expected = self.expected_scores();
            let n_rows: Vec<usize> = expected.values().map(Vec::len).collect();
            let newest_ms = expected.values().filter_map(|samples| Some(samples.last()?.timestamp_ms));
            let last_ms = self.start_ms + (self.n_rows - 1) * INTERVAL_MS;
            if expected.len() != 4 * N_HOSTS || newest_ms.min() != Some(last_ms) {
                return Err(format!("the reference has {n_rows:?}"));
            }
            compare(&self.written_scores(), &expected)
        });
    }

    /// Waits until every record is committed.
    pub fn wait_for_commits(&self, member: &mut Sidecar) {
        wait("every record is committed", TIMEOUT, &mut [&mut member.process], || {
            let next: Vec<i64> =
                self.broker.watermarks(TOPIC, N_PARTITIONS).iter().map(|(_, next)| *next).collect();
            let committed = self.broker.committed(GROUP, TOPIC, N_PARTITIONS);
            if committed == next { Ok(()) } else { Err(format!("{committed:?} of {next:?}")) }
        });
    }

    /// No sample was written with another value than before.
    pub fn check_no_conflict(&self, member: &Sidecar) {
        let reasons = ["rejected", "out_of_order", "left_window", "revised", "abandoned"];
        for reason in reasons {
            let failed =
                member.metric_with("promforest_remote_write_samples_failed_total", &[("reason", reason)]);
            assert_eq!(failed, 0.0, "{reason}\n{}", member.process.tail());
        }
    }
}

/// The first difference, if there is one.
fn compare(written: &Scores, expected: &Scores) -> Result<(), String> {
    for (labels, expected) in expected {
        let bits = |samples: &[Sample]| -> BTreeMap<i64, u64> {
            samples.iter().map(|sample| (sample.timestamp_ms, sample.value.to_bits())).collect()
        };
        let (expected, found) = (bits(expected), bits(written.get(labels).map_or(&[][..], |found| found)));
        for (timestamp_ms, value) in &expected {
            match found.get(timestamp_ms) {
                Some(found) if found == value => {}
                Some(found) => {
                    let values = [*found, *value].map(f64::from_bits);
                    panic!("{labels} at {timestamp_ms}: {values:?} differ");
                }
                None => {
                    return Err(format!(
                        "{labels}: {} of {} rows, the first missing one at {timestamp_ms}",
                        found.len(),
                        expected.len()
                    ));
                }
            }
        }
        if found.len() > expected.len() {
            return Err(format!("{labels}: {} rows, and {} by HTTP", found.len(), expected.len()));
        }
    }
    Ok(())
}

/// Load and temperature of a host: noise around a level, with a burst now and then.
fn values(host: i64, row: i64) -> [f64; 2] {
    let noise = |seed: i64| (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64.cast_signed()) >> 40) as f64 / 1e6;
    let burst = if (row + 7 * host) % 53 == 0 { 9.0 } else { 1.0 };
    [burst * (5.0 + noise(97 * host + row)), 40.0 + host as f64 + noise(31 * row + host)]
}

/// A detector whose models are in this folder.
pub fn detectors(models: &str) -> String {
    format!(
        "registry: {{path: {models}}}\n\
         detectors:\n  - name: net\n    match: [load, temperature]\n    transform: value\n    window: 3h\n    \
         grace: 10s\n    training: {{history: 6h, min_history: 2h, interval: 1d}}\n"
    )
}

/// Trains the model of all hosts. Returns the folder of the registry.
pub fn train(folder: &Path) -> String {
    let mut table = "timestamp,load,temperature\n".to_string();
    let start_ms = now_ms() - 86_400_000;
    for row in 0..1000 {
        let [load, temperature] = values(0, row);
        writeln!(table, "{},{load},{temperature}", start_ms + row * INTERVAL_MS).expect("a string");
    }
    fs::write(folder.join("table.csv"), table).expect("writable");
    let models = folder.join("models").display().to_string();
    fs::write(folder.join("train.yml"), format!("remote_write: []\nremote_read: []\n{}", detectors(&models)))
        .expect("writable");
    let arguments =
        ["train", "--config.file=train.yml", "--input=table.csv", "--sweep=64", "--alias=champion"];
    let trained = command::run_in(folder, &arguments);
    assert_eq!(trained.status, 0, "{trained:?}");
    models
}

fn start_prometheus(folder: &Path) -> (Process, String) {
    let address = format!("127.0.0.1:{}", free_port());
    fs::write(
        folder.join("prometheus.yml"),
        "storage: {tsdb: {out_of_order_time_window: 2h}}\nscrape_configs: []\n",
    )
    .expect("writable");
    let arguments = [
        "--config.file=prometheus.yml".into(),
        "--storage.tsdb.path=tsdb".into(),
        format!("--web.listen-address={address}"),
        "--web.enable-remote-write-receiver".into(),
    ];
    let program = PrometheusVersion::V3.prometheus();
    let mut process = Process::start("prometheus", &program, &arguments, folder);
    wait_until_ready("Prometheus", &address, &mut process);
    (process, address)
}

/// Starts a router with further sections. Returns its host and port too.
pub fn start_router(folder: &Path, connection: &str, sections: &str) -> (Process, String) {
    let (mut process, address) = spawn_router("router", folder, connection, sections);
    wait_until_ready("the router", &address, &mut process);
    (process, address)
}

/// Starts a router that may never be ready.
pub fn spawn_router(name: &str, folder: &Path, connection: &str, sections: &str) -> (Process, String) {
    let address = format!("127.0.0.1:{}", free_port());
    let config = format!("kafka: {{{connection}, topic: {TOPIC}}}\n{sections}");
    fs::write(folder.join(format!("{name}.yml")), config).expect("writable");
    let arguments =
        ["route".into(), format!("--config.file={name}.yml"), format!("--web.listen-address={address}")];
    (Process::start(name, Path::new(PROGRAM), &arguments, folder), address)
}

fn wait_until_ready(what: &str, address: &str, process: &mut Process) {
    wait(&format!("{what} is ready"), TIMEOUT, &mut [process], || {
        let answer = http::get(address, "/-/ready").map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
}
