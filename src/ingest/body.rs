//! Receives request bodies within one budget of bytes.
//!
//! The share of a body grows with the bytes received, not with the announced length, which costs a sender nothing: two
//! senders that announce the largest body and send nothing would block all others. A body that finds no room to grow
//! fails and releases its share: bodies that waited while they hold a share would wait for each other.

use super::{BODY_LIMIT, Error, READ_TIMEOUT};
use crate::prom::wire::ProtocolVersion;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Limit of the bytes of all bodies that are being received or waiting to be decoded.
const IN_FLIGHT_LIMIT: usize = 64 << 20;
/// Size up to which a body may use the whole budget: Prometheus sends some hundred kilobytes.
const SMALL_BODY: usize = 1 << 20;
/// Part of the budget reserved for small bodies, so that a few stalled large ones do not block Prometheus.
const RESERVED_FOR_SMALL: usize = 16 << 20;

/// A received body and its share of the budget, which is released on drop.
#[derive(Debug)]
pub struct WriteBody {
    /// The body, still compressed.
    pub body: Bytes,
    /// The version that the headers name.
    pub version: ProtocolVersion,
    _lease: BudgetLease,
}

/// Receives bodies within one budget of bytes. Clones share it.
#[derive(Clone, Default)]
pub struct BodyReceiver {
    budget: Arc<InFlightBudget>,
}

impl BodyReceiver {
    /// Bytes in use.
    pub fn in_flight(&self) -> usize {
        *self.budget.lock()
    }

    /// Reads the body of a request. The version comes from [`negotiate`](super::negotiate).
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Overloaded`], [`Error::ReadTimeout`], [`Error::Interrupted`].
    pub async fn receive<B>(&self, version: ProtocolVersion, body: B) -> Result<WriteBody, Error>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let length = match body.size_hint().exact().map(usize::try_from) {
            Some(Ok(length)) if length <= BODY_LIMIT => length,
            Some(_) => return Err(Error::TooLarge),
            // The body is chunked.
            None => BODY_LIMIT,
        };
        let lease = BudgetLease { budget: self.budget.clone(), bytes: 0 };
        let buffer = BodyBuffer { bytes: Vec::new(), lease };
        let read = tokio::time::timeout(READ_TIMEOUT, buffer.read(body, length));
        let BodyBuffer { bytes, lease } = read.await.map_err(|_| Error::ReadTimeout)??;
        Ok(WriteBody { body: bytes.into(), version, _lease: lease })
    }
}

/// Bytes in use by all bodies.
#[derive(Debug, Default)]
struct InFlightBudget(Mutex<usize>);

impl InFlightBudget {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body's share of the budget.
#[derive(Debug)]
struct BudgetLease {
    budget: Arc<InFlightBudget>,
    bytes: usize,
}

impl Drop for BudgetLease {
    fn drop(&mut self) {
        *self.budget.lock() -= self.bytes;
    }
}

/// The received part of a body. Its lease covers its capacity.
struct BodyBuffer {
    bytes: Vec<u8>,
    lease: BudgetLease,
}

impl BodyBuffer {
    /// Reads a body of at most `length` bytes to its end.
    async fn read<B>(mut self, mut body: B, length: usize) -> Result<Self, Error>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(Error::Interrupted)?.into_data() else { continue };
            let needed = self.bytes.len() + data.len();
            if needed > BODY_LIMIT {
                return Err(Error::TooLarge);
            }
            if needed > self.lease.bytes {
                // Doubling keeps copies rare; a body holds at most twice the bytes that it has sent.
                self.grow(needed.max(length.min(2 * self.lease.bytes)))?;
            }
            self.bytes.extend_from_slice(&data);
        }
        Ok(self)
    }

    /// Extends the lease and the capacity to this number of bytes; without room, releases both.
    fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let limit = if bytes <= SMALL_BODY { IN_FLIGHT_LIMIT } else { IN_FLIGHT_LIMIT - RESERVED_FOR_SMALL };
        let mut in_flight = self.lease.budget.lock();
        let of_other_bodies = *in_flight - self.lease.bytes;
        if of_other_bodies + bytes > limit {
            // Released under the lock: of several bodies that grow at the same time, the last one finds room.
            self.bytes = Vec::new();
            *in_flight = of_other_bodies;
            self.lease.bytes = 0;
            return Err(Error::Overloaded("too many bytes in flight"));
        }
        *in_flight = of_other_bodies + bytes;
        self.lease.bytes = bytes;
        drop(in_flight);
        self.bytes.reserve_exact(bytes - self.bytes.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of several large bodies that grow together, one is received, and the sum stays within the limit.
    #[test]
    fn bodies_that_grow_together_do_not_wait_for_each_other() {
        const CHUNK: usize = 64 << 10;
        let budget = Arc::<InFlightBudget>::default();
        let new_buffer =
            || BodyBuffer { bytes: Vec::new(), lease: BudgetLease { budget: budget.clone(), bytes: 0 } };
        let mut buffers: Vec<BodyBuffer> = (0..10).map(|_| new_buffer()).collect();
        let mut n_rejected = 0;
        for size in (CHUNK..=BODY_LIMIT).step_by(CHUNK) {
            buffers.retain_mut(|buffer| {
                let has_room = buffer.grow(size).is_ok();
                n_rejected += usize::from(!has_room);
                assert!(*budget.lock() <= IN_FLIGHT_LIMIT - RESERVED_FOR_SMALL || size <= SMALL_BODY);
                has_room
            });
            assert_eq!(*budget.lock(), size * buffers.len());
            assert!(buffers.iter().all(|buffer| buffer.bytes.capacity() <= size));
        }
        assert_eq!((buffers.len(), n_rejected), (1, 9));
        let mut small_buffers: Vec<BodyBuffer> = (0..64).map(|_| new_buffer()).collect();
        let n_small = small_buffers.iter_mut().filter_map(|buffer| buffer.grow(SMALL_BODY).ok()).count();
        assert_eq!(n_small, 32, "the room beside the large one");
        drop((buffers, small_buffers));
        assert_eq!(*budget.lock(), 0);
    }
}
