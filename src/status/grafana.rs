//! Links to a Grafana dashboard.

use super::group::GroupSummary;
use crate::http::{Url, percent_encode};
use crate::prom::METRIC_NAME;

/// The dashboard with the variables `detector` and those of the group's labels, in a range of time as Grafana writes it:
/// milliseconds since 1970, or `now`.
pub fn link(dashboard: &Url, group: &GroupSummary, from_ms: i64, to: &str) -> String {
    let dashboard = dashboard.expose();
    let separator = if dashboard.contains('?') { '&' } else { '?' };
    let labels = group.labels.iter().filter(|(name, _)| *name != METRIC_NAME);
    let variables = [("detector", group.detector.as_str())].into_iter().chain(labels);
    let variable =
        |(name, value): (&str, &str)| format!("var-{}={}&", percent_encode(name), percent_encode(value));
    let variables: String = variables.map(variable).collect();
    format!("{dashboard}{separator}{variables}from={from_ms}&to={to}")
}
