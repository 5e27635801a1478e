//! The past once more: every row scored as it would have been, by what was known before it.

mod attendance;
mod page;
mod table;

use crate::config::Detector;
use crate::detect::{self, Detection, Observation, Prepared, Reason};
use crate::features::Schema;
use crate::forest::{self, ExtendedParams};
use crate::models::{artifact::timestamp, columns};
use crate::prom::{Labels, duration};
use crate::train::past;
use crate::train::rows::{self, Exclusion, Rows};
use crate::window::Window;
use attendance::Attendance;
pub use page::page;
use std::num::NonZeroUsize;
use std::time::Duration;
pub use table::{Error, write};

/// Causes of an incident that are told.
const CAUSES: usize = 3;
const DAY_MS: f64 = 86_400_000.0;

/// What is replayed.
pub struct Range<'a> {
    /// Samples of before, and of the range.
    pub window: &'a Window,
    /// The group's labels; none for a table.
    pub group: Labels,
    /// Where the range begins: what lies before it is learned.
    pub start_ms: i64,
    /// Every timestamp of the range, ascending, whether its row is complete or not; empty for those of the window.
    pub timestamps: Vec<i64>,
    /// Is the row known to be anomalous? One mark for each timestamp.
    pub labels: Option<Vec<bool>>,
}

/// How models are made on the way.
pub struct Learning<'a> {
    /// Whose.
    pub detector: &'a Detector,
    /// The forest.
    pub params: ExtendedParams,
    /// Budget, and what counts.
    pub alerts: detect::Config,
    /// What stays out of training.
    pub exclusions: Vec<Exclusion>,
    /// How many threads grow trees.
    pub threads: NonZeroUsize,
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
    /// When metrics went or came, in the order of time.
    pub changes: Vec<Change>,
}

/// Metrics went for good, or came to stay, and a model was learned anew.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The row at which that was known, in milliseconds.
    pub timestamp_ms: i64,
    /// Names of those that went.
    pub went: Vec<String>,
    /// Names of those that came.
    pub came: Vec<String>,
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

impl Learning<'_> {
    /// A detection that goes on from the last of these rows.
    ///
    /// # Errors
    /// [`forest::Error`], when there is too little to learn from.
    pub fn learn(&self, rows: &Rows) -> Result<Detection, forest::Error> {
        let lesson = Prepared::learn(&rows.timestamps, &rows.table()?)?.grow(&self.params, self.threads)?;
        Ok(Detection::of(lesson).0.with_alerts(&self.alerts, &rows.schema.features))
    }

    /// The same by what is known at a time, if that is enough.
    fn learn_at(
        &self,
        window: &Window,
        now_ms: i64,
        judged_to_ms: i64,
        own: &[Exclusion],
    ) -> Option<(Schema, Detection)> {
        let exclusions = [&self.exclusions, own].concat();
        let rows =
            Rows::read(self.detector, &rows::until(window, now_ms, i64::MAX / 4), &exclusions, judged_to_ms)
                .ok()?;
        let detection = self.learn(&rows).ok()?;
        Some((rows.schema, detection))
    }
}

/// Replays a range with a detection that knows what lies before it. `names` are those of the schema's features; `done`
/// hears of each row.
pub fn replay(
    range: Range<'_>,
    schema: &Schema,
    names: Vec<String>,
    mut detection: Detection,
    done: &mut dyn FnMut(),
) -> Replayed {
    let mut replay = Replay::new(range, schema, done);
    replay.go(schema, names, &mut detection, (i64::MIN, i64::MAX));
    replay.replayed
}

/// The same, and when features go for good or come to stay a model is learned anew as the sidecar would, without its
/// renewals: from all that is known by then, but for the incidents that were found.
pub fn follow(
    range: Range<'_>,
    learning: &Learning<'_>,
    (mut schema, mut detection): (Schema, Detection),
    done: &mut dyn FnMut(),
) -> Replayed {
    let (window, start_ms) = (range.window, range.start_ms);
    let mut replay = Replay::new(range, &schema, done);
    let mut attendance = Attendance::new(learning.detector, window, detection.interval_ms());
    let mut said_ms = i64::MIN;
    loop {
        let change_ms = attendance.change(&schema.features, start_ms);
        let names = columns::defaults(&schema);
        let to_ms = change_ms.map_or(i64::MAX, |change_ms| change_ms - 1);
        replay.go(&schema, names, &mut detection, (said_ms, to_ms));
        let Some(change_ms) = change_ms else { return replay.replayed };
        said_ms = detection.newest_ms().unwrap_or(i64::MIN);
        let own = replay.replayed.own_incidents();
        if let Some((other, new)) = learning.learn_at(window, change_ms, said_ms, &own) {
            replay.replayed.changes.push(Change::of(change_ms, &schema, &other));
            detection = new.succeed(&detection);
            schema = other;
        }
    }
}

impl Change {
    fn of(timestamp_ms: i64, before: &Schema, after: &Schema) -> Self {
        let lacks = |schema: &Schema, other: &Schema| {
            let lacking = schema.features.iter().filter(|feature| !other.features.contains(feature));
            lacking.map(|feature| schema.transform.expression(feature)).collect()
        };
        Self { timestamp_ms, went: lacks(before, after), came: lacks(after, before) }
    }

    /// For people.
    pub fn what(&self) -> String {
        let told =
            [(&self.went, "went"), (&self.came, "came")].into_iter().filter(|(names, _)| !names.is_empty());
        told.map(|(names, how)| format!("{how}: {}", names.join(", "))).collect::<Vec<_>>().join("; ")
    }
}

/// A range on its way.
struct Replay<'a> {
    window: &'a Window,
    replayed: Replayed,
    done: &'a mut dyn FnMut(),
}

impl<'a> Replay<'a> {
    fn new(range: Range<'a>, schema: &Schema, done: &'a mut dyn FnMut()) -> Self {
        let Range { window, group, start_ms, mut timestamps, labels } = range;
        if timestamps.is_empty() {
            timestamps = window.timestamps(start_ms - 1, i64::MAX).collect();
            // The last of each row.
            timestamps.reverse();
            timestamps.dedup_by_key(|time| schema.grid.bounds(*time).1);
            timestamps.reverse();
        }
        let observations = vec![None; timestamps.len()];
        Self {
            window,
            replayed: Replayed {
                group,
                metrics: Vec::new(),
                timestamps,
                labels,
                observations,
                changes: Vec::new(),
            },
            done,
        }
    }

    /// Takes the rows of a schema that the detection has not seen, up to the second time, and keeps what it says of those
    /// in the range and after the first: what an earlier one has said stays.
    fn go(
        &mut self,
        schema: &Schema,
        names: Vec<String>,
        detection: &mut Detection,
        (said_ms, to_ms): (i64, i64),
    ) {
        let Replayed { metrics, timestamps, observations, .. } = &mut self.replayed;
        let places: Vec<usize> = names
            .into_iter()
            .map(|name| {
                metrics.iter().position(|known| *known == name).unwrap_or_else(|| {
                    metrics.push(name);
                    metrics.len() - 1
                })
            })
            .collect();
        let n_metrics = metrics.len();
        for seen in observations.iter_mut().flatten() {
            seen.values.resize(n_metrics, f32::NAN);
            seen.usual.resize(n_metrics, [f64::NAN; 3]);
        }
        let seen_ms = detection.newest_ms().unwrap_or(i64::MIN);
        rows::settled(schema, self.window, seen_ms, to_ms, |timestamp_ms, values| {
            let seen = detection.observe(timestamp_ms, values);
            // A row's time is that of its newest sample, which may be another's than the last in its slot.
            let place = timestamps.partition_point(|time| *time < timestamp_ms);
            if timestamp_ms > said_ms
                && place < timestamps.len()
                && schema.grid.bounds(timestamps[place]) == schema.grid.bounds(timestamp_ms)
            {
                timestamps[place] = timestamp_ms;
                observations[place] = seen.map(|seen| seen.among(&places, n_metrics));
                (self.done)();
            }
        });
    }
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
        let scored = self.observations.iter().enumerate();
        let scored: Vec<(usize, bool)> =
            scored.filter_map(|(row, seen)| Some((row, seen.as_ref()?.incident))).collect();
        // What was not scored in between does not end one.
        let spells = scored.chunk_by(|(_, a), (_, b)| a == b).filter(|spell| spell[0].1);
        spells.map(|spell| self.incident(spell[0].0..spell[spell.len() - 1].0 + 1)).collect()
    }

    /// The incidents as training knows them.
    fn own_incidents(&self) -> Vec<Exclusion> {
        let rows = self.timestamps.iter().zip(&self.observations);
        let open = rows.filter(|(_, seen)| seen.as_ref().is_some_and(|seen| seen.incident));
        past::incidents_at(&open.map(|(time, _)| *time).collect::<Vec<_>>())
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

    /// What happened, in the order of time: metrics that went or came, and incidents.
    pub fn happenings(&self) -> Vec<String> {
        let change = |change: &Change| {
            (change.timestamp_ms, format!("{}, {}", minute(change.timestamp_ms), change.what()))
        };
        let incident = |incident: &Incident| (incident.span_ms.0, self.sentence(incident));
        let mut all: Vec<(i64, String)> =
            self.changes.iter().map(change).chain(self.incidents().iter().map(incident)).collect();
        all.sort_by_key(|(timestamp_ms, _)| *timestamp_ms);
        all.into_iter().map(|(_, text)| text).collect()
    }

    /// An incident in words.
    fn sentence(&self, incident: &Incident) -> String {
        let (from_ms, to_ms) = incident.span_ms;
        let length = Duration::from_millis(u64::try_from(to_ms - from_ms).unwrap_or(0));
        let causes: Vec<String> = incident
            .causes
            .iter()
            .map(|(metric, reason, _)| format!("{} {}", self.metrics[*metric], reason.phrase()))
            .collect();
        let length = if length.is_zero() { "one row".into() } else { duration::Display(length).to_string() };
        format!("{}, {length}, score {:.1}: {}", minute(from_ms), incident.peak, causes.join(", "))
    }
}

fn minute(timestamp_ms: i64) -> String {
    let time = timestamp(timestamp_ms);
    format!("{} UTC", time.get(..16).unwrap_or(&time).replace('T', " "))
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
