//! Reads what training needs from Prometheus: past samples, fired alerts, written scores and incidents.

use super::coverage::spans;
use super::exclusion::Exclusion;
use crate::detect::PastIncident;
use crate::detector::Detector;
use crate::history::{Error, HistoryClient, SeriesSamples};
use crate::prom::labels::METRIC_NAME;
use crate::prom::matcher::Matcher;
use crate::prom::{Labels, Selector};

/// The matchers that select the series of a group.
pub fn group_matchers(detector: &Detector, labels: &Labels) -> Vec<Matcher> {
    detector.by.iter().map(|name| Matcher::equal(name, labels.get(name))).collect()
}

/// Reads all series of a detector. `group` holds the matchers of one group; without matchers, all groups are read.
///
/// # Errors
/// Those of the client.
pub async fn read_samples(
    client: &HistoryClient,
    detector: &Detector,
    group: &[Matcher],
    range: (i64, i64),
    mut on_series: impl FnMut(Vec<SeriesSamples>),
) -> Result<(), Error> {
    for selector in &detector.matchers {
        client.read(selector, group, range, &mut on_series).await?;
    }
    Ok(())
}

/// A time in which an alert fired.
#[derive(Clone, Debug, PartialEq)]
pub struct FiringAlert {
    /// Labels of the alert.
    pub labels: Labels,
    /// First millisecond.
    pub from_ms: i64,
    /// Last millisecond.
    pub to_ms: i64,
}

impl FiringAlert {
    /// True if the alert has no label with another value than the group: an alert on another instance does not concern it.
    pub fn concerns(&self, group: &Labels) -> bool {
        group.iter().all(|(name, value)| ["", value].contains(&self.labels.get(name)))
    }
}

/// The times in which these alerts fired and concern a group, ascending.
///
/// # Errors
/// Those of the client.
pub async fn read_firing_alerts_of(
    client: &HistoryClient,
    alerts: &[String],
    group: &Labels,
    range: (i64, i64),
) -> Result<Vec<Exclusion>, Error> {
    let exclusion = |alert: FiringAlert| Exclusion {
        from_ms: alert.from_ms,
        to_ms: alert.to_ms,
        reason: format!("{} fired", alert.labels.get("alertname")),
    };
    let firing = read_firing_alerts(client, alerts, range).await?.into_iter();
    let mut exclusions: Vec<Exclusion> =
        firing.filter(|alert| alert.concerns(group)).map(exclusion).collect();
    exclusions.sort_by_key(|exclusion| (exclusion.from_ms, exclusion.to_ms));
    Ok(exclusions)
}

/// The times in which these alerts fired.
///
/// # Errors
/// Those of the client.
pub async fn read_firing_alerts(
    client: &HistoryClient,
    alerts: &[String],
    range: (i64, i64),
) -> Result<Vec<FiringAlert>, Error> {
    let mut firing = Vec::new();
    if alerts.is_empty() {
        return Ok(firing);
    }
    let selector = Selector::parse(r#"ALERTS{alertstate="firing"}"#).expect("a valid selector");
    let is_relevant = |labels: &Labels| alerts.iter().any(|name| name == labels.get("alertname"));
    client
        .read(&selector, &[], range, |series| {
            for (labels, samples) in series.iter().filter(|(labels, _)| is_relevant(labels)) {
                let fresh = samples.iter().filter(|sample| !sample.is_stale());
                let times: Vec<i64> = fresh.map(|sample| sample.timestamp_ms).collect();
                let alert = |(from_ms, to_ms)| FiringAlert { labels: labels.clone(), from_ms, to_ms };
                firing.extend(spans(&times).map(alert));
            }
        })
        .await?;
    Ok(firing)
}

/// The incidents that a group has in Prometheus, ascending.
///
/// # Errors
/// Those of the client.
pub async fn read_incidents(
    client: &HistoryClient,
    detector: &Detector,
    group: &Labels,
    range: (i64, i64),
) -> Result<Vec<PastIncident>, Error> {
    let selector = Selector::parse("anomaly_incident").expect("a valid selector");
    let outputs = GroupOutputs { detector, group };
    let mut matchers = outputs.matchers();
    matchers.push(Matcher::equal("detector", &detector.name));
    let mut times: Vec<i64> = Vec::new();
    client
        .read(&selector, &matchers, range, |series| {
            let samples =
                series.iter().filter(|(labels, _)| outputs.contains(labels)).flat_map(|(_, samples)| samples);
            times.extend(samples.filter(|sample| sample.value == 1.0).map(|sample| sample.timestamp_ms));
        })
        .await?;
    times.sort_unstable();
    Ok(spans(&times).map(|(first_ms, last_ms)| PastIncident::new(first_ms, last_ms)).collect())
}

/// Timestamp in milliseconds of the newest decision of a group in Prometheus; `None` without decisions.
///
/// # Errors
/// Those of the client.
pub async fn read_newest_score(
    client: &HistoryClient,
    detector: &Detector,
    group: &Labels,
    range: (i64, i64),
) -> Result<Option<i64>, Error> {
    let name = detector.decision_metric();
    let Ok(selector) = Selector::parse(&name) else { return Ok(None) };
    let outputs = GroupOutputs { detector, group };
    let mut newest_ms = None;
    client
        .read(&selector, &outputs.matchers(), range, |series| {
            let decisions = series
                .iter()
                .filter(|(labels, _)| labels.get(METRIC_NAME) == name && outputs.contains(labels));
            let newest = decisions.filter_map(|(_, samples)| Some(samples.last()?.timestamp_ms)).max();
            newest_ms = newest_ms.max(newest);
        })
        .await?;
    Ok(newest_ms)
}

/// The output series of a group. They carry the labels of `by`.
struct GroupOutputs<'a> {
    detector: &'a Detector,
    group: &'a Labels,
}

impl GroupOutputs<'_> {
    /// Matchers that select at least these series. Prometheus treats `=` on one of its external labels as a match of the
    /// series without the label, so the empty value is selected too.
    fn matchers(&self) -> Vec<Matcher> {
        let output_matcher = |name: &String| match (name.as_str(), self.group.get(name)) {
            // Every target has these labels itself. A matcher for one value uses the index.
            ("job" | "instance", value) | (_, value @ "") => Matcher::equal(name, value),
            (_, value) => Matcher::one_of(name, ["", value]),
        };
        self.detector.by.iter().map(output_matcher).collect()
    }

    /// True for the labels of one of these series.
    fn contains(&self, labels: &Labels) -> bool {
        self.detector.by.iter().all(|name| labels.get(name) == self.group.get(name))
    }
}
