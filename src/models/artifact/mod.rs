//! The folder of a model: the same files in the embedded registry and in MLflow.
//!
//! | file | what |
//! |---|---|
//! | `MLmodel` | MLflow's description; names the loader for `mlflow.pyfunc.load_model` |
//! | `model.json` | schema, parameters and origin, in a readable form |
//! | `forest.arrow` | the trees' nodes, an Arrow IPC file |
//! | `state.json` | of an extended forest: its state after the last row of training |
//! | `golden.arrow` | a few rows and their scores; loading recomputes and compares them |
//! | `code/promforest_model.py` | the loader, which needs numpy and pyarrow only |
//! | `python_env.yaml`, `requirements.txt` | the requirements of the loader |
//! | `SHA256SUMS` | checksums, as `sha256sum --check` reads them |
//!
//! Writers produce [files in memory](Files), so that directories and artifact stores share one code. Readers check
//! sizes, indexes and numbers before use and reject unknown content.
//!
//! Not taken: one file in a private format (no other program could open it); ONNX (it has no oblique splits and no
//! scores beyond the range of training).

mod forest;
mod golden;
pub mod ipc;
mod json;

pub use json::write as model_json;

use super::{FittedModel, Model};
use crate::fs::sync_directory;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

/// The files of a model by their paths in the folder.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Version of the folder's layout. A reader rejects every other version.
const FORMAT: u32 = 1;
/// Largest accepted file. Ten thousand standard trees of 256 rows take a fifth of it, as many extended
/// trees three quarters.
const MAX_FILE: u64 = 256 << 20;
/// A score of the golden rows may be off by this share: libraries' exponentials differ in the last
/// bit from machine to machine.
const TOLERANCE: f64 = 1e-12;

const MODEL: &str = "model.json";
const FOREST: &str = "forest.arrow";
const GOLDEN: &str = "golden.arrow";
const STATE: &str = "state.json";
const MLMODEL: &str = "MLmodel";
const SUMS: &str = "SHA256SUMS";
const LOADER: &str = "code/promforest_model.py";
/// The files that every model has.
pub const REQUIRED_FILES: [&str; 4] = [MODEL, FOREST, GOLDEN, SUMS];

/// Reasons to reject a folder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// A file is missing.
    #[error("no model: {0} is missing")]
    Missing(&'static str),
    /// A file is larger than [`MAX_FILE`].
    #[error("{path} has {size} bytes, must be at most {MAX_FILE}")]
    Oversized {
        /// The file.
        path: String,
        /// Its size.
        size: u64,
    },
    /// A file differs from its checksum.
    #[error("{0} does not have its checksum: it is damaged, or was edited")]
    Checksum(String),
    /// The checksums cannot be read.
    #[error("{SUMS}: {0:?} is not a line of a checksum and a file")]
    Sums(String),
    /// The folder has another layout.
    #[error("the model has format {0}, this version reads format {FORMAT}")]
    Format(u64),
    /// `model.json` is wrong.
    #[error("{MODEL}: {0}")]
    Json(String),
    /// `state.json` is wrong.
    #[error("{STATE}: {0}")]
    State(String),
    /// An Arrow file is wrong.
    #[error("{file}: {reason}")]
    Arrow {
        /// The file.
        file: &'static str,
        /// The reason.
        reason: String,
    },
    /// The trees are invalid.
    #[error("{FOREST}: {context}")]
    Forest {
        /// The part of the forest.
        context: String,
        /// The reason.
        source: crate::forest::Error,
    },
    /// The golden rows score differently.
    #[error("{GOLDEN}: row {row} scores {found}, must be {expected}: this is not the forest that was saved")]
    Golden {
        /// Row, from 0.
        row: usize,
        /// The recorded score.
        expected: f64,
        /// The computed score.
        found: f64,
    },
}

/// The folder's files.
pub fn to_files(model: &Model) -> Files {
    let mut files = Files::new();
    let mut add = |name: &str, bytes: Vec<u8>| files.insert(name.to_string(), bytes);
    add(MODEL, json::write(model).into_bytes());
    add(FOREST, forest::write(&model.fitted));
    add(GOLDEN, golden::write(&model.fitted));
    if let Some(state) = forest::write_state(&model.fitted) {
        add(STATE, state);
    }
    add(LOADER, include_bytes!("promforest_model.py").to_vec());
    add("requirements.txt", include_bytes!("requirements.txt").to_vec());
    add("python_env.yaml", include_bytes!("python_env.yaml").to_vec());
    add(MLMODEL, mlmodel_yaml(model).into_bytes());
    let mut sums = String::new();
    for (name, bytes) in files.iter().filter(|(name, _)| has_checksum(name)) {
        writeln!(sums, "{}  {name}", sha256_hex(bytes)).expect("a string takes any text");
    }
    files.insert(SUMS.into(), sums.into_bytes());
    files
}

/// Reads a model from its files; other files are ignored.
///
/// # Errors
/// [`Error`].
pub fn read_model(files: &Files) -> Result<Model, Error> {
    let file = |name: &'static str| files.get(name).ok_or(Error::Missing(name));
    verify_checksums(files, file(SUMS)?)?;
    let (schema, card, section) = json::read(file(MODEL)?)?;
    let state = files.get(STATE).map(Vec::as_slice);
    let fitted = forest::read(file(FOREST)?, section, state)?;
    golden::verify(file(GOLDEN)?, &fitted)?;
    Ok(Model { schema, fitted, card })
}

/// True if these are the files of a promforest model.
pub fn is_artifact(files: &Files) -> bool {
    files.contains_key(MODEL)
}

/// MLflow edits `MLmodel` on registration. The reader does not use it.
fn has_checksum(name: &str) -> bool {
    name != MLMODEL
}

fn verify_checksums(files: &Files, sums: &[u8]) -> Result<(), Error> {
    let text = String::from_utf8_lossy(sums);
    let mut listed = Vec::new();
    for line in text.lines() {
        let (sum, name) =
            line.split_once("  ").ok_or_else(|| Error::Sums(line.chars().take(80).collect()))?;
        // An unused file may be missing.
        if files.get(name).is_some_and(|bytes| sha256_hex(bytes) != sum) {
            return Err(Error::Checksum(name.into()));
        }
        listed.push(name);
    }
    match REQUIRED_FILES.iter().find(|name| **name != SUMS && !listed.contains(name)) {
        Some(name) => Err(Error::Sums(format!("(nothing of {name})"))),
        None => Ok(()),
    }
}

/// SHA-256 of the model's content. Equal models have equal digests in every registry.
pub fn digest(model: &Model) -> String {
    let mut content = json::write(model).into_bytes();
    content.extend(forest::write(&model.fitted));
    content.extend(forest::write_state(&model.fitted).unwrap_or_default());
    sha256_hex(&content)
}

/// SHA-256 in the notation of `sha256sum`.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes any text");
        text
    })
}

/// Writes the files to a new folder, which appears whole or not at all.
///
/// # Errors
/// [`Error::Io`].
pub fn save(files: &Files, folder: &Path) -> Result<(), Error> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    if folder.exists() {
        return Err(io_error("create", folder)(io::ErrorKind::AlreadyExists.into()));
    }
    let temporary = parent.join(format!(".{name}.{}.tmp", std::process::id()));
    let result = write_files(files, &temporary).and_then(|()| {
        std::fs::rename(&temporary, folder).map_err(io_error("create", folder))?;
        sync(parent)
    });
    if result.is_err() {
        // The first error is reported.
        let _ = std::fs::remove_dir_all(&temporary);
    }
    result
}

fn write_files(files: &Files, folder: &Path) -> Result<(), Error> {
    for (name, bytes) in files {
        let path = folder.join(name);
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(io_error("write", &path))?;
    }
    sync(folder)
}

fn sync(folder: &Path) -> Result<(), Error> {
    sync_directory(folder).map_err(io_error("write", folder))
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.display().to_string();
    move |source| Error::Io { what, path: path.clone(), source }
}

/// Reads the files of a model from a folder.
///
/// # Errors
/// [`Error`] if a file cannot be read or is too large. [`read_model`] reports missing files.
pub fn read_files(folder: &Path) -> Result<Files, Error> {
    let mut files = Files::new();
    for name in REQUIRED_FILES.into_iter().chain([STATE]) {
        let path: PathBuf = folder.join(name);
        let display_path = || path.display().to_string();
        let error = io_error("read", &path);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound && folder.is_dir() => continue,
            Err(source) => return Err(error(source)),
        };
        let size = file.metadata().map_err(&error)?.len();
        if size > MAX_FILE {
            return Err(Error::Oversized { path: display_path(), size });
        }
        let mut bytes = Vec::with_capacity(size as usize);
        file.take(MAX_FILE).read_to_end(&mut bytes).map_err(&error)?;
        files.insert(name.into(), bytes);
    }
    Ok(files)
}

/// MLflow's description of the folder, in its field names.
fn mlmodel_yaml(model: &Model) -> String {
    let column = |name: String| serde_json::json!({"type": "double", "name": name, "required": true});
    let mut columns: Vec<serde_json::Value> = super::columns::names(model).into_iter().map(column).collect();
    // MLflow drops columns that are not named here.
    if let FittedModel::Extended(_) = model.fitted {
        columns.push(serde_json::json!({"type": "long", "name": "timestamp", "required": true}));
    }
    let outputs: Vec<serde_json::Value> = ["score_samples", "decision_function", "predict", "decision", "score"]
        .into_iter()
        .map(|name| serde_json::json!({"type": if name == "predict" { "long" } else { "double" }, "name": name, "required": true}))
        .collect();
    // A JSON text within single quotes, in which YAML has one escape: the doubled quote.
    let quoted =
        |value: Vec<serde_json::Value>| serde_json::Value::from(value).to_string().replace('\'', "''");
    let created = crate::time::format_timestamp(model.card.created_ms).replace('T', " ").replace('Z', "");
    format!(
        "artifact_path: model\n\
         flavors:\n\
         \x20 python_function:\n\
         \x20   code: code\n\
         \x20   env:\n\
         \x20     virtualenv: python_env.yaml\n\
         \x20   loader_module: promforest_model\n\
         \x20   python_version: 3.11.0\n\
         \x20 promforest:\n\
         \x20   format: {FORMAT}\n\
         \x20   kind: {kind}\n\
         \x20   version: {version}\n\
         mlflow_version: 2.22.1\n\
         signature:\n\
         \x20 inputs: '{inputs}'\n\
         \x20 outputs: '{outputs}'\n\
         \x20 params: null\n\
         utc_time_created: '{created}'\n",
        kind = model.fitted.kind(),
        version = env!("CARGO_PKG_VERSION"),
        inputs = quoted(columns),
        outputs = quoted(outputs),
    )
}

#[cfg(test)]
pub(in crate::models) mod tests;
