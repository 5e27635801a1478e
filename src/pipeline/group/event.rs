//! The events of a group that the engine counts.

use crate::features::counter;
use crate::remote_write::FailureReason;

/// The outcome of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowState {
    /// The row was scored.
    Complete,
    /// The grace period ended before all features had arrived.
    Incomplete,
    /// The row has all samples, but its rates do not have their full range yet.
    TooShort,
    /// The row holds only staleness markers: the target is gone.
    Stale,
    /// The group had no model.
    NoModel,
    /// The row became complete after a later row had been scored.
    Late,
}

impl RowState {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::Complete, Self::Incomplete, Self::TooShort, Self::Stale, Self::NoModel, Self::Late];

    /// The value of the label `state`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::TooShort => "too_short",
            Self::Stale => "stale",
            Self::NoModel => "no_model",
            Self::Late => "late",
        }
    }
}

/// An event of a group, for the engine to count.
#[derive(Debug, PartialEq)]
pub enum GroupEvent {
    /// A row is closed.
    Row(RowState),
    /// A counter is repaired.
    Counter(counter::CounterEvent),
    /// This many samples of a row will not be written to an endpoint.
    SamplesFailed(FailureReason, usize),
    /// A value of a scored row is NaN or infinite.
    NotFinite,
}
