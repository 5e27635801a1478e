//! Training: a window of history in, a model out, by the code that also serves.
//!
//! History is what remote read has joined with what the live window holds: the same samples twice
//! do no harm, and whichever of the two is longer wins. So a sidecar beside an old Prometheus has
//! its model within seconds, and one beside a new Prometheus, or one that serves no remote read,
//! has it as soon as its own window is long enough.

pub mod enter;
mod gate;
pub mod page;
pub mod past;
pub mod pool;
pub mod replay;
pub mod rows;
pub mod trainer;
pub mod validate;

use crate::detect::{Detection, Prepared};
use crate::forest;
use crate::models::{self, Card, Fitted, Histogram, History, Model, Params};
use crate::prom::{Labels, duration};
use crate::window::Score;
use crate::yaml::{Node, Section};
pub use gate::Gate;
use rows::Rows;
use std::num::NonZeroUsize;
use std::time::Duration;
use validate::Sweep;

/// When models are trained, and on what.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How far back the training rows reach.
    pub history: Duration,
    /// How much of it there has to be for a first model.
    pub minimum: Duration,
    /// How often a model is made anew.
    pub every: Duration,
    /// Sizes of sample to choose from; empty: `max_samples` of the model, unswept.
    pub sweep: Vec<usize>,
    /// Alerts whose firing keeps the time out of training, by name.
    pub exclude_alerts: Vec<String>,
    /// What a model has to show before it is let into service.
    pub gate: Gate,
}

impl Default for Config {
    fn default() -> Self {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        Self {
            history: hours(5 * 24),
            minimum: hours(1),
            every: hours(24),
            sweep: Vec::new(),
            exclude_alerts: Vec::new(),
            gate: Gate::default(),
        }
    }
}

impl Config {
    /// Reads the section of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let default = Self::default();
        let config = Self {
            history: section.duration("history", default.history),
            minimum: section.duration("minimum", default.minimum),
            every: section.duration("every", default.every),
            sweep: section.get("sweep").map(|list| sizes(&list)).unwrap_or_default(),
            exclude_alerts: section.get("exclude_alerts").map(|list| texts(&list)).unwrap_or_default(),
            gate: section.get("gate").and_then(Node::section).map_or(default.gate, Gate::read),
        };
        if config.history < config.minimum {
            section.refuse(format!(
                "history: {} is shorter than minimum ({})",
                duration::Display(config.history),
                duration::Display(config.minimum)
            ));
        }
        section.finish();
        config
    }
}

fn sizes(list: &Node<'_, '_>) -> Vec<usize> {
    let size = |node: &Node<'_, '_>| {
        let size: usize = node.value("a whole number")?;
        if size == 0 {
            node.refuse("must be at least 1");
        }
        Some(size)
    };
    list.items().iter().flatten().filter_map(size).collect()
}

fn texts(list: &Node<'_, '_>) -> Vec<String> {
    list.items().iter().flatten().filter_map(Node::text).collect()
}

/// A model is made anew when its history has grown by a quarter: a first model of an hour has seen
/// little, and should not serve for a day.
const GROWTH: f64 = 0.25;
/// But no sooner than this.
const SHORTEST_PAUSE: Duration = Duration::from_secs(15);

impl Config {
    /// How long a model serves that was trained on so much history.
    pub fn pause(&self, observed_ms: i64) -> Duration {
        let growth = Duration::from_millis((observed_ms.max(0) as f64 * GROWTH) as u64);
        growth.min(self.every).max(SHORTEST_PAUSE)
    }
}

/// Rows below which there is nothing to hold back for validation.
const ENOUGH_TO_VALIDATE: usize = 10;

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
pub struct Purpose {
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
    params: &Params,
    rows: &Rows,
    sizes: &[usize],
    purpose: Purpose,
    now_ms: i64,
    threads: NonZeroUsize,
    done: &(dyn Fn(usize, usize) + Sync),
) -> Result<Trained, forest::Error> {
    let table = rows.table()?;
    let prepared = match params {
        Params::IsolationForest(_) => None,
        Params::Extended(_) => Some(Prepared::learn(&rows.timestamps, &table)?),
    };
    let seen = match &prepared {
        None => Some(table),
        Some(prepared) => prepared.table()?,
    };
    let sweep = match &seen {
        Some(seen) if seen.n_rows() >= ENOUGH_TO_VALIDATE => {
            let fixed = [params.max_samples(seen.n_rows())];
            let sizes = if sizes.is_empty() { &fixed } else { sizes };
            Some(validate::sweep(params, seen, sizes, threads, done)?)
        }
        _ => None,
    };
    let params = match &sweep {
        Some(sweep) if !sizes.is_empty() => {
            params.with_max_samples(forest::MaxSamples::count(sweep.validation.best().max_samples)?)
        }
        _ => params.clone(),
    };
    let (fitted, scores) = match (&params, prepared) {
        (Params::Extended(params), Some(prepared)) => {
            let (detection, scores) = Detection::of(prepared.grow(params, threads)?);
            (Fitted::Extended(Box::new(detection)), scores)
        }
        (Params::IsolationForest(params), _) => {
            let forest = params.fit(&table, threads)?;
            let mut row = vec![0.0; table.n_features()];
            let score = |(number, timestamp_ms): (usize, &i64)| {
                table.copy_row(number, &mut row);
                (*timestamp_ms, models::score(&forest, &row))
            };
            let scores = rows.timestamps.iter().enumerate().map(score).collect();
            (Fitted::IsolationForest(forest), scores)
        }
        (Params::Extended(_), None) => unreachable!("rows are prepared for an extended forest"),
    };
    let decisions: Vec<f64> = scores.iter().map(|(_, score): &(i64, Score)| score.decision).collect();
    let card = Card {
        detector: purpose.detector,
        group: purpose.group,
        origin: concat!("promforest ", env!("CARGO_PKG_VERSION")).into(),
        created_ms: now_ms,
        params: params.describe(),
        columns: None,
        history: Some(History {
            from_ms: rows.timestamps[0],
            to_ms: rows.to_ms,
            observed_ms: rows.observed_ms,
            n_rows: rows.len(),
            n_excluded: rows.excluded.iter().map(|(_, n_rows)| n_rows).sum(),
        }),
        validation: sweep.as_ref().map(|sweep| sweep.validation.clone()),
        baseline: Some(decisions.iter().collect::<Histogram>()),
    };
    Ok(Trained { model: Model { schema: rows.schema.clone(), fitted, card }, sweep, scores })
}

#[cfg(test)]
mod tests;
