//! A snapshot of a window for other threads, which stays unchanged while the window does not.

use super::chunk::{Chunk, OpenChunk, RowSource, in_range};
use super::column::{Column, FIRST_FEATURE};
use super::score::{ModelRole, Score, scores};
use crate::prom::Sample;
use std::collections::BTreeSet;
use std::ops::Range;

/// Some columns of a window in a range of time. Shares the chunks with the window and copies the other rows: at most
/// 71 values per column, and their times if the column has gaps.
#[derive(Debug)]
pub struct View {
    chunks: Vec<Chunk>,
    open: OpenChunk,
    after_ms: i64,
    to_ms: i64,
}

impl View {
    pub(super) fn new(chunks: Vec<Chunk>, open: OpenChunk, after_ms: i64, to_ms: i64) -> Self {
        Self { chunks, open, after_ms, to_ms }
    }

    fn slices(&self) -> impl Iterator<Item = (&dyn RowSource, Range<usize>)> {
        let chunks = self.chunks.iter().map(|chunk| chunk as &dyn RowSource);
        in_range(chunks.chain([&self.open as &dyn RowSource]), self.after_ms, self.to_ms)
    }

    /// Bytes of the copied rows and of the list of chunks.
    pub fn n_bytes(&self) -> usize {
        self.open.n_bytes() + size_of_val(&self.chunks[..])
    }

    /// Drops the open rows of other features.
    pub fn retain_features(&mut self, features: &BTreeSet<Column>) {
        let kept: Vec<usize> = features.iter().map(|feature| feature.index()).collect();
        self.open.retain_columns(|column| column < FIRST_FEATURE || kept.binary_search(&column).is_ok());
    }

    /// Number of samples of a feature.
    pub fn n_samples(&self, column: Column) -> usize {
        self.n_cells(column.index())
    }

    /// Number of rows with a score.
    pub fn n_scores(&self, role: ModelRole) -> usize {
        let ([decision, _], _) = role.score_columns();
        self.n_cells(decision)
    }

    fn n_cells(&self, column: usize) -> usize {
        self.slices().map(|(rows, range)| rows.n_cells(column, range)).sum()
    }

    /// Appends the samples of a feature, ascending, including staleness markers.
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
