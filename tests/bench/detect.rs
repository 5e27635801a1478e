//! Assessment of one row, from values to an incident, compared with an isolation forest on the same values.

use divan::Bencher;
use divan::counter::ItemsCount;
use promforest::detect::{DEFAULT_BUDGET, OnlineDetector};
use promforest::forest::{ExtendedParams, ForestParams, Table};
use std::hint::black_box;
use std::num::NonZeroUsize;

/// Features of a host: five devices, four features each.
const FEATURES: usize = 20;
/// Two days of a row every 15 s.
const ROWS: usize = 11_520;
const STEP_MS: i64 = 15_000;

fn main() {
    divan::main();
}

fn value(row: usize, feature: usize) -> f32 {
    let wave = (row as f32 / ROWS as f32 * 2.0 * std::f32::consts::TAU).sin();
    1000.0 + 500.0 * wave + ((row * (7919 + 2 * feature)) % 101) as f32
}

fn values() -> Vec<f32> {
    (0..FEATURES).flat_map(|feature| (0..ROWS).map(move |row| value(row, feature))).collect()
}

fn new_row(row: usize) -> Vec<f32> {
    (0..FEATURES).map(|feature| value(row, feature)).collect()
}

#[divan::bench]
fn row(bencher: Bencher) {
    let values = values();
    let table = Table::new(&values, ROWS, FEATURES).expect("the table has this shape");
    let times: Vec<i64> = (0..ROWS as i64).map(|row| row * STEP_MS).collect();
    let params = ExtendedParams::default();
    let mut detector =
        OnlineDetector::fit(&times, &table, &params, DEFAULT_BUDGET, NonZeroUsize::MIN).expect("it fits");
    let mut next = ROWS;
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        next += 1;
        black_box(detector.assess(next as i64 * STEP_MS, &new_row(next)))
    });
}

#[divan::bench]
fn row_of_an_isolation_forest(bencher: Bencher) {
    let values = values();
    let table = Table::new(&values, ROWS, FEATURES).expect("the table has this shape");
    let forest = ForestParams::default().fit(&table, NonZeroUsize::MIN).expect("it fits");
    let mut next = ROWS;
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        next += 1;
        black_box(forest.score_samples(&new_row(next)))
    });
}
