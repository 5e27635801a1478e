//! Remote write 1.0: `prometheus.WriteRequest`.

use super::labels::{InvalidSeries, MAX_LABELS, SERIES_OWNER, parse_label_name, parse_label_value};
use super::protobuf::{FieldReader, LENGTH_DELIMITED, Malformed, VARINT};
use super::request::{RequestParser, parse_usual_sample};
use crate::prom::Sample;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Key of a label in a `TimeSeries`.
const LABEL_KEY: u8 = 1 << 3 | LENGTH_DELIMITED;
/// Key and length of a sample of the usual form.
const SAMPLE_FIELD: &[u8; 2] = &[2 << 3 | LENGTH_DELIMITED, 16];

pub fn parse_request(parser: &mut RequestParser<'_>) -> Result<(), Malformed> {
    let message = parser.message;
    let mut fields = FieldReader::new(message);
    while !fields.is_empty() {
        match fields.read_key()? {
            (1, LENGTH_DELIMITED) => {
                let series_bytes = fields.read_bytes()?;
                let end = message.len() - fields.remaining();
                parse_series(parser, series_bytes, end)?;
            }
            (3, LENGTH_DELIMITED) => {
                fields.read_bytes()?;
                parser.counts.metadata += 1;
            }
            (field @ (1 | 3), wire_type) => {
                return Err(Malformed::WireType { message: "WriteRequest", field, wire_type });
            }
            // Series of version 2.0.
            (5, LENGTH_DELIMITED) => {
                fields.read_bytes()?;
                parser.counts.other_version += 1;
            }
            (_, wire_type) => fields.skip_field(wire_type)?,
        }
    }
    Ok(())
}

/// Reads the `TimeSeries` that ends at `end` in the message.
#[inline]
fn parse_series(parser: &mut RequestParser<'_>, message: &[u8], end: usize) -> Result<(), Malformed> {
    let mut current = parser.begin_series()?;
    if let Some((label_fields, sample)) = split_usual_series(message) {
        let (start, hash) = (end - message.len(), xxh3_128_with_seed(label_fields, parser.seed));
        return parser.push_usual_series(start..start + label_fields.len(), sample, hash);
    }
    let mut fields = FieldReader::new(message);
    while !fields.is_empty() {
        let start = end - fields.remaining();
        let (field, wire_type) = fields.read_key()?;
        if wire_type != LENGTH_DELIMITED {
            if (1..=4).contains(&field) {
                return Err(Malformed::WireType { message: "TimeSeries", field, wire_type });
            }
            fields.skip_field(wire_type)?;
            continue;
        }
        let bytes = fields.read_bytes()?;
        match field {
            1 => {
                current.n_labels += 1;
                if current.n_labels <= MAX_LABELS {
                    parser.push_label_field(&mut current, start, end - fields.remaining());
                }
            }
            2 => parser.push_sample(bytes)?,
            3 => {
                parser.check_sample_limit(1)?;
                parser.counts.exemplars += 1;
                let timestamp_ms = parse_exemplar_timestamp(bytes)?;
                parser.count_exemplar(&mut current, timestamp_ms);
            }
            4 => parser.push_histogram(bytes)?,
            _ => {}
        }
    }
    if current.n_labels > MAX_LABELS {
        let invalid = InvalidSeries::TooManyLabels { whose: SERIES_OWNER, count: current.n_labels };
        parser.reject_series(&current, || invalid.to_string());
        return Ok(());
    }
    let source = if current.has_copied_labels { &parser.scratch.copied_labels[..] } else { parser.message };
    let hash = xxh3_128_with_seed(&source[current.labels.0..current.labels.1], parser.seed);
    parser.end_series(current, hash);
    Ok(())
}

/// The label fields and the sample of a `TimeSeries` as nearly all are: at most [`MAX_LABELS`] labels below 128 bytes, then
/// one sample of the [usual form](parse_usual_sample).
#[inline]
fn split_usual_series(message: &[u8]) -> Option<(&[u8], Sample)> {
    let (message, sample) = message.split_last_chunk()?;
    let (label_fields, SAMPLE_FIELD) = message.split_last_chunk()? else { return None };
    let mut rest = label_fields;
    let mut n_labels = 0;
    while let [LABEL_KEY, length @ ..0x80, label @ ..] = rest {
        rest = label.get(usize::from(*length)..)?;
        n_labels += 1;
    }
    let is_usual = rest.is_empty() && n_labels <= MAX_LABELS;
    is_usual.then(|| parse_usual_sample(sample)).flatten().map(|sample| (label_fields, sample))
}

/// The timestamp of an `Exemplar`; its other fields are not used.
fn parse_exemplar_timestamp(message: &[u8]) -> Result<i64, Malformed> {
    let mut timestamp_ms = 0;
    let mut fields = FieldReader::new(message);
    while !fields.is_empty() {
        match fields.read_key()? {
            (3, VARINT) => timestamp_ms = fields.read_varint()?.cast_signed(),
            (_, wire_type) => fields.skip_field(wire_type)?,
        }
    }
    Ok(timestamp_ms)
}

/// Name and value of each label.
pub fn decode_labels(label_fields: &[u8]) -> Result<Vec<(&str, &str)>, InvalidSeries> {
    let mut pairs = Vec::new();
    let mut fields = FieldReader::new(label_fields);
    while !fields.is_empty() {
        fields.read_key()?;
        pairs.push(decode_label(fields.read_bytes()?)?);
    }
    Ok(pairs)
}

fn decode_label(message: &[u8]) -> Result<(&str, &str), InvalidSeries> {
    let (mut name, mut value) = (&[][..], &[][..]);
    let mut fields = FieldReader::new(message);
    while !fields.is_empty() {
        match fields.read_key()? {
            (1, LENGTH_DELIMITED) => name = fields.read_bytes()?,
            (2, LENGTH_DELIMITED) => value = fields.read_bytes()?,
            (field @ (1 | 2), wire_type) => {
                return Err(Malformed::WireType { message: "Label", field, wire_type }.into());
            }
            (_, wire_type) => fields.skip_field(wire_type)?,
        }
    }
    Ok((parse_label_name(name)?, parse_label_value(value)?))
}
