//! One group: its window, its model, its open rows and its cursors.

pub mod deployment;
pub mod gap_guard;
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
use gap_guard::GapGuard;
use incident_log::IncidentLog;
use row_tracker::RowTracker;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Columns without a sample in the window that a group may drag along.
const MAX_EMPTY_COLUMNS: usize = 64;

/// The newest samples from before this process tell how rows come.
const INTERVAL_LOOKBACK_MS: i64 = 3_600_000;

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowState {
    /// It was scored.
    Complete,
    /// Features were missing when its time was up.
    Incomplete,
    /// It had all samples, but no rate yet.
    TooShort,
    /// It held nothing but staleness markers: the target went away.
    Stale,
    /// There was no model yet.
    NoModel,
    /// It became complete after a later one had been scored.
    Late,
}

/// What a group has to tell: the engine counts it.
#[derive(Debug, PartialEq)]
pub enum GroupEvent {
    /// A row was closed.
    Row(RowState),
    /// A counter was corrected.
    Counter(counter::CounterEvent),
    /// This many samples of a row will not be written to a target.
    SamplesFailed(FailureReason, usize),
    /// A value of a scored row was NaN or infinite.
    NotFinite,
}

/// One group of a detector.
pub struct Group {
    /// The detector.
    pub detector: Arc<Detector>,
    /// The group's labels: the values of `by`.
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
    /// Rows up to here were scored and written before this process began.
    written_to_ms: i64,
    /// Timestamp of the newest scored row, and when its last sample came.
    newest_scored: Option<(i64, Instant)>,
    /// Has anything that `/metrics` shows of the group changed?
    metrics_dirty: bool,
    /// Has anything changed since the last snapshot?
    snapshot_dirty: bool,
    /// What the models of before this process had become, until they serve again.
    checkpoints: [Option<ModelCheckpoint>; 2],
    first_sample_at: Instant,
    last_received: Instant,
    schedule: TrainingSchedule,
}

impl Group {
    /// A group without a sample, to be written to `n_targets` targets.
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

    /// Works by another configuration of its detector from now on. False, and nothing is changed, when its window
    /// or its models would have to be others.
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

    /// When its first sample came.
    pub fn first_sample_at(&self) -> Instant {
        self.first_sample_at
    }

    /// The column of a feature; `None` when the group has too many.
    pub fn column(&mut self, feature: &Labels) -> Option<Column> {
        let known = self.window.find_column(feature);
        let column = self.window.get_or_add_column(feature)?;
        if known.is_none() {
            self.rebind_columns();
        }
        Some(column)
    }

    /// The window has other columns now.
    fn rebind_columns(&mut self) {
        for serving in self.champion.iter_mut().chain(&mut self.challenger) {
            serving.reader = RowReader::new(serving.schema(), &self.window);
        }
    }

    /// Columns of the window.
    pub fn n_columns(&self) -> usize {
        self.window.features().count()
    }

    /// Stores a sample. The second value tells whether it came after newer ones.
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

    /// The last timestamp that would belong to the row of this one.
    fn row_key(&self, timestamp_ms: i64) -> i64 {
        row_key(self.champion.as_ref(), timestamp_ms)
    }

    /// Scores the rows that samples came for since the last call. True when there is a new score.
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

    /// Scores the rows after the newest scored one, in their order, up to the first that still waits for samples.
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
                    // Others' scores stay, also where only who they were written to has them; the row was needed for
                    // those that follow.
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
                // Samples of other features alone: no row of this model.
                Row::Missing(missing)
                    if missing.len() == model.schema.features.len()
                        && !serving.reader.has_staleness_marker(&model.schema, &self.window, key) => {}
                Row::Missing(_) | Row::TooFewSamples(_) if self.rows.is_open(key) => break,
                Row::Missing(_) | Row::TooFewSamples(_) => serving.processed_to_ms = key,
            }
        }
        scored
    }

    /// Stores the score of a row, and counts what has to be counted.
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
            // Prometheus has it: the same, bit for bit.
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

    /// Alerts within the last day, for a model that raises some.
    pub fn incidents_last_day(&self) -> Option<usize> {
        let is_ordered = self.champion.as_ref().is_some_and(ServingModel::is_sequential);
        is_ordered.then_some(self.incidents.starts().len())
    }

    /// Scores a row of the model in service by the one beside it too, if it has all features for that.
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

    /// Closes the rows whose time is up. True when there were some.
    pub fn close_rows(&mut self, now: Instant, on_event: &mut impl FnMut(GroupEvent)) -> bool {
        if self.gaps.is_holding() {
            return false;
        }
        let grace = self.detector.grace;
        let newest = self.window.newest_ms().map(|newest_ms| self.row_key(newest_ms));
        let overdue = self.rows.overdue(grace, now);
        let mut any = false;
        for key in overdue {
            // The stream has ended within a row: what is missing comes when it goes on, by whatever way.
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
                        // Samples of features that the model does not have.
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
                // It waited for one before it, which waits no more.
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
                // Scored already, or before the model's time.
                Row::Complete { .. } => continue,
            };
            on_event(GroupEvent::Row(state));
        }
        any
    }

    /// Are some features of the model in this row, and others not?
    fn is_partial(&mut self, key: i64) -> bool {
        let Some(serving) = &mut self.champion else { return false };
        let schema = &serving.deployed.model.schema;
        let row = serving.reader.read_row(schema, &self.window, key, &mut self.values, |_| {});
        matches!(row, Row::Missing(missing) if missing.len() < schema.features.len())
            && !serving.reader.has_staleness_marker(schema, &self.window, key)
    }

    /// Has what `/metrics` shows changed since the last call? Progress always does.
    pub fn take_metrics_dirty(&mut self) -> bool {
        std::mem::take(&mut self.metrics_dirty) || !self.has_permanent_model()
    }

    /// Features that the last row lacked.
    pub fn n_missing_features(&self) -> usize {
        self.rows.n_missing_features()
    }

    /// Timestamp of the newest scored row.
    pub fn newest_scored_ms(&self) -> Option<i64> {
        self.newest_scored.map(|(newest_ms, _)| newest_ms)
    }

    /// The model that speaks with this voice.
    pub fn deployed(&self, role: ModelRole) -> Option<&DeployedModel> {
        let serving = match role {
            ModelRole::Champion => &self.champion,
            ModelRole::Challenger => &self.challenger,
        };
        serving.as_ref().map(|serving| &serving.deployed)
    }

    /// Is there a model that is not only to serve until there is one of its own?
    fn has_permanent_model(&self) -> bool {
        self.champion.as_ref().is_some_and(|serving| !serving.deployed.is_pooled())
    }

    /// KL divergence of the last day's decisions from those of training, where both are known.
    pub fn drift(&self) -> Option<f64> {
        self.drift.divergence(self.champion.as_ref()?.model().card.baseline.as_ref()?)
    }

    /// Features that come live.
    pub fn active_features(&self) -> BTreeSet<&Labels> {
        let newest_ms = self.window.newest_ms().unwrap_or(i64::MIN);
        self.window
            .features()
            .filter(|(_, _, newest)| coverage::is_alive(*newest, newest_ms, self.detector.grace))
            .map(|(labels, _, _)| labels)
            .collect()
    }

    /// The first feature of a schema that does not come live here.
    pub fn missing_feature<'s>(&self, schema: &'s Schema) -> Option<&'s Labels> {
        let active = self.active_features();
        schema.features.iter().find(|feature| !active.contains(feature))
    }

    /// Has no sample come for as long as the window reaches?
    pub fn is_expired(&self, now: Instant) -> bool {
        now.duration_since(self.last_received) > self.detector.window.max(self.detector.grace)
    }

    /// Does the window drag along many columns without a sample?
    pub fn has_many_empty_columns(&self) -> bool {
        self.n_empty_columns() > MAX_EMPTY_COLUMNS
    }

    fn n_empty_columns(&self) -> usize {
        self.window.features().filter(|(_, _, newest)| self.has_left_window(*newest)).count()
    }

    fn has_left_window(&self, newest: Option<Sample>) -> bool {
        newest.is_none_or(|sample| sample.timestamp_ms <= self.window.start_ms())
    }

    /// The same group without these columns. Columns change: what pointed to them has to look again.
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

    /// Scores beside the model in service from now on, or no more.
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
        // It has to have seen the rows that came while its past was read.
        let sequential = self.challenger.as_ref().filter(|challenger| challenger.is_sequential());
        let processed_to_ms = sequential.map_or(i64::MAX, |challenger| challenger.processed_to_ms);
        let later: Vec<i64> =
            self.window.scores(ModelRole::Champion, processed_to_ms, i64::MAX).map(|(at, _)| at).collect();
        for timestamp_ms in later {
            self.challenger_score(timestamp_ms);
        }
    }

    /// Takes a new model into service; the rows that wait are scored by it.
    ///
    /// A first model brings along what remote read knows of the time before this process: the
    /// samples that rates reach back to, and the newest score already written. After a restart the
    /// rows since then are scored and written, so that no gap is left.
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
        // Whoever chose it wants to see it serve for a while, however old it is.
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
            // What is older is whole, or lost for good.
            let newest_ms = recent.last().map_or(i64::MAX, |(_, sample)| sample.timestamp_ms);
            let open_after_ms = newest_ms - time::millis(self.detector.grace);
            for (column, sample) in recent {
                self.window.push(column, sample);
                // Remote write brings these again, as duplicates, which open no row.
                if received_to_ms.is_some_and(|received_to_ms| received_to_ms < sample.timestamp_ms)
                    && sample.timestamp_ms > open_after_ms
                {
                    self.rows.open(sample.timestamp_ms, sample.timestamp_ms, now);
                }
            }
            self.written_to_ms = watermark.to_ms.unwrap_or(self.written_to_ms);
            let n_endpoints = self.cursors.len();
            for (endpoint, cursor) in self.cursors.iter_mut().enumerate() {
                // What a target does not hold it has lost: a snapshot that says otherwise is wrong. But of several
                // the snapshot knows better than the others where one is that is not read.
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
        // Rows are keyed by the model's grid.
        let Self { rows, champion, .. } = self;
        rows.rekey(|timestamp_ms| row_key(champion.as_ref(), timestamp_ms));
        let scored = self.score_touched(now, on_event);
        if is_first {
            self.resume_cursors();
        }
        scored
    }

    /// Adds what it has that a query selects.
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

    /// The live samples, for a look from outside.
    pub fn window(&self) -> &Window {
        &self.window
    }
}

/// The last timestamp of the row that this timestamp belongs to.
fn row_key(champion: Option<&ServingModel>, timestamp_ms: i64) -> i64 {
    champion.map_or(timestamp_ms, |serving| serving.schema().grid.bounds(timestamp_ms).1)
}

/// Samples that one row of a model in service is written as, without its causes.
fn samples_per_row(score: &Score) -> usize {
    if score.incident_state.is_some() { 4 } else { 2 }
}
