//! Incidents: an incident begins with an alarm that lasts or that exceeds the threshold clearly, and ends when the
//! deviation is over.
//!
//! A lasting deviation raises the threshold above itself within hours. An incident is therefore compared with the
//! threshold of its beginning, and stays open as long as the deviation lasts.

use serde::{Deserialize, Serialize};

/// Duration of alarms that confirms an incident, for rows at shorter intervals: of thousands of rows a day, one or two
/// exceed any threshold by chance.
const MIN_ALARM_MS: i64 = 30_000;
/// Ratio of raw score to threshold that confirms an incident with one row.
const IMMEDIATE_RATIO: f64 = 1.15;
/// An incident lasts while the raw score is at least this share of the threshold of its beginning.
const HYSTERESIS: f64 = 0.8;
/// An incident ends when the score has been below that share for this long, or for `PAUSE_ROWS` rows if that is longer.
const PAUSE_MS: i64 = 10 * 60_000;
const PAUSE_ROWS: i64 = 3;

/// Tracks the incident of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct IncidentTracker {
    interval_ms: i64,
    open: Option<OpenIncident>,
}

/// Alarms that have not ended; an incident once confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenIncident {
    /// The lowest threshold that was crossed.
    threshold: f64,
    /// Timestamp of the first alarm.
    since_ms: i64,
    /// Timestamp of the last row above the threshold, or, once confirmed, above the hysteresis.
    last_ms: i64,
    /// True for an incident, false for alarms that have not lasted long enough.
    is_confirmed: bool,
}

impl IncidentTracker {
    /// A tracker without an incident, for rows at this interval.
    pub fn new(interval_ms: i64) -> Self {
        Self { interval_ms, open: None }
    }

    /// The alarms that have not ended.
    pub fn open_incident(&self) -> Option<OpenIncident> {
        self.open
    }

    /// Replaces the open incident.
    pub fn with_open_incident(self, open: Option<OpenIncident>) -> Self {
        Self { open, ..self }
    }

    /// Updates with the next row. Returns true if the row is part of an incident.
    pub fn update(&mut self, timestamp_ms: i64, raw: f64, threshold: f64) -> bool {
        // An incident inherited from another model may be newer than this model's rows: it stays as it is.
        if let Some(open) = self.open.filter(|open| open.last_ms >= timestamp_ms) {
            return open.is_confirmed;
        }
        let min_pause_ms = PAUSE_ROWS * self.interval_ms;
        let ongoing = self.open.filter(|open| {
            timestamp_ms - open.last_ms
                <= if open.is_confirmed { PAUSE_MS.max(min_pause_ms) } else { min_pause_ms }
        });
        self.open = match ongoing {
            _ if raw >= threshold => {
                let since_ms = ongoing.map_or(timestamp_ms, |open| open.since_ms);
                let is_lasting = self.interval_ms >= MIN_ALARM_MS || timestamp_ms - since_ms >= MIN_ALARM_MS;
                Some(OpenIncident {
                    threshold: ongoing.map_or(threshold, |open| open.threshold.min(threshold)),
                    since_ms,
                    last_ms: timestamp_ms,
                    is_confirmed: ongoing.is_some_and(|open| open.is_confirmed)
                        || is_lasting
                        || raw >= IMMEDIATE_RATIO * threshold,
                })
            }
            Some(open) if open.is_confirmed && raw >= HYSTERESIS * open.threshold => {
                Some(OpenIncident { last_ms: timestamp_ms, ..open })
            }
            ongoing => ongoing.filter(|open| open.is_confirmed),
        };
        self.open.is_some_and(|open| open.is_confirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incident_lasts_from_the_alarm_to_the_end_of_the_deviation() {
        let mut tracker = IncidentTracker::new(60_000);
        let mut at = |minute: i64, raw, threshold| tracker.update(minute * 60_000, raw, threshold);
        assert!(!at(0, 1.9, 2.0));
        assert!(at(1, 2.0, 2.0), "a score equal to the threshold is an alarm");
        assert!(at(2, 1.7, 2.0), "hysteresis");
        assert!(at(3, 0.5, 2.0), "a short pause");
        assert!(at(60, 5.0, 2.0));
        assert!(at(61, 5.0, 9.0), "the threshold has risen above the score");
        assert!(at(71, 0.1, 9.0));
        assert!(!at(72, 0.1, 9.0));
        assert!(!at(73, 5.0, 9.0), "the next incident has to cross the new threshold");
    }

    #[test]
    fn rows_from_before_an_open_incident_do_not_change_it() {
        let mut tracker = IncidentTracker::new(60_000);
        assert!(tracker.update(30 * 60_000, 9.0, 1.0));
        let mut successor = IncidentTracker::new(60_000).with_open_incident(tracker.open_incident());
        for minute in 0..10 {
            assert!(successor.update(minute * 60_000, 5.0, 1.0));
        }
        assert!(successor.update(31 * 60_000, 0.1, 1.0) && successor.update(40 * 60_000, 0.1, 1.0));
        assert!(!successor.update(41 * 60_000, 0.1, 1.0));
    }

    #[test]
    fn alarms_of_seconds_have_to_last_or_to_exceed_the_threshold_clearly() {
        let incidents = |rows: &[f64]| {
            let mut tracker = IncidentTracker::new(15_000);
            let row = |(i, raw): (usize, &f64)| tracker.update(i as i64 * 15_000, *raw, 1.0);
            rows.iter().enumerate().map(row).collect::<Vec<_>>()
        };
        assert_eq!(incidents(&[1.05, 1.05, 0.9, 1.05, 1.05]), [false; 5], "chance");
        assert_eq!(incidents(&[1.05, 1.05, 1.05, 0.9]), [false, false, true, true], "30 s");
        assert_eq!(incidents(&[0.9, 1.2, 0.9]), [false, true, true], "above the immediate ratio");
        let mut tracker = IncidentTracker::new(15_000);
        let after_a_gap = [0, 600_000].map(|t| tracker.update(t, 1.05, 1.0));
        assert_eq!(after_a_gap, [false; 2], "the rows between are unknown");
    }
}
