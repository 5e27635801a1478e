//! The rows that each endpoint has, and the rows that it gets next.

use super::{Group, samples_per_row};
use crate::pipeline::output_series::{self, Cursor, OutputRows, OutputSeries};
use crate::prom::Labels;
use crate::remote_write::{self, CursorPosition, TimeSeries};
use crate::window::ModelRole;
use std::collections::BTreeMap;

impl Group {
    /// Sets the open series and the pending samples of each cursor.
    pub(super) fn resume_cursors(&mut self) {
        for endpoint in 0..self.cursors.len() {
            let done_ms = self.cursors[endpoint].done_ms;
            let open_series =
                self.output_rows(done_ms.saturating_sub(1), done_ms, 1).remove(&done_ms).unwrap_or_default();
            let beyond = self.window.scores(ModelRole::Champion, done_ms, i64::MAX);
            let pending = beyond.map(|(_, score)| samples_per_row(&score)).sum();
            self.cursors[endpoint].resume(open_series.into_keys().collect(), pending);
        }
    }

    /// Appends the scores beyond a cursor, and the staleness markers of series that end, at most `max_samples` samples
    /// and none after `to_ms`. Returns the number of samples.
    pub fn collect_unpublished(
        &mut self,
        id: u32,
        endpoint: usize,
        to_ms: i64,
        max_samples: usize,
        batch: &mut remote_write::Batch,
    ) -> usize {
        let cursor = &self.cursors[endpoint];
        let done_ms = cursor.done_ms;
        // A challenger or contributions add series to a row.
        let is_champion_only = cursor.is_champion_only()
            && self.window.scores(ModelRole::Challenger, done_ms, to_ms).next().is_none()
            && self.incidents.newest_ms().is_none_or(|newest_ms| newest_ms <= done_ms);
        let samples_of_a_row = if is_champion_only {
            output_series::MAX_SAMPLES_PER_CHAMPION_ROW
        } else {
            remote_write::MAX_SAMPLES_PER_ROW
        };
        let rows = self.output_rows(done_ms, to_ms, max_samples / samples_of_a_row);
        let Some((newest_ms, newest)) = rows.last_key_value() else { return 0 };
        let (newest_ms, is_stale) = (*newest_ms, newest.is_empty());
        let series = self.cursors[endpoint].next_samples(&rows);
        if series.is_empty() {
            // The end of a series that was never written.
            self.advance(endpoint, newest_ms);
            return 0;
        }
        let stale_received = self.rows.stale_at(newest_ms).filter(|_| is_stale);
        let scored = self.newest_scored.map(|(_, received)| received);
        let Some(received) = stale_received.or(scored) else { return 0 };
        let n_samples = series.values().map(Vec::len).sum();
        batch.series.extend(series.into_iter().map(|(output, samples)| TimeSeries {
            labels: output.labels(&self.detector, &self.labels),
            samples,
        }));
        batch.positions.push(CursorPosition { group: id, timestamp_ms: newest_ms, received_at: received });
        n_samples
    }

    /// The outputs of the first rows after `after_ms`.
    fn output_rows(&self, after_ms: i64, to_ms: i64, max_rows: usize) -> OutputRows {
        let stale_rows = self.rows.stale_times().filter(|then| (after_ms + 1..=to_ms).contains(then));
        let stale_rows = stale_rows.map(|timestamp_ms| (timestamp_ms, BTreeMap::new()));
        let scored = self.window.scores(ModelRole::Champion, after_ms, to_ms).take(max_rows);
        let scored = scored.map(|(timestamp_ms, score)| {
            (timestamp_ms, OutputSeries::of_score(ModelRole::Champion, &score).collect())
        });
        // A late sample may have completed a stale row: the score stays.
        let mut rows: OutputRows = stale_rows.chain(scored).collect();
        while rows.len() > max_rows {
            rows.pop_last();
        }
        let (Some((first_ms, _)), Some((last_ms, _))) = (rows.first_key_value(), rows.last_key_value())
        else {
            return rows;
        };
        let (first_ms, last_ms) = (*first_ms, *last_ms);
        for (timestamp_ms, score) in self.window.scores(ModelRole::Challenger, first_ms - 1, last_ms) {
            if let Some(row) = rows.get_mut(&timestamp_ms) {
                row.extend(OutputSeries::of_score(ModelRole::Challenger, &score));
            }
        }
        for (timestamp_ms, contributions) in self.incidents.contributions_between(first_ms, last_ms) {
            if let Some(row) = rows.get_mut(timestamp_ms) {
                let of_contribution = |contribution| {
                    OutputSeries::of_contribution(contribution, &self.detector.name, &self.labels)
                };
                row.extend(contributions.iter().flat_map(of_contribution));
            }
        }
        rows
    }

    /// Number of samples that have left the window before this endpoint got them, since the last call.
    pub fn take_left_window(&mut self, endpoint: usize) -> usize {
        let cursor = &mut self.cursors[endpoint];
        if cursor.pending_samples == 0 || cursor.done_ms >= self.window.start_ms() {
            return 0;
        }
        let in_window = self.window.scores(ModelRole::Champion, cursor.done_ms, i64::MAX);
        let in_window = in_window.map(|(_, score)| samples_per_row(&score)).sum();
        let left_window = cursor.pending_samples.saturating_sub(in_window);
        cursor.pending_samples -= left_window;
        left_window
    }

    /// True if this endpoint has all scores and all staleness markers.
    pub fn is_published(&self, endpoint: usize) -> bool {
        let stale_ms = self.rows.newest_stale_ms();
        self.newest_scored_ms()
            .max(stale_ms)
            .is_none_or(|newest_ms| newest_ms <= self.cursors[endpoint].done_ms)
    }

    /// Advances a cursor.
    pub fn advance(&mut self, endpoint: usize, timestamp_ms: i64) {
        if let Some(cursor) = self.cursors.get_mut(endpoint) {
            self.snapshot_dirty |= cursor.done_ms < timestamp_ms;
            cursor.advance(timestamp_ms);
        }
        let done_ms = self.cursors.iter().map(|cursor| cursor.done_ms).min().unwrap_or(i64::MAX);
        self.rows.drop_stale_until(done_ms);
    }

    /// Number of rows beyond a cursor, up to `timestamp_ms`, that lie after `after_ms` and not after `to_ms`.
    pub fn rows_between(&self, endpoint: usize, timestamp_ms: i64, after_ms: i64, to_ms: i64) -> usize {
        let done_ms = self.cursors.get(endpoint).map_or(i64::MAX, |cursor| cursor.done_ms);
        if done_ms >= to_ms {
            return 0;
        }
        self.window.scores(ModelRole::Champion, done_ms.max(after_ms), timestamp_ms.min(to_ms)).count()
    }

    /// The series that are open at an endpoint when the group goes, and the time of its last row.
    pub fn unterminated_series(&self, endpoint: usize) -> (impl Iterator<Item = Labels>, i64) {
        let cursor = &self.cursors[endpoint];
        (
            cursor.unterminated().map(|output| output.labels(&self.detector, &self.labels)),
            cursor.dispatched_ms,
        )
    }

    /// Samples that endpoints still wait for.
    pub fn n_pending_samples(&self) -> usize {
        self.cursors.iter().map(|cursor| cursor.pending_samples).sum()
    }

    /// Replaces the endpoints: each is one of the old ones, or new. A new one starts at the newest score, since older
    /// scores belong to the old endpoints.
    pub fn set_endpoints(&mut self, kept: &[Option<usize>]) {
        let new = Cursor::after(self.newest_scored_ms().unwrap_or(i64::MIN));
        let cursor = |old: &Option<usize>| old.map_or_else(|| new.clone(), |old| self.cursors[old].clone());
        self.cursors = kept.iter().map(cursor).collect();
    }

    /// Resets the cursors to the oldest score.
    #[cfg(test)]
    pub fn rewind(&mut self) {
        self.cursors.fill(Cursor::after(i64::MIN));
    }
}
