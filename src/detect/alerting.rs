//! The alert state of a group: the open incident, accepted levels, and the feedback that keeps the budget.
//!
//! It belongs to the group, not to a model: a model that replaces another one inherits it. The scores of rows and those
//! of what lasts have each their own, and an incident that both are in is one.

use super::feedback::{AlertScore, BudgetFeedback, PastIncident};
use super::incident::{IncidentTracker, IncidentUpdate};
use super::thresholds::{LASTING_BUDGET_SHARE, RowAndLasting};
use crate::error::InvalidPart;
use serde::{Deserialize, Serialize};

/// Most incidents per day on average for a budget in alerts per day: what only lasts may add to it.
pub fn max_incidents_per_day(budget: f64) -> f64 {
    (1.0 + LASTING_BUDGET_SHARE) * budget
}

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "SavedAlertState", into = "SavedAlertState")]
pub struct AlertState {
    row: ScoreAlerts,
    lasting: ScoreAlerts,
}

/// The alerts of one of the two scores.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScoreAlerts {
    feedback: BudgetFeedback,
    incident_tracker: IncidentTracker,
}

/// The saved form: the alerts of rows are flat in it, as in a file from before there were any of what lasts.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedAlertState {
    feedback: BudgetFeedback,
    incident_tracker: IncidentTracker,
    #[serde(default)]
    lasting: ScoreAlerts,
}

impl From<SavedAlertState> for AlertState {
    fn from(saved: SavedAlertState) -> Self {
        let SavedAlertState { feedback, incident_tracker, lasting } = saved;
        Self { row: ScoreAlerts { feedback, incident_tracker }, lasting }
    }
}

impl From<AlertState> for SavedAlertState {
    fn from(AlertState { row, lasting }: AlertState) -> Self {
        Self { feedback: row.feedback, incident_tracker: row.incident_tracker, lasting }
    }
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
    /// The score of what lasts; `None` while that is unknown.
    pub lasting: Option<f64>,
    /// The thresholds of the model, without the correction of the group.
    pub thresholds: RowAndLasting,
    /// True if no incident may be open at the row.
    pub is_suspended: bool,
}

impl RowAlertInput {
    /// The smoothed score, and that of what lasts; 0 where that is unknown.
    pub fn scores(&self) -> RowAndLasting {
        RowAndLasting { row: self.smoothed, lasting: self.lasting.unwrap_or_default() }
    }
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
    /// The score that opened an incident at the row.
    pub opened_by: Option<AlertScore>,
    /// The accepted levels; 0 for none.
    pub accepted_levels: RowAndLasting,
}

impl RowAlert {
    /// True if a level is accepted, by either score.
    pub fn has_accepted_level(&self) -> bool {
        self.accepted_levels.row > 0.0 || self.accepted_levels.lasting > 0.0
    }

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

impl ScoreAlerts {
    /// Passes a row with its raw and its smoothed score, `None` where they are unknown, and the threshold without the
    /// correction, and counts the excess of an incident that ends. A row that is not newer than the newest one changes
    /// nothing: a state that a model inherits may be newer than the model's rows. Returns the threshold and the incident.
    fn update(
        &mut self,
        row: &RowAlertInput,
        scores: Option<(f64, f64)>,
        threshold: f64,
        (budget, interval_ms): (f64, i64),
    ) -> (f64, IncidentUpdate) {
        let Self { feedback, incident_tracker } = self;
        let is_newer = incident_tracker.newest_ms().is_none_or(|newest_ms| row.timestamp_ms > newest_ms);
        if is_newer {
            feedback.advance_to(row.timestamp_ms, budget);
        }
        let threshold = threshold * feedback.factor();
        let incident = match scores {
            _ if !is_newer => incident_tracker.unchanged(),
            _ if row.is_suspended => incident_tracker.suspend(row.timestamp_ms),
            Some(scores) => incident_tracker.update(row.timestamp_ms, scores, threshold, interval_ms),
            None => incident_tracker.skip(row.timestamp_ms, interval_ms),
        };
        if let Some(excess) = incident.excess {
            feedback.count_excess(excess);
        }
        (threshold + incident.accepted_level, incident)
    }

    /// True if the row of an update was the last of an incident whose level is now accepted.
    fn has_accepted_since(&self, update: &IncidentUpdate) -> bool {
        self.incident_tracker.has_accepted_since(update)
    }

    /// Ends the incident of an update: its greatest score counts as usual until the deviation is over.
    fn accept_open(&mut self, update: &mut IncidentUpdate) {
        self.incident_tracker.accept_open();
        (update.is_incident, update.has_opened) = (false, false);
    }
}

impl AlertState {
    /// Replaces the feedback by that of the published incidents, ascending. Their scores are unknown: the noise floor stays,
    /// and which of the two opened them is unknown too: all count for the rows.
    pub fn set_published_incidents(&mut self, incidents: &[PastIncident], to_ms: i64, budget: f64) {
        self.row.feedback = self.row.feedback.replay(incidents, to_ms, budget);
    }

    /// Applies feedback of a person: the incidents of the group were counted as `before`, and count as `after`. The
    /// correction of the score that opened them changes.
    pub fn revise(&mut self, before: &[PastIncident], after: &[PastIncident], to_ms: i64, budget: f64) {
        let of_row = (&mut self.row, AlertScore::Row, budget);
        let of_lasting = (&mut self.lasting, AlertScore::Lasting, LASTING_BUDGET_SHARE * budget);
        for (alerts, opened_by, budget) in [of_row, of_lasting] {
            let of_score = |incidents: &[PastIncident]| -> Vec<PastIncident> {
                incidents.iter().filter(|incident| incident.opened_by == opened_by).copied().collect()
            };
            let (before, after) = (of_score(before), of_score(after));
            if before != after {
                alerts.feedback.revise(&before, &after, to_ms, budget);
            }
        }
    }

    /// True if an incident is open.
    pub fn is_incident_open(&self) -> bool {
        self.trackers().into_iter().any(IncidentTracker::is_open)
    }

    /// True if what lasts is accepted as usual.
    pub fn is_lasting_accepted(&self) -> bool {
        self.lasting.incident_tracker.unchanged().accepted_level > 0.0
    }

    /// Ends the open incident: its greatest score counts as usual until the deviation is over.
    pub fn accept_open_incident(&mut self) {
        self.row.incident_tracker.accept_open();
        self.lasting.incident_tracker.accept_open();
    }

    /// Updates with the next row of a group with a budget in incidents per day and rows at an interval. A row that is not
    /// newer than the newest one changes nothing.
    pub fn update(&mut self, row: RowAlertInput, budget: f64, interval_ms: i64) -> RowAlert {
        let RowAlertInput { timestamp_ms, raw, smoothed, lasting, thresholds, .. } = row;
        let lasting_budget = LASTING_BUDGET_SHARE * budget;
        // The incidents of both may meet at one row: then it is the same incident.
        let was_open =
            self.trackers().into_iter().any(|tracker| tracker.is_open_until(timestamp_ms, interval_ms));
        let (row_threshold, mut of_row) =
            self.row.update(&row, Some((raw, smoothed)), thresholds.row, (budget, interval_ms));
        let lasting_scores = lasting.map(|score| (score, score));
        let (lasting_threshold, mut of_lasting) =
            self.lasting.update(&row, lasting_scores, thresholds.lasting, (lasting_budget, interval_ms));
        let has_accepted =
            self.row.has_accepted_since(&of_row) || self.lasting.has_accepted_since(&of_lasting);
        let is_known_to_last = !of_row.is_incident && of_row.accepted_level > 0.0;
        if has_accepted {
            // Three hours end an incident, whichever of the two they are of.
            self.row.accept_open(&mut of_row);
        }
        if has_accepted || is_known_to_last {
            // What is accepted as usual lasts as usual.
            self.lasting.accept_open(&mut of_lasting);
        }
        let opened_by = match was_open {
            false if of_row.has_opened => Some(AlertScore::Row),
            false if of_lasting.has_opened => Some(AlertScore::Lasting),
            _ => None,
        };
        match opened_by {
            Some(AlertScore::Row) => self.row.feedback.count_incident(timestamp_ms, budget),
            Some(AlertScore::Lasting) => self.lasting.feedback.count_incident(timestamp_ms, lasting_budget),
            None => {}
        }
        RowAlert {
            thresholds: RowAndLasting { row: row_threshold, lasting: lasting_threshold },
            unit: thresholds.row * self.row.feedback.slow_factor(),
            is_incident: of_row.is_incident || of_lasting.is_incident,
            is_lasting_incident: of_lasting.is_incident,
            opened_by,
            accepted_levels: RowAndLasting { row: of_row.accepted_level, lasting: of_lasting.accepted_level },
        }
    }

    /// The correction of the threshold of one of the scores.
    pub fn correction(&self, of: AlertScore) -> f64 {
        let alerts = match of {
            AlertScore::Row => &self.row,
            AlertScore::Lasting => &self.lasting,
        };
        alerts.feedback.correction()
    }

    /// Checks a saved state.
    ///
    /// # Errors
    /// [`InvalidPart`] for numbers out of their ranges.
    pub fn check(&self) -> Result<(), InvalidPart> {
        [&self.row, &self.lasting].into_iter().try_for_each(|alerts| {
            alerts.feedback.check()?;
            alerts.incident_tracker.check()
        })
    }

    fn trackers(&self) -> [&IncidentTracker; 2] {
        [&self.row.incident_tracker, &self.lasting.incident_tracker]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::IncidentFeedback;
    use crate::time::HOUR_MS;

    fn input(timestamp_ms: i64, score: f64) -> RowAlertInput {
        of_both(timestamp_ms, score, 0.0)
    }

    fn of_both(timestamp_ms: i64, score: f64, lasting: f64) -> RowAlertInput {
        RowAlertInput {
            timestamp_ms,
            raw: score,
            smoothed: score,
            lasting: Some(lasting),
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
        assert!(opened.is_lasting(scores) && state.is_incident_open());
        assert_eq!(opened.opened_by, Some(AlertScore::Lasting));
        assert_eq!((opened.score(scores), opened.threshold()), (1.2, 1.0));
        let next = state.update(of_both(120_000, 2.0, 1.2), 1.0, 60_000);
        assert!(next.is_incident && next.opened_by.is_none(), "a row of the same incident");
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
            alert.opened_by.is_some()
        };
        assert!(opened(0, &mut state, 2.0, 0.0));
        assert!(!(1..40).any(|minute| opened(minute, &mut state, if minute < 9 { 2.0 } else { 0.1 }, 1.2)));
        assert!(state.correction(AlertScore::Lasting) == 0.0 && state.correction(AlertScore::Row) > 0.0);
    }

    #[test]
    fn a_deviation_that_is_accepted_lasts_without_another_incident() {
        let mut dismissed = AlertState::default();
        assert!(dismissed.update(of_both(0, 3.0, 0.0), 1.0, 60_000).is_incident);
        dismissed.accept_open_incident();
        for minute in 1..600 {
            let alert = dismissed.update(of_both(minute * 60_000, 3.0, 2.0), 1.0, 60_000);
            assert!(!alert.is_incident && alert.opened_by.is_none(), "{minute}");
        }
        let mut untouched = AlertState::default();
        let lasting = |minute| if minute < 15 { 0.0 } else { 2.0 };
        let alerts: Vec<RowAlert> = (0..600)
            .map(|minute| untouched.update(of_both(minute * 60_000, 3.0, lasting(minute)), 1.0, 60_000))
            .collect();
        assert_eq!(alerts.iter().filter(|alert| alert.opened_by.is_some()).count(), 1);
        assert_eq!(alerts.iter().filter(|alert| alert.is_incident).count(), 180, "three hours");
        let beyond = untouched.update(of_both(600 * 60_000, 6.0, 2.0), 1.0, 60_000);
        assert!(beyond.opened_by.is_some(), "what goes beyond the level");
    }

    #[test]
    fn a_gap_in_what_lasts_ends_neither_its_incident_nor_its_level() {
        let mut state = AlertState::default();
        let update = |state: &mut AlertState, minute: i64, is_lasting_known: bool| {
            let lasting = is_lasting_known.then_some(2.0);
            let input = RowAlertInput { lasting, ..of_both(minute * 60_000, 0.1, 0.0) };
            state.update(input, 1.0, 60_000)
        };
        assert!(update(&mut state, 0, true).opened_by.is_some());
        assert!((1..8).all(|minute| update(&mut state, minute, false).is_incident));
        assert!(update(&mut state, 8, true).opened_by.is_none());
        state.accept_open_incident();
        for minute in [9, 60, 61, 70, 75] {
            assert!(!update(&mut state, minute, minute == 9 || minute == 75).is_incident, "{minute}");
        }
    }

    #[test]
    fn incidents_that_meet_at_a_row_are_one_and_a_gap_ends_it() {
        let opened_by = |gap: i64| {
            let mut state = AlertState::default();
            let mut at = |minute: i64, row, lasting| {
                let alert = state.update(of_both(minute * 60_000, row, lasting), 1.0, 60_000);
                (alert.is_incident, alert.opened_by)
            };
            assert_eq!(at(0, 2.0, 0.0), (true, Some(AlertScore::Row)));
            assert!((1..11).all(|minute| at(minute, 0.1, 0.0) == (true, None)));
            at(11 + gap, 0.1, 2.0)
        };
        assert_eq!(opened_by(0), (true, None), "that of the rows ends where that of what lasts begins");
        assert_eq!(opened_by(60), (true, Some(AlertScore::Lasting)));
    }

    #[test]
    fn feedback_changes_the_correction_of_what_opened_the_incident() {
        let mut state = AlertState::default();
        assert_eq!(state.update(of_both(0, 0.5, 2.0), 1.0, 60_000).opened_by, Some(AlertScore::Lasting));
        let of_both_scores =
            |state: &AlertState| [AlertScore::Row, AlertScore::Lasting].map(|score| state.correction(score));
        assert_eq!(of_both_scores(&state), [0.0, 0.3]);
        let incident = PastIncident { opened_by: AlertScore::Lasting, ..PastIncident::new(0, 60_000) };
        let judged = |feedback| PastIncident { feedback: Some((feedback, 60_000)), ..incident };
        let mut false_alarm = state.clone();
        false_alarm.revise(&[incident], &[judged(IncidentFeedback::False)], 60_000, 1.0);
        let [row, lasting] = of_both_scores(&false_alarm);
        assert!(row == 0.0 && (lasting - 0.6).abs() < 1e-12, "{row} {lasting}");
        state.revise(&[incident], &[judged(IncidentFeedback::Real)], 60_000, 1.0);
        assert_eq!(of_both_scores(&state), [0.0, 0.0]);
    }

    #[test]
    fn a_state_from_before_what_lasts_continues() {
        let mut state = AlertState::default();
        state.update(of_both(0, 2.0, 2.0), 1.0, 60_000);
        let mut saved = serde_json::to_value(&state).expect("JSON");
        assert_eq!(serde_json::from_value(saved.clone()).ok().as_ref(), Some(&state));
        saved.as_object_mut().expect("an object").remove("lasting").expect("the part");
        let old: AlertState = serde_json::from_value(saved.clone()).expect("the form before");
        assert_eq!(old, AlertState { row: state.row, ..AlertState::default() });
        saved["unknown"] = 1.into();
        assert!(serde_json::from_value::<AlertState>(saved).is_err());
    }

    #[test]
    fn published_incidents_leave_the_noise_floor() {
        let mut state = AlertState::default();
        state.update(input(0, 1.0), 1.0, 60_000);
        state.update(input(HOUR_MS, 0.0), 1.0, 60_000);
        let floor = state.correction(AlertScore::Row);
        assert!(!state.is_incident_open() && floor > 0.0);
        state.set_published_incidents(&[PastIncident::new(0, 0)], 100 * HOUR_MS, 1.0);
        assert!((state.correction(AlertScore::Row) - 0.06).abs() < 1e-12, "{state:?}");
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
