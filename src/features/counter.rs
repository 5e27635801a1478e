//! Counters that dip: what PromQL would take for a reset, and turn into a spike, is levelled.
//!
//! PromQL takes every decrease of a counter for a restart at zero, and adds the whole value before
//! it to the increase. For a true restart that is right. A counter that is read in two halves, that
//! a driver rewinds, or that a restored machine brings back lower falls without restarting, and
//! PromQL then reports gigabytes that nobody sent. A restart is believed when what would have
//! passed since is in proportion to what passed otherwise; so values that PromQL treats rightly
//! are left as they are, bit for bit.

use crate::prom::Sample;

/// A restart is believed up to this many times the usual increase nearby: traffic bursts, but a
/// counter of gigabytes that merely dips stands orders of magnitude above its own increments.
const PLAUSIBLE_SURGE: f64 = 10.0;

/// Falls within one range, and as much before it, beyond which something is no counter.
const MAX_FALLS: usize = 16;

/// What happened to a counter at one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterEvent {
    /// A restart at zero, left to PromQL.
    Reset,
    /// A fall that came back: the values between now lie on the straight line.
    Dip,
    /// A fall to a level that it could not have reached from zero: the values after it are lifted.
    Rewind,
}

/// Levels the dips among a counter's samples (ascending, without staleness markers), and tells of
/// each fall with the timestamp at which it shows.
///
/// What falls more than [`MOST_FALLS`] times is no counter, and is left alone.
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
        // Had it restarted, the counter would have gone from zero to here, this fast.
        let recovered = samples[recovery.unwrap_or(i)];
        let seconds = (recovered.timestamp_ms - before.timestamp_ms) as f64 / 1000.0;
        let typical = typical_increase(samples, i - 1, recovery.unwrap_or(i));
        let is_restart = match typical {
            Some(typical) => recovered.value / seconds <= PLAUSIBLE_SURGE * typical,
            // Nothing to compare with: believe a fall by more than half that did not come back.
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

/// The median of the increases per second between neighbours, outside of the steps from `from` to
/// `to`; `None` when nothing increased. Not the largest: that may be the way back from a dip whose
/// beginning is out of sight.
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
        // while the dip is the newest sample nothing says yet that it comes back
        let newest = repaired(&[1e9, 1e9 + 300.0, 1e9 - 200.0]);
        assert_eq!(newest, (vec![1e9, 1e9 + 300.0, 1e9 + 300.0], vec![CounterEvent::Rewind]));
    }

    #[test]
    fn a_rewound_counter_goes_on_from_where_it_was() {
        let (after, events) = repaired(&[1e9, 1e9 + 300.0, 5e8, 5e8 + 400.0]);
        assert_eq!(after, [1e9, 1e9 + 300.0, 1e9 + 300.0, 1e9 + 700.0]);
        assert_eq!(events, [CounterEvent::Rewind]);
    }

    #[test]
    fn samples_that_are_not_numbers_are_left_alone() {
        let (after, events) = repaired(&[10.0, f64::NAN, 5.0, f64::INFINITY, f64::NEG_INFINITY]);
        assert_eq!(after.len(), 5);
        assert!(events.len() <= 1);
    }
}
