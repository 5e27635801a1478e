//! Isolation forests in ONNX: graphs of skl2onnx are read, and onnxruntime has the same scores for exported graphs.
//!
//! The forests in `tests/data/models` are scikit-learn 1.9.1's, converted by skl2onnx 1.20.0; beside each
//! lie its scores of `input.parquet`, by scikit-learn and by onnxruntime 1.31.1 (in floats).

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use arrow_array::{ArrayRef, Float64Array, RecordBatch};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use promforest::forest::{Forest, ForestParams, Table, Tree, TreeArrays};
use promforest::models::ImportedForest;
use promforest::models::onnx::{self, Error};

const FIXTURES: &str = "tests/data/models/sklearn-isolation-forest";
const AUTO: &str = "sklearn-1.9.1/ms256-auto-onnx";
const FITTED: &str = "sklearn-1.9.1/ms256-0.01-onnx";

/// Rows of doubles under named columns.
struct DoubleTable {
    names: Vec<String>,
    values: Vec<Vec<f64>>,
}

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(FIXTURES).join(path)
}

fn model(folder: &str) -> Vec<u8> {
    fs::read(fixture(folder).join("model.onnx")).expect("a readable file")
}

fn import(folder: &str) -> ImportedForest {
    onnx::read(&model(folder), None).expect("a readable file")
}

/// The columns of doubles of a Parquet file.
fn rows(path: &Path) -> DoubleTable {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).expect("the file"))
        .expect("a good fixture")
        .build()
        .expect("a good fixture");
    let mut rows = DoubleTable { names: Vec::new(), values: Vec::new() };
    for batch in reader {
        let batch = batch.expect("a good fixture");
        let schema = batch.schema();
        let columns: Vec<(&str, &Float64Array)> = schema
            .fields()
            .iter()
            .zip(batch.columns())
            .filter_map(|(field, column)| {
                Some((field.name().as_str(), column.as_primitive_opt::<Float64Type>()?))
            })
            .collect();
        rows.names = columns.iter().map(|(name, _)| name.to_string()).collect();
        for row in 0..batch.num_rows() {
            rows.values.push(columns.iter().map(|(_, column)| column.value(row)).collect());
        }
    }
    rows
}

fn to_f32(row: &[f64]) -> Vec<f32> {
    row.iter().map(|value| *value as f32).collect()
}

/// Columns of a CSV file by name, row by row.
fn expected<const N: usize>(path: PathBuf, names: [&str; N]) -> Vec<[f64; N]> {
    let mut reader = csv::Reader::from_path(path).expect("a good fixture");
    let header = reader.headers().expect("a good fixture").clone();
    let indices = names.map(|name| header.iter().position(|it| it == name).expect("a good fixture"));
    reader
        .records()
        .map(|record| {
            let record = record.expect("a good fixture");
            indices.map(|index| record[index].parse().expect("a good fixture"))
        })
        .collect()
}

/// Largest difference of scores and of decisions; predictions must be equal.
fn differences(folder: &str, file: &str, names: [&str; 3]) -> [f64; 2] {
    let forest = import(folder).forest;
    let rows = rows(&fixture("input.parquet"));
    let expected = expected(fixture(folder).join(file), names);
    assert_eq!((rows.values.len(), expected.len()), (468, 468));
    let mut largest = [0.0_f64; 2];
    for (row, [score, decision, predict]) in rows.values.iter().zip(expected) {
        let row = to_f32(row);
        largest[0] = largest[0].max((forest.score_samples(&row) - score).abs());
        largest[1] = largest[1].max((forest.decision(&row) - decision).abs());
        assert_eq!(forest.decision(&row) < 0.0, predict == -1.0);
    }
    largest
}

#[test]
fn skl2onnx_forests_score_as_scikit_learn() {
    const NAMES: [&str; 3] = ["score_samples", "decision_function", "predict"];
    let [score, decision] = differences(AUTO, "expected.csv", NAMES);
    println!("{AUTO}: scores within {score:e}, decisions {decision:e}");
    assert!(score <= 1e-15 && decision <= 1e-15, "{score:e}, {decision:e}");
    // The file has the fitted offset as a float.
    let [score, decision] = differences(FITTED, "expected.csv", NAMES);
    println!("{FITTED}: scores within {score:e}, decisions {decision:e}");
    assert!(score <= 1e-15 && decision <= 3e-8, "{score:e}, {decision:e}");
}

#[test]
fn skl2onnx_forests_score_as_onnxruntime() {
    for folder in [AUTO, FITTED] {
        let [score, decision] =
            differences(folder, "expected_onnx.csv", ["score_samples", "scores", "label"]);
        assert!(score <= 2e-7 && decision <= 2e-7, "{folder}: {score:e}, {decision:e}");
    }
}

#[test]
fn metadata_missing_in_the_file_is_derived() {
    let auto = import(AUTO);
    assert_eq!(auto.forest.n_estimators(), 20);
    assert_eq!(auto.forest.n_features(), 20);
    assert_eq!(auto.forest.max_samples(), 256);
    assert_eq!(auto.forest.offset(), -0.5);
    assert!(auto.forest.trees().all(|tree| tree.n_node_samples[0] == 256));
    assert_eq!(auto.columns, None);
    assert_eq!(auto.origin, "skl2onnx 1.20.0, ONNX (ai.onnx.ml 3)");
    let params = [("n_estimators", "20"), ("max_samples", "256"), ("contamination", "auto")];
    assert_eq!(auto.params, params.map(|(name, value)| (name.to_string(), value.to_string())));

    let fitted = import(FITTED);
    assert_eq!(fitted.forest.n_estimators(), 10);
    assert_eq!(fitted.forest.offset(), f64::from(-0.62142974_f32));
    assert_eq!(fitted.params.len(), 2, "what contamination was is not in the file");
}

#[test]
fn the_caller_names_the_columns() {
    let names = rows(&fixture("input.parquet")).names;
    let imported = onnx::read(&model(AUTO), Some(names.clone())).expect("a readable file");
    assert_eq!(imported.columns, Some(names));
    let error = onnx::read(&model(AUTO), Some(vec!["one".into()])).expect_err("refused");
    assert_eq!(error.to_string(), "input: number of columns is 1, must be 20");
}

#[test]
fn an_imported_forest_comes_back_bit_for_bit() {
    for folder in [AUTO, FITTED] {
        let forest = import(folder).forest;
        let columns = rows(&fixture("input.parquet")).names;
        let again =
            onnx::read(&onnx::write(&forest, &columns).expect("writable"), None).expect("a readable file");
        assert_eq!(again.forest, forest);
        assert_eq!(again.columns, Some(columns));
        assert_eq!(again.origin, concat!("promforest ", env!("CARGO_PKG_VERSION"), ", ONNX (ai.onnx.ml 5)"));
    }
}

/// Runs `tests/python/onnx_agrees.py` on a forest and rows, and returns what it printed.
fn check_with_onnxruntime(forest: &Forest, rows: &DoubleTable) -> String {
    let python = std::env::var_os("PROMFOREST_PYTHON").expect(
        "PROMFOREST_PYTHON names the Python of a virtual environment with numpy, onnx, onnxruntime and pyarrow",
    );
    let folder = tempfile::tempdir().expect("a folder");
    let [model, input, expected] =
        ["model.onnx", "input.parquet", "expected.csv"].map(|name| folder.path().join(name));
    fs::write(&model, onnx::write(forest, &rows.names).expect("a good fixture")).expect("writable");

    let columns = rows.names.iter().enumerate().map(|(column, name)| {
        let values = Float64Array::from_iter_values(rows.values.iter().map(|row| row[column]));
        (name, Arc::new(values) as ArrayRef)
    });
    let batch = RecordBatch::try_from_iter(columns).expect("one table");
    let mut writer = ArrowWriter::try_new(File::create(&input).expect("the file"), batch.schema(), None)
        .expect("a good fixture");
    writer.write(&batch).expect("writable");
    writer.close().expect("written");

    let mut csv = String::from("score_samples,decision_function,predict\n");
    for row in &rows.values {
        let row = to_f32(row);
        let decision = forest.decision(&row);
        let predict = if decision < 0.0 { -1 } else { 1 };
        writeln!(csv, "{},{decision},{predict}", forest.score_samples(&row))
            .expect("a string takes any text");
    }
    fs::write(&expected, csv).expect("writable");

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/onnx_agrees.py");
    let output =
        Command::new(python).arg(script).args([model, input, expected]).output().expect("Python runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    print!("{printed}");
    printed
}

#[test]
fn onnxruntime_scores_exported_forests_as_we_do() {
    for folder in [AUTO, FITTED] {
        let printed = check_with_onnxruntime(&import(folder).forest, &rows(&fixture("input.parquet")));
        assert!(printed.starts_with("468 rows, 20 columns"), "{printed}");
    }
}

/// Most of these rows hold a value that goes the other way at a root once it is rounded to a float.
#[test]
fn onnxruntime_rounds_rows_to_floats() {
    let mut rows = rows(&fixture("edges/input_f32_edges.parquet"));
    let names = self::rows(&fixture("input.parquet")).names;
    rows.names.truncate(names.len());
    assert_eq!(rows.names, names);
    // The rows were made for 100 trees; these 20 are the first of them.
    let forest = import(AUTO).forest;
    check_with_onnxruntime(&forest, &rows);
    let unrounded = rows.values.iter().filter(|row| {
        forest.trees().any(|tree| {
            let value = row[tree.feature[0] as usize];
            (value <= tree.threshold[0]) != (f64::from(value as f32) <= tree.threshold[0])
        })
    });
    assert!(unrounded.count() > 5, "the rows no longer tell rounding from none");
}

#[test]
fn onnxruntime_sends_nan_and_infinities_where_we_do() {
    let names = rows(&fixture("input.parquet")).names;
    let mut rows = rows(&fixture("edges/input_nonfinite.parquet"));
    rows.names.truncate(names.len());
    assert_eq!(rows.names, names);
    check_with_onnxruntime(&import(AUTO).forest, &rows);

    // skl2onnx's files send all NaN to the right; these trees go both ways, and one is a leaf.
    let forest = forest_with_nan_both_ways();
    let values = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 1.0, 1.5, 1e300];
    let rows = DoubleTable {
        names: vec!["a".into(), "b".into()],
        values: values.iter().flat_map(|a| values.iter().map(|b| vec![*a, *b])).collect(),
    };
    assert_ne!(forest.score_samples(&[f32::NAN, 0.0]), forest.score_samples(&[0.0, f32::NAN]));
    check_with_onnxruntime(&forest, &rows);
    check_with_onnxruntime(&Forest::new(&[tree_with_nan_both_ways(true)], 8, -0.4).expect("a forest"), &rows);
}

#[test]
fn onnxruntime_scores_a_grown_forest() {
    let rows = rows(&fixture("input.parquet"));
    let (n_rows, n_features) = (rows.values.len(), rows.names.len());
    let columns: Vec<f32> =
        (0..n_features).flat_map(|column| rows.values.iter().map(move |row| row[column] as f32)).collect();
    let table = Table::new(&columns, n_rows, n_features).expect("a table");
    let forest = ForestParams::default().fit(&table, std::num::NonZeroUsize::MIN).expect("a forest");
    check_with_onnxruntime(&forest, &rows);
}

/// Three splits over two features with a shared depth of leaves of equal path length (3 = 2 + c(2)).
fn tree_with_nan_both_ways(left: bool) -> Tree {
    let arrays = TreeArrays {
        left_child: vec![1, 2, -1, -1, 5, -1, -1],
        right_child: vec![4, 3, -1, -1, 6, -1, -1],
        feature: vec![0, 1, -2, -2, 1, -2, -2],
        threshold: vec![0.0, 1.0, -2.0, -2.0, 1.25, -2.0, -2.0],
        n_node_samples: vec![10, 3, 1, 2, 7, 3, 4],
        missing_go_to_left: vec![left, !left, false, false, left, false, false],
    };
    Tree::from_arrays(&arrays, 2).expect("a tree")
}

fn forest_with_nan_both_ways() -> Forest {
    let leaf = TreeArrays {
        left_child: vec![-1],
        right_child: vec![-1],
        feature: vec![-2],
        threshold: vec![-2.0],
        n_node_samples: vec![8],
        missing_go_to_left: vec![false],
    };
    let leaf = Tree::from_arrays(&leaf, 2).expect("a tree");
    Forest::new(
        &[tree_with_nan_both_ways(true), leaf, tree_with_nan_both_ways(true), tree_with_nan_both_ways(false)],
        10,
        -0.45,
    )
    .expect("a good fixture")
}

#[test]
fn a_cut_file_is_refused() {
    for bytes in
        [model(AUTO), onnx::write(&forest_with_nan_both_ways(), &["a".into(), "b".into()]).expect("writable")]
    {
        let whole = onnx::read(&bytes, None).expect("a readable file");
        for length in (0..bytes.len()).step_by(bytes.len() / 200 + 1) {
            match onnx::read(&bytes[..length], None) {
                Err(_) => {}
                // A cut behind the graph loses the metadata only.
                Ok(imported) => assert_eq!(imported.forest, whole.forest, "at {length}"),
            }
        }
    }
}

/// A flipped bit may well give another good forest: then its scores are scores.
#[test]
fn a_damaged_file_is_refused_or_read_as_a_forest() {
    let small = onnx::write(&forest_with_nan_both_ways(), &["a".into(), "b".into()]).expect("writable");
    let large = model(FITTED);
    let bits = (0..8 * small.len()).map(|bit| (&small, bit));
    let (mut n_refused, mut n_read) = (0, 0);
    for (bytes, bit) in bits.chain((0..8 * large.len()).step_by(4_001).map(|bit| (&large, bit))) {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        match onnx::read(&bytes, None) {
            Ok(ImportedForest { forest, .. }) => {
                let score = forest.score_samples(&vec![0.5; forest.n_features()]);
                assert!((-1.0..=0.0).contains(&score), "bit {bit}: {score}");
                n_read += 1;
            }
            Err(error) => {
                assert!(!error.to_string().contains(char::is_control), "bit {bit}: {error}");
                n_refused += 1;
            }
        }
    }
    assert!(n_refused > 100 && n_read > 100, "{n_refused} refused, {n_read} read");
}

#[test]
fn invalid_models_are_refused() {
    assert!(matches!(onnx::read(b"not a model", None), Err(Error::Protobuf(_))));
    let error = onnx::read(b"", None).expect_err("refused");
    assert_eq!(error.to_string(), "model: graph is missing, must be one graph");
}
