//! The series that feed the columns of a group, as far as ignored labels tell them apart.

use crate::detector::{Detector, FeatureIdentity};
use crate::prom::Labels;
use crate::window::{Column, Window};
use std::collections::BTreeMap;

/// The change of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LabelChange {
    /// Another series goes on with the feature.
    Continued,
    /// Series exist at the same time: each is a feature.
    ToldApart,
}

impl LabelChange {
    /// The value of the label `outcome`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Continued => "continued",
            Self::ToldApart => "told_apart",
        }
    }
}

/// See the [module](self).
#[derive(Default)]
pub struct SeriesOrigins {
    identity: FeatureIdentity,
    /// Ignored labels of the series of each column, as far as they are known.
    ignored: BTreeMap<Column, Labels>,
    /// Number of features of which a label changed, since the last [`take_changes`](Self::take_changes).
    changes: BTreeMap<(String, LabelChange), usize>,
}

/// The column of a series.
pub enum Lookup {
    /// Its column.
    Found(Column),
    /// The column of its feature belongs to another series at the same time.
    Taken,
    /// There is none.
    New,
}

impl SeriesOrigins {
    /// Those of a restored window.
    pub fn of_window(detector: &Detector, window: &Window) -> Self {
        let features = window.features().map(|(labels, ..)| labels);
        Self { identity: FeatureIdentity::of_features(detector, features), ..Self::default() }
    }

    /// The feature of a series.
    pub fn feature(&self, detector: &Detector, series: &Labels) -> Labels {
        self.identity.split(detector, series).0
    }

    /// Finds the column of a series. `at_ms` is the time of its sample; `None` for past samples.
    pub fn find(
        &mut self,
        detector: &Detector,
        window: &Window,
        series: &Labels,
        at_ms: Option<i64>,
    ) -> Lookup {
        if let Some(column) = window.find_column(series) {
            return Lookup::Found(column);
        }
        let (feature, ignored) = self.identity.split(detector, series);
        let Some(column) = window.find_column(&feature) else { return Lookup::New };
        let (Some(at_ms), Some(previous)) = (at_ms, self.ignored.get(&column)) else {
            self.record(column, ignored, at_ms);
            return Lookup::Found(column);
        };
        let Some(label) = differing_label(previous, &ignored) else { return Lookup::Found(column) };
        let newest = window.newest_of(column).filter(|sample| !sample.is_stale());
        let is_taken = newest.is_some_and(|sample| sample.timestamp_ms == at_ms);
        let change = if is_taken { LabelChange::ToldApart } else { LabelChange::Continued };
        *self.changes.entry((label, change)).or_default() += 1;
        if is_taken {
            self.identity.tell_apart(series.metric_name());
            return Lookup::Taken;
        }
        self.record(column, ignored, Some(at_ms));
        Lookup::Found(column)
    }

    /// Records the ignored labels of the live series of a column.
    pub fn record(&mut self, column: Column, ignored: Labels, at_ms: Option<i64>) {
        if at_ms.is_some() {
            self.ignored.insert(column, ignored);
        }
    }

    /// The ignored labels of a column's series.
    pub fn ignored(&self, column: Column) -> Option<&Labels> {
        self.ignored.get(&column)
    }

    /// Forgets the columns, whose numbers change.
    pub fn forget_columns(&mut self) {
        self.ignored.clear();
    }

    /// Counts features that other series continue although a label changed.
    pub fn count_continued(&mut self, label: &str, n_features: usize) {
        *self.changes.entry((label.to_string(), LabelChange::Continued)).or_default() += n_features;
    }

    /// The changed labels since the last call, with the number of features.
    pub fn take_changes(&mut self) -> BTreeMap<(String, LabelChange), usize> {
        std::mem::take(&mut self.changes)
    }
}

/// The first label with different values.
fn differing_label(a: &Labels, b: &Labels) -> Option<String> {
    let names = a.iter().chain(b.iter()).map(|(name, _)| name);
    names.filter(|name| a.get(name) != b.get(name)).min().map(String::from)
}
