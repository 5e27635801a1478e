//! A detector: which series it selects, how rows are built from them, and which model it trains.
//!
//! A detector is a block of the configuration file. It stands in a room of its own because training, backtests and the
//! pipeline all read it, while `config` only lists the blocks.

mod identity;
mod metric_names;
mod promotion_gate;
mod select;
mod sharding;
mod training;

use crate::detect;
use crate::features::Transform;
use crate::features::rate::RateSemantics;
use crate::models::ModelParams;
use crate::prom::matcher::Matcher;
use crate::prom::{Labels, METRIC_NAME, Selector, duration};
use crate::tenant::{Tenant, TenantLabel};
use crate::time;
use crate::yaml::{Key, KeyTable, Node, Section};
pub use identity::FeatureIdentity;
pub use promotion_gate::PromotionGate;
pub use select::{UnknownDetector, select};
pub use sharding::{DividedGroups, SHARD_LABEL, check_sharding};
use std::time::Duration;
pub use training::{TrainingConfig, learned_to_ms, renewal_waits};

/// Labels that the output series carry themselves.
const OUTPUT_LABELS: [&str; 5] = ["__name__", "detector", "model", "metric", "reason"];
/// Labels of a scrape's origin, which change when a pod is replaced, usual external labels of a Prometheus, which all
/// series have, those of the scraping component of an OpenTelemetry collector, which name its version, and those that Thanos
/// Receive adds to what it stores.
const IGNORED_LABELS: [&str; 18] = [
    "cluster",
    "container",
    "datacenter",
    "endpoint",
    "environment",
    "monitor",
    "namespace",
    "otel_scope_name",
    "otel_scope_schema_url",
    "otel_scope_version",
    "pod",
    "prometheus",
    "prometheus_replica",
    "receive_replica",
    "region",
    "replica",
    "service",
    "tenant_id",
];

/// The keys of a block, without those of `alerts` and `model`.
pub const KEY_TABLES: [KeyTable; 3] = [
    KeyTable::new(
        &["detectors[]"],
        &[
            Key::required("name", "node_network", "Name of the detector, and prefix of its decision series"),
            Key::required("match", "[up]", "PromQL selectors; a series is watched if one of them matches"),
            Key::with_default(
                "by",
                "[job, instance]",
                "Labels whose values identify a group: one stream of rows, one model",
            ),
            Key::computed(
                "job_by",
                "`by` without its last label",
                "Labels of `by` that identify a job: when many of its groups open an incident together, \
                 `anomaly_job_incident` is 1",
            ),
            Key::with_default(
                "ignore",
                "[cluster, container, datacenter, endpoint, environment, monitor, namespace, otel_scope_name, \
                 otel_scope_schema_url, otel_scope_version, pod, prometheus, prometheus_replica, receive_replica, region, \
                 replica, service, tenant_id]",
                "Labels that do not identify a feature: a pod that replaces another goes on with its features. Series of \
                 one metric that exist at the same time and differ in such a label only stay features of their own",
            ),
            Key::with_default("transform", "rate(1m)", "`rate(RANGE)` for counters, `value` for gauges"),
            Key::with_default(
                "rate_semantics",
                "v3",
                "Rates at the edges of their range: `v3` as Prometheus 3, `v2` as Prometheus 2",
            ),
            Key::with_default(
                "window",
                "6h",
                "Length of the history of raw samples in memory, at least `training.min_history` and more than twice the \
                 range of `transform`",
            ),
            Key::computed(
                "grace",
                "two scrape intervals, at least `15s`",
                "Time that a row waits for its last sample, and that a feature may be absent",
            ),
            Key::optional("training", "History, schedule and promotion gate, see below"),
            Key::optional(
                "alerts",
                "Budget and filters, see below; models of kind `isolation_forest` open no incidents",
            ),
            Key::optional("model", "Kind and parameters of the model, see below"),
        ],
    ),
    KeyTable::new(&["detectors[].training"], &training::KEYS),
    KeyTable::new(&["detectors[].training.gate"], &promotion_gate::KEYS),
];

/// A block of the configuration's list `detectors`.
#[derive(Clone, Debug, PartialEq)]
pub struct Detector {
    /// Name of the detector and prefix of its decision series.
    pub name: String,
    /// Selectors; a series belongs to the detector if one of them matches.
    pub matchers: Vec<Selector>,
    /// Names of the labels whose values identify a group.
    pub by: Vec<String>,
    /// Names of the labels of `by` that identify a job of groups: all but the last, unless configured.
    pub job_by: Vec<String>,
    /// Names of the labels that do not identify a feature, unless they tell apart series that exist at the same time.
    pub ignore: Vec<String>,
    /// The label of `by` that has the tenant; `None` without tenants.
    pub tenant_label: Option<TenantLabel>,
    /// Conversion of samples to values.
    pub transform: Transform,
    /// Length of the history of raw samples in memory.
    pub window: Duration,
    /// Time that a row waits for its last sample.
    pub grace: Duration,
    /// Training: history, schedule, promotion gate.
    pub training: TrainingConfig,
    /// Alert budget and deviation filters.
    pub alerts: detect::Config,
    /// Kind and parameters of the model.
    pub model: ModelParams,
}

impl Detector {
    /// The detector of a configuration without `detectors`: the traffic of all network interfaces that belong to a
    /// machine, not to a container.
    pub fn node_network(scrape_interval: Duration) -> Self {
        let interfaces = r#"{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device!~"veth.*|cali.*|tap.*"}"#;
        Self {
            name: "node_network".into(),
            matchers: vec![Selector::parse(interfaces).expect("a valid selector")],
            ..Self::unnamed(scrape_interval)
        }
    }

    /// Reads a block of the configuration file. `scrape_interval` sets the default of `grace`.
    pub fn read(mut section: Section<'_, '_>, scrape_interval: Duration) -> Self {
        let default = Self::unnamed(scrape_interval);
        let name = section.require("name").and_then(|node| read_name(&node));
        let match_list = section.require("match");
        let matchers = match_list.as_ref().map(read_matchers).unwrap_or_default();
        let by = section.get("by").map(|list| read_group_labels(&list));
        let by = by.unwrap_or(default.by);
        let job_list = section.get("job_by");
        let job_by = job_list.as_ref().map(|list| read_job_labels(list, &by));
        let job_by = job_by.unwrap_or_else(|| by.iter().take(by.len().saturating_sub(1)).cloned().collect());
        let ignore = section.get("ignore").map(|list| read_ignored_labels(&list, &by));
        let semantics_node = section.get("rate_semantics");
        let semantics = semantics_node.as_ref().and_then(|node| node.parse(str::parse));
        let semantics = semantics.unwrap_or(RateSemantics::V3);
        let transform_node = section.get("transform");
        let transform =
            transform_node.as_ref().and_then(|node| node.parse(|text| Transform::parse(text, semantics)));
        let transform = transform.unwrap_or(default.transform);
        let window = section.duration("window", default.window);
        let grace = section.duration("grace", default.grace);
        let training = section.get("training").and_then(Node::section);
        let alerts = section.get("alerts");
        let model = section.get("model").and_then(Node::section);
        let detector = Self {
            name: name.unwrap_or_default(),
            matchers,
            by,
            job_by,
            ignore: ignore.unwrap_or(default.ignore),
            tenant_label: None,
            transform,
            window,
            grace,
            training: training.map_or(default.training, TrainingConfig::read),
            alerts: alerts.clone().and_then(Node::section).map_or(default.alerts, detect::Config::read),
            model: model.map_or(default.model, ModelParams::read),
        };
        detector.check_window(&section);
        let doubt = metric_names::doubt(transform, transform_node.is_none(), &detector.matchers);
        if let Some((node, doubt)) = transform_node.or(match_list).zip(doubt) {
            node.warn(doubt);
        }
        if let Some(node) = semantics_node.filter(|_| transform == Transform::Value) {
            node.warn("has no effect: `transform` is `value`");
        }
        if !detector.model.opens_incidents() {
            let without_effect = [alerts, job_list].into_iter().flatten();
            without_effect.for_each(|node| node.warn("has no effect: models of this kind open no incidents"));
        }
        section.deny_unknown();
        detector
    }

    fn unnamed(scrape_interval: Duration) -> Self {
        Self {
            name: String::new(),
            matchers: Vec::new(),
            by: vec!["job".into(), "instance".into()],
            job_by: vec!["job".into()],
            ignore: IGNORED_LABELS.map(String::from).into(),
            tenant_label: None,
            transform: Transform::Rate { range_ms: 60_000, semantics: RateSemantics::V3 },
            window: Duration::from_secs(6 * 3600),
            // Parts of a scrape may arrive 5 s apart (Prometheus' batch deadline), and 5 s later after a retry.
            grace: (2 * scrape_interval).max(Duration::from_secs(15)),
            training: TrainingConfig::default(),
            alerts: detect::Config::default(),
            model: ModelParams::default(),
        }
    }

    fn check_window(&self, section: &Section<'_, '_>) {
        let window = duration::Display(self.window);
        if self.window < self.training.min_history {
            section.error(format!(
                "window: {window} is shorter than training.min_history ({}): without a source of history no model can be trained",
                duration::Display(self.training.min_history),
            ));
        }
        if time::millis(self.window) < self.transform.lookback_ms() {
            section.error(format!(
                "window: {window} is too short for {}: more than twice its range is needed",
                self.transform
            ));
        }
    }

    /// Puts the tenant's label in front of `by` and `job_by`.
    ///
    /// # Errors
    /// The reason why the label does not suit the detector.
    pub fn divide_by_tenant(&mut self, label: &TenantLabel) -> Result<(), String> {
        let Self { name, .. } = self;
        let label_name = label.name();
        if OUTPUT_LABELS.contains(&label_name) || label_name == SHARD_LABEL {
            return Err(format!("{label_name:?} is reserved: the output series have a label of this name"));
        }
        if self.by.iter().any(|by| by == label_name) {
            return Err(format!("{label_name:?} is in `by` of detector {name:?}: `tenants` adds it"));
        }
        let is_of_tenant = |matcher: &&Matcher| matcher.name() == label_name;
        let selects_all = |selector: &&Selector| {
            selector.matchers().iter().filter(|m| !is_of_tenant(m)).all(|matcher| matcher.matches(""))
        };
        if let Some(selector) = self.matchers.iter().find(selects_all) {
            return Err(format!("{selector} of detector {name:?} selects all series of a tenant"));
        }
        self.by.insert(0, label_name.into());
        self.job_by.insert(0, label_name.into());
        self.ignore.retain(|ignored| ignored != label_name);
        self.tenant_label = Some(label.clone());
        Ok(())
    }

    /// The detector as the back end of a tenant knows it, without the label; `None` if it selects nothing of the tenant.
    pub fn of_tenant(&self, tenant: &Tenant) -> Option<Self> {
        let label = self.tenant_label.as_ref()?;
        let outward = |selector: &Selector| {
            Selector::of_matchers(label.outward_matchers(selector.matchers().iter(), tenant)?)
        };
        let matchers: Vec<Selector> = self.matchers.iter().filter_map(outward).collect();
        let others = |names: &[String]| names.iter().filter(|name| *name != label.name()).cloned().collect();
        let (by, job_by) = (others(&self.by), others(&self.job_by));
        (!matchers.is_empty()).then(|| Self { matchers, by, job_by, tenant_label: None, ..self.clone() })
    }

    /// The tenant of a group or a series; `None` without tenants.
    pub fn tenant_of(&self, labels: &Labels) -> Option<Tenant> {
        self.tenant_label.as_ref()?.tenant_of(labels)
    }

    /// The labels of a group as its tenant knows them.
    pub fn outward_labels(&self, group: &Labels) -> Labels {
        self.tenant_label.as_ref().map_or_else(|| group.clone(), |label| label.remove(group))
    }

    /// Text that identifies the contents of a window except for the detector's name: selectors, group labels, ignored
    /// labels and transform. Snapshots store it.
    pub fn selection_key(&self) -> String {
        let matchers: Vec<String> = self.matchers.iter().map(ToString::to_string).collect();
        let semantics = self.transform.rate_semantics().map_or("", |semantics| semantics.as_str());
        let (matchers, by, ignore) = (matchers.join(" or "), self.by.join(", "), self.ignore.join(", "));
        format!("{matchers} by {by} ignoring {ignore} as {} {semantics}", self.transform)
    }

    /// True for a label that does not identify a feature.
    pub fn is_ignored(&self, label: &str) -> bool {
        self.ignore.iter().any(|name| name == label)
    }

    /// True if both detectors select the same series and convert them alike, so that one can use the window of the
    /// other.
    pub fn has_same_selection(&self, other: &Self) -> bool {
        self.name == other.name && self.selection_key() == other.selection_key()
    }

    /// Name of the series of decisions.
    pub fn decision_metric(&self) -> String {
        format!("{}_anomaly", self.name)
    }
}

fn read_name(node: &Node<'_, '_>) -> Option<String> {
    let name = node.text()?;
    if !is_name(&name) {
        node.error(format!("{name:?} is not the start of a metric name: use letters, digits and _"));
    }
    Some(name)
}

fn read_matchers(list: &Node<'_, '_>) -> Vec<Selector> {
    let items = list.items();
    if items.as_ref().is_some_and(Vec::is_empty) {
        list.error("at least one selector is needed");
    }
    items.iter().flatten().filter_map(|item| item.parse(Selector::parse)).collect()
}

fn read_group_labels(list: &Node<'_, '_>) -> Vec<String> {
    let mut by = Vec::new();
    for item in list.items().unwrap_or_default() {
        let Some(label) = item.text() else { continue };
        if !is_name(&label) {
            item.error(format!("{label:?} is not a label name: use letters, digits and _"));
        }
        if OUTPUT_LABELS.contains(&label.as_str()) {
            item.error(format!("{label:?} is reserved: the output series have a label of this name"));
        } else if by.contains(&label) {
            item.error(format!("{label:?} occurs twice"));
        }
        by.push(label);
    }
    by
}

fn read_job_labels(list: &Node<'_, '_>, by: &[String]) -> Vec<String> {
    let mut job_by = Vec::new();
    for item in list.items().unwrap_or_default() {
        let Some(label) = item.text() else { continue };
        if !by.contains(&label) {
            item.error(format!("{label:?} is not in `by`: a job is identified by labels of its groups"));
        }
        job_by.push(label);
    }
    job_by
}

fn read_ignored_labels(list: &Node<'_, '_>, by: &[String]) -> Vec<String> {
    let mut ignore = Vec::new();
    for item in list.items().unwrap_or_default() {
        let Some(label) = item.text() else { continue };
        if !is_name(&label) {
            item.error(format!("{label:?} is not a label name: use letters, digits and _"));
        }
        if label == METRIC_NAME {
            item.error(format!("{label:?} tells features apart: it cannot be ignored"));
        } else if by.contains(&label) {
            item.error(format!("{label:?} is in `by`: a label of groups cannot be ignored"));
        } else if ignore.contains(&label) {
            item.error(format!("{label:?} occurs twice"));
        }
        ignore.push(label);
    }
    ignore
}

fn is_name(text: &str) -> bool {
    let allowed = |(i, b): (usize, u8)| b == b'_' || b.is_ascii_alphabetic() || i > 0 && b.is_ascii_digit();
    !text.is_empty() && text.bytes().enumerate().all(allowed)
}
