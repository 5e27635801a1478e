//! The configuration file: every room's section, and what has to fit across them.

use crate::features::Transform;
use crate::features::rate::RateSemantics;
use crate::forest::{Contamination, ExtendedParams, ForestParams, MaxFeatures, MaxSamples};
use crate::models::{ModelKind, ModelParams, registry};
use crate::prom::{Selector, duration};
use crate::time;
pub use crate::yaml::FileError as Error;
use crate::yaml::{self, Node, Section};
use crate::{detect, remote_read, remote_write, train};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Trees of a forest. A hundred are enough; this only stops a slip of the keyboard.
const MAX_ESTIMATORS: usize = 10_000;

/// The whole configuration; a file that leaves a section out gets that section's default.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where scores are written.
    pub remote_write: Vec<remote_write::Config>,
    /// Where history is read.
    pub remote_read: Vec<remote_read::Config>,
    /// Where models are kept.
    pub registry: registry::Config,
    /// What is watched.
    pub detectors: Vec<Arc<Detector>>,
}

/// One detector: what to watch, how rows are built, which model.
#[derive(Clone, Debug, PartialEq)]
pub struct Detector {
    /// Name of the detector and stem of its decision series.
    pub name: String,
    /// A series is watched when one of these selects it.
    pub matchers: Vec<Selector>,
    /// Labels whose values make a group.
    pub by: Vec<String>,
    /// From samples to values.
    pub transform: Transform,
    /// How long the raw samples are kept in memory.
    pub window: Duration,
    /// How long a row may wait for its last sample.
    pub grace: Duration,
    /// When and on what models are trained.
    pub training: train::Config,
    /// How many alerts somebody can live with.
    pub alerts: detect::Config,
    /// The forest's parameters.
    pub model: ModelParams,
}

impl Detector {
    /// What a window depends on beside the name: how samples are chosen and become values. Snapshots keep it.
    pub fn selection_key(&self) -> String {
        let matchers: Vec<String> = self.matchers.iter().map(ToString::to_string).collect();
        let semantics = self.transform.rate_semantics().map_or("", |semantics| semantics.as_str());
        format!("{} by {} as {} {semantics}", matchers.join(" or "), self.by.join(", "), self.transform)
    }

    /// Does it watch the same as another one, and make the same of it? Then a window of the one is the other's.
    pub fn has_same_selection(&self, other: &Self) -> bool {
        self.name == other.name && self.selection_key() == other.selection_key()
    }

    /// Name of the series that carries the decision.
    pub fn decision_metric(&self) -> String {
        format!("{}_anomaly", self.name)
    }
}

impl Default for Config {
    /// The `node_network` detector against a Prometheus on this machine.
    fn default() -> Self {
        Self::parse("").expect("the empty file is valid")
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`] with everything that is wrong in it.
    pub fn load(path: &Path) -> Result<Self, Error> {
        yaml::load(path, Self::read)
    }

    /// Reads a file's text, as if it were in the working directory.
    ///
    /// # Errors
    /// Everything that is wrong in it, by line.
    pub fn parse(text: &str) -> Result<Self, Vec<yaml::Error>> {
        yaml::read(text, Path::new(""), Self::read)
    }

    fn read(mut top: Section<'_, '_>) -> Self {
        let scrape_interval =
            top.get("global").and_then(Node::section).map_or(DEFAULT_INTERVAL, |mut global| {
                let interval = global.duration("scrape_interval", DEFAULT_INTERVAL);
                global.deny_unknown();
                interval
            });
        let remote_write = match top.get("remote_write") {
            Some(list) => read_sections(&list).map(remote_write::Config::read).collect(),
            None => vec![remote_write::Config::default()],
        };
        let remote_read = match top.get("remote_read") {
            Some(list) => read_sections(&list).map(remote_read::Config::read).collect(),
            None => vec![remote_read::Config::default()],
        };
        let registry = top
            .get("registry")
            .and_then(Node::section)
            .map_or_else(registry::Config::default, registry::Config::read);
        let detectors: Vec<Detector> = match top.get("detectors") {
            Some(list) => {
                let mut detectors: Vec<Detector> = Vec::new();
                let items = list.items();
                for item in items.iter().flatten() {
                    let Some(section) = item.clone().section() else { continue };
                    let detector = read_detector(section, scrape_interval);
                    let is_duplicate = detectors.iter().any(|other| other.name == detector.name);
                    // A name that is missing is an error of its own.
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
            None => vec![default_detector(scrape_interval)],
        };
        if let registry::Store::Mlflow(mlflow) = &registry.store
            && let Some(model) = &mlflow.model
            && detectors.len() > 1
        {
            top.error(format!(
                "registry.mlflow.model: {} detectors would share the model {model}; without the key each has its own name",
                detectors.len()
            ));
        }
        top.deny_unknown();
        Self { remote_write, remote_read, registry, detectors: detectors.into_iter().map(Arc::new).collect() }
    }
}

/// Prometheus' common scrape interval; it only sets the default of `grace`.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(15);

fn read_sections<'n, 'y>(list: &Node<'n, 'y>) -> impl Iterator<Item = Section<'n, 'y>> {
    list.items().unwrap_or_default().into_iter().filter_map(Node::section)
}

/// The detector of someone who has written none: traffic of every interface that is a machine's
/// own, not a container's.
fn default_detector(scrape_interval: Duration) -> Detector {
    let interfaces = r#"{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device!~"veth.*|cali.*|tap.*"}"#;
    Detector {
        name: "node_network".into(),
        matchers: vec![Selector::parse(interfaces).expect("a selector")],
        ..detector_defaults(scrape_interval)
    }
}

fn detector_defaults(scrape_interval: Duration) -> Detector {
    Detector {
        name: String::new(),
        matchers: Vec::new(),
        by: vec!["job".into(), "instance".into()],
        transform: Transform::Rate { range_ms: 60_000, semantics: RateSemantics::V3 },
        window: Duration::from_secs(6 * 3600),
        // Parts of a scrape may lie 5 s apart by Prometheus' batch deadline, and 5 s more by a retry.
        grace: (2 * scrape_interval).max(Duration::from_secs(15)),
        training: train::Config::default(),
        alerts: detect::Config::default(),
        model: ModelParams::default(),
    }
}

fn read_detector(mut section: Section<'_, '_>, scrape_interval: Duration) -> Detector {
    let default = detector_defaults(scrape_interval);
    let name = section.require("name").and_then(|node| {
        let name = node.text()?;
        if !is_name(&name) {
            node.error(format!("{name:?} cannot begin a metric name: use letters, digits and _"));
        }
        Some(name)
    });
    let matchers = section.require("match").map(|list| {
        let items = list.items();
        if items.as_ref().is_some_and(Vec::is_empty) {
            list.error("at least one selector is needed");
        }
        items.iter().flatten().filter_map(|item| item.parse(Selector::parse)).collect()
    });
    let by = section.get("by").map(|list| {
        let mut by = Vec::new();
        for item in list.items().unwrap_or_default() {
            let Some(label) = item.text() else { continue };
            if !is_name(&label) {
                item.error(format!("{label:?} is no label name: use letters, digits and _"));
            }
            if ["__name__", "detector", "model", "metric", "reason"].contains(&label.as_str()) {
                item.error(format!("{label:?} cannot tell groups apart: it is a label of the outputs' own"));
            } else if by.contains(&label) {
                item.error(format!("{label:?} is there twice"));
            }
            by.push(label);
        }
        by
    });
    let semantics = section.get("rate_semantics").and_then(|node| node.parse(str::parse));
    let semantics = semantics.unwrap_or(RateSemantics::V3);
    let transform =
        section.get("transform").and_then(|node| node.parse(|text| Transform::parse(text, semantics)));
    let window = section.duration("window", default.window);
    let grace = section.duration("grace", default.grace);
    let training =
        section.get("training").and_then(Node::section).map_or(default.training, train::Config::read);
    let alerts = section.get("alerts").and_then(Node::section).map_or(default.alerts, detect::Config::read);
    let model =
        section.get("model").and_then(Node::section).map_or_else(|| default.model.clone(), read_model);
    let transform = transform.unwrap_or(default.transform);
    if window < training.min_history {
        section.error(format!(
            "window: {} is shorter than training.min_history ({}): without remote read the first model would never come",
            duration::Display(window),
            duration::Display(training.min_history),
        ));
    }
    if time::millis(window) < transform.lookback_ms() {
        section.error(format!(
            "window: {} is too short for {transform}: twice its range is needed",
            duration::Display(window)
        ));
    }
    section.deny_unknown();
    Detector {
        name: name.unwrap_or_default(),
        matchers: matchers.unwrap_or_default(),
        by: by.unwrap_or(default.by),
        transform,
        window,
        grace,
        training,
        alerts,
        model,
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |(i, b): (usize, u8)| b == b'_' || b.is_ascii_alphabetic() || i > 0 && b.is_ascii_digit();
    !text.is_empty() && text.bytes().enumerate().all(allowed)
}

fn read_model(mut section: Section<'_, '_>) -> ModelParams {
    let kind = section.get("kind").and_then(|node| node.parse(str::parse)).unwrap_or_default();
    let n_estimators = section.get("n_estimators").and_then(|node| {
        let count: usize = node.value("a whole number")?;
        let n_estimators = NonZeroUsize::new(count).filter(|_| count <= MAX_ESTIMATORS);
        if n_estimators.is_none() {
            node.error(format!("{count} is not in 1 to {MAX_ESTIMATORS}"));
        }
        n_estimators
    });
    let max_samples = section.get("max_samples").and_then(|node| match node.text()?.as_str() {
        "auto" => Some(MaxSamples::Auto),
        text if is_share(text) => {
            node.value("a number").and_then(|share| node.parse(|_| MaxSamples::share(share)))
        }
        _ => node
            .value("auto, a whole number or a share")
            .and_then(|count| node.parse(|_| MaxSamples::count(count))),
    });
    let random_state = section.get("random_state").and_then(|node| node.value("a whole number"));
    match kind {
        ModelKind::IsolationForest => {
            let default = ForestParams::default();
            ModelParams::IsolationForest(ForestParams {
                n_estimators: n_estimators.unwrap_or(default.n_estimators),
                max_samples: max_samples.unwrap_or(default.max_samples),
                random_state: random_state.unwrap_or(default.random_state),
                ..read_standard_params(section)
            })
        }
        ModelKind::ExtendedIsolationForest => {
            let default = ExtendedParams::default();
            let ndim = section.count("ndim", default.ndim.get(), 1);
            section.deny_unknown();
            ModelParams::Extended(ExtendedParams {
                n_estimators: n_estimators.unwrap_or(default.n_estimators),
                max_samples: max_samples.unwrap_or(default.max_samples),
                ndim: NonZeroUsize::new(ndim).unwrap_or(default.ndim),
                random_state: random_state.unwrap_or(default.random_state),
            })
        }
    }
}

/// What only a plain forest has; all else at its default.
fn read_standard_params(mut section: Section<'_, '_>) -> ForestParams {
    let default = ForestParams::default();
    let contamination = section.get("contamination").and_then(|node| match node.text()?.as_str() {
        "auto" => Some(Contamination::Auto),
        _ => node.value("auto or a number").and_then(|share| node.parse(|_| Contamination::share(share))),
    });
    let max_features = section.get("max_features").and_then(|node| match node.text()? {
        text if is_share(&text) => {
            node.value("a number").and_then(|share| node.parse(|_| MaxFeatures::share(share)))
        }
        _ => node
            .value("a whole number or a share")
            .and_then(|count| node.parse(|_| MaxFeatures::count(count))),
    });
    let bootstrap = section.flag("bootstrap", default.bootstrap);
    section.deny_unknown();
    ForestParams {
        contamination: contamination.unwrap_or(default.contamination),
        max_features: max_features.unwrap_or(default.max_features),
        bootstrap,
        ..default
    }
}

/// As in scikit-learn, 1.0 is all there are and 1 is one.
fn is_share(text: &str) -> bool {
    text.parse::<i64>().is_err() && text.parse::<f64>().is_ok()
}
