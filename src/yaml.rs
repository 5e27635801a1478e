//! Reads configuration files: YAML mappings, key by key, with every error and its line.
//!
//! Each room reads its own section through a [`Section`]: it gets the keys of the section, with their defaults, and any
//! other key is an error. Not taken: structures derived with serde, which stop at the first error; a user needs all
//! errors of a file at once.

mod key;

use crate::prom::duration;
pub use key::{DefaultValue, Key, KeyTable};
use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Least similarity of an unknown key and the one that it was probably meant to be, in [0, 1] (Jaro-Winkler).
const MIN_SIMILARITY: f64 = 0.85;

/// One error in a file, or one warning.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// Line, from 1.
    pub line: usize,
    /// Text with the key, the value and the limit.
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// Errors of reading a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The file has one or more errors.
    #[error("{path} has {} error{}:\n{}", errors.len(), if errors.len() == 1 { "" } else { "s" }, format_errors(path, errors))]
    Invalid {
        /// The file.
        path: String,
        /// All errors, by line.
        errors: Vec<Error>,
    },
}

fn format_errors(path: &str, errors: &[Error]) -> String {
    let lines: Vec<String> =
        errors.iter().map(|error| format!("  {path}:{}: {}", error.line, error.message)).collect();
    lines.join("\n")
}

/// Reads a file with [`read`]. Relative paths in the file start at its folder.
///
/// # Errors
/// [`FileError`] with all errors of the file.
pub fn load<T>(path: &Path, read: impl FnOnce(Section<'_, '_>) -> T) -> Result<T, FileError> {
    load_document(path, read).map(|document| document.value)
}

/// A file that has been read.
#[derive(Clone, Debug)]
pub struct Document<T> {
    /// The value that was read from it.
    pub value: T,
    /// Its text.
    pub text: String,
    /// Keys that have no effect, by line.
    pub warnings: Vec<Error>,
}

/// Reads a file as [`load`] does, and returns its text and its warnings too.
///
/// # Errors
/// As [`load`].
pub fn load_document<T>(
    path: &Path,
    read: impl FnOnce(Section<'_, '_>) -> T,
) -> Result<Document<T>, FileError> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| FileError::Io { path: name(), source })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    match read_with_warnings(&text, folder, |root| root.section().map(read)) {
        Ok((Some(value), warnings)) => Ok(Document { value, text, warnings }),
        Ok((None, errors)) | Err(errors) => Err(FileError::Invalid { path: name(), errors }),
    }
}

/// Reads a document: calls `read` with its top level, and returns the result if there are no errors. Relative paths in
/// the document start at `folder`.
///
/// # Errors
/// All errors, ordered by line. A text that is not YAML gives one error.
pub fn read<T>(text: &str, folder: &Path, read: impl FnOnce(Section<'_, '_>) -> T) -> Result<T, Vec<Error>> {
    read_any(text, folder, |root| root.section().map(read))?.ok_or_else(Vec::new)
}

/// Reads a document whose top level may be a list or a mapping.
///
/// # Errors
/// As [`read`].
pub fn read_any<T>(text: &str, folder: &Path, read: impl FnOnce(Node<'_, '_>) -> T) -> Result<T, Vec<Error>> {
    read_with_warnings(text, folder, read).map(|(value, _)| value)
}

/// Reads a document, and returns its warnings too.
fn read_with_warnings<T>(
    text: &str,
    folder: &Path,
    read: impl FnOnce(Node<'_, '_>) -> T,
) -> Result<(T, Vec<Error>), Vec<Error>> {
    let documents = MarkedYaml::load_from_str(text).map_err(|error| {
        vec![Error { line: error.marker().line(), message: format!("not valid YAML: {}", error.info()) }]
    })?;
    let (errors, warnings) = (RefCell::default(), RefCell::default());
    let empty = MarkedYaml::from(YamlData::Value(Scalar::Null));
    let node = documents.first().unwrap_or(&empty);
    let root = Node { node, path: String::new(), folder, errors: &errors, warnings: &warnings };
    if let Some(second) = documents.get(1) {
        let message = "a second YAML document starts here; only one is allowed".to_string();
        errors.borrow_mut().push(Error { line: second.span.start.line(), message });
    }
    let value = read(root);
    let [errors, warnings] = [errors, warnings].map(|found: RefCell<Vec<Error>>| {
        let mut found = found.into_inner();
        found.sort_by_key(|error| error.line);
        found
    });
    if errors.is_empty() { Ok((value, warnings)) } else { Err(errors) }
}

/// A value of the file, with its position.
#[derive(Clone)]
pub struct Node<'n, 'y> {
    node: &'n MarkedYaml<'y>,
    path: String,
    folder: &'n Path,
    errors: &'n RefCell<Vec<Error>>,
    warnings: &'n RefCell<Vec<Error>>,
}

impl<'n, 'y> Node<'n, 'y> {
    /// Records an error at this value.
    pub fn error(&self, reason: impl fmt::Display) {
        self.errors.borrow_mut().push(self.finding(reason));
    }

    /// Records a warning at this value.
    pub fn warn(&self, reason: impl fmt::Display) {
        self.warnings.borrow_mut().push(self.finding(reason));
    }

    fn finding(&self, reason: impl fmt::Display) -> Error {
        let message =
            if self.path.is_empty() { reason.to_string() } else { format!("{}: {reason}", self.path) };
        Error { line: self.node.span.start.line(), message }
    }

    /// This value as a mapping; an empty one for a null. Records an error for other values.
    pub fn section(self) -> Option<Section<'n, 'y>> {
        match &self.node.data {
            YamlData::Mapping(_) | YamlData::Value(Scalar::Null) => {
                Some(Section { node: self, known_keys: Vec::new(), other_keys: Vec::new() })
            }
            _ => {
                self.error(format!("expected a mapping, found {}", self.kind()));
                None
            }
        }
    }

    /// True if this value is a list.
    pub fn is_list(&self) -> bool {
        matches!(self.node.data, YamlData::Sequence(_))
    }

    /// The items of this list. Records an error for other values.
    pub fn items(&self) -> Option<Vec<Self>> {
        let item = |(i, node)| Self { node, path: format!("{}[{i}]", self.path), ..*self };
        match &self.node.data {
            YamlData::Sequence(items) => Some(items.iter().enumerate().map(item).collect()),
            _ => {
                self.error(format!("expected a list, found {}", self.kind()));
                None
            }
        }
    }

    /// The entries of this mapping with free keys. Records an error for other values.
    pub fn entries(&self) -> Option<Vec<(String, Self)>> {
        let YamlData::Mapping(mapping) = &self.node.data else {
            self.error(format!("expected a mapping, found {}", self.kind()));
            return None;
        };
        let entry = |(name, node): (&'n MarkedYaml<'y>, &'n MarkedYaml<'y>)| {
            let key = Self { node: name, path: self.path.clone(), ..*self };
            let key = key.text()?;
            let path = format!("{}.{key}", self.path);
            Some((key, Self { node, path, ..*self }))
        };
        Some(mapping.iter().filter_map(entry).collect())
    }

    /// This scalar exactly as written. Records an error for numbers and booleans without quotes, which YAML would
    /// change: 007 would be 7.
    pub fn string(&self) -> Option<String> {
        match &self.node.data {
            YamlData::Value(Scalar::String(value)) => Some(value.to_string()),
            YamlData::Value(Scalar::Integer(_) | Scalar::FloatingPoint(_) | Scalar::Boolean(_)) => {
                self.error("put it in quotes: YAML takes it for a number or a truth value");
                None
            }
            _ => self.text(),
        }
    }

    /// This scalar as a path. A relative path starts at the folder of the configuration file.
    pub fn file(&self) -> Option<PathBuf> {
        Some(self.folder.join(self.string()?))
    }

    /// This scalar as text; numbers and booleans in their YAML notation. Records an error for other values.
    pub fn text(&self) -> Option<String> {
        match &self.node.data {
            YamlData::Value(value) if *value != Scalar::Null => Some(self.describe()),
            _ => {
                let hint = match self.node.data {
                    YamlData::Mapping(_) => ": a text that begins with { needs quotes",
                    _ => "",
                };
                self.error(format!("expected a single value, found {}{hint}", self.kind()));
                None
            }
        }
    }

    /// Parses the text of this scalar. Records the error of the parser.
    pub fn parse<T, E: std::error::Error>(&self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        match parse(&self.text()?) {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(crate::error::chain(&error));
                None
            }
        }
    }

    /// Parses this scalar. Error texts call the expected value `what`, for example "a whole number".
    pub fn value<T: FromStr>(&self, what: &str) -> Option<T> {
        let text = self.text()?;
        let value = text.parse().ok();
        if value.is_none() {
            self.error(format!("{text:?} is not {what}"));
        }
        value
    }

    /// The kind of this value for messages. The value itself may be a secret: a credential where a mapping belongs.
    fn kind(&self) -> &'static str {
        match &self.node.data {
            YamlData::Value(Scalar::Null) => "nothing",
            YamlData::Value(Scalar::Boolean(_)) => "true or false",
            YamlData::Value(Scalar::Integer(_) | Scalar::FloatingPoint(_)) => "a number",
            YamlData::Value(Scalar::String(_)) => "a text",
            YamlData::Sequence(_) => "a list",
            YamlData::Mapping(_) => "a mapping",
            _ => "a tag, an alias or a value that cannot be read",
        }
    }

    fn describe(&self) -> String {
        match &self.node.data {
            YamlData::Value(Scalar::Null) => "nothing".into(),
            YamlData::Value(Scalar::Boolean(value)) => value.to_string(),
            YamlData::Value(Scalar::Integer(value)) => value.to_string(),
            // With the decimal point: in scikit-learn, max_samples 1.0 is a share and 1 is a count.
            YamlData::Value(Scalar::FloatingPoint(value)) => format!("{:?}", value.into_inner()),
            YamlData::Value(Scalar::String(value)) => value.to_string(),
            YamlData::Sequence(_) => "a list".into(),
            YamlData::Mapping(_) => "a mapping".into(),
            _ => "a tag, an alias or a value that cannot be read".into(),
        }
    }
}

/// A mapping that is read key by key. Call [`deny_unknown`](Self::deny_unknown) after the last key.
pub struct Section<'n, 'y> {
    node: Node<'n, 'y>,
    known_keys: Vec<&'static str>,
    /// Keys of Prometheus without a meaning here.
    other_keys: Vec<&'static str>,
}

impl<'n, 'y> Section<'n, 'y> {
    /// The value of a key; `None` if the key is absent or null.
    pub fn get(&mut self, key: &'static str) -> Option<Node<'n, 'y>> {
        self.known_keys.push(key);
        self.find(key)
    }

    fn find(&self, key: &'static str) -> Option<Node<'n, 'y>> {
        let YamlData::Mapping(mapping) = &self.node.node.data else { return None };
        let value = mapping.iter().find(|(name, _)| is_key(name, key)).map(|(_, value)| value)?;
        if matches!(value.data, YamlData::Value(Scalar::Null)) {
            return None;
        }
        let path = &self.node.path;
        let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
        Some(Node { node: value, path, ..self.node })
    }

    /// Records a warning for each of these keys that the section has: Prometheus has them, and here they change nothing.
    pub fn ignore(&mut self, keys: &[&'static str], reason: &str) {
        for node in self.find_other(keys) {
            node.warn(format!("has no effect: {reason}"));
        }
    }

    /// Records an error for each of these keys that the section has: Prometheus has them, and without them the section
    /// would mean something else.
    pub fn reject(&mut self, keys: &[&'static str], reason: &str) {
        for node in self.find_other(keys) {
            node.error(reason);
        }
    }

    fn find_other(&mut self, keys: &[&'static str]) -> Vec<Node<'n, 'y>> {
        self.other_keys.extend(keys);
        keys.iter().filter_map(|key| self.find(key)).collect()
    }

    /// The value of a required key. Records an error if it is absent or null.
    pub fn require(&mut self, key: &'static str) -> Option<Node<'n, 'y>> {
        let value = self.get(key);
        if value.is_none() {
            self.node.error(format!("{key} is missing"));
        }
        value
    }

    /// A duration above zero, or the default if the key is absent.
    pub fn duration(&mut self, key: &'static str, default: Duration) -> Duration {
        let Some(node) = self.get(key) else { return default };
        let duration = node.parse(duration::parse);
        if duration == Some(Duration::ZERO) {
            node.error("must be above 0");
        }
        duration.unwrap_or(default)
    }

    /// A whole number of at least `minimum`, or the default if the key is absent.
    pub fn count(&mut self, key: &'static str, default: usize, minimum: usize) -> usize {
        let Some(node) = self.get(key) else { return default };
        let count = node.value::<usize>("a whole number");
        if count.is_some_and(|count| count < minimum) {
            node.error(format!("must be at least {minimum}"));
        }
        count.unwrap_or(default)
    }

    /// A number in `[least, greatest]`; `None` if the key is absent.
    pub fn number(&mut self, key: &'static str, least: f64, greatest: f64) -> Option<f64> {
        let node = self.get(key)?;
        let number = node.value::<f64>("a number")?;
        if !(least..=greatest).contains(&number) {
            let limit = if greatest < f64::MAX {
                format!("in [{least}, {greatest}]")
            } else {
                format!("at least {least}")
            };
            node.error(format!("must be {limit}"));
        }
        Some(number)
    }

    /// A boolean, or the default if the key is absent.
    pub fn flag(&mut self, key: &'static str, default: bool) -> bool {
        self.get(key).and_then(|node| node.value("true or false")).unwrap_or(default)
    }

    /// Records an error of the section as a whole.
    pub fn error(&self, reason: impl fmt::Display) {
        self.node.error(reason);
    }

    /// Records an error for every key that has not been read.
    pub fn deny_unknown(self) {
        let YamlData::Mapping(mapping) = &self.node.node.data else { return };
        for (name, _) in mapping.iter() {
            if !self.known_keys.iter().chain(&self.other_keys).any(|key| is_key(name, key)) {
                let unknown = Node { node: name, path: self.node.path.clone(), ..self.node };
                let text = unknown.describe();
                let nearest = nearest(&text, self.known_keys.iter().chain(&self.other_keys));
                let hint = nearest.map_or(";".into(), |key| format!(", did you mean {key}?"));
                unknown
                    .error(format!("unknown key {text:?}{hint} known here: {}", self.known_keys.join(", ")));
            }
        }
    }
}

/// The name that a text was probably meant to be.
fn nearest<'k>(text: &str, names: impl IntoIterator<Item = &'k &'static str>) -> Option<&'static str> {
    let similar = names.into_iter().map(|name| (strsim::jaro_winkler(text, name), *name));
    let similar = similar.filter(|(similarity, _)| *similarity >= MIN_SIMILARITY);
    similar.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, name)| name)
}

fn is_key(node: &MarkedYaml<'_>, key: &str) -> bool {
    matches!(&node.data, YamlData::Value(Scalar::String(name)) if name == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(text: &str) -> Result<(Duration, usize, bool), Vec<String>> {
        read(text, Path::new(""), |mut top| {
            let every = top.duration("every", Duration::from_secs(15));
            let mut queue = top.get("queue").and_then(Node::section);
            let size = queue.as_mut().map_or(7, |queue| queue.count("size", 7, 1));
            if let Some(queue) = queue {
                queue.deny_unknown();
            }
            let on = top.flag("on", true);
            top.deny_unknown();
            (every, size, on)
        })
        .map_err(|errors| errors.iter().map(Error::to_string).collect())
    }

    #[test]
    fn defaults_and_values() {
        let defaults = Ok((Duration::from_secs(15), 7, true));
        assert_eq!(sample(""), defaults);
        assert_eq!(sample("# nothing\n"), defaults);
        assert_eq!(sample("queue:\n"), defaults);
        assert_eq!(sample("every: 1m\non: false\nqueue: {size: 9}"), Ok((Duration::from_secs(60), 9, false)));
    }

    #[test]
    fn strings_and_paths_stay_as_written() {
        let read = |text| {
            read(text, Path::new("/etc/promforest"), |mut top| {
                let node = top.get("key")?;
                Some((node.string(), node.file()))
            })
            .map_err(|errors| errors.iter().map(Error::to_string).collect::<Vec<String>>())
        };
        let value = |text: &str, path: &str| Ok(Some((Some(text.into()), Some(path.into()))));
        assert_eq!(read("key: token"), value("token", "/etc/promforest/token"));
        assert_eq!(read("key: /run/token"), value("/run/token", "/run/token"));
        assert_eq!(read("key: '007'"), value("007", "/etc/promforest/007"));
        let message =
            "line 1: key: put it in quotes: YAML takes it for a number or a truth value".to_string();
        assert_eq!(read("key: 007"), Err(vec![message.clone(), message]));
    }

    #[test]
    fn entries_are_in_the_order_of_the_file() {
        let read = |text| {
            read(text, Path::new(""), |mut top| {
                let entries = top.get("map")?.entries()?;
                Some(
                    entries
                        .iter()
                        .map(|(key, node)| format!("{key}={:?}", node.string()))
                        .collect::<Vec<_>>(),
                )
            })
        };
        let entries = vec!["b=Some(\"2\")".to_string(), "a=Some(\"x\")".to_string()];
        assert_eq!(read("map: {b: '2', a: x}"), Ok(Some(entries)));
        let errors = read("map: [1]\n").expect_err("a list");
        assert_eq!(errors[0].to_string(), "line 1: map: expected a mapping, found a list");
        let errors = read("map:\n  x: [1]\n").expect_err("a list");
        assert_eq!(errors[0].to_string(), "line 2: map.x: expected a single value, found a list");
    }

    #[test]
    fn every_error_with_its_line() {
        let errors = sample("every: 5 minutes\nqueue:\n  size: 0\n  speed: 3\non: maybe\nof: true\n")
            .expect_err("bad");
        assert_eq!(
            errors,
            [
                "line 1: every: \"5 minutes\" is not a duration: write numbers with the units y, w, d, h, m, s, ms in that order, as in 1h30m",
                "line 3: queue.size: must be at least 1",
                "line 4: queue: unknown key \"speed\"; known here: size",
                "line 5: on: \"maybe\" is not true or false",
                "line 6: unknown key \"of\"; known here: every, queue, on",
            ]
        );
        assert_eq!(sample("- a").expect_err("a list"), ["line 1: expected a mapping, found a list"]);
        assert_eq!(
            sample("queue: [1]").expect_err("a list"),
            ["line 1: queue: expected a mapping, found a list"]
        );
        let twice = sample("on: true\non: false").expect_err("twice");
        assert_eq!(twice, ["line 2: not valid YAML: duplicated key in mapping"]);
        assert_eq!(sample("a: [").expect_err("cut").len(), 1);
    }
}
