//! Node exporter, Prometheus and promforest beside each other, as most scenarios need them.

use super::prometheus::{PrometheusApi, Series};
use super::{Process, PrometheusVersion, free_port, http, node_exporter, now_ms, wait};
use promforest::models::{FittedModel, Model, artifact};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// For what takes a second or two on an idle machine.
pub const SHORT_TIMEOUT: Duration = Duration::from_secs(30);
/// For a first model, beyond the history that it needs.
pub const MODEL_TIMEOUT: Duration = Duration::from_secs(60);

/// The detector of most scenarios. A plain forest has its model within seconds, and judges every row alone.
pub const NODE_NETWORK: &str = r#"
  - name: node_network
    match: ['{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device="lo"}']
    transform: rate(10s)
    window: 10m
    grace: 5s
    training: {history: 1h, min_history: 10s, interval: 1h}
    model: {kind: isolation_forest}
"#;
/// The same with the default model, which judges one row after the other: a row that is lost or comes late would show
/// in all that follow. Differences reach back over a minute: a model needs that, the rates' range, and some rows.
pub const NODE_NETWORK_EXTENDED: &str = r#"
  - name: node_network
    match: ['{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device="lo"}']
    transform: rate(10s)
    window: 10m
    grace: 5s
    training: {history: 1h, min_history: 60s, interval: 1h}
    alerts: {budget: 2/day}
"#;
/// The transform's range.
pub const RANGE_MS: i64 = 10_000;

/// Score and decision of a row. The decision depends on all rows of minutes before it. The unit of a score is state of the
/// group: incidents move it by less than 1 % within hours.
#[derive(Clone, Copy, Debug)]
pub struct ScoreRow {
    score: f64,
    decision: f64,
}

/// Equal decisions, to the bit, and scores that only their units tell apart.
impl PartialEq for ScoreRow {
    fn eq(&self, other: &Self) -> bool {
        self.decision.to_bits() == other.decision.to_bits()
            && (self.score - other.score).abs() <= 0.01 * self.score.max(other.score)
    }
}

/// The addresses of the servers of one scenario.
#[derive(Clone)]
pub struct StackApi {
    pub prometheus: PrometheusApi,
    pub promforest: String,
}

impl StackApi {
    /// The status and the text of `/-/ready`.
    pub fn ready(&self) -> Result<(u16, String), String> {
        let answer = http::get(&self.promforest, "/-/ready").map_err(|err| err.to_string())?;
        Ok((answer.status, answer.body.trim_end().to_string()))
    }

    /// One of promforest's own metrics, the sum over the series with these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64, String> {
        let page = http::get(&self.promforest, "/metrics").map_err(|err| err.to_string())?.body;
        http::metric(&page, name, labels).ok_or_else(|| format!("no {name} {labels:?} in /metrics"))
    }

    /// The one series of a selector, as it is stored.
    pub fn stored(&self, selector: &str) -> Result<Series, String> {
        let mut series = self.prometheus.query(&format!("{selector}[10m]"))?;
        match series.len() {
            1 => Ok(series.remove(0)),
            n => Err(format!("{n} series for {selector}")),
        }
    }

    /// Fails unless `/metrics` names this version as that of the alias.
    pub fn check_serving(&self, alias: &str, version: &str) -> Result<(), String> {
        self.metric("promforest_model_info", &[("alias", alias), ("version", version)]).map(drop)
    }

    /// The scores of the model in service.
    pub fn scores(&self) -> Result<Series, String> {
        self.stored(r#"anomaly_score{detector="node_network", model=""}"#)
    }
}

/// Node exporter, Prometheus and promforest.
pub struct Stack {
    pub version: PrometheusVersion,
    pub api: StackApi,
    pub exporter: Process,
    pub exporter_port: u16,
    pub prometheus_port: u16,
    pub promforest_port: u16,
    pub prometheus: Option<Process>,
    pub promforest: Option<Process>,
    pub dir: TempDir,
}

/// True if Prometheus accepts remote write.
#[derive(Clone, Copy, PartialEq)]
pub enum RemoteWriteReceiver {
    Enabled,
    Disabled,
}

/// The collectors of node_exporter.
#[derive(Clone, Copy, PartialEq)]
pub enum Collectors {
    All,
    Network,
}

/// The parts of Prometheus' configuration that differ between scenarios.
pub struct Scraping<'a> {
    /// The `scrape_configs` of node_exporter; `TARGET` is replaced by its address.
    pub jobs: &'a str,
    /// A `queue_config`; nothing for Prometheus' own.
    pub queue: &'a str,
    /// The `external_labels`, as in `cluster: a, replica: r1`.
    pub external_labels: &'a str,
}

/// One job with one target.
pub const JOB_NODE: Scraping<'_> = Scraping {
    jobs: "  - {job_name: node, static_configs: [{targets: ['TARGET']}]}",
    queue: "    queue_config: {batch_send_deadline: 1s}",
    external_labels: "",
};

impl Stack {
    /// Ends promforest as a power cut would.
    pub fn kill_promforest(&mut self) {
        self.promforest.take().expect("the program runs").kill();
    }

    /// Starts node_exporter and writes Prometheus' configuration.
    pub fn new(version: PrometheusVersion, collectors: Collectors, scraping: &Scraping<'_>) -> Self {
        let dir =
            tempfile::Builder::new().prefix("promforest-e2e-").tempdir().expect("a temporary directory");
        let (exporter_port, prometheus_port, promforest_port) = (free_port(), free_port(), free_port());
        let mut args = vec![
            format!("--web.listen-address=127.0.0.1:{exporter_port}"),
            // Debian's leaves lo out by default.
            "--collector.netdev.device-exclude=^$".into(),
        ];
        match collectors {
            // The systemd collector only complains where systemd does not run.
            Collectors::All => args.push("--no-collector.systemd".into()),
            Collectors::Network => {
                args.extend(["--collector.disable-defaults".into(), "--collector.netdev".into()]);
            }
        }
        let exporter = Process::start("node_exporter", &node_exporter(), &args, dir.path());
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let rules = repository.join("deploy/prometheus/promforest.rules.yml");
        let jobs = scraping.jobs.replace("TARGET", &format!("127.0.0.1:{exporter_port}"));
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s, external_labels: {{{}}}}}\n\
             storage: {{tsdb: {{out_of_order_time_window: 30m}}}}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n{jobs}\n  \
             - job_name: promforest\n    \
               honor_labels: true\n    \
               static_configs: [{{targets: ['127.0.0.1:{promforest_port}']}}]\n\
             remote_write:\n  \
             - url: http://127.0.0.1:{promforest_port}/api/v1/write\n{}\n",
            scraping.external_labels,
            rules.display(),
            scraping.queue,
        );
        fs::write(dir.path().join("prometheus.yml"), config).expect("the folder is writable");
        let api = StackApi {
            prometheus: PrometheusApi(format!("127.0.0.1:{prometheus_port}")),
            promforest: format!("127.0.0.1:{promforest_port}"),
        };
        Self {
            version,
            api,
            exporter,
            exporter_port,
            prometheus_port,
            promforest_port,
            prometheus: None,
            promforest: None,
            dir,
        }
    }

    /// The stack of most scenarios, with the first scores.
    pub fn with_scores(version: PrometheusVersion) -> Self {
        let mut stack = Self::new(version, Collectors::Network, &JOB_NODE);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure(NODE_NETWORK);
        stack.start_promforest();
        stack.wait("the first scores", MODEL_TIMEOUT, |at| at.scores().map(drop));
        stack
    }

    /// Lets Prometheus read from promforest, from its next start on; `more` goes into the block.
    pub fn add_remote_read(&self, more: &str) {
        let file = self.dir.path().join("prometheus.yml");
        let config = fs::read_to_string(&file).expect("it was written");
        let url = format!("http://{}/api/v1/read", self.api.promforest);
        let block = format!("remote_read: [{{url: '{url}', read_recent: true{more}}}]\n");
        fs::write(file, config + &block).expect("the folder is writable");
    }

    /// Starts Prometheus and waits until it is ready.
    pub fn start_prometheus(&mut self, receiver: RemoteWriteReceiver) {
        let mut args = vec![
            "--config.file=prometheus.yml".into(),
            "--storage.tsdb.path=data".into(),
            format!("--web.listen-address=127.0.0.1:{}", self.prometheus_port),
        ];
        if receiver == RemoteWriteReceiver::Enabled {
            args.push("--web.enable-remote-write-receiver".into());
        }
        let program = self.version.prometheus();
        self.prometheus = Some(Process::start("prometheus", &program, &args, self.dir.path()));
        self.wait("Prometheus is ready", SHORT_TIMEOUT, |at| {
            let answer = http::get(&at.prometheus.0, "/-/ready").map_err(|err| err.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.body) }
        });
    }

    /// By SIGTERM, as a service manager does.
    pub fn stop_prometheus(&mut self) {
        self.prometheus.take().expect("the program runs").terminate(SHORT_TIMEOUT);
    }

    /// promforest's configuration.
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("promforest.yml")
    }

    /// Writes promforest's configuration and returns it.
    pub fn configure(&self, detectors: &str) -> String {
        self.configure_file("promforest.yml", "", detectors)
    }

    /// Writes a configuration with more sections to a file of this name, and returns it.
    pub fn configure_file(&self, file: &str, sections: &str, detectors: &str) -> String {
        let url = format!("http://127.0.0.1:{}/api/v1", self.prometheus_port);
        let config = format!(
            "global: {{scrape_interval: 1s}}\n\
             remote_write: [{{url: '{url}/write'}}]\n\
             remote_read: [{{url: '{url}/read'}}]\n\
             {sections}\n\
             detectors:{detectors}"
        );
        fs::write(self.dir.path().join(file), &config).expect("the folder is writable");
        config
    }

    /// Runs a command of promforest, where the sidecar runs.
    pub fn command(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_promforest"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.output().unwrap_or_else(|err| panic!("promforest does not start: {err}"))
    }

    /// Runs a command with the sidecar's configuration and returns its output. Fails if the command fails.
    pub fn run(&self, args: &[&str]) -> String {
        let output = self.command(&[args, &["--config.file", "promforest.yml"]].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {args:?}: {errors}", self.version);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Every version in the registry, as it is listed.
    pub fn models(&self) -> Vec<Value> {
        let listed: Value =
            serde_json::from_str(&self.run(&["models", "list", "--output", "json"])).expect("JSON");
        listed.as_array().expect("a list").clone()
    }

    /// A version as it is stored.
    fn load(&self, model: &Value) -> Model {
        let folder = self.dir.path().join("promforest-data/models").join(version_name(model));
        let files = artifact::read_files(&folder).expect("a version is there as a whole");
        artifact::read_model(&files).expect("a valid model")
    }

    /// End of the history that a version was trained on. The version before it has scored the rows up to there; a later
    /// row may be scored by either, however much earlier than the training it was scraped.
    pub fn trained_to_ms(&self, model: &Value) -> i64 {
        self.load(model).card.training_range.expect("it was trained").to_ms
    }

    /// The rows of a backtest since the newest training row of a version.
    pub fn backtest(&self, model: &Value) -> BTreeMap<i64, ScoreRow> {
        let name = version_name(model);
        let FittedModel::Extended(detection) = self.load(model).fitted else {
            panic!("{name} is no extended forest")
        };
        let newest_ms = detection.newest_ms().expect("it has seen rows");
        let start = jiff::Timestamp::from_millisecond(newest_ms + 1).expect("a time").to_string();
        self.run(&["backtest", "--model", &name, "--start", &start, "--output", "scores.csv"]);
        let csv = fs::read_to_string(self.dir.path().join("scores.csv")).expect("the scores");
        let mut lines = csv.lines();
        let header: Vec<&str> = lines.next().expect("a head").split(',').collect();
        let column_index = |name: &str| {
            header
                .iter()
                .position(|column| *column == name)
                .unwrap_or_else(|| panic!("no {name}: {header:?}"))
        };
        let columns = ["timestamp", "score", "decision"].map(column_index);
        let row = |line: &str| {
            let cells: Vec<&str> = line.split(',').collect();
            let [time, score, decision] = columns.map(|column| cells[column]);
            let number = |cell: &str| cell.parse::<f64>().ok();
            Some((time.parse().ok()?, ScoreRow { score: number(score)?, decision: number(decision)? }))
        };
        lines.filter_map(row).collect()
    }

    /// The same of each row, as live wrote it for the one group of a detector; `labels` select the model.
    pub fn live_scores(&self, detector: &str, labels: &str) -> BTreeMap<i64, ScoreRow> {
        let detector_labels = format!(r#"{{detector="{detector}", {labels}}}"#);
        let [scores, decisions] =
            [format!("anomaly_score{detector_labels}"), format!("{detector}_anomaly{{{labels}}}")].map(
                |selector| {
                    self.api.stored(&selector).unwrap_or_else(|err| panic!("{}: {err}", self.version)).samples
                },
            );
        // A newer row may have been stored between two looks.
        let rows = scores.into_iter().zip(decisions).map(|((at_ms, score), (decision_ms, decision))| {
            assert_eq!(decision_ms, at_ms, "{}: rows differ", self.version);
            (at_ms, ScoreRow { score, decision })
        });
        rows.collect()
    }

    /// Fails unless every row of a detector's one group since a time has a score, and it is the one that a version
    /// gives which has seen all rows before it. Returns how many there are.
    pub fn check_backtests(&self, detector: &str, began_ms: i64) -> usize {
        let version = self.version;
        let live_rows = self.live_scores(detector, "");
        let last_ms = *live_rows.last_key_value().expect("scores").0;
        let mut models = self.models();
        models.retain(|model| {
            model["model"].as_str().and_then(|name| name.strip_prefix(detector)?.strip_prefix('.')).is_some()
        });
        let mut expected: BTreeMap<i64, Vec<ScoreRow>> = BTreeMap::new();
        for model in &models {
            for (timestamp_ms, row) in self.backtest(model) {
                expected.entry(timestamp_ms).or_default().push(row);
            }
        }
        let missing = expected.range(began_ms..=last_ms).map(|(time, _)| *time);
        let missing: Vec<i64> = missing.filter(|time| !live_rows.contains_key(time)).collect();
        assert!(
            missing.is_empty(),
            "{version}: rows without a score: {missing:?}\n{}",
            self.promforest_tail()
        );
        let mut compared = 0;
        for (timestamp_ms, scores) in live_rows.range(began_ms..) {
            let Some(rows) = expected.get(timestamp_ms) else {
                panic!("{version}: {timestamp_ms} is in no backtest")
            };
            assert!(
                rows.contains(scores),
                "{version}: {timestamp_ms} has {scores:?}, must be one of {rows:?}\n{}",
                self.promforest_tail()
            );
            compared += 1;
        }
        println!(
            "{version}: {compared} scores of {detector} are those of a backtest by one of {} versions",
            models.len()
        );
        compared
    }

    /// Starts the sidecar and waits until it listens.
    pub fn start_promforest(&mut self) {
        let args = [
            "--config.file=promforest.yml".into(),
            "--web.enable-lifecycle".into(),
            "--web.enable-admin-api".into(),
            format!("--web.listen-address=127.0.0.1:{}", self.promforest_port),
        ];
        let program = Path::new(env!("CARGO_BIN_EXE_promforest"));
        self.promforest = Some(Process::start("promforest", program, &args, self.dir.path()));
        self.wait("promforest is healthy", SHORT_TIMEOUT, |at| {
            let answer = http::get(&at.promforest, "/-/healthy").map_err(|err| err.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.body) }
        });
    }

    /// [`wait`], with every process that should run.
    pub fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut poll: impl FnMut(&StackApi) -> Result<T, String>,
    ) -> T {
        let what = format!("{}: {what}", self.version);
        let processes = [Some(&mut self.exporter), self.prometheus.as_mut(), self.promforest.as_mut()];
        let mut processes: Vec<&mut Process> = processes.into_iter().flatten().collect();
        wait(&what, limit, &mut processes, || poll(&self.api))
    }

    /// Runs `kill` while each of these servers holds seconds of scrapes that it has stored and not sent. promforest
    /// stands still for longer than Prometheus' deadline for a batch: one batch is on its way, and later scrapes wait.
    pub fn with_unsent_scrapes(&mut self, servers: &[&PrometheusApi], kill: impl FnOnce(&mut Self)) {
        const BATCH_DEADLINE_MS: i64 = 5_000;
        self.promforest.as_ref().expect("the program runs").signal("STOP");
        let unsent_from_ms = now_ms() + BATCH_DEADLINE_MS;
        self.wait("scrapes that are not sent", SHORT_TIMEOUT, |_| {
            for server in servers {
                let newest =
                    server.query(r#"timestamp(node_network_receive_bytes_total{device="lo"}) * 1000"#)?;
                let newest_ms = newest.first().and_then(|series| series.samples.first()).map_or(0.0, |s| s.1);
                let unsent_ms = newest_ms - unsent_from_ms as f64;
                if unsent_ms < 3_000.0 {
                    return Err(format!("{unsent_ms} ms"));
                }
            }
            Ok(())
        });
        kill(self);
        self.promforest.as_ref().expect("the program runs").signal("CONT");
    }

    /// Waits for the score of a scrape at or after `timestamp_ms`.
    pub fn wait_for_score_at(&mut self, timestamp_ms: i64) {
        self.wait("scores go on", SHORT_TIMEOUT, |at| {
            let newest_ms = at.scores()?.timestamps().last().copied().unwrap_or_default();
            if newest_ms >= timestamp_ms {
                Ok(())
            } else {
                Err(format!("the newest is {} ms short of it", timestamp_ms - newest_ms))
            }
        });
    }

    /// Fails unless every scrape since the first score has one decision and one score, at its very
    /// timestamp. Only where a pause of the scrapes leaves no two samples in the rate's range is there none.
    pub fn check_scores(&self, range_ms: i64) -> Series {
        let stored =
            |selector| self.api.stored(selector).unwrap_or_else(|err| panic!("{}: {err}", self.version));
        // A row that is stored between two queries is in the later answer.
        let scores = stored(r#"anomaly_score{detector="node_network", model=""}"#);
        let decisions = stored(r#"node_network_anomaly{model=""}"#);
        let scrapes = stored(r#"node_network_receive_bytes_total{device="lo"}"#).timestamps();
        let (first, last) = (scores.samples[0].0, scores.samples[scores.samples.len() - 1].0);
        let scored: Vec<i64> = (0..scrapes.len())
            .filter(|i| *i > 0 && scrapes[*i] - scrapes[*i - 1] < range_ms)
            .map(|i| scrapes[i])
            .filter(|timestamp_ms| (first..=last).contains(timestamp_ms))
            .collect();
        self.assert_same_times(&scores.timestamps(), &scored, "scores and scrapes");
        let decisions_there = decisions.samples.iter().take(scores.samples.len());
        for ((timestamp_ms, score), (at_ms, decision)) in scores.samples.iter().zip(decisions_there) {
            assert_eq!(timestamp_ms, at_ms, "{}: scores and decisions", self.version);
            assert_eq!(*score > 1.0, *decision < 0.0, "{}: score {score}, decision {decision}", self.version);
            let expected = (0.5 - decision) * 2.0;
            assert!((score - expected).abs() < 1e-12, "{}: {score}, not {expected}", self.version);
        }
        assert!(decisions.samples.len() >= scores.samples.len(), "{}: a decision is missing", self.version);
        scores
    }

    /// Fails with what is lacking and what is too many.
    pub fn assert_same_times(&self, ours: &[i64], theirs: &[i64], what: &str) {
        let missing: Vec<_> = theirs.iter().filter(|time| !ours.contains(time)).collect();
        let too_many: Vec<_> = ours.iter().filter(|time| !theirs.contains(time)).collect();
        assert!(
            ours == theirs,
            "{}: {what} differ: of {} are lacking {missing:?}, and too many are {too_many:?}\n{}",
            self.version,
            theirs.len(),
            self.promforest_tail(),
        );
    }

    /// One of promforest's own metrics.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.api.metric(name, labels).unwrap_or_else(|err| panic!("{}: {err}", self.version))
    }

    /// No score was given up, and Prometheus has given up no sample.
    pub fn check_nothing_lost(&self) {
        let failed = self.metric("promforest_remote_write_samples_failed_total", &[]);
        assert!(failed == 0.0, "{}: {failed} samples given up\n{}", self.version, self.promforest_tail());
        let page = http::get(&self.api.prometheus.0, "/metrics").expect("Prometheus answers").body;
        let failed = http::metric(&page, "prometheus_remote_storage_samples_failed_total", &[]);
        assert!(failed == Some(0.0), "{}: Prometheus gave up {failed:?} samples", self.version);
    }

    /// The rows of promforest by state, for a failure's message.
    pub fn rows_by_state(&self) -> String {
        let page = http::get(&self.api.promforest, "/metrics").expect("promforest answers").body;
        let rows = page.lines().filter(|line| line.starts_with("promforest_rows_total"));
        rows.collect::<Vec<_>>().join("\n")
    }

    /// The end of the sidecar's log.
    pub fn promforest_tail(&self) -> String {
        self.promforest.as_ref().map_or_else(String::new, Process::tail)
    }
}

/// A version as the command line names it.
fn version_name(model: &Value) -> String {
    format!("{}/{}", model["model"].as_str().expect("a name"), model["version"])
}
