//! Native histograms: checked while they are read, and what is kept of them is two floats.
//!
//! The rules are Prometheus' own (`model/histogram`, `Validate`): a histogram that Prometheus
//! stores, and then sends, passes. Nothing is collected on the way: sums and counts of buckets are
//! enough to tell whether they agree.

use super::protobuf::{FIXED64, LENGTH_DELIMITED, Malformed, Reader, VARINT};
use crate::prom::{STALE_BITS, Sample};
use std::fmt;

/// What is kept of a histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Histogram {
    timestamp_ms: i64,
    count: f64,
    sum: f64,
}

impl Histogram {
    /// How many observations; the end of a series stays one.
    pub fn count(&self) -> Sample {
        let is_stale = self.sum.to_bits() == STALE_BITS;
        Sample {
            timestamp_ms: self.timestamp_ms,
            value: if is_stale { f64::from_bits(STALE_BITS) } else { self.count },
        }
    }

    /// The sum of the observations.
    pub fn sum(&self) -> Sample {
        Sample { timestamp_ms: self.timestamp_ms, value: self.sum }
    }
}

/// The schema of custom bounds.
const CUSTOM: i64 = -53;
/// Schemas of exponential bounds that Prometheus reads: above 8 it lowers the resolution.
const EXPONENTIAL: std::ops::RangeInclusive<i64> = -9..=52;

/// Why a histogram is refused.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum InvalidHistogram {
    /// Neither exponential nor custom.
    #[error("a histogram has schema {0}, which is not known")]
    Schema(i64),
    /// Spans and buckets do not agree.
    #[error("the {side} spans of a histogram have {spans} buckets, and there are {buckets}")]
    Spans {
        /// Positive or negative.
        side: Side,
        /// Buckets that the spans announce.
        spans: u64,
        /// Buckets that are there.
        buckets: u64,
    },
    /// A span begins before the one before it ends.
    #[error("a span of a histogram has offset {0} after another one")]
    Offset(i64),
    /// A bucket with less than nothing in it.
    #[error("a {0} bucket of a histogram has less than 0 observations")]
    Negative(Side),
    /// Count and buckets do not agree.
    #[error("a histogram counts {count} observations, and {buckets} are in its buckets")]
    Count {
        /// The count.
        count: u64,
        /// What is in the buckets, the one of zero among them.
        buckets: u128,
    },
    /// Something that a histogram of this schema does not have.
    #[error("a histogram of schema {schema} has {what}")]
    OutOfPlace {
        /// The schema.
        schema: i64,
        /// What it has.
        what: &'static str,
    },
    /// Custom bounds that do not ascend, or are not finite.
    #[error("the custom bounds of a histogram do not ascend, or are not finite")]
    Bounds,
    /// More buckets than custom bounds make.
    #[error("a histogram has {buckets} buckets for {bounds} custom bounds")]
    FewBounds {
        /// How far the spans reach.
        buckets: u64,
        /// Bounds.
        bounds: u64,
    },
}

/// Buckets of positive or of negative observations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Above zero.
    Positive,
    /// Below zero.
    Negative,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Positive => "positive",
            Self::Negative => "negative",
        })
    }
}

/// One side's buckets.
#[derive(Default)]
struct Buckets {
    n_spans: u64,
    /// Buckets that the spans announce.
    announced: u64,
    /// How far the spans reach, gaps included.
    reach: u64,
    bad_offset: Option<i64>,
    n_deltas: u64,
    n_counts: u64,
    /// Observations in the last integer bucket: the next one is a difference to it.
    last: i64,
    observations: u128,
    negative: bool,
}

impl Buckets {
    fn span(&mut self, message: &[u8]) -> Result<(), Malformed> {
        let (mut offset, mut length) = (0, 0);
        let mut fields = Reader::new(message);
        while !fields.is_empty() {
            match fields.key()? {
                (1, VARINT) => offset = i64::from(zigzag(fields.varint()?) as i32),
                (2, VARINT) => length = u64::from(fields.varint()? as u32),
                (field @ (1 | 2), wire_type) => {
                    return Err(Malformed::WireType { message: "BucketSpan", field, wire_type });
                }
                (_, wire_type) => fields.skip(wire_type)?,
            }
        }
        if self.n_spans > 0 && offset < 0 {
            self.bad_offset.get_or_insert(offset);
        }
        self.n_spans += 1;
        self.announced += length;
        self.reach += length + offset.max(0).cast_unsigned();
        Ok(())
    }

    fn delta(&mut self, delta: i64) {
        self.n_deltas += 1;
        match self.last.checked_add(delta).and_then(|last| u64::try_from(last).ok()) {
            Some(last) => {
                self.last = last.cast_signed();
                self.observations += u128::from(last);
            }
            None => self.negative = true,
        }
    }

    fn count(&mut self, count: f64) {
        self.n_counts += 1;
        self.negative |= count < 0.0;
    }

    fn check(&self, side: Side, is_float: bool) -> Result<(), InvalidHistogram> {
        let buckets = if is_float { self.n_counts } else { self.n_deltas };
        if let Some(offset) = self.bad_offset {
            return Err(InvalidHistogram::Offset(offset));
        }
        if self.announced != buckets {
            return Err(InvalidHistogram::Spans { side, spans: self.announced, buckets });
        }
        if self.negative { Err(InvalidHistogram::Negative(side)) } else { Ok(()) }
    }
}

/// A `oneof` of an integer and a float: the last one on the wire is meant.
#[derive(Clone, Copy)]
enum Number {
    Int(u64),
    Float(f64),
}

impl Number {
    fn is_zero(self) -> bool {
        match self {
            Self::Int(number) => number == 0,
            Self::Float(number) => number == 0.0,
        }
    }

    /// Nothing is nothing, whatever it is written as.
    fn or_int_zero(self) -> Self {
        if self.is_zero() { Self::Int(0) } else { self }
    }
}

/// Custom bounds, so far.
struct Bounds {
    n: u64,
    last: f64,
    ascend: bool,
}

impl Bounds {
    fn push(&mut self, bound: f64) {
        self.n += 1;
        self.ascend &= bound > self.last && bound.is_finite();
        self.last = bound;
    }
}

/// Reads a `Histogram` and checks it.
pub fn read(message: &[u8]) -> Result<Result<Histogram, InvalidHistogram>, Malformed> {
    let mut histogram = Histogram { timestamp_ms: 0, count: 0.0, sum: 0.0 };
    let (mut count, mut zero_count) = (Number::Int(0), Number::Int(0));
    let (mut schema, mut zero_threshold) = (0, 0.0);
    let (mut positive, mut negative) = (Buckets::default(), Buckets::default());
    let mut bounds = Bounds { n: 0, last: f64::NEG_INFINITY, ascend: true };
    let mut fields = Reader::new(message);
    while !fields.is_empty() {
        let (field, wire_type) = fields.key()?;
        match (field, wire_type) {
            (1, VARINT) => count = Number::Int(fields.varint()?),
            (2, FIXED64) => count = Number::Float(f64::from_bits(fields.fixed64()?)),
            (3, FIXED64) => histogram.sum = f64::from_bits(fields.fixed64()?),
            (4, VARINT) => schema = i64::from(zigzag(fields.varint()?) as i32),
            (5, FIXED64) => zero_threshold = f64::from_bits(fields.fixed64()?),
            (6, VARINT) => zero_count = Number::Int(fields.varint()?),
            (7, FIXED64) => zero_count = Number::Float(f64::from_bits(fields.fixed64()?)),
            (8, LENGTH_DELIMITED) => negative.span(fields.bytes()?)?,
            (9, _) => varints(&mut fields, field, wire_type, |n| negative.delta(zigzag(n)))?,
            (10, _) => doubles(&mut fields, field, wire_type, |n| negative.count(n))?,
            (11, LENGTH_DELIMITED) => positive.span(fields.bytes()?)?,
            (12, _) => varints(&mut fields, field, wire_type, |n| positive.delta(zigzag(n)))?,
            (13, _) => doubles(&mut fields, field, wire_type, |n| positive.count(n))?,
            (15, VARINT) => histogram.timestamp_ms = fields.varint()?.cast_signed(),
            (16, _) => doubles(&mut fields, field, wire_type, |n| bounds.push(n))?,
            (1..=8 | 11 | 15, _) => {
                return Err(Malformed::WireType { message: "Histogram", field, wire_type });
            }
            (_, wire_type) => fields.skip(wire_type)?,
        }
    }
    histogram.count = match count {
        Number::Int(count) => count as f64,
        Number::Float(count) => count,
    };
    Ok(check(&histogram, count, zero_count, schema, zero_threshold, &positive, &negative, &bounds)
        .map(|()| histogram))
}

#[allow(clippy::too_many_arguments)] // the parts of one message
fn check(
    histogram: &Histogram,
    count: Number,
    zero_count: Number,
    schema: i64,
    zero_threshold: f64,
    positive: &Buckets,
    negative: &Buckets,
    bounds: &Bounds,
) -> Result<(), InvalidHistogram> {
    let is_float = matches!(count, Number::Float(_));
    let refuse = |what| Err(InvalidHistogram::OutOfPlace { schema, what });
    if schema == CUSTOM {
        if !bounds.ascend {
            return Err(InvalidHistogram::Bounds);
        }
        if positive.reach > bounds.n + 1 {
            return Err(InvalidHistogram::FewBounds { buckets: positive.reach, bounds: bounds.n });
        }
        if !zero_count.is_zero() || zero_threshold != 0.0 {
            return refuse("a bucket of zero");
        }
        if negative.n_spans + negative.n_deltas + negative.n_counts > 0 {
            return refuse("negative buckets");
        }
    } else if !EXPONENTIAL.contains(&schema) {
        return Err(InvalidHistogram::Schema(schema));
    } else if bounds.n > 0 {
        return refuse("custom bounds");
    }
    positive.check(Side::Positive, is_float)?;
    negative.check(Side::Negative, is_float)?;
    match (count, zero_count) {
        (Number::Int(count), _) => {
            let Number::Int(in_zero) = zero_count.or_int_zero() else {
                return refuse("integers and floats");
            };
            let buckets = positive.observations + negative.observations + u128::from(in_zero);
            // An observation that is NaN is counted, and is in no bucket.
            let wrong = if histogram.sum.is_nan() { buckets > count.into() } else { buckets != count.into() };
            if wrong { Err(InvalidHistogram::Count { count, buckets }) } else { Ok(()) }
        }
        (Number::Float(_), Number::Int(1..)) => refuse("integers and floats"),
        (Number::Float(count), _) if count < 0.0 => refuse("a count below 0"),
        (_, Number::Float(zero_count)) if zero_count < 0.0 => refuse("a count below 0"),
        // What floats are summed up to differs in the last bits.
        _ => Ok(()),
    }
}

fn zigzag(n: u64) -> i64 {
    (n >> 1).cast_signed() ^ -(n & 1).cast_signed()
}

/// A repeated field, packed or not.
fn varints(
    fields: &mut Reader<'_>,
    field: u32,
    wire_type: u8,
    mut each: impl FnMut(u64),
) -> Result<(), Malformed> {
    match wire_type {
        VARINT => each(fields.varint()?),
        LENGTH_DELIMITED => {
            let mut packed = Reader::new(fields.bytes()?);
            while !packed.is_empty() {
                each(packed.varint()?);
            }
        }
        _ => return Err(Malformed::WireType { message: "Histogram", field, wire_type }),
    }
    Ok(())
}

/// A repeated field, packed or not.
fn doubles(
    fields: &mut Reader<'_>,
    field: u32,
    wire_type: u8,
    mut each: impl FnMut(f64),
) -> Result<(), Malformed> {
    match wire_type {
        FIXED64 => each(f64::from_bits(fields.fixed64()?)),
        LENGTH_DELIMITED => {
            let mut packed = Reader::new(fields.bytes()?);
            while !packed.is_empty() {
                each(f64::from_bits(packed.fixed64()?));
            }
        }
        _ => return Err(Malformed::WireType { message: "Histogram", field, wire_type }),
    }
    Ok(())
}
