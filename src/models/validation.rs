//! Cross-validation results and divergences of decisions.
//!
//! The decisions of the training rows and of the held-out rows give two histograms. Their Kullback-Leibler divergence
//! is small for a forest that generalises and large for one that overfits. The same measure detects drift: decisions of
//! the last day against decisions of training.
//!
//! There are two divergences. [`DecisionHistogram::kl_divergence`] has bins of equal width over all decisions; a single
//! row in a bin that the other histogram lacks adds much to it, and decisions that are all alike have the least of it.
//! [`quantile_divergence`] has bins that hold equal shares of the training rows, so that it compares the distributions
//! where their rows are.

use crate::stats::{quantile, sum};
use crate::time::{DAY_MS, median_interval_ms};
use crate::window::Score;
use serde::{Deserialize, Serialize};

/// Bins of a histogram, of equal width over [-1, 1], where decisions lie.
pub const N_BINS: usize = 200;

/// In place of a count of 0, so that an empty bin of the test rows does not make the divergence infinite.
const EMPTY_COUNT: f64 = 1e-6;

/// Shares of the training decisions below the cuts of [`quantile_divergence`]. Decisions of anomalies are the lowest.
const CUT_SHARES: [f64; 11] = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// Added to each count of [`quantile_divergence`].
const COUNT_OFFSET: f64 = 0.5;

/// Counts of decisions in [`N_BINS`] bins over [-1, 1], as `numpy.histogram` counts them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u64>", into = "Vec<u64>")]
pub struct DecisionHistogram(Box<[u32; N_BINS]>);

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
        let mut histogram = Self::default();
        histogram.0.iter_mut().zip(counts).for_each(|(bin, count)| *bin = count as u32);
        Ok(histogram)
    }
}

impl From<DecisionHistogram> for Vec<u64> {
    fn from(histogram: DecisionHistogram) -> Self {
        histogram.0.map(u64::from).into()
    }
}

impl Default for DecisionHistogram {
    fn default() -> Self {
        Self(Box::new([0; N_BINS]))
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
        self.0.iter_mut().zip(other.0.iter()).for_each(|(count, more)| *count += more);
    }

    /// Decisions counted.
    pub fn total(&self) -> u64 {
        self.0.iter().copied().map(u64::from).sum()
    }

    /// Share of decisions below 0 (anomalous rows), in [0, 1]; 0 without decisions.
    pub fn alert_rate(&self) -> f64 {
        let anomalous: u64 = self.0[..N_BINS / 2].iter().copied().map(u64::from).sum();
        anomalous as f64 / self.total().max(1) as f64
    }

    /// Density in each bin, as `numpy.histogram(..., density=True)`; zeros without decisions.
    pub fn density(&self) -> Vec<f64> {
        let total = self.total().max(1) as f64;
        let density = |(bin, count): (usize, &u32)| f64::from(*count) / (edge(bin + 1) - edge(bin)) / total;
        self.0.iter().enumerate().map(density).collect()
    }

    /// Kullback-Leibler divergence of this from `other`, in nats: `scipy.stats.entropy` of the counts, with 1e-6 in place
    /// of each 0 of `other`. 0 if this counted no decision.
    pub fn kl_divergence(&self, other: &Self) -> f64 {
        let present = |count: &u32| if *count == 0 { EMPTY_COUNT } else { f64::from(*count) };
        let train: Vec<f64> = self.0.iter().copied().map(f64::from).collect();
        let test: Vec<f64> = other.0.iter().map(present).collect();
        entropy(&train, &test)
    }
}

/// Kullback-Leibler divergence of `p` from `q`, in nats, after both are scaled to the sum 1: `scipy.stats.entropy(p, q)`.
/// Values of `q` are above 0.
fn entropy(p: &[f64], q: &[f64]) -> f64 {
    let (p_sum, q_sum) = (sum(p), sum(q));
    let term = |(p, q): (&f64, &f64)| match (p / p_sum, q / q_sum) {
        _ if *p == 0.0 => 0.0,
        // Where p and q are close, their ratio has few digits.
        (p, q) if p < 2.0 * q && q < 2.0 * p => p * ((p - q) / q).ln_1p(),
        (p, q) => p * (p / q).ln(),
    };
    sum(&p.iter().zip(q).map(term).collect::<Vec<_>>())
}

/// Kullback-Leibler divergence of the decisions of training rows from those of test rows, in nats, over bins that are cut
/// at quantiles of the training rows, with 0.5 added to each count.
///
/// # Panics
/// If there are no training rows.
pub fn quantile_divergence(train: &[f64], test: &[f64]) -> f64 {
    let mut buffer = train.to_vec();
    let cuts = CUT_SHARES.map(|share| quantile(&mut buffer, share));
    let count = |decisions: &[f64]| {
        let mut counts = [COUNT_OFFSET; CUT_SHARES.len() + 1];
        for decision in decisions {
            counts[cuts.partition_point(|cut| cut <= decision)] += 1.0;
        }
        counts
    };
    entropy(&count(train), &count(test))
}

/// Lower edge of a bin, as `numpy.linspace` gives it.
fn edge(bin: usize) -> f64 {
    if bin == N_BINS { 1.0 } else { bin as f64 * (2.0 / N_BINS as f64) - 1.0 }
}

/// The validation of one size of the sweep.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Rows per tree.
    pub max_samples: usize,
    /// Divergence of the decisions of test rows from those of training rows over bins of equal width, per fold in the
    /// order of time.
    pub kl: Vec<f64>,
    /// The same over bins at quantiles of the training rows.
    #[serde(default)]
    pub quantile_kl: Vec<f64>,
}

impl Trial {
    /// Mean of [`kl`](Self::kl).
    pub fn mean_kl(&self) -> f64 {
        mean(&self.kl)
    }

    /// Mean of [`quantile_kl`](Self::quantile_kl).
    pub fn mean_quantile_kl(&self) -> f64 {
        mean(&self.quantile_kl)
    }

    /// Standard error of [`mean_quantile_kl`](Self::mean_quantile_kl); 0 for fewer than two folds.
    pub fn quantile_kl_error(&self) -> f64 {
        let (n_folds, mean) = (self.quantile_kl.len() as f64, self.mean_quantile_kl());
        let squares: f64 = self.quantile_kl.iter().map(|kl| (kl - mean).powi(2)).sum();
        if n_folds < 2.0 { 0.0 } else { (squares / (n_folds - 1.0) / n_folds).sqrt() }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The alerts of a model on rows that it was not fitted on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Share of the rows with a score above 1, in [0, 1].
    pub alert_rate: f64,
    /// Incidents per day, where less than a day counts as one; `None` for a model without incidents.
    #[serde(default)]
    pub incidents_per_day: Option<f64>,
    /// True if the forest has one decision for all rows of a fold, fitted and held out, in every fold.
    #[serde(default)]
    pub is_constant: bool,
}

impl HeldOut {
    /// The alerts of scores in the order of time, with timestamps in milliseconds.
    pub fn from_scores(scores: &[(i64, Score)]) -> Self {
        let is_incident = |score: &Score| score.incident_state.is_some_and(|state| state.is_incident);
        let (mut above, mut incidents, mut was_incident) = (0, 0, false);
        for (_, score) in scores {
            above += usize::from(score.score > 1.0);
            incidents += usize::from(is_incident(score) && !was_incident);
            was_incident = is_incident(score);
        }
        let interval_ms = median_interval_ms(scores.iter().map(|(timestamp_ms, _)| *timestamp_ms));
        let days = scores.len() as f64 * interval_ms.unwrap_or_default() as f64 / DAY_MS as f64;
        let has_incidents = scores.iter().any(|(_, score)| score.incident_state.is_some());
        Self {
            alert_rate: above as f64 / scores.len().max(1) as f64,
            incidents_per_day: has_incidents.then(|| incidents as f64 / days.max(1.0)),
            is_constant: false,
        }
    }
}

/// k-fold cross-validation of every size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CrossValidation {
    /// All sizes, ascending.
    pub trials: Vec<Trial>,
    /// Index of the chosen size.
    pub chosen: usize,
    /// The alerts of the chosen size.
    #[serde(flatten)]
    pub held_out: HeldOut,
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
    use crate::window::IncidentState;

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

    /// Bins and their counts; the other bins are empty.
    type Counts = &'static [(usize, u32)];

    /// A histogram with these counts.
    fn histogram(counts: Counts) -> DecisionHistogram {
        let mut histogram = DecisionHistogram::default();
        counts.iter().for_each(|(bin, count)| histogram.0[*bin] = *count);
        histogram
    }

    fn assert_close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-12, "{found} is not {expected}");
    }

    /// scipy 1.17's `entropy(train, where(test == 0, 1e-6, test))`.
    #[test]
    fn the_divergence_of_histograms_equals_scipy() {
        let train: Counts = &[(100, 800), (101, 150), (90, 50)];
        let golden: [(Counts, Counts, f64); 6] = [
            (train, &[(100, 200), (101, 40), (90, 10)], 0.001_477_187_394_764_073_5),
            (train, &[(100, 210), (101, 40)], 0.768_349_842_607_131_5),
            (&[(110, 5)], &[(111, 5)], 15.424_988_269_606_375),
            (
                &[(95, 1), (96, 2), (97, 3), (98, 4)],
                &[(95, 4), (96, 3), (97, 2), (98, 1)],
                0.456_454_418_954_706_5,
            ),
            (&[(150, 23_040)], &[(150, 5760)], 3.454_861_079_172_097_6e-8),
            (&[(0, 3), (199, 1)], &[(1, 7), (199, 2)], 11.823_257_555_808_633),
        ];
        for (train, test, expected) in golden {
            assert_close(histogram(train).kl_divergence(&histogram(test)), expected);
        }
        assert_eq!(DecisionHistogram::default().kl_divergence(&histogram(train)), 0.0);
    }

    /// Reproducible numbers in [0, 1): an MMIX linear congruence (Knuth).
    fn uniform(n: usize, seed: u64) -> Vec<f64> {
        let next = |state: &mut u64, _| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Some((*state >> 11) as f64 / (1u64 << 53) as f64)
        };
        (0..n).scan(seed, next).collect()
    }

    /// `numpy.histogram`, `numpy.quantile` and `scipy.stats.entropy` of the same decisions.
    #[test]
    fn the_divergences_of_decisions_equal_numpy_and_scipy() {
        let train: Vec<f64> = uniform(400, 1).iter().map(|x| 0.3 * x - 0.05).collect();
        let test: Vec<f64> = uniform(100, 2).iter().map(|x| 0.28 * x - 0.07).collect();
        let histogram = |decisions: &[f64]| decisions.iter().collect::<DecisionHistogram>();
        assert_close(histogram(&train).kl_divergence(&histogram(&test)), 2.622_634_436_807_033);
        assert_close(quantile_divergence(&train, &test), 0.361_916_457_747_107_5);
        assert_close(quantile_divergence(&train, &train[..100]), 0.026_772_599_238_524_604);
        let equal = [0.1; 50];
        assert_close(quantile_divergence(&equal, &equal[..9]), 0.189_295_254_163_103_05);
        assert_close(quantile_divergence(&equal, &[-0.1; 9]), 2.818_258_628_418_853_6);
    }

    #[test]
    fn the_standard_error_is_that_of_a_mean() {
        let trial = Trial { quantile_kl: vec![0.1, 0.2, 0.3, 0.2, 0.2], ..Trial::default() };
        assert_close(trial.mean_quantile_kl(), 0.2);
        // numpy.std([.1, .2, .3, .2, .2], ddof=1) / numpy.sqrt(5)
        assert_close(trial.quantile_kl_error(), 0.031_622_776_601_683_79);
    }

    #[test]
    fn held_out_rows_count_by_their_time() {
        let score = |(minute, score, incident): (i64, f64, bool)| {
            let incident_state = Some(IncidentState { threshold: 2.0, is_incident: incident });
            (minute * 60_000, Score { decision: 0.0, score, incident_state })
        };
        let rows = [(0, 0.5, false), (1, 1.2, true), (2, 0.9, true), (3, 0.2, false), (4, 1.1, true)];
        let scores: Vec<(i64, Score)> = rows.map(score).into();
        let held_out = HeldOut::from_scores(&scores);
        assert_eq!((held_out.alert_rate, held_out.incidents_per_day), (0.4, Some(2.0)), "less than a day");
        let days: Vec<(i64, Score)> =
            (0..4 * 1440).map(|minute| score((minute, 1.0, minute % 720 == 0))).collect();
        let held_out = HeldOut::from_scores(&days);
        assert_eq!((held_out.alert_rate, held_out.incidents_per_day), (0.0, Some(2.0)));
        assert_eq!(HeldOut::from_scores(&[]), HeldOut::default());
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
