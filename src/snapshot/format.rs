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
use crate::window::arrow::{ArrowCells, SCORE_COLUMNS};
use arrow_array::{Array, ArrayRef, Float64Array, RecordBatch};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Start of the first line, before the number of the format.
pub(super) const MAGIC: &str = "promforest snapshot";
/// Number of the format. [`decode`] rejects any other.
pub(super) const FORMAT: u32 = 2;
/// Largest file: a thousand features over the rows of a day take half of it.
pub(super) const MAX_FILE_BYTES: u64 = 256 << 20;

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
    #[serde(default)]
    layout: Layout,
    state: GroupState,
}

/// The table of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Layout {
    /// A line a row, with a column for each feature.
    #[default]
    Rows,
    /// A line a present cell: smaller where most cells are absent, as in a group of several targets.
    Cells,
}

impl Layout {
    /// The smaller one for a window, and its bytes.
    fn choose(window: &Window) -> (Self, usize) {
        let (rows, cells) = window.arrow_bytes();
        if rows <= cells { (Self::Rows, rows) } else { (Self::Cells, cells) }
    }

    fn schema(self, features: &[Labels]) -> SchemaRef {
        let timestamp = Field::new("timestamp", DataType::Int64, false);
        let fields: Vec<Field> = match self {
            Self::Rows => {
                let features = features.iter().map(Labels::to_string);
                let names = SCORE_COLUMNS.iter().map(ToString::to_string).chain(features);
                let columns = names.map(|name| Field::new(name, DataType::Float64, true));
                [timestamp].into_iter().chain(columns).collect()
            }
            Self::Cells => {
                let column = Field::new("column", DataType::UInt16, false);
                vec![column, timestamp, Field::new("value", DataType::Float64, false)]
            }
        };
        Arc::new(Schema::new(fields))
    }

    fn write(self, window: &Window) -> Vec<ArrayRef> {
        match self {
            Self::Rows => {
                let (timestamps, columns) = window.to_arrow();
                let columns = columns.into_iter().map(|column| Arc::new(column) as ArrayRef);
                [Arc::new(timestamps) as ArrayRef].into_iter().chain(columns).collect()
            }
            Self::Cells => {
                let ArrowCells { columns, timestamps, values } = window.to_cells();
                vec![Arc::new(columns), Arc::new(timestamps), Arc::new(values)]
            }
        }
    }

    fn read(self, window_ms: i64, features: &[Labels], arrow: &[u8]) -> Result<Window, Error> {
        let batch = ipc::decode(arrow, &self.schema(features)).map_err(Error::Arrow)?;
        let [first, rest @ ..] = batch.columns() else { return Err(wrong_type()) };
        match (self, rest) {
            (Self::Rows, columns) => {
                let columns = columns.iter().map(downcast::<Float64Array>).collect::<Result<Vec<_>, _>>()?;
                Ok(Window::from_arrow(window_ms, features, &downcast(first)?, &columns)?)
            }
            (Self::Cells, [timestamps, values]) => {
                let (columns, timestamps) = (downcast(first)?, downcast(timestamps)?);
                let cells = ArrowCells { columns, timestamps, values: downcast(values)? };
                Ok(Window::from_cells(window_ms, features, &cells)?)
            }
            _ => Err(wrong_type()),
        }
    }
}

fn downcast<A: Array + Clone + 'static>(column: &ArrayRef) -> Result<A, Error> {
    column.as_any().downcast_ref::<A>().cloned().ok_or_else(wrong_type)
}

fn wrong_type() -> Error {
    Error::Arrow("a column is of another type".into())
}

/// A snapshot that is not written, because it could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the snapshot has {bytes} bytes, above the limit of {limit}")]
pub struct TooLarge {
    /// Bytes of the file, or of its window alone.
    bytes: usize,
    /// The limit.
    limit: u64,
}

/// Encodes a file.
///
/// # Errors
/// [`TooLarge`].
pub fn encode(state: GroupState, window: &Window) -> Result<Vec<u8>, TooLarge> {
    encode_within(state, window, MAX_FILE_BYTES)
}

/// Encodes a file of at most `limit` bytes.
pub(super) fn encode_within(state: GroupState, window: &Window, limit: u64) -> Result<Vec<u8>, TooLarge> {
    let within_limit = |bytes: usize| match bytes as u64 <= limit {
        true => Ok(()),
        false => Err(TooLarge { bytes, limit }),
    };
    let features: Vec<Labels> = window.features().map(|(labels, ..)| labels.clone()).collect();
    let (layout, bytes) = Layout::choose(window);
    within_limit(bytes)?;
    let schema = layout.schema(&features);
    let batch =
        RecordBatch::try_new(schema.clone(), layout.write(window)).expect("columns of the schema's types");
    let header = Header { window_ms: window.length_ms(), features, layout, state };
    let mut content = serde_json::to_vec(&header).expect("numbers, text and maps with text for keys");
    content.push(b'\n');
    let mut writer = FileWriter::try_new(&mut content, &schema).expect("writing to a vector cannot fail");
    writer.write(&batch).expect("writing to a vector cannot fail");
    writer.finish().expect("writing to a vector cannot fail");
    drop(writer);
    let mut bytes = format!("{MAGIC} {FORMAT} {}\n", artifact::sha256_hex(&content)).into_bytes();
    bytes.append(&mut content);
    within_limit(bytes.len())?;
    Ok(bytes)
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
    let Header { window_ms, features, layout, state } = serde_json::from_slice(header)?;
    // A forged file can have a valid checksum.
    if !(1..=i64::MAX / 4).contains(&window_ms) {
        return Err(Error::Arrow(format!("its length is {window_ms} ms")));
    }
    Ok((state, layout.read(window_ms, &features, arrow)?))
}

/// Splits at the first line feed; `None` without one.
pub(super) fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}
