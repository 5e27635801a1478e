//! The sliding window of a group: its raw samples, row by row, in Arrow columns.
//!
//! One row holds what came with one millisecond timestamp, one column each feature, and six more
//! columns the scores of the two models. Rows are keyed by their exact timestamp, so that a sample has one place, and
//! any order, split and repetition of the same samples gives the same window. Which rows belong
//! to one scrape is a question for the reader ([`row::Grid`]), not for the store.
//!
//! Old rows are sealed into immutable Arrow chunks: a copy of a window for training shares them.
//! The newest rows stay open, and late samples go there without touching a sealed chunk; one that
//! is later still thaws its chunk, which stays so until the newest rows are sealed: where one is late
//! many are, series after series of an answer by remote read. Rows of everything in one ring were the
//! alternative: no sharing, and a late row would move all that follow.

pub mod arrow;
pub mod build;
mod chunk;
pub mod grid;
mod view;

use crate::prom::{Labels, Sample};
use chunk::{Chunk, OpenChunk, RowSource};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
pub use view::View;

/// Columns before the features: those of [`Voice::columns`].
const FIRST_FEATURE: usize = 6;

/// Features that a group may have; a sample of one more is refused and counted.
pub const MAX_FEATURES: usize = 1024;

/// A feature's column in a [`Window`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Column(u32);

impl Column {
    fn index(self) -> usize {
        self.0 as usize + FIRST_FEATURE
    }
}

/// What a push did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    /// The cell was empty and now holds the sample.
    Stored,
    /// The cell held the same bits.
    Duplicate,
    /// The cell held other bits; the first ones stay.
    Conflict,
    /// The sample is older than the window.
    TooOld,
}

/// Whose score it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ModelRole {
    /// The model in service.
    Champion,
    /// The one that is scored beside it, to be compared.
    Challenger,
}

impl ModelRole {
    const ALL: [Self; 2] = [Self::Champion, Self::Challenger];

    /// The columns of the decision and of the score, and those of an alarm.
    fn score_columns(self) -> ([usize; 2], Option<[usize; 2]>) {
        match self {
            Self::Champion => ([0, 1], Some([2, 3])),
            // Only the model in service raises alarms.
            Self::Challenger => ([4, 5], None),
        }
    }
}

/// The scores of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// As scikit-learn's `decision_function`, in [-1, 1]; negative is anomalous.
    pub decision: f64,
    /// At least 0; 1 is the alert threshold.
    pub score: f64,
    /// What a model knows that follows one row after the other.
    pub incident_state: Option<IncidentState>,
}

/// The state of alarm at one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IncidentState {
    /// The threshold behind a score of 1, in raw units.
    pub threshold: f64,
    /// Is there an incident?
    pub is_incident: bool,
}

impl Score {
    /// Its cells in a row.
    fn cells(&self, role: ModelRole) -> impl Iterator<Item = (usize, f64)> {
        let ([decision, score], incident_columns) = role.score_columns();
        let values =
            self.incident_state.map(|alarm| [alarm.threshold, f64::from(u8::from(alarm.is_incident))]);
        let incident_cells = incident_columns
            .zip(values)
            .into_iter()
            .flat_map(|(columns, values)| columns.into_iter().zip(values));
        [(decision, self.decision), (score, self.score)].into_iter().chain(incident_cells)
    }
}

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
    /// An empty window that will keep the rows of the newest `length_ms` milliseconds.
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

    /// Keeps the rows of the newest `length_ms` milliseconds from now on; older ones are let go.
    pub fn set_length(&mut self, length_ms: i64) {
        self.length_ms = length_ms;
        self.slide();
    }

    /// The column of a feature, made at its first call; `None` above [`MAX_FEATURES`].
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

    /// The column of a feature that has one.
    pub fn find_column(&self, feature: &Labels) -> Option<Column> {
        self.columns.get(feature).copied()
    }

    /// A copy with only these features, and all scores.
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

    /// Every feature that ever had a sample here, with its column and newest sample.
    pub fn features(&self) -> impl Iterator<Item = (&Labels, Column, Option<Sample>)> {
        let number = |(i, feature)| (i as u32, feature);
        self.features
            .iter()
            .enumerate()
            .map(number)
            .map(|(i, f): (u32, &FeatureColumn)| (&f.labels, Column(i), f.newest))
    }

    /// Stores a sample. Repeating a push changes nothing.
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

    fn set(&mut self, column: usize, timestamp_ms: i64, value: f64) -> PushOutcome {
        let position = self.chunks.partition_point(|chunk| chunk.last_ms() < timestamp_ms);
        if position == self.chunks.len() {
            let outcome = self.open.set(column, timestamp_ms, value);
            if let Some(full) = self.open.seal_when_full() {
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
        if let Some(first) = chunk.seal_when_full() {
            self.chunks.insert(position, first.into());
        }
        outcome
    }

    /// Lets go of chunks that lie outside the window as a whole.
    fn slide(&mut self) {
        let start = self.start_ms();
        while self.chunks.front().is_some_and(|chunk| chunk.last_ms() <= start) {
            self.chunks.pop_front();
        }
    }

    /// Rows at or before this time are outside the window.
    pub fn start_ms(&self) -> i64 {
        self.newest_ms.map_or(i64::MIN, |newest| newest - self.length_ms)
    }

    /// Timestamp of the newest sample.
    pub fn newest_ms(&self) -> Option<i64> {
        self.newest_ms
    }

    /// The chunks that may hold rows after `after_ms` and up to `to_ms`, and these rows in each.
    fn slices(&self, after_ms: i64, to_ms: i64) -> impl Iterator<Item = (&dyn RowSource, Range<usize>)> {
        let after_ms = after_ms.max(self.start_ms());
        let first = self.chunks.partition_point(|chunk| chunk.last_ms() <= after_ms);
        let chunks = self.chunks.range(first..).map(|chunk| chunk as &dyn RowSource);
        in_range(chunks.chain([&self.open as &dyn RowSource]), after_ms, to_ms)
    }

    /// What it holds now of these features and voices after `after_ms` and up to `to_ms`.
    pub fn view(&self, features: &[Column], roles: &[ModelRole], after_ms: i64, to_ms: i64) -> View {
        let after_ms = after_ms.max(self.start_ms());
        let first = self.chunks.partition_point(|chunk| chunk.last_ms() <= after_ms);
        let chunks = self.chunks.range(first..).take_while(|chunk| chunk.first_ms() <= to_ms);
        let scores = roles.iter().flat_map(|role| {
            let (scores, incident_columns) = role.score_columns();
            scores.into_iter().chain(incident_columns.into_iter().flatten())
        });
        let columns = scores.chain(features.iter().map(|feature| feature.index())).collect();
        let rows = in_range([&self.open as &dyn RowSource].into_iter(), after_ms, to_ms).next();
        let rows = rows.map_or(0..0, |(_, rows)| rows);
        View::new(chunks.cloned().collect(), self.open.slice(rows, columns), after_ms, to_ms)
    }

    /// Timestamps of the rows after `after_ms` and up to `to_ms`, ascending.
    pub fn timestamps(&self, after_ms: i64, to_ms: i64) -> impl Iterator<Item = i64> {
        self.slices(after_ms, to_ms).flat_map(|(rows, range)| rows.timestamps()[range].iter().copied())
    }

    /// Appends a feature's samples after `after_ms` and up to `to_ms`, ascending, staleness markers
    /// among them.
    pub fn samples(&self, column: Column, after_ms: i64, to_ms: i64, out: &mut Vec<Sample>) {
        for (rows, range) in self.slices(after_ms, to_ms) {
            rows.samples(column.index(), range, out);
        }
    }

    /// A feature's newest sample after `after_ms` and up to `to_ms`.
    pub fn newest_sample(&self, column: Column, after_ms: i64, to_ms: i64) -> Option<Sample> {
        self.slices(after_ms, to_ms)
            .filter_map(|(rows, range)| rows.newest_sample(column.index(), range))
            .last()
    }

    /// Stores the scores of the row at `timestamp_ms`, in place of earlier ones.
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

    /// The scored rows after `after_ms` and up to `to_ms`, ascending.
    pub fn scores(&self, role: ModelRole, after_ms: i64, to_ms: i64) -> impl Iterator<Item = (i64, Score)> {
        scores(self.slices(after_ms, to_ms), role)
    }
}

/// Those of the chunks, ascending, that have rows after `after_ms` and up to `to_ms`, and these rows in each.
fn in_range<'a>(
    chunks: impl Iterator<Item = &'a dyn RowSource>,
    after_ms: i64,
    to_ms: i64,
) -> impl Iterator<Item = (&'a dyn RowSource, Range<usize>)> {
    chunks
        .map(move |rows| {
            let timestamps = rows.timestamps();
            let start = timestamps.partition_point(|t| *t <= after_ms);
            let end = timestamps.partition_point(|t| *t <= to_ms);
            (rows, start..end.max(start))
        })
        .take_while(move |(rows, _)| rows.timestamps().first().is_some_and(|first| *first <= to_ms))
}

/// The scored ones of these rows.
fn scores<'a>(
    slices: impl Iterator<Item = (&'a dyn RowSource, Range<usize>)>,
    role: ModelRole,
) -> impl Iterator<Item = (i64, Score)> {
    let ([decision, score], incident_columns) = role.score_columns();
    slices.flat_map(move |(rows, range)| {
        range.filter_map(move |row| {
            let decision = rows.value(decision, row)?;
            let score = rows.value(score, row)?;
            let incident_state = incident_columns.and_then(|[threshold, is_incident]| {
                let is_incident = rows.value(is_incident, row)? != 0.0;
                Some(IncidentState { threshold: rows.value(threshold, row)?, is_incident })
            });
            Some((rows.timestamps()[row], Score { decision, score, incident_state }))
        })
    })
}

#[cfg(test)]
mod tests;
