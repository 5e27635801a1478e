//! `POST /api/v1/write`: headers, bounds, and what the sender is told.
//!
//! Prometheus repeats a request answered 5xx for as long as it takes, and drops one answered 4xx
//! for good. So 4xx is kept for requests that would be no better the next time, and overload of
//! any kind is 503. Bounds are taken before memory is: bytes in flight are counted against one
//! budget, and the decompressed size is known from the header.

use crate::http::server::Answer;
use crate::prom::wire::{Malformed, snappy};
use crate::telemetry::Labelled;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::debug;

/// Bytes of a body as received, and decompressed. Prometheus' own limit is the same.
pub const BODY_LIMIT: usize = 32 << 20;
/// Bytes of all bodies that are being received or wait to be decoded.
const IN_FLIGHT_LIMIT: usize = 64 << 20;
/// How long a body may take to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds that an overloaded receiver asks for.
const RETRY_AFTER_SECONDS: u16 = 5;

/// Why a request is not, or not wholly, accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not remote write 1.0.
    #[error("content type {0:?} is not supported: send application/x-protobuf;proto=prometheus.WriteRequest")]
    ContentType(String),
    /// Not snappy.
    #[error("content encoding {0:?} is not supported: send snappy, in its block format")]
    ContentEncoding(String),
    /// More than [`BODY_LIMIT`] bytes.
    #[error("the body is larger than the limit of {BODY_LIMIT} bytes")]
    TooLarge,
    /// The body did not arrive in time.
    #[error("the body did not arrive within {READ_TIMEOUT:?}")]
    Slow,
    /// The body broke off.
    #[error("the body broke off: {0}")]
    Broken(hyper::Error),
    /// The body cannot be decompressed.
    #[error(transparent)]
    Snappy(#[from] snappy::Error),
    /// The body is no `WriteRequest`.
    #[error("the body is no WriteRequest: {0}")]
    Malformed(#[from] Malformed),
    /// Some samples are invalid; the others were accepted.
    #[error("{count} invalid sample{}, the others were accepted; the first: {first}", if *count == 1 { "" } else { "s" })]
    Invalid {
        /// How many.
        count: usize,
        /// What is wrong with the first of them.
        first: String,
    },
    /// Too much is being received or waits to be decoded.
    #[error("overloaded: {0}; try again")]
    Overloaded(&'static str),
}

impl Error {
    /// 4xx: the sender drops the request. 5xx: it sends it again.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::ContentType(_) | Self::ContentEncoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Broken(_) | Self::Snappy(_) | Self::Malformed(_) | Self::Invalid { .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::Overloaded(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The answer: one line that says what is wrong, which Prometheus logs.
    pub fn response(&self) -> Answer {
        let text = self.to_string().replace('\n', " ") + "\n";
        let mut response = Answer::new(text.into());
        *response.status_mut() = self.status();
        if matches!(self, Self::Overloaded(_)) {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        }
        response
    }
}

/// A body that was received, and its share of the bytes in flight, given back when it is dropped.
#[derive(Debug)]
pub struct Received {
    /// The body, still compressed.
    pub body: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Receives bodies within one budget of bytes.
#[derive(Clone)]
pub struct Receiver {
    in_flight: Arc<Semaphore>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self { in_flight: Arc::new(Semaphore::new(IN_FLIGHT_LIMIT)) }
    }
}

impl Receiver {
    /// Checks the headers and reads the body.
    ///
    /// # Errors
    /// [`Error`], in the order in which a sender can mend it: headers, size, budget, time.
    pub async fn receive(&self, headers: &HeaderMap, body: Incoming) -> Result<Received, Error> {
        check_content_type(headers)?;
        check_content_encoding(headers)?;
        let announced = body.size_hint().exact().map(usize::try_from);
        match announced {
            Some(Ok(length)) if length <= BODY_LIMIT => {
                let permit = self.permit(length)?;
                let body = within_time(body, length).await?;
                Ok(Received { body, _permit: permit })
            }
            Some(_) => Err(Error::TooLarge),
            // Chunked: the limit is what has to be kept free.
            None => {
                let mut permit = self.permit(BODY_LIMIT)?;
                let body = within_time(body, BODY_LIMIT).await?;
                drop(permit.as_mut().and_then(|permit| permit.split(BODY_LIMIT - body.len())));
                Ok(Received { body, _permit: permit })
            }
        }
    }

    fn permit(&self, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, Error> {
        let bytes = u32::try_from(bytes).map_err(|_| Error::TooLarge)?;
        match self.in_flight.clone().try_acquire_many_owned(bytes) {
            Ok(permit) => Ok(Some(permit)),
            Err(_) => Err(Error::Overloaded("too many bytes in flight")),
        }
    }
}

async fn within_time(mut body: Incoming, limit: usize) -> Result<Bytes, Error> {
    let read = async {
        let mut received = BytesMut::with_capacity(limit.min(1 << 20));
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(Error::Broken)?.into_data() else { continue };
            if received.len() + data.len() > BODY_LIMIT {
                return Err(Error::TooLarge);
            }
            received.extend_from_slice(&data);
        }
        Ok(received.freeze())
    };
    tokio::time::timeout(READ_TIMEOUT, read).await.map_err(|_| Error::Slow)?
}

/// Absent, `application/x-protobuf`, or the same with `proto=prometheus.WriteRequest`; blanks and
/// case do not matter. Source: remote write specification 1.0 and 2.0, "Protocol".
fn check_content_type(headers: &HeaderMap) -> Result<(), Error> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    let is_v1 = |part: &str| {
        part.split_once('=').is_some_and(|(name, value)| {
            let value = value.trim().trim_matches('"');
            !name.trim().eq_ignore_ascii_case("proto") || value == "prometheus.WriteRequest"
        })
    };
    let accepted = text.trim().is_empty()
        || media_type.eq_ignore_ascii_case("application/x-protobuf") && parts.all(is_v1);
    if accepted { Ok(()) } else { Err(Error::ContentType(text.into_owned())) }
}

fn check_content_encoding(headers: &HeaderMap) -> Result<(), Error> {
    let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(()) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let accepted = ["", "snappy"].iter().any(|name| text.trim().eq_ignore_ascii_case(name));
    if accepted { Ok(()) } else { Err(Error::ContentEncoding(text.into_owned())) }
}

/// Why samples were received and not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// No detector selects the series.
    Unwatched,
    /// One of our own outputs came back.
    Own,
    /// The series' labels are invalid.
    InvalidLabels,
    /// The timestamp is before the year 2000 or too far in the future.
    InvalidTimestamp,
    /// The limit of watched series is reached.
    OverLimit,
    /// It was there already.
    Duplicate,
    /// There was another value at this time already; that one stays.
    Conflict,
    /// It is older than the window.
    TooOld,
}

impl Dropped {
    const ALL: [Self; 8] = [
        Self::Unwatched,
        Self::Own,
        Self::InvalidLabels,
        Self::InvalidTimestamp,
        Self::OverLimit,
        Self::Duplicate,
        Self::Conflict,
        Self::TooOld,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Unwatched => "unwatched",
            Self::Own => "own_output",
            Self::InvalidLabels => "invalid_labels",
            Self::InvalidTimestamp => "invalid_timestamp",
            Self::OverLimit => "series_limit",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::TooOld => "too_old",
        }
    }
}

/// What is counted of requests and their samples. Every sample is counted as received, and once
/// more, with its reason, when it is not used.
#[derive(Clone)]
pub struct Metrics {
    requests: Labelled<Counter>,
    samples: Counter,
    late: Counter,
    dropped: [Counter; Dropped::ALL.len()],
    ignored: Labelled<Counter>,
}

impl Metrics {
    /// Registers the room's metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let dropped = Labelled::<Counter>::default();
        let metrics = Self {
            requests: Labelled::default(),
            samples: Counter::default(),
            late: Counter::default(),
            dropped: Dropped::ALL
                .map(|reason| dropped.get_or_create(&[("reason", reason.label().into())]).clone()),
            ignored: Labelled::default(),
        };
        registry.register(
            "ingest_requests",
            "Remote write requests, by status code",
            metrics.requests.clone(),
        );
        registry.register("ingest_samples", "Samples received", metrics.samples.clone());
        registry.register(
            "ingest_samples_late",
            "Samples used that came after newer ones of their group",
            metrics.late.clone(),
        );
        registry.register("ingest_samples_dropped", "Samples received and not used, by reason", dropped);
        registry.register(
            "ingest_ignored",
            "Exemplars, native histograms and metadata entries, which are not used",
            metrics.ignored.clone(),
        );
        metrics
    }

    /// Counts an answer.
    pub fn answered(&self, status: StatusCode) {
        debug!(component = "ingest", status = status.as_u16(), "request");
        self.requests.get_or_create(&[("code", status.as_str().to_string().into())]).inc();
    }

    /// Counts samples received.
    pub fn received(&self, samples: usize) {
        self.samples.inc_by(samples as u64);
    }

    /// Counts a sample that came after newer ones of its group.
    pub fn late(&self) {
        self.late.inc();
    }

    /// Counts samples that are not used.
    pub fn drop_samples(&self, reason: Dropped, samples: usize) {
        self.dropped[reason as usize].inc_by(samples as u64);
    }

    /// Counts what is not a sample.
    pub fn ignored(&self, kind: &'static str, count: usize) {
        if count > 0 {
            self.ignored.get_or_create(&[("kind", kind.into())]).inc_by(count as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: hyper::header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().expect("a header value"))])
    }

    #[test]
    fn content_types() {
        assert!(check_content_type(&HeaderMap::new()).is_ok());
        for (text, accepted) in [
            ("", true),
            ("application/x-protobuf", true),
            ("Application/X-Protobuf ; Proto = \"prometheus.WriteRequest\"", true),
            ("application/x-protobuf;proto=prometheus.WriteRequest", true),
            ("application/x-protobuf;proto=io.prometheus.write.v2.Request", false),
            ("application/x-protobuf;proto=yolo", false),
            ("application/x-protobuf;proto", false),
            ("application/json", false),
            ("yolo", false),
        ] {
            assert_eq!(check_content_type(&headers(CONTENT_TYPE, text)).is_ok(), accepted, "{text}");
        }
    }

    #[test]
    fn content_encodings() {
        assert!(check_content_encoding(&HeaderMap::new()).is_ok());
        for (text, accepted) in
            [("", true), ("snappy", true), ("Snappy", true), ("gzip", false), ("zstd", false)]
        {
            assert_eq!(check_content_encoding(&headers(CONTENT_ENCODING, text)).is_ok(), accepted, "{text}");
        }
    }
}
