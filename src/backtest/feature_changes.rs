//! Finds the times at which features are added or removed, and a sidecar would fit a new model.

use crate::detector::Detector;
use crate::prom::{Labels, Sample};
use crate::train::coverage;
use crate::window::Window;
use std::time::Duration;

/// Minimum time between two changes, as in the sidecar.
const MIN_PAUSE_MS: i64 = 600_000;

/// One feature at the current time.
struct TrackedFeature<'a> {
    labels: &'a Labels,
    samples: Vec<Sample>,
    /// Number of samples up to the current time.
    n_consumed: usize,
    coverage: coverage::Coverage,
    /// True if the model has the feature.
    is_in_schema: bool,
}

/// Iterates over the changes in a window, in chronological order.
pub struct FeatureChanges<'a> {
    detector: &'a Detector,
    grace: Duration,
    features: Vec<TrackedFeature<'a>>,
    timestamps: std::vec::IntoIter<i64>,
    changed_ms: i64,
}

impl<'a> FeatureChanges<'a> {
    /// Starts before the first sample. A feature is removed once it has no sample for the detector's grace period, and for
    /// at least two rows.
    pub fn new(detector: &'a Detector, window: &'a Window, interval_ms: i64) -> Self {
        let tracked = |(labels, column, _)| {
            let mut samples = Vec::new();
            window.samples(column, i64::MIN, i64::MAX, &mut samples);
            TrackedFeature {
                labels,
                samples,
                n_consumed: 0,
                coverage: coverage::Coverage::default(),
                is_in_schema: false,
            }
        };
        let timestamps: Vec<i64> = window.timestamps(i64::MIN, i64::MAX).collect();
        Self {
            detector,
            grace: detector.grace.max(Duration::from_millis(2 * interval_ms.unsigned_abs())),
            features: window.features().map(tracked).collect(),
            timestamps: timestamps.into_iter(),
            changed_ms: i64::MIN,
        }
    }

    /// The next time after `after_ms` at which one of these features is removed, or another has enough history to be added.
    pub fn next_change(&mut self, features: &[Labels], after_ms: i64) -> Option<i64> {
        for feature in &mut self.features {
            feature.is_in_schema = features.contains(feature.labels);
        }
        let not_before_ms = after_ms.max(self.changed_ms.saturating_add(MIN_PAUSE_MS));
        while let Some(timestamp_ms) = self.timestamps.next() {
            self.advance_to(timestamp_ms);
            if timestamp_ms > not_before_ms && self.has_changed(features.len(), timestamp_ms) {
                self.changed_ms = timestamp_ms;
                return Some(timestamp_ms);
            }
        }
        None
    }

    fn advance_to(&mut self, timestamp_ms: i64) {
        for TrackedFeature { samples, n_consumed, coverage, .. } in &mut self.features {
            while let Some(sample) =
                samples.get(*n_consumed).filter(|sample| sample.timestamp_ms <= timestamp_ms)
            {
                *n_consumed += 1;
                coverage.add(*sample);
            }
        }
    }

    fn has_changed(&self, n_features: usize, now_ms: i64) -> bool {
        let warm_up_ms = self.detector.transform.warm_up_ms();
        let alive = || {
            self.features.iter().filter(|feature| {
                let newest = feature.n_consumed.checked_sub(1).map(|newest| feature.samples[newest]);
                coverage::is_alive(newest, now_ms, self.grace)
            })
        };
        let coverage_ms = |feature: &TrackedFeature| feature.coverage.total_ms() - warm_up_ms;
        let Some(longest_ms) = alive().map(coverage_ms).max() else { return false };
        let min_history = self.detector.training.min_history;
        let has_joined = |feature: &TrackedFeature| {
            !feature.is_in_schema
                && coverage::has_enough_history(coverage_ms(feature), longest_ms, min_history)
        };
        alive().filter(|feature| feature.is_in_schema).count() < n_features || alive().any(has_joined)
    }
}
