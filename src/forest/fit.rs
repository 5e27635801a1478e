//! Fits the standard forest.
//!
//! A tree is a function of the table, the parameters, the seed and its own number. Threads share nothing, and the
//! result does not depend on their number. A tree holds the positions of its rows in the columns of the table; only
//! the values of one feature in one node are copied.
//!
//! Not taken: sorted columns (a tree has few rows), recursion (a stack of four words per pending node is as short),
//! a thread pool (a fit takes milliseconds).

use std::num::NonZeroUsize;
use std::ops::Range;

use super::depth::Leaf;
use super::rng::Rng;
use super::sampling::{RowSampler, Sampling, check_within};
use super::table::{extend_range, extend_range_by_one};
use super::threads::map_on_threads;
use super::tree::{MissingDirection, TreeBuilder, round_down};
use super::{Contamination, Error, Forest, ForestParams, Table, Tree};
use crate::stats::quantile;

/// Largest variation of a feature that counts as constant within a node: scikit-learn's `FEATURE_THRESHOLD`
/// (`sklearn/tree/_partitioner.pxd`), added in `f32` as there. The threshold is absolute, so features of magnitude
/// 1e-7 must be scaled up.
const FEATURE_THRESHOLD: f32 = 1e-7;

impl ForestParams {
    /// Fits a forest to a table, shape `[n_rows, n_features]`, on up to `threads` threads (Liu, Ting,
    /// Zhou 2008, algorithms 1 and 2; splits as in scikit-learn's random splitter).
    ///
    /// # Errors
    /// - [`Error::Empty`] for a table without rows or features;
    /// - [`Error::NotFinite`] for a NaN or an infinity in the table;
    /// - [`Error::Unsuitable`] if `max_samples` resolves to no row or more than
    ///   [`MAX_SAMPLES`](super::MAX_SAMPLES), `max_features` to more features than the table has, or the table has
    ///   more than [`MAX_FEATURES`](super::MAX_FEATURES) features.
    pub fn fit(&self, table: &Table, threads: NonZeroUsize) -> Result<Forest, Error> {
        let plan = FitPlan::new(self, table)?;
        let trees: Vec<Tree> = map_on_threads(self.n_estimators.get(), threads, |tree_numbers| {
            let mut grower = TreeGrower::new(&plan);
            tree_numbers.map(|tree_number| grower.grow(tree_number)).collect::<Vec<Tree>>()
        })
        .into_iter()
        .flatten()
        .collect();

        let mut forest = Forest::new(&trees, plan.sampling.max_samples as u64, -0.5)?;
        if let Contamination::Share(share) = self.contamination {
            let mut scores: Vec<f64> = map_on_threads(table.n_rows(), threads, |rows| {
                let mut scores = vec![0.0; rows.len()];
                forest.score_rows(table, rows.start, &mut scores);
                scores
            })
            .concat();
            forest.set_offset(quantile(&mut scores, share.get()))?;
        }
        forest.with_ranges((0..table.n_features()).map(|feature| table.column(feature).range()).collect())
    }
}

/// The parameters, resolved for a checked table.
struct FitPlan<'t> {
    table: &'t Table<'t>,
    sampling: Sampling,
    max_features: usize,
    seed: u64,
}

impl<'t> FitPlan<'t> {
    fn new(params: &ForestParams, table: &'t Table<'t>) -> Result<Self, Error> {
        let sampling = Sampling::new(table, params.max_samples, params.bootstrap)?;
        let max_features = params.max_features.resolve(table.n_features());
        check_within(table, "max_features", max_features, table.n_features())?;
        Ok(Self { table, sampling, max_features, seed: params.random_state })
    }
}

/// Grows trees one after another, with reused buffers.
struct TreeGrower<'p> {
    plan: &'p FitPlan<'p>,
    rng: Rng,
    /// The features of the tree; those constant in the current node come first.
    features: Vec<usize>,
    rows: RowSampler,
    /// Values of the drawn feature in the current node, shape `[rows of the node]`.
    values: Vec<f32>,
    stack: Vec<PendingNode>,
}

/// A node that has a place in the tree and is not yet split.
struct PendingNode {
    /// Index in the tree.
    at: usize,
    /// Its part of [`TreeGrower::rows`].
    rows: Range<usize>,
    depth: u32,
    /// Number of [`TreeGrower::features`] known to be constant in the node.
    n_constant: usize,
}

impl<'p> TreeGrower<'p> {
    fn new(plan: &'p FitPlan<'p>) -> Self {
        Self {
            plan,
            rng: Rng::new(plan.seed, 0),
            features: Vec::with_capacity(plan.table.n_features()),
            rows: RowSampler::new(plan.sampling),
            values: vec![0.0; plan.sampling.max_samples],
            stack: Vec::new(),
        }
    }

    /// Grows the tree of a number.
    fn grow(&mut self, tree_number: usize) -> Tree {
        self.rng = Rng::new(self.plan.seed, tree_number as u64);
        self.draw_features();
        let rows = self.rows.draw(&mut self.rng);

        let mut tree = TreeBuilder::new(self.plan.table.n_features(), 2 * rows.len() - 1);
        self.stack.push(PendingNode { at: TreeBuilder::ROOT, rows, depth: 0, n_constant: 0 });
        while let Some(mut node) = self.stack.pop() {
            let Some((feature, threshold)) = self.draw_split(&mut node) else {
                let n_samples = node.rows.len() as u64;
                tree.set_leaf(node.at, Leaf { depth: node.depth, n_samples });
                continue;
            };
            let [left, right] = self.rows.split(&node.rows, &self.values, threshold);
            // Training has no missing values, so missing values go to the larger side.
            let missing =
                if left.len() > right.len() { MissingDirection::Left } else { MissingDirection::Right };
            let [to_left, to_right] = tree.set_split(node.at, feature, threshold, missing);
            let (depth, n_constant) = (node.depth + 1, node.n_constant);
            self.stack.push(PendingNode { at: to_right, rows: right, depth, n_constant });
            self.stack.push(PendingNode { at: to_left, rows: left, depth, n_constant });
        }
        tree.finish()
    }

    /// Draws `max_features` of the features without replacement, by a partial shuffle.
    fn draw_features(&mut self) {
        let n_features = self.plan.table.n_features();
        self.features.clear();
        self.features.extend(0..n_features);
        if self.plan.max_features < n_features {
            for position in 0..self.plan.max_features {
                let swap_with = position + self.rng.next_below(n_features - position);
                self.features.swap(position, swap_with);
            }
            self.features.truncate(self.plan.max_features);
        }
    }

    /// Draws a feature that varies in the node, and a cut between its least value (inclusive) and its greatest value
    /// (exclusive). Returns `None` for a leaf. Fills `values` with the values of the feature, and updates the number
    /// of constant features in the node for its children.
    fn draw_split(&mut self, node: &mut PendingNode) -> Option<(usize, f32)> {
        if node.depth >= self.plan.sampling.max_depth() || node.rows.len() < 2 {
            return None;
        }
        while node.n_constant < self.features.len() {
            let position = node.n_constant + self.rng.next_below(self.features.len() - node.n_constant);
            let feature = self.features[position];
            let [min, max] = self.load_values(feature, &node.rows);
            if max <= min + FEATURE_THRESHOLD {
                self.features.swap(position, node.n_constant);
                node.n_constant += 1;
                continue;
            }
            let (low, high) = (f64::from(min), f64::from(max));
            let cut = low + self.rng.next_uniform() * (high - low);
            return Some((feature, round_down(if cut == high { low } else { cut })));
        }
        None
    }

    /// Copies a feature's values in the node to `values`. Returns the least and the greatest value.
    fn load_values(&mut self, feature: usize, rows: &Range<usize>) -> [f32; 2] {
        let column = self.plan.table.column(feature).memory();
        let (position_chunks, positions) = self.rows.positions(rows).as_chunks::<8>();
        let (chunks, values) = self.values[..rows.len()].as_chunks_mut();
        let mut range = [f32::INFINITY, f32::NEG_INFINITY];
        for (values, positions) in chunks.iter_mut().zip(position_chunks) {
            *values = positions.map(|position| column[position as usize]);
            extend_range(&mut range, values);
        }
        for (value, position) in values.iter_mut().zip(positions) {
            *value = column[*position as usize];
            extend_range_by_one(&mut range, *value);
        }
        range
    }
}

#[cfg(test)]
mod tests;
