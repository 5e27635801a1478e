//! Axes of plots: positions of values, and round ticks.

use super::text::{self, Date};
use super::zone::Zone;
use crate::time::DAY_MS;

/// An axis: maps values to positions. Both ends are finite and distinct.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    kind: ScaleKind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum ScaleKind {
    Linear,
    Log,
}

/// A labelled value on an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Its value.
    pub value: f64,
    /// Its label.
    pub label: String,
    /// True if a narrow page may omit the label.
    pub is_optional: bool,
}

impl Scale {
    /// A linear axis over all finite values, also over equal values or none.
    pub fn linear(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = extent(values).unwrap_or((0.0, 1.0));
        // The difference of the ends stays finite.
        let (low, high) = (low.clamp(-1e300, 1e300), high.clamp(-1e300, 1e300));
        // Ends closer than this leave no distinct values between them.
        let least = 1e-9 * low.abs().max(high.abs());
        if high - low > least {
            return Self { low, high, kind: ScaleKind::Linear };
        }
        if low == 0.0 {
            return Self { low, high: 1.0, kind: ScaleKind::Linear };
        }
        let room = 0.1 * low.abs();
        Self { low: low - room, high: high + room, kind: ScaleKind::Linear }
    }

    /// A logarithmic axis over all finite values above 0, with a ratio of at least two.
    pub fn log(values: impl IntoIterator<Item = f64>) -> Self {
        let positive = values.into_iter().filter(|value| *value > 0.0);
        let (low, high) = extent(positive).unwrap_or((1.0, 10.0));
        let (low, high) = (low.clamp(1e-100, 1e100), high.clamp(1e-100, 1e100));
        let room = if high < 2.0 * low { 1.5 } else { 1.0 };
        Self { low: low / room, high: high * room, kind: ScaleKind::Log }
    }

    /// Extends the axis by a share of its length at either end.
    pub fn padded(self, share: f64) -> Self {
        match self.kind {
            ScaleKind::Linear => {
                let room = share * (self.high - self.low);
                Self { low: self.low - room, high: self.high + room, ..self }
            }
            ScaleKind::Log => {
                let room = (self.high / self.low).powf(share);
                Self { low: self.low / room, high: self.high * room, ..self }
            }
        }
    }

    /// Begins an axis at `low` if it begins below and ends above.
    pub fn beginning_at(self, low: f64) -> Self {
        if self.high > low { Self { low: self.low.max(low), ..self } } else { self }
    }

    /// Extends a linear axis to round values, of which it has about `n`.
    pub fn rounded(self, n: usize) -> Self {
        match self.kind {
            ScaleKind::Linear => {
                let step = round_step(self.high - self.low, n);
                let (low, high) = ((self.low / step).floor() * step, (self.high / step).ceil() * step);
                Self { low, high, ..self }
            }
            ScaleKind::Log => self,
        }
    }

    /// The lower end.
    pub fn low(&self) -> f64 {
        self.low
    }

    /// The upper end.
    pub fn high(&self) -> f64 {
        self.high
    }

    /// True for a logarithmic axis.
    pub fn is_log(&self) -> bool {
        self.kind == ScaleKind::Log
    }

    /// The position of a value: 0 is the lower end, 1 the upper end; values beyond are at the ends. `None` for a value
    /// that is not finite.
    pub fn position(&self, value: f64) -> Option<f64> {
        let share = match self.kind {
            ScaleKind::Linear => (value - self.low) / (self.high - self.low),
            ScaleKind::Log if value <= 0.0 => 0.0,
            ScaleKind::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        value.is_finite().then(|| share.clamp(0.0, 1.0))
    }

    /// About `n` round values along the axis, ascending.
    pub fn ticks(&self, n: usize) -> Vec<Tick> {
        match self.kind {
            ScaleKind::Linear => self.linear_ticks(n),
            ScaleKind::Log => self.log_ticks(n),
        }
    }

    fn linear_ticks(&self, n: usize) -> Vec<Tick> {
        let step = round_step(self.high - self.low, n);
        let first = (self.low / step - 1e-6).ceil();
        let places = (0..=2 * n).map(|i| (first + i as f64) * step);
        let label = |value: f64| {
            // A sum of steps is rarely exactly 0.
            let value = if value.abs() < 1e-6 * step { 0.0 } else { value };
            Tick { value, label: text::number_within(value, step), is_optional: false }
        };
        places.take_while(|at| *at <= self.high + 1e-6 * step).map(label).collect()
    }

    fn log_ticks(&self, n: usize) -> Vec<Tick> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let decades = (self.high / self.low).log10();
        // 1, 2, 5 in each decade as long as they fit, then every decade, then every few.
        let (within, every): (&[f64], usize) = if 3.0 * decades <= n as f64 + 2.0 {
            (&[1.0, 2.0, 5.0], 1)
        } else {
            (&[1.0], (decades / n as f64).ceil() as usize)
        };
        let places = (first..=last)
            .step_by(every)
            .flat_map(|decade| within.iter().map(move |digit| (digit * 10f64.powi(decade), *digit > 1.0)));
        places
            .filter(|(at, _)| *at >= 0.999 * self.low && *at <= 1.001 * self.high)
            .map(|(value, is_optional)| Tick { value, label: text::number(value), is_optional })
            .collect()
    }

    /// At most `n` calendar times of the zone on an axis of milliseconds since the epoch. A label is the part that changes
    /// at its tick: time of day, day, month or year.
    pub fn time_ticks(&self, n: usize, zone: &Zone) -> Vec<Tick> {
        const STEPS_MS: [i64; 15] = [
            1_000,
            5_000,
            15_000,
            60_000,
            300_000,
            900_000,
            1_800_000,
            3_600_000,
            10_800_000,
            21_600_000,
            43_200_000,
            DAY_MS,
            2 * DAY_MS,
            7 * DAY_MS,
            14 * DAY_MS,
        ];
        // `as` saturates, so no time is out of range.
        let (first_ms, last_ms) = (self.low.ceil() as i64, self.high.floor() as i64);
        let (from, to) = (zone.local_ms(first_ms), zone.local_ms(last_ms));
        let length = to.saturating_sub(from).max(1);
        let times: Vec<i64> = match STEPS_MS.into_iter().find(|step| length / step < n as i64) {
            Some(step) => {
                // The epoch was a Thursday: weeks begin on Mondays.
                let phase = if step >= 7 * DAY_MS { 4 * DAY_MS } else { 0 };
                let first = (from - phase).div_euclid(step).saturating_mul(step).saturating_add(phase);
                (0..=n as i64 + 1).map(|i| first.saturating_add(i * step)).collect()
            }
            None => {
                let month = |time_ms| {
                    let date = Date::from_ms(time_ms);
                    12 * date.year + date.month
                };
                let months = (month(to) - month(from)) / n as i64 + 1;
                let step =
                    [1, 3, 6, 12, 24, 60, 120].into_iter().find(|step| *step >= months).unwrap_or(months);
                let first = month(from).div_euclid(step) * step;
                (0..=n as i64 + 1).map(|i| Date::month_ms(first + i * step)).collect()
            }
        };
        let within = times.into_iter().filter(|time_ms| (from..=to).contains(time_ms)).take(n);
        let mut before = None;
        within
            .enumerate()
            .map(|(i, time_ms)| {
                let date = Date::from_ms(time_ms);
                let label = if time_ms.rem_euclid(DAY_MS) != 0 {
                    text::format_time(time_ms)
                } else if date.day == 1 && date.month == 0 && before.is_some() {
                    date.year.to_string()
                } else if length > 100 * DAY_MS {
                    date.month_name().to_string()
                } else {
                    format!("{} {}", date.day, date.month_name())
                };
                before = Some(date);
                let value = zone.from_local_ms(time_ms).clamp(first_ms, last_ms) as f64;
                Tick { value, label, is_optional: i % 2 == 1 }
            })
            .collect()
    }
}

/// Minimum and maximum of the finite values.
fn extent(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.into_iter().filter(|value| value.is_finite());
    finite.fold(None, |ends, value| match ends {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

/// 1, 2 or 5 times a power of ten, about an `n`-th of the length.
fn round_step(length: f64, n: usize) -> f64 {
    let rough = length / n.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().find(|digit| digit * power >= 0.75 * rough).unwrap_or(10.0);
    step * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: Vec<Tick>) -> Vec<String> {
        ticks.into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn ticks_are_round_and_none_is_repeated() {
        let linear = |low, high| labels(Scale::linear([low, high]).ticks(5));
        assert_eq!(linear(0.0, 1.0), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(linear(-0.13, 0.17), ["−0.1", "−0.05", "0", "0.05", "0.1", "0.15"]);
        assert_eq!(linear(0.0, 47_000.0), ["0", "10k", "20k", "30k", "40k"]);
        assert_eq!(linear(8.001e9, 8.0031e9), ["8.001G", "8.0015G", "8.002G", "8.0025G", "8.003G"]);
        for (low, high) in [(3.0, 3.0), (0.0, 0.0), (-1e300, 1e300), (1e-300, 2e-300), (1e9, 1e9 + 1.5)] {
            let mut labels = linear(low, high);
            let n = labels.len();
            labels.dedup();
            assert!((2..=10).contains(&n) && labels.len() == n, "{low} to {high}: {labels:?}");
        }
        let log = |low, high| labels(Scale::log([low, high]).ticks(12));
        assert_eq!(log(8.0, 1024.0), ["10", "20", "50", "100", "200", "500", "1k"]);
        assert_eq!(log(1.0, 1e6), ["1", "10", "100", "1k", "10k", "100k", "1M"]);
        assert!((2..=13).contains(&log(1e-90, 1e90).len()));
    }

    #[test]
    fn time_ticks_follow_the_calendar() {
        let in_zone = |from: i64, to: i64, zone: &str| {
            let zone = Zone::parse(zone).expect("a zone");
            Scale::linear([from as f64, to as f64]).time_ticks(9, &zone)
        };
        let ticks = |from: i64, to: i64| labels(in_zone(from, to, "UTC"));
        let monday = 1_794_787_200_000;
        assert_eq!(ticks(monday, monday + 3_600_000).first().map(String::as_str), Some("16 Nov"));
        assert_eq!(ticks(monday + 1, monday + 3_600_000), ["00:15", "00:30", "00:45", "01:00"]);
        assert_eq!(ticks(monday, monday + DAY_MS)[..3], ["16 Nov", "03:00", "06:00"]);
        assert_eq!(ticks(monday, monday + 5 * DAY_MS).len(), 6);
        assert_eq!(ticks(monday + 1, monday + 30 * DAY_MS), ["23 Nov", "30 Nov", "7 Dec", "14 Dec"]);
        assert_eq!(ticks(monday, monday + 200 * DAY_MS), ["Dec", "2027", "Feb", "Mar", "Apr", "May", "Jun"]);
        let in_berlin = in_zone(monday, monday + DAY_MS, "Europe/Berlin");
        assert_eq!(
            in_berlin[0].value,
            (monday + 2 * 3_600_000) as f64,
            "03:00 is a quarter of eight of the day"
        );
        assert_eq!(labels(in_berlin)[..3], ["03:00", "06:00", "09:00"]);
        for (from, to) in [(0, 1), (i64::MIN, i64::MAX), (0, i64::MAX / 1000), (i64::MAX - 5, i64::MAX)] {
            assert!(ticks(from, to).len() <= 9);
        }
    }

    #[test]
    fn an_axis_of_values_that_are_not_negative_begins_at_0() {
        let ends = |values: [f64; 2]| {
            let scale = Scale::linear(values).padded(0.1).beginning_at(0.0);
            (scale.low(), scale.high())
        };
        assert_eq!(ends([-50.0, 100.0]), (0.0, 115.0));
        assert_eq!(ends([50.0, 150.0]), (40.0, 160.0));
        assert_eq!(ends([-20.0, -10.0]), (-21.0, -9.0));
    }

    #[test]
    fn a_position_on_a_scale_is_within_it_or_none() {
        let scales = [
            Scale::linear([]),
            Scale::linear([f64::NAN, 5.0]),
            Scale::linear([f64::MIN, f64::MAX]).padded(0.1).rounded(5),
            Scale::log([]),
            Scale::log([0.0, -1.0, 7.0]),
            Scale::log([f64::MIN_POSITIVE, f64::MAX]).padded(0.1),
        ];
        for scale in scales {
            assert!(scale.low() < scale.high() && scale.high().is_finite(), "{scale:?}");
            for value in [0.0, -3.0, 1e-310, f64::MAX, f64::MIN] {
                assert!(
                    scale.position(value).is_some_and(|share| (0.0..=1.0).contains(&share)),
                    "{value} on {scale:?}"
                );
            }
            assert_eq!([f64::NAN, f64::INFINITY].map(|value| scale.position(value)), [None, None]);
        }
    }
}
