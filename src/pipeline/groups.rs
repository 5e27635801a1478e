//! The groups of all detectors, and the assignment of series to their columns.

use super::group::Group;
use super::group::series_origins::Lookup;
use super::group_table::GroupTable;
use super::maintenance::{MAX_ALERT_TIMES, MaintenancePlan, PastAlerts};
use super::usage::{self, Usage, UsageByTenant};
use crate::config::Config;
use crate::detector::{Detector, FeatureIdentity};
use crate::features::Schema;
use crate::prom::shard::Shard;
use crate::prom::{LabelPool, Labels, METRIC_NAME};
use crate::remote_write::cursor_keys;
use crate::remote_write::message::OUTPUT_METADATA;
use crate::series::{ColumnRef, IgnoreReason};
use crate::snapshot::GroupState;
use crate::telemetry::LogThrottle;
use crate::tenant::Tenant;
use crate::train::history::FiringAlert;
use crate::train::pool::{MAX_GROUPS, Pool};
use crate::window::{MAX_FEATURES, Window};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Most bytes of the names and values of a watched series' labels.
const MAX_SERIES_LABEL_BYTES: usize = 16 << 10;
/// Most characters of a series in a log line.
const LOGGED_SERIES_CHARS: usize = 200;

/// Time between log lines about alerts that are left out.
const LEFT_OUT_INTERVAL: Duration = Duration::from_secs(3600);

/// Labels that a scrape adds where the scraped metric lacks them.
const TARGET_LABELS: [&str; 2] = ["job", "instance"];
/// Beginning of the names of the process' own metrics.
pub const METRIC_PREFIX: &str = "promforest_";

/// The groups of every detector.
pub struct Groups {
    config: Arc<Config>,
    shard: Option<Shard>,
    all: GroupTable,
    /// For each detector of the configuration, its groups in the order of their labels.
    by_labels: Vec<BTreeMap<Labels, u32>>,
    next_id: u32,
    label_pool: LabelPool,
    usage: UsageByTenant,
    /// The limits that were reached since there was room, with the tenant of one that is a tenant's.
    over_limit: HashSet<(IgnoreReason, Option<Tenant>)>,
    maintenance: MaintenancePlan,
    past_alerts: PastAlerts,
    left_out_alerts: LogThrottle,
    /// Groups with many empty columns.
    with_empty_columns: VecDeque<u32>,
}

impl Groups {
    /// No groups. With a shard, only groups of its targets can be made.
    pub fn new(config: Arc<Config>, shard: Option<Shard>) -> Self {
        let by_labels = vec![BTreeMap::new(); config.detectors.len()];
        Self {
            config,
            shard,
            all: GroupTable::default(),
            by_labels,
            next_id: 0,
            label_pool: LabelPool::default(),
            usage: UsageByTenant::default(),
            over_limit: HashSet::new(),
            maintenance: MaintenancePlan::default(),
            past_alerts: PastAlerts::default(),
            left_out_alerts: LogThrottle::new(LEFT_OUT_INTERVAL),
            with_empty_columns: VecDeque::new(),
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The name of this process among those that share the targets, if there are several.
    pub fn part(&self) -> Option<String> {
        let member = self.config.kafka.as_ref().and_then(|kafka| kafka.group_instance_id.clone());
        self.shard.map(|shard| shard.index().to_string()).or(member)
    }

    /// True if the target of a series or of a group lies in the shard.
    fn is_in_shard(&self, labels: &Labels) -> bool {
        self.shard.is_none_or(|shard| shard.contains(labels))
    }

    /// Bytes of all labels.
    pub fn n_label_bytes(&self) -> usize {
        self.usage.total().label_bytes
    }

    /// A group by its number.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Group> {
        self.all.get_mut(id)
    }

    /// A group by its number.
    pub fn get(&self, id: u32) -> Option<&Group> {
        self.all.get(id)
    }

    /// A value that changes with the set of groups: numbers are not reused.
    pub fn set_id(&self) -> (u32, usize) {
        (self.next_id, self.all.len())
    }

    /// The group of a detector with these labels.
    pub fn find(&self, detector: &str, labels: &Labels) -> Option<&Group> {
        let index = self.config.detectors.iter().position(|known| known.name == detector)?;
        self.get(*self.by_labels[index].get(labels)?)
    }

    /// Every group with its number.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Group)> {
        self.all.iter_mut()
    }

    /// Every group.
    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.all.iter_from(0).map(|(_, group)| group)
    }

    /// The groups with this number and higher ones, ascending.
    pub fn iter_from(&self, id: u32) -> impl Iterator<Item = (u32, &Group)> {
        self.all.iter_from(id)
    }

    /// The numbers of all groups, those after `id` first.
    pub fn ids_after(&self, id: u32) -> Vec<u32> {
        let mut ids: Vec<u32> = self.all.iter_from(0).map(|(id, _)| id).collect();
        let n_before = ids.partition_point(|other| *other <= id);
        ids.rotate_left(n_before);
        ids
    }

    /// The group after this one, or the first one.
    pub fn next_mut(&mut self, after: Option<u32>) -> Option<(u32, &mut Group)> {
        let from = after.map_or(Some(0), |after| after.checked_add(1))?;
        self.all.first_from(from)
    }

    /// Groups of the same detector with the features of this one, and models of their own.
    pub fn pool(&self, id: u32, now_ms: i64) -> Option<Pool> {
        let group = self.get(id)?;
        let index = self.config.detectors.iter().position(|d| Arc::ptr_eq(d, &group.detector))?;
        let features = group.active_features(now_ms);
        // Training sorts them, and a large fleet is looked through for every group that is new.
        let has_same_features = |schema: &&Schema| schema.features.iter().eq(features.iter().copied());
        let others = self.by_labels[index].values().filter_map(|id| self.get(*id));
        let others = others.filter(|other| other.tenant() == group.tenant());
        let similar = others.filter_map(|other| Some((other, other.own_schema().filter(has_same_features)?)));
        let similar: Vec<(&Group, &Schema)> = similar.take(MAX_GROUPS).collect();
        let schema = similar.first()?.1.clone();
        Some(Pool { schema, windows: similar.into_iter().map(|(group, _)| group.window().clone()).collect() })
    }

    /// Keys of the endpoints' cursors.
    pub fn cursor_keys(&self) -> Vec<String> {
        cursor_keys(&self.config.remote_write)
    }

    /// Restores the group of a snapshot. False if its detector is not configured, the group exists or lies in another
    /// shard, or a limit is exceeded.
    pub fn restore(&mut self, state: GroupState, mut window: Window, now: Instant) -> bool {
        let is_same_detector = |detector: &Arc<Detector>| {
            detector.name == state.detector && detector.selection_key() == state.selection_key
        };
        let Some(index) = self.config.detectors.iter().position(is_same_detector) else { return false };
        let features = window.features().map(|(labels, ..)| labels.n_bytes());
        let usage = Usage::of_group(&state.group, features);
        let is_known = self.by_labels[index].contains_key(&state.group);
        let has_room = self.usage.check(&self.config, &state.group, usage).is_ok();
        if is_known || !self.is_in_shard(&state.group) || !has_room {
            return false;
        }
        window.share_labels(&mut self.label_pool);
        let labels = state.group.clone();
        let detector = self.config.detectors[index].clone();
        let group = Group::restore(detector, state, window, &self.cursor_keys(), now);
        let id = self.insert(group);
        self.by_labels[index].insert(labels, id);
        true
    }

    /// Puts a maintenance plan in force.
    pub fn set_maintenance(&mut self, plan: MaintenancePlan) {
        let before = std::mem::replace(&mut self.maintenance, plan);
        let Self { all, maintenance, past_alerts, .. } = self;
        let has_changed = |group: &Group| maintenance.differs_from(&before, &group.detector, group.tenant());
        let changed = all.iter_mut().map(|(_, group)| group).filter(|group| has_changed(group));
        changed.for_each(|group| suspend(group, maintenance, past_alerts));
    }

    /// Adds times in which alerts of a detector's `exclude_alerts` fired: rows of those times may be yet to come. With
    /// tenants, the alerts are those of one.
    pub fn record_alerts(&mut self, detector: &str, tenant: Option<&Tenant>, alerts: Vec<FiringAlert>) {
        let Some(index) = self.config.detectors.iter().position(|known| known.name == detector) else {
            return;
        };
        let added = self.past_alerts.add((detector.to_string(), tenant.cloned()), alerts);
        let left_out = Some(added.left_out).filter(|left_out| *left_out > 0);
        if let Some(count) = left_out.and_then(|left_out| self.left_out_alerts.add(left_out)) {
            let (tenant, limit) = (tenant.map(Tenant::as_str), MAX_ALERT_TIMES);
            warn!(
                component = "maintenance",
                detector,
                tenant,
                count,
                limit,
                "the alerts of exclude_alerts exceed the limit, some suspend no incidents"
            );
        }
        if !added.has_changed {
            return;
        }
        let Self { all, by_labels, maintenance, past_alerts, .. } = self;
        for id in by_labels[index].values() {
            if let Some(group) = all.get_mut(*id).filter(|group| group.tenant() == tenant) {
                suspend(group, maintenance, past_alerts);
            }
        }
    }

    /// Reads a group ahead of its samples.
    pub fn prefetch(&mut self, id: u32) {
        if let Some(group) = self.get_mut(id) {
            group.prefetch();
        }
    }

    /// True if the column exists.
    pub fn contains(&mut self, column_ref: &ColumnRef) -> bool {
        self.get_mut(column_ref.group).is_some_and(|group| group.is_current(column_ref))
    }

    /// The columns of a series with a sample at `at_ms`, created where they are new.
    ///
    /// # Errors
    /// The reason for which the series is ignored.
    pub fn resolve(
        &mut self,
        labels: &Labels,
        at_ms: Option<i64>,
        now: Instant,
    ) -> Result<Vec<ColumnRef>, IgnoreReason> {
        if self.is_own_output(labels) {
            return Err(IgnoreReason::OwnOutput);
        }
        if self.config.tenants.is_some() && self.tenant_of(labels).is_none() {
            return Err(IgnoreReason::NoTenant);
        }
        let is_watching =
            |detector: &Detector| detector.matchers.iter().any(|selector| selector.matches(labels));
        let detectors = self.config.detectors.iter().enumerate();
        let watching: Vec<usize> =
            detectors.filter(|(_, detector)| is_watching(detector)).map(|(i, _)| i).collect();
        if !watching.is_empty() && !self.is_in_shard(labels) {
            return Err(IgnoreReason::WrongShard);
        }
        let (mut columns, mut reason) = (Vec::new(), IgnoreReason::Unwatched);
        for index in watching {
            match self.resolve_column(index, labels, at_ms, now) {
                Ok(column) => columns.push(column),
                Err(over_limit) => {
                    self.warn_about_limit(over_limit, labels);
                    reason = over_limit;
                }
            }
        }
        if columns.is_empty() { Err(reason) } else { Ok(columns) }
    }

    /// The labels of a series of a request, with its tenant.
    pub fn with_tenant(&self, labels: Labels, tenant: Option<&Tenant>) -> Labels {
        match (&self.config.tenants, tenant) {
            (Some(tenants), Some(tenant)) => tenants.label.add(&labels, tenant),
            _ => labels,
        }
    }

    /// The tenant of a series or a group; `None` without tenants.
    pub fn tenant_of(&self, labels: &Labels) -> Option<Tenant> {
        self.config.tenants.as_ref()?.label.tenant_of(labels)
    }

    /// The tenants with groups.
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.usage.tenants()
    }

    /// Changes a group, and what it uses.
    fn change_group(&mut self, id: u32, change: impl FnOnce(&mut Group)) {
        let Some(group) = self.all.get_mut(id) else { return };
        let before = usage_of(group);
        change(group);
        let (tenant, after) = (group.tenant().cloned(), usage_of(group));
        self.usage.add(tenant.as_ref(), after);
        self.usage.remove(tenant.as_ref(), before);
    }

    /// The column of a series in an existing group of a detector. The column is created if it is new.
    pub fn resolve_existing(
        &mut self,
        detector: &Arc<Detector>,
        labels: &Labels,
        now: Instant,
    ) -> Option<ColumnRef> {
        let index = self.config.detectors.iter().position(|other| Arc::ptr_eq(other, detector))?;
        let is_watched = !self.is_own_output(labels)
            && detector.matchers.iter().any(|selector| selector.matches(labels))
            && self.by_labels[index].contains_key(&labels.split(&detector.by).0);
        is_watched.then(|| self.resolve_column(index, labels, None, now).ok()).flatten()
    }

    /// The column of a series in the groups of one detector, created if it is new.
    ///
    /// # Errors
    /// The limit that is reached.
    fn resolve_column(
        &mut self,
        detector_index: usize,
        labels: &Labels,
        at_ms: Option<i64>,
        now: Instant,
    ) -> Result<ColumnRef, IgnoreReason> {
        let detector = self.config.detectors[detector_index].clone();
        let (by, series) = labels.split(&detector.by);
        let existing = self.by_labels[detector_index].get(&by).copied();
        let mut feature = FeatureIdentity::default().split(&detector, &series).0;
        if let Some(id) = existing {
            let group = self.all.get_mut(id).ok_or(IgnoreReason::OverLimit)?;
            match group.find_column(&series, at_ms) {
                Lookup::Found(column) => return Ok(group.column_ref(id, column)),
                Lookup::Taken => {
                    self.change_group(id, |group| group.restore_ignored_labels(series.metric_name()));
                }
                Lookup::New => {}
            }
            feature = self.all.get(id).ok_or(IgnoreReason::OverLimit)?.feature(&series);
        }
        if labels.n_text_bytes() > MAX_SERIES_LABEL_BYTES {
            return Err(IgnoreReason::OverLimit);
        }
        let of_group =
            if existing.is_none() { Usage::of_group(&by, [].into_iter()) } else { Usage::default() };
        let of_column = Usage { groups: 0, series: 1, label_bytes: feature.n_bytes() };
        self.usage.check(&self.config, &by, of_group.plus(of_column))?;
        let id = existing.unwrap_or_else(|| self.create(detector_index, by, now));
        let group = self.all.get_mut(id).ok_or(IgnoreReason::OverLimit)?;
        let column = group.add_column(&series, at_ms, &mut self.label_pool).ok_or(IgnoreReason::OverLimit)?;
        self.usage.add(group.tenant(), of_column);
        Ok(group.column_ref(id, column))
    }

    /// Warns once about a limit until there is room again; about those of a tenant, once for each tenant that has groups.
    fn warn_about_limit(&mut self, reason: IgnoreReason, labels: &Labels) {
        let limits = self.config.limits;
        let tenant = self.tenant_of(labels).filter(|_| reason == IgnoreReason::OverTenantLimit);
        if !self.over_limit.insert((reason, tenant.clone())) {
            return;
        }
        let series = format!("{:.LOGGED_SERIES_CHARS$}", labels.to_string());
        let Usage { series: watched_series, groups, label_bytes } = match &tenant {
            Some(tenant) => self.usage.of_tenant(tenant),
            None => self.usage.total(),
        };
        match (&self.config.tenants, reason) {
            (Some(tenants), IgnoreReason::TooManyTenants) => warn!(
                component = "series",
                series,
                limit = tenants.tenant_limit,
                "tenants exceed tenants.tenant_limit, new ones are ignored"
            ),
            (Some(tenants), IgnoreReason::OverTenantLimit) => warn!(
                component = "series",
                series,
                tenant = tenant.as_ref().map(Tenant::as_str),
                watched_series,
                limit = tenants.series_limit,
                groups,
                groups_limit = tenants.group_limit,
                label_bytes,
                label_bytes_limit = usage::label_bytes_limit_of_tenant(tenants, limits),
                "watched series of a tenant exceed one of its limits, new ones are ignored"
            ),
            _ => warn!(
                component = "series",
                series,
                series_label_bytes_limit = MAX_SERIES_LABEL_BYTES,
                watched_series,
                limit = limits.series,
                groups,
                groups_limit = limits.groups,
                label_bytes,
                label_bytes_limit = usage::label_bytes_limit(limits),
                group_limit = MAX_FEATURES,
                "watched series exceed a limit, new ones are ignored"
            ),
        }
    }

    /// Outputs and own metrics are never watched: a feedback loop cannot be configured.
    fn is_own_output(&self, labels: &Labels) -> bool {
        let name = labels.metric_name();
        let is_detector = |name: &str| self.config.detectors.iter().any(|detector| detector.name == name);
        name.starts_with(METRIC_PREFIX)
            || name.strip_suffix("_anomaly").is_some_and(is_detector)
            || OUTPUT_METADATA.iter().any(|(own, _)| *own == name) && is_detector(labels.get("detector"))
    }

    fn create(&mut self, detector_index: usize, labels: Labels, now: Instant) -> u32 {
        let detector = self.config.detectors[detector_index].clone();
        info!(component = "series", detector = detector.name, group = %labels, "new group");
        let group = Group::new(detector, labels.clone(), self.config.remote_write.len(), now);
        let id = self.insert(group);
        self.by_labels[detector_index].insert(labels, id);
        id
    }

    /// Ids are never reused, so that a stored id cannot refer to another group.
    fn insert(&mut self, mut group: Group) -> u32 {
        suspend(&mut group, &self.maintenance, &self.past_alerts);
        let id = self.next_id;
        self.next_id += 1;
        self.usage.add(group.tenant(), usage_of(&group));
        self.all.push(id, group);
        id
    }

    /// Evicts groups without a sample for the length of their window, forgets alerts that are as old, and finds groups with
    /// many empty columns. Returns the evicted groups, and true if the index must be cleared.
    pub fn evict(&mut self, now: Instant, now_ms: i64) -> (Vec<Group>, bool) {
        self.past_alerts.forget_old(&self.config.detectors, now_ms);
        let evicted = self.all.remove(|group| group.is_expired(now));
        for group in &evicted {
            self.usage.remove(group.tenant(), usage_of(group));
            let index = self.config.detectors.iter().position(|d| Arc::ptr_eq(d, &group.detector));
            if let Some(index) = index {
                self.by_labels[index].remove(&group.labels);
            }
            info!(component = "series", detector = group.detector.name, group = %group.labels, "group gone");
        }
        self.label_pool.forget_unused();
        let with_empty_columns =
            self.all.iter_from(0).filter(|(_, group)| group.has_many_empty_columns(now_ms));
        self.with_empty_columns = with_empty_columns.map(|(id, _)| id).collect();
        let has_room = !evicted.is_empty() || !self.with_empty_columns.is_empty();
        (evicted, has_room && !std::mem::take(&mut self.over_limit).is_empty())
    }

    /// Removes the empty columns of the groups that the last eviction found, one after the other until the time budget is
    /// used up: a window is copied for it.
    pub fn remove_empty_columns(&mut self, budget: Duration, now_ms: i64) {
        let started = Instant::now();
        while let Some(id) = self.with_empty_columns.pop_front() {
            self.change_group(id, |group| group.remove_empty_columns(now_ms));
            if started.elapsed() >= budget {
                break;
            }
        }
    }

    /// For each endpoint of another configuration, the index of the same endpoint in this one: that with the same key.
    pub fn kept_endpoints(&self, config: &Config) -> Vec<Option<usize>> {
        let old = self.cursor_keys();
        let new = cursor_keys(&config.remote_write);
        new.iter().map(|new| old.iter().position(|old| old == new)).collect()
    }

    /// Applies another configuration, with these endpoints kept. A group stays if a detector of the configuration
    /// accepts it; the other groups are returned.
    pub fn reload(
        &mut self,
        config: Arc<Config>,
        kept: &[Option<usize>],
        now: Instant,
        now_ms: i64,
    ) -> Vec<Group> {
        let mut retired = Vec::new();
        let maintenance = std::mem::take(&mut self.maintenance);
        let past_alerts = std::mem::take(&mut self.past_alerts);
        let label_pool = std::mem::take(&mut self.label_pool);
        let empty = Self::new(config, self.shard);
        let mut next = Self { next_id: self.next_id, label_pool, maintenance, past_alerts, ..empty };
        for mut group in std::mem::take(&mut self.all).into_groups() {
            let index = next.config.detectors.iter().position(|new| group.reconfigure(new, now, now_ms));
            let Some(index) = index else {
                retired.push(group);
                continue;
            };
            group.set_endpoints(kept);
            // A training under way would report to the old number.
            group.end_training();
            let labels = group.labels.clone();
            let id = next.insert(group);
            next.by_labels[index].insert(labels, id);
        }
        *self = next;
        retired
    }
}

fn suspend(group: &mut Group, maintenance: &MaintenancePlan, past: &PastAlerts) {
    group.set_suspended(maintenance.suspended_times(past, &group.detector, group.tenant(), &group.labels));
}

fn usage_of(group: &Group) -> Usage {
    Usage::of_group(&group.labels, group.window().features().map(|(labels, ..)| labels.n_bytes()))
}

/// The labels of a group's own metrics: `detector`, then the group's, then empty ones of the target that a group lacks.
/// A scrape with `honor_labels` adds promforest's own target otherwise, and the metrics match no output series.
pub fn metric_labels(detector: &str, labels: &Labels) -> Vec<(String, String)> {
    let group = labels.iter().filter(|(name, _)| *name != METRIC_NAME);
    let absent = TARGET_LABELS.into_iter().filter(|name| labels.get(name).is_empty()).map(|name| (name, ""));
    let all = [("detector", detector)].into_iter().chain(group).chain(absent);
    all.map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_a_group_have_empty_labels_of_a_target_that_it_lacks() {
        let of = |labels: &[(&str, &str)]| {
            let labels = metric_labels("d", &Labels::new(labels.iter().copied()).expect("valid"));
            labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(&[("instance", "a"), ("job", "node")]), "detector=d instance=a job=node");
        assert_eq!(
            of(&[("namespace", "web"), ("pod", "a")]),
            "detector=d namespace=web pod=a job= instance="
        );
        assert_eq!(of(&[("job", "node"), ("rack", "1")]), "detector=d job=node rack=1 instance=");
    }
}
