//! What targets have of a group's rows, and what they are handed next.

use super::{Group, samples_of};
use crate::pipeline::outputs::{self, Cursor, Output, Rows};
use crate::prom::Labels;
use crate::publish::{self, Position, Series};
use crate::window::Voice;
use std::collections::BTreeMap;

impl Group {
    /// Tells the cursors what is alive where they stand, and what waits beyond.
    pub(super) fn resume_cursors(&mut self) {
        for target in 0..self.cursors.len() {
            let done_ms = self.cursors[target].done_ms;
            let alive = self.rows(done_ms.saturating_sub(1), done_ms, 1).remove(&done_ms).unwrap_or_default();
            let beyond = self.window.scores(Voice::Champion, done_ms, i64::MAX);
            let waiting = beyond.map(|(_, score)| samples_of(&score)).sum();
            self.cursors[target].resume(alive.into_keys().collect(), waiting);
        }
    }

    /// Appends the scores beyond a target's cursor, and the ends of series that stop, at most `max_samples` of
    /// them and none after `to_ms`. Returns the number of samples.
    pub fn unpublished(
        &mut self,
        id: u32,
        target: usize,
        to_ms: i64,
        max_samples: usize,
        batch: &mut publish::Batch,
    ) -> usize {
        let cursor = &self.cursors[target];
        let done_ms = cursor.done_ms;
        // A challenger may speak too, or have done so when these rows came; an incident has causes.
        let is_plain = cursor.is_plain()
            && self.window.scores(Voice::Challenger, done_ms, to_ms).next().is_none()
            && self.causes.back().is_none_or(|(newest_ms, _)| *newest_ms <= done_ms);
        let samples_of_a_row =
            if is_plain { outputs::SAMPLES_OF_A_PLAIN_ROW } else { publish::SAMPLES_OF_A_ROW };
        let rows = self.rows(done_ms, to_ms, max_samples / samples_of_a_row);
        let Some((newest_ms, newest)) = rows.last_key_value() else { return 0 };
        let (newest_ms, is_end) = (*newest_ms, newest.is_empty());
        let series = self.cursors[target].hand_out(&rows);
        if series.is_empty() {
            // The end of what was never written.
            self.advance(target, newest_ms);
            return 0;
        }
        let closed = self.ended.get(&newest_ms).filter(|_| is_end).copied();
        let scored = self.newest_scored.map(|(_, received)| received);
        let Some(received) = closed.or(scored) else { return 0 };
        let n_samples = series.values().map(Vec::len).sum();
        batch.series.extend(series.into_iter().map(|(output, samples)| Series {
            labels: output.labels(&self.detector, &self.labels),
            samples,
        }));
        batch.positions.push(Position { group: id, timestamp_ms: newest_ms, received });
        n_samples
    }

    /// What the first rows after `after_ms` say.
    fn rows(&self, after_ms: i64, to_ms: i64, max_rows: usize) -> Rows {
        let ended = self.ended.keys().filter(|then| (after_ms + 1..=to_ms).contains(*then));
        let ended = ended.map(|timestamp_ms| (*timestamp_ms, BTreeMap::new()));
        let scored = self.window.scores(Voice::Champion, after_ms, to_ms).take(max_rows);
        let scored = scored
            .map(|(timestamp_ms, score)| (timestamp_ms, Output::of_score(Voice::Champion, &score).collect()));
        // A late sample may have completed a row that had ended: then the score stays.
        let mut rows: Rows = ended.chain(scored).collect();
        while rows.len() > max_rows {
            rows.pop_last();
        }
        let (Some((first_ms, _)), Some((last_ms, _))) = (rows.first_key_value(), rows.last_key_value())
        else {
            return rows;
        };
        let (first_ms, last_ms) = (*first_ms, *last_ms);
        for (timestamp_ms, score) in self.window.scores(Voice::Challenger, first_ms - 1, last_ms) {
            if let Some(row) = rows.get_mut(&timestamp_ms) {
                row.extend(Output::of_score(Voice::Challenger, &score));
            }
        }
        let start = self.causes.partition_point(|(then, _)| *then < first_ms);
        for (timestamp_ms, causes) in self.causes.range(start..).take_while(|(then, _)| *then <= last_ms) {
            if let Some(row) = rows.get_mut(timestamp_ms) {
                let of_cause = |cause| Output::of_cause(cause, &self.detector.name, &self.labels);
                row.extend(causes.iter().flat_map(of_cause));
            }
        }
        rows
    }

    /// Samples that left the window before this target had them, since the last call.
    pub fn take_outlived(&mut self, target: usize) -> usize {
        let cursor = &mut self.cursors[target];
        if cursor.waiting == 0 || cursor.done_ms >= self.window.start_ms() {
            return 0;
        }
        let here = self.window.scores(Voice::Champion, cursor.done_ms, i64::MAX);
        let here = here.map(|(_, score)| samples_of(&score)).sum();
        let outlived = cursor.waiting.saturating_sub(here);
        cursor.waiting -= outlived;
        outlived
    }

    /// Has this target all scores, and all ends?
    pub fn is_published(&self, target: usize) -> bool {
        let ended_ms = self.ended.keys().next_back().copied();
        self.newest_scored_ms()
            .max(ended_ms)
            .is_none_or(|newest_ms| newest_ms <= self.cursors[target].done_ms)
    }

    /// Moves a target's cursor.
    pub fn advance(&mut self, target: usize, timestamp_ms: i64) {
        if let Some(cursor) = self.cursors.get_mut(target) {
            self.unsaved |= cursor.done_ms < timestamp_ms;
            cursor.advance(timestamp_ms);
        }
        let done_ms = self.cursors.iter().map(|cursor| cursor.done_ms).min().unwrap_or(i64::MAX);
        self.ended.retain(|then, _| *then > done_ms);
    }

    /// Rows beyond a target's cursor and up to `timestamp_ms` that lie after `after_ms` and up to `to_ms`.
    pub fn rows_between(&self, target: usize, timestamp_ms: i64, after_ms: i64, to_ms: i64) -> usize {
        let done_ms = self.cursors.get(target).map_or(i64::MAX, |cursor| cursor.done_ms);
        if done_ms >= to_ms {
            return 0;
        }
        self.window.scores(Voice::Champion, done_ms.max(after_ms), timestamp_ms.min(to_ms)).count()
    }

    /// The series that a target may have and that nobody ends when the group goes, and the time of its last row.
    pub fn left_open(&self, target: usize) -> (impl Iterator<Item = Labels>, i64) {
        let cursor = &self.cursors[target];
        (cursor.open().map(|output| output.labels(&self.detector, &self.labels)), cursor.handed_out_ms)
    }

    /// Samples that targets wait for.
    pub fn waiting(&self) -> usize {
        self.cursors.iter().map(|cursor| cursor.waiting).sum()
    }

    /// Works for other targets: each was this one before, or is new. A new one begins at the newest
    /// score: what is older was the others'.
    pub fn retarget(&mut self, kept: &[Option<usize>]) {
        let new = Cursor::after(self.newest_scored_ms().unwrap_or(i64::MIN));
        let cursor = |old: &Option<usize>| old.map_or_else(|| new.clone(), |old| self.cursors[old].clone());
        self.cursors = kept.iter().map(cursor).collect();
    }

    /// Begins again with the oldest score.
    #[cfg(test)]
    pub fn rewind(&mut self) {
        self.cursors.fill(Cursor::after(i64::MIN));
    }
}
