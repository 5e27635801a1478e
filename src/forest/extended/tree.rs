//! One tree with oblique splits: one record a split, which holds its terms.

use super::super::Error;
use super::super::depth::Leaf;
use super::super::limits::{MAX_FEATURES, check_n_features};
use super::super::tree_check::{CheckedNode, TreeStructure};
use super::terms::{FullTerms, ShortTerms, TERMS};

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
    pub(super) root: NodeRef,
    /// The root first, then the left subtree, then the right one.
    pub(super) splits: Vec<Split<FullTerms>>,
    /// The terms of each split after its first [`TERMS`], by [`TERMS`].
    pub(super) further_terms: Vec<FullTerms>,
    pub(super) leaves: Vec<Leaf>,
    /// Terms of a split.
    pub(super) width: usize,
    pub(super) n_features: usize,
}

const _: () = assert!(MAX_FEATURES <= 1 << u16::BITS, "a column has 16 bits");

/// All that a step down the tree reads, in one aligned record.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(align(64))]
pub(super) struct Split<T> {
    pub terms: T,
    pub plane: SplitPlane,
    /// The node for rows with a projection of at most the cut, and the node for the others.
    pub children: [NodeRef; 2],
}

const _: () =
    assert!(size_of::<Split<FullTerms>>() == 128 && size_of::<Split<ShortTerms>>() == 64, "no padding");

/// The index of a split or, with the highest bit set, of a leaf.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct NodeRef(u32);

/// Most splits and most leaves with an index.
pub(super) const MAX_INDEX: usize = (NodeRef::LEAF - 1) as usize;

impl NodeRef {
    const LEAF: u32 = 1 << 31;

    pub fn split(index: usize) -> Self {
        debug_assert!(index <= MAX_INDEX);
        Self(index as u32)
    }

    pub fn leaf(index: usize) -> Self {
        debug_assert!(index <= MAX_INDEX);
        Self(index as u32 | Self::LEAF)
    }

    #[inline(always)]
    pub fn is_split(self) -> bool {
        self.0 < Self::LEAF
    }

    /// The index among the nodes of its kind.
    #[inline(always)]
    pub fn index(self) -> usize {
        (self.0 & !Self::LEAF) as usize
    }
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
            let [to_left, to_right] = builder.set_split(at, plane, &terms);
            stack.extend([(right, to_right), (left, to_left)]);
        }
        Ok(builder.finish())
    }
}

impl ExtendedTreeArrays {
    /// The arrays of the tree below `root`, the inverse of [`ExtendedTree::from_arrays`]. `further_terms` has
    /// `width.div_ceil(TERMS) - 1` entries a split.
    pub(super) fn new(
        root: NodeRef,
        splits: &[Split<FullTerms>],
        further_terms: &[FullTerms],
        leaves: &[Leaf],
        width: usize,
    ) -> Self {
        let mut arrays = Self { width, ..Self::default() };
        arrays.push_node();
        let n_further = further_terms.len() / splits.len().max(1);
        let mut stack = vec![(root, 0)];
        while let Some((node, at)) = stack.pop() {
            if !node.is_split() {
                arrays.n_node_samples[at] = leaves[node.index()].n_samples as i64;
                continue;
            }
            let Split { terms, plane, children } = &splits[node.index()];
            let further_terms = &further_terms[node.index() * n_further..][..n_further];
            arrays.set_split(at, *plane, std::iter::once(terms).chain(further_terms));
            let left = arrays.push_node();
            let right = arrays.push_node();
            (arrays.left_child[at], arrays.right_child[at]) = (left as i64, right as i64);
            stack.extend([(children[1], right), (children[0], left)]);
        }
        arrays.count_samples_of_splits();
        arrays
    }

    /// Adds a leaf without samples, and returns its index.
    fn push_node(&mut self) -> usize {
        let at = self.left_child.len();
        for array in [&mut self.left_child, &mut self.right_child] {
            array.push(-1);
        }
        self.n_node_samples.push(0);
        self.columns.resize(self.columns.len() + self.width, 0);
        self.coefficients.resize(self.coefficients.len() + self.width, 0.0);
        for array in [&mut self.cut, &mut self.low, &mut self.high] {
            array.push(0.0);
        }
        at
    }

    fn set_split<'a>(&mut self, at: usize, plane: SplitPlane, terms: impl Iterator<Item = &'a FullTerms>) {
        (self.cut[at], self.low[at], self.high[at]) = (plane.cut, plane.low, plane.high);
        let terms = terms.flat_map(|terms| terms.columns.iter().zip(&terms.coefficients));
        for (to, (&column, &coefficient)) in (at * self.width..(at + 1) * self.width).zip(terms) {
            self.columns[to] = u32::from(column);
            self.coefficients[to] = f64::from(coefficient);
        }
    }

    /// In reverse order, so that the counts of the children precede those of a split.
    fn count_samples_of_splits(&mut self) {
        for at in (0..self.left_child.len()).rev() {
            let children = [self.left_child[at], self.right_child[at]];
            let counts =
                children.map(|child| usize::try_from(child).map_or(0, |child| self.n_node_samples[child]));
            self.n_node_samples[at] += counts[0] + counts[1];
        }
    }

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
    /// Place of the root. The places of the children of split `n` are `2 n + 1` and `2 n + 2`.
    pub const ROOT: usize = 0;

    pub fn new(n_features: usize, width: usize, n_nodes: usize) -> Self {
        let n_splits = n_nodes / 2;
        Self(ExtendedTree {
            root: NodeRef::leaf(0),
            splits: Vec::with_capacity(n_splits),
            further_terms: Vec::with_capacity(n_splits * (width.div_ceil(TERMS) - 1)),
            leaves: Vec::with_capacity(n_splits + 1),
            width,
            n_features,
        })
    }

    pub fn set_leaf(&mut self, place: usize, leaf: Leaf) {
        *self.node_mut(place) = NodeRef::leaf(self.0.leaves.len());
        self.0.leaves.push(leaf);
    }

    /// Sets a split with its `width` terms. Returns the places of its left and its right child, which the caller sets
    /// later.
    pub fn set_split(&mut self, place: usize, plane: SplitPlane, terms: &[(u16, f32)]) -> [usize; 2] {
        debug_assert_eq!(terms.len(), self.0.width);
        let number = self.0.splits.len();
        *self.node_mut(place) = NodeRef::split(number);
        let (first, further) = terms.split_at(terms.len().min(TERMS));
        let children = [NodeRef::leaf(0); 2];
        self.0.splits.push(Split { terms: FullTerms::new(first), plane, children });
        self.0.further_terms.extend(further.chunks(TERMS).map(FullTerms::new));
        [2 * number + 1, 2 * number + 2]
    }

    fn node_mut(&mut self, place: usize) -> &mut NodeRef {
        match place.checked_sub(1) {
            None => &mut self.0.root,
            Some(place) => &mut self.0.splits[place / 2].children[place % 2],
        }
    }

    pub fn finish(self) -> ExtendedTree {
        self.0
    }
}
