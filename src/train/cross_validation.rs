//! The sweep: every size of sample by k-fold cross-validation, and which of them to take.
//!
//! Folds are blocks of time, not shuffled: a row's neighbours are nearly its copies, and a forest
//! that has seen them has seen the row. A fold's forest grows in one thread and the folds of all
//! sizes share the processors, each result in its own place, so that nothing depends on how many
//! there are.

use crate::forest::{Error, MaxSamples, Table};
use crate::models::{CrossValidation, DecisionHistogram, ModelParams, Trial};
use smartcore::linalg::basic::arrays::Array2;
use smartcore::linalg::basic::matrix::DenseMatrix;
use smartcore::model_selection::{BaseKFold, KFold};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Sizes that are tried unless others are asked for: from trees that see next to nothing to trees
/// that can learn their rows by heart.
pub const DEFAULT_SIZES: [usize; 13] = [5, 10, 20, 50, 100, 200, 256, 500, 1000, 1500, 2000, 3000, 5000];

/// Blocks of the cross-validation.
pub const N_SPLITS: usize = 5;

/// What the sweep found.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// Every size, and which is best.
    pub validation: CrossValidation,
    /// Decisions of the chosen size, for each fold those of the training and of the test rows.
    pub folds: Vec<[DecisionHistogram; 2]>,
}

/// Rows of one fold: those held back are a block, the others fit.
#[derive(Clone, Debug, PartialEq)]
struct FoldSplit {
    test: Range<usize>,
    n_rows: usize,
}

/// Cross-validates the parameters with every one of `sizes` rows a tree. Sizes beyond what a fold has
/// rows for are that number of rows, and tried once. `done` hears of each fold that is finished, out
/// of how many, from whichever thread finished it.
///
/// The best size has the least mean divergence; of equal ones the smaller.
///
/// # Errors
/// The forest's own; [`Error::Unsuitable`] when there are fewer rows than folds.
pub fn sweep(
    params: &ModelParams,
    table: &Table,
    sizes: &[usize],
    threads: NonZeroUsize,
    on_fold: &(dyn Fn(usize, usize) + Sync),
) -> Result<Sweep, Error> {
    let folds = folds(table)?;
    let n_train = folds.iter().map(|fold| fold.n_rows - fold.test.len()).min().unwrap_or(0);
    let mut sizes: Vec<usize> = sizes.iter().map(|size| (*size).clamp(1, n_train)).collect();
    sizes.sort_unstable();
    sizes.dedup();

    let n_tasks = sizes.len() * folds.len();
    let results: Vec<OnceLock<Result<[DecisionHistogram; 2], Error>>> =
        (0..n_tasks).map(|_| OnceLock::new()).collect();
    let (next, finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let run_tasks = || {
        let mut buffers = FoldBuffers::new(table);
        loop {
            // Large trees first: the last tasks are then short, and no thread idles for long.
            let task = n_tasks.checked_sub(1 + next.fetch_add(1, Ordering::Relaxed));
            let Some(task) = task else { return };
            let (size, fold) = (sizes[task / folds.len()], &folds[task % folds.len()]);
            let result = buffers.validate(params, fold, size);
            results[task].set(result).expect("every task is taken once");
            on_fold(1 + finished.fetch_add(1, Ordering::Relaxed), n_tasks);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.get().min(n_tasks) {
            scope.spawn(run_tasks);
        }
        run_tasks();
    });

    let mut histograms = Vec::with_capacity(n_tasks);
    for result in results {
        histograms.push(result.into_inner().expect("every task was taken")?);
    }
    let mut by_size: Vec<Vec<[DecisionHistogram; 2]>> = Vec::new();
    for chunk in histograms.chunks(folds.len()) {
        by_size.push(chunk.to_vec());
    }
    let trials: Vec<Trial> = sizes
        .iter()
        .zip(&by_size)
        .map(|(max_samples, folds)| Trial {
            max_samples: *max_samples,
            kl: folds.iter().map(|[train, test]| train.kl_divergence(test)).collect(),
        })
        .collect();
    let best = |a: &usize, b: &usize| trials[*a].mean_kl().total_cmp(&trials[*b].mean_kl());
    let chosen = (0..trials.len()).min_by(best).expect("there is a size");
    let folds = by_size.swap_remove(chosen);
    let mut held_out = DecisionHistogram::default();
    folds.iter().for_each(|[_, test]| held_out.merge(test));
    let validation = CrossValidation { trials, chosen, alert_rate: held_out.alert_rate() };
    Ok(Sweep { validation, folds })
}

/// The blocks of `KFold` without shuffling, in the order of time.
fn folds(table: &Table) -> Result<Vec<FoldSplit>, Error> {
    let (n_rows, n_features) = (table.n_rows(), table.n_features());
    if n_rows < N_SPLITS {
        let limit = format!("at most the number of rows, {n_rows}");
        return Err(Error::Unsuitable { name: "n_splits", value: N_SPLITS, n_rows, n_features, limit });
    }
    // KFold asks a matrix for its number of rows, and no more.
    let rows: DenseMatrix<u8> = DenseMatrix::zeros(n_rows, 1);
    let splits = KFold::default().with_n_splits(N_SPLITS).with_shuffle(false).split(&rows);
    let block = |(_, test): (Vec<usize>, Vec<usize>)| match (test.first(), test.last()) {
        (Some(first), Some(last)) => FoldSplit { test: *first..last + 1, n_rows },
        _ => FoldSplit { test: 0..0, n_rows },
    };
    let mut folds: Vec<FoldSplit> = splits.map(block).collect();
    folds.sort_by_key(|fold| fold.test.start);
    Ok(folds)
}

/// A table cut in two, with its buffers.
struct FoldBuffers<'a> {
    table: &'a Table<'a>,
    values: [Vec<f32>; 2],
}

impl<'a> FoldBuffers<'a> {
    fn new(table: &'a Table<'a>) -> Self {
        Self { table, values: Default::default() }
    }

    /// Fits on the rows outside of the block and tells the decisions of both.
    fn validate(
        &mut self,
        params: &ModelParams,
        fold: &FoldSplit,
        size: usize,
    ) -> Result<[DecisionHistogram; 2], Error> {
        let [train, test] = &mut self.values;
        train.clear();
        test.clear();
        for feature in 0..self.table.n_features() {
            let column = self.table.column(feature);
            train.extend_from_slice(&column[..fold.test.start]);
            train.extend_from_slice(&column[fold.test.end..]);
            test.extend_from_slice(&column[fold.test.clone()]);
        }
        let n_features = self.table.n_features();
        let train = Table::new(train, fold.n_rows - fold.test.len(), n_features)?;
        let test = Table::new(test, fold.test.len(), n_features)?;
        let params = params.with_max_samples(MaxSamples::count(size)?);
        let decisions = params.fit_and_decide(&train, [&train, &test])?;
        Ok(decisions.map(|decisions| decisions.iter().collect()))
    }
}
