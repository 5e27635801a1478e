//! Cross-validation results and histograms of decisions.
//!
//! The decisions of the training rows and of the held-out rows give two histograms. Their Kullback-Leibler divergence
//! is small for a forest that generalises and large for one that overfits. The same measure detects drift: decisions of
//! the last day against decisions of training.

use serde::{Deserialize, Serialize};

/// Bins of a histogram, of equal width over [-1, 1], where decisions lie.
pub const N_BINS: usize = 200;

/// Added to every density, so that an empty bin of the test rows does not make the divergence infinite.
const DENSITY_EPSILON: f64 = 1e-6;

/// Counts of decisions in [`N_BINS`] bins over [-1, 1], as `numpy.histogram` counts them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u64>", into = "Vec<u64>")]
pub struct DecisionHistogram(Vec<u64>);

/// Reasons to reject a list of counts.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum InvalidDecisionHistogram {
    /// Another number of bins.
    #[error("a histogram has {0} bins, must be {N_BINS}")]
    Bins(usize),
    /// The counts exceed the largest number of rows.
    #[error("the counts of a histogram add up to more than {}", u32::MAX)]
    Counts,
}

impl TryFrom<Vec<u64>> for DecisionHistogram {
    type Error = InvalidDecisionHistogram;

    fn try_from(counts: Vec<u64>) -> Result<Self, InvalidDecisionHistogram> {
        if counts.len() != N_BINS {
            return Err(InvalidDecisionHistogram::Bins(counts.len()));
        }
        let total = counts.iter().try_fold(0_u64, |sum, count| sum.checked_add(*count));
        if total.is_none_or(|total| total > u64::from(u32::MAX)) {
            return Err(InvalidDecisionHistogram::Counts);
        }
        Ok(Self(counts))
    }
}

impl From<DecisionHistogram> for Vec<u64> {
    fn from(histogram: DecisionHistogram) -> Self {
        histogram.0
    }
}

impl Default for DecisionHistogram {
    fn default() -> Self {
        Self(vec![0; N_BINS])
    }
}

impl<'a> FromIterator<&'a f64> for DecisionHistogram {
    fn from_iter<I: IntoIterator<Item = &'a f64>>(decisions: I) -> Self {
        let mut histogram = Self::default();
        decisions.into_iter().for_each(|decision| histogram.add(*decision));
        histogram
    }
}

impl DecisionHistogram {
    /// Counts a decision. Values outside of [-1, 1] and NaN are ignored.
    pub fn add(&mut self, decision: f64) {
        if !(-1.0..=1.0).contains(&decision) {
            return;
        }
        let mut bin = ((decision + 1.0) / 2.0 * N_BINS as f64) as usize;
        bin = bin.min(N_BINS - 1);
        // The quotient may round across an edge.
        if decision < edge(bin) {
            bin -= 1;
        } else if bin + 1 < N_BINS && decision >= edge(bin + 1) {
            bin += 1;
        }
        self.0[bin] += 1;
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(count, more)| *count += more);
    }

    /// Decisions counted.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Share of decisions below 0 (anomalous rows), in [0, 1]; 0 without decisions.
    pub fn alert_rate(&self) -> f64 {
        let anomalous: u64 = self.0[..N_BINS / 2].iter().sum();
        anomalous as f64 / self.total().max(1) as f64
    }

    /// Density in each bin, as `numpy.histogram(..., density=True)`; zeros without decisions.
    pub fn density(&self) -> Vec<f64> {
        let total = self.total().max(1) as f64;
        let density = |(bin, count): (usize, &u64)| *count as f64 / (edge(bin + 1) - edge(bin)) / total;
        self.0.iter().enumerate().map(density).collect()
    }

    /// Kullback-Leibler divergence of this from `other`, in nats: `scipy.stats.entropy(p, q)` of the
    /// densities, 1e-6 added to each.
    pub fn kl_divergence(&self, other: &Self) -> f64 {
        let smoothed = |histogram: &Self| -> Vec<f64> {
            let densities: Vec<f64> =
                histogram.density().iter().map(|density| density + DENSITY_EPSILON).collect();
            let sum: f64 = densities.iter().sum();
            densities.iter().map(|density| density / sum).collect()
        };
        let (p, q) = (smoothed(self), smoothed(other));
        p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum()
    }
}

/// Lower edge of a bin, as `numpy.linspace` gives it.
fn edge(bin: usize) -> f64 {
    if bin == N_BINS { 1.0 } else { bin as f64 * (2.0 / N_BINS as f64) - 1.0 }
}

/// The validation of one size of the sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Rows per tree.
    pub max_samples: usize,
    /// Divergence of the decisions of test rows from those of training rows, per fold in the order of time.
    pub kl: Vec<f64>,
}

impl Trial {
    /// Mean over the folds.
    pub fn mean_kl(&self) -> f64 {
        self.kl.iter().sum::<f64>() / self.kl.len().max(1) as f64
    }
}

/// k-fold cross-validation of every size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CrossValidation {
    /// All sizes, ascending.
    pub trials: Vec<Trial>,
    /// Index of the chosen size.
    pub chosen: usize,
    /// Share of held-out rows with a negative decision, in [0, 1].
    pub alert_rate: f64,
}

impl CrossValidation {
    /// The chosen size.
    pub fn best(&self) -> &Trial {
        &self.trials[self.chosen]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_by_their_edges() {
        let mut histogram = DecisionHistogram::default();
        for decision in [-1.0, -0.99, 0.0, 0.07, 0.29, 1.0, 1.1, f64::NAN] {
            histogram.add(decision);
        }
        let bins: Vec<usize> = (0..N_BINS).filter(|bin| histogram.0[*bin] > 0).collect();
        // numpy.histogram([-1, -.99, 0, .07, .29, 1], bins=200, range=(-1, 1))[0].nonzero(), numpy 2.4.6
        assert_eq!(bins, [0, 1, 100, 106, 128, 199]);
        assert_eq!(histogram.total(), 6);
        assert_eq!(histogram.alert_rate(), 2.0 / 6.0);
    }

    #[test]
    fn rejects_other_lists() {
        assert_eq!(DecisionHistogram::try_from(vec![0; 3]), Err(InvalidDecisionHistogram::Bins(3)));
        assert_eq!(
            DecisionHistogram::try_from(vec![u64::MAX; N_BINS]),
            Err(InvalidDecisionHistogram::Counts)
        );
    }
}
