//! A run of rows: open (vectors) or sealed (immutable Arrow arrays).

use crate::prom::Sample;
use arrow_array::{Array, Float64Array, Int64Array};
use arrow_buffer::{BooleanBuffer, NullBuffer, ScalarBuffer};
use std::ops::Range;
use std::sync::Arc;

/// Rows of a sealed chunk. An open chunk holds up to twice as many, so that at least this many rows stay open for late
/// samples: half an hour at an interval of 15 s.
pub const CHUNK_ROWS: usize = 128;

/// Read access to the rows of a chunk, open or sealed.
pub trait RowSource {
    /// Ascending, without repetition.
    fn timestamps(&self) -> &[i64];

    /// The value of a cell; `None` if absent. `row` is an index in this chunk.
    fn value(&self, column: usize, row: usize) -> Option<f64>;

    fn samples(&self, column: usize, rows: Range<usize>, out: &mut Vec<Sample>) {
        let timestamps = self.timestamps();
        out.extend(rows.filter_map(|row| {
            let value = self.value(column, row)?;
            Some(Sample { timestamp_ms: timestamps[row], value })
        }));
    }

    fn newest_sample(&self, column: usize, rows: Range<usize>) -> Option<Sample> {
        rows.rev().find_map(|row| {
            let value = self.value(column, row)?;
            Some(Sample { timestamp_ms: self.timestamps()[row], value })
        })
    }

    fn cell(&self, column: usize, timestamp_ms: i64) -> Option<f64> {
        let row = self.timestamps().binary_search(&timestamp_ms).ok()?;
        self.value(column, row)
    }
}

/// The chunks, in ascending order, that have rows in `(after_ms, to_ms]`, with the range of these rows in each.
pub fn in_range<'a>(
    chunks: impl Iterator<Item = &'a dyn RowSource>,
    after_ms: i64,
    to_ms: i64,
) -> impl Iterator<Item = (&'a dyn RowSource, Range<usize>)> {
    chunks
        .map(move |rows| {
            let timestamps = rows.timestamps();
            let start = timestamps.partition_point(|t| *t <= after_ms);
            let end = timestamps.partition_point(|t| *t <= to_ms);
            (rows, start..end.max(start))
        })
        .take_while(move |(rows, _)| rows.timestamps().first().is_some_and(|first| *first <= to_ms))
}

/// The outcome of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    /// The cell was empty and now holds the sample.
    Stored,
    /// The cell held the same bits.
    Duplicate,
    /// The cell held other bits; the first ones stay.
    Conflict,
    /// The sample is older than the window.
    TooOld,
}

#[derive(Clone, Debug)]
struct Cells {
    values: Vec<f64>,
    present: Vec<bool>,
}

impl Cells {
    fn absent(rows: usize) -> Self {
        Self { values: vec![0.0; rows], present: vec![false; rows] }
    }
}

/// Rows that can still change.
#[derive(Clone, Debug, Default)]
pub struct OpenChunk {
    timestamps: Vec<i64>,
    columns: Vec<Cells>,
}

impl RowSource for OpenChunk {
    fn timestamps(&self) -> &[i64] {
        &self.timestamps
    }

    fn value(&self, column: usize, row: usize) -> Option<f64> {
        let cells = self.columns.get(column)?;
        cells.present[row].then(|| cells.values[row])
    }
}

impl OpenChunk {
    /// A chunk of rows with ascending timestamps, and the cells of each column.
    pub fn new(timestamps: Vec<i64>, columns: impl Iterator<Item = Vec<Option<f64>>>) -> Self {
        let cells = |cells: Vec<Option<f64>>| Cells {
            values: cells.iter().map(|cell| cell.unwrap_or(0.0)).collect(),
            present: cells.iter().map(Option::is_some).collect(),
        };
        Self { timestamps, columns: columns.map(cells).collect() }
    }

    /// Bytes of the cells.
    pub fn n_bytes(&self) -> usize {
        let bytes_per_row = size_of::<i64>() + self.columns.len() * (size_of::<f64>() + size_of::<bool>());
        self.timestamps.len() * bytes_per_row
    }

    /// Writes an empty cell. Keeps the value of a full one.
    pub fn set(&mut self, column: usize, timestamp_ms: i64, value: f64) -> PushOutcome {
        let row = self.get_or_insert_row(timestamp_ms);
        let n_rows = self.timestamps.len();
        if self.columns.len() <= column {
            self.columns.resize_with(column + 1, || Cells::absent(n_rows));
        }
        let cells = &mut self.columns[column];
        if !cells.present[row] {
            cells.present[row] = true;
            cells.values[row] = value;
            PushOutcome::Stored
        } else if cells.values[row].to_bits() == value.to_bits() {
            PushOutcome::Duplicate
        } else {
            PushOutcome::Conflict
        }
    }

    /// Overwrites a full cell.
    pub fn replace(&mut self, column: usize, timestamp_ms: i64, value: f64) {
        let row = self.get_or_insert_row(timestamp_ms);
        self.columns[column].values[row] = value;
    }

    /// The row of a timestamp; inserts it if there is none.
    fn get_or_insert_row(&mut self, timestamp_ms: i64) -> usize {
        let row = match self.timestamps.last() {
            Some(last) if *last >= timestamp_ms => match self.timestamps.binary_search(&timestamp_ms) {
                Ok(row) => return row,
                Err(row) => row,
            },
            _ => self.timestamps.len(),
        };
        self.timestamps.insert(row, timestamp_ms);
        for cells in &mut self.columns {
            cells.values.insert(row, 0.0);
            cells.present.insert(row, false);
        }
        row
    }

    /// A copy of some rows and columns.
    pub fn slice(&self, rows: Range<usize>, mut columns: Vec<usize>) -> ChunkSlice {
        columns.sort_unstable();
        columns.dedup();
        let cells = |column: &usize| match self.columns.get(*column) {
            Some(cells) => Cells {
                values: cells.values[rows.clone()].to_vec(),
                present: cells.present[rows.clone()].to_vec(),
            },
            None => Cells::absent(rows.len()),
        };
        let copied = Self {
            timestamps: self.timestamps[rows.clone()].to_vec(),
            columns: columns.iter().map(cells).collect(),
        };
        ChunkSlice { rows: copied, columns }
    }

    /// Splits off and seals the older half, once there are twice [`CHUNK_ROWS`].
    pub fn seal_when_full(&mut self) -> Option<SealedChunk> {
        if self.timestamps.len() < 2 * CHUNK_ROWS {
            return None;
        }
        let newer = Self {
            timestamps: self.timestamps.split_off(CHUNK_ROWS),
            columns: self
                .columns
                .iter_mut()
                .map(|cells| Cells {
                    values: cells.values.split_off(CHUNK_ROWS),
                    present: cells.present.split_off(CHUNK_ROWS),
                })
                .collect(),
        };
        Some(std::mem::replace(self, newer).seal())
    }

    /// Turns the rows into Arrow arrays. A column without a value takes no memory.
    pub fn seal(self) -> SealedChunk {
        let column = |cells: Cells| {
            let nulls = NullBuffer::new(BooleanBuffer::from(cells.present));
            let has_values = nulls.null_count() < cells.values.len();
            let mut values = cells.values;
            values.shrink_to_fit();
            has_values.then(|| Float64Array::new(ScalarBuffer::from(values), Some(nulls)))
        };
        let mut timestamps = self.timestamps;
        timestamps.shrink_to_fit();
        SealedChunk {
            timestamps: Int64Array::new(ScalarBuffer::from(timestamps), None),
            columns: self.columns.into_iter().map(column).collect(),
        }
    }
}

/// A copy of some rows and columns, addressed by the indices of the columns in the window.
#[derive(Debug)]
pub struct ChunkSlice {
    rows: OpenChunk,
    /// Ascending.
    columns: Vec<usize>,
}

impl ChunkSlice {
    /// Bytes of the cells.
    pub fn n_bytes(&self) -> usize {
        self.rows.n_bytes()
    }

    /// Drops the columns for which `is_kept` is false.
    pub fn retain(&mut self, mut is_kept: impl FnMut(usize) -> bool) {
        let all = std::mem::take(&mut self.columns).into_iter().zip(std::mem::take(&mut self.rows.columns));
        (self.columns, self.rows.columns) = all.filter(|(column, _)| is_kept(*column)).unzip();
    }
}

impl RowSource for ChunkSlice {
    fn timestamps(&self) -> &[i64] {
        &self.rows.timestamps
    }

    fn value(&self, column: usize, row: usize) -> Option<f64> {
        self.rows.value(self.columns.binary_search(&column).ok()?, row)
    }
}

/// Rows in immutable arrays.
#[derive(Debug)]
pub struct SealedChunk {
    timestamps: Int64Array,
    columns: Vec<Option<Float64Array>>,
}

impl RowSource for SealedChunk {
    fn timestamps(&self) -> &[i64] {
        self.timestamps.values()
    }

    fn value(&self, column: usize, row: usize) -> Option<f64> {
        let array = self.columns.get(column)?.as_ref()?;
        array.is_valid(row).then(|| array.value(row))
    }
}

impl SealedChunk {
    fn n_bytes(&self) -> usize {
        let columns = self.columns.iter().flatten();
        self.timestamps.get_buffer_memory_size() + columns.map(Array::get_buffer_memory_size).sum::<usize>()
    }

    /// A mutable copy.
    fn thaw(&self) -> OpenChunk {
        let n_rows = self.timestamps.len();
        let column = |array: &Option<Float64Array>| {
            array.as_ref().map_or_else(
                || Cells::absent(n_rows),
                |array| Cells {
                    values: array.values().to_vec(),
                    present: (0..n_rows).map(|row| array.is_valid(row)).collect(),
                },
            )
        };
        OpenChunk {
            timestamps: self.timestamps.values().to_vec(),
            columns: self.columns.iter().map(column).collect(),
        }
    }
}

/// Rows before the open ones; never empty. Clones share the rows, which are copied on write.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// Rows without changes since they were sealed.
    Sealed(Arc<SealedChunk>),
    /// Rows that received late samples, and may receive more.
    Thawed(Arc<OpenChunk>),
}

impl From<SealedChunk> for Chunk {
    fn from(sealed: SealedChunk) -> Self {
        Self::Sealed(Arc::new(sealed))
    }
}

impl RowSource for Chunk {
    fn timestamps(&self) -> &[i64] {
        match self {
            Self::Sealed(rows) => rows.timestamps(),
            Self::Thawed(rows) => rows.timestamps(),
        }
    }

    fn value(&self, column: usize, row: usize) -> Option<f64> {
        match self {
            Self::Sealed(rows) => rows.value(column, row),
            Self::Thawed(rows) => rows.value(column, row),
        }
    }
}

impl Chunk {
    /// Bytes of the cells.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Sealed(rows) => rows.n_bytes(),
            Self::Thawed(rows) => rows.n_bytes(),
        }
    }

    /// Timestamp of the oldest row.
    pub fn first_ms(&self) -> i64 {
        *self.timestamps().first().expect("a chunk has rows")
    }

    /// Timestamp of the newest row.
    pub fn last_ms(&self) -> i64 {
        *self.timestamps().last().expect("a chunk has rows")
    }

    /// The rows for a change; thaws a sealed chunk.
    pub fn thaw(&mut self) -> &mut OpenChunk {
        if let Self::Sealed(rows) = self {
            *self = Self::Thawed(Arc::new(rows.thaw()));
        }
        match self {
            Self::Thawed(rows) => Arc::make_mut(rows),
            Self::Sealed(_) => unreachable!("the chunk was thawed"),
        }
    }

    /// Seals a thawed chunk.
    pub fn seal(&mut self) {
        if let Self::Thawed(rows) = self {
            *self = Arc::unwrap_or_clone(std::mem::take(rows)).seal().into();
        }
    }
}
