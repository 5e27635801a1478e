//! Smooths raw scores: a deviation that lasts counts as much as one that is a fifth stronger.

/// Factor by which a mean of one minute fades.
const FADE: f64 = 0.65;
/// Time in which the mean fades by that factor, for rows at shorter intervals.
const FADE_MS: f64 = 60_000.0;
/// Weight of the mean against a single row.
const GAIN: f64 = 1.2;

/// An exponentially weighted mean of the raw scores of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreSmoother {
    interval_ms: i64,
    /// Weight of the newest row in the mean.
    weight: f64,
    mean: f64,
    /// Timestamp of the newest row.
    newest_ms: Option<i64>,
}

impl ScoreSmoother {
    /// A smoother of rows at this interval, without rows.
    pub fn new(interval_ms: i64) -> Self {
        Self::restore(interval_ms, 0.0, None)
    }

    /// A smoother after rows of this mean.
    pub fn restore(interval_ms: i64, mean: f64, newest_ms: Option<i64>) -> Self {
        let interval = interval_ms as f64;
        let weight = 1.0 - FADE.powf(interval / interval.max(FADE_MS));
        Self { interval_ms, weight, mean, newest_ms }
    }

    /// The weighted mean of the raw scores so far, at least 0.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Adds the raw score of the next row. Returns the greater of that score and 1.2 times the mean. The mean fades over
    /// missing rows too.
    pub fn smooth(&mut self, timestamp_ms: i64, raw: f64) -> f64 {
        let passed_ms = timestamp_ms.saturating_sub(self.newest_ms.unwrap_or(timestamp_ms));
        let n_missing = passed_ms.saturating_add(self.interval_ms / 2) / self.interval_ms - 1;
        if n_missing > 0 {
            self.mean *= (1.0 - self.weight).powf(n_missing as f64);
        }
        self.newest_ms = Some(timestamp_ms);
        self.mean += self.weight * (raw.max(0.0) - self.mean);
        raw.max(GAIN * self.mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_score_counts_more_than_one_row() {
        let mut smoother = ScoreSmoother::new(60_000);
        assert_eq!(smoother.smooth(0, 2.0), 2.0);
        let after_ten = (1..11).map(|i| smoother.smooth(i * 60_000, 2.0)).last().expect("ten rows");
        assert!((2.3..2.4).contains(&after_ten), "{after_ten}");
        let after_the_end = smoother.smooth(11 * 60_000, -1.0);
        assert!((1.5..1.6).contains(&after_the_end), "{after_the_end}");
    }

    #[test]
    fn the_mean_fades_by_the_minute_at_any_shorter_interval_and_over_gaps() {
        let mean_after_ten_minutes = |interval_ms: i64, gap_ms: i64| {
            let mut smoother = ScoreSmoother::restore(interval_ms, 5.0, Some(0));
            let mut timestamp_ms = gap_ms;
            while timestamp_ms <= 600_000 {
                smoother.smooth(timestamp_ms, 0.0);
                timestamp_ms += interval_ms;
            }
            smoother.mean()
        };
        let expected = mean_after_ten_minutes(60_000, 60_000);
        for (interval_ms, gap_ms) in [(15_000, 15_000), (15_000, 300_000), (60_000, 600_000)] {
            assert!((mean_after_ten_minutes(interval_ms, gap_ms) - expected).abs() < 1e-12);
        }
    }
}
