//! The state of a group between two rows, for files: with it a process goes on where another ended.

use super::derived::{DerivedFeatures, Lookback};
use super::incident::OpenIncident;
use super::recurring::RecurringPeaks;
use super::seasonal::{self, SeasonalProfile};
use super::threshold::{HourlyMax, PotThreshold};
use serde::{Deserialize, Serialize};

/// Rows that a file may bring along: far more than any memory reaches back over.
const MAX_ROWS: usize = 100_000;

/// What a model's file says of the group's last rows. An incident does not outlive its model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedState {
    interval_ms: i64,
    profiles: Vec<seasonal::SavedProfile>,
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
pub struct Checkpoint {
    pub(super) state: SavedState,
    pub(super) open_incident: Option<OpenIncident>,
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

fn nan_to_none(values: &[f32]) -> Vec<Option<f32>> {
    values.iter().map(|value| (!value.is_nan()).then_some(*value)).collect()
}

impl SavedState {
    pub(super) fn from_parts(derived: &DerivedFeatures, threshold: &PotThreshold) -> Self {
        let (hours, current) = threshold.hours();
        Self {
            interval_ms: derived.lookback().interval_ms(),
            profiles: derived.profiles().iter().map(SeasonalProfile::state).collect(),
            peaks: derived.recurring().peaks().to_vec(),
            rows: derived.rows().map(|(timestamp_ms, values)| (*timestamp_ms, nan_to_none(values))).collect(),
            hours: hours.map(|hour| (hour.number, hour.raw, hour.capped)).collect(),
            current,
        }
    }

    /// Number of metrics.
    pub fn n_features(&self) -> usize {
        self.profiles.len()
    }

    pub(super) fn restore(self, budget: f64) -> Result<(DerivedFeatures, PotThreshold), InvalidState> {
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
        let is_ascending = |numbers: &[i64]| numbers.windows(2).all(|pair| pair[0] < pair[1]);
        let times = |times: Vec<i64>| (times, "ascending");
        for (part, (numbers, limit)) in [
            ("time of a row", times(rows.iter().map(|(timestamp_ms, _)| *timestamp_ms).collect())),
            ("number of an hour", times(all_hours.iter().map(|(number, ..)| *number).collect())),
        ] {
            if !is_ascending(&numbers) {
                return fault(part, &format!("{numbers:.0?}"), limit);
            }
        }
        if let Some((_, raw, capped)) = all_hours.iter().find(|(_, a, b)| !(a.is_finite() && b.is_finite())) {
            return fault("score of an hour", &format!("{raw}, {capped}"), "finite");
        }
        let newest_ms = rows.last().map(|(timestamp_ms, _)| *timestamp_ms);
        let recurring = match peaks.is_empty() {
            true => RecurringPeaks::new(profiles.len()),
            false => RecurringPeaks::restore(profiles.len(), newest_ms, peaks)?,
        };
        let profiles = profiles.into_iter().map(|state| SeasonalProfile::restore(interval_ms, state));
        let profiles = profiles.collect::<Result<_, _>>()?;
        let values = |row: Vec<Option<f32>>| row.into_iter().map(|value| value.unwrap_or(f32::NAN)).collect();
        let rows = rows.into_iter().map(|(timestamp_ms, row)| (timestamp_ms, values(row))).collect();
        let derived = DerivedFeatures::restore(Lookback::new(interval_ms), profiles, recurring, rows);
        let hours = hours.into_iter().map(|(number, raw, capped)| HourlyMax { number, raw, capped });
        Ok((derived, PotThreshold::restore(budget, hours.collect(), current)))
    }
}
