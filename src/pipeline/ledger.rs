//! The positions in a partition before which every row is written or given up.
//!
//! A record has rows of many groups, and each group is finished with a row in its own time. The records since the last look
//! share one mark, which holds the newest row of each group, so a mark takes no more than the groups of its partition. The
//! number of marks is bounded too: while the oldest waits, the newest grows.

use crate::kafka::intake::Position;
use std::collections::{BTreeMap, VecDeque};

/// Marks that wait for their rows, beside the one that grows.
const MAX_MARKS: usize = 16;

/// For each group, the timestamp of the newest row.
pub type NewestRows = BTreeMap<u32, i64>;

/// Consecutive records, and the rows that they have to wait for.
#[derive(Debug)]
struct Mark {
    end: Position,
    rows: NewestRows,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Ledger {
    /// Oldest first.
    marks: VecDeque<Mark>,
    /// The records since the last look.
    growing: Option<Mark>,
    settled: Option<Position>,
}

impl Ledger {
    /// Adds a record that ends at `end`, with the newest row of each of its groups.
    pub fn record(&mut self, end: Position, rows: NewestRows) {
        match &mut self.growing {
            None => self.growing = Some(Mark { end, rows }),
            Some(mark) => {
                mark.end = end;
                for (group, newest_ms) in rows {
                    let row = mark.rows.entry(group).or_insert(newest_ms);
                    *row = newest_ms.max(*row);
                }
            }
        }
    }

    /// The position before which all rows are settled, if there is one. `is_settled` is asked for a group and the timestamp of
    /// its newest row.
    pub fn settle(&mut self, mut is_settled: impl FnMut(u32, i64) -> bool) -> Option<Position> {
        if self.marks.len() < MAX_MARKS {
            self.marks.extend(self.growing.take());
        }
        while let Some(mark) = self.marks.front_mut() {
            mark.rows.retain(|group, newest_ms| !is_settled(*group, *newest_ms));
            if !mark.rows.is_empty() {
                break;
            }
            self.settled = self.marks.pop_front().map(|mark| mark.end);
        }
        self.settled
    }

    /// Lets all marks wait for these rows, of groups that have other numbers now.
    pub fn renumber(&mut self, rows: &NewestRows) {
        for mark in self.marks.iter_mut().chain(&mut self.growing) {
            mark.rows.clone_from(rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn end(offset: i64) -> Position {
        Position { offset, produced_ms: 10 * offset }
    }

    #[test]
    fn the_oldest_row_that_waits_holds_the_position() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.settle(|_, _| true), None, "nothing is read");
        ledger.record(end(1), [(7, 100), (8, 100)].into());
        assert_eq!(ledger.settle(|group, _| group == 8), None);
        ledger.record(end(2), [(8, 200)].into());
        assert_eq!(ledger.settle(|group, _| group == 8), None, "the row before it waits");
        ledger.record(end(3), [(8, 300)].into());
        assert_eq!(ledger.settle(|_, newest_ms| newest_ms <= 200), Some(end(2)));
        assert_eq!(ledger.settle(|_, _| false), Some(end(2)), "it does not go back");
        ledger.record(end(4), NewestRows::new());
        assert_eq!(ledger.settle(|_, _| true), Some(end(4)));
    }

    #[test]
    fn groups_with_other_numbers_hold_the_position() {
        let mut ledger = Ledger::default();
        ledger.record(end(1), [(7, 100)].into());
        ledger.renumber(&[(9, 100)].into());
        assert_eq!(ledger.settle(|group, _| group != 9), None);
        assert_eq!(ledger.settle(|_, _| true), Some(end(1)));
    }

    proptest! {
        /// Compared with all records in a list: the position is never after the first record with a row that waits, and it
        /// is there once there are as many looks as marks. The number of marks stays within its bound.
        #[test]
        fn no_position_is_after_a_row_that_waits(
            steps in proptest::collection::vec(
                (proptest::collection::btree_map(0..5_u32, 0..4_i64, 0..4), 0..5_u32, 0..5_i64, any::<bool>()),
                1..80,
            ),
        ) {
            let mut ledger = Ledger::default();
            let mut records: Vec<(Position, NewestRows)> = Vec::new();
            let mut settled_to: BTreeMap<u32, i64> = BTreeMap::new();
            for (i, (rows, group, advance, looks)) in steps.into_iter().enumerate() {
                let now = i as i64;
                let rows: NewestRows = rows.into_iter().map(|(group, ahead)| (group, now + ahead)).collect();
                records.push((end(now + 1), rows.clone()));
                ledger.record(end(now + 1), rows);
                *settled_to.entry(group).or_insert(-1) += advance;
                let is_settled = |group: u32, newest: i64| settled_to.get(&group).is_some_and(|to| *to >= newest);
                let done = |(_, rows): &&(Position, NewestRows)| rows.iter().all(|(group, newest)| is_settled(*group, *newest));
                let expected = records.iter().take_while(done).last().map(|(end, _)| *end);
                if looks {
                    let found = ledger.settle(is_settled);
                    prop_assert!(found.map(|end| end.offset) <= expected.map(|end| end.offset));
                }
                prop_assert!(ledger.marks.len() <= MAX_MARKS);
            }
            let last = (0..=MAX_MARKS).filter_map(|_| ledger.settle(|_, _| true)).last();
            prop_assert_eq!(last, records.last().map(|(end, _)| *end));
        }
    }
}
