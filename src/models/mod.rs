//! Models: what is fitted, what it was fitted on, and the folder that it is kept in.
//!
//! A [`Model`] is a schema (which columns, made how), a [`Fitted`] forest, and a [`Card`] that says
//! where it comes from. Serving needs the first two; people, registries and the gate in front of
//! serving read the third.

pub mod artifact;
pub mod columns;
pub mod import;
mod kind;
mod mlmodel;
pub mod onnx;
pub mod registry;
mod running;
pub mod sklearn;
mod validation;

use crate::features::Schema;
use crate::prom::Labels;
use crate::time;
pub use kind::{EXTENDED_OFFSET, FittedModel, ModelKind, ModelParams, score};
pub use running::RunningModel;
use std::sync::Arc;
use std::time::Duration;
pub use validation::{CrossValidation, DecisionHistogram, Trial};

/// A fitted model.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The columns of the forest and how they come out of a window.
    pub schema: Schema,
    /// The forest; its width is the schema's.
    pub fitted: FittedModel,
    /// Where it comes from.
    pub card: ModelCard,
}

impl Model {
    /// Is it meant for this group, and can its rows be built from a window of this length?
    pub fn is_compatible(&self, window: Duration, group: &Labels) -> bool {
        let group_matches = self.card.group.as_ref().is_none_or(|model_group| model_group == group);
        group_matches && self.schema.transform.lookback_ms() <= time::millis(window)
    }
}

/// A model where it serves, and its place in the registry.
#[derive(Clone, Debug)]
pub struct DeployedModel {
    /// The model.
    pub model: Arc<Model>,
    /// Its registered name.
    pub name: String,
    /// Its version; none when the registry could not take it, or is not to.
    pub version: Option<u64>,
}

impl DeployedModel {
    /// Was it trained on other groups, to serve until there is one of the group's own? The registry has no such
    /// model, and others that it does not have are of a group.
    pub fn is_pooled(&self) -> bool {
        self.version.is_none() && self.model.card.group.is_none()
    }
}

/// Where a model comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelCard {
    /// The detector that it was trained for.
    pub detector: Option<String>,
    /// The group whose history it has learned; without one it serves every group that has its features.
    pub group: Option<Labels>,
    /// Program, version and format that the forest comes from.
    pub origin: String,
    /// When it was made: milliseconds since the epoch.
    pub created_ms: i64,
    /// Parameters of the fit by scikit-learn's names.
    pub params: Vec<(String, String)>,
    /// Names of the columns in the file that it was imported from, in the order of the schema.
    pub columns: Option<Vec<String>>,
    /// What it was fitted on.
    pub training_range: Option<TrainingRange>,
    /// How it was chosen.
    pub validation: Option<CrossValidation>,
    /// Decisions of the training rows: what drift is measured against.
    pub baseline: Option<DecisionHistogram>,
}

impl ModelCard {
    /// How long ago it was made; nothing for one from the future.
    pub fn age(&self, now_ms: i64) -> Duration {
        Duration::from_millis(u64::try_from(now_ms - self.created_ms).unwrap_or(0))
    }
}

/// What a model was fitted on.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingRange {
    /// Timestamp of the oldest training row, in milliseconds.
    pub from_ms: i64,
    /// End of the history, in milliseconds.
    pub to_ms: i64,
    /// Its length in milliseconds, without the gaps.
    pub observed_ms: i64,
    /// Rows that were fitted on.
    pub n_rows: usize,
    /// Rows that were left out because they lay in an excluded range.
    pub n_excluded: usize,
}
