//! `POST /api/v1/read`: remote read as Prometheus and Grafana request it.
//!
//! Scores that remote write could not deliver can be queried here. A response is encoded while it is sent, one series
//! after the other, so that neither a large response nor a slow reader costs memory. The alternative, a complete
//! SAMPLES response in memory, costs Prometheus' own server its size twice. After the first byte, an error can only
//! close the connection: text in the middle of a response would be read as data. All checks precede that byte.

mod error;
mod request;
mod response;
mod source;

use super::frames::{SAMPLES_CONTENT_TYPE, STREAMED_CONTENT_TYPE};
use crate::http::body::Body;
use crate::http::response::Response;
use crate::http::server::RequestBody;
use crate::prom::wire::snappy;
use crate::telemetry::OneLabel;
use error::{BODY_LIMIT, MAX_CONCURRENT_REQUESTS, READ_TIMEOUT, RESPONSE_TIMEOUT};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use response::ResponsePlan;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{debug, warn};

pub use error::Error;
pub use request::{Query, RemoteReadRequest, ResponseFormat};
pub use source::{Queryable, ReadableSeries};

/// Longest wait of a request above the limit of concurrent ones.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// Samples of a response; Prometheus' own limit (`storage.remote.read-sample-limit`).
const MAX_SAMPLES: usize = 50_000_000;

/// The server; clones share its limits and metrics.
#[derive(Clone)]
pub struct RemoteReadServer {
    permits: Arc<Semaphore>,
    metrics: Metrics,
    max_samples: usize,
    query_timeout: Duration,
}

/// Counts a request as in progress until it is dropped.
struct InFlightGuard {
    in_flight: Gauge,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.in_flight.dec();
    }
}

impl RemoteReadServer {
    /// A server with the default limits.
    pub fn new(metrics: Metrics) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_CONCURRENT_REQUESTS));
        Self { permits, metrics, max_samples: MAX_SAMPLES, query_timeout: RESPONSE_TIMEOUT }
    }

    /// Handles one request.
    pub async fn handle(&self, body: RequestBody, queryable: &impl Queryable) -> Response {
        let response = self.respond(body, queryable).await.unwrap_or_else(|error| {
            debug!(component = "remote_read_server", err = %error, "request rejected");
            error.to_response()
        });
        self.count_response(response.status());
        response
    }

    /// Counts a response by its status.
    pub fn count_response(&self, status: StatusCode) {
        self.metrics.requests.get_or_create(&[("code", status.as_str().to_string().into())]).inc();
    }

    async fn respond(&self, body: RequestBody, queryable: &impl Queryable) -> Result<Response, Error> {
        let guard = self.acquire_permit().await?;
        let body = timeout(READ_TIMEOUT, Limited::new(body, BODY_LIMIT).collect());
        let body = body.await.map_err(|_| Error::ReadTimeout)?.map_err(|error| {
            match error.is::<LengthLimitError>() {
                true => Error::TooLarge,
                false => Error::Body(error),
            }
        })?;
        let decode = move || {
            let mut buffer = Vec::new();
            RemoteReadRequest::decode(snappy::decompress(&body.to_bytes(), BODY_LIMIT, &mut buffer)?)
        };
        // The compilation of patterns would block the thread that receives samples.
        let request = spawn_blocking(decode).await.map_err(|_| Error::ShuttingDown)??;
        let format = request.format;
        let plan = self.plan(request.queries, queryable).await?;
        let (writer, body) = Body::channel();
        let metrics = self.metrics.clone();
        tokio::spawn(async move {
            let _guard = guard;
            let sending = async {
                match format {
                    ResponseFormat::Samples => plan.send_samples(&writer).await?,
                    ResponseFormat::Chunks => plan.send_chunks(&writer).await?,
                }
                writer.end().await
            };
            match timeout(RESPONSE_TIMEOUT, sending).await {
                Ok(Ok(())) => drop(metrics.samples.inc_by(plan.n_samples() as u64)),
                Ok(Err(error)) => {
                    metrics.truncated.inc();
                    debug!(component = "remote_read_server", err = %error, "response truncated");
                }
                Err(_) => {
                    metrics.truncated.inc();
                    warn!(component = "remote_read_server", limit = ?RESPONSE_TIMEOUT, "response truncated: the client reads too slowly");
                }
            }
        });
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        match format {
            ResponseFormat::Samples => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(SAMPLES_CONTENT_TYPE));
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("snappy"));
            }
            ResponseFormat::Chunks => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(STREAMED_CONTENT_TYPE));
            }
        }
        Ok(response)
    }

    /// Selects the series of the queries. The timeout bounds patterns that are costly by intent.
    async fn plan<S: Queryable>(
        &self,
        queries: Vec<Query>,
        queryable: &S,
    ) -> Result<ResponsePlan<S::Series>, Error> {
        let planning = async {
            let mut results = Vec::new();
            for query in queries {
                results.push(match query.start_ms <= query.end_ms {
                    true => queryable.select(query).await?,
                    false => Vec::new(),
                });
            }
            ResponsePlan::new(results, self.max_samples).await
        };
        timeout(self.query_timeout, planning).await.map_err(|_| Error::QueryTimeout)?
    }

    async fn acquire_permit(&self) -> Result<InFlightGuard, Error> {
        let permit = timeout(QUEUE_TIMEOUT, self.permits.clone().acquire_owned()).await;
        let permit = permit.map_err(|_| Error::Overloaded)?.map_err(|_| Error::ShuttingDown)?;
        let in_flight = self.metrics.in_flight.clone();
        in_flight.inc();
        Ok(InFlightGuard { in_flight, _permit: permit })
    }
}

/// Metrics of the server.
#[derive(Clone)]
pub struct Metrics {
    requests: OneLabel<Counter>,
    samples: Counter,
    in_flight: Gauge,
    truncated: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: OneLabel::default(),
            samples: Counter::default(),
            in_flight: Gauge::default(),
            truncated: Counter::default(),
        };
        registry.register(
            "remote_read_server_requests",
            "Remote read requests by status code",
            metrics.requests.clone(),
        );
        registry.register(
            "remote_read_server_samples",
            "Samples in complete responses",
            metrics.samples.clone(),
        );
        registry.register(
            "remote_read_server_requests_in_flight",
            "Remote read requests in progress",
            metrics.in_flight.clone(),
        );
        registry.register(
            "remote_read_server_responses_truncated",
            "Responses that ended early because the client disconnected or read too slowly",
            metrics.truncated.clone(),
        );
        metrics
    }
}

#[cfg(test)]
mod tests;
