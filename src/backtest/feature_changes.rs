//! Finds the times at which features are added or removed, and a sidecar would fit a new model.

use crate::detector::Detector;
use crate::features::Schema;
use crate::prom::{Labels, Sample};
use crate::time;
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

impl TrackedFeature<'_> {
    /// True if the feature has a sample after the current time, up to `to_ms`.
    fn returns_until(&self, to_ms: i64) -> bool {
        let later = self.samples[self.n_consumed..].iter();
        later.take_while(|sample| sample.timestamp_ms <= to_ms).any(|sample| !sample.is_stale())
    }
}

/// Iterates over the changes in a window, in chronological order.
pub struct FeatureChanges<'a> {
    detector: &'a Detector,
    grace: Duration,
    features: Vec<TrackedFeature<'a>>,
    timestamps: std::iter::Peekable<std::vec::IntoIter<i64>>,
    changed_ms: i64,
}

impl<'a> FeatureChanges<'a> {
    /// Starts before the first sample. A feature is removed once it has no sample for the detector's grace period, and for
    /// at least two rows.
    pub fn new(detector: &'a Detector, window: &'a Window, interval_ms: i64) -> Self {
        let tracked = |(labels, column)| {
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
            timestamps: timestamps.into_iter().peekable(),
            changed_ms: i64::MIN,
        }
    }

    /// The next time after `after_ms` and before `until_ms` at which one of the schema's features is removed, or another
    /// has enough history to be added. The time is the end of a row: before that, features of other targets seem to be
    /// missing.
    pub fn next_change(&mut self, schema: &Schema, after_ms: i64, until_ms: i64) -> Option<i64> {
        for feature in &mut self.features {
            feature.is_in_schema = schema.features.contains(feature.labels);
        }
        let not_before_ms = after_ms.max(self.changed_ms.saturating_add(MIN_PAUSE_MS));
        while let Some(timestamp_ms) = self.timestamps.next_if(|timestamp_ms| *timestamp_ms < until_ms) {
            self.advance_to(timestamp_ms);
            let (_, row_end_ms) = schema.grid.bounds(timestamp_ms);
            let is_row_end = self.timestamps.peek().is_none_or(|next_ms| *next_ms > row_end_ms);
            if is_row_end
                && timestamp_ms > not_before_ms
                && self.has_changed(schema.features.len(), timestamp_ms)
            {
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
        let is_alive = |feature: &&TrackedFeature| {
            let newest = feature.n_consumed.checked_sub(1).map(|newest| feature.samples[newest]);
            coverage::is_alive(newest, now_ms, self.grace)
        };
        let alive = || self.features.iter().filter(is_alive);
        let coverage_ms = |feature: &TrackedFeature| feature.coverage.total_ms() - warm_up_ms;
        let Some(longest_ms) = alive().map(coverage_ms).max() else { return false };
        let min_history = self.detector.training.min_history;
        let has_joined = |feature: &TrackedFeature| {
            !feature.is_in_schema
                && coverage::has_enough_history(coverage_ms(feature), longest_ms, min_history)
        };
        // The sidecar decides at the end of the grace period, and keeps a feature that has returned by then.
        let to_ms = now_ms.saturating_add(time::millis(self.grace));
        let is_kept = |feature: &&TrackedFeature| {
            feature.is_in_schema && (is_alive(feature) || feature.returns_until(to_ms))
        };
        self.features.iter().filter(is_kept).count() < n_features || alive().any(has_joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::features::Transform;
    use crate::window::grid::Grid;

    const STEP_MS: i64 = 15_000;

    fn feature(target: &str) -> Labels {
        Labels::new([("__name__", "load"), ("instance", target)]).expect("valid")
    }

    /// The changes of a model of two targets that are scraped at different phases, with these scrapes of each.
    fn changes(a: impl Iterator<Item = i64>, b: impl Iterator<Item = i64>) -> Vec<i64> {
        let text = "detectors: [{name: load, match: [load], by: [job], transform: value}]";
        let detector = Config::parse(text).expect("valid").detectors.remove(0);
        let mut window = Window::new(i64::MAX / 4);
        let of_a = a.map(|i| ("a", i * STEP_MS));
        let mut samples: Vec<_> = of_a.chain(b.map(|i| ("b", i * STEP_MS + 5000))).collect();
        samples.sort_by_key(|(_, timestamp_ms)| *timestamp_ms);
        for (target, timestamp_ms) in samples {
            let column = window.get_or_add_column(&feature(target)).expect("few");
            window.push(column, Sample { timestamp_ms, value: 1.0 });
        }
        let grid = Grid::Slots { interval_ms: STEP_MS, slot_start_ms: 0 };
        let schema = Schema { features: vec![feature("a"), feature("b")], transform: Transform::Value, grid };
        let mut changes = FeatureChanges::new(&detector, &window, STEP_MS);
        std::iter::from_fn(|| changes.next_change(&schema, i64::MIN, i64::MAX)).collect()
    }

    #[test]
    fn a_pause_of_all_targets_changes_no_feature() {
        let scraped = || (1..100).chain(200..300);
        assert!(changes(scraped(), scraped()).is_empty());
        let returns_later = scraped().filter(|i| *i != 200);
        assert!(changes(scraped(), returns_later).is_empty(), "within the grace period");
        let gone = changes(scraped(), 1..100);
        assert_eq!(gone.first(), Some(&(200 * STEP_MS)));
    }
}
