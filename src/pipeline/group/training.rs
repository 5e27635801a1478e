//! Training of a group: its time, its input and its result.

use super::Group;
use crate::detector::Detector;
use crate::features::Schema;
use crate::models::{Model, ModelCard};
use crate::prom::Labels;
use crate::time;
use crate::train::TrainingReason;
use crate::train::coverage;
use crate::window::Window;
use crate::window::grid::Grid;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Time after a start during which models of other groups are expected.
const POOL_WAIT: Duration = Duration::from_secs(60);

impl Group {
    /// The schema of the group's own champion, if other groups can be fitted on it: with the current transform, and
    /// with a row at each timestamp. Slots of several targets differ between groups.
    pub fn own_schema(&self) -> Option<&Schema> {
        let model = self.models.champion()?.model();
        let is_own = model.card.group.as_ref() == Some(&self.labels);
        let schema = &model.schema;
        let is_usable = schema.grid == Grid::Exact && schema.transform == self.detector.transform;
        (is_own && is_usable).then_some(schema)
    }

    /// True if no model serves, and none did before this process.
    pub fn is_new(&self) -> bool {
        !self.models.had_champion()
    }

    /// True if features have arrived that the last training did not consider.
    pub fn has_new_columns(&self) -> bool {
        self.schedule.has_new_columns(self.n_columns())
    }

    /// The reason to train now, if any.
    pub fn training_due(&mut self, now: Instant) -> Option<TrainingReason> {
        // A silent group keeps its model: there is nothing new to train on.
        if self.window.newest_ms().is_none()
            || now.duration_since(self.last_received) > 2 * self.detector.grace
        {
            return None;
        }
        let has_model = self.models.has_permanent_champion();
        let Self { schedule, models, window, detector, .. } = self;
        let known_columns = schedule.known_columns();
        let changed = || {
            models
                .champion()
                .is_some_and(|serving| schema_changed(serving.model(), window, detector, known_columns))
        };
        schedule.due(has_model, changed, now)
    }

    /// Marks the group as being trained, and returns its window.
    pub fn start_training(&mut self, reason: TrainingReason, now: Instant) -> Window {
        let n_columns = self.n_columns();
        self.schedule.start(reason, n_columns, now);
        self.window.clone()
    }

    /// Ends a training whose result will not arrive: the next tick requests another.
    pub fn end_training(&mut self) {
        self.schedule.end_training();
    }

    /// The registry has a model, but not all of its features have arrived yet.
    pub fn wait_for_features(&mut self, now: Instant) {
        self.schedule.retry_soon(now);
    }

    /// Training found too little history. A group that was scored before and has no model had a pooled one;
    /// the next one is available once the groups of the pool have their models.
    pub fn too_short(&mut self, have_ms: i64, now: Instant) {
        self.schedule.record_too_short(&self.detector, have_ms, now);
        let was_scored = self.models.champion().is_none() && self.newest_scored_ms().is_some();
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

    /// Length of the history that the champion was trained on.
    pub fn trained_history_ms(&self) -> Option<i64> {
        Some(self.models.champion()?.model().card.training_range.as_ref()?.observed_ms)
    }

    /// Every row up to here is scored or given up; the maximum without a model.
    pub fn scored_to_ms(&self) -> i64 {
        let Some(serving) = self.models.champion() else { return i64::MAX };
        let grid = serving.schema().grid;
        // Earlier rows are late: they only wait to be counted.
        let done_ms = serving.processed_to_ms.max(self.newest_scored_ms().unwrap_or(i64::MIN));
        match self.rows.first_open_after(done_ms) {
            Some(key) => grid.bounds(key).0,
            None => self.window.newest_ms().map_or(done_ms, |newest_ms| grid.bounds(newest_ms).1),
        }
    }

    /// Training made a model that did not pass the promotion gate.
    pub fn training_gated(&mut self, card: &ModelCard, now: Instant) {
        self.schedule.end_training();
        self.schedule.schedule_renewal(&self.detector, card, Duration::ZERO, now);
    }

    /// Share of the history that a first model needs, in [0, 1]; 1 with a permanent model.
    pub fn progress(&self, now: Instant) -> f64 {
        if self.models.has_permanent_champion() {
            return 1.0;
        }
        self.schedule.progress(&self.detector, self.last_received, now)
    }

    /// Training made the champion of this age, or found it in the registry.
    pub fn training_succeeded(&mut self, age: Duration, now: Instant) {
        self.schedule.end_training();
        if let Some(serving) = self.models.champion() {
            self.schedule.schedule_renewal(&self.detector, &serving.model().card, age, now);
        }
    }
}

/// True if a feature of the model is gone for good, or if a new one has come to stay. A model that is not the group's
/// own is kept until it lacks a feature.
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
            // A feature that was present at that training was too young for it; one that has returned may be old.
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
