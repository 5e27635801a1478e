//! The newest rows of a window, row by row.
//!
//! The samples of a scrape arrive one after another, and a server has more groups than its caches hold. In columns each
//! sample would wait for cache lines of its own; the samples of a row share a few.

use super::cells::{RowSource, Timestamped};
use super::open::{OpenChunk, PushOutcome};
use super::timestamps::Timestamps;
use crate::prom::Sample;
use std::hint::black_box;
use std::ops::Range;

/// Words in a line of the cache.
const WORDS_PER_LINE: usize = 8;
/// Lines of a record that are read ahead; the processor itself reads those of a longer one ahead.
const MAX_LINES_READ: usize = 8;
/// Rows that memory is taken for at once.
const GROWTH_ROWS: usize = 8;

/// Rows with a place for each of their columns.
#[derive(Clone, Debug)]
pub struct NewestRows {
    timestamps: Vec<i64>,
    /// The columns that the rows have places for.
    columns: Range<usize>,
    /// A record for each row and for some to come: a bit for each column that is set if its cell is present, and then the
    /// bits of the values.
    records: Vec<u64>,
}

impl NewestRows {
    /// No rows, with places for these columns.
    pub fn new(columns: Range<usize>) -> Self {
        Self { timestamps: Vec::new(), columns, records: Vec::new() }
    }

    /// The columns that the rows have places for.
    pub fn columns(&self) -> &Range<usize> {
        &self.columns
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    /// Bytes in use.
    pub fn n_bytes(&self) -> usize {
        self.timestamps.capacity() * size_of::<i64>() + self.records.capacity() * size_of::<u64>()
    }

    /// Words of a record before the values.
    fn n_words(&self) -> usize {
        self.columns.len().div_ceil(u64::BITS as usize)
    }

    fn record_len(&self) -> usize {
        self.n_words() + self.columns.len()
    }

    fn record(&self, row: usize) -> &[u64] {
        &self.records[row * self.record_len()..][..self.record_len()]
    }

    /// Writes an empty cell of one of the [columns](Self::columns). Keeps the value of a full one.
    #[inline]
    pub fn set(&mut self, column: usize, timestamp_ms: i64, value: f64) -> PushOutcome {
        let row = self.get_or_insert_row(timestamp_ms);
        let (n_words, len) = (self.n_words(), self.record_len());
        let (present, values) = self.records[row * len..][..len].split_at_mut(n_words);
        let position = column - self.columns.start;
        let (word, bit) = presence(position);
        if present[word] & bit == 0 {
            present[word] |= bit;
            values[position] = value.to_bits();
            PushOutcome::Stored
        } else if values[position] == value.to_bits() {
            PushOutcome::Duplicate
        } else {
            PushOutcome::Conflict
        }
    }

    /// Overwrites a full cell.
    pub fn replace(&mut self, column: usize, timestamp_ms: i64, value: f64) {
        let Ok(row) = self.timestamps.binary_search(&timestamp_ms) else { return };
        if self.value(column, row).is_some() {
            let index = row * self.record_len() + self.n_words() + column - self.columns.start;
            self.records[index] = value.to_bits();
        }
    }

    /// The row of a timestamp; inserts it if there is none.
    #[inline]
    fn get_or_insert_row(&mut self, timestamp_ms: i64) -> usize {
        match self.timestamps.last() {
            Some(last) if *last == timestamp_ms => self.timestamps.len() - 1,
            _ => self.timestamps.binary_search(&timestamp_ms).unwrap_or_else(|row| {
                self.insert_row(row, timestamp_ms);
                row
            }),
        }
    }

    fn insert_row(&mut self, row: usize, timestamp_ms: i64) {
        let (n_words, len) = (self.n_words(), self.record_len());
        let (start, end) = (row * len, self.timestamps.len() * len);
        if self.records.len() == end {
            self.timestamps.reserve_exact(GROWTH_ROWS);
            self.records.reserve_exact(GROWTH_ROWS * len);
            self.records.resize(end + GROWTH_ROWS * len, 0);
        }
        self.timestamps.insert(row, timestamp_ms);
        self.records.copy_within(start..end, start + len);
        self.records[start..start + n_words].fill(0);
    }

    fn sample(&self, column: usize, row: usize) -> Option<Sample> {
        let value = self.value(column, row)?;
        Some(Sample { timestamp_ms: self.timestamps[row], value })
    }

    /// The present cells of a row, as column and value.
    fn row_cells(&self, row: usize) -> impl Iterator<Item = (usize, f64)> {
        let (present, values) = self.record(row).split_at(self.n_words());
        let first = self.columns.start;
        present.iter().zip((0..).step_by(u64::BITS as usize)).flat_map(move |(word, start)| {
            let without_lowest = |bits: &u64| Some(bits & (bits - 1)).filter(|bits| *bits != 0);
            let remaining = std::iter::successors(Some(*word).filter(|bits| *bits != 0), without_lowest);
            remaining.map(move |bits| {
                let position = start + bits.trailing_zeros() as usize;
                (first + position, f64::from_bits(values[position]))
            })
        })
    }

    /// The present cells of some rows, ascending by time, as column and sample.
    pub fn cells(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, Sample)> {
        rows.flat_map(|row| {
            let timestamp_ms = self.timestamps[row];
            self.row_cells(row).map(move |(column, value)| (column, Sample { timestamp_ms, value }))
        })
    }

    /// Appends the oldest rows to older ones, and drops them here.
    pub fn move_oldest(&mut self, n_rows: usize, older: &mut OpenChunk) {
        for row in 0..n_rows {
            older.push_row(self.timestamps[row], self.row_cells(row));
        }
        let moved = n_rows * self.record_len();
        self.records.copy_within(moved.., 0);
        self.timestamps.drain(..n_rows);
    }

    /// Appends some cells of some rows to older ones.
    pub fn copy(&self, rows: Range<usize>, columns: &[usize], older: &mut OpenChunk) {
        for row in rows {
            let cells = columns.iter().filter_map(|column| Some((*column, self.value(*column, row)?)));
            older.push_row(self.timestamps[row], cells);
        }
    }

    /// Reads what the next [`set`](Self::set) reads or writes, if it starts a row after all others.
    pub fn prefetch(&self) {
        black_box(self.timestamps.last());
        let next_record = self.records.get(self.len() * self.record_len()..).unwrap_or_default();
        let read = next_record.iter().take(self.record_len().min(MAX_LINES_READ * WORDS_PER_LINE));
        read.step_by(WORDS_PER_LINE).for_each(|word| _ = black_box(*word));
    }
}

/// The word and the bit of the presence of a column.
#[inline]
fn presence(position: usize) -> (usize, u64) {
    (position / u64::BITS as usize, 1 << (position % u64::BITS as usize))
}

impl Timestamped for NewestRows {
    fn timestamps(&self) -> Timestamps<'_> {
        Timestamps::Plain(&self.timestamps)
    }
}

impl RowSource for NewestRows {
    fn value(&self, column: usize, row: usize) -> Option<f64> {
        if !self.columns.contains(&column) || row >= self.len() {
            return None;
        }
        let (present, values) = self.record(row).split_at(self.n_words());
        let position = column - self.columns.start;
        let (word, bit) = presence(position);
        (present[word] & bit != 0).then(|| f64::from_bits(values[position]))
    }

    fn n_cells(&self, column: usize, rows: Range<usize>) -> usize {
        rows.filter(|row| self.value(column, *row).is_some()).count()
    }

    fn samples(&self, column: usize, rows: Range<usize>, out: &mut Vec<Sample>) {
        out.extend(rows.filter_map(|row| self.sample(column, row)));
    }

    fn newest_sample(&self, column: usize, rows: Range<usize>) -> Option<Sample> {
        rows.rev().find_map(|row| self.sample(column, row))
    }
}
