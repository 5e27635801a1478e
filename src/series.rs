//! From the bytes of a label set to the columns that watch it.
//!
//! Most series that Prometheus sends are not watched, so the way past them is short: one hash of
//! the label bytes as they stand on the wire, one look-up, no allocation. Only a series that was
//! never seen has its labels decoded and matched.
//!
//! The hash has 128 bits and a random seed: two series never share one, and nobody can make them.
//! Memory stays bounded under churn by two generations: what was not seen for a whole generation
//! is forgotten, and resolved again should it come back.

use crate::window::Column;
use std::collections::{HashMap, hash_map};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Series of one generation, at about 48 bytes each. Two generations are kept.
pub const GENERATION: usize = 1 << 20;

/// What is known of a series.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// Its samples are counted and left.
    Ignored(Ignored),
    /// It is one column of one group.
    Watched(Target),
    /// Several detectors watch it.
    WatchedByMany(Box<[Target]>),
}

/// Why the samples of a series are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// No detector selects it.
    Unwatched,
    /// It is one of our own outputs, come back.
    Own,
    /// Its labels are invalid.
    Invalid,
    /// The limit of watched series is reached.
    OverLimit,
}

/// A column of a group's window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The group, never used for another one.
    pub group: u32,
    /// The column in its window.
    pub column: Column,
}

impl Entry {
    /// The columns that the samples go to.
    pub fn targets(&self) -> &[Target] {
        match self {
            Self::Ignored(_) => &[],
            Self::Watched(target) => std::slice::from_ref(target),
            Self::WatchedByMany(targets) => targets,
        }
    }
}

impl From<Vec<Target>> for Entry {
    fn from(targets: Vec<Target>) -> Self {
        match targets[..] {
            [] => Self::Ignored(Ignored::Unwatched),
            [target] => Self::Watched(target),
            _ => Self::WatchedByMany(targets.into()),
        }
    }
}

/// The hash of a series' label bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u128);

/// The key is a hash already: its low half serves the table.
#[derive(Default)]
struct LowHalf(u64);

impl Hasher for LowHalf {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a key hashes itself as one u128");
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

type Table = HashMap<Key, Entry, BuildHasherDefault<LowHalf>>;

/// Every series seen lately.
pub struct Index {
    current: Table,
    previous: Table,
    generation: usize,
    seed: u64,
}

impl Default for Index {
    fn default() -> Self {
        Self::with_generation(GENERATION)
    }
}

impl Index {
    /// An index of generations of the given size.
    pub fn with_generation(generation: usize) -> Self {
        let seed = RandomState::new().hash_one(0);
        Self { current: Table::default(), previous: Table::default(), generation, seed }
    }

    /// The key of a series' label bytes.
    pub fn key(&self, label_bytes: &[u8]) -> Key {
        Key(xxh3_128_with_seed(label_bytes, self.seed))
    }

    /// What is known of a series; `None` when it has to be resolved and [inserted](Self::insert).
    pub fn lookup(&mut self, key: Key) -> Option<&Entry> {
        match self.current.entry(key) {
            hash_map::Entry::Occupied(found) => Some(found.into_mut()),
            hash_map::Entry::Vacant(place) => Some(place.insert(self.previous.remove(&key)?)),
        }
    }

    /// Remembers a series.
    pub fn insert(&mut self, key: Key, entry: Entry) {
        if self.current.len() >= self.generation {
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.insert(key, entry);
    }

    /// Forgets everything, after a change of what is watched.
    pub fn clear(&mut self) {
        self.current = Table::default();
        self.previous = Table::default();
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

    #[test]
    fn remembers_what_is_seen_and_forgets_what_is_not() {
        let mut index = Index::with_generation(100);
        let watched = index.key(b"watched");
        index.insert(watched, Entry::Ignored(Ignored::Own));
        for i in 0..10_000_u32 {
            let key = index.key(&i.to_le_bytes());
            assert_eq!(index.lookup(key), None);
            index.insert(key, Entry::Ignored(Ignored::Unwatched));
            assert_eq!(index.lookup(watched), Some(&Entry::Ignored(Ignored::Own)), "seen all the time");
            assert!(index.len() <= 201);
        }
        let first = index.key(&0_u32.to_le_bytes());
        assert_eq!(index.lookup(first), None, "not seen for two generations");
        index.clear();
        assert!(index.is_empty());
    }
}
