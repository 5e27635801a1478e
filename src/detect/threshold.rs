//! The threshold of a model: estimates from past scores at which score the budgeted number of peaks per day begins.
//!
//! A peaks-over-threshold estimate: the sample is the peaks among the hourly maxima of two weeks. The upper tail of
//! the sample is extrapolated as an exponential distribution to the budgeted number of peaks per day.
//!
//! Peaks are counted instead of rows because an alert is an episode: an incident of five hours is one or two peaks.
//! A peak counts at most 10 % above the threshold of its time, so an incident does not raise the threshold for the
//! next one.
//!
//! After little history the tail is uncertain, and the scores of new rows are greater than those of training. A width
//! factor, which falls to 1 with the number of rows and hours, raises the threshold meanwhile.

use crate::time::HOUR_MS;
use std::collections::VecDeque;

/// Retained hours: two weeks. With one week the threshold is unstable; three weeks gave no better result.
const KEPT_HOURS: i64 = 336;
/// Peaks per day that form the upper tail.
const PEAKS_PER_DAY: f64 = 2.0;
/// Limit of an hour's contribution, as a multiple of the threshold of its time.
const CAP_FACTOR: f64 = 1.1;
/// Rows at which their part of the width is about 1, and at which it begins to fall with their square.
const WIDTH_ROWS: f64 = 400.0;
const WIDTH_SQUARE_ROWS: f64 = 600.0;
/// The hours' part of the width, and the hours at which it ends.
const WIDTH_HOURS: f64 = 6.0;
const WIDTH_END_HOURS: f64 = 120.0;
/// Maximum width: above it, a model of minutes would miss fifteenfold traffic.
const MAX_WIDTH: f64 = 3.0;

/// The maximum score of one hour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HourlyMax {
    /// Hours since the epoch.
    pub hour: i64,
    /// The maximum score.
    pub max: f64,
    /// The same of scores that are limited to `CAP_FACTOR` times the threshold for one peak per day at that time.
    pub capped: f64,
}

/// A peaks-over-threshold estimate of the alert threshold; see the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct PotThreshold {
    /// Alerts per day.
    budget: f64,
    /// The least estimate.
    minimum: f64,
    /// Completed hours, ascending.
    hours: VecDeque<HourlyMax>,
    /// The current hour.
    current: Option<HourlyMax>,
    /// Number of rows, those of training included.
    n_rows: u64,
    /// The estimate for one peak per day; `None` before a first day.
    one_per_day: Option<f64>,
    /// The estimate for the budget.
    for_budget: f64,
}

impl PotThreshold {
    /// A threshold without history, for a budget in alerts per day, above 0, and not below a minimum.
    pub fn new(budget: f64, minimum: f64) -> Self {
        let hours = VecDeque::new();
        Self { budget, minimum, hours, current: None, n_rows: 0, one_per_day: None, for_budget: minimum }
    }

    /// Continues with saved hours: ascending, and before the current one.
    pub fn restored(self, hours: VecDeque<HourlyMax>, current: Option<HourlyMax>, n_rows: u64) -> Self {
        let mut threshold = Self { hours, current, n_rows, ..self };
        threshold.refit();
        threshold
    }

    /// The completed hours, and the current hour.
    pub fn hours(&self) -> (impl Iterator<Item = &HourlyMax>, Option<HourlyMax>) {
        (self.hours.iter(), self.current)
    }

    /// Number of rows, those of training included.
    pub fn n_rows(&self) -> u64 {
        self.n_rows
    }

    /// Replaces the budget.
    pub fn set_budget(&mut self, budget: f64) {
        self.budget = budget;
        self.refit();
    }

    /// The threshold that the same scores, each multiplied by `factor`, would have given.
    pub fn scaled(mut self, factor: f64) -> Self {
        for hour in self.hours.iter_mut().chain(&mut self.current) {
            hour.max *= factor;
            hour.capped *= factor;
        }
        self.refit();
        self
    }

    /// The budget in alerts per day.
    pub fn budget(&self) -> f64 {
        self.budget
    }

    /// The threshold at a time, in units of the raw score, at least the minimum. The tail is estimated again once
    /// per hour. Times must not decrease.
    pub fn value_at(&mut self, timestamp_ms: i64) -> f64 {
        let hour = timestamp_ms.div_euclid(HOUR_MS);
        if let Some(completed) = self.current.take_if(|current| current.hour < hour) {
            if self.hours.len() == self.hours.capacity() {
                // A day: doubled, the two weeks would take half as much again.
                self.hours.reserve_exact(24);
            }
            self.hours.push_back(completed);
            while self.hours.front().is_some_and(|first| first.hour < hour - KEPT_HOURS) {
                self.hours.pop_front();
            }
            self.refit();
        }
        self.width() * self.for_budget
    }

    /// Adds the score of a row, of training or live. Without an estimate for one peak per day, the live rows of an hour
    /// count at most `CAP_FACTOR` times the estimate for the budget.
    pub fn add(&mut self, timestamp_ms: i64, score: f64, is_live: bool) {
        self.n_rows += 1;
        let estimate = self.one_per_day.or(is_live.then_some(self.for_budget));
        let capped = score.min(estimate.map_or(f64::INFINITY, |estimate| CAP_FACTOR * estimate));
        let hour = timestamp_ms.div_euclid(HOUR_MS);
        self.current = Some(match self.current {
            None => HourlyMax { hour, max: score, capped },
            // A threshold transferred from another group may be in a later hour than this group's rows.
            Some(current) => HourlyMax {
                hour: current.hour.max(hour),
                max: current.max.max(score),
                capped: current.capped.max(capped),
            },
        });
    }

    /// The factor for little history: falls to 1 with the number of rows and hours.
    fn width(&self) -> f64 {
        let (n_rows, hours) = (self.n_rows.max(1) as f64, self.hours.len() as f64);
        let for_rows = WIDTH_ROWS / (n_rows * (1.0 + n_rows / WIDTH_SQUARE_ROWS));
        let for_hours = WIDTH_HOURS / (1.0 + hours) * (1.0 - hours / WIDTH_END_HOURS).max(0.0);
        (1.0 + for_rows + for_hours).min(MAX_WIDTH)
    }

    /// The local maxima: hours above the one before and not below the one after.
    fn peaks(&self) -> impl Iterator<Item = &HourlyMax> {
        let max = |i: usize| self.hours.get(i).map_or(f64::NEG_INFINITY, |hour| hour.max);
        self.hours.iter().enumerate().filter_map(move |(i, hour)| {
            let before = i.checked_sub(1).map_or(f64::NEG_INFINITY, max);
            (hour.max > before && hour.max >= max(i + 1)).then_some(hour)
        })
    }

    /// Estimates the tail from the completed hours.
    fn refit(&mut self) {
        let days = self.hours.len() as f64 / 24.0;
        let mut peaks: Vec<f64> = self.peaks().map(|peak| peak.capped).collect();
        peaks.sort_by(|a, b| b.total_cmp(a));
        let tail = ((PEAKS_PER_DAY * days).round() as usize).min(peaks.len().saturating_sub(1));
        let value_for_rate = |rate: f64| {
            if tail == 0 {
                return peaks.first().copied().unwrap_or(self.minimum);
            }
            let lowest = peaks[tail];
            let excess = peaks[..tail].iter().sum::<f64>() / tail as f64 - lowest;
            lowest + excess * (tail as f64 / (rate * days)).ln()
        };
        // A tail estimated from less than a day is too uncertain for a cap.
        self.one_per_day = (days >= 1.0 && tail > 0).then(|| value_for_rate(1.0).max(self.minimum));
        self.for_budget = value_for_rate(self.budget).max(self.minimum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN_THRESHOLD: f64 = 0.7;

    /// Exponentially distributed values: a share of e^-x lies above x.
    fn noise() -> impl FnMut() -> f64 {
        let mut state = 1u64;
        move || {
            // An MMIX linear congruence (Knuth).
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            -(((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64).ln()
        }
    }

    #[test]
    fn scaling_multiplies_the_threshold() {
        let (mut threshold, mut noise) = (PotThreshold::new(1.0, MIN_THRESHOLD), noise());
        for minute in 0..3 * 24 * 60 {
            threshold.value_at(minute * 60_000);
            threshold.add(minute * 60_000, 1.0 + noise(), false);
        }
        let now_ms = 3 * 24 * HOUR_MS - 60_000;
        let value = threshold.value_at(now_ms);
        let mut scaled = threshold.clone().scaled(1.5);
        assert!(value > 2.0 && (scaled.value_at(now_ms) / value - 1.5).abs() < 1e-9);
        // A row before the current hour.
        scaled.add(now_ms - HOUR_MS, 99.0, false);
        assert_eq!(scaled.hours().1.map(|current| (current.hour, current.max)), Some((71, 99.0)));
    }

    fn peaks_per_day(budget: f64) -> f64 {
        let (mut threshold, mut noise, mut episodes, mut over_ms) =
            (PotThreshold::new(budget, MIN_THRESHOLD), noise(), 0, 0);
        let days = 60;
        for minute in 0..days * 24 * 60 {
            let t = minute * 60_000;
            let score = noise();
            if score >= threshold.value_at(t) && minute >= 20 * 24 * 60 {
                episodes += i64::from(t - over_ms > HOUR_MS);
                over_ms = t;
            }
            threshold.add(t, score, false);
        }
        episodes as f64 / (days - 20) as f64
    }

    #[test]
    fn steady_scores_exceed_the_threshold_about_as_often_as_the_budget() {
        for (budget, range) in [(2.0, 1.0..3.0), (1.0, 0.5..1.6), (0.2, 0.0..0.5)] {
            let found = peaks_per_day(budget);
            assert!(range.contains(&found), "{budget}: {found}");
        }
    }

    #[test]
    fn an_incident_does_not_hide_the_next_one() {
        let (mut threshold, mut noise) = (PotThreshold::new(1.0, MIN_THRESHOLD), noise());
        let mut minute = 0;
        let mut run = |threshold: &mut PotThreshold, minutes: i64, extra: f64| {
            for _ in 0..minutes {
                threshold.value_at(minute * 60_000);
                threshold.add(minute * 60_000, noise() + extra, false);
                minute += 1;
            }
            threshold.value_at(minute * 60_000)
        };
        let before = run(&mut threshold, 7 * 24 * 60, 0.0);
        run(&mut threshold, 5 * 60, 1000.0);
        let after = run(&mut threshold, 24 * 60, 0.0);
        assert!(after < 1.3 * before, "{before} {after}");
    }

    #[test]
    fn an_incident_of_the_first_day_does_not_hide_the_next_one() {
        let mut threshold = PotThreshold::new(1.0, MIN_THRESHOLD);
        for minute in 0..60 {
            threshold.add(minute * 60_000, 1.0, false);
        }
        let before = threshold.value_at(HOUR_MS);
        for minute in 60..120 {
            threshold.add(minute * 60_000, 1000.0, true);
        }
        let after = threshold.value_at(2 * HOUR_MS);
        assert!(after < 1.11 * before, "{before} {after}");
    }

    #[test]
    fn the_threshold_falls_with_rows_and_hours() {
        let after = |hours: i64, rows_per_hour: i64| {
            let mut threshold = PotThreshold::new(1.0, MIN_THRESHOLD);
            for row in 0..hours * rows_per_hour {
                let t = row * HOUR_MS / rows_per_hour;
                threshold.value_at(t);
                threshold.add(t, 0.0, false);
            }
            threshold.value_at(hours * HOUR_MS) / MIN_THRESHOLD
        };
        assert!((after(1, 240) - MAX_WIDTH).abs() < 1e-9, "{}", after(1, 240));
        assert!((after(1, 12) - MAX_WIDTH).abs() < 1e-9, "{}", after(1, 12));
        assert!((1.1..1.3).contains(&after(24, 240)), "{}", after(24, 240));
        assert!((1.0..1.001).contains(&after(130, 240)), "{}", after(130, 240));
    }

    #[test]
    fn rare_peaks_do_not_lower_what_later_ones_count() {
        let (mut threshold, mut noise) = (PotThreshold::new(1.0, MIN_THRESHOLD), noise());
        for minute in 0..40 * 24 * 60 {
            let is_peak = [2_000, 6_000, 11_000].contains(&minute);
            let steady = if minute < 10 * 24 * 60 { 0.0 } else { 0.1 * noise() };
            threshold.value_at(minute * 60_000);
            threshold.add(minute * 60_000, if is_peak { 2.0 } else { steady }, false);
        }
        let estimate = threshold.one_per_day.expect("days of hours");
        assert!((MIN_THRESHOLD..2.0).contains(&estimate), "{estimate}");
    }

    #[test]
    fn scores_of_zero_give_the_minimum() {
        let mut threshold = PotThreshold::new(1.0, MIN_THRESHOLD);
        for hour in 0..200 {
            assert!(threshold.value_at(hour * HOUR_MS) >= MIN_THRESHOLD);
            (0..240).for_each(|_| threshold.add(hour * HOUR_MS, 0.0, false));
        }
        assert!(threshold.value_at(200 * HOUR_MS) < 1.001 * MIN_THRESHOLD);
    }
}
