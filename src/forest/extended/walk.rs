//! The walk of a row down all trees at once, level by level.
//!
//! The projection of a row on a split is a chain of dependent additions, hence [`GROUP`] of them side by side. A forest
//! that was not used for a while is in the main memory, and each step depends on the one before. The record of the
//! next step is therefore requested as soon as it is known, and arrives while the other trees take their step.
//!
//! Most steps need no projection: with AVX-512, [`estimate`] tells their side by integers. That takes two thirds of the
//! time.
//!
//! Not taken: weights that are converted by SSE2 or AVX2 instead of being loaded (1.05 and 1.17 times as fast); exits of a
//! group computed together, and lanes of a byte, which were slower.

mod estimate;

use super::super::MAX_FEATURES;
use super::super::prefetch::prefetch;
use super::layout::{Splits, SplitsByLevel};
use super::terms::{FullTerms, ShortTerms, Terms};
use super::tree::{NodeRef, Split, SplitPlane};
use estimate::RoundedRow;

/// Walks side by side: the default number of trees, with room for some more.
const LANES: usize = 64;
/// Projections side by side.
const GROUP: usize = 8;
/// Columns of the smaller buffer of a row. A fixed width needs no check at each term.
const NARROW: usize = 256;

/// Terms that a row may be estimated by.
trait EstimatedTerms: Terms {
    /// The splits, if their terms have the short form.
    fn short(splits: &[Split<Self>]) -> Option<&[Split<ShortTerms>]>;
}

impl EstimatedTerms for FullTerms {
    fn short(_: &[Split<Self>]) -> Option<&[Split<ShortTerms>]> {
        None
    }
}

impl EstimatedTerms for ShortTerms {
    fn short(splits: &[Split<Self>]) -> Option<&[Split<ShortTerms>]> {
        Some(splits)
    }
}

/// The sum over the trees of the path lengths of a row of finite values.
pub(super) fn path_length(nodes: &SplitsByLevel, row: impl ExactSizeIterator<Item = f64>) -> f64 {
    match &nodes.splits {
        Splits::Short(splits) => path_length_by(nodes, splits, row),
        Splits::Full(splits) => path_length_by(nodes, splits, row),
    }
}

/// [`path_length`] by splits of one form.
fn path_length_by<T: EstimatedTerms>(
    nodes: &SplitsByLevel,
    splits: &[Split<T>],
    row: impl ExactSizeIterator<Item = f64>,
) -> f64 {
    match row.len() {
        ..=NARROW => path_length_of_width::<T, NARROW>(nodes, splits, row),
        _ => path_length_of_width::<T, MAX_FEATURES>(nodes, splits, row),
    }
}

/// [`path_length`] of at most `N` values. Not inlined, so that only wide rows have a large frame.
#[inline(never)]
fn path_length_of_width<T: EstimatedTerms, const N: usize>(
    nodes: &SplitsByLevel,
    splits: &[Split<T>],
    values: impl ExactSizeIterator<Item = f64>,
) -> f64 {
    let n_columns = values.len();
    let mut row = [0.0; N];
    for (to, value) in row.iter_mut().zip(values) {
        *to = value;
    }
    // The sums of integers are those of the terms of a record.
    let short = T::short(splits).filter(|_| nodes.n_further == 0);
    let estimates = short.and_then(|splits| Some((splits, RoundedRow::new(&row[..n_columns])?)));
    let mut sum = 0.0;
    for roots in nodes.roots.chunks(LANES) {
        let mut walks = [Walk::new(NodeRef::leaf(0)); LANES];
        for (walk, &root) in walks.iter_mut().zip(roots) {
            *walk = Walk::new(root);
            request(splits, root);
        }
        walk_down(nodes, splits, &mut walks, &row, estimates.as_ref());
        for walk in &walks[..roots.len()] {
            sum += walk.path_length(&nodes.path_lengths);
        }
    }
    sum
}

/// Takes all walks to their leaves.
fn walk_down<T: Terms, const N: usize>(
    nodes: &SplitsByLevel,
    splits: &[Split<T>],
    walks: &mut [Walk; LANES],
    row: &[f64; N],
    estimates: Option<&(&[Split<ShortTerms>], RoundedRow)>,
) {
    // The lanes whose walks are at a split, in order.
    let mut lanes: [usize; LANES] = std::array::from_fn(|lane| lane);
    let mut n_lanes = keep_splits(&mut lanes, LANES, walks);
    let mut uncertain = [0; LANES];
    let mut level = 0.0;
    while n_lanes > 0 {
        level += 1.0;
        let lanes_at_splits = &lanes[..n_lanes];
        let to_project = match estimates {
            Some((splits, row)) => {
                let n_uncertain = row.step_certain(splits, walks, lanes_at_splits, &mut uncertain);
                &uncertain[..n_uncertain]
            }
            None => lanes_at_splits,
        };
        for group in to_project.chunks(GROUP) {
            // Walks that lack in the last group repeat its first.
            let at = std::array::from_fn(|i| walks[group.get(i).unwrap_or(&group[0]) % LANES].at);
            for (&lane, value) in group.iter().zip(project(nodes, splits, at, row)) {
                let walk = &mut walks[lane % LANES];
                walk.step(&splits[walk.at.index()], value, level);
                request(splits, walk.at);
            }
        }
        n_lanes = keep_splits(&mut lanes, n_lanes, walks);
    }
}

/// Keeps those of the first lanes whose walks are at a split, and returns their number. There is no branch to
/// mispredict.
fn keep_splits(lanes: &mut [usize; LANES], n_lanes: usize, walks: &[Walk; LANES]) -> usize {
    let mut n_kept = 0;
    for i in 0..n_lanes {
        let lane = lanes[i];
        lanes[n_kept] = lane;
        n_kept += usize::from(walks[lane % LANES].at.is_split());
    }
    n_kept
}

/// The projections of a row on some splits.
#[inline(always)]
fn project<T: Terms, const N: usize>(
    nodes: &SplitsByLevel,
    splits: &[Split<T>],
    at: [NodeRef; GROUP],
    row: &[f64; N],
) -> [f64; GROUP] {
    let mut sums = Terms::add_to([0.0; GROUP], at.map(|at| &splits[at.index()].terms), row);
    for i in 0..nodes.n_further {
        sums = Terms::add_to(sums, at.map(|at| &nodes.further_terms(at)[i]), row);
    }
    sums
}

/// Requests the record of a split. For a leaf the record of the first split, which was used before: a branch would be
/// mispredicted.
#[inline(always)]
fn request<T: Terms>(splits: &[Split<T>], at: NodeRef) {
    prefetch(splits, at.index() * usize::from(at.is_split()));
}

/// The walk of a row down a tree.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    at: NodeRef,
    /// Part of the expected path length from the exits so far.
    partial_path_length: f64,
    /// The probability that no cut has isolated the row so far.
    reach_probability: f64,
}

impl Walk {
    pub fn new(root: NodeRef) -> Self {
        Self { at: root, partial_path_length: 0.0, reach_probability: 1.0 }
    }

    /// Steps from the split that it is at, and on which the row projects to `value`, down to `level`, counted in edges
    /// from the root.
    #[inline(always)]
    fn step<T>(&mut self, split: &Split<T>, value: f64, level: f64) {
        self.exit(&split.plane, value, level);
        self.at = split.children[usize::from(value > split.plane.cut)];
    }

    /// Ends at a split with the probability that a value outside of its range has; changes nothing for a value inside.
    #[inline(always)]
    pub fn exit(&mut self, plane: &SplitPlane, value: f64, level: f64) {
        let SplitPlane { low, high, .. } = *plane;
        let distance_outside = (low - value).max(value - high).max(0.0);
        let exit_probability = distance_outside / (high - low + distance_outside);
        self.partial_path_length += self.reach_probability * exit_probability * level;
        self.reach_probability *= 1.0 - exit_probability;
    }

    /// The path length of a walk that has reached a leaf.
    fn path_length(&self, path_lengths: &[f64]) -> f64 {
        self.path_length_at(self.at, path_lengths)
    }

    /// The path length of a walk that ends at this leaf.
    #[inline(always)]
    pub fn path_length_at(&self, leaf: NodeRef, path_lengths: &[f64]) -> f64 {
        self.partial_path_length + self.reach_probability * path_lengths[leaf.index()]
    }
}

#[cfg(test)]
mod tests;
