//! One tree as a flat array of 8-byte nodes. A walk down the tree has no branches.
//!
//! One step is `at = node.next_not_nan(row[node.feature()])`:
//!
//! - The children of a split are adjacent, left first. The result of the comparison, 0 or 1, is added to the index
//!   of the left child.
//! - A leaf is a split on feature 0 with a NaN threshold and itself as left child, so a row stays there. Walks of
//!   different lengths can then run side by side for a common number of steps. The unused bits of the NaN hold the
//!   index of the leaf.
//! - A NaN in a row fails every comparison and would always go left. One bit of the node holds the direction of
//!   missing values. Reading that bit costs time, so rows without NaN skip it.
//!
//! Not taken: nodes without leaves (half the memory, but 1.3 to 1.6 times slower on a warm row, and two kinds of
//! reference), `f64` thresholds (twice the memory for equal comparisons), an index for each child (the choice
//! between the two becomes a jump).

use super::Error;
use super::depth::Leaf;
use super::limits::{CHILD_BITS, MAX_FEATURES, MAX_NODES, check_n_features};
use super::tree_check::{CheckedNode, TreeStructure};

/// A tree as scikit-learn stores it: one entry per node in every array, the root first, a leaf's
/// children −1. Plain data, for files; [`Tree::from_arrays`] checks it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TreeArrays {
    /// Child for rows with `value <= threshold`; −1 in a leaf. Greater than the node's own index.
    pub left_child: Vec<i64>,
    /// Child for the other rows; −1 in a leaf. Greater than the node's own index.
    pub right_child: Vec<i64>,
    /// Column of the table; −2 in a leaf (not checked there).
    pub feature: Vec<i64>,
    /// Threshold of the split; −2 in a leaf (not checked there).
    pub threshold: Vec<f64>,
    /// Training rows that reached the node, at least 1.
    pub n_node_samples: Vec<i64>,
    /// True if NaN goes left (ignored in a leaf). All `false` for scikit-learn before 1.3.
    pub missing_go_to_left: Vec<bool>,
}

/// A checked tree: every walk ends in a leaf after at most [`MAX_DEPTH`](super::limits::MAX_DEPTH) steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    pub(super) nodes: Vec<TreeNode>,
    /// The leaves, by the index that a leaf node holds.
    pub(super) leaves: Vec<Leaf>,
    /// Edges from the root to the deepest leaf.
    pub(super) depth: u32,
    pub(super) n_features: usize,
}

/// The child that a split selects for rows without a value of its feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MissingDirection {
    Left,
    Right,
}

/// A split or a leaf; see the module documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TreeNode {
    /// Bits of the `f32` that the value is compared with.
    threshold_bits: u32,
    /// From the low end: index of the left child, flag for NaN to the right, feature.
    packed: u32,
}

const MISSING_RIGHT: u32 = 1 << CHILD_BITS;
const FEATURE_SHIFT: u32 = CHILD_BITS + 1;
/// Quiet NaN; the bits below hold the index of a leaf.
const LEAF_NAN: u32 = 0x7fc0_0000;
/// Most leaves with an index.
pub(super) const MAX_LEAVES: usize = 1 << LEAF_NAN.trailing_zeros();

impl TreeNode {
    fn split(feature: usize, threshold: f32, missing: MissingDirection, left: usize) -> Self {
        debug_assert!(feature < MAX_FEATURES && left < MAX_NODES && !threshold.is_nan());
        let missing = if missing == MissingDirection::Right { MISSING_RIGHT } else { 0 };
        Self {
            threshold_bits: threshold.to_bits(),
            packed: (feature as u32) << FEATURE_SHIFT | missing | left as u32,
        }
    }

    fn leaf(at: usize, leaf_index: usize) -> Self {
        debug_assert!(at < MAX_NODES && leaf_index < MAX_LEAVES);
        Self { threshold_bits: LEAF_NAN | leaf_index as u32, packed: at as u32 }
    }

    /// The column that the split compares; 0 in a leaf.
    #[inline(always)]
    pub fn feature(self) -> usize {
        (self.packed >> FEATURE_SHIFT) as usize
    }

    /// Index in the tree of the next node for `value`; a leaf returns itself.
    #[inline(always)]
    pub fn next(self, value: f32) -> usize {
        let missing = value.is_nan() & (self.packed & MISSING_RIGHT != 0);
        self.next_not_nan(value) + usize::from(missing)
    }

    /// As [`next`](Self::next) for a `value` that is not NaN, in less time.
    #[inline(always)]
    pub fn next_not_nan(self, value: f32) -> usize {
        self.left() + usize::from(value > self.threshold())
    }

    /// The index of a leaf; meaningless in a split.
    #[inline(always)]
    pub fn leaf_index(self) -> usize {
        (self.threshold_bits & !LEAF_NAN) as usize
    }

    /// The same leaf with another index.
    pub fn with_leaf_index(self, leaf_index: usize) -> Self {
        debug_assert!(self.is_leaf() && leaf_index < MAX_LEAVES);
        Self { threshold_bits: LEAF_NAN | leaf_index as u32, ..self }
    }

    pub fn is_leaf(self) -> bool {
        self.threshold().is_nan()
    }

    /// The number that the split compares with; NaN in a leaf.
    #[inline(always)]
    pub fn threshold(self) -> f32 {
        f32::from_bits(self.threshold_bits)
    }

    /// Index in the tree of the left child; the right one follows. A leaf returns itself.
    #[inline(always)]
    pub fn left(self) -> usize {
        self.packed as usize & (MAX_NODES - 1)
    }
}

/// Writes the nodes of a tree, from the root. Growing and reading a tree place the children of a split in the same
/// order, so that a tree keeps its layout through a file.
pub(super) struct TreeBuilder(Tree);

impl TreeBuilder {
    /// Index of the root, which every tree has.
    pub const ROOT: usize = 0;

    pub fn new(n_features: usize, n_nodes: usize) -> Self {
        let mut nodes = Vec::with_capacity(n_nodes);
        nodes.push(TreeNode::leaf(Self::ROOT, 0));
        Self(Tree { nodes, leaves: Vec::with_capacity(n_nodes / 2 + 1), depth: 0, n_features })
    }

    pub fn set_leaf(&mut self, at: usize, leaf: Leaf) {
        self.0.nodes[at] = TreeNode::leaf(at, self.0.leaves.len());
        self.0.leaves.push(leaf);
        self.0.depth = self.0.depth.max(leaf.depth);
    }

    /// Sets a split and adds its two children, which the caller sets later. Returns left and right child.
    pub fn set_split(
        &mut self,
        at: usize,
        feature: usize,
        threshold: f32,
        missing: MissingDirection,
    ) -> [usize; 2] {
        let left = self.0.nodes.len();
        self.0.nodes[at] = TreeNode::split(feature, threshold, missing, left);
        self.0.nodes.extend([TreeNode::leaf(left, 0), TreeNode::leaf(left + 1, 0)]);
        [left, left + 1]
    }

    pub fn finish(self) -> Tree {
        self.0
    }
}

impl Tree {
    /// Checks arrays from a file and lays them out for the walk. `n_features` is the width of the rows to score.
    /// Thresholds are rounded down to `f32`, which changes no comparison with an `f32`.
    ///
    /// # Errors
    /// [`Error::Node`] if the arrays differ in length, are empty or longer than [`MAX_NODES`]; a child
    /// is not after its parent, is out of range, or has another parent; a node has no parent; one child of
    /// a split is missing; a split's feature is not below `n_features`; its threshold is not finite;
    /// a count is below 1 or is not the sum of the children's; a leaf is deeper than [`MAX_DEPTH`](super::limits::MAX_DEPTH).
    /// [`Error::Forest`] if `n_features` is 0 or above [`MAX_FEATURES`].
    pub fn from_arrays(arrays: &TreeArrays, n_features: usize) -> Result<Self, Error> {
        check_n_features(n_features)?;
        let checked_nodes = arrays.check_structure()?;
        let mut builder = TreeBuilder::new(n_features, checked_nodes.len());
        let mut stack = vec![(0, TreeBuilder::ROOT)];
        while let Some((node, at)) = stack.pop() {
            let [left, right] = match checked_nodes[node] {
                CheckedNode::Split(children) => children,
                CheckedNode::Leaf(leaf) => {
                    builder.set_leaf(at, leaf);
                    continue;
                }
            };
            let feature = arrays.feature[node];
            let feature = usize::try_from(feature)
                .ok()
                .filter(|&feature| feature < n_features)
                .ok_or_else(|| Error::node(node, "feature", feature, format_args!("below {n_features}")))?;
            let threshold = arrays.threshold[node];
            if !threshold.is_finite() {
                return Err(Error::node(node, "threshold", threshold, "finite"));
            }
            let missing = if arrays.missing_go_to_left[node] {
                MissingDirection::Left
            } else {
                MissingDirection::Right
            };
            let [to_left, to_right] = builder.set_split(at, feature, round_down(threshold), missing);
            stack.extend([(right, to_right), (left, to_left)]);
        }
        Ok(builder.finish())
    }
}

/// The arrays of a tree, in the order of its nodes: the inverse of [`Tree::from_arrays`].
pub(super) fn to_arrays(nodes: &[TreeNode], leaves: &[Leaf]) -> TreeArrays {
    let n_nodes = nodes.len();
    let mut arrays = TreeArrays {
        left_child: vec![-1; n_nodes],
        right_child: vec![-1; n_nodes],
        feature: vec![-2; n_nodes],
        threshold: vec![-2.0; n_nodes],
        n_node_samples: vec![0; n_nodes],
        missing_go_to_left: vec![false; n_nodes],
    };
    // In reverse order, so that the counts of the children precede those of a split.
    for (at, node) in nodes.iter().enumerate().rev() {
        if node.is_leaf() {
            arrays.n_node_samples[at] = leaves[node.leaf_index()].n_samples as i64;
            continue;
        }
        let (left, right) = (node.left(), node.left() + 1);
        arrays.left_child[at] = left as i64;
        arrays.right_child[at] = right as i64;
        arrays.feature[at] = node.feature() as i64;
        arrays.threshold[at] = f64::from(node.threshold());
        arrays.n_node_samples[at] = arrays.n_node_samples[left] + arrays.n_node_samples[right];
        arrays.missing_go_to_left[at] = node.packed & MISSING_RIGHT == 0;
    }
    arrays
}

impl TreeArrays {
    fn check_structure(&self) -> Result<Vec<CheckedNode>, Error> {
        let Self { left_child, right_child, n_node_samples, .. } = self;
        TreeStructure { left_child, right_child, n_node_samples }.check(&[
            ("length of feature", self.feature.len(), 1),
            ("length of threshold", self.threshold.len(), 1),
            ("length of missing_go_to_left", self.missing_go_to_left.len(), 1),
        ])
    }
}

/// The largest `f32` that is not above `threshold`: for every `f32` x, `x <= threshold` has the same result for
/// both. Zero is always `+0`, so that a threshold has one form. `threshold` must not be NaN.
pub(super) fn round_down(threshold: f64) -> f32 {
    let nearest = threshold as f32;
    // As `next_down`, but without a branch, which would be mispredicted for half of the thresholds.
    let bits = nearest.to_bits() as i32;
    let below = if nearest > 0.0 {
        bits - 1
    } else if nearest < 0.0 {
        bits + 1
    } else {
        i32::MIN + 1
    };
    let down = if f64::from(nearest) > threshold { below } else { bits };
    f32::from_bits(down as u32) + 0.0
}

#[cfg(test)]
mod tests;
