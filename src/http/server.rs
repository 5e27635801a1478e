//! The listener: limits, and an orderly end.
//!
//! Connections are bounded, and one that waits for a request can be had for nothing: whoever opens thousands
//! and says nothing would keep everybody else out. So when the last place is taken, the connection that has
//! waited longest is closed; its client opens another one. Answering the newcomer 503 instead would leave the
//! silent ones in their places, and the newcomer is the one that has something to say. One whose request drips
//! in, or that does not take its answer, is treated as if it waited. What counts of a request is the rate since its
//! head, and not the pause since the last byte, which costs a byte to begin anew: who sends whole requests, as
//! Prometheus does, is never that slow.

use super::body::Body;
use super::gate::{Gate, Refusal};
use crate::telemetry::{Labelled, Quiet};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
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
const SETTLING: Duration = Duration::from_millis(20);
/// How long a request may take to come in, and a piece of an answer to be taken, at any rate, and bytes of a request
/// a second from then on: below, its connection makes room for others. Prometheus sends some hundred kilobytes, and
/// at once.
const MOVING: Duration = Duration::from_secs(1);
const LEAST_RATE: f64 = 65_536.0;
/// Pause between two looks for a connection that can make room.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long it may take until an encrypted connection is there.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may refuse to take what is sent to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's head, and of a body that are read at once.
const BUFFER: usize = 64 << 10;
/// Pause after an error of the listener itself, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Pause between two lines of the log that say the same.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What a route answers.
pub type Answer = Response<Body>;

/// What is counted of connections.
#[derive(Clone, Default)]
pub struct Metrics {
    connections: Gauge,
    displaced: Counter,
    malformed: Counter,
    accept_failures: Counter,
    handshake_failures: Counter,
    panics: Counter,
    refused: Labelled<Counter>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("http_connections", "Open connections", metrics.connections.clone());
        registry.register(
            "http_connections_displaced",
            "Connections closed while they waited for a request, or were slow to send one or to take its answer, because others wanted their place",
            metrics.displaced.clone(),
        );
        registry.register(
            "http_requests_malformed",
            "Requests that are none: a request line or a header that cannot be, or a head that is too large",
            metrics.malformed.clone(),
        );
        registry.register(
            "http_accept_failures",
            "Connections that the system could not give: too many open files, say",
            metrics.accept_failures.clone(),
        );
        registry.register(
            "http_tls_handshake_failures",
            "Connections that did not come to be encrypted",
            metrics.handshake_failures.clone(),
        );
        registry.register(
            "http_panics",
            "Connections cut by an error of promforest's own",
            metrics.panics.clone(),
        );
        for refusal in [Refusal::Unauthorized, Refusal::TooMany, Refusal::Busy] {
            let _ = metrics.refused.get_or_create(&[("reason", refusal.as_str().into())]);
        }
        registry.register(
            "http_requests_refused",
            "Requests not let in by the web configuration, by reason",
            metrics.refused.clone(),
        );
        metrics
    }
}

/// See the [module](self). The default lets everybody in.
#[derive(Clone, Default)]
pub struct Server {
    /// Who is let in.
    pub gate: Arc<Gate>,
    /// What is counted.
    pub metrics: Metrics,
}

/// What all connections share.
struct Shared<R> {
    server: Server,
    crowd: Arc<Crowd>,
    route: R,
    stopped: watch::Receiver<bool>,
}

impl Server {
    /// Serves until `stopped` turns true, and then until the requests under way are answered. Dropped before, it
    /// cuts every connection.
    pub async fn serve<R, F>(self, listener: TcpListener, route: R, mut stopped: watch::Receiver<bool>)
    where
        R: Fn(Request<Arriving>) -> F + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let metrics = self.metrics.clone();
        let crowd = Arc::default();
        let shared = Arc::new(Shared { server: self, crowd, route, stopped: stopped.clone() });
        let mut connections = JoinSet::new();
        let mut complaints = Quiet::new(LOG_EVERY);
        loop {
            metrics.connections.set(connections.len() as i64);
            let is_full = connections.len() >= MAX_CONNECTIONS;
            if is_full {
                shared.make_room();
            }
            tokio::select! {
                accepted = listener.accept(), if !is_full => match accepted {
                    Ok((stream, _)) => drop(connections.spawn(connect(stream, shared.clone()))),
                    Err(error) => {
                        metrics.accept_failures.inc();
                        if complaints.add(1).is_some() {
                            warn!(component = "http", err = %error, "cannot accept a connection");
                        }
                        // It may be files that are lacking: one is given back.
                        shared.make_room();
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = connections.join_next() => {
                    if ended.is_err_and(|ended| ended.is_panic()) {
                        metrics.panics.inc();
                        error!(component = "http", "a connection was cut by an error of promforest's own");
                    }
                }
                () = tokio::time::sleep(LOOK_AGAIN), if is_full => {}
                () = turned(&mut stopped) => break,
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
        metrics.connections.set(0);
    }
}

impl<R> Shared<R> {
    fn make_room(&self) {
        if self.crowd.send_one_away(Instant::now()) {
            self.server.metrics.displaced.inc();
        }
    }
}

/// Returns when it is time to end.
async fn turned(stopped: &mut watch::Receiver<bool>) {
    // Without a sender there is nobody left to serve for.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// From a connection's first byte to its last.
async fn connect<R, F>(stream: TcpStream, shared: Arc<Shared<R>>)
where
    R: Fn(Request<Arriving>) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let seat = Arc::new(Seat::new(shared.crowd.clone()));
    // Answers are small: without it they would wait for the peer's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(component = "http", err = %error, "no TCP_NODELAY");
    }
    let stream = Patient::new(stream, WRITE_TIMEOUT);
    let policy = shared.server.gate.policy();
    let talk = async {
        let Some(acceptor) = policy.acceptor() else { return speak(stream, &seat, &shared).await };
        let error: io::Error = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => return speak(stream, &seat, &shared).await,
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        shared.server.metrics.handshake_failures.inc();
        debug!(component = "http", err = %error, "no encrypted connection");
    };
    tokio::select! {
        () = talk => {}
        () = seat.sent_away() => {}
    }
}

/// Answers the requests of a connection, one after another.
async fn speak<S, R, F>(stream: S, seat: &Arc<Seat>, shared: &Arc<Shared<R>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: Fn(Request<Arriving>) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let (of_service, to_route) = (seat.clone(), shared.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let busy = Busy(of_service.clone());
        let request = request.map(|body| Arriving::new(body, of_service.clone()));
        let shared = to_route.clone();
        async move {
            let policy = shared.server.gate.policy();
            let mut answer = match policy.admit(request.headers()).await {
                Ok(()) => (shared.route)(request).await,
                Err(refusal) => {
                    // Its body is not waited for: the answer is.
                    drop(request);
                    shared.server.metrics.refused.get_or_create(&[("reason", refusal.as_str().into())]).inc();
                    refusal.answer()
                }
            };
            answer.headers_mut().extend(policy.headers().clone());
            Ok::<_, Infallible>(answer.map(|body| Held::new(body, busy)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER)
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
            () = turned(&mut stopped), if !is_ending => {
                if seat.is_idle() {
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
struct Crowd(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    by_turn: BTreeMap<u64, Wait>,
    turns: u64,
}

/// What a connection waits for.
struct Wait {
    since: Instant,
    /// Bytes that have come of a request's body, or gone of an answer's; nothing while there is no request.
    moved: Option<usize>,
    leave: Arc<Leave>,
}

impl Wait {
    /// Is it long enough that the place may be given to another?
    fn is_long(&self, now: Instant) -> bool {
        let waited = now.saturating_duration_since(self.since);
        match self.moved {
            None => waited >= SETTLING,
            Some(bytes) => waited >= MOVING && (bytes as f64) < LEAST_RATE * waited.as_secs_f64(),
        }
    }
}

/// Where a connection is told to go.
#[derive(Default)]
struct Leave {
    told: Notify,
    /// In which turn.
    turn: AtomicU64,
}

impl Crowd {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the one that has waited longest to go; false when there is none that may.
    fn send_one_away(&self, now: Instant) -> bool {
        let mut queue = self.queue();
        let longest = queue.by_turn.iter().find(|(_, wait)| wait.is_long(now));
        let Some((turn, leave)) = longest.map(|(turn, wait)| (*turn, wait.leave.clone())) else {
            return false;
        };
        queue.by_turn.remove(&turn);
        leave.turn.store(turn, Ordering::Relaxed);
        leave.told.notify_one();
        true
    }
}

/// A connection's place, and its turn among those that wait.
struct Seat {
    crowd: Arc<Crowd>,
    /// 0 while a request is worked on.
    turn: AtomicU64,
    /// Has a request begun to come in?
    has_request: AtomicBool,
    leave: Arc<Leave>,
}

impl Seat {
    fn new(crowd: Arc<Crowd>) -> Self {
        let (turn, has_request) = (AtomicU64::new(0), AtomicBool::new(false));
        let seat = Self { crowd, turn, has_request, leave: Arc::default() };
        seat.wait(None);
        seat
    }

    /// Waits for a request, or for one or its answer to move on from here.
    fn wait(&self, moved: Option<usize>) {
        let mut queue = self.crowd.queue();
        queue.turns += 1;
        let turn = queue.turns;
        queue.by_turn.remove(&self.turn.swap(turn, Ordering::Relaxed));
        queue.by_turn.insert(turn, Wait { since: Instant::now(), moved, leave: self.leave.clone() });
        self.has_request.store(moved.is_some(), Ordering::Relaxed);
    }

    /// Counts bytes of the request.
    fn receive(&self, bytes: usize) {
        let mut queue = self.crowd.queue();
        let wait = queue.by_turn.get_mut(&self.turn.load(Ordering::Relaxed));
        if let Some(moved) = wait.and_then(|wait| wait.moved.as_mut()) {
            *moved += bytes;
        }
    }

    /// The request is there as a whole, or nobody wants the rest of it.
    fn work(&self) {
        let mut queue = self.crowd.queue();
        queue.by_turn.remove(&self.turn.swap(0, Ordering::Relaxed));
    }

    fn is_idle(&self) -> bool {
        !self.has_request.load(Ordering::Relaxed)
    }

    /// Returns when it is told to go, unless what it waited for came at the same moment.
    async fn sent_away(&self) {
        loop {
            self.leave.told.notified().await;
            if self.leave.turn.load(Ordering::Relaxed) == self.turn.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.work();
    }
}

/// A request under way, until its answer is sent.
struct Busy(Arc<Seat>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.wait(None);
    }
}

/// The body of a request: as long as it comes in, its connection waits for it.
pub struct Arriving {
    body: Incoming,
    seat: Arc<Seat>,
}

impl Arriving {
    fn new(body: Incoming, seat: Arc<Seat>) -> Self {
        seat.wait(Some(0));
        let arriving = Self { body, seat };
        arriving.look();
        arriving
    }

    /// Is it there as a whole?
    fn look(&self) {
        if hyper::body::Body::is_end_stream(&self.body) {
            self.seat.work();
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.seat.work();
    }
}

impl hyper::body::Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match frame.as_ref().and_then(|frame| frame.as_ref().ok()) {
            Some(frame) => {
                self.seat.receive(frame.data_ref().map_or(0, Bytes::len));
                self.look();
            }
            None => self.seat.work(),
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
struct Held {
    body: Body,
    busy: Busy,
}

impl Held {
    fn new(body: Body, busy: Busy) -> Self {
        busy.0.wait(Some(0));
        Self { body, busy }
    }
}

impl hyper::body::Body for Held {
    type Data = <Body as hyper::body::Body>::Data;
    type Error = <Body as hyper::body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            self.busy.0.wait(Some(0));
        } else {
            // It is not made yet: that is not the other side's delay.
            self.busy.0.work();
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
struct Patient<S> {
    stream: S,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, stalled: None }
    }

    /// Begins to wait, goes on with it, or ends it.
    fn watch<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.watch(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(shut, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    /// So is one whose answer is made and not taken, and not one that is still at work on it.
    #[tokio::test]
    async fn b76_whoever_does_not_take_an_answer_makes_room() {
        let seat = Arc::new(Seat::new(Arc::default()));
        let later = || Instant::now() + 2 * MOVING;
        let makes_room = || seat.crowd.queue().by_turn.values().any(|wait| wait.is_long(later()));
        let (writer, body) = Body::made();
        seat.work();
        assert!(!makes_room());
        let mut held = Held::new(body, Busy(seat.clone()));
        assert!(makes_room(), "nobody takes it");
        let next = tokio::time::timeout(Duration::from_millis(20), held.frame()).await;
        assert!(next.is_err() && !makes_room(), "nothing is made yet");
        writer.send("piece".into()).await.expect("it is read");
        assert!(held.frame().await.is_some_and(|frame| frame.is_ok()));
        assert!(makes_room(), "nobody takes the next one");
        drop(held);
        assert!(makes_room() && seat.is_idle());
    }

    /// The place is given to another: of one that waits, soon; of one whose request comes in, when it is slow.
    #[tokio::test]
    async fn b50_the_one_that_keeps_the_others_waiting_longest_goes() {
        let crowd = Arc::<Crowd>::default();
        let (slow, fast, idle, busy) = (
            Seat::new(crowd.clone()),
            Seat::new(crowd.clone()),
            Seat::new(crowd.clone()),
            Seat::new(crowd.clone()),
        );
        slow.wait(Some(0));
        fast.wait(Some(0));
        idle.wait(None);
        busy.wait(Some(0));
        busy.work();
        slow.receive(100_000);
        fast.receive(1_000_000);
        let start = Instant::now();
        let gone = |seat: &Seat| seat.leave.turn.load(Ordering::Relaxed) != 0;
        let all = || [&slow, &fast, &idle, &busy].map(gone);
        assert!(!crowd.send_one_away(start), "they have only just come");
        assert!(crowd.send_one_away(start + MOVING / 2));
        assert_eq!(all(), [false, false, true, false]);
        assert!(!crowd.send_one_away(start + MOVING / 2), "nobody is slow yet");
        assert!(crowd.send_one_away(start + 2 * MOVING));
        assert_eq!(all(), [true, false, true, false]);
        slow.sent_away().await;
        assert!(!crowd.send_one_away(start + 2 * MOVING));
        // What it waited for comes at the moment at which it is told to go.
        idle.wait(Some(0));
        let stays = tokio::time::timeout(Duration::from_millis(20), idle.sent_away()).await;
        assert!(stays.is_err());
        drop((slow, fast, idle, busy));
        assert!(crowd.queue().by_turn.is_empty());
    }

    #[tokio::test]
    async fn b76_f41_whoever_takes_nothing_is_left() {
        let (stream, mut other) = duplex(4);
        let mut stream = Patient::new(stream, Duration::from_secs(60));
        let reader = tokio::spawn(async move {
            other.read_exact(&mut [0; 16]).await.expect("written");
            other
        });
        stream.write_all(&[0; 16]).await.expect("somebody reads");
        let _other = reader.await.expect("no panic");
        stream.patience = Duration::from_millis(20);
        let error = stream.write_all(&[0; 16]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
