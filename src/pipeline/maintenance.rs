//! The maintenance in force: the times that people named, and those in which an alert of `exclude_alerts` fires or fired.
//!
//! Rows may arrive hours after their time, so the alerts of the past are kept for as long as a row can be scored.

use crate::detect::SuspendedTimes;
use crate::detector::Detector;
use crate::models::registry::periods::Period;
use crate::prom::Labels;
use crate::time;
use crate::train::exclusion;
use crate::train::history::FiringAlert;
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MaintenancePlan {
    /// The periods of the registry.
    pub periods: Vec<Period>,
    /// Alerts that fire or fired, each with the name of the detector that excludes it.
    pub alerts: Vec<(String, FiringAlert)>,
}

/// The alerts of the past, by the name of the detector that excludes them and by their labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PastAlerts(BTreeMap<(String, Labels), Vec<FiringAlert>>);

impl PastAlerts {
    /// Adds the times of an alert. Times that overlap or meet become one.
    pub fn add(&mut self, detector: &str, alert: FiringAlert) {
        let times = self.0.entry((detector.into(), alert.labels.clone())).or_default();
        let meets = |other: &mut FiringAlert| {
            alert.from_ms <= other.to_ms.saturating_add(1) && other.from_ms <= alert.to_ms.saturating_add(1)
        };
        let mut union = alert.clone();
        for other in times.extract_if(.., meets) {
            union.from_ms = union.from_ms.min(other.from_ms);
            union.to_ms = union.to_ms.max(other.to_ms);
        }
        times.push(union);
    }

    /// Forgets the alerts that no row of a detector's window can meet. Those of other detectors are forgotten.
    pub fn forget_old(&mut self, detectors: &[Arc<Detector>], now_ms: i64) {
        self.0.retain(|(name, _), times| {
            let detector = detectors.iter().find(|detector| detector.name == *name);
            let window_ms = detector.map(|detector| time::millis(detector.window));
            times.retain(|alert| window_ms.is_some_and(|window_ms| alert.to_ms >= now_ms - window_ms));
            !times.is_empty()
        });
    }

    fn of_detector(&self, name: &str) -> impl Iterator<Item = &FiringAlert> {
        self.0.iter().filter(move |((detector, _), _)| detector == name).flat_map(|(_, times)| times)
    }
}

impl MaintenancePlan {
    /// The times of a group.
    pub fn suspended_times(&self, past: &PastAlerts, detector: &Detector, group: &Labels) -> SuspendedTimes {
        let alerts = self.alerts.iter().filter(|(name, _)| *name == detector.name).map(|(_, alert)| alert);
        let alerts = alerts.chain(past.of_detector(&detector.name));
        exclusion::suspended_times(&self.periods, alerts, &detector.name, group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_times_of_an_alert_are_joined_and_kept_as_long_as_the_window() {
        let labels = |instance| Labels::new([("alertname", "Down"), ("instance", instance)]).expect("valid");
        let mut past = PastAlerts::default();
        for (instance, from_ms, to_ms) in
            [("a", 10, 20), ("a", 40, 50), ("b", 15, 30), ("a", 21, 30), ("a", 45, 60)]
        {
            past.add("net", FiringAlert { labels: labels(instance), from_ms, to_ms, is_firing: false });
        }
        past.add("gone", FiringAlert { labels: labels("a"), from_ms: 1, to_ms: 99, is_firing: false });
        let times = |past: &PastAlerts| -> Vec<(i64, i64)> {
            past.0.values().flatten().map(|alert| (alert.from_ms, alert.to_ms)).collect()
        };
        assert_eq!(times(&past), [(1, 99), (10, 30), (40, 60), (15, 30)]);
        let mut detector = Detector::node_network(Duration::from_secs(15));
        (detector.name, detector.window) = ("net".into(), Duration::from_millis(100));
        past.forget_old(&[Arc::new(detector)], 140);
        assert_eq!(times(&past), [(40, 60)]);
    }
}
