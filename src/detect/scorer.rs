//! The scorer: turns a row of derived features into a raw score.
//!
//! The raw score is the mean of two scores, each scaled by its distribution in training. The **forest score** uses all
//! derived features jointly and finds unusual combinations. The **tail score** uses the two features that deviate most
//! and finds extreme values, also of features that were constant in training. On labelled servers the mean found more
//! anomalies than the maximum of the two.

use super::derived::{DERIVED_PER_FEATURE, Lookback};
use super::deviation::{Deviation, tail_score};
use super::encoder::{RowEncoder, derived_columns};
use super::lasting::LastingDeviations;
use super::mean_size::MeanSize;
use crate::error::InvalidPart;
use crate::features;
use crate::features::correlation::Residuals;
use crate::features::scale::RobustScale;
use crate::forest::ExtendedForest;
use crate::stats::quantile;
use serde::{Deserialize, Serialize};

/// Minimum distance of the median and the 99 % quantile of a forest score: in a group without variation all scores are
/// equal, and little history has few different ones.
pub(super) const MIN_FOREST_UNIT: f64 = 0.1;
/// The same of a tail score: that of a row whose features are all at their own 99 % quantile is 1.27.
pub(super) const MIN_TAIL_UNIT: f64 = 1.0;

/// The negative anomaly score of a row on the average path length.
pub(super) const NEUTRAL_SCORE: f64 = -0.5;

/// The distribution of a score in training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreScale {
    median: f64,
    /// Distance of the 99 % quantile from the median, or the least unit.
    unit: f64,
}

impl ScoreScale {
    /// The scale of training scores, shape `[n_rows]`, with a unit of at least `min_unit`, above 0.
    pub(super) fn fit(mut scores: Vec<f64>, min_unit: f64) -> Self {
        let median = quantile(&mut scores, 0.5);
        Self { median, unit: (quantile(&mut scores, 0.99) - median).max(min_unit) }
    }

    /// 0 for the median of training, 1 for its 99 % quantile, unless that is nearer than the least unit.
    fn apply(self, score: f64) -> f64 {
        (score - self.median) / self.unit
    }
}

/// A fitted scorer; see the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct Scorer {
    encoder: RowEncoder,
    forest: Option<ExtendedForest>,
    forest_scale: ScoreScale,
    tail_scale: ScoreScale,
}

/// The parts of a scorer, for files.
#[derive(Clone, Debug, PartialEq)]
pub struct ScorerParts {
    /// Scales of the derived features (seasonal residual, difference, deviation), shape `[n_features, 3]`, row-major;
    /// `None` where training had too few values.
    pub scales: Vec<Option<RobustScale>>,
    /// The features that were not constant in training, ascending.
    pub varying: Vec<usize>,
    /// The correlation residuals of the varying features; `None` for fewer than two.
    pub residuals: Option<Residuals>,
    /// The usual minimum of each feature, above 0, shape `[n_features]`; `None` where
    /// a drop is usual. Empty where none is known.
    pub minima: Vec<Option<f64>>,
    /// The mean sizes; empty where the features have none.
    pub mean_sizes: Vec<MeanSize>,
    /// `None` if no feature varied.
    pub forest: Option<ExtendedForest>,
    /// Distribution of the forest score in training.
    pub forest_scale: ScoreScale,
    /// Distribution of the tail score in training.
    pub tail_scale: ScoreScale,
}

/// The scores of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowScore {
    /// The mean of forest score and tail score; of each, 0 is the median and 1 the 99 % quantile of training.
    pub raw: f64,
    /// 0.5 minus the forest's anomaly score, in [-0.5, 0.5]; negative is anomalous.
    pub decision: f64,
    /// The strongest deviation of each feature, in descending order.
    pub deviations: Vec<Deviation>,
    /// The standardized derived features, shape `[n_features, 3]`.
    pub standardized: Vec<f32>,
}

impl ScorerParts {
    /// Width of the forest's input.
    pub fn n_inputs(&self) -> usize {
        let scales = |feature: &usize| self.scales.get(derived_columns(*feature)).unwrap_or_default();
        let known = self.varying.iter().flat_map(scales).flatten().count();
        known + self.residuals.as_ref().map_or(0, |residuals| residuals.scales.len())
    }

    /// Checks the parts against each other, without the forest.
    fn check(&self) -> Result<(), features::Error> {
        let Self { scales, varying, residuals, minima, mean_sizes, forest_scale, tail_scale, .. } = self;
        if scales.is_empty() || scales.len() % DERIVED_PER_FEATURE != 0 {
            let limit = format!("a multiple of {DERIVED_PER_FEATURE}");
            return Err(invalid("number of scales", scales.len(), limit));
        }
        if let Some(pair) = varying.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(invalid("feature", pair[1], format!("above {}, the one before", pair[0])));
        }
        let n_features = scales.len() / DERIVED_PER_FEATURE;
        if let Some(last) = varying.last().filter(|last| **last >= n_features) {
            return Err(invalid("feature", last, format!("below {n_features}, the number of features")));
        }
        if let Some(Residuals { correlation, scales }) = residuals {
            for (part, length) in [
                ("number of correlated features", correlation.n_metrics()),
                ("number of residual scales", scales.len()),
            ] {
                if length != varying.len() {
                    let limit = format!("{}, the features that vary", varying.len());
                    return Err(invalid(part, length, limit));
                }
            }
        }
        if !minima.is_empty() && minima.len() != n_features {
            return Err(invalid(
                "number of minima",
                minima.len(),
                format!("{n_features}, the number of features"),
            ));
        }
        if let Some(minimum) =
            minima.iter().flatten().find(|minimum| !(minimum.is_finite() && **minimum > 0.0))
        {
            return Err(invalid("minimum of a feature", minimum, "finite and above 0".into()));
        }
        if mean_sizes.len() > n_features {
            return Err(invalid("number of mean sizes", mean_sizes.len(), format!("at most {n_features}")));
        }
        for MeanSize { features, offsets, .. } in mean_sizes {
            if let Some(feature) = features.iter().find(|feature| **feature >= n_features) {
                let limit = format!("below {n_features}, the number of features");
                return Err(invalid("feature of a mean size", feature, limit));
            }
            if let Some(offset) = offsets.iter().find(|offset| !(0.0..=f64::MAX).contains(*offset)) {
                return Err(invalid("offset of a mean size", offset, "finite, at least 0".into()));
            }
        }
        for ScoreScale { median, unit } in [forest_scale, tail_scale] {
            if !(median.is_finite() && unit.is_finite() && *unit > 0.0) {
                let value = format!("{median}, {unit}");
                return Err(invalid("score scale", value, "finite, its unit above 0".into()));
            }
        }
        Ok(())
    }
}

fn invalid(part: &'static str, value: impl ToString, limit: String) -> features::Error {
    InvalidPart::new(part, value, limit).into()
}

impl Scorer {
    /// A scorer from the parts in a file.
    ///
    /// # Errors
    /// [`features::Error::InvalidPart`] if the parts do not fit each other.
    pub fn new(parts: ScorerParts) -> Result<Self, features::Error> {
        parts.check()?;
        let ScorerParts { scales, varying, residuals, minima, mean_sizes, forest, forest_scale, tail_scale } =
            parts;
        let encoder = RowEncoder::new(scales, varying, residuals, minima, mean_sizes);
        let (width, n_inputs) = (forest.as_ref().map_or(0, ExtendedForest::n_features), encoder.n_inputs());
        if width != n_inputs {
            let limit = format!("{n_inputs}, the number of columns and residuals");
            return Err(invalid("width of the forest", width, limit));
        }
        Ok(Self { encoder, forest, forest_scale, tail_scale })
    }

    /// A scorer from parts that training made.
    pub(super) fn fitted(
        encoder: RowEncoder,
        forest: Option<ExtendedForest>,
        forest_scale: ScoreScale,
        tail_scale: ScoreScale,
    ) -> Self {
        Self { encoder, forest, forest_scale, tail_scale }
    }

    /// The parts, for files.
    pub fn parts(&self) -> ScorerParts {
        let Self { encoder, forest, forest_scale, tail_scale } = self.clone();
        let RowEncoder { scales, varying, residuals, minima, mean_sizes, .. } = encoder;
        ScorerParts { scales, varying, residuals, minima, mean_sizes, forest, forest_scale, tail_scale }
    }

    /// Number of features.
    pub fn n_features(&self) -> usize {
        self.encoder.n_features()
    }

    /// The mean sizes.
    pub fn mean_sizes(&self) -> &[MeanSize] {
        &self.encoder.mean_sizes
    }

    /// A state of what lasts without rows.
    pub(super) fn lasting(&self, lookback: Lookback) -> LastingDeviations {
        self.encoder.lasting(lookback)
    }

    /// Scores a row of values `[n_features]`, derived features `[n_features, 3]` and baselines of recurring peaks
    /// `[n_features, 2]`. NaN in the derived features is scored as usual, and so are the correlation residuals of the
    /// features in `masked`.
    ///
    /// # Panics
    /// If a slice is shorter than that.
    pub fn score(&self, values: &[f32], columns: &[f32], baselines: &[f32], masked: &[usize]) -> RowScore {
        let standardized = self.encoder.standardize(columns);
        let mut forest_input = self.encoder.forest_input(values, &standardized);
        self.encoder.mask_residuals(&mut forest_input, masked);
        let score_samples = score_samples(self.forest.as_ref(), &forest_input);
        let mut deviations = self.encoder.strongest_deviations(&standardized, baselines);
        if masked.is_empty() {
            self.encoder.raise_drops(&mut deviations, values);
        }
        let raw = self.combine(-score_samples, tail_score(&deviations));
        deviations.sort_by(|a, b| b.sigmas.total_cmp(&a.sigmas));
        RowScore { raw, decision: 0.5 + score_samples, deviations, standardized }
    }

    /// Lower bound, middle and upper bound of a feature around its expected value: the seasonal residuals of 99 % of
    /// the training rows. NaN before a first day.
    pub fn expected_range(&self, feature: usize, expected: f64) -> [f64; 3] {
        self.encoder.expected_range(feature, expected)
    }

    /// Three sigmas to both sides of a value, of the feature's first derived feature with a scale.
    pub fn typical_range(&self, feature: usize, value: f32) -> [f32; 2] {
        self.encoder.typical_range(feature, value)
    }

    /// The raw score of a forest's anomaly score and a tail score.
    pub(super) fn combine(&self, anomaly_score: f64, tail_score: f64) -> f64 {
        0.5 * (self.forest_scale.apply(anomaly_score) + self.tail_scale.apply(tail_score))
    }
}

/// The negative anomaly score, as in scikit-learn; without a forest that of a row on the average path length.
fn score_samples(forest: Option<&ExtendedForest>, input: &[f32]) -> f64 {
    forest.map_or(NEUTRAL_SCORE, |forest| forest.score_samples(input))
}
