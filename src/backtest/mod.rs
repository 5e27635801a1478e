//! The past once more: every row scored as it would have been, by what was known before it.

mod page;
mod table;

use crate::detect::{Detection, Observation, Prepared, Reason};
use crate::forest::{self, ExtendedParams, Table};
use crate::models::artifact::timestamp;
use crate::prom::{Labels, duration};
use crate::train::rows::Rows;
pub use page::page;
use std::num::NonZeroUsize;
use std::time::Duration;
pub use table::{Error, write};

/// Causes of an incident that are told.
const CAUSES: usize = 3;
const DAY_MS: f64 = 86_400_000.0;

/// What is replayed.
pub struct Range<'a> {
    /// Rows of before, and of the range.
    pub rows: &'a Rows,
    /// Names of the metrics, in the order of the rows' schema.
    pub metrics: Vec<String>,
    /// The group's labels; none for a table.
    pub group: Labels,
    /// Where the range begins: what lies before it is learned.
    pub start_ms: i64,
    /// Every timestamp of the range, ascending, whether its row is complete or not; empty for those that are.
    pub timestamps: Vec<i64>,
    /// Is the row known to be anomalous? One mark for each timestamp.
    pub labels: Option<Vec<bool>>,
}

/// A range and what was said of its rows.
pub struct Replayed {
    /// Labels of the group.
    pub group: Labels,
    /// Names of the metrics.
    pub metrics: Vec<String>,
    /// Timestamps of the range in milliseconds, ascending.
    pub timestamps: Vec<i64>,
    /// Is the row known to be anomalous? One mark for each timestamp.
    pub labels: Option<Vec<bool>>,
    /// What was said at each timestamp; none for a row that was not complete.
    pub observations: Vec<Option<Observation>>,
}

/// One incident.
#[derive(Clone, Debug, PartialEq)]
pub struct Incident {
    /// Its first row and the one after its last, among the timestamps.
    pub rows: std::ops::Range<usize>,
    /// First and last millisecond.
    pub span_ms: (i64, i64),
    /// The greatest score in it.
    pub peak: f64,
    /// Number of the metric, how it was unusual, and its share of all deviation, at the row of that score; the
    /// strongest first.
    pub causes: Vec<(usize, Reason, f64)>,
    /// Does it overlap with what is known to be anomalous? Unknown without marks.
    pub is_labelled: Option<bool>,
}

/// How incidents compare with marks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Runs of marked rows.
    pub labelled: usize,
    /// Those with an incident in them.
    pub found: usize,
    /// Incidents with no marked row in them.
    pub outside: usize,
}

/// Learns what lies before the range.
///
/// # Errors
/// [`forest::Error`], when there is too little to learn from.
pub fn learn(
    rows: &Rows,
    start_ms: i64,
    params: &ExtendedParams,
    threads: NonZeroUsize,
) -> Result<Detection, forest::Error> {
    let (n_rows, n_metrics) = (rows.len(), rows.schema.features.len());
    let n_learned = rows.timestamps.partition_point(|time| *time < start_ms);
    let mut learned = Vec::with_capacity(n_learned * n_metrics);
    for column in rows.values.chunks_exact(n_rows) {
        learned.extend_from_slice(&column[..n_learned]);
    }
    let table = Table::new(&learned, n_learned, n_metrics)?;
    let lesson = Prepared::learn(&rows.timestamps[..n_learned], &table)?.grow(params, threads)?;
    Ok(Detection::of(lesson).0)
}

/// Takes the rows that a detection has not seen, and keeps what it says of those in the range. `done` hears of
/// each.
pub fn replay(range: Range<'_>, mut detection: Detection, mut done: impl FnMut()) -> Replayed {
    let Range { rows, metrics, group, start_ms, mut timestamps, labels } = range;
    let n_rows = rows.len();
    if timestamps.is_empty() {
        timestamps = rows.timestamps.iter().copied().filter(|time| *time >= start_ms).collect();
    }
    let mut observations = vec![None; timestamps.len()];
    let mut values = vec![0.0; rows.schema.features.len()];
    let seen_ms = detection.newest_ms().unwrap_or(i64::MIN);
    for row in rows.timestamps.partition_point(|time| *time <= seen_ms)..n_rows {
        for (metric, value) in values.iter_mut().enumerate() {
            *value = rows.values[metric * n_rows + row];
        }
        let timestamp_ms = rows.timestamps[row];
        let seen = detection.observe(timestamp_ms, &values);
        if let Ok(place) = timestamps.binary_search(&timestamp_ms) {
            observations[place] = seen;
        }
        done();
    }
    Replayed { group, metrics, timestamps, labels, observations }
}

impl Replayed {
    /// Rows that were scored.
    pub fn n_scored(&self) -> usize {
        self.observations.iter().flatten().count()
    }

    /// Length of the range in days.
    pub fn days(&self) -> f64 {
        match (self.timestamps.first(), self.timestamps.last()) {
            (Some(first), Some(last)) => (last - first) as f64 / DAY_MS,
            _ => 0.0,
        }
    }

    /// Every incident, in the order of time.
    pub fn incidents(&self) -> Vec<Incident> {
        let is_open = |seen: &Option<Observation>| seen.as_ref().is_some_and(|seen| seen.incident);
        let mut incidents = Vec::new();
        let mut row = 0;
        while row < self.observations.len() {
            let first = row;
            while self.observations.get(row).is_some_and(is_open) {
                row += 1;
            }
            if first < row {
                incidents.push(self.incident(first..row));
            }
            row += 1;
        }
        incidents
    }

    fn incident(&self, rows: std::ops::Range<usize>) -> Incident {
        let seen = self.observations[rows.clone()].iter().flatten();
        let peak = seen.max_by(|a, b| a.score.total_cmp(&b.score));
        Incident {
            span_ms: (self.timestamps[rows.start], self.timestamps[rows.end - 1]),
            peak: peak.map_or(0.0, |peak| peak.score),
            causes: peak.map(|peak| peak.causes(CAUSES).collect()).unwrap_or_default(),
            is_labelled: self.labels.as_ref().map(|labels| labels[rows.clone()].contains(&true)),
            rows,
        }
    }

    /// How the incidents compare with the marks, where there are any.
    pub fn found(&self) -> Option<Found> {
        let labels = self.labels.as_ref()?;
        let runs = runs(labels);
        let incidents = self.incidents();
        let is_hit = |run: &&std::ops::Range<usize>| {
            incidents.iter().any(|incident| incident.rows.start < run.end && run.start < incident.rows.end)
        };
        Some(Found {
            labelled: runs.len(),
            found: runs.iter().filter(is_hit).count(),
            outside: incidents.iter().filter(|incident| incident.is_labelled == Some(false)).count(),
        })
    }

    /// An incident in words.
    pub fn sentence(&self, incident: &Incident) -> String {
        let (from_ms, to_ms) = incident.span_ms;
        let length = Duration::from_millis(u64::try_from(to_ms - from_ms).unwrap_or(0));
        let causes: Vec<String> = incident
            .causes
            .iter()
            .map(|(metric, reason, _)| format!("{} {}", self.metrics[*metric], reason.phrase()))
            .collect();
        let time = timestamp(from_ms);
        let time = time.get(..16).unwrap_or(&time).replace('T', " ");
        let length = if length.is_zero() { "one row".into() } else { duration::Display(length).to_string() };
        format!("{time} UTC, {length}, score {:.1}: {}", incident.peak, causes.join(", "))
    }
}

/// Runs of marked rows.
fn runs(labels: &[bool]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (row, _) in labels.iter().enumerate().filter(|(_, label)| **label) {
        match runs.last_mut().filter(|run| run.end == row) {
            Some(run) => run.end += 1,
            None => runs.push(row..row + 1),
        }
    }
    runs
}
