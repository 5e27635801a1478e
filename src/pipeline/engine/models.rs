//! Models of groups: requests for trainings, their results, and the models of the registry.

use super::publish::notify;
use super::{Engine, Readiness, event_recorder};
use crate::detect::OnlineDetector;
use crate::models::DeployedModel;
use crate::prom::duration;
use crate::time::now_ms;
use crate::train::{TrainingJob, TrainingOutcome, TrainingReason, WarmStart};
use crate::window::ModelRole;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How often the progress towards a first model is logged.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(30);

impl Engine {
    /// Applies the result of a training.
    pub(super) fn handle_training_outcome(&mut self, id: u32, outcome: TrainingOutcome, now: Instant) {
        let alias = self.groups.config().registry.alias.clone();
        let Some(group) = self.groups.get_mut(id) else { return };
        let detector = group.detector.clone();
        match outcome {
            TrainingOutcome::Model { deployed, is_new, warm_start, seconds } => {
                info!(
                    component = "train",
                    detector = detector.name,
                    group = %group.labels,
                    model = deployed.name,
                    version = deployed.version,
                    features = deployed.model.schema.features.len(),
                    rows = deployed.model.card.training_range.as_ref().map(|history| history.n_rows),
                    duration_seconds = seconds,
                    "model in service"
                );
                self.metrics.count_training(&detector.name, if is_new { "trained" } else { "loaded" });
                let mut on_event = event_recorder(&self.metrics, &self.remote_write_metrics, &detector.name);
                let age = deployed.model.card.age(now_ms());
                if group.install_trained(deployed, age, warm_start, now, &mut on_event) {
                    self.metrics.set_newest_scored(group);
                }
                // Scores of a snapshot were held back until the watermark of the endpoints was read.
                notify(&mut self.endpoints, id);
                self.metrics.set_models(group, &alias);
            }
            TrainingOutcome::Gated { name, version, card, reasons } => {
                let reasons = reasons.join("; ");
                warn!(component = "train", detector = detector.name, group = %group.labels, model = name, version, reason = reasons, "model stays out of service");
                self.metrics.count_training(&detector.name, "gated");
                group.training_gated(&card, now);
            }
            TrainingOutcome::WaitingForFeatures => group.wait_for_features(now),
            TrainingOutcome::TooShort { have_ms } => {
                self.metrics.count_training(&detector.name, "too_short");
                group.too_short(have_ms, now);
            }
            TrainingOutcome::Pooled { have_ms, deployed, warm_start, seconds } => {
                info!(
                    component = "train",
                    detector = detector.name,
                    group = %group.labels,
                    features = deployed.model.schema.features.len(),
                    rows = deployed.model.card.training_range.as_ref().map(|history| history.n_rows),
                    duration_seconds = seconds,
                    "a model of other groups serves until there is enough history for one of its own"
                );
                self.metrics.count_training(&detector.name, "pooled");
                let mut on_event = event_recorder(&self.metrics, &self.remote_write_metrics, &detector.name);
                if group.install(deployed, warm_start, now, &mut on_event) {
                    self.metrics.set_newest_scored(group);
                }
                group.too_short(have_ms, now);
                notify(&mut self.endpoints, id);
                self.metrics.set_models(group, &alias);
            }
            TrainingOutcome::HistoryLost { have_ms } => {
                let have = Duration::from_millis(u64::try_from(have_ms).unwrap_or(0));
                warn!(component = "train", detector = detector.name, group = %group.labels, seconds = have.as_secs(), "the history is gone that the model has learned from: it stays in service");
                self.metrics.count_training(&detector.name, "history_lost");
                group.history_lost(now);
            }
            TrainingOutcome::Failed(reason) => {
                warn!(component = "train", detector = detector.name, group = %group.labels, err = reason, "training failed, trying again in a minute");
                self.metrics.count_training(&detector.name, "failed");
                group.training_failed(now);
            }
        }
        self.update_readiness(now);
    }

    /// Deploys a model of the registry. A model with features that the group lacks is rejected: none of its rows
    /// would be complete.
    pub fn deploy(
        &mut self,
        id: u32,
        role: ModelRole,
        deployed: Option<DeployedModel>,
        detection: Option<Box<OnlineDetector>>,
        now: Instant,
    ) {
        let alias = self.groups.config().registry.alias.clone();
        let Some(group) = self.groups.get_mut(id) else { return };
        let detector = group.detector.clone();
        if let Some(DeployedModel { model, name, version }) = &deployed {
            let missing = group
                .missing_feature(&model.schema)
                .map(|feature| model.schema.transform.expression(feature));
            if let Some(feature) = missing {
                warn!(component = "models", detector = detector.name, group = %group.labels, model = name, version, feature, "model rejected: the group does not have all of its features");
                self.metrics.count_rejected_model(&detector.name);
                if role == ModelRole::Challenger {
                    group.set_challenger(None, None);
                    self.metrics.set_models(group, &alias);
                }
                return;
            }
            info!(component = "models", detector = detector.name, group = %group.labels, model = name, version, role = ?role, "model in service");
        }
        match (role, deployed) {
            (ModelRole::Champion, Some(deployed)) => {
                let mut on_event = event_recorder(&self.metrics, &self.remote_write_metrics, &detector.name);
                if group.install(
                    deployed,
                    WarmStart { detection, ..WarmStart::default() },
                    now,
                    &mut on_event,
                ) {
                    self.metrics.set_newest_scored(group);
                    notify(&mut self.endpoints, id);
                }
            }
            (ModelRole::Champion, None) => {}
            (ModelRole::Challenger, deployed) => group.set_challenger(deployed, detection),
        }
        self.metrics.set_models(group, &alias);
    }

    /// Fills the queue of the trainer with the groups that are due, after the last one queued, so that all groups are
    /// served in turn.
    pub(super) fn request_trainings(&mut self, now: Instant) {
        for id in self.groups.ids_after(self.last_training_group) {
            let Ok(permit) = self.training_jobs.try_reserve() else { return };
            let Some(group) = self.groups.get_mut(id) else { continue };
            let due = group.training_due(now);
            // With new features the group may match others, and a pooled model can score it at once.
            let wants_pool = group.is_new() && (due.is_some() || group.has_new_columns());
            let pool = if wants_pool { self.groups.pool(id) } else { None };
            let Some(group) = self.groups.get_mut(id) else { continue };
            let Some(reason) = due.or(pool.as_ref().map(|_| TrainingReason::First)) else { continue };
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
                scored_to_ms: group.scored_to_ms(),
                pool,
                reason,
                window: group.start_training(reason, now),
            });
            self.last_training_group = id;
        }
    }

    /// Ready: every detector has a model in service for at least one group.
    pub(super) fn update_readiness(&mut self, now: Instant) {
        let mut ready = true;
        let mut lines = Vec::new();
        let log_progress = self
            .progress_logged_at
            .is_none_or(|logged_at| now.duration_since(logged_at) >= PROGRESS_LOG_INTERVAL);
        for detector in &self.groups.config().detectors {
            let groups = || self.groups.iter().filter(|group| Arc::ptr_eq(&group.detector, detector));
            let models = || groups().filter_map(|group| group.deployed(ModelRole::Champion));
            let (n_groups, n_models) = (groups().count(), models().count());
            let n_pooled = models().filter(|deployed| deployed.is_pooled()).count();
            ready &= n_models > 0;
            let progress = groups().map(|group| group.progress(now)).fold(0.0, f64::max);
            let minimum = duration::Display(detector.training.min_history);
            lines.push(match (n_groups, n_models) {
                (0, _) => format!("{}: no samples yet", detector.name),
                (_, 0) => format!(
                    "{}: {:.0} % of the {minimum} of history that a first model needs",
                    detector.name,
                    progress * 100.0
                ),
                (_, _) if n_pooled > 0 => format!(
                    "{}: {n_models} of {n_groups} groups have a model, {n_pooled} of them a pooled one",
                    detector.name
                ),
                _ => format!("{}: {n_models} of {n_groups} groups have a model", detector.name),
            });
            if log_progress && n_groups > n_models - n_pooled {
                self.progress_logged_at = Some(now);
                info!(component = "train", detector = detector.name, groups = n_groups, models = n_models, pooled = n_pooled, progress = format!("{:.0}%", progress * 100.0), minimum = %minimum, "collecting history");
            }
        }
        let state = Readiness { ready, text: lines.join("\n") };
        self.readiness.send_if_modified(|old| {
            let changed = *old != state;
            *old = state;
            changed
        });
    }
}
