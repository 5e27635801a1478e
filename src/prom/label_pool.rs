//! Equal label sets in one piece of memory: the features of all hosts of a fleet have the same labels.

use super::labels::Labels;
use std::collections::HashSet;

/// The label sets in use.
#[derive(Debug, Default)]
pub struct LabelPool(HashSet<Labels>);

impl LabelPool {
    /// The label set in the memory of an equal one, if that is in use.
    #[must_use]
    pub fn share(&mut self, labels: Labels) -> Labels {
        if let Some(equal) = self.0.get(&labels) {
            return equal.clone();
        }
        self.0.insert(labels.clone());
        labels
    }

    /// Forgets the label sets that are not in use.
    pub fn forget_unused(&mut self) {
        self.0.retain(Labels::is_shared);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_label_sets_share_their_memory_while_they_are_in_use() {
        let labels = || Labels::new([("a", "1")]).expect("valid");
        let mut pool = LabelPool::default();
        let first = pool.share(labels());
        assert!(std::ptr::eq(first.get("a"), pool.share(labels()).get("a")));
        pool.forget_unused();
        assert_eq!(pool.0.len(), 1);
        drop(first);
        pool.forget_unused();
        assert!(pool.0.is_empty());
    }
}
