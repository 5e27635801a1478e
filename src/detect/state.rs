//! The state of a group between two rows, for files: with it a process goes on where another ended.

use super::habits::Habits;
use super::incident::Alarm;
use super::memory::{Memory, Reach};
use super::profile::{self, Profile};
use super::threshold::{Hour, Threshold};
use serde::{Deserialize, Serialize};

/// Rows that a file may bring along: far more than any memory reaches back over.
const MAX_ROWS: usize = 100_000;

/// What a model's file says of the group's last rows. An incident does not outlive its model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    interval_ms: i64,
    profiles: Vec<profile::State>,
    /// The greatest difference and deviation of each metric in each quarter of four days: the upper halves of
    /// numbers of 32 bits. None in a file from before there were habits.
    #[serde(default)]
    peaks: Vec<u16>,
    /// Timestamp and values of the rows that columns reach back to; none of a metric that had not begun.
    rows: Vec<(i64, Vec<Option<f32>>)>,
    /// Number since the epoch, greatest raw score, and what of it counts, of the hours that are over.
    hours: Vec<(i64, f64, f64)>,
    /// Number and greatest raw score so far of the last one.
    current: Option<(i64, f64)>,
}

/// All that a detection has become, so that one that goes on from it says the same bits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Live {
    pub(super) state: State,
    pub(super) alarm: Option<Alarm>,
}

/// A state that no rows lead to.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{part} is {value}, must be {limit}")]
pub struct InvalidState {
    part: &'static str,
    value: String,
    limit: String,
}

impl InvalidState {
    pub(super) fn new(part: &'static str, value: impl ToString, limit: impl ToString) -> Self {
        Self { part, value: value.to_string(), limit: limit.to_string() }
    }
}

fn known(values: &[f32]) -> Vec<Option<f32>> {
    values.iter().map(|value| (!value.is_nan()).then_some(*value)).collect()
}

impl State {
    pub(super) fn of(memory: &Memory, threshold: &Threshold) -> Self {
        let (hours, current) = threshold.hours();
        Self {
            interval_ms: memory.reach().interval_ms(),
            profiles: memory.profiles().iter().map(Profile::state).collect(),
            peaks: memory.habits().state().to_vec(),
            rows: memory.rows().map(|(timestamp_ms, values)| (*timestamp_ms, known(values))).collect(),
            hours: hours.map(|hour| (hour.number, hour.raw, hour.capped)).collect(),
            current,
        }
    }

    /// Number of metrics.
    pub fn n_metrics(&self) -> usize {
        self.profiles.len()
    }

    pub(super) fn restore(self, budget: f64) -> Result<(Memory, Threshold), InvalidState> {
        let Self { interval_ms, profiles, peaks, rows, hours, current } = self;
        let fault =
            |part, value: &dyn ToString, limit: &str| Err(InvalidState::new(part, value.to_string(), limit));
        if interval_ms < 1 {
            return fault("interval_ms", &interval_ms, "at least 1");
        }
        if rows.len() > MAX_ROWS {
            return fault("number of rows", &rows.len(), &format!("at most {MAX_ROWS}"));
        }
        if let Some((_, row)) = rows.iter().find(|(_, row)| row.len() != profiles.len()) {
            return fault("width of a row", &row.len(), &profiles.len().to_string());
        }
        if let Some(value) = rows.iter().flat_map(|(_, row)| row).flatten().find(|value| !value.is_finite()) {
            return fault("value of a row", value, "finite");
        }
        let last = current.map(|(number, raw)| (number, raw, raw));
        let all_hours: Vec<(i64, f64, f64)> = hours.iter().copied().chain(last).collect();
        let ascend = |numbers: &[i64]| numbers.windows(2).all(|pair| pair[0] < pair[1]);
        let times = |times: Vec<i64>| (times, "ascending");
        for (part, (numbers, limit)) in [
            ("time of a row", times(rows.iter().map(|(timestamp_ms, _)| *timestamp_ms).collect())),
            ("number of an hour", times(all_hours.iter().map(|(number, ..)| *number).collect())),
        ] {
            if !ascend(&numbers) {
                return fault(part, &format!("{numbers:.0?}"), limit);
            }
        }
        if let Some((_, raw, capped)) = all_hours.iter().find(|(_, a, b)| !(a.is_finite() && b.is_finite())) {
            return fault("score of an hour", &format!("{raw}, {capped}"), "finite");
        }
        let newest_ms = rows.last().map(|(timestamp_ms, _)| *timestamp_ms);
        let habits = match peaks.is_empty() {
            true => Habits::new(profiles.len()),
            false => Habits::restore(profiles.len(), newest_ms, peaks)?,
        };
        let profiles = profiles.into_iter().map(|state| Profile::restore(interval_ms, state));
        let profiles = profiles.collect::<Result<_, _>>()?;
        let values = |row: Vec<Option<f32>>| row.into_iter().map(|value| value.unwrap_or(f32::NAN)).collect();
        let rows = rows.into_iter().map(|(timestamp_ms, row)| (timestamp_ms, values(row))).collect();
        let memory = Memory::restore(Reach::new(interval_ms), profiles, habits, rows);
        let hours = hours.into_iter().map(|(number, raw, capped)| Hour { number, raw, capped });
        Ok((memory, Threshold::restore(budget, hours.collect(), current)))
    }
}
