//! Scores leave: a cursor over the windows, batched and sent by remote write.
//!
//! There is no queue. What is to be sent is what the windows hold beyond a target's cursor, so a
//! retry reads it again, memory is bounded by the windows, and nothing can be queued twice. The
//! price is a question to the owner of the windows for each batch, ten times a second at most.

pub mod message;
pub mod sender;

use crate::http::Url;
use crate::http::config::ClientConfig;
use crate::prom::{Labels, Sample, duration};
use crate::yaml::{Node, Section};
use message::ProtobufMessage;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::{Duration, Instant};

/// Most samples that one row can have: decision, score, threshold and incident, decision and score of the model
/// beside it, share and expected range of three causes, and the ends of three others. They travel in one request.
pub const MAX_SAMPLES_PER_ROW: usize = 4 + 2 + 3 * 4 + 3 * 4;

/// A `remote_write` block, with Prometheus' names. Where a default is not Prometheus', the field
/// says why.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where to write.
    pub url: Url,
    /// How to get there.
    pub http: ClientConfig,
    /// The message that it is sent, as long as it understands it.
    pub protobuf_message: ProtobufMessage,
    /// How long one request may take.
    pub remote_timeout: Duration,
    /// Most samples of one request.
    pub max_samples_per_send: usize,
    /// How long a score waits for others to share its request. Prometheus waits 5 s for requests
    /// of thousands of samples; here a score should arrive while it matters.
    pub batch_send_deadline: Duration,
    /// First pause before a request is repeated; it doubles each time.
    pub min_backoff: Duration,
    /// Longest pause before a request is repeated.
    pub max_backoff: Duration,
    /// Repeat a request answered 429. On, unlike Prometheus': otherwise the scores are lost.
    pub retry_on_http_429: bool,
    /// Scores that are older are counted as lost and no longer sent. Prometheus has no limit by
    /// default, but it takes no sample that is an hour behind its newest.
    pub sample_age_limit: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: "http://localhost:9090/api/v1/write".parse().expect("a URL"),
            http: ClientConfig::default(),
            protobuf_message: ProtobufMessage::default(),
            remote_timeout: Duration::from_secs(30),
            max_samples_per_send: 2000,
            batch_send_deadline: Duration::from_millis(100),
            min_backoff: Duration::from_millis(30),
            max_backoff: Duration::from_secs(5),
            retry_on_http_429: true,
            sample_age_limit: Duration::from_secs(50 * 60),
        }
    }
}

impl Config {
    /// Reads a block of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let default = Self::default();
        let url =
            section.require("url").and_then(|node| node.parse(str::parse)).unwrap_or(default.url.clone());
        let message = section.get("protobuf_message").and_then(|node| node.parse(str::parse));
        let remote_timeout = section.duration("remote_timeout", default.remote_timeout);
        let queue = section.get("queue_config").and_then(Node::section);
        let http = ClientConfig::read(&mut section);
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
            batch_send_deadline: queue.duration("batch_send_deadline", self.batch_send_deadline),
            min_backoff: queue.duration("min_backoff", self.min_backoff),
            max_backoff: queue.duration("max_backoff", self.max_backoff),
            retry_on_http_429: queue.flag("retry_on_http_429", self.retry_on_http_429),
            sample_age_limit: queue.duration("sample_age_limit", self.sample_age_limit),
            ..self
        };
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

/// One series of a batch, samples ascending and not empty.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeSeries {
    /// Its labels, the metric name among them.
    pub labels: Labels,
    /// Its samples.
    pub samples: Vec<Sample>,
}

/// What the windows hold beyond the cursor, up to the size of one request.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The series, each once.
    pub series: Vec<TimeSeries>,
    /// Where the cursor will stand once the batch is dealt with.
    pub positions: Vec<CursorPosition>,
}

/// The cursor in one group.
#[derive(Clone, Copy, Debug)]
pub struct CursorPosition {
    /// The group.
    pub group: u32,
    /// Timestamp of the newest row that is dealt with.
    pub timestamp_ms: i64,
    /// When that row's last sample arrived.
    pub received_at: Instant,
}

/// The owner of the windows, as the sender sees it.
pub trait BatchSource: Send + Sync + 'static {
    /// The next batch of at most `max_samples`; `None` when everything is sent, or the owner gone.
    fn next_batch(&self, max_samples: usize) -> impl Future<Output = Option<Batch>> + Send;
    /// Moves the cursor.
    fn advance(&self, positions: Vec<CursorPosition>) -> impl Future<Output = ()> + Send;
}

/// Why a score was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureReason {
    /// The other side refused it, alone in its request or for a reason that splitting cannot mend.
    Rejected,
    /// It was older than `sample_age_limit`.
    TooOld,
    /// A newer one of its series was written already.
    OutOfOrder,
    /// A late sample changed it after it was written.
    Revised,
    /// The other side accepted the request, and counted fewer samples than were in it.
    Unconfirmed,
    /// It was not written when its row left the window.
    LeftWindow,
    /// It was not written when its group went, or was configured anew.
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

/// What the sender counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    written: Counter,
    failed: Family<[(&'static str, &'static str); 1], Counter>,
    retries: Counter,
    fallbacks: Counter,
    conflicting: Counter,
    latency: Histogram,
}

impl Metrics {
    /// Registers the room's metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            written: Counter::default(),
            failed: Family::default(),
            retries: Counter::default(),
            fallbacks: Counter::default(),
            conflicting: Counter::default(),
            latency: Histogram::new(exponential_buckets(0.005, 2.0, 14)),
        };
        for reason in FailureReason::ALL {
            drop(metrics.failed.get_or_create(&reason.label()));
        }
        registry.register(
            "remote_write_samples",
            "Samples that the endpoints acknowledged",
            metrics.written.clone(),
        );
        registry.register(
            "remote_write_samples_failed",
            "Samples that were not written, by reason",
            metrics.failed.clone(),
        );
        registry.register("remote_write_retries", "Repeated requests", metrics.retries.clone());
        registry.register(
            "remote_write_fallbacks",
            "Changes of an endpoint from remote write 2.0, which it does not support, to 1.0",
            metrics.fallbacks.clone(),
        );
        registry.register(
            "remote_write_samples_conflicting",
            "Samples rejected because their series has other ones: a second writer",
            metrics.conflicting.clone(),
        );
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
}
