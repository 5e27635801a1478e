//! What was learned of a group: the two voices of its score.
//!
//! The **forest** hears all columns at once and finds what is odd together; the **tail** hears the two
//! loudest metrics and finds what is far out, also where training saw no movement at all. Each is put on
//! one scale by what training gave, and their mean counts: what both hear is found sooner, and what one alone
//! hears has to be louder (on labelled servers better than the greater of the two).

use super::memory::{ASPECTS, Memory, Reach};
use crate::features::correlation::Correlation;
use crate::features::scale::{self, Scale};
use crate::forest::{self, ExtendedForest, ExtendedParams, MAX_FEATURES, Table, quantile};
use crate::models::extended::Residuals;
use std::num::NonZeroUsize;

/// Contiguous blocks of training; each is scored by a forest that has not seen it.
const BLOCKS: usize = 5;
/// Metrics that the tail listens to.
const LOUDEST: usize = 2;
/// Rows that all columns reach back from; with fewer a model does without the time of day.
const ENOUGH: usize = 256;
/// Least distance of median and 99 % quantile of a voice: on a group that idles all are alike.
const LEAST_UNIT: f64 = 0.02;

/// Most metrics that vary: the forest sees each in every aspect, and in what the others do not explain of it.
const MAX_VARYING: usize = MAX_FEATURES / (ASPECTS + 1);

/// How one metric deviates from what is usual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deviation {
    /// Number of the metric.
    pub metric: usize,
    /// How.
    pub reason: Reason,
    /// How far, in sigmas of training; at least 0.
    pub sigmas: f64,
}

/// How a value is unusual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its level is not that of this time of day.
    UnusualForThisHour,
    /// It went far within a minute.
    Jumped,
    /// It goes up and down more, or less, than it does.
    Unsteady,
}

impl Reason {
    /// In the order of a metric's columns.
    const ALL: [Self; ASPECTS] = [Self::UnusualForThisHour, Self::Jumped, Self::Unsteady];

    /// The value of a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnusualForThisHour => "unusual_for_this_hour",
            Self::Jumped => "jumped",
            Self::Unsteady => "unsteady",
        }
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
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    median: f64,
    unit: f64,
}

impl Level {
    fn of(scores: &[f64]) -> Self {
        let mut scores = scores.to_vec();
        let median = quantile(&mut scores, 0.5);
        Self { median, unit: (quantile(&mut scores, 0.99) - median).max(LEAST_UNIT) }
    }

    /// 0 for the median of training, 1 for its 99 % quantile.
    fn apply(self, score: f64) -> f64 {
        (score - self.median) / self.unit
    }
}

/// A forest, a tail, and the scales before them.
#[derive(Clone, Debug, PartialEq)]
pub struct Voices {
    /// Of each column of the [`Memory`], shape `[n_metrics, ASPECTS]`; none where training never had it.
    scales: Vec<Option<Scale>>,
    /// Columns that the forest sees: of metrics that were not constant.
    columns: Vec<usize>,
    /// The metrics that were not constant.
    varying: Vec<usize>,
    /// What of each of them the others do not explain.
    residuals: Option<Residuals>,
    /// None where no metric varied.
    forest: Option<ExtendedForest>,
    forest_level: Level,
    tail_level: Level,
}

/// What is said of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The mean of both voices: 0 is the median of training, 1 its 99 % quantile, of each.
    pub raw: f64,
    /// 0.5 less the forest's anomaly score, in [-0.5, 0.5]; negative is anomalous.
    pub decision: f64,
    /// Every metric with its strongest deviation, the strongest first.
    pub deviations: Vec<Deviation>,
}

/// What training gave: the voices, and its rows with raw scores of forests that had not seen them.
pub struct Learned {
    /// The voices.
    pub voices: Voices,
    /// The memory after the last row.
    pub memory: Memory,
    /// Timestamp in milliseconds and raw score of each row that could be scored, ascending.
    pub scores: Vec<(i64, f64)>,
}

impl Voices {
    /// Learns from rows in ascending order of time, the values of all metrics in a table.
    ///
    /// # Errors
    /// The forest's own: no rows, values that are not finite, parameters that do not suit.
    pub fn learn(
        timestamps: &[i64],
        table: &Table,
        params: &ExtendedParams,
        threads: NonZeroUsize,
    ) -> Result<Learned, forest::Error> {
        let (n_rows, n_metrics) = (table.n_rows(), table.n_features());
        if n_rows == 0 || n_metrics == 0 {
            return Err(forest::Error::Empty { n_rows, n_features: n_metrics });
        }
        table.check_finite()?;
        let mut memory = Memory::new(n_metrics, Reach::of(timestamps));
        let mut by_row = Vec::with_capacity(n_rows * n_metrics * ASPECTS);
        let mut row = vec![0.0; n_metrics];
        for (number, timestamp_ms) in timestamps.iter().enumerate() {
            table.copy_row(number, &mut row);
            by_row.extend(memory.columns(*timestamp_ms, &row));
        }

        let constant = |metric: &usize| table.column(*metric).iter().all(|v| *v == table.column(*metric)[0]);
        let varying: Vec<usize> = (0..n_metrics).filter(|metric| !constant(metric)).collect();
        if varying.len() > MAX_VARYING {
            let (name, value) = ("number of metrics that vary", varying.len());
            let limit = format!("at most {MAX_VARYING}");
            return Err(forest::Error::Unsuitable { name, value, n_rows, n_features: n_metrics, limit });
        }
        let floors: Vec<f64> = (0..n_metrics)
            .map(|metric| scale::floor(table.column(metric)).expect("checked to be finite"))
            .collect();
        let width = n_metrics * ASPECTS;
        let is_finite = |row: &&[f32]| row.iter().all(|value| value.is_finite());
        let knows_days = by_row.chunks_exact(width).filter(is_finite).count() >= ENOUGH;
        let scales: Vec<Option<Scale>> = (0..width)
            .map(|column| {
                let is_residual = column % ASPECTS == 0;
                let values = by_row.iter().skip(column).step_by(width).copied();
                let known: Vec<f32> = values.filter(|value| value.is_finite()).collect();
                Scale::fit(&known, floors[column / ASPECTS]).ok().filter(|_| knows_days || !is_residual)
            })
            .collect();
        let columns: Vec<usize> = varying
            .iter()
            .flat_map(|metric| metric * ASPECTS..(metric + 1) * ASPECTS)
            .filter(|column| scales[*column].is_some())
            .collect();

        let of_varying: Vec<&[f32]> = varying.iter().map(|metric| table.column(*metric)).collect();
        let floors: Vec<f64> = varying.iter().map(|metric| floors[*metric]).collect();
        let correlation = Correlation::fit(&of_varying, &floors).expect("finite values in few columns");
        let residuals = correlation.map(|correlation| Residuals::fit(correlation, &of_varying, &floors));
        let level = Level { median: 0.0, unit: 1.0 };
        let mut voices = Self {
            scales,
            columns,
            varying,
            residuals,
            forest: None,
            forest_level: level,
            tail_level: level,
        };

        // Rows that every column reaches back from; only the time of day may be unknown.
        let needed =
            |(column, value): (usize, &f32)| value.is_finite() || column % ASPECTS == 0 && !knows_days;
        let standard: Vec<(i64, Vec<f32>, Vec<f32>)> = by_row
            .chunks_exact(width)
            .enumerate()
            .filter(|(_, columns)| columns.iter().enumerate().all(needed))
            .map(|(number, columns)| {
                table.copy_row(number, &mut row);
                let deviations = voices.standardise(columns);
                let sight = voices.sight(&row, &deviations);
                (timestamps[number], deviations, sight)
            })
            .collect();
        let n_rows = standard.len();
        let n_features =
            voices.columns.len() + voices.residuals.as_ref().map_or(0, |residuals| residuals.scales.len());
        if n_rows == 0 {
            return Err(forest::Error::Empty { n_rows, n_features });
        }
        let forest_of = |numbers: &[usize]| -> Result<Option<ExtendedForest>, forest::Error> {
            if n_features == 0 || numbers.is_empty() {
                return Ok(None);
            }
            let values: Vec<f32> = (0..n_features)
                .flat_map(|column| numbers.iter().map(move |number| (column, *number)))
                .map(|(column, number)| standard[number].2[column])
                .collect();
            params.fit(&Table::new(&values, numbers.len(), n_features)?, threads).map(Some)
        };
        let mut unseen = vec![0.0; n_rows];
        for block in 0..BLOCKS {
            let held = block * n_rows / BLOCKS..(block + 1) * n_rows / BLOCKS;
            let others: Vec<usize> = (0..n_rows).filter(|number| !held.contains(number)).collect();
            voices.forest = forest_of(&others)?;
            for number in held {
                unseen[number] = -voices.forest_score(&standard[number].2);
            }
        }
        voices.forest = forest_of(&(0..n_rows).collect::<Vec<usize>>())?;
        let tails: Vec<f64> =
            standard.iter().map(|(_, deviations, _)| tail(&strongest(deviations))).collect();
        voices.forest_level = Level::of(&unseen);
        voices.tail_level = Level::of(&tails);
        let raw = |number: usize| voices.mean(unseen[number], tails[number]);
        let scores = (0..n_rows).map(|number| (standard[number].0, raw(number))).collect();
        Ok(Learned { voices, memory, scores })
    }

    /// Says how unusual a row is: its values, and its columns of the [`Memory`].
    ///
    /// # Panics
    /// If there are not as many as in training.
    pub fn judge(&self, values: &[f32], columns: &[f32]) -> Verdict {
        let standard = self.standardise(columns);
        let score_samples = self.forest_score(&self.sight(values, &standard));
        let mut deviations = strongest(&standard);
        let raw = self.mean(-score_samples, tail(&deviations));
        deviations.sort_by(|a, b| b.sigmas.total_cmp(&a.sigmas));
        Verdict { raw, decision: 0.5 + score_samples, deviations }
    }

    /// The range in which the level of a metric is usual, around what its time of day makes expect: the
    /// residuals of 99 % of the training rows. NaN before a first day.
    pub fn usual(&self, metric: usize, expected: f64) -> [f64; 3] {
        let Some(scale) = self.scales[metric * ASPECTS] else { return [f64::NAN; 3] };
        let middle = expected + scale.center();
        let reach = scale::USUAL_SIGMAS * scale.sigma();
        [middle - reach, middle, middle + reach]
    }

    /// Columns in sigmas; what is not known, or was not in training, is usual.
    fn standardise(&self, columns: &[f32]) -> Vec<f32> {
        let standard = |(value, scale): (&f32, &Option<Scale>)| match scale {
            Some(scale) if value.is_finite() => scale.apply(*value),
            _ => 0.0,
        };
        columns.iter().zip(&self.scales).map(standard).collect()
    }

    /// What the forest sees of a row.
    fn sight(&self, values: &[f32], standard: &[f32]) -> Vec<f32> {
        let mut sight: Vec<f32> = self.columns.iter().map(|column| standard[*column]).collect();
        if let Some(Residuals { correlation, scales }) = &self.residuals {
            let varying: Vec<f32> = self.varying.iter().map(|metric| values[*metric]).collect();
            let residuals = correlation.apply(&varying);
            sight.extend(scales.iter().zip(residuals).map(|(scale, residual)| scale.apply(residual)));
        }
        sight
    }

    fn forest_score(&self, sight: &[f32]) -> f64 {
        self.forest.as_ref().map_or(-0.5, |forest| forest.score_samples(sight))
    }

    fn mean(&self, forest: f64, tail: f64) -> f64 {
        0.5 * (self.forest_level.apply(forest) + self.tail_level.apply(tail))
    }
}

/// The strongest deviation of each metric, in the order of the metrics.
fn strongest(standard: &[f32]) -> Vec<Deviation> {
    let of_metric = |(metric, columns): (usize, &[f32])| {
        let aspects = columns.iter().zip(Reason::ALL);
        let deviations = aspects.map(|(y, reason)| Deviation { metric, reason, sigmas: f64::from(y.abs()) });
        deviations.reduce(|a, b| if b.sigmas > a.sigmas { b } else { a }).expect("a metric has columns")
    };
    standard.chunks_exact(ASPECTS).enumerate().map(of_metric).collect()
}

/// Mean of the two loudest metrics, each as ln(1 + sigmas).
fn tail(deviations: &[Deviation]) -> f64 {
    let mut loud: Vec<f64> = deviations.iter().map(|deviation| deviation.sigmas.ln_1p()).collect();
    loud.sort_by(|a, b| b.total_cmp(a));
    loud.truncate(LOUDEST);
    loud.iter().sum::<f64>() / loud.len().max(1) as f64
}
