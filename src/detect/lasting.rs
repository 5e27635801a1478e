//! Deviations that last: seasonal residuals that stay on one side for most of twenty minutes.
//!
//! Half an hour at four sigmas is no alarm by its rows: single rows exceed that every day. Their medians do not, so what
//! lasts is scored by itself, against a threshold of its own.

use super::derived::Lookback;
use super::deviation::{Deviation, DeviationReason, tail_score, weaker};
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
    /// The features of each mean size.
    mean_sizes: Box<[[usize; 2]]>,
    /// Number of the current block since the epoch; `None` before the first row.
    block: Option<i64>,
    /// Number of rows in the current block, and in each of the completed ones, oldest first.
    n_rows: u32,
    completed: [u32; BLOCKS],
    /// Sums of the standardized residuals of the current block, `[n_columns]`: of each feature and then of
    /// each mean size.
    sums: Box<[f32]>,
    /// Means of the completed blocks, oldest first, `[BLOCKS, n_columns]`; 0 for a block without rows.
    means: Box<[f32]>,
    /// The score of the completed blocks; `None` where too few of them have rows.
    score: Option<f64>,
}

/// The saved form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedLastingDeviations {
    block: Option<i64>,
    n_rows: u32,
    completed: [u32; BLOCKS],
    sums: Vec<f32>,
    means: Vec<f32>,
}

impl LastingDeviations {
    /// A state without rows, of features and of the mean sizes of these pairs of them.
    pub fn new(n_features: usize, mean_sizes: Box<[[usize; 2]]>, lookback: Lookback) -> Self {
        let n_columns = n_features + mean_sizes.len();
        Self {
            mean_sizes,
            block_ms: BLOCK_LAGS * lookback.lag_ms(),
            block: None,
            n_rows: 0,
            completed: [0; BLOCKS],
            sums: vec![0.0; n_columns].into(),
            means: vec![0.0; BLOCKS * n_columns].into(),
            score: None,
        }
    }

    /// The saved form.
    pub fn state(&self) -> SavedLastingDeviations {
        let Self { block, n_rows, completed, sums, means, .. } = self;
        SavedLastingDeviations {
            block: *block,
            n_rows: *n_rows,
            completed: *completed,
            sums: sums.to_vec(),
            means: means.to_vec(),
        }
    }

    /// The state that continues from a saved one.
    ///
    /// # Errors
    /// [`InvalidPart`] for another number of columns, numbers that are not finite, or a block out of the range of times.
    pub fn restored(self, saved: SavedLastingDeviations) -> Result<Self, InvalidPart> {
        let SavedLastingDeviations { block, n_rows, completed, sums, means } = saved;
        if let Some(block) = block.filter(|block| !(0..=i64::MAX / 4).contains(block)) {
            let limit = format_args!("in 0..={}", i64::MAX / 4);
            return Err(InvalidPart::new("block of lasting deviations", block, limit));
        }
        for (values, expected) in [(&sums, self.sums.len()), (&means, self.means.len())] {
            if values.len() != expected {
                return Err(InvalidPart::new("number of lasting deviations", values.len(), expected));
            }
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(InvalidPart::new("lasting deviation", value, "finite"));
            }
        }
        let mut restored = Self { block, n_rows, completed, sums: sums.into(), means: means.into(), ..self };
        restored.score = restored.score_blocks();
        Ok(restored)
    }

    /// Adds the standardized seasonal residuals `[n_features]` of the next row. Returns the tail score of what lasts,
    /// which changes at the first row after a block. It is `None`, unknown, after a gap, until most blocks have rows again.
    pub fn add(&mut self, timestamp_ms: i64, residuals: impl Iterator<Item = f32>) -> Option<f64> {
        let block = timestamp_ms.div_euclid(self.block_ms);
        let passed = block - self.block.replace(block).unwrap_or(block);
        if passed > 0 {
            self.complete_block();
            (1..passed.min(BLOCKS as i64 + 1)).for_each(|_| self.complete_block());
            self.score = self.score_blocks();
        }
        self.n_rows = self.n_rows.saturating_add(1);
        for (sum, residual) in self.sums.iter_mut().zip(residuals) {
            *sum += residual.clamp(-MAX_SIGMAS, MAX_SIGMAS);
        }
        self.score
    }

    fn complete_block(&mut self) {
        let n_columns = self.sums.len();
        self.means.copy_within(n_columns.., 0);
        let newest = &mut self.means[(BLOCKS - 1) * n_columns..];
        let n_rows = self.n_rows.max(1) as f32;
        for (mean, sum) in newest.iter_mut().zip(&mut self.sums) {
            *mean = std::mem::take(sum) / n_rows;
        }
        self.completed.rotate_left(1);
        self.completed[BLOCKS - 1] = std::mem::take(&mut self.n_rows);
    }

    fn score_blocks(&self) -> Option<f64> {
        let n_known = self.completed.iter().filter(|n_rows| **n_rows > 0).count();
        let is_known = n_known > BLOCKS / 2 && self.completed[BLOCKS - 1] > 0;
        is_known.then(|| tail_score(&self.deviations()))
    }

    /// The [`deviations`](Self::deviations), the greatest first.
    pub fn strongest(&self) -> Vec<Deviation> {
        let mut deviations = self.deviations();
        deviations.sort_by(|a, b| b.sigmas.total_cmp(&a.sigmas));
        deviations
    }

    /// The lasting deviation of each feature, in their order: the median of the blocks' means, and no more than the newest
    /// one. A deviation that is over, or has changed its side, is 0.
    pub fn deviations(&self) -> Vec<Deviation> {
        let n_columns = self.sums.len();
        let n_features = n_columns - self.mean_sizes.len();
        let lasting = |column: usize| {
            let mut means: [f32; BLOCKS] =
                std::array::from_fn(|block| self.means[block * n_columns + column]);
            let newest = means[BLOCKS - 1];
            means.sort_unstable_by(f32::total_cmp);
            let median = means[BLOCKS / 2];
            f64::from(weaker(median, newest).abs())
        };
        let deviation = |feature| Deviation {
            feature,
            reason: DeviationReason::UnusualForThisHour,
            sigmas: lasting(feature),
        };
        let mut deviations: Vec<Deviation> = (0..n_features).map(deviation).collect();
        for (number, [bytes, packets]) in self.mean_sizes.iter().enumerate() {
            let sigmas = lasting(n_features + number);
            let is_of_packets = deviations[*packets].sigmas > deviations[*bytes].sigmas;
            let feature = if is_of_packets { *packets } else { *bytes };
            if sigmas > deviations[feature].sigmas {
                deviations[feature] =
                    Deviation { feature, reason: DeviationReason::OfUnusualPacketSize, sigmas };
            }
        }
        deviations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_MS: i64 = 60_000;

    /// The score after each minute of a feature with these residuals, 0 while it is unknown.
    fn scores(residuals: impl Iterator<Item = f32>) -> Vec<f64> {
        let mut lasting = LastingDeviations::new(1, [].into(), Lookback::new(MINUTE_MS));
        let add = |(minute, residual): (usize, f32)| {
            lasting.add(minute as i64 * MINUTE_MS, std::iter::once(residual)).unwrap_or_default()
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
    fn what_lasts_is_unknown_until_most_blocks_have_rows() {
        let mut lasting = LastingDeviations::new(1, [].into(), Lookback::new(MINUTE_MS));
        let mut add = |minute: i64| lasting.add(minute * MINUTE_MS, std::iter::once(4.0));
        let scores: Vec<Option<f64>> = (0..40).map(&mut add).collect();
        assert_eq!(scores.iter().position(Option::is_some), Some(12), "three of five blocks");
        assert_eq!(add(46), None, "the newest block has no rows");
        assert_eq!(add(48), Some(5f64.ln()), "one of five has none");
        let known: Vec<i64> =
            (1_000_000_000..1_000_000_020).filter(|minute| add(*minute).is_some()).collect();
        assert_eq!(known.first(), Some(&1_000_000_012), "all are new");
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let mut lasting = LastingDeviations::new(1, [].into(), Lookback::new(MINUTE_MS));
        lasting.add(MINUTE_MS, std::iter::once(4.0));
        let empty = LastingDeviations::new(1, [].into(), Lookback::new(MINUTE_MS));
        let restored = |saved| empty.clone().restored(saved);
        assert_eq!(restored(lasting.state()).as_ref(), Ok(&lasting));
        for damaged in [
            SavedLastingDeviations { block: Some(i64::MIN), ..lasting.state() },
            SavedLastingDeviations { sums: vec![], ..lasting.state() },
            SavedLastingDeviations { means: vec![f32::NAN; BLOCKS], ..lasting.state() },
        ] {
            assert!(restored(damaged).is_err());
        }
    }
}
