//! A model for a group that has no history yet, of the history of others with the same features.
//!
//! Their rows are laid one group after the other, days apart, so that nothing reaches from one to the next and
//! every row keeps its time of day. What the groups differ in widens what counts as usual: such a model says less
//! than one of the group's own. What was learned is shared, and a threshold above that of their rows. What each of them
//! did lately and its incidents stay its own; the alternative, to go on from the state of the one that is most alike,
//! would begin with another's rows as the past.

use super::training_set::{TrainingSet, coverage_ms};
use super::{ModelScope, history, train};
use crate::detector::Detector;
use crate::features::Schema;
use crate::forest;
use crate::models::Model;
use crate::time;
use crate::time::DAY_MS;
use crate::window::{ModelRole, Window};
use std::num::NonZeroUsize;

/// Groups that a model is pooled of: more would say little that is new, and take as much longer.
pub const MAX_GROUPS: usize = 8;
/// How much louder than they a new one may be, shared among them: what is usual of hosts is not seen on one. Of new hosts
/// of ordinary traffic, on levels of their own, 70 to 85 of a hundred had an incident in their first hour by the model of
/// one other and a threshold of 1; 37 (3 to 57, by how far levels differ) by its threshold, and 3 (0 to 28) by one and a
/// half times that, which finds fifteenfold traffic in 83 to 100 of a hundred. By the model of eight it is 0 to 8.
const MARGIN: f64 = 0.5;

/// Between the last row of a group and the first of the next: no column reaches back so far.
const GAP_MS: i64 = DAY_MS / 2;

/// Groups with the same features, and a model of their own.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Their features, where each timestamp is a row.
    pub schema: Schema,
    /// What they hold now, in the order of their labels.
    pub windows: Vec<Window>,
}

impl Pool {
    /// Trains on their rows, as one group's are trained on. None when all of them together have too few.
    ///
    /// # Errors
    /// The forest's own, when the parameters do not suit the rows.
    pub fn train(
        &self,
        detector: &Detector,
        now_ms: i64,
        threads: NonZeroUsize,
    ) -> Result<Option<Model>, forest::Error> {
        let rows = self.training_set();
        let minimum_ms = time::millis(detector.training.min_history);
        let Some(rows) = rows.filter(|rows| rows.observed_ms >= minimum_ms) else { return Ok(None) };
        let scope = ModelScope { detector: Some(detector.name.clone()), group: None };
        let sizes = &detector.training.sweep;
        let mut model = match train(&detector.model, &rows, sizes, scope, now_ms, threads, &|_, _| {}) {
            Err(forest::Error::Empty { .. }) => return Ok(None),
            trained => trained?.model,
        };
        model.fitted = model.fitted.transferred(1.0 + MARGIN / self.windows.len() as f64);
        Ok(Some(model))
    }

    /// The rows of all groups, those of the first where they are and the others' before them.
    fn training_set(&self) -> Option<TrainingSet> {
        let mut training_sets: Vec<TrainingSet> = Vec::new();
        for window in &self.windows {
            let incidents = window.scores(ModelRole::Champion, i64::MIN, i64::MAX);
            let incidents =
                incidents.filter(|(_, score)| score.incident_state.is_some_and(|alarm| alarm.is_incident));
            let times: Vec<i64> = incidents.map(|(timestamp_ms, _)| timestamp_ms).collect();
            let columns = self.schema.features.iter().filter_map(|feature| window.find_column(feature));
            let observed_ms = columns.map(|column| coverage_ms(window, column, self.schema.transform)).max();
            let mut training_set = TrainingSet::from_first_row(
                self.schema.clone(),
                window,
                &history::incidents_from_times(&times),
                observed_ms.unwrap_or(0).max(0),
                i64::MAX,
            );
            let Some(last_ms) = training_set.timestamps.last() else { continue };
            if let Some(next) = training_sets.last() {
                let overlap_ms = last_ms + GAP_MS - next.timestamps[0];
                let days = (overlap_ms + DAY_MS - 1).div_euclid(DAY_MS).max(0);
                training_set.timestamps.iter_mut().for_each(|timestamp_ms| *timestamp_ms -= days * DAY_MS);
            }
            training_sets.push(training_set);
        }
        let to_ms = training_sets.first()?.to_ms;
        training_sets.reverse();
        let columns = 0..self.schema.features.len();
        let column = |column: usize| {
            training_sets
                .iter()
                .flat_map(move |rows| rows.values[column * rows.len()..][..rows.len()].iter().copied())
        };
        Some(TrainingSet {
            schema: self.schema.clone(),
            timestamps: training_sets.iter().flat_map(|rows| rows.timestamps.iter().copied()).collect(),
            values: columns.flat_map(column).collect(),
            excluded: training_sets.iter().flat_map(|rows| rows.excluded.iter().cloned()).collect(),
            to_ms,
            observed_ms: training_sets.iter().map(|rows| rows.observed_ms).sum(),
        })
    }
}

#[cfg(test)]
mod tests;
