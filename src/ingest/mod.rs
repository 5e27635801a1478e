//! `POST /api/v1/write`: headers, bounds, and what the sender is told.
//!
//! Prometheus repeats a request answered 5xx for as long as it takes, and drops one answered 4xx
//! for good. So 4xx is kept for requests that would be no better the next time, and overload of
//! any kind is 503, and so is a body that is too slow. Bounds are taken before memory is: bytes in
//! flight are counted against one budget, and the decompressed size is known from the header.
//!
//! A body's share of the budget grows with what has arrived of it. What its head announces costs its
//! sender nothing, and two that announced the largest body and sent nothing would keep everybody else
//! out. One that finds no room to grow does not wait for it, but gives back what it has: bodies that
//! wait while they hold some would wait for each other, and so the last of any number can go on.

use crate::http::response::{Response, with_status};
use crate::prom::wire::{Malformed, ProtocolVersion, RejectReason, Rejections, RequestCounts, snappy};
use crate::telemetry::{LogThrottle, OneLabel};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Body;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, RETRY_AFTER};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing::{debug, warn};

/// Bytes of a body as received, and decompressed. Prometheus' own limit is the same.
pub const BODY_LIMIT: usize = 32 << 20;
/// Bytes of all bodies that are being received or wait to be decoded.
const IN_FLIGHT_LIMIT: usize = 64 << 20;
/// Bytes of a body that may take the last of them: Prometheus sends some hundred kilobytes.
const SMALL_BODY: usize = 1 << 20;
/// What is left to small ones: a few large ones that stand still are not in the way of Prometheus.
const RESERVED_FOR_SMALL: usize = 16 << 20;
/// How long a body may take to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds that an overloaded receiver asks for.
const RETRY_AFTER_SECONDS: u16 = 5;
/// Bytes of an error's text: Prometheus reads so many, and logs them.
const ERROR_TEXT_LIMIT: usize = 1 << 10;
/// How often one kind of refusal is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// What a sender of 2.0 is told that was written: samples, histograms, exemplars.
const WRITTEN_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("x-prometheus-remote-write-samples-written"),
    HeaderName::from_static("x-prometheus-remote-write-histograms-written"),
    HeaderName::from_static("x-prometheus-remote-write-exemplars-written"),
];

/// Why a request is not, or not wholly, accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither remote write 1.0 nor 2.0.
    #[error(
        "content type {0:?} is not supported: send application/x-protobuf;proto=prometheus.WriteRequest \
         or application/x-protobuf;proto=io.prometheus.write.v2.Request"
    )]
    ContentType(String),
    /// Not snappy.
    #[error("content encoding {0:?} is not supported: send snappy, in its block format")]
    ContentEncoding(String),
    /// More than [`BODY_LIMIT`] bytes.
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
    /// The body is no such message.
    #[error("the body is not a write request: {0}")]
    Malformed(#[from] Malformed),
    /// Some of it is invalid; the rest was accepted.
    #[error("the valid part was accepted, rejected: {rejections}")]
    PartialWrite {
        /// What is refused.
        rejections: Rejections,
        /// What was accepted.
        stats: WriteResponseStats,
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
            Self::Interrupted(_) | Self::Snappy(_) | Self::Malformed(_) | Self::PartialWrite { .. } => {
                StatusCode::BAD_REQUEST
            }
            // Not 408: what is answered so is dropped.
            Self::ReadTimeout | Self::Overloaded(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The reason as a metric's label.
    fn reason(&self) -> &'static str {
        match self {
            Self::ContentType(_) => "content_type",
            Self::ContentEncoding(_) => "content_encoding",
            Self::TooLarge => "body_limit",
            Self::ReadTimeout => "read_timeout",
            Self::Interrupted(_) => "interrupted",
            Self::Snappy(snappy::Error::TooLarge { .. }) => "message_limit",
            Self::Snappy(_) => "snappy",
            Self::Malformed(Malformed::TooMany { what, .. }) => match *what {
                "series" => "series_limit",
                "samples" => "samples_limit",
                _ => "symbols_limit",
            },
            Self::Malformed(_) => "malformed",
            Self::PartialWrite { .. } => "partial_write",
            Self::Overloaded(_) => "overloaded",
        }
    }

    /// What was accepted all the same.
    fn stats(&self) -> WriteResponseStats {
        if let Self::PartialWrite { stats, .. } = self { *stats } else { WriteResponseStats::default() }
    }

    /// The text as one line within the limit, which Prometheus logs.
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

/// How much of a request was accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteResponseStats {
    /// Float samples.
    pub samples: usize,
    /// Native histograms.
    pub histograms: usize,
    /// Exemplars.
    pub exemplars: usize,
}

/// The answer: 204, or one line that says what is wrong. What was written is told to senders of 2.0
/// alone: one of 1.0 would take the headers for another receiver's.
pub fn response(version: Option<ProtocolVersion>, result: &Result<WriteResponseStats, Error>) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Err(error) = result {
        response = with_status(error.status(), error.line() + "\n");
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        }
    }
    if version == Some(ProtocolVersion::V2) {
        let WriteResponseStats { samples, histograms, exemplars } =
            result.as_ref().map_or_else(Error::stats, |stats| *stats);
        for (name, count) in WRITTEN_HEADERS.into_iter().zip([samples, histograms, exemplars]) {
            response.headers_mut().insert(name, count.into());
        }
    }
    response
}

/// A body that was received, and its share of the bytes in flight, given back when it is dropped.
#[derive(Debug)]
pub struct WriteBody {
    /// The body, still compressed.
    pub body: Bytes,
    /// What it is, by its headers.
    pub version: ProtocolVersion,
    _lease: BudgetLease,
}

/// Receives bodies within one budget of bytes.
#[derive(Clone, Default)]
pub struct BodyReceiver {
    budget: Arc<InFlightBudget>,
}

impl BodyReceiver {
    /// Bytes of the budget that are taken.
    pub fn in_flight(&self) -> usize {
        *self.budget.lock()
    }

    /// Reads the body of a request of this version, as [`negotiate`] tells it.
    ///
    /// # Errors
    /// [`Error`], in the order in which a sender can mend it: size, budget, time.
    pub async fn receive<B>(&self, version: ProtocolVersion, body: B) -> Result<WriteBody, Error>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let length = match body.size_hint().exact().map(usize::try_from) {
            Some(Ok(length)) if length <= BODY_LIMIT => length,
            Some(_) => return Err(Error::TooLarge),
            // Chunked.
            None => BODY_LIMIT,
        };
        let lease = BudgetLease { budget: self.budget.clone(), bytes: 0 };
        let buffer = BodyBuffer { bytes: Vec::new(), lease };
        let read = tokio::time::timeout(READ_TIMEOUT, buffer.read(body, length));
        let BodyBuffer { bytes, lease } = read.await.map_err(|_| Error::ReadTimeout)??;
        Ok(WriteBody { body: bytes.into(), version, _lease: lease })
    }
}

/// Bytes that are taken by bodies.
#[derive(Debug, Default)]
struct InFlightBudget(Mutex<usize>);

impl InFlightBudget {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body's share of the budget.
#[derive(Debug)]
struct BudgetLease {
    budget: Arc<InFlightBudget>,
    bytes: usize,
}

impl Drop for BudgetLease {
    fn drop(&mut self) {
        *self.budget.lock() -= self.bytes;
    }
}

/// What has arrived of a body: its share is all the memory that it takes.
struct BodyBuffer {
    bytes: Vec<u8>,
    lease: BudgetLease,
}

impl BodyBuffer {
    /// Reads to the end of a body that has so many bytes at most.
    async fn read<B>(mut self, mut body: B, length: usize) -> Result<Self, Error>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(Error::Interrupted)?.into_data() else { continue };
            let needed = self.bytes.len() + data.len();
            if needed > BODY_LIMIT {
                return Err(Error::TooLarge);
            }
            if needed > self.lease.bytes {
                // By doubling, so that little is copied; a body holds twice what it has sent at most.
                self.grow(needed.max(length.min(2 * self.lease.bytes)))?;
            }
            self.bytes.extend_from_slice(&data);
        }
        Ok(self)
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let limit = if bytes <= SMALL_BODY { IN_FLIGHT_LIMIT } else { IN_FLIGHT_LIMIT - RESERVED_FOR_SMALL };
        let mut in_flight = self.lease.budget.lock();
        let of_others = *in_flight - self.lease.bytes;
        if of_others + bytes > limit {
            // Within the lock: of those that find no room at the same time one is left that does.
            self.bytes = Vec::new();
            *in_flight = of_others;
            self.lease.bytes = 0;
            return Err(Error::Overloaded("too many bytes in flight"));
        }
        *in_flight = of_others + bytes;
        self.lease.bytes = bytes;
        drop(in_flight);
        self.bytes.reserve_exact(bytes - self.bytes.len());
        Ok(())
    }
}

/// The version that the headers name. The version header is not asked: senders get it wrong, and
/// Prometheus decides by the content type.
///
/// # Errors
/// [`Error::ContentType`], [`Error::ContentEncoding`].
pub fn negotiate(headers: &HeaderMap) -> Result<ProtocolVersion, Error> {
    let version = content_type(headers)?;
    check_content_encoding(headers)?;
    Ok(version)
}

/// Absent or `application/x-protobuf`: 1.0, unless `proto` says otherwise; blanks, quotes and case do
/// not matter. Source: remote write specification 2.0, "Protocol".
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

/// Why samples were received and not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// No detector selects the series.
    Unwatched,
    /// One of our own outputs came back.
    OwnOutput,
    /// The series' labels are invalid.
    InvalidLabels,
    /// The native histogram contradicts itself: its count and its sum.
    InvalidHistogram,
    /// The timestamp is before the year 2000 or too far in the future.
    InvalidTimestamp,
    /// The limit of watched series is reached.
    SeriesLimit,
    /// It was there already.
    Duplicate,
    /// There was another value at this time already; that one stays.
    Conflict,
    /// It is older than the window.
    TooOld,
}

impl DropReason {
    const ALL: [Self; 9] = [
        Self::Unwatched,
        Self::OwnOutput,
        Self::InvalidLabels,
        Self::InvalidHistogram,
        Self::InvalidTimestamp,
        Self::SeriesLimit,
        Self::Duplicate,
        Self::Conflict,
        Self::TooOld,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Unwatched => "unwatched",
            Self::OwnOutput => "own_output",
            Self::InvalidLabels => "invalid_labels",
            Self::InvalidHistogram => "invalid_histogram",
            Self::InvalidTimestamp => "invalid_timestamp",
            Self::SeriesLimit => "series_limit",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::TooOld => "too_old",
        }
    }
}

/// Code, reason and version of a request.
type RequestLabels = [(&'static str, std::borrow::Cow<'static, str>); 3];

/// What is counted of requests and their samples. Every sample is counted as received, and once
/// more, with its reason, when it is not used.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    samples: Counter,
    histograms: Counter,
    late: Counter,
    dropped: [Counter; DropReason::ALL.len()],
    rejected: [Counter; RejectReason::ALL.len()],
    ignored: OneLabel<Counter>,
    in_flight: Gauge,
    log_throttles: Arc<Mutex<HashMap<&'static str, LogThrottle>>>,
}

impl Metrics {
    /// Registers the room's metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let (dropped, rejected) = (OneLabel::<Counter>::default(), OneLabel::<Counter>::default());
        let metrics = Self {
            requests: Family::default(),
            samples: Counter::default(),
            histograms: Counter::default(),
            late: Counter::default(),
            dropped: DropReason::ALL
                .map(|reason| dropped.get_or_create(&[("reason", reason.label().into())]).clone()),
            rejected: RejectReason::ALL
                .map(|reason| rejected.get_or_create(&[("reason", reason.label().into())]).clone()),
            ignored: OneLabel::default(),
            in_flight: Gauge::default(),
            log_throttles: Arc::default(),
        };
        registry.register(
            "ingest_requests",
            "Remote write requests, by status code, reason and version of the message",
            metrics.requests.clone(),
        );
        registry.register(
            "ingest_samples",
            "Samples received, two for each native histogram",
            metrics.samples.clone(),
        );
        registry.register(
            "ingest_histograms",
            "Native histograms received: each becomes two samples, its count and its sum",
            metrics.histograms.clone(),
        );
        registry.register(
            "ingest_samples_late",
            "Samples used that arrived after newer samples of their group",
            metrics.late.clone(),
        );
        registry.register(
            "ingest_in_flight_bytes",
            "Bytes of request bodies being received or waiting to be processed",
            metrics.in_flight.clone(),
        );
        registry.register("ingest_samples_dropped", "Samples received and not used, by reason", dropped);
        registry.register(
            "ingest_rejected",
            "Samples, histograms, exemplars, metadata and series rejected with 400 while the rest of their request was accepted, by reason",
            rejected,
        );
        registry.register(
            "ingest_ignored",
            "Exemplars and metadata entries, which are not used, and series of the other remote-write version, by kind",
            metrics.ignored.clone(),
        );
        metrics
    }

    /// Counts an answer, and logs what is refused once in a while.
    pub fn count_answered(
        &self,
        version: Option<ProtocolVersion>,
        result: &Result<WriteResponseStats, Error>,
    ) {
        let (status, reason) = match result {
            Ok(_) => (StatusCode::NO_CONTENT, ""),
            Err(error) => (error.status(), error.reason()),
        };
        self.count_request(version, status, reason);
        if let Err(error) = result {
            debug!(component = "ingest", err = error.line(), "write request rejected");
            self.log_throttled("write request rejected", reason, &error.line());
        }
    }

    /// Counts a request whose method is not the right one.
    pub fn count_method_not_allowed(&self) {
        self.count_request(None, StatusCode::METHOD_NOT_ALLOWED, "method");
    }

    fn count_request(&self, version: Option<ProtocolVersion>, status: StatusCode, reason: &'static str) {
        let version = match version {
            Some(ProtocolVersion::V1) => "1.0",
            Some(ProtocolVersion::V2) => "2.0",
            None => "",
        };
        let labels = [
            ("code", status.as_str().to_string().into()),
            ("reason", reason.into()),
            ("version", version.into()),
        ];
        self.requests.get_or_create(&labels).inc();
    }

    fn log_throttled(&self, what: &str, reason: &'static str, text: &str) {
        let mut throttles = self.log_throttles.lock().unwrap_or_else(PoisonError::into_inner);
        let count = throttles.entry(reason).or_insert_with(|| LogThrottle::new(LOG_INTERVAL)).add(1);
        drop(throttles);
        let Some(count) = count else { return };
        let suppressed = count - 1;
        warn!(component = "ingest", reason, err = text, suppressed, "{what}");
    }

    /// Counts what a request held.
    pub fn count_received(&self, counts: &RequestCounts, samples: usize, rejections: &Rejections) {
        self.samples.inc_by(samples as u64);
        self.histograms.inc_by(counts.histograms as u64);
        self.count_ignored("exemplar", counts.exemplars);
        self.count_ignored("metadata", counts.metadata);
        self.count_ignored("other_version", counts.other_version);
        if counts.other_version > 0 {
            let text = "the content type names one version, and the body is of the other";
            self.log_throttled("series of a write request ignored", "other_version", text);
        }
        for reason in RejectReason::ALL {
            self.rejected[reason as usize].inc_by(rejections.count(reason) as u64);
        }
    }

    /// Counts a sample that came after newer ones of its group.
    pub fn count_late(&self) {
        self.late.inc();
    }

    /// Counts samples that are not used.
    pub fn count_dropped(&self, reason: DropReason, samples: usize) {
        self.dropped[reason as usize].inc_by(samples as u64);
    }

    /// Shows the share of the budget that is taken.
    pub fn set_in_flight(&self, bytes: usize) {
        self.in_flight.set(bytes as i64);
    }

    fn count_ignored(&self, kind: &'static str, count: usize) {
        if count > 0 {
            self.ignored.get_or_create(&[("kind", kind.into())]).inc_by(count as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn b6_content_encodings() {
        assert!(check_content_encoding(&HeaderMap::new()).is_ok());
        for (text, accepted) in
            [("", true), ("snappy", true), ("Snappy", true), ("gzip", false), ("zstd", false)]
        {
            assert_eq!(check_content_encoding(&headers(CONTENT_ENCODING, text)).is_ok(), accepted, "{text}");
        }
    }

    /// Of any number of large bodies that come in at the same time one is received, and the sum is never above the
    /// bound.
    #[test]
    fn bodies_that_grow_together_do_not_wait_for_each_other() {
        const PIECE: usize = 64 << 10;
        let budget = Arc::<InFlightBudget>::default();
        let new_buffer =
            || BodyBuffer { bytes: Vec::new(), lease: BudgetLease { budget: budget.clone(), bytes: 0 } };
        let mut buffers: Vec<BodyBuffer> = (0..10).map(|_| new_buffer()).collect();
        let mut n_rejected = 0;
        for size in (PIECE..=BODY_LIMIT).step_by(PIECE) {
            buffers.retain_mut(|buffer| {
                let has_room = buffer.grow(size).is_ok();
                n_rejected += usize::from(!has_room);
                assert!(*budget.lock() <= IN_FLIGHT_LIMIT - RESERVED_FOR_SMALL || size <= SMALL_BODY);
                has_room
            });
            assert_eq!(*budget.lock(), size * buffers.len());
            assert!(buffers.iter().all(|buffer| buffer.bytes.capacity() <= size));
        }
        assert_eq!((buffers.len(), n_rejected), (1, 9));
        let mut small_buffers: Vec<BodyBuffer> = (0..64).map(|_| new_buffer()).collect();
        let n_small = small_buffers.iter_mut().filter_map(|buffer| buffer.grow(SMALL_BODY).ok()).count();
        assert_eq!(n_small, 32, "they have what the large one leaves");
        drop((buffers, small_buffers));
        assert_eq!(*budget.lock(), 0);
    }

    #[test]
    fn an_error_is_one_short_line() {
        let mut rejections = Rejections::default();
        rejections.add(RejectReason::Labels, 2, || "\u{e9}\n\r".repeat(1000));
        rejections.add(RejectReason::Histogram, 1, || "not shown".into());
        let error = Error::PartialWrite { rejections, stats: WriteResponseStats::default() };
        let line = error.line();
        assert!(line.len() < ERROR_TEXT_LIMIT && !line.contains(char::is_control), "{line}");
        let start =
            "the valid part was accepted, rejected: 2 invalid_labels, 1 invalid_histogram; for example: ";
        assert!(line.starts_with(start) && line.ends_with("..."), "{line}");
    }
}
