//! Converts a window to Arrow columns and back, for files.
//!
//! The chunks are copied to one batch. Not taken: one batch per chunk. It needs no copy, but a file of a hundred short
//! batches is larger, and takes longer to read than the copy.

use super::chunk::{CHUNK_ROWS, OpenChunk};
use super::column::{Column, FIRST_FEATURE, MAX_FEATURES};
use super::{FeatureColumn, Window};
use crate::error::InvalidPart;
use crate::prom::{Labels, Sample};
use arrow_array::{Array, Float64Array, Int64Array};
use arrow_buffer::{BooleanBuffer, NullBuffer, ScalarBuffer};
use std::collections::VecDeque;

/// Names of the score columns, which precede the features.
pub const SCORE_COLUMNS: [&str; FIRST_FEATURE] =
    ["decision", "score", "threshold", "incident", "challenger_decision", "challenger_score"];

impl Window {
    /// Timestamps of all rows, ascending, and their cells, shape `[6 + n_features]` of `[n_rows]`: first
    /// [`SCORE_COLUMNS`], then the features in the order of [`features`](Self::features).
    pub fn to_arrow(&self) -> (Int64Array, Vec<Float64Array>) {
        let slices: Vec<_> = self.slices(i64::MIN, i64::MAX).collect();
        let timestamps =
            slices.iter().flat_map(|(rows, range)| rows.timestamps()[range.clone()].iter().copied());
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
        if features.len() > MAX_FEATURES {
            return invalid(
                "number of features",
                features.len().to_string(),
                format!("at most {MAX_FEATURES}"),
            );
        }
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
        let mut window = Self::new(length_ms);
        for (labels, cells) in features.iter().zip(&columns[FIRST_FEATURE..]) {
            if window.find_column(labels).is_some() {
                return invalid("feature", labels.to_string(), "there once".into());
            }
            let newest = (0..n_rows).rev().find(|row| cells.is_valid(*row));
            let newest = newest.map(|row| Sample { timestamp_ms: times[row], value: cells.value(row) });
            let column = Column(window.features.len() as u32);
            window.columns.insert(labels.clone(), column);
            window.features.push(FeatureColumn { labels: labels.clone(), newest });
            window.newest_ms = window.newest_ms.max(newest.map(|sample| sample.timestamp_ms));
        }
        let mut chunks = VecDeque::new();
        for start in (0..n_rows).step_by(CHUNK_ROWS) {
            let rows = start..n_rows.min(start + CHUNK_ROWS);
            let cell = |column: &Float64Array, row: usize| column.is_valid(row).then(|| column.value(row));
            let cells = columns.iter().map(|column| rows.clone().map(|row| cell(column, row)).collect());
            let chunk = OpenChunk::new(times[rows.clone()].to_vec(), cells);
            // The last rows stay open for late samples.
            match rows.end == n_rows {
                true => window.open = chunk,
                false => chunks.push_back(chunk.seal().into()),
            }
        }
        window.chunks = chunks;
        window.slide();
        Ok(window)
    }
}
