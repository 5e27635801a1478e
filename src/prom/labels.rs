//! Label sets: sorted, unique, without empty names or values, by construction.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A label set: sorted by name, with unique names and without empty names or values. Clones share the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(Arc<[(Box<str>, Box<str>)]>);

/// The label that carries the metric name.
pub const METRIC_NAME: &str = "__name__";

/// The error for pairs that are not a label set.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum InvalidLabels {
    /// A label has an empty name, which Prometheus forbids and no query can select.
    #[error("a label has an empty name (its value is {value:?})")]
    EmptyName {
        /// The value beside the empty name.
        value: Box<str>,
    },
    /// A name has two values.
    #[error("label name {name:?} is not unique")]
    Duplicate {
        /// The repeated name.
        name: Box<str>,
    },
}

impl Labels {
    /// Builds a label set from pairs in any order. Drops labels with an empty value, which Prometheus' data model
    /// equates with absent labels.
    ///
    /// # Errors
    /// [`InvalidLabels`] if a name is empty or repeated.
    pub fn new<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Self, InvalidLabels>
    where
        N: Into<Box<str>>,
        V: Into<Box<str>>,
    {
        let mut pairs: Vec<(Box<str>, Box<str>)> =
            pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        pairs.sort_unstable();
        if let Some((_, value)) = pairs.iter().find(|(name, _)| name.is_empty()) {
            return Err(InvalidLabels::EmptyName { value: value.clone() });
        }
        if let Some(duplicate) = pairs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(InvalidLabels::Duplicate { name: duplicate[0].0.clone() });
        }
        pairs.retain(|(_, value)| !value.is_empty());
        Ok(Self(pairs.into()))
    }

    /// The value of a label; empty if the label is absent, as Prometheus' matchers have it.
    pub fn get(&self, name: &str) -> &str {
        self.0.binary_search_by(|(n, _)| (**n).cmp(name)).map_or("", |i| &self.0[i].1)
    }

    /// The metric name; empty if absent.
    pub fn metric_name(&self) -> &str {
        self.get(METRIC_NAME)
    }

    /// Name and value of each label, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// True if there are clones.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Bytes of the set in memory, which its clones share.
    pub fn n_bytes(&self) -> usize {
        self.n_text_bytes() + size_of_val(&*self.0)
    }

    /// Bytes of the names and values.
    pub fn n_text_bytes(&self) -> usize {
        self.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// Splits the set into the labels named in `by` and the others.
    pub fn split(&self, by: &[String]) -> (Self, Self) {
        let (named, others): (Vec<_>, Vec<_>) =
            self.0.iter().cloned().partition(|(name, _)| by.iter().any(|b| **b == **name));
        (Self(named.into()), Self(others.into()))
    }

    /// The labels of both sets, the inverse of [`split`](Self::split). If both sets have a label, `other`'s value
    /// applies.
    pub fn union(&self, other: &Self) -> Self {
        let kept = self.0.iter().filter(|(name, _)| other.get(name).is_empty());
        let mut pairs: Vec<_> = kept.chain(other.0.iter()).cloned().collect();
        pairs.sort_unstable();
        Self(pairs.into())
    }

    /// This set with one more label, which replaces a label of the same name.
    pub fn with(&self, name: &str, value: &str) -> Self {
        let kept = self.0.iter().filter(|(n, _)| **n != *name).cloned();
        let mut pairs: Vec<_> = kept.chain([(name.into(), value.into())]).collect();
        pairs.sort_unstable();
        pairs.retain(|(_, value)| !value.is_empty());
        Self(pairs.into())
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = InvalidLabels;

    fn try_from(pairs: BTreeMap<String, String>) -> Result<Self, InvalidLabels> {
        Self::new(pairs)
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }
}

/// PromQL's notation: `name{a="b"}`.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.metric_name();
        f.write_str(name)?;
        let mut others = self.iter().filter(|(name, _)| *name != METRIC_NAME).peekable();
        if others.peek().is_none() && !name.is_empty() {
            return Ok(());
        }
        f.write_str("{")?;
        for (i, (name, value)) in others.enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{name}={value:?}")?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_and_drops_empty_values() {
        let labels = Labels::new([("job", "node"), ("__name__", "up"), ("zone", "")]).expect("valid");
        assert_eq!(labels.to_string(), r#"up{job="node"}"#);
        assert_eq!(labels.get("zone"), "");
        assert_eq!(labels.metric_name(), "up");
    }

    #[test]
    fn rejects_repeated_and_empty_names() {
        let repeated = Labels::new([("a", "1"), ("a", "")]);
        assert_eq!(repeated, Err(InvalidLabels::Duplicate { name: "a".into() }));
        let empty = Labels::new([("", "x")]);
        assert_eq!(empty, Err(InvalidLabels::EmptyName { value: "x".into() }));
    }

    #[test]
    fn splits_and_extends() {
        let labels = Labels::new([("a", "1"), ("b", "2"), ("c", "3")]).expect("valid");
        let (named, others) = labels.split(&["c".into(), "a".into()]);
        assert_eq!(named.to_string(), r#"{a="1", c="3"}"#);
        assert_eq!(others.to_string(), r#"{b="2"}"#);
        assert_eq!(named.union(&others), labels);
        assert_eq!(others.with("b", "4").with("a", "0").to_string(), r#"{a="0", b="4"}"#);
    }
}
