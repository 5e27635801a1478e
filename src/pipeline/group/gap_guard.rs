//! Detects gaps in the rows of a group, and holds its scoring until a gap is filled or the wait times out.

use crate::time::median_interval_ms;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Longest wait for the next part of a gap fill.
pub const HOLD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a whole gap fill.
pub const MAX_HOLD: Duration = Duration::from_secs(60);

/// A pause of scoring while samples are missing.
#[derive(Clone, Copy, Debug)]
struct GapHold {
    /// Samples after this time may be missing.
    after_ms: i64,
    since: Instant,
    /// Time at which the hold expires.
    until: Instant,
}

/// See the [module](self).
#[derive(Default)]
pub struct GapGuard {
    intervals: IntervalTracker,
    hold: Option<GapHold>,
}

impl GapGuard {
    /// Records a row that is newer than `newest_ms`, and starts a hold if rows are missing between them. Without a
    /// model no hold starts: nothing is scored, and training reads the history anyway.
    pub fn observe(&mut self, key: i64, newest_ms: Option<i64>, has_model: bool, now: Instant) {
        let is_late = self.intervals.observe(key);
        if let Some(newest_ms) = newest_ms
            && is_late
            && self.hold.is_none()
            && has_model
        {
            self.start_hold(newest_ms, now);
        }
    }

    /// Starts a hold: samples after the newest row are missing, and the newest row may be incomplete.
    pub fn start_hold(&mut self, newest_ms: i64, now: Instant) {
        let after_ms = newest_ms - self.intervals.interval_ms().unwrap_or(0);
        self.hold = Some(GapHold { after_ms, since: now, until: now + HOLD_TIMEOUT });
    }

    /// Extends the hold after a part of a gap fill.
    pub fn extend(&mut self, now: Instant) {
        if let Some(hold) = &mut self.hold {
            hold.until = (now + HOLD_TIMEOUT).min(hold.since + MAX_HOLD);
        }
    }

    /// Ends the hold.
    pub fn release(&mut self) {
        self.hold = None;
    }

    /// True while scoring is on hold.
    pub fn is_holding(&self) -> bool {
        self.hold.is_some()
    }

    /// Start of the gap, during a hold.
    pub fn after_ms(&self) -> Option<i64> {
        self.hold.map(|hold| hold.after_ms)
    }

    /// True if the hold has lasted too long.
    pub fn is_expired(&self, now: Instant) -> bool {
        self.hold.is_some_and(|hold| now >= hold.until)
    }

    /// Holds the scoring if these rows ended together with those of another group's gap and have not resumed. True if
    /// the hold starts.
    pub fn join(&mut self, after_ms: i64, newest_ms: i64, now: Instant, now_ms: i64) -> bool {
        let Some(interval_ms) = self.intervals.interval_ms() else { return false };
        let is_silent = 2 * (now_ms - newest_ms) > 3 * interval_ms;
        let ended_together = (newest_ms - after_ms).abs() <= 3 * interval_ms;
        let joins = self.hold.is_none() && is_silent && ended_together;
        if joins {
            self.start_hold(newest_ms, now);
        }
        joins
    }

    /// The newest row.
    pub fn newest_ms(&self) -> Option<i64> {
        self.intervals.row_times.back().copied()
    }

    /// The interval between rows, if it is known.
    pub fn interval_ms(&self) -> Option<i64> {
        self.intervals.interval_ms()
    }

    /// True if two senders seem to send these rows.
    pub fn is_interleaved(&self) -> bool {
        self.intervals.is_interleaved()
    }

    /// Measures the interval anew from the keys of these rows.
    pub fn reset(&mut self, keys: impl Iterator<Item = i64>) {
        self.intervals = IntervalTracker::default();
        keys.for_each(|key| {
            self.intervals.observe(key);
        });
    }
}

/// The interval between the rows of a group.
#[derive(Debug, Default)]
struct IntervalTracker {
    /// Timestamps of the newest rows, ascending.
    row_times: VecDeque<i64>,
}

impl IntervalTracker {
    /// Rows that the interval is measured from.
    const MAX_ROWS: usize = 9;
    /// Below this number of steps there is no interval.
    const MIN_STEPS: usize = 3;

    /// Records a row that is newer than those before it. True if a row is missing before it: more than 1.5 intervals
    /// have passed. A restart of Prometheus may lose a single row.
    fn observe(&mut self, timestamp_ms: i64) -> bool {
        let Some(newest_ms) = self.row_times.back().copied() else {
            self.row_times.push_back(timestamp_ms);
            return false;
        };
        let is_late = self.is_late(timestamp_ms - newest_ms);
        if timestamp_ms > newest_ms {
            self.row_times.push_back(timestamp_ms);
        }
        if self.row_times.len() > Self::MAX_ROWS {
            self.row_times.pop_front();
        }
        is_late
    }

    /// True if a step is longer than 1.5 times the [interval](Self::interval_ms): if more than half of the last steps are
    /// that short. Counts them, since each row asks.
    fn is_late(&self, step_ms: i64) -> bool {
        let times = &self.row_times;
        let n_steps = times.len().saturating_sub(1);
        let is_short = |(before, after): &(&i64, &i64)| 2 * step_ms > 3 * (*after - *before);
        n_steps >= Self::MIN_STEPS
            && times.iter().zip(times.range(1..)).filter(is_short).count() > n_steps / 2
    }

    /// True if the rows come from two senders with one interval and two phases: then short and long steps alternate.
    /// A single late scrape does not look like that.
    fn is_interleaved(&self) -> bool {
        let times = self.row_times.iter();
        let steps: Vec<i64> = times.clone().skip(1).zip(times).map(|(b, a)| b - a).collect();
        let alternates = |steps: &[i64]| {
            let &[first, second, third] = steps else { return false };
            5 * (first - second).abs() > first + second && 20 * (first - third).abs() < first + second
        };
        self.row_times.len() == Self::MAX_ROWS && steps.windows(3).all(alternates)
    }

    /// The median of the last steps.
    fn interval_ms(&self) -> Option<i64> {
        let times = self.row_times.iter().copied();
        (times.len() > Self::MIN_STEPS).then(|| median_interval_ms(times)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_late_step_is_longer_than_one_and_a_half_intervals(
            steps in prop::collection::vec(1..9_i64, 0..20),
            step_ms in 0..20_i64,
        ) {
            let mut intervals = IntervalTracker::default();
            let mut timestamp_ms = 0;
            for step_ms in steps {
                intervals.observe(timestamp_ms);
                timestamp_ms += step_ms;
            }
            let is_longer = |interval_ms| 2 * step_ms > 3 * interval_ms;
            prop_assert_eq!(intervals.is_late(step_ms), intervals.interval_ms().is_some_and(is_longer));
        }
    }
}
