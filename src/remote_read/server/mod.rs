//! `POST /api/v1/read`: remote read as Prometheus and Grafana request it.
//!
//! Scores that remote write could not deliver can be queried here. A response is encoded while it is sent, one series
//! after the other, so that neither a large response nor a slow reader costs memory. The alternative, a complete
//! SAMPLES response in memory, costs Prometheus' own server its size twice. After the first byte, an error can only
//! close the connection: text in the middle of a response would be read as data. All checks precede that byte.

mod error;
mod permit;
mod request;
mod response;
mod source;

use super::frames::{SAMPLES_CONTENT_TYPE, STREAMED_CONTENT_TYPE};
use crate::http::body::{Body, BodyWriter};
use crate::http::request_body::{BodyReceiver, ReceivedBody};
use crate::http::response::Response;
use crate::http::server::RequestBody;
use crate::prom::wire::snappy;
use crate::telemetry::{OneLabel, register};
use error::{BODY_LIMIT, BODY_LIMITS};
use hyper::StatusCode;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use response::ResponsePlan;
use std::time::Duration;
use tokio::time::timeout;
use tracing::{debug, warn};

pub use error::{Error, RESPONSE_TIMEOUT, regex_reason};
pub use permit::{WorkPermit, WorkPermits};
pub use request::{
    MAX_QUERIES, MAX_REGEX_MATCHERS, Query, REGEX_BYTES, RemoteReadRequest, ResponseFormat, check_limit,
};
pub use source::{Queryable, ReadableSeries};

/// Samples of a response; Prometheus' own limit (`storage.remote.read-sample-limit`).
pub const MAX_SAMPLES: usize = 50_000_000;

/// The server; clones share its limits and metrics.
#[derive(Clone)]
pub struct RemoteReadServer {
    receiver: BodyReceiver,
    permits: WorkPermits,
    metrics: Metrics,
    max_samples: usize,
    query_timeout: Duration,
}

impl RemoteReadServer {
    /// A server with the default limits.
    pub fn new(metrics: Metrics) -> Self {
        let receiver = BodyReceiver::new(BODY_LIMITS);
        let permits = WorkPermits::new(metrics.in_flight.clone());
        Self { receiver, permits, metrics, max_samples: MAX_SAMPLES, query_timeout: RESPONSE_TIMEOUT }
    }

    /// The turns of its requests, for other readers of the windows.
    pub fn permits(&self) -> WorkPermits {
        self.permits.clone()
    }

    /// Handles one request. The caller [counts](Self::count_response) the response.
    pub async fn handle(&self, body: RequestBody, queryable: &impl Queryable) -> Response {
        self.respond(body, queryable).await.unwrap_or_else(|error| {
            debug!(component = "remote_read_server", err = %error, "request rejected");
            error.to_response()
        })
    }

    /// Counts a response by its status.
    pub fn count_response(&self, status: StatusCode) {
        self.metrics.requests.get_or_create(&[("code", status.as_str().to_string().into())]).inc();
    }

    /// The body is complete before the request takes a turn: clients that send nothing block no others.
    async fn respond(&self, body: RequestBody, queryable: &impl Queryable) -> Result<Response, Error> {
        let body = self.receiver.receive(body).await?;
        let permit = self.permits.acquire().await?;
        let request = decode(body, &permit).await?;
        let format = request.format;
        let plan = self.plan(request.queries, queryable, &permit).await?;
        let (writer, body) = Body::channel();
        tokio::spawn(send(plan, format, writer, self.metrics.clone(), permit));
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
        permit: &WorkPermit,
    ) -> Result<ResponsePlan<S::Series>, Error> {
        let planning = async {
            let mut results = Vec::new();
            for query in queries {
                results.push(match query.start_ms <= query.end_ms {
                    true => queryable.select(query, permit).await?,
                    false => Vec::new(),
                });
            }
            ResponsePlan::new(results, self.max_samples).await
        };
        timeout(self.query_timeout, planning).await.map_err(|_| Error::QueryTimeout)?
    }
}

/// Decodes a body. The compilation of patterns would block the thread that receives samples.
async fn decode(body: ReceivedBody, permit: &WorkPermit) -> Result<RemoteReadRequest, Error> {
    let of_request = permit.clone();
    let decode = move || {
        let mut buffer = Vec::new();
        let message = snappy::decompress(&body.bytes, BODY_LIMIT, &mut buffer)?;
        RemoteReadRequest::decode(message, |bytes| of_request.reserve(bytes))
    };
    permit.run_blocking(decode).await?
}

/// Sends a response, within [`RESPONSE_TIMEOUT`].
async fn send<S: ReadableSeries>(
    plan: ResponsePlan<S>,
    format: ResponseFormat,
    writer: BodyWriter,
    metrics: Metrics,
    _permit: WorkPermit,
) {
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
        Self {
            requests: register(
                registry,
                "remote_read_server_requests",
                "Remote read requests by status code",
            ),
            samples: register(registry, "remote_read_server_samples", "Samples in complete responses"),
            in_flight: register(
                registry,
                "remote_read_server_requests_in_flight",
                "Requests for remote read and for tables in progress",
            ),
            truncated: register(
                registry,
                "remote_read_server_responses_truncated",
                "Responses that ended early because the client disconnected or read too slowly",
            ),
        }
    }
}

#[cfg(test)]
mod tests;
