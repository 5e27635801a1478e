//! The rows that each endpoint has, and the rows that it gets next.

use super::incident_log::IncidentLog;
use crate::detector::Detector;
use crate::pipeline::output_series::{Cursor, OutputRows, OutputSeries};
use crate::prom::{Labels, Sample};
use crate::remote_write::FailureReason;
use crate::remote_write::message::{CHAMPION_SERIES, MAX_SAMPLES_PER_ROW};
use crate::train::WriteWatermark;
use crate::window::{ModelRole, Score, Window};
use std::collections::BTreeMap;
use std::time::Instant;

/// The data that the outputs of a group are computed from.
#[derive(Clone, Copy)]
pub struct OutputSource<'a> {
    /// The detector.
    pub detector: &'a Detector,
    /// Labels of the group.
    pub group: &'a Labels,
    /// The scores.
    pub window: &'a Window,
    /// The contributions.
    pub incidents: &'a IncidentLog,
}

/// Consecutive rows for one endpoint.
pub struct OutputSlice {
    /// Timestamp of the newest row.
    pub newest_ms: i64,
    /// Arrival of the newest row's last sample.
    pub received_at: Instant,
    /// The samples of each series. Empty if only series end that were never written.
    pub series: BTreeMap<OutputSeries, Vec<Sample>>,
}

/// See the [module](self).
pub struct Publication {
    cursors: Vec<Cursor>,
    /// Rows up to here were scored and written by an earlier process.
    written_to_ms: i64,
    /// Timestamp of the newest scored row, and arrival of its last sample.
    newest_scored: Option<(i64, Instant)>,
    /// Timestamps of rows that hold only staleness markers, and the time at which each was closed.
    stale_rows: BTreeMap<i64, Instant>,
}

impl Publication {
    /// Nothing is scored yet, for this many endpoints.
    pub fn new(n_endpoints: usize) -> Self {
        Self {
            cursors: vec![Cursor::after(i64::MIN); n_endpoints],
            written_to_ms: i64::MIN,
            newest_scored: None,
            stale_rows: BTreeMap::new(),
        }
    }

    /// The state after a restart. An endpoint without a saved cursor starts at the newest score, since older scores
    /// belong to the old endpoints.
    pub fn restore(
        newest_scored_ms: Option<i64>,
        cursors: impl Iterator<Item = Option<i64>>,
        stale_rows: impl IntoIterator<Item = i64>,
        now: Instant,
    ) -> Self {
        let newest_ms = newest_scored_ms.unwrap_or(i64::MIN);
        Self {
            cursors: cursors.map(|done_ms| Cursor::after(done_ms.unwrap_or(newest_ms))).collect(),
            written_to_ms: i64::MIN,
            newest_scored: newest_scored_ms.map(|newest_ms| (newest_ms, now)),
            stale_rows: stale_rows.into_iter().map(|timestamp_ms| (timestamp_ms, now)).collect(),
        }
    }

    /// Continues after the scores that the endpoints have.
    pub fn start_after(&mut self, watermark: &WriteWatermark) {
        self.written_to_ms = watermark.to_ms.unwrap_or(self.written_to_ms);
        let n_endpoints = self.cursors.len();
        for (endpoint, cursor) in self.cursors.iter_mut().enumerate() {
            // A row that an endpoint lacks is lost there, even if a snapshot says otherwise. Of several endpoints,
            // the snapshot has a newer state of one that is not read than the others do.
            let endpoint_ms = watermark.by_endpoint.get(endpoint).copied().flatten();
            let snapshot_ms = (n_endpoints > 1 && cursor.done_ms > i64::MIN).then_some(cursor.done_ms);
            if let Some(done_ms) = endpoint_ms.or(snapshot_ms).or(watermark.to_ms) {
                *cursor = Cursor::after(done_ms);
            }
        }
    }

    /// Sets the open series and the pending samples of each cursor.
    pub fn resume_cursors(&mut self, source: OutputSource<'_>) {
        let resumed = self.cursors.iter().map(|cursor| {
            let done_ms = cursor.done_ms;
            let open_row = self.rows(source, done_ms.saturating_sub(1), done_ms, 1).remove(&done_ms);
            let open_series = open_row.unwrap_or_default().into_keys().collect();
            (open_series, source.n_champion_samples_after(done_ms))
        });
        let resumed: Vec<_> = resumed.collect();
        for (cursor, (open_series, pending)) in self.cursors.iter_mut().zip(resumed) {
            cursor.resume(open_series, pending);
        }
    }

    /// Records that every endpoint has the rows up to here, from an earlier process or another one.
    pub fn mark_written(&mut self, timestamp_ms: i64) {
        self.written_to_ms = self.written_to_ms.max(timestamp_ms);
        for cursor in self.cursors.iter_mut().filter(|cursor| cursor.done_ms < timestamp_ms) {
            *cursor = Cursor::after(timestamp_ms);
        }
    }

    /// True if every endpoint has the scores and the staleness markers up to here.
    pub fn is_published_until(&self, window: &Window, timestamp_ms: i64) -> bool {
        self.cursors.iter().all(|cursor| {
            let first_ms = cursor.done_ms.saturating_add(1);
            cursor.done_ms >= timestamp_ms
                || window.scores(ModelRole::Champion, cursor.done_ms, timestamp_ms).next().is_none()
                    && self.stale_rows.range(first_ms..=timestamp_ms).next().is_none()
        })
    }

    /// True if an earlier process scored and wrote this row.
    pub fn was_written(&self, timestamp_ms: i64) -> bool {
        timestamp_ms <= self.written_to_ms
    }

    /// Timestamp of the newest scored row.
    pub fn newest_scored_ms(&self) -> Option<i64> {
        self.newest_scored.map(|(newest_ms, _)| newest_ms)
    }

    /// Records a score that replaces `old`. Calls `on_failed` for each endpoint that will not get it, with the number
    /// of samples.
    pub fn record_score(
        &mut self,
        timestamp_ms: i64,
        old: Option<Score>,
        new: &Score,
        now: Instant,
        mut on_failed: impl FnMut(FailureReason, usize),
    ) {
        // Prometheus already has a score that was written, bit for bit.
        if !self.was_written(timestamp_ms) {
            let reason = if old.is_none() { FailureReason::OutOfOrder } else { FailureReason::Revised };
            let n_samples = n_champion_samples(new);
            for cursor in &mut self.cursors {
                if timestamp_ms <= cursor.dispatched_ms {
                    on_failed(reason, n_samples);
                } else if old.is_none() {
                    cursor.pending_samples += n_samples;
                }
            }
        }
        if self.newest_scored.is_none_or(|(newest_ms, _)| newest_ms < timestamp_ms) {
            self.newest_scored = Some((timestamp_ms, now));
        }
    }

    /// Records a row that holds only staleness markers.
    pub fn record_stale_row(&mut self, timestamp_ms: i64, now: Instant) {
        self.stale_rows.insert(timestamp_ms, now);
    }

    /// Timestamps of the stale rows, ascending.
    pub fn stale_rows(&self) -> impl Iterator<Item = i64> {
        self.stale_rows.keys().copied()
    }

    /// Forgets the stale rows up to this time.
    pub fn drop_stale_until(&mut self, timestamp_ms: i64) {
        while self.stale_rows.first_entry().is_some_and(|row| *row.key() <= timestamp_ms) {
            self.stale_rows.pop_first();
        }
    }

    /// The next rows of an endpoint and the staleness markers of series that end, at most `max_samples` samples and
    /// none after `to_ms`. Returns the same until the cursor advances.
    pub fn next_slice(
        &mut self,
        source: OutputSource<'_>,
        endpoint: usize,
        to_ms: i64,
        max_samples: usize,
    ) -> Option<OutputSlice> {
        let cursor = &self.cursors[endpoint];
        let done_ms = cursor.done_ms;
        // A challenger or contributions add series to a row.
        let is_champion_only = cursor.is_champion_only() && source.is_champion_only(done_ms, to_ms);
        let samples_of_a_row = if is_champion_only { CHAMPION_SERIES } else { MAX_SAMPLES_PER_ROW };
        let rows = self.rows(source, done_ms, to_ms, max_samples / samples_of_a_row);
        let (newest_ms, newest) = rows.last_key_value()?;
        let stale_at = self.stale_rows.get(newest_ms).filter(|_| newest.is_empty()).copied();
        let series = self.cursors[endpoint].next_samples(&rows);
        let received_at = stale_at.or(self.newest_scored.map(|(_, received_at)| received_at))?;
        Some(OutputSlice { newest_ms: *newest_ms, received_at, series })
    }

    /// The outputs of the first rows after `after_ms`.
    fn rows(&self, source: OutputSource<'_>, after_ms: i64, to_ms: i64, max_rows: usize) -> OutputRows {
        let stale_rows = self.stale_rows().filter(|then| (after_ms + 1..=to_ms).contains(then));
        let stale_rows = stale_rows.map(|timestamp_ms| (timestamp_ms, BTreeMap::new()));
        let scored = source.window.scores(ModelRole::Champion, after_ms, to_ms).take(max_rows);
        let scored = scored.map(|(timestamp_ms, score)| {
            (timestamp_ms, OutputSeries::of_score(ModelRole::Champion, &score).collect())
        });
        // A late sample may have completed a stale row: the score stays.
        let mut rows: OutputRows = stale_rows.chain(scored).collect();
        while rows.len() > max_rows {
            rows.pop_last();
        }
        source.add_other_outputs(&mut rows);
        rows
    }

    /// Number of samples that have left the window before this endpoint got them, since the last call.
    pub fn take_left_window(&mut self, source: OutputSource<'_>, endpoint: usize) -> usize {
        let cursor = &mut self.cursors[endpoint];
        if cursor.pending_samples == 0 || cursor.done_ms >= source.window.start_ms() {
            return 0;
        }
        let in_window = source.n_champion_samples_after(cursor.done_ms);
        let left_window = cursor.pending_samples.saturating_sub(in_window);
        cursor.pending_samples -= left_window;
        left_window
    }

    /// True if this endpoint has all scores and all staleness markers.
    pub fn is_published(&self, endpoint: usize) -> bool {
        let newest_stale_ms = self.stale_rows.keys().next_back().copied();
        let newest_ms = self.newest_scored_ms().max(newest_stale_ms);
        newest_ms.is_none_or(|newest_ms| newest_ms <= self.cursors[endpoint].done_ms)
    }

    /// Advances a cursor. True if it moved.
    pub fn advance(&mut self, endpoint: usize, timestamp_ms: i64) -> bool {
        let mut has_moved = false;
        if let Some(cursor) = self.cursors.get_mut(endpoint) {
            has_moved = cursor.done_ms < timestamp_ms;
            cursor.advance(timestamp_ms);
        }
        let done_ms = self.done_ms().min().unwrap_or(i64::MAX);
        self.drop_stale_until(done_ms);
        has_moved
    }

    /// For each endpoint, the timestamp up to which it has all rows.
    pub fn done_ms(&self) -> impl Iterator<Item = i64> {
        self.cursors.iter().map(|cursor| cursor.done_ms)
    }

    /// Number of rows beyond a cursor, up to `timestamp_ms`, that lie after `after_ms` and not after `to_ms`.
    pub fn rows_between(
        &self,
        window: &Window,
        endpoint: usize,
        timestamp_ms: i64,
        after_ms: i64,
        to_ms: i64,
    ) -> usize {
        let done_ms = self.cursors.get(endpoint).map_or(i64::MAX, |cursor| cursor.done_ms);
        if done_ms >= to_ms {
            return 0;
        }
        window.scores(ModelRole::Champion, done_ms.max(after_ms), timestamp_ms.min(to_ms)).count()
    }

    /// The series that are open at an endpoint, and the time of its last row.
    pub fn unterminated(&self, endpoint: usize) -> (impl Iterator<Item = &OutputSeries>, i64) {
        let cursor = &self.cursors[endpoint];
        (cursor.unterminated(), cursor.dispatched_ms)
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

impl OutputSource<'_> {
    /// True if the rows in `(after_ms, to_ms]` have outputs of the champion only.
    fn is_champion_only(self, after_ms: i64, to_ms: i64) -> bool {
        self.window.scores(ModelRole::Challenger, after_ms, to_ms).next().is_none()
            && self.incidents.newest_ms().is_none_or(|newest_ms| newest_ms <= after_ms)
    }

    /// Samples of the champion's rows after this time.
    fn n_champion_samples_after(self, after_ms: i64) -> usize {
        let scores = self.window.scores(ModelRole::Champion, after_ms, i64::MAX);
        scores.map(|(_, score)| n_champion_samples(&score)).sum()
    }

    /// Adds the outputs of the challenger and the contributions to these rows.
    fn add_other_outputs(self, rows: &mut OutputRows) {
        let (Some((first_ms, _)), Some((last_ms, _))) = (rows.first_key_value(), rows.last_key_value())
        else {
            return;
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
                    OutputSeries::of_contribution(contribution, &self.detector.name, self.group)
                };
                row.extend(contributions.iter().flat_map(of_contribution));
            }
        }
    }
}

/// Number of samples that a score of the champion is written as.
fn n_champion_samples(score: &Score) -> usize {
    OutputSeries::of_score(ModelRole::Champion, score).count()
}
