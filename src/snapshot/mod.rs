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

mod store;

use crate::detect::{Checkpoint, OnlineDetector};
use crate::models::DeployedModel;
use crate::models::artifact::{self, ipc};
use crate::prom::Labels;
use crate::window::Window;
use crate::window::arrow::{InvalidColumns, SCORE_COLUMNS};
use arrow_array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
pub use store::{Metrics, SnapshotStore};

/// First line of a file, before the number of the format.
const MAGIC: &str = "promforest snapshot";
/// Version of the files. A reader refuses any other.
const FORMAT: u32 = 2;

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
    #[error("the checksum does not match: the file is corrupt or truncated")]
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
pub struct GroupState {
    /// Name of the detector.
    pub detector: String,
    /// What of its configuration the rest depends on.
    pub selection_key: String,
    /// Labels of the group.
    pub group: Labels,
    /// The model in service.
    pub champion: Option<ModelCheckpoint>,
    /// The one beside it.
    pub challenger: Option<ModelCheckpoint>,
    /// Timestamp of the newest scored row.
    pub newest_scored_ms: Option<i64>,
    /// Rows up to here are dealt with, by the URL of a target.
    pub cursors: BTreeMap<String, i64>,
    /// What was behind the incidents, by timestamp ascending.
    pub contributions: Vec<(i64, Vec<SavedContribution>)>,
    /// Timestamps at which incidents of the last day began.
    pub incident_starts_ms: Vec<i64>,
    /// Was the newest row in one?
    pub is_incident: bool,
    /// Timestamps of rows at which everything ended, as far as a target has yet to be told.
    #[serde(default)]
    pub stale_ms: Vec<i64>,
}

/// How far a model was, and what it had become.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCheckpoint {
    name: String,
    version: u64,
    digest: String,
    /// Rows up to here were passed over, or taken by the detection.
    pub processed_to_ms: i64,
    /// What it had become, if it judges one row after the other.
    checkpoint: Option<Checkpoint>,
}

/// A metric behind an incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedContribution {
    /// The feature.
    pub feature: Labels,
    /// How it is unusual.
    pub reason: String,
    /// Its share of all deviation.
    pub share: f64,
    /// Least usual, expected and greatest usual value; none before a first day.
    pub expected_range: [Option<f64>; 3],
}

/// A model at work, before it is put into words: that takes longer than the scoring thread should wait.
pub struct PendingCheckpoint {
    /// The model.
    pub deployed: DeployedModel,
    /// Its digest, once somebody wanted to know it.
    pub digest: Arc<OnceLock<String>>,
    /// Rows up to here were passed over, or taken by the detection.
    pub processed_to_ms: i64,
    /// What it has become.
    pub detector: Option<OnlineDetector>,
}

impl PendingCheckpoint {
    /// Puts it into words; none for a model that the registry does not have, since it is gone with the process.
    pub fn to_checkpoint(&self) -> Option<ModelCheckpoint> {
        let version = self.deployed.version?;
        let digest = self.digest.get_or_init(|| artifact::digest(&self.deployed.model)).clone();
        let checkpoint = self.detector.as_ref().map(OnlineDetector::checkpoint);
        Some(ModelCheckpoint {
            name: self.deployed.name.clone(),
            version,
            digest,
            processed_to_ms: self.processed_to_ms,
            checkpoint,
        })
    }
}

impl ModelCheckpoint {
    /// What this model had become, where it is the same one; none within for one that judges every row alone.
    pub fn resume(&self, deployed: &DeployedModel) -> Option<Option<Box<OnlineDetector>>> {
        let is_same = self.name == deployed.name
            && deployed.version == Some(self.version)
            && self.digest == artifact::digest(&deployed.model);
        if is_same { deployed.model.fitted.resume(self.checkpoint.as_ref()) } else { None }
    }
}

/// The second line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    window_ms: i64,
    features: Vec<Labels>,
    state: GroupState,
}

/// The bytes of a file.
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
    let mut writer = FileWriter::try_new(&mut content, &schema).expect("a vector takes any bytes");
    writer.write(&batch).expect("a vector takes any bytes");
    writer.finish().expect("a vector takes any bytes");
    drop(writer);
    let mut bytes = format!("{MAGIC} {FORMAT} {}\n", artifact::sha256_hex(&content)).into_bytes();
    bytes.append(&mut content);
    bytes
}

/// Reads a file.
///
/// # Errors
/// [`Error`] for anything that was not written by [`encode`].
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
    // Whoever has made a checksum may have made up the rest, too.
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

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
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

#[cfg(test)]
mod tests;
