//! Checks the structure of a tree from a file, for both kinds of forest: the nodes form one tree of bounded depth, and
//! the counts of children add up.

use super::Error;
use super::depth::Leaf;
use super::limits::{MAX_DEPTH, MAX_NODES};

/// A node of a checked tree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum CheckedNode {
    Leaf(Leaf),
    /// Indices of the children, both greater than the node's own. No other node has these children.
    Split([usize; 2]),
}

/// Arrays as in scikit-learn, one entry per node.
pub(super) struct TreeStructure<'a> {
    pub left_child: &'a [i64],
    pub right_child: &'a [i64],
    pub n_node_samples: &'a [i64],
}

impl TreeStructure<'_> {
    /// Checks that the nodes form one tree. `lengths` lists the further arrays: name in error texts, length, and
    /// entries per node.
    pub fn check(&self, lengths: &[(&'static str, usize, usize)]) -> Result<Vec<CheckedNode>, Error> {
        let n_nodes = self.left_child.len();
        if n_nodes == 0 || n_nodes > MAX_NODES {
            return Err(Error::node(0, "number of nodes", n_nodes, format_args!("in 1..={MAX_NODES}")));
        }
        let own = [
            ("length of right_child", self.right_child.len(), 1),
            ("length of n_node_samples", self.n_node_samples.len(), 1),
        ];
        for &(field, length, width) in own.iter().chain(lengths) {
            if Some(length) != n_nodes.checked_mul(width) {
                let times = if width == 1 { String::new() } else { format!(" x {width}") };
                return Err(Error::node(0, field, length, format_args!("{n_nodes}{times}, as left_child")));
            }
        }
        // Children follow their parents, so one pass visits each parent first.
        let mut depths = vec![None; n_nodes];
        depths[0] = Some(0);
        (0..n_nodes)
            .map(|node| {
                let Some(depth) = depths[node] else {
                    return Err(Error::node(node, "parent", "none", "one node of the tree"));
                };
                let n_samples = self.check_count(node)?;
                let Some([left, right]) = self.check_children(node)? else {
                    return Ok(CheckedNode::Leaf(Leaf { depth, n_samples }));
                };
                if depth == MAX_DEPTH {
                    return Err(Error::node(node, "depth", depth, format_args!("below {MAX_DEPTH}")));
                }
                let children = self.check_count(left)?.checked_add(self.check_count(right)?);
                if children != Some(n_samples) {
                    return Err(Error::node(node, "n_node_samples", n_samples, "the sum of both children's"));
                }
                for child in [left, right] {
                    // Shared children would turn a small file into a large tree.
                    if depths[child].replace(depth + 1).is_some() {
                        return Err(Error::node(node, "child", child, "a node without another parent"));
                    }
                }
                Ok(CheckedNode::Split([left, right]))
            })
            .collect()
    }

    fn check_count(&self, node: usize) -> Result<u64, Error> {
        let count = self.n_node_samples[node];
        if count < 1 {
            return Err(Error::node(node, "n_node_samples", count, "at least 1"));
        }
        Ok(count.unsigned_abs())
    }

    /// Both children of a split; `None` in a leaf.
    fn check_children(&self, node: usize) -> Result<Option<[usize; 2]>, Error> {
        let (left, right) = (self.left_child[node], self.right_child[node]);
        if left == -1 && right == -1 {
            return Ok(None);
        }
        let n_nodes = self.left_child.len();
        let child = |field, child: i64| {
            usize::try_from(child).ok().filter(|child| (node + 1..n_nodes).contains(child)).ok_or_else(|| {
                Error::node(node, field, child, format_args!("in {}..{n_nodes}, or -1 in a leaf", node + 1))
            })
        };
        Ok(Some([child("left_child", left)?, child("right_child", right)?]))
    }
}
