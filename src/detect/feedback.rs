//! Feedback of incidents on the alert threshold: keeps the number of incidents to the budget, whatever the scores do.
//!
//! The correction c multiplies the threshold by e^c. Each incident raises it by one step, and each hour lowers it by the
//! budget's share of a step. While c is between its bounds, incidents = budget × days + change of c / step. c does not fall
//! below 0: a quiet group does not become more sensitive than its threshold.
//!
//! The budget is a ceiling, and scores of noise alone would fill it. Incidents that hardly exceed the threshold raise a
//! noise floor, which the correction does not fall below; incidents that exceed it clearly lower the floor again.

use crate::error::InvalidPart;
use crate::time::{DAY_MS, HOUR_MS};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Step of the correction for a budget of one a day; it is divided by the square root of the budget.
const STEP: f64 = 0.15;
/// Greatest correction: the threshold rises to 4.5 times its value at most.
const MAX_CORRECTION: f64 = 1.5;
/// An incident whose excess, the logarithm of the ratio of its greatest score to the threshold, is less than this raises the
/// noise floor, by this share of the difference; one with more lowers it by at most as much.
const CLEAR_EXCESS: f64 = 0.2;
const NOISE_GAIN: f64 = 0.3;
/// Greatest noise floor. For the tail of noise, incidents at this correction are about a quarter of those at 0.
const MAX_NOISE_FLOOR: f64 = 0.25;
/// Incidents within this time after a step belong to its episode, and make no further step; less for budgets of more
/// than three episodes a day.
const EPISODE_MS: i64 = 4 * HOUR_MS;
/// Hours that a gap between rows counts at most.
const MAX_GAP_HOURS: i64 = 24;
/// Hours in which the slow mean of the correction follows it: a week.
const SLOW_HOURS: f64 = 168.0;
/// Greatest hour of a saved state.
const MAX_HOUR: i64 = i64::MAX / HOUR_MS / 4;

/// The correction of a group's alert threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetFeedback {
    /// The correction without the noise floor, in [0, 1.5].
    correction: f64,
    /// The least correction, in [0, 0.25].
    #[serde(default)]
    noise_floor: f64,
    /// Mean of the correction over about a week.
    slow_correction: f64,
    /// Hours since the epoch at the newest row.
    hour: Option<i64>,
    /// Timestamp of the newest incident that made a step.
    stepped_ms: Option<i64>,
}

/// The feedback of a person on an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IncidentFeedback {
    /// It was real: it does not count against the budget.
    Real,
    /// It was a false alarm: it counts twice.
    False,
}

impl FromStr for IncidentFeedback {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "real" => Ok(Self::Real),
            "false" => Ok(Self::False),
            _ => Err(format!("{text:?} is not one of real, false")),
        }
    }
}

/// One of the two scores that open incidents, each against a threshold of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertScore {
    /// The score of the row.
    #[default]
    Row,
    /// The score of what lasts.
    Lasting,
}

/// An incident of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PastIncident {
    /// Timestamp of its first row.
    pub start_ms: i64,
    /// Timestamp of its last row so far.
    pub last_ms: i64,
    /// The feedback on it, and the time from which it counts.
    pub feedback: Option<(IncidentFeedback, i64)>,
    /// The score that opened it, whose budget it counts against; that of the row where it is unknown.
    #[serde(default)]
    pub opened_by: AlertScore,
}

impl PastIncident {
    /// An incident without feedback, of which it is unknown what opened it.
    pub fn new(start_ms: i64, last_ms: i64) -> Self {
        Self { start_ms, last_ms, feedback: None, opened_by: AlertScore::default() }
    }

    /// True if the incident counts against the budget.
    pub fn is_counted(&self) -> bool {
        !matches!(self.feedback, Some((IncidentFeedback::Real, _)))
    }

    /// The time from which a false alarm counts a second time.
    fn false_ms(&self) -> Option<i64> {
        let (feedback, at_ms) = self.feedback?;
        (feedback == IncidentFeedback::False).then_some(at_ms.max(self.start_ms))
    }
}

impl BudgetFeedback {
    /// The correction at a time after these incidents, above the same noise floor.
    pub fn replay(self, incidents: &[PastIncident], to_ms: i64, budget: f64) -> Self {
        let counted = incidents.iter().filter(|incident| incident.is_counted());
        let starts = counted.map(|incident| (incident.start_ms, false));
        let further = incidents.iter().filter_map(PastIncident::false_ms).map(|at_ms| (at_ms, true));
        // Feedback counts at once, whatever time is recorded for it.
        let steps = starts.chain(further).map(|(at_ms, is_further)| (at_ms.min(to_ms), is_further));
        let mut steps: Vec<(i64, bool)> = steps.collect();
        steps.sort_unstable();
        let mut feedback = Self { noise_floor: self.noise_floor, ..Self::default() };
        let ends = steps.iter().map(|(at_ms, _)| *at_ms).skip(1).chain([to_ms]);
        for ((at_ms, is_further), until_ms) in steps.iter().zip(ends) {
            feedback.advance_to(*at_ms, budget);
            match is_further {
                true => feedback.raise(budget),
                false => feedback.count_incident(*at_ms, budget),
            }
            // The rows between incidents are no gap.
            let days = (*at_ms..until_ms).step_by(DAY_MS as usize).skip(1);
            days.for_each(|day_ms| feedback.advance_to(day_ms, budget));
        }
        feedback.advance_to(to_ms, budget);
        feedback
    }

    /// Changes the correction by what these incidents make of it since they count differently.
    pub fn revise(&mut self, before: &[PastIncident], after: &[PastIncident], to_ms: i64, budget: f64) {
        let [before, after] = [before, after].map(|incidents| self.replay(incidents, to_ms, budget));
        self.correction = (self.correction + after.correction - before.correction).clamp(0.0, MAX_CORRECTION);
        self.stepped_ms = after.stepped_ms;
    }

    /// Lowers the correction by the hours that have passed, for a budget in incidents per day.
    pub fn advance_to(&mut self, timestamp_ms: i64, budget: f64) {
        let hour = timestamp_ms.div_euclid(HOUR_MS);
        let passed = hour.saturating_sub(self.hour.unwrap_or(hour));
        if passed < 0 {
            return;
        }
        self.hour = Some(hour);
        let hourly = step(budget) * budget / 24.0;
        for _ in 0..passed.min(MAX_GAP_HOURS) {
            self.correction = (self.correction - hourly).max(0.0);
            self.slow_correction +=
                (self.correction() - self.slow_correction) * (1.0 - (-1.0 / SLOW_HOURS).exp());
        }
    }

    /// Raises the correction for an incident, unless it belongs to the episode of the last step.
    pub fn count_incident(&mut self, timestamp_ms: i64, budget: f64) {
        if self
            .stepped_ms
            .is_none_or(|stepped_ms| timestamp_ms.saturating_sub(stepped_ms) >= episode_ms(budget))
        {
            self.raise(budget);
            self.stepped_ms = Some(timestamp_ms);
        }
    }

    fn raise(&mut self, budget: f64) {
        self.correction = (self.correction + step(budget)).min(MAX_CORRECTION);
    }

    /// Moves the noise floor at the end of an incident.
    pub fn count_excess(&mut self, excess: f64) {
        let change = NOISE_GAIN * (CLEAR_EXCESS - excess.min(2.0 * CLEAR_EXCESS));
        self.noise_floor = (self.noise_floor + change).clamp(0.0, MAX_NOISE_FLOOR);
    }

    /// The correction c, in [0, 1.5].
    pub fn correction(&self) -> f64 {
        self.correction.max(self.noise_floor)
    }

    /// The factor of the threshold: e^c.
    pub fn factor(&self) -> f64 {
        self.correction().exp()
    }

    /// The factor of the published score's unit: the same of the slow mean.
    pub fn slow_factor(&self) -> f64 {
        self.slow_correction.exp()
    }

    /// Checks saved numbers.
    ///
    /// # Errors
    /// [`InvalidPart`] for a correction out of its range.
    pub fn check(&self) -> Result<(), InvalidPart> {
        if let Some(hour) = self.hour.filter(|hour| !(0..=MAX_HOUR).contains(hour)) {
            return Err(InvalidPart::new(
                "hour of the budget correction",
                hour,
                format_args!("in 0..={MAX_HOUR}"),
            ));
        }
        let check = |name, value: f64, max: f64| match (0.0..=max).contains(&value) {
            true => Ok(()),
            false => Err(InvalidPart::new(name, value, format_args!("0 to {max}"))),
        };
        check("budget correction", self.correction, MAX_CORRECTION)?;
        check("mean budget correction", self.slow_correction, MAX_CORRECTION)?;
        check("noise floor of the budget correction", self.noise_floor, MAX_NOISE_FLOOR)
    }
}

fn episode_ms(budget: f64) -> i64 {
    EPISODE_MS.min((DAY_MS as f64 / (2.0 * budget)) as i64)
}

fn step(budget: f64) -> f64 {
    STEP / budget.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Incidents that open whenever a score of `e^x`, x uniform in [0, 2), exceeds the corrected threshold; a row an hour.
    fn incidents_per_day(budget: f64) -> f64 {
        let (mut feedback, mut state, mut n) = (BudgetFeedback::default(), 1u64, 0);
        let days = 400;
        for hour in 0..days * 24 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let score = (2.0 * (state >> 11) as f64 / (1u64 << 53) as f64).exp();
            feedback.advance_to(hour * HOUR_MS, budget);
            if hour % 4 == 0 && score >= 1.5 * feedback.factor() {
                feedback.count_incident(hour * HOUR_MS, budget);
                n += 1;
            }
        }
        f64::from(n) / days as f64
    }

    #[test]
    fn scores_of_any_size_give_as_many_incidents_as_the_budget() {
        for budget in [1.0, 2.0, 3.0] {
            let found = incidents_per_day(budget);
            assert!((found / budget - 1.0).abs() < 0.05, "{budget}: {found}");
        }
    }

    #[test]
    fn a_quiet_group_does_not_become_more_sensitive() {
        let mut feedback = BudgetFeedback::default();
        (0..500).for_each(|hour| feedback.advance_to(hour * HOUR_MS, 1.0));
        assert_eq!((feedback.factor(), feedback.slow_factor()), (1.0, 1.0));
    }

    #[test]
    fn incidents_that_hardly_exceed_the_threshold_raise_the_least_correction() {
        let mut feedback = BudgetFeedback::default();
        (0..3).for_each(|_| feedback.count_excess(0.1));
        assert!((feedback.correction() - 0.09).abs() < 1e-12);
        (0..9).for_each(|_| feedback.count_excess(0.0));
        assert!(feedback.correction() == 0.25 && feedback.check().is_ok());
        feedback.count_excess(f64::INFINITY);
        assert!(
            (feedback.correction() - 0.19).abs() < 1e-12,
            "a clear incident lowers it as much as noise raises it"
        );
        feedback.count_incident(0, 0.5);
        assert_eq!(feedback.correction(), step(0.5), "the greater of the two");
    }

    #[test]
    fn an_incident_is_forgotten_after_the_time_that_the_budget_allows_it() {
        let mut feedback = BudgetFeedback::default();
        feedback.advance_to(0, 0.5);
        feedback.count_incident(0, 0.5);
        feedback.count_incident(3 * HOUR_MS, 0.5);
        assert_eq!(feedback.correction(), 0.15 / 0.5f64.sqrt(), "one episode");
        for hour in 1..48 {
            feedback.advance_to(hour * HOUR_MS, 0.5);
        }
        assert!(feedback.correction() > 1e-3);
        feedback.advance_to(49 * HOUR_MS, 0.5);
        assert_eq!(feedback.correction(), 0.0);
    }

    #[test]
    fn a_gap_counts_a_day_at_most_and_older_rows_count_nothing() {
        let step = |hours: i64| {
            let mut feedback = BudgetFeedback::default();
            feedback.advance_to(0, 1.0);
            (0..5).for_each(|incident| feedback.count_incident(incident * EPISODE_MS, 1.0));
            feedback.advance_to(hours * HOUR_MS, 1.0);
            feedback
        };
        assert_eq!(step(24).correction(), step(1000).correction());
        let mut late = step(24);
        late.advance_to(0, 1.0);
        assert_eq!(late, step(24));
    }

    #[test]
    fn replayed_incidents_give_the_same_correction() {
        let starts = [0, DAY_MS, DAY_MS + HOUR_MS, 3 * DAY_MS];
        let mut feedback = BudgetFeedback::default();
        for hour in 0..=80 {
            feedback.advance_to(hour * HOUR_MS, 0.5);
            starts.iter().filter(|start| **start == hour * HOUR_MS).for_each(|start| {
                feedback.count_incident(*start, 0.5);
            });
        }
        let incidents = starts.map(|start_ms| PastIncident::new(start_ms, start_ms));
        let replayed = BudgetFeedback::default().replay(&incidents, 80 * HOUR_MS, 0.5);
        assert_eq!(replayed, feedback);
        assert!(replayed.correction() > 0.0 && replayed.check().is_ok());
    }

    #[test]
    fn a_real_incident_takes_its_step_back_and_a_false_one_adds_another() {
        let at_ms = 2 * HOUR_MS;
        let without = [PastIncident::new(0, HOUR_MS)];
        let with = |feedback| [PastIncident { feedback: Some((feedback, at_ms)), ..without[0] }];
        let (real, wrong) = (with(IncidentFeedback::Real), with(IncidentFeedback::False));
        let mut feedback = BudgetFeedback::default().replay(&without, at_ms, 1.0);
        let counted = feedback.correction();
        assert!((counted - 0.15 * 22.0 / 24.0).abs() < 1e-12, "{counted}");
        let mut revise = |before: &[PastIncident], after: &[PastIncident]| {
            feedback.revise(before, after, at_ms, 1.0);
            feedback.correction()
        };
        assert!(revise(&without, &real).abs() < 1e-12);
        assert!(revise(&real, &real).abs() < 1e-12, "once");
        assert!((revise(&real, &wrong) - counted - 0.15).abs() < 1e-12, "from one to the other");
        assert!((revise(&wrong, &without) - counted).abs() < 1e-12);
    }

    #[test]
    fn a_real_incident_begins_no_episode() {
        let incidents = [PastIncident::new(0, HOUR_MS)];
        let real = [PastIncident { feedback: Some((IncidentFeedback::Real, HOUR_MS)), ..incidents[0] }];
        let mut feedback = BudgetFeedback::default().replay(&incidents, HOUR_MS, 1.0);
        feedback.revise(&incidents, &real, HOUR_MS, 1.0);
        feedback.count_incident(2 * HOUR_MS, 1.0);
        assert!((feedback.correction() - 0.15).abs() < 1e-12, "the next incident makes a step");
    }

    #[test]
    fn feedback_of_any_time_counts_by_now() {
        let to_ms = 400 * DAY_MS;
        let replayed = |at_ms| {
            let feedback = Some((IncidentFeedback::False, at_ms));
            BudgetFeedback::default().replay(
                &[PastIncident { feedback, ..PastIncident::new(to_ms, to_ms) }],
                to_ms,
                1.0,
            )
        };
        assert_eq!(replayed(i64::MAX), replayed(to_ms));
        assert_eq!(replayed(i64::MIN), replayed(to_ms));
    }

    #[test]
    fn a_real_incident_takes_no_more_than_what_is_left_of_its_step() {
        let incidents = [PastIncident::new(0, 0), PastIncident::new(30 * HOUR_MS, 30 * HOUR_MS)];
        let to_ms = 31 * HOUR_MS;
        let mut feedback = BudgetFeedback::default().replay(&incidents, to_ms, 1.0);
        let before = feedback.correction();
        let real = PastIncident { feedback: Some((IncidentFeedback::Real, to_ms)), ..incidents[0] };
        feedback.revise(&incidents, &[real, incidents[1]], to_ms, 1.0);
        assert_eq!(feedback.correction(), before, "the first one is forgotten");
    }
}
