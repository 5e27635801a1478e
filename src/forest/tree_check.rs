//! The shape of a tree that comes from a file: which node is whose child. Believed only when it is one
//! tree, of bounded depth, whose counts add up. The same for both kinds.

use super::Error;
use super::tree::{Leaf, MAX_DEPTH, MAX_NODES};

/// What a node of a checked tree is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum CheckedNode {
    Leaf(Leaf),
    /// Indices of the children, both greater than the node's own. No other node has them.
    Split([usize; 2]),
}

/// Arrays as scikit-learn has them, one entry per node.
pub(super) struct TreeStructure<'a> {
    pub left_child: &'a [i64],
    pub right_child: &'a [i64],
    pub n_node_samples: &'a [i64],
}

impl TreeStructure<'_> {
    /// Checks that the nodes make one tree. `lengths` are the further arrays, each with its name in
    /// messages, its length and how many entries it has for a node.
    pub fn check(&self, lengths: &[(&'static str, usize, usize)]) -> Result<Vec<CheckedNode>, Error> {
        let n_nodes = self.left_child.len();
        if n_nodes == 0 || n_nodes > MAX_NODES {
            return Err(node_error(0, "number of nodes", n_nodes, format_args!("in 1..={MAX_NODES}")));
        }
        let own = [
            ("length of right_child", self.right_child.len(), 1),
            ("length of n_node_samples", self.n_node_samples.len(), 1),
        ];
        for &(field, length, width) in own.iter().chain(lengths) {
            if Some(length) != n_nodes.checked_mul(width) {
                let times = if width == 1 { String::new() } else { format!(" x {width}") };
                return Err(node_error(0, field, length, format_args!("{n_nodes}{times}, as left_child")));
            }
        }
        // Children come after their parents, so one pass meets each parent first.
        let mut depths = vec![None; n_nodes];
        depths[0] = Some(0);
        (0..n_nodes)
            .map(|node| {
                let Some(depth) = depths[node] else {
                    return Err(node_error(node, "parent", "none", "one node of the tree"));
                };
                let n_samples = self.check_count(node)?;
                let Some([left, right]) = self.check_children(node)? else {
                    return Ok(CheckedNode::Leaf(Leaf { depth, n_samples }));
                };
                if depth == MAX_DEPTH {
                    return Err(node_error(node, "depth", depth, format_args!("below {MAX_DEPTH}")));
                }
                let children = self.check_count(left)?.checked_add(self.check_count(right)?);
                if children != Some(n_samples) {
                    return Err(node_error(node, "n_node_samples", n_samples, "the sum of both children's"));
                }
                for child in [left, right] {
                    // A child with two parents would make a cheap file an expensive tree.
                    if depths[child].replace(depth + 1).is_some() {
                        return Err(node_error(node, "child", child, "a node without another parent"));
                    }
                }
                Ok(CheckedNode::Split([left, right]))
            })
            .collect()
    }

    fn check_count(&self, node: usize) -> Result<u64, Error> {
        let count = self.n_node_samples[node];
        if count < 1 {
            return Err(node_error(node, "n_node_samples", count, "at least 1"));
        }
        Ok(count.unsigned_abs())
    }

    /// Both children of a split, `None` in a leaf.
    fn check_children(&self, node: usize) -> Result<Option<[usize; 2]>, Error> {
        let (left, right) = (self.left_child[node], self.right_child[node]);
        if left == -1 && right == -1 {
            return Ok(None);
        }
        let n_nodes = self.left_child.len();
        let child = |field, child: i64| {
            usize::try_from(child).ok().filter(|child| (node + 1..n_nodes).contains(child)).ok_or_else(|| {
                node_error(node, field, child, format_args!("in {}..{n_nodes}, or -1 in a leaf", node + 1))
            })
        };
        Ok(Some([child("left_child", left)?, child("right_child", right)?]))
    }
}

pub(super) fn node_error(
    node: usize,
    field: &'static str,
    value: impl ToString,
    limit: impl ToString,
) -> Error {
    Error::Node { node, field, value: value.to_string(), limit: limit.to_string() }
}
