//! The models of a group: the champion, the challenger, and their states at the end of the earlier process.

use crate::detect::{self, AlertState, OnlineDetector, SuspendedTimes};
use crate::features::Schema;
use crate::models::{DeployedModel, ModelInfo};
use crate::pipeline::drift::DriftMonitor;
use crate::pipeline::serving::ServingModel;
use crate::prom::Labels;
use crate::snapshot::{ModelCheckpoint, PendingCheckpoint};
use crate::window::{ModelRole, Score, Window};
use std::collections::BTreeMap;

/// See the [module](self).
#[derive(Default)]
pub struct ServingSlots {
    champion: Option<ServingModel>,
    challenger: Option<ServingModel>,
    /// Drift of the champion's decisions.
    drift: DriftMonitor,
    /// States of the models at the end of the earlier process, until the models serve again.
    checkpoints: [Option<ModelCheckpoint>; 2],
}

impl ServingSlots {
    /// No models yet; they continue from these states.
    pub fn restore(checkpoints: [Option<ModelCheckpoint>; 2]) -> Self {
        Self { checkpoints, ..Self::default() }
    }

    /// The champion.
    pub fn champion(&self) -> Option<&ServingModel> {
        self.champion.as_ref()
    }

    /// The champion, to score rows with.
    pub fn champion_mut(&mut self) -> Option<&mut ServingModel> {
        self.champion.as_mut()
    }

    /// The model in this role.
    pub fn get(&self, role: ModelRole) -> Option<&ServingModel> {
        match role {
            ModelRole::Champion => self.champion.as_ref(),
            ModelRole::Challenger => self.challenger.as_ref(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &ServingModel> {
        self.champion.iter().chain(&self.challenger)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut ServingModel> {
        self.champion.iter_mut().chain(&mut self.challenger)
    }

    /// The schema of the champion.
    pub fn schema(&self) -> Option<&Schema> {
        self.champion.as_ref().map(ServingModel::schema)
    }

    /// Number of features of the champion; 0 without one.
    pub fn n_features(&self) -> usize {
        self.schema().map_or(0, |schema| schema.features.len())
    }

    /// True if the champion scores rows in order.
    pub fn is_sequential(&self) -> bool {
        self.champion.as_ref().is_some_and(ServingModel::is_sequential)
    }

    /// True if the champion is more than a pooled model that fills the time until the first own one.
    pub fn has_permanent_champion(&self) -> bool {
        self.champion.as_ref().is_some_and(|serving| !serving.info().is_pooled())
    }

    /// True if a champion serves, or did before this process.
    pub fn had_champion(&self) -> bool {
        self.champion.is_some() || self.checkpoints[0].is_some()
    }

    /// Renames features whose series have other labels now.
    pub fn rename_features(&mut self, renamed: &BTreeMap<Labels, Labels>, window: &Window) {
        self.all_mut().for_each(|serving| serving.rename_features(renamed, window));
    }

    /// True if a window of this length holds the samples that every model reads.
    pub fn fit_window(&self, length_ms: i64) -> bool {
        self.all().all(|serving| serving.schema().transform.lookback_ms() <= length_ms)
    }

    /// The last timestamp of the row that this timestamp belongs to.
    pub fn row_key(&self, timestamp_ms: i64) -> i64 {
        self.schema().map_or(timestamp_ms, |schema| schema.grid.bounds(timestamp_ms).1)
    }

    /// Binds the models to the changed columns of the window.
    pub fn rebind(&mut self, window: &Window) {
        self.all_mut().for_each(|serving| serving.rebind(window));
    }

    /// Applies another `alerts` section.
    pub fn set_alerts(&mut self, alerts: &detect::Config) {
        self.all_mut().for_each(|serving| serving.set_alerts(alerts));
    }

    /// Makes a model the champion. It continues the alert state of the group: that of the previous champion, of the
    /// earlier process, or else its own after the rows that it was brought up to date with.
    pub fn install(
        &mut self,
        deployed: DeployedModel,
        window: &Window,
        frozen_to_ms: i64,
        detection: Option<Box<OnlineDetector>>,
        alerts: &detect::Config,
    ) {
        self.drift = DriftMonitor::default();
        let is_resumed =
            self.checkpoints[0].as_ref().is_some_and(|checkpoint| checkpoint.is_of(&deployed.info));
        let checkpoint = self.checkpoints[0].take().filter(|_| !is_resumed);
        let serving = ServingModel::new(deployed, window, frozen_to_ms, detection, alerts);
        let inherited = match &self.champion {
            Some(previous) => previous.alert_state().cloned(),
            None => checkpoint.and_then(|checkpoint| checkpoint.alert_state()),
        };
        self.champion = Some(match inherited {
            Some(alerts) => serving.with_alert_state(alerts),
            None => serving,
        });
    }

    /// True if this version is the champion.
    pub fn serves(&self, model: &ModelInfo) -> bool {
        let is_same = |champion: &ModelInfo| {
            model.version().is_some()
                && (&champion.name, champion.version()) == (&model.name, model.version())
        };
        self.champion.as_ref().is_some_and(|champion| is_same(champion.info()))
    }

    /// The alert state of the champion, to change it; `None` for a model that scores each row alone.
    pub fn alert_state_mut(&mut self) -> Option<&mut AlertState> {
        self.champion.as_mut()?.alert_state_mut()
    }

    /// Replaces the times in which no incident is open.
    pub fn set_suspended(&mut self, suspended: &SuspendedTimes) {
        self.all_mut().for_each(|serving| serving.set_suspended(suspended));
    }

    /// Sets or removes the challenger.
    pub fn set_challenger(
        &mut self,
        deployed: Option<DeployedModel>,
        window: &Window,
        detection: Option<Box<OnlineDetector>>,
        alerts: &detect::Config,
        suspended: &SuspendedTimes,
    ) {
        let checkpoint = self.checkpoints[1].take();
        self.challenger = deployed.map(|deployed| {
            let resume = |checkpoint: ModelCheckpoint| checkpoint.resume(&deployed).flatten();
            let detection = detection.or_else(|| checkpoint.and_then(resume));
            let mut challenger = ServingModel::new(deployed, window, i64::MIN, detection, alerts);
            challenger.set_suspended(suspended);
            challenger
        });
        // The challenger also processes the rows that arrived while its history was read.
        let sequential = self.challenger.as_mut().filter(|challenger| challenger.is_sequential());
        if let Some(challenger) = sequential {
            let processed_to_ms = challenger.processed_to_ms;
            for (timestamp_ms, _) in window.scores(ModelRole::Champion, processed_to_ms, i64::MAX) {
                challenger.score_if_complete(window, timestamp_ms);
            }
        }
    }

    /// The challenger's score of a row of the champion, if the row has all of its features.
    pub fn challenger_score(&mut self, window: &Window, timestamp_ms: i64) -> Option<Score> {
        self.challenger.as_mut()?.score_if_complete(window, timestamp_ms)
    }

    /// Counts a decision of the champion.
    pub fn record_decision(&mut self, timestamp_ms: i64, decision: f64) {
        self.drift.add(timestamp_ms, decision);
    }

    /// KL divergence of the last day's decisions from those of training, if both are known.
    pub fn drift(&self) -> Option<f64> {
        self.drift.divergence(self.champion.as_ref()?.info().card.baseline.as_ref()?)
    }

    /// The state of the champion at the end of the earlier process, until a model serves.
    pub fn checkpoint(&self) -> Option<&ModelCheckpoint> {
        self.checkpoints[0].as_ref().filter(|_| self.champion.is_none())
    }

    /// The states of the earlier process that no model has continued.
    pub fn checkpoints(&self) -> [Option<ModelCheckpoint>; 2] {
        self.checkpoints.clone()
    }

    /// The state of a model for a snapshot, after rows up to this time.
    pub fn pending_checkpoint(&self, role: ModelRole, scored_to_ms: i64) -> Option<PendingCheckpoint> {
        self.get(role).map(|serving| serving.pending_checkpoint(scored_to_ms))
    }
}
