//! The threshold that keeps a budget of alerts, without labels.
//!
//! It counts episodes, not rows: its sample are the peaks among the hourly maxima of two weeks, and it
//! continues their upper tail exponentially to as many a day as are wanted. An incident of five hours is one
//! peak or two, and a peak counts at most a tenth above the threshold of its time, so incidents do not raise
//! the threshold that is to find the next one. Only a day with far more peaks than the budget does: a sudden
//! drift is not to page all night.

use crate::time::HOUR_MS;
use std::collections::VecDeque;

/// Hours that are remembered: two weeks. One makes the threshold restless, three do no better.
const KEPT_HOURS: i64 = 336;
/// Peaks a day that the tail is read from.
const PEAKS_A_DAY: f64 = 4.0;
/// How far above the threshold of one peak a day an hour may count.
const CAP_FACTOR: f64 = 1.1;
/// Alerts in the last day, as a multiple of the budget, above which the threshold follows at once.
const BURST_FACTOR: f64 = 4.0;
/// A smaller budget does not make it follow sooner.
const MIN_BURST_BUDGET: f64 = 0.25;
/// The raw score of a row at the 99 % quantile of training for both voices is 1: below it nothing is an alert.
const MIN_THRESHOLD: f64 = 1.0;

/// The greatest raw score of an hour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HourlyMax {
    /// Since the epoch.
    pub number: i64,
    /// The score.
    pub raw: f64,
    /// What of it counts.
    pub capped: f64,
}

/// See the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct PotThreshold {
    /// Alerts a day.
    budget: f64,
    hours: VecDeque<HourlyMax>,
    current: Option<(i64, f64)>,
    one_a_day: f64,
    value: f64,
}

impl PotThreshold {
    /// Without an hour yet, for so many alerts a day, above 0.
    pub fn new(budget: f64) -> Self {
        Self { budget, hours: VecDeque::new(), current: None, one_a_day: f64::INFINITY, value: MIN_THRESHOLD }
    }

    /// A threshold from a file: hours ascend, the current one after them.
    pub fn restore(budget: f64, hours: VecDeque<HourlyMax>, current: Option<(i64, f64)>) -> Self {
        Self { hours, current, ..Self::new(budget) }.with_budget(budget)
    }

    /// The hours that are over, and number and greatest score so far of the current one.
    pub fn hours(&self) -> (impl Iterator<Item = &HourlyMax>, Option<(i64, f64)>) {
        (self.hours.iter(), self.current)
    }

    /// The same for another budget.
    pub fn with_budget(mut self, budget: f64) -> Self {
        self.budget = budget;
        if let Some((hour, _)) = self.current {
            self.refit(hour);
        }
        self
    }

    /// As if every score had been so many times as high.
    pub fn scaled(mut self, factor: f64) -> Self {
        for hour in &mut self.hours {
            hour.raw *= factor;
            hour.capped *= factor;
        }
        self.current = self.current.map(|(number, raw)| (number, factor * raw));
        let budget = self.budget;
        self.with_budget(budget)
    }

    /// Alerts a day that it keeps to.
    pub fn budget(&self) -> f64 {
        self.budget
    }

    /// The threshold at a time, in raw units, at least 1; renewed with each hour. Times do not decrease.
    pub fn value_at(&mut self, timestamp_ms: i64) -> f64 {
        let hour = timestamp_ms.div_euclid(HOUR_MS);
        if let Some((number, raw)) = self.current
            && number < hour
        {
            self.current = None;
            self.hours.push_back(HourlyMax { number, raw, capped: raw.min(CAP_FACTOR * self.one_a_day) });
            while self.hours.front().is_some_and(|first| first.number < hour - KEPT_HOURS) {
                self.hours.pop_front();
            }
            self.refit(hour);
        }
        self.value
    }

    /// Takes the raw score of a row at that time.
    pub fn add(&mut self, timestamp_ms: i64, raw: f64) {
        let number = timestamp_ms.div_euclid(HOUR_MS);
        // Hours of other groups may reach some seconds further.
        self.current = Some(
            self.current.map_or((number, raw), |(last, greatest)| (last.max(number), greatest.max(raw))),
        );
    }

    /// The peaks: hours above the one before and not below the one after.
    fn peaks(&self) -> impl Iterator<Item = &HourlyMax> {
        let raw = |i: usize| self.hours.get(i).map_or(f64::NEG_INFINITY, |hour| hour.raw);
        self.hours.iter().enumerate().filter_map(move |(i, hour)| {
            let before = i.checked_sub(1).map_or(f64::NEG_INFINITY, raw);
            (hour.raw > before && hour.raw >= raw(i + 1)).then_some(hour)
        })
    }

    fn refit(&mut self, hour: i64) {
        let days = self.hours.len() as f64 / 24.0;
        let mut peaks: Vec<f64> = self.peaks().map(|peak| peak.capped).collect();
        peaks.sort_by(|a, b| b.total_cmp(a));
        let tail = ((PEAKS_A_DAY * days).round() as usize).min(peaks.len().saturating_sub(1));
        let (one_a_day, for_budget) = match tail {
            0 => peaks.first().map_or((f64::INFINITY, MIN_THRESHOLD), |peak| (f64::INFINITY, *peak)),
            _ => {
                let lowest = peaks[tail];
                let excess = peaks[..tail].iter().sum::<f64>() / tail as f64 - lowest;
                let level_for_rate = |rate: f64| lowest + excess * (tail as f64 / (rate * days)).ln();
                (level_for_rate(1.0), level_for_rate(self.budget))
            }
        };
        // Within a first day a tail of peaks is chance: nothing is cut off by it.
        self.one_a_day = if days >= 1.0 { one_a_day } else { f64::INFINITY };
        let mut recent: Vec<f64> =
            self.peaks().filter(|peak| peak.number >= hour - 24).map(|peak| peak.raw).collect();
        recent.sort_by(|a, b| b.total_cmp(a));
        let burst_rank = ((BURST_FACTOR * self.budget.max(MIN_BURST_BUDGET)).round() as usize).max(1);
        let burst_bound = recent.get(burst_rank - 1).map_or(MIN_THRESHOLD, |peak| 1.0001 * peak);
        self.value = for_budget.max(burst_bound).max(MIN_THRESHOLD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exponential excesses of one a minute: about e^-x of them lie above x.
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
        // A row of an hour that was over for another group.
        scaled.add(now_ms - HOUR_MS, 99.0);
        assert_eq!(scaled.hours().1, Some((71, 99.0)));
    }

    fn alerts_a_day(budget: f64, scale: impl Fn(i64) -> f64) -> f64 {
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
    fn keeps_a_budget_without_tuning() {
        let steady = |_| 1.0;
        for (budget, range) in [(2.0, 1.0..3.0), (1.0, 0.5..1.6), (0.2, 0.0..0.5)] {
            let found = alerts_a_day(budget, steady);
            assert!(range.contains(&found), "{budget}: {found}");
        }
    }

    #[test]
    fn follows_scores_that_suddenly_grow() {
        let found = alerts_a_day(1.0, |day| if day < 30 { 1.0 } else { 1.5 });
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
    fn is_one_before_anything_is_known_and_where_nothing_happens() {
        let mut threshold = PotThreshold::new(1.0);
        for hour in 0..200 {
            assert_eq!(threshold.value_at(hour * HOUR_MS), 1.0);
            threshold.add(hour * HOUR_MS, 0.0);
        }
    }
}
