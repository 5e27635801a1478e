//! The groups with rows that a command left, in turn.

use crate::pipeline::group::scoring::Advance;
use std::collections::{BTreeSet, VecDeque};

/// See the [module](self).
#[derive(Default)]
pub(super) struct Backlog {
    order: VecDeque<u32>,
    members: BTreeSet<u32>,
}

impl Backlog {
    /// Adds the group unless its rows are finished.
    pub(super) fn record(&mut self, id: u32, advance: Advance) {
        if !advance.is_finished && self.members.insert(id) {
            self.order.push_back(id);
        }
    }

    /// Takes the next group.
    pub(super) fn pop(&mut self) -> Option<u32> {
        let id = self.order.pop_front()?;
        self.members.remove(&id);
        Some(id)
    }

    /// True if no group has rows left.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}
