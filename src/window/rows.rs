//! The rows of a window in a range of time, found once to read several columns of them.

use super::chunk::RowSource;
use super::column::Column;
use crate::prom::Sample;
use std::ops::Range;

/// See the [module](self).
pub struct Rows<'a> {
    /// The chunks with these rows, ascending, and the indices of the rows in each.
    slices: Vec<(&'a dyn RowSource, Range<usize>)>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(slices: impl Iterator<Item = (&'a dyn RowSource, Range<usize>)>) -> Self {
        Self { slices: slices.collect() }
    }

    /// Appends the samples of a feature, ascending, including staleness markers.
    pub fn samples(&self, column: Column, out: &mut Vec<Sample>) {
        for (rows, range) in &self.slices {
            rows.samples(column.index(), range.clone(), out);
        }
    }

    /// The newest sample of a feature.
    pub fn newest_sample(&self, column: Column) -> Option<Sample> {
        let mut newest_first = self.slices.iter().rev();
        newest_first.find_map(|(rows, range)| rows.newest_sample(column.index(), range.clone()))
    }
}
