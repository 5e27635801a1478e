//! Features come and go: when would a model be made anew?

use crate::config::Detector;
use crate::prom::{Labels, Sample};
use crate::train::rows;
use crate::window::Window;
use std::time::Duration;

/// One after the other, and no sooner than the sidecar lets them where features keep coming and going.
const PAUSE_MS: i64 = 600_000;

/// One feature, at the time that was come to.
struct Attendant<'a> {
    labels: &'a Labels,
    samples: Vec<Sample>,
    /// How many of the samples are past.
    n_past: usize,
    observed: rows::Observed,
    /// Is it one of the features that are looked for?
    is_known: bool,
}

/// See the [module](self). Goes through a window once, forward.
pub struct Attendance<'a> {
    detector: &'a Detector,
    grace: Duration,
    attendants: Vec<Attendant<'a>>,
    timestamps: std::vec::IntoIter<i64>,
    changed_ms: i64,
}

impl<'a> Attendance<'a> {
    /// Nothing is past yet. A feature is away when it has been so for as long as the detector says, and two rows.
    pub fn new(detector: &'a Detector, window: &'a Window, interval_ms: i64) -> Self {
        let attendant = |(labels, column, _)| {
            let mut samples = Vec::new();
            window.samples(column, i64::MIN, i64::MAX, &mut samples);
            Attendant { labels, samples, n_past: 0, observed: rows::Observed::default(), is_known: false }
        };
        let timestamps: Vec<i64> = window.timestamps(i64::MIN, i64::MAX).collect();
        Self {
            detector,
            grace: detector.grace.max(Duration::from_millis(2 * interval_ms.unsigned_abs())),
            attendants: window.features().map(attendant).collect(),
            timestamps: timestamps.into_iter(),
            changed_ms: i64::MIN,
        }
    }

    /// The next time, after `after_ms`, at which one of these features has gone for good or another has come to stay.
    pub fn change(&mut self, features: &[Labels], after_ms: i64) -> Option<i64> {
        for attendant in &mut self.attendants {
            attendant.is_known = features.contains(attendant.labels);
        }
        let not_before_ms = after_ms.max(self.changed_ms.saturating_add(PAUSE_MS));
        while let Some(timestamp_ms) = self.timestamps.next() {
            self.go_to(timestamp_ms);
            if timestamp_ms > not_before_ms && self.is_other(features.len(), timestamp_ms) {
                self.changed_ms = timestamp_ms;
                return Some(timestamp_ms);
            }
        }
        None
    }

    fn go_to(&mut self, timestamp_ms: i64) {
        for Attendant { samples, n_past, observed, .. } in &mut self.attendants {
            while let Some(sample) = samples.get(*n_past).filter(|sample| sample.timestamp_ms <= timestamp_ms)
            {
                *n_past += 1;
                observed.add(*sample);
            }
        }
    }

    fn is_other(&self, n_features: usize, now_ms: i64) -> bool {
        let settling_ms = self.detector.transform.settling_ms();
        let alive = || {
            self.attendants.iter().filter(|attendant| {
                let newest = attendant.n_past.checked_sub(1).map(|newest| attendant.samples[newest]);
                rows::is_alive(newest, now_ms, self.grace)
            })
        };
        let observed_ms = |attendant: &Attendant| attendant.observed.ms() - settling_ms;
        let Some(have_ms) = alive().map(observed_ms).max() else { return false };
        let minimum = self.detector.training.minimum;
        let has_come = |attendant: &Attendant| {
            !attendant.is_known && rows::is_enough(observed_ms(attendant), have_ms, minimum)
        };
        alive().filter(|attendant| attendant.is_known).count() < n_features || alive().any(has_come)
    }
}
