//! The rows that a model is fitted on: which features, and which of their rows.

use super::coverage::{self, Coverage, Presence, coverage_ms, has_enough_history};
use super::exclusion::Exclusion;
use crate::detector::Detector;
use crate::features::{Row, RowReader, Schema};
use crate::forest::{self, Table};
use crate::prom::Labels;
use crate::time;
use crate::window::grid::Grid;
use crate::window::{Column, Window};

/// Rows to fit a model on: full-range, finite and not excluded. A feature that is younger than the first row is NaN
/// before its first value.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingSet {
    /// The columns.
    pub schema: Schema,
    /// Timestamps of the rows in milliseconds, ascending, shape `[n_rows]`.
    pub timestamps: Vec<i64>,
    /// Values, shape `[n_rows, n_features]`, column-major.
    pub values: Vec<f32>,
    /// Exclusions, each with the number of rows that it excluded.
    pub excluded: Vec<(Exclusion, usize)>,
    /// End of the history in milliseconds.
    pub to_ms: i64,
    /// Length of the history in milliseconds, without gaps.
    pub observed_ms: i64,
}

/// The reason for an empty training set.
#[derive(Debug, PartialEq)]
pub enum TrainingSetError {
    /// No feature has enough history yet.
    TooShort {
        /// Longest [`coverage_ms`] of a feature.
        have_ms: i64,
    },
    /// The features have enough history, but no row has all of them.
    NeverComplete {
        /// Number of features.
        n_features: usize,
    },
    /// Every complete row is excluded.
    AllExcluded {
        /// Number of rows.
        n_rows: usize,
    },
}

impl TrainingSet {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.timestamps.is_empty()
    }

    /// Number of excluded rows.
    pub fn n_excluded(&self) -> usize {
        self.excluded.iter().map(|(_, n_rows)| n_rows).sum()
    }

    /// The values as the input of a forest.
    ///
    /// # Errors
    /// [`forest::Error::Shape`] if the fields do not fit each other.
    pub fn table(&self) -> Result<Table<'_>, forest::Error> {
        Table::new(&self.values, self.len(), self.schema.features.len())
    }

    /// Gathers the rows up to `to_ms` of the features that are alive at the end of the window and have enough history. If
    /// the kind of model accepts missing values, rows from before a feature appeared count: a new feature then does not
    /// shorten the history of the others.
    ///
    /// # Errors
    /// [`TrainingSetError`] if no row qualifies.
    pub fn from_window(
        detector: &Detector,
        window: &Window,
        exclusions: &[Exclusion],
        to_ms: i64,
    ) -> Result<Self, TrainingSetError> {
        Self::from_open_window(detector, window, exclusions, to_ms, i64::MAX)
    }

    /// Like [`from_window`](Self::from_window), for a window whose rows after `closed_to_ms` are still arriving.
    ///
    /// # Errors
    /// [`TrainingSetError`] if no row qualifies.
    pub fn from_open_window(
        detector: &Detector,
        window: &Window,
        exclusions: &[Exclusion],
        to_ms: i64,
        closed_to_ms: i64,
    ) -> Result<Self, TrainingSetError> {
        let min_history = detector.training.min_history;
        let presence = Presence::at_newest_row(window, closed_to_ms, detector.grace);
        let is_gone = |column| presence.is_none_or(|presence| presence.is_gone(column));
        let with_coverage = |(labels, column): (&Labels, Column)| {
            (labels.clone(), column, coverage_ms(window, column, detector.transform))
        };
        let mut features: Vec<(Labels, Column, i64)> =
            window.features().filter(|(_, column)| !is_gone(*column)).map(with_coverage).collect();
        let no_coverage_ms = -detector.transform.warm_up_ms();
        let have_ms = features.iter().map(|(_, _, observed_ms)| *observed_ms).max().unwrap_or(no_coverage_ms);
        if have_ms < time::millis(min_history) {
            return Err(TrainingSetError::TooShort { have_ms });
        }
        features.retain(|(_, _, observed_ms)| has_enough_history(*observed_ms, have_ms, min_history));
        features.sort();
        let columns: Vec<Column> = features.iter().map(|(_, column, _)| *column).collect();
        let schema = Schema {
            features: features.into_iter().map(|(labels, _, _)| labels).collect(),
            transform: detector.transform,
            grid: Grid::infer(window, &columns),
        };
        let n_features = schema.features.len();
        let gatherer = RowGatherer { window, exclusions, observed_ms: have_ms, to_ms };
        let training_set = if detector.model.accepts_missing_values() {
            gatherer.gather_with_missing(schema)
        } else {
            gatherer.gather_complete(schema)
        };
        training_set.non_empty(n_features)
    }

    /// Gathers the full-range rows of a schema up to `to_ms`.
    ///
    /// # Errors
    /// [`TrainingSetError::NeverComplete`] if there is none.
    pub fn from_schema(
        schema: Schema,
        window: &Window,
        exclusions: &[Exclusion],
        to_ms: i64,
    ) -> Result<Self, TrainingSetError> {
        let n_features = schema.features.len();
        let covered = schema.features.iter().filter_map(|feature| window.find_column(feature));
        let observed_ms = covered.map(|column| coverage_ms(window, column, schema.transform)).max();
        let gatherer = RowGatherer { window, exclusions, observed_ms: observed_ms.unwrap_or(0), to_ms };
        gatherer.gather_complete(schema).non_empty(n_features)
    }

    /// Takes rows up to `to_ms` of values that are no raw samples. `timestamps` has shape `[n_rows]` and any order,
    /// `columns` shape `[n_features, n_rows]`.
    ///
    /// # Errors
    /// [`TrainingSetError::NeverComplete`] if every row lacks a value, [`TrainingSetError::AllExcluded`] if the others
    /// are excluded.
    pub fn from_values(
        schema: Schema,
        timestamps: &[i64],
        columns: &[Vec<f64>],
        exclusions: &[Exclusion],
        to_ms: i64,
    ) -> Result<Self, TrainingSetError> {
        let mut order: Vec<usize> = (0..timestamps.len()).filter(|row| timestamps[*row] <= to_ms).collect();
        order.sort_by_key(|row| timestamps[*row]);
        let mut builder = TrainingSetBuilder::new(&schema, exclusions);
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
        builder.finish(schema, to_ms, coverage.total_ms()).non_empty(n_features)
    }

    fn non_empty(self, n_features: usize) -> Result<Self, TrainingSetError> {
        match self.n_excluded() {
            _ if !self.is_empty() => Ok(self),
            0 => Err(TrainingSetError::NeverComplete { n_features }),
            n_rows => Err(TrainingSetError::AllExcluded { n_rows }),
        }
    }
}

/// Gathers the rows of a window.
pub(super) struct RowGatherer<'a> {
    /// The samples.
    pub window: &'a Window,
    /// Times whose rows are excluded.
    pub exclusions: &'a [Exclusion],
    /// Length of the history for [`TrainingSet::observed_ms`].
    pub observed_ms: i64,
    /// Timestamp of the last row.
    pub to_ms: i64,
}

impl RowGatherer<'_> {
    /// The rows that have values of all features.
    pub(super) fn gather_complete(&self, schema: Schema) -> TrainingSet {
        let first_ms = self.window.timestamps(i64::MIN, i64::MAX).next().unwrap_or(i64::MAX);
        let stable_since = vec![first_ms; schema.features.len()];
        self.gather(schema, &stable_since)
    }

    /// The rows since the oldest feature appeared, with NaN for the features that did not exist yet. A feature without a
    /// row, or with excluded rows only, is left out.
    fn gather_with_missing(&self, schema: Schema) -> TrainingSet {
        let mut stable_since: Vec<i64> =
            schema.features.iter().map(|feature| self.stable_since_ms(feature)).collect();
        coverage::align_to_first(&mut stable_since);
        let training_set = self.gather(schema, &stable_since);
        let has_values = |feature: usize| {
            let column = &training_set.values[feature * training_set.len()..][..training_set.len()];
            column.iter().any(|value| !value.is_nan())
        };
        let n_features = training_set.schema.features.len();
        let features: Vec<Labels> = (0..n_features)
            .filter(|feature| has_values(*feature))
            .map(|feature| training_set.schema.features[feature].clone())
            .collect();
        if training_set.is_empty() || features.len() == n_features {
            return training_set;
        }
        self.gather_with_missing(Schema { features, ..training_set.schema })
    }

    fn stable_since_ms(&self, feature: &Labels) -> i64 {
        let mut samples = Vec::new();
        let column = self.window.find_column(feature).expect("the schema has features of the window");
        self.window.samples(column, i64::MIN, i64::MAX, &mut samples);
        coverage::stable_since_ms(&samples).unwrap_or(i64::MAX)
    }

    /// The rows that have values of the features that are stable by then. `stable_since` has shape `[n_features]`; a
    /// feature is NaN before its time.
    fn gather(&self, schema: Schema, stable_since: &[i64]) -> TrainingSet {
        let mut steps = stable_since.to_vec();
        steps.sort_unstable();
        steps.dedup();
        let mut builder = TrainingSetBuilder::new(&schema, self.exclusions);
        let mut row = vec![f32::NAN; stable_since.len()];
        for (step, from_ms) in steps.iter().enumerate() {
            let until_ms = steps.get(step + 1).map_or(i64::MAX, |next_ms| next_ms - 1).min(self.to_ms);
            let positions: Vec<usize> =
                (0..stable_since.len()).filter(|position| stable_since[*position] <= *from_ms).collect();
            let features = positions.iter().map(|position| schema.features[*position].clone()).collect();
            let known_schema = Schema { features, ..schema.clone() };
            for_each_full_row(&known_schema, self.window, from_ms - 1, until_ms, |timestamp_ms, values| {
                positions.iter().zip(values).for_each(|(position, value)| row[*position] = *value);
                if values.iter().all(|value| value.is_finite()) {
                    builder.push(timestamp_ms, &row);
                }
            });
        }
        let to_ms = self.window.newest_ms().unwrap_or(i64::MIN).min(self.to_ms);
        builder.finish(schema, to_ms, self.observed_ms)
    }
}

/// Calls `on_row` with timestamp and values of each complete, full-range row in `(after_ms, to_ms]`, in the order of time.
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
        if let Row::Complete { timestamp_ms, is_full_range: true } = row
            && timestamp_ms <= to_ms
        {
            on_row(timestamp_ms, &values);
        }
    }
}

/// A training set that grows row by row.
struct TrainingSetBuilder {
    warm_up_ms: i64,
    timestamps: Vec<i64>,
    by_row: Vec<f32>,
    excluded: Vec<(Exclusion, usize)>,
}

impl TrainingSetBuilder {
    fn new(schema: &Schema, exclusions: &[Exclusion]) -> Self {
        Self {
            warm_up_ms: schema.transform.warm_up_ms(),
            timestamps: Vec::new(),
            by_row: Vec::new(),
            excluded: exclusions.iter().map(|exclusion| (exclusion.clone(), 0)).collect(),
        }
    }

    /// Adds a row unless it is excluded.
    fn push(&mut self, timestamp_ms: i64, values: &[f32]) {
        // A rate covers a range: samples in the excluded time affect the rows of one range after it.
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
