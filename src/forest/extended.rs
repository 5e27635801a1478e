//! The extended isolation forest (Hariri, Carrasco Kind, Brunner 2019), with oblique splits.
//!
//! A split projects a row on several columns with random weights, and compares the projection with a cut. A tree of
//! eight levels thereby depends on many columns jointly; an axis-parallel tree depends on at most eight, one at a
//! time. The columns must have one scale, so the table holds standardised values.
//!
//! **A row is scored as if it had been in the sample.** An axis-parallel tree sends a row just beyond the greatest
//! training value and one a thousand times as far to the same leaf. Had the row been in the sample, the range of the
//! cut would have included the row, and a cut in the added part would have isolated it. Each split therefore keeps
//! the range `[low, high]` of the projections of its rows. A row at distance `x` outside of the range ends there with
//! probability `x / (high - low + x)`, and the path length is the expectation. Inside of all ranges it is the
//! ordinary path length.
//!
//! **Speed.** With 50 trees, a row costs 350 steps of 16 multiplications. All that a step reads is one aligned record
//! ([`tree`]), all trees take their step together, and the record of the next step is requested beforehand ([`walk`]).
//! Measured (`cargo bench --bench forest -- extended`, 80 columns, 256 samples, a shared EPYC core): 0.6 of the time of
//! one tree after another, and a quarter for a forest in the main memory, as it is for a row a minute of each of a
//! thousand hosts. With AVX-512, integers replace most multiplications, in two thirds of that time. The rows of a table
//! walk in sets ([`row_sets`]).
//!
//! **Coefficients are `f32` values** in files, and multiples of 1/32 where they are drawn ([`terms`]): precise enough for a
//! random direction, and less memory. Sums are `f64`.
//!
//! Not taken: several partial sums per split. Every reader of a model would have to repeat that order of additions.

mod fit;
mod layout;
mod row_sets;
mod terms;
mod tree;
mod walk;

use std::num::NonZeroUsize;

use super::depth::score_from_path_lengths;
use super::{Error, MaxSamples, Table, average_path_length};
use layout::SplitsByLevel;
use row_sets::{BLOCK, Block, MIN_ROWS};
pub use tree::{ExtendedTree, ExtendedTreeArrays};

/// The score below which a row is anomalous: half of the range, as in the paper on isolation forests.
const OFFSET: f64 = -0.5;

/// Parameters of an extended isolation forest.
#[derive(Clone, Debug, PartialEq)]
pub struct ExtendedParams {
    /// Number of trees. 50, half of the standard forest's.
    pub n_estimators: NonZeroUsize,
    /// Rows that each tree is grown from.
    pub max_samples: MaxSamples,
    /// Columns that a split projects, drawn with replacement; at most the width of the table (isotree's `ndim`). 16:
    /// on labelled servers 8 found fewer incidents, and 32 no more.
    pub ndim: NonZeroUsize,
    /// Seed. Equal seeds, parameters and tables give equal forests, bit for bit, on any number of
    /// threads.
    pub random_state: u64,
}

impl Default for ExtendedParams {
    fn default() -> Self {
        Self {
            // 100 trees find no more incidents (VUS-PR 0.539 instead of 0.535 on labelled servers, equal recall) and
            // take twice the memory, which limits a machine to half of the ten thousand groups.
            n_estimators: NonZeroUsize::new(50).expect("50 is not zero"),
            max_samples: MaxSamples::Auto,
            ndim: NonZeroUsize::new(16).expect("16 is not zero"),
            random_state: 0,
        }
    }
}

/// A fitted extended isolation forest, from [`ExtendedParams::fit`] or, for trees from a file, from
/// [`ExtendedForest::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct ExtendedForest {
    nodes: SplitsByLevel,
    n_features: usize,
    max_samples: u64,
    /// Divisor of the sum of a row's path lengths: number of trees times `c(max_samples)`.
    normalizer: f64,
}

impl ExtendedForest {
    /// A forest of checked trees. `max_samples` is the nominal number of rows per tree.
    ///
    /// # Errors
    /// [`Error::Forest`] if there are no trees, the trees differ in the width of their rows or of their splits, have
    /// more than two billion splits, or `max_samples` is 0.
    pub fn new(trees: Vec<ExtendedTree>, max_samples: u64) -> Result<Self, Error> {
        let Some(first) = trees.first() else {
            return Err(Error::forest("n_estimators", 0, "at least 1"));
        };
        if max_samples == 0 {
            return Err(Error::forest("max_samples", 0, "at least 1"));
        }
        let n_features = first.n_features;
        if let Some(tree) = trees.iter().find(|tree| tree.n_features != n_features) {
            return Err(Error::forest(
                "n_features",
                tree.n_features,
                format_args!("{n_features} in all trees"),
            ));
        }
        let normalizer = trees.len() as f64 * average_path_length(max_samples);
        Ok(Self { nodes: SplitsByLevel::new(&trees)?, n_features, max_samples, normalizer })
    }

    /// Number of values of a row.
    pub fn n_features(&self) -> usize {
        self.n_features
    }

    /// Number of trees.
    pub fn n_estimators(&self) -> usize {
        self.nodes.roots.len()
    }

    /// Nominal number of rows per tree.
    pub fn max_samples(&self) -> u64 {
        self.max_samples
    }

    /// The trees as arrays, for files.
    pub fn trees(&self) -> impl ExactSizeIterator<Item = ExtendedTreeArrays> {
        self.nodes.trees()
    }

    /// Score of one row of standardised values, shape `[n_features]`: minus the anomaly score, so
    /// that both kinds of forest have the same sign. In `[-1, 0)`, lower is more anomalous. NaN counts as 0, the
    /// centre, and an infinity as the greatest finite value.
    ///
    /// # Panics
    /// If the row has another width than the forest.
    pub fn score_samples(&self, row: &[f32]) -> f64 {
        assert_eq!(row.len(), self.n_features, "a row has as many values as the forest has features");
        self.score_values(row.iter().copied())
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
    /// If the table has another width than the forest, or the length of `out` is not `n_rows`.
    pub fn score_table(&self, table: &Table, out: &mut [f64]) {
        assert_eq!(out.len(), table.n_rows(), "one score per row");
        assert_eq!(table.n_features(), self.n_features, "a table has as many features as the forest");
        let mut block = (out.len() >= MIN_ROWS).then(|| Block::new(table));
        for (first, scores) in (0..).step_by(BLOCK).zip(out.chunks_mut(BLOCK)) {
            let Some(block) = block.as_mut().filter(|_| scores.len() >= MIN_ROWS) else {
                for (number, score) in (first..).zip(scores) {
                    let values = (0..self.n_features).map(|feature| table.column(feature).get(number));
                    *score = self.score_values(values);
                }
                continue;
            };
            block.load(first, scores.len());
            for (score, sum) in scores.iter_mut().zip(block.path_lengths(&self.nodes)) {
                *score = score_from_path_lengths(sum, self.normalizer);
            }
        }
    }

    /// The score of a row of `n_features` values.
    fn score_values(&self, row: impl ExactSizeIterator<Item = f32>) -> f64 {
        let sum = walk::path_length(&self.nodes, row.map(to_finite));
        score_from_path_lengths(sum, self.normalizer)
    }
}

/// The value as a finite number: a NaN would spread to every split on its column.
fn to_finite(value: f32) -> f64 {
    if value.is_nan() { 0.0 } else { f64::from(value.clamp(f32::MIN, f32::MAX)) }
}

#[cfg(test)]
mod tests;
