//! The resident memory of what a group of 20 features holds, by part: many of each part, and the growth of the process.
//!
//! The values are those of network interfaces: integers that grow by an amount of the same order at each scrape.

use promforest::detect::{DEFAULT_BUDGET, OnlineDetector, Scorer};
use promforest::forest::{ExtendedParams, Table};
use promforest::prom::{Labels, METRIC_NAME, Sample};
use promforest::window::{Column, IncidentState, ModelRole, Score, Window};
use std::fs;
use std::hint::black_box;
use std::num::NonZeroUsize;

/// Features of a host: five devices, four metrics.
const FEATURES: usize = 20;
/// Rows of the default window: six hours of a scrape every 15 s.
const ROWS: usize = 1440;
const STEP_MS: i64 = 15_000;
/// Midnight.
const START_MS: i64 = 1_699_920_000_000;
/// Rows of training: two days.
const TRAINING_ROWS: usize = 8 * ROWS;
/// Copies of each part.
const GROUPS: usize = 200;

/// splitmix64.
struct Rng(u64);

impl Rng {
    /// Uniform in [0, 1).
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The increment of a counter of bytes (even features) or packets, all of one scrape times `load`.
    fn increment(&mut self, feature: usize, load: f64) -> f64 {
        let mean = [40_000.0, 60.0][feature % 2] * (1 + feature / 4) as f64 * 15.0;
        (mean * load * (self.next() - 0.5).exp()).round()
    }
}

fn labels(feature: usize) -> Labels {
    let device = format!("br-0c6e79cd156{}", feature / 4);
    let metric = ["receive_bytes", "receive_packets", "transmit_bytes", "transmit_packets"][feature % 4];
    let metric = format!("node_network_{metric}_total");
    Labels::new([(METRIC_NAME, metric.as_str()), ("device", device.as_str())]).expect("valid")
}

/// A full window with a score in each row.
fn window(group: usize) -> Window {
    let mut rng = Rng(group as u64);
    let mut window = Window::new(ROWS as i64 * STEP_MS);
    let columns: Vec<Column> =
        (0..FEATURES).map(|i| window.get_or_add_column(&labels(i)).expect("few columns")).collect();
    let mut counters: Vec<f64> = (0..FEATURES).map(|i| (rng.increment(i, 1.0) * 40_000.0).round()).collect();
    for row in 0..(ROWS + group % 128) as i64 {
        let timestamp_ms = START_MS + row * STEP_MS;
        let load = (rng.next() - 0.5).exp();
        for (i, counter) in counters.iter_mut().enumerate() {
            *counter += rng.increment(i, load);
            window.push(columns[i], Sample { timestamp_ms, value: *counter });
        }
        let incident_state =
            Some(IncidentState { threshold: 1.0 + row.div_euclid(240) as f64 / 7.0, is_incident: false });
        let score = Score { decision: 0.1 * rng.next(), score: 0.5 + rng.next(), incident_state };
        window.set_score(ModelRole::Champion, timestamp_ms, score);
    }
    window
}

fn fitted() -> OnlineDetector {
    let mut rng = Rng(1);
    let loads: Vec<f64> = (0..TRAINING_ROWS).map(|_| (rng.next() - 0.5).exp()).collect();
    let values: Vec<f32> = (0..FEATURES)
        .flat_map(|feature| {
            let increments: Vec<f32> =
                loads.iter().map(|load| rng.increment(feature, *load) as f32).collect();
            increments
        })
        .collect();
    let table = Table::new(&values, TRAINING_ROWS, FEATURES).expect("the table has this shape");
    let times: Vec<i64> = (0..TRAINING_ROWS as i64).map(|row| START_MS + row * STEP_MS).collect();
    let params = ExtendedParams::default();
    OnlineDetector::fit(&times, &table, &params, DEFAULT_BUDGET, NonZeroUsize::MIN).expect("it fits")
}

/// Resident memory in bytes.
fn resident() -> usize {
    let text = fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok());
    4096 * pages.unwrap_or(0_usize)
}

/// Makes many of a part and prints the growth of the process by each. Keeps them, so that no other part takes their
/// memory.
fn measure<T>(part: &str, make: impl Fn(usize) -> T) -> Vec<T> {
    let before = resident();
    let made: Vec<T> = (0..GROUPS).map(|group| black_box(make(group))).collect();
    println!("{part}: {} KiB", (resident() - before) / GROUPS / 1024);
    made
}

fn main() {
    let fitted = fitted();
    let scorer = |_| Scorer::new(fitted.scorer().parts()).expect("parts of a scorer");
    // Takes the free memory that the fit left.
    let _spare: Vec<Scorer> = (0..50).map(scorer).collect();
    let windows = measure("window", window);
    println!("  its rows: {} KiB", windows.iter().map(Window::n_bytes).sum::<usize>() / GROUPS / 1024);
    let _scorers = measure("scorer of a model", scorer);
    let _states = measure("state of a model", |_| fitted.clone());
}
