//! What was learned of a group: the two voices of its score.
//!
//! The **forest** hears all columns at once and finds what is odd together; the **tail** hears the two
//! loudest metrics and finds what is far out, also where training saw no movement at all. Each is put on
//! one scale by what training gave, and their mean counts: what both hear is found sooner, and what one alone
//! hears has to be louder (on labelled servers better than the greater of the two).

use super::memory::{ASPECTS, Memory, Reach};
use crate::features;
use crate::features::correlation::{Correlation, Residuals};
use crate::features::scale::{self, Scale};
use crate::forest::{self, ExtendedForest, ExtendedParams, MAX_FEATURES, Table, quantile};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// Contiguous blocks of training; each is scored by a forest that has not seen it.
const BLOCKS: usize = 5;
/// Metrics that the tail listens to.
const LOUDEST: usize = 2;
/// Rows that know an aspect of their metrics; with fewer a model does without it. A time of day takes a day
/// to be known, the others some minutes.
const ENOUGH: [usize; ASPECTS] = [256, 8, 8];
/// Least distance of median and 99 % quantile of a voice: on a group that idles all are alike.
const LEAST_UNIT: f64 = 0.02;

/// A habit, and what is no more than half above it, counts for so many sigmas to the tail and in explanations:
/// less than what calls, more than nothing.
const HABIT_SIGMAS: f64 = 5.0;
const HABIT_MARGIN: f64 = 1.5;

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
pub struct Level {
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
    scales: Vec<Option<Scale>>,
    /// Columns that the forest sees: of metrics that were not constant.
    columns: Vec<usize>,
    varying: Vec<usize>,
    residuals: Option<Residuals>,
    forest: Option<ExtendedForest>,
    forest_level: Level,
    tail_level: Level,
}

/// What voices are made of, for files.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// Of each column of a metric (residual to the time of day, difference, deviation), shape `[n_metrics, 3]`;
    /// none where training never had it.
    pub scales: Vec<Option<Scale>>,
    /// The metrics that were not constant, ascending.
    pub varying: Vec<usize>,
    /// What of each of them the others do not explain; none below two.
    pub residuals: Option<Residuals>,
    /// None where there is nothing to see for it: no metric varied.
    pub forest: Option<ExtendedForest>,
    /// Where the forest's scores lay in training.
    pub forest_level: Level,
    /// Where the tail's scores lay in training.
    pub tail_level: Level,
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
    /// Timestamp in milliseconds, raw score and decision of each row that could be scored, ascending.
    pub scores: Vec<(i64, f64, f64)>,
}

/// A row that columns reach back from.
struct Standard {
    timestamp_ms: i64,
    /// The strongest deviation of each metric.
    deviations: Vec<Deviation>,
}

/// Training rows as the forest sees them, before there is one.
pub struct Prepared {
    voices: Voices,
    memory: Memory,
    rows: Vec<Standard>,
    /// What the forest sees, shape `[n_rows, n_features]`, column-major.
    sight: Vec<f32>,
    n_features: usize,
}

impl Prepared {
    /// Learns scales and correlation from rows in ascending order of time, the values of all metrics in a
    /// table. A metric may begin later than others, NaN before: the others' past counts all the same, and for what the
    /// metric would have said in it stands what it says later.
    ///
    /// # Errors
    /// The forest's own: no rows that any column reaches back from, values that are not finite, too many metrics.
    pub fn learn(timestamps: &[i64], table: &Table) -> Result<Self, forest::Error> {
        let (n_rows, n_metrics) = (table.n_rows(), table.n_features());
        if n_rows == 0 || n_metrics == 0 {
            return Err(forest::Error::Empty { n_rows, n_features: n_metrics });
        }
        let filled = filled(table);
        let known = table;
        let table = &Table::new(&filled, n_rows, n_metrics)?;
        table.check_finite()?;
        let mut memory = Memory::new(n_metrics, Reach::of(timestamps));
        let mut by_row = Vec::with_capacity(n_rows * n_metrics * ASPECTS);
        let mut habits = Vec::with_capacity(n_rows * n_metrics * (ASPECTS - 1));
        let mut row = vec![0.0; n_metrics];
        for (number, timestamp_ms) in timestamps.iter().enumerate() {
            known.copy_row(number, &mut row);
            by_row.extend(memory.columns(*timestamp_ms, &row));
            habits.extend_from_slice(memory.habits().usual());
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
        let scales: Vec<Option<Scale>> = (0..width)
            .map(|column| {
                let values = by_row.iter().skip(column).step_by(width).copied();
                let known: Vec<f32> = values.filter(|value| value.is_finite()).collect();
                let is_enough = known.len() >= ENOUGH[column % ASPECTS];
                Scale::fit(&known, floors[column / ASPECTS]).ok().filter(|_| is_enough)
            })
            .collect();
        if scales.iter().all(Option::is_none) {
            return Err(forest::Error::Empty { n_rows: 0, n_features: width });
        }
        let columns = columns(&varying, &scales);

        let of_varying: Vec<&[f32]> = varying.iter().map(|metric| table.column(*metric)).collect();
        let floors: Vec<f64> = varying.iter().map(|metric| floors[*metric]).collect();
        let correlation = Correlation::fit(&of_varying, &floors).expect("finite values in few columns");
        let residuals = correlation.map(|correlation| Residuals::fit(correlation, &of_varying, &floors));
        let level = Level { median: 0.0, unit: 1.0 };
        let voices = Voices {
            scales,
            columns,
            varying,
            residuals,
            forest: None,
            forest_level: level,
            tail_level: level,
        };

        complete(&mut by_row, &voices.scales, width);
        let (mut rows, mut by_row_sight) = (Vec::new(), Vec::new());
        let habits = habits.chunks_exact(n_metrics * (ASPECTS - 1));
        for (number, (columns, habits)) in by_row.chunks_exact(width).zip(habits).enumerate() {
            // Only what is not known at all may be missing.
            if (0..n_metrics).any(|metric| lacks(columns, &voices.scales, metric)) {
                continue;
            }
            table.copy_row(number, &mut row);
            let standard = voices.standardise(columns);
            by_row_sight.extend(voices.sight(&row, &standard));
            let deviations = voices.strongest(&standard, habits);
            rows.push(Standard { timestamp_ms: timestamps[number], deviations });
        }
        let n_features = voices.width();
        let at = |feature: usize| by_row_sight.iter().skip(feature).step_by(n_features).copied();
        let sight = (0..n_features).flat_map(at).collect();
        Ok(Self { voices, memory, rows, sight, n_features })
    }

    /// What the forest sees of the rows; none if that is nothing: every metric was constant.
    ///
    /// # Errors
    /// [`forest::Error::Empty`], when columns do not reach back from any row.
    pub fn table(&self) -> Result<Option<Table<'_>>, forest::Error> {
        let (n_rows, n_features) = (self.rows.len(), self.n_features);
        match (n_rows, n_features) {
            (0, _) => Err(forest::Error::Empty { n_rows, n_features }),
            (_, 0) => Ok(None),
            _ => Table::new(&self.sight, n_rows, n_features).map(Some),
        }
    }

    /// Grows the forest, and others on parts of the rows to score the rest as unseen.
    ///
    /// # Errors
    /// The forest's own; [`forest::Error::Empty`] as [`table`](Self::table) says.
    pub fn grow(self, params: &ExtendedParams, threads: NonZeroUsize) -> Result<Learned, forest::Error> {
        let n_rows = self.rows.len();
        let table = self.table()?;
        let mut voices = self.voices.clone();
        let mut row = vec![0.0; self.n_features];
        let mut unseen = vec![0.0; n_rows];
        for block in 0..BLOCKS {
            let held = block * n_rows / BLOCKS..(block + 1) * n_rows / BLOCKS;
            voices.forest = match &table {
                Some(table) if held.len() < n_rows => {
                    let without = |feature| {
                        let column = table.column(feature);
                        column[..held.start].iter().chain(&column[held.end..]).copied()
                    };
                    let others: Vec<f32> = (0..self.n_features).flat_map(without).collect();
                    let others = Table::new(&others, n_rows - held.len(), self.n_features)?;
                    Some(params.fit(&others, threads)?)
                }
                _ => None,
            };
            for number in held {
                if let Some(table) = &table {
                    table.copy_row(number, &mut row);
                }
                unseen[number] = -voices.forest_score(&row);
            }
        }
        voices.forest = table.map(|table| params.fit(&table, threads)).transpose()?;
        let tails: Vec<f64> = self.rows.iter().map(|row| tail(&row.deviations)).collect();
        voices.forest_level = Level::of(&unseen);
        voices.tail_level = Level::of(&tails);
        let scores = self.rows.iter().zip(unseen.iter().zip(&tails));
        let scores =
            scores.map(|(row, (f, tail))| (row.timestamp_ms, voices.mean(*f, *tail), 0.5 - f)).collect();
        Ok(Learned { voices, memory: self.memory, scores })
    }
}

/// The table, column-major, where for what a metric was before it began stands what it is later, over and over.
fn filled(table: &Table) -> Vec<f32> {
    let fill = |metric| {
        let column = table.column(metric);
        let begin = column.iter().take_while(|value| value.is_nan()).count();
        let (before, later) = column.split_at(begin);
        let standing = if later.is_empty() { before } else { later };
        standing.iter().cycle().take(begin).chain(later).copied()
    };
    (0..table.n_features()).flat_map(fill).collect()
}

/// Does a row not know of a metric what most rows do?
fn lacks(columns: &[f32], scales: &[Option<Scale>], metric: usize) -> bool {
    let of_metric = metric * ASPECTS..(metric + 1) * ASPECTS;
    of_metric.into_iter().any(|column| scales[column].is_some() && !columns[column].is_finite())
}

/// Completes the rows, of `width` columns each, that lack at most half of the metrics: with what other rows know of
/// each, one after the other, so that all its columns are of one moment.
fn complete(by_row: &mut [f32], scales: &[Option<Scale>], width: usize) {
    let n_metrics = width / ASPECTS;
    let lacking =
        |row: &[f32]| -> Vec<usize> { (0..n_metrics).filter(|metric| lacks(row, scales, *metric)).collect() };
    let rows = by_row.chunks_exact(width).map(lacking).enumerate();
    let incomplete: Vec<(usize, Vec<usize>)> =
        rows.filter(|(_, lacking)| !lacking.is_empty() && 2 * lacking.len() <= n_metrics).collect();
    for metric in 0..n_metrics {
        let rows = by_row.chunks_exact(width).enumerate();
        let whole: Vec<usize> =
            rows.filter(|(_, row)| !lacks(row, scales, metric)).map(|(number, _)| number).collect();
        let to = incomplete.iter().filter(|(_, lacking)| lacking.binary_search(&metric).is_ok());
        for ((to, _), from) in to.zip(whole.into_iter().cycle()) {
            let from = from * width + metric * ASPECTS;
            by_row.copy_within(from..from + ASPECTS, to * width + metric * ASPECTS);
        }
    }
}

/// Columns that the forest sees.
fn columns(varying: &[usize], scales: &[Option<Scale>]) -> Vec<usize> {
    let of_metric = |metric: &usize| metric * ASPECTS..(metric + 1) * ASPECTS;
    varying.iter().flat_map(of_metric).filter(|column| scales[*column].is_some()).collect()
}

impl Parts {
    /// Number of values that a forest sees.
    pub fn n_columns(&self) -> usize {
        let of_metric =
            |metric: &usize| self.scales.get(metric * ASPECTS..(metric + 1) * ASPECTS).unwrap_or_default();
        let known = self.varying.iter().flat_map(of_metric).flatten().count();
        known + self.residuals.as_ref().map_or(0, |residuals| residuals.scales.len())
    }
}

impl Voices {
    /// Voices from a file.
    ///
    /// # Errors
    /// [`features::Error::Part`] if the parts do not fit each other.
    pub fn new(parts: Parts) -> Result<Self, features::Error> {
        let Parts { scales, varying, residuals, forest, forest_level, tail_level } = parts;
        let fault = |part, value: String, limit: String| Err(features::Error::Part { part, value, limit });
        if scales.is_empty() || scales.len() % ASPECTS != 0 {
            return fault("number of scales", scales.len().to_string(), format!("a multiple of {ASPECTS}"));
        }
        if let Some(pair) = varying.windows(2).find(|pair| pair[0] >= pair[1]) {
            return fault("metric", pair[1].to_string(), format!("above {}, the one before", pair[0]));
        }
        let n_metrics = scales.len() / ASPECTS;
        if let Some(last) = varying.last().filter(|last| **last >= n_metrics) {
            return fault("metric", last.to_string(), format!("below {n_metrics}, the number of metrics"));
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
        for Level { median, unit } in [forest_level, tail_level] {
            if !(median.is_finite() && unit.is_finite() && unit > 0.0) {
                return fault("level", format!("{median}, {unit}"), "finite, its unit above 0".into());
            }
        }
        let columns = columns(&varying, &scales);
        let voices = Self { scales, columns, varying, residuals, forest: None, forest_level, tail_level };
        let (width, expected) = (forest.as_ref().map_or(0, ExtendedForest::n_features), voices.width());
        if width != expected {
            let limit = format!("{expected}, the number of columns and residuals");
            return fault("width of the forest", width.to_string(), limit);
        }
        Ok(Self { forest, ..voices })
    }

    /// What they are made of, for files.
    pub fn parts(&self) -> Parts {
        let Self { scales, varying, residuals, forest, .. } = self.clone();
        let (forest_level, tail_level) = (self.forest_level, self.tail_level);
        Parts { scales, varying, residuals, forest, forest_level, tail_level }
    }

    /// Number of metrics.
    pub fn n_metrics(&self) -> usize {
        self.scales.len() / ASPECTS
    }

    /// Says how unusual a row is: its values, its columns of the [`Memory`], and what of them is a
    /// [habit](super::habits). What the others do not explain of the metrics of `unheard` does not count.
    ///
    /// # Panics
    /// If there are not as many as in training.
    pub fn judge(&self, values: &[f32], columns: &[f32], habits: &[f32], unheard: &[usize]) -> Verdict {
        let standard = self.standardise(columns);
        let mut sight = self.sight(values, &standard);
        if self.residuals.is_some() {
            let places = unheard.iter().filter_map(|metric| self.varying.binary_search(metric).ok());
            places.for_each(|place| sight[self.columns.len() + place] = 0.0);
        }
        let score_samples = self.forest_score(&sight);
        let mut deviations = self.strongest(&standard, habits);
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

    /// A value and three sigmas to both sides of it, by the first aspect that has some.
    pub fn around(&self, metric: usize, value: f32) -> [f32; 2] {
        let sigma = self.scales[metric * ASPECTS..(metric + 1) * ASPECTS].iter().flatten().next();
        let reach = 3.0 * sigma.map_or(1.0, Scale::sigma) as f32;
        [value - reach, value + reach]
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

    /// Number of values that the forest sees.
    fn width(&self) -> usize {
        self.columns.len() + self.residuals.as_ref().map_or(0, |residuals| residuals.scales.len())
    }

    fn forest_score(&self, sight: &[f32]) -> f64 {
        self.forest.as_ref().map_or(-0.5, |forest| forest.score_samples(sight))
    }

    /// The strongest deviation of each metric, in the order of the metrics.
    fn strongest(&self, standard: &[f32], habits: &[f32]) -> Vec<Deviation> {
        let of_metric = |(metric, columns): (usize, &[f32])| {
            let aspects = columns.iter().zip(Reason::ALL).enumerate();
            let deviations = aspects.map(|(aspect, (y, reason))| {
                let habit =
                    aspect.checked_sub(1).map_or(0.0, |column| habits[metric * (ASPECTS - 1) + column]);
                let sigmas = self.beyond_habit(metric * ASPECTS + aspect, f64::from(y.abs()), habit);
                Deviation { metric, reason, sigmas }
            });
            deviations.reduce(|a, b| if b.sigmas > a.sigmas { b } else { a }).expect("a metric has columns")
        };
        standard.chunks_exact(ASPECTS).enumerate().map(of_metric).collect()
    }

    /// How far a column deviates, in sigmas, where the same every day counts for little.
    fn beyond_habit(&self, column: usize, sigmas: f64, habit: f32) -> f64 {
        let usual = match &self.scales[column] {
            Some(scale) if habit > 0.0 => HABIT_MARGIN * f64::from(scale.apply(habit)),
            _ => 0.0,
        };
        if sigmas <= usual { sigmas.min(HABIT_SIGMAS) } else { sigmas }
    }

    fn mean(&self, forest: f64, tail: f64) -> f64 {
        0.5 * (self.forest_level.apply(forest) + self.tail_level.apply(tail))
    }
}

/// Mean of the two loudest metrics, each as ln(1 + sigmas).
fn tail(deviations: &[Deviation]) -> f64 {
    let mut loud: Vec<f64> = deviations.iter().map(|deviation| deviation.sigmas.ln_1p()).collect();
    loud.sort_by(|a, b| b.total_cmp(a));
    loud.truncate(LOUDEST);
    loud.iter().sum::<f64>() / loud.len().max(1) as f64
}
