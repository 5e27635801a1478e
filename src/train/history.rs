//! What training reads of Prometheus: samples of the past, alerts that fired, scores already written.

use super::training_set::Exclusion;
use crate::detector::Detector;
use crate::prom::labels::METRIC_NAME;
use crate::prom::matcher::Matcher;
use crate::prom::{Labels, Selector};
use crate::remote_read::{Error, ReadClient, SeriesSamples};

/// Two samples of a firing alert that lie further apart are two alerts: Prometheus' look-back.
const ALERT_GAP_MS: i64 = 300_000;

/// Why the time of an incident is excluded.
const INCIDENT: &str = "incident detected by this detector";

/// The matchers that select a group.
pub fn group_matchers(detector: &Detector, labels: &Labels) -> Vec<Matcher> {
    detector.by.iter().map(|name| Matcher::equal(name, labels.get(name))).collect()
}

/// The matchers that select what was written for a group, among others. It has the labels of `by` itself; and to
/// Prometheus `=` means, of one of its external labels, the series that have none.
fn output_matchers(detector: &Detector, group: &Labels) -> Vec<Matcher> {
    let output_matcher = |name: &String| match (name.as_str(), group.get(name)) {
        // These are every target's own: no need for a look at all other values.
        ("job" | "instance", value) | (_, value @ "") => Matcher::equal(name, value),
        (_, value) => Matcher::one_of(name, ["", value]),
    };
    detector.by.iter().map(output_matcher).collect()
}

/// Is it written for this group?
fn is_output_of(detector: &Detector, group: &Labels, labels: &Labels) -> bool {
    detector.by.iter().all(|name| labels.get(name) == group.get(name))
}

/// Every series that the detector watches, of one group or, without matchers, of all.
///
/// # Errors
/// Those of the source.
pub async fn read_samples(
    source: &ReadClient,
    detector: &Detector,
    group: &[Matcher],
    range: (i64, i64),
    mut each: impl FnMut(Vec<SeriesSamples>),
) -> Result<(), Error> {
    for selector in &detector.matchers {
        source.read(selector, group, range, &mut each).await?;
    }
    Ok(())
}

/// When these alerts fired, of the group itself or of nothing in particular: an alert on another
/// instance says nothing of this one.
///
/// # Errors
/// Those of the source.
pub async fn read_firing_alerts(
    source: &ReadClient,
    alerts: &[String],
    group: &Labels,
    range: (i64, i64),
) -> Result<Vec<Exclusion>, Error> {
    let mut exclusions = Vec::new();
    if alerts.is_empty() {
        return Ok(exclusions);
    }
    let selector = Selector::parse(r#"ALERTS{alertstate="firing"}"#).expect("a selector");
    source
        .read(&selector, &[], range, |series| {
            for (labels, samples) in series {
                let alert = labels.get("alertname");
                let is_other_target =
                    group.iter().any(|(name, value)| !["", value].contains(&labels.get(name)));
                if is_other_target || !alerts.iter().any(|name| name == alert) {
                    continue;
                }
                let times: Vec<i64> = samples
                    .iter()
                    .filter(|sample| !sample.is_stale())
                    .map(|sample| sample.timestamp_ms)
                    .collect();
                for fired in times.chunk_by(|a, b| b - a <= ALERT_GAP_MS) {
                    let (from_ms, to_ms) = (fired[0], fired[fired.len() - 1]);
                    let reason = format!("{alert} fired");
                    exclusions.push(Exclusion { from_ms, to_ms, reason, is_detected: false });
                }
            }
        })
        .await?;
    exclusions.sort_by_key(|exclusion| (exclusion.from_ms, exclusion.to_ms));
    Ok(exclusions)
}

/// When this detector itself saw an incident in the group.
///
/// # Errors
/// Those of the source.
pub async fn read_incidents(
    source: &ReadClient,
    detector: &Detector,
    group: &Labels,
    range: (i64, i64),
) -> Result<Vec<Exclusion>, Error> {
    let selector = Selector::parse("anomaly_incident").expect("a selector");
    let mut matchers = output_matchers(detector, group);
    matchers.push(Matcher::equal("detector", &detector.name));
    let mut times: Vec<i64> = Vec::new();
    source
        .read(&selector, &matchers, range, |series| {
            let of_this_group = series.iter().filter(|(labels, _)| is_output_of(detector, group, labels));
            let samples = of_this_group.flat_map(|(_, samples)| samples);
            times.extend(samples.filter(|sample| sample.value == 1.0).map(|sample| sample.timestamp_ms));
        })
        .await?;
    times.sort_unstable();
    Ok(incidents_from_times(&times))
}

/// The incidents that rows at these times, ascending, were part of.
pub fn incidents_from_times(times: &[i64]) -> Vec<Exclusion> {
    let exclusion = |incident: &[i64]| Exclusion {
        from_ms: incident[0],
        to_ms: incident[incident.len() - 1],
        reason: INCIDENT.into(),
        is_detected: true,
    };
    times.chunk_by(|a, b| b - a <= ALERT_GAP_MS).map(exclusion).collect()
}

/// Timestamp of the newest decision of a group that Prometheus holds.
///
/// # Errors
/// Those of the source.
pub async fn read_newest_score(
    source: &ReadClient,
    detector: &Detector,
    group: &Labels,
    range: (i64, i64),
) -> Result<Option<i64>, Error> {
    let name = detector.decision_metric();
    let Ok(selector) = Selector::parse(&name) else { return Ok(None) };
    let mut newest = None;
    source
        .read(&selector, &output_matchers(detector, group), range, |series| {
            let samples = series.iter().filter(|(labels, _)| {
                labels.get(METRIC_NAME) == name && is_output_of(detector, group, labels)
            });
            newest = newest.max(samples.filter_map(|(_, samples)| Some(samples.last()?.timestamp_ms)).max());
        })
        .await?;
    Ok(newest)
}
