//! Saves the state of a group for a snapshot, and restores a group from one.

use super::{Group, IncidentLog, Publication, RowTracker, SeriesOrigins, ServingSlots};
use crate::detector::Detector;
use crate::pipeline::serving::Contribution;
use crate::snapshot::{self, GroupState, LogPosition, ModelCheckpoint, PendingCheckpoint, SnapshotStore};
use crate::time;
use crate::window::{ModelRole, Window};
use std::sync::Arc;
use std::time::Instant;

/// One step of a round of snapshots.
pub struct SnapshotStep {
    /// Id of the group.
    pub id: u32,
    /// Name of the file.
    pub name: String,
    /// The state to write; none if it has not changed.
    pub snapshot: Option<Box<GroupSnapshot>>,
}

/// The state of a group for its file.
pub struct GroupSnapshot {
    /// The state without the models.
    pub state: GroupState,
    /// The champion.
    pub champion: Option<PendingCheckpoint>,
    /// The challenger.
    pub challenger: Option<PendingCheckpoint>,
    /// The samples and scores.
    pub window: Window,
}

impl GroupSnapshot {
    /// The bytes of the file.
    ///
    /// # Errors
    /// [`TooLarge`](snapshot::TooLarge).
    pub fn encode(self) -> Result<Vec<u8>, snapshot::TooLarge> {
        let checkpoint = |pending: Option<PendingCheckpoint>| pending.and_then(|draft| draft.to_checkpoint());
        let (champion, challenger) = (checkpoint(self.champion), checkpoint(self.challenger));
        snapshot::encode(GroupState { champion, challenger, ..self.state }, &self.window)
    }
}

impl Contribution {
    /// The form in a snapshot.
    pub fn to_saved(&self) -> snapshot::SavedContribution {
        snapshot::SavedContribution {
            feature: self.feature.clone(),
            reason: self.reason.as_str().into(),
            share: self.share,
            value: Some(self.value).filter(|value| value.is_finite()),
            expected_range: self.expected_range.map(|value| Some(value).filter(|value| value.is_finite())),
        }
    }

    /// Reads the form in a snapshot; none for an unknown reason.
    pub fn from_saved(saved: snapshot::SavedContribution) -> Option<Self> {
        let snapshot::SavedContribution { feature, reason, share, value, expected_range } = saved;
        let reason = crate::detect::DeviationReason::parse(&reason)?;
        Some(Self {
            feature,
            reason,
            share,
            value: value.unwrap_or(f64::NAN),
            expected_range: expected_range.map(|value| value.unwrap_or(f64::NAN)),
        })
    }
}

impl Group {
    /// Restores a group without its models: the registry has them, and they continue from the checkpoints of the
    /// snapshot.
    pub fn restore(
        detector: Arc<Detector>,
        state: GroupState,
        window: Window,
        cursor_keys: &[String],
        now: Instant,
    ) -> Self {
        let GroupState {
            group,
            champion,
            challenger,
            newest_scored_ms,
            cursors,
            contributions,
            incidents,
            ..
        } = state;
        let mut restored = Self::new(detector, group, 0, now);
        restored.origins = SeriesOrigins::of_window(&restored.detector, &window);
        restored.window = window;
        restored.window.set_length(time::millis(restored.detector.window));
        restored.restored_to_ms = restored.window.newest_ms();
        let cursors = cursor_keys.iter().map(|key| cursors.get(key).copied());
        restored.publication = Publication::restore(newest_scored_ms, cursors, state.stale_ms, now);
        restored.set_partition(state.log.map(|log| log.partition));
        let decode = |(then, contributions): (i64, Vec<_>)| {
            (then, contributions.into_iter().filter_map(Contribution::from_saved).collect())
        };
        let contributions = contributions.into_iter().map(decode).collect();
        restored.incidents = IncidentLog::restore(contributions, incidents.into(), state.is_incident);
        // Incomplete rows may still become complete.
        let passed_ms = champion.as_ref().map(|checkpoint| checkpoint.processed_to_ms).or(newest_scored_ms);
        let unscored = restored.window.timestamps(passed_ms.unwrap_or(i64::MIN), i64::MAX);
        restored.rows = RowTracker::restore(unscored, now);
        restored.models = ServingSlots::restore([champion, challenger]);
        restored
    }

    /// One step of a round of snapshots, with the state if it has changed. The cursors have these keys, and the samples are
    /// those of a log up to this position.
    pub fn take_snapshot(
        &mut self,
        id: u32,
        cursor_keys: &[String],
        log: Option<LogPosition>,
    ) -> SnapshotStep {
        let name = SnapshotStore::file_name(&self.detector.name, &self.labels);
        if !std::mem::take(&mut self.snapshot_dirty) {
            return SnapshotStep { id, name, snapshot: None };
        }
        let newest_scored_ms = self.newest_scored_ms();
        let checkpoint = |role| self.models.pending_checkpoint(role, newest_scored_ms.unwrap_or(i64::MIN));
        let [champion, challenger] = self.models.checkpoints();
        let state = GroupState {
            detector: self.detector.name.clone(),
            selection_key: self.detector.selection_key(),
            group: self.labels.clone(),
            champion,
            challenger,
            newest_scored_ms,
            cursors: cursor_keys.iter().cloned().zip(self.publication.done_ms()).collect(),
            contributions: self
                .incidents
                .contributions()
                .iter()
                .map(|(then, contributions)| {
                    (*then, contributions.iter().map(Contribution::to_saved).collect())
                })
                .collect(),
            incidents: self.incidents.incidents().iter().copied().collect(),
            is_incident: self.incidents.is_open(),
            stale_ms: self.publication.stale_rows().collect(),
            log,
        };
        let snapshot = GroupSnapshot {
            state,
            champion: checkpoint(ModelRole::Champion),
            challenger: checkpoint(ModelRole::Challenger),
            window: self.window.clone(),
        };
        SnapshotStep { id, name, snapshot: Some(Box::new(snapshot)) }
    }

    /// Records that the last snapshot was not written.
    pub fn snapshot_failed(&mut self) {
        self.snapshot_dirty = true;
    }

    /// The checkpoint of the champion of the earlier process, until a model serves.
    pub fn checkpoint(&self) -> Option<&ModelCheckpoint> {
        self.models.checkpoint()
    }
}
