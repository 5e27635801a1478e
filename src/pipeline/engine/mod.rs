//! The one thread that owns the index and the windows.
//!
//! Requests come to it one after another through a bounded channel, so there are no locks, and what
//! a request does is done when the next one begins. It never waits: what is slow (the network, a
//! fit) is other threads' work, and comes back as a command.

mod gap_fill;
mod handle;
mod write;

pub use handle::{CommandReceiver, EndpointBatches, EngineHandle, WeakEngineHandle, channel};

use super::gaps::{self, BackfillRequest, GapTracker};
use super::group::deployment::Deployment;
use super::group::snapshot::SnapshotStep;
use super::group::{Group, GroupEvent, RowState};
use super::groups::Groups;
use super::metrics::Metrics;
use super::output_series::PendingStaleMarkers;
use super::select::SelectionPage;
use crate::config::Config;
use crate::detect::OnlineDetector;
use crate::features::counter;
use crate::ingest;
use crate::models::DeployedModel;
use crate::prom::duration::{self};
use crate::prom::wire;
use crate::prom::{Labels, Sample};
use crate::remote_read::server::Query;
use crate::remote_write::{self, Batch, CursorPosition, FailureReason, TimeSeries};
use crate::series::{EntryId, SeriesIndex};
use crate::snapshot::GroupState;
use crate::time;
use crate::time::now_ms;
use crate::train::{TrainingJob, TrainingOutcome, TrainingReason, WarmStart};
use crate::window::{ModelRole, Window};
use handle::EngineCommand;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

/// Scores wait until this machine's clock is at most this far behind their timestamp: one sample
/// from the future keeps a Prometheus before 2.54 from storing any other.
const PUBLISH_AHEAD_MS: i64 = 10_000;
/// Scores written this long after their time are told from live ones: Prometheus' look-back, over which an alert
/// sees them.
const BACKFILLED_AFTER_MS: i64 = 300_000;
/// How long the engine looks for what a query selects before it does something else.
const SELECT_BUDGET: Duration = Duration::from_millis(2);
/// How often groups and columns are looked through for what is gone.
const EVICT_INTERVAL: Duration = Duration::from_secs(60);
/// Samples of other values for the same times within [`TIDY_EVERY`] that are worth a word.
const CONFLICTS_TO_WARN: usize = 10;
/// How often the progress towards a first model is logged.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Can it be relied on? The text says how far it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Readiness {
    /// Does every detector have a model in service?
    pub ready: bool,
    /// One line a detector.
    pub text: String,
}

struct EndpointState {
    pending: BTreeSet<u32>,
    wake: Arc<Notify>,
    /// Where the last batch ended: the next one begins after it, so that every group has its turn.
    last_group: u32,
    /// What groups that are gone have left open.
    stale_markers: PendingStaleMarkers,
}

/// See the [module](self).
pub struct Engine {
    groups: Groups,
    index: SeriesIndex,
    buffer: Vec<u8>,
    scratch: wire::Scratch,
    /// What the index knows of the series of a request.
    entry_ids: Vec<Option<EntryId>>,
    endpoints: Vec<EndpointState>,
    training_jobs: mpsc::Sender<TrainingJob>,
    gaps: GapTracker,
    gap_metrics: gaps::Metrics,
    /// The group that a training was asked for last.
    last_training_group: u32,
    readiness: watch::Sender<Readiness>,
    metrics: Metrics,
    ingest_metrics: ingest::Metrics,
    remote_write_metrics: remote_write::Metrics,
    evicted_at: Instant,
    /// Samples of other values than those that are held, since then.
    conflicts: usize,
    progress_logged_at: Option<Instant>,
}

/// What the engine is built with.
pub struct EngineDeps {
    /// The configuration.
    pub config: Arc<Config>,
    /// One bell for each target.
    pub wakeups: Vec<Arc<Notify>>,
    /// Where trainings are asked for.
    pub training_jobs: mpsc::Sender<TrainingJob>,
    /// Where what is missing is asked for.
    pub backfill_requests: mpsc::Sender<BackfillRequest>,
    /// Where it is told how far it is.
    pub readiness: watch::Sender<Readiness>,
    /// What is counted of holes.
    pub gap_metrics: gaps::Metrics,
    /// What is counted.
    pub metrics: Metrics,
    /// What is counted of the input.
    pub ingest_metrics: ingest::Metrics,
    /// What is counted of the output.
    pub remote_write_metrics: remote_write::Metrics,
}

impl Engine {
    /// An engine without a sample.
    pub fn new(deps: EngineDeps) -> Self {
        Self {
            groups: Groups::new(deps.config),
            index: SeriesIndex::default(),
            buffer: Vec::new(),
            scratch: wire::Scratch::default(),
            entry_ids: Vec::new(),
            endpoints: endpoint_states(deps.wakeups),
            training_jobs: deps.training_jobs,
            gaps: GapTracker::new(deps.backfill_requests, Instant::now()),
            gap_metrics: deps.gap_metrics,
            last_training_group: u32::MAX,
            readiness: deps.readiness,
            metrics: deps.metrics,
            ingest_metrics: deps.ingest_metrics,
            remote_write_metrics: deps.remote_write_metrics,
            evicted_at: Instant::now(),
            conflicts: 0,
            progress_logged_at: None,
        }
    }

    /// Works until every sender of commands is gone.
    pub fn run(mut self, mut commands: CommandReceiver) {
        while let Some(command) = commands.blocking_recv() {
            let now = Instant::now();
            match command {
                EngineCommand::Write(request, reply) => {
                    let result = self.write(request.version, &request.body, now, now_ms());
                    // Nobody waits any more when the sender hung up.
                    let _ = reply.send(result);
                }
                EngineCommand::NextBatch { endpoint, max_samples, reply } => {
                    let _ = reply.send(self.next_batch(endpoint, max_samples, now_ms()));
                }
                EngineCommand::Advance { endpoint, positions } => {
                    self.advance(endpoint, &positions, now_ms())
                }
                EngineCommand::TrainingDone { group, outcome } => {
                    self.handle_training_outcome(group, outcome, now)
                }
                EngineCommand::ListGroups(reply) => {
                    let _ = reply.send(self.group_labels());
                }
                EngineCommand::Select { query, groups, offset, reply } => {
                    let _ = reply.send(self.select(&query, &groups, offset));
                }
                EngineCommand::ListDeployments(reply) => {
                    let _ = reply.send(self.list_deployments());
                }
                EngineCommand::Deploy { group, role, deployed, detection } => {
                    self.deploy(group, role, deployed, detection, now)
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
                EngineCommand::Tick => self.tick(now, now_ms()),
                EngineCommand::Reload { config, wakeups, done } => {
                    self.reload(config, wakeups, now, now_ms());
                    let _ = done.send(());
                }
            }
        }
    }

    /// Scores the rows of these groups that samples came for, as far as nothing is missing before them.
    fn score_groups(&mut self, touched: &BTreeSet<u32>, now: Instant) {
        // Where there is nobody to ask, nothing is waited for.
        let has_remote_read = !self.groups.config().remote_read.is_empty();
        for &id in touched {
            let Some(group) = self.groups.get_mut(id) else { continue };
            let detector = group.detector.clone();
            if group.hold_after_ms().is_some() && !self.gaps.contains(id) {
                self.gap_metrics.count_gap(&detector.name);
                if has_remote_read {
                    self.gaps.enqueue(id);
                } else {
                    group.release_hold(now);
                }
            }
            let mut on_event = event_recorder(&self.metrics, &self.remote_write_metrics, &detector.name);
            if group.score_touched(now, &mut on_event) {
                self.metrics.set_newest_scored(group);
                notify(&mut self.endpoints, id);
            }
        }
    }

    /// Goes on with the groups of snapshots, and tells what became of each. What they have not written waits
    /// for the model, which comes with the answer to how far Prometheus has it.
    pub fn restore(
        &mut self,
        snapshots: Vec<(GroupState, Window)>,
        now: Instant,
        on_outcome: impl Fn(&'static str),
    ) {
        for (state, window) in snapshots {
            let is_restored = self.groups.restore(state, window, now);
            on_outcome(if is_restored { "restored" } else { "incompatible" });
        }
    }

    /// The models of all groups.
    pub fn list_deployments(&mut self) -> Vec<Deployment> {
        self.groups.iter_mut().map(|(id, group)| group.deployment(id)).collect()
    }

    fn next_snapshot(&mut self, after: Option<u32>) -> Option<SnapshotStep> {
        let urls = self.groups.urls();
        let (id, group) = self.groups.next_mut(after)?;
        Some(group.take_snapshot(id, &urls))
    }

    /// The next batch of an endpoint.
    pub fn next_batch(&mut self, endpoint: usize, max_samples: usize, now_ms: i64) -> Option<Batch> {
        let state = self.endpoints.get_mut(endpoint)?;
        let to_ms = now_ms + PUBLISH_AHEAD_MS;
        let mut batch = Batch::default();
        // By themselves: another group may write one of these series anew.
        let to_series = |(labels, timestamp_ms): &(Labels, i64)| TimeSeries {
            labels: labels.clone(),
            samples: vec![Sample::stale(*timestamp_ms)],
        };
        batch.series.extend(state.stale_markers.next_markers(to_ms, max_samples).iter().map(to_series));
        if !batch.series.is_empty() {
            return Some(batch);
        }
        let mut remaining = max_samples;
        let after = state.pending.range((Bound::Excluded(state.last_group), Bound::Unbounded));
        let order: Vec<u32> = after.chain(state.pending.range(..=state.last_group)).copied().collect();
        for id in order {
            if remaining < remote_write::MAX_SAMPLES_PER_ROW {
                break;
            }
            let Some(group) = self.groups.get_mut(id) else {
                state.pending.remove(&id);
                continue;
            };
            self.remote_write_metrics
                .count_failed(FailureReason::LeftWindow, group.take_left_window(endpoint));
            let n_samples = group.collect_unpublished(id, endpoint, to_ms, remaining, &mut batch);
            remaining -= n_samples;
            if n_samples == 0 && group.is_published(endpoint) {
                state.pending.remove(&id);
                continue;
            }
            state.last_group = id;
        }
        for series in &mut batch.series {
            let Some(end_ms) = state.stale_markers.marker_ms(&series.labels) else { continue };
            let before = series.samples.len();
            series.samples.retain(|sample| sample.timestamp_ms > end_ms);
            self.remote_write_metrics.count_failed(FailureReason::OutOfOrder, before - series.samples.len());
        }
        batch.series.retain(|series| !series.samples.is_empty());
        (!batch.positions.is_empty()).then_some(batch)
    }

    fn advance(&mut self, endpoint: usize, positions: &[CursorPosition], now_ms: i64) {
        // What is older yet was not written, but given up.
        let limit = self.groups.config().remote_write.get(endpoint).map(|endpoint| endpoint.sample_age_limit);
        let oldest_ms = now_ms - time::millis(limit.unwrap_or_default());
        let Some(state) = self.endpoints.get_mut(endpoint) else { return };
        state.stale_markers.advance();
        for position in positions {
            let published = self.groups.get_mut(position.group).is_none_or(|group| {
                let to_ms = now_ms - BACKFILLED_AFTER_MS;
                let late = group.rows_between(endpoint, position.timestamp_ms, oldest_ms, to_ms);
                self.metrics.count_backfilled(&group.detector.name, late);
                group.advance(endpoint, position.timestamp_ms);
                group.is_published(endpoint)
            });
            if published {
                state.pending.remove(&position.group);
            }
        }
    }

    /// The labels of every group.
    fn group_labels(&self) -> Vec<(u32, Labels)> {
        self.groups.iter_from(0).map(|(id, group)| (id, group.labels.clone())).collect()
    }

    /// Looks at groups for as long as others can wait.
    fn select(&self, query: &Query, groups: &[u32], offset: usize) -> SelectionPage {
        let started = Instant::now();
        let mut selected = SelectionPage::default();
        for (i, id) in groups.iter().enumerate().skip(offset) {
            if started.elapsed() >= SELECT_BUDGET {
                selected.next = Some(i);
                break;
            }
            // One that is gone has nothing.
            if let Some(group) = self.groups.get(*id) {
                group.select(query, &mut selected.matches);
            }
        }
        selected
    }

    fn handle_training_outcome(&mut self, id: u32, outcome: TrainingOutcome, now: Instant) {
        let alias = self.groups.config().registry.alias.clone();
        let Some(group) = self.groups.get_mut(id) else { return };
        let detector = group.detector.clone();
        match outcome {
            TrainingOutcome::Model { deployed, is_new, warm_start, seconds } => {
                info!(
                    component = "train",
                    detector = detector.name,
                    group = %group.labels,
                    model = deployed.name,
                    version = deployed.version,
                    features = deployed.model.schema.features.len(),
                    rows = deployed.model.card.training_range.as_ref().map(|history| history.n_rows),
                    duration_seconds = seconds,
                    "model in service"
                );
                self.metrics.count_training(&detector.name, if is_new { "trained" } else { "loaded" });
                let mut on_event = event_recorder(&self.metrics, &self.remote_write_metrics, &detector.name);
                let age = deployed.model.card.age(now_ms());
                if group.install_trained(deployed, age, warm_start, now, &mut on_event) {
                    self.metrics.set_newest_scored(group);
                }
                // Scores of a snapshot waited for this: only now is it known how far they are written.
                notify(&mut self.endpoints, id);
                self.metrics.set_models(group, &alias);
            }
            TrainingOutcome::Gated { name, version, card, reasons } => {
                let reasons = reasons.join("; ");
                warn!(component = "train", detector = detector.name, group = %group.labels, model = name, version, reason = reasons, "model stays out of service");
                self.metrics.count_training(&detector.name, "gated");
                group.training_gated(&card, now);
            }
            TrainingOutcome::WaitingForFeatures => group.wait_for_features(now),
            TrainingOutcome::TooShort { have_ms } => {
                self.metrics.count_training(&detector.name, "too_short");
                group.too_short(have_ms, now);
            }
            TrainingOutcome::Pooled { have_ms, deployed, warm_start, seconds } => {
                info!(
                    component = "train",
                    detector = detector.name,
                    group = %group.labels,
                    features = deployed.model.schema.features.len(),
                    rows = deployed.model.card.training_range.as_ref().map(|history| history.n_rows),
                    duration_seconds = seconds,
                    "a model of other groups serves until there is enough history for one of its own"
                );
                self.metrics.count_training(&detector.name, "pooled");
                let mut on_event = event_recorder(&self.metrics, &self.remote_write_metrics, &detector.name);
                if group.install(deployed, warm_start, now, &mut on_event) {
                    self.metrics.set_newest_scored(group);
                }
                group.too_short(have_ms, now);
                notify(&mut self.endpoints, id);
                self.metrics.set_models(group, &alias);
            }
            TrainingOutcome::HistoryLost { have_ms } => {
                let have = Duration::from_millis(u64::try_from(have_ms).unwrap_or(0));
                warn!(component = "train", detector = detector.name, group = %group.labels, seconds = have.as_secs(), "the history is gone that the model has learned from: it stays in service");
                self.metrics.count_training(&detector.name, "history_lost");
                group.history_lost(now);
            }
            TrainingOutcome::Failed(reason) => {
                warn!(component = "train", detector = detector.name, group = %group.labels, err = reason, "training failed, trying again in a minute");
                self.metrics.count_training(&detector.name, "failed");
                group.training_failed(now);
            }
        }
        self.update_readiness(now);
    }

    /// Puts a model of the registry into its place. One with features that are not there is refused: it
    /// would never see a complete row.
    pub fn deploy(
        &mut self,
        id: u32,
        role: ModelRole,
        deployed: Option<DeployedModel>,
        detection: Option<Box<OnlineDetector>>,
        now: Instant,
    ) {
        let alias = self.groups.config().registry.alias.clone();
        let Some(group) = self.groups.get_mut(id) else { return };
        let detector = group.detector.clone();
        if let Some(DeployedModel { model, name, version }) = &deployed {
            let missing = group
                .missing_feature(&model.schema)
                .map(|feature| model.schema.transform.expression(feature));
            if let Some(feature) = missing {
                warn!(component = "models", detector = detector.name, group = %group.labels, model = name, version, feature, "model rejected: the group does not have all of its features");
                self.metrics.count_rejected_model(&detector.name);
                if role == ModelRole::Challenger {
                    group.set_challenger(None, None);
                    self.metrics.set_models(group, &alias);
                }
                return;
            }
            info!(component = "models", detector = detector.name, group = %group.labels, model = name, version, role = ?role, "model in service");
        }
        match (role, deployed) {
            (ModelRole::Champion, Some(deployed)) => {
                let mut on_event = event_recorder(&self.metrics, &self.remote_write_metrics, &detector.name);
                if group.install(
                    deployed,
                    WarmStart { detection, ..WarmStart::default() },
                    now,
                    &mut on_event,
                ) {
                    self.metrics.set_newest_scored(group);
                    notify(&mut self.endpoints, id);
                }
            }
            (ModelRole::Champion, None) => {}
            (ModelRole::Challenger, deployed) => group.set_challenger(deployed, detection),
        }
        self.metrics.set_models(group, &alias);
    }

    /// The periodic work.
    pub fn tick(&mut self, now: Instant, now_ms: i64) {
        self.check_gaps(now, now_ms);
        for (id, group) in self.groups.iter_mut() {
            let detector = group.detector.clone();
            let mut on_event = event_recorder(&self.metrics, &self.remote_write_metrics, &detector.name);
            if group.close_rows(now, &mut on_event) {
                // Rows may have waited for one before them.
                if group.score_touched(now, &mut on_event) {
                    self.metrics.set_newest_scored(group);
                }
                // Or everything ends there.
                notify(&mut self.endpoints, id);
            }
            if group.take_metrics_dirty() {
                self.metrics.set_group(group, now);
            }
        }
        self.request_trainings(now);
        if now.duration_since(self.evicted_at) >= EVICT_INTERVAL {
            self.evicted_at = now;
            self.warn_about_replicas();
            self.groups.iter().for_each(|group| self.metrics.set_drift(group));
            self.metrics.set_window_bytes(self.groups.iter().map(|group| group.window().n_bytes()).sum());
            let (evicted, reindex) = self.groups.evict(now);
            let kept: Vec<_> = (0..self.endpoints.len()).map(Some).collect();
            evicted.iter().for_each(|group| self.retire(group, &kept, now_ms));
            if reindex {
                self.index.clear();
            }
        }
        self.metrics.set_series(self.index.len());
        for state in &self.endpoints {
            if !state.pending.is_empty() || state.stale_markers.has_unwritten() {
                state.wake.notify_one();
            }
        }
        self.metrics.set_pending_groups(self.endpoints.iter().map(|state| state.pending.len()).sum());
        self.update_readiness(now);
    }

    /// Two that send the same series make rows of two kinds, or two values of one sample, of which the first counts.
    fn warn_about_replicas(&mut self) {
        const ADVICE: &str =
            "two seem to send the same series: add their replica label to `by`, or let one of them send";
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

    /// Fills the trainer's queue with the groups that are due, going on where it stopped, so that
    /// every group has its turn.
    fn request_trainings(&mut self, now: Instant) {
        for id in self.groups.ids_after(self.last_training_group) {
            let Ok(permit) = self.training_jobs.try_reserve() else { return };
            let Some(group) = self.groups.get_mut(id) else { continue };
            let due = group.training_due(now);
            // Features that have just come may make it like others: it does not wait to be scored.
            let wants_pool = group.is_new() && (due.is_some() || group.has_new_columns());
            let pool = if wants_pool { self.groups.pool(id) } else { None };
            let Some(group) = self.groups.get_mut(id) else { continue };
            let Some(reason) = due.or(pool.as_ref().map(|_| TrainingReason::First)) else { continue };
            if reason != TrainingReason::First {
                let reason = reason.as_str();
                info!(component = "train", detector = group.detector.name, group = %group.labels, reason, "training again");
            }
            permit.send(TrainingJob {
                group: id,
                detector: group.detector.clone(),
                labels: group.labels.clone(),
                first_sample_at: group.first_sample_at(),
                checkpoint: group.checkpoint().cloned(),
                trained_history_ms: group.trained_history_ms(),
                scored_to_ms: group.scored_to_ms(),
                pool,
                reason,
                window: group.start_training(reason, now),
            });
            self.last_training_group = id;
        }
    }

    /// Ready means: every detector has a model in service for one group at least.
    fn update_readiness(&mut self, now: Instant) {
        let mut ready = true;
        let mut lines = Vec::new();
        let log_progress = self
            .progress_logged_at
            .is_none_or(|logged_at| now.duration_since(logged_at) >= PROGRESS_LOG_INTERVAL);
        for detector in &self.groups.config().detectors {
            let groups = || self.groups.iter().filter(|group| Arc::ptr_eq(&group.detector, detector));
            let models = || groups().filter_map(|group| group.deployed(ModelRole::Champion));
            let (n_groups, n_models) = (groups().count(), models().count());
            let n_pooled = models().filter(|deployed| deployed.is_pooled()).count();
            ready &= n_models > 0;
            let progress = groups().map(|group| group.progress(now)).fold(0.0, f64::max);
            let minimum = duration::Display(detector.training.min_history);
            lines.push(match (n_groups, n_models) {
                (0, _) => format!("{}: no samples yet", detector.name),
                (_, 0) => format!(
                    "{}: {:.0} % of the {minimum} of history that a first model needs",
                    detector.name,
                    progress * 100.0
                ),
                (_, _) if n_pooled > 0 => format!(
                    "{}: {n_models} of {n_groups} groups have a model, {n_pooled} of them a pooled one",
                    detector.name
                ),
                _ => format!("{}: {n_models} of {n_groups} groups have a model", detector.name),
            });
            if log_progress && n_groups > n_models - n_pooled {
                self.progress_logged_at = Some(now);
                info!(component = "train", detector = detector.name, groups = n_groups, models = n_models, pooled = n_pooled, progress = format!("{:.0}%", progress * 100.0), minimum = %minimum, "collecting history");
            }
        }
        let state = Readiness { ready, text: lines.join("\n") };
        self.readiness.send_if_modified(|old| {
            let changed = *old != state;
            *old = state;
            changed
        });
    }

    fn reload(&mut self, config: Arc<Config>, wakeups: Vec<Arc<Notify>>, now: Instant, now_ms: i64) {
        let kept = self.groups.kept_endpoints(&config);
        let before = self.groups.iter().map(Group::n_pending_samples).sum::<usize>();
        let retired = self.groups.reload(config, &kept, now, now_ms);
        let after = self.groups.iter().map(Group::n_pending_samples).sum::<usize>();
        let of_retired = retired.iter().map(Group::n_pending_samples).sum::<usize>();
        // Of targets that are gone; `bury` counts the groups that are.
        self.remote_write_metrics
            .count_failed(FailureReason::Abandoned, before.saturating_sub(after + of_retired));
        let mut old = std::mem::replace(&mut self.endpoints, endpoint_states(wakeups));
        for (state, kept) in self.endpoints.iter_mut().zip(&kept) {
            state.stale_markers = kept.map(|kept| old[kept].stale_markers.take_over()).unwrap_or_default();
        }
        retired.iter().for_each(|group| self.retire(group, &kept, now_ms));
        self.index.clear();
        let ids: Vec<u32> = self.groups.iter_mut().map(|(id, _)| id).collect();
        for state in &mut self.endpoints {
            state.pending.extend(&ids);
            state.wake.notify_one();
        }
    }

    /// Ends what a group that is gone has written, and counts what it has not. Each target is one that the group
    /// knew by this number, or a new one.
    fn retire(&mut self, group: &Group, kept: &[Option<usize>], now_ms: i64) {
        for (state, kept) in self.endpoints.iter_mut().zip(kept) {
            let Some(kept) = kept else { continue };
            let (series, last_ms) = group.unterminated_series(*kept);
            state.stale_markers.add(series, last_ms, now_ms);
        }
        self.remote_write_metrics.count_failed(FailureReason::Abandoned, group.n_pending_samples());
        self.metrics.remove_group(group);
    }
}

fn endpoint_states(wakeups: Vec<Arc<Notify>>) -> Vec<EndpointState> {
    let state = |wake| EndpointState {
        pending: BTreeSet::new(),
        wake,
        last_group: u32::MAX,
        stale_markers: PendingStaleMarkers::default(),
    };
    wakeups.into_iter().map(state).collect()
}

fn notify(endpoints: &mut [EndpointState], id: u32) {
    for endpoint in endpoints {
        endpoint.pending.insert(id);
        endpoint.wake.notify_one();
    }
}

/// Counts what a group tells.
fn event_recorder<'a>(
    metrics: &'a Metrics,
    remote_write: &'a remote_write::Metrics,
    detector: &'a str,
) -> impl FnMut(GroupEvent) + 'a {
    move |event| match event {
        GroupEvent::Row(state) => metrics.count_row(detector, row_label(state)),
        GroupEvent::NotFinite => metrics.count_row(detector, "not_finite"),
        GroupEvent::Counter(event) => metrics.count_correction(
            detector,
            match event {
                counter::CounterEvent::Reset => "reset",
                counter::CounterEvent::Dip => "dip",
                counter::CounterEvent::Rewind => "rewind",
            },
        ),
        GroupEvent::SamplesFailed(reason, samples) => remote_write.count_failed(reason, samples),
    }
}

fn row_label(state: RowState) -> &'static str {
    match state {
        RowState::Complete => "complete",
        RowState::Incomplete => "incomplete",
        RowState::TooShort => "too_short",
        RowState::Stale => "stale",
        RowState::NoModel => "no_model",
        RowState::Late => "late",
    }
}

#[cfg(test)]
mod tests;
