//! Import of models from promforest, MLflow, scikit-learn and ONNX.
//!
//! A folder is a promforest artifact or an MLflow model with a scikit-learn or ONNX forest; a single file is a pickle,
//! a skops archive or an ONNX graph, detected by its content. Import checks every value and runs no code of the file.
//! The rules of [`columns`] and the user's mapping resolve column names to features.

use super::mlmodel::{self, Flavor, MlModelFile};
use super::{FittedModel, ImportedForest, Model, ModelCard, artifact, columns, onnx, sklearn};
use crate::features::Schema;
use crate::features::rate::RateSemantics;
use crate::time;
use crate::window::grid::Grid;
use crate::yaml;
use artifact::Files;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Most bytes of a folder's files together: a forest of a thousand trees on 2,000 rows has a tenth.
const MAX_BYTES: u64 = 1 << 30;
/// Most files of a folder.
const MAX_FILES: usize = 100;

/// The user's names for the columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ColumnMapping {
    /// The file's names as they are.
    #[default]
    Identity,
    /// Series for some of the file's names.
    ByName(columns::NameMapping),
    /// The series of all columns, in the order of the forest's features.
    ByPosition(Vec<String>),
}

/// Reasons to reject a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The files exceed a limit.
    #[error("{} has {what}, must have at most {limit}", path.display())]
    Oversized {
        /// The file or folder.
        path: PathBuf,
        /// The exceeded quantity.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The format of the folder is unknown.
    #[error("no model: there is neither a model.json nor an MLmodel among {0:?}")]
    UnknownFormat(Vec<String>),
    /// `MLmodel` names a missing file.
    #[error("MLmodel: the model file {0:?} is not there")]
    MissingModelFile(String),
    /// A promforest artifact is invalid.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// `MLmodel` is invalid.
    #[error(transparent)]
    MlModel(#[from] mlmodel::Error),
    /// The scikit-learn file is invalid.
    #[error("scikit-learn")]
    Sklearn(#[from] sklearn::Error),
    /// The ONNX file is invalid.
    #[error("ONNX")]
    Onnx(#[from] onnx::Error),
    /// The columns have no names and the mapping lists none.
    #[error(
        "the model has {n_features} columns without names: list the series that they are in a mapping file, in their order"
    )]
    UnnamedColumns {
        /// Columns of the model.
        n_features: usize,
    },
    /// The mapping has another number of names than the model has columns.
    #[error("the mapping lists {n_names} series, the model has {n_features} columns")]
    MappingLength {
        /// Names of the mapping.
        n_names: usize,
        /// Columns of the model.
        n_features: usize,
    },
    /// The names do not resolve to features.
    #[error(transparent)]
    Columns(#[from] columns::Error),
    /// The mapping file is invalid.
    #[error("{}: {reason}", path.display())]
    MappingFile {
        /// The file.
        path: PathBuf,
        /// The reason and the line.
        reason: String,
    },
}

/// Reads the files of a model's folder, or a single file under its own name.
///
/// # Errors
/// [`Error::Io`] and [`Error::Oversized`].
pub fn read_files(path: &Path) -> Result<Files, Error> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { path, source }
    };
    let mut files = Files::new();
    let mut remaining = MAX_BYTES;
    let mut add = |path: PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        // One byte above the limit, to detect larger files.
        File::open(&path)
            .map_err(io(&path))?
            .take(remaining + 1)
            .read_to_end(&mut bytes)
            .map_err(io(&path))?;
        let oversized = |what, limit| Error::Oversized { path: path.clone(), what, limit };
        remaining =
            remaining.checked_sub(bytes.len() as u64).ok_or_else(|| oversized("more bytes", MAX_BYTES))?;
        files.insert(name, bytes);
        if files.len() > MAX_FILES { Err(oversized("more files", MAX_FILES as u64)) } else { Ok(()) }
    };
    // Opening a pipe could block forever.
    let metadata = path.metadata().map_err(io(path))?;
    if metadata.is_file() {
        add(path.to_path_buf())?;
    } else if metadata.is_dir() {
        let folder = path.canonicalize().map_err(io(path))?;
        for entry in path.read_dir().map_err(io(path))? {
            let entry = entry.map_err(io(path))?.path();
            // Links out of the folder are ignored.
            let canonical = entry.canonicalize().map_err(io(&entry))?;
            if canonical.is_file() && canonical.starts_with(&folder) {
                add(entry)?;
            }
        }
    } else {
        return Err(io(path)(std::io::Error::other("neither a file nor a folder")));
    }
    Ok(files)
}

/// Reads a model from its files, in any of the formats.
///
/// # Errors
/// [`Error`].
pub fn read_model(files: &Files, mapping: &ColumnMapping, semantics: RateSemantics) -> Result<Model, Error> {
    if artifact::is_artifact(files) {
        return Ok(artifact::read_model(files)?);
    }
    let imported = read_forest(files)?;
    let n_features = imported.forest.n_features();
    let no_renames = columns::NameMapping::new();
    let (names, renames) = match (mapping, imported.columns) {
        (ColumnMapping::ByPosition(names), _) if names.len() != n_features => {
            return Err(Error::MappingLength { n_names: names.len(), n_features });
        }
        (ColumnMapping::ByPosition(names), columns) => {
            let renames = columns.iter().flatten().cloned().zip(names.iter().cloned()).collect();
            (columns.unwrap_or_else(|| names.clone()), renames)
        }
        (_, None) => return Err(Error::UnnamedColumns { n_features }),
        (ColumnMapping::ByName(names), Some(columns)) => (columns, names.clone()),
        (ColumnMapping::Identity, Some(columns)) => (columns, no_renames),
    };
    let (features, transform) = columns::resolve_features(&names, &renames, semantics)?;
    let schema = Schema { features, transform, grid: Grid::Exact };
    let columns = (names != columns::default_names(&schema)).then_some(names);
    let card = ModelCard {
        origin: imported.origin,
        created_ms: time::now_ms(),
        params: imported.params,
        columns,
        ..ModelCard::default()
    };
    Ok(Model { schema, fitted: FittedModel::IsolationForest(imported.forest), card })
}

/// Reads the forest of another program's files.
///
/// # Errors
/// [`Error`].
pub fn read_forest(files: &Files) -> Result<ImportedForest, Error> {
    if let Some(description) = files.get("MLmodel") {
        let MlModelFile { model_file: file, flavor, columns } = MlModelFile::parse(description)?;
        let bytes = files.get(&file).ok_or(Error::MissingModelFile(file))?;
        return Ok(match flavor {
            Flavor::Sklearn(format) => sklearn::read_as(bytes, &format, columns)?,
            Flavor::Onnx => onnx::read(bytes, columns)?,
        });
    }
    match files.first_key_value() {
        Some((name, bytes)) if files.len() == 1 => {
            Ok(if name.ends_with(".onnx") { onnx::read(bytes, None)? } else { sklearn::read(bytes)? })
        }
        _ => Err(Error::UnknownFormat(files.keys().cloned().collect())),
    }
}

/// Reads a mapping file: YAML or JSON, either a mapping of columns to series or a list of series.
///
/// # Errors
/// [`Error::Io`] and [`Error::MappingFile`].
pub fn read_mapping(path: &Path) -> Result<ColumnMapping, Error> {
    let io = |source| Error::Io { path: path.into(), source };
    let text = std::fs::read_to_string(path).map_err(io)?;
    let invalid = |reason: String| Error::MappingFile { path: path.into(), reason };
    let read = yaml::read_any(&text, Path::new(""), |node| {
        if node.is_list() {
            return ColumnMapping::ByPosition(
                node.items().iter().flatten().filter_map(yaml::Node::text).collect(),
            );
        }
        let entries = node.entries().unwrap_or_default();
        ColumnMapping::ByName(
            entries.iter().filter_map(|(name, node)| Some((name.clone(), node.text()?))).collect(),
        )
    });
    read.map_err(|errors| invalid(errors.first().map(ToString::to_string).unwrap_or_default()))
}
