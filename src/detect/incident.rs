//! Incidents: one from the first alarm until the deviation is over.

use serde::{Deserialize, Serialize};

/// An incident lasts while the raw score is at least this share of the threshold that it crossed.
const HOLD: f64 = 0.8;
/// It is over when that has not been so for this long, or for three rows.
const PAUSE_MS: i64 = 10 * 60_000;
const PAUSE_ROWS: i64 = 3;

/// Follows one group. A lasting deviation moves the threshold above itself within hours; an incident keeps
/// to the threshold of its beginning, so it stays open for as long as the deviation lasts.
#[derive(Clone, Debug, PartialEq)]
pub struct Incident {
    pause_ms: i64,
    open: Option<Open>,
}

/// An incident that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    /// The least threshold that it crossed.
    level: f64,
    /// When it was last as loud as that, or nearly.
    last_ms: i64,
}

impl Incident {
    /// None open, for rows that are so far apart.
    pub fn new(interval_ms: i64) -> Self {
        Self { pause_ms: PAUSE_MS.max(PAUSE_ROWS * interval_ms), open: None }
    }

    /// The incident that is open.
    pub fn open(&self) -> Option<Open> {
        self.open
    }

    /// The same with this incident open.
    pub fn with_open(self, open: Option<Open>) -> Self {
        Self { open, ..self }
    }

    /// Takes the next row, and tells whether there is an incident at it.
    pub fn follow(&mut self, timestamp_ms: i64, raw: f64, threshold: f64) -> bool {
        self.open = match self.open {
            _ if raw >= threshold => {
                let level = self.open.map_or(threshold, |open| open.level.min(threshold));
                Some(Open { level, last_ms: timestamp_ms })
            }
            Some(open) if raw >= HOLD * open.level => Some(Open { last_ms: timestamp_ms, ..open }),
            open => open.filter(|open| timestamp_ms - open.last_ms <= self.pause_ms),
        };
        self.open.is_some()
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
}
