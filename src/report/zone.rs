//! The time zone of a report.

use super::text;
use crate::time::DAY_MS;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::env;

/// A time zone with its name in the IANA database.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone {
    name: String,
    time_zone: TimeZone,
}

/// A name that no time zone has.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("TZ is {0:?}, must be a time zone of the IANA database, such as Europe/Berlin")]
pub struct UnknownZone(String);

impl Default for Zone {
    fn default() -> Self {
        Self { name: "UTC".into(), time_zone: TimeZone::UTC }
    }
}

impl Zone {
    /// The zone that the environment variable `TZ` names; UTC if it is unset or empty.
    ///
    /// # Errors
    /// [`UnknownZone`].
    pub fn from_environment() -> Result<Self, UnknownZone> {
        env::var_os("TZ").map_or_else(|| Ok(Self::default()), |name| Self::parse(&name.to_string_lossy()))
    }

    /// The zone of this name, which may begin with a colon; UTC for an empty one. The database of the system is read if
    /// there is one, and otherwise that of the program.
    ///
    /// # Errors
    /// [`UnknownZone`].
    pub fn parse(text: &str) -> Result<Self, UnknownZone> {
        let name = text.strip_prefix(':').unwrap_or(text);
        if name.is_empty() {
            return Ok(Self::default());
        }
        let time_zone = TimeZone::get(name).map_err(|_| UnknownZone(text.into()))?;
        Ok(Self { name: time_zone.iana_name().unwrap_or(name).into(), time_zone })
    }

    /// `Europe/Berlin`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The milliseconds since the epoch at which a clock in UTC shows what a clock of the zone shows at `time_ms`.
    pub fn local_ms(&self, time_ms: i64) -> i64 {
        time_ms.saturating_add(self.offset_ms(time_ms))
    }

    /// The time at which a clock of the zone shows `local_ms`: the earlier one of two, and the one after a gap if there is
    /// none.
    pub fn from_local_ms(&self, local_ms: i64) -> i64 {
        let before = self.offset_ms(local_ms.saturating_sub(DAY_MS));
        let time_ms = local_ms.saturating_sub(before);
        match self.local_ms(time_ms) == local_ms {
            true => time_ms,
            false => local_ms.saturating_sub(self.offset_ms(time_ms)).max(time_ms),
        }
    }

    fn offset_ms(&self, time_ms: i64) -> i64 {
        // Beyond the calendar of years from -9999 to 9999 there is no zone.
        let time = Timestamp::from_millisecond(time_ms);
        time.map_or(0, |time| i64::from(self.time_zone.to_offset(time).seconds()) * 1000)
    }

    /// `12 Nov 2026 06:00`, as clocks of the zone show it.
    pub fn format_datetime(&self, time_ms: i64) -> String {
        text::format_datetime(self.local_ms(time_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::HOUR_MS;

    /// 25 October 2026, 00:00 UTC: summer time ends in Berlin at 01:00 UTC.
    const END_OF_SUMMER_MS: i64 = 1_792_886_400_000;

    fn zone(name: &str) -> Zone {
        Zone::parse(name).expect("a zone")
    }

    #[test]
    fn a_zone_is_named_as_in_the_database() {
        for (text, name) in [
            ("", "UTC"),
            ("UTC", "UTC"),
            ("Europe/Berlin", "Europe/Berlin"),
            (":Asia/Kolkata", "Asia/Kolkata"),
        ] {
            assert_eq!(zone(text).name(), name);
        }
        for unknown in ["Europe/Berlni", "CET-1CEST", ":/etc/localtime", "\u{fffd}"] {
            let error = Zone::parse(unknown).expect_err("no zone");
            assert_eq!(
                error.to_string(),
                format!("TZ is {unknown:?}, must be a time zone of the IANA database, such as Europe/Berlin")
            );
        }
    }

    #[test]
    fn times_follow_the_clocks_of_the_zone() {
        let berlin = zone("Europe/Berlin");
        for (hour, text) in [
            (0, "25 Oct 2026 02:00"),
            (1, "25 Oct 2026 02:00"),
            (2, "25 Oct 2026 03:00"),
            (23, "26 Oct 2026 00:00"),
        ] {
            assert_eq!(berlin.format_datetime(END_OF_SUMMER_MS + hour * HOUR_MS), text);
        }
        assert_eq!(zone("Asia/Kolkata").format_datetime(0), "1 Jan 1970 05:30");
        for time_ms in [i64::MIN, i64::MAX] {
            berlin.format_datetime(time_ms);
            berlin.from_local_ms(time_ms);
        }
    }

    #[test]
    fn a_local_time_that_is_missing_or_twice_has_one_time() {
        let berlin = zone("Europe/Berlin");
        let ambiguous_ms = END_OF_SUMMER_MS + 2 * HOUR_MS;
        assert_eq!(berlin.from_local_ms(ambiguous_ms), END_OF_SUMMER_MS, "the earlier one");
        // 29 March 2026, 02:30 in Berlin: clocks go from 02:00 to 03:00.
        let begin_of_summer_ms = 1_774_746_000_000;
        let missing_ms = begin_of_summer_ms + HOUR_MS + HOUR_MS / 2;
        assert_eq!(berlin.from_local_ms(missing_ms), begin_of_summer_ms + HOUR_MS / 2);
        for time_ms in [0, END_OF_SUMMER_MS + 5 * HOUR_MS, begin_of_summer_ms - HOUR_MS] {
            assert_eq!(berlin.from_local_ms(berlin.local_ms(time_ms)), time_ms);
        }
    }
}
