//! The alert state of a group: the open incident, accepted levels, and the feedback that keeps the budget.
//!
//! It belongs to the group, not to a model: a model that replaces another one inherits it.

use super::feedback::{BudgetFeedback, PastIncident};
use super::incident::{IncidentTracker, IncidentUpdate};
use super::thresholds::{LASTING_BUDGET_SHARE, RowAndLasting};
use crate::error::InvalidPart;
use serde::{Deserialize, Serialize};

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertState {
    feedback: BudgetFeedback,
    incident_tracker: IncidentTracker,
    /// Of deviations that last.
    #[serde(default)]
    lasting: LastingState,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LastingState {
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
    /// The smoothed score, and that of what lasts; 0 where that is unknown.
    pub scores: RowAndLasting,
    /// False while it is unknown what lasts.
    pub is_lasting_known: bool,
    /// The thresholds of the model, without the correction of the group.
    pub thresholds: RowAndLasting,
    /// True if no incident may be open at the row.
    pub is_suspended: bool,
}

/// The result of one row, in units of the raw score and of the score of what lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowAlert {
    /// The scores at which an incident opens: one of the two suffices.
    pub thresholds: RowAndLasting,
    /// The unit of the published score.
    pub unit: f64,
    /// True if the row is part of an incident.
    pub is_incident: bool,
    /// True if what lasts is an incident.
    pub is_lasting_incident: bool,
    /// True if the row opens the incident.
    pub has_opened: bool,
    /// The accepted levels; 0 for none.
    pub accepted_levels: RowAndLasting,
}

impl RowAlert {
    /// The published threshold.
    pub fn threshold(&self) -> f64 {
        self.thresholds.row / self.unit
    }

    /// The published score. While what lasts is an incident, its share of its threshold counts as much as that of the row.
    pub fn score(&self, scores: RowAndLasting) -> f64 {
        self.lasting_score(scores).max(scores.row) / self.unit
    }

    /// True if what lasts gives the published score.
    pub fn is_lasting(&self, scores: RowAndLasting) -> bool {
        self.lasting_score(scores) > scores.row
    }

    /// The score of what lasts in units of the raw score; 0 if it is no incident.
    fn lasting_score(&self, scores: RowAndLasting) -> f64 {
        match self.is_lasting_incident {
            true => scores.lasting / self.thresholds.lasting * self.thresholds.row,
            false => 0.0,
        }
    }
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
        let trackers = [&self.incident_tracker, &self.lasting.incident_tracker];
        trackers.into_iter().any(|tracker| tracker.unchanged().is_incident)
    }

    /// True if what lasts is accepted as usual.
    pub fn is_lasting_accepted(&self) -> bool {
        self.lasting.incident_tracker.unchanged().accepted_level > 0.0
    }

    /// Ends the open incident: its greatest score counts as usual until the deviation is over.
    pub fn accept_open_incident(&mut self) {
        self.incident_tracker.accept_open();
        self.lasting.incident_tracker.accept_open();
    }

    /// Updates with the next row of a group with a budget in incidents per day and rows at an interval. A row that is not
    /// newer than the newest one changes nothing: a state that a model inherits may be newer than the model's rows.
    pub fn update(&mut self, row: RowAlertInput, budget: f64, interval_ms: i64) -> RowAlert {
        let RowAlertInput { timestamp_ms, raw, scores, is_lasting_known, thresholds, is_suspended } = row;
        let Self { feedback, incident_tracker, lasting } = self;
        let lasting_budget = LASTING_BUDGET_SHARE * budget;
        let is_newer = incident_tracker.newest_ms().is_none_or(|newest_ms| timestamp_ms > newest_ms);
        if is_newer {
            feedback.advance_to(timestamp_ms, budget);
            lasting.feedback.advance_to(timestamp_ms, lasting_budget);
        }
        let corrected = RowAndLasting {
            row: thresholds.row * feedback.factor(),
            lasting: thresholds.lasting * lasting.feedback.factor(),
        };
        let track = |tracker: &mut IncidentTracker, scores, threshold| match is_newer {
            true if is_suspended => tracker.suspend(timestamp_ms),
            true => tracker.update(timestamp_ms, scores, threshold, interval_ms),
            false => tracker.unchanged(),
        };
        let mut of_rows = track(incident_tracker, (raw, scores.row), corrected.row);
        let mut of_lasting = match is_lasting_known || is_suspended {
            true => track(&mut lasting.incident_tracker, (scores.lasting, scores.lasting), corrected.lasting),
            false if is_newer => lasting.incident_tracker.skip(timestamp_ms, interval_ms),
            false => lasting.incident_tracker.unchanged(),
        };
        let has_accepted = incident_tracker.has_accepted_since(&of_rows)
            || lasting.incident_tracker.has_accepted_since(&of_lasting);
        let is_known_to_last = !of_rows.is_incident && of_rows.accepted_level > 0.0;
        if has_accepted {
            // Three hours end an incident, whichever of the two they are of.
            incident_tracker.accept_open();
            (of_rows.is_incident, of_rows.has_opened) = (false, false);
        }
        if has_accepted || is_known_to_last {
            // What is accepted as usual lasts as usual.
            lasting.incident_tracker.accept_open();
            (of_lasting.is_incident, of_lasting.has_opened) = (false, false);
        }
        if let Some(excess) = of_rows.excess {
            feedback.count_excess(excess);
        }
        if let Some(excess) = of_lasting.excess {
            lasting.feedback.count_excess(excess);
        }
        let goes_on = |update: &IncidentUpdate| update.is_incident && !update.has_opened;
        let has_opened =
            !goes_on(&of_rows) && !goes_on(&of_lasting) && (of_rows.has_opened || of_lasting.has_opened);
        if has_opened && of_rows.has_opened {
            feedback.count_incident(timestamp_ms, budget);
        } else if has_opened {
            lasting.feedback.count_incident(timestamp_ms, lasting_budget);
        }
        let accepted_levels =
            RowAndLasting { row: of_rows.accepted_level, lasting: of_lasting.accepted_level };
        RowAlert {
            thresholds: RowAndLasting {
                row: corrected.row + accepted_levels.row,
                lasting: corrected.lasting + accepted_levels.lasting,
            },
            unit: thresholds.row * feedback.slow_factor(),
            is_incident: of_rows.is_incident || of_lasting.is_incident,
            is_lasting_incident: of_lasting.is_incident,
            has_opened,
            accepted_levels,
        }
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
        self.incident_tracker.check()?;
        self.lasting.feedback.check()?;
        self.lasting.incident_tracker.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::HOUR_MS;

    fn input(timestamp_ms: i64, score: f64) -> RowAlertInput {
        of_both(timestamp_ms, score, 0.0)
    }

    fn of_both(timestamp_ms: i64, score: f64, lasting: f64) -> RowAlertInput {
        RowAlertInput {
            timestamp_ms,
            raw: score,
            scores: RowAndLasting { row: score, lasting },
            is_lasting_known: true,
            thresholds: RowAndLasting { row: 1.0, lasting: 1.0 },
            is_suspended: false,
        }
    }

    #[test]
    fn an_incident_raises_the_threshold_of_the_next_row_and_the_unit_slowly() {
        let mut state = AlertState::default();
        let first = state.update(input(0, 2.0), 1.0, 60_000);
        assert_eq!((first.is_incident, first.thresholds.row, first.unit), (true, 1.0, 1.0));
        let next = state.update(input(60_000, 0.0), 1.0, 60_000);
        assert_eq!((next.thresholds.row, next.unit), (0.15f64.exp(), 1.0));
        let later = state.update(input(2 * HOUR_MS, 0.0), 1.0, 60_000);
        assert!(
            later.thresholds.row < next.thresholds.row && later.unit > 1.0 && later.unit < 1.01,
            "{later:?}"
        );
    }

    #[test]
    fn what_lasts_opens_an_incident_and_raises_its_own_threshold() {
        let mut state = AlertState::default();
        let calm = state.update(of_both(0, 0.5, 0.9), 1.0, 60_000);
        assert!(!calm.is_incident && calm.score(RowAndLasting { row: 0.5, lasting: 0.9 }) == 0.5);
        let opened = state.update(of_both(60_000, 0.5, 1.2), 1.0, 60_000);
        let scores = RowAndLasting { row: 0.5, lasting: 1.2 };
        assert!(opened.has_opened && opened.is_lasting(scores) && state.is_incident_open());
        assert_eq!((opened.score(scores), opened.threshold()), (1.2, 1.0));
        let next = state.update(of_both(120_000, 2.0, 1.2), 1.0, 60_000);
        assert!(next.is_incident && !next.has_opened, "a row of the same incident");
        assert!(!next.is_lasting(RowAndLasting { row: 2.0, lasting: 1.2 }));
        // A step of a fourth of the budget is twice as large.
        assert_eq!(next.thresholds, RowAndLasting { row: 1.0, lasting: 0.3f64.exp() });
        state.accept_open_incident();
        let accepted = state.update(of_both(180_000, 2.0, 1.2), 1.0, 60_000);
        assert!(!accepted.is_incident);
        assert_eq!(accepted.accepted_levels, RowAndLasting { row: 2.0, lasting: 1.2 });
    }

    #[test]
    fn an_incident_of_rows_that_lasts_is_one_incident() {
        let mut state = AlertState::default();
        let opened = |minute: i64, state: &mut AlertState, row, lasting| {
            let alert = state.update(of_both(minute * 60_000, row, lasting), 1.0, 60_000);
            assert!(alert.is_incident, "{minute}");
            alert.has_opened
        };
        assert!(opened(0, &mut state, 2.0, 0.0));
        assert!(!(1..40).any(|minute| opened(minute, &mut state, if minute < 9 { 2.0 } else { 0.1 }, 1.2)));
        assert!(state.lasting.feedback.correction() == 0.0 && state.feedback.correction() > 0.0);
    }

    #[test]
    fn a_deviation_that_is_accepted_lasts_without_another_incident() {
        let mut dismissed = AlertState::default();
        assert!(dismissed.update(of_both(0, 3.0, 0.0), 1.0, 60_000).has_opened);
        dismissed.accept_open_incident();
        for minute in 1..600 {
            let alert = dismissed.update(of_both(minute * 60_000, 3.0, 2.0), 1.0, 60_000);
            assert!(!alert.is_incident && !alert.has_opened, "{minute}");
        }
        let mut untouched = AlertState::default();
        let lasting = |minute| if minute < 15 { 0.0 } else { 2.0 };
        let alerts: Vec<RowAlert> = (0..600)
            .map(|minute| untouched.update(of_both(minute * 60_000, 3.0, lasting(minute)), 1.0, 60_000))
            .collect();
        assert_eq!(alerts.iter().filter(|alert| alert.has_opened).count(), 1);
        assert_eq!(alerts.iter().filter(|alert| alert.is_incident).count(), 180, "three hours");
        let beyond = untouched.update(of_both(600 * 60_000, 6.0, 2.0), 1.0, 60_000);
        assert!(beyond.has_opened, "what goes beyond the level");
    }

    #[test]
    fn a_gap_in_what_lasts_ends_neither_its_incident_nor_its_level() {
        let mut state = AlertState::default();
        let update = |state: &mut AlertState, minute: i64, is_lasting_known| {
            let lasting = if is_lasting_known { 2.0 } else { 0.0 };
            let input = RowAlertInput { is_lasting_known, ..of_both(minute * 60_000, 0.1, lasting) };
            state.update(input, 1.0, 60_000)
        };
        assert!(update(&mut state, 0, true).has_opened);
        assert!((1..8).all(|minute| update(&mut state, minute, false).is_incident));
        assert!(!update(&mut state, 8, true).has_opened);
        state.accept_open_incident();
        for minute in [9, 60, 61, 70, 75] {
            assert!(!update(&mut state, minute, minute == 9 || minute == 75).is_incident, "{minute}");
        }
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
