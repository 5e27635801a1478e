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
    /// Weight of the newest row in the mean.
    weight: f64,
    mean: f64,
}

impl ScoreSmoother {
    /// A smoother of rows at this interval, after rows of this mean.
    pub fn new(interval_ms: i64, mean: f64) -> Self {
        let interval_ms = interval_ms as f64;
        Self { weight: 1.0 - FADE.powf(interval_ms / interval_ms.max(FADE_MS)), mean }
    }

    /// The weighted mean of the raw scores so far, at least 0.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Adds the raw score of the next row. Returns the greater of that score and 1.2 times the mean.
    pub fn smooth(&mut self, raw: f64) -> f64 {
        self.mean += self.weight * (raw.max(0.0) - self.mean);
        raw.max(GAIN * self.mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_score_counts_more_than_one_row() {
        let mut smoother = ScoreSmoother::new(60_000, 0.0);
        assert_eq!(smoother.smooth(2.0), 2.0);
        let after_ten = (0..10).map(|_| smoother.smooth(2.0)).last().expect("ten rows");
        assert!((2.3..2.4).contains(&after_ten), "{after_ten}");
        let after_the_end = smoother.smooth(-1.0);
        assert!((1.5..1.6).contains(&after_the_end), "{after_the_end}");
    }

    #[test]
    fn the_mean_fades_by_the_minute_at_any_shorter_interval() {
        let after_an_hour = |interval_ms: i64| {
            let mut smoother = ScoreSmoother::new(interval_ms, 5.0);
            (0..600_000 / interval_ms).for_each(|_| {
                smoother.smooth(0.0);
            });
            smoother.mean()
        };
        assert!((after_an_hour(15_000) - after_an_hour(60_000)).abs() < 1e-12);
    }
}
