//! Read access to the rows of a chunk, and the ways in which a column stores the rows and the values of its cells.

use super::packed::PackedValues;
use super::timestamps::Timestamps;
use crate::prom::Sample;
use std::ops::Range;

/// The present cells of one column of a chunk, in the order of the rows.
#[derive(Clone, Copy, Debug)]
pub struct Cells<'a> {
    keys: Keys<'a>,
    values: Values<'a>,
}

/// The values of the cells.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Of an open chunk.
    Plain(&'a [f64]),
    /// Of a sealed chunk.
    Packed(PackedValues<'a>),
}

impl Values<'_> {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(values) => values.len(),
            Self::Packed(values) => values.len(),
        }
    }

    fn get(&self, position: usize) -> Option<f64> {
        match self {
            Self::Plain(values) => values.get(position).copied(),
            Self::Packed(values) => (position < values.len()).then(|| values.get(position)),
        }
    }

    /// A copy.
    pub fn to_vec(self) -> Vec<f64> {
        match self {
            Self::Plain(values) => values.to_vec(),
            Self::Packed(values) => (0..values.len()).map(|position| values.get(position)).collect(),
        }
    }
}

/// The rows of the cells.
#[derive(Clone, Copy, Debug)]
enum Keys<'a> {
    /// The first rows of the chunk, without a gap.
    FirstRows,
    /// Rows by index.
    Rows(&'a [u16]),
    /// Rows by timestamp: unlike an index, it stays the same when a row is inserted.
    Times(&'a [i64]),
}

impl<'a> Cells<'a> {
    /// No cells.
    pub const NONE: Self = Self { keys: Keys::FirstRows, values: Values::Plain(&[]) };

    /// Cells of the first rows.
    pub fn of_first_rows(values: Values<'a>) -> Self {
        Self { keys: Keys::FirstRows, values }
    }

    /// Cells of the rows with these indices.
    pub fn of_rows(rows: &'a [u16], values: Values<'a>) -> Self {
        Self { keys: Keys::Rows(rows), values }
    }

    /// Cells of the rows with these timestamps.
    pub fn of_times(times: &'a [i64], values: Values<'a>) -> Self {
        Self { keys: Keys::Times(times), values }
    }

    /// The values.
    pub fn values(&self) -> Values<'a> {
        self.values
    }

    /// The indices of the rows.
    pub fn rows(&self, timestamps: Timestamps<'_>) -> impl Iterator<Item = usize> {
        let row = move |position: usize| match self.keys {
            Keys::FirstRows => position,
            Keys::Rows(rows) => usize::from(rows[position]),
            Keys::Times(times) => timestamps.partition_point(|time| time < times[position]),
        };
        (0..self.values.len()).map(row)
    }

    /// The timestamps of the cells; none for those of the first rows.
    pub fn times(&self, timestamps: Timestamps<'_>) -> Vec<i64> {
        match self.keys {
            Keys::FirstRows => Vec::new(),
            Keys::Rows(rows) => rows.iter().map(|row| timestamps.at(usize::from(*row))).collect(),
            Keys::Times(times) => times.to_vec(),
        }
    }

    /// Positions of the cells that are in these rows.
    pub fn positions(&self, timestamps: Timestamps<'_>, rows: Range<usize>) -> Range<usize> {
        let len = self.values.len();
        match self.keys {
            Keys::FirstRows => rows.start.min(len)..rows.end.min(len),
            Keys::Rows(keys) => {
                let before = |end: usize| keys.partition_point(|row| usize::from(*row) < end);
                before(rows.start)..before(rows.end)
            }
            Keys::Times(keys) => {
                let before = |row: usize| match timestamps.get(row) {
                    Some(time) => keys.partition_point(|key| *key < time),
                    None => len,
                };
                before(rows.start)..before(rows.end)
            }
        }
    }

    /// The sample at a position; `None` from the number of cells on.
    fn sample(&self, timestamps: Timestamps<'_>, position: usize) -> Option<Sample> {
        let value = self.values.get(position)?;
        let timestamp_ms = match self.keys {
            Keys::FirstRows => timestamps.at(position),
            Keys::Rows(rows) => timestamps.at(usize::from(rows[position])),
            Keys::Times(times) => times[position],
        };
        Some(Sample { timestamp_ms, value })
    }

    fn append_samples(&self, timestamps: Timestamps<'_>, positions: Range<usize>, out: &mut Vec<Sample>) {
        match self.values {
            Values::Plain(values) => {
                self.append(timestamps, positions.clone(), values[positions].iter().copied(), out);
            }
            Values::Packed(values) => {
                let unpacked = positions.clone().map(|position| values.get(position));
                self.append(timestamps, positions, unpacked, out);
            }
        }
    }

    fn append(
        &self,
        timestamps: Timestamps<'_>,
        positions: Range<usize>,
        values: impl Iterator<Item = f64>,
        out: &mut Vec<Sample>,
    ) {
        let sample = |(timestamp_ms, value)| Sample { timestamp_ms, value };
        match self.keys {
            Keys::FirstRows => out.extend(timestamps.range(positions).zip(values).map(sample)),
            Keys::Times(times) => out.extend(times[positions].iter().copied().zip(values).map(sample)),
            Keys::Rows(rows) => {
                let times = rows[positions].iter().map(|row| timestamps.at(usize::from(*row)));
                out.extend(times.zip(values).map(sample));
            }
        }
    }

    fn value(&self, timestamps: Timestamps<'_>, row: usize) -> Option<f64> {
        let position = match self.keys {
            Keys::FirstRows => row,
            Keys::Rows(rows) => rows.binary_search(&u16::try_from(row).ok()?).ok()?,
            Keys::Times(times) => times.binary_search(&timestamps.get(row)?).ok()?,
        };
        self.values.get(position)
    }
}

/// Rows with timestamps.
pub trait Timestamped {
    /// The timestamps of the rows.
    fn timestamps(&self) -> Timestamps<'_>;
}

/// Read access to the cells of rows. A row is named by its index.
pub trait RowSource: Timestamped {
    /// The value of a cell; `None` if absent.
    fn value(&self, column: usize, row: usize) -> Option<f64>;

    /// Number of cells of a column in these rows.
    fn n_cells(&self, column: usize, rows: Range<usize>) -> usize;

    /// Appends the samples of a column in these rows.
    fn samples(&self, column: usize, rows: Range<usize>, out: &mut Vec<Sample>);

    /// The newest sample of a column in these rows.
    fn newest_sample(&self, column: usize, rows: Range<usize>) -> Option<Sample>;

    /// The value of the cell at a time; `None` if absent.
    fn cell(&self, column: usize, timestamp_ms: i64) -> Option<f64> {
        self.value(column, self.timestamps().find(timestamp_ms)?)
    }
}

/// Rows that are stored in columns.
pub trait ColumnSource: Timestamped {
    /// The cells of a column; none for a column that has none.
    fn cells(&self, column: usize) -> Cells<'_>;
}

impl<T: ColumnSource> RowSource for T {
    fn value(&self, column: usize, row: usize) -> Option<f64> {
        self.cells(column).value(self.timestamps(), row)
    }

    fn n_cells(&self, column: usize, rows: Range<usize>) -> usize {
        self.cells(column).positions(self.timestamps(), rows).len()
    }

    fn samples(&self, column: usize, rows: Range<usize>, out: &mut Vec<Sample>) {
        let (timestamps, cells) = (self.timestamps(), self.cells(column));
        cells.append_samples(timestamps, cells.positions(timestamps, rows), out);
    }

    fn newest_sample(&self, column: usize, rows: Range<usize>) -> Option<Sample> {
        let (timestamps, cells) = (self.timestamps(), self.cells(column));
        let newest = cells.positions(timestamps, rows).next_back()?;
        cells.sample(timestamps, newest)
    }
}

/// The chunks, in ascending order, that have rows in `(after_ms, to_ms]`, with the range of these rows in each. An empty one
/// may be among them.
pub fn in_range<'a>(
    chunks: impl Iterator<Item = &'a dyn RowSource>,
    after_ms: i64,
    to_ms: i64,
) -> impl Iterator<Item = (&'a dyn RowSource, Range<usize>)> {
    chunks
        .map(move |rows| {
            let timestamps = rows.timestamps();
            let start = timestamps.partition_point(|time| time <= after_ms);
            let end = timestamps.partition_point(|time| time <= to_ms);
            (rows, start..end.max(start))
        })
        .take_while(move |(rows, _)| rows.timestamps().get(0).is_none_or(|first_ms| first_ms <= to_ms))
}
