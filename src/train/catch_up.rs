//! Brings a model up to date: one that judges row after row has to have seen all rows since its training.

use super::training_set;
use crate::detect::OnlineDetector;
use crate::models::Model;
use crate::remote_read::SeriesSamples;

/// Timestamp of the newest row that the model has seen, if it judges one row after the other.
pub fn newest_ms(model: &Model) -> Option<i64> {
    model.fitted.newest_ms()
}

/// What the model was when it was trained; none for one that judges every row alone.
pub fn detection_after_training(model: &Model) -> Option<Box<OnlineDetector>> {
    model.fitted.as_online().cloned().map(Box::new)
}

/// What a detection of the model becomes by the rows of the past up to `to_ms`; `past` has features for labels.
pub fn advance(
    mut detection: Box<OnlineDetector>,
    model: &Model,
    history: &[SeriesSamples],
    to_ms: i64,
) -> Box<OnlineDetector> {
    let newest_ms = detection.newest_ms().unwrap_or(i64::MIN);
    let window = training_set::build_window(history.iter(), i64::MAX / 2);
    training_set::for_each_full_row(&model.schema, &window, newest_ms, to_ms, |timestamp_ms, values| {
        // None for the row that the model ends with.
        let _ = detection.assess(timestamp_ms, values);
    });
    detection
}
