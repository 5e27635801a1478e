//! The turn of a request: one of the concurrent requests, and its share of their memory.
//!
//! A client that disconnects drops the future of its request, but neither work on a blocking thread nor a command that
//! waits for the engine. The turn therefore belongs to the work: each part holds a clone, and the last one ends it.

use super::error::{Error, MAX_CONCURRENT_REQUESTS, MEMORY_LIMIT};
use crate::budget::{BudgetLease, ByteBudget};
use prometheus_client::metrics::gauge::Gauge;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Longest wait of a request above the limit of concurrent ones.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

/// The turns of a server. Clones share them.
#[derive(Clone, Debug)]
pub struct WorkPermits {
    semaphore: Arc<Semaphore>,
    memory: ByteBudget,
    in_flight: Gauge,
}

impl WorkPermits {
    /// [`MAX_CONCURRENT_REQUESTS`] turns, counted in a gauge.
    pub fn new(in_flight: Gauge) -> Self {
        let semaphore = Arc::new(Semaphore::new(MAX_CONCURRENT_REQUESTS));
        Self { semaphore, memory: ByteBudget::default(), in_flight }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// [`Error::Overloaded`] after [`QUEUE_TIMEOUT`].
    pub async fn acquire(&self) -> Result<WorkPermit, Error> {
        let permit = timeout(QUEUE_TIMEOUT, self.semaphore.clone().acquire_owned()).await;
        let permit = permit.map_err(|_| Error::Overloaded)?.map_err(|_| Error::ShuttingDown)?;
        self.in_flight.inc();
        let lease = Mutex::new(self.memory.lease());
        let guard = InFlightGuard { in_flight: self.in_flight.clone(), lease, _permit: permit };
        Ok(WorkPermit(Arc::new(guard)))
    }
}

/// A turn; see the [module](self). Clones share it.
#[derive(Clone, Debug)]
pub struct WorkPermit(Arc<InFlightGuard>);

/// Counts a request as in progress until it is dropped.
#[derive(Debug)]
struct InFlightGuard {
    in_flight: Gauge,
    lease: Mutex<BudgetLease>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.in_flight.dec();
    }
}

impl WorkPermit {
    /// Reserves more memory for as long as the turn lasts.
    ///
    /// # Errors
    /// [`Error::Limit`] for more than one request may take, [`Error::OutOfMemory`] if other requests hold too much.
    pub fn reserve(&self, bytes: usize) -> Result<(), Error> {
        let mut lease = self.0.lease.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = lease.bytes().saturating_add(bytes);
        if bytes > MEMORY_LIMIT {
            return Err(Error::Limit { what: "bytes of memory", limit: MEMORY_LIMIT });
        }
        lease.resize(bytes, MEMORY_LIMIT).map_err(|_| Error::OutOfMemory)
    }

    /// Runs work on a blocking thread, where a costly regular expression delays nothing else.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`] if the work does not end.
    pub async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let permit = self.clone();
        let work = move || {
            let result = work();
            drop(permit);
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::ShuttingDown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[tokio::test]
    async fn a_turn_lasts_until_its_work_ends_also_without_the_client() {
        let permits = WorkPermits::new(Gauge::default());
        let available = || permits.semaphore.available_permits();
        let permit = permits.acquire().await.expect("a free turn");
        let (started, wait_for_start) = tokio::sync::oneshot::channel();
        let (finish, wait_for_finish) = sync_channel::<()>(0);
        let work = move || {
            let _ = started.send(());
            let _ = wait_for_finish.recv();
        };
        let request = tokio::spawn(async move { permit.run_blocking(work).await });
        wait_for_start.await.expect("the work starts");
        request.abort();
        assert!(request.await.expect_err("aborted").is_cancelled());
        assert_eq!((available(), permits.in_flight.get()), (MAX_CONCURRENT_REQUESTS - 1, 1));
        drop(finish);
        let all = permits.semaphore.acquire_many(MAX_CONCURRENT_REQUESTS as u32).await;
        assert!(all.is_ok());
    }

    #[tokio::test]
    async fn requests_in_progress_share_one_limit_of_memory() {
        let permits = WorkPermits::new(Gauge::default());
        let first = permits.acquire().await.expect("a free turn");
        first.reserve(MEMORY_LIMIT - 10).expect("there is room");
        let second = permits.acquire().await.expect("a free turn");
        second.reserve(10).expect("there is room");
        assert!(matches!(second.reserve(1), Err(Error::OutOfMemory)));
        assert!(matches!(second.reserve(MEMORY_LIMIT + 1), Err(Error::Limit { .. })));
        drop(first);
        second.reserve(MEMORY_LIMIT).expect("there is room");
    }
}
