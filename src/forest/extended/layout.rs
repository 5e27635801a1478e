//! The nodes of a forest in the order of the walks: the splits of all trees, level by level.
//!
//! A row walks down all trees at once, see [`walk`](super::walk). The first levels of all trees are adjacent, and the
//! record of a split is one line of the cache, or two for terms of any weight.

use super::super::Error;
use super::super::depth::{Leaf, LeafIndices, average_path_length};
use super::terms::{FullTerms, ShortTerms, TERMS};
use super::tree::{ExtendedTree, ExtendedTreeArrays, MAX_INDEX, NodeRef, Split};
use std::borrow::Cow;

/// See the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SplitsByLevel {
    pub roots: Vec<NodeRef>,
    pub splits: Splits,
    /// The terms of each split after its first [`TERMS`], by [`TERMS`].
    further_terms: Vec<FullTerms>,
    /// Entries of `further_terms` of a split.
    pub n_further: usize,
    /// Terms of a split.
    width: usize,
    /// Each pair of depth and count once.
    leaves: Vec<Leaf>,
    /// Path length of each of `leaves`.
    pub path_lengths: Vec<f64>,
}

/// The splits, all in one form.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Splits {
    Short(Vec<Split<ShortTerms>>),
    Full(Vec<Split<FullTerms>>),
}

impl Splits {
    /// The splits in the shorter form, if all have it.
    fn new(splits: Vec<Split<FullTerms>>) -> Self {
        let to_short = |&Split { terms, plane, children }: &Split<FullTerms>| {
            Some(Split { terms: ShortTerms::from_full(&terms)?, plane, children })
        };
        let mut short = Vec::with_capacity(splits.len());
        short.extend(splits.iter().map_while(to_short));
        if short.len() == splits.len() { Self::Short(short) } else { Self::Full(splits) }
    }

    /// The splits in the longer form.
    pub fn to_full(&self) -> Cow<'_, [Split<FullTerms>]> {
        let to_full = |&Split { terms, plane, children }: &Split<ShortTerms>| Split {
            terms: terms.to_full(),
            plane,
            children,
        };
        match self {
            Self::Short(splits) => splits.iter().map(to_full).collect(),
            Self::Full(splits) => splits.into(),
        }
    }
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
            splits: Splits::Full(Vec::new()),
            further_terms: Vec::with_capacity(n_splits * n_further),
            n_further,
            width,
            leaves: Vec::new(),
            path_lengths: Vec::new(),
        };
        let mut splits = Vec::with_capacity(n_splits);
        nodes.append(trees, &mut splits);
        nodes.splits = Splits::new(splits);
        nodes.leaves.shrink_to_fit();
        nodes.path_lengths.shrink_to_fit();
        Ok(nodes)
    }

    fn append(&mut self, trees: &[ExtendedTree], splits: &mut Vec<Split<FullTerms>>) {
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
            let first_below = splits.len() + level.len();
            let mut below = Vec::with_capacity(2 * level.len());
            for (tree, at) in level {
                let mut split = trees[tree].splits[at];
                split.children =
                    split.children.map(|child| place(self, &mut below, first_below, tree, child));
                splits.push(split);
                let further = &trees[tree].further_terms[at * self.n_further..][..self.n_further];
                self.further_terms.extend_from_slice(further);
            }
            level = below;
        }
    }

    /// The trees as arrays.
    pub fn trees(&self) -> impl ExactSizeIterator<Item = ExtendedTreeArrays> {
        let splits = self.splits.to_full();
        self.roots.iter().map(move |&root| {
            ExtendedTreeArrays::new(root, &splits, &self.further_terms, &self.leaves, self.width)
        })
    }

    /// The terms of each split after its first [`TERMS`], by [`TERMS`]: the terms of a split, in order.
    #[inline(always)]
    pub fn further_terms(&self, at: NodeRef) -> &[FullTerms] {
        &self.further_terms[at.index() * self.n_further..][..self.n_further]
    }
}
