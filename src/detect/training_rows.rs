//! The rows that a scorer is fitted to, and views of them without a block.
//!
//! The rows of a large group take most of the memory of a training, so the blocks of the out-of-sample scores share them.

use super::derived::{DERIVED_PER_FEATURE, MIN_KNOWN_ROWS};
use super::deviation::tail_score;
use super::encoder::{RowEncoder, derived_columns, residuals};
use super::lasting::LastingDeviations;
use super::mean_size::{MeanSize, Rate};
use super::min_sigma::min_sigma;
use super::scorer::NEUTRAL_SCORE;
use super::usual_minimum::usual_minimum;
use crate::features::correlation::{Correlation, Residuals};
use crate::features::scale::RobustScale;
use crate::forest::{self, Column, ExtendedForest, ExtendedParams, MAX_FEATURES, Table};
use std::num::NonZeroUsize;
use std::ops::Range;

/// Contiguous blocks of training rows; a scorer that is fitted to the other blocks scores each.
const BLOCKS: usize = 5;
/// Minimum number of rows per varying feature for correlation residuals: a correlation of fewer rows fits its noise.
const MIN_ROWS_PER_RESIDUAL: usize = 10;
/// Maximum number of varying features: each has its derived features and a correlation residual in the forest's input.
const MAX_VARYING: usize = MAX_FEATURES / (DERIVED_PER_FEATURE + 1);

/// Training rows with their derived features.
#[derive(Clone)]
pub(super) struct TrainingRows {
    /// Shape `[n_rows]`.
    pub timestamps: Vec<i64>,
    /// The hours of training, without gaps.
    pub hours: f64,
    pub n_features: usize,
    /// Shape `[n_rows, n_features]`, column-major.
    pub values: Vec<f32>,
    /// Shape `[n_rows, n_features, DERIVED_PER_FEATURE]`, row-major.
    pub columns: Vec<f32>,
    /// The features of each mean size: bytes and packets.
    pub mean_sizes: Vec<[usize; 2]>,
    /// True for rows with derived features of other rows, shape `[n_rows]`: their values and residuals do not belong together.
    pub is_imputed: Vec<bool>,
    /// Baselines of recurring peaks, shape `[n_rows, n_features, DERIVED_PER_FEATURE - 1]`, row-major.
    pub baselines: Vec<f32>,
}

/// The scores of a row by a scorer that was not fitted to it.
pub(super) struct BlockScore {
    pub anomaly_score: f64,
    pub tail_score: f64,
    pub lasting_score: Option<f64>,
}

impl TrainingRows {
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    /// All rows.
    pub fn all(&self) -> RowsView<'_> {
        self.without(0..0)
    }

    /// The rows outside of a block.
    fn without(&self, block: Range<usize>) -> RowsView<'_> {
        let numbers = [0..block.start, block.end..self.len()];
        RowsView { rows: self, values: self.table().without_rows(block), numbers }
    }

    /// The rows of a block.
    fn within(&self, block: Range<usize>) -> RowsView<'_> {
        RowsView { rows: self, values: self.table().with_rows(block.clone()), numbers: [block, 0..0] }
    }

    fn table(&self) -> Table<'_> {
        Table::new(&self.values, self.len(), self.n_features).expect("a value for each cell")
    }

    /// The values of a row, shape `[n_features]`.
    fn copy_values(&self, row: usize, values: &mut [f32]) {
        let cells = self.values.iter().skip(row).step_by(self.len());
        values.iter_mut().zip(cells).for_each(|(value, cell)| *value = *cell);
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

    /// Keeps the rows with these numbers, ascending.
    fn keep(&mut self, kept: &[usize]) {
        let (n_rows, n_features) = (self.len(), self.n_features);
        for feature in 0..n_features {
            for (to, row) in kept.iter().enumerate() {
                self.values[feature * kept.len() + to] = self.values[feature * n_rows + row];
            }
        }
        self.values.truncate(n_features * kept.len());
        keep_chunks(&mut self.timestamps, 1, kept);
        keep_chunks(&mut self.is_imputed, 1, kept);
        keep_chunks(&mut self.columns, n_features * DERIVED_PER_FEATURE, kept);
        keep_chunks(&mut self.baselines, n_features * (DERIVED_PER_FEATURE - 1), kept);
    }

    /// Completes rows that lack derived features, and drops the rows that cannot be completed.
    pub fn complete(&mut self, encoder: &RowEncoder) {
        let required = self.required_columns(encoder);
        for row in impute_incomplete_rows(&mut self.columns, &required) {
            self.is_imputed[row] = true;
        }
        let is_complete = |row: &usize| missing_features(self.derived_of(*row), &required).next().is_none();
        let complete: Vec<usize> = (0..self.len()).filter(is_complete).collect();
        if complete.len() < self.len() {
            self.keep(&complete);
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

    /// Scores each row by an encoder and a forest that are fitted to the other blocks; `lasting` is the state before the
    /// first row, and after the last one.
    pub fn out_of_sample_scores(
        &self,
        encoder: &RowEncoder,
        lasting: &mut LastingDeviations,
        params: &ExtendedParams,
        threads: NonZeroUsize,
    ) -> Result<Vec<BlockScore>, forest::Error> {
        let n_rows = self.len();
        let mut scores = Vec::with_capacity(n_rows);
        for block in 0..BLOCKS {
            let held_out = block * n_rows / BLOCKS..(block + 1) * n_rows / BLOCKS;
            let others = self.without(held_out.clone());
            // Few rows may have no scale without the block.
            let encoder = if others.is_empty() { None } else { others.fit_encoder().ok() }
                .unwrap_or_else(|| encoder.clone());
            let forest =
                if others.is_empty() { None } else { others.fit_forest(&encoder, params, threads)? };
            let anomaly_scores = self.within(held_out.clone()).anomaly_scores(&encoder, forest.as_ref())?;
            let rows = held_out.zip(anomaly_scores);
            scores.extend(rows.map(|(row, anomaly_score)| self.score(row, anomaly_score, &encoder, lasting)));
        }
        Ok(scores)
    }

    /// The tail score of each row, by the scales of all rows.
    pub fn tail_scores(&self, encoder: &RowEncoder) -> Vec<f64> {
        let mut values = vec![0.0; self.n_features];
        let of_row = |row| {
            self.copy_values(row, &mut values);
            self.tail_score(row, &values, &encoder.standardize(self.derived_of(row)), encoder)
        };
        (0..self.len()).map(of_row).collect()
    }

    fn tail_score(&self, row: usize, values: &[f32], standardized: &[f32], encoder: &RowEncoder) -> f64 {
        let mut deviations = encoder.strongest_deviations(standardized, self.baselines_of(row));
        encoder.raise_drops(&mut deviations, values);
        tail_score(&deviations)
    }

    fn rate(&self, row: usize, feature: usize, value: f32) -> Rate {
        let residual = self.derived_of(row)[feature * DERIVED_PER_FEATURE];
        let residual = if self.is_imputed[row] { f64::NAN } else { f64::from(residual) };
        Rate { value: f64::from(value), expected: f64::from(value) - residual }
    }

    /// The scores of a row with this anomaly score.
    fn score(
        &self,
        row: usize,
        anomaly_score: f64,
        encoder: &RowEncoder,
        lasting: &mut LastingDeviations,
    ) -> BlockScore {
        let mut values = vec![0.0; self.n_features];
        self.copy_values(row, &mut values);
        let standardized = encoder.standardize(self.derived_of(row));
        let rate = |feature: usize| self.rate(row, feature, values[feature]);
        let mean_sizes = encoder.mean_sizes.iter().map(|mean_size| mean_size.deviation(rate));
        let lasting_score = lasting.add(self.timestamps[row], residuals(&standardized).chain(mean_sizes));
        let tail_score = self.tail_score(row, &values, &standardized, encoder);
        BlockScore { anomaly_score, tail_score, lasting_score }
    }
}

/// Some of the rows: those of a block, or all others.
pub(super) struct RowsView<'a> {
    rows: &'a TrainingRows,
    /// Shape `[n_rows, n_features]`.
    values: Table<'a>,
    /// The numbers of the rows, ascending.
    numbers: [Range<usize>; 2],
}

impl<'a> RowsView<'a> {
    fn len(&self) -> usize {
        self.values.n_rows()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers of the rows, ascending.
    fn numbers(&self) -> impl Iterator<Item = usize> + use<> {
        let [first, second] = self.numbers.clone();
        first.chain(second)
    }

    /// Collects the known values of a feature's derived features, `[DERIVED_PER_FEATURE]` columns.
    fn collect_known(&self, feature: usize, known: &mut [Vec<f32>; DERIVED_PER_FEATURE]) {
        known.iter_mut().for_each(Vec::clear);
        for row in self.numbers() {
            let derived = &self.rows.derived_of(row)[derived_columns(feature)];
            for (known, value) in known.iter_mut().zip(derived).filter(|(_, value)| value.is_finite()) {
                known.push(*value);
            }
        }
    }

    /// The forest's input, shape `[n_rows, n_inputs]`, column-major.
    pub fn forest_input(&self, encoder: &RowEncoder) -> Vec<f32> {
        let (n_rows, mut values) = (self.len(), vec![0.0; self.rows.n_features]);
        let mut forest_input = vec![0.0; n_rows * encoder.n_inputs()];
        for (position, row) in self.numbers().enumerate() {
            self.rows.copy_values(row, &mut values);
            let input = encoder.forest_input(&values, &encoder.standardize(self.rows.derived_of(row)));
            let cells = forest_input.iter_mut().skip(position).step_by(n_rows);
            cells.zip(input).for_each(|(cell, value)| *cell = value);
        }
        forest_input
    }

    /// The anomaly score of each row by the forest; without one, that of a row on the average path length.
    fn anomaly_scores(
        &self,
        encoder: &RowEncoder,
        forest: Option<&ExtendedForest>,
    ) -> Result<Vec<f64>, forest::Error> {
        let mut scores = vec![NEUTRAL_SCORE; self.len()];
        if let Some(forest) = forest {
            let input = self.forest_input(encoder);
            forest.score_table(&Table::new(&input, self.len(), encoder.n_inputs())?, &mut scores);
        }
        scores.iter_mut().for_each(|score| *score = -*score);
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

    /// Fits scales and correlation.
    pub fn fit_encoder(&self) -> Result<RowEncoder, forest::Error> {
        let (n_rows, n_features) = (self.len(), self.rows.n_features);
        let min_sigmas: Vec<Option<f64>> =
            (0..n_features).map(|feature| min_sigma(self.values.column(feature), self.rows.hours)).collect();
        let is_constant = |values: Column<'_>| values.iter().all(|value| value == values.get(0));
        let varying: Vec<usize> = (0..n_features)
            .filter(|feature| min_sigmas[*feature].is_some() && !is_constant(self.values.column(*feature)))
            .collect();
        if varying.len() > MAX_VARYING {
            let (name, value) = ("number of features that vary", varying.len());
            let limit = format!("at most {MAX_VARYING}");
            return Err(forest::Error::Unsuitable { name, value, n_rows, n_features, limit });
        }
        let width = n_features * DERIVED_PER_FEATURE;
        let mut is_any_known = false;
        let mut scales = Vec::with_capacity(width);
        // One pass for the columns of a feature, which are adjacent, and the same buffers for all features.
        let mut known: [Vec<f32>; DERIVED_PER_FEATURE] = std::array::from_fn(|_| Vec::with_capacity(n_rows));
        for (feature, min_sigma) in min_sigmas.iter().enumerate() {
            self.collect_known(feature, &mut known);
            for (known, min_rows) in known.iter().zip(MIN_KNOWN_ROWS) {
                is_any_known |= known.len() >= min_rows;
                let min_sigma = min_sigma.filter(|_| known.len() >= min_rows);
                scales.push(
                    min_sigma.map(|min_sigma| RobustScale::fit(known, min_sigma).expect("finite values")),
                );
            }
        }
        if !is_any_known {
            return Err(forest::Error::Empty { n_rows: 0, n_features: width });
        }
        let residuals = self.fit_residuals(&varying, &min_sigmas);
        let minimum_of = |feature| {
            let is_varying = varying.binary_search(&feature).is_ok();
            if is_varying { usual_minimum(self.values.column(feature), self.rows.hours) } else { None }
        };
        let minima = (0..n_features).map(minimum_of).collect();
        let mean_sizes = self.rows.mean_sizes.iter().map(|features| self.fit_mean_size(*features)).collect();
        Ok(RowEncoder::new(scales, varying, residuals, minima, mean_sizes))
    }

    fn fit_mean_size(&self, features: [usize; 2]) -> MeanSize {
        let columns = features.map(|feature| self.values.column(feature));
        let mean = |column: Column<'_>| column.iter().map(f64::from).sum::<f64>() / self.len() as f64;
        let rates = |(number, row): (usize, usize)| {
            [0, 1].map(|index| self.rows.rate(row, features[index], columns[index].get(number)))
        };
        MeanSize::fit(features, columns.map(mean), self.numbers().enumerate().map(rates))
    }

    /// The correlation residuals of the varying features; `None` for too few rows or features.
    fn fit_residuals(&self, varying: &[usize], min_sigmas: &[Option<f64>]) -> Option<Residuals> {
        if self.len() < MIN_ROWS_PER_RESIDUAL * varying.len() {
            return None;
        }
        let columns: Vec<Column<'_>> = varying.iter().map(|feature| self.values.column(*feature)).collect();
        let min_sigmas: Vec<f64> = varying.iter().filter_map(|feature| min_sigmas[*feature]).collect();
        let correlation = Correlation::fit(&columns, &min_sigmas).expect("finite values in few columns")?;
        Some(Residuals::fit(correlation, &columns, &min_sigmas))
    }
}

/// Keeps the chunks with these numbers, ascending.
fn keep_chunks<T: Copy>(values: &mut Vec<T>, width: usize, kept: &[usize]) {
    for (to, from) in kept.iter().enumerate() {
        values.copy_within(from * width..(from + 1) * width, to * width);
    }
    values.truncate(kept.len() * width);
}

pub(super) fn input_table(
    values: &[f32],
    n_rows: usize,
    n_features: usize,
) -> Result<Option<Table<'_>>, forest::Error> {
    match (n_rows, n_features) {
        (0, _) => Err(forest::Error::Empty { n_rows, n_features }),
        (_, 0) => Ok(None),
        _ => Table::new(values, n_rows, n_features).map(Some),
    }
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
/// other row, in turn, so that they belong to one moment. `required` has the shape of a row. Returns the numbers of these rows.
fn impute_incomplete_rows(columns: &mut [f32], required: &[bool]) -> Vec<usize> {
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
    incomplete_rows.into_iter().map(|(row, _)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of three features with one common movement.
    fn rows(n_rows: usize) -> TrainingRows {
        let cell = |salt: usize| move |i: usize| ((i * 37 + salt * 11) % 101) as f32 / (salt + 1) as f32;
        let fill = |width: usize| (0..n_rows * width).map(cell(width)).collect::<Vec<f32>>();
        TrainingRows {
            timestamps: (0..n_rows as i64).collect(),
            hours: 3.0,
            n_features: 3,
            mean_sizes: Vec::new(),
            is_imputed: vec![false; n_rows],
            values: fill(3),
            columns: fill(3 * DERIVED_PER_FEATURE),
            baselines: fill(3 * (DERIVED_PER_FEATURE - 1)),
        }
    }

    #[test]
    fn a_view_without_a_block_equals_a_copy_of_the_other_rows() {
        let rows = rows(300);
        for block in [0..60, 60..120, 240..300, 10..10] {
            let mut copy = rows.clone();
            copy.keep(&(0..300).filter(|row| !block.contains(row)).collect::<Vec<_>>());
            let view = rows.without(block);
            let encoder = view.fit_encoder().expect("rows");
            assert!(encoder == copy.all().fit_encoder().expect("rows"));
            assert!(encoder.residuals.is_some());
            assert_eq!(view.forest_input(&encoder), copy.all().forest_input(&encoder));
        }
    }

    #[test]
    fn kept_rows_stay_whole() {
        let all = rows(10);
        let mut some = all.clone();
        some.keep(&[2, 3, 7]);
        assert_eq!((some.len(), some.values.len()), (3, 9));
        for (number, row) in [2, 3, 7].into_iter().enumerate() {
            let (mut kept, mut original) = ([0.0; 3], [0.0; 3]);
            some.copy_values(number, &mut kept);
            all.copy_values(row, &mut original);
            assert_eq!(kept, original);
            assert_eq!(some.derived_of(number), all.derived_of(row));
            assert_eq!(some.baselines_of(number), all.baselines_of(row));
        }
    }
}
