//! Isolation forests of scikit-learn, read without Python.
//!
//! ```text
//! MLmodel ─ names a file ─┐
//!                         ├─ pickle ─┐
//!           model file ───┤          ├─ values ─ estimator ─ Imported
//!                         └─ skops ──┘
//! ```
//!
//! A model file comes from elsewhere and may be damaged or hostile. Both readers turn it into plain
//! values and run nothing in it; the trees are checked by [`Tree::from_arrays`](crate::forest::Tree)
//! like all others, which scikit-learn itself does not do. What is read is what scikit-learn 1.3 and
//! later writes, and earlier versions as far as they have the same attributes.
//!
//! Not taken: running Python beside us to read a model (the dependency that this program is without,
//! and a pickle could do there what it likes), and a general reader of pickles (each object that it
//! understands in vain is something to get wrong).

mod array;
mod estimator;
mod npy;
mod pickle;
mod skops;
mod value;

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::models::imported::Imported;
use crate::{forest, yaml};

/// Largest model file, in bytes. A thousand trees of 2000 samples are about 100 MB.
pub const MAX_FILE: usize = 1 << 30;

/// Largest `MLmodel`, in bytes; with twenty columns it has 2 KB.
const MAX_MLMODEL: usize = 1 << 20;

/// What blocks within blocks begin with: each takes at least one character of its line.
const INDENT: [char; 9] = [' ', '\t', '-', '?', ':', '&', '*', '!', '|'];

/// Deepest indentation in `MLmodel`; MLflow indents by two for a level, and has five levels.
const MAX_INDENT: usize = 100;

/// Why a model was not read. `source` has the cause where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is larger than we read.
    #[error("{} has more than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A folder's `MLmodel` is no description of a scikit-learn model.
    #[error("MLmodel: {0}")]
    MlModel(String),
    /// The names of the columns in `MLmodel` are not in the form that MLflow writes.
    #[error("MLmodel: signature.inputs cannot be read")]
    Signature(#[source] serde_json::Error),
    /// `MLmodel` names a file outside of its folder.
    #[error("MLmodel: pickled_model is \"{0}\", must be a file inside of the folder")]
    Outside(String),
    /// The signature and the estimator name a column differently.
    #[error("column {number} is {signature:?} in MLmodel's signature and {estimator:?} in feature_names_in_")]
    Column {
        /// Number of the column, from 0.
        number: usize,
        /// Its name in the signature.
        signature: String,
        /// Its name in the estimator.
        estimator: String,
    },
    /// There are more or fewer names than features.
    #[error("{names} has {n_names} names, must have {n_features}")]
    Width {
        /// Where the names are.
        names: &'static str,
        /// Names given.
        n_names: usize,
        /// Features of the forest.
        n_features: usize,
    },
    /// Neither a pickle nor a zip.
    #[error("a model file that begins with {0:02x?} is neither a pickle of protocol 2 to 5 nor a skops file")]
    Format(Vec<u8>),
    /// A pickle has an instruction that no forest needs.
    #[error("opcode 0x{opcode:02x} at byte {at} is not allowed in a model")]
    Opcode {
        /// The instruction.
        opcode: u8,
        /// Where it is.
        at: usize,
    },
    /// A pickle names a class or function that no forest needs.
    #[error("global {name} is not allowed in a model: it must be an IsolationForest and no more")]
    Global {
        /// Module and name.
        name: String,
    },
    /// A pickle is damaged.
    #[error("pickle, before byte {at}: {reason}")]
    Pickle {
        /// The byte behind the instruction.
        at: usize,
        /// What is wrong.
        reason: String,
    },
    /// A file within a skops archive cannot be unpacked.
    #[error("skops: {file} cannot be unpacked")]
    Zip {
        /// Name of the file.
        file: String,
        /// The reason.
        source: zip::result::ZipError,
    },
    /// A skops file's schema is not JSON.
    #[error("skops: schema.json cannot be read")]
    Schema(#[source] serde_json::Error),
    /// A skops file is damaged.
    #[error("skops: {file}: {reason}")]
    Skops {
        /// Name of the file within the archive.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// An attribute that a forest has is not there.
    #[error("{name} is missing{}", in_object(object))]
    Missing {
        /// The object, empty for the estimator.
        object: String,
        /// The attribute.
        name: &'static str,
    },
    /// An attribute is not what a forest has there.
    #[error("{name} is {value}, must be {limit}")]
    Attribute {
        /// The attribute.
        name: String,
        /// The value.
        value: String,
        /// What it must be.
        limit: &'static str,
    },
    /// An array is not what a forest has there.
    #[error("{name}: {reason}")]
    Array {
        /// The attribute.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The trees' arrays are larger than the file.
    #[error("the file tells the same array for several trees")]
    Repeated,
    /// Something is wrong with a tree.
    #[error("tree {number}")]
    Tree {
        /// Number of the tree, from 0.
        number: usize,
        /// What.
        source: Box<Error>,
    },
    /// The trees are no trees, or no forest.
    #[error(transparent)]
    Forest(#[from] forest::Error),
}

/// Reads a model file: a pickle or a skops file, told apart by their first bytes.
///
/// # Errors
/// [`Error`] when it is neither, or holds anything but an `IsolationForest` whose trees are trees.
pub fn read(bytes: &[u8]) -> Result<Imported, Error> {
    let format = Format::of(bytes)?;
    format.read(bytes, format.name())
}

/// Reads a model's folder as MLflow hands it out: `MLmodel` names the model file, and the columns if
/// the estimator does not.
///
/// # Errors
/// [`Error`] as for [`read`], and when `MLmodel` does not describe a scikit-learn model in a file of
/// this folder, or names other columns than the estimator.
pub fn read_folder(folder: &Path) -> Result<Imported, Error> {
    let description = read_file(&folder.join("MLmodel"), MAX_MLMODEL)?;
    let description = Description::parse(&description)?;
    let bytes = read_file(&inside(folder, &description.file)?, MAX_FILE)?;
    let format = Format::of(&bytes)?;
    let named = &description.format;
    if format != if named == "skops" { Format::Skops } else { Format::Pickle } {
        let found = format.name();
        return Err(Error::MlModel(format!("serialization_format is {named}, but the file is a {found}")));
    }
    let mut model = format.read(&bytes, named)?;
    model.columns = match (description.columns, model.columns) {
        (Some(signature), _) if signature.len() != model.forest.n_features() => {
            let (n_names, n_features) = (signature.len(), model.forest.n_features());
            return Err(Error::Width { names: "MLmodel's signature", n_names, n_features });
        }
        (Some(signature), Some(estimator)) => {
            let mut pairs = signature.into_iter().zip(&estimator).enumerate();
            if let Some((number, (signature, estimator))) = pairs.find(|(_, (a, b))| a != *b) {
                return Err(Error::Column { number, signature, estimator: estimator.clone() });
            }
            Some(estimator)
        }
        (signature, estimator) => estimator.or(signature),
    };
    Ok(model)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Pickle,
    Skops,
}

impl Format {
    fn of(bytes: &[u8]) -> Result<Self, Error> {
        match bytes {
            [0x80, ..] => Ok(Self::Pickle),
            [b'P', b'K', ..] => Ok(Self::Skops),
            _ => Err(Error::Format(bytes.iter().copied().take(4).collect())),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pickle => "pickle",
            Self::Skops => "skops",
        }
    }

    fn read(self, bytes: &[u8], name: &str) -> Result<Imported, Error> {
        let (values, root) = match self {
            Self::Pickle => pickle::read(bytes)?,
            Self::Skops => skops::read(bytes)?,
        };
        estimator::read(&values, root, name)
    }
}

/// What `MLmodel` says of the model.
struct Description {
    /// The model file, relative to the folder.
    file: String,
    /// What MLflow calls its format.
    format: String,
    /// Names of the columns, if it has them.
    columns: Option<Vec<String>>,
}

impl Description {
    fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let text = str::from_utf8(bytes).map_err(|error| Error::MlModel(error.to_string()))?;
        // The YAML parser bounds the depth of brackets, not that of blocks, and recurses.
        let indent = |line: &str| line.len() - line.trim_start_matches(INDENT).len();
        if let Some(line) = text.lines().position(|line| indent(line) > MAX_INDENT) {
            let line = line + 1;
            return Err(Error::MlModel(format!(
                "line {line}: indented by more than {MAX_INDENT} characters"
            )));
        }
        let read = |mut top: yaml::Section<'_, '_>| {
            let flavors = top.require("flavors").and_then(yaml::Node::section);
            let sklearn = flavors.and_then(|mut flavors| flavors.require("sklearn")?.section());
            let (file, format) = sklearn.map_or((None, None), |mut sklearn| {
                let format = sklearn.require("serialization_format").and_then(|node| {
                    let format = node.text()?;
                    if !matches!(&*format, "pickle" | "cloudpickle" | "skops") {
                        node.refuse(format!("\"{}\" is not pickle, cloudpickle or skops", shorten(&format)));
                    }
                    Some(format)
                });
                (sklearn.require("pickled_model").and_then(|file| file.text()), format)
            });
            let signature = top.get("signature").and_then(yaml::Node::section);
            let inputs = signature.and_then(|mut signature| signature.get("inputs")?.text());
            (file, format, inputs)
        };
        let wrong = |errors: Vec<yaml::Error>| {
            Error::MlModel(errors.first().map(ToString::to_string).unwrap_or_default())
        };
        match yaml::read(text, Path::new(""), read).map_err(wrong)? {
            (Some(file), Some(format), inputs) => {
                Ok(Self { file, format, columns: inputs.as_deref().map(columns).transpose()?.flatten() })
            }
            _ => Err(Error::MlModel("the model file is not named".into())),
        }
    }
}

/// The columns of a signature; `None` if they have no names, because the model was fitted on an array.
fn columns(inputs: &str) -> Result<Option<Vec<String>>, Error> {
    #[derive(Deserialize)]
    struct Input {
        name: Option<String>,
    }
    let inputs: Vec<Input> = serde_json::from_str(inputs).map_err(Error::Signature)?;
    Ok(inputs.into_iter().map(|input| input.name).collect())
}

/// The path of a file that must lie inside of the folder, links followed.
fn inside(folder: &Path, file: &str) -> Result<PathBuf, Error> {
    let outside = || Error::Outside(shorten(file));
    let down = |component| matches!(component, Component::Normal(_));
    if file.is_empty() || !Path::new(file).components().all(down) {
        return Err(outside());
    }
    let real = |path: PathBuf| path.canonicalize().map_err(|source| Error::Io { path, source });
    let path = real(folder.join(file))?;
    if path.starts_with(real(folder.to_path_buf())?) { Ok(path) } else { Err(outside()) }
}

fn read_file(path: &Path, limit: usize) -> Result<Vec<u8>, Error> {
    let fault = |source| Error::Io { path: path.to_path_buf(), source };
    // Opening something else, a pipe say, could wait for ever.
    if !path.metadata().map_err(fault)?.is_file() {
        return Err(fault(std::io::Error::other("not a file")));
    }
    let mut bytes = Vec::new();
    // One byte more, to see that there is more.
    let file = File::open(path).map_err(fault)?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(fault)?;
    if bytes.len() > limit {
        return Err(Error::TooLarge { path: path.to_path_buf(), limit });
    }
    Ok(bytes)
}

fn in_object(object: &str) -> String {
    if object.is_empty() { String::new() } else { format!(" in {object}") }
}

/// The beginning of a text from a file, on one line, for messages.
fn shorten(text: &str) -> String {
    const LENGTH: usize = 80;
    let mut short: String = text.chars().take(LENGTH).flat_map(char::escape_debug).collect();
    if text.chars().nth(LENGTH).is_some() {
        short.push_str("...");
    }
    short
}
