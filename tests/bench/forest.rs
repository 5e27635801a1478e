//! Benchmarks of the forests: fitting, scoring one row, scoring a table. Scoring is compared with the reference
//! implementation of the same forest in the same run.
//!
//!     cargo bench --bench forest

use std::num::NonZeroUsize;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use promforest::forest::reference::{ReferenceExtendedForest, ReferenceForest};
use promforest::forest::{ExtendedForest, ExtendedParams, Forest, ForestParams, MaxSamples, Table};

/// Five days at one row every 15 s: the default training history.
const N_ROWS: usize = 28_800;

/// Bytes and packets, in and out, of five network interfaces.
const N_FEATURES: usize = 20;

/// scikit-learn's automatic choice, and a frequent result of a sweep on such data.
const MAX_SAMPLES: [usize; 2] = [256, 2_000];

/// Rows scored in turn by the one-row cases: enough that no walk repeats the branches of the previous one, and few
/// enough to stay in the cache with the forest.
const WARM_ROWS: usize = 64;

fn main() {
    divan::main();
}

/// Rates with a daily wave, noise and rare bursts, shape `[N_ROWS, N_FEATURES]`, column-major.
fn values() -> Vec<f32> {
    let mut state = 0x5eed_u64;
    let mut uniform = || {
        // An MMIX linear congruential generator (Knuth); its quality suffices for noise.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let mut values = Vec::with_capacity(N_ROWS * N_FEATURES);
    for feature in 0..N_FEATURES {
        let scale = 10f32.powi(feature as i32 % 5);
        for row in 0..N_ROWS {
            let day = row as f32 / 5_760.0; // rows a day
            let wave = 1.0 + 0.5 * (std::f32::consts::TAU * day + feature as f32).sin();
            let noise = 0.2 * (uniform() + uniform() + uniform() - 1.5);
            let burst = if uniform() < 0.002 { 10.0 * uniform() } else { 0.0 };
            values.push(scale * (wave + noise + burst));
        }
    }
    values
}

fn table(values: &[f32]) -> Table<'_> {
    Table::new(values, N_ROWS, N_FEATURES).expect("the shape of the data")
}

fn params(max_samples: usize) -> ForestParams {
    let max_samples = MaxSamples::count(max_samples).expect("above 0");
    ForestParams { max_samples, ..Default::default() }
}

fn forest(values: &[f32], max_samples: usize) -> Forest {
    params(max_samples).fit(&table(values), NonZeroUsize::MIN).expect("finite data")
}

fn reference_forest(forest: &Forest) -> ReferenceForest {
    ReferenceForest::new(forest.trees(), forest.max_samples())
}

/// Rows from all over the table, shape `[WARM_ROWS][N_FEATURES]`.
fn warm_rows(values: &[f32]) -> Vec<[f32; N_FEATURES]> {
    let mut rows = vec![[0.0; N_FEATURES]; WARM_ROWS];
    for (number, row) in rows.iter_mut().enumerate() {
        table(values).copy_row(number * (N_ROWS / WARM_ROWS), row);
    }
    rows
}

#[divan::bench(args = MAX_SAMPLES)]
fn fit(bencher: Bencher, max_samples: usize) {
    let values = values();
    let params = params(max_samples);
    bencher.bench_local(|| params.fit(black_box(&table(&values)), NonZeroUsize::MIN));
}

/// One pass over the warm rows, one at a time.
#[divan::bench_group]
mod one_row {
    use super::*;

    #[divan::bench(args = MAX_SAMPLES)]
    fn optimized(bencher: Bencher, max_samples: usize) {
        let values = values();
        let forest = forest(&values, max_samples);
        let rows = warm_rows(&values);
        bencher
            .counter(ItemsCount::new(WARM_ROWS))
            .bench_local(|| rows.iter().map(|row| forest.score_samples(black_box(row))).sum::<f64>());
    }

    #[divan::bench(args = MAX_SAMPLES)]
    fn reference(bencher: Bencher, max_samples: usize) {
        let values = values();
        let reference = reference_forest(&forest(&values, max_samples));
        let rows = warm_rows(&values);
        bencher
            .counter(ItemsCount::new(WARM_ROWS))
            .bench_local(|| rows.iter().map(|row| reference.score_samples(black_box(row))).sum::<f64>());
    }
}

/// A live row of each of many forests, which do not fit in the cache together.
#[divan::bench(args = MAX_SAMPLES, sample_count = 20)]
fn one_row_cold(bencher: Bencher, max_samples: usize) {
    const N_FORESTS: usize = 1_000;
    let values = values();
    let fit = |seed: usize| {
        let params = ForestParams { random_state: seed as u64, ..params(max_samples) };
        params.fit(&table(&values), NonZeroUsize::MIN).expect("finite data")
    };
    let forests: Vec<Forest> = (0..N_FORESTS).map(fit).collect();
    let rows = warm_rows(&values);
    // In an order that no prefetcher follows.
    let visits: Vec<_> =
        (0..N_FORESTS).map(|i| (&forests[i * 181 % N_FORESTS], &rows[i % WARM_ROWS])).collect();
    bencher.counter(ItemsCount::new(N_FORESTS)).bench_local(|| {
        visits.iter().map(|(forest, row)| forest.score_extrapolated(black_box(*row))).sum::<f64>()
    });
}

/// All rows of the table.
#[divan::bench_group(sample_count = 10)]
mod whole_table {
    use super::*;

    #[divan::bench(args = MAX_SAMPLES)]
    fn optimized(bencher: Bencher, max_samples: usize) {
        let values = values();
        let forest = forest(&values, max_samples);
        let mut scores = vec![0.0; N_ROWS];
        bencher
            .counter(ItemsCount::new(N_ROWS))
            .bench_local(|| forest.score_table(black_box(&table(&values)), &mut scores));
    }

    #[divan::bench(args = MAX_SAMPLES)]
    fn reference(bencher: Bencher, max_samples: usize) {
        let values = values();
        let reference = reference_forest(&forest(&values, max_samples));
        let mut row = [0.0; N_FEATURES];
        let mut scores = vec![0.0; N_ROWS];
        bencher.counter(ItemsCount::new(N_ROWS)).bench_local(|| {
            for (number, score) in scores.iter_mut().enumerate() {
                table(&values).copy_row(number, &mut row);
                *score = reference.score_samples(black_box(&row));
            }
        });
    }
}

/// The extended forest, on four columns per series: four copies of the table.
#[divan::bench_group]
mod extended {
    use super::*;

    const N_COLUMNS: usize = 4 * N_FEATURES;

    /// Approximately standardised, by the deviation of the wave. Copies differ by a sign or a shift in time.
    fn columns() -> Vec<f32> {
        let values = values();
        let columns = (0..N_COLUMNS).flat_map(|column| {
            let feature = column % N_FEATURES;
            let scale = 0.4 * 10f32.powi(feature as i32 % 5);
            let shift = column / N_FEATURES * 100;
            let rows = &values[feature * N_ROWS..][..N_ROWS];
            (0..N_ROWS).map(move |row| rows[(row + shift) % N_ROWS] / scale - 2.5)
        });
        columns.collect()
    }

    fn table(columns: &[f32]) -> Table<'_> {
        Table::new(columns, N_ROWS, N_COLUMNS).expect("the shape of the data")
    }

    fn forest(columns: &[f32]) -> ExtendedForest {
        ExtendedParams::default().fit(&table(columns), NonZeroUsize::MIN).expect("finite data")
    }

    fn warm_rows(columns: &[f32]) -> Vec<[f32; N_COLUMNS]> {
        let mut rows = vec![[0.0; N_COLUMNS]; WARM_ROWS];
        for (number, row) in rows.iter_mut().enumerate() {
            table(columns).copy_row(number * (N_ROWS / WARM_ROWS), row);
        }
        rows
    }

    #[divan::bench]
    fn fit(bencher: Bencher) {
        let columns = columns();
        let params = ExtendedParams::default();
        bencher.bench_local(|| params.fit(black_box(&table(&columns)), NonZeroUsize::MIN));
    }

    #[divan::bench]
    fn one_row(bencher: Bencher) {
        let columns = columns();
        let forest = forest(&columns);
        let rows = warm_rows(&columns);
        bencher
            .counter(ItemsCount::new(WARM_ROWS))
            .bench_local(|| rows.iter().map(|row| forest.score_samples(black_box(row))).sum::<f64>());
    }

    /// One row of each of many forests, which do not fit in the cache together.
    #[divan::bench(sample_count = 20)]
    fn one_row_cold(bencher: Bencher) {
        const N_FORESTS: usize = 300;
        let columns = columns();
        let fit = |seed: usize| {
            let params = ExtendedParams { random_state: seed as u64, ..Default::default() };
            params.fit(&table(&columns), NonZeroUsize::MIN).expect("finite data")
        };
        let forests: Vec<ExtendedForest> = (0..N_FORESTS).map(fit).collect();
        let rows = warm_rows(&columns);
        // In an order that no prefetcher follows.
        let visits: Vec<_> =
            (0..N_FORESTS).map(|i| (&forests[i * 181 % N_FORESTS], &rows[i % WARM_ROWS])).collect();
        bencher.counter(ItemsCount::new(N_FORESTS)).bench_local(|| {
            visits.iter().map(|(forest, row)| forest.score_samples(black_box(*row))).sum::<f64>()
        });
    }

    #[divan::bench]
    fn one_row_reference(bencher: Bencher) {
        let columns = columns();
        let forest = forest(&columns);
        let reference = ReferenceExtendedForest::new(forest.trees(), forest.max_samples());
        let rows = warm_rows(&columns);
        bencher
            .counter(ItemsCount::new(WARM_ROWS))
            .bench_local(|| rows.iter().map(|row| reference.score_samples(black_box(row))).sum::<f64>());
    }

    #[divan::bench(sample_count = 10)]
    fn whole_table(bencher: Bencher) {
        let columns = columns();
        let forest = forest(&columns);
        let mut scores = vec![0.0; N_ROWS];
        bencher
            .counter(ItemsCount::new(N_ROWS))
            .bench_local(|| forest.score_table(black_box(&table(&columns)), &mut scores));
    }
}
