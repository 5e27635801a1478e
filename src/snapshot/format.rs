//! The file format: a line with format and SHA-256, a line of JSON, and the window as an Arrow IPC file, which
//! `tail -n +3 FILE` extracts.
//!
//! A program that supports Arrow can read the window. The alternative, JSON for the window as well, would take several
//! times the space.

use super::GroupState;
use crate::error::InvalidPart;
use crate::models::artifact::{self, ipc};
use crate::prom::Labels;
use crate::window::Window;
use crate::window::arrow::SCORE_COLUMNS;
use arrow_array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Start of the first line, before the number of the format.
pub(super) const MAGIC: &str = "promforest snapshot";
/// Number of the format. [`decode`] rejects any other.
pub(super) const FORMAT: u32 = 2;

/// A file that is not a valid snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The first line is missing or not that of a snapshot.
    #[error("the first line is not {MAGIC:?}, a format and a checksum")]
    Magic,
    /// The file has the format of another version of promforest.
    #[error("the format is {0:?}, this version reads {FORMAT}")]
    Format(String),
    /// The file does not match its checksum.
    #[error("the checksum does not match: the file is corrupt or truncated")]
    Checksum,
    /// The second line is not the JSON of a state.
    #[error("the state cannot be read")]
    State(#[from] serde_json::Error),
    /// The rest is not an Arrow file with the expected columns.
    #[error("the window cannot be read: {0}")]
    Arrow(String),
    /// The columns do not form a window.
    #[error("the window cannot be read")]
    Window(#[from] InvalidPart),
}

/// The second line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    window_ms: i64,
    features: Vec<Labels>,
    state: GroupState,
}

/// Encodes a file.
pub fn encode(state: GroupState, window: &Window) -> Vec<u8> {
    let features: Vec<Labels> = window.features().map(|(labels, ..)| labels.clone()).collect();
    let (timestamps, columns) = window.to_arrow();
    let schema = schema_for(&features);
    let arrays = [Arc::new(timestamps) as ArrayRef].into_iter();
    let arrays = arrays.chain(columns.into_iter().map(|column| Arc::new(column) as ArrayRef)).collect();
    let header = Header { window_ms: window.length_ms(), features, state };
    let mut content = serde_json::to_vec(&header).expect("numbers, text and maps with text for keys");
    content.push(b'\n');
    let batch = RecordBatch::try_new(schema.clone(), arrays).expect("columns of the schema's types");
    let mut writer = FileWriter::try_new(&mut content, &schema).expect("writing to a vector cannot fail");
    writer.write(&batch).expect("writing to a vector cannot fail");
    writer.finish().expect("writing to a vector cannot fail");
    drop(writer);
    let mut bytes = format!("{MAGIC} {FORMAT} {}\n", artifact::sha256_hex(&content)).into_bytes();
    bytes.append(&mut content);
    bytes
}

/// Decodes a file.
///
/// # Errors
/// [`Error`] if the bytes are not those of [`encode`].
pub fn decode(bytes: &[u8]) -> Result<(GroupState, Window), Error> {
    let (first, content) = split_line(bytes).ok_or(Error::Magic)?;
    let first_line = std::str::from_utf8(first).map_err(|_| Error::Magic)?;
    let rest = first_line.strip_prefix(MAGIC).ok_or(Error::Magic)?.trim_start();
    let (format, digest) = rest.split_once(' ').ok_or(Error::Magic)?;
    if format != FORMAT.to_string() {
        return Err(Error::Format(format.chars().take(20).collect()));
    }
    if digest != artifact::sha256_hex(content) {
        return Err(Error::Checksum);
    }
    let (header, arrow) = split_line(content).ok_or(Error::Checksum)?;
    let Header { window_ms, features, state } = serde_json::from_slice(header)?;
    // A forged file can have a valid checksum.
    if !(1..=i64::MAX / 4).contains(&window_ms) {
        return Err(Error::Arrow(format!("its length is {window_ms} ms")));
    }
    let batch = ipc::decode(arrow, &schema_for(&features)).map_err(Error::Arrow)?;
    let wrong_type = || Error::Arrow("a column is of another type".into());
    let mut columns = batch.columns().iter();
    let timestamps = columns.next().and_then(|column| column.as_any().downcast_ref::<Int64Array>());
    let timestamps = timestamps.ok_or_else(wrong_type)?;
    let to_floats = |column: &ArrayRef| column.as_any().downcast_ref::<Float64Array>().cloned();
    let columns: Option<Vec<Float64Array>> = columns.map(to_floats).collect();
    let window = Window::from_arrow(window_ms, &features, timestamps, &columns.ok_or_else(wrong_type)?)?;
    Ok((state, window))
}

/// Splits at the first line feed; `None` without one.
pub(super) fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn schema_for(features: &[Labels]) -> SchemaRef {
    let names = SCORE_COLUMNS.iter().map(ToString::to_string).chain(features.iter().map(Labels::to_string));
    let columns = names.map(|name| Field::new(name, DataType::Float64, true));
    let fields: Vec<Field> =
        [Field::new("timestamp", DataType::Int64, false)].into_iter().chain(columns).collect();
    Arc::new(Schema::new(fields))
}
