//! The alert threshold: keeps the number of alerts to a budget per day, without labels.
//!
//! A peaks-over-threshold estimate: the sample is the peaks among the hourly maxima of two weeks. The upper tail of
//! the sample is extrapolated as an exponential distribution to the budgeted number of peaks per day.
//!
//! Peaks are counted instead of rows because an alert is an episode: an incident of five hours is one or two peaks.
//! A peak counts at most 10 % above the threshold of its time, so an incident does not raise the threshold for the
//! next one. The exception is a day with many more peaks than the budget: the threshold then rises within an hour,
//! so that a sudden drift does not alert all night.

use crate::time::HOUR_MS;
use std::collections::VecDeque;

/// Retained hours: two weeks. With one week the threshold is unstable; three weeks gave no better result.
const KEPT_HOURS: i64 = 336;
/// Peaks per day that form the upper tail.
const PEAKS_A_DAY: f64 = 4.0;
/// Limit of an hour's contribution, as a multiple of the threshold for one peak per day.
const CAP_FACTOR: f64 = 1.1;
/// Alerts in the last day, as a multiple of the budget, at which the threshold rises above the recent peaks.
const BURST_FACTOR: f64 = 4.0;
/// Lower limit of the budget in that rule, in alerts per day.
const MIN_BURST_BUDGET: f64 = 0.25;
/// Minimum threshold: the raw score of a row whose forest score and tail score are both at the 99 % quantile of
/// training.
const MIN_THRESHOLD: f64 = 1.0;

/// The maximum raw score of one hour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HourlyMax {
    /// Hours since the epoch.
    pub hour: i64,
    /// The maximum raw score.
    pub raw: f64,
    /// The same, limited to `CAP_FACTOR` times the threshold for one peak per day at that time.
    pub capped: f64,
}

/// A peaks-over-threshold estimate of the alert threshold; see the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct PotThreshold {
    /// Alerts per day.
    budget: f64,
    /// Completed hours, ascending.
    hours: VecDeque<HourlyMax>,
    /// Number and maximum raw score of the current hour.
    current: Option<(i64, f64)>,
    /// The threshold for one peak per day; infinite before a first day.
    one_per_day: f64,
    /// The threshold for the budget.
    value: f64,
}

impl PotThreshold {
    /// A threshold without history, for a budget in alerts per day, above 0.
    pub fn new(budget: f64) -> Self {
        Self {
            budget,
            hours: VecDeque::new(),
            current: None,
            one_per_day: f64::INFINITY,
            value: MIN_THRESHOLD,
        }
    }

    /// A threshold from saved hours: ascending, and before the current one.
    pub fn restore(budget: f64, hours: VecDeque<HourlyMax>, current: Option<(i64, f64)>) -> Self {
        Self { hours, current, ..Self::new(budget) }.with_budget(budget)
    }

    /// The completed hours, and number and maximum raw score of the current hour.
    pub fn hours(&self) -> (impl Iterator<Item = &HourlyMax>, Option<(i64, f64)>) {
        (self.hours.iter(), self.current)
    }

    /// Replaces the budget.
    pub fn with_budget(mut self, budget: f64) -> Self {
        self.budget = budget;
        if let Some((hour, _)) = self.current {
            self.refit(hour);
        }
        self
    }

    /// The threshold that the same scores, each multiplied by `factor`, would have given.
    pub fn scaled(mut self, factor: f64) -> Self {
        for hour in &mut self.hours {
            hour.raw *= factor;
            hour.capped *= factor;
        }
        self.current = self.current.map(|(number, raw)| (number, factor * raw));
        let budget = self.budget;
        self.with_budget(budget)
    }

    /// The budget in alerts per day.
    pub fn budget(&self) -> f64 {
        self.budget
    }

    /// The threshold at a time, in units of the raw score, at least 1. It is estimated again once per hour. Times must
    /// not decrease.
    pub fn value_at(&mut self, timestamp_ms: i64) -> f64 {
        let hour = timestamp_ms.div_euclid(HOUR_MS);
        if let Some((completed, raw)) = self.current
            && completed < hour
        {
            self.current = None;
            let capped = raw.min(CAP_FACTOR * self.one_per_day);
            self.hours.push_back(HourlyMax { hour: completed, raw, capped });
            while self.hours.front().is_some_and(|first| first.hour < hour - KEPT_HOURS) {
                self.hours.pop_front();
            }
            self.refit(hour);
        }
        self.value
    }

    /// Adds the raw score of a row.
    pub fn add(&mut self, timestamp_ms: i64, raw: f64) {
        let hour = timestamp_ms.div_euclid(HOUR_MS);
        // A threshold transferred from another group may be in a later hour than this group's rows.
        self.current = Some(self.current.map_or((hour, raw), |(last, max)| (last.max(hour), max.max(raw))));
    }

    /// The local maxima: hours above the one before and not below the one after.
    fn peaks(&self) -> impl Iterator<Item = &HourlyMax> {
        let raw = |i: usize| self.hours.get(i).map_or(f64::NEG_INFINITY, |hour| hour.raw);
        self.hours.iter().enumerate().filter_map(move |(i, hour)| {
            let before = i.checked_sub(1).map_or(f64::NEG_INFINITY, raw);
            (hour.raw > before && hour.raw >= raw(i + 1)).then_some(hour)
        })
    }

    /// Estimates the threshold from the completed hours, at the beginning of `hour`.
    fn refit(&mut self, hour: i64) {
        let days = self.hours.len() as f64 / 24.0;
        let mut peaks: Vec<f64> = self.peaks().map(|peak| peak.capped).collect();
        peaks.sort_by(|a, b| b.total_cmp(a));
        let tail = ((PEAKS_A_DAY * days).round() as usize).min(peaks.len().saturating_sub(1));
        let (one_per_day, for_budget) = match tail {
            0 => peaks.first().map_or((f64::INFINITY, MIN_THRESHOLD), |peak| (f64::INFINITY, *peak)),
            _ => {
                let lowest = peaks[tail];
                let excess = peaks[..tail].iter().sum::<f64>() / tail as f64 - lowest;
                let value_for_rate = |rate: f64| lowest + excess * (tail as f64 / (rate * days)).ln();
                (value_for_rate(1.0), value_for_rate(self.budget))
            }
        };
        // A tail estimated from less than a day is too uncertain for a cap.
        self.one_per_day = if days >= 1.0 { one_per_day } else { f64::INFINITY };
        let mut recent: Vec<f64> =
            self.peaks().filter(|peak| peak.hour >= hour - 24).map(|peak| peak.raw).collect();
        recent.sort_by(|a, b| b.total_cmp(a));
        let burst_rank = ((BURST_FACTOR * self.budget.max(MIN_BURST_BUDGET)).round() as usize).max(1);
        let burst_bound = recent.get(burst_rank - 1).map_or(MIN_THRESHOLD, |peak| 1.0001 * peak);
        self.value = for_budget.max(burst_bound).max(MIN_THRESHOLD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (mut threshold, mut noise) = (PotThreshold::new(1.0), noise());
        for minute in 0..3 * 24 * 60 {
            threshold.value_at(minute * 60_000);
            threshold.add(minute * 60_000, 1.0 + noise());
        }
        let now_ms = 3 * 24 * HOUR_MS - 60_000;
        let value = threshold.value_at(now_ms);
        let mut scaled = threshold.clone().scaled(1.5);
        assert!(value > 2.0 && (scaled.value_at(now_ms) / value - 1.5).abs() < 1e-9);
        // A row before the current hour.
        scaled.add(now_ms - HOUR_MS, 99.0);
        assert_eq!(scaled.hours().1, Some((71, 99.0)));
    }

    fn alerts_per_day(budget: f64, scale: impl Fn(i64) -> f64) -> f64 {
        let (mut threshold, mut noise, mut episodes, mut over_ms) =
            (PotThreshold::new(budget), noise(), 0, 0);
        let days = 60;
        for minute in 0..days * 24 * 60 {
            let t = minute * 60_000;
            let raw = noise() * scale(minute / (24 * 60));
            if raw >= threshold.value_at(t) && minute >= 20 * 24 * 60 {
                episodes += i64::from(t - over_ms > HOUR_MS);
                over_ms = t;
            }
            threshold.add(t, raw);
        }
        episodes as f64 / (days - 20) as f64
    }

    #[test]
    fn keeps_the_alert_budget_without_tuning() {
        let steady = |_| 1.0;
        for (budget, range) in [(2.0, 1.0..3.0), (1.0, 0.5..1.6), (0.2, 0.0..0.5)] {
            let found = alerts_per_day(budget, steady);
            assert!(range.contains(&found), "{budget}: {found}");
        }
    }

    #[test]
    fn rises_with_scores_that_suddenly_grow() {
        let found = alerts_per_day(1.0, |day| if day < 30 { 1.0 } else { 1.5 });
        assert!((0.5..2.5).contains(&found), "{found}");
    }

    #[test]
    fn an_incident_does_not_hide_the_next_one() {
        let (mut threshold, mut noise) = (PotThreshold::new(1.0), noise());
        let mut minute = 0;
        let mut run = |threshold: &mut PotThreshold, minutes: i64, extra: f64| {
            for _ in 0..minutes {
                threshold.value_at(minute * 60_000);
                threshold.add(minute * 60_000, noise() + extra);
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
    fn is_one_without_history_and_for_scores_of_zero() {
        let mut threshold = PotThreshold::new(1.0);
        for hour in 0..200 {
            assert_eq!(threshold.value_at(hour * HOUR_MS), 1.0);
            threshold.add(hour * HOUR_MS, 0.0);
        }
    }
}
