//! The columns of a group's window, by the labels of their series.

use super::Group;
use super::series_origins::Lookup;
use crate::prom::{LabelPool, Labels};
use crate::window::Column;

impl Group {
    /// Looks up the column of a series without the labels of the group. `at_ms` is the time of its sample; `None` for past
    /// samples.
    pub fn find_column(&mut self, series: &Labels, at_ms: Option<i64>) -> Lookup {
        self.origins.find(&self.detector, &self.window, series, at_ms)
    }

    /// Gives the features of a metric the ignored labels of their series, unless a model goes on with the features that
    /// it knows.
    pub fn restore_ignored_labels(&mut self, metric: &str) {
        if self.models.champion().is_some() {
            return;
        }
        let of_metric = self.window.features().filter(|(labels, _)| labels.metric_name() == metric);
        let renamed = of_metric
            .filter_map(|(labels, column)| Some((column, labels.union(self.origins.ignored(column)?))));
        for (column, labels) in renamed.collect::<Vec<_>>() {
            self.window.rename_feature(column, labels);
        }
    }

    /// The feature of a series without the labels of the group.
    pub fn feature(&self, series: &Labels) -> Labels {
        self.origins.feature(&self.detector, series)
    }

    /// Adds a column for a series; `None` if the group has too many.
    pub fn add_column(
        &mut self,
        series: &Labels,
        at_ms: Option<i64>,
        pool: &mut LabelPool,
    ) -> Option<Column> {
        let feature = pool.share(self.feature(series));
        let column = self.window.get_or_add_column(&feature)?;
        if feature != *series {
            self.origins.record(column, pool.share(series.split(&self.detector.ignore).0), at_ms);
        }
        self.models.rebind(&self.window);
        Some(column)
    }
}
