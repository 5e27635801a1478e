use proptest::prelude::*;

use super::super::limits::MAX_DEPTH;
use super::super::reference::ReferenceForest;
use super::*;

/// A random tree, at least two leaves, in depth-first order: thresholds on and beside small integers,
/// depth at most 7.
fn any_tree(n_features: usize) -> impl Strategy<Value = TreeArrays> {
    let split = (0..n_features, -3i32..=3, -1i64..=1, any::<bool>(), 0..3u8);
    prop::collection::vec((split, 1..5i64), 1..60).prop_map(|draws| {
        let mut arrays = TreeArrays::default();
        grow(&mut arrays, &mut draws.iter().cycle(), 0, draws.len());
        arrays
    })
}

type Draw = ((usize, i32, i64, bool, u8), i64);

/// Appends a subtree and returns its number of rows.
fn grow<'a>(
    arrays: &mut TreeArrays,
    draws: &mut impl Iterator<Item = &'a Draw>,
    depth: usize,
    budget: usize,
) -> i64 {
    let ((feature, cut, nudge, missing, stop), n_samples) = *draws.next().expect("the cycle is endless");
    let node = arrays.left_child.len();
    let leaf = depth == 7 || depth > 0 && (stop == 0 || budget < node);
    // One f64 beside the integer, where rounding to f32 would lose the difference.
    let threshold = f64::from_bits((f64::from(cut).to_bits() as i64).wrapping_add(nudge) as u64);
    arrays.left_child.push(-1);
    arrays.right_child.push(-1);
    arrays.feature.push(if leaf { -2 } else { feature as i64 });
    arrays.threshold.push(if leaf || !threshold.is_finite() { -2.0 } else { threshold });
    arrays.n_node_samples.push(n_samples);
    arrays.missing_go_to_left.push(missing);
    if leaf {
        return n_samples;
    }
    arrays.left_child[node] = arrays.left_child.len() as i64;
    let left = grow(arrays, draws, depth + 1, budget);
    arrays.right_child[node] = arrays.left_child.len() as i64;
    let right = grow(arrays, draws, depth + 1, budget);
    arrays.n_node_samples[node] = left + right;
    left + right
}

fn any_value() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => (-4i32..=4).prop_map(|value| value as f32),
        2 => any::<f32>(),
        1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0]),
    ]
}

const N_FEATURES: usize = 3;

fn build_forest(trees: &[TreeArrays], max_samples: u64) -> Forest {
    let trees: Vec<Tree> =
        trees.iter().map(|tree| Tree::from_arrays(tree, N_FEATURES).expect("a tree")).collect();
    Forest::new(&trees, max_samples, -0.5).expect("a forest")
}

/// `score_extrapolated`, one node after another.
fn extrapolated_score(trees: &[TreeArrays], ranges: &[[f32; 2]], max_samples: u64, row: &[f32]) -> f64 {
    let mut sum = 0.0;
    for tree in trees {
        let (mut at, mut level, mut expected, mut reach_probability) = (0, 1.0, 0.0, 1.0);
        while tree.left_child[at] >= 0 {
            let feature = tree.feature[at] as usize;
            let value = row[feature];
            let exit_probability = exit_probability(ranges[feature], value);
            expected += reach_probability * exit_probability * level;
            reach_probability *= 1.0 - exit_probability;
            level += 1.0;
            let is_left = match value.is_nan() {
                true => tree.missing_go_to_left[at],
                false => f64::from(value) <= tree.threshold[at],
            };
            at = if is_left { tree.left_child[at] } else { tree.right_child[at] } as usize;
        }
        let n_samples = tree.n_node_samples[at].unsigned_abs();
        sum += expected + reach_probability * (level + average_path_length(n_samples) - 1.0);
    }
    score_from_path_lengths(sum, trees.len() as f64 * average_path_length(max_samples))
}

fn any_ranges() -> impl Strategy<Value = Vec<[f32; 2]>> {
    prop::collection::vec((-4i16..=0, 0i16..=4), N_FEATURES).prop_map(|ranges| {
        ranges.into_iter().map(|(least, greatest)| [least.into(), greatest.into()]).collect()
    })
}

proptest! {
    /// The fast paths equal the reference forest bit for bit, for any number of trees and rows.
    #[test]
    fn equals_the_reference_forest(
        trees in prop::collection::vec(any_tree(N_FEATURES), 1..3 * LANES.max(COLD_LANES / 2)),
        values in prop::collection::vec(any_value(), N_FEATURES..80),
        copies in prop_oneof![Just(1usize), 2..40usize],
        ranges in any_ranges(),
        max_samples in prop_oneof![Just(1u64), 2..300u64],
    ) {
        let n_distinct = values.len() / N_FEATURES;
        let n_rows = n_distinct * copies;
        let columns = values[..n_distinct * N_FEATURES].chunks(n_distinct);
        let values: Vec<f32> = columns.flat_map(|column| column.repeat(copies)).collect();
        let table = Table::new(&values, n_rows, N_FEATURES).expect("a table");
        let forest = build_forest(&trees, max_samples);
        let extrapolating = forest.clone().with_ranges(ranges.clone()).expect("ranges");
        let reference = ReferenceForest::new(trees.clone(), max_samples);
        let mut scores = vec![0.0; n_rows];
        forest.score_table(&table, &mut scores);
        let mut row = [0.0; N_FEATURES];
        for (number, score) in scores.into_iter().enumerate() {
            table.copy_row(number, &mut row);
            let expected = reference.score_samples(&row);
            prop_assert_eq!(score.to_bits(), expected.to_bits());
            if number >= n_distinct {
                continue;
            }
            prop_assert_eq!(forest.score_samples(&row).to_bits(), expected.to_bits());
            let extrapolated = extrapolated_score(&trees, &ranges, max_samples, &row);
            prop_assert_eq!(extrapolating.score_extrapolated(&row).to_bits(), extrapolated.to_bits());
            prop_assert_eq!(forest.score_extrapolated(&row).to_bits(), expected.to_bits());
            prop_assert!((-1.0..0.0).contains(&score));
        }
    }

    /// The arrays of `trees` rebuild the same forest.
    #[test]
    fn survives_the_round_trip(trees in prop::collection::vec(any_tree(N_FEATURES), 1..6)) {
        let forest = build_forest(&trees, 100);
        let again: Vec<TreeArrays> = forest.trees().collect();
        prop_assert_eq!(build_forest(&again, 100), forest);
    }
}

/// Whole blocks, a smaller one and single rows, of a table that leaves rows out; with infinities and NaN.
#[test]
fn a_table_has_the_scores_of_its_rows() {
    const ROWS: usize = 3 * BLOCK + 256;
    let mut values: Vec<f32> = (0..3 * ROWS).map(|i| ((i * i) % 1_009) as f32).collect();
    let table = Table::new(&values, ROWS, 3).expect("a table");
    let forest =
        crate::forest::ForestParams::default().fit(&table, std::num::NonZeroUsize::MIN).expect("finite");
    for (i, value) in
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN].into_iter().cycle().take(200).enumerate()
    {
        values[i * 23] = value;
    }
    let table = Table::new(&values, ROWS, 3).expect("a table");
    let mut row = [0.0; 3];
    for table in [table, table.without_rows(700..702), table.with_rows(5..ROWS - 7)] {
        let mut scores = vec![0.0; table.n_rows()];
        forest.score_table(&table, &mut scores);
        for (number, score) in scores.into_iter().enumerate() {
            table.copy_row(number, &mut row);
            assert_eq!(score.to_bits(), forest.score_samples(&row).to_bits(), "row {number}: {row:?}");
        }
    }
}

/// As deep as a tree may be: all levels wait while the rows of the deepest leaf go on.
#[test]
fn a_chain_of_splits_has_the_scores_of_the_reference_forest() {
    let depth = MAX_DEPTH as usize;
    for is_to_the_left in [false, true] {
        let mut chain = TreeArrays::default();
        for node in 0..2 * depth + 1 {
            let level = node.div_ceil(2);
            let is_split =
                if node == 0 { depth > 0 } else { node % 2 == usize::from(is_to_the_left) && level < depth };
            let first_child = (2 * level + 1) as i64;
            let step = level as f64;
            chain.left_child.push(if is_split { first_child } else { -1 });
            chain.right_child.push(if is_split { first_child + 1 } else { -1 });
            chain.feature.push(if is_split { (level % N_FEATURES) as i64 } else { -2 });
            chain.threshold.push(if is_split { if is_to_the_left { -step } else { step } } else { -2.0 });
            let below = if is_split { depth - level + 1 } else { 1 };
            chain.n_node_samples.push(if level == depth { 1 } else { below as i64 });
            chain.missing_go_to_left.push(is_to_the_left);
        }
        let forest = build_forest(&vec![chain.clone(); 3], 256);
        let reference = ReferenceForest::new(vec![chain; 3], 256);
        let values: Vec<f32> = (0..3 * BLOCK).map(|i| (i * 7 % 139) as f32 - 69.0).collect();
        let table = Table::new(&values, BLOCK, N_FEATURES).expect("a table");
        let mut scores = vec![0.0; BLOCK];
        forest.score_table(&table, &mut scores);
        let mut row = [0.0; N_FEATURES];
        for (number, score) in scores.into_iter().enumerate() {
            table.copy_row(number, &mut row);
            assert_eq!(score.to_bits(), reference.score_samples(&row).to_bits(), "{row:?}");
        }
    }
}

#[test]
fn rejects_invalid_forests() {
    let leaf = |n_features| {
        let arrays = TreeArrays {
            left_child: vec![-1],
            right_child: vec![-1],
            feature: vec![-2],
            threshold: vec![-2.0],
            n_node_samples: vec![1],
            missing_go_to_left: vec![false],
        };
        Tree::from_arrays(&arrays, n_features).expect("a tree")
    };
    let message = |trees: &[Tree], max_samples, offset| {
        Forest::new(trees, max_samples, offset).expect_err("wrong").to_string()
    };
    assert_eq!(message(&[], 1, -0.5), "forest: n_estimators is 0, must be at least 1");
    assert_eq!(message(&[leaf(1)], 0, -0.5), "forest: max_samples is 0, must be at least 1");
    assert_eq!(message(&[leaf(1)], 1, f64::NAN), "forest: offset is NaN, must be finite");
    let widths = message(&[leaf(1), leaf(2)], 1, -0.5);
    assert_eq!(widths, "forest: n_features is 2, must be 1 in all trees");
    let huge = Forest::new(&[leaf(1)], u64::MAX, -0.5).expect("a forest");
    assert_eq!(huge.score_samples(&[0.0]), -1.0);
}

#[test]
#[should_panic(expected = "as many values as the forest has features")]
fn a_row_has_the_width_of_the_forest() {
    let params = super::super::ForestParams::default();
    let table = Table::new(&[1.0, 2.0], 1, 2).expect("a table");
    let forest = params.fit(&table, std::num::NonZeroUsize::MIN).expect("a forest");
    forest.score_samples(&[1.0]);
}

/// Two features with values from 0 to 10 and from 100 to 200, and a constant one.
fn fitted() -> Forest {
    const ROWS: usize = 64;
    let values: Vec<f32> = (0..3 * ROWS)
        .map(|i| match (i / ROWS, (i * 37 % ROWS) as f32 / (ROWS - 1) as f32) {
            (0, share) => share * 10.0,
            (1, share) => 100.0 + share * share * 100.0,
            _ => 5.0,
        })
        .collect();
    let table = Table::new(&values, ROWS, 3).expect("as many values as cells");
    crate::forest::ForestParams::default().fit(&table, std::num::NonZeroUsize::MIN).expect("a valid table")
}

#[test]
fn inside_the_training_range_scores_are_not_extrapolated() {
    let forest = fitted();
    assert_eq!(forest.ranges(), [[0.0, 10.0], [100.0, 200.0], [5.0, 5.0]]);
    for row in [[0.0, 100.0, 5.0], [10.0, 200.0, 5.0], [3.0, 150.0, 5.0], [f32::NAN, 150.0, 5.0]] {
        assert_eq!(forest.score_extrapolated(&row), forest.score_samples(&row), "{row:?}");
    }
    let without_ranges = Forest { ranges: Vec::new(), ..forest };
    assert_eq!(
        without_ranges.score_extrapolated(&[1e9, 0.0, 0.0]),
        without_ranges.score_samples(&[1e9, 0.0, 0.0])
    );
}

#[test]
fn scores_fall_with_the_distance_from_the_range() {
    let forest = fitted();
    for sign in [1.0, -1.0] {
        let scores: Vec<f64> = [10.0, 11.0, 20.0, 100.0, 1e6, f32::INFINITY]
            .map(|value| forest.score_extrapolated(&[sign * value, 150.0, 5.0]))
            .into();
        let standard_score = forest.score_samples(&[sign * 1e6, 150.0, 5.0]);
        assert!(scores.windows(2).skip(usize::from(sign < 0.0)).all(|pair| pair[1] < pair[0]), "{scores:?}");
        assert!(scores[4] < standard_score - 0.1, "{scores:?} against {standard_score}");
        assert!(scores.iter().all(|score| (-1.0..0.0).contains(score)), "{scores:?}");
    }
    // A feature that no tree can split does not count.
    assert_eq!(forest.score_extrapolated(&[3.0, 150.0, 1e9]), forest.score_samples(&[3.0, 150.0, 1e9]));
}

#[test]
fn ranges_are_checked() {
    let error_of = |ranges: &[[f32; 2]]| fitted().with_ranges(ranges.into()).expect_err("wrong").to_string();
    assert_eq!(error_of(&[]), "forest: number of ranges is 0, must be 3");
    assert_eq!(
        error_of(&[[0.0, 1.0], [2.0, 1.0], [0.0, 0.0]]),
        "forest: range is 2 to 1, must be finite and ascending"
    );
    assert!(error_of(&[[0.0, 1.0], [0.0, f32::NAN], [0.0, 0.0]]).contains("NaN"));
}
