//! The series index: maps the hash of a label set to the columns that store its samples.
//!
//! Most series that Prometheus sends are not watched, so they cost one hash of the label bytes and one lookup, without
//! allocation. Labels are decoded and matched only for new series.
//!
//! The hash has 96 bits and a random seed, so collisions are negligible (a probability of 10^-17 among a million
//! series) and cannot be forced. A series takes 16 bytes in the table and one cache line to find; the lookups of a
//! request are prefetched together. Watched series, which are few, have their columns in a separate list. Two
//! generations bound the memory under churn: series not seen for a whole generation are evicted, and resolved again
//! if they return.

mod entry_table;

use crate::tenant::Tenant;
use crate::window::Column;
use entry_table::{EntryTable, TableSlot};

pub use entry_table::EntryId;

use std::hash::{BuildHasher, RandomState};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Series of one generation, at 16 bytes each plus free slots. The index keeps two generations.
pub const GENERATION_SIZE: usize = 1 << 20;

/// The entry of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum IndexEntry<'a> {
    /// Its samples are counted and dropped.
    Ignored(IgnoreReason),
    /// Its samples go to these columns, one per detector that selects the series.
    Watched(&'a [ColumnRef]),
}

/// The reason for which the samples of a series are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IgnoreReason {
    /// No detector selects it.
    Unwatched,
    /// It is an output series of promforest itself.
    OwnOutput,
    /// Its labels are invalid.
    InvalidLabels,
    /// Its target lies in another shard.
    WrongShard,
    /// The limit on watched series is reached.
    OverLimit,
    /// Its tenant's limit on watched series or groups is reached.
    OverTenantLimit,
    /// The limit on tenants is reached.
    TooManyTenants,
    /// It has no valid tenant.
    NoTenant,
}

impl IgnoreReason {
    const ALL: [Self; 8] = [
        Self::Unwatched,
        Self::OwnOutput,
        Self::InvalidLabels,
        Self::WrongShard,
        Self::OverLimit,
        Self::OverTenantLimit,
        Self::TooManyTenants,
        Self::NoTenant,
    ];
}

/// A column of a group's window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColumnRef {
    /// The id of the group; ids are not reused.
    pub group: u32,
    /// The column in its window.
    pub column: Column,
    /// The numbering of the columns that the column belongs to.
    pub numbering: u32,
}

/// The columns of a watched series. One detector selects nearly all, and its column is stored in place.
enum Columns {
    One(ColumnRef),
    Several(Box<[ColumnRef]>),
}

impl From<&[ColumnRef]> for Columns {
    fn from(columns: &[ColumnRef]) -> Self {
        match columns {
            [column] => Self::One(*column),
            columns => Self::Several(columns.into()),
        }
    }
}

impl Columns {
    fn as_slice(&self) -> &[ColumnRef] {
        match self {
            Self::One(column) => std::slice::from_ref(column),
            Self::Several(columns) => columns,
        }
    }
}

/// Splits the hash of a label set into the key in the table, 64 bits, and a fingerprint of 32 bits that detects
/// collisions of keys.
fn split_hash(hash: u128) -> (u64, u32) {
    (hash as u64, (hash >> 64) as u32)
}

/// Ids below are an [`IgnoreReason`] by its number; from here on, an index in [`SeriesIndex::watched`].
const FIRST_WATCHED_ID: u32 = IgnoreReason::ALL.len() as u32;

/// The index of recently seen series.
pub struct SeriesIndex {
    current: EntryTable,
    previous: EntryTable,
    /// First slots of the series of a request.
    slots: Vec<TableSlot>,
    generation_size: usize,
    watched: Vec<Columns>,
    /// Free indices of `watched`.
    free: Vec<u32>,
    /// Indices of `watched` without an entry, whose ids the caller may still hold. They are free at the next lookup.
    released: Vec<u32>,
    seed: u64,
}

impl Default for SeriesIndex {
    fn default() -> Self {
        Self::with_generation(GENERATION_SIZE)
    }
}

impl SeriesIndex {
    /// An index with generations of the given size.
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

    /// The seed for hashes of labels. Each tenant has its own: equal labels of two are two series.
    pub fn seed(&self, tenant: Option<&Tenant>) -> u64 {
        tenant.map_or(self.seed, |tenant| xxh3_64_with_seed(tenant.as_str().as_bytes(), self.seed))
    }

    /// Looks up the ids of series; `None` for a series that must be resolved and [inserted](Self::insert). Ids stay
    /// valid until the next call, also after insertions.
    pub fn lookup(&mut self, hashes: &[u128], ids: &mut Vec<Option<EntryId>>) {
        self.free.append(&mut self.released);
        ids.clear();
        let keys = hashes.iter().map(|hash| split_hash(*hash).0);
        self.current.prefetch(keys, &mut self.slots);
        for (i, hash) in hashes.iter().enumerate() {
            let (key, fingerprint) = split_hash(*hash);
            let found = self.current.get_from(self.slots[i], key).or_else(|| self.promote(key));
            ids.push(found.and_then(|(found, id)| (found == fingerprint).then_some(id)));
        }
    }

    /// Moves a series from the previous generation to the current one.
    fn promote(&mut self, key: u64) -> Option<(u32, EntryId)> {
        let Some((fingerprint, id)) = self.previous.remove(key) else {
            // The series may have moved since the slots were read.
            return self.current.get(key);
        };
        self.current.insert(key, fingerprint, id);
        Some((fingerprint, id))
    }

    /// The entry of an id.
    pub fn entry(&self, id: EntryId) -> IndexEntry<'_> {
        match IgnoreReason::ALL.get(id.0 as usize) {
            Some(reason) => IndexEntry::Ignored(*reason),
            None => IndexEntry::Watched(self.watched[(id.0 - FIRST_WATCHED_ID) as usize].as_slice()),
        }
    }

    /// Inserts a series. Replaces its previous entry.
    pub fn insert(&mut self, hash: u128, entry: IndexEntry<'_>) -> EntryId {
        if self.current.len() >= self.generation_size {
            let expired = std::mem::replace(&mut self.previous, std::mem::take(&mut self.current));
            expired.ids().for_each(|id| self.release(id));
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

    fn store_columns(&mut self, columns: Columns) -> EntryId {
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

    /// Removes all entries, after a change of the selection.
    pub fn clear(&mut self) {
        *self = Self { seed: self.seed, ..Self::with_generation(self.generation_size) };
    }

    /// Number of series.
    pub fn len(&self) -> usize {
        self.current.len() + self.previous.len()
    }

    /// True if the index is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_128_with_seed;

    fn hash(index: &SeriesIndex, i: u32) -> u128 {
        xxh3_128_with_seed(&i.to_le_bytes(), index.seed(None))
    }

    fn lookup(index: &mut SeriesIndex, hash: u128) -> Option<IndexEntry<'_>> {
        let mut ids = Vec::new();
        index.lookup(&[hash], &mut ids);
        ids[0].map(|id| index.entry(id))
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
            let target = ColumnRef {
                group: i,
                column: window.get_or_add_column(&labels).expect("fewer columns than the limit"),
                numbering: 0,
            };
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
    fn a_series_can_be_resolved_again() {
        let mut index = SeriesIndex::default();
        let key = hash(&index, 0);
        index.insert(key, IndexEntry::Ignored(IgnoreReason::OverLimit));
        index.insert(key, IndexEntry::Watched(&[]));
        index.insert(key, IndexEntry::Ignored(IgnoreReason::Unwatched));
        assert_eq!(lookup(&mut index, key), Some(IndexEntry::Ignored(IgnoreReason::Unwatched)));
        assert_eq!((index.len(), index.free.len()), (1, 1));
    }

    /// Ids of a request stay valid until the next lookup, also after insertions.
    #[test]
    fn looked_up_ids_stay_valid_until_the_next_lookup() {
        let mut window = crate::window::Window::new(1000);
        let mut target = |i: u32| {
            let labels = crate::prom::Labels::new([("i", i.to_string())]).expect("valid");
            ColumnRef {
                group: i,
                column: window.get_or_add_column(&labels).expect("fewer columns than the limit"),
                numbering: 0,
            }
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
