//! Training of a group: its time, its input and its result.

use super::Group;
use crate::detector::{self, Detector};
use crate::features::Schema;
use crate::models::ModelCard;
use crate::prom::Labels;
use crate::time;
use crate::train::coverage::{self, Presence};
use crate::train::{ShortHistory, TrainingReason};
use crate::window::grid::Grid;
use crate::window::{Column, ModelRole, Window};
use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

/// Time after a start during which models of other groups are expected.
const POOL_WAIT: Duration = Duration::from_secs(60);

impl Group {
    /// The schema of the group's own champion, if other groups can be fitted on it: with the current transform, and
    /// with a row at each timestamp. Slots of several targets differ between groups.
    pub fn own_schema(&self) -> Option<&Schema> {
        let serving = self.models.champion()?;
        let is_own = serving.info().card.group.as_ref() == Some(&self.labels);
        let schema = serving.schema();
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

    /// True if the time of the group's renewal has come.
    pub fn is_renewal_due(&self, now: Instant) -> bool {
        self.reason_by_time(now) == Some(TrainingReason::Scheduled)
    }

    /// The reason to train now, if the time has come and the renewal does not wait for a deviation to be judged.
    fn reason_by_time(&self, now: Instant) -> Option<TrainingReason> {
        let (reason, overdue) = self.schedule.due(self.models.has_permanent_champion(), now)?;
        let waits = reason == TrainingReason::Scheduled
            && detector::renewal_waits(overdue, self.newest_score_share());
        (!waits).then_some(reason)
    }

    /// The score of the newest scored row as a share of its threshold; 0 without one that can open an incident.
    fn newest_score_share(&self) -> f64 {
        let newest_ms = self.newest_scored_ms();
        let newest = newest_ms.and_then(|newest_ms| self.window.score(ModelRole::Champion, newest_ms));
        newest.and_then(|score| Some(score.score / score.incident_state?.threshold)).unwrap_or(0.0)
    }

    /// The reason to train now, if any.
    pub fn training_due(&mut self, now: Instant, now_ms: i64) -> Option<TrainingReason> {
        // A silent group keeps its model: there is nothing new to train on.
        if self.window.newest_ms().is_none()
            || now.duration_since(self.last_received) > 2 * self.detector.grace
        {
            return None;
        }
        self.reason_by_time(now).or_else(|| {
            let is_check_due = self.models.has_permanent_champion() && self.schedule.take_schema_check(now);
            if is_check_due { self.schema_change(now_ms) } else { None }
        })
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
    pub fn too_short(&mut self, history: ShortHistory, now: Instant) {
        self.schedule.record_too_short(history, now);
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
    pub fn history_lost(&mut self, now: Instant, now_ms: i64) {
        self.schedule.postpone(&self.detector, now, now_ms);
    }

    /// Length of the history that the champion was trained on.
    pub fn trained_history_ms(&self) -> Option<i64> {
        Some(self.models.champion()?.info().card.training_range.as_ref()?.observed_ms)
    }

    /// Every row up to here is scored or given up; the maximum without a model.
    pub fn scored_to_ms(&self) -> i64 {
        if self.models.champion().is_some() { self.closed_to_ms() } else { i64::MAX }
    }

    /// Timestamp of the last row that a training may learn.
    pub fn learned_to_ms(&self, reason: TrainingReason) -> i64 {
        match reason {
            TrainingReason::Scheduled => {
                detector::learned_to_ms(self.scored_to_ms(), self.newest_score_share())
            }
            _ => self.scored_to_ms(),
        }
    }

    /// Every row up to here is closed.
    fn closed_to_ms(&self) -> i64 {
        let grid = self.models.schema().map_or(Grid::Exact, |schema| schema.grid);
        // Earlier rows are late: they only wait to be counted.
        let processed_to_ms = self.models.champion().map(|serving| serving.processed_to_ms);
        let done_ms = processed_to_ms.max(self.newest_scored_ms()).unwrap_or(i64::MIN);
        match self.rows.first_open_after(done_ms) {
            Some(key) => grid.bounds(key).0,
            None => self.window.newest_ms().map_or(done_ms, |newest_ms| grid.bounds(newest_ms).1),
        }
    }

    /// The presence of the features at the newest closed row. A row ahead of the clock does not count. `None` if no row
    /// is closed yet.
    pub(super) fn presence(&self, now_ms: i64) -> Option<Presence<'_>> {
        let to_ms = self.closed_to_ms().min(now_ms.saturating_add(time::CLOCK_SKEW_MS));
        // Two rows, as in a backtest.
        let two_rows = Duration::from_millis(2 * self.gaps.interval_ms().unwrap_or(0).unsigned_abs());
        Presence::at_newest_row(&self.window, to_ms, self.detector.grace.max(two_rows))
    }

    /// Features that are present at the newest closed row or have returned since. Without a closed row, those at the
    /// newest row.
    pub fn active_features(&self, now_ms: i64) -> BTreeSet<&Labels> {
        let newest = || Presence::at_newest_row(&self.window, i64::MAX, self.detector.grace);
        let presence = self.presence(now_ms).or_else(newest);
        let is_gone = |column| presence.is_none_or(|presence| presence.is_gone(column));
        let active = self.window.features().filter(|(_, column)| !is_gone(*column));
        active.map(|(labels, _)| labels).collect()
    }

    /// Timestamp of the row at which a training judges the features; the maximum if no row is closed yet.
    pub fn judged_at_ms(&self, now_ms: i64) -> i64 {
        self.presence(now_ms).map_or(i64::MAX, |presence| presence.row_ms())
    }

    /// The reason to train again because a feature of the model is gone for good, or a new one has come to stay. A model
    /// that is not the group's own is kept until it lacks a feature. Nothing is judged while a gap is filled.
    fn schema_change(&self, now_ms: i64) -> Option<TrainingReason> {
        if self.gaps.is_holding() {
            return None;
        }
        let (serving, presence) = (self.models.champion()?, self.presence(now_ms)?);
        let card = &serving.info().card;
        let of_model: HashSet<&Labels> = serving.schema().features.iter().collect();
        let (mut any_present, mut n_known, mut has_new_feature) = (false, 0, false);
        for (i, (labels, column)) in self.window.features().enumerate() {
            any_present |= presence.is_present(column);
            if presence.is_gone(column) {
                continue;
            }
            if of_model.contains(labels) {
                n_known += 1;
            } else if card.group.is_some() {
                let is_new = i >= self.schedule.known_columns();
                has_new_feature |= is_new || !self.schedule.is_model_held() && self.may_join(card, column);
            }
        }
        match n_known < of_model.len() {
            _ if !any_present => None,
            true => Some(TrainingReason::LostFeature),
            false => has_new_feature.then_some(TrainingReason::NewFeature),
        }
    }

    /// True if a feature that the model lacks has enough history to join it.
    fn may_join(&self, card: &ModelCard, column: Column) -> bool {
        let Detector { grace, training, transform, .. } = &*self.detector;
        // A feature that was present at that training was too young for it; one that has returned may be old.
        let was_present = |to_ms: i64| {
            let sample = self.window.newest_sample(column, to_ms - time::millis(*grace), to_ms);
            sample.is_some_and(|sample| !sample.is_stale())
        };
        let trained = card.training_range.as_ref().filter(|history| was_present(history.to_ms));
        let have_ms = trained.map_or(0, |history| history.observed_ms);
        let observed_ms = coverage::coverage_ms(&self.window, column, *transform);
        coverage::has_enough_history(observed_ms, have_ms, training.min_history)
    }

    /// Training made a model that stays out of service, because of the promotion gate or of a pin.
    pub fn training_held(&mut self, card: &ModelCard, now: Instant, now_ms: i64) {
        self.schedule.hold(&self.detector, card, now, now_ms);
    }

    /// Length of the history that a first model needs.
    pub fn required_history(&self) -> Duration {
        self.schedule.required_history()
    }

    /// Share of the history that a first model needs, in [0, 1]; 1 with a permanent model.
    pub fn progress(&self, now: Instant) -> f64 {
        if self.models.has_permanent_champion() {
            return 1.0;
        }
        self.schedule.progress(&self.detector, self.last_received, now)
    }

    /// Training made the champion, or found it in the registry.
    pub fn training_succeeded(&mut self, now: Instant, now_ms: i64) {
        self.schedule.end_training();
        if let Some(serving) = self.models.champion() {
            self.schedule.schedule_after_start(&self.detector, &serving.info().card, now, now_ms);
        }
    }
}
