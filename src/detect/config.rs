//! Configuration of alerts: budget and filters.

use super::filter::{DeviationFilter, Direction, MinDeviation};
use crate::prom::{Labels, Selector};
use crate::yaml::{Key, KeyTable, Node, Section};
use std::str::FromStr;

/// Default budget in alerts per day.
pub const DEFAULT_BUDGET: f64 = 1.0;
/// Bounds of the budget in alerts per day. Below the least, the fortnight that the threshold remembers holds one incident;
/// above the greatest, an alert an hour, a day does not have enough hours to estimate the threshold.
const MIN_BUDGET: f64 = 0.1;
const MAX_BUDGET: f64 = 24.0;

/// The keys of the section.
pub const KEY_TABLES: [KeyTable; 2] = [
    KeyTable::new(
        &["detectors[].alerts"],
        &[
            Key::with_default(
                "budget",
                "1/day",
                "Most incidents on average, per `day`, `week` or `hour`: from 0.1 to 24 a day. What only lasts may add a \
                 fourth",
            ),
            Key::with_default(
                "direction",
                "both",
                "`up`: only values above the expected ones count; `down`: only values below them",
            ),
            Key::with_default("min_deviation", "[]", "Minimum sizes of deviations, see below"),
        ],
    ),
    KeyTable::new(
        &["detectors[].alerts.min_deviation[]"],
        &[
            Key::required("match", "up", "Selector of features; the first entry that matches applies"),
            Key::optional(
                "absolute",
                "Smaller deviations do not count, in the unit of the feature, such as bytes per second. With \
                 `relative`, both must be exceeded; one of the two is required",
            ),
            Key::optional("relative", "Smaller deviations do not count, as a share of the expected value"),
        ],
    ),
];

/// The section `alerts` of a detector.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Budget in alerts per day.
    pub budget: f64,
    /// Direction of deviations that raise the score.
    pub direction: Direction,
    /// Minimum sizes of deviations; the first selector that matches applies.
    pub min_deviation: Vec<MinDeviation>,
}

impl Default for Config {
    fn default() -> Self {
        Self { budget: DEFAULT_BUDGET, direction: Direction::Both, min_deviation: Vec::new() }
    }
}

impl Config {
    /// Reads the section of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let budget = section.get("budget").and_then(|node| node.parse(str::parse::<AlertBudget>));
        let direction = section.get("direction").and_then(|node| node.parse(str::parse));
        let min_deviation = section.get("min_deviation").and_then(|list| list.items()).unwrap_or_default();
        section.deny_unknown();
        Self {
            budget: budget.map_or(DEFAULT_BUDGET, |AlertBudget(per_day)| per_day),
            direction: direction.unwrap_or_default(),
            min_deviation: min_deviation
                .into_iter()
                .filter_map(Node::section)
                .filter_map(read_min_deviation)
                .collect(),
        }
    }

    /// One filter per feature; empty if no filter is configured.
    pub(super) fn deviation_filters(&self, features: &[Labels]) -> Vec<DeviationFilter> {
        let filters: Vec<DeviationFilter> = features
            .iter()
            .map(|labels| DeviationFilter::for_labels(self.direction, &self.min_deviation, labels))
            .collect();
        if filters.iter().all(|filter| *filter == DeviationFilter::default()) { Vec::new() } else { filters }
    }
}

fn read_min_deviation(mut section: Section<'_, '_>) -> Option<MinDeviation> {
    let selector = section.require("match").and_then(|node| node.parse(Selector::parse));
    let absolute = section.number("absolute", 0.0, f64::MAX);
    let relative = section.number("relative", 0.0, f64::MAX);
    if absolute.or(relative).is_none() {
        section.error("absolute or relative is needed");
    }
    section.deny_unknown();
    let (absolute, relative) = (absolute.unwrap_or(0.0), relative.unwrap_or(0.0));
    Some(MinDeviation { selector: selector?, absolute, relative })
}

/// A budget in alerts per day, written as `1/day`, `0.5/day` or `1/week`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AlertBudget(pub f64);

/// A text that is not a budget.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum InvalidBudget {
    /// Not a number with a unit.
    #[error("{0:?} is not a budget of alerts: write it as 1/day, 1/week or 1/hour")]
    Unknown(String),
    /// Out of bounds.
    #[error("a budget of {0} alerts per day is not from {MIN_BUDGET} to {MAX_BUDGET}")]
    Bounds(f64),
}

impl FromStr for AlertBudget {
    type Err = InvalidBudget;

    fn from_str(text: &str) -> Result<Self, InvalidBudget> {
        let unknown = || InvalidBudget::Unknown(text.into());
        let (number, unit) = text.split_once('/').unwrap_or((text, "day"));
        let number: f64 = number.trim().parse().map_err(|_| unknown())?;
        let per_day = match unit.trim() {
            "day" | "d" => number,
            "week" | "w" => number / 7.0,
            "hour" | "h" => number * 24.0,
            _ => return Err(unknown()),
        };
        if (MIN_BUDGET..=MAX_BUDGET).contains(&per_day) {
            Ok(Self(per_day))
        } else {
            Err(InvalidBudget::Bounds(per_day))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_number_of_alerts_per_unit_of_time() {
        for (text, per_day) in
            [("1/day", 1.0), ("2", 2.0), ("7/week", 1.0), ("0.5/hour", 12.0), (" 1 / d", 1.0)]
        {
            assert_eq!(text.parse(), Ok(AlertBudget(per_day)), "{text}");
        }
        for text in ["", "one/day", "1/month", "1/day/day"] {
            assert_eq!(text.parse::<AlertBudget>(), Err(InvalidBudget::Unknown(text.into())));
        }
        for (text, per_day) in
            [("0/day", 0.0), ("-1/day", -1.0), ("0.09", 0.09), ("25/day", 25.0), ("5/hour", 120.0)]
        {
            assert_eq!(text.parse::<AlertBudget>(), Err(InvalidBudget::Bounds(per_day)), "{text}");
        }
        assert!("NaN/day".parse::<AlertBudget>().is_err());
    }
}
