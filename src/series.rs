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

mod table;

use crate::window::Column;
use std::hash::{BuildHasher, RandomState};
use table::{Slot, Table};

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

/// The hash of a series' labels: 64 bits find it in the table, 32 more tell it from another one at
/// the same place.
fn place_and_check(hash: u128) -> (u64, u32) {
    (hash as u64, (hash >> 64) as u32)
}

/// An [`Ignored`] by its number, or, from [`FIRST_WATCHED`] on, a place in [`Index::watched`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Code(u32);

const FIRST_WATCHED: u32 = Ignored::ALL.len() as u32;

/// Every series seen lately.
pub struct Index {
    current: Table,
    previous: Table,
    /// The slots of a request.
    slots: Vec<Slot>,
    generation: usize,
    watched: Vec<Box<[Target]>>,
    /// Places in `watched` that are free again.
    free: Vec<u32>,
    /// Places that nothing remembers any more, and that somebody may still hold: free at the next
    /// look-up.
    released: Vec<u32>,
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
            slots: Vec::new(),
            generation,
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
    pub fn lookup(&mut self, hashes: &[u128], known: &mut Vec<Option<Code>>) {
        self.free.append(&mut self.released);
        known.clear();
        let places = hashes.iter().map(|hash| place_and_check(*hash).0);
        self.current.fetch(places, &mut self.slots);
        for (i, hash) in hashes.iter().enumerate() {
            let (place, check) = place_and_check(*hash);
            let found = self.current.get_from(self.slots[i], place).or_else(|| self.promote(place));
            known.push(found.and_then(|(found, code)| (found == check).then_some(code)));
        }
    }

    /// Takes a series over from the generation before.
    fn promote(&mut self, place: u64) -> Option<(u32, Code)> {
        let Some((check, code)) = self.previous.take(place) else {
            // It may have been taken over since the slots were read.
            return self.current.get(place);
        };
        self.current.insert(place, check, code);
        Some((check, code))
    }

    /// What a code stands for.
    pub fn entry(&self, code: Code) -> Entry<'_> {
        match Ignored::ALL.get(code.0 as usize) {
            Some(ignored) => Entry::Ignored(*ignored),
            None => Entry::Watched(&self.watched[(code.0 - FIRST_WATCHED) as usize]),
        }
    }

    /// Remembers a series, in place of what was known of it.
    pub fn insert(&mut self, hash: u128, entry: Entry<'_>) -> Code {
        if self.current.len() >= self.generation {
            let forgotten = std::mem::replace(&mut self.previous, std::mem::take(&mut self.current));
            forgotten.codes().for_each(|code| self.release(code));
        }
        let code = match entry {
            Entry::Ignored(ignored) => Code(ignored as u32),
            Entry::Watched(targets) => self.place(targets.into()),
        };
        let (place, check) = place_and_check(hash);
        if let Some(old) = self.current.insert(place, check, code) {
            self.release(old);
        }
        code
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
            self.released.push(code.0 - FIRST_WATCHED);
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
    use xxhash_rust::xxh3::xxh3_128_with_seed;

    fn hash(index: &Index, i: u32) -> u128 {
        xxh3_128_with_seed(&i.to_le_bytes(), index.seed())
    }

    fn lookup(index: &mut Index, hash: u128) -> Option<Entry<'_>> {
        let mut known = Vec::new();
        index.lookup(&[hash], &mut known);
        known[0].map(|code| index.entry(code))
    }

    #[test]
    fn f30_f31_remembers_what_is_seen_and_forgets_what_is_not() {
        let mut window = crate::window::Window::new(1000);
        let mut index = Index::with_generation(100);
        let own = hash(&index, u32::MAX);
        index.insert(own, Entry::Ignored(Ignored::Own));
        for i in 0..10_000_u32 {
            let key = hash(&index, i);
            assert_eq!(lookup(&mut index, key), None);
            let labels = crate::prom::Labels::new([("i", (i % 1000).to_string())]).expect("valid");
            let target = Target { group: i, column: window.column(&labels).expect("a thousand") };
            let targets = [target];
            let even = i % 2 == 0;
            index.insert(
                key,
                if even { Entry::Watched(&targets) } else { Entry::Ignored(Ignored::Unwatched) },
            );
            assert_eq!(lookup(&mut index, own), Some(Entry::Ignored(Ignored::Own)), "seen all the time");
            if i % 2 == 0 {
                assert_eq!(lookup(&mut index, key), Some(Entry::Watched(&[target])));
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
        let mut index = Index::default();
        let key = hash(&index, 0);
        index.insert(key, Entry::Ignored(Ignored::OverLimit));
        index.insert(key, Entry::Watched(&[]));
        index.insert(key, Entry::Ignored(Ignored::Unwatched));
        assert_eq!(lookup(&mut index, key), Some(Entry::Ignored(Ignored::Unwatched)));
        assert_eq!((index.len(), index.free.len()), (1, 1));
    }

    /// What a request has looked up means the same to its end, whatever is inserted meanwhile.
    #[test]
    fn what_was_looked_up_stays_true_until_the_next_time() {
        let mut window = crate::window::Window::new(1000);
        let mut target = |i: u32| {
            let labels = crate::prom::Labels::new([("i", i.to_string())]).expect("valid");
            Target { group: i, column: window.column(&labels).expect("few") }
        };
        let mut index = Index::with_generation(2);
        let [first, second] = [target(1), target(2)];
        let keys: Vec<u128> = (0..8).map(|i| hash(&index, i)).collect();
        index.insert(keys[0], Entry::Watched(&[first]));
        let mut known = Vec::new();
        index.lookup(&[keys[0], keys[0], keys[1]], &mut known);
        let code = known[0].expect("known");
        assert_eq!(known, [Some(code), Some(code), None]);
        index.insert(keys[0], Entry::Ignored(Ignored::Unwatched));
        for key in &keys[1..] {
            index.insert(*key, Entry::Watched(&[second]));
        }
        assert_eq!(index.entry(code), Entry::Watched(&[first]));
    }
}
