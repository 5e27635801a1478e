//! Rows that can still change.
//!
//! A column takes memory for its own cells only. In a group of several targets each timestamp is a row of a few
//! columns, and senders choose the timestamps: with a cell for each row and column, a sample would
//! cost as many cells as the group has columns.

use super::cells::{Cells, RowSource, Values};
use super::slots::ColumnSlots;
use super::timestamps::Timestamps;
use std::ops::Range;

/// Cells of a column in a sealed chunk.
pub const CHUNK_ROWS: usize = 64;
/// Cells of a column that stay open for late samples, at least: eight minutes at an interval of 15 s.
pub const OPEN_ROWS: usize = 32;
/// Rows of an open chunk, at most: those of a hundred targets with as many cells each.
const MAX_CHUNK_ROWS: usize = 1 << 14;

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

/// The cells of a column: those of the first rows while they have no gap, then each with its timestamp.
#[derive(Clone, Debug, Default)]
struct OpenColumn {
    /// Empty, or one for each value.
    times: Vec<i64>,
    values: Vec<f64>,
}

impl OpenColumn {
    fn cells(&self) -> Cells<'_> {
        match self.times.is_empty() {
            true => Cells::of_first_rows(Values::Plain(&self.values)),
            false => Cells::of_times(&self.times, Values::Plain(&self.values)),
        }
    }

    fn n_bytes(&self) -> usize {
        (self.times.capacity() + self.values.capacity()) * size_of::<f64>()
    }

    /// The position of the cell of a row; `Err` with the position for it if it is absent.
    fn find(&self, row: usize, timestamp_ms: i64) -> Result<usize, usize> {
        let len = self.values.len();
        match self.times.last() {
            None if row < len => Ok(row),
            None => Err(len),
            Some(last) if *last < timestamp_ms => Err(len),
            Some(_) => self.times.binary_search(&timestamp_ms),
        }
    }

    /// Writes an empty cell. Keeps the value of a full one.
    fn set(&mut self, timestamps: &[i64], row: usize, value: f64) -> PushOutcome {
        let timestamp_ms = timestamps[row];
        match self.find(row, timestamp_ms) {
            Ok(position) if self.values[position].to_bits() == value.to_bits() => PushOutcome::Duplicate,
            Ok(_) => PushOutcome::Conflict,
            Err(position) => {
                if self.times.is_empty() && row > position {
                    self.add_times(timestamps);
                    self.times.push(timestamp_ms);
                } else if !self.times.is_empty() {
                    self.times.insert(position, timestamp_ms);
                }
                if self.values.len() == self.values.capacity() {
                    // Doubled, they would have room for a third more than there are at most.
                    self.values.reserve_exact(self.values.len().clamp(4, OPEN_ROWS));
                }
                self.values.insert(position, value);
                PushOutcome::Stored
            }
        }
    }

    /// Gives each cell its timestamp.
    fn add_times(&mut self, timestamps: &[i64]) {
        if self.times.is_empty() {
            self.times.extend_from_slice(&timestamps[..self.values.len()]);
        }
    }

    /// Drops the timestamps if the cells are those of the first rows.
    fn drop_times(&mut self, timestamps: &[i64]) {
        let of_first_rows = self.values.len().checked_sub(1).and_then(|last| timestamps.get(last));
        if self.times.last() == of_first_rows {
            self.times = Vec::new();
        }
    }

    /// Splits off the cells from a row on.
    fn split_off(&mut self, timestamps: Timestamps<'_>, row: usize) -> Self {
        let position = self.cells().positions(timestamps, row..timestamps.len()).start;
        let times = if self.times.is_empty() { Vec::new() } else { self.times.split_off(position) };
        Self { times, values: self.values.split_off(position) }
    }

    /// A copy of the cells in some rows.
    fn slice(&self, timestamps: Timestamps<'_>, rows: Range<usize>) -> Self {
        let positions = self.cells().positions(timestamps, rows);
        let times = self.times.get(positions.clone()).unwrap_or_default().to_vec();
        Self { times, values: self.values[positions].to_vec() }
    }
}

/// Rows that can still change.
#[derive(Clone, Debug, Default)]
pub struct OpenChunk {
    timestamps: Vec<i64>,
    slots: ColumnSlots,
    columns: Vec<OpenColumn>,
    /// Cells of the column that has most.
    most_cells: usize,
}

impl RowSource for OpenChunk {
    fn timestamps(&self) -> Timestamps<'_> {
        Timestamps::Plain(&self.timestamps)
    }

    fn cells(&self, column: usize) -> Cells<'_> {
        self.slots.get(column).map_or(Cells::NONE, |slot| self.columns[slot].cells())
    }
}

impl OpenChunk {
    /// A chunk of rows with ascending timestamps, and the cells of some columns.
    pub fn new<'a>(timestamps: Vec<i64>, columns: impl Iterator<Item = (usize, Cells<'a>)>) -> Self {
        let open = |(column, cells): (usize, Cells)| {
            let times = cells.times(Timestamps::Plain(&timestamps));
            (column, OpenColumn { times, values: cells.values().to_vec() })
        };
        let columns: Vec<_> = columns.map(open).collect();
        Self::of_columns(timestamps, columns)
    }

    /// A chunk of those columns that have cells.
    fn of_columns(timestamps: Vec<i64>, columns: impl IntoIterator<Item = (usize, OpenColumn)>) -> Self {
        let mut chunk = Self { timestamps, ..Self::default() };
        for (column, mut cells) in columns {
            if cells.values.is_empty() {
                continue;
            }
            cells.drop_times(&chunk.timestamps);
            chunk.most_cells = chunk.most_cells.max(cells.values.len());
            chunk.slots.insert(column, chunk.columns.len());
            chunk.columns.push(cells);
        }
        chunk
    }

    /// The columns that have cells, and their values.
    pub fn values(&self) -> impl Iterator<Item = (usize, &[f64])> {
        self.slots.iter().map(|(column, slot)| (column, &self.columns[slot].values[..]))
    }

    /// Timestamp of the oldest row.
    pub fn first_ms(&self) -> Option<i64> {
        self.timestamps.first().copied()
    }

    /// Timestamp of the newest row.
    pub fn last_ms(&self) -> Option<i64> {
        self.timestamps.last().copied()
    }

    /// Bytes in use.
    pub fn n_bytes(&self) -> usize {
        self.timestamps.capacity() * size_of::<i64>()
            + self.slots.n_bytes()
            + self.columns.capacity() * size_of::<OpenColumn>()
            + self.columns.iter().map(OpenColumn::n_bytes).sum::<usize>()
    }

    /// The newest cell of a column.
    pub fn newest_value(&self, column: usize) -> Option<f64> {
        self.slots.get(column).and_then(|slot| self.columns[slot].values.last().copied())
    }

    /// Writes an empty cell. Keeps the value of a full one.
    pub fn set(&mut self, column: usize, timestamp_ms: i64, value: f64) -> PushOutcome {
        let row = self.get_or_insert_row(timestamp_ms);
        let slot = self.slots.get(column).unwrap_or_else(|| {
            self.columns.push(OpenColumn::default());
            self.slots.insert(column, self.columns.len() - 1);
            self.columns.len() - 1
        });
        let cells = &mut self.columns[slot];
        let outcome = cells.set(&self.timestamps, row, value);
        self.most_cells = self.most_cells.max(cells.values.len());
        outcome
    }

    /// Overwrites a full cell.
    pub fn replace(&mut self, column: usize, timestamp_ms: i64, value: f64) {
        let row = self.get_or_insert_row(timestamp_ms);
        let Some(slot) = self.slots.get(column) else { return };
        let cells = &mut self.columns[slot];
        if let Ok(position) = cells.find(row, timestamp_ms) {
            cells.values[position] = value;
        }
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
        if row < self.timestamps.len() {
            for cells in self.columns.iter_mut().filter(|cells| cells.values.len() > row) {
                cells.add_times(&self.timestamps);
            }
        }
        self.timestamps.insert(row, timestamp_ms);
        row
    }

    /// A copy of some rows and columns.
    pub fn slice(&self, rows: Range<usize>, columns: impl Iterator<Item = usize>) -> Self {
        let slice = |column: usize| {
            let slot = self.slots.get(column)?;
            Some((column, self.columns[slot].slice(self.timestamps(), rows.clone())))
        };
        Self::of_columns(self.timestamps[rows.clone()].to_vec(), columns.filter_map(slice))
    }

    /// Drops the columns for which `is_kept` is false.
    pub fn retain_columns(&mut self, mut is_kept: impl FnMut(usize) -> bool) {
        let Self { timestamps, slots, mut columns, .. } = std::mem::take(self);
        let kept = slots.iter().filter(|(column, _)| is_kept(*column));
        let kept: Vec<_> = kept.map(|(column, slot)| (column, std::mem::take(&mut columns[slot]))).collect();
        *self = Self::of_columns(timestamps, kept);
    }

    /// Splits off the older rows for a sealed chunk, once a column has cells for it and so many more.
    pub fn split_when_full(&mut self, n_newer: usize) -> Option<Self> {
        let full = CHUNK_ROWS + n_newer;
        if self.most_cells < full && self.timestamps.len() < MAX_CHUNK_ROWS {
            return None;
        }
        let Self { mut timestamps, slots, mut columns, .. } = std::mem::take(self);
        let n_older = timestamps.len() * CHUNK_ROWS / full;
        let newer: Vec<_> = slots
            .iter()
            .map(|(column, slot)| (column, columns[slot].split_off(Timestamps::Plain(&timestamps), n_older)))
            .collect();
        *self = Self::of_columns(timestamps.split_off(n_older), newer);
        let older: Vec<_> =
            slots.iter().map(|(column, slot)| (column, std::mem::take(&mut columns[slot]))).collect();
        Some(Self::of_columns(timestamps, older))
    }
}
