//! Times that are excluded from training: named by the user, fired alerts, detected incidents.

use super::coverage::spans;
use crate::time::DAY_MS;

/// Reason of an exclusion by a detected incident.
const INCIDENT: &str = "incident detected by this detector";

/// Longest exclusion by a detected incident.
const MAX_DETECTED_MS: i64 = DAY_MS;

/// A time that is excluded from training.
#[derive(Clone, Debug, PartialEq)]
pub struct Exclusion {
    /// First millisecond.
    pub from_ms: i64,
    /// Last millisecond.
    pub to_ms: i64,
    /// The user's text, or the name of the alert that fired.
    pub reason: String,
    /// True if a model detected it. Such an exclusion lasts one day at most, so that new levels are learned.
    pub is_detected: bool,
}

impl Exclusion {
    /// The incidents that consist of rows with these timestamps in milliseconds, ascending.
    pub fn from_incident_rows(times: &[i64]) -> Vec<Self> {
        let exclusion =
            |(from_ms, to_ms)| Self { from_ms, to_ms, reason: INCIDENT.into(), is_detected: true };
        spans(times).map(exclusion).collect()
    }

    /// Shortens a detected exclusion to the length of the history before it, which begins at `first_ms`, and to one
    /// day: a model of one hour that detects an incident must not exclude everything after that hour.
    pub(super) fn capped(&self, first_ms: i64) -> Self {
        let before_ms = self.from_ms.saturating_sub(first_ms);
        let longest_ms = if self.is_detected { before_ms.clamp(0, MAX_DETECTED_MS) } else { i64::MAX };
        Self { to_ms: self.to_ms.min(self.from_ms.saturating_add(longest_ms)), ..self.clone() }
    }
}
