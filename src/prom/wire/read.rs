//! Remote read: a visit of what its answers hold, in place.
//!
//! A `QueryResult` has the fields of a `WriteRequest`, and is read as [one](super::Request::read).

use super::protobuf::{LENGTH_DELIMITED, Malformed, Reader, VARINT};
use super::{InvalidSeries, MAX_LABELS, THE_SERIES, v1};
use crate::prom::Labels;

/// Calls `each` for the bytes of every `QueryResult` of a `ReadResponse`. Returns how many there are.
///
/// # Errors
/// [`Malformed`] when the bytes are no such message; `each` may have been called already.
pub fn visit_results<'a>(message: &'a [u8], mut each: impl FnMut(&'a [u8])) -> Result<usize, Malformed> {
    let mut results = 0;
    let mut response = Reader::new(message);
    while !response.is_empty() {
        match response.key()? {
            (1, LENGTH_DELIMITED) => {
                results += 1;
                each(response.bytes()?);
            }
            (field @ 1, wire_type) => {
                return Err(Malformed::WireType { message: "ReadResponse", field, wire_type });
            }
            (_, wire_type) => response.skip(wire_type)?,
        }
    }
    Ok(results)
}

/// One `ChunkedSeries` of a frame, borrowed from its bytes.
pub struct Series<'a> {
    /// The label fields as they stand on the wire: equal bytes are equal labels.
    pub label_bytes: &'a [u8],
    n_labels: usize,
    message: &'a [u8],
}

/// Samples of a series, encoded.
pub struct Chunk<'a> {
    /// How: 1 is XOR.
    pub encoding: i64,
    /// The bytes.
    pub data: &'a [u8],
}

/// Calls `each` for every series of a `ChunkedReadResponse`, in the order of the wire. Returns the number of
/// the query that they answer.
///
/// # Errors
/// [`Malformed`] when the bytes are no such message, and what `each` returns.
pub fn visit_frame<E: From<Malformed>>(
    message: &[u8],
    label_bytes: &mut Vec<u8>,
    mut each: impl FnMut(Series<'_>) -> Result<(), E>,
) -> Result<i64, E> {
    let mut query_index = 0;
    let mut frame = Reader::new(message);
    while !frame.is_empty() {
        match frame.key()? {
            (1, LENGTH_DELIMITED) => {
                let message = frame.bytes()?;
                let n_labels = gather_labels(message, label_bytes)?;
                each(Series { label_bytes, n_labels, message })?;
            }
            (2, VARINT) => query_index = frame.varint()?.cast_signed(),
            (field @ (1 | 2), wire_type) => {
                return Err(Malformed::WireType { message: "ChunkedReadResponse", field, wire_type }.into());
            }
            (_, wire_type) => frame.skip(wire_type)?,
        }
    }
    Ok(query_index)
}

/// Copies the label fields of a `ChunkedSeries`: a few hundred bytes beside kilobytes of chunks.
fn gather_labels(message: &[u8], label_bytes: &mut Vec<u8>) -> Result<usize, Malformed> {
    label_bytes.clear();
    let mut n_labels = 0;
    let mut fields = Reader::new(message);
    while !fields.is_empty() {
        let start = message.len() - fields.remaining();
        match fields.key()? {
            (1, LENGTH_DELIMITED) => {
                fields.bytes()?;
                n_labels += 1;
                label_bytes.extend_from_slice(&message[start..message.len() - fields.remaining()]);
            }
            (2, LENGTH_DELIMITED) => {
                fields.bytes()?;
            }
            (field @ (1 | 2), wire_type) => {
                return Err(Malformed::WireType { message: "ChunkedSeries", field, wire_type });
            }
            (_, wire_type) => fields.skip(wire_type)?,
        }
    }
    Ok(n_labels)
}

impl Series<'_> {
    /// Decodes the labels.
    ///
    /// # Errors
    /// [`InvalidSeries`] when they are no valid label set with a metric name.
    pub fn labels(&self) -> Result<Labels, InvalidSeries> {
        if self.n_labels > MAX_LABELS {
            return Err(InvalidSeries::TooManyLabels { whose: THE_SERIES, count: self.n_labels });
        }
        let labels = Labels::new(v1::pairs(self.label_bytes)?)?;
        match labels.metric_name() {
            "" => Err(InvalidSeries::NoMetricName(labels)),
            _ => Ok(labels),
        }
    }

    /// Calls `each` for every chunk, in the order of the wire.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes of a chunk are no `Chunk`, and what `each` returns.
    pub fn visit_chunks<E: From<Malformed>>(
        &self,
        mut each: impl FnMut(Chunk<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut fields = Reader::new(self.message);
        while !fields.is_empty() {
            match fields.key()? {
                (2, LENGTH_DELIMITED) => each(chunk(fields.bytes()?)?)?,
                (_, wire_type) => fields.skip(wire_type)?,
            }
        }
        Ok(())
    }
}

fn chunk(message: &[u8]) -> Result<Chunk<'_>, Malformed> {
    let mut chunk = Chunk { encoding: 0, data: &[] };
    let mut fields = Reader::new(message);
    while !fields.is_empty() {
        match fields.key()? {
            // Fields 1 and 2 are the times of the first and the last sample, which the data has too.
            (3, VARINT) => chunk.encoding = fields.varint()?.cast_signed(),
            (4, LENGTH_DELIMITED) => chunk.data = fields.bytes()?,
            (field @ (3 | 4), wire_type) => {
                return Err(Malformed::WireType { message: "Chunk", field, wire_type });
            }
            (_, wire_type) => fields.skip(wire_type)?,
        }
    }
    Ok(chunk)
}
