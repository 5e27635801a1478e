//! The incidents of the fleet over the last 24 hours: their number over time, and a strip for each group that had one.

use super::fleet::Fleet;
use super::group::GroupSummary;
use super::words::format_age;
use crate::report::page::section;
use crate::report::plot::Plot;
use crate::report::scale::Scale;
use crate::report::text::{count, format_datetime, plural};
use crate::report::zone::Zone;
use crate::time::DAY_MS;
use maud::{Markup, html};

/// Groups with a strip, those that were longest in an incident.
const MAX_STRIPS: usize = 12;

/// Length of the stretches in which incidents are counted.
const STRETCH_MS: i64 = 900_000;

/// A first and a last millisecond.
type Range = (i64, i64);

/// The section of a page; nothing before the first group.
pub fn ribbon(fleet: &Fleet, now_ms: i64) -> Markup {
    let day = Range::from((now_ms - DAY_MS, now_ms));
    let mut groups: Vec<(&GroupSummary, Vec<Range>)> = fleet
        .groups()
        .iter()
        .map(|group| (group, within(&group.last_day, day)))
        .filter(|(_, incidents)| !incidents.is_empty())
        .collect();
    let n_incidents: usize = groups.iter().map(|(_, incidents)| incidents.len()).sum();
    if n_incidents == 0 {
        let calm = if fleet.groups().is_empty() {
            html! {}
        } else {
            section("Last 24 hours", "No incident.", &html! {})
        };
        return calm;
    }
    let length_ms =
        |incidents: &[Range]| incidents.iter().map(|(from_ms, to_ms)| to_ms - from_ms).sum::<i64>();
    groups.sort_by_key(|(_, incidents)| std::cmp::Reverse(length_ms(incidents)));
    let lead = format!(
        "{} in {}. Times are in UTC.",
        plural(n_incidents, "incident"),
        plural(groups.len(), "group")
    );
    let body = html! {
        div.ribbon {
            (total(&groups, day))
            @for (group, incidents) in groups.iter().take(MAX_STRIPS) { (strip(group, incidents, day)) }
            (axis(day))
        }
        @if groups.len() > MAX_STRIPS {
            p.dim { "And " (plural(groups.len() - MAX_STRIPS, "more group")) "." }
        }
    };
    section("Last 24 hours", lead, &body)
}

/// The parts of incidents within a range.
fn within(incidents: &[Range], (from_ms, to_ms): Range) -> Vec<Range> {
    let overlapping = incidents.iter().filter(|(first, last)| *last >= from_ms && *first <= to_ms);
    overlapping.map(|(first, last)| ((*first).max(from_ms), (*last).min(to_ms))).collect()
}

/// The number of groups in an incident over time.
fn total(groups: &[(&GroupSummary, Vec<Range>)], (from_ms, to_ms): Range) -> Markup {
    let stretches: Vec<f64> = (0..(to_ms - from_ms) / STRETCH_MS)
        .map(|stretch| {
            let begin_ms = from_ms + stretch * STRETCH_MS;
            let is_in = |(_, incidents): &&(&GroupSummary, Vec<Range>)| {
                incidents.iter().any(|(first, last)| *first < begin_ms + STRETCH_MS && *last >= begin_ms)
            };
            groups.iter().filter(is_in).count() as f64
        })
        .collect();
    let most = stretches.iter().copied().fold(1.0, f64::max);
    let mut plot = time_plot((from_ms, to_ms), Scale::linear([0.0, most]), 34);
    plot.steps(from_ms as f64, STRETCH_MS as f64, &stretches, "at-once");
    row(
        html! { "all groups" },
        html! { "at most " (count(most as usize)) " at once" },
        plot,
        "Groups in an incident",
    )
}

fn strip(group: &GroupSummary, incidents: &[Range], day: Range) -> Markup {
    let mut plot = time_plot(day, Scale::linear([0.0, 1.0]), 14);
    for (from_ms, to_ms) in incidents {
        let title =
            format!("{} UTC, {}", format_datetime(from_ms / 1000 * 1000), format_age(to_ms - from_ms));
        plot.shade(*from_ms as f64, *to_ms as f64, "past-incident", &title);
    }
    let (name, _) = group.short_name();
    let label = html! { a href=(group.path()) { (name) } };
    row(label, html! { (plural(incidents.len(), "incident")) }, plot, "Incidents of the group")
}

fn axis((from_ms, to_ms): Range) -> Markup {
    let x = Scale::linear([from_ms as f64, to_ms as f64]);
    let mut plot = Plot::new(x, Scale::linear([0.0, 1.0]), 1);
    plot.labels(&x.time_ticks(7, &Zone::default()));
    html! { span {} (plot.finish("hours", "Time, UTC")) span {} }
}

fn time_plot((from_ms, to_ms): Range, y: Scale, height: u32) -> Plot {
    let x = Scale::linear([from_ms as f64, to_ms as f64]);
    let mut plot = Plot::new(x, y, height);
    plot.columns(&x.time_ticks(7, &Zone::default()));
    plot.rule_y(y.low(), "grid");
    plot
}

fn row(name: Markup, note: Markup, plot: Plot, label: &str) -> Markup {
    html! {
        span.group-name { (name) }
        (plot.finish("", label))
        small { (note) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incidents_are_cut_to_the_day() {
        let incidents = [(0, 5), (8, 12), (15, 30), (31, 40)];
        assert_eq!(within(&incidents, (10, 20)), [(10, 12), (15, 20)]);
    }
}
