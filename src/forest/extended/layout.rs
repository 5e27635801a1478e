//! The nodes of a forest in the order of the walks: the splits of all trees, level by level.
//!
//! A row walks down all trees at once, see [`walk`](super::walk). The first levels of all trees are adjacent, and the
//! record of a split is two lines of the cache.

use super::super::Error;
use super::super::depth::{Leaf, LeafIndices, average_path_length};
use super::tree::{ExtendedTree, ExtendedTreeArrays, MAX_INDEX, NodeRef, Split, TERMS, Terms};

/// See the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SplitsByLevel {
    pub roots: Vec<NodeRef>,
    pub splits: Vec<Split>,
    /// The terms of each split after its first [`TERMS`], by [`TERMS`].
    further_terms: Vec<Terms>,
    /// Entries of `further_terms` of a split.
    pub n_further: usize,
    /// Terms of a split.
    width: usize,
    /// Each pair of depth and count once.
    leaves: Vec<Leaf>,
    /// Path length of each of `leaves`.
    pub path_lengths: Vec<f64>,
}

impl SplitsByLevel {
    /// The nodes of at least one tree.
    pub fn new(trees: &[ExtendedTree]) -> Result<Self, Error> {
        let width = trees[0].width;
        if let Some(tree) = trees.iter().find(|tree| tree.width != width) {
            return Err(Error::forest("width", tree.width, format_args!("{width} in all trees")));
        }
        let n_splits: usize = trees.iter().map(|tree| tree.splits.len()).sum();
        let n_leaves: usize = trees.iter().map(|tree| tree.leaves.len()).sum();
        if n_leaves > MAX_INDEX {
            return Err(Error::forest("number of leaves", n_leaves, format_args!("at most {MAX_INDEX}")));
        }
        let n_further = width.div_ceil(TERMS) - 1;
        let mut nodes = Self {
            roots: Vec::with_capacity(trees.len()),
            splits: Vec::with_capacity(n_splits),
            further_terms: Vec::with_capacity(n_splits * n_further),
            n_further,
            width,
            leaves: Vec::new(),
            path_lengths: Vec::new(),
        };
        nodes.append(trees);
        nodes.leaves.shrink_to_fit();
        nodes.path_lengths.shrink_to_fit();
        Ok(nodes)
    }

    fn append(&mut self, trees: &[ExtendedTree]) {
        let mut leaf_indices = LeafIndices::new();
        // The nodes of one level, with their trees. A split is placed when its level is, so the level below follows.
        let mut level = Vec::new();
        let mut place = |nodes: &mut Self, below: &mut Vec<_>, first: usize, tree: usize, node: NodeRef| {
            if node.is_split() {
                below.push((tree, node.index()));
                return NodeRef::split(first + below.len() - 1);
            }
            let leaf = trees[tree].leaves[node.index()];
            let (index, is_new) = leaf_indices.insert(leaf);
            if is_new {
                nodes.leaves.push(leaf);
                nodes.path_lengths.push(f64::from(leaf.depth) + average_path_length(leaf.n_samples));
            }
            NodeRef::leaf(index)
        };
        for (tree, ExtendedTree { root, .. }) in trees.iter().enumerate() {
            let root = place(self, &mut level, 0, tree, *root);
            self.roots.push(root);
        }
        while !level.is_empty() {
            let first_below = self.splits.len() + level.len();
            let mut below = Vec::with_capacity(2 * level.len());
            for (tree, at) in level {
                let mut split = trees[tree].splits[at];
                split.children =
                    split.children.map(|child| place(self, &mut below, first_below, tree, child));
                self.splits.push(split);
                let further = &trees[tree].further_terms[at * self.n_further..][..self.n_further];
                self.further_terms.extend_from_slice(further);
            }
            level = below;
        }
    }

    /// The trees as arrays.
    pub fn trees(&self) -> impl ExactSizeIterator<Item = ExtendedTreeArrays> {
        self.roots.iter().map(|&root| {
            ExtendedTreeArrays::new(root, &self.splits, &self.further_terms, &self.leaves, self.width)
        })
    }

    #[inline(always)]
    pub fn split(&self, at: NodeRef) -> &Split {
        &self.splits[at.index()]
    }

    /// The terms of each split after its first [`TERMS`], by [`TERMS`]: the terms of a split, in order.
    #[inline(always)]
    pub fn further_terms(&self, at: NodeRef) -> &[Terms] {
        &self.further_terms[at.index() * self.n_further..][..self.n_further]
    }
}
