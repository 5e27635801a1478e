use super::super::super::Table;
use super::super::super::rng::Rng;
use super::super::{ExtendedForest, ExtendedParams, ExtendedTree, ExtendedTreeArrays};
use super::*;
use std::num::NonZeroUsize;

/// A table of normal values, some of them far outside, NaN or infinite; shape `[n_rows, n_features]`.
fn values(n_rows: usize, n_features: usize) -> Vec<f32> {
    let mut rng = Rng::new((n_rows + n_features) as u64, 0);
    let value = |i: usize| match i % 97 {
        13 => f32::NAN,
        29 => f32::INFINITY,
        41 => f32::MIN,
        59 => 1e3 * rng.next_normals()[0],
        _ => rng.next_normals()[0],
    };
    (0..n_rows * n_features).map(value).collect()
}

/// A forest of splits of `ndim` terms, with weights of a byte.
fn forest(n_trees: usize, n_features: usize, ndim: usize) -> ExtendedForest {
    let count = |n| NonZeroUsize::new(n).expect("above 0");
    let mut rng = Rng::new(ndim as u64, 0);
    let values: Vec<f32> = (0..300 * n_features).map(|_| rng.next_normals()[0]).collect();
    let params = ExtendedParams { n_estimators: count(n_trees), ndim: count(ndim), ..Default::default() };
    let table = Table::new(&values, 300, n_features).expect("a table");
    params.fit(&table, NonZeroUsize::MIN).expect("a forest")
}

/// The same forest with weights of any `f32`.
fn with_other_weights(forest: &ExtendedForest) -> ExtendedForest {
    let tree = |mut arrays: ExtendedTreeArrays| {
        arrays.coefficients.iter_mut().for_each(|weight| *weight = f64::from(*weight as f32 * 1.1));
        ExtendedTree::from_arrays(&arrays, forest.n_features()).expect("a tree")
    };
    ExtendedForest::new(forest.trees().map(tree).collect(), forest.max_samples()).expect("a forest")
}

/// Full blocks, and a last one with more and with fewer rows than a set pays for; tables of all rows and without some.
#[test]
fn a_table_has_the_bits_of_its_rows() {
    for (n_trees, n_features, ndim) in [(50, 9, 9), (7, 40, 16), (3, 40, 37), (1, 1, 1), (2, 300, 20)] {
        let short = forest(n_trees, n_features, ndim);
        let full = with_other_weights(&short);
        for n_rows in [0, 1, MIN_ROWS - 1, MIN_ROWS, BLOCK, BLOCK + 1, 2 * BLOCK + MIN_ROWS + 3] {
            let values = values(n_rows, n_features);
            let table = Table::new(&values, n_rows, n_features).expect("a table");
            for table in [table, table.without_rows(n_rows / 3..n_rows / 2)] {
                let (mut row, mut scores) = (vec![0.0; n_features], vec![0.0; table.n_rows()]);
                for forest in [&short, &full] {
                    forest.score_table(&table, &mut scores);
                    for (number, score) in scores.iter().enumerate() {
                        table.copy_row(number, &mut row);
                        let expected = forest.score_samples(&row);
                        assert_eq!(
                            score.to_bits(),
                            expected.to_bits(),
                            "row {number} of {n_rows}, {ndim} terms"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn all_instructions_give_the_same_bits() {
    let forest = with_other_weights(&forest(20, 30, 20));
    let values = values(BLOCK - 3, 30);
    let table = Table::new(&values, BLOCK - 3, 30).expect("a table");
    let mut block = Block::new(&table);
    block.load(0, BLOCK - 3);
    let mut plain = [0.0; BLOCK];
    add_path_lengths(Plain, &forest.nodes, &block, &mut plain);
    assert_eq!(block.path_lengths(&forest.nodes).map(f64::to_bits), plain.map(f64::to_bits));
    #[cfg(target_arch = "x86_64")]
    for sums in x86::with_each(&forest.nodes, &block) {
        assert_eq!(sums.map(f64::to_bits), plain.map(f64::to_bits));
    }
}
