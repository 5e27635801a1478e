//! Remote read: visits the series of a response in place.
//!
//! A `QueryResult` has the fields of a `WriteRequest`, so [`ParsedRequest`](super::ParsedRequest::parse) reads it.

use super::labels::{InvalidSeries, MAX_LABELS, SERIES_OWNER};
use super::protobuf::{FieldReader, LENGTH_DELIMITED, Malformed, VARINT};
use super::v1;
use crate::prom::Labels;

/// Calls `visit` with the bytes of every `QueryResult` of a `ReadResponse`. Returns their number.
///
/// # Errors
/// [`Malformed`] if the bytes are not such a message; `visit` may have been called already.
pub fn visit_results<'a>(message: &'a [u8], mut visit: impl FnMut(&'a [u8])) -> Result<usize, Malformed> {
    let mut n_results = 0;
    let mut response = FieldReader::new(message);
    while !response.is_empty() {
        match response.read_key()? {
            (1, LENGTH_DELIMITED) => {
                n_results += 1;
                visit(response.read_bytes()?);
            }
            (field @ 1, wire_type) => {
                return Err(Malformed::WireType { message: "ReadResponse", field, wire_type });
            }
            (_, wire_type) => response.skip_field(wire_type)?,
        }
    }
    Ok(n_results)
}

/// One `ChunkedSeries` of a frame, borrowed from its bytes.
pub struct WireChunkedSeries<'a> {
    /// The label fields as on the wire: equal bytes are equal labels.
    pub label_bytes: &'a [u8],
    n_labels: usize,
    message: &'a [u8],
}

/// Encoded samples of a series.
pub struct WireChunk<'a> {
    /// The encoding: 1 is XOR.
    pub encoding: i64,
    /// The bytes.
    pub data: &'a [u8],
}

/// Calls `visit` for every series of a `ChunkedReadResponse`, in wire order. Returns the index of the query
/// that they answer.
///
/// # Errors
/// [`Malformed`] if the bytes are not such a message, and the errors of `visit`.
pub fn visit_frame<E: From<Malformed>>(
    message: &[u8],
    label_bytes: &mut Vec<u8>,
    mut visit: impl FnMut(WireChunkedSeries<'_>) -> Result<(), E>,
) -> Result<i64, E> {
    let mut query_index = 0;
    let mut frame = FieldReader::new(message);
    while !frame.is_empty() {
        match frame.read_key()? {
            (1, LENGTH_DELIMITED) => {
                let message = frame.read_bytes()?;
                let n_labels = copy_labels(message, label_bytes)?;
                visit(WireChunkedSeries { label_bytes, n_labels, message })?;
            }
            (2, VARINT) => query_index = frame.read_varint()?.cast_signed(),
            (field @ (1 | 2), wire_type) => {
                return Err(Malformed::WireType { message: "ChunkedReadResponse", field, wire_type }.into());
            }
            (_, wire_type) => frame.skip_field(wire_type)?,
        }
    }
    Ok(query_index)
}

/// Copies the label fields of a `ChunkedSeries` to one buffer: a few hundred bytes, against kilobytes of chunks.
fn copy_labels(message: &[u8], label_bytes: &mut Vec<u8>) -> Result<usize, Malformed> {
    label_bytes.clear();
    let mut n_labels = 0;
    let mut fields = FieldReader::new(message);
    while !fields.is_empty() {
        let start = message.len() - fields.remaining();
        match fields.read_key()? {
            (1, LENGTH_DELIMITED) => {
                fields.read_bytes()?;
                n_labels += 1;
                label_bytes.extend_from_slice(&message[start..message.len() - fields.remaining()]);
            }
            (2, LENGTH_DELIMITED) => {
                fields.read_bytes()?;
            }
            (field @ (1 | 2), wire_type) => {
                return Err(Malformed::WireType { message: "ChunkedSeries", field, wire_type });
            }
            (_, wire_type) => fields.skip_field(wire_type)?,
        }
    }
    Ok(n_labels)
}

impl WireChunkedSeries<'_> {
    /// Decodes the labels.
    ///
    /// # Errors
    /// [`InvalidSeries`] if they are not a valid label set with a metric name.
    pub fn labels(&self) -> Result<Labels, InvalidSeries> {
        if self.n_labels > MAX_LABELS {
            return Err(InvalidSeries::TooManyLabels { whose: SERIES_OWNER, count: self.n_labels });
        }
        let labels = Labels::new(v1::decode_labels(self.label_bytes)?)?;
        match labels.metric_name() {
            "" => Err(InvalidSeries::NoMetricName(labels)),
            _ => Ok(labels),
        }
    }

    /// Calls `visit` for every chunk, in wire order.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes of a chunk are not a `Chunk`, and the errors of `visit`.
    pub fn visit_chunks<E: From<Malformed>>(
        &self,
        mut visit: impl FnMut(WireChunk<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut fields = FieldReader::new(self.message);
        while !fields.is_empty() {
            match fields.read_key()? {
                (2, LENGTH_DELIMITED) => visit(parse_chunk(fields.read_bytes()?)?)?,
                (_, wire_type) => fields.skip_field(wire_type)?,
            }
        }
        Ok(())
    }
}

fn parse_chunk(message: &[u8]) -> Result<WireChunk<'_>, Malformed> {
    let mut chunk = WireChunk { encoding: 0, data: &[] };
    let mut fields = FieldReader::new(message);
    while !fields.is_empty() {
        match fields.read_key()? {
            // Fields 1 and 2, the times of the first and last sample, are also in the data.
            (3, VARINT) => chunk.encoding = fields.read_varint()?.cast_signed(),
            (4, LENGTH_DELIMITED) => chunk.data = fields.read_bytes()?,
            (field @ (3 | 4), wire_type) => {
                return Err(Malformed::WireType { message: "Chunk", field, wire_type });
            }
            (_, wire_type) => fields.skip_field(wire_type)?,
        }
    }
    Ok(chunk)
}
