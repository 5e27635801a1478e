//! A model for a group without history, trained on the history of other groups with the same features.
//!
//! The rows of the groups are concatenated with gaps of whole days, so that no derived feature spans two groups and each
//! row keeps its time of day. The differences between groups widen the range of normal values: a pooled model detects less
//! than a model of the group's own. Scales, forest and a raised threshold are shared. State (recent rows and incidents) is
//! not: the alternative, to start from the state of the most similar group, would compare the first rows with the rows of
//! another group.

use super::coverage::coverage_ms;
use super::fit::ModelFitter;
use super::training_set::{RowGatherer, TrainingSet};
use crate::detector::Detector;
use crate::features::Schema;
use crate::forest;
use crate::models::Model;
use crate::time::{self, DAY_MS};
use crate::window::Window;
use std::num::NonZeroUsize;

/// Most groups of a pool. More would add little information and proportional time.
pub const MAX_GROUPS: usize = 8;

/// Increase of the threshold for a pool of one group; it is divided by the number of groups. One host does not show the
/// range of all hosts. Measured on new hosts with ordinary traffic at levels of their own, in their first hour with the model of
/// one other host: 70 to 85 % had an incident at a threshold of 1, 37 % (3 to 57 %, depending on the spread of levels) at
/// the other host's threshold, and 3 % (0 to 28 %) at 1.5 times that threshold, which detects fifteenfold traffic on 83 to
/// 100 % of hosts. With the model of eight hosts it is 0 to 8 %.
const MARGIN: f64 = 0.5;

/// Gap between the last row of a group and the first row of the next. No derived feature has a longer lookback.
const GAP_MS: i64 = DAY_MS / 2;

/// Groups that have the same features and models of their own.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Their features, with a row for each timestamp.
    pub schema: Schema,
    /// Their live windows, in the order of their labels.
    pub windows: Vec<Window>,
}

impl Pool {
    /// Trains a model as for one group. Returns `None` if all groups together have too few rows.
    ///
    /// # Errors
    /// Those of the forest, if the parameters do not suit the rows.
    pub fn train(
        &self,
        detector: &Detector,
        now_ms: i64,
        threads: NonZeroUsize,
    ) -> Result<Option<Model>, forest::Error> {
        let min_history_ms = time::millis(detector.training.min_history);
        let training_set = self.training_set().filter(|rows| rows.observed_ms >= min_history_ms);
        let Some(training_set) = training_set else { return Ok(None) };
        let fitter = ModelFitter { threads, ..ModelFitter::for_detector(detector, None, now_ms) };
        let mut model = match fitter.fit(&training_set) {
            Err(forest::Error::Empty { .. }) => return Ok(None),
            trained => trained?.model,
        };
        model.fitted = model.fitted.transferred(1.0 + MARGIN / self.windows.len() as f64);
        Ok(Some(model))
    }

    /// The rows of all groups. Those of the first group keep their times, the others precede them.
    fn training_set(&self) -> Option<TrainingSet> {
        let mut parts: Vec<TrainingSet> = Vec::new();
        for window in &self.windows {
            let mut part = self.group_training_set(window);
            let Some(last_ms) = part.timestamps.last() else { continue };
            if let Some(next) = parts.last() {
                let overlap_ms = last_ms + GAP_MS - next.timestamps[0];
                let n_days = (overlap_ms + DAY_MS - 1).div_euclid(DAY_MS).max(0);
                part.timestamps.iter_mut().for_each(|timestamp_ms| *timestamp_ms -= n_days * DAY_MS);
            }
            parts.push(part);
        }
        let to_ms = parts.first()?.to_ms;
        parts.reverse();
        let column = |feature: usize| {
            parts
                .iter()
                .flat_map(move |part| part.values[feature * part.len()..][..part.len()].iter().copied())
        };
        Some(TrainingSet {
            schema: self.schema.clone(),
            timestamps: parts.iter().flat_map(|part| part.timestamps.iter().copied()).collect(),
            values: (0..self.schema.features.len()).flat_map(column).collect(),
            excluded: parts.iter().flat_map(|part| part.excluded.iter().cloned()).collect(),
            to_ms,
            observed_ms: parts.iter().map(|part| part.observed_ms).sum(),
        })
    }

    fn group_training_set(&self, window: &Window) -> TrainingSet {
        let columns = self.schema.features.iter().filter_map(|feature| window.find_column(feature));
        let observed_ms = columns.map(|column| coverage_ms(window, column, self.schema.transform)).max();
        let gatherer = RowGatherer {
            window,
            exclusions: &[],
            observed_ms: observed_ms.unwrap_or(0).max(0),
            to_ms: i64::MAX,
        };
        gatherer.gather_complete(self.schema.clone())
    }
}

#[cfg(test)]
mod tests;
