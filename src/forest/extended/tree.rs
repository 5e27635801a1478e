//! One tree with oblique splits: one array of nodes, and two arrays of the terms of all splits.

use std::ops::Range;

use super::super::Error;
use super::super::depth::{Leaf, average_path_length};
use super::super::limits::{MAX_FEATURES, check_n_features};
use super::super::tree_check::{CheckedNode, TreeStructure};

/// A tree as plain data, for files: one entry per node in every array, the root first, a leaf's children −1.
/// [`ExtendedTree::from_arrays`] checks it. The projection of node `n` is the sum over `k` in
/// `n * width..(n + 1) * width` of `coefficients[k]` times the row's value in column `columns[k]`, added in that order
/// as `f64`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExtendedTreeArrays {
    /// Child for rows with `projection <= cut`; −1 in a leaf. Greater than the node's own index.
    pub left_child: Vec<i64>,
    /// Child for the other rows; −1 in a leaf. Greater than the node's own index.
    pub right_child: Vec<i64>,
    /// Training rows that reached the node, at least 1.
    pub n_node_samples: Vec<i64>,
    /// Number of terms of a split.
    pub width: usize,
    /// Column of each term, shape `[n_nodes, width]`, row-major; 0 in a leaf (not checked there).
    pub columns: Vec<u32>,
    /// Weight of each term, exact as `f32`, shape `[n_nodes, width]`, row-major; 0 in a leaf (not checked there).
    pub coefficients: Vec<f64>,
    /// The cut; 0 in a leaf (not checked there).
    pub cut: Vec<f64>,
    /// The least projection of the training rows that reached the node; 0 in a leaf (not checked there).
    pub low: Vec<f64>,
    /// The greatest projection; 0 in a leaf (not checked there).
    pub high: Vec<f64>,
}

/// A checked tree: every walk ends in a leaf after at most [`MAX_DEPTH`](super::super::MAX_DEPTH) steps,
/// and no finite row gives a NaN on the way.
#[derive(Clone, Debug, PartialEq)]
pub struct ExtendedTree {
    pub(super) nodes: Vec<ExtendedNode>,
    /// Column of each term; the terms of a split are adjacent.
    columns: Vec<u16>,
    /// Weight of each term.
    coefficients: Vec<f32>,
    /// Terms of a split.
    width: usize,
    /// Edges from the root to the deepest leaf.
    pub(super) depth: u32,
    pub(super) n_features: usize,
}

const _: () = assert!(MAX_FEATURES <= 1 << u16::BITS, "a column has 16 bits");

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ExtendedNode {
    /// Rows with a projection of at most `cut` go to node `left`, others to node `left + 1`.
    Split {
        left: u32,
        /// Index of the split's terms, in units of `width`.
        terms: u32,
        cut: f64,
        low: f64,
        high: f64,
    },
    Leaf {
        path_length: f64,
        n_samples: u64,
    },
}

/// A cut and the range that it was drawn from: `low <= cut <= high`, `low < high`, all finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct SplitPlane {
    pub cut: f64,
    pub low: f64,
    pub high: f64,
}

impl ExtendedTree {
    /// Checks arrays from a file and lays them out for the walk. `n_features` is the width of the rows to score.
    ///
    /// # Errors
    /// [`Error::Node`] if the arrays differ in length, are empty or have more than
    /// [`MAX_NODES`](super::super::MAX_NODES) nodes; a child is not after its parent, is out of range, or has
    /// another parent; a node has no parent; one child of a split is missing; a count is below 1 or is
    /// not the sum of the children's; a leaf is deeper than [`MAX_DEPTH`](super::super::MAX_DEPTH); a
    /// split's column is not below `n_features`; a coefficient is not a finite `f32`; `low`,
    /// `cut` and `high` are not finite and ascending, or `low` equals `high`. [`Error::Forest`] if
    /// `n_features` or the width is 0 or above [`MAX_FEATURES`].
    pub fn from_arrays(arrays: &ExtendedTreeArrays, n_features: usize) -> Result<Self, Error> {
        check_n_features(n_features)?;
        let width = arrays.width;
        if !(1..=MAX_FEATURES).contains(&width) {
            return Err(Error::forest("width", width, format_args!("in 1..={MAX_FEATURES}")));
        }
        let checked_nodes = arrays.check_structure()?;
        let mut builder = ExtendedTreeBuilder::new(n_features, width, checked_nodes.len());
        let mut stack = vec![(0, ExtendedTreeBuilder::ROOT)];
        while let Some((node, at)) = stack.pop() {
            let [left, right] = match checked_nodes[node] {
                CheckedNode::Split(children) => children,
                CheckedNode::Leaf(leaf) => {
                    builder.set_leaf(at, leaf);
                    continue;
                }
            };
            let plane = arrays.check_plane(node)?;
            let terms = arrays.check_terms(node, n_features)?;
            let [to_left, to_right] = builder.set_split(at, plane, terms);
            stack.extend([(right, to_right), (left, to_left)]);
        }
        Ok(builder.finish())
    }

    /// The inverse of [`from_arrays`](Self::from_arrays), in the order of the nodes.
    pub(super) fn to_arrays(&self) -> ExtendedTreeArrays {
        let (n_nodes, width) = (self.nodes.len(), self.width);
        let mut arrays = ExtendedTreeArrays {
            left_child: vec![-1; n_nodes],
            right_child: vec![-1; n_nodes],
            n_node_samples: vec![0; n_nodes],
            width,
            columns: vec![0; n_nodes * width],
            coefficients: vec![0.0; n_nodes * width],
            cut: vec![0.0; n_nodes],
            low: vec![0.0; n_nodes],
            high: vec![0.0; n_nodes],
        };
        // In reverse order, so that the counts of the children precede those of a split.
        for (at, &node) in self.nodes.iter().enumerate().rev() {
            let (left, terms) = match node {
                ExtendedNode::Leaf { n_samples, .. } => {
                    arrays.n_node_samples[at] = n_samples as i64;
                    continue;
                }
                ExtendedNode::Split { left, terms, cut, low, high } => {
                    (arrays.cut[at], arrays.low[at], arrays.high[at]) = (cut, low, high);
                    (left as usize, self.terms(terms))
                }
            };
            arrays.left_child[at] = left as i64;
            arrays.right_child[at] = left as i64 + 1;
            arrays.n_node_samples[at] = arrays.n_node_samples[left] + arrays.n_node_samples[left + 1];
            let to = at * width..(at + 1) * width;
            for (to, &column) in arrays.columns[to.clone()].iter_mut().zip(&self.columns[terms.clone()]) {
                *to = u32::from(column);
            }
            for (to, &coefficient) in arrays.coefficients[to].iter_mut().zip(&self.coefficients[terms]) {
                *to = f64::from(coefficient);
            }
        }
        arrays
    }

    /// The projection of a row of finite values on the terms of a split.
    #[inline(always)]
    pub(super) fn project(&self, terms: u32, row: &[f64]) -> f64 {
        let terms = self.terms(terms);
        let terms = self.columns[terms.clone()].iter().zip(&self.coefficients[terms]);
        terms
            .fold(0.0, |sum, (&column, &coefficient)| sum + f64::from(coefficient) * row[usize::from(column)])
    }

    #[inline(always)]
    fn terms(&self, number: u32) -> Range<usize> {
        let start = number as usize * self.width;
        start..start + self.width
    }
}

impl ExtendedTreeArrays {
    fn check_structure(&self) -> Result<Vec<CheckedNode>, Error> {
        let Self { left_child, right_child, n_node_samples, .. } = self;
        TreeStructure { left_child, right_child, n_node_samples }.check(&[
            ("length of columns", self.columns.len(), self.width),
            ("length of coefficients", self.coefficients.len(), self.width),
            ("length of cut", self.cut.len(), 1),
            ("length of low", self.low.len(), 1),
            ("length of high", self.high.len(), 1),
        ])
    }

    fn check_plane(&self, node: usize) -> Result<SplitPlane, Error> {
        let (cut, low, high) = (self.cut[node], self.low[node], self.high[node]);
        for (field, value) in [("low", low), ("high", high)] {
            if !value.is_finite() {
                return Err(Error::node(node, field, value, "finite"));
            }
        }
        if low >= high {
            return Err(Error::node(node, "low", low, format_args!("below high, {high}")));
        }
        if !(low..=high).contains(&cut) {
            return Err(Error::node(node, "cut", cut, format_args!("in {low}..={high}")));
        }
        Ok(SplitPlane { cut, low, high })
    }

    /// The checked terms of a split. A sum of [`MAX_FEATURES`] products of two `f32` cannot overflow an `f64`.
    fn check_terms(&self, node: usize, n_features: usize) -> Result<Vec<(u16, f32)>, Error> {
        let terms = node * self.width..(node + 1) * self.width;
        let terms = self.columns[terms.clone()].iter().zip(&self.coefficients[terms]);
        let check = |(&column, &coefficient): (&u32, &f64)| {
            if column as usize >= n_features {
                return Err(Error::node(node, "column", column, format_args!("below {n_features}")));
            }
            let exact = coefficient as f32;
            if !exact.is_finite() || f64::from(exact) != coefficient {
                return Err(Error::node(node, "coefficient", coefficient, "finite and exact as f32"));
            }
            Ok((column as u16, exact))
        };
        terms.map(check).collect()
    }
}

/// Writes the nodes of a tree, from the root. Growing and reading a tree place the children of a split in the same
/// order, so that a tree keeps its layout through a file.
pub(super) struct ExtendedTreeBuilder(ExtendedTree);

impl ExtendedTreeBuilder {
    /// Index of the root, which every tree has.
    pub const ROOT: usize = 0;

    pub fn new(n_features: usize, width: usize, n_nodes: usize) -> Self {
        let mut nodes = Vec::with_capacity(n_nodes);
        nodes.push(UNSET);
        let n_terms = n_nodes / 2 * width;
        let (columns, coefficients) = (Vec::with_capacity(n_terms), Vec::with_capacity(n_terms));
        Self(ExtendedTree { nodes, columns, coefficients, width, depth: 0, n_features })
    }

    pub fn set_leaf(&mut self, at: usize, Leaf { depth, n_samples }: Leaf) {
        let path_length = f64::from(depth) + average_path_length(n_samples);
        self.0.nodes[at] = ExtendedNode::Leaf { path_length, n_samples };
        self.0.depth = self.0.depth.max(depth);
    }

    /// Sets a split with its `width` terms and adds two children, which the caller sets later. Returns left and right
    /// child.
    pub fn set_split(
        &mut self,
        at: usize,
        SplitPlane { cut, low, high }: SplitPlane,
        terms: impl IntoIterator<Item = (u16, f32)>,
    ) -> [usize; 2] {
        let tree = &mut self.0;
        let number = tree.columns.len() / tree.width;
        for (column, coefficient) in terms {
            tree.columns.push(column);
            tree.coefficients.push(coefficient);
        }
        debug_assert_eq!(tree.columns.len(), (number + 1) * tree.width);
        let left = tree.nodes.len();
        // Neither number exceeds MAX_NODES.
        tree.nodes[at] = ExtendedNode::Split { left: left as u32, terms: number as u32, cut, low, high };
        tree.nodes.extend([UNSET; 2]);
        [left, left + 1]
    }

    pub fn finish(mut self) -> ExtendedTree {
        // Most trees have fewer nodes than the capacity.
        self.0.nodes.shrink_to_fit();
        self.0.columns.shrink_to_fit();
        self.0.coefficients.shrink_to_fit();
        self.0
    }
}

/// A node that is added and not yet set.
const UNSET: ExtendedNode = ExtendedNode::Leaf { path_length: 0.0, n_samples: 0 };
