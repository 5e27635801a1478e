//! The listener: limits, and an orderly end.
//!
//! Connections are bounded, and one that waits for a request can be had for nothing: whoever opens thousands
//! and says nothing would keep everybody else out. So when the last place is taken, the connection that has
//! waited longest is closed; its client opens another one. Answering the newcomer 503 instead would leave the
//! silent ones in their places, and the newcomer is the one that has something to say. One whose request drips
//! in, or that does not take its answer, is treated as if it waited. What counts of a request is the rate since its
//! head, and not the pause since the last byte, which costs a byte to begin anew: who sends whole requests, as
//! Prometheus does, is never that slow.

use super::access::{AccessControl, DenyReason};
use super::body::Body;
use crate::telemetry::{LogThrottle, OneLabel};
use bytes::Bytes;
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tracing::{debug, error, warn};

/// Connections at a time. Prometheus opens one for each shard, 50 by default; half of the usual limit of 1024
/// files stays free for what goes out.
const MAX_CONNECTIONS: usize = 512;
/// How long a connection may wait for a request's head, the pause between two requests included:
/// connections that idle longer are closed, and clients open another one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection has its place at least, so that a newcomer can say what it wants.
const MIN_IDLE_TIME: Duration = Duration::from_millis(20);
/// How long a request may take to come in, and a piece of an answer to be taken, at any rate, and bytes of a request
/// a second from then on: below, its connection makes room for others. Prometheus sends some hundred kilobytes, and
/// at once.
const RATE_GRACE_PERIOD: Duration = Duration::from_secs(1);
const MIN_BYTES_PER_SECOND: f64 = 65_536.0;
/// Pause between two looks for a connection that can make room.
const EVICTION_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// How long it may take until an encrypted connection is there.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may refuse to take what is sent to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's head, and of a body that are read at once.
const BUFFER_SIZE: usize = 64 << 10;
/// Pause after an error of the listener itself, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Pause between two lines of the log that say the same.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What a route answers.
pub type Response = hyper::Response<Body>;

/// What is counted of connections.
#[derive(Clone, Default)]
pub struct Metrics {
    connections: Gauge,
    evicted: Counter,
    malformed: Counter,
    accept_failures: Counter,
    handshake_failures: Counter,
    panics: Counter,
    denied: OneLabel<Counter>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("http_connections", "Open connections", metrics.connections.clone());
        registry.register(
            "http_connections_evicted",
            "Connections closed to make room for new ones, while idle, sending a request too slowly or not reading the response",
            metrics.evicted.clone(),
        );
        registry.register(
            "http_requests_malformed",
            "Requests with an invalid request line or header, or a head above the size limit",
            metrics.malformed.clone(),
        );
        registry.register(
            "http_accept_failures",
            "Failures to accept a connection, for example because of too many open files",
            metrics.accept_failures.clone(),
        );
        registry.register(
            "http_tls_handshake_failures",
            "Failed TLS handshakes",
            metrics.handshake_failures.clone(),
        );
        registry.register(
            "http_panics",
            "Connections closed by a panic in promforest",
            metrics.panics.clone(),
        );
        for reason in [DenyReason::Unauthorized, DenyReason::RateLimited, DenyReason::Busy] {
            let _ = metrics.denied.get_or_create(&[("reason", reason.as_str().into())]);
        }
        registry.register(
            "http_requests_denied",
            "Requests denied by the web configuration, by reason",
            metrics.denied.clone(),
        );
        metrics
    }
}

/// See the [module](self). The default lets everybody in.
#[derive(Clone, Default)]
pub struct Server {
    /// Who is let in.
    pub access: Arc<AccessControl>,
    /// What is counted.
    pub metrics: Metrics,
}

/// What all connections share.
struct Shared<R> {
    server: Server,
    eviction_queue: Arc<EvictionQueue>,
    route: R,
    stopped: watch::Receiver<bool>,
}

impl Server {
    /// Serves until `stopped` turns true, and then until the requests under way are answered. Dropped before, it
    /// cuts every connection.
    pub async fn serve<R, F>(self, listener: TcpListener, route: R, mut stopped: watch::Receiver<bool>)
    where
        R: Fn(Request<RequestBody>) -> F + Send + Sync + 'static,
        F: Future<Output = Response> + Send + 'static,
    {
        let metrics = self.metrics.clone();
        let eviction_queue = Arc::default();
        let shared = Arc::new(Shared { server: self, eviction_queue, route, stopped: stopped.clone() });
        let mut connections = JoinSet::new();
        let mut log_throttle = LogThrottle::new(LOG_INTERVAL);
        loop {
            metrics.connections.set(connections.len() as i64);
            let is_full = connections.len() >= MAX_CONNECTIONS;
            if is_full {
                shared.evict_connection();
            }
            tokio::select! {
                accepted = listener.accept(), if !is_full => match accepted {
                    Ok((stream, _)) => drop(connections.spawn(handle_connection(stream, shared.clone()))),
                    Err(error) => {
                        metrics.accept_failures.inc();
                        if log_throttle.add(1).is_some() {
                            warn!(component = "http", err = %error, "cannot accept a connection");
                        }
                        // It may be files that are lacking: one is given back.
                        shared.evict_connection();
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = connections.join_next() => {
                    if ended.is_err_and(|ended| ended.is_panic()) {
                        metrics.panics.inc();
                        error!(component = "http", "connection closed by a panic");
                    }
                }
                () = tokio::time::sleep(EVICTION_RETRY_INTERVAL), if is_full => {}
                () = stop_requested(&mut stopped) => break,
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
        metrics.connections.set(0);
    }
}

impl<R> Shared<R> {
    fn evict_connection(&self) {
        if self.eviction_queue.evict_longest_waiting(Instant::now()) {
            self.server.metrics.evicted.inc();
        }
    }
}

/// Returns when it is time to end.
async fn stop_requested(stopped: &mut watch::Receiver<bool>) {
    // Without a sender there is nobody left to serve for.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// From a connection's first byte to its last.
async fn handle_connection<R, F>(stream: TcpStream, shared: Arc<Shared<R>>)
where
    R: Fn(Request<RequestBody>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let slot = Arc::new(ConnectionSlot::new(shared.eviction_queue.clone()));
    // Answers are small: without it they would wait for the peer's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(component = "http", err = %error, "cannot set TCP_NODELAY");
    }
    let stream = WriteTimeout::new(stream, WRITE_TIMEOUT);
    let policy = shared.server.access.policy();
    let serving = async {
        let Some(acceptor) = policy.acceptor() else { return serve_connection(stream, &slot, &shared).await };
        let error: io::Error = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => return serve_connection(stream, &slot, &shared).await,
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        shared.server.metrics.handshake_failures.inc();
        debug!(component = "http", err = %error, "TLS handshake failed");
    };
    tokio::select! {
        () = serving => {}
        () = slot.wait_until_evicted() => {}
    }
}

/// Answers the requests of a connection, one after another.
async fn serve_connection<S, R, F>(stream: S, slot: &Arc<ConnectionSlot>, shared: &Arc<Shared<R>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: Fn(Request<RequestBody>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let (service_slot, service_shared) = (slot.clone(), shared.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let guard = RequestGuard(service_slot.clone());
        let request = request.map(|body| RequestBody::new(body, service_slot.clone()));
        let shared = service_shared.clone();
        async move {
            let policy = shared.server.access.policy();
            let mut response = match policy.admit(request.headers()).await {
                Ok(()) => (shared.route)(request).await,
                Err(reason) => {
                    // Its body is not waited for: the answer is.
                    drop(request);
                    shared.server.metrics.denied.get_or_create(&[("reason", reason.as_str().into())]).inc();
                    reason.into_response()
                }
            };
            response.headers_mut().extend(policy.headers().clone());
            Ok::<_, Infallible>(response.map(|body| TrackedBody::new(body, guard)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_SIZE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut stopped = shared.stopped.clone();
    let mut is_ending = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    if error.is_parse() {
                        shared.server.metrics.malformed.inc();
                    }
                    debug!(component = "http", err = %error, "connection ended");
                }
                return;
            }
            () = stop_requested(&mut stopped), if !is_ending => {
                if slot.is_idle() {
                    return;
                }
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// The connections that wait for the other side, in the order in which they began to: for a request, for the rest of
/// one, or for an answer to be taken.
#[derive(Default)]
struct EvictionQueue(Mutex<WaitingConnections>);

#[derive(Default)]
struct WaitingConnections {
    by_ticket: BTreeMap<u64, WaitEntry>,
    last_ticket: u64,
}

/// What a connection waits for.
struct WaitEntry {
    since: Instant,
    /// Bytes that have come of a request's body, or gone of an answer's; nothing while there is no request.
    bytes_transferred: Option<usize>,
    close_signal: Arc<CloseSignal>,
}

impl WaitEntry {
    /// Is it long enough that the place may be given to another?
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

/// Where a connection is told to go.
#[derive(Default)]
struct CloseSignal {
    notify: Notify,
    /// In which turn.
    ticket: AtomicU64,
}

impl EvictionQueue {
    fn lock(&self) -> MutexGuard<'_, WaitingConnections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the one that has waited longest to go; false when there is none that may.
    fn evict_longest_waiting(&self, now: Instant) -> bool {
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

/// A connection's place, and its turn among those that wait.
struct ConnectionSlot {
    eviction_queue: Arc<EvictionQueue>,
    /// 0 while a request is worked on.
    ticket: AtomicU64,
    /// Has a request begun to come in?
    has_request: AtomicBool,
    close_signal: Arc<CloseSignal>,
}

impl ConnectionSlot {
    fn new(eviction_queue: Arc<EvictionQueue>) -> Self {
        let (ticket, has_request) = (AtomicU64::new(0), AtomicBool::new(false));
        let slot = Self { eviction_queue, ticket, has_request, close_signal: Arc::default() };
        slot.wait_for_peer(None);
        slot
    }

    /// Waits for a request, or for one or its answer to move on from here.
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

    /// Counts bytes of the request.
    fn count_received(&self, bytes: usize) {
        let mut waiting = self.eviction_queue.lock();
        let entry = waiting.by_ticket.get_mut(&self.ticket.load(Ordering::Relaxed));
        if let Some(bytes_transferred) = entry.and_then(|entry| entry.bytes_transferred.as_mut()) {
            *bytes_transferred += bytes;
        }
    }

    /// The request is there as a whole, or nobody wants the rest of it.
    fn stop_waiting(&self) {
        let mut waiting = self.eviction_queue.lock();
        waiting.by_ticket.remove(&self.ticket.swap(0, Ordering::Relaxed));
    }

    fn is_idle(&self) -> bool {
        !self.has_request.load(Ordering::Relaxed)
    }

    /// Returns when it is told to go, unless what it waited for came at the same moment.
    async fn wait_until_evicted(&self) {
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

/// A request under way, until its answer is sent.
struct RequestGuard(Arc<ConnectionSlot>);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.wait_for_peer(None);
    }
}

/// The body of a request: as long as it comes in, its connection waits for it.
pub struct RequestBody {
    body: Incoming,
    slot: Arc<ConnectionSlot>,
}

impl RequestBody {
    fn new(body: Incoming, slot: Arc<ConnectionSlot>) -> Self {
        slot.wait_for_peer(Some(0));
        let request_body = Self { body, slot };
        request_body.check_complete();
        request_body
    }

    /// Is it there as a whole?
    fn check_complete(&self) {
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
                self.check_complete();
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

/// The body of an answer: until a piece of it is taken, its connection waits for that.
struct TrackedBody {
    body: Body,
    guard: RequestGuard,
}

impl TrackedBody {
    fn new(body: Body, guard: RequestGuard) -> Self {
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
            // It is not made yet: that is not the other side's delay.
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

/// A stream that fails when the other side takes nothing for so long.
struct WriteTimeout<S> {
    stream: S,
    timeout: Duration,
    stall_timer: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteTimeout<S> {
    fn new(stream: S, timeout: Duration) -> Self {
        Self { stream, timeout, stall_timer: None }
    }

    /// Begins to wait, goes on with it, or ends it.
    fn check_timeout<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall_timer = None;
            return written;
        }
        let timeout = self.timeout;
        let stall_timer = self.stall_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stall_timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.check_timeout(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.check_timeout(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.check_timeout(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.check_timeout(closed, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    /// So is one whose answer is made and not taken, and not one that is still at work on it.
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
        assert!(is_evictable(), "nobody takes it");
        let next = tokio::time::timeout(Duration::from_millis(20), body.frame()).await;
        assert!(next.is_err() && !is_evictable(), "nothing is made yet");
        writer.send("piece".into()).await.expect("it is read");
        assert!(body.frame().await.is_some_and(|frame| frame.is_ok()));
        assert!(is_evictable(), "nobody takes the next one");
        drop(body);
        assert!(is_evictable() && slot.is_idle());
    }

    /// The place is given to another: of one that waits, soon; of one whose request comes in, when it is slow.
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
        assert!(!eviction_queue.evict_longest_waiting(start), "they have only just come");
        assert!(eviction_queue.evict_longest_waiting(start + RATE_GRACE_PERIOD / 2));
        assert_eq!(all(), [false, false, true, false]);
        assert!(!eviction_queue.evict_longest_waiting(start + RATE_GRACE_PERIOD / 2), "nobody is slow yet");
        assert!(eviction_queue.evict_longest_waiting(start + 2 * RATE_GRACE_PERIOD));
        assert_eq!(all(), [true, false, true, false]);
        slow.wait_until_evicted().await;
        assert!(!eviction_queue.evict_longest_waiting(start + 2 * RATE_GRACE_PERIOD));
        // What it waited for comes at the moment at which it is told to go.
        idle.wait_for_peer(Some(0));
        let evicted = tokio::time::timeout(Duration::from_millis(20), idle.wait_until_evicted()).await;
        assert!(evicted.is_err());
        drop((slow, fast, idle, busy));
        assert!(eviction_queue.lock().by_ticket.is_empty());
    }

    #[tokio::test]
    async fn b76_f41_a_write_to_a_peer_that_does_not_read_times_out() {
        let (stream, mut other) = duplex(4);
        let mut stream = WriteTimeout::new(stream, Duration::from_secs(60));
        let reader = tokio::spawn(async move {
            other.read_exact(&mut [0; 16]).await.expect("written");
            other
        });
        stream.write_all(&[0; 16]).await.expect("somebody reads");
        let _other = reader.await.expect("no panic");
        stream.timeout = Duration::from_millis(20);
        let error = stream.write_all(&[0; 16]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
