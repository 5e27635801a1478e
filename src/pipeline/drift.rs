//! How far the scores of the last day have moved from those of training.

use crate::models::Histogram;
use std::collections::VecDeque;

/// Length of a block in milliseconds, and how many make a day.
const BLOCK_MS: i64 = 3 * 3_600_000;
const BLOCKS: usize = 8;
/// Below this many rows the difference is chance: an hour at 15 s.
const ENOUGH: u64 = 240;

/// The decisions of the last day, in blocks of three hours, so that a group costs little.
#[derive(Clone, Debug, Default)]
pub struct Drift(VecDeque<(i64, Histogram)>);

impl Drift {
    /// Counts the decision of a row.
    pub fn add(&mut self, timestamp_ms: i64, decision: f64) {
        let block = timestamp_ms.div_euclid(BLOCK_MS);
        match self.0.iter_mut().rev().find(|(known, _)| *known == block) {
            Some((_, histogram)) => histogram.add(decision),
            None => {
                let mut histogram = Histogram::default();
                histogram.add(decision);
                self.0.push_back((block, histogram));
                if self.0.len() > BLOCKS {
                    self.0.pop_front();
                }
            }
        }
    }

    /// KL divergence of the last day's decisions from the baseline, in nats; none with too few rows.
    pub fn divergence(&self, baseline: &Histogram) -> Option<f64> {
        let mut day = Histogram::default();
        self.0.iter().for_each(|(_, histogram)| day.merge(histogram));
        (day.total() >= ENOUGH).then(|| baseline.kl_divergence(&day))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_day_against_training() {
        let baseline: Histogram = [0.1, 0.12, 0.14].iter().collect();
        let mut drift = Drift::default();
        for row in 0..239 {
            drift.add(row * 15_000, [0.1, 0.12, 0.14][row as usize % 3]);
        }
        assert_eq!(drift.divergence(&baseline), None, "less than an hour");
        drift.add(239 * 15_000, 0.14);
        let same = drift.divergence(&baseline).expect("an hour");
        assert!(same < 0.001, "{same}");
        for row in 240..10_000 {
            drift.add(row * 15_000, -0.2);
        }
        let other = drift.divergence(&baseline).expect("enough");
        assert!(other > 5.0, "{other}");
        assert_eq!(drift.0.len(), BLOCKS, "older blocks are gone");
    }
}
