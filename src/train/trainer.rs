//! The task that trains: one group after another, network first, then the processors.
//!
//! A group without a model takes the one that the registry holds for it, and learns its own only when
//! there is none. So a restart goes on with the model of before, whoever chose it.

use super::enter::{self, Entered};
use super::rows::{NoRows, Rows, join};
use super::{Purpose, Trained, past, train};
use crate::config::Detector;
use crate::forest;
use crate::history::{Series, Source};
use crate::http::client::Url;
use crate::models::registry::{self, Registry};
use crate::models::{Card, Deployed};
use crate::prom::matcher::Matcher;
use crate::prom::{Labels, duration};
use crate::report::training::Verdict;
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

/// How long a group without a model waits for the registry before it is trained without.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is none yet.
    First,
    /// `training.every` is over.
    Scheduled,
    /// A feature came to stay, or went for good.
    Schema,
}

impl Reason {
    /// For logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Scheduled => "scheduled",
            Self::Schema => "schema",
        }
    }
}

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
    /// Why.
    pub reason: Reason,
}

/// What came of it.
pub enum Learned {
    /// A model to serve.
    Model {
        /// The model.
        deployed: Deployed,
        /// Was it fitted, or did the registry have it?
        fitted: bool,
        /// For a first model: samples of the time before, features for labels.
        recent: Vec<Series>,
        /// For a first model: timestamp of the newest score that Prometheus holds.
        written_to_ms: Option<i64>,
        /// How long it took.
        seconds: f64,
    },
    /// A model that stays out of service.
    Held {
        /// Its registered name.
        name: String,
        /// Its version.
        version: u64,
        /// Where it comes from.
        card: Box<Card>,
        /// What speaks against it.
        reasons: Vec<String>,
    },
    /// Not enough history yet.
    TooShort {
        /// How much there is, in milliseconds.
        have_ms: i64,
    },
    /// It failed, for this reason.
    Failed(String),
}

/// What a configuration leads to outside of this process.
pub struct Outside {
    /// What is watched.
    pub detectors: Vec<Arc<Detector>>,
    /// Where history is read.
    pub sources: Vec<Source>,
    /// Where models are kept.
    pub registry: Registry,
    /// And how.
    pub registry_config: registry::Config,
}

/// Trains what is asked for until nobody can ask any more; `report` takes the results.
pub async fn run<F: Future<Output = ()>>(
    mut jobs: mpsc::Receiver<Job>,
    outside: watch::Receiver<Arc<Outside>>,
    mut report: impl FnMut(u32, Learned) -> F,
) {
    let mut resting = Vec::new();
    while let Some(job) = jobs.recv().await {
        let outside = outside.borrow().clone();
        let group = job.group;
        let learned = learn(job, &outside, &mut resting).await.unwrap_or_else(Learned::Failed);
        report(group, learned).await;
    }
}

/// Sources that did not answer, until when they are left alone: a source that hangs would hold up
/// the trainings of all groups.
type Resting = Vec<(Url, Instant)>;

async fn learn(job: Job, outside: &Outside, resting: &mut Resting) -> Result<Learned, String> {
    let started = Instant::now();
    let now_ms = duration::now_ms();
    resting.retain(|(_, until)| started < *until);
    let detector = job.detector.clone();
    let group = past::of_group(&detector, &job.labels);
    let config = &outside.registry_config;
    let model = config.model(&detector.name);
    let name = registry::group_model(&model, &job.labels);

    if job.reason == Reason::First
        && let Some(deployed) = kept(&job, outside, &model, &name).await
    {
        let reach_ms = deployed.model.schema.transform.reach_ms();
        let range = (now_ms - BACKFILL_MS - reach_ms, now_ms);
        let read = read_past(&outside.sources, &detector, &group, &job.labels, range, resting).await;
        let past = read.unwrap_or_else(|(past, _)| past);
        let written_to_ms = written_to(outside, resting, &detector, &group, now_ms).await;
        let recent = after(&past, written_to_ms.unwrap_or(now_ms) - reach_ms);
        let seconds = started.elapsed().as_secs_f64();
        return Ok(Learned::Model { deployed, fitted: false, recent, written_to_ms, seconds });
    }

    let range = (now_ms - duration::millis(detector.training.history), now_ms);
    let read = read_past(&outside.sources, &detector, &group, &job.labels, range, resting).await;
    let past = match read {
        Ok(past) => past,
        Err((past, _)) if job.reason == Reason::First => past,
        // A model of days is not replaced by one of the window's hours because Prometheus restarts.
        Err((_, error)) => return Err(format!("no history: {error}")),
    };
    let mut exclusions = Vec::new();
    for source in &outside.sources {
        let fired = past::firing(source, &detector.training.exclude_alerts, &job.labels, range).await;
        exclusions.extend(fired.map_err(|error| format!("alerts unknown: {}", yaml::chain(&error)))?);
    }
    let fit = {
        let (detector, labels) = (detector.clone(), job.labels.clone());
        let history_ms = duration::millis(detector.training.history);
        move || {
            let window = join(&past, &job.window, history_ms);
            let rows = Rows::read(&detector, &window, &exclusions);
            let purpose = Purpose { detector: Some(detector.name.clone()), group: Some(labels) };
            let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
            let sizes = &detector.training.sweep;
            let fit = |rows: Rows| {
                let trained = train(&detector.model, &rows, sizes, purpose, now_ms, threads, &|_, _| {})?;
                Ok::<_, forest::Error>((trained, rows))
            };
            (rows.map(fit), past)
        }
    };
    let (fitted, past) = tokio::task::spawn_blocking(fit)
        .await
        .map_err(|panic| format!("the training thread ended: {panic}"))?;
    let (trained, rows) = match fitted {
        Ok(fitted) => fitted.map_err(|error| yaml::chain(&error))?,
        Err(NoRows::TooShort { have_ms }) => return Ok(Learned::TooShort { have_ms }),
        Err(NoRows::NeverComplete { n_features }) => {
            return Err(format!("no row of the history has settled values of all {n_features} features"));
        }
    };

    let gate = (job.reason == Reason::Scheduled).then_some(&detector.training.gate);
    let entered = enter::enter(&outside.registry, &name, &config.alias, gate, &trained, &rows).await;
    let version = match entered {
        Ok(Entered { version, verdict: Verdict::Held(reasons), .. }) => {
            let card = Box::new(trained.model.card);
            return Ok(Learned::Held { name, version, card, reasons });
        }
        Ok(Entered { version, .. }) => Some(version),
        // What serves now goes on; a group that has nothing to go on with takes the model as it is.
        Err(error) if job.reason == Reason::Scheduled => return Err(yaml::chain(&error)),
        Err(error) => {
            warn!(component = "models", model = name, err = yaml::chain(&error), "model not registered");
            None
        }
    };
    let (mut recent, mut written_to_ms) = (Vec::new(), None);
    if job.reason == Reason::First {
        written_to_ms = written_to(outside, resting, &detector, &group, now_ms).await;
        recent = after(&past, written_to_ms.unwrap_or(now_ms) - detector.transform.reach_ms());
    }
    let Trained { model, .. } = trained;
    let deployed = Deployed { model: Arc::new(model), name, version };
    let seconds = started.elapsed().as_secs_f64();
    Ok(Learned::Model { deployed, fitted: true, recent, written_to_ms, seconds })
}

/// The model that the registry holds for a group, if the group has its features.
async fn kept(job: &Job, outside: &Outside, model: &str, name: &str) -> Option<Deployed> {
    let find = async {
        let registry = &outside.registry;
        let aliases = registry.aliases(model).await?;
        let Some((name, version)) = registry::of_group(&aliases, model, name, &outside.registry_config.alias)
        else {
            return Ok(None);
        };
        let model = Arc::new(registry.load(&name, version, job.detector.transform.semantics().unwrap_or_default()).await?);
        Ok::<_, registry::Error>(Some(Deployed { model, name, version: Some(version) }))
    };
    let found = match tokio::time::timeout(PATIENCE, find).await {
        Ok(found) => found.map_err(|error| yaml::chain(&error)),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    };
    let deployed = found
        .unwrap_or_else(|error| {
            warn!(component = "models", group = %job.labels, err = error, "the registry does not help");
            None
        })
        .filter(|deployed| deployed.model.suits(&job.detector, &job.labels))?;
    let features = &deployed.model.schema.features;
    match features.iter().find(|feature| job.window.find(feature).is_none()) {
        None => Some(deployed),
        Some(feature) => {
            let Deployed { name, version, .. } = &deployed;
            debug!(component = "models", group = %job.labels, model = name, version, feature = %feature, "the group does not have the features of its model yet");
            None
        }
    }
}

/// Samples of a group's past, features for labels. What was read before a source failed comes with the
/// error; a source that knows no remote read is left out.
async fn read_past(
    sources: &[Source],
    detector: &Detector,
    group: &[Matcher],
    labels: &Labels,
    range: (i64, i64),
    resting: &mut Resting,
) -> Result<Vec<Series>, (Vec<Series>, String)> {
    let mut past: Vec<Series> = Vec::new();
    let mut failed = None;
    for source in sources {
        let url = &source.config.url;
        if resting.iter().any(|(resting, _)| resting == url) {
            failed = Some("the source rests".to_string());
            continue;
        }
        if let Err(error) = past::samples(source, detector, group, range, |series| past.extend(series)).await
        {
            let reason = yaml::chain(&error);
            warn!(component = "history", url = %url, group = %labels, err = reason, "no history by remote read");
            if error.is_passing() {
                resting.push((url.clone(), Instant::now() + REST));
                failed = Some(reason);
            }
        }
    }
    for (labels, _) in &mut past {
        *labels = labels.split(&detector.by).1;
    }
    match failed {
        None => Ok(past),
        Some(error) => Err((past, error)),
    }
}

fn after(series: &[Series], since_ms: i64) -> Vec<Series> {
    let recent = series.iter().map(|(labels, samples)| {
        let start = samples.partition_point(|sample| sample.timestamp_ms <= since_ms);
        (labels.clone(), samples[start..].to_vec())
    });
    recent.filter(|(_, samples)| !samples.is_empty()).collect()
}

/// Up to where a group's scores were written before this process began: after a restart, publishing
/// goes on there. What cannot be learned is as if there were none.
async fn written_to(
    outside: &Outside,
    resting: &Resting,
    detector: &Detector,
    group: &[Matcher],
    now_ms: i64,
) -> Option<i64> {
    let range = (now_ms - duration::millis(detector.training.history), now_ms);
    let mut newest = None;
    for source in &outside.sources {
        if resting.iter().any(|(url, _)| *url == source.config.url) {
            continue;
        }
        match past::newest_score(source, detector, group, range).await {
            Ok(found) => newest = newest.max(found),
            Err(error) => {
                debug!(component = "history", url = %source.config.url, err = yaml::chain(&error), "newest score unknown");
            }
        }
    }
    newest.map(|newest_ms| newest_ms.max(now_ms - BACKFILL_MS))
}
