//! Training: a window of history in, a model out, by the code that also serves.
//!
//! History is what remote read has joined with what the live window holds: the same samples twice
//! do no harm, and whichever of the two is longer wins. So a sidecar beside an old Prometheus has
//! its model within seconds, and one beside a new Prometheus, or one that serves no remote read,
//! has it as soon as its own window is long enough.

pub mod register;
pub mod report;
pub mod history;
pub mod pool;
pub mod catch_up;
pub mod training_set;
pub mod trainer;
pub mod cross_validation;

use crate::detect::{OnlineDetector, TrainingMatrix};
use crate::forest;
use crate::models::{self, DecisionHistogram, FittedModel, Model, ModelCard, ModelParams, TrainingRange};
use crate::prom::Labels;
use crate::window::Score;
use cross_validation::Sweep;
use std::num::NonZeroUsize;
use training_set::TrainingSet;

/// Rows below which there is nothing to hold back for validation.
const MIN_ROWS_TO_VALIDATE: usize = 10;

/// A model, and how it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The model.
    pub model: Model,
    /// The cross-validation; none with too few rows to hold some back.
    pub sweep: Option<Sweep>,
    /// Timestamp in milliseconds and score of the rows of training, ascending; of an extended forest those that
    /// its columns reach back from, each by a forest that had not seen it.
    pub scores: Vec<(i64, Score)>,
}

/// Whose model is trained.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelScope {
    /// The detector.
    pub detector: Option<String>,
    /// The group; none for rows of a file.
    pub group: Option<Labels>,
}

/// Validates every size of sample, takes the best, and fits it on all rows. Without sizes the
/// parameters are taken as they are, and validated all the same.
///
/// # Errors
/// The forest's own, when the parameters do not suit the rows.
pub fn train(
    params: &ModelParams,
    training_set: &TrainingSet,
    sizes: &[usize],
    scope: ModelScope,
    now_ms: i64,
    threads: NonZeroUsize,
    on_fold: &(dyn Fn(usize, usize) + Sync),
) -> Result<Trained, forest::Error> {
    let table = training_set.table()?;
    let matrix = match params {
        ModelParams::IsolationForest(_) => None,
        ModelParams::Extended(_) => Some(TrainingMatrix::new(&training_set.timestamps, &table)?),
    };
    let forest_table = match &matrix {
        None => Some(table),
        Some(prepared) => prepared.table()?,
    };
    let sweep = match &forest_table {
        Some(forest_table) if forest_table.n_rows() >= MIN_ROWS_TO_VALIDATE => {
            let fixed = [params.max_samples(forest_table.n_rows())];
            let sizes = if sizes.is_empty() { &fixed } else { sizes };
            Some(cross_validation::sweep(params, forest_table, sizes, threads, on_fold)?)
        }
        _ => None,
    };
    let params = match &sweep {
        Some(sweep) if !sizes.is_empty() => {
            params.with_max_samples(forest::MaxSamples::count(sweep.validation.best().max_samples)?)
        }
        _ => params.clone(),
    };
    let (fitted, scores) = match (&params, matrix) {
        (ModelParams::Extended(params), Some(matrix)) => {
            let (detection, scores) = OnlineDetector::from_training(matrix.fit(params, threads)?);
            (FittedModel::Extended(Box::new(detection)), scores)
        }
        (ModelParams::IsolationForest(params), _) => {
            let forest = params.fit(&table, threads)?;
            let mut row = vec![0.0; table.n_features()];
            let score = |(number, timestamp_ms): (usize, &i64)| {
                table.copy_row(number, &mut row);
                (*timestamp_ms, models::score(&forest, &row))
            };
            let scores = training_set.timestamps.iter().enumerate().map(score).collect();
            (FittedModel::IsolationForest(forest), scores)
        }
        (ModelParams::Extended(_), None) => unreachable!("rows are prepared for an extended forest"),
    };
    let decisions: Vec<f64> = scores.iter().map(|(_, score): &(i64, Score)| score.decision).collect();
    let card = ModelCard {
        detector: scope.detector,
        group: scope.group,
        origin: concat!("promforest ", env!("CARGO_PKG_VERSION")).into(),
        created_ms: now_ms,
        params: params.describe(),
        columns: None,
        training_range: Some(TrainingRange {
            from_ms: training_set.timestamps[0],
            to_ms: training_set.to_ms,
            observed_ms: training_set.observed_ms,
            n_rows: training_set.len(),
            n_excluded: training_set.excluded.iter().map(|(_, n_rows)| n_rows).sum(),
        }),
        validation: sweep.as_ref().map(|sweep| sweep.validation.clone()),
        baseline: Some(decisions.iter().collect::<DecisionHistogram>()),
    };
    Ok(Trained { model: Model { schema: training_set.schema.clone(), fitted, card }, sweep, scores })
}

#[cfg(test)]
mod tests;
