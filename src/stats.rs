//! Quantiles and sums, computed as numpy computes them.

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

/// Values up to which [`sum`] adds without a division into two parts.
const SUM_BLOCK: usize = 128;
/// Accumulators of a block.
const SUM_LANES: usize = 8;

/// The sum of `values`: `numpy.sum`, which rounds less than a sum in one accumulator.
pub fn sum(values: &[f64]) -> f64 {
    if values.len() > SUM_BLOCK {
        let half = values.len() / 2;
        let (low, high) = values.split_at(half - half % SUM_LANES);
        return sum(low) + sum(high);
    }
    let (blocks, rest) = values.as_chunks::<SUM_LANES>();
    let Some((first, blocks)) = blocks.split_first() else { return rest.iter().sum() };
    let mut lanes = *first;
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, value)| *lane += value);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    rest.iter().fold(((a + b) + (c + d)) + ((e + f) + (g + h)), |sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values printed by numpy 2.4's `sum`; a sum in one accumulator differs in the last digits.
    #[test]
    fn sums_equal_numpy() {
        for (n, expected) in [
            (0, 0.0),
            (5, 2.0928571428571434),
            (8, 4.2289682539682545),
            (12, 8.351562326562327),
            (100, 498.70708242930726),
            (129, 829.5562249260524),
            (200, 1994.3879565675493),
            (1000, 49955.98746786553),
        ] {
            let values: Vec<f64> = (0..n).map(|i| 0.1 * i as f64 + 1.0 / (i + 3) as f64).collect();
            assert_eq!(sum(&values), expected, "{n}");
        }
    }

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
