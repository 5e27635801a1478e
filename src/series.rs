//! From the bytes of a label set to the columns that watch it.
//!
//! Most series that Prometheus sends are not watched, so the way past them is short: one hash of
//! the labels as they stand on the wire, one look-up, no allocation. Only a series that was
//! never seen has its labels decoded and matched.
//!
//! The hash has 96 bits and a random seed: two series do not share one (a chance in 10^17 among
//! a million), and nobody can make them. A series takes 16 bytes in the table and one cache line to
//! find, and a request's are fetched together; the few that are watched have their columns beside it. Memory stays bounded under churn by
//! two generations: what was not seen for a whole generation is forgotten, and resolved again
//! should it come back.

mod entry_table;

use crate::window::Column;
use entry_table::{EntryTable, Slot};
use std::hash::{BuildHasher, RandomState};

/// Series of one generation, at 16 bytes and the table's slack each. Two generations are kept.
pub const GENERATION_SIZE: usize = 1 << 20;

/// What is known of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum IndexEntry<'a> {
    /// Its samples are counted and left.
    Ignored(IgnoreReason),
    /// Its samples go to these columns; more than one when several detectors watch it.
    Watched(&'a [ColumnRef]),
}

/// Why the samples of a series are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IgnoreReason {
    /// No detector selects it.
    Unwatched,
    /// It is one of our own outputs, come back.
    OwnOutput,
    /// Its labels are invalid.
    InvalidLabels,
    /// The limit of watched series is reached.
    OverLimit,
}

impl IgnoreReason {
    const ALL: [Self; 4] = [Self::Unwatched, Self::OwnOutput, Self::InvalidLabels, Self::OverLimit];
}

/// A column of a group's window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColumnRef {
    /// The group, never used for another one.
    pub group: u32,
    /// The column in its window.
    pub column: Column,
}

/// The hash of a series' labels: 64 bits find it in the table, 32 more tell it from another one at
/// the same place.
fn split_hash(hash: u128) -> (u64, u32) {
    (hash as u64, (hash >> 64) as u32)
}

/// An [`Ignored`] by its number, or, from [`FIRST_WATCHED`] on, a place in [`Index::watched`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EntryId(u32);

const FIRST_WATCHED_ID: u32 = IgnoreReason::ALL.len() as u32;

/// Every series seen lately.
pub struct SeriesIndex {
    current: EntryTable,
    previous: EntryTable,
    /// The slots of a request.
    slots: Vec<Slot>,
    generation_size: usize,
    watched: Vec<Box<[ColumnRef]>>,
    /// Places in `watched` that are free again.
    free: Vec<u32>,
    /// Places that nothing remembers any more, and that somebody may still hold: free at the next
    /// look-up.
    released: Vec<u32>,
    seed: u64,
}

impl Default for SeriesIndex {
    fn default() -> Self {
        Self::with_generation(GENERATION_SIZE)
    }
}

impl SeriesIndex {
    /// An index of generations of the given size.
    pub fn with_generation(generation_size: usize) -> Self {
        Self {
            current: EntryTable::default(),
            previous: EntryTable::default(),
            slots: Vec::new(),
            generation_size,
            watched: Vec::new(),
            free: Vec::new(),
            released: Vec::new(),
            seed: RandomState::new().hash_one(0),
        }
    }

    /// The seed of the labels' hashes.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What is known of each of these series; `None` when it has to be resolved and
    /// [inserted](Self::insert). It stays true until the next call, whatever is inserted.
    pub fn lookup(&mut self, hashes: &[u128], ids: &mut Vec<Option<EntryId>>) {
        self.free.append(&mut self.released);
        ids.clear();
        let keys = hashes.iter().map(|hash| split_hash(*hash).0);
        self.current.prefetch(keys, &mut self.slots);
        for (i, hash) in hashes.iter().enumerate() {
            let (key, fingerprint) = split_hash(*hash);
            let found = self.current.get_from(self.slots[i], key).or_else(|| self.promote(key));
            ids.push(found.and_then(|(found, code)| (found == fingerprint).then_some(code)));
        }
    }

    /// Takes a series over from the generation before.
    fn promote(&mut self, key: u64) -> Option<(u32, EntryId)> {
        let Some((fingerprint, id)) = self.previous.remove(key) else {
            // It may have been taken over since the slots were read.
            return self.current.get(key);
        };
        self.current.insert(key, fingerprint, id);
        Some((fingerprint, id))
    }

    /// What a code stands for.
    pub fn entry(&self, id: EntryId) -> IndexEntry<'_> {
        match IgnoreReason::ALL.get(id.0 as usize) {
            Some(reason) => IndexEntry::Ignored(*reason),
            None => IndexEntry::Watched(&self.watched[(id.0 - FIRST_WATCHED_ID) as usize]),
        }
    }

    /// Remembers a series, in place of what was known of it.
    pub fn insert(&mut self, hash: u128, entry: IndexEntry<'_>) -> EntryId {
        if self.current.len() >= self.generation_size {
            let expired = std::mem::replace(&mut self.previous, std::mem::take(&mut self.current));
            expired.ids().for_each(|code| self.release(code));
        }
        let id = match entry {
            IndexEntry::Ignored(ignored) => EntryId(ignored as u32),
            IndexEntry::Watched(columns) => self.store_columns(columns.into()),
        };
        let (key, fingerprint) = split_hash(hash);
        if let Some(old) = self.current.insert(key, fingerprint, id) {
            self.release(old);
        }
        id
    }

    fn store_columns(&mut self, columns: Box<[ColumnRef]>) -> EntryId {
        let index = match self.free.pop() {
            Some(index) => {
                self.watched[index as usize] = columns;
                index
            }
            None => {
                self.watched.push(columns);
                self.watched.len() as u32 - 1
            }
        };
        EntryId(index + FIRST_WATCHED_ID)
    }

    fn release(&mut self, id: EntryId) {
        if id.0 >= FIRST_WATCHED_ID {
            self.released.push(id.0 - FIRST_WATCHED_ID);
        }
    }

    /// Forgets everything, after a change of what is watched.
    pub fn clear(&mut self) {
        *self = Self { seed: self.seed, ..Self::with_generation(self.generation_size) };
    }

    /// Series remembered.
    pub fn len(&self) -> usize {
        self.current.len() + self.previous.len()
    }

    /// Is nothing remembered?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_128_with_seed;

    fn hash(index: &SeriesIndex, i: u32) -> u128 {
        xxh3_128_with_seed(&i.to_le_bytes(), index.seed())
    }

    fn lookup(index: &mut SeriesIndex, hash: u128) -> Option<IndexEntry<'_>> {
        let mut ids = Vec::new();
        index.lookup(&[hash], &mut ids);
        ids[0].map(|code| index.entry(code))
    }

    #[test]
    fn f30_f31_keeps_series_that_are_seen_and_evicts_others() {
        let mut window = crate::window::Window::new(1000);
        let mut index = SeriesIndex::with_generation(100);
        let own = hash(&index, u32::MAX);
        index.insert(own, IndexEntry::Ignored(IgnoreReason::OwnOutput));
        for i in 0..10_000_u32 {
            let key = hash(&index, i);
            assert_eq!(lookup(&mut index, key), None);
            let labels = crate::prom::Labels::new([("i", (i % 1000).to_string())]).expect("valid");
            let target =
                ColumnRef { group: i, column: window.get_or_add_column(&labels).expect("a thousand") };
            let targets = [target];
            let even = i % 2 == 0;
            index.insert(
                key,
                if even {
                    IndexEntry::Watched(&targets)
                } else {
                    IndexEntry::Ignored(IgnoreReason::Unwatched)
                },
            );
            assert_eq!(
                lookup(&mut index, own),
                Some(IndexEntry::Ignored(IgnoreReason::OwnOutput)),
                "seen all the time"
            );
            if i % 2 == 0 {
                assert_eq!(lookup(&mut index, key), Some(IndexEntry::Watched(&[target])));
            }
            assert!(index.len() <= 202 && index.watched.len() <= 152);
        }
        let first = hash(&index, 0);
        assert_eq!(lookup(&mut index, first), None, "not seen for two generations");
        index.clear();
        assert!(index.is_empty());
    }

    #[test]
    fn a_series_can_be_resolved_anew() {
        let mut index = SeriesIndex::default();
        let key = hash(&index, 0);
        index.insert(key, IndexEntry::Ignored(IgnoreReason::OverLimit));
        index.insert(key, IndexEntry::Watched(&[]));
        index.insert(key, IndexEntry::Ignored(IgnoreReason::Unwatched));
        assert_eq!(lookup(&mut index, key), Some(IndexEntry::Ignored(IgnoreReason::Unwatched)));
        assert_eq!((index.len(), index.free.len()), (1, 1));
    }

    /// What a request has looked up means the same to its end, whatever is inserted meanwhile.
    #[test]
    fn looked_up_ids_stay_valid_until_the_next_lookup() {
        let mut window = crate::window::Window::new(1000);
        let mut target = |i: u32| {
            let labels = crate::prom::Labels::new([("i", i.to_string())]).expect("valid");
            ColumnRef { group: i, column: window.get_or_add_column(&labels).expect("few") }
        };
        let mut index = SeriesIndex::with_generation(2);
        let [first, second] = [target(1), target(2)];
        let keys: Vec<u128> = (0..8).map(|i| hash(&index, i)).collect();
        index.insert(keys[0], IndexEntry::Watched(&[first]));
        let mut ids = Vec::new();
        index.lookup(&[keys[0], keys[0], keys[1]], &mut ids);
        let id = ids[0].expect("known");
        assert_eq!(ids, [Some(id), Some(id), None]);
        index.insert(keys[0], IndexEntry::Ignored(IgnoreReason::Unwatched));
        for key in &keys[1..] {
            index.insert(*key, IndexEntry::Watched(&[second]));
        }
        assert_eq!(index.entry(id), IndexEntry::Watched(&[first]));
    }
}
