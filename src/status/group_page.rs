//! The page of a group: its score over the window, its incidents, and its models.

use super::frame::Frame;
use super::grafana;
use super::group::{GroupDetail, OpenIncident, PastIncident, Scoring, highest, highest_of_stretches};
use super::overview::deviating_features;
use super::words::format_age;
use crate::features::{Row, RowReader, Schema};
use crate::http::Url;
use crate::models::registry::periods::GroupSelector;
use crate::models::{CrossValidation, ModelInfo};
use crate::prom::{Labels, METRIC_NAME};
use crate::report::backtest::{Backtest, FeaturePlot, IncidentEntry};
use crate::report::page::{facts, section};
use crate::report::text::{count, format_datetime, number, percent};
use crate::time::{format_timestamp, median_interval_ms};
use crate::window::{ModelRole, Score};
use maud::{Markup, html};

/// Points of a plot over time.
const MAX_POINTS: usize = 720;

/// Features that are drawn.
const MAX_DRAWN: usize = 6;

/// Flags of the commands on a page; each is empty or ends with a space.
#[derive(Clone, Debug, Default)]
pub struct CommandFlags {
    /// Those that select the registry.
    pub registry: String,
    /// `--url`, unless the sidecar has the default one.
    pub url: String,
}

/// The sidecar around the page of a group.
#[derive(Clone, Debug, Default)]
pub struct PageContext {
    /// Flags of the commands.
    pub commands: CommandFlags,
    /// A dashboard of one group.
    pub grafana_url: Option<Url>,
    /// True if forms give feedback.
    pub has_admin_api: bool,
}

impl GroupDetail {
    /// The document.
    pub fn html(&self, context: &PageContext, now_ms: i64) -> String {
        let timeline = self.timeline();
        let body = html! {
            (self.head(context.grafana_url.as_ref(), now_ms))
            (self.open_incident(context))
            (timeline.over_time())
            (self.incident_section(&timeline.incidents, context.has_admin_api))
            (self.models(&context.commands.registry, now_ms))
        };
        let (name, _) = self.summary.short_name();
        Frame { title: &name, root: "../", is_refreshed: false }.document(&body)
    }

    fn head(&self, grafana_url: Option<&Url>, now_ms: i64) -> Markup {
        let (name, _) = self.summary.short_name();
        let labels = self.summary.labels.iter().filter(|(name, _)| *name != METRIC_NAME);
        let labels = labels.map(|(name, value)| (name.to_string(), value.to_string()));
        let detector = ("detector".to_string(), self.summary.detector.clone());
        html! {
            header {
                p.kicker { "Group of " (self.summary.detector) }
                h1 { (name) }
                p.summary { (self.describe(now_ms)) }
                @if let Some(url) = grafana_url {
                    p.links { a href=(grafana::link(url, &self.summary, now_ms - self.window.length_ms(), "now")) { "In Grafana" } }
                }
                (facts(&[detector].into_iter().chain(labels).collect::<Vec<_>>()))
            }
        }
    }

    fn describe(&self, now_ms: i64) -> String {
        match (&self.summary.scoring, self.summary.newest_scored_ms) {
            (Scoring::NotScored(reason), _) => format!("Not scored: {reason}."),
            (Scoring::Scored { worst, threshold }, newest_ms) => format!(
                "Scored, the newest row {} ago. The highest score of the last five minutes is {}; an incident opens at {}.",
                format_age(now_ms - newest_ms.unwrap_or(now_ms)),
                number(*worst),
                number(*threshold)
            ),
        }
    }

    fn open_incident(&self, context: &PageContext) -> Markup {
        let Some(incident) = &self.summary.incident else { return html! {} };
        let lead = format!(
            "Since {} UTC, score {}, peak {}, threshold {}.",
            format_datetime(incident.since_ms / 1000 * 1000),
            number(incident.score),
            number(incident.peak),
            number(incident.threshold)
        );
        let body = html! {
            (deviating_features(&incident.features))
            @if context.has_admin_api {
                p.then { "Fine: it ends, counts twice, and is learned. Real: it is not learned, and free of the budget." }
                (self.feedback_form(incident.since_ms))
            } @else {
                p.then { "To tell promforest what it was, start it with " code { "--web.enable-admin-api" } ", which adds two buttons here, and these commands:" }
            }
            details open[!context.has_admin_api] {
                summary { "As a command" }
                p { "It was real: not learned, and free of the budget." }
                pre.command { code { (self.feedback_command(&context.commands.url, incident, "real")) } }
                p { "It was fine: it ends, counts twice, and is learned." }
                pre.command { code { (self.feedback_command(&context.commands.url, incident, "false")) } }
            }
        };
        section("Open incident", lead, &body)
    }

    fn feedback_command(&self, url_flag: &str, incident: &OpenIncident, feedback: &str) -> String {
        let detector = &self.summary.detector;
        let group = shell_quoted(&GroupSelector::text_of_group(&self.summary.labels, &self.by));
        let at = format_timestamp(incident.since_ms);
        format!("promforest feedback {url_flag}--detector {detector} --group {group} --at {at} {feedback}")
    }

    /// The scores and features over the window, with its incidents.
    fn timeline(&self) -> Backtest {
        let scores: Vec<(i64, Score)> = self.window.scores(ModelRole::Champion, i64::MIN, i64::MAX).collect();
        let worst = highest_of_stretches(&scores, MAX_POINTS);
        let stretch = scores.len().div_ceil(MAX_POINTS).max(1);
        let times_ms: Vec<i64> =
            scores.iter().step_by(stretch).map(|(timestamp_ms, _)| *timestamp_ms).collect();
        let incidents = self.incident_entries(&scores);
        Backtest {
            source: self.summary.detector.clone(),
            step_ms: step_ms(&times_ms),
            score: worst.iter().map(|(_, score)| score.score).collect(),
            threshold: worst.iter().map(|(_, score)| threshold(score)).collect(),
            features: self.feature_plots(&worst),
            incidents,
            times_ms,
            ..Backtest::default()
        }
    }

    /// Each incident of the window with its contributions; the latest first.
    fn incident_entries(&self, scores: &[(i64, Score)]) -> Vec<IncidentEntry> {
        let is_incident = |score: &Score| score.incident_state.is_some_and(|state| state.is_incident);
        let runs = scores.chunk_by(|(_, a), (_, b)| is_incident(a) == is_incident(b));
        let incidents = runs.filter(|run| run.first().is_some_and(|(_, score)| is_incident(score)));
        let entry = |run: &[(i64, Score)]| {
            let (from_ms, to_ms) = (run.first()?.0, run.last()?.0);
            let of_run = |past: &&PastIncident| past.from_ms <= to_ms && from_ms <= past.to_ms;
            let past = self.incidents.iter().find(of_run);
            let contributions = past.iter().flat_map(|past| &past.contributions);
            Some(IncidentEntry {
                from_ms,
                to_ms,
                peak: highest(run)?.1.score,
                is_labelled: None,
                contributions: contributions
                    .map(|(feature, reason, share)| (self.expression(feature), reason.phrase(), *share))
                    .collect(),
            })
        };
        let mut entries: Vec<IncidentEntry> = incidents.filter_map(entry).collect();
        entries.reverse();
        entries
    }

    fn expression(&self, feature: &Labels) -> String {
        match &self.schema {
            Some(schema) => schema.transform.expression(feature),
            None => feature.to_string(),
        }
    }

    /// The features of the incidents, and then those of the model, at these rows.
    fn feature_plots(&self, rows: &[(i64, Score)]) -> Vec<FeaturePlot> {
        let Some(schema) = &self.schema else { return Vec::new() };
        let drawn = self.features_to_draw(schema);
        let features: Vec<Labels> = drawn.iter().map(|feature| schema.features[*feature].clone()).collect();
        let shown = Schema { features, transform: schema.transform, grid: schema.grid };
        let mut reader = RowReader::new(&shown, &self.window);
        let times_ms: Vec<i64> = rows.iter().map(|(timestamp_ms, _)| *timestamp_ms).collect();
        let expected = self.detector.as_ref().map(|detector| detector.expected_ranges(&times_ms, &drawn));
        let mut plots: Vec<FeaturePlot> = shown
            .features
            .iter()
            .map(|feature| FeaturePlot {
                name: shown.transform.expression(feature),
                values: Vec::with_capacity(rows.len()),
                expected_range: Vec::with_capacity(rows.len()),
            })
            .collect();
        let mut values = Vec::new();
        for (row, timestamp_ms) in times_ms.iter().enumerate() {
            let read = reader.read_row(&shown, &self.window, *timestamp_ms, &mut values, |_| {});
            let is_complete = matches!(read, Row::Complete { .. });
            for (feature, plot) in plots.iter_mut().enumerate() {
                plot.values.push(if is_complete { f64::from(values[feature]) } else { f64::NAN });
                let range = expected.as_ref().map(|expected| expected[row][feature]);
                plot.expected_range.push(range.map_or([f64::NAN; 2], |[lower, _, upper]| [lower, upper]));
            }
        }
        plots
    }

    /// Numbers of the features to draw: those with the largest shares of incidents first.
    fn features_to_draw(&self, schema: &Schema) -> Vec<usize> {
        let mut shares = vec![0.0; schema.features.len()];
        for (feature, _, share) in self.incidents.iter().flat_map(|incident| &incident.contributions) {
            if let Some(position) = schema.features.iter().position(|known| known == feature) {
                shares[position] += share;
            }
        }
        let mut drawn: Vec<usize> = (0..shares.len()).collect();
        drawn.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
        drawn.truncate(MAX_DRAWN);
        drawn
    }

    fn models(&self, registry_flags: &str, now_ms: i64) -> Markup {
        let body = html! {
            @match &self.champion {
                None => p { "No model yet." },
                Some(champion) => {
                    (model_facts("champion", champion, now_ms))
                    @match champion.version() {
                        None => p.dim { "This model has no version: it was trained on other groups, and serves until the group has its own." },
                        Some(..=1) => {}
                        Some(version) => {
                            p { "To put the version before " (version) " back into service, and keep it there:" }
                            pre.command { code { (self.rollback_command(champion, registry_flags)) } }
                        }
                    }
                }
            }
            @if let Some(challenger) = &self.challenger { (model_facts("challenger", challenger, now_ms)) }
        };
        section("Models", "The model in service, and the results of its cross-validation.", &body)
    }

    fn rollback_command(&self, champion: &ModelInfo, registry_flags: &str) -> String {
        let (name, alias) = (shell_quoted(&champion.name), shell_quoted(&self.alias));
        format!("promforest models rollback {registry_flags}{name} --alias {alias}")
    }
}

/// The median interval, to the second above one.
fn step_ms(times_ms: &[i64]) -> i64 {
    match median_interval_ms(times_ms.iter().copied()).unwrap_or(1) {
        interval_ms @ ..1000 => interval_ms.max(1),
        interval_ms => (interval_ms + 500) / 1000 * 1000,
    }
}

/// The text as one word of a shell.
pub fn shell_quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

fn threshold(score: &Score) -> f64 {
    score.incident_state.map_or(1.0, |state| state.threshold)
}

fn model_facts(role: &str, model: &ModelInfo, now_ms: i64) -> Markup {
    let card = &model.card;
    let version = model.version().map_or("none".into(), |version| version.to_string());
    let mut rows: Vec<(String, String)> = vec![
        (role.into(), model.name.clone()),
        ("version".into(), version),
        ("kind".into(), model.kind.to_string()),
        ("features".into(), count(model.n_features)),
        ("created".into(), format!("{} ago", format_age(now_ms - card.created_ms))),
    ];
    if let Some(range) = &card.training_range {
        rows.push(("training rows".into(), count(range.n_rows)));
        rows.push((
            "trained on, UTC".into(),
            format!("{} to {}", to_minute(range.from_ms), to_minute(range.to_ms)),
        ));
    }
    rows.extend(card.validation.iter().flat_map(validation_facts));
    facts(&rows)
}

fn to_minute(timestamp_ms: i64) -> String {
    format_datetime(timestamp_ms.div_euclid(60_000) * 60_000)
}

fn validation_facts(validation: &CrossValidation) -> Vec<(String, String)> {
    let held_out = &validation.held_out;
    let mut rows = vec![("held-out rows above 1".to_string(), percent(held_out.alert_rate))];
    if let Some(incidents) = held_out.incidents_per_day {
        rows.push(("held-out incidents a day".into(), number(incidents)));
    }
    if let Some(trial) = validation.trials.get(validation.chosen) {
        rows.push(("rows per tree".into(), count(trial.max_samples)));
        rows.push((
            "divergence of held-out rows".into(),
            format!("{} nats", number(trial.mean_quantile_kl())),
        ));
    }
    rows
}
