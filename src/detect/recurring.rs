//! Recurring peaks: the baseline of deviations that come every day at the same time, such as a nightly backup.
//!
//! The maximum of each difference and deviation in each quarter of an hour is kept for four days. The baseline of a
//! quarter is the lowest of the four days' maxima within a quarter of an hour of the same time. It counts only if it
//! stands out from the median quarter: hourly spikes are the scale's matter. Days without rows are skipped, so an outage
//! or an excluded incident clears no baseline.
//!
//! Alternatives with lower recall on labelled servers (0.92 with this one): baselines of residuals too (0.78), baselines
//! in the forest's input too (0.91), wider scales instead of a limit (0.88).

use super::seasonal::{BUCKET_MS, BUCKETS};
use crate::error::InvalidPart;

/// Tracked derived features per feature: difference and deviation.
pub const TRACKED_PER_FEATURE: usize = 2;
/// Days that a peak has to recur on.
const DAYS: usize = 4;
/// Retained quarters of an hour: those days, one quarter to either side, and the current one.
const KEPT_BUCKETS: usize = DAYS * BUCKETS + 2;
/// Minimum ratio of a baseline to the median quarter.
const MIN_PEAK_RATIO: f32 = 3.0;
/// The largest finite bfloat16, see [`to_bf16`].
const MAX_FINITE_BF16: u16 = 0x7f7f;

/// Peaks and baselines of all features of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct RecurringPeaks {
    /// The current quarter of an hour since the epoch.
    current_bucket: i64,
    /// Peaks as bfloat16, shape `[n_features, TRACKED_PER_FEATURE, KEPT_BUCKETS]`, row-major. The last axis is a ring: a
    /// quarter's slot is its number modulo `KEPT_BUCKETS`.
    peaks: Vec<u16>,
    /// Baselines of the current quarter, shape `[n_features, TRACKED_PER_FEATURE]`, row-major, in units of the derived
    /// features; 0 without a recurring peak.
    baseline: Vec<f32>,
}

impl RecurringPeaks {
    /// No peaks.
    pub fn new(n_features: usize) -> Self {
        let n_columns = n_features * TRACKED_PER_FEATURE;
        Self {
            current_bucket: i64::MIN,
            peaks: vec![0; n_columns * KEPT_BUCKETS],
            baseline: vec![0.0; n_columns],
        }
    }

    /// Restores saved peaks after a row at `newest_ms`.
    pub fn restore(n_features: usize, newest_ms: Option<i64>, peaks: Vec<u16>) -> Result<Self, InvalidPart> {
        let length = n_features * TRACKED_PER_FEATURE * KEPT_BUCKETS;
        if peaks.len() != length {
            return Err(InvalidPart::new("number of peaks", peaks.len(), length));
        }
        if let Some(peak) = peaks.iter().find(|peak| **peak > MAX_FINITE_BF16) {
            return Err(InvalidPart::new("peak", peak, format_args!("at most {MAX_FINITE_BF16}")));
        }
        let current_bucket = newest_ms.map_or(i64::MIN, |newest_ms| newest_ms.div_euclid(BUCKET_MS));
        let mut recurring = Self { current_bucket, peaks, ..Self::new(n_features) };
        recurring.recompute_baseline();
        Ok(recurring)
    }

    /// The peaks for a file: the upper halves of `f32` bits.
    pub fn peaks(&self) -> &[u16] {
        &self.peaks
    }

    /// Baselines of difference and deviation at the time of the newest row, shape `[n_features, 2]`, row-major; 0 without
    /// a recurring peak.
    pub fn baseline(&self) -> &[f32] {
        &self.baseline
    }

    /// Adds difference and deviation of each feature in the next row, shape `[n_features, 2]`, row-major.
    pub fn add(&mut self, timestamp_ms: i64, tracked: impl Iterator<Item = f32>) {
        self.advance_to(timestamp_ms.div_euclid(BUCKET_MS));
        let slot = slot(self.current_bucket);
        let peaks = self.peaks.iter_mut().skip(slot).step_by(KEPT_BUCKETS);
        for (peak, value) in peaks.zip(tracked) {
            *peak = (*peak).max(to_bf16(value));
        }
    }

    fn advance_to(&mut self, bucket: i64) {
        if bucket <= self.current_bucket {
            return;
        }
        let buckets_per_day = BUCKETS as i64;
        if self.current_bucket != i64::MIN {
            // Whole days without rows are skipped. Other quarters without rows take the peaks of the day before.
            let missed = bucket - self.current_bucket - 1;
            let days = missed.div_euclid(buckets_per_day);
            let rotation = (days * buckets_per_day).rem_euclid(KEPT_BUCKETS as i64) as usize;
            for peaks in self.peaks.chunks_exact_mut(KEPT_BUCKETS) {
                peaks.rotate_right(rotation);
                (self.current_bucket + days * buckets_per_day + 1..bucket)
                    .for_each(|passed| peaks[slot(passed)] = peaks[slot(passed - buckets_per_day)]);
            }
        }
        self.peaks.iter_mut().skip(slot(bucket)).step_by(KEPT_BUCKETS).for_each(|peak| *peak = 0);
        self.current_bucket = bucket;
        self.recompute_baseline();
    }

    fn recompute_baseline(&mut self) {
        let current = slot(self.current_bucket);
        let mut others = Vec::with_capacity(KEPT_BUCKETS);
        for (baseline, peaks) in self.baseline.iter_mut().zip(self.peaks.chunks_exact(KEPT_BUCKETS)) {
            let peak_before = |ago: usize| peaks[(current + KEPT_BUCKETS - ago) % KEPT_BUCKETS];
            let peak_of_day = |day: usize| {
                (-1..=1).map(|offset: isize| peak_before((day * BUCKETS).wrapping_add_signed(offset))).max()
            };
            let lowest_peak = (1..=DAYS).filter_map(peak_of_day).min().unwrap_or(0);
            others.clear();
            others.extend((1..KEPT_BUCKETS).map(peak_before));
            let middle = KEPT_BUCKETS / 2;
            let median = from_bf16(*others.select_nth_unstable(middle).1);
            let lowest_peak = from_bf16(lowest_peak);
            *baseline = if lowest_peak > MIN_PEAK_RATIO * median { lowest_peak } else { 0.0 };
        }
    }
}

fn slot(bucket: i64) -> usize {
    bucket.rem_euclid(KEPT_BUCKETS as i64) as usize
}

/// The upper half of a magnitude's `f32` bits, rounded up: three digits are enough for a peak. NaN counts as 0.
fn to_bf16(value: f32) -> u16 {
    let bits = value.abs().max(0.0).to_bits().div_ceil(1 << 16);
    u16::try_from(bits).map_or(MAX_FINITE_BF16, |bits| bits.min(MAX_FINITE_BF16))
}

fn from_bf16(peak: u16) -> f32 {
    f32::from_bits(u32::from(peak) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = BUCKETS as i64;

    /// A jump of 100 at quarter 8 of the days that have it; noise up to 9 all day.
    fn peaks_after(days: &[bool]) -> RecurringPeaks {
        let mut recurring = RecurringPeaks::new(1);
        for (day, jumps) in days.iter().enumerate() {
            for quarter in 0..DAY {
                let noise = (quarter % 10) as f32;
                let value = if *jumps && quarter == 8 { -100.0 } else { noise };
                recurring.add((day as i64 * DAY + quarter) * BUCKET_MS, [value, noise].into_iter());
            }
        }
        recurring
    }

    fn baseline_at(recurring: &mut RecurringPeaks, bucket: i64) -> Vec<f32> {
        recurring.advance_to(bucket);
        recurring.baseline().to_vec()
    }

    #[test]
    fn a_daily_peak_is_a_baseline_around_its_time_of_day() {
        let mut recurring = peaks_after(&[true; 5]);
        for (quarter, baseline) in [(6, 0.0), (7, 100.0), (8, 100.0), (9, 100.0), (10, 0.0)] {
            assert_eq!(baseline_at(&mut recurring, 5 * DAY + quarter), [baseline, 0.0], "{quarter}");
        }
    }

    #[test]
    fn four_days_set_a_baseline_and_a_day_without_the_peak_clears_it() {
        for (days, baseline) in [
            (vec![true; 3], 0.0),
            (vec![true; 4], 100.0),
            (vec![true, true, true, true, false], 0.0),
            (vec![true, false, true, true, true, true], 100.0),
        ] {
            let at = days.len() as i64 * DAY + 8;
            assert_eq!(baseline_at(&mut peaks_after(&days), at), [baseline, 0.0], "{days:?}");
        }
    }

    #[test]
    fn a_gap_does_not_clear_a_baseline() {
        for days in [5, 6, 7, 8, 9, 500] {
            // The last day ends at 10:00; the next row comes some days later at 08:00.
            let mut recurring = peaks_after(&[true; 5]);
            (0..40).for_each(|quarter| {
                recurring.add(
                    (5 * DAY + quarter) * BUCKET_MS,
                    [if quarter == 8 { 100.0 } else { 1.0 }, 1.0].into_iter(),
                )
            });
            let at = |quarter| (5 + days) * DAY + quarter;
            assert_eq!(baseline_at(&mut recurring, at(7)), [100.0, 0.0], "{days}");
            assert_eq!(baseline_at(&mut recurring, at(32)), [0.0, 0.0], "{days}");
            assert_eq!(baseline_at(&mut recurring, at(DAY + 8)), [100.0, 0.0], "{days}");
        }
        let mut once = peaks_after(&[false, false, true]);
        assert_eq!(baseline_at(&mut once, 9 * DAY + 8), [0.0, 0.0], "one day does not become four");
    }

    #[test]
    fn hourly_spikes_set_no_baseline() {
        let mut recurring = RecurringPeaks::new(1);
        for quarter in 0..6 * DAY {
            recurring
                .add(quarter * BUCKET_MS, [if quarter % 3 == 0 { 100.0 } else { 50.0 }, 1.0].into_iter());
        }
        assert_eq!(recurring.baseline(), [0.0, 0.0]);
    }

    #[test]
    fn a_peak_keeps_three_digits_and_never_shrinks() {
        for value in [0.0, 1e-30, 0.1, 1.0, 3.7, 1e9, 1e38] {
            let kept = from_bf16(to_bf16(value));
            assert!((value..=value * 1.008 + 1e-38).contains(&kept), "{value} {kept}");
        }
        assert_eq!(to_bf16(f32::NAN), 0);
        assert!(from_bf16(to_bf16(f32::INFINITY)).is_finite() && from_bf16(to_bf16(f32::MAX)).is_finite());
    }

    #[test]
    fn is_restored_from_its_saved_peaks() {
        let mut recurring = peaks_after(&[true; 5]);
        baseline_at(&mut recurring, 5 * DAY + 8);
        let (newest_ms, peaks) = (Some((5 * DAY + 8) * BUCKET_MS + 7), recurring.peaks());
        assert_eq!(
            RecurringPeaks::restore(1, newest_ms, peaks.to_vec()).expect("saved peaks of this type"),
            recurring
        );
        assert!(RecurringPeaks::restore(2, newest_ms, peaks.to_vec()).is_err());
        let mut wrong = peaks.to_vec();
        wrong[7] = 0x7f80;
        let error = RecurringPeaks::restore(1, newest_ms, wrong).expect_err("not finite").to_string();
        assert_eq!(error, "peak is 32640, must be at most 32639");
    }
}
