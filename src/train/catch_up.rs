//! Brings a model up to date: a detector with state must assess all rows since its training.

use super::backends::GroupReader;
use super::training_set::for_each_full_row;
use crate::detect::OnlineDetector;
use crate::models::Model;
use crate::remote_read::SeriesSamples;
use crate::time;
use crate::window::build;
use std::time::Instant;

/// The detection after the rows of `history` up to `to_ms`. The series have features as labels.
pub fn advance(
    mut detection: Box<OnlineDetector>,
    model: &Model,
    history: &[SeriesSamples],
    to_ms: i64,
) -> Box<OnlineDetector> {
    let newest_ms = detection.newest_ms().unwrap_or(i64::MIN);
    let window = build::from_series(history.iter(), i64::MAX / 2);
    for_each_full_row(&model.schema, &window, newest_ms, to_ms, |timestamp_ms, values| {
        // `None` for the row that the detection ends with.
        let _ = detection.assess(timestamp_ms, values);
    });
    detection
}

/// The state of the model after the rows of a group up to `to_ms`, as far as remote read returns them: a promoted model
/// continues as if it had served since its training. `None` for a model without state.
pub async fn read_and_advance(
    reader: &mut GroupReader<'_>,
    model: &Model,
    to_ms: i64,
) -> Option<Box<OnlineDetector>> {
    let history_ms = time::millis(reader.detector.training.history);
    let since_ms = model.fitted.newest_ms()?.max(to_ms.saturating_sub(history_ms));
    reader.circuit_breaker.reset_expired(Instant::now());
    let history = reader.read((since_ms - model.schema.transform.lookback_ms(), to_ms)).await;
    let detection = Box::new(model.fitted.as_online()?.clone());
    Some(advance(detection, model, &history.series, to_ms))
}
