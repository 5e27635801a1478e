//! The choice of the number of rows per tree.
//!
//! The least divergence alone is a poor choice: on calm data it belongs to trees of a few rows, whose decisions are nearly
//! all alike, and the divergences of most sizes differ by less than their error. Of the sizes that cannot be told apart
//! from the best, the choice is therefore the one nearest to the size that suits most data sets.

use crate::forest::MaxSamples;
use crate::models::Trial;

/// Chooses among `trials`: of those that pass the promotion gate and whose mean divergence is within one standard error of
/// the least of them, the one nearest to 256 rows on a logarithmic scale; the smaller of two. Returns its index; `None`
/// if no size passes. `passes` is called with the index of a trial, once at most for each.
///
/// # Errors
/// Those of `passes`.
pub fn choose<E>(
    trials: &[Trial],
    mut passes: impl FnMut(usize) -> Result<bool, E>,
) -> Result<Option<usize>, E> {
    let mut by_divergence: Vec<usize> = (0..trials.len()).collect();
    by_divergence.sort_by(|a, b| trials[*a].mean_quantile_kl().total_cmp(&trials[*b].mean_quantile_kl()));
    let mut candidates = by_divergence.into_iter();
    let least = loop {
        let Some(candidate) = candidates.next() else { return Ok(None) };
        if passes(candidate)? {
            break candidate;
        }
    };
    let limit = trials[least].mean_quantile_kl() + trials[least].quantile_kl_error();
    let mut near: Vec<usize> = candidates
        .filter(|candidate| trials[*candidate].mean_quantile_kl() <= limit)
        .chain([least])
        .collect();
    let distance = |index: usize| (trials[index].max_samples as f64 / MaxSamples::AUTO as f64).ln().abs();
    near.sort_by(|a, b| distance(*a).total_cmp(&distance(*b)).then(a.cmp(b)));
    for candidate in near {
        if candidate == least || passes(candidate)? {
            return Ok(Some(candidate));
        }
    }
    Ok(Some(least))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn trial(max_samples: usize, mean: f64, spread: f64) -> Trial {
        Trial { max_samples, kl: Vec::new(), quantile_kl: vec![mean - spread, mean, mean + spread] }
    }

    /// The chosen size if those in `refused` do not pass.
    fn chosen(trials: &[Trial], refused: &[usize]) -> Option<usize> {
        let mut asked = Vec::new();
        let chosen = choose::<Infallible>(trials, |index| {
            assert!(!asked.contains(&index), "{index} is checked twice");
            asked.push(index);
            Ok(!refused.contains(&trials[index].max_samples))
        });
        chosen.expect("infallible").map(|index| trials[index].max_samples)
    }

    #[test]
    fn takes_the_size_nearest_to_256_within_one_standard_error_of_the_least() {
        // The standard error of the least is 0.01 / sqrt(3) = 0.0058.
        let trials =
            [trial(5, 0.020, 0.01), trial(50, 0.025, 0.5), trial(100, 0.0257, 0.0), trial(1000, 0.0259, 0.0)];
        assert_eq!(chosen(&trials, &[]), Some(100), "1000 is too far from the least");
        assert_eq!(chosen(&trials, &[100]), Some(50));
        assert_eq!(chosen(&trials, &[50, 100]), Some(5), "only the least is left");
        assert_eq!(chosen(&trials, &[5]), Some(100), "the least that passes has the error that counts");
        assert_eq!(chosen(&trials, &[5, 50]), Some(100));
        assert_eq!(chosen(&trials, &[5, 50, 100, 1000]), None);
        assert_eq!(chosen(&[], &[]), None);
    }

    #[test]
    fn distance_is_logarithmic_and_the_smaller_of_two_wins() {
        let equal =
            |sizes: &[usize]| chosen(&sizes.iter().map(|s| trial(*s, 0.1, 0.0)).collect::<Vec<_>>(), &[]);
        assert_eq!(equal(&[5, 100, 1000]), Some(100));
        assert_eq!(equal(&[128, 512]), Some(128));
        assert_eq!(equal(&[5, 2000]), Some(2000));
        assert_eq!(equal(&[5, 256, 300]), Some(256));
    }
}
