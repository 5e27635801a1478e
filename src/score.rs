//! A complete row and the current model make a score.

use crate::models::Model;
use crate::window::Score;

/// Scores the values of one row, as many as the model has features.
///
/// The score is the paper's anomaly score over its own threshold, `score_samples / offset_`: it
/// passes 1 exactly where the decision turns negative. Inside the range of training both are
/// scikit-learn's; a row outside scores the higher the further out it lies, so that a burst stands
/// out even from a present that has drifted a little beyond the past.
pub fn score(model: &Model, values: &[f32]) -> Score {
    let score_samples = model.forest.score_beyond(values);
    let offset = model.forest.offset();
    Score { decision: score_samples - offset, score: score_samples / offset }
}
