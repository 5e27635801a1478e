//! `MLmodel`: MLflow's description of the model in a folder.

use crate::yaml::{self, Node, Section};
use serde::Deserialize;
use std::path::Path;

/// Largest file, in bytes. A file with twenty columns has 2 KB.
const MAX_BYTES: usize = 1 << 20;

/// The characters that open a nested block. Every level takes at least one of them.
const INDENT: [char; 9] = [' ', '\t', '-', '?', ':', '&', '*', '!', '|'];

/// Deepest indentation; MLflow indents by two for a level, and has five levels.
const MAX_INDENT: usize = 100;

/// Reasons to reject a description.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The description is of no supported model.
    #[error("MLmodel: {0}")]
    Invalid(String),
    /// The names of the columns are not in the form that MLflow writes.
    #[error("MLmodel: signature.inputs cannot be read")]
    Signature(#[source] serde_json::Error),
}

/// The content of the folder.
#[derive(Clone, Debug, PartialEq)]
pub struct MlModelFile {
    /// The model file: a plain name.
    pub model_file: String,
    /// The library that wrote it.
    pub flavor: Flavor,
    /// Names of the columns, if the signature has them.
    pub columns: Option<Vec<String>>,
}

/// The supported flavors.
#[derive(Clone, Debug, PartialEq)]
pub enum Flavor {
    /// scikit-learn, with the serialization format.
    Sklearn(String),
    /// ONNX.
    Onnx,
}

impl MlModelFile {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let invalid = |reason: String| Error::Invalid(reason);
        if bytes.len() > MAX_BYTES {
            return Err(invalid(format!("has {} bytes, must have at most {MAX_BYTES}", bytes.len())));
        }
        let text = str::from_utf8(bytes).map_err(|error| invalid(error.to_string()))?;
        // The YAML parser bounds the depth of brackets, not that of blocks, and recurses.
        let indent = |line: &str| line.len() - line.trim_start_matches(INDENT).len();
        if let Some(line) = text.lines().position(|line| indent(line) > MAX_INDENT) {
            let line = line + 1;
            return Err(invalid(format!("line {line}: indented by more than {MAX_INDENT} characters")));
        }
        let read = yaml::read(text, Path::new(""), |mut root| {
            let flavors = root.require("flavors").and_then(Node::section);
            let model = flavors.and_then(parse_flavor);
            let signature = root.get("signature").and_then(Node::section);
            let inputs = signature.and_then(|mut signature| signature.get("inputs")?.text());
            (model, inputs)
        });
        let first = |errors: Vec<yaml::Error>| errors.first().map(ToString::to_string).unwrap_or_default();
        let (model, inputs) = read.map_err(|errors| invalid(first(errors)))?;
        let (file, flavor) = model.ok_or_else(|| invalid("the model file is not named".into()))?;
        if file.is_empty() || file.contains(['/', '\\']) || file == "." || file == ".." {
            return Err(invalid(format!("the model file is {file:?}, must be a file of the folder")));
        }
        Ok(Self {
            model_file: file,
            flavor,
            columns: inputs.as_deref().map(parse_columns).transpose()?.flatten(),
        })
    }
}

fn parse_flavor(mut flavors: Section<'_, '_>) -> Option<(String, Flavor)> {
    if let Some(mut sklearn) = flavors.get("sklearn").and_then(Node::section) {
        let format = sklearn.require("serialization_format").and_then(|node| {
            let format = node.text()?;
            if !matches!(&*format, "pickle" | "cloudpickle" | "skops") {
                node.error(format!("{format:?} is not pickle, cloudpickle or skops"));
            }
            Some(format)
        });
        let file = sklearn.require("pickled_model").and_then(|file| file.text());
        return Some((file?, Flavor::Sklearn(format?)));
    }
    if let Some(mut onnx) = flavors.get("onnx").and_then(Node::section) {
        return Some((onnx.require("data")?.text()?, Flavor::Onnx));
    }
    flavors.error("there is neither sklearn nor onnx among them: other models are not read");
    None
}

/// The columns of a signature; `None` if they have no names, because the model was fitted on an array.
fn parse_columns(inputs: &str) -> Result<Option<Vec<String>>, Error> {
    #[derive(Deserialize)]
    struct SignatureColumn {
        name: Option<String>,
    }
    let inputs: Vec<SignatureColumn> = serde_json::from_str(inputs).map_err(Error::Signature)?;
    Ok(inputs.into_iter().map(|input| input.name).collect())
}
