//! The detectors that a request or a command names.

use super::Detector;
use std::sync::Arc;

/// The error for the name of no detector.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("no detector is named {name:?}; there are {known}")]
pub struct UnknownDetector {
    name: String,
    known: String,
}

/// The detector of this name; without one, all of them.
///
/// # Errors
/// [`UnknownDetector`] if none has the name.
pub fn select(
    detectors: &[Arc<Detector>],
    name: Option<&str>,
) -> Result<Vec<Arc<Detector>>, UnknownDetector> {
    let Some(name) = name else { return Ok(detectors.to_vec()) };
    let unknown = || {
        let names: Vec<&str> = detectors.iter().map(|detector| detector.name.as_str()).collect();
        UnknownDetector { name: name.into(), known: names.join(", ") }
    };
    let detector = detectors.iter().find(|detector| detector.name == name).ok_or_else(unknown)?;
    Ok(vec![detector.clone()])
}
