//! Typed handles to the engine's thread.
//!
//! Each request is a method here, so that the other modules neither build commands nor hold reply channels. Tasks
//! hold a [`WeakEngineHandle`]: the engine ends when the last [`EngineHandle`] is dropped, and no task keeps it
//! alive by waiting for work.

use super::feedback::{FeedbackError, GroupIncident};
use super::progress::EngineProgress;
use super::status::SummaryPage;
use crate::config::Config;
use crate::detect::IncidentFeedback;
use crate::detector::Detector;
use crate::history::SeriesSamples;
use crate::ingest::{self, AcceptedCounts, WriteBody};
use crate::kafka::{Intake, Progress, Record, RecordOutcome};
use crate::models::DeployedModel;
use crate::models::registry::periods::GroupSelector;
use crate::notebooks::{GroupPart, GroupSource, TableQuery};
use crate::pipeline::group::deployment::{DeployOutcome, Deployment};
use crate::pipeline::group::snapshot::SnapshotStep;
use crate::pipeline::maintenance::MaintenancePlan;
use crate::pipeline::select::{self, GroupMatches, SelectedSeries, SelectionPage};
use crate::prom::Labels;
use crate::remote_read::server::{self, Query, Queryable, WorkPermit};
use crate::remote_write::{Batch, BatchSource, CursorPosition};
use crate::status::group::{GroupDetail, GroupSummary};
use crate::tenant::Tenant;
use crate::train::history::FiringAlert;
use crate::train::{TrainingOutcome, WarmStart};
use crate::window::ModelRole;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Notify, mpsc, oneshot};

/// Commands that may wait for the engine. A write request beyond this is answered with 503.
const COMMAND_QUEUE: usize = 1024;

/// A request to the engine.
pub(super) enum EngineCommand {
    /// Takes in the body of a write request.
    Write(WriteBody, oneshot::Sender<Result<AcceptedCounts, ingest::Error>>),
    /// Takes in a record of a log.
    Record(Record, oneshot::Sender<RecordOutcome>),
    /// Asks how far the rows of the records are written.
    RecordProgress(oneshot::Sender<Progress>),
    /// Adds a partition, whose records before an offset are written; replies with the offset before which the windows have
    /// every record, if they have any.
    AssignPartition { partition: i32, committed: Option<i64>, reply: oneshot::Sender<Option<i64>> },
    /// Removes a partition.
    RevokePartition(i32),
    /// Fetches the next batch of an endpoint.
    NextBatch {
        endpoint: usize,
        tenant: Option<Tenant>,
        max_samples: usize,
        reply: oneshot::Sender<Option<Batch>>,
    },
    /// Moves the cursors of an endpoint.
    Advance { endpoint: usize, tenant: Option<Tenant>, positions: Vec<CursorPosition> },
    /// Lists the tenants that an endpoint has had samples of, each with whether it lacks some.
    TenantsOfEndpoint { endpoint: usize, reply: oneshot::Sender<Vec<(Tenant, bool)>> },
    /// Lists the tenants with groups.
    Tenants(oneshot::Sender<Vec<Tenant>>),
    /// Reports the result of a training.
    TrainingDone { group: u32, outcome: TrainingOutcome },
    /// Lists all groups: id, detector and labels.
    ListGroups(QueryReply<Vec<(u32, Arc<Detector>, Labels)>>),
    /// Selects series of these groups, from the offset on; the query has no regular expressions.
    Select {
        query: Arc<Query>,
        groups: Arc<[u32]>,
        offset: usize,
        reply: QueryReply<SelectionPage<GroupMatches>>,
    },
    /// Fetches the parts of a table that these groups have, from the offset on.
    TableParts {
        query: Arc<TableQuery>,
        groups: Arc<[u32]>,
        offset: usize,
        reply: QueryReply<SelectionPage<GroupPart>>,
    },
    /// Summarizes the groups from this id on.
    Summaries { from: u32, reply: oneshot::Sender<SummaryPage> },
    /// Fetches a group with its window and models.
    GroupDetail { detector: String, labels: Labels, reply: oneshot::Sender<Option<Box<GroupDetail>>> },
    /// Lists the models of all groups.
    ListDeployments(oneshot::Sender<Vec<Deployment>>),
    /// Deploys a model of the registry, or removes a challenger.
    Deploy {
        group: u32,
        role: ModelRole,
        deployed: Option<DeployedModel>,
        warm_start: WarmStart,
        reply: oneshot::Sender<DeployOutcome>,
    },
    /// Finds the incident at a time of the one group that a selector matches.
    FindIncident {
        detector: Option<String>,
        groups: GroupSelector,
        at_ms: i64,
        reply: oneshot::Sender<Result<GroupIncident, FeedbackError>>,
    },
    /// Applies feedback on an incident.
    ApplyFeedback {
        group: u32,
        start_ms: i64,
        feedback: IncidentFeedback,
        reply: oneshot::Sender<Option<f64>>,
    },
    /// Puts a maintenance plan in force.
    SetMaintenance(MaintenancePlan),
    /// Adds times in which alerts of a detector's `exclude_alerts` fired.
    RecordAlerts { detector: String, tenant: Option<Tenant>, alerts: Vec<FiringAlert> },
    /// Checks whether a group has a recent sample of a feature.
    HasFeature { group: u32, feature: Labels, reply: oneshot::Sender<bool> },
    /// Fetches the first group after this id for a snapshot; none after the last.
    Snapshot { after: Option<u32>, reply: oneshot::Sender<Option<SnapshotStep>> },
    /// Reports that the snapshot of this group was not written.
    SnapshotFailed(u32),
    /// Hands over samples of the history; the series have all of their labels.
    Backfill { detector: Arc<Detector>, series: Vec<SeriesSamples> },
    /// Ends a gap fill.
    BackfillDone { is_complete: bool },
    /// Runs the periodic work.
    Tick,
    /// Applies another configuration; the wakeups are those of its endpoints.
    Reload { config: Arc<Config>, wakeups: Vec<Arc<Notify>>, done: oneshot::Sender<()> },
}

/// The reply to a query. Holds the turn of its request while the command waits.
pub(super) struct QueryReply<T> {
    sender: oneshot::Sender<T>,
    _permit: WorkPermit,
}

impl<T> QueryReply<T> {
    /// Sends the result of `query`, which does not run if the client has disconnected.
    pub(super) fn send_result(self, query: impl FnOnce() -> T) {
        if !self.sender.is_closed() {
            let _ = self.sender.send(query());
        }
    }
}

/// The engine's end of the command queue.
pub struct CommandReceiver {
    commands: mpsc::Receiver<EngineCommand>,
    pub(super) progress: Arc<EngineProgress>,
}

impl CommandReceiver {
    /// Waits for the next command, or only looks for one if there is other work.
    ///
    /// # Errors
    /// [`TryRecvError::Empty`] if there is no command yet, [`TryRecvError::Disconnected`] when all handles are dropped.
    pub(super) fn next(&mut self, has_other_work: bool) -> Result<EngineCommand, TryRecvError> {
        self.progress.record_command();
        match has_other_work {
            true => self.commands.try_recv(),
            false => self.commands.blocking_recv().ok_or(TryRecvError::Disconnected),
        }
    }
}

/// The command queue of an engine.
pub fn channel() -> (EngineHandle, CommandReceiver) {
    let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
    let progress = Arc::new(EngineProgress::new(Instant::now()));
    (EngineHandle { commands, progress: progress.clone() }, CommandReceiver { commands: receiver, progress })
}

/// A handle that keeps the engine alive.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<EngineCommand>,
    progress: Arc<EngineProgress>,
}

impl EngineHandle {
    /// The progress of the engine.
    pub fn progress(&self) -> Arc<EngineProgress> {
        self.progress.clone()
    }

    /// A handle that does not keep the engine alive.
    pub fn downgrade(&self) -> WeakEngineHandle {
        WeakEngineHandle { commands: self.commands.downgrade() }
    }

    /// Hands over the body of a write request.
    ///
    /// # Errors
    /// The engine's error; [`Overloaded`](ingest::Error::Overloaded) if its queue is full.
    pub async fn write(&self, body: WriteBody) -> Result<AcceptedCounts, ingest::Error> {
        let (reply, response) = oneshot::channel();
        if self.commands.try_send(EngineCommand::Write(body, reply)).is_err() {
            return Err(ingest::Error::Overloaded("too many requests wait"));
        }
        response.await.unwrap_or(Err(ingest::Error::Overloaded("shutting down")))
    }

    /// Applies a configuration and waits until it is in force. `None` if the engine is gone.
    pub async fn reload(&self, config: Arc<Config>, wakeups: Vec<Arc<Notify>>) -> Option<()> {
        let (done, applied) = oneshot::channel();
        self.commands.send(EngineCommand::Reload { config, wakeups, done }).await.ok()?;
        applied.await.ok()
    }

    /// Summaries of all groups; `None` if the engine is gone.
    pub async fn summaries(&self) -> Option<Vec<GroupSummary>> {
        let (mut groups, mut next) = (Vec::new(), Some(0));
        while let Some(from) = next {
            let (reply, response) = oneshot::channel();
            self.commands.send(EngineCommand::Summaries { from, reply }).await.ok()?;
            let page = response.await.ok()?;
            groups.extend(page.groups);
            next = page.next;
        }
        Some(groups)
    }

    /// A group with its window and models; `None` if there is no such group.
    pub async fn group_detail(&self, detector: String, labels: Labels) -> Option<Box<GroupDetail>> {
        let (reply, response) = oneshot::channel();
        self.commands.send(EngineCommand::GroupDetail { detector, labels, reply }).await.ok()?;
        response.await.ok()?
    }

    /// The incident at a time of the one group that a selector matches. `None` if the engine is gone.
    pub async fn find_incident(
        &self,
        detector: Option<String>,
        groups: GroupSelector,
        at_ms: i64,
    ) -> Option<Result<GroupIncident, FeedbackError>> {
        self.downgrade().call(|reply| EngineCommand::FindIncident { detector, groups, at_ms, reply }).await
    }

    /// Applies feedback on an incident, and returns the correction of the budget after it; the inner `None` without such
    /// an incident. `None` if the engine is gone.
    pub async fn apply_feedback(
        &self,
        group: u32,
        start_ms: i64,
        feedback: IncidentFeedback,
    ) -> Option<Option<f64>> {
        self.downgrade().call(|reply| EngineCommand::ApplyFeedback { group, start_ms, feedback, reply }).await
    }

    async fn query<T>(
        &self,
        permit: &WorkPermit,
        command: impl FnOnce(QueryReply<T>) -> EngineCommand,
    ) -> Result<T, server::Error> {
        let (sender, response) = oneshot::channel();
        let reply = QueryReply { sender, _permit: permit.clone() };
        let shutting_down = || server::Error::ShuttingDown;
        self.commands.send(command(reply)).await.map_err(|_| shutting_down())?;
        response.await.map_err(|_| shutting_down())
    }
}

/// The groups of one tenant, or all without tenants, with the labels that the tenant knows.
#[derive(Clone)]
pub struct TenantView {
    /// The engine.
    pub engine: EngineHandle,
    /// The tenant; `None` without tenants.
    pub tenant: Option<Tenant>,
}

impl TenantView {
    /// The ids of the groups with this detector and labels.
    async fn group_ids(
        &self,
        permit: &WorkPermit,
        is_selected: impl Fn(&Detector, &Labels) -> bool + Send + 'static,
    ) -> Result<Arc<[u32]>, server::Error> {
        let groups = self.engine.query(permit, EngineCommand::ListGroups).await?;
        let tenant = self.tenant.clone();
        let is_selected = move |detector: &Detector, labels: &Labels| {
            detector.tenant_of(labels) == tenant && is_selected(detector, &detector.outward_labels(labels))
        };
        let select = move || {
            let groups = groups.into_iter().filter(|(_, detector, labels)| is_selected(detector, labels));
            groups.map(|(id, ..)| id).collect()
        };
        permit.run_blocking(select).await
    }
}

impl Queryable for TenantView {
    type Series = SelectedSeries;

    async fn select(&self, query: Query, permit: &WorkPermit) -> Result<Vec<SelectedSeries>, server::Error> {
        let prefilter = Arc::new(Query { selector: query.selector.without_regexes(), ..query });
        let patterns = Arc::new(query.selector);
        let selector = patterns.clone();
        let groups = self.group_ids(permit, move |_, labels| select::may_match(labels, &selector)).await?;
        let (mut series, mut next) = (Vec::new(), Some(0));
        while let Some(offset) = next {
            let (query, groups, selector) = (prefilter.clone(), groups.clone(), patterns.clone());
            let select = |reply| EngineCommand::Select { query, groups, offset, reply };
            let SelectionPage { matches, next: next_offset } = self.engine.query(permit, select).await?;
            let filter = move || -> Vec<GroupMatches> {
                matches.into_iter().filter_map(|matches| matches.filter(&selector)).collect()
            };
            let matches = permit.run_blocking(filter).await?;
            permit.reserve(matches.iter().map(GroupMatches::n_bytes).sum())?;
            series.extend(matches.into_iter().flat_map(GroupMatches::into_series));
            next = next_offset;
        }
        Ok(series)
    }
}

impl GroupSource for TenantView {
    async fn groups(
        &self,
        query: Arc<TableQuery>,
        permit: &WorkPermit,
    ) -> Result<Vec<GroupPart>, server::Error> {
        let of_table = query.clone();
        let is_selected =
            move |detector: &Detector, labels: &Labels| of_table.selects(&detector.name, labels);
        let groups = self.group_ids(permit, is_selected).await?;
        let (mut parts, mut next) = (Vec::new(), Some(0));
        while let Some(offset) = next {
            let (query, groups) = (query.clone(), groups.clone());
            let fetch = |reply| EngineCommand::TableParts { query, groups, offset, reply };
            let SelectionPage { matches, next: next_offset } = self.engine.query(permit, fetch).await?;
            permit.reserve(matches.iter().map(GroupPart::n_bytes).sum())?;
            parts.extend(matches);
            next = next_offset;
        }
        Ok(parts)
    }
}

/// A handle that does not keep the engine alive. Its methods return `None` if the engine is gone.
#[derive(Clone)]
pub struct WeakEngineHandle {
    commands: mpsc::WeakSender<EngineCommand>,
}

impl WeakEngineHandle {
    async fn send(&self, command: EngineCommand) -> Option<()> {
        self.commands.upgrade()?.send(command).await.ok()
    }

    async fn call<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> EngineCommand) -> Option<T> {
        let (reply, response) = oneshot::channel();
        self.send(command(reply)).await?;
        response.await.ok()
    }

    /// Reports the result of a training.
    pub async fn training_done(&self, group: u32, outcome: TrainingOutcome) -> Option<()> {
        self.send(EngineCommand::TrainingDone { group, outcome }).await
    }

    /// The models of all groups.
    pub async fn list_deployments(&self) -> Option<Vec<Deployment>> {
        self.call(EngineCommand::ListDeployments).await
    }

    /// Deploys a model of the registry; no model removes a challenger.
    pub async fn deploy(
        &self,
        group: u32,
        role: ModelRole,
        deployed: Option<DeployedModel>,
        warm_start: WarmStart,
    ) -> Option<DeployOutcome> {
        self.call(|reply| EngineCommand::Deploy { group, role, deployed, warm_start, reply }).await
    }

    /// True if the group exists and has a recent sample of the feature.
    pub async fn has_feature(&self, group: u32, feature: Labels) -> Option<bool> {
        self.call(|reply| EngineCommand::HasFeature { group, feature, reply }).await
    }

    /// The first group after this id for a snapshot; `Some(None)` after the last.
    pub async fn next_snapshot(&self, after: Option<u32>) -> Option<Option<SnapshotStep>> {
        self.call(|reply| EngineCommand::Snapshot { after, reply }).await
    }

    /// Reports that the snapshot of this group was not written.
    pub async fn snapshot_failed(&self, group: u32) -> Option<()> {
        self.send(EngineCommand::SnapshotFailed(group)).await
    }

    /// Hands over samples of the history; the series have all of their labels.
    pub async fn backfill(&self, detector: Arc<Detector>, series: Vec<SeriesSamples>) -> Option<()> {
        self.send(EngineCommand::Backfill { detector, series }).await
    }

    /// Ends a gap fill.
    pub async fn backfill_done(&self, is_complete: bool) -> Option<()> {
        self.send(EngineCommand::BackfillDone { is_complete }).await
    }

    /// The tenants with groups.
    pub async fn tenants(&self) -> Option<Vec<Tenant>> {
        self.call(EngineCommand::Tenants).await
    }

    /// The tenants that an endpoint has had samples of, each with whether it lacks some.
    pub async fn tenants_of_endpoint(&self, endpoint: usize) -> Option<Vec<(Tenant, bool)>> {
        self.call(|reply| EngineCommand::TenantsOfEndpoint { endpoint, reply }).await
    }

    /// Puts a maintenance plan in force.
    pub async fn set_maintenance(&self, plan: MaintenancePlan) -> Option<()> {
        self.send(EngineCommand::SetMaintenance(plan)).await
    }

    /// Adds times in which alerts of a detector's `exclude_alerts` fired; with tenants, those of one.
    pub async fn record_alerts(
        &self,
        detector: String,
        tenant: Option<Tenant>,
        alerts: Vec<FiringAlert>,
    ) -> Option<()> {
        self.send(EngineCommand::RecordAlerts { detector, tenant, alerts }).await
    }

    /// Runs the periodic work. An engine whose queue is full skips it.
    pub fn tick(&self) -> Option<()> {
        let _ = self.commands.upgrade()?.try_send(EngineCommand::Tick);
        Some(())
    }
}

impl WeakEngineHandle {
    fn send_blocking(&self, command: EngineCommand) -> Option<()> {
        self.commands.upgrade()?.blocking_send(command).ok()
    }

    fn call_blocking<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> EngineCommand) -> Option<T> {
        let (reply, response) = oneshot::channel();
        self.send_blocking(command(reply))?;
        response.blocking_recv().ok()
    }
}

impl Intake for WeakEngineHandle {
    fn push(&self, record: Record) -> Option<RecordOutcome> {
        self.call_blocking(|reply| EngineCommand::Record(record, reply))
    }

    fn progress(&self) -> Option<Progress> {
        self.call_blocking(EngineCommand::RecordProgress)
    }

    fn assign(&self, partition: i32, committed: Option<i64>) -> Option<Option<i64>> {
        self.call_blocking(|reply| EngineCommand::AssignPartition { partition, committed, reply })
    }

    fn revoke(&self, partition: i32) -> Option<()> {
        self.send_blocking(EngineCommand::RevokePartition(partition))
    }
}

/// The scores for one endpoint, those of one tenant if there are tenants.
pub struct EndpointBatches {
    /// The engine.
    pub engine: WeakEngineHandle,
    /// Index of the endpoint in the configuration.
    pub endpoint: usize,
    /// The tenant.
    pub tenant: Option<Tenant>,
}

impl BatchSource for EndpointBatches {
    async fn next_batch(&self, max_samples: usize) -> Option<Batch> {
        let (endpoint, tenant) = (self.endpoint, self.tenant.clone());
        self.engine.call(|reply| EngineCommand::NextBatch { endpoint, tenant, max_samples, reply }).await?
    }

    async fn advance(&self, positions: Vec<CursorPosition>) {
        let (endpoint, tenant) = (self.endpoint, self.tenant.clone());
        // Without an engine there is no cursor to move.
        let _ = self.engine.send(EngineCommand::Advance { endpoint, tenant, positions }).await;
    }
}
