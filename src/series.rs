//! From the bytes of a label set to the columns that watch it.
//!
//! Most series that Prometheus sends are not watched, so the way past them is short: one hash of
//! the label bytes as they stand on the wire, one look-up, no allocation. Only a series that was
//! never seen has its labels decoded and matched.
//!
//! The hash has 96 bits and a random seed: two series do not share one (a chance in 10^17 among
//! a million), and nobody can make them. A series takes 16 bytes in the table and one cache line to
//! find; the few that are watched have their columns beside it. Memory stays bounded under churn by
//! two generations: what was not seen for a whole generation is forgotten, and resolved again
//! should it come back.

use crate::window::Column;
use std::collections::{HashMap, hash_map};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Series of one generation, at 16 bytes and the table's slack each. Two generations are kept.
pub const GENERATION: usize = 1 << 20;

/// What is known of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Entry<'a> {
    /// Its samples are counted and left.
    Ignored(Ignored),
    /// Its samples go to these columns; more than one when several detectors watch it.
    Watched(&'a [Target]),
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

impl Ignored {
    const ALL: [Self; 4] = [Self::Unwatched, Self::Own, Self::Invalid, Self::OverLimit];
}

/// A column of a group's window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The group, never used for another one.
    pub group: u32,
    /// The column in its window.
    pub column: Column,
}

/// The hash of a series' label bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Finds the series in the table.
    place: u64,
    /// Tells it from another one at the same place.
    check: u32,
}

/// A place is a hash already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a place hashes as one u64");
    }

    fn write_u64(&mut self, place: u64) {
        self.0 = place;
    }
}

/// An [`Ignored`] by its number, or, from [`FIRST_WATCHED`] on, a place in [`Index::watched`].
#[derive(Clone, Copy, Debug)]
struct Code(u32);

const FIRST_WATCHED: u32 = Ignored::ALL.len() as u32;

type Table = HashMap<u64, (u32, Code), BuildHasherDefault<AsItIs>>;

/// Every series seen lately.
pub struct Index {
    current: Table,
    previous: Table,
    generation: usize,
    watched: Vec<Box<[Target]>>,
    /// Places in `watched` that are free again.
    free: Vec<u32>,
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
        Self {
            current: Table::default(),
            previous: Table::default(),
            generation,
            watched: Vec::new(),
            free: Vec::new(),
            seed: RandomState::new().hash_one(0),
        }
    }

    /// The key of a series' label bytes.
    pub fn key(&self, label_bytes: &[u8]) -> Key {
        let hash = xxh3_128_with_seed(label_bytes, self.seed);
        Key { place: hash as u64, check: (hash >> 64) as u32 }
    }

    /// What is known of a series; `None` when it has to be resolved and [inserted](Self::insert).
    pub fn lookup(&mut self, key: Key) -> Option<Entry<'_>> {
        let (check, code) = match self.current.entry(key.place) {
            hash_map::Entry::Occupied(found) => *found.get(),
            hash_map::Entry::Vacant(place) => *place.insert(self.previous.remove(&key.place)?),
        };
        if check != key.check {
            return None;
        }
        Some(match Ignored::ALL.get(code.0 as usize) {
            Some(ignored) => Entry::Ignored(*ignored),
            None => Entry::Watched(&self.watched[(code.0 - FIRST_WATCHED) as usize]),
        })
    }

    /// Remembers a series, in place of what was known of it.
    pub fn insert(&mut self, key: Key, entry: Entry<'_>) {
        if self.current.len() >= self.generation {
            let forgotten = std::mem::replace(&mut self.previous, std::mem::take(&mut self.current));
            forgotten.into_values().for_each(|(_, code)| self.release(code));
        }
        let code = match entry {
            Entry::Ignored(ignored) => Code(ignored as u32),
            Entry::Watched(targets) => self.place(targets.into()),
        };
        if let Some((_, old)) = self.current.insert(key.place, (key.check, code)) {
            self.release(old);
        }
    }

    fn place(&mut self, targets: Box<[Target]>) -> Code {
        let place = match self.free.pop() {
            Some(place) => {
                self.watched[place as usize] = targets;
                place
            }
            None => {
                self.watched.push(targets);
                self.watched.len() as u32 - 1
            }
        };
        Code(place + FIRST_WATCHED)
    }

    fn release(&mut self, code: Code) {
        if code.0 >= FIRST_WATCHED {
            self.free.push(code.0 - FIRST_WATCHED);
        }
    }

    /// Forgets everything, after a change of what is watched.
    pub fn clear(&mut self) {
        *self = Self { seed: self.seed, ..Self::with_generation(self.generation) };
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
        let mut window = crate::window::Window::new(1000);
        let mut index = Index::with_generation(100);
        let own = index.key(b"own");
        index.insert(own, Entry::Ignored(Ignored::Own));
        for i in 0..10_000_u32 {
            let key = index.key(&i.to_le_bytes());
            assert_eq!(index.lookup(key), None);
            let labels = crate::prom::Labels::new([("i", (i % 1000).to_string())]).expect("valid");
            let target = Target { group: i, column: window.column(&labels).expect("a thousand") };
            let targets = [target];
            let even = i % 2 == 0;
            index.insert(
                key,
                if even { Entry::Watched(&targets) } else { Entry::Ignored(Ignored::Unwatched) },
            );
            assert_eq!(index.lookup(own), Some(Entry::Ignored(Ignored::Own)), "seen all the time");
            if i % 2 == 0 {
                assert_eq!(index.lookup(key), Some(Entry::Watched(&[target])));
            }
            assert!(index.len() <= 202 && index.watched.len() <= 102);
        }
        let first = index.key(&0_u32.to_le_bytes());
        assert_eq!(index.lookup(first), None, "not seen for two generations");
        index.clear();
        assert!(index.is_empty());
    }

    #[test]
    fn a_series_can_be_resolved_anew() {
        let mut index = Index::default();
        let key = index.key(b"series");
        index.insert(key, Entry::Ignored(Ignored::OverLimit));
        index.insert(key, Entry::Watched(&[]));
        index.insert(key, Entry::Ignored(Ignored::Unwatched));
        assert_eq!(index.lookup(key), Some(Entry::Ignored(Ignored::Unwatched)));
        assert_eq!((index.len(), index.free.len()), (1, 1));
    }
}
