//! The least usual deviation of a feature.
//!
//! Minutes of history say how great a feature is, and little of how it varies: a host that was at rest meanwhile has
//! many times the traffic as soon as somebody uses it. In the first hours, usual deviations are therefore at least a
//! share of the feature's level. A feature without level, 0 in most rows, is not scored in the first hour.

use crate::features::scale;
use crate::forest::Column;
use crate::stats::quantile;

/// Least sigma of a new history, as a share of the level: fifteenfold traffic is an incident then, threefold is not.
const LEVEL_SHARE: f64 = 0.3;
/// The hours at which the share has fallen to 0.
const LEVEL_HOURS: f64 = 6.0;
/// The hours at which features without level begin to count.
const IDLE_HOURS: f64 = 1.0;

/// The least sigma of a feature's columns, above 0, by its values in a history of hours; `None` if the feature is not
/// scored.
///
/// # Panics
/// Without values, or if one is not finite.
pub(super) fn min_sigma(values: Column<'_>, hours: f64) -> Option<f64> {
    let min_sigma = scale::min_sigma(values).expect("finite values");
    if hours >= LEVEL_HOURS {
        return Some(min_sigma);
    }
    let mut magnitudes: Vec<f64> = values.iter().map(|value| f64::from(value.abs())).collect();
    let level = quantile(&mut magnitudes, 0.5);
    let is_scored = level > 0.0 || hours >= IDLE_HOURS;
    is_scored.then(|| min_sigma.max(LEVEL_SHARE * (1.0 - hours / LEVEL_HOURS) * level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_share_of_the_level_that_falls_to_the_share_of_the_range() {
        let values = [1000.0, 1010.0, 1020.0, 1030.0, 1040.0];
        let at = |hours| min_sigma(Column::from(&values[..]), hours).expect("it has a level");
        assert_eq!((at(0.0), at(3.0)), (306.0, 153.0));
        assert_eq!((at(6.0), at(1e6)), (0.4, 0.4));
    }

    #[test]
    fn a_feature_that_is_idle_counts_after_an_hour() {
        let values = [0.0, 0.0, 0.0, 500.0, 0.0];
        assert_eq!(min_sigma(Column::from(&values[..]), 0.99), None);
        assert_eq!(min_sigma(Column::from(&values[..]), 1.0), Some(5.0));
        assert_eq!(min_sigma(Column::from(&[0.0; 3][..]), 0.5), None);
        assert!(min_sigma(Column::from(&[7.0; 3][..]), 0.5).is_some());
    }
}
