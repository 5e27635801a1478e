//! Scores the rows of a group, and closes those whose grace period is over.

use super::Group;
use super::closing::{RowEnd, RowFacts, classify};
use super::event::{GroupEvent, RowState};
use crate::features::Row;
use crate::features::counter::CounterEvent;
use crate::pipeline::serving::Contribution;
use crate::time;
use crate::window::{ModelRole, Score};
use std::time::Instant;

/// A row with its new score.
struct ScoredRow {
    timestamp_ms: i64,
    old: Option<Score>,
    score: Score,
    contributions: Vec<Contribution>,
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

impl Group {
    /// Scores the rows that have new samples since the last call. Returns true if there is a new score.
    pub fn score_touched(&mut self, now: Instant, on_event: &mut impl FnMut(GroupEvent)) -> bool {
        if self.gaps.is_holding() {
            return false;
        }
        if self.models.is_sequential() {
            return self.score_in_order(now, on_event);
        }
        let touched = self.rows.take_touched(&self.window, self.models.schema());
        let mut scored = false;
        for key in touched {
            scored |= self.score_row(key, now, on_event);
        }
        scored
    }

    fn score_row(&mut self, key: i64, now: Instant, on_event: &mut impl FnMut(GroupEvent)) -> bool {
        let Some(serving) = self.models.champion_mut() else { return false };
        let mut counter_events = Vec::new();
        let row = serving.read_row(&self.window, key, |event| counter_events.push(event));
        let Row::Complete { timestamp_ms, .. } = row else { return false };
        let is_counted = self.rows.close(key).is_none() && self.rows.was_without_model(timestamp_ms);
        let old = self.window.score(ModelRole::Champion, timestamp_ms);
        let is_final = timestamp_ms <= serving.frozen_to_ms || self.publication.was_written(timestamp_ms);
        if old.is_some() && is_final {
            return false;
        }
        let Some((score, contributions)) = serving.score(timestamp_ms) else { return false };
        if old == Some(score) {
            return false;
        }
        let is_finite = serving.is_row_finite();
        let row =
            ScoredRow { timestamp_ms, old, score, contributions, counter_events, is_finite, is_counted };
        self.store_score(row, now, on_event);
        true
    }

    /// Scores the rows after the newest scored one in order, up to the first that still waits for samples.
    fn score_in_order(&mut self, now: Instant, on_event: &mut impl FnMut(GroupEvent)) -> bool {
        self.rows.clear_touched();
        let Some(serving) = self.models.champion() else { return false };
        let grid = serving.schema().grid;
        let processed_to_ms = serving.processed_to_ms;
        let times: Vec<i64> = self.window.timestamps(processed_to_ms, i64::MAX).collect();
        let mut scored = false;
        for time in times {
            match self.process_row(grid.bounds(time).1, now, on_event) {
                RowProgress::Scored => scored = true,
                RowProgress::Passed => {}
                RowProgress::Waiting => break,
            }
        }
        scored
    }

    /// Scores a row unless the champion has processed it.
    fn process_row(&mut self, key: i64, now: Instant, on_event: &mut impl FnMut(GroupEvent)) -> RowProgress {
        let Some(serving) = self.models.champion_mut() else { return RowProgress::Waiting };
        if key <= serving.processed_to_ms {
            return RowProgress::Passed;
        }
        let mut counter_events = Vec::new();
        let row = serving.read_row(&self.window, key, |event| counter_events.push(event));
        match row {
            Row::Complete { timestamp_ms, is_full_range: true } => {
                serving.processed_to_ms = key;
                let scored = serving.score(timestamp_ms);
                let is_counted = self.rows.close(key).is_none() && self.rows.was_without_model(timestamp_ms);
                let Some((score, contributions)) = scored else { return RowProgress::Passed };
                let old = self.window.score(ModelRole::Champion, timestamp_ms);
                // Scores of earlier models stay, even if only an endpoint has them. The row still advances the state
                // of the detection.
                let was_scored_before = old.is_some() || self.publication.was_written(timestamp_ms);
                if timestamp_ms <= serving.frozen_to_ms && was_scored_before {
                    return RowProgress::Passed;
                }
                let is_finite = serving.is_row_finite();
                let row = ScoredRow {
                    timestamp_ms,
                    old,
                    score,
                    contributions,
                    counter_events,
                    is_finite,
                    is_counted,
                };
                self.store_score(row, now, on_event);
                return RowProgress::Scored;
            }
            Row::Complete { is_full_range: false, .. } => {
                serving.processed_to_ms = key;
                if self.rows.close(key).is_some() {
                    on_event(GroupEvent::Row(RowState::TooShort));
                }
            }
            // The row has samples of other features only.
            Row::Missing(missing)
                if missing.len() == serving.schema().features.len()
                    && !serving.has_staleness_marker(&self.window, key) => {}
            Row::Missing(_) | Row::TooFewSamples(_) if self.rows.is_open(key) => return RowProgress::Waiting,
            Row::Missing(_) | Row::TooFewSamples(_) => serving.processed_to_ms = key,
        }
        RowProgress::Passed
    }

    /// Stores the score of a row and emits its events.
    fn store_score(&mut self, row: ScoredRow, now: Instant, on_event: &mut impl FnMut(GroupEvent)) {
        let ScoredRow { timestamp_ms, old, score, contributions, counter_events, is_finite, is_counted } =
            row;
        self.snapshot_dirty = true;
        self.window.set_score(ModelRole::Champion, timestamp_ms, score);
        if old.is_none() && !self.publication.was_written(timestamp_ms) {
            if !is_counted {
                on_event(GroupEvent::Row(RowState::Complete));
            }
            counter_events.into_iter().for_each(|event| on_event(GroupEvent::Counter(event)));
            if !is_finite {
                on_event(GroupEvent::NotFinite);
            }
            self.models.record_decision(timestamp_ms, score.decision);
            self.metrics_dirty |= self.rows.set_missing_features(0);
        }
        self.publication.record_score(timestamp_ms, old, &score, now, |reason, n_samples| {
            on_event(GroupEvent::SamplesFailed(reason, n_samples));
        });
        let start_ms = self.window.start_ms();
        self.publication.drop_stale_until(start_ms);
        let is_incident = score.incident_state.is_some_and(|state| state.is_incident);
        self.metrics_dirty |= self.incidents.record(timestamp_ms, is_incident, contributions, start_ms);
        if let Some(score) = self.models.challenger_score(&self.window, timestamp_ms) {
            self.window.set_score(ModelRole::Challenger, timestamp_ms, score);
        }
    }

    /// Closes the rows whose grace period is over. Returns true if there were any.
    pub fn close_rows(&mut self, now: Instant, now_ms: i64, on_event: &mut impl FnMut(GroupEvent)) -> bool {
        if self.gaps.is_holding() {
            return false;
        }
        // The grace period of a row ahead of the clock begins when the clock reaches it: the rows before it are yet to
        // come.
        let latest_ms = now_ms.saturating_add(time::CLOCK_SKEW_MS);
        let overdue_to_ms = latest_ms.saturating_sub(time::millis(self.detector.grace));
        let newest = self.window.newest_row_ms(latest_ms).map(|newest_ms| self.models.row_key(newest_ms));
        let mut any = false;
        for key in self.rows.overdue(self.detector.grace, overdue_to_ms, now) {
            // The stream ended within this row: a gap fill brings the rest once the stream resumes.
            if newest == Some(key) && self.is_partial(key) {
                continue;
            }
            any = true;
            self.close_row(key, now, on_event);
        }
        any
    }

    fn close_row(&mut self, key: i64, now: Instant, on_event: &mut impl FnMut(GroupEvent)) {
        let Some(open_row) = self.rows.close(key) else { return };
        let Some(serving) = self.models.champion_mut() else {
            self.rows.record_without_model(open_row.timestamp_ms);
            return on_event(GroupEvent::Row(RowState::NoModel));
        };
        let row = serving.read_row(&self.window, key, |_| {});
        let mut facts = RowFacts {
            n_features: serving.schema().features.len(),
            has_staleness_marker: serving.has_staleness_marker(&self.window, key),
            is_model_unfed: !serving.is_fed(&self.window, key, self.detector.grace),
            is_sequential: serving.is_sequential(),
            is_next: key > serving.processed_to_ms,
            ..RowFacts::default()
        };
        if let Row::Complete { timestamp_ms, .. } = row {
            facts.is_scored = self.publication.was_written(timestamp_ms)
                || self.window.score(ModelRole::Champion, timestamp_ms).is_some();
            facts.is_frozen = timestamp_ms <= serving.frozen_to_ms;
        }
        let bounds = serving.schema().grid.bounds(key);
        let state = match classify(&row, facts) {
            RowEnd::None => return,
            RowEnd::Waiting => return self.rows.reopen(key, open_row),
            RowEnd::Closed(state) => state,
        };
        match (state, row) {
            (RowState::Stale, _) => self.close_stale_row(bounds, now),
            (_, Row::Missing(missing)) => {
                self.metrics_dirty |= self.rows.set_missing_features(missing.len());
            }
            _ => {}
        }
        on_event(GroupEvent::Row(state));
    }

    /// Records the end of all series at the row within these bounds.
    fn close_stale_row(&mut self, (after_ms, to_ms): (i64, i64), now: Instant) {
        if let Some(timestamp_ms) = self.window.timestamps(after_ms, to_ms).last() {
            self.publication.record_stale_row(timestamp_ms, now);
        }
        self.snapshot_dirty = true;
    }

    /// True if a row has some features of the model and lacks others.
    fn is_partial(&mut self, key: i64) -> bool {
        let Some(serving) = self.models.champion_mut() else { return false };
        let row = serving.read_row(&self.window, key, |_| {});
        matches!(row, Row::Missing(missing) if missing.len() < serving.schema().features.len())
            && !serving.has_staleness_marker(&self.window, key)
    }
}
