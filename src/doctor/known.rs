//! Facts that may not be known.

/// A fact, or the reason why it is not known.
pub type Known<T> = Result<T, String>;
