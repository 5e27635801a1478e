//! The time that samples cover, and which features have covered enough of it for a model.

use crate::features::Transform;
use crate::prom::Sample;
use crate::time::{self, DAY_MS};
use crate::window::{Column, Window};
use std::time::Duration;

/// Most that a gap adds to the coverage. It is Prometheus' look-back of instant queries.
pub(super) const LOOK_BACK_MS: i64 = 300_000;

/// Share of the required history at which a feature joins a model. The features of one scrape arrive in several
/// requests, and the last ones lack a scrape when the first ones are complete.
const JOIN_TOLERANCE: f64 = 0.9;

/// History that a feature needs, as a share of the longest history of a feature. Values at noon do not follow from an
/// hour in the morning, and a feature without its history exceeds the alert budget of a model of days.
const MIN_HISTORY_SHARE: f64 = 0.25;
/// Longest history that a feature needs.
const MAX_REQUIRED_MS: i64 = DAY_MS;

/// The time that ascending samples cover. A gap counts for five minutes at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage {
    newest_ms: Option<i64>,
    sum_ms: i64,
}

impl Coverage {
    /// Adds the next sample. No row is complete by a value that is not finite, such as a staleness marker.
    pub fn add(&mut self, sample: Sample) {
        if sample.value.is_finite() {
            self.add_time(sample.timestamp_ms);
        }
    }

    pub(super) fn add_time(&mut self, timestamp_ms: i64) {
        let before_ms = self.newest_ms.replace(timestamp_ms).unwrap_or(timestamp_ms);
        self.sum_ms += (timestamp_ms - before_ms).min(LOOK_BACK_MS);
    }

    /// The covered time in milliseconds.
    pub fn total_ms(self) -> i64 {
        self.sum_ms
    }
}

/// The time in milliseconds for which a column has full-range values: its [`Coverage`] minus the warm-up of the
/// transform. Below 0 during the warm-up.
pub fn coverage_ms(window: &Window, column: Column, transform: Transform) -> i64 {
    let mut samples = Vec::new();
    window.samples(column, i64::MIN, i64::MAX, &mut samples);
    let mut coverage = Coverage::default();
    samples.into_iter().for_each(|sample| coverage.add(sample));
    coverage.total_ms() - transform.warm_up_ms()
}

/// True if a feature that covers `observed_ms` joins a model in which the longest feature covers `have_ms`.
pub fn has_enough_history(observed_ms: i64, have_ms: i64, min_history: Duration) -> bool {
    let required_ms = ((have_ms as f64 * MIN_HISTORY_SHARE) as i64).min(MAX_REQUIRED_MS);
    observed_ms as f64 >= JOIN_TOLERANCE * required_ms.max(time::millis(min_history)) as f64
}

/// True if a feature with this newest sample up to the row at `row_ms` is present at that row.
pub fn is_alive(newest: Option<Sample>, row_ms: i64, grace: Duration) -> bool {
    let alive_from_ms = row_ms.saturating_sub(time::millis(grace));
    newest.is_some_and(|sample| !sample.is_stale() && sample.timestamp_ms >= alive_from_ms)
}

/// The presence of features at a row that receives no more samples. At a row that is still arriving, a feature whose
/// samples come last looks like one that is gone, if the rows before are older than the grace period.
#[derive(Clone, Copy)]
pub struct Presence<'a> {
    window: &'a Window,
    row_ms: i64,
    grace: Duration,
}

impl<'a> Presence<'a> {
    /// The presence at the newest row up to `to_ms`; `None` if there is none.
    pub fn at_newest_row(window: &'a Window, to_ms: i64, grace: Duration) -> Option<Self> {
        let row_ms = window.newest_row_ms(to_ms)?;
        Some(Self { window, row_ms, grace })
    }

    /// Timestamp of the row.
    pub fn row_ms(&self) -> i64 {
        self.row_ms
    }

    /// True if the feature is present at the row.
    pub fn is_present(&self, column: Column) -> bool {
        self.is_present_with(column, self.window.newest_of(column))
    }

    fn is_present_with(&self, column: Column, newest: Option<Sample>) -> bool {
        let is_later = newest.is_some_and(|sample| sample.timestamp_ms > self.row_ms);
        let alive_from_ms = self.row_ms.saturating_sub(time::millis(self.grace));
        let newest = match is_later {
            true => self.window.newest_sample(column, alive_from_ms - 1, self.row_ms),
            false => newest,
        };
        is_alive(newest, self.row_ms, self.grace)
    }

    /// True if the feature is not present at the row and has not returned since.
    pub fn is_gone(&self, column: Column) -> bool {
        let newest = self.window.newest_of(column);
        let has_returned =
            newest.is_some_and(|sample| sample.timestamp_ms > self.row_ms && !sample.is_stale());
        !has_returned && !self.is_present_with(column, newest)
    }
}

/// The earliest time since which a feature was present for at least half of the time. Some minutes of a week ago do not
/// count: the rows in between lack the feature.
pub(super) fn stable_since_ms(samples: &[Sample]) -> Option<i64> {
    let times: Vec<i64> = samples.iter().filter(|s| !s.is_stale()).map(|s| s.timestamp_ms).collect();
    let newest_ms = *times.last()?;
    let spans: Vec<(i64, i64)> = spans(&times).collect();
    let mut present_ms: i64 = spans.iter().map(|(from_ms, to_ms)| to_ms - from_ms).sum();
    for (from_ms, to_ms) in spans {
        if 2 * present_ms >= newest_ms - from_ms {
            return Some(from_ms);
        }
        present_ms -= to_ms - from_ms;
    }
    None
}

/// First and last of the runs of ascending timestamps without a gap of more than five minutes.
pub(super) fn spans(times: &[i64]) -> impl Iterator<Item = (i64, i64)> {
    times.chunk_by(|a, b| b - a <= LOOK_BACK_MS).map(|run| (run[0], run[run.len() - 1]))
}

/// Replaces times within five minutes of the earliest by the earliest: one scrape may arrive in several requests.
pub(super) fn align_to_first(times: &mut [i64]) {
    let first_ms = times.iter().min().copied().unwrap_or(i64::MAX);
    times.iter_mut().filter(|ms| **ms <= first_ms.saturating_add(LOOK_BACK_MS)).for_each(|ms| *ms = first_ms);
}
