//! What stands between a trained model and service: a model that would cry wolf, or has learned its
//! rows by heart, is kept for people to look at, and the old one goes on.

use crate::models::Validation;
use crate::yaml::Section;

/// The bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// Greatest mean KL divergence between unseen and training rows, in nats. On calm servers it is
    /// some hundredths; two differ by 1 when the distributions hardly overlap.
    pub max_kl: f64,
    /// Greatest share of unseen rows that the model may call anomalous, in [0, 1].
    pub max_alert_rate: f64,
}

impl Default for Gate {
    fn default() -> Self {
        Self { max_kl: 1.0, max_alert_rate: 0.3 }
    }
}

impl Gate {
    /// Reads the section of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let default = Self::default();
        let gate = Self {
            max_kl: section.number("max_kl", default.max_kl, 0.0, f64::MAX),
            max_alert_rate: section.number("max_alert_rate", default.max_alert_rate, 0.0, 1.0),
        };
        section.finish();
        gate
    }

    /// Everything that speaks against the model; nothing when it may pass.
    pub fn judge(&self, validation: &Validation) -> Vec<String> {
        let kl = validation.best().mean_kl();
        let rate = validation.alert_rate;
        let mut reasons = Vec::new();
        // Refuses NaN too.
        if !(kl <= self.max_kl) {
            reasons.push(format!(
                "the KL divergence of rows that it has not seen is {kl:.3}, above the limit of {}",
                self.max_kl
            ));
        }
        if !(rate <= self.max_alert_rate) {
            reasons.push(format!(
                "it calls {:.1} % of the rows that it has not seen anomalous, above the limit of {:.1} %",
                rate * 100.0,
                self.max_alert_rate * 100.0
            ));
        }
        reasons
    }
}
