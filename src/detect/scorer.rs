//! What was learned of a group: the two voices of its score.
//!
//! The **forest** hears all columns at once and finds what is odd together; the **tail** hears the two
//! loudest metrics and finds what is far out, also where training saw no movement at all. Each is put on
//! one scale by what training gave, and their mean counts: what both hear is found sooner, and what one alone
//! hears has to be louder (on labelled servers better than the greater of the two).

use super::derived::{DERIVED_PER_FEATURE, DerivedFeatures, Lookback};
use crate::features;
use crate::features::correlation::{Correlation, Residuals};
use crate::features::scale::{self, RobustScale};
use crate::forest::{self, ExtendedForest, ExtendedParams, MAX_FEATURES, Table, quantile};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// Contiguous blocks of training; each is scored by a forest that has not seen it.
const BLOCKS: usize = 5;
/// Metrics that the tail listens to.
const TOP_FEATURES: usize = 2;
/// Rows that know an aspect of their metrics; with fewer a model does without it. A time of day takes a day
/// to be known, the others some minutes.
const MIN_KNOWN_ROWS: [usize; DERIVED_PER_FEATURE] = [256, 8, 8];
/// Least distance of median and 99 % quantile of a voice: on a group that idles all are alike.
const MIN_UNIT: f64 = 0.02;

/// A habit, and what is no more than half above it, counts for so many sigmas to the tail and in explanations:
/// less than what calls, more than nothing.
const RECURRING_SIGMAS: f64 = 5.0;
const RECURRING_MARGIN: f64 = 1.5;

/// Most metrics that vary: the forest sees each in every aspect, and in what the others do not explain of it.
const MAX_VARYING: usize = MAX_FEATURES / (DERIVED_PER_FEATURE + 1);

/// How one metric deviates from what is usual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deviation {
    /// Number of the metric.
    pub feature: usize,
    /// How.
    pub reason: DeviationReason,
    /// How far, in sigmas of training; at least 0.
    pub sigmas: f64,
}

/// How a value is unusual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviationReason {
    /// Its level is not that of this time of day.
    UnusualForThisHour,
    /// It went far within a minute.
    Jumped,
    /// It goes up and down more, or less, than it does.
    Unsteady,
}

impl DeviationReason {
    /// In the order of a metric's columns.
    const ALL: [Self; DERIVED_PER_FEATURE] = [Self::UnusualForThisHour, Self::Jumped, Self::Unsteady];

    /// The value of a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnusualForThisHour => "unusual_for_this_hour",
            Self::Jumped => "jumped",
            Self::Unsteady => "unsteady",
        }
    }

    /// What [`as_str`](Self::as_str) writes.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }

    /// For people.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::UnusualForThisHour => "unusual for this hour",
            Self::Jumped => "jumped",
            Self::Unsteady => "unsteady",
        }
    }
}

/// Where a voice's scores lie in training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreScale {
    median: f64,
    unit: f64,
}

impl ScoreScale {
    fn fit(scores: &[f64]) -> Self {
        let mut scores = scores.to_vec();
        let median = quantile(&mut scores, 0.5);
        Self { median, unit: (quantile(&mut scores, 0.99) - median).max(MIN_UNIT) }
    }

    /// 0 for the median of training, 1 for its 99 % quantile.
    fn apply(self, score: f64) -> f64 {
        (score - self.median) / self.unit
    }
}

/// A forest, a tail, and the scales before them.
#[derive(Clone, Debug, PartialEq)]
pub struct Scorer {
    scales: Vec<Option<RobustScale>>,
    /// Columns that the forest sees: of metrics that were not constant.
    forest_columns: Vec<usize>,
    varying: Vec<usize>,
    residuals: Option<Residuals>,
    forest: Option<ExtendedForest>,
    forest_scale: ScoreScale,
    tail_scale: ScoreScale,
}

/// What voices are made of, for files.
#[derive(Clone, Debug, PartialEq)]
pub struct ScorerParts {
    /// Of each column of a metric (residual to the time of day, difference, deviation), shape `[n_metrics, 3]`;
    /// none where training never had it.
    pub scales: Vec<Option<RobustScale>>,
    /// The metrics that were not constant, ascending.
    pub varying: Vec<usize>,
    /// What of each of them the others do not explain; none below two.
    pub residuals: Option<Residuals>,
    /// None where there is nothing to see for it: no metric varied.
    pub forest: Option<ExtendedForest>,
    /// Where the forest's scores lay in training.
    pub forest_scale: ScoreScale,
    /// Where the tail's scores lay in training.
    pub tail_scale: ScoreScale,
}

/// What is said of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowScore {
    /// The mean of both voices: 0 is the median of training, 1 its 99 % quantile, of each.
    pub raw: f64,
    /// 0.5 less the forest's anomaly score, in [-0.5, 0.5]; negative is anomalous.
    pub decision: f64,
    /// Every metric with its strongest deviation, the strongest first.
    pub deviations: Vec<Deviation>,
}

/// What training gave: the voices, and its rows with raw scores of forests that had not seen them.
pub struct FittedScorer {
    /// The voices.
    pub scorer: Scorer,
    /// The memory after the last row.
    pub derived: DerivedFeatures,
    /// Timestamp in milliseconds, raw score and decision of each row that could be scored, ascending.
    pub scores: Vec<(i64, f64, f64)>,
}

/// A row that columns reach back from.
struct StandardizedRow {
    timestamp_ms: i64,
    /// The strongest deviation of each metric.
    deviations: Vec<Deviation>,
}

/// Training rows as the forest sees them, before there is one.
pub struct TrainingMatrix {
    scorer: Scorer,
    derived: DerivedFeatures,
    rows: Vec<StandardizedRow>,
    /// What the forest sees, shape `[n_rows, n_features]`, column-major.
    forest_input: Vec<f32>,
    n_inputs: usize,
}

impl TrainingMatrix {
    /// Learns scales and correlation from rows in ascending order of time, the values of all metrics in a
    /// table. A metric may begin later than others, NaN before: the others' past counts all the same, and for what the
    /// metric would have said in it stands what it says later.
    ///
    /// # Errors
    /// The forest's own: no rows that any column reaches back from, values that are not finite, too many metrics.
    pub fn new(timestamps: &[i64], table: &Table) -> Result<Self, forest::Error> {
        let (n_rows, n_features) = (table.n_rows(), table.n_features());
        if n_rows == 0 || n_features == 0 {
            return Err(forest::Error::Empty { n_rows, n_features });
        }
        let imputed = impute_before_start(table);
        let with_gaps = table;
        let table = &Table::new(&imputed, n_rows, n_features)?;
        table.check_finite()?;
        let mut derived = DerivedFeatures::new(n_features, Lookback::from_timestamps(timestamps));
        let mut by_row = Vec::with_capacity(n_rows * n_features * DERIVED_PER_FEATURE);
        let mut baselines_by_row = Vec::with_capacity(n_rows * n_features * (DERIVED_PER_FEATURE - 1));
        let mut row = vec![0.0; n_features];
        for (number, timestamp_ms) in timestamps.iter().enumerate() {
            with_gaps.copy_row(number, &mut row);
            by_row.extend(derived.derive(*timestamp_ms, &row));
            baselines_by_row.extend_from_slice(derived.recurring().baseline());
        }

        let is_constant =
            |feature: &usize| table.column(*feature).iter().all(|v| *v == table.column(*feature)[0]);
        let varying: Vec<usize> = (0..n_features).filter(|feature| !is_constant(feature)).collect();
        if varying.len() > MAX_VARYING {
            let (name, value) = ("number of metrics that vary", varying.len());
            let limit = format!("at most {MAX_VARYING}");
            return Err(forest::Error::Unsuitable { name, value, n_rows, n_features, limit });
        }
        let floors: Vec<f64> = (0..n_features)
            .map(|feature| scale::min_sigma(table.column(feature)).expect("checked to be finite"))
            .collect();
        let width = n_features * DERIVED_PER_FEATURE;
        let scales: Vec<Option<RobustScale>> = (0..width)
            .map(|column| {
                let values = by_row.iter().skip(column).step_by(width).copied();
                let known: Vec<f32> = values.filter(|value| value.is_finite()).collect();
                let is_enough = known.len() >= MIN_KNOWN_ROWS[column % DERIVED_PER_FEATURE];
                RobustScale::fit(&known, floors[column / DERIVED_PER_FEATURE]).ok().filter(|_| is_enough)
            })
            .collect();
        if scales.iter().all(Option::is_none) {
            return Err(forest::Error::Empty { n_rows: 0, n_features: width });
        }
        let forest_columns = select_forest_columns(&varying, &scales);

        let varying_columns: Vec<&[f32]> = varying.iter().map(|feature| table.column(*feature)).collect();
        let floors: Vec<f64> = varying.iter().map(|feature| floors[*feature]).collect();
        let correlation = Correlation::fit(&varying_columns, &floors).expect("finite values in few columns");
        let residuals = correlation.map(|correlation| Residuals::fit(correlation, &varying_columns, &floors));
        let identity = ScoreScale { median: 0.0, unit: 1.0 };
        let scorer = Scorer {
            scales,
            forest_columns,
            varying,
            residuals,
            forest: None,
            forest_scale: identity,
            tail_scale: identity,
        };

        impute_incomplete_rows(&mut by_row, &scorer.scales, width);
        let (mut rows, mut inputs_by_row) = (Vec::new(), Vec::new());
        let baseline_rows = baselines_by_row.chunks_exact(n_features * (DERIVED_PER_FEATURE - 1));
        for (number, (columns, baselines)) in by_row.chunks_exact(width).zip(baseline_rows).enumerate() {
            // Only what is not known at all may be missing.
            if (0..n_features).any(|feature| is_missing(columns, &scorer.scales, feature)) {
                continue;
            }
            table.copy_row(number, &mut row);
            let standardized = scorer.standardize(columns);
            inputs_by_row.extend(scorer.forest_input(&row, &standardized));
            let deviations = scorer.strongest_deviations(&standardized, baselines);
            rows.push(StandardizedRow { timestamp_ms: timestamps[number], deviations });
        }
        let n_inputs = scorer.n_inputs();
        let input_column = |input: usize| inputs_by_row.iter().skip(input).step_by(n_inputs).copied();
        let forest_input = (0..n_inputs).flat_map(input_column).collect();
        Ok(Self { scorer, derived, rows, forest_input, n_inputs })
    }

    /// What the forest sees of the rows; none if that is nothing: every metric was constant.
    ///
    /// # Errors
    /// [`forest::Error::Empty`], when columns do not reach back from any row.
    pub fn table(&self) -> Result<Option<Table<'_>>, forest::Error> {
        let (n_rows, n_features) = (self.rows.len(), self.n_inputs);
        match (n_rows, n_features) {
            (0, _) => Err(forest::Error::Empty { n_rows, n_features }),
            (_, 0) => Ok(None),
            _ => Table::new(&self.forest_input, n_rows, n_features).map(Some),
        }
    }

    /// Grows the forest, and others on parts of the rows to score the rest as unseen.
    ///
    /// # Errors
    /// The forest's own; [`forest::Error::Empty`] as [`table`](Self::table) says.
    pub fn fit(self, params: &ExtendedParams, threads: NonZeroUsize) -> Result<FittedScorer, forest::Error> {
        let n_rows = self.rows.len();
        let table = self.table()?;
        let mut scorer = self.scorer.clone();
        let mut row = vec![0.0; self.n_inputs];
        let mut held_out_scores = vec![0.0; n_rows];
        for block in 0..BLOCKS {
            let held_out = block * n_rows / BLOCKS..(block + 1) * n_rows / BLOCKS;
            scorer.forest = match &table {
                Some(table) if held_out.len() < n_rows => {
                    let without = |input| {
                        let input_column = table.column(input);
                        input_column[..held_out.start].iter().chain(&input_column[held_out.end..]).copied()
                    };
                    let train_values: Vec<f32> = (0..self.n_inputs).flat_map(without).collect();
                    let train_table = Table::new(&train_values, n_rows - held_out.len(), self.n_inputs)?;
                    Some(params.fit(&train_table, threads)?)
                }
                _ => None,
            };
            for number in held_out {
                if let Some(table) = &table {
                    table.copy_row(number, &mut row);
                }
                held_out_scores[number] = -scorer.forest_score(&row);
            }
        }
        scorer.forest = table.map(|table| params.fit(&table, threads)).transpose()?;
        let tail_scores: Vec<f64> = self.rows.iter().map(|row| tail_score(&row.deviations)).collect();
        scorer.forest_scale = ScoreScale::fit(&held_out_scores);
        scorer.tail_scale = ScoreScale::fit(&tail_scores);
        let scores = self.rows.iter().zip(held_out_scores.iter().zip(&tail_scores));
        let scores =
            scores.map(|(row, (f, tail))| (row.timestamp_ms, scorer.combine(*f, *tail), 0.5 - f)).collect();
        Ok(FittedScorer { scorer, derived: self.derived, scores })
    }
}

/// The table, column-major, where for what a metric was before it began stands what it is later, over and over.
fn impute_before_start(table: &Table) -> Vec<f32> {
    let impute_column = |feature| {
        let column = table.column(feature);
        let begin = column.iter().take_while(|value| value.is_nan()).count();
        let (before, later) = column.split_at(begin);
        let donor = if later.is_empty() { before } else { later };
        donor.iter().cycle().take(begin).chain(later).copied()
    };
    (0..table.n_features()).flat_map(impute_column).collect()
}

/// Does a row not know of a metric what most rows do?
fn is_missing(columns: &[f32], scales: &[Option<RobustScale>], feature: usize) -> bool {
    let feature_columns = feature * DERIVED_PER_FEATURE..(feature + 1) * DERIVED_PER_FEATURE;
    feature_columns.into_iter().any(|column| scales[column].is_some() && !columns[column].is_finite())
}

/// Completes the rows, of `width` columns each, that lack at most half of the metrics: with what other rows know of
/// each, one after the other, so that all its columns are of one moment.
fn impute_incomplete_rows(by_row: &mut [f32], scales: &[Option<RobustScale>], width: usize) {
    let n_features = width / DERIVED_PER_FEATURE;
    let missing_features = |row: &[f32]| -> Vec<usize> {
        (0..n_features).filter(|feature| is_missing(row, scales, *feature)).collect()
    };
    let rows = by_row.chunks_exact(width).map(missing_features).enumerate();
    let incomplete_rows: Vec<(usize, Vec<usize>)> =
        rows.filter(|(_, missing)| !missing.is_empty() && 2 * missing.len() <= n_features).collect();
    for feature in 0..n_features {
        let rows = by_row.chunks_exact(width).enumerate();
        let complete_rows: Vec<usize> =
            rows.filter(|(_, row)| !is_missing(row, scales, feature)).map(|(number, _)| number).collect();
        let recipients =
            incomplete_rows.iter().filter(|(_, missing)| missing.binary_search(&feature).is_ok());
        for ((to, _), from) in recipients.zip(complete_rows.into_iter().cycle()) {
            let from = from * width + feature * DERIVED_PER_FEATURE;
            by_row.copy_within(from..from + DERIVED_PER_FEATURE, to * width + feature * DERIVED_PER_FEATURE);
        }
    }
}

/// Columns that the forest sees.
fn select_forest_columns(varying: &[usize], scales: &[Option<RobustScale>]) -> Vec<usize> {
    let feature_columns =
        |feature: &usize| feature * DERIVED_PER_FEATURE..(feature + 1) * DERIVED_PER_FEATURE;
    varying.iter().flat_map(feature_columns).filter(|column| scales[*column].is_some()).collect()
}

impl ScorerParts {
    /// Number of values that a forest sees.
    pub fn n_inputs(&self) -> usize {
        let feature_scales = |feature: &usize| {
            self.scales
                .get(feature * DERIVED_PER_FEATURE..(feature + 1) * DERIVED_PER_FEATURE)
                .unwrap_or_default()
        };
        let known = self.varying.iter().flat_map(feature_scales).flatten().count();
        known + self.residuals.as_ref().map_or(0, |residuals| residuals.scales.len())
    }
}

impl Scorer {
    /// Voices from a file.
    ///
    /// # Errors
    /// [`features::Error::Part`] if the parts do not fit each other.
    pub fn new(parts: ScorerParts) -> Result<Self, features::Error> {
        let ScorerParts {
            scales,
            varying,
            residuals,
            forest,
            forest_scale: forest_level,
            tail_scale: tail_level,
        } = parts;
        let fault =
            |part, value: String, limit: String| Err(features::Error::InvalidPart { part, value, limit });
        if scales.is_empty() || scales.len() % DERIVED_PER_FEATURE != 0 {
            return fault(
                "number of scales",
                scales.len().to_string(),
                format!("a multiple of {DERIVED_PER_FEATURE}"),
            );
        }
        if let Some(pair) = varying.windows(2).find(|pair| pair[0] >= pair[1]) {
            return fault("metric", pair[1].to_string(), format!("above {}, the one before", pair[0]));
        }
        let n_features = scales.len() / DERIVED_PER_FEATURE;
        if let Some(last) = varying.last().filter(|last| **last >= n_features) {
            return fault("metric", last.to_string(), format!("below {n_features}, the number of metrics"));
        }
        if let Some(Residuals { correlation, scales }) = &residuals {
            for (part, length) in [
                ("number of correlated metrics", correlation.n_metrics()),
                ("number of residual scales", scales.len()),
            ] {
                if length != varying.len() {
                    return fault(
                        part,
                        length.to_string(),
                        format!("{}, the metrics that vary", varying.len()),
                    );
                }
            }
        }
        for ScoreScale { median, unit } in [forest_level, tail_level] {
            if !(median.is_finite() && unit.is_finite() && unit > 0.0) {
                return fault("level", format!("{median}, {unit}"), "finite, its unit above 0".into());
            }
        }
        let forest_columns = select_forest_columns(&varying, &scales);
        let scorer = Self {
            scales,
            forest_columns,
            varying,
            residuals,
            forest: None,
            forest_scale: forest_level,
            tail_scale: tail_level,
        };
        let (width, expected) = (forest.as_ref().map_or(0, ExtendedForest::n_features), scorer.n_inputs());
        if width != expected {
            let limit = format!("{expected}, the number of columns and residuals");
            return fault("width of the forest", width.to_string(), limit);
        }
        Ok(Self { forest, ..scorer })
    }

    /// What they are made of, for files.
    pub fn parts(&self) -> ScorerParts {
        let Self { scales, varying, residuals, forest, .. } = self.clone();
        let (forest_level, tail_level) = (self.forest_scale, self.tail_scale);
        ScorerParts { scales, varying, residuals, forest, forest_scale: forest_level, tail_scale: tail_level }
    }

    /// Number of metrics.
    pub fn n_features(&self) -> usize {
        self.scales.len() / DERIVED_PER_FEATURE
    }

    /// Says how unusual a row is: its values, its columns of the [`Memory`], and what of them is a
    /// [habit](super::habits). What the others do not explain of the metrics of `unheard` does not count.
    ///
    /// # Panics
    /// If there are not as many as in training.
    pub fn score(&self, values: &[f32], columns: &[f32], baselines: &[f32], masked: &[usize]) -> RowScore {
        let standardized = self.standardize(columns);
        let mut forest_input = self.forest_input(values, &standardized);
        if self.residuals.is_some() {
            let positions = masked.iter().filter_map(|feature| self.varying.binary_search(feature).ok());
            positions.for_each(|position| forest_input[self.forest_columns.len() + position] = 0.0);
        }
        let score_samples = self.forest_score(&forest_input);
        let mut deviations = self.strongest_deviations(&standardized, baselines);
        let raw = self.combine(-score_samples, tail_score(&deviations));
        deviations.sort_by(|a, b| b.sigmas.total_cmp(&a.sigmas));
        RowScore { raw, decision: 0.5 + score_samples, deviations }
    }

    /// The range in which the level of a metric is usual, around what its time of day makes expect: the
    /// residuals of 99 % of the training rows. NaN before a first day.
    pub fn expected_range(&self, feature: usize, expected: f64) -> [f64; 3] {
        let Some(scale) = self.scales[feature * DERIVED_PER_FEATURE] else { return [f64::NAN; 3] };
        let middle = expected + scale.center();
        let half_width = scale::SIGMA_QUANTILE_IN_SIGMAS * scale.sigma();
        [middle - half_width, middle, middle + half_width]
    }

    /// A value and three sigmas to both sides of it, by the first aspect that has some.
    pub fn typical_range(&self, feature: usize, value: f32) -> [f32; 2] {
        let sigma = self.scales[feature * DERIVED_PER_FEATURE..(feature + 1) * DERIVED_PER_FEATURE]
            .iter()
            .flatten()
            .next();
        let half_width = 3.0 * sigma.map_or(1.0, RobustScale::sigma) as f32;
        [value - half_width, value + half_width]
    }

    /// Columns in sigmas; what is not known, or was not in training, is usual.
    fn standardize(&self, columns: &[f32]) -> Vec<f32> {
        let in_sigmas = |(value, scale): (&f32, &Option<RobustScale>)| match scale {
            Some(scale) if value.is_finite() => scale.apply(*value),
            _ => 0.0,
        };
        columns.iter().zip(&self.scales).map(in_sigmas).collect()
    }

    /// What the forest sees of a row.
    fn forest_input(&self, values: &[f32], standardized: &[f32]) -> Vec<f32> {
        let mut input: Vec<f32> = self.forest_columns.iter().map(|column| standardized[*column]).collect();
        if let Some(Residuals { correlation, scales }) = &self.residuals {
            let varying: Vec<f32> = self.varying.iter().map(|feature| values[*feature]).collect();
            let residuals = correlation.apply(&varying);
            input.extend(scales.iter().zip(residuals).map(|(scale, residual)| scale.apply(residual)));
        }
        input
    }

    /// Number of values that the forest sees.
    fn n_inputs(&self) -> usize {
        self.forest_columns.len() + self.residuals.as_ref().map_or(0, |residuals| residuals.scales.len())
    }

    fn forest_score(&self, input: &[f32]) -> f64 {
        self.forest.as_ref().map_or(-0.5, |forest| forest.score_samples(input))
    }

    /// The strongest deviation of each metric, in the order of the metrics.
    fn strongest_deviations(&self, standardized: &[f32], baselines: &[f32]) -> Vec<Deviation> {
        let strongest_of_feature = |(feature, columns): (usize, &[f32])| {
            let derived = columns.iter().zip(DeviationReason::ALL).enumerate();
            let deviations = derived.map(|(index, (y, reason))| {
                let baseline = index
                    .checked_sub(1)
                    .map_or(0.0, |column| baselines[feature * (DERIVED_PER_FEATURE - 1) + column]);
                let sigmas = self.discount_recurring(
                    feature * DERIVED_PER_FEATURE + index,
                    f64::from(y.abs()),
                    baseline,
                );
                Deviation { feature, reason, sigmas }
            });
            deviations.reduce(|a, b| if b.sigmas > a.sigmas { b } else { a }).expect("a metric has columns")
        };
        standardized.chunks_exact(DERIVED_PER_FEATURE).enumerate().map(strongest_of_feature).collect()
    }

    /// How far a column deviates, in sigmas, where the same every day counts for little.
    fn discount_recurring(&self, column: usize, sigmas: f64, baseline: f32) -> f64 {
        let recurring_limit = match &self.scales[column] {
            Some(scale) if baseline > 0.0 => RECURRING_MARGIN * f64::from(scale.apply(baseline)),
            _ => 0.0,
        };
        if sigmas <= recurring_limit { sigmas.min(RECURRING_SIGMAS) } else { sigmas }
    }

    fn combine(&self, forest: f64, tail: f64) -> f64 {
        0.5 * (self.forest_scale.apply(forest) + self.tail_scale.apply(tail))
    }
}

/// Mean of the two loudest metrics, each as ln(1 + sigmas).
fn tail_score(deviations: &[Deviation]) -> f64 {
    let mut log_sigmas: Vec<f64> = deviations.iter().map(|deviation| deviation.sigmas.ln_1p()).collect();
    log_sigmas.sort_by(|a, b| b.total_cmp(a));
    log_sigmas.truncate(TOP_FEATURES);
    log_sigmas.iter().sum::<f64>() / log_sigmas.len().max(1) as f64
}
