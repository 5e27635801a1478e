//! The thresholds of a model: one of the scores of rows, and one of the scores of what lasts.

use super::threshold::PotThreshold;

/// Minimum of the threshold of rows: a little less than the raw score of a row whose forest score and tail score are both
/// a unit above the median of training.
const MIN_THRESHOLD: f64 = 0.7;
/// Minimum of the threshold of what lasts, the tail score of two sigmas: less is no alarm, however long it lasts.
const MIN_LASTING_THRESHOLD: f64 = 1.098_612_288_668_109_8;
/// Factor by which a lasting deviation has to exceed its estimate: its score stays the same for minutes, so that a little
/// more than the greatest of the past is a whole incident.
const LASTING_MARGIN: f64 = 1.15;
/// The budget of what lasts, as a share of that of rows. Most of it is an incident by its rows too.
pub(super) const LASTING_BUDGET_SHARE: f64 = 0.25;

/// A value for the scores of rows and one for the scores of what lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowAndLasting {
    pub row: f64,
    pub lasting: f64,
}

impl RowAndLasting {
    /// The parts above levels, at least 0.
    pub fn above(self, levels: Self) -> Self {
        Self { row: (self.row - levels.row).max(0.0), lasting: (self.lasting - levels.lasting).max(0.0) }
    }
}

/// See the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    pub row: PotThreshold,
    pub lasting: PotThreshold,
}

impl Thresholds {
    /// Thresholds without history, for a budget in alerts per day, above 0.
    pub fn new(budget: f64) -> Self {
        Self {
            row: PotThreshold::new(budget, MIN_THRESHOLD),
            lasting: PotThreshold::new(LASTING_BUDGET_SHARE * budget, MIN_LASTING_THRESHOLD),
        }
    }

    /// The budget in alerts per day.
    pub fn budget(&self) -> f64 {
        self.row.budget()
    }

    /// Replaces the budget.
    pub fn set_budget(&mut self, budget: f64) {
        self.row.set_budget(budget);
        self.lasting.set_budget(LASTING_BUDGET_SHARE * budget);
    }

    /// The thresholds that the same scores, each multiplied by `factor`, would have given.
    pub fn scaled(self, factor: f64) -> Self {
        Self { row: self.row.scaled(factor), lasting: self.lasting.scaled(factor) }
    }

    /// The thresholds at a time, see [`PotThreshold::value_at`].
    pub fn values_at(&mut self, timestamp_ms: i64) -> RowAndLasting {
        RowAndLasting {
            row: self.row.value_at(timestamp_ms),
            lasting: LASTING_MARGIN * self.lasting.value_at(timestamp_ms),
        }
    }

    /// Adds the scores of a row, see [`PotThreshold::add`].
    pub fn add(&mut self, timestamp_ms: i64, scores: RowAndLasting, is_live: bool) {
        self.row.add(timestamp_ms, scores.row, is_live);
        self.lasting.add(timestamp_ms, scores.lasting, is_live);
    }
}
