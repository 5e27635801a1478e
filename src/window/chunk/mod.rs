//! A run of rows: open (vectors) or sealed (packed).

mod cells;
mod open;
mod packed;
mod sealed;
mod slots;
mod timestamps;

use sealed::SealedChunk;
use std::sync::Arc;
use timestamps::Timestamps;

pub use cells::{Cells, RowSource, in_range};
pub use open::{CHUNK_ROWS, OPEN_ROWS, OpenChunk, PushOutcome};

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

impl RowSource for Chunk {
    fn timestamps(&self) -> Timestamps<'_> {
        match self {
            Self::Sealed(rows) => rows.timestamps(),
            Self::Thawed(rows) => rows.timestamps(),
        }
    }

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

    /// Seals a thawed chunk.
    pub fn seal(&mut self) {
        if let Self::Thawed(rows) = self {
            *self = Arc::unwrap_or_clone(std::mem::take(rows)).into();
        }
    }
}
