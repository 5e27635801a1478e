//! Reads what training needs from Prometheus: past samples, fired alerts, written scores and incidents.

use super::coverage::{LOOK_BACK_MS, spans};
use crate::detect::{MAX_TRAINING_VALUES, PastIncident};
use crate::detector::Detector;
use crate::history::{Error, HistoryClient, Pace, SeriesSamples};
use crate::prom::labels::METRIC_NAME;
use crate::prom::matcher::Matcher;
use crate::prom::{Labels, Sample, Selector};
use crate::tenant::Tenant;
use std::collections::BTreeMap;

/// Most samples of one read into memory: those of a training with the most values, of counters and of series that are gone,
/// at two sources.
const READ_SAMPLE_LIMIT: usize = 4 * MAX_TRAINING_VALUES;

/// The samples of a read so far.
#[derive(Default)]
pub struct ReadSize {
    samples: usize,
}

impl ReadSize {
    /// Adds the samples of a slice.
    ///
    /// # Errors
    /// [`Error::ReadTooLarge`] above the limit of a read.
    pub fn add(&mut self, series: &[SeriesSamples]) -> Result<(), Error> {
        self.samples += series.iter().map(|(_, samples)| samples.len()).sum::<usize>();
        match self.samples {
            ..=READ_SAMPLE_LIMIT => Ok(()),
            samples => Err(Error::ReadTooLarge { samples, limit: READ_SAMPLE_LIMIT }),
        }
    }
}

/// The matchers that select the series of a group.
pub fn group_matchers(detector: &Detector, labels: &Labels) -> Vec<Matcher> {
    detector.by.iter().map(|name| Matcher::equal(name, labels.get(name))).collect()
}

/// Reads all series of a detector and a tenant, if there are tenants. The matchers are those of one group; without
/// matchers, all groups are read.
///
/// # Errors
/// Those of the client.
pub async fn read_samples(
    client: &HistoryClient,
    detector: &Detector,
    (tenant, group): (Option<&Tenant>, &[Matcher]),
    range: (i64, i64),
    pace: Pace,
    mut on_series: impl FnMut(Vec<SeriesSamples>) -> Result<(), Error>,
) -> Result<(), Error> {
    for selector in &detector.matchers {
        client.read_at_pace(pace, tenant, selector, group, range, &mut on_series).await?;
    }
    Ok(())
}

/// Time before a range in which a sample of an alert that fires at its beginning is looked for: the look-back of Prometheus.
pub const ALERT_LOOKBACK_MS: i64 = LOOK_BACK_MS;

/// Age of the newest sample of an alert that still fires: rules are evaluated every minute by default.
const MAX_ALERT_AGE_MS: i64 = 90_000;

/// A time in which an alert fired.
#[derive(Clone, Debug, PartialEq)]
pub struct FiringAlert {
    /// Labels of the alert.
    pub labels: Labels,
    /// First millisecond.
    pub from_ms: i64,
    /// Last millisecond.
    pub to_ms: i64,
    /// True if it fires on at the end of the range that was read.
    pub is_firing: bool,
}

impl FiringAlert {
    /// The times in which the alert of these samples fired, in a range that ends at `end_ms`. An alert fires until its
    /// staleness marker; without one, until its last sample.
    fn from_samples<'a>(
        labels: &'a Labels,
        samples: &'a [Sample],
        end_ms: i64,
    ) -> impl Iterator<Item = Self> + use<'a> {
        let is_same = |a: &Sample, b: &Sample| {
            !a.is_stale() && (b.is_stale() || b.timestamp_ms - a.timestamp_ms <= LOOK_BACK_MS)
        };
        samples.chunk_by(is_same).filter(|run| !run[0].is_stale()).map(move |run| {
            let last = run[run.len() - 1];
            let is_firing = !last.is_stale() && last.timestamp_ms >= end_ms - MAX_ALERT_AGE_MS;
            let to_ms = match (last.is_stale(), is_firing) {
                (true, _) => last.timestamp_ms - 1,
                (false, true) => end_ms,
                (false, false) => last.timestamp_ms,
            };
            Self { labels: labels.clone(), from_ms: run[0].timestamp_ms, to_ms, is_firing }
        })
    }

    /// True if the alert has no label with another value than the group: an alert on another instance does not concern it.
    pub fn concerns(&self, group: &Labels) -> bool {
        group.iter().all(|(name, value)| ["", value].contains(&self.labels.get(name)))
    }
}

/// The times in which these alerts fired; with tenants, those of one.
///
/// # Errors
/// Those of the client.
pub async fn read_firing_alerts(
    client: &HistoryClient,
    tenant: Option<&Tenant>,
    alerts: &[String],
    range: (i64, i64),
) -> Result<Vec<FiringAlert>, Error> {
    if alerts.is_empty() {
        return Ok(Vec::new());
    }
    let selector = Selector::parse(r#"ALERTS{alertstate="firing"}"#).expect("a valid selector");
    let is_named = Matcher::one_of("alertname", alerts.iter().map(String::as_str));
    // An alert may be in several slices of the range.
    let mut samples_of: BTreeMap<Labels, Vec<Sample>> = BTreeMap::new();
    let mut size = ReadSize::default();
    let on_slice = |series: Vec<SeriesSamples>| {
        size.add(&series)?;
        for (labels, samples) in series {
            samples_of.entry(labels).or_default().extend(samples);
        }
        Ok(())
    };
    client.read_at_pace(Pace::Immediate, tenant, &selector, &[is_named], range, on_slice).await?;
    let firing =
        samples_of.iter().flat_map(|(labels, samples)| FiringAlert::from_samples(labels, samples, range.1));
    Ok(firing.collect())
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
        .read(detector.tenant_of(group).as_ref(), &selector, &matchers, range, |series| {
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
        .read(detector.tenant_of(group).as_ref(), &selector, &outputs.matchers(), range, |series| {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_has_a_limit_over_all_its_slices() {
        let slice = |n| vec![(Labels::default(), vec![Sample::stale(0); n])];
        let mut size = ReadSize { samples: READ_SAMPLE_LIMIT - 5 };
        assert!(size.add(&slice(3)).is_ok() && size.add(&slice(2)).is_ok());
        let error = size.add(&slice(1)).expect_err("one too many");
        let text = "history: the read has 80000001 samples so far, above the limit of 80000000";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn an_alert_fires_until_its_staleness_marker() {
        let labels = Labels::default();
        let firing = |samples: &[(i64, bool)], end_ms| -> Vec<(i64, i64, bool)> {
            let sample = |(minute, is_stale): &(i64, bool)| match is_stale {
                true => Sample::stale(minute * 60_000),
                false => Sample { timestamp_ms: minute * 60_000, value: 1.0 },
            };
            let samples: Vec<Sample> = samples.iter().map(sample).collect();
            let alerts = FiringAlert::from_samples(&labels, &samples, end_ms);
            alerts.map(|alert| (alert.from_ms, alert.to_ms, alert.is_firing)).collect()
        };
        let hour_ms = 3_600_000;
        assert_eq!(firing(&[(1, false), (2, false), (3, true)], hour_ms), [(60_000, 179_999, false)]);
        assert_eq!(firing(&[(1, false), (2, false)], hour_ms), [(60_000, 120_000, false)], "a crash");
        assert_eq!(firing(&[(1, false), (2, false)], 200_000), [(60_000, 200_000, true)], "it fires on");
        assert_eq!(firing(&[(1, false), (2, true)], 150_000), [(60_000, 119_999, false)], "it is over");
        let twice = [(1, false), (2, true), (3, false), (8, false), (20, false)];
        let times = [(60_000, 119_999, false), (180_000, 480_000, false), (1_200_000, 1_200_000, false)];
        assert_eq!(firing(&twice, hour_ms), times);
        assert_eq!(firing(&[(1, true), (2, true)], hour_ms), []);
    }
}
