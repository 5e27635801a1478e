//! The HTTP server: limits on connections, access control and graceful shutdown.
//!
//! The number of connections is bounded, and idle ones cost a client nothing: a client that opens thousands would lock
//! out all others. So when the limit is reached, the server closes the connection that has waited longest; its client
//! opens another one. A 503 for the new connection instead would keep the idle ones, and the new one has a request to
//! send.

use super::access::{AccessControl, DenyReason};
use super::connections::{ConnectionSlot, EvictionQueue, RequestGuard, TrackedBody};
use super::response::Response;
use super::write_timeout::WriteTimeout;
use crate::telemetry::{LogThrottle, OneLabel, register};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, error, warn};

pub use super::connections::RequestBody;

/// Limit of open connections. Prometheus opens one for each shard, 50 by default. Half of the usual limit of 1024
/// files stays free for other files and outgoing connections.
const MAX_CONNECTIONS: usize = 512;
/// Timeout for the head of a request, which includes the pause after the previous request: clients whose idle
/// connection is closed open another one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of attempts to evict a connection while the limit is reached.
const EVICTION_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// Timeout of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which a write to a client that does not read fails.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Limit of the head of a request, and size of one read of a body, in bytes.
const BUFFER_SIZE: usize = 64 << 10;
/// Pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Interval of repeated log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Metrics of connections.
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
        let metrics = Self {
            connections: register(registry, "http_connections", "Open connections"),
            evicted: register(
                registry,
                "http_connections_evicted",
                "Connections closed to make room for new ones, while idle, sending a request too slowly or not reading the response",
            ),
            malformed: register(
                registry,
                "http_requests_malformed",
                "Requests with an invalid request line or header, or a head above the size limit",
            ),
            accept_failures: register(
                registry,
                "http_accept_failures",
                "Failures to accept a connection, for example because of too many open files",
            ),
            handshake_failures: register(registry, "http_tls_handshake_failures", "Failed TLS handshakes"),
            panics: register(registry, "http_panics", "Connections closed by a panic in promforest"),
            denied: register(
                registry,
                "http_requests_denied",
                "Requests denied by the web configuration, by reason",
            ),
        };
        for reason in [DenyReason::Unauthorized, DenyReason::RateLimited, DenyReason::Busy] {
            let _ = metrics.denied.get_or_create(&[("reason", reason.as_str().into())]);
        }
        metrics
    }
}

/// See the [module](self). The default admits all requests.
#[derive(Clone, Default)]
pub struct Server {
    /// Access control.
    pub access: Arc<AccessControl>,
    /// Metrics.
    pub metrics: Metrics,
}

/// State that all connections share.
struct Shared<R> {
    server: Server,
    eviction_queue: Arc<EvictionQueue>,
    route: R,
    stopped: watch::Receiver<bool>,
}

impl Server {
    /// Serves until `stopped` turns true and the requests in progress are answered. If the future is dropped, all
    /// connections are closed.
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
                        // The cause may be too many open files: closing a connection frees one.
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

/// Returns when `stopped` turns true.
async fn stop_requested(stopped: &mut watch::Receiver<bool>) {
    // A dropped sender means the same.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Handles a connection: TLS handshake, requests, eviction.
async fn handle_connection<R, F>(stream: TcpStream, shared: Arc<Shared<R>>)
where
    R: Fn(Request<RequestBody>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let slot = Arc::new(ConnectionSlot::new(shared.eviction_queue.clone()));
    // Responses are small: without TCP_NODELAY they would wait for the peer's delayed acknowledgement.
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

/// Answers the requests of a connection in their order.
async fn serve_connection<S, R, F>(stream: S, slot: &Arc<ConnectionSlot>, shared: &Arc<Shared<R>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: Fn(Request<RequestBody>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let (service_slot, service_shared) = (slot.clone(), shared.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let guard = RequestGuard::new(service_slot.clone());
        let request = request.map(|body| RequestBody::new(body, service_slot.clone()));
        let shared = service_shared.clone();
        async move {
            let policy = shared.server.access.policy();
            let mut response = match policy.admit(request.headers()).await {
                Ok(()) => (shared.route)(request).await,
                Err(reason) => {
                    // The response does not wait for the body.
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
