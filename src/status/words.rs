//! Ages and bounds in words.

use crate::prom::duration;
use crate::report::text::number;
use std::time::Duration;

/// A length of time to the second, above an hour to the minute, above a day to the hour: `8s`, `3m20s`, `2h5m`.
pub fn format_age(age_ms: i64) -> String {
    let seconds = u64::try_from(age_ms / 1000).unwrap_or(0);
    let unit = match seconds {
        ..3600 => 1,
        3600..86_400 => 60,
        _ => 3600,
    };
    // Weeks and years are written for exact multiples only.
    duration::Display(Duration::from_secs(seconds / unit * unit)).to_string()
}

/// A latency: `23 ms`, `1.2 s`.
pub fn format_latency(seconds: f64) -> String {
    match seconds < 1.0 {
        true => format!("{:.0}\u{202f}ms", 1000.0 * seconds),
        false => format!("{}\u{202f}s", number(seconds)),
    }
}

/// The bounds of an expected range: `40k to 80k`.
pub fn format_band([lower, _, upper]: [f64; 3]) -> String {
    match lower.is_finite() && upper.is_finite() {
        true => format!("{} to {}", number(lower), number(upper)),
        false => "not known before a full day of history".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_as_exact_as_they_are_short() {
        let cases =
            [(-5, "0s"), (8_900, "8s"), (200_000, "3m20s"), (7_519_000, "2h5m"), (183_600_000, "2d3h")];
        for (age_ms, text) in cases {
            assert_eq!(format_age(age_ms), text);
        }
    }
}
