//! MLflow's Python has the same scores for the folder of a model.

use promforest::detect::{AlertState, OnlineDetector};
use promforest::features::{Schema, Transform};
use promforest::forest::{ExtendedParams, ForestParams, Table};
use promforest::models::{FittedModel, Model, ModelCard, artifact, score};
use promforest::prom::{Labels, METRIC_NAME};
use promforest::window::grid::Grid;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;

/// Three weekends, and more than four days: a peak at the same time on four of them is a recurring peak.
const N_ROWS: usize = 20 * DAY;
const DAY: usize = 240;
const N_FEATURES: usize = 5;
/// Largest difference of two scores: libraries' exponentials and logarithms round differently.
const TOLERANCE: f64 = 1e-12;

/// Even values in `[0, 1)`, unrelated for every `k`: splitmix64's output function.
fn noise(k: usize) -> f32 {
    let z = (k as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / 16_777_216.0
}

/// Three that move together on scales of their own, the second less on weekends, one for itself that jumps once a day, one
/// constant; column-major.
fn values() -> Vec<f32> {
    let common = |row: usize| noise(row) * noise(7_919 * row + 1);
    let value = |feature: usize, row: usize| match feature {
        0..3 => {
            let is_quiet = feature == 1 && (time(row) / 86_400_000 + 3) % 7 >= 5;
            let scale = [1.0, 3e-4, 2e9][feature] * if is_quiet { 0.1 } else { 1.0 };
            scale * (common(row) + 0.1 * noise(1_000 * feature + row))
        }
        3 if row % DAY == 20 => 1e4,
        3 => 50.0 - 100.0 * noise(90_000 + row),
        _ => 4.2,
    };
    (0..N_FEATURES).flat_map(|feature| (0..N_ROWS).map(move |row| value(feature, row))).collect()
}

/// Rows of training, beyond it by ever more, and with values that are no numbers.
fn rows(table: &Table) -> Vec<Vec<f32>> {
    let row = |number: usize| {
        let mut row = vec![0.0; N_FEATURES];
        table.copy_row(number, &mut row);
        row
    };
    let mut rows: Vec<Vec<f32>> = (0..N_ROWS).map(row).collect();
    for (number, by) in [-1e30, -100.0, -1.0, 1.01, 1.5, 3.0, 1e3, 1e12, 1e38].into_iter().enumerate() {
        rows.push(row(number).iter().map(|value| value * by).collect());
        for feature in 0..N_FEATURES {
            let mut one = row(10 * number + feature);
            one[feature] *= by;
            rows.push(one);
        }
    }
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        rows.push(vec![odd; N_FEATURES]);
        for feature in 0..N_FEATURES {
            let mut one = row(feature);
            one[feature] = odd;
            rows.push(one);
        }
    }
    rows
}

fn model(fitted: FittedModel) -> Model {
    let feature = |number: usize| Labels::new([(METRIC_NAME, format!("m{number}"))]).expect("valid");
    let schema = Schema {
        features: (0..N_FEATURES).map(feature).collect(),
        transform: Transform::Value,
        grid: Grid::Exact,
    };
    Model { schema, fitted, card: ModelCard::default() }
}

/// The outputs of the model in Python: one list of numbers for each row.
fn scores(folder: &Path, rows: &[Vec<f32>], with_times: bool) -> Vec<Vec<f64>> {
    let python = std::env::var_os("PROMFOREST_PYTHON").expect(
        "PROMFOREST_PYTHON names the Python of a virtual environment with mlflow, numpy, pandas and pyarrow",
    );
    let work = tempfile::tempdir().expect("a folder");
    let (input, output) = (work.path().join("input.csv"), work.path().join("output.csv"));
    let lines = rows.iter().enumerate().map(|(number, row)| {
        let cells = row.iter().map(|value| f64::from(*value).to_string());
        cells.chain(with_times.then(|| time(N_ROWS + number).to_string())).collect::<Vec<_>>().join(",")
    });
    let names: Vec<String> = (0..N_FEATURES)
        .map(|number| format!("m{number}"))
        .chain(with_times.then(|| "timestamp".into()))
        .collect();
    let text: Vec<String> = std::iter::once(names.join(",")).chain(lines).collect();
    std::fs::write(&input, text.join("\n") + "\n").expect("writable");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/pyfunc_scores.py");
    let ran = Command::new(python)
        .arg(script)
        .args([folder, &input, &output])
        .current_dir(work.path())
        .env("MLFLOW_DISABLE_TELEMETRY", "true")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("PROMFOREST_PYTHON runs");
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{errors}");
    assert!(!errors.to_lowercase().contains("warning"), "{errors}");
    let text = std::fs::read_to_string(&output).expect("the scores");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("score_samples,decision_function,predict,decision,score"));
    lines.map(|line| line.split(',').map(|cell| cell.parse().expect("a number")).collect()).collect()
}

/// Time of a row: six minutes after the previous one, with one gap of two days and ten hours.
fn time(number: usize) -> i64 {
    let unseen = if number < N_ROWS + DAY / 2 { 0 } else { 58 * 10 };
    1_700_000_000_000 + (number + unseen) as i64 * 360_000
}

fn expected(fitted: &FittedModel, rows: &[Vec<f32>]) -> Vec<[f64; 5]> {
    let predict = |decision: f64| if decision < 0.0 { -1.0 } else { 1.0 };
    match fitted {
        FittedModel::IsolationForest(forest) => {
            let score_row = |row: &Vec<f32>| {
                let (score_samples, row_score) = (forest.score_samples(row), score(forest, row));
                let decision = score_samples - forest.offset();
                [score_samples, decision, predict(decision), row_score.decision, row_score.score]
            };
            rows.iter().map(score_row).collect()
        }
        FittedModel::Extended(detection) => {
            let mut detector = detection.clone();
            let score_row = |(number, row): (usize, &Vec<f32>)| {
                *detector = detector.clone().with_alert_state(AlertState::default());
                let assessment = detector.assess(time(N_ROWS + number), row).expect("rows ascend");
                let decision = assessment.decision;
                [decision - 0.5, decision, predict(decision), decision, assessment.score]
            };
            rows.iter().enumerate().map(score_row).collect()
        }
    }
}

fn check_python_agrees(fit: impl Fn(&Table) -> FittedModel) {
    let values = values();
    let table = Table::new(&values, N_ROWS, N_FEATURES).expect("a table");
    let model = model(fit(&table));
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("model");
    artifact::save(&artifact::to_files(&model), &folder).expect("writable");
    let rows = rows(&table);
    let is_ordered = matches!(model.fitted, FittedModel::Extended(_));
    assert!(scores(&folder, &[], is_ordered).is_empty(), "no rows, no scores");
    let found = scores(&folder, &rows, is_ordered);
    assert_eq!(found.len(), rows.len());
    let mut largest: f64 = 0.0;
    for ((row, found), expected) in rows.iter().zip(&found).zip(expected(&model.fitted, &rows)) {
        assert_eq!(found[2], expected[2], "predict of {row:?}");
        for (found, expected) in found.iter().zip(expected) {
            let difference = (found - expected).abs() / expected.abs().max(1.0);
            largest = largest.max(difference);
            assert!(difference <= TOLERANCE, "{found} is not {expected}: {row:?}");
        }
    }
    println!("{} rows, largest difference {largest:e}", rows.len());
}

#[test]
fn an_isolation_forest_scores_alike() {
    let fit = |table: &Table| {
        ForestParams::default().fit(table, NonZeroUsize::MIN).expect("the parameters fit the table")
    };
    check_python_agrees(|table| FittedModel::IsolationForest(fit(table)));
}

#[test]
fn an_extended_isolation_forest_scores_alike() {
    let times: Vec<i64> = (0..N_ROWS).map(time).collect();
    let fit = |table: &Table| {
        OnlineDetector::fit(&times, table, &ExtendedParams::default(), 1.0, NonZeroUsize::MIN)
            .expect("the parameters fit the table")
    };
    check_python_agrees(|table| {
        let detector = fit(table);
        let state = serde_json::to_value(detector.state()).expect("numbers and text");
        assert_eq!(state["profiles"][1]["is_weekly"], true, "the test covers the weekly profile");
        FittedModel::Extended(Box::new(detector))
    });
}
