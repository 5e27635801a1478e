//! The columns that have cells in a chunk. A chunk of few columns of a large group keeps two bytes for each other one.

/// No slot.
const ABSENT: u16 = u16::MAX;

/// The slot of each column that has cells.
#[derive(Clone, Debug, Default)]
pub struct ColumnSlots(Vec<u16>);

impl ColumnSlots {
    /// The slot of a column.
    pub fn get(&self, column: usize) -> Option<usize> {
        self.0.get(column).filter(|slot| **slot != ABSENT).map(|slot| usize::from(*slot))
    }

    /// Gives a slot to a column that has none.
    pub fn insert(&mut self, column: usize, slot: usize) {
        if self.0.len() <= column {
            self.0.resize(column + 1, ABSENT);
        }
        self.0[column] = u16::try_from(slot).expect("a group has fewer columns");
    }

    /// Columns and their slots, in the order of the columns.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.0.len()).filter_map(|column| Some((column, self.get(column)?)))
    }

    /// Bytes in use.
    pub fn n_bytes(&self) -> usize {
        self.0.capacity() * size_of::<u16>()
    }
}
