//! The extended forest: oblique splits, and the metadata of scoring around them.
//!
//! A node has `width` columns and coefficients, zeros in a leaf, so that a reader needs no offsets. They are most of the
//! file, hence 16 and 32 bits, which represent them exactly.

use super::super::{Error, ipc};
use super::{
    read_batch, split_by_tree, to_i32, to_i64, tree_numbers, with_forest_context, with_tree_context,
};
use crate::detect::{MeanSize, OnlineDetector, SavedState, ScoreScale, Scorer, ScorerParts};
use crate::features;
use crate::features::correlation::{Correlation, Residuals};
use crate::features::scale::RobustScale;
use crate::forest::{ExtendedForest, ExtendedTree, ExtendedTreeArrays, MAX_FEATURES};
use crate::models::EXTENDED_OFFSET;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int32Type, Int64Type, UInt16Type, UInt32Type};
use arrow_array::{ArrayRef, Float32Array, Float64Array, Int32Array, Int64Array, UInt16Array, UInt32Array};
use arrow_schema::{DataType, SchemaRef};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The section `forest` of `model.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtendedMetadata {
    pub n_features: usize,
    pub n_estimators: usize,
    pub max_samples: u64,
    pub offset: f64,
    /// Number of columns and coefficients of a node.
    width: usize,
    /// Center and sigma of the derived features of each feature: residual, difference and deviation, in this order;
    /// null for a derived feature without training values.
    scales: Vec<Option<[f64; 2]>>,
    /// The features that varied in training.
    varying: Vec<usize>,
    residuals: Option<ResidualsJson>,
    /// The usual minimum of each feature, null where a drop is usual; empty where none is known.
    #[serde(default)]
    minima: Vec<Option<f64>>,
    #[serde(default)]
    mean_sizes: Vec<MeanSizeJson>,
    forest_scale: ScoreScale,
    tail_scale: ScoreScale,
}

/// A mean size.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MeanSizeJson {
    /// The numbers of bytes and packets.
    features: [usize; 2],
    offsets: [f64; 2],
    /// Center and sigma; null without training values.
    scale: Option<[f64; 2]>,
}

/// The correlation residuals of the metrics.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResidualsJson {
    means: Vec<f64>,
    deviations: Vec<f64>,
    /// The matrix, row-major.
    inverse: Vec<f64>,
    /// Center and sigma of each residual.
    scales: Vec<[f64; 2]>,
}

impl ExtendedMetadata {
    pub fn new(detector: &OnlineDetector) -> Self {
        let ScorerParts { scales, varying, residuals, minima, mean_sizes, forest, forest_scale, tail_scale } =
            detector.scorer().parts();
        let pair = |scale: &RobustScale| [scale.center(), scale.sigma()];
        let mean_size = |MeanSize { features, offsets, scale }| MeanSizeJson {
            features,
            offsets,
            scale: scale.as_ref().map(pair),
        };
        let residuals = residuals.map(|Residuals { correlation, scales }| ResidualsJson {
            means: correlation.means().to_vec(),
            deviations: correlation.deviations().to_vec(),
            inverse: correlation.inverse().to_vec(),
            scales: scales.iter().map(pair).collect(),
        });
        Self {
            n_features: detector.n_features(),
            n_estimators: forest.as_ref().map_or(0, ExtendedForest::n_estimators),
            max_samples: forest.as_ref().map_or(0, ExtendedForest::max_samples),
            offset: EXTENDED_OFFSET,
            width: width(forest.as_ref()),
            scales: scales.iter().map(|scale| scale.as_ref().map(pair)).collect(),
            varying,
            residuals,
            minima,
            mean_sizes: mean_sizes.into_iter().map(mean_size).collect(),
            forest_scale,
            tail_scale,
        }
    }

    /// All parts except the forest.
    fn into_parts(self) -> Result<ScorerParts, features::Error> {
        let scale = |[center, sigma]: [f64; 2]| RobustScale::new(center, sigma);
        let residuals = self.residuals.map(|json| {
            let correlation = Correlation::new(json.means, json.deviations, json.inverse)?;
            let scales = json.scales.into_iter().map(scale).collect::<Result<_, _>>()?;
            Ok::<_, features::Error>(Residuals { correlation, scales })
        });
        let mean_size = |MeanSizeJson { features, offsets, scale: pair }| {
            Ok::<_, features::Error>(MeanSize { features, offsets, scale: pair.map(scale).transpose()? })
        };
        Ok(ScorerParts {
            scales: self
                .scales
                .into_iter()
                .map(|pair| pair.map(scale).transpose())
                .collect::<Result<_, _>>()?,
            varying: self.varying,
            residuals: residuals.transpose()?,
            minima: self.minima,
            mean_sizes: self.mean_sizes.into_iter().map(mean_size).collect::<Result<_, _>>()?,
            forest: None,
            forest_scale: self.forest_scale,
            tail_scale: self.tail_scale,
        })
    }
}

/// The number of columns per split, the same in all trees; without a forest there is no tree to hold it.
fn width(forest: Option<&ExtendedForest>) -> usize {
    forest.and_then(|forest| forest.trees().next()).map_or(1, |tree| tree.width)
}

fn schema(width: usize) -> SchemaRef {
    ipc::schema([
        ("tree", DataType::UInt32),
        ("left_child", DataType::Int32),
        ("right_child", DataType::Int32),
        ("columns", ipc::list_type(DataType::UInt16, width)),
        ("coefficients", ipc::list_type(DataType::Float32, width)),
        ("cut", DataType::Float64),
        ("low", DataType::Float64),
        ("high", DataType::Float64),
        ("n_node_samples", DataType::Int64),
    ])
}

pub fn write(detector: &OnlineDetector) -> Vec<u8> {
    let forest = detector.scorer().parts().forest;
    let trees: Vec<ExtendedTreeArrays> = forest.iter().flat_map(ExtendedForest::trees).collect();
    let width = width(forest.as_ref());
    let indexes = |select: fn(&ExtendedTreeArrays) -> &Vec<i64>| -> ArrayRef {
        Arc::new(Int32Array::from_iter_values(trees.iter().flat_map(|tree| to_i32(select(tree)))))
    };
    let numbers = |select: fn(&ExtendedTreeArrays) -> &Vec<f64>| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(trees.iter().flat_map(|tree| select(tree).iter().copied())))
    };
    let split_columns = trees.iter().flat_map(|tree| &tree.columns).map(|column| *column as u16);
    let coefficients =
        trees.iter().flat_map(|tree| &tree.coefficients).map(|coefficient| *coefficient as f32);
    let counts = trees.iter().flat_map(|tree| tree.n_node_samples.iter().copied());
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from(tree_numbers(trees.iter().map(|tree| tree.left_child.len())))),
        indexes(|tree| &tree.left_child),
        indexes(|tree| &tree.right_child),
        ipc::list_column(Arc::new(UInt16Array::from_iter_values(split_columns)), width),
        ipc::list_column(Arc::new(Float32Array::from_iter_values(coefficients)), width),
        numbers(|tree| &tree.cut),
        numbers(|tree| &tree.low),
        numbers(|tree| &tree.high),
        Arc::new(Int64Array::from_iter_values(counts)),
    ];
    ipc::write(&schema(width), columns)
}

pub fn read(bytes: &[u8], metadata: ExtendedMetadata, state: SavedState) -> Result<OnlineDetector, Error> {
    let invalid = |reason: String| Error::Json(format!("forest: {reason}"));
    let ExtendedMetadata { n_features, n_estimators, max_samples, offset, width, .. } = metadata;
    if !(1..=MAX_FEATURES).contains(&width) {
        return Err(invalid(format!("width is {width}, must be in 1..={MAX_FEATURES}")));
    }
    if offset != EXTENDED_OFFSET {
        return Err(invalid(format!("offset is {offset}, must be {EXTENDED_OFFSET}")));
    }
    let parts = metadata.into_parts().map_err(|error| invalid(error.to_string()))?;
    // Without a forest, the input has no columns.
    let n_inputs = parts.n_inputs();
    let batch = read_batch(bytes, &schema(width))?;
    let index = |column: usize| batch.column(column).as_primitive::<Int32Type>().values();
    let (left, right) = (index(1), index(2));
    let split_columns = batch.column(3).as_fixed_size_list().values().as_primitive::<UInt16Type>().values();
    let coefficients = batch.column(4).as_fixed_size_list().values().as_primitive::<Float32Type>().values();
    let number = |column: usize| batch.column(column).as_primitive::<Float64Type>().values();
    let (cut, low, high) = (number(5), number(6), number(7));
    let n_node_samples = batch.column(8).as_primitive::<Int64Type>().values();
    let numbers = batch.column(0).as_primitive::<UInt32Type>().values();
    let mut trees = Vec::new();
    for (number, rows) in split_by_tree(numbers, n_estimators)?.into_iter().enumerate() {
        let terms = rows.start * width..rows.end * width;
        let arrays = ExtendedTreeArrays {
            left_child: to_i64(&left[rows.clone()]),
            right_child: to_i64(&right[rows.clone()]),
            n_node_samples: n_node_samples[rows.clone()].to_vec(),
            width,
            columns: split_columns[terms.clone()].iter().map(|column| u32::from(*column)).collect(),
            coefficients: coefficients[terms].iter().map(|coefficient| f64::from(*coefficient)).collect(),
            cut: cut[rows.clone()].to_vec(),
            low: low[rows.clone()].to_vec(),
            high: high[rows].to_vec(),
        };
        trees.push(with_tree_context(number, ExtendedTree::from_arrays(&arrays, n_inputs))?);
    }
    let forest = match trees.is_empty() {
        true => None,
        false => Some(with_forest_context(ExtendedForest::new(trees, max_samples))?),
    };
    let scorer = Scorer::new(ScorerParts { forest, ..parts }).map_err(|error| invalid(error.to_string()))?;
    if scorer.n_features() != n_features {
        let n_scaled = scorer.n_features();
        return Err(invalid(format!("the scales are those of {n_scaled} metrics, must be {n_features}")));
    }
    OnlineDetector::restore(scorer, state).map_err(|error| Error::State(error.to_string()))
}
