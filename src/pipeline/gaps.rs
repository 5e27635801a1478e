//! Gaps in the rows of groups: detection, the queue of gap fills, and audits.
//!
//! After its own restart Prometheus does not send samples that it scraped before (prometheus/prometheus#8809), and it
//! never sends a sample that it stored late. A group whose next row arrives too late therefore holds its scoring until
//! the history has been asked for the missing samples; then its rows are scored in their order. All groups of a
//! detector share a request, and one request is under way at a time. An audit finds gaps that this misses: it counts
//! some series here and in Prometheus.
//!
//! Watching for a new start time of Prometheus was the alternative: it shows neither a partition nor a queue that
//! overflowed, and it arrives later than the row that it concerns.

use crate::detector::Detector;
use crate::prom::{Labels, Sample};
use crate::telemetry::register;
use crate::tenant::Tenant;
use crate::time;
use crate::window::{Column, Window};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::info;

/// Pause of a group after gap fills without samples: irregular rows are not gaps.
const COOLDOWN: Duration = Duration::from_secs(60);
/// Gap fills without samples, each within [`COOLDOWN`] of the one before, that lead to the pause. After one alone, a
/// second restart of Prometheus within the pause would lose rows.
const EMPTY_FILLS: u32 = 3;
/// Interval of the audits.
pub const AUDIT_INTERVAL: Duration = Duration::from_secs(600);
/// Time range of an audit.
pub const AUDIT_RANGE_MS: i64 = 1_800_000;
/// Series per audit.
pub const SERIES_PER_AUDIT: usize = 20;

/// A request to the gap filler.
pub enum BackfillRequest {
    /// Read the samples of these groups in `(after, to]`.
    Fill {
        /// The detector.
        detector: Arc<Detector>,
        /// The tenant of the groups; `None` without tenants.
        tenant: Option<Tenant>,
        /// Labels of the groups.
        groups: Vec<Labels>,
        /// The time range in milliseconds.
        range: (i64, i64),
    },
    /// Count these series, and read those that lack samples.
    Audit(Vec<AuditedSeries>),
}

/// A series of an audit.
pub struct AuditedSeries {
    /// The detector.
    pub detector: Arc<Detector>,
    /// Labels of the group.
    pub group: Labels,
    /// The other labels of the series.
    pub feature: Labels,
    /// The time range `(after, to]` in milliseconds.
    pub range: (i64, i64),
    /// Samples in the window.
    pub n_samples: usize,
}

/// The outcome of a gap fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillOutcome {
    /// Samples were missing and have been read.
    Filled,
    /// No samples were missing.
    Empty,
    /// A source failed or timed out.
    Failed,
    /// Not requested: the group is in its cooldown.
    Skipped,
}

impl FillOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Filled => "filled",
            Self::Empty => "empty",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

type ByDetector = Family<[(&'static str, String); 1], Counter>;
type ByOutcome = Family<[(&'static str, String); 2], Counter>;

/// Metrics of gaps, gap fills and audits.
#[derive(Clone)]
pub struct Metrics {
    detected: ByDetector,
    fills: ByOutcome,
    timeouts: ByDetector,
    samples: ByDetector,
    pending: Gauge,
    audited: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            detected: register(
                registry,
                "gaps_detected",
                "Rows that arrived more than 1.5 intervals after the previous one",
            ),
            fills: register(registry, "gap_fills", "Gap fills from history, by outcome"),
            timeouts: register(
                registry,
                "gap_fill_timeouts",
                "Groups that resumed scoring before the gap fill was complete",
            ),
            samples: register(
                registry,
                "gap_fill_samples",
                "Samples from history that remote write had not delivered",
            ),
            pending: register(
                registry,
                "gap_fill_pending_groups",
                "Groups whose scoring waits for a gap fill",
            ),
            audited: register(
                registry,
                "audit_series",
                "Series whose samples were counted here and in Prometheus, by result: equal, missing here, surplus here, or failed",
            ),
        };
        for result in ["equal", "missing", "surplus", "failed"] {
            drop(metrics.audited.get_or_create(&[("result", result)]));
        }
        metrics
    }

    /// Counts a gap.
    pub fn count_gap(&self, detector: &str) {
        self.detected.get_or_create(&[("detector", detector.into())]).inc();
    }

    /// Counts samples that a gap fill added.
    pub fn count_samples(&self, detector: &str, samples: usize) {
        self.samples.get_or_create(&[("detector", detector.into())]).inc_by(samples as u64);
    }

    /// Counts a hold that timed out.
    pub fn count_timeout(&self, detector: &str) {
        self.timeouts.get_or_create(&[("detector", detector.into())]).inc();
    }

    /// Sets the number of groups on hold.
    pub fn set_pending_groups(&self, groups: usize) {
        self.pending.set(groups as i64);
    }

    /// Counts an audited series.
    pub fn count_audit(&self, result: &'static str) {
        self.audited.get_or_create(&[("result", result)]).inc();
    }

    fn count_fill(&self, detector: &str, outcome: FillOutcome) {
        self.fills
            .get_or_create(&[("detector", detector.into()), ("outcome", outcome.as_str().into())])
            .inc();
    }
}

/// The gap fill under way, and the groups that wait for one.
pub struct GapTracker {
    requests: mpsc::Sender<BackfillRequest>,
    /// Groups on hold without a request.
    waiting: BTreeSet<u32>,
    pending: Option<PendingBackfill>,
    /// The turn of the last request.
    last_turn: Option<FillTurn>,
    empty_fills: HashMap<u32, EmptyFills>,
    audited_at: Instant,
    /// Index of the next series to audit.
    next_series: u64,
}

/// The gap fills of a group without samples since one with samples.
struct EmptyFills {
    count: u32,
    last: Instant,
}

/// The name of a detector, and the tenant if there are tenants.
pub type FillTurn = (String, Option<Tenant>);

/// A gap that some groups of a detector share; with tenants, those of one.
pub struct Gap {
    /// The detector.
    pub detector: Arc<Detector>,
    /// The tenant of the groups; `None` without tenants.
    pub tenant: Option<Tenant>,
    /// Ids and labels of the groups.
    pub groups: Vec<(u32, Labels)>,
    /// The time range `(after, to]` in milliseconds.
    pub range: (i64, i64),
}

/// A gap fill under way.
pub struct PendingBackfill {
    /// The detector.
    pub detector: Arc<Detector>,
    /// The groups on hold for it.
    pub groups: Vec<u32>,
    /// The time range `(after, to]` in milliseconds.
    pub range: (i64, i64),
    samples: usize,
}

impl GapTracker {
    /// A tracker without gaps.
    pub fn new(requests: mpsc::Sender<BackfillRequest>, now: Instant) -> Self {
        Self {
            requests,
            waiting: BTreeSet::new(),
            pending: None,
            last_turn: None,
            empty_fills: HashMap::new(),
            audited_at: now,
            next_series: 0,
        }
    }

    /// True if the group waits for a gap fill or is part of the one under way.
    pub fn contains(&self, group: u32) -> bool {
        self.waiting.contains(&group)
            || self.pending.as_ref().is_some_and(|pending| pending.groups.contains(&group))
    }

    /// Queues a group that has started to hold.
    pub fn enqueue(&mut self, group: u32) {
        self.waiting.insert(group);
    }

    /// The groups that wait; none while a gap fill is under way.
    pub fn take_waiting(&mut self) -> BTreeSet<u32> {
        if self.pending.is_some() { BTreeSet::new() } else { std::mem::take(&mut self.waiting) }
    }

    /// The groups that wait while a gap fill is under way.
    pub fn delayed(&self) -> impl Iterator<Item = u32> {
        self.waiting.iter().copied().filter(|_| self.pending.is_some())
    }

    /// True if the group is in its cooldown.
    pub fn is_cooling_down(&self, group: u32, now: Instant) -> bool {
        let is_cooling = |fills: &EmptyFills| fills.count >= EMPTY_FILLS && now < fills.last + COOLDOWN;
        self.empty_fills.get(&group).is_some_and(is_cooling)
    }

    /// The turn after the last request's, of these.
    pub fn next_turn(&self, gaps: &BTreeMap<FillTurn, Gap>) -> Option<FillTurn> {
        let is_after = |turn: &&FillTurn| self.last_turn.as_ref().is_none_or(|last| *turn > last);
        gaps.keys().find(is_after).or(gaps.keys().next()).cloned()
    }

    /// Requests a gap fill. If the request queue is full, the groups wait on.
    pub fn request(&mut self, gap: Gap) {
        let Gap { detector, tenant, groups, range } = gap;
        let turn = (detector.name.clone(), tenant.clone());
        let (ids, labels): (Vec<u32>, Vec<Labels>) = groups.into_iter().unzip();
        let request = BackfillRequest::Fill { detector: detector.clone(), tenant, groups: labels, range };
        if self.requests.try_send(request).is_ok() {
            self.last_turn = Some(turn);
            self.pending = Some(PendingBackfill { detector, groups: ids, range, samples: 0 });
        } else {
            self.waiting.extend(ids);
        }
    }

    /// The gap fill under way.
    pub fn pending(&self) -> Option<&PendingBackfill> {
        self.pending.as_ref()
    }

    /// Adds samples to the gap fill under way.
    pub fn add_samples(&mut self, samples: usize) {
        if let Some(pending) = &mut self.pending {
            pending.samples += samples;
        }
    }

    /// Ends the gap fill under way, and counts its outcome.
    pub fn finish(&mut self, is_complete: bool, metrics: &Metrics, now: Instant) -> Option<PendingBackfill> {
        let pending = self.pending.take()?;
        let detector = &pending.detector.name;
        let outcome = match (is_complete, pending.samples) {
            (false, _) => FillOutcome::Failed,
            (true, 0) => FillOutcome::Empty,
            (true, _) => FillOutcome::Filled,
        };
        self.empty_fills.retain(|_, fills| now < fills.last + COOLDOWN);
        for group in &pending.groups {
            match outcome {
                FillOutcome::Empty => {
                    let fills = self.empty_fills.entry(*group).or_insert(EmptyFills { count: 0, last: now });
                    *fills = EmptyFills { count: fills.count + 1, last: now };
                }
                _ => drop(self.empty_fills.remove(group)),
            }
        }
        metrics.count_fill(detector, outcome);
        let (after_ms, to_ms) = pending.range;
        info!(
            component = "history",
            detector,
            groups = pending.groups.len(),
            seconds = (to_ms - after_ms) / 1000,
            count = pending.samples,
            outcome = outcome.as_str(),
            "gap in the stream"
        );
        Some(pending)
    }

    /// Counts a group that is in its cooldown.
    pub fn count_skipped(&self, detector: &str, metrics: &Metrics) {
        metrics.count_fill(detector, FillOutcome::Skipped);
    }

    /// Index of the first series to audit, if an audit is due.
    pub fn audit_due(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.audited_at) < AUDIT_INTERVAL {
            return None;
        }
        self.audited_at = now;
        let first_series = self.next_series;
        self.next_series += SERIES_PER_AUDIT as u64;
        Some(first_series)
    }

    /// Requests an audit. If the request queue is full, it is skipped.
    pub fn request_audit(&self, series: Vec<AuditedSeries>) {
        if !series.is_empty() {
            let _ = self.requests.try_send(BackfillRequest::Audit(series));
        }
    }
}

/// Number of samples in `(after, to]`, staleness markers included.
pub fn count_samples(window: &Window, column: Column, (after_ms, to_ms): (i64, i64)) -> usize {
    let mut samples: Vec<Sample> = Vec::new();
    window.samples(column, after_ms, to_ms, &mut samples);
    samples.len()
}

/// The time range of an audit. It ends before the grace period, in which samples may still arrive.
pub fn audit_range(newest_ms: i64, start_ms: i64, grace: Duration) -> (i64, i64) {
    let to_ms = newest_ms - time::millis(grace);
    ((to_ms - AUDIT_RANGE_MS).max(start_ms), to_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gaps of `a` are there each time.
    #[test]
    fn gaps_of_detectors_and_tenants_take_turns() {
        let (requests, mut requested) = mpsc::channel(1);
        let mut gaps = GapTracker::new(requests, Instant::now());
        let detector = Arc::new(Detector::node_network(Duration::from_secs(15)));
        let gap = |id: &str| {
            let tenant: Option<Tenant> = Some(id.parse().expect("an ID"));
            let gap =
                Gap { detector: detector.clone(), tenant: tenant.clone(), groups: vec![], range: (0, 1) };
            ((detector.name.clone(), tenant), gap)
        };
        for (waiting, next) in [("abc", "a"), ("abc", "b"), ("ac", "c"), ("ac", "a"), ("a", "a")] {
            let mut waiting: BTreeMap<FillTurn, Gap> =
                waiting.split("").filter(|id| !id.is_empty()).map(gap).collect();
            let turn = gaps.next_turn(&waiting).expect("some wait");
            gaps.request(waiting.remove(&turn).expect("it waits"));
            assert!(requested.try_recv().is_ok());
            assert_eq!(turn.1.as_ref().map(Tenant::as_str), Some(next));
        }
        assert_eq!(gaps.next_turn(&BTreeMap::new()), None);
    }
}
