//! Fits a scorer to training rows.
//!
//! Training has two steps because several forests are fitted to the same rows (sweeps, cross-validation):
//! [`TrainingMatrix`] derives and standardizes the rows once, [`TrainingMatrix::fit`] fits the forest.

use super::derived::{DERIVED_PER_FEATURE, DerivedFeatures, Lookback};
use super::deviation::Deviation;
use super::encoder::{RowEncoder, derived_columns};
use super::scorer::{ScoreScale, Scorer, score_samples, tail_score};
use crate::features::correlation::{Correlation, Residuals};
use crate::features::scale::{self, RobustScale};
use crate::forest::{self, ExtendedForest, ExtendedParams, MAX_FEATURES, Table};
use std::num::NonZeroUsize;

/// Contiguous blocks of training rows; a forest that is fitted to the other blocks scores each.
const BLOCKS: usize = 5;
/// Minimum number of known values of each derived feature; below it the model does without. The seasonal residual takes
/// a day to become known, the others take minutes.
const MIN_KNOWN_ROWS: [usize; DERIVED_PER_FEATURE] = [256, 8, 8];
/// Maximum number of varying features: each has its derived features and a correlation residual in the forest's input.
const MAX_VARYING: usize = MAX_FEATURES / (DERIVED_PER_FEATURE + 1);

/// The result of training.
pub struct FittedScorer {
    /// The scorer.
    pub scorer: Scorer,
    /// The state of the derived features after the last row.
    pub(super) derived: DerivedFeatures,
    /// Timestamp in milliseconds, raw score and decision of each row that can be scored, ascending. A forest that was
    /// not fitted to the row scored it.
    pub scores: Vec<(i64, f64, f64)>,
}

/// Training rows in the form of the forest's input, before a forest is fitted.
pub struct TrainingMatrix {
    encoder: RowEncoder,
    derived: DerivedFeatures,
    rows: Vec<StandardizedRow>,
    /// Shape `[n_rows, n_inputs]`, column-major.
    forest_input: Vec<f32>,
}

/// A training row that can be scored.
struct StandardizedRow {
    timestamp_ms: i64,
    /// The strongest deviation of each feature.
    deviations: Vec<Deviation>,
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
        let imputed = impute_before_start(table);
        let complete = Table::new(&imputed, n_rows, n_features)?;
        complete.check_finite()?;
        let DerivedRows { derived, mut columns, baselines } = DerivedRows::new(timestamps, table);
        let encoder = fit_encoder(&complete, &columns)?;

        let (width, baseline_width) =
            (n_features * DERIVED_PER_FEATURE, n_features * (DERIVED_PER_FEATURE - 1));
        impute_incomplete_rows(&mut columns, &encoder.scales, width);
        let (mut rows, mut inputs_by_row, mut values) = (Vec::new(), Vec::new(), vec![0.0; n_features]);
        let rows_with_baselines =
            columns.chunks_exact(width).zip(baselines.chunks_exact(baseline_width)).enumerate();
        for (number, (columns, baselines)) in rows_with_baselines {
            if (0..n_features).any(|feature| is_missing(columns, &encoder.scales, feature)) {
                continue;
            }
            complete.copy_row(number, &mut values);
            let standardized = encoder.standardize(columns);
            inputs_by_row.extend(encoder.forest_input(&values, &standardized));
            let deviations = encoder.strongest_deviations(&standardized, baselines);
            rows.push(StandardizedRow { timestamp_ms: timestamps[number], deviations });
        }
        let n_inputs = encoder.n_inputs();
        let input_column = |input: usize| inputs_by_row.iter().skip(input).step_by(n_inputs).copied();
        let forest_input = (0..n_inputs).flat_map(input_column).collect();
        Ok(Self { encoder, derived, rows, forest_input })
    }

    /// The forest's input, `[n_rows, n_inputs]`; `None` if no feature varies.
    ///
    /// # Errors
    /// [`forest::Error::Empty`] if no row has all derived features.
    pub fn table(&self) -> Result<Option<Table<'_>>, forest::Error> {
        let (n_rows, n_features) = (self.rows.len(), self.encoder.n_inputs());
        match (n_rows, n_features) {
            (0, _) => Err(forest::Error::Empty { n_rows, n_features }),
            (_, 0) => Ok(None),
            _ => Table::new(&self.forest_input, n_rows, n_features).map(Some),
        }
    }

    /// Fits the forest, and one more per block to score the training rows out of sample.
    ///
    /// # Errors
    /// [`forest::Error`] if the parameters do not fit the table, and the errors of [`table`](Self::table).
    pub fn fit(&self, params: &ExtendedParams, threads: NonZeroUsize) -> Result<FittedScorer, forest::Error> {
        let table = self.table()?;
        let anomaly_scores = self.out_of_sample_scores(table.as_ref(), params, threads)?;
        let tail_scores: Vec<f64> = self.rows.iter().map(|row| tail_score(&row.deviations)).collect();
        let forest = table.map(|table| params.fit(&table, threads)).transpose()?;
        let (forest_scale, tail_scale) = (ScoreScale::fit(&anomaly_scores), ScoreScale::fit(&tail_scores));
        let scorer = Scorer::fitted(self.encoder.clone(), forest, forest_scale, tail_scale);
        let score = |(row, (anomaly_score, tail_score)): (&StandardizedRow, (&f64, &f64))| {
            (row.timestamp_ms, scorer.combine(*anomaly_score, *tail_score), 0.5 - anomaly_score)
        };
        let scores = self.rows.iter().zip(anomaly_scores.iter().zip(&tail_scores)).map(score).collect();
        Ok(FittedScorer { scorer, derived: self.derived.clone(), scores })
    }

    /// The anomaly score of each row, by a forest that is fitted to the other blocks.
    fn out_of_sample_scores(
        &self,
        table: Option<&Table>,
        params: &ExtendedParams,
        threads: NonZeroUsize,
    ) -> Result<Vec<f64>, forest::Error> {
        let (n_rows, n_inputs) = (self.rows.len(), self.encoder.n_inputs());
        let mut input = vec![0.0; n_inputs];
        let mut scores = vec![0.0; n_rows];
        for block in 0..BLOCKS {
            let held_out = block * n_rows / BLOCKS..(block + 1) * n_rows / BLOCKS;
            let forest: Option<ExtendedForest> = match table {
                Some(table) if held_out.len() < n_rows => {
                    let without_block = |input| {
                        let column: &[f32] = table.column(input);
                        column[..held_out.start].iter().chain(&column[held_out.end..]).copied()
                    };
                    let values: Vec<f32> = (0..n_inputs).flat_map(without_block).collect();
                    Some(params.fit(&Table::new(&values, n_rows - held_out.len(), n_inputs)?, threads)?)
                }
                _ => None,
            };
            for number in held_out {
                if let Some(table) = table {
                    table.copy_row(number, &mut input);
                }
                scores[number] = -score_samples(forest.as_ref(), &input);
            }
        }
        Ok(scores)
    }
}

/// The derived features of all training rows, and the state after them.
struct DerivedRows {
    derived: DerivedFeatures,
    /// Shape `[n_rows, n_features, DERIVED_PER_FEATURE]`, row-major.
    columns: Vec<f32>,
    /// Baselines of recurring peaks, shape `[n_rows, n_features, DERIVED_PER_FEATURE - 1]`, row-major.
    baselines: Vec<f32>,
}

impl DerivedRows {
    fn new(timestamps: &[i64], table: &Table) -> Self {
        let (n_rows, n_features) = (table.n_rows(), table.n_features());
        let mut derived = DerivedFeatures::new(n_features, Lookback::from_timestamps(timestamps));
        let mut columns = Vec::with_capacity(n_rows * n_features * DERIVED_PER_FEATURE);
        let mut baselines = Vec::with_capacity(n_rows * n_features * (DERIVED_PER_FEATURE - 1));
        let mut values = vec![0.0; n_features];
        for (number, timestamp_ms) in timestamps.iter().enumerate() {
            table.copy_row(number, &mut values);
            columns.extend(derived.derive(*timestamp_ms, &values));
            baselines.extend_from_slice(derived.recurring().baseline());
        }
        Self { derived, columns, baselines }
    }
}

/// Fits scales and correlation to finite values and their derived features.
fn fit_encoder(table: &Table, columns: &[f32]) -> Result<RowEncoder, forest::Error> {
    let (n_rows, n_features) = (table.n_rows(), table.n_features());
    let is_constant = |feature: &usize| {
        let values: &[f32] = table.column(*feature);
        values.iter().all(|value| *value == values[0])
    };
    let varying: Vec<usize> = (0..n_features).filter(|feature| !is_constant(feature)).collect();
    if varying.len() > MAX_VARYING {
        let (name, value) = ("number of features that vary", varying.len());
        let limit = format!("at most {MAX_VARYING}");
        return Err(forest::Error::Unsuitable { name, value, n_rows, n_features, limit });
    }
    let floors: Vec<f64> = (0..n_features)
        .map(|feature| scale::min_sigma(table.column(feature)).expect("checked to be finite"))
        .collect();
    let width = n_features * DERIVED_PER_FEATURE;
    let scales: Vec<Option<RobustScale>> = (0..width)
        .map(|column| {
            let values = columns.iter().skip(column).step_by(width).copied();
            let known: Vec<f32> = values.filter(|value| value.is_finite()).collect();
            let is_enough = known.len() >= MIN_KNOWN_ROWS[column % DERIVED_PER_FEATURE];
            RobustScale::fit(&known, floors[column / DERIVED_PER_FEATURE]).ok().filter(|_| is_enough)
        })
        .collect();
    if scales.iter().all(Option::is_none) {
        return Err(forest::Error::Empty { n_rows: 0, n_features: width });
    }
    let varying_columns: Vec<&[f32]> = varying.iter().map(|feature| table.column(*feature)).collect();
    let floors: Vec<f64> = varying.iter().map(|feature| floors[*feature]).collect();
    let correlation = Correlation::fit(&varying_columns, &floors).expect("finite values in few columns");
    let residuals = correlation.map(|correlation| Residuals::fit(correlation, &varying_columns, &floors));
    Ok(RowEncoder::new(scales, varying, residuals))
}

/// The table, column-major, with the values of each feature repeated in the rows before its first value.
fn impute_before_start(table: &Table) -> Vec<f32> {
    let impute_column = |feature| {
        let column = table.column(feature);
        let begin = column.iter().take_while(|value| value.is_nan()).count();
        let (before, later) = column.split_at(begin);
        let donor = if later.is_empty() { before } else { later };
        donor.iter().cycle().take(begin).chain(later).copied()
    };
    (0..table.n_features()).flat_map(impute_column).collect()
}

/// True if a row lacks a derived feature that has a scale.
fn is_missing(columns: &[f32], scales: &[Option<RobustScale>], feature: usize) -> bool {
    derived_columns(feature).any(|column| scales[column].is_some() && !columns[column].is_finite())
}

/// Completes the rows, each of `width` columns, that lack at most half of the features. A missing feature takes all its
/// derived features from one other row, in turn, so that they belong to one moment.
fn impute_incomplete_rows(columns: &mut [f32], scales: &[Option<RobustScale>], width: usize) {
    let n_features = width / DERIVED_PER_FEATURE;
    let missing_features = |row: &[f32]| -> Vec<usize> {
        (0..n_features).filter(|feature| is_missing(row, scales, *feature)).collect()
    };
    let rows = columns.chunks_exact(width).map(missing_features).enumerate();
    let incomplete_rows: Vec<(usize, Vec<usize>)> =
        rows.filter(|(_, missing)| !missing.is_empty() && 2 * missing.len() <= n_features).collect();
    for feature in 0..n_features {
        let rows = columns.chunks_exact(width).enumerate();
        let donors: Vec<usize> =
            rows.filter(|(_, row)| !is_missing(row, scales, feature)).map(|(number, _)| number).collect();
        let recipients =
            incomplete_rows.iter().filter(|(_, missing)| missing.binary_search(&feature).is_ok());
        for ((recipient, _), donor) in recipients.zip(donors.into_iter().cycle()) {
            let derived = derived_columns(feature);
            let donor = donor * width + derived.start..donor * width + derived.end;
            columns.copy_within(donor, recipient * width + derived.start);
        }
    }
}
