//! Forests saved by scikit-learn score here as they do there, and an extended one as in plain numpy
//! (`tests/data/forest/README.md`).

use std::fs;
use std::path::Path;

use promforest::forest::plain::PlainForest;
use promforest::forest::{
    ExtendedForest, ExtendedParams, ExtendedTree, ExtendedTreeArrays, Forest, MaxSamples, Table, Tree,
    TreeArrays,
};

/// Two units in the last place of a score between -1 and -0.5: numpy's and our `exp2` and `ln` round
/// differently now and then.
const TOLERANCE: f64 = 2.3e-16;

/// The lines of a file as cells.
fn read(name: &str) -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/forest").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    text.lines().map(|line| line.split(',').map(String::from).collect()).collect()
}

fn number<T: std::str::FromStr>(cell: &str) -> T {
    cell.parse().unwrap_or_else(|_| panic!("{cell} is not a number"))
}

fn read_trees(name: &str) -> Vec<TreeArrays> {
    let mut trees: Vec<TreeArrays> = Vec::new();
    for line in &read(name)[1..] {
        let [tree, left, right, feature, threshold, count, missing] = &line[..] else {
            panic!("{name} has a line of {} cells", line.len());
        };
        trees.resize_with(trees.len().max(number::<usize>(tree) + 1), TreeArrays::default);
        let tree = trees.last_mut().expect("just resized");
        tree.left_child.push(number(left));
        tree.right_child.push(number(right));
        tree.feature.push(number(feature));
        tree.threshold.push(number(threshold));
        tree.n_node_samples.push(number(count));
        tree.missing_go_to_left.push(number::<u8>(missing) == 1);
    }
    trees
}

/// Rows as scikit-learn compares them: rounded to `f32`.
fn read_rows(name: &str) -> Vec<Vec<f32>> {
    let round = |cell: &String| number::<f64>(cell) as f32;
    read(name).iter().map(|line| line.iter().map(round).collect()).collect()
}

fn assert_close(ours: f64, theirs: f64, what: &str) {
    assert!((ours - theirs).abs() <= TOLERANCE, "{what}: {ours:?}, scikit-learn has {theirs:?}");
}

/// One line of `models.csv`.
struct Case {
    model: String,
    arrays: Vec<TreeArrays>,
    forest: Forest,
    rows: Vec<Vec<f32>>,
    expected: Vec<Vec<String>>,
}

fn cases() -> impl Iterator<Item = Case> {
    read("models.csv").into_iter().skip(1).map(|line| {
        let [model, forest, n_features, max_samples, offset, input, expected] = &line[..] else {
            panic!("models.csv has a line of {} cells", line.len());
        };
        let arrays = read_trees(forest);
        let trees: Vec<Tree> = arrays
            .iter()
            .map(|tree| Tree::from_arrays(tree, number(n_features)).expect("scikit-learn made this tree"))
            .collect();
        Case {
            model: model.clone(),
            arrays,
            forest: Forest::new(&trees, number(max_samples), number(offset)).expect("a forest"),
            rows: read_rows(input),
            expected: read(expected).split_off(1),
        }
    })
}

#[test]
fn every_model_is_there() {
    let names: Vec<String> = cases().map(|case| case.model).collect();
    let count = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
    assert_eq!((count("sklearn-1.6.1/"), count("sklearn-1.9.1/"), count("edges/")), (4, 5, 2), "{names:?}");
}

#[test]
fn scores_are_scikit_learns() {
    for Case { model, forest, rows, expected, .. } in cases() {
        assert_eq!(rows.len(), expected.len());
        for (number_of_row, (row, expected)) in rows.iter().zip(&expected).enumerate() {
            let what = format!("{model} row {number_of_row}");
            let decision = forest.decision(row);
            assert_close(forest.score_samples(row), number(&expected[0]), &what);
            assert_close(decision, number(&expected[1]), &what);
            let predict = if decision < 0.0 { "-1" } else { "1" };
            assert_eq!(predict, expected[2], "{what}");
        }
    }
}

/// The one-row path, the table path and the plain forest, which keeps `f64` thresholds, are one.
#[test]
fn all_paths_give_the_same_bits() {
    for Case { model, arrays, forest, rows, .. } in cases() {
        let (n_rows, n_features) = (rows.len(), forest.n_features());
        let columns: Vec<f32> =
            (0..n_features).flat_map(|feature| rows.iter().map(move |row| row[feature])).collect();
        let mut scores = vec![0.0; n_rows];
        forest.score_table(&Table::new(&columns, n_rows, n_features).expect("a table"), &mut scores);
        let plain = PlainForest::new(arrays, forest.max_samples());
        for (row, score) in rows.iter().zip(scores) {
            assert_eq!(score.to_bits(), forest.score_samples(row).to_bits(), "{model}");
            assert_eq!(score.to_bits(), plain.score_samples(row).to_bits(), "{model}");
        }
    }
}

/// Writing the arrays of a forest and reading them back changes nothing.
#[test]
fn arrays_survive_the_round_trip() {
    for Case { model, forest, .. } in cases() {
        let trees: Vec<Tree> = forest
            .trees()
            .map(|tree| Tree::from_arrays(&tree, forest.n_features()).expect("our own tree"))
            .collect();
        let again = Forest::new(&trees, forest.max_samples(), forest.offset()).expect("a forest");
        assert_eq!(again, forest, "{model}");
    }
}

/// Rows that the extended forest of the golden data was grown from; its input goes on after them.
const EXTENDED_TRAINING_ROWS: usize = 300;

fn extended_trees() -> Vec<ExtendedTreeArrays> {
    let mut trees: Vec<ExtendedTreeArrays> = Vec::new();
    for line in &read("extended.csv")[1..] {
        let [tree, left, right, count, terms @ .., cut, low, high] = &line[..] else {
            panic!("extended.csv has a line of {} cells", line.len());
        };
        trees.resize_with(trees.len().max(number::<usize>(tree) + 1), ExtendedTreeArrays::default);
        let tree = trees.last_mut().expect("just resized");
        let (columns, coefficients) = terms.split_at(terms.len() / 2);
        tree.left_child.push(number(left));
        tree.right_child.push(number(right));
        tree.n_node_samples.push(number(count));
        tree.width = columns.len();
        tree.columns.extend(columns.iter().map(|cell| number::<u32>(cell)));
        tree.coefficients.extend(coefficients.iter().map(|cell| number::<f64>(cell)));
        tree.cut.push(number(cut));
        tree.low.push(number(low));
        tree.high.push(number(high));
    }
    trees
}

fn extended_forest() -> ExtendedForest {
    let tree = |arrays| ExtendedTree::from_arrays(arrays, 4).expect("numpy made this tree");
    ExtendedForest::new(extended_trees().iter().map(tree).collect(), 32).expect("a forest")
}

#[test]
fn extended_scores_are_numpys() {
    let (forest, rows, expected) =
        (extended_forest(), read_rows("extended.input.csv"), read("extended.expected.csv").split_off(1));
    assert_eq!((forest.n_estimators(), rows.len(), expected.len()), (50, 323, 323));
    for (number_of_row, (row, expected)) in rows.iter().zip(&expected).enumerate() {
        let score = forest.score_samples(row);
        let expected: f64 = number(&expected[0]);
        assert!(
            (score - expected).abs() <= TOLERANCE,
            "row {number_of_row}: {score:?}, numpy has {expected:?}"
        );
    }
}

/// Another seed and another generator, but the same rows and the same way to grow: the scores of many
/// trees come close.
#[test]
fn extended_forests_are_grown_alike() {
    let (numpys, rows) = (extended_forest(), read_rows("extended.input.csv"));
    let columns: Vec<f32> =
        (0..4).flat_map(|column| rows[..EXTENDED_TRAINING_ROWS].iter().map(move |row| row[column])).collect();
    let params = ExtendedParams {
        n_estimators: 1_000.try_into().expect("not zero"),
        max_samples: MaxSamples::count(32).expect("not zero"),
        n_columns: 3.try_into().expect("not zero"),
        ..Default::default()
    };
    let table = Table::new(&columns, EXTENDED_TRAINING_ROWS, 4).expect("a table");
    let ours = params.fit(&table, 2.try_into().expect("not zero")).expect("a forest");
    let differences: Vec<f64> =
        rows.iter().map(|row| ours.score_samples(row) - numpys.score_samples(row)).collect();
    let mean = differences.iter().sum::<f64>() / rows.len() as f64;
    assert!(mean.abs() < 0.01, "mean difference {mean}");
    let spread = differences.iter().map(|difference| difference.abs()).fold(0.0, f64::max);
    assert!(spread < 0.08, "greatest difference {spread}");
}
