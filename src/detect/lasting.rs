//! Deviations that last: seasonal residuals that stay on one side for most of twenty minutes.
//!
//! Half an hour at four sigmas is no alarm by its rows: single rows exceed that every day. Their medians do not, so what
//! lasts is scored by itself, against a threshold of its own.

use super::derived::Lookback;
use super::deviation::{Deviation, DeviationReason};
use super::scorer::tail_score;
use crate::error::InvalidPart;
use serde::{Deserialize, Serialize};

/// Blocks that a median is over, an odd number: a deviation shows once it has lasted for most of them.
const BLOCKS: usize = 5;
/// Lags in a block.
const BLOCK_LAGS: i64 = 4;
/// The most that a row counts in the mean of a block, in sigmas.
const MAX_SIGMAS: f32 = 100.0;

/// The means of the last blocks of rows of each feature.
#[derive(Clone, Debug, PartialEq)]
pub struct LastingDeviations {
    block_ms: i64,
    /// Number of the current block since the epoch; `None` before the first row.
    block: Option<i64>,
    /// Number of rows in the current block.
    n_rows: u32,
    /// Sums of the standardized residuals of the current block, `[n_features]`.
    sums: Box<[f32]>,
    /// Means of the completed blocks, oldest first, `[BLOCKS, n_features]`; 0 for a block without rows.
    means: Box<[f32]>,
    /// The score of the completed blocks.
    score: f64,
}

/// The saved form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedLastingDeviations {
    block: Option<i64>,
    n_rows: u32,
    sums: Vec<f32>,
    means: Vec<f32>,
}

impl LastingDeviations {
    /// A state without rows.
    pub fn new(n_features: usize, lookback: Lookback) -> Self {
        Self {
            block_ms: BLOCK_LAGS * lookback.lag_ms(),
            block: None,
            n_rows: 0,
            sums: vec![0.0; n_features].into(),
            means: vec![0.0; BLOCKS * n_features].into(),
            score: 0.0,
        }
    }

    /// The saved form.
    pub fn state(&self) -> SavedLastingDeviations {
        let Self { block, n_rows, sums, means, .. } = self;
        SavedLastingDeviations { block: *block, n_rows: *n_rows, sums: sums.to_vec(), means: means.to_vec() }
    }

    /// A state that continues.
    ///
    /// # Errors
    /// [`InvalidPart`] for another number of features, or numbers that are not finite.
    pub fn restore(
        n_features: usize,
        lookback: Lookback,
        saved: SavedLastingDeviations,
    ) -> Result<Self, InvalidPart> {
        let SavedLastingDeviations { block, n_rows, sums, means } = saved;
        for (values, expected) in [(&sums, n_features), (&means, BLOCKS * n_features)] {
            if values.len() != expected {
                return Err(InvalidPart::new("number of lasting deviations", values.len(), expected));
            }
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(InvalidPart::new("lasting deviation", value, "finite"));
            }
        }
        let empty = Self::new(n_features, lookback);
        let mut restored = Self { block, n_rows, sums: sums.into(), means: means.into(), ..empty };
        restored.score = tail_score(&restored.deviations());
        Ok(restored)
    }

    /// Adds the standardized seasonal residuals `[n_features]` of the next row. Returns the tail score of what lasts,
    /// which changes at the first row after a block.
    pub fn add(&mut self, timestamp_ms: i64, residuals: impl Iterator<Item = f32>) -> f64 {
        let block = timestamp_ms.div_euclid(self.block_ms);
        let passed = block - self.block.replace(block).unwrap_or(block);
        if passed > 0 {
            self.complete_block();
            (1..passed.min(BLOCKS as i64 + 1)).for_each(|_| self.complete_block());
            self.score = tail_score(&self.deviations());
        }
        self.n_rows += 1;
        for (sum, residual) in self.sums.iter_mut().zip(residuals) {
            *sum += residual.clamp(-MAX_SIGMAS, MAX_SIGMAS);
        }
        self.score
    }

    fn complete_block(&mut self) {
        let n_features = self.sums.len();
        self.means.copy_within(n_features.., 0);
        let newest = &mut self.means[(BLOCKS - 1) * n_features..];
        let n_rows = self.n_rows.max(1) as f32;
        for (mean, sum) in newest.iter_mut().zip(&mut self.sums) {
            *mean = std::mem::take(sum) / n_rows;
        }
        self.n_rows = 0;
    }

    /// The [`deviations`](Self::deviations), the greatest first.
    pub fn strongest(&self) -> Vec<Deviation> {
        let mut deviations = self.deviations();
        deviations.sort_by(|a, b| b.sigmas.total_cmp(&a.sigmas));
        deviations
    }

    /// What lasts of each feature, in the order of the features: the median of the blocks' means, and no more than the
    /// newest one. A deviation that is over, or has changed its side, is 0.
    pub fn deviations(&self) -> Vec<Deviation> {
        let n_features = self.sums.len();
        let deviation = |feature: usize| {
            let mut means: [f32; BLOCKS] =
                std::array::from_fn(|block| self.means[block * n_features + feature]);
            let newest = means[BLOCKS - 1];
            means.sort_unstable_by(f32::total_cmp);
            let median = means[BLOCKS / 2];
            let sigmas = if median * newest > 0.0 { median.abs().min(newest.abs()) } else { 0.0 };
            Deviation { feature, reason: DeviationReason::UnusualForThisHour, sigmas: f64::from(sigmas) }
        };
        (0..n_features).map(deviation).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_MS: i64 = 60_000;

    /// The score after each minute of a feature with these residuals.
    fn scores(residuals: impl Iterator<Item = f32>) -> Vec<f64> {
        let mut lasting = LastingDeviations::new(1, Lookback::new(MINUTE_MS));
        let add = |(minute, residual): (usize, f32)| {
            lasting.add(minute as i64 * MINUTE_MS, std::iter::once(residual))
        };
        residuals.enumerate().map(add).collect()
    }

    #[test]
    fn a_deviation_counts_once_it_lasts_and_until_it_is_over() {
        let found = scores((0..60).map(|minute| if (20..40).contains(&minute) { -4.0 } else { 0.0 }));
        let counted: Vec<usize> = (0..60).filter(|minute| found[*minute] > 0.0).collect();
        assert_eq!(counted, (32..44).collect::<Vec<_>>());
        assert!(counted.iter().all(|minute| found[*minute] == 5f64.ln()));
    }

    #[test]
    fn single_rows_and_changing_sides_do_not_last() {
        assert!(
            scores((0..200).map(|minute| if minute % 20 == 0 { 1e9 } else { 0.0 })).iter().all(|s| *s == 0.0)
        );
        let flapping = scores((0..200).map(|minute| if minute % 8 < 4 { 9.0 } else { -9.0 }));
        assert!(flapping.iter().skip(40).all(|score| *score == 0.0 || *score == 10f64.ln()));
    }

    #[test]
    fn a_gap_counts_as_usual() {
        let mut lasting = LastingDeviations::new(1, Lookback::new(MINUTE_MS));
        let mut add = |minute: i64| lasting.add(minute * MINUTE_MS, std::iter::once(4.0));
        assert!((0..20).map(&mut add).last().expect("rows") > 0.0);
        assert_eq!(add(25), 0.0, "the newest block is without rows");
        assert!(add(28) > 0.0, "one of five is");
        assert_eq!(add(1_000_000_000), 0.0, "more of them than the median is over");
    }
}
