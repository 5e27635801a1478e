//! The bytes of remote write: bounded snappy, and one way to read both versions of the message.
//!
//! A message tree (prost's, say) would cost an allocation per label of every series, and most
//! series that arrive are not watched. It would also be a bomb: two wire bytes become one empty
//! `TimeSeries` of a hundred bytes. Reading in place leaves the labels where they stand and notes
//! of each series a hash of them and where its samples are, in buffers that are used again. The
//! hashes of a request lie side by side, so that they are looked up together: look-ups wait for
//! memory, and those of one loop wait at the same time. What came out is whole or not at all: a
//! message that breaks off has given nothing away. prost remains the oracle in the tests and the
//! baseline in the bench.
//!
//! Both versions end in the same items. A native histogram becomes two series of floats, its count
//! and its sum, with the names that a classic histogram has for them.

mod histogram;
pub(crate) mod protobuf;
pub mod read_response;
pub mod snappy;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

pub use histogram::InvalidNativeHistogram;
pub use protobuf::Malformed;

use crate::prom::{Labels, METRIC_NAME, Sample, labels};
use histogram::NativeHistogram;
use protobuf::{FIXED64, FieldReader, VARINT};
use std::fmt;

/// Series in a request. Prometheus sends at most `max_samples_per_send`, 2,000 by default.
pub const MAX_SERIES: usize = 100_000;
/// Samples in a request, exemplars and two for every native histogram among them.
pub const MAX_SAMPLES: usize = 1_000_000;
/// Symbols in a request of 2.0.
pub const MAX_SYMBOLS: usize = 1_000_000;
/// Labels of a series.
pub const MAX_LABELS: usize = 64;
/// Bytes of a label name.
pub const MAX_NAME_BYTES: usize = 1 << 10;
/// Bytes of a label value.
pub const MAX_VALUE_BYTES: usize = 16 << 10;
/// Bytes that a buffer keeps between requests: more than any request of usual size takes.
const MAX_RETAINED_BYTES: usize = 4 << 20;

/// The version of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolVersion {
    /// `prometheus.WriteRequest`.
    V1,
    /// `io.prometheus.write.v2.Request`.
    V2,
}

/// What the samples of an item are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleKind {
    /// Float samples, as they were sent.
    Float,
    /// The counts of native histograms.
    HistogramCount,
    /// Their sums: as many as there are counts, at the same times.
    HistogramSum,
}

/// One series of a request, borrowed from it.
#[derive(Clone, Copy)]
pub struct WireSeries<'a> {
    /// What the samples are.
    pub kind: SampleKind,
    /// The samples, in the order of the wire.
    pub samples: &'a [Sample],
    /// Valid exemplars of the series; of a series that gives several items, at the first. There may
    /// be nothing else in a series.
    pub exemplars: usize,
    labels: LabelFields<'a>,
}

/// The label fields as they stand on the wire.
#[derive(Clone, Copy)]
enum LabelFields<'a> {
    V1(&'a [u8]),
    V2(&'a [u8], SymbolTable<'a>),
}

/// The symbol table of a request of 2.0.
#[derive(Clone, Copy)]
struct SymbolTable<'a> {
    message: &'a [u8],
    symbols: &'a [Symbol],
}

struct Symbol {
    start: u32,
    length: u32,
    /// In halves, which need no padding.
    hash: [u64; 2],
}

/// What a request held.
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
    /// Series of the other version: the message is not what its sender says.
    pub other_version: usize,
}

/// Why a part of a request is refused while the others are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// The series' labels are invalid.
    Labels,
    /// A timestamp is before the year 2000 or too far in the future.
    Timestamp,
    /// A native histogram contradicts itself.
    Histogram,
    /// An exemplar's labels or timestamp cannot be.
    Exemplar,
    /// Metadata refers to symbols that are not there.
    Metadata,
    /// A series of 2.0 has neither samples nor histograms nor exemplars.
    NoSamples,
}

impl RejectReason {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Labels, Self::Timestamp, Self::Histogram, Self::Exemplar, Self::Metadata, Self::NoSamples];

    /// The reason as a metric's label.
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

/// What of a request is refused: how much, why, and an example.
#[derive(Clone, Debug, Default)]
pub struct Rejections {
    counts: [usize; RejectReason::ALL.len()],
    example: String,
}

impl Rejections {
    /// Counts; the first example is kept.
    pub fn add(&mut self, reason: RejectReason, count: usize, example: impl FnOnce() -> String) {
        if count > 0 && self.is_empty() {
            self.example = example();
        }
        self.counts[reason as usize] += count;
    }

    /// How many for this reason.
    pub fn count(&self, reason: RejectReason) -> usize {
        self.counts[reason as usize]
    }

    /// Is nothing refused?
    pub fn is_empty(&self) -> bool {
        self.counts == [0; RejectReason::ALL.len()]
    }
}

/// `2 invalid_labels, 1 invalid_timestamp; for example: ...`
impl fmt::Display for Rejections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = RejectReason::ALL.into_iter().filter(|reason| self.count(*reason) > 0);
        for (i, reason) in counted.enumerate() {
            write!(f, "{}{} {}", if i == 0 { "" } else { ", " }, self.count(reason), reason.label())?;
        }
        write!(f, "; for example: {}", self.example)
    }
}

/// Where an item's parts are.
struct RequestItem {
    kind: SampleKind,
    /// Do the label fields stand apart on the wire? Then they were gathered.
    has_copied_labels: bool,
    labels: (u32, u32),
    samples: (u32, u32),
    exemplars: u32,
}

/// Buffers that a reader keeps from request to request, so that reading does not allocate.
#[derive(Default)]
pub struct Scratch {
    items: Vec<RequestItem>,
    hashes: Vec<u128>,
    samples: Vec<Sample>,
    copied_labels: Vec<u8>,
    symbols: Vec<Symbol>,
    histograms: Vec<NativeHistogram>,
}

impl Scratch {
    fn clear(&mut self) {
        clear(&mut self.items);
        clear(&mut self.hashes);
        clear(&mut self.samples);
        clear(&mut self.copied_labels);
        clear(&mut self.symbols);
        clear(&mut self.histograms);
    }
}

fn clear<T>(buffer: &mut Vec<T>) {
    shrink_if_large(buffer);
    buffer.clear();
}

/// Gives back what one large request has made a buffer take.
pub fn shrink_if_large<T>(buffer: &mut Vec<T>) {
    if buffer.capacity() * size_of::<T>() > MAX_RETAINED_BYTES {
        *buffer = Vec::new();
    }
}

/// A request that was read.
pub struct ParsedRequest<'a> {
    /// What it held.
    pub counts: RequestCounts,
    /// What of it is refused already: what can be told without a clock's sense and without labels.
    pub rejections: Rejections,
    /// Samples of refused series, which are in no item.
    pub rejected_samples: usize,
    version: ProtocolVersion,
    message: &'a [u8],
    scratch: &'a Scratch,
}

impl<'a> ParsedRequest<'a> {
    /// Reads a message. Labels are not looked into: that is [`Series::labels`], once per series ever
    /// seen. Unknown fields are skipped, as protobuf has it. Equal labels have equal hashes under one
    /// `seed`, as long as they are written alike; exemplars after `latest_ms` are refused.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes are no such message, or hold more than a request may.
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

    /// The hash of each item's labels, and of what it is.
    pub fn hashes(&self) -> &'a [u128] {
        &self.scratch.hashes
    }

    /// The items: one for a series of floats, two for one of histograms.
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

/// A request that is being read.
struct RequestParser<'a> {
    message: &'a [u8],
    seed: u64,
    latest_ms: i64,
    scratch: &'a mut Scratch,
    counts: RequestCounts,
    rejections: Rejections,
    rejected_samples: usize,
}

/// A series that is being read.
struct PartialSeries {
    /// Its label fields: a part of the message, or of what was gathered.
    labels: (usize, usize),
    has_copied_labels: bool,
    n_labels: usize,
    first_sample: usize,
    exemplars: usize,
}

impl<'a> RequestParser<'a> {
    fn begin_series(&mut self) -> Result<PartialSeries, Malformed> {
        self.counts.series += 1;
        if self.counts.series > MAX_SERIES {
            return Err(Malformed::TooMany { what: "series", limit: MAX_SERIES });
        }
        self.scratch.histograms.clear();
        let first_sample = self.scratch.samples.len();
        Ok(PartialSeries {
            labels: (0, 0),
            has_copied_labels: false,
            n_labels: 0,
            first_sample,
            exemplars: 0,
        })
    }

    /// Takes a label field. Senders write the labels one after another, so that their bytes are one
    /// part of the message. Where something stands between them, the pieces are gathered.
    #[inline]
    fn push_label_field(&mut self, current: &mut PartialSeries, start: usize, end: usize) {
        if current.labels.0 == current.labels.1 {
            current.labels = (start, end);
        } else if current.labels.1 == start && !current.has_copied_labels {
            current.labels.1 = end;
        } else {
            let copied_labels = &mut self.scratch.copied_labels;
            if !current.has_copied_labels {
                current.has_copied_labels = true;
                let first = copied_labels.len();
                copied_labels.extend_from_slice(&self.message[current.labels.0..current.labels.1]);
                current.labels = (first, copied_labels.len());
            }
            copied_labels.extend_from_slice(&self.message[start..end]);
            current.labels.1 = copied_labels.len();
        }
    }

    /// Two bytes on the wire are sixteen here: the limit holds before they are stored.
    #[inline]
    fn check_sample_limit(&self, n_new: usize) -> Result<(), Malformed> {
        let RequestCounts { samples, exemplars, histograms, .. } = self.counts;
        if samples + exemplars + 2 * histograms + n_new > MAX_SAMPLES {
            return Err(Malformed::TooMany { what: "samples", limit: MAX_SAMPLES });
        }
        Ok(())
    }

    #[inline]
    fn push_sample(&mut self, message: &[u8]) -> Result<(), Malformed> {
        self.check_sample_limit(1)?;
        self.counts.samples += 1;
        self.scratch.samples.push(parse_sample(message)?);
        Ok(())
    }

    fn push_histogram(&mut self, message: &[u8]) -> Result<(), Malformed> {
        self.check_sample_limit(2)?;
        self.counts.histograms += 1;
        match histogram::parse(message)? {
            Ok(histogram) => self.scratch.histograms.push(histogram),
            Err(invalid) => self.rejections.add(RejectReason::Histogram, 1, || invalid.to_string()),
        }
        Ok(())
    }

    /// Counts an exemplar; a mistake in its labels was found before.
    fn count_exemplar(&mut self, current: &mut PartialSeries, timestamp_ms: i64) {
        let latest_ms = self.latest_ms;
        if timestamp_ms <= latest_ms {
            current.exemplars += 1;
            return;
        }
        self.rejections.add(RejectReason::Exemplar, 1, || {
            format!("an exemplar has timestamp {timestamp_ms}, later than {latest_ms}")
        });
    }

    /// The series is over: its items, with the hash of its labels.
    #[inline]
    fn end_series(&mut self, current: PartialSeries, hash: u128) {
        let scratch = &mut *self.scratch;
        let mut exemplars = current.exemplars as u32;
        let mut first = current.first_sample;
        let mut push_item = |kind: SampleKind, hash: u128, samples: &Vec<Sample>| {
            let item = RequestItem {
                kind,
                has_copied_labels: current.has_copied_labels,
                labels: (current.labels.0 as u32, current.labels.1 as u32),
                samples: (first as u32, samples.len() as u32),
                exemplars: std::mem::take(&mut exemplars),
            };
            first = samples.len();
            scratch.items.push(item);
            scratch.hashes.push(hash);
        };
        // Prometheus sends exemplars as series of their own.
        let is_exemplar = current.exemplars > 0 && scratch.histograms.is_empty();
        if scratch.samples.len() > current.first_sample || is_exemplar {
            push_item(SampleKind::Float, hash, &scratch.samples);
        }
        if !scratch.histograms.is_empty() {
            scratch.samples.extend(scratch.histograms.iter().map(NativeHistogram::count));
            push_item(SampleKind::HistogramCount, hash ^ COUNT_HASH_MASK, &scratch.samples);
            scratch.samples.extend(scratch.histograms.iter().map(NativeHistogram::sum));
            push_item(SampleKind::HistogramSum, hash ^ SUM_HASH_MASK, &scratch.samples);
        }
    }

    /// The series is over, and nothing of it can be used.
    fn reject_series(&mut self, current: &PartialSeries, example: impl FnOnce() -> String) {
        let n_samples = self.scratch.samples.len() - current.first_sample;
        let n_histograms = self.scratch.histograms.len();
        self.scratch.samples.truncate(current.first_sample);
        // Of a series that is nothing else, its exemplars are what is lost.
        let count = if n_samples + n_histograms == 0 { current.exemplars } else { n_samples + n_histograms };
        self.rejections.add(RejectReason::Labels, count, example);
        self.rejected_samples += n_samples + 2 * n_histograms;
    }
}

/// What makes the key of a histogram's count, and of its sum, out of its labels' hash. Any two
/// constants would do: hashes of labels do not differ by one that is known.
const COUNT_HASH_MASK: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834;
const SUM_HASH_MASK: u128 = 0xc2b2_ae3d_27d4_eb4f_1656_67b1_9e37_79f9;

/// `Sample` of both versions; the start timestamp of 2.0 is not used.
#[inline]
fn parse_sample(message: &[u8]) -> Result<Sample, Malformed> {
    let mut sample = Sample { timestamp_ms: 0, value: 0.0 };
    let mut fields = FieldReader::new(message);
    while !fields.is_empty() {
        match fields.read_key()? {
            (1, FIXED64) => sample.value = f64::from_bits(fields.read_fixed64()?),
            (2, VARINT) => sample.timestamp_ms = fields.read_varint()?.cast_signed(),
            (field @ (1 | 2), wire_type) => {
                return Err(Malformed::WireType { message: "Sample", field, wire_type });
            }
            (_, wire_type) => fields.skip_field(wire_type)?,
        }
    }
    Ok(sample)
}

/// Whose labels are wrong.
const SERIES_OWNER: &str = "the series";
const EXEMPLAR_OWNER: &str = "an exemplar";

/// Why the labels of one series are refused, while the others of the request are kept.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSeries {
    /// The bytes of a label are no `Label` message.
    #[error("a label is no protobuf message")]
    Malformed(#[from] Malformed),
    /// A name or value is not UTF-8.
    #[error("a label name or value is not UTF-8: {0:?}")]
    Utf8(String),
    /// More than [`MAX_LABELS`].
    #[error("{whose} has {count} labels, above the limit of {MAX_LABELS}")]
    TooManyLabels {
        /// The series, or an exemplar.
        whose: &'static str,
        /// How many there are.
        count: usize,
    },
    /// A name above [`MAX_NAME_BYTES`] or a value above [`MAX_VALUE_BYTES`].
    #[error("the {what} {start:?}... has {length} bytes, above the limit of {limit}")]
    TooLong {
        /// Name or value.
        what: &'static str,
        /// How it begins.
        start: String,
        /// Its length, in bytes.
        length: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A name without a value.
    #[error("{whose} has {count} label references, which is no even number")]
    OddReferenceCount {
        /// The series, or an exemplar.
        whose: &'static str,
        /// How many there are.
        count: usize,
    },
    /// A symbol that is not there.
    #[error("{whose} refers to symbol {reference} of {symbols}")]
    UnknownSymbol {
        /// The series, or an exemplar.
        whose: &'static str,
        /// Number of the symbol.
        reference: u32,
        /// How many there are.
        symbols: usize,
    },
    /// Not a label set.
    #[error(transparent)]
    Labels(#[from] labels::InvalidLabels),
    /// No metric name.
    #[error("series {0} has no metric name")]
    NoMetricName(Labels),
}

impl WireSeries<'_> {
    /// Decodes the labels.
    ///
    /// # Errors
    /// [`InvalidSeries`] when they are no valid label set with a metric name.
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

fn parse_label_name(bytes: &[u8]) -> Result<&str, InvalidSeries> {
    parse_text("label name", bytes, MAX_NAME_BYTES)
}

fn parse_label_value(bytes: &[u8]) -> Result<&str, InvalidSeries> {
    parse_text("label value", bytes, MAX_VALUE_BYTES)
}

fn parse_text<'a>(what: &'static str, bytes: &'a [u8], limit: usize) -> Result<&'a str, InvalidSeries> {
    let start = || String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
    if bytes.len() > limit {
        return Err(InvalidSeries::TooLong { what, start: start(), length: bytes.len(), limit });
    }
    std::str::from_utf8(bytes).map_err(|_| InvalidSeries::Utf8(start()))
}
