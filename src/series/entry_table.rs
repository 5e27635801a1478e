//! A hash table of sixteen-byte entries that are looked up many at a time.
//!
//! The entries of a fleet do not fit the processor's caches, and then a look-up is a wait for memory.
//! Here it is one wait: the entry lies where its hash says, or right behind (linear probing, half of
//! the places free), and nothing is asked before it, as a table with a byte of tags beside its
//! entries asks them. And it is hardly that: [`Table::fetch`] does nothing but read the places of a
//! whole request, so that their waits pass at the same time. Nothing is ever deleted, only moved to
//! another table; the standard map is the oracle in the test.

use super::EntryId;

/// A series: 64 bits of its hash, 32 more, and what is known of it.
#[derive(Clone, Copy)]
pub struct Slot {
    key: u64,
    fingerprint: u32,
    id: EntryId,
}

/// No series yet.
const EMPTY: EntryId = EntryId(u32::MAX);
/// The series that was here is in another table now.
const MOVED: EntryId = EntryId(u32::MAX - 1);

/// Slots of a table without a series.
const INITIAL_SLOTS: usize = 1 << 6;

/// See the [module](self).
pub struct EntryTable {
    /// A power of two of them.
    slots: Vec<Slot>,
    /// Slots that are not free.
    n_occupied: usize,
    len: usize,
}

impl Default for EntryTable {
    fn default() -> Self {
        Self::with_slots(INITIAL_SLOTS)
    }
}

impl EntryTable {
    fn with_slots(n: usize) -> Self {
        Self { slots: vec![Slot { key: 0, fingerprint: 0, id: EMPTY }; n], n_occupied: 0, len: 0 }
    }

    /// Series in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reads the slot at which the search for each of these begins.
    #[inline]
    pub fn prefetch(&self, keys: impl Iterator<Item = u64>, slots: &mut Vec<Slot>) {
        let mask = self.slots.len() - 1;
        slots.clear();
        slots.extend(keys.map(|place| self.slots[place as usize & mask]));
    }

    /// Finds a series whose search begins at `first`: its check and its code.
    #[inline]
    pub fn get_from(&self, first: Slot, key: u64) -> Option<(u32, EntryId)> {
        if first.key == key && first.id != EMPTY {
            return (first.id != MOVED).then_some((first.fingerprint, first.id));
        }
        if first.id == EMPTY { None } else { self.get(key) }
    }

    /// Finds a series.
    pub fn get(&self, key: u64) -> Option<(u32, EntryId)> {
        let Slot { fingerprint, id, .. } = self.slots[self.find(key)];
        (id != EMPTY && id != MOVED).then_some((fingerprint, id))
    }

    /// The slot of a series, or the free one where it belongs.
    fn find(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut position = key as usize & mask;
        while self.slots[position].id != EMPTY && self.slots[position].key != key {
            position = (position + 1) & mask;
        }
        position
    }

    /// Puts a series in; returns what was known of it.
    pub fn insert(&mut self, key: u64, fingerprint: u32, id: EntryId) -> Option<EntryId> {
        if 2 * (self.n_occupied + 1) > self.slots.len() {
            self.grow();
        }
        let position = self.find(key);
        let old = std::mem::replace(&mut self.slots[position], Slot { key, fingerprint, id }).id;
        self.n_occupied += usize::from(old == EMPTY);
        let existed = old != EMPTY && old != MOVED;
        self.len += usize::from(!existed);
        existed.then_some(old)
    }

    fn grow(&mut self) {
        let mut larger = Self::with_slots(2 * self.slots.len());
        for slot in self.slots.iter().filter(|slot| slot.id != EMPTY && slot.id != MOVED) {
            let at = larger.find(slot.key);
            larger.slots[at] = *slot;
            larger.n_occupied += 1;
        }
        larger.len = larger.n_occupied;
        *self = larger;
    }

    /// Takes a series out, to be put into another table.
    pub fn remove(&mut self, key: u64) -> Option<(u32, EntryId)> {
        let found = self.get(key)?;
        let position = self.find(key);
        self.slots[position].id = MOVED;
        self.len -= 1;
        Some(found)
    }

    /// The codes of what is in it.
    pub fn ids(&self) -> impl Iterator<Item = EntryId> {
        let ids = self.slots.iter().map(|slot| slot.id);
        ids.filter(|code| *code != EMPTY && *code != MOVED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u32, u32),
        Remove(u64),
        Get(Vec<u64>),
    }

    /// Few places, and many that begin at the same slot.
    fn any_key() -> impl Strategy<Value = u64> {
        (0..40_u64, 0..8_u64).prop_map(|(low, high)| high << 40 | low)
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (any_key(), 0..3_u32, 0..1000_u32).prop_map(|(place, check, code)| Step::Insert(place, check, code)),
            1 => any_key().prop_map(Step::Remove),
            2 => prop::collection::vec(any_key(), 0..20).prop_map(Step::Get),
        ]
    }

    proptest! {
        #[test]
        fn equals_a_map(steps in prop::collection::vec(any_step(), 0..400)) {
            let (mut table, mut map) = (EntryTable::default(), HashMap::new());
            let mut slots = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(place, check, code) => {
                        let old = map.insert(place, (check, EntryId(code))).map(|(_, old)| old);
                        prop_assert_eq!(table.insert(place, check, EntryId(code)), old);
                    }
                    Step::Remove(place) => prop_assert_eq!(table.remove(place), map.remove(&place)),
                    Step::Get(places) => {
                        table.prefetch(places.iter().copied(), &mut slots);
                        for (place, slot) in places.iter().zip(&slots) {
                            prop_assert_eq!(table.get_from(*slot, *place), map.get(place).copied());
                        }
                    }
                }
                prop_assert_eq!(table.len(), map.len());
            }
            let mut codes: Vec<u32> = table.ids().map(|code| code.0).collect();
            let mut expected: Vec<u32> = map.values().map(|(_, code)| code.0).collect();
            codes.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(codes, expected);
        }
    }
}
