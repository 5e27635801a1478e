//! A model and its origin: the types that every other file of the room reads.

use super::kind::FittedModel;
use super::validation::{CrossValidation, DecisionHistogram};
use crate::features::{Schema, Transform};
use crate::prom::Labels;
use crate::time;
use std::time::Duration;

/// A fitted model.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The columns of the forest and the transform that computes them from a window.
    pub schema: Schema,
    /// The forest; its width is the schema's.
    pub fitted: FittedModel,
    /// The origin.
    pub card: ModelCard,
}

impl Model {
    /// True if the model serves this group and a window of this length holds the samples of a row. A model that was
    /// trained on a group has the transform of its detector, unless that has changed since.
    pub fn is_compatible(&self, window: Duration, transform: Transform, group: &Labels) -> bool {
        let is_meant = |model_group: &Labels| model_group == group && self.schema.transform == transform;
        self.card.group.as_ref().is_none_or(is_meant)
            && self.schema.transform.lookback_ms() <= time::millis(window)
    }
}

/// The origin of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelCard {
    /// The detector that the model was trained for.
    pub detector: Option<String>,
    /// The group that the model was trained on; a model without one serves every group that has its features.
    pub group: Option<Labels>,
    /// Program, version and format of the forest's source.
    pub origin: String,
    /// Time of creation, in milliseconds since the epoch.
    pub created_ms: i64,
    /// Parameters of the fit by scikit-learn's names.
    pub params: Vec<(String, String)>,
    /// Names of the columns in the imported file, in the order of the schema.
    pub columns: Option<Vec<String>>,
    /// The rows of training.
    pub training_range: Option<TrainingRange>,
    /// The cross-validation that chose the parameters.
    pub validation: Option<CrossValidation>,
    /// Decisions of the training rows: the reference for drift.
    pub baseline: Option<DecisionHistogram>,
}

impl ModelCard {
    /// Time since creation; zero for a model from the future.
    pub fn age(&self, now_ms: i64) -> Duration {
        Duration::from_millis(u64::try_from(now_ms - self.created_ms).unwrap_or(0))
    }
}

/// The rows of training.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingRange {
    /// Timestamp of the oldest training row, in milliseconds.
    pub from_ms: i64,
    /// End of the history, in milliseconds.
    pub to_ms: i64,
    /// Length of the history in milliseconds, without its gaps.
    pub observed_ms: i64,
    /// Rows of training.
    pub n_rows: usize,
    /// Rows inside of an excluded range.
    pub n_excluded: usize,
}
