//! Holes in the stream, and what fills them: Prometheus' own storage, by remote read.
//!
//! After its own restart Prometheus sends nothing that it scraped before (prometheus/prometheus#8809), and a
//! sample that it takes late it never sends. So a group whose next row comes too late holds its scoring for
//! moments, until what is missing was asked for; then its rows are judged in their order, as if nothing had
//! been. Groups of a detector are asked for together, one question at a time. What slips through between is
//! found by an audit: now and then some series are counted here and there.
//!
//! Waiting for a new start time of Prometheus was the alternative: it tells neither of a partition nor of a
//! queue that ran over, and it comes later than the row that it is about.

use super::engine::WeakEngineHandle;
use super::group::gap_guard::{HOLD_TIMEOUT, MAX_HOLD};
use crate::detector::Detector;
use crate::prom::matcher::Matcher;
use crate::prom::{Labels, Sample};
use crate::remote_read::SeriesSamples;
use crate::time;
use crate::train::{Backends, history};
use crate::window::{Column, Window};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

/// Time that is asked for at once.
const SLICE_MS: i64 = 300_000;
/// Samples that the engine takes at once, in between of requests.
const MAX_SAMPLES_PER_COMMAND: usize = 20_000;
/// Groups that a question names; for more, all of the detector's are read.
const MAX_NAMED_GROUPS: usize = 50;
/// After a question that brought nothing, a group asks no more for so long: rows that come irregularly are not
/// a hole each.
const COOLDOWN: Duration = Duration::from_secs(60);
/// Pause before a source that did not answer is asked again.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// How often series are counted.
pub const AUDIT_INTERVAL: Duration = Duration::from_secs(600);
/// The time over which they are counted.
pub const AUDIT_RANGE_MS: i64 = 1_800_000;
/// How many series are counted.
pub const SERIES_PER_AUDIT: usize = 20;

/// What is asked of the past.
pub enum BackfillRequest {
    /// The samples of these groups (of all, without any) in `(after, to]`.
    Fill {
        /// Their detector.
        detector: Arc<Detector>,
        /// Labels of the groups.
        groups: Vec<Labels>,
        /// The time.
        range: (i64, i64),
    },
    /// Are there samples of these series that have not come?
    Audit(Vec<AuditedSeries>),
}

/// A series to be counted.
pub struct AuditedSeries {
    /// Its detector.
    pub detector: Arc<Detector>,
    /// Labels of its group.
    pub group: Labels,
    /// Its other labels.
    pub feature: Labels,
    /// Where it is counted: `(after, to]`.
    pub range: (i64, i64),
    /// How many of its samples have come.
    pub n_samples: usize,
}

/// How a question was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillOutcome {
    /// By samples that had not come.
    Filled,
    /// Nothing was missing.
    Empty,
    /// No source answered, or not in time.
    Failed,
    /// It was not asked: the one before brought nothing.
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

/// What is counted of holes.
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
            detected: Family::default(),
            fills: Family::default(),
            timeouts: Family::default(),
            samples: Family::default(),
            pending: Gauge::default(),
            audited: Family::default(),
        };
        registry.register(
            "gaps_detected",
            "Rows that arrived more than 1.5 intervals after the previous one",
            metrics.detected.clone(),
        );
        registry.register("gap_fills", "Gap fills by remote read, by outcome", metrics.fills.clone());
        registry.register(
            "gap_fill_timeouts",
            "Groups that resumed scoring before the gap fill was complete",
            metrics.timeouts.clone(),
        );
        registry.register(
            "gap_fill_samples",
            "Samples from remote read that remote write had not delivered",
            metrics.samples.clone(),
        );
        registry.register(
            "gap_fill_pending_groups",
            "Groups whose scoring waits for a gap fill",
            metrics.pending.clone(),
        );
        registry.register(
            "audit_series",
            "Series whose samples were counted here and in Prometheus, by result: equal, missing here, surplus here, or failed",
            metrics.audited.clone(),
        );
        for result in ["equal", "missing", "surplus", "failed"] {
            drop(metrics.audited.get_or_create(&[("result", result)]));
        }
        metrics
    }

    /// Counts a hole.
    pub fn count_gap(&self, detector: &str) {
        self.detected.get_or_create(&[("detector", detector.into())]).inc();
    }

    /// Counts samples that a question brought.
    pub fn count_samples(&self, detector: &str, samples: usize) {
        self.samples.get_or_create(&[("detector", detector.into())]).inc_by(samples as u64);
    }

    /// Counts a group that went on without an answer.
    pub fn count_timeout(&self, detector: &str) {
        self.timeouts.get_or_create(&[("detector", detector.into())]).inc();
    }

    /// Shows how many groups wait.
    pub fn set_pending_groups(&self, groups: usize) {
        self.pending.set(groups as i64);
    }

    fn count_fill(&self, detector: &str, outcome: FillOutcome) {
        self.fills
            .get_or_create(&[("detector", detector.into()), ("outcome", outcome.as_str().into())])
            .inc();
    }
}

/// The question that is under way, and those that wait.
pub struct GapTracker {
    requests: mpsc::Sender<BackfillRequest>,
    /// Groups that hold and were not asked for yet.
    waiting: BTreeSet<u32>,
    pending: Option<PendingBackfill>,
    cooldowns: HashMap<u32, Instant>,
    audited_at: Instant,
    /// Number of the next series to be counted.
    next_series: u64,
}

/// What is missing in some groups of a detector.
pub struct Gap {
    /// The detector.
    pub detector: Arc<Detector>,
    /// Numbers and labels of the groups.
    pub groups: Vec<(u32, Labels)>,
    /// The time that samples are missing in: `(after, to]`.
    pub range: (i64, i64),
}

/// A question that is under way.
pub struct PendingBackfill {
    /// The detector.
    pub detector: Arc<Detector>,
    /// The groups that wait for the answer.
    pub groups: Vec<u32>,
    /// The time that it is about.
    pub range: (i64, i64),
    samples: usize,
}

impl GapTracker {
    /// None yet.
    pub fn new(requests: mpsc::Sender<BackfillRequest>, now: Instant) -> Self {
        Self {
            requests,
            waiting: BTreeSet::new(),
            pending: None,
            cooldowns: HashMap::new(),
            audited_at: now,
            next_series: 0,
        }
    }

    /// Does the group wait, or is it asked for?
    pub fn contains(&self, group: u32) -> bool {
        self.waiting.contains(&group)
            || self.pending.as_ref().is_some_and(|pending| pending.groups.contains(&group))
    }

    /// A group has begun to hold.
    pub fn enqueue(&mut self, group: u32) {
        self.waiting.insert(group);
    }

    /// The groups to ask for next, if none are asked for.
    pub fn take_waiting(&mut self) -> BTreeSet<u32> {
        if self.pending.is_some() { BTreeSet::new() } else { std::mem::take(&mut self.waiting) }
    }

    /// Does a group rest?
    pub fn is_cooling_down(&self, group: u32, now: Instant) -> bool {
        self.cooldowns.get(&group).is_some_and(|until| now < *until)
    }

    /// Asks, or, while an audit is under way, has the groups wait on.
    pub fn request(&mut self, gap: Gap) {
        let Gap { detector, groups, range } = gap;
        let (ids, labels): (Vec<u32>, Vec<Labels>) = groups.into_iter().unzip();
        let named = if labels.len() > MAX_NAMED_GROUPS { Vec::new() } else { labels };
        let request = BackfillRequest::Fill { detector: detector.clone(), groups: named, range };
        if self.requests.try_send(request).is_ok() {
            self.pending = Some(PendingBackfill { detector, groups: ids, range, samples: 0 });
        } else {
            self.waiting.extend(ids);
        }
    }

    /// The question that is under way.
    pub fn pending(&self) -> Option<&PendingBackfill> {
        self.pending.as_ref()
    }

    /// A part of the answer brought so many samples.
    pub fn add_samples(&mut self, samples: usize) {
        if let Some(pending) = &mut self.pending {
            pending.samples += samples;
        }
    }

    /// The question is answered, or not: the groups that waited, and what came of it.
    pub fn finish(&mut self, is_complete: bool, metrics: &Metrics, now: Instant) -> Option<PendingBackfill> {
        let pending = self.pending.take()?;
        let detector = &pending.detector.name;
        let outcome = match (is_complete, pending.samples) {
            (false, _) => FillOutcome::Failed,
            (true, 0) => FillOutcome::Empty,
            (true, _) => FillOutcome::Filled,
        };
        if outcome == FillOutcome::Empty {
            self.cooldowns.retain(|_, until| now < *until);
            self.cooldowns.extend(pending.groups.iter().map(|group| (*group, now + COOLDOWN)));
        }
        metrics.count_fill(detector, outcome);
        let (after_ms, to_ms) = pending.range;
        info!(
            component = "remote_read",
            detector,
            groups = pending.groups.len(),
            seconds = (to_ms - after_ms) / 1000,
            count = pending.samples,
            outcome = outcome.as_str(),
            "gap in the stream"
        );
        Some(pending)
    }

    /// A group is not asked for, since it rests.
    pub fn count_skipped(&self, detector: &str, metrics: &Metrics) {
        metrics.count_fill(detector, FillOutcome::Skipped);
    }

    /// Is it time to count, and from which series on? Their numbers go round and round.
    pub fn audit_due(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.audited_at) < AUDIT_INTERVAL {
            return None;
        }
        self.audited_at = now;
        let first_series = self.next_series;
        self.next_series += SERIES_PER_AUDIT as u64;
        Some(first_series)
    }

    /// Has series counted; when there is much to ask anyway they have to wait for the next time.
    pub fn request_audit(&self, series: Vec<AuditedSeries>) {
        if !series.is_empty() {
            let _ = self.requests.try_send(BackfillRequest::Audit(series));
        }
    }
}

/// Answers questions until nobody can ask any more.
pub async fn run(
    mut requests: mpsc::Receiver<BackfillRequest>,
    engine: WeakEngineHandle,
    backends: watch::Receiver<Arc<Backends>>,
    metrics: Metrics,
) {
    let gap_filler = GapFiller { engine, backends, metrics };
    while let Some(request) = requests.recv().await {
        let sent = match request {
            BackfillRequest::Fill { detector, groups, range } => {
                let is_complete = gap_filler.fill(&detector, &groups, range).await;
                gap_filler.engine.backfill_done(is_complete).await
            }
            BackfillRequest::Audit(series) => gap_filler.audit(series).await,
        };
        if sent.is_none() {
            return;
        }
    }
}

struct GapFiller {
    engine: WeakEngineHandle,
    backends: watch::Receiver<Arc<Backends>>,
    metrics: Metrics,
}

impl GapFiller {
    /// Reads what was asked for, slice by slice. False when a part is missing.
    async fn fill(&self, detector: &Arc<Detector>, groups: &[Labels], range: (i64, i64)) -> bool {
        let started = Instant::now();
        let matchers = matchers(detector, groups);
        let (mut after_ms, to_ms) = range;
        while after_ms < to_ms {
            let slice = (after_ms, to_ms.min(after_ms + SLICE_MS));
            let time_left = MAX_HOLD.saturating_sub(started.elapsed()).min(HOLD_TIMEOUT);
            let Ok(Some(series)) =
                tokio::time::timeout(time_left, self.read(detector, &matchers, slice)).await
            else {
                return false;
            };
            for chunk in split_series(series) {
                if self.engine.backfill(detector.clone(), chunk).await.is_none() {
                    return false;
                }
            }
            after_ms = slice.1;
        }
        true
    }

    /// The samples of a slice from all sources; none when one of them does not answer.
    async fn read(
        &self,
        detector: &Detector,
        matchers: &[Matcher],
        range: (i64, i64),
    ) -> Option<Vec<SeriesSamples>> {
        let backends = self.backends.borrow().clone();
        let mut all = Vec::new();
        for source in &backends.read_clients {
            loop {
                let mut read = Vec::new();
                match history::read_samples(source, detector, matchers, range, |series| read.extend(series))
                    .await
                {
                    Ok(()) => {
                        all.append(&mut read);
                        break;
                    }
                    // The caller has a limit.
                    Err(error) if error.is_recoverable() => {
                        debug!(component = "remote_read", url = %source.config.url, err = crate::error::chain(&error), "remote read did not answer, retrying");
                        tokio::time::sleep(RETRY_DELAY).await;
                    }
                    Err(error) => {
                        warn!(component = "remote_read", url = %source.config.url, err = crate::error::chain(&error), "gap fill failed");
                        return None;
                    }
                }
            }
        }
        Some(all)
    }

    /// Counts series, and reads the groups of those that lack samples. None when the engine is gone.
    async fn audit(&self, series: Vec<AuditedSeries>) -> Option<()> {
        for AuditedSeries { detector, group, feature, range, n_samples } in series {
            let labels = feature.union(&group);
            let series_matchers: Vec<Matcher> =
                labels.iter().map(|(name, value)| Matcher::equal(name, value)).collect();
            let count = |read: Vec<SeriesSamples>| -> usize {
                let same = read.into_iter().filter(|(read_labels, _)| *read_labels == labels);
                same.map(|(_, samples)| samples.len()).max().unwrap_or(0)
            };
            let read =
                tokio::time::timeout(HOLD_TIMEOUT, self.read(&detector, &series_matchers, range)).await;
            let result = match read.ok().flatten().map(count) {
                None => "failed",
                Some(there) if there > n_samples => "missing",
                Some(there) if there < n_samples => "surplus",
                Some(_) => "equal",
            };
            self.metrics.audited.get_or_create(&[("result", result)]).inc();
            if result == "missing" {
                info!(component = "remote_read", detector = detector.name, group = %group, series = %feature, "samples are missing, reading them");
                let group_matchers = history::group_matchers(&detector, &group);
                let read =
                    tokio::time::timeout(HOLD_TIMEOUT, self.read(&detector, &group_matchers, range)).await;
                for chunk in split_series(read.ok().flatten().unwrap_or_default()) {
                    self.engine.backfill(detector.clone(), chunk).await?;
                }
            }
        }
        Some(())
    }
}

/// Selects at least these groups; all, without any. To the other side its external labels are absent but where they
/// are compared by `=`: with several values, what has none passes too.
fn matchers(detector: &Detector, groups: &[Labels]) -> Vec<Matcher> {
    if groups.is_empty() {
        return Vec::new();
    }
    let of_label = |name: &String| {
        let mut values: BTreeSet<&str> = groups.iter().map(|group| group.get(name)).collect();
        if values.len() > 1 {
            values.insert("");
        }
        Matcher::one_of(name, values)
    };
    detector.by.iter().map(of_label).collect()
}

/// Cuts an answer into what the engine takes at once. A series stays whole.
fn split_series(series: Vec<SeriesSamples>) -> Vec<Vec<SeriesSamples>> {
    let mut chunks: Vec<Vec<SeriesSamples>> = Vec::new();
    let mut remaining = 0_usize;
    for (labels, samples) in series {
        if remaining < samples.len() || chunks.is_empty() {
            remaining = MAX_SAMPLES_PER_COMMAND;
            chunks.push(Vec::new());
        }
        remaining = remaining.saturating_sub(samples.len());
        chunks.last_mut().expect("pushed before").push((labels, samples));
    }
    chunks
}

/// The samples of a window's series in `(after, to]`, staleness markers among them.
pub fn count_samples(window: &Window, column: Column, (after_ms, to_ms): (i64, i64)) -> usize {
    let mut samples: Vec<Sample> = Vec::new();
    window.samples(column, after_ms, to_ms, &mut samples);
    samples.len()
}

/// The time in which samples are counted: what is older than the newest `grace` may still be on its way.
pub fn audit_range(newest_ms: i64, start_ms: i64, grace: Duration) -> (i64, i64) {
    let to_ms = newest_ms - time::millis(grace);
    ((to_ms - AUDIT_RANGE_MS).max(start_ms), to_ms)
}
