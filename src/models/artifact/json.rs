//! `model.json`: a model without its nodes.

use super::forest::{ExtendedMetadata, ForestMetadata, StandardMetadata};
use super::{Error, FORMAT};
use crate::features::rate::RateSemantics;
use crate::features::{Schema, Transform};
use crate::models::{
    CrossValidation, DecisionHistogram, FittedModel, Model, ModelCard, ModelKind, TrainingRange, columns,
};
use crate::prom::Labels;
use crate::time::format_timestamp;
use crate::window::grid::Grid;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelJson<F> {
    format: u32,
    kind: String,
    detector: Option<String>,
    group: Option<BTreeMap<String, String>>,
    origin: String,
    created: String,
    params: Vec<(String, String)>,
    forest: F,
    schema: SchemaJson,
    training_range: Option<TrainingRangeJson>,
    validation: Option<CrossValidation>,
    baseline: Option<DecisionHistogram>,
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
    slot_start_ms: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FeatureJson {
    /// The column's name for other programs.
    column: String,
    labels: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrainingRangeJson {
    from: String,
    to: String,
    observed_ms: i64,
    n_rows: usize,
    n_excluded: usize,
}

fn parse_timestamp(text: &str, field: &'static str) -> Result<i64, Error> {
    let time: Timestamp = text.parse().map_err(|_| {
        invalid_json(format!("{field} is {text:?}, must be a time like 2026-01-31T12:00:00.000Z"))
    })?;
    Ok(time.as_millisecond())
}

fn invalid_json(reason: impl ToString) -> Error {
    Error::Json(reason.to_string())
}

/// `model.json` of a model.
pub fn write(model: &Model) -> String {
    match &model.fitted {
        FittedModel::IsolationForest(forest) => write_with(model, StandardMetadata::new(forest)),
        FittedModel::Extended(detector) => write_with(model, ExtendedMetadata::new(detector)),
    }
}

fn write_with(model: &Model, forest: impl Serialize) -> String {
    let Model { schema, fitted, card } = model;
    let names = columns::names(model);
    let features = schema.features.iter().zip(names);
    let json = ModelJson {
        format: FORMAT,
        kind: fitted.kind().to_string(),
        detector: card.detector.clone(),
        group: card.group.as_ref().map(label_map),
        origin: card.origin.clone(),
        created: format_timestamp(card.created_ms),
        params: card.params.clone(),
        forest,
        schema: SchemaJson {
            transform: schema.transform.to_string(),
            rate_semantics: schema.transform.rate_semantics().map(|semantics| semantics.as_str().to_string()),
            slots: match schema.grid {
                Grid::Exact => None,
                Grid::Slots { interval_ms, slot_start_ms } => Some(SlotsJson { interval_ms, slot_start_ms }),
            },
            features: features
                .map(|(labels, column)| FeatureJson { column, labels: label_map(labels) })
                .collect(),
        },
        training_range: card.training_range.as_ref().map(|range| TrainingRangeJson {
            from: format_timestamp(range.from_ms),
            to: format_timestamp(range.to_ms),
            observed_ms: range.observed_ms,
            n_rows: range.n_rows,
            n_excluded: range.n_excluded,
        }),
        validation: card.validation.clone(),
        baseline: card.baseline.clone(),
    };
    serde_json::to_string_pretty(&json).expect("maps with text for keys, and finite numbers")
}

/// Reads `model.json`: the schema, the card and the metadata of the forest.
///
/// # Errors
/// [`Error::Format`] for another layout, [`Error::Json`] for anything else that is wrong.
pub fn read(bytes: &[u8]) -> Result<(Schema, ModelCard, ForestMetadata), Error> {
    #[derive(Deserialize)]
    struct FormatOnly {
        format: u64,
    }
    #[derive(Deserialize)]
    struct KindOnly {
        kind: String,
    }
    let FormatOnly { format } = serde_json::from_slice(bytes).map_err(invalid_json)?;
    if format != u64::from(FORMAT) {
        return Err(Error::Format(format));
    }
    let KindOnly { kind } = serde_json::from_slice(bytes).map_err(invalid_json)?;
    let (schema, card, forest) = match kind.parse().map_err(invalid_json)? {
        ModelKind::IsolationForest => read_with(bytes, ForestMetadata::Standard)?,
        ModelKind::ExtendedIsolationForest => {
            read_with(bytes, |metadata| ForestMetadata::Extended(Box::new(metadata)))?
        }
    };
    if forest.n_features() != schema.features.len() {
        return Err(invalid_json(format!(
            "the forest has {} features, the schema has {}",
            forest.n_features(),
            schema.features.len()
        )));
    }
    Ok((schema, card, forest))
}

fn read_with<F: DeserializeOwned>(
    bytes: &[u8],
    to_metadata: impl FnOnce(F) -> ForestMetadata,
) -> Result<(Schema, ModelCard, ForestMetadata), Error> {
    let json: ModelJson<F> = serde_json::from_slice(bytes).map_err(invalid_json)?;
    let (schema, names) = parse_schema(json.schema)?;
    let card = ModelCard {
        detector: json.detector,
        group: json.group.map(parse_labels).transpose()?,
        origin: json.origin,
        created_ms: parse_timestamp(&json.created, "created")?,
        params: json.params,
        columns: (names != columns::default_names(&schema)).then_some(names),
        training_range: json.training_range.map(parse_training_range).transpose()?,
        validation: json.validation.map(check_validation).transpose()?,
        baseline: json.baseline,
    };
    Ok((schema, card, to_metadata(json.forest)))
}

fn parse_schema(json: SchemaJson) -> Result<(Schema, Vec<String>), Error> {
    let semantics = match &json.rate_semantics {
        None => RateSemantics::V3,
        Some(text) => text.parse().map_err(invalid_json)?,
    };
    let transform = Transform::parse(&json.transform, semantics).map_err(invalid_json)?;
    let grid = match json.slots {
        None => Grid::Exact,
        Some(SlotsJson { interval_ms, slot_start_ms })
            if interval_ms >= 1 && (0..interval_ms).contains(&slot_start_ms) =>
        {
            Grid::Slots { interval_ms, slot_start_ms }
        }
        Some(SlotsJson { interval_ms, slot_start_ms }) => {
            return Err(invalid_json(format!(
                "slots of {interval_ms} ms begin at {slot_start_ms}, must be in 0..{interval_ms}"
            )));
        }
    };
    let (mut features, mut names) = (Vec::new(), Vec::new());
    for feature in json.features {
        features.push(parse_labels(feature.labels)?);
        names.push(feature.column);
    }
    for (noun, list) in [
        ("features", features.iter().map(ToString::to_string).collect::<Vec<_>>()),
        ("columns", names.clone()),
    ] {
        let mut sorted: Vec<&String> = list.iter().collect();
        sorted.sort_unstable();
        if let Some(duplicates) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(invalid_json(format!("two {noun} are {:?}", duplicates[0])));
        }
    }
    Ok((Schema { features, transform, grid }, names))
}

fn parse_training_range(json: TrainingRangeJson) -> Result<TrainingRange, Error> {
    Ok(TrainingRange {
        from_ms: parse_timestamp(&json.from, "training_range.from")?,
        to_ms: parse_timestamp(&json.to, "training_range.to")?,
        observed_ms: json.observed_ms,
        n_rows: json.n_rows,
        n_excluded: json.n_excluded,
    })
}

fn check_validation(validation: CrossValidation) -> Result<CrossValidation, Error> {
    let n_trials = validation.trials.len();
    if validation.chosen >= n_trials {
        return Err(invalid_json(format!(
            "validation.chosen is {}, must be below {n_trials}",
            validation.chosen
        )));
    }
    Ok(validation)
}

fn label_map(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn parse_labels(pairs: BTreeMap<String, String>) -> Result<Labels, Error> {
    Labels::new(pairs).map_err(invalid_json)
}
