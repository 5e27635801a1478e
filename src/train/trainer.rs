//! The task that trains: one group after another, network first, then the processors.

use super::{Outcome, join, train};
use crate::config::{Config, Detector};
use crate::history::{self, Series};
use crate::http::client::Client;
use crate::models::Model;
use crate::prom::labels::METRIC_NAME;
use crate::prom::matcher::Matcher;
use crate::prom::{Labels, Selector, duration};
use crate::window::Window;
use crate::yaml;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

/// How far back a gap in the scores is filled after a restart: Prometheus takes nothing that is
/// an hour behind its newest sample.
const BACKFILL_MS: i64 = 50 * 60_000;

/// A training that is asked for.
pub struct Job {
    /// The group's number.
    pub group: u32,
    /// Its detector.
    pub detector: Arc<Detector>,
    /// Its labels.
    pub labels: Labels,
    /// What it holds now.
    pub window: Window,
    /// Is it to be its first model?
    pub first: bool,
}

/// What came of it.
pub enum Learned {
    /// A model.
    Model {
        /// The model.
        model: Box<Model>,
        /// For a first model: samples of the time before, features for labels.
        recent: Vec<Series>,
        /// For a first model: timestamp of the newest score that Prometheus holds.
        written_to_ms: Option<i64>,
        /// How long it took.
        seconds: f64,
    },
    /// Not enough history yet.
    TooShort {
        /// How much there is, in milliseconds.
        have_ms: i64,
    },
    /// It failed, for this reason.
    Failed(String),
}

/// Trains what is asked for until nobody can ask any more; `report` takes the results.
pub async fn run<F: Future<Output = ()>>(
    mut jobs: mpsc::Receiver<Job>,
    config: watch::Receiver<Arc<Config>>,
    client: Client,
    mut report: impl FnMut(u32, Learned) -> F,
) {
    while let Some(job) = jobs.recv().await {
        let config = config.borrow().clone();
        let group = job.group;
        let learned = learn(job, &config, &client).await;
        report(group, learned).await;
    }
}

async fn learn(job: Job, config: &Config, client: &Client) -> Learned {
    let started = Instant::now();
    let now_ms = duration::millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    let detector = job.detector.clone();
    let history_ms = duration::millis(detector.training.history);
    let group: Vec<Matcher> =
        detector.by.iter().map(|name| Matcher::equal(name, job.labels.get(name))).collect();

    let mut past: Vec<Series> = Vec::new();
    for source in &config.remote_read {
        for selector in &detector.matchers {
            let range = (now_ms - history_ms, now_ms);
            let read =
                history::read(client, source, selector, &group, range, |series| past.extend(series)).await;
            if let Err(error) = read {
                warn!(component = "history", url = %source.url, group = %job.labels, err = yaml::chain(&error), "no history by remote read");
                break;
            }
        }
    }
    for (labels, _) in &mut past {
        *labels = labels.split(&detector.by).1;
    }
    let written_to_ms =
        if job.first { newest_score(config, client, &detector, &group, now_ms).await } else { None };
    let since_ms = written_to_ms.unwrap_or(now_ms).max(now_ms - BACKFILL_MS) - detector.transform.reach_ms();
    let recent = if job.first { after(&past, since_ms) } else { Vec::new() };

    let fit = move || {
        let window = join(past, &job.window, history_ms);
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        train(&detector, &window, threads)
    };
    match tokio::task::spawn_blocking(fit).await {
        Ok(Ok(Outcome::Trained(model))) => {
            Learned::Model { model, recent, written_to_ms, seconds: started.elapsed().as_secs_f64() }
        }
        Ok(Ok(Outcome::TooShort { have_ms })) => Learned::TooShort { have_ms },
        Ok(Err(error)) => Learned::Failed(yaml::chain(&error)),
        Err(panic) => Learned::Failed(format!("the training thread ended: {panic}")),
    }
}

fn after(series: &[Series], since_ms: i64) -> Vec<Series> {
    let recent = series.iter().map(|(labels, samples)| {
        let start = samples.partition_point(|sample| sample.timestamp_ms <= since_ms);
        (labels.clone(), samples[start..].to_vec())
    });
    recent.filter(|(_, samples)| !samples.is_empty()).collect()
}

/// The newest decision of a group that Prometheus holds: after a restart, publishing goes on there.
async fn newest_score(
    config: &Config,
    client: &Client,
    detector: &Detector,
    group: &[Matcher],
    now_ms: i64,
) -> Option<i64> {
    let selector = Selector::parse(&detector.decision_metric()).ok()?;
    let mut newest = None;
    for source in &config.remote_read {
        let range = (now_ms - BACKFILL_MS, now_ms);
        let read = history::read(client, source, &selector, group, range, |series| {
            let samples =
                series.iter().filter(|(labels, _)| labels.get(METRIC_NAME) == detector.decision_metric());
            newest = newest.max(samples.filter_map(|(_, samples)| Some(samples.last()?.timestamp_ms)).max());
        });
        if let Err(error) = read.await {
            debug!(component = "history", url = %source.url, err = yaml::chain(&error), "newest score unknown");
        }
    }
    newest
}
