//! The models of a group, as the registry watcher compares them with the registry.

use super::Group;
use crate::prom::Labels;
use crate::window::ModelRole;

/// Name of a model, and its version if it is registered.
pub type DeployedVersion = (String, Option<u64>);

/// The answer of a group to a model of the registry.
#[derive(Clone, Debug, PartialEq)]
pub enum DeployOutcome {
    /// The model serves.
    Taken,
    /// The group lacks a feature of the model.
    Refused {
        /// The feature.
        missing: Labels,
    },
    /// There is no group with this id: a reload or an eviction replaced it.
    Gone,
}

/// The models of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    /// Id of the group.
    pub group: u32,
    /// Name of the detector.
    pub detector: String,
    /// Labels of the group.
    pub labels: Labels,
    /// The champion, if any.
    pub champion: Option<DeployedVersion>,
    /// The challenger, if any.
    pub challenger: Option<DeployedVersion>,
    /// Timestamp of the newest scored row.
    pub newest_scored_ms: Option<i64>,
    /// True if the champion serves without history that a source may have.
    pub lacks_history: bool,
}

impl Group {
    /// The models of this group. A pooled model does not count: the group still requests its own.
    pub fn deployment(&self, id: u32) -> Deployment {
        let permanent = |role| self.model_info(role).filter(|model| !model.is_pooled());
        let version = |role| permanent(role).map(|model| (model.name.clone(), model.version()));
        Deployment {
            group: id,
            detector: self.detector.name.clone(),
            labels: self.labels.clone(),
            champion: version(ModelRole::Champion),
            challenger: version(ModelRole::Challenger),
            newest_scored_ms: self.newest_scored_ms(),
            lacks_history: self.lacks_history,
        }
    }
}
