//! Durations in Prometheus' syntax: `15s`, `1h30m`, `5d`.

use std::fmt;
use std::time::Duration;

const UNITS: [(&str, u64); 7] = [
    ("y", 365 * 86_400_000),
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// The error for a text that is not a Prometheus duration.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error(
    "{0:?} is not a duration: write numbers with the units y, w, d, h, m, s, ms in that order, as in 1h30m"
)]
pub struct InvalidDuration(String);

/// Reads a duration in Prometheus' syntax; `0` needs no unit.
///
/// # Errors
/// [`InvalidDuration`] for any other text, and for repeated or misordered units and overflow.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration(text.to_string());
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut next_unit = 0;
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let position = UNITS.iter().position(|(name, _)| *name == unit).ok_or_else(invalid)?;
        if position < next_unit {
            return Err(invalid());
        }
        next_unit = position + 1;
        let part = number.checked_mul(UNITS[position].1).ok_or_else(invalid)?;
        total_ms = total_ms.checked_add(part).ok_or_else(invalid)?;
        rest = after;
    }
    // Half of the range keeps the sum of a timestamp and a duration within an i64.
    if text.is_empty() || total_ms > i64::MAX as u64 / 2 {
        return Err(invalid());
    }
    Ok(Duration::from_millis(total_ms))
}

/// Formats a duration in Prometheus' syntax.
pub struct Display(pub Duration);

impl fmt::Display for Display {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in UNITS {
            // Prometheus writes years and weeks only for exact multiples.
            let exact_only = matches!(unit, "y" | "w");
            if rest >= size && (!exact_only || rest % size == 0) {
                write!(f, "{}{unit}", rest / size)?;
                rest %= size;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_as_prometheus() {
        for (text, ms) in [
            ("15s", 15_000),
            ("1h30m", 5_400_000),
            ("5d", 432_000_000),
            ("30ms", 30),
            ("1m500ms", 60_500),
            ("2w", 1_209_600_000),
        ] {
            let duration = parse(text).expect(text);
            assert_eq!(duration.as_millis(), ms, "{text}");
            assert_eq!(Display(duration).to_string(), text);
        }
        assert_eq!(parse("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn durations_that_prometheus_rejects_are_rejected() {
        for text in ["", "15", "s", "1m1h", "1s1s", "-1s", "1.5h", "1 m", "99999999999y", "5x"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
