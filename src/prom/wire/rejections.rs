//! Counts of a request's parts, and of the parts that are rejected while the others are kept.

use std::fmt;

/// The parts of a request, by type.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestCounts {
    /// `TimeSeries` messages.
    pub series: usize,
    /// Float samples, staleness markers among them.
    pub samples: usize,
    /// Exemplars.
    pub exemplars: usize,
    /// Native histograms.
    pub histograms: usize,
    /// Metadata entries.
    pub metadata: usize,
    /// Series of the other version: the `Content-Type` does not match the message.
    pub other_version: usize,
}

/// The reason for which a part of a request is rejected while the others are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// The series' labels are invalid.
    Labels,
    /// A timestamp is before the year 2000 or too far in the future.
    Timestamp,
    /// A native histogram contradicts itself.
    Histogram,
    /// An exemplar has invalid labels or an invalid timestamp.
    Exemplar,
    /// Metadata refers to unknown symbols.
    Metadata,
    /// A series of 2.0 has neither samples nor histograms nor exemplars.
    NoSamples,
}

impl RejectReason {
    /// All reasons.
    pub const ALL: [Self; 6] =
        [Self::Labels, Self::Timestamp, Self::Histogram, Self::Exemplar, Self::Metadata, Self::NoSamples];

    /// The reason as the label value of a metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Labels => "invalid_labels",
            Self::Timestamp => "invalid_timestamp",
            Self::Histogram => "invalid_histogram",
            Self::Exemplar => "invalid_exemplar",
            Self::Metadata => "invalid_metadata",
            Self::NoSamples => "no_samples",
        }
    }
}

/// The rejected parts of a request: their number by reason, and one example.
#[derive(Clone, Debug, Default)]
pub struct Rejections {
    counts: [usize; RejectReason::ALL.len()],
    example: String,
}

impl Rejections {
    /// Counts rejected parts. Keeps the first example.
    pub fn add(&mut self, reason: RejectReason, count: usize, example: impl FnOnce() -> String) {
        if count > 0 && self.is_empty() {
            self.example = example();
        }
        self.counts[reason as usize] += count;
    }

    /// The number of parts rejected for this reason.
    pub fn count(&self, reason: RejectReason) -> usize {
        self.counts[reason as usize]
    }

    /// True if no part is rejected.
    pub fn is_empty(&self) -> bool {
        self.counts == [0; RejectReason::ALL.len()]
    }
}

/// Formats as `2 invalid_labels, 1 invalid_timestamp; for example: ...`.
impl fmt::Display for Rejections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = RejectReason::ALL.into_iter().filter(|reason| self.count(*reason) > 0);
        for (i, reason) in counted.enumerate() {
            write!(f, "{}{} {}", if i == 0 { "" } else { ", " }, self.count(reason), reason.label())?;
        }
        write!(f, "; for example: {}", self.example)
    }
}
