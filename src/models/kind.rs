//! The kinds of forest: their names, parameters and fitted models.

use crate::detect::{self, Checkpoint, OnlineDetector};
use crate::forest::{self, ExtendedParams, Forest, ForestParams, MaxSamples, Table};
use crate::window::Score;
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// The kinds of forest, by their names in configuration and files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModelKind {
    /// Splits along the axes, scikit-learn's semantics (Liu, Ting, Zhou 2008), on the raw values.
    IsolationForest,
    /// Oblique splits (Hariri, Carrasco Kind, Brunner 2019) on derived features, such as the difference from the
    /// usual value at the time of day: see [`detect`](crate::detect).
    #[default]
    ExtendedIsolationForest,
}

impl ModelKind {
    const ALL: [Self; 2] = [Self::IsolationForest, Self::ExtendedIsolationForest];

    /// The name in configuration and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IsolationForest => "isolation_forest",
            Self::ExtendedIsolationForest => "extended_isolation_forest",
        }
    }
}

/// A name that is not a kind of forest.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0:?} is not a kind of forest; known are {known}", known = ModelKind::ALL.map(ModelKind::as_str).join(", "))]
pub struct UnknownModelKind(String);

impl FromStr for ModelKind {
    type Err = UnknownModelKind;

    fn from_str(text: &str) -> Result<Self, UnknownModelKind> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| UnknownModelKind(text.into()))
    }
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Parameters of one kind of forest.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelParams {
    /// Parameters of the plain forest.
    IsolationForest(ForestParams),
    /// Parameters of the extended forest.
    Extended(ExtendedParams),
}

impl Default for ModelParams {
    fn default() -> Self {
        Self::default_for(ModelKind::default())
    }
}

impl ModelParams {
    /// The defaults of a kind.
    pub fn default_for(kind: ModelKind) -> Self {
        match kind {
            ModelKind::IsolationForest => Self::IsolationForest(ForestParams::default()),
            ModelKind::ExtendedIsolationForest => Self::Extended(ExtendedParams::default()),
        }
    }

    /// The time from the first row until a model can be fitted to rows at this interval, in milliseconds.
    pub fn warm_up_ms(&self, interval_ms: i64) -> i64 {
        match self {
            Self::IsolationForest(_) => 0,
            Self::Extended(_) => detect::warm_up_ms(interval_ms),
        }
    }

    /// Fits a forest in this thread and returns its decisions on the rows of two tables, of shape `[n_rows]` each.
    ///
    /// # Errors
    /// [`forest::Error`] if the parameters do not fit the table.
    pub fn fit_and_decide(&self, train: &Table, tables: [&Table; 2]) -> Result<[Vec<f64>; 2], forest::Error> {
        let single_thread = NonZeroUsize::MIN;
        let decide = |score_table: &dyn Fn(&Table, &mut [f64]), offset: f64| {
            tables.map(|table| {
                let mut decisions = vec![0.0; table.n_rows()];
                score_table(table, &mut decisions);
                decisions.iter_mut().for_each(|score| *score -= offset);
                decisions
            })
        };
        match self {
            Self::IsolationForest(params) => {
                let forest = params.fit(train, single_thread)?;
                Ok(decide(&|table, out| forest.score_table(table, out), forest.offset()))
            }
            Self::Extended(params) => {
                let forest = params.fit(train, single_thread)?;
                Ok(decide(&|table, out| forest.score_table(table, out), EXTENDED_OFFSET))
            }
        }
    }

    /// The kind of forest.
    pub fn kind(&self) -> ModelKind {
        match self {
            Self::IsolationForest(_) => ModelKind::IsolationForest,
            Self::Extended(_) => ModelKind::ExtendedIsolationForest,
        }
    }

    /// True if a training row may lack values.
    pub fn accepts_missing_values(&self) -> bool {
        match self {
            Self::IsolationForest(_) => false,
            Self::Extended(_) => true,
        }
    }

    /// True if a fit scores the training rows by forests that were not fitted on them.
    pub fn scores_held_out_rows(&self) -> bool {
        self.as_extended().is_some()
    }

    /// True if a model of this kind opens incidents.
    pub fn opens_incidents(&self) -> bool {
        self.as_extended().is_some()
    }

    /// The parameters, if they are of an extended forest.
    pub fn as_extended(&self) -> Option<&ExtendedParams> {
        match self {
            Self::IsolationForest(_) => None,
            Self::Extended(params) => Some(params),
        }
    }

    /// Rows per tree for a table of `n_rows`.
    pub fn max_samples(&self, n_rows: usize) -> usize {
        match self {
            Self::IsolationForest(params) => params.max_samples.resolve(n_rows),
            Self::Extended(params) => params.max_samples.resolve(n_rows),
        }
    }

    /// The same parameters with another number of rows per tree.
    pub fn with_max_samples(&self, max_samples: MaxSamples) -> Self {
        match self {
            Self::IsolationForest(params) => {
                Self::IsolationForest(ForestParams { max_samples, ..params.clone() })
            }
            Self::Extended(params) => Self::Extended(ExtendedParams { max_samples, ..params.clone() }),
        }
    }

    /// Names and values as scikit-learn prints them, for reports and registries.
    pub fn describe(&self) -> Vec<(String, String)> {
        let pair = |name: &str, value: String| (name.to_string(), value);
        match self {
            Self::IsolationForest(params) => vec![
                pair("kind", ModelKind::IsolationForest.to_string()),
                pair("n_estimators", params.n_estimators.to_string()),
                pair("max_samples", params.max_samples.to_string()),
                pair("contamination", params.contamination.to_string()),
                pair("max_features", params.max_features.to_string()),
                pair("bootstrap", params.bootstrap.to_string()),
                pair("random_state", params.random_state.to_string()),
            ],
            Self::Extended(params) => vec![
                pair("kind", ModelKind::ExtendedIsolationForest.to_string()),
                pair("n_estimators", params.n_estimators.to_string()),
                pair("max_samples", params.max_samples.to_string()),
                pair("ndim", params.ndim.to_string()),
                pair("random_state", params.random_state.to_string()),
            ],
        }
    }
}

/// The `offset_` of an extended forest: the middle of its range of scores. Rows below are anomalous.
pub const EXTENDED_OFFSET: f64 = -0.5;

/// A fitted forest of one of the kinds.
#[derive(Clone, Debug, PartialEq)]
pub enum FittedModel {
    /// The plain forest. Each row has a score of its own.
    IsolationForest(Forest),
    /// The extended forest with its derived features, threshold and state after the last row of training. It
    /// scores rows in order.
    Extended(Box<OnlineDetector>),
}

impl FittedModel {
    /// The kind of forest.
    pub fn kind(&self) -> ModelKind {
        match self {
            Self::IsolationForest(_) => ModelKind::IsolationForest,
            Self::Extended(_) => ModelKind::ExtendedIsolationForest,
        }
    }

    /// Width of a row.
    pub fn n_features(&self) -> usize {
        match self {
            Self::IsolationForest(forest) => forest.n_features(),
            Self::Extended(detector) => detector.n_features(),
        }
    }

    /// The score below which a row is anomalous, scikit-learn's `offset_`.
    pub fn offset(&self) -> f64 {
        match self {
            Self::IsolationForest(forest) => forest.offset(),
            Self::Extended(_) => EXTENDED_OFFSET,
        }
    }

    /// The forest, if it is a plain one.
    pub fn as_forest(&self) -> Option<&Forest> {
        match self {
            Self::IsolationForest(forest) => Some(forest),
            Self::Extended(_) => None,
        }
    }

    /// The detector with its state after training, if the model scores rows in order.
    pub fn as_online(&self) -> Option<&OnlineDetector> {
        match self {
            Self::IsolationForest(_) => None,
            Self::Extended(detector) => Some(detector),
        }
    }

    /// True if rows must be scored in the order of their timestamps.
    pub fn is_sequential(&self) -> bool {
        self.as_online().is_some()
    }

    /// Timestamp of the newest row of training, if the model scores rows in order.
    pub fn newest_ms(&self) -> Option<i64> {
        self.as_online().and_then(OnlineDetector::newest_ms)
    }

    /// The detector as a checkpoint describes it. The outer `None` means that the checkpoint is of another kind of
    /// model or does not fit; the inner `None`, that the model has no state.
    pub fn resume(&self, checkpoint: Option<&Checkpoint>) -> Option<Option<Box<OnlineDetector>>> {
        match (self, checkpoint) {
            (Self::IsolationForest(_), None) => Some(None),
            (Self::Extended(trained), Some(checkpoint)) => {
                trained.resume(checkpoint.clone()).ok().map(|detector| Some(Box::new(detector)))
            }
            _ => None,
        }
    }

    /// scikit-learn's `score_samples` of every row of a table, in order; shape `[n_rows]`. A sequential model continues
    /// after its training; rows without a timestamp or not after the previous one have no score.
    pub fn score_samples(&self, timestamps: Option<&[i64]>, table: &Table) -> Vec<Option<f64>> {
        if let Self::IsolationForest(forest) = self {
            return score_table(forest, table).map(Some).collect();
        }
        let mut row = vec![0.0; table.n_features()];
        let mut detector = self.as_online().cloned();
        let mut timestamps = timestamps.unwrap_or_default().iter();
        let score = |number: usize| {
            table.copy_row(number, &mut row);
            let assessment = detector.as_mut()?.assess(*timestamps.next()?, &row)?;
            Some(assessment.decision + EXTENDED_OFFSET)
        };
        (0..table.n_rows()).map(score).collect()
    }

    /// Prepares the model for a group that it was not trained on: a sequential one starts with its threshold
    /// raised by this factor.
    #[must_use]
    pub fn transferred(self, factor: f64) -> Self {
        match self {
            Self::Extended(detector) => Self::Extended(Box::new(detector.transferred(factor))),
            forest @ Self::IsolationForest(_) => forest,
        }
    }
}

/// Decision and score of a live row by a plain forest. Inside of the range of training they equal scikit-learn's;
/// outside, the score grows with the distance, so that a burst stands out from rows that have drifted slightly. The
/// score is `score_samples / offset`: it exceeds 1 if and only if the decision is negative.
///
/// # Panics
/// If the row has another width than the forest.
pub fn score(forest: &Forest, row: &[f32]) -> Score {
    from_score_samples(forest, forest.score_extrapolated(row))
}

/// Decision and score of each row that a plain forest was fitted on, shape `[n_rows]`: [`score`] of the rows.
///
/// # Panics
/// If the table has another width than the forest.
pub fn score_training_rows(forest: &Forest, table: &Table) -> Vec<Score> {
    score_table(forest, table).map(|score_samples| from_score_samples(forest, score_samples)).collect()
}

fn score_table(forest: &Forest, table: &Table) -> impl Iterator<Item = f64> + use<> {
    let mut scores = vec![0.0; table.n_rows()];
    forest.score_table(table, &mut scores);
    scores.into_iter()
}

fn from_score_samples(forest: &Forest, score_samples: f64) -> Score {
    let offset = forest.offset();
    Score { decision: score_samples - offset, score: score_samples / offset, incident_state: None }
}
