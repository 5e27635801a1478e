//! Secrets, inline or in files. A secret prints as `<secret>`, and its file is read at each use, so that a change of the
//! file needs no reload.

use crate::yaml::Section;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Take};
use std::path::{Path, PathBuf};

/// Bytes read of a file: enough for the certificates of a few hundred authorities.
const FILE_LIMIT: u64 = 1 << 20;

/// A text that prints as `<secret>`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// A text in the configuration or in a file that it names.
#[derive(Clone, Debug, PartialEq)]
pub enum SecretSource {
    /// In the configuration.
    Inline(Secret),
    /// In a file.
    File(PathBuf),
}

impl Default for SecretSource {
    fn default() -> Self {
        Self::Inline(Secret::default())
    }
}

/// A file named by a key cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct ReadFileError {
    /// The file.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

impl SecretSource {
    /// Reads the text; that of a file without surrounding white space.
    ///
    /// # Errors
    /// [`ReadFileError`] if the file cannot be read.
    pub fn read(&self) -> Result<String, ReadFileError> {
        let path = match self {
            Self::Inline(text) => return Ok(text.expose().into()),
            Self::File(path) => path,
        };
        let mut text = String::new();
        match open_bounded(path).and_then(|mut file| file.read_to_string(&mut text)) {
            Ok(_) => Ok(text.trim().into()),
            Err(source) => Err(ReadFileError { path: path.clone(), source }),
        }
    }

    /// Reads a text that stands under `key`, or in the file that `file_key` names.
    pub fn from_section(
        section: &mut Section<'_, '_>,
        key: &'static str,
        file_key: &'static str,
    ) -> Option<Self> {
        let (inline, file) = (section.get(key), section.get(file_key));
        if let (Some(_), Some(file)) = (&inline, &file) {
            file.error(format!("{key} is also set: only one of the two is allowed"));
        }
        let inline = inline.and_then(|node| node.string()).map(|text| Self::Inline(text.into()));
        let file = file.and_then(|node| {
            let file = Self::File(node.file()?);
            if let Err(error) = file.read() {
                node.error(crate::error::chain(&error));
            }
            Some(file)
        });
        inline.or(file)
    }
}

/// Opens a file of which at most [`FILE_LIMIT`] bytes can be read.
pub(super) fn open_bounded(path: &Path) -> io::Result<Take<File>> {
    Ok(File::open(path)?.take(FILE_LIMIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show() {
        let secret = Secret("hunter2".into());
        assert_eq!((secret.to_string(), format!("{secret:?}")), ("<secret>".into(), "<secret>".into()));
    }
}
