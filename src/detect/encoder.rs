//! Encodes a row for the scorer: derived features in sigmas of training, and the input of the forest.

use super::derived::{DERIVED_PER_FEATURE, Lookback};
use super::deviation::{Deviation, DeviationReason};
use super::lasting::LastingDeviations;
use super::mean_size::MeanSize;
use super::usual_minimum::drop_sigmas;
use crate::features::correlation::Residuals;
use crate::features::scale::{RobustScale, SIGMA_QUANTILE_IN_SIGMAS};

/// Size in sigmas of a deviation that recurs daily, in the tail score and in explanations: below the usual size of an
/// alert, above 0.
const RECURRING_SIGMAS: f64 = 5.0;
/// A deviation recurs daily if it is at most this many times its baseline.
const RECURRING_MARGIN: f64 = 1.5;

/// The scales that training found for the derived features of a group.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RowEncoder {
    /// Shape `[n_features, DERIVED_PER_FEATURE]`, row-major; `None` where training had too few values.
    pub scales: Vec<Option<RobustScale>>,
    /// The features that were not constant in training, ascending.
    pub varying: Vec<usize>,
    /// The correlation residuals of the varying features.
    pub residuals: Option<Residuals>,
    /// The usual minimum of each feature, `None` where a drop is usual; empty where none is known.
    pub minima: Vec<Option<f64>>,
    /// The mean sizes; empty where the features have none.
    pub mean_sizes: Vec<MeanSize>,
    /// The derived features of the forest's input: those of varying features that have a scale.
    forest_columns: Vec<usize>,
}

impl RowEncoder {
    pub fn new(
        scales: Vec<Option<RobustScale>>,
        varying: Vec<usize>,
        residuals: Option<Residuals>,
        minima: Vec<Option<f64>>,
        mean_sizes: Vec<MeanSize>,
    ) -> Self {
        let columns = varying.iter().flat_map(|feature| derived_columns(*feature));
        let forest_columns = columns.filter(|column| scales[*column].is_some()).collect();
        Self { scales, varying, residuals, minima, mean_sizes, forest_columns }
    }

    /// Number of features.
    pub fn n_features(&self) -> usize {
        self.scales.len() / DERIVED_PER_FEATURE
    }

    /// A state of what lasts without rows.
    pub fn lasting(&self, lookback: Lookback) -> LastingDeviations {
        let mean_sizes = self.mean_sizes.iter().map(|mean_size| mean_size.features).collect();
        LastingDeviations::new(self.n_features(), mean_sizes, lookback)
    }

    /// Width of the forest's input.
    pub fn n_inputs(&self) -> usize {
        self.forest_columns.len() + self.residuals.as_ref().map_or(0, |residuals| residuals.scales.len())
    }

    /// Derived features in sigmas. A value that is unknown, or was unknown in training, is 0.
    pub fn standardize(&self, columns: &[f32]) -> Vec<f32> {
        let in_sigmas = |(value, scale): (&f32, &Option<RobustScale>)| match scale {
            Some(scale) if value.is_finite() => scale.apply(*value),
            _ => 0.0,
        };
        columns.iter().zip(&self.scales).map(in_sigmas).collect()
    }

    /// The forest's input, `[n_inputs]`: standardized derived features, then correlation residuals.
    pub fn forest_input(&self, values: &[f32], standardized: &[f32]) -> Vec<f32> {
        let mut input: Vec<f32> = self.forest_columns.iter().map(|column| standardized[*column]).collect();
        if let Some(Residuals { correlation, scales }) = &self.residuals {
            let varying: Vec<f32> = self.varying.iter().map(|feature| values[*feature]).collect();
            let residuals = correlation.apply(&varying);
            input.extend(scales.iter().zip(residuals).map(|(scale, residual)| scale.apply(residual)));
        }
        input
    }

    /// Sets the correlation residuals of these features to 0, as usual, in an input of the forest.
    pub fn mask_residuals(&self, forest_input: &mut [f32], features: &[usize]) {
        if self.residuals.is_some() {
            let positions = features.iter().filter_map(|feature| self.varying.binary_search(feature).ok());
            positions.for_each(|position| forest_input[self.forest_columns.len() + position] = 0.0);
        }
    }

    /// The strongest deviation of each feature, in the order of the features. Baselines of recurring peaks have the
    /// shape `[n_features, DERIVED_PER_FEATURE - 1]`: a residual has none.
    pub fn strongest_deviations(&self, standardized: &[f32], baselines: &[f32]) -> Vec<Deviation> {
        let strongest_of_feature = |(feature, columns): (usize, &[f32])| {
            let derived = columns.iter().zip(DeviationReason::DERIVED).enumerate();
            let deviations = derived.map(|(index, (standardized, reason))| {
                let baseline = match index.checked_sub(1) {
                    Some(index) => baselines[feature * (DERIVED_PER_FEATURE - 1) + index],
                    None => 0.0,
                };
                let column = feature * DERIVED_PER_FEATURE + index;
                let sigmas = self.discount_recurring(column, f64::from(standardized.abs()), baseline);
                Deviation { feature, reason, sigmas }
            });
            deviations.reduce(|a, b| if b.sigmas > a.sigmas { b } else { a }).expect("three per feature")
        };
        standardized.chunks_exact(DERIVED_PER_FEATURE).enumerate().map(strongest_of_feature).collect()
    }

    /// Raises the deviations of features that have dropped below their usual minimum, `[n_features]` each.
    pub fn raise_drops(&self, deviations: &mut [Deviation], values: &[f32]) {
        for ((deviation, value), minimum) in deviations.iter_mut().zip(values).zip(&self.minima) {
            let drop = minimum.map_or(0.0, |minimum| drop_sigmas(*value, minimum));
            deviation.sigmas = deviation.sigmas.max(drop);
        }
    }

    /// Limits a deviation that recurs daily to `RECURRING_SIGMAS`.
    fn discount_recurring(&self, column: usize, sigmas: f64, baseline: f32) -> f64 {
        let recurring_limit = match &self.scales[column] {
            Some(scale) if baseline > 0.0 => RECURRING_MARGIN * f64::from(scale.apply(baseline)),
            _ => 0.0,
        };
        if sigmas <= recurring_limit { sigmas.min(RECURRING_SIGMAS) } else { sigmas }
    }

    /// Lower bound, middle and upper bound of a feature around its expected value: the seasonal residuals of 99 % of
    /// the training rows. NaN before a first day.
    pub fn expected_range(&self, feature: usize, expected: f64) -> [f64; 3] {
        let Some(scale) = self.scales[feature * DERIVED_PER_FEATURE] else { return [f64::NAN; 3] };
        let middle = expected + scale.center();
        let half_width = SIGMA_QUANTILE_IN_SIGMAS * scale.sigma();
        [middle - half_width, middle, middle + half_width]
    }

    /// Three sigmas to both sides of a value, of the feature's first derived feature with a scale.
    pub fn typical_range(&self, feature: usize, value: f32) -> [f32; 2] {
        let sigma = self.scales[derived_columns(feature)].iter().flatten().next();
        let half_width = 3.0 * sigma.map_or(1.0, RobustScale::sigma) as f32;
        [value - half_width, value + half_width]
    }
}

/// The seasonal residuals of a row of derived features, `[n_features]`.
pub(super) fn residuals(columns: &[f32]) -> impl Iterator<Item = f32> {
    columns.iter().copied().step_by(DERIVED_PER_FEATURE)
}

/// The columns of a feature in a row of derived features.
pub(super) fn derived_columns(feature: usize) -> std::ops::Range<usize> {
    feature * DERIVED_PER_FEATURE..(feature + 1) * DERIVED_PER_FEATURE
}
