//! The alert state of a group: the open incident, accepted levels, and the feedback that keeps the budget.
//!
//! It belongs to the group, not to a model: a model that replaces another one inherits it.

use super::feedback::{BudgetFeedback, PastIncident};
use super::incident::{IncidentTracker, IncidentUpdate};
use crate::error::InvalidPart;
use serde::{Deserialize, Serialize};

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertState {
    feedback: BudgetFeedback,
    incident_tracker: IncidentTracker,
}

/// The scores of a row.
#[derive(Clone, Copy, Debug)]
pub struct RowAlertInput {
    /// Timestamp in milliseconds.
    pub timestamp_ms: i64,
    /// The raw score.
    pub raw: f64,
    /// The smoothed score.
    pub smoothed: f64,
    /// The threshold of the model, without the correction of the group.
    pub threshold: f64,
    /// True if no incident may be open at the row.
    pub is_suspended: bool,
}

/// The result of one row, in units of the raw score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowAlert {
    /// The score at which an incident opens.
    pub threshold: f64,
    /// The unit of the published score.
    pub unit: f64,
    /// True if the row is part of an incident.
    pub is_incident: bool,
    /// True if the row opens the incident.
    pub has_opened: bool,
    /// The accepted level; 0 for none.
    pub accepted_level: f64,
}

impl AlertState {
    /// Replaces the feedback by that of the published incidents, ascending. Their scores are unknown: the noise floor stays.
    pub fn set_published_incidents(&mut self, incidents: &[PastIncident], to_ms: i64, budget: f64) {
        self.feedback = self.feedback.replay(incidents, to_ms, budget);
    }

    /// Applies feedback of a person: the incidents of the group were counted as `before`, and count as `after`.
    pub fn revise(&mut self, before: &[PastIncident], after: &[PastIncident], to_ms: i64, budget: f64) {
        self.feedback.revise(before, after, to_ms, budget);
    }

    /// True if an incident is open.
    pub fn is_incident_open(&self) -> bool {
        self.incident_tracker.unchanged().is_incident
    }

    /// Ends the open incident: its greatest score counts as usual until the deviation is over.
    pub fn accept_open_incident(&mut self) {
        self.incident_tracker.accept_open();
    }

    /// Updates with the next row of a group with a budget in incidents per day and rows at an interval. A row that is not
    /// newer than the newest one changes nothing: a state that a model inherits may be newer than the model's rows.
    pub fn update(&mut self, row: RowAlertInput, budget: f64, interval_ms: i64) -> RowAlert {
        let RowAlertInput { timestamp_ms, raw, smoothed, threshold, is_suspended } = row;
        let Self { feedback, incident_tracker } = self;
        let is_newer = incident_tracker.newest_ms().is_none_or(|newest_ms| timestamp_ms > newest_ms);
        if is_newer {
            feedback.advance_to(timestamp_ms, budget);
        }
        let (corrected, unit) = (threshold * feedback.factor(), threshold * feedback.slow_factor());
        let update = match is_newer {
            true if is_suspended => incident_tracker.suspend(timestamp_ms),
            true => incident_tracker.update(timestamp_ms, (raw, smoothed), corrected, interval_ms),
            false => incident_tracker.unchanged(),
        };
        if let Some(excess) = update.excess {
            feedback.count_excess(excess);
        }
        if update.has_opened {
            feedback.count_incident(timestamp_ms, budget);
        }
        let IncidentUpdate { is_incident, has_opened, accepted_level, .. } = update;
        RowAlert { threshold: corrected + accepted_level, unit, is_incident, has_opened, accepted_level }
    }

    /// The feedback.
    pub fn feedback(&self) -> &BudgetFeedback {
        &self.feedback
    }

    /// Checks a saved state.
    ///
    /// # Errors
    /// [`InvalidPart`] for numbers out of their ranges.
    pub fn check(&self) -> Result<(), InvalidPart> {
        self.feedback.check()?;
        self.incident_tracker.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::HOUR_MS;

    fn input(timestamp_ms: i64, score: f64) -> RowAlertInput {
        RowAlertInput { timestamp_ms, raw: score, smoothed: score, threshold: 1.0, is_suspended: false }
    }

    #[test]
    fn an_incident_raises_the_threshold_of_the_next_row_and_the_unit_slowly() {
        let mut state = AlertState::default();
        let first = state.update(input(0, 2.0), 1.0, 60_000);
        assert_eq!((first.is_incident, first.threshold, first.unit), (true, 1.0, 1.0));
        let next = state.update(input(60_000, 0.0), 1.0, 60_000);
        assert_eq!((next.threshold, next.unit), (0.15f64.exp(), 1.0));
        let later = state.update(input(2 * HOUR_MS, 0.0), 1.0, 60_000);
        assert!(later.threshold < next.threshold && later.unit > 1.0 && later.unit < 1.01, "{later:?}");
    }

    #[test]
    fn published_incidents_leave_the_noise_floor() {
        let mut state = AlertState::default();
        state.update(input(0, 1.0), 1.0, 60_000);
        state.update(input(HOUR_MS, 0.0), 1.0, 60_000);
        let floor = state.feedback().correction();
        assert!(!state.is_incident_open() && floor > 0.0);
        state.set_published_incidents(&[PastIncident::new(0, 0)], 100 * HOUR_MS, 1.0);
        assert!((state.feedback().correction() - 0.06).abs() < 1e-12, "{:?}", state.feedback());
    }

    #[test]
    fn rows_from_before_the_newest_one_change_nothing() {
        let mut state = AlertState::default();
        state.update(input(HOUR_MS, 9.0), 1.0, 60_000);
        let before = state.clone();
        for minute in 0..10 {
            assert!(state.update(input(minute * 60_000, 0.0), 1.0, 60_000).is_incident);
        }
        assert_eq!(state, before);
    }
}
