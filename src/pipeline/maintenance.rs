//! The maintenance in force: the times that people named, and those in which an alert of `exclude_alerts` fires.

use crate::detect::SuspendedTimes;
use crate::detector::Detector;
use crate::models::registry::periods::{self, Period};
use crate::prom::Labels;
use crate::train::history::FiringAlert;
use std::ops::RangeInclusive;

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MaintenancePlan {
    /// The periods of the registry.
    pub periods: Vec<Period>,
    /// Alerts that fire, each with the name of the detector that excludes it.
    pub alerts: Vec<(String, FiringAlert)>,
}

impl MaintenancePlan {
    /// The times of a group.
    pub fn suspended_times(&self, detector: &Detector, group: &Labels) -> SuspendedTimes {
        let periods = periods::maintenance_of(&self.periods, &detector.name, group);
        let alerts =
            self.alerts.iter().filter(|(name, alert)| *name == detector.name && alert.concerns(group));
        let alerts = alerts.map(|(_, alert)| alert.from_ms..=alert.to_ms);
        periods.chain(alerts).collect::<Vec<RangeInclusive<i64>>>().into()
    }
}
