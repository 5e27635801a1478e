//! The saved state of a detector between two rows: a process continues from it where another process ended.

use super::alerting::AlertState;
use super::derived::{DerivedFeatures, Lookback};
use super::lasting::{LastingDeviations, SavedLastingDeviations};
use super::recurring::RecurringPeaks;
use super::scorer::Scorer;
use super::seasonal::{SavedProfile, SeasonalProfile};
use super::smoother::ScoreSmoother;
use super::threshold::{HourlyMax, PotThreshold};
use super::thresholds::Thresholds;
use crate::error::InvalidPart;
use crate::time::DAY_MS;
use serde::{Deserialize, Serialize};

/// Maximum number of rows in a file: far more than any derived feature looks back over.
const MAX_ROWS: usize = 100_000;
/// Maximum interval of rows: about a year.
const MAX_INTERVAL_MS: i64 = 366 * DAY_MS;

/// The state in a model's folder. The alert state of the group is part of a [`Checkpoint`] only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedState {
    interval_ms: i64,
    /// One profile per feature.
    profiles: Vec<SavedProfile>,
    /// See [`RecurringPeaks::peaks`].
    peaks: Vec<u16>,
    /// Timestamp and values of the rows that derived features look back to; `None` for a feature that had not begun.
    rows: Vec<(i64, Vec<Option<f32>>)>,
    /// Weighted mean of the raw scores, see [`ScoreSmoother::mean`].
    mean_score: f64,
    /// The completed hours.
    hours: Vec<SavedHour>,
    /// The current hour.
    current: Option<SavedHour>,
    /// Number of rows, those of training included.
    n_rows: u64,
    /// `None` in a state from before there was one.
    #[serde(default)]
    lasting: Option<SavedLasting>,
}

/// The deviations that last, and the hours of their scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedLasting {
    deviations: SavedLastingDeviations,
    hours: Vec<SavedHour>,
    current: Option<SavedHour>,
}

/// Number, maximum and capped maximum of an hour, see [`HourlyMax`].
type SavedHour = (i64, f64, f64);

/// The complete state of a detector: one that continues from it gives the same bits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    pub(super) state: SavedState,
    pub(super) alerts: AlertState,
}

impl Checkpoint {
    /// The alert state of the group.
    pub fn alert_state(&self) -> &AlertState {
        &self.alerts
    }
}

impl SavedState {
    pub(super) fn from_parts(
        derived: &DerivedFeatures,
        smoother: ScoreSmoother,
        lasting: &LastingDeviations,
        thresholds: &Thresholds,
    ) -> Self {
        let [(hours, current), (lasting_hours, lasting_current)] =
            [&thresholds.row, &thresholds.lasting].map(saved_hours);
        Self {
            interval_ms: derived.lookback().interval_ms(),
            profiles: derived.profiles().iter().map(SeasonalProfile::state).collect(),
            peaks: derived.recurring().peaks().to_vec(),
            rows: derived.rows().map(|(timestamp_ms, values)| (*timestamp_ms, nan_to_none(values))).collect(),
            mean_score: smoother.mean(),
            hours,
            current,
            n_rows: thresholds.row.n_rows(),
            lasting: Some(SavedLasting {
                deviations: lasting.state(),
                hours: lasting_hours,
                current: lasting_current,
            }),
        }
    }

    /// Number of features.
    pub fn n_features(&self) -> usize {
        self.profiles.len()
    }

    pub(super) fn restore(
        self,
        budget: f64,
        scorer: &Scorer,
    ) -> Result<(DerivedFeatures, ScoreSmoother, LastingDeviations, Thresholds), InvalidPart> {
        self.check_rows()?;
        self.check_hours()?;
        let Self { interval_ms, profiles, peaks, rows, mean_score, hours, current, n_rows, lasting } = self;
        let lookback = Lookback::new(interval_ms);
        let newest_ms = rows.last().map(|(timestamp_ms, _)| *timestamp_ms);
        let recurring = RecurringPeaks::restore(profiles.len(), newest_ms, peaks)?;
        let profiles = profiles.into_iter().map(|profile| SeasonalProfile::restore(interval_ms, profile));
        let profiles = profiles.collect::<Result<_, _>>()?;
        let rows = rows.into_iter().map(|(timestamp_ms, row)| (timestamp_ms, none_to_nan(row))).collect();
        let derived = DerivedFeatures::restore(lookback, profiles, recurring, rows);
        let mut thresholds = Thresholds::new(budget);
        thresholds.row = restored(thresholds.row, hours, current, n_rows);
        let lasting = match lasting {
            Some(SavedLasting { deviations, hours, current }) => {
                thresholds.lasting = restored(thresholds.lasting, hours, current, n_rows);
                scorer.lasting(lookback).restored(deviations)?
            }
            None => {
                thresholds.lasting = restored(thresholds.lasting, Vec::new(), None, n_rows);
                scorer.lasting(lookback)
            }
        };
        Ok((derived, ScoreSmoother::restore(interval_ms, mean_score, newest_ms), lasting, thresholds))
    }

    fn check_rows(&self) -> Result<(), InvalidPart> {
        let Self { interval_ms, rows, .. } = self;
        if !(1..=MAX_INTERVAL_MS).contains(interval_ms) {
            return Err(InvalidPart::new(
                "interval_ms",
                interval_ms,
                format_args!("in 1..={MAX_INTERVAL_MS}"),
            ));
        }
        if rows.len() > MAX_ROWS {
            return Err(InvalidPart::new("number of rows", rows.len(), format_args!("at most {MAX_ROWS}")));
        }
        if let Some((_, row)) = rows.iter().find(|(_, row)| row.len() != self.n_features()) {
            return Err(InvalidPart::new("width of a row", row.len(), self.n_features()));
        }
        let mut values = rows.iter().flat_map(|(_, row)| row).flatten();
        if let Some(value) = values.find(|value| !value.is_finite()) {
            return Err(InvalidPart::new("value of a row", value, "finite"));
        }
        check_ascending("time of a row", rows.iter().map(|(timestamp_ms, _)| *timestamp_ms).collect())
    }

    fn check_hours(&self) -> Result<(), InvalidPart> {
        if !(0.0..=f64::MAX).contains(&self.mean_score) {
            return Err(InvalidPart::new("mean score", self.mean_score, "finite, at least 0"));
        }
        check_hours(&self.hours, self.current)?;
        self.lasting.as_ref().map_or(Ok(()), |lasting| check_hours(&lasting.hours, lasting.current))
    }
}

fn saved_hours(threshold: &PotThreshold) -> (Vec<SavedHour>, Option<SavedHour>) {
    let (hours, current) = threshold.hours();
    let saved = |hour: &HourlyMax| (hour.hour, hour.max, hour.capped);
    (hours.map(saved).collect(), current.as_ref().map(saved))
}

fn restored(
    threshold: PotThreshold,
    hours: Vec<SavedHour>,
    current: Option<SavedHour>,
    n_rows: u64,
) -> PotThreshold {
    let hourly_max = |(hour, max, capped)| HourlyMax { hour, max, capped };
    threshold.restored(hours.into_iter().map(hourly_max).collect(), current.map(hourly_max), n_rows)
}

fn check_hours(hours: &[SavedHour], current: Option<SavedHour>) -> Result<(), InvalidPart> {
    let hours: Vec<SavedHour> = hours.iter().copied().chain(current).collect();
    check_ascending("number of an hour", hours.iter().map(|(hour, ..)| *hour).collect())?;
    match hours.iter().find(|(_, max, capped)| !(max.is_finite() && capped.is_finite())) {
        Some((_, max, capped)) => {
            Err(InvalidPart::new("score of an hour", format_args!("{max}, {capped}"), "finite"))
        }
        None => Ok(()),
    }
}

fn check_ascending(part: &'static str, numbers: Vec<i64>) -> Result<(), InvalidPart> {
    match numbers.windows(2).all(|pair| pair[0] < pair[1]) {
        true => Ok(()),
        false => Err(InvalidPart::new(part, format_args!("{numbers:?}"), "ascending")),
    }
}

/// JSON has no NaN.
fn nan_to_none(values: &[f32]) -> Vec<Option<f32>> {
    values.iter().map(|value| (!value.is_nan()).then_some(*value)).collect()
}

fn none_to_nan(values: Vec<Option<f32>>) -> Vec<f32> {
    values.into_iter().map(|value| value.unwrap_or(f32::NAN)).collect()
}
