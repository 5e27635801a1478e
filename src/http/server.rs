//! The listener: limits, and an orderly end.

use super::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

/// Connections at a time; further ones wait in the listener's backlog. Prometheus opens one for
/// each shard, 50 by default; half of the usual limit of 1024 files stays free for what goes out.
const MAX_CONNECTIONS: usize = 512;
/// How long a connection may wait for a request's head, the pause between two requests included:
/// connections that idle longer are closed, and clients open another one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an error of the listener itself, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a route answers.
pub type Answer = Response<Body>;

/// Serves until `stopped` turns true, and then until the requests under way are answered.
pub async fn serve<F>(
    listener: TcpListener,
    route: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    mut stopped: watch::Receiver<bool>,
) where
    F: Future<Output = Answer> + Send + 'static,
{
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    loop {
        let accept = async {
            let permit = connections.clone().acquire_owned().await.expect("never closed");
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accept => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(component = "http", err = %error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are small: without it they would wait for the peer's delayed acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(component = "http", err = %error, "no TCP_NODELAY");
        }
        let route = route.clone();
        let service = service_fn(move |request| {
            let answer = route(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(component = "http", err = %error, "connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}
