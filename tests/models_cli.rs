//! `promforest models`: other programs' forests come in and score as there, what is none is refused in a
//! line, and the registry is moved by hand.

mod support;

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use support::command::run;
use tempfile::TempDir;

/// As in `models_import.rs`.
const TOLERANCE: f64 = 2.3e-16;
/// A graph computes in `f32`.
const ONNX_TOLERANCE: f64 = 1.1e-7;

/// Output of a command that must succeed.
fn run_ok(args: &[&str]) -> String {
    let output = run(&[&["models"], args].concat());
    assert_eq!((output.status, &*output.stderr), (0, ""), "{args:?}");
    output.stdout
}

/// Error of a command that must fail: one line, and nothing else.
fn run_failing(args: &[&str]) -> String {
    let output = run(&[&["models"], args].concat());
    assert_eq!((output.status, &*output.stdout), (1, ""), "{args:?}");
    let line = output.stderr.strip_prefix("promforest: ").and_then(|rest| rest.strip_suffix('\n'));
    let line = line.unwrap_or_else(|| panic!("{args:?}: {:?}", output.stderr));
    assert!(!line.contains('\n') && line.len() < 400, "{args:?}: {line}");
    line.into()
}

fn data(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/sklearn-isolation-forest");
    path_text(&folder.join(name))
}

fn path_text(path: &Path) -> String {
    path.to_str().expect("UTF-8").into()
}

fn temp_dir() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Rows of `score_samples`, `decision_function`, `predict` from a CSV file, by the names of its header.
fn scores(csv: &str, names: [&str; 3]) -> Vec<[f64; 3]> {
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().expect("a header").split(',').collect();
    let indices = names.map(|name| header.iter().position(|cell| *cell == name).expect(name));
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        indices.map(|index| cells[index].parse().expect("a number"))
    };
    lines.map(row).collect()
}

const SCORES: [&str; 3] = ["score_samples", "decision_function", "predict"];

fn expected(name: &str) -> Vec<[f64; 3]> {
    scores(&fs::read_to_string(data(name)).expect(name), SCORES)
}

/// Scores a table with a model, by way of a file.
fn score(model: &str, input: &str) -> Vec<[f64; 3]> {
    let folder = temp_dir();
    let output = path_text(&folder.path().join("scores.csv"));
    assert_eq!(run_ok(&["score", "--model", model, "--input", input, "--output", &output]), "");
    let csv = fs::read_to_string(output).expect("written");
    assert!(csv.starts_with("score_samples,decision_function,predict\n"), "{csv}");
    scores(&csv, SCORES)
}

#[track_caller]
fn assert_close(found: &[[f64; 3]], expected: &[[f64; 3]], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
        for column in 0..2 {
            let difference = (found[column] - expected[column]).abs();
            assert!(difference <= tolerance, "row {row}: {found:?}, not {expected:?}");
        }
        assert_eq!(found[2], expected[2], "row {row}");
    }
}

/// Imports into a folder that the command makes, and verifies it.
fn import(source: &str, more: &[&str]) -> (TempDir, String) {
    let folder = temp_dir();
    let model = path_text(&folder.path().join("model"));
    let line = run_ok(&[&["import", source, "--model", &model], more].concat());
    assert!(line.starts_with(&format!("{model}: isolation_forest of ")), "{line}");
    let line = run_ok(&["verify", &model]);
    assert!(line.starts_with(&format!("{model} is valid: isolation_forest of ")), "{line}");
    (folder, model)
}

/// A file in a folder of its own.
fn temp_file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, String) {
    let folder = temp_dir();
    let path = folder.path().join(name);
    fs::write(&path, content).expect("written");
    let path = path_text(&path);
    (folder, path)
}

/// The names of the fixtures' columns, as a list that is a mapping file too.
fn columns() -> Vec<String> {
    let shown = run_ok(&["show", &data("sklearn-1.9.1/ms256-auto"), "--output", "json"]);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let features = shown["card"]["schema"]["features"].as_array().expect("features");
    features.iter().map(|feature| feature["column"].as_str().expect("a name").to_string()).collect()
}

#[test]
fn imported_scikit_learn_forests_score_as_in_scikit_learn() {
    let mut n_models = 0;
    for version in ["sklearn-1.6.1", "sklearn-1.9.1"] {
        for entry in fs::read_dir(data(version)).expect("fixtures") {
            let kind = entry.expect("a folder").file_name().into_string().expect("UTF-8");
            if kind.ends_with("-onnx") {
                continue;
            }
            let name = format!("{version}/{kind}");
            let (_folder, model) = import(&data(&name), &[]);
            let found = score(&model, &data("input.parquet"));
            assert_close(&found, &expected(&format!("{name}/expected.csv")), TOLERANCE);
            n_models += 1;
        }
    }
    assert_eq!(n_models, 9);
    let (_folder, model) = import(&data("sklearn-1.9.1/ms256-auto"), &[]);
    for (input, scores) in [
        ("edges/input_f32_edges.parquet", "edges/expected.csv"),
        ("edges/input_nonfinite.parquet", "edges/expected_nonfinite.csv"),
    ] {
        assert_close(&score(&model, &data(input)), &expected(scores), TOLERANCE);
    }
}

#[test]
fn imported_onnx_graphs_score_as_in_onnxruntime() {
    let (_mapping, mapping) = temp_file("columns.json", serde_json::to_vec(&columns()).expect("JSON"));
    for kind in ["ms256-auto-onnx", "ms256-0.01-onnx"] {
        let name = format!("sklearn-1.9.1/{kind}");
        let (_folder, model) = import(&data(&format!("{name}/model.onnx")), &["--mapping", &mapping]);
        let csv = fs::read_to_string(data(&format!("{name}/expected_onnx.csv"))).expect("a fixture");
        let theirs = scores(&csv, ["score_samples", "scores", "label"]);
        let found = score(&model, &data("input.parquet"));
        assert_close(&found, &theirs, ONNX_TOLERANCE);
        assert_close(&found, &expected(&format!("{name}/expected.csv")), ONNX_TOLERANCE);
    }
}

#[test]
fn a_forest_without_names_takes_them_from_a_list() {
    let names: Vec<String> = (0..6).map(|i| format!("x{i}")).collect();
    let (_mapping, mapping) =
        temp_file("columns.yml", names.iter().map(|name| format!("- {name}\n")).collect::<String>());
    let rows = fs::read_to_string(data("small/input.csv")).expect("a fixture");
    let (_input, input) = temp_file("input.csv", format!("{}\n{rows}", names.join(",")));
    for name in ["half-features.pkl", "half-features.skops", "one-row.pkl"] {
        let source = data(&format!("small/{name}"));
        let line = run_failing(&["import", &source, "--model", "never-written"]);
        assert!(line.contains("6 columns without names"), "{line}");
        let (_folder, model) = import(&source, &["--mapping", &mapping]);
        assert_close(&score(&model, &input), &expected(&format!("small/{name}.expected.csv")), TOLERANCE);
    }
}

#[test]
fn columns_are_found_by_name_or_by_meaning() {
    let (_folder, model) = import(&data("sklearn-1.9.1/ms256-auto"), &[]);
    let shown = run_ok(&["show", &model]);
    let expressions: Vec<&str> =
        shown.lines().filter_map(|line| line.trim().split_once("  from column ")).map(|(e, _)| e).collect();
    assert_eq!(expressions.len(), 20, "{shown}");
    let quoted = |names: &[String]| -> String {
        let names: Vec<String> =
            names.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
        names.join(",")
    };
    let cells: Vec<String> = (0..20).map(|i| format!("{}.5", i * 100)).collect();
    let table =
        |names: &[String]| temp_file("input.csv", format!("{}\n{}\n", quoted(names), cells.join(",")));
    let by_name = table(&columns());
    let expressions: Vec<String> = expressions.into_iter().map(String::from).collect();
    let by_meaning = table(&expressions);
    assert_eq!(score(&model, &by_name.1), score(&model, &by_meaning.1));

    let mut short = columns();
    short[3] = "eth9 - Rx in".into();
    let (_folder, input) = table(&short);
    let line = run_failing(&["score", "--model", &model, "--input", &input, "--output", "-"]);
    assert_eq!(line, format!("the table has no column {:?}", columns()[3]));
    let printed = run_ok(&["score", "--model", &model, "--input", &by_name.1, "--output", "-"]);
    assert_eq!(printed.lines().count(), 2, "{printed}");
}

/// A fixture's folder with one file changed.
fn changed_fixture(name: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) -> (TempDir, String) {
    let folder = temp_dir();
    for file in ["MLmodel", "model.pkl"] {
        let bytes = fs::read(data(&format!("sklearn-1.9.1/ms256-0.01/{file}"))).expect("a fixture");
        let bytes = if file == name { change(bytes) } else { bytes };
        fs::write(folder.path().join(file), bytes).expect("written");
    }
    let path = path_text(folder.path());
    (folder, path)
}

#[test]
fn invalid_models_are_rejected_in_one_line() {
    let nowhere = temp_dir();
    let target = path_text(&nowhere.path().join("model"));
    let import = |source: &str, more: &[&str]| {
        let line = run_failing(&[&["import", source, "--model", &target], more].concat());
        assert!(!Path::new(&target).exists(), "{line}");
        line
    };
    for share in [0, 1, 50, 99] {
        let (_folder, source) =
            changed_fixture("model.pkl", |bytes| bytes[..bytes.len() * share / 100].to_vec());
        assert!(import(&source, &[]).starts_with("scikit-learn: "));
    }
    let swap = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).expect("YAML");
        text.replacen("docker0 - Rx in", "SWAP", 1)
            .replacen("docker0 - Tx out", "docker0 - Rx in", 1)
            .replacen("SWAP", "docker0 - Tx out", 1)
            .into_bytes()
    };
    let (_folder, source) = changed_fixture("MLmodel", swap);
    let line = import(&source, &[]);
    assert!(line.contains("in MLmodel's signature and \"docker0 - "), "{line}");
    let (_folder, source) = changed_fixture("MLmodel", |_| b"flavors: [".to_vec());
    import(&source, &[]);

    // os.system("id"), as pickle.dumps writes a __reduce__ of protocol 4.
    let program = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.";
    let (_folder, source) = temp_file("model.pkl", program);
    let line = import(&source, &[]);
    assert!(line.contains("global posix.system is not allowed in a model"), "{line}");
    let (_folder, source) = changed_fixture("model.pkl", |_| program.to_vec());
    assert_eq!(import(&source, &[]), line);

    let good = data("sklearn-1.9.1/ms256-0.01");
    for (mapping, word) in [
        ("nobody: rate(x[1m])", "\"nobody\""),
        ("- rate(x[1m])", "the mapping lists 1 series, the model has 20 columns"),
        ("\"lo - Rx in\": \"no series {\"", "\"no series {\" is no series"),
        (
            "\"lo - Rx in\": \"eth0 - Rx in\"",
            "are both rate(node_network_receive_bytes_total{device=\"eth0\"}[1m])",
        ),
        ("[", "mapping.yml"),
    ] {
        let (_folder, mapping) = temp_file("mapping.yml", mapping);
        let line = import(&good, &["--mapping", &mapping]);
        assert!(line.contains(word), "{line}");
    }
    assert!(import(&path_text(&nowhere.path().join("not there")), &[]).starts_with("cannot read "));
    assert!(import(&path_text(nowhere.path()), &[]).starts_with("no model: "));
    for source in ["models:/net@champion", "models:/net/1", "runs:/abc/model"] {
        let line = import(source, &[]);
        assert_eq!(line, format!("{source} is in MLflow, but the configuration has no registry.mlflow"));
    }
}

#[test]
fn a_damaged_folder_is_not_valid() {
    let (_folder, model) = import(&data("sklearn-1.9.1/ms256-0.01"), &[]);
    let forest = PathBuf::from(&model).join("forest.arrow");
    let mut bytes = fs::read(&forest).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&forest, bytes).expect("written");
    let damaged = "forest.arrow does not have its checksum: it is damaged, or was edited";
    assert_eq!(run_failing(&["verify", &model]), damaged);
    let input = data("input.parquet");
    assert_eq!(run_failing(&["score", "--model", &model, "--input", &input, "--output", "-"]), damaged);
}

#[test]
fn registry_aliases_are_moved_by_hand() {
    let storage = temp_dir();
    let storage = path_text(storage.path());
    let here = ["--storage.path", &storage];
    let run_ok = |args: &[&str]| run_ok(&[args, &here].concat());
    let run_failing = |args: &[&str]| run_failing(&[args, &here].concat());
    let json = |args: &[&str]| -> Value {
        serde_json::from_str(&run_ok(&[args, &["--output", "json"]].concat())).expect("JSON")
    };
    assert_eq!(run_ok(&["list"]), "MODEL  VERSION  ALIASES  CREATED  PROMOTED  NOTE\n");
    assert_eq!(json(&["list"]), serde_json::json!([]));
    assert_eq!(run_failing(&["show", "network"]), "network is neither a folder nor a model of the registry");

    let first = run_ok(&["import", &data("sklearn-1.9.1/ms256-auto"), "--name", "network"]);
    assert_eq!(
        first,
        format!(
            "network version 1: isolation_forest of 20 features, from scikit-learn 1.9.1, cloudpickle\n\
             put it into service: promforest models promote --storage.path {storage} network 1\n"
        )
    );
    assert_eq!(run_failing(&["verify", "network"]), "model network has no alias champion");
    assert_eq!(run_ok(&["promote", "network", "1"]), "network: champion 1\n");
    run_ok(&["import", &data("sklearn-1.9.1/ms256-0.01"), "--name", "network"]);
    assert_eq!(run_failing(&["promote", "network", "7"]), "model network has no version 7");
    assert_eq!(run_ok(&["promote", "network", "2", "--alias", "challenger"]), "network: challenger 2\n");
    assert_eq!(run_ok(&["promote", "network", "2"]), "network: champion 2\n");
    let listed = json(&["list", "net"]);
    assert_eq!(listed[0]["aliases"], serde_json::json!([]));
    assert_eq!(listed[1]["aliases"], serde_json::json!(["challenger", "champion"]));
    assert_eq!((&listed[1]["model"], &listed[1]["version"]), (&"network".into(), &2.into()));
    assert_eq!(json(&["list", "other"]), serde_json::json!([]));

    assert_eq!(run_ok(&["rollback", "network"]), "network: champion 2 -> 1\n");
    assert!(run_failing(&["rollback", "network"]).contains("no version to roll back to"));
    let table = run_ok(&["list"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.contains("champion (pinned)"), "{table}");
    let pinned = || json(&["list"])[0]["pinned"].clone();
    assert_eq!(pinned(), serde_json::json!(["champion"]));
    assert_eq!(run_ok(&["unpin", "network"]), "network: champion 1 is not pinned\n");
    assert_eq!(pinned(), serde_json::json!([]));
    assert_eq!(run_ok(&["promote", "network", "2", "--alias", "challenger"]), "network: challenger 2\n");
    assert_eq!(run_ok(&["pin", "network"]), "network: champion 1 is pinned\n");
    assert_eq!(pinned(), serde_json::json!(["champion"]));
    assert_eq!(run_failing(&["pin", "net"]), "model net has no alias champion");
    assert!(table.contains("rolled back  imported from scikit-learn 1.9.1, cloudpickle"), "{table}");

    let valid = |name: &str| {
        format!("{name} is valid: isolation_forest of 20 features, from scikit-learn 1.9.1, cloudpickle\n")
    };
    for (model, version) in
        [("network", 1), ("network@champion", 1), ("network@challenger", 2), ("network/2", 2)]
    {
        assert_eq!(run_ok(&["verify", model]), valid(&format!("network version {version}")));
        assert_eq!(json(&["show", model])["version"], version, "{model}");
    }
    for (model, line) in [
        ("network/x", "network/x is neither a folder nor NAME/VERSION with a number for VERSION"),
        ("network/9", "model network has no version 9"),
        ("network@gone", "model network has no alias gone"),
        ("net", "net is neither a folder nor a model of the registry"),
    ] {
        assert_eq!(run_failing(&["verify", model]), line);
    }
    let card = run_ok(&["show", "network@challenger"]);
    for part in [
        "network version 2, challenger\n",
        "isolation_forest\n",
        "max_samples=256 contamination=0.01",
        "20 features\n",
        "rate(node_network_receive_bytes_total{device=\"lo\"}[1m])  from column \"lo - Rx in\"\n",
    ] {
        assert!(card.contains(part), "{part}\n{card}");
    }

    let graphs = temp_dir();
    let graph = path_text(&graphs.path().join("model.onnx"));
    assert_eq!(
        run_ok(&["export", "network/2", "--to", "onnx", &graph]),
        format!("{graph} written from network version 2\n")
    );
    let (_folder, again) = import(&graph, &[]);
    let theirs = expected("sklearn-1.9.1/ms256-0.01/expected.csv");
    assert_close(&score(&again, &data("input.parquet")), &theirs, ONNX_TOLERANCE);
    assert!(run_ok(&["import", &graph, "--name", "graph"]).starts_with("graph version 1: "));
    assert_eq!(json(&["list"]).as_array().map(Vec::len), Some(3));
}
