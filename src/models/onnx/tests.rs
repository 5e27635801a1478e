use std::num::NonZeroUsize;

use proptest::prelude::*;
use prost::Message;

use super::ensemble::count_from_path_length;
use super::proto::{AttributeProto, ModelProto, NodeProto};
use super::*;
use crate::forest::{Forest, ForestParams, MaxSamples, Table, Tree, TreeArrays, average_path_length};

/// Two trees: a split above two leaves of one row each, and the same with three rows to the right.
fn forest() -> Forest {
    let tree = |right| {
        let arrays = TreeArrays {
            left_child: vec![1, -1, -1],
            right_child: vec![2, -1, -1],
            feature: vec![1, -2, -2],
            threshold: vec![0.5, -2.0, -2.0],
            n_node_samples: vec![1 + right, 1, right],
            missing_go_to_left: vec![true, false, false],
        };
        Tree::from_arrays(&arrays, 2).expect("a tree")
    };
    Forest::new(&[tree(1), tree(3)], 4, -0.5).expect("a forest")
}

fn columns() -> Vec<String> {
    vec!["a \"quoted\" name".into(), "b".into()]
}

/// The error of reading [`forest`]'s model after a change.
fn error_after(change: impl FnOnce(&mut ModelProto)) -> String {
    let mut model =
        ModelProto::decode(&write(&forest(), &columns()).expect("writable")[..]).expect("a model");
    change(&mut model);
    read(&model.encode_to_vec(), None).expect_err("refused").to_string()
}

fn node<'m>(model: &'m mut ModelProto, op_type: &str) -> &'m mut NodeProto {
    model
        .graph
        .as_mut()
        .expect("there is one")
        .node
        .iter_mut()
        .find(|node| node.op_type == op_type)
        .expect("there is one")
}

fn attribute<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut AttributeProto {
    node(model, "TreeEnsemble")
        .attribute
        .iter_mut()
        .find(|attribute| attribute.name == name)
        .expect("there is one")
}

#[test]
fn comes_back_bit_for_bit() {
    let imported = read(&write(&forest(), &columns()).expect("writable"), None).expect("a readable file");
    assert_eq!(imported.forest, forest());
    assert_eq!(imported.columns, Some(columns()));
}

#[test]
fn models_that_onnx_cannot_express_are_not_written() {
    let error = write(&forest(), &columns()[..1]).expect_err("refused");
    assert_eq!(error.to_string(), "forest: number of columns is 1, must be 2");
    let trees: Vec<Tree> =
        forest().trees().map(|tree| Tree::from_arrays(&tree, 2).expect("a tree")).collect();
    let error = write(&Forest::new(&trees, 1, -0.5).expect("a forest"), &columns()).expect_err("refused");
    assert_eq!(error.to_string(), "forest: max_samples is 1, must be at least 2 in an ONNX graph");
}

#[test]
fn other_operations_are_refused_by_name() {
    let tail = "is no part of an isolation forest as skl2onnx or promforest write it";
    let error = error_after(|model| node(model, "Pow").op_type = "Sin".into());
    assert_eq!(error, format!("operator Sin at \"anomaly_score\" {tail}"));
    let error = error_after(|model| node(model, "TreeEnsemble").domain = "com.example".into());
    assert_eq!(error, format!("operator com.example.TreeEnsemble at \"ensemble\" {tail}"));
    // Known, but not there.
    let error = error_after(|model| node(model, "Less").op_type = "Neg".into());
    assert_eq!(error, format!("operator Neg at \"is_anomalous\" {tail}"));
    let error = error_after(|model| node(model, "Sum").input.push("X".into()));
    assert_eq!(error, format!("operator Sum at \"path_length\" {tail}"));
}

#[test]
fn invalid_trees_are_refused() {
    let error = error_after(|model| {
        attribute(model, "nodes_modes").t.as_mut().expect("there is one").raw_data[1] = 1
    });
    assert_eq!(error, "TreeEnsemble: mode of a split is 1, must be 0");
    let error = error_after(|model| attribute(model, "nodes_truenodeids").ints[0] = 4);
    assert_eq!(error, "TreeEnsemble: child is 4, must be in 0..4");
    let error = error_after(|model| attribute(model, "tree_roots").ints[0] = -1);
    assert_eq!(error, "TreeEnsemble: root is -1, must be in 0..2");
    let error = error_after(|model| attribute(model, "tree_roots").ints[0] = 1);
    assert_eq!(error, "tree ensemble: split with two parents is 1, must be a child once");
    let error = error_after(|model| {
        // The first split is its own left child.
        attribute(model, "nodes_trueleafs").ints[0] = 0;
        attribute(model, "nodes_truenodeids").ints[0] = 0;
    });
    assert_eq!(error, "tree ensemble: split with two parents is 0, must be a child once");
    let error = error_after(|model| attribute(model, "tree_roots").ints.truncate(1));
    assert_eq!(error, "tree ensemble: split without a tree is 1, must be one of a tree");
    let error = error_after(|model| attribute(model, "nodes_featureids").ints[0] = 2);
    assert_eq!(error, "no forest can be made of the trees");
}

#[test]
fn leaves_that_are_no_path_lengths_are_refused() {
    let error = error_after(|model| {
        let weights = &mut attribute(model, "leaf_weights").t.as_mut().expect("there is one").raw_data;
        weights[..8].copy_from_slice(&1.5_f64.to_le_bytes());
    });
    let limit = "its depth, 1, and the average path length of its rows";
    assert_eq!(error, format!("tree ensemble: path length of a leaf is 1.5, must be {limit}"));
    let error =
        error_after(|model| model.graph.as_mut().expect("there is one").initializer[0].raw_data.fill(0xff));
    assert_eq!(error, "Div: unit is NaN, must be the number of trees times the average path length");
}

#[test]
fn work_out_of_proportion_to_the_file_is_refused() {
    let error = error_after(|model| node(model, "Sum").input = vec!["ensemble".into(); 1_000]);
    assert_eq!(error, "Sum: trees is none, or summed before, must be each ensemble once");
    let error = error_after(|model| {
        let graph = model.graph.as_mut().expect("there is one");
        let at = graph.node.iter().position(|node| node.op_type == "Sum").expect("there is one");
        let input = vec!["ensemble".into()];
        let negate =
            NodeProto { op_type: "Neg".into(), input, output: vec!["n".into()], ..Default::default() };
        graph.node.insert(at, negate);
    });
    assert_eq!(error, "Neg: number of trees is 2, must be 1 before the sum over trees");
    let error = read(&vec![0; MAX_BYTES + 1], None).expect_err("refused");
    assert_eq!(error.to_string(), "file has 67108865 bytes, must have at most 67108864");
}

#[test]
fn operations_on_a_tree_are_bounded() {
    let trees: Vec<Tree> =
        forest().trees().map(|tree| Tree::from_arrays(&tree, 2).expect("a tree")).collect();
    let bytes = write(&Forest::new(&trees[..1], 4, -0.5).expect("a forest"), &columns()).expect("writable");
    let with = |n_operations: usize| {
        let mut model = ModelProto::decode(&bytes[..]).expect("a model");
        let nodes = &mut model.graph.as_mut().expect("there is one").node;
        let at = nodes.iter().position(|node| node.op_type == "Sum").expect("there is one");
        for number in (0..n_operations).rev() {
            let input = if number == 0 { "ensemble".into() } else { format!("n{}", number - 1) };
            let output = vec![format!("n{number}")];
            let negate =
                NodeProto { op_type: "Neg".into(), input: vec![input], output, ..Default::default() };
            nodes.insert(at, negate);
        }
        let last = format!("n{}", n_operations - 1);
        nodes[at + n_operations].input = vec![last];
        read(&model.encode_to_vec(), None)
    };
    assert!(with(32).is_ok(), "negated an even number of times");
    let error = with(34).expect_err("refused");
    assert_eq!(error.to_string(), "Neg: number of operations on a tree is 33, must be at most 32");
}

#[test]
fn one_input_and_one_decision_output_are_required() {
    let error = error_after(|model| {
        let input = &mut model.graph.as_mut().expect("there is one").input;
        input.push(input[0].clone());
    });
    assert_eq!(error, "graph: number of inputs is 2, must be 1, a table of all features");
    let error = error_after(|model| _ = model.graph.as_mut().expect("there is one").output.remove(1));
    let limit = "among them one decision function of a forest";
    assert_eq!(error, format!("graph: outputs is score_samples, predict, must be {limit}"));
}

#[test]
fn counts_are_found_by_their_path_length() {
    for count in (1..10_000).chain([1 << 18, (1 << 18) + 1, 123_456_789, (1 << 40) - 1, 1 << 40]) {
        // As leaves at the greatest depth have it, rounding and all.
        let length = 64.0 + 1.0 + average_path_length(count) - 1.0;
        assert_eq!(count_from_path_length(length - 64.0), Some(count));
    }
    for count in 1..1_000 {
        assert_eq!(
            count_from_path_length(f64::from(average_path_length(count) as f32)),
            Some(count),
            "in floats"
        );
    }
    for length in [-1.0, 0.5, 1.1, 1e9, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(count_from_path_length(length), None, "{length}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn grown_forests_come_back_bit_for_bit(
        n_features in 1_usize..5,
        n_rows in 2_usize..60,
        n_estimators in 1_usize..25,
        max_samples in 2_usize..60,
        seed: u64,
        values in prop::collection::vec(prop_oneof![Just(0.0_f32), -1e3_f32..1e3, any::<i8>().prop_map(f32::from)], 300),
    ) {
        let table = Table::new(&values[..n_rows * n_features], n_rows, n_features).expect("a table");
        let params = ForestParams {
            n_estimators: NonZeroUsize::new(n_estimators).expect("not zero"),
            max_samples: MaxSamples::count(max_samples).expect("not zero"),
            random_state: seed,
            ..ForestParams::default()
        };
        let grown = params.fit(&table, NonZeroUsize::MIN).expect("a forest");
        // Ranges of training stay behind.
        let trees: Vec<Tree> = grown.trees().map(|tree| Tree::from_arrays(&tree, n_features).expect("a tree")).collect();
        let forest = Forest::new(&trees, grown.max_samples(), grown.offset()).expect("a forest");
        let columns: Vec<String> = (0..n_features).map(|number| format!("column {number}")).collect();
        let imported = read(&write(&grown, &columns).expect("writable"), None).expect("a readable file");
        prop_assert_eq!(imported.forest, forest);
        prop_assert_eq!(imported.columns, Some(columns));
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes: Vec<u8>) {
        let _ = read(&bytes, None);
    }
}
