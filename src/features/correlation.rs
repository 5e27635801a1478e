//! Correlation residuals: the part of a metric that the other metrics of its group do not explain.
//!
//! **The idea.** Metrics of one machine are correlated. A ridge regression predicts each metric from all others, and
//! its residual is large if the metric departs from the common movement. One inverse contains all these regressions:
//! with `Q` the inverse of the correlation matrix plus 0.1 on its diagonal, the residual of metric `j` is
//! `(Q w)_j / Q_jj`, where `w` are the standardised values.
//!
//! Standardisation uses mean and standard deviation, not median and quantile, because correlations are defined by them.
//!
//! Not taken: principal components (their number is one more parameter, without a gain on labelled servers), one
//! regression per metric (equal results for more work).

use super::Error;
use super::scale::{RobustScale, check_values, saturate};
use crate::error::InvalidPart;
use crate::forest::Column;

/// Ridge term on the diagonal of the correlation matrix. It bounds the inverse if metrics are copies of each other, or
/// outnumber the rows.
const RIDGE: f64 = 0.1;

/// Most metrics. The size of the matrix is quadratic in their number.
pub const MAX_METRICS: usize = 1 << 12;

/// The correlation of several metrics, and their residuals.
#[derive(Clone, Debug, PartialEq)]
pub struct Correlation {
    /// Mean of each metric in training, shape `[n_metrics]`.
    means: Vec<f64>,
    /// Divisor of each metric, shape `[n_metrics]`.
    deviations: Vec<f64>,
    /// `Q`, shape `[n_metrics, n_metrics]`, symmetric.
    inverse: Vec<f64>,
}

impl Correlation {
    /// Fits one training column per metric, shapes `[n_metrics][n_rows]`, with the least deviation of each (see
    /// [`min_sigma`](super::scale::min_sigma)), shape `[n_metrics]`. Returns `None` for fewer than two metrics.
    ///
    /// # Errors
    /// [`Error::NoValues`], [`Error::NotFinite`], and [`Error::InvalidPart`] for a least deviation that is not finite
    /// and above 0, and for more than [`MAX_METRICS`] metrics.
    ///
    /// # Panics
    /// If columns differ in length, or the number of least deviations is not `n_metrics`.
    pub fn fit(columns: &[Column<'_>], min_deviations: &[f64]) -> Result<Option<Self>, Error> {
        let n_metrics = columns.len();
        assert_eq!(min_deviations.len(), n_metrics, "one least deviation per metric");
        if n_metrics < 2 {
            return Ok(None);
        }
        check_n_metrics(n_metrics)?;
        let n_rows = columns[0].len();
        for column in columns {
            assert_eq!(column.len(), n_rows, "columns are equally long");
            check_values(column.iter())?;
        }
        let mean = |column: &Column<'_>| sum(column.iter().map(f64::from)) / n_rows as f64;
        let means: Vec<f64> = columns.iter().map(mean).collect();
        let covariances = covariances(columns, &means);
        let variances = covariances.iter().step_by(n_metrics + 1);
        let deviations: Vec<f64> = variances.map(|variance| variance.sqrt()).collect();

        let mut matrix = vec![0.0; n_metrics * n_metrics];
        for a in 0..n_metrics {
            matrix[a * n_metrics + a] = 1.0 + RIDGE;
            for b in 0..a {
                // A constant column correlates with no other.
                let scale = deviations[a] * deviations[b];
                let correlation = if scale > 0.0 { covariances[a * n_metrics + b] / scale } else { 0.0 };
                matrix[a * n_metrics + b] = correlation;
                matrix[b * n_metrics + a] = correlation;
            }
        }
        let deviations = deviations
            .into_iter()
            .zip(min_deviations)
            .map(|(sd, min_deviation)| sd.max(*min_deviation))
            .collect();
        Self::new(means, deviations, invert(&matrix, n_metrics)).map(Some)
    }

    /// A correlation from a file: mean and divisor of each metric, shape `[n_metrics]`, and the matrix of
    /// [`inverse`](Self::inverse), shape `[n_metrics, n_metrics]`.
    ///
    /// # Errors
    /// [`Error::InvalidPart`] if the shapes do not fit, there are fewer than 2 or more than [`MAX_METRICS`] metrics, a
    /// number is not finite, a deviation or a value on the diagonal is not above 0, or the matrix is not symmetric.
    pub fn new(means: Vec<f64>, deviations: Vec<f64>, inverse: Vec<f64>) -> Result<Self, Error> {
        let n_metrics = means.len();
        check_n_metrics(n_metrics)?;
        for (part, length, expected) in [
            ("number of deviations", deviations.len(), n_metrics),
            ("number of values of the inverse", inverse.len(), n_metrics * n_metrics),
        ] {
            if length != expected {
                return Err(InvalidPart::new(part, length, expected).into());
            }
        }
        for (part, values) in
            [("mean", &means), ("deviation", &deviations), ("value of the inverse", &inverse)]
        {
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(InvalidPart::new(part, value, "finite").into());
            }
        }
        let diagonal = inverse.iter().step_by(n_metrics + 1);
        for (part, value) in deviations
            .iter()
            .map(|value| ("deviation", value))
            .chain(diagonal.map(|value| ("diagonal of the inverse", value)))
        {
            if *value <= 0.0 {
                return Err(InvalidPart::new(part, value, "above 0").into());
            }
        }
        for a in 0..n_metrics {
            for b in 0..a {
                let (value, mirrored) = (inverse[a * n_metrics + b], inverse[b * n_metrics + a]);
                if value != mirrored {
                    return Err(InvalidPart::new(
                        "value of the inverse",
                        value,
                        format_args!("{mirrored}, its mirror image"),
                    )
                    .into());
                }
            }
        }
        Ok(Self { means, deviations, inverse })
    }

    /// Number of metrics, at least 2.
    pub fn n_metrics(&self) -> usize {
        self.means.len()
    }

    /// Mean of each metric in training, shape `[n_metrics]`.
    pub fn means(&self) -> &[f64] {
        &self.means
    }

    /// Divisor of each metric: its standard deviation in training, or its least deviation. Shape `[n_metrics]`.
    pub fn deviations(&self) -> &[f64] {
        &self.deviations
    }

    /// Inverse of the correlation matrix plus 0.1 on its diagonal, shape `[n_metrics, n_metrics]`,
    /// symmetric.
    pub fn inverse(&self) -> &[f64] {
        &self.inverse
    }

    /// The residual of each metric, in the units of the metric, shape `[n_metrics]`. A value that is not finite counts
    /// as the mean, so that the residuals of the others stay finite. Residuals are clamped to the range of `f32`.
    ///
    /// # Panics
    /// If there is not one value per metric.
    pub fn apply(&self, values: &[f32]) -> Vec<f32> {
        let n_metrics = self.n_metrics();
        assert_eq!(values.len(), n_metrics, "one value per metric");
        let standardise = |((&value, mean), deviation): ((&f32, &f64), &f64)| {
            if value.is_finite() { (f64::from(value) - mean) / deviation } else { 0.0 }
        };
        let w = values.iter().zip(&self.means).zip(&self.deviations).map(standardise);
        // A sum per metric, side by side: the matrix is symmetric, so its rows are its columns.
        let mut sums = vec![0.0; n_metrics];
        for (row, w) in self.inverse.chunks_exact(n_metrics).zip(w) {
            sums.iter_mut().zip(row).for_each(|(sum, q)| *sum += q * w);
        }
        let diagonal = self.inverse.iter().step_by(n_metrics + 1);
        let residuals = sums.iter().zip(diagonal).zip(&self.deviations);
        residuals.map(|((sum, q), deviation)| saturate(sum / q * deviation)).collect()
    }
}

fn check_n_metrics(n_metrics: usize) -> Result<(), Error> {
    if (2..=MAX_METRICS).contains(&n_metrics) {
        return Ok(());
    }
    Err(InvalidPart::new("number of metrics", n_metrics, format_args!("in 2..={MAX_METRICS}")).into())
}

/// Inverse of a symmetric positive definite matrix, shape `[n, n]`, by Cholesky's decomposition `L Lᵀ`:
/// first `L⁻¹`, then `L⁻ᵀ L⁻¹`. The result is symmetric to the last bit.
fn invert(matrix: &[f64], n: usize) -> Vec<f64> {
    // Row by row: everything below is a dot product of two rows.
    let mut lower = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let remainder = matrix[i * n + j] - dot(&lower[i * n..][..j], &lower[j * n..][..j]);
            lower[i * n + j] = if i == j { remainder.sqrt() } else { remainder / lower[j * n + j] };
        }
    }
    // Row j holds column j of L⁻¹.
    let mut columns = vec![0.0; n * n];
    for j in 0..n {
        columns[j * n + j] = 1.0 / lower[j * n + j];
        for i in j + 1..n {
            let sum = dot(&lower[i * n..][j..i], &columns[j * n..][j..i]);
            columns[j * n + i] = -sum / lower[i * n + i];
        }
    }
    let mut inverse = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let value = dot(&columns[i * n..][i..n], &columns[j * n..][i..n]);
            inverse[i * n + j] = value;
            inverse[j * n + i] = value;
        }
    }
    inverse
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    sum(a.iter().zip(b).map(|(a, b)| a * b))
}

/// The covariances of all pairs of columns, shape `[n_metrics, n_metrics]`, without those above the diagonal. Row by row,
/// so that the sums of the pairs do not wait for each other.
fn covariances(columns: &[Column<'_>], means: &[f64]) -> Vec<f64> {
    let (n_metrics, n_rows) = (columns.len(), columns[0].len());
    let mut sums = vec![0.0; n_metrics * n_metrics];
    let mut distances = vec![0.0; n_metrics];
    for row in 0..n_rows {
        for ((distance, column), mean) in distances.iter_mut().zip(columns).zip(means) {
            *distance = f64::from(column.get(row)) - mean;
        }
        for (a, (sums, distance)) in sums.chunks_exact_mut(n_metrics).zip(&distances).enumerate() {
            sums[..=a].iter_mut().zip(&distances).for_each(|(sum, other)| *sum += distance * other);
        }
    }
    sums.iter_mut().for_each(|sum| *sum /= n_rows as f64);
    sums
}

/// Sums in order, so that every platform gives the same bits.
fn sum(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |sum, value| sum + value)
}

/// Correlation residuals on one scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Residuals {
    /// The correlation of the columns.
    pub correlation: Correlation,
    /// Scale of each residual, shape `[n_metrics]` of the correlation.
    pub scales: Vec<RobustScale>,
}

impl Residuals {
    /// Fits the scales of the residuals to the columns of the correlation, with their least sigmas.
    ///
    /// # Panics
    /// If the columns are not those of the correlation, or not finite.
    pub fn fit(correlation: Correlation, columns: &[Column<'_>], min_sigmas: &[f64]) -> Self {
        let n_rows = columns[0].len();
        let mut residuals = vec![Vec::with_capacity(n_rows); columns.len()];
        let mut values = vec![0.0; columns.len()];
        for row in 0..n_rows {
            for (value, column) in values.iter_mut().zip(columns) {
                *value = column.get(row);
            }
            for (column, residual) in residuals.iter_mut().zip(correlation.apply(&values)) {
                column.push(residual);
            }
        }
        let fit = |(column, min_sigma): (&Vec<f32>, &f64)| {
            RobustScale::fit(column, *min_sigma).expect("finite residuals")
        };
        let scales = residuals.iter().zip(min_sigmas).map(fit).collect();
        Self { correlation, scales }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N_ROWS: usize = 400;

    /// Even values in `[-1, 1)`, unrelated for every `k`: splitmix64's output function.
    fn noise(k: usize) -> f32 {
        let z = (k as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / 8_388_608.0 - 1.0
    }

    /// A common movement on two scales and a metric of its own.
    fn columns() -> [Vec<f32>; 3] {
        let common: Vec<f32> = (0..N_ROWS).map(noise).collect();
        let follow = |scale: f32, salt: usize| {
            common
                .iter()
                .enumerate()
                .map(|(k, v)| scale * (v + 0.05 * noise(salt + k)) + 3.0 * scale)
                .collect()
        };
        [follow(1.0, 1_000), follow(100.0, 2_000), (0..N_ROWS).map(|k| noise(3_000 + k)).collect()]
    }

    fn fit(columns: &[Vec<f32>]) -> Correlation {
        let columns: Vec<Column<'_>> = columns.iter().map(|column| Column::from(&column[..])).collect();
        Correlation::fit(&columns, &vec![1e-6; columns.len()]).expect("finite").expect("several metrics")
    }

    #[test]
    fn the_inverse_is_one() {
        let n = 12;
        // Sums of outer products are positive semidefinite; half of full rank here.
        let mut matrix = vec![0.0; n * n];
        for k in 0..n / 2 {
            for i in 0..n {
                for j in 0..n {
                    matrix[i * n + j] += f64::from(noise(k * n + i)) * f64::from(noise(k * n + j));
                }
            }
        }
        (0..n).for_each(|i| matrix[i * n + i] += RIDGE);
        let inverse = invert(&matrix, n);
        for i in 0..n {
            for j in 0..n {
                let product = dot(&matrix[i * n..][..n], &inverse[j * n..][..n]);
                assert!((product - f64::from(u8::from(i == j))).abs() < 1e-12, "{i}, {j}: {product}");
                assert_eq!(inverse[i * n + j].to_bits(), inverse[j * n + i].to_bits());
            }
        }
    }

    /// Computed by hand: with the correlation `r` of two columns, the residual of a ridge regression of one on the
    /// other is `w_0 - r / 1.1 w_1`.
    #[test]
    fn is_the_ridge_residual() {
        let (a, b) = ([1.0f32, 2.0, 3.0, 6.0], [2.0f32, 1.0, 5.0, 8.0]);
        let correlation = Correlation::fit(&[Column::from(&a[..]), Column::from(&b[..])], &[0.1, 0.1])
            .expect("finite")
            .expect("two");
        let (sd_a, sd_b) = (3.5f64.sqrt(), 7.5f64.sqrt());
        assert_eq!(correlation.means(), [3.0, 4.0]);
        assert_eq!(correlation.deviations(), [sd_a, sd_b]);
        let r = 4.75 / (sd_a * sd_b);
        let e = correlation.apply(&[5.0, 3.0]);
        for (e, expected) in
            e.into_iter().zip([2.0 + r / 1.1 / sd_b * sd_a, -1.0 - r / 1.1 * 2.0 / sd_a * sd_b])
        {
            assert!((f64::from(e) - expected).abs() < 1e-6, "{e}, expected {expected}");
        }
    }

    #[test]
    fn a_metric_that_departs_from_the_others_has_a_large_residual() {
        let correlation = fit(&columns());
        let along = correlation.apply(&[3.9, 390.0, 0.0]);
        let against = correlation.apply(&[3.9, 210.0, 0.0]);
        assert!(against[0] > 4.0 * along[0].abs(), "{along:?} {against:?}");
        assert!(against[1] < -4.0 * along[1].abs(), "{along:?} {against:?}");
        assert!((against[2] - along[2]).abs() < 0.3, "the third has no part in it");
    }

    #[test]
    fn constant_and_equal_columns_do_no_harm() {
        let [a, ..] = columns();
        let correlation = fit(&[a.clone(), a.clone(), vec![7.0; N_ROWS]]);
        let e = correlation.apply(&[3.0, 3.0, 9.0]);
        assert!(e.iter().all(|e| e.is_finite()), "{e:?}");
        assert!((e[2] - 2.0).abs() < 1e-5, "nothing explains the constant one: {e:?}");
        assert_eq!(correlation.deviations()[2], 1e-6);
        let one_row = fit(&[vec![1.0], vec![2.0]]);
        assert_eq!(one_row.apply(&[1.5, 2.0]), [0.5, 0.0]);
    }

    #[test]
    fn a_value_that_is_not_finite_leaves_the_others_unchanged() {
        let correlation = fit(&columns());
        let mean = correlation.means()[2] as f32;
        for value in [f32::NAN, f32::INFINITY] {
            let e = correlation.apply(&[3.5, 300.0, value]);
            let usual = correlation.apply(&[3.5, 300.0, mean]);
            assert!(e.iter().zip(&usual).all(|(e, usual)| (e - usual).abs() < 1e-4), "{e:?} {usual:?}");
        }
    }

    #[test]
    fn below_two_metrics_there_is_none() {
        assert_eq!(Correlation::fit(&[], &[]), Ok(None));
        assert_eq!(Correlation::fit(&[Column::from(&[1.0, 2.0][..])], &[0.1]), Ok(None));
        assert!(Correlation::fit(&[&[1.0][..], &[f32::NAN]].map(Column::from), &[0.1, 0.1]).is_err());
    }

    #[test]
    fn parts_survive_the_round_trip_or_are_refused() {
        let correlation = fit(&columns());
        let build = |Correlation { means, deviations, inverse }| Correlation::new(means, deviations, inverse);
        assert_eq!(build(correlation.clone()), Ok(correlation.clone()));

        let error_after = |change: &dyn Fn(&mut Correlation)| {
            let mut mangled = correlation.clone();
            change(&mut mangled);
            build(mangled).expect_err("mangled").to_string()
        };
        assert_eq!(error_after(&|c| c.means.truncate(1)), "number of metrics is 1, must be in 2..=4096");
        assert_eq!(error_after(&|c| c.deviations.push(1.0)), "number of deviations is 4, must be 3");
        assert!(error_after(&|c| c.inverse.truncate(8)).ends_with("is 8, must be 9"));
        assert_eq!(error_after(&|c| c.means[0] = f64::NAN), "mean is NaN, must be finite");
        assert_eq!(error_after(&|c| c.deviations[2] = 0.0), "deviation is 0, must be above 0");
        assert_eq!(error_after(&|c| c.inverse[4] = -1.0), "diagonal of the inverse is -1, must be above 0");
        assert!(error_after(&|c| c.inverse[5] = f64::INFINITY).ends_with("is inf, must be finite"));
        assert!(error_after(&|c| c.inverse[5] = 9.0).ends_with("its mirror image"));
    }
}
