//! A hash table of 16-byte slots for batched lookups.
//!
//! The entries of a fleet exceed the processor's caches, so a lookup waits for memory. Linear probing with half of the
//! slots free needs one cache line per lookup. [`EntryTable::prefetch`] reads the slots of a whole request in one loop,
//! so that their memory accesses overlap. Entries are never deleted, only moved to another table. The tests compare
//! the table with the standard map.
//!
//! Not taken: a table with a byte of tags per slot (the standard map). It reads the tags before the slot.

/// The id of an entry of the index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EntryId(pub(super) u32);

/// The slot of a series: 64 bits of its hash, 32 more, and the id of its entry.
#[derive(Clone, Copy)]
pub struct TableSlot {
    key: u64,
    fingerprint: u32,
    id: EntryId,
}

/// A free slot.
const EMPTY: EntryId = EntryId(u32::MAX);
/// The slot of a series that moved to another table.
const MOVED: EntryId = EntryId(u32::MAX - 1);

/// Slots of an empty table.
const INITIAL_SLOTS: usize = 1 << 6;

/// A hash table from keys to ids; see the [module](self).
pub struct EntryTable {
    /// The slots; their number is a power of two.
    slots: Vec<TableSlot>,
    /// Number of slots that are not free.
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
        Self { slots: vec![TableSlot { key: 0, fingerprint: 0, id: EMPTY }; n], n_occupied: 0, len: 0 }
    }

    /// Number of series.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reads the first slot of the search for each key.
    #[inline]
    pub fn prefetch(&self, keys: impl Iterator<Item = u64>, slots: &mut Vec<TableSlot>) {
        let mask = self.slots.len() - 1;
        slots.clear();
        slots.extend(keys.map(|key| self.slots[key as usize & mask]));
    }

    /// Fingerprint and id of a series, given the first slot of its search.
    #[inline]
    pub fn get_from(&self, first: TableSlot, key: u64) -> Option<(u32, EntryId)> {
        if first.key == key && first.id != EMPTY {
            return (first.id != MOVED).then_some((first.fingerprint, first.id));
        }
        if first.id == EMPTY { None } else { self.get(key) }
    }

    /// Fingerprint and id of a series.
    pub fn get(&self, key: u64) -> Option<(u32, EntryId)> {
        let TableSlot { fingerprint, id, .. } = self.slots[self.find(key)];
        (id != EMPTY && id != MOVED).then_some((fingerprint, id))
    }

    /// The slot of a series, or the free slot for it.
    fn find(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut position = key as usize & mask;
        while self.slots[position].id != EMPTY && self.slots[position].key != key {
            position = (position + 1) & mask;
        }
        position
    }

    /// Inserts a series. Returns its previous id.
    pub fn insert(&mut self, key: u64, fingerprint: u32, id: EntryId) -> Option<EntryId> {
        if 2 * (self.n_occupied + 1) > self.slots.len() {
            self.grow();
        }
        let position = self.find(key);
        let old = std::mem::replace(&mut self.slots[position], TableSlot { key, fingerprint, id }).id;
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

    /// Removes a series, to move it to another table.
    pub fn remove(&mut self, key: u64) -> Option<(u32, EntryId)> {
        let found = self.get(key)?;
        let position = self.find(key);
        self.slots[position].id = MOVED;
        self.len -= 1;
        Some(found)
    }

    /// The ids of all series.
    pub fn ids(&self) -> impl Iterator<Item = EntryId> {
        let ids = self.slots.iter().map(|slot| slot.id);
        ids.filter(|id| *id != EMPTY && *id != MOVED)
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

    /// Few keys, many of which start at the same slot.
    fn any_key() -> impl Strategy<Value = u64> {
        (0..40_u64, 0..8_u64).prop_map(|(low, high)| high << 40 | low)
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (any_key(), 0..3_u32, 0..1000_u32).prop_map(|(key, fingerprint, id)| Step::Insert(key, fingerprint, id)),
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
                    Step::Insert(key, fingerprint, id) => {
                        let old = map.insert(key, (fingerprint, EntryId(id))).map(|(_, old)| old);
                        prop_assert_eq!(table.insert(key, fingerprint, EntryId(id)), old);
                    }
                    Step::Remove(key) => prop_assert_eq!(table.remove(key), map.remove(&key)),
                    Step::Get(keys) => {
                        table.prefetch(keys.iter().copied(), &mut slots);
                        for (key, slot) in keys.iter().zip(&slots) {
                            prop_assert_eq!(table.get_from(*slot, *key), map.get(key).copied());
                        }
                    }
                }
                prop_assert_eq!(table.len(), map.len());
            }
            let mut ids: Vec<u32> = table.ids().map(|id| id.0).collect();
            let mut expected: Vec<u32> = map.values().map(|(_, id)| id.0).collect();
            ids.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(ids, expected);
        }
    }
}
