//! Drops: how far a value is below what a feature has had at least.
//!
//! A rate does not fall below 0. A link that goes silent is therefore few sigmas from its usual traffic, even if it has
//! never been silent. A value below the usual minimum is measured by its ratio to it as well.

use crate::forest::Column;
use crate::stats::quantile;

/// Hours of training from which a minimum is known, a day without its warm-up: it includes the quiet hours.
const MIN_HOURS: f64 = 23.0;
/// The share of rows below the minimum.
const QUANTILE: f64 = 0.01;
/// Least minimum as a share of the median. A feature that falls lower pauses now and then.
const MIN_SHARE_OF_MEDIAN: f64 = 0.3;
/// Sigmas of a value by which the minimum exceeds it, in multiples of the value.
const SIGMAS_PER_EXCESS: f64 = 2.0;
/// Added to value and minimum, as a share of the minimum: 0 is 100 sigmas.
const OFFSET_SHARE: f64 = 0.02;

/// The usual minimum of a feature in a history of hours, above 0; `None` if it is not known or a drop is usual.
///
/// # Panics
/// Without values.
pub(super) fn usual_minimum(values: Column<'_>, hours: f64) -> Option<f64> {
    if hours < MIN_HOURS {
        return None;
    }
    let mut values: Vec<f64> = values.iter().map(f64::from).collect();
    let (minimum, median) = (quantile(&mut values, QUANTILE), quantile(&mut values, 0.5));
    (minimum > 0.0 && minimum >= MIN_SHARE_OF_MEDIAN * median).then_some(minimum)
}

/// The drop of a value below a minimum, in sigmas: 0 from the minimum on, 2 at about half of it, 100 at 0 and below.
pub(super) fn drop_sigmas(value: f32, minimum: f64) -> f64 {
    let value = f64::from(value);
    if value.is_nan() || value >= minimum {
        return 0.0;
    }
    let offset = OFFSET_SHARE * minimum;
    SIGMAS_PER_EXCESS * ((minimum + offset) / (value.max(0.0) + offset) - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_is_measured_by_its_ratio() {
        let sigmas = |value| drop_sigmas(value, 1000.0);
        assert_eq!([sigmas(2000.0), sigmas(1000.0), sigmas(f32::NAN), sigmas(f32::INFINITY)], [0.0; 4]);
        assert!((1.9..2.0).contains(&sigmas(500.0)) && (14.0..16.0).contains(&sigmas(100.0)));
        assert_eq!((sigmas(0.0), sigmas(-5.0)), (100.0, 100.0));
    }

    #[test]
    fn a_minimum_needs_a_day_and_a_feature_that_does_not_pause() {
        let minimum = |low: f32, hours| {
            let values: Vec<f32> = (0..1000).map(|i| if i < 20 { low } else { 100.0 }).collect();
            usual_minimum(Column::from(&values[..]), hours)
        };
        assert_eq!((minimum(30.0, 24.0), minimum(30.0, 22.0)), (Some(30.0), None));
        assert_eq!((minimum(29.0, 24.0), minimum(0.0, 24.0), minimum(-5.0, 24.0)), (None, None, None));
        assert_eq!(usual_minimum(Column::from(&[0.0; 9][..]), 24.0), None);
    }
}
