//! A group: its window, models, open rows and cursors.

pub mod deployment;
pub mod gap_guard;
pub mod event;
mod incident_log;
mod gap_hold;
mod publishing;
mod row_tracker;
pub mod snapshot;
mod training;

use super::drift::DriftMonitor;
use super::output_series::Cursor;
use super::schedule::TrainingSchedule;
use super::select::{GroupMatches, GroupQuery};
use super::serving::{Contribution, ServingModel};
use crate::detect::OnlineDetector;
use crate::detector::Detector;
use crate::features::{Row, RowReader, Schema, counter};
use crate::models::DeployedModel;
use crate::prom::{Labels, Sample};
use crate::remote_read::server::Query;
use crate::remote_write::FailureReason;
use crate::snapshot::ModelCheckpoint;
use crate::time;
use crate::train::WarmStart;
use crate::train::coverage;
use crate::window::{Column, ModelRole, PushOutcome, Score, Window};
use event::{GroupEvent, RowState};
use gap_guard::GapGuard;
use incident_log::IncidentLog;
use row_tracker::RowTracker;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Columns without a sample in the window that a group keeps at most.
const MAX_EMPTY_COLUMNS: usize = 64;

/// Length of the window's end that the scrape interval is inferred from after a restart.
const INTERVAL_LOOKBACK_MS: i64 = 3_600_000;

/// See the [module](self).
pub struct Group {
    /// The detector.
    pub detector: Arc<Detector>,
    /// The values of the `by` labels.
    pub labels: Labels,
    window: Window,
    champion: Option<ServingModel>,
    challenger: Option<ServingModel>,
    drift: DriftMonitor,
    rows: RowTracker,
    incidents: IncidentLog,
    gaps: GapGuard,
    /// Scratch space for the values of a row.
    values: Vec<f32>,
    cursors: Vec<Cursor>,
    /// Rows up to here were scored and written by an earlier process.
    written_to_ms: i64,
    /// Timestamp of the newest scored row, and arrival of its last sample.
    newest_scored: Option<(i64, Instant)>,
    /// True if anything that `/metrics` shows of the group has changed.
    metrics_dirty: bool,
    /// True if anything has changed since the last snapshot.
    snapshot_dirty: bool,
    /// States of the models at the end of the earlier process, until the models serve again.
    checkpoints: [Option<ModelCheckpoint>; 2],
    first_sample_at: Instant,
    last_received: Instant,
    schedule: TrainingSchedule,
}

impl Group {
    /// A group without samples, with cursors for `n_targets` endpoints.
    pub fn new(detector: Arc<Detector>, labels: Labels, n_endpoints: usize, now: Instant) -> Self {
        Self {
            schedule: TrainingSchedule::new(&detector, now),
            window: Window::new(time::millis(detector.window)),
            detector,
            labels,
            champion: None,
            challenger: None,
            drift: DriftMonitor::default(),
            rows: RowTracker::default(),
            incidents: IncidentLog::default(),
            gaps: GapGuard::default(),
            values: Vec::new(),
            cursors: vec![Cursor::after(i64::MIN); n_endpoints],
            written_to_ms: i64::MIN,
            newest_scored: None,
            metrics_dirty: true,
            snapshot_dirty: false,
            checkpoints: [None, None],
            first_sample_at: now,
            last_received: now,
        }
    }

    /// Applies another configuration of the detector. Returns false, and changes nothing, if the window or the models
    /// cannot be kept.
    pub fn reconfigure(&mut self, detector: &Arc<Detector>, now: Instant, now_ms: i64) -> bool {
        let length_ms = time::millis(detector.window);
        let mut schemas = self.champion.iter().chain(&self.challenger).map(ServingModel::schema);
        if !detector.has_same_selection(&self.detector)
            || schemas.any(|schema| schema.transform.lookback_ms() > length_ms)
        {
            return false;
        }
        let old = std::mem::replace(&mut self.detector, detector.clone());
        if *old == **detector {
            return true;
        }
        self.metrics_dirty = true;
        self.window.set_length(length_ms);
        for serving in self.champion.iter_mut().chain(&mut self.challenger) {
            serving.set_alerts(&detector.alerts);
        }
        if let Some(serving) = &self.champion
            && !serving.deployed.is_pooled()
            && old.training != detector.training
        {
            let card = &serving.model().card;
            self.schedule.schedule_renewal(detector, card, card.age(now_ms), now);
        }
        if old.model != detector.model {
            self.schedule.bring_forward(now);
        }
        true
    }

    /// Arrival of the first sample.
    pub fn first_sample_at(&self) -> Instant {
        self.first_sample_at
    }

    /// The column of a feature; `None` if the group has too many.
    pub fn column(&mut self, feature: &Labels) -> Option<Column> {
        let known = self.window.find_column(feature);
        let column = self.window.get_or_add_column(feature)?;
        if known.is_none() {
            self.rebind_columns();
        }
        Some(column)
    }

    /// Binds the models to the changed columns of the window.
    fn rebind_columns(&mut self) {
        for serving in self.champion.iter_mut().chain(&mut self.challenger) {
            serving.reader = RowReader::new(serving.schema(), &self.window);
        }
    }

    /// Number of columns of the window.
    pub fn n_columns(&self) -> usize {
        self.window.features().count()
    }

    /// Stores a sample. The second value is true if the sample is older than the newest one.
    pub fn push(&mut self, column: Column, sample: Sample, now: Instant) -> (PushOutcome, bool) {
        let newest_ms = self.window.newest_ms();
        let outcome = self.window.push(column, sample);
        self.last_received = now;
        if outcome != PushOutcome::Stored {
            return (outcome, false);
        }
        self.snapshot_dirty = true;
        let late = newest_ms.is_some_and(|newest| sample.timestamp_ms < newest);
        if newest_ms.is_none_or(|newest| newest < sample.timestamp_ms) {
            let key = self.row_key(sample.timestamp_ms);
            self.gaps.observe(key, newest_ms, self.champion.is_some(), now);
        }
        self.touch(sample.timestamp_ms, now);
        if late {
            self.rows.mark_late(sample.timestamp_ms);
        }
        (outcome, late)
    }

    fn touch(&mut self, timestamp_ms: i64, now: Instant) {
        let key = self.row_key(timestamp_ms);
        let Self { rows, champion, window, .. } = self;
        let is_scored = || champion.is_some() && window.score(ModelRole::Champion, timestamp_ms).is_some();
        rows.touch(key, timestamp_ms, is_scored, now);
    }

    /// The last timestamp that belongs to the row of this timestamp.
    fn row_key(&self, timestamp_ms: i64) -> i64 {
        row_key(self.champion.as_ref(), timestamp_ms)
    }

    /// Scores the rows that have new samples since the last call. Returns true if there is a new score.
    pub fn score_touched(&mut self, now: Instant, on_event: &mut impl FnMut(GroupEvent)) -> bool {
        if self.gaps.is_holding() {
            return false;
        }
        if self.champion.as_ref().is_some_and(ServingModel::is_sequential) {
            return self.score_in_order(now, on_event);
        }
        let schema = self.champion.as_ref().map(ServingModel::schema);
        let touched = self.rows.take_touched(&self.window, schema);
        let mut scored = false;
        for key in touched {
            scored |= self.score_row(key, now, on_event);
        }
        scored
    }

    fn score_row(&mut self, key: i64, now: Instant, on_event: &mut impl FnMut(GroupEvent)) -> bool {
        let Some(serving) = &mut self.champion else { return false };
        let model = serving.model().clone();
        let mut events = Vec::new();
        let row = serving
            .reader
            .read_row(&model.schema, &self.window, key, &mut self.values, |event| events.push(event));
        let Row::Complete { timestamp_ms, .. } = row else { return false };
        self.rows.close(key);
        let old = self.window.score(ModelRole::Champion, timestamp_ms);
        if old.is_some() && (timestamp_ms <= serving.frozen_to_ms || timestamp_ms <= self.written_to_ms) {
            return false;
        }
        let Some((new, _)) = serving.score(timestamp_ms, &self.values) else { return false };
        if old == Some(new) {
            return false;
        }
        self.store_score(timestamp_ms, old, new, Vec::new(), events, now, on_event);
        true
    }

    /// Scores the rows after the newest scored one in order, up to the first that still waits for samples.
    fn score_in_order(&mut self, now: Instant, on_event: &mut impl FnMut(GroupEvent)) -> bool {
        self.rows.clear_touched();
        let Some(serving) = &self.champion else { return false };
        let model = serving.model().clone();
        let processed_to_ms = serving.processed_to_ms;
        let times: Vec<i64> = self.window.timestamps(processed_to_ms, i64::MAX).collect();
        let mut scored = false;
        for time in times {
            let Some(serving) = &mut self.champion else { break };
            let key = model.schema.grid.bounds(time).1;
            if key <= serving.processed_to_ms {
                continue;
            }
            let mut events = Vec::new();
            let row = serving
                .reader
                .read_row(&model.schema, &self.window, key, &mut self.values, |event| events.push(event));
            match row {
                Row::Complete { timestamp_ms, is_full_range: true } => {
                    serving.processed_to_ms = key;
                    let result = serving.score(timestamp_ms, &self.values);
                    let frozen_to_ms = serving.frozen_to_ms;
                    self.rows.close(key);
                    let Some((new, contributions)) = result else { continue };
                    let old = self.window.score(ModelRole::Champion, timestamp_ms);
                    // Scores of earlier models stay, even if only an endpoint has them. The row still advances the
                    // state of the detection.
                    let was_scored_before = old.is_some() || timestamp_ms <= self.written_to_ms;
                    if timestamp_ms > frozen_to_ms || !was_scored_before {
                        self.store_score(timestamp_ms, old, new, contributions, events, now, on_event);
                        scored = true;
                    }
                }
                Row::Complete { is_full_range: false, .. } => {
                    serving.processed_to_ms = key;
                    if self.rows.close(key).is_some() {
                        on_event(GroupEvent::Row(RowState::TooShort));
                    }
                }
                // The row has samples of other features only.
                Row::Missing(missing)
                    if missing.len() == model.schema.features.len()
                        && !serving.reader.has_staleness_marker(&model.schema, &self.window, key) => {}
                Row::Missing(_) | Row::TooFewSamples(_) if self.rows.is_open(key) => break,
                Row::Missing(_) | Row::TooFewSamples(_) => serving.processed_to_ms = key,
            }
        }
        scored
    }

    /// Stores the score of a row and emits its events.
    #[expect(clippy::too_many_arguments, reason = "a row, from all sides")]
    fn store_score(
        &mut self,
        timestamp_ms: i64,
        old: Option<Score>,
        new: Score,
        contributions: Vec<Contribution>,
        events: Vec<counter::CounterEvent>,
        now: Instant,
        on_event: &mut impl FnMut(GroupEvent),
    ) {
        self.snapshot_dirty = true;
        self.window.set_score(ModelRole::Champion, timestamp_ms, new);
        let was_written = timestamp_ms <= self.written_to_ms;
        let failure = if was_written {
            // Prometheus already has this score, bit for bit.
            None
        } else if old.is_none() {
            on_event(GroupEvent::Row(RowState::Complete));
            events.into_iter().for_each(|event| on_event(GroupEvent::Counter(event)));
            if self.values.iter().any(|value| !value.is_finite()) {
                on_event(GroupEvent::NotFinite);
            }
            self.drift.add(timestamp_ms, new.decision);
            self.metrics_dirty |= self.rows.set_missing_features(0);
            Some(FailureReason::OutOfOrder)
        } else {
            Some(FailureReason::Revised)
        };
        for cursor in &mut self.cursors {
            let Some(failure) = failure else { continue };
            if timestamp_ms <= cursor.dispatched_ms {
                on_event(GroupEvent::SamplesFailed(failure, samples_per_row(&new)));
            } else if old.is_none() {
                cursor.pending_samples += samples_per_row(&new);
            }
        }
        if self.newest_scored.is_none_or(|(newest_ms, _)| newest_ms < timestamp_ms) {
            self.newest_scored = Some((timestamp_ms, now));
        }
        self.track_incident(timestamp_ms, &new, contributions);
        self.score_challenger(timestamp_ms);
    }

    fn track_incident(&mut self, timestamp_ms: i64, score: &Score, contributions: Vec<Contribution>) {
        let start_ms = self.window.start_ms();
        self.rows.drop_stale_until(start_ms);
        let is_incident = score.incident_state.is_some_and(|state| state.is_incident);
        self.metrics_dirty |= self.incidents.record(timestamp_ms, is_incident, contributions, start_ms);
    }

    /// Incidents within the last day; `None` for a model without incidents.
    pub fn incidents_last_day(&self) -> Option<usize> {
        let is_ordered = self.champion.as_ref().is_some_and(ServingModel::is_sequential);
        is_ordered.then_some(self.incidents.starts().len())
    }

    /// Scores a row of the champion with the challenger too, if the row has all of its features.
    fn score_challenger(&mut self, timestamp_ms: i64) {
        if let Some(score) = self.challenger_score(timestamp_ms) {
            self.window.set_score(ModelRole::Challenger, timestamp_ms, score);
        }
    }

    fn challenger_score(&mut self, timestamp_ms: i64) -> Option<Score> {
        let challenger = self.challenger.as_mut()?;
        let model = challenger.model().clone();
        let row =
            challenger.reader.read_row(&model.schema, &self.window, timestamp_ms, &mut self.values, |_| {});
        let is_usable = match challenger.is_sequential() {
            true => matches!(row, Row::Complete { is_full_range: true, .. }),
            false => matches!(row, Row::Complete { .. }),
        };
        if !is_usable {
            return None;
        }
        challenger.score(timestamp_ms, &self.values).map(|(score, _)| score)
    }

    /// Closes the rows whose grace period is over. Returns true if there were any.
    pub fn close_rows(&mut self, now: Instant, on_event: &mut impl FnMut(GroupEvent)) -> bool {
        if self.gaps.is_holding() {
            return false;
        }
        let grace = self.detector.grace;
        let newest = self.window.newest_ms().map(|newest_ms| self.row_key(newest_ms));
        let overdue = self.rows.overdue(grace, now);
        let mut any = false;
        for key in overdue {
            // The stream ended within this row: a gap fill brings the rest once the stream resumes.
            if newest == Some(key) && self.is_partial(key) {
                continue;
            }
            any = true;
            let Some(open_row) = self.rows.close(key) else { continue };
            let Some(serving) = &mut self.champion else {
                on_event(GroupEvent::Row(RowState::NoModel));
                continue;
            };
            let schema = &serving.deployed.model.schema;
            let state = match serving.reader.read_row(schema, &self.window, key, &mut self.values, |_| {}) {
                Row::Missing(missing) if missing.len() == schema.features.len() => {
                    if !serving.reader.has_staleness_marker(schema, &self.window, key) {
                        // Samples of features that are not in the model.
                        continue;
                    }
                    let (after_ms, to_ms) = schema.grid.bounds(key);
                    let newest_ms = self.window.timestamps(after_ms, to_ms).last();
                    self.rows.add_stale(newest_ms, now);
                    self.snapshot_dirty = true;
                    RowState::Stale
                }
                Row::Missing(missing) => {
                    self.metrics_dirty |= self.rows.set_missing_features(missing.len());
                    RowState::Incomplete
                }
                Row::TooFewSamples(_) => RowState::TooShort,
                // The row waited for an earlier row that is closed now.
                Row::Complete { .. } if serving.is_sequential() && key > serving.processed_to_ms => {
                    self.rows.reopen(key, open_row);
                    continue;
                }
                Row::Complete { timestamp_ms, .. }
                    if serving.is_sequential()
                        && timestamp_ms > self.written_to_ms
                        && self.window.score(ModelRole::Champion, timestamp_ms).is_none() =>
                {
                    if timestamp_ms > serving.frozen_to_ms { RowState::Late } else { RowState::NoModel }
                }
                // Scored already, or older than the model.
                Row::Complete { .. } => continue,
            };
            on_event(GroupEvent::Row(state));
        }
        any
    }

    /// True if a row has some features of the model and lacks others.
    fn is_partial(&mut self, key: i64) -> bool {
        let Some(serving) = &mut self.champion else { return false };
        let schema = &serving.deployed.model.schema;
        let row = serving.reader.read_row(schema, &self.window, key, &mut self.values, |_| {});
        matches!(row, Row::Missing(missing) if missing.len() < schema.features.len())
            && !serving.reader.has_staleness_marker(schema, &self.window, key)
    }

    /// True if anything that `/metrics` shows has changed since the last call. Progress always has.
    pub fn take_metrics_dirty(&mut self) -> bool {
        std::mem::take(&mut self.metrics_dirty) || !self.has_permanent_model()
    }

    /// Number of features that the last row lacked.
    pub fn n_missing_features(&self) -> usize {
        self.rows.n_missing_features()
    }

    /// Timestamp of the newest scored row.
    pub fn newest_scored_ms(&self) -> Option<i64> {
        self.newest_scored.map(|(newest_ms, _)| newest_ms)
    }

    /// The model in this role.
    pub fn deployed(&self, role: ModelRole) -> Option<&DeployedModel> {
        let serving = match role {
            ModelRole::Champion => &self.champion,
            ModelRole::Challenger => &self.challenger,
        };
        serving.as_ref().map(|serving| &serving.deployed)
    }

    /// True if the champion is more than a pooled model that fills the time until the first own one.
    fn has_permanent_model(&self) -> bool {
        self.champion.as_ref().is_some_and(|serving| !serving.deployed.is_pooled())
    }

    /// KL divergence of the last day's decisions from those of training, if both are known.
    pub fn drift(&self) -> Option<f64> {
        self.drift.divergence(self.champion.as_ref()?.model().card.baseline.as_ref()?)
    }

    /// Features with a recent sample.
    pub fn active_features(&self) -> BTreeSet<&Labels> {
        let newest_ms = self.window.newest_ms().unwrap_or(i64::MIN);
        self.window
            .features()
            .filter(|(_, _, newest)| coverage::is_alive(*newest, newest_ms, self.detector.grace))
            .map(|(labels, _, _)| labels)
            .collect()
    }

    /// The first feature of a schema without a recent sample here.
    pub fn missing_feature<'s>(&self, schema: &'s Schema) -> Option<&'s Labels> {
        let active = self.active_features();
        schema.features.iter().find(|feature| !active.contains(feature))
    }

    /// True if no sample has arrived for the length of the window.
    pub fn is_expired(&self, now: Instant) -> bool {
        now.duration_since(self.last_received) > self.detector.window.max(self.detector.grace)
    }

    /// True if the window holds many columns without a sample.
    pub fn has_many_empty_columns(&self) -> bool {
        self.n_empty_columns() > MAX_EMPTY_COLUMNS
    }

    fn n_empty_columns(&self) -> usize {
        self.window.features().filter(|(_, _, newest)| self.has_left_window(*newest)).count()
    }

    fn has_left_window(&self, newest: Option<Sample>) -> bool {
        newest.is_none_or(|sample| sample.timestamp_ms <= self.window.start_ms())
    }

    /// The same group without these columns. The numbers of the other columns change.
    pub fn without_empty_columns(mut self) -> Self {
        let active: Vec<Labels> = self
            .window
            .features()
            .filter(|(_, _, newest)| !self.has_left_window(*newest))
            .map(|(labels, _, _)| labels.clone())
            .collect();
        self.window = self.window.with_features(&active);
        self.rebind_columns();
        self.schedule.reset_columns(self.n_columns());
        self
    }

    /// Sets or removes the challenger.
    pub fn set_challenger(
        &mut self,
        deployed: Option<DeployedModel>,
        detection: Option<Box<OnlineDetector>>,
    ) {
        self.metrics_dirty = true;
        self.snapshot_dirty = true;
        let checkpoint = self.checkpoints[1].take();
        self.challenger = deployed.map(|deployed| {
            let resume = |checkpoint: ModelCheckpoint| checkpoint.resume(&deployed).flatten();
            let detection = detection.or_else(|| checkpoint.and_then(resume));
            ServingModel::new(deployed, &self.window, i64::MIN, detection, &self.detector.alerts)
        });
        // The challenger also scores the rows that arrived while its history was read.
        let sequential = self.challenger.as_ref().filter(|challenger| challenger.is_sequential());
        let processed_to_ms = sequential.map_or(i64::MAX, |challenger| challenger.processed_to_ms);
        let later: Vec<i64> =
            self.window.scores(ModelRole::Champion, processed_to_ms, i64::MAX).map(|(at, _)| at).collect();
        for timestamp_ms in later {
            self.challenger_score(timestamp_ms);
        }
    }

    /// Makes a model the champion, and scores the rows that wait with it.
    ///
    /// A first model comes with the history of remote read: the samples that rates look back to, and the newest score
    /// that is already written. After a restart the rows since then are scored and written, so that no gap is left.
    pub fn install(
        &mut self,
        deployed: DeployedModel,
        warm_start: WarmStart,
        now: Instant,
        on_event: &mut impl FnMut(GroupEvent),
    ) -> bool {
        let WarmStart { recent, watermark, detection } = warm_start;
        self.metrics_dirty = true;
        self.snapshot_dirty = true;
        self.drift = DriftMonitor::default();
        // A model that a person chose serves for a full interval, however old it is.
        if !deployed.is_pooled() {
            self.schedule.schedule_renewal(&self.detector, &deployed.model.card, Duration::ZERO, now);
        }
        let is_first = self.champion.is_none();
        let frozen_to_ms = self.newest_scored_ms().or(watermark.min_ms()).unwrap_or(i64::MIN);
        if is_first {
            let mut recent: Vec<(Column, Sample)> = recent
                .into_iter()
                .filter_map(|(labels, samples)| Some((self.window.find_column(&labels)?, samples)))
                .flat_map(|(column, samples)| samples.into_iter().map(move |sample| (column, sample)))
                .collect();
            recent.sort_by_key(|(_, sample)| sample.timestamp_ms);
            let received_to_ms = self.window.newest_ms();
            // Older rows are complete, or lost for good.
            let newest_ms = recent.last().map_or(i64::MAX, |(_, sample)| sample.timestamp_ms);
            let open_after_ms = newest_ms - time::millis(self.detector.grace);
            for (column, sample) in recent {
                self.window.push(column, sample);
                // Remote write delivers these again, as duplicates, which open no row.
                if received_to_ms.is_some_and(|received_to_ms| received_to_ms < sample.timestamp_ms)
                    && sample.timestamp_ms > open_after_ms
                {
                    self.rows.open(sample.timestamp_ms, sample.timestamp_ms, now);
                }
            }
            self.written_to_ms = watermark.to_ms.unwrap_or(self.written_to_ms);
            let n_endpoints = self.cursors.len();
            for (endpoint, cursor) in self.cursors.iter_mut().enumerate() {
                // A row that an endpoint lacks is lost there, even if a snapshot says otherwise. Of several endpoints,
                // the snapshot knows more about one that is not read than the others do.
                let endpoint_ms = watermark.by_endpoint.get(endpoint).copied().flatten();
                let snapshot_ms = (n_endpoints > 1 && cursor.done_ms > i64::MIN).then_some(cursor.done_ms);
                if let Some(done_ms) = endpoint_ms.or(snapshot_ms).or(watermark.to_ms) {
                    *cursor = Cursor::after(done_ms);
                }
            }
            let scored_ms = [watermark.min_ms(), self.newest_scored_ms()].into_iter().flatten().min();
            if let Some(scored_ms) = scored_ms {
                self.rows.touch_all(self.window.timestamps(scored_ms, i64::MAX));
            }
            self.checkpoints[0] = None;
            let newest_ms = self.window.newest_ms().unwrap_or(i64::MIN);
            let lookback_start_ms = newest_ms.saturating_sub(INTERVAL_LOOKBACK_MS);
            let times = self.window.timestamps(lookback_start_ms, i64::MAX);
            self.gaps.reset(times.map(|time| deployed.model.schema.grid.bounds(time).1));
        }
        let alerts = &self.detector.alerts;
        let serving = ServingModel::new(deployed, &self.window, frozen_to_ms, detection, alerts);
        self.champion = Some(match &self.champion {
            Some(previous) => serving.inherit_incident(previous),
            None => serving,
        });
        // The model's grid defines the keys of rows.
        let Self { rows, champion, .. } = self;
        rows.rekey(|timestamp_ms| row_key(champion.as_ref(), timestamp_ms));
        let scored = self.score_touched(now, on_event);
        if is_first {
            self.resume_cursors();
        }
        scored
    }

    /// Adds the series that a query selects.
    pub fn select(&self, query: &Query, matches: &mut Vec<GroupMatches>) {
        let group_query = GroupQuery {
            query,
            detector: &self.detector,
            group: &self.labels,
            window: &self.window,
            contributions: self.incidents.contributions(),
            stale_rows: self.rows.stale_times().collect(),
        };
        group_query.collect_matches(matches);
    }

    /// The samples and scores.
    pub fn window(&self) -> &Window {
        &self.window
    }
}

/// The last timestamp of the row that this timestamp belongs to.
fn row_key(champion: Option<&ServingModel>, timestamp_ms: i64) -> i64 {
    champion.map_or(timestamp_ms, |serving| serving.schema().grid.bounds(timestamp_ms).1)
}

/// Number of samples that a row of the champion is written as, without contributions.
fn samples_per_row(score: &Score) -> usize {
    if score.incident_state.is_some() { 4 } else { 2 }
}
