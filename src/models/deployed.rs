//! A model to put into service, and the facts of it that a group keeps.

use super::artifact;
use super::kind::ModelKind;
use super::model::{Model, ModelCard};
use std::sync::Arc;

/// A model to put into service, with its origin in the registry.
#[derive(Clone, Debug)]
pub struct DeployedModel {
    /// The model.
    pub model: Arc<Model>,
    /// Its facts.
    pub info: Arc<ModelInfo>,
}

impl DeployedModel {
    /// A model with its registered name and its version, `None` if it is not registered. Encodes a registered model, for
    /// its digest.
    pub fn new(model: Arc<Model>, name: String, version: Option<u64>) -> Self {
        let info = ModelInfo {
            name,
            registered: version.map(|version| (version, artifact::digest(&model))),
            kind: model.fitted.kind(),
            n_features: model.schema.features.len(),
            card: model.card.clone(),
        };
        Self { model, info: Arc::new(info) }
    }
}

/// The facts of a model in service. A [`RunningModel`](super::RunningModel) has its forest and its state.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The registered name.
    pub name: String,
    /// Version and [digest](artifact::digest); `None` for a model that is not registered.
    pub registered: Option<(u64, String)>,
    /// The kind of forest.
    pub kind: ModelKind,
    /// Width of a row.
    pub n_features: usize,
    /// The origin.
    pub card: ModelCard,
}

impl ModelInfo {
    /// The version; `None` for a model that is not registered.
    pub fn version(&self) -> Option<u64> {
        self.registered.as_ref().map(|(version, _)| *version)
    }

    /// True if the model was trained on other groups and serves until the group has a model of its own. The registry
    /// has no such model; every other model without a version has a group.
    pub fn is_pooled(&self) -> bool {
        self.registered.is_none() && self.card.group.is_none()
    }
}
