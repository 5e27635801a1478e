//! All groups, and how a series finds its place among them.

use super::group::Group;
use crate::config::{Config, Detector};
use crate::features::Schema;
use crate::prom::{Labels, METRIC_NAME};
use crate::publish::message::OUTPUTS;
use crate::series::{Ignored, Target};
use crate::snapshot::State;
use crate::train::pool::{MAX_GROUPS, Pool};
use crate::window::{MAX_FEATURES, Window};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;
use tracing::{info, warn};

/// Watched series in all groups: 10,000 hosts of 20. At six hours of 15 s each takes 12 KiB.
pub const MAX_WATCHED: usize = 200_000;
/// Groups of all detectors: each has a window, metrics and a model of its own, however few its series are.
const MAX_LIVE_GROUPS: usize = 20_000;

/// Beginning of the names of the process' own metrics.
pub const OWN_PREFIX: &str = "promforest_";

/// The groups of every detector.
pub struct Groups {
    config: Arc<Config>,
    all: BTreeMap<u32, Group>,
    /// For each detector of the configuration, its groups in the order of their labels.
    by_labels: Vec<BTreeMap<Labels, u32>>,
    next_id: u32,
    watched: usize,
    over_limit: bool,
}

impl Groups {
    /// No group yet.
    pub fn new(config: Arc<Config>) -> Self {
        let by_labels = vec![BTreeMap::new(); config.detectors.len()];
        Self { config, all: BTreeMap::new(), by_labels, next_id: 0, watched: 0, over_limit: false }
    }

    /// The configuration in force.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// A group by its number.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Group> {
        self.all.get_mut(&id)
    }

    /// A group by its number.
    pub fn get(&self, id: u32) -> Option<&Group> {
        self.all.get(&id)
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
    pub fn from(&self, id: u32) -> impl Iterator<Item = (u32, &Group)> {
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
    pub fn pool(&self, id: u32) -> Option<Pool> {
        let group = self.all.get(&id)?;
        let index = self.config.detectors.iter().position(|d| Arc::ptr_eq(d, &group.detector))?;
        let features = group.alive();
        // Training sorts them, and a large fleet is looked through for every group that is new.
        let is_like = |schema: &&Schema| schema.features.iter().eq(features.iter().copied());
        let others = self.by_labels[index].values().filter_map(|id| self.all.get(id));
        let like = others.filter_map(|other| Some((other, other.own_schema().filter(is_like)?)));
        let like: Vec<(&Group, &Schema)> = like.take(MAX_GROUPS).collect();
        let schema = like.first()?.1.clone();
        Some(Pool { schema, windows: like.into_iter().map(|(group, _)| group.window().clone()).collect() })
    }

    /// URLs of the targets.
    pub fn urls(&self) -> Vec<String> {
        self.config.remote_write.iter().map(|target| target.url.to_string()).collect()
    }

    /// Takes in the group of a snapshot. False when the configuration does not have it any more.
    pub fn restore(&mut self, state: State, window: Window, now: Instant) -> bool {
        let is_its =
            |detector: &Arc<Detector>| detector.name == state.detector && detector.watches() == state.watches;
        let Some(index) = self.config.detectors.iter().position(is_its) else { return false };
        let n_columns = window.features().count();
        if self.by_labels[index].contains_key(&state.group) || self.watched + n_columns > MAX_WATCHED {
            return false;
        }
        let labels = state.group.clone();
        let detector = self.config.detectors[index].clone();
        let group = Group::restore(detector, state, window, &self.urls(), now);
        let id = self.insert(group);
        self.by_labels[index].insert(labels, id);
        self.watched += n_columns;
        true
    }

    /// Is the group still there?
    pub fn contains(&self, id: u32) -> bool {
        self.all.contains_key(&id)
    }

    /// Finds the columns that a series goes to, and makes them where they are new.
    ///
    /// # Errors
    /// Why the series goes nowhere.
    pub fn resolve(&mut self, labels: &Labels, now: Instant) -> Result<Vec<Target>, Ignored> {
        if self.is_own(labels) {
            return Err(Ignored::Own);
        }
        let mut targets = Vec::new();
        let mut over_limit = false;
        for i in 0..self.config.detectors.len() {
            let detector = self.config.detectors[i].clone();
            if !detector.matchers.iter().any(|selector| selector.matches(labels)) {
                continue;
            }
            let (by, feature) = labels.split(&detector.by);
            let known =
                self.by_labels[i].get(&by).and_then(|id| Some((*id, self.all[id].window().find(&feature)?)));
            let target = match known {
                Some((group, column)) => Some(Target { group, column }),
                None if self.watched < MAX_WATCHED
                    && (self.all.len() < MAX_LIVE_GROUPS || self.by_labels[i].contains_key(&by)) =>
                {
                    let id = self.group(i, &detector, by, now);
                    let group = self.all.get_mut(&id).expect("found or made just now");
                    group
                        .column(&feature)
                        .map(|column| Target { group: id, column })
                        .inspect(|_| self.watched += 1)
                }
                None => None,
            };
            over_limit |= target.is_none();
            targets.extend(target);
        }
        if over_limit && !std::mem::replace(&mut self.over_limit, true) {
            warn!(
                component = "series",
                series = %labels,
                watched = self.watched,
                limit = MAX_WATCHED,
                groups = self.all.len(),
                groups_limit = MAX_LIVE_GROUPS,
                group_limit = MAX_FEATURES,
                "too many watched series, new ones are ignored"
            );
        }
        match targets.is_empty() {
            false => Ok(targets),
            true if over_limit => Err(Ignored::OverLimit),
            true => Err(Ignored::Unwatched),
        }
    }

    /// Outputs and own metrics are never watched: a feedback loop cannot be configured.
    fn is_own(&self, labels: &Labels) -> bool {
        let name = labels.metric_name();
        let is_detector = |name: &str| self.config.detectors.iter().any(|detector| detector.name == name);
        name.starts_with(OWN_PREFIX)
            || name.strip_suffix("_anomaly").is_some_and(is_detector)
            || OUTPUTS.iter().any(|(own, _)| *own == name) && is_detector(labels.get("detector"))
    }

    fn group(
        &mut self,
        detector_index: usize,
        detector: &Arc<Detector>,
        labels: Labels,
        now: Instant,
    ) -> u32 {
        if let Some(id) = self.by_labels[detector_index].get(&labels) {
            return *id;
        }
        info!(component = "series", detector = detector.name, group = %labels, "new group");
        let group = Group::new(detector.clone(), labels.clone(), self.config.remote_write.len(), now);
        let id = self.insert(group);
        self.by_labels[detector_index].insert(labels, id);
        id
    }

    /// Numbers are never used twice, so that nothing that remembers one can mean another group.
    fn insert(&mut self, group: Group) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        self.all.insert(id, group);
        id
    }

    /// Lets go of groups that are silent for as long as their window reaches, and of columns that
    /// are. Returns the groups gone, and whether series have to be looked up anew.
    pub fn tidy(&mut self, now: Instant) -> (Vec<Group>, bool) {
        let over: Vec<u32> = self
            .all
            .iter()
            .filter(|(_, g)| g.is_abandoned(now) || g.has_dead_columns())
            .map(|(id, _)| *id)
            .collect();
        let changed = !over.is_empty() && std::mem::take(&mut self.over_limit);
        let mut gone = Vec::new();
        for id in over {
            let group = self.all.remove(&id).expect("listed just now");
            self.watched -= group.n_columns();
            let index = self.config.detectors.iter().position(|d| Arc::ptr_eq(d, &group.detector));
            let Some(by_labels) = index.map(|index| &mut self.by_labels[index]) else { continue };
            by_labels.remove(&group.labels);
            if group.is_abandoned(now) {
                info!(component = "series", detector = group.detector.name, group = %group.labels, "group gone");
                gone.push(group);
            } else {
                let group = group.without_dead_columns();
                self.watched += group.n_columns();
                let labels = group.labels.clone();
                let id = self.insert(group);
                self.by_labels[index.expect("found above")].insert(labels, id);
            }
        }
        (gone, changed)
    }

    /// For each target of another configuration, the one of this that it is: the same URL is the same target,
    /// whatever else changed.
    pub fn kept_targets(&self, config: &Config) -> Vec<Option<usize>> {
        let old = &self.config.remote_write;
        config.remote_write.iter().map(|new| old.iter().position(|old| old.url == new.url)).collect()
    }

    /// Puts another configuration into force, with these targets kept. Groups of a detector that still watches the
    /// same stay; the others go, and are returned.
    pub fn reload(
        &mut self,
        config: Arc<Config>,
        kept: &[Option<usize>],
        now: Instant,
        now_ms: i64,
    ) -> Vec<Group> {
        let mut gone = Vec::new();
        let mut next = Self { next_id: self.next_id, ..Self::new(config) };
        for (_, mut group) in std::mem::take(&mut self.all) {
            let index = next.config.detectors.iter().position(|new| group.reconfigure(new, now, now_ms));
            let Some(index) = index else {
                gone.push(group);
                continue;
            };
            group.retarget(kept);
            // A training under way would report to the old number.
            group.defer_training();
            next.watched += group.n_columns();
            let labels = group.labels.clone();
            let id = next.insert(group);
            next.by_labels[index].insert(labels, id);
        }
        *self = next;
        gone
    }
}

/// The labels of a group's own metrics: `detector`, then the group's.
pub fn metric_labels(detector: &str, labels: &Labels) -> Vec<(String, String)> {
    let own = [("detector".to_string(), detector.to_string())];
    let group =
        labels.iter().filter(|(name, _)| *name != METRIC_NAME).map(|(n, v)| (n.to_string(), v.to_string()));
    own.into_iter().chain(group).collect()
}
