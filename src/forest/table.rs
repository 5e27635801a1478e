//! A borrowed, column-major table of rows.

use super::Error;
use std::ops::Range;

/// A borrowed table of `f32` values, shape `[n_rows, n_features]`, column-major: all rows of the first
/// feature, then all rows of the second. Growing a tree reads one column at a time.
///
/// Holds any `f32`, including NaN and infinities, which can be scored. [`ForestParams::fit`] requires finite values.
///
/// [`ForestParams::fit`]: super::ForestParams::fit
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Table<'a> {
    values: &'a [f32],
    /// Rows of a column of `values`.
    stride: usize,
    rows: RowRange,
    n_features: usize,
}

/// Rows of a column: a range, or a range without a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RowRange {
    first: usize,
    len: usize,
    /// Rows before the block that is left out.
    n_before: usize,
    n_left_out: usize,
}

impl RowRange {
    fn new(rows: Range<usize>) -> Self {
        Self { first: rows.start, len: rows.len(), n_before: rows.len(), n_left_out: 0 }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The index of a row in [`Column::memory`].
    #[inline(always)]
    pub fn position(&self, row: usize) -> usize {
        self.first + row + if row < self.n_before { 0 } else { self.n_left_out }
    }
}

/// The values of one feature of a [`Table`], by row.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    values: &'a [f32],
    rows: RowRange,
}

impl<'a> From<&'a [f32]> for Column<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self { values, rows: RowRange::new(0..values.len()) }
    }
}

impl<'a> Column<'a> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a row.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub fn get(&self, row: usize) -> f32 {
        self.values[self.rows.position(row)]
    }

    /// All values of the feature in memory, also those of rows that the table leaves out.
    pub(super) fn memory(&self) -> &'a [f32] {
        self.values
    }

    /// The values, in the order of the rows.
    pub fn iter(&self) -> impl Iterator<Item = f32> + use<'a> {
        let [before, after] = self.parts();
        before.iter().chain(after).copied()
    }

    /// Copies the values of the rows from `first` to `out`.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn copy_rows(&self, first: usize, out: &mut [f32]) {
        let [before, after] = self.parts();
        let n_before = before.len().saturating_sub(first).min(out.len());
        let (out_before, out_after) = out.split_at_mut(n_before);
        if n_before > 0 {
            out_before.copy_from_slice(&before[first..][..n_before]);
        }
        if !out_after.is_empty() {
            out_after.copy_from_slice(&after[first + n_before - before.len()..][..out_after.len()]);
        }
    }

    /// The least and the greatest value, zero as `+0`; infinities for a column without values.
    pub fn range(&self) -> [f32; 2] {
        let [[least, greatest], other] = self.parts().map(range);
        [least.min(other[0]) + 0.0, greatest.max(other[1]) + 0.0]
    }

    /// The values before and after the rows that are left out.
    pub fn parts(&self) -> [&'a [f32]; 2] {
        let RowRange { first, len, n_before, n_left_out } = self.rows;
        let before = &self.values[first..][..n_before];
        let after = &self.values[first + n_before + n_left_out..][..len - n_before];
        [before, after]
    }
}

/// The least and the greatest of finite values; infinities without values.
fn range(values: &[f32]) -> [f32; 2] {
    let (chunks, rest) = values.as_chunks();
    let mut range = [f32::INFINITY, f32::NEG_INFINITY];
    chunks.iter().for_each(|chunk| extend_range(&mut range, chunk));
    rest.iter().for_each(|value| extend_range_by_one(&mut range, *value));
    range
}

/// Extends least and greatest by eight values. In pairs: one after another, each would wait for the comparison before.
#[inline(always)]
pub(super) fn extend_range([least, greatest]: &mut [f32; 2], &[a, b, c, d, e, f, g, h]: &[f32; 8]) {
    *least = min(min(min(min(a, b), min(c, d)), min(min(e, f), min(g, h))), *least);
    *greatest = max(max(max(max(a, b), max(c, d)), max(max(e, f), max(g, h))), *greatest);
}

/// Extends least and greatest by a value.
#[inline(always)]
pub(super) fn extend_range_by_one([least, greatest]: &mut [f32; 2], value: f32) {
    *least = min(value, *least);
    *greatest = max(value, *greatest);
}

/// The lesser of two numbers that are not NaN, in one instruction.
#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The greater of two numbers that are not NaN, in one instruction.
#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

impl<'a> Table<'a> {
    /// A view of `values` as `n_rows` x `n_features`, column-major. Either may be zero.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are exactly `n_rows * n_features` values.
    pub fn new(values: &'a [f32], n_rows: usize, n_features: usize) -> Result<Self, Error> {
        if n_rows.checked_mul(n_features) == Some(values.len()) {
            Ok(Self { values, stride: n_rows, rows: RowRange::new(0..n_rows), n_features })
        } else {
            Err(Error::Shape { n_values: values.len(), n_rows, n_features })
        }
    }

    /// The table of some rows, with the same memory.
    ///
    /// # Panics
    /// If the table has fewer rows, or leaves rows out.
    pub fn with_rows(&self, rows: Range<usize>) -> Self {
        assert!(self.rows.n_left_out == 0 && rows.end <= self.n_rows(), "a range of all rows");
        let first = self.rows.first;
        Self { rows: RowRange::new(first + rows.start..first + rows.end), ..*self }
    }

    /// The table without some rows, with the same memory.
    ///
    /// # Panics
    /// If the table has fewer rows, or leaves rows out.
    pub fn without_rows(&self, rows: Range<usize>) -> Self {
        assert!(self.rows.n_left_out == 0 && rows.end <= self.n_rows(), "a range of all rows");
        let (len, n_left_out) = (self.n_rows() - rows.len(), rows.len());
        Self { rows: RowRange { len, n_before: rows.start, n_left_out, ..self.rows }, ..*self }
    }

    pub(super) fn rows(&self) -> RowRange {
        self.rows
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.rows.len
    }

    /// Number of columns.
    pub fn n_features(&self) -> usize {
        self.n_features
    }

    /// The values of one feature by row.
    ///
    /// # Panics
    /// If there is no such feature.
    pub fn column(&self, feature: usize) -> Column<'a> {
        Column { values: &self.values[feature * self.stride..][..self.stride], rows: self.rows }
    }

    /// All rows of one feature, shape `[n_rows]`.
    ///
    /// # Panics
    /// If there is no such feature, or the table leaves rows out.
    pub fn column_slice(&self, feature: usize) -> &'a [f32] {
        assert!(self.rows.n_left_out == 0, "the rows of a slice are adjacent");
        &self.values[feature * self.stride..][..self.stride][self.rows.first..][..self.rows.len]
    }

    /// Copies row `row` into `out`, shape `[n_features]`.
    ///
    /// # Panics
    /// If there is no such row, or `out` has another width.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.n_features, "a row has as many values as the table has features");
        for (feature, value) in out.iter_mut().enumerate() {
            *value = self.column(feature).get(row);
        }
    }

    /// Checks that all values are finite.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for the first value, by column, that is NaN or infinite.
    pub fn check_finite(&self) -> Result<(), Error> {
        for feature in 0..self.n_features {
            let column = self.column(feature);
            // Without an early exit, the compiler tests several values at once.
            if !column.iter().fold(true, |ok, value| ok & value.is_finite()) {
                let row = column.iter().take_while(|value| value.is_finite()).count();
                return Err(Error::NotFinite { value: column.get(row), row, feature });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_and_rows() {
        let table = Table::new(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3, 2).expect("six values");
        assert_eq!(table.column_slice(1), [4.0, 5.0, 6.0]);
        let mut row = [0.0; 2];
        table.copy_row(2, &mut row);
        assert_eq!(row, [3.0, 6.0]);
    }

    #[test]
    fn a_view_of_some_rows_shares_the_values() {
        let values: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let table = Table::new(&values, 10, 2).expect("twenty values");
        let of = |table: &Table, feature: usize| -> Vec<f32> {
            let column = table.column(feature);
            let values: Vec<f32> = column.iter().collect();
            assert!((0..table.n_rows()).map(|row| column.get(row)).eq(values.iter().copied()));
            for first in 0..values.len() {
                let mut copy = vec![0.0; values.len() - first];
                column.copy_rows(first, &mut copy);
                assert_eq!(copy, values[first..]);
                column.copy_rows(first, &mut copy[..1]);
            }
            values
        };
        let without = |rows: Range<usize>| of(&table.without_rows(rows), 1);
        assert_eq!(without(0..7), [17.0, 18.0, 19.0]);
        assert_eq!(without(2..9), [10.0, 11.0, 19.0]);
        assert_eq!(without(3..10), [10.0, 11.0, 12.0]);
        assert_eq!(without(4..4).len(), 10);
        let some = table.with_rows(3..6);
        assert_eq!(of(&some, 0), [3.0, 4.0, 5.0]);
        assert_eq!(some.column_slice(1), [13.0, 14.0, 15.0]);
        assert_eq!(of(&some.without_rows(1..2), 1), [13.0, 15.0]);
        let mut row = [0.0; 2];
        table.without_rows(2..9).copy_row(2, &mut row);
        assert_eq!(row, [9.0, 19.0]);
    }

    #[test]
    fn ranges_are_of_all_rows_that_are_not_left_out() {
        let values: Vec<f32> = (0..100).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        let table = Table::new(&values, 100, 1).expect("a hundred values");
        for rows in [0..0, 0..1, 0..99, 3..40, 50..100] {
            let column = table.without_rows(rows).column(0);
            let ends = [f32::INFINITY, f32::NEG_INFINITY];
            let expected = column.iter().fold(ends, |[least, greatest], v| [least.min(v), greatest.max(v)]);
            assert_eq!(column.range(), expected);
        }
        assert_eq!(range(&[]), [f32::INFINITY, f32::NEG_INFINITY]);
    }

    #[test]
    fn other_shapes_are_rejected() {
        let shape = Table::new(&[0.0; 5], 3, 2).expect_err("five values");
        assert_eq!(shape.to_string(), "table has 5 values, must be 3 rows x 2 features");
        assert!(Table::new(&[], usize::MAX, 2).is_err(), "the product overflows");
        assert!(Table::new(&[], 0, 2).is_ok());
    }

    #[test]
    fn an_error_states_the_position_of_a_value() {
        let values = [1.0, 2.0, 3.0, f32::NEG_INFINITY];
        let error = Table::new(&values, 2, 2).expect("four values").check_finite();
        let message = error.expect_err("infinite").to_string();
        assert_eq!(message, "value in row 1 of feature 1 is -inf, must be finite");
    }
}
