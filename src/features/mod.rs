//! Computes the columns of a model from raw rows. Live scoring and training share this code.
//!
//! A value is a function of the window alone, over a bounded range before its row, so it can be computed again with
//! the same bits. Rates are computed from the raw samples at each row. Not taken: rates updated as samples arrive, which
//! late samples would invalidate.

pub mod correlation;
pub mod counter;
pub mod rate;
pub mod scale;

use crate::error::InvalidPart;
use crate::prom::{Labels, METRIC_NAME, Sample, duration};
use crate::time;
use crate::window::grid::Grid;
use crate::window::{Column, Rows, Window};
use counter::CounterEvent;
use rate::RateSemantics;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// Errors of fitting or loading a transformation of columns. Applying one has no errors.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The training column is empty.
    #[error("training column has no values")]
    NoValues,
    /// A training value is NaN or infinite.
    #[error("value in row {row} is {value}, must be finite")]
    NotFinite {
        /// Its row, from 0.
        row: usize,
        /// The value.
        value: f32,
    },
    /// A part from a file is not a possible result of training.
    #[error(transparent)]
    InvalidPart(#[from] InvalidPart),
}

/// The transform from the samples of a feature to its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// PromQL's `rate(x[range])` of a counter.
    Rate {
        /// The range in milliseconds, above 0.
        range_ms: i64,
        /// The semantics at the edges of the range.
        semantics: RateSemantics,
    },
    /// The value of the sample, for gauges.
    Value,
}

/// The shortest range of a rate. Shorter ranges rarely contain two samples.
const MIN_RANGE: Duration = Duration::from_secs(1);

/// The error for a text that is not a transform.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum InvalidTransform {
    /// The text is neither a rate nor `value`.
    #[error("{0:?} is not one of rate(RANGE), value")]
    Unknown(String),
    /// The range is not a duration.
    #[error(transparent)]
    Range(#[from] duration::InvalidDuration),
    /// The range is below one second.
    #[error("the range is {range}, must be at least {least}", range = duration::Display(*.0), least = duration::Display(MIN_RANGE))]
    TooShort(Duration),
}

impl Transform {
    /// Parses `rate(1m)` or `value`, the inverse of [`Display`](fmt::Display).
    ///
    /// # Errors
    /// [`InvalidTransform`] for any other text.
    pub fn parse(text: &str, semantics: RateSemantics) -> Result<Self, InvalidTransform> {
        if text == "value" {
            return Ok(Self::Value);
        }
        let range = text.strip_prefix("rate(").and_then(|rest| rest.strip_suffix(')'));
        let range = duration::parse(range.ok_or_else(|| InvalidTransform::Unknown(text.into()))?)?;
        if range < MIN_RANGE {
            return Err(InvalidTransform::TooShort(range));
        }
        Ok(Self::Rate { range_ms: time::millis(range), semantics })
    }

    /// The semantics of the rate; `None` for gauges.
    pub fn rate_semantics(&self) -> Option<RateSemantics> {
        match self {
            Self::Rate { semantics, .. } => Some(*semantics),
            Self::Value => None,
        }
    }

    /// The transform of a feature as a PromQL expression: `rate(rx{device="eth0"}[1m])`.
    pub fn expression(&self, feature: &Labels) -> String {
        match self {
            Self::Rate { range_ms, .. } => {
                let range = Duration::from_millis(range_ms.unsigned_abs());
                format!("rate({feature}[{}])", duration::Display(range))
            }
            Self::Value => feature.to_string(),
        }
    }

    /// The longest time before a row at which a sample affects the row, in milliseconds.
    pub fn lookback_ms(&self) -> i64 {
        match self {
            // The range itself, and as much before it for counter::repair.
            Self::Rate { range_ms, .. } => 2 * range_ms + 1,
            Self::Value => 0,
        }
    }

    /// The time from the first sample of a feature until its values cover the [full range](Row::Complete), in
    /// milliseconds.
    pub fn warm_up_ms(&self) -> i64 {
        match self {
            Self::Rate { range_ms, .. } => *range_ms,
            Self::Value => 0,
        }
    }
}

/// Formats as in the configuration: `rate(1m)` or `value`.
impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate { range_ms, .. } => {
                let range = Duration::from_millis(range_ms.unsigned_abs());
                write!(f, "rate({})", duration::Display(range))
            }
            Self::Value => f.write_str("value"),
        }
    }
}

/// The columns of a model and their computation from a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    /// Labels of each feature, without repetition, in the order of the model's columns.
    pub features: Vec<Labels>,
    /// The transform of the samples.
    pub transform: Transform,
    /// The assignment of samples to rows.
    pub grid: Grid,
}

impl Schema {
    /// The pairs of features that are rates of bytes and of packets of the same thing, by their names.
    pub fn mean_sizes(&self) -> Vec<[usize; 2]> {
        if self.transform == Transform::Value {
            return Vec::new();
        }
        let numbers = self.features.iter().enumerate().map(|(number, feature)| (feature, number));
        let numbers: BTreeMap<&Labels, usize> = numbers.collect();
        let pair = |(bytes, feature): (usize, &Labels)| {
            let name = feature.metric_name();
            let packets = feature.with(METRIC_NAME, &name.replace("_bytes", "_packets"));
            let packets = *numbers.get(&packets)?;
            (packets != bytes).then_some([bytes, packets])
        };
        self.features.iter().enumerate().filter_map(pair).collect()
    }

    /// The first feature that is not among the active ones.
    pub fn first_missing(&self, active: &BTreeSet<&Labels>) -> Option<&Labels> {
        self.features.iter().find(|feature| !active.contains(feature))
    }
}

/// The state of one row.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// Every feature has a value.
    Complete {
        /// Timestamp of the row's newest sample, in milliseconds since the epoch.
        timestamp_ms: i64,
        /// True if the samples of every feature cover the full range. Otherwise the rates are those of a part of the
        /// range, and after a gap they are too low.
        is_full_range: bool,
    },
    /// These features (indices in the schema) have no sample in the row.
    Missing(Vec<usize>),
    /// Every feature has a sample in the row, and these have too few samples in the range for a rate.
    TooFewSamples(Vec<usize>),
}

/// Reads the rows of one window by a [`Schema`], with reused buffers.
#[derive(Clone, Debug)]
pub struct RowReader {
    columns: Vec<Option<Column>>,
    scratch: Vec<Sample>,
}

impl RowReader {
    /// A reader for the columns that the window has now. A feature without a column is missing in every row, so
    /// create a new reader when the window gets new columns.
    pub fn new(schema: &Schema, window: &Window) -> Self {
        let columns = schema.features.iter().map(|feature| window.find_column(feature)).collect();
        Self { columns, scratch: Vec::new() }
    }

    /// True if the row that contains `timestamp_ms` has a staleness marker.
    pub fn has_staleness_marker(&self, schema: &Schema, window: &Window, timestamp_ms: i64) -> bool {
        let (after_ms, to_ms) = schema.grid.bounds(timestamp_ms);
        let newest = |column: &Column| window.newest_sample(*column, after_ms, to_ms);
        self.columns.iter().flatten().filter_map(newest).any(|sample| sample.is_stale())
    }

    /// True if the newest sample of a feature in `(after_ms, to_ms]` is a value.
    pub fn has_value_since(&self, window: &Window, after_ms: i64, to_ms: i64) -> bool {
        let newest = |column: &Column| window.newest_sample(*column, after_ms, to_ms);
        self.columns.iter().flatten().filter_map(newest).any(|sample| !sample.is_stale())
    }

    /// Reads the row that contains `timestamp_ms`. Clears `out` and fills it with the values of the features, as the
    /// `f32` that the forest compares: one per feature if the row is complete.
    ///
    /// Calls `on_event` for each counter event with a sample in this row.
    pub fn read_row(
        &mut self,
        schema: &Schema,
        window: &Window,
        timestamp_ms: i64,
        out: &mut Vec<f32>,
        mut on_event: impl FnMut(CounterEvent),
    ) -> Row {
        out.clear();
        let (after_ms, to_ms) = schema.grid.bounds(timestamp_ms);
        let mut row_ms = i64::MIN;
        let mut missing = Vec::new();
        let rows = window.rows(after_ms, to_ms);
        for (i, column) in self.columns.iter().enumerate() {
            let sample = column.and_then(|column| rows.newest_sample(column));
            match sample.filter(|sample| !sample.is_stale()) {
                Some(sample) => row_ms = row_ms.max(sample.timestamp_ms),
                None => missing.push(i),
            }
        }
        if !missing.is_empty() {
            return Row::Missing(missing);
        }
        let mut is_full_range = true;
        let Self { columns, scratch } = self;
        let used_after_ms = match schema.transform {
            Transform::Rate { .. } => row_ms - schema.transform.lookback_ms(),
            Transform::Value => after_ms,
        };
        let rows = window.rows(used_after_ms, row_ms);
        for (i, column) in columns.iter().flatten().enumerate() {
            match compute_value(scratch, schema, &rows, *column, (after_ms, row_ms), &mut on_event) {
                Some((value, covers_range)) => {
                    is_full_range &= covers_range;
                    out.push(value as f32);
                }
                None => missing.push(i),
            }
        }
        if missing.is_empty() {
            Row::Complete { timestamp_ms: row_ms, is_full_range }
        } else {
            Row::TooFewSamples(missing)
        }
    }
}

/// The value of one feature of the row in `(after_ms, row_ms]`, and true if its samples cover its range and
/// began before it. `rows` are those that the transform uses.
fn compute_value(
    scratch: &mut Vec<Sample>,
    schema: &Schema,
    rows: &Rows<'_>,
    column: Column,
    (after_ms, row_ms): (i64, i64),
    on_event: &mut impl FnMut(CounterEvent),
) -> Option<(f64, bool)> {
    let Transform::Rate { range_ms, semantics } = schema.transform else {
        return rows.newest_sample(column).map(|sample| (sample.value, true));
    };
    scratch.clear();
    rows.samples(column, scratch);
    scratch.retain(|sample| !sample.is_stale());
    counter::repair(scratch, |at_ms, event| {
        if at_ms > after_ms {
            on_event(event);
        }
    });
    let range_after_ms = semantics.after_ms(row_ms, range_ms);
    let start = scratch.partition_point(|sample| sample.timestamp_ms <= range_after_ms);
    let rate = rate::rate(&scratch[start..], row_ms, range_ms, semantics)?;
    Some((rate.per_second, rate.covers_range && start > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prom::STALE_BITS;

    const RATE: Transform = Transform::Rate { range_ms: 60_000, semantics: RateSemantics::V3 };

    fn feature(device: &str) -> Labels {
        Labels::new([("__name__", "rx"), ("device", device)]).expect("valid")
    }

    fn window(series: &[(&str, &[(i64, f64)])]) -> Window {
        let mut window = Window::new(i64::MAX / 4);
        for (device, samples) in series {
            let column = window.get_or_add_column(&feature(device)).expect("few");
            for (timestamp_ms, value) in *samples {
                window.push(column, Sample { timestamp_ms: *timestamp_ms, value: *value });
            }
        }
        window
    }

    fn read(window: &Window, grid: Grid, timestamp_ms: i64) -> (Row, Vec<f32>) {
        let features = vec![feature("eth0"), feature("lo")];
        let schema = Schema { features, transform: RATE, grid };
        let mut out = Vec::new();
        let row = RowReader::new(&schema, window).read_row(&schema, window, timestamp_ms, &mut out, |_| {});
        (row, out)
    }

    #[test]
    fn bytes_and_packets_of_the_same_labels_have_a_mean_size() {
        let features = [
            ("node_network_receive_bytes_total", "eth0"),
            ("node_network_receive_bytes_total", "lo"),
            ("node_network_receive_packets_total", "eth0"),
            ("node_network_transmit_packets_total", "eth0"),
            ("node_network_transmit_bytes_total", "eth0"),
            ("node_network_transmit_bytes_total", "lo"),
        ];
        let labels = |(name, device)| Labels::new([(METRIC_NAME, name), ("device", device)]).expect("valid");
        let schema = Schema { features: features.map(labels).to_vec(), transform: RATE, grid: Grid::Exact };
        assert_eq!(schema.mean_sizes(), [[0, 2], [4, 3]]);
        assert_eq!(Schema { transform: Transform::Value, ..schema }.mean_sizes(), [[0; 2]; 0]);
    }

    #[test]
    fn a_row_is_complete_incomplete_or_too_short() {
        let stale = f64::from_bits(STALE_BITS);
        let window = window(&[
            ("eth0", &[(0, 0.0), (15_000, 15.0), (30_000, 30.0)]),
            ("lo", &[(0, 0.0), (15_000, 30.0), (30_000, stale)]),
        ]);
        assert_eq!(read(&window, Grid::Exact, 0).0, Row::TooFewSamples(vec![0, 1]));
        let (row, values) = read(&window, Grid::Exact, 15_000);
        assert_eq!(row, Row::Complete { timestamp_ms: 15_000, is_full_range: false });
        assert_eq!(values, [0.25, 0.5]);
        assert_eq!(read(&window, Grid::Exact, 30_000).0, Row::Missing(vec![1]));
        assert_eq!(read(&window, Grid::Exact, 45_000).0, Row::Missing(vec![0, 1]));
    }

    #[test]
    fn targets_at_different_phases_share_a_row() {
        let window = window(&[
            ("eth0", &[(1_000, 0.0), (16_000, 15.0), (31_000, 30.0)]),
            ("lo", &[(4_000, 0.0), (19_000, 30.0), (34_000, 60.0)]),
        ]);
        let grid = Grid::Slots { interval_ms: 15_000, slot_start_ms: 10_000 };
        for timestamp_ms in [31_000, 34_000] {
            let (row, values) = read(&window, grid, timestamp_ms);
            assert_eq!(row, Row::Complete { timestamp_ms: 34_000, is_full_range: false });
            assert_eq!(values.len(), 2);
        }
        assert_eq!(read(&window, Grid::Exact, 31_000).0, Row::Missing(vec![1]));
    }

    #[test]
    fn a_row_after_a_gap_covers_no_full_range() {
        let times = (0..20).chain(22..40).chain(44..60).chain(61..70);
        let samples: Vec<(i64, f64)> = times.map(|i| (i * 15_000, i as f64 * 1500.0)).collect();
        let window = window(&[("eth0", &samples), ("lo", &samples)]);
        let is_low = |timestamp_ms: &i64| read(&window, Grid::Exact, *timestamp_ms).1 != [100.0; 2];
        let covers = |timestamp_ms: &i64| {
            matches!(read(&window, Grid::Exact, *timestamp_ms).0, Row::Complete { is_full_range: true, .. })
        };
        let after_start = || samples[4..].iter().map(|(timestamp_ms, _)| timestamp_ms);
        let not_covered: Vec<i64> = after_start().filter(|at| !covers(at)).map(|at| at / 15_000).collect();
        assert_eq!(not_covered, [23, 24, 44, 45, 46, 63]);
        assert!(after_start().filter(|at| is_low(at)).all(|at| !covers(at)));
    }

    #[test]
    fn a_dip_causes_no_spike_while_it_is_in_the_range() {
        let mut samples: Vec<(i64, f64)> = (0..20).map(|i| (i * 15_000, 1e9 + i as f64 * 1500.0)).collect();
        samples[8].1 = 0.0;
        samples[12].1 -= 1e6;
        let window = window(&[("eth0", &samples), ("lo", &samples)]);
        for (timestamp_ms, _) in &samples[2..] {
            let (_, values) = read(&window, Grid::Exact, *timestamp_ms);
            assert!(values.iter().all(|v| (0.0..=101.0).contains(v)), "{timestamp_ms}: {values:?}");
        }
    }
}
