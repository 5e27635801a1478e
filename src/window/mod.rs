//! The sliding window of a group: its raw samples, row by row, in columns.
//!
//! A row holds the samples of one timestamp. Each feature has one column; six more columns hold the scores of the two
//! models. Rows are keyed by their exact timestamp, so that any order, split and repetition of the same samples gives
//! the same window. The reader decides which rows belong to one scrape ([`grid::Grid`]).
//!
//! A column takes memory for its own cells only, so a group of several targets, each with timestamps of its own, takes
//! no more than its samples. Old rows are sealed into immutable chunks, in half of the memory or less, which a copy of the
//! window for training shares. The newest rows stay open for late samples. A sample that is older than these thaws its
//! chunk, which stays thawed until the open rows are sealed: late samples come in numbers, series by series of a remote
//! read response.
//!
//! Not taken: all rows in one ring. Copies could not share memory, and a late row would move all later ones.

pub mod arrow;
pub mod build;
mod chunk;
mod column;
pub mod grid;
mod rows;
mod score;
mod view;

use crate::prom::{LabelPool, Labels, Sample};
use chunk::{CHUNK_ROWS, Chunk, OPEN_ROWS, OpenChunk, RowSource, in_range};
use column::FIRST_FEATURE;
use score::scores;
use std::collections::{HashMap, VecDeque};
use std::hint::black_box;
use std::ops::Range;

pub use chunk::PushOutcome;
pub use column::{Column, MAX_FEATURES};
pub use rows::Rows;
pub use score::{IncidentState, ModelRole, Score};
pub use view::View;

#[derive(Clone, Debug)]
struct FeatureColumn {
    labels: Labels,
    newest: Option<Sample>,
}

/// The samples and scores of one group over the last `length_ms` milliseconds.
///
/// A clone shares all but the newest rows.
#[derive(Clone, Debug)]
pub struct Window {
    length_ms: i64,
    chunks: VecDeque<Chunk>,
    open: OpenChunk,
    features: Vec<FeatureColumn>,
    columns: HashMap<Labels, Column>,
    newest_ms: Option<i64>,
}

impl Window {
    /// An empty window of `length_ms` milliseconds.
    pub fn new(length_ms: i64) -> Self {
        Self {
            length_ms,
            chunks: VecDeque::new(),
            open: OpenChunk::default(),
            features: Vec::new(),
            columns: HashMap::new(),
            newest_ms: None,
        }
    }

    /// Length in milliseconds.
    pub fn length_ms(&self) -> i64 {
        self.length_ms
    }

    /// Bytes of the rows, shared chunks included.
    pub fn n_bytes(&self) -> usize {
        self.chunks.iter().map(Chunk::n_bytes).sum::<usize>() + self.open.n_bytes()
    }

    /// Changes the length. Drops the rows that are then too old.
    pub fn set_length(&mut self, length_ms: i64) {
        self.length_ms = length_ms;
        self.slide();
    }

    /// The column of a feature; adds it if there is none. Returns `None` above [`MAX_FEATURES`].
    pub fn get_or_add_column(&mut self, feature: &Labels) -> Option<Column> {
        if let Some(column) = self.columns.get(feature) {
            return Some(*column);
        }
        if self.features.len() == MAX_FEATURES {
            return None;
        }
        let column = Column(self.features.len() as u32);
        self.features.push(FeatureColumn { labels: feature.clone(), newest: None });
        self.columns.insert(feature.clone(), column);
        Some(column)
    }

    /// Renames a feature, unless there is one of the new name.
    pub fn rename_feature(&mut self, column: Column, labels: Labels) {
        if !self.columns.contains_key(&labels) {
            self.columns.insert(labels.clone(), column);
            let feature = &mut self.features[column.0 as usize];
            self.columns.remove(&std::mem::replace(&mut feature.labels, labels));
        }
    }

    /// Shares the memory of the labels with equal ones.
    pub fn share_labels(&mut self, pool: &mut LabelPool) {
        for feature in &mut self.features {
            feature.labels = pool.share(std::mem::take(&mut feature.labels));
        }
        let columns = self.features.iter().zip(0..);
        self.columns = columns.map(|(feature, i)| (feature.labels.clone(), Column(i))).collect();
    }

    /// The newest sample of a feature.
    pub fn newest_of(&self, column: Column) -> Option<Sample> {
        self.features[column.0 as usize].newest
    }

    /// The column of a feature, if there is one.
    pub fn find_column(&self, feature: &Labels) -> Option<Column> {
        self.columns.get(feature).copied()
    }

    /// A copy with these features only, and all scores.
    pub fn with_features(&self, features: &[Labels]) -> Self {
        let mut copy = Self::new(self.length_ms);
        let mut cells: Vec<(Sample, usize)> = Vec::new();
        for labels in features {
            let (Some(from), Some(to)) = (self.find_column(labels), copy.get_or_add_column(labels)) else {
                continue;
            };
            let mut samples = Vec::new();
            self.samples(from, i64::MIN, i64::MAX, &mut samples);
            copy.features[to.0 as usize].newest = samples.last().copied();
            cells.extend(samples.into_iter().map(|sample| (sample, to.index())));
        }
        for role in ModelRole::ALL {
            for (timestamp_ms, scores) in self.scores(role, i64::MIN, i64::MAX) {
                let cell = |(column, value)| (Sample { timestamp_ms, value }, column);
                cells.extend(scores.cells(role).map(cell));
            }
        }
        cells.sort_by_key(|(sample, _)| sample.timestamp_ms);
        for (sample, column) in cells {
            copy.set(column, sample.timestamp_ms, sample.value);
        }
        copy.newest_ms = self.newest_ms;
        copy
    }

    /// All features, with column and newest sample.
    pub fn features(&self) -> impl Iterator<Item = (&Labels, Column, Option<Sample>)> {
        let number = |(i, feature)| (i as u32, feature);
        self.features
            .iter()
            .enumerate()
            .map(number)
            .map(|(i, f): (u32, &FeatureColumn)| (&f.labels, Column(i), f.newest))
    }

    /// Stores a sample. A repeated push changes nothing.
    pub fn push(&mut self, column: Column, sample: Sample) -> PushOutcome {
        if self.newest_ms.is_some_and(|newest| sample.timestamp_ms <= newest - self.length_ms) {
            return PushOutcome::TooOld;
        }
        let outcome = self.set(column.index(), sample.timestamp_ms, sample.value);
        if outcome == PushOutcome::Stored {
            let newest = &mut self.features[column.0 as usize].newest;
            if newest.is_none_or(|newest| newest.timestamp_ms < sample.timestamp_ms) {
                *newest = Some(sample);
            }
            if self.newest_ms.is_none_or(|newest| newest < sample.timestamp_ms) {
                self.newest_ms = Some(sample.timestamp_ms);
                self.slide();
            }
        }
        outcome
    }

    /// Reads what a [`push`](Self::push) into a column reads. The waits for memory of many such calls overlap, those of
    /// pushes do not.
    pub fn prefetch(&self, column: Column) {
        black_box((self.open.last_ms(), self.chunks.front().map(Chunk::last_ms)));
        black_box(self.features.get(column.0 as usize).map(|feature| feature.newest));
        black_box(self.open.newest_value(column.index()));
    }

    /// The present cells of all columns, scores included.
    fn n_cells(&self) -> usize {
        let n_columns = FIRST_FEATURE + self.features.len();
        let in_slice = |(rows, range): (&dyn RowSource, Range<usize>)| -> usize {
            (0..n_columns).map(|column| rows.n_cells(column, range.clone())).sum()
        };
        self.slices(i64::MIN, i64::MAX).map(in_slice).sum()
    }

    fn set(&mut self, column: usize, timestamp_ms: i64, value: f64) -> PushOutcome {
        let position = match self.open.first_ms() {
            // Nearly all samples; chunks are before the open rows.
            Some(first_ms) if first_ms <= timestamp_ms => self.chunks.len(),
            _ => self.chunks.partition_point(|chunk| chunk.last_ms() < timestamp_ms),
        };
        if position == self.chunks.len() {
            let outcome = self.open.set(column, timestamp_ms, value);
            if let Some(full) = self.open.split_when_full(OPEN_ROWS) {
                self.chunks.iter_mut().for_each(Chunk::seal);
                self.chunks.push_back(full.into());
            }
            return outcome;
        }
        match self.chunks[position].cell(column, timestamp_ms) {
            Some(old) if old.to_bits() == value.to_bits() => return PushOutcome::Duplicate,
            Some(_) => return PushOutcome::Conflict,
            None => {}
        }
        let chunk = self.chunks[position].thaw();
        let outcome = chunk.set(column, timestamp_ms, value);
        if let Some(first) = chunk.split_when_full(CHUNK_ROWS) {
            self.chunks.insert(position, first.into());
        }
        outcome
    }

    /// Drops chunks that are entirely outside of the window.
    fn slide(&mut self) {
        let start = self.start_ms();
        while self.chunks.front().is_some_and(|chunk| chunk.last_ms() <= start) {
            self.chunks.pop_front();
        }
    }

    /// The start of the window, exclusive: rows at or before this time are outside.
    pub fn start_ms(&self) -> i64 {
        self.newest_ms.map_or(i64::MIN, |newest| newest - self.length_ms)
    }

    /// Timestamp of the newest sample.
    pub fn newest_ms(&self) -> Option<i64> {
        self.newest_ms
    }

    /// The chunks with rows in `(after_ms, to_ms]`, with the range of these rows in each.
    fn slices(&self, after_ms: i64, to_ms: i64) -> impl Iterator<Item = (&dyn RowSource, Range<usize>)> {
        let after_ms = after_ms.max(self.start_ms());
        let first = self.chunks.partition_point(|chunk| chunk.last_ms() <= after_ms);
        let chunks = self.chunks.range(first..).map(|chunk| chunk as &dyn RowSource);
        in_range(chunks.chain([&self.open as &dyn RowSource]), after_ms, to_ms)
    }

    /// A snapshot of these features, and of the scores of these roles, in `(after_ms, to_ms]`.
    pub fn view(&self, features: &[Column], roles: &[ModelRole], after_ms: i64, to_ms: i64) -> View {
        let after_ms = after_ms.max(self.start_ms());
        let first = self.chunks.partition_point(|chunk| chunk.last_ms() <= after_ms);
        let chunks = self.chunks.range(first..).take_while(|chunk| chunk.first_ms() <= to_ms);
        let scores = roles.iter().flat_map(|role| {
            let (scores, incident_columns) = role.score_columns();
            scores.into_iter().chain(incident_columns.into_iter().flatten())
        });
        let columns = scores.chain(features.iter().map(|feature| feature.index()));
        let rows = in_range([&self.open as &dyn RowSource].into_iter(), after_ms, to_ms).next();
        let rows = rows.map_or(0..0, |(_, rows)| rows);
        View::new(chunks.cloned().collect(), self.open.slice(rows, columns), after_ms, to_ms)
    }

    /// Timestamps of the rows in `(after_ms, to_ms]`, ascending.
    pub fn timestamps(&self, after_ms: i64, to_ms: i64) -> impl Iterator<Item = i64> {
        self.slices(after_ms, to_ms).flat_map(|(rows, range)| rows.timestamps().range(range))
    }

    /// Timestamp of the newest row up to `to_ms`.
    pub fn newest_row_ms(&self, to_ms: i64) -> Option<i64> {
        let newest = |rows: &dyn RowSource| {
            let timestamps = rows.timestamps();
            let n_rows = timestamps.partition_point(|time| time <= to_ms);
            n_rows.checked_sub(1).map(|row| timestamps.at(row))
        };
        let sealed = || self.chunks.iter().rev().find_map(|chunk| newest(chunk));
        newest(&self.open).or_else(sealed).filter(|newest_ms| *newest_ms > self.start_ms())
    }

    /// The rows in `(after_ms, to_ms]`.
    pub fn rows(&self, after_ms: i64, to_ms: i64) -> Rows<'_> {
        Rows::new(self.slices(after_ms, to_ms))
    }

    /// Appends the samples of a feature in `(after_ms, to_ms]`, ascending, including staleness markers.
    pub fn samples(&self, column: Column, after_ms: i64, to_ms: i64, out: &mut Vec<Sample>) {
        for (rows, range) in self.slices(after_ms, to_ms) {
            rows.samples(column.index(), range, out);
        }
    }

    /// The newest sample of a feature in `(after_ms, to_ms]`.
    pub fn newest_sample(&self, column: Column, after_ms: i64, to_ms: i64) -> Option<Sample> {
        self.slices(after_ms, to_ms)
            .filter_map(|(rows, range)| rows.newest_sample(column.index(), range))
            .last()
    }

    /// Stores the scores of the row at `timestamp_ms`. Replaces earlier ones.
    pub fn set_score(&mut self, role: ModelRole, timestamp_ms: i64, score: Score) {
        for (column, value) in score.cells(role) {
            if self.set(column, timestamp_ms, value) == PushOutcome::Conflict {
                self.replace(column, timestamp_ms, value);
            }
        }
    }

    fn replace(&mut self, column: usize, timestamp_ms: i64, value: f64) {
        let position = self.chunks.partition_point(|chunk| chunk.last_ms() < timestamp_ms);
        let rows = self.chunks.get_mut(position).map_or(&mut self.open, Chunk::thaw);
        rows.replace(column, timestamp_ms, value);
    }

    /// The scores of the row at `timestamp_ms`.
    pub fn score(&self, role: ModelRole, timestamp_ms: i64) -> Option<Score> {
        self.scores(role, timestamp_ms - 1, timestamp_ms).next().map(|(_, score)| score)
    }

    /// The scored rows in `(after_ms, to_ms]`, ascending.
    pub fn scores(&self, role: ModelRole, after_ms: i64, to_ms: i64) -> impl Iterator<Item = (i64, Score)> {
        scores(self.slices(after_ms, to_ms), role)
    }
}

#[cfg(test)]
mod tests;
