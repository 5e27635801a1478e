//! What a window holds at one moment, for whoever reads it while the window goes on.

use super::chunk::{Chunk, Part, Rows};
use super::{Column, FIRST_FEATURE, Score, Voice, in_range, scores};
use crate::prom::Sample;
use std::collections::BTreeSet;
use std::ops::Range;

/// Some columns of a window over a range of time. Chunks are shared with the window, and only of the
/// open rows is there a copy: two kilobytes a column.
#[derive(Debug)]
pub struct View {
    chunks: Vec<Chunk>,
    open: Part,
    after_ms: i64,
    to_ms: i64,
}

impl View {
    pub(super) fn new(chunks: Vec<Chunk>, open: Part, after_ms: i64, to_ms: i64) -> Self {
        Self { chunks, open, after_ms, to_ms }
    }

    fn parts(&self) -> impl Iterator<Item = (&dyn Rows, Range<usize>)> {
        let chunks = self.chunks.iter().map(|chunk| chunk as &dyn Rows);
        in_range(chunks.chain([&self.open as &dyn Rows]), self.after_ms, self.to_ms)
    }

    /// Lets go of the open rows of other features.
    pub fn keep(&mut self, features: &BTreeSet<Column>) {
        let kept: Vec<usize> = features.iter().map(|feature| feature.index()).collect();
        self.open.retain(|column| column < FIRST_FEATURE || kept.binary_search(&column).is_ok());
    }

    /// Appends a feature's samples, ascending, staleness markers among them.
    pub fn samples(&self, column: Column, out: &mut Vec<Sample>) {
        for (rows, range) in self.parts() {
            rows.samples(column.index(), range, out);
        }
    }

    /// The scored rows, ascending.
    pub fn scores(&self, voice: Voice) -> impl Iterator<Item = (i64, Score)> {
        scores(self.parts(), voice)
    }
}
