//! Fits a scorer to training rows.
//!
//! Training has two steps because several forests are fitted to the same rows (sweeps, cross-validation):
//! [`TrainingMatrix`] derives and standardizes the rows once, [`TrainingMatrix::fit`] fits the forest.
//!
//! The scores of the training rows estimate the threshold, so each has to be as great as that of a new row. Everything is
//! therefore fitted once more for each block of rows, to the rows of the other blocks: scales, correlation and forest.

use super::derived::{DERIVED_PER_FEATURE, DerivedFeatures, Lookback, MIN_KNOWN_ROWS};
use super::encoder::RowEncoder;
use super::lasting::LastingDeviations;
use super::scorer::{MIN_FOREST_UNIT, MIN_TAIL_UNIT, ScoreScale, Scorer};
use super::seasonal::SeasonalProfile;
use super::training_rows::{BlockScore, TrainingRows, input_table};
use crate::forest::{self, ExtendedParams, Table};
use crate::time::HOUR_MS;
use std::num::NonZeroUsize;

/// Most values of a training table, rows times features: 600 features at 15 s for five days and a half. Each takes about
/// 70 bytes while a scorer is fitted.
pub const MAX_TRAINING_VALUES: usize = 20_000_000;

/// The time from the first row until a scorer can be fitted to rows at this interval, in milliseconds: differences look
/// back over their lag, and training needs some.
pub fn warm_up_ms(interval_ms: i64) -> i64 {
    let lookback = Lookback::new(interval_ms);
    lookback.lag_ms() + (MIN_KNOWN_ROWS[1] as i64 - 1) * lookback.interval_ms()
}

/// The result of training.
pub struct FittedScorer {
    /// The scorer.
    pub scorer: Scorer,
    /// The state of the derived features after the last row.
    pub(super) derived: DerivedFeatures,
    /// The deviations that last after the last row.
    pub(super) lasting: LastingDeviations,
    /// The scores of each row that can be scored, ascending. A scorer that was not fitted to the row scored it.
    pub(super) scores: Vec<TrainingScore>,
}

/// The scores of a training row.
pub(super) struct TrainingScore {
    pub timestamp_ms: i64,
    pub raw: f64,
    pub decision: f64,
    pub lasting: Option<f64>,
}

/// Training rows in the form of the forest's input, before a forest is fitted.
pub struct TrainingMatrix {
    derived: DerivedFeatures,
    rows: TrainingRows,
    encoder: RowEncoder,
    /// Shape `[n_rows, n_inputs]`, column-major.
    forest_input: Vec<f32>,
}

impl TrainingMatrix {
    /// Derives and standardizes a table `[n_rows, n_features]` with ascending timestamps in milliseconds.
    ///
    /// A feature may begin later than others, with NaN before. The earlier rows then still count for the other
    /// features: the late feature's later values are repeated in its place. `mean_sizes` has the pairs of features that
    /// are bytes and packets of the same thing.
    ///
    /// # Errors
    /// [`forest::Error`] if no row has derived features, a value is not finite, too many features vary, or the table has
    /// more than [`MAX_TRAINING_VALUES`] values.
    pub fn new(
        timestamps: &[i64],
        table: &Table,
        mean_sizes: Vec<[usize; 2]>,
    ) -> Result<Self, forest::Error> {
        let (n_rows, n_features) = (table.n_rows(), table.n_features());
        if n_rows == 0 || n_features == 0 {
            return Err(forest::Error::Empty { n_rows, n_features });
        }
        check_size(n_rows, n_features)?;
        let values = impute_before_start(table);
        Table::new(&values, n_rows, n_features)?.check_finite()?;
        let DerivedRows { derived, columns, baselines } = DerivedRows::new(timestamps, table);
        let hours = (n_rows as i64 * derived.lookback().interval_ms()) as f64 / HOUR_MS as f64;
        let timestamps = timestamps.to_vec();
        let is_imputed = vec![false; n_rows];
        let mut rows = TrainingRows {
            timestamps,
            hours,
            n_features,
            values,
            columns,
            mean_sizes,
            is_imputed,
            baselines,
        };
        let encoder = rows.all().fit_encoder()?;
        rows.complete(&encoder);
        let forest_input = rows.all().forest_input(&encoder);
        Ok(Self { derived, rows, encoder, forest_input })
    }

    /// The forest's input, `[n_rows, n_inputs]`; `None` if no feature varies.
    ///
    /// # Errors
    /// [`forest::Error::Empty`] if no row has all derived features.
    pub fn table(&self) -> Result<Option<Table<'_>>, forest::Error> {
        input_table(&self.forest_input, self.rows.len(), self.encoder.n_inputs())
    }

    /// Fits the scorer, and one more per block to score the training rows out of sample.
    ///
    /// # Errors
    /// [`forest::Error`] if the parameters do not fit the table, and the errors of [`table`](Self::table).
    pub fn fit(&self, params: &ExtendedParams, threads: NonZeroUsize) -> Result<FittedScorer, forest::Error> {
        let forest = self.table()?.map(|table| params.fit(&table, threads)).transpose()?;
        let Self { derived, rows, encoder, .. } = self;
        let mut lasting = encoder.lasting(derived.lookback());
        let scores = rows.out_of_sample_scores(encoder, &mut lasting, params, threads)?;
        let forest_scores = scores.iter().map(|row| row.anomaly_score).collect();
        let forest_scale = ScoreScale::fit(forest_scores, MIN_FOREST_UNIT);
        // Of the rows themselves: of few rows, the greatest one would else give the unit by the scales of smaller ones.
        let tail_scale = ScoreScale::fit(rows.tail_scores(encoder), MIN_TAIL_UNIT);
        let scorer = Scorer::fitted(encoder.clone(), forest, forest_scale, tail_scale);
        let combine = |(timestamp_ms, row): (&i64, &BlockScore)| TrainingScore {
            timestamp_ms: *timestamp_ms,
            raw: scorer.combine(row.anomaly_score, row.tail_score),
            decision: 0.5 - row.anomaly_score,
            lasting: row.lasting_score,
        };
        let scores = rows.timestamps.iter().zip(&scores).map(combine).collect();
        Ok(FittedScorer { scorer, derived: derived.clone(), lasting, scores })
    }
}

fn check_size(n_rows: usize, n_features: usize) -> Result<(), forest::Error> {
    let value = n_rows.saturating_mul(n_features);
    if value <= MAX_TRAINING_VALUES {
        return Ok(());
    }
    let limit = format!("at most {MAX_TRAINING_VALUES}: a shorter history or fewer features");
    Err(forest::Error::Unsuitable { name: "number of training values", value, n_rows, n_features, limit })
}

/// The derived features of all training rows, and the state after them.
struct DerivedRows {
    derived: DerivedFeatures,
    columns: Vec<f32>,
    baselines: Vec<f32>,
}

impl DerivedRows {
    /// The profiles that prove to be the better ones in training are used from the first row. Otherwise the first weekend
    /// of a feature with a week widens its scale.
    fn new(timestamps: &[i64], table: &Table) -> Self {
        let (n_rows, n_features) = (table.n_rows(), table.n_features());
        let lookback = Lookback::from_timestamps(timestamps);
        let weekly: Vec<bool> = (0..n_features)
            .map(|feature| {
                let mut profile = SeasonalProfile::new(lookback.interval_ms());
                let values = timestamps.iter().zip(table.column_slice(feature));
                values
                    .filter(|(_, value)| value.is_finite())
                    .for_each(|(time, value)| profile.add(*time, *value));
                profile.is_weekly()
            })
            .collect();
        let mut derived = DerivedFeatures::new(n_features, lookback);
        let mut columns = Vec::with_capacity(n_rows * n_features * DERIVED_PER_FEATURE);
        let mut baselines = Vec::with_capacity(n_rows * n_features * (DERIVED_PER_FEATURE - 1));
        let mut values = vec![0.0; n_features];
        for (number, timestamp_ms) in timestamps.iter().enumerate() {
            table.copy_row(number, &mut values);
            derived.set_weekly(*timestamp_ms, &weekly);
            columns.extend(derived.derive(*timestamp_ms, &values));
            baselines.extend_from_slice(derived.recurring().baseline());
        }
        Self { derived, columns, baselines }
    }
}

/// The table, column-major, with the values of each feature repeated in the rows before its first value.
fn impute_before_start(table: &Table) -> Vec<f32> {
    let impute_column = |feature| {
        let column = table.column_slice(feature);
        let begin = column.iter().take_while(|value| value.is_nan()).count();
        let (before, later) = column.split_at(begin);
        let donor = if later.is_empty() { before } else { later };
        donor.iter().cycle().take(begin).chain(later).copied()
    };
    (0..table.n_features()).flat_map(impute_column).collect()
}
