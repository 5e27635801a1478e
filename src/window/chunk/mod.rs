//! A run of rows: open (vectors) or sealed (packed).

mod cells;
mod newest;
mod open;
mod packed;
mod sealed;
mod slots;
mod timestamps;

use cells::{Cells, ColumnSource};
use sealed::SealedChunk;
use std::sync::Arc;
use timestamps::Timestamps;

pub use cells::{RowSource, Timestamped, in_range};
pub use newest::NewestRows;
pub use open::{CHUNK_ROWS, OpenChunk, PushOutcome};

use open::MAX_CHUNK_ROWS;

/// Rows before the open ones; never empty. Clones share the rows, which are copied on write.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// Rows without changes since they were sealed.
    Sealed(Arc<SealedChunk>),
    /// Rows that received late samples, and may receive more.
    Thawed(Arc<OpenChunk>),
}

impl From<OpenChunk> for Chunk {
    fn from(open: OpenChunk) -> Self {
        Self::Sealed(Arc::new(open.into()))
    }
}

impl Timestamped for Chunk {
    fn timestamps(&self) -> Timestamps<'_> {
        match self {
            Self::Sealed(rows) => rows.timestamps(),
            Self::Thawed(rows) => rows.timestamps(),
        }
    }
}

impl ColumnSource for Chunk {
    fn cells(&self, column: usize) -> Cells<'_> {
        match self {
            Self::Sealed(rows) => rows.cells(column),
            Self::Thawed(rows) => rows.cells(column),
        }
    }
}

impl Chunk {
    /// Bytes in use.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Sealed(rows) => rows.n_bytes(),
            Self::Thawed(rows) => rows.n_bytes(),
        }
    }

    /// True if there is room for as many rows again.
    pub fn is_half(&self) -> bool {
        let most_cells = match self {
            Self::Sealed(rows) => rows.most_cells(),
            Self::Thawed(rows) => rows.most_cells(),
        };
        most_cells <= CHUNK_ROWS / 2 && self.timestamps().len() < MAX_CHUNK_ROWS
    }

    /// Timestamp of the oldest row.
    pub fn first_ms(&self) -> i64 {
        self.timestamps().get(0).expect("a chunk has rows")
    }

    /// Timestamp of the newest row.
    pub fn last_ms(&self) -> i64 {
        match self {
            Self::Sealed(rows) => rows.last_ms(),
            Self::Thawed(rows) => rows.last_ms().expect("a chunk has rows"),
        }
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

    /// The rows for a change, out of their chunk.
    pub fn into_open(self) -> OpenChunk {
        match self {
            Self::Sealed(rows) => rows.thaw(),
            Self::Thawed(rows) => Arc::unwrap_or_clone(rows),
        }
    }

    /// Seals a thawed chunk.
    pub fn seal(&mut self) {
        if let Self::Thawed(rows) = self {
            *self = Arc::unwrap_or_clone(std::mem::take(rows)).into();
        }
    }
}
