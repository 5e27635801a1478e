//! Plots as SVG.
//!
//! A plot fills the width of the page and has a fixed height. Data is drawn on a grid of [`GRID_WIDTH`] x
//! [`GRID_HEIGHT`] integers that is stretched over the plot, without its strokes. Text and dots are placed in per cent of
//! the width and keep their size: in an image that is scaled as a whole, text is too small to read on a narrow screen.
//! Integers relative to the previous point keep 1500 points below 10 kB.
//!
//! Colours come from the style sheet, by class. Values that are not finite are not drawn.

use super::scale::{Scale, Tick};
use maud::{Markup, PreEscaped, Render};

/// Columns of the grid under a plot.
pub const GRID_WIDTH: f64 = 10_000.0;
/// Rows of the grid under a plot.
pub const GRID_HEIGHT: f64 = 1_000.0;

/// The part of a text that is at its position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Anchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

impl Anchor {
    /// The anchor that keeps a text at this share of the width within the plot.
    pub fn within(share: f64) -> Self {
        match share {
            ..0.12 => Self::Start,
            0.88.. => Self::End,
            _ => Self::Middle,
        }
    }
}

/// A plot in progress. Its layers, from the bottom: shades and rules, data, dots and text; within a layer later marks
/// cover earlier ones.
#[derive(Clone, Debug)]
pub struct Plot {
    x: Scale,
    y: Scale,
    height: f64,
    below: String,
    data: String,
    above: String,
}

impl Plot {
    /// An empty plot, `height` pixels high.
    pub fn new(x: Scale, y: Scale, height: u32) -> Self {
        let height = f64::from(height);
        Self { x, y, height, below: String::new(), data: String::new(), above: String::new() }
    }

    /// Per cent of the width, from the left.
    fn percent(&self, x: f64) -> Option<String> {
        self.x.position(x).map(|share| format_short(100.0 * share))
    }

    /// Pixels from the top.
    fn pixel(&self, y: f64) -> Option<String> {
        self.y.position(y).map(|share| format_short((1.0 - share) * self.height))
    }

    /// Horizontal rules with labels to the left.
    pub fn rows(&mut self, ticks: &[Tick]) {
        for tick in ticks {
            self.rule_y(tick.value, "grid");
            if let Some(y) = self.pixel(tick.value) {
                self.above += &format!(r#"<text class="y" x="-8" y="{y}" dy=".35em">{}</text>"#, tick.label);
            }
        }
    }

    /// Vertical rules.
    pub fn columns(&mut self, ticks: &[Tick]) {
        for tick in ticks {
            self.rule_x(tick.value, "grid");
        }
    }

    /// Labels under the plot.
    pub fn labels(&mut self, ticks: &[Tick]) {
        for tick in ticks {
            let Some(share) = self.x.position(tick.value) else { continue };
            // Half of a label may extend into the margin.
            let class = if tick.is_optional { "x spare" } else { "x" };
            self.text_at(share, self.height + 18.0, Anchor::Middle, class, &tick.label);
        }
    }

    /// A horizontal rule.
    pub fn rule_y(&mut self, y: f64, class: &str) {
        if let Some(y) = self.pixel(y) {
            self.below += &format!(r#"<line class="{class}" x2="100%" y1="{y}" y2="{y}"/>"#);
        }
    }

    /// A vertical rule.
    pub fn rule_x(&mut self, x: f64, class: &str) {
        if let Some(x) = self.percent(x) {
            self.below += &format!(r#"<line class="{class}" x1="{x}%" x2="{x}%" y2="{}"/>"#, self.height);
        }
    }

    /// A shaded range of the x axis, with a visible minimum width.
    pub fn shade(&mut self, from: f64, to: f64, class: &str, title: &str) {
        let (Some(left), Some(right)) = (self.x.position(from), self.x.position(to)) else { return };
        let (left, width) = (format_short(100.0 * left), format_short((100.0 * (right - left)).max(0.15)));
        self.below += &format!(
            r#"<rect class="{class}" x="{left}%" width="{width}%" height="{}"><title>{}</title></rect>"#,
            self.height,
            escape(title)
        );
    }

    /// A line through points `[x, y]`, interrupted between runs.
    pub fn line(&mut self, runs: &[Vec<[f64; 2]>], class: &str) {
        let mut path = PathBuilder::default();
        for run in runs {
            path.begin();
            for [x, y] in run {
                path.to(self.grid(*x, *y));
            }
        }
        self.path(&path.d, class);
    }

    /// A gradient for the stroke `url(#id)` of a line: class `unusual` above the value `y`, `usual` below.
    pub fn split(&mut self, id: &str, y: f64) {
        if let Some(share) = self.y.position(y) {
            let at = format!("{:.4}", 1.0 - share);
            self.data += &format!(
                "<linearGradient id=\"{id}\" gradientUnits=\"userSpaceOnUse\" x1=\"0\" x2=\"0\" y1=\"0\" \
                 y2=\"{GRID_HEIGHT}\"><stop class=\"unusual\" offset=\"{at}\"/><stop class=\"usual\" offset=\"{at}\"/>\
                 </linearGradient>"
            );
        }
    }

    /// The area between minimum and maximum, of points `[x, minimum, maximum]`.
    pub fn band(&mut self, runs: &[Vec<[f64; 3]>], class: &str) {
        let mut path = PathBuilder::default();
        for run in runs {
            path.begin();
            for [x, _, greatest] in run {
                path.to(self.grid(*x, *greatest));
            }
            for [x, least, _] in run.iter().rev() {
                path.to(self.grid(*x, *least));
            }
            path.close();
        }
        self.path(&path.d, class);
    }

    /// The outline of bins of equal width that begin at `from`, down to the x axis at both ends.
    pub fn steps(&mut self, from: f64, width: f64, heights: &[f64], class: &str) {
        let mut path = PathBuilder::default();
        path.begin();
        path.to(self.grid(from, self.y.low()));
        for (i, height) in heights.iter().enumerate() {
            let height = if height.is_finite() { *height } else { self.y.low() };
            path.to(self.grid(from + i as f64 * width, height));
            path.to(self.grid(from + (i + 1) as f64 * width, height));
        }
        path.to(self.grid(from + heights.len() as f64 * width, self.y.low()));
        self.path(&path.d, class);
    }

    fn grid(&self, x: f64, y: f64) -> Option<[i64; 2]> {
        let (x, y) = (self.x.position(x)?, self.y.position(y)?);
        Some([(GRID_WIDTH * x).round() as i64, (GRID_HEIGHT * (1.0 - y)).round() as i64])
    }

    fn path(&mut self, d: &str, class: &str) {
        if !d.is_empty() {
            self.data += &format!(r#"<path class="{class}" d="{d}"/>"#);
        }
    }

    /// A dot with a radius in pixels and a tooltip.
    pub fn dot(&mut self, x: f64, y: f64, radius: f64, class: &str, title: &str) {
        if let (Some(x), Some(y)) = (self.percent(x), self.pixel(y)) {
            let title = escape(title);
            self.above += &format!(
                r#"<circle class="{class}" cx="{x}%" cy="{y}" r="{radius}"><title>{title}</title></circle>"#
            );
        }
    }

    /// A text `up` pixels above a point of the plot.
    pub fn note(&mut self, x: f64, y: f64, up: f64, class: &str, text: &str) {
        if let (Some(x), Some(y)) = (self.x.position(x), self.y.position(y)) {
            self.text_at(x, (1.0 - y) * self.height - up, Anchor::within(x), class, text);
        }
    }

    /// A text at a share of the width, `y` pixels from the top.
    pub fn text_at(&mut self, share: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (x, y, text) = (format_short(100.0 * share), format_short(y), escape(text));
        self.above +=
            &format!(r#"<text class="{class}" x="{x}%" y="{y}" text-anchor="{anchor}">{text}</text>"#);
    }

    /// The finished plot; `label` is its text for screen readers. The y scale is in data attributes, for the script that
    /// shows values.
    pub fn finish(self, class: &str, label: &str) -> Markup {
        let Self { y, height, below, data, above, .. } = self;
        let log = if y.is_log() { " data-log=\"1\"" } else { "" };
        let svg = format!(
            "<svg class=\"plot {class}\" height=\"{height}\" role=\"img\" aria-label=\"{}\" \
             data-low=\"{:e}\" data-high=\"{:e}\"{log}>{below}\
             <svg class=\"data\" viewBox=\"0 0 {GRID_WIDTH} {GRID_HEIGHT}\" preserveAspectRatio=\"none\" \
             width=\"100%\" height=\"100%\">{data}</svg>{above}</svg>\n",
            escape(label),
            y.low(),
            y.high(),
        );
        PreEscaped(svg)
    }
}

/// The text, escaped for an element or a quoted attribute.
fn escape(text: &str) -> String {
    text.render().into_string()
}

/// The commands of a path on the grid: the first point of a run, then steps from point to point.
#[derive(Default)]
struct PathBuilder {
    d: String,
    at: Option<[i64; 2]>,
}

impl PathBuilder {
    fn begin(&mut self) {
        self.at = None;
    }

    /// Adds a point; `None` ends the run.
    fn to(&mut self, point: Option<[i64; 2]>) {
        match (self.at, point) {
            (None, Some([x, y])) => self.d += &format!("M{x} {y}"),
            (Some([from_x, from_y]), Some([x, y])) => self.d += &format!("l{} {}", x - from_x, y - from_y),
            (_, None) => {}
        }
        self.at = point;
    }

    fn close(&mut self) {
        if self.at.is_some() {
            self.d.push('z');
        }
    }
}

/// Two decimals at most.
fn format_short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// Runs of consecutive stretches with finite points. The last point of a run is repeated at the end of its stretch, so
/// that a run of one point has a length.
pub fn runs<T, const N: usize>(
    times_ms: &[i64],
    step_ms: i64,
    values: &[T],
    point: impl Fn(f64, &T) -> [f64; N],
) -> Vec<Vec<[f64; N]>> {
    let mut runs: Vec<Vec<[f64; N]>> = Vec::new();
    let mut end_ms = None;
    let end = |run: Option<&mut Vec<[f64; N]>>, end_ms: Option<i64>| {
        if let (Some(run), Some(end_ms)) = (run, end_ms) {
            let last = run.last().copied();
            run.extend(last.map(|mut point| {
                point[0] = end_ms as f64;
                point
            }));
        }
    };
    for (time_ms, value) in times_ms.iter().zip(values) {
        let point = point(*time_ms as f64, value);
        let finite = point.iter().all(|value| value.is_finite());
        // Half a step of tolerance: rows are not aligned to stretches.
        let follows = end_ms.is_some_and(|end_ms: i64| time_ms.saturating_sub(end_ms) <= step_ms / 2);
        if !finite || !follows {
            end(runs.last_mut(), end_ms.take());
        }
        if finite {
            match runs.last_mut() {
                Some(run) if follows => run.push(point),
                _ => runs.push(vec![point]),
            }
            end_ms = Some(time_ms.saturating_add(step_ms));
        }
    }
    end(runs.last_mut(), end_ms);
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_drawn_in_whole_steps_and_broken_at_values_that_are_not_finite() {
        let mut plot = Plot::new(Scale::linear([0.0, 1.0]), Scale::linear([0.0, 1.0]), 10);
        plot.line(&[vec![[0.0, 0.0], [0.5, 1.0], [0.6, f64::NAN], [0.75, 0.5], [1.0, 0.25]]], "l");
        plot.band(&[vec![[0.0, 0.0, 1.0], [1.0, 0.5, 0.5]]], "b");
        let svg = plot.finish("", "label").into_string();
        assert!(svg.contains(r#"<path class="l" d="M0 1000l5000 -1000M7500 500l2500 250"/>"#), "{svg}");
        assert!(svg.contains(r#"<path class="b" d="M0 0l10000 500l0 0l-10000 500z"/>"#), "{svg}");
    }
}
