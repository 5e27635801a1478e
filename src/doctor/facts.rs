//! The facts that the checks read.

use super::known::Known;
use super::prometheus_config::PrometheusConfig;
use super::rules::AlertRule;
use crate::prom::Labels;
use crate::prom::shard::Shard;

/// Time after the start of the sidecar in which nothing may have arrived, and nobody may have scraped it: Prometheus
/// sends and scrapes at intervals of a minute at most, as a rule.
pub const START_UP_MS: i64 = 120_000;

/// The facts of a set-up.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Time of the gathering by the clock of this machine.
    pub now_ms: i64,
    /// The sidecar's address.
    pub sidecar_url: String,
    /// The running sidecar.
    pub sidecar: Known<Sidecar>,
    /// The `remote_write` endpoints, in the order of the configuration.
    pub written: Vec<EndpointAnswer>,
    /// The sources of history, in the order of the configuration.
    pub read: Vec<EndpointAnswer>,
    /// The servers with an HTTP API behind these endpoints, each once.
    pub servers: Vec<Server>,
    /// Memory of this machine in bytes, if the sidecar runs on it.
    pub memory_bytes: Option<f64>,
}

/// The answer of an endpoint to a trial request.
#[derive(Clone, Debug)]
pub struct EndpointAnswer {
    /// The address, without secrets.
    pub url: String,
    /// The answer; `Err` without one.
    pub answer: Result<Answer, NoAnswer>,
}

/// A response.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// First line of the body.
    pub reason: String,
}

/// The reason why there is no answer.
#[derive(Clone, Debug)]
pub enum NoAnswer {
    /// The command line forbids the request.
    NotAsked,
    /// The request failed.
    Failed(String),
}

/// The running sidecar.
#[derive(Clone, Debug)]
pub struct Sidecar {
    /// Its version.
    pub version: String,
    /// The part of the targets that it takes; without it, all.
    pub shard: Option<Shard>,
    /// Timestamp of the newest score.
    pub newest_score_ms: Option<i64>,
    /// Lines of its readiness.
    pub readiness: Vec<String>,
    /// Number of groups.
    pub n_groups: usize,
    /// Its metrics.
    pub metrics: Vec<(Labels, f64)>,
    /// Distance of its clock ahead of this machine's.
    pub clock_ahead_ms: Option<i64>,
}

impl Sidecar {
    /// True if it started within [`START_UP_MS`].
    pub fn is_starting(&self, now_ms: i64) -> bool {
        self.started_ms().is_some_and(|started_ms| now_ms - started_ms < START_UP_MS)
    }

    /// Time of its start; `None` if it does not say.
    pub fn started_ms(&self) -> Option<i64> {
        let seconds = self.metric("process_start_time_seconds", ("", ""));
        (seconds > 0.0).then(|| (seconds * 1000.0) as i64 - self.clock_ahead_ms.unwrap_or(0))
    }

    /// The sum of a metric's series that have this label; an empty name selects all.
    pub fn metric(&self, metric: &str, (name, value): (&str, &str)) -> f64 {
        let selected = self.metrics.iter().filter(|(labels, _)| {
            labels.metric_name() == metric && (name.is_empty() || labels.get(name) == value)
        });
        selected.map(|(_, value)| value).sum()
    }
}

/// A server with Prometheus' HTTP API.
#[derive(Clone, Debug)]
pub struct Server {
    /// The address, without secrets.
    pub url: String,
    /// Its version.
    pub version: Known<String>,
    /// Distance of its clock ahead of this machine's.
    pub clock_ahead_ms: Option<i64>,
    /// Its configuration.
    pub config: Known<PrometheusConfig>,
    /// Its alert rules.
    pub rules: Known<Vec<AlertRule>>,
    /// Value of `job` of each scrape of a promforest.
    pub promforest_jobs: Known<Vec<String>>,
    /// True if the sample of the trial write was read back; `None` if none was written.
    pub read_back: Option<Known<bool>>,
    /// The series of each detector of the configuration.
    pub selected: Vec<Known<Selected>>,
}

impl Server {
    /// The reason why nothing of the server is known; `None` if it answers a request.
    pub fn silence(&self) -> Option<&str> {
        let reason = self.version.as_ref().err()?;
        let is_silent = self.config.is_err() && self.rules.is_err() && self.promforest_jobs.is_err();
        is_silent.then_some(reason)
    }
}

/// The series that a detector selects.
#[derive(Clone, Debug, Default)]
pub struct Selected {
    /// Those with a sample in the last five minutes.
    pub recent: Vec<Labels>,
    /// Those with a sample in the last day.
    pub last_day: Vec<Labels>,
    /// True if one had a sample a day ago.
    pub has_day_of_history: bool,
    /// Time of the oldest sample of the last day, to a quarter of an hour, if there is no older one.
    pub history_since_ms: Option<i64>,
    /// The metric names that the server has, if the detector selects nothing.
    pub metric_names: Vec<String>,
}
