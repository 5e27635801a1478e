//! Derived features: residual to the seasonal profile, difference to a minute before, and deviation of the last
//! minutes, for each feature of a group.

use super::recurring::{RecurringPeaks, TRACKED_PER_FEATURE};
use super::seasonal::SeasonalProfile;
use crate::features::scale::saturate;
use crate::time::{DAY_MS, median_interval_ms};
use std::collections::VecDeque;

/// Lag of a difference, where rows are not further apart.
const LAG_MS: i64 = 60_000;
/// Span of a deviation, in lags.
const SPAN_LAGS: i64 = 12;

/// Intervals that a median is taken of, where there are as many.
const MIN_INTERVALS: usize = 64;

/// Derived features per feature: seasonal residual, difference, deviation.
pub const DERIVED_PER_FEATURE: usize = 1 + TRACKED_PER_FEATURE;
/// Minimum number of known values of each derived feature; below it the model does without. The seasonal residual takes
/// a day to become known, the others take minutes.
pub(super) const MIN_KNOWN_ROWS: [usize; DERIVED_PER_FEATURE] = [256, 8, 8];

/// The range that derived features look back over, by the interval of rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lookback {
    interval_ms: i64,
}

impl Lookback {
    /// For rows at this interval in milliseconds, at least 1.
    pub fn new(interval_ms: i64) -> Self {
        Self { interval_ms: interval_ms.max(1) }
    }

    /// For the median interval of the last day of these timestamps, ascending, or of the last 64 intervals if they are
    /// longer; a minute for fewer than two timestamps. Another scrape interval is known once half of the last day's rows
    /// have it: that of weeks would leave rows too few for a deviation for half of the weeks. A disturbed hour is none.
    pub fn from_timestamps(timestamps: &[i64]) -> Self {
        let before_last_day = |then: &i64| timestamps.last().is_some_and(|last| *then < last - DAY_MS);
        let first = timestamps.partition_point(before_last_day);
        let first = first.min(timestamps.len().saturating_sub(MIN_INTERVALS + 1));
        Self::new(median_interval_ms(timestamps[first..].iter().copied()).unwrap_or(LAG_MS))
    }

    /// The interval of rows in milliseconds.
    pub fn interval_ms(&self) -> i64 {
        self.interval_ms
    }

    /// A minute, or one interval if that is longer. A difference over 15 s would be noise.
    pub fn lag_ms(&self) -> i64 {
        self.interval_ms.max(LAG_MS)
    }

    fn span_ms(&self) -> i64 {
        SPAN_LAGS * self.lag_ms()
    }

    /// Minimum number of rows of a deviation: half of the span.
    fn min_rows(&self) -> usize {
        (self.span_ms() / self.interval_ms / 2).max(2) as usize
    }
}

/// State and computation of the derived features of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct DerivedFeatures {
    lookback: Lookback,
    profiles: Vec<SeasonalProfile>,
    recurring: RecurringPeaks,
    /// Timestamp and values `[n_features]` of the rows within the lookback, ascending.
    rows: VecDeque<(i64, Box<[f32]>)>,
}

impl DerivedFeatures {
    /// A state without rows.
    pub fn new(n_features: usize, lookback: Lookback) -> Self {
        let profile = SeasonalProfile::new(lookback.interval_ms);
        Self {
            lookback,
            profiles: vec![profile; n_features],
            recurring: RecurringPeaks::new(n_features),
            rows: VecDeque::new(),
        }
    }

    /// Restores a saved state. Rows ascend and hold one value per profile, NaN for a feature that had not begun.
    pub fn restore(
        lookback: Lookback,
        profiles: Vec<SeasonalProfile>,
        recurring: RecurringPeaks,
        rows: Vec<(i64, Vec<f32>)>,
    ) -> Self {
        let rows = rows.into_iter().map(|(timestamp_ms, row)| (timestamp_ms, row.into())).collect();
        Self { lookback, profiles, recurring, rows }
    }

    /// The seasonal profile of each feature.
    pub fn profiles(&self) -> &[SeasonalProfile] {
        &self.profiles
    }

    /// Sets the profiles that are used on the day of a timestamp, shape `[n_features]`.
    pub fn set_weekly(&mut self, timestamp_ms: i64, weekly: &[bool]) {
        let profiles = self.profiles.iter_mut().zip(weekly);
        profiles.for_each(|(profile, is_weekly)| profile.set_weekly(timestamp_ms, *is_weekly));
    }

    /// The recurring peaks.
    pub fn recurring(&self) -> &RecurringPeaks {
        &self.recurring
    }

    /// Timestamp and values of the rows within the lookback, ascending.
    pub fn rows(&self) -> impl Iterator<Item = &(i64, Box<[f32]>)> {
        self.rows.iter()
    }

    /// The lookback.
    pub fn lookback(&self) -> Lookback {
        self.lookback
    }

    /// Number of features.
    pub fn n_features(&self) -> usize {
        self.profiles.len()
    }

    /// Timestamp of the newest row.
    pub fn newest_ms(&self) -> Option<i64> {
        self.rows.back().map(|(timestamp_ms, _)| *timestamp_ms)
    }

    /// Adds the next row and returns its derived features, shape `[n_features, DERIVED_PER_FEATURE]`, row-major: the
    /// residual to the seasonal profile, the difference to a minute before, and the standard deviation of the last 12
    /// minutes (one and twelve rows, if rows are further apart than a minute). NaN without enough past rows. A value
    /// that is not finite is replaced by the previous one.
    ///
    /// # Panics
    /// If the row has another width than the state, or is not newer than the newest row.
    pub fn derive(&mut self, timestamp_ms: i64, values: &[f32]) -> Vec<f32> {
        assert_eq!(values.len(), self.profiles.len(), "one value per feature");
        assert!(self.newest_ms().is_none_or(|newest_ms| newest_ms < timestamp_ms), "rows ascend");
        let previous = self.rows.back().map(|(_, values)| values);
        let filled = |(feature, value): (usize, &f32)| match previous {
            _ if value.is_finite() => *value,
            Some(previous) => previous[feature],
            None => f32::NAN,
        };
        let values: Box<[f32]> = values.iter().enumerate().map(filled).collect();
        let (lag_ms, span_ms) = (self.lookback.lag_ms(), self.lookback.span_ms());
        while self.rows.front().is_some_and(|(then, _)| *then <= timestamp_ms - span_ms) {
            self.rows.pop_front();
        }
        self.rows.push_back((timestamp_ms, values));
        let (_, values) = self.rows.back().expect("a row was just pushed");
        // Half an interval of tolerance: scrapes come a little early or late.
        let latest_lagged_ms = timestamp_ms - lag_ms + self.lookback.interval_ms / 2;
        let lagged = self.rows.iter().rev().find(|(then, _)| *then <= latest_lagged_ms);
        let lagged = lagged.filter(|(then, _)| *then >= timestamp_ms - 3 * lag_ms);
        let deviations = self.deviations();

        let mut columns = Vec::with_capacity(DERIVED_PER_FEATURE * values.len());
        for (feature, (value, deviation)) in values.iter().zip(deviations).enumerate() {
            let profile = &mut self.profiles[feature];
            let residual = f64::from(*value) - profile.expected(timestamp_ms);
            if value.is_finite() {
                profile.add(timestamp_ms, *value);
            }
            let lagged_value = lagged.map_or(f64::NAN, |(_, values)| f64::from(values[feature]));
            let difference = f64::from(*value) - lagged_value;
            columns.extend([residual, difference, deviation].map(saturate));
        }
        let tracked = columns.iter().enumerate().filter(|(column, _)| column % DERIVED_PER_FEATURE != 0);
        self.recurring.add(timestamp_ms, tracked.map(|(_, value)| *value));
        columns
    }

    /// The standard deviation of each feature in the rows, `[n_features]`; NaN if there are too few. Row by row, so that the
    /// sums of the features do not wait for each other.
    fn deviations(&self) -> Vec<f64> {
        let (n_rows, n_features) = (self.rows.len(), self.n_features());
        if n_rows < self.lookback.min_rows() {
            return vec![f64::NAN; n_features];
        }
        let (mut means, mut squares) = (vec![0.0; n_features], vec![0.0; n_features]);
        for (_, row) in &self.rows {
            means.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        means.iter_mut().for_each(|mean| *mean /= n_rows as f64);
        for (_, row) in &self.rows {
            let values = row.iter().zip(&means);
            squares.iter_mut().zip(values).for_each(|(sum, (value, mean))| {
                *sum += (f64::from(*value) - mean).powi(2);
            });
        }
        squares.iter_mut().for_each(|square| *square = (*square / n_rows as f64).sqrt());
        squares
    }

    /// The expected value of each feature at a time, `[n_features]`; NaN before a first day.
    pub fn expected(&mut self, timestamp_ms: i64) -> Vec<f64> {
        self.profiles.iter_mut().map(|profile| profile.expected(timestamp_ms)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_of_a_difference_is_a_minute_at_any_interval() {
        for interval_ms in [15_000, 60_000, 300_000] {
            let mut derived = DerivedFeatures::new(1, Lookback::new(interval_ms));
            let mut last = Vec::new();
            for i in 0..100 {
                last = derived.derive(i * interval_ms, &[(i * interval_ms) as f32 / 60_000.0]);
            }
            assert_eq!(last[1], (interval_ms as f32 / 60_000.0).max(1.0), "{interval_ms}");
            assert!(last[0].is_nan() && last[2] > 0.0);
        }
    }

    #[test]
    fn a_gap_is_no_jump() {
        let mut derived = DerivedFeatures::new(1, Lookback::new(15_000));
        for i in 0..100 {
            derived.derive(i * 15_000, &[1.0]);
        }
        let columns = derived.derive(10_000_000, &[9.0]);
        assert!(columns.iter().all(|column| column.is_nan()), "{columns:?}");
    }

    #[test]
    fn a_value_that_is_not_finite_repeats_the_previous_one() {
        let mut derived = DerivedFeatures::new(2, Lookback::new(60_000));
        for i in 0..20 {
            derived.derive(i * 60_000, &[1.0, 2.0]);
        }
        let columns = derived.derive(20 * 60_000, &[f32::NAN, f32::INFINITY]);
        assert_eq!([columns[1], columns[2], columns[4], columns[5]], [0.0; 4]);
    }

    #[test]
    fn another_interval_of_scrapes_is_known_from_the_rows_of_a_day() {
        let lookback = |last_day_share: f64| {
            let changed_ms = 4 * DAY_MS - (last_day_share * DAY_MS as f64) as i64;
            let before = (0..changed_ms).step_by(15_000);
            let after = (changed_ms..4 * DAY_MS).step_by(45_000);
            Lookback::from_timestamps(&before.chain(after).collect::<Vec<i64>>())
        };
        assert_eq!(lookback(0.1).interval_ms(), 15_000, "a disturbance");
        assert_eq!(lookback(0.8).interval_ms(), 45_000);
        let last_deviation = |lookback: Lookback| {
            let mut derived = DerivedFeatures::new(1, lookback);
            (0..30).map(|i| derived.derive(i * 45_000, &[(i % 2) as f32])).last().expect("rows")[2]
        };
        assert!(last_deviation(lookback(0.1)).is_nan());
        assert_eq!(last_deviation(lookback(0.8)), 0.5);
        let once_a_day: Vec<i64> = (0..100).map(|day| day * DAY_MS).collect();
        assert_eq!(Lookback::from_timestamps(&once_a_day).interval_ms(), DAY_MS);
        let faster_at_last = [once_a_day, (1..8).map(|i| 99 * DAY_MS + i).collect()].concat();
        assert_eq!(Lookback::from_timestamps(&faster_at_last).interval_ms(), DAY_MS, "a burst of a table");
    }

    #[test]
    fn lookback_uses_the_median_interval() {
        assert_eq!(Lookback::from_timestamps(&[0, 15, 30, 900, 915]).interval_ms(), 15);
        assert_eq!(Lookback::from_timestamps(&[7]).interval_ms(), LAG_MS);
    }
}
