//! Sends batches to one endpoint, one request at a time.
//!
//! A score is sent at once unless a request is under way or the deadline after its start has not passed; scores that
//! arrive meanwhile share the next one. A backlog is sent without a pause.
//! Prometheus instead waits for others before each request, which delays every score by the whole wait.
//!
//! Sequential requests keep the order within each series; the alternative, Prometheus' shards, would need a partition
//! by series for it. With tenants there is a sender for each, so that one whose requests fail delays no other. Until the configuration is reloaded, the sender remembers that the endpoint does not support
//! remote write 2.0, the largest request that it accepts, and that another writer has the same series.

use super::message::{Metadata, ProtobufMessage, TimeSeries};
use super::response::{RecoverableError, SendResult, classify_response, is_conflict, is_data_error};
use super::{Batch, BatchSource, Config, FailureReason, Metrics};
use crate::http::client::{BufferedResponse, Client, Request};
use crate::telemetry::LogThrottle;
use crate::tenant::Tenant;
use crate::time;
use bytes::Bytes;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

/// Bytes of a response. Only its first line is used.
const RESPONSE_LIMIT: usize = 64 << 10;
/// Interval of messages of 1.0 with type and help; Prometheus' `metadata_config.send_interval`.
const METADATA_INTERVAL: Duration = Duration::from_secs(60);
/// Least interval of log lines that could appear for every batch.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Consecutive conflicting batches that indicate a second writer. Fewer may follow a restart, after which promforest
/// may send samples that it had already written.
const MIN_CONFLICTING_BATCHES: u32 = 5;

/// Rejected requests of a batch that are split. One bad sample among thousands takes a dozen, one bad series some
/// dozens.
const MAX_SPLITS: usize = 256;
/// The same after one and after three batches in a row of which nothing was accepted: the endpoint seems to reject
/// everything.
const SPLITS_AFTER_REJECTION: [(u32, usize); 2] = [(1, 8), (3, 1)];

/// The task that writes to one endpoint.
pub struct Sender<W> {
    /// The source of batches, which also stores the cursor.
    pub source: W,
    /// The `remote_write` block of the endpoint.
    pub config: Config,
    /// The tenant of the batches; `None` without tenants.
    pub tenant: Option<Tenant>,
    /// The HTTP client.
    pub client: Client,
    /// The metrics.
    pub metrics: Metrics,
    /// Notified when there are new samples to send.
    pub wake: Arc<Notify>,
    /// Becomes true when the sender should send the rest and end.
    pub closing: watch::Receiver<bool>,
}

/// A rejected request, with the number of its samples that were written nevertheless.
struct RejectedPart {
    response: BufferedResponse,
    n_written: usize,
    part: Vec<TimeSeries>,
}

/// The state of a running sender.
struct SendLoop<W> {
    sender: Sender<W>,
    message: ProtobufMessage,
    max_samples: usize,
    /// Start of the last batch.
    batch_started_at: Option<Instant>,
    metadata_sent_at: Option<Instant>,
    rejected: LogThrottle,
    too_old: LogThrottle,
    unconfirmed: LogThrottle,
    second_writer: LogThrottle,
    /// Number of consecutive batches of which nothing was accepted.
    n_rejected_batches: u32,
    /// Number of consecutive batches with conflicting samples.
    n_conflicting_batches: u32,
}

impl<W: BatchSource> Sender<W> {
    /// Sends until `closing` becomes true and the rest is sent.
    pub async fn run(self) {
        let send_loop = SendLoop {
            message: self.config.protobuf_message,
            max_samples: self.config.max_samples_per_send,
            sender: self,
            batch_started_at: None,
            metadata_sent_at: None,
            rejected: LogThrottle::new(LOG_INTERVAL),
            too_old: LogThrottle::new(LOG_INTERVAL),
            unconfirmed: LogThrottle::new(LOG_INTERVAL),
            second_writer: LogThrottle::new(LOG_INTERVAL),
            n_rejected_batches: 0,
            n_conflicting_batches: 0,
        };
        send_loop.run().await;
    }
}

impl<W: BatchSource> SendLoop<W> {
    async fn run(mut self) {
        loop {
            let is_closing = self.wait_for_samples().await;
            while let Some(batch) = self.sender.source.next_batch(self.max_samples).await {
                let is_backlog = n_samples(&batch.series) > self.max_samples / 2;
                self.batch_started_at = Some(Instant::now());
                self.send_batch(batch).await;
                self.pause_after_rejection().await;
                if !is_backlog {
                    self.wait_for_deadline().await;
                }
            }
            if is_closing {
                return;
            }
        }
    }

    fn tenant(&self) -> Option<&str> {
        self.sender.tenant.as_ref().map(Tenant::as_str)
    }

    /// Waits until there is something to send. Returns true at a shutdown.
    async fn wait_for_samples(&mut self) -> bool {
        let Sender { closing, wake, .. } = &mut self.sender;
        tokio::select! {
            _ = closing.wait_for(|closing| *closing) => return true,
            () = wake.notified() => {}
        }
        self.wait_for_deadline().await;
        false
    }

    /// Waits until the last batch is [`Config::batch_send_deadline`] old, or until a shutdown.
    async fn wait_for_deadline(&mut self) {
        let Sender { closing, config, .. } = &mut self.sender;
        let age = self.batch_started_at.map_or(Duration::MAX, |started_at| started_at.elapsed());
        let wait = config.batch_send_deadline.saturating_sub(age);
        if !wait.is_zero() {
            // A timeout and an end both lead to the next batch.
            let _ = tokio::time::timeout(wait, closing.wait_for(|closing| *closing)).await;
        }
    }

    async fn send_batch(&mut self, batch: Batch) {
        // A rejected part is replaced by its two halves, the older first. Thus only the invalid samples are lost, at
        // two requests for each halving. Beyond the limit of splits, a part is sent once.
        let mut parts = vec![batch.series];
        let (mut n_conflicting, mut splits_left) = (0, self.max_splits());
        let (mut is_any_rejected, mut is_any_accepted) = (false, false);
        while let Some(part) = parts.pop() {
            let Err(RejectedPart { response, n_written, part }) = self.send_part(part).await else {
                is_any_accepted = true;
                continue;
            };
            is_any_rejected = true;
            is_any_accepted |= n_written > 0;
            let (count, summary) = (n_samples(&part), describe(&part));
            let (status, reason, n_rejected) = (response.status, response.reason(), count - n_written);
            // A response with a count of written samples has already accepted the valid ones.
            let can_split = n_written == 0 && is_data_error(status) && splits_left > 0;
            match self.split(part).filter(|_| can_split) {
                Some([older, newer]) => {
                    debug!(
                        component = "remote_write",
                        status = status.as_u16(),
                        reason,
                        count,
                        "batch rejected, sending its halves"
                    );
                    splits_left -= 1;
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
                        warn!(component = "remote_write", url = %self.sender.config.url, tenant = self.tenant(), status = status.as_u16(), reason, summary, count, "samples rejected");
                    }
                }
            }
        }
        if is_any_rejected && !is_any_accepted {
            self.n_rejected_batches += 1;
        } else {
            self.n_rejected_batches = 0;
        }
        self.count_conflicting(n_conflicting);
        let now = Instant::now();
        for position in &batch.positions {
            self.sender.metrics.observe_latency(now.duration_since(position.received_at));
        }
        self.sender.source.advance(batch.positions).await;
    }

    /// Rejected requests of the next batch that are split.
    fn max_splits(&self) -> usize {
        let applies = |(n_batches, _): &&(u32, usize)| self.n_rejected_batches >= *n_batches;
        SPLITS_AFTER_REJECTION.iter().rfind(applies).map_or(MAX_SPLITS, |(_, splits)| *splits)
    }

    /// The two halves of a part. After a batch of which nothing was accepted, the few splits are between rows and between
    /// series in turn: another writer may have sent the older rows, or every row may have a bad series.
    fn split(&self, part: Vec<TimeSeries>) -> Option<[Vec<TimeSeries>; 2]> {
        match self.n_rejected_batches % 2 {
            0 => split_in_half(part),
            _ => split_by_time(&part),
        }
    }

    /// Waits after a batch of which nothing was accepted, longer each time; scores that accumulate share a request. A
    /// shutdown ends the wait.
    async fn pause_after_rejection(&mut self) {
        let Some(doublings) = self.n_rejected_batches.checked_sub(1) else { return };
        let Config { min_backoff, max_backoff, .. } = self.sender.config;
        let pause = min_backoff.saturating_mul(2_u32.saturating_pow(doublings)).min(max_backoff);
        let closed = self.sender.closing.wait_for(|closing| *closing);
        // A timeout and an end both lead to the next batch.
        let _ = tokio::time::timeout(pause, closed).await;
    }

    /// Halves the size of requests after one of `samples` samples was too large.
    fn reduce_request_size(&mut self, samples: usize) {
        let reduced = (samples / 2).max(super::message::MAX_SAMPLES_PER_ROW);
        if reduced < self.max_samples {
            self.max_samples = reduced;
            info!(component = "remote_write", url = %self.sender.config.url, tenant = self.tenant(), max_samples_per_send = reduced, "the endpoint rejects larger requests");
        }
    }

    /// Counts the conflicting samples of a batch. Batches ascend, so that conflicts with promforest's own samples end
    /// after a few batches.
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
            warn!(component = "remote_write", url = %self.sender.config.url, tenant = self.tenant(), count, "second writer: the endpoint has other samples of the same series; check for another promforest with these detectors");
        }
    }

    /// Repeats one request until it is accepted or rejected, or until all its samples are too old.
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
                        info!(component = "remote_write", url = %url, tenant = self.tenant(), attempts = attempt + 1, "remote write works again");
                    }
                    self.sender.metrics.written.inc_by(n_written as u64);
                    if n_written < count {
                        self.sender.metrics.count_failed(FailureReason::Unconfirmed, count - n_written);
                        if let Some(count) = self.unconfirmed.add(count - n_written) {
                            warn!(component = "remote_write", url = %self.sender.config.url, tenant = self.tenant(), count, "the endpoint counts fewer samples than it was sent");
                        }
                    }
                    return Ok(());
                }
                SendResult::Rejected(response, n_written) => {
                    self.sender.metrics.written.inc_by(n_written as u64);
                    return Err(RejectedPart { response, n_written, part });
                }
                SendResult::UnsupportedMessage(status) => {
                    warn!(component = "remote_write", url = %url, tenant = self.tenant(), status = status.as_u16(), "the endpoint does not support remote write 2.0, using 1.0");
                    self.sender.metrics.fallbacks.inc();
                    self.message = ProtobufMessage::V1;
                    body = self.encode(&part);
                }
                SendResult::Recoverable(error) => {
                    // The first failure and each doubling are logged: a long outage takes few lines.
                    if attempt == 0 || attempt.is_power_of_two() {
                        warn!(component = "remote_write", url = %url, tenant = self.tenant(), attempts = attempt + 1, summary = describe(&part), err = error.describe(), "remote write failed, retrying");
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
        if let (Some(tenants), Some(tenant)) = (&self.sender.config.tenants, &self.sender.tenant) {
            tenants.set_header(tenant, &mut headers);
        }
        let (url, timeout) = (url.clone(), *timeout);
        let request = Request { method: Method::POST, url, headers, body, timeout, limit: RESPONSE_LIMIT };
        // A success counts by its status and headers, however much text follows.
        let response =
            async { self.sender.client.open(request).await?.collect_beginning(RESPONSE_LIMIT).await };
        match response.await {
            Err(error) => SendResult::Recoverable(RecoverableError::Unreachable(error)),
            Ok(response) => classify_response(response, self.message, n_samples, *retry_on_http_429),
        }
    }

    /// Removes and counts the samples that are older than the age limit.
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
                warn!(component = "remote_write", url = %self.sender.config.url, tenant = self.tenant(), summary, count, "samples dropped: older than sample_age_limit");
            }
        }
        part
    }
}

fn n_samples(part: &[TimeSeries]) -> usize {
    part.iter().map(|series| series.samples.len()).sum()
}

/// Describes a part for the log: its size, its first series, its time range.
fn describe(part: &[TimeSeries]) -> String {
    let Some(first) = part.first() else { return String::new() };
    let mut text = format!("{} samples, {}", n_samples(part), first.labels);
    if part.len() > 1 {
        write!(text, " and {} more series", part.len() - 1).expect("writing to a string cannot fail");
    }
    let times = || part.iter().flat_map(|series| &series.samples).map(|sample| sample.timestamp_ms);
    if let (Some(first_ms), Some(last_ms)) = (times().min(), times().max()) {
        write!(text, ", {first_ms} to {last_ms}").expect("writing to a string cannot fail");
    }
    text
}

/// Splits a part between its series, or a single series between its samples; `None` for one sample or none.
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

/// Splits a part into its older and its newer rows; `None` for a single row.
fn split_by_time(part: &[TimeSeries]) -> Option<[Vec<TimeSeries>; 2]> {
    let times = || part.iter().flat_map(|series| &series.samples).map(|sample| sample.timestamp_ms);
    let distinct: BTreeSet<i64> = times().collect();
    let middle_ms = *distinct.iter().nth(distinct.len() / 2).filter(|_| distinct.len() > 1)?;
    let (mut older, mut newer) = (Vec::new(), Vec::new());
    for TimeSeries { labels, samples } in part {
        let (before, after) =
            samples.split_at(samples.partition_point(|sample| sample.timestamp_ms < middle_ms));
        for (half, samples) in [(&mut older, before), (&mut newer, after)] {
            if !samples.is_empty() {
                half.push(TimeSeries { labels: labels.clone(), samples: samples.to_vec() });
            }
        }
    }
    Some([older, newer])
}

#[cfg(test)]
mod tests;
