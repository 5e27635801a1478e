//! A requested training and its outcome.

use super::pool::Pool;
use super::warm_start::WarmStart;
use crate::detector::Detector;
use crate::models::{DeployedModel, ModelCard};
use crate::prom::Labels;
use crate::snapshot::ModelCheckpoint;
use crate::window::Window;
use std::sync::Arc;
use std::time::Instant;

/// The reason for a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainingReason {
    /// The group has no model.
    First,
    /// The time until the next training is over.
    Scheduled,
    /// A feature appeared for good. The model still scores the others.
    NewFeature,
    /// A feature of the model disappeared for good. The model scores no more rows.
    LostFeature,
}

impl TrainingReason {
    /// True if the model of the group can serve on, so that another one has to pass the promotion gate.
    pub fn keeps_model(self) -> bool {
        matches!(self, Self::Scheduled | Self::NewFeature)
    }

    /// Value for logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Scheduled => "scheduled",
            Self::NewFeature => "new_feature",
            Self::LostFeature => "lost_feature",
        }
    }
}

/// A training that the engine requests for a group.
pub struct TrainingJob {
    /// Number of the group.
    pub group: u32,
    /// Detector of the group.
    pub detector: Arc<Detector>,
    /// Labels of the group.
    pub labels: Labels,
    /// Live window of the group.
    pub window: Window,
    /// Arrival of the first sample of the group.
    pub first_sample_at: Instant,
    /// State of its model in the snapshot of an earlier process.
    pub checkpoint: Option<ModelCheckpoint>,
    /// Reason for the training.
    pub reason: TrainingReason,
    /// Length of the history that the current model was trained on, in milliseconds.
    pub trained_history_ms: Option<i64>,
    /// Timestamp of the last row to train on. Remote read can return later rows before remote write delivers them; a model
    /// that was trained on them could not assess them. A renewal leaves out the last minute of a deviation in progress.
    pub learned_to_ms: i64,
    /// Every row up to here has received all of its samples: the features are those that are present there.
    pub closed_to_ms: i64,
    /// Other groups to train on while the group has too little history and no model.
    pub pool: Option<Pool>,
}

/// A history that is too short for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortHistory {
    /// Its length in milliseconds.
    pub have_ms: i64,
    /// The length that a first model needs, in milliseconds.
    pub required_ms: i64,
}

/// The outcome of a training.
pub enum TrainingOutcome {
    /// A model to put into service.
    Model {
        /// The model.
        deployed: DeployedModel,
        /// True if it was fitted, false if it comes from the registry.
        is_new: bool,
        /// State from before this process.
        warm_start: WarmStart,
        /// Duration of the training.
        seconds: f64,
    },
    /// A model that the promotion gate rejected.
    Gated {
        /// Its registered name.
        name: String,
        /// Its version; `None` if it is not registered, since a rejected version of this interval is.
        version: Option<u64>,
        /// Its card.
        card: Box<ModelCard>,
        /// The bounds that it exceeds.
        reasons: Vec<String>,
    },
    /// A registered model that passed the gate and became the challenger, because the champion is pinned.
    Challenger {
        /// Its registered name.
        name: String,
        /// Its version.
        version: u64,
        /// Its card.
        card: Box<ModelCard>,
        /// The pinned version.
        pinned: u64,
    },
    /// The registry has a model, and the group lacks some of its features yet.
    WaitingForFeatures,
    /// The group has too little history.
    TooShort(ShortHistory),
    /// The group has too little history. A pooled model serves until it has enough.
    Pooled {
        /// The history of the group.
        history: ShortHistory,
        /// The pooled model.
        deployed: DeployedModel,
        /// State from before this process.
        warm_start: WarmStart,
        /// Duration of the training.
        seconds: f64,
    },
    /// Most of the history that the current model was trained on is gone. The current model stays.
    HistoryLost {
        /// Length of the history in milliseconds.
        have_ms: i64,
    },
    /// The training failed, with an error text.
    Failed(String),
}
