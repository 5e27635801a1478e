use proptest::prelude::*;

use super::super::reference::ReferenceExtendedForest;
use super::super::rng::Rng;
use super::*;

fn threads(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).expect("at least one thread")
}

/// Standard normal values, shape `[n_rows, n_features]`, column-major.
fn values(n_rows: usize, n_features: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, 0);
    (0..n_rows * n_features).map(|_| rng.next_normals()[0]).collect()
}

/// Enough trees for averages.
fn many_trees() -> ExtendedParams {
    ExtendedParams { n_estimators: threads(100), ..Default::default() }
}

fn fit(params: &ExtendedParams, values: &[f32], n_features: usize) -> ExtendedForest {
    let table = Table::new(values, values.len() / n_features, n_features).expect("a table");
    params.fit(&table, threads(1)).expect("a forest")
}

fn rebuilt(forest: &ExtendedForest) -> ExtendedForest {
    let tree =
        |arrays| ExtendedTree::from_arrays(&arrays, forest.n_features()).expect("arrays of a valid tree");
    ExtendedForest::new(forest.trees().map(tree).collect(), forest.max_samples())
        .expect("trees of a valid forest")
}

/// Two columns that move together.
fn line(n_rows: usize) -> Vec<f32> {
    let mut values = values(n_rows, 2, 1);
    for row in 0..n_rows {
        values[n_rows + row] = values[row] + 0.1 * values[n_rows + row];
    }
    values
}

#[test]
fn an_unusual_combination_of_usual_values_is_anomalous() {
    let forest = fit(&ExtendedParams::default(), &line(1_000), 2);
    let off = forest.score_samples(&[1.2, -1.2]);
    for on in [-1.2, 0.0, 1.2] {
        assert!(off < forest.score_samples(&[on, on]) - 0.1, "{on}");
    }
    assert!(forest.decision(&[1.2, -1.2]) < 0.0 && forest.decision(&[0.0, 0.0]) > 0.0);
}

#[test]
fn scores_fall_with_distance_equally_in_all_directions() {
    let forest = fit(&many_trees(), &values(2_000, 4, 2), 4);
    let ray = [1.0f32, 10.0, 100.0, 1e4, 1e30].map(|by| forest.score_samples(&[4.0 * by, 0.0, 0.0, 0.0]));
    assert!(ray.is_sorted_by(|near, far| near > far), "{ray:?}");
    assert!(ray[1] < ray[0] - 0.05, "ten times beyond is worse than just beyond: {ray:?}");
    assert!(ray[4] > -1.0);
    // An axis-parallel forest scores rows along the axes as more usual than rows on the diagonals.
    let usual = forest.score_samples(&[0.0; 4]);
    let around = (0..32).map(|k| {
        let angle = std::f32::consts::TAU * k as f32 / 32.0;
        forest.score_samples(&[4.0 * angle.cos(), 4.0 * angle.sin(), 0.0, 0.0])
    });
    let (low, high) = around.fold((0.0f64, -1.0f64), |(low, high), s| (low.min(s), high.max(s)));
    assert!(high - low < 0.3 * (usual - high), "{low} to {high}, usual is {usual}");
}

#[test]
fn uniform_rows_score_alike() {
    let mut rng = Rng::new(3, 0);
    let data: Vec<f32> = (0..6_000).map(|_| rng.next_uniform() as f32).collect();
    let forest = fit(&ExtendedParams::default(), &data, 3);
    let mut scores = vec![0.0; 2_000];
    forest.score_table(&Table::new(&data, 2_000, 3).expect("a table"), &mut scores);
    let mean = scores.iter().sum::<f64>() / 2_000.0;
    // Some rows leave the range of a node's sample, so the mean is below one half.
    assert!((-0.56..-0.44).contains(&mean), "{mean}");
    assert!(scores.iter().all(|score| (score - mean).abs() < 0.2));
}

/// Each tree is valid, and its ranges are those of the rows that it was grown from.
#[test]
fn trees_are_as_described() {
    let data = values(200, 5, 4);
    let table = Table::new(&data, 200, 5).expect("a table");
    let params =
        ExtendedParams { max_samples: MaxSamples::count(200).expect("a count"), ..Default::default() };
    let forest = params.fit(&table, threads(1)).expect("a forest");
    assert_eq!((forest.n_estimators(), forest.n_features(), forest.max_samples()), (50, 5, 200));
    for tree in forest.trees() {
        assert_eq!((tree.width, tree.n_node_samples[0]), (5, 200), "all rows are in every tree");
        let n_nodes = tree.left_child.len();
        let mut rows = vec![Vec::new(); n_nodes];
        rows[0] = (0..200).collect();
        let mut depth = vec![0; n_nodes];
        for node in 0..n_nodes {
            assert_eq!(rows[node].len() as i64, tree.n_node_samples[node]);
            if tree.left_child[node] < 0 {
                assert!(
                    rows[node].len() == 1 || depth[node] == 8,
                    "values differ, so only depth ends a tree"
                );
                continue;
            }
            let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
            for row in std::mem::take(&mut rows[node]) {
                let terms = node * 5..(node + 1) * 5;
                let mixture = terms.fold(0.0, |sum, term| {
                    let value = table.column(tree.columns[term] as usize).get(row);
                    sum + tree.coefficients[term] * f64::from(value)
                });
                (low, high) = (low.min(mixture), high.max(mixture));
                let child =
                    if mixture <= tree.cut[node] { tree.left_child[node] } else { tree.right_child[node] };
                rows[child as usize].push(row);
                depth[child as usize] = depth[node] + 1;
            }
            assert_eq!((low, high), (tree.low[node], tree.high[node]));
            assert!(low <= tree.cut[node] && tree.cut[node] < high);
        }
    }
}

#[test]
fn columns_coefficients_and_cuts_are_drawn_evenly() {
    let forest = fit(&many_trees(), &values(1_000, 20, 5), 20);
    let mut counts = [0u32; 20];
    let (mut places, mut squares, mut n_terms) = (Vec::new(), 0.0, 0.0);
    for tree in forest.trees() {
        assert_eq!(tree.width, 16);
        for node in (0..tree.left_child.len()).filter(|node| tree.left_child[*node] > 0) {
            for term in node * 16..(node + 1) * 16 {
                counts[tree.columns[term] as usize] += 1;
                squares += tree.coefficients[term] * tree.coefficients[term];
                n_terms += 1.0;
            }
            places.push((tree.cut[node] - tree.low[node]) / (tree.high[node] - tree.low[node]));
        }
    }
    let mean = n_terms / 20.0;
    assert!(counts.iter().all(|&count| (f64::from(count) / mean - 1.0).abs() < 0.05), "{counts:?}");
    assert!((squares / n_terms - 1.0f64).abs() < 0.02);
    for tenth in 0..10 {
        let share = places.iter().filter(|place| (**place * 10.0) as usize == tenth).count() as f64;
        assert!((share / places.len() as f64 - 0.1).abs() < 0.01, "tenth {tenth} has {share}");
    }
}

#[test]
fn the_forest_does_not_depend_on_the_number_of_threads() {
    let data = values(700, 5, 6);
    let table = Table::new(&data, 700, 5).expect("a table");
    let params = ExtendedParams::default();
    let alone = params.fit(&table, threads(1)).expect("a forest");
    for n in [2, 7, 1_000] {
        assert_eq!(params.fit(&table, threads(n)).expect("a forest"), alone, "{n} threads");
    }
    let other = ExtendedParams { random_state: 1, ..params }.fit(&table, threads(1)).expect("a forest");
    assert_ne!(other, alone, "another seed");
}

/// Every number of trees, so that lanes without a tree occur.
#[test]
fn all_paths_give_the_same_bits() {
    let data = values(500, 6, 7);
    let table = Table::new(&data, 500, 6).expect("a table");
    for n_estimators in 1..=9 {
        let params = ExtendedParams { n_estimators: threads(n_estimators), ..Default::default() };
        let forest = params.fit(&table, threads(1)).expect("a forest");
        let again = rebuilt(&forest);
        assert_eq!(again, forest, "arrays survive the round trip");
        let mut scores = vec![0.0; 500];
        again.score_table(&table, &mut scores);
        let mut row = [0.0; 6];
        for (number, score) in scores.iter().enumerate() {
            table.copy_row(number, &mut row);
            assert_eq!(score.to_bits(), forest.score_samples(&row).to_bits());
        }
    }
}

/// The reference nests the expression that the walk expands, so the last bits differ.
#[test]
fn scores_are_those_of_the_reference_forest() {
    let data = values(1_000, 6, 8);
    let forest = fit(&ExtendedParams::default(), &data, 6);
    let reference = ReferenceExtendedForest::new(forest.trees(), forest.max_samples());
    for (number, row) in data.chunks_exact(6).enumerate() {
        let row: Vec<f32> = row.iter().map(|value| value * [1.0, 3.0, 1e3, 1e30][number % 4]).collect();
        let (ours, expected) = (forest.score_samples(&row), reference.score_samples(&row));
        assert!((ours - expected).abs() < 1e-14, "{ours} {expected}");
    }
}

#[test]
fn nan_is_usual_and_infinity_is_the_greatest() {
    let forest = fit(&ExtendedParams::default(), &values(500, 2, 9), 2);
    assert_eq!(forest.score_samples(&[f32::NAN, 1.0]), forest.score_samples(&[0.0, 1.0]));
    assert_eq!(forest.score_samples(&[f32::INFINITY, 1.0]), forest.score_samples(&[f32::MAX, 1.0]));
    assert!(forest.score_samples(&[f32::INFINITY, f32::NEG_INFINITY]) < -0.9);
}

#[test]
fn a_constant_table_is_one_leaf() {
    let forest = fit(&ExtendedParams::default(), &[3.0; 100], 2);
    assert!(forest.trees().all(|tree| tree.n_node_samples == [50]));
    assert!((forest.score_samples(&[9.0, -1e30]) + 0.5).abs() < 1e-15);
    let one_row = fit(&ExtendedParams::default(), &[1.0, 2.0], 2);
    assert_eq!((one_row.max_samples(), one_row.score_samples(&[9.0, 9.0])), (1, -0.5));
}

#[test]
fn extreme_values_are_separated() {
    let data = [f32::MIN, f32::MAX, 1e30, 1e30f32.next_up(), 0.0, f32::MIN_POSITIVE];
    for tree in fit(&ExtendedParams::default(), &data, 1).trees() {
        ExtendedTree::from_arrays(&tree, 1).expect("arrays of a valid tree");
    }
}

#[test]
fn unsuitable_tables_are_rejected() {
    let error_of = |values: &[f32], n_rows, n_features| {
        let table = Table::new(values, n_rows, n_features).expect("a table");
        ExtendedParams::default().fit(&table, threads(2)).expect_err("unsuitable")
    };
    assert_eq!(error_of(&[], 0, 3), Error::Empty { n_rows: 0, n_features: 3 });
    let infinite = error_of(&[1.0, f32::INFINITY], 1, 2);
    assert_eq!(infinite, Error::NotFinite { value: f32::INFINITY, row: 0, feature: 1 });
    assert!(error_of(&[0.0; 4_097], 1, 4_097).to_string().contains("n_features"));
}

/// Three leaves: `x0 + 2 x1 <= 1`, and right of it `-x1 <= 0`.
fn small() -> ExtendedTreeArrays {
    ExtendedTreeArrays {
        left_child: vec![1, -1, 3, -1, -1],
        right_child: vec![2, -1, 4, -1, -1],
        n_node_samples: vec![6, 1, 5, 2, 3],
        width: 2,
        columns: vec![0, 1, 9, 9, 1, 1, 0, 0, 0, 0],
        coefficients: vec![1.0, 2.0, f64::NAN, 0.0, -1.5, 0.5, 0.0, 0.0, 0.0, 0.0],
        cut: vec![1.0, f64::NAN, 0.0, 0.0, 0.0],
        low: vec![-1.0, 0.0, -2.0, 0.0, 0.0],
        high: vec![3.0, 0.0, 2.0, 0.0, 0.0],
    }
}

fn small_forest() -> ExtendedForest {
    let tree = ExtendedTree::from_arrays(&small(), 2).expect("a tree");
    ExtendedForest::new(vec![tree], 6).expect("a forest")
}

/// Computed by hand from the definition.
#[test]
fn path_lengths_are_as_if_inserted() {
    let c = average_path_length;
    for (row, expected) in [
        ([0.0, 0.0], 1.0),                                  // left
        ([1.0, 1.0], 2.0 + c(2)),                           // 3, then -1
        ([4.0, -1.0], 2.0 + c(3)),                          // 2, then 1
        ([-5.0, 0.0], 0.5 + 0.5 * 1.0),                     // -5 is 4 below 4
        ([3.0, 1.0], 1.0 / 3.0 + 2.0 / 3.0 * (2.0 + c(2))), // 5 is 2 above 4
        // 5, then 4: each 2 above a range of 4.
        ([13.0, -4.0], 1.0 / 3.0 + 2.0 / 3.0 * (1.0 / 3.0 * 2.0 + 2.0 / 3.0 * (2.0 + c(3)))),
    ] {
        let score = small_forest().score_samples(&row);
        assert!((score + (-expected / c(6)).exp2()).abs() < 1e-15, "{row:?}: {score}, expected {expected}");
    }
}

/// The message for `small` after one change.
fn error_after(change: impl FnOnce(&mut ExtendedTreeArrays)) -> String {
    let mut arrays = small();
    change(&mut arrays);
    ExtendedTree::from_arrays(&arrays, 2).expect_err("mangled").to_string()
}

#[test]
fn rejects_mangled_trees() {
    let children = "must be in 3..5, or -1 in a leaf";
    assert_eq!(
        error_after(|tree| tree.left_child[2] = 0),
        format!("tree node 2: left_child is 0, {children}")
    );
    assert_eq!(
        error_after(|tree| tree.right_child[2] = 5),
        format!("tree node 2: right_child is 5, {children}")
    );
    assert_eq!(
        error_after(|tree| tree.right_child[2] = -1),
        format!("tree node 2: right_child is -1, {children}")
    );
    assert!(error_after(|tree| tree.left_child[2] = 4).contains("children's"));
    assert!(
        error_after(|tree| tree.n_node_samples[3] = 0).ends_with("n_node_samples is 0, must be at least 1")
    );
    assert!(error_after(|tree| tree.n_node_samples[4] = i64::MAX).contains("sum of both children's"));
    assert_eq!(error_after(|tree| tree.width = 0), "forest: width is 0, must be in 1..=4096");
    assert!(error_after(|tree| tree.width = usize::MAX).contains("forest: width is"));
    assert_eq!(
        error_after(|tree| tree.width = 3),
        "tree node 0: length of columns is 10, must be 5 x 3, as left_child"
    );
    assert!(error_after(|tree| tree.high.truncate(4)).contains("length of high is 4, must be 5"));
    assert!(
        error_after(|tree| *tree = ExtendedTreeArrays { width: 2, ..Default::default() })
            .contains("nodes is 0")
    );
}

#[test]
fn rejects_mangled_splits() {
    assert_eq!(error_after(|tree| tree.columns[5] = 2), "tree node 2: column is 2, must be below 2");
    for coefficient in [f64::NAN, f64::NEG_INFINITY, 1e39, 0.1] {
        assert!(
            error_after(|tree| tree.coefficients[0] = coefficient)
                .ends_with("must be finite and exact as f32")
        );
    }
    assert_eq!(error_after(|tree| tree.cut[0] = 3.5), "tree node 0: cut is 3.5, must be in -1..=3");
    assert!(error_after(|tree| tree.cut[0] = f64::NAN).contains("cut is NaN"));
    assert!(error_after(|tree| tree.low[0] = f64::NEG_INFINITY).ends_with("low is -inf, must be finite"));
    assert!(error_after(|tree| tree.high[0] = f64::NAN).ends_with("high is NaN, must be finite"));
    assert!(error_after(|tree| tree.low[0] = 3.0).ends_with("low is 3, must be below high, 3"));
}

#[test]
fn rejects_mangled_forests() {
    let tree = |n_features| ExtendedTree::from_arrays(&small(), n_features).expect("a tree");
    assert!(ExtendedForest::new(vec![], 6).is_err());
    assert!(ExtendedForest::new(vec![tree(2)], 0).is_err());
    let message = ExtendedForest::new(vec![tree(2), tree(3)], 6).expect_err("two widths").to_string();
    assert_eq!(message, "forest: n_features is 3, must be 2 in all trees");
}

fn any_value() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits)
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![any::<u64>().prop_map(f64::from_bits), -4.0..4.0, Just(f64::MAX), Just(f64::MIN)]
}

proptest! {
    /// A tree that is accepted from a file scores any row in `[-1, 0)`.
    #[test]
    fn accepted_trees_score_any_row_in_range(
        numbers in proptest::collection::vec(any_number(), 10),
        counts in proptest::collection::vec(1..i64::MAX / 4, 3),
        max_samples in 1..=u64::MAX,
        row in [any_value(), any_value()],
    ) {
        let mut arrays = small();
        for (node, cut) in [(0, &numbers[..3]), (2, &numbers[3..6])] {
            let mut cut = cut.to_vec();
            cut.sort_by(f64::total_cmp);
            (arrays.low[node], arrays.cut[node], arrays.high[node]) = (cut[0], cut[1], cut[2]);
        }
        for (to, number) in [0, 1, 4, 5].into_iter().zip(&numbers[6..]) {
            arrays.coefficients[to] = f64::from(*number as f32);
        }
        arrays.n_node_samples = vec![counts.iter().sum(), counts[0], counts[1] + counts[2], counts[1], counts[2]];
        if let Ok(tree) = ExtendedTree::from_arrays(&arrays, 2) {
            let forest = ExtendedForest::new(vec![tree], max_samples).expect("a forest");
            let score = forest.score_samples(&row);
            prop_assert!((-1.0..=0.0).contains(&score), "{score}");
            prop_assert_eq!(rebuilt(&forest).score_samples(&row).to_bits(), score.to_bits());
        }
    }
}
