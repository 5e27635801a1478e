//! Walks of a block of rows down the trees, as sets of rows.
//!
//! A set of [`BLOCK`] rows, one bit each, is at a node. The comparison of a column of the block with the threshold divides
//! it into the sets at the two children; a node without rows is not visited. A walk of one row depends on one comparison
//! after another. Here they are independent of each other, read adjacent values, and take one branch per node instead of
//! one per row.
//!
//! Measured with the walk of single rows in one process (20 features, an EPYC core with AVX-512): trees of 256 rows take
//! a third of the time per row with AVX-512, 0.55 with AVX2, 0.6 with SSE2; trees of 2,000 rows take the same or less.
//!
//! Not taken:
//! - *ranks* (16 bits per value in place of a `f32`), because sorting the columns takes longer than one forest gains;
//! - *256 or 1,024 rows*, which are slower;
//! - *the sum of each row at the leaf, with AVX-512*, which is slower than a number per row and one pass over all rows at
//!   the end of the tree;
//! - *a test for empty words of a set*, a branch that is often mispredicted.

#[cfg(target_arch = "x86_64")]
mod x86;

use super::super::Table;
use super::super::limits::MAX_DEPTH;
use super::Forest;

/// Rows of a word of a set.
const WORD: usize = 64;
/// Words of a set.
const N_WORDS: usize = 8;
/// Rows of a set.
pub(super) const BLOCK: usize = WORD * N_WORDS;

/// A set of rows of a block, one bit per row.
type RowSet = [u64; N_WORDS];
/// The values of a feature in a block.
type BlockColumn = [[f32; WORD]; N_WORDS];
/// The sum of the path lengths of each row of a block.
pub(super) type Sums = [[f64; WORD]; N_WORDS];

/// Rows from which a set is faster than its rows one after another, as measured; more than a set on processors on which
/// nobody measured it.
pub(super) fn min_rows() -> usize {
    #[cfg(target_arch = "x86_64")]
    return x86::min_rows();
    #[cfg(not(target_arch = "x86_64"))]
    return BLOCK + 1;
}

/// The rows of a table, block by block.
pub(super) struct Block<'t> {
    table: &'t Table<'t>,
    /// Shape `[n_features]`. Values beyond `n_rows` are any.
    columns: Vec<BlockColumn>,
    has_nan: [bool; BLOCK],
    n_rows: usize,
}

impl<'t> Block<'t> {
    pub fn new(table: &'t Table<'t>) -> Self {
        let columns = vec![[[0.0; WORD]; N_WORDS]; table.n_features()];
        Self { table, columns, has_nan: [false; BLOCK], n_rows: 0 }
    }

    /// Loads up to [`BLOCK`] rows of the table.
    pub fn load(&mut self, first: usize, n_rows: usize) {
        self.n_rows = n_rows;
        self.has_nan.fill(false);
        for (feature, values) in self.columns.iter_mut().enumerate() {
            let values = &mut values.as_flattened_mut()[..n_rows];
            self.table.column(feature).copy_rows(first, values);
            for (has_nan, value) in self.has_nan.iter_mut().zip(values) {
                *has_nan |= value.is_nan();
            }
        }
    }

    /// The rows with a NaN, which [`path_lengths`](Self::path_lengths) leaves out.
    pub fn rows_with_nan(&self) -> impl Iterator<Item = usize> {
        (0..self.n_rows).filter(|row| self.has_nan[*row])
    }

    /// The sum of the path lengths of each row without a NaN, in the order of the trees, with the fastest instructions of
    /// the processor. Other sums are any.
    pub fn path_lengths(&self, forest: &Forest) -> Sums {
        let mut sums = [[0.0; WORD]; N_WORDS];
        #[cfg(target_arch = "x86_64")]
        x86::add_path_lengths(forest, self, &mut sums);
        #[cfg(not(target_arch = "x86_64"))]
        add_path_lengths(&mut Plain, forest, self, &mut sums);
        sums
    }

    /// The rows without a NaN.
    fn complete_rows(&self) -> RowSet {
        let mut rows = [0; N_WORDS];
        for row in (0..self.n_rows).filter(|row| !self.has_nan[*row]) {
            rows[row / WORD] |= 1 << (row % WORD);
        }
        rows
    }
}

/// The instructions for sets.
trait Lanes {
    /// The rows whose value is greater than the threshold, from the low end.
    fn greater(&self, values: &[f32; WORD], threshold: f32) -> u64;

    /// Adds the path length of a leaf to the sums of the rows there, now or in [`finish_tree`](Self::finish_tree).
    fn add_leaf(&mut self, rows: &RowSet, path_length: f64, sums: &mut Sums);

    /// Called after the leaves of a tree.
    fn finish_tree(&mut self, sums: &mut Sums);
}

/// Adds the path length of each row in each tree. The order of the additions to a sum is that of the trees, so that all
/// instructions give the same bits.
#[inline(always)]
fn add_path_lengths<L: Lanes>(lanes: &mut L, forest: &Forest, block: &Block, sums: &mut Sums) {
    let complete_rows = block.complete_rows();
    let mut pending = [(0, [0; N_WORDS]); MAX_DEPTH as usize];
    for ends in forest.starts.windows(2) {
        let nodes = &forest.nodes[ends[0]..ends[1]];
        let (mut at, mut rows, mut n_pending) = (0, complete_rows, 0);
        loop {
            let node = nodes[at];
            if node.is_leaf() {
                lanes.add_leaf(&rows, forest.path_lengths[node.leaf_index()], sums);
                if n_pending == 0 {
                    break;
                }
                n_pending -= 1;
                (at, rows) = pending[n_pending];
                continue;
            }
            let (mut left, mut right) = ([0; N_WORDS], [0; N_WORDS]);
            let (mut any_left, mut any_right) = (0, 0);
            for (word, values) in block.columns[node.feature()].iter().enumerate() {
                let greater = lanes.greater(values, node.threshold());
                left[word] = rows[word] & !greater;
                right[word] = rows[word] & greater;
                any_left |= left[word];
                any_right |= right[word];
            }
            (at, rows) = (node.left(), left);
            if any_left == 0 {
                (at, rows) = (at + 1, right);
            } else if any_right != 0 {
                pending[n_pending] = (at + 1, right);
                n_pending += 1;
            }
        }
        lanes.finish_tree(sums);
    }
}

/// Adds a path length to the sums of some rows, one after another.
#[inline(always)]
fn add_to_each(rows: &RowSet, path_length: f64, sums: &mut Sums) {
    for (sums, &rows) in sums.iter_mut().zip(rows) {
        let mut rows = rows;
        while rows != 0 {
            sums[rows.trailing_zeros() as usize] += path_length;
            rows &= rows - 1;
        }
    }
}

/// Sets without instructions of a processor.
#[cfg(any(test, not(target_arch = "x86_64")))]
struct Plain;

#[cfg(any(test, not(target_arch = "x86_64")))]
impl Lanes for Plain {
    #[inline(always)]
    fn greater(&self, values: &[f32; WORD], threshold: f32) -> u64 {
        values.iter().rev().fold(0, |rows, value| rows << 1 | u64::from(*value > threshold))
    }

    #[inline(always)]
    fn add_leaf(&mut self, rows: &RowSet, path_length: f64, sums: &mut Sums) {
        add_to_each(rows, path_length, sums);
    }

    fn finish_tree(&mut self, _: &mut Sums) {}
}
