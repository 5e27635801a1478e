//! The past once more: every row scored as it would have been, by what was known before it.

mod feature_changes;
mod report;
mod table;

use crate::detect::{self, Assessment, DeviationReason, OnlineDetector, TrainingMatrix};
use crate::detector::Detector;
use crate::features::Schema;
use crate::forest::{self, ExtendedParams};
use crate::models::columns;
use crate::prom::{Labels, duration};
use crate::time::format_minute;
use crate::train::{Exclusion, TrainingSet, training_set};
use crate::window::{Window, build};
use feature_changes::FeatureChanges;
pub use report::build_report;
use std::num::NonZeroUsize;
use std::time::Duration;
pub use table::{Error, write};

/// Causes of an incident that are told.
const TOP_CONTRIBUTIONS: usize = 3;
const DAY_MS: f64 = 86_400_000.0;

/// What is replayed.
pub struct ReplayRange<'a> {
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
pub struct Retraining<'a> {
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
pub struct BacktestResult {
    /// Labels of the group.
    pub group: Labels,
    /// Names of the metrics.
    pub features: Vec<String>,
    /// Timestamps of the range in milliseconds, ascending.
    pub timestamps: Vec<i64>,
    /// Is the row known to be anomalous? One mark for each timestamp.
    pub labels: Option<Vec<bool>>,
    /// What was said at each timestamp; none for a row that was not complete.
    pub assessments: Vec<Option<Assessment>>,
    /// When metrics went or came, in the order of time.
    pub changes: Vec<SchemaChange>,
}

/// Metrics went for good, or came to stay, and a model was learned anew.
#[derive(Clone, Debug, PartialEq)]
pub struct SchemaChange {
    /// The row at which that was known, in milliseconds.
    pub timestamp_ms: i64,
    /// Names of those that went.
    pub removed: Vec<String>,
    /// Names of those that came.
    pub added: Vec<String>,
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
    pub contributions: Vec<(usize, DeviationReason, f64)>,
    /// Does it overlap with what is known to be anomalous? Unknown without marks.
    pub is_labelled: Option<bool>,
}

/// How incidents compare with marks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EventRecall {
    /// Runs of marked rows.
    pub n_events: usize,
    /// Those with an incident in them.
    pub n_detected: usize,
    /// Incidents with no marked row in them.
    pub n_outside: usize,
}

impl Retraining<'_> {
    /// A detection that goes on from the last of these rows.
    ///
    /// # Errors
    /// [`forest::Error`], when there is too little to learn from.
    pub fn fit(&self, rows: &TrainingSet) -> Result<OnlineDetector, forest::Error> {
        let fitted =
            TrainingMatrix::new(&rows.timestamps, &rows.table()?)?.fit(&self.params, self.threads)?;
        Ok(OnlineDetector::from_training(fitted).0.with_alerts(&self.alerts, &rows.schema.features))
    }

    /// The same by what is known at a time, if that is enough.
    fn fit_at(
        &self,
        window: &Window,
        now_ms: i64,
        scored_to_ms: i64,
        own_incidents: &[Exclusion],
    ) -> Option<(Schema, OnlineDetector)> {
        let exclusions = [&self.exclusions, own_incidents].concat();
        let rows = TrainingSet::from_window(
            self.detector,
            &build::truncated(window, now_ms, i64::MAX / 4),
            &exclusions,
            scored_to_ms,
        )
        .ok()?;
        let detection = self.fit(&rows).ok()?;
        Some((rows.schema, detection))
    }
}

/// Replays a range with a detection that knows what lies before it. `names` are those of the schema's features; `done`
/// hears of each row.
pub fn replay(
    range: ReplayRange<'_>,
    schema: &Schema,
    names: Vec<String>,
    mut detection: OnlineDetector,
    on_row: &mut dyn FnMut(),
) -> BacktestResult {
    let mut replay = Replay::new(range, schema, on_row);
    replay.replay_rows(schema, names, &mut detection, (i64::MIN, i64::MAX));
    replay.result
}

/// The same, and when features go for good or come to stay a model is learned anew as the sidecar would, without its
/// renewals: from all that is known by then, but for the incidents that were found.
pub fn replay_with_retraining(
    range: ReplayRange<'_>,
    retraining: &Retraining<'_>,
    (mut schema, mut detection): (Schema, OnlineDetector),
    on_row: &mut dyn FnMut(),
) -> BacktestResult {
    let (window, start_ms) = (range.window, range.start_ms);
    let mut replay = Replay::new(range, &schema, on_row);
    let mut feature_changes = FeatureChanges::new(retraining.detector, window, detection.interval_ms());
    let mut assessed_to_ms = i64::MIN;
    loop {
        let change_ms = feature_changes.next_change(&schema.features, start_ms);
        let names = columns::default_names(&schema);
        let to_ms = change_ms.map_or(i64::MAX, |change_ms| change_ms - 1);
        replay.replay_rows(&schema, names, &mut detection, (assessed_to_ms, to_ms));
        let Some(change_ms) = change_ms else { return replay.result };
        assessed_to_ms = detection.newest_ms().unwrap_or(i64::MIN);
        let own_incidents = replay.result.own_incidents();
        if let Some((new_schema, new_detection)) =
            retraining.fit_at(window, change_ms, assessed_to_ms, &own_incidents)
        {
            replay.result.changes.push(SchemaChange::between(change_ms, &schema, &new_schema));
            detection = new_detection.inherit_incident(&detection);
            schema = new_schema;
        }
    }
}

impl SchemaChange {
    fn between(timestamp_ms: i64, before: &Schema, after: &Schema) -> Self {
        let missing_from = |schema: &Schema, other: &Schema| {
            let missing = schema.features.iter().filter(|feature| !other.features.contains(feature));
            missing.map(|feature| schema.transform.expression(feature)).collect()
        };
        Self { timestamp_ms, removed: missing_from(before, after), added: missing_from(after, before) }
    }

    /// For people.
    pub fn describe(&self) -> String {
        let parts = [(&self.removed, "went"), (&self.added, "came")]
            .into_iter()
            .filter(|(names, _)| !names.is_empty());
        parts.map(|(names, how)| format!("{how}: {}", names.join(", "))).collect::<Vec<_>>().join("; ")
    }
}

/// A range on its way.
struct Replay<'a> {
    window: &'a Window,
    result: BacktestResult,
    on_row: &'a mut dyn FnMut(),
}

impl<'a> Replay<'a> {
    fn new(range: ReplayRange<'a>, schema: &Schema, on_row: &'a mut dyn FnMut()) -> Self {
        let ReplayRange { window, group, start_ms, mut timestamps, labels } = range;
        if timestamps.is_empty() {
            timestamps = window.timestamps(start_ms - 1, i64::MAX).collect();
            // The last of each row.
            timestamps.reverse();
            timestamps.dedup_by_key(|time| schema.grid.bounds(*time).1);
            timestamps.reverse();
        }
        let assessments = vec![None; timestamps.len()];
        Self {
            window,
            result: BacktestResult {
                group,
                features: Vec::new(),
                timestamps,
                labels,
                assessments,
                changes: Vec::new(),
            },
            on_row,
        }
    }

    /// Takes the rows of a schema that the detection has not seen, up to the second time, and keeps what it says of those
    /// in the range and after the first: what an earlier one has said stays.
    fn replay_rows(
        &mut self,
        schema: &Schema,
        names: Vec<String>,
        detection: &mut OnlineDetector,
        (assessed_to_ms, to_ms): (i64, i64),
    ) {
        let BacktestResult { features, timestamps, assessments, .. } = &mut self.result;
        let positions: Vec<usize> = names
            .into_iter()
            .map(|name| {
                features.iter().position(|known| *known == name).unwrap_or_else(|| {
                    features.push(name);
                    features.len() - 1
                })
            })
            .collect();
        let n_features = features.len();
        for assessment in assessments.iter_mut().flatten() {
            assessment.values.resize(n_features, f32::NAN);
            assessment.expected_range.resize(n_features, [f64::NAN; 3]);
        }
        let newest_ms = detection.newest_ms().unwrap_or(i64::MIN);
        training_set::for_each_full_row(schema, self.window, newest_ms, to_ms, |timestamp_ms, values| {
            let assessment = detection.assess(timestamp_ms, values);
            // A row's time is that of its newest sample, which may be another's than the last in its slot.
            let position = timestamps.partition_point(|time| *time < timestamp_ms);
            if timestamp_ms > assessed_to_ms
                && position < timestamps.len()
                && schema.grid.bounds(timestamps[position]) == schema.grid.bounds(timestamp_ms)
            {
                timestamps[position] = timestamp_ms;
                assessments[position] =
                    assessment.map(|assessment| assessment.remapped(&positions, n_features));
                (self.on_row)();
            }
        });
    }
}

impl BacktestResult {
    /// Rows that were scored.
    pub fn n_scored(&self) -> usize {
        self.assessments.iter().flatten().count()
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
        let scored = self.assessments.iter().enumerate();
        let scored: Vec<(usize, bool)> =
            scored.filter_map(|(row, assessment)| Some((row, assessment.as_ref()?.incident))).collect();
        // What was not scored in between does not end one.
        let stretches = scored.chunk_by(|(_, a), (_, b)| a == b).filter(|stretch| stretch[0].1);
        stretches.map(|stretch| self.incident(stretch[0].0..stretch[stretch.len() - 1].0 + 1)).collect()
    }

    /// The incidents as training knows them.
    fn own_incidents(&self) -> Vec<Exclusion> {
        let rows = self.timestamps.iter().zip(&self.assessments);
        let open =
            rows.filter(|(_, assessment)| assessment.as_ref().is_some_and(|assessment| assessment.incident));
        Exclusion::from_incident_rows(&open.map(|(time, _)| *time).collect::<Vec<_>>())
    }

    fn incident(&self, rows: std::ops::Range<usize>) -> Incident {
        let assessed = self.assessments[rows.clone()].iter().flatten();
        let peak = assessed.max_by(|a, b| a.score.total_cmp(&b.score));
        Incident {
            span_ms: (self.timestamps[rows.start], self.timestamps[rows.end - 1]),
            peak: peak.map_or(0.0, |peak| peak.score),
            contributions: peak
                .map(|peak| peak.contributions(TOP_CONTRIBUTIONS).collect())
                .unwrap_or_default(),
            is_labelled: self.labels.as_ref().map(|labels| labels[rows.clone()].contains(&true)),
            rows,
        }
    }

    /// How the incidents compare with the marks, where there are any.
    pub fn event_recall(&self) -> Option<EventRecall> {
        let labels = self.labels.as_ref()?;
        let runs = runs(labels);
        let incidents = self.incidents();
        let is_detected = |run: &&std::ops::Range<usize>| {
            incidents.iter().any(|incident| incident.rows.start < run.end && run.start < incident.rows.end)
        };
        Some(EventRecall {
            n_events: runs.len(),
            n_detected: runs.iter().filter(is_detected).count(),
            n_outside: incidents.iter().filter(|incident| incident.is_labelled == Some(false)).count(),
        })
    }

    /// What happened, in the order of time: metrics that went or came, and incidents.
    pub fn events(&self) -> Vec<String> {
        let change = |change: &SchemaChange| {
            (change.timestamp_ms, format!("{}, {}", format_minute(change.timestamp_ms), change.describe()))
        };
        let incident = |incident: &Incident| (incident.span_ms.0, self.describe_incident(incident));
        let mut all: Vec<(i64, String)> =
            self.changes.iter().map(change).chain(self.incidents().iter().map(incident)).collect();
        all.sort_by_key(|(timestamp_ms, _)| *timestamp_ms);
        all.into_iter().map(|(_, text)| text).collect()
    }

    /// An incident in words.
    fn describe_incident(&self, incident: &Incident) -> String {
        let (from_ms, to_ms) = incident.span_ms;
        let length = Duration::from_millis(u64::try_from(to_ms - from_ms).unwrap_or(0));
        let contributions: Vec<String> = incident
            .contributions
            .iter()
            .map(|(feature, reason, _)| format!("{} {}", self.features[*feature], reason.phrase()))
            .collect();
        let length = if length.is_zero() { "one row".into() } else { duration::Display(length).to_string() };
        format!(
            "{}, {length}, score {:.1}: {}",
            format_minute(from_ms),
            incident.peak,
            contributions.join(", ")
        )
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
