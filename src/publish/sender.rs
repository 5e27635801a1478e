//! Sends batches, one request at a time: order within a series comes for free.
//!
//! What it learns of its target it keeps until the configuration is read again: that it does not understand remote
//! write 2.0, how large a request may be, that somebody else writes the same series.

use super::message::{Message, Metadata, Written};
use super::{Batch, Config, Lost, Metrics, Series, Windows};
use crate::http::client::{self, Answer, Client, Request};
use crate::prom::duration;
use crate::telemetry::Quiet;
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
const ANSWER_LIMIT: usize = 64 << 10;
/// The longest pause that a `Retry-After` is taken at its word for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);
/// How often a message of 1.0 tells type and help of its metrics; Prometheus' `metadata_config.send_interval`.
const METADATA_EVERY: Duration = Duration::from_secs(60);
/// A line that would come with every batch comes this often.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// So many batches, one after the other, are contradicted by a second writer; fewer may be a restart's, which
/// cannot know what was written before it.
const CONTRADICTED_BATCHES: u32 = 5;

/// The task that writes to one target.
pub struct Sender<W> {
    /// What to send, and where the cursor is kept.
    pub windows: W,
    /// The target.
    pub config: Config,
    /// The connections.
    pub client: Client,
    /// What is counted.
    pub metrics: Metrics,
    /// Rung when there is something new to send.
    pub bell: Arc<Notify>,
    /// Turns true when the sender should end, once everything is sent.
    pub closing: watch::Receiver<bool>,
}

/// What became of one request.
#[derive(Debug)]
enum Verdict {
    /// So many samples are written.
    Accepted(usize),
    /// The data is at fault: sending it again would not help. So many samples are written all the same.
    Rejected(Answer, usize),
    /// The message is not understood, so that nothing is written.
    NotUnderstood(StatusCode),
    /// The other side is at fault, or the way there.
    Recoverable(Problem),
}

#[derive(Debug)]
enum Problem {
    Answered(Answer),
    Unreachable(client::Error),
}

impl Problem {
    fn retry_after(&self) -> Option<Duration> {
        let Self::Answered(answer) = self else { return None };
        retry_after(answer.headers.get(RETRY_AFTER)?.to_str().ok()?, duration::now_ms())
    }

    fn describe(&self) -> String {
        match self {
            Self::Answered(answer) => format!("{}: {}", answer.status, answer.reason()),
            Self::Unreachable(error) => crate::yaml::chain(error),
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
            let then_ms = DateTimeParser::new().parse_timestamp(text).ok()?.as_millisecond();
            Duration::from_millis(u64::try_from(then_ms - now_ms).ok()?)
        }
    };
    Some(pause.min(LONGEST_RETRY_AFTER)).filter(|pause| !pause.is_zero())
}

/// A request that is rejected, and how many of its samples are written all the same.
struct Refusal {
    answer: Answer,
    written: usize,
    part: Vec<Series>,
}

/// A sender at work, with what it has learned of its target.
struct Dialogue<W> {
    sender: Sender<W>,
    message: Message,
    max_samples: usize,
    told_metadata: Option<Instant>,
    rejected: Quiet,
    too_old: Quiet,
    unconfirmed: Quiet,
    second_writer: Quiet,
    /// Batches that were contradicted, one after the other.
    n_contradicted: u32,
}

impl<W: Windows> Sender<W> {
    /// Sends until told to close.
    pub async fn run(self) {
        let dialogue = Dialogue {
            message: self.config.protobuf_message,
            max_samples: self.config.max_samples_per_send,
            sender: self,
            told_metadata: None,
            rejected: Quiet::new(SAY_EVERY),
            too_old: Quiet::new(SAY_EVERY),
            unconfirmed: Quiet::new(SAY_EVERY),
            second_writer: Quiet::new(SAY_EVERY),
            n_contradicted: 0,
        };
        dialogue.run().await;
    }
}

impl<W: Windows> Dialogue<W> {
    async fn run(mut self) {
        loop {
            let sender = &mut self.sender;
            let close = async { sender.closing.wait_for(|closing| *closing).await.map(drop).ok() };
            let closing = tokio::select! {
                _ = close => true,
                () = sender.bell.notified() => false,
            };
            if !closing {
                let close = sender.closing.wait_for(|closing| *closing);
                // Either way there is something to send.
                let _ = tokio::time::timeout(sender.config.batch_send_deadline, close).await;
            }
            while let Some(batch) = self.sender.windows.next_batch(self.max_samples).await {
                self.deliver(batch).await;
            }
            if closing {
                return;
            }
        }
    }

    async fn deliver(&mut self, batch: Batch) {
        // A part that is rejected makes place for its two halves, the older first; so one bad
        // sample costs itself alone, at two requests a halving.
        let mut parts = vec![batch.series];
        let mut contradicted = 0;
        while let Some(part) = parts.pop() {
            let Err(Refusal { answer, written, part }) = self.persist(part).await else {
                continue;
            };
            let (count, what) = (n_samples(&part), describe(&part));
            let (status, reason, lost) = (answer.status, answer.reason(), count - written);
            // Who tells how much is written has kept the rest of the request already.
            let may_narrow = written == 0 && is_about_data(status);
            match halves(part).filter(|_| may_narrow) {
                Some([older, newer]) => {
                    debug!(
                        component = "publish",
                        status = status.as_u16(),
                        reason,
                        count,
                        "batch rejected, sending its halves"
                    );
                    if status == StatusCode::PAYLOAD_TOO_LARGE {
                        self.send_less_than(count);
                    }
                    parts.extend([newer, older]);
                }
                None => {
                    if is_contradiction(status, &answer.body) {
                        contradicted += lost;
                    }
                    self.sender.metrics.lose(Lost::Rejected, lost);
                    if let Some(count) = self.rejected.add(lost) {
                        warn!(component = "publish", url = %self.sender.config.url, status = status.as_u16(), reason, what, count, "samples rejected");
                    }
                }
            }
        }
        self.contradicted(contradicted);
        let now = Instant::now();
        for position in &batch.positions {
            self.sender.metrics.latency.observe(now.duration_since(position.received).as_secs_f64());
        }
        self.sender.windows.advance(batch.positions).await;
    }

    /// A request of so many samples was too large.
    fn send_less_than(&mut self, samples: usize) {
        let less = (samples / 2).max(super::SAMPLES_OF_A_ROW);
        if less < self.max_samples {
            self.max_samples = less;
            info!(component = "publish", url = %self.sender.config.url, max_samples_per_send = less, "the target takes no larger requests");
        }
    }

    /// So many samples of a batch were refused for others of their series. Batches ascend, so that it is not for
    /// long our own doing.
    fn contradicted(&mut self, samples: usize) {
        if samples == 0 {
            self.n_contradicted = 0;
            return;
        }
        self.sender.metrics.contradicted.inc_by(samples as u64);
        self.n_contradicted += 1;
        if self.n_contradicted >= CONTRADICTED_BATCHES
            && let Some(count) = self.second_writer.add(samples)
        {
            warn!(component = "publish", url = %self.sender.config.url, count, "second writer: the target has other samples of the same series; is there another promforest with these detectors?");
        }
    }

    /// Sends one request until it is accepted, given up for its age, or rejected.
    async fn persist(&mut self, part: Vec<Series>) -> Result<(), Refusal> {
        let mut part = self.without_old(part);
        if part.is_empty() {
            return Ok(());
        }
        let mut backoff = self.sender.config.min_backoff;
        let mut attempt = 0_u32;
        let mut body = self.encode(&part);
        while !part.is_empty() {
            let (count, url) = (n_samples(&part), &self.sender.config.url);
            match self.send(body.clone(), count, attempt).await {
                Verdict::Accepted(written) => {
                    if attempt > 0 {
                        info!(component = "publish", url = %url, attempts = attempt + 1, "remote write works again");
                    }
                    self.sender.metrics.written.inc_by(written as u64);
                    if written < count {
                        self.sender.metrics.lose(Lost::Unconfirmed, count - written);
                        if let Some(count) = self.unconfirmed.add(count - written) {
                            warn!(component = "publish", url = %self.sender.config.url, count, "the target accepted requests and counts fewer samples than were in them");
                        }
                    }
                    return Ok(());
                }
                Verdict::Rejected(answer, written) => {
                    self.sender.metrics.written.inc_by(written as u64);
                    return Err(Refusal { answer, written, part });
                }
                Verdict::NotUnderstood(status) => {
                    warn!(component = "publish", url = %url, status = status.as_u16(), "the target does not understand remote write 2.0, it gets 1.0 from now on");
                    self.sender.metrics.fallbacks.inc();
                    self.message = Message::V1;
                    body = self.encode(&part);
                }
                Verdict::Recoverable(problem) => {
                    // Once at the beginning, and then at each doubling: a long outage is few lines.
                    if attempt == 0 || attempt.is_power_of_two() {
                        warn!(component = "publish", url = %url, attempts = attempt + 1, what = describe(&part), err = problem.describe(), "remote write failed, trying again");
                    }
                    attempt += 1;
                    self.sender.metrics.retries.inc();
                    tokio::time::sleep(problem.retry_after().unwrap_or(backoff)).await;
                    backoff = (backoff * 2).min(self.sender.config.max_backoff);
                    part = self.without_old(part);
                    if n_samples(&part) < count {
                        body = self.encode(&part);
                    }
                }
            }
        }
        Ok(())
    }

    fn encode(&mut self, part: &[Series]) -> Bytes {
        let is_due = self.told_metadata.is_none_or(|told| told.elapsed() >= METADATA_EVERY);
        if self.message == Message::V1 && is_due {
            self.told_metadata = Some(Instant::now());
            return self.message.encode(part, Metadata::Included);
        }
        self.message.encode(part, Metadata::Omitted)
    }

    async fn send(&self, body: Bytes, n_samples: usize, attempt: u32) -> Verdict {
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
        let request = Request { method: Method::POST, url, headers, body, timeout, limit: ANSWER_LIMIT };
        match self.sender.client.request(request).await {
            Err(error) => Verdict::Recoverable(Problem::Unreachable(error)),
            Ok(answer) => judge(answer, self.message, n_samples, *retry_on_http_429),
        }
    }

    /// Takes out, and counts, what is older than the age limit.
    fn without_old(&mut self, mut part: Vec<Series>) -> Vec<Series> {
        let oldest_ms = duration::now_ms() - duration::millis(self.sender.config.sample_age_limit);
        let mut old = Vec::new();
        for Series { labels, samples } in &mut part {
            // Samples ascend.
            let young = samples.split_off(samples.partition_point(|sample| sample.timestamp_ms < oldest_ms));
            old.push(Series { labels: labels.clone(), samples: std::mem::replace(samples, young) });
        }
        old.retain(|series| !series.samples.is_empty());
        let (lost, what) = (n_samples(&old), describe(&old));
        if lost > 0 {
            part.retain(|series| !series.samples.is_empty());
            self.sender.metrics.lose(Lost::TooOld, lost);
            if let Some(count) = self.too_old.add(lost) {
                warn!(component = "publish", url = %self.sender.config.url, what, count, "samples given up for their age");
            }
        }
        part
    }
}

fn n_samples(part: &[Series]) -> usize {
    part.iter().map(|series| series.samples.len()).sum()
}

/// Names a part in the log: its size, its first series, its times.
fn describe(part: &[Series]) -> String {
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

fn judge(answer: Answer, message: Message, n_samples: usize, retry_on_429: bool) -> Verdict {
    let status = answer.status;
    let written = match message {
        Message::V1 => None,
        Message::V2 => Some(Written::read(&answer.headers)),
    };
    let count = match written {
        // More than was sent is no better than a count that is none.
        Some(Written::Samples(count)) => count.min(n_samples),
        _ => 0,
    };
    match written {
        None if status.is_success() => Verdict::Accepted(n_samples),
        Some(Written::Nothing) if status.is_success() => Verdict::NotUnderstood(status),
        Some(_) if status == StatusCode::UNSUPPORTED_MEDIA_TYPE => Verdict::NotUnderstood(status),
        Some(_) if status.is_success() => Verdict::Accepted(count),
        _ if is_recoverable(status, retry_on_429) => Verdict::Recoverable(Problem::Answered(answer)),
        _ => Verdict::Rejected(answer, count),
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
fn is_about_data(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::CONFLICT
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY
    )
}

/// Does the answer say that the series have other samples? So Prometheus, Mimir and Thanos say it.
fn is_contradiction(status: StatusCode, body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body).to_lowercase();
    let signs =
        ["out of order", "out-of-order", "duplicate sample", "duplicate timestamp", "duplicate-timestamp"];
    status == StatusCode::CONFLICT
        || status == StatusCode::BAD_REQUEST && signs.iter().any(|sign| text.contains(sign))
}

/// Cuts between series, or, where there is only one, between its samples; `None` for one sample.
fn halves(mut part: Vec<Series>) -> Option<[Vec<Series>; 2]> {
    if part.len() > 1 {
        let newer = part.split_off(part.len() / 2);
        return Some([part, newer]);
    }
    let mut older = part.pop()?;
    if older.samples.len() < 2 {
        return None;
    }
    let samples = older.samples.split_off(older.samples.len() / 2);
    let newer = Series { labels: older.labels.clone(), samples };
    Some([vec![older], vec![newer]])
}

#[cfg(test)]
mod tests;
