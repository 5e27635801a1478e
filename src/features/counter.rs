//! Repairs decreases of counters that are not resets, which PromQL would turn into spikes.
//!
//! PromQL treats every decrease of a counter as a restart at zero, and adds the whole previous value to the increase.
//! That is correct for a restart. A counter may also fall without one: it is read in two halves, a driver rewinds it,
//! or a restored machine has a lower value. PromQL then reports gigabytes that were not sent. A fall counts as a
//! restart if the implied increase since zero is in proportion to the other increases. Values that PromQL treats
//! correctly keep their bits.

use crate::prom::Sample;

/// Most times the typical increase that a restart may imply. Traffic has bursts; a counter of gigabytes that only dips
/// is orders of magnitude above its increments.
const PLAUSIBLE_SURGE: f64 = 10.0;

/// Most falls of a counter within the lookback. A series with more is not a counter.
const MAX_FALLS: usize = 16;

/// An event of a counter at one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterEvent {
    /// A restart at zero, which PromQL handles.
    Reset,
    /// A fall with a recovery. The values in between are interpolated.
    Dip,
    /// A fall to a level too high for a restart, without a recovery. The values after it are raised.
    Rewind,
}

impl CounterEvent {
    /// The value of the label `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Dip => "dip",
            Self::Rewind => "rewind",
        }
    }
}

/// Repairs dips and rewinds of a counter's samples (ascending, without staleness markers). Calls `on_event` for each
/// fall with the timestamp of the lower sample.
///
/// A series with more than [`MAX_FALLS`] falls is not a counter and stays as it is.
pub fn repair(samples: &mut [Sample], mut on_event: impl FnMut(i64, CounterEvent)) {
    let falls = samples.windows(2).filter(|pair| pair[1].value < pair[0].value).count();
    if falls > MAX_FALLS {
        return;
    }
    let mut i = 1;
    while i < samples.len() {
        let (before, after) = (samples[i - 1], samples[i]);
        if after.value >= before.value || before.value.is_nan() || after.value.is_nan() {
            i += 1;
            continue;
        }
        let recovery = samples[i..].iter().position(|s| s.value >= before.value).map(|n| i + n);
        // A restart implies an increase from zero to the recovered value in this time.
        let recovered = samples[recovery.unwrap_or(i)];
        let seconds = (recovered.timestamp_ms - before.timestamp_ms) as f64 / 1000.0;
        let typical = typical_increase(samples, i - 1, recovery.unwrap_or(i));
        let is_restart = match typical {
            Some(typical) => recovered.value / seconds <= PLAUSIBLE_SURGE * typical,
            // Without other increases, a fall by at least half without a recovery counts as a restart.
            None => recovery.is_none() && after.value <= before.value / 2.0,
        };
        let event = match (is_restart, recovery) {
            (true, _) => CounterEvent::Reset,
            (false, Some(back)) => {
                let per_ms =
                    (recovered.value - before.value) / (recovered.timestamp_ms - before.timestamp_ms) as f64;
                for sample in &mut samples[i..back] {
                    sample.value = before.value + per_ms * (sample.timestamp_ms - before.timestamp_ms) as f64;
                }
                CounterEvent::Dip
            }
            (false, None) => {
                let lift = before.value - after.value;
                samples[i..].iter_mut().for_each(|s| s.value += lift);
                CounterEvent::Rewind
            }
        };
        on_event(after.timestamp_ms, event);
        i += 1;
    }
}

/// The median increase per second between adjacent samples, without the steps from `from` to `to`; `None` if there is
/// no increase. Not taken: the maximum, which may be the recovery from a dip that starts before the lookback.
fn typical_increase(samples: &[Sample], from: usize, to: usize) -> Option<f64> {
    let outside = samples[..=from].windows(2).chain(samples[to..].windows(2));
    let mut increases: Vec<f64> = outside
        .filter(|pair| pair[1].value > pair[0].value)
        .map(|pair| {
            let seconds = (pair[1].timestamp_ms - pair[0].timestamp_ms) as f64 / 1000.0;
            (pair[1].value - pair[0].value) / seconds
        })
        .collect();
    increases.sort_unstable_by(f64::total_cmp);
    increases.get(increases.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repaired(values: &[f64]) -> (Vec<f64>, Vec<CounterEvent>) {
        let mut samples: Vec<Sample> = values
            .iter()
            .enumerate()
            .map(|(i, value)| Sample { timestamp_ms: i as i64 * 15_000, value: *value })
            .collect();
        let mut events = Vec::new();
        repair(&mut samples, |_, event| events.push(event));
        (samples.iter().map(|s| s.value).collect(), events)
    }

    #[test]
    fn restarts_are_left_to_promql() {
        for values in [
            &[90.0, 100.0, 5.0, 20.0][..],
            &[50.0, 0.0, 10.0, 20.0],
            &[1e9, 1e9 + 1e6, 0.0, 8e5],
            &[1e9, 1e9 + 1e6, 4e6, 5e6],
            &[1e9, 20.0],
            &[0.0, 10.0, 20.0, 30.0, 40.0, 0.0, 10.0, 20.0, 30.0, 40.0],
        ] {
            let (after, events) = repaired(values);
            assert_eq!(after, values);
            assert_eq!(events, [CounterEvent::Reset], "{values:?}");
        }
    }

    #[test]
    fn dips_are_repaired() {
        let shallow = repaired(&[1e9, 1e9 + 300.0, 1e9 - 200.0, 1e9 + 700.0]);
        assert_eq!(shallow, (vec![1e9, 1e9 + 300.0, 1e9 + 500.0, 1e9 + 700.0], vec![CounterEvent::Dip]));
        let to_zero = repaired(&[1e9, 1e9 + 300.0, 0.0, 1e9 + 700.0, 1e9 + 900.0]);
        assert_eq!(
            to_zero,
            (vec![1e9, 1e9 + 300.0, 1e9 + 500.0, 1e9 + 700.0, 1e9 + 900.0], vec![CounterEvent::Dip])
        );
        // A fall at the newest sample has no recovery yet.
        let newest = repaired(&[1e9, 1e9 + 300.0, 1e9 - 200.0]);
        assert_eq!(newest, (vec![1e9, 1e9 + 300.0, 1e9 + 300.0], vec![CounterEvent::Rewind]));
    }

    #[test]
    fn a_rewound_counter_continues_at_its_previous_value() {
        let (after, events) = repaired(&[1e9, 1e9 + 300.0, 5e8, 5e8 + 400.0]);
        assert_eq!(after, [1e9, 1e9 + 300.0, 1e9 + 300.0, 1e9 + 700.0]);
        assert_eq!(events, [CounterEvent::Rewind]);
    }

    #[test]
    fn samples_that_are_not_finite_cause_no_panic() {
        let (after, events) = repaired(&[10.0, f64::NAN, 5.0, f64::INFINITY, f64::NEG_INFINITY]);
        assert_eq!(after.len(), 5);
        assert!(events.len() <= 1);
    }
}
