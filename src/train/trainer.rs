//! The task that trains: one group after another, network first, then the processors.

use super::{Outcome, join, train};
use crate::config::Detector;
use crate::history::{self, Series, Source};
use crate::http::client::Url;
use crate::models::Model;
use crate::prom::labels::METRIC_NAME;
use crate::prom::matcher::Matcher;
use crate::prom::{Labels, Selector, duration};
use crate::window::Window;
use crate::yaml;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

/// How far back a gap in the scores is filled after a restart: Prometheus takes nothing that is
/// an hour behind its newest sample.
const BACKFILL_MS: i64 = 50 * 60_000;

/// How long a source that did not answer is left alone.
const REST: Duration = Duration::from_secs(60);

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
    sources: watch::Receiver<Arc<[Source]>>,
    mut report: impl FnMut(u32, Learned) -> F,
) {
    let mut resting = Vec::new();
    while let Some(job) = jobs.recv().await {
        let sources = sources.borrow().clone();
        let group = job.group;
        let learned = learn(job, &sources, &mut resting).await;
        report(group, learned).await;
    }
}

/// Sources that did not answer, until when they are left alone: a source that hangs would hold up
/// the trainings of all groups.
type Resting = Vec<(Url, Instant)>;

async fn learn(job: Job, sources: &[Source], resting: &mut Resting) -> Learned {
    let started = Instant::now();
    let now_ms = duration::now_ms();
    let detector = job.detector.clone();
    let history_ms = duration::millis(detector.training.history);
    let group: Vec<Matcher> =
        detector.by.iter().map(|name| Matcher::equal(name, job.labels.get(name))).collect();

    resting.retain(|(_, until)| started < *until);
    let mut past: Vec<Series> = Vec::new();
    for Source { config, client } in sources {
        let mut error =
            resting.iter().any(|(url, _)| *url == config.url).then(|| "the source rests".to_string());
        for selector in &detector.matchers {
            if error.is_some() {
                break;
            }
            let range = (now_ms - history_ms, now_ms);
            let read =
                history::read(client, config, selector, &group, range, |series| past.extend(series)).await;
            if let Err(failed) = read {
                let reason = yaml::chain(&failed);
                warn!(component = "history", url = %config.url, group = %job.labels, err = reason, "no history by remote read");
                if failed.is_passing() {
                    resting.push((config.url.clone(), Instant::now() + REST));
                    error = Some(reason);
                }
                break;
            }
        }
        // A model of days is not replaced by one of the window's hours because Prometheus restarts.
        if let Some(error) = error.filter(|_| !job.first) {
            return Learned::Failed(format!("no history: {error}"));
        }
    }
    for (labels, _) in &mut past {
        *labels = labels.split(&detector.by).1;
    }
    let fit = {
        let detector = detector.clone();
        move || {
            let window = join(&past, &job.window, history_ms);
            let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
            (train(&detector, &window, threads), past)
        }
    };
    let (outcome, past) = match tokio::task::spawn_blocking(fit).await {
        Ok(fitted) => fitted,
        Err(panic) => return Learned::Failed(format!("the training thread ended: {panic}")),
    };
    let model = match outcome {
        Ok(Outcome::Trained(model)) => model,
        Ok(Outcome::TooShort { have_ms }) => return Learned::TooShort { have_ms },
        Ok(Outcome::NoRows { n_features }) => {
            let reason = format!("no row of the history has settled values of all {n_features} features");
            return Learned::Failed(reason);
        }
        Err(error) => return Learned::Failed(yaml::chain(&error)),
    };
    let (mut recent, mut written_to_ms) = (Vec::new(), None);
    if job.first {
        let sources =
            sources.iter().filter(|source| resting.iter().all(|(url, _)| *url != source.config.url));
        let newest_ms = newest_score(sources, &detector, &group, now_ms).await;
        written_to_ms = newest_ms.map(|newest_ms| newest_ms.max(now_ms - BACKFILL_MS));
        recent = after(&past, written_to_ms.unwrap_or(now_ms) - detector.transform.reach_ms());
    }
    Learned::Model { model, recent, written_to_ms, seconds: started.elapsed().as_secs_f64() }
}

fn after(series: &[Series], since_ms: i64) -> Vec<Series> {
    let recent = series.iter().map(|(labels, samples)| {
        let start = samples.partition_point(|sample| sample.timestamp_ms <= since_ms);
        (labels.clone(), samples[start..].to_vec())
    });
    recent.filter(|(_, samples)| !samples.is_empty()).collect()
}

/// The newest decision of a group that Prometheus holds: after a restart, publishing goes on there.
/// What cannot be learned is as if there were none.
async fn newest_score(
    sources: impl Iterator<Item = &Source>,
    detector: &Detector,
    group: &[Matcher],
    now_ms: i64,
) -> Option<i64> {
    let selector = Selector::parse(&detector.decision_metric()).ok()?;
    let mut newest = None;
    for Source { config, client } in sources {
        let range = (now_ms - duration::millis(detector.training.history), now_ms);
        let read = history::read(client, config, &selector, group, range, |series| {
            let samples =
                series.iter().filter(|(labels, _)| labels.get(METRIC_NAME) == detector.decision_metric());
            newest = newest.max(samples.filter_map(|(_, samples)| Some(samples.last()?.timestamp_ms)).max());
        });
        if let Err(error) = read.await {
            debug!(component = "history", url = %config.url, err = yaml::chain(&error), "newest score unknown");
        }
    }
    newest
}
