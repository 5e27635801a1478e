//! The one thread that owns the index and the windows.
//!
//! Requests come to it one after another through a bounded channel, so there are no locks, and what
//! a request does is done when the next one begins. It never waits: what is slow (the network, a
//! fit) is other threads' work, and comes back as a command.

mod filling;
mod intake;

use super::gaps::{self, Gaps, Question};
use super::group::{Event, Group, RowState};
use super::groups::Groups;
use super::keeper::Place;
use super::metrics::Metrics;
use super::outputs::Ends;
use super::reading::Selected;
use super::saver::Turn;
use crate::config::{Config, Detector};
use crate::detect::Detection;
use crate::features::counter;
use crate::history::{self, server::Query};
use crate::ingest::{self, Received, Written};
use crate::models::Deployed;
use crate::prom::duration::{self, now_ms};
use crate::prom::wire;
use crate::prom::{Labels, Sample};
use crate::publish::{self, Batch, Lost, Position, Series};
use crate::series::{Code, Index};
use crate::snapshot::State;
use crate::train::trainer::{Before, Job, Learned, Reason};
use crate::window::{Voice, Window};
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::{info, warn};

/// Scores wait until this machine's clock is at most this far behind their timestamp: one sample
/// from the future keeps a Prometheus before 2.54 from storing any other.
const PUBLISH_AHEAD_MS: i64 = 10_000;
/// Scores written this long after their time are told from live ones: Prometheus' look-back, over which an alert
/// sees them.
const BACKFILLED_MS: i64 = 300_000;
/// How long the engine looks for what a query selects before it does something else.
const SELECTING: Duration = Duration::from_millis(2);
/// How often groups and columns are looked through for what is gone.
const TIDY_EVERY: Duration = Duration::from_secs(60);
/// Samples of other values for the same times within [`TIDY_EVERY`] that are worth a word.
const MANY_CONFLICTS: usize = 10;
/// How often the progress towards a first model is logged.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// What the engine is asked to do.
pub enum Command {
    /// Take in the body of a write request.
    Write(Received, oneshot::Sender<Result<Written, ingest::Error>>),
    /// Give a target its next batch.
    NextBatch {
        /// The target.
        target: usize,
        /// Size of the batch.
        max_samples: usize,
        /// Where it goes.
        reply: oneshot::Sender<Option<Batch>>,
    },
    /// Move a target's cursor.
    Advance {
        /// The target.
        target: usize,
        /// The cursor in each group.
        positions: Vec<Position>,
    },
    /// Take the result of a training.
    Learned {
        /// The group.
        group: u32,
        /// The result.
        result: Learned,
    },
    /// Tell which groups there are: their numbers and labels.
    Groups(oneshot::Sender<Vec<(u32, Labels)>>),
    /// Tell what some groups have that a query selects.
    Select {
        /// The query, without patterns.
        query: Arc<Query>,
        /// The groups.
        groups: Arc<[u32]>,
        /// How many of them have been looked at.
        from: usize,
        /// Where it goes.
        reply: oneshot::Sender<Selected>,
    },
    /// Tell which models every group has.
    Places(oneshot::Sender<Vec<Place>>),
    /// Take a model of the registry into service, or none any more.
    Deploy {
        /// The group.
        group: u32,
        /// Whose place it takes.
        voice: Voice,
        /// The model; only the challenger's place can be empty.
        deployed: Option<Deployed>,
        /// What it has become by the rows since its training.
        advanced: Option<Box<Detection>>,
    },
    /// Hand out the group after this one, or the first, for a snapshot.
    Snapshot {
        /// The group before.
        after: Option<u32>,
        /// Where it goes; nothing after the last.
        reply: oneshot::Sender<Option<Turn>>,
    },
    /// The snapshot of this group could not be written.
    Unsaved(u32),
    /// Take in what remote read knows of a detector's series.
    Filled {
        /// The detector.
        detector: Arc<Detector>,
        /// Series with all of their labels.
        series: Vec<history::Series>,
    },
    /// All of what was asked for has been handed over, or the rest will not come.
    FillDone {
        /// Is it all?
        is_whole: bool,
    },
    /// Look at the clock.
    Tick,
    /// Work by another configuration; `bells` are its targets'.
    Reload {
        /// The configuration.
        config: Arc<Config>,
        /// What to ring when a target has something to fetch.
        bells: Vec<Arc<Notify>>,
        /// Told when it is in force.
        done: oneshot::Sender<()>,
    },
}

/// Can it be relied on? The text says how far it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Readiness {
    /// Does every detector have a model in service?
    pub ready: bool,
    /// One line a detector.
    pub text: String,
}

struct TargetState {
    pending: BTreeSet<u32>,
    bell: Arc<Notify>,
    /// Where the last batch ended: the next one begins after it, so that every group has its turn.
    last: u32,
    /// What groups that are gone have left open.
    ends: Ends,
}

/// See the [module](self).
pub struct Engine {
    groups: Groups,
    index: Index,
    buffer: Vec<u8>,
    scratch: wire::Scratch,
    /// What the index knows of the series of a request.
    known: Vec<Option<Code>>,
    targets: Vec<TargetState>,
    trainer: mpsc::Sender<Job>,
    gaps: Gaps,
    gap_metrics: gaps::Metrics,
    /// The group that a training was asked for last.
    asked: u32,
    readiness: watch::Sender<Readiness>,
    metrics: Metrics,
    ingest: ingest::Metrics,
    publish: publish::Metrics,
    tidied: Instant,
    /// Samples of other values than those that are held, since then.
    conflicts: usize,
    told_progress: Option<Instant>,
}

/// What the engine is built with.
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// One bell for each target.
    pub bells: Vec<Arc<Notify>>,
    /// Where trainings are asked for.
    pub trainer: mpsc::Sender<Job>,
    /// Where what is missing is asked for.
    pub questions: mpsc::Sender<Question>,
    /// Where it is told how far it is.
    pub readiness: watch::Sender<Readiness>,
    /// What is counted of holes.
    pub gaps: gaps::Metrics,
    /// What is counted.
    pub metrics: Metrics,
    /// What is counted of the input.
    pub ingest: ingest::Metrics,
    /// What is counted of the output.
    pub publish: publish::Metrics,
}

impl Engine {
    /// An engine without a sample.
    pub fn new(parts: Parts) -> Self {
        Self {
            groups: Groups::new(parts.config),
            index: Index::default(),
            buffer: Vec::new(),
            scratch: wire::Scratch::default(),
            known: Vec::new(),
            targets: targets(parts.bells),
            trainer: parts.trainer,
            gaps: Gaps::new(parts.questions, Instant::now()),
            gap_metrics: parts.gaps,
            asked: u32::MAX,
            readiness: parts.readiness,
            metrics: parts.metrics,
            ingest: parts.ingest,
            publish: parts.publish,
            tidied: Instant::now(),
            conflicts: 0,
            told_progress: None,
        }
    }

    /// Works until every sender of commands is gone.
    pub fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.blocking_recv() {
            let now = Instant::now();
            match command {
                Command::Write(received, reply) => {
                    let result = self.write(received.version, &received.body, now, now_ms());
                    // Nobody waits any more when the sender hung up.
                    let _ = reply.send(result);
                }
                Command::NextBatch { target, max_samples, reply } => {
                    let _ = reply.send(self.next_batch(target, max_samples, now_ms()));
                }
                Command::Advance { target, positions } => self.advance(target, &positions, now_ms()),
                Command::Learned { group, result } => self.learned(group, result, now),
                Command::Groups(reply) => {
                    let _ = reply.send(self.labels());
                }
                Command::Select { query, groups, from, reply } => {
                    let _ = reply.send(self.select(&query, &groups, from));
                }
                Command::Places(reply) => {
                    let _ = reply.send(self.groups.iter_mut().map(|(id, group)| group.place(id)).collect());
                }
                Command::Deploy { group, voice, deployed, advanced } => {
                    self.deploy(group, voice, deployed, advanced, now)
                }
                Command::Snapshot { after, reply } => {
                    let _ = reply.send(self.snapshot(after));
                }
                Command::Unsaved(id) => {
                    if let Some(group) = self.groups.get_mut(id) {
                        group.not_saved();
                    }
                }
                Command::Filled { detector, series } => self.filled(&detector, &series, now),
                Command::FillDone { is_whole } => self.fill_done(is_whole, now),
                Command::Tick => self.tick(now, now_ms()),
                Command::Reload { config, bells, done } => {
                    self.reload(config, bells, now, now_ms());
                    let _ = done.send(());
                }
            }
        }
    }

    /// Scores the rows of these groups that samples came for, as far as nothing is missing before them.
    fn score(&mut self, touched: &BTreeSet<u32>, now: Instant) {
        // Where there is nobody to ask, nothing is waited for.
        let can_ask = !self.groups.config().remote_read.is_empty();
        for &id in touched {
            let Some(group) = self.groups.get_mut(id) else { continue };
            let detector = group.detector.clone();
            if group.holds_after_ms().is_some() && !self.gaps.knows(id) {
                self.gap_metrics.detected(&detector.name);
                if can_ask {
                    self.gaps.wait(id);
                } else {
                    group.release(now);
                }
            }
            let mut tell = teller(&self.metrics, &self.publish, &detector.name);
            if group.score_touched(now, &mut tell) {
                self.metrics.scored(group);
                ring(&mut self.targets, id);
            }
        }
    }

    /// Goes on with the groups of snapshots, and tells what became of each. What they have not written waits
    /// for the model, which comes with the answer to how far Prometheus has it.
    pub fn restore(&mut self, snapshots: Vec<(State, Window)>, now: Instant, tell: impl Fn(&'static str)) {
        for (state, window) in snapshots {
            let is_restored = self.groups.restore(state, window, now);
            tell(if is_restored { "restored" } else { "unfit" });
        }
    }

    fn snapshot(&mut self, after: Option<u32>) -> Option<Turn> {
        let urls = self.groups.urls();
        let (id, group) = self.groups.next_mut(after)?;
        Some(group.save(id, &urls))
    }

    fn next_batch(&mut self, target: usize, max_samples: usize, now_ms: i64) -> Option<Batch> {
        let state = self.targets.get_mut(target)?;
        let to_ms = now_ms + PUBLISH_AHEAD_MS;
        let mut batch = Batch::default();
        // By themselves: another group may write one of these series anew.
        let end = |(labels, timestamp_ms): &(Labels, i64)| Series {
            labels: labels.clone(),
            samples: vec![Sample::stale(*timestamp_ms)],
        };
        batch.series.extend(state.ends.hand_out(to_ms, max_samples).iter().map(end));
        if !batch.series.is_empty() {
            return Some(batch);
        }
        let mut room = max_samples;
        let after = state.pending.range((Bound::Excluded(state.last), Bound::Unbounded));
        let order: Vec<u32> = after.chain(state.pending.range(..=state.last)).copied().collect();
        for id in order {
            if room < publish::SAMPLES_OF_A_ROW {
                break;
            }
            let Some(group) = self.groups.get_mut(id) else {
                state.pending.remove(&id);
                continue;
            };
            self.publish.lose(Lost::Outlived, group.take_outlived(target));
            let samples = group.unpublished(id, target, to_ms, room, &mut batch);
            room -= samples;
            if samples == 0 && group.is_published(target) {
                state.pending.remove(&id);
                continue;
            }
            state.last = id;
        }
        for series in &mut batch.series {
            let Some(end_ms) = state.ends.end_of(&series.labels) else { continue };
            let before = series.samples.len();
            series.samples.retain(|sample| sample.timestamp_ms > end_ms);
            self.publish.lose(Lost::OutOfOrder, before - series.samples.len());
        }
        batch.series.retain(|series| !series.samples.is_empty());
        (!batch.positions.is_empty()).then_some(batch)
    }

    fn advance(&mut self, target: usize, positions: &[Position], now_ms: i64) {
        // What is older yet was not written, but given up.
        let limit = self.groups.config().remote_write.get(target).map(|target| target.sample_age_limit);
        let oldest_ms = now_ms - duration::millis(limit.unwrap_or_default());
        let Some(state) = self.targets.get_mut(target) else { return };
        state.ends.advance();
        for position in positions {
            let published = self.groups.get_mut(position.group).is_none_or(|group| {
                let to_ms = now_ms - BACKFILLED_MS;
                let late = group.rows_between(target, position.timestamp_ms, oldest_ms, to_ms);
                self.metrics.backfilled(&group.detector.name, late);
                group.advance(target, position.timestamp_ms);
                group.is_published(target)
            });
            if published {
                state.pending.remove(&position.group);
            }
        }
    }

    /// The labels of every group.
    fn labels(&self) -> Vec<(u32, Labels)> {
        self.groups.from(0).map(|(id, group)| (id, group.labels.clone())).collect()
    }

    /// Looks at groups for as long as others can wait.
    fn select(&self, query: &Query, groups: &[u32], from: usize) -> Selected {
        let began = Instant::now();
        let mut selected = Selected::default();
        for (i, id) in groups.iter().enumerate().skip(from) {
            if began.elapsed() >= SELECTING {
                selected.next = Some(i);
                break;
            }
            // One that is gone has nothing.
            if let Some(group) = self.groups.get(*id) {
                group.select(query, &mut selected.found);
            }
        }
        selected
    }

    fn learned(&mut self, id: u32, result: Learned, now: Instant) {
        let alias = self.groups.config().registry.alias.clone();
        let Some(group) = self.groups.get_mut(id) else { return };
        let detector = group.detector.clone();
        match result {
            Learned::Model { deployed, fitted, before, seconds } => {
                info!(
                    component = "train",
                    detector = detector.name,
                    group = %group.labels,
                    model = deployed.name,
                    version = deployed.version,
                    features = deployed.model.schema.features.len(),
                    rows = deployed.model.card.history.as_ref().map(|history| history.n_rows),
                    duration_seconds = seconds,
                    "model in service"
                );
                self.metrics.trained(&detector.name, if fitted { "trained" } else { "loaded" });
                let mut tell = teller(&self.metrics, &self.publish, &detector.name);
                let age = deployed.model.card.age(now_ms());
                if group.install_trained(deployed, age, before, now, &mut tell) {
                    self.metrics.scored(group);
                }
                // Scores of a snapshot waited for this: only now is it known how far they are written.
                ring(&mut self.targets, id);
                self.metrics.models(group, &alias);
            }
            Learned::Held { name, version, card, reasons } => {
                let reasons = reasons.join("; ");
                warn!(component = "train", detector = detector.name, group = %group.labels, model = name, version, reason = reasons, "model stays out of service");
                self.metrics.trained(&detector.name, "held");
                group.training_held(&card, now);
            }
            Learned::Expected => group.model_expected(now),
            Learned::TooShort { have_ms } => {
                self.metrics.trained(&detector.name, "too_short");
                group.too_short(have_ms, now);
            }
            Learned::Pooled { have_ms, deployed, before, seconds } => {
                info!(
                    component = "train",
                    detector = detector.name,
                    group = %group.labels,
                    features = deployed.model.schema.features.len(),
                    rows = deployed.model.card.history.as_ref().map(|history| history.n_rows),
                    duration_seconds = seconds,
                    "a model of other groups serves until there is enough history for one of its own"
                );
                self.metrics.trained(&detector.name, "pooled");
                let mut tell = teller(&self.metrics, &self.publish, &detector.name);
                if group.install(deployed, before, now, &mut tell) {
                    self.metrics.scored(group);
                }
                group.too_short(have_ms, now);
                ring(&mut self.targets, id);
                self.metrics.models(group, &alias);
            }
            Learned::HistoryLost { have_ms } => {
                let have = Duration::from_millis(u64::try_from(have_ms).unwrap_or(0));
                warn!(component = "train", detector = detector.name, group = %group.labels, seconds = have.as_secs(), "the history is gone that the model has learned from: it stays in service");
                self.metrics.trained(&detector.name, "history_lost");
                group.history_lost(now);
            }
            Learned::Failed(reason) => {
                warn!(component = "train", detector = detector.name, group = %group.labels, err = reason, "training failed, trying again in a minute");
                self.metrics.trained(&detector.name, "failed");
                group.training_failed(now);
            }
        }
        self.tell_readiness(now);
    }

    /// Puts a model of the registry into its place. One with features that are not there is refused: it
    /// would never see a complete row.
    fn deploy(
        &mut self,
        id: u32,
        voice: Voice,
        deployed: Option<Deployed>,
        advanced: Option<Box<Detection>>,
        now: Instant,
    ) {
        let alias = self.groups.config().registry.alias.clone();
        let Some(group) = self.groups.get_mut(id) else { return };
        let detector = group.detector.clone();
        if let Some(Deployed { model, name, version }) = &deployed {
            let lacking =
                group.lacks(&model.schema).map(|feature| model.schema.transform.expression(feature));
            if let Some(feature) = lacking {
                warn!(component = "models", detector = detector.name, group = %group.labels, model = name, version, feature, "model refused: the group does not have all of its features");
                self.metrics.refused(&detector.name);
                if voice == Voice::Challenger {
                    group.challenge(None, None);
                    self.metrics.models(group, &alias);
                }
                return;
            }
            info!(component = "models", detector = detector.name, group = %group.labels, model = name, version, voice = ?voice, "model in service");
        }
        match (voice, deployed) {
            (Voice::Champion, Some(deployed)) => {
                let mut tell = teller(&self.metrics, &self.publish, &detector.name);
                if group.install(deployed, Before { advanced, ..Before::default() }, now, &mut tell) {
                    self.metrics.scored(group);
                    ring(&mut self.targets, id);
                }
            }
            (Voice::Champion, None) => {}
            (Voice::Challenger, deployed) => group.challenge(deployed, advanced),
        }
        self.metrics.models(group, &alias);
    }

    fn tick(&mut self, now: Instant, now_ms: i64) {
        self.look_after_gaps(now, now_ms);
        for (id, group) in self.groups.iter_mut() {
            let detector = group.detector.clone();
            let mut tell = teller(&self.metrics, &self.publish, &detector.name);
            if group.close_rows(now, &mut tell) {
                // Rows may have waited for one before them.
                if group.score_touched(now, &mut tell) {
                    self.metrics.scored(group);
                }
                // Or everything ends there.
                ring(&mut self.targets, id);
            }
            if group.take_changed() {
                self.metrics.group(group, now);
            }
        }
        self.ask_for_trainings(now);
        if now.duration_since(self.tidied) >= TIDY_EVERY {
            self.tidied = now;
            self.tell_of_replicas();
            self.groups.iter().for_each(|group| self.metrics.drift(group));
            self.metrics.window_bytes(self.groups.iter().map(|group| group.window().n_bytes()).sum());
            let (gone, look_again) = self.groups.tidy(now);
            let kept: Vec<_> = (0..self.targets.len()).map(Some).collect();
            gone.iter().for_each(|group| self.bury(group, &kept, now_ms));
            if look_again {
                self.index.clear();
            }
        }
        self.metrics.series(self.index.len());
        for state in &self.targets {
            if !state.pending.is_empty() || state.ends.are_waiting() {
                state.bell.notify_one();
            }
        }
        self.metrics.pending(self.targets.iter().map(|state| state.pending.len()).sum());
        self.tell_readiness(now);
    }

    /// Two that send the same series make rows of two kinds, or two values of one sample, of which the first counts.
    fn tell_of_replicas(&mut self) {
        const ADVICE: &str =
            "two seem to send the same series: add their replica label to `by`, or let one of them send";
        let mut interleaved = self.groups.iter().filter(|group| group.is_interleaved());
        let first = interleaved.next();
        let groups = first.map_or(0, |_| 1 + interleaved.count());
        self.metrics.interleaved(groups);
        if let Some(group) = first {
            warn!(component = "ingest", detector = group.detector.name, group = %group.labels, groups, "{ADVICE}");
        }
        let conflicts = std::mem::take(&mut self.conflicts);
        if conflicts >= MANY_CONFLICTS {
            warn!(component = "ingest", conflicts, "{ADVICE}");
        }
    }

    /// Fills the trainer's queue with the groups that are due, going on where it stopped, so that
    /// every group has its turn.
    fn ask_for_trainings(&mut self, now: Instant) {
        for id in self.groups.ids_after(self.asked) {
            let Ok(place) = self.trainer.try_reserve() else { return };
            let Some(group) = self.groups.get_mut(id) else { continue };
            let due = group.training_due(now);
            // Features that have just come may make it like others: it does not wait to be scored.
            let asks = group.is_new() && (due.is_some() || group.has_grown());
            let pool = if asks { self.groups.pool(id) } else { None };
            let Some(group) = self.groups.get_mut(id) else { continue };
            let Some(reason) = due.or(pool.as_ref().map(|_| Reason::First)) else { continue };
            if reason != Reason::First {
                let reason = reason.as_str();
                info!(component = "train", detector = group.detector.name, group = %group.labels, reason, "training again");
            }
            place.send(Job {
                group: id,
                detector: group.detector.clone(),
                labels: group.labels.clone(),
                since: group.since(),
                mark: group.mark().cloned(),
                learned_ms: group.learned_ms(),
                judged_to_ms: group.judged_to_ms(),
                pool,
                reason,
                window: group.start_training(reason, now),
            });
            self.asked = id;
        }
    }

    /// Ready means: every detector has a model in service for one group at least.
    fn tell_readiness(&mut self, now: Instant) {
        let mut ready = true;
        let mut lines = Vec::new();
        let tell = self.told_progress.is_none_or(|told| now.duration_since(told) >= PROGRESS_EVERY);
        for detector in &self.groups.config().detectors {
            let groups = || self.groups.iter().filter(|group| Arc::ptr_eq(&group.detector, detector));
            let models = || groups().filter_map(|group| group.deployed(Voice::Champion));
            let (n_groups, n_models) = (groups().count(), models().count());
            let n_pooled = models().filter(|deployed| deployed.is_pooled()).count();
            ready &= n_models > 0;
            let progress = groups().map(|group| group.progress(now)).fold(0.0, f64::max);
            let minimum = duration::Display(detector.training.minimum);
            lines.push(match (n_groups, n_models) {
                (0, _) => format!("{}: no samples yet", detector.name),
                (_, 0) => format!(
                    "{}: {:.0} % of the {minimum} of history that a first model needs",
                    detector.name,
                    progress * 100.0
                ),
                (_, _) if n_pooled > 0 => format!(
                    "{}: {n_models} of {n_groups} groups have a model, {n_pooled} of them a pooled one",
                    detector.name
                ),
                _ => format!("{}: {n_models} of {n_groups} groups have a model", detector.name),
            });
            if tell && n_groups > n_models - n_pooled {
                self.told_progress = Some(now);
                info!(component = "train", detector = detector.name, groups = n_groups, models = n_models, pooled = n_pooled, progress = format!("{:.0}%", progress * 100.0), minimum = %minimum, "collecting history");
            }
        }
        let state = Readiness { ready, text: lines.join("\n") };
        self.readiness.send_if_modified(|old| {
            let changed = *old != state;
            *old = state;
            changed
        });
    }

    fn reload(&mut self, config: Arc<Config>, bells: Vec<Arc<Notify>>, now: Instant, now_ms: i64) {
        let kept = self.groups.kept_targets(&config);
        let before = self.groups.iter().map(Group::waiting).sum::<usize>();
        let gone = self.groups.reload(config, &kept, now, now_ms);
        let after = self.groups.iter().map(Group::waiting).sum::<usize>();
        let of_gone = gone.iter().map(Group::waiting).sum::<usize>();
        // Of targets that are gone; `bury` counts the groups that are.
        self.publish.lose(Lost::Abandoned, before.saturating_sub(after + of_gone));
        let mut old = std::mem::replace(&mut self.targets, targets(bells));
        for (state, kept) in self.targets.iter_mut().zip(&kept) {
            state.ends = kept.map(|kept| old[kept].ends.taken_over()).unwrap_or_default();
        }
        gone.iter().for_each(|group| self.bury(group, &kept, now_ms));
        self.index.clear();
        let ids: Vec<u32> = self.groups.iter_mut().map(|(id, _)| id).collect();
        for state in &mut self.targets {
            state.pending.extend(&ids);
            state.bell.notify_one();
        }
    }

    /// Ends what a group that is gone has written, and counts what it has not. Each target is one that the group
    /// knew by this number, or a new one.
    fn bury(&mut self, group: &Group, kept: &[Option<usize>], now_ms: i64) {
        for (state, kept) in self.targets.iter_mut().zip(kept) {
            let Some(kept) = kept else { continue };
            let (series, last_ms) = group.left_open(*kept);
            state.ends.add(series, last_ms, now_ms);
        }
        self.publish.lose(Lost::Abandoned, group.waiting());
        self.metrics.forget(group);
    }
}

fn targets(bells: Vec<Arc<Notify>>) -> Vec<TargetState> {
    let state = |bell| TargetState { pending: BTreeSet::new(), bell, last: u32::MAX, ends: Ends::default() };
    bells.into_iter().map(state).collect()
}

fn ring(targets: &mut [TargetState], id: u32) {
    for state in targets {
        state.pending.insert(id);
        state.bell.notify_one();
    }
}

/// Counts what a group tells.
fn teller<'a>(
    metrics: &'a Metrics,
    publish: &'a publish::Metrics,
    detector: &'a str,
) -> impl FnMut(Event) + 'a {
    move |event| match event {
        Event::Row(state) => metrics.row(detector, row_label(state)),
        Event::NotFinite => metrics.row(detector, "not_finite"),
        Event::Counter(event) => metrics.correction(
            detector,
            match event {
                counter::Event::Reset => "reset",
                counter::Event::Dip => "dip",
                counter::Event::Rewind => "rewind",
            },
        ),
        Event::Lost(reason, samples) => publish.lose(reason, samples),
    }
}

fn row_label(state: RowState) -> &'static str {
    match state {
        RowState::Complete => "complete",
        RowState::Incomplete => "incomplete",
        RowState::TooShort => "too_short",
        RowState::Ended => "ended",
        RowState::Unmodelled => "unmodelled",
        RowState::Late => "late",
    }
}

#[cfg(test)]
mod tests;
