//! Rows that do not change: the packed values of all columns one after the other in an Arrow buffer, and the rows of those
//! columns that lack some.

use super::cells::{Cells, RowSource, Values};
use super::open::OpenChunk;
use super::packed::{PackedValues, Packer, Packing};
use super::slots::ColumnSlots;
use arrow_buffer::Buffer;

/// Rows that do not change.
#[derive(Debug)]
pub struct SealedChunk {
    timestamps: Box<[i64]>,
    slots: ColumnSlots,
    columns: Box<[SealedColumn]>,
    rows: Box<[u16]>,
    values: Buffer,
}

/// The place of a column's cells.
#[derive(Clone, Copy, Debug)]
struct SealedColumn {
    packing: Packing,
    /// Of a column with fewer cells than the chunk has rows.
    first_row: u32,
    n_cells: u32,
}

impl RowSource for SealedChunk {
    fn timestamps(&self) -> &[i64] {
        &self.timestamps
    }

    fn cells(&self, column: usize) -> Cells<'_> {
        let Some(slot) = self.slots.get(column) else { return Cells::NONE };
        let SealedColumn { packing, first_row, n_cells } = self.columns[slot];
        let (first_row, n_cells) = (first_row as usize, n_cells as usize);
        let values = Values::Packed(PackedValues::new(packing, &self.values, n_cells));
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
        let (mut rows, mut packer) = (Vec::new(), Packer::default());
        for (column, values) in open.values() {
            slots.insert(column, columns.len());
            columns.push(SealedColumn {
                packing: packer.pack(values),
                first_row: rows.len() as u32,
                n_cells: values.len() as u32,
            });
            if values.len() < timestamps.len() {
                rows.extend(open.cells(column).rows(timestamps).map(|row| row as u16));
            }
        }
        Self {
            timestamps: timestamps.into(),
            slots,
            columns: columns.into(),
            rows: rows.into(),
            values: packer.finish(),
        }
    }
}

impl SealedChunk {
    /// Bytes in use.
    pub fn n_bytes(&self) -> usize {
        let Self { timestamps, slots, columns, rows, values } = self;
        size_of_val(&timestamps[..])
            + slots.n_bytes()
            + size_of_val(&columns[..])
            + size_of_val(&rows[..])
            + values.capacity()
    }

    /// A mutable copy.
    pub fn thaw(&self) -> OpenChunk {
        let columns = self.slots.iter().map(|(column, _)| (column, self.cells(column)));
        OpenChunk::new(self.timestamps.to_vec(), columns)
    }
}
