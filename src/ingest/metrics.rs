//! Metrics of the receiver.

use super::{AcceptedCounts, Error};
use crate::prom::wire::{ProtocolVersion, RejectReason, Rejections, RequestCounts};
use crate::telemetry::{LogThrottle, OneLabel, register};
use crate::tenant::Tenant;
use hyper::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::{debug, warn};

/// Interval of log lines for one reason.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Reason not to use a received sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// No detector selects the series.
    Unwatched,
    /// The series is an output of promforest.
    OwnOutput,
    /// The series' labels are invalid.
    InvalidLabels,
    /// The count and the sum of the native histogram are inconsistent.
    InvalidHistogram,
    /// The timestamp is before the year 2000 or too far in the future.
    InvalidTimestamp,
    /// The target of the series lies in another shard.
    WrongShard,
    /// The limit of watched series is reached.
    SeriesLimit,
    /// The tenant's limit of watched series or groups is reached.
    TenantSeriesLimit,
    /// The limit of tenants is reached.
    TenantLimit,
    /// The series has no valid tenant.
    NoTenant,
    /// The window has the same sample.
    Duplicate,
    /// The window has another value with the same timestamp, which stays.
    Conflict,
    /// The sample is older than the window.
    TooOld,
}

impl DropReason {
    const ALL: [Self; 13] = [
        Self::Unwatched,
        Self::OwnOutput,
        Self::InvalidLabels,
        Self::InvalidHistogram,
        Self::InvalidTimestamp,
        Self::WrongShard,
        Self::SeriesLimit,
        Self::TenantSeriesLimit,
        Self::TenantLimit,
        Self::NoTenant,
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
            Self::WrongShard => "wrong_shard",
            Self::SeriesLimit => "series_limit",
            Self::TenantSeriesLimit => "tenant_series_limit",
            Self::TenantLimit => "tenant_limit",
            Self::NoTenant => "no_tenant",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::TooOld => "too_old",
        }
    }
}

/// Labels of a request: code, reason and version.
type RequestLabels = [(&'static str, std::borrow::Cow<'static, str>); 3];

/// Metrics of requests and their samples. Each received sample is counted; an unused sample is also counted by its
/// reason.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    samples: Counter,
    histograms: Counter,
    late: Counter,
    dropped: [Counter; DropReason::ALL.len()],
    over_tenant_limit: OneLabel<Counter>,
    rejected: [Counter; RejectReason::ALL.len()],
    ignored: OneLabel<Counter>,
    in_flight: Gauge,
    log_throttles: Arc<Mutex<HashMap<&'static str, LogThrottle>>>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let dropped: OneLabel<Counter> =
            register(registry, "ingest_samples_dropped", "Samples received and not used, by reason");
        let rejected: OneLabel<Counter> = register(
            registry,
            "ingest_rejected",
            "Samples, histograms, exemplars, metadata and series rejected with 400 while the rest of their request was accepted, by reason",
        );
        Self {
            requests: register(
                registry,
                "ingest_requests",
                "Remote write requests, by status code, reason and version of the message",
            ),
            samples: register(registry, "ingest_samples", "Samples received, two for each native histogram"),
            histograms: register(
                registry,
                "ingest_histograms",
                "Native histograms received: each becomes two samples, its count and its sum",
            ),
            late: register(
                registry,
                "ingest_samples_late",
                "Samples used that arrived after newer samples of their group",
            ),
            dropped: DropReason::ALL
                .map(|reason| dropped.get_or_create(&[("reason", reason.label().into())]).clone()),
            rejected: RejectReason::ALL
                .map(|reason| rejected.get_or_create(&[("reason", reason.label().into())]).clone()),
            over_tenant_limit: register(
                registry,
                "tenant_samples_dropped",
                "Samples received and not used because of a limit of their tenant, by tenant: part of ingest_samples_dropped",
            ),
            ignored: register(
                registry,
                "ingest_ignored",
                "Exemplars and metadata entries, which are not used, and series of the other remote-write version, by kind",
            ),
            in_flight: register(
                registry,
                "ingest_in_flight_bytes",
                "Bytes of request bodies being received or waiting to be processed",
            ),
            log_throttles: Arc::default(),
        }
    }

    /// Counts a response, and logs its error at most once per reason and [`LOG_INTERVAL`].
    pub fn count_answered(&self, version: Option<ProtocolVersion>, result: &Result<AcceptedCounts, Error>) {
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

    /// Counts a request with a method other than POST.
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

    fn log_throttled(&self, message: &str, reason: &'static str, text: &str) {
        let mut throttles = self.log_throttles.lock().unwrap_or_else(PoisonError::into_inner);
        let count = throttles.entry(reason).or_insert_with(|| LogThrottle::new(LOG_INTERVAL)).add(1);
        drop(throttles);
        let Some(count) = count else { return };
        let suppressed = count - 1;
        warn!(component = "ingest", reason, err = text, suppressed, "{message}");
    }

    /// Counts the contents of a request.
    pub fn count_received(&self, counts: &RequestCounts, samples: usize, rejections: &Rejections) {
        self.samples.inc_by(samples as u64);
        self.histograms.inc_by(counts.histograms as u64);
        self.count_ignored("exemplar", counts.exemplars);
        self.count_ignored("metadata", counts.metadata);
        self.count_ignored("other_version", counts.other_version);
        if counts.other_version > 0 {
            let text = "the content type and the body have different versions";
            self.log_throttled("series of a write request ignored", "other_version", text);
        }
        for reason in RejectReason::ALL {
            self.rejected[reason as usize].inc_by(rejections.count(reason) as u64);
        }
    }

    /// Counts samples that arrived after newer samples of their group.
    pub fn count_late(&self, samples: usize) {
        self.late.inc_by(samples as u64);
    }

    /// Counts unused samples.
    pub fn count_dropped(&self, reason: DropReason, samples: usize) {
        self.dropped[reason as usize].inc_by(samples as u64);
    }

    /// Counts unused samples of a tenant with groups that is at its limit: there are as many label values as such tenants.
    pub fn count_over_tenant_limit(&self, tenant: &Tenant, samples: usize) {
        let label = [("tenant", tenant.to_string().into())];
        self.over_tenant_limit.get_or_create(&label).inc_by(samples as u64);
    }

    /// Forgets a tenant that has no groups any more.
    pub fn forget_tenant(&self, tenant: &Tenant) {
        self.over_tenant_limit.remove(&[("tenant", tenant.to_string().into())]);
    }

    /// Samples received, and samples not used by reason.
    pub fn counts(&self) -> (u64, Vec<(&'static str, u64)>) {
        let dropped =
            DropReason::ALL.iter().map(|reason| (reason.label(), self.dropped[*reason as usize].get()));
        (self.samples.get(), dropped.collect())
    }

    /// Sets the bytes of bodies in flight.
    pub fn set_in_flight(&self, bytes: usize) {
        self.in_flight.set(bytes as i64);
    }

    fn count_ignored(&self, kind: &'static str, count: usize) {
        if count > 0 {
            self.ignored.get_or_create(&[("kind", kind.into())]).inc_by(count as u64);
        }
    }
}
