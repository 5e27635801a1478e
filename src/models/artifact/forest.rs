//! The forest of a model in its folder: `forest.arrow` with one row per node, in the order of the trees, and the
//! section `forest` of `model.json`. Each kind has a file.

mod extended;
mod standard;

use super::{Error, FOREST, STATE, ipc};
use crate::forest;
use crate::models::FittedModel;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use std::ops::Range;

pub use extended::ExtendedMetadata;
pub use standard::StandardMetadata;

/// The section `forest` of `model.json`.
#[derive(Debug)]
pub enum ForestMetadata {
    /// Of a plain forest.
    Standard(StandardMetadata),
    /// Of an extended forest.
    Extended(Box<ExtendedMetadata>),
}

impl ForestMetadata {
    /// Number of values of a row, as the section has it.
    pub fn n_features(&self) -> usize {
        match self {
            Self::Standard(metadata) => metadata.n_features,
            Self::Extended(metadata) => metadata.n_features,
        }
    }
}

/// `forest.arrow`.
pub fn write(fitted: &FittedModel) -> Vec<u8> {
    match fitted {
        FittedModel::IsolationForest(forest) => standard::write(forest),
        FittedModel::Extended(detector) => extended::write(detector),
    }
}

/// `state.json`: the state of an extended forest after the last row of training.
pub fn write_state(fitted: &FittedModel) -> Option<Vec<u8>> {
    match fitted {
        FittedModel::IsolationForest(_) => None,
        FittedModel::Extended(detector) => {
            Some(serde_json::to_vec(&detector.state()).expect("lists of finite numbers"))
        }
    }
}

/// Reads `forest.arrow`, and `state.json` where the kind has one.
///
/// # Errors
/// [`Error::Arrow`] and [`Error::Forest`]; [`Error::Json`] if it is the section that is wrong, [`Error::State`] and
/// [`Error::Missing`] if it is the state.
pub fn read(bytes: &[u8], metadata: ForestMetadata, state: Option<&[u8]>) -> Result<FittedModel, Error> {
    match metadata {
        ForestMetadata::Standard(metadata) => {
            standard::read(bytes, metadata).map(FittedModel::IsolationForest)
        }
        ForestMetadata::Extended(metadata) => {
            let state = state.ok_or(Error::Missing(STATE))?;
            let state = serde_json::from_slice(state).map_err(|error| Error::State(error.to_string()))?;
            extended::read(bytes, *metadata, state).map(|detector| FittedModel::Extended(Box::new(detector)))
        }
    }
}

/// The rows of each tree, from the column of their numbers.
fn split_by_tree(numbers: &[u32], n_estimators: usize) -> Result<Vec<Range<usize>>, Error> {
    let invalid = |reason| Err(Error::Arrow { file: FOREST, reason });
    let mut trees: Vec<Range<usize>> = Vec::new();
    for node_numbers in numbers.chunk_by(|a, b| a == b) {
        let (number, start) = (trees.len(), trees.last().map_or(0, |rows| rows.end));
        if node_numbers[0] as usize != number {
            return invalid(format!(
                "row {start} belongs to tree {}, must be tree {number}",
                node_numbers[0]
            ));
        }
        trees.push(start..start + node_numbers.len());
    }
    if trees.len() != n_estimators {
        return invalid(format!("there are {} trees, must be {n_estimators}", trees.len()));
    }
    Ok(trees)
}

/// The number of its tree for every node, from the numbers of nodes.
fn tree_numbers(n_nodes: impl Iterator<Item = usize>) -> Vec<u32> {
    n_nodes.enumerate().flat_map(|(tree, n_nodes)| std::iter::repeat_n(tree as u32, n_nodes)).collect()
}

fn with_tree_context<T>(number: usize, tree: Result<T, forest::Error>) -> Result<T, Error> {
    tree.map_err(|source| Error::Forest { context: format!("tree {number}"), source })
}

fn with_forest_context<T>(forest: Result<T, forest::Error>) -> Result<T, Error> {
    forest.map_err(|source| Error::Forest { context: "the forest".into(), source })
}

/// Indexes as a file has them.
fn to_i32(indexes: &[i64]) -> impl Iterator<Item = i32> {
    indexes.iter().map(|index| *index as i32)
}

fn to_i64(indexes: &[i32]) -> Vec<i64> {
    indexes.iter().map(|index| i64::from(*index)).collect()
}

fn read_batch(bytes: &[u8], schema: &SchemaRef) -> Result<RecordBatch, Error> {
    ipc::read(FOREST, bytes, schema)
}
