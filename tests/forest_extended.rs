//! An extended isolation forest has the scores of its implementation in numpy (`tests/data/forest/README.md`).

use std::fs;
use std::path::Path;

use promforest::forest::{
    ExtendedForest, ExtendedParams, ExtendedTree, ExtendedTreeArrays, MaxSamples, Table,
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

/// Rows as the forest compares them: rounded to `f32`.
fn read_rows(name: &str) -> Vec<Vec<f32>> {
    let round = |cell: &String| number::<f64>(cell) as f32;
    read(name).iter().map(|line| line.iter().map(round).collect()).collect()
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
fn extended_scores_equal_numpy() {
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
        ndim: 3.try_into().expect("not zero"),
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
