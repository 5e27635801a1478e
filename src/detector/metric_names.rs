//! Compares the transform of a detector with the metric names that its selectors write out.
//!
//! The name is all that a configuration tells of the type of a metric: OpenMetrics ends the names of counters in `_total`,
//! and those of a histogram's and a summary's counters in `_count`, `_sum` and `_bucket`. Older exporters have counters
//! with other names, so a rate that is written out is not doubted.

use crate::features::Transform;
use crate::prom::{METRIC_NAME, Selector};

/// Suffixes of the names of counters.
const COUNTER_SUFFIXES: [&str; 4] = ["_total", "_count", "_sum", "_bucket"];

/// The reason to doubt a transform; `None` for one that suits the names. `is_default` is true if it is not written out.
pub fn doubt(transform: Transform, is_default: bool, selectors: &[Selector]) -> Option<String> {
    let matchers = selectors.iter().flat_map(Selector::matchers);
    let mut patterns = matchers.filter(|matcher| matcher.name() == METRIC_NAME).filter_map(|m| m.wanted());
    match transform {
        Transform::Value => {
            let is_counter = |name: &str| name.ends_with("_total");
            let pattern =
                patterns.find(|pattern| is_counter(pattern) || alternatives(pattern).any(is_counter))?;
            Some(format!(
                "{pattern} is a counter by its name: its value only grows, `rate(1m)` is its change"
            ))
        }
        Transform::Rate { .. } if is_default => {
            let name = patterns.flat_map(alternatives).find(|name| is_gauge(name))?;
            Some(format!(
                "{name} is no counter by its name, and transform is {transform} by default: write `transform: value` for \
                 a gauge, and `transform: {transform}` for a counter"
            ))
        }
        Transform::Rate { .. } => None,
    }
}

/// `a` and `b` of `a|b` and `(a|b)`; none of other patterns with parentheses, where they are parts of names.
fn alternatives(pattern: &str) -> impl Iterator<Item = &str> {
    let inner = pattern.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')).unwrap_or(pattern);
    inner.split('|').filter(move |_| !inner.contains(['(', ')']))
}

/// True for the whole name of a metric that does not end as those of counters.
fn is_gauge(name: &str) -> bool {
    let is_plain = name.bytes().all(|b| matches!(b, b'_' | b':') || b.is_ascii_alphanumeric());
    is_plain && !name.is_empty() && !COUNTER_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}
