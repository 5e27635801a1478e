//! Fits a model on a training set: validates each sample size, chooses the best, fits on all rows.

use super::cross_validation::{CrossValidator, Sweep};
use super::training_set::TrainingSet;
use crate::detector::Detector;
use crate::forest::{self, MaxSamples, Table};
use crate::models::{DecisionHistogram, Model, ModelCard, ModelParams, TrainingRange};
use crate::prom::Labels;
use crate::window::Score;
use std::num::NonZeroUsize;

/// Fewest rows for cross-validation.
const MIN_ROWS_TO_VALIDATE: usize = 10;

/// A model and its training.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The model.
    pub model: Model,
    /// The cross-validation; `None` with fewer than ten rows.
    pub sweep: Option<Sweep>,
    /// Timestamps in milliseconds and scores of the training rows, ascending. For an extended forest, these are the rows
    /// that have all derived features, each scored by a forest that was not fitted on it.
    pub scores: Vec<(i64, Score)>,
}

/// The groups that a model belongs to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelScope {
    /// Name of the detector.
    pub detector: Option<String>,
    /// Labels of the group; `None` for a model of several groups or of a file.
    pub group: Option<Labels>,
}

/// Settings of a fit, apart from the rows.
pub struct ModelFitter<'a> {
    /// Kind and parameters of the model.
    pub params: &'a ModelParams,
    /// Values of `max_samples` to choose from. If empty, the value of `params` is validated and used.
    pub sizes: &'a [usize],
    /// The groups that the model belongs to.
    pub scope: ModelScope,
    /// Creation time of the model in milliseconds.
    pub created_ms: i64,
    /// Number of threads. The result does not depend on it.
    pub threads: NonZeroUsize,
    /// Called with the numbers of finished and of all folds, from any thread.
    pub on_fold: &'a (dyn Fn(usize, usize) + Sync),
}

impl<'a> ModelFitter<'a> {
    /// The settings of a detector's configuration, on all processors, for a group or for several.
    pub fn for_detector(detector: &'a Detector, group: Option<Labels>, created_ms: i64) -> Self {
        Self {
            params: &detector.model,
            sizes: &detector.training.sweep,
            scope: ModelScope { detector: Some(detector.name.clone()), group },
            created_ms,
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            on_fold: &|_, _| {},
        }
    }

    /// Trains a model.
    ///
    /// # Errors
    /// Those of the forest, if the parameters do not suit the rows.
    pub fn fit(&self, training_set: &TrainingSet) -> Result<Trained, forest::Error> {
        let prepared = self.params.prepare(&training_set.timestamps, training_set.table()?)?;
        let sweep = prepared.forest_table()?.map(|table| self.validate(&table)).transpose()?.flatten();
        let best_size = sweep.as_ref().filter(|_| !self.sizes.is_empty());
        let max_samples =
            best_size.map(|sweep| MaxSamples::count(sweep.validation.best().max_samples)).transpose()?;
        let params = match max_samples {
            Some(max_samples) => self.params.with_max_samples(max_samples),
            None => self.params.clone(),
        };
        let (fitted, scores) = prepared.fit(max_samples, self.threads)?;
        let card = self.card(&params, training_set, sweep.as_ref(), &scores);
        Ok(Trained { model: Model { schema: training_set.schema.clone(), fitted, card }, sweep, scores })
    }

    /// Cross-validates every size; `None` with too few rows.
    fn validate(&self, table: &Table) -> Result<Option<Sweep>, forest::Error> {
        if table.n_rows() < MIN_ROWS_TO_VALIDATE {
            return Ok(None);
        }
        let fixed = [self.params.max_samples(table.n_rows())];
        let sizes = if self.sizes.is_empty() { &fixed } else { self.sizes };
        CrossValidator::new(self.params, table, sizes)?.sweep(self.threads, self.on_fold).map(Some)
    }

    fn card(
        &self,
        params: &ModelParams,
        training_set: &TrainingSet,
        sweep: Option<&Sweep>,
        scores: &[(i64, Score)],
    ) -> ModelCard {
        let decisions: Vec<f64> = scores.iter().map(|(_, score)| score.decision).collect();
        ModelCard {
            detector: self.scope.detector.clone(),
            group: self.scope.group.clone(),
            origin: concat!("promforest ", env!("CARGO_PKG_VERSION")).into(),
            created_ms: self.created_ms,
            params: params.describe(),
            columns: None,
            training_range: Some(TrainingRange {
                from_ms: training_set.timestamps[0],
                to_ms: training_set.to_ms,
                observed_ms: training_set.observed_ms,
                n_rows: training_set.len(),
                n_excluded: training_set.excluded.iter().map(|(_, n_rows)| n_rows).sum(),
            }),
            validation: sweep.map(|sweep| sweep.validation.clone()),
            baseline: Some(decisions.iter().collect::<DecisionHistogram>()),
        }
    }
}
