//! How many alerts somebody can live with.

use crate::yaml::Section;
use std::str::FromStr;

/// Alerts a day, unless others are asked for.
pub const BUDGET: f64 = 1.0;
/// Alerts a day beyond which nobody reads them.
const MOST: f64 = 100.0;

/// The section `alerts` of a detector.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Alerts a day that the threshold keeps to.
    pub budget: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { budget: BUDGET }
    }
}

impl Config {
    /// Reads the section of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let budget = section.get("budget").and_then(|node| node.parse(str::parse::<Budget>));
        section.finish();
        Self { budget: budget.map_or(BUDGET, |Budget(a_day)| a_day) }
    }
}

/// Alerts a day, written as `1/day`, `0.5/day` or `1/week`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget(pub f64);

/// A text that is no budget.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum InvalidBudget {
    /// Not a number with a unit.
    #[error("{0:?} is no budget of alerts: write it as 1/day, 1/week or 1/hour")]
    Unknown(String),
    /// Out of bounds.
    #[error("a budget of {0} alerts a day is not above 0 and at most {MOST}")]
    Bounds(f64),
}

impl FromStr for Budget {
    type Err = InvalidBudget;

    fn from_str(text: &str) -> Result<Self, InvalidBudget> {
        let unknown = || InvalidBudget::Unknown(text.into());
        let (number, unit) = text.split_once('/').unwrap_or((text, "day"));
        let number: f64 = number.trim().parse().map_err(|_| unknown())?;
        let a_day = match unit.trim() {
            "day" | "d" => number,
            "week" | "w" => number / 7.0,
            "hour" | "h" => number * 24.0,
            _ => return Err(unknown()),
        };
        if a_day > 0.0 && a_day <= MOST { Ok(Self(a_day)) } else { Err(InvalidBudget::Bounds(a_day)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_alerts_in_a_time() {
        for (text, a_day) in
            [("1/day", 1.0), ("2", 2.0), ("7/week", 1.0), ("0.5/hour", 12.0), (" 1 / d", 1.0)]
        {
            assert_eq!(text.parse(), Ok(Budget(a_day)), "{text}");
        }
        for text in ["", "one/day", "1/month", "1/day/day"] {
            assert_eq!(text.parse::<Budget>(), Err(InvalidBudget::Unknown(text.into())));
        }
        for (text, a_day) in [("0/day", 0.0), ("-1/day", -1.0), ("101/day", 101.0), ("5/hour", 120.0)] {
            assert_eq!(text.parse::<Budget>(), Err(InvalidBudget::Bounds(a_day)), "{text}");
        }
        assert!("NaN/day".parse::<Budget>().is_err());
    }
}
