//! Draws the rows of a tree and partitions them at splits, for both kinds of forest.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use super::limits::{MAX_FEATURES, MAX_SAMPLES};
use super::rng::Rng;
use super::table::RowRange;
use super::{Error, MaxSamples, Table};

/// The sampling of rows from a checked table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampling {
    /// Rows of the table.
    rows: RowRange,
    /// Rows of each tree.
    pub max_samples: usize,
    bootstrap: bool,
}

impl Sampling {
    /// Checks the table and the parameters; for the errors see [`ForestParams::fit`](super::ForestParams::fit).
    pub fn new(table: &Table, max_samples: MaxSamples, bootstrap: bool) -> Result<Self, Error> {
        let (n_rows, n_features) = (table.n_rows(), table.n_features());
        if n_rows == 0 || n_features == 0 {
            return Err(Error::Empty { n_rows, n_features });
        }
        check_within(table, "n_features", n_features, MAX_FEATURES)?;
        let memory_rows = table.rows().position(n_rows - 1) + 1;
        check_within(table, "n_rows", memory_rows, u32::MAX as usize)?; // positions are u32
        let max_samples = max_samples.resolve(n_rows);
        check_within(table, "max_samples", max_samples, MAX_SAMPLES)?;
        table.check_finite()?;
        Ok(Self { rows: table.rows(), max_samples, bootstrap })
    }

    /// Most edges to a leaf: about the mean depth of a full tree. Rows below that depth are usual (Liu, Ting, Zhou 2008,
    /// section 4.1).
    pub fn max_depth(&self) -> u32 {
        (self.max_samples.max(2) - 1).ilog2() + 1 // ceil(log2(max(max_samples, 2)))
    }
}

/// Checks that a parameter, resolved for the table, is in `1..=max`.
pub(super) fn check_within(table: &Table, name: &'static str, value: usize, max: usize) -> Result<(), Error> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    let (n_rows, n_features) = (table.n_rows(), table.n_features());
    Err(Error::Unsuitable { name, value, n_rows, n_features, limit: format!("in 1..={max}") })
}

/// Drawn rows that are taken from a word without a branch. Most words have no more if a tree has few of the rows.
const SCAN: usize = 2;

/// The rows of one tree after another, with reused buffers.
pub(super) struct RowSampler {
    sampling: Sampling,
    /// Indices of the tree's rows in the memory of a column; each node owns a range. Longer by [`SCAN`].
    positions: Vec<u32>,
    /// One bit per row of the table, for drawing.
    drawn: Vec<u64>,
    /// Buffer for the rows of the right child.
    right_buffer: Vec<u32>,
}

impl RowSampler {
    pub fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            positions: vec![0; sampling.max_samples + SCAN],
            drawn: vec![0; sampling.rows.len().div_ceil(64)],
            right_buffer: vec![0; sampling.max_samples],
        }
    }

    /// Draws `max_samples` of the rows, in ascending order, so that memory is read in one direction; the order does
    /// not change the tree. Draws without replacement by Floyd's method (Bentley, Floyd 1987), which needs no list of
    /// all rows. Returns the range of all drawn rows.
    pub fn draw(&mut self, rng: &mut Rng) -> Range<usize> {
        let Sampling { rows, max_samples, bootstrap } = self.sampling;
        let n_rows = rows.len();
        if max_samples == n_rows && !bootstrap {
            for (row, position) in self.positions[..n_rows].iter_mut().enumerate() {
                *position = rows.position(row) as u32;
            }
            return 0..n_rows;
        }
        self.drawn.fill(0);
        let drawn = &mut self.drawn;
        let mut insert = |row: usize| {
            let (word, bit) = (&mut drawn[row / 64], 1 << (row % 64));
            let new = *word & bit == 0;
            *word |= bit;
            new
        };
        if bootstrap {
            for _ in 0..max_samples {
                insert(rng.next_below(n_rows));
            }
        } else {
            for last in n_rows - max_samples..n_rows {
                if !insert(rng.next_below(last + 1)) {
                    insert(last);
                }
            }
        }
        let mut n_drawn = 0;
        for (word, &drawn) in self.drawn.iter().enumerate() {
            let mut bits = drawn;
            loop {
                for _ in 0..SCAN {
                    let row = word * 64 + bits.trailing_zeros() as usize % 64;
                    self.positions[n_drawn] = rows.position(row) as u32;
                    n_drawn += usize::from(bits != 0);
                    bits &= bits.wrapping_sub(1);
                }
                if bits == 0 {
                    break;
                }
            }
        }
        0..n_drawn
    }

    /// Indices of the rows of a range in the memory of a column.
    pub fn positions(&self, range: &Range<usize>) -> &[u32] {
        &self.positions[range.clone()]
    }

    /// Moves the rows of the range with `value <= cut` to its front, in stable order, and returns the two parts.
    /// `values` has one value per row of the range.
    pub fn split<V: Partition>(&mut self, range: &Range<usize>, values: &[V], cut: V) -> [Range<usize>; 2] {
        let rows = &mut self.positions[range.clone()];
        let right_buffer = &mut self.right_buffer[..rows.len()];
        let n_left = V::partition(rows, right_buffer, &values[..rows.len()], cut);
        let right = &mut rows[n_left..];
        right.copy_from_slice(&right_buffer[..right.len()]);
        let middle = range.start + n_left;
        [range.start..middle, middle..range.end]
    }
}

/// A value that rows are divided by.
pub(super) trait Partition: Copy + PartialOrd {
    /// Moves the rows with `value <= cut` to the front and copies the others to the front of `right`, both in stable
    /// order. Returns the number of the former. All slices have the same length.
    fn partition(rows: &mut [u32], right: &mut [u32], values: &[Self], cut: Self) -> usize {
        partition(rows, right, values, cut)
    }
}

impl Partition for f64 {}

impl Partition for f32 {
    #[cfg(target_arch = "x86_64")]
    fn partition(rows: &mut [u32], right: &mut [u32], values: &[Self], cut: Self) -> usize {
        x86::partition(rows, right, values, cut)
    }
}

/// [`Partition::partition`]. Every row is written to both sides, and one of the two places advances, so there is no
/// branch to mispredict.
fn partition<V: Copy + PartialOrd>(rows: &mut [u32], right: &mut [u32], values: &[V], cut: V) -> usize {
    let mut n_left = 0;
    for (number, &value) in values.iter().enumerate() {
        let row = rows[number];
        rows[n_left] = row;
        right[number - n_left] = row;
        n_left += usize::from(value <= cut);
    }
    n_left
}

#[cfg(test)]
mod tests {
    use super::*;

    const N_ROWS: usize = 130; // more than two words of bits

    fn rows(max_samples: usize, bootstrap: bool) -> RowSampler {
        let values = [0.0; N_ROWS];
        let table = Table::new(&values, N_ROWS, 1).expect("a table");
        let max_samples = MaxSamples::count(max_samples).expect("a count");
        RowSampler::new(Sampling::new(&table, max_samples, bootstrap).expect("valid parameters"))
    }

    #[test]
    fn every_row_is_drawn_equally_often() {
        for bootstrap in [false, true] {
            let mut rows = rows(40, bootstrap);
            let mut counts = [0u32; N_ROWS];
            for tree in 0..10_000 {
                let all = rows.draw(&mut Rng::new(11, tree));
                let positions = rows.positions(&all);
                assert!(positions.is_sorted_by(|a, b| a < b));
                assert!(bootstrap || positions.len() == 40);
                for &row in positions {
                    counts[row as usize] += 1;
                }
            }
            let mean = f64::from(counts.iter().sum::<u32>()) / N_ROWS as f64;
            assert!(counts.iter().all(|&count| (f64::from(count) / mean - 1.0).abs() < 0.09), "{counts:?}");
        }
    }

    #[test]
    fn positions_skip_rows_that_are_left_out() {
        let values = [0.0; N_ROWS];
        let table = Table::new(&values, N_ROWS, 1).expect("a table").without_rows(3..100);
        for (max_samples, bootstrap) in [(33, false), (20, false), (33, true)] {
            let max_samples = MaxSamples::count(max_samples).expect("a count");
            let mut rows =
                RowSampler::new(Sampling::new(&table, max_samples, bootstrap).expect("valid parameters"));
            let all = rows.draw(&mut Rng::new(0, 0));
            let is_kept = |position: &u32| *position < 3 || (100..N_ROWS as u32).contains(position);
            assert!(rows.positions(&all).iter().all(is_kept));
        }
    }

    #[test]
    fn a_split_keeps_the_order_on_both_sides() {
        let mut rows = rows(N_ROWS, false);
        rows.draw(&mut Rng::new(0, 0));
        let [left, right] = rows.split(&(10..16), &[5.0, 1.0, 4.0, 2.0, 3.0, 9.0], 3.0);
        assert_eq!((left.clone(), right.clone()), (10..13, 13..16));
        assert_eq!((rows.positions(&left), rows.positions(&right)), (&[11, 13, 14][..], &[10, 12, 15][..]));
        assert_eq!(rows.positions(&(16..18)), [16, 17], "the rest is untouched");
    }
}
