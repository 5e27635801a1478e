//! Converts a window to Arrow columns and back, for files.
//!
//! The chunks are copied to one batch. Not taken: one batch per chunk. It needs no copy, but a file of a hundred short
//! batches is larger, and takes longer to read than the copy.

use super::Window;
use super::column::{FIRST_FEATURE, MAX_FEATURES};
use crate::error::InvalidPart;
use crate::prom::Labels;
use arrow_array::{Array, Float64Array, Int64Array, UInt16Array};
use arrow_buffer::{BooleanBuffer, NullBuffer, ScalarBuffer};

/// Names of the score columns, which precede the features.
pub const SCORE_COLUMNS: [&str; FIRST_FEATURE] =
    ["decision", "score", "threshold", "incident", "challenger_decision", "challenger_score"];

/// The present cells of a window: the smaller form where most cells are absent, as in a group of several targets.
#[derive(Clone, Debug)]
pub struct ArrowCells {
    /// Column of each cell.
    pub columns: UInt16Array,
    /// Timestamp of each cell.
    pub timestamps: Int64Array,
    /// Value of each cell.
    pub values: Float64Array,
}

impl Window {
    /// Timestamps of all rows, ascending, and their cells, shape `[6 + n_features]` of `[n_rows]`: first
    /// [`SCORE_COLUMNS`], then the features in the order of [`features`](Self::features).
    pub fn to_arrow(&self) -> (Int64Array, Vec<Float64Array>) {
        let slices: Vec<_> = self.slices(i64::MIN, i64::MAX).collect();
        let timestamps = slices.iter().flat_map(|(rows, range)| rows.timestamps().range(range.clone()));
        let timestamps: Vec<i64> = timestamps.collect();
        let column = |index: usize| {
            let mut values = Vec::with_capacity(timestamps.len());
            let mut present = Vec::with_capacity(timestamps.len());
            for (rows, range) in &slices {
                for row in range.clone() {
                    let value = rows.value(index, row);
                    present.push(value.is_some());
                    values.push(value.unwrap_or(0.0));
                }
            }
            let nulls = NullBuffer::new(BooleanBuffer::from(present));
            Float64Array::new(ScalarBuffer::from(values), Some(nulls).filter(|nulls| nulls.null_count() > 0))
        };
        let columns = (0..FIRST_FEATURE + self.features.len()).map(column).collect();
        (Int64Array::new(ScalarBuffer::from(timestamps), None), columns)
    }

    /// The window of these columns, the inverse of [`to_arrow`](Self::to_arrow).
    ///
    /// # Errors
    /// [`InvalidPart`] for columns that no window gives.
    pub fn from_arrow(
        length_ms: i64,
        features: &[Labels],
        timestamps: &Int64Array,
        columns: &[Float64Array],
    ) -> Result<Self, InvalidPart> {
        let invalid = |part, value: String, limit: String| Err(InvalidPart::new(part, value, limit));
        let n_rows = timestamps.len();
        let expected = FIRST_FEATURE + features.len();
        if columns.len() != expected {
            return invalid("number of columns", columns.len().to_string(), expected.to_string());
        }
        if let Some(column) = columns.iter().find(|column| column.len() != n_rows) {
            return invalid("length of a column", column.len().to_string(), n_rows.to_string());
        }
        let times = timestamps.values();
        if let Some(pair) = times.windows(2).find(|pair| pair[0] >= pair[1]) {
            return invalid("timestamp of a row", pair[1].to_string(), format!("after {}", pair[0]));
        }
        let mut window = Self::with_columns(length_ms, features)?;
        for (row, timestamp_ms) in times.iter().enumerate() {
            for (index, column) in columns.iter().enumerate().filter(|(_, column)| column.is_valid(row)) {
                window.set(index, *timestamp_ms, column.value(row));
            }
        }
        window.find_newest();
        Ok(window)
    }

    /// The present cells, ordered by column and timestamp; columns are numbered as in [`to_arrow`](Self::to_arrow).
    pub fn to_cells(&self) -> ArrowCells {
        let n_cells = self.n_cells();
        let mut columns = Vec::with_capacity(n_cells);
        let mut timestamps = Vec::with_capacity(n_cells);
        let mut values = Vec::with_capacity(n_cells);
        let mut samples = Vec::new();
        for index in 0..FIRST_FEATURE + self.features.len() {
            samples.clear();
            for (rows, range) in self.slices(i64::MIN, i64::MAX) {
                rows.samples(index, range, &mut samples);
            }
            columns.extend(samples.iter().map(|_| index as u16));
            timestamps.extend(samples.iter().map(|sample| sample.timestamp_ms));
            values.extend(samples.iter().map(|sample| sample.value));
        }
        ArrowCells { columns: columns.into(), timestamps: timestamps.into(), values: values.into() }
    }

    /// The window of these cells, the inverse of [`to_cells`](Self::to_cells).
    ///
    /// # Errors
    /// [`InvalidPart`] for cells that no window gives.
    pub fn from_cells(length_ms: i64, features: &[Labels], cells: &ArrowCells) -> Result<Self, InvalidPart> {
        let ArrowCells { columns, timestamps, values } = cells;
        let mut window = Self::with_columns(length_ms, features)?;
        let n_columns = FIRST_FEATURE + features.len();
        let keys = || columns.values().iter().zip(timestamps.values());
        if let Some((column, _)) = keys().find(|(column, _)| usize::from(**column) >= n_columns) {
            return Err(InvalidPart::new(
                "column of a cell",
                column.to_string(),
                format!("below {n_columns}"),
            ));
        }
        if let Some((before, cell)) = keys().zip(keys().skip(1)).find(|(before, cell)| before >= cell) {
            let limit = format!("after {}", before.1);
            return Err(InvalidPart::new("timestamp of a cell", cell.1.to_string(), limit));
        }
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by_key(|cell| timestamps.value(*cell));
        for cell in order {
            window.set(usize::from(columns.value(cell)), timestamps.value(cell), values.value(cell));
        }
        window.find_newest();
        Ok(window)
    }

    /// Bytes of [`to_arrow`](Self::to_arrow) and of [`to_cells`](Self::to_cells).
    pub fn arrow_bytes(&self) -> (usize, usize) {
        let n_rows = self.timestamps(i64::MIN, i64::MAX).count();
        let n_columns = 1 + FIRST_FEATURE + self.features.len();
        let bytes_per_cell = size_of::<u16>() + size_of::<i64>() + size_of::<f64>();
        (n_rows * n_columns * size_of::<f64>(), self.n_cells() * bytes_per_cell)
    }

    /// An empty window with these columns.
    fn with_columns(length_ms: i64, features: &[Labels]) -> Result<Self, InvalidPart> {
        if features.len() > MAX_FEATURES {
            let limit = format!("at most {MAX_FEATURES}");
            return Err(InvalidPart::new("number of features", features.len().to_string(), limit));
        }
        let mut window = Self::new(length_ms);
        for labels in features {
            if window.find_column(labels).is_some() {
                return Err(InvalidPart::new("feature", labels.to_string(), "there once"));
            }
            window.get_or_add_column(labels);
        }
        Ok(window)
    }

    /// Finds the newest sample, and drops the rows that are then too old.
    fn find_newest(&mut self) {
        let newest = self.features().filter_map(|(_, column)| self.newest_of(column));
        self.newest_ms = newest.map(|sample| sample.timestamp_ms).max();
        self.slide();
    }
}
