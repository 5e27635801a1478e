//! The past, from Prometheus by remote read: what training learns from, and what a restart needs.
//!
//! It is asked for group by group and in slices of time, as chunks in a stream of frames, which cost the
//! other side no decoding and neither side the whole answer in memory: a frame is decoded when it is there,
//! and what is kept is a slice's samples. The other kind of answer, all samples as one message, is taken
//! where the stream is not to be had: of a server that does not know it, or that keeps its samples in chunks
//! of a kind not known here. A slice counts when its answer has ended as it should; of one that breaks
//! off, nothing does.

pub mod collector;
pub mod frames;
pub mod server;
pub mod xor;

use crate::http::client::{self, Client, Request, ResponseStream, Url};
use crate::http::config::ClientConfig;
use crate::prom::matcher::Matcher;
use crate::prom::proto::{LabelMatcher, Query, ReadRequest, ResponseType};
use crate::prom::wire::{InvalidSeries, Malformed, snappy};
use crate::prom::{Labels, Sample, Selector};
use crate::telemetry::OneLabel;
use crate::yaml::Section;
use bytes::Bytes;
use collector::ResponseCollector;
use frames::ChunkedReader;
use hyper::Method;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use prost::Message;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing::warn;

/// A `remote_read` block. Names and defaults are Prometheus'.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where to ask.
    pub url: Url,
    /// How to get there.
    pub http: ClientConfig,
    /// How long one answer may take.
    pub remote_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let url = "http://localhost:9090/api/v1/read".parse().expect("a URL");
        Self { url, http: ClientConfig::default(), remote_timeout: Duration::from_secs(60) }
    }
}

impl Config {
    /// Reads a block of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let default = Self::default();
        let url = section.require("url").and_then(|node| node.parse(str::parse));
        let remote_timeout = section.duration("remote_timeout", default.remote_timeout);
        let http = ClientConfig::read(&mut section);
        section.deny_unknown();
        Self { url: url.unwrap_or(default.url), http, remote_timeout }
    }
}

/// What is counted of the reading.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    slices: OneLabel<Counter>,
    samples: Counter,
    skipped: OneLabel<Counter>,
}

/// Why a part of an answer is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SkipReason {
    /// A chunk of native histograms, or one such sample.
    Histogram,
    /// A series that a receiver of remote write would refuse.
    InvalidSeries,
}

impl Metrics {
    /// Registers the room's metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "remote_read_slices",
            "Time slices requested by outcome; a split slice is requested again as halves, one with \
             unknown_encoding as samples",
            metrics.slices.clone(),
        );
        registry.register("remote_read_samples", "Samples read by remote read", metrics.samples.clone());
        registry.register(
            "remote_read_skipped",
            "Skipped chunks or samples of native histograms, and skipped invalid series, by reason",
            metrics.skipped.clone(),
        );
        metrics
    }

    fn count_slice(&self, outcome: &'static str) {
        self.slices.get_or_create(&[("outcome", outcome.into())]).inc();
    }

    fn count_skipped(&self, reason: SkipReason) {
        self.count_skipped_by(reason, 1);
    }

    fn count_skipped_by(&self, reason: SkipReason, count: usize) {
        let reason = match reason {
            SkipReason::Histogram => "histogram",
            SkipReason::InvalidSeries => "invalid_series",
        };
        self.skipped.get_or_create(&[("reason", reason.into())]).inc_by(count as u64);
    }
}

/// A source that can be asked.
pub struct ReadClient {
    /// Its block.
    pub config: Config,
    client: Client,
    metrics: Metrics,
    /// Its chunks are of no use: it is asked for samples.
    has_unknown_encoding: AtomicBool,
}

/// The first slice, and the shortest one that a limit on either side can bring it down to.
const MAX_SLICE_MS: i64 = 24 * 3_600_000;
const MIN_SLICE_MS: i64 = 60_000;
/// How often in a row a slice is halved because no answer came in time. A source that hangs would hold up
/// whoever asks.
const MAX_TIMEOUTS: usize = 2;
/// Bytes of an answer of type SAMPLES, as received and decompressed. A slice above it is halved.
const RESPONSE_LIMIT: usize = 32 << 20;
/// The two kinds of answers.
const SAMPLES_CONTENT_TYPE: &str = "application/x-protobuf";
const STREAMED_CONTENT_TYPE: &str = "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse";

/// Why there is no history.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer.
    #[error("remote read failed")]
    Http(#[from] client::Error),
    /// The other side does not serve the query.
    #[error("remote read: {url} answered {status}: {reason}")]
    UnexpectedStatus {
        /// Where.
        url: Url,
        /// Its status.
        status: hyper::StatusCode,
        /// The first line of its body.
        reason: String,
    },
    /// The answer is of another kind than those asked for.
    #[error(
        "remote read: {url} answered with content type {content_type:?}, not {SAMPLES_CONTENT_TYPE} or {STREAMED_CONTENT_TYPE}"
    )]
    ContentType {
        /// Where.
        url: Url,
        /// What came.
        content_type: String,
    },
    /// The stream could be cut off unseen.
    #[error("remote read: {url} does not say where its stream ends: neither Content-Length nor chunked")]
    MissingLength {
        /// Where.
        url: Url,
    },
    /// The stream is not one of frames.
    #[error("remote read: the stream is broken")]
    Frames(#[from] frames::Error),
    /// The body cannot be decompressed.
    #[error("remote read: the answer cannot be decompressed")]
    Snappy(#[from] snappy::Error),
    /// A message is no answer.
    #[error("remote read: the answer is no message of remote read")]
    Protobuf(#[from] Malformed),
    /// The samples of a chunk cannot be read.
    #[error("remote read: a chunk cannot be decoded")]
    Chunk(#[from] xor::Error),
    /// A chunk of a kind that is not known here.
    #[error("remote read: a chunk has encoding {encoding}, which is neither XOR nor a histogram")]
    Encoding {
        /// Its number.
        encoding: i64,
    },
    /// One query was asked, and not one result came.
    #[error("remote read: {results} results for one query")]
    Results {
        /// How many came.
        results: usize,
    },
    /// One query was asked, and a frame answers another.
    #[error("remote read: a frame answers query {query_index}, and only query 0 was asked")]
    QueryIndex {
        /// The query's number.
        query_index: i64,
    },
    /// More than a slice may hold.
    #[error("remote read: the answer has more than {limit} {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// A series without a valid label set.
    #[error("remote read: an invalid series")]
    Labels(#[from] InvalidSeries),
}

impl Error {
    /// May the same question be answered later? A source without remote read will never answer.
    pub fn is_recoverable(&self) -> bool {
        match self {
            Self::Http(_) | Self::Frames(_) => true,
            Self::UnexpectedStatus { status, .. } => {
                status.is_server_error() && *status != hyper::StatusCode::NOT_IMPLEMENTED
            }
            _ => false,
        }
    }

    fn is_timeout(&self) -> bool {
        matches!(self, Self::Http(client::Error::Timeout { .. }))
    }

    /// May a shorter slice succeed?
    fn is_too_large(&self) -> bool {
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

/// A series of the past, samples ascending, staleness markers among them.
pub type SeriesSamples = (Labels, Vec<Sample>);

impl ReadClient {
    /// Gets ready to ask; no connection is made yet.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn new(config: &Config, metrics: &Metrics) -> Result<Self, client::Error> {
        let (client, has_unknown_encoding) = (Client::new(&config.http)?, AtomicBool::new(false));
        Ok(Self { config: config.clone(), client, metrics: metrics.clone(), has_unknown_encoding })
    }

    /// Reads the series that a selector selects in a group, over `(after_ms, to_ms]`, in slices. `each` gets
    /// the slices in the order of time, each of them whole; a series may be in several. What is in memory is
    /// one slice.
    ///
    /// # Errors
    /// [`Error`] for the first slice that fails, of which `each` has seen nothing; what came before it stays
    /// valid.
    pub async fn read(
        &self,
        selector: &Selector,
        group: &[Matcher],
        (after_ms, to_ms): (i64, i64),
        mut on_slice: impl FnMut(Vec<SeriesSamples>),
    ) -> Result<(), Error> {
        let matchers: Vec<_> = selector.to_proto().chain(group.iter().map(LabelMatcher::from)).collect();
        let (mut slice_ms, mut timeouts) = (MAX_SLICE_MS, 0);
        let mut start_ms = after_ms + 1;
        while start_ms <= to_ms {
            let end_ms = to_ms.min(start_ms + slice_ms - 1);
            let matchers = matchers.clone();
            let query = Query { start_timestamp_ms: start_ms, end_timestamp_ms: end_ms, matchers };
            match self.read_slice(query).await {
                Ok(series) => {
                    self.metrics.count_slice("read");
                    let samples: usize = series.iter().map(|(_, samples)| samples.len()).sum();
                    self.metrics.samples.inc_by(samples as u64);
                    on_slice(series);
                    (start_ms, timeouts) = (end_ms + 1, 0);
                    continue;
                }
                Err(error) if slice_ms <= MIN_SLICE_MS => return Err(self.count_failed(error)),
                Err(error) if error.is_too_large() => {}
                Err(error) if error.is_timeout() && timeouts < MAX_TIMEOUTS => timeouts += 1,
                Err(error) => return Err(self.count_failed(error)),
            }
            self.metrics.count_slice("split");
            // The last slice may be shorter than the others.
            slice_ms = slice_ms.min(end_ms - start_ms + 1) / 2;
        }
        Ok(())
    }

    fn count_failed(&self, error: Error) -> Error {
        self.metrics.count_slice("failed");
        error
    }

    async fn read_slice(&self, query: Query) -> Result<Vec<SeriesSamples>, Error> {
        if self.has_unknown_encoding.load(Ordering::Relaxed) {
            return self.fetch(query, &[ResponseType::Samples]).await;
        }
        let response_types = [ResponseType::StreamedXorChunks, ResponseType::Samples];
        match self.fetch(query.clone(), &response_types).await {
            Err(Error::Encoding { encoding }) => {
                self.metrics.count_slice("unknown_encoding");
                if !self.has_unknown_encoding.swap(true, Ordering::Relaxed) {
                    warn!(component = "remote_read", url = %self.config.url, encoding, "unknown chunk encoding, requesting samples instead");
                }
                self.fetch(query, &[ResponseType::Samples]).await
            }
            result => result,
        }
    }

    async fn fetch(
        &self,
        query: Query,
        response_types: &[ResponseType],
    ) -> Result<Vec<SeriesSamples>, Error> {
        let mut collector =
            ResponseCollector::new(query.start_timestamp_ms, query.end_timestamp_ms, &self.metrics);
        let mut stream = self.send_request(query, response_types).await?;
        if !stream.status.is_success() {
            let response = stream.collect(RESPONSE_LIMIT).await?;
            let (url, status, reason) = (self.config.url.clone(), response.status, response.reason());
            return Err(Error::UnexpectedStatus { url, status, reason });
        }
        let content_type = stream.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default();
        if content_type.starts_with(STREAMED_CONTENT_TYPE) {
            if !stream.is_delimited() {
                return Err(Error::MissingLength { url: self.config.url.clone() });
            }
            let mut reader = ChunkedReader::default();
            while let Some(bytes) = stream.next().await? {
                reader.push(&bytes);
                while let Some(message) = reader.pop()? {
                    collector.push_frame(&message)?;
                }
            }
            reader.finish()?;
        } else if content_type.starts_with(SAMPLES_CONTENT_TYPE) {
            let response = stream.collect(RESPONSE_LIMIT).await?;
            let mut buffer = Vec::new();
            let message = snappy::decompress(&response.body, RESPONSE_LIMIT, &mut buffer)?;
            collector.push_response(message)?;
        } else {
            let content_type = content_type.into();
            return Err(Error::ContentType { url: self.config.url.clone(), content_type });
        }
        Ok(collector.finish())
    }

    async fn send_request(
        &self,
        query: Query,
        response_types: &[ResponseType],
    ) -> Result<ResponseStream, client::Error> {
        let accepted_response_types =
            response_types.iter().map(|response_type| i32::from(*response_type)).collect();
        let request = ReadRequest { queries: vec![query], accepted_response_types };
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static(SAMPLES_CONTENT_TYPE)),
            (CONTENT_ENCODING, HeaderValue::from_static("snappy")),
            (ACCEPT_ENCODING, HeaderValue::from_static("snappy")),
            (HeaderName::from_static("x-prometheus-remote-read-version"), HeaderValue::from_static("0.1.0")),
        ];
        let request = Request {
            method: Method::POST,
            url: self.config.url.clone(),
            headers: headers.into_iter().collect(),
            body: Bytes::from(snappy::compress(&request.encode_to_vec())),
            timeout: self.config.remote_timeout,
            limit: RESPONSE_LIMIT,
        };
        self.client.open(request).await
    }
}

#[cfg(test)]
mod tests;
