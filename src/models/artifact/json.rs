//! `model.json`: everything of a model but its nodes.

use super::forest::{Extended, Plain, Section};
use super::{Error, FORMAT};
use crate::features::rate::Semantics;
use crate::features::{Schema, Transform};
use crate::models::{Card, Fitted, Histogram, History, Kind, Model, Validation, columns};
use crate::prom::Labels;
use crate::window::row::Grid;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<F> {
    format: u32,
    kind: String,
    detector: Option<String>,
    group: Option<BTreeMap<String, String>>,
    origin: String,
    created: String,
    params: Vec<(String, String)>,
    forest: F,
    schema: SchemaJson,
    history: Option<HistoryJson>,
    validation: Option<Validation>,
    baseline: Option<Histogram>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SchemaJson {
    transform: String,
    rate_semantics: Option<String>,
    slots: Option<SlotsJson>,
    features: Vec<FeatureJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotsJson {
    interval_ms: i64,
    cut_ms: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FeatureJson {
    /// The name of the column for those who score without us.
    column: String,
    labels: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HistoryJson {
    from: String,
    to: String,
    observed_ms: i64,
    n_rows: usize,
    n_excluded: usize,
}

/// A time for people: RFC 3339 in UTC, to the millisecond.
pub fn timestamp(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| format!("{time:.3}"))
}

fn milliseconds(text: &str, field: &'static str) -> Result<i64, Error> {
    let time: Timestamp = text
        .parse()
        .map_err(|_| fault(format!("{field} is {text:?}, must be a time like 2026-01-31T12:00:00.000Z")))?;
    Ok(time.as_millisecond())
}

fn fault(reason: impl ToString) -> Error {
    Error::Json(reason.to_string())
}

/// The document of a model.
pub fn write(model: &Model) -> String {
    match &model.fitted {
        Fitted::IsolationForest(forest) => write_with(model, Plain::new(forest)),
        Fitted::Extended(detection) => write_with(model, Extended::new(detection)),
    }
}

fn write_with(model: &Model, forest: impl Serialize) -> String {
    let Model { schema, fitted, card } = model;
    let names = columns::names(model);
    let features = schema.features.iter().zip(names);
    let document = Document {
        format: FORMAT,
        kind: fitted.kind().to_string(),
        detector: card.detector.clone(),
        group: card.group.as_ref().map(pairs),
        origin: card.origin.clone(),
        created: timestamp(card.created_ms),
        params: card.params.clone(),
        forest,
        schema: SchemaJson {
            transform: schema.transform.to_string(),
            rate_semantics: schema.transform.semantics().map(|semantics| semantics.as_str().to_string()),
            slots: match schema.grid {
                Grid::Exact => None,
                Grid::Slots { interval_ms, cut_ms } => Some(SlotsJson { interval_ms, cut_ms }),
            },
            features: features
                .map(|(labels, column)| FeatureJson { column, labels: pairs(labels) })
                .collect(),
        },
        history: card.history.as_ref().map(|history| HistoryJson {
            from: timestamp(history.from_ms),
            to: timestamp(history.to_ms),
            observed_ms: history.observed_ms,
            n_rows: history.n_rows,
            n_excluded: history.n_excluded,
        }),
        validation: card.validation.clone(),
        baseline: card.baseline.clone(),
    };
    serde_json::to_string_pretty(&document).expect("maps with text for keys, and finite numbers")
}

/// Reads a document: the schema, the card and what belongs to the forest.
///
/// # Errors
/// [`Error::Format`] for another layout, [`Error::Json`] for anything else that is wrong.
pub fn read(bytes: &[u8]) -> Result<(Schema, Card, Section), Error> {
    #[derive(Deserialize)]
    struct Version {
        format: u64,
    }
    #[derive(Deserialize)]
    struct OfKind {
        kind: String,
    }
    let Version { format } = serde_json::from_slice(bytes).map_err(fault)?;
    if format != u64::from(FORMAT) {
        return Err(Error::Format(format));
    }
    let OfKind { kind } = serde_json::from_slice(bytes).map_err(fault)?;
    let (schema, card, forest) = match kind.parse().map_err(fault)? {
        Kind::IsolationForest => read_with(bytes, Section::Plain)?,
        Kind::ExtendedIsolationForest => read_with(bytes, Section::Extended)?,
    };
    if forest.n_features() != schema.features.len() {
        return Err(fault(format!(
            "the forest has {} features, the schema has {}",
            forest.n_features(),
            schema.features.len()
        )));
    }
    Ok((schema, card, forest))
}

fn read_with<F: DeserializeOwned>(
    bytes: &[u8],
    section: impl FnOnce(F) -> Section,
) -> Result<(Schema, Card, Section), Error> {
    let document: Document<F> = serde_json::from_slice(bytes).map_err(fault)?;
    let (schema, names) = schema(document.schema)?;
    let card = Card {
        detector: document.detector,
        group: document.group.map(labels).transpose()?,
        origin: document.origin,
        created_ms: milliseconds(&document.created, "created")?,
        params: document.params,
        columns: (names != columns::defaults(&schema)).then_some(names),
        history: document.history.map(history).transpose()?,
        validation: document.validation.map(validation).transpose()?,
        baseline: document.baseline,
    };
    Ok((schema, card, section(document.forest)))
}

fn schema(json: SchemaJson) -> Result<(Schema, Vec<String>), Error> {
    let semantics = match &json.rate_semantics {
        None => Semantics::V3,
        Some(text) => text.parse().map_err(fault)?,
    };
    let transform = Transform::parse(&json.transform, semantics).map_err(fault)?;
    let grid = match json.slots {
        None => Grid::Exact,
        Some(SlotsJson { interval_ms, cut_ms }) if interval_ms >= 1 && (0..interval_ms).contains(&cut_ms) => {
            Grid::Slots { interval_ms, cut_ms }
        }
        Some(SlotsJson { interval_ms, cut_ms }) => {
            return Err(fault(format!(
                "slots of {interval_ms} ms begin at {cut_ms}, must be in 0..{interval_ms}"
            )));
        }
    };
    let (mut features, mut names) = (Vec::new(), Vec::new());
    for feature in json.features {
        features.push(labels(feature.labels)?);
        names.push(feature.column);
    }
    for (what, list) in [
        ("features", features.iter().map(ToString::to_string).collect::<Vec<_>>()),
        ("columns", names.clone()),
    ] {
        let mut sorted: Vec<&String> = list.iter().collect();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(fault(format!("two {what} are {:?}", twice[0])));
        }
    }
    Ok((Schema { features, transform, grid }, names))
}

fn history(json: HistoryJson) -> Result<History, Error> {
    Ok(History {
        from_ms: milliseconds(&json.from, "history.from")?,
        to_ms: milliseconds(&json.to, "history.to")?,
        observed_ms: json.observed_ms,
        n_rows: json.n_rows,
        n_excluded: json.n_excluded,
    })
}

fn validation(validation: Validation) -> Result<Validation, Error> {
    let n_trials = validation.trials.len();
    if validation.chosen >= n_trials {
        return Err(fault(format!("validation.chosen is {}, must be below {n_trials}", validation.chosen)));
    }
    Ok(validation)
}

fn pairs(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn labels(pairs: BTreeMap<String, String>) -> Result<Labels, Error> {
    Labels::new(pairs).map_err(fault)
}
