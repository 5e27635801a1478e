//! The section `model` of a detector: kind and parameters, named as in scikit-learn and isotree.

use super::kind::{ModelKind, ModelParams};
use crate::forest::{Contamination, ExtendedParams, ForestParams, MaxFeatures, MaxSamples};
use crate::yaml::{Key, KeyTable, Node, Section};
use std::num::NonZeroUsize;

/// Most trees of a forest, against typing errors. A hundred trees suffice.
const MAX_ESTIMATORS: usize = 10_000;

/// The keys of the section.
pub const KEY_TABLES: [KeyTable; 3] = [
    KeyTable::new(
        &["detectors[].model"],
        &[
            Key::with_default(
                "kind",
                "extended_isolation_forest",
                "An extended isolation forest over derived features, with a budget of alerts; or `isolation_forest`: \
                 scikit-learn's, on the values alone",
            ),
            Key::computed(
                "n_estimators",
                "`50`, for `isolation_forest` `100`",
                "Number of trees, at most 10000",
            ),
            Key::with_default(
                "max_samples",
                "auto",
                "Rows per tree: a count, or a share such as `0.5`. `auto` is 256, or all rows if there are fewer",
            ),
            Key::with_default(
                "random_state",
                "0",
                "Seed. Equal seeds and histories give equal forests, bit for bit",
            ),
        ],
    ),
    KeyTable::new(
        &["detectors[].model"],
        &[Key::with_default("ndim", "16", "Number of columns that a split plane combines")],
    )
    .with_condition("kind: extended_isolation_forest"),
    KeyTable::new(
        &["detectors[].model"],
        &[
            Key::with_default(
                "contamination",
                "auto",
                "Share of anomalies in the training rows, up to 0.5; `auto` is scikit-learn's fixed offset",
            ),
            Key::with_default(
                "max_features",
                "1.0",
                "Features per tree: a count, or a share such as `0.5`. As in scikit-learn, `1.0` is all and `1` is one",
            ),
            Key::with_default("bootstrap", "false", "Whether the rows of a tree are drawn with replacement"),
        ],
    )
    .with_condition("kind: isolation_forest"),
];

impl ModelParams {
    /// Reads the section of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let kind = section.get("kind").and_then(|node| node.parse(str::parse)).unwrap_or_default();
        let n_estimators = section.get("n_estimators").and_then(|node| read_n_estimators(&node));
        let max_samples = section.get("max_samples").and_then(|node| read_max_samples(&node));
        let random_state = section.get("random_state").and_then(|node| node.value("a whole number"));
        match kind {
            ModelKind::IsolationForest => {
                let default = ForestParams::default();
                Self::IsolationForest(ForestParams {
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
                Self::Extended(ExtendedParams {
                    n_estimators: n_estimators.unwrap_or(default.n_estimators),
                    max_samples: max_samples.unwrap_or(default.max_samples),
                    ndim: NonZeroUsize::new(ndim).unwrap_or(default.ndim),
                    random_state: random_state.unwrap_or(default.random_state),
                })
            }
        }
    }
}

/// The parameters that only a standard forest has; the others at their defaults.
fn read_standard_params(mut section: Section<'_, '_>) -> ForestParams {
    let default = ForestParams::default();
    let contamination = section.get("contamination").and_then(|node| read_contamination(&node));
    let max_features = section.get("max_features").and_then(|node| read_max_features(&node));
    let bootstrap = section.flag("bootstrap", default.bootstrap);
    section.deny_unknown();
    ForestParams {
        contamination: contamination.unwrap_or(default.contamination),
        max_features: max_features.unwrap_or(default.max_features),
        bootstrap,
        ..default
    }
}

fn read_n_estimators(node: &Node<'_, '_>) -> Option<NonZeroUsize> {
    let count: usize = node.value("a whole number")?;
    let n_estimators = NonZeroUsize::new(count).filter(|_| count <= MAX_ESTIMATORS);
    if n_estimators.is_none() {
        node.error(format!("{count} is not in 1 to {MAX_ESTIMATORS}"));
    }
    n_estimators
}

fn read_max_samples(node: &Node<'_, '_>) -> Option<MaxSamples> {
    match node.text()?.as_str() {
        "auto" => Some(MaxSamples::Auto),
        text if is_share(text) => {
            node.value("a number").and_then(|share| node.parse(|_| MaxSamples::share(share)))
        }
        _ => node
            .value("auto, a whole number or a share")
            .and_then(|count| node.parse(|_| MaxSamples::count(count))),
    }
}

fn read_contamination(node: &Node<'_, '_>) -> Option<Contamination> {
    match node.text()?.as_str() {
        "auto" => Some(Contamination::Auto),
        _ => node.value("auto or a number").and_then(|share| node.parse(|_| Contamination::share(share))),
    }
}

fn read_max_features(node: &Node<'_, '_>) -> Option<MaxFeatures> {
    match node.text()? {
        text if is_share(&text) => {
            node.value("a number").and_then(|share| node.parse(|_| MaxFeatures::share(share)))
        }
        _ => node
            .value("a whole number or a share")
            .and_then(|count| node.parse(|_| MaxFeatures::count(count))),
    }
}

/// True for a number with a decimal point: as in scikit-learn, 1.0 means all and 1 means one.
fn is_share(text: &str) -> bool {
    text.parse::<i64>().is_err() && text.parse::<f64>().is_ok()
}
