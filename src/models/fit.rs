//! Fits one kind of model on training rows.
//!
//! The rows are prepared before the fit, because cross-validation and fit read the same input of the forest.

use super::kind::{FittedModel, ModelParams, score_training_rows};
use crate::detect::{OnlineDetector, TrainingMatrix};
use crate::forest::{self, ExtendedParams, ForestParams, MaxSamples, Table};
use crate::window::Score;
use std::num::NonZeroUsize;

/// Training rows in the form that a kind of model needs.
pub struct PreparedRows<'a>(Kind<'a>);

enum Kind<'a> {
    Standard { params: &'a ForestParams, timestamps: &'a [i64], table: Table<'a> },
    Extended { params: &'a ExtendedParams, matrix: Box<TrainingMatrix> },
}

impl ModelParams {
    /// Prepares training rows: `timestamps` in milliseconds, ascending, shape `[n_rows]`, and their values. `mean_sizes`
    /// has the pairs of features that are bytes and packets of the same thing.
    ///
    /// # Errors
    /// [`forest::Error`] if the rows cannot be derived.
    pub fn prepare<'a>(
        &'a self,
        timestamps: &'a [i64],
        table: Table<'a>,
        mean_sizes: Vec<[usize; 2]>,
    ) -> Result<PreparedRows<'a>, forest::Error> {
        Ok(PreparedRows(match self {
            Self::IsolationForest(params) => Kind::Standard { params, timestamps, table },
            Self::Extended(params) => Kind::Extended {
                params,
                matrix: Box::new(TrainingMatrix::new(timestamps, &table, mean_sizes)?),
            },
        }))
    }
}

impl PreparedRows<'_> {
    /// The input of the forest; `None` if the model has no forest.
    ///
    /// # Errors
    /// [`forest::Error::Empty`] without rows.
    pub fn forest_table(&self) -> Result<Option<Table<'_>>, forest::Error> {
        match &self.0 {
            Kind::Standard { table, .. } => Ok(Some(*table)),
            Kind::Extended { matrix, .. } => matrix.table(),
        }
    }

    /// Fits the model, with another number of rows per tree if one is given. The second value holds timestamp in
    /// milliseconds and score of each training row that can be scored, ascending.
    ///
    /// # Errors
    /// [`forest::Error`] if the parameters do not fit the rows.
    pub fn fit(
        &self,
        max_samples: Option<MaxSamples>,
        threads: NonZeroUsize,
    ) -> Result<(FittedModel, Vec<(i64, Score)>), forest::Error> {
        match &self.0 {
            Kind::Standard { params, timestamps, table } => {
                let max_samples = max_samples.unwrap_or(params.max_samples);
                let forest = ForestParams { max_samples, ..(*params).clone() }.fit(table, threads)?;
                let scores = timestamps.iter().copied().zip(score_training_rows(&forest, table)).collect();
                Ok((FittedModel::IsolationForest(forest), scores))
            }
            Kind::Extended { params, matrix } => {
                let max_samples = max_samples.unwrap_or(params.max_samples);
                let fitted = matrix.fit(&ExtendedParams { max_samples, ..(*params).clone() }, threads)?;
                let (detector, scores) = OnlineDetector::from_training(fitted);
                Ok((FittedModel::Extended(Box::new(detector)), scores))
            }
        }
    }
}
