//! Filters deviations by direction and minimum size.
//!
//! A filtered deviation is scored as usual, in the forest score, the tail score and the explanation. Models are trained
//! without filters, so a changed filter takes effect without a new model. The alert budget covers all deviations:
//! filters can only reduce the number of alerts.

use super::derived::DERIVED_PER_FEATURE;
use crate::prom::{Labels, Selector};

/// The direction of deviations that raise the score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Above the expected value.
    Up,
    /// Below the expected value.
    Down,
    /// Both directions.
    #[default]
    Both,
}

/// A text that is not a direction.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0:?} is not a direction: write up, down or both")]
pub struct UnknownDirection(String);

impl std::str::FromStr for Direction {
    type Err = UnknownDirection;

    fn from_str(text: &str) -> Result<Self, UnknownDirection> {
        match text {
            "up" => Ok(Self::Up),
            "down" => Ok(Self::Down),
            "both" => Ok(Self::Both),
            _ => Err(UnknownDirection(text.into())),
        }
    }
}

/// The minimum size of a deviation for the series that a selector matches.
#[derive(Clone, Debug, PartialEq)]
pub struct MinDeviation {
    /// The series.
    pub selector: Selector,
    /// Minimum in units of the feature, at least 0.
    pub absolute: f64,
    /// Minimum as a share of the expected value, at least 0.
    pub relative: f64,
}

/// The filter of one feature.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DeviationFilter {
    direction: Direction,
    absolute: f64,
    relative: f64,
}

impl DeviationFilter {
    /// The filter of a feature with these labels. The first selector that matches gives the minimum size.
    pub fn for_labels(direction: Direction, min_deviations: &[MinDeviation], labels: &Labels) -> Self {
        let min_deviation = min_deviations.iter().find(|min| min.selector.matches(labels));
        let (absolute, relative) = min_deviation.map_or((0.0, 0.0), |min| (min.absolute, min.relative));
        Self { direction, absolute, relative }
    }

    /// True for each derived feature that passes the filter. `expected` is NaN before a first day.
    pub fn mask(&self, columns: &[f32], value: f32, expected: f64) -> [bool; DERIVED_PER_FEATURE] {
        let [residual, difference, deviation] = std::array::from_fn(|column| f64::from(columns[column]));
        let reference = if expected.is_nan() { f64::from(value) - difference } else { expected };
        // `max` ignores a NaN reference.
        let min_size = self.absolute.max(self.relative * reference.abs());
        // NaN, at the beginning of the data, passes.
        let is_enough = |size: f64| size.is_nan() || size.abs() >= min_size;
        let is_in_direction = |signed: f64| match self.direction {
            Direction::Up => signed.is_nan() || signed >= 0.0,
            Direction::Down => signed.is_nan() || signed <= 0.0,
            Direction::Both => true,
        };
        // A standard deviation has no direction of its own.
        let signed = if residual.is_nan() { difference } else { residual };
        [(residual, residual), (difference, difference), (deviation, signed)]
            .map(|(size, signed)| is_enough(size) && is_in_direction(signed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_deviations_in_the_direction_are_kept() {
        let filter = |direction| DeviationFilter { direction, ..DeviationFilter::default() };
        let mask_of_rise = |direction| filter(direction).mask(&[5.0, -1.0, 2.0], 15.0, 10.0);
        assert_eq!(mask_of_rise(Direction::Both), [true, true, true]);
        assert_eq!(mask_of_rise(Direction::Up), [true, false, true]);
        assert_eq!(mask_of_rise(Direction::Down), [false, true, false]);
        // Before a first day the difference gives the direction.
        assert_eq!(filter(Direction::Down).mask(&[f32::NAN, -1.0, 2.0], 9.0, f64::NAN), [true, true, true]);
    }

    #[test]
    fn small_deviations_are_masked() {
        let filter =
            |absolute, relative| DeviationFilter { absolute, relative, ..DeviationFilter::default() };
        let columns = [5.0, -50.0, 2.0];
        assert_eq!(filter(4.0, 0.0).mask(&columns, 105.0, 100.0), [true, true, false]);
        assert_eq!(filter(0.0, 0.2).mask(&columns, 105.0, 100.0), [false, true, false]);
        // Both minimums apply.
        assert_eq!(filter(60.0, 0.2).mask(&columns, 105.0, 100.0), [false, false, false]);
        // Before a first day the relative minimum refers to the value a minute before.
        assert!(filter(0.0, 0.5).mask(&[f32::NAN, 50.0, 1.0], 150.0, f64::NAN)[1]);
        assert!(!filter(0.0, 0.6).mask(&[f32::NAN, 50.0, 1.0], 150.0, f64::NAN)[1]);
    }

    #[test]
    fn the_first_selector_that_matches_decides() {
        let min_deviation = |text: &str, absolute| MinDeviation {
            selector: Selector::parse(text).expect("a selector"),
            absolute,
            relative: 0.0,
        };
        let list = [min_deviation(r#"a{x="1"}"#, 7.0), min_deviation("a", 9.0)];
        let absolute_for = |pairs: &[(&str, &str)]| {
            let labels = Labels::new(pairs.iter().copied()).expect("valid");
            DeviationFilter::for_labels(Direction::Both, &list, &labels).absolute
        };
        assert_eq!(absolute_for(&[("__name__", "a"), ("x", "1")]), 7.0);
        assert_eq!(absolute_for(&[("__name__", "a")]), 9.0);
        assert_eq!(absolute_for(&[("__name__", "b")]), 0.0);
    }
}
