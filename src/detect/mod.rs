//! Detection: from the values of a group's rows to scores that mean something at 3 a.m.
//!
//! ```text
//! values ─ memory (time of day, difference, deviation, habits) ─ voices (forest, tail) ─ threshold ─ incident
//! ```
//!
//! A plain forest on values sees the daily rhythm and little else. Here every value is compared with what
//! its metric usually does at this hour and did a minute ago, the forest looks at how all that goes together,
//! and the threshold keeps to a number of alerts a day that somebody can live with. Everything looks
//! backward only, keeps a bounded state a metric, and is a function of the rows alone: the same rows give
//! the same bits, in training, in a backtest and live.

mod config;
mod habits;
mod heed;
mod incident;
mod memory;
mod profile;
mod state;
mod threshold;
mod voices;

use crate::features::scale::USUAL_SIGMAS;
use crate::forest::{self, ExtendedParams, Table};
use crate::prom::Labels;
use crate::window::Score;
pub use config::{BUDGET, Budget, Config};
use heed::Heed;
pub use heed::{Direction, MinDeviation};
use incident::Incident;
use memory::{ASPECTS, Memory};
pub use state::{InvalidState, Live, State};
use std::num::NonZeroUsize;
use std::sync::Arc;
use threshold::Threshold;
pub use voices::{Deviation, Learned, Level, Parts, Prepared, Reason, Voices};

/// What is said of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// Calibrated: at least 0, 1 is the threshold of alerts.
    pub score: f64,
    /// The threshold behind that 1, in raw units.
    pub threshold: f64,
    /// The forest's decision, in [-0.5, 0.5]; negative is anomalous.
    pub decision: f64,
    /// Is there an incident?
    pub incident: bool,
    /// Every metric with its strongest deviation, the strongest first.
    pub deviations: Vec<Deviation>,
    /// The values, as they were given.
    pub values: Vec<f32>,
    /// Least usual, expected and greatest usual value of each metric; NaN before a first day.
    pub usual: Vec<[f64; 3]>,
}

impl Observation {
    /// The same among other metrics, where its own are at these places; nothing is known of the rest.
    pub fn among(mut self, places: &[usize], n_metrics: usize) -> Self {
        let (mut values, mut usual) = (vec![f32::NAN; n_metrics], vec![[f64::NAN; 3]; n_metrics]);
        for (metric, place) in places.iter().enumerate() {
            values[*place] = self.values[metric];
            usual[*place] = self.usual[metric];
        }
        self.deviations.iter_mut().for_each(|deviation| deviation.metric = places[deviation.metric]);
        Self { values, usual, ..self }
    }

    /// The strongest deviations: number of the metric, how it was unusual, and its share of all deviation, in
    /// [0, 1]. The first, and of the `k - 1` that follow those that 99 % of the training rows do not reach.
    pub fn causes(&self, k: usize) -> impl Iterator<Item = (usize, Reason, f64)> {
        let all: f64 = self.deviations.iter().map(|deviation| deviation.sigmas).sum();
        let is_cause = |(i, deviation): &(usize, &Deviation)| *i == 0 || deviation.sigmas > USUAL_SIGMAS;
        let share = move |deviation: &Deviation| if all > 0.0 { deviation.sigmas / all } else { 0.0 };
        let strongest = self.deviations.iter().take(k).enumerate().filter(is_cause);
        strongest.map(move |(_, cause)| (cause.metric, cause.reason, share(cause)))
    }
}

/// A group under detection: what was learned of it, and its state.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    voices: Arc<Voices>,
    memory: Memory,
    threshold: Threshold,
    incident: Incident,
    /// What counts of each metric; empty if all does.
    heeds: Vec<Heed>,
}

impl Detection {
    /// Learns from rows in ascending order of time, one value of every metric in each, and goes on from the
    /// last of them, with a threshold for `budget` alerts a day.
    ///
    /// # Errors
    /// The forest's own: no rows that columns reach back from, values that are not finite, parameters that do
    /// not suit.
    ///
    /// # Panics
    /// If there is not one time for each row of the table, or they do not ascend.
    pub fn learn(
        timestamps: &[i64],
        table: &Table,
        params: &ExtendedParams,
        budget: f64,
        threads: NonZeroUsize,
    ) -> Result<Self, forest::Error> {
        assert_eq!(timestamps.len(), table.n_rows(), "a row has a time");
        let lesson = Prepared::learn(timestamps, table)?.grow(params, threads)?;
        Ok(Self::of(lesson).0.with_budget(budget))
    }

    /// Goes on from the last row of training, with the default budget. The second value is what would have been
    /// said of the rows of training that could be scored, by timestamp in milliseconds, ascending, of forests that
    /// had not seen them.
    pub fn of(lesson: Learned) -> (Self, Vec<(i64, Score)>) {
        let Learned { voices, memory, scores } = lesson;
        let mut threshold = Threshold::new(BUDGET);
        let mut follow = |(timestamp_ms, raw, decision): (i64, f64, f64)| {
            let score = raw.max(0.0) / threshold.at(timestamp_ms);
            threshold.add(timestamp_ms, raw);
            (timestamp_ms, Score { decision, score, alarm: None })
        };
        let scores = scores.into_iter().map(&mut follow).collect();
        let incident = Incident::new(memory.reach().interval_ms());
        (Self { voices: Arc::new(voices), memory, threshold, incident, heeds: Vec::new() }, scores)
    }

    /// What was learned.
    pub fn voices(&self) -> &Voices {
        &self.voices
    }

    /// Values around those of the newest row, by what each metric does within minutes: `[n_metrics]`.
    pub fn ranges(&self) -> Vec<[f32; 2]> {
        let newest = self.memory.rows().last().map(|(_, values)| values.as_ref()).unwrap_or_default();
        newest.iter().enumerate().map(|(metric, value)| self.voices.around(metric, *value)).collect()
    }

    /// The state after the newest row, for files.
    pub fn state(&self) -> State {
        State::of(&self.memory, &self.threshold)
    }

    /// Goes on from a state, with the default budget and no incident open.
    ///
    /// # Errors
    /// [`InvalidState`].
    pub fn restore(voices: Voices, state: State) -> Result<Self, InvalidState> {
        Self::go_on(Arc::new(voices), Live { state, alarm: None })
    }

    /// All that it has become, the open incident included.
    pub fn live(&self) -> Live {
        Live { state: self.state(), alarm: self.incident.alarm() }
    }

    /// What another process had made of this detection, with the default budget.
    ///
    /// # Errors
    /// [`InvalidState`].
    pub fn resume(&self, live: Live) -> Result<Self, InvalidState> {
        Self::go_on(self.voices.clone(), live)
    }

    fn go_on(voices: Arc<Voices>, Live { state, alarm }: Live) -> Result<Self, InvalidState> {
        let (expected, found) = (voices.n_metrics(), state.n_metrics());
        if found != expected {
            return Err(InvalidState::new("number of metrics", found, expected));
        }
        let (memory, threshold) = state.restore(BUDGET)?;
        let incident = Incident::new(memory.reach().interval_ms()).with_alarm(alarm);
        Ok(Self { voices, memory, threshold, incident, heeds: Vec::new() })
    }

    /// What was learned, before a first row of another group: with the threshold so many times as high.
    pub fn for_another(&self, factor: f64) -> Self {
        let reach = self.memory.reach();
        Self {
            voices: self.voices.clone(),
            memory: Memory::new(self.n_metrics(), reach),
            threshold: self.threshold.clone().raised(factor),
            incident: Incident::new(reach.interval_ms()),
            heeds: self.heeds.clone(),
        }
    }

    /// The same with a threshold for so many alerts a day, above 0.
    pub fn with_budget(self, budget: f64) -> Self {
        Self { threshold: self.threshold.with_budget(budget), ..self }
    }

    /// The same with another budget, and hearing only what counts of metrics with these labels.
    pub fn with_alerts(self, config: &Config, metrics: &[Labels]) -> Self {
        Self { heeds: config.heeds(metrics), ..self.with_budget(config.budget) }
    }

    /// Goes on with the incident of the one that served before, if it has none of its own: what deviates does so still,
    /// and raw scores of all models are on one scale.
    pub fn succeed(self, before: &Self) -> Self {
        let alarm = self.incident.alarm().or(before.incident.alarm());
        Self { incident: self.incident.with_alarm(alarm), ..self }
    }

    /// Number of metrics.
    pub fn n_metrics(&self) -> usize {
        self.memory.n_metrics()
    }

    /// Timestamp of the newest row that it has taken, in milliseconds.
    pub fn newest_ms(&self) -> Option<i64> {
        self.memory.newest_ms()
    }

    /// The usual distance of rows in milliseconds.
    pub fn interval_ms(&self) -> i64 {
        self.memory.reach().interval_ms()
    }

    /// Alerts a day that the threshold keeps to.
    pub fn budget(&self) -> f64 {
        self.threshold.budget()
    }

    /// Takes the next row. `None` for one that is not after those before it.
    ///
    /// # Panics
    /// If the row has another width than in training.
    pub fn observe(&mut self, timestamp_ms: i64, values: &[f32]) -> Option<Observation> {
        if self.memory.newest_ms().is_some_and(|newest_ms| timestamp_ms <= newest_ms) {
            return None;
        }
        let mut columns = self.memory.columns(timestamp_ms, values);
        let expected = self.memory.expected(timestamp_ms);
        // What is not known is as usual. How metrics go together has no direction of its own: one that falls makes the
        // others too high for it.
        let unheard: Vec<usize> = (0..self.heeds.len()).collect();
        for (metric, heed) in self.heeds.iter().enumerate() {
            let columns = &mut columns[metric * ASPECTS..(metric + 1) * ASPECTS];
            let counts = heed.counts(columns, values[metric], expected[metric]);
            let left_out = columns.iter_mut().zip(counts).filter(|(_, counts)| !counts);
            left_out.for_each(|(column, _)| *column = f32::NAN);
        }
        let habits = self.memory.habits().usual();
        let verdict = self.voices.judge(values, &columns, habits, &unheard);
        let threshold = self.threshold.at(timestamp_ms);
        self.threshold.add(timestamp_ms, verdict.raw);
        let usual = |(metric, expected): (usize, &f64)| self.voices.usual(metric, *expected);
        Some(Observation {
            score: verdict.raw.max(0.0) / threshold,
            threshold,
            decision: verdict.decision,
            incident: self.incident.follow(timestamp_ms, verdict.raw, threshold),
            usual: expected.iter().enumerate().map(usual).collect(),
            deviations: verdict.deviations,
            values: values.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests;
