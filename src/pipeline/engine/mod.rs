//! The thread that owns the index and the windows.
//!
//! Commands reach the engine one after another through a bounded queue, so there are no locks, and the effects of a
//! command are complete when the next one starts. The engine never waits: network requests and fits run elsewhere and
//! return as commands.

mod backlog;
pub mod feedback;
mod gap_fill;
mod handle;
mod ingest;
mod jobs;
mod models;
mod partitions;
mod progress;
mod publish;
mod status;

pub use handle::{CommandReceiver, EndpointBatches, EngineHandle, TenantView, WeakEngineHandle, channel};

use super::gaps::{self, BackfillRequest, GapTracker};
use super::group::Group;
use super::group::deployment::Deployment;
use super::group::event::GroupEvent;
use super::group::scoring::{Advance, WorkBudget};
use super::group::snapshot::SnapshotStep;
use super::groups::Groups;
use super::metrics::Metrics;
use super::select::SelectionPage;
use crate::config::Config;
use crate::detector::Detector;
use crate::ingest::{Metrics as IngestMetrics, WriteBody};
use crate::prom::Labels;
use crate::prom::shard::Shard;
use crate::remote_write::{self, FailureReason};
use crate::series::SeriesIndex;
use crate::snapshot::GroupState;
use crate::telemetry::LogThrottle;
use crate::tenant::Tenant;
use crate::time::now_ms;
use crate::train::TrainingJob;
use crate::window::Window;
use backlog::Backlog;
use handle::EngineCommand;
use ingest::Decoder;
use jobs::JobIncidents;
use models::{ReadinessReporter, TrainingQueue};
use partitions::Partitions;
use progress::EngineProgress;
use publish::{EndpointState, endpoint_states, notify};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

/// Time budget of one page of a selection.
const SELECT_BUDGET: Duration = Duration::from_millis(2);
/// Time of a tick for the removal of empty columns.
const COMPACT_BUDGET: Duration = Duration::from_millis(20);
/// Interval of the eviction of groups and columns.
const EVICT_INTERVAL: Duration = Duration::from_secs(60);
/// Conflicting samples within [`EVICT_INTERVAL`] that cause a warning.
const CONFLICTS_TO_WARN: usize = 10;

/// Interval of the log lines on failed trainings.
const FAILED_TRAININGS_LOG_INTERVAL: Duration = Duration::from_secs(600);

/// The readiness of the sidecar, and the progress of each detector.
#[derive(Clone, Debug, PartialEq)]
pub struct Readiness {
    /// True if every detector has a model in service.
    pub ready: bool,
    /// One line a detector.
    pub text: String,
}

/// See the [module](self).
pub struct Engine {
    groups: Groups,
    index: SeriesIndex,
    decoder: Decoder,
    endpoints: Vec<EndpointState>,
    trainings: TrainingQueue,
    backlog: Backlog,
    gaps: GapTracker,
    jobs: JobIncidents,
    partitions: Partitions,
    gap_metrics: gaps::Metrics,
    readiness: ReadinessReporter,
    metrics: Metrics,
    ingest_metrics: IngestMetrics,
    remote_write_metrics: remote_write::Metrics,
    evicted_at: Instant,
    /// Samples that conflict with stored ones, since the last eviction.
    conflicts: usize,
    /// Tenants that have been at one of their limits, while they have groups.
    limited_tenants: BTreeSet<Tenant>,
    /// Failed trainings: an endpoint that fails affects every group.
    failed_trainings: LogThrottle,
}

/// Dependencies of the engine.
pub struct EngineDeps {
    /// The configuration.
    pub config: Arc<Config>,
    /// The targets whose groups exist; without a shard, all.
    pub shard: Option<Shard>,
    /// One wakeup per endpoint.
    pub wakeups: Vec<Arc<Notify>>,
    /// Queue of the trainer.
    pub training_jobs: mpsc::Sender<TrainingJob>,
    /// Queue of the gap filler.
    pub backfill_requests: mpsc::Sender<BackfillRequest>,
    /// Readiness of the sidecar.
    pub readiness: watch::Sender<Readiness>,
    /// Metrics of gaps.
    pub gap_metrics: gaps::Metrics,
    /// Metrics of rows, groups and models.
    pub metrics: Metrics,
    /// Metrics of the ingest.
    pub ingest_metrics: IngestMetrics,
    /// Metrics of remote write.
    pub remote_write_metrics: remote_write::Metrics,
}

impl Engine {
    /// An engine without samples.
    pub fn new(deps: EngineDeps) -> Self {
        Self {
            groups: Groups::new(deps.config, deps.shard),
            index: SeriesIndex::default(),
            decoder: Decoder::default(),
            endpoints: endpoint_states(deps.wakeups),
            trainings: TrainingQueue::new(deps.training_jobs),
            backlog: Backlog::default(),
            gaps: GapTracker::new(deps.backfill_requests, Instant::now()),
            jobs: JobIncidents::default(),
            partitions: Partitions::default(),
            gap_metrics: deps.gap_metrics,
            readiness: ReadinessReporter::new(deps.readiness),
            metrics: deps.metrics,
            ingest_metrics: deps.ingest_metrics,
            remote_write_metrics: deps.remote_write_metrics,
            evicted_at: Instant::now(),
            conflicts: 0,
            limited_tenants: BTreeSet::new(),
            failed_trainings: LogThrottle::new(FAILED_TRAININGS_LOG_INTERVAL),
        }
    }

    /// Runs until all handles are dropped. Rows that a command left are continued after each further command, and
    /// while there is none.
    pub fn run(mut self, mut commands: CommandReceiver) {
        loop {
            match commands.next(!self.backlog.is_empty()) {
                Ok(command) => self.handle(command, &commands.progress),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            self.advance_backlog(Instant::now(), now_ms());
        }
    }

    fn handle(&mut self, command: EngineCommand, progress: &EngineProgress) {
        let now = Instant::now();
        match command {
            EngineCommand::Write(request, reply) => {
                let WriteBody { body, version, tenant } = request;
                let result = self.ingest(version, tenant.as_ref(), &body.bytes, now, now_ms());
                // The sender may have hung up.
                let _ = reply.send(result);
            }
            EngineCommand::Record(record, reply) => {
                let _ = reply.send(self.ingest_record(&record, now, now_ms()));
            }
            EngineCommand::RecordProgress(reply) => {
                let _ = reply.send(self.record_progress(now));
            }
            EngineCommand::AssignPartition { partition, committed, reply } => {
                let _ = reply.send(self.assign_partition(partition, committed, now));
            }
            EngineCommand::RevokePartition(partition) => self.revoke_partition(partition, now),
            EngineCommand::NextBatch { endpoint, tenant, max_samples, reply } => {
                let _ = reply.send(self.next_batch(endpoint, tenant.as_ref(), max_samples, now_ms()));
            }
            EngineCommand::Advance { endpoint, tenant, positions } => {
                self.advance(endpoint, tenant.as_ref(), &positions, now_ms());
            }
            EngineCommand::TenantsOfEndpoint { endpoint, reply } => {
                let _ = reply.send(self.tenants_of_endpoint(endpoint));
            }
            EngineCommand::Tenants(reply) => {
                let _ = reply.send(self.groups.tenants().cloned().collect());
            }
            EngineCommand::TrainingDone { group, outcome } => {
                self.handle_training_outcome(group, outcome, now)
            }
            EngineCommand::ListGroups(reply) => {
                reply.send_result(|| self.list_groups());
            }
            EngineCommand::Select { query, groups, offset, reply } => {
                let select = |group: &Group, matches: &mut _| group.select(&query, matches);
                reply.send_result(|| self.select(&groups, offset, select));
            }
            EngineCommand::TableParts { query, groups, offset, reply } => {
                let select = |group: &Group, parts: &mut Vec<_>| parts.push(group.table_part(&query));
                reply.send_result(|| self.select(&groups, offset, select));
            }
            EngineCommand::Summaries { from, reply } => {
                let _ = reply.send(self.summaries(from, now, now_ms()));
            }
            EngineCommand::GroupDetail { detector, labels, reply } => {
                let _ = reply.send(self.group_detail(&detector, &labels, now, now_ms()));
            }
            EngineCommand::ListDeployments(reply) => {
                let _ = reply.send(self.list_deployments());
            }
            EngineCommand::Deploy { group, role, deployed, warm_start, reply } => {
                let _ = reply.send(self.deploy(group, role, deployed, warm_start, now));
            }
            EngineCommand::FindIncident { detector, groups, at_ms, reply } => {
                let _ = reply.send(self.find_incident(detector.as_deref(), &groups, at_ms));
            }
            EngineCommand::ApplyFeedback { group, start_ms, feedback, reply } => {
                let _ = reply.send(self.apply_feedback(group, start_ms, feedback));
            }
            EngineCommand::SetMaintenance(plan) => self.set_maintenance(plan),
            EngineCommand::RecordAlerts { detector, tenant, alerts } => {
                self.groups.record_alerts(&detector, tenant.as_ref(), alerts);
            }
            EngineCommand::HasFeature { group, feature, reply } => {
                let group = self.groups.get(group);
                let _ = reply.send(group.is_some_and(|g| g.active_features(now_ms()).contains(&feature)));
            }
            EngineCommand::Snapshot { after, reply } => {
                let _ = reply.send(self.next_snapshot(after));
            }
            EngineCommand::SnapshotFailed(id) => {
                if let Some(group) = self.groups.get_mut(id) {
                    group.snapshot_failed();
                }
            }
            EngineCommand::Backfill { detector, series } => self.apply_backfill(&detector, &series, now),
            EngineCommand::BackfillDone { is_complete } => self.finish_gap_fill(is_complete, now),
            EngineCommand::Tick => {
                self.tick(now, now_ms());
                progress.record_tick(now);
            }
            EngineCommand::Reload { config, wakeups, done } => {
                self.reload(config, wakeups, now, now_ms());
                let _ = done.send(());
            }
        }
    }

    /// Scores the touched rows of these groups, unless a gap precedes them.
    fn score_groups(&mut self, touched: &BTreeSet<u32>, now: Instant) {
        // Without a source of history a gap cannot be filled, so there is no hold.
        let has_history = !self.groups.config().history.is_empty();
        let mut budget = WorkBudget::default();
        for &id in touched {
            let Some(group) = self.groups.get_mut(id) else { continue };
            let detector = group.detector.clone();
            if group.gaps().after_ms().is_some() && !self.gaps.contains(id) {
                self.gap_metrics.count_gap(&detector.name);
                if has_history {
                    self.gaps.enqueue(id);
                } else {
                    group.release_hold(now);
                }
            }
            self.score_rows(id, &mut budget, now);
        }
    }

    /// Closes and scores rows of the next group that has some left.
    fn advance_backlog(&mut self, now: Instant, now_ms: i64) {
        if let Some(id) = self.backlog.pop() {
            let mut budget = WorkBudget::default();
            self.close_rows(id, &mut budget, now, now_ms);
            self.score_rows(id, &mut budget, now);
        }
    }

    /// Closes the overdue rows of a group. True if there were any.
    fn close_rows(&mut self, id: u32, budget: &mut WorkBudget, now: Instant, now_ms: i64) -> bool {
        let Some(group) = self.groups.get_mut(id) else { return false };
        let detector = group.detector.clone();
        let mut on_event = event_recorder(&self.metrics, &self.remote_write_metrics, &detector.name);
        let advance = group.close_rows(budget, now, now_ms, &mut on_event);
        self.backlog.record(id, advance);
        // A stale row is published without a score.
        if advance.has_changed {
            notify(&mut self.endpoints, group.tenant(), id);
        }
        advance.has_changed
    }

    /// Scores the touched rows of a group.
    fn score_rows(&mut self, id: u32, budget: &mut WorkBudget, now: Instant) {
        let Some(group) = self.groups.get_mut(id) else { return };
        let detector = group.detector.clone();
        let mut on_event = event_recorder(&self.metrics, &self.remote_write_metrics, &detector.name);
        let advance = group.score_touched(budget, now, &mut on_event);
        self.backlog.record(id, advance);
        if advance.has_changed {
            self.metrics.set_newest_scored(group);
            notify(&mut self.endpoints, group.tenant(), id);
        }
    }

    /// Restores the groups of snapshots, and reports the outcome of each. Unwritten scores wait for the model, since
    /// the watermark of the endpoints arrives with it.
    pub fn restore(
        &mut self,
        snapshots: Vec<(GroupState, Window)>,
        now: Instant,
        on_outcome: impl Fn(&'static str),
    ) {
        for (state, window) in snapshots {
            let log = state.log;
            let is_restored = self.groups.restore(state, window, now);
            on_outcome(if is_restored { "restored" } else { "incompatible" });
            if let Some(position) = log.filter(|_| is_restored) {
                self.partitions.restore(position);
            }
        }
        self.rest_restored(now);
    }

    /// The models of all groups.
    pub fn list_deployments(&mut self) -> Vec<Deployment> {
        self.groups.iter_mut().map(|(id, group)| group.deployment(id)).collect()
    }

    fn next_snapshot(&mut self, after: Option<u32>) -> Option<SnapshotStep> {
        let cursor_keys = self.groups.cursor_keys();
        let (id, group) = self.groups.next_mut(after)?;
        let log = group.partition().and_then(|partition| self.partitions.position(partition));
        Some(group.take_snapshot(id, &cursor_keys, log))
    }

    /// Id, detector and labels of all groups.
    fn list_groups(&self) -> Vec<(u32, Arc<Detector>, Labels)> {
        let groups = self.groups.iter_from(0);
        groups.map(|(id, group)| (id, group.detector.clone(), group.labels.clone())).collect()
    }

    /// Collects what `select` adds of these groups, from the offset on, until the time budget is used up.
    fn select<T>(
        &self,
        groups: &[u32],
        offset: usize,
        select: impl Fn(&Group, &mut Vec<T>),
    ) -> SelectionPage<T> {
        let started = Instant::now();
        let mut selected = SelectionPage { matches: Vec::new(), next: None };
        for (i, id) in groups.iter().enumerate().skip(offset) {
            if started.elapsed() >= SELECT_BUDGET {
                selected.next = Some(i);
                break;
            }
            if let Some(group) = self.groups.get(*id) {
                select(group, &mut selected.matches);
            }
        }
        selected
    }

    /// The periodic work.
    pub fn tick(&mut self, now: Instant, now_ms: i64) {
        self.check_gaps(now, now_ms);
        let mut budget = WorkBudget::default();
        for id in self.groups.ids_after(u32::MAX) {
            // Later rows may have waited for a closed one.
            if self.close_rows(id, &mut budget, now, now_ms) {
                self.score_rows(id, &mut budget, now);
            }
        }
        for (_, group) in self.groups.iter_mut() {
            let detector = &group.detector.clone();
            group.update_maintenance(now_ms);
            if group.take_metrics_dirty() {
                self.metrics.set_group(group, now);
            }
            for ((label, change), features) in group.take_label_changes() {
                let outcome = change.as_str();
                info!(component = "series", detector = detector.name, group = %group.labels, label, features, outcome, "a label of the group's series changed");
                self.metrics.count_label_changes(&detector.name, &label, outcome, features);
            }
        }
        self.trainings.request(&mut self.groups, now, now_ms);
        if now.duration_since(self.evicted_at) >= EVICT_INTERVAL {
            self.evicted_at = now;
            self.warn_about_replicas();
            self.groups.iter().for_each(|group| self.metrics.set_drift(group));
            let cells = self.groups.iter().map(|group| group.window().n_bytes()).sum::<usize>();
            self.metrics.set_window_bytes(cells + self.groups.n_label_bytes());
            let (evicted, reindex) = self.groups.evict(now, now_ms);
            let kept: Vec<_> = (0..self.endpoints.len()).map(Some).collect();
            for group in &evicted {
                match group.partition().filter(|_| group.is_resting()) {
                    // Another member writes its series.
                    Some(partition) => {
                        self.partitions.forget(partition);
                        self.metrics.remove_group(group);
                    }
                    None => self.retire(group, &kept, now_ms),
                }
            }
            if reindex {
                self.index.clear();
            }
            self.forget_tenants(now_ms);
        }
        self.groups.remove_empty_columns(COMPACT_BUDGET, now_ms);
        self.metrics.set_series(self.index.len());
        let job_samples = self.jobs.advance(&self.groups, now_ms);
        self.publish_jobs(&job_samples, now_ms);
        self.endpoints.iter().filter(|state| state.has_unwritten()).for_each(|state| state.wake.notify_one());
        self.metrics.set_pending_groups(self.endpoints.iter().map(EndpointState::n_pending_groups).sum());
        self.readiness.update(&self.groups, now);
    }

    /// Forgets the tenants that have no groups any more.
    fn forget_tenants(&mut self, now_ms: i64) {
        let Self { endpoints, groups, limited_tenants, ingest_metrics, .. } = self;
        endpoints.iter_mut().for_each(|state| state.forget_tenants(groups, now_ms));
        let present: BTreeSet<&Tenant> = groups.tenants().collect();
        limited_tenants.retain(|tenant| {
            let is_present = present.contains(tenant);
            if !is_present {
                ingest_metrics.forget_tenant(tenant);
            }
            is_present
        });
    }

    /// Warns if two senders send the same series: rows alternate between two phases, or samples conflict.
    fn warn_about_replicas(&mut self) {
        const ADVICE: &str =
            "two senders seem to send the same series: add their replica label to `by`, or stop one of them";
        let mut interleaved = self.groups.iter().filter(|group| group.is_interleaved());
        let first = interleaved.next();
        let groups = first.map_or(0, |_| 1 + interleaved.count());
        self.metrics.set_interleaved(groups);
        if let Some(group) = first {
            warn!(component = "ingest", detector = group.detector.name, group = %group.labels, groups, "{ADVICE}");
        }
        let conflicts = std::mem::take(&mut self.conflicts);
        if conflicts >= CONFLICTS_TO_WARN {
            warn!(component = "ingest", conflicts, "{ADVICE}");
        }
    }

    fn reload(&mut self, config: Arc<Config>, wakeups: Vec<Arc<Notify>>, now: Instant, now_ms: i64) {
        let kept = self.groups.kept_endpoints(&config);
        let before = self.groups.iter().map(n_pending_samples).sum::<usize>();
        let retired = self.groups.reload(config, &kept, now, now_ms);
        let after = self.groups.iter().map(n_pending_samples).sum::<usize>();
        let of_retired = retired.iter().map(n_pending_samples).sum::<usize>();
        // Samples of removed endpoints; `retire` counts those of removed groups.
        self.remote_write_metrics
            .count_failed(FailureReason::Abandoned, before.saturating_sub(after + of_retired));
        let mut old = std::mem::replace(&mut self.endpoints, endpoint_states(wakeups));
        for (state, kept) in self.endpoints.iter_mut().zip(&kept) {
            if let Some(kept) = kept {
                state.take_over(&mut old[*kept]);
            }
        }
        retired.iter().for_each(|group| self.retire(group, &kept, now_ms));
        self.index.clear();
        let ids: Vec<u32> = self.groups.iter_mut().map(|(id, _)| id).collect();
        // The groups have new numbers.
        self.backlog = Backlog::default();
        self.partitions.renumber(&self.groups);
        let unfinished = Advance { has_changed: false, is_finished: false };
        ids.iter().for_each(|id| self.backlog.record(*id, unfinished));
        for (id, group) in self.groups.iter_from(0) {
            notify(&mut self.endpoints, group.tenant(), id);
        }
        self.endpoints.iter().for_each(|state| state.wake.notify_one());
    }
}

fn n_pending_samples(group: &Group) -> usize {
    group.publication().n_pending_samples()
}

/// Counts the events of a group.
fn event_recorder<'a>(
    metrics: &'a Metrics,
    remote_write: &'a remote_write::Metrics,
    detector: &'a str,
) -> impl FnMut(GroupEvent) + 'a {
    move |event| match event {
        GroupEvent::Row(state) => metrics.count_row(detector, state),
        GroupEvent::NotFinite => metrics.count_not_finite(detector),
        GroupEvent::Counter(event) => metrics.count_correction(detector, event.as_str()),
        GroupEvent::SamplesFailed(reason, samples) => remote_write.count_failed(reason, samples),
    }
}

#[cfg(test)]
pub(super) mod tests;
