//! Sends scores by remote write.
//!
//! Each endpoint has a cursor over the windows instead of a queue: the rows beyond the cursor are unsent. Thus the
//! windows bound the memory, and no sample can be queued twice. The cost is a request to the owner of the windows for
//! each batch.

pub mod message;
pub mod response;
pub mod sender;

use crate::http::Url;
use crate::http::config::{ClientConfig, read_endpoint};
use crate::models::artifact::sha256_hex;
use crate::prom::duration;
use crate::telemetry::register;
use crate::tenant;
use crate::yaml::{Key, KeyTable, Node, Section};
use message::{MAX_SAMPLES_PER_ROW, ProtobufMessage};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use message::TimeSeries;

/// Latencies that the 99th percentile is taken of.
const MAX_LATENCIES: usize = 1000;

/// A `remote_write` block. Names are Prometheus'; a default that differs from Prometheus' has its reason beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// URL of the endpoint.
    pub url: Url,
    /// Connection, authentication and proxy.
    pub http: ClientConfig,
    /// The message of the requests. An endpoint that does not support 2.0 gets 1.0.
    pub protobuf_message: ProtobufMessage,
    /// Longest duration of one request.
    pub remote_timeout: Duration,
    /// Most samples of one request.
    pub max_samples_per_send: usize,
    /// Least interval between the starts of two batches, thus the longest wait of a score for others to share its
    /// request. A score after a longer pause is sent at once. Prometheus waits 5 s, for requests of thousands of
    /// samples; a score should arrive sooner, and a request takes about 3 ms.
    pub batch_send_deadline: Duration,
    /// First pause before a request is repeated. The pause doubles each time.
    pub min_backoff: Duration,
    /// Longest pause before a request is repeated.
    pub max_backoff: Duration,
    /// Repeats a request after status 429. True, unlike Prometheus': otherwise the scores would be lost.
    pub retry_on_http_429: bool,
    /// Age at which scores are counted as failed and no longer sent. Prometheus has no limit by default, but rejects
    /// samples that are an hour older than its newest.
    pub sample_age_limit: Duration,
    /// The tenants that the requests are divided by, if there are any.
    pub tenants: Option<Arc<tenant::Config>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: "http://localhost:9090/api/v1/write".parse().expect("a URL"),
            http: ClientConfig::default(),
            protobuf_message: ProtobufMessage::default(),
            remote_timeout: Duration::from_secs(30),
            max_samples_per_send: 2000,
            batch_send_deadline: Duration::from_millis(5),
            min_backoff: Duration::from_millis(30),
            max_backoff: Duration::from_secs(5),
            retry_on_http_429: true,
            sample_age_limit: Duration::from_secs(50 * 60),
            tenants: None,
        }
    }
}

/// The keys of a `remote_write` block, without those of the HTTP client.
pub const KEY_TABLES: [KeyTable; 2] = [
    KeyTable::new(
        &["remote_write[]"],
        &[
            Key::required(
                "url",
                "http://localhost:9090/api/v1/write",
                "URL of the endpoint. Each endpoint has a cursor of its own, identified by its URL and `headers`",
            ),
            Key::with_default("remote_timeout", "30s", "Longest duration of one request"),
            Key::with_default(
                "protobuf_message",
                "prometheus.WriteRequest",
                "Message of the requests, or `io.prometheus.write.v2.Request`: remote write 2.0. An endpoint that does \
                 not support 2.0 gets 1.0",
            ),
            Key::optional("queue_config", "Size and timing of the requests, see below"),
        ],
    ),
    KeyTable::new(
        &["remote_write[].queue_config"],
        &[
            Key::with_default(
                "max_samples_per_send",
                "2000",
                "Most samples of one request, at least the most samples of one row: four, two more of a challenger, and \
                 those of an incident's contributions",
            ),
            Key::with_default(
                "batch_send_deadline",
                "5ms",
                "Least time between two requests: a score after a pause is sent at once, scores that follow within this \
                 time share a request. With `0s` none waits",
            ),
            Key::with_default(
                "min_backoff",
                "30ms",
                "First pause before a request is repeated. The pause doubles up to `max_backoff`; `Retry-After` is \
                 honoured",
            ),
            Key::with_default("max_backoff", "5s", "Longest pause before a request is repeated"),
            Key::with_default("retry_on_http_429", "true", "Whether a request that got 429 is repeated"),
            Key::with_default(
                "sample_age_limit",
                "50m",
                "Older scores are dropped and counted: without `out_of_order_time_window`, Prometheus rejects samples \
                 that are an hour older than its newest one",
            ),
        ],
    ),
];

/// A key for the cursor of each endpoint: its URL, and its headers, which tell tenants apart. Further endpoints with
/// the same ones are numbered.
pub fn cursor_keys(endpoints: &[Config]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for endpoint in endpoints {
        let key = endpoint.cursor_key();
        let numbered = (2..).map(|number| format!("{key} {number}"));
        let free = [key.clone()].into_iter().chain(numbered).find(|key| !keys.contains(key));
        keys.extend(free);
    }
    keys
}

impl Config {
    /// The URL, and a digest of its query and of the headers, whose values may be secret.
    fn cursor_key(&self) -> String {
        let headers = self.http.headers.iter();
        let mut lines: Vec<Vec<u8>> = headers
            .map(|(name, value)| [name.as_str().as_bytes(), b":", value.as_bytes(), b"\n"].concat())
            .collect();
        lines.sort_unstable();
        lines.extend(self.url.query().map(|query| [b"?", query.as_bytes()].concat()));
        match lines.is_empty() {
            true => self.url.to_string(),
            false => format!("{} {}", self.url, &sha256_hex(&lines.concat())[..16]),
        }
    }

    /// Reads a block of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let default = Self::default();
        let url = section.require("url").and_then(|node| read_endpoint(&node, "/api/v1/write"));
        let url = url.unwrap_or(default.url.clone());
        let message = section.get("protobuf_message").and_then(|node| node.parse(str::parse));
        let remote_timeout = section.duration("remote_timeout", default.remote_timeout);
        let queue = section.get("queue_config").and_then(Node::section);
        let http = ClientConfig::read(&mut section);
        read_other_keys(&mut section);
        section.deny_unknown();
        let protobuf_message = message.unwrap_or(default.protobuf_message);
        let config = Self { url, http, protobuf_message, remote_timeout, ..default };
        queue.map_or(config.clone(), |queue| config.with_queue_config(queue))
    }

    fn with_queue_config(self, mut queue: Section<'_, '_>) -> Self {
        let config = Self {
            max_samples_per_send: queue.count(
                "max_samples_per_send",
                self.max_samples_per_send,
                MAX_SAMPLES_PER_ROW,
            ),
            batch_send_deadline: queue
                .get("batch_send_deadline")
                .and_then(|node| node.parse(duration::parse))
                .unwrap_or(self.batch_send_deadline),
            min_backoff: queue.duration("min_backoff", self.min_backoff),
            max_backoff: queue.duration("max_backoff", self.max_backoff),
            retry_on_http_429: queue.flag("retry_on_http_429", self.retry_on_http_429),
            sample_age_limit: queue.duration("sample_age_limit", self.sample_age_limit),
            ..self
        };
        queue.ignore(
            &["capacity", "min_shards", "max_shards"],
            "scores wait in the window, and one request at a time is sent",
        );
        if config.max_backoff < config.min_backoff {
            queue.error(format!(
                "max_backoff: {} is below min_backoff ({})",
                duration::Display(config.max_backoff),
                duration::Display(config.min_backoff)
            ));
        }
        queue.deny_unknown();
        config
    }
}

/// Reads the keys of Prometheus that this block has no setting for.
fn read_other_keys(section: &mut Section<'_, '_>) {
    section.ignore(&["name"], "it names a queue in Prometheus' metrics");
    section.ignore(&["send_exemplars", "send_native_histograms"], "scores are plain samples");
    section.ignore(&["round_robin_dns"], "there is one connection at a time");
    section.ignore(&["metadata_config"], "metadata is sent with the scores");
    section.reject(
        &["write_relabel_configs"],
        "scores are not relabelled: remove it, and relabel them where they are received",
    );
    section.reject(
        &["sigv4", "azuread", "google_iam"],
        "this kind of authentication is not supported: send through a proxy that adds it",
    );
}

/// Samples beyond the cursor, up to the size of one request.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The series, each once.
    pub series: Vec<TimeSeries>,
    /// The positions of the cursor after the batch.
    pub positions: Vec<CursorPosition>,
}

/// The position of the cursor in one group.
#[derive(Clone, Copy, Debug)]
pub struct CursorPosition {
    /// Number of the group.
    pub group: u32,
    /// Timestamp of the newest row of the batch.
    pub timestamp_ms: i64,
    /// Arrival of that row's last sample.
    pub received_at: Instant,
}

/// The interface to the owner of the windows.
pub trait BatchSource: Send + Sync + 'static {
    /// The next batch of at most `max_samples`; `None` if everything is sent or the owner has ended.
    fn next_batch(&self, max_samples: usize) -> impl Future<Output = Option<Batch>> + Send;
    /// Moves the cursor to these positions.
    fn advance(&self, positions: Vec<CursorPosition>) -> impl Future<Output = ()> + Send;
}

/// The reason why a sample was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureReason {
    /// The endpoint rejected the sample alone, or for a reason that applies to any part of the request.
    Rejected,
    /// The sample was older than `sample_age_limit`.
    TooOld,
    /// A newer sample of the series was already written.
    OutOfOrder,
    /// A late input sample changed the value after it was written.
    Revised,
    /// The endpoint accepted the request and counted fewer samples than it had.
    Unconfirmed,
    /// The row left the window before its samples were written.
    LeftWindow,
    /// The group ended or was reconfigured before the sample was written.
    Abandoned,
}

impl FailureReason {
    const ALL: [Self; 7] = [
        Self::Rejected,
        Self::TooOld,
        Self::OutOfOrder,
        Self::Revised,
        Self::Unconfirmed,
        Self::LeftWindow,
        Self::Abandoned,
    ];

    fn label(self) -> [(&'static str, &'static str); 1] {
        let reason = match self {
            Self::Rejected => "rejected",
            Self::TooOld => "too_old",
            Self::OutOfOrder => "out_of_order",
            Self::Revised => "revised",
            Self::Unconfirmed => "unconfirmed",
            Self::LeftWindow => "left_window",
            Self::Abandoned => "abandoned",
        };
        [("reason", reason)]
    }
}

/// Metrics of the senders.
#[derive(Clone, Debug)]
pub struct Metrics {
    written: Counter,
    failed: Family<[(&'static str, &'static str); 1], Counter>,
    retries: Counter,
    fallbacks: Counter,
    conflicting: Counter,
    latency: Histogram,
    latest_latencies: Arc<Mutex<VecDeque<f64>>>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            written: register(registry, "remote_write_samples", "Samples that the endpoints acknowledged"),
            failed: register(
                registry,
                "remote_write_samples_failed",
                "Samples that were not written, by reason",
            ),
            retries: register(registry, "remote_write_retries", "Repeated requests"),
            fallbacks: register(
                registry,
                "remote_write_fallbacks",
                "Changes of an endpoint from remote write 2.0, which it does not support, to 1.0",
            ),
            conflicting: register(
                registry,
                "remote_write_samples_conflicting",
                "Samples rejected because their series has other ones: a second writer",
            ),
            latency: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            latest_latencies: Arc::default(),
        };
        for reason in FailureReason::ALL {
            drop(metrics.failed.get_or_create(&reason.label()));
        }
        registry.register(
            "score_latency_seconds",
            "Time from the arrival of a row's last sample to the acknowledgement of its scores",
            metrics.latency.clone(),
        );
        metrics
    }

    /// Counts samples that will not be written.
    pub fn count_failed(&self, reason: FailureReason, samples: usize) {
        self.failed.get_or_create(&reason.label()).inc_by(samples as u64);
    }

    /// Records the time from the arrival of a row's last sample to the acknowledgement of its scores.
    fn observe_latency(&self, latency: Duration) {
        let seconds = latency.as_secs_f64();
        self.latency.observe(seconds);
        let mut latest = self.latest_latencies.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() == MAX_LATENCIES {
            latest.pop_front();
        }
        latest.push_back(seconds);
    }

    /// The 99th percentile of the latest latencies in seconds; `None` before the first acknowledgement.
    pub fn latency_p99(&self) -> Option<f64> {
        let latest = self.latest_latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let mut latencies: Vec<f64> = latest.iter().copied().collect();
        drop(latest);
        latencies.sort_by(f64::total_cmp);
        latencies
            .get((latencies.len().saturating_mul(99) / 100).min(latencies.len().saturating_sub(1)))
            .copied()
    }

    /// Samples that the endpoints acknowledged, and samples that were not written by reason.
    pub fn counts(&self) -> (u64, Vec<(&'static str, u64)>) {
        let failed = FailureReason::ALL.iter().map(|reason| {
            let label = reason.label();
            (label[0].1, self.failed.get(&label).map_or(0, |counter| counter.get()))
        });
        (self.written.get(), failed.collect())
    }
}
