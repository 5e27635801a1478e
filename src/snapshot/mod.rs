//! Snapshots: what a group has become, on disk, so that a restart goes on where the process ended.
//!
//! Prometheus holds every sample, and whatever a snapshot says can be learned again from there: deleting one
//! is harmless at any time. It only makes a start faster, and bridges it where there is no remote read. A log
//! of every request, written before it is acknowledged, was the alternative: a copy of what Prometheus keeps,
//! paid for with each sample, that knows nothing of what was never sent.
//!
//! A group has one file: a line with format and SHA-256, a line of JSON, and the window as an Arrow IPC file
//! (`tail -n +3 FILE` is one). Damage to a file costs one group a fast start; a group that did not change is
//! not written again.

mod folder;

use crate::detect::{Detection, Live};
use crate::models::artifact::{self, ipc};
use crate::models::{Deployed, Fitted};
use crate::prom::Labels;
use crate::window::Window;
use crate::window::arrow::{InvalidColumns, SCORES};
use arrow_array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
pub use folder::{Folder, Metrics};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// First line of a file, before the number of the format.
const MAGIC: &str = "promforest snapshot";
/// Version of the files. A reader refuses any other.
const FORMAT: u32 = 1;

/// Why a file is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The beginning is another file's, or there is none.
    #[error("the first line is not {MAGIC:?}, a format and a checksum")]
    Magic,
    /// Another format, of a later version of the program most likely.
    #[error("the format is {0:?}, this version reads {FORMAT}")]
    Format(String),
    /// The file is not the one that was written.
    #[error("the file does not have its checksum: it is damaged or cut off")]
    Checksum,
    /// The second line is wrong.
    #[error("the state cannot be read")]
    State(#[from] serde_json::Error),
    /// The rest is no such Arrow file.
    #[error("the window cannot be read: {0}")]
    Arrow(String),
    /// The columns are no window.
    #[error("the window cannot be read")]
    Window(#[from] InvalidColumns),
}

/// What a file says of a group beside its window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Name of the detector.
    pub detector: String,
    /// What of its configuration the rest depends on.
    pub watches: String,
    /// Labels of the group.
    pub group: Labels,
    /// The model in service.
    pub champion: Option<Mark>,
    /// The one beside it.
    pub challenger: Option<Mark>,
    /// Timestamp of the newest scored row.
    pub newest_scored_ms: Option<i64>,
    /// Rows up to here are dealt with, by the URL of a target.
    pub cursors: BTreeMap<String, i64>,
    /// What was behind the incidents, by timestamp ascending.
    pub causes: Vec<(i64, Vec<Cause>)>,
    /// Timestamps at which incidents of the last day began.
    pub incidents: Vec<i64>,
    /// Was the newest row in one?
    pub is_incident: bool,
    /// Timestamps of rows at which everything ended, as far as a target has yet to be told.
    #[serde(default)]
    pub ended: Vec<i64>,
}

/// How far a model was, and what it had become.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    name: String,
    version: u64,
    digest: String,
    /// Rows up to here were passed over, or taken by the detection.
    pub passed_ms: i64,
    /// What it had become, if it judges one row after the other.
    live: Option<Live>,
}

/// A metric behind an incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cause {
    /// The feature.
    pub feature: Labels,
    /// How it is unusual.
    pub reason: String,
    /// Its share of all deviation.
    pub share: f64,
    /// Least usual, expected and greatest usual value; none before a first day.
    pub usual: [Option<f64>; 3],
}

/// A model at work, before it is put into words: that takes longer than the scoring thread should wait.
pub struct Draft {
    /// The model.
    pub deployed: Deployed,
    /// Its digest, once somebody wanted to know it.
    pub digest: Arc<OnceLock<String>>,
    /// Rows up to here were passed over, or taken by the detection.
    pub passed_ms: i64,
    /// What it has become.
    pub detection: Option<Detection>,
}

impl Draft {
    /// Puts it into words; none for a model that the registry does not have, since it is gone with the process.
    pub fn mark(&self) -> Option<Mark> {
        let version = self.deployed.version?;
        let digest = self.digest.get_or_init(|| artifact::digest(&self.deployed.model)).clone();
        let live = self.detection.as_ref().map(Detection::live);
        Some(Mark { name: self.deployed.name.clone(), version, digest, passed_ms: self.passed_ms, live })
    }
}

impl Mark {
    /// What this model had become, where it is the same one; none within for one that judges every row alone.
    pub fn resume(&self, deployed: &Deployed) -> Option<Option<Box<Detection>>> {
        let is_same = self.name == deployed.name
            && deployed.version == Some(self.version)
            && self.digest == artifact::digest(&deployed.model);
        match (&deployed.model.fitted, &self.live) {
            (Fitted::IsolationForest(_), None) if is_same => Some(None),
            (Fitted::Extended(trained), Some(live)) if is_same => {
                trained.resume(live.clone()).ok().map(|detection| Some(Box::new(detection)))
            }
            _ => None,
        }
    }
}

/// The second line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    window_ms: i64,
    features: Vec<Labels>,
    state: State,
}

/// The bytes of a file.
pub fn encode(state: State, window: &Window) -> Vec<u8> {
    let features: Vec<Labels> = window.features().map(|(labels, ..)| labels.clone()).collect();
    let (timestamps, columns) = window.to_arrow();
    let schema = schema(&features);
    let arrays = [Arc::new(timestamps) as ArrayRef].into_iter();
    let arrays = arrays.chain(columns.into_iter().map(|column| Arc::new(column) as ArrayRef)).collect();
    let head = Head { window_ms: window.length_ms(), features, state };
    let mut content = serde_json::to_vec(&head).expect("numbers, text and maps with text for keys");
    content.push(b'\n');
    let batch = RecordBatch::try_new(schema.clone(), arrays).expect("columns of the schema's types");
    let mut writer = FileWriter::try_new(&mut content, &schema).expect("a vector takes any bytes");
    writer.write(&batch).expect("a vector takes any bytes");
    writer.finish().expect("a vector takes any bytes");
    drop(writer);
    let mut bytes = format!("{MAGIC} {FORMAT} {}\n", artifact::hex(&content)).into_bytes();
    bytes.append(&mut content);
    bytes
}

/// Reads a file.
///
/// # Errors
/// [`Error`] for anything that was not written by [`encode`].
pub fn decode(bytes: &[u8]) -> Result<(State, Window), Error> {
    let (first, content) = line(bytes).ok_or(Error::Magic)?;
    let first = std::str::from_utf8(first).map_err(|_| Error::Magic)?;
    let rest = first.strip_prefix(MAGIC).ok_or(Error::Magic)?.trim_start();
    let (format, digest) = rest.split_once(' ').ok_or(Error::Magic)?;
    if format != FORMAT.to_string() {
        return Err(Error::Format(format.chars().take(20).collect()));
    }
    if digest != artifact::hex(content) {
        return Err(Error::Checksum);
    }
    let (head, arrow) = line(content).ok_or(Error::Checksum)?;
    let Head { window_ms, features, state } = serde_json::from_slice(head)?;
    // Whoever has made a checksum may have made up the rest, too.
    if !(1..=i64::MAX / 4).contains(&window_ms) {
        return Err(Error::Arrow(format!("its length is {window_ms} ms")));
    }
    let batch = ipc::decode(arrow, &schema(&features)).map_err(Error::Arrow)?;
    let no_column = || Error::Arrow("a column is of another type".into());
    let mut columns = batch.columns().iter();
    let timestamps = columns.next().and_then(|column| column.as_any().downcast_ref::<Int64Array>());
    let timestamps = timestamps.ok_or_else(no_column)?;
    let number = |column: &ArrayRef| column.as_any().downcast_ref::<Float64Array>().cloned();
    let columns: Option<Vec<Float64Array>> = columns.map(number).collect();
    let window = Window::from_arrow(window_ms, &features, timestamps, &columns.ok_or_else(no_column)?)?;
    Ok((state, window))
}

fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn schema(features: &[Labels]) -> SchemaRef {
    let names = SCORES.iter().map(ToString::to_string).chain(features.iter().map(Labels::to_string));
    let columns = names.map(|name| Field::new(name, DataType::Float64, true));
    let fields: Vec<Field> =
        [Field::new("timestamp", DataType::Int64, false)].into_iter().chain(columns).collect();
    Arc::new(Schema::new(fields))
}

#[cfg(test)]
mod tests;
