//! A model that scores the window of a group.

use crate::detect::{self, AlertScore, AlertState, DeviationReason, OnlineDetector, SuspendedTimes};
use crate::features::counter::CounterEvent;
use crate::features::{Row, RowReader, Schema};
use crate::models::{DeployedModel, ModelInfo, RunningModel};
use crate::prom::{Labels, METRIC_NAME};
use crate::remote_write::message::MAX_CONTRIBUTIONS;
use crate::snapshot::PendingCheckpoint;
use crate::time;
use crate::window::{Score, Window};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A feature's part in an incident.
#[derive(Clone, Debug, PartialEq)]
pub struct Contribution {
    /// The feature.
    pub feature: Labels,
    /// The kind of deviation.
    pub reason: DeviationReason,
    /// The share of all deviation, in [0, 1].
    pub share: f64,
    /// The value of the feature; NaN if it is not known.
    pub value: f64,
    /// Lower bound, expected value and upper bound; NaN before the first day.
    pub expected_range: [f64; 3],
}

/// The incident that a row is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowIncident {
    /// None.
    None,
    /// A new one, that this score opened: another one that was open has ended.
    Opens(AlertScore),
    /// The one of the row before, or one that opened before the rows that are known.
    Continues,
}

/// The result of one row.
pub struct RowResult {
    /// The score.
    pub score: Score,
    /// The incident that the row is part of.
    pub incident: RowIncident,
    /// The contributions to the incident.
    pub contributions: Vec<Contribution>,
}

/// See the [module](self).
pub struct ServingModel {
    info: Arc<ModelInfo>,
    /// The schema of the model, with the features as the group has them.
    schema: Schema,
    reader: RowReader,
    /// Values of the row that was read last.
    values: Vec<f32>,
    /// Rows up to here belong to another model or to the training: their scores stay.
    pub frozen_to_ms: i64,
    /// Rows up to here were skipped, or processed by the model.
    pub processed_to_ms: i64,
    running: RunningModel,
}

impl ServingModel {
    /// Starts to serve a model. A model that scores rows in order continues from its last training row, or from the
    /// later row of `caught_up`.
    pub fn new(
        deployed: DeployedModel,
        window: &Window,
        frozen_to_ms: i64,
        caught_up: Option<Box<OnlineDetector>>,
        alerts: &detect::Config,
    ) -> Self {
        let DeployedModel { model, info } = deployed;
        let schema = model.schema.clone();
        let running = RunningModel::start(model, caught_up, alerts);
        let reader = RowReader::new(&schema, window);
        let processed_to_ms = running.newest_ms().unwrap_or(i64::MIN);
        let frozen_to_ms = frozen_to_ms.max(processed_to_ms);
        Self { info, schema, reader, values: Vec::new(), frozen_to_ms, processed_to_ms, running }
    }

    /// Continues the alert state of the group.
    pub fn with_alert_state(self, alerts: AlertState) -> Self {
        Self { running: self.running.with_alert_state(alerts), ..self }
    }

    /// The state after the newest row; `None` for a model that scores each row alone.
    pub fn detector(&self) -> Option<&OnlineDetector> {
        self.running.state()
    }

    /// The alert state of the group; `None` for a model that scores each row alone.
    pub fn alert_state(&self) -> Option<&AlertState> {
        self.running.state().map(OnlineDetector::alert_state)
    }

    /// The alert state, to apply feedback of a person.
    pub fn alert_state_mut(&mut self) -> Option<&mut AlertState> {
        self.running.state_mut().map(OnlineDetector::alert_state_mut)
    }

    /// Replaces the times in which no incident is open.
    pub fn set_suspended(&mut self, suspended: &SuspendedTimes) {
        if let Some(state) = self.running.state_mut() {
            state.set_suspended(suspended.clone());
        }
    }

    /// The facts of the model.
    pub fn info(&self) -> &Arc<ModelInfo> {
        &self.info
    }

    /// The schema of the model, with the features as the group has them.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Renames features whose series have other labels now.
    pub fn rename_features(&mut self, renamed: &BTreeMap<Labels, Labels>, window: &Window) {
        for feature in &mut self.schema.features {
            if let Some(new) = renamed.get(feature) {
                *feature = new.clone();
            }
        }
        self.rebind(window);
    }

    /// The checkpoint for a snapshot, after rows up to this time.
    pub fn pending_checkpoint(&self, scored_to_ms: i64) -> PendingCheckpoint {
        PendingCheckpoint {
            info: self.info.clone(),
            processed_to_ms: if self.is_sequential() { self.processed_to_ms } else { scored_to_ms },
            detector: self.running.state().cloned(),
        }
    }

    /// True if the model scores rows in order.
    pub fn is_sequential(&self) -> bool {
        self.running.is_sequential()
    }

    /// Applies another `alerts` section.
    pub fn set_alerts(&mut self, alerts: &detect::Config) {
        self.running.set_alerts(alerts, &self.schema.features);
    }

    /// Binds the model to the changed columns of the window.
    pub fn rebind(&mut self, window: &Window) {
        self.reader = RowReader::new(&self.schema, window);
    }

    /// Reads the row that contains `timestamp_ms`. Calls `on_event` for each counter event of it.
    pub fn read_row(
        &mut self,
        window: &Window,
        timestamp_ms: i64,
        on_event: impl FnMut(CounterEvent),
    ) -> Row {
        self.reader.read_row(&self.schema, window, timestamp_ms, &mut self.values, on_event)
    }

    /// True if the row that contains `timestamp_ms` has a staleness marker.
    pub fn has_staleness_marker(&self, window: &Window, timestamp_ms: i64) -> bool {
        self.reader.has_staleness_marker(self.schema(), window, timestamp_ms)
    }

    /// True if a feature has a value within the grace period before `timestamp_ms`.
    pub fn is_fed(&self, window: &Window, timestamp_ms: i64, grace: Duration) -> bool {
        self.reader.has_value_since(window, timestamp_ms.saturating_sub(time::millis(grace)), timestamp_ms)
    }

    /// True if every value of the row that was read last is finite.
    pub fn is_row_finite(&self) -> bool {
        self.values.iter().all(|value| value.is_finite())
    }

    /// Scores the complete row that was read last. `None` for a row that is not after the previous one, if the model
    /// scores rows in order.
    pub fn score(&mut self, timestamp_ms: i64) -> Option<RowResult> {
        let (score, assessment) = self.running.score(timestamp_ms, &self.values)?;
        let Some(assessment) = assessment.filter(|assessment| assessment.incident) else {
            return Some(RowResult { score, incident: RowIncident::None, contributions: Vec::new() });
        };
        let features = &self.schema.features;
        let contribution = |(index, reason, share): (usize, DeviationReason, f64)| Contribution {
            feature: features[index].clone(),
            reason,
            share,
            value: f64::from(assessment.values[index]),
            expected_range: assessment.expected_range[index],
        };
        let contributions = assessment.contributions(MAX_CONTRIBUTIONS).map(contribution).collect();
        let incident = assessment.opened_by.map_or(RowIncident::Continues, RowIncident::Opens);
        Some(RowResult { score, incident, contributions })
    }

    /// The score of a row, if the row is complete.
    pub fn score_if_complete(&mut self, window: &Window, timestamp_ms: i64) -> Option<Score> {
        let is_usable = match self.read_row(window, timestamp_ms, |_| {}) {
            Row::Complete { is_full_range, .. } => is_full_range || !self.is_sequential(),
            Row::Missing(_) | Row::TooFewSamples(_) => false,
        };
        is_usable.then(|| self.score(timestamp_ms)).flatten().map(|result| result.score)
    }
}

impl Contribution {
    /// The output series of the contribution with their values: share, value, expected range.
    pub fn series(&self, detector: &str, group: &Labels) -> impl Iterator<Item = (Labels, f64)> {
        let reserved = ["detector", "metric", "reason"];
        let mut labels = group.with("detector", detector).with("metric", self.feature.metric_name());
        for (name, value) in self.feature.iter().filter(|(name, _)| *name != METRIC_NAME) {
            labels = match reserved.contains(&name) {
                true => labels.with(&format!("exported_{name}"), value),
                false => labels.with(name, value),
            };
        }
        let share = labels.with(METRIC_NAME, "anomaly_contribution").with("reason", self.reason.as_str());
        let [lower, expected, upper] = self.expected_range;
        let band = [
            ("anomaly_value", self.value),
            ("anomaly_expected_lower", lower),
            ("anomaly_expected", expected),
            ("anomaly_expected_upper", upper),
        ];
        let known = band.into_iter().filter(|(_, value)| !value.is_nan());
        let known = known.map(move |(name, value)| (labels.with(METRIC_NAME, name), value));
        std::iter::once((share, self.share)).chain(known)
    }
}
