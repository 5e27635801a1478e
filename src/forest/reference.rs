//! Reference implementations of both forests: one node type, `f64` thresholds, a branch per step, one row at a time.
//!
//! The tests compare the fast paths of [`Forest`](super::Forest) and [`ExtendedForest`](super::ExtendedForest) with
//! them for equality, and the benchmarks for speed. The program does not use them.

use super::{ExtendedTreeArrays, TreeArrays, average_path_length};

/// The reference for [`Forest`](super::Forest). Does not check its trees.
#[derive(Clone, Debug)]
pub struct ReferenceForest {
    trees: Vec<Vec<ReferenceNode>>,
    max_samples: u64,
}

#[derive(Clone, Debug)]
enum ReferenceNode {
    Leaf { path_length: f64 },
    Split { feature: usize, threshold: f64, missing_go_to_left: bool, left: usize, right: usize },
}

impl ReferenceForest {
    /// A forest of the arrays of each tree and the nominal number of rows per tree.
    ///
    /// # Panics
    /// On arrays that [`Tree::from_arrays`](super::Tree::from_arrays) rejects; scoring may panic too.
    pub fn new(trees: impl IntoIterator<Item = TreeArrays>, max_samples: u64) -> Self {
        Self { trees: trees.into_iter().map(|arrays| nodes(&arrays)).collect(), max_samples }
    }

    /// scikit-learn's `score_samples` of a row, in `[-1, 0)`, lower is more anomalous.
    ///
    /// # Panics
    /// If the row is narrower than the training table.
    pub fn score_samples(&self, row: &[f32]) -> f64 {
        let sum: f64 = self.trees.iter().map(|tree| path_length(tree, row)).sum();
        let normalizer = self.trees.len() as f64 * average_path_length(self.max_samples);
        -(-if normalizer == 0.0 { 1.0 } else { sum / normalizer }).exp2()
    }
}

/// The reference for [`ExtendedForest`](super::ExtendedForest). Does not check its trees.
#[derive(Clone, Debug)]
pub struct ReferenceExtendedForest {
    trees: Vec<ExtendedTreeArrays>,
    max_samples: u64,
}

impl ReferenceExtendedForest {
    /// A forest of the arrays of each tree and the nominal number of rows per tree.
    pub fn new(trees: impl IntoIterator<Item = ExtendedTreeArrays>, max_samples: u64) -> Self {
        Self { trees: trees.into_iter().collect(), max_samples }
    }

    /// Minus the anomaly score of a row of finite values, in `[-1, 0)`, lower is more anomalous.
    ///
    /// # Panics
    /// On arrays that [`ExtendedTree::from_arrays`](super::ExtendedTree::from_arrays) rejects, and if
    /// the row is narrower than the training table.
    pub fn score_samples(&self, row: &[f32]) -> f64 {
        let sum: f64 = self.trees.iter().map(|tree| expected_path_length(tree, 0, 0.0, row)).sum();
        let normalizer = self.trees.len() as f64 * average_path_length(self.max_samples);
        -(-if normalizer == 0.0 { 1.0 } else { sum / normalizer }).exp2()
    }
}

/// Expected path length of a row, as if the row had been in the sample, from a node at `depth`. The fast path expands
/// the nested expression.
fn expected_path_length(tree: &ExtendedTreeArrays, node: usize, depth: f64, row: &[f32]) -> f64 {
    if tree.left_child[node] < 0 {
        return depth + average_path_length(tree.n_node_samples[node].unsigned_abs());
    }
    let mut projection = 0.0;
    for term in node * tree.width..(node + 1) * tree.width {
        projection += tree.coefficients[term] * f64::from(row[tree.columns[term] as usize]);
    }
    let go_left = projection <= tree.cut[node];
    let child = if go_left { tree.left_child[node] } else { tree.right_child[node] };
    let child = usize::try_from(child).expect("a checked split has two children");
    let child_path_length = expected_path_length(tree, child, depth + 1.0, row);
    let (low, high) = (tree.low[node], tree.high[node]);
    if (low..=high).contains(&projection) {
        return child_path_length;
    }
    let distance_outside = if projection < low { low - projection } else { projection - high };
    let exit_probability = distance_outside / (high - low + distance_outside);
    exit_probability * (depth + 1.0) + (1.0 - exit_probability) * child_path_length
}

fn nodes(arrays: &TreeArrays) -> Vec<ReferenceNode> {
    let index = |child: i64| usize::try_from(child).expect("a checked split has two children");
    let mut depth = vec![0.0; arrays.left_child.len()];
    (0..depth.len())
        .map(|node| {
            if arrays.left_child[node] < 0 {
                let n_samples = arrays.n_node_samples[node].unsigned_abs();
                // scikit-learn counts nodes and subtracts one.
                let path_length = depth[node] + 1.0 + average_path_length(n_samples) - 1.0;
                return ReferenceNode::Leaf { path_length };
            }
            let (left, right) = (index(arrays.left_child[node]), index(arrays.right_child[node]));
            depth[left] = depth[node] + 1.0;
            depth[right] = depth[node] + 1.0;
            ReferenceNode::Split {
                feature: index(arrays.feature[node]),
                threshold: arrays.threshold[node],
                missing_go_to_left: arrays.missing_go_to_left[node],
                left,
                right,
            }
        })
        .collect()
}

fn path_length(tree: &[ReferenceNode], row: &[f32]) -> f64 {
    let mut at = 0;
    loop {
        match tree[at] {
            ReferenceNode::Leaf { path_length } => return path_length,
            ReferenceNode::Split { feature, threshold, missing_go_to_left, left, right } => {
                let value = f64::from(row[feature]);
                let go_left = if value.is_nan() { missing_go_to_left } else { value <= threshold };
                at = if go_left { left } else { right };
            }
        }
    }
}
