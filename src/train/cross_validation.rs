//! K-fold cross-validation of every sample size.
//!
//! Folds are blocks of time without shuffling: neighbouring rows are nearly equal, so a forest that was fitted on the
//! neighbours of a row was fitted on the row. One thread fits the forest of a fold, and the folds of all sizes share the
//! processors. Each result has a slot of its own, so that the outcome does not depend on the number of threads.

use crate::forest::{Error, MaxSamples, Table};
use crate::models::{DecisionHistogram, HeldOut, ModelParams, Trial, quantile_divergence};
use smartcore::linalg::basic::arrays::Array2;
use smartcore::linalg::basic::matrix::DenseMatrix;
use smartcore::model_selection::{BaseKFold, KFold};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Default sizes of a sweep: from trees that separate hardly any rows to trees of thousands.
pub const DEFAULT_SIZES: [usize; 13] = [5, 10, 50, 100, 1000, 1500, 2000, 2500, 3000, 3500, 4000, 4500, 5000];

/// Number of folds.
pub const N_SPLITS: usize = 5;

/// Decisions of a forest on the rows of one fold.
#[derive(Clone, Debug, PartialEq)]
pub struct FoldDecisions {
    /// Decisions on the rows that the forest was fitted on.
    pub train: DecisionHistogram,
    /// Decisions on the held-out rows.
    pub test: DecisionHistogram,
    quantile_kl: f64,
    is_constant: bool,
}

impl FoldDecisions {
    fn new(train: &[f64], test: &[f64]) -> Self {
        Self {
            train: train.iter().collect(),
            test: test.iter().collect(),
            quantile_kl: quantile_divergence(train, test),
            is_constant: train.iter().chain(test).all(|decision| *decision == train[0]),
        }
    }
}

/// The folds of one size, in the order of time.
#[derive(Clone, Debug, PartialEq)]
pub struct SizeFolds {
    /// Rows per tree.
    pub max_samples: usize,
    /// The decisions of each fold.
    pub folds: Vec<FoldDecisions>,
}

impl SizeFolds {
    /// The divergences of the folds.
    pub fn trial(&self) -> Trial {
        Trial {
            max_samples: self.max_samples,
            kl: self.folds.iter().map(|fold| fold.train.kl_divergence(&fold.test)).collect(),
            quantile_kl: self.folds.iter().map(|fold| fold.quantile_kl).collect(),
        }
    }

    /// True if no forest tells any two rows apart.
    pub fn is_constant(&self) -> bool {
        self.folds.iter().all(|fold| fold.is_constant)
    }

    /// The alerts on held-out rows of a model whose decisions are its scores.
    pub fn held_out(&self) -> HeldOut {
        let mut test = DecisionHistogram::default();
        self.folds.iter().for_each(|fold| test.merge(&fold.test));
        HeldOut { alert_rate: test.alert_rate(), incidents_per_day: None, is_constant: self.is_constant() }
    }
}

/// Cross-validation on the rows of a table.
pub(super) struct CrossValidator<'a> {
    params: &'a ModelParams,
    table: &'a Table<'a>,
    folds: Vec<FoldSplit>,
    threads: NonZeroUsize,
}

impl<'a> CrossValidator<'a> {
    /// Divides the table into folds.
    ///
    /// # Errors
    /// [`Error::Unsuitable`] with fewer rows than folds.
    pub fn new(params: &'a ModelParams, table: &'a Table<'a>, threads: NonZeroUsize) -> Result<Self, Error> {
        Ok(Self { params, table, folds: split_folds(table)?, threads })
    }

    /// The size with the number of training rows of the smallest fold as its limit.
    pub fn clamp(&self, size: usize) -> usize {
        let n_train = self.folds.iter().map(|fold| fold.n_rows - fold.test.len()).min().unwrap_or(0);
        size.clamp(1, n_train)
    }

    /// Validates sizes, which [`clamp`](Self::clamp) limits. Returns them ascending and distinct. `on_fold` is called with
    /// the numbers of finished and of all folds, from any thread.
    ///
    /// # Errors
    /// Those of the forest.
    pub fn validate(
        &self,
        sizes: &[usize],
        on_fold: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<SizeFolds>, Error> {
        let mut sizes: Vec<usize> = sizes.iter().map(|size| self.clamp(*size)).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let by_size = self.validate_all(&sizes, on_fold)?;
        let size_folds = |(max_samples, folds)| SizeFolds { max_samples, folds };
        Ok(sizes.into_iter().zip(by_size).map(size_folds).collect())
    }

    /// The decisions of all folds, shape `[n_sizes, n_folds]`.
    fn validate_all(
        &self,
        sizes: &[usize],
        on_fold: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<Vec<FoldDecisions>>, Error> {
        let n_folds = self.folds.len();
        let n_tasks = sizes.len() * n_folds;
        let results: Vec<OnceLock<Result<FoldDecisions, Error>>> =
            (0..n_tasks).map(|_| OnceLock::new()).collect();
        let (n_taken, n_finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let run_tasks = || {
            loop {
                // Large trees first: the last tasks are then short, and all threads finish at about the same time.
                let task = n_tasks.checked_sub(1 + n_taken.fetch_add(1, Ordering::Relaxed));
                let Some(task) = task else { return };
                let (size, fold) = (sizes[task / n_folds], &self.folds[task % n_folds]);
                let result = fold.validate(self.table, self.params, size);
                results[task].set(result).expect("each task is taken once");
                on_fold(1 + n_finished.fetch_add(1, Ordering::Relaxed), n_tasks);
            }
        };
        thread::scope(|scope| {
            for _ in 1..self.threads.get().min(n_tasks) {
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

impl FoldSplit {
    /// Fits a forest on the training rows of the fold. Returns its decisions on the training rows and on the test rows.
    /// Both tables are views: a copy for each thread would take several times the memory of the table.
    fn validate(&self, table: &Table, params: &ModelParams, size: usize) -> Result<FoldDecisions, Error> {
        let (train, test) = (table.without_rows(self.test.clone()), table.with_rows(self.test.clone()));
        let params = params.with_max_samples(MaxSamples::count(size)?);
        let [train, test] = params.fit_and_decide(&train, [&train, &test])?;
        Ok(FoldDecisions::new(&train, &test))
    }
}
