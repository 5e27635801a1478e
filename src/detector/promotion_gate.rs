//! The promotion gate: bounds the divergence and the alert rate of a renewed model on rows that it was not fitted on.
//!
//! A model that exceeds a bound is registered for inspection, and the previous model continues to serve. The bounds
//! come from cross-validation: a model that memorised its rows or alerts too often would pass a test on its own rows.

use crate::models::CrossValidation;
use crate::yaml::Section;

/// Fewest rows for the default bounds: in a fold of a hundred rows, two histograms of one distribution differ as much as
/// histograms of two distributions.
const MIN_ROWS: usize = 500;

/// Default bound of the divergence. A few tenths are usual where days differ; distributions that hardly overlap have 5
/// and more.
const MAX_KL: f64 = 2.0;

/// Default bound of the alert rate. The threshold of a standard forest marks up to a fifth of heavy-tailed rows.
const MAX_ALERT_RATE: f64 = 0.3;

/// Bounds that a renewed model must meet. Configured bounds apply to every model, defaults to models of at least 500
/// rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromotionGate {
    /// Greatest mean KL divergence between held-out and training rows, in nats.
    pub max_kl: Option<f64>,
    /// Greatest share of held-out rows that the model marks as anomalous, in [0, 1].
    pub max_alert_rate: Option<f64>,
}

impl PromotionGate {
    /// Reads the section of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let gate = Self {
            max_kl: section.number("max_kl", 0.0, f64::MAX),
            max_alert_rate: section.number("max_alert_rate", 0.0, 1.0),
        };
        section.deny_unknown();
        gate
    }

    /// Checks a model that was trained on `n_rows` rows. Returns the bounds that it exceeds, as sentences; empty if the
    /// model passes.
    pub fn check(&self, validation: &CrossValidation, n_rows: usize) -> Vec<String> {
        let kl = validation.best().mean_kl();
        let rate = validation.alert_rate;
        let default_bound = |bound: f64| (n_rows >= MIN_ROWS).then_some(bound);
        let max_kl = self.max_kl.or_else(|| default_bound(MAX_KL)).unwrap_or(f64::INFINITY);
        let max_rate = self.max_alert_rate.or_else(|| default_bound(MAX_ALERT_RATE)).unwrap_or(1.0);
        let mut reasons = Vec::new();
        if kl.is_nan() || kl > max_kl {
            reasons
                .push(format!("the KL divergence of held-out rows is {kl:.3}, above the limit of {max_kl}"));
        }
        if rate > max_rate {
            reasons.push(format!(
                "{:.1} % of the held-out rows are anomalous, above the limit of {:.1} %",
                rate * 100.0,
                max_rate * 100.0
            ));
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Trial;

    #[test]
    fn the_gate_names_each_bound_that_is_exceeded() {
        let gate = PromotionGate::default();
        let validation = |kl: f64, alert_rate: f64| CrossValidation {
            trials: vec![Trial { max_samples: 256, kl: vec![kl, kl] }],
            chosen: 0,
            alert_rate,
        };
        assert!(gate.check(&validation(0.02, 0.01), 500).is_empty());
        assert!(gate.check(&validation(20.0, 1.0), 499).is_empty(), "too few rows for the defaults");
        let strict = PromotionGate { max_kl: Some(0.01), ..PromotionGate::default() };
        assert_eq!(
            strict.check(&validation(0.02, 0.01), 10).len(),
            1,
            "configured bounds apply to every model"
        );
        assert_eq!(
            gate.check(&validation(2.5, 0.5), 500),
            [
                "the KL divergence of held-out rows is 2.500, above the limit of 2",
                "50.0 % of the held-out rows are anomalous, above the limit of 30.0 %",
            ]
        );
        assert_eq!(gate.check(&validation(f64::NAN, 0.0), 500).len(), 1);
    }
}
