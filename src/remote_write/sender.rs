//! Sends batches, one request at a time: order within a series comes for free.
//!
//! What it learns of its target it keeps until the configuration is read again: that it does not understand remote
//! write 2.0, how large a request may be, that somebody else writes the same series.

use super::message::{Metadata, ProtobufMessage, WriteResponseStats};
use super::{Batch, BatchSource, Config, FailureReason, Metrics, TimeSeries};
use crate::http::client::{self, BufferedResponse, Client, Request};
use crate::telemetry::LogThrottle;
use crate::time;
use bytes::Bytes;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Method, StatusCode};
use jiff::fmt::rfc2822::DateTimeParser;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

/// Of an answer only the first line is of interest.
const RESPONSE_LIMIT: usize = 64 << 10;
/// The longest pause that a `Retry-After` is taken at its word for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// How often a message of 1.0 tells type and help of its metrics; Prometheus' `metadata_config.send_interval`.
const METADATA_INTERVAL: Duration = Duration::from_secs(60);
/// A line that would come with every batch comes this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// So many batches, one after the other, are contradicted by a second writer; fewer may be a restart's, which
/// cannot know what was written before it.
const MIN_CONFLICTING_BATCHES: u32 = 5;

/// The task that writes to one target.
pub struct Sender<W> {
    /// What to send, and where the cursor is kept.
    pub source: W,
    /// The target.
    pub config: Config,
    /// The connections.
    pub client: Client,
    /// What is counted.
    pub metrics: Metrics,
    /// Rung when there is something new to send.
    pub wake: Arc<Notify>,
    /// Turns true when the sender should end, once everything is sent.
    pub closing: watch::Receiver<bool>,
}

/// What became of one request.
#[derive(Debug)]
enum SendResult {
    /// So many samples are written.
    Accepted(usize),
    /// The data is at fault: sending it again would not help. So many samples are written all the same.
    Rejected(BufferedResponse, usize),
    /// The message is not understood, so that nothing is written.
    UnsupportedMessage(StatusCode),
    /// The other side is at fault, or the way there.
    Recoverable(RecoverableError),
}

#[derive(Debug)]
enum RecoverableError {
    Status(BufferedResponse),
    Unreachable(client::Error),
}

impl RecoverableError {
    fn retry_after(&self) -> Option<Duration> {
        let Self::Status(response) = self else { return None };
        retry_after(response.headers.get(RETRY_AFTER)?.to_str().ok()?, time::now_ms())
    }

    fn describe(&self) -> String {
        match self {
            Self::Status(response) => format!("{}: {}", response.status, response.reason()),
            Self::Unreachable(error) => crate::error::chain(error),
        }
    }
}

/// The pause that a `Retry-After` asks for: seconds or a date (RFC 9110, section 10.2.3). `None` for one that
/// is no pause: without any, every failed request would be followed at once by the next.
fn retry_after(text: &str, now_ms: i64) -> Option<Duration> {
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

/// A request that is rejected, and how many of its samples are written all the same.
struct RejectedPart {
    response: BufferedResponse,
    n_written: usize,
    part: Vec<TimeSeries>,
}

/// A sender at work, with what it has learned of its target.
struct SendLoop<W> {
    sender: Sender<W>,
    message: ProtobufMessage,
    max_samples: usize,
    metadata_sent_at: Option<Instant>,
    rejected: LogThrottle,
    too_old: LogThrottle,
    unconfirmed: LogThrottle,
    second_writer: LogThrottle,
    /// Batches that were contradicted, one after the other.
    n_conflicting_batches: u32,
}

impl<W: BatchSource> Sender<W> {
    /// Sends until told to close.
    pub async fn run(self) {
        let send_loop = SendLoop {
            message: self.config.protobuf_message,
            max_samples: self.config.max_samples_per_send,
            sender: self,
            metadata_sent_at: None,
            rejected: LogThrottle::new(LOG_INTERVAL),
            too_old: LogThrottle::new(LOG_INTERVAL),
            unconfirmed: LogThrottle::new(LOG_INTERVAL),
            second_writer: LogThrottle::new(LOG_INTERVAL),
            n_conflicting_batches: 0,
        };
        send_loop.run().await;
    }
}

impl<W: BatchSource> SendLoop<W> {
    async fn run(mut self) {
        loop {
            let sender = &mut self.sender;
            let closed = async { sender.closing.wait_for(|closing| *closing).await.map(drop).ok() };
            let closing = tokio::select! {
                _ = closed => true,
                () = sender.wake.notified() => false,
            };
            if !closing {
                let closed = sender.closing.wait_for(|closing| *closing);
                // Either way there is something to send.
                let _ = tokio::time::timeout(sender.config.batch_send_deadline, closed).await;
            }
            while let Some(batch) = self.sender.source.next_batch(self.max_samples).await {
                self.send_batch(batch).await;
            }
            if closing {
                return;
            }
        }
    }

    async fn send_batch(&mut self, batch: Batch) {
        // A part that is rejected makes place for its two halves, the older first; so one bad
        // sample costs itself alone, at two requests a halving.
        let mut parts = vec![batch.series];
        let mut n_conflicting = 0;
        while let Some(part) = parts.pop() {
            let Err(RejectedPart { response, n_written, part }) = self.send_part(part).await else {
                continue;
            };
            let (count, summary) = (n_samples(&part), describe(&part));
            let (status, reason, n_rejected) = (response.status, response.reason(), count - n_written);
            // Who tells how much is written has kept the rest of the request already.
            let can_split = n_written == 0 && is_data_error(status);
            match split_in_half(part).filter(|_| can_split) {
                Some([older, newer]) => {
                    debug!(
                        component = "remote_write",
                        status = status.as_u16(),
                        reason,
                        count,
                        "batch rejected, sending its halves"
                    );
                    if status == StatusCode::PAYLOAD_TOO_LARGE {
                        self.reduce_request_size(count);
                    }
                    parts.extend([newer, older]);
                }
                None => {
                    if is_conflict(status, &response.body) {
                        n_conflicting += n_rejected;
                    }
                    self.sender.metrics.count_failed(FailureReason::Rejected, n_rejected);
                    if let Some(count) = self.rejected.add(n_rejected) {
                        warn!(component = "remote_write", url = %self.sender.config.url, status = status.as_u16(), reason, summary, count, "samples rejected");
                    }
                }
            }
        }
        self.count_conflicting(n_conflicting);
        let now = Instant::now();
        for position in &batch.positions {
            self.sender.metrics.latency.observe(now.duration_since(position.received_at).as_secs_f64());
        }
        self.sender.source.advance(batch.positions).await;
    }

    /// A request of so many samples was too large.
    fn reduce_request_size(&mut self, samples: usize) {
        let reduced = (samples / 2).max(super::MAX_SAMPLES_PER_ROW);
        if reduced < self.max_samples {
            self.max_samples = reduced;
            info!(component = "remote_write", url = %self.sender.config.url, max_samples_per_send = reduced, "the endpoint rejects larger requests");
        }
    }

    /// So many samples of a batch were refused for others of their series. Batches ascend, so that it is not for
    /// long our own doing.
    fn count_conflicting(&mut self, samples: usize) {
        if samples == 0 {
            self.n_conflicting_batches = 0;
            return;
        }
        self.sender.metrics.conflicting.inc_by(samples as u64);
        self.n_conflicting_batches += 1;
        if self.n_conflicting_batches >= MIN_CONFLICTING_BATCHES
            && let Some(count) = self.second_writer.add(samples)
        {
            warn!(component = "remote_write", url = %self.sender.config.url, count, "second writer: the endpoint has other samples of the same series; check for another promforest with these detectors");
        }
    }

    /// Sends one request until it is accepted, given up for its age, or rejected.
    async fn send_part(&mut self, part: Vec<TimeSeries>) -> Result<(), RejectedPart> {
        let mut part = self.drop_too_old(part);
        if part.is_empty() {
            return Ok(());
        }
        let mut backoff = self.sender.config.min_backoff;
        let mut attempt = 0_u32;
        let mut body = self.encode(&part);
        while !part.is_empty() {
            let (count, url) = (n_samples(&part), &self.sender.config.url);
            match self.send_request(body.clone(), count, attempt).await {
                SendResult::Accepted(n_written) => {
                    if attempt > 0 {
                        info!(component = "remote_write", url = %url, attempts = attempt + 1, "remote write works again");
                    }
                    self.sender.metrics.written.inc_by(n_written as u64);
                    if n_written < count {
                        self.sender.metrics.count_failed(FailureReason::Unconfirmed, count - n_written);
                        if let Some(count) = self.unconfirmed.add(count - n_written) {
                            warn!(component = "remote_write", url = %self.sender.config.url, count, "the endpoint counts fewer samples than it was sent");
                        }
                    }
                    return Ok(());
                }
                SendResult::Rejected(response, n_written) => {
                    self.sender.metrics.written.inc_by(n_written as u64);
                    return Err(RejectedPart { response, n_written, part });
                }
                SendResult::UnsupportedMessage(status) => {
                    warn!(component = "remote_write", url = %url, status = status.as_u16(), "the endpoint does not support remote write 2.0, using 1.0");
                    self.sender.metrics.fallbacks.inc();
                    self.message = ProtobufMessage::V1;
                    body = self.encode(&part);
                }
                SendResult::Recoverable(error) => {
                    // Once at the beginning, and then at each doubling: a long outage is few lines.
                    if attempt == 0 || attempt.is_power_of_two() {
                        warn!(component = "remote_write", url = %url, attempts = attempt + 1, summary = describe(&part), err = error.describe(), "remote write failed, retrying");
                    }
                    attempt += 1;
                    self.sender.metrics.retries.inc();
                    tokio::time::sleep(error.retry_after().unwrap_or(backoff)).await;
                    backoff = (backoff * 2).min(self.sender.config.max_backoff);
                    part = self.drop_too_old(part);
                    if n_samples(&part) < count {
                        body = self.encode(&part);
                    }
                }
            }
        }
        Ok(())
    }

    fn encode(&mut self, part: &[TimeSeries]) -> Bytes {
        let is_due = self.metadata_sent_at.is_none_or(|sent_at| sent_at.elapsed() >= METADATA_INTERVAL);
        if self.message == ProtobufMessage::V1 && is_due {
            self.metadata_sent_at = Some(Instant::now());
            return self.message.encode(part, Metadata::Included);
        }
        self.message.encode(part, Metadata::Omitted)
    }

    async fn send_request(&self, body: Bytes, n_samples: usize, attempt: u32) -> SendResult {
        let Config { url, remote_timeout: timeout, retry_on_http_429, .. } = &self.sender.config;
        let mut headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static(self.message.content_type())),
            (CONTENT_ENCODING, HeaderValue::from_static("snappy")),
            (
                HeaderName::from_static("x-prometheus-remote-write-version"),
                HeaderValue::from_static(self.message.version()),
            ),
        ]);
        if attempt > 0 {
            headers.insert(HeaderName::from_static("retry-attempt"), attempt.into());
        }
        let (url, timeout) = (url.clone(), *timeout);
        let request = Request { method: Method::POST, url, headers, body, timeout, limit: RESPONSE_LIMIT };
        match self.sender.client.request(request).await {
            Err(error) => SendResult::Recoverable(RecoverableError::Unreachable(error)),
            Ok(response) => classify_response(response, self.message, n_samples, *retry_on_http_429),
        }
    }

    /// Takes out, and counts, what is older than the age limit.
    fn drop_too_old(&mut self, mut part: Vec<TimeSeries>) -> Vec<TimeSeries> {
        let oldest_ms = time::now_ms() - time::millis(self.sender.config.sample_age_limit);
        let mut too_old = Vec::new();
        for TimeSeries { labels, samples } in &mut part {
            // Samples ascend.
            let recent = samples.split_off(samples.partition_point(|sample| sample.timestamp_ms < oldest_ms));
            too_old.push(TimeSeries { labels: labels.clone(), samples: std::mem::replace(samples, recent) });
        }
        too_old.retain(|series| !series.samples.is_empty());
        let (n_too_old, summary) = (n_samples(&too_old), describe(&too_old));
        if n_too_old > 0 {
            part.retain(|series| !series.samples.is_empty());
            self.sender.metrics.count_failed(FailureReason::TooOld, n_too_old);
            if let Some(count) = self.too_old.add(n_too_old) {
                warn!(component = "remote_write", url = %self.sender.config.url, summary, count, "samples dropped: older than sample_age_limit");
            }
        }
        part
    }
}

fn n_samples(part: &[TimeSeries]) -> usize {
    part.iter().map(|series| series.samples.len()).sum()
}

/// Names a part in the log: its size, its first series, its times.
fn describe(part: &[TimeSeries]) -> String {
    let Some(first) = part.first() else { return String::new() };
    let mut text = format!("{} samples, {}", n_samples(part), first.labels);
    if part.len() > 1 {
        write!(text, " and {} more series", part.len() - 1).expect("a string takes any text");
    }
    let times = || part.iter().flat_map(|series| &series.samples).map(|sample| sample.timestamp_ms);
    if let (Some(first_ms), Some(last_ms)) = (times().min(), times().max()) {
        write!(text, ", {first_ms} to {last_ms}").expect("a string takes any text");
    }
    text
}

fn classify_response(
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
        // More than was sent is no better than a count that is none.
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

/// Is the other side at fault, so that the same data may be accepted later?
///
/// 401, 403 and 404 are about the target's configuration, and say nothing against the data:
/// Prometheus answers 404 while its receiver is not enabled.
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

/// Does the answer accuse some of the data, so that the rest may be accepted without it?
///
/// 409 is what Thanos answers to a sample out of order. Any other answer holds for every part
/// alike: sending the parts would only multiply the requests, to a target that asks for fewer (429).
fn is_data_error(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::CONFLICT
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY
    )
}

/// Does the answer say that the series have other samples? So Prometheus, Mimir and Thanos say it.
fn is_conflict(status: StatusCode, body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body).to_lowercase();
    let phrases =
        ["out of order", "out-of-order", "duplicate sample", "duplicate timestamp", "duplicate-timestamp"];
    status == StatusCode::CONFLICT
        || status == StatusCode::BAD_REQUEST && phrases.iter().any(|phrase| text.contains(phrase))
}

/// Cuts between series, or, where there is only one, between its samples; `None` for one sample.
fn split_in_half(mut part: Vec<TimeSeries>) -> Option<[Vec<TimeSeries>; 2]> {
    if part.len() > 1 {
        let newer = part.split_off(part.len() / 2);
        return Some([part, newer]);
    }
    let mut older = part.pop()?;
    if older.samples.len() < 2 {
        return None;
    }
    let samples = older.samples.split_off(older.samples.len() / 2);
    let newer = TimeSeries { labels: older.labels.clone(), samples };
    Some([vec![older], vec![newer]])
}

#[cfg(test)]
mod tests;
