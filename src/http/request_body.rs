//! Receives request bodies within one budget of bytes.
//!
//! The share of a body grows with the bytes received, not with the announced length, which costs a sender nothing: two
//! senders that announce the largest body and send nothing would block all others. A body that finds no room to grow
//! fails and releases its share: bodies that waited while they hold a share would wait for each other.

use crate::budget::{BudgetLease, ByteBudget};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use std::time::Duration;

/// Limits of the bodies of one route.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Bytes of one body, as received.
    pub body: usize,
    /// Bytes of all bodies that are being received or waiting to be decoded.
    pub in_flight: usize,
    /// Size up to which a body may use all of `in_flight`.
    pub small_body: usize,
    /// Part of `in_flight` reserved for small bodies, so that a few stalled large ones do not block the others.
    pub reserved_for_small: usize,
    /// Longest time in which a body must arrive.
    pub timeout: Duration,
}

/// A body that was not received.
#[derive(Debug)]
pub enum ReceiveError {
    /// The body exceeds [`BodyLimits::body`].
    TooLarge,
    /// The body did not arrive in time.
    Timeout,
    /// The connection failed before the end of the body.
    Interrupted(hyper::Error),
    /// The budget has no room.
    Overloaded,
}

/// A received body and its share of the budget, which is released on drop.
#[derive(Debug)]
pub struct ReceivedBody {
    /// The bytes, as received.
    pub bytes: Bytes,
    _lease: BudgetLease,
}

/// Receives bodies within one budget of bytes. Clones share it.
#[derive(Clone, Debug)]
pub struct BodyReceiver {
    limits: BodyLimits,
    budget: ByteBudget,
}

impl BodyReceiver {
    /// A receiver with a budget of its own.
    pub fn new(limits: BodyLimits) -> Self {
        Self { limits, budget: ByteBudget::default() }
    }

    /// Bytes in use.
    pub fn in_flight(&self) -> usize {
        self.budget.in_use()
    }

    /// Reads the body of a request.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub async fn receive<B>(&self, body: B) -> Result<ReceivedBody, ReceiveError>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let length = match body.size_hint().exact().map(usize::try_from) {
            Some(Ok(length)) if length <= self.limits.body => length,
            Some(_) => return Err(ReceiveError::TooLarge),
            // The body is chunked.
            None => self.limits.body,
        };
        let buffer = BodyBuffer { bytes: Vec::new(), limits: self.limits, lease: self.budget.lease() };
        let read = tokio::time::timeout(self.limits.timeout, buffer.read(body, length));
        let BodyBuffer { bytes, lease, .. } = read.await.map_err(|_| ReceiveError::Timeout)??;
        Ok(ReceivedBody { bytes: bytes.into(), _lease: lease })
    }
}

/// The received part of a body. Its lease covers its capacity.
struct BodyBuffer {
    bytes: Vec<u8>,
    limits: BodyLimits,
    lease: BudgetLease,
}

impl BodyBuffer {
    /// Reads a body of at most `length` bytes to its end.
    async fn read<B>(mut self, mut body: B, length: usize) -> Result<Self, ReceiveError>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(ReceiveError::Interrupted)?.into_data() else { continue };
            let needed = self.bytes.len() + data.len();
            if needed > self.limits.body {
                return Err(ReceiveError::TooLarge);
            }
            if needed > self.lease.bytes() {
                // Doubling keeps copies rare; a body holds at most twice the bytes that it has sent.
                self.grow(needed.max(length.min(2 * self.lease.bytes())))?;
            }
            self.bytes.extend_from_slice(&data);
        }
        Ok(self)
    }

    /// Extends the lease and the capacity to this number of bytes; without room, releases both.
    fn grow(&mut self, bytes: usize) -> Result<(), ReceiveError> {
        let BodyLimits { in_flight, small_body, reserved_for_small, .. } = self.limits;
        let limit = if bytes <= small_body { in_flight } else { in_flight - reserved_for_small };
        if self.lease.resize(bytes, limit).is_err() {
            self.bytes = Vec::new();
            return Err(ReceiveError::Overloaded);
        }
        self.bytes.reserve_exact(bytes - self.bytes.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BodyLimits = BodyLimits {
        body: 32 << 20,
        in_flight: 64 << 20,
        small_body: 1 << 20,
        reserved_for_small: 16 << 20,
        timeout: Duration::from_secs(10),
    };

    /// Of several large bodies that grow together, one is received, and the sum stays within the limit.
    #[test]
    fn bodies_that_grow_together_do_not_wait_for_each_other() {
        const CHUNK: usize = 64 << 10;
        let budget = ByteBudget::default();
        let new_buffer = || BodyBuffer { bytes: Vec::new(), limits: LIMITS, lease: budget.lease() };
        let mut buffers: Vec<BodyBuffer> = (0..10).map(|_| new_buffer()).collect();
        let mut n_rejected = 0;
        for size in (CHUNK..=LIMITS.body).step_by(CHUNK) {
            buffers.retain_mut(|buffer| {
                let has_room = buffer.grow(size).is_ok();
                n_rejected += usize::from(!has_room);
                let limit = LIMITS.in_flight - LIMITS.reserved_for_small;
                assert!(budget.in_use() <= limit || size <= LIMITS.small_body);
                has_room
            });
            assert_eq!(budget.in_use(), size * buffers.len());
            assert!(buffers.iter().all(|buffer| buffer.bytes.capacity() <= size));
        }
        assert_eq!((buffers.len(), n_rejected), (1, 9));
        let mut small_buffers: Vec<BodyBuffer> = (0..64).map(|_| new_buffer()).collect();
        let n_small =
            small_buffers.iter_mut().filter_map(|buffer| buffer.grow(LIMITS.small_body).ok()).count();
        assert_eq!(n_small, 32, "the room beside the large one");
        drop((buffers, small_buffers));
        assert_eq!(budget.in_use(), 0);
    }
}
