//! One tree as a flat array of 8-byte nodes, made so that a walk needs no branches.
//!
//! A walk is `at = node.next_of_number(row[node.feature()])`, and nothing else:
//!
//! - The two children of a split lie side by side, left first; the comparison, as 0 or 1, is added to
//!   the index of the left one.
//! - A leaf is a split on feature 0 whose cut is NaN and whose left child is itself: every row stays.
//!   So several walks of different lengths run side by side for a common number of steps. The unused
//!   bits of that NaN number the leaf.
//! - NaN in a row fails the comparison too and would always go left; one bit of the node says where it
//!   goes instead. Looking at it costs time, so rows without NaN do not.
//!
//! Not taken: nodes without leaves (half the memory, 1.3 to 1.6 times slower on a warm row and two
//! kinds of reference to follow), `f64` cuts (twice the memory, no comparison changes), an index for
//! each child (then the choice between them becomes a jump).

use super::Error;
use super::tree_check::{CheckedNode, TreeStructure, node_error};

/// Most features of a forest: what a node has bits for.
pub const MAX_FEATURES: usize = 1 << FEATURE_BITS;

/// Most nodes of one tree: what a node has bits for.
pub const MAX_NODES: usize = 1 << CHILD_BITS;

/// Most rows one tree can be grown from: a binary tree of n leaves has 2n - 1 nodes.
pub const MAX_SAMPLES: usize = MAX_NODES / 2;

/// Most edges from root to leaf. scikit-learn stops at `ceil(log2(max_samples))`, and a count has 64
/// bits; this bounds the time that a hostile tree can take per row.
pub const MAX_DEPTH: u32 = 64;

/// A tree as scikit-learn stores it: one entry per node in every array, the root first, a leaf's
/// children −1. Plain data, for files; [`Tree::from_arrays`] checks it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TreeArrays {
    /// Where rows with `value <= threshold` go; −1 in a leaf. Greater than the node's own index.
    pub left_child: Vec<i64>,
    /// Where the others go; −1 in a leaf. Greater than the node's own index.
    pub right_child: Vec<i64>,
    /// Column of the table; −2 in a leaf (any value is accepted there).
    pub feature: Vec<i64>,
    /// The cut; −2 in a leaf (any value is accepted there).
    pub threshold: Vec<f64>,
    /// Training rows that reached the node, at least 1.
    pub n_node_samples: Vec<i64>,
    /// Whether NaN goes left (ignored in a leaf). All `false` for scikit-learn before 1.3.
    pub missing_go_to_left: Vec<bool>,
}

/// A checked tree: every walk ends in a leaf after at most [`MAX_DEPTH`] steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    pub(super) nodes: Vec<TreeNode>,
    /// What the leaf nodes' numbers mean.
    pub(super) leaves: Vec<Leaf>,
    /// Edges from the root to the deepest leaf.
    pub(super) depth: u32,
    pub(super) n_features: usize,
}

/// What a leaf says about the rows that end there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leaf {
    /// Edges from the root.
    pub depth: u32,
    /// Training rows that ended there.
    pub n_samples: u64,
}

/// Where a split sends rows that miss its feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MissingDirection {
    Left,
    Right,
}

/// A split or a leaf; see the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TreeNode {
    /// Bits of the `f32` that the value is compared with.
    threshold_bits: u32,
    /// From the low end: index of the left child, whether NaN goes right, feature.
    packed: u32,
}

const CHILD_BITS: u32 = 19;
const FEATURE_BITS: u32 = 12;
const MISSING_RIGHT: u32 = 1 << CHILD_BITS;
const FEATURE_SHIFT: u32 = CHILD_BITS + 1;
/// Quiet NaN; the bits below number a leaf.
const LEAF_NAN: u32 = 0x7fc0_0000;
/// Most leaves with a number.
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

    /// The column that decides here; 0 in a leaf.
    #[inline(always)]
    pub fn feature(self) -> usize {
        (self.packed >> FEATURE_SHIFT) as usize
    }

    /// Index, in the tree, of the node where `value` goes: in a leaf the leaf itself.
    #[inline(always)]
    pub fn next(self, value: f32) -> usize {
        let missing = value.is_nan() & (self.packed & MISSING_RIGHT != 0);
        self.next_not_nan(value) + usize::from(missing)
    }

    /// The same for a `value` that is not NaN, sooner.
    #[inline(always)]
    pub fn next_not_nan(self, value: f32) -> usize {
        self.left() + usize::from(value > f32::from_bits(self.threshold_bits))
    }

    /// The number of a leaf; means nothing in a split.
    #[inline(always)]
    pub fn leaf_index(self) -> usize {
        (self.threshold_bits & !LEAF_NAN) as usize
    }

    /// The same leaf under another number.
    pub fn with_leaf_index(self, leaf_index: usize) -> Self {
        debug_assert!(self.is_leaf() && leaf_index < MAX_LEAVES);
        Self { threshold_bits: LEAF_NAN | leaf_index as u32, ..self }
    }

    pub fn is_leaf(self) -> bool {
        f32::from_bits(self.threshold_bits).is_nan()
    }

    #[inline(always)]
    fn left(self) -> usize {
        self.packed as usize & (MAX_NODES - 1)
    }
}

/// Writes the nodes of a tree from the root on. Both ways to a tree, growing and reading, place a
/// split's children in the same order, so that a tree keeps its layout through a file.
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

    /// Places two children, to be set by the caller, and returns left and right.
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
    /// Checks arrays as they come from a file and lays them out for the walk. `n_features` is the
    /// width of the rows that the forest will score. Thresholds become the largest `f32` not above
    /// them, which changes no comparison with an `f32`.
    ///
    /// # Errors
    /// [`Error::Node`] if the arrays differ in length, are empty or longer than [`MAX_NODES`]; a child
    /// is not after its parent, not inside, or has another parent; a node has no parent; one child of
    /// a split is missing; a split's feature is not below `n_features`; its threshold is not finite;
    /// a count is below 1 or is not the sum of the children's; a leaf is deeper than [`MAX_DEPTH`].
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
                .ok_or_else(|| node_error(node, "feature", feature, format_args!("below {n_features}")))?;
            let threshold = arrays.threshold[node];
            if !threshold.is_finite() {
                return Err(node_error(node, "threshold", threshold, "finite"));
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

/// The arrays of a tree, in the order of its nodes: the way back from [`Tree::from_arrays`].
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
    // Backwards, so that a split finds the counts of its children.
    for (at, node) in nodes.iter().enumerate().rev() {
        if node.is_leaf() {
            arrays.n_node_samples[at] = leaves[node.leaf_index()].n_samples as i64;
            continue;
        }
        let (left, right) = (node.left(), node.left() + 1);
        arrays.left_child[at] = left as i64;
        arrays.right_child[at] = right as i64;
        arrays.feature[at] = node.feature() as i64;
        arrays.threshold[at] = f64::from(f32::from_bits(node.threshold_bits));
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

pub(super) fn check_n_features(n_features: usize) -> Result<(), Error> {
    if (1..=MAX_FEATURES).contains(&n_features) {
        return Ok(());
    }
    Err(Error::Forest {
        field: "n_features",
        value: n_features.to_string(),
        limit: format!("in 1..={MAX_FEATURES}"),
    })
}

/// The largest `f32` that is not above `threshold`: for every `f32` x, `x <= threshold` says the same
/// of both. Zero is always `+0`, so that a cut has one form. `threshold` is not NaN.
pub(super) fn round_down(threshold: f64) -> f32 {
    let nearest = threshold as f32;
    let down = if f64::from(nearest) > threshold { nearest.next_down() } else { nearest };
    down + 0.0
}

#[cfg(test)]
mod tests;
