//! The trees of one operator, in both forms that ONNX has.

use std::collections::HashMap;

use super::attributes::{Attributes, printable};
use super::{BRANCH_LEQ, Error, value_error};
use crate::forest::{TreeArrays, average_path_length};

/// Most rows of a leaf or tree: above, path lengths in doubles no longer distinguish counts.
const MAX_COUNT: u64 = 1 << 40;

/// Largest distance of a path length from that of a whole number of rows. Floats have seven digits; path lengths of
/// neighbouring counts are this close only above 200 000 rows.
const TOLERANCE: f64 = 1e-5;

/// The trees of one operator.
pub struct TreeEnsemble {
    /// Index of the root of each tree.
    pub roots: Vec<NodeRef>,
    pub splits: Vec<SplitNode>,
    /// Operations on its leaves so far.
    pub n_operations: usize,
}

/// One comparison, `value <= threshold` to the left.
pub struct SplitNode {
    pub feature: i64,
    pub threshold: f64,
    pub missing_go_to_left: bool,
    pub left: NodeRef,
    pub right: NodeRef,
}

/// Index into the ensemble's list of splits or of leaves.
#[derive(Clone, Copy, PartialEq)]
pub enum NodeRef {
    Split(usize),
    Leaf(usize),
}

impl TreeEnsemble {
    /// The ensemble of a `TreeEnsemble`, which lists splits and leaves separately, and the weights of its leaves.
    pub fn from_splits(attributes: &Attributes) -> Result<(Self, Vec<f64>), Error> {
        attributes.check_int("n_targets", 1)?;
        attributes.check_int("aggregate_function", 1)?;
        attributes.check_int("post_transform", 0)?;
        let features = attributes.ints("nodes_featureids");
        let n_splits = features.len();
        let modes = attributes.check_length("nodes_modes", attributes.tensor("nodes_modes")?, n_splits)?;
        let thresholds =
            attributes.check_length("nodes_splits", attributes.tensor("nodes_splits")?, n_splits)?;
        let missing = attributes.missing_go_to_left(n_splits)?;
        let list = |name| attributes.check_length(name, attributes.ints(name), n_splits);
        let left = [list("nodes_truenodeids")?, list("nodes_trueleafs")?];
        let right = [list("nodes_falsenodeids")?, list("nodes_falseleafs")?];
        let weights = attributes.tensor("leaf_weights")?;

        let child = |[ids, are_leaves]: &[&[i64]; 2], split: usize| {
            let is_leaf = are_leaves[split] != 0;
            let limit = if is_leaf { weights.len() } else { n_splits };
            let id = attributes.check_index("child", ids[split], limit)?;
            Ok::<_, Error>(if is_leaf { NodeRef::Leaf(id) } else { NodeRef::Split(id) })
        };
        let mut splits = Vec::with_capacity(n_splits);
        for (split, feature) in features.iter().enumerate() {
            if modes[split] != f64::from(BRANCH_LEQ) {
                return Err(value_error(attributes.operator, "mode of a split", modes[split], BRANCH_LEQ));
            }
            splits.push(SplitNode {
                feature: *feature,
                threshold: thresholds[split],
                missing_go_to_left: missing.get(split).is_some_and(|it| *it != 0),
                left: child(&left, split)?,
                right: child(&right, split)?,
            });
        }
        let roots = attributes.ints("tree_roots").iter();
        let roots = roots.map(|root| attributes.check_index("root", *root, n_splits).map(NodeRef::Split));
        Ok((Self { roots: roots.collect::<Result<_, _>>()?, splits, n_operations: 0 }, weights))
    }

    /// The ensemble of a `TreeEnsembleRegressor`, which has one list of nodes with numbers of tree and node.
    pub fn from_nodes(attributes: &Attributes) -> Result<(Self, Vec<f64>), Error> {
        attributes.check_int("n_targets", 1)?;
        attributes.check_text("aggregate_function", "SUM")?;
        attributes.check_text("post_transform", "NONE")?;
        for base in ["base_values", "base_values_as_tensor"] {
            if attributes.find(base).is_some() {
                return Err(value_error(attributes.operator, base, "given", "left out"));
            }
        }
        let ids = attributes.ints("nodes_nodeids");
        let n_nodes = ids.len();
        let list = |name| attributes.check_length(name, attributes.ints(name), n_nodes);
        let (tree_ids, features) = (list("nodes_treeids")?, list("nodes_featureids")?);
        let (left, right) = (list("nodes_truenodeids")?, list("nodes_falsenodeids")?);
        let modes = attributes.check_length("nodes_modes", attributes.strings("nodes_modes"), n_nodes)?;
        let thresholds =
            attributes.check_length("nodes_values", attributes.floats("nodes_values")?, n_nodes)?;
        let missing = attributes.missing_go_to_left(n_nodes)?;

        let nodes = NodeIndex::new(attributes, tree_ids, ids, modes)?;
        let weights = nodes.leaf_weights(attributes)?;

        let mut splits = Vec::with_capacity(nodes.n_splits);
        let (mut split_has_parent, mut leaf_has_parent) =
            (vec![false; nodes.n_splits], vec![false; nodes.n_leaves]);
        for (at, tree) in tree_ids.iter().enumerate() {
            if nodes.find(attributes, (tree, &ids[at]))? != NodeRef::Split(splits.len()) {
                continue;
            }
            let children =
                [nodes.find(attributes, (tree, &left[at]))?, nodes.find(attributes, (tree, &right[at]))?];
            for child in children {
                match child {
                    NodeRef::Split(split) => split_has_parent[split] = true,
                    NodeRef::Leaf(leaf) => leaf_has_parent[leaf] = true,
                }
            }
            splits.push(SplitNode {
                feature: features[at],
                threshold: thresholds[at],
                missing_go_to_left: missing.get(at).is_some_and(|it| *it != 0),
                left: children[0],
                right: children[1],
            });
        }
        // Trees keep the order of their nodes in the file, because sums are in the order of the trees.
        let mut roots = Vec::new();
        for name in tree_ids.iter().zip(ids) {
            let node = nodes.find(attributes, name)?;
            let has_parent = match node {
                NodeRef::Split(split) => split_has_parent[split],
                NodeRef::Leaf(leaf) => leaf_has_parent[leaf],
            };
            if !has_parent {
                roots.push(node);
            }
        }
        Ok((Self { roots, splits, n_operations: 0 }, weights))
    }

    /// The tree below a root, its nodes in the order of a walk, left side first.
    pub fn build_tree(&self, root: NodeRef, lengths: &[f64], seen: &mut [bool]) -> Result<TreeArrays, Error> {
        let mut arrays = TreeArrays::default();
        // A child, its depth, and the parent and side that refer to it.
        let mut pending = vec![(root, 0_u32, None)];
        while let Some((child, depth, parent)) = pending.pop() {
            let at = arrays.left_child.len();
            match parent {
                Some((parent, ChildSide::Left)) => arrays.left_child[parent] = at as i64,
                Some((parent, ChildSide::Right)) => arrays.right_child[parent] = at as i64,
                None => {}
            }
            arrays.left_child.push(-1);
            arrays.right_child.push(-1);
            let leaf = match child {
                NodeRef::Leaf(leaf) => Some(leaf),
                NodeRef::Split(split) => {
                    if std::mem::replace(&mut seen[split], true) {
                        return Err(value_error(
                            "tree ensemble",
                            "split with two parents",
                            split,
                            "a child once",
                        ));
                    }
                    self.single_leaf(split).filter(|_| depth == 0)
                }
            };
            match (leaf, child) {
                (None, NodeRef::Split(split)) => {
                    let SplitNode { feature, threshold, missing_go_to_left, left, right } =
                        self.splits[split];
                    arrays.feature.push(feature);
                    arrays.threshold.push(threshold);
                    arrays.missing_go_to_left.push(missing_go_to_left);
                    arrays.n_node_samples.push(0);
                    pending.push((right, depth + 1, Some((at, ChildSide::Right))));
                    pending.push((left, depth + 1, Some((at, ChildSide::Left))));
                }
                (Some(leaf), _) | (None, NodeRef::Leaf(leaf)) => {
                    let n_samples =
                        count_from_path_length(lengths[leaf] - f64::from(depth)).ok_or_else(|| {
                            let limit =
                                format_args!("its depth, {depth}, and the average path length of its rows");
                            value_error("tree ensemble", "path length of a leaf", lengths[leaf], limit)
                        })?;
                    arrays.feature.push(-2);
                    arrays.threshold.push(-2.0);
                    arrays.missing_go_to_left.push(false);
                    arrays.n_node_samples.push(n_samples as i64);
                }
            }
        }
        // Children come after their parents: the backward walk has their counts first.
        for at in (0..arrays.left_child.len()).rev() {
            if arrays.left_child[at] != -1 {
                let [left, right] = [arrays.left_child[at], arrays.right_child[at]]
                    .map(|child| arrays.n_node_samples[child as usize]);
                arrays.n_node_samples[at] = left.saturating_add(right);
            }
        }
        Ok(arrays)
    }

    /// The leaf on both sides of a split, which is the form of a tree with a single leaf.
    fn single_leaf(&self, split: usize) -> Option<usize> {
        match self.splits[split] {
            SplitNode { left: NodeRef::Leaf(left), right: NodeRef::Leaf(right), .. } if left == right => {
                Some(left)
            }
            _ => None,
        }
    }
}

/// The nodes of a `TreeEnsembleRegressor` by the numbers of tree and node.
struct NodeIndex<'n> {
    nodes: HashMap<(&'n i64, &'n i64), NodeRef>,
    n_splits: usize,
    n_leaves: usize,
}

impl<'n> NodeIndex<'n> {
    fn new(
        attributes: &Attributes,
        tree_ids: &'n [i64],
        ids: &'n [i64],
        modes: &[Vec<u8>],
    ) -> Result<Self, Error> {
        let mut nodes = HashMap::with_capacity(ids.len());
        let (mut n_splits, mut n_leaves) = (0, 0);
        for (at, name) in tree_ids.iter().zip(ids).enumerate() {
            let node = match &modes[at][..] {
                b"BRANCH_LEQ" => NodeRef::Split(n_splits),
                b"LEAF" => NodeRef::Leaf(n_leaves),
                mode => {
                    let mode = printable(&String::from_utf8_lossy(mode));
                    return Err(value_error(
                        attributes.operator,
                        "mode of a node",
                        mode,
                        "BRANCH_LEQ or LEAF",
                    ));
                }
            };
            match node {
                NodeRef::Split(_) => n_splits += 1,
                NodeRef::Leaf(_) => n_leaves += 1,
            }
            if nodes.insert(name, node).is_some() {
                return Err(value_error(
                    attributes.operator,
                    "node",
                    format_args!("{name:?} again"),
                    "named once",
                ));
            }
        }
        Ok(Self { nodes, n_splits, n_leaves })
    }

    fn find(&self, attributes: &Attributes, name: (&i64, &i64)) -> Result<NodeRef, Error> {
        self.nodes.get(&name).copied().ok_or_else(|| {
            value_error(attributes.operator, "node", format_args!("{name:?}"), "one of the ensemble")
        })
    }

    /// The weight of every leaf, each given once.
    fn leaf_weights(&self, attributes: &Attributes) -> Result<Vec<f64>, Error> {
        let mut weights = vec![None; self.n_leaves];
        let targets = attributes.ints("target_nodeids");
        let target_trees =
            attributes.check_length("target_treeids", attributes.ints("target_treeids"), targets.len())?;
        let target_weights = attributes.floats("target_weights")?;
        let target_weights = attributes.check_length("target_weights", target_weights, targets.len())?;
        for ((tree, node), weight) in target_trees.iter().zip(targets).zip(target_weights) {
            match self.find(attributes, (tree, node))? {
                NodeRef::Leaf(leaf) if weights[leaf].is_none() => weights[leaf] = Some(weight),
                _ => return Err(value_error(attributes.operator, "target node", node, "a leaf, once")),
            }
        }
        let weights: Option<Vec<f64>> = weights.into_iter().collect();
        weights.ok_or_else(|| value_error(attributes.operator, "weight of a leaf", "missing", "given"))
    }
}

#[derive(Clone, Copy)]
enum ChildSide {
    Left,
    Right,
}

/// The number of rows, at least 1, that has this [`average_path_length`].
pub fn count_from_path_length(length: f64) -> Option<u64> {
    let (mut low, mut high) = (1, MAX_COUNT);
    while low < high {
        let middle = low.midpoint(high);
        if average_path_length(middle) < length {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let distance = |count: u64| (average_path_length(count) - length).abs();
    let nearest = if low > 1 && distance(low - 1) < distance(low) { low - 1 } else { low };
    (distance(nearest) <= TOLERANCE).then_some(nearest)
}
