//! Rows that can still change.
//!
//! A column takes memory for its own cells only. In a group of several targets each timestamp is a row of a few
//! columns, and senders choose the timestamps: with a cell for each row and column, a sample would
//! cost as many cells as the group has columns.

use super::cells::{Cells, ColumnSource, Timestamped, Values};
use super::slots::ColumnSlots;
use super::timestamps::Timestamps;
use std::ops::Range;

/// Cells of a column in a sealed chunk.
pub const CHUNK_ROWS: usize = 64;
/// Rows of an open chunk, at most: those of a hundred targets with as many cells each.
pub const MAX_CHUNK_ROWS: usize = 1 << 14;

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
                self.reserve();
                self.values.insert(position, value);
                PushOutcome::Stored
            }
        }
    }

    /// Appends the cell of the last row.
    fn push(&mut self, timestamps: &[i64], value: f64) {
        let row = timestamps.len() - 1;
        if self.times.is_empty() && row > self.values.len() {
            self.add_times(timestamps);
            self.times.push(timestamps[row]);
        } else if !self.times.is_empty() {
            self.times.push(timestamps[row]);
        }
        self.reserve();
        self.values.push(value);
    }

    /// Appends the cells of the rows from `n_rows` on.
    fn append(&mut self, n_rows: usize, newer: &Self, timestamps: &[i64]) {
        let is_gapless = self.times.is_empty() && self.values.len() == n_rows && newer.times.is_empty();
        if !is_gapless {
            self.add_times(timestamps);
            let first_rows = &timestamps[n_rows..][..newer.values.len()];
            self.times.extend_from_slice(if newer.times.is_empty() { first_rows } else { &newer.times });
        }
        self.values.extend_from_slice(&newer.values);
    }

    /// Makes room for a value. Doubled, they would have room for a third more than there are at most.
    fn reserve(&mut self) {
        if self.values.len() == self.values.capacity() {
            self.values.reserve_exact(self.values.len().clamp(4, CHUNK_ROWS / 2));
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

impl Timestamped for OpenChunk {
    fn timestamps(&self) -> Timestamps<'_> {
        Timestamps::Plain(&self.timestamps)
    }
}

impl ColumnSource for OpenChunk {
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

    /// Cells of the column that has most.
    pub fn most_cells(&self) -> usize {
        self.most_cells
    }

    /// Writes an empty cell. Keeps the value of a full one.
    pub fn set(&mut self, column: usize, timestamp_ms: i64, value: f64) -> PushOutcome {
        let row = self.get_or_insert_row(timestamp_ms);
        let slot = self.get_or_add_slot(column);
        let cells = &mut self.columns[slot];
        let outcome = cells.set(&self.timestamps, row, value);
        self.most_cells = self.most_cells.max(cells.values.len());
        outcome
    }

    /// Appends a row that is newer than all others, with its present cells.
    pub fn push_row(&mut self, timestamp_ms: i64, cells: impl Iterator<Item = (usize, f64)>) {
        self.timestamps.push(timestamp_ms);
        for (column, value) in cells {
            let slot = self.get_or_add_slot(column);
            let cells = &mut self.columns[slot];
            cells.push(&self.timestamps, value);
            self.most_cells = self.most_cells.max(cells.values.len());
        }
    }

    /// Appends rows that are newer than all others.
    pub fn append(&mut self, newer: Self) {
        let n_rows = self.timestamps.len();
        self.timestamps.extend_from_slice(&newer.timestamps);
        for (column, slot) in newer.slots.iter() {
            let (slot, newer_cells) = (self.get_or_add_slot(column), &newer.columns[slot]);
            let cells = &mut self.columns[slot];
            cells.append(n_rows, newer_cells, &self.timestamps);
            self.most_cells = self.most_cells.max(cells.values.len());
        }
    }

    fn get_or_add_slot(&mut self, column: usize) -> usize {
        self.slots.get(column).unwrap_or_else(|| {
            self.columns.push(OpenColumn::default());
            self.slots.insert(column, self.columns.len() - 1);
            self.columns.len() - 1
        })
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

    /// True if a column has cells for half a chunk, or if there are many rows.
    pub fn is_full(&self) -> bool {
        self.most_cells >= CHUNK_ROWS / 2 || self.timestamps.len() >= MAX_CHUNK_ROWS
    }

    /// Splits off the older half of the rows, once a column has the cells of two chunks.
    pub fn split_when_full(&mut self) -> Option<Self> {
        if self.most_cells < 2 * CHUNK_ROWS && self.timestamps.len() < MAX_CHUNK_ROWS {
            return None;
        }
        let Self { mut timestamps, slots, mut columns, .. } = std::mem::take(self);
        let n_older = timestamps.len() / 2;
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
