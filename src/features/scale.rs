//! Robust scaling: expresses a column in units of its usual deviation in training.
//!
//! The centre is the median, and sigma is a quantile of the distances from it. Not taken: mean and standard deviation,
//! which incidents in the training history dominate; the median absolute deviation, which is near 0 for metrics that
//! are constant most of the time, so that ordinary bursts would look like incidents. Hence the 99 % quantile.

use super::Error;
use crate::error::InvalidPart;
use crate::forest::Column;
use crate::stats::quantile;

/// The share of distances that count as usual.
const SIGMA_QUANTILE: f64 = 0.99;

/// The same quantile of a normal distribution, in standard deviations. Sigma of normal values is their standard
/// deviation.
pub const SIGMA_QUANTILE_IN_SIGMAS: f64 = 2.576;

/// Least sigma, as a share of the metric's range.
const MIN_SIGMA_SHARE: f64 = 0.01;

/// The least sigma of a metric's columns, above 0: 1 % of the metric's range in training, or, for a constant metric,
/// 1 % of its magnitude, which counts as at least 1.
///
/// `metric` holds the values that all of its columns are derived from. The range of a difference is not a measure of
/// the metric's scale.
///
/// # Errors
/// [`Error::NoValues`] without values, [`Error::NotFinite`] for NaN and infinities.
pub fn min_sigma(metric: Column<'_>) -> Result<f64, Error> {
    check_values(metric.iter())?;
    let ends = (f32::INFINITY, f32::NEG_INFINITY);
    let (least, greatest) = metric.iter().fold(ends, |(low, high), v| (low.min(v), high.max(v)));
    let range = f64::from(greatest) - f64::from(least);
    Ok(MIN_SIGMA_SHARE * if range > 0.0 { range } else { f64::from(greatest).abs().max(1.0) })
}

/// Centre and usual deviation of one column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RobustScale {
    center: f64,
    sigma: f64,
}

impl RobustScale {
    /// Fits a training column, shape `[n_rows]`. The center is the median. Sigma is the 99 % quantile of the distances
    /// from it, divided by 2.576, and at least `min_sigma` (see [`min_sigma()`]). Quantiles are those of [`quantile`].
    ///
    /// # Errors
    /// [`Error::NoValues`], [`Error::NotFinite`], and [`Error::InvalidPart`] unless `min_sigma` is finite and above 0.
    pub fn fit(column: &[f32], min_sigma: f64) -> Result<Self, Error> {
        check_values(column.iter().copied())?;
        let mut values: Vec<f64> = column.iter().map(|value| f64::from(*value)).collect();
        let center = quantile(&mut values, 0.5);
        for value in &mut values {
            *value = (*value - center).abs();
        }
        Self::new(center, min_sigma).map(|scale| Self {
            sigma: scale.sigma.max(quantile(&mut values, SIGMA_QUANTILE) / SIGMA_QUANTILE_IN_SIGMAS),
            ..scale
        })
    }

    /// A scale from a file.
    ///
    /// # Errors
    /// [`Error::InvalidPart`] unless `center` is finite, and `sigma` finite and above 0.
    pub fn new(center: f64, sigma: f64) -> Result<Self, Error> {
        if !center.is_finite() {
            return Err(InvalidPart::new("center", center, "finite").into());
        }
        if !(sigma > 0.0 && sigma.is_finite()) {
            return Err(InvalidPart::new("sigma", sigma, "finite and above 0").into());
        }
        Ok(Self { center, sigma })
    }

    /// The median in training, in the units of the column.
    pub fn center(&self) -> f64 {
        self.center
    }

    /// The usual distance from the center, in the units of the column; above 0.
    pub fn sigma(&self) -> f64 {
        self.sigma
    }

    /// The distance of a value from the center in sigmas. The scale is linear up to the range of `f32`. NaN stays NaN.
    pub fn apply(&self, value: f32) -> f32 {
        saturate((f64::from(value) - self.center) / self.sigma)
    }
}

/// The nearest finite `f32`; NaN for NaN. A distance between extreme values exceeds the range of `f32`.
pub fn saturate(value: f64) -> f32 {
    (value as f32).clamp(f32::MIN, f32::MAX)
}

/// Checks that a training column has values, and that all are finite.
pub(super) fn check_values(column: impl Iterator<Item = f32>) -> Result<(), Error> {
    let mut values = column.enumerate().peekable();
    if values.peek().is_none() {
        return Err(Error::NoValues);
    }
    match values.find(|(_, value)| !value.is_finite()) {
        Some((row, value)) => Err(Error::NotFinite { row, value }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// numpy 2.4: `v = arange(1, 12)**2`, `median(v)`, `percentile(abs(v - median(v)), 99) / 2.576`.
    #[test]
    fn is_numpys_median_and_quantile() {
        let squares: Vec<f32> = (1..12).map(|v| (v * v) as f32).collect();
        let scale = RobustScale::fit(&squares, 0.1).expect("values");
        assert_eq!((scale.center(), scale.sigma()), (36.0, 32.18167701863354));
        assert_eq!(scale.apply(36.0), 0.0);
        assert_eq!(scale.apply(136.0), (100.0 / 32.18167701863354) as f32);
        assert_eq!(RobustScale::fit(&[1.0, 2.0, 4.0, 9.0], 0.1).expect("values").center(), 3.0);
    }

    #[test]
    fn a_normal_column_gets_its_standard_deviation() {
        let mut state = 1u64;
        let mut uniform = || {
            // An MMIX linear congruence (Knuth); a sum of twelve is near enough to normal.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        let mut normal = || (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
        let column: Vec<f32> = (0..20_000).map(|_| 50.0 + 7.0 * normal()).collect();
        let scale = RobustScale::fit(&column, 0.1).expect("values");
        assert!((scale.center() - 50.0).abs() < 0.3, "{scale:?}");
        assert!((scale.sigma() - 7.0).abs() < 0.3, "{scale:?}");
    }

    #[test]
    fn rare_incidents_do_not_widen_it() {
        let mut column: Vec<f32> = (0..1_000).map(|k| (k % 10) as f32).collect();
        let before = RobustScale::fit(&column, 0.1).expect("values");
        column[500..505].fill(1e9);
        let after = RobustScale::fit(&column, 0.1).expect("values");
        assert!((after.center() - before.center()).abs() <= 0.5 && after.sigma() < 1.2 * before.sigma());
    }

    #[test]
    fn the_floor_is_the_metrics_own() {
        assert_eq!(min_sigma(Column::from(&[3.0, 5.0, 4.0][..])), Ok(0.02));
        assert_eq!(min_sigma(Column::from(&[-500.0, -500.0][..])), Ok(5.0));
        assert_eq!(min_sigma(Column::from(&[0.0][..])), Ok(0.01));
        assert_eq!(min_sigma(Column::from(&[f32::MIN, f32::MAX][..])), Ok(0.01 * 2.0 * f64::from(f32::MAX)));
        // A column of zeros with one step.
        let mut column = [0.0; 1_000];
        column[7] = 1.0;
        let scale = RobustScale::fit(&column, 0.5).expect("values");
        assert_eq!((scale.center(), scale.sigma(), scale.apply(1.0)), (0.0, 0.5, 2.0));
    }

    #[test]
    fn invalid_columns_and_parts_are_rejected() {
        let message = |result: Result<RobustScale, Error>| result.expect_err("refused").to_string();
        assert_eq!(message(RobustScale::fit(&[], 1.0)), "training column has no values");
        assert_eq!(message(RobustScale::fit(&[1.0, f32::NAN], 1.0)), "value in row 1 is NaN, must be finite");
        assert_eq!(message(RobustScale::new(f64::NAN, 1.0)), "center is NaN, must be finite");
        for sigma in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(
                message(RobustScale::new(0.0, sigma)),
                format!("sigma is {sigma}, must be finite and above 0")
            );
        }
        assert!(min_sigma(Column::from(&[][..])).is_err());
    }
}
