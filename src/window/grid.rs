//! Which samples make one row: the grid of a group.
//!
//! All samples of one scrape of one target carry the same millisecond, so a group that is one
//! target needs no grid: every timestamp is a row, whatever the interval and its jitter. A group
//! over several targets has them at different phases of one interval; there a row is a slot of
//! that interval, cut where the phases leave the widest gap, and its timestamp is its newest
//! sample's. Both are read off the samples themselves, so no order of arrival matters, and a
//! configured scrape interval that is not the real one does no harm.

use super::{Column, Window};
use crate::time::upper_median;

/// How timestamps become rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// One timestamp, one row.
    Exact,
    /// Slots of `interval_ms` that begin at `cut_ms` modulo the interval.
    Slots {
        /// Length of a slot in milliseconds, at least 1.
        interval_ms: i64,
        /// Where slots begin, in `[0, interval_ms)`.
        slot_start_ms: i64,
    },
}

impl Grid {
    /// The times `(after, to]` that belong to the row of a timestamp.
    pub fn bounds(&self, timestamp_ms: i64) -> (i64, i64) {
        match *self {
            Self::Exact => (timestamp_ms - 1, timestamp_ms),
            Self::Slots { interval_ms, slot_start_ms: cut_ms } => {
                let start = timestamp_ms - (timestamp_ms - cut_ms).rem_euclid(interval_ms);
                (start - 1, start + interval_ms - 1)
            }
        }
    }

    /// Reads the grid off the samples of `columns` in a window.
    ///
    /// Timestamps are rows by themselves when the column with the fewest samples has most of them in
    /// rows that have every column.
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
        let steps: Vec<i64> =
            times.iter().flat_map(|times| times.windows(2).map(|pair| pair[1] - pair[0])).collect();
        if complete * 2 >= fewest || steps.is_empty() {
            return Self::Exact;
        }
        let interval_ms = upper_median(steps).expect("steps are not empty");
        let mut phases: Vec<i64> =
            times.iter().filter_map(|times| times.last()).map(|time| time.rem_euclid(interval_ms)).collect();
        phases.sort_unstable();
        // The gap after each phase; the last one reaches round to the first.
        let next = phases.iter().skip(1).copied().chain([phases[0] + interval_ms]);
        let (gap, phase) = phases.iter().zip(next).map(|(a, b)| (b - a, *a)).max().expect("a phase a column");
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
            let column = window.get_or_add_column(&labels).expect("few");
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
    fn several_targets_share_slots_cut_in_the_widest_gap() {
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
