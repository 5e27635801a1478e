//! The incidents of a group within its window: their contributions, and the openings of the last week.

use crate::pipeline::serving::Contribution;
use crate::time::{DAY_MS, HOUR_MS};
use std::collections::VecDeque;

/// Days that openings are kept for.
const KEPT_DAYS: i64 = 7;

/// See the [module](self).
#[derive(Default)]
pub struct IncidentLog {
    /// Contributions by timestamp, ascending; an empty entry at the row after an incident.
    contributions: VecDeque<(i64, Vec<Contribution>)>,
    /// Timestamps at which the incidents of the last week opened.
    starts: VecDeque<i64>,
    is_open: bool,
    /// Hours since the epoch at the newest row.
    hour: Option<i64>,
}

impl IncidentLog {
    /// The log of a snapshot.
    pub fn restore(
        contributions: VecDeque<(i64, Vec<Contribution>)>,
        starts: VecDeque<i64>,
        is_open: bool,
    ) -> Self {
        Self { contributions, starts, is_open, hour: None }
    }

    /// Records a scored row, and forgets contributions before the window. True if an incident opened or the hour has
    /// changed: the alert budget changes then.
    pub fn record(
        &mut self,
        timestamp_ms: i64,
        is_incident: bool,
        contributions: Vec<Contribution>,
        window_start_ms: i64,
    ) -> bool {
        while self.contributions.front().is_some_and(|(then, _)| *then <= window_start_ms) {
            self.contributions.pop_front();
        }
        if !contributions.is_empty()
            || self.contributions.back().is_some_and(|(_, before)| !before.is_empty())
        {
            self.contributions.push_back((timestamp_ms, contributions));
        }
        while self.starts.front().is_some_and(|then| *then <= timestamp_ms - KEPT_DAYS * DAY_MS) {
            self.starts.pop_front();
        }
        let hour = timestamp_ms.div_euclid(HOUR_MS);
        let mut has_changed = self.hour.replace(hour) != Some(hour);
        if is_incident && !self.is_open {
            self.starts.push_back(timestamp_ms);
            has_changed = true;
        }
        self.is_open = is_incident;
        has_changed
    }

    /// Takes over the openings that Prometheus holds, ascending, if none is known.
    pub fn restore_starts(&mut self, starts_ms: Vec<i64>) {
        if self.starts.is_empty() {
            self.starts = starts_ms.into();
        }
    }

    /// All entries, by timestamp ascending.
    pub fn contributions(&self) -> &VecDeque<(i64, Vec<Contribution>)> {
        &self.contributions
    }

    /// The entries in `[first_ms, last_ms]`.
    pub fn contributions_between(
        &self,
        first_ms: i64,
        last_ms: i64,
    ) -> impl Iterator<Item = &(i64, Vec<Contribution>)> {
        let start = self.contributions.partition_point(|(then, _)| *then < first_ms);
        self.contributions.range(start..).take_while(move |(then, _)| *then <= last_ms)
    }

    /// Timestamp of the newest entry.
    pub fn newest_ms(&self) -> Option<i64> {
        self.contributions.back().map(|(newest_ms, _)| *newest_ms)
    }

    /// Incidents per day that opened within the last week.
    pub fn per_day(&self) -> f64 {
        self.starts.len() as f64 / KEPT_DAYS as f64
    }

    /// Timestamps at which the incidents of the last week opened.
    pub fn starts(&self) -> &VecDeque<i64> {
        &self.starts
    }

    /// Start of the newest incident in `(after_ms, to_ms]`.
    pub fn start_within(&self, after_ms: i64, to_ms: i64) -> Option<i64> {
        self.starts
            .iter()
            .rev()
            .copied()
            .find(|start_ms| *start_ms <= to_ms)
            .filter(|start_ms| *start_ms > after_ms)
    }

    /// True while an incident is open.
    pub fn is_open(&self) -> bool {
        self.is_open
    }
}
