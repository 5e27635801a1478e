//! Draws the rows of a tree and partitions them at splits, for both kinds of forest.

use std::ops::Range;

use super::limits::{MAX_FEATURES, MAX_SAMPLES};
use super::rng::Rng;
use super::{Error, MaxSamples, Table};

/// The sampling of rows from a checked table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampling {
    /// Rows of the table.
    n_rows: usize,
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
        check_within(table, "n_rows", n_rows, u32::MAX as usize)?; // row ids are u32
        let max_samples = max_samples.resolve(n_rows);
        check_within(table, "max_samples", max_samples, MAX_SAMPLES)?;
        table.check_finite()?;
        Ok(Self { n_rows, max_samples, bootstrap })
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

/// The rows of one tree after another, with reused buffers.
pub(super) struct RowSampler {
    sampling: Sampling,
    /// Ids of the tree's rows; each node owns a range.
    ids: Vec<u32>,
    /// One bit per row of the table, for drawing.
    drawn: Vec<u64>,
    /// Buffer for the rows of the right child.
    right_buffer: Vec<u32>,
}

impl RowSampler {
    pub fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            ids: Vec::with_capacity(sampling.max_samples),
            drawn: vec![0; sampling.n_rows.div_ceil(64)],
            right_buffer: vec![0; sampling.max_samples],
        }
    }

    /// Draws `max_samples` of the rows, in ascending order, so that memory is read in one direction; the order does
    /// not change the tree. Draws without replacement by Floyd's method (Bentley, Floyd 1987), which needs no list of
    /// all rows. Returns the range of all drawn rows.
    pub fn draw(&mut self, rng: &mut Rng) -> Range<usize> {
        let Sampling { n_rows, max_samples, bootstrap } = self.sampling;
        self.ids.clear();
        if max_samples == n_rows && !bootstrap {
            self.ids.extend(0..n_rows as u32);
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
        for (word, &drawn) in self.drawn.iter().enumerate() {
            let mut bits = drawn;
            while bits != 0 {
                self.ids.push((word * 64) as u32 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
        0..self.ids.len()
    }

    /// Ids of the rows in a range.
    pub fn ids(&self, range: &Range<usize>) -> &[u32] {
        &self.ids[range.clone()]
    }

    /// Moves the rows of the range with `value <= cut` to its front, in stable order, and returns the two parts.
    /// `values` has one value per row of the range. Every row is written to both sides, and one of the two positions
    /// advances, so there is no branch to mispredict.
    pub fn split<V: Copy + PartialOrd>(
        &mut self,
        range: &Range<usize>,
        values: &[V],
        cut: V,
    ) -> [Range<usize>; 2] {
        let rows = &mut self.ids[range.clone()];
        let (mut n_left, mut n_right) = (0, 0);
        for (position, &value) in values[..rows.len()].iter().enumerate() {
            let row = rows[position];
            let left = usize::from(value <= cut);
            rows[n_left] = row;
            self.right_buffer[n_right] = row;
            n_left += left;
            n_right += 1 - left;
        }
        rows[n_left..].copy_from_slice(&self.right_buffer[..n_right]);
        let middle = range.start + n_left;
        [range.start..middle, middle..range.end]
    }
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
                let ids = rows.ids(&all);
                assert!(ids.is_sorted_by(|a, b| a < b));
                assert!(bootstrap || ids.len() == 40);
                for &row in ids {
                    counts[row as usize] += 1;
                }
            }
            let mean = f64::from(counts.iter().sum::<u32>()) / N_ROWS as f64;
            assert!(counts.iter().all(|&count| (f64::from(count) / mean - 1.0).abs() < 0.09), "{counts:?}");
        }
    }

    #[test]
    fn a_split_keeps_the_order_on_both_sides() {
        let mut rows = rows(N_ROWS, false);
        rows.draw(&mut Rng::new(0, 0));
        let [left, right] = rows.split(&(10..16), &[5.0, 1.0, 4.0, 2.0, 3.0, 9.0], 3.0);
        assert_eq!((left.clone(), right.clone()), (10..13, 13..16));
        assert_eq!((rows.ids(&left), rows.ids(&right)), (&[11, 13, 14][..], &[10, 12, 15][..]));
        assert_eq!(rows.ids(&(16..18)), [16, 17], "the rest is untouched");
    }
}
