//! Writes a forest as one `TreeEnsemble`, whose leaf weights are path lengths, followed by arithmetic in doubles:
//!
//! ```text
//! X ─ Cast float ─ Cast double ─ TreeEnsemble ─ Sum ─ Div unit ─ Neg ─ Pow 2^ ─ Neg ─┬─ score_samples
//!                                                                                    └─ Sub offset ─┬─ decision_function
//!                                                                                                   └─ Less 0 ─ Where ─ predict
//! ```
//!
//! Not taken: a `TreeEnsembleRegressor` (ai.onnx.ml 3), which older runtimes support. It adds leaves in floats, so a
//! score has seven correct digits instead of sixteen.

use prost::Message;

use super::proto::attribute_proto::Type;
use super::proto::tensor_proto::DataType;
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use super::{BRANCH_LEQ, COLUMNS_KEY, Error, ML_DOMAIN, value_error};
use crate::forest::{Forest, TreeArrays, average_path_length};

/// The release of the format that `TreeEnsemble` came with (ONNX 1.16).
const IR_VERSION: i64 = 10;
/// The first operator set with `TreeEnsemble`.
const ML_VERSION: i64 = 5;
/// The operators used here are the same in every set from 13 on.
const OPSET: i64 = 17;

/// The ONNX model of a forest, `ai.onnx.ml` opset 5 (onnxruntime reads it from 1.20 on).
///
/// - Input `X`: doubles of shape `[N, n_features]`, the columns in the order of `columns`. The forest
///   compares floats, so the graph rounds each value to a float first and scores it as
///   [`Forest::score_samples`] scores the same value `as f32`. The split decides the side of NaN.
/// - Outputs of shape `[N, 1]`: `score_samples` and `decision_function` in doubles, `predict` −1 if
///   the decision is negative, else 1. They differ from promforest's by a few units in the last place,
///   because of the order in which the runtime sums the trees, and its `pow`.
///
/// The metadata contain `columns` as a JSON list under `promforest.columns`, and
/// [`read`](super::read) returns them. They do not contain [ranges](Forest::ranges): the graph scores
/// as [`Forest::score_samples`], not as [`Forest::score_extrapolated`].
///
/// # Errors
/// [`Error::Value`] if there is not one column per feature, or `max_samples` is 1: such a forest has
/// no unit of depth, and its graph would divide by zero.
pub fn write(forest: &Forest, columns: &[String]) -> Result<Vec<u8>, Error> {
    if columns.len() != forest.n_features() {
        return Err(value_error("forest", "number of columns", columns.len(), forest.n_features()));
    }
    if forest.max_samples() < 2 {
        return Err(value_error(
            "forest",
            "max_samples",
            forest.max_samples(),
            "at least 2 in an ONNX graph",
        ));
    }
    let columns = serde_json::to_string(columns).expect("strings are JSON");
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph(forest)),
        opset_import: vec![
            OperatorSetIdProto { domain: String::new(), version: OPSET },
            OperatorSetIdProto { domain: ML_DOMAIN.into(), version: ML_VERSION },
        ],
        metadata_props: vec![StringStringEntryProto { key: COLUMNS_KEY.into(), value: columns }],
    };
    Ok(model.encode_to_vec())
}

fn graph(forest: &Forest) -> GraphProto {
    let unit = forest.n_estimators() as f64 * average_path_length(forest.max_samples());
    let ensemble = NodeProto { domain: ML_DOMAIN.into(), ..node("TreeEnsemble", &["values"], "ensemble") };
    GraphProto {
        name: "isolation_forest".into(),
        initializer: vec![
            with_name("unit", doubles(&[unit])),
            with_name("two", doubles(&[2.0])),
            with_name("offset", doubles(&[forest.offset()])),
            with_name("zero", doubles(&[0.0])),
            with_name("anomalous", integers(&[-1])),
            with_name("normal", integers(&[1])),
        ],
        input: vec![value_info("X", DataType::Double, forest.n_features())],
        node: vec![
            cast("X", "rounded", DataType::Float),
            cast("rounded", "values", DataType::Double),
            NodeProto { attribute: ensemble_attributes(forest), ..ensemble },
            // A sum, also of a single tree: it marks the end of the trees for readers.
            node("Sum", &["ensemble"], "path_length"),
            node("Div", &["path_length", "unit"], "mean"),
            node("Neg", &["mean"], "exponent"),
            node("Pow", &["two", "exponent"], "anomaly_score"),
            node("Neg", &["anomaly_score"], "score_samples"),
            node("Sub", &["score_samples", "offset"], "decision_function"),
            node("Less", &["decision_function", "zero"], "is_anomalous"),
            node("Where", &["is_anomalous", "anomalous", "normal"], "predict"),
        ],
        output: vec![
            value_info("score_samples", DataType::Double, 1),
            value_info("decision_function", DataType::Double, 1),
            value_info("predict", DataType::Int64, 1),
        ],
    }
}

/// `TreeEnsemble` lists splits and leaves apart, over all trees.
fn ensemble_attributes(forest: &Forest) -> Vec<AttributeProto> {
    let mut ensemble = EnsembleAttributes::default();
    for tree in forest.trees() {
        ensemble.add_tree(&tree);
    }
    let n_leaves = ensemble.weights.len();
    vec![
        ints("tree_roots", ensemble.roots),
        tensor("nodes_modes", bytes(vec![BRANCH_LEQ; ensemble.features.len()])),
        ints("nodes_featureids", ensemble.features),
        tensor("nodes_splits", doubles(&ensemble.thresholds)),
        ints("nodes_missing_value_tracks_true", ensemble.missing_go_to_left),
        ints("nodes_truenodeids", ensemble.left.iter().map(|child| child.index).collect()),
        ints("nodes_trueleafs", ensemble.left.iter().map(|child| child.is_leaf.into()).collect()),
        ints("nodes_falsenodeids", ensemble.right.iter().map(|child| child.index).collect()),
        ints("nodes_falseleafs", ensemble.right.iter().map(|child| child.is_leaf.into()).collect()),
        ints("leaf_targetids", vec![0; n_leaves]),
        tensor("leaf_weights", doubles(&ensemble.weights)),
        // The sum over trees and no transform are defaults; the number of targets has none.
        AttributeProto { i: Some(1), ..attribute("n_targets", Type::Int) },
    ]
}

#[derive(Default)]
struct EnsembleAttributes {
    roots: Vec<i64>,
    features: Vec<i64>,
    thresholds: Vec<f64>,
    missing_go_to_left: Vec<i64>,
    left: Vec<ChildRef>,
    right: Vec<ChildRef>,
    weights: Vec<f64>,
}

#[derive(Clone, Copy)]
struct ChildRef {
    index: i64,
    is_leaf: bool,
}

impl EnsembleAttributes {
    fn add_tree(&mut self, tree: &TreeArrays) {
        self.roots.push(self.features.len() as i64);
        if tree.left_child[0] == -1 {
            // By the operator's definition, a tree of one leaf is a split with that leaf on both sides.
            let leaf = self.push_leaf(0.0, tree.n_node_samples[0]);
            self.push_split(0, 0.0, false, [leaf, leaf]);
            return;
        }
        // Children come after their parents, so a parent's depth and index are set first. The splits of a
        // tree keep their order: the index of a split is the number of splits before it.
        let n_nodes = tree.left_child.len();
        let mut split_indexes = Vec::with_capacity(n_nodes);
        let mut next = self.features.len() as i64;
        for &left in &tree.left_child {
            split_indexes.push(next);
            next += i64::from(left != -1);
        }
        let mut depths = vec![0.0; n_nodes];
        for at in 0..n_nodes {
            if tree.left_child[at] == -1 {
                continue;
            }
            let children = [tree.left_child[at], tree.right_child[at]].map(|child| {
                let child = child as usize;
                depths[child] = depths[at] + 1.0;
                if tree.left_child[child] == -1 {
                    self.push_leaf(depths[child], tree.n_node_samples[child])
                } else {
                    ChildRef { index: split_indexes[child], is_leaf: false }
                }
            });
            self.push_split(tree.feature[at], tree.threshold[at], tree.missing_go_to_left[at], children);
        }
    }

    fn push_split(
        &mut self,
        feature: i64,
        threshold: f64,
        missing_go_to_left: bool,
        [left, right]: [ChildRef; 2],
    ) {
        self.features.push(feature);
        self.thresholds.push(threshold);
        self.missing_go_to_left.push(missing_go_to_left.into());
        self.left.push(left);
        self.right.push(right);
    }

    fn push_leaf(&mut self, depth: f64, n_samples: i64) -> ChildRef {
        // The same rounding as in the forest.
        self.weights.push(depth + 1.0 + average_path_length(n_samples.unsigned_abs()) - 1.0);
        ChildRef { index: self.weights.len() as i64 - 1, is_leaf: true }
    }
}

fn node(op_type: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: op_type.into(),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.into()],
        ..Default::default()
    }
}

fn cast(input: &str, output: &str, to: DataType) -> NodeProto {
    let to = AttributeProto { i: Some(i32::from(to).into()), ..attribute("to", Type::Int) };
    NodeProto { attribute: vec![to], ..node("Cast", &[input], output) }
}

fn attribute(name: &str, kind: Type) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: kind.into(), ..Default::default() }
}

fn ints(name: &str, ints: Vec<i64>) -> AttributeProto {
    AttributeProto { ints, ..attribute(name, Type::Ints) }
}

fn tensor(name: &str, tensor: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(tensor), ..attribute(name, Type::Tensor) }
}

fn with_name(name: &str, tensor: TensorProto) -> TensorProto {
    TensorProto { name: name.into(), ..tensor }
}

fn doubles(values: &[f64]) -> TensorProto {
    TensorProto {
        dims: vec![values.len() as i64],
        data_type: DataType::Double.into(),
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..Default::default()
    }
}

fn integers(values: &[i64]) -> TensorProto {
    TensorProto {
        dims: vec![values.len() as i64],
        data_type: DataType::Int64.into(),
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..Default::default()
    }
}

fn bytes(values: Vec<u8>) -> TensorProto {
    let dims = vec![values.len() as i64];
    TensorProto { dims, data_type: DataType::Uint8.into(), raw_data: values, ..Default::default() }
}

/// A table with any number of rows.
fn value_info(name: &str, kind: DataType, n_columns: usize) -> ValueInfoProto {
    let dim = [dimension::Value::DimParam("N".into()), dimension::Value::DimValue(n_columns as i64)];
    let dim = dim.into_iter().map(|value| Dimension { value: Some(value) }).collect();
    let tensor = type_proto::Tensor { elem_type: kind.into(), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}
