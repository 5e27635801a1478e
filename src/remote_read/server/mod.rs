//! `POST /api/v1/read`: remote read as Prometheus and Grafana ask for it.
//!
//! What could not be written back can be queried here. Prometheus' own server holds a SAMPLES answer in memory
//! as a whole, twice; this one makes both kinds of answers while they are sent, one series after the other, so
//! that neither a large answer nor a slow reader takes memory. So what goes wrong goes wrong before the first
//! byte, or cuts the connection: text in the middle of an answer would be taken for data.

mod response;
mod request;

use crate::http::body::Body;
use crate::http::server::{RequestBody, Response};
use crate::prom::wire::{Malformed, snappy};
use crate::prom::{Labels, Sample, matcher};
use crate::telemetry::OneLabel;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
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

pub use request::{Query, RemoteReadRequest, ResponseFormat};

/// Bytes of a request as received, and decompressed: a query with long patterns has some kilobytes.
const BODY_LIMIT: usize = 4 << 20;
/// How long a request may take to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests answered at a time; Prometheus' own limit (`storage.remote.read-concurrent-limit`).
const MAX_CONCURRENT_REQUESTS: usize = 10;
/// How long another one waits for its turn.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds after which one that had no turn may come again.
const RETRY_AFTER_SECONDS: u16 = 5;
/// Samples of an answer; Prometheus' own limit (`storage.remote.read-sample-limit`).
const MAX_SAMPLES: usize = 50_000_000;
/// How long it may take to find what is asked for, and then an answer to go: as long as a query may take in
/// Prometheus (`query.timeout`).
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(120);

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More than [`BODY_LIMIT`] bytes.
    #[error("the body is larger than the limit of {BODY_LIMIT} bytes")]
    TooLarge,
    /// The body did not arrive in time.
    #[error("the body did not arrive within {READ_TIMEOUT:?}")]
    ReadTimeout,
    /// The body broke off.
    #[error("the body broke off: {}", crate::error::chain(.0.as_ref()))]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The body cannot be decompressed.
    #[error(transparent)]
    Snappy(#[from] snappy::Error),
    /// The body is no `ReadRequest`.
    #[error("the body is no ReadRequest: {0}")]
    Malformed(#[from] Malformed),
    /// A matcher is no message of its kind.
    #[error("the body is no ReadRequest: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// No kind of answer is known that would be accepted.
    #[error("none of the accepted response types {0:?} is known: 0 is SAMPLES, 1 is STREAMED_XOR_CHUNKS")]
    UnknownResponseTypes(Vec<i32>),
    /// A query that cannot be answered.
    #[error("query {number}: {source}{}", reason(source))]
    Query {
        /// Its number, from 1.
        number: usize,
        /// Why.
        source: matcher::Error,
    },
    /// The answer would be too large.
    #[error("the query exceeds the limit of {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// It takes too long to find what is asked for.
    #[error("the query takes longer than {RESPONSE_TIMEOUT:?}")]
    QueryTimeout,
    /// Too much is being answered.
    #[error("overloaded: {MAX_CONCURRENT_REQUESTS} read requests are being answered; try again")]
    Overloaded,
    /// Nobody has the windows any more.
    #[error("shutting down")]
    ShuttingDown,
}

/// What the engine of regular expressions says, on the same line.
fn reason(error: &matcher::Error) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string);
    let last = source.as_deref().and_then(|text| text.lines().last());
    last.map(|line| format!(": {}", line.trim().trim_start_matches("error: "))).unwrap_or_default()
}

impl Error {
    /// 4xx: the question is wrong. 5xx: it may be asked again.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ReadTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::QueryTimeout | Self::Overloaded | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    fn to_response(&self) -> Response {
        let mut response = Response::new((self.to_string().replace('\n', " ") + "\n").into());
        *response.status_mut() = self.status();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        }
        response
    }
}

/// A series that can be read, as it is at one moment.
pub trait ReadableSeries: Send + Sync + 'static {
    /// Its labels.
    fn labels(&self) -> &Labels;
    /// Appends its samples in the range of the query, ascending. Each call appends the same.
    fn append_samples(&self, out: &mut Vec<Sample>);
}

/// The owner of the windows, as the server sees it.
pub trait Queryable: Sync {
    /// What it has.
    type Series: ReadableSeries;
    /// Every series that a query selects, in any order. Several of them may have the same labels.
    ///
    /// # Errors
    /// [`Error::Ending`] when there is no owner any more.
    fn select(&self, query: Query) -> impl Future<Output = Result<Vec<Self::Series>, Error>> + Send;
}

/// See the [module](self).
#[derive(Clone)]
pub struct RemoteReadServer {
    permits: Arc<Semaphore>,
    metrics: Metrics,
    max_samples: usize,
    query_timeout: Duration,
}

/// A request under way.
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
    /// A server that counts what it does.
    pub fn new(metrics: Metrics) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_CONCURRENT_REQUESTS));
        Self { permits, metrics, max_samples: MAX_SAMPLES, query_timeout: RESPONSE_TIMEOUT }
    }

    /// Answers one request.
    pub async fn handle(&self, body: RequestBody, queryable: &impl Queryable) -> Response {
        let response = self.respond(body, queryable).await.unwrap_or_else(|error| {
            debug!(component = "remote_read_server", err = %error, "request rejected");
            error.to_response()
        });
        self.count_response(response.status());
        response
    }

    /// Counts an answer.
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
        // Patterns take their time to compile, and samples shall not wait for it.
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
                // Who hangs up knows why.
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
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("snappy"));
            }
            // Prometheus compares these very bytes.
            ResponseFormat::Chunks => {
                let content_type = "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse";
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            }
        }
        Ok(response)
    }

    /// Finds what is asked for. Where patterns are costly by intent, that would take hours.
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

/// What is counted of requests and answers.
#[derive(Clone)]
pub struct Metrics {
    requests: OneLabel<Counter>,
    samples: Counter,
    in_flight: Gauge,
    truncated: Counter,
}

impl Metrics {
    /// Registers the room's metrics.
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
