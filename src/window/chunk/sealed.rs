//! Rows that do not change, in Arrow buffers: the values of all columns one after the other, and the rows of those
//! columns that lack some.

use super::cells::{Cells, RowSource};
use super::open::OpenChunk;
use super::slots::ColumnSlots;
use arrow_buffer::ScalarBuffer;

/// Rows in immutable buffers.
#[derive(Debug)]
pub struct SealedChunk {
    timestamps: ScalarBuffer<i64>,
    slots: ColumnSlots,
    columns: Vec<SealedColumn>,
    rows: ScalarBuffer<u16>,
    values: ScalarBuffer<f64>,
}

/// The place of a column's cells.
#[derive(Clone, Copy, Debug)]
struct SealedColumn {
    first_value: u32,
    /// Of a column with fewer cells than the chunk has rows.
    first_row: u32,
    n_cells: u32,
}

impl RowSource for SealedChunk {
    fn timestamps(&self) -> &[i64] {
        &self.timestamps
    }

    fn cells(&self, column: usize) -> Cells<'_> {
        let Some(slot) = self.slots.get(column) else { return Cells::of_first_rows(&[]) };
        let SealedColumn { first_value, first_row, n_cells } = self.columns[slot];
        let (first_value, first_row, n_cells) = (first_value as usize, first_row as usize, n_cells as usize);
        let values = &self.values[first_value..first_value + n_cells];
        match n_cells == self.timestamps.len() {
            true => Cells::of_first_rows(values),
            false => Cells::of_rows(&self.rows[first_row..first_row + n_cells], values),
        }
    }
}

impl From<OpenChunk> for SealedChunk {
    fn from(open: OpenChunk) -> Self {
        let timestamps = open.timestamps();
        let (mut slots, mut columns) = (ColumnSlots::default(), Vec::new());
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for column in open.columns() {
            let cells = open.cells(column);
            let n_cells = cells.values().len();
            slots.insert(column, columns.len());
            columns.push(SealedColumn {
                first_value: values.len() as u32,
                first_row: rows.len() as u32,
                n_cells: n_cells as u32,
            });
            values.extend_from_slice(cells.values());
            if n_cells < timestamps.len() {
                rows.extend(cells.rows(timestamps).map(|row| row as u16));
            }
        }
        rows.shrink_to_fit();
        values.shrink_to_fit();
        columns.shrink_to_fit();
        let timestamps = timestamps.to_vec().into();
        Self { timestamps, slots, columns, rows: rows.into(), values: values.into() }
    }
}

impl SealedChunk {
    /// Bytes in use.
    pub fn n_bytes(&self) -> usize {
        let buffers = [self.timestamps.inner(), self.rows.inner(), self.values.inner()];
        self.slots.n_bytes()
            + size_of_val(&self.columns[..])
            + buffers.map(|buffer| buffer.capacity()).iter().sum::<usize>()
    }

    /// A mutable copy.
    pub fn thaw(&self) -> OpenChunk {
        let columns = self.slots.iter().map(|(column, _)| (column, self.cells(column)));
        OpenChunk::new(self.timestamps.to_vec(), columns)
    }
}
