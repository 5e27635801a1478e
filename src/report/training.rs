//! The report of a training: the sweep over sample sizes, the decisions of cross-validation, scores over time, and the
//! training data.

use super::zone::Zone;
use crate::models::Trial;

/// The content of the report.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// The model's name in the registry.
    pub model: String,
    /// The group, as `{job="node", instance="a:9100"}`; `None` for the rows of a file.
    pub group: Option<String>,
    /// The zone of all times.
    pub zone: Zone,
    /// Names and values in the head: kind, parameters, rows, range of time, seed.
    pub facts: Vec<(String, String)>,
    /// The promotion decision, with its reasons.
    pub promotion: PromotionDecision,
    /// The sizes of the sweep, ascending; at least one.
    pub sweep: Vec<Trial>,
    /// Index of the chosen size in `sweep`.
    pub chosen: usize,
    /// Folds of the chosen size, in chronological order.
    pub folds: Vec<FoldHistograms>,
    /// Scores and features over time, thinned out.
    pub timeline: Timeline,
    /// The features, in the order of the model.
    pub features: Vec<FeatureSummary>,
}

/// The decision whether a model serves.
#[derive(Clone, Debug, PartialEq)]
pub enum PromotionDecision {
    /// The model holds this alias.
    Promoted(String),
    /// The promotion gate rejected the registered model, for these reasons.
    Gated(Vec<String>),
    /// The model is the challenger, because the version of this alias is pinned.
    Challenger {
        /// The alias.
        alias: String,
        /// The pinned version.
        pinned: u64,
    },
    /// No promotion was requested.
    Saved,
}

/// Histograms of one fold's decisions: densities in 200 bins of equal width over [-1, 1].
#[derive(Clone, Debug, PartialEq)]
pub struct FoldHistograms {
    /// KL divergence of the two histograms, in nats.
    pub kl: f64,
    /// Rows that the forest was fitted to.
    pub train: Vec<f64>,
    /// Held-out rows.
    pub test: Vec<f64>,
}

/// Rows over time, thinned out: one point per stretch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// Beginning of each stretch in milliseconds since the epoch, ascending, with gaps.
    pub times_ms: Vec<i64>,
    /// Length of a stretch in milliseconds.
    pub step_ms: i64,
    /// Highest score of each stretch; 1 is the alert threshold.
    pub score: Vec<f64>,
    /// Minimum and maximum of each feature in each stretch, `[n_features][n_points]`.
    pub features: Vec<Vec<[f32; 2]>>,
    /// Ranges of time excluded from training.
    pub excluded: Vec<ExcludedRange>,
}

/// A range of time that was excluded from training.
#[derive(Clone, Debug, PartialEq)]
pub struct ExcludedRange {
    /// First millisecond.
    pub from_ms: i64,
    /// Last millisecond.
    pub to_ms: i64,
    /// Reason by the user, or the name of the alert that fired.
    pub reason: String,
    /// Number of excluded rows.
    pub n_rows: usize,
}

/// One feature over the training rows.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureSummary {
    /// Its expression: `rate(node_network_receive_bytes_total{device="eth0"}[1m])`.
    pub name: String,
    /// Minimum.
    pub least: f32,
    /// Median.
    pub median: f32,
    /// Maximum; equal to the minimum for a constant feature.
    pub greatest: f32,
}

mod html;

#[cfg(test)]
mod tests;
