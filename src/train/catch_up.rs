//! Brings a model up to date: a detector with state must assess all rows since its training.

use super::backends::{GroupHistory, GroupReader};
use super::exclusion;
use super::history::ALERT_LOOKBACK_MS;
use super::training_set::for_each_full_row;
use crate::detect::{self, OnlineDetector, SuspendedTimes};
use crate::history::SeriesSamples;
use crate::models::Model;
use crate::time;
use crate::window::build;
use std::time::Instant;

/// The detection after the rows of `history` up to `to_ms`, with the alerts of a detector. The series have features as
/// labels. No incident opens in the suspended times.
pub fn advance(
    mut detection: Box<OnlineDetector>,
    model: &Model,
    alerts: &detect::Config,
    suspended: SuspendedTimes,
    history: &[SeriesSamples],
    to_ms: i64,
) -> Box<OnlineDetector> {
    detection.set_alerts(alerts, &model.schema.features);
    detection.set_suspended(suspended);
    let newest_ms = detection.newest_ms().unwrap_or(i64::MIN);
    let window = build::from_series(history.iter(), i64::MAX / 2);
    for_each_full_row(&model.schema, &window, newest_ms, to_ms, |timestamp_ms, values| {
        // `None` for the row that the detection ends with.
        let _ = detection.assess(timestamp_ms, values);
    });
    detection
}

/// The history of a group since the training of a model.
pub struct CatchUp {
    /// The state of the model after the rows up to the requested time; `None` for a model without state.
    pub detection: Option<Box<OnlineDetector>>,
    /// The samples since the training of the model and within the window, with features as labels.
    pub series: Vec<SeriesSamples>,
    /// False if an endpoint that may have more did not answer.
    pub is_complete: bool,
}

impl CatchUp {
    /// Reads the history of a group up to `to_ms`, as far as the sources return it: a promoted model continues as if it
    /// had served since its training.
    pub async fn read(reader: &mut GroupReader<'_>, model: &Model, to_ms: i64) -> Self {
        let detector = reader.detector;
        let window_start_ms = to_ms.saturating_sub(time::millis(detector.window));
        let history_start_ms = to_ms.saturating_sub(time::millis(detector.training.history));
        let since_ms = model.fitted.newest_ms().unwrap_or(window_start_ms).max(history_start_ms);
        let from_ms = (since_ms - model.schema.transform.lookback_ms()).min(window_start_ms);
        reader.circuit_breaker.reset_expired(Instant::now());
        let GroupHistory { series, failure } = reader.read((from_ms, to_ms)).await;
        let (alerts, _) = reader.read_alerts((from_ms - ALERT_LOOKBACK_MS, to_ms)).await;
        let periods = reader.read_periods().await;
        let suspended = exclusion::suspended_times(&periods, alerts.iter(), &detector.name, reader.labels);
        let start = model.fitted.as_online().cloned().map(Box::new);
        let detection = start.map(|start| advance(start, model, &detector.alerts, suspended, &series, to_ms));
        Self { detection, series, is_complete: failure.is_none() }
    }
}
