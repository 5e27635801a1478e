//! A model that scores live rows.
//!
//! A plain forest scores every row on its own. An extended forest scores rows in order and keeps state between
//! them. [`RunningModel`] hides the difference from the rooms that serve models.

use super::kind::{FittedModel, score};
use super::model::Model;
use crate::detect::{self, AlertState, Assessment, OnlineDetector};
use crate::window::{IncidentState, Score};
use std::sync::Arc;

/// A model and its state after the last row that it scored.
#[derive(Clone, Debug)]
pub struct RunningModel {
    model: Arc<Model>,
    /// `None` for a model without state.
    state: Option<Box<OnlineDetector>>,
}

impl RunningModel {
    /// Starts a model with the state after its training, or with a later state of the same model. A model
    /// without state ignores `caught_up`.
    pub fn start(model: Arc<Model>, caught_up: Option<Box<OnlineDetector>>, alerts: &detect::Config) -> Self {
        let state = match &model.fitted {
            FittedModel::IsolationForest(_) => None,
            FittedModel::Extended(trained) => Some(caught_up.unwrap_or_else(|| trained.clone())),
        };
        let mut running = Self { model, state };
        running.set_alerts(alerts);
        running
    }

    /// Replaces the configuration of alerts.
    pub fn set_alerts(&mut self, alerts: &detect::Config) {
        let features = &self.model.schema.features;
        self.state = self.state.take().map(|state| Box::new(state.with_alerts(alerts, features)));
    }

    /// Continues the alert state of the group. A model without state ignores it.
    #[must_use]
    pub fn with_alert_state(self, alerts: AlertState) -> Self {
        Self { state: self.state.map(|state| Box::new(state.with_alert_state(alerts))), ..self }
    }

    /// The state, to change it between rows; `None` for a model without state.
    pub fn state_mut(&mut self) -> Option<&mut OnlineDetector> {
        self.state.as_deref_mut()
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The state; `None` for a model without state.
    pub fn state(&self) -> Option<&OnlineDetector> {
        self.state.as_deref()
    }

    /// True if rows must be scored in the order of their timestamps.
    pub fn is_sequential(&self) -> bool {
        self.state.is_some()
    }

    /// Timestamp of the newest row in the state; `None` for a model without state.
    pub fn newest_ms(&self) -> Option<i64> {
        self.state().and_then(OnlineDetector::newest_ms)
    }

    /// Scores a complete row of shape `[n_features]`; a sequential model adds its assessment. `None` if the model
    /// is sequential and the row is not newer than the last one.
    ///
    /// # Panics
    /// If the row has another width than the model.
    pub fn score(&mut self, timestamp_ms: i64, row: &[f32]) -> Option<(Score, Option<Assessment>)> {
        match (&self.model.fitted, &mut self.state) {
            (FittedModel::IsolationForest(forest), _) => Some((score(forest, row), None)),
            (FittedModel::Extended(_), None) => None,
            (FittedModel::Extended(_), Some(state)) => {
                let assessment = state.assess(timestamp_ms, row)?;
                let incident =
                    IncidentState { threshold: assessment.threshold, is_incident: assessment.incident };
                let score = Score {
                    decision: assessment.decision,
                    score: assessment.score,
                    incident_state: Some(incident),
                };
                Some((score, Some(assessment)))
            }
        }
    }
}
