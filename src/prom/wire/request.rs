//! Reads the series of a request into buffers, for both versions of the message.

use super::histogram::{self, NativeHistogram};
use super::labels::Symbol;
use super::protobuf::{FIXED64, FieldReader, Malformed, RequestPart, VARINT};
use super::rejections::{RejectReason, Rejections, RequestCounts};
use crate::prom::Sample;
use std::ops::Range;

/// Most series of a request. Prometheus sends at most `max_samples_per_send`, 2,000 by default.
pub const MAX_SERIES: usize = 100_000;
/// Most samples of a request; an exemplar counts as one, a native histogram as two.
pub const MAX_SAMPLES: usize = 1_000_000;
/// Bytes that a buffer keeps between requests: more than a request of usual size needs.
const MAX_RETAINED_BYTES: usize = 4 << 20;

/// The kind of samples of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleKind {
    /// Float samples, as sent.
    Float,
    /// The counts of native histograms.
    HistogramCount,
    /// The sums of native histograms, as many as counts and at the same times.
    HistogramSum,
}

/// One item of a request: ranges in the buffers of [`Scratch`].
pub struct RequestItem {
    pub kind: SampleKind,
    /// True if the label fields are apart on the wire and were copied to `copied_labels`.
    pub has_copied_labels: bool,
    pub labels: (u32, u32),
    pub samples: (u32, u32),
    pub exemplars: u32,
}

/// Buffers that a reader reuses from request to request, so that reading does not allocate.
#[derive(Default)]
pub struct Scratch {
    pub(super) items: Vec<RequestItem>,
    pub(super) hashes: Vec<u128>,
    pub(super) samples: Vec<Sample>,
    pub(super) copied_labels: Vec<u8>,
    pub(super) symbols: Vec<Symbol>,
    pub(super) histograms: Vec<NativeHistogram>,
}

impl Scratch {
    pub(super) fn clear(&mut self) {
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

/// Frees a buffer that a large request has grown beyond the size worth keeping.
pub fn shrink_if_large<T>(buffer: &mut Vec<T>) {
    if buffer.capacity() * size_of::<T>() > MAX_RETAINED_BYTES {
        *buffer = Vec::new();
    }
}

/// The state of reading a request.
pub struct RequestParser<'a> {
    pub message: &'a [u8],
    pub seed: u64,
    pub latest_ms: i64,
    pub scratch: &'a mut Scratch,
    pub counts: RequestCounts,
    pub rejections: Rejections,
    pub rejected_samples: usize,
}

/// The state of reading a series.
pub struct PartialSeries {
    /// Its label fields: a range of the message, or of `copied_labels`.
    pub labels: (usize, usize),
    pub has_copied_labels: bool,
    pub n_labels: usize,
    pub first_sample: usize,
    exemplars: usize,
}

impl<'a> RequestParser<'a> {
    pub fn begin_series(&mut self) -> Result<PartialSeries, Malformed> {
        self.counts.series += 1;
        if self.counts.series > MAX_SERIES {
            return Err(Malformed::TooMany { what: RequestPart::Series, limit: MAX_SERIES });
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

    /// Adds a label field. Senders write labels consecutively, so their bytes are one range of the message. If
    /// other fields separate them, the pieces are copied to one buffer.
    #[inline]
    pub fn push_label_field(&mut self, current: &mut PartialSeries, start: usize, end: usize) {
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

    /// Checks the limit before samples are stored: two bytes on the wire become sixteen in memory.
    #[inline]
    pub fn check_sample_limit(&self, n_new: usize) -> Result<(), Malformed> {
        let RequestCounts { samples, exemplars, histograms, .. } = self.counts;
        if samples + exemplars + 2 * histograms + n_new > MAX_SAMPLES {
            return Err(Malformed::TooMany { what: RequestPart::Samples, limit: MAX_SAMPLES });
        }
        Ok(())
    }

    #[inline]
    pub fn push_sample(&mut self, message: &[u8]) -> Result<(), Malformed> {
        self.check_sample_limit(1)?;
        self.counts.samples += 1;
        self.scratch.samples.push(parse_sample(message)?);
        Ok(())
    }

    pub fn push_histogram(&mut self, message: &[u8]) -> Result<(), Malformed> {
        self.check_sample_limit(2)?;
        self.counts.histograms += 1;
        match histogram::parse(message)? {
            Ok(histogram) => self.scratch.histograms.push(histogram),
            Err(invalid) => self.rejections.add(RejectReason::Histogram, 1, || invalid.to_string()),
        }
        Ok(())
    }

    /// Counts an exemplar whose labels are valid.
    pub fn count_exemplar(&mut self, current: &mut PartialSeries, timestamp_ms: i64) {
        let latest_ms = self.latest_ms;
        if timestamp_ms <= latest_ms {
            current.exemplars += 1;
            return;
        }
        self.rejections.add(RejectReason::Exemplar, 1, || {
            format!("an exemplar has timestamp {timestamp_ms}, later than {latest_ms}")
        });
    }

    /// Pushes a series of one float sample, whose label fields are this range of the message, with the hash of its labels.
    #[inline]
    pub fn push_usual_series(
        &mut self,
        label_fields: Range<usize>,
        sample: Sample,
        hash: u128,
    ) -> Result<(), Malformed> {
        self.check_sample_limit(1)?;
        self.counts.samples += 1;
        let first = self.scratch.samples.len() as u32;
        self.scratch.samples.push(sample);
        self.scratch.items.push(RequestItem {
            kind: SampleKind::Float,
            has_copied_labels: false,
            labels: (label_fields.start as u32, label_fields.end as u32),
            samples: (first, first + 1),
            exemplars: 0,
        });
        self.scratch.hashes.push(hash);
        Ok(())
    }

    /// Ends a series: pushes its items, with the hash of its labels.
    #[inline]
    pub fn end_series(&mut self, current: PartialSeries, hash: u128) {
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
        // Prometheus sends exemplars as series without samples.
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

    /// Ends a series whose labels are invalid: discards its samples.
    pub fn reject_series(&mut self, current: &PartialSeries, example: impl FnOnce() -> String) {
        let n_samples = self.scratch.samples.len() - current.first_sample;
        let n_histograms = self.scratch.histograms.len();
        self.scratch.samples.truncate(current.first_sample);
        // A series of exemplars alone loses its exemplars.
        let count = if n_samples + n_histograms == 0 { current.exemplars } else { n_samples + n_histograms };
        self.rejections.add(RejectReason::Labels, count, example);
        self.rejected_samples += n_samples + 2 * n_histograms;
    }
}

/// Masks that turn the hash of a histogram's labels into the keys of its count and its sum. Any two constants
/// will do: the difference of two hashes is not predictable.
const COUNT_HASH_MASK: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834;
const SUM_HASH_MASK: u128 = 0xc2b2_ae3d_27d4_eb4f_1656_67b1_9e37_79f9;

/// A `Sample` as nearly all are: the value, then a time of six bytes, between the years 1971 and 2109.
#[inline]
pub fn parse_usual_sample(message: &[u8; 16]) -> Option<Sample> {
    const KEYS: [u8; 2] = [1 << 3 | FIXED64, 2 << 3 | VARINT];
    let [value_key, value @ .., time_key, t0, t1, t2, t3, t4, t5] = *message;
    let timestamp = [t0, t1, t2, t3, t4, t5];
    if [value_key, time_key] != KEYS
        || timestamp.map(|byte| byte < 0x80) != [false, false, false, false, false, true]
    {
        return None;
    }
    let timestamp_ms = timestamp.iter().rev().fold(0, |bits, byte| bits << 7 | i64::from(byte & 0x7f));
    Some(Sample { timestamp_ms, value: f64::from_le_bytes(value) })
}

/// `Sample` of both versions; the start timestamp of version 2.0 is not used.
#[inline]
fn parse_sample(message: &[u8]) -> Result<Sample, Malformed> {
    if let Some(sample) = message.try_into().ok().and_then(parse_usual_sample) {
        return Ok(sample);
    }
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
