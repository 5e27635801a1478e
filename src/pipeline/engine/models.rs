//! The models of groups: training requests, training outcomes and models of the registry.

use super::publish::notify;
use super::{Engine, Readiness, event_recorder};
use crate::detector::Detector;
use crate::models::DeployedModel;
use crate::pipeline::group::deployment::DeployOutcome;
use crate::pipeline::groups::Groups;
use crate::prom::duration;
use crate::time::now_ms;
use crate::train::{ShortHistory, TrainingJob, TrainingOutcome, TrainingReason, WarmStart};
use crate::window::ModelRole;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

/// Renewals that wait or run. A group without a model waits for no more of them: they can wait, their models serve.
const MAX_RENEWALS: usize = 2;
/// Interval of the log lines on the progress towards a first model.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(30);

impl Engine {
    /// Applies the outcome of a training.
    pub(super) fn handle_training_outcome(&mut self, id: u32, outcome: TrainingOutcome, now: Instant) {
        self.trainings.renewals.remove(&id);
        let Some(group) = self.groups.get_mut(id) else { return };
        let is_undecided =
            matches!(outcome, TrainingOutcome::WaitingForFeatures | TrainingOutcome::Failed(_));
        group.set_model_decided(!is_undecided);
        if let Some(label) = outcome_label(&outcome) {
            self.metrics.count_training(&group.detector.name, label);
        }
        match outcome {
            TrainingOutcome::Model { deployed, warm_start, seconds, .. } => {
                self.install_trained(id, deployed, warm_start, None, seconds, now)
            }
            TrainingOutcome::Pooled { history, deployed, warm_start, seconds } => {
                self.install_trained(id, deployed, warm_start, Some(history), seconds, now)
            }
            TrainingOutcome::Gated { name, version, card, reasons } => {
                let reasons = reasons.join("; ");
                warn!(component = "train", detector = group.detector.name, group = %group.labels, model = name, version, reason = reasons, "model stays out of service");
                group.training_held(&card, now, now_ms());
            }
            TrainingOutcome::Challenger { name, version, card, pinned } => {
                info!(component = "train", detector = group.detector.name, group = %group.labels, model = name, version, pinned, "model registered as challenger: the champion is pinned");
                group.training_held(&card, now, now_ms());
            }
            TrainingOutcome::WaitingForFeatures => group.wait_for_features(now),
            TrainingOutcome::TooShort(history) => group.too_short(history, now),
            TrainingOutcome::HistoryLost { have_ms } => {
                let have = Duration::from_millis(u64::try_from(have_ms).unwrap_or(0));
                warn!(component = "train", detector = group.detector.name, group = %group.labels, seconds = have.as_secs(), "most of the history that the model was trained on is gone: the model stays in service");
                group.history_lost(now, now_ms());
            }
            TrainingOutcome::Failed(reason) => {
                if let Some(count) = self.failed_trainings.add(1) {
                    warn!(component = "train", detector = group.detector.name, group = %group.labels, err = reason, count, "training failed, trying again in a minute");
                }
                group.training_failed(now);
            }
        }
        self.readiness.update(&self.groups, now);
    }

    /// Installs the model of a training. `pooled_history` is the history of a group that gets a model of other groups.
    fn install_trained(
        &mut self,
        id: u32,
        deployed: DeployedModel,
        mut warm_start: WarmStart,
        pooled_history: Option<ShortHistory>,
        seconds: f64,
        now: Instant,
    ) {
        let alias = self.groups.config().registry.alias.clone();
        let Some(group) = self.groups.get(id) else { return };
        let (detector, tenant) = (group.detector.clone(), group.tenant().cloned());
        self.groups.record_alerts(&detector.name, tenant.as_ref(), std::mem::take(&mut warm_start.alerts));
        let Some(group) = self.groups.get_mut(id) else { return };
        let state = match pooled_history {
            Some(_) => "a model of other groups serves until there is enough history for one of its own",
            None => "model in service",
        };
        info!(
            component = "train",
            detector = detector.name,
            group = %group.labels,
            model = deployed.info.name,
            version = deployed.info.version(),
            features = deployed.info.n_features,
            rows = deployed.info.card.training_range.as_ref().map(|history| history.n_rows),
            duration_seconds = seconds,
            "{state}"
        );
        let mut on_event = event_recorder(&self.metrics, &self.remote_write_metrics, &detector.name);
        let advance = group.install(deployed, warm_start, now, &mut on_event);
        self.backlog.record(id, advance);
        if advance.has_changed {
            self.metrics.set_newest_scored(group);
        }
        match pooled_history {
            Some(history) => group.too_short(history, now),
            None => group.training_succeeded(now, now_ms()),
        }
        drop(on_event);
        // Restored scores are held back until the model arrives with the watermark of the endpoints.
        notify(&mut self.endpoints, group.tenant(), id);
        self.metrics.set_models(group, &alias);
        // A gap that a restart left is filled.
        self.score_groups(&BTreeSet::from([id]), now);
    }

    /// Deploys a model of the registry. A model with features that the group lacks is rejected: none of its rows
    /// would be complete.
    pub fn deploy(
        &mut self,
        id: u32,
        role: ModelRole,
        deployed: Option<DeployedModel>,
        warm_start: WarmStart,
        now: Instant,
    ) -> DeployOutcome {
        let alias = self.groups.config().registry.alias.clone();
        let Some(group) = self.groups.get_mut(id) else { return DeployOutcome::Gone };
        let detector = group.detector.clone();
        if let Some(DeployedModel { model, info }) = &deployed {
            let (name, version) = (&info.name, info.version());
            if let Some(missing) = group.missing_feature(&model.schema, now_ms()).cloned() {
                let feature = model.schema.transform.expression(&missing);
                warn!(component = "models", detector = detector.name, group = %group.labels, model = name, version, feature, "model rejected: the group does not have all of its features");
                self.metrics.count_rejected_model(&detector.name);
                if role == ModelRole::Challenger {
                    group.set_challenger(None, None);
                    self.metrics.set_models(group, &alias);
                }
                return DeployOutcome::Refused { missing };
            }
            info!(component = "models", detector = detector.name, group = %group.labels, model = name, version, role = ?role, "model in service");
        }
        match (role, deployed) {
            (ModelRole::Champion, Some(deployed)) => {
                let mut on_event = event_recorder(&self.metrics, &self.remote_write_metrics, &detector.name);
                let advance = group.install(deployed, warm_start, now, &mut on_event);
                self.backlog.record(id, advance);
                if advance.has_changed {
                    self.metrics.set_newest_scored(group);
                    notify(&mut self.endpoints, group.tenant(), id);
                }
            }
            (ModelRole::Champion, None) => {}
            (ModelRole::Challenger, deployed) => group.set_challenger(deployed, warm_start.detection),
        }
        self.metrics.set_models(group, &alias);
        DeployOutcome::Taken
    }
}

/// Value of the label `outcome`; a group that waits for features did not train.
fn outcome_label(outcome: &TrainingOutcome) -> Option<&'static str> {
    Some(match outcome {
        TrainingOutcome::Model { is_new: true, .. } => "trained",
        TrainingOutcome::Model { is_new: false, .. } => "loaded",
        TrainingOutcome::Gated { .. } => "gated",
        TrainingOutcome::Challenger { .. } => "challenger",
        TrainingOutcome::WaitingForFeatures => return None,
        TrainingOutcome::TooShort(_) => "too_short",
        TrainingOutcome::Pooled { .. } => "pooled",
        TrainingOutcome::HistoryLost { .. } => "history_lost",
        TrainingOutcome::Failed(_) => "failed",
    })
}

/// The training requests of the groups, in turn.
pub(super) struct TrainingQueue {
    jobs: mpsc::Sender<TrainingJob>,
    /// Group of the last request.
    last_group: u32,
    /// The groups whose renewal waits or runs.
    renewals: BTreeSet<u32>,
}

impl TrainingQueue {
    /// A queue to the trainer.
    pub(super) fn new(jobs: mpsc::Sender<TrainingJob>) -> Self {
        Self { jobs, last_group: u32::MAX, renewals: BTreeSet::new() }
    }

    /// Fills the queue of the trainer with the groups that are due, after the last one queued, so that all groups are
    /// served in turn.
    pub(super) fn request(&mut self, groups: &mut Groups, now: Instant, now_ms: i64) {
        for id in groups.ids_after(self.last_group) {
            let Ok(permit) = self.jobs.try_reserve() else { return };
            let Some(group) = groups.get_mut(id) else { continue };
            if group.is_resting() {
                continue;
            }
            if group.is_renewal_due(now) && self.renewals.len() >= MAX_RENEWALS {
                continue;
            }
            let due = group.training_due(now, now_ms);
            // With new features the group may match others, and a pooled model can score it at once.
            let wants_pool = group.is_new() && (due.is_some() || group.has_new_columns());
            let pool = if wants_pool { groups.pool(id, now_ms) } else { None };
            let Some(group) = groups.get_mut(id) else { continue };
            let Some(reason) = due.or(pool.as_ref().map(|_| TrainingReason::First)) else { continue };
            if reason == TrainingReason::Scheduled {
                self.renewals.insert(id);
            }
            if reason != TrainingReason::First {
                let reason = reason.as_str();
                info!(component = "train", detector = group.detector.name, group = %group.labels, reason, "training again");
            }
            permit.send(TrainingJob {
                group: id,
                detector: group.detector.clone(),
                labels: group.labels.clone(),
                first_sample_at: group.first_sample_at(),
                checkpoint: group.checkpoint().cloned(),
                trained_history_ms: group.trained_history_ms(),
                learned_to_ms: group.learned_to_ms(reason),
                closed_to_ms: group.judged_at_ms(now_ms),
                pool,
                reason,
                window: group.start_training(reason, now),
            });
            self.last_group = id;
        }
    }
}

/// Reports the readiness of the sidecar, and logs the progress towards the first models.
pub(super) struct ReadinessReporter {
    pub(super) sender: watch::Sender<Readiness>,
    logged_at: Option<Instant>,
}

impl ReadinessReporter {
    /// A reporter that has not logged yet.
    pub(super) fn new(sender: watch::Sender<Readiness>) -> Self {
        Self { sender, logged_at: None }
    }

    /// Sends the readiness if it changed. The sidecar is ready if every detector has a model in service for at least
    /// one group.
    pub(super) fn update(&mut self, groups: &Groups, now: Instant) {
        let is_log_due =
            self.logged_at.is_none_or(|logged_at| now.duration_since(logged_at) >= PROGRESS_LOG_INTERVAL);
        let mut ready = true;
        let mut lines = Vec::new();
        for detector in &groups.config().detectors {
            let progress = DetectorProgress::new(detector, groups, now);
            ready &= progress.n_models > 0;
            lines.push(progress.to_string());
            if is_log_due && progress.is_collecting() {
                self.logged_at = Some(now);
                progress.log();
            }
        }
        let state = Readiness { ready, text: lines.join("\n") };
        self.sender.send_if_modified(|old| {
            let changed = *old != state;
            *old = state;
            changed
        });
    }
}

/// The groups of a detector and their models.
struct DetectorProgress<'a> {
    detector: &'a Detector,
    n_groups: usize,
    n_models: usize,
    /// Models that are pooled.
    n_pooled: usize,
    /// Groups of which the last row had none of the model's features.
    n_unfed: usize,
    /// The largest share of the history that a first model needs, in `[0, 1]`.
    progress: f64,
    /// The history that the first model of that group needs.
    required: Duration,
}

impl<'a> DetectorProgress<'a> {
    fn new(detector: &'a Arc<Detector>, groups: &Groups, now: Instant) -> Self {
        let groups = || groups.iter().filter(|group| Arc::ptr_eq(&group.detector, detector));
        let models = || groups().filter_map(|group| group.model_info(ModelRole::Champion));
        let progress = groups().map(|group| (group.progress(now), group.required_history()));
        let (progress, required) =
            progress.max_by(|(a, _), (b, _)| a.total_cmp(b)).unwrap_or((0.0, detector.training.min_history));
        Self {
            detector,
            n_groups: groups().count(),
            n_models: models().count(),
            n_unfed: groups().filter(|group| group.is_unfed()).count(),
            n_pooled: models().filter(|model| model.is_pooled()).count(),
            progress,
            required,
        }
    }

    /// True if a group has no model of its own.
    fn is_collecting(&self) -> bool {
        self.n_groups > self.n_models - self.n_pooled
    }

    fn required(&self) -> duration::Display {
        duration::Display(self.required)
    }

    fn log(&self) {
        info!(component = "train", detector = self.detector.name, groups = self.n_groups, models = self.n_models, pooled = self.n_pooled, progress = format!("{:.0}%", self.progress * 100.0), required = %self.required(), "collecting history");
    }
}

impl fmt::Display for DetectorProgress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n_groups, n_models, n_pooled, n_unfed, .. } = self;
        write!(f, "{}: ", self.detector.name)?;
        match (n_groups, n_models) {
            (0, _) => write!(f, "no samples yet"),
            (_, 0) => {
                let percent = self.progress * 100.0;
                write!(f, "{percent:.0} % of the {} of history that a first model needs", self.required())
            }
            _ => {
                write!(f, "{n_models} of {n_groups} groups have a model")?;
                if *n_pooled > 0 {
                    write!(f, ", {n_pooled} of them a pooled one")?;
                }
                if *n_unfed > 0 {
                    write!(f, ", {n_unfed} of them receive none of its features")?;
                }
                Ok(())
            }
        }
    }
}
