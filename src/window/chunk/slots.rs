//! The columns that have cells in a chunk. A chunk of few columns of a large group keeps two bytes for each one between them.

/// No slot.
const ABSENT: u16 = u16::MAX;

/// The slot of each column that has cells.
#[derive(Clone, Debug, Default)]
pub struct ColumnSlots {
    /// The first column that has cells.
    first: usize,
    /// The slot of each column from there on.
    slots: Vec<u16>,
}

impl ColumnSlots {
    /// The slot of a column.
    pub fn get(&self, column: usize) -> Option<usize> {
        let slot = self.slots.get(column.wrapping_sub(self.first));
        slot.filter(|slot| **slot != ABSENT).map(|slot| usize::from(*slot))
    }

    /// Gives a slot to a column that has none.
    pub fn insert(&mut self, column: usize, slot: usize) {
        if self.slots.is_empty() {
            self.first = column;
        }
        if column < self.first {
            self.slots.splice(0..0, std::iter::repeat_n(ABSENT, self.first - column));
            self.first = column;
        }
        let position = column - self.first;
        if self.slots.len() <= position {
            self.slots.resize(position + 1, ABSENT);
        }
        self.slots[position] = u16::try_from(slot).expect("a group has fewer columns");
    }

    /// Columns and their slots, in the order of the columns.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        (self.first..self.first + self.slots.len()).filter_map(|column| Some((column, self.get(column)?)))
    }

    /// Bytes in use.
    pub fn n_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<u16>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_in_any_order_and_take_no_memory_for_those_before_them() {
        let mut slots = ColumnSlots::default();
        for (slot, column) in [700, 702, 698].into_iter().enumerate() {
            slots.insert(column, slot);
        }
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(698, 2), (700, 0), (702, 1)]);
        assert_eq!([0, 697, 699, 703].map(|column| slots.get(column)), [None; 4]);
        assert!(slots.n_bytes() < 64, "{}", slots.n_bytes());
    }
}
