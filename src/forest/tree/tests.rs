use proptest::prelude::*;

use super::super::limits::MAX_DEPTH;
use super::*;

/// Three splits, four leaves, in scikit-learn's depth-first order.
fn small() -> TreeArrays {
    TreeArrays {
        left_child: vec![1, 2, -1, -1, 5, -1, -1],
        right_child: vec![4, 3, -1, -1, 6, -1, -1],
        feature: vec![0, 1, -2, -2, 1, -2, -2],
        threshold: vec![0.5, -1.0, -2.0, -2.0, 0.1, -2.0, -2.0],
        n_node_samples: vec![10, 7, 4, 3, 3, 1, 2],
        missing_go_to_left: vec![true, false, false, false, false, false, false],
    }
}

fn walk(tree: &Tree, row: &[f32]) -> Leaf {
    let mut at = TreeBuilder::ROOT;
    for _ in 0..tree.depth {
        at = tree.nodes[at].next(row[tree.nodes[at].feature()]);
    }
    assert!(tree.nodes[at].is_leaf());
    tree.leaves[tree.nodes[at].leaf_index()]
}

#[test]
fn walks_to_the_right_leaf() {
    let tree = Tree::from_arrays(&small(), 2).expect("a tree");
    let samples = |row: [f32; 2]| walk(&tree, &row).n_samples;
    assert_eq!(samples([0.5, -1.0]), 4, "equal goes left");
    assert_eq!(samples([0.0, 0.0]), 3);
    assert_eq!(samples([1.0, 0.0]), 1);
    assert_eq!(samples([1.0, 1.0]), 2);
}

#[test]
fn missing_values_follow_the_bit_of_the_node() {
    let tree = Tree::from_arrays(&small(), 2).expect("a tree");
    for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)] {
        assert_eq!(walk(&tree, &[nan, -2.0]).n_samples, 4, "left at the root");
        assert_eq!(walk(&tree, &[nan, nan]).n_samples, 3, "right below");
    }
}

#[test]
fn a_lone_leaf_is_a_tree() {
    let leaf = TreeArrays {
        left_child: vec![-1],
        right_child: vec![-1],
        feature: vec![-2],
        threshold: vec![f64::NAN],
        n_node_samples: vec![3],
        missing_go_to_left: vec![false],
    };
    let tree = Tree::from_arrays(&leaf, 1).expect("a tree");
    assert_eq!(walk(&tree, &[0.0]), Leaf { depth: 0, n_samples: 3 });
}

#[test]
fn arrays_survive_the_round_trip() {
    let tree = Tree::from_arrays(&small(), 2).expect("a tree");
    let arrays = to_arrays(&tree.nodes, &tree.leaves);
    assert_eq!(arrays.n_node_samples.iter().max(), Some(&10));
    assert_eq!(Tree::from_arrays(&arrays, 2), Ok(tree));
}

/// The message for `small` after one change.
fn error_after(change: impl FnOnce(&mut TreeArrays)) -> String {
    let mut arrays = small();
    change(&mut arrays);
    Tree::from_arrays(&arrays, 2).expect_err("mangled").to_string()
}

#[test]
fn rejects_mangled_children() {
    assert_eq!(
        error_after(|tree| tree.left_child[4] = 0),
        "tree node 4: left_child is 0, must be in 5..7, or -1 in a leaf",
    );
    assert_eq!(
        error_after(|tree| tree.right_child[1] = 1),
        "tree node 1: right_child is 1, must be in 2..7, or -1 in a leaf",
    );
    assert_eq!(
        error_after(|tree| tree.left_child[0] = 7),
        "tree node 0: left_child is 7, must be in 1..7, or -1 in a leaf",
    );
    for child in [i64::MIN, -2, i64::from(u32::MAX) + 2, i64::MAX] {
        assert!(error_after(|tree| tree.right_child[0] = child).contains(&child.to_string()));
    }
    assert_eq!(
        error_after(|tree| tree.right_child[0] = -1),
        "tree node 0: right_child is -1, must be in 1..7, or -1 in a leaf",
    );
}

#[test]
fn rejects_arrays_that_are_not_a_tree() {
    let shared = "must be a node without another parent";
    let twice = error_after(|tree| {
        tree.right_child[1] = 2;
        tree.n_node_samples[..2].copy_from_slice(&[11, 8]);
    });
    assert!(twice.ends_with(shared), "{twice}");
    let two_parents = error_after(|tree| {
        tree.right_child[1] = 4;
        tree.n_node_samples[0] = 10;
        tree.n_node_samples[1] = 7;
    });
    assert!(two_parents.ends_with(shared), "{two_parents}");
    let orphan = error_after(|tree| {
        tree.left_child[4] = -1;
        tree.right_child[4] = -1;
    });
    assert_eq!(orphan, "tree node 5: parent is none, must be one node of the tree");
}

#[test]
fn rejects_mangled_splits() {
    assert_eq!(error_after(|tree| tree.feature[1] = 2), "tree node 1: feature is 2, must be below 2");
    assert!(error_after(|tree| tree.feature[1] = -2).starts_with("tree node 1: feature is -2"));
    for threshold in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert!(error_after(|tree| tree.threshold[0] = threshold).ends_with("must be finite"));
    }
}

#[test]
fn rejects_mangled_counts() {
    assert_eq!(
        error_after(|tree| tree.n_node_samples[2] = 0),
        "tree node 2: n_node_samples is 0, must be at least 1"
    );
    assert!(error_after(|tree| tree.n_node_samples[5] = i64::MIN).contains("must be at least 1"));
    assert!(error_after(|tree| tree.n_node_samples[5] = i64::MAX).contains("sum of both children's"));
    assert!(error_after(|tree| tree.n_node_samples[0] = i64::MAX).contains("sum of both children's"));
}

#[test]
fn rejects_mangled_lengths() {
    assert!(error_after(|tree| *tree = TreeArrays::default()).contains("number of nodes is 0"));
    assert!(error_after(|tree| tree.left_child = vec![-1; MAX_NODES + 1]).contains("number of nodes"));
    assert_eq!(
        error_after(|tree| tree.threshold.truncate(3)),
        "tree node 0: length of threshold is 3, must be 7, as left_child",
    );
    assert!(Tree::from_arrays(&small(), 0).is_err());
    assert!(Tree::from_arrays(&small(), MAX_FEATURES + 1).is_err());
}

/// A tree of `n_splits` splits whose left children are leaves.
fn chain(n_splits: i64) -> TreeArrays {
    let n_nodes = 2 * n_splits + 1;
    let splits = |node: i64| node % 2 == 0 && node < 2 * n_splits;
    TreeArrays {
        left_child: (0..n_nodes).map(|node| if splits(node) { node + 1 } else { -1 }).collect(),
        right_child: (0..n_nodes).map(|node| if splits(node) { node + 2 } else { -1 }).collect(),
        feature: vec![0; n_nodes as usize],
        threshold: vec![0.0; n_nodes as usize],
        n_node_samples: (0..n_nodes)
            .map(|node| if node % 2 == 0 { n_splits + 1 - node / 2 } else { 1 })
            .collect(),
        missing_go_to_left: vec![false; n_nodes as usize],
    }
}

#[test]
fn rejects_trees_that_are_too_deep() {
    let deepest = Tree::from_arrays(&chain(i64::from(MAX_DEPTH)), 1).expect("the depth is at the limit");
    assert_eq!(deepest.depth, MAX_DEPTH);
    let message = Tree::from_arrays(&chain(i64::from(MAX_DEPTH) + 1), 1).expect_err("deep").to_string();
    assert_eq!(message, "tree node 128: depth is 64, must be below 64");
    assert!(Tree::from_arrays(&chain(200_000), 1).is_err());
}

/// Any bits, with a preference for edge values.
fn any_f32() -> impl Strategy<Value = f32> {
    prop_oneof![
        any::<u32>().prop_map(f32::from_bits),
        prop::sample::select(vec![
            0.0,
            -0.0,
            1.0,
            f32::MIN_POSITIVE,
            f32::from_bits(1),
            -f32::from_bits(1),
            f32::MAX,
            f32::MIN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ]),
    ]
}

proptest! {
    /// The branch-free comparison equals `x <= threshold` with the threshold in `f64`: next to the value, equal to it,
    /// and anywhere.
    #[test]
    fn step_equals_the_definition(
        value in any_f32(),
        near in any_f32(),
        nudge in -2i64..=2,
        left in any::<bool>(),
    ) {
        for around in [value, near] {
            let bits = f64::from(around).to_bits() as i64;
            let threshold = f64::from_bits(bits.wrapping_add(nudge) as u64);
            if !threshold.is_finite() {
                continue; // a split rejects it
            }
            let missing = if left { MissingDirection::Left } else { MissingDirection::Right };
            let mut builder = TreeBuilder::new(1, 3);
            let [to_left, to_right] = builder.set_split(TreeBuilder::ROOT, 0, round_down(threshold), missing);
            let tree = builder.finish();
            let goes_left = if value.is_nan() { left } else { f64::from(value) <= threshold };
            let expected = if goes_left { to_left } else { to_right };
            prop_assert_eq!(tree.nodes[0].next(value), expected, "{} <= {}", value, threshold);
            if !value.is_nan() {
                prop_assert_eq!(tree.nodes[0].next_not_nan(value), expected, "{} <= {}", value, threshold);
            }
        }
    }

    #[test]
    fn a_leaf_keeps_every_row(value in any_f32(), at in 0..MAX_NODES, number in 0..MAX_LEAVES) {
        let leaf = TreeNode::leaf(at, 0).with_leaf_index(number);
        prop_assert!(leaf.is_leaf());
        prop_assert_eq!((leaf.next(value), leaf.next_not_nan(value)), (at, at));
        prop_assert_eq!((leaf.leaf_index(), leaf.feature()), (number, 0));
    }

    #[test]
    fn a_split_keeps_its_fields(
        feature in 0..MAX_FEATURES,
        left in 0..MAX_NODES,
        missing_left in any::<bool>(),
    ) {
        let missing = if missing_left { MissingDirection::Left } else { MissingDirection::Right };
        let node = TreeNode::split(feature, 1.5, missing, left);
        prop_assert!(!node.is_leaf());
        prop_assert_eq!((node.feature(), node.left()), (feature, left));
        prop_assert_eq!([node.next(1.5), node.next(1.6)], [left, left + 1]);
        prop_assert_eq!(node.next(f32::NAN), if missing_left { left } else { left + 1 });
    }

    /// Arbitrary arrays are rejected or a tree, without panic or endless loop.
    #[test]
    fn survives_any_arrays(
        nodes in prop::collection::vec(
            (-2i64..12, -2i64..12, -3i64..4, any::<f64>(), prop_oneof![-1i64..9, any::<i64>()], any::<bool>()),
            0..12,
        ),
    ) {
        let arrays = TreeArrays {
            left_child: nodes.iter().map(|node| node.0).collect(),
            right_child: nodes.iter().map(|node| node.1).collect(),
            feature: nodes.iter().map(|node| node.2).collect(),
            threshold: nodes.iter().map(|node| node.3).collect(),
            n_node_samples: nodes.iter().map(|node| node.4).collect(),
            missing_go_to_left: nodes.iter().map(|node| node.5).collect(),
        };
        if let Ok(tree) = Tree::from_arrays(&arrays, 3) {
            walk(&tree, &[0.0, f32::NAN, f32::INFINITY]);
        }
    }

    /// A valid tree with one changed number is rejected or a tree, and most are rejected.
    #[test]
    fn survives_one_change(array in 0..4, node in 0..7usize, value in prop_oneof![-3i64..9, any::<i64>()]) {
        let mut arrays = small();
        match array {
            0 => arrays.left_child[node] = value,
            1 => arrays.right_child[node] = value,
            2 => arrays.feature[node] = value,
            _ => arrays.n_node_samples[node] = value,
        }
        if let Ok(tree) = Tree::from_arrays(&arrays, 2) {
            walk(&tree, &[f32::NEG_INFINITY, f32::NAN]);
        }
    }
}
