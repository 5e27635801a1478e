//! What comes every day at this time: a backup that jumps at two every night is no news.
//!
//! Of each difference and deviation the greatest of every quarter of an hour is kept for four days. What each of
//! them had, within a quarter of this time, is a habit, if it stands out of what the quarters of those days
//! usually have: where every hour has its spikes, spikes are what scales are for. Days without rows do not count: what
//! an excluded incident or an outage has hidden is not forgotten.
//!
//! Not taken, by what they cost on labelled servers: the same for residuals (their recall fell from 0.92 to 0.78),
//! habits in the forest too (0.91), wider scales instead of a limit (0.88).

use super::memory::ASPECTS;
use super::profile::{BUCKET_MS, BUCKETS};
use super::state::InvalidState;

/// Columns of a metric that have habits: difference and deviation.
const COLUMNS: usize = ASPECTS - 1;
/// Days on each of which it came.
const DAYS: usize = 4;
/// Quarters that are kept: those days, one to both sides, and the current one.
const KEPT: usize = DAYS * BUCKETS + 2;
/// A habit is at least so many times what half of the quarters have.
const STANDS_OUT: f32 = 3.0;
/// The greatest finite number of 16 bits, see [`shorten`].
const GREATEST: u16 = 0x7f7f;

/// The state of a group: peaks of all metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Habits {
    /// The current quarter of an hour since the epoch.
    quarter: i64,
    /// Peaks, shape `[n_metrics, COLUMNS, KEPT]`, row-major, a quarter's at its number modulo `KEPT`.
    peaks: Vec<u16>,
    /// What is a habit now, shape `[n_metrics, COLUMNS]`, row-major, in the units of the columns; 0 where nothing is.
    usual: Vec<f32>,
}

impl Habits {
    /// None yet.
    pub fn new(n_metrics: usize) -> Self {
        let n_columns = n_metrics * COLUMNS;
        Self { quarter: i64::MIN, peaks: vec![0; n_columns * KEPT], usual: vec![0.0; n_columns] }
    }

    /// Habits from a file, after a row of that time.
    pub fn restore(n_metrics: usize, newest_ms: Option<i64>, peaks: Vec<u16>) -> Result<Self, InvalidState> {
        let length = n_metrics * COLUMNS * KEPT;
        if peaks.len() != length {
            return Err(InvalidState::new("number of peaks", peaks.len(), length));
        }
        if let Some(peak) = peaks.iter().find(|peak| **peak > GREATEST) {
            return Err(InvalidState::new("peak", peak, format_args!("at most {GREATEST}")));
        }
        let quarter = newest_ms.map_or(i64::MIN, |newest_ms| newest_ms.div_euclid(BUCKET_MS));
        let mut habits = Self { quarter, peaks, ..Self::new(n_metrics) };
        habits.renew();
        Ok(habits)
    }

    /// The peaks, for files: the upper halves of numbers of 32 bits.
    pub fn state(&self) -> &[u16] {
        &self.peaks
    }

    /// What is a habit at the time of the newest row: greatest difference and deviation of each metric, shape
    /// `[n_metrics, 2]`; 0 where nothing is.
    pub fn usual(&self) -> &[f32] {
        &self.usual
    }

    /// Takes the columns of the next row, shape `[n_metrics, ASPECTS]`.
    pub fn add(&mut self, timestamp_ms: i64, columns: &[f32]) {
        self.begin(timestamp_ms.div_euclid(BUCKET_MS));
        let place = place(self.quarter);
        let peaks = self.peaks.iter_mut().skip(place).step_by(KEPT);
        let with_habits = columns.iter().enumerate().filter(|(column, _)| column % ASPECTS != 0);
        for (peak, (_, value)) in peaks.zip(with_habits) {
            *peak = (*peak).max(shorten(*value));
        }
    }

    fn begin(&mut self, quarter: i64) {
        if quarter <= self.quarter {
            return;
        }
        let day = BUCKETS as i64;
        if self.quarter != i64::MIN {
            // Days that nobody saw are as if they had not been, and quarters as those of the day before.
            let unseen = quarter - self.quarter - 1;
            let days = unseen.div_euclid(day);
            let turn = (days * day).rem_euclid(KEPT as i64) as usize;
            for peaks in self.peaks.chunks_exact_mut(KEPT) {
                peaks.rotate_right(turn);
                (self.quarter + days * day + 1..quarter)
                    .for_each(|passed| peaks[place(passed)] = peaks[place(passed - day)]);
            }
        }
        self.peaks.iter_mut().skip(place(quarter)).step_by(KEPT).for_each(|peak| *peak = 0);
        self.quarter = quarter;
        self.renew();
    }

    fn renew(&mut self) {
        let current = place(self.quarter);
        let mut others = Vec::with_capacity(KEPT);
        for (usual, peaks) in self.usual.iter_mut().zip(self.peaks.chunks_exact(KEPT)) {
            let at = |ago: usize| peaks[(current + KEPT - ago) % KEPT];
            let of_day =
                |day: usize| (-1..=1).map(|near: isize| at((day * BUCKETS).wrapping_add_signed(near))).max();
            let least = (1..=DAYS).filter_map(of_day).min().unwrap_or(0);
            others.clear();
            others.extend((1..KEPT).map(at));
            let middle = KEPT / 2;
            let half = lengthen(*others.select_nth_unstable(middle).1);
            let least = lengthen(least);
            *usual = if least > STANDS_OUT * half { least } else { 0.0 };
        }
    }
}

fn place(quarter: i64) -> usize {
    quarter.rem_euclid(KEPT as i64) as usize
}

/// The upper half of a magnitude, rounded up: three digits are enough of a peak. NaN counts as 0.
fn shorten(value: f32) -> u16 {
    let bits = value.abs().max(0.0).to_bits().div_ceil(1 << 16);
    u16::try_from(bits).map_or(GREATEST, |bits| bits.min(GREATEST))
}

fn lengthen(peak: u16) -> f32 {
    f32::from_bits(u32::from(peak) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = BUCKETS as i64;

    /// A jump of 100 at quarter 8 of the days that have it; noise up to 9 all day.
    fn after(days: &[bool]) -> Habits {
        let mut habits = Habits::new(1);
        for (day, jumps) in days.iter().enumerate() {
            for quarter in 0..DAY {
                let noise = (quarter % 10) as f32;
                let value = if *jumps && quarter == 8 { -100.0 } else { noise };
                habits.add((day as i64 * DAY + quarter) * BUCKET_MS, &[1e9, value, noise]);
            }
        }
        habits
    }

    fn usual_at(habits: &mut Habits, quarter: i64) -> Vec<f32> {
        habits.begin(quarter);
        habits.usual().to_vec()
    }

    #[test]
    fn what_comes_every_day_is_a_habit_around_its_time_of_day() {
        let mut habits = after(&[true; 5]);
        for (quarter, usual) in [(6, 0.0), (7, 100.0), (8, 100.0), (9, 100.0), (10, 0.0)] {
            assert_eq!(usual_at(&mut habits, 5 * DAY + quarter), [usual, 0.0], "{quarter}");
        }
    }

    #[test]
    fn a_day_without_it_ends_a_habit_and_four_begin_one() {
        for (days, usual) in [
            (vec![true; 3], 0.0),
            (vec![true; 4], 100.0),
            (vec![true, true, true, true, false], 0.0),
            (vec![true, false, true, true, true, true], 100.0),
        ] {
            let at = days.len() as i64 * DAY + 8;
            assert_eq!(usual_at(&mut after(&days), at), [usual, 0.0], "{days:?}");
        }
    }

    #[test]
    fn a_gap_is_no_news() {
        for days in [5, 6, 7, 8, 9, 500] {
            // The last day breaks off at ten in the morning, and some days later it is eight.
            let mut habits = after(&[true; 5]);
            (0..40).for_each(|quarter| {
                habits
                    .add((5 * DAY + quarter) * BUCKET_MS, &[0.0, if quarter == 8 { 100.0 } else { 1.0 }, 1.0])
            });
            let at = |quarter| (5 + days) * DAY + quarter;
            assert_eq!(usual_at(&mut habits, at(7)), [100.0, 0.0], "{days}");
            assert_eq!(usual_at(&mut habits, at(32)), [0.0, 0.0], "{days}");
            assert_eq!(usual_at(&mut habits, at(DAY + 8)), [100.0, 0.0], "{days}");
        }
        let mut once = after(&[false, false, true]);
        assert_eq!(usual_at(&mut once, 9 * DAY + 8), [0.0, 0.0], "one day does not become four");
    }

    #[test]
    fn spikes_of_every_hour_are_none() {
        let mut habits = Habits::new(1);
        for quarter in 0..6 * DAY {
            habits.add(quarter * BUCKET_MS, &[0.0, if quarter % 3 == 0 { 100.0 } else { 50.0 }, 1.0]);
        }
        assert_eq!(habits.usual(), [0.0, 0.0]);
    }

    #[test]
    fn a_peak_keeps_three_digits_and_never_shrinks() {
        for value in [0.0, 1e-30, 0.1, 1.0, 3.7, 1e9, 1e38] {
            let kept = lengthen(shorten(value));
            assert!((value..=value * 1.008 + 1e-38).contains(&kept), "{value} {kept}");
        }
        assert_eq!(shorten(f32::NAN), 0);
        assert!(lengthen(shorten(f32::INFINITY)).is_finite() && lengthen(shorten(f32::MAX)).is_finite());
    }

    #[test]
    fn goes_on_from_its_state() {
        let mut habits = after(&[true; 5]);
        usual_at(&mut habits, 5 * DAY + 8);
        let (newest_ms, peaks) = (Some((5 * DAY + 8) * BUCKET_MS + 7), habits.state());
        assert_eq!(Habits::restore(1, newest_ms, peaks.to_vec()).expect("its own"), habits);
        assert!(Habits::restore(2, newest_ms, peaks.to_vec()).is_err());
        let mut wrong = peaks.to_vec();
        wrong[7] = 0x7f80;
        let refused = Habits::restore(1, newest_ms, wrong).expect_err("not finite").to_string();
        assert_eq!(refused, "peak is 32640, must be at most 32639");
    }
}
