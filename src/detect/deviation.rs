//! Deviations: how far, and in which way, a feature is from its usual behaviour.

use super::derived::DERIVED_PER_FEATURE;

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
