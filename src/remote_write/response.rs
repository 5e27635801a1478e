//! Classifies the response to a write request: written, rejected, unsupported message, or worth a retry.
//!
//! The classification is separate from the loop that acts on it, so that every status is in one place.

use super::message::ProtobufMessage;
use crate::http::client::{self, BufferedResponse};
use crate::time;
use hyper::StatusCode;
use hyper::header::{HeaderMap, RETRY_AFTER};
use jiff::fmt::rfc2822::DateTimeParser;
use std::time::Duration;

/// Longest pause that a `Retry-After` can request.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// The result of one request.
#[derive(Debug)]
pub enum SendResult {
    /// The endpoint accepted the request; the number is that of written samples.
    Accepted(usize),
    /// The endpoint rejected the data, so that a retry cannot succeed; the number is that of samples written
    /// nevertheless.
    Rejected(BufferedResponse, usize),
    /// The endpoint does not support the message and has written nothing.
    UnsupportedMessage(StatusCode),
    /// The same request may succeed later.
    Recoverable(RecoverableError),
}

/// A failure that is not caused by the data.
#[derive(Debug)]
pub enum RecoverableError {
    /// A response with an error status.
    Status(BufferedResponse),
    /// No complete response.
    Unreachable(client::Error),
}

impl RecoverableError {
    /// The pause that the response requests, if any.
    pub fn retry_after(&self) -> Option<Duration> {
        let Self::Status(response) = self else { return None };
        parse_retry_after(response.headers.get(RETRY_AFTER)?.to_str().ok()?, time::now_ms())
    }

    /// The error on one line, for the log.
    pub fn describe(&self) -> String {
        match self {
            Self::Status(response) => format!("{}: {}", response.status, response.reason()),
            Self::Unreachable(error) => crate::error::chain(error),
        }
    }
}

/// Parses a `Retry-After`: seconds or a date (RFC 9110, section 10.2.3). `None` if it is invalid, zero or in the
/// past: a zero pause would repeat every failed request at once.
pub fn parse_retry_after(text: &str, now_ms: i64) -> Option<Duration> {
    let text = text.trim();
    let pause = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date_ms = DateTimeParser::new().parse_timestamp(text).ok()?.as_millisecond();
            Duration::from_millis(u64::try_from(date_ms - now_ms).ok()?)
        }
    };
    Some(pause.min(MAX_RETRY_AFTER)).filter(|pause| !pause.is_zero())
}

/// The counts of written samples in the headers of a response to remote write 2.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteResponseStats {
    /// Number of written samples.
    Samples(usize),
    /// The count is not a number.
    Invalid,
    /// No counts, or all zero: the response of an endpoint that does not support 2.0.
    Nothing,
}

impl WriteResponseStats {
    /// Parses the headers of a response.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let count = |kind: &str| {
            let value = headers.get(format!("x-prometheus-remote-write-{kind}-written"))?;
            Some(value.to_str().ok().and_then(|text| text.trim().parse::<usize>().ok()))
        };
        let counts = ["samples", "histograms", "exemplars"].map(count);
        match counts {
            _ if counts.iter().all(|count| matches!(count, None | Some(Some(0)))) => Self::Nothing,
            [Some(Some(samples)), ..] => Self::Samples(samples),
            [Some(None), ..] => Self::Invalid,
            [None, ..] => Self::Samples(0),
        }
    }
}

/// Classifies the response to a request of `n_samples` samples.
pub fn classify_response(
    response: BufferedResponse,
    message: ProtobufMessage,
    n_samples: usize,
    retry_on_429: bool,
) -> SendResult {
    let status = response.status;
    let stats = match message {
        ProtobufMessage::V1 => None,
        ProtobufMessage::V2 => Some(WriteResponseStats::from_headers(&response.headers)),
    };
    let n_written = match stats {
        // A count above the number of sent samples is wrong.
        Some(WriteResponseStats::Samples(samples)) => samples.min(n_samples),
        _ => 0,
    };
    match stats {
        None if status.is_success() => SendResult::Accepted(n_samples),
        Some(WriteResponseStats::Nothing) if status.is_success() => SendResult::UnsupportedMessage(status),
        Some(_) if status == StatusCode::UNSUPPORTED_MEDIA_TYPE => SendResult::UnsupportedMessage(status),
        Some(_) if status.is_success() => SendResult::Accepted(n_written),
        _ if is_recoverable(status, retry_on_429) => {
            SendResult::Recoverable(RecoverableError::Status(response))
        }
        _ => SendResult::Rejected(response, n_written),
    }
}

/// True if the same data may be accepted later.
///
/// 401, 403 and 404 concern the endpoint's configuration and not the data: Prometheus answers 404 while its receiver
/// is disabled.
fn is_recoverable(status: StatusCode, retry_on_429: bool) -> bool {
    match status {
        StatusCode::TOO_MANY_REQUESTS => retry_on_429,
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::NOT_FOUND
        | StatusCode::REQUEST_TIMEOUT => true,
        _ => status.is_server_error(),
    }
}

/// True if only a part of the data may have caused the rejection, so that the rest may be accepted without it.
///
/// Thanos answers 409 to a sample out of order. Any other status applies to every part of the data alike: a split would
/// only multiply the requests, to an endpoint that asks for fewer (429).
pub fn is_data_error(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::CONFLICT
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY
    )
}

/// True if the response reports other samples in the same series, in the words of Prometheus, Mimir or Thanos.
pub fn is_conflict(status: StatusCode, body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body).to_lowercase();
    let phrases =
        ["out of order", "out-of-order", "duplicate sample", "duplicate timestamp", "duplicate-timestamp"];
    status == StatusCode::CONFLICT
        || status == StatusCode::BAD_REQUEST && phrases.iter().any(|phrase| text.contains(phrase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b82_b83_counts_of_a_response() {
        let read = |counts: &[(&'static str, &str)]| {
            let header = |(kind, value): &(&'static str, &str)| {
                let name = format!("x-prometheus-remote-write-{kind}-written");
                (name.parse().expect("a name"), value.parse().expect("a value"))
            };
            let headers: Vec<(hyper::header::HeaderName, hyper::header::HeaderValue)> =
                counts.iter().map(header).collect();
            WriteResponseStats::from_headers(&headers.into_iter().collect())
        };
        assert_eq!(read(&[]), WriteResponseStats::Nothing);
        assert_eq!(
            read(&[("samples", "0"), ("histograms", "0"), ("exemplars", "0")]),
            WriteResponseStats::Nothing
        );
        assert_eq!(read(&[("samples", " 12 "), ("histograms", "0")]), WriteResponseStats::Samples(12));
        assert_eq!(read(&[("histograms", "3")]), WriteResponseStats::Samples(0));
        for junk in ["many", "-1", "1.5", "", "99999999999999999999999"] {
            assert_eq!(read(&[("samples", junk)]), WriteResponseStats::Invalid, "{junk:?}");
        }
    }

    #[test]
    fn b80_a_retry_after_is_seconds_or_a_date_and_is_bounded() {
        // Wed, 21 Oct 2015 07:28:00 GMT
        let now_ms = 1_445_412_480_000;
        let pause = |text| parse_retry_after(text, now_ms).map(|pause| pause.as_secs());
        assert_eq!(pause(" 30 "), Some(30));
        assert_eq!(pause("Wed, 21 Oct 2015 07:28:20 GMT"), Some(20));
        for long in ["301", "1000000000", "18446744073709551615", "Thu, 22 Oct 2015 07:28:00 GMT"] {
            assert_eq!(pause(long), Some(300), "{long}");
        }
        for useless in
            ["0", "-5", "soon", "", "1e9", "Wed, 21 Oct 2015 07:28:00 GMT", "Tue, 20 Oct 2015 07:28:00 GMT"]
        {
            assert_eq!(pause(useless), None, "{useless}");
        }
    }

    /// Answers of Mimir, Cortex and Thanos. The identifier of an error stands in the log.
    #[test]
    fn answers_of_other_receivers() {
        const CONFLICT: (bool, bool) = (false, true);
        const REJECTED: (bool, bool) = (false, false);
        const RECOVERABLE: (bool, bool) = (true, false);
        let mimir = |text: &str, id: &str| {
            format!(
                "failed pushing to ingester mimir-ingester-0: user=infrastructure: {text} (err-mimir-{id}). See above."
            )
        };
        let newer = "the sample has been rejected because another sample with";
        for (status, text, expected) in [
            (
                400,
                mimir(
                    &format!(
                        "{newer} a more recent timestamp has already been ingested and out-of-order samples are not allowed"
                    ),
                    "sample-out-of-order",
                ),
                CONFLICT,
            ),
            (
                400,
                mimir(
                    &format!("{newer} the same timestamp, but a different value, has already been ingested"),
                    "sample-duplicate-timestamp",
                ),
                CONFLICT,
            ),
            (400, mimir("per-user series limit of 150000 exceeded", "max-series-per-user"), REJECTED),
            (
                400,
                mimir("received a series whose label value length exceeds the limit", "label-value-too-long"),
                REJECTED,
            ),
            (
                429,
                mimir(
                    "the request has been rejected because the tenant exceeded the request rate limit",
                    "tenant-max-request-rate",
                ),
                RECOVERABLE,
            ),
            // Mimir's status for the same, if it is configured so.
            (
                529,
                mimir("the tenant exceeded the ingestion rate limit", "tenant-max-ingestion-rate"),
                RECOVERABLE,
            ),
            (
                400,
                "per-user series limit of 100 exceeded, please contact administrator to raise it".into(),
                REJECTED,
            ),
            (
                409,
                "store locally for endpoint 127.0.0.1:10901: add 1 samples: out of order sample".into(),
                CONFLICT,
            ),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let response =
                BufferedResponse { status, headers: HeaderMap::new(), body: format!("{text}\n").into() };
            assert_eq!(response.reason(), text);
            let is_conflict = is_conflict(status, &response.body);
            let result = classify_response(response, ProtobufMessage::V1, 5, true);
            let is_recoverable = matches!(result, SendResult::Recoverable(_));
            assert_eq!((is_recoverable, is_conflict), expected, "{text}");
            assert!(is_recoverable || matches!(result, SendResult::Rejected(_, 0)), "{text}");
            assert_eq!(is_data_error(status), !is_recoverable, "{text}");
        }
    }
}
