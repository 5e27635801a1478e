//! The extended isolation forest (Hariri, Carrasco Kind, Brunner 2019): slanted cuts.
//!
//! A split mixes several columns with random weights and cuts the mixture `v`, so a tree of eight levels
//! sees many columns and how they go together; an axis-parallel one sees eight of them, one by one. The
//! columns must be of one scale, so the table holds standardised values.
//!
//! **A row is scored as if it had been in the sample.** A plain tree sends a row just beyond the greatest
//! training value and one a thousand times as far out to the same leaf. Had the row been there when the
//! tree grew, the range to cut in would have reached out to it, and a cut on that stretch would have
//! isolated it at once. So each split keeps the range `[low, high]` of its rows, a row `x` outside of it
//! ends there with probability `x / (high - low + x)`, and the path length is the expectation. Inside of
//! all ranges it is the ordinary path length.
//!
//! **Speed.** A row costs 100 trees x 8 levels x 16 multiplications, and the operands of a split lie side
//! by side in memory. Its sum is a chain of additions that wait for each other, hence [`LANES`] walks at
//! once: 1.4 times faster than one, and no more with ten. Measured (`cargo bench --bench forest --
//! extended`, 80 columns, 256 samples, plain x86-64 build on a shared EPYC core, the fastest of 100 runs):
//! 16 us a row.
//!
//! **Coefficients are `f32` values**: plenty for a random number, and half of what the forest needs in
//! memory. Sums are `f64`.
//!
//! Not taken: several partial sums a split (an order of additions that every reader of a model would have
//! to repeat).

mod fit;
mod tree;

use std::num::NonZeroUsize;

use super::depth::score_from_path_lengths;
use super::standard::forest_error;
use super::{Error, MaxSamples, Table, average_path_length};
use tree::ExtendedNode;
pub use tree::{ExtendedTree, ExtendedTreeArrays};

/// Walks side by side: enough that their sums of a split overlap.
const LANES: usize = 4;

/// The score below which a row is anomalous: half the range, as the paper has it for plain forests.
const OFFSET: f64 = -0.5;

/// Parameters of an extended isolation forest.
#[derive(Clone, Debug, PartialEq)]
pub struct ExtendedParams {
    /// Number of trees. 50, half of the plain kind's.
    pub n_estimators: NonZeroUsize,
    /// Rows each tree is grown from.
    pub max_samples: MaxSamples,
    /// Columns that a split mixes, drawn with replacement; at most as many as there are. 16: on labelled
    /// servers 8 found fewer incidents and 32 no more.
    pub ndim: NonZeroUsize,
    /// Seed. Equal seeds, parameters and tables give equal forests, bit for bit, on any number of
    /// threads.
    pub random_state: u64,
}

impl Default for ExtendedParams {
    fn default() -> Self {
        Self {
            // Twice as many find no more (VUS-PR 0.539 instead of 0.535 on labelled servers, the same recall), and
            // take twice the memory: half of it is what lets one machine hold ten thousand groups.
            n_estimators: NonZeroUsize::new(50).expect("50 is not zero"),
            max_samples: MaxSamples::Auto,
            ndim: NonZeroUsize::new(16).expect("16 is not zero"),
            random_state: 0,
        }
    }
}

/// A fitted extended isolation forest. From [`ExtendedParams::fit`] or, for trees from a file, from
/// [`ExtendedForest::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct ExtendedForest {
    trees: Vec<ExtendedTree>,
    n_features: usize,
    max_samples: u64,
    /// What a row's path lengths are divided by: number of trees times `c(max_samples)`.
    normalizer: f64,
}

impl ExtendedForest {
    /// A forest of checked trees. `max_samples` is the number of rows that each was meant to be grown
    /// from.
    ///
    /// # Errors
    /// [`Error::Forest`] if there are no trees, they were checked for rows of different widths, or
    /// `max_samples` is 0.
    pub fn new(trees: Vec<ExtendedTree>, max_samples: u64) -> Result<Self, Error> {
        let Some(first) = trees.first() else {
            return Err(forest_error("n_estimators", 0, "at least 1"));
        };
        if max_samples == 0 {
            return Err(forest_error("max_samples", 0, "at least 1"));
        }
        let n_features = first.n_features;
        if let Some(tree) = trees.iter().find(|tree| tree.n_features != n_features) {
            return Err(forest_error(
                "n_features",
                tree.n_features,
                format_args!("{n_features} in all trees"),
            ));
        }
        let unit = trees.len() as f64 * average_path_length(max_samples);
        Ok(Self { trees, n_features, max_samples, normalizer: unit })
    }

    /// Number of values of a row.
    pub fn n_features(&self) -> usize {
        self.n_features
    }

    /// Number of trees.
    pub fn n_estimators(&self) -> usize {
        self.trees.len()
    }

    /// Rows that each tree was meant to be grown from.
    pub fn max_samples(&self) -> u64 {
        self.max_samples
    }

    /// The trees as plain arrays, for files.
    pub fn trees(&self) -> impl ExactSizeIterator<Item = ExtendedTreeArrays> {
        self.trees.iter().map(ExtendedTree::to_arrays)
    }

    /// Score of one row of standardised values, shape `[n_features]`: minus the anomaly score `f`, so
    /// that both kinds of forest read alike. In `[-1, 0)`, lower is more anomalous. NaN counts as 0, the
    /// usual value, and an infinity as the greatest finite value.
    ///
    /// # Panics
    /// If the row has another width than the forest.
    pub fn score_samples(&self, row: &[f32]) -> f64 {
        assert_eq!(row.len(), self.n_features, "a row has as many values as the forest has features");
        let row: Vec<f64> = row.iter().map(|value| to_finite(*value)).collect();
        self.score_finite(&row)
    }

    /// `score_samples` plus one half. Negative is anomalous.
    ///
    /// # Panics
    /// If the row has another width than the forest.
    pub fn decision(&self, row: &[f32]) -> f64 {
        self.score_samples(row) - OFFSET
    }

    /// [`score_samples`](Self::score_samples) of every row, into `out`, shape `[n_rows]`.
    ///
    /// # Panics
    /// If the table has another width than the forest, or `out` not one place per row.
    pub fn score_table(&self, table: &Table, out: &mut [f64]) {
        assert_eq!(out.len(), table.n_rows(), "one score per row");
        assert_eq!(table.n_features(), self.n_features, "a table has as many features as the forest");
        let mut row = vec![0.0; self.n_features];
        for (number, score) in out.iter_mut().enumerate() {
            for (feature, value) in row.iter_mut().enumerate() {
                *value = to_finite(table.column(feature)[number]);
            }
            *score = self.score_finite(&row);
        }
    }

    fn score_finite(&self, row: &[f64]) -> f64 {
        let mut sum = 0.0;
        for trees in self.trees.chunks(LANES) {
            // Lanes without a tree of their own repeat the first.
            let mut walks = [Walk::new(&trees[0]); LANES];
            for (walk, tree) in walks.iter_mut().zip(trees) {
                *walk = Walk::new(tree);
            }
            let levels = trees.iter().map(|tree| tree.depth).max().unwrap_or(0);
            for level in 1..=levels {
                for walk in &mut walks {
                    walk.step(row, f64::from(level));
                }
            }
            for walk in &walks[..trees.len()] {
                sum += walk.path_length();
            }
        }
        score_from_path_lengths(sum, self.normalizer)
    }
}

/// A row on its way down a tree.
#[derive(Clone, Copy)]
struct Walk<'t> {
    tree: &'t ExtendedTree,
    at: u32,
    /// What the ends on the way add to the expected path length.
    partial_path_length: f64,
    /// The probability that no cut isolated the row on the way.
    reach_probability: f64,
}

impl<'t> Walk<'t> {
    fn new(tree: &'t ExtendedTree) -> Self {
        Self { tree, at: 0, partial_path_length: 0.0, reach_probability: 1.0 }
    }

    /// Goes down to `level`, counted in edges from the root. Stays in a leaf.
    #[inline(always)]
    fn step(&mut self, row: &[f64], level: f64) {
        let ExtendedNode::Split { left, terms, cut, low, high } = self.tree.nodes[self.at as usize] else {
            return;
        };
        let value = self.tree.project(terms, row);
        let distance_outside = (low - value).max(value - high).max(0.0);
        let exit_probability = distance_outside / (high - low + distance_outside);
        self.partial_path_length += self.reach_probability * exit_probability * level;
        self.reach_probability *= 1.0 - exit_probability;
        self.at = left + u32::from(value > cut);
    }

    fn path_length(&self) -> f64 {
        match self.tree.nodes[self.at as usize] {
            ExtendedNode::Leaf { path_length, .. } => {
                self.partial_path_length + self.reach_probability * path_length
            }
            ExtendedNode::Split { .. } => {
                unreachable!("a walk takes as many steps as the deepest tree has levels")
            }
        }
    }
}

/// A value that a mixture can hold: NaN would blind every split that draws its column.
fn to_finite(value: f32) -> f64 {
    if value.is_nan() { 0.0 } else { f64::from(value.clamp(f32::MIN, f32::MAX)) }
}

#[cfg(test)]
mod tests;
