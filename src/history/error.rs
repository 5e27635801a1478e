//! The errors of the client: whether a later or a shorter request may succeed depends on the variant.

use super::frames::{self, SAMPLES_CONTENT_TYPE, STREAMED_CONTENT_TYPE};
use super::xor;
use crate::http::{Url, client};
use crate::prom::wire::{InvalidSeries, Malformed, snappy};

/// A remote read that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request failed, or the response did not arrive in full.
    #[error("remote read failed")]
    Http(#[from] client::Error),
    /// The server does not serve the query.
    #[error("remote read: {url} answered {status}: {reason}")]
    UnexpectedStatus {
        /// URL of the server.
        url: Url,
        /// Status of the response.
        status: hyper::StatusCode,
        /// First line of the response's body.
        reason: String,
    },
    /// The response has none of the requested content types.
    #[error(
        "remote read: {url} answered with content type {content_type:?}, not {SAMPLES_CONTENT_TYPE} or {STREAMED_CONTENT_TYPE}"
    )]
    ContentType {
        /// URL of the server.
        url: Url,
        /// Content type of the response.
        content_type: String,
    },
    /// The stream could be truncated unnoticed.
    #[error("remote read: the stream of {url} has no declared end: neither Content-Length nor chunked")]
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
    #[error("remote read: the response has more than {limit} {what}")]
    TooMany {
        /// The unit of the limit.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A series has no valid label set.
    #[error("remote read: an invalid series")]
    Labels(#[from] InvalidSeries),
}

impl Error {
    /// True if the same request may succeed later. A server without remote read always fails.
    pub fn is_recoverable(&self) -> bool {
        match self {
            Self::Http(_) | Self::Frames(_) => true,
            Self::UnexpectedStatus { status, .. } => {
                status.is_server_error() && *status != hyper::StatusCode::NOT_IMPLEMENTED
            }
            _ => false,
        }
    }

    /// True if the response did not arrive in time.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Http(client::Error::Timeout { .. }))
    }

    /// True if a shorter slice may succeed.
    pub(super) fn is_too_large(&self) -> bool {
        match self {
            Self::Snappy(snappy::Error::TooLarge { .. })
            | Self::Http(client::Error::TooLarge { .. })
            | Self::Protobuf(Malformed::TooMany { .. })
            | Self::TooMany { .. } => true,
            Self::UnexpectedStatus { status, reason, .. } => {
                status.as_u16() == 400 && reason.contains("limit")
            }
            _ => false,
        }
    }
}
