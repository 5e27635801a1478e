use super::super::super::rng::Rng;
use super::super::super::{MaxSamples, Table};
use super::super::terms::{FullTerms, TERMS};
use super::super::{ExtendedForest, ExtendedParams, ExtendedTree, ExtendedTreeArrays};
use super::*;
use proptest::prelude::*;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

/// A forest of a table of normal values, and rows from its centre to far outside.
fn forest_and_rows(n_trees: usize, n_features: usize, ndim: usize) -> (ExtendedForest, Vec<Vec<f64>>) {
    let mut rng = Rng::new((n_trees * n_features) as u64, 0);
    let values: Vec<f32> = (0..300 * n_features).map(|_| rng.next_normals()[0]).collect();
    let table = Table::new(&values, 300, n_features).expect("a table");
    let count = |n| NonZeroUsize::new(n).expect("above 0");
    let max_samples = MaxSamples::count(200).expect("a count");
    let params =
        ExtendedParams { n_estimators: count(n_trees), ndim: count(ndim), max_samples, random_state: 5 };
    let forest = params.fit(&table, NonZeroUsize::MIN).expect("a forest");
    let row = |i: usize| {
        let scale = [0.1, 1.0, 5.0, 1e3, f64::from(f32::MAX) / 4.0][i % 5];
        (0..n_features).map(|_| scale * f64::from(rng.next_normals()[0].clamp(-4.0, 4.0))).collect()
    };
    let rows = (0..20).map(row).collect();
    (forest, rows)
}

/// The same forest with weights that have no short form.
fn with_other_weights(forest: &ExtendedForest) -> ExtendedForest {
    let tree = |mut arrays: ExtendedTreeArrays| {
        arrays.coefficients.iter_mut().for_each(|weight| *weight = f64::from(*weight as f32 * 1.1));
        ExtendedTree::from_arrays(&arrays, forest.n_features()).expect("a tree")
    };
    ExtendedForest::new(forest.trees().map(tree).collect(), forest.max_samples()).expect("a forest")
}

/// One tree after another, one step after another.
fn one_at_a_time(nodes: &SplitsByLevel, row: &[f64]) -> f64 {
    let project = |sum: f64, terms: &FullTerms| {
        let add = |sum, i: usize| {
            let value = row.get(usize::from(terms.columns[i])).unwrap_or(&0.0);
            sum + f64::from(terms.coefficients[i]) * value
        };
        (0..TERMS).fold(sum, add)
    };
    let splits = nodes.splits.to_full();
    let mut sum = 0.0;
    for &root in &nodes.roots {
        let (mut walk, mut level) = (Walk::new(root), 0.0);
        while walk.at.is_split() {
            level += 1.0;
            let split = &splits[walk.at.index()];
            let value = project(0.0, &split.terms);
            let value = nodes.further_terms(walk.at).iter().fold(value, project);
            walk.step(split, value, level);
        }
        sum += walk.path_length(&nodes.path_lengths);
    }
    sum
}

/// With fewer and more trees than lanes, splits of less and more terms than a record, and records of both forms.
#[test]
fn walks_side_by_side_give_the_bits_of_single_walks() {
    for (n_trees, n_features, ndim) in
        [(1, 1, 1), (7, 3, 16), (50, 80, 16), (65, 20, 5), (130, 40, 20), (9, 200, 16), (9, 300, 33)]
    {
        let (forest, rows) = forest_and_rows(n_trees, n_features, ndim);
        let other = with_other_weights(&forest);
        assert_eq!(matches!(forest.nodes.splits, Splits::Short(_)), n_features <= 256);
        assert!(matches!(other.nodes.splits, Splits::Full(_)));
        for (row, forest) in rows.iter().flat_map(|row| [(row, &forest), (row, &other)]) {
            let side_by_side = path_length(&forest.nodes, row.iter().copied());
            let expected = one_at_a_time(&forest.nodes, row);
            assert_eq!(side_by_side.to_bits(), expected.to_bits(), "{n_trees} trees of {n_features} columns");
        }
    }
}

/// A forest whose rows are estimated, if the processor can.
static ESTIMATED: LazyLock<ExtendedForest> = LazyLock::new(|| forest_and_rows(20, 30, 16).0);

/// Moves a row along one of a split's columns, so that its projection is about this one.
fn project_on(row: &mut [f64], terms: &ShortTerms, projection: f64) {
    let FullTerms { coefficients, columns } = terms.to_full();
    let weight_of = |column: u16| {
        let weights = coefficients.iter().zip(&columns).filter(|(_, of)| **of == column);
        weights.map(|(weight, _)| f64::from(*weight)).sum::<f64>()
    };
    let column = columns
        .into_iter()
        .max_by(|a, b| weight_of(*a).abs().total_cmp(&weight_of(*b).abs()))
        .expect("16 columns");
    let now: f64 = (0..TERMS).map(|i| f64::from(coefficients[i]) * row[usize::from(columns[i])]).sum();
    row[usize::from(column)] += (projection - now) / weight_of(column);
}

proptest! {
    /// Estimates err most where the projection is near a cut or an end of a range.
    #[test]
    fn rows_near_the_bounds_of_a_split_give_the_bits_of_single_walks(
        mut row in prop::collection::vec(-4.0..=4.0, 30),
        // Few splits below the first levels see a given row.
        split in 0..60_usize,
        bound in 0..3_usize,
        units in prop_oneof![Just(0.0), -1.0..1.0, -80.0..80.0],
        is_rounded in any::<bool>(),
    ) {
        let nodes = &ESTIMATED.nodes;
        let Splits::Short(splits) = &nodes.splits else { unreachable!("weights are drawn for the short form") };
        let Split { terms, plane, .. } = &splits[split];
        let unit = 4.0 / 16_384.0;
        project_on(&mut row, terms, [plane.cut, plane.low, plane.high][bound] + units * unit);
        if is_rounded {
            row.iter_mut().for_each(|value| *value = f64::from(*value as f32));
        }
        let side_by_side = path_length(nodes, row.iter().copied());
        prop_assert_eq!(side_by_side.to_bits(), one_at_a_time(nodes, &row).to_bits());
    }
}
