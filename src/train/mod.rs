//! Training: reads history, fits a model on it, and registers the model.
//!
//! The history is the union of its sources and the live window, so that a sidecar beside an old Prometheus has its first
//! model within seconds. Without a source, or beside a new Prometheus, the live window suffices once it is long enough.
//! Training reads rows by the code that also serves them, so that the two cannot differ.

pub mod coverage;
pub mod exclusion;
pub mod training_set;
pub mod cross_validation;
mod size_choice;
mod fit;
pub mod report;
pub mod register;
pub mod history;
mod backends;
pub mod catch_up;
mod warm_start;
pub mod pool;
mod job;
mod thread;
pub mod trainer;

pub use backends::{Backends, CircuitBreaker, GroupReader};
pub use exclusion::Exclusion;
pub use fit::{ModelFitter, ModelScope, Trained};
pub use job::{ShortHistory, TrainingJob, TrainingOutcome, TrainingReason};
pub use training_set::{TrainingSet, TrainingSetError};
pub use warm_start::{WarmStart, WriteWatermark};

#[cfg(test)]
mod tests;
