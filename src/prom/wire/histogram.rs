//! Native histograms: checked while parsed, and reduced to count and sum.
//!
//! The rules are Prometheus' own (`model/histogram`, `Validate`), so every histogram that Prometheus stores passes.
//! The checks need the sums and numbers of buckets only; the buckets are not stored.

use super::protobuf::{FIXED64, FieldReader, LENGTH_DELIMITED, Malformed, VARINT};
use crate::prom::{STALE_BITS, Sample};
use std::fmt;

/// Timestamp, count and sum of a native histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NativeHistogram {
    timestamp_ms: i64,
    count: f64,
    sum: f64,
}

impl NativeHistogram {
    /// The number of observations as a sample. A staleness marker stays one.
    pub fn count(&self) -> Sample {
        let is_stale = self.sum.to_bits() == STALE_BITS;
        Sample {
            timestamp_ms: self.timestamp_ms,
            value: if is_stale { f64::from_bits(STALE_BITS) } else { self.count },
        }
    }

    /// The sum of the observations as a sample.
    pub fn sum(&self) -> Sample {
        Sample { timestamp_ms: self.timestamp_ms, value: self.sum }
    }
}

/// The schema of custom bounds.
const CUSTOM_SCHEMA: i64 = -53;
/// Schemas of exponential bounds that Prometheus accepts. It reduces those above 8 to 8.
const EXPONENTIAL_SCHEMAS: std::ops::RangeInclusive<i64> = -9..=52;

/// The error for a native histogram that contradicts itself.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum InvalidNativeHistogram {
    /// The schema is neither exponential nor custom.
    #[error("a histogram has the unknown schema {0}")]
    UnknownSchema(i64),
    /// The spans announce another number of buckets than there are.
    #[error("the {side} spans of a histogram have {spans} buckets, and there are {buckets}")]
    SpanMismatch {
        /// Positive or negative.
        side: BucketSign,
        /// Buckets that the spans announce.
        spans: u64,
        /// Buckets that are there.
        buckets: u64,
    },
    /// A span starts before the previous one ends.
    #[error("a span of a histogram has offset {0} after another one")]
    NegativeOffset(i64),
    /// A bucket has a negative count.
    #[error("a {0} bucket of a histogram has less than 0 observations")]
    NegativeBucket(BucketSign),
    /// The count differs from the sum of the buckets.
    #[error("a histogram counts {count} observations, and {buckets} are in its buckets")]
    CountMismatch {
        /// The count.
        count: u64,
        /// Observations in the buckets, the zero bucket included.
        buckets: u128,
    },
    /// A field that a histogram of this schema must not have.
    #[error("a histogram of schema {schema} has {what}")]
    UnexpectedField {
        /// The schema.
        schema: i64,
        /// The field.
        what: &'static str,
    },
    /// Custom bounds that do not ascend, or are not finite.
    #[error("the custom bounds of a histogram do not ascend, or are not finite")]
    InvalidBounds,
    /// More buckets than custom bounds make.
    #[error("a histogram has {buckets} buckets for {bounds} custom bounds")]
    TooFewBounds {
        /// Buckets that the spans cover, gaps included.
        buckets: u64,
        /// Number of bounds.
        bounds: u64,
    },
}

/// The sign of the observations of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketSign {
    /// Above zero.
    Positive,
    /// Below zero.
    Negative,
}

impl fmt::Display for BucketSign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Positive => "positive",
            Self::Negative => "negative",
        })
    }
}

/// The buckets of one sign, checked as they are parsed.
#[derive(Default)]
struct BucketCheck {
    n_spans: u64,
    /// Buckets that the spans announce.
    n_span_buckets: u64,
    /// Buckets that the spans cover, gaps included.
    extent: u64,
    negative_offset: Option<i64>,
    n_deltas: u64,
    n_counts: u64,
    /// Observations in the last integer bucket, to which the next delta is added.
    last_count: i64,
    observations: u128,
    has_negative: bool,
}

impl BucketCheck {
    fn push_span(&mut self, message: &[u8]) -> Result<(), Malformed> {
        let (mut offset, mut length) = (0, 0);
        let mut fields = FieldReader::new(message);
        while !fields.is_empty() {
            match fields.read_key()? {
                (1, VARINT) => offset = i64::from(decode_zigzag(fields.read_varint()?) as i32),
                (2, VARINT) => length = u64::from(fields.read_varint()? as u32),
                (field @ (1 | 2), wire_type) => {
                    return Err(Malformed::WireType { message: "BucketSpan", field, wire_type });
                }
                (_, wire_type) => fields.skip_field(wire_type)?,
            }
        }
        if self.n_spans > 0 && offset < 0 {
            self.negative_offset.get_or_insert(offset);
        }
        self.n_spans += 1;
        self.n_span_buckets += length;
        self.extent += length + offset.max(0).cast_unsigned();
        Ok(())
    }

    fn push_delta(&mut self, delta: i64) {
        self.n_deltas += 1;
        match self.last_count.checked_add(delta).and_then(|last| u64::try_from(last).ok()) {
            Some(last) => {
                self.last_count = last.cast_signed();
                self.observations += u128::from(last);
            }
            None => self.has_negative = true,
        }
    }

    fn push_count(&mut self, count: f64) {
        self.n_counts += 1;
        self.has_negative |= count < 0.0;
    }

    fn check(&self, side: BucketSign, is_float: bool) -> Result<(), InvalidNativeHistogram> {
        let buckets = if is_float { self.n_counts } else { self.n_deltas };
        if let Some(offset) = self.negative_offset {
            return Err(InvalidNativeHistogram::NegativeOffset(offset));
        }
        if self.n_span_buckets != buckets {
            return Err(InvalidNativeHistogram::SpanMismatch { side, spans: self.n_span_buckets, buckets });
        }
        if self.has_negative { Err(InvalidNativeHistogram::NegativeBucket(side)) } else { Ok(()) }
    }
}

/// A `oneof` of an integer and a float. The last one on the wire applies.
#[derive(Clone, Copy)]
enum IntOrFloat {
    Int(u64),
    Float(f64),
}

impl IntOrFloat {
    fn is_zero(self) -> bool {
        match self {
            Self::Int(number) => number == 0,
            Self::Float(number) => number == 0.0,
        }
    }

    /// Turns a zero of either type into the integer zero.
    fn normalize_zero(self) -> Self {
        if self.is_zero() { Self::Int(0) } else { self }
    }
}

/// The custom bounds parsed so far.
struct CustomBounds {
    n: u64,
    last: f64,
    is_ascending: bool,
}

impl CustomBounds {
    fn push(&mut self, bound: f64) {
        self.n += 1;
        self.is_ascending &= bound > self.last && bound.is_finite();
        self.last = bound;
    }
}

/// Parses and checks a `Histogram` message.
pub fn parse(message: &[u8]) -> Result<Result<NativeHistogram, InvalidNativeHistogram>, Malformed> {
    let mut histogram = NativeHistogram { timestamp_ms: 0, count: 0.0, sum: 0.0 };
    let (mut count, mut zero_count) = (IntOrFloat::Int(0), IntOrFloat::Int(0));
    let (mut schema, mut zero_threshold) = (0, 0.0);
    let (mut positive, mut negative) = (BucketCheck::default(), BucketCheck::default());
    let mut bounds = CustomBounds { n: 0, last: f64::NEG_INFINITY, is_ascending: true };
    let mut fields = FieldReader::new(message);
    while !fields.is_empty() {
        let (field, wire_type) = fields.read_key()?;
        match (field, wire_type) {
            (1, VARINT) => count = IntOrFloat::Int(fields.read_varint()?),
            (2, FIXED64) => count = IntOrFloat::Float(f64::from_bits(fields.read_fixed64()?)),
            (3, FIXED64) => histogram.sum = f64::from_bits(fields.read_fixed64()?),
            (4, VARINT) => schema = i64::from(decode_zigzag(fields.read_varint()?) as i32),
            (5, FIXED64) => zero_threshold = f64::from_bits(fields.read_fixed64()?),
            (6, VARINT) => zero_count = IntOrFloat::Int(fields.read_varint()?),
            (7, FIXED64) => zero_count = IntOrFloat::Float(f64::from_bits(fields.read_fixed64()?)),
            (8, LENGTH_DELIMITED) => negative.push_span(fields.read_bytes()?)?,
            (9, _) => read_varints(&mut fields, field, wire_type, |n| negative.push_delta(decode_zigzag(n)))?,
            (10, _) => read_doubles(&mut fields, field, wire_type, |n| negative.push_count(n))?,
            (11, LENGTH_DELIMITED) => positive.push_span(fields.read_bytes()?)?,
            (12, _) => {
                read_varints(&mut fields, field, wire_type, |n| positive.push_delta(decode_zigzag(n)))?
            }
            (13, _) => read_doubles(&mut fields, field, wire_type, |n| positive.push_count(n))?,
            (15, VARINT) => histogram.timestamp_ms = fields.read_varint()?.cast_signed(),
            (16, _) => read_doubles(&mut fields, field, wire_type, |n| bounds.push(n))?,
            (1..=8 | 11 | 15, _) => {
                return Err(Malformed::WireType { message: "Histogram", field, wire_type });
            }
            (_, wire_type) => fields.skip_field(wire_type)?,
        }
    }
    histogram.count = match count {
        IntOrFloat::Int(count) => count as f64,
        IntOrFloat::Float(count) => count,
    };
    Ok(check(&histogram, count, zero_count, schema, zero_threshold, &positive, &negative, &bounds)
        .map(|()| histogram))
}

#[allow(clippy::too_many_arguments)] // the parts of one message
fn check(
    histogram: &NativeHistogram,
    count: IntOrFloat,
    zero_count: IntOrFloat,
    schema: i64,
    zero_threshold: f64,
    positive: &BucketCheck,
    negative: &BucketCheck,
    bounds: &CustomBounds,
) -> Result<(), InvalidNativeHistogram> {
    let is_float = matches!(count, IntOrFloat::Float(_));
    let unexpected = |what| Err(InvalidNativeHistogram::UnexpectedField { schema, what });
    if schema == CUSTOM_SCHEMA {
        if !bounds.is_ascending {
            return Err(InvalidNativeHistogram::InvalidBounds);
        }
        if positive.extent > bounds.n + 1 {
            return Err(InvalidNativeHistogram::TooFewBounds { buckets: positive.extent, bounds: bounds.n });
        }
        if !zero_count.is_zero() || zero_threshold != 0.0 {
            return unexpected("a bucket of zero");
        }
        if negative.n_spans + negative.n_deltas + negative.n_counts > 0 {
            return unexpected("negative buckets");
        }
    } else if !EXPONENTIAL_SCHEMAS.contains(&schema) {
        return Err(InvalidNativeHistogram::UnknownSchema(schema));
    } else if bounds.n > 0 {
        return unexpected("custom bounds");
    }
    positive.check(BucketSign::Positive, is_float)?;
    negative.check(BucketSign::Negative, is_float)?;
    match (count, zero_count) {
        (IntOrFloat::Int(count), _) => {
            let IntOrFloat::Int(n_zero) = zero_count.normalize_zero() else {
                return unexpected("integers and floats");
            };
            let buckets = positive.observations + negative.observations + u128::from(n_zero);
            // A NaN observation is in the count and in no bucket.
            let is_mismatch =
                if histogram.sum.is_nan() { buckets > count.into() } else { buckets != count.into() };
            if is_mismatch { Err(InvalidNativeHistogram::CountMismatch { count, buckets }) } else { Ok(()) }
        }
        (IntOrFloat::Float(_), IntOrFloat::Int(1..)) => unexpected("integers and floats"),
        (IntOrFloat::Float(count), _) if count < 0.0 => unexpected("a count below 0"),
        (_, IntOrFloat::Float(zero_count)) if zero_count < 0.0 => unexpected("a count below 0"),
        // Sums of floats may differ in the last bits, so they are not compared.
        _ => Ok(()),
    }
}

fn decode_zigzag(n: u64) -> i64 {
    (n >> 1).cast_signed() ^ -(n & 1).cast_signed()
}

/// Reads a repeated field, packed or not.
fn read_varints(
    fields: &mut FieldReader<'_>,
    field: u32,
    wire_type: u8,
    mut visit: impl FnMut(u64),
) -> Result<(), Malformed> {
    match wire_type {
        VARINT => visit(fields.read_varint()?),
        LENGTH_DELIMITED => {
            let mut packed = FieldReader::new(fields.read_bytes()?);
            while !packed.is_empty() {
                visit(packed.read_varint()?);
            }
        }
        _ => return Err(Malformed::WireType { message: "Histogram", field, wire_type }),
    }
    Ok(())
}

/// Reads a repeated field, packed or not.
fn read_doubles(
    fields: &mut FieldReader<'_>,
    field: u32,
    wire_type: u8,
    mut visit: impl FnMut(f64),
) -> Result<(), Malformed> {
    match wire_type {
        FIXED64 => visit(f64::from_bits(fields.read_fixed64()?)),
        LENGTH_DELIMITED => {
            let mut packed = FieldReader::new(fields.read_bytes()?);
            while !packed.is_empty() {
                visit(f64::from_bits(packed.read_fixed64()?));
            }
        }
        _ => return Err(Malformed::WireType { message: "Histogram", field, wire_type }),
    }
    Ok(())
}
