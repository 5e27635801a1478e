//! One group: its window, its model, its open rows and its cursors.

mod holding;
mod publishing;
mod saving;
mod training;

use super::drift::Drift;
use super::gaps::Rhythm;
use super::keeper::Place;
use super::outputs::Cursor;
use super::reading::{Asked, Found};
use super::schedule::Schedule;
use super::serving::{Cause, Serving};
use crate::config::Detector;
use crate::detect::Detection;
use crate::features::{Reader, Row, Schema, counter};
use crate::history::server::Query;
use crate::models::Deployed;
use crate::prom::{Labels, Sample, duration};
use crate::publish::Lost;
use crate::snapshot::Mark;
use crate::train::rows;
use crate::train::trainer::Before;
use crate::window::{Column, Push, Score, Voice, Window};
use holding::Hold;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Columns without a sample in the window that a group may drag along.
const MAX_DEAD_COLUMNS: usize = 64;

/// The newest samples from before this process tell how rows come.
const RHYTHM_MS: i64 = 3_600_000;

const DAY_MS: i64 = 24 * 3_600_000;

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowState {
    /// It was scored.
    Complete,
    /// Features were missing when its time was up.
    Incomplete,
    /// It had all samples, but no rate yet.
    TooShort,
    /// It held nothing but staleness markers: the target went away.
    Ended,
    /// There was no model yet.
    Unmodelled,
    /// It became complete after a later one had been scored.
    Late,
}

/// What a group has to tell: the engine counts it.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// A row was closed.
    Row(RowState),
    /// A counter was corrected.
    Counter(counter::Event),
    /// This many samples of a row will not be written to a target.
    Lost(Lost, usize),
    /// A value of a scored row was NaN or infinite.
    NotFinite,
}

/// One group of a detector.
pub struct Group {
    /// The detector.
    pub detector: Arc<Detector>,
    /// The group's labels: the values of `by`.
    pub labels: Labels,
    window: Window,
    serving: Option<Serving>,
    challenger: Option<Serving>,
    drift: Drift,
    /// Rows that are not scored yet, by the last timestamp that would belong to them: the timestamp
    /// of a sample in each, and when the first came.
    open_rows: BTreeMap<i64, (i64, Instant)>,
    /// Rows that samples came for, by the same key.
    touched: BTreeSet<i64>,
    /// Timestamps of samples that came after newer ones.
    late: BTreeSet<i64>,
    values: Vec<f32>,
    /// What was behind the incidents, by timestamp ascending; nothing at the row after one.
    causes: VecDeque<(i64, Vec<Cause>)>,
    /// Timestamps at which incidents of the last day began.
    incidents: VecDeque<i64>,
    is_incident: bool,
    /// Timestamps of rows at which everything ended, and when they were closed.
    ended: BTreeMap<i64, Instant>,
    cursors: Vec<Cursor>,
    /// Rows up to here were scored and written before this process began.
    written_to_ms: i64,
    /// Timestamp of the newest scored row, and when its last sample came.
    newest_scored: Option<(i64, Instant)>,
    missing: usize,
    /// Has anything that `/metrics` shows of the group changed?
    changed: bool,
    /// How its rows come.
    rhythm: Rhythm,
    /// While what is missing is asked for.
    hold: Option<Hold>,
    /// Has anything changed since the last snapshot?
    unsaved: bool,
    /// What the models of before this process had become, until they serve again.
    marks: [Option<Mark>; 2],
    since: Instant,
    last_received: Instant,
    schedule: Schedule,
}

impl Group {
    /// A group without a sample, to be written to `n_targets` targets.
    pub fn new(detector: Arc<Detector>, labels: Labels, n_targets: usize, now: Instant) -> Self {
        Self {
            schedule: Schedule::new(&detector, now),
            window: Window::new(duration::millis(detector.window)),
            detector,
            labels,
            serving: None,
            challenger: None,
            drift: Drift::default(),
            open_rows: BTreeMap::new(),
            touched: BTreeSet::new(),
            late: BTreeSet::new(),
            values: Vec::new(),
            causes: VecDeque::new(),
            incidents: VecDeque::new(),
            is_incident: false,
            ended: BTreeMap::new(),
            cursors: vec![Cursor::after(i64::MIN); n_targets],
            written_to_ms: i64::MIN,
            newest_scored: None,
            missing: 0,
            changed: true,
            rhythm: Rhythm::default(),
            hold: None,
            unsaved: false,
            marks: [None, None],
            since: now,
            last_received: now,
        }
    }

    /// Works by another configuration of its detector from now on. False, and nothing is changed, when its window
    /// or its models would have to be others.
    pub fn reconfigure(&mut self, detector: &Arc<Detector>, now: Instant, now_ms: i64) -> bool {
        let length_ms = duration::millis(detector.window);
        let mut schemas = self.serving.iter().chain(&self.challenger).map(Serving::schema);
        if !detector.watches_as(&self.detector)
            || schemas.any(|schema| schema.transform.reach_ms() > length_ms)
        {
            return false;
        }
        let old = std::mem::replace(&mut self.detector, detector.clone());
        if *old == **detector {
            return true;
        }
        self.changed = true;
        self.window.set_length(length_ms);
        for serving in self.serving.iter_mut().chain(&mut self.challenger) {
            serving.set_alerts(&detector.alerts);
        }
        if let Some(serving) = &self.serving
            && !serving.deployed.is_pooled()
            && old.training != detector.training
        {
            let card = &serving.model().card;
            self.schedule.renew(detector, card, card.age(now_ms), now);
        }
        if old.model != detector.model {
            self.schedule.hurry(now);
        }
        true
    }

    /// When its first sample came.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The column of a feature; `None` when the group has too many.
    pub fn column(&mut self, feature: &Labels) -> Option<Column> {
        let known = self.window.find(feature);
        let column = self.window.column(feature)?;
        if known.is_none() {
            self.find_columns();
        }
        Some(column)
    }

    /// The window has other columns now.
    fn find_columns(&mut self) {
        for serving in self.serving.iter_mut().chain(&mut self.challenger) {
            serving.reader = Reader::new(serving.schema(), &self.window);
        }
    }

    /// Columns of the window.
    pub fn n_columns(&self) -> usize {
        self.window.features().count()
    }

    /// Stores a sample. The second value tells whether it came after newer ones.
    pub fn push(&mut self, column: Column, sample: Sample, now: Instant) -> (Push, bool) {
        let newest_ms = self.window.newest_ms();
        let outcome = self.window.push(column, sample);
        self.last_received = now;
        if outcome != Push::Stored {
            return (outcome, false);
        }
        self.unsaved = true;
        let late = newest_ms.is_some_and(|newest| sample.timestamp_ms < newest);
        if newest_ms.is_none_or(|newest| newest < sample.timestamp_ms) {
            self.follow_rhythm(newest_ms, sample.timestamp_ms, now);
        }
        self.touch(sample.timestamp_ms, now);
        if late {
            self.late.insert(sample.timestamp_ms);
        }
        (outcome, late)
    }

    fn touch(&mut self, timestamp_ms: i64, now: Instant) {
        let key = self.key(timestamp_ms);
        if self.touched.insert(key)
            && (self.serving.is_none() || self.window.score(Voice::Champion, timestamp_ms).is_none())
        {
            self.open_rows.entry(key).or_insert((timestamp_ms, now));
        }
    }

    /// The last timestamp that would belong to the row of this one.
    fn key(&self, timestamp_ms: i64) -> i64 {
        self.serving.as_ref().map_or(timestamp_ms, |s| s.schema().grid.bounds(timestamp_ms).1)
    }

    /// Scores the rows that samples came for since the last call. True when there is a new score.
    pub fn score_touched(&mut self, now: Instant, tell: &mut impl FnMut(Event)) -> bool {
        if self.hold.is_some() {
            return false;
        }
        if self.serving.as_ref().is_some_and(Serving::is_ordered) {
            return self.score_in_order(now, tell);
        }
        let mut touched = std::mem::take(&mut self.touched);
        let late = std::mem::take(&mut self.late);
        // Rates of later rows reach back to a late sample.
        if let Some(serving) = &self.serving {
            let schema = serving.schema();
            let reach_ms = schema.transform.reach_ms();
            for timestamp_ms in late {
                let later = self.window.timestamps(timestamp_ms, timestamp_ms + reach_ms);
                touched.extend(later.map(|later_ms| schema.grid.bounds(later_ms).1));
            }
        }
        let mut scored = false;
        for key in touched {
            scored |= self.score_row(key, now, tell);
        }
        scored
    }

    fn score_row(&mut self, key: i64, now: Instant, tell: &mut impl FnMut(Event)) -> bool {
        let Some(serving) = &mut self.serving else { return false };
        let model = serving.model().clone();
        let mut events = Vec::new();
        let row = serving
            .reader
            .row(&model.schema, &self.window, key, &mut self.values, |event| events.push(event));
        let Row::Complete { timestamp_ms, .. } = row else { return false };
        self.open_rows.remove(&key);
        let old = self.window.score(Voice::Champion, timestamp_ms);
        if old.is_some() && (timestamp_ms <= serving.since_ms || timestamp_ms <= self.written_to_ms) {
            return false;
        }
        let Some((new, _)) = serving.judge(timestamp_ms, &self.values) else { return false };
        if old == Some(new) {
            return false;
        }
        self.keep(timestamp_ms, old, new, Vec::new(), events, now, tell);
        true
    }

    /// Scores the rows after the newest scored one, in their order, up to the first that still waits for samples.
    fn score_in_order(&mut self, now: Instant, tell: &mut impl FnMut(Event)) -> bool {
        self.touched.clear();
        self.late.clear();
        let Some(serving) = &self.serving else { return false };
        let model = serving.model().clone();
        let passed_ms = serving.passed_ms;
        let times: Vec<i64> = self.window.timestamps(passed_ms, i64::MAX).collect();
        let mut scored = false;
        for time in times {
            let Some(serving) = &mut self.serving else { break };
            let key = model.schema.grid.bounds(time).1;
            if key <= serving.passed_ms {
                continue;
            }
            let mut events = Vec::new();
            let row = serving
                .reader
                .row(&model.schema, &self.window, key, &mut self.values, |event| events.push(event));
            match row {
                Row::Complete { timestamp_ms, settled: true } => {
                    serving.passed_ms = key;
                    let judged = serving.judge(timestamp_ms, &self.values);
                    let since_ms = serving.since_ms;
                    self.open_rows.remove(&key);
                    let Some((new, causes)) = judged else { continue };
                    let old = self.window.score(Voice::Champion, timestamp_ms);
                    // Others' scores stay, also where only who they were written to has them; the row was needed for
                    // those that follow.
                    let is_others = old.is_some() || timestamp_ms <= self.written_to_ms;
                    if timestamp_ms > since_ms || !is_others {
                        self.keep(timestamp_ms, old, new, causes, events, now, tell);
                        scored = true;
                    }
                }
                Row::Complete { settled: false, .. } => {
                    serving.passed_ms = key;
                    if self.open_rows.remove(&key).is_some() {
                        tell(Event::Row(RowState::TooShort));
                    }
                }
                // Samples of other features alone: no row of this model.
                Row::Missing(missing)
                    if missing.len() == model.schema.features.len()
                        && !serving.reader.has_marker(&model.schema, &self.window, key) => {}
                Row::Missing(_) | Row::TooShort(_) if self.open_rows.contains_key(&key) => break,
                Row::Missing(_) | Row::TooShort(_) => serving.passed_ms = key,
            }
        }
        scored
    }

    /// Stores the score of a row, and counts what has to be counted.
    #[expect(clippy::too_many_arguments, reason = "a row, from all sides")]
    fn keep(
        &mut self,
        timestamp_ms: i64,
        old: Option<Score>,
        new: Score,
        causes: Vec<Cause>,
        events: Vec<counter::Event>,
        now: Instant,
        tell: &mut impl FnMut(Event),
    ) {
        self.unsaved = true;
        self.window.set_score(Voice::Champion, timestamp_ms, new);
        let was_written = timestamp_ms <= self.written_to_ms;
        let lost = if was_written {
            // Prometheus has it: the same, bit for bit.
            None
        } else if old.is_none() {
            tell(Event::Row(RowState::Complete));
            events.into_iter().for_each(|event| tell(Event::Counter(event)));
            if self.values.iter().any(|value| !value.is_finite()) {
                tell(Event::NotFinite);
            }
            self.drift.add(timestamp_ms, new.decision);
            self.changed |= self.missing > 0;
            self.missing = 0;
            Some(Lost::OutOfOrder)
        } else {
            Some(Lost::Revised)
        };
        for cursor in &mut self.cursors {
            let Some(lost) = lost else { continue };
            if timestamp_ms <= cursor.handed_out_ms {
                tell(Event::Lost(lost, samples_of(&new)));
            } else if old.is_none() {
                cursor.waiting += samples_of(&new);
            }
        }
        if self.newest_scored.is_none_or(|(newest_ms, _)| newest_ms < timestamp_ms) {
            self.newest_scored = Some((timestamp_ms, now));
        }
        self.follow(timestamp_ms, &new, causes);
        self.challenge_row(timestamp_ms);
    }

    /// Remembers what is behind an incident, and when one began.
    fn follow(&mut self, timestamp_ms: i64, score: &Score, causes: Vec<Cause>) {
        let start_ms = self.window.start_ms();
        while self.causes.front().is_some_and(|(then, _)| *then <= start_ms) {
            self.causes.pop_front();
        }
        self.ended.retain(|then, _| *then > start_ms);
        if !causes.is_empty() || self.causes.back().is_some_and(|(_, before)| !before.is_empty()) {
            self.causes.push_back((timestamp_ms, causes));
        }
        while self.incidents.front().is_some_and(|then| *then <= timestamp_ms - DAY_MS) {
            self.incidents.pop_front();
            self.changed = true;
        }
        let is_incident = score.alarm.is_some_and(|alarm| alarm.is_incident);
        if is_incident && !std::mem::replace(&mut self.is_incident, is_incident) {
            self.incidents.push_back(timestamp_ms);
            self.changed = true;
        }
        self.is_incident = is_incident;
    }

    /// Alerts within the last day, for a model that raises some.
    pub fn alerts(&self) -> Option<usize> {
        let is_ordered = self.serving.as_ref().is_some_and(Serving::is_ordered);
        is_ordered.then_some(self.incidents.len())
    }

    /// Scores a row of the model in service by the one beside it too, if it has all features for that.
    fn challenge_row(&mut self, timestamp_ms: i64) {
        if let Some(score) = self.judge_beside(timestamp_ms) {
            self.window.set_score(Voice::Challenger, timestamp_ms, score);
        }
    }

    fn judge_beside(&mut self, timestamp_ms: i64) -> Option<Score> {
        let challenger = self.challenger.as_mut()?;
        let model = challenger.model().clone();
        let row = challenger.reader.row(&model.schema, &self.window, timestamp_ms, &mut self.values, |_| {});
        let wanted = match challenger.is_ordered() {
            true => matches!(row, Row::Complete { settled: true, .. }),
            false => matches!(row, Row::Complete { .. }),
        };
        if !wanted {
            return None;
        }
        challenger.judge(timestamp_ms, &self.values).map(|(score, _)| score)
    }

    /// Closes the rows whose time is up. True when there were some.
    pub fn close_rows(&mut self, now: Instant, tell: &mut impl FnMut(Event)) -> bool {
        if self.hold.is_some() {
            return false;
        }
        let grace = self.detector.grace;
        let newest = self.window.newest_ms().map(|newest_ms| self.key(newest_ms));
        let over: Vec<i64> = self
            .open_rows
            .iter()
            .filter(|(_, (_, since))| now.duration_since(*since) >= grace)
            .map(|(key, _)| *key)
            .collect();
        let mut any = false;
        for key in over {
            // The stream has ended within a row: what is missing comes when it goes on, by whatever way.
            if newest == Some(key) && self.is_partial(key) {
                continue;
            }
            any = true;
            let Some(waited) = self.open_rows.remove(&key) else { continue };
            let Some(serving) = &mut self.serving else {
                tell(Event::Row(RowState::Unmodelled));
                continue;
            };
            let schema = &serving.deployed.model.schema;
            let state = match serving.reader.row(schema, &self.window, key, &mut self.values, |_| {}) {
                Row::Missing(missing) if missing.len() == schema.features.len() => {
                    if !serving.reader.has_marker(schema, &self.window, key) {
                        // Samples of features that the model does not have.
                        continue;
                    }
                    let (after_ms, to_ms) = schema.grid.bounds(key);
                    let newest_ms = self.window.timestamps(after_ms, to_ms).last();
                    self.ended.extend(newest_ms.map(|newest_ms| (newest_ms, now)));
                    self.unsaved = true;
                    RowState::Ended
                }
                Row::Missing(missing) => {
                    self.changed |= self.missing != missing.len();
                    self.missing = missing.len();
                    RowState::Incomplete
                }
                Row::TooShort(_) => RowState::TooShort,
                // It waited for one before it, which waits no more.
                Row::Complete { .. } if serving.is_ordered() && key > serving.passed_ms => {
                    self.open_rows.insert(key, waited);
                    continue;
                }
                Row::Complete { timestamp_ms, .. }
                    if serving.is_ordered()
                        && timestamp_ms > self.written_to_ms
                        && self.window.score(Voice::Champion, timestamp_ms).is_none() =>
                {
                    if timestamp_ms > serving.since_ms { RowState::Late } else { RowState::Unmodelled }
                }
                // Scored already, or before the model's time.
                Row::Complete { .. } => continue,
            };
            tell(Event::Row(state));
        }
        any
    }

    /// Are some features of the model in this row, and others not?
    fn is_partial(&mut self, key: i64) -> bool {
        let Some(serving) = &mut self.serving else { return false };
        let schema = &serving.deployed.model.schema;
        let row = serving.reader.row(schema, &self.window, key, &mut self.values, |_| {});
        matches!(row, Row::Missing(missing) if missing.len() < schema.features.len())
            && !serving.reader.has_marker(schema, &self.window, key)
    }

    /// Has what `/metrics` shows changed since the last call? Progress always does.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed) || !self.has_lasting_model()
    }

    /// Features that the last row lacked.
    pub fn missing(&self) -> usize {
        self.missing
    }

    /// Timestamp of the newest scored row.
    pub fn newest_scored_ms(&self) -> Option<i64> {
        self.newest_scored.map(|(newest_ms, _)| newest_ms)
    }

    /// The model that speaks with this voice.
    pub fn deployed(&self, voice: Voice) -> Option<&Deployed> {
        let serving = match voice {
            Voice::Champion => &self.serving,
            Voice::Challenger => &self.challenger,
        };
        serving.as_ref().map(|serving| &serving.deployed)
    }

    /// Is there a model that is not only to serve until there is one of its own?
    fn has_lasting_model(&self) -> bool {
        self.serving.as_ref().is_some_and(|serving| !serving.deployed.is_pooled())
    }

    /// Which models it has. A pooled one has no place that another could take: the group goes on asking for its own.
    pub fn place(&self, id: u32) -> Place {
        let lasting = |voice| self.deployed(voice).filter(|deployed| !deployed.is_pooled());
        let version = |voice| lasting(voice).map(|deployed| (deployed.name.clone(), deployed.version));
        Place {
            group: id,
            detector: self.detector.name.clone(),
            labels: self.labels.clone(),
            champion: version(Voice::Champion),
            challenger: version(Voice::Challenger),
            scored_ms: self.newest_scored_ms(),
        }
    }

    /// KL divergence of the last day's decisions from those of training, where both are known.
    pub fn drift(&self) -> Option<f64> {
        self.drift.divergence(self.serving.as_ref()?.model().card.baseline.as_ref()?)
    }

    /// Features that come live.
    pub fn alive(&self) -> BTreeSet<&Labels> {
        let newest_ms = self.window.newest_ms().unwrap_or(i64::MIN);
        self.window
            .features()
            .filter(|(_, _, newest)| rows::is_alive(*newest, newest_ms, self.detector.grace))
            .map(|(labels, _, _)| labels)
            .collect()
    }

    /// The first feature of a schema that does not come live here.
    pub fn lacks<'s>(&self, schema: &'s Schema) -> Option<&'s Labels> {
        let alive = self.alive();
        schema.features.iter().find(|feature| !alive.contains(feature))
    }

    /// Has no sample come for as long as the window reaches?
    pub fn is_abandoned(&self, now: Instant) -> bool {
        now.duration_since(self.last_received) > self.detector.window.max(self.detector.grace)
    }

    /// Does the window drag along many columns without a sample?
    pub fn has_dead_columns(&self) -> bool {
        self.dead_columns() > MAX_DEAD_COLUMNS
    }

    fn dead_columns(&self) -> usize {
        self.window.features().filter(|(_, _, newest)| self.is_outside(*newest)).count()
    }

    fn is_outside(&self, newest: Option<Sample>) -> bool {
        newest.is_none_or(|sample| sample.timestamp_ms <= self.window.start_ms())
    }

    /// The same group without these columns. Columns change: what pointed to them has to look again.
    pub fn without_dead_columns(mut self) -> Self {
        let alive: Vec<Labels> = self
            .window
            .features()
            .filter(|(_, _, newest)| !self.is_outside(*newest))
            .map(|(labels, _, _)| labels.clone())
            .collect();
        self.window = self.window.with_features(&alive);
        self.find_columns();
        self.schedule.reset_columns(self.n_columns());
        self
    }

    /// Scores beside the model in service from now on, or no more.
    pub fn challenge(&mut self, deployed: Option<Deployed>, advanced: Option<Box<Detection>>) {
        self.changed = true;
        self.unsaved = true;
        let mark = self.marks[1].take();
        self.challenger = deployed.map(|deployed| {
            let resume = |mark: Mark| mark.resume(&deployed).flatten();
            let advanced = advanced.or_else(|| mark.and_then(resume));
            Serving::new(deployed, &self.window, i64::MIN, advanced, &self.detector.alerts)
        });
        // It has to have seen the rows that came while its past was read.
        let ordered = self.challenger.as_ref().filter(|challenger| challenger.is_ordered());
        let seen_ms = ordered.map_or(i64::MAX, |challenger| challenger.passed_ms);
        let since: Vec<i64> =
            self.window.scores(Voice::Champion, seen_ms, i64::MAX).map(|(at, _)| at).collect();
        for timestamp_ms in since {
            self.judge_beside(timestamp_ms);
        }
    }

    /// Takes a new model into service; the rows that wait are scored by it.
    ///
    /// A first model brings along what remote read knows of the time before this process: the
    /// samples that rates reach back to, and the newest score already written. After a restart the
    /// rows since then are scored and written, so that no gap is left.
    pub fn install(
        &mut self,
        deployed: Deployed,
        before: Before,
        now: Instant,
        tell: &mut impl FnMut(Event),
    ) -> bool {
        let Before { recent, written, advanced } = before;
        self.changed = true;
        self.unsaved = true;
        self.drift = Drift::default();
        // Whoever chose it wants to see it serve for a while, however old it is.
        if !deployed.is_pooled() {
            self.schedule.renew(&self.detector, &deployed.model.card, Duration::ZERO, now);
        }
        let first = self.serving.is_none();
        let since_ms = self.newest_scored_ms().or(written.everywhere_ms()).unwrap_or(i64::MIN);
        if first {
            let mut recent: Vec<(Column, Sample)> = recent
                .into_iter()
                .filter_map(|(labels, samples)| Some((self.window.find(&labels)?, samples)))
                .flat_map(|(column, samples)| samples.into_iter().map(move |sample| (column, sample)))
                .collect();
            recent.sort_by_key(|(_, sample)| sample.timestamp_ms);
            let live_to_ms = self.window.newest_ms();
            // What is older is whole, or lost for good.
            let newest_ms = recent.last().map_or(i64::MAX, |(_, sample)| sample.timestamp_ms);
            let waits_ms = newest_ms - duration::millis(self.detector.grace);
            for (column, sample) in recent {
                self.window.push(column, sample);
                // Remote write brings these again, as duplicates, which open no row.
                if live_to_ms.is_some_and(|live_to_ms| live_to_ms < sample.timestamp_ms)
                    && sample.timestamp_ms > waits_ms
                {
                    self.open_rows.entry(sample.timestamp_ms).or_insert((sample.timestamp_ms, now));
                }
            }
            self.written_to_ms = written.to_ms.unwrap_or(self.written_to_ms);
            let n_targets = self.cursors.len();
            for (target, cursor) in self.cursors.iter_mut().enumerate() {
                // What a target does not hold it has lost: a snapshot that says otherwise is wrong. But of several
                // the snapshot knows better than the others where one is that is not read.
                let held_ms = written.by_target.get(target).copied().flatten();
                let kept_ms = (n_targets > 1 && cursor.done_ms > i64::MIN).then_some(cursor.done_ms);
                if let Some(done_ms) = held_ms.or(kept_ms).or(written.to_ms) {
                    *cursor = Cursor::after(done_ms);
                }
            }
            let scored_ms = [written.everywhere_ms(), self.newest_scored_ms()].into_iter().flatten().min();
            if let Some(scored_ms) = scored_ms {
                self.touched.extend(self.window.timestamps(scored_ms, i64::MAX));
            }
            self.marks[0] = None;
            let newest_ms = self.window.newest_ms().unwrap_or(i64::MIN);
            let lately_ms = newest_ms.saturating_sub(RHYTHM_MS);
            self.rhythm = Rhythm::default();
            for time in self.window.timestamps(lately_ms, i64::MAX) {
                self.rhythm.beat(deployed.model.schema.grid.bounds(time).1);
            }
        }
        let alerts = &self.detector.alerts;
        let serving = Serving::new(deployed, &self.window, since_ms, advanced, alerts);
        self.serving = Some(match &self.serving {
            Some(before) => serving.succeed(before),
            None => serving,
        });
        // Rows are keyed by the model's grid.
        for (_, (timestamp_ms, since)) in std::mem::take(&mut self.open_rows) {
            self.open_rows.entry(self.key(timestamp_ms)).or_insert((timestamp_ms, since));
        }
        let touched: Vec<i64> = std::mem::take(&mut self.touched).into_iter().map(|t| self.key(t)).collect();
        self.touched.extend(touched);
        self.touched.extend(self.open_rows.keys());
        let scored = self.score_touched(now, tell);
        if first {
            self.resume_cursors();
        }
        scored
    }

    /// Adds what it has that a query selects.
    pub fn select(&self, query: &Query, found: &mut Vec<Found>) {
        let asked = Asked {
            query,
            detector: &self.detector,
            group: &self.labels,
            window: &self.window,
            causes: &self.causes,
            ended: self.ended.keys().copied().collect(),
        };
        asked.answer(found);
    }

    /// The live samples, for a look from outside.
    pub fn window(&self) -> &Window {
        &self.window
    }
}

/// Samples that one row of a model in service is written as, without its causes.
fn samples_of(score: &Score) -> usize {
    if score.alarm.is_some() { 4 } else { 2 }
}
