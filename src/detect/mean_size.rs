//! Mean sizes: the bytes of a packet, where a group has the rates of both.
//!
//! Requests without answers, reflected traffic and floods of small packets change what traffic is made of more than how much
//! of it there is. The deviation of a mean size is its logarithm, less that of the mean size that the seasonal profiles of
//! the two rates expect, so that it needs no profile of its own.
//!
//! Not taken: the quotient of received and sent traffic, which found no more large faults in the recorded network and
//! raised the threshold for the others.

use super::derived::MIN_KNOWN_ROWS;
use super::deviation::weaker;
use crate::features::scale::{RobustScale, saturate};

/// Added to both rates, as a share of their means in training: the few packets of an idle interface have any size.
const OFFSET_SHARE: f64 = 0.05;
/// Least sigma of the logarithm: a twentieth of the mean size.
const MIN_SIGMA: f64 = 0.05;

/// The mean size of what two rates count.
#[derive(Clone, Debug, PartialEq)]
pub struct MeanSize {
    /// The numbers of the features: bytes and packets.
    pub features: [usize; 2],
    /// Offset that is added to each rate, at least 0.
    pub offsets: [f64; 2],
    /// The scale of the deviation; `None` if training had too few rows, or one of the rates was 0.
    pub scale: Option<RobustScale>,
}

/// A rate in a row.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub value: f64,
    /// The rate that the seasonal profile expects; NaN before a first day.
    pub expected: f64,
}

impl MeanSize {
    /// Fits the scale to the rates of both features in the training rows; `means` are those of the values.
    pub fn fit(features: [usize; 2], means: [f64; 2], rows: impl Iterator<Item = [Rate; 2]>) -> Self {
        let offsets = means.map(|mean| OFFSET_SHARE * mean.max(0.0));
        let deviations =
            rows.map(|rates| deviation(rates, offsets)).filter(|deviation| deviation.is_finite());
        let deviations: Vec<f32> = deviations.collect();
        let is_known = deviations.len() >= MIN_KNOWN_ROWS[0] && offsets.iter().all(|offset| *offset > 0.0);
        let scale = is_known.then(|| RobustScale::fit(&deviations, MIN_SIGMA).expect("finite deviations"));
        Self { features, offsets, scale }
    }

    /// The [`deviation`](Self::deviation), less what it owes to features whose own deviation is filtered.
    pub fn filtered_deviation(
        &self,
        rate: impl Fn(usize) -> Rate,
        is_filtered: impl Fn(usize) -> bool,
    ) -> f32 {
        let deviation = self.deviation(&rate);
        if !self.features.into_iter().any(&is_filtered) {
            return deviation;
        }
        let expected = |Rate { expected, .. }| Rate { value: expected, expected };
        let rest = self.deviation(
            |feature| {
                if is_filtered(feature) { expected(rate(feature)) } else { rate(feature) }
            },
        );
        weaker(deviation, rest)
    }

    /// The deviation in sigmas, by the rate of each feature; 0 where it is unknown.
    pub fn deviation(&self, rate: impl Fn(usize) -> Rate) -> f32 {
        let sigmas =
            self.scale.map_or(0.0, |scale| scale.apply(deviation(self.features.map(rate), self.offsets)));
        if sigmas.is_finite() { sigmas } else { 0.0 }
    }
}

/// The logarithm of the mean size as a multiple of the expected one; NaN where that is unknown.
fn deviation(rates: [Rate; 2], offsets: [f64; 2]) -> f32 {
    let multiple = |index: usize| {
        let (Rate { value, expected }, offset) = (rates[index], offsets[index]);
        // `max` would turn NaN into 0.
        (value.clamp(0.0, f64::MAX) + offset) / (expected.clamp(0.0, f64::MAX) + offset)
    };
    saturate((multiple(0) / multiple(1)).ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: [Rate; 2] = [Rate { value: 1e6, expected: 1e6 }, Rate { value: 1e3, expected: 1e3 }];

    fn fitted() -> MeanSize {
        let row = |i: usize| {
            // Load moves both rates; the size varies by a tenth.
            let load = 1.0 + (i % 7) as f64;
            let size = 1.0 + 0.1 * ((i % 5) as f64 - 2.0) / 2.0;
            [Rate { value: 1e6 * load * size, ..USUAL[0] }, Rate { value: 1e3 * load, ..USUAL[1] }]
        };
        MeanSize::fit([0, 1], [1e6, 1e3], (0..1000).map(row))
    }

    fn deviation_of(bytes: f64, packets: f64) -> f32 {
        let rates = [Rate { value: bytes, ..USUAL[0] }, Rate { value: packets, ..USUAL[1] }];
        fitted().deviation(|feature| rates[feature])
    }

    #[test]
    fn load_is_no_deviation_and_another_size_is() {
        for load in [0.5, 1.0, 3.0, 20.0] {
            assert!(deviation_of(1e6 * load, 1e3 * load).abs() < 1.0, "{load}");
        }
        assert!(deviation_of(1e6, 1e4) < -20.0, "small packets");
        assert!(deviation_of(1e7, 1e3) > 20.0, "large packets");
        assert!(deviation_of(0.0, 0.0).abs() < 1.0, "no traffic has the expected size");
    }

    #[test]
    fn what_is_unknown_is_no_deviation() {
        for (value, expected) in [(f64::NAN, 1.0), (1.0, f64::NAN), (f64::NAN, f64::NAN)] {
            assert_eq!(fitted().deviation(|_| Rate { value, expected }), 0.0);
        }
        let extreme = fitted().deviation(|feature| Rate { value: [f64::MAX, 0.0][feature], expected: 0.0 });
        assert!(extreme.is_finite(), "{extreme}");
    }

    #[test]
    fn few_rows_and_a_rate_of_0_have_no_scale() {
        let rows = |n_rows: usize| (0..n_rows).map(|_| USUAL);
        assert_eq!(MeanSize::fit([0, 1], [1e6, 1e3], rows(MIN_KNOWN_ROWS[0] - 1)).scale, None);
        assert_eq!(MeanSize::fit([0, 1], [1e6, 0.0], rows(1000)).scale, None);
        assert_eq!(MeanSize::fit([0, 1], [1e6, 0.0], rows(1000)).deviation(|feature| USUAL[feature]), 0.0);
        assert!(MeanSize::fit([0, 1], [1e6, 1e3], rows(1000)).scale.is_some());
    }
}
