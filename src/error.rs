//! Error texts with their causes.

/// An error of any type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An error and its causes on one line, separated by colons.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // The error of a regular expression spans several lines; the last one states the reason.
        let cause_text = cause.to_string();
        let last = cause_text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string();
        text = format!("{text}: {last}");
        source = cause.source();
    }
    text
}

/// A part of saved data that this program does not write: the file is damaged or hostile.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{part} is {value}, must be {limit}")]
pub struct InvalidPart {
    part: &'static str,
    value: String,
    limit: String,
}

impl InvalidPart {
    /// Names the part, its value, and the values that are allowed.
    pub fn new(part: &'static str, value: impl ToString, limit: impl ToString) -> Self {
        Self { part, value: value.to_string(), limit: limit.to_string() }
    }
}
