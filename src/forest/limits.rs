//! Limits on the size of a forest, which the layout of a node and the time per row set.

use super::Error;

/// Bits of a node for the index of its left child.
pub(super) const CHILD_BITS: u32 = 19;
/// Bits of a node for its feature.
const FEATURE_BITS: u32 = 12;

/// Most features of a forest: a node has 12 bits for one.
pub const MAX_FEATURES: usize = 1 << FEATURE_BITS;

/// Most nodes of one tree: a node has 19 bits for its child.
pub const MAX_NODES: usize = 1 << CHILD_BITS;

/// Most rows that one tree can be grown from: a binary tree of n leaves has 2n - 1 nodes.
pub const MAX_SAMPLES: usize = MAX_NODES / 2;

/// Most edges from root to leaf. scikit-learn stops at `ceil(log2(max_samples))`, and a count has 64 bits. The limit
/// bounds the time per row of a hostile tree.
pub const MAX_DEPTH: u32 = 64;

pub(super) fn check_n_features(n_features: usize) -> Result<(), Error> {
    if (1..=MAX_FEATURES).contains(&n_features) {
        return Ok(());
    }
    Err(Error::forest("n_features", n_features, format_args!("in 1..={MAX_FEATURES}")))
}
