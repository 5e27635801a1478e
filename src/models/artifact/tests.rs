use super::*;
use crate::detect::{OnlineDetector, TrainingMatrix};
use crate::features::rate::RateSemantics;
use crate::features::{Schema, Transform};
use crate::forest::{ExtendedParams, ForestParams, Table};
use crate::models::{
    CrossValidation, FittedModel, HeldOut, ModelCard, ModelKind, ModelParams, TrainingRange, Trial,
};
use crate::prom::{Labels, METRIC_NAME};
use crate::window::grid::Grid;
use proptest::prelude::*;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

const KINDS: [ModelKind; 2] = [ModelKind::IsolationForest, ModelKind::ExtendedIsolationForest];

/// A model of two features with everything in its card.
pub fn sample_model() -> Model {
    sample_model_of(ModelKind::IsolationForest)
}

fn sample_model_of(kind: ModelKind) -> Model {
    const ROWS: usize = 400;
    let values: Vec<f32> = (0..2 * ROWS).map(|i| ((i * 7919) % 1009) as f32 / 10.0).collect();
    let table = Table::new(&values, ROWS, 2).expect("as many values as cells");
    let n_estimators = NonZeroUsize::new(7).expect("above 0");
    let (params, fitted) = match kind {
        ModelKind::IsolationForest => {
            let params = ForestParams { n_estimators, ..Default::default() };
            let forest = params.fit(&table, NonZeroUsize::MIN).expect("fits");
            (ModelParams::IsolationForest(params), FittedModel::IsolationForest(forest))
        }
        ModelKind::ExtendedIsolationForest => {
            let params = ExtendedParams { n_estimators, ..Default::default() };
            // Three days, so that there is a profile.
            let times: Vec<i64> = (0..ROWS as i64).map(|i| 1_699_000_000_000 + i * 720_000).collect();
            let matrix = TrainingMatrix::new(&times, &table, vec![[0, 1]]).expect("valid rows");
            let (detector, _) =
                OnlineDetector::from_training(matrix.fit(&params, NonZeroUsize::MIN).expect("fits"));
            (ModelParams::Extended(params), FittedModel::Extended(Box::new(detector)))
        }
    };
    let feature = |device: &str| Labels::new([(METRIC_NAME, "rx"), ("device", device)]).expect("valid");
    let transform = Transform::Rate { range_ms: 60_000, semantics: RateSemantics::V3 };
    let schema = Schema {
        features: vec![feature("eth0"), feature("it's \"odd\"")],
        transform,
        grid: Grid::Slots { interval_ms: 15_000, slot_start_ms: 700 },
    };
    let card = ModelCard {
        detector: Some("net".into()),
        group: Some(Labels::new([("job", "node"), ("instance", "a:9100")]).expect("valid")),
        origin: "promforest 0.0.0".into(),
        created_ms: 1_700_000_000_123,
        params: params.describe(),
        columns: None,
        training_range: Some(TrainingRange {
            from_ms: 1_699_000_000_000,
            to_ms: 1_700_000_000_000,
            observed_ms: 999_000_000,
            n_rows: ROWS,
            n_excluded: 3,
        }),
        validation: Some(CrossValidation {
            trials: vec![Trial { max_samples: 256, kl: vec![0.1, 0.25], quantile_kl: vec![0.01, 0.02] }],
            chosen: 0,
            held_out: HeldOut { alert_rate: 0.01, incidents_per_day: Some(0.5), is_constant: false },
        }),
        baseline: Some([0.1, 0.2, -0.1].iter().collect()),
    };
    Model { schema, fitted, card }
}

#[test]
fn a_round_trip_changes_no_bit() {
    KINDS.map(sample_model_of).iter().for_each(round_trip);
}

fn round_trip(saved: &Model) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("models/net/1");
    save(&to_files(saved), &path).expect("writable");
    let read = read_model(&read_files(&path).expect("readable")).expect("a model");
    assert_eq!(read, *saved);
    assert_eq!(to_files(&read), to_files(saved));
    let again = save(&to_files(saved), &path).expect_err("it is there already").to_string();
    assert!(again.starts_with("cannot create "), "{again}");
    let left: Vec<_> = std::fs::read_dir(path.parent().expect("net")).expect("readable").collect();
    assert_eq!(left.len(), 1, "no draft stays behind: {left:?}");
}

/// A model of rows each 5 minutes up to 02:25 of the last day, with a job from 02:00 to 02:20 each night.
fn nightly_model(days: usize) -> Model {
    const ROWS_PER_DAY: usize = 288;
    let n_rows = days * ROWS_PER_DAY + 30;
    let value_at = |cell: usize| {
        let load = if (24..28).contains(&(cell % n_rows % ROWS_PER_DAY)) { 5000.0 } else { 100.0 };
        load + ((cell * 7919) % 1009) as f32 / 100.0
    };
    let values: Vec<f32> = (0..2 * n_rows).map(value_at).collect();
    let table = Table::new(&values, n_rows, 2).expect("as many values as cells");
    let times: Vec<i64> = (0..n_rows as i64).map(|row| 1_699_056_000_000 + row * 300_000).collect();
    let params =
        ExtendedParams { n_estimators: NonZeroUsize::new(7).expect("above 0"), ..Default::default() };
    let detector = OnlineDetector::fit(&times, &table, &params, 1.0, NonZeroUsize::MIN).expect("fits");
    Model {
        fitted: FittedModel::Extended(Box::new(detector)),
        ..sample_model_of(ModelKind::ExtendedIsolationForest)
    }
}

#[test]
fn golden_rows_of_a_group_with_a_nightly_job_score_the_same() {
    for days in [3, 6] {
        round_trip(&nightly_model(days));
    }
    // The golden rows depend on the recurring peaks, of which four days are needed.
    let mut files = to_files(&nightly_model(6));
    let mut state: serde_json::Value = serde_json::from_slice(&files[STATE]).expect("JSON");
    state["peaks"].as_array_mut().expect("a list").fill(0.into());
    files.insert(STATE.into(), state.to_string().into_bytes());
    let Err(error) = read_model(&with_checksums(files)) else { panic!("other scores without the peaks") };
    assert!(error.to_string().starts_with("golden.arrow: row "), "{error}");
}

#[test]
fn names_of_imported_columns_stay() {
    let mut imported = sample_model();
    imported.card.columns = Some(vec!["eth0 -  Rx in".into(), "odd".into()]);
    assert_eq!(read_model(&to_files(&imported)).expect("a model"), imported);
}

#[test]
fn a_damaged_file_is_named() {
    let good = to_files(&sample_model());
    for name in [MODEL, FOREST, GOLDEN] {
        let mut bad = good.clone();
        let middle = bad[name].len() / 2;
        bad.get_mut(name).expect("there")[middle] ^= 1;
        let error = read_model(&bad).expect_err("damaged").to_string();
        assert_eq!(error, format!("{name} does not have its checksum: it is damaged, or was edited"));
        let mut less = good.clone();
        less.remove(name);
        assert_eq!(
            read_model(&less).expect_err("missing").to_string(),
            format!("no model: {name} is missing")
        );
    }
}

/// The files with another `model.json`, and checksums that agree.
fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> Files {
    edited_of(ModelKind::IsolationForest, edit)
}

fn edited_of(kind: ModelKind, edit: impl FnOnce(&mut serde_json::Value)) -> Files {
    let mut files = to_files(&sample_model_of(kind));
    let mut json: serde_json::Value = serde_json::from_slice(&files[MODEL]).expect("JSON");
    edit(&mut json);
    files.insert(MODEL.into(), json.to_string().into_bytes());
    with_checksums(files)
}

fn with_checksums(mut files: Files) -> Files {
    let lines = files.iter().filter(|(name, _)| has_checksum(name) && *name != SUMS);
    let sums: Vec<String> = lines.map(|(name, bytes)| format!("{}  {name}\n", sha256_hex(bytes))).collect();
    files.insert(SUMS.into(), sums.concat().into_bytes());
    files
}

#[test]
fn unknown_values_in_model_json_are_refused() {
    type Edit = fn(&mut serde_json::Value);
    let cases: [(Edit, &str); 9] = [
        (|json| json["format"] = 2.into(), "the model has format 2, this version reads format 1"),
        (|json| json["kind"] = "oracle".into(), "model.json: \"oracle\" is not a kind of forest"),
        (|json| json["secret"] = 1.into(), "model.json: unknown field `secret`"),
        (|json| json["created"] = "soon".into(), "model.json: created is \"soon\", must be a time"),
        (
            |json| json["schema"]["transform"] = "rate(0)".into(),
            "model.json: the range is 0s, must be at least 1s",
        ),
        (
            |json| json["schema"]["slots"]["slot_start_ms"] = 15_000.into(),
            "model.json: slots of 15000 ms begin at 15000",
        ),
        (
            |json| json["forest"]["n_features"] = 3.into(),
            "model.json: the forest has 3 features, the schema has 2",
        ),
        (|json| json["forest"]["n_estimators"] = 8.into(), "forest.arrow: there are 7 trees, must be 8"),
        (|json| json["forest"]["max_samples"] = 17.into(), "golden.arrow: row 0 scores"),
    ];
    for (edit, message) in cases {
        let error = crate::error::chain(&read_model(&edited(edit)).expect_err("wrong"));
        assert!(error.starts_with(message), "{error}");
    }
    let columns_swapped = edited(|json| {
        let features = json["schema"]["features"].as_array_mut().expect("a list");
        features[1] = features[0].clone();
    });
    let error = read_model(&columns_swapped).expect_err("twice").to_string();
    assert_eq!(error, r#"model.json: two features are "rx{device=\"eth0\"}""#);
}

#[test]
fn metadata_of_an_extended_forest_is_checked() {
    type Edit = fn(&mut serde_json::Value);
    let cases: [(Edit, &str); 25] = [
        (|forest| forest["offset"] = (-0.4).into(), "offset is -0.4, must be -0.5"),
        (|forest| forest["n_features"] = 3.into(), "the forest has 3 features, the schema has 2"),
        (|forest| forest["width"] = 0.into(), "width is 0, must be in 1..=4096"),
        (|forest| forest["width"] = u64::MAX.into(), "width is 18446744073709551615, must be in 1..=4096"),
        (|forest| forest["scales"][0][1] = 0.into(), "sigma is 0, must be finite and above 0"),
        (|forest| forest["scales"] = serde_json::json!([]), "column is "),
        (|forest| forest["scales"][5] = serde_json::Value::Null, "column is "),
        (
            |forest| {
                let scales = forest["scales"].as_array_mut().expect("a list");
                scales.push(scales[0].clone());
            },
            "number of scales is 7, must be a multiple of 3",
        ),
        (
            |forest| {
                let scales = forest["scales"].as_array_mut().expect("a list");
                scales.extend_from_within(..3);
                forest["minima"] = serde_json::json!([]);
            },
            "the scales are those of 3 metrics, must be 2",
        ),
        (|forest| forest["varying"] = serde_json::json!([]), "column is "),
        (|forest| forest["varying"] = serde_json::json!([1, 0]), "feature is 0, must be above 1"),
        (|forest| forest["varying"] = serde_json::json!([-1]), "invalid value: integer `-1`"),
        (|forest| forest["residuals"]["scales"] = serde_json::json!([[0, 1]]), "column is "),
        (
            |forest| forest["residuals"]["inverse"] = serde_json::json!([1, 0, 0]),
            "number of values of the inverse is 3, must be 4",
        ),
        (|forest| forest["residuals"]["inverse"][1] = 7.into(), "value of the inverse is "),
        (|forest| forest["residuals"]["deviations"][0] = 0.into(), "deviation is 0, must be above 0"),
        (|forest| forest["forest_scale"]["unit"] = 0.into(), "must be finite, its unit above 0"),
        (|forest| forest["minima"] = serde_json::json!([null]), "number of minima is 1, must be 2"),
        (
            |forest| forest["minima"] = serde_json::json!([null, 0]),
            "minimum of a feature is 0, must be finite and above 0",
        ),
        (
            |forest| forest["mean_sizes"][0]["features"][1] = 2.into(),
            "feature of a mean size is 2, must be below 2, the number of features",
        ),
        (
            |forest| forest["mean_sizes"][0]["offsets"][0] = (-1).into(),
            "offset of a mean size is -1, must be finite, at least 0",
        ),
        (|forest| forest["mean_sizes"][0]["scale"] = serde_json::json!([0, 0]), "sigma is 0, must be "),
        (
            |forest| {
                let mean_sizes = forest["mean_sizes"].as_array_mut().expect("a list");
                mean_sizes.extend(vec![mean_sizes[0].clone(); 2]);
            },
            "number of mean sizes is 3, must be at most 2",
        ),
        (|forest| forest["tail_scale"]["median"] = serde_json::Value::Null, "invalid type: null"),
        // The trees mix values of which two are gone.
        (|forest| forest["residuals"] = serde_json::Value::Null, "column is "),
    ];
    for (number, (edit, message)) in cases.into_iter().enumerate() {
        let files = edited_of(ModelKind::ExtendedIsolationForest, |json| edit(&mut json["forest"]));
        let error = crate::error::chain(&read_model(&files).expect_err("wrong"));
        assert!(error.contains(message), "{number}: {error}");
    }
    let other_means = edited_of(ModelKind::ExtendedIsolationForest, |json| {
        json["forest"]["residuals"]["means"][0] = 1000.into();
    });
    let error = read_model(&other_means).expect_err("another model").to_string();
    assert!(error.starts_with("golden.arrow: row 0 scores"), "{error}");
}

#[test]
fn an_impossible_state_is_refused() {
    type Edit = fn(&mut serde_json::Value);
    let cases: [(Edit, &str); 11] = [
        (|state| state["interval_ms"] = 0.into(), "interval_ms is 0, must be in 1..=31622400000"),
        (|state| state["profiles"] = serde_json::json!([]), "number of features is 0, must be 2"),
        (|state| state["profiles"][0]["means"] = serde_json::json!([1]), "means is 1 long, must be 96 long"),
        (|state| state["profiles"][1]["counts"] = serde_json::json!([]), "counts is 0 long, must be 96 long"),
        (|state| state["profiles"][0]["sums"][3] = "x".into(), "invalid type: string"),
        (|state| state["rows"][0][1] = serde_json::json!([1]), "width of a row is 1, must be 2"),
        (|state| state["rows"][0][0] = i64::MAX.into(), "time of a row is "),
        (|state| state["hours"][0][0] = i64::MAX.into(), "number of an hour is "),
        (|state| state["hours"][0][1] = serde_json::Value::Null, "invalid type: null"),
        (|state| state["current"][0] = 0.into(), "number of an hour is "),
        (|state| state["secret"] = 0.into(), "unknown field `secret`"),
    ];
    for (number, (edit, message)) in cases.into_iter().enumerate() {
        let mut files = to_files(&sample_model_of(ModelKind::ExtendedIsolationForest));
        let mut state: serde_json::Value = serde_json::from_slice(&files[STATE]).expect("JSON");
        edit(&mut state);
        files.insert(STATE.into(), state.to_string().into_bytes());
        let error = crate::error::chain(&read_model(&with_checksums(files)).expect_err("wrong"));
        assert!(error.starts_with("state.json: ") && error.contains(message), "{number}: {error}");
    }
    let mut without = to_files(&sample_model_of(ModelKind::ExtendedIsolationForest));
    without.remove(STATE);
    assert_eq!(read_model(&without).expect_err("missing").to_string(), "no model: state.json is missing");
}

/// A width that is not the file's gives other values than the file has, and never ones that it has not.
#[test]
fn another_width_is_refused() {
    for width in [1, 3, 5, 4096] {
        let files =
            edited_of(ModelKind::ExtendedIsolationForest, |json| json["forest"]["width"] = width.into());
        assert!(read_model(&files).is_err(), "{width}");
    }
}

#[test]
fn a_kind_does_not_read_files_of_the_other() {
    for (kind, other) in [(KINDS[0], KINDS[1]), (KINDS[1], KINDS[0])] {
        let mut mixed = to_files(&sample_model_of(kind));
        let forest = to_files(&sample_model_of(other)).remove(FOREST).expect("there");
        mixed.insert(FOREST.into(), forest);
        let error = read_model(&with_checksums(mixed)).expect_err("mixed").to_string();
        assert!(error.starts_with("forest.arrow: the columns are tree, left_child, "), "{error}");
        let renamed = edited_of(kind, |json| json["kind"] = other.as_str().into());
        let error = read_model(&renamed).expect_err("renamed").to_string();
        assert!(error.starts_with("model.json: unknown field "), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Files with valid checksums and arbitrary content give an error or a model, and nothing worse.
    #[test]
    fn mangled_files_never_panic(kind in 0..2_usize, file in 0..4_usize, edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in prop::option::of(any::<prop::sample::Index>())) {
        static SAMPLES: LazyLock<[Files; 2]> = LazyLock::new(|| KINDS.map(|kind| to_files(&sample_model_of(kind))));
        let mut files = SAMPLES[kind].clone();
        let name = [MODEL, FOREST, GOLDEN, STATE][file];
        let name = if files.contains_key(name) { name } else { MODEL };
        let bytes = files.get_mut(name).expect("there");
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = read_model(&with_checksums(files));
    }
}

#[test]
fn cyclic_children_and_huge_counts_are_refused() {
    for model in KINDS.map(sample_model_of) {
        let left_child = match &model.fitted {
            FittedModel::IsolationForest(forest) => forest.trees().next().expect("a tree").left_child,
            FittedModel::Extended(detector) => {
                let forest = detector.scorer().parts().forest.expect("metrics vary");
                forest.trees().next().expect("a tree").left_child
            }
        };
        assert_children_are_refused(&model, &left_child);
    }
}

fn assert_children_are_refused(saved: &Model, left_child: &[i64]) {
    let root = left_child.iter().position(|child| *child > 0).expect("a split");
    // The left child of the first split, found in the file by what stands before it.
    let files_of = |value: i32| {
        let mut files = to_files(saved);
        let bytes = files.get_mut(FOREST).expect("there");
        let lefts: Vec<u8> = left_child.iter().flat_map(|child| (*child as i32).to_le_bytes()).collect();
        let start = bytes.windows(lefts.len()).position(|window| window == lefts).expect("the column");
        bytes[start + 4 * root..][..4].copy_from_slice(&value.to_le_bytes());
        with_checksums(files)
    };
    for value in [0, i32::MAX, -7] {
        let error = crate::error::chain(&read_model(&files_of(value)).expect_err("no tree"));
        assert!(error.starts_with("forest.arrow: tree 0: tree node 0: "), "{error}");
        assert!(error.contains(&format!("is {value}, must be ")), "{error}");
    }
}
