//! Scores the rows of a group, and closes those whose grace period is over.
//!
//! The sender chooses the number of rows, and each row costs every feature of the model. A [`WorkBudget`] bounds the
//! rows of one command; the group keeps the others for the next one.

use super::closing::{RowEnd, RowFacts, classify};
use super::continuation::{Continuation, MAX_CANDIDATES};
use super::event::{GroupEvent, RowState};
use super::incident_log::IncidentLog;
use super::publication::Publication;
use super::row_tracker::RowTracker;
use super::series_origins::SeriesOrigins;
use super::serving_slots::ServingSlots;
use crate::features::Row;
use crate::features::counter::CounterEvent;
use crate::pipeline::serving::{RowResult, ServingModel};
use crate::window::grid::Grid;
use crate::window::{ModelRole, Score, Window};
use std::time::{Duration, Instant};

/// Values of features that one command reads at most: 16 rows of 1,000 features, 300 rows of 20.
const VALUES_PER_COMMAND: usize = 1 << 14;
/// Cost of a row in addition to its features, in values.
const ROW_COST: usize = 32;

/// The work that one command may still do on the rows of groups.
#[derive(Clone, Copy, Debug)]
pub struct WorkBudget {
    values: usize,
}

impl Default for WorkBudget {
    fn default() -> Self {
        Self { values: VALUES_PER_COMMAND }
    }
}

impl WorkBudget {
    /// True if nothing is left.
    pub fn is_spent(self) -> bool {
        self.values == 0
    }

    /// Takes the cost of a row with this many features. False if nothing is left; the last row may exceed the budget.
    fn take_row(&mut self, n_features: usize) -> bool {
        let is_left = !self.is_spent();
        self.take(n_features + ROW_COST);
        is_left
    }

    /// Number of rows with this many features that the budget suffices for.
    fn n_rows(self, n_features: usize) -> usize {
        self.values.div_ceil(n_features + ROW_COST)
    }

    fn take(&mut self, values: usize) {
        self.values = self.values.saturating_sub(values);
    }
}

/// The result of work on the rows of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    /// True if a row was scored or closed.
    pub has_changed: bool,
    /// True if no row waits for more budget.
    pub is_finished: bool,
}

/// A row with its new score.
struct ScoredRow {
    timestamp_ms: i64,
    old: Option<Score>,
    result: RowResult,
    counter_events: Vec<CounterEvent>,
    is_finite: bool,
    /// True if the row was counted when it was closed.
    is_counted: bool,
}

/// The progress of a model that scores rows in order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RowProgress {
    Scored,
    Passed,
    Waiting,
}

/// The parts of a group that scoring reads and changes.
pub struct RowScoring<'a, F> {
    /// The grace period of rows.
    pub grace: Duration,
    /// The samples and scores.
    pub window: &'a mut Window,
    /// The models.
    pub models: &'a mut ServingSlots,
    /// The rows that are not final.
    pub rows: &'a mut RowTracker,
    /// The series of the features.
    pub origins: &'a mut SeriesOrigins,
    /// The incidents.
    pub incidents: &'a mut IncidentLog,
    /// The rows that endpoints have.
    pub publication: &'a mut Publication,
    /// Set if anything that `/metrics` shows has changed.
    pub metrics_dirty: &'a mut bool,
    /// Set if anything in the snapshot has changed.
    pub snapshot_dirty: &'a mut bool,
    /// The present.
    pub now: Instant,
    /// Receives the events.
    pub on_event: F,
}

impl<F: FnMut(GroupEvent)> RowScoring<'_, F> {
    /// Scores the rows that have new samples since the last call.
    pub fn score_touched(&mut self, budget: &mut WorkBudget) -> Advance {
        if self.models.is_sequential() {
            return self.score_in_order(budget);
        }
        let n_features = self.models.n_features();
        let mut touched = self.rows.take_touched(self.window, self.models.schema());
        let mut has_changed = false;
        while let Some(key) = touched.pop_first() {
            if !budget.take_row(n_features) {
                touched.insert(key);
                break;
            }
            has_changed |= self.score_row(key);
        }
        let is_finished = touched.is_empty();
        self.rows.put_back(touched);
        Advance { has_changed, is_finished }
    }

    fn score_row(&mut self, key: i64) -> bool {
        let Some(serving) = self.models.champion_mut() else { return false };
        let mut counter_events = Vec::new();
        let row = serving.read_row(self.window, key, |event| counter_events.push(event));
        let Row::Complete { timestamp_ms, .. } = row else { return false };
        let is_counted = self.rows.close(key).is_none() && self.rows.was_without_model(timestamp_ms);
        let old = self.window.score(ModelRole::Champion, timestamp_ms);
        let is_final = timestamp_ms <= serving.frozen_to_ms || self.publication.was_written(timestamp_ms);
        if old.is_some() && is_final {
            return false;
        }
        let Some(result) = serving.score(timestamp_ms) else { return false };
        if old == Some(result.score) {
            return false;
        }
        let is_finite = serving.is_row_finite();
        self.store_score(ScoredRow { timestamp_ms, old, result, counter_events, is_finite, is_counted });
        true
    }

    /// Scores the rows after the newest scored one in order, up to the first that still waits for samples.
    fn score_in_order(&mut self, budget: &mut WorkBudget) -> Advance {
        let mut advance = Advance { has_changed: false, is_finished: true };
        let grid = self.models.schema().map_or(Grid::Exact, |schema| schema.grid);
        let scanned_to_ms = self.rows.start_scan(grid);
        let Some(serving) = self.models.champion() else { return advance };
        let n_features = serving.schema().features.len();
        let after_ms = serving.processed_to_ms.max(scanned_to_ms);
        let n_times = budget.n_rows(n_features) + 1;
        let times: Vec<i64> = self.window.timestamps(after_ms, i64::MAX).take(n_times).collect();
        for time in times {
            let key = grid.bounds(time).1;
            if !budget.take_row(n_features) {
                advance.is_finished = false;
                break;
            }
            match self.process_row(key) {
                RowProgress::Scored => advance.has_changed = true,
                RowProgress::Passed => {}
                RowProgress::Waiting => break,
            }
            self.rows.scan_to(key);
        }
        advance
    }

    /// Scores a row unless the champion has processed it.
    fn process_row(&mut self, key: i64) -> RowProgress {
        let Some(serving) = self.models.champion_mut() else { return RowProgress::Waiting };
        if key <= serving.processed_to_ms {
            return RowProgress::Passed;
        }
        let mut counter_events = Vec::new();
        let row = serving.read_row(self.window, key, |event| counter_events.push(event));
        match row {
            Row::Complete { timestamp_ms, is_full_range: true } => {
                return self.score_next(key, timestamp_ms, counter_events);
            }
            Row::Complete { is_full_range: false, .. } => {
                serving.processed_to_ms = key;
                if self.rows.close(key).is_some() {
                    (self.on_event)(GroupEvent::Row(RowState::TooShort));
                }
            }
            // The row has samples of other features only.
            Row::Missing(missing)
                if missing.len() == serving.schema().features.len()
                    && !serving.has_staleness_marker(self.window, key) => {}
            Row::Missing(_) | Row::TooFewSamples(_) if self.rows.is_open(key) => return RowProgress::Waiting,
            Row::Missing(_) | Row::TooFewSamples(_) => serving.processed_to_ms = key,
        }
        RowProgress::Passed
    }

    /// Scores the complete row that was read last, the next one in order.
    fn score_next(&mut self, key: i64, timestamp_ms: i64, counter_events: Vec<CounterEvent>) -> RowProgress {
        let Some(serving) = self.models.champion_mut() else { return RowProgress::Waiting };
        serving.processed_to_ms = key;
        let scored = serving.score(timestamp_ms);
        let is_counted = self.rows.close(key).is_none() && self.rows.was_without_model(timestamp_ms);
        let Some(result) = scored else { return RowProgress::Passed };
        let old = self.window.score(ModelRole::Champion, timestamp_ms);
        // Scores of earlier models stay, even if only an endpoint has them. The row still advances the state of the
        // detection.
        let was_scored_before = old.is_some() || self.publication.was_written(timestamp_ms);
        if timestamp_ms <= serving.frozen_to_ms && was_scored_before {
            return RowProgress::Passed;
        }
        let is_finite = serving.is_row_finite();
        self.store_score(ScoredRow { timestamp_ms, old, result, counter_events, is_finite, is_counted });
        RowProgress::Scored
    }

    /// Stores the score of a row and emits its events.
    fn store_score(&mut self, row: ScoredRow) {
        let ScoredRow { timestamp_ms, old, result, counter_events, is_finite, is_counted } = row;
        let RowResult { score, incident, contributions } = result;
        *self.snapshot_dirty = true;
        self.window.set_score(ModelRole::Champion, timestamp_ms, score);
        if old.is_none() && !self.publication.was_written(timestamp_ms) {
            if !is_counted {
                (self.on_event)(GroupEvent::Row(RowState::Complete));
            }
            counter_events.into_iter().for_each(|event| (self.on_event)(GroupEvent::Counter(event)));
            if !is_finite {
                (self.on_event)(GroupEvent::NotFinite);
            }
            self.models.record_decision(timestamp_ms, score.decision);
            *self.metrics_dirty |= self.rows.set_missing_features(0);
        }
        let on_event = &mut self.on_event;
        self.publication.record_score(timestamp_ms, old, &score, self.now, |reason, n_samples| {
            on_event(GroupEvent::SamplesFailed(reason, n_samples));
        });
        let start_ms = self.window.start_ms();
        self.publication.drop_stale_until(start_ms);
        *self.metrics_dirty |= self.incidents.record(timestamp_ms, incident, contributions, start_ms);
        if let Some(score) = self.models.challenger_score(self.window, timestamp_ms) {
            self.window.set_score(ModelRole::Challenger, timestamp_ms, score);
        }
    }

    /// Closes the rows up to `to_ms` whose grace period is over. `newest_ms` is the newest row.
    pub fn close_overdue(&mut self, to_ms: i64, newest_ms: Option<i64>, budget: &mut WorkBudget) -> Advance {
        let n_features = self.models.n_features();
        let newest = newest_ms.map(|newest_ms| self.models.row_key(newest_ms));
        let was_spent = budget.is_spent();
        let mut has_changed = false;
        for key in self.rows.overdue(self.grace, to_ms, self.now, budget.n_rows(n_features) + 1) {
            if !budget.take_row(n_features) {
                // Rows that wait for an earlier one are looked at again by the next tick.
                return Advance { has_changed, is_finished: !has_changed && !was_spent };
            }
            // The stream ended within this row: a gap fill brings the rest once the stream resumes.
            if newest == Some(key) && self.is_partial(key) {
                continue;
            }
            has_changed |= self.close_row(key, budget);
        }
        Advance { has_changed, is_finished: true }
    }

    /// Closes a row. False if it waits for an earlier row.
    fn close_row(&mut self, key: i64, budget: &mut WorkBudget) -> bool {
        let Some(open_row) = self.rows.close(key) else { return false };
        let Some(serving) = self.models.champion_mut() else {
            self.rows.record_without_model(open_row.timestamp_ms);
            (self.on_event)(GroupEvent::Row(RowState::NoModel));
            return true;
        };
        let row = serving.read_row(self.window, key, |_| {});
        if let Row::Missing(missing) = &row
            && self.continue_features(key, missing, budget)
        {
            self.rows.reopen(key, open_row);
            return true;
        }
        let Some(serving) = self.models.champion() else { return false };
        let facts = row_facts(&row, key, serving, self.window, self.publication, self.grace);
        let bounds = serving.schema().grid.bounds(key);
        let state = match classify(&row, facts) {
            RowEnd::None => return true,
            RowEnd::Waiting => {
                self.rows.reopen(key, open_row);
                return false;
            }
            RowEnd::Closed(state) => state,
        };
        match (state, row) {
            (RowState::Stale, _) => self.close_stale_row(bounds),
            (_, Row::Missing(missing)) => {
                *self.metrics_dirty |= self.rows.set_missing_features(missing.len());
            }
            _ => {}
        }
        (self.on_event)(GroupEvent::Row(state));
        true
    }

    /// Lets the model go on with the features of a row that are missing, if series with other labels continue them. True
    /// if they do: the row and those after it are scored.
    fn continue_features(&mut self, key: i64, missing: &[usize], budget: &mut WorkBudget) -> bool {
        let Some(serving) = self.models.champion() else { return false };
        let schema = serving.schema();
        let bounds = schema.grid.bounds(key);
        if self.window.features().count() <= schema.features.len() {
            return false;
        }
        budget.take(missing.len() * MAX_CANDIDATES);
        let Some(continuation) = Continuation::find(schema, self.window, bounds, missing, self.grace) else {
            return false;
        };
        for (column, sample) in continuation.lookback {
            self.window.push(column, sample);
        }
        self.models.rename_features(&continuation.renamed, self.window);
        let rows = self.window.timestamps(bounds.0, i64::MAX).map(|then| self.models.row_key(then));
        self.rows.touch_all(rows);
        let n_features = continuation.renamed.len();
        continuation.label_names.iter().for_each(|name| self.origins.count_continued(name, n_features));
        *self.snapshot_dirty = true;
        true
    }

    /// Records the end of all series at the row within these bounds.
    fn close_stale_row(&mut self, (after_ms, to_ms): (i64, i64)) {
        if let Some(timestamp_ms) = self.window.timestamps(after_ms, to_ms).last() {
            self.publication.record_stale_row(timestamp_ms, self.now);
        }
        *self.snapshot_dirty = true;
    }

    /// True if a row has some features of the model and lacks others.
    fn is_partial(&mut self, key: i64) -> bool {
        let Some(serving) = self.models.champion_mut() else { return false };
        let row = serving.read_row(self.window, key, |_| {});
        matches!(row, Row::Missing(missing) if missing.len() < serving.schema().features.len())
            && !serving.has_staleness_marker(self.window, key)
    }
}

/// The facts about a row that its end depends on.
fn row_facts(
    row: &Row,
    key: i64,
    serving: &ServingModel,
    window: &Window,
    publication: &Publication,
    grace: Duration,
) -> RowFacts {
    let mut facts = RowFacts {
        n_features: serving.schema().features.len(),
        has_staleness_marker: serving.has_staleness_marker(window, key),
        is_model_unfed: !serving.is_fed(window, key, grace),
        is_sequential: serving.is_sequential(),
        is_next: key > serving.processed_to_ms,
        ..RowFacts::default()
    };
    if let Row::Complete { timestamp_ms, .. } = *row {
        facts.is_scored = publication.was_written(timestamp_ms)
            || window.score(ModelRole::Champion, timestamp_ms).is_some();
        facts.is_frozen = timestamp_ms <= serving.frozen_to_ms;
    }
    facts
}
