//! What a window holds at one moment, for whoever reads it while the window goes on.

use super::chunk::{Chunk, ChunkSlice, RowSource};
use super::{Column, FIRST_FEATURE, ModelRole, Score, in_range, scores};
use crate::prom::Sample;
use std::collections::BTreeSet;
use std::ops::Range;

/// Some columns of a window over a range of time. Chunks are shared with the window, and only of the
/// open rows is there a copy: two kilobytes a column.
#[derive(Debug)]
pub struct View {
    chunks: Vec<Chunk>,
    open: ChunkSlice,
    after_ms: i64,
    to_ms: i64,
}

impl View {
    pub(super) fn new(chunks: Vec<Chunk>, open: ChunkSlice, after_ms: i64, to_ms: i64) -> Self {
        Self { chunks, open, after_ms, to_ms }
    }

    fn slices(&self) -> impl Iterator<Item = (&dyn RowSource, Range<usize>)> {
        let chunks = self.chunks.iter().map(|chunk| chunk as &dyn RowSource);
        in_range(chunks.chain([&self.open as &dyn RowSource]), self.after_ms, self.to_ms)
    }

    /// Lets go of the open rows of other features.
    pub fn retain_features(&mut self, features: &BTreeSet<Column>) {
        let kept: Vec<usize> = features.iter().map(|feature| feature.index()).collect();
        self.open.retain(|column| column < FIRST_FEATURE || kept.binary_search(&column).is_ok());
    }

    /// Appends a feature's samples, ascending, staleness markers among them.
    pub fn samples(&self, column: Column, out: &mut Vec<Sample>) {
        for (rows, range) in self.slices() {
            rows.samples(column.index(), range, out);
        }
    }

    /// The scored rows, ascending.
    pub fn scores(&self, role: ModelRole) -> impl Iterator<Item = (i64, Score)> {
        scores(self.slices(), role)
    }
}
