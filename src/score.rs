//! A complete row and the current model make a score.

use crate::models::Model;
use crate::window::Score;

/// Scores the values of one row, as many as the model has features.
///
/// The score is the paper's anomaly score over its own threshold, `score_samples / offset_`: it
/// passes 1 exactly where the decision turns negative.
pub fn score(model: &Model, values: &[f32]) -> Score {
    let score_samples = model.forest.score_samples(values);
    let offset = model.forest.offset();
    Score { decision: score_samples - offset, score: score_samples / offset }
}
