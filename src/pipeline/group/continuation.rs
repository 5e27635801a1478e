//! Series with a changed label that continue the features of a model.
//!
//! A label outside of `by` and `ignore`, such as the rack of a host, makes another feature of every series. The model
//! goes on with the new features if the same labels of all features that a row lacks have changed in the same way, and
//! nothing else fits. Labels that tell two features of the model apart, such as the device, never count as changed.

use crate::features::Schema;
use crate::prom::{Labels, Sample};
use crate::time;
use crate::window::{Column, Window};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

/// Series of the metric of one feature that are considered at most.
pub const MAX_CANDIDATES: usize = 32;

/// Features of a model that other series continue.
pub struct Continuation {
    /// Old and new labels of the features.
    pub renamed: BTreeMap<Labels, Labels>,
    /// Names of the changed labels.
    pub label_names: Vec<String>,
    /// Samples of the old series that values of the new ones look back to.
    pub lookback: Vec<(Column, Sample)>,
}

impl Continuation {
    /// The features of a schema that a row lacks and other series continue, if all of them are. `missing` holds their
    /// indices.
    pub fn find(
        schema: &Schema,
        window: &Window,
        (after_ms, to_ms): (i64, i64),
        missing: &[usize],
        grace: Duration,
    ) -> Option<Self> {
        let of_model: HashSet<&Labels> = schema.features.iter().collect();
        let is_present = |column| {
            window.newest_sample(column, after_ms, to_ms).is_some_and(|sample: Sample| !sample.is_stale())
        };
        let candidates: BTreeMap<&Labels, Column> = window
            .features()
            .filter(|(labels, column)| !of_model.contains(labels) && is_present(*column))
            .collect();
        let missing: Vec<&Labels> = missing.iter().map(|index| &schema.features[*index]).collect();
        let names = candidates.keys().copied().collect();
        let substitution = LabelSubstitution::find(&missing, &names, &schema.features)?;
        let mut continuation = Self {
            renamed: BTreeMap::new(),
            label_names: substitution.names().map(String::from).collect(),
            lookback: Vec::new(),
        };
        let from_ms = after_ms.saturating_sub(schema.transform.lookback_ms());
        for feature in missing {
            let new = substitution.apply(feature)?;
            let (old_column, new_column) = (window.find_column(feature)?, *candidates.get(&new)?);
            let handover = Handover { window, old: old_column, new: new_column, to_ms: after_ms };
            if !handover.is_successive(grace) {
                return None;
            }
            continuation.lookback.extend(handover.old_values(from_ms).map(|sample| (new_column, sample)));
            continuation.renamed.insert(feature.clone(), new);
        }
        Some(continuation)
    }
}

/// Two series, of which one may continue the other.
struct Handover<'a> {
    window: &'a Window,
    old: Column,
    new: Column,
    /// The old series has ended by then.
    to_ms: i64,
}

impl Handover<'_> {
    /// True if the new series had no sample of its own while the old one was alive at last.
    fn is_successive(&self, grace: Duration) -> bool {
        let Some(last) = self.old_values(i64::MIN).last() else { return false };
        let since_ms = last.timestamp_ms - time::millis(grace);
        let of_old: BTreeMap<i64, u64> =
            self.old_values(since_ms).map(|sample| (sample.timestamp_ms, sample.value.to_bits())).collect();
        let is_copy = |sample: &Sample| of_old.get(&sample.timestamp_ms) == Some(&sample.value.to_bits());
        // An earlier handover, before a restart, has copied samples of the old series.
        values(self.window, self.new, since_ms, last.timestamp_ms).iter().all(is_copy)
    }

    fn old_values(&self, after_ms: i64) -> impl Iterator<Item = Sample> + use<> {
        values(self.window, self.old, after_ms, self.to_ms).into_iter()
    }
}

/// The samples of a column in `(after_ms, to_ms]` without staleness markers.
fn values(window: &Window, column: Column, after_ms: i64, to_ms: i64) -> Vec<Sample> {
    let mut samples = Vec::new();
    window.samples(column, after_ms, to_ms, &mut samples);
    samples.retain(|sample| !sample.is_stale());
    samples
}

/// The labels that changed, with the old and the new value; empty for a label that is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSubstitution(BTreeMap<String, (String, String)>);

impl LabelSubstitution {
    /// The one change of labels that makes a candidate of each missing feature. `of_model` holds all features of the model.
    pub fn find(missing: &[&Labels], candidates: &BTreeSet<&Labels>, of_model: &[Labels]) -> Option<Self> {
        let first = missing.first()?;
        let of_metric = candidates.iter().filter(|labels| labels.metric_name() == first.metric_name());
        let of_metric: Vec<&&Labels> = of_metric.take(MAX_CANDIDATES + 1).collect();
        if of_metric.len() > MAX_CANDIDATES {
            return None;
        }
        let substitutions = of_metric.into_iter().map(|candidate| Self::between(first, candidate));
        let fits = |substitution: &Self| {
            let new = |feature: &&Labels| substitution.apply(feature);
            missing.iter().all(|feature| new(feature).is_some_and(|new| candidates.contains(&new)))
                && substitution.is_identity_kept(of_model)
        };
        let mut fitting = substitutions.filter(fits);
        let found = fitting.next()?;
        fitting.next().is_none().then_some(found)
    }

    fn between(old: &Labels, new: &Labels) -> Self {
        let names = old.iter().chain(new.iter()).map(|(name, _)| name);
        let changed = names.filter(|name| old.get(name) != new.get(name));
        Self(changed.map(|name| (name.into(), (old.get(name).into(), new.get(name).into()))).collect())
    }

    /// The feature with the new values; `None` if it does not have the old ones.
    pub fn apply(&self, feature: &Labels) -> Option<Labels> {
        let has_old = self.0.iter().all(|(name, (old, _))| feature.get(name) == old);
        let replace = |labels: Labels, (name, (_, new)): (&String, &(String, String))| labels.with(name, new);
        has_old.then(|| self.0.iter().fold(feature.clone(), replace))
    }

    /// Names of the changed labels.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// True if the features differ without the changed labels.
    fn is_identity_kept(&self, features: &[Labels]) -> bool {
        let names: Vec<String> = self.0.keys().cloned().collect();
        let mut seen = BTreeSet::new();
        features.iter().all(|feature| seen.insert(feature.split(&names).1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prom::METRIC_NAME;

    fn labels(metric: &str, others: &[(&str, &str)]) -> Labels {
        Labels::new([(METRIC_NAME, metric)].iter().chain(others).copied()).expect("valid")
    }

    fn find(missing: &[&Labels], candidates: &[&Labels], of_model: &[Labels]) -> Option<LabelSubstitution> {
        LabelSubstitution::find(missing, &candidates.iter().copied().collect(), of_model)
    }

    #[test]
    fn a_label_that_changed_in_the_same_way_everywhere_is_found() {
        let model = ["eth0", "lo"].map(|device| labels("rx", &[("device", device), ("rack", "r1")]));
        let new = ["eth0", "lo"].map(|device| labels("rx", &[("device", device), ("rack", "r2")]));
        let without = ["eth0", "lo"].map(|device| labels("rx", &[("device", device)]));
        let missing: Vec<&Labels> = model.iter().collect();
        for new in [&new, &without] {
            let found = find(&missing, &[&new[0], &new[1]], &model).expect("one label");
            assert_eq!(found.names().collect::<Vec<_>>(), ["rack"]);
            assert_eq!(found.apply(&model[1]).as_ref(), Some(&new[1]));
            assert_eq!(find(&missing, &[&new[0]], &model), None, "a part of the features");
        }
        assert_eq!(find(&missing, &[&new[0], &new[1], &without[0], &without[1]], &model), None, "two fit");
        assert_eq!(find(&missing[..1], &[&new[0]], &model).map(|found| found.names().count()), Some(1));
    }

    #[test]
    fn a_label_that_tells_features_apart_does_not_count_as_changed() {
        let model = ["eth0", "eth1"].map(|device| labels("rx", &[("device", device)]));
        let new = labels("rx", &[("device", "eth2")]);
        assert_eq!(find(&[&model[1]], &[&new], &model), None);
        let other = labels("tx", &[("device", "eth1")]);
        assert_eq!(find(&[&model[1]], &[&other], &model), None, "another metric");
        let many: Vec<Labels> =
            (0..=MAX_CANDIDATES).map(|i| labels("rx", &[("x", &i.to_string())])).collect();
        let one = [labels("rx", &[])];
        assert!(find(&[&one[0]], &[&many[0]], &one).is_some());
        assert_eq!(find(&[&one[0]], &many.iter().collect::<Vec<_>>(), &one), None);
    }
}
