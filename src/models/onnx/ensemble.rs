//! The trees of one operator, in the two ways that ONNX writes them.

use std::collections::HashMap;

use super::attributes::{Attributes, show};
use super::{BRANCH_LEQ, Error, fault};
use crate::forest::{TreeArrays, average_path_length};

/// Most rows that a leaf or a tree can be found to have: path lengths in doubles tell counts apart
/// up to here.
const MAX_COUNT: u64 = 1 << 40;

/// How far a path length may be from that of a whole number of rows: floats have seven digits, and
/// the path lengths of neighbouring counts are this close only from 200 000 rows on.
const TOLERANCE: f64 = 1e-5;

/// The trees of one operator.
pub struct Ensemble {
    /// Index of the root of each tree.
    pub roots: Vec<Child>,
    pub splits: Vec<Split>,
    /// Operations on its leaves so far.
    pub n_operations: usize,
}

/// One comparison, `value <= threshold` to the left.
pub struct Split {
    pub feature: i64,
    pub threshold: f64,
    pub missing_go_to_left: bool,
    pub left: Child,
    pub right: Child,
}

/// Place in the ensemble's list of splits or of leaves.
#[derive(Clone, Copy, PartialEq)]
pub enum Child {
    Split(usize),
    Leaf(usize),
}

impl Ensemble {
    /// Splits, leaves and the leaves' weights of a `TreeEnsemble`, which lists splits and leaves apart.
    pub fn of_splits(attributes: &Attributes) -> Result<(Self, Vec<f64>), Error> {
        attributes.check_int("n_targets", 1)?;
        attributes.check_int("aggregate_function", 1)?;
        attributes.check_int("post_transform", 0)?;
        let features = attributes.ints("nodes_featureids");
        let n_splits = features.len();
        let modes = attributes.length("nodes_modes", attributes.tensor("nodes_modes")?, n_splits)?;
        let thresholds = attributes.length("nodes_splits", attributes.tensor("nodes_splits")?, n_splits)?;
        let missing = attributes.missing(n_splits)?;
        let list = |name| attributes.length(name, attributes.ints(name), n_splits);
        let left = [list("nodes_truenodeids")?, list("nodes_trueleafs")?];
        let right = [list("nodes_falsenodeids")?, list("nodes_falseleafs")?];
        let weights = attributes.tensor("leaf_weights")?;

        let child = |[ids, are_leaves]: &[&[i64]; 2], split: usize| {
            let is_leaf = are_leaves[split] != 0;
            let limit = if is_leaf { weights.len() } else { n_splits };
            let id = attributes.index("child", ids[split], limit)?;
            Ok::<_, Error>(if is_leaf { Child::Leaf(id) } else { Child::Split(id) })
        };
        let mut splits = Vec::with_capacity(n_splits);
        for (split, feature) in features.iter().enumerate() {
            if modes[split] != f64::from(BRANCH_LEQ) {
                return Err(fault(attributes.place, "mode of a split", modes[split], BRANCH_LEQ));
            }
            splits.push(Split {
                feature: *feature,
                threshold: thresholds[split],
                missing_go_to_left: missing.get(split).is_some_and(|it| *it != 0),
                left: child(&left, split)?,
                right: child(&right, split)?,
            });
        }
        let roots = attributes.ints("tree_roots").iter();
        let roots = roots.map(|root| attributes.index("root", *root, n_splits).map(Child::Split));
        Ok((Self { roots: roots.collect::<Result<_, _>>()?, splits, n_operations: 0 }, weights))
    }

    /// The same of a `TreeEnsembleRegressor`, which lists all nodes together and names each by the number
    /// of its tree and its own.
    pub fn of_nodes(attributes: &Attributes) -> Result<(Self, Vec<f64>), Error> {
        attributes.check_int("n_targets", 1)?;
        attributes.check_text("aggregate_function", "SUM")?;
        attributes.check_text("post_transform", "NONE")?;
        for base in ["base_values", "base_values_as_tensor"] {
            if attributes.find(base).is_some() {
                return Err(fault(attributes.place, base, "given", "left out"));
            }
        }
        let ids = attributes.ints("nodes_nodeids");
        let n_nodes = ids.len();
        let list = |name| attributes.length(name, attributes.ints(name), n_nodes);
        let (tree_ids, features) = (list("nodes_treeids")?, list("nodes_featureids")?);
        let (left, right) = (list("nodes_truenodeids")?, list("nodes_falsenodeids")?);
        let modes = attributes.length("nodes_modes", attributes.strings("nodes_modes"), n_nodes)?;
        let thresholds = attributes.length("nodes_values", attributes.floats("nodes_values")?, n_nodes)?;
        let missing = attributes.missing(n_nodes)?;

        let mut nodes = HashMap::with_capacity(n_nodes);
        let (mut n_splits, mut n_leaves) = (0, 0);
        for (at, name) in tree_ids.iter().zip(ids).enumerate() {
            let node = match &modes[at][..] {
                b"BRANCH_LEQ" => Child::Split(n_splits),
                b"LEAF" => Child::Leaf(n_leaves),
                mode => {
                    let mode = show(&String::from_utf8_lossy(mode));
                    return Err(fault(attributes.place, "mode of a node", mode, "BRANCH_LEQ or LEAF"));
                }
            };
            match node {
                Child::Split(_) => n_splits += 1,
                Child::Leaf(_) => n_leaves += 1,
            }
            if nodes.insert(name, node).is_some() {
                return Err(fault(attributes.place, "node", format_args!("{name:?} again"), "named once"));
            }
        }
        let find = |name: (&i64, &i64)| {
            let node = nodes.get(&name).copied();
            node.ok_or_else(|| {
                fault(attributes.place, "node", format_args!("{name:?}"), "one of the ensemble")
            })
        };

        let mut weights = vec![None; n_leaves];
        let targets = attributes.ints("target_nodeids");
        let target_trees =
            attributes.length("target_treeids", attributes.ints("target_treeids"), targets.len())?;
        let target_weights = attributes.floats("target_weights")?;
        let target_weights = attributes.length("target_weights", target_weights, targets.len())?;
        for ((tree, node), weight) in target_trees.iter().zip(targets).zip(target_weights) {
            match find((tree, node))? {
                Child::Leaf(leaf) if weights[leaf].is_none() => weights[leaf] = Some(weight),
                _ => return Err(fault(attributes.place, "target node", node, "a leaf, once")),
            }
        }
        let weights: Option<Vec<f64>> = weights.into_iter().collect();
        let weights =
            weights.ok_or_else(|| fault(attributes.place, "weight of a leaf", "missing", "given"))?;

        let mut splits = Vec::with_capacity(n_splits);
        let (mut split_has_parent, mut leaf_has_parent) = (vec![false; n_splits], vec![false; n_leaves]);
        for (at, tree) in tree_ids.iter().enumerate() {
            if find((tree, &ids[at]))? != Child::Split(splits.len()) {
                continue;
            }
            let children = [find((tree, &left[at]))?, find((tree, &right[at]))?];
            for child in children {
                match child {
                    Child::Split(split) => split_has_parent[split] = true,
                    Child::Leaf(leaf) => leaf_has_parent[leaf] = true,
                }
            }
            splits.push(Split {
                feature: features[at],
                threshold: thresholds[at],
                missing_go_to_left: missing.get(at).is_some_and(|it| *it != 0),
                left: children[0],
                right: children[1],
            });
        }
        // In the order of the nodes, as sums are in the order of the trees.
        let mut roots = Vec::new();
        for name in tree_ids.iter().zip(ids) {
            let node = find(name)?;
            let has_parent = match node {
                Child::Split(split) => split_has_parent[split],
                Child::Leaf(leaf) => leaf_has_parent[leaf],
            };
            if !has_parent {
                roots.push(node);
            }
        }
        Ok((Self { roots, splits, n_operations: 0 }, weights))
    }

    /// The tree below a root, its nodes in the order of a walk, left side first.
    pub fn grow(&self, root: Child, lengths: &[f64], seen: &mut [bool]) -> Result<TreeArrays, Error> {
        let mut arrays = TreeArrays::default();
        // A child, its depth, and where its index is wanted: in which parent, on which side.
        let mut open = vec![(root, 0_u32, None)];
        while let Some((child, depth, parent)) = open.pop() {
            let at = arrays.left_child.len();
            match parent {
                Some((parent, Side::Left)) => arrays.left_child[parent] = at as i64,
                Some((parent, Side::Right)) => arrays.right_child[parent] = at as i64,
                None => {}
            }
            arrays.left_child.push(-1);
            arrays.right_child.push(-1);
            let leaf = match child {
                Child::Leaf(leaf) => Some(leaf),
                Child::Split(split) => {
                    if std::mem::replace(&mut seen[split], true) {
                        return Err(fault("tree ensemble", "split with two parents", split, "a child once"));
                    }
                    self.only_leaf(split).filter(|_| depth == 0)
                }
            };
            match (leaf, child) {
                (None, Child::Split(split)) => {
                    let Split { feature, threshold, missing_go_to_left, left, right } = self.splits[split];
                    arrays.feature.push(feature);
                    arrays.threshold.push(threshold);
                    arrays.missing_go_to_left.push(missing_go_to_left);
                    arrays.n_node_samples.push(0);
                    open.push((right, depth + 1, Some((at, Side::Right))));
                    open.push((left, depth + 1, Some((at, Side::Left))));
                }
                (Some(leaf), _) | (None, Child::Leaf(leaf)) => {
                    let n_samples = count_of(lengths[leaf] - f64::from(depth)).ok_or_else(|| {
                        let limit =
                            format_args!("its depth, {depth}, and the average path length of its rows");
                        fault("tree ensemble", "path length of a leaf", lengths[leaf], limit)
                    })?;
                    arrays.feature.push(-2);
                    arrays.threshold.push(-2.0);
                    arrays.missing_go_to_left.push(false);
                    arrays.n_node_samples.push(n_samples as i64);
                }
            }
        }
        // Backwards, so that a split finds the counts of its children.
        for at in (0..arrays.left_child.len()).rev() {
            if arrays.left_child[at] != -1 {
                let [left, right] = [arrays.left_child[at], arrays.right_child[at]]
                    .map(|child| arrays.n_node_samples[child as usize]);
                arrays.n_node_samples[at] = left.saturating_add(right);
            }
        }
        Ok(arrays)
    }

    /// The leaf that both sides of a split are: how an ensemble writes a tree that is a leaf.
    fn only_leaf(&self, split: usize) -> Option<usize> {
        match self.splits[split] {
            Split { left: Child::Leaf(left), right: Child::Leaf(right), .. } if left == right => Some(left),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
}

/// The number of rows, at least 1, whose [`average_path_length`] this is.
pub fn count_of(length: f64) -> Option<u64> {
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
