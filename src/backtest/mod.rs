//! Backtests: replays past rows, each assessed with the data before it only, as the sidecar would have.

mod feature_changes;
mod report;
mod table;

use crate::detect::{self, Assessment, DeviationReason, OnlineDetector, SuspendedTimes, TrainingMatrix};
use crate::detector::{self, Detector};
use crate::features::Schema;
use crate::forest::{self, ExtendedParams};
use crate::models::{ModelParams, columns};
use crate::prom::{Labels, duration};
use crate::time::{self, DAY_MS, format_minute};
use crate::train::{Exclusion, ModelFitter, TrainingSet, training_set};
use crate::window::{Window, build};
use feature_changes::FeatureChanges;
pub use report::build_report;
use std::num::NonZeroUsize;
use std::time::Duration;
pub use table::{Error, write};

/// Contributions in the description of an incident.
const TOP_CONTRIBUTIONS: usize = 3;

/// The range to replay.
pub struct ReplayRange<'a> {
    /// Samples of the range and before it.
    pub window: &'a Window,
    /// The group's labels; empty for a table.
    pub group: Labels,
    /// Beginning of the range in milliseconds; earlier samples are training data.
    pub start_ms: i64,
    /// All timestamps of the range, ascending, also of incomplete rows; empty for those of the window.
    pub timestamps: Vec<i64>,
    /// One label per timestamp: true for an anomalous row.
    pub labels: Option<Vec<bool>>,
}

/// Fits new models during a replay.
pub struct Retraining<'a> {
    /// The detector.
    pub detector: &'a Detector,
    /// Parameters of the forest.
    pub params: ExtendedParams,
    /// Budget and filters.
    pub alerts: detect::Config,
    /// Ranges excluded from training.
    pub exclusions: Vec<Exclusion>,
    /// The times of maintenance and of firing alerts.
    pub suspended: SuspendedTimes,
    /// True for the samples of series, false for a table of values with a fixed schema.
    pub is_raw: bool,
    /// True to fit a new model after each interval of `training.interval`, as the sidecar does.
    pub is_renewing: bool,
    /// Threads that fit trees.
    pub threads: NonZeroUsize,
}

/// A replayed range and its assessments.
pub struct BacktestResult {
    /// Labels of the group.
    pub group: Labels,
    /// Names of the features.
    pub features: Vec<String>,
    /// Timestamps of the range in milliseconds, ascending.
    pub timestamps: Vec<i64>,
    /// One label per timestamp: true for an anomalous row.
    pub labels: Option<Vec<bool>>,
    /// One assessment per timestamp; `None` for an incomplete row.
    pub assessments: Vec<Option<Assessment>>,
    /// Changes of the features, ascending.
    pub changes: Vec<SchemaChange>,
    /// Number of models that were fitted in the range because of their age.
    pub n_renewals: usize,
}

/// A change of the features that led to a new model.
#[derive(Clone, Debug, PartialEq)]
pub struct SchemaChange {
    /// Timestamp of the row at which the change was detected, in milliseconds.
    pub timestamp_ms: i64,
    /// Names of the removed features.
    pub removed: Vec<String>,
    /// Names of the added features.
    pub added: Vec<String>,
}

/// One incident.
#[derive(Clone, Debug, PartialEq)]
pub struct Incident {
    /// Its range of indices into the timestamps.
    pub rows: std::ops::Range<usize>,
    /// Timestamps of its first and its last row, in milliseconds.
    pub span_ms: (i64, i64),
    /// The highest score.
    pub peak: f64,
    /// Feature, reason, and share of the total deviation at the row of the highest score, in descending order.
    pub contributions: Vec<(usize, DeviationReason, f64)>,
    /// True if it overlaps with a labelled row; `None` without labels.
    pub is_labelled: Option<bool>,
}

/// Agreement of incidents with labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EventRecall {
    /// Number of runs of labelled rows.
    pub n_events: usize,
    /// Runs that overlap with an incident.
    pub n_detected: usize,
    /// Incidents without a labelled row.
    pub n_outside: usize,
}

impl Retraining<'_> {
    /// A detector that is fitted to these rows and continues after the last of them.
    ///
    /// # Errors
    /// [`forest::Error`] for too few rows.
    pub fn fit(&self, rows: &TrainingSet) -> Result<OnlineDetector, forest::Error> {
        let detector = if self.detector.training.sweep.is_empty() {
            let matrix = TrainingMatrix::new(&rows.timestamps, &rows.table()?, rows.schema.mean_sizes())?;
            OnlineDetector::from_training(matrix.fit(&self.params, self.threads)?).0
        } else {
            self.fit_best_size(rows)?
        };
        Ok(self.with_alerts(detector, &rows.schema.features))
    }

    /// The detector with the budget, the filters and the maintenance of the replay.
    pub fn with_alerts(&self, mut detector: OnlineDetector, features: &[Labels]) -> OnlineDetector {
        detector.set_alerts(&self.alerts, features);
        detector.set_suspended(self.suspended.clone());
        detector
    }

    /// Fits the size of `training.sweep` that a training of the sidecar would choose.
    fn fit_best_size(&self, rows: &TrainingSet) -> Result<OnlineDetector, forest::Error> {
        let params = ModelParams::Extended(self.params.clone());
        let for_detector = ModelFitter::for_detector(self.detector, None, rows.to_ms);
        let fitter = ModelFitter { params: &params, threads: self.threads, ..for_detector };
        let fitted = fitter.fit(rows)?.model.fitted;
        Ok(fitted.as_online().expect("an extended forest scores rows in order").clone())
    }

    /// A model that is fitted to the history before `now_ms`; `None` if that is too little.
    fn fit_at(
        &self,
        schema: &Schema,
        window: &Window,
        now_ms: i64,
        learned_to_ms: i64,
    ) -> Option<ReplayModel> {
        let history_ms = time::millis(self.detector.training.history);
        let window = build::truncated(window, now_ms, history_ms);
        let rows = match self.is_raw {
            true => TrainingSet::from_window(self.detector, &window, &self.exclusions, learned_to_ms),
            false => TrainingSet::from_schema(schema.clone(), &window, &self.exclusions, learned_to_ms),
        };
        let rows = rows.ok()?;
        let detector = self.fit(&rows).ok()?;
        Some(ReplayModel { schema: rows.schema, names: None, detector, observed_ms: rows.observed_ms })
    }

    /// Time of the renewal of a model that was fitted at a time, in milliseconds.
    fn renewal_ms(&self, fitted_ms: i64, observed_ms: i64) -> i64 {
        match self.is_renewing {
            true => fitted_ms + time::millis(self.detector.training.retrain_interval(observed_ms)),
            false => i64::MAX,
        }
    }
}

/// A model at the beginning of a replay.
pub struct ReplayModel {
    /// Its features.
    pub schema: Schema,
    /// Their names, if they differ from the default.
    pub names: Option<Vec<String>>,
    /// The detector, whose newest row is before the range.
    pub detector: OnlineDetector,
    /// Length of the history that it was fitted to, in milliseconds, without gaps.
    pub observed_ms: i64,
}

/// Replays a range with one model. `on_row` is called for each row.
pub fn replay(range: ReplayRange<'_>, mut model: ReplayModel, on_row: &mut dyn FnMut()) -> BacktestResult {
    let mut replay = Replay::new(range, &model.schema, on_row);
    replay.replay_rows(&mut model, (i64::MIN, i64::MAX));
    replay.result
}

/// Replays a range, and fits a new model after each interval and whenever features are removed or added permanently, as
/// the sidecar does. The alert state goes over to the new model.
pub fn replay_with_retraining(
    range: ReplayRange<'_>,
    retraining: &Retraining<'_>,
    mut model: ReplayModel,
    on_row: &mut dyn FnMut(),
) -> BacktestResult {
    let (window, start_ms) = (range.window, range.start_ms);
    let end_ms = window.newest_ms().unwrap_or(start_ms);
    let mut replay = Replay::new(range, &model.schema, on_row);
    let mut feature_changes = FeatureChanges::new(retraining.detector, window, model.detector.interval_ms());
    let (mut assessed_to_ms, mut fitted_ms) = (i64::MIN, start_ms);
    loop {
        let renewal_ms = retraining.renewal_ms(fitted_ms, model.observed_ms);
        let change_ms = match retraining.is_raw {
            true => feature_changes.next_change(&model.schema, fitted_ms, renewal_ms),
            false => None,
        };
        fitted_ms = change_ms.unwrap_or(renewal_ms);
        replay.replay_rows(&mut model, (assessed_to_ms, fitted_ms.saturating_sub(1)));
        if change_ms.is_none() {
            fitted_ms = replay.wait_for_judgement(&mut model, assessed_to_ms, renewal_ms);
        }
        if fitted_ms > end_ms {
            return replay.result;
        }
        assessed_to_ms = model.detector.newest_ms().unwrap_or(i64::MIN);
        let learned_to_ms = match change_ms {
            Some(_) => assessed_to_ms,
            None => detector::learned_to_ms(assessed_to_ms, replay.newest_share(&model)),
        };
        if let Some(fitted) = retraining.fit_at(&model.schema, window, fitted_ms, learned_to_ms) {
            replay.record_new_model(fitted_ms, &model.schema, &fitted.schema);
            let detector = fitted.detector.with_alert_state(model.detector.alert_state().clone());
            let names = model.names.filter(|_| fitted.schema == model.schema);
            model = ReplayModel { detector, names, ..fitted };
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

    /// The change as text: `removed: a, b; added: c`.
    pub fn describe(&self) -> String {
        let parts = [(&self.removed, "removed"), (&self.added, "added")]
            .into_iter()
            .filter(|(names, _)| !names.is_empty());
        parts.map(|(names, change)| format!("{change}: {}", names.join(", "))).collect::<Vec<_>>().join("; ")
    }
}

/// A replay in progress.
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
            // The last timestamp of each slot.
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
                n_renewals: 0,
            },
            on_row,
        }
    }

    fn record_new_model(&mut self, timestamp_ms: i64, before: &Schema, after: &Schema) {
        if before.features == after.features {
            self.result.n_renewals += 1;
        } else {
            self.result.changes.push(SchemaChange::between(timestamp_ms, before, after));
        }
    }

    /// Replays row by row while a renewal that is due waits for a deviation to be judged. Returns its time.
    fn wait_for_judgement(&mut self, model: &mut ReplayModel, assessed_to_ms: i64, due_ms: i64) -> i64 {
        let mut at_ms = due_ms;
        let waits = |at_ms: i64, share| {
            detector::renewal_waits(Duration::from_millis((at_ms - due_ms).unsigned_abs()), share)
        };
        while waits(at_ms, self.newest_share(model)) {
            let Some(next_ms) = self.window.timestamps(at_ms - 1, i64::MAX).next() else { return i64::MAX };
            let row_ms = model.schema.grid.bounds(next_ms).1;
            self.replay_rows(model, (assessed_to_ms, row_ms));
            at_ms = row_ms.saturating_add(1);
        }
        at_ms
    }

    /// The score of the newest assessed row as a share of its threshold; 0 without one.
    fn newest_share(&self, model: &ReplayModel) -> f64 {
        let newest_ms = model.detector.newest_ms().unwrap_or(i64::MIN);
        let newest = self.result.timestamps.partition_point(|time| *time <= newest_ms).checked_sub(1);
        let assessment = newest.and_then(|row| self.result.assessments[row].as_ref());
        assessment.map_or(0.0, |assessment| assessment.score / assessment.threshold)
    }

    /// Assesses the rows after the detector's newest one, up to `to_ms`. Stores the assessments of rows that are in the
    /// range and after `assessed_to_ms`: those of an earlier detector stay.
    fn replay_rows(&mut self, model: &mut ReplayModel, (assessed_to_ms, to_ms): (i64, i64)) {
        let ReplayModel { schema, detector, .. } = model;
        let names = model.names.clone().unwrap_or_else(|| columns::default_names(schema));
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
        let newest_ms = detector.newest_ms().unwrap_or(i64::MIN);
        training_set::for_each_full_row(schema, self.window, newest_ms, to_ms, |timestamp_ms, values| {
            let assessment = detector.assess(timestamp_ms, values);
            // The timestamp of a row is that of its newest sample, which may differ from the last timestamp of its slot.
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
    /// Number of scored rows.
    pub fn n_scored(&self) -> usize {
        self.assessments.iter().flatten().count()
    }

    /// Length of the range in days.
    pub fn days(&self) -> f64 {
        match (self.timestamps.first(), self.timestamps.last()) {
            (Some(first), Some(last)) => (last - first) as f64 / DAY_MS as f64,
            _ => 0.0,
        }
    }

    /// All incidents, ascending.
    pub fn incidents(&self) -> Vec<Incident> {
        let scored = self.assessments.iter().enumerate();
        let scored: Vec<(usize, bool)> =
            scored.filter_map(|(row, assessment)| Some((row, assessment.as_ref()?.incident))).collect();
        // A row without a score does not end an incident.
        let stretches = scored.chunk_by(|(_, a), (_, b)| a == b).filter(|stretch| stretch[0].1);
        stretches.map(|stretch| self.incident(stretch[0].0..stretch[stretch.len() - 1].0 + 1)).collect()
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

    /// Agreement of the incidents with the labels; `None` without labels.
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

    /// Changes of the features and incidents as text, ascending.
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

    /// An incident as text.
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

/// Runs of labelled rows.
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
