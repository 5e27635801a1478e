//! The wire format of remote write: bounded snappy, and one parser for both versions of the message.
//!
//! The parser reads in place. It leaves the labels in the message and records, for each series, a hash of its
//! labels and the range of its samples, in buffers that are reused. The hashes of a request are contiguous, so that
//! their lookups wait for memory at the same time. A request is parsed completely or not at all: a truncated
//! message gives no items. Both versions give the same items. A native histogram becomes two series of floats, its
//! count and its sum, with the names of a classic histogram.
//!
//! Not taken: a message tree (prost's, for example). It costs an allocation per label of every series, and most
//! series are not watched. It also amplifies: two bytes on the wire become one empty `TimeSeries` of a hundred
//! bytes. prost remains the reference in the tests and the baseline in the benchmark.

mod histogram;
mod labels;
pub(crate) mod protobuf;
pub mod read_response;
mod rejections;
mod request;
pub mod snappy;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

pub use histogram::InvalidNativeHistogram;
pub use labels::{InvalidSeries, MAX_LABELS, MAX_NAME_BYTES, MAX_VALUE_BYTES, parse_pairs};
pub use protobuf::{Malformed, RequestPart};
pub use rejections::{RejectReason, Rejections, RequestCounts};
pub use request::{MAX_SAMPLES, MAX_SERIES, SampleKind, Scratch, shrink_if_large};
pub use v2::MAX_SYMBOLS;

use crate::prom::{Labels, METRIC_NAME, Sample};
use labels::SymbolTable;
use request::RequestParser;

/// The version of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolVersion {
    /// `prometheus.WriteRequest`.
    V1,
    /// `io.prometheus.write.v2.Request`.
    V2,
}

/// One series of a request, borrowed from the request.
#[derive(Clone, Copy)]
pub struct WireSeries<'a> {
    /// The kind of the samples.
    pub kind: SampleKind,
    /// The samples, in wire order.
    pub samples: &'a [Sample],
    /// Valid exemplars of the series. If a series gives several items, the first one counts them. A series may
    /// consist of exemplars alone.
    pub exemplars: usize,
    labels: LabelFields<'a>,
}

/// The label fields as on the wire.
#[derive(Clone, Copy)]
enum LabelFields<'a> {
    V1(&'a [u8]),
    V2(&'a [u8], SymbolTable<'a>),
}

impl WireSeries<'_> {
    /// Decodes the labels.
    ///
    /// # Errors
    /// [`InvalidSeries`] if they are not a valid label set with a metric name.
    pub fn labels(&self) -> Result<Labels, InvalidSeries> {
        let pairs = match self.labels {
            LabelFields::V1(fields) => v1::decode_labels(fields)?,
            LabelFields::V2(fields, symbols) => v2::decode_labels(fields, symbols)?,
        };
        let labels = Labels::new(pairs)?;
        let name = labels.metric_name();
        if name.is_empty() {
            return Err(InvalidSeries::NoMetricName(labels));
        }
        let name = match self.kind {
            SampleKind::Float => return Ok(labels),
            SampleKind::HistogramCount => format!("{name}_count"),
            SampleKind::HistogramSum => format!("{name}_sum"),
        };
        Ok(labels.with(METRIC_NAME, &name))
    }
}

/// A parsed request.
pub struct ParsedRequest<'a> {
    /// Its parts, by type.
    pub counts: RequestCounts,
    /// The parts rejected while parsing: faults that need neither decoded labels nor a plausible clock to find.
    pub rejections: Rejections,
    /// Samples of rejected series; no item contains them.
    pub rejected_samples: usize,
    version: ProtocolVersion,
    message: &'a [u8],
    scratch: &'a Scratch,
}

impl<'a> ParsedRequest<'a> {
    /// Parses a message. Labels are not decoded: [`WireSeries::labels`] does that, once per new series. Unknown
    /// fields are skipped, as protobuf specifies. Equal labels in equal encoding have equal hashes under one
    /// `seed`. Exemplars after `latest_ms` are rejected.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are not such a message, or exceed the limits of a request.
    pub fn parse(
        version: ProtocolVersion,
        message: &'a [u8],
        seed: u64,
        latest_ms: i64,
        scratch: &'a mut Scratch,
    ) -> Result<Self, Malformed> {
        scratch.clear();
        let mut parser = RequestParser {
            message,
            seed,
            latest_ms,
            scratch,
            counts: RequestCounts::default(),
            rejections: Rejections::default(),
            rejected_samples: 0,
        };
        match version {
            ProtocolVersion::V1 => v1::parse_request(&mut parser)?,
            ProtocolVersion::V2 => v2::parse_request(&mut parser)?,
        }
        let RequestParser { counts, rejections, rejected_samples, scratch, .. } = parser;
        Ok(Self { counts, rejections, rejected_samples, version, message, scratch })
    }

    /// The hash of each item, over its labels and its kind.
    pub fn hashes(&self) -> &'a [u128] {
        &self.scratch.hashes
    }

    /// The items: one per series of floats, two per series of histograms.
    pub fn series(&self) -> impl Iterator<Item = WireSeries<'a>> {
        let (version, message, scratch) = (self.version, self.message, self.scratch);
        scratch.items.iter().map(move |item| {
            let source = if item.has_copied_labels { &scratch.copied_labels[..] } else { message };
            let fields = &source[item.labels.0 as usize..item.labels.1 as usize];
            WireSeries {
                kind: item.kind,
                samples: &scratch.samples[item.samples.0 as usize..item.samples.1 as usize],
                exemplars: item.exemplars as usize,
                labels: match version {
                    ProtocolVersion::V1 => LabelFields::V1(fields),
                    ProtocolVersion::V2 => {
                        LabelFields::V2(fields, SymbolTable { message, symbols: &scratch.symbols })
                    }
                },
            }
        })
    }
}
