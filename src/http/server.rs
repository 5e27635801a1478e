//! The listener: limits, and an orderly end.
//!
//! Connections are bounded, and one that waits for a request can be had for nothing: whoever opens thousands
//! and says nothing would keep everybody else out. So when the last place is taken, the connection that has
//! waited longest is closed; its client opens another one. Answering the newcomer 503 instead would leave the
//! silent ones in their places, and the newcomer is the one that has something to say.

use super::body::Body;
use super::gate::{Gate, Refusal};
use crate::telemetry::{Labelled, Quiet};
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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
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
            "Connections closed while they waited for a request, because others wanted their place",
            metrics.displaced.clone(),
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
        for refusal in [Refusal::Unauthorized, Refusal::TooMany] {
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
    waiting: Waiting,
    route: R,
    stopped: watch::Receiver<bool>,
}

impl Server {
    /// Serves until `stopped` turns true, and then until the requests under way are answered. Dropped before, it
    /// cuts every connection.
    pub async fn serve<R, F>(self, listener: TcpListener, route: R, mut stopped: watch::Receiver<bool>)
    where
        R: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let metrics = self.metrics.clone();
        let waiting = Waiting::default();
        let shared = Arc::new(Shared { server: self, waiting, route, stopped: stopped.clone() });
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
                () = shared.waiting.one_more.notified(), if is_full => {}
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
        if self.waiting.send_one_away() {
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
    R: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let seat = Arc::new(Seat::new(shared.clone()));
    // Answers are small: without it they would wait for the peer's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(component = "http", err = %error, "no TCP_NODELAY");
    }
    let stream = Patient::new(stream, WRITE_TIMEOUT);
    let policy = shared.server.gate.policy();
    let talk = async {
        let Some(acceptor) = policy.acceptor() else { return speak(stream, &seat).await };
        let error: io::Error = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => return speak(stream, &seat).await,
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
async fn speak<S, R, F>(stream: S, seat: &Arc<Seat<R>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let of_service = seat.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let busy = Busy::new(of_service.clone());
        async move {
            let shared = &busy.0.shared;
            let policy = shared.server.gate.policy();
            let mut answer = match policy.admit(request.headers()).await {
                Ok(()) => (shared.route)(request).await,
                Err(refusal) => {
                    shared.server.metrics.refused.get_or_create(&[("reason", refusal.as_str().into())]).inc();
                    refusal.answer()
                }
            };
            answer.headers_mut().extend(policy.headers().clone());
            Ok::<_, Infallible>(answer.map(|body| Held { body, _busy: busy }))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut stopped = seat.shared.stopped.clone();
    let mut is_ending = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    debug!(component = "http", err = %error, "connection ended");
                }
                return;
            }
            () = turned(&mut stopped), if !is_ending => {
                if seat.is_waiting() {
                    return;
                }
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// The connections that wait for a request, in the order in which they began to.
#[derive(Default)]
struct Waiting {
    queue: Mutex<Queue>,
    one_more: Notify,
}

#[derive(Default)]
struct Queue {
    by_turn: BTreeMap<u64, Arc<Notify>>,
    turns: u64,
}

impl Waiting {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the one that has waited longest to go; false when there is none.
    fn send_one_away(&self) -> bool {
        let longest = self.queue().by_turn.pop_first();
        longest.inspect(|(_, leave)| leave.notify_one()).is_some()
    }
}

/// A connection's place among those that wait.
struct Seat<R> {
    shared: Arc<Shared<R>>,
    /// Its turn; 0 while a request is served.
    turn: AtomicU64,
    leave: Arc<Notify>,
}

impl<R> Seat<R> {
    fn new(shared: Arc<Shared<R>>) -> Self {
        let seat = Self { shared, turn: AtomicU64::new(0), leave: Arc::default() };
        seat.wait();
        seat
    }

    fn wait(&self) {
        let mut queue = self.shared.waiting.queue();
        queue.turns += 1;
        let turn = queue.turns;
        queue.by_turn.insert(turn, self.leave.clone());
        self.turn.store(turn, Ordering::Relaxed);
        drop(queue);
        self.shared.waiting.one_more.notify_one();
    }

    fn work(&self) {
        let mut queue = self.shared.waiting.queue();
        queue.by_turn.remove(&self.turn.swap(0, Ordering::Relaxed));
    }

    fn is_waiting(&self) -> bool {
        self.turn.load(Ordering::Relaxed) != 0
    }

    /// Returns when it is told to go, unless a request came at the same moment.
    async fn sent_away(&self) {
        loop {
            self.leave.notified().await;
            if self.is_waiting() {
                return;
            }
        }
    }
}

impl<R> Drop for Seat<R> {
    fn drop(&mut self) {
        self.work();
    }
}

/// A request under way, until its answer is sent.
struct Busy<R>(Arc<Seat<R>>);

impl<R> Busy<R> {
    fn new(seat: Arc<Seat<R>>) -> Self {
        seat.work();
        Self(seat)
    }
}

impl<R> Drop for Busy<R> {
    fn drop(&mut self) {
        self.0.wait();
    }
}

/// The body of an answer: while it is sent, its connection does not wait for a request.
struct Held<R> {
    body: Body,
    _busy: Busy<R>,
}

impl<R> hyper::body::Body for Held<R> {
    type Data = <Body as hyper::body::Body>::Data;
    type Error = <Body as hyper::body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

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
