use super::super::{ExtendedParams, MAX_FEATURES, MAX_SAMPLES, MaxFeatures, MaxSamples};
use super::*;

fn threads(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).expect("at least one thread")
}

/// Columns of roughly normal values, each with its own scale, shape `[n_rows, n_features]`.
fn values(n_rows: usize, n_features: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, 0);
    let mut normal = || (0..12).map(|_| rng.next_uniform()).sum::<f64>() - 6.0;
    (0..n_rows * n_features).map(|k| (normal() * (1.0 + (k / n_rows) as f64)) as f32).collect()
}

fn fit(params: &ForestParams, values: &[f32], n_features: usize) -> Forest {
    let table = Table::new(values, values.len() / n_features, n_features).expect("a table");
    params.fit(&table, threads(1)).expect("a forest")
}

fn scores(forest: &Forest, values: &[f32]) -> Vec<f64> {
    let n_rows = values.len() / forest.n_features();
    let mut scores = vec![0.0; n_rows];
    let table = Table::new(values, n_rows, forest.n_features()).expect("a table");
    forest.score_table(&table, &mut scores);
    scores
}

#[test]
fn scores_are_in_range_and_separate() {
    let mut data = values(1_000, 4, 1);
    for column in data.chunks_exact_mut(1_000) {
        column[17] = 100.0 * column.iter().copied().fold(0.0, f32::max);
    }
    let forest = fit(&ForestParams::default(), &data, 4);
    let scores = scores(&forest, &data);
    assert!(scores.iter().all(|score| (-1.0..0.0).contains(score)));
    let least = (0..scores.len()).min_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    assert_eq!(least, Some(17));
    assert!(scores[17] < -0.75, "{}", scores[17]);
    let others = scores.iter().sum::<f64>() / scores.len() as f64;
    assert!(others > -0.5, "{others}");
}

/// Folds of a cross-validation are views of a table.
#[test]
fn a_view_gives_the_forest_of_a_copy() {
    let data = values(700, 5, 2);
    let all = Table::new(&data, 700, 5).expect("a table");
    for view in [all.without_rows(0..60), all.without_rows(100..333), all.with_rows(40..650)] {
        let copy: Vec<f32> =
            (0..5).flat_map(|feature| view.column(feature).iter().collect::<Vec<_>>()).collect();
        let copy = Table::new(&copy, view.n_rows(), 5).expect("a table");
        for bootstrap in [false, true] {
            let params = ForestParams { bootstrap, ..Default::default() };
            let fit = |table: &Table| params.fit(table, threads(1)).expect("a forest");
            assert_eq!(fit(&view), fit(&copy));
        }
        let fit = |table: &Table| ExtendedParams::default().fit(table, threads(1)).expect("a forest");
        assert_eq!(fit(&view), fit(&copy));
    }
}

#[test]
fn the_forest_does_not_depend_on_the_number_of_threads() {
    let data = values(700, 5, 2);
    let table = Table::new(&data, 700, 5).expect("a table");
    for params in [
        ForestParams {
            contamination: Contamination::share(0.05).expect("a valid share"),
            ..Default::default()
        },
        ForestParams {
            bootstrap: true,
            max_features: MaxFeatures::share(0.5).expect("a valid share"),
            ..Default::default()
        },
    ] {
        let alone = params.fit(&table, threads(1)).expect("a forest");
        for n in [2, 7, 1_000] {
            assert_eq!(params.fit(&table, threads(n)).expect("a forest"), alone, "{n} threads");
        }
        let other = ForestParams { random_state: 1, ..params }.fit(&table, threads(1)).expect("a forest");
        assert_ne!(other, alone, "another seed");
    }
}

#[test]
fn a_prefix_of_the_trees_is_the_smaller_forest() {
    let data = values(300, 3, 3);
    let few = ForestParams { n_estimators: threads(4), ..Default::default() };
    let many = fit(&ForestParams::default(), &data, 3);
    assert!(fit(&few, &data, 3).trees().eq(many.trees().take(4)));
}

#[test]
fn trees_are_as_scikit_learn_grows_them() {
    let data = values(1_000, 4, 4);
    let forest = fit(&ForestParams::default(), &data, 4);
    assert_eq!((forest.n_estimators(), forest.n_features(), forest.max_samples()), (100, 4, 256));
    assert_eq!(forest.offset(), -0.5);
    for tree in forest.trees() {
        assert_eq!(tree.n_node_samples[0], 256);
        let mut depth = vec![0; tree.left_child.len()];
        for node in 0..depth.len() {
            let n_samples = tree.n_node_samples[node];
            let (left, right) = (tree.left_child[node], tree.right_child[node]);
            if left < 0 {
                assert!(n_samples == 1 || depth[node] == 8, "values differ, so only depth ends a tree");
                continue;
            }
            assert!(depth[node] < 8);
            let (left, right) = (left as usize, right as usize);
            depth[left] = depth[node] + 1;
            depth[right] = depth[node] + 1;
            assert_eq!(tree.n_node_samples[left] + tree.n_node_samples[right], n_samples);
            assert_eq!(tree.missing_go_to_left[node], tree.n_node_samples[left] > tree.n_node_samples[right]);
            assert!(tree.threshold[node] >= f64::from(f32::MIN));
        }
    }
}

#[test]
fn depth_is_the_binary_logarithm_rounded_up() {
    let data = values(2_000, 1, 5);
    let table = Table::new(&data, 2_000, 1).expect("a table");
    for (max_samples, depth) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 9), (2_000, 11)] {
        let max_samples = MaxSamples::count(max_samples).expect("a count");
        let plan = FitPlan::new(&ForestParams { max_samples, ..Default::default() }, &table)
            .expect("valid parameters");
        assert_eq!(plan.sampling.max_depth(), depth, "{max_samples:?}");
    }
}

#[test]
fn constant_columns_are_never_split() {
    let mut data = values(400, 3, 6);
    data[400..800].fill(7.0);
    for tree in fit(&ForestParams::default(), &data, 3).trees() {
        assert!(!tree.feature.contains(&1));
    }
    // Variation within scikit-learn's threshold counts as constant.
    data[400..800].fill(0.0);
    data[450] = 1e-7;
    for tree in fit(&ForestParams::default(), &data, 3).trees() {
        assert!(!tree.feature.contains(&1));
    }
}

#[test]
fn constant_columns_alone_give_one_leaf() {
    let forest = fit(&ForestParams::default(), &[3.0; 100], 2);
    assert!(forest.trees().all(|tree| tree.n_node_samples == [50]));
    // scikit-learn 1.9.1 prints -0.5000000000000002: every row is average.
    for score in scores(&forest, &[3.0, -1e30, f32::NAN, f32::INFINITY]) {
        assert!((score + 0.500_000_000_000_000_2).abs() <= 2.3e-16, "{score:?}");
    }
}

#[test]
fn one_row_scores_one_half() {
    let forest = fit(&ForestParams::default(), &[1.0, 2.0, 3.0], 3);
    assert_eq!((forest.max_samples(), forest.score_samples(&[9.0, 9.0, 9.0])), (1, -0.5));
    let one = ForestParams { max_samples: MaxSamples::count(1).expect("a count"), ..Default::default() };
    assert_eq!(fit(&one, &values(50, 2, 7), 2).score_samples(&[0.0, 0.0]), -0.5);
}

#[test]
fn duplicates_share_a_leaf() {
    let data: Vec<f32> = (0..200).map(|row| (row % 2) as f32).collect();
    for tree in fit(&ForestParams::default(), &data, 1).trees() {
        assert_eq!(tree.left_child.len(), 3, "one cut tells both values apart");
        assert_eq!(tree.n_node_samples[1] + tree.n_node_samples[2], 200);
    }
}

#[test]
fn neighbouring_and_extreme_values_are_separated() {
    let data = [f32::MIN, f32::MAX, 1e30, 1e30f32.next_up()];
    let params = ForestParams { n_estimators: threads(500), ..Default::default() };
    for tree in fit(&params, &data, 1).trees() {
        assert!(tree.n_node_samples.iter().all(|&count| count >= 1));
        assert!(tree.threshold.iter().all(|threshold| threshold.is_finite()));
    }
}

#[test]
fn max_features_limits_each_tree() {
    let data = values(300, 10, 8);
    let params =
        ForestParams { max_features: MaxFeatures::share(0.35).expect("a valid share"), ..Default::default() };
    let mut used_by_any = [false; 10];
    for tree in fit(&params, &data, 10).trees() {
        let mut used: Vec<i64> = tree.feature.into_iter().filter(|&feature| feature >= 0).collect();
        used.sort_unstable();
        used.dedup();
        assert!(used.len() <= 3, "{used:?}");
        for feature in used {
            used_by_any[feature as usize] = true;
        }
    }
    assert_eq!(used_by_any, [true; 10]);
}

#[test]
fn bootstrap_counts_a_row_once() {
    let data = values(300, 2, 9);
    let params = ForestParams { bootstrap: true, ..Default::default() };
    let forest = fit(&params, &data, 2);
    assert_eq!(forest.max_samples(), 256);
    // 300 (1 - (1 - 1/300)^256) = 172.4 different rows are expected; scikit-learn 1.9.1 gives 170 to 176.
    let mean = forest.trees().map(|tree| tree.n_node_samples[0]).sum::<i64>() as f64 / 100.0;
    assert!((mean - 172.4).abs() < 3.0, "{mean}");
}

#[test]
fn contamination_gives_its_share_of_negatives() {
    let data = values(1_000, 4, 12);
    for share in [0.01, 0.1, 0.5] {
        let params = ForestParams {
            contamination: Contamination::share(share).expect("a valid share"),
            ..Default::default()
        };
        let forest = fit(&params, &data, 4);
        let negatives = scores(&forest, &data).iter().filter(|&&score| score - forest.offset() < 0.0).count();
        assert_eq!(negatives as f64, 1_000.0 * share);
    }
}

#[test]
fn unsuitable_tables_are_rejected() {
    let error_of = |params: &ForestParams, values: &[f32], n_rows, n_features| {
        let table = Table::new(values, n_rows, n_features).expect("a table");
        params.fit(&table, threads(2)).expect_err("unsuitable").to_string()
    };
    let default = ForestParams::default();
    let empty = "must have at least one of each";
    assert_eq!(error_of(&default, &[], 0, 3), format!("table has 0 rows and 3 features, {empty}"));
    assert_eq!(error_of(&default, &[], 3, 0), format!("table has 3 rows and 0 features, {empty}"));
    assert_eq!(
        error_of(&default, &[1.0, 2.0, f32::NAN, 4.0], 2, 2),
        "value in row 0 of feature 1 is NaN, must be finite",
    );
    let too_few_samples =
        ForestParams { max_samples: MaxSamples::share(0.1).expect("a valid share"), ..Default::default() };
    assert_eq!(
        error_of(&too_few_samples, &[1.0; 6], 3, 2),
        "max_samples gives 0 on a table of 3 rows and 2 features, must be in 1..=262144",
    );
    let too_many_features =
        ForestParams { max_features: MaxFeatures::count(3).expect("a count"), ..Default::default() };
    assert_eq!(
        error_of(&too_many_features, &[1.0; 6], 3, 2),
        "max_features gives 3 on a table of 3 rows and 2 features, must be in 1..=2",
    );
    assert!(error_of(&default, &vec![0.0; MAX_FEATURES + 1], 1, MAX_FEATURES + 1).contains("n_features"));
    let all =
        ForestParams { max_samples: MaxSamples::share(1.0).expect("a valid share"), ..Default::default() };
    assert!(error_of(&all, &vec![0.0; MAX_SAMPLES + 1], MAX_SAMPLES + 1, 1).contains("max_samples gives"));
}
