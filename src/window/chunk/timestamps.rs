//! The timestamps of the rows of a chunk: plain, or packed as the values are. Those at one interval take no bits.

use super::packed::PackedValues;
use std::ops::Range;

/// Timestamps in milliseconds, ascending, without repetition.
#[derive(Clone, Copy, Debug)]
pub enum Timestamps<'a> {
    /// Of an open chunk.
    Plain(&'a [i64]),
    /// Of a sealed chunk.
    Packed(PackedValues<'a>),
}

impl<'a> Timestamps<'a> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(timestamps) => timestamps.len(),
            Self::Packed(timestamps) => timestamps.len(),
        }
    }

    /// The timestamp of a row below [`len`](Self::len).
    #[inline]
    pub fn at(&self, row: usize) -> i64 {
        match self {
            Self::Plain(timestamps) => timestamps[row],
            Self::Packed(timestamps) => timestamps.bits(row).cast_signed(),
        }
    }

    /// The timestamp of a row; `None` from the number of rows on.
    pub fn get(&self, row: usize) -> Option<i64> {
        (row < self.len()).then(|| self.at(row))
    }

    /// Number of timestamps before the first one for which `is_before` is false.
    pub fn partition_point(&self, is_before: impl Fn(i64) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if is_before(self.at(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The row of a timestamp.
    pub fn find(&self, timestamp_ms: i64) -> Option<usize> {
        let row = self.partition_point(|time| time < timestamp_ms);
        (self.get(row)? == timestamp_ms).then_some(row)
    }

    /// The timestamps of some rows.
    pub fn range(self, rows: Range<usize>) -> impl Iterator<Item = i64> + 'a {
        rows.map(move |row| self.at(row))
    }

    /// A copy.
    pub fn to_vec(self) -> Vec<i64> {
        self.range(0..self.len()).collect()
    }
}
