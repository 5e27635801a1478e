//! The forest and its scores.
//!
//! A walk down one tree is a chain of loads that wait for each other, and a mispredicted branch at
//! every level. So no step branches (see `tree`), and a row walks down [`LANES`] trees side by side: a
//! group always takes as many steps as its deepest tree has levels, and early leaves wait.
//!
//! Measured (`cargo bench --bench forest`, 20 features, 256 samples, plain x86-64 build on a shared
//! EPYC core): about 1 us a row, five times less than the plain walk. A table is scored row by row on
//! the same path. Not taken, because no faster than that: blocks of rows through one group of trees
//! after the other, and several rows side by side down one tree.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::depth::score_from_path_lengths;
use super::tree::{self, Leaf, MAX_LEAVES, TreeNode};
use super::{Error, Table, Tree, TreeArrays, average_path_length};

/// Trees side by side: enough to hide the latency of one walk in the others, and a divisor of the
/// default 100 trees, so that no lane idles. 8 and 16 were slower, 20 was level.
const LANES: usize = 10;

/// A fitted isolation forest. From [`ForestParams::fit`](super::ForestParams::fit) or, for trees grown
/// elsewhere, from [`Forest::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct Forest {
    /// All trees' nodes, one tree after the other.
    nodes: Vec<TreeNode>,
    /// Where each tree starts in them, and then the end of the last.
    starts: Vec<usize>,
    /// The trees by [`LANES`], in order.
    lane_groups: Vec<LaneGroup>,
    /// What the leaf nodes' numbers mean, each pair of depth and count once.
    leaves: Vec<Leaf>,
    /// Path length of each of `leaves`.
    path_lengths: Vec<f64>,
    n_features: usize,
    max_samples: u64,
    /// What a row's path lengths are divided by: number of trees times `c(max_samples)`.
    normalizer: f64,
    offset: f64,
    /// Least and greatest value of each feature in training; empty for a forest grown elsewhere.
    ranges: Vec<[f32; 2]>,
}

/// Trees that a row walks down side by side.
#[derive(Clone, Debug, PartialEq)]
struct LaneGroup {
    n_trees: usize,
    /// Where each tree starts. Lanes without a tree of their own repeat the first.
    starts: [usize; LANES],
    /// Levels of the deepest tree.
    depth: u32,
}

impl Forest {
    /// A forest of checked trees.
    ///
    /// - `max_samples`: rows that each tree was meant to be grown from (scikit-learn's `max_samples_`);
    /// - `offset`: the score below which a row is anomalous (scikit-learn's `offset_`), −0.5 if nothing
    ///   better is known.
    ///
    /// # Errors
    /// [`Error::Forest`] if there are no trees, they were checked for rows of different widths,
    /// `max_samples` is 0, `offset` is not finite, or the trees have over four million different leaves.
    pub fn new(trees: &[Tree], max_samples: u64, offset: f64) -> Result<Self, Error> {
        let Some(first) = trees.first() else {
            return Err(forest_error("n_estimators", 0, "at least 1"));
        };
        if max_samples == 0 {
            return Err(forest_error("max_samples", 0, "at least 1"));
        }
        let mut forest = Self {
            nodes: Vec::with_capacity(trees.iter().map(|tree| tree.nodes.len()).sum()),
            starts: Vec::with_capacity(trees.len() + 1),
            lane_groups: Vec::with_capacity(trees.len().div_ceil(LANES)),
            leaves: Vec::new(),
            path_lengths: Vec::new(),
            n_features: first.n_features,
            max_samples,
            normalizer: trees.len() as f64 * average_path_length(max_samples),
            offset: -0.5,
            ranges: Vec::new(),
        };
        forest.set_offset(offset)?;

        let mut leaf_indices = HashMap::new();
        for trees in trees.chunks(LANES) {
            let mut group = LaneGroup { n_trees: trees.len(), starts: [forest.nodes.len(); LANES], depth: 0 };
            for (tree, start) in trees.iter().zip(&mut group.starts) {
                if tree.n_features != forest.n_features {
                    let limit = format!("{} in all trees", forest.n_features);
                    return Err(forest_error("n_features", tree.n_features, limit));
                }
                *start = forest.nodes.len();
                group.depth = group.depth.max(tree.depth);
                forest.append_tree(tree, &mut leaf_indices)?;
            }
            forest.lane_groups.push(group);
        }
        forest.starts.push(forest.nodes.len());
        Ok(forest)
    }

    /// Appends a tree, with its leaves numbered over the whole forest.
    fn append_tree(&mut self, tree: &Tree, leaf_indices: &mut HashMap<Leaf, usize>) -> Result<(), Error> {
        self.starts.push(self.nodes.len());
        for &node in &tree.nodes {
            if !node.is_leaf() {
                self.nodes.push(node);
                continue;
            }
            let leaf = tree.leaves[node.leaf_index()];
            let leaf_index = match leaf_indices.entry(leaf) {
                Entry::Occupied(existing) => *existing.get(),
                Entry::Vacant(new) => {
                    if self.leaves.len() == MAX_LEAVES {
                        let limit = format!("at most {MAX_LEAVES}");
                        return Err(forest_error("number of different leaves", MAX_LEAVES + 1, limit));
                    }
                    self.leaves.push(leaf);
                    self.path_lengths.push(path_length(leaf));
                    *new.insert(self.leaves.len() - 1)
                }
            };
            self.nodes.push(node.with_leaf_index(leaf_index));
        }
        Ok(())
    }

    pub(super) fn set_offset(&mut self, offset: f64) -> Result<(), Error> {
        if !offset.is_finite() {
            return Err(forest_error("offset", offset, "finite"));
        }
        self.offset = offset;
        Ok(())
    }

    /// Tells the forest the least and the greatest value of each feature in training, shape
    /// `[n_features]`, so that [`score_beyond`](Self::score_beyond) can see how far a row lies outside.
    ///
    /// # Errors
    /// [`Error::Forest`] if there is not one range per feature, or one is not finite or empty.
    pub fn with_ranges(mut self, ranges: Vec<[f32; 2]>) -> Result<Self, Error> {
        if ranges.len() != self.n_features {
            return Err(forest_error("number of ranges", ranges.len(), self.n_features));
        }
        if let Some([least, greatest]) =
            ranges.iter().find(|[a, b]| !(a.is_finite() && b.is_finite() && a <= b))
        {
            return Err(forest_error("range", format_args!("{least} to {greatest}"), "finite and ascending"));
        }
        self.ranges = ranges;
        Ok(self)
    }

    /// Least and greatest value of each feature in training, shape `[n_features]`; empty if unknown.
    pub fn ranges(&self) -> &[[f32; 2]] {
        &self.ranges
    }

    /// Number of values of a row.
    pub fn n_features(&self) -> usize {
        self.n_features
    }

    /// Number of trees.
    pub fn n_estimators(&self) -> usize {
        self.starts.len() - 1
    }

    /// Rows that each tree was meant to be grown from, scikit-learn's `max_samples_`.
    pub fn max_samples(&self) -> u64 {
        self.max_samples
    }

    /// The score below which a row is anomalous, scikit-learn's `offset_`.
    pub fn offset(&self) -> f64 {
        self.offset
    }

    /// The trees as plain arrays, for files. Thresholds are `f32` values, whatever they were read from.
    pub fn trees(&self) -> impl ExactSizeIterator<Item = TreeArrays> {
        self.starts.windows(2).map(|ends| tree::to_arrays(&self.nodes[ends[0]..ends[1]], &self.leaves))
    }

    /// Score of one row, shape `[n_features]`: scikit-learn's `score_samples`, minus the paper's anomaly
    /// score (Liu, Ting, Zhou 2008, eq. 2). In `[-1, 0)`, lower is more anomalous. NaN goes where each
    /// split sends missing values; infinities are compared like any value.
    ///
    /// # Panics
    /// If the row has another width than the forest.
    pub fn score_samples(&self, row: &[f32]) -> f64 {
        assert_eq!(row.len(), self.n_features, "a row has as many values as the forest has features");
        let sum = if has_nan(row) {
            self.path_length(row, TreeNode::next)
        } else {
            self.path_length(row, TreeNode::next_not_nan)
        };
        score_from_path_lengths(sum, self.normalizer)
    }

    /// `score_samples` minus the offset: scikit-learn's `decision_function`. Negative is anomalous.
    ///
    /// # Panics
    /// If the row has another width than the forest.
    pub fn decision(&self, row: &[f32]) -> f64 {
        self.score_samples(row) - self.offset
    }

    /// [`score_samples`](Self::score_samples) of a row, lower the further it lies outside of the range
    /// of training. Inside of it, and for a forest without ranges, the two are equal.
    ///
    /// Plain trees cannot tell a row just above the greatest training value from one a thousand times
    /// as high: both go right at every cut, to the same leaf. Had the row been in training, cuts would
    /// have fallen on the stretch between it and the others too, in proportion to its length, and
    /// isolated it there. So at each split on a feature whose value lies `x` beyond a range of width
    /// `w`, the row ends with probability `x / (w + x)`, and the path length is the expectation. (The
    /// idea of scoring a row as if it had been in the sample; with the range of the training, not of
    /// the node, so that a row inside of it keeps scikit-learn's score.)
    ///
    /// # Panics
    /// If the row has another width than the forest.
    pub fn score_extrapolated(&self, row: &[f32]) -> f64 {
        assert_eq!(row.len(), self.n_features, "a row has as many values as the forest has features");
        let exit_probabilities: Vec<f64> =
            self.ranges.iter().zip(row).map(|(range, value)| exit_probability(*range, *value)).collect();
        if exit_probabilities.iter().all(|exit_probability| *exit_probability == 0.0) {
            return self.score_samples(row);
        }
        let starts = &self.starts[..self.n_estimators()];
        let sum =
            starts.iter().map(|start| self.expected_path_length(*start, row, &exit_probabilities)).sum();
        score_from_path_lengths(sum, self.normalizer)
    }

    fn expected_path_length(&self, start: usize, row: &[f32], exit_probabilities: &[f64]) -> f64 {
        let (mut expected, mut reach_probability, mut depth) = (0.0, 1.0, 1.0);
        let mut node = self.nodes[start];
        while !node.is_leaf() {
            let feature = node.feature();
            expected += reach_probability * exit_probabilities[feature] * depth;
            reach_probability *= 1.0 - exit_probabilities[feature];
            depth += 1.0;
            node = self.nodes[start + node.next(row[feature])];
        }
        expected + reach_probability * self.path_lengths[node.leaf_index()]
    }

    /// [`score_samples`](Self::score_samples) of every row, into `out`, shape `[n_rows]`.
    ///
    /// # Panics
    /// If the table has another width than the forest, or `out` not one place per row.
    pub fn score_table(&self, table: &Table, out: &mut [f64]) {
        assert_eq!(out.len(), table.n_rows(), "one score per row");
        self.score_rows(table, 0, out);
    }

    /// The rows of a table from `first` on, as many as there are places in `out`.
    pub(super) fn score_rows(&self, table: &Table, first: usize, out: &mut [f64]) {
        assert_eq!(table.n_features(), self.n_features, "a table has as many features as the forest");
        let mut row = vec![0.0; self.n_features];
        for (number, score) in (first..).zip(out) {
            table.copy_row(number, &mut row);
            *score = self.score_samples(&row);
        }
    }

    /// Sum of the path lengths of a row, in the order of the trees.
    #[inline(always)]
    fn path_length(&self, row: &[f32], next: impl Fn(TreeNode, f32) -> usize) -> f64 {
        let mut sum = 0.0;
        for group in &self.lane_groups {
            let mut at = group.starts;
            for _ in 0..group.depth {
                for (at, start) in at.iter_mut().zip(&group.starts) {
                    let node = self.nodes[*at];
                    *at = start + next(node, row[node.feature()]);
                }
            }
            for &leaf in &at[..group.n_trees] {
                sum += self.path_lengths[self.nodes[leaf].leaf_index()];
            }
        }
        sum
    }
}

/// Edges to the leaf, and those of the subtree that was not grown below it. scikit-learn counts nodes
/// on the way and takes one off again; so do we, to round where it rounds.
fn path_length(leaf: Leaf) -> f64 {
    f64::from(leaf.depth) + 1.0 + average_path_length(leaf.n_samples) - 1.0
}

/// A range counts as at least this share of its greatest magnitude wide: a feature that hardly moved in
/// training is not far out when it moves by a hundredth.
const MIN_RELATIVE_WIDTH: f64 = 0.1;

/// The probability that a cut, uniform between the range's far end and the value, falls beyond the
/// range; 0 inside of it and for NaN.
fn exit_probability([least, greatest]: [f32; 2], value: f32) -> f64 {
    let (least, greatest, value) = (f64::from(least), f64::from(greatest), f64::from(value));
    let distance_outside = (least - value).max(value - greatest);
    if distance_outside == f64::INFINITY {
        1.0
    } else if distance_outside > 0.0 {
        let width = (greatest - least).max(MIN_RELATIVE_WIDTH * least.abs().max(greatest.abs()));
        distance_outside / (width + distance_outside)
    } else {
        0.0
    }
}

fn has_nan(values: &[f32]) -> bool {
    // No early exit: that lets the compiler test several values at once.
    values.iter().fold(false, |found, value| found | value.is_nan())
}

pub(super) fn forest_error(field: &'static str, value: impl ToString, limit: impl ToString) -> Error {
    Error::Forest { field, value: value.to_string(), limit: limit.to_string() }
}

#[cfg(test)]
mod tests;
