//! Times that are excluded from training: named by the user, maintenance, real incidents, and fired alerts. The detector's
//! other incidents are not excluded: what lasts is learned, and the alert threshold limits what a single incident
//! contributes.

use super::history::FiringAlert;
use crate::detect::SuspendedTimes;
use crate::models::registry::periods::{self, Period, PeriodKind};
use crate::prom::Labels;

/// A time that is excluded from training.
#[derive(Clone, Debug, PartialEq)]
pub struct Exclusion {
    /// First millisecond.
    pub from_ms: i64,
    /// Last millisecond.
    pub to_ms: i64,
    /// The user's text, or the name of the alert that fired.
    pub reason: String,
}

/// The exclusions of a group: its maintenance and its real incidents, and the times of alerts outside of its false alarms.
pub fn of_group(
    periods: &[Period],
    alerts: &[FiringAlert],
    detector: &str,
    group: &Labels,
) -> Vec<Exclusion> {
    let of_alert = |alert: &FiringAlert| Exclusion {
        from_ms: alert.from_ms,
        to_ms: alert.to_ms,
        reason: format!("{} fired", alert.labels.get("alertname")),
    };
    let alerts = alerts.iter().filter(|alert| alert.concerns(group)).map(of_alert);
    let (false_alarms, excluded): (Vec<&Period>, Vec<&Period>) = periods
        .iter()
        .filter(|period| period.concerns(detector, group))
        .partition(|period| period.kind == PeriodKind::False);
    let without_false = |alert: Exclusion| {
        false_alarms.iter().fold(vec![alert], |parts, period| {
            parts.into_iter().flat_map(|part| part.without(period.from_ms, period.end_ms())).collect()
        })
    };
    let mut exclusions: Vec<Exclusion> = alerts.flat_map(without_false).collect();
    exclusions.extend(excluded.into_iter().map(|period| Exclusion {
        from_ms: period.from_ms,
        to_ms: period.end_ms(),
        reason: match (period.kind, period.comment.as_str()) {
            (PeriodKind::Maintenance, "") => "maintenance".into(),
            (PeriodKind::Maintenance, comment) => format!("maintenance: {comment}"),
            _ => "a real incident".into(),
        },
    }));
    exclusions.sort_by_key(|exclusion| (exclusion.from_ms, exclusion.to_ms));
    exclusions
}

/// The times in which no incident of a group opens: its maintenance, and the times of these alerts.
pub fn suspended_times<'a>(
    periods: &[Period],
    alerts: impl Iterator<Item = &'a FiringAlert>,
    detector: &str,
    group: &Labels,
) -> SuspendedTimes {
    let alerts = alerts.filter(|alert| alert.concerns(group)).map(|alert| alert.from_ms..=alert.to_ms);
    periods::maintenance_of(periods, detector, group).chain(alerts).collect()
}

impl Exclusion {
    /// The parts of it outside of this time.
    fn without(self, from_ms: i64, to_ms: i64) -> impl Iterator<Item = Self> {
        let before = Self { to_ms: self.to_ms.min(from_ms.saturating_sub(1)), ..self.clone() };
        let after = Self { from_ms: self.from_ms.max(to_ms.saturating_add(1)), ..self };
        [before, after].into_iter().filter(|part| part.from_ms <= part.to_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_excludes_its_maintenance_its_real_incidents_and_alerts_that_were_not_false() {
        let period = |kind, groups: &str, from_ms, to_ms| Period {
            kind,
            detector: Some("net".into()),
            groups: groups.parse().expect("a selector"),
            from_ms,
            to_ms,
            comment: String::new(),
        };
        let periods = [
            period(PeriodKind::Maintenance, r#"{job="node"}"#, 500, None),
            period(PeriodKind::Real, r#"{instance="a", job="node"}"#, 10, Some(20)),
            period(PeriodKind::Real, r#"{instance="b", job="node"}"#, 30, Some(40)),
            period(PeriodKind::False, r#"{instance="a", job="node"}"#, 110, Some(120)),
        ];
        let alert = |instance| FiringAlert {
            labels: Labels::new([("alertname", "Down"), ("instance", instance)]).expect("valid"),
            from_ms: 100,
            to_ms: 130,
            is_firing: false,
        };
        let alerts = [alert("a"), alert("b")];
        let group = Labels::new([("job", "node"), ("instance", "a")]).expect("valid");
        let ranges = |detector: &str| -> Vec<(i64, i64)> {
            let exclusions = of_group(&periods, &alerts, detector, &group);
            exclusions.iter().map(|exclusion| (exclusion.from_ms, exclusion.to_ms)).collect()
        };
        assert_eq!(ranges("net"), [(10, 20), (100, 109), (121, 130), (500, i64::MAX)]);
        assert_eq!(ranges("disk"), [(100, 130)]);
        let suspended = suspended_times(&periods, alerts.iter(), "net", &group);
        assert_eq!(
            *suspended,
            [500..=i64::MAX, 100..=130],
            "an incident that was real does not suspend others"
        );
    }
}
