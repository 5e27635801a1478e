//! `POST /api/v1/read`: remote read as Prometheus and Grafana ask for it.
//!
//! What could not be written back can be queried here. Prometheus' own server holds a SAMPLES answer in memory
//! as a whole, twice; this one makes both kinds of answers while they are sent, one series after the other, so
//! that neither a large answer nor a slow reader takes memory. So what goes wrong goes wrong before the first
//! byte, or cuts the connection: text in the middle of an answer would be taken for data.

mod answer;
mod request;

use crate::http::body::Body;
use crate::http::server::{Answer, Arriving};
use crate::prom::wire::{Malformed, snappy};
use crate::prom::{Labels, Sample, matcher};
use crate::telemetry::Labelled;
use answer::Plan;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{debug, warn};

pub use request::{Form, Query, Request};

/// Bytes of a request as received, and decompressed: a query with long patterns has some kilobytes.
const BODY_LIMIT: usize = 4 << 20;
/// How long a request may take to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests answered at a time; Prometheus' own limit (`storage.remote.read-concurrent-limit`).
const CONCURRENT: usize = 10;
/// How long another one waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// Seconds after which one that had no turn may come again.
const RETRY_AFTER_SECONDS: u16 = 5;
/// Samples of an answer; Prometheus' own limit (`storage.remote.read-sample-limit`).
const SAMPLES: usize = 50_000_000;
/// How long it may take to find what is asked for, and then an answer to go: as long as a query may take in
/// Prometheus (`query.timeout`).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More than [`BODY_LIMIT`] bytes.
    #[error("the body is larger than the limit of {BODY_LIMIT} bytes")]
    TooLarge,
    /// The body did not arrive in time.
    #[error("the body did not arrive within {READ_TIMEOUT:?}")]
    Slow,
    /// The body broke off.
    #[error("the body broke off: {}", crate::yaml::chain(.0.as_ref()))]
    Broken(Box<dyn std::error::Error + Send + Sync>),
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
    Form(Vec<i32>),
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
    #[error("the query takes longer than {ANSWER_TIMEOUT:?}")]
    TooLong,
    /// Too much is being answered.
    #[error("overloaded: {CONCURRENT} read requests are being answered; try again")]
    Overloaded,
    /// Nobody has the windows any more.
    #[error("shutting down")]
    Ending,
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
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLong | Self::Overloaded | Self::Ending => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    fn response(&self) -> Answer {
        let mut answer = Answer::new((self.to_string().replace('\n', " ") + "\n").into());
        *answer.status_mut() = self.status();
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            answer.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        }
        answer
    }
}

/// A series that can be read, as it is at one moment.
pub trait Series: Send + Sync + 'static {
    /// Its labels.
    fn labels(&self) -> &Labels;
    /// Appends its samples in the range of the query, ascending. Each call appends the same.
    fn samples(&self, out: &mut Vec<Sample>);
}

/// The owner of the windows, as the server sees it.
pub trait Source: Sync {
    /// What it has.
    type Series: Series;
    /// Every series that a query selects, in any order. Several of them may have the same labels.
    ///
    /// # Errors
    /// [`Error::Ending`] when there is no owner any more.
    fn select(&self, query: Query) -> impl Future<Output = Result<Vec<Self::Series>, Error>> + Send;
}

/// See the [module](self).
#[derive(Clone)]
pub struct Server {
    turns: Arc<Semaphore>,
    metrics: Metrics,
    limit: usize,
    patience: Duration,
}

/// A request under way.
struct Turn {
    in_flight: Gauge,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.in_flight.dec();
    }
}

impl Server {
    /// A server that counts what it does.
    pub fn new(metrics: Metrics) -> Self {
        let turns = Arc::new(Semaphore::new(CONCURRENT));
        Self { turns, metrics, limit: SAMPLES, patience: ANSWER_TIMEOUT }
    }

    /// Answers one request.
    pub async fn answer(&self, body: Arriving, source: &impl Source) -> Answer {
        let answer = self.respond(body, source).await.unwrap_or_else(|error| {
            debug!(component = "read", err = %error, "request refused");
            error.response()
        });
        self.answered(answer.status());
        answer
    }

    /// Counts an answer.
    pub fn answered(&self, status: StatusCode) {
        self.metrics.requests.get_or_create(&[("code", status.as_str().to_string().into())]).inc();
    }

    async fn respond(&self, body: Arriving, source: &impl Source) -> Result<Answer, Error> {
        let turn = self.turn().await?;
        let body = timeout(READ_TIMEOUT, Limited::new(body, BODY_LIMIT).collect());
        let body =
            body.await.map_err(|_| Error::Slow)?.map_err(|error| match error.is::<LengthLimitError>() {
                true => Error::TooLarge,
                false => Error::Broken(error),
            })?;
        let decode = move || {
            let mut buffer = Vec::new();
            Request::decode(snappy::decompress(&body.to_bytes(), BODY_LIMIT, &mut buffer)?)
        };
        // Patterns take their time to compile, and samples shall not wait for it.
        let request = spawn_blocking(decode).await.map_err(|_| Error::Ending)??;
        let form = request.form;
        let plan = self.plan(request.queries, source).await?;
        let (writer, body) = Body::made();
        let metrics = self.metrics.clone();
        tokio::spawn(async move {
            let _turn = turn;
            let sent = async {
                match form {
                    Form::Samples => plan.send_samples(&writer).await?,
                    Form::Chunks => plan.send_chunks(&writer).await?,
                }
                writer.end().await
            };
            match timeout(ANSWER_TIMEOUT, sent).await {
                Ok(Ok(())) => drop(metrics.samples.inc_by(plan.n_samples() as u64)),
                // Who hangs up knows why.
                Ok(Err(gone)) => {
                    metrics.cut.inc();
                    debug!(component = "read", err = %gone, "answer cut off");
                }
                Err(_) => {
                    metrics.cut.inc();
                    warn!(component = "read", limit = ?ANSWER_TIMEOUT, "answer cut off: it is read too slowly");
                }
            }
        });
        let mut answer = Answer::new(body);
        let headers = answer.headers_mut();
        match form {
            Form::Samples => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("snappy"));
            }
            // Prometheus compares these very bytes.
            Form::Chunks => {
                let chunks = "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse";
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(chunks));
            }
        }
        Ok(answer)
    }

    /// Finds what is asked for. Where patterns are costly by intent, that would take hours.
    async fn plan<S: Source>(&self, queries: Vec<Query>, source: &S) -> Result<Plan<S::Series>, Error> {
        let found = async {
            let mut results = Vec::new();
            for query in queries {
                results.push(match query.start_ms <= query.end_ms {
                    true => source.select(query).await?,
                    false => Vec::new(),
                });
            }
            Plan::new(results, self.limit).await
        };
        timeout(self.patience, found).await.map_err(|_| Error::TooLong)?
    }

    async fn turn(&self) -> Result<Turn, Error> {
        let permit = timeout(PATIENCE, self.turns.clone().acquire_owned()).await;
        let permit = permit.map_err(|_| Error::Overloaded)?.map_err(|_| Error::Ending)?;
        let in_flight = self.metrics.in_flight.clone();
        in_flight.inc();
        Ok(Turn { in_flight, _permit: permit })
    }
}

/// What is counted of requests and answers.
#[derive(Clone)]
pub struct Metrics {
    requests: Labelled<Counter>,
    samples: Counter,
    in_flight: Gauge,
    cut: Counter,
}

impl Metrics {
    /// Registers the room's metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Labelled::default(),
            samples: Counter::default(),
            in_flight: Gauge::default(),
            cut: Counter::default(),
        };
        registry.register("read_requests", "Remote read requests, by status code", metrics.requests.clone());
        registry.register("read_samples", "Samples of answers that were sent", metrics.samples.clone());
        registry.register(
            "read_requests_in_flight",
            "Remote read requests being answered",
            metrics.in_flight.clone(),
        );
        registry.register(
            "read_answers_cut",
            "Answers not sent to their end: the client hung up, or read too slowly",
            metrics.cut.clone(),
        );
        metrics
    }
}

#[cfg(test)]
mod tests;
