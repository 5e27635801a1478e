//! Training: a window of history in, a model out, by the code that also serves.
//!
//! History is what remote read has joined with what the live window holds: the same samples twice
//! do no harm, and whichever of the two is longer wins. So a sidecar beside an old Prometheus has
//! its model within seconds, and one beside a new Prometheus, or one that serves no remote read,
//! has it as soon as its own window is long enough.

pub mod trainer;

use crate::config::Detector;
use crate::features::{Reader, Row, Schema, Transform};
use crate::forest::{self, Table};
use crate::history::Series;
use crate::models::Model;
use crate::prom::duration;
use crate::prom::{Labels, Sample};
use crate::window::row::Grid;
use crate::window::{Column, Window};
use crate::yaml::Section;
use std::num::NonZeroUsize;
use std::time::Duration;

/// When models are trained, and on what.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How far back the training rows reach.
    pub history: Duration,
    /// How much of it there has to be for a first model.
    pub minimum: Duration,
    /// How often a model is made anew.
    pub every: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        Self { history: hours(5 * 24), minimum: hours(1), every: hours(24) }
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

/// A gap counts for no more than this towards the history that a feature has: Prometheus' own
/// look-back for instant queries.
const LOOK_BACK_MS: i64 = 300_000;

/// A feature joins a model with this share of `minimum`: the features of one scrape arrive in
/// several requests, and the last of them are a scrape short when the first have enough.
const ENOUGH: f64 = 0.9;

/// What training gave.
#[derive(Debug)]
pub enum Outcome {
    /// A model.
    Trained(Box<Model>),
    /// Not yet: no feature has enough history.
    TooShort {
        /// The longest that a feature has, in milliseconds, as [`observed_ms`] counts.
        have_ms: i64,
    },
    /// The features have enough history, but never all at once.
    NoRows {
        /// How many features.
        n_features: usize,
    },
}

/// How long a feature gave settled values: the sum of the times between its samples, gaps
/// shortened, but for the time that the transform takes to settle; below 0 while it still does.
pub fn observed_ms(window: &Window, column: Column, transform: Transform) -> i64 {
    let mut samples = Vec::new();
    window.samples(column, i64::MIN, i64::MAX, &mut samples);
    samples.retain(|sample| !sample.is_stale());
    let steps =
        samples.windows(2).map(|pair| (pair[1].timestamp_ms - pair[0].timestamp_ms).min(LOOK_BACK_MS));
    steps.sum::<i64>() - transform.settling_ms()
}

/// Does a feature that was observed so long belong into a model?
pub fn is_enough(observed_ms: i64, minimum: Duration) -> bool {
    observed_ms as f64 >= ENOUGH * duration::millis(minimum) as f64
}

/// Is the feature with this newest sample still there, in a window that reaches to `newest_ms`?
pub fn is_alive(newest: Option<Sample>, newest_ms: i64, grace: Duration) -> bool {
    newest.is_some_and(|sample| {
        !sample.is_stale() && sample.timestamp_ms >= newest_ms - duration::millis(grace)
    })
}

/// Joins the history of a group with its live window. `past` has features for labels: those of the
/// group are taken off already. Features that do not come live are left out: a model with them
/// would wait for them for ever. Where both have a sample of one time, the past's counts.
pub fn join(past: &[Series], live: &Window, history_ms: i64) -> Window {
    let mut window = Window::new(history_ms);
    let mut samples: Vec<(Sample, Column)> = Vec::new();
    let mut add = |labels: &Labels, series: &[Sample]| {
        if let Some(column) = window.column(labels) {
            samples.extend(series.iter().map(|sample| (*sample, column)));
        }
    };
    for (labels, series) in past.iter().filter(|(labels, _)| live.find(labels).is_some()) {
        add(labels, series);
    }
    for (labels, column, _) in live.features() {
        let mut series = Vec::new();
        live.samples(column, i64::MIN, i64::MAX, &mut series);
        add(labels, &series);
    }
    // In the order of time, so that no sealed chunk is touched again; stable, for the first to win.
    samples.sort_by_key(|(sample, _)| sample.timestamp_ms);
    for (sample, column) in samples {
        window.push(column, sample);
    }
    window
}

/// Fits a model of the features that are alive at the window's end and were there long enough.
///
/// Rows with a value that is not finite, or not settled yet, are left out.
///
/// # Errors
/// The forest's own, when the parameters do not suit the rows.
pub fn train(detector: &Detector, window: &Window, threads: NonZeroUsize) -> Result<Outcome, forest::Error> {
    let minimum_ms = duration::millis(detector.training.minimum);
    let newest_ms = window.newest_ms().unwrap_or(i64::MIN);
    let mut features: Vec<(Labels, Column, i64)> = window
        .features()
        .filter(|(_, _, newest)| is_alive(*newest, newest_ms, detector.grace))
        .map(|(labels, column, _)| (labels.clone(), column, observed_ms(window, column, detector.transform)))
        .collect();
    let none_ms = -detector.transform.settling_ms();
    let have_ms = features.iter().map(|(_, _, observed)| *observed).max().unwrap_or(none_ms);
    if have_ms < minimum_ms {
        return Ok(Outcome::TooShort { have_ms });
    }
    features.retain(|(_, _, observed)| is_enough(*observed, detector.training.minimum));
    features.sort();
    let columns: Vec<Column> = features.iter().map(|(_, column, _)| *column).collect();
    let schema = Schema {
        features: features.into_iter().map(|(labels, _, _)| labels).collect(),
        transform: detector.transform,
        grid: Grid::infer(window, &columns),
    };

    let rows = rows(&schema, window);
    let n_features = schema.features.len();
    let n_rows = rows.len() / n_features;
    if n_rows == 0 {
        return Ok(Outcome::NoRows { n_features });
    }
    let mut values = vec![0.0; rows.len()];
    for (i, value) in rows.into_iter().enumerate() {
        values[(i % n_features) * n_rows + i / n_features] = value;
    }
    let forest = detector.model.fit(&Table::new(&values, n_rows, n_features)?, threads)?;
    Ok(Outcome::Trained(Box::new(Model {
        schema,
        forest,
        trained_to_ms: newest_ms,
        observed_ms: have_ms,
        n_rows,
    })))
}

/// The complete, settled and finite rows of a window: `[n_rows, n_features]`, row after row.
fn rows(schema: &Schema, window: &Window) -> Vec<f32> {
    let mut reader = Reader::new(schema, window);
    let mut rows = Vec::new();
    let mut values = Vec::new();
    let mut done_ms = i64::MIN;
    for timestamp_ms in window.timestamps(i64::MIN, i64::MAX) {
        if timestamp_ms <= done_ms {
            continue;
        }
        done_ms = schema.grid.bounds(timestamp_ms).1;
        let row = reader.row(schema, window, timestamp_ms, &mut values, |_| {});
        if matches!(row, Row::Complete { settled: true, .. }) && values.iter().all(|value| value.is_finite())
        {
            rows.append(&mut values);
        }
    }
    rows
}

#[cfg(test)]
mod tests;
