//! Quantiles, computed as numpy computes them.

/// The quantile of `values` at `share`, in `[0, 1]`: `numpy.percentile(values, 100 * share)` with its default,
/// linear interpolation. A share of 0.5 gives the median. Reorders `values`.
///
/// # Panics
/// If `values` is empty or `share` is above 1.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    // The way through percent and the two forms of interpolation round as numpy rounds.
    let position = (values.len() - 1) as f64 * (100.0 * share / 100.0);
    let (below, fraction) = (position as usize, position.fract());
    let (_, &mut low, rest) = values.select_nth_unstable_by(below, f64::total_cmp);
    let high = rest.iter().copied().min_by(f64::total_cmp).unwrap_or(low);
    if fraction < 0.5 { low + (high - low) * fraction } else { high - (high - low) * (1.0 - fraction) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values printed by numpy 2.4's `percentile`.
    #[test]
    fn equals_numpy() {
        let values = [-0.71, -0.4, -0.55, -0.43, -0.47];
        for (share, expected) in [(0.01, -0.703_6), (0.3, -0.534), (0.5, -0.47)] {
            assert_eq!(quantile(&mut values.clone(), share), expected);
        }
        assert_eq!(quantile(&mut [-0.5], 0.2), -0.5);
    }

    #[test]
    fn shares_0_and_1_give_the_extremes() {
        assert_eq!(quantile(&mut [3.0, 1.0, 2.0], 0.0), 1.0);
        assert_eq!(quantile(&mut [3.0, 1.0, 2.0], 1.0), 3.0);
    }
}
