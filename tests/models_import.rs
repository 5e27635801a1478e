//! Forests that scikit-learn saved have its scores, and other files are rejected
//! (`tests/data/models/sklearn-isolation-forest/README.md`).

use std::error::Error as _;
use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use arrow_array::{Array, PrimitiveArray};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use promforest::error::chain;
use promforest::forest::reference::ReferenceForest;
use promforest::forest::{Forest, Table, Tree};
use promforest::models::sklearn;
use promforest::models::{ImportedForest, import};
use proptest::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Two units in the last place of a score between -1 and -0.5: numpy's and our `exp2` and `ln` round
/// differently now and then.
const TOLERANCE: f64 = 2.3e-16;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/sklearn-isolation-forest").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    fs::read(data(name)).unwrap_or_else(|err| panic!("{name}: {err}"))
}

/// The rows of a table as scikit-learn compares them: rounded to `f32`.
fn read_parquet(name: &str) -> Vec<Vec<f32>> {
    let file = File::open(data(name)).unwrap_or_else(|err| panic!("{name}: {err}"));
    let batches = ParquetRecordBatchReaderBuilder::try_new(file).expect(name).build().expect(name);
    let mut rows = Vec::new();
    for batch in batches {
        let batch = batch.expect(name);
        let columns: Vec<_> =
            batch.columns().iter().filter_map(|column| column.as_primitive_opt::<Float64Type>()).collect();
        for row in 0..batch.num_rows() {
            // pyarrow writes NaN as a null.
            let value = |column: &&PrimitiveArray<Float64Type>| {
                if column.is_null(row) { f32::NAN } else { column.value(row) as f32 }
            };
            rows.push(columns.iter().map(value).collect());
        }
    }
    rows
}

fn read_folder(folder: &Path) -> Result<ImportedForest, import::Error> {
    import::read_forest(&import::read_files(folder)?)
}

fn number<T: std::str::FromStr>(cell: &str) -> T {
    cell.parse().unwrap_or_else(|_| panic!("{cell} is not a number"))
}

fn read_csv(name: &str) -> Vec<Vec<f32>> {
    let text = String::from_utf8(bytes(name)).expect(name);
    text.lines().map(|line| line.split(',').map(|cell| number::<f64>(cell) as f32).collect()).collect()
}

/// `score_samples`, `decision_function` and `predict`: the last three cells of each line.
fn read_expected(name: &str) -> Vec<(f64, f64, i8)> {
    let text = String::from_utf8(bytes(name)).expect(name);
    let last = |line: &str| {
        let cells: Vec<&str> = line.rsplitn(4, ',').collect();
        (number(cells[2]), number(cells[1]), number(cells[0]))
    };
    text.lines().skip(1).map(last).collect()
}

struct Case {
    name: String,
    model: ImportedForest,
    rows: Vec<Vec<f32>>,
    expected: Vec<(f64, f64, i8)>,
}

fn folder(name: &str) -> ImportedForest {
    read_folder(&data(name)).unwrap_or_else(|err| panic!("{name}: {}", chain(&err)))
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut push = |name: &str, model, rows, expected: &str| {
        cases.push(Case { name: name.into(), model, rows, expected: read_expected(expected) });
    };
    for version in ["sklearn-1.6.1", "sklearn-1.9.1"] {
        for kind in ["ms2000-0.01", "ms2000-auto", "ms256-0.01", "ms256-auto", "ms256-auto-skops"] {
            let name = format!("{version}/{kind}");
            if name != "sklearn-1.6.1/ms256-auto-skops" {
                push(&name, folder(&name), read_parquet("input.parquet"), &format!("{name}/expected.csv"));
            }
        }
    }
    for (input, expected) in [("input_f32_edges", "expected"), ("input_nonfinite", "expected_nonfinite")]
        .map(|(input, expected)| (format!("edges/{input}.parquet"), format!("edges/{expected}.csv")))
    {
        push(&input, folder("sklearn-1.9.1/ms256-auto"), read_parquet(&input), &expected);
    }
    for name in [
        "half-features.pkl",
        "half-features.skops",
        "one-row.pkl",
        "protocol-2.pkl",
        "protocol-3.pkl",
        "protocol-5.pkl",
    ]
    .map(|name| format!("small/{name}"))
    {
        let model = sklearn::read(&bytes(&name)).unwrap_or_else(|err| panic!("{name}: {}", chain(&err)));
        push(&name, model, read_csv("small/input.csv"), &format!("{name}.expected.csv"));
    }
    cases
}

#[test]
fn scores_equal_scikit_learn() {
    let mut worst: f64 = 0.0;
    for Case { name, model, rows, expected } in cases() {
        assert_eq!(rows.len(), expected.len(), "{name}");
        for (number_of_row, (row, (score, decision, predict))) in rows.iter().zip(&expected).enumerate() {
            let (our_score, our_decision) = (model.forest.score_samples(row), model.forest.decision(row));
            for (ours, theirs) in [(our_score, score), (our_decision, decision)] {
                let difference = (ours - theirs).abs();
                assert!(difference <= TOLERANCE, "{name} row {number_of_row}: {ours:?}, not {theirs:?}");
                worst = worst.max(difference);
            }
            assert_eq!(if our_decision < 0.0 { -1 } else { 1 }, *predict, "{name} row {number_of_row}");
        }
    }
    println!("worst difference: {worst:e}");
}

#[test]
fn origin_parameters_and_columns_are_read() {
    let origins = [
        ("sklearn-1.6.1/ms256-0.01", "scikit-learn 1.6.1, cloudpickle"),
        ("sklearn-1.9.1/ms256-0.01", "scikit-learn 1.9.1, cloudpickle"),
        ("sklearn-1.9.1/ms256-auto-skops", "scikit-learn 1.9.1, skops"),
    ];
    for (name, origin) in origins {
        let model = folder(name);
        assert_eq!(model.origin, origin);
        let columns = model.columns.expect("a frame has columns");
        assert_eq!(columns.len(), 20);
        assert_eq!(columns[0], "br-0c6e79cd156e -  Pck in");
        assert_eq!(columns[19], "lo - Tx out");
    }
    let model = folder("sklearn-1.9.1/ms256-0.01");
    assert_eq!((model.forest.n_estimators(), model.forest.max_samples()), (10, 256));
    let params: Vec<String> = model.params.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        params.join(" "),
        "n_estimators=10 max_samples=256 contamination=0.01 max_features=1.0 bootstrap=false random_state=0"
    );
    let model = sklearn::read(&bytes("small/half-features.skops")).expect("a forest");
    assert_eq!((model.columns, &*model.origin), (None, "scikit-learn 1.9.1, skops"));
    assert!(model.params.contains(&("max_features".into(), "0.5".into())));
}

/// The one-row path, the table path and the plain forest are one.
#[test]
fn all_paths_give_the_same_bits() {
    for Case { name, model: ImportedForest { forest, .. }, rows, .. } in cases() {
        let (n_rows, n_features) = (rows.len(), forest.n_features());
        let columns: Vec<f32> =
            (0..n_features).flat_map(|feature| rows.iter().map(move |row| row[feature])).collect();
        let mut scores = vec![0.0; n_rows];
        forest.score_table(&Table::new(&columns, n_rows, n_features).expect("a table"), &mut scores);
        let reference = ReferenceForest::new(forest.trees(), forest.max_samples());
        for (row, score) in rows.iter().zip(scores) {
            assert_eq!(score.to_bits(), forest.score_samples(row).to_bits(), "{name}");
            assert_eq!(score.to_bits(), reference.score_samples(row).to_bits(), "{name}");
        }
    }
}

/// Writing the arrays of a forest and reading them back changes nothing.
#[test]
fn arrays_survive_the_round_trip() {
    for Case { name, model: ImportedForest { forest, .. }, .. } in cases() {
        let trees: Vec<Tree> = forest
            .trees()
            .map(|tree| Tree::from_arrays(&tree, forest.n_features()).expect("a fitted tree is valid"))
            .collect();
        let again = Forest::new(&trees, forest.max_samples(), forest.offset()).expect("a forest");
        assert_eq!(again, forest, "{name}");
    }
}

/// The error, with its causes, of a file that must be refused.
fn read_error(file: &[u8]) -> String {
    message(sklearn::read(file))
}

fn message<E: std::error::Error>(model: Result<ImportedForest, E>) -> String {
    let message = chain(&model.expect_err("must be refused"));
    assert!(!message.contains('\n') && message.len() < 400, "{message}");
    message
}

/// The model may be damaged in a place that does not matter; what is read must then score.
fn check_read(file: &[u8]) {
    match sklearn::read(file) {
        Ok(model) => {
            let row = vec![0.5; model.forest.n_features()];
            assert!(model.forest.score_samples(&row) < 0.0);
        }
        Err(error) => drop(message(Err(error))),
    }
}

#[test]
fn programs_are_refused() {
    let text = |text: &str| [&[0x8c, text.len() as u8], text.as_bytes()].concat();
    let call = |module: &str, name: &str| {
        [&b"\x80\x04"[..], &text(module), &text(name), b"\x93", &text("id"), b"\x85R."].concat()
    };
    for (module, name) in [
        ("posix", "system"),
        ("builtins", "eval"),
        ("numpy", "load"),
        ("cloudpickle.cloudpickle", "_make_function"),
        ("joblib.numpy_pickle", "NumpyArrayWrapper"),
        ("sklearn.ensemble._forest", "RandomForestClassifier"),
    ] {
        assert_eq!(
            read_error(&call(module, name)),
            format!(
                "global {module}.{name} is not allowed in a model: it must be an IsolationForest and no more"
            )
        );
    }
    assert!(read_error(&call("os\nsystem", &"x".repeat(200))).starts_with("global os\\nsystem.xxx"));
    assert_eq!(
        read_error(b"\x80\x02cos\nsystem\n."),
        "global os.system is not allowed in a model: it must be an IsolationForest and no more"
    );
    // INST, persistent ids, extensions, out-of-band buffers
    for opcode in [b'i', b'o', b'P', b'Q', b'0', b'2', 0x82, 0x8f, 0x92, 0x97, 0xff] {
        let file = [0x80, 4, opcode, b'o', b's', b'\n'];
        assert_eq!(read_error(&file), format!("opcode 0x{opcode:02x} at byte 2 is not allowed in a model"));
    }
    let tree_alone = b"\x80\x04\x8c\x15sklearn.tree._classes\x8c\x12ExtraTreeRegressor\x93)\x81.";
    assert_eq!(
        read_error(tree_alone),
        "the object is an object of class ExtraTreeRegressor, must be an IsolationForest of scikit-learn"
    );
}

#[test]
fn damaged_programs_are_refused() {
    assert_eq!(
        read_error(b""),
        "a model file that begins with [] is neither a pickle of protocol 2 to 5 nor a skops file"
    );
    assert!(read_error(b"cos\nsystem\n").starts_with("a model file that begins with [63, 6f, 73, 0a]"));
    assert_eq!(read_error(b"\x80\x06N."), "pickle, before byte 2: protocol is 6, must be 2 to 5");
    for (program, reason) in [
        (&b"."[..], "stack is empty"),
        (b"N", "the file ends early"),
        (b"N.N", "1 bytes follow the end"),
        (b"t.", "no mark is set"),
        (b"N(\x94", "stack is empty"),
        (b"h\x07.", "memo 7 is not set"),
        (b"j\xff\xff\xff\xff.", "memo 4294967295 is not set"),
        (b"B\xff\xff\xff\xff.", "the file ends early"),
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\xffN.", "frame has 18446744073709551615 bytes, 2 are left"),
        (b"\x8a\x09123456789.", "integer of 9 bytes, must be at most 8"),
        (b"\x8c\x01\xff.", "text: invalid utf-8 sequence of 1 bytes from index 0"),
        (b"N(\x8c\x01aNu.", "keys are set in nothing"),
        (b"}(NNu.", "key is nothing, must be a text"),
        (b"}(Nu.", "a key has no value"),
        (b"K\x01K\x02a.", "items are added to 1"),
        (b"NNR.", "nothing is called with nothing"),
        (b"NN\x81.", "nothing is made from nothing"),
        (b"NNb.", "the state of nothing is nothing"),
        (b"NN\x93.", "the name of a global is not a text"),
        (b"cnumpy\ndtype", "the file ends early"),
        (b"c\xff\nx\n", "text: invalid utf-8 sequence"),
        (b"r\x00\x00\x00\x00.", "stack is empty"),
        (b"Nq\x05h\x06.", "memo 6 is not set"),
        (b"\x96\xff\xff\xff\xff\xff\xff\xff\xff.", "the file ends early"),
        (b"c_codecs\nencode\nX\x02\0\0\0\xc4\x80\x85R.", "stands for bytes"),
        (b"c_codecs\nencode\nq\0X\x14\0\0\0abcdefghijklmnopqrstq\x01\x85Rh\0h\x01\x85Rh\0h\x01\x85Rh\0h\x01\x85Rh\0h\x01\x85R.", "the same text becomes bytes several times"),
        (b"cnumpy._core.numeric\n_frombuffer\nN\x85R.", "FromBuffer is called with a list of 1"),
    ] {
        let found = read_error(&[b"\x80\x04", program].concat());
        assert!(found.starts_with("pickle, before byte ") && found.contains(reason), "{found}, not {reason}");
    }
    // A list in itself, and tuples too deep to be dropped by recursion.
    assert_eq!(
        read_error(b"\x80\x04]\x94h\x00a."),
        "the object is a list of 1, must be an IsolationForest of scikit-learn"
    );
    let deep = |n: usize| [&b"\x80\x04)"[..], &vec![0x85; n], b"."].concat();
    assert!(read_error(&deep(3_000_000)).starts_with("the object is a list of 1"));
    assert!(read_error(&deep(5_000_000)).ends_with("more than 4194304 instructions"));
}

const PICKLE: &str = "sklearn-1.9.1/ms256-0.01/model.pkl";

fn find(file: &[u8], what: &[u8]) -> usize {
    file.windows(what.len()).position(|window| window == what).expect("the model has it")
}

/// The model with some bytes, `offset` from the first `what` on, replaced.
fn with_replaced_bytes(what: &[u8], offset: usize, by: &[u8]) -> Vec<u8> {
    let mut file = bytes(PICKLE);
    let at = find(&file, what) + offset;
    file[at..at + by.len()].copy_from_slice(by);
    file
}

#[test]
fn missing_attributes_are_named() {
    for key in ["offset_", "estimators_features_", "n_features_in_"] {
        let message =
            read_error(&with_replaced_bytes(&[&[0x8c, key.len() as u8], key.as_bytes()].concat(), 2, b"X"));
        assert_eq!(message, format!("{key} is missing"));
    }
    assert_eq!(read_error(&with_replaced_bytes(b"\x8c\x0bestimators_", 2, b"X")), "estimators_ is missing");
    assert_eq!(read_error(&with_replaced_bytes(b"\x8c\x05tree_", 2, b"X")), "tree 0: tree_ is missing");
    assert_eq!(
        read_error(&with_replaced_bytes(b"\x8c\x05nodes", 2, b"X")),
        "tree 0: nodes is missing in tree_"
    );
    assert_eq!(
        read_error(&with_replaced_bytes(b"\x8c\x09threshold", 2, b"X")),
        "tree 0: tree_.nodes: field threshold is missing"
    );
    assert_eq!(
        read_error(&with_replaced_bytes(b"n_features_in_\x94K", 16, &[21])),
        "feature_names_in_ has 20 names, must have 21"
    );
    // Only the public one is left, which says the same.
    assert!(sklearn::read(&with_replaced_bytes(b"\x8c\x0c_max_samples", 2, b"X")).is_ok());
}

#[test]
fn invalid_trees_are_refused_with_their_number() {
    // The nodes of tree 0, 69 of 64 bytes.
    let nodes = b"B\x40\x11\x00\x00";
    let node = |number: usize, field: usize, value: i64| {
        read_error(&with_replaced_bytes(nodes, nodes.len() + 64 * number + field, &value.to_le_bytes()))
    };
    assert_eq!(node(0, 0, 0), "tree 0: tree node 0: left_child is 0, must be in 1..69, or -1 in a leaf");
    assert_eq!(node(1, 8, 1), "tree 0: tree node 1: right_child is 1, must be in 2..69, or -1 in a leaf");
    assert_eq!(
        node(0, 8, 1 << 40),
        "tree 0: tree node 0: right_child is 1099511627776, must be in 1..69, or -1 in a leaf"
    );
    assert_eq!(
        node(0, 8, 1),
        "tree 0: tree node 0: n_node_samples is 256, must be the sum of both children's"
    );
    assert_eq!(node(0, 16, 20), "tree 0: tree_.nodes: feature of node 0 is 20, must be below 20");
    assert_eq!(node(0, 16, -1), "tree 0: tree_.nodes: feature of node 0 is -1, must be below 20");
    assert_eq!(
        node(0, 24, f64::NAN.to_bits() as i64),
        "tree 0: tree node 0: threshold is NaN, must be finite"
    );
    assert_eq!(
        node(0, 40, i64::MAX),
        format!("tree 0: tree node 0: n_node_samples is {}, must be the sum of both children's", i64::MAX)
    );
    let error =
        sklearn::read(&with_replaced_bytes(nodes, nodes.len(), &[0])).expect_err("node 0 is its own child");
    assert!(error.source().is_some(), "the forest's own error is kept");
}

/// One tree, listed often, must not become many trees.
#[test]
fn repeated_trees_are_refused() {
    let file = bytes(PICKLE);
    let (rest, end) = file.split_at(file.len() - 3);
    assert_eq!(end, b"ub.", "sets the attributes, builds, stops");
    let list = |key: &[u8], item: &[u8]| {
        [&[0x8c, key.len() as u8], key, b"](", &item.repeat(100_000), b"e"].concat()
    };
    // The memo's numbers 88 and 370: a tree, and the columns of one.
    let (trees, features) =
        (list(b"estimators_", b"h\x58"), list(b"estimators_features_", b"j\x72\x01\x00\x00"));
    let file = [rest, &trees, &features, end].concat();
    assert_eq!(read_error(&file), "tree 169: the file tells the same array for several trees");
}

/// A zip of these files.
fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        zip.start_file(*name, options).expect("a name");
        zip.write_all(content).expect("writing to memory succeeds");
    }
    zip.finish().expect("writing to memory succeeds").into_inner()
}

#[test]
fn invalid_archives_are_refused() {
    let schema = |schema: &str| read_error(&zip(&[("schema.json", schema.as_bytes())]));
    assert!(read_error(b"PK\x03\x04").starts_with("skops: the archive cannot be unpacked: "));
    assert!(read_error(&zip(&[])).starts_with("skops: schema.json cannot be unpacked: "));
    assert!(schema("{").starts_with("skops: schema.json cannot be read: EOF"));
    assert!(schema(&"[".repeat(1000)).contains("recursion limit exceeded"));
    assert_eq!(schema("{}"), "skops: schema.json: __loader__ of a node without a class is missing or wrong");
    let node = |loader: &str, rest: &str| {
        schema(&format!(r#"{{"__class__": "system", "__module__": "os", "__loader__": "{loader}", {rest}}}"#))
    };
    let other = |what: &str| format!("the object is {what}, must be an IsolationForest of scikit-learn");
    assert_eq!(node("ObjectNode", r#""content": {}"#), other("of class os.system"));
    assert_eq!(node("FunctionNode", r#""content": {}"#), other("of class FunctionNode"));
    assert_eq!(node("JsonNode", r#""content": "7""#), other("7"));
    assert_eq!(node("CachedNode", r#""__id__": 5"#), "skops: schema.json: no node has the id 5");
    assert_eq!(
        node("NdArrayNode", r#""type": "numpy", "file": "../x.npy""#),
        "skops: ../x.npy cannot be unpacked: specified file not found in archive"
    );

    let blanks = vec![b' '; 40 << 20];
    let bomb = read_error(&zip(&[("schema.json", &blanks)]));
    assert!(bomb.starts_with("skops: schema.json: inflates to more than "), "{bomb}");
    // Beside a file that cannot be packed, a schema may be packed better.
    let noise: Vec<u8> =
        (0..40_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13 ^ i.wrapping_mul(i)) as u8).collect();
    let padded = |schema: &str| read_error(&zip(&[("schema.json", schema.as_bytes()), ("noise", &noise)]));
    for item in [r#"{"a":0}"#, "{}", "[0]", r#"{"\\\"":{"{":0}}"#] {
        let bomb = padded(&format!("[{}]", vec![item; 100_000].join(",")));
        assert!(bomb.starts_with("skops: schema.json: takes "), "{bomb}");
    }
    let text = padded(&format!(r#"{{"__loader__": "{}"}}"#, r#"{\"[,:"#.repeat(100_000)));
    assert!(text.starts_with("the object is of class "), "{text}");
    let array = br#"{"__loader__": "NdArrayNode", "type": "numpy", "file": "a.npy"}"#;
    let bomb = read_error(&zip(&[("schema.json", array), ("a.npy", &blanks)]));
    assert!(bomb.starts_with("skops: a.npy: inflates to more than "), "{bomb}");
}

#[test]
fn cut_files_are_refused() {
    for name in [PICKLE, "small/half-features.skops", "sklearn-1.9.1/ms256-auto-skops/model.skops"] {
        let file = bytes(name);
        for end in (0..file.len()).step_by(file.len() / 60) {
            read_error(&file[..end]);
        }
    }
}

#[test]
fn flipped_bytes_are_refused_or_harmless() {
    for name in ["small/half-features.pkl", "small/half-features.skops", "small/one-row.pkl"] {
        let mut file = bytes(name);
        for at in (0..file.len()).step_by(23) {
            let flip = [0x01, 0x80, 0xff][at % 3];
            file[at] ^= flip;
            check_read(&file);
            file[at] ^= flip;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_bytes_are_survived(program in proptest::collection::vec(any::<u8>(), 0..200)) {
        for start in [&b"\x80\x04"[..], b"PK\x03\x04"] {
            check_read(&[start, &program].concat());
        }
    }

    #[test]
    fn any_program_is_survived(program in proptest::collection::vec(
        proptest::sample::select(&b"\x94h\x00j\x93\x8cN\x88KMJGCB)]}\x85\x86\x87(tuesaR\x81b."[..]), 0..200)
    ) {
        check_read(&[&b"\x80\x04"[..], &program].concat());
    }
}

/// A folder with this description and the model of [`PICKLE`].
fn model_dir(mlmodel: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("MLmodel"), mlmodel).expect("written");
    fs::write(folder.path().join("model.pkl"), bytes(PICKLE)).expect("written");
    folder
}

#[test]
fn mlmodel_files_are_checked() {
    let folder = |mlmodel: &str| read_folder(model_dir(mlmodel).path());
    let message =
        |result: Result<ImportedForest, import::Error>| message(result).replace("scikit-learn: ", "");
    let sklearn = |file: &str, format: &str, rest: &str| {
        folder(&format!(
            "flavors: {{sklearn: {{pickled_model: {file}, serialization_format: {format}}}}}\n{rest}"
        ))
    };
    let inputs = |names: &[String]| {
        let names: Vec<String> =
            names.iter().map(|name| format!(r#"{{"type": "double", "name": "{name}"}}"#)).collect();
        sklearn("model.pkl", "cloudpickle", &format!("signature: {{inputs: '[{}]'}}", names.join(",")))
    };
    let model = sklearn("model.pkl", "pickle", "").expect("a model without a signature");
    assert_eq!(model.origin, "scikit-learn 1.9.1, pickle");
    let mut columns = model.columns.expect("columns");
    assert!(inputs(&columns).is_ok());
    columns.swap(3, 4);
    assert_eq!(
        message(inputs(&columns)),
        "column 3 is \"br-8fbdbc8e9f6a -  Pck in\" in MLmodel's signature \
         and \"br-0c6e79cd156e - Tx out\" in feature_names_in_"
    );
    assert_eq!(message(inputs(&columns[1..])), "MLmodel's signature has 19 names, must have 20");

    for file in ["../model.pkl", "/etc/passwd", "''", ".", "a/../../model.pkl", "model.pkl/.."] {
        let found = message(sklearn(file, "pickle", ""));
        let file = file.trim_matches('\'');
        assert_eq!(found, format!("MLmodel: the model file is \"{file}\", must be a file of the folder"));
    }
    assert_eq!(
        message(sklearn("model.pkl", "skops", "")),
        "MLmodel: serialization_format is skops, but the file is a pickle"
    );
    assert_eq!(
        message(sklearn("model.pkl", "joblib", "")),
        "MLmodel: line 1: flavors.sklearn.serialization_format: \"joblib\" is not pickle, cloudpickle or skops"
    );
    assert_eq!(
        message(folder("flavors: {pytorch: {}}")),
        "MLmodel: line 1: flavors: there is neither sklearn nor onnx among them: other models are not read"
    );
    assert_eq!(message(folder("")), "MLmodel: line 0: flavors is missing");
    assert!(message(folder("a: [")).contains(": not valid YAML: "));
    assert!(
        message(sklearn("model.pkl", "pickle", "signature: {inputs: '[1]'}"))
            .starts_with("MLmodel: signature.inputs cannot be read: ")
    );
    // On an array: columns have no names.
    let tensor = r#"signature: {inputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 20]}}]'}"#;
    assert!(sklearn("model.pkl", "pickle", tensor).is_ok());
}

#[test]
fn links_out_of_the_folder_are_no_files_of_it() {
    let folder = model_dir("flavors: {sklearn: {pickled_model: link.pkl, serialization_format: pickle}}");
    let link = folder.path().join("link.pkl");
    assert_eq!(message(read_folder(folder.path())), "MLmodel: the model file \"link.pkl\" is not there");
    std::os::unix::fs::symlink(data(PICKLE), &link).expect("a link");
    assert_eq!(message(read_folder(folder.path())), "MLmodel: the model file \"link.pkl\" is not there");
    fs::remove_file(&link).expect("removed");
    std::os::unix::fs::symlink("model.pkl", &link).expect("a link");
    assert!(read_folder(folder.path()).is_ok());
}

#[test]
fn mlmodel_files_too_deep_or_too_long_are_refused() {
    for text in ["[".repeat(1_000_000), "- ".repeat(500_000), "{a: ".repeat(200_000)] {
        message(read_folder(model_dir(&text).path()));
    }
    let found = message(read_folder(model_dir(&" ".repeat((1 << 20) + 1)).path()));
    assert_eq!(found, "MLmodel: has 1048577 bytes, must have at most 1048576");
}
