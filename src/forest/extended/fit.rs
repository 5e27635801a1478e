//! Fits the extended forest; [`fit`](super::super::fit) describes the parts common to both kinds.

use std::num::NonZeroUsize;
use std::ops::Range;

use super::super::depth::Leaf;
use super::super::rng::Rng;
use super::super::sampling::{RowSampler, Sampling};
use super::super::threads::map_on_threads;
use super::super::{Error, Table};
use super::terms::to_coefficient;
use super::tree::{ExtendedTreeBuilder, SplitPlane};
use super::{ExtendedForest, ExtendedParams, ExtendedTree};

impl ExtendedParams {
    /// Fits a forest to a table of standardised values, shape `[n_rows, n_features]`, on up to `threads`
    /// threads (Hariri, Carrasco Kind, Brunner 2019, algorithms 1 and 2, except that the cut is uniform
    /// in the range of the projection: a random point of the bounding box often separates no rows).
    ///
    /// # Errors
    /// - [`Error::Empty`] for a table without rows or features;
    /// - [`Error::NotFinite`] for a NaN or an infinity in the table;
    /// - [`Error::Unsuitable`] if `max_samples` resolves to no row or more than
    ///   [`MAX_SAMPLES`](super::super::MAX_SAMPLES), or the table has more than
    ///   [`MAX_FEATURES`](super::super::MAX_FEATURES) features.
    pub fn fit(&self, table: &Table, threads: NonZeroUsize) -> Result<ExtendedForest, Error> {
        let sampling = Sampling::new(table, self.max_samples, false)?;
        let width = self.ndim.get().min(table.n_features());
        let trees = map_on_threads(self.n_estimators.get(), threads, |trees| {
            let mut grower = ExtendedTreeGrower::new(table, sampling, width);
            trees.map(|number| grower.grow(self.random_state, number)).collect::<Vec<ExtendedTree>>()
        });
        ExtendedForest::new(trees.into_iter().flatten().collect(), sampling.max_samples as u64)
    }
}

/// Grows trees one after another, with reused buffers.
struct ExtendedTreeGrower<'t> {
    table: &'t Table<'t>,
    max_depth: u32,
    rows: RowSampler,
    /// Terms of the current split, as column and coefficient, shape `[width]`.
    terms: Vec<(u16, f32)>,
    /// Projection of each row of the current node, shape `[rows of the node]`.
    values: Vec<f64>,
    stack: Vec<PendingExtendedNode>,
}

/// A node that has a place in the tree and is not yet split.
struct PendingExtendedNode {
    /// Place in the tree.
    at: usize,
    /// Its range of [`ExtendedTreeGrower::rows`].
    rows: Range<usize>,
    depth: u32,
}

impl<'t> ExtendedTreeGrower<'t> {
    fn new(table: &'t Table<'t>, sampling: Sampling, width: usize) -> Self {
        Self {
            table,
            max_depth: sampling.max_depth(),
            rows: RowSampler::new(sampling),
            terms: vec![(0, 0.0); width],
            values: Vec::with_capacity(sampling.max_samples),
            stack: Vec::new(),
        }
    }

    /// Grows the tree of a number.
    fn grow(&mut self, seed: u64, tree_number: usize) -> ExtendedTree {
        let mut rng = Rng::new(seed, tree_number as u64);
        let rows = self.rows.draw(&mut rng);
        let mut tree =
            ExtendedTreeBuilder::new(self.table.n_features(), self.terms.len(), 2 * rows.len() - 1);
        self.stack.push(PendingExtendedNode { at: ExtendedTreeBuilder::ROOT, rows, depth: 0 });
        while let Some(PendingExtendedNode { at, rows, depth }) = self.stack.pop() {
            let can_split = depth < self.max_depth && rows.len() > 1;
            let Some(plane) = can_split.then(|| self.draw_split(&mut rng, &rows)).flatten() else {
                tree.set_leaf(at, Leaf { depth, n_samples: rows.len() as u64 });
                continue;
            };
            let [left, right] = self.rows.split(&rows, &self.values, plane.cut);
            let [to_left, to_right] = tree.set_split(at, plane, &self.terms);
            self.stack.push(PendingExtendedNode { at: to_right, rows: right, depth: depth + 1 });
            self.stack.push(PendingExtendedNode { at: to_left, rows: left, depth: depth + 1 });
        }
        tree.finish()
    }

    /// Draws random terms, and a cut between the least (inclusive) and the greatest (exclusive) projection in the
    /// node. Returns `None` if the projection does not vary there. Fills `terms` and `values`.
    fn draw_split(&mut self, rng: &mut Rng, rows: &Range<usize>) -> Option<SplitPlane> {
        for pair in self.terms.chunks_mut(2) {
            for (term, draw) in pair.iter_mut().zip(rng.next_normals()) {
                *term = (rng.next_below(self.table.n_features()) as u16, to_coefficient(draw));
            }
        }
        // Terms are added in the order of the walk, so the range holds the exact projections of these rows.
        let positions = self.rows.positions(rows);
        self.values.clear();
        self.values.resize(positions.len(), 0.0);
        for &(column, coefficient) in &self.terms {
            let column = self.table.column(usize::from(column)).memory();
            for (value, &position) in self.values.iter_mut().zip(positions) {
                *value += f64::from(coefficient) * f64::from(column[position as usize]);
            }
        }
        let ends = (f64::INFINITY, f64::NEG_INFINITY);
        let least_and_greatest = |(low, high): (f64, f64), &value| (low.min(value), high.max(value));
        let (low, high) = self.values.iter().fold(ends, least_and_greatest);
        let cut = low + rng.next_uniform() * (high - low);
        // Rounding can raise the cut to the greatest value; no row would then go right.
        (low < high).then_some(SplitPlane { cut: if cut < high { cut } else { low }, low, high })
    }
}
