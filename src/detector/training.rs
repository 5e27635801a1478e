//! The section `training` of a detector: the history to train on, the schedule, the promotion gate.

use super::PromotionGate;
use crate::prom::duration;
use crate::time;
use crate::yaml::{Key, Node, Section};
use std::time::Duration;

/// Growth of the history at which a model is trained again, as a share: the first model is trained on one hour and
/// must not serve for one day.
const GROWTH: f64 = 0.25;
/// Shortest time between two trainings.
const MIN_RETRAIN_INTERVAL: Duration = Duration::from_secs(15);
/// Score of the newest row, as a share of the threshold, at which a renewal waits.
const WAITING_SHARE: f64 = 0.5;
/// Longest time that it waits: a deviation that lasts has opened an incident by then.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The keys of the section.
pub const KEYS: [Key; 6] = [
    Key::with_default("history", "14d", "Length of the history to train on, at least `min_history`"),
    Key::with_default(
        "min_history",
        "1h",
        "Length of the history that a first model needs, after the first range of its rates. The kind \
         `extended_isolation_forest` needs a minute and seven scrapes at least; `/-/ready` names the greater one",
    ),
    Key::with_default(
        "interval",
        "1d",
        "Longest time between two trainings; from one hour on, each group has times of its own. A young model is renewed \
         whenever its history has grown by a quarter",
    ),
    Key::with_default(
        "sweep",
        "[]",
        "Values of `max_samples` to choose from at every training. If empty, `model.max_samples` is used, and \
         `promforest train` tries 13 sizes from 5 to 5000",
    ),
    Key::with_default(
        "exclude_alerts",
        "[]",
        "Names of alerts. The time in which one of them fired, with the labels of the group or without `instance`, is \
         excluded from training, unless too few rows are left for a first model; no incident opens while one fires",
    ),
    Key::optional(
        "gate",
        "Promotion gate: bounds that a renewed model must meet on held-out rows, see below",
    ),
];

/// Schedule and inputs of training.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingConfig {
    /// Length of the history to train on.
    pub history: Duration,
    /// Length of the history that a first model needs.
    pub min_history: Duration,
    /// Longest time between two trainings.
    pub interval: Duration,
    /// Values of `max_samples` to choose from; if empty, the model's own value is used.
    pub sweep: Vec<usize>,
    /// Names of alerts. The time in which one of them fired is excluded from training.
    pub exclude_alerts: Vec<String>,
    /// Bounds that a renewed model must meet.
    pub gate: PromotionGate,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        Self {
            history: hours(14 * 24),
            min_history: hours(1),
            interval: hours(24),
            sweep: Vec::new(),
            exclude_alerts: Vec::new(),
            gate: PromotionGate::default(),
        }
    }
}

impl TrainingConfig {
    /// Reads the section of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let default = Self::default();
        let config = Self {
            history: section.duration("history", default.history),
            min_history: section.duration("min_history", default.min_history),
            interval: section.duration("interval", default.interval),
            sweep: section.get("sweep").map(|list| read_sizes(&list)).unwrap_or_default(),
            exclude_alerts: section.get("exclude_alerts").map(|list| read_texts(&list)).unwrap_or_default(),
            gate: section.get("gate").and_then(Node::section).map_or(default.gate, PromotionGate::read),
        };
        if config.history < config.min_history {
            section.error(format!(
                "history: {} is shorter than min_history ({})",
                duration::Display(config.history),
                duration::Display(config.min_history)
            ));
        }
        section.deny_unknown();
        config
    }

    /// Time until the next training of a model that was trained on a history of `observed_ms` milliseconds.
    pub fn retrain_interval(&self, observed_ms: i64) -> Duration {
        let growth = Duration::from_millis((observed_ms.max(0) as f64 * GROWTH) as u64);
        growth.min(self.interval).max(MIN_RETRAIN_INTERVAL)
    }
}

/// True if a renewal that has been due for this long waits, given the score of the newest row as a share of its threshold.
/// A young model is renewed every few rows: it would learn the beginning of a deviation, and take the rest for usual.
pub fn renewal_waits(overdue: Duration, score_share: f64) -> bool {
    overdue < MAX_WAIT && score_share >= WAITING_SHARE
}

/// Timestamp of the last row that a renewal learns, given that of the last scored row: not the last minute of a deviation
/// in progress. A renewal that no longer waits may come in the middle of a burst.
pub fn learned_to_ms(scored_to_ms: i64, score_share: f64) -> i64 {
    match score_share >= WAITING_SHARE {
        true => scored_to_ms.saturating_sub(time::millis(MAX_WAIT)),
        false => scored_to_ms,
    }
}

fn read_sizes(list: &Node<'_, '_>) -> Vec<usize> {
    let size = |node: &Node<'_, '_>| {
        let size: usize = node.value("a whole number")?;
        if size == 0 {
            node.error("must be at least 1");
        }
        Some(size)
    };
    list.items().iter().flatten().filter_map(size).collect()
}

fn read_texts(list: &Node<'_, '_>) -> Vec<String> {
    list.items().iter().flatten().filter_map(Node::text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_young_model_is_renewed_soon_and_an_old_one_on_schedule() {
        let config = TrainingConfig::default();
        for (observed_minutes, interval) in [(0, "15s"), (60, "15m"), (24 * 60, "6h"), (5 * 24 * 60, "1d")] {
            let retrain_interval = config.retrain_interval(observed_minutes * 60_000);
            assert_eq!(duration::Display(retrain_interval).to_string(), interval);
        }
    }

    #[test]
    fn a_renewal_waits_for_a_deviation_and_not_for_ever() {
        let waits = |seconds, share| renewal_waits(Duration::from_secs(seconds), share);
        assert_eq!(
            [waits(0, 0.49), waits(0, 0.5), waits(59, 9.0), waits(60, 9.0)],
            [false, true, true, false]
        );
        assert_eq!([learned_to_ms(90_000, 0.49), learned_to_ms(90_000, 0.5)], [90_000, 30_000]);
    }
}
