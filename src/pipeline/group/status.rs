//! The state of a group for its web pages.

use super::Group;
use super::incident_log::IncidentLog;
use crate::detect::DeviationReason;
use crate::features::Schema;
use crate::pipeline::serving::{Contribution, ServingModel};
use crate::prom::{Labels, METRIC_NAME};
use crate::status::group::{
    BEFORE_MS, DeviatingFeature, GroupDetail, GroupSummary, MAX_PER_DAY, MAX_SCORES, NotScored, OpenIncident,
    PastIncident, RECENT_MS, Scoring, highest_of_stretches,
};
use crate::time::DAY_MS;
use crate::window::{ModelRole, Score};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Features that an incident of the past is described by.
const MAX_FEATURES: usize = 3;

impl Group {
    /// The group in one line.
    pub fn summary(&self, now: Instant, now_ms: i64) -> GroupSummary {
        let scoring = match self.worst_recent_score(now_ms) {
            Some(score) => Scoring::Scored { worst: score.score, threshold: threshold(&score) },
            None => Scoring::NotScored(self.not_scored(now, now_ms)),
        };
        // An incident of a group that is not scored has no state: it may have ended.
        let incident = self.open_incident().filter(|_| matches!(scoring, Scoring::Scored { .. }));
        GroupSummary {
            detector: self.detector.name.clone(),
            labels: self.labels.clone(),
            scoring,
            newest_scored_ms: self.newest_scored_ms(),
            model: self.model_info(ModelRole::Champion).map(|model| (model.name.clone(), model.version())),
            is_in_maintenance: self.is_in_maintenance(),
            incident,
            last_day: self.incidents_of_last_day(now_ms),
            incidents_per_day: self.incidents_per_day(),
            budget: self.detector.alerts.budget,
        }
    }

    /// The group with its window and models. The champion has the given alias.
    pub fn detail(&self, alias: &str, now: Instant, now_ms: i64) -> GroupDetail {
        GroupDetail {
            summary: self.summary(now, now_ms),
            window: self.window.clone(),
            champion: self.model_info(ModelRole::Champion).cloned(),
            schema: self.models.schema().cloned(),
            detector: self.models.champion().and_then(ServingModel::detector).cloned(),
            challenger: self.model_info(ModelRole::Challenger).cloned(),
            incidents: past_incidents(&self.incidents),
            last_week: self.incidents.incidents().iter().copied().collect(),
            alias: alias.into(),
            by: self.detector.by.clone(),
        }
    }

    /// First and last millisecond of the latest incidents of the last 24 hours, ascending.
    fn incidents_of_last_day(&self, now_ms: i64) -> Vec<(i64, i64)> {
        let latest = self.incidents.incidents().iter().rev();
        let of_day = latest.map(|incident| match self.incidents.is_open_since(incident.start_ms) {
            true => (incident.start_ms, now_ms.max(incident.last_ms)),
            false => (incident.start_ms, incident.last_ms),
        });
        let mut of_day: Vec<(i64, i64)> =
            of_day.take_while(|(_, last_ms)| *last_ms > now_ms - DAY_MS).take(MAX_PER_DAY).collect();
        of_day.reverse();
        of_day
    }

    /// The highest score within [`RECENT_MS`], or within two intervals of the rows.
    fn worst_recent_score(&self, now_ms: i64) -> Option<Score> {
        let scores = self.window.scores(ModelRole::Champion, now_ms - self.recent_ms(), i64::MAX);
        scores.map(|(_, score)| score).max_by(|a, b| a.score.total_cmp(&b.score))
    }

    fn recent_ms(&self) -> i64 {
        RECENT_MS.max(2 * self.gaps.interval_ms().unwrap_or(0))
    }

    /// The reason why no row was scored recently.
    fn not_scored(&self, now: Instant, now_ms: i64) -> NotScored {
        let silent_ms = self.window.newest_ms().map_or(0, |newest_ms| now_ms - newest_ms);
        let Some(schema) = self.models.schema() else {
            return match self.is_new() {
                true => {
                    NotScored::Learning { progress: self.progress(now), required: self.required_history() }
                }
                false => NotScored::Loading,
            };
        };
        if self.gaps.is_holding() {
            return NotScored::FillingGap;
        }
        if silent_ms > self.recent_ms() {
            return NotScored::TargetDown { silent_ms };
        }
        self.missing_in_rows(schema, now_ms).unwrap_or(NotScored::NoCompleteRow)
    }

    /// The missing feature, or the label that changed instead.
    fn missing_in_rows(&self, schema: &Schema, now_ms: i64) -> Option<NotScored> {
        let active = self.active_features(now_ms);
        let missing = schema.first_missing(&active)?;
        let feature = schema.transform.expression(missing);
        Some(match changed_label(schema, missing, &active) {
            Some((label, to)) => {
                let from = missing.get(&label).to_string();
                NotScored::LabelChanged { feature, label, from, to }
            }
            None => NotScored::FeatureMissing { feature, n_missing: self.n_missing_features().max(1) },
        })
    }

    fn open_incident(&self) -> Option<OpenIncident> {
        let open = self.incidents.incidents().back().filter(|_| self.incidents.is_open())?;
        let since_ms = open.start_ms;
        let scores: Vec<(i64, Score)> =
            self.window.scores(ModelRole::Champion, since_ms - BEFORE_MS, i64::MAX).collect();
        let in_incident = &scores[scores.partition_point(|(then, _)| *then < since_ms)..];
        let (_, newest) = *in_incident.last()?;
        let shown = highest_of_stretches(&scores, MAX_SCORES);
        let mut entries = self.incidents.contributions_between(since_ms, i64::MAX);
        let latest = entries.by_ref().filter(|(_, contributions)| !contributions.is_empty()).last();
        let features = latest.iter().flat_map(|(_, contributions)| contributions);
        Some(OpenIncident {
            since_ms,
            score: newest.score,
            threshold: threshold(&newest),
            peak: in_incident.iter().map(|(_, score)| score.score).fold(0.0, f64::max),
            feedback: open.feedback.map(|(feedback, _)| feedback),
            scores: shown.into_iter().map(|(then, score)| (then, score.score)).collect(),
            features: features.map(|contribution| self.deviating_feature(contribution)).collect(),
        })
    }

    fn deviating_feature(&self, contribution: &Contribution) -> DeviatingFeature {
        let Contribution { feature, reason, share, value, expected_range } = contribution;
        DeviatingFeature {
            name: self.detector.transform.expression(feature),
            reason: *reason,
            share: *share,
            value: *value,
            expected_range: *expected_range,
        }
    }
}

/// The label that tells a missing feature from an active one that the model does not know, with its new value.
fn changed_label(schema: &Schema, missing: &Labels, active: &BTreeSet<&Labels>) -> Option<(String, String)> {
    let known: BTreeSet<&Labels> = schema.features.iter().collect();
    active.difference(&known).find_map(|feature| only_difference(missing, feature))
}

/// The score at which an incident opens; 1 for a model without incidents.
fn threshold(score: &Score) -> f64 {
    score.incident_state.map_or(1.0, |state| state.threshold)
}

/// The only label with different values in two features of one metric, with its value in the second one.
fn only_difference(a: &Labels, b: &Labels) -> Option<(String, String)> {
    let names = a.iter().chain(b.iter()).map(|(name, _)| name);
    let mut differing = names.filter(|name| a.get(name) != b.get(name));
    let label = differing.next().filter(|label| *label != METRIC_NAME)?;
    // A label of both features comes twice.
    differing.all(|name| name == label).then(|| (label.to_string(), b.get(label).to_string()))
}

/// The incidents of the window with their contributions added up.
fn past_incidents(log: &IncidentLog) -> Vec<PastIncident> {
    let mut incidents = Vec::new();
    let mut sums: BTreeMap<(&Labels, DeviationReason), f64> = BTreeMap::new();
    let mut range: Option<(i64, i64)> = None;
    // An empty entry ends an incident; the open one has none yet.
    let entries = log.contributions().iter().map(|(then, contributions)| (*then, &contributions[..]));
    for (timestamp_ms, contributions) in entries.chain([(i64::MAX, &[][..])]) {
        for Contribution { feature, reason, share, .. } in contributions {
            *sums.entry((feature, *reason)).or_default() += share;
        }
        if !contributions.is_empty() {
            range = Some((range.map_or(timestamp_ms, |(from_ms, _)| from_ms), timestamp_ms));
        } else if let Some((from_ms, to_ms)) = range.take() {
            incidents.push(PastIncident { from_ms, to_ms, contributions: strongest(&sums) });
            sums.clear();
        }
    }
    incidents
}

/// The features with the largest sums, each with the kind of deviation that adds most to its sum.
fn strongest(sums: &BTreeMap<(&Labels, DeviationReason), f64>) -> Vec<(Labels, DeviationReason, f64)> {
    let mut by_feature: BTreeMap<&Labels, (DeviationReason, f64, f64)> = BTreeMap::new();
    for ((feature, reason), sum) in sums {
        let (main, largest, total) = by_feature.entry(feature).or_insert((*reason, *sum, 0.0));
        if sum > largest {
            (*main, *largest) = (*reason, *sum);
        }
        *total += sum;
    }
    let mut features: Vec<_> = by_feature.into_iter().collect();
    features.sort_by(|(_, a), (_, b)| b.2.total_cmp(&a.2));
    let features = features.into_iter().take(MAX_FEATURES);
    features.map(|(feature, (reason, _, total))| (feature.clone(), reason, total)).collect()
}
