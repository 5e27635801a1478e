//! A budget of bytes that concurrent requests share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes in use by all holders. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct ByteBudget(Arc<Mutex<usize>>);

impl ByteBudget {
    /// Bytes in use.
    pub fn in_use(&self) -> usize {
        *self.lock()
    }

    /// A lease of no bytes.
    pub fn lease(&self) -> BudgetLease {
        BudgetLease { budget: self.clone(), bytes: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The share of one holder, released on drop.
#[derive(Debug)]
pub struct BudgetLease {
    budget: ByteBudget,
    bytes: usize,
}

/// The budget has no room.
#[derive(Debug, PartialEq, Eq)]
pub struct BudgetExhausted;

impl BudgetLease {
    /// Bytes of this lease.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the lease to `bytes`. Without room below `limit` for the sum of all leases, releases it: of several
    /// holders that grow at the same time, the last one finds room.
    ///
    /// # Errors
    /// [`BudgetExhausted`] if there is no room.
    pub fn resize(&mut self, bytes: usize, limit: usize) -> Result<(), BudgetExhausted> {
        let mut in_use = self.budget.lock();
        let of_others = *in_use - self.bytes;
        let has_room = of_others.saturating_add(bytes) <= limit;
        self.bytes = if has_room { bytes } else { 0 };
        *in_use = of_others + self.bytes;
        has_room.then_some(()).ok_or(BudgetExhausted)
    }
}

impl Drop for BudgetLease {
    fn drop(&mut self) {
        *self.budget.lock() -= self.bytes;
    }
}
