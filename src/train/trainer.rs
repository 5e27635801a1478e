//! The task that trains: one group after another, network first, then the processors.
//!
//! A group without a model takes the one that the registry holds for it, and learns its own only when
//! there is none. So a restart goes on with the model of before, whoever chose it.

use super::pool::Pool;
use super::register;
use super::training_set::{TrainingSet, TrainingSetError, join};
use super::{ModelScope, Trained, catch_up, history, train};
use crate::detect::OnlineDetector;
use crate::detector::Detector;
use crate::forest;
use crate::http::Url;
use crate::models::registry::{self, Registry};
use crate::models::{DeployedModel, Model, ModelCard};
use crate::prom::Labels;
use crate::prom::matcher::Matcher;
use crate::remote_read::{ReadClient, SeriesSamples};
use crate::report::training::PromotionDecision;
use crate::snapshot::ModelCheckpoint;
use crate::time;
use crate::window::Window;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

/// How long a source or a registry that did not answer is left alone.
const COOLDOWN: Duration = Duration::from_secs(60);

/// How long a group that goes on from a snapshot waits for what came since: without it nothing is as it was.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a group without a model waits for the registry before it is trained without.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainingReason {
    /// There is none yet.
    First,
    /// `training.every` is over.
    Scheduled,
    /// A feature came to stay, or went for good.
    Schema,
}

impl TrainingReason {
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
pub struct TrainingJob {
    /// The group's number.
    pub group: u32,
    /// Its detector.
    pub detector: Arc<Detector>,
    /// Its labels.
    pub labels: Labels,
    /// What it holds now.
    pub window: Window,
    /// When its first sample came.
    pub first_sample_at: Instant,
    /// How far its model was before this process.
    pub checkpoint: Option<ModelCheckpoint>,
    /// Why.
    pub reason: TrainingReason,
    /// Length of the history that the model in service has learned from, in milliseconds.
    pub trained_history_ms: Option<i64>,
    /// Later rows are for the model to judge: remote read may have them before remote write brings them, and one
    /// that had learned from them would never go back.
    pub scored_to_ms: i64,
    /// Other groups that it can learn from while it has too little history, if nothing serves yet.
    pub pool: Option<Pool>,
}

/// What a first model has to know of the time before this process.
#[derive(Default)]
pub struct WarmStart {
    /// Samples, features for labels.
    pub recent: Vec<SeriesSamples>,
    /// How far scores are written.
    pub watermark: WriteWatermark,
    /// What the model has become by the rows since its training, as far as the past knows them, or by a snapshot.
    pub detection: Option<Box<OnlineDetector>>,
}

/// Timestamps of the newest scores that are held elsewhere, or later ones: what is older than the window is not
/// written any more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WriteWatermark {
    /// By any source.
    pub to_ms: Option<i64>,
    /// By each target, as far as its own remote read is among the sources.
    pub by_endpoint: Vec<Option<i64>>,
}

impl WriteWatermark {
    /// Every target that is read has the scores up to here.
    pub fn min_ms(&self) -> Option<i64> {
        self.by_endpoint.iter().chain([&self.to_ms]).flatten().min().copied()
    }
}

/// What came of it.
pub enum TrainingOutcome {
    /// A model to serve.
    Model {
        /// The model.
        deployed: DeployedModel,
        /// Was it fitted, or did the registry have it?
        is_new: bool,
        /// What was before this process.
        warm_start: WarmStart,
        /// How long it took.
        seconds: f64,
    },
    /// A model that stays out of service.
    Gated {
        /// Its registered name.
        name: String,
        /// Its version.
        version: u64,
        /// Where it comes from.
        card: Box<ModelCard>,
        /// What speaks against it.
        reasons: Vec<String>,
    },
    /// The registry has a model, and not all of its features have come yet.
    WaitingForFeatures,
    /// Not enough history yet.
    TooShort {
        /// How much there is, in milliseconds.
        have_ms: i64,
    },
    /// Not enough history yet, but that of other groups has made a model to serve until there is.
    Pooled {
        /// How much there is, in milliseconds.
        have_ms: i64,
        /// The model.
        deployed: DeployedModel,
        /// What was before this process.
        warm_start: WarmStart,
        /// How long it took.
        seconds: f64,
    },
    /// Most of the history is gone that the model in service has learned from: it stays.
    HistoryLost {
        /// How much there is, in milliseconds.
        have_ms: i64,
    },
    /// It failed, for this reason.
    Failed(String),
}

/// What a configuration leads to outside of this process.
pub struct Backends {
    /// What is watched.
    pub detectors: Vec<Arc<Detector>>,
    /// Where history is read.
    pub read_clients: Vec<ReadClient>,
    /// Where scores are written.
    pub endpoints: Vec<Url>,
    /// Where models are kept.
    pub registry: Registry,
    /// And how.
    pub registry_config: registry::Config,
}

/// Trains what is asked for until nobody can ask any more; `report` takes the results.
pub async fn run<F: Future<Output = ()>>(
    mut jobs: mpsc::Receiver<TrainingJob>,
    backends: watch::Receiver<Arc<Backends>>,
    mut on_outcome: impl FnMut(u32, TrainingOutcome) -> F,
) {
    let mut circuit_breaker = CircuitBreaker::default();
    while let Some(job) = jobs.recv().await {
        let backends = backends.borrow().clone();
        let group = job.group;
        let outcome =
            run_job(job, &backends, &mut circuit_breaker).await.unwrap_or_else(TrainingOutcome::Failed);
        on_outcome(group, outcome).await;
    }
}

/// What did not answer, until when it is left alone: what hangs would hold up the trainings of all groups.
#[derive(Default)]
pub struct CircuitBreaker {
    open_clients: Vec<(Url, Instant)>,
    registry: Option<Instant>,
}

impl CircuitBreaker {
    /// Forgets what has rested.
    fn reset_expired(&mut self, now: Instant) {
        self.open_clients.retain(|(_, until)| now < *until);
        self.registry = self.registry.filter(|until| now < *until);
    }

    fn is_open(&self, url: &Url) -> bool {
        self.open_clients.iter().any(|(open_url, _)| open_url == url)
    }
}

/// What the registry has for a group without a model.
enum RegistryLookup {
    Model(DeployedModel),
    /// A model of which the group lacks features.
    MissingFeatures,
    NotFound,
}

async fn run_job(
    job: TrainingJob,
    backends: &Backends,
    circuit_breaker: &mut CircuitBreaker,
) -> Result<TrainingOutcome, String> {
    let started = Instant::now();
    let now_ms = time::now_ms();
    circuit_breaker.reset_expired(started);
    let detector = job.detector.clone();
    let group = history::group_matchers(&detector, &job.labels);
    let config = &backends.registry_config;
    let model = config.model_name(&detector.name);
    let name = registry::group_model_name(&model, &job.labels);

    let lookup = match job.reason {
        TrainingReason::First => find_registered(&job, backends, &model, &name, circuit_breaker).await,
        TrainingReason::Scheduled | TrainingReason::Schema => RegistryLookup::NotFound,
    };
    match lookup {
        RegistryLookup::Model(deployed) => {
            let Some(warm_start) =
                build_warm_start(&job, backends, &group, &deployed, now_ms, circuit_breaker).await
            else {
                return Ok(TrainingOutcome::WaitingForFeatures);
            };
            let seconds = started.elapsed().as_secs_f64();
            return Ok(TrainingOutcome::Model { deployed, is_new: false, warm_start, seconds });
        }
        // One scrape may come in several requests.
        RegistryLookup::MissingFeatures if started.duration_since(job.first_sample_at) < detector.grace => {
            return Ok(TrainingOutcome::WaitingForFeatures);
        }
        RegistryLookup::MissingFeatures | RegistryLookup::NotFound => {}
    }

    let range = (now_ms - time::millis(detector.training.history), now_ms);
    let read =
        read_history(&backends.read_clients, &detector, &group, &job.labels, range, circuit_breaker).await;
    let history = match read {
        Ok(history) => history,
        Err((history, _)) if job.reason == TrainingReason::First => history,
        // A model of days is not replaced by one of the window's hours because Prometheus restarts.
        Err((_, error)) => return Err(format!("no history: {error}")),
    };
    let mut exclusions = Vec::new();
    for read_client in &backends.read_clients {
        match history::read_firing_alerts(read_client, &detector.training.exclude_alerts, &job.labels, range)
            .await
        {
            Ok(firing) => exclusions.extend(firing),
            // A first model with an incident in it is better than none.
            Err(_) if job.reason == TrainingReason::First => {}
            Err(error) => return Err(format!("alerts unknown: {}", crate::error::chain(&error))),
        }
        match history::read_incidents(read_client, &detector, &job.labels, range).await {
            Ok(own_incidents) => exclusions.extend(own_incidents),
            Err(_) if job.reason == TrainingReason::First => {}
            Err(error) => return Err(format!("incidents unknown: {}", crate::error::chain(&error))),
        }
    }
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let fit = {
        let (detector, labels, name, alias) =
            (detector.clone(), job.labels.clone(), name.clone(), config.alias.clone());
        // What a group without a usable model learns serves whatever it is worth.
        let is_gated = job.reason == TrainingReason::Scheduled;
        let history_ms = time::millis(detector.training.history);
        // A Prometheus that has lost its storage knows hours where there were days.
        let trained_history_ms = job.trained_history_ms.filter(|_| job.reason == TrainingReason::Scheduled);
        move || {
            let window = join(&history, &job.window, history_ms);
            let rows = TrainingSet::from_window(&detector, &window, &exclusions, job.scored_to_ms);
            let scope = ModelScope { detector: Some(detector.name.clone()), group: Some(labels) };
            let sizes = &detector.training.sweep;
            let fit_and_prepare = |rows: TrainingSet| {
                let trained = train(&detector.model, &rows, sizes, scope, now_ms, threads, &|_, _| {})?;
                let gate = is_gated.then_some(&detector.training.gate);
                let draft = register::prepare(&name, &alias, gate, &trained, &rows);
                Ok::<_, forest::Error>((trained, draft))
            };
            let is_history_lost = |rows: &TrainingSet| {
                trained_history_ms.is_some_and(|trained_ms| 2 * rows.observed_ms < trained_ms)
            };
            if let Some(have_ms) =
                rows.as_ref().ok().filter(|rows| is_history_lost(rows)).map(|rows| rows.observed_ms)
            {
                return (Err(NotTrained::HistoryLost { have_ms }), history);
            }
            // A detection needs some minutes more than the rates in it.
            let have_ms = rows.as_ref().map_or(0, |rows| rows.observed_ms);
            let fitted = rows.and_then(|rows| match fit_and_prepare(rows) {
                Err(forest::Error::Empty { .. }) => Err(TrainingSetError::TooShort { have_ms }),
                fitted => Ok(fitted),
            });
            (fitted.map_err(NotTrained::NoRows), history)
        }
    };
    let (fitted, history) = tokio::task::spawn_blocking(fit)
        .await
        .map_err(|panic| format!("the training thread ended: {panic}"))?;
    let (trained, draft) = match fitted {
        Ok(fitted) => fitted.map_err(|error| crate::error::chain(&error))?,
        Err(NotTrained::HistoryLost { have_ms }) => return Ok(TrainingOutcome::HistoryLost { have_ms }),
        Err(NotTrained::NoRows(TrainingSetError::TooShort { have_ms })) => {
            let Some(pool) = job.pool else { return Ok(TrainingOutcome::TooShort { have_ms }) };
            let train_pool = {
                let detector = detector.clone();
                move || pool.train(&detector, now_ms, threads)
            };
            let pooled = tokio::task::spawn_blocking(train_pool)
                .await
                .map_err(|panic| format!("the training thread ended: {panic}"))?
                .map_err(|error| crate::error::chain(&error))?;
            let Some(pooled) = pooled else { return Ok(TrainingOutcome::TooShort { have_ms }) };
            let warm_start =
                warm_start_of_first(backends, circuit_breaker, &detector, &job.labels, &history, now_ms)
                    .await;
            let deployed = DeployedModel { model: Arc::new(pooled), name: model, version: None };
            let seconds = started.elapsed().as_secs_f64();
            return Ok(TrainingOutcome::Pooled { have_ms, deployed, warm_start, seconds });
        }
        Err(NotTrained::NoRows(TrainingSetError::NeverComplete { n_features })) => {
            return Err(format!("no row of the history has settled values of all {n_features} features"));
        }
    };

    let registered = match circuit_breaker.registry {
        Some(_) => Err("the registry is in cooldown".to_string()),
        None => register::register(&backends.registry, &name, &trained, &draft)
            .await
            .map_err(|error| crate::error::chain(&error)),
    };
    let version = match (registered, draft.promotion) {
        (Ok(version), PromotionDecision::Gated(reasons)) => {
            let card = Box::new(trained.model.card);
            return Ok(TrainingOutcome::Gated { name, version, card, reasons });
        }
        (Ok(version), _) => Some(version),
        // What serves now goes on; a group that has nothing to go on with takes the model as it is.
        (Err(error), _) if job.reason == TrainingReason::Scheduled => return Err(error),
        (Err(error), _) => {
            warn!(component = "models", model = name, err = error, "model not registered");
            None
        }
    };
    let warm_start = match job.reason {
        TrainingReason::First => {
            warm_start_of_first(backends, circuit_breaker, &detector, &job.labels, &history, now_ms).await
        }
        TrainingReason::Scheduled | TrainingReason::Schema => WarmStart::default(),
    };
    let Trained { model, .. } = trained;
    let deployed = DeployedModel { model: Arc::new(model), name, version };
    let seconds = started.elapsed().as_secs_f64();
    Ok(TrainingOutcome::Model { deployed, is_new: true, warm_start, seconds })
}

/// What a model that has not served yet has to know.
async fn warm_start_of_first(
    backends: &Backends,
    circuit_breaker: &CircuitBreaker,
    detector: &Detector,
    labels: &Labels,
    history: &[SeriesSamples],
    now_ms: i64,
) -> WarmStart {
    let earliest_ms = first_scorable_ms(detector, detector.transform.lookback_ms(), now_ms);
    let watermark = read_watermark(backends, circuit_breaker, detector, labels, earliest_ms, now_ms).await;
    let recent = samples_after(history, window_start_ms(detector, now_ms));
    WarmStart { recent, watermark: watermark.unwrap_or_default(), detection: None }
}

/// The model after the rows of a group since its training, up to `to_ms`, as far as remote read knows them:
/// one that is chosen goes on as if it had served all the while. `None` for a model that judges every row alone.
pub async fn catch_up_detection(
    backends: &Backends,
    circuit_breaker: &mut CircuitBreaker,
    detector: &Detector,
    labels: &Labels,
    model: &Model,
    to_ms: i64,
) -> Option<Box<OnlineDetector>> {
    catch_up::newest_ms(model)?;
    let since_ms = unscored_since_ms(model, detector, to_ms);
    let range = (since_ms - model.schema.transform.lookback_ms(), to_ms);
    circuit_breaker.reset_expired(Instant::now());
    let group = history::group_matchers(detector, labels);
    let read = read_history(&backends.read_clients, detector, &group, labels, range, circuit_breaker).await;
    let past = read.unwrap_or_else(|(past, _)| past);
    Some(catch_up::advance(catch_up::detection_after_training(model)?, model, &past, to_ms))
}

/// From when on a model has to see rows to be up to date at `to_ms`; history counts for no longer than training's.
fn unscored_since_ms(model: &Model, detector: &Detector, to_ms: i64) -> i64 {
    let longest_ms = to_ms.saturating_sub(time::millis(detector.training.history));
    catch_up::newest_ms(model).map_or(to_ms, |newest_ms| newest_ms.max(longest_ms))
}

/// Samples after this time are in the window.
fn window_start_ms(detector: &Detector, now_ms: i64) -> i64 {
    now_ms - time::millis(detector.window)
}

/// Rows after this time are in the window with all that their rates reach back to.
fn first_scorable_ms(detector: &Detector, reach_ms: i64, now_ms: i64) -> i64 {
    window_start_ms(detector, now_ms) + reach_ms
}

/// Why nothing was fitted.
enum NotTrained {
    NoRows(TrainingSetError),
    HistoryLost { have_ms: i64 },
}

/// What a model that served before this process has to know to go on: the samples that came since, how far its
/// scores are written, and what it had become, by a snapshot or by going over the rows since its training. None
/// while that is worth waiting for.
async fn build_warm_start(
    job: &TrainingJob,
    backends: &Backends,
    group: &[Matcher],
    deployed: &DeployedModel,
    now_ms: i64,
    circuit_breaker: &mut CircuitBreaker,
) -> Option<WarmStart> {
    let may_wait = job.checkpoint.is_some() && job.first_sample_at.elapsed() < HISTORY_TIMEOUT;
    let (detector, model) = (&job.detector, &deployed.model);
    let reach_ms = model.schema.transform.lookback_ms();
    let earliest_ms = first_scorable_ms(detector, reach_ms, now_ms);
    let watermark =
        match read_watermark(backends, circuit_breaker, detector, &job.labels, earliest_ms, now_ms).await {
            Err(()) if may_wait => return None,
            known => known.unwrap_or_default(),
        };
    let resumed_detection = job
        .checkpoint
        .as_ref()
        .and_then(|checkpoint| Some((checkpoint.processed_to_ms, checkpoint.resume(deployed)?)));
    // What is not written yet is for the group to score; what is older than its window it cannot.
    let (done_ms, replay_to_ms) = match &resumed_detection {
        Some((passed_ms, _)) => (*passed_ms, earliest_ms),
        None => {
            let replay_to_ms = watermark.min_ms().unwrap_or(now_ms);
            (catch_up::newest_ms(model).unwrap_or(now_ms).min(replay_to_ms), replay_to_ms)
        }
    };
    let start_ms = window_start_ms(detector, now_ms);
    let since_ms = done_ms.max(now_ms - time::millis(detector.training.history)) - reach_ms;
    // The window of a snapshot that the model goes on from is whole; any other is filled again.
    let range = (if resumed_detection.is_some() { since_ms } else { since_ms.min(start_ms) }, now_ms);
    let read =
        read_history(&backends.read_clients, detector, group, &job.labels, range, circuit_breaker).await;
    let history = match read {
        Err(_) if may_wait => return None,
        read => read.unwrap_or_else(|(past, _)| past),
    };
    let start = match resumed_detection {
        Some((_, detection)) => detection,
        None => catch_up::detection_after_training(model),
    };
    let detection = start.map(|detection| catch_up::advance(detection, model, &history, replay_to_ms));
    let recent = samples_after(&history, start_ms);
    Some(WarmStart { recent, watermark, detection })
}

/// The model that the registry holds for a group, if the group has its features.
async fn find_registered(
    job: &TrainingJob,
    backends: &Backends,
    model: &str,
    name: &str,
    circuit_breaker: &mut CircuitBreaker,
) -> RegistryLookup {
    if circuit_breaker.registry.is_some() {
        return RegistryLookup::NotFound;
    }
    let find = async {
        let registry = &backends.registry;
        let aliases = registry.aliases_of([model, name]).await?;
        let Some((name, version)) =
            registry::version_for_group(&aliases, model, name, &backends.registry_config.alias)
        else {
            return Ok(None);
        };
        let model = Arc::new(
            registry
                .load(&name, version, job.detector.transform.rate_semantics().unwrap_or_default())
                .await?,
        );
        Ok::<_, registry::Error>(Some(DeployedModel { model, name, version: Some(version) }))
    };
    let lookup = match tokio::time::timeout(REGISTRY_TIMEOUT, find).await {
        Ok(found) => found.map_err(|error| crate::error::chain(&error)),
        Err(_) => {
            circuit_breaker.registry = Some(Instant::now() + COOLDOWN);
            Err(format!("no answer within {REGISTRY_TIMEOUT:?}"))
        }
    };
    let deployed = lookup.unwrap_or_else(|error| {
        warn!(component = "models", group = %job.labels, err = error, "no model from the registry");
        None
    });
    let Some(deployed) =
        deployed.filter(|deployed| deployed.model.is_compatible(job.detector.window, &job.labels))
    else {
        return RegistryLookup::NotFound;
    };
    let features = &deployed.model.schema.features;
    match features.iter().find(|feature| job.window.find_column(feature).is_none()) {
        None => RegistryLookup::Model(deployed),
        Some(feature) => {
            let DeployedModel { name, version, .. } = &deployed;
            debug!(component = "models", group = %job.labels, model = name, version, feature = %feature, "the group does not have the features of its model yet");
            RegistryLookup::MissingFeatures
        }
    }
}

/// Samples of a group's past, features for labels. What was read before a source failed comes with the
/// error; a source that knows no remote read is left out.
async fn read_history(
    sources: &[ReadClient],
    detector: &Detector,
    group: &[Matcher],
    labels: &Labels,
    range: (i64, i64),
    circuit_breaker: &mut CircuitBreaker,
) -> Result<Vec<SeriesSamples>, (Vec<SeriesSamples>, String)> {
    let mut history: Vec<SeriesSamples> = Vec::new();
    let mut failed = None;
    for read_client in sources {
        let url = &read_client.config.url;
        if circuit_breaker.is_open(url) {
            failed = Some("the remote-read endpoint is in cooldown".to_string());
            continue;
        }
        if let Err(error) =
            history::read_samples(read_client, detector, group, range, |series| history.extend(series)).await
        {
            let reason = crate::error::chain(&error);
            warn!(component = "remote_read", url = %url, group = %labels, err = reason, "no history by remote read");
            if error.is_recoverable() {
                circuit_breaker.open_clients.push((url.clone(), Instant::now() + COOLDOWN));
                failed = Some(reason);
            }
        }
    }
    for (labels, _) in &mut history {
        *labels = labels.split(&detector.by).1;
    }
    match failed {
        None => Ok(history),
        Some(error) => Err((history, error)),
    }
}

fn samples_after(series: &[SeriesSamples], since_ms: i64) -> Vec<SeriesSamples> {
    let recent = series.iter().map(|(labels, samples)| {
        let start = samples.partition_point(|sample| sample.timestamp_ms <= since_ms);
        (labels.clone(), samples[start..].to_vec())
    });
    recent.filter(|(_, samples)| !samples.is_empty()).collect()
}

/// Up to where a group's scores were written before this process began: after a restart, publishing
/// goes on there, or at `earliest_ms` if that is later. An error when a source that may know does not answer, and no
/// other has any.
async fn read_watermark(
    backends: &Backends,
    circuit_breaker: &CircuitBreaker,
    detector: &Detector,
    labels: &Labels,
    earliest_ms: i64,
    now_ms: i64,
) -> Result<WriteWatermark, ()> {
    let range = (now_ms - time::millis(detector.training.history), now_ms);
    let mut watermark = WriteWatermark { to_ms: None, by_endpoint: vec![None; backends.endpoints.len()] };
    let mut is_known = true;
    for read_client in &backends.read_clients {
        let url = &read_client.config.url;
        if circuit_breaker.is_open(url) {
            is_known = false;
            continue;
        }
        match history::read_newest_score(read_client, detector, labels, range).await {
            Ok(newest_ms) => {
                let to_ms = newest_ms.map(|newest_ms| newest_ms.max(earliest_ms));
                watermark.to_ms = watermark.to_ms.max(to_ms);
                let endpoints = backends.endpoints.iter().zip(&mut watermark.by_endpoint);
                endpoints
                    .filter(|(target, _)| target.is_sibling(url))
                    .for_each(|(_, written_to_ms)| *written_to_ms = to_ms);
            }
            Err(error) => {
                debug!(component = "remote_read", url = %url, err = crate::error::chain(&error), "newest score unknown");
                is_known &= !error.is_recoverable();
            }
        }
    }
    if is_known || watermark.to_ms.is_some() { Ok(watermark) } else { Err(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::features::Schema;
    use crate::models::registry::directory::Directory;
    use crate::prom::{METRIC_NAME, Sample};
    use crate::window::grid::Grid;
    use std::path::Path;
    use tempfile::TempDir;

    const STEP_MS: i64 = 15_000;

    fn feature(device: &str) -> Labels {
        Labels::new([(METRIC_NAME, "rx"), ("device", device)]).expect("valid")
    }

    /// A window with an hour of these counters.
    fn window(devices: &[&str]) -> Window {
        window_of(devices, 240)
    }

    /// A window with so many steps of these counters.
    fn window_of(devices: &[&str], steps: i64) -> Window {
        let mut window = Window::new(2 * 3_600_000);
        let now_ms = time::now_ms();
        for device in devices {
            let column = window.get_or_add_column(&feature(device)).expect("few");
            for i in 0..=steps {
                let timestamp_ms = now_ms - (steps - i) * STEP_MS;
                window.push(column, Sample { timestamp_ms, value: (i * i % 97 + i * 1500) as f64 });
            }
        }
        window
    }

    fn test_job(backends: &Backends, devices: &[&str]) -> TrainingJob {
        TrainingJob {
            group: 0,
            detector: backends.detectors[0].clone(),
            labels: Labels::new([("job", "node")]).expect("valid"),
            window: window(devices),
            first_sample_at: Instant::now(),
            checkpoint: None,
            trained_history_ms: None,
            scored_to_ms: i64::MAX,
            reason: TrainingReason::First,
            pool: None,
        }
    }

    fn test_backends(registry: Registry) -> Backends {
        let text = "detectors: [{name: net, match: [rx], by: [job], training: {min_history: 10m}}]";
        let config = Config::parse(text).expect("a valid configuration");
        let (detectors, registry_config) = (config.detectors, config.registry);
        Backends { detectors, read_clients: Vec::new(), endpoints: Vec::new(), registry, registry_config }
    }

    #[tokio::test]
    async fn the_model_of_the_registry_waits_for_its_features() {
        let folder = TempDir::new().expect("a temporary folder");
        let backends = test_backends(Registry::Directory(Directory::new(folder.path().into(), 30)));
        let run =
            async |job| run_job(job, &backends, &mut CircuitBreaker::default()).await.expect("it works");
        let first = run(test_job(&backends, &["eth0", "lo"])).await;
        assert!(matches!(first, TrainingOutcome::Model { is_new: true, .. }));
        assert!(matches!(run(test_job(&backends, &["eth0"])).await, TrainingOutcome::WaitingForFeatures));
        let again = run(test_job(&backends, &["eth0", "lo"])).await;
        assert!(matches!(again, TrainingOutcome::Model { is_new: false, .. }));
        // A feature that does not come is gone.
        let waited = TrainingJob {
            first_sample_at: Instant::now() - backends.detectors[0].grace,
            ..test_job(&backends, &["eth0"])
        };
        let TrainingOutcome::Model { deployed, is_new: true, .. } = run(waited).await else {
            panic!("a new model")
        };
        assert_eq!((deployed.model.schema.features.len(), deployed.version), (1, Some(2)));
    }

    /// Two minutes are too short; the past of other groups makes a model that the registry does not get.
    #[tokio::test]
    async fn other_groups_make_a_model_until_there_is_history() {
        let folder = TempDir::new().expect("a temporary folder");
        let backends = test_backends(Registry::Directory(Directory::new(folder.path().into(), 30)));
        let run =
            async |job| run_job(job, &backends, &mut CircuitBreaker::default()).await.expect("it works");
        let transform = backends.detectors[0].transform;
        let schema = Schema { features: vec![feature("eth0")], transform, grid: Grid::Exact };
        let pool = |windows| Some(Pool { schema: schema.clone(), windows });
        let short =
            |pool| TrainingJob { window: window_of(&["eth0"], 8), pool, ..test_job(&backends, &["eth0"]) };
        assert!(matches!(run(short(None)).await, TrainingOutcome::TooShort { have_ms: 60_000 }));
        let too_few = pool(vec![window_of(&["eth0"], 8)]);
        assert!(matches!(run(short(too_few)).await, TrainingOutcome::TooShort { .. }));
        let others = || pool(vec![window(&["eth0"]), window(&["eth0"])]);
        let outcome = run(short(others())).await;
        let TrainingOutcome::Pooled { have_ms: 60_000, deployed, .. } = outcome else {
            panic!("a model of others")
        };
        assert!(deployed.is_pooled());
        assert_eq!((deployed.name.as_str(), deployed.version), ("net", None));
        // With history of its own it needs no others.
        let own = run(TrainingJob { pool: others(), ..test_job(&backends, &["eth0"]) }).await;
        let TrainingOutcome::Model { deployed, is_new: true, .. } = own else { panic!("a model of its own") };
        assert_eq!(deployed.version, Some(1));
        assert!(!deployed.is_pooled());
    }

    #[tokio::test]
    async fn f15_a_model_of_days_is_not_replaced_by_one_of_hours() {
        let folder = TempDir::new().expect("a temporary folder");
        let backends = test_backends(Registry::Directory(Directory::new(folder.path().into(), 30)));
        let run =
            async |job| run_job(job, &backends, &mut CircuitBreaker::default()).await.expect("it works");
        let scheduled = |trained_history_ms| TrainingJob {
            reason: TrainingReason::Scheduled,
            trained_history_ms,
            ..test_job(&backends, &["eth0"])
        };
        // The window has an hour.
        let lost = run(scheduled(Some(5 * 86_400_000))).await;
        assert!(matches!(lost, TrainingOutcome::HistoryLost { have_ms: 3_500_000..=3_600_000 }));
        assert!(matches!(run(scheduled(Some(3_600_000))).await, TrainingOutcome::Model { .. }));
        // A feature that came or went is silence without a new model.
        let schema = TrainingJob { reason: TrainingReason::Schema, ..scheduled(Some(5 * 86_400_000)) };
        assert!(matches!(run(schema).await, TrainingOutcome::Model { .. }));
    }

    #[tokio::test]
    async fn a_registry_that_hung_is_not_asked_during_the_cooldown() {
        // It takes connections and never answers.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let text = format!("registry: {{mlflow: {{tracking_uri: 'http://{address}'}}}}");
        let config = Config::parse(&text).expect("a valid configuration");
        let registry = Registry::open(&config.registry, Path::new("")).expect("a client");
        let backends = test_backends(registry);
        let started = Instant::now();
        let mut circuit_breaker =
            CircuitBreaker { registry: Some(started + COOLDOWN), ..CircuitBreaker::default() };
        let first = run_job(test_job(&backends, &["eth0"]), &backends, &mut circuit_breaker).await;
        assert!(matches!(
            first,
            Ok(TrainingOutcome::Model { deployed: DeployedModel { version: None, .. }, .. })
        ));
        let scheduled = TrainingJob { reason: TrainingReason::Scheduled, ..test_job(&backends, &["eth0"]) };
        let Err(reason) = run_job(scheduled, &backends, &mut circuit_breaker).await else {
            panic!("not registered")
        };
        assert_eq!(reason, "the registry is in cooldown");
        assert!(started.elapsed() < REGISTRY_TIMEOUT, "{:?}", started.elapsed());
    }
}
