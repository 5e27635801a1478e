//! The configuration file: composes the sections of all rooms and checks what must fit across them.

use crate::detector::Detector;
use crate::models::registry;
pub use crate::yaml::FileError as Error;
use crate::yaml::{self, Node, Section};
use crate::{remote_read, remote_write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Scrape interval of common Prometheus configurations. It only sets the default of `grace`.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(15);

/// The whole configuration. A section that the file omits has its default.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Endpoints that receive the scores.
    pub remote_write: Vec<remote_write::Config>,
    /// Endpoints that serve history.
    pub remote_read: Vec<remote_read::Config>,
    /// Storage of models.
    pub registry: registry::Config,
    /// Detectors, with distinct names.
    pub detectors: Vec<Arc<Detector>>,
}

impl Default for Config {
    /// The detector [`Detector::node_network`] and a Prometheus on this machine.
    fn default() -> Self {
        Self::parse("").expect("the empty file is valid")
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`] with all errors of the file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        yaml::load(path, Self::read)
    }

    /// Reads the text of a file. Relative paths in it start at the working directory.
    ///
    /// # Errors
    /// All errors of the text, with their lines.
    pub fn parse(text: &str) -> Result<Self, Vec<yaml::Error>> {
        yaml::read(text, Path::new(""), Self::read)
    }

    fn read(mut top: Section<'_, '_>) -> Self {
        let scrape_interval =
            top.get("global").and_then(Node::section).map_or(DEFAULT_INTERVAL, read_scrape_interval);
        let remote_write = match top.get("remote_write") {
            Some(list) => read_sections(&list).map(remote_write::Config::read).collect(),
            None => vec![remote_write::Config::default()],
        };
        let remote_read = match top.get("remote_read") {
            Some(list) => read_sections(&list).map(remote_read::Config::read).collect(),
            None => default_remote_read(&remote_write),
        };
        let registry = top
            .get("registry")
            .and_then(Node::section)
            .map_or_else(registry::Config::default, registry::Config::read);
        let detectors = match top.get("detectors") {
            Some(list) => read_detectors(&list, scrape_interval),
            None => vec![Detector::node_network(scrape_interval)],
        };
        check_shared_model(&top, &registry, detectors.len());
        top.deny_unknown();
        Self { remote_write, remote_read, registry, detectors: detectors.into_iter().map(Arc::new).collect() }
    }
}

/// The Prometheus on this machine if scores are written to it, with the client of that block: an address that nobody
/// configured is not asked otherwise.
fn default_remote_read(remote_write: &[remote_write::Config]) -> Vec<remote_read::Config> {
    let default = remote_read::Config::default();
    let sibling = remote_write.iter().find(|endpoint| endpoint.url.is_sibling(&default.url));
    sibling
        .map(|endpoint| remote_read::Config { http: endpoint.http.clone(), ..default })
        .into_iter()
        .collect()
}

fn read_scrape_interval(mut global: Section<'_, '_>) -> Duration {
    let interval = global.duration("scrape_interval", DEFAULT_INTERVAL);
    global.deny_unknown();
    interval
}

fn read_sections<'n, 'y>(list: &Node<'n, 'y>) -> impl Iterator<Item = Section<'n, 'y>> {
    list.items().unwrap_or_default().into_iter().filter_map(Node::section)
}

fn read_detectors(list: &Node<'_, '_>, scrape_interval: Duration) -> Vec<Detector> {
    let mut detectors: Vec<Detector> = Vec::new();
    let items = list.items();
    for item in items.iter().flatten() {
        let Some(section) = item.clone().section() else { continue };
        let detector = Detector::read(section, scrape_interval);
        let is_duplicate = detectors.iter().any(|other| other.name == detector.name);
        // A missing name is reported by Detector::read.
        if is_duplicate && !detector.name.is_empty() {
            item.error(format!("a second detector named {:?}", detector.name));
        }
        detectors.push(detector);
    }
    if items.is_some_and(|items| items.is_empty()) {
        list.error("at least one detector is needed");
    }
    detectors
}

fn check_shared_model(top: &Section<'_, '_>, registry: &registry::Config, n_detectors: usize) {
    if let registry::Store::Mlflow(mlflow) = &registry.store
        && let Some(model) = &mlflow.model
        && n_detectors > 1
    {
        top.error(format!(
            "registry.mlflow.model: {n_detectors} detectors would share the model {model}; without the key each has its own name"
        ));
    }
}
