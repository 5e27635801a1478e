//! The plots of a report that share one time axis, and the sheet that holds them.
//!
//! Both reports show scores and features over time. The axis, its ticks, the shaded ranges and the reading of values
//! under the pointer (`page.js`) belong to all plots of the sheet, so they stand here once.

use super::page;
use super::plot::{Anchor, Plot, runs};
use super::scale::{Scale, Tick};
use super::zone::Zone;
use crate::prom::duration;
use maud::{Markup, html};
use std::time::Duration;

/// Pixels from the top to the label of the upper end of an axis.
const UPPER_LABEL: f64 = 8.0;
/// Ratio of the highest score to the threshold above which the axis of scores is logarithmic.
const MAX_LINEAR_SCORE: f64 = 20.0;

/// A range of time that is shaded in every plot.
pub struct ShadedRange {
    pub from_ms: f64,
    pub to_ms: f64,
    /// CSS class.
    pub class: &'static str,
    pub title: String,
}

/// A time axis over stretches of equal length.
pub struct TimeAxis<'a> {
    times_ms: &'a [i64],
    step_ms: i64,
    zone: &'a Zone,
    x: Scale,
    ticks: Vec<Tick>,
    shaded: Vec<ShadedRange>,
}

impl<'a> TimeAxis<'a> {
    /// An axis in this zone over stretches that begin at ascending times; `None` without one.
    pub fn new(times_ms: &'a [i64], step_ms: i64, zone: &'a Zone, shaded: Vec<ShadedRange>) -> Option<Self> {
        let (first, last) = (times_ms.first()?, times_ms.last()?);
        let x = Scale::linear([*first as f64, last.saturating_add(step_ms) as f64]);
        Some(Self { times_ms, step_ms, zone, x, ticks: x.time_ticks(9, zone), shaded })
    }

    /// The scale of the axis.
    pub fn scale(&self) -> Scale {
        self.x
    }

    /// The axis itself, with the place for the time under the pointer.
    fn html(&self) -> Markup {
        html! { div.axis { (self.ruler()) output {} } }
    }

    /// The axis once more, below many plots.
    pub fn repeated(&self) -> Markup {
        html! { div.axis.last { (self.ruler()) } }
    }

    fn ruler(&self) -> Markup {
        let mut axis = Plot::new(self.x, Scale::linear([0.0, 1.0]), 1);
        axis.rule_y(0.0, "base");
        axis.labels(&self.ticks);
        axis.finish("", &format!("Time, {}", self.zone.name()))
    }

    /// A plot with the shaded ranges and the vertical rules of the ticks.
    pub fn plot(&self, y: Scale, height: u32) -> Plot {
        let mut plot = Plot::new(self.x, y, height);
        for range in &self.shaded {
            plot.shade(range.from_ms, range.to_ms, range.class, &range.title);
        }
        plot.columns(&self.ticks);
        plot
    }

    /// A plot of that kind whose y axis has labels at its two ends.
    pub fn plot_with_ends(&self, y: Scale, height: u32, label: impl Fn(f64) -> String) -> Plot {
        let mut plot = self.plot(y, height);
        plot.rule_y(y.low(), "grid");
        for (end, down) in [(y.low(), f64::from(height)), (y.high(), UPPER_LABEL)] {
            plot.text_at(0.0, down, Anchor::End, "end", &label(end));
        }
        plot
    }

    /// The plot of scores: ticks, the threshold of 1, and the line.
    pub fn score_plot(&self, score: &[f64], y: Scale) -> Plot {
        let mut plot = self.plot(y, 220);
        plot.rows(&y.ticks(5));
        plot.rule_y(1.0, "limit");
        plot.split("score", 1.0);
        self.line(&mut plot, score, "score");
        plot
    }

    /// A score plot with the axis below.
    pub fn score_figure(&self, plot: Plot) -> Markup {
        html! {
            figure.score-plot {
                figcaption { span { "score" } output {} }
                (plot.finish("", "Scores over time"))
            }
            (self.html())
        }
    }

    /// Draws one value per stretch.
    pub fn line(&self, plot: &mut Plot, values: &[f64], class: &str) {
        plot.line(&runs(self.times_ms, self.step_ms, values, |time, value| [time, *value]), class);
    }

    /// Draws one range per stretch.
    pub fn band<T: Copy + Into<f64>>(&self, plot: &mut Plot, ranges: &[[T; 2]], class: &str) {
        let point = |time, range: &[T; 2]| [time, range[0].into(), range[1].into()];
        plot.band(&runs(self.times_ms, self.step_ms, ranges, point), class);
    }

    /// The first sentences of a lead: the range of time and the length of a stretch, without a full stop.
    pub fn describe(&self) -> String {
        let stretch = Duration::from_millis(self.step_ms.unsigned_abs());
        let (first, last) = (self.times_ms.first(), self.times_ms.last());
        format!(
            "{} to {}, {}. Each point is the highest score within {}",
            self.zone.format_datetime(first.copied().unwrap_or_default()),
            self.zone.format_datetime(last.copied().unwrap_or_default().saturating_add(self.step_ms)),
            self.zone.name(),
            duration::Display(stretch)
        )
    }

    /// A section of the page with the plots in `body`.
    pub fn section(&self, heading: &str, lead: &str, legend: &Markup, body: &Markup) -> Markup {
        let sheet = html! {
            (legend)
            div.timeline data-from=(self.x.low()) data-to=(self.x.high()) { (body) }
        };
        page::section(heading, lead, &sheet)
    }
}

/// True if the highest score is too far above the threshold for a linear axis.
pub fn needs_log_scale(score: &[f64]) -> bool {
    score.iter().any(|score| score.is_finite() && *score > MAX_LINEAR_SCORE)
}

/// A plot with its name above.
pub fn named_figure(name: &str, plot: Plot) -> Markup {
    html! {
        figure {
            figcaption { span.name title=(name) { (name) } output {} }
            (plot.finish("", name))
        }
    }
}
