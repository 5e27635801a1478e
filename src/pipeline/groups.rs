//! The groups of all detectors, and the assignment of series to their columns.

use super::group::Group;
use super::group::series_origins::Lookup;
use super::maintenance::{MaintenancePlan, PastAlerts};
use crate::config::{Config, Limits};
use crate::detector::{Detector, FeatureIdentity};
use crate::features::Schema;
use crate::prom::shard::Shard;
use crate::prom::{Labels, METRIC_NAME};
use crate::remote_write::cursor_keys;
use crate::remote_write::message::OUTPUT_METADATA;
use crate::series::{ColumnRef, IgnoreReason};
use crate::snapshot::GroupState;
use crate::train::history::FiringAlert;
use crate::train::pool::{MAX_GROUPS, Pool};
use crate::window::{MAX_FEATURES, Window};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Most bytes of the names and values of a watched series' labels.
const MAX_SERIES_LABEL_BYTES: usize = 16 << 10;
/// Most bytes of all labels that watched series keep in memory, for each series of the limit.
const LABEL_BYTES_PER_SERIES: usize = 1_342;
/// Bytes that all labels may take however low the limit of series is.
const MIN_LABEL_BYTES_LIMIT: usize = 256 << 20;
/// Copies of a group's labels, most of them as keys of its metrics.
const GROUP_LABEL_COPIES: usize = 16;
/// Most characters of a series in a log line.
const LOGGED_SERIES_CHARS: usize = 200;

/// Labels that a scrape adds where the scraped metric lacks them.
const TARGET_LABELS: [&str; 2] = ["job", "instance"];
/// Beginning of the names of the process' own metrics.
pub const METRIC_PREFIX: &str = "promforest_";

/// The groups of every detector.
pub struct Groups {
    config: Arc<Config>,
    shard: Option<Shard>,
    all: BTreeMap<u32, Group>,
    /// For each detector of the configuration, its groups in the order of their labels.
    by_labels: Vec<BTreeMap<Labels, u32>>,
    next_id: u32,
    usage: Usage,
    over_limit: bool,
    maintenance: MaintenancePlan,
    past_alerts: PastAlerts,
    /// Groups with many empty columns.
    with_empty_columns: VecDeque<u32>,
}

/// The number of groups and series, and the size of their labels: senders of samples choose them.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    groups: usize,
    series: usize,
    label_bytes: usize,
}

impl Usage {
    /// The part of one group.
    fn of_group(labels: &Labels, features: impl Iterator<Item = usize>) -> Self {
        let of_group = Self { groups: 1, series: 0, label_bytes: GROUP_LABEL_COPIES * labels.n_bytes() };
        features.fold(of_group, |sum, bytes| sum.plus(Self { groups: 0, series: 1, label_bytes: bytes }))
    }

    fn plus(self, other: Self) -> Self {
        Self {
            groups: self.groups + other.groups,
            series: self.series + other.series,
            label_bytes: self.label_bytes + other.label_bytes,
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            groups: self.groups - other.groups,
            series: self.series - other.series,
            label_bytes: self.label_bytes - other.label_bytes,
        }
    }

    fn is_within(self, limits: Limits) -> bool {
        self.groups <= limits.groups
            && self.series <= limits.series
            && self.label_bytes <= label_bytes_limit(limits)
    }
}

/// Most bytes of all labels.
fn label_bytes_limit(limits: Limits) -> usize {
    limits.series.saturating_mul(LABEL_BYTES_PER_SERIES).max(MIN_LABEL_BYTES_LIMIT)
}

impl Groups {
    /// No groups. With a shard, only groups of its targets can be made.
    pub fn new(config: Arc<Config>, shard: Option<Shard>) -> Self {
        let by_labels = vec![BTreeMap::new(); config.detectors.len()];
        Self {
            config,
            shard,
            all: BTreeMap::new(),
            by_labels,
            next_id: 0,
            usage: Usage::default(),
            over_limit: false,
            maintenance: MaintenancePlan::default(),
            past_alerts: PastAlerts::default(),
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
        self.usage.label_bytes
    }

    /// A group by its number.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Group> {
        self.all.get_mut(&id)
    }

    /// A group by its number.
    pub fn get(&self, id: u32) -> Option<&Group> {
        self.all.get(&id)
    }

    /// A value that changes with the set of groups: numbers are not reused.
    pub fn set_id(&self) -> (u32, usize) {
        (self.next_id, self.all.len())
    }

    /// The group of a detector with these labels.
    pub fn find(&self, detector: &str, labels: &Labels) -> Option<&Group> {
        let index = self.config.detectors.iter().position(|known| known.name == detector)?;
        self.all.get(self.by_labels[index].get(labels)?)
    }

    /// Every group with its number.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Group)> {
        self.all.iter_mut().map(|(id, group)| (*id, group))
    }

    /// Every group.
    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.all.values()
    }

    /// The groups with this number and higher ones, ascending.
    pub fn iter_from(&self, id: u32) -> impl Iterator<Item = (u32, &Group)> {
        self.all.range(id..).map(|(id, group)| (*id, group))
    }

    /// The numbers of all groups, those after `id` first.
    pub fn ids_after(&self, id: u32) -> Vec<u32> {
        let after = self.all.range((Bound::Excluded(id), Bound::Unbounded));
        after.chain(self.all.range(..=id)).map(|(id, _)| *id).collect()
    }

    /// The group after this one, or the first one.
    pub fn next_mut(&mut self, after: Option<u32>) -> Option<(u32, &mut Group)> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.all.range_mut((after, Bound::Unbounded)).next().map(|(id, group)| (*id, group))
    }

    /// Groups of the same detector with the features of this one, and models of their own.
    pub fn pool(&self, id: u32, now_ms: i64) -> Option<Pool> {
        let group = self.all.get(&id)?;
        let index = self.config.detectors.iter().position(|d| Arc::ptr_eq(d, &group.detector))?;
        let features = group.active_features(now_ms);
        // Training sorts them, and a large fleet is looked through for every group that is new.
        let has_same_features = |schema: &&Schema| schema.features.iter().eq(features.iter().copied());
        let others = self.by_labels[index].values().filter_map(|id| self.all.get(id));
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
    pub fn restore(&mut self, state: GroupState, window: Window, now: Instant) -> bool {
        let is_same_detector = |detector: &Arc<Detector>| {
            detector.name == state.detector && detector.selection_key() == state.selection_key
        };
        let Some(index) = self.config.detectors.iter().position(is_same_detector) else { return false };
        let features = window.features().map(|(labels, ..)| labels.n_bytes());
        let usage = self.usage.plus(Usage::of_group(&state.group, features));
        let is_known = self.by_labels[index].contains_key(&state.group);
        if is_known || !self.is_in_shard(&state.group) || !usage.is_within(self.config.limits) {
            return false;
        }
        let labels = state.group.clone();
        let detector = self.config.detectors[index].clone();
        let group = Group::restore(detector, state, window, &self.cursor_keys(), now);
        let id = self.insert(group);
        self.by_labels[index].insert(labels, id);
        true
    }

    /// Puts a maintenance plan in force.
    pub fn set_maintenance(&mut self, plan: MaintenancePlan) {
        if plan != self.maintenance {
            self.maintenance = plan;
            self.suspend_all();
        }
    }

    /// Adds times in which alerts of a detector's `exclude_alerts` fired: rows of those times may be yet to come.
    pub fn record_alerts(&mut self, detector: &str, alerts: Vec<FiringAlert>, now_ms: i64) {
        let mut past_alerts = self.past_alerts.clone();
        alerts.into_iter().for_each(|alert| past_alerts.add(detector, alert));
        past_alerts.forget_old(&self.config.detectors, now_ms);
        if past_alerts != self.past_alerts {
            self.past_alerts = past_alerts;
            self.suspend_all();
        }
    }

    fn suspend_all(&mut self) {
        let Self { all, maintenance, past_alerts, .. } = self;
        for group in all.values_mut() {
            group.set_suspended(maintenance.suspended_times(past_alerts, &group.detector, &group.labels));
        }
    }

    /// True if the column exists.
    pub fn contains(&self, column_ref: &ColumnRef) -> bool {
        self.all.get(&column_ref.group).is_some_and(|group| group.is_current(column_ref))
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
        let is_watching =
            |detector: &Detector| detector.matchers.iter().any(|selector| selector.matches(labels));
        let detectors = self.config.detectors.iter().enumerate();
        let watching: Vec<usize> =
            detectors.filter(|(_, detector)| is_watching(detector)).map(|(i, _)| i).collect();
        if !watching.is_empty() && !self.is_in_shard(labels) {
            return Err(IgnoreReason::WrongShard);
        }
        let columns: Vec<ColumnRef> =
            watching.iter().filter_map(|index| self.resolve_column(*index, labels, at_ms, now)).collect();
        let is_over_limit = columns.len() < watching.len();
        if is_over_limit {
            self.warn_about_limit(labels);
        }
        match columns.is_empty() {
            false => Ok(columns),
            true if is_over_limit => Err(IgnoreReason::OverLimit),
            true => Err(IgnoreReason::Unwatched),
        }
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
        is_watched.then(|| self.resolve_column(index, labels, None, now)).flatten()
    }

    /// The column of a series in the groups of one detector, created if it is new. `None` above a limit.
    fn resolve_column(
        &mut self,
        detector_index: usize,
        labels: &Labels,
        at_ms: Option<i64>,
        now: Instant,
    ) -> Option<ColumnRef> {
        let detector = self.config.detectors[detector_index].clone();
        let (by, series) = labels.split(&detector.by);
        let existing = self.by_labels[detector_index].get(&by).copied();
        let mut feature = FeatureIdentity::default().split(&detector, &series).0;
        if let Some(id) = existing {
            let group = self.all.get_mut(&id)?;
            match group.find_column(&series, at_ms) {
                Lookup::Found(column) => return Some(group.column_ref(id, column)),
                Lookup::Taken => {
                    self.usage = self.usage.minus(usage_of(group));
                    group.restore_ignored_labels(series.metric_name());
                    self.usage = self.usage.plus(usage_of(group));
                }
                Lookup::New => {}
            }
            feature = group.feature(&series);
        }
        if labels.n_text_bytes() > MAX_SERIES_LABEL_BYTES {
            return None;
        }
        let of_group =
            if existing.is_none() { Usage::of_group(&by, [].into_iter()) } else { Usage::default() };
        let of_column = Usage { groups: 0, series: 1, label_bytes: feature.n_bytes() };
        if !self.usage.plus(of_group).plus(of_column).is_within(self.config.limits) {
            return None;
        }
        let id = existing.unwrap_or_else(|| self.create(detector_index, by, now));
        let group = self.all.get_mut(&id)?;
        let column = group.add_column(&series, at_ms)?;
        self.usage = self.usage.plus(of_column);
        Some(group.column_ref(id, column))
    }

    fn warn_about_limit(&mut self, labels: &Labels) {
        let limits = self.config.limits;
        if !std::mem::replace(&mut self.over_limit, true) {
            warn!(
                component = "series",
                series = format!("{:.LOGGED_SERIES_CHARS$}", labels.to_string()),
                series_label_bytes_limit = MAX_SERIES_LABEL_BYTES,
                watched_series = self.usage.series,
                limit = limits.series,
                groups = self.usage.groups,
                groups_limit = limits.groups,
                label_bytes = self.usage.label_bytes,
                label_bytes_limit = label_bytes_limit(limits),
                group_limit = MAX_FEATURES,
                "watched series exceed a limit, new ones are ignored"
            );
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
        let Self { maintenance, past_alerts, .. } = self;
        group.set_suspended(maintenance.suspended_times(past_alerts, &group.detector, &group.labels));
        let id = self.next_id;
        self.next_id += 1;
        self.usage = self.usage.plus(usage_of(&group));
        self.all.insert(id, group);
        id
    }

    /// Evicts groups without a sample for the length of their window, and finds those with many empty columns. Returns the
    /// evicted groups, and true if the index must be cleared.
    pub fn evict(&mut self, now: Instant, now_ms: i64) -> (Vec<Group>, bool) {
        let mut evicted = Vec::new();
        let expired: Vec<u32> =
            self.all.iter().filter(|(_, group)| group.is_expired(now)).map(|(id, _)| *id).collect();
        for group in expired.iter().filter_map(|id| self.all.remove(id)) {
            self.usage = self.usage.minus(usage_of(&group));
            let index = self.config.detectors.iter().position(|d| Arc::ptr_eq(d, &group.detector));
            if let Some(index) = index {
                self.by_labels[index].remove(&group.labels);
            }
            info!(component = "series", detector = group.detector.name, group = %group.labels, "group gone");
            evicted.push(group);
        }
        let with_empty_columns = self.all.iter().filter(|(_, group)| group.has_many_empty_columns(now_ms));
        self.with_empty_columns = with_empty_columns.map(|(id, _)| *id).collect();
        let has_room = !evicted.is_empty() || !self.with_empty_columns.is_empty();
        (evicted, has_room && std::mem::take(&mut self.over_limit))
    }

    /// Removes the empty columns of the groups that the last eviction found, one after the other until the time budget is
    /// used up: a window is copied for it.
    pub fn remove_empty_columns(&mut self, budget: Duration, now_ms: i64) {
        let started = Instant::now();
        while let Some(id) = self.with_empty_columns.pop_front() {
            let Some(group) = self.all.get_mut(&id) else { continue };
            self.usage = self.usage.minus(usage_of(group));
            group.remove_empty_columns(now_ms);
            self.usage = self.usage.plus(usage_of(group));
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
        let mut next =
            Self { next_id: self.next_id, maintenance, past_alerts, ..Self::new(config, self.shard) };
        for (_, mut group) in std::mem::take(&mut self.all) {
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
