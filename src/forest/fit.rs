//! Growing a forest.
//!
//! A tree is a function of the table, the parameters, the seed and its own number: threads share
//! nothing and the result does not know how many there were. A tree works on the ids of its rows,
//! straight into the table's columns; nothing is copied but the values of one feature in one node.
//!
//! Not taken: sorting columns beforehand (a tree sees few rows of few nodes), recursion (a stack of
//! four words per open node is as short), a pool of threads (a forest takes milliseconds).

use std::num::NonZeroUsize;
use std::ops::Range;
use std::{panic, thread};

use super::rng::Rng;
use super::tree::{Builder, Leaf, MAX_FEATURES, MAX_SAMPLES, Missing, round_down};
use super::{Contamination, Error, Forest, ForestParams, Table, Tree};

/// A feature that varies by no more than this within a node counts as constant there; scikit-learn's
/// `FEATURE_THRESHOLD` (`sklearn/tree/_partitioner.pxd`), added in `f32` as there. It is absolute: a
/// feature measured in units of 1e-7 must be scaled up first.
const FEATURE_THRESHOLD: f32 = 1e-7;

impl ForestParams {
    /// Grows a forest on a table, shape `[n_rows, n_features]`, by up to `threads` threads (Liu, Ting,
    /// Zhou 2008, algorithms 1 and 2; splits as scikit-learn's random splitter makes them).
    ///
    /// # Errors
    /// - [`Error::Empty`] for a table without rows or features;
    /// - [`Error::NotFinite`] for NaN or an infinity in it;
    /// - [`Error::Unsuitable`] if `max_samples` comes to no row or to more than
    ///   [`MAX_SAMPLES`], `max_features` to more features than there are, or the table has more than
    ///   [`MAX_FEATURES`] features.
    pub fn fit(&self, table: &Table, threads: NonZeroUsize) -> Result<Forest, Error> {
        let plan = Plan::new(self, table)?;
        let trees: Vec<Tree> = on_threads(self.n_estimators.get(), threads, |trees| {
            let mut grower = Grower::new(&plan);
            trees.map(|number| grower.grow(number)).collect::<Vec<Tree>>()
        })
        .into_iter()
        .flatten()
        .collect();

        let mut forest = Forest::new(&trees, plan.max_samples as u64, -0.5)?;
        if let Contamination::Share(share) = self.contamination {
            let mut scores: Vec<f64> = on_threads(table.n_rows(), threads, |rows| {
                let mut scores = vec![0.0; rows.len()];
                forest.score_rows(table, rows.start, &mut scores);
                scores
            })
            .concat();
            forest.set_offset(quantile(&mut scores, share.get()))?;
        }
        let range = |feature| {
            let column = table.column(feature).iter().copied();
            let ends = [f32::INFINITY, f32::NEG_INFINITY];
            column.fold(ends, |[least, greatest], value| [least.min(value), greatest.max(value)])
        };
        forest.with_ranges((0..table.n_features()).map(range).collect())
    }
}

/// The parameters, resolved for a table that is fit to grow trees from.
struct Plan<'t> {
    table: &'t Table<'t>,
    max_samples: usize,
    max_features: usize,
    max_depth: u32,
    bootstrap: bool,
    seed: u64,
}

impl<'t> Plan<'t> {
    fn new(params: &ForestParams, table: &'t Table<'t>) -> Result<Self, Error> {
        let (n_rows, n_features) = (table.n_rows(), table.n_features());
        if n_rows == 0 || n_features == 0 {
            return Err(Error::Empty { n_rows, n_features });
        }
        let within = |name, value, max: usize| {
            if (1..=max).contains(&value) {
                return Ok(value);
            }
            Err(Error::Unsuitable { name, value, n_rows, n_features, limit: format!("in 1..={max}") })
        };
        within("n_features", n_features, MAX_FEATURES)?;
        within("n_rows", n_rows, u32::MAX as usize)?; // row ids are u32
        let max_samples = within("max_samples", params.max_samples.resolve(n_rows), MAX_SAMPLES)?;
        let max_features = within("max_features", params.max_features.resolve(n_features), n_features)?;
        table.check_finite()?;
        Ok(Self {
            table,
            max_samples,
            max_features,
            max_depth: (max_samples.max(2) - 1).ilog2() + 1, // ceil(log2(max(max_samples, 2)))
            bootstrap: params.bootstrap,
            seed: params.random_state,
        })
    }
}

/// Grows trees one after the other, with buffers that they share.
struct Grower<'p> {
    plan: &'p Plan<'p>,
    rng: Rng,
    /// The features of the tree, those constant in the current node in front.
    features: Vec<usize>,
    /// Ids of the tree's rows; each node owns a range.
    rows: Vec<u32>,
    /// One bit per row of the table, for drawing.
    drawn: Vec<u64>,
    /// The drawn feature's values in the current node, shape `[rows of the node]`.
    values: Vec<f32>,
    /// Rows on their way to the right child.
    spare: Vec<u32>,
    stack: Vec<Open>,
}

/// A node that is placed but not yet split.
struct Open {
    /// Where it is in the tree.
    at: usize,
    /// Its rows, as a range of [`Grower::rows`].
    rows: Range<usize>,
    depth: u32,
    /// How many of [`Grower::features`] are known to be constant here.
    n_constant: usize,
}

impl<'p> Grower<'p> {
    fn new(plan: &'p Plan<'p>) -> Self {
        Self {
            plan,
            rng: Rng::new(plan.seed, 0),
            features: Vec::with_capacity(plan.table.n_features()),
            rows: Vec::with_capacity(plan.max_samples),
            drawn: vec![0; plan.table.n_rows().div_ceil(64)],
            values: vec![0.0; plan.max_samples],
            spare: vec![0; plan.max_samples],
            stack: Vec::new(),
        }
    }

    /// The tree of that number.
    fn grow(&mut self, number: usize) -> Tree {
        self.rng = Rng::new(self.plan.seed, number as u64);
        self.draw_features();
        self.draw_rows();

        let mut tree = Builder::new(self.plan.table.n_features(), 2 * self.rows.len() - 1);
        self.stack.push(Open { at: Builder::ROOT, rows: 0..self.rows.len(), depth: 0, n_constant: 0 });
        while let Some(mut node) = self.stack.pop() {
            let Some((feature, threshold)) = self.draw_split(&mut node) else {
                let n_samples = node.rows.len() as u64;
                tree.set_leaf(node.at, Leaf { depth: node.depth, n_samples });
                continue;
            };
            let middle = self.partition(&node.rows, threshold);
            let (left, right) = (node.rows.start..middle, middle..node.rows.end);
            // Nothing was missing in training, so the larger side takes what will be.
            let missing = if left.len() > right.len() { Missing::Left } else { Missing::Right };
            let [to_left, to_right] = tree.set_split(node.at, feature, threshold, missing);
            let (depth, n_constant) = (node.depth + 1, node.n_constant);
            self.stack.push(Open { at: to_right, rows: right, depth, n_constant });
            self.stack.push(Open { at: to_left, rows: left, depth, n_constant });
        }
        tree.finish()
    }

    /// `max_features` of the features, without replacement: the front of a shuffle.
    fn draw_features(&mut self) {
        let n_features = self.plan.table.n_features();
        self.features.clear();
        self.features.extend(0..n_features);
        if self.plan.max_features < n_features {
            for place in 0..self.plan.max_features {
                let other = place + self.rng.below(n_features - place);
                self.features.swap(place, other);
            }
            self.features.truncate(self.plan.max_features);
        }
    }

    /// `max_samples` of the rows, in ascending order: memory is then read in one direction. The order
    /// makes no difference to the tree. Without replacement by Floyd's method (Bentley, Floyd 1987),
    /// which needs no list of all rows.
    fn draw_rows(&mut self) {
        let (n_rows, max_samples) = (self.plan.table.n_rows(), self.plan.max_samples);
        self.rows.clear();
        if max_samples == n_rows && !self.plan.bootstrap {
            self.rows.extend(0..n_rows as u32);
            return;
        }
        self.drawn.fill(0);
        let drawn = &mut self.drawn;
        let mut mark = |row: usize| {
            let (word, bit) = (&mut drawn[row / 64], 1 << (row % 64));
            let new = *word & bit == 0;
            *word |= bit;
            new
        };
        if self.plan.bootstrap {
            for _ in 0..max_samples {
                mark(self.rng.below(n_rows));
            }
        } else {
            for last in n_rows - max_samples..n_rows {
                if !mark(self.rng.below(last + 1)) {
                    mark(last);
                }
            }
        }
        for (word, &drawn) in self.drawn.iter().enumerate() {
            let mut bits = drawn;
            while bits != 0 {
                self.rows.push((word * 64) as u32 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
    }

    /// A feature that varies in the node and a cut between its least (inclusive) and greatest value, or
    /// `None` for a leaf. Leaves the feature's values in `values`, and counts in the node the features
    /// that turned out constant, for its children.
    fn draw_split(&mut self, node: &mut Open) -> Option<(usize, f32)> {
        if node.depth >= self.plan.max_depth || node.rows.len() < 2 {
            return None;
        }
        while node.n_constant < self.features.len() {
            let place = node.n_constant + self.rng.below(self.features.len() - node.n_constant);
            let feature = self.features[place];
            let (min, max) = self.gather(feature, &node.rows);
            if max <= min + FEATURE_THRESHOLD {
                self.features.swap(place, node.n_constant);
                node.n_constant += 1;
                continue;
            }
            let (low, high) = (f64::from(min), f64::from(max));
            let cut = low + self.rng.uniform() * (high - low);
            return Some((feature, round_down(if cut == high { low } else { cut })));
        }
        None
    }

    /// Copies a feature's values in the node to `values`; the least and the greatest.
    fn gather(&mut self, feature: usize, rows: &Range<usize>) -> (f32, f32) {
        let column = self.plan.table.column(feature);
        let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
        for (value, &row) in self.values.iter_mut().zip(&self.rows[rows.clone()]) {
            *value = column[row as usize];
            min = if *value < min { *value } else { min };
            max = if *value > max { *value } else { max };
        }
        (min, max)
    }

    /// Brings the rows with `value <= threshold` to the front of the node's range, keeping the order on
    /// both sides, and returns where the others start. Writes every row to both sides and moves on in
    /// one of them: no branch to mispredict.
    fn partition(&mut self, range: &Range<usize>, threshold: f32) -> usize {
        let rows = &mut self.rows[range.clone()];
        let (mut n_left, mut n_right) = (0, 0);
        for (place, &value) in self.values[..rows.len()].iter().enumerate() {
            let row = rows[place];
            let left = usize::from(value <= threshold);
            rows[n_left] = row;
            self.spare[n_right] = row;
            n_left += left;
            n_right += 1 - left;
        }
        rows[n_left..].copy_from_slice(&self.spare[..n_right]);
        range.start + n_left
    }
}

/// Splits `0..n` into one range per thread and returns what `work` makes of each, in order.
fn on_threads<T: Send>(n: usize, threads: NonZeroUsize, work: impl Fn(Range<usize>) -> T + Sync) -> Vec<T> {
    let share = n.div_ceil(threads.get());
    if share >= n {
        return vec![work(0..n)];
    }
    thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = (0..n)
            .step_by(share)
            .map(|start| scope.spawn(move || work(start..n.min(start + share))))
            .collect();
        let join = |worker: thread::ScopedJoinHandle<T>| {
            worker.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
        };
        workers.into_iter().map(join).collect()
    })
}

/// The value below which that share of `values` lies, as `numpy.percentile` with its default, linear,
/// interpolation. Reorders `values`, which must not be empty.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    // By way of percent and with numpy's two forms of interpolation, to round as it does.
    let place = (values.len() - 1) as f64 * (100.0 * share / 100.0);
    let (below, part) = (place as usize, place.fract());
    let (_, &mut low, rest) = values.select_nth_unstable_by(below, f64::total_cmp);
    let high = rest.iter().copied().min_by(f64::total_cmp).unwrap_or(low);
    if part < 0.5 { low + (high - low) * part } else { high - (high - low) * (1.0 - part) }
}

#[cfg(test)]
mod tests;
