//! The errors of calls to MLflow.

use crate::http::client;
use hyper::StatusCode;

/// Reasons why a call to MLflow fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request failed.
    #[error("MLflow does not answer")]
    Request(#[from] client::Error),
    /// MLflow returned an error status.
    #[error("{url} answered {status}: {reason}")]
    Refused {
        /// The address.
        url: String,
        /// The status.
        status: StatusCode,
        /// MLflow's code of the error, or empty.
        code: String,
        /// MLflow's message.
        reason: String,
    },
    /// The response lacks a field.
    #[error("{url} answered without {field}")]
    UnexpectedResponse {
        /// The address.
        url: String,
        /// The missing field.
        field: &'static str,
    },
    /// The server does not proxy the files.
    #[error(
        "the files are at {0}: the server must proxy them (mlflow server --serve-artifacts --artifacts-destination ...)"
    )]
    NotProxied(String),
    /// The folder exceeds a limit.
    #[error("{uri} has {what}, must be at most {limit}")]
    Oversized {
        /// The folder.
        uri: String,
        /// The exceeded quantity.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The store has another size of a file than was sent.
    #[error("{uri} has {stored} bytes after the upload of {size}")]
    Truncated {
        /// The file.
        uri: String,
        /// Bytes that the store has.
        stored: u64,
        /// Bytes that were sent.
        size: u64,
    },
    /// A run without a model.
    #[error("run {run} has no model in {path:?}")]
    NoModel {
        /// The run.
        run: String,
        /// The requested folder.
        path: String,
    },
}

impl Error {
    /// True if the server answers, and the request for one model or version is at fault.
    pub fn concerns_one_version(&self) -> bool {
        match self {
            Self::Request(error) => matches!(error, client::Error::TooLarge { .. }),
            Self::Refused { status, .. } => {
                matches!(*status, StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::GONE)
            }
            Self::UnexpectedResponse { .. } | Self::Truncated { .. } => false,
            Self::NotProxied(_) | Self::Oversized { .. } | Self::NoModel { .. } => true,
        }
    }

    /// True if the server answered with this code.
    pub(super) fn has_code(&self, expected: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == expected)
    }
}
