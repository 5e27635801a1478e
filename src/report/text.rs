//! Numbers, times and text for display.

use crate::time::DAY_MS;

/// The text, cut to `n_chars` with an ellipsis.
pub fn shorten(text: &str, n_chars: usize) -> String {
    match text.char_indices().nth(n_chars) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_string(),
    }
}

/// A number to three digits, with the SI prefixes k to T: `12.3k`, `0.0214`, `−5`.
pub fn number(value: f64) -> String {
    number_within(value, f64::INFINITY)
}

/// A number to three digits, or to as many as distinguish values within `range`.
pub fn number_within(value: f64, range: f64) -> String {
    const PREFIXES: [(f64, &str); 4] = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let size = value.abs();
    if value.is_nan() {
        return "–".into();
    }
    let sign = if value < 0.0 { "−" } else { "" };
    if size.is_infinite() {
        return format!("{sign}∞");
    }
    if size == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e15).contains(&size) {
        return format!("{sign}{size:.2e}");
    }
    // 999.6 becomes 1k, not 1000.
    let (unit, prefix) = *PREFIXES.iter().find(|(unit, _)| size >= 0.9995 * unit).unwrap_or(&(1.0, ""));
    let scaled = size / unit;
    let digits_below = |size: f64| (-size.log10().floor()).clamp(-12.0, 12.0) as i32;
    let mut decimals = 2 + digits_below(scaled);
    if range > 0.0 && range.is_finite() {
        decimals = decimals.max(1 + digits_below(range / unit));
    }
    let text = format!("{scaled:.*}", decimals.clamp(0, 12) as usize);
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{sign}{text}{prefix}")
}

/// A divergence to four decimals, so that a column of them is aligned.
pub fn nats(value: f64) -> String {
    if value.abs() < 1000.0 { format!("{value:.4}").replace('-', "−") } else { number(value) }
}

/// A share of a whole: `1.25 %`.
pub fn percent(share: f64) -> String {
    format!("{}\u{202f}%", number(100.0 * share))
}

/// A count with thin spaces between thousands: `28 800`.
pub fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// `1 incident`, `2 incidents`.
pub fn plural(n: usize, word: &str) -> String {
    format!("{} {word}{}", count(n), plural_ending(n))
}

/// The same without spaces between thousands, for text that programs may read.
pub fn plain_plural(n: usize, word: &str) -> String {
    format!("{n} {word}{}", plural_ending(n))
}

fn plural_ending(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A day of the calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Date {
    /// Year of the Gregorian calendar.
    pub year: i64,
    /// From 0, January.
    pub month: i64,
    /// From 1.
    pub day: i64,
}

impl Date {
    /// The day that holds this millisecond since the epoch.
    pub fn from_ms(time_ms: i64) -> Self {
        // Years from March to February put the leap day last; 400 of them are 146,097 days.
        let days = time_ms.div_euclid(DAY_MS) + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = (from_march + 2) % 12;
        let year = 400 * era + year_of_era + i64::from(month < 2);
        Self { year, month, day: day_of_year - (153 * from_march + 2) / 5 + 1 }
    }

    /// The first millisecond of the month that is `month` months after January of year 0.
    pub fn month_ms(month: i64) -> i64 {
        let (year, month) = (month.div_euclid(12), month.rem_euclid(12));
        let (year, from_march) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + (153 * from_march + 2) / 5;
        (146_097 * era + day_of_era - 719_468).saturating_mul(DAY_MS)
    }

    /// `Nov`.
    pub fn month_name(&self) -> &'static str {
        MONTHS[self.month.rem_euclid(12) as usize]
    }
}

/// `06:00`, or `06:00:15` where the seconds are not 0.
pub fn format_time(time_ms: i64) -> String {
    let seconds = time_ms.div_euclid(1000).rem_euclid(86_400);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if seconds == 0 {
        format!("{hours:02}:{minutes:02}")
    } else {
        format!("{hours:02}:{minutes:02}:{seconds:02}")
    }
}

/// `12 Nov 2026 06:00`, UTC.
pub fn format_datetime(time_ms: i64) -> String {
    let date = Date::from_ms(time_ms);
    format!("{} {} {} {}", date.day, date.month_name(), date.year, format_time(time_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_distinguish_values() {
        let cases = [
            (0.0, "0"),
            (-5.0, "−5"),
            (0.021_44, "0.0214"),
            (999.4, "999"),
            (999.6, "1k"),
            (12_345.0, "12.3k"),
            (8.0e9, "8G"),
            (1.0e-7, "1.00e-7"),
            (3.4e38, "3.40e38"),
            (f64::NAN, "–"),
            (f64::NEG_INFINITY, "−∞"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(number_within(8_012_345_678.0, 7e6), "8.0123G");
        assert_eq!(number_within(0.0, 0.0), "0");
        assert_eq!([count(0), count(999), count(28_800)], ["0", "999", "28\u{202f}800"]);
        assert_eq!([nats(0.02), nats(f64::INFINITY), nats(-0.5)], ["0.0200", "∞", "−0.5000"]);
        assert_eq!(percent(0.0125), "1.25\u{202f}%");
    }

    #[test]
    fn one_thing_is_singular() {
        assert_eq!(
            [0, 1, 2, 1200].map(|n| plural(n, "row")),
            ["0 rows", "1 row", "2 rows", "1\u{202f}200 rows"]
        );
        assert_eq!([1, 1200].map(|n| plain_plural(n, "row")), ["1 row", "1200 rows"]);
    }

    #[test]
    fn dates_follow_the_leap_years() {
        let cases = [
            (0, "1 Jan 1970 00:00"),
            (-1000, "31 Dec 1969 23:59:59"),
            (951_782_400_000, "29 Feb 2000 00:00"),
            (951_868_800_000, "1 Mar 2000 00:00"),
            (1_735_689_599_000, "31 Dec 2024 23:59:59"),
            (1_795_046_400_000, "19 Nov 2026 00:00"),
        ];
        for (time_ms, text) in cases {
            assert_eq!(format_datetime(time_ms), text);
        }
        for time_ms in [i64::MIN, i64::MAX] {
            format_datetime(time_ms);
        }
        for month in (1890 * 12)..(2110 * 12) {
            let date = Date::from_ms(Date::month_ms(month));
            assert_eq!((12 * date.year + date.month, date.day), (month, 1));
        }
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(shorten("größer als", 4), "größ…");
        assert_eq!(shorten("kurz", 4), "kurz");
    }
}
