//! K-fold cross-validation of every sample size.
//!
//! Folds are blocks of time without shuffling: neighbouring rows are nearly equal, so a forest that was fitted on the
//! neighbours of a row was fitted on the row. One thread fits the forest of a fold, and the folds of all sizes share the
//! processors. Each result has a slot of its own, so that the outcome does not depend on the number of threads.

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

/// Default sizes of a sweep: from trees that separate hardly any rows to trees that isolate every row.
pub const DEFAULT_SIZES: [usize; 13] = [5, 10, 20, 50, 100, 200, 256, 500, 1000, 1500, 2000, 3000, 5000];

/// Number of folds.
pub const N_SPLITS: usize = 5;

/// Decisions on the training rows and on the test rows of a fold.
type FoldDecisions = [DecisionHistogram; 2];

/// Result of a sweep over sample sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// All sizes, and the best one.
    pub validation: CrossValidation,
    /// For each fold, the decisions of the best size on the training rows and on the test rows.
    pub folds: Vec<FoldDecisions>,
}

/// A sweep: every size is validated on every fold.
pub(super) struct CrossValidator<'a> {
    params: &'a ModelParams,
    table: &'a Table<'a>,
    folds: Vec<FoldSplit>,
    /// Ascending and distinct.
    sizes: Vec<usize>,
}

impl<'a> CrossValidator<'a> {
    /// Plans a sweep over `sizes` rows a tree. A size above the number of training rows of a fold is replaced by that
    /// number.
    ///
    /// # Errors
    /// [`Error::Unsuitable`] with fewer rows than folds.
    pub fn new(params: &'a ModelParams, table: &'a Table<'a>, sizes: &[usize]) -> Result<Self, Error> {
        let folds = split_folds(table)?;
        let n_train = folds.iter().map(|fold| fold.n_rows - fold.test.len()).min().unwrap_or(0);
        let mut sizes: Vec<usize> = sizes.iter().map(|size| (*size).clamp(1, n_train)).collect();
        sizes.sort_unstable();
        sizes.dedup();
        Ok(Self { params, table, folds, sizes })
    }

    /// Validates all sizes. The best size has the least mean divergence; of equal ones, the smallest is chosen. `on_fold`
    /// is called with the numbers of finished and of all folds, from any thread.
    ///
    /// # Errors
    /// Those of the forest.
    pub fn sweep(
        &self,
        threads: NonZeroUsize,
        on_fold: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Sweep, Error> {
        let mut by_size = self.validate_all(threads, on_fold)?;
        let trials: Vec<Trial> = self
            .sizes
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

    /// The decisions of all folds, shape `[n_sizes, n_folds]`.
    fn validate_all(
        &self,
        threads: NonZeroUsize,
        on_fold: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<Vec<FoldDecisions>>, Error> {
        let n_folds = self.folds.len();
        let n_tasks = self.sizes.len() * n_folds;
        let results: Vec<OnceLock<Result<FoldDecisions, Error>>> =
            (0..n_tasks).map(|_| OnceLock::new()).collect();
        let (n_taken, n_finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let run_tasks = || {
            let mut buffers = FoldBuffers::new(self.table);
            loop {
                // Large trees first: the last tasks are then short, and all threads finish at about the same time.
                let task = n_tasks.checked_sub(1 + n_taken.fetch_add(1, Ordering::Relaxed));
                let Some(task) = task else { return };
                let (size, fold) = (self.sizes[task / n_folds], &self.folds[task % n_folds]);
                let result = buffers.validate(self.params, fold, size);
                results[task].set(result).expect("each task is taken once");
                on_fold(1 + n_finished.fetch_add(1, Ordering::Relaxed), n_tasks);
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads.get().min(n_tasks) {
                scope.spawn(run_tasks);
            }
            run_tasks();
        });
        let mut decisions = Vec::with_capacity(n_tasks);
        for result in results {
            decisions.push(result.into_inner().expect("each task was taken")?);
        }
        Ok(decisions.chunks(n_folds).map(<[FoldDecisions]>::to_vec).collect())
    }
}

/// The rows of one fold: `test` is held out, the others are fitted on.
#[derive(Clone, Debug, PartialEq)]
struct FoldSplit {
    test: Range<usize>,
    n_rows: usize,
}

/// The blocks of `KFold` without shuffling, in the order of time.
fn split_folds(table: &Table) -> Result<Vec<FoldSplit>, Error> {
    let (n_rows, n_features) = (table.n_rows(), table.n_features());
    if n_rows < N_SPLITS {
        let limit = format!("at most the number of rows, {n_rows}");
        return Err(Error::Unsuitable { name: "n_splits", value: N_SPLITS, n_rows, n_features, limit });
    }
    // KFold reads only the number of rows of the matrix.
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

/// Buffers for the two parts of a table.
struct FoldBuffers<'a> {
    table: &'a Table<'a>,
    values: [Vec<f32>; 2],
}

impl<'a> FoldBuffers<'a> {
    fn new(table: &'a Table<'a>) -> Self {
        Self { table, values: Default::default() }
    }

    /// Fits a forest on the training rows of a fold. Returns its decisions on the training rows and on the test rows.
    fn validate(
        &mut self,
        params: &ModelParams,
        fold: &FoldSplit,
        size: usize,
    ) -> Result<FoldDecisions, Error> {
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
