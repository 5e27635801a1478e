//! The JSON API, in the envelope of Prometheus' API: `status`, and `data` or `error`.

use super::data_path::DataPath;
use super::fleet::{Fleet, FleetPage};
use super::group::{DeviatingFeature, GroupSummary, OpenIncident, Scoring};
use super::server::Sidecar;
use crate::time::format_timestamp;
use serde_json::{Value, json};

/// Incidents in one response.
const MAX_INCIDENTS: usize = 1000;

/// The envelope of a result.
pub fn success(data: &Value) -> String {
    json!({"status": "success", "data": data}).to_string()
}

/// The envelope of an error; the type is one of Prometheus'.
pub fn error(error_type: &str, message: &str) -> String {
    json!({"status": "error", "errorType": error_type, "error": message}).to_string()
}

/// One page of groups.
pub fn groups(page: &FleetPage<'_>) -> Value {
    json!({
        "groups": page.groups.iter().map(|group| summary(group)).collect::<Vec<_>>(),
        "total": page.n_groups,
        "page": page.page,
        "pages": page.n_pages,
    })
}

/// The open incidents, by descending score.
pub fn incidents(fleet: &Fleet) -> Value {
    let open = fleet.incidents();
    let listed = open.iter().take(MAX_INCIDENTS).map(|(group, open)| {
        let mut value = incident(open);
        value["detector"] = json!(group.detector);
        value["labels"] = labels(group);
        value["page"] = json!(group.path());
        value
    });
    json!({"incidents": listed.collect::<Vec<_>>(), "total": open.len()})
}

/// The state of the sidecar.
pub fn sidecar(sidecar: &Sidecar, fleet: &Fleet, data_path: &DataPath) -> Value {
    let stages = data_path.stages.iter().map(|stage| {
        let dropped: serde_json::Map<String, Value> =
            stage.dropped.iter().map(|(reason, count)| ((*reason).to_string(), json!(count))).collect();
        json!({"stage": stage.name, "unit": stage.unit, "count": stage.count, "dropped": dropped})
    });
    json!({
        "version": sidecar.version,
        "shard": sidecar.shard,
        "startTime": format_timestamp(sidecar.started_ms),
        "ready": sidecar.is_ready,
        "readiness": sidecar.readiness,
        "groups": fleet.groups().len(),
        "groupsScored": fleet.n_scored(),
        "openIncidents": fleet.incidents().len(),
        "newestScore": fleet.newest_scored_ms().map(format_timestamp),
        "scoreLatencyP99Seconds": sidecar.p99_seconds,
        "modelRegistry": sidecar.registry,
        "endpoints": sidecar.endpoints,
        "externalUrl": sidecar.external_url,
        "dataPath": stages.collect::<Vec<_>>(),
    })
}

/// A group in one line.
pub fn summary(group: &GroupSummary) -> Value {
    let (state, reason, worst, threshold) = match &group.scoring {
        Scoring::Scored { worst, threshold } => ("scored", None, Some(worst), Some(threshold)),
        Scoring::NotScored(reason) => (reason.as_str(), Some(reason.to_string()), None, None),
    };
    json!({
        "detector": group.detector,
        "labels": labels(group),
        "page": group.path(),
        "state": state,
        "reason": reason,
        "worstScore": worst,
        "threshold": threshold,
        "newestScore": group.newest_scored_ms.map(format_timestamp),
        "model": group.model.as_ref().map(|(name, _)| name),
        "version": group.model.as_ref().and_then(|(_, version)| *version),
        "maintenance": group.is_in_maintenance,
        "incident": group.incident.as_ref().map(incident),
        "incidentsLastDay": group.last_day.len(),
        "incidentsPerDay": group.incidents_per_day,
        "budgetPerDay": group.budget,
    })
}

fn labels(group: &GroupSummary) -> Value {
    group.labels.iter().map(|(name, value)| (name.to_string(), json!(value))).collect()
}

fn incident(incident: &OpenIncident) -> Value {
    json!({
        "since": format_timestamp(incident.since_ms),
        "score": incident.score,
        "threshold": incident.threshold,
        "peak": incident.peak,
        "feedback": incident.feedback,
        "features": incident.features.iter().map(feature).collect::<Vec<_>>(),
    })
}

fn feature(feature: &DeviatingFeature) -> Value {
    let [lower, expected, upper] = feature.expected_range;
    json!({
        "feature": feature.name,
        "reason": feature.reason.as_str(),
        "share": feature.share,
        "value": feature.value,
        "expected": expected,
        "expectedLower": lower,
        "expectedUpper": upper,
    })
}
