//! Remote write 1.0: `prometheus.WriteRequest`.

use super::protobuf::{LENGTH_DELIMITED, Malformed, Reader, VARINT};
use super::{InvalidSeries, MAX_LABELS, Reading, THE_SERIES, label_name, label_value};
use xxhash_rust::xxh3::xxh3_128_with_seed;

pub fn read(reading: &mut Reading<'_>) -> Result<(), Malformed> {
    let message = reading.message;
    let mut request = Reader::new(message);
    while !request.is_empty() {
        match request.key()? {
            (1, LENGTH_DELIMITED) => {
                let part = request.bytes()?;
                let end = message.len() - request.remaining();
                series(reading, part, end)?;
            }
            (3, LENGTH_DELIMITED) => {
                request.bytes()?;
                reading.counts.metadata += 1;
            }
            (field @ (1 | 3), wire_type) => {
                return Err(Malformed::WireType { message: "WriteRequest", field, wire_type });
            }
            // Symbols and series of 2.0.
            (5, LENGTH_DELIMITED) => {
                request.bytes()?;
                reading.counts.foreign += 1;
            }
            (_, wire_type) => request.skip(wire_type)?,
        }
    }
    Ok(())
}

/// Reads the `TimeSeries` that ends at `end` in the message.
#[inline]
fn series(reading: &mut Reading<'_>, message: &[u8], end: usize) -> Result<(), Malformed> {
    let mut current = reading.begin()?;
    let mut fields = Reader::new(message);
    while !fields.is_empty() {
        let start = end - fields.remaining();
        let (field, wire_type) = fields.key()?;
        if wire_type != LENGTH_DELIMITED {
            if (1..=4).contains(&field) {
                return Err(Malformed::WireType { message: "TimeSeries", field, wire_type });
            }
            fields.skip(wire_type)?;
            continue;
        }
        let bytes = fields.bytes()?;
        match field {
            1 => {
                current.n_labels += 1;
                if current.n_labels <= MAX_LABELS {
                    reading.label_field(&mut current, start, end - fields.remaining());
                }
            }
            2 => reading.sample(bytes)?,
            3 => {
                reading.bound_samples(1)?;
                reading.counts.exemplars += 1;
                let timestamp_ms = exemplar(bytes)?;
                reading.exemplar(&mut current, timestamp_ms);
            }
            4 => reading.histogram(bytes)?,
            _ => {}
        }
    }
    if current.n_labels > MAX_LABELS {
        let invalid = InvalidSeries::TooManyLabels { whose: THE_SERIES, count: current.n_labels };
        reading.refuse(&current, || invalid.to_string());
        return Ok(());
    }
    let from = if current.gathered { &reading.scratch.gathered[..] } else { reading.message };
    let hash = xxh3_128_with_seed(&from[current.labels.0..current.labels.1], reading.seed);
    reading.end(current, hash);
    Ok(())
}

/// The timestamp of an `Exemplar`: the rest of it is not used.
fn exemplar(message: &[u8]) -> Result<i64, Malformed> {
    let mut timestamp_ms = 0;
    let mut fields = Reader::new(message);
    while !fields.is_empty() {
        match fields.key()? {
            (3, VARINT) => timestamp_ms = fields.varint()?.cast_signed(),
            (_, wire_type) => fields.skip(wire_type)?,
        }
    }
    Ok(timestamp_ms)
}

/// Name and value of each label.
pub fn pairs(label_fields: &[u8]) -> Result<Vec<(&str, &str)>, InvalidSeries> {
    let mut pairs = Vec::new();
    let mut fields = Reader::new(label_fields);
    while !fields.is_empty() {
        fields.key()?;
        pairs.push(pair(fields.bytes()?)?);
    }
    Ok(pairs)
}

fn pair(message: &[u8]) -> Result<(&str, &str), InvalidSeries> {
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
    Ok((label_name(name)?, label_value(value)?))
}
