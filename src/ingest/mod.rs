//! `POST /api/v1/write`: reads the headers and the body of a remote write request, and builds its response.
//!
//! Prometheus repeats a request answered 5xx without limit, and drops a request answered 4xx. So 4xx is for requests
//! that would fail again; overload and slow bodies are 503.

mod body;
mod metrics;

pub use body::{WriteBody, body_receiver};
pub use metrics::{DropReason, Metrics};

use crate::http::request_body::ReceiveError;
use crate::http::response::{self, Response};
use crate::prom::wire::{Malformed, ProtocolVersion, Rejections, RequestPart, snappy};
use crate::tenant;
use hyper::StatusCode;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, RETRY_AFTER};
use std::time::Duration;

/// Limit of a body, as received and decompressed, in bytes; Prometheus' own limit.
pub const BODY_LIMIT: usize = 32 << 20;
/// Timeout of a body.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// The `Retry-After` of 503, in seconds.
const RETRY_AFTER_SECONDS: u16 = 5;
/// Limit of an error text, in bytes: Prometheus reads and logs as many.
const ERROR_TEXT_LIMIT: usize = 1 << 10;
/// Headers of the response to 2.0 requests: written samples, histograms, exemplars.
const WRITTEN_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("x-prometheus-remote-write-samples-written"),
    HeaderName::from_static("x-prometheus-remote-write-histograms-written"),
    HeaderName::from_static("x-prometheus-remote-write-exemplars-written"),
];

/// A request that is rejected as a whole or in part.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The content type is neither remote write 1.0 nor 2.0.
    #[error(
        "content type {0:?} is not supported: send application/x-protobuf;proto=prometheus.WriteRequest \
         or application/x-protobuf;proto=io.prometheus.write.v2.Request"
    )]
    ContentType(String),
    /// The content encoding is not snappy.
    #[error("content encoding {0:?} is not supported: send snappy, in its block format")]
    ContentEncoding(String),
    /// The request does not name its tenant.
    #[error(transparent)]
    Tenant(#[from] tenant::RequestError),
    /// The body has more than [`BODY_LIMIT`] bytes.
    #[error("the body is larger than the limit of {BODY_LIMIT} bytes")]
    TooLarge,
    /// The body did not arrive in time.
    #[error("the body did not arrive within {READ_TIMEOUT:?}")]
    ReadTimeout,
    /// The body broke off.
    #[error("the body broke off: {}", crate::error::chain(.0))]
    Interrupted(hyper::Error),
    /// The body cannot be decompressed.
    #[error(transparent)]
    Snappy(#[from] snappy::Error),
    /// The body is not a message of its content type.
    #[error("the body is not a write request: {0}")]
    Malformed(#[from] Malformed),
    /// A part of the request is invalid; the rest was accepted.
    #[error("the valid part was accepted, rejected: {rejections}")]
    PartialWrite {
        /// The rejected part.
        rejections: Rejections,
        /// Counts of the accepted part.
        stats: AcceptedCounts,
    },
    /// Too many bodies are being received or waiting to be decoded.
    #[error("overloaded: {0}; try again")]
    Overloaded(&'static str),
}

impl From<ReceiveError> for Error {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::TooLarge => Self::TooLarge,
            ReceiveError::Timeout => Self::ReadTimeout,
            ReceiveError::Interrupted(error) => Self::Interrupted(error),
            ReceiveError::Overloaded => Self::Overloaded("too many bytes in flight"),
        }
    }
}

impl Error {
    /// 4xx: the sender drops the request. 5xx: it sends it again.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::ContentType(_) | Self::ContentEncoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Tenant(_)
            | Self::Interrupted(_)
            | Self::Snappy(_)
            | Self::Malformed(_)
            | Self::PartialWrite { .. } => StatusCode::BAD_REQUEST,
            // Not 408: senders drop requests answered 408.
            Self::ReadTimeout | Self::Overloaded(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The value of the label `reason`.
    fn reason(&self) -> &'static str {
        match self {
            Self::ContentType(_) => "content_type",
            Self::ContentEncoding(_) => "content_encoding",
            Self::Tenant(_) => "tenant",
            Self::TooLarge => "body_limit",
            Self::ReadTimeout => "read_timeout",
            Self::Interrupted(_) => "interrupted",
            Self::Snappy(snappy::Error::TooLarge { .. }) => "message_limit",
            Self::Snappy(_) => "snappy",
            Self::Malformed(Malformed::TooMany { what, .. }) => match what {
                RequestPart::Series => "series_limit",
                RequestPart::Samples => "samples_limit",
                RequestPart::Symbols => "symbols_limit",
            },
            Self::Malformed(_) => "malformed",
            Self::PartialWrite { .. } => "partial_write",
            Self::Overloaded(_) => "overloaded",
        }
    }

    /// Counts of the accepted part.
    fn stats(&self) -> AcceptedCounts {
        if let Self::PartialWrite { stats, .. } = self { *stats } else { AcceptedCounts::default() }
    }

    /// The text as one line of at most [`ERROR_TEXT_LIMIT`] bytes.
    fn line(&self) -> String {
        const ELLIPSIS: &str = "...";
        let text = self.to_string();
        let fits = |end: usize| end + ELLIPSIS.len() < ERROR_TEXT_LIMIT;
        let truncated = match text.char_indices().map(|(end, _)| end).take_while(|end| fits(*end)).last() {
            Some(end) if !fits(text.len()) => text[..end].to_string() + ELLIPSIS,
            _ => text,
        };
        truncated.replace(char::is_control, " ")
    }
}

/// Counts of the accepted part of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptedCounts {
    /// Float samples.
    pub samples: usize,
    /// Native histograms.
    pub histograms: usize,
    /// Exemplars.
    pub exemplars: usize,
}

/// Builds the response: 204, or the error as one line. Only responses to 2.0 requests have the headers with counts: a
/// 1.0 sender would take the receiver for one of 2.0.
pub fn response(version: Option<ProtocolVersion>, result: &Result<AcceptedCounts, Error>) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Err(error) = result {
        response = response::text(error.status(), &error.line());
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        }
    }
    if version == Some(ProtocolVersion::V2) {
        let AcceptedCounts { samples, histograms, exemplars } =
            result.as_ref().map_or_else(Error::stats, |stats| *stats);
        for (name, count) in WRITTEN_HEADERS.into_iter().zip([samples, histograms, exemplars]) {
            response.headers_mut().insert(name, count.into());
        }
    }
    response
}

/// The version of a request, by its content type. The version header is ignored, as in Prometheus: some senders set it
/// wrongly.
///
/// # Errors
/// [`Error::ContentType`], [`Error::ContentEncoding`].
pub fn negotiate(headers: &HeaderMap) -> Result<ProtocolVersion, Error> {
    let version = content_type(headers)?;
    check_content_encoding(headers)?;
    Ok(version)
}

/// Parses the content type: `application/x-protobuf` or none is 1.0 unless `proto` names another version. White space,
/// quotes and case are ignored. Source: remote write specification 2.0, "Protocol".
fn content_type(headers: &HeaderMap) -> Result<ProtocolVersion, Error> {
    let mut version = ProtocolVersion::V1;
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(version) };
    let text = String::from_utf8_lossy(value.as_bytes());
    if text.trim().is_empty() {
        return Ok(version);
    }
    let unsupported = || Error::ContentType(text.clone().into_owned());
    let mut parts = text.split(';').map(str::trim);
    if !parts.next().is_some_and(|part| part.eq_ignore_ascii_case("application/x-protobuf")) {
        return Err(unsupported());
    }
    for part in parts {
        let (name, value) = part.split_once('=').ok_or_else(unsupported)?;
        if !name.trim().eq_ignore_ascii_case("proto") {
            continue;
        }
        let message = value.trim().trim_matches('"').to_ascii_lowercase();
        version = match message.as_str() {
            "prometheus.writerequest" => ProtocolVersion::V1,
            "io.prometheus.write.v2.request" => ProtocolVersion::V2,
            _ => return Err(unsupported()),
        };
    }
    Ok(version)
}

fn check_content_encoding(headers: &HeaderMap) -> Result<(), Error> {
    let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(()) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let accepted = ["", "snappy"].iter().any(|name| text.trim().eq_ignore_ascii_case(name));
    if accepted { Ok(()) } else { Err(Error::ContentEncoding(text.into_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prom::wire::RejectReason;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().expect("a header value"))])
    }

    #[test]
    fn b2_b3_b4_b5_content_types() {
        let (v1, v2) = (Some(ProtocolVersion::V1), Some(ProtocolVersion::V2));
        assert_eq!(content_type(&HeaderMap::new()).ok(), v1);
        for (text, expected) in [
            ("", v1),
            ("  ", v1),
            ("application/x-protobuf", v1),
            ("application/x-protobuf; charset=utf-8", v1),
            ("Application/X-Protobuf ; Proto = \"prometheus.WriteRequest\"", v1),
            ("application/x-protobuf;proto=prometheus.WriteRequest", v1),
            ("application/x-protobuf;proto=io.prometheus.write.v2.Request", v2),
            ("application/x-protobuf ; proto=io.prometheus.write.v2.Request", v2),
            ("APPLICATION/X-PROTOBUF; PROTO=\"IO.Prometheus.Write.V2.Request\"", v2),
            ("application/x-protobuf;proto=yolo", None),
            ("application/x-protobuf;proto=", None),
            ("application/x-protobuf;proto", None),
            ("application/json", None),
            ("application/json;proto=io.prometheus.write.v2.Request", None),
            ("yolo", None),
        ] {
            assert_eq!(content_type(&headers(CONTENT_TYPE, text)).ok(), expected, "{text}");
        }
    }

    #[test]
    fn errors_are_plain_text() {
        let response = response(None, &Err(Error::TooLarge));
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
    }

    #[test]
    fn b6_content_encodings() {
        assert!(check_content_encoding(&HeaderMap::new()).is_ok());
        for (text, accepted) in
            [("", true), ("snappy", true), ("Snappy", true), ("gzip", false), ("zstd", false)]
        {
            assert_eq!(check_content_encoding(&headers(CONTENT_ENCODING, text)).is_ok(), accepted, "{text}");
        }
    }

    #[test]
    fn an_error_is_one_short_line() {
        let mut rejections = Rejections::default();
        rejections.add(RejectReason::Labels, 2, || "\u{e9}\n\r".repeat(1000));
        rejections.add(RejectReason::Histogram, 1, || "not shown".into());
        let error = Error::PartialWrite { rejections, stats: AcceptedCounts::default() };
        let line = error.line();
        assert!(line.len() < ERROR_TEXT_LIMIT && !line.contains(char::is_control), "{line}");
        let start =
            "the valid part was accepted, rejected: 2 invalid_labels, 1 invalid_histogram; for example: ";
        assert!(line.starts_with(start) && line.ends_with("..."), "{line}");
    }
}
