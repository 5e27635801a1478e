//! Fits a scorer to training rows.
//!
//! Training has two steps because several forests are fitted to the same rows (sweeps, cross-validation):
//! [`TrainingMatrix`] derives and standardizes the rows once, [`TrainingMatrix::fit`] fits the forest.
//!
//! The scores of the training rows estimate the threshold, so each has to be as great as that of a new row. Everything is
//! therefore fitted once more for each block of rows, to the rows of the other blocks: scales, correlation and forest.

use super::derived::{DERIVED_PER_FEATURE, DerivedFeatures, Lookback};
use super::encoder::{RowEncoder, derived_columns};
use super::scorer::{ScoreScale, Scorer, score_samples, tail_score};
use super::seasonal::SeasonalProfile;
use crate::features::correlation::{Correlation, Residuals};
use crate::features::scale::{self, RobustScale};
use crate::forest::{self, ExtendedForest, ExtendedParams, MAX_FEATURES, Table};
use std::num::NonZeroUsize;

/// Contiguous blocks of training rows; a scorer that is fitted to the other blocks scores each.
const BLOCKS: usize = 5;
/// Minimum number of known values of each derived feature; below it the model does without. The seasonal residual takes
/// a day to become known, the others take minutes.
const MIN_KNOWN_ROWS: [usize; DERIVED_PER_FEATURE] = [256, 8, 8];
/// Minimum number of rows per varying feature for correlation residuals: a correlation of fewer rows fits its noise.
const MIN_ROWS_PER_RESIDUAL: usize = 10;
/// Maximum number of varying features: each has its derived features and a correlation residual in the forest's input.
const MAX_VARYING: usize = MAX_FEATURES / (DERIVED_PER_FEATURE + 1);

/// The time from the first row until a scorer can be fitted to rows at this interval, in milliseconds: differences look
/// back over their lag, and training needs some.
pub fn warm_up_ms(interval_ms: i64) -> i64 {
    let lookback = Lookback::new(interval_ms);
    lookback.lag_ms() + (MIN_KNOWN_ROWS[1] as i64 - 1) * lookback.interval_ms()
}

/// The result of training.
pub struct FittedScorer {
    /// The scorer.
    pub scorer: Scorer,
    /// The state of the derived features after the last row.
    pub(super) derived: DerivedFeatures,
    /// Timestamp in milliseconds, raw score and decision of each row that can be scored, ascending. A scorer that was
    /// not fitted to the row scored it.
    pub scores: Vec<(i64, f64, f64)>,
}

/// Training rows in the form of the forest's input, before a forest is fitted.
pub struct TrainingMatrix {
    derived: DerivedFeatures,
    rows: TrainingRows,
    encoder: RowEncoder,
    /// Shape `[n_rows, n_inputs]`, column-major.
    forest_input: Vec<f32>,
}

impl TrainingMatrix {
    /// Derives and standardizes a table `[n_rows, n_features]` with ascending timestamps in milliseconds.
    ///
    /// A feature may begin later than others, with NaN before. The earlier rows then still count for the other
    /// features: the late feature's later values are repeated in its place.
    ///
    /// # Errors
    /// [`forest::Error`] if no row has derived features, a value is not finite, or too many features vary.
    pub fn new(timestamps: &[i64], table: &Table) -> Result<Self, forest::Error> {
        let (n_rows, n_features) = (table.n_rows(), table.n_features());
        if n_rows == 0 || n_features == 0 {
            return Err(forest::Error::Empty { n_rows, n_features });
        }
        let values = impute_before_start(table);
        Table::new(&values, n_rows, n_features)?.check_finite()?;
        let DerivedRows { derived, columns, baselines } = DerivedRows::new(timestamps, table);
        let timestamps = timestamps.to_vec();
        let mut rows = TrainingRows { timestamps, n_features, values, columns, baselines };
        let encoder = rows.fit_encoder()?;
        rows.complete(&encoder);
        let forest_input = rows.forest_input(&encoder);
        Ok(Self { derived, rows, encoder, forest_input })
    }

    /// The forest's input, `[n_rows, n_inputs]`; `None` if no feature varies.
    ///
    /// # Errors
    /// [`forest::Error::Empty`] if no row has all derived features.
    pub fn table(&self) -> Result<Option<Table<'_>>, forest::Error> {
        input_table(&self.forest_input, self.rows.len(), self.encoder.n_inputs())
    }

    /// Fits the scorer, and one more per block to score the training rows out of sample.
    ///
    /// # Errors
    /// [`forest::Error`] if the parameters do not fit the table, and the errors of [`table`](Self::table).
    pub fn fit(&self, params: &ExtendedParams, threads: NonZeroUsize) -> Result<FittedScorer, forest::Error> {
        let forest = self.table()?.map(|table| params.fit(&table, threads)).transpose()?;
        let Self { derived, rows, encoder, .. } = self;
        let scores = rows.out_of_sample_scores(encoder, params, threads)?;
        let scale =
            |part: fn(&BlockScore) -> f64| ScoreScale::fit(&scores.iter().map(part).collect::<Vec<f64>>());
        let (forest_scale, tail_scale) = (scale(|row| row.anomaly_score), scale(|row| row.tail_score));
        let scorer = Scorer::fitted(encoder.clone(), forest, forest_scale, tail_scale);
        let combine = |(timestamp_ms, row): (&i64, &BlockScore)| {
            (*timestamp_ms, scorer.combine(row.anomaly_score, row.tail_score), 0.5 - row.anomaly_score)
        };
        let scores = rows.timestamps.iter().zip(&scores).map(combine).collect();
        Ok(FittedScorer { scorer, derived: derived.clone(), scores })
    }
}

fn input_table(values: &[f32], n_rows: usize, n_features: usize) -> Result<Option<Table<'_>>, forest::Error> {
    match (n_rows, n_features) {
        (0, _) => Err(forest::Error::Empty { n_rows, n_features }),
        (_, 0) => Ok(None),
        _ => Table::new(values, n_rows, n_features).map(Some),
    }
}

/// The derived features of all training rows, and the state after them.
struct DerivedRows {
    derived: DerivedFeatures,
    columns: Vec<f32>,
    baselines: Vec<f32>,
}

impl DerivedRows {
    /// The profiles that prove to be the better ones in training are used from the first row. Otherwise the first weekend
    /// of a feature with a week widens its scale.
    fn new(timestamps: &[i64], table: &Table) -> Self {
        let (n_rows, n_features) = (table.n_rows(), table.n_features());
        let lookback = Lookback::from_timestamps(timestamps);
        let weekly: Vec<bool> = (0..n_features)
            .map(|feature| {
                let mut profile = SeasonalProfile::new(lookback.interval_ms());
                let values = timestamps.iter().zip(table.column_slice(feature));
                values
                    .filter(|(_, value)| value.is_finite())
                    .for_each(|(time, value)| profile.add(*time, *value));
                profile.is_weekly()
            })
            .collect();
        let mut derived = DerivedFeatures::new(n_features, lookback);
        let mut columns = Vec::with_capacity(n_rows * n_features * DERIVED_PER_FEATURE);
        let mut baselines = Vec::with_capacity(n_rows * n_features * (DERIVED_PER_FEATURE - 1));
        let mut values = vec![0.0; n_features];
        for (number, timestamp_ms) in timestamps.iter().enumerate() {
            table.copy_row(number, &mut values);
            derived.set_weekly(*timestamp_ms, &weekly);
            columns.extend(derived.derive(*timestamp_ms, &values));
            baselines.extend_from_slice(derived.recurring().baseline());
        }
        Self { derived, columns, baselines }
    }
}

/// Training rows with their derived features.
struct TrainingRows {
    /// Shape `[n_rows]`.
    timestamps: Vec<i64>,
    n_features: usize,
    /// Shape `[n_rows, n_features]`, column-major.
    values: Vec<f32>,
    /// Shape `[n_rows, n_features, DERIVED_PER_FEATURE]`, row-major.
    columns: Vec<f32>,
    /// Baselines of recurring peaks, shape `[n_rows, n_features, DERIVED_PER_FEATURE - 1]`, row-major.
    baselines: Vec<f32>,
}

/// The scores of a row by a scorer that was not fitted to it.
struct BlockScore {
    anomaly_score: f64,
    tail_score: f64,
}

impl TrainingRows {
    fn len(&self) -> usize {
        self.timestamps.len()
    }

    /// The values of a feature, shape `[n_rows]`.
    fn feature(&self, feature: usize) -> &[f32] {
        &self.values[feature * self.len()..][..self.len()]
    }

    /// The values of a row, shape `[n_features]`.
    fn copy_values(&self, row: usize, values: &mut [f32]) {
        values.iter_mut().enumerate().for_each(|(feature, value)| *value = self.feature(feature)[row]);
    }

    /// The derived features of a row, shape `[n_features, DERIVED_PER_FEATURE]`.
    fn derived_of(&self, row: usize) -> &[f32] {
        let width = self.n_features * DERIVED_PER_FEATURE;
        &self.columns[row * width..][..width]
    }

    /// The baselines of a row, shape `[n_features, DERIVED_PER_FEATURE - 1]`.
    fn baselines_of(&self, row: usize) -> &[f32] {
        let width = self.n_features * (DERIVED_PER_FEATURE - 1);
        &self.baselines[row * width..][..width]
    }

    /// The rows with these numbers, ascending.
    fn select(&self, rows: &[usize]) -> Self {
        let of_feature = |feature| rows.iter().map(move |row| self.feature(feature)[*row]);
        Self {
            timestamps: rows.iter().map(|row| self.timestamps[*row]).collect(),
            n_features: self.n_features,
            values: (0..self.n_features).flat_map(of_feature).collect(),
            columns: rows.iter().flat_map(|row| self.derived_of(*row)).copied().collect(),
            baselines: rows.iter().flat_map(|row| self.baselines_of(*row)).copied().collect(),
        }
    }

    /// Completes rows that lack derived features, and drops the rows that cannot be completed.
    fn complete(&mut self, encoder: &RowEncoder) {
        let required = self.required_columns(encoder);
        impute_incomplete_rows(&mut self.columns, &required);
        let is_complete = |row: &usize| missing_features(self.derived_of(*row), &required).next().is_none();
        let complete: Vec<usize> = (0..self.len()).filter(is_complete).collect();
        if complete.len() < self.len() {
            *self = self.select(&complete);
        }
    }

    /// True for each derived feature that a row must have: those with a scale. While at most half of the rows have a
    /// seasonal residual, a row without it counts as usual: at the beginning of the second day, only the rows of the
    /// first hours have one.
    fn required_columns(&self, encoder: &RowEncoder) -> Vec<bool> {
        let width = self.n_features * DERIVED_PER_FEATURE;
        let is_known_often = |column: usize| {
            let values = self.columns.iter().skip(column).step_by(width);
            2 * values.filter(|value| value.is_finite()).count() > self.len()
        };
        let is_required = |(column, scale): (usize, &Option<RobustScale>)| {
            scale.is_some() && (column % DERIVED_PER_FEATURE != 0 || is_known_often(column))
        };
        encoder.scales.iter().enumerate().map(is_required).collect()
    }

    /// The forest's input, shape `[n_rows, n_inputs]`, column-major.
    fn forest_input(&self, encoder: &RowEncoder) -> Vec<f32> {
        let (n_rows, mut values) = (self.len(), vec![0.0; self.n_features]);
        let mut forest_input = vec![0.0; n_rows * encoder.n_inputs()];
        for row in 0..n_rows {
            self.copy_values(row, &mut values);
            let input = encoder.forest_input(&values, &encoder.standardize(self.derived_of(row)));
            let cells = forest_input.iter_mut().skip(row).step_by(n_rows);
            cells.zip(input).for_each(|(cell, value)| *cell = value);
        }
        forest_input
    }

    /// Scores each row by an encoder and a forest that are fitted to the other blocks.
    fn out_of_sample_scores(
        &self,
        encoder: &RowEncoder,
        params: &ExtendedParams,
        threads: NonZeroUsize,
    ) -> Result<Vec<BlockScore>, forest::Error> {
        let n_rows = self.len();
        let mut scores = Vec::with_capacity(n_rows);
        for block in 0..BLOCKS {
            let held_out = block * n_rows / BLOCKS..(block + 1) * n_rows / BLOCKS;
            let others: Vec<usize> = (0..n_rows).filter(|row| !held_out.contains(row)).collect();
            let others = self.select(&others);
            // Few rows may have no scale without the block.
            let encoder = if others.len() == 0 { None } else { others.fit_encoder().ok() }
                .unwrap_or_else(|| encoder.clone());
            let forest =
                if others.len() == 0 { None } else { others.fit_forest(&encoder, params, threads)? };
            scores.extend(held_out.map(|row| self.score(row, &encoder, forest.as_ref())));
        }
        Ok(scores)
    }

    fn fit_forest(
        &self,
        encoder: &RowEncoder,
        params: &ExtendedParams,
        threads: NonZeroUsize,
    ) -> Result<Option<ExtendedForest>, forest::Error> {
        let input = self.forest_input(encoder);
        let table = input_table(&input, self.len(), encoder.n_inputs())?;
        table.map(|table| params.fit(&table, threads)).transpose()
    }

    fn score(&self, row: usize, encoder: &RowEncoder, forest: Option<&ExtendedForest>) -> BlockScore {
        let mut values = vec![0.0; self.n_features];
        self.copy_values(row, &mut values);
        let standardized = encoder.standardize(self.derived_of(row));
        let anomaly_score = -score_samples(forest, &encoder.forest_input(&values, &standardized));
        let deviations = encoder.strongest_deviations(&standardized, self.baselines_of(row));
        BlockScore { anomaly_score, tail_score: tail_score(&deviations) }
    }

    /// Fits scales and correlation.
    fn fit_encoder(&self) -> Result<RowEncoder, forest::Error> {
        let (n_rows, n_features) = (self.len(), self.n_features);
        let is_constant = |values: &[f32]| values.iter().all(|value| *value == values[0]);
        let varying: Vec<usize> =
            (0..n_features).filter(|feature| !is_constant(self.feature(*feature))).collect();
        if varying.len() > MAX_VARYING {
            let (name, value) = ("number of features that vary", varying.len());
            let limit = format!("at most {MAX_VARYING}");
            return Err(forest::Error::Unsuitable { name, value, n_rows, n_features, limit });
        }
        let floors: Vec<f64> = (0..n_features)
            .map(|feature| scale::min_sigma(self.feature(feature)).expect("checked to be finite"))
            .collect();
        let width = n_features * DERIVED_PER_FEATURE;
        let scales: Vec<Option<RobustScale>> = (0..width)
            .map(|column| {
                let values = self.columns.iter().skip(column).step_by(width).copied();
                let known: Vec<f32> = values.filter(|value| value.is_finite()).collect();
                let is_enough = known.len() >= MIN_KNOWN_ROWS[column % DERIVED_PER_FEATURE];
                RobustScale::fit(&known, floors[column / DERIVED_PER_FEATURE]).ok().filter(|_| is_enough)
            })
            .collect();
        if scales.iter().all(Option::is_none) {
            return Err(forest::Error::Empty { n_rows: 0, n_features: width });
        }
        let residuals = self.fit_residuals(&varying, &floors);
        Ok(RowEncoder::new(scales, varying, residuals))
    }

    /// The correlation residuals of the varying features; `None` for too few rows or features.
    fn fit_residuals(&self, varying: &[usize], floors: &[f64]) -> Option<Residuals> {
        if self.len() < MIN_ROWS_PER_RESIDUAL * varying.len() {
            return None;
        }
        let columns: Vec<&[f32]> = varying.iter().map(|feature| self.feature(*feature)).collect();
        let floors: Vec<f64> = varying.iter().map(|feature| floors[*feature]).collect();
        let correlation = Correlation::fit(&columns, &floors).expect("finite values in few columns")?;
        Some(Residuals::fit(correlation, &columns, &floors))
    }
}

/// The table, column-major, with the values of each feature repeated in the rows before its first value.
fn impute_before_start(table: &Table) -> Vec<f32> {
    let impute_column = |feature| {
        let column = table.column_slice(feature);
        let begin = column.iter().take_while(|value| value.is_nan()).count();
        let (before, later) = column.split_at(begin);
        let donor = if later.is_empty() { before } else { later };
        donor.iter().cycle().take(begin).chain(later).copied()
    };
    (0..table.n_features()).flat_map(impute_column).collect()
}

/// The features of which a row lacks a required derived feature, ascending.
fn missing_features(columns: &[f32], required: &[bool]) -> impl Iterator<Item = usize> {
    let is_missing = |(columns, required): (&[f32], &[bool])| {
        columns.iter().zip(required).any(|(value, is_required)| *is_required && !value.is_finite())
    };
    let features = columns.chunks_exact(DERIVED_PER_FEATURE).zip(required.chunks_exact(DERIVED_PER_FEATURE));
    features.enumerate().filter(move |(_, part)| is_missing(*part)).map(|(feature, _)| feature)
}

/// Completes the rows that lack at most half of the features. A missing feature takes all its derived features from one
/// other row, in turn, so that they belong to one moment. `required` has the shape of a row.
fn impute_incomplete_rows(columns: &mut [f32], required: &[bool]) {
    let width = required.len();
    let n_features = width / DERIVED_PER_FEATURE;
    let rows = columns.chunks_exact(width).map(|row| missing_features(row, required).collect::<Vec<usize>>());
    let incomplete_rows: Vec<(usize, Vec<usize>)> = rows
        .enumerate()
        .filter(|(_, missing)| !missing.is_empty() && 2 * missing.len() <= n_features)
        .collect();
    for feature in 0..n_features {
        let derived = derived_columns(feature);
        let is_known = |row: &[f32]| {
            missing_features(&row[derived.clone()], &required[derived.clone()]).next().is_none()
        };
        let rows = columns.chunks_exact(width).enumerate();
        let donors: Vec<usize> = rows.filter(|(_, row)| is_known(row)).map(|(number, _)| number).collect();
        let recipients =
            incomplete_rows.iter().filter(|(_, missing)| missing.binary_search(&feature).is_ok());
        for ((recipient, _), donor) in recipients.zip(donors.into_iter().cycle()) {
            let donor = donor * width + derived.start..donor * width + derived.end;
            columns.copy_within(donor, recipient * width + derived.start);
        }
    }
}
