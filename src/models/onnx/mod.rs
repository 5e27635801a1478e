//! Isolation forests as ONNX graphs: ours out, ours and skl2onnx's in.
//!
//! **The idea.** An ONNX graph says what is computed, not what it means. So the reader does not look
//! for names that some converter gives; it computes the graph, operation by operation, on what each
//! leaf of a tree stands for. If that comes to a path length of depth + `c(n)` for a whole `n` in every
//! leaf, summed over trees, in `-2^(-sum / unit)` minus an offset, then the graph is an isolation
//! forest, and what it leaves unsaid follows: `n` is the leaf's number of rows, `unit` tells
//! `max_samples`. Everything else is refused by the name of its operator.
//!
//! **Not taken:** a general runtime that scores any graph (it would need every operator, and would
//! still not know the trees, which training statistics and explanations ask for); the converter's
//! tables of counts and depths, found by name (they exist in one converter's files only, and nothing
//! shows that the rest of the graph uses them).
//!
//! Only plain isolation forests: slanted cuts have no operator.

mod attributes;
mod ensemble;
mod export;
mod import;

pub use export::write;
pub use import::{MAX_BYTES, read};

use crate::forest;

/// Messages generated from `proto/onnx.proto`.
mod proto {
    #![allow(missing_docs, dead_code, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

/// The operator set of tree ensembles.
const ML_DOMAIN: &str = "ai.onnx.ml";

/// Key in the model's metadata under which the names of the columns lie, as a JSON list.
const COLUMNS_KEY: &str = "promforest.columns";

/// Codes of the comparisons in a `TreeEnsemble` (ai.onnx.ml 5); this one is `value <= split`.
const BRANCH_LEQ: u8 = 0;

/// Why a forest did not pass from or to ONNX.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is larger than we read.
    #[error("file has {length} bytes, must have at most {MAX_BYTES}")]
    Oversized {
        /// Length of the file.
        length: usize,
    },
    /// The bytes are no ONNX model.
    #[error("not an ONNX model")]
    Protobuf(#[source] prost::DecodeError),
    /// The graph computes something that is not an isolation forest.
    #[error(
        "operator {operator} at {output:?} is no part of an isolation forest as skl2onnx or promforest write it"
    )]
    Operator {
        /// Domain and type of the operator.
        operator: String,
        /// Name of what it computes.
        output: String,
    },
    /// A value in the file, or of the forest to be written, is wrong.
    #[error("{place}: {field} is {value}, must be {limit}")]
    Value {
        /// Operator or part of the model.
        place: String,
        /// The property.
        field: String,
        /// The value as given.
        value: String,
        /// What it must be.
        limit: String,
    },
    /// The trees are no forest.
    #[error("no forest can be made of the trees")]
    Forest(#[from] forest::Error),
}

fn value_error(place: &str, field: &str, value: impl ToString, limit: impl ToString) -> Error {
    let (place, field) = (place.to_string(), field.to_string());
    Error::Value { place, field, value: value.to_string(), limit: limit.to_string() }
}

#[cfg(test)]
mod tests;
