//! A borrowed, column-major table of rows.

use super::Error;

/// A borrowed table of `f32` values, shape `[n_rows, n_features]`, column-major: all rows of the first
/// feature, then all rows of the second. Growing a tree reads one column at a time.
///
/// Holds any `f32`, including NaN and infinities, which can be scored. [`ForestParams::fit`] requires finite values.
///
/// [`ForestParams::fit`]: super::ForestParams::fit
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Table<'a> {
    values: &'a [f32],
    n_rows: usize,
    n_features: usize,
}

impl<'a> Table<'a> {
    /// A view of `values` as `n_rows` x `n_features`, column-major. Either may be zero.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are exactly `n_rows * n_features` values.
    pub fn new(values: &'a [f32], n_rows: usize, n_features: usize) -> Result<Self, Error> {
        if n_rows.checked_mul(n_features) == Some(values.len()) {
            Ok(Self { values, n_rows, n_features })
        } else {
            Err(Error::Shape { n_values: values.len(), n_rows, n_features })
        }
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Number of columns.
    pub fn n_features(&self) -> usize {
        self.n_features
    }

    /// All rows of one feature, shape `[n_rows]`.
    ///
    /// # Panics
    /// If there is no such feature.
    pub fn column(&self, feature: usize) -> &'a [f32] {
        &self.values[feature * self.n_rows..][..self.n_rows]
    }

    /// Copies row `row` into `out`, shape `[n_features]`.
    ///
    /// # Panics
    /// If there is no such row, or `out` has another width.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.n_features, "a row has as many values as the table has features");
        for (feature, value) in out.iter_mut().enumerate() {
            *value = self.column(feature)[row];
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
                return Err(Error::NotFinite { value: column[row], row, feature });
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
        assert_eq!(table.column(1), [4.0, 5.0, 6.0]);
        let mut row = [0.0; 2];
        table.copy_row(2, &mut row);
        assert_eq!(row, [3.0, 6.0]);
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
