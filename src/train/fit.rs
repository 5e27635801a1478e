//! Fits a model on a training set: validates each sample size, chooses one, fits on all rows.

use super::cross_validation::{CrossValidator, FoldDecisions, SizeFolds};
use super::size_choice;
use super::training_set::TrainingSet;
use crate::detector::{Detector, PromotionGate};
use crate::forest::{self, MaxSamples};
use crate::models::{
    CrossValidation, DecisionHistogram, FittedModel, HeldOut, Model, ModelCard, ModelParams, PreparedRows,
    TrainingRange, Trial,
};
use crate::prom::Labels;
use crate::window::Score;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

/// Fewest rows for cross-validation.
const MIN_ROWS_TO_VALIDATE: usize = 10;

/// A model and its training.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The model.
    pub model: Model,
    /// The cross-validation; `None` with fewer than ten rows, or if no feature varies.
    pub sweep: Option<Sweep>,
    /// Timestamps in milliseconds and scores of the training rows, ascending. For an extended forest, these are the rows
    /// that have all derived features, each scored by a forest that was not fitted on it.
    pub scores: Vec<(i64, Score)>,
}

/// Result of a sweep over sample sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// All sizes, and the chosen one.
    pub validation: CrossValidation,
    /// The decisions of the chosen size on each fold.
    pub folds: Vec<FoldDecisions>,
}

/// A fitted model, and the scores of its training rows.
type Fit = (FittedModel, Vec<(i64, Score)>);

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
    /// The bounds that a size should meet to be chosen.
    pub gate: &'a PromotionGate,
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
            gate: &detector.training.gate,
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
        let prepared = self.params.prepare(
            &training_set.timestamps,
            training_set.table()?,
            training_set.schema.mean_sizes(),
        )?;
        let search = SizeSearch { fitter: self, prepared: &prepared, fits: BTreeMap::new() };
        let (max_samples, sweep, (fitted, scores)) = search.run(training_set.len())?;
        let params = match max_samples {
            Some(max_samples) => self.params.with_max_samples(max_samples),
            None => self.params.clone(),
        };
        let card = self.card(&params, training_set, sweep.as_ref(), &scores);
        Ok(Trained { model: Model { schema: training_set.schema.clone(), fitted, card }, sweep, scores })
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
                n_rows: scores.len(),
                n_excluded: training_set.n_excluded(),
            }),
            validation: sweep.map(|sweep| sweep.validation.clone()),
            baseline: Some(decisions.iter().collect::<DecisionHistogram>()),
        }
    }
}

/// The search for the number of rows per tree.
struct SizeSearch<'a> {
    fitter: &'a ModelFitter<'a>,
    prepared: &'a PreparedRows<'a>,
    /// The models that were fitted on all rows, by their number of rows per tree.
    fits: BTreeMap<usize, Fit>,
}

impl SizeSearch<'_> {
    /// Validates and chooses a size, and fits the model. Returns the size if it is not the one of the parameters.
    fn run(mut self, n_rows: usize) -> Result<(Option<MaxSamples>, Option<Sweep>, Fit), forest::Error> {
        let ModelFitter { params, sizes, threads, on_fold, .. } = *self.fitter;
        let table = self.prepared.forest_table()?.filter(|table| table.n_rows() >= MIN_ROWS_TO_VALIDATE);
        let Some(table) = table else { return Ok((None, None, self.prepared.fit(None, threads)?)) };
        let validator = CrossValidator::new(params, &table, threads)?;
        let fixed = [params.max_samples(table.n_rows())];
        let mut validated = validator.validate(if sizes.is_empty() { &fixed } else { sizes }, on_fold)?;
        let trials: Vec<Trial> = validated.iter().map(SizeFolds::trial).collect();
        let chosen = match trials.len() {
            1 => Some(0),
            _ => {
                size_choice::choose(&trials, |index| self.passes(&validated[index], &trials[index], n_rows))?
            }
        };
        let chosen = match chosen {
            Some(chosen) => chosen,
            None => add_size(&validator, &mut validated, MaxSamples::AUTO)?,
        };
        let held_out = self.held_out(&validated[chosen])?;
        let trials = validated.iter().map(SizeFolds::trial).collect();
        let SizeFolds { max_samples, folds } = validated.swap_remove(chosen);
        let sweep = Sweep { validation: CrossValidation { trials, chosen, held_out }, folds };
        let max_samples = if sizes.is_empty() { None } else { Some(MaxSamples::count(max_samples)?) };
        let fit = match self.fits.remove(&sweep.validation.best().max_samples) {
            Some(fit) => fit,
            None => self.prepared.fit(max_samples, threads)?,
        };
        Ok((max_samples, Some(sweep), fit))
    }

    /// True if a size passes the promotion gate.
    fn passes(&mut self, size: &SizeFolds, trial: &Trial, n_rows: usize) -> Result<bool, forest::Error> {
        Ok(self.fitter.gate.check(trial, &self.held_out(size)?, n_rows).is_empty())
    }

    /// The alerts of a size on held-out rows.
    fn held_out(&mut self, size: &SizeFolds) -> Result<HeldOut, forest::Error> {
        if !self.fitter.params.scores_held_out_rows() {
            return Ok(size.held_out());
        }
        let fit = match self.fits.remove(&size.max_samples) {
            Some(fit) => fit,
            None => self.prepared.fit(Some(MaxSamples::count(size.max_samples)?), self.fitter.threads)?,
        };
        let (_, scores) = self.fits.entry(size.max_samples).or_insert(fit);
        Ok(HeldOut { is_constant: size.is_constant(), ..HeldOut::from_scores(scores) })
    }
}

/// Index of a size among the validated ones, which it joins if it is not among them.
fn add_size(
    validator: &CrossValidator<'_>,
    validated: &mut Vec<SizeFolds>,
    size: usize,
) -> Result<usize, forest::Error> {
    match validated.binary_search_by_key(&validator.clamp(size), |size| size.max_samples) {
        Ok(index) => Ok(index),
        Err(index) => {
            validated.splice(index..index, validator.validate(&[size], &|_, _| {})?);
            Ok(index)
        }
    }
}
