//! Quantiles as numpy has them.

/// The value below which the share `share`, in `[0, 1]`, of `values` lies, as `numpy.percentile` with
/// its default, linear, interpolation: with `n` values, `place = share * (n - 1)` of the sorted ones, and
/// between two of them in proportion. 0.5 gives the median. Reorders `values`.
///
/// # Panics
/// If `values` is empty or the share above 1.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    // By way of percent and with numpy's two forms of interpolation, to round as it does.
    let position = (values.len() - 1) as f64 * (100.0 * share / 100.0);
    let (below, fraction) = (position as usize, position.fract());
    let (_, &mut low, rest) = values.select_nth_unstable_by(below, f64::total_cmp);
    let high = rest.iter().copied().min_by(f64::total_cmp).unwrap_or(low);
    if fraction < 0.5 { low + (high - low) * fraction } else { high - (high - low) * (1.0 - fraction) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by numpy 2.4's `percentile`.
    #[test]
    fn is_numpys() {
        let values = [-0.71, -0.4, -0.55, -0.43, -0.47];
        for (share, expected) in [(0.01, -0.703_6), (0.3, -0.534), (0.5, -0.47)] {
            assert_eq!(quantile(&mut values.clone(), share), expected);
        }
        assert_eq!(quantile(&mut [-0.5], 0.2), -0.5);
    }

    #[test]
    fn the_ends_are_the_extremes() {
        assert_eq!(quantile(&mut [3.0, 1.0, 2.0], 0.0), 1.0);
        assert_eq!(quantile(&mut [3.0, 1.0, 2.0], 1.0), 3.0);
    }
}
