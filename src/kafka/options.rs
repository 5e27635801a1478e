//! The dependencies of the thread that reads the topic, and the phases in which it reads.

use super::{Config, Metrics};
use std::time::Duration;

/// The progress of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Records are read.
    Running,
    /// No record is read: what is in the windows is scored and written.
    Held,
    /// The last offsets are committed, and the thread ends.
    Closed,
}

/// The dependencies of the thread.
pub struct SourceOptions {
    /// The topic.
    pub config: Config,
    /// Time before the committed offset that fills the windows.
    pub rewind: Duration,
    /// The metrics.
    pub metrics: Metrics,
}
