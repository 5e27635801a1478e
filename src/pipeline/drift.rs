//! Drift of the last day's scores from those of training.

use crate::models::DecisionHistogram;
use std::collections::VecDeque;

/// Length of a block in milliseconds, and the number of blocks in a day.
const BLOCK_MS: i64 = 3 * 3_600_000;
const BLOCKS: usize = 8;
/// Fewer rows differ by chance: an hour at 15 s.
const MIN_ROWS: u64 = 240;

/// The decisions of the last day in blocks of three hours, which bounds the memory of a group.
#[derive(Clone, Debug, Default)]
pub struct DriftMonitor(VecDeque<(i64, DecisionHistogram)>);

impl DriftMonitor {
    /// Counts the decision of a row.
    pub fn add(&mut self, timestamp_ms: i64, decision: f64) {
        let block = timestamp_ms.div_euclid(BLOCK_MS);
        match self.0.iter_mut().rev().find(|(existing, _)| *existing == block) {
            Some((_, histogram)) => histogram.add(decision),
            None => {
                let mut histogram = DecisionHistogram::default();
                histogram.add(decision);
                self.0.push_back((block, histogram));
                if self.0.len() > BLOCKS {
                    self.0.pop_front();
                }
            }
        }
    }

    /// KL divergence of the last day's decisions from the baseline, in nats; `None` with too few rows.
    pub fn divergence(&self, baseline: &DecisionHistogram) -> Option<f64> {
        let mut day = DecisionHistogram::default();
        self.0.iter().for_each(|(_, histogram)| day.merge(histogram));
        (day.total() >= MIN_ROWS).then(|| baseline.kl_divergence(&day))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_of_the_last_day_needs_an_hour_of_rows() {
        let baseline: DecisionHistogram = [0.1, 0.12, 0.14].iter().collect();
        let mut drift = DriftMonitor::default();
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
