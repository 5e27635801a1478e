//! Path lengths of leaves, and the score of a sum of path lengths.

use std::collections::HashMap;

/// Euler's constant γ, as numpy's `euler_gamma`.
const EULER_GAMMA: f64 = 0.577_215_664_901_532_9;

/// A leaf: its depth and its training rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leaf {
    /// Edges from the root.
    pub depth: u32,
    /// Training rows that ended there.
    pub n_samples: u64,
}

/// Indices of leaves, in the order of their first use.
///
/// Nearly all leaves of a forest are shallow and small. Theirs are in a table: a hash map that withstands chosen keys is
/// slower.
pub(super) struct LeafIndices {
    /// By depth and count, both below [`Self::SMALL`]; `u32::MAX` for none.
    small: Vec<u32>,
    others: HashMap<Leaf, u32>,
    len: usize,
}

impl LeafIndices {
    const SMALL: usize = 64;

    pub fn new() -> Self {
        Self { small: vec![u32::MAX; Self::SMALL * Self::SMALL], others: HashMap::new(), len: 0 }
    }

    /// The index of a leaf, and true if it is new.
    pub fn insert(&mut self, leaf: Leaf) -> (usize, bool) {
        let (depth, n_samples) = (leaf.depth as usize, leaf.n_samples as usize);
        let index = match depth < Self::SMALL && n_samples < Self::SMALL {
            true => &mut self.small[depth * Self::SMALL + n_samples],
            false => self.others.entry(leaf).or_insert(u32::MAX),
        };
        let is_new = *index == u32::MAX;
        if is_new {
            // A forest has fewer nodes.
            *index = self.len as u32;
            self.len += 1;
        }
        (*index as usize, is_new)
    }
}

/// Average path length `c(n)`: mean depth, in edges, at which an unsuccessful search ends in a binary
/// search tree of `n_samples` keys (Liu, Ting, Zhou 2008, eq. 1). It replaces the subtree that was not grown below a
/// leaf of `n_samples` rows, and normalizes the depth of a forest.
///
/// `c(0) = c(1) = 0` and `c(2) = 1`; from 3 on `2 (ln(n-1) + γ) - 2 (n-1) / n`. The harmonic number is
/// approximated, in the order of operations of scikit-learn's `_average_path_length`.
pub fn average_path_length(n_samples: u64) -> f64 {
    match n_samples {
        0 | 1 => 0.0,
        2 => 1.0,
        n => {
            let n = n as f64;
            2.0 * ((n - 1.0).ln() + EULER_GAMMA) - 2.0 * (n - 1.0) / n
        }
    }
}

/// scikit-learn's `score_samples` from the sum of a row's path lengths over all trees and `normalizer`, the number of
/// trees times `c(max_samples)`: minus the paper's anomaly score (Liu, Ting, Zhou 2008, eq. 2).
pub(super) fn score_from_path_lengths(path_length_sum: f64, normalizer: f64) -> f64 {
    // Trees of one row have a normalizer of 0. The paper's score is then 1/2, as in scikit-learn.
    let mean = if normalizer == 0.0 { 1.0 } else { path_length_sum / normalizer };
    -(-mean).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_have_indices_in_the_order_of_their_first_use() {
        let mut indices = LeafIndices::new();
        let leaves = [(3, 1), (0, 64), (3, 2), (3, 1), (64, 1), (0, 64), (0, 1 << 40), (63, 63)];
        let inserted = leaves.map(|(depth, n_samples)| indices.insert(Leaf { depth, n_samples }));
        let expected =
            [(0, true), (1, true), (2, true), (0, false), (3, true), (1, false), (4, true), (5, true)];
        assert_eq!(inserted, expected);
    }

    #[test]
    fn small_counts_are_exact() {
        assert_eq!(average_path_length(0), 0.0);
        assert_eq!(average_path_length(1), 0.0);
        assert_eq!(average_path_length(2), 1.0);
    }

    /// Printed by scikit-learn 1.9.1's `_average_path_length`.
    #[test]
    fn agrees_with_scikit_learn() {
        for (n, expected) in [
            (3, 1.207_392_357_589_623),
            (5, 2.327_020_052_042_847),
            (256, 10.244_770_920_119_917),
            (2_000, 14.356_235_998_803_866),
            (1 << 40, 54.606_205_774_598_69),
        ] {
            let c = average_path_length(n);
            assert!((c - expected).abs() <= expected * f64::EPSILON, "c({n}) = {c}, not {expected}");
        }
    }

    #[test]
    fn grows_with_the_count() {
        let lengths: Vec<f64> = (2..10_000).map(average_path_length).collect();
        assert!(lengths.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn largest_count_is_finite() {
        assert!(average_path_length(u64::MAX).is_finite());
    }
}
