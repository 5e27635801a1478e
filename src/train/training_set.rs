//! The rows that a model is fitted on: which features, and which of their rows.

use crate::detector::Detector;
use crate::features::{Row, RowReader, Schema, Transform};
use crate::forest::{self, Table};
use crate::models::ModelParams;
use crate::prom::{Labels, Sample};
use crate::remote_read::SeriesSamples;
use crate::time;
use crate::window::grid::Grid;
use crate::window::{Column, Window};
use std::time::Duration;

/// A gap counts for no more than this towards the history that a feature has: Prometheus' own
/// look-back for instant queries.
const LOOK_BACK_MS: i64 = 300_000;

/// A feature joins a model with this share of what it needs: the features of one scrape arrive in
/// several requests, and the last of them are a scrape short when the first have enough.
const JOIN_TOLERANCE: f64 = 0.9;

/// What a feature needs at least, as a share of what the oldest has, and the most that is asked of it. What one is
/// like at noon its first hour does not tell, and a model of days is there to keep to its budget.
const MIN_HISTORY_SHARE: f64 = 0.25;
const MAX_REQUIRED_MS: i64 = 24 * 3_600_000;

/// A stretch of time that stays out of training.
#[derive(Clone, Debug, PartialEq)]
pub struct Exclusion {
    /// First millisecond.
    pub from_ms: i64,
    /// Last millisecond.
    pub to_ms: i64,
    /// Why: as the user wrote it, or the alert that fired.
    pub reason: String,
    /// Was it found by a model? Then it is learned from when it lasts: how things are now is not to be an incident for
    /// ever, and a young model is not to learn nothing but what it knew.
    pub is_detected: bool,
}

/// What was found by a model stays out for so long at most, and for no longer than what is known before it.
const MAX_DETECTED_MS: i64 = 24 * 3_600_000;

impl Exclusion {
    /// The same in a history that begins at a time.
    fn capped(&self, first_ms: i64) -> Self {
        let before_ms = self.from_ms.saturating_sub(first_ms);
        let longest_ms = if self.is_detected { before_ms.clamp(0, MAX_DETECTED_MS) } else { i64::MAX };
        Self { to_ms: self.to_ms.min(self.from_ms.saturating_add(longest_ms)), ..self.clone() }
    }
}

/// Rows to be fitted on: complete, settled, finite and not excluded. A feature that came later than others is NaN before
/// it did.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingSet {
    /// The columns.
    pub schema: Schema,
    /// Timestamps of the rows in milliseconds, ascending, shape `[n_rows]`.
    pub timestamps: Vec<i64>,
    /// Values, shape `[n_rows, n_features]`, column-major.
    pub values: Vec<f32>,
    /// How many rows each exclusion cost.
    pub excluded: Vec<(Exclusion, usize)>,
    /// End of the history in milliseconds.
    pub to_ms: i64,
    /// Length of the history in milliseconds, without the gaps.
    pub observed_ms: i64,
}

/// Why there are no rows.
#[derive(Debug, PartialEq)]
pub enum TrainingSetError {
    /// No feature has enough history yet.
    TooShort {
        /// The longest that a feature has, in milliseconds, as [`observed_ms`] counts.
        have_ms: i64,
    },
    /// The features have enough history, but never all at once, or all of it is excluded.
    NeverComplete {
        /// How many features.
        n_features: usize,
    },
}

impl TrainingSet {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.timestamps.is_empty()
    }

    /// The values as the forest takes them.
    ///
    /// # Errors
    /// [`forest::Error::Shape`], if the fields do not fit each other.
    pub fn table(&self) -> Result<Table<'_>, forest::Error> {
        Table::new(&self.values, self.len(), self.schema.features.len())
    }

    /// Reads the features that are alive at the window's end and were there long enough, row by row up to `to_ms`.
    /// Where the model can do without, rows from before a feature came count: one that is new does not cost it what it
    /// knows of the others.
    ///
    /// # Errors
    /// [`NoRows`].
    pub fn from_window(
        detector: &Detector,
        window: &Window,
        exclusions: &[Exclusion],
        to_ms: i64,
    ) -> Result<Self, TrainingSetError> {
        let min_history = detector.training.min_history;
        let newest_ms = window.newest_ms().unwrap_or(i64::MIN);
        let with_coverage = |(labels, column, _): (&Labels, Column, _)| {
            (labels.clone(), column, coverage_ms(window, column, detector.transform))
        };
        let mut features: Vec<(Labels, Column, i64)> = window
            .features()
            .filter(|(_, _, newest_sample)| is_alive(*newest_sample, newest_ms, detector.grace))
            .map(with_coverage)
            .collect();
        let no_coverage_ms = -detector.transform.warm_up_ms();
        let have_ms = features.iter().map(|(_, _, observed)| *observed).max().unwrap_or(no_coverage_ms);
        if have_ms < time::millis(min_history) {
            return Err(TrainingSetError::TooShort { have_ms });
        }
        features.retain(|(_, _, observed)| has_enough_history(*observed, have_ms, min_history));
        features.sort();
        let columns: Vec<Column> = features.iter().map(|(_, column, _)| *column).collect();
        let schema = Schema {
            features: features.into_iter().map(|(labels, _, _)| labels).collect(),
            transform: detector.transform,
            grid: Grid::infer(window, &columns),
        };
        let n_features = schema.features.len();
        let rows = match detector.model {
            ModelParams::IsolationForest(_) => {
                Self::from_first_row(schema, window, exclusions, have_ms, to_ms)
            }
            ModelParams::Extended(_) => Self::from_when_stable(schema, window, exclusions, have_ms, to_ms),
        };
        if rows.is_empty() { Err(TrainingSetError::NeverComplete { n_features }) } else { Ok(rows) }
    }

    /// The rows of the features that had come by then, from the time of the first on. A feature that is alive and has no row
    /// yet, or none that is not excluded, waits.
    fn from_when_stable(
        schema: Schema,
        window: &Window,
        exclusions: &[Exclusion],
        observed_ms: i64,
        to_ms: i64,
    ) -> Self {
        let stable_since = |feature: &Labels| {
            let mut samples = Vec::new();
            let column = window.find_column(feature).expect("a feature of the window");
            window.samples(column, i64::MIN, i64::MAX, &mut samples);
            stable_since_ms(&samples).unwrap_or(i64::MAX)
        };
        let stable_since: Vec<i64> = schema.features.iter().map(stable_since).collect();
        let first_ms = stable_since.iter().min().copied().unwrap_or(i64::MAX);
        // One scrape may come in several parts.
        let stable_since: Vec<i64> = stable_since
            .into_iter()
            .map(|ms| if ms <= first_ms.saturating_add(LOOK_BACK_MS) { first_ms } else { ms })
            .collect();
        let rows = Self::gather(schema, &stable_since, window, exclusions, observed_ms, to_ms);
        let has_values = |feature: usize| {
            let column = &rows.values[feature * rows.len()..][..rows.len()];
            column.iter().any(|value| !value.is_nan())
        };
        let features: Vec<Labels> = (0..rows.schema.features.len())
            .filter(|feature| has_values(*feature))
            .map(|feature| rows.schema.features[feature].clone())
            .collect();
        if rows.is_empty() || features.len() == rows.schema.features.len() {
            return rows;
        }
        let schema = Schema { features, ..rows.schema };
        Self::from_when_stable(schema, window, exclusions, observed_ms, to_ms)
    }

    /// The rows since each feature came, at these times: NaN before.
    fn gather(
        schema: Schema,
        stable_since: &[i64],
        window: &Window,
        exclusions: &[Exclusion],
        observed_ms: i64,
        to_ms: i64,
    ) -> Self {
        let mut steps = stable_since.to_vec();
        steps.sort_unstable();
        steps.dedup();
        let mut builder = TrainingSetBuilder::new(&schema, exclusions, steps.first().copied());
        let mut row = vec![f32::NAN; stable_since.len()];
        for (step, from_ms) in steps.iter().enumerate() {
            let until_ms = steps.get(step + 1).map_or(i64::MAX, |next_ms| next_ms - 1).min(to_ms);
            let positions: Vec<usize> =
                (0..stable_since.len()).filter(|position| stable_since[*position] <= *from_ms).collect();
            let features = positions.iter().map(|position| schema.features[*position].clone()).collect();
            let known_schema = Schema { features, ..schema.clone() };
            for_each_full_row(&known_schema, window, from_ms - 1, until_ms, |timestamp_ms, values| {
                positions.iter().zip(values).for_each(|(position, value)| row[*position] = *value);
                if values.iter().all(|value| value.is_finite()) {
                    builder.push(timestamp_ms, &row);
                }
            });
        }
        let to_ms = window.newest_ms().unwrap_or(i64::MIN).min(to_ms);
        builder.finish(schema, to_ms, observed_ms)
    }

    /// Every settled row of a schema.
    ///
    /// # Errors
    /// [`NoRows::NeverComplete`].
    pub fn from_schema(schema: Schema, window: &Window) -> Result<Self, TrainingSetError> {
        let n_features = schema.features.len();
        let rows = Self::from_first_row(schema, window, &[], 0, i64::MAX);
        if rows.is_empty() { Err(TrainingSetError::NeverComplete { n_features }) } else { Ok(rows) }
    }

    pub(super) fn from_first_row(
        schema: Schema,
        window: &Window,
        exclusions: &[Exclusion],
        observed_ms: i64,
        to_ms: i64,
    ) -> Self {
        let first_ms = window.timestamps(i64::MIN, i64::MAX).next().unwrap_or(i64::MAX);
        let stable_since = vec![first_ms; schema.features.len()];
        Self::gather(schema, &stable_since, window, exclusions, observed_ms, to_ms)
    }

    /// Rows up to `to_ms` whose values are ready: one timestamp and one value of each feature a row, in any order of
    /// time.
    ///
    /// # Errors
    /// [`NoRows::NeverComplete`], when every row lacks a value or is excluded.
    pub fn from_values(
        schema: Schema,
        timestamps: &[i64],
        columns: &[Vec<f64>],
        exclusions: &[Exclusion],
        to_ms: i64,
    ) -> Result<Self, TrainingSetError> {
        let mut order: Vec<usize> = (0..timestamps.len()).filter(|row| timestamps[*row] <= to_ms).collect();
        order.sort_by_key(|row| timestamps[*row]);
        let first_ms = order.first().map(|row| timestamps[*row]);
        let mut builder = TrainingSetBuilder::new(&schema, exclusions, first_ms);
        let mut values = Vec::new();
        for row in &order {
            values.clear();
            values.extend(columns.iter().map(|column| column[*row] as f32));
            if values.iter().all(|value: &f32| value.is_finite()) {
                builder.push(timestamps[*row], &values);
            }
        }
        let to_ms = order.last().map_or(i64::MIN, |row| timestamps[*row]);
        let mut coverage = Coverage::default();
        order.iter().for_each(|row| coverage.add_time(timestamps[*row]));
        let n_features = schema.features.len();
        let rows = builder.finish(schema, to_ms, coverage.total_ms());
        if rows.is_empty() { Err(TrainingSetError::NeverComplete { n_features }) } else { Ok(rows) }
    }
}

/// When a feature came: it was there for half of the time since then, at least. What it was before, for some minutes a
/// week ago, is not worth the rows of the others in between.
fn stable_since_ms(samples: &[Sample]) -> Option<i64> {
    let times: Vec<i64> = samples.iter().filter(|s| !s.is_stale()).map(|s| s.timestamp_ms).collect();
    let runs = times.chunk_by(|a, b| b - a <= LOOK_BACK_MS);
    let spans: Vec<(i64, i64)> = runs.map(|run| (run[0], run[run.len() - 1] - run[0])).collect();
    let to_ms = *times.last()?;
    let mut present_ms: i64 = spans.iter().map(|(_, length_ms)| length_ms).sum();
    for (from_ms, length_ms) in spans {
        if 2 * present_ms >= to_ms - from_ms {
            return Some(from_ms);
        }
        present_ms -= length_ms;
    }
    None
}

/// Every complete row after `after_ms` and up to `to_ms` whose values are settled, in the order of time.
pub fn for_each_full_row(
    schema: &Schema,
    window: &Window,
    after_ms: i64,
    to_ms: i64,
    mut on_row: impl FnMut(i64, &[f32]),
) {
    let mut reader = RowReader::new(schema, window);
    let mut values = Vec::new();
    let mut consumed_to_ms = after_ms;
    for timestamp_ms in window.timestamps(after_ms, to_ms) {
        if timestamp_ms <= consumed_to_ms {
            continue;
        }
        consumed_to_ms = schema.grid.bounds(timestamp_ms).1;
        let row = reader.read_row(schema, window, timestamp_ms, &mut values, |_| {});
        match row {
            Row::Complete { timestamp_ms, is_full_range: true } if timestamp_ms <= to_ms => {
                on_row(timestamp_ms, &values)
            }
            _ => {}
        }
    }
}

/// Rows as they come.
struct TrainingSetBuilder {
    warm_up_ms: i64,
    timestamps: Vec<i64>,
    by_row: Vec<f32>,
    excluded: Vec<(Exclusion, usize)>,
}

impl TrainingSetBuilder {
    fn new(schema: &Schema, exclusions: &[Exclusion], first_ms: Option<i64>) -> Self {
        let first_ms = first_ms.unwrap_or(i64::MIN);
        Self {
            warm_up_ms: schema.transform.warm_up_ms(),
            timestamps: Vec::new(),
            by_row: Vec::new(),
            excluded: exclusions.iter().map(|exclusion| (exclusion.capped(first_ms), 0)).collect(),
        }
    }

    /// Takes a row, unless it is excluded.
    fn push(&mut self, timestamp_ms: i64, values: &[f32]) {
        // Rates reach back: what happened in the range shows for as long after it.
        let exclusion_hit = self.excluded.iter_mut().find(|(exclusion, _)| {
            (exclusion.from_ms..=exclusion.to_ms.saturating_add(self.warm_up_ms)).contains(&timestamp_ms)
        });
        if let Some((_, n_rows)) = exclusion_hit {
            *n_rows += 1;
            return;
        }
        self.timestamps.push(timestamp_ms);
        self.by_row.extend_from_slice(values);
    }

    fn finish(self, schema: Schema, to_ms: i64, observed_ms: i64) -> TrainingSet {
        let Self { timestamps, by_row, excluded, .. } = self;
        let (n_rows, n_features) = (timestamps.len(), schema.features.len());
        let mut values = vec![0.0; by_row.len()];
        for (i, value) in by_row.into_iter().enumerate() {
            values[(i % n_features) * n_rows + i / n_features] = value;
        }
        TrainingSet { schema, timestamps, values, excluded, to_ms, observed_ms }
    }
}

/// The time that ascending samples cover, gaps shortened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage {
    newest_ms: Option<i64>,
    sum_ms: i64,
}

impl Coverage {
    /// Takes the next sample; a staleness marker is none.
    pub fn add(&mut self, sample: Sample) {
        if !sample.is_stale() {
            self.add_time(sample.timestamp_ms);
        }
    }

    fn add_time(&mut self, timestamp_ms: i64) {
        let before_ms = self.newest_ms.replace(timestamp_ms).unwrap_or(timestamp_ms);
        self.sum_ms += (timestamp_ms - before_ms).min(LOOK_BACK_MS);
    }

    /// In milliseconds.
    pub fn total_ms(self) -> i64 {
        self.sum_ms
    }
}

/// How long a feature gave settled values: the sum of the times between its samples, gaps
/// shortened, but for the time that the transform takes to settle; below 0 while it still does.
pub fn coverage_ms(window: &Window, column: Column, transform: Transform) -> i64 {
    let mut samples = Vec::new();
    window.samples(column, i64::MIN, i64::MAX, &mut samples);
    let mut coverage = Coverage::default();
    samples.into_iter().for_each(|sample| coverage.add(sample));
    coverage.total_ms() - transform.warm_up_ms()
}

/// Does a feature that was observed so long belong into a model of features of which the oldest was observed for
/// `have_ms`?
pub fn has_enough_history(observed_ms: i64, have_ms: i64, min_history: Duration) -> bool {
    let required_ms = ((have_ms as f64 * MIN_HISTORY_SHARE) as i64).min(MAX_REQUIRED_MS);
    observed_ms as f64 >= JOIN_TOLERANCE * required_ms.max(time::millis(min_history)) as f64
}

/// Is the feature with this newest sample still there, in a window that reaches to `newest_ms`?
pub fn is_alive(newest: Option<Sample>, newest_ms: i64, grace: Duration) -> bool {
    newest.is_some_and(|sample| !sample.is_stale() && sample.timestamp_ms >= newest_ms - time::millis(grace))
}

/// Joins the history of a group with its live window. `past` has features for labels: those of the
/// group are taken off already. Features that do not come live are left out: a model with them
/// would wait for them for ever. Where both have a sample of one time, the past's counts.
pub fn join(history: &[SeriesSamples], live: &Window, history_ms: i64) -> Window {
    let live_series = series(live, i64::MAX);
    let history = history.iter().filter(|(labels, _)| live.find_column(labels).is_some());
    build_window(history.chain(&live_series), history_ms)
}

/// A window as it was at a time, and no longer than `length_ms`.
pub fn truncated(whole: &Window, to_ms: i64, length_ms: i64) -> Window {
    build_window(series(whole, to_ms).iter(), length_ms)
}

/// What a window holds up to a time.
fn series(window: &Window, to_ms: i64) -> Vec<SeriesSamples> {
    let of_feature = |(labels, column, _): (&Labels, Column, _)| {
        let mut samples = Vec::new();
        window.samples(column, i64::MIN, to_ms, &mut samples);
        (labels.clone(), samples)
    };
    window.features().map(of_feature).collect()
}

/// A window of these series. Where two have a sample of one feature and time, the first counts.
pub fn build_window<'s>(series: impl Iterator<Item = &'s SeriesSamples>, length_ms: i64) -> Window {
    let mut window = Window::new(length_ms);
    let mut samples: Vec<(Sample, Column)> = Vec::new();
    for (labels, series) in series {
        if let Some(column) = window.get_or_add_column(labels) {
            samples.extend(series.iter().map(|sample| (*sample, column)));
        }
    }
    // In the order of time, so that no sealed chunk is touched again; stable, for the first to win.
    samples.sort_by_key(|(sample, _)| sample.timestamp_ms);
    for (sample, column) in samples {
        window.push(column, sample);
    }
    window
}
