//! Isolation forests of scikit-learn, read without Python.
//!
//! ```text
//!             ┌─ pickle ─┐
//! model file ─┤          ├─ values ─ estimator ─ ImportedForest
//!             └─ skops ──┘
//! ```
//!
//! A model file may be damaged or hostile. Both readers convert it to plain values and run no code of it;
//! [`Tree::from_arrays`](crate::forest::Tree) checks the trees, which scikit-learn itself does not do. The readers
//! support scikit-learn 1.3 and later, and earlier versions with the same attributes.
//!
//! Not taken: Python as a reader (a dependency, and a pickle can run any code there); a general reader of pickles
//! (each unused object type is a possible fault).

mod array;
mod estimator;
mod npy;
mod pickle;
mod skops;
mod value;

use crate::forest;
use crate::models::ImportedForest;

/// Reasons to reject a model file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file has another format than its `MLmodel` states.
    #[error("MLmodel: serialization_format is {named}, but the file is a {found}")]
    FormatMismatch {
        /// The format in `MLmodel`.
        named: String,
        /// The format of the file.
        found: &'static str,
    },
    /// The signature and the estimator name a column differently.
    #[error("column {number} is {signature:?} in MLmodel's signature and {estimator:?} in feature_names_in_")]
    ColumnMismatch {
        /// Number of the column, from 0.
        number: usize,
        /// Its name in the signature.
        signature: String,
        /// Its name in the estimator.
        estimator: String,
    },
    /// The number of names differs from the number of features.
    #[error("{names} has {n_names} names, must have {n_features}")]
    Width {
        /// The source of the names.
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
        /// Its offset in bytes.
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
        /// The reason.
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
        /// The reason.
        reason: String,
    },
    /// An attribute of the forest is missing.
    #[error("{name} is missing{}", in_object(object))]
    Missing {
        /// The object, empty for the estimator.
        object: String,
        /// The attribute.
        name: &'static str,
    },
    /// An attribute has an invalid value.
    #[error("{name} is {value}, must be {limit}")]
    Attribute {
        /// The attribute.
        name: String,
        /// The value.
        value: String,
        /// The allowed value.
        limit: &'static str,
    },
    /// An array is invalid.
    #[error("{name}: {reason}")]
    Array {
        /// The attribute.
        name: String,
        /// The reason.
        reason: String,
    },
    /// The trees' arrays are larger than the file.
    #[error("the file tells the same array for several trees")]
    RepeatedArrays,
    /// A tree is invalid.
    #[error("tree {number}")]
    Tree {
        /// Number of the tree, from 0.
        number: usize,
        /// The cause.
        source: Box<Error>,
    },
    /// The trees are invalid.
    #[error(transparent)]
    Forest(#[from] forest::Error),
}

/// Reads a model file. The first bytes distinguish a pickle from a skops file.
///
/// # Errors
/// [`Error`] if the format is unknown or the content is not a valid `IsolationForest`.
pub fn read(bytes: &[u8]) -> Result<ImportedForest, Error> {
    let format = FileFormat::detect(bytes)?;
    format.read(bytes, format.name())
}

/// Reads a model file in the format that its folder's `MLmodel` states. The columns of the signature
/// apply if the estimator names none.
///
/// # Errors
/// [`Error`] as for [`read`], and if the file has another format or the estimator has other columns.
pub fn read_as(bytes: &[u8], named: &str, columns: Option<Vec<String>>) -> Result<ImportedForest, Error> {
    let format = FileFormat::detect(bytes)?;
    if format != if named == "skops" { FileFormat::Skops } else { FileFormat::Pickle } {
        return Err(Error::FormatMismatch { named: named.into(), found: format.name() });
    }
    let mut model = format.read(bytes, named)?;
    model.columns = match (columns, model.columns) {
        (Some(signature), _) if signature.len() != model.forest.n_features() => {
            let (n_names, n_features) = (signature.len(), model.forest.n_features());
            return Err(Error::Width { names: "MLmodel's signature", n_names, n_features });
        }
        (Some(signature), Some(estimator)) => {
            let mut pairs = signature.into_iter().zip(&estimator).enumerate();
            if let Some((number, (signature, estimator))) = pairs.find(|(_, (a, b))| a != *b) {
                return Err(Error::ColumnMismatch { number, signature, estimator: estimator.clone() });
            }
            Some(estimator)
        }
        (signature, estimator) => estimator.or(signature),
    };
    Ok(model)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum FileFormat {
    Pickle,
    Skops,
}

impl FileFormat {
    fn detect(bytes: &[u8]) -> Result<Self, Error> {
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

    fn read(self, bytes: &[u8], name: &str) -> Result<ImportedForest, Error> {
        let (values, root) = match self {
            Self::Pickle => pickle::read(bytes)?,
            Self::Skops => skops::read(bytes)?,
        };
        estimator::read(&values, root, name)
    }
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
