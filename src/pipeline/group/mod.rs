//! A group: its window, models, open rows and cursors.

pub mod event;
mod closing;
mod columns;
mod continuation;
mod feedback;
pub mod gap_guard;
mod incident_log;
pub mod log;
mod publication;
mod row_tracker;
pub mod scoring;
mod selection;
pub mod series_origins;
mod serving_slots;
pub mod deployment;
pub mod snapshot;
mod status;
mod training;

use super::gaps::{self, AuditedSeries};
use super::schedule::TrainingSchedule;
use super::serving::ServingModel;
use crate::detect::{OnlineDetector, SuspendedTimes};
use crate::detector::Detector;
use crate::features::Schema;
use crate::history::SeriesSamples;
use crate::models::{DeployedModel, ModelInfo};
use crate::prom::{Labels, Sample};
use crate::remote_write::{Batch, CursorPosition, TimeSeries};
use crate::series::ColumnRef;
use crate::tenant::Tenant;
use crate::time;
use crate::train::WarmStart;
use crate::window::{Column, ModelRole, PushOutcome, Window};
use event::GroupEvent;
use gap_guard::GapGuard;
use incident_log::IncidentLog;
use publication::{OutputSource, Publication};
use row_tracker::RowTracker;
use scoring::{Advance, RowScoring, WorkBudget};
use series_origins::{LabelChange, SeriesOrigins};
use serving_slots::ServingSlots;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

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
    tenant: Option<Tenant>,
    /// The labels as the tenant knows them: those of the outputs.
    outward_labels: Labels,
    window: Window,
    /// Changes when columns get other numbers.
    numbering: u32,
    models: ServingSlots,
    rows: RowTracker,
    origins: SeriesOrigins,
    incidents: IncidentLog,
    publication: Publication,
    gaps: GapGuard,
    /// Times of maintenance.
    suspended: SuspendedTimes,
    is_in_maintenance: bool,
    /// True if anything that `/metrics` shows of the group has changed.
    metrics_dirty: bool,
    /// True if anything has changed since the last snapshot.
    snapshot_dirty: bool,
    first_sample_at: Instant,
    last_received: Instant,
    /// Timestamp of the newest sample of the snapshot that the group was restored from.
    restored_to_ms: Option<i64>,
    /// True if the champion began to serve without history that a source may have.
    lacks_history: bool,
    /// True until the rows that wait for a first model are scored: its cursors are set then.
    cursors_wait: bool,
    log: log::LogState,
    schedule: TrainingSchedule,
}

impl Group {
    /// A group without samples, with cursors for this many endpoints.
    pub fn new(detector: Arc<Detector>, labels: Labels, n_endpoints: usize, now: Instant) -> Self {
        Self {
            schedule: TrainingSchedule::new(&detector, &labels, now),
            window: Window::new(time::millis(detector.window)),
            numbering: 0,
            tenant: detector.tenant_of(&labels),
            outward_labels: detector.outward_labels(&labels),
            detector,
            labels,
            models: ServingSlots::default(),
            rows: RowTracker::default(),
            origins: SeriesOrigins::default(),
            incidents: IncidentLog::default(),
            publication: Publication::new(n_endpoints),
            gaps: GapGuard::default(),
            suspended: SuspendedTimes::default(),
            is_in_maintenance: false,
            metrics_dirty: true,
            snapshot_dirty: false,
            first_sample_at: now,
            last_received: now,
            restored_to_ms: None,
            lacks_history: false,
            cursors_wait: false,
            log: log::LogState::default(),
        }
    }

    /// Applies another configuration of the detector. Returns false, and changes nothing, if the window or the models
    /// cannot be kept.
    pub fn reconfigure(&mut self, detector: &Arc<Detector>, now: Instant, now_ms: i64) -> bool {
        let length_ms = time::millis(detector.window);
        if !detector.has_same_selection(&self.detector) || !self.models.fit_window(length_ms) {
            return false;
        }
        let old = std::mem::replace(&mut self.detector, detector.clone());
        if *old == **detector {
            return true;
        }
        self.metrics_dirty = true;
        self.window.set_length(length_ms);
        self.models.set_alerts(&detector.alerts);
        if let Some(serving) = self.models.champion()
            && !serving.info().is_pooled()
            && old.training != detector.training
        {
            self.schedule.schedule_renewal(detector, &serving.info().card, now, now_ms);
        }
        if old.model != detector.model {
            self.schedule.bring_forward(now);
        }
        true
    }

    /// The tenant; `None` without tenants.
    pub fn tenant(&self) -> Option<&Tenant> {
        self.tenant.as_ref()
    }

    /// Arrival of the first sample.
    pub fn first_sample_at(&self) -> Instant {
        self.first_sample_at
    }

    /// The labels that changed since the last call, with the number of features.
    pub fn take_label_changes(&mut self) -> BTreeMap<(String, LabelChange), usize> {
        self.origins.take_changes()
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
            let key = self.models.row_key(sample.timestamp_ms);
            self.gaps.observe(key, newest_ms, self.models.champion().is_some(), now);
        }
        self.touch(sample.timestamp_ms, now);
        if late {
            self.rows.mark_late(sample.timestamp_ms);
        }
        (outcome, late)
    }

    /// Reads what the next [`push`](Self::push) and the scoring after it read. The waits for memory of many such calls overlap,
    /// those of pushes do not.
    pub fn prefetch(&self) {
        let Self { detector, numbering, models, rows, gaps, last_received, snapshot_dirty, .. } = self;
        black_box((Arc::as_ptr(detector), *numbering, *last_received, *snapshot_dirty));
        black_box((models.champion().is_some(), rows.newest_open(), gaps.newest_ms()));
        self.window.prefetch();
    }

    fn touch(&mut self, timestamp_ms: i64, now: Instant) {
        let Self { rows, models, window, .. } = self;
        let is_scored =
            || models.champion().is_some() && window.score(ModelRole::Champion, timestamp_ms).is_some();
        rows.touch(models.row_key(timestamp_ms), timestamp_ms, is_scored, now);
    }

    /// True if a row in `(after_ms, to_ms]` has a score.
    pub fn is_scored_within(&self, after_ms: i64, to_ms: i64) -> bool {
        self.window.scores(ModelRole::Champion, after_ms, to_ms).next().is_some()
    }

    /// True if anything that `/metrics` shows has changed since the last call. Progress always has.
    pub fn take_metrics_dirty(&mut self) -> bool {
        std::mem::take(&mut self.metrics_dirty) || !self.models.has_permanent_champion()
    }

    /// Number of features that the last row lacked.
    pub fn n_missing_features(&self) -> usize {
        self.rows.n_missing_features()
    }

    /// True if the last row had none of the model's features.
    pub fn is_unfed(&self) -> bool {
        self.models.schema().is_some_and(|schema| schema.features.len() == self.rows.n_missing_features())
    }

    /// Timestamp of the newest scored row.
    pub fn newest_scored_ms(&self) -> Option<i64> {
        self.publication.newest_scored_ms()
    }

    /// The facts of the model in this role.
    pub fn model_info(&self, role: ModelRole) -> Option<&Arc<ModelInfo>> {
        self.models.get(role).map(ServingModel::info)
    }

    /// KL divergence of the last day's decisions from those of training, if both are known.
    pub fn drift(&self) -> Option<f64> {
        self.models.drift()
    }

    /// The first feature of a schema that is not [active](Self::active_features) here.
    pub fn missing_feature<'s>(&self, schema: &'s Schema, now_ms: i64) -> Option<&'s Labels> {
        schema.first_missing(&self.active_features(now_ms))
    }

    /// True if many columns have no sample in the window that ends at the newest closed row. The window itself ends at a
    /// row that may still be arriving.
    pub fn has_many_empty_columns(&self, now_ms: i64) -> bool {
        let start_ms = self.closed_window_start_ms(now_ms);
        self.window.features().filter(|(_, column)| self.is_empty_after(*column, start_ms)).count()
            > MAX_EMPTY_COLUMNS
    }

    /// True if a column has no sample after `start_ms`.
    fn is_empty_after(&self, column: Column, start_ms: i64) -> bool {
        self.window.newest_of(column).is_none_or(|sample| sample.timestamp_ms <= start_ms)
    }

    fn closed_window_start_ms(&self, now_ms: i64) -> i64 {
        let closed_ms = self.presence(now_ms).map_or(i64::MIN, |presence| presence.row_ms());
        closed_ms.saturating_sub(self.window.length_ms())
    }

    /// Removes these columns. The numbers of the other columns change.
    pub fn remove_empty_columns(&mut self, now_ms: i64) {
        let start_ms = self.closed_window_start_ms(now_ms);
        let active: Vec<Labels> = self
            .window
            .features()
            .filter(|(_, column)| !self.is_empty_after(*column, start_ms))
            .map(|(labels, _)| labels.clone())
            .collect();
        self.window = self.window.with_features(&active);
        self.numbering += 1;
        self.origins.forget_columns();
        self.models.rebind(&self.window);
        self.schedule.reset_columns(self.n_columns());
    }

    /// A reference to a column, under the id of this group.
    pub fn column_ref(&self, group: u32, column: Column) -> ColumnRef {
        ColumnRef { group, column, numbering: self.numbering }
    }

    /// True if the reference is of the current numbering.
    pub fn is_current(&self, column_ref: &ColumnRef) -> bool {
        column_ref.numbering == self.numbering
    }

    /// Sets or removes the challenger.
    pub fn set_challenger(
        &mut self,
        deployed: Option<DeployedModel>,
        detection: Option<Box<OnlineDetector>>,
    ) {
        self.metrics_dirty = true;
        self.snapshot_dirty = true;
        let alerts = &self.detector.alerts;
        self.models.set_challenger(deployed, &self.window, detection, alerts, &self.suspended);
    }

    /// Makes a model the champion, and scores the rows that wait with it.
    ///
    /// A first model comes with its history: the samples that rates look back to, and the newest score
    /// that is already written. After a restart the rows since then are scored and written, so that no gap is left.
    pub fn install(
        &mut self,
        deployed: DeployedModel,
        warm_start: WarmStart,
        now: Instant,
        on_event: impl FnMut(GroupEvent),
    ) -> Advance {
        let WarmStart { recent, watermark, incidents, feedback, detection, is_incomplete, .. } = warm_start;
        self.metrics_dirty = true;
        self.snapshot_dirty = true;
        self.lacks_history = is_incomplete;
        if !deployed.info.is_pooled() && !self.models.serves(&deployed.info) {
            self.schedule.schedule_after_choice(&self.detector, &deployed.info.card, now);
        }
        let is_first = self.models.champion().is_none();
        let newest_scored_ms = self.newest_scored_ms();
        if is_first {
            self.receive_history(recent, now);
            self.publication.start_after(&watermark);
            // Remote write delivers rows of history again, as duplicates, which touch no row.
            let scored_ms = [watermark.min_ms(), newest_scored_ms].into_iter().flatten().min();
            if let Some(first_ms) = scored_ms.or(self.rows.first_open_after(i64::MIN)) {
                self.rows.touch_all(self.window.timestamps(first_ms, i64::MAX));
            }
        }
        let frozen_to_ms = newest_scored_ms.or(watermark.min_ms()).unwrap_or(i64::MIN);
        self.models.install(deployed, &self.window, frozen_to_ms, detection, &self.detector.alerts);
        if is_first {
            if let Some(incidents) = incidents {
                self.restore_incidents(incidents, frozen_to_ms, watermark.min_ms());
            }
            self.restore_feedback(&feedback);
        }
        self.models.set_suspended(&self.suspended);
        // The model's grid defines the keys of rows.
        self.rows.rekey(|timestamp_ms| self.models.row_key(timestamp_ms));
        if is_first {
            self.measure_interval();
            self.hold_after_restart(is_incomplete, now);
        }
        self.cursors_wait |= is_first;
        self.score_touched(&mut WorkBudget::default(), now, on_event)
    }

    /// Scores the rows that have new samples since the last call.
    pub fn score_touched(
        &mut self,
        budget: &mut WorkBudget,
        now: Instant,
        on_event: impl FnMut(GroupEvent),
    ) -> Advance {
        let mut advance = Advance { has_changed: false, is_finished: true };
        if !self.gaps.is_holding() {
            advance = self.row_scoring(now, on_event).score_touched(budget);
        }
        if self.cursors_wait && advance.is_finished {
            self.cursors_wait = false;
            let (publication, source) = self.publication_and_source();
            publication.resume_cursors(source);
        }
        advance
    }

    /// Closes the rows whose grace period is over.
    pub fn close_rows(
        &mut self,
        budget: &mut WorkBudget,
        now: Instant,
        now_ms: i64,
        on_event: impl FnMut(GroupEvent),
    ) -> Advance {
        if self.gaps.is_holding() {
            return Advance { has_changed: false, is_finished: true };
        }
        // The grace period of a row ahead of the clock begins when the clock reaches it: the rows before it are yet to
        // come.
        let latest_ms = now_ms.saturating_add(time::CLOCK_SKEW_MS);
        let to_ms = latest_ms.saturating_sub(time::millis(self.detector.grace));
        let newest_ms = self.window.newest_row_ms(latest_ms);
        self.row_scoring(now, on_event).close_overdue(to_ms, newest_ms, budget)
    }

    fn row_scoring<F: FnMut(GroupEvent)>(&mut self, now: Instant, on_event: F) -> RowScoring<'_, F> {
        let Self {
            detector,
            window,
            models,
            rows,
            origins,
            incidents,
            publication,
            metrics_dirty,
            snapshot_dirty,
            ..
        } = self;
        RowScoring {
            grace: detector.grace,
            window,
            models,
            rows,
            origins,
            incidents,
            publication,
            metrics_dirty,
            snapshot_dirty,
            now,
            on_event,
        }
    }

    /// Stores the samples of the history. Rows that remote write has not begun are opened.
    fn receive_history(&mut self, recent: Vec<SeriesSamples>, now: Instant) {
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
    }

    /// Holds the scoring if samples may be missing between the snapshot and the first sample after it.
    fn hold_after_restart(&mut self, is_incomplete: bool, now: Instant) {
        let gap_start_ms = self.restored_to_ms.filter(|_| is_incomplete);
        if let Some(restored_to_ms) = gap_start_ms
            && self.window.newest_ms() > gap_start_ms
        {
            self.gaps.start_hold(restored_to_ms, now);
        }
    }

    /// Measures the interval of the rows anew.
    fn measure_interval(&mut self) {
        let newest_ms = self.window.newest_ms().unwrap_or(i64::MIN);
        let times = self.window.timestamps(newest_ms.saturating_sub(INTERVAL_LOOKBACK_MS), i64::MAX);
        self.gaps.reset(times.map(|timestamp_ms| self.models.row_key(timestamp_ms)));
    }

    /// Appends the scores beyond a cursor, and the staleness markers of series that end, at most `max_samples` samples
    /// and none after `to_ms`. Returns the number of samples.
    pub fn collect_unpublished(
        &mut self,
        id: u32,
        endpoint: usize,
        to_ms: i64,
        max_samples: usize,
        batch: &mut Batch,
    ) -> usize {
        if self.cursors_wait || self.is_resting() {
            return 0;
        }
        let (publication, source) = self.publication_and_source();
        let Some(slice) = publication.next_slice(source, endpoint, to_ms, max_samples) else { return 0 };
        if slice.series.is_empty() {
            self.advance(endpoint, slice.newest_ms);
            return 0;
        }
        let n_samples = slice.series.values().map(Vec::len).sum();
        batch.series.extend(slice.series.into_iter().map(|(output, samples)| TimeSeries {
            labels: output.labels(&self.detector, &self.outward_labels),
            samples,
        }));
        let (timestamp_ms, received_at) = (slice.newest_ms, slice.received_at);
        batch.positions.push(CursorPosition { group: id, timestamp_ms, received_at });
        n_samples
    }

    /// Number of samples that have left the window before this endpoint got them, since the last call.
    pub fn take_left_window(&mut self, endpoint: usize) -> usize {
        let (publication, source) = self.publication_and_source();
        publication.take_left_window(source, endpoint)
    }

    /// The publication, and the data that its outputs are computed from.
    fn publication_and_source(&mut self) -> (&mut Publication, OutputSource<'_>) {
        let Self { publication, detector, outward_labels: group, window, incidents, .. } = self;
        (publication, OutputSource { detector, group, window, incidents })
    }

    /// Advances a cursor.
    pub fn advance(&mut self, endpoint: usize, timestamp_ms: i64) {
        self.snapshot_dirty |= self.publication.advance(endpoint, timestamp_ms);
    }

    /// Replaces the endpoints: each is one of the old ones, or new.
    pub fn set_endpoints(&mut self, kept: &[Option<usize>]) {
        self.publication.set_endpoints(kept);
    }

    /// The rows that each endpoint has.
    pub fn publication(&self) -> &Publication {
        &self.publication
    }

    /// The series that are open at an endpoint when the group goes, and the time of its last row.
    pub fn unterminated_series(&self, endpoint: usize) -> (impl Iterator<Item = Labels>, i64) {
        let (outputs, last_ms) = self.publication.unterminated(endpoint);
        (outputs.map(|output| output.labels(&self.detector, &self.outward_labels)), last_ms)
    }

    /// Resets the cursors to the oldest score.
    #[cfg(test)]
    pub fn rewind(&mut self) {
        self.publication.rewind();
    }

    /// The gaps in the rows, and the hold of the scoring.
    pub fn gaps(&self) -> &GapGuard {
        &self.gaps
    }

    /// True if two senders seem to send the rows of this group.
    pub fn is_interleaved(&self) -> bool {
        self.models.champion().is_some() && self.gaps.is_interleaved()
    }

    /// Holds the scoring if the rows ended with those of another group's gap. True if the hold starts.
    pub fn join_gap(&mut self, after_ms: i64, now: Instant, now_ms: i64) -> bool {
        let Some(newest_ms) = self.window.newest_ms() else { return false };
        self.models.champion().is_some() && self.gaps.join(after_ms, newest_ms, now, now_ms)
    }

    /// Extends the hold after a part of a gap fill.
    pub fn extend_hold(&mut self, now: Instant) {
        self.gaps.extend(now);
    }

    /// Resumes scoring. Samples that rows older than the grace period lack will not arrive any more.
    pub fn release_hold(&mut self, now: Instant) {
        self.gaps.release();
        let newest_ms = self.window.newest_ms().unwrap_or(i64::MIN);
        let expired = now.checked_sub(self.detector.grace).unwrap_or(now);
        let open_after_ms = newest_ms.saturating_sub(time::millis(self.detector.grace));
        self.rows.expire_until(open_after_ms, expired);
    }

    /// The series of this index, for an audit.
    pub fn audited_series(&self, series_index: u64) -> Option<AuditedSeries> {
        let (newest_ms, start_ms) = (self.window.newest_ms()?, self.window.start_ms());
        let range = gaps::audit_range(newest_ms, start_ms, self.detector.grace);
        let n = self.n_columns() as u64;
        let (feature, column) = self.window.features().nth((series_index.checked_rem(n)?) as usize)?;
        Some(AuditedSeries {
            detector: self.detector.clone(),
            group: self.labels.clone(),
            feature: feature.clone(),
            range,
            n_samples: gaps::count_samples(&self.window, column, range),
        })
    }

    /// The samples and scores.
    pub fn window(&self) -> &Window {
        &self.window
    }
}
