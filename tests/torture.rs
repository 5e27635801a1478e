//! For minutes, promforest and Prometheus are killed, stopped and continued at random moments, and promforest's files are
//! damaged or deleted. Then every stored score equals a recomputation from Prometheus' own samples, every other row is in a
//! counter, and the window equals the samples of Prometheus.
//!
//! `cargo test --test torture` takes two minutes; `PROMFOREST_TORTURE_MINUTES=30` takes longer, and
//! `PROMFOREST_TORTURE_SEED` repeats the choices of another run (the seed is printed).

mod support;

use promforest::features::{Row, RowReader};
use promforest::models::{FittedModel, Model, artifact, score};
use promforest::prom::wire::snappy;
use promforest::prom::{Labels, Sample, Selector, proto};
use promforest::window::Window;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};
use support::stack::{Collectors, JOB_NODE, MODEL_TIMEOUT, RemoteWriteReceiver, SHORT_TIMEOUT, Stack};
use support::{Process, each_version, http, now_ms};

/// The window holds the longest run, and the model scores each row alone, so that every score can be recomputed.
const DETECTOR: &str = r#"
  - name: node_network
    match: ['{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device="lo"}']
    transform: rate(10s)
    window: 3h
    grace: 5s
    training: {history: 3h, min_history: 10s, interval: 3h}
    model: {kind: isolation_forest}
"#;
/// No version is pruned: the check of a score needs its version.
const REGISTRY: &str = "registry: {path: models, keep_versions: 1000}";
const INPUT: &str = r#"{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device="lo"}"#;
const SCORES: &str = r#"{__name__="anomaly_score", detector="node_network", model=""}"#;
/// Samples of a row of this model: decision and score.
const SAMPLES_OF_A_ROW: f64 = 2.0;

/// A linear congruential generator (Knuth's MMIX): a run can be repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn millis(&mut self, most: usize) -> Duration {
        Duration::from_millis(self.below(most) as u64)
    }
}

fn env_number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn f1_f2_f3_f4_f5_f6_f7_f14_f22_f28_f45_random_faults_lose_nothing() {
    let minutes = env_number("PROMFOREST_TORTURE_MINUTES").unwrap_or(1);
    let seed = env_number("PROMFOREST_TORTURE_SEED").unwrap_or_else(|| now_ms().cast_unsigned());
    println!("PROMFOREST_TORTURE_SEED={seed}");
    each_version(|version| {
        let mut stack = Stack::new(version, Collectors::Network, &JOB_NODE);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure_file("promforest.yml", REGISTRY, DETECTOR);
        stack.start_promforest();
        stack.wait("the first scores", MODEL_TIMEOUT, |at| at.scores().map(drop));
        let began_ms = now_ms();
        let mut totals = CounterTotals::default();
        totals.read(&stack);
        totals.set_baseline();
        let until = Instant::now() + Duration::from_secs(60 * minutes);
        let mut random = Random(seed ^ version as u64);
        while Instant::now() < until {
            let pause = Instant::now() + Duration::from_secs(4) + random.millis(8_000);
            while Instant::now() < pause {
                thread::sleep(Duration::from_millis(200));
                totals.read(&stack);
            }
            inject_fault(&mut stack, &mut random, &mut totals);
        }
        stack.wait_for_score_at(now_ms());
        // Gaps are found and filled.
        thread::sleep(SETTLE);
        let settled_ms = now_ms() - 5_000;
        stack.wait_for_score_at(settled_ms);
        totals.read(&stack);
        compare_with_recomputation(&stack, &totals, (began_ms, settled_ms));
    });
}

/// Longer than the pause before a failed gap fill is repeated.
const SETTLE: Duration = Duration::from_secs(25);

/// One thing that should never happen.
fn inject_fault(stack: &mut Stack, random: &mut Random, totals: &mut CounterTotals) {
    let (version, at) = (stack.version, now_ms());
    let report = |what: &str| println!("{version}: {at}: {what}");
    match random.below(8) {
        0 | 1 => {
            report("promforest is killed");
            kill_promforest(stack, totals);
            thread::sleep(random.millis(4_000));
            stack.start_promforest();
        }
        2 => {
            report("promforest is killed, and what it kept is damaged");
            kill_promforest(stack, totals);
            damage(stack, random);
            stack.start_promforest();
        }
        3 => {
            report("promforest ends, and starts again");
            totals.read(stack);
            stack.promforest.take().expect("the program runs").terminate(SHORT_TIMEOUT);
            totals.end_process();
            stack.start_promforest();
        }
        4 => {
            report("Prometheus is killed");
            stack.prometheus.take().expect("the program runs").kill();
            thread::sleep(random.millis(4_000));
            stack.start_prometheus(RemoteWriteReceiver::Enabled);
        }
        5 => {
            report("both are killed");
            kill_promforest(stack, totals);
            stack.prometheus.take().expect("the program runs").kill();
            thread::sleep(random.millis(2_000));
            stack.start_prometheus(RemoteWriteReceiver::Enabled);
            stack.start_promforest();
        }
        6 => {
            report("promforest stands still");
            pause(stack.promforest.as_ref(), random);
        }
        _ => {
            report("Prometheus stands still");
            pause(stack.prometheus.as_ref(), random);
        }
    }
}

fn kill_promforest(stack: &mut Stack, totals: &mut CounterTotals) {
    totals.read(stack);
    stack.kill_promforest();
    totals.end_process();
}

fn pause(process: Option<&Process>, random: &mut Random) {
    let process = process.expect("the program runs");
    process.signal("STOP");
    thread::sleep(Duration::from_secs(1) + random.millis(8_000));
    process.signal("CONT");
}

/// Deletes, empties, cuts or flips a bit of each file that is not a model.
fn damage(stack: &Stack, random: &mut Random) {
    for path in files_outside_registry(&stack.dir.path().join("promforest-data")) {
        let mut bytes = fs::read(&path).expect("a file of promforest's");
        let what = random.below(4);
        match what {
            0 => fs::remove_file(&path).expect("the folder is writable"),
            1 => bytes.clear(),
            2 => bytes.truncate(bytes.len() / 2),
            _ if bytes.is_empty() => {}
            _ => {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
        }
        println!("{}: damage {what} to {}", stack.version, path.display());
        if what > 0 {
            fs::write(&path, bytes).expect("the folder is writable");
        }
    }
}

/// The files under a folder without the registry: a lost model is not trained again to the same bits.
fn files_outside_registry(folder: &PathBuf) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.expect("readable").path()) {
        match path.is_dir() {
            true if path.ends_with("models") => {}
            true => files.extend(files_outside_registry(&path)),
            false => files.push(path),
        }
    }
    files.sort();
    files
}

/// Totals of promforest's counters over all its processes, by series. Counts between the last read and a kill are
/// unknown: a loss in that time is in no counter.
#[derive(Default)]
struct CounterTotals {
    /// Of ended processes.
    ended_processes: BTreeMap<String, f64>,
    /// Of the running process.
    current_process: BTreeMap<String, f64>,
    /// Counts before the comparison began.
    baseline: BTreeMap<String, f64>,
}

impl CounterTotals {
    /// Reads the counters, if there is an answer.
    fn read(&mut self, stack: &Stack) {
        let Ok(page) = http::get(&stack.api.promforest, "/metrics") else { return };
        let counter = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let wanted = ["promforest_rows_total{", "promforest_remote_write_samples_failed_total{"];
            let wanted = wanted.iter().any(|name| series.starts_with(name));
            Some((series.to_string(), value.parse().ok()?)).filter(|_| wanted)
        };
        let read: BTreeMap<String, f64> = page.body.lines().filter_map(counter).collect();
        if !read.is_empty() {
            self.current_process = read;
        }
    }

    /// The process has ended.
    fn end_process(&mut self) {
        for (series, value) in std::mem::take(&mut self.current_process) {
            *self.ended_processes.entry(series).or_default() += value;
        }
    }

    fn set_baseline(&mut self) {
        self.baseline = self.current_process.clone();
    }

    /// Everything that was counted since the comparison began, of the series with this text in them.
    fn since_baseline(&self, text: &str) -> f64 {
        let sum = |counters: &BTreeMap<String, f64>| -> f64 {
            counters.iter().filter(|(series, _)| series.contains(text)).map(|(_, value)| value).sum()
        };
        sum(&self.ended_processes) + sum(&self.current_process) - sum(&self.baseline)
    }
}

fn compare_with_recomputation(stack: &Stack, totals: &CounterTotals, (from_ms, to_ms): (i64, i64)) {
    let version = stack.version;
    let long_before_ms = from_ms - 600_000;
    let input = remote_read(&stack.api.prometheus.0, INPUT, long_before_ms, to_ms);
    let scores = remote_read(&stack.api.prometheus.0, SCORES, from_ms, to_ms);
    let stored: BTreeMap<i64, f64> = scores
        .into_iter()
        .flat_map(|(_, samples)| samples)
        .filter(|sample| !sample.is_stale())
        .map(|sample| (sample.timestamp_ms, sample.value))
        .collect();
    let models = models(stack);
    assert!(!models.is_empty(), "{version}: no model in the registry");
    let expected = recomputed(&input, &models, from_ms, to_ms);

    let unexpected: Vec<i64> = stored.keys().filter(|at| !expected.contains_key(at)).copied().collect();
    assert!(unexpected.is_empty(), "{version}: scores of no complete row: {unexpected:?}");
    let missing: Vec<i64> = expected.keys().filter(|at| !stored.contains_key(at)).copied().collect();
    let differing: Vec<i64> = stored
        .iter()
        .filter(|(at, value)| !expected[at].contains(&value.to_bits()))
        .map(|(at, _)| *at)
        .collect();
    let rows = |state: &str| totals.since_baseline(&format!("state=\"{state}\""));
    let never_scored: f64 = ["incomplete", "too_short", "stale", "no_model", "late"].map(rows).iter().sum();
    let failed = |reason: &str| totals.since_baseline(&format!("reason=\"{reason}\"")) / SAMPLES_OF_A_ROW;
    let failed_to_write: f64 = ["rejected", "too_old", "out_of_order"].map(failed).iter().sum();
    let revised = failed("revised");
    println!(
        "{version}: {} rows, {} scores stored, {} missing (counted: {never_scored} never scored, {failed_to_write} not \
         written), {} with other bits (counted: {revised} revised); {} models",
        expected.len(),
        stored.len(),
        missing.len(),
        differing.len(),
        models.len(),
    );
    let enough = expected.len() >= 30;
    assert!(enough, "{version}: only {} rows\n{}", expected.len(), stack.promforest_tail());
    assert!(
        missing.len() as f64 <= never_scored + failed_to_write,
        "{version}: lost, and no counter shows it: {missing:?}; {never_scored} and {failed_to_write} are counted\n{}",
        stack.promforest_tail()
    );
    assert!(
        differing.len() as f64 <= revised,
        "{version}: scores that no model gives to these rows: {differing:?}; {revised} are counted\n{}",
        stack.promforest_tail()
    );
    compare_window(stack, &input, to_ms);
}

/// Checks that remote read of promforest returns the samples of Prometheus, bit for bit, and all of them.
fn compare_window(stack: &Stack, input: &[(Labels, Vec<Sample>)], to_ms: i64) {
    let version = stack.version;
    let cells = |series: &[(Labels, Vec<Sample>)]| -> BTreeMap<(i64, Labels), u64> {
        let cells = series.iter().flat_map(|(labels, samples)| {
            samples.iter().map(|sample| ((sample.timestamp_ms, labels.clone()), sample.value.to_bits()))
        });
        cells.collect()
    };
    let ours = cells(&remote_read(&stack.api.promforest, INPUT, i64::MIN, to_ms));
    let theirs = cells(input);
    let others: Vec<_> = ours.iter().filter(|(cell, bits)| theirs.get(cell) != Some(bits)).collect();
    let missing: Vec<_> = theirs.keys().filter(|cell| !ours.contains_key(cell)).collect();
    println!("{version}: {} samples in the window, {} are lacking", ours.len(), missing.len());
    assert!(others.is_empty(), "{version}: samples of the window that Prometheus does not have: {others:?}");
    assert!(
        missing.is_empty() && !ours.is_empty(),
        "{version}: the window lacks samples: {missing:?}\n{}",
        stack.promforest_tail()
    );
}

/// Every model that may have served.
fn models(stack: &Stack) -> Vec<Model> {
    let mut models = Vec::new();
    let registry = stack.dir.path().join("promforest-data/models");
    for of_group in fs::read_dir(registry).expect("a registry") {
        let of_group = of_group.expect("readable").path();
        for entry in fs::read_dir(of_group).into_iter().flatten() {
            let folder = entry.expect("readable").path();
            let is_version =
                folder.file_name().is_some_and(|name| name.to_string_lossy().parse::<u64>().is_ok());
            if is_version {
                let files = artifact::read_files(&folder).expect("a version is there as a whole");
                models.push(artifact::read_model(&files).expect("a version is valid"));
            }
        }
    }
    models
}

/// The scores that each model gives to every complete row, from all samples at once.
fn recomputed(
    input: &[(Labels, Vec<Sample>)],
    models: &[Model],
    from_ms: i64,
    to_ms: i64,
) -> BTreeMap<i64, BTreeSet<u64>> {
    let by = ["instance".to_string(), "job".to_string()];
    let mut window = Window::new(i64::MAX / 4);
    for (labels, samples) in input {
        let (_, feature) = labels.split(&by);
        let column = window.get_or_add_column(&feature).expect("few features");
        for sample in samples {
            window.push(column, *sample);
        }
    }
    let mut scores: BTreeMap<i64, BTreeSet<u64>> = BTreeMap::new();
    let mut values = Vec::new();
    for model in models {
        let FittedModel::IsolationForest(forest) = &model.fitted else {
            panic!("the detector wants a plain forest")
        };
        let mut reader = RowReader::new(&model.schema, &window);
        for timestamp_ms in window.timestamps(from_ms, to_ms) {
            let row = reader.read_row(&model.schema, &window, timestamp_ms, &mut values, |_| {});
            if let Row::Complete { timestamp_ms, .. } = row {
                scores.entry(timestamp_ms).or_default().insert(score(forest, &values).score.to_bits());
            }
        }
    }
    scores
}

/// The samples of a selector's series on a server, by remote read.
fn remote_read(address: &str, selector: &str, start_ms: i64, end_ms: i64) -> Vec<(Labels, Vec<Sample>)> {
    let selector = Selector::parse(selector).expect("a selector");
    let query = proto::Query {
        start_timestamp_ms: start_ms,
        end_timestamp_ms: end_ms,
        matchers: selector.matchers().iter().map(proto::LabelMatcher::from).collect(),
    };
    let request = proto::ReadRequest { queries: vec![query], ..Default::default() };
    let body = snappy::compress(&request.encode_to_vec());
    let answer = http::post_message(address, "/api/v1/read", &body);
    let (status, answer) = answer.unwrap_or_else(|err| panic!("{address}: {err}"));
    assert_eq!(status, 200, "{address}: {}", String::from_utf8_lossy(&answer));
    let mut buffer = Vec::new();
    let message = snappy::decompress(&answer, 256 << 20, &mut buffer).expect("snappy");
    let response = proto::ReadResponse::decode(message).expect("a ReadResponse");
    let series = response.results.into_iter().flat_map(|result| result.timeseries);
    let decode = |series: proto::TimeSeries| {
        let labels = Labels::new(series.labels.into_iter().map(|label| (label.name, label.value)));
        let sample = |s: proto::Sample| Sample { timestamp_ms: s.timestamp, value: s.value };
        (labels.expect("a label set"), series.samples.into_iter().map(sample).collect())
    };
    series.map(decode).collect()
}
