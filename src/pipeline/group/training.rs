//! When a group is trained, and what becomes of the result.

use super::{Group, GroupEvent};
use crate::detector::Detector;
use crate::features::Schema;
use crate::models::{DeployedModel, Model, ModelCard};
use crate::prom::Labels;
use crate::time;
use crate::train::coverage;
use crate::train::{TrainingReason, WarmStart};
use crate::window::Window;
use crate::window::grid::Grid;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long after a start the models of other groups are expected any moment.
const POOL_WAIT: Duration = Duration::from_secs(60);

impl Group {
    /// The columns of the group's own model, if one serves that others can learn by: with the transform of now, and
    /// where each timestamp is a row. Slots of several targets lie otherwise in each group.
    pub fn own_schema(&self) -> Option<&Schema> {
        let model = self.champion.as_ref()?.model();
        let is_own = model.card.group.as_ref() == Some(&self.labels);
        let schema = &model.schema;
        let is_usable = schema.grid == Grid::Exact && schema.transform == self.detector.transform;
        (is_own && is_usable).then_some(schema)
    }

    /// Does nothing serve, and is nothing known that did before this process?
    pub fn is_new(&self) -> bool {
        self.champion.is_none() && self.checkpoints[0].is_none()
    }

    /// Have features come that the last training did not know of?
    pub fn has_new_columns(&self) -> bool {
        self.schedule.has_new_columns(self.n_columns())
    }

    /// Is it time to train, and why?
    pub fn training_due(&mut self, now: Instant) -> Option<TrainingReason> {
        // A group that is silent keeps its model: there is nothing new to learn from.
        if self.window.newest_ms().is_none()
            || now.duration_since(self.last_received) > 2 * self.detector.grace
        {
            return None;
        }
        let has_model = self.has_permanent_model();
        let Self { schedule, champion: serving, window, detector, .. } = self;
        let known_columns = schedule.known_columns();
        let changed = || {
            serving
                .as_ref()
                .is_some_and(|serving| schema_changed(serving.model(), window, detector, known_columns))
        };
        schedule.due(has_model, changed, now)
    }

    /// Marks the group as in training and hands out what its window holds.
    pub fn start_training(&mut self, reason: TrainingReason, now: Instant) -> Window {
        let n_columns = self.n_columns();
        self.schedule.start(reason, n_columns, now);
        self.window.clone()
    }

    /// Nobody will report on a training any more: ask again.
    pub fn end_training(&mut self) {
        self.schedule.end_training();
    }

    /// The registry has a model, and not all of its features have come yet.
    pub fn wait_for_features(&mut self, now: Instant) {
        self.schedule.retry_soon(now);
    }

    /// Training found too little history. What was scored before this process, and has no model, was by a pooled one:
    /// there is one again as soon as those have theirs that it learns from.
    pub fn too_short(&mut self, have_ms: i64, now: Instant) {
        self.schedule.record_too_short(&self.detector, have_ms, now);
        let was_scored = self.champion.is_none() && self.newest_scored_ms().is_some();
        if was_scored && now.duration_since(self.first_sample_at) < POOL_WAIT {
            self.schedule.retry_soon(now);
        }
    }

    /// Training failed.
    pub fn training_failed(&mut self, now: Instant) {
        self.schedule.record_failure(now);
    }

    /// Training found that most of the history is gone.
    pub fn history_lost(&mut self, now: Instant) {
        self.schedule.postpone(&self.detector, now);
    }

    /// Length of the history that the model in service has learned from.
    pub fn trained_history_ms(&self) -> Option<i64> {
        Some(self.champion.as_ref()?.model().card.training_range.as_ref()?.observed_ms)
    }

    /// Every row up to here was judged, or has been given up; without a model there is nothing to be judged.
    pub fn scored_to_ms(&self) -> i64 {
        let Some(serving) = &self.champion else { return i64::MAX };
        let grid = serving.schema().grid;
        // Rows before these are late: they wait for nothing but to be counted.
        let done_ms = serving.processed_to_ms.max(self.newest_scored_ms().unwrap_or(i64::MIN));
        match self.rows.first_open_after(done_ms) {
            Some(key) => grid.bounds(key).0,
            None => self.window.newest_ms().map_or(done_ms, |newest_ms| grid.bounds(newest_ms).1),
        }
    }

    /// Training made a model that stays out of service.
    pub fn training_gated(&mut self, card: &ModelCard, now: Instant) {
        self.schedule.end_training();
        self.schedule.schedule_renewal(&self.detector, card, Duration::ZERO, now);
    }

    /// How much of the first model's history there is, in [0, 1]; 1 with a model that stays.
    pub fn progress(&self, now: Instant) -> f64 {
        if self.has_permanent_model() {
            return 1.0;
        }
        self.schedule.progress(&self.detector, self.last_received, now)
    }

    /// Takes a model that training made, or found in the registry, into service; it is so old.
    pub fn install_trained(
        &mut self,
        deployed: DeployedModel,
        age: Duration,
        warm_start: WarmStart,
        now: Instant,
        on_event: &mut impl FnMut(GroupEvent),
    ) -> bool {
        let model = deployed.model.clone();
        let scored = self.install(deployed, warm_start, now, on_event);
        self.schedule.end_training();
        self.schedule.schedule_renewal(&self.detector, &model.card, age, now);
        scored
    }
}

/// Has a feature of the model gone for good, or has one come to stay that it does not have? A model
/// that is not the group's own is let be until it lacks one.
fn schema_changed(model: &Model, window: &Window, detector: &Detector, known_columns: usize) -> bool {
    let Some(newest_ms) = window.newest_ms() else { return false };
    let of_model: HashSet<&Labels> = model.schema.features.iter().collect();
    let is_own = model.card.group.is_some();
    let grace_ms = time::millis(detector.grace);
    let trained = model.card.training_range.as_ref().map(|history| (history.to_ms, history.observed_ms));
    let (mut n_active, mut n_known, mut has_new_feature) = (0, 0, false);
    for (i, (labels, column, newest)) in window.features().enumerate() {
        if !coverage::is_alive(newest, newest_ms, detector.grace) {
            continue;
        }
        n_active += 1;
        if of_model.contains(labels) {
            n_known += 1;
        } else if is_own {
            // What was there at that training was too young for it; what has come back since may be old.
            let was_present = |(to_ms, _): &(i64, i64)| {
                let sample = window.newest_sample(column, to_ms - grace_ms, *to_ms);
                sample.is_some_and(|sample| !sample.is_stale())
            };
            let have_ms = trained.filter(was_present).map_or(0, |(_, have_ms)| have_ms);
            let observed_ms = coverage::coverage_ms(window, column, detector.transform);
            has_new_feature |= i >= known_columns
                || coverage::has_enough_history(observed_ms, have_ms, detector.training.min_history);
        }
    }
    n_active > 0 && (has_new_feature || n_known < of_model.len())
}
