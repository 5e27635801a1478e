//! The series that each detector selects: their labels, history and scrape interval.

use crate::config::Config;
use crate::detector::Detector;
use crate::doctor::facts::{Facts, Selected, Server};
use crate::doctor::finding::Finding;
use crate::doctor::known::Known;
use crate::doctor::names;
use crate::doctor::prometheus_config::PrometheusConfig;
use crate::features::Transform;
use crate::prom::{Labels, METRIC_NAME, duration};
use crate::time::{DAY_MS, format_minute};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Values of a label in a day, as a multiple of those at one time, above which it counts as unstable.
const MAX_TURNOVER: usize = 2;

/// The findings of every detector on one server.
pub fn all(config: &Config, facts: &Facts, server: &Server) -> Vec<Finding> {
    let detectors = config.detectors.iter().zip(&server.selected);
    detectors.flat_map(|(detector, selected)| of_detector(detector, selected, server, facts.now_ms)).collect()
}

fn of_detector(
    detector: &Detector,
    selected: &Known<Selected>,
    server: &Server,
    now_ms: i64,
) -> Vec<Finding> {
    let name = &detector.name;
    let selected = match selected {
        Ok(selected) => selected,
        Err(reason) => return vec![Finding::not_checked("watched-series", format!("{name}: {reason}"))],
    };
    if selected.recent.is_empty() {
        return vec![nothing_watched(detector, selected)];
    }
    let n_series = selected.recent.len();
    let mut findings = vec![Finding::ok("watched-series", format!("{name} watches {n_series} series"))];
    findings.push(unstable_labels(detector, selected));
    findings.push(history(detector, selected, now_ms));
    match &server.config {
        Ok(config) => findings
            .extend([group_labels(detector, selected, config), rate_range(detector, selected, config)]),
        Err(reason) => findings.extend([
            Finding::not_checked("group-labels", reason),
            Finding::not_checked("rate-range", reason),
        ]),
    }
    findings
}

fn nothing_watched(detector: &Detector, selected: &Selected) -> Finding {
    let name = &detector.name;
    let nearest =
        detector.matchers.iter().find_map(|matcher| names::nearest(matcher, &selected.metric_names));
    let remedy = match nearest {
        Some(nearest) => format!("correct `match`; the nearest metric name there is {nearest}"),
        None => "correct `match`, or scrape the exporter of these metrics".into(),
    };
    let matchers: Vec<String> = detector.matchers.iter().map(ToString::to_string).collect();
    Finding::error("watched-series", format!("{name} watches nothing: {}", matchers.join(", ")), remedy)
}

fn unstable_labels(detector: &Detector, selected: &Selected) -> Finding {
    const CHECK: &str = "unstable-labels";
    let (now, day) = (values(detector, &selected.recent), values(detector, &selected.last_day));
    let of = |label: &str| now.get(label).map_or(0, BTreeSet::len).max(1);
    let unstable = day.iter().filter(|(label, values)| values.len() > MAX_TURNOVER * of(label));
    match unstable.max_by_key(|(_, values)| values.len()) {
        Some((label, values)) => Finding::warning(
            CHECK,
            format!(
                "{}: label {label} had {} values in a day, and has {} now",
                detector.name,
                values.len(),
                of(label)
            ),
            format!("add `{label}` to `ignore` of the detector"),
        ),
        None => Finding::ok(CHECK, format!("{}: the labels of its features are stable", detector.name)),
    }
}

/// The values of each label that identifies a feature.
fn values<'l>(detector: &Detector, series: &'l [Labels]) -> BTreeMap<&'l str, BTreeSet<&'l str>> {
    let mut values: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (label, value) in series.iter().flat_map(Labels::iter) {
        let is_group = detector.by.iter().any(|name| name == label);
        if label != METRIC_NAME && !is_group && !detector.is_ignored(label) {
            values.entry(label).or_default().insert(value);
        }
    }
    values
}

fn group_labels(detector: &Detector, selected: &Selected, config: &PrometheusConfig) -> Finding {
    const CHECK: &str = "group-labels";
    let name = &detector.name;
    let has = |label: &str| {
        config.external_labels.contains_key(label)
            || selected.recent.iter().any(|series| !series.get(label).is_empty())
    };
    if let Some(label) = detector.by.iter().find(|label| !has(label)) {
        return Finding::warning(
            CHECK,
            format!("{name}: no watched series has the label {label} of `by`"),
            format!("remove `{label}` from `by`, or add it to external_labels"),
        );
    }
    let is_named = |label: &str| detector.by.iter().any(|name| name == label) || detector.is_ignored(label);
    match config.external_labels.keys().find(|label| !is_named(label)) {
        Some(label) => Finding::warning(
            CHECK,
            format!("{name}: the external label {label} is in neither `by` nor `ignore`"),
            format!("add `{label}` to `by`, for groups of their own, or to `ignore`"),
        ),
        None => Finding::ok(CHECK, format!("{name}: groups by {}", detector.by.join(", "))),
    }
}

/// A day of history is a matter of time, unless the server keeps less.
fn history(detector: &Detector, selected: &Selected, now_ms: i64) -> Finding {
    const CHECK: &str = "history";
    let name = &detector.name;
    if selected.has_day_of_history {
        return Finding::ok(CHECK, format!("{name}: there is a day of history"));
    }
    let complete_ms = selected.history_since_ms.unwrap_or(now_ms) + DAY_MS;
    Finding::waiting(
        CHECK,
        format!(
            "{name}: a day of history is complete at {}; until then times of day are not known, and thresholds are higher",
            format_minute(complete_ms)
        ),
    )
}

fn rate_range(detector: &Detector, selected: &Selected, config: &PrometheusConfig) -> Finding {
    const CHECK: &str = "rate-range";
    let name = &detector.name;
    let Transform::Rate { range_ms, .. } = detector.transform else {
        return Finding::ok(CHECK, format!("{name}: values need no range"));
    };
    let of_job = |series: &Labels| {
        let job = series.get("job").to_string();
        Some((config.interval(&job)?, job))
    };
    let Some((interval, job)) = selected.recent.iter().filter_map(of_job).max() else {
        return Finding::not_checked(CHECK, format!("{name}: the scrape interval of its jobs is not known"));
    };
    let range = Duration::from_millis(range_ms.unsigned_abs());
    let shown = (duration::Display(range), duration::Display(interval));
    if range < interval * 2 {
        return Finding::error(
            CHECK,
            format!(
                "{name}: {} needs two samples, and job {job} is scraped every {}",
                detector.transform, shown.1
            ),
            format!("set transform: rate({})", duration::Display(interval * 4)),
        );
    }
    Finding::ok(CHECK, format!("{name}: a range of {} holds two scrapes, every {}", shown.0, shown.1))
}
