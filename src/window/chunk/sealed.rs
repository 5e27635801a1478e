//! Rows that do not change: the packed values of all columns one after the other in an Arrow buffer, and the rows of those
//! columns that lack some.

use super::cells::{Cells, ColumnSource, Timestamped, Values};
use super::open::OpenChunk;
use super::packed::{PackedValues, Packer, Packing};
use super::slots::ColumnSlots;
use super::timestamps::Timestamps;
use arrow_buffer::Buffer;

/// Rows that do not change.
#[derive(Debug)]
pub struct SealedChunk {
    last_ms: i64,
    timestamps: Packing,
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
}

impl Timestamped for SealedChunk {
    fn timestamps(&self) -> Timestamps<'_> {
        Timestamps::Packed(PackedValues::new(self.timestamps, &self.values))
    }
}

impl ColumnSource for SealedChunk {
    fn cells(&self, column: usize) -> Cells<'_> {
        let Some(slot) = self.slots.get(column) else { return Cells::NONE };
        let SealedColumn { packing, first_row } = self.columns[slot];
        let values = PackedValues::new(packing, &self.values);
        let (first_row, n_cells) = (first_row as usize, values.len());
        match n_cells == self.timestamps().len() {
            true => Cells::of_first_rows(Values::Packed(values)),
            false => Cells::of_rows(&self.rows[first_row..first_row + n_cells], Values::Packed(values)),
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
            let packing = packer.pack(values.iter().map(|value| value.to_bits()));
            columns.push(SealedColumn { packing, first_row: rows.len() as u32 });
            if values.len() < timestamps.len() {
                rows.extend(open.cells(column).rows(timestamps).map(|row| row as u16));
            }
        }
        let n_rows = timestamps.len();
        Self {
            last_ms: timestamps.at(n_rows - 1),
            timestamps: packer.pack((0..n_rows).map(|row| timestamps.at(row).cast_unsigned())),
            slots,
            columns: columns.into(),
            rows: rows.into(),
            values: packer.finish(),
        }
    }
}

impl SealedChunk {
    /// Timestamp of the newest row.
    pub fn last_ms(&self) -> i64 {
        self.last_ms
    }

    /// Cells of the column that has most.
    pub fn most_cells(&self) -> usize {
        let n_cells = self.columns.iter().map(|column| PackedValues::new(column.packing, &self.values).len());
        n_cells.max().unwrap_or(0)
    }

    /// Bytes in use.
    pub fn n_bytes(&self) -> usize {
        let Self { slots, columns, rows, values, .. } = self;
        size_of::<Self>()
            + slots.n_bytes()
            + size_of_val(&columns[..])
            + size_of_val(&rows[..])
            + values.capacity()
    }

    /// A mutable copy.
    pub fn thaw(&self) -> OpenChunk {
        let columns = self.slots.iter().map(|(column, _)| (column, self.cells(column)));
        OpenChunk::new(self.timestamps().to_vec(), columns)
    }
}
