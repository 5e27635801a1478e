//! The promotion gate: bounds the alerts of a renewed model on rows that it was not fitted on.
//!
//! A model that exceeds a bound is registered for inspection, and the previous model continues to serve. The bounds apply
//! to what people get: the share of time with a score above 1, and the incidents. Held-out rows give both, because a
//! model that memorised its rows would pass a test on its own rows.

use crate::models::{HeldOut, Trial};
use crate::yaml::{Key, Section};

/// Fewest rows for the default bounds: fewer differ by chance.
const MIN_ROWS: usize = 500;

/// Default bound of the alert rate of a standard forest, whose threshold marks up to a fifth of heavy-tailed rows.
const MAX_STANDARD_ALERT_RATE: f64 = 0.3;

/// Default bounds of a model with an alert budget: on 27 servers with 500 to 28,000 rows it alerted in at most 2.2 % of the
/// rows, in at most 3 incidents a day.
const MAX_ALERT_RATE: f64 = 0.05;
const MAX_INCIDENTS_PER_DAY: f64 = 6.0;

/// The keys of the section.
pub const KEYS: [Key; 3] = [
    Key::computed(
        "max_alert_rate",
        "`0.05`, for `isolation_forest` `0.3`",
        "Greatest share of held-out rows with a score above 1, from 0 to 1. The default applies to models of 500 rows \
         and more, a configured bound to all models",
    ),
    Key::computed(
        "max_incidents_per_day",
        "`6`",
        "Most incidents per day on held-out rows, where less than a day counts as one. The default applies to models of \
         500 rows and more, a configured bound to all models",
    ),
    Key::optional("max_kl", "Greatest KL divergence of held-out rows from the training rows, in nats"),
];

/// Bounds that a renewed model must meet. Configured bounds apply to every model, defaults to models of at least 500
/// rows. A forest whose decisions are constant exceeds them all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromotionGate {
    /// Greatest mean KL divergence between held-out and training rows, in nats; no bound by default.
    pub max_kl: Option<f64>,
    /// Greatest share of held-out rows with a score above 1, in [0, 1].
    pub max_alert_rate: Option<f64>,
    /// Most incidents per day on held-out rows.
    pub max_incidents_per_day: Option<f64>,
}

impl PromotionGate {
    /// Reads the section of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let gate = Self {
            max_kl: section.number("max_kl", 0.0, f64::MAX),
            max_alert_rate: section.number("max_alert_rate", 0.0, 1.0),
            max_incidents_per_day: section.number("max_incidents_per_day", 0.0, f64::MAX),
        };
        section.deny_unknown();
        gate
    }

    /// Checks a model that was trained on `n_rows` rows. Returns the bounds that it exceeds, as sentences; empty if the
    /// model passes.
    pub fn check(&self, trial: &Trial, held_out: &HeldOut, n_rows: usize) -> Vec<String> {
        let default_bound = |bound: f64| (n_rows >= MIN_ROWS).then_some(bound);
        let default_rate =
            if held_out.incidents_per_day.is_some() { MAX_ALERT_RATE } else { MAX_STANDARD_ALERT_RATE };
        let max_rate = self.max_alert_rate.or_else(|| default_bound(default_rate));
        let max_incidents = self.max_incidents_per_day.or_else(|| default_bound(MAX_INCIDENTS_PER_DAY));
        let (kl, rate) = (trial.mean_kl(), held_out.alert_rate);
        let mut reasons = Vec::new();
        if held_out.is_constant {
            reasons.push("the forest has the same decision for all rows".into());
        }
        if let Some(limit) = self.max_kl.filter(|limit| kl.is_nan() || kl > *limit) {
            reasons
                .push(format!("the KL divergence of held-out rows is {kl:.3}, above the limit of {limit}"));
        }
        if let Some(limit) = max_rate.filter(|limit| rate > *limit) {
            let (rate, limit) = (rate * 100.0, limit * 100.0);
            reasons.push(format!(
                "the score exceeds 1 in {rate:.1} % of the held-out rows, the limit is {limit:.1} %"
            ));
        }
        if let (Some(found), Some(limit)) = (held_out.incidents_per_day, max_incidents)
            && found > limit
        {
            reasons.push(format!("the held-out rows have {found:.1} incidents a day, the limit is {limit}"));
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_names_each_bound_that_is_exceeded() {
        let trial = Trial { max_samples: 256, kl: vec![2.5, 2.5], ..Trial::default() };
        let held_out =
            |alert_rate, incidents_per_day| HeldOut { alert_rate, incidents_per_day, is_constant: false };
        let (quiet, loud) = (held_out(0.01, Some(1.0)), held_out(1.0, Some(99.0)));
        let gate = PromotionGate::default();
        assert!(gate.check(&trial, &quiet, 500).is_empty(), "the divergence has no bound by default");
        assert!(gate.check(&trial, &held_out(0.3, None), 500).is_empty(), "a model without a budget");
        assert!(gate.check(&trial, &loud, 499).is_empty(), "too few rows for the defaults");
        let configured = PromotionGate {
            max_kl: Some(2.0),
            max_alert_rate: Some(0.005),
            max_incidents_per_day: Some(0.5),
        };
        assert_eq!(
            configured.check(&trial, &quiet, 10),
            [
                "the KL divergence of held-out rows is 2.500, above the limit of 2",
                "the score exceeds 1 in 1.0 % of the held-out rows, the limit is 0.5 %",
                "the held-out rows have 1.0 incidents a day, the limit is 0.5",
            ],
            "configured bounds apply to every model"
        );
        assert_eq!(
            gate.check(&trial, &loud, 500),
            [
                "the score exceeds 1 in 100.0 % of the held-out rows, the limit is 5.0 %",
                "the held-out rows have 99.0 incidents a day, the limit is 6",
            ]
        );
        let constant = HeldOut { is_constant: true, ..quiet };
        assert_eq!(gate.check(&trial, &constant, 10), ["the forest has the same decision for all rows"]);
        let unknown = Trial { kl: vec![f64::NAN], ..trial };
        assert_eq!(configured.check(&unknown, &quiet, 500).len(), 3);
    }
}
