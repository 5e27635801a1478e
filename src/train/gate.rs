//! What stands between a trained model and service: a model that would cry wolf, or has learned its
//! rows by heart, is kept for people to look at, and the old one goes on.

use crate::models::CrossValidation;
use crate::yaml::Section;

/// Rows below which the default bounds do not judge: with a fold of a hundred rows, two histograms of
/// the same distribution differ as much as two of different ones.
const MIN_ROWS: usize = 500;

/// The bounds. Those that the configuration names judge every model, the defaults those of at least 500
/// rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromotionGate {
    /// Greatest mean KL divergence between unseen and training rows, in nats.
    pub max_kl: Option<f64>,
    /// Greatest share of unseen rows that the model may call anomalous, in [0, 1].
    pub max_alert_rate: Option<f64>,
}

/// Some tenths are usual where days differ from each other; distributions that hardly overlap have 5 and
/// more.
const MAX_KL: f64 = 2.0;

/// The threshold of a plain forest calls up to a fifth of heavy-tailed rows anomalous.
const MAX_ALERT_RATE: f64 = 0.3;

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

    /// Everything that speaks against the model; nothing when it may pass.
    pub fn check(&self, validation: &CrossValidation, n_rows: usize) -> Vec<String> {
        let kl = validation.best().mean_kl();
        let rate = validation.alert_rate;
        let default_bound = |bound: f64| (n_rows >= MIN_ROWS).then_some(bound);
        let max_kl = self.max_kl.or_else(|| default_bound(MAX_KL)).unwrap_or(f64::INFINITY);
        let max_rate = self.max_alert_rate.or_else(|| default_bound(MAX_ALERT_RATE)).unwrap_or(1.0);
        let mut reasons = Vec::new();
        if kl.is_nan() || kl > max_kl {
            reasons.push(format!(
                "the KL divergence of rows that it has not seen is {kl:.3}, above the limit of {max_kl}"
            ));
        }
        if rate > max_rate {
            reasons.push(format!(
                "it calls {:.1} % of the rows that it has not seen anomalous, above the limit of {:.1} %",
                rate * 100.0,
                max_rate * 100.0
            ));
        }
        reasons
    }
}
