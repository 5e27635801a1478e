//! Requests that are rejected, and their responses.

use crate::http::response::{Response, text};
use crate::prom::matcher;
use crate::remote_read::server;
use hyper::StatusCode;

/// Media type of an Arrow IPC stream.
pub(super) const ARROW: &str = "application/vnd.apache.arrow.stream";
/// Media type of Parquet.
pub(super) const PARQUET: &str = "application/vnd.apache.parquet";

/// A request that is rejected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client accepts none of the formats.
    #[error("none of the accepted types {0:?} is available: {ARROW} and {PARQUET} are")]
    NotAcceptable(String),
    /// A parameter without a meaning.
    #[error("parameter {0:?} is not known: match[], start and end are")]
    UnknownParameter(String),
    /// A parameter that has one value has two.
    #[error("parameter {0} is there twice")]
    Repeated(&'static str),
    /// `start` or `end` is no time.
    #[error("parameter {name}: {reason}")]
    Time {
        /// The parameter.
        name: &'static str,
        /// The error of its text.
        reason: String,
    },
    /// The range ends before it starts.
    #[error("the end {end} is before the start {start}")]
    Backwards {
        /// First instant of the range.
        start: String,
        /// Last instant of the range.
        end: String,
    },
    /// A selector is invalid.
    #[error("match[]: {source}{}", server::regex_reason(source))]
    Selector {
        /// The cause.
        source: matcher::Error,
    },
    /// A bound that remote read has too.
    #[error(transparent)]
    Bound(#[from] server::Error),
}

impl Error {
    /// The response, with the error on one line.
    pub(super) fn to_response(&self) -> Response {
        let status = match self {
            Self::Bound(error) => return error.to_response(),
            Self::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        text(status, &self.to_string().replace('\n', " "))
    }
}
