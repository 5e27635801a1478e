//! Reads a graph by evaluating it, in its own order, on the leaves of its trees.
//!
//! Up to the sum over trees, a value of the graph is one number per leaf of a tree. From there on the operations must
//! be those of an isolation forest, in their order. The reader checks every index, rejects a split with two parents, and
//! allocates no more than the file's size justifies.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use prost::Message;

use super::attributes::{Attributes, printable, tensor_values};
use super::ensemble::{TreeEnsemble, count_from_path_length};
use super::proto::tensor_proto::DataType;
use super::proto::tensor_shape_proto::dimension;
use super::proto::{GraphProto, ModelProto, NodeProto};
use super::{COLUMNS_KEY, Error, ML_DOMAIN, value_error};
use crate::forest::{Forest, Tree};
use crate::models::ImportedForest;

/// Longest accepted file, in bytes: skl2onnx writes about 85 per node, so a thousand trees of 256
/// rows are well below it. Reading takes a small multiple of the file's length in memory.
pub const MAX_BYTES: usize = 64 << 20;

/// Most operations on the leaves of one tree. skl2onnx makes 25; each costs a number per leaf.
const MAX_OPERATIONS: usize = 32;

/// The supported operators of the machine-learning domain.
const ML_OPERATORS: [&str; 3] = ["TreeEnsembleRegressor", "TreeEnsemble", "LabelEncoder"];

/// Reads an isolation forest that [`write`](super::write) wrote, bit for bit but without its ranges, or
/// one that skl2onnx converted (`ai.onnx.ml` 1 to 3, a `TreeEnsembleRegressor` for each tree). A
/// converted file has cuts and offset as floats. Path lengths are computed from the numbers of rows, so
/// scores equal scikit-learn's to the last bits, and decisions within the rounding of the offset, 3e-8.
///
/// `columns` are the names of the features, for instance from an MLflow signature, because skl2onnx
/// drops them; `None` takes those of the file's metadata, if any.
///
/// # Errors
/// [`Error::Oversized`] above [`MAX_BYTES`]; [`Error::Protobuf`] if the bytes are no ONNX model;
/// [`Error::Operator`] at the first operation that an isolation forest does not have there;
/// [`Error::Value`] and [`Error::Forest`] if a value or a tree is invalid.
pub fn read(bytes: &[u8], columns: Option<Vec<String>>) -> Result<ImportedForest, Error> {
    if bytes.len() > MAX_BYTES {
        return Err(Error::Oversized { length: bytes.len() });
    }
    let model = ModelProto::decode(bytes).map_err(Error::Protobuf)?;
    let Some(graph) = &model.graph else {
        return Err(value_error("model", "graph", "missing", "one graph"));
    };
    let columns = match columns {
        Some(columns) => Some(columns),
        None => metadata_columns(&model)?,
    };
    let n_features = n_features(graph, columns.as_deref())?;
    let evaluator = GraphEvaluator::evaluate(graph)?;
    let forest = evaluator.into_forest(graph, n_features)?;

    let mut params = vec![
        ("n_estimators".to_string(), forest.n_estimators().to_string()),
        ("max_samples".to_string(), forest.max_samples().to_string()),
    ];
    if forest.offset() == -0.5 {
        params.push(("contamination".to_string(), "auto".to_string()));
    }
    Ok(ImportedForest { forest, columns, origin: origin(&model), params })
}

fn metadata_columns(model: &ModelProto) -> Result<Option<Vec<String>>, Error> {
    let Some(entry) = model.metadata_props.iter().find(|entry| entry.key == COLUMNS_KEY) else {
        return Ok(None);
    };
    let columns = serde_json::from_str(&entry.value)
        .map_err(|error| value_error("metadata", COLUMNS_KEY, error, "a JSON list of strings"))?;
    Ok(Some(columns))
}

/// Width of the only input; the number of `columns` if the file does not fix the width.
fn n_features(graph: &GraphProto, columns: Option<&[String]>) -> Result<usize, Error> {
    // Old files list their constants among the inputs.
    let constants: HashSet<&str> = graph.initializer.iter().map(|it| it.name.as_str()).collect();
    let inputs: Vec<_> = graph.input.iter().filter(|it| !constants.contains(it.name.as_str())).collect();
    let [input] = inputs[..] else {
        return Err(value_error("graph", "number of inputs", inputs.len(), "1, a table of all features"));
    };
    let tensor = input.r#type.as_ref().and_then(|it| it.tensor_type.as_ref());
    let dims = tensor.and_then(|it| it.shape.as_ref()).map_or(&[][..], |shape| &shape.dim);
    let width = match dims {
        [_, width] => &width.value,
        _ => return Err(value_error("input", "number of dimensions", dims.len(), "2")),
    };
    let n_columns = columns.map(<[String]>::len);
    match (width, n_columns) {
        (Some(dimension::Value::DimValue(width)), None) => usize::try_from(*width)
            .map_err(|_| value_error("input", "number of features", width, "at least 1")),
        (Some(dimension::Value::DimValue(width)), Some(n_columns))
            if usize::try_from(*width) != Ok(n_columns) =>
        {
            Err(value_error("input", "number of columns", n_columns, width))
        }
        (_, Some(n_columns)) => Ok(n_columns),
        (_, None) => {
            Err(value_error("input", "number of features", "open", "given in the file or by column names"))
        }
    }
}

fn origin(model: &ModelProto) -> String {
    let version = model.opset_import.iter().find(|set| set.domain == ML_DOMAIN).map_or(0, |set| set.version);
    let producer = printable(&format!("{} {}", model.producer_name, model.producer_version));
    format!("{producer}, ONNX ({ML_DOMAIN} {version})")
}

/// The value of a name in the graph.
#[derive(Clone)]
enum GraphValue {
    /// Features of the rows: all in order, or those at these places.
    Columns(Option<Rc<[f64]>>),
    Constant(Rc<[f64]>),
    /// A number for each leaf of an ensemble.
    Leaves(usize, Rc<[f64]>),
    /// Path lengths summed over all trees.
    Sum,
    Mean {
        unit: f64,
    },
    NegatedMean {
        unit: f64,
    },
    /// The paper's anomaly score.
    AnomalyScore {
        unit: f64,
    },
    ScoreSamples {
        unit: f64,
    },
    Decision {
        unit: f64,
        offset: f64,
    },
    /// A value derived from the decision, such as a label. The reader ignores it.
    Label,
}

struct GraphEvaluator<'g> {
    values: HashMap<&'g str, GraphValue>,
    ensembles: Vec<TreeEnsemble>,
    /// Ensembles and the path lengths of their leaves, in the order of the sum.
    terms: Vec<(usize, Rc<[f64]>)>,
}

impl<'g> GraphEvaluator<'g> {
    fn evaluate(graph: &'g GraphProto) -> Result<Self, Error> {
        let mut evaluator = Self { values: HashMap::new(), ensembles: Vec::new(), terms: Vec::new() };
        for input in &graph.input {
            evaluator.values.insert(&input.name, GraphValue::Columns(None));
        }
        for constant in &graph.initializer {
            evaluator.values.insert(
                &constant.name,
                GraphValue::Constant(tensor_values(&constant.name, constant)?.into()),
            );
        }
        for node in &graph.node {
            let [output] = &node.output[..] else {
                return Err(value_error(
                    &printable(&node.op_type),
                    "number of outputs",
                    node.output.len(),
                    "1",
                ));
            };
            let value = evaluator.compute(node)?;
            if evaluator.values.insert(output, value).is_some() {
                return Err(value_error(
                    &printable(&node.op_type),
                    "output",
                    printable(output),
                    "a name of its own",
                ));
            }
        }
        Ok(evaluator)
    }

    fn compute(&mut self, node: &'g NodeProto) -> Result<GraphValue, Error> {
        use GraphValue::*;
        let operator = printable(&match node.domain.as_str() {
            "" | "ai.onnx" => node.op_type.clone(),
            ML_DOMAIN if ML_OPERATORS.contains(&node.op_type.as_str()) => node.op_type.clone(),
            domain => format!("{domain}.{}", node.op_type),
        });
        let operator = operator.as_str();
        let mut inputs = Vec::with_capacity(node.input.len());
        for name in &node.input {
            let value = self.values.get(name.as_str()).cloned();
            inputs.push(
                value.ok_or_else(|| {
                    value_error(operator, "input", printable(name), "a value computed before")
                })?,
            );
        }
        let attributes = Attributes { operator, list: &node.attribute };
        let unsupported =
            || Err(Error::Operator { operator: operator.into(), output: printable(&node.output.concat()) });

        Ok(match (operator, &inputs[..]) {
            ("Identity", [value]) => value.clone(),

            ("Gather", [Columns(None), Constant(indexes)]) if attributes.int("axis", 0) == 1 => {
                Columns(Some(Rc::clone(indexes)))
            }
            ("Cast", [Columns(indexes)]) if attributes.casts_to(&[DataType::Float, DataType::Double]) => {
                Columns(indexes.clone())
            }
            ("TreeEnsembleRegressor", [Columns(indexes)]) => {
                let (ensemble, weights) = TreeEnsemble::from_nodes(&attributes)?;
                self.add_ensemble(ensemble, weights, indexes.as_deref())?
            }
            ("TreeEnsemble", [Columns(indexes)]) => {
                let (ensemble, weights) = TreeEnsemble::from_splits(&attributes)?;
                self.add_ensemble(ensemble, weights, indexes.as_deref())?
            }

            // The sum of path lengths over the trees, and its transformation to a decision.
            ("Sum", [Leaves(..), ..]) if self.terms.is_empty() => {
                for input in inputs {
                    match input {
                        Leaves(ensemble, lengths) => self.terms.push((ensemble, lengths)),
                        _ => return unsupported(),
                    }
                }
                Sum
            }
            ("Div", [Sum, Constant(unit)]) if unit.len() == 1 => Mean { unit: unit[0] },
            ("Neg", [Mean { unit }]) => NegatedMean { unit: *unit },
            ("Pow", [Constant(base), NegatedMean { unit }]) if **base == [2.0] => {
                AnomalyScore { unit: *unit }
            }
            ("Neg", [AnomalyScore { unit }]) => ScoreSamples { unit: *unit },
            ("Add", [ScoreSamples { unit }, Constant(less)] | [Constant(less), ScoreSamples { unit }])
                if less.len() == 1 =>
            {
                Decision { unit: *unit, offset: -less[0] }
            }
            ("Sub", [ScoreSamples { unit }, Constant(offset)]) if offset.len() == 1 => {
                Decision { unit: *unit, offset: offset[0] }
            }
            ("Less", [Decision { .. }, Constant(zero)]) if **zero == [0.0] => Label,
            ("Cast", [Label])
            | ("Mul" | "Add", [Label, Constant(_)])
            | ("Where", [Label, Constant(_), Constant(_)]) => Label,

            (_, [Leaves(..), ..] | [Constant(_), Leaves(..)]) => {
                let value = self.compute_leaves(operator, &inputs, &attributes)?;
                value.map_or_else(unsupported, Ok)?
            }
            _ => return unsupported(),
        })
    }

    /// An operation on the leaves of one tree; `None` if an isolation forest has no such operation.
    fn compute_leaves(
        &mut self,
        operator: &str,
        inputs: &[GraphValue],
        attributes: &Attributes<'_>,
    ) -> Result<Option<GraphValue>, Error> {
        use GraphValue::*;
        Ok(Some(match (operator, inputs) {
            ("LabelEncoder", [Leaves(ensemble, leaves)]) => {
                let value_by_label = label_encoder(attributes)?;
                let mut values = Vec::with_capacity(leaves.len());
                for leaf in leaves.iter() {
                    let value = value_by_label.get(&(*leaf as i64));
                    values
                        .push(*value.ok_or_else(|| value_error(operator, "label", leaf, "one of its keys"))?);
                }
                self.set_leaf_values(operator, *ensemble, values)?
            }
            ("Reshape", [Leaves(..), Constant(shape)]) if matches!(**shape, [-1.0] | [-1.0, 1.0]) => {
                inputs[0].clone()
            }
            ("Cast", [Leaves(..)]) if attributes.casts_to(&[DataType::Float, DataType::Double]) => {
                inputs[0].clone()
            }
            ("Cast", [Leaves(ensemble, leaves)]) if attributes.casts_to(&[DataType::Int64]) => {
                let values = leaves.iter().map(|value| value.trunc()).collect();
                self.set_leaf_values(operator, *ensemble, values)?
            }
            (_, [Leaves(ensemble, values)]) => {
                let Some(function) = unary(operator) else { return Ok(None) };
                let values = values.iter().map(|value| function(*value)).collect();
                self.set_leaf_values(operator, *ensemble, values)?
            }
            (_, [Leaves(ensemble, a), Leaves(other, b)]) if ensemble == other => {
                let Some(function) = binary(operator) else { return Ok(None) };
                let values = a.iter().zip(b.iter()).map(|(a, b)| function(*a, *b)).collect();
                self.set_leaf_values(operator, *ensemble, values)?
            }
            (_, [Leaves(ensemble, a), Constant(b)]) if b.len() == 1 => {
                let Some(function) = binary(operator) else { return Ok(None) };
                let values = a.iter().map(|a| function(*a, b[0])).collect();
                self.set_leaf_values(operator, *ensemble, values)?
            }
            (_, [Constant(a), Leaves(ensemble, b)]) if a.len() == 1 => {
                let Some(function) = binary(operator) else { return Ok(None) };
                let values = b.iter().map(|b| function(a[0], *b)).collect();
                self.set_leaf_values(operator, *ensemble, values)?
            }
            _ => return Ok(None),
        }))
    }

    /// Adds an ensemble, its features as indexes into the whole row.
    fn add_ensemble(
        &mut self,
        mut ensemble: TreeEnsemble,
        weights: Vec<f64>,
        feature_indexes: Option<&[f64]>,
    ) -> Result<GraphValue, Error> {
        if let Some(feature_indexes) = feature_indexes {
            for split in &mut ensemble.splits {
                let feature_index =
                    usize::try_from(split.feature).ok().and_then(|feature| feature_indexes.get(feature));
                let feature_index = feature_index.ok_or_else(|| {
                    value_error(
                        "Gather",
                        "feature",
                        split.feature,
                        format_args!("below {}", feature_indexes.len()),
                    )
                })?;
                split.feature = *feature_index as i64;
            }
        }
        self.ensembles.push(ensemble);
        Ok(GraphValue::Leaves(self.ensembles.len() - 1, weights.into()))
    }

    /// The result of an operation on leaves. The leaves must belong to one tree: values of several trees
    /// must be summed before any other operation.
    fn set_leaf_values(
        &mut self,
        operator: &str,
        number: usize,
        values: Vec<f64>,
    ) -> Result<GraphValue, Error> {
        let ensemble = &mut self.ensembles[number];
        if ensemble.roots.len() != 1 {
            let limit = "1 before the sum over trees";
            return Err(value_error(operator, "number of trees", ensemble.roots.len(), limit));
        }
        ensemble.n_operations += 1;
        if ensemble.n_operations > MAX_OPERATIONS {
            let limit = format_args!("at most {MAX_OPERATIONS}");
            return Err(value_error(
                operator,
                "number of operations on a tree",
                ensemble.n_operations,
                limit,
            ));
        }
        Ok(GraphValue::Leaves(number, values.into()))
    }

    fn into_forest(mut self, graph: &GraphProto, n_features: usize) -> Result<Forest, Error> {
        let outputs = graph.output.iter().filter_map(|output| self.values.get(output.name.as_str()));
        let mut decisions = outputs.filter_map(|value| match value {
            GraphValue::Decision { unit, offset } => Some((*unit, *offset)),
            _ => None,
        });
        let (Some((unit, offset)), None) = (decisions.next(), decisions.next()) else {
            let found = graph
                .output
                .iter()
                .take(8)
                .map(|output| printable(&output.name))
                .collect::<Vec<_>>()
                .join(", ");
            return Err(value_error(
                "graph",
                "outputs",
                found,
                "among them one decision function of a forest",
            ));
        };

        let mut trees = Vec::new();
        for (number, lengths) in &self.terms {
            // Each ensemble counts once: a sum that names one a thousand times would build a thousand forests.
            let ensemble = &mut self.ensembles[*number];
            let roots = std::mem::take(&mut ensemble.roots);
            if roots.is_empty() {
                return Err(value_error("Sum", "trees", "none, or summed before", "each ensemble once"));
            }
            let mut seen = vec![false; ensemble.splits.len()];
            for root in roots {
                let arrays = ensemble.build_tree(root, lengths, &mut seen)?;
                trees.push(Tree::from_arrays(&arrays, n_features)?);
            }
            if let Some(split) = seen.iter().position(|seen| !seen) {
                return Err(value_error("tree ensemble", "split without a tree", split, "one of a tree"));
            }
        }
        let max_samples = count_from_path_length(unit / trees.len() as f64).ok_or_else(|| {
            value_error("Div", "unit", unit, "the number of trees times the average path length")
        })?;
        Ok(Forest::new(&trees, max_samples, offset)?)
    }
}

fn unary(operator: &str) -> Option<fn(f64) -> f64> {
    Some(match operator {
        "Neg" => |a| -a,
        "Log" => f64::ln,
        _ => return None,
    })
}

fn binary(operator: &str) -> Option<fn(f64, f64) -> f64> {
    Some(match operator {
        "Add" => |a, b| a + b,
        "Sub" => |a, b| a - b,
        "Mul" => |a, b| a * b,
        "Div" => |a, b| a / b,
        "Max" => f64::max,
        "Equal" => |a, b| f64::from(a == b),
        "Greater" => |a, b| f64::from(a > b),
        _ => return None,
    })
}

/// The value that a `LabelEncoder` assigns to each label.
fn label_encoder(attributes: &Attributes) -> Result<HashMap<i64, f64>, Error> {
    let keys = attributes.ints("keys_int64s");
    let values = attributes.check_length("values_floats", attributes.floats("values_floats")?, keys.len())?;
    Ok(keys.iter().copied().zip(values).collect())
}
