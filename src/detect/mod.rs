//! Detection: from the values of a group's rows to scores that mean something at 3 a.m.
//!
//! ```text
//! values ─ memory (time of day, difference, deviation, habits) ─ voices (forest, tail) ─ threshold ─ incident
//! ```
//!
//! A plain forest on values sees the daily rhythm and little else. Here every value is compared with what
//! its metric usually does at this hour and did a minute ago, the forest looks at how all that goes together,
//! and the threshold keeps to a number of alerts a day that somebody can live with. Everything looks
//! backward only, keeps a bounded state a metric, and is a function of the rows alone: the same rows give
//! the same bits, in training, in a backtest and live.

mod config;
mod recurring;
mod filter;
mod incident;
mod derived;
mod seasonal;
mod state;
mod threshold;
mod scorer;

use crate::features::scale::SIGMA_QUANTILE_IN_SIGMAS;
use crate::forest::{self, ExtendedParams, Table};
use crate::prom::Labels;
use crate::window::Score;
pub use config::{AlertBudget, Config, DEFAULT_BUDGET};
use derived::{DERIVED_PER_FEATURE, DerivedFeatures};
use filter::DeviationFilter;
pub use filter::{Direction, MinDeviation};
use incident::IncidentTracker;
pub use scorer::{Deviation, DeviationReason, FittedScorer, ScoreScale, Scorer, ScorerParts, TrainingMatrix};
pub use state::{Checkpoint, InvalidState, SavedState};
use std::num::NonZeroUsize;
use std::sync::Arc;
use threshold::PotThreshold;

/// What is said of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    /// Calibrated: at least 0, 1 is the threshold of alerts.
    pub score: f64,
    /// The threshold behind that 1, in raw units.
    pub threshold: f64,
    /// The forest's decision, in [-0.5, 0.5]; negative is anomalous.
    pub decision: f64,
    /// Is there an incident?
    pub incident: bool,
    /// Every metric with its strongest deviation, the strongest first.
    pub deviations: Vec<Deviation>,
    /// The values, as they were given.
    pub values: Vec<f32>,
    /// Least usual, expected and greatest usual value of each metric; NaN before a first day.
    pub expected_range: Vec<[f64; 3]>,
}

impl Assessment {
    /// The same among other metrics, where its own are at these places; nothing is known of the rest.
    pub fn remapped(mut self, positions: &[usize], n_features: usize) -> Self {
        let (mut values, mut expected_ranges) = (vec![f32::NAN; n_features], vec![[f64::NAN; 3]; n_features]);
        for (feature, position) in positions.iter().enumerate() {
            values[*position] = self.values[feature];
            expected_ranges[*position] = self.expected_range[feature];
        }
        self.deviations.iter_mut().for_each(|deviation| deviation.feature = positions[deviation.feature]);
        Self { values, expected_range: expected_ranges, ..self }
    }

    /// The strongest deviations: number of the metric, how it was unusual, and its share of all deviation, in
    /// [0, 1]. The first, and of the `k - 1` that follow those that 99 % of the training rows do not reach.
    pub fn contributions(&self, k: usize) -> impl Iterator<Item = (usize, DeviationReason, f64)> {
        let all: f64 = self.deviations.iter().map(|deviation| deviation.sigmas).sum();
        let is_contributor =
            |(i, deviation): &(usize, &Deviation)| *i == 0 || deviation.sigmas > SIGMA_QUANTILE_IN_SIGMAS;
        let share = move |deviation: &Deviation| if all > 0.0 { deviation.sigmas / all } else { 0.0 };
        let strongest = self.deviations.iter().take(k).enumerate().filter(is_contributor);
        strongest.map(move |(_, deviation)| (deviation.feature, deviation.reason, share(deviation)))
    }
}

/// A group under detection: what was learned of it, and its state.
#[derive(Clone, Debug, PartialEq)]
pub struct OnlineDetector {
    scorer: Arc<Scorer>,
    derived: DerivedFeatures,
    threshold: PotThreshold,
    incident_tracker: IncidentTracker,
    /// What counts of each metric; empty if all does.
    filters: Vec<DeviationFilter>,
}

impl OnlineDetector {
    /// Learns from rows in ascending order of time, one value of every metric in each, and goes on from the
    /// last of them, with a threshold for `budget` alerts a day.
    ///
    /// # Errors
    /// The forest's own: no rows that columns reach back from, values that are not finite, parameters that do
    /// not suit.
    ///
    /// # Panics
    /// If there is not one time for each row of the table, or they do not ascend.
    pub fn fit(
        timestamps: &[i64],
        table: &Table,
        params: &ExtendedParams,
        budget: f64,
        threads: NonZeroUsize,
    ) -> Result<Self, forest::Error> {
        assert_eq!(timestamps.len(), table.n_rows(), "a row has a time");
        let fitted = TrainingMatrix::new(timestamps, table)?.fit(params, threads)?;
        Ok(Self::from_training(fitted).0.with_budget(budget))
    }

    /// Goes on from the last row of training, with the default budget. The second value is what would have been
    /// said of the rows of training that could be scored, by timestamp in milliseconds, ascending, of forests that
    /// had not seen them.
    pub fn from_training(fitted: FittedScorer) -> (Self, Vec<(i64, Score)>) {
        let FittedScorer { scorer, derived, scores } = fitted;
        let mut threshold = PotThreshold::new(DEFAULT_BUDGET);
        let mut calibrate = |(timestamp_ms, raw, decision): (i64, f64, f64)| {
            let score = raw.max(0.0) / threshold.value_at(timestamp_ms);
            threshold.add(timestamp_ms, raw);
            (timestamp_ms, Score { decision, score, incident_state: None })
        };
        let scores = scores.into_iter().map(&mut calibrate).collect();
        let incident_tracker = IncidentTracker::new(derived.lookback().interval_ms());
        (Self { scorer: Arc::new(scorer), derived, threshold, incident_tracker, filters: Vec::new() }, scores)
    }

    /// What was learned.
    pub fn scorer(&self) -> &Scorer {
        &self.scorer
    }

    /// Values around those of the newest row, by what each metric does within minutes: `[n_metrics]`.
    pub fn typical_ranges(&self) -> Vec<[f32; 2]> {
        let newest = self.derived.rows().last().map(|(_, values)| values.as_ref()).unwrap_or_default();
        newest.iter().enumerate().map(|(feature, value)| self.scorer.typical_range(feature, *value)).collect()
    }

    /// The state after the newest row, for files.
    pub fn state(&self) -> SavedState {
        SavedState::from_parts(&self.derived, &self.threshold)
    }

    /// Goes on from a state, with the default budget and no incident open.
    ///
    /// # Errors
    /// [`InvalidState`].
    pub fn restore(scorer: Scorer, state: SavedState) -> Result<Self, InvalidState> {
        Self::from_checkpoint(Arc::new(scorer), Checkpoint { state, open_incident: None })
    }

    /// All that it has become, the open incident included.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { state: self.state(), open_incident: self.incident_tracker.open_incident() }
    }

    /// What another process had made of this detection, with the default budget.
    ///
    /// # Errors
    /// [`InvalidState`].
    pub fn resume(&self, checkpoint: Checkpoint) -> Result<Self, InvalidState> {
        Self::from_checkpoint(self.scorer.clone(), checkpoint)
    }

    fn from_checkpoint(
        scorer: Arc<Scorer>,
        Checkpoint { state, open_incident }: Checkpoint,
    ) -> Result<Self, InvalidState> {
        let (expected, found) = (scorer.n_features(), state.n_features());
        if found != expected {
            return Err(InvalidState::new("number of metrics", found, expected));
        }
        let (derived, threshold) = state.restore(DEFAULT_BUDGET)?;
        let incident_tracker =
            IncidentTracker::new(derived.lookback().interval_ms()).with_open_incident(open_incident);
        Ok(Self { scorer, derived, threshold, incident_tracker, filters: Vec::new() })
    }

    /// What was learned, before a first row of another group: with the threshold so many times as high.
    pub fn transferred(&self, factor: f64) -> Self {
        let lookback = self.derived.lookback();
        Self {
            scorer: self.scorer.clone(),
            derived: DerivedFeatures::new(self.n_features(), lookback),
            threshold: self.threshold.clone().scaled(factor),
            incident_tracker: IncidentTracker::new(lookback.interval_ms()),
            filters: self.filters.clone(),
        }
    }

    /// The same with a threshold for so many alerts a day, above 0.
    pub fn with_budget(self, budget: f64) -> Self {
        Self { threshold: self.threshold.with_budget(budget), ..self }
    }

    /// The same with another budget, and hearing only what counts of metrics with these labels.
    pub fn with_alerts(self, config: &Config, features: &[Labels]) -> Self {
        Self { filters: config.deviation_filters(features), ..self.with_budget(config.budget) }
    }

    /// Goes on with the incident of the one that served before, if it has none of its own: what deviates does so still,
    /// and raw scores of all models are on one scale.
    pub fn inherit_incident(self, predecessor: &Self) -> Self {
        let open_incident =
            self.incident_tracker.open_incident().or(predecessor.incident_tracker.open_incident());
        Self { incident_tracker: self.incident_tracker.with_open_incident(open_incident), ..self }
    }

    /// Number of metrics.
    pub fn n_features(&self) -> usize {
        self.derived.n_features()
    }

    /// Timestamp of the newest row that it has taken, in milliseconds.
    pub fn newest_ms(&self) -> Option<i64> {
        self.derived.newest_ms()
    }

    /// The usual distance of rows in milliseconds.
    pub fn interval_ms(&self) -> i64 {
        self.derived.lookback().interval_ms()
    }

    /// Alerts a day that the threshold keeps to.
    pub fn budget(&self) -> f64 {
        self.threshold.budget()
    }

    /// Takes the next row. `None` for one that is not after those before it.
    ///
    /// # Panics
    /// If the row has another width than in training.
    pub fn assess(&mut self, timestamp_ms: i64, values: &[f32]) -> Option<Assessment> {
        if self.derived.newest_ms().is_some_and(|newest_ms| timestamp_ms <= newest_ms) {
            return None;
        }
        let mut columns = self.derived.derive(timestamp_ms, values);
        let expected = self.derived.expected(timestamp_ms);
        // What is not known is as usual. How metrics go together has no direction of its own: one that falls makes the
        // others too high for it.
        let masked: Vec<usize> = (0..self.filters.len()).collect();
        for (feature, filter) in self.filters.iter().enumerate() {
            let columns = &mut columns[feature * DERIVED_PER_FEATURE..(feature + 1) * DERIVED_PER_FEATURE];
            let mask = filter.mask(columns, values[feature], expected[feature]);
            let dropped_columns = columns.iter_mut().zip(mask).filter(|(_, is_kept)| !is_kept);
            dropped_columns.for_each(|(column, _)| *column = f32::NAN);
        }
        let baselines = self.derived.recurring().baseline();
        let row_score = self.scorer.score(values, &columns, baselines, &masked);
        let threshold = self.threshold.value_at(timestamp_ms);
        self.threshold.add(timestamp_ms, row_score.raw);
        let expected_range =
            |(feature, expected): (usize, &f64)| self.scorer.expected_range(feature, *expected);
        Some(Assessment {
            score: row_score.raw.max(0.0) / threshold,
            threshold,
            decision: row_score.decision,
            incident: self.incident_tracker.update(timestamp_ms, row_score.raw, threshold),
            expected_range: expected.iter().enumerate().map(expected_range).collect(),
            deviations: row_score.deviations,
            values: values.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests;
