//! The labels that identify a feature: those of its series without the labels of `by` and `ignore`.
//!
//! A label such as `pod` names the process that exports a series, and changes when the process is replaced: the feature
//! stays the same. Of other exporters the label tells series apart that exist at the same time. Metrics of which that
//! is seen keep their ignored labels. Not taken: a list of labels for each exporter, which no list of ours can complete.

use super::Detector;
use crate::prom::{Labels, Sample};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A series and its samples.
type SeriesSamples = (Labels, Vec<Sample>);

/// The metrics of which ignored labels tell features apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeatureIdentity {
    told_apart: BTreeSet<String>,
}

impl FeatureIdentity {
    /// The metrics of which one of these features has an ignored label.
    pub fn of_features<'l>(detector: &Detector, features: impl Iterator<Item = &'l Labels>) -> Self {
        let has_ignored = |feature: &&Labels| feature.iter().any(|(name, _)| detector.is_ignored(name));
        Self { told_apart: features.filter(has_ignored).map(|f| f.metric_name().to_string()).collect() }
    }

    /// Keeps the ignored labels of a metric.
    pub fn tell_apart(&mut self, metric: &str) {
        self.told_apart.insert(metric.to_string());
    }

    /// The feature of a series without the labels of `by`, and the labels that it lacks.
    pub fn split(&self, detector: &Detector, series: &Labels) -> (Labels, Labels) {
        if self.told_apart.contains(series.metric_name()) {
            return (series.clone(), Labels::default());
        }
        let (ignored, feature) = series.split(&detector.ignore);
        (feature, ignored)
    }

    /// Replaces the labels of a group's series by those of their features. Series with samples at the same time keep
    /// their ignored labels.
    pub fn rename(mut self, detector: &Detector, history: &mut [SeriesSamples]) {
        let mut by_feature: BTreeMap<Labels, BTreeMap<Labels, Vec<&[Sample]>>> = BTreeMap::new();
        for (labels, samples) in history.iter_mut() {
            *labels = labels.split(&detector.by).1;
            let (feature, ignored) = self.split(detector, labels);
            by_feature.entry(feature).or_default().entry(ignored).or_default().push(samples);
        }
        for (feature, series) in by_feature {
            if series.len() > 1 && has_common_time(series.values()) {
                self.tell_apart(feature.metric_name());
            }
        }
        for (labels, _) in history {
            *labels = self.split(detector, labels).0;
        }
    }
}

/// True if two of these series have values at one time.
fn has_common_time<'s>(series: impl Iterator<Item = &'s Vec<&'s [Sample]>>) -> bool {
    let mut times: HashMap<i64, usize> = HashMap::new();
    series.enumerate().any(|(i, parts)| {
        let fresh = parts.iter().copied().flatten().filter(|sample| !sample.is_stale());
        fresh.into_iter().any(|sample| *times.entry(sample.timestamp_ms).or_insert(i) != i)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn series(pod: &str, times: std::ops::Range<i64>) -> SeriesSamples {
        let labels =
            [("__name__", "rx"), ("device", "eth0"), ("instance", "a"), ("job", "node"), ("pod", pod)];
        let samples = times.map(|timestamp_ms| Sample { timestamp_ms, value: 1.0 });
        (Labels::new(labels).expect("valid"), samples.collect())
    }

    fn features(ignore: &str, mut history: Vec<SeriesSamples>) -> Vec<String> {
        let text = format!("detectors: [{{name: net, match: [rx]{ignore}}}]");
        let detector = Config::parse(&text).expect("valid").detectors.remove(0);
        FeatureIdentity::default().rename(&detector, &mut history);
        history.iter().map(|(feature, _)| feature.to_string()).collect()
    }

    #[test]
    fn series_of_one_feature_follow_each_other_and_parallel_ones_are_told_apart() {
        let one = r#"rx{device="eth0"}"#;
        assert_eq!(features("", vec![series("x", 0..5), series("y", 5..9)]), [one, one]);
        assert_eq!(features("", vec![series("x", 0..5), series("x", 0..5)]), [one, one], "read twice");
        let apart = [r#"rx{device="eth0", pod="x"}"#, r#"rx{device="eth0", pod="y"}"#];
        assert_eq!(features("", vec![series("x", 0..5), series("y", 4..9)]), apart);
        assert_eq!(features(", ignore: []", vec![series("x", 0..5), series("y", 5..9)]), apart);
    }
}
