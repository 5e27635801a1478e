//! The page `/`: open incidents, the fleet, alerts against the budget, and the data path.

use super::data_path::DataPath;
use super::fleet::{Fleet, FleetPage, FleetQuery};
use super::frame::Frame;
use super::grafana;
use super::group::{BEFORE_MS, DeviatingFeature, GroupSummary, OpenIncident, Scoring};
use super::ribbon::ribbon;
use super::server::Sidecar;
use super::words::{format_age, format_band, format_latency};
use crate::detect::max_incidents_per_day;
use crate::http::{Url, percent_encode};
use crate::report::page::section;
use crate::report::scale::Scale;
use crate::report::text::{count, format_datetime, number, percent, plural, shorten};
use maud::{Markup, html};
use std::collections::BTreeMap;

/// Incidents on the page.
const MAX_INCIDENTS: usize = 50;

/// Groups up to which a cell shows the name of its group.
const MAX_NAMED_CELLS: usize = 60;

/// Characters of labels and of a reason that are shown for one of many groups.
const MAX_TEXT_CHARS: usize = 300;

/// Groups that are listed for one reason.
const MAX_LISTED_PER_REASON: usize = 12;

/// The content of the page.
pub struct Overview<'a> {
    /// The groups.
    pub fleet: &'a Fleet,
    /// Facts about the sidecar.
    pub sidecar: &'a Sidecar,
    /// Samples and rows since the start.
    pub data_path: &'a DataPath,
    /// The search and the page of the fleet.
    pub query: &'a FleetQuery,
    /// A dashboard of one group.
    pub grafana_url: Option<&'a Url>,
    /// The current time.
    pub now_ms: i64,
}

impl Overview<'_> {
    /// The document.
    pub fn html(&self) -> String {
        let body = html! {
            (self.head())
            (self.incidents())
            (ribbon(self.fleet, self.now_ms))
            (self.fleet_section())
            (self.alerts())
            (self.data_path.section())
        };
        let title = self.headline();
        Frame { title: &title, root: "", is_refreshed: true }.document(&body)
    }

    fn headline(&self) -> String {
        match self.fleet.incidents().len() {
            0 if self.fleet.groups().is_empty() => "No samples yet".into(),
            0 if self.fleet.n_scored() == 0 => "No group is scored yet".into(),
            0 => "No open incident".into(),
            n => plural(n, "open incident"),
        }
    }

    fn head(&self) -> Markup {
        let newest = self.fleet.newest_scored_ms();
        html! {
            header {
                h1 { (self.headline()) }
                p.state {
                    span { b { (count(self.fleet.n_scored())) } " of " (plural(self.fleet.groups().len(), "group")) " scored" }
                    @if let Some(shard) = &self.sidecar.shard { span { "shard " b { (shard) } " of the targets" } }
                    @if let Some(newest_ms) = newest {
                        span { "newest score " b { (format_age(self.now_ms - newest_ms)) } " old" }
                    }
                    @if let Some(seconds) = self.sidecar.p99_seconds {
                        span { "acknowledged within " b { (format_latency(seconds)) } " (p99)" }
                    }
                    span { "models in " code { (self.sidecar.registry) } }
                    @for endpoint in &self.sidecar.endpoints { span { "scores to " code { (endpoint) } } }
                }
                @if !self.sidecar.is_ready {
                    ul.readiness { @for line in &self.sidecar.readiness { li { (line) } } }
                }
            }
        }
    }

    fn incidents(&self) -> Markup {
        let open = self.fleet.incidents();
        if open.is_empty() {
            return html! {};
        }
        let body = html! {
            @for (group, incident) in open.iter().take(MAX_INCIDENTS) { (self.incident(group, incident)) }
            @if open.len() > MAX_INCIDENTS {
                p { "And " (count(open.len() - MAX_INCIDENTS)) " more: " a href="api/v1/incidents" { "all as JSON" } "." }
            }
        };
        section("Open incidents", "By score; each with the features that deviate most.", &body)
    }

    fn incident(&self, group: &GroupSummary, incident: &OpenIncident) -> Markup {
        let (name, rest) = group.short_name();
        html! {
            article.incident-card {
                div.incident-head {
                    div {
                        h3 { a href=(group.path()) { (name) } " " small { (rest) " · " (group.detector) } }
                        p.dim {
                            "since " (format_datetime(incident.since_ms / 1000 * 1000)) " UTC ("
                            (format_age(self.now_ms - incident.since_ms)) "), score "
                            b { (number(incident.score)) } ", peak " (number(incident.peak)) ", threshold " (number(incident.threshold))
                            @if incident.feedback.is_some() { ", said to be real" }
                            @if let Some(url) = self.grafana_url {
                                " · " a href=(grafana::link(url, group, incident.since_ms - BEFORE_MS, "now")) { "In Grafana" }
                            }
                        }
                    }
                    (incident.picture())
                }
                (deviating_features(&incident.features))
            }
        }
    }

    fn fleet_section(&self) -> Markup {
        let page = self.fleet.page(self.query);
        let body = html! {
            form.search method="get" action="./" role="search" {
                input type="search" name="q" value=(self.query.search) placeholder="detector or label" aria-label="Search groups";
                button type="submit" { "Search" }
                @if !self.query.search.is_empty() { a href="./" { "all groups" } }
                span.dim { (plural(page.n_groups, "group")) }
            }
            (legend())
            @if page.groups.is_empty() {
                p { "No group." }
            } @else {
                div.cells.named[page.groups.len() <= MAX_NAMED_CELLS] {
                    @for group in &page.groups { (cell(group)) }
                }
            }
            (self.page_links(&page))
            (not_scored(&page))
        };
        section(
            "Fleet",
            "A cell for each group: its highest score of the last five minutes, in thresholds.",
            &body,
        )
    }

    fn page_links(&self, page: &FleetPage<'_>) -> Markup {
        let link = |number: usize| format!("?q={}&page={number}", percent_encode(&self.query.search));
        html! {
            @if page.n_pages > 1 {
                p.pages {
                    @if page.page > 1 { a rel="prev" href=(link(page.page - 1)) { "previous" } " " }
                    "page " (page.page) " of " (page.n_pages)
                    @if page.page < page.n_pages { " " a rel="next" href=(link(page.page + 1)) { "next" } }
                }
            }
        }
    }

    fn alerts(&self) -> Markup {
        let mut detectors: BTreeMap<&str, Vec<&GroupSummary>> = BTreeMap::new();
        for group in self.fleet.groups() {
            detectors.entry(&group.detector).or_default().push(group);
        }
        if detectors.is_empty() {
            return html! {};
        }
        let body = html! {
            div.wide {
                table {
                    thead {
                        tr {
                            th { "detector" }
                            th.n { "groups" }
                            th.n { "last 24 h" }
                            th.n { "a day, last week" }
                            th.n { "budget a day" }
                            th { "used" }
                        }
                    }
                    tbody { @for (detector, groups) in &detectors { (alert_row(detector, groups)) } }
                }
            }
        };
        section(
            "Alerts against the budget",
            "Incidents of all groups of a detector. The budget is a ceiling of the average; what only lasts may add a fourth.",
            &body,
        )
    }
}

fn alert_row(detector: &str, groups: &[&GroupSummary]) -> Markup {
    let observed: f64 = groups.iter().map(|group| group.incidents_per_day).sum();
    let budget: f64 = groups.iter().map(|group| group.budget).sum();
    let most = max_incidents_per_day(budget);
    let last_day: usize = groups.iter().map(|group| group.last_day.len()).sum();
    html! {
        tr {
            td.name.detector { (detector) }
            td.n { (count(groups.len())) }
            td.n { (count(last_day)) }
            td.n { (number(observed)) }
            td.n { (number(budget)) }
            td {
                meter min="0" max=(most) value=(observed.min(most)) { (percent(observed / budget)) }
                " " (percent(observed / budget))
            }
        }
    }
}

/// The table of the features of an incident, with their values inside or outside of their bands.
pub fn deviating_features(features: &[DeviatingFeature]) -> Markup {
    html! {
        div.wide {
            table.deviating {
                thead {
                    tr { th { "feature" } th.n { "value" } th { "usual" } th.bar {} th { "reason" } th.n { "share" } }
                }
                tbody {
                    @for feature in features {
                        tr {
                            td.name { (feature.name) }
                            td.n { b { (number(feature.value)) } }
                            td.usual { (format_band(feature.expected_range)) }
                            td.bar { (band_bar(feature)) }
                            td { (feature.reason.phrase()) }
                            td.n { (percent(feature.share)) }
                        }
                    }
                }
            }
        }
    }
}

/// A line with the band, and the value as a dot.
fn band_bar(feature: &DeviatingFeature) -> Markup {
    let [lower, _, upper] = feature.expected_range;
    if !lower.is_finite() || !upper.is_finite() || !feature.value.is_finite() {
        return html! {};
    }
    let scale = Scale::linear([lower, upper, feature.value]).padded(0.06);
    let place = |value| 100.0 * scale.position(value).unwrap_or(0.0);
    let (left, right) = (place(lower), place(upper));
    let is_outside = !(lower..=upper).contains(&feature.value);
    html! {
        svg.band-bar width="120" height="14" aria-hidden="true" {
            rect.rail width="100%" y="6" height="2" {}
            rect.expected x={ (format!("{left:.1}")) "%" } width={ (format!("{:.1}", (right - left).max(1.0))) "%" } y="2" height="10" {}
            circle.out[is_outside] cx={ (format!("{:.1}", place(feature.value))) "%" } cy="7" r="4" {}
        }
    }
}

fn legend() -> Markup {
    html! {
        div.legend.levels {
            @for (level, text) in LEVELS { span class=(level) { (text) } }
            span.unscored { "not scored" }
            span.maintenance { "in maintenance: no incident opens" }
        }
    }
}

/// Classes of cells, with the scores in thresholds that they stand for.
const LEVELS: [(&str, &str); 4] =
    [("low", "below 0.5"), ("middle", "0.5 to 0.8"), ("high", "0.8 to 1"), ("above", "1 and more")];

fn level(worst: f64, threshold: f64) -> &'static str {
    match worst / threshold {
        ratio if ratio >= 1.0 => "above",
        ratio if ratio >= 0.8 => "high",
        ratio if ratio >= 0.5 => "middle",
        _ => "low",
    }
}

fn cell(group: &GroupSummary) -> Markup {
    let (name, rest) = group.short_name();
    let (class, value, described) = match &group.scoring {
        Scoring::Scored { worst, threshold } => {
            (level(*worst, *threshold), number(*worst), format!("highest score {}", number(*worst)))
        }
        Scoring::NotScored(reason) => ("unscored", reason.phrase(), format!("not scored: {reason}")),
    };
    let [value, described] = [value, described].map(|text| shorten(&text, MAX_TEXT_CHARS));
    let maintenance = if group.is_in_maintenance { ", in maintenance" } else { "" };
    let labels = shorten(&group.labels.to_string(), MAX_TEXT_CHARS);
    let title = format!("{} {labels}: {described}{maintenance}", group.detector);
    html! {
        a.cell.(class).open[group.incident.is_some()].maintenance[group.is_in_maintenance] href=(group.path()) title=(title) aria-label=(title) {
            span.target { (name) }
            span.rest { (rest) @if group.is_in_maintenance { " in maintenance" } }
            span.worst { (value) }
        }
    }
}

/// The groups of the page that are not scored, by reason.
fn not_scored(page: &FleetPage<'_>) -> Markup {
    let mut reasons: BTreeMap<&str, Vec<(&GroupSummary, String)>> = BTreeMap::new();
    for group in &page.groups {
        if let Scoring::NotScored(reason) = &group.scoring {
            reasons
                .entry(reason.as_str())
                .or_default()
                .push((group, shorten(&reason.to_string(), MAX_TEXT_CHARS)));
        }
    }
    html! {
        @if !reasons.is_empty() {
            h3.not-scored { "Not scored" }
            div.wide {
                table {
                    tbody {
                        @for (group, reason) in reasons.values().flat_map(|groups| groups.iter().take(MAX_LISTED_PER_REASON)) {
                            tr { td { a href=(group.path()) { (group.short_name().0) } " " small.dim { (group.detector) } } td { (reason) } }
                        }
                        @for groups in reasons.values().filter(|groups| groups.len() > MAX_LISTED_PER_REASON) {
                            tr { td.dim { (count(groups.len() - MAX_LISTED_PER_REASON)) " more" } td.dim { "like " (groups[0].0.short_name().0) } }
                        }
                    }
                }
            }
        }
    }
}
