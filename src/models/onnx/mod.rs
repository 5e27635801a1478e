//! Isolation forests as ONNX graphs: export, and import of promforest's and skl2onnx's files.
//!
//! The reader does not depend on the names that a converter gives. It evaluates the graph, operation by operation, on
//! the leaves of each tree. A graph is an isolation forest if every leaf has a path length of depth + `c(n)` for a whole
//! `n`, and the output is `-2^(-sum / unit)` minus an offset, where `sum` is over the trees. Then `n` is the leaf's
//! number of rows, and `max_samples` follows from `unit`. The error for any other graph names its operator.
//!
//! Not taken: a general runtime that scores any graph (it needs every operator and does not expose the trees); the
//! converter's tables of counts and depths, found by name (only one converter writes them, and the graph may not use
//! them).
//!
//! Only plain isolation forests: ONNX has no operator for oblique splits.

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

/// Key of the column names in the model's metadata, a JSON list.
const COLUMNS_KEY: &str = "promforest.columns";

/// Codes of the comparisons in a `TreeEnsemble` (ai.onnx.ml 5); this one is `value <= split`.
const BRANCH_LEQ: u8 = 0;

/// Reasons why an import or export fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file exceeds the limit.
    #[error("file has {length} bytes, must have at most {MAX_BYTES}")]
    Oversized {
        /// Length of the file.
        length: usize,
    },
    /// The bytes are not an ONNX model.
    #[error("not an ONNX model")]
    Protobuf(#[source] prost::DecodeError),
    /// The graph computes something that is not an isolation forest.
    #[error(
        "operator {operator} at {output:?} is no part of an isolation forest as skl2onnx or promforest write it"
    )]
    Operator {
        /// Domain and type of the operator.
        operator: String,
        /// Name of its output.
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
        /// The allowed value.
        limit: String,
    },
    /// The trees do not form a forest.
    #[error("no forest can be made of the trees")]
    Forest(#[from] forest::Error),
}

fn value_error(place: &str, field: &str, value: impl ToString, limit: impl ToString) -> Error {
    let (place, field) = (place.to_string(), field.to_string());
    Error::Value { place, field, value: value.to_string(), limit: limit.to_string() }
}

#[cfg(test)]
mod tests;
