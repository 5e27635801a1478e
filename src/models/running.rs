//! A model that scores live rows.
//!
//! A plain forest scores every row on its own. An extended forest scores rows in order and keeps state between
//! them. [`RunningModel`] hides the difference from the rooms that serve models. It lets the state after training go: that
//! is as large as its own, and the registry has it for another start.

use super::kind::score;
use super::model::Model;
use crate::detect::{self, AlertState, Assessment, OnlineDetector};
use crate::prom::Labels;
use crate::window::{IncidentState, Score};
use std::sync::Arc;

/// A model, after the last row that it scored if it has state.
#[derive(Clone, Debug)]
pub enum RunningModel {
    /// A model that scores each row alone.
    Stateless(Arc<Model>),
    /// The state of a model that scores rows in order.
    Sequential(Box<OnlineDetector>),
}

impl RunningModel {
    /// Starts a model with the state after its training, or with a later state of the same model. A model
    /// without state ignores `caught_up`.
    pub fn start(model: Arc<Model>, caught_up: Option<Box<OnlineDetector>>, alerts: &detect::Config) -> Self {
        let Some(trained) = model.fitted.as_online() else { return Self::Stateless(model) };
        let mut running = Self::Sequential(caught_up.unwrap_or_else(|| Box::new(trained.clone())));
        running.set_alerts(alerts, &model.schema.features);
        running
    }

    /// Replaces the configuration of alerts, for features with these labels.
    pub fn set_alerts(&mut self, alerts: &detect::Config, features: &[Labels]) {
        if let Some(state) = self.state_mut() {
            state.set_alerts(alerts, features);
        }
    }

    /// Continues the alert state of the group. A model without state ignores it.
    #[must_use]
    pub fn with_alert_state(mut self, alerts: AlertState) -> Self {
        if let Some(state) = self.state_mut() {
            *state.alert_state_mut() = alerts;
        }
        self
    }

    /// The state, to change it between rows; `None` for a model without state.
    pub fn state_mut(&mut self) -> Option<&mut OnlineDetector> {
        match self {
            Self::Stateless(_) => None,
            Self::Sequential(state) => Some(state),
        }
    }

    /// The state; `None` for a model without state.
    pub fn state(&self) -> Option<&OnlineDetector> {
        match self {
            Self::Stateless(_) => None,
            Self::Sequential(state) => Some(state),
        }
    }

    /// True if rows must be scored in the order of their timestamps.
    pub fn is_sequential(&self) -> bool {
        self.state().is_some()
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
        match self {
            Self::Stateless(model) => model.fitted.as_forest().map(|forest| (score(forest, row), None)),
            Self::Sequential(state) => {
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
