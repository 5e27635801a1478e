//! Remote write 1.0: a visit of `prometheus.WriteRequest`, series by series.

use super::protobuf::{FIXED64, LENGTH_DELIMITED, Malformed, Reader, VARINT};
use crate::prom::{Labels, Sample, labels};

/// Series in a request. Prometheus sends at most `max_samples_per_send`, 2,000 by default.
pub const MAX_SERIES: usize = 100_000;
/// Samples in a request.
pub const MAX_SAMPLES: usize = 1_000_000;
/// Labels of a series.
pub const MAX_LABELS: usize = 64;
/// Bytes of a label name.
pub const MAX_NAME_BYTES: usize = 1 << 10;
/// Bytes of a label value.
pub const MAX_VALUE_BYTES: usize = 16 << 10;

/// One `TimeSeries` of a request, borrowed from its bytes.
pub struct Series<'a> {
    /// The label fields as they stand on the wire: equal bytes are equal labels.
    pub label_bytes: &'a [u8],
    /// The samples, in the order of the wire.
    pub samples: &'a [Sample],
}

/// What a request held.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// `TimeSeries` messages.
    pub series: usize,
    /// Float samples, staleness markers among them.
    pub samples: usize,
    /// Exemplars; they are counted and left.
    pub exemplars: usize,
    /// Native histograms; they are counted and left.
    pub histograms: usize,
    /// Metadata entries; they are counted and left.
    pub metadata: usize,
}

/// Buffers that a visitor keeps from request to request, so that a visit does not allocate.
#[derive(Default)]
pub struct Scratch {
    samples: Vec<Sample>,
    labels: Vec<u8>,
}

/// Calls `each` for every series of a `WriteRequest`, in the order of the wire.
///
/// Labels are not looked into: that is [`Series::labels`], once per series ever seen. Unknown
/// fields are skipped, as protobuf has it. On an error `each` may have been called already: stage
/// what it does until this returns.
///
/// # Errors
/// [`Malformed`] when the bytes are no such message, or hold more than [`MAX_SERIES`] or
/// [`MAX_SAMPLES`].
pub fn visit(
    message: &[u8],
    scratch: &mut Scratch,
    mut each: impl FnMut(Series<'_>),
) -> Result<Counts, Malformed> {
    let mut counts = Counts::default();
    let mut request = Reader::new(message);
    while !request.is_empty() {
        match request.key()? {
            (1, LENGTH_DELIMITED) => {
                counts.series += 1;
                if counts.series > MAX_SERIES {
                    return Err(Malformed::TooMany { what: "series", limit: MAX_SERIES });
                }
                each(series(request.bytes()?, scratch, &mut counts)?);
            }
            (3, LENGTH_DELIMITED) => {
                request.bytes()?;
                counts.metadata += 1;
            }
            (field @ (1 | 3), wire_type) => {
                return Err(Malformed::WireType { message: "WriteRequest", field, wire_type });
            }
            (_, wire_type) => request.skip(wire_type)?,
        }
    }
    Ok(counts)
}

#[inline]
fn series<'a>(
    message: &'a [u8],
    scratch: &'a mut Scratch,
    counts: &mut Counts,
) -> Result<Series<'a>, Malformed> {
    scratch.samples.clear();
    // Senders write the labels one after another, so that their bytes can be borrowed as one
    // slice. Where something stands between them, the pieces are gathered.
    let mut labels = 0..0;
    let mut gathered = false;
    let mut fields = Reader::new(message);
    while !fields.is_empty() {
        let start = message.len() - fields.remaining();
        let (field, wire_type) = fields.key()?;
        if wire_type != LENGTH_DELIMITED {
            if (1..=4).contains(&field) {
                return Err(Malformed::WireType { message: "TimeSeries", field, wire_type });
            }
            fields.skip(wire_type)?;
            continue;
        }
        let bytes = fields.bytes()?;
        let end = message.len() - fields.remaining();
        match field {
            1 if labels.is_empty() => labels = start..end,
            1 if labels.end == start && !gathered => labels.end = end,
            1 => {
                if !gathered {
                    gathered = true;
                    scratch.labels.clear();
                    scratch.labels.extend_from_slice(&message[labels.clone()]);
                }
                scratch.labels.extend_from_slice(&message[start..end]);
            }
            2 => {
                // Two bytes on the wire are sixteen here: the limit holds before they are stored.
                if counts.samples == MAX_SAMPLES {
                    return Err(Malformed::TooMany { what: "samples", limit: MAX_SAMPLES });
                }
                counts.samples += 1;
                scratch.samples.push(sample(bytes)?);
            }
            3 => counts.exemplars += 1,
            4 => counts.histograms += 1,
            _ => {}
        }
    }
    let label_bytes = if gathered { &scratch.labels } else { &message[labels] };
    Ok(Series { label_bytes, samples: &scratch.samples })
}

#[inline]
fn sample(message: &[u8]) -> Result<Sample, Malformed> {
    let mut sample = Sample { timestamp_ms: 0, value: 0.0 };
    let mut fields = Reader::new(message);
    while !fields.is_empty() {
        match fields.key()? {
            (1, FIXED64) => sample.value = f64::from_bits(fields.fixed64()?),
            (2, VARINT) => sample.timestamp_ms = fields.varint()?.cast_signed(),
            (field @ (1 | 2), wire_type) => {
                return Err(Malformed::WireType { message: "Sample", field, wire_type });
            }
            (_, wire_type) => fields.skip(wire_type)?,
        }
    }
    Ok(sample)
}

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
    #[error("the series has {count} labels, above the limit of {MAX_LABELS}")]
    TooManyLabels {
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
    /// Not a label set.
    #[error(transparent)]
    Labels(#[from] labels::Invalid),
    /// No metric name.
    #[error("series {0} has no metric name")]
    NoMetricName(Labels),
}

impl Series<'_> {
    /// Decodes the labels.
    ///
    /// # Errors
    /// [`InvalidSeries`] when they are no valid label set with a metric name.
    pub fn labels(&self) -> Result<Labels, InvalidSeries> {
        let mut pairs = Vec::new();
        let mut fields = Reader::new(self.label_bytes);
        while !fields.is_empty() {
            fields.key()?;
            let label = fields.bytes()?;
            if pairs.len() < MAX_LABELS {
                pairs.push(label_pair(label)?);
            } else {
                let mut count = pairs.len() + 1;
                while !fields.is_empty() {
                    fields.key()?;
                    fields.bytes()?;
                    count += 1;
                }
                return Err(InvalidSeries::TooManyLabels { count });
            }
        }
        let labels = Labels::new(pairs)?;
        if labels.metric_name().is_empty() {
            return Err(InvalidSeries::NoMetricName(labels));
        }
        Ok(labels)
    }
}

fn label_pair(message: &[u8]) -> Result<(&str, &str), InvalidSeries> {
    let (mut name, mut value) = (&[][..], &[][..]);
    let mut fields = Reader::new(message);
    while !fields.is_empty() {
        match fields.key()? {
            (1, LENGTH_DELIMITED) => name = fields.bytes()?,
            (2, LENGTH_DELIMITED) => value = fields.bytes()?,
            (field @ (1 | 2), wire_type) => {
                return Err(Malformed::WireType { message: "Label", field, wire_type }.into());
            }
            (_, wire_type) => fields.skip(wire_type)?,
        }
    }
    Ok((text("label name", name, MAX_NAME_BYTES)?, text("label value", value, MAX_VALUE_BYTES)?))
}

fn text<'a>(what: &'static str, bytes: &'a [u8], limit: usize) -> Result<&'a str, InvalidSeries> {
    let start = || String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
    if bytes.len() > limit {
        return Err(InvalidSeries::TooLong { what, start: start(), length: bytes.len(), limit });
    }
    std::str::from_utf8(bytes).map_err(|_| InvalidSeries::Utf8(start()))
}

#[cfg(test)]
mod tests;
