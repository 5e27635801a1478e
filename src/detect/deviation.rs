//! Deviations: how far, and in which way, a feature is from its usual behaviour.

use super::derived::DERIVED_PER_FEATURE;

/// Features in the tail score.
const TOP_FEATURES: usize = 2;

/// The strongest deviation of one feature in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deviation {
    /// Number of the feature.
    pub feature: usize,
    /// The way in which it deviates most.
    pub reason: DeviationReason,
    /// Size in sigmas of training, at least 0.
    pub sigmas: f64,
}

/// The way in which a value is unusual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviationReason {
    /// The seasonal residual deviates: the level is unusual for this time of day.
    UnusualForThisHour,
    /// The difference deviates: the value changed much within a minute.
    Jumped,
    /// The standard deviation deviates: the value varies more or less than usual.
    Unsteady,
    /// The mean size of its packets, or of the packets of its bytes, deviates for most of twenty minutes.
    OfUnusualPacketSize,
}

impl DeviationReason {
    /// In the order of the derived features.
    pub(super) const DERIVED: [Self; DERIVED_PER_FEATURE] =
        [Self::UnusualForThisHour, Self::Jumped, Self::Unsteady];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnusualForThisHour => "unusual_for_this_hour",
            Self::Jumped => "jumped",
            Self::Unsteady => "unsteady",
            Self::OfUnusualPacketSize => "of_unusual_packet_size",
        }
    }

    /// Parses a label value of [`as_str`](Self::as_str).
    pub fn parse(text: &str) -> Option<Self> {
        Self::DERIVED.into_iter().chain([Self::OfUnusualPacketSize]).find(|reason| reason.as_str() == text)
    }

    /// The words in reports.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::UnusualForThisHour => "unusual for this hour",
            Self::Jumped => "jumped",
            Self::Unsteady => "unsteady",
            Self::OfUnusualPacketSize => "of unusual packet size",
        }
    }
}

/// The one of two deviations that is nearer to 0; 0 if they are on different sides.
pub(super) fn weaker(a: f32, b: f32) -> f32 {
    if a * b > 0.0 { a.abs().min(b.abs()).copysign(a) } else { 0.0 }
}

/// Mean of ln(1 + sigmas) of the features that deviate most.
pub(super) fn tail_score(deviations: &[Deviation]) -> f64 {
    let mut top_sigmas = [0.0; TOP_FEATURES];
    for deviation in deviations {
        // The least one gives way, and the others keep their order.
        let mut sigmas = deviation.sigmas;
        for top in &mut top_sigmas {
            if sigmas > *top {
                std::mem::swap(&mut sigmas, top);
            }
        }
    }
    let n_features = deviations.len().min(TOP_FEATURES);
    top_sigmas.iter().map(|sigmas| sigmas.ln_1p()).sum::<f64>() / n_features.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tail_score_is_the_mean_of_the_greatest(sigmas in prop::collection::vec(0.0..9.0, 1..6)) {
            let deviation =
                |sigmas: &f64| Deviation { feature: 0, reason: DeviationReason::UnusualForThisHour, sigmas: *sigmas };
            let score = tail_score(&sigmas.iter().map(deviation).collect::<Vec<_>>());
            let mut logarithms: Vec<f64> = sigmas.iter().map(|sigmas| sigmas.ln_1p()).collect();
            logarithms.sort_by(|a, b| b.total_cmp(a));
            logarithms.truncate(TOP_FEATURES);
            prop_assert_eq!(score, logarithms.iter().sum::<f64>() / logarithms.len() as f64);
        }
    }
}
