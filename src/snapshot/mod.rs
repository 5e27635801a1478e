//! Snapshots: the state of each group on disk, so that a restart continues where the process ended.
//!
//! Prometheus has every sample, and the state can be computed from them again. A snapshot makes a start faster, and
//! replaces the history where no source has any; its deletion is harmless at any time. The alternative, a log of
//! every request before its acknowledgement, would duplicate Prometheus' data at a cost for each sample, and would lack
//! the samples that were never sent.
//!
//! Each group has its own file: a corrupt file costs one group a fast start, and an unchanged group is not written
//! again.

mod format;
mod store;

use crate::detect::{AlertState, Checkpoint, OnlineDetector, PastIncident};
use crate::models::{DeployedModel, ModelInfo};
use crate::prom::Labels;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

pub use format::{Error, TooLarge, decode, encode};
pub use store::{Metrics, SnapshotStore};

/// The state of a group, except for its window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupState {
    /// Name of the detector.
    pub detector: String,
    /// The part of the detector's configuration on which the rest depends.
    pub selection_key: String,
    /// Labels of the group.
    pub group: Labels,
    /// The champion.
    pub champion: Option<ModelCheckpoint>,
    /// The challenger.
    pub challenger: Option<ModelCheckpoint>,
    /// Timestamp of the newest scored row.
    pub newest_scored_ms: Option<i64>,
    /// Timestamp of the newest row that is sent or given up, by the [key](crate::remote_write::cursor_keys) of the
    /// endpoint.
    pub cursors: BTreeMap<String, i64>,
    /// Contributions to the incidents, by timestamp ascending.
    pub contributions: Vec<(i64, Vec<SavedContribution>)>,
    /// The incidents of the last week.
    pub incidents: Vec<PastIncident>,
    /// True if the newest row belongs to an incident.
    pub is_incident: bool,
    /// Timestamps of rows that ended all series, as far as an endpoint lacks the staleness markers.
    #[serde(default)]
    pub stale_ms: Vec<i64>,
    /// The partition that the group's samples come from, if they come from a log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogPosition>,
}

/// A position in a partition: the window has the samples of every record before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPosition {
    /// The partition.
    pub partition: i32,
    /// Offset of the next record.
    pub offset: i64,
}

/// The state of a model and its progress through the rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCheckpoint {
    name: String,
    version: u64,
    digest: String,
    /// Timestamp of the newest row that the model has scored or skipped.
    pub processed_to_ms: i64,
    /// State of the detector; `None` for a model that scores each row alone.
    checkpoint: Option<Checkpoint>,
}

/// A feature's contribution to an incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedContribution {
    /// Labels of the feature.
    pub feature: Labels,
    /// Kind of the deviation.
    pub reason: String,
    /// Share of the total deviation, in `[0, 1]`.
    pub share: f64,
    /// The value of the feature.
    #[serde(default)]
    pub value: Option<f64>,
    /// Lower bound, expected value and upper bound at this time; `None` before the first full day.
    pub expected_range: [Option<f64>; 3],
}

/// A copy of a serving model's state that is not serialized yet: serialization would block the scoring thread.
pub struct PendingCheckpoint {
    /// The model.
    pub info: Arc<ModelInfo>,
    /// Timestamp of the newest row that the model has scored or skipped.
    pub processed_to_ms: i64,
    /// The detector; `None` for a model that scores each row alone.
    pub detector: Option<OnlineDetector>,
}

impl PendingCheckpoint {
    /// The serializable state; `None` for a model without a version in the registry, which does not outlive the
    /// process.
    pub fn to_checkpoint(&self) -> Option<ModelCheckpoint> {
        let (version, digest) = self.info.registered.clone()?;
        let checkpoint = self.detector.as_ref().map(OnlineDetector::checkpoint);
        Some(ModelCheckpoint {
            name: self.info.name.clone(),
            version,
            digest,
            processed_to_ms: self.processed_to_ms,
            checkpoint,
        })
    }
}

impl ModelCheckpoint {
    /// The alert state of the group, which another model continues too; `None` for a model that scores each row alone, and
    /// for a damaged state.
    pub fn alert_state(&self) -> Option<AlertState> {
        self.checkpoint.as_ref().map(Checkpoint::alert_state).filter(|alerts| alerts.check().is_ok()).cloned()
    }

    /// The state of this model, if the checkpoint belongs to it; the inner `None` is that of a model that scores each
    /// row alone.
    pub fn resume(&self, deployed: &DeployedModel) -> Option<Option<Box<OnlineDetector>>> {
        let ModelInfo { name, registered, .. } = &*deployed.info;
        let is_same = self.name == *name && registered.as_ref() == Some(&(self.version, self.digest.clone()));
        is_same.then(|| deployed.model.fitted.resume(self.checkpoint.as_ref())).flatten()
    }

    /// True if the checkpoint is of this version.
    pub fn is_of(&self, model: &ModelInfo) -> bool {
        self.name == model.name && model.version() == Some(self.version)
    }
}

#[cfg(test)]
mod tests;
