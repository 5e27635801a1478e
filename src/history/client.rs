//! The client: reads a range in time slices, each with one request.
//!
//! A slice is used only if its response ends as declared; a response that breaks off yields no samples. A slice
//! that exceeds a limit of either side is halved. The alternative, one request for the whole range, fails on every
//! server with a sample limit and has no bound on memory.

use super::collector::{ResponseCollector, SeriesSamples};
use super::error::Error;
use super::frames::{ChunkedReader, SAMPLES_CONTENT_TYPE, STREAMED_CONTENT_TYPE};
use super::{Config, Metrics};
use crate::http::client::{self, Client, Request, ResponseStream};
use crate::prom::Selector;
use crate::prom::matcher::Matcher;
use crate::prom::proto::{LabelMatcher, Query, ReadRequest, ResponseType};
use crate::prom::wire::snappy;
use crate::time::DAY_MS;
use bytes::Bytes;
use hyper::Method;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use prost::Message;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::{info, warn};

/// Length of the first slice.
const MAX_SLICE_MS: i64 = DAY_MS;
/// Slices of this length are not halved.
const MIN_SLICE_MS: i64 = 60_000;
/// Consecutive timeouts after which a slice is no longer halved. The limit bounds the time that a hanging server costs.
const MAX_TIMEOUTS: usize = 2;
/// Bytes of a SAMPLES response, as received and decompressed. A slice above the limit is halved.
pub(super) const RESPONSE_LIMIT: usize = 32 << 20;

/// A client for one remote-read endpoint.
pub struct ReadClient {
    /// The block that configures it.
    pub config: Config,
    client: Client,
    pub(super) metrics: Metrics,
    /// The endpoint's chunks have an unknown encoding: only samples are requested.
    has_unknown_encoding: AtomicBool,
    /// The last read failed: the failures of a run are logged once.
    is_failing: AtomicBool,
}

impl ReadClient {
    /// A client that has not connected yet.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn new(config: &Config, metrics: &Metrics) -> Result<Self, client::Error> {
        Ok(Self {
            config: config.clone(),
            client: Client::new(&config.http)?,
            metrics: metrics.clone(),
            has_unknown_encoding: AtomicBool::default(),
            is_failing: AtomicBool::default(),
        })
    }

    /// Reads the series of a group that match a selector, over `(after_ms, to_ms]`. Calls `on_slice` once for each
    /// complete slice, in order of time; a series may be in several slices. At most one slice is in memory.
    ///
    /// # Errors
    /// [`Error`] of the first slice that fails. `on_slice` is not called for that slice; the slices before it are
    /// complete.
    pub async fn read(
        &self,
        selector: &Selector,
        group: &[Matcher],
        range: (i64, i64),
        on_slice: impl FnMut(Vec<SeriesSamples>),
    ) -> Result<(), Error> {
        let result = self.read_slices(selector, group, range, on_slice).await;
        let was_failing = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !was_failing => {
                warn!(component = "remote_read", url = %self.config.url, err = crate::error::chain(error), "remote read failed; further failures are not logged until it succeeds");
            }
            Ok(()) if was_failing => {
                info!(component = "remote_read", url = %self.config.url, "remote read works again");
            }
            _ => {}
        }
        result
    }

    async fn read_slices(
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
            // The last slice may be shorter than the others.
            let length_ms = end_ms - start_ms + 1;
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
                Err(error) if length_ms <= MIN_SLICE_MS => return Err(self.count_failed(error)),
                Err(error) if error.is_too_large() => {}
                Err(error) if error.is_timeout() && timeouts < MAX_TIMEOUTS => timeouts += 1,
                Err(error) => return Err(self.count_failed(error)),
            }
            self.metrics.count_slice("split");
            slice_ms = length_ms / 2;
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
        let mut collector = ResponseCollector::new(query.start_timestamp_ms, query.end_timestamp_ms);
        let received = self.receive(query, response_types, &mut collector).await;
        self.metrics.count_skipped(collector.skipped());
        received.map(|()| collector.finish())
    }

    async fn receive(
        &self,
        query: Query,
        response_types: &[ResponseType],
        collector: &mut ResponseCollector,
    ) -> Result<(), Error> {
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
        Ok(())
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
