//! Sends batches, one request at a time: order within a series comes for free.

use super::{Batch, Config, Lost, Metrics, Series, Windows};
use crate::http::client::{self, Answer, Client};
use crate::prom::wire::snappy;
use crate::prom::{Sample, duration, proto};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue, RETRY_AFTER};
use prost::Message;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

/// Of an answer only the first line is of interest.
const ANSWER_LIMIT: usize = 64 << 10;
/// A longer `Retry-After` is taken for a mistake.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

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
enum Verdict {
    Accepted,
    /// The data is at fault: sending it again would not help.
    Rejected(Answer),
    /// The other side is at fault, or the way there.
    Recoverable(Problem),
}

enum Problem {
    Answered(Answer),
    Unreachable(client::Error),
}

impl Problem {
    fn retry_after(&self) -> Option<Duration> {
        let Self::Answered(answer) = self else { return None };
        let seconds: u64 = answer.headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
        // Without a pause every failed request would be followed at once by the next.
        Some(Duration::from_secs(seconds)).filter(|pause| !pause.is_zero() && *pause <= LONGEST_RETRY_AFTER)
    }

    fn describe(&self) -> String {
        match self {
            Self::Answered(answer) => format!("{}: {}", answer.status, answer.reason()),
            Self::Unreachable(error) => crate::yaml::chain(error),
        }
    }
}

impl<W: Windows> Sender<W> {
    /// Sends until told to close.
    pub async fn run(mut self) {
        loop {
            let close = async { self.closing.wait_for(|closing| *closing).await.map(drop).ok() };
            let closing = tokio::select! {
                _ = close => true,
                () = self.bell.notified() => false,
            };
            if !closing {
                let close = self.closing.wait_for(|closing| *closing);
                // Either way there is something to send.
                let _ = tokio::time::timeout(self.config.batch_send_deadline, close).await;
            }
            while let Some(batch) = self.windows.next_batch(self.config.max_samples_per_send).await {
                self.deliver(batch).await;
            }
            if closing {
                return;
            }
        }
    }

    async fn deliver(&self, batch: Batch) {
        // A part that is rejected makes place for its two halves, the older first; so one bad
        // sample costs itself alone, at two requests a halving.
        let mut parts = vec![batch.series];
        while let Some(part) = parts.pop() {
            let part = self.without_old(part);
            if part.is_empty() {
                continue;
            }
            let n_samples: usize = part.iter().map(|series| series.samples.len()).sum();
            let Err(answer) = self.persist(part.clone()).await else {
                continue;
            };
            let reason = answer.reason();
            match halves(part).filter(|_| is_about_data(answer.status)) {
                Some([older, newer]) => {
                    debug!(
                        component = "publish",
                        status = answer.status.as_u16(),
                        reason,
                        count = n_samples,
                        "batch rejected, sending its halves"
                    );
                    parts.extend([newer, older]);
                }
                None => {
                    warn!(component = "publish", url = %self.config.url, status = answer.status.as_u16(), reason, count = n_samples, "samples rejected");
                    self.metrics.lose(Lost::Rejected, n_samples);
                }
            }
        }
        let now = Instant::now();
        for position in &batch.positions {
            self.metrics.latency.observe(now.duration_since(position.received).as_secs_f64());
        }
        self.windows.advance(batch.positions).await;
    }

    /// Sends one request until it is accepted, given up for its age, or rejected.
    async fn persist(&self, mut part: Vec<Series>) -> Result<(), Answer> {
        let mut backoff = self.config.min_backoff;
        let mut attempt = 0_u32;
        while !part.is_empty() {
            let n_samples: usize = part.iter().map(|series| series.samples.len()).sum();
            match self.send(&part, attempt).await {
                Verdict::Accepted => {
                    if attempt > 0 {
                        info!(component = "publish", url = %self.config.url, attempts = attempt + 1, "remote write works again");
                    }
                    self.metrics.written.inc_by(n_samples as u64);
                    return Ok(());
                }
                Verdict::Rejected(answer) => return Err(answer),
                Verdict::Recoverable(problem) => {
                    // Once at the beginning, and then at each doubling: a long outage is few lines.
                    if attempt == 0 || attempt.is_power_of_two() {
                        warn!(component = "publish", url = %self.config.url, attempts = attempt + 1, err = problem.describe(), "remote write failed, trying again");
                    }
                    attempt += 1;
                    self.metrics.retries.inc();
                    tokio::time::sleep(problem.retry_after().unwrap_or(backoff)).await;
                    backoff = (backoff * 2).min(self.config.max_backoff);
                    part = self.without_old(part);
                }
            }
        }
        Ok(())
    }

    async fn send(&self, part: &[Series], attempt: u32) -> Verdict {
        let mut headers = vec![(
            HeaderName::from_static("x-prometheus-remote-write-version"),
            HeaderValue::from_static("0.1.0"),
        )];
        if attempt > 0 {
            headers.push((HeaderName::from_static("retry-attempt"), attempt.into()));
        }
        let config = &self.config;
        let answer =
            self.client.post(&config.url, &headers, encode(part), config.remote_timeout, ANSWER_LIMIT).await;
        match answer {
            Err(error) => Verdict::Recoverable(Problem::Unreachable(error)),
            Ok(answer) if answer.status.is_success() => Verdict::Accepted,
            Ok(answer) if is_recoverable(answer.status, config.retry_on_http_429) => {
                Verdict::Recoverable(Problem::Answered(answer))
            }
            Ok(answer) => Verdict::Rejected(answer),
        }
    }

    /// Takes out, and counts, what is older than the age limit.
    fn without_old(&self, mut part: Vec<Series>) -> Vec<Series> {
        let oldest_ms = duration::now_ms() - duration::millis(self.config.sample_age_limit);
        let mut lost = 0;
        for series in &mut part {
            let before = series.samples.len();
            series.samples.retain(|sample| sample.timestamp_ms >= oldest_ms);
            lost += before - series.samples.len();
        }
        if lost > 0 {
            warn!(component = "publish", url = %self.config.url, count = lost, "samples given up for their age");
            self.metrics.lose(Lost::TooOld, lost);
            part.retain(|series| !series.samples.is_empty());
        }
        part
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

fn encode(part: &[Series]) -> Bytes {
    let label = |(name, value): (&str, &str)| proto::Label { name: name.into(), value: value.into() };
    let sample = |s: &Sample| proto::Sample { value: s.value, timestamp: s.timestamp_ms };
    let series = |series: &Series| proto::TimeSeries {
        labels: series.labels.iter().map(label).collect(),
        samples: series.samples.iter().map(sample).collect(),
        ..Default::default()
    };
    let request = proto::WriteRequest { timeseries: part.iter().map(series).collect(), metadata: Vec::new() };
    snappy::compress(&request.encode_to_vec()).into()
}

#[cfg(test)]
mod tests;
