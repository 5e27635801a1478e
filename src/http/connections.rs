//! The choice of the connection that is closed to make room for a new one: the evictable one that has waited longest for
//! its peer.
//!
//! An idle connection costs its client nothing to replace. One that transfers a body is evictable if its rate since the
//! head of the request is too low. A limit on the pause since the last byte would not do: one byte restarts a pause.

use super::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Time that an idle connection is kept at least, so that a new client can send its request.
const MIN_IDLE_TIME: Duration = Duration::from_millis(20);
/// Time that a request, or the next chunk of a response, may take at any rate.
const RATE_GRACE_PERIOD: Duration = Duration::from_secs(1);
/// Rate below which a connection is evictable after [`RATE_GRACE_PERIOD`]. Prometheus sends some hundred kilobytes at
/// once.
const MIN_BYTES_PER_SECOND: f64 = 65_536.0;

/// The connections that wait for their peer, in the order in which they began to wait: for a request, for the rest of a
/// request, or for the peer to read a response.
#[derive(Default)]
pub struct EvictionQueue(Mutex<WaitingConnections>);

#[derive(Default)]
struct WaitingConnections {
    by_ticket: BTreeMap<u64, WaitEntry>,
    last_ticket: u64,
}

/// The wait of one connection.
struct WaitEntry {
    since: Instant,
    /// Bytes received of the request body or sent of the response body; none while there is no request.
    bytes_transferred: Option<usize>,
    close_signal: Arc<CloseSignal>,
}

impl WaitEntry {
    /// True if the connection may be closed to make room.
    fn is_evictable(&self, now: Instant) -> bool {
        let waited = now.saturating_duration_since(self.since);
        match self.bytes_transferred {
            None => waited >= MIN_IDLE_TIME,
            Some(bytes) => {
                waited >= RATE_GRACE_PERIOD && (bytes as f64) < MIN_BYTES_PER_SECOND * waited.as_secs_f64()
            }
        }
    }
}

/// Tells a connection to close.
#[derive(Default)]
struct CloseSignal {
    notify: Notify,
    /// The ticket of the wait that was evicted.
    ticket: AtomicU64,
}

impl EvictionQueue {
    fn lock(&self) -> MutexGuard<'_, WaitingConnections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the evictable connection that has waited longest; false if there is none.
    pub fn evict_longest_waiting(&self, now: Instant) -> bool {
        let mut waiting = self.lock();
        let longest = waiting.by_ticket.iter().find(|(_, entry)| entry.is_evictable(now));
        let Some((ticket, close_signal)) =
            longest.map(|(ticket, entry)| (*ticket, entry.close_signal.clone()))
        else {
            return false;
        };
        waiting.by_ticket.remove(&ticket);
        close_signal.ticket.store(ticket, Ordering::Relaxed);
        close_signal.notify.notify_one();
        true
    }
}

/// One connection and its wait in the queue.
pub struct ConnectionSlot {
    eviction_queue: Arc<EvictionQueue>,
    /// Position of its wait in the queue; 0 while the server processes a request.
    ticket: AtomicU64,
    /// True from the head of a request to the end of its response.
    has_request: AtomicBool,
    close_signal: Arc<CloseSignal>,
}

impl ConnectionSlot {
    /// A connection that waits for its first request.
    pub fn new(eviction_queue: Arc<EvictionQueue>) -> Self {
        let (ticket, has_request) = (AtomicU64::new(0), AtomicBool::new(false));
        let slot = Self { eviction_queue, ticket, has_request, close_signal: Arc::default() };
        slot.wait_for_peer(None);
        slot
    }

    /// Starts a wait: for a request, or for a transfer from this number of bytes on.
    fn wait_for_peer(&self, bytes_transferred: Option<usize>) {
        let mut waiting = self.eviction_queue.lock();
        waiting.last_ticket += 1;
        let ticket = waiting.last_ticket;
        waiting.by_ticket.remove(&self.ticket.swap(ticket, Ordering::Relaxed));
        waiting.by_ticket.insert(
            ticket,
            WaitEntry { since: Instant::now(), bytes_transferred, close_signal: self.close_signal.clone() },
        );
        self.has_request.store(bytes_transferred.is_some(), Ordering::Relaxed);
    }

    /// Counts bytes of the request body.
    fn count_received(&self, bytes: usize) {
        let mut waiting = self.eviction_queue.lock();
        let entry = waiting.by_ticket.get_mut(&self.ticket.load(Ordering::Relaxed));
        if let Some(bytes_transferred) = entry.and_then(|entry| entry.bytes_transferred.as_mut()) {
            *bytes_transferred += bytes;
        }
    }

    /// Ends the wait: the request is complete, or its rest is not needed.
    fn stop_waiting(&self) {
        let mut waiting = self.eviction_queue.lock();
        waiting.by_ticket.remove(&self.ticket.swap(0, Ordering::Relaxed));
    }

    /// True between two requests.
    pub fn is_idle(&self) -> bool {
        !self.has_request.load(Ordering::Relaxed)
    }

    /// Returns once the connection is evicted, unless the wait ended at the same time.
    pub async fn wait_until_evicted(&self) {
        loop {
            self.close_signal.notify.notified().await;
            if self.close_signal.ticket.load(Ordering::Relaxed) == self.ticket.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

/// A request in progress, until its response is sent.
pub struct RequestGuard(Arc<ConnectionSlot>);

impl RequestGuard {
    /// Starts a request of this connection.
    pub fn new(slot: Arc<ConnectionSlot>) -> Self {
        Self(slot)
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.wait_for_peer(None);
    }
}

/// The body of a request. Its connection is evictable while the body arrives too slowly.
pub struct RequestBody {
    body: Incoming,
    slot: Arc<ConnectionSlot>,
}

impl RequestBody {
    /// Tracks a body.
    pub fn new(body: Incoming, slot: Arc<ConnectionSlot>) -> Self {
        slot.wait_for_peer(Some(0));
        let request_body = Self { body, slot };
        request_body.end_wait_if_complete();
        request_body
    }

    fn end_wait_if_complete(&self) {
        if hyper::body::Body::is_end_stream(&self.body) {
            self.slot.stop_waiting();
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.slot.stop_waiting();
    }
}

impl hyper::body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match frame.as_ref().and_then(|frame| frame.as_ref().ok()) {
            Some(frame) => {
                self.slot.count_received(frame.data_ref().map_or(0, Bytes::len));
                self.end_wait_if_complete();
            }
            None => self.slot.stop_waiting(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a response. Its connection is evictable while the peer does not read.
pub struct TrackedBody {
    body: Body,
    guard: RequestGuard,
}

impl TrackedBody {
    /// Tracks a body.
    pub fn new(body: Body, guard: RequestGuard) -> Self {
        guard.0.wait_for_peer(Some(0));
        Self { body, guard }
    }
}

impl hyper::body::Body for TrackedBody {
    type Data = <Body as hyper::body::Body>::Data;
    type Error = <Body as hyper::body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            self.guard.0.wait_for_peer(Some(0));
        } else {
            // The server has not produced the chunk yet: the peer is not slow.
            self.guard.0.stop_waiting();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    /// A connection is evictable while a chunk waits to be read, but not while the server produces the next one.
    #[tokio::test]
    async fn b76_a_connection_that_does_not_read_its_response_is_evictable() {
        let slot = Arc::new(ConnectionSlot::new(Arc::default()));
        let later = || Instant::now() + 2 * RATE_GRACE_PERIOD;
        let is_evictable =
            || slot.eviction_queue.lock().by_ticket.values().any(|entry| entry.is_evictable(later()));
        let (writer, body) = Body::channel();
        slot.stop_waiting();
        assert!(!is_evictable());
        let mut body = TrackedBody::new(body, RequestGuard(slot.clone()));
        assert!(is_evictable(), "not read");
        let next = tokio::time::timeout(Duration::from_millis(20), body.frame()).await;
        assert!(next.is_err() && !is_evictable(), "no chunk yet");
        writer.send("chunk".into()).await.expect("the body is alive");
        assert!(body.frame().await.is_some_and(|frame| frame.is_ok()));
        assert!(is_evictable(), "the next one is not read");
        drop(body);
        assert!(is_evictable() && slot.is_idle());
    }

    /// An idle connection is evictable soon, one that sends a request only while it is slow.
    #[tokio::test]
    async fn b50_the_slowest_waiting_connection_is_evicted() {
        let eviction_queue = Arc::<EvictionQueue>::default();
        let (slow, fast, idle, busy) = (
            ConnectionSlot::new(eviction_queue.clone()),
            ConnectionSlot::new(eviction_queue.clone()),
            ConnectionSlot::new(eviction_queue.clone()),
            ConnectionSlot::new(eviction_queue.clone()),
        );
        slow.wait_for_peer(Some(0));
        fast.wait_for_peer(Some(0));
        idle.wait_for_peer(None);
        busy.wait_for_peer(Some(0));
        busy.stop_waiting();
        slow.count_received(100_000);
        fast.count_received(1_000_000);
        let start = Instant::now();
        let is_evicted = |slot: &ConnectionSlot| slot.close_signal.ticket.load(Ordering::Relaxed) != 0;
        let all = || [&slow, &fast, &idle, &busy].map(is_evicted);
        assert!(!eviction_queue.evict_longest_waiting(start), "all are new");
        assert!(eviction_queue.evict_longest_waiting(start + RATE_GRACE_PERIOD / 2));
        assert_eq!(all(), [false, false, true, false]);
        assert!(!eviction_queue.evict_longest_waiting(start + RATE_GRACE_PERIOD / 2), "none is slow yet");
        assert!(eviction_queue.evict_longest_waiting(start + 2 * RATE_GRACE_PERIOD));
        assert_eq!(all(), [true, false, true, false]);
        slow.wait_until_evicted().await;
        assert!(!eviction_queue.evict_longest_waiting(start + 2 * RATE_GRACE_PERIOD));
        // A wait that ends at the moment of the eviction keeps its connection.
        idle.wait_for_peer(Some(0));
        let evicted = tokio::time::timeout(Duration::from_millis(20), idle.wait_until_evicted()).await;
        assert!(evicted.is_err());
        drop((slow, fast, idle, busy));
        assert!(eviction_queue.lock().by_ticket.is_empty());
    }
}
