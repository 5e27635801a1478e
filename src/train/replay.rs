//! Brings a model up to date: one that judges row after row has to have seen all rows since its training.

use super::rows;
use crate::detect::Detection;
use crate::history::Series;
use crate::models::{Fitted, Model};

/// Timestamp of the newest row that the model has seen, if it judges one row after the other.
pub fn newest_ms(model: &Model) -> Option<i64> {
    match &model.fitted {
        Fitted::IsolationForest(_) => None,
        Fitted::Extended(detection) => detection.newest_ms(),
    }
}

/// What the model was when it was trained; none for one that judges every row alone.
pub fn trained(model: &Model) -> Option<Box<Detection>> {
    match &model.fitted {
        Fitted::IsolationForest(_) => None,
        Fitted::Extended(detection) => Some(detection.clone()),
    }
}

/// What a detection of the model becomes by the rows of the past up to `to_ms`; `past` has features for labels.
pub fn advance(mut detection: Box<Detection>, model: &Model, past: &[Series], to_ms: i64) -> Box<Detection> {
    let newest_ms = detection.newest_ms().unwrap_or(i64::MIN);
    let window = rows::window(past.iter(), i64::MAX / 2);
    rows::settled(&model.schema, &window, newest_ms, to_ms, |timestamp_ms, values| {
        // None for the row that the model ends with.
        let _ = detection.observe(timestamp_ms, values);
    });
    detection
}
