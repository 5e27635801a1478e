//! Times that are excluded from training: named by the user, and fired alerts. The detector's own incidents are not
//! excluded: what lasts is learned, and the alert threshold limits what a single incident contributes.

/// A time that is excluded from training.
#[derive(Clone, Debug, PartialEq)]
pub struct Exclusion {
    /// First millisecond.
    pub from_ms: i64,
    /// Last millisecond.
    pub to_ms: i64,
    /// The user's text, or the name of the alert that fired.
    pub reason: String,
}
