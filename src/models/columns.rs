//! Names of a model's columns, resolved to features.
//!
//! A model that promforest trained names a column by its expression, `rate(rx{device="eth0"}[1m])`. Other models and
//! tables have names of their own. These rules resolve them; a mapping file overrides the rules:
//!
//! 1. `rate(metric{label="value"}[1m])`: the rate of that series.
//! 2. `metric` or `metric{label="value"}`: that series, by its own name.
//! 3. `DEVICE - Rx in`, `DEVICE - Tx out`, `DEVICE - Pck in`, `DEVICE - Pck out`, with any number of
//!    blanks: the rate of the received or transmitted bytes or packets of a network interface, by the names that
//!    notebooks for node_exporter use.

use super::model::Model;
use crate::features::rate::RateSemantics;
use crate::features::{self, Schema, Transform};
use crate::prom::{Labels, METRIC_NAME, Selector};
use std::collections::BTreeMap;

/// The metric of `DEVICE - NAME` for each NAME, blanks removed.
const NETWORK_METRICS: [(&str, &str); 5] = [
    ("Rxin", "node_network_receive_bytes_total"),
    ("Txout", "node_network_transmit_bytes_total"),
    ("Txin", "node_network_transmit_bytes_total"),
    ("Pckin", "node_network_receive_packets_total"),
    ("Pckout", "node_network_transmit_packets_total"),
];

/// The range of those rates.
const NETWORK_RANGE_MS: i64 = 60_000;

/// Reasons why columns do not resolve to features.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No rule matches the name.
    #[error("column {column:?} is no series: write it as {example}, or map it to one")]
    Unknown {
        /// The column.
        column: String,
        /// A valid name.
        example: &'static str,
    },
    /// The transform is invalid.
    #[error("column {column:?}")]
    Transform {
        /// The column.
        column: String,
        /// The reason.
        source: features::InvalidTransform,
    },
    /// Two columns resolve to one feature.
    #[error("columns {first:?} and {second:?} are both {feature}")]
    Duplicate {
        /// One column.
        first: String,
        /// The other.
        second: String,
        /// The feature.
        feature: String,
    },
    /// The columns have several transforms.
    #[error(
        "column {column:?} is a {transform}, but {first:?} is a {expected}: a model has one transform for all"
    )]
    MixedTransforms {
        /// The column.
        column: String,
        /// Its transform.
        transform: Transform,
        /// The first column.
        first: String,
        /// The first column's transform.
        expected: Transform,
    },
    /// The mapping has the name of no column.
    #[error("the mapping names a column {0:?} that the model does not have")]
    NoSuchColumn(String),
}

const EXAMPLE: &str = r#"rate(node_network_receive_bytes_total{device="eth0"}[1m])"#;

/// The user's names for columns, by the columns' own names.
pub type NameMapping = BTreeMap<String, String>;

/// The names of a model's columns.
pub fn names(model: &Model) -> Vec<String> {
    model.card.columns.clone().unwrap_or_else(|| default_names(&model.schema))
}

/// The default names of columns: their expressions.
pub fn default_names(schema: &Schema) -> Vec<String> {
    schema.features.iter().map(|feature| schema.transform.expression(feature)).collect()
}

/// Resolves names to features, in their order, and to their common transform.
///
/// # Errors
/// [`Error`] with the first invalid column.
pub fn resolve_features(
    names: &[String],
    mapping: &NameMapping,
    semantics: RateSemantics,
) -> Result<(Vec<Labels>, Transform), Error> {
    if let Some(unmatched) = mapping.keys().find(|name| !names.contains(name)) {
        return Err(Error::NoSuchColumn(unmatched.clone()));
    }
    let mut name_by_feature: BTreeMap<Labels, &String> = BTreeMap::new();
    let mut features = Vec::with_capacity(names.len());
    let mut first: Option<(&String, Transform)> = None;
    for name in names {
        let series_name = mapping.get(name).unwrap_or(name);
        let (labels, transform) = resolve_feature(series_name, semantics)?;
        let &mut (first, expected) = first.get_or_insert((name, transform));
        if transform != expected {
            return Err(Error::MixedTransforms {
                column: name.clone(),
                transform,
                first: first.clone(),
                expected,
            });
        }
        if let Some(first) = name_by_feature.insert(labels.clone(), name) {
            let feature = transform.expression(&labels);
            return Err(Error::Duplicate { first: first.clone(), second: name.clone(), feature });
        }
        features.push(labels);
    }
    Ok((features, first.map_or(Transform::Value, |(_, transform)| transform)))
}

fn resolve_feature(name: &str, semantics: RateSemantics) -> Result<(Labels, Transform), Error> {
    let unknown = || Error::Unknown { column: name.into(), example: EXAMPLE };
    if let Some((device, suffix)) = name.split_once(" - ") {
        let suffix: String = suffix.split_whitespace().collect();
        let (_, metric) =
            NETWORK_METRICS.iter().find(|(notation, _)| *notation == suffix).ok_or_else(unknown)?;
        let labels = Labels::new([(METRIC_NAME, *metric), ("device", device.trim())]);
        let transform = Transform::Rate { range_ms: NETWORK_RANGE_MS, semantics };
        return Ok((labels.map_err(|_| unknown())?, transform));
    }
    let (series, transform) = match name.strip_prefix("rate(").and_then(|rest| rest.strip_suffix("])")) {
        None => (name, Transform::Value),
        Some(inner) => {
            let (series, range) = inner.rsplit_once('[').ok_or_else(unknown)?;
            let transform = Transform::parse(&format!("rate({range})"), semantics)
                .map_err(|source| Error::Transform { column: name.into(), source })?;
            (series, transform)
        }
    };
    let labels =
        Selector::parse(series).ok().and_then(|selector| selector.to_labels()).ok_or_else(unknown)?;
    Ok((labels, transform))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(names: &[&str], mapping: &[(&str, &str)]) -> Result<(Vec<String>, Transform), String> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mapping = mapping.iter().map(|(from, to)| (from.to_string(), to.to_string())).collect();
        let (features, transform) = resolve_features(&names, &mapping, RateSemantics::V3)
            .map_err(|error| crate::error::chain(&error))?;
        Ok((features.iter().map(ToString::to_string).collect(), transform))
    }

    const RATE_1M: Transform = Transform::Rate { range_ms: 60_000, semantics: RateSemantics::V3 };

    #[test]
    fn names_of_notebooks() {
        let (features, transform) =
            read(&["br-0c6e79cd156e -  Pck in", "eth0 - Tx out", "lo - Rx in"], &[]).expect("known names");
        assert_eq!(transform, RATE_1M);
        assert_eq!(
            features,
            [
                r#"node_network_receive_packets_total{device="br-0c6e79cd156e"}"#,
                r#"node_network_transmit_bytes_total{device="eth0"}"#,
                r#"node_network_receive_bytes_total{device="lo"}"#,
            ]
        );
    }

    #[test]
    fn expressions_and_series() {
        let rate = r#"rate(rx{device="eth0"}[5m])"#;
        let (features, transform) = read(&[rate], &[]).expect("an expression");
        assert_eq!(transform.to_string(), "rate(5m)");
        assert_eq!(features, [r#"rx{device="eth0"}"#]);
        assert_eq!(read(&["load", "temp{core=\"1\"}"], &[]).expect("gauges").1, Transform::Value);
        assert_eq!(read(&["CPU"], &[("CPU", "rate(cpu[1m])")]).expect("mapped").1, RATE_1M);
    }

    #[test]
    fn errors_name_the_wrong_column() {
        for (names, message) in [
            (
                vec!["eth0 - Errors"],
                r#"column "eth0 - Errors" is no series: write it as rate(node_network_receive_bytes_total{device="eth0"}[1m]), or map it to one"#,
            ),
            (
                vec!["eth0 - Rx in", "eth0 -  Rx in"],
                r#"columns "eth0 - Rx in" and "eth0 -  Rx in" are both rate(node_network_receive_bytes_total{device="eth0"}[1m])"#,
            ),
            (
                vec!["eth0 - Rx in", "load"],
                r#"column "load" is a value, but "eth0 - Rx in" is a rate(1m): a model has one transform for all"#,
            ),
            (
                vec!["rate(x[1parsec])"],
                r#"column "rate(x[1parsec])": "1parsec" is not a duration: write numbers with the units y, w, d, h, m, s, ms in that order, as in 1h30m"#,
            ),
        ] {
            assert_eq!(read(&names, &[]).expect_err("wrong"), message);
        }
        let unmatched = read(&["load"], &[("cpu", "load")]).expect_err("no such column");
        assert_eq!(unmatched, r#"the mapping names a column "cpu" that the model does not have"#);
    }
}
