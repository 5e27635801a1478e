//! A model: what a forest was fitted on, and the forest.

pub mod imported;
pub mod onnx;

use crate::features::Schema;
use crate::forest::Forest;

/// A fitted model of one group.
#[derive(Debug)]
pub struct Model {
    /// The columns of the forest and how they come out of a window.
    pub schema: Schema,
    /// The forest; its width is the schema's.
    pub forest: Forest,
    /// Timestamp of the newest training row, in milliseconds.
    pub trained_to_ms: i64,
    /// Length of the history that it was fitted on, in milliseconds, without the gaps.
    pub observed_ms: i64,
    /// Rows that it was fitted on.
    pub n_rows: usize,
}
