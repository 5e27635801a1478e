//! Seasonal profiles: the expected value of a feature by time of day.
//!
//! The alternative, residuals in units of the usual variation at that hour, makes a burst at night stand out more where
//! noise grows with the load. On labelled servers it finds fewer anomalies: VUS-PR 0.541 without, 0.532 with half of
//! the normalization, 0.501 with four fifths.

use crate::error::InvalidPart;
use crate::time::DAY_MS;
use serde::{Deserialize, Serialize};

/// Buckets per day, each with its own mean: 15 minutes.
pub const BUCKETS: usize = 96;
/// Length of a bucket in milliseconds.
pub const BUCKET_MS: i64 = DAY_MS / BUCKETS as i64;
/// Weight of the newest day in a mean.
const ALPHA: f64 = 0.3;
/// Limit of a value's residual, as a multiple of the mean residual: an incident does not become the expected value of
/// the next day.
const MAX_DISTANCE: f64 = 9.0;

/// The mean of one feature by time of day: exponentially weighted over days, interpolated linearly between the centers
/// of buckets. The means change at midnight UTC only, so expected values depend on completed days alone.
#[derive(Clone, Debug)]
pub struct SeasonalProfile {
    /// Interval of values as a share of a day.
    share: f64,
    /// Mean absolute residual of about one day; 0 before the first residual.
    distance: f64,
    /// Mean of each bucket over completed days; NaN without a value.
    means: Vec<f64>,
    /// Days since the epoch.
    today: i64,
    /// Sum and number of the values in each bucket today.
    sums: Vec<f64>,
    counts: Vec<u32>,
}

/// A saved profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedProfile {
    distance: f64,
    /// `None` without a value.
    means: Vec<Option<f64>>,
    today: i64,
    sums: Vec<f64>,
    counts: Vec<u32>,
}

/// NaN equals NaN.
impl PartialEq for SeasonalProfile {
    fn eq(&self, other: &Self) -> bool {
        self.share == other.share && self.state() == other.state()
    }
}

impl SeasonalProfile {
    /// The profile for a file.
    pub fn state(&self) -> SavedProfile {
        SavedProfile {
            distance: self.distance,
            means: self.means.iter().map(|mean| (!mean.is_nan()).then_some(*mean)).collect(),
            today: self.today,
            sums: self.sums.clone(),
            counts: self.counts.clone(),
        }
    }

    /// Restores a saved profile of values at this interval.
    pub fn restore(interval_ms: i64, profile: SavedProfile) -> Result<Self, InvalidPart> {
        let SavedProfile { distance, means, today, sums, counts } = profile;
        for (part, length) in [("means", means.len()), ("sums", sums.len()), ("counts", counts.len())] {
            if length != BUCKETS {
                return Err(InvalidPart::new(
                    part,
                    format_args!("{length} long"),
                    format_args!("{BUCKETS} long"),
                ));
            }
        }
        let numbers = means.iter().flatten().chain(&sums).chain([&distance]);
        if let Some(number) = numbers.into_iter().find(|number| !number.is_finite()) {
            return Err(InvalidPart::new("number of a profile", number, "finite"));
        }
        let means = means.into_iter().map(|mean| mean.unwrap_or(f64::NAN)).collect();
        Ok(Self { distance, means, today, sums, counts, ..Self::new(interval_ms) })
    }

    /// A profile without values, for values at this interval.
    pub fn new(interval_ms: i64) -> Self {
        Self {
            share: (interval_ms as f64 / DAY_MS as f64).min(1.0),
            distance: 0.0,
            means: vec![f64::NAN; BUCKETS],
            today: i64::MIN,
            sums: vec![0.0; BUCKETS],
            counts: vec![0; BUCKETS],
        }
    }

    /// The expected value at a time, in units of the feature; NaN if no completed day had a value. Times must not
    /// decrease. Call it before [`add`](Self::add) of the same time.
    pub fn expected(&mut self, timestamp_ms: i64) -> f64 {
        self.advance_to(timestamp_ms.div_euclid(DAY_MS));
        // A bucket's mean applies to its center.
        let offset_ms = timestamp_ms.rem_euclid(DAY_MS) - BUCKET_MS / 2;
        let before = offset_ms.div_euclid(BUCKET_MS).rem_euclid(BUCKETS as i64) as usize;
        let share = offset_ms.rem_euclid(BUCKET_MS) as f64 / BUCKET_MS as f64;
        let (low, high) = (self.means[before], self.means[(before + 1) % BUCKETS]);
        low + (high - low) * share
    }

    /// Adds a value to the mean of the day, which takes effect on the next day.
    pub fn add(&mut self, timestamp_ms: i64, value: f32) {
        let expected = self.expected(timestamp_ms);
        let bucket = (timestamp_ms.rem_euclid(DAY_MS) / BUCKET_MS) as usize;
        self.sums[bucket] += self.winsorize(expected, f64::from(value));
        self.counts[bucket] += 1;
    }

    /// Limits the residual of a value to `MAX_DISTANCE` times the mean residual. A lasting new level is learned within a
    /// day or two.
    fn winsorize(&mut self, expected: f64, value: f64) -> f64 {
        let residual = value - expected;
        if residual.is_nan() {
            return value;
        }
        if self.distance == 0.0 {
            self.distance = residual.abs();
        }
        let max_residual = MAX_DISTANCE * self.distance;
        self.distance += self.share * (residual.abs().min(max_residual) - self.distance);
        expected + residual.clamp(-max_residual, max_residual)
    }

    fn advance_to(&mut self, day: i64) {
        if day <= self.today {
            return;
        }
        self.today = day;
        for bucket in 0..BUCKETS {
            let count = std::mem::take(&mut self.counts[bucket]);
            let sum = std::mem::take(&mut self.sums[bucket]);
            if count > 0 {
                let mean = &mut self.means[bucket];
                let new = sum / f64::from(count);
                *mean = if mean.is_nan() { new } else { *mean + ALPHA * (new - *mean) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::HOUR_MS;

    #[test]
    fn expected_values_come_from_completed_days() {
        let mut profile = SeasonalProfile::new(60_000);
        let hour = |t: i64| (t.rem_euclid(DAY_MS) / HOUR_MS) as f32;
        let minutes = |day: i64| (0..24 * 60).map(move |minute| day * DAY_MS + minute * 60_000);
        for t in minutes(0) {
            assert!(profile.expected(t).is_nan());
            profile.add(t, hour(t));
        }
        assert_eq!(profile.expected(DAY_MS + 10 * HOUR_MS + 1_800_000), 10.0);
        // Between 10:52:30 and 11:07:30 it goes from 10 to 11.
        assert_eq!(profile.expected(DAY_MS + 11 * HOUR_MS), 10.5);
        for t in minutes(1) {
            profile.add(t, hour(t) + 10.0);
        }
        assert_eq!(profile.expected(DAY_MS + 10 * HOUR_MS + 1_800_000), 10.0, "frozen");
        assert_eq!(profile.expected(2 * DAY_MS + 10 * HOUR_MS + 1_800_000), 13.0);
    }

    #[test]
    fn an_incident_is_not_expected_again_and_a_new_level_is() {
        let mut profile = SeasonalProfile::new(60_000);
        let value = |minute: i64| 100.0 + (minute % 7) as f32;
        let mut day = |number: i64, extra: &dyn Fn(i64) -> f32| {
            for minute in number * 1440..(number + 1) * 1440 {
                profile.add(minute * 60_000, value(minute) + extra(minute % 1440));
            }
            profile.expected((number + 1) * DAY_MS + 6 * HOUR_MS)
        };
        for number in 0..3 {
            day(number, &|_| 0.0);
        }
        let after = day(3, &|minute| if (360..420).contains(&minute) { 1e6 } else { 0.0 });
        assert!((100.0..115.0).contains(&after), "{after}");
        for number in 4..8 {
            day(number, &|_| 0.0);
        }
        let level = (8..20).map(|number| day(number, &|_| 50.0)).last().expect("at least one day");
        assert!((148.0..160.0).contains(&level), "{level}");
    }

    #[test]
    fn an_hour_without_values_has_no_expected_value() {
        let mut profile = SeasonalProfile::new(60_000);
        profile.add(9 * HOUR_MS, 1.0);
        assert!(profile.expected(DAY_MS + 18 * HOUR_MS).is_nan());
    }
}
