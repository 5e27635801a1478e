//! A model at work on a group's window.

use crate::detect::{self, Detection, Reason};
use crate::features::{Reader, Schema};
use crate::models::{self, Deployed, Fitted, Model};
use crate::prom::{Labels, METRIC_NAME};
use crate::snapshot::Draft;
use crate::window::{Alarm, Score, Window};
use std::sync::{Arc, OnceLock};

/// Causes of an incident that are told.
pub const CAUSES: usize = 3;

/// A metric behind an incident.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// The feature.
    pub feature: Labels,
    /// How it is unusual.
    pub reason: Reason,
    /// Its share of all deviation, in [0, 1].
    pub share: f64,
    /// Least usual, expected and greatest usual value; NaN before a first day.
    pub usual: [f64; 3],
}

/// See the [module](self).
pub struct Serving {
    /// The model.
    pub deployed: Deployed,
    /// Finds its features in the window.
    pub reader: Reader,
    /// Rows up to here were another model's, or this one was trained on them: their scores stay.
    pub since_ms: i64,
    /// Rows up to here were passed over, or taken by the detection.
    pub passed_ms: i64,
    detection: Option<Detection>,
    digest: Arc<OnceLock<String>>,
}

impl Serving {
    /// A model that begins to serve. One that judges one row after the other goes on from its last row of
    /// training, or from a later one that it has been brought to.
    pub fn new(
        deployed: Deployed,
        window: &Window,
        since_ms: i64,
        advanced: Option<Box<Detection>>,
        alerts: &detect::Config,
    ) -> Self {
        let detection = match (&deployed.model.fitted, advanced) {
            (Fitted::IsolationForest(_), _) => None,
            (Fitted::Extended(_), Some(advanced)) => Some(*advanced),
            (Fitted::Extended(trained), None) => Some(trained.as_ref().clone()),
        };
        let features = &deployed.model.schema.features;
        let detection = detection.map(|detection| detection.with_alerts(alerts, features));
        let reader = Reader::new(&deployed.model.schema, window);
        let passed_ms = detection.as_ref().and_then(Detection::newest_ms).unwrap_or(i64::MIN);
        let since_ms = since_ms.max(passed_ms);
        Self { deployed, reader, since_ms, passed_ms, detection, digest: Arc::default() }
    }

    /// Goes on with the incident of the one that served before.
    pub fn succeed(self, before: &Self) -> Self {
        let detection = match (self.detection, &before.detection) {
            (Some(detection), Some(before)) => Some(detection.succeed(before)),
            (detection, _) => detection,
        };
        Self { detection, ..self }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.deployed.model
    }

    /// Its columns.
    pub fn schema(&self) -> &Schema {
        &self.deployed.model.schema
    }

    /// What a snapshot says of it, after rows up to this time.
    pub fn draft(&self, scored_to_ms: i64) -> Draft {
        Draft {
            deployed: self.deployed.clone(),
            digest: self.digest.clone(),
            passed_ms: if self.is_ordered() { self.passed_ms } else { scored_to_ms },
            detection: self.detection.clone(),
        }
    }

    /// Does it judge one row after the other?
    pub fn is_ordered(&self) -> bool {
        self.detection.is_some()
    }

    /// Works by another section `alerts` from now on.
    pub fn set_alerts(&mut self, alerts: &detect::Config) {
        let features = &self.deployed.model.schema.features;
        self.detection = self.detection.take().map(|detection| detection.with_alerts(alerts, features));
    }

    /// Judges a complete row, and tells the causes of an incident. `None` for a row that is not after those
    /// before it, where that matters.
    pub fn judge(&mut self, timestamp_ms: i64, values: &[f32]) -> Option<(Score, Vec<Cause>)> {
        let Some(detection) = &mut self.detection else {
            let Fitted::IsolationForest(forest) = &self.deployed.model.fitted else { return None };
            return Some((models::score(forest, values), Vec::new()));
        };
        let seen = detection.observe(timestamp_ms, values)?;
        let alarm = Alarm { threshold: seen.threshold, is_incident: seen.incident };
        let score = Score { decision: seen.decision, score: seen.score, alarm: Some(alarm) };
        let features = &self.deployed.model.schema.features;
        let cause = |(metric, reason, share): (usize, Reason, f64)| Cause {
            feature: features[metric].clone(),
            reason,
            share,
            usual: seen.usual[metric],
        };
        let causes = if seen.incident { seen.causes(CAUSES).map(cause).collect() } else { Vec::new() };
        Some((score, causes))
    }
}

impl Cause {
    /// The series that tell of it, and their values: its share, and what was expected.
    pub fn series(&self, detector: &str, group: &Labels) -> impl Iterator<Item = (Labels, f64)> {
        let own = ["detector", "metric", "reason"];
        let mut labels = group.with("detector", detector).with("metric", self.feature.metric_name());
        for (name, value) in self.feature.iter().filter(|(name, _)| *name != METRIC_NAME) {
            labels = match own.contains(&name) {
                true => labels.with(&format!("exported_{name}"), value),
                false => labels.with(name, value),
            };
        }
        let share = labels.with(METRIC_NAME, "anomaly_contribution").with("reason", self.reason.as_str());
        let bounds = ["anomaly_expected_lower", "anomaly_expected", "anomaly_expected_upper"];
        let usual = bounds.into_iter().zip(self.usual).filter(|(_, value)| !value.is_nan());
        let usual = usual.map(move |(name, value)| (labels.with(METRIC_NAME, name), value));
        std::iter::once((share, self.share)).chain(usual)
    }
}
