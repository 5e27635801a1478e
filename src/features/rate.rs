//! PromQL's `rate(x[r])`, with the same order of operations, so that results equal Prometheus' to the last bit.
//!
//! Source: Prometheus, `promql/functions.go`, `extrapolatedRate`.

use crate::prom::Sample;
use std::str::FromStr;

/// The version of Prometheus whose rate is computed. The two versions differ at the edges of the range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RateSemantics {
    /// Prometheus 3: the range is open on the left.
    #[default]
    V3,
    /// Prometheus 2.42 to 2.50: the range is closed, and the limit at a counter's zero applies first.
    V2,
}

/// The error for a text that is not a version.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0:?} is not one of v3, v2")]
pub struct UnknownRateSemantics(String);

impl FromStr for RateSemantics {
    type Err = UnknownRateSemantics;

    fn from_str(text: &str) -> Result<Self, UnknownRateSemantics> {
        [Self::V3, Self::V2]
            .into_iter()
            .find(|semantics| semantics.as_str() == text)
            .ok_or_else(|| UnknownRateSemantics(text.into()))
    }
}

impl RateSemantics {
    /// The name in configuration and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V3 => "v3",
            Self::V2 => "v2",
        }
    }

    /// The start of the range, exclusive, in milliseconds.
    pub fn after_ms(self, time_ms: i64, range_ms: i64) -> i64 {
        match self {
            Self::V3 => time_ms - range_ms,
            Self::V2 => time_ms - range_ms - 1,
        }
    }
}

/// The result of [`rate`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Increase per second.
    pub per_second: f64,
    /// True if the increase is that of at least three quarters of the range. Up to 1.1 intervals are extrapolated at
    /// each end; where more is missing, after a gap, PromQL adds half an interval only, and the rate is too low.
    pub covers_range: bool,
}

/// Least share of the range. A scrape that is late by a third of its interval leaves as much of `rate(1m)`, and one that is
/// missed .625.
const MIN_COVERAGE: f64 = 0.75;

/// `rate(x[range_ms])` at `time_ms` over the samples of the range: ascending, without staleness markers. `None` for
/// fewer than two samples.
pub fn rate(samples: &[Sample], time_ms: i64, range_ms: i64, semantics: RateSemantics) -> Option<Rate> {
    let [first, .., last] = samples else { return None };
    let mut increase = last.value - first.value;
    for pair in samples.windows(2) {
        if pair[1].value < pair[0].value {
            increase += pair[0].value;
        }
    }

    let seconds = |ms: i64| ms as f64 / 1000.0;
    let mut to_start = seconds(first.timestamp_ms - (time_ms - range_ms));
    let mut to_end = seconds(time_ms - last.timestamp_ms);
    let sampled = seconds(last.timestamp_ms - first.timestamp_ms);
    let average = sampled / (samples.len() - 1) as f64;
    let threshold = average * 1.1;
    let extrapolated = |missing: f64| if missing >= threshold { average / 2.0 } else { missing };
    let covered = sampled + extrapolated(to_start) + extrapolated(to_end);
    let to_zero =
        if increase > 0.0 && first.value >= 0.0 { sampled * (first.value / increase) } else { f64::INFINITY };
    match semantics {
        RateSemantics::V3 => {
            if to_start >= threshold {
                to_start = average / 2.0;
            }
            if to_zero < to_start {
                to_start = to_zero;
            }
        }
        RateSemantics::V2 => {
            if to_zero < to_start {
                to_start = to_zero;
            }
            if to_start >= threshold {
                to_start = average / 2.0;
            }
        }
    }
    if to_end >= threshold {
        to_end = average / 2.0;
    }
    let mut factor = if sampled == 0.0 { 1.0 } else { (sampled + to_start + to_end) / sampled };
    factor /= seconds(range_ms);
    let covers_range = covered >= MIN_COVERAGE * seconds(range_ms);
    Some(Rate { per_second: increase * factor, covers_range })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f64 = f64::NAN;
    const INF: f64 = f64::INFINITY;
    const END: i64 = 1_700_000_000_000;

    /// Seconds relative to the end and values; the rate of 2.42 and of 3.x over 60 s.
    type Vector = (&'static str, &'static [(f64, f64)], Option<f64>, Option<f64>);

    /// Measured on Prometheus 2.42 and derived for 3.x from its source.
    const VECTORS: &[Vector] = &[
        (
            "left edge",
            &[(-60.0, 100.0), (-45.0, 130.0), (-30.0, 160.0), (-15.0, 190.0), (0.0, 220.0)],
            Some(2.0),
            Some(1.9999999999999998),
        ),
        (
            "usual phase",
            &[(-53.0, 1000.0), (-38.0, 1015.0), (-23.0, 1030.0), (-8.0, 1045.0)],
            Some(0.9999999999999999),
            Some(0.9999999999999999),
        ),
        (
            "reset",
            &[(-50.0, 90.0), (-35.0, 100.0), (-20.0, 5.0), (-5.0, 20.0)],
            Some(0.6666666666666666),
            Some(0.6666666666666666),
        ),
        (
            "zero at the start",
            &[(-40.0, 2.0), (-25.0, 12.0), (-10.0, 22.0)],
            Some(0.4777777777777778),
            Some(0.4777777777777778),
        ),
        (
            "zero and threshold",
            &[(-35.0, 20.0), (-20.0, 50.0), (-5.0, 80.0)],
            Some(1.5),
            Some(1.4166666666666667),
        ),
        ("end gap", &[(-55.0, 10.0), (-40.0, 40.0)], Some(0.9166666666666666), Some(0.9166666666666666)),
        ("open on the left", &[(-60.0, 5.0), (-30.0, 8.0)], Some(0.1), None),
        (
            "reset to zero",
            &[(-45.0, 50.0), (-30.0, 0.0), (-15.0, 10.0), (0.0, 20.0)],
            Some(0.4444444444444444),
            Some(0.4444444444444444),
        ),
        (
            "marker left out",
            &[(-50.0, 10.0), (-35.0, 20.0), (-5.0, 40.0)],
            Some(0.6666666666666666),
            Some(0.6666666666666666),
        ),
        (
            "inner NaN",
            &[(-50.0, 10.0), (-35.0, NAN), (-20.0, 30.0), (-5.0, 40.0)],
            Some(0.6666666666666666),
            Some(0.6666666666666666),
        ),
        ("flat", &[(-45.0, 7.0), (-30.0, 7.0), (-15.0, 7.0)], Some(0.0), Some(0.0)),
        ("one sample", &[(-30.0, 8.0)], None, None),
        (
            "millisecond edges",
            &[(-59.999, 0.0), (-0.001, 59.998)],
            Some(0.9999833333333334),
            Some(0.9999833333333334),
        ),
        (
            "negative first",
            &[(-50.0, -3.0), (-35.0, 2.0), (-20.0, 7.0), (-5.0, 12.0)],
            Some(0.3333333333333333),
            Some(0.3333333333333333),
        ),
        ("infinite", &[(-50.0, 10.0), (-35.0, INF), (-20.0, INF), (-5.0, INF)], Some(INF), Some(INF)),
    ];

    #[test]
    fn equals_prometheus() {
        for (name, samples, v2, v3) in VECTORS {
            for (semantics, expected) in [(RateSemantics::V2, v2), (RateSemantics::V3, v3)] {
                let samples: Vec<Sample> = samples
                    .iter()
                    .map(|(s, value)| Sample {
                        timestamp_ms: END + (s * 1000.0).round() as i64,
                        value: *value,
                    })
                    .filter(|sample| sample.timestamp_ms > semantics.after_ms(END, 60_000))
                    .collect();
                let per_second = rate(&samples, END, 60_000, semantics).map(|rate| rate.per_second);
                assert_eq!(per_second, *expected, "{name}, {semantics:?}");
            }
        }
    }

    #[test]
    fn a_rate_after_a_gap_is_too_low_and_says_so() {
        for (times_s, per_second, covers_range) in [
            (&[-45, -30, -15, 0][..], 1.0, true),
            (&[-30, -15, 0], 0.625, false),
            (&[-15, 0], 0.375, false),
            (&[-45, -15, 0], 1.0, true),
            (&[-45, -30, 0], 1.0, true),
            (&[-30, 0], 1.0, true),
            (&[-42, -27, -12], 0.825, true),
            (&[-40, -25, -10, 0], 7.0 / 9.0, true),
        ] {
            let sample = |s: &i64| Sample { timestamp_ms: END + 1000 * s, value: (100 + s) as f64 };
            let samples: Vec<Sample> = times_s.iter().map(sample).collect();
            let rate = rate(&samples, END, 60_000, RateSemantics::V3).expect("two samples");
            assert!((rate.per_second - per_second).abs() < 1e-9, "{times_s:?}: {rate:?}");
            assert_eq!(rate.covers_range, covers_range, "{times_s:?}");
        }
    }
}
