//! A hash table of sixteen-byte entries that are looked up many at a time.
//!
//! The entries of a fleet do not fit the processor's caches, and then a look-up is a wait for memory.
//! Here it is one wait: the entry lies where its hash says, or right behind (linear probing, half of
//! the places free), and nothing is asked before it, as a table with a byte of tags beside its
//! entries asks them. And it is hardly that: [`Table::fetch`] does nothing but read the places of a
//! whole request, so that their waits pass at the same time. Nothing is ever deleted, only moved to
//! another table; the standard map is the oracle in the test.

use super::Code;

/// A series: 64 bits of its hash, 32 more, and what is known of it.
#[derive(Clone, Copy)]
pub struct Slot {
    place: u64,
    check: u32,
    code: Code,
}

/// No series yet.
const EMPTY: Code = Code(u32::MAX);
/// The series that was here is in another table now.
const MOVED: Code = Code(u32::MAX - 1);

/// Slots of a table without a series.
const FIRST_SLOTS: usize = 1 << 6;

/// See the [module](self).
pub struct Table {
    /// A power of two of them.
    slots: Vec<Slot>,
    /// Slots that are not free.
    taken: usize,
    len: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self::with_slots(FIRST_SLOTS)
    }
}

impl Table {
    fn with_slots(n: usize) -> Self {
        Self { slots: vec![Slot { place: 0, check: 0, code: EMPTY }; n], taken: 0, len: 0 }
    }

    /// Series in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reads the slot at which the search for each of these begins.
    #[inline]
    pub fn fetch(&self, places: impl Iterator<Item = u64>, slots: &mut Vec<Slot>) {
        let mask = self.slots.len() - 1;
        slots.clear();
        slots.extend(places.map(|place| self.slots[place as usize & mask]));
    }

    /// Finds a series whose search begins at `first`: its check and its code.
    #[inline]
    pub fn get_from(&self, first: Slot, place: u64) -> Option<(u32, Code)> {
        if first.place == place && first.code != EMPTY {
            return (first.code != MOVED).then_some((first.check, first.code));
        }
        if first.code == EMPTY { None } else { self.get(place) }
    }

    /// Finds a series.
    pub fn get(&self, place: u64) -> Option<(u32, Code)> {
        let Slot { check, code, .. } = self.slots[self.find(place)];
        (code != EMPTY && code != MOVED).then_some((check, code))
    }

    /// The slot of a series, or the free one where it belongs.
    fn find(&self, place: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = place as usize & mask;
        while self.slots[at].code != EMPTY && self.slots[at].place != place {
            at = (at + 1) & mask;
        }
        at
    }

    /// Puts a series in; returns what was known of it.
    pub fn insert(&mut self, place: u64, check: u32, code: Code) -> Option<Code> {
        if 2 * (self.taken + 1) > self.slots.len() {
            self.grow();
        }
        let at = self.find(place);
        let old = std::mem::replace(&mut self.slots[at], Slot { place, check, code }).code;
        self.taken += usize::from(old == EMPTY);
        let known = old != EMPTY && old != MOVED;
        self.len += usize::from(!known);
        known.then_some(old)
    }

    fn grow(&mut self) {
        let mut larger = Self::with_slots(2 * self.slots.len());
        for slot in self.slots.iter().filter(|slot| slot.code != EMPTY && slot.code != MOVED) {
            let at = larger.find(slot.place);
            larger.slots[at] = *slot;
            larger.taken += 1;
        }
        larger.len = larger.taken;
        *self = larger;
    }

    /// Takes a series out, to be put into another table.
    pub fn take(&mut self, place: u64) -> Option<(u32, Code)> {
        let found = self.get(place)?;
        let at = self.find(place);
        self.slots[at].code = MOVED;
        self.len -= 1;
        Some(found)
    }

    /// The codes of what is in it.
    pub fn codes(&self) -> impl Iterator<Item = Code> {
        let codes = self.slots.iter().map(|slot| slot.code);
        codes.filter(|code| *code != EMPTY && *code != MOVED)
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
        Take(u64),
        Get(Vec<u64>),
    }

    /// Few places, and many that begin at the same slot.
    fn any_place() -> impl Strategy<Value = u64> {
        (0..40_u64, 0..8_u64).prop_map(|(low, high)| high << 40 | low)
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (any_place(), 0..3_u32, 0..1000_u32).prop_map(|(place, check, code)| Step::Insert(place, check, code)),
            1 => any_place().prop_map(Step::Take),
            2 => prop::collection::vec(any_place(), 0..20).prop_map(Step::Get),
        ]
    }

    proptest! {
        #[test]
        fn equals_a_map(steps in prop::collection::vec(any_step(), 0..400)) {
            let (mut table, mut map) = (Table::default(), HashMap::new());
            let mut slots = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(place, check, code) => {
                        let old = map.insert(place, (check, Code(code))).map(|(_, old)| old);
                        prop_assert_eq!(table.insert(place, check, Code(code)), old);
                    }
                    Step::Take(place) => prop_assert_eq!(table.take(place), map.remove(&place)),
                    Step::Get(places) => {
                        table.fetch(places.iter().copied(), &mut slots);
                        for (place, slot) in places.iter().zip(&slots) {
                            prop_assert_eq!(table.get_from(*slot, *place), map.get(place).copied());
                        }
                    }
                }
                prop_assert_eq!(table.len(), map.len());
            }
            let mut codes: Vec<u32> = table.codes().map(|code| code.0).collect();
            let mut expected: Vec<u32> = map.values().map(|(_, code)| code.0).collect();
            codes.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(codes, expected);
        }
    }
}
