//! Incidents: an incident opens with scores above the threshold that last or exceed it clearly, and ends when the
//! deviation is over, or when it has lasted so long that it is a new level.
//!
//! ```text
//! calm ── score >= threshold ──> open ── deviation over ──> calm
//!                                 └── 3 hours ──> accepted ── score >= threshold + level ──> open
//!                                                    └── deviation over ──> calm
//! ```
//!
//! A person who was told of a deviation for three hours knows it. The level is then accepted: no incident, until the
//! score exceeds the level by a threshold, which is reported as a new incident.

use crate::error::InvalidPart;
use crate::stats::quantile;
use crate::time::HOUR_MS;
use serde::{Deserialize, Serialize};

/// Duration of exceedances that confirms an incident, for rows at shorter intervals: of thousands of rows a day, one or two
/// exceed any threshold by chance.
const MIN_DURATION_MS: i64 = 30_000;
/// Ratio of score to threshold that confirms an incident with one row.
const IMMEDIATE_RATIO: f64 = 1.15;
/// An incident lasts while the raw score is at least this share of the level that it opened at. The share rises with
/// the hours to 1, so that a deviation near the level ends.
const HYSTERESIS: f64 = 0.9;
const HYSTERESIS_PER_HOUR: f64 = 0.2;
/// An incident ends when the score has been below that share for this long, or for `PAUSE_ROWS` rows if that is longer.
const PAUSE_MS: i64 = 10 * 60_000;
const PAUSE_ROWS: i64 = 2;
/// Time after which a deviation is accepted as a level.
const ACCEPT_MS: i64 = 3 * HOUR_MS;
/// End of that time that the level is measured in.
const LEVEL_MS: i64 = ACCEPT_MS / 2;
/// Quantile of the scores of each minute that is the level.
const LEVEL_QUANTILE: f64 = 0.9;
const MINUTE_MS: i64 = 60_000;
/// Greatest timestamp of a saved state: differences of timestamps do not overflow.
const MAX_TIME_MS: i64 = i64::MAX / 4;

/// Longest pause of an incident between rows of this interval, in milliseconds.
pub fn incident_pause_ms(interval_ms: i64) -> i64 {
    PAUSE_MS.max(PAUSE_ROWS * interval_ms)
}

/// The result of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IncidentUpdate {
    /// True if the row is part of an incident.
    pub is_incident: bool,
    /// True if the row opens it.
    pub has_opened: bool,
    /// Level that is accepted at this row, in units of the raw score; 0 for none.
    pub accepted_level: f64,
    /// At the end of an incident, the logarithm of the ratio of its greatest score to the threshold that it crossed.
    pub excess: Option<f64>,
}

/// Tracks the incident of one group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IncidentTracker {
    /// Timestamp of the newest row.
    newest_ms: Option<i64>,
    /// Exceedances that are not confirmed yet.
    exceedance: Option<Exceedance>,
    open: Option<OpenIncident>,
    accepted: Option<AcceptedLevel>,
}

/// Rows above the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exceedance {
    /// Timestamps of the first and of the last exceedance.
    since_ms: i64,
    last_ms: i64,
    /// The lowest threshold that was crossed.
    level: f64,
}

/// A confirmed incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenIncident {
    /// `last_ms` is the last row of the deviation.
    exceedance: Exceedance,
    /// Number and maximum score of the minutes in which the level is measured.
    minutes: Vec<(i64, f64)>,
    /// The greatest score.
    #[serde(default)]
    peak: f64,
}

impl OpenIncident {
    fn excess(&self) -> f64 {
        (self.peak / self.exceedance.level).max(1.0).ln()
    }
}

/// A deviation that has become a level.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AcceptedLevel {
    /// The score that counts as usual.
    score: f64,
    /// The level that its incident opened at.
    level: f64,
    /// Timestamp of the last row of the deviation.
    last_ms: i64,
}

impl IncidentTracker {
    /// Timestamp of the newest row.
    pub fn newest_ms(&self) -> Option<i64> {
        self.newest_ms
    }

    /// Checks saved times and levels.
    ///
    /// # Errors
    /// [`InvalidPart`] for a time that is not in the range of timestamps, or a level that is not finite or below 0.
    pub fn check(&self) -> Result<(), InvalidPart> {
        let exceedances = self.exceedance.iter().chain(self.open.as_ref().map(|open| &open.exceedance));
        let (mut times, mut levels): (Vec<i64>, Vec<f64>) =
            (self.newest_ms.into_iter().collect(), Vec::new());
        for exceedance in exceedances {
            times.extend([exceedance.since_ms, exceedance.last_ms]);
            levels.push(exceedance.level);
        }
        if let Some(accepted) = self.accepted {
            times.push(accepted.last_ms);
            levels.extend([accepted.score, accepted.level]);
        }
        levels.extend(self.open.iter().flat_map(|open| &open.minutes).map(|(_, score)| *score));
        levels.extend(self.open.iter().map(|open| open.peak));
        if let Some(time) = times.into_iter().find(|time| !(0..=MAX_TIME_MS).contains(time)) {
            return Err(InvalidPart::new("time of an incident", time, format_args!("in 0..={MAX_TIME_MS}")));
        }
        match levels.into_iter().find(|level| !(level.is_finite() && *level >= 0.0)) {
            Some(level) => Err(InvalidPart::new("level of an incident", level, "finite, at least 0")),
            None => Ok(()),
        }
    }

    /// The state as the result of a row that does not change it.
    pub fn unchanged(&self) -> IncidentUpdate {
        let (is_incident, accepted_level) = (self.open.is_some(), self.accepted_level());
        IncidentUpdate { is_incident, has_opened: false, accepted_level, excess: None }
    }

    /// True if an incident is open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// True if an incident is open and no gap ends it before a row at this time.
    pub fn is_open_until(&self, timestamp_ms: i64, interval_ms: i64) -> bool {
        self.is_open() && !self.is_gap_before(timestamp_ms, interval_ms)
    }

    fn is_gap_before(&self, timestamp_ms: i64, interval_ms: i64) -> bool {
        self.newest_ms.is_some_and(|newest_ms| timestamp_ms - newest_ms > incident_pause_ms(interval_ms))
    }

    /// True if the row of this update was the last of an incident whose level is now accepted.
    pub fn has_accepted_since(&self, update: &IncidentUpdate) -> bool {
        self.accepted_level() != update.accepted_level
    }

    /// Passes a row without a known score: an open incident and an accepted level go on.
    pub fn skip(&mut self, timestamp_ms: i64, interval_ms: i64) -> IncidentUpdate {
        if self.is_gap_before(timestamp_ms, interval_ms) {
            self.open = None;
        }
        self.newest_ms = Some(timestamp_ms);
        if let Some(accepted) = &mut self.accepted {
            accepted.last_ms = timestamp_ms;
        }
        self.unchanged()
    }

    /// Passes a row of a time in which no incident is open. An accepted deviation may go on in it.
    pub fn suspend(&mut self, timestamp_ms: i64) -> IncidentUpdate {
        self.newest_ms = Some(timestamp_ms);
        (self.exceedance, self.open) = (None, None);
        if let Some(accepted) = &mut self.accepted {
            accepted.last_ms = timestamp_ms;
        }
        self.unchanged()
    }

    /// Ends the open incident: its greatest score counts as usual until the deviation is over.
    pub fn accept_open(&mut self) {
        if let Some(OpenIncident { exceedance, peak, .. }) = self.open.take() {
            self.accept(exceedance, peak);
        }
    }

    fn accept(&mut self, exceedance: Exceedance, score: f64) {
        // The deviation is over when the first of its levels is.
        let level = self.accepted.map_or(exceedance.level, |before| before.level.min(exceedance.level));
        self.accepted = Some(AcceptedLevel { score: score.max(0.0), level, last_ms: exceedance.last_ms });
        self.open = None;
    }

    /// The level that is accepted as usual, in units of the raw score; 0 for none. It is added to the threshold.
    fn accepted_level(&self) -> f64 {
        self.accepted.map_or(0.0, |accepted| accepted.score)
    }

    /// Updates with the raw and the smoothed score of the next row and the threshold without accepted levels. `interval_ms`
    /// is the interval of rows. An incident does not go on over a gap between rows.
    pub fn update(
        &mut self,
        timestamp_ms: i64,
        (raw, smoothed): (f64, f64),
        threshold: f64,
        interval_ms: i64,
    ) -> IncidentUpdate {
        let pause_ms = incident_pause_ms(interval_ms);
        let is_over = |last_ms: i64| timestamp_ms - last_ms > pause_ms;
        self.update_level(timestamp_ms, raw, is_over);
        let accepted_level = self.accepted_level();
        let threshold = threshold + accepted_level;
        let excess = self.open.as_ref().map(OpenIncident::excess);
        let was_open = self.is_open_until(timestamp_ms, interval_ms);
        self.newest_ms = Some(timestamp_ms);
        if was_open {
            self.update_open(timestamp_ms, (raw, smoothed), threshold);
            self.open.take_if(|open| is_over(open.exceedance.last_ms));
        } else {
            self.open = None;
            self.watch(timestamp_ms, smoothed, threshold, interval_ms);
        }
        let is_incident = self.open.is_some();
        let excess = excess.filter(|_| !(was_open && is_incident));
        IncidentUpdate { is_incident, has_opened: is_incident && !was_open, accepted_level, excess }
    }

    /// Ends the accepted level when the deviation is over. It may have gone on in a gap between rows.
    fn update_level(&mut self, timestamp_ms: i64, raw: f64, is_over: impl Fn(i64) -> bool) {
        let is_after_gap = self.newest_ms.is_some_and(&is_over);
        if let Some(accepted) = &mut self.accepted {
            if raw >= HYSTERESIS * accepted.level && (is_after_gap || !is_over(accepted.last_ms)) {
                accepted.last_ms = timestamp_ms;
            } else if is_over(accepted.last_ms) {
                self.accepted = None;
            }
        }
    }

    /// Collects exceedances, and opens an incident once they are confirmed.
    fn watch(&mut self, timestamp_ms: i64, smoothed: f64, threshold: f64, interval_ms: i64) {
        let ongoing = self
            .exceedance
            .take()
            .filter(|exceedance| timestamp_ms - exceedance.last_ms <= PAUSE_ROWS * interval_ms);
        if smoothed < threshold {
            self.exceedance = ongoing;
            return;
        }
        let exceedance = Exceedance {
            since_ms: ongoing.map_or(timestamp_ms, |exceedance| exceedance.since_ms),
            last_ms: timestamp_ms,
            level: ongoing.map_or(threshold, |exceedance| exceedance.level.min(threshold)),
        };
        let is_lasting =
            interval_ms >= MIN_DURATION_MS || timestamp_ms - exceedance.since_ms >= MIN_DURATION_MS;
        if is_lasting || smoothed >= IMMEDIATE_RATIO * threshold {
            self.open = Some(OpenIncident { exceedance, minutes: Vec::new(), peak: smoothed });
        } else {
            self.exceedance = Some(exceedance);
        }
    }

    /// Follows the open incident, and accepts its level when it has lasted long enough.
    fn update_open(&mut self, timestamp_ms: i64, (raw, smoothed): (f64, f64), threshold: f64) {
        let Some(OpenIncident { exceedance, minutes, peak }) = &mut self.open else { return };
        *peak = peak.max(smoothed);
        let open_ms = timestamp_ms - exceedance.since_ms;
        let hysteresis = (HYSTERESIS + HYSTERESIS_PER_HOUR * open_ms as f64 / HOUR_MS as f64).min(1.0);
        if smoothed >= threshold {
            exceedance.last_ms = timestamp_ms;
            exceedance.level = exceedance.level.min(threshold);
        } else if raw >= hysteresis * exceedance.level {
            exceedance.last_ms = timestamp_ms;
        }
        if open_ms < ACCEPT_MS - LEVEL_MS {
            return;
        }
        let minute = timestamp_ms.div_euclid(MINUTE_MS);
        match minutes.last_mut().filter(|(newest, _)| *newest == minute) {
            Some((_, max)) => *max = max.max(smoothed),
            None => minutes.push((minute, smoothed)),
        }
        if open_ms >= ACCEPT_MS {
            let mut scores: Vec<f64> = minutes.iter().map(|(_, score)| *score).collect();
            let exceedance = *exceedance;
            self.accept(exceedance, quantile(&mut scores, LEVEL_QUANTILE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = MINUTE_MS;

    /// Tracks scores that need no smoothing.
    struct Bench(IncidentTracker, i64);

    impl Bench {
        fn new(interval_ms: i64) -> Self {
            Self(IncidentTracker::default(), interval_ms)
        }

        fn at(&mut self, timestamp_ms: i64, score: f64, threshold: f64) -> bool {
            self.0.update(timestamp_ms, (score, score), threshold, self.1).is_incident
        }
    }

    #[test]
    fn an_incident_lasts_from_the_alarm_to_the_end_of_the_deviation() {
        let mut bench = Bench::new(MINUTE);
        let mut at = |minute: i64, score, threshold| bench.at(minute * MINUTE, score, threshold);
        assert!(!at(0, 1.9, 2.0));
        assert!(at(1, 2.0, 2.0), "a score equal to the threshold is an exceedance");
        assert!(at(2, 1.85, 2.0), "hysteresis");
        assert!(at(3, 0.5, 2.0), "a short pause");
        assert!(at(10, 5.0, 2.0));
        assert!(at(11, 5.0, 9.0), "the threshold has risen above the score");
        assert!(at(21, 0.1, 9.0));
        assert!(!at(22, 0.1, 9.0));
        assert!(!at(23, 5.0, 9.0), "the next incident has to cross the new threshold");
    }

    #[test]
    fn alarms_of_seconds_have_to_last_or_to_exceed_the_threshold_clearly() {
        let incidents = |rows: &[f64]| {
            let mut bench = Bench::new(15_000);
            let row = |(i, score): (usize, &f64)| bench.at(i as i64 * 15_000, *score, 1.0);
            rows.iter().enumerate().map(row).collect::<Vec<_>>()
        };
        assert_eq!(incidents(&[1.05, 1.05, 0.9, 0.9, 0.9, 1.05, 1.05]), [false; 7], "chance");
        assert_eq!(incidents(&[1.05, 1.05, 1.05, 0.9]), [false, false, true, true], "30 s");
        assert_eq!(incidents(&[0.9, 1.2, 0.9]), [false, true, true], "above the immediate ratio");
        let mut bench = Bench::new(15_000);
        let after_a_gap = [0, 600_000].map(|t| bench.at(t, 1.05, 1.0));
        assert_eq!(after_a_gap, [false; 2], "the rows between are unknown");
    }

    #[test]
    fn a_lasting_level_is_accepted_and_a_higher_one_is_a_new_incident() {
        let mut bench = Bench::new(MINUTE);
        let mut minute = 0;
        let mut run = |bench: &mut Bench, minutes: i64, score: f64| -> i64 {
            (0..minutes)
                .map(|_| {
                    minute += 1;
                    i64::from(bench.at(minute * MINUTE, score, 1.0))
                })
                .sum()
        };
        assert_eq!(run(&mut bench, 60, 0.2), 0);
        assert_eq!(run(&mut bench, 24 * 60, 3.0), 180, "three hours");
        assert_eq!(bench.0.unchanged().accepted_level, 3.0);
        assert_eq!(run(&mut bench, 60, 3.9), 0, "within a threshold of the level");
        assert_eq!(run(&mut bench, 20, 4.5), 20, "above it");
        assert_eq!(run(&mut bench, 60, 3.0), 10, "back to the level");
        assert_eq!(bench.0.unchanged().accepted_level, 3.0);
        assert_eq!(run(&mut bench, 60, 0.2), 0);
        assert_eq!(bench.0.unchanged().accepted_level, 0.0, "the deviation is over");
        assert_eq!(run(&mut bench, 5, 3.0), 5, "and would be reported again");
    }

    #[test]
    fn an_accepted_level_outlasts_a_gap_and_a_maintenance() {
        let mut bench = Bench::new(MINUTE);
        assert!(bench.at(MINUTE, 3.0, 1.0));
        bench.0.accept_open();
        assert!(!bench.at(2 * MINUTE, 3.0, 1.0));
        assert!(!bench.at(30 * MINUTE, 3.0, 1.0), "a gap");
        for minute in 31..60 {
            bench.0.suspend(minute * MINUTE);
        }
        assert!(!bench.at(60 * MINUTE, 3.0, 1.0), "a maintenance");
        assert!(!bench.at(90 * MINUTE, 0.1, 1.0));
        assert_eq!(bench.0.unchanged().accepted_level, 0.0, "over after a gap");
    }

    #[test]
    fn an_incident_that_is_accepted_by_a_person_ends_and_goes_on_as_a_level() {
        let mut bench = Bench::new(MINUTE);
        assert!(bench.at(MINUTE, 3.0, 1.0) && bench.at(2 * MINUTE, 2.0, 1.0));
        bench.0.accept_open();
        assert!(!bench.at(3 * MINUTE, 3.5, 1.0), "within a threshold of the greatest score");
        assert!(bench.at(4 * MINUTE, 4.1, 1.0), "beyond it");
        bench.0.accept_open();
        assert!((5..20).all(|minute| !bench.at(minute * MINUTE, 0.1, 1.0)));
        assert_eq!(bench.0.unchanged().accepted_level, 0.0, "the deviation is over");
        let before = bench.0.clone();
        bench.0.accept_open();
        assert_eq!(bench.0, before, "nothing is open");
    }

    #[test]
    fn no_incident_is_open_in_a_suspended_time() {
        let mut bench = Bench::new(MINUTE);
        assert!(bench.at(MINUTE, 3.0, 1.0));
        assert!(!bench.0.suspend(2 * MINUTE).is_incident);
        assert_eq!(bench.0.newest_ms(), Some(2 * MINUTE));
        assert!(bench.at(3 * MINUTE, 3.0, 1.0), "and opens after it");
    }

    #[test]
    fn the_end_of_an_incident_tells_how_far_it_went() {
        let mut tracker = IncidentTracker::default();
        let mut excess_at =
            |minute: i64, score| tracker.update(minute * MINUTE, (score, score), 2.0, MINUTE).excess;
        assert_eq!((0..12).find_map(|minute| excess_at(minute, if minute == 1 { 3.0 } else { 0.0 })), None);
        assert_eq!(excess_at(12, 0.0), Some(1.5f64.ln()));
        assert_eq!(excess_at(13, 0.0), None, "once");
        assert_eq!(excess_at(14, 2.5), None);
        assert_eq!(excess_at(60, 2.2), Some(1.25f64.ln()), "in a gap, and the next one opens");
        assert_eq!((61..60 + 3 * 60).find_map(|minute| excess_at(minute, 2.2)), None);
        assert_eq!(excess_at(60 + 3 * 60, 2.2), Some(1.1f64.ln()), "accepted");
    }

    #[test]
    fn a_deviation_that_ends_in_a_gap_is_over() {
        let mut bench = Bench::new(MINUTE);
        assert!(bench.at(0, 3.0, 1.0));
        let update = bench.0.update(60 * MINUTE, (3.0, 3.0), 1.0, MINUTE);
        assert!(update.has_opened, "a new incident: the rows between are unknown");
    }

    #[test]
    fn the_state_is_bounded_at_any_interval() {
        let mut bench = Bench::new(100);
        for row in 0..(4 * HOUR_MS / 100) {
            bench.at(row * 100, 3.0, 1.0);
            assert!(bench.0.open.as_ref().is_none_or(|open| open.minutes.len() <= 91));
        }
    }
}
