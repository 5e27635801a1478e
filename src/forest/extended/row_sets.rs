//! Walks of a block of rows down the trees, as sets of rows.
//!
//! A set of [`BLOCK`] rows, one bit each, is at a node. The terms of the split are read once for all of them, and the
//! projections of [`LANES`] adjacent rows are computed together, also of those that are at other nodes. A walk of one
//! row reads the terms of each split for itself. The additions to a sum are those of [`walk`](super::walk), in the same
//! order, so that both give the same bits.
//!
//! Measured with the walk of single rows in one process (80 columns, a shared EPYC core): 0.3 of the time per row with
//! AVX-512 or AVX2 and 0.45 with SSE2, for rows with a daily wave, of which neighbours are at the same nodes; 0.55, 0.65 and
//! 0.95 for independent rows.
//!
//! Not taken: *columns of `f32`*, whose conversion takes as long as they spare; *64 rows*, which are 0.9 of the time for rows
//! with a wave and 1.2 for independent ones.

#[cfg(target_arch = "x86_64")]
mod x86;

use super::super::Table;
use super::super::limits::MAX_DEPTH;
use super::super::prefetch::prefetch;
use super::layout::{Splits, SplitsByLevel};
use super::terms::{TERMS, Terms};
use super::to_finite;
use super::tree::{NodeRef, Split, SplitPlane};
use super::walk::Walk;

/// Rows whose projections are computed together.
const LANES: usize = 8;
/// Groups of [`LANES`] rows in a block.
const N_GROUPS: usize = 16;
/// Rows of a set, each a bit of a [`RowSet`].
pub(super) const BLOCK: usize = LANES * N_GROUPS;
/// Rows from which a set is faster than its rows one after another.
pub(super) const MIN_ROWS: usize = 64;

/// A set of rows of a block, one bit per row.
type RowSet = u128;
/// A value of each row.
type Values = [[f64; LANES]; N_GROUPS];

/// The rows of a table, block by block.
pub(super) struct Block<'t> {
    table: &'t Table<'t>,
    /// Shape `[n_features]`, finite. Values beyond `n_rows` are any.
    columns: Vec<Values>,
    n_rows: usize,
    buffer: [f32; BLOCK],
}

impl<'t> Block<'t> {
    pub fn new(table: &'t Table<'t>) -> Self {
        let columns = vec![[[0.0; LANES]; N_GROUPS]; table.n_features()];
        Self { table, columns, n_rows: 0, buffer: [0.0; BLOCK] }
    }

    /// Loads up to [`BLOCK`] rows of the table.
    pub fn load(&mut self, first: usize, n_rows: usize) {
        self.n_rows = n_rows;
        let buffer = &mut self.buffer[..n_rows];
        for (feature, values) in self.columns.iter_mut().enumerate() {
            self.table.column(feature).copy_rows(first, buffer);
            for (to, value) in values.as_flattened_mut().iter_mut().zip(&*buffer) {
                *to = to_finite(*value);
            }
        }
    }

    /// The sum over the trees of the path lengths of each row, with the fastest instructions of the processor.
    pub fn path_lengths(&self, nodes: &SplitsByLevel) -> [f64; BLOCK] {
        let mut sums = [0.0; BLOCK];
        #[cfg(target_arch = "x86_64")]
        x86::add_path_lengths(nodes, self, &mut sums);
        #[cfg(not(target_arch = "x86_64"))]
        add_path_lengths(Plain, nodes, self, &mut sums);
        sums
    }

    /// All rows.
    fn rows(&self) -> RowSet {
        if self.n_rows == 0 { 0 } else { RowSet::MAX >> (BLOCK - self.n_rows) }
    }
}

/// The instructions for comparisons. Each gives the lanes for which it holds, from the low end.
trait Lanes: Copy {
    fn less(self, values: &[f64; LANES], limit: f64) -> u8;
    fn greater(self, values: &[f64; LANES], limit: f64) -> u8;
}

/// Adds the path length of each row in each tree, in the order of the trees.
#[inline(always)]
fn add_path_lengths<L: Lanes>(lanes: L, nodes: &SplitsByLevel, block: &Block, sums: &mut [f64; BLOCK]) {
    match &nodes.splits {
        Splits::Short(splits) => add_path_lengths_by(lanes, nodes, splits, block, sums),
        Splits::Full(splits) => add_path_lengths_by(lanes, nodes, splits, block, sums),
    }
}

/// [`add_path_lengths`] by splits of one form.
#[inline(always)]
fn add_path_lengths_by<L: Lanes, T: Terms>(
    lanes: L,
    nodes: &SplitsByLevel,
    splits: &[Split<T>],
    block: &Block,
    sums: &mut [f64; BLOCK],
) {
    let mut pending = [(NodeRef::leaf(0), 0, 0.0); MAX_DEPTH as usize];
    let mut projections = [[0.0; LANES]; N_GROUPS];
    for &root in &nodes.roots {
        let mut walks = [Walk::new(root); BLOCK];
        let (mut at, mut rows, mut level, mut n_pending) = (root, block.rows(), 0.0, 0);
        loop {
            if !at.is_split() {
                for row in rows_of(rows) {
                    sums[row] += walks[row].path_length_at(at, &nodes.path_lengths);
                }
                if n_pending == 0 {
                    break;
                }
                n_pending -= 1;
                (at, rows, level) = pending[n_pending];
                continue;
            }
            let split = &splits[at.index()];
            split.children.iter().for_each(|child| request(splits, *child));
            level += 1.0;
            for group in groups_of(rows) {
                projections[group] = [0.0; LANES];
            }
            add_terms(&split.terms, rows, block, &mut projections);
            for terms in nodes.further_terms(at) {
                add_terms(terms, rows, block, &mut projections);
            }
            let Sides { right, outside } = sides(lanes, &split.plane, rows, &projections);
            for row in rows_of(outside) {
                walks[row].exit(&split.plane, projections.as_flattened()[row], level);
            }
            let (left, [left_child, right_child]) = (rows & !right, split.children);
            (at, rows) = (left_child, left);
            if left == 0 {
                (at, rows) = (right_child, right);
            } else if right != 0 {
                pending[n_pending] = (right_child, right, level);
                n_pending += 1;
            }
        }
    }
}

/// Adds the terms to the projections of the rows, and of others in their groups.
#[inline(always)]
fn add_terms<T: Terms>(terms: &T, rows: RowSet, block: &Block, projections: &mut Values) {
    let weights: [f64; TERMS] = std::array::from_fn(|i| terms.weight(i));
    let columns: [&Values; TERMS] = std::array::from_fn(|i| &block.columns[terms.column(i)]);
    for group in groups_of(rows) {
        let mut sums = projections[group];
        for (weight, column) in weights.iter().zip(columns) {
            for (sum, value) in sums.iter_mut().zip(&column[group]) {
                *sum += weight * value;
            }
        }
        projections[group] = sums;
    }
}

/// Rows of a set by their projections on a split.
struct Sides {
    /// The rows that go right.
    right: RowSet,
    /// The rows beyond the range of the split.
    outside: RowSet,
}

#[inline(always)]
fn sides<L: Lanes>(lanes: L, plane: &SplitPlane, rows: RowSet, projections: &Values) -> Sides {
    let (mut right, mut outside) = (0, 0);
    for group in groups_of(rows) {
        let projections = &projections[group];
        let is_outside = lanes.less(projections, plane.low) | lanes.greater(projections, plane.high);
        right |= RowSet::from(lanes.greater(projections, plane.cut)) << (LANES * group);
        outside |= RowSet::from(is_outside) << (LANES * group);
    }
    Sides { right: right & rows, outside: outside & rows }
}

/// The rows of a set, ascending.
#[inline(always)]
fn rows_of(mut rows: RowSet) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let row = (rows != 0).then(|| rows.trailing_zeros() as usize % BLOCK)?;
        rows &= rows - 1;
        Some(row)
    })
}

/// The groups that have rows of a set, ascending.
#[inline(always)]
fn groups_of(mut rows: RowSet) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let group = (rows != 0).then(|| rows.trailing_zeros() as usize / LANES % N_GROUPS)?;
        rows &= !(0xff << (LANES * group));
        Some(group)
    })
}

/// Requests the record of a split.
#[inline(always)]
fn request<T: Terms>(splits: &[Split<T>], at: NodeRef) {
    prefetch(splits, at.index() * usize::from(at.is_split()));
}

/// Comparisons without instructions of a processor.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[derive(Clone, Copy)]
struct Plain;

#[cfg(any(test, not(target_arch = "x86_64")))]
impl Lanes for Plain {
    #[inline(always)]
    fn less(self, values: &[f64; LANES], limit: f64) -> u8 {
        values.iter().rev().fold(0, |lanes, value| lanes << 1 | u8::from(*value < limit))
    }

    #[inline(always)]
    fn greater(self, values: &[f64; LANES], limit: f64) -> u8 {
        values.iter().rev().fold(0, |lanes, value| lanes << 1 | u8::from(*value > limit))
    }
}

#[cfg(test)]
mod tests;
