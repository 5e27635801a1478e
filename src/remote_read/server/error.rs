//! Requests that are rejected, and their responses.

use crate::http::request_body::{BodyLimits, ReceiveError};
use crate::http::response::{Response, text};
use crate::prom::matcher;
use crate::prom::wire::{Malformed, snappy};
use hyper::StatusCode;
use hyper::header::RETRY_AFTER;
use std::time::Duration;

/// Largest body of a request, as received and decompressed: a query with long patterns has some kilobytes.
pub(super) const BODY_LIMIT: usize = 4 << 20;
/// Longest time in which a request must arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Limits of bodies, which wait for a turn once they have arrived.
pub(super) const BODY_LIMITS: BodyLimits = BodyLimits {
    body: BODY_LIMIT,
    in_flight: 16 << 20,
    small_body: 64 << 10,
    reserved_for_small: 8 << 20,
    timeout: READ_TIMEOUT,
};
/// Memory of all requests in progress, in bytes: regular expressions, labels, and copies of recent rows.
pub(super) const MEMORY_LIMIT: usize = 128 << 20;
/// Requests in progress at a time; Prometheus' own limit (`storage.remote.read-concurrent-limit`).
pub(super) const MAX_CONCURRENT_REQUESTS: usize = 10;
/// Longest time to select the series, and again to send the response; Prometheus' limit for a query
/// (`query.timeout`).
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(120);
/// Value of `Retry-After` in responses with status 503, in seconds.
const RETRY_AFTER_SECONDS: u16 = 5;

/// A request that is rejected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The body exceeds [`BODY_LIMIT`].
    #[error("the body is larger than the limit of {BODY_LIMIT} bytes")]
    TooLarge,
    /// The body did not arrive in time.
    #[error("the body did not arrive within {READ_TIMEOUT:?}")]
    ReadTimeout,
    /// The connection failed before the end of the body.
    #[error("the body broke off: {}", crate::error::chain(.0))]
    Interrupted(hyper::Error),
    /// The body cannot be decompressed.
    #[error(transparent)]
    Snappy(#[from] snappy::Error),
    /// The message is not a `ReadRequest`.
    #[error("the body is no ReadRequest: {0}")]
    Malformed(#[from] Malformed),
    /// A matcher is not a `LabelMatcher`.
    #[error("the body is no ReadRequest: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// The client accepts none of the known formats.
    #[error("none of the accepted response types {0:?} is known: 0 is SAMPLES, 1 is STREAMED_XOR_CHUNKS")]
    UnknownResponseTypes(Vec<i32>),
    /// A matcher of a query is invalid.
    #[error("query {number}: {source}{}", regex_reason(source))]
    Query {
        /// Number of the query, from 1.
        number: usize,
        /// The cause.
        source: matcher::Error,
    },
    /// The request or the response exceeds a limit.
    #[error("the query exceeds the limit of {limit} {what}")]
    Limit {
        /// The unit of the limit.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The selection of the series takes too long.
    #[error("the query takes longer than {RESPONSE_TIMEOUT:?}")]
    QueryTimeout,
    /// Too many requests are in progress.
    #[error("overloaded: {MAX_CONCURRENT_REQUESTS} read requests are in progress; try again")]
    Overloaded,
    /// Too many bodies wait for a turn.
    #[error("overloaded: too many bytes of read requests are in flight; try again")]
    BodiesInFlight,
    /// Other requests hold too much memory.
    #[error("overloaded: the read requests in progress hold {MEMORY_LIMIT} bytes; try again")]
    OutOfMemory,
    /// The owner of the windows has ended.
    #[error("shutting down")]
    ShuttingDown,
}

/// The last line of a regular expression's error, which spans several lines.
pub fn regex_reason(error: &matcher::Error) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string);
    let last = source.as_deref().and_then(|text| text.lines().last());
    last.map(|line| format!(": {}", line.trim().trim_start_matches("error: "))).unwrap_or_default()
}

impl From<ReceiveError> for Error {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::TooLarge => Self::TooLarge,
            ReceiveError::Timeout => Self::ReadTimeout,
            ReceiveError::Interrupted(error) => Self::Interrupted(error),
            ReceiveError::Overloaded => Self::BodiesInFlight,
        }
    }
}

impl Error {
    /// The status of the response. 4xx: the request is invalid. 5xx: it may succeed later.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ReadTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::QueryTimeout
            | Self::Overloaded
            | Self::BodiesInFlight
            | Self::OutOfMemory
            | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The response, with the error on one line.
    pub fn to_response(&self) -> Response {
        let mut response = text(self.status(), &self.to_string().replace('\n', " "));
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        }
        response
    }
}
