//! The rows of a group that are not final: open, touched and late ones.
//!
//! A row is keyed by the last timestamp that belongs to it, so that samples of one scrape share a key. The keys
//! depend on the model's grid; [`rekey`](RowTracker::rekey) follows when the model changes.

use crate::features::Schema;
use crate::window::Window;
use crate::window::grid::Grid;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A row that has no score yet.
#[derive(Clone, Copy, Debug)]
pub struct OpenRow {
    /// Timestamp of one of its samples.
    pub timestamp_ms: i64,
    /// Arrival of its first sample.
    pub since: Instant,
}

/// See the [module](self).
#[derive(Default)]
pub struct RowTracker {
    /// Rows without a score, by key.
    open: BTreeMap<i64, OpenRow>,
    /// Keys of the rows that received samples since the last scoring.
    touched: BTreeSet<i64>,
    /// Timestamps of samples that arrived after newer ones.
    late_samples: BTreeSet<i64>,
    /// Rows up to this key are scored, or have no sample of the model, since the last scan in order.
    scanned_to: Option<i64>,
    n_missing_features: usize,
    /// First and last timestamp of the rows that were closed before a model served. A model that comes later may score
    /// them, and each is counted once.
    closed_without_model: Option<(i64, i64)>,
}

impl RowTracker {
    /// The state after a restart: rows without a score are open.
    pub fn restore(unscored: impl Iterator<Item = i64>, now: Instant) -> Self {
        let open = unscored.map(|timestamp_ms| (timestamp_ms, OpenRow { timestamp_ms, since: now }));
        Self { open: open.collect(), ..Self::default() }
    }

    /// Records a sample of a row, and opens the row unless it has a score.
    pub fn touch(&mut self, key: i64, timestamp_ms: i64, is_scored: impl FnOnce() -> bool, now: Instant) {
        if self.touched.insert(key) && !is_scored() {
            self.open(key, timestamp_ms, now);
        }
    }

    /// Touches rows without opening them.
    pub fn touch_all(&mut self, keys: impl IntoIterator<Item = i64>) {
        self.touched.extend(keys);
    }

    /// Puts back touched rows that were not scored.
    pub fn put_back(&mut self, mut touched: BTreeSet<i64>) {
        self.touched.append(&mut touched);
    }

    /// Records a sample that arrived after newer ones.
    pub fn mark_late(&mut self, timestamp_ms: i64) {
        self.late_samples.insert(timestamp_ms);
    }

    /// The touched rows, and the later rows whose rates reach back to a late sample.
    pub fn take_touched(&mut self, window: &Window, schema: Option<&Schema>) -> BTreeSet<i64> {
        let mut touched = std::mem::take(&mut self.touched);
        let late_samples = std::mem::take(&mut self.late_samples);
        if let Some(schema) = schema {
            let lookback_ms = schema.transform.lookback_ms();
            let mut covered_to_ms = i64::MIN;
            for timestamp_ms in late_samples {
                let after_ms = covered_to_ms.max(timestamp_ms);
                covered_to_ms = timestamp_ms.saturating_add(lookback_ms);
                let later = window.timestamps(after_ms, covered_to_ms);
                touched.extend(later.map(|later_ms| schema.grid.bounds(later_ms).1));
            }
        }
        touched
    }

    /// Begins a scan of the rows in order, and returns the time up to which there is nothing new since the last scan.
    pub fn start_scan(&mut self, grid: Grid) -> i64 {
        let first_touched = std::mem::take(&mut self.touched).pop_first();
        self.late_samples.clear();
        let untouched_to = first_touched.map_or(i64::MAX, |key| grid.bounds(key).0);
        self.scanned_to = self.scanned_to.map(|key| key.min(untouched_to));
        self.scanned_to.unwrap_or(i64::MIN)
    }

    /// Records that the scan has passed this row.
    pub fn scan_to(&mut self, key: i64) {
        self.scanned_to = Some(key);
    }

    /// Keys all rows anew, and touches the open ones.
    pub fn rekey(&mut self, key: impl Fn(i64) -> i64) {
        for (_, row) in std::mem::take(&mut self.open) {
            self.open.entry(key(row.timestamp_ms)).or_insert(row);
        }
        self.touched = std::mem::take(&mut self.touched).into_iter().map(key).collect();
        self.touched.extend(self.open.keys());
        self.scanned_to = None;
    }

    /// Opens a row unless it is open.
    pub fn open(&mut self, key: i64, timestamp_ms: i64, now: Instant) {
        self.open.entry(key).or_insert(OpenRow { timestamp_ms, since: now });
    }

    /// Opens a row that was closed.
    pub fn reopen(&mut self, key: i64, row: OpenRow) {
        self.open.insert(key, row);
    }

    /// Closes a row. `None` if it was not open.
    pub fn close(&mut self, key: i64) -> Option<OpenRow> {
        self.open.remove(&key)
    }

    /// Records the end of a row without a model.
    pub fn record_without_model(&mut self, timestamp_ms: i64) {
        let (first_ms, last_ms) = self.closed_without_model.unwrap_or((timestamp_ms, timestamp_ms));
        self.closed_without_model = Some((first_ms.min(timestamp_ms), last_ms.max(timestamp_ms)));
    }

    /// True if the row of this timestamp was closed before a model served.
    pub fn was_without_model(&self, timestamp_ms: i64) -> bool {
        self.closed_without_model
            .is_some_and(|(first_ms, last_ms)| (first_ms..=last_ms).contains(&timestamp_ms))
    }

    /// True if the row is open.
    pub fn is_open(&self, key: i64) -> bool {
        self.open.contains_key(&key)
    }

    /// The open row with the highest key.
    pub fn newest_open(&self) -> Option<&OpenRow> {
        self.open.last_key_value().map(|(_, row)| row)
    }

    /// The open rows up to this key.
    pub fn open_until(&self, key: i64) -> impl Iterator<Item = &OpenRow> {
        self.open.range(..=key).map(|(_, row)| row)
    }

    /// The first open row with a key above this one.
    pub fn first_open_after(&self, key: i64) -> Option<i64> {
        self.open.range(key.saturating_add(1)..).next().map(|(key, _)| *key)
    }

    /// The first rows up to `to_ms` that are open for longer than the grace period.
    pub fn overdue(&self, grace: Duration, to_ms: i64, now: Instant, max_rows: usize) -> Vec<i64> {
        let is_overdue = |row: &OpenRow| row.timestamp_ms <= to_ms && now.duration_since(row.since) >= grace;
        let overdue = self.open.iter().filter(|(_, row)| is_overdue(row));
        overdue.map(|(key, _)| *key).take(max_rows).collect()
    }

    /// Makes the rows with samples up to this time open since `since` at the latest.
    pub fn expire_until(&mut self, timestamp_ms: i64, since: Instant) {
        for row in self.open.values_mut().filter(|row| row.timestamp_ms <= timestamp_ms) {
            row.since = row.since.min(since);
        }
    }

    /// Features that the last closed row lacked.
    pub fn n_missing_features(&self) -> usize {
        self.n_missing_features
    }

    /// Sets the number of features that the last closed row lacked. True if it changed.
    pub fn set_missing_features(&mut self, n_missing: usize) -> bool {
        std::mem::replace(&mut self.n_missing_features, n_missing) != n_missing
    }
}
