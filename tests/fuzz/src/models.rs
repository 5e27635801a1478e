//! Model files: ours, scikit-learn's, ONNX.

use promforest::detect::OnlineDetector;
use promforest::features::rate::RateSemantics;
use promforest::features::{Schema, Transform};
use promforest::forest::{ExtendedParams, Forest, ForestParams, Table};
use promforest::models::{FittedModel, Model, ModelCard, artifact, onnx as graph, sklearn};
use promforest::models::{ImportedForest, import};
use promforest::prom::{Labels, METRIC_NAME};
use promforest::window::grid::Grid;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Cursor, Read as _, Write as _};
use std::num::NonZeroUsize;
use std::sync::LazyLock;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

/// The files of a model's folder that are replaced, one at a time.
const REPLACED: [&str; 5] = ["forest.arrow", "model.json", "state.json", "golden.arrow", "SHA256SUMS"];

/// A plain model and an extended one, small.
pub static MODELS: LazyLock<[Model; 2]> = LazyLock::new(|| {
    const ROWS: usize = 200;
    let values: Vec<f32> = (0..2 * ROWS).map(|i| ((i * 7919) % 1009) as f32 / 10.0).collect();
    let table = Table::new(&values, ROWS, 2).expect("as many values as cells");
    let n_estimators = NonZeroUsize::new(3).expect("above 0");
    let plain = ForestParams { n_estimators, ..Default::default() };
    let extended = ExtendedParams { n_estimators, ..Default::default() };
    let times: Vec<i64> = (0..ROWS as i64).map(|i| 1_699_000_000_000 + i * 720_000).collect();
    let detection = OnlineDetector::fit(&times, &table, &extended, 1.0, NonZeroUsize::MIN)
        .expect("the parameters fit the table");
    [
        FittedModel::IsolationForest(
            plain.fit(&table, NonZeroUsize::MIN).expect("the parameters fit the table"),
        ),
        FittedModel::Extended(Box::new(detection)),
    ]
    .map(model)
});

fn model(fitted: FittedModel) -> Model {
    let feature = |device: &str| Labels::new([(METRIC_NAME, "rx"), ("device", device)]).expect("valid");
    let transform = Transform::Rate { range_ms: 60_000, semantics: RateSemantics::V3 };
    let schema = Schema { features: vec![feature("eth0"), feature("lo")], transform, grid: Grid::Exact };
    Model { schema, fitted, card: ModelCard { origin: "a fuzzer".into(), ..ModelCard::default() } }
}

/// A model with one file replaced, and sums that fit. What is accepted scores rows, and comes back from its own files. The
/// first byte says which file of which model.
pub fn folder(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    let choice = usize::from(*choice) % (MODELS.len() * REPLACED.len());
    let name = REPLACED[choice / MODELS.len()];
    let mut files = artifact::to_files(&MODELS[choice % MODELS.len()]);
    files.insert(name.into(), bytes.to_vec());
    if name != "SHA256SUMS" {
        let mut sums = String::new();
        for (name, bytes) in files.iter().filter(|(name, _)| *name != "SHA256SUMS") {
            let sum = Sha256::digest(bytes);
            let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(sums, "{hex}  {name}").expect("a string takes any text");
        }
        files.insert("SHA256SUMS".into(), sums.into_bytes());
    }
    let Ok(model) = artifact::read_model(&files) else { return };
    match &model.fitted {
        FittedModel::IsolationForest(forest) => score(forest),
        FittedModel::Extended(detection) => {
            let mut detection = detection.as_ref().clone();
            let first_ms = detection.newest_ms().unwrap_or(0);
            for value in [0.0, 50.0, 1e30] {
                let next_ms = detection.newest_ms().unwrap_or(first_ms).saturating_add(15_000);
                let values = vec![value; detection.n_features()];
                let _ = detection.assess(next_ms, &values);
            }
        }
    }
    artifact::read_model(&artifact::to_files(&model))
        .expect("an accepted model can be written and read again");
}

/// The score of a row lies in scikit-learn's range.
fn score(forest: &Forest) {
    for value in [0.0, 50.0, f32::MAX, f32::NAN] {
        let score = forest.score_samples(&vec![value; forest.n_features()]);
        assert!((-1.0..=0.0).contains(&score), "score_samples is {score}");
    }
}

fn usable(imported: ImportedForest) {
    if let Some(columns) = &imported.columns {
        assert_eq!(columns.len(), imported.forest.n_features());
    }
    score(&imported.forest);
}

/// A pickle, or a whole skops file.
pub fn pickle(data: &[u8]) {
    if let Ok(imported) = sklearn::read(data) {
        usable(imported);
    }
}

/// A skops file: its schema as given, the arrays those of a file that is there.
pub fn skops(data: &[u8]) {
    pickle(&skops_with(SCHEMA, data));
}

/// A skops file with one array replaced. The first byte says which.
pub fn npy(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    let name = &ARRAYS[usize::from(*choice) % ARRAYS.len()];
    pickle(&skops_with(name, bytes));
}

/// An ONNX graph.
pub fn onnx(data: &[u8]) {
    if let Ok(imported) = graph::read(data, None) {
        usable(imported);
    }
}

/// MLflow's description of a folder that has a pickle, a skops file and a graph.
pub fn mlmodel(data: &[u8]) {
    static FILES: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
        let first = |mut files: Vec<Vec<u8>>| files.swap_remove(0);
        let files = [
            ("model.pkl", first(super::files("models/sklearn-isolation-forest/small", ".pkl"))),
            ("model.skops", skops_file()),
            ("model.onnx", vec![]),
        ];
        files.map(|(name, bytes)| (name.to_string(), bytes)).into()
    });
    let mut files = FILES.clone();
    files.insert("MLmodel".into(), data.to_vec());
    if let Ok(imported) = import::read_forest(&files) {
        usable(imported);
    }
}

const SCHEMA: &str = "schema.json";

/// The parts of a skops file.
static SKOPS: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
    let mut zip = ZipArchive::new(Cursor::new(skops_file())).expect("a zip");
    let mut parts = BTreeMap::new();
    for number in 0..zip.len() {
        let mut part = zip.by_index(number).expect("a part");
        let mut bytes = Vec::new();
        part.read_to_end(&mut bytes).expect("inflates");
        parts.insert(part.name().expect("UTF-8").into_owned(), bytes);
    }
    parts
});

static ARRAYS: LazyLock<Vec<String>> =
    LazyLock::new(|| SKOPS.keys().filter(|name| name.ends_with(".npy")).cloned().collect());

fn skops_file() -> Vec<u8> {
    super::files("models/sklearn-isolation-forest/small", ".skops").swap_remove(0)
}

fn skops_with(replaced: &str, bytes: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, original) in &*SKOPS {
        zip.start_file(name.as_str(), stored).expect("the name is valid");
        zip.write_all(if name == replaced { bytes } else { original }).expect("a vector takes any bytes");
    }
    zip.finish().expect("a vector takes any bytes").into_inner()
}

/// Each file of each model, behind the byte that chooses it.
pub fn folders() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (file, name) in REPLACED.iter().enumerate() {
        for (number, model) in MODELS.iter().enumerate() {
            let choice = (file * MODELS.len() + number) as u8;
            if let Some(bytes) = artifact::to_files(model).get(*name) {
                seeds.push([&[choice], &bytes[..]].concat());
            }
        }
    }
    seeds
}

/// Pickles of several protocols, and a skops file.
pub fn pickles() -> Vec<Vec<u8>> {
    let mut seeds = super::files("models/sklearn-isolation-forest/small", ".pkl");
    seeds.push(skops_file());
    seeds
}

/// A skops file's schema.
pub fn schemas() -> Vec<Vec<u8>> {
    vec![SKOPS[SCHEMA].clone()]
}

/// Its arrays, each behind the byte that chooses it.
pub fn arrays() -> Vec<Vec<u8>> {
    let choice = |(number, name): (usize, &String)| [&[number as u8], &SKOPS[name][..]].concat();
    ARRAYS.iter().take(1 << 8).enumerate().map(choice).collect()
}

/// Graphs, one of ours among them.
pub fn graphs() -> Vec<Vec<u8>> {
    let mut seeds = super::files("models/sklearn-isolation-forest", ".onnx");
    // A forest of 100 trees is more than a fuzzer can turn over: ours has three.
    seeds.retain(|seed| seed.len() < 64 << 10);
    let FittedModel::IsolationForest(forest) = &MODELS[0].fitted else {
        unreachable!("the first one is plain")
    };
    seeds.push(graph::write(forest, &["a".into(), "b".into()]).expect("a plain forest has a graph"));
    seeds
}

/// `MLmodel` files, scikit-learn's.
pub fn descriptions() -> Vec<Vec<u8>> {
    super::files("models/sklearn-isolation-forest", "MLmodel")
}
