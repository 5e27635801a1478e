//! The report of a backtest: scores, incidents, and their agreement with labels.

use super::page;
use super::plot::Plot;
use super::scale::Scale;
use super::text::{count, number, number_within, percent, plural};
use super::time_axis::{ShadedRange, TimeAxis, named_figure, needs_log_scale};
use super::zone::Zone;
use crate::prom::duration;
use crate::time::DAY_MS;
use maud::{Markup, html};
use std::time::Duration;

/// The content of the report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backtest {
    /// Name of the group or the file.
    pub source: String,
    /// The zone of all times.
    pub zone: Zone,
    /// Names and values in the head.
    pub facts: Vec<(String, String)>,
    /// Beginning of each stretch in milliseconds since the epoch, ascending, with gaps.
    pub times_ms: Vec<i64>,
    /// Length of a stretch in milliseconds.
    pub step_ms: i64,
    /// Highest score of each stretch; NaN for a stretch without a score.
    pub score: Vec<f64>,
    /// Score at which an incident opens, at the highest score of each stretch.
    pub threshold: Vec<f64>,
    /// First and last millisecond of each labelled anomaly.
    pub labelled: Vec<(i64, i64)>,
    /// All incidents, ascending.
    pub incidents: Vec<IncidentEntry>,
    /// The features with the largest contributions.
    pub features: Vec<FeaturePlot>,
    /// Beginning of each day of the zone, see [`Zone::local_ms`], and the number of incidents that began on it.
    pub alerts: Vec<(i64, usize)>,
    /// Budget in alerts per day.
    pub budget: f64,
    /// Time and text of each change of the features.
    pub changes: Vec<(i64, String)>,
}

/// One incident.
#[derive(Clone, Debug, PartialEq)]
pub struct IncidentEntry {
    /// First millisecond.
    pub from_ms: i64,
    /// Last millisecond.
    pub to_ms: i64,
    /// Highest score.
    pub peak: f64,
    /// True if it overlaps with a labelled anomaly; `None` without labels.
    pub is_labelled: Option<bool>,
    /// Feature, reason, and share of the deviation in [0, 1], in descending order.
    pub contributions: Vec<(String, &'static str, f64)>,
}

/// One feature over the stretches.
#[derive(Clone, Debug, PartialEq)]
pub struct FeaturePlot {
    /// Its expression.
    pub name: String,
    /// Value at the highest score of each stretch.
    pub values: Vec<f64>,
    /// Lower and upper bound of the expected range at that time; NaN before a first day.
    pub expected_range: Vec<[f64; 2]>,
}

impl Backtest {
    /// The report as one HTML document. Equal content gives equal bytes.
    pub fn html(&self) -> String {
        let body = html! {
            (self.head())
            (self.over_time())
            (self.alerts_per_day())
            (self.incident_table("Each with the metrics that deviated most at the peak."))
            (self.change_table())
        };
        page::page(&format!("{} · backtest", self.source), &body)
    }

    fn head(&self) -> Markup {
        html! {
            header {
                p.kicker { "Backtest" }
                h1 { (self.source) }
                p.summary { (self.summary()) }
                (page::facts(&self.facts))
            }
        }
    }

    fn summary(&self) -> String {
        let days = self.days();
        let mut out = format!(
            "{} in {}, {} per day, for a budget of {} per day.",
            plural(self.incidents.len(), "incident"),
            if number(days) == "1" { "1 day".into() } else { format!("{} days", number(days)) },
            number(self.incidents.len() as f64 / days.max(1.0 / 24.0)),
            number(self.budget)
        );
        if !self.labelled.is_empty() {
            let is_detected = |(from, to): &&(i64, i64)| {
                self.incidents.iter().any(|incident| incident.from_ms <= *to && *from <= incident.to_ms)
            };
            let n_detected = self.labelled.iter().filter(is_detected).count();
            let is_outside = |incident: &&IncidentEntry| incident.is_labelled == Some(false);
            let n_outside = self.incidents.iter().filter(is_outside).count();
            out += &format!(
                " Labelled anomalies with an incident: {} of {}; incidents outside of them: {}.",
                count(n_detected),
                count(self.labelled.len()),
                count(n_outside)
            );
        }
        out
    }

    fn days(&self) -> f64 {
        match (self.times_ms.first(), self.times_ms.last()) {
            (Some(first), Some(last)) => (last.saturating_add(self.step_ms) - first) as f64 / DAY_MS as f64,
            _ => 0.0,
        }
    }

    /// The section of the scores and features over time.
    pub fn over_time(&self) -> Markup {
        let Self { times_ms, step_ms, score, threshold, .. } = self;
        let shaded = self.incidents.iter().map(|incident| {
            // As its last point does, an incident lasts to the end of its stretch.
            let to_ms = incident.to_ms.saturating_add(*step_ms) as f64;
            ShadedRange {
                from_ms: incident.from_ms as f64,
                to_ms,
                class: "incident",
                title: incident.describe(&self.zone),
            }
        });
        let Some(axis) = TimeAxis::new(times_ms, *step_ms, &self.zone, shaded.collect()) else {
            return page::section("Scores over time", "No row was scored.", &html! {});
        };
        let y = if needs_log_scale(score) {
            Scale::log(score.iter().copied().filter(|score| *score > 0.01).chain([1.0])).padded(0.1)
        } else {
            Scale::linear(score.iter().copied().chain([0.0, 1.0])).padded(0.05)
        };
        let mut plot = axis.score_plot(score, y);
        plot.note(axis.scale().high(), 1.0, 6.0, "halo", "threshold");
        let lead = format!(
            "{}; below it, the metrics with the largest contributions to the incidents, at that moment.",
            axis.describe()
        );
        let plots = html! {
            (axis.score_figure(plot))
            (self.label_strip(axis.scale()))
            @for feature in &self.features { (feature.figure(&axis)) }
            (threshold_figure(&axis, threshold))
        };
        axis.section("Scores and contributions", &lead, &self.legend(), &plots)
    }

    fn legend(&self) -> Markup {
        html! {
            div.legend {
                span.incident { "incident" }
                @if !self.labelled.is_empty() { span.labelled { "labelled as anomalous" } }
                span.expected { "usual at that time" }
            }
        }
    }

    /// A strip below the scores that marks the labelled anomalies.
    fn label_strip(&self, x: Scale) -> Markup {
        if self.labelled.is_empty() {
            return html! {};
        }
        let mut strip = Plot::new(x, Scale::linear([0.0, 1.0]), 10);
        for (from_ms, to_ms) in &self.labelled {
            let to_ms = (*to_ms).max(from_ms.saturating_add(self.step_ms));
            strip.shade(*from_ms as f64, to_ms as f64, "labelled", "labelled as anomalous");
        }
        strip.finish("", "Labelled anomalies")
    }

    fn alerts_per_day(&self) -> Markup {
        let (Some((first, _)), Some((last, _))) = (self.alerts.first(), self.alerts.last()) else {
            return html! {};
        };
        let x = Scale::linear([*first as f64, *last as f64 + DAY_MS as f64]);
        let heights: Vec<f64> = self.alerts.iter().map(|(_, alerts)| *alerts as f64).collect();
        let y = Scale::linear(heights.iter().copied().chain([0.0, self.budget, 1.0])).rounded(4);
        let mut plot = Plot::new(x, y, 120);
        plot.rows(&y.ticks(4));
        // The values are local already.
        plot.labels(&x.time_ticks(9, &Zone::default()));
        plot.rule_y(self.budget, "limit");
        plot.steps(x.low(), DAY_MS as f64, &heights, "train");
        plot.note(x.high(), self.budget, 6.0, "halo", "budget");
        let n_without = heights.iter().filter(|alerts| **alerts == 0.0).count();
        let lead = format!(
            "Incidents by the day of their beginning. Days without one: {} of {} ({}).",
            count(n_without),
            count(heights.len()),
            percent(n_without as f64 / heights.len() as f64)
        );
        let figure = html! { figure { (plot.finish("", "Incidents per day")) } };
        page::section("Alerts per day", lead, &figure)
    }

    /// The section of the incidents.
    fn incident_table(&self, lead: &str) -> Markup {
        if self.incidents.is_empty() {
            return page::section("Incidents", "None.", &html! {});
        }
        let body = html! {
            div.wide {
                table {
                    thead {
                        tr {
                            th { "from, " (self.zone.name()) }
                            th { "for" }
                            th.n { "peak score" }
                            th { "because" }
                            th { @if !self.labelled.is_empty() { "labelled" } }
                        }
                    }
                    tbody { @for incident in &self.incidents { (incident.row(&self.zone)) } }
                }
            }
        };
        page::section("Incidents", lead, &body)
    }

    fn change_table(&self) -> Markup {
        if self.changes.is_empty() {
            return html! {};
        }
        let body = html! {
            div.wide {
                table {
                    thead { tr { th { "from, " (self.zone.name()) } th { "metrics" } } }
                    tbody {
                        @for (timestamp_ms, change) in &self.changes {
                            tr { td { (self.zone.format_datetime(*timestamp_ms)) } td { (change) } }
                        }
                    }
                }
            }
        };
        page::section(
            "Features added or removed",
            "A new model was fitted to the remaining and the new features.",
            &body,
        )
    }
}

/// The plot of the score at which an incident opens.
fn threshold_figure(axis: &TimeAxis<'_>, threshold: &[f64]) -> Markup {
    let finite = threshold.iter().copied().filter(|value| value.is_finite());
    let mut plot = axis.plot_with_ends(Scale::linear(finite.chain([0.0])), 60, number);
    axis.line(&mut plot, threshold, "curve");
    named_figure("score at which an incident opens", plot)
}

impl IncidentEntry {
    /// The row of the table of incidents.
    fn row(&self, zone: &Zone) -> Markup {
        html! {
            tr {
                td { (zone.format_datetime(self.from_ms)) }
                td { (self.length()) }
                td.n { (number(self.peak)) }
                td { (self.describe_contributions()) }
                td {
                    @match self.is_labelled {
                        None => {}
                        Some(true) => { "yes" }
                        Some(false) => { span.dim { "no" } }
                    }
                }
            }
        }
    }

    /// The time from the first to the last row.
    pub fn length(&self) -> String {
        match self.to_ms.saturating_sub(self.from_ms) {
            0 => "one row".into(),
            length_ms => {
                let length = Duration::from_millis(length_ms.unsigned_abs());
                // Scrapes are milliseconds off their interval.
                let rounded = if length < Duration::from_secs(1) { length } else { round_to_second(length) };
                duration::Display(rounded).to_string()
            }
        }
    }

    /// The features with the kinds of their deviations.
    pub fn describe_contributions(&self) -> String {
        let describe = |(feature, reason, _): &(String, &str, f64)| format!("{feature} {reason}");
        self.contributions.iter().map(describe).collect::<Vec<_>>().join(", ")
    }

    fn describe(&self, zone: &Zone) -> String {
        format!(
            "{}, {}, score {}: {}",
            zone.format_datetime(self.from_ms),
            self.length(),
            number(self.peak),
            self.describe_contributions()
        )
    }
}

fn round_to_second(length: Duration) -> Duration {
    Duration::from_secs(length.saturating_add(Duration::from_millis(500)).as_secs())
}

impl FeaturePlot {
    fn figure(&self, axis: &TimeAxis<'_>) -> Markup {
        let ends = self.expected_range.iter().flatten().chain(&self.values).copied();
        let mut y = Scale::linear(ends).padded(0.03);
        if !self.values.iter().any(|value| *value < 0.0) {
            // The expected range has the same width on both sides, also of a rate near 0.
            y = y.beginning_at(0.0);
        }
        let range = y.high() - y.low();
        let mut plot = axis.plot_with_ends(y, 90, |end| number_within(end, range / 5.0));
        axis.line(&mut plot, &self.values, "value");
        axis.band(&mut plot, &self.expected_range, "expected");
        named_figure(&self.name, plot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backtest() -> Backtest {
        let times_ms: Vec<i64> = (0..100).map(|i| i * 600_000).collect();
        let values: Vec<f64> = (0..100).map(|i| if i == 50 { f64::NAN } else { f64::from(i % 10) }).collect();
        Backtest {
            source: "a <group>".into(),
            zone: Zone::default(),
            facts: vec![("rows".into(), "100".into())],
            step_ms: 600_000,
            score: values.iter().map(|value| value / 5.0).collect(),
            threshold: vec![1.5; 100],
            labelled: vec![(6_000_000, 7_000_000)],
            incidents: vec![IncidentEntry {
                from_ms: 6_000_000,
                to_ms: 6_000_000,
                peak: 1.8,
                is_labelled: Some(true),
                contributions: vec![("rx & tx".into(), "jumped", 0.9)],
            }],
            features: vec![FeaturePlot {
                name: "rx & tx".into(),
                expected_range: vec![[1.0, 3.0]; 100],
                values,
            }],
            alerts: vec![(0, 1)],
            budget: 1.0,
            changes: vec![(7_200_000, "removed: a & b".into())],
            times_ms,
        }
    }

    #[test]
    fn shows_and_escapes_every_part() {
        let html = backtest().html();
        for text in [
            "a &lt;group&gt;",
            "Labelled anomalies with an incident: 1 of 1",
            "rx &amp; tx jumped",
            "one row",
            "class=\"incident\"",
            "usual at that time",
            "1 incident in",
            "removed: a &amp; b",
        ] {
            assert!(html.contains(text), "{text}");
        }
        assert!(!html.contains("NaN") && !html.contains("<group>"));
        assert_eq!(html, backtest().html());
    }

    #[test]
    fn times_are_those_of_the_zone() {
        let zone = Zone::parse("Asia/Kolkata").expect("a zone");
        let html = Backtest { zone, ..backtest() }.html();
        // 01:40 UTC.
        for text in [
            "1 Jan 1970 07:10",
            "from, Asia/Kolkata",
            "Time, Asia/Kolkata",
            "05:30 to 1 Jan 1970 22:10, Asia",
        ] {
            assert!(html.contains(text), "{text}");
        }
        assert!(!html.contains("UTC"));
        assert!(backtest().html().contains("1 Jan 1970 01:40") && backtest().html().contains("from, UTC"));
    }

    #[test]
    fn the_length_of_an_incident_is_in_seconds() {
        let [incident] = &backtest().incidents[..] else { panic!("one incident") };
        let length = |length_ms: i64| {
            IncidentEntry { to_ms: incident.from_ms + length_ms, ..incident.clone() }.length()
        };
        assert_eq!([0, 250, 1_860_008, 89_990].map(length), ["one row", "250ms", "31m", "1m30s"]);
    }

    #[test]
    fn an_empty_backtest_gives_a_page() {
        let html = Backtest { source: "nothing".into(), ..Backtest::default() }.html();
        assert!(html.contains("No row was scored.") && html.contains("None."));
        assert!(!html.contains("NaN") && !html.contains("inf"));
        let unscored = Backtest { score: vec![f64::NAN; 100], threshold: vec![f64::NAN; 100], ..backtest() };
        assert!(!unscored.html().contains("NaN"));
    }
}
