//! The incidents of a group: the picture of an open one, the table of the last week, and the forms that give feedback.

use super::group::{GroupDetail, OpenIncident};
use crate::detect::{self, IncidentFeedback};
use crate::models::registry::periods::GroupSelector;
use crate::report::backtest::IncidentEntry;
use crate::report::page::section;
use crate::report::plot::Plot;
use crate::report::scale::Scale;
use crate::report::text::{format_datetime, number};
use crate::report::time_axis::needs_log_scale;
use crate::time::format_timestamp;
use maud::{Markup, html};

/// Incidents in the table, the latest ones.
const MAX_LISTED: usize = 100;

/// The names of the two kinds of feedback.
fn feedback_text(feedback: IncidentFeedback) -> &'static str {
    match feedback {
        IncidentFeedback::Real => "real",
        IncidentFeedback::False => "false alarm",
    }
}

impl OpenIncident {
    /// The scores before and in the incident, with the threshold.
    pub fn picture(&self) -> Markup {
        // One score is no line.
        let [(first_ms, _), .., (last_ms, _)] = &self.scores[..] else { return html! {} };
        let scores: Vec<f64> = self.scores.iter().map(|(_, score)| *score).collect();
        let positive = scores.iter().copied().filter(|score| *score > 0.01).chain([self.threshold]);
        let y = match needs_log_scale(&scores) {
            true => Scale::log(positive).padded(0.1),
            false => Scale::linear(scores.iter().copied().chain([0.0, self.threshold])).padded(0.06),
        };
        let mut plot = Plot::new(Scale::linear([*first_ms as f64, *last_ms as f64]), y, 56);
        plot.shade(self.since_ms as f64, *last_ms as f64, "incident", "the incident");
        plot.rule_y(self.threshold, "limit");
        let points = self.scores.iter().map(|(timestamp_ms, score)| [*timestamp_ms as f64, *score]);
        plot.line(&[points.collect()], "curve");
        html! {
            figure.picture {
                (plot.finish("", "Score before and in the incident; the dashed line is the threshold"))
            }
        }
    }
}

impl GroupDetail {
    /// The form with the two buttons.
    pub(super) fn feedback_form(&self, start_ms: i64) -> Markup {
        html! {
            form.feedback method="post" action="../feedback" {
                input type="hidden" name="detector" value=(self.summary.detector);
                input type="hidden" name="group" value=(GroupSelector::text_of_group(&self.summary.labels, &self.by));
                input type="hidden" name="at" value=(format_timestamp(start_ms));
                button name="feedback" value="false" { "This was fine" }
                button name="feedback" value="real" { "This was real" }
            }
        }
    }

    /// The section of the last week's incidents, each with its feedback. Scores and reasons come from the window.
    pub(super) fn incident_section(&self, of_window: &[IncidentEntry], has_admin_api: bool) -> Markup {
        if self.last_week.is_empty() {
            return section("Incidents", "None in the last week.", &html! {});
        }
        let body = html! {
            div.wide {
                table.incidents {
                    thead {
                        tr { th { "from, UTC" } th { "for" } th.n { "peak score" } th { "because" } th { "feedback" } }
                    }
                    tbody {
                        @for incident in self.last_week.iter().rev().take(MAX_LISTED) {
                            (self.incident_row(incident, of_window, has_admin_api))
                        }
                    }
                }
            }
        };
        let lead = "Those of the last week, the latest first; the scores and the features that deviated most as far as the window reaches.";
        html! { div #incidents { (section("Incidents", lead, &body)) } }
    }

    fn incident_row(
        &self,
        incident: &detect::PastIncident,
        of_window: &[IncidentEntry],
        has_admin_api: bool,
    ) -> Markup {
        let detect::PastIncident { start_ms, last_ms, feedback, .. } = *incident;
        let overlapping =
            || of_window.iter().filter(move |entry| entry.from_ms <= last_ms && start_ms <= entry.to_ms);
        let peak = overlapping().map(|entry| entry.peak).fold(f64::NAN, f64::max);
        let entry = IncidentEntry {
            from_ms: start_ms,
            to_ms: last_ms,
            peak,
            is_labelled: None,
            contributions: overlapping().next().map(|entry| entry.contributions.clone()).unwrap_or_default(),
        };
        html! {
            tr {
                td { (format_datetime(start_ms / 1000 * 1000)) }
                td { (entry.length()) @if self.is_open_since(start_ms) { " so far" } }
                td.n { (number(peak)) }
                td { (entry.describe_contributions()) }
                td {
                    @if let Some((feedback, _)) = feedback { b { (feedback_text(feedback)) } }
                    @if has_admin_api { (self.feedback_form(start_ms)) }
                    @else if feedback.is_none() { span.dim { "none" } }
                }
            }
        }
    }

    fn is_open_since(&self, start_ms: i64) -> bool {
        self.summary.incident.as_ref().is_some_and(|open| open.since_ms == start_ms)
    }
}
