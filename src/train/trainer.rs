//! Trains groups: first the network, then the processors.
//!
//! A few groups train at the same time, so that one fits while another waits for the network, and each processor has work
//! where a fit is not divided among threads. Their values together are limited as those of one training are.
//!
//! A group without a model takes over the model that the registry has for it, and a model is fitted only if there is none.
//! The group then has the same model after a restart, also after a manual promotion.

use super::backends::{Backends, CircuitBreaker, GroupHistory, GroupReader};
use super::exclusion::{self, Exclusion};
use super::fit::{ModelFitter, Trained};
use super::history::FiringAlert;
use super::job::{ShortHistory, TrainingJob, TrainingOutcome, TrainingReason};
use super::register::{self, PromotionTarget, RegistrationDraft};
use super::thread::run_on_thread;
use super::training_set::{TrainingSet, TrainingSetError};
use super::warm_start::{self, WarmStart};
use crate::detect::MAX_TRAINING_VALUES;
use crate::detector::FeatureIdentity;
use crate::error::chain;
use crate::forest;
use crate::history::{Pace, SeriesSamples};
use crate::models::registry::periods::Period;
use crate::models::{DeployedModel, Model, registry};
use crate::prom::{Labels, duration};
use crate::report::training::PromotionDecision;
use crate::report::zone::Zone;
use crate::time;
use crate::window::{Column, Window, build};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit, mpsc, watch};
use tracing::{debug, info, warn};

/// Time that a group without a model waits for the registry before it is trained.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(10);
/// Most groups that train at the same time. A processor each is enough, and the memory of a training counts.
const MAX_AT_ONCE: usize = 4;
/// The unit in which trainings reserve values.
const VALUES_PER_PERMIT: usize = 1_000;
/// The interval of rows whose interval is not known: shorter than most, so that first trainings take what they reserved.
const ASSUMED_INTERVAL_MS: i64 = 5_000;
/// Samples of a feature from which its interval is known.
const MIN_SAMPLES_OF_INTERVAL: usize = 10;
/// The failure of a call that the cooldown prevents.
const REGISTRY_IN_COOLDOWN: &str = "the registry is in cooldown";

/// Trains the groups of a queue. Clones train groups of one queue at the same time.
#[derive(Clone)]
pub struct Trainer {
    jobs: Arc<Mutex<mpsc::Receiver<TrainingJob>>>,
    backends: watch::Receiver<Arc<Backends>>,
    circuit_breaker: CircuitBreaker,
    /// [`MAX_TRAINING_VALUES`] in [`VALUES_PER_PERMIT`].
    values: Arc<Semaphore>,
}

impl Trainer {
    /// A trainer of these jobs.
    pub fn new(jobs: mpsc::Receiver<TrainingJob>, backends: watch::Receiver<Arc<Backends>>) -> Self {
        Self {
            jobs: Arc::new(Mutex::new(jobs)),
            backends,
            circuit_breaker: CircuitBreaker::default(),
            values: Arc::new(Semaphore::new(MAX_TRAINING_VALUES / VALUES_PER_PERMIT)),
        }
    }

    /// Number of groups that train at the same time on this machine: one a processor, and at most [`MAX_AT_ONCE`].
    pub fn n_at_once() -> usize {
        std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_AT_ONCE)
    }

    /// Trains one group after another until the queue closes. Each outcome goes to `on_outcome`, with the group's number.
    pub async fn run<F: Future<Output = ()>>(self, mut on_outcome: impl FnMut(u32, TrainingOutcome) -> F) {
        while let Some(job) = self.next_job().await {
            let backends = self.backends.borrow().clone();
            let group = job.group;
            let run = TrainingRun::new(job, &backends, &self.circuit_breaker, &self.values);
            let outcome = run.execute().await.unwrap_or_else(TrainingOutcome::Failed);
            on_outcome(group, outcome).await;
        }
    }

    async fn next_job(&self) -> Option<TrainingJob> {
        self.jobs.lock().await.recv().await
    }
}

/// The training of one group.
struct TrainingRun<'a> {
    job: Arc<TrainingJob>,
    backends: &'a Backends,
    circuit_breaker: &'a CircuitBreaker,
    values: &'a Semaphore,
    started: Instant,
    now_ms: i64,
    /// Length of the history that is read.
    history_ms: i64,
    /// Registered name of the models of the detector.
    detector_model: String,
    /// Registered name of the models of the group.
    group_model: String,
    /// The reason why the model serves in spite of gate and pin, if it does.
    exemption: Option<&'static str>,
}

impl<'a> TrainingRun<'a> {
    fn new(
        job: TrainingJob,
        backends: &'a Backends,
        circuit_breaker: &'a CircuitBreaker,
        values: &'a Semaphore,
    ) -> Self {
        let started = Instant::now();
        circuit_breaker.reset_expired(started);
        let detector_model = backends.registry_config.model_name(&job.detector.name);
        let tenant = job.detector.tenant_of(&job.labels);
        let group_model =
            registry::group_model_name(&detector_model, &job.detector.by, tenant.as_ref(), &job.labels);
        // Without the feature the previous model scores nothing, and any other is better.
        let exemption = (job.reason == TrainingReason::LostFeature)
            .then_some("the group lacks a feature of the version before");
        let history_ms = time::millis(job.detector.training.history);
        let (job, now_ms) = (Arc::new(job), time::now_ms());
        Self {
            job,
            backends,
            circuit_breaker,
            values,
            started,
            now_ms,
            history_ms,
            detector_model,
            group_model,
            exemption,
        }
    }

    /// Reuses a registered model, or gathers history, fits a model and registers it.
    ///
    /// # Errors
    /// An error text.
    async fn execute(mut self) -> Result<TrainingOutcome, String> {
        if let Some(outcome) = self.reuse().await {
            return Ok(outcome);
        }
        self.shorten_history()?;
        let _values = self.reserve_values().await;
        let range = self.history_range();
        let GroupHistory { series, failure } = self.reader().read(range).await;
        let exclusions = self.gather_exclusions().await?;
        let recent = warm_start::recent_samples(&self.job.detector, &series, self.now_ms);
        match (self.fit(series, exclusions, failure.is_some()).await?, failure) {
            (Ok((trained, draft)), _) => self.register(trained, draft, recent).await,
            (Err(NotTrained::TooShort(short)), _) => self.fit_pool(short, recent).await,
            (Err(NotTrained::HistoryLost { .. }), Some(error)) => Err(format!("no history: {error}")),
            (Err(NotTrained::HistoryLost { have_ms }), None) => Ok(TrainingOutcome::HistoryLost { have_ms }),
            (Err(NotTrained::NeverComplete { n_features }), _) => {
                Err(format!("no row of the history has full-range values of all {n_features} features"))
            }
            (Err(NotTrained::AllExcluded { n_rows }), _) => Err(format!(
                "alerts of exclude_alerts, maintenance and real incidents leave too few rows of the history: {n_rows} are excluded"
            )),
            (Err(NotTrained::Forest(error)), _) => Err(chain(&error)),
        }
    }

    /// Takes over the registered model of a group without a model. `None` if a model must be fitted.
    async fn reuse(&mut self) -> Option<TrainingOutcome> {
        if self.job.reason != TrainingReason::First {
            return None;
        }
        match self.find_registered().await {
            RegistryLookup::Model(deployed) => Some(self.take_over(deployed).await),
            // One scrape may arrive in several requests.
            RegistryLookup::MissingFeatures
                if self.started.duration_since(self.job.first_sample_at) < self.job.detector.grace =>
            {
                Some(TrainingOutcome::WaitingForFeatures)
            }
            RegistryLookup::MissingFeatures => {
                self.exemption = Some("the group lacks a feature of the version before");
                None
            }
            RegistryLookup::NotFound => None,
        }
    }

    async fn find_registered(&mut self) -> RegistryLookup {
        if self.circuit_breaker.is_registry_open() {
            return RegistryLookup::NotFound;
        }
        let lookup = match tokio::time::timeout(REGISTRY_TIMEOUT, self.load_registered()).await {
            Ok(found) => found.map_err(|error| chain(&error)),
            Err(_) => {
                self.circuit_breaker.open_registry(Instant::now());
                Err(format!("no answer within {REGISTRY_TIMEOUT:?}"))
            }
        };
        let job = &self.job;
        let deployed = lookup.unwrap_or_else(|error| {
            warn!(component = "models", group = %job.labels, err = error, "no model from the registry");
            None
        });
        let is_compatible =
            |model: &Model| model.is_compatible(job.detector.window, job.detector.transform, &job.labels);
        let Some(deployed) = deployed.filter(|deployed| is_compatible(&deployed.model)) else {
            return RegistryLookup::NotFound;
        };
        let features = &deployed.model.schema.features;
        match features.iter().find(|feature| job.window.find_column(feature).is_none()) {
            None => RegistryLookup::Model(deployed),
            Some(feature) => {
                let (name, version) = (&deployed.info.name, deployed.info.version());
                debug!(component = "models", group = %job.labels, model = name, version, feature = %feature, "the group lacks a feature of its registered model");
                RegistryLookup::MissingFeatures
            }
        }
    }

    /// Loads the version that the alias of the group's own models points to, or that of the detector's models.
    async fn load_registered(&self) -> Result<Option<DeployedModel>, registry::Error> {
        let Backends { registry, registry_config, .. } = self.backends;
        let (model, own_model) = (&self.detector_model, &self.group_model);
        let aliases = registry.aliases_of([model, own_model]).await?;
        let Some((name, version)) =
            registry::version_for_group(&aliases, model, own_model, &registry_config.alias)
        else {
            return Ok(None);
        };
        let semantics = self.job.detector.transform.rate_semantics().unwrap_or_default();
        let model = Arc::new(registry.load(&name, version, semantics).await?);
        Ok(Some(DeployedModel::new(model, name, Some(version))))
    }

    async fn take_over(&mut self, deployed: DeployedModel) -> TrainingOutcome {
        let (job, now_ms) = (Arc::clone(&self.job), self.now_ms);
        let checkpoint = job.checkpoint.as_ref();
        let warm_start =
            WarmStart::of_registered_model(&mut self.reader(), &deployed, checkpoint, now_ms).await;
        TrainingOutcome::Model { deployed, is_new: false, warm_start, seconds: self.seconds() }
    }

    /// Reads the times to exclude.
    async fn gather_exclusions(&mut self) -> Result<Vec<Exclusion>, String> {
        let alerts = self.read_alerts().await?;
        let periods = self.read_periods().await?;
        let TrainingJob { detector, labels, .. } = &*self.job;
        Ok(exclusion::of_group(&periods, &alerts, &detector.name, labels))
    }

    /// Reads maintenance and feedback. A first model is fitted without them if the registry does not answer.
    async fn read_periods(&mut self) -> Result<Vec<Period>, String> {
        if self.circuit_breaker.is_registry_open() {
            return self.without_periods(REGISTRY_IN_COOLDOWN.into());
        }
        match tokio::time::timeout(REGISTRY_TIMEOUT, self.backends.registry.periods()).await {
            Ok(Ok(periods)) => Ok(periods),
            Ok(Err(error)) => {
                self.without_periods(format!("maintenance and feedback unknown: {}", chain(&error)))
            }
            Err(_) => {
                self.circuit_breaker.open_registry(Instant::now());
                self.without_periods(format!(
                    "maintenance and feedback unknown: no answer within {REGISTRY_TIMEOUT:?}"
                ))
            }
        }
    }

    fn without_periods(&self, error: String) -> Result<Vec<Period>, String> {
        if self.job.reason != TrainingReason::First {
            return Err(error);
        }
        warn!(component = "train", group = %self.job.labels, err = error, "the model is trained without them");
        Ok(Vec::new())
    }

    /// Reads the times of alerts. A first model is fitted without them if an endpoint does not answer: a model of a
    /// history with incidents is better than none.
    async fn read_alerts(&mut self) -> Result<Vec<FiringAlert>, String> {
        let range = self.history_range();
        let (alerts, failure) = self.reader().read_alerts(range).await;
        match failure.filter(|_| self.job.reason != TrainingReason::First) {
            Some(failure) => Err(format!("alerts unknown: {failure}")),
            None => Ok(alerts),
        }
    }

    /// The pinned version of the alias, if any. The registration reads it again.
    async fn pinned_version(&self) -> Option<u64> {
        let Backends { registry, registry_config, .. } = self.backends;
        if self.circuit_breaker.is_registry_open() {
            return None;
        }
        let pinned = registry.pinned_version(&self.group_model, &registry_config.alias);
        tokio::time::timeout(REGISTRY_TIMEOUT, pinned).await.ok()?.ok()?
    }

    /// Fits a model on the history and the live window, on a thread of its own.
    async fn fit(
        &self,
        history: Vec<SeriesSamples>,
        exclusions: Vec<Exclusion>,
        is_history_partial: bool,
    ) -> Result<Result<(Trained, RegistrationDraft), NotTrained>, String> {
        let group_fit = GroupFit {
            job: Arc::clone(&self.job),
            history_ms: self.history_ms,
            exclusions,
            is_history_partial,
            name: self.group_model.clone(),
            alias: self.backends.registry_config.alias.clone(),
            pinned: self.pinned_version().await,
            exemption: self.exemption,
            zone: self.backends.report_zone.clone(),
            now_ms: self.now_ms,
        };
        run_on_thread(move || group_fit.run(history)).await
    }

    /// Fits a model on the history of other groups, for a group whose own history is too short. The model is not
    /// registered.
    async fn fit_pool(
        &mut self,
        short: ShortHistory,
        recent: Vec<SeriesSamples>,
    ) -> Result<TrainingOutcome, String> {
        let (job, now_ms) = (Arc::clone(&self.job), self.now_ms);
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let train_pool = move || match &job.pool {
            Some(pool) => pool.train(&job.detector, now_ms, threads),
            None => Ok(None),
        };
        let pooled = run_on_thread(train_pool).await?.map_err(|error| chain(&error))?;
        let Some(pooled) = pooled else { return Ok(TrainingOutcome::TooShort(short)) };
        let warm_start = WarmStart::of_new_model(&mut self.reader(), recent, now_ms).await;
        let name = self.detector_model.clone();
        let deployed = DeployedModel::new(Arc::new(pooled), name, None);
        Ok(TrainingOutcome::Pooled { history: short, deployed, warm_start, seconds: self.seconds() })
    }

    /// Registers a model, and promotes it if it passes the gate. A model that cannot be registered serves all the same,
    /// except in place of one that serves already.
    async fn register(
        &mut self,
        trained: Trained,
        draft: RegistrationDraft,
        recent: Vec<SeriesSamples>,
    ) -> Result<TrainingOutcome, String> {
        let (reason, name) = (self.job.reason, self.group_model.clone());
        let registered = if self.circuit_breaker.is_registry_open() {
            Err(REGISTRY_IN_COOLDOWN.to_string())
        } else if let PromotionDecision::Gated(reasons) = &draft.promotion
            && self.has_recent_gated_version(&name).await
        {
            let (card, reasons) = (Box::new(trained.model.card), reasons.clone());
            return Ok(TrainingOutcome::Gated { name, version: None, card, reasons });
        } else {
            let registered = register::register(&self.backends.registry, &name, &trained, &draft).await;
            registered.map_err(|error| chain(&error))
        };
        let version = match registered {
            Ok((version, PromotionDecision::Gated(reasons))) => {
                let card = Box::new(trained.model.card);
                return Ok(TrainingOutcome::Gated { name, version: Some(version), card, reasons });
            }
            // A group without a model uses the challenger until the pinned version can be read.
            Ok((version, PromotionDecision::Challenger { pinned, .. }))
                if reason != TrainingReason::First =>
            {
                let card = Box::new(trained.model.card);
                return Ok(TrainingOutcome::Challenger { name, version, card, pinned });
            }
            Ok((version, _)) => Some(version),
            Err(error) if reason.keeps_model() => return Err(error),
            Err(error) => {
                warn!(component = "models", model = name, err = error, "model not registered");
                None
            }
        };
        let now_ms = self.now_ms;
        let warm_start = match reason {
            TrainingReason::First => WarmStart::of_new_model(&mut self.reader(), recent, now_ms).await,
            _ => WarmStart::default(),
        };
        let deployed = DeployedModel::new(Arc::new(trained.model), name, version);
        Ok(TrainingOutcome::Model { deployed, is_new: true, warm_start, seconds: self.seconds() })
    }

    /// True if the newest version of a model was rejected by the gate within the last training interval: young models are
    /// trained every few minutes, and a version of each would displace those that served.
    async fn has_recent_gated_version(&self, name: &str) -> bool {
        let since_ms = self.now_ms - time::millis(self.job.detector.training.interval);
        let versions = self.backends.registry.versions(name).await.unwrap_or_default();
        versions.last().is_some_and(|newest| register::is_gated(newest) && newest.created_ms > since_ms)
    }

    fn reader(&mut self) -> GroupReader<'_> {
        GroupReader {
            pace: if self.job.reason == TrainingReason::First { Pace::Half } else { Pace::Quarter },
            backends: self.backends,
            circuit_breaker: self.circuit_breaker,
            detector: &self.job.detector,
            labels: &self.job.labels,
            identity: FeatureIdentity::of_features(
                &self.job.detector,
                self.job.window.features().map(|(labels, ..)| labels),
            ),
        }
    }

    fn history_range(&self) -> (i64, i64) {
        (self.now_ms - self.history_ms, self.now_ms)
    }

    /// Shortens the history of a group with many features to the rows that a model can be fitted on.
    ///
    /// # Errors
    /// A text, if that is less than a model needs.
    fn shorten_history(&mut self) -> Result<(), String> {
        let TrainingJob { detector, labels, window, .. } = &*self.job;
        let n_features = window.features().count();
        let max_ms = max_history_ms(window);
        if max_ms >= self.history_ms {
            return Ok(());
        }
        self.history_ms = max_ms;
        let history = duration::Display(Duration::from_millis(max_ms.unsigned_abs()));
        let limit = MAX_TRAINING_VALUES;
        let min_history = detector.training.min_history;
        if max_ms < time::millis(min_history) {
            let required = duration::Display(min_history);
            return Err(format!(
                "{n_features} features fit into {limit} training values for {history}, training.min_history is {required}"
            ));
        }
        info!(component = "train", detector = detector.name, group = %labels, features = n_features, %history, limit, "a shorter history is read: the values of one training are limited");
        Ok(())
    }

    /// Waits until the values of this training and of those that run are within the limit of one training.
    async fn reserve_values(&self) -> Option<SemaphorePermit<'a>> {
        let window = &self.job.window;
        let interval_ms = row_interval_ms(window).unwrap_or(ASSUMED_INTERVAL_MS).max(1);
        let n_rows = usize::try_from(self.history_ms / interval_ms).unwrap_or(0);
        let n_values = (n_rows * window.features().count()).min(MAX_TRAINING_VALUES);
        self.values.acquire_many((n_values / VALUES_PER_PERMIT) as u32).await.ok()
    }

    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// The longest history of which the rows of all features are within [`MAX_TRAINING_VALUES`]. The maximum while no interval
/// is known.
fn max_history_ms(window: &Window) -> i64 {
    let max_rows = MAX_TRAINING_VALUES / window.features().count().max(1);
    row_interval_ms(window).unwrap_or(i64::MAX).saturating_mul(i64::try_from(max_rows).unwrap_or(i64::MAX))
}

/// The interval of the most frequent feature, if that of any is known.
fn row_interval_ms(window: &Window) -> Option<i64> {
    let mut samples = Vec::new();
    let interval_ms = |(_, column): (&Labels, Column)| {
        samples.clear();
        window.samples(column, i64::MIN, i64::MAX, &mut samples);
        let times = samples.iter().map(|sample| sample.timestamp_ms);
        time::median_interval_ms(times).filter(|_| samples.len() >= MIN_SAMPLES_OF_INTERVAL)
    };
    window.features().filter_map(interval_ms).min()
}

/// Result of a registry lookup for a group without a model.
enum RegistryLookup {
    Model(DeployedModel),
    /// The registry has a model, and the group lacks some of its features.
    MissingFeatures,
    NotFound,
}

/// The reason why no model was fitted.
enum NotTrained {
    TooShort(ShortHistory),
    NeverComplete { n_features: usize },
    AllExcluded { n_rows: usize },
    HistoryLost { have_ms: i64 },
    Forest(forest::Error),
}

/// Inputs of a group's fit.
struct GroupFit {
    job: Arc<TrainingJob>,
    /// Length of the history.
    history_ms: i64,
    exclusions: Vec<Exclusion>,
    /// True if an endpoint that may have more history did not answer.
    is_history_partial: bool,
    name: String,
    alias: String,
    pinned: Option<u64>,
    exemption: Option<&'static str>,
    /// The zone of times in the report.
    zone: Zone,
    now_ms: i64,
}

impl GroupFit {
    /// Fits a model. A group that needs one gets a model of excluded rows if there are too few others.
    fn run(&self, history: Vec<SeriesSamples>) -> Result<(Trained, RegistrationDraft), NotTrained> {
        let TrainingJob { detector, labels, window, .. } = &*self.job;
        let window = build::join(&history, window, self.history_ms);
        // The window holds it, and the fit needs the memory.
        drop(history);
        match self.fit(&window, &self.exclusions) {
            Err(NotTrained::AllExcluded { n_rows }) if !self.job.reason.keeps_model() => {
                warn!(component = "train", detector = detector.name, group = %labels, excluded = n_rows, "alerts of exclude_alerts, maintenance and real incidents leave too few rows of the history: the model is trained on all of them");
                self.fit(&window, &[])
            }
            result => result,
        }
    }

    fn fit(
        &self,
        window: &Window,
        exclusions: &[Exclusion],
    ) -> Result<(Trained, RegistrationDraft), NotTrained> {
        let detector = &self.job.detector;
        let TrainingJob { learned_to_ms, closed_to_ms, .. } = *self.job;
        let training_set =
            TrainingSet::from_open_window(detector, window, exclusions, learned_to_ms, closed_to_ms)
                .map_err(|error| self.not_trained(window, error))?;
        let have_ms = training_set.observed_ms;
        if self.is_history_lost(have_ms) {
            return Err(NotTrained::HistoryLost { have_ms });
        }
        let fitter = ModelFitter::for_detector(detector, Some(self.job.labels.clone()), self.now_ms);
        let trained = match fitter.fit(&training_set) {
            Err(forest::Error::Empty { .. }) => {
                return Err(match training_set.n_excluded() {
                    // Derived features have a longer warm-up than rates.
                    0 => NotTrained::TooShort(self.short_history(window, have_ms)),
                    n_rows => NotTrained::AllExcluded { n_rows },
                });
            }
            trained => trained.map_err(NotTrained::Forest)?,
        };
        // Any other model replaces a missing or an unusable one.
        let gate = self.job.reason.keeps_model().then_some(&detector.training.gate);
        let target = PromotionTarget { alias: &self.alias, pinned: self.pinned, exemption: self.exemption };
        let draft = register::prepare(&self.name, Some(target), gate, &trained, &training_set, &self.zone);
        Ok((trained, draft))
    }

    fn not_trained(&self, window: &Window, error: TrainingSetError) -> NotTrained {
        match error {
            TrainingSetError::TooShort { have_ms } => {
                NotTrained::TooShort(self.short_history(window, have_ms))
            }
            TrainingSetError::NeverComplete { n_features } => NotTrained::NeverComplete { n_features },
            TrainingSetError::AllExcluded { n_rows } => NotTrained::AllExcluded { n_rows },
        }
    }

    /// A history of `have_ms` milliseconds, beside that which a first model needs at the interval of the window's rows.
    fn short_history(&self, window: &Window, have_ms: i64) -> ShortHistory {
        let detector = &self.job.detector;
        let interval_ms = time::median_interval_ms(window.timestamps(i64::MIN, i64::MAX));
        let warm_up_ms = interval_ms.map_or(0, |interval_ms| detector.model.warm_up_ms(interval_ms));
        ShortHistory { have_ms, required_ms: time::millis(detector.training.min_history).max(warm_up_ms) }
    }

    /// True if a training has less than half of the history of the current model, although it may wait: a Prometheus
    /// that lost its storage, or does not answer, has hours instead of days.
    fn is_history_lost(&self, have_ms: i64) -> bool {
        let may_wait = self.job.reason.keeps_model() || self.is_history_partial;
        let is_lost = |trained_ms: i64| 2 * have_ms < trained_ms.min(self.history_ms);
        may_wait && self.job.trained_history_ms.is_some_and(is_lost)
    }
}

#[cfg(test)]
mod tests;
