//! Timestamps: milliseconds since the epoch, as in Prometheus.

use jiff::Timestamp;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds in an hour.
pub const HOUR_MS: i64 = 3_600_000;
/// Milliseconds in a day.
pub const DAY_MS: i64 = 24 * HOUR_MS;

/// Most that the clock of a sender is taken to be ahead of this one. A timestamp beyond it is no measure of the time that
/// has passed.
pub const CLOCK_SKEW_MS: i64 = 10_000;

/// A duration in milliseconds, capped at `i64::MAX`.
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The current time by the clock of this machine.
pub fn now_ms() -> i64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// The upper median of the distances between consecutive timestamps; `None` for fewer than two timestamps.
pub fn median_interval_ms(timestamps: impl IntoIterator<Item = i64>) -> Option<i64> {
    let mut timestamps = timestamps.into_iter();
    let mut previous = timestamps.next()?;
    let intervals = timestamps.map(|next| next - std::mem::replace(&mut previous, next));
    upper_median(intervals.collect())
}

/// The upper median of values in any order; `None` without values.
pub fn upper_median(mut values: Vec<i64>) -> Option<i64> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable(middle).1)
}

/// Formats a timestamp as RFC 3339 in UTC, to the millisecond: `2026-01-31T12:00:00.000Z`.
pub fn format_timestamp(timestamp_ms: i64) -> String {
    Timestamp::from_millisecond(timestamp_ms)
        .map_or_else(|_| timestamp_ms.to_string(), |time| format!("{time:.3}"))
}

/// Reads a time: RFC 3339, or seconds since 1970.
///
/// # Errors
/// A text that names what was read.
pub fn parse(text: &str) -> Result<i64, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time.as_millisecond());
    }
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..1e11).contains(seconds));
    let seconds = seconds.ok_or_else(|| {
        format!("{text:?} is no time: write it as 2026-01-31T12:00:00Z or in seconds since 1970")
    })?;
    Ok((seconds * 1000.0).round() as i64)
}

/// Formats a timestamp to the minute: `2026-01-31 12:00 UTC`.
pub fn format_minute(timestamp_ms: i64) -> String {
    let text = format_timestamp(timestamp_ms);
    format!("{} UTC", text.get(..16).unwrap_or(&text).replace('T', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_interval_of_uneven_timestamps() {
        assert_eq!(median_interval_ms([0, 15, 30, 900, 915]), Some(15));
        assert_eq!(median_interval_ms([0, 10, 30]), Some(20), "the upper one of two");
        assert_eq!(median_interval_ms([7]), None);
        assert_eq!(median_interval_ms([]), None);
    }

    #[test]
    fn times_are_rfc_3339_or_seconds() {
        for text in ["2026-01-31T12:00:00Z", "2026-01-31T13:00:00+01:00", "1769860800", "1769860800.000"] {
            assert_eq!(parse(text), Ok(1_769_860_800_000), "{text}");
        }
        for text in ["", "noon", "-1", "NaN", "1e300"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn timestamps_as_text() {
        assert_eq!(format_timestamp(1_769_860_800_000), "2026-01-31T12:00:00.000Z");
        assert_eq!(format_minute(1_769_860_800_000), "2026-01-31 12:00 UTC");
        assert_eq!(format_timestamp(i64::MAX), i64::MAX.to_string());
    }
}
