//! Benchmarks of a window: storing samples and reading feature rows, against a map of cells.

use divan::Bencher;
use divan::counter::ItemsCount;
use promforest::features::rate::RateSemantics;
use promforest::features::{RowReader, Schema, Transform};
use promforest::prom::{Labels, METRIC_NAME, Sample};
use promforest::window::grid::Grid;
use promforest::window::{Column, Window};
use std::collections::BTreeMap;
use std::hint::black_box;

/// Features of a host: five devices, four metrics.
const FEATURES: usize = 20;
/// Rows of the default window: six hours of a scrape every 15 s.
const ROWS: i64 = 1440;
const STEP_MS: i64 = 15_000;
const START_MS: i64 = 1_700_000_000_000;

fn main() {
    divan::main();
}

fn features() -> Vec<Labels> {
    let mut features: Vec<Labels> = (0..FEATURES)
        .map(|i| Labels::new([(METRIC_NAME, "rx"), ("device", format!("eth{i}").as_str())]).expect("valid"))
        .collect();
    features.sort();
    features
}

fn sample(row: i64, feature: usize) -> Sample {
    Sample { timestamp_ms: START_MS + row * STEP_MS, value: (row * 1500) as f64 + feature as f64 }
}

fn filled() -> Window {
    let mut window = Window::new(ROWS * STEP_MS);
    let columns: Vec<Column> =
        features().iter().map(|f| window.get_or_add_column(f).expect("the window has few columns")).collect();
    for row in 0..ROWS {
        for (i, column) in columns.iter().enumerate() {
            window.push(*column, sample(row, i));
        }
    }
    window
}

/// One scrape into a full window, which slides.
#[divan::bench]
fn push_row(bencher: Bencher) {
    let mut window = filled();
    let columns: Vec<Column> =
        features().iter().map(|f| window.get_or_add_column(f).expect("the window has few columns")).collect();
    let mut row = ROWS;
    bencher.counter(ItemsCount::new(FEATURES)).bench_local(move || {
        for (i, column) in columns.iter().enumerate() {
            black_box(window.push(*column, sample(row, i)));
        }
        row += 1;
    });
}

/// A window filled series by series, as by remote read: all series but the first go to sealed rows.
#[divan::bench(args = [20, 200])]
fn fill_by_series(bencher: Bencher, n_series: usize) {
    let label = |i: usize| Labels::new([(METRIC_NAME, "rx"), ("device", format!("eth{i}").as_str())]);
    let labels: Vec<Labels> = (0..n_series).map(|i| label(i).expect("valid")).collect();
    bencher.counter(ItemsCount::new(n_series * ROWS as usize)).bench_local(|| {
        let mut window = Window::new(ROWS * STEP_MS);
        for (i, labels) in labels.iter().enumerate() {
            let column = window.get_or_add_column(labels).expect("the window has few columns");
            for row in 0..ROWS {
                black_box(window.push(column, sample(row, i)));
            }
        }
        window
    });
}

/// The same as [`push_row`] into a map from time and feature to value.
#[divan::bench]
fn push_row_into_a_map(bencher: Bencher) {
    let mut cells: BTreeMap<(i64, usize), f64> = BTreeMap::new();
    for row in 0..ROWS {
        for i in 0..FEATURES {
            cells.insert((sample(row, i).timestamp_ms, i), sample(row, i).value);
        }
    }
    let mut row = ROWS;
    bencher.counter(ItemsCount::new(FEATURES)).bench_local(move || {
        for i in 0..FEATURES {
            let sample = sample(row, i);
            black_box(cells.insert((sample.timestamp_ms, i), sample.value));
            cells.pop_first();
        }
        row += 1;
    });
}

/// The newest row of a model: twenty rates over a minute.
#[divan::bench]
fn read_row(bencher: Bencher) {
    let window = filled();
    let transform = Transform::Rate { range_ms: 60_000, semantics: RateSemantics::V3 };
    let schema = Schema { features: features(), transform, grid: Grid::Exact };
    let mut reader = RowReader::new(&schema, &window);
    let mut values = Vec::new();
    let newest_ms = window.newest_ms().expect("filled");
    bencher
        .counter(ItemsCount::new(FEATURES))
        .bench_local(move || black_box(reader.read_row(&schema, &window, newest_ms, &mut values, |_| {})));
}
