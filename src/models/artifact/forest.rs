//! The forest of a model in its folder: the nodes in `forest.arrow`, one row each and tree after tree, and
//! what they do not say in the section `forest` of `model.json`. One file for each kind.

mod extended;
mod plain;

use super::{Error, FOREST, STATE, ipc};
use crate::forest;
use crate::models::Fitted;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use std::ops::Range;

pub use extended::Section as Extended;
pub use plain::Section as Plain;

/// The section `forest` of `model.json`.
#[derive(Debug)]
pub enum Section {
    /// Of a plain forest.
    Plain(Plain),
    /// Of an extended forest.
    Extended(Extended),
}

impl Section {
    /// Number of values of a row, as the section has it.
    pub fn n_features(&self) -> usize {
        match self {
            Self::Plain(section) => section.n_features,
            Self::Extended(section) => section.n_features,
        }
    }
}

/// `forest.arrow`.
pub fn write(fitted: &Fitted) -> Vec<u8> {
    match fitted {
        Fitted::IsolationForest(forest) => plain::write(forest),
        Fitted::Extended(detection) => extended::write(detection),
    }
}

/// `state.json`: where an extended forest stood after the last row of training.
pub fn state(fitted: &Fitted) -> Option<Vec<u8>> {
    match fitted {
        Fitted::IsolationForest(_) => None,
        Fitted::Extended(detection) => {
            Some(serde_json::to_vec(&detection.state()).expect("lists of finite numbers"))
        }
    }
}

/// Reads `forest.arrow`, and `state.json` where the kind has one.
///
/// # Errors
/// [`Error::Arrow`] and [`Error::Forest`]; [`Error::Json`] if it is the section that is wrong, [`Error::State`] and
/// [`Error::Missing`] if it is the state.
pub fn read(bytes: &[u8], section: Section, state: Option<&[u8]>) -> Result<Fitted, Error> {
    match section {
        Section::Plain(section) => plain::read(bytes, section).map(Fitted::IsolationForest),
        Section::Extended(section) => {
            let state = state.ok_or(Error::Missing(STATE))?;
            let state = serde_json::from_slice(state).map_err(|error| Error::State(error.to_string()))?;
            extended::read(bytes, section, state).map(|detection| Fitted::Extended(Box::new(detection)))
        }
    }
}

/// The rows of each tree, from the column of their numbers.
fn rows_of_trees(numbers: &[u32], n_estimators: usize) -> Result<Vec<Range<usize>>, Error> {
    let fault = |reason| Err(Error::Arrow { file: FOREST, reason });
    let mut trees: Vec<Range<usize>> = Vec::new();
    for same in numbers.chunk_by(|a, b| a == b) {
        let (number, start) = (trees.len(), trees.last().map_or(0, |rows| rows.end));
        if same[0] as usize != number {
            return fault(format!("row {start} belongs to tree {}, must be tree {number}", same[0]));
        }
        trees.push(start..start + same.len());
    }
    if trees.len() != n_estimators {
        return fault(format!("there are {} trees, must be {n_estimators}", trees.len()));
    }
    Ok(trees)
}

/// The number of its tree for every node, from the numbers of nodes.
fn numbers_of_trees(n_nodes: impl Iterator<Item = usize>) -> Vec<u32> {
    n_nodes.enumerate().flat_map(|(tree, n_nodes)| std::iter::repeat_n(tree as u32, n_nodes)).collect()
}

fn of_tree<T>(number: usize, tree: Result<T, forest::Error>) -> Result<T, Error> {
    tree.map_err(|source| Error::Forest { context: format!("tree {number}"), source })
}

fn of_forest<T>(forest: Result<T, forest::Error>) -> Result<T, Error> {
    forest.map_err(|source| Error::Forest { context: "the forest".into(), source })
}

/// Indexes as a file has them.
fn narrow(indexes: &[i64]) -> impl Iterator<Item = i32> {
    indexes.iter().map(|index| *index as i32)
}

fn widen(indexes: &[i32]) -> Vec<i64> {
    indexes.iter().map(|index| i64::from(*index)).collect()
}

fn batch(bytes: &[u8], schema: &SchemaRef) -> Result<RecordBatch, Error> {
    ipc::read(FOREST, bytes, schema)
}
