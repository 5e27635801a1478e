//! Incidents: one from an alarm that lasts, or is loud, until the deviation is over.

use serde::{Deserialize, Serialize};

/// One begins when scores have been alarms for this long, where rows are nearer than that: of thousands of rows a
/// day, chance takes one or two beyond any threshold.
const ALARMED_MS: i64 = 30_000;
/// Or with one row this many times as loud as an alarm.
const AT_ONCE: f64 = 1.15;
/// An incident lasts while the raw score is at least this share of the threshold that it crossed.
const HOLD: f64 = 0.8;
/// It is over when that has not been so for this long, or for three rows.
const PAUSE_MS: i64 = 10 * 60_000;
const PAUSE_ROWS: i64 = 3;

/// Follows one group. A lasting deviation moves the threshold above itself within hours; an incident keeps
/// to the threshold of its beginning, so it stays open for as long as the deviation lasts.
#[derive(Clone, Debug, PartialEq)]
pub struct Incident {
    interval_ms: i64,
    alarm: Option<Alarm>,
}

/// An alarm that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alarm {
    /// The least threshold that it crossed.
    level: f64,
    /// When it began.
    since_ms: i64,
    /// When it was last as loud as that, or nearly.
    last_ms: i64,
    /// Has it become an incident?
    is_incident: bool,
}

impl Incident {
    /// None open, for rows that are so far apart.
    pub fn new(interval_ms: i64) -> Self {
        Self { interval_ms, alarm: None }
    }

    /// The alarm that has not ended.
    pub fn alarm(&self) -> Option<Alarm> {
        self.alarm
    }

    /// The same in this state of alarm.
    pub fn with_alarm(self, alarm: Option<Alarm>) -> Self {
        Self { alarm, ..self }
    }

    /// Takes the next row, and tells whether there is an incident at it.
    pub fn follow(&mut self, timestamp_ms: i64, raw: f64, threshold: f64) -> bool {
        // Of another model, which has seen more: what it saw stands.
        if let Some(alarm) = self.alarm.filter(|alarm| alarm.last_ms >= timestamp_ms) {
            return alarm.is_incident;
        }
        let rows_ms = PAUSE_ROWS * self.interval_ms;
        let before = self.alarm.filter(|alarm| {
            timestamp_ms - alarm.last_ms <= if alarm.is_incident { PAUSE_MS.max(rows_ms) } else { rows_ms }
        });
        self.alarm = match before {
            _ if raw >= threshold => {
                let since_ms = before.map_or(timestamp_ms, |alarm| alarm.since_ms);
                let lasts = self.interval_ms >= ALARMED_MS || timestamp_ms - since_ms >= ALARMED_MS;
                Some(Alarm {
                    level: before.map_or(threshold, |alarm| alarm.level.min(threshold)),
                    since_ms,
                    last_ms: timestamp_ms,
                    is_incident: before.is_some_and(|alarm| alarm.is_incident)
                        || lasts
                        || raw >= AT_ONCE * threshold,
                })
            }
            Some(alarm) if alarm.is_incident && raw >= HOLD * alarm.level => {
                Some(Alarm { last_ms: timestamp_ms, ..alarm })
            }
            before => before.filter(|alarm| alarm.is_incident),
        };
        self.alarm.is_some_and(|alarm| alarm.is_incident)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_incident_from_the_alarm_to_the_end_of_the_deviation() {
        let mut incident = Incident::new(60_000);
        let mut at = |minute: i64, raw, threshold| incident.follow(minute * 60_000, raw, threshold);
        assert!(!at(0, 1.9, 2.0));
        assert!(at(1, 2.0, 2.0), "the threshold itself is an alarm");
        assert!(at(2, 1.7, 2.0), "hysteresis");
        assert!(at(3, 0.5, 2.0), "a short pause");
        assert!(at(60, 5.0, 2.0));
        assert!(at(61, 5.0, 9.0), "the threshold has moved above it");
        assert!(at(71, 0.1, 9.0));
        assert!(!at(72, 0.1, 9.0));
        assert!(!at(73, 5.0, 9.0), "the next one has to cross the new threshold");
    }

    #[test]
    fn rows_from_before_an_alarm_do_not_move_it() {
        let mut incident = Incident::new(60_000);
        assert!(incident.follow(30 * 60_000, 9.0, 1.0));
        let mut successor = Incident::new(60_000).with_alarm(incident.alarm());
        for minute in 0..10 {
            assert!(successor.follow(minute * 60_000, 5.0, 1.0));
        }
        assert!(successor.follow(31 * 60_000, 0.1, 1.0) && successor.follow(40 * 60_000, 0.1, 1.0));
        assert!(!successor.follow(41 * 60_000, 0.1, 1.0));
    }

    #[test]
    fn rows_of_seconds_have_to_last_or_be_loud() {
        let seen = |rows: &[f64]| {
            let mut incident = Incident::new(15_000);
            let row = |(i, raw): (usize, &f64)| incident.follow(i as i64 * 15_000, *raw, 1.0);
            rows.iter().enumerate().map(row).collect::<Vec<_>>()
        };
        assert_eq!(seen(&[1.05, 1.05, 0.9, 1.05, 1.05]), [false; 5], "chance");
        assert_eq!(seen(&[1.05, 1.05, 1.05, 0.9]), [false, false, true, true], "half a minute");
        assert_eq!(seen(&[0.9, 1.2, 0.9]), [false, true, true], "loud");
        let mut incident = Incident::new(15_000);
        let after_a_gap = [0, 600_000].map(|t| incident.follow(t, 1.05, 1.0));
        assert_eq!(after_a_gap, [false; 2], "nobody knows what was between");
    }
}
