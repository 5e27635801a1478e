//! The standard forest: nodes with scikit-learn's names.

use super::super::{Error, ipc};
use super::{
    read_batch, split_by_tree, to_i32, to_i64, tree_numbers, with_forest_context, with_tree_context,
};
use crate::forest::{Forest, Tree, TreeArrays};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, UInt32Type};
use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, UInt32Array};
use arrow_schema::{DataType, SchemaRef};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The section `forest` of `model.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StandardMetadata {
    pub n_features: usize,
    pub n_estimators: usize,
    pub max_samples: u64,
    pub offset: f64,
    /// Least and greatest value of each feature in training; null if unknown.
    pub ranges: Option<Vec<[f32; 2]>>,
}

impl StandardMetadata {
    pub fn new(forest: &Forest) -> Self {
        Self {
            n_features: forest.n_features(),
            n_estimators: forest.n_estimators(),
            max_samples: forest.max_samples(),
            offset: forest.offset(),
            ranges: (!forest.ranges().is_empty()).then(|| forest.ranges().to_vec()),
        }
    }
}

fn schema() -> SchemaRef {
    ipc::schema([
        ("tree", DataType::UInt32),
        ("left_child", DataType::Int32),
        ("right_child", DataType::Int32),
        ("feature", DataType::Int32),
        ("threshold", DataType::Float64),
        ("n_node_samples", DataType::Int64),
        ("missing_go_to_left", DataType::Boolean),
    ])
}

pub fn write(forest: &Forest) -> Vec<u8> {
    let trees: Vec<TreeArrays> = forest.trees().collect();
    let indexes = |select: fn(&TreeArrays) -> &Vec<i64>| -> ArrayRef {
        Arc::new(Int32Array::from_iter_values(trees.iter().flat_map(|tree| to_i32(select(tree)))))
    };
    let (mut threshold, mut n_node_samples, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for tree in &trees {
        threshold.extend_from_slice(&tree.threshold);
        n_node_samples.extend_from_slice(&tree.n_node_samples);
        missing.extend_from_slice(&tree.missing_go_to_left);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from(tree_numbers(trees.iter().map(|tree| tree.left_child.len())))),
        indexes(|tree| &tree.left_child),
        indexes(|tree| &tree.right_child),
        indexes(|tree| &tree.feature),
        Arc::new(Float64Array::from(threshold)),
        Arc::new(Int64Array::from(n_node_samples)),
        Arc::new(BooleanArray::from(missing)),
    ];
    ipc::write(&schema(), columns)
}

pub fn read(bytes: &[u8], metadata: StandardMetadata) -> Result<Forest, Error> {
    let batch = read_batch(bytes, &schema())?;
    let index = |column: usize| batch.column(column).as_primitive::<Int32Type>().values();
    let (left, right, feature) = (index(1), index(2), index(3));
    let threshold = batch.column(4).as_primitive::<Float64Type>().values();
    let n_node_samples = batch.column(5).as_primitive::<Int64Type>().values();
    let missing = batch.column(6).as_boolean();
    let numbers = batch.column(0).as_primitive::<UInt32Type>().values();
    let mut trees = Vec::new();
    for (number, rows) in split_by_tree(numbers, metadata.n_estimators)?.into_iter().enumerate() {
        let arrays = TreeArrays {
            left_child: to_i64(&left[rows.clone()]),
            right_child: to_i64(&right[rows.clone()]),
            feature: to_i64(&feature[rows.clone()]),
            threshold: threshold[rows.clone()].to_vec(),
            n_node_samples: n_node_samples[rows.clone()].to_vec(),
            missing_go_to_left: rows.map(|row| missing.value(row)).collect(),
        };
        trees.push(with_tree_context(number, Tree::from_arrays(&arrays, metadata.n_features))?);
    }
    let forest = with_forest_context(Forest::new(&trees, metadata.max_samples, metadata.offset))?;
    match metadata.ranges {
        Some(ranges) => with_forest_context(forest.with_ranges(ranges)),
        None => Ok(forest),
    }
}
