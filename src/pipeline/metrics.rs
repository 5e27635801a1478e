//! Metrics of rows, groups and models.

use super::group::Group;
use super::group::event::RowState;
use super::groups::metric_labels;
use crate::models::registry;
use crate::telemetry::register;
use crate::window::ModelRole;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// In place of the alias of a model that was trained on other groups.
const POOLED: &str = "pooled";
/// Names of changed labels that are counted apart.
const MAX_CHANGED_LABELS: usize = 64;

type Seconds = Gauge<f64, AtomicU64>;
type GroupLabels = Vec<(String, String)>;
type Pair = [(&'static str, Cow<'static, str>); 2];

/// See the [module](self).
#[derive(Clone)]
pub struct Metrics {
    rows: Family<Pair, Counter>,
    /// Rows of all detectors by state, those of removed detectors included.
    row_totals: [Counter; RowState::ALL.len()],
    corrections: Family<Pair, Counter>,
    trainings: Family<Pair, Counter>,
    newest_scored: Family<GroupLabels, Seconds>,
    progress: Family<GroupLabels, Seconds>,
    missing: Family<GroupLabels, Gauge>,
    model_info: Family<GroupLabels, Gauge>,
    /// The series of `model_info` that each group has now.
    model_info_series: Arc<Mutex<HashMap<GroupLabels, Vec<GroupLabels>>>>,
    model_timestamp: Family<GroupLabels, Seconds>,
    model_created: Family<GroupLabels, Seconds>,
    model_rows: Family<GroupLabels, Gauge>,
    model_features: Family<GroupLabels, Gauge>,
    model_drift: Family<GroupLabels, Seconds>,
    budget_expected: Family<GroupLabels, Seconds>,
    budget_observed: Family<GroupLabels, Seconds>,
    budget_correction: Family<GroupLabels, Seconds>,
    /// Names of labels that changed.
    changed_labels: BTreeSet<String>,
    maintenance: Family<GroupLabels, Gauge>,
    label_changes: Family<[(&'static str, String); 3], Counter>,
    models_rejected: Family<[(&'static str, String); 1], Counter>,
    backfilled: Family<[(&'static str, String); 1], Counter>,
    interleaved: Gauge,
    window_bytes: Gauge,
    series: Gauge,
    pending: Gauge,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            rows: register(
                registry,
                "rows",
                "Rows by final state; not_finite rows are also counted as complete",
            ),
            row_totals: Default::default(),
            corrections: register(
                registry,
                "counter_corrections",
                "Decreases of a counter: resets are left to rate(), dips and rewinds are repaired",
            ),
            trainings: register(registry, "training_runs", "Trainings by outcome"),
            newest_scored: register(
                registry,
                "newest_scored_timestamp_seconds",
                "Timestamp of the newest scored row",
            ),
            progress: register(
                registry,
                "training_progress_ratio",
                "Share of the history that a first model needs; 1 with a model of the group's own",
            ),
            missing: register(registry, "missing_features", "Features that the last closed row lacked"),
            model_timestamp: register(
                registry,
                "model_timestamp_seconds",
                "Timestamp of the newest row that the model was trained on",
            ),
            model_info: register(
                registry,
                "model_info",
                "Models of a group, always 1; version is empty for an unregistered model, alias is pooled for a model of other groups",
            ),
            model_info_series: Arc::default(),
            model_created: register(
                registry,
                "model_created_timestamp_seconds",
                "Creation time of the model",
            ),
            model_drift: register(
                registry,
                "model_drift_kl",
                "KL divergence between the decisions of the last day and of training, in nats",
            ),
            budget_expected: register(
                registry,
                "alert_budget_expected_per_day",
                "Budget of alerts: most incidents per day on average; what only lasts may add a fourth",
            ),
            budget_observed: register(
                registry,
                "alert_budget_observed_per_day",
                "Incidents per day of the last seven days, without those that are marked as real",
            ),
            budget_correction: register(
                registry,
                "alert_budget_correction",
                "Logarithm of the factor by which recent incidents raise the threshold, from 0 to 1.5",
            ),
            changed_labels: BTreeSet::new(),
            maintenance: register(
                registry,
                "maintenance_active",
                "Whether a maintenance is active, or an alert of exclude_alerts fires: no incident opens",
            ),
            label_changes: register(
                registry,
                "feature_label_changes",
                "Features of which a label outside of `by` changed, by outcome: continued by another series, or told apart",
            ),
            models_rejected: register(
                registry,
                "models_rejected",
                "Registry models rejected because the group lacks their features",
            ),
            model_rows: register(registry, "model_training_rows", "Rows that the model was trained on"),
            model_features: register(registry, "model_features", "Features of the model"),
            backfilled: register(
                registry,
                "backfilled_rows",
                "Rows whose scores were written more than five minutes after their timestamp",
            ),
            interleaved: register(
                registry,
                "interleaved_groups",
                "Groups whose rows alternate between two phases of one interval, as from two Prometheus replicas",
            ),
            window_bytes: register(
                registry,
                "window_bytes",
                "Size of the samples, scores and labels in memory",
            ),
            series: register(registry, "index_series", "Series in the index, watched or ignored"),
            pending: register(
                registry,
                "remote_write_groups_pending",
                "Groups with scores that an endpoint has not acknowledged",
            ),
        }
    }

    /// Counts a row.
    pub fn count_row(&self, detector: &str, state: RowState) {
        self.rows.get_or_create(&pair(detector, "state", state.as_str())).inc();
        self.row_totals[state as usize].inc();
    }

    /// Counts a complete row with a value that is NaN or infinite.
    pub fn count_not_finite(&self, detector: &str) {
        self.rows.get_or_create(&pair(detector, "state", "not_finite")).inc();
    }

    /// Rows since the start by state.
    pub fn row_counts(&self) -> Vec<(&'static str, u64)> {
        RowState::ALL.map(|state| (state.as_str(), self.row_totals[state as usize].get())).into()
    }

    /// Counts a correction of a counter.
    pub fn count_correction(&self, detector: &str, reason: &'static str) {
        self.corrections.get_or_create(&pair(detector, "reason", reason)).inc();
    }

    /// Counts a training.
    pub fn count_training(&self, detector: &str, outcome: &'static str) {
        self.trainings.get_or_create(&pair(detector, "outcome", outcome)).inc();
    }

    /// Sets the timestamp of a group's newest score.
    pub fn set_newest_scored(&self, group: &Group) {
        if let Some(newest_ms) = group.newest_scored_ms() {
            self.newest_scored.get_or_create(&labels(group)).set(newest_ms as f64 / 1000.0);
        }
    }

    /// Counts features of which a label changed. Senders choose the names of labels: beyond a number of names, others
    /// share the empty one.
    pub fn count_label_changes(
        &mut self,
        detector: &str,
        label: &str,
        outcome: &'static str,
        features: usize,
    ) {
        let has_room = self.changed_labels.len() < MAX_CHANGED_LABELS;
        let is_counted = self.changed_labels.contains(label) || has_room;
        let label = if is_counted { label } else { "" };
        self.changed_labels.insert(label.to_string());
        let labels = [
            ("detector", detector.to_string()),
            ("label", label.to_string()),
            ("outcome", outcome.to_string()),
        ];
        self.label_changes.get_or_create(&labels).inc_by(features as u64);
    }

    /// Counts a model that a group rejected.
    pub fn count_rejected_model(&self, detector: &str) {
        self.models_rejected.get_or_create(&[("detector", detector.to_string())]).inc();
    }

    /// Sets the metrics of a group's models. The champion has the given alias.
    pub fn set_models(&self, group: &Group, champion_alias: &str) {
        let labels = labels(group);
        let mut info_series = Vec::new();
        for (role, alias) in
            [(ModelRole::Champion, champion_alias), (ModelRole::Challenger, registry::CHALLENGER)]
        {
            let Some(model) = group.model_info(role) else { continue };
            let mut info = labels.clone();
            let version = model.version().map(|version| version.to_string()).unwrap_or_default();
            for (name, value) in [
                ("model", model.name.clone()),
                ("version", version),
                ("alias", if model.is_pooled() { POOLED } else { alias }.to_string()),
                ("kind", model.kind.to_string()),
                ("origin", model.card.origin.clone()),
            ] {
                // A group's own label of that name stays what it is.
                if !labels.iter().any(|(own, _)| own == name) {
                    info.push((name.to_string(), value));
                }
            }
            info_series.push(info);
        }
        self.set_model_info(&labels, info_series);
        let Some(model) = group.model_info(ModelRole::Champion) else { return };
        let seconds = |ms: i64| ms as f64 / 1000.0;
        self.model_created.get_or_create(&labels).set(seconds(model.card.created_ms));
        self.model_features.get_or_create(&labels).set(model.n_features as i64);
        self.model_drift.remove(&labels);
        match &model.card.training_range {
            Some(history) => {
                self.model_timestamp.get_or_create(&labels).set(seconds(history.to_ms));
                self.model_rows.get_or_create(&labels).set(history.n_rows as i64);
            }
            None => {
                self.model_timestamp.remove(&labels);
                self.model_rows.remove(&labels);
            }
        }
    }

    fn set_model_info(&self, group: &GroupLabels, info_series: Vec<GroupLabels>) {
        let mut all = self.model_info_series.lock().unwrap_or_else(PoisonError::into_inner);
        for old in all.remove(group).unwrap_or_default() {
            if !info_series.contains(&old) {
                self.model_info.remove(&old);
            }
        }
        for info in &info_series {
            self.model_info.get_or_create(info).set(1);
        }
        if !info_series.is_empty() {
            all.insert(group.clone(), info_series);
        }
    }

    /// Shows how a group is.
    pub fn set_group(&self, group: &Group, now: Instant) {
        let labels = labels(group);
        self.progress.get_or_create(&labels).set(group.progress(now));
        self.missing.get_or_create(&labels).set(group.n_missing_features() as i64);
        self.maintenance.get_or_create(&labels).set(i64::from(group.is_in_maintenance()));
        match group.budget_correction() {
            Some(correction) => {
                self.budget_expected.get_or_create(&labels).set(group.detector.alerts.budget);
                self.budget_observed.get_or_create(&labels).set(group.incidents_per_day());
                self.budget_correction.get_or_create(&labels).set(correction);
            }
            None => self.remove_alerts(&labels),
        }
    }

    /// Sets the divergence of a group's decisions from those of training.
    pub fn set_drift(&self, group: &Group) {
        if let Some(divergence) = group.drift() {
            self.model_drift.get_or_create(&labels(group)).set(divergence);
        }
    }

    /// Removes a group's metrics.
    pub fn remove_group(&self, group: &Group) {
        let labels = labels(group);
        self.progress.remove(&labels);
        self.missing.remove(&labels);
        self.maintenance.remove(&labels);
        self.newest_scored.remove(&labels);
        self.model_timestamp.remove(&labels);
        self.model_created.remove(&labels);
        self.model_rows.remove(&labels);
        self.model_features.remove(&labels);
        self.model_drift.remove(&labels);
        self.remove_alerts(&labels);
        self.set_model_info(&labels, Vec::new());
    }

    fn remove_alerts(&self, labels: &GroupLabels) {
        self.budget_expected.remove(labels);
        self.budget_observed.remove(labels);
        self.budget_correction.remove(labels);
    }

    /// Counts rows whose scores were written late.
    pub fn count_backfilled(&self, detector: &str, rows: usize) {
        self.backfilled.get_or_create(&[("detector", detector.to_string())]).inc_by(rows as u64);
    }

    /// Sets the number of groups that two senders seem to send.
    pub fn set_interleaved(&self, groups: usize) {
        self.interleaved.set(groups as i64);
    }

    /// Sets the size of the windows.
    pub fn set_window_bytes(&self, bytes: usize) {
        self.window_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Sets the number of series in the index.
    pub fn set_series(&self, series: usize) {
        self.series.set(series as i64);
    }

    /// Sets the number of groups with scores that wait to be written.
    pub fn set_pending_groups(&self, groups: usize) {
        self.pending.set(groups as i64);
    }
}

fn pair(detector: &str, name: &'static str, value: &'static str) -> Pair {
    [("detector", detector.to_string().into()), (name, value.into())]
}

fn labels(group: &Group) -> GroupLabels {
    metric_labels(&group.detector.name, &group.labels)
}
