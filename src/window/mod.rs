//! The sliding window of a group: its raw samples, row by row, in columns.
//!
//! A row holds the samples of one timestamp. Each feature has one column; six more columns hold the scores of the two
//! models. Rows are keyed by their exact timestamp, so that any order, split and repetition of the same samples gives
//! the same window. The reader decides which rows belong to one scrape ([`grid::Grid`]).
//!
//! The newest rows are stored row by row, in a few cache lines each, where nearly all samples arrive. Their older part moves to
//! columns, which take memory for their own cells only, so a group of several targets, each with timestamps of its own,
//! takes no more than its samples. Half a chunk of columns is sealed, in half of the memory or less, and two halves become an
//! immutable chunk, which a copy of the window for training shares. A sample that is older than the open rows thaws
//! its chunk, which stays thawed until the next rows are sealed: late samples come in numbers, series by series of a remote read
//! response.
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
use chunk::{CHUNK_ROWS, Chunk, NewestRows, OpenChunk, RowSource, in_range};
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
    /// The newest sample that is not, or no longer, in [`Window::newest`].
    newest_older: Option<Sample>,
}

/// Rows that stay row by row when others are moved: two minutes at an interval of 15 s.
const MIN_NEWEST_ROWS: usize = 8;
/// Rows that are row by row, at most. Each has a place for every column, whatever cells it has: 384 bytes a series, with
/// the growth of their memory.
const MAX_NEWEST_ROWS: usize = MIN_NEWEST_ROWS + CHUNK_ROWS / 2;

/// The samples and scores of one group over the last `length_ms` milliseconds.
///
/// A clone shares all but the newest rows.
#[derive(Clone, Debug)]
pub struct Window {
    length_ms: i64,
    chunks: VecDeque<Chunk>,
    /// Rows that wait to be sealed.
    open: OpenChunk,
    /// The rows after `open_to_ms`; all others are before them.
    newest: NewestRows,
    open_to_ms: i64,
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
            newest: NewestRows::new(FIRST_FEATURE..FIRST_FEATURE),
            open_to_ms: i64::MIN,
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
        self.chunks.iter().map(Chunk::n_bytes).sum::<usize>() + self.open.n_bytes() + self.newest.n_bytes()
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
        self.features.push(FeatureColumn { labels: feature.clone(), newest_older: None });
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
        self.columns = self.features().map(|(labels, column)| (labels.clone(), column)).collect();
    }

    /// The newest sample of a feature, even if it has left the window.
    pub fn newest_of(&self, column: Column) -> Option<Sample> {
        let newest = self.newest.newest_sample(column.index(), 0..self.newest.len());
        newest.or(self.features[column.0 as usize].newest_older)
    }

    /// All rows, newest first.
    fn newest_first(&self) -> impl Iterator<Item = &dyn RowSource> {
        let chunks = self.chunks.iter().rev().map(|chunk| chunk as &dyn RowSource);
        [&self.newest as &dyn RowSource, &self.open].into_iter().chain(chunks)
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

    /// All features, with their columns.
    pub fn features(&self) -> impl Iterator<Item = (&Labels, Column)> {
        self.features.iter().map(|feature| &feature.labels).zip((0..).map(Column))
    }

    /// Stores a sample. A repeated push changes nothing.
    pub fn push(&mut self, column: Column, sample: Sample) -> PushOutcome {
        if self.newest_ms.is_some_and(|newest| sample.timestamp_ms <= newest - self.length_ms) {
            return PushOutcome::TooOld;
        }
        let outcome = self.set(column.index(), sample.timestamp_ms, sample.value);
        let is_newest = self.newest_ms.is_none_or(|newest| newest < sample.timestamp_ms);
        if outcome == PushOutcome::Stored && is_newest {
            self.newest_ms = Some(sample.timestamp_ms);
            self.slide();
        }
        outcome
    }

    /// Reads what the next [`push`](Self::push) reads. The waits for memory of many such calls overlap, those of pushes
    /// do not.
    pub fn prefetch(&self) {
        self.newest.prefetch();
        black_box(self.chunks.front().map(Chunk::last_ms));
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
        if timestamp_ms <= self.open_to_ms {
            let outcome = self.set_older(column, timestamp_ms, value);
            if let Some(feature) =
                column.checked_sub(FIRST_FEATURE).filter(|_| outcome == PushOutcome::Stored)
            {
                let newest = &mut self.features[feature].newest_older;
                if newest.is_none_or(|newest| newest.timestamp_ms < timestamp_ms) {
                    *newest = Some(Sample { timestamp_ms, value });
                }
            }
            return outcome;
        }
        if !self.newest.columns().contains(&column) {
            self.widen(column);
            return self.set(column, timestamp_ms, value);
        }
        let outcome = self.newest.set(column, timestamp_ms, value);
        if self.newest.len() > MAX_NEWEST_ROWS {
            self.move_newest(CHUNK_ROWS / 2);
        }
        outcome
    }

    /// Gives the newest rows a place for this column, and for all others.
    fn widen(&mut self, column: usize) {
        self.move_newest(self.newest.len());
        let first = column.min(self.newest.columns().start);
        self.newest = NewestRows::new(first..FIRST_FEATURE + self.features.len());
    }

    /// Moves the oldest of the newest rows to those that wait to be sealed, and seals these when there are enough.
    fn move_newest(&mut self, n_rows: usize) {
        for (column, sample) in self.newest.cells(0..n_rows) {
            if let Some(feature) = column.checked_sub(FIRST_FEATURE) {
                self.features[feature].newest_older = Some(sample);
            }
        }
        self.newest.move_oldest(n_rows, &mut self.open);
        self.open_to_ms = self.open_to_ms.max(self.open.last_ms().unwrap_or(i64::MIN));
        self.seal_when_full();
    }

    /// Seals the open rows when they are enough for half a chunk. Two halves become a whole one.
    fn seal_when_full(&mut self) {
        if !self.open.is_full() {
            return;
        }
        let mut rows = std::mem::take(&mut self.open);
        let last = self.chunks.back().is_some_and(Chunk::is_half).then(|| self.chunks.pop_back());
        if let Some(half) = last.flatten() {
            let newer = std::mem::replace(&mut rows, half.into_open());
            rows.append(newer);
        }
        self.chunks.iter_mut().for_each(Chunk::seal);
        self.chunks.push_back(rows.into());
    }

    /// Writes a cell of a row that is not among the newest ones.
    fn set_older(&mut self, column: usize, timestamp_ms: i64, value: f64) -> PushOutcome {
        let position = match self.open.first_ms() {
            // Nearly all samples; chunks are before the open rows.
            Some(first_ms) if first_ms <= timestamp_ms => self.chunks.len(),
            _ => self.chunks.partition_point(|chunk| chunk.last_ms() < timestamp_ms),
        };
        if position == self.chunks.len() {
            let outcome = self.open.set(column, timestamp_ms, value);
            self.seal_when_full();
            return outcome;
        }
        match self.chunks[position].cell(column, timestamp_ms) {
            Some(old) if old.to_bits() == value.to_bits() => return PushOutcome::Duplicate,
            Some(_) => return PushOutcome::Conflict,
            None => {}
        }
        let chunk = self.chunks[position].thaw();
        let outcome = chunk.set(column, timestamp_ms, value);
        if let Some(first) = chunk.split_when_full() {
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
        in_range(chunks.chain([&self.open as &dyn RowSource, &self.newest]), after_ms, to_ms)
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
        let columns: Vec<usize> = columns.collect();
        let rows = |rows: &dyn RowSource| {
            in_range([rows].into_iter(), after_ms, to_ms).next().map_or(0..0, |(_, rows)| rows)
        };
        let mut open = self.open.slice(rows(&self.open), columns.iter().copied());
        self.newest.copy(rows(&self.newest), &columns, &mut open);
        View::new(chunks.cloned().collect(), open, after_ms, to_ms)
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
        self.newest_first().find_map(newest).filter(|newest_ms| *newest_ms > self.start_ms())
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
        if timestamp_ms > self.open_to_ms {
            return self.newest.replace(column, timestamp_ms, value);
        }
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
