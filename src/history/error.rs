//! The errors of the client: whether a later or a shorter request may succeed depends on the variant.

use crate::http::{InvalidUrl, Url, client};
use crate::prom::wire::{InvalidSeries, Malformed, snappy};
use crate::remote_read::{frames, xor};
use hyper::StatusCode;
use std::time::Duration;

/// A read that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The requests are divided by tenant, and this one has none.
    #[error("history: the request names no tenant")]
    NoTenant,
    /// The request failed, or the response did not arrive in full.
    #[error("history cannot be read")]
    Http(#[from] client::Error),
    /// The server does not serve the query.
    #[error("history: {url} answered {status}: {reason}")]
    UnexpectedStatus {
        /// URL of the server.
        url: Url,
        /// Status of the response.
        status: StatusCode,
        /// The server's description of the error, one line.
        reason: String,
        /// The pause that the response requests.
        retry_after: Option<Duration>,
    },
    /// The response has none of the requested content types.
    #[error("history: {url} answered with content type {content_type:?}, not {expected}")]
    ContentType {
        /// URL of the server.
        url: Url,
        /// Content type of the response.
        content_type: String,
        /// The content types that the API has.
        expected: &'static str,
    },
    /// The stream could be truncated unnoticed.
    #[error("history: the stream of {url} has no declared end: neither Content-Length nor chunked")]
    MissingLength {
        /// URL of the server.
        url: Url,
    },
    /// The stream does not consist of frames.
    #[error("remote read: the stream is broken")]
    Frames(#[from] frames::Error),
    /// The body cannot be decompressed.
    #[error("remote read: the response cannot be decompressed")]
    Snappy(#[from] snappy::Error),
    /// A message is not one of remote read.
    #[error("remote read: the response is not a message of remote read")]
    Protobuf(#[from] Malformed),
    /// The samples of a chunk cannot be decoded.
    #[error("remote read: a chunk cannot be decoded")]
    Chunk(#[from] xor::Error),
    /// A chunk has an unknown encoding.
    #[error("remote read: a chunk has encoding {encoding}, which is neither XOR nor a histogram")]
    Encoding {
        /// Number of the encoding.
        encoding: i64,
    },
    /// The request has one query, and the response has no or several results.
    #[error("remote read: {results} results for one query")]
    Results {
        /// Number of results.
        results: usize,
    },
    /// The request has one query, and a frame belongs to another.
    #[error("remote read: a frame belongs to query {query_index}, the request has only query 0")]
    QueryIndex {
        /// Number of the query.
        query_index: i64,
    },
    /// The response exceeds the limits of a slice.
    #[error("history: the response has more than {limit} {what}")]
    TooMany {
        /// The unit of the limit.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The slices of one read have more samples than its caller takes.
    #[error("history: the read has {samples} samples so far, above the limit of {limit}")]
    ReadTooLarge {
        /// Samples of the slices up to here.
        samples: usize,
        /// The limit.
        limit: usize,
    },
    /// A series has no valid label set.
    #[error("history: an invalid series")]
    Labels(#[from] InvalidSeries),
    /// The URL of the request is too long.
    #[error("history: the request has no URL")]
    Url(#[from] InvalidUrl),
    /// The response is not the JSON of the API.
    #[error("history: the response is not the JSON of the API")]
    Json(#[from] serde_json::Error),
    /// The result of the query is not a list of series with samples.
    #[error("history: the result of the query is a {result_type}, not a matrix")]
    ResultType {
        /// Type of the result.
        result_type: String,
    },
    /// A line has values without timestamps, or the reverse.
    #[error("history: a line has {values} values, {timestamps} timestamps")]
    Unequal {
        /// Number of values.
        values: usize,
        /// Number of timestamps.
        timestamps: usize,
    },
    /// The last line has no end.
    #[error("history: the response ends inside a line, after {length} bytes of it")]
    TruncatedLine {
        /// Received bytes of the line.
        length: usize,
    },
}

impl Error {
    /// True if the same request may succeed later. A server without the API always fails.
    pub fn is_recoverable(&self) -> bool {
        match self {
            Self::Http(_) | Self::Frames(_) | Self::TruncatedLine { .. } => true,
            Self::UnexpectedStatus { status, .. } => {
                *status == StatusCode::TOO_MANY_REQUESTS
                    || status.is_server_error() && *status != StatusCode::NOT_IMPLEMENTED
            }
            _ => false,
        }
    }

    /// True if the source fails whatever the tenant of the request: it cannot be reached. Timeouts and answers, also those
    /// that are too large or break off, are a tenant's own.
    pub fn is_of_source(&self) -> bool {
        use client::Error::{Body, InvalidLocation, RedirectRefused, Timeout, TooLarge, TooManyRedirects};
        match self {
            Self::Http(Timeout { .. } | TooLarge { .. } | Body { .. }) => false,
            Self::Http(RedirectRefused { .. } | InvalidLocation { .. } | TooManyRedirects { .. }) => false,
            Self::Http(_) => true,
            _ => false,
        }
    }

    /// The pause that the server asks for before the same request.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::UnexpectedStatus { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// True if the response did not arrive in time.
    pub(super) fn is_timeout(&self) -> bool {
        match self {
            Self::Http(client::Error::Timeout { .. }) => true,
            // The words of Prometheus and of VictoriaMetrics for a query that took too long.
            Self::UnexpectedStatus { status, reason, .. } => {
                *status == StatusCode::GATEWAY_TIMEOUT
                    || *status == StatusCode::SERVICE_UNAVAILABLE
                        && ["timed out", "timeout"].iter().any(|word| reason.contains(word))
            }
            _ => false,
        }
    }

    /// True if a shorter slice may succeed.
    pub(super) fn is_too_large(&self) -> bool {
        match self {
            Self::Snappy(snappy::Error::TooLarge { .. })
            | Self::Http(client::Error::TooLarge { .. })
            | Self::Protobuf(Malformed::TooMany { .. })
            | Self::TooMany { .. } => true,
            Self::UnexpectedStatus { status, reason, .. } => {
                // 422 is PromQL's status for a query above a limit.
                matches!(status.as_u16(), 400 | 413 | 422)
                    && ["limit", "too many", "exceed"].iter().any(|word| reason.contains(word))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_one_tenant_is_no_failure_of_the_source() {
        let url: Url = "http://a/api/v1/read".parse().expect("a URL");
        let timeout = Duration::from_secs(1);
        assert!(Error::Http(client::Error::Token { url: url.clone(), reason: "503".into() }).is_of_source());
        for error in [
            client::Error::Timeout { url: url.clone(), timeout },
            client::Error::TooLarge { url: url.clone(), limit: 1 },
            client::Error::TooManyRedirects { url: url.clone() },
        ] {
            assert!(!Error::Http(error).is_of_source());
        }
        assert!(!Error::MissingLength { url }.is_of_source());
    }
}
