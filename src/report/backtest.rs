//! The page of a backtest: would it have called when it should, and let people sleep when not?

use super::page;
use super::svg::{Anchor, Plot, Scale, runs};
use super::text::{count, escape, format_datetime, number, number_within, percent};
use crate::prom::duration;
use crate::time::DAY_MS;
use std::time::Duration;

/// What the page shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backtest {
    /// The group or the file.
    pub source: String,
    /// Names and values for the head.
    pub facts: Vec<(String, String)>,
    /// Beginning of each stretch, milliseconds since the epoch, ascending; gaps stay gaps.
    pub times_ms: Vec<i64>,
    /// Length of a stretch, in milliseconds.
    pub step_ms: i64,
    /// Highest score of each stretch, 1 = the threshold; NaN where nothing was scored.
    pub score: Vec<f64>,
    /// The threshold in raw units.
    pub threshold: Vec<f64>,
    /// First and last millisecond of what is known to be anomalous.
    pub labelled: Vec<(i64, i64)>,
    /// Every incident, in the order of time.
    pub incidents: Vec<IncidentEntry>,
    /// The metrics that had most to do with them.
    pub features: Vec<FeaturePlot>,
    /// Beginning of each day, UTC, and incidents that opened in it.
    pub alerts: Vec<(i64, usize)>,
    /// Alerts a day that were asked for.
    pub budget: f64,
    /// When metrics went or came, and which.
    pub changes: Vec<(i64, String)>,
}

/// One incident.
#[derive(Clone, Debug, PartialEq)]
pub struct IncidentEntry {
    /// First millisecond.
    pub from_ms: i64,
    /// Last millisecond.
    pub to_ms: i64,
    /// Greatest score.
    pub peak: f64,
    /// Does it overlap with what is known to be anomalous?
    pub is_labelled: Option<bool>,
    /// Metric, how it was unusual, and its share in [0, 1]; the strongest first.
    pub contributions: Vec<(String, &'static str, f64)>,
}

/// One metric over the stretches.
#[derive(Clone, Debug, PartialEq)]
pub struct FeaturePlot {
    /// As people write it.
    pub name: String,
    /// Value at the highest score of each stretch.
    pub values: Vec<f64>,
    /// Least and greatest usual value at that time; NaN before a first day.
    pub expected_range: Vec<[f64; 2]>,
}

impl Backtest {
    /// The page, one HTML document. The same backtest gives the same bytes.
    pub fn html(&self) -> String {
        let body =
            [self.head(), self.over_time(), self.alerts_a_day(), self.incident_table(), self.change_table()]
                .concat();
        page::page(&format!("{} · backtest", self.source), &body)
    }

    fn head(&self) -> String {
        let mut out = format!(
            "<header>\n<p class=\"kicker\">Backtest</p>\n<h1>{}</h1>\n<p class=\"summary\">{}</p>\n",
            escape(&self.source),
            self.summary()
        );
        out += "<dl class=\"facts\">\n";
        for (name, value) in &self.facts {
            out += &format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(value));
        }
        out + "</dl>\n</header>\n"
    }

    fn summary(&self) -> String {
        let days = self.days();
        let mut out = format!(
            "{} {} in {} days, {} a day, for a budget of {} a day.",
            count(self.incidents.len()),
            if self.incidents.len() == 1 { "incident" } else { "incidents" },
            number(days),
            number(self.incidents.len() as f64 / days.max(1.0 / 24.0)),
            number(self.budget)
        );
        if !self.labelled.is_empty() {
            let is_detected = |(from, to): &&(i64, i64)| {
                self.incidents.iter().any(|incident| incident.from_ms <= *to && *from <= incident.to_ms)
            };
            out += &format!(
                " {} of {} labelled anomalies have an incident; {} incidents lie outside of them.",
                count(self.labelled.iter().filter(is_detected).count()),
                count(self.labelled.len()),
                count(self.incidents.iter().filter(|incident| incident.is_labelled == Some(false)).count())
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

    fn over_time(&self) -> String {
        let Self { times_ms, step_ms, score, threshold, .. } = self;
        let (Some(first), Some(last)) = (times_ms.first(), times_ms.last()) else {
            return page::section("Scores over time", "No row was scored.", "");
        };
        let x = Scale::linear([*first as f64, last.saturating_add(*step_ms) as f64]);
        let ticks = x.time_ticks(9);
        let base_plot = |y: Scale, height: u32| {
            let mut plot = Plot::new(x, y, height);
            for incident in &self.incidents {
                // One row has no length, and is to be seen too.
                let to_ms = incident.to_ms.max(incident.from_ms.saturating_add(*step_ms));
                plot.shade(incident.from_ms as f64, to_ms as f64, "incident", &incident.describe());
            }
            plot.columns(&ticks);
            plot
        };
        let mut axis = Plot::new(x, Scale::linear([0.0, 1.0]), 1);
        axis.rule_y(0.0, "base");
        axis.labels(&ticks);
        let axis = axis.finish("", "Time, UTC");

        let greatest = score.iter().copied().filter(|score| score.is_finite()).fold(1.0, f64::max);
        let y = if greatest > 20.0 {
            Scale::log(score.iter().copied().filter(|score| *score > 0.01).chain([1.0])).padded(0.1)
        } else {
            Scale::linear(score.iter().copied().chain([0.0, 1.0])).padded(0.05)
        };
        let mut plot = base_plot(y, 220);
        plot.rows(&y.ticks(5));
        plot.rule_y(1.0, "limit");
        plot.split("score", 1.0);
        plot.line(&runs(times_ms, *step_ms, score, |time, score| [time, *score]), "score");
        plot.note(x.high(), 1.0, 6.0, "halo", "threshold");
        let svg = plot.finish("", "Scores over time");
        let mut out = format!(
            "<figure class=\"score-plot\">\n<figcaption><span>score</span><output></output></figcaption>\n{svg}</figure>\n\
             <div class=\"axis\">{axis}<output></output></div>\n"
        );
        if !self.labelled.is_empty() {
            let mut strip = Plot::new(x, Scale::linear([0.0, 1.0]), 10);
            for (from, to) in &self.labelled {
                let to = (*to).max(from.saturating_add(*step_ms));
                strip.shade(*from as f64, to as f64, "labelled", "labelled as anomalous");
            }
            out += &strip.finish("", "What is labelled as anomalous");
        }
        for feature in &self.features {
            let ends = feature.expected_range.iter().flatten().chain(&feature.values).copied();
            let y = Scale::linear(ends).padded(0.03);
            let mut plot = base_plot(y, 90);
            plot.rule_y(y.low(), "grid");
            let range = y.high() - y.low();
            for (end, down) in [(y.low(), 90.0), (y.high(), 8.0)] {
                plot.text_at(0.0, down, Anchor::End, "end", &number_within(end, range / 5.0));
            }
            plot.line(&runs(times_ms, *step_ms, &feature.values, |time, value| [time, *value]), "value");
            let band = |time, range: &[f64; 2]| [time, range[0], range[1]];
            plot.band(&runs(times_ms, *step_ms, &feature.expected_range, band), "expected");
            out += &captioned(&feature.name, plot);
        }
        let finite: Vec<f64> = threshold.iter().copied().filter(|value| value.is_finite()).collect();
        let y = Scale::linear(finite.iter().copied().chain([0.0]));
        let mut plot = base_plot(y, 60);
        plot.rule_y(y.low(), "grid");
        for (end, down) in [(y.low(), 60.0), (y.high(), 8.0)] {
            plot.text_at(0.0, down, Anchor::End, "end", &number(end));
        }
        plot.line(&runs(times_ms, *step_ms, threshold, |time, value| [time, *value]), "curve");
        out += &captioned("threshold, in units of the raw score", plot);

        let stretch = Duration::from_millis(step_ms.unsigned_abs());
        let lead = format!(
            "{} to {} UTC. Each point is the highest score within {}; below it, the metrics that had most to do with the \
             incidents, at that moment.",
            format_datetime(*first),
            format_datetime(last.saturating_add(*step_ms)),
            duration::Display(stretch)
        );
        let labelled = match self.labelled.is_empty() {
            true => "",
            false => "<span class=\"labelled\">labelled as anomalous</span>",
        };
        let legend = format!(
            "<div class=\"legend\"><span class=\"incident\">incident</span>{labelled}\
             <span class=\"expected\">usual at that time</span></div>\n"
        );
        let (from, to) = (x.low(), x.high());
        let body =
            format!("{legend}<div class=\"timeline\" data-from=\"{from}\" data-to=\"{to}\">\n{out}</div>\n");
        page::section("Scores and what was behind them", &lead, &body)
    }

    fn alerts_a_day(&self) -> String {
        let (Some((first, _)), Some((last, _))) = (self.alerts.first(), self.alerts.last()) else {
            return String::new();
        };
        let x = Scale::linear([*first as f64, *last as f64 + DAY_MS as f64]);
        let heights: Vec<f64> = self.alerts.iter().map(|(_, alerts)| *alerts as f64).collect();
        let y = Scale::linear(heights.iter().copied().chain([0.0, self.budget, 1.0])).rounded(4);
        let mut plot = Plot::new(x, y, 120);
        plot.rows(&y.ticks(4));
        plot.labels(&x.time_ticks(9));
        plot.rule_y(self.budget, "limit");
        plot.steps(x.low(), DAY_MS as f64, &heights, "train");
        plot.note(x.high(), self.budget, 6.0, "halo", "budget");
        let n_without = heights.iter().filter(|alerts| **alerts == 0.0).count();
        let lead = format!(
            "Incidents by the day they opened; {} of {} days had none ({}).",
            count(n_without),
            count(heights.len()),
            percent(n_without as f64 / heights.len() as f64)
        );
        let svg = plot.finish("", "Incidents a day");
        page::section("Alerts a day", &lead, &format!("<figure>\n{svg}</figure>\n"))
    }

    fn incident_table(&self) -> String {
        if self.incidents.is_empty() {
            return page::section("Incidents", "None.", "");
        }
        let mut rows = String::new();
        for incident in &self.incidents {
            let labelled = match incident.is_labelled {
                None => "",
                Some(true) => "yes",
                Some(false) => "<span class=\"dim\">no</span>",
            };
            rows += &format!(
                "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td>{}</td><td>{labelled}</td></tr>\n",
                format_datetime(incident.from_ms),
                incident.length(),
                number(incident.peak),
                escape(&incident.describe_contributions())
            );
        }
        let body = format!(
            "<div class=\"wide\">\n<table>\n<thead><tr><th>from, UTC</th><th>for</th><th class=\"n\">peak score</th>\
             <th>because</th><th>{}</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n",
            if self.labelled.is_empty() { "" } else { "labelled" }
        );
        page::section("Incidents", "Each with the metrics that deviated most at its peak.", &body)
    }

    fn change_table(&self) -> String {
        if self.changes.is_empty() {
            return String::new();
        }
        let row = |(timestamp_ms, what): &(i64, String)| {
            format!("<tr><td>{}</td><td>{}</td></tr>\n", format_datetime(*timestamp_ms), escape(what))
        };
        let rows: String = self.changes.iter().map(row).collect();
        let body = format!(
            "<div class=\"wide\">\n<table>\n<thead><tr><th>from, UTC</th><th>metrics</th></tr></thead>\n\
             <tbody>\n{rows}</tbody>\n</table>\n</div>\n"
        );
        page::section(
            "Metrics that went or came",
            "The model was learned anew without them, or with them.",
            &body,
        )
    }
}

impl IncidentEntry {
    fn length(&self) -> String {
        match self.to_ms.saturating_sub(self.from_ms) {
            0 => "one row".into(),
            length_ms => duration::Display(Duration::from_millis(length_ms.unsigned_abs())).to_string(),
        }
    }

    fn describe_contributions(&self) -> String {
        let describe = |(feature, reason, _): &(String, &str, f64)| format!("{feature} {reason}");
        self.contributions.iter().map(describe).collect::<Vec<_>>().join(", ")
    }

    fn describe(&self) -> String {
        format!(
            "{}, {}, score {}: {}",
            format_datetime(self.from_ms),
            self.length(),
            number(self.peak),
            self.describe_contributions()
        )
    }
}

fn captioned(name: &str, plot: Plot) -> String {
    let svg = plot.finish("", name);
    let name = escape(name);
    format!(
        "<figure>\n<figcaption><span class=\"name\" title=\"{name}\">{name}</span><output></output></figcaption>\n{svg}</figure>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backtest() -> Backtest {
        let times_ms: Vec<i64> = (0..100).map(|i| i * 600_000).collect();
        let values: Vec<f64> = (0..100).map(|i| if i == 50 { f64::NAN } else { f64::from(i % 10) }).collect();
        Backtest {
            source: "a <group>".into(),
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
            changes: vec![(7_200_000, "went: a & b".into())],
            times_ms,
        }
    }

    #[test]
    fn shows_and_escapes_every_part() {
        let html = backtest().html();
        for text in [
            "a &lt;group&gt;",
            "1 of 1 labelled anomalies have an incident",
            "rx &amp; tx jumped",
            "one row",
            "class=\"incident\"",
            "usual at that time",
            "1 incident in",
            "went: a &amp; b",
        ] {
            assert!(html.contains(text), "{text}");
        }
        assert!(!html.contains("NaN") && !html.contains("<group>"));
        assert_eq!(html, backtest().html());
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
