//! The page of the output series and the metrics.
//!
//! Names, types and help are those of the registry that the sidecar serves. The registry does not know the labels of a
//! metric before its first sample: they are listed here, and tests compare them with pages of running sidecars.

use super::write_table;
use crate::pipeline;
use crate::remote_write::message::{DECISION_HELP, OUTPUT_METADATA};
use crate::telemetry::PageFormat;
use std::fmt;

const INTRODUCTION: &str = "# Output series and metrics

This page is generated: `promforest docs metrics`.

";

const OUTPUT_INTRODUCTION: &str = "## Output series

Written by remote write, all of them gauges without a unit, except values and ranges, which have the unit of their feature. A
challenger's score and decision have the label `model=\"challenger\"` too.

";

const METRICS_INTRODUCTION: &str = "## Metrics

Served at `/metrics`, in the text format or, if accepted, as OpenMetrics. Metrics of a group have the label `detector` and the
labels of `by`, so the scrape needs `honor_labels: true`; `job` and `instance` are empty where `by` lacks them.

";

/// Labels of a group.
const GROUP: &str = "`detector`, labels of `by`";

/// Labels of the metrics that have some, without the prefix of their names.
const LABELS: [(&str, &str); 43] = [
    ("build_info", "`version`, `revision`, `rustversion`"),
    ("http_requests_denied_total", "`reason`"),
    ("remote_write_samples_failed_total", "`reason`"),
    ("score_latency_seconds", "`le`"),
    ("history_slices_total", "`outcome`"),
    ("history_skipped_total", "`reason`"),
    ("remote_read_server_requests_total", "`code`"),
    ("notebook_requests_total", "`code`"),
    ("ingest_samples_dropped_total", "`reason`"),
    ("ingest_rejected_total", "`reason`"),
    ("ingest_requests_total", "`code`, `reason`, `version`"),
    ("tenant_samples_dropped_total", "`tenant`"),
    ("ingest_ignored_total", "`kind`"),
    ("kafka_lag_records", "`partition`"),
    ("kafka_commits_total", "`outcome`"),
    ("kafka_rebalances_total", "`kind`"),
    ("rows_total", "`detector`, `state`"),
    ("counter_corrections_total", "`detector`, `reason`"),
    ("training_runs_total", "`detector`, `outcome`"),
    ("newest_scored_timestamp_seconds", GROUP),
    ("training_progress_ratio", GROUP),
    ("missing_features", GROUP),
    ("model_timestamp_seconds", GROUP),
    ("model_info", "`detector`, labels of `by`, `model`, `version`, `alias`, `kind`, `origin`"),
    ("model_created_timestamp_seconds", GROUP),
    ("model_drift_kl", GROUP),
    ("alert_budget_expected_per_day", GROUP),
    ("alert_budget_observed_per_day", GROUP),
    ("alert_budget_correction", GROUP),
    ("maintenance_active", GROUP),
    ("feature_label_changes_total", "`detector`, `label`, `outcome`"),
    ("models_rejected_total", "`detector`"),
    ("model_training_rows", GROUP),
    ("model_features", GROUP),
    ("backfilled_rows_total", "`detector`"),
    ("model_pinned", GROUP),
    ("snapshot_failures_total", "`operation`"),
    ("snapshot_groups_total", "`outcome`"),
    ("gaps_detected_total", "`detector`"),
    ("gap_fills_total", "`detector`, `outcome`"),
    ("gap_fill_timeouts_total", "`detector`"),
    ("gap_fill_samples_total", "`detector`"),
    ("audit_series_total", "`result`"),
];

/// Units by the ends of names, without the suffixes of counters.
const UNITS: [(&str, &str); 6] = [
    ("_timestamp_seconds", "Unix time in s"),
    ("_seconds", "s"),
    ("_bytes", "bytes"),
    ("_ratio", "ratio"),
    ("_per_day", "per day"),
    ("_kl", "nats"),
];

/// Writes the page.
pub fn write(out: &mut String) -> fmt::Result {
    out.push_str(INTRODUCTION);
    out.push_str(OUTPUT_INTRODUCTION);
    let decision = ("<detector>_anomaly", DECISION_HELP);
    let outputs = OUTPUT_METADATA.iter().chain([&decision]);
    let row = |(name, help): &(&str, &str)| [format!("`{name}`"), output_labels(name).into(), (*help).into()];
    write_table(out, ["series", "labels", "meaning"], outputs.map(row))?;
    out.push_str(METRICS_INTRODUCTION);
    let page = PageFormat::Text.encode(&pipeline::metrics_registry())?;
    write_table(out, ["metric", "type", "unit", "labels", "meaning"], metric_rows(&page))
}

fn output_labels(name: &str) -> &'static str {
    match name {
        "<detector>_anomaly" => "labels of `by`",
        "anomaly_job_incident" => {
            "`detector`, labels of `job_by`; `promforest_shard` with `--shard`, or with `kafka.group_instance_id`"
        }
        "anomaly_contribution" => {
            "`detector`, labels of `by`, `metric`, the feature's labels, `reason`: `unusual_for_this_hour`, `jumped`, \
             `unsteady`, `of_unusual_packet_size`"
        }
        "anomaly_score" | "anomaly_threshold" | "anomaly_incident" => GROUP,
        _ => "`detector`, labels of `by`, `metric`, the feature's labels",
    }
}

/// A row for each metric of a page in the text format.
fn metric_rows(page: &str) -> impl Iterator<Item = [String; 5]> {
    let mut helps = page.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(move |(name, kind)| {
        let help = helps.next().map_or("", |(_, help)| help.trim_end_matches('.'));
        let own = name.strip_prefix("promforest_").unwrap_or(name);
        let labels = LABELS.iter().find(|(metric, _)| *metric == own).map_or("", |(_, labels)| labels);
        let stem = name.strip_suffix("_total").unwrap_or(name);
        let unit = UNITS.iter().find(|(end, _)| stem.ends_with(end)).map_or("", |(_, unit)| unit);
        [format!("`{name}`"), kind.into(), unit.into(), labels.into(), help.into()]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_with_labels_is_in_the_registry() {
        let page = PageFormat::Text.encode(&pipeline::metrics_registry()).expect("it encodes");
        for (name, _) in LABELS {
            assert!(page.contains(&format!("# TYPE promforest_{name} ")), "{name}");
        }
    }

    /// A new registry has a sample of each metric without labels, and of no other.
    #[test]
    fn every_metric_of_the_registry_that_has_labels_is_listed() {
        let page = PageFormat::Text.encode(&pipeline::metrics_registry()).expect("it encodes");
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        for (name, _) in types {
            let own = name.strip_prefix("promforest_").unwrap_or(name);
            let is_listed = LABELS.iter().any(|(metric, _)| *metric == own);
            let has_sample = page.lines().any(|line| line.starts_with(&format!("{name} ")));
            assert_ne!(is_listed, has_sample, "{name}");
        }
    }
}
