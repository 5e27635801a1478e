//! The grid of a group: assigns timestamps to rows.
//!
//! All samples of one scrape of one target have the same timestamp. In a group of one target every timestamp is
//! therefore a row, for any interval and jitter. The targets of a larger group are scraped at different phases of one
//! interval. There a row is a slot of that interval, and its timestamp is that of its newest sample; slots start in
//! the widest gap between phases. The grid is inferred from the samples, so the order of arrival does not matter. Not
//! taken: the configured scrape interval, which may differ from the actual one.

use super::Window;
use super::column::Column;
use crate::time::upper_median;

/// Steps of each column, the newest ones, that the interval is inferred from: a changed scrape interval is known soon.
const NEWEST_STEPS: usize = 64;

/// The assignment of timestamps to rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// Every timestamp is a row.
    Exact,
    /// Slots of `interval_ms` that start at `slot_start_ms` modulo the interval.
    Slots {
        /// Length of a slot in milliseconds, at least 1.
        interval_ms: i64,
        /// Start of a slot, in `[0, interval_ms)`.
        slot_start_ms: i64,
    },
}

impl Grid {
    /// The bounds `(after_ms, to_ms]` of the row that contains a timestamp.
    pub fn bounds(&self, timestamp_ms: i64) -> (i64, i64) {
        match *self {
            Self::Exact => (timestamp_ms - 1, timestamp_ms),
            Self::Slots { interval_ms, slot_start_ms } => {
                let start = timestamp_ms - (timestamp_ms - slot_start_ms).rem_euclid(interval_ms);
                (start - 1, start + interval_ms - 1)
            }
        }
    }

    /// Infers the grid from the samples of `columns` in a window.
    ///
    /// The grid is [`Exact`](Self::Exact) if at least half of the samples of the shortest column have timestamps that
    /// all columns share.
    pub fn infer(window: &Window, columns: &[Column]) -> Self {
        let mut times: Vec<Vec<i64>> = Vec::with_capacity(columns.len());
        for column in columns {
            let mut samples = Vec::new();
            window.samples(*column, i64::MIN, i64::MAX, &mut samples);
            times.push(samples.iter().filter(|s| !s.is_stale()).map(|s| s.timestamp_ms).collect());
        }
        let fewest = times.iter().map(Vec::len).min().unwrap_or(0);
        let shared = |time: &&i64| times.iter().all(|other| other.binary_search(time).is_ok());
        let complete = times.first().map_or(0, |first| first.iter().filter(shared).count());
        let newest_steps = |times: &Vec<i64>| {
            let steps = times.windows(2).rev().take(NEWEST_STEPS).map(|pair| pair[1] - pair[0]);
            steps.collect::<Vec<i64>>()
        };
        let steps: Vec<i64> = times.iter().flat_map(newest_steps).collect();
        if complete * 2 >= fewest || steps.is_empty() {
            return Self::Exact;
        }
        let interval_ms = upper_median(steps).expect("steps are not empty");
        let mut phases: Vec<i64> =
            times.iter().filter_map(|times| times.last()).map(|time| time.rem_euclid(interval_ms)).collect();
        phases.sort_unstable();
        // The gap after each phase; the last gap wraps around to the first phase.
        let next = phases.iter().skip(1).copied().chain([phases[0] + interval_ms]);
        let (gap, phase) =
            phases.iter().zip(next).map(|(a, b)| (b - a, *a)).max().expect("one phase per column");
        Self::Slots { interval_ms, slot_start_ms: (phase + gap / 2).rem_euclid(interval_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prom::{Labels, Sample};

    fn window(phases: &[i64], interval_ms: i64, scrapes: i64) -> (Window, Vec<Column>) {
        let mut window = Window::new(i64::MAX / 4);
        let mut columns = Vec::new();
        for (i, phase) in phases.iter().enumerate() {
            let name = format!("m{i}");
            let labels = Labels::new([("__name__", name.as_str())]).expect("valid");
            let column = window.get_or_add_column(&labels).expect("fewer columns than the limit");
            for scrape in 0..scrapes {
                let timestamp_ms = 1_700_000_000_000 + scrape * interval_ms + phase;
                window.push(column, Sample { timestamp_ms, value: 1.0 });
            }
            columns.push(column);
        }
        (window, columns)
    }

    #[test]
    fn one_target_needs_no_grid() {
        let (window, columns) = window(&[7, 7, 7], 1000, 20);
        let grid = Grid::infer(&window, &columns);
        assert_eq!(grid, Grid::Exact);
        assert_eq!(grid.bounds(42), (41, 42));
    }

    #[test]
    fn a_changed_interval_is_that_of_the_newest_samples() {
        let (mut window, columns) = window(&[14_000, 1_000, 500], 15_000, 2_000);
        for (column, phase) in columns.iter().zip([14_000, 1_000, 500]) {
            for scrape in 501..600 {
                let timestamp_ms = 1_700_000_000_000 + scrape * 60_000 + phase;
                window.push(*column, Sample { timestamp_ms, value: 1.0 });
            }
        }
        let grid = Grid::infer(&window, &columns);
        assert!(matches!(grid, Grid::Slots { interval_ms: 60_000, .. }), "{grid:?}");
    }

    #[test]
    fn slots_of_several_targets_start_in_the_widest_gap() {
        let (window, columns) = window(&[14_000, 1_000, 500], 15_000, 20);
        let grid = Grid::infer(&window, &columns);
        // phases 500, 1000, 14000 of 15000 (the epoch here lies 5000 into a slot)
        let Grid::Slots { interval_ms: 15_000, .. } = grid else { panic!("{grid:?}") };
        let base = 1_700_000_000_000;
        let slot = grid.bounds(base + 14_000);
        assert_eq!(grid.bounds(base + 15_500), slot);
        assert_eq!(grid.bounds(base + 16_000), slot);
        assert_ne!(grid.bounds(base + 29_000), slot);
        for jitter in [-2_000, 2_000] {
            assert_eq!(grid.bounds(base + 14_000 + jitter), slot);
        }
    }
}
