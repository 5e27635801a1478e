//! Detection: turns the rows of a group into scores, incidents and explanations.
//!
//! ```text
//! values ─ derived features (seasonal residual, difference, deviation) ─ scorer (forest, tail) ─ smoother ─┐
//!                                └─ what lasts of the residuals and of mean sizes ────────────────────────┤
//!        ─ thresholds of the model × width for little history × feedback of the group ─ incident
//! ```
//!
//! A forest on plain values detects little more than the daily rhythm. Here each value is first compared with the usual
//! value of its time of day, with the value a minute before and with the variation of the last minutes. The forest
//! scores these derived features jointly. The threshold is estimated from past scores, and the feedback of incidents on
//! it keeps their number to a budget per day.
//!
//! Detection uses only the past, keeps a bounded state per feature, and is a function of the rows alone: the same rows
//! give the same bits in training, in a backtest and live.

mod alerting;
mod config;
mod derived;
mod deviation;
mod encoder;
mod feedback;
mod filter;
mod fit;
mod incident;
mod lasting;
mod mean_size;
mod min_sigma;
mod recurring;
mod scorer;
mod seasonal;
mod smoother;
mod state;
mod threshold;
mod thresholds;
mod training_rows;
mod usual_minimum;

use crate::error::InvalidPart;
use crate::features::scale::SIGMA_QUANTILE_IN_SIGMAS;
use crate::forest::{self, ExtendedParams, Table};
use crate::prom::Labels;
use crate::window::{IncidentState, Score};
use alerting::RowAlertInput;
pub use alerting::{AlertState, max_incidents_per_day};
pub use config::{AlertBudget, Config, DEFAULT_BUDGET, KEY_TABLES};
use derived::{DERIVED_PER_FEATURE, DerivedFeatures};
pub use deviation::{Deviation, DeviationReason};
use encoder::residuals;
pub use feedback::{AlertScore, IncidentFeedback, PastIncident};
use filter::DeviationFilter;
pub use filter::{Direction, MinDeviation};
use fit::TrainingScore;
pub use fit::{FittedScorer, MAX_TRAINING_VALUES, TrainingMatrix, warm_up_ms};
pub use incident::incident_pause_ms;
use lasting::LastingDeviations;
pub use mean_size::MeanSize;
use mean_size::Rate;
pub use scorer::{ScoreScale, Scorer, ScorerParts};
use smoother::ScoreSmoother;
pub use state::{Checkpoint, SavedState};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::sync::Arc;
use thresholds::Thresholds;

/// Times, in milliseconds, in which no incident is open and no threshold is learned.
pub type SuspendedTimes = Arc<[RangeInclusive<i64>]>;

/// The result for one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    /// Calibrated score, at least 0. Its unit is the alert threshold with the correction of about the last week.
    pub score: f64,
    /// The score at which an incident opens: about 1 in calm times, more after incidents, less in quiet days after a week
    /// of incidents.
    pub threshold: f64,
    /// True if a level is accepted as usual after a deviation of hours, by the score of the row or by that of what lasts.
    pub is_level_accepted: bool,
    /// The logarithm of the factor by which recent incidents raise the threshold.
    pub budget_correction: f64,
    /// The forest's decision in [-0.5, 0.5]; negative is anomalous.
    pub decision: f64,
    /// True if the row is part of an incident.
    pub incident: bool,
    /// The score that opened the incident at the row; `None` for other rows.
    pub opened_by: Option<AlertScore>,
    /// The strongest deviation of each feature, in descending order.
    pub deviations: Vec<Deviation>,
    /// The values of the row, `[n_features]`.
    pub values: Vec<f32>,
    /// Lower bound, expected value and upper bound of each feature, `[n_features]`; NaN before a first day.
    pub expected_range: Vec<[f64; 3]>,
}

impl Assessment {
    /// The assessment in a wider row of `n_features`: feature `i` moves to `positions[i]`, values and ranges of the other
    /// features are NaN.
    pub fn remapped(mut self, positions: &[usize], n_features: usize) -> Self {
        let (mut values, mut expected_ranges) = (vec![f32::NAN; n_features], vec![[f64::NAN; 3]; n_features]);
        for (feature, position) in positions.iter().enumerate() {
            values[*position] = self.values[feature];
            expected_ranges[*position] = self.expected_range[feature];
        }
        self.deviations.iter_mut().for_each(|deviation| deviation.feature = positions[deviation.feature]);
        Self { values, expected_range: expected_ranges, ..self }
    }

    /// At most `k` features that explain the score: number of the feature, reason, and share of the total deviation in
    /// [0, 1]. After the strongest deviation follow only those that 99 % of the training rows do not reach.
    pub fn contributions(&self, k: usize) -> impl Iterator<Item = (usize, DeviationReason, f64)> {
        let total: f64 = self.deviations.iter().map(|deviation| deviation.sigmas).sum();
        let is_contributor =
            |(i, deviation): &(usize, &Deviation)| *i == 0 || deviation.sigmas > SIGMA_QUANTILE_IN_SIGMAS;
        let share = move |deviation: &Deviation| if total > 0.0 { deviation.sigmas / total } else { 0.0 };
        let strongest = self.deviations.iter().take(k).enumerate().filter(is_contributor);
        strongest.map(move |(_, deviation)| (deviation.feature, deviation.reason, share(deviation)))
    }
}

/// The detector of one group: a fitted scorer and the state after the newest row.
#[derive(Clone, Debug, PartialEq)]
pub struct OnlineDetector {
    scorer: Arc<Scorer>,
    derived: DerivedFeatures,
    smoother: ScoreSmoother,
    lasting: LastingDeviations,
    thresholds: Thresholds,
    alerts: AlertState,
    /// One filter per feature; empty if no deviation is filtered.
    filters: Vec<DeviationFilter>,
    suspended: SuspendedTimes,
}

impl OnlineDetector {
    /// Fits a detector to a table `[n_rows, n_features]` with ascending timestamps in milliseconds. The detector
    /// continues after the last row, with a budget in alerts per day.
    ///
    /// # Errors
    /// [`forest::Error`] if no row has derived features, a value is not finite, or the parameters do not fit the table.
    ///
    /// # Panics
    /// If the timestamps do not ascend, or their number is not that of the rows.
    pub fn fit(
        timestamps: &[i64],
        table: &Table,
        params: &ExtendedParams,
        budget: f64,
        threads: NonZeroUsize,
    ) -> Result<Self, forest::Error> {
        assert_eq!(timestamps.len(), table.n_rows(), "one timestamp per row");
        let fitted = TrainingMatrix::new(timestamps, table, Vec::new())?.fit(params, threads)?;
        Ok(Self::from_training(fitted).0.with_budget(budget))
    }

    /// A detector that continues after the last training row, with the default budget. The second value holds timestamp
    /// in milliseconds and score of each training row that can be scored, ascending; forests that were not fitted to
    /// the row scored it.
    pub fn from_training(fitted: FittedScorer) -> (Self, Vec<(i64, Score)>) {
        let FittedScorer { scorer, derived, lasting, scores } = fitted;
        let interval_ms = derived.lookback().interval_ms();
        let mut smoother = ScoreSmoother::new(interval_ms);
        let mut thresholds = Thresholds::new(DEFAULT_BUDGET);
        let mut training_alerts = AlertState::default();
        let mut calibrate = |TrainingScore { timestamp_ms, raw, decision, lasting }| {
            let input = RowAlertInput {
                timestamp_ms,
                raw,
                smoothed: smoother.smooth(timestamp_ms, raw),
                lasting,
                thresholds: thresholds.values_at(timestamp_ms),
                is_suspended: false,
            };
            let scores = input.scores();
            thresholds.add(timestamp_ms, scores, false);
            let alert = training_alerts.update(input, DEFAULT_BUDGET, interval_ms);
            let incident_state =
                Some(IncidentState { threshold: alert.threshold(), is_incident: alert.is_incident });
            (timestamp_ms, Score { decision, score: alert.score(scores), incident_state })
        };
        let scores = scores.into_iter().map(&mut calibrate).collect();
        let (scorer, alerts, filters) = (Arc::new(scorer), AlertState::default(), Vec::new());
        let suspended = SuspendedTimes::default();
        (Self { scorer, derived, smoother, lasting, thresholds, alerts, filters, suspended }, scores)
    }

    /// The fitted scorer.
    pub fn scorer(&self) -> &Scorer {
        &self.scorer
    }

    /// The range around the newest value of each feature, `[n_features]`; see [`Scorer::typical_range`].
    pub fn typical_ranges(&self) -> Vec<[f32; 2]> {
        let newest = self.derived.rows().last().map(|(_, values)| values.as_ref()).unwrap_or_default();
        newest.iter().enumerate().map(|(feature, value)| self.scorer.typical_range(feature, *value)).collect()
    }

    /// The state after the newest row, without the alert state of the group.
    pub fn state(&self) -> SavedState {
        SavedState::from_parts(&self.derived, self.smoother, &self.lasting, &self.thresholds)
    }

    /// A detector that continues from a saved state, with the default budget and without incidents.
    ///
    /// # Errors
    /// [`InvalidPart`] if the state is damaged or has another number of features than the scorer.
    pub fn restore(scorer: Scorer, state: SavedState) -> Result<Self, InvalidPart> {
        Self::from_checkpoint(Arc::new(scorer), Checkpoint { state, alerts: AlertState::default() })
    }

    /// The complete state after the newest row.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { state: self.state(), alerts: self.alerts.clone() }
    }

    /// The detector with the same scorer that continues from a checkpoint, with the default budget.
    ///
    /// # Errors
    /// [`InvalidPart`] if the checkpoint is damaged or has another number of features.
    pub fn resume(&self, checkpoint: Checkpoint) -> Result<Self, InvalidPart> {
        Self::from_checkpoint(self.scorer.clone(), checkpoint)
    }

    fn from_checkpoint(
        scorer: Arc<Scorer>,
        Checkpoint { state, alerts }: Checkpoint,
    ) -> Result<Self, InvalidPart> {
        let (expected, found) = (scorer.n_features(), state.n_features());
        if found != expected {
            return Err(InvalidPart::new("number of features", found, expected));
        }
        alerts.check()?;
        let (derived, smoother, lasting, thresholds) = state.restore(DEFAULT_BUDGET, &scorer)?;
        let (filters, suspended) = (Vec::new(), SuspendedTimes::default());
        Ok(Self { scorer, derived, smoother, lasting, thresholds, alerts, filters, suspended })
    }

    /// A detector for another group, before its first row: the same scorer, and the thresholds multiplied by `factor`.
    pub fn transferred(&self, factor: f64) -> Self {
        let lookback = self.derived.lookback();
        Self {
            scorer: self.scorer.clone(),
            derived: DerivedFeatures::new(self.n_features(), lookback),
            smoother: ScoreSmoother::new(lookback.interval_ms()),
            lasting: self.scorer.lasting(lookback),
            thresholds: self.thresholds.clone().scaled(factor),
            alerts: AlertState::default(),
            filters: self.filters.clone(),
            suspended: SuspendedTimes::default(),
        }
    }

    /// Replaces the times in which no incident is open.
    pub fn set_suspended(&mut self, suspended: SuspendedTimes) {
        self.suspended = suspended;
    }

    /// Replaces the budget of alerts per day, above 0.
    pub fn with_budget(mut self, budget: f64) -> Self {
        self.thresholds.set_budget(budget);
        self
    }

    /// Replaces the budget and the filters, for features with these labels.
    pub fn set_alerts(&mut self, config: &Config, features: &[Labels]) {
        self.filters = config.deviation_filters(features);
        self.thresholds.set_budget(config.budget);
    }

    /// Replaces the alert state by that of the group.
    pub fn with_alert_state(self, alerts: AlertState) -> Self {
        Self { alerts, ..self }
    }

    /// Changes the alert state by feedback of a person.
    pub fn alert_state_mut(&mut self) -> &mut AlertState {
        &mut self.alerts
    }

    /// The alert state after the newest row.
    pub fn alert_state(&self) -> &AlertState {
        &self.alerts
    }

    /// Lower bound, expected value and upper bound of these features at ascending times, `[n_times][n_features]`, by
    /// the profile after the newest row; NaN before a first day.
    pub fn expected_ranges(&self, times_ms: &[i64], features: &[usize]) -> Vec<Vec<[f64; 3]>> {
        let mut derived = self.derived.clone();
        let at = |timestamp_ms: &i64| {
            let expected = derived.expected(*timestamp_ms);
            let range = |feature: &usize| self.scorer.expected_range(*feature, expected[*feature]);
            features.iter().map(range).collect()
        };
        times_ms.iter().map(at).collect()
    }

    /// Number of features.
    pub fn n_features(&self) -> usize {
        self.derived.n_features()
    }

    /// Timestamp of the newest row in milliseconds.
    pub fn newest_ms(&self) -> Option<i64> {
        self.derived.newest_ms()
    }

    /// The median interval of rows in milliseconds.
    pub fn interval_ms(&self) -> i64 {
        self.derived.lookback().interval_ms()
    }

    /// The budget in alerts per day.
    pub fn budget(&self) -> f64 {
        self.thresholds.budget()
    }

    /// Assesses the next row, `[n_features]`, and adds it to the state. Returns `None` for a row that is not newer than
    /// the newest one; the state then stays as it is.
    ///
    /// # Panics
    /// If the row has another width than in training.
    pub fn assess(&mut self, timestamp_ms: i64, values: &[f32]) -> Option<Assessment> {
        if self.derived.newest_ms().is_some_and(|newest_ms| timestamp_ms <= newest_ms) {
            return None;
        }
        let mut columns = self.derived.derive(timestamp_ms, values);
        let expected = self.derived.expected(timestamp_ms);
        for (feature, filter) in self.filters.iter().enumerate() {
            let columns = &mut columns[feature * DERIVED_PER_FEATURE..(feature + 1) * DERIVED_PER_FEATURE];
            let mask = filter.mask(columns, values[feature], expected[feature]);
            let dropped_columns = columns.iter_mut().zip(mask).filter(|(_, is_kept)| !is_kept);
            // NaN is scored as usual.
            dropped_columns.for_each(|(column, _)| *column = f32::NAN);
        }
        // A correlation residual has no direction: a feature that falls makes the others too high for it.
        let masked: Vec<usize> = (0..self.filters.len()).collect();
        let baselines = self.derived.recurring().baseline();
        let row_score = self.scorer.score(values, &columns, baselines, &masked);
        let is_suspended = self.suspended.iter().any(|range| range.contains(&timestamp_ms));
        // What happens in a maintenance lasts after it only if it lasted before.
        let weight = if is_suspended && !self.alerts.is_lasting_accepted() { 0.0 } else { 1.0 };
        let rate = |feature: usize| Rate { value: f64::from(values[feature]), expected: expected[feature] };
        let is_filtered = |feature: usize| columns[feature * DERIVED_PER_FEATURE].is_nan();
        let mean_sizes = self.scorer.mean_sizes().iter();
        let mean_sizes = mean_sizes.map(|mean_size| mean_size.filtered_deviation(rate, is_filtered));
        let residuals =
            residuals(&row_score.standardized).chain(mean_sizes).map(|residual| weight * residual);
        let input = RowAlertInput {
            timestamp_ms,
            raw: row_score.raw,
            smoothed: self.smoother.smooth(timestamp_ms, row_score.raw),
            lasting: self.lasting.add(timestamp_ms, residuals),
            thresholds: self.thresholds.values_at(timestamp_ms),
            is_suspended,
        };
        let scores = input.scores();
        let alert = self.alerts.update(input, self.budget(), self.interval_ms());
        if !is_suspended {
            self.thresholds.add(timestamp_ms, scores.above(alert.accepted_levels), true);
        }
        let expected_range =
            |(feature, expected): (usize, &f64)| self.scorer.expected_range(feature, *expected);
        Some(Assessment {
            score: alert.score(scores),
            threshold: alert.threshold(),
            is_level_accepted: alert.has_accepted_level(),
            budget_correction: self.alerts.correction(AlertScore::Row),
            decision: row_score.decision,
            incident: alert.is_incident,
            opened_by: alert.opened_by,
            expected_range: expected.iter().enumerate().map(expected_range).collect(),
            deviations: if alert.is_lasting(scores) {
                self.lasting.strongest()
            } else {
                row_score.deviations
            },
            values: values.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests;
