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

use super::engine::Command;
use crate::config::Detector;
use crate::history::Series;
use crate::prom::matcher::Matcher;
use crate::prom::{Labels, Sample, duration};
use crate::train::past;
use crate::train::trainer::Outside;
use crate::window::{Column, Window};
use crate::yaml;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

/// How long a group waits for the next part of an answer.
pub const HOLD: Duration = Duration::from_secs(10);
/// How long it waits for all of it.
pub const LONGEST_HOLD: Duration = Duration::from_secs(60);
/// Time that is asked for at once.
const SLICE_MS: i64 = 300_000;
/// Samples that the engine takes at once, in between of requests.
const PIECE: usize = 20_000;
/// Groups that a question names; for more, all of the detector's are read.
const NAMED: usize = 50;
/// After a question that brought nothing, a group asks no more for so long: rows that come irregularly are not
/// a hole each.
const REST: Duration = Duration::from_secs(60);
/// Pause before a source that did not answer is asked again.
const RETRY: Duration = Duration::from_millis(500);
/// How often series are counted.
pub const AUDIT_EVERY: Duration = Duration::from_secs(600);
/// The time over which they are counted.
pub const AUDIT_MS: i64 = 1_800_000;
/// How many series are counted.
pub const AUDITED: usize = 20;

/// What is asked of the past.
pub enum Question {
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
    Audit(Vec<Audited>),
}

/// A series to be counted.
pub struct Audited {
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
pub enum Outcome {
    /// By samples that had not come.
    Filled,
    /// Nothing was missing.
    Empty,
    /// No source answered, or not in time.
    Failed,
    /// It was not asked: the one before brought nothing.
    Skipped,
}

impl Outcome {
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
            "holes_detected",
            "Rows of a group that came later after the one before than they usually do",
            metrics.detected.clone(),
        );
        registry.register(
            "gap_fills",
            "Questions to remote read for what is missing, by outcome",
            metrics.fills.clone(),
        );
        registry.register(
            "gap_fill_timeouts",
            "Groups that went on scoring before the answer was complete",
            metrics.timeouts.clone(),
        );
        registry.register(
            "gap_fill_samples",
            "Samples that remote write did not bring and remote read did",
            metrics.samples.clone(),
        );
        registry.register(
            "gap_fill_pending_groups",
            "Groups whose scoring waits for an answer",
            metrics.pending.clone(),
        );
        registry.register(
            "audit_series",
            "Series whose samples were counted here and in Prometheus: equal, missing samples here, more here, or no answer",
            metrics.audited.clone(),
        );
        for result in ["equal", "missing", "more", "failed"] {
            drop(metrics.audited.get_or_create(&[("result", result)]));
        }
        metrics
    }

    /// Counts a hole.
    pub fn detected(&self, detector: &str) {
        self.detected.get_or_create(&[("detector", detector.into())]).inc();
    }

    /// Counts samples that a question brought.
    pub fn brought(&self, detector: &str, samples: usize) {
        self.samples.get_or_create(&[("detector", detector.into())]).inc_by(samples as u64);
    }

    /// Counts a group that went on without an answer.
    pub fn timed_out(&self, detector: &str) {
        self.timeouts.get_or_create(&[("detector", detector.into())]).inc();
    }

    /// Shows how many groups wait.
    pub fn pending(&self, groups: usize) {
        self.pending.set(groups as i64);
    }

    fn answered(&self, detector: &str, outcome: Outcome) {
        self.fills
            .get_or_create(&[("detector", detector.into()), ("outcome", outcome.as_str().into())])
            .inc();
    }
}

/// The question that is under way, and those that wait.
pub struct Gaps {
    questions: mpsc::Sender<Question>,
    /// Groups that hold and were not asked for yet.
    waiting: BTreeSet<u32>,
    asked: Option<Asked>,
    resting: HashMap<u32, Instant>,
    audited: Instant,
    /// Number of the next series to be counted.
    turn: u64,
}

/// What is missing in some groups of a detector.
pub struct Missing {
    /// The detector.
    pub detector: Arc<Detector>,
    /// Numbers and labels of the groups.
    pub groups: Vec<(u32, Labels)>,
    /// The time that samples are missing in: `(after, to]`.
    pub range: (i64, i64),
}

/// A question that is under way.
pub struct Asked {
    /// The detector.
    pub detector: Arc<Detector>,
    /// The groups that wait for the answer.
    pub groups: Vec<u32>,
    /// The time that it is about.
    pub range: (i64, i64),
    samples: usize,
}

impl Gaps {
    /// None yet.
    pub fn new(questions: mpsc::Sender<Question>, now: Instant) -> Self {
        Self {
            questions,
            waiting: BTreeSet::new(),
            asked: None,
            resting: HashMap::new(),
            audited: now,
            turn: 0,
        }
    }

    /// Does the group wait, or is it asked for?
    pub fn knows(&self, group: u32) -> bool {
        self.waiting.contains(&group)
            || self.asked.as_ref().is_some_and(|asked| asked.groups.contains(&group))
    }

    /// A group has begun to hold.
    pub fn wait(&mut self, group: u32) {
        self.waiting.insert(group);
    }

    /// The groups to ask for next, if none are asked for.
    pub fn take_waiting(&mut self) -> BTreeSet<u32> {
        if self.asked.is_some() { BTreeSet::new() } else { std::mem::take(&mut self.waiting) }
    }

    /// Does a group rest?
    pub fn rests(&self, group: u32, now: Instant) -> bool {
        self.resting.get(&group).is_some_and(|until| now < *until)
    }

    /// Asks, or, while an audit is under way, has the groups wait on.
    pub fn ask(&mut self, missing: Missing) {
        let Missing { detector, groups, range } = missing;
        let (ids, labels): (Vec<u32>, Vec<Labels>) = groups.into_iter().unzip();
        let named = if labels.len() > NAMED { Vec::new() } else { labels };
        let question = Question::Fill { detector: detector.clone(), groups: named, range };
        if self.questions.try_send(question).is_ok() {
            self.asked = Some(Asked { detector, groups: ids, range, samples: 0 });
        } else {
            self.waiting.extend(ids);
        }
    }

    /// The question that is under way.
    pub fn asked(&self) -> Option<&Asked> {
        self.asked.as_ref()
    }

    /// A part of the answer brought so many samples.
    pub fn brought(&mut self, samples: usize) {
        if let Some(asked) = &mut self.asked {
            asked.samples += samples;
        }
    }

    /// The question is answered, or not: the groups that waited, and what came of it.
    pub fn done(&mut self, is_whole: bool, metrics: &Metrics, now: Instant) -> Option<Asked> {
        let asked = self.asked.take()?;
        let detector = &asked.detector.name;
        let outcome = match (is_whole, asked.samples) {
            (false, _) => Outcome::Failed,
            (true, 0) => Outcome::Empty,
            (true, _) => Outcome::Filled,
        };
        if outcome == Outcome::Empty {
            self.resting.retain(|_, until| now < *until);
            self.resting.extend(asked.groups.iter().map(|group| (*group, now + REST)));
        }
        metrics.answered(detector, outcome);
        let (after_ms, to_ms) = asked.range;
        info!(
            component = "history",
            detector,
            groups = asked.groups.len(),
            seconds = (to_ms - after_ms) / 1000,
            count = asked.samples,
            outcome = outcome.as_str(),
            "a hole in the stream"
        );
        Some(asked)
    }

    /// A group is not asked for, since it rests.
    pub fn skipped(&self, detector: &str, metrics: &Metrics) {
        metrics.answered(detector, Outcome::Skipped);
    }

    /// Is it time to count, and from which series on? Their numbers go round and round.
    pub fn audit_due(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.audited) < AUDIT_EVERY {
            return None;
        }
        self.audited = now;
        let turn = self.turn;
        self.turn += AUDITED as u64;
        Some(turn)
    }

    /// Has series counted; when there is much to ask anyway they have to wait for the next time.
    pub fn audit(&self, series: Vec<Audited>) {
        if !series.is_empty() {
            let _ = self.questions.try_send(Question::Audit(series));
        }
    }
}

/// Answers questions until nobody can ask any more.
pub async fn run(
    mut questions: mpsc::Receiver<Question>,
    engine: mpsc::WeakSender<Command>,
    outside: watch::Receiver<Arc<Outside>>,
    metrics: Metrics,
) {
    let filler = Filler { engine, outside, metrics };
    while let Some(question) = questions.recv().await {
        let answered = match question {
            Question::Fill { detector, groups, range } => {
                let is_whole = filler.fill(&detector, &groups, range).await;
                filler.send(Command::FillDone { is_whole }).await
            }
            Question::Audit(series) => filler.audit(series).await,
        };
        if answered.is_none() {
            return;
        }
    }
}

struct Filler {
    engine: mpsc::WeakSender<Command>,
    outside: watch::Receiver<Arc<Outside>>,
    metrics: Metrics,
}

impl Filler {
    /// None when the engine is gone.
    async fn send(&self, command: Command) -> Option<()> {
        self.engine.upgrade()?.send(command).await.ok()
    }

    /// Reads what was asked for, slice by slice. False when a part is missing.
    async fn fill(&self, detector: &Arc<Detector>, groups: &[Labels], range: (i64, i64)) -> bool {
        let started = Instant::now();
        let matchers = matchers(detector, groups);
        let (mut after_ms, to_ms) = range;
        while after_ms < to_ms {
            let slice = (after_ms, to_ms.min(after_ms + SLICE_MS));
            let left = LONGEST_HOLD.saturating_sub(started.elapsed()).min(HOLD);
            let Ok(Some(series)) = tokio::time::timeout(left, self.read(detector, &matchers, slice)).await
            else {
                return false;
            };
            for piece in pieces(series) {
                let command = Command::Filled { detector: detector.clone(), series: piece };
                if self.send(command).await.is_none() {
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
    ) -> Option<Vec<Series>> {
        let outside = self.outside.borrow().clone();
        let mut all = Vec::new();
        for source in &outside.sources {
            loop {
                let mut read = Vec::new();
                match past::samples(source, detector, matchers, range, |series| read.extend(series)).await {
                    Ok(()) => {
                        all.append(&mut read);
                        break;
                    }
                    // The caller has a limit.
                    Err(error) if error.is_passing() => {
                        debug!(component = "history", url = %source.config.url, err = yaml::chain(&error), "no answer yet");
                        tokio::time::sleep(RETRY).await;
                    }
                    Err(error) => {
                        warn!(component = "history", url = %source.config.url, err = yaml::chain(&error), "a hole cannot be filled");
                        return None;
                    }
                }
            }
        }
        Some(all)
    }

    /// Counts series, and reads the groups of those that lack samples. None when the engine is gone.
    async fn audit(&self, series: Vec<Audited>) -> Option<()> {
        for Audited { detector, group, feature, range, n_samples } in series {
            let labels = feature.union(&group);
            let of_series: Vec<Matcher> =
                labels.iter().map(|(name, value)| Matcher::equal(name, value)).collect();
            let count = |read: Vec<Series>| -> usize {
                let same = read.into_iter().filter(|(found, _)| *found == labels);
                same.map(|(_, samples)| samples.len()).max().unwrap_or(0)
            };
            let read = tokio::time::timeout(HOLD, self.read(&detector, &of_series, range)).await;
            let result = match read.ok().flatten().map(count) {
                None => "failed",
                Some(there) if there > n_samples => "missing",
                Some(there) if there < n_samples => "more",
                Some(_) => "equal",
            };
            self.metrics.audited.get_or_create(&[("result", result)]).inc();
            if result == "missing" {
                info!(component = "history", detector = detector.name, group = %group, series = %feature, "samples have not come, they are read");
                let of_group = past::of_group(&detector, &group);
                let read = tokio::time::timeout(HOLD, self.read(&detector, &of_group, range)).await;
                for piece in pieces(read.ok().flatten().unwrap_or_default()) {
                    self.send(Command::Filled { detector: detector.clone(), series: piece }).await?;
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
fn pieces(series: Vec<Series>) -> Vec<Vec<Series>> {
    let mut pieces: Vec<Vec<Series>> = Vec::new();
    let mut room = 0_usize;
    for (labels, samples) in series {
        if room < samples.len() || pieces.is_empty() {
            room = PIECE;
            pieces.push(Vec::new());
        }
        room = room.saturating_sub(samples.len());
        pieces.last_mut().expect("pushed before").push((labels, samples));
    }
    pieces
}

/// What a group remembers of how its rows come.
#[derive(Debug, Default)]
pub struct Rhythm {
    /// Timestamps of the newest rows, ascending.
    newest: VecDeque<i64>,
}

impl Rhythm {
    /// Rows whose distances are looked at.
    const ROWS: usize = 9;
    /// Distances below which nothing is usual.
    const LEAST: usize = 3;

    /// Takes a row that is newer than those before it. True when one is missing before it: it comes one and a
    /// half times as late as usual. A restart of Prometheus may swallow a single row.
    pub fn beat(&mut self, timestamp_ms: i64) -> bool {
        let Some(newest_ms) = self.newest.back().copied() else {
            self.newest.push_back(timestamp_ms);
            return false;
        };
        let is_late =
            self.interval_ms().is_some_and(|interval_ms| 2 * (timestamp_ms - newest_ms) > 3 * interval_ms);
        if timestamp_ms > newest_ms {
            self.newest.push_back(timestamp_ms);
        }
        if self.newest.len() > Self::ROWS {
            self.newest.pop_front();
        }
        is_late
    }

    /// Are these the rows of two that scrape at the same interval, each at his own time? Then a short step follows
    /// every long one. Whoever is late once is on time again, and so does not look like it.
    pub fn is_interleaved(&self) -> bool {
        let times = self.newest.iter();
        let steps: Vec<i64> = times.clone().skip(1).zip(times).map(|(b, a)| b - a).collect();
        let alternate = |steps: &[i64]| {
            let &[first, second, third] = steps else { return false };
            5 * (first - second).abs() > first + second && 20 * (first - third).abs() < first + second
        };
        self.newest.len() == Self::ROWS && steps.windows(3).all(alternate)
    }

    /// The usual distance of rows: the median of the last ones.
    pub fn interval_ms(&self) -> Option<i64> {
        let times = self.newest.iter();
        let mut steps: Vec<i64> = times.clone().skip(1).zip(times).map(|(b, a)| b - a).collect();
        if steps.len() < Self::LEAST {
            return None;
        }
        let middle = steps.len() / 2;
        Some(*steps.select_nth_unstable(middle).1)
    }
}

/// The samples of a window's series in `(after, to]`, staleness markers among them.
pub fn count(window: &Window, column: Column, (after_ms, to_ms): (i64, i64)) -> usize {
    let mut samples: Vec<Sample> = Vec::new();
    window.samples(column, after_ms, to_ms, &mut samples);
    samples.len()
}

/// The time in which samples are counted: what is older than the newest `grace` may still be on its way.
pub fn audit_range(newest_ms: i64, start_ms: i64, grace: Duration) -> (i64, i64) {
    let to_ms = newest_ms - duration::millis(grace);
    ((to_ms - AUDIT_MS).max(start_ms), to_ms)
}
