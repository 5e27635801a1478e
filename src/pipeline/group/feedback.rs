//! The alerts of a group: the budget, feedback on its incidents, and maintenance.

use super::Group;
use crate::detect::{self, AlertScore, IncidentFeedback, PastIncident, SuspendedTimes};
use crate::models::registry::periods::{self, Period};
use crate::window::ModelRole;

impl Group {
    /// The correction of the rows' threshold by recent incidents; `None` for a model without incidents.
    pub fn budget_correction(&self) -> Option<f64> {
        self.models.champion()?.alert_state().map(|alerts| alerts.correction(AlertScore::Row))
    }

    /// Incidents per day of the last week that count against the budget.
    pub fn incidents_per_day(&self) -> f64 {
        self.incidents.per_day()
    }

    /// Replaces the times of maintenance.
    pub fn set_suspended(&mut self, suspended: SuspendedTimes) {
        self.suspended = suspended;
        self.models.set_suspended(&self.suspended);
    }

    /// Follows the clock into and out of a maintenance.
    pub fn update_maintenance(&mut self, now_ms: i64) {
        let is_in_maintenance = self.suspended.iter().any(|range| range.contains(&now_ms));
        self.metrics_dirty |=
            is_in_maintenance != std::mem::replace(&mut self.is_in_maintenance, is_in_maintenance);
    }

    /// True during a maintenance.
    pub fn is_in_maintenance(&self) -> bool {
        self.is_in_maintenance
    }

    /// The incident that contains a time, and true if it is open.
    ///
    /// # Errors
    /// The nearest incident, if any.
    pub fn find_incident(&self, at_ms: i64) -> Result<(PastIncident, bool), Option<PastIncident>> {
        let incident = self.incidents.find(at_ms)?;
        Ok((incident, self.incidents.is_open_since(incident.start_ms)))
    }

    /// Applies feedback on the incident that started at a time; the same feedback again changes nothing. Returns the
    /// correction of what opened it, or `None` without such an incident or a model in service.
    pub fn apply_feedback(&mut self, start_ms: i64, feedback: IncidentFeedback) -> Option<f64> {
        let now_ms = self.newest_scored_ms()?;
        self.models.champion()?.alert_state()?;
        let [before, after] = self.incidents.set_feedback(start_ms, feedback, now_ms)?;
        let is_open = self.incidents.is_open_since(start_ms);
        let opened_by = after.iter().find(|incident| incident.start_ms == start_ms)?.opened_by;
        let alerts = self.models.alert_state_mut()?;
        alerts.revise(&before, &after, now_ms, self.detector.alerts.budget);
        if is_open && feedback == IncidentFeedback::False {
            alerts.accept_open_incident();
            self.incidents.end_open();
        }
        let correction = alerts.correction(opened_by);
        self.metrics_dirty = true;
        self.snapshot_dirty = true;
        Some(correction)
    }

    /// Takes over the published incidents. The last one is open if it reaches the newest written score and the champion's
    /// state has an open one.
    pub(super) fn restore_incidents(
        &mut self,
        incidents: Vec<PastIncident>,
        frozen_to_ms: i64,
        written_to_ms: Option<i64>,
    ) {
        let to_ms = self.window.newest_ms().unwrap_or(frozen_to_ms);
        let mut is_open = false;
        if let Some(alerts) = self.models.alert_state_mut() {
            alerts.set_published_incidents(&incidents, to_ms, self.detector.alerts.budget);
            is_open = alerts.is_incident_open();
        }
        self.incidents.restore_incidents(incidents, written_to_ms.filter(|_| is_open));
    }

    /// Applies the feedback that was recorded after the snapshot.
    pub(super) fn restore_feedback(&mut self, recorded: &[Period]) {
        let kind = |incident: &PastIncident| incident.feedback.map(|(feedback, _)| feedback);
        let before: Vec<PastIncident> = self.incidents.incidents().iter().copied().collect();
        let mut after = before.clone();
        periods::restore_feedback(&mut after, recorded, &self.detector.name, &self.labels);
        for (before, after) in before.iter().zip(&after) {
            if let Some(feedback) = kind(after).filter(|feedback| kind(before) != Some(*feedback)) {
                self.apply_feedback(after.start_ms, feedback);
            }
        }
    }

    /// The newest incident that opened after `after_ms`, at a time: its start, and true if it is still open then. It is
    /// open until the next scored row, or for the longest pause of an incident where none follows.
    pub fn incident_at(&self, at_ms: i64, after_ms: i64) -> Option<(i64, bool)> {
        let PastIncident { start_ms, last_ms, .. } = self.incidents.newest_within(after_ms, at_ms)?;
        // Scores from before the window, or of an earlier process, are not known.
        let is_followed = || {
            self.window.score(ModelRole::Champion, last_ms).is_none() || self.is_scored_within(last_ms, at_ms)
        };
        let pause_ms = detect::incident_pause_ms(self.gaps.interval_ms().unwrap_or(0));
        let goes_on = || self.incidents.is_open_since(start_ms) || !is_followed();
        let is_open = at_ms <= last_ms || at_ms - last_ms <= pause_ms && goes_on();
        Some((start_ms, is_open))
    }
}
