//! The maintenance in force: the times that people named, and those in which an alert of `exclude_alerts` fires or fired.
//!
//! Rows may arrive hours after their time, so the alerts of the past are kept for as long as a row can be scored.

use crate::detect::SuspendedTimes;
use crate::detector::Detector;
use crate::models::registry::periods::Period;
use crate::prom::Labels;
use crate::tenant::Tenant;
use crate::time;
use crate::train::exclusion;
use crate::train::history::FiringAlert;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most times of alerts for each detector and tenant. Each is compared with each group of the tenant, on the thread of the
/// engine.
pub const MAX_ALERT_TIMES: usize = 10_000;

/// The name of a detector that excludes alerts, and the tenant of the alerts if there are tenants.
pub type AlertKey = (String, Option<Tenant>);

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MaintenancePlan {
    /// The periods of the registry.
    pub periods: Vec<Period>,
    /// Alerts that fire, at most [`MAX_ALERT_TIMES`] of a key.
    pub alerts: BTreeMap<AlertKey, Vec<FiringAlert>>,
}

/// The alerts of the past, at most [`MAX_ALERT_TIMES`] of a key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PastAlerts(BTreeMap<AlertKey, TimesByLabels>);

/// The times of alerts by their labels.
type TimesByLabels = BTreeMap<Labels, Vec<FiringAlert>>;

/// The result of adding alerts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Added {
    /// The times are others than before.
    pub has_changed: bool,
    /// Alerts above [`MAX_ALERT_TIMES`].
    pub left_out: usize,
}

impl PastAlerts {
    /// Adds the times of alerts. Times of an alert that overlap or meet become one.
    pub fn add(&mut self, key: AlertKey, alerts: Vec<FiringAlert>) -> Added {
        let times = self.0.entry(key).or_default();
        let mut n_times = times.values().map(Vec::len).sum::<usize>();
        let mut added = Added::default();
        for alert in alerts {
            let of_alert = times.entry(alert.labels.clone()).or_default();
            let is_within =
                |other: &FiringAlert| other.from_ms <= alert.from_ms && alert.to_ms <= other.to_ms;
            if of_alert.iter().any(is_within) {
                continue;
            }
            let meets = |other: &mut FiringAlert| {
                alert.from_ms <= other.to_ms.saturating_add(1)
                    && other.from_ms <= alert.to_ms.saturating_add(1)
            };
            let mut union = alert.clone();
            for other in of_alert.extract_if(.., meets) {
                union.from_ms = union.from_ms.min(other.from_ms);
                union.to_ms = union.to_ms.max(other.to_ms);
                n_times -= 1;
            }
            if n_times >= MAX_ALERT_TIMES {
                added.left_out += 1;
                continue;
            }
            of_alert.push(union);
            n_times += 1;
            added.has_changed = true;
        }
        times.retain(|_, times| !times.is_empty());
        added
    }

    /// Forgets the alerts that no row of a detector's window can meet. Those of other detectors are forgotten.
    pub fn forget_old(&mut self, detectors: &[Arc<Detector>], now_ms: i64) {
        self.0.retain(|(name, _), alerts| {
            let Some(detector) = detectors.iter().find(|detector| detector.name == *name) else {
                return false;
            };
            let start_ms = now_ms - time::millis(detector.window);
            alerts.retain(|_, times| {
                times.retain(|alert| alert.to_ms >= start_ms);
                !times.is_empty()
            });
            !alerts.is_empty()
        });
    }
}

impl MaintenancePlan {
    /// True if groups of this detector and tenant may have other times than in the plan before.
    pub fn differs_from(&self, before: &Self, detector: &Detector, tenant: Option<&Tenant>) -> bool {
        let key = (detector.name.clone(), tenant.cloned());
        self.periods != before.periods || self.alerts.get(&key) != before.alerts.get(&key)
    }

    /// The times of a group.
    pub fn suspended_times(
        &self,
        past: &PastAlerts,
        detector: &Detector,
        tenant: Option<&Tenant>,
        group: &Labels,
    ) -> SuspendedTimes {
        let key = (detector.name.clone(), tenant.cloned());
        let alerts = self.alerts.get(&key).into_iter().flatten();
        let past = past.0.get(&key).into_iter().flat_map(BTreeMap::values).flatten();
        exclusion::suspended_times(&self.periods, alerts.chain(past), &detector.name, group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn alert(instance: &str, from_ms: i64, to_ms: i64) -> FiringAlert {
        let labels = Labels::new([("alertname", "Down"), ("instance", instance)]).expect("valid");
        FiringAlert { labels, from_ms, to_ms, is_firing: false }
    }

    #[test]
    fn the_times_of_an_alert_are_joined_and_kept_as_long_as_the_window() {
        let mut past = PastAlerts::default();
        let times = [("a", 10, 20), ("a", 40, 50), ("b", 15, 30), ("a", 21, 30), ("a", 45, 60)];
        let alerts = || times.iter().map(|(instance, from_ms, to_ms)| alert(instance, *from_ms, *to_ms));
        assert!(past.add(("net".into(), None), alerts().collect()).has_changed);
        assert!(!past.add(("net".into(), None), alerts().collect()).has_changed);
        past.add(("gone".into(), None), vec![alert("a", 1, 99)]);
        let times = |past: &PastAlerts| -> Vec<(i64, i64)> {
            let all = past.0.values().flat_map(BTreeMap::values).flatten();
            all.map(|alert| (alert.from_ms, alert.to_ms)).collect()
        };
        assert_eq!(times(&past), [(1, 99), (10, 30), (40, 60), (15, 30)]);
        let mut detector = Detector::node_network(Duration::from_secs(15));
        (detector.name, detector.window) = ("net".into(), Duration::from_millis(100));
        past.forget_old(&[Arc::new(detector)], 140);
        assert_eq!(times(&past), [(40, 60)]);
    }

    /// Those of a detector and a tenant are bounded, and no other's.
    #[test]
    fn alerts_above_the_limit_are_left_out() {
        let mut past = PastAlerts::default();
        let many = (0..=MAX_ALERT_TIMES as i64).map(|i| alert("a", 10 * i, 10 * i + 5)).collect();
        let tenant = |id: &str| ("net".to_string(), Some(id.parse().expect("an ID")));
        assert_eq!(past.add(tenant("a"), many), Added { has_changed: true, left_out: 1 });
        assert_eq!(past.add(tenant("a"), vec![alert("b", 0, 1)]), Added { has_changed: false, left_out: 1 });
        assert_eq!(past.0[&tenant("a")].len(), 1, "no entry of what is left out");
        assert_eq!(past.add(tenant("a"), vec![alert("a", 0, 7)]).left_out, 0, "it is one with another");
        assert_eq!(past.add(tenant("b"), vec![alert("b", 0, 1)]).left_out, 0);
    }
}
