//! Gathers the numbers of a training report.

use super::cross_validation::FoldDecisions;
use super::fit::Trained;
use super::training_set::TrainingSet;
use crate::models::{HeldOut, columns};
use crate::report::training::{
    ExcludedRange, FeatureSummary, FoldHistograms, PromotionDecision, Timeline, Training,
};
use crate::report::zone::Zone;
use crate::time::median_interval_ms;

/// Milliseconds in a minute.
const MINUTE_MS: i64 = 60_000;
/// Most points of a plot over time.
const MAX_POINTS: usize = 1440;

/// Gathers the contents of the report, with times in the zone. `name` is the registered name of the model.
pub fn build_report(
    name: &str,
    trained: &Trained,
    training_set: &TrainingSet,
    promotion: PromotionDecision,
    zone: &Zone,
) -> Training {
    let model = &trained.model;
    let fold = |FoldDecisions { train, test, .. }: &FoldDecisions| FoldHistograms {
        kl: train.kl_divergence(test),
        train: train.density(),
        test: test.density(),
    };
    Training {
        model: name.into(),
        group: model.card.group.as_ref().map(ToString::to_string),
        facts: facts(trained, training_set, zone),
        zone: zone.clone(),
        promotion,
        sweep: trained.sweep.iter().flat_map(|sweep| sweep.validation.trials.clone()).collect(),
        chosen: trained.sweep.as_ref().map_or(0, |sweep| sweep.validation.chosen),
        folds: trained.sweep.iter().flat_map(|sweep| &sweep.folds).map(fold).collect(),
        timeline: timeline(trained, training_set),
        features: features(trained, training_set),
    }
}

fn facts(trained: &Trained, training_set: &TrainingSet, zone: &Zone) -> Vec<(String, String)> {
    let card = &trained.model.card;
    let mut facts = card.params.clone();
    let mut add = |name: &str, value: String| facts.push((name.into(), value));
    add("features", training_set.schema.features.len().to_string());
    add("rows", training_set.len().to_string());
    if let Some(history) = &card.training_range {
        let minute = |time_ms: i64| zone.format_datetime(time_ms.div_euclid(MINUTE_MS) * MINUTE_MS);
        add(&format!("from, {}", zone.name()), minute(history.from_ms));
        add(&format!("to, {}", zone.name()), minute(history.to_ms));
        add("excluded rows", history.n_excluded.to_string());
    }
    if let Some(HeldOut { alert_rate, incidents_per_day, .. }) = card.validation.as_ref().map(|v| v.held_out)
    {
        add("held-out rows above 1", format!("{:.2} %", alert_rate * 100.0));
        if let Some(incidents) = incidents_per_day {
            add("incidents a day", format!("{incidents:.2}"));
        }
    }
    add("origin", card.origin.clone());
    facts
}

fn timeline(trained: &Trained, training_set: &TrainingSet) -> Timeline {
    let excluded = training_set.excluded.iter().map(|(exclusion, n_rows)| ExcludedRange {
        from_ms: exclusion.from_ms,
        to_ms: exclusion.to_ms,
        reason: exclusion.reason.clone(),
        n_rows: *n_rows,
    });
    let (Some(first), Some(last)) = (training_set.timestamps.first(), training_set.timestamps.last()) else {
        return Timeline { excluded: excluded.collect(), ..Timeline::default() };
    };
    let few = training_set.len() <= MAX_POINTS;
    let interval_ms = median_interval_ms(training_set.timestamps.iter().copied()).unwrap_or(1).max(1);
    let step_ms =
        if few { interval_ms } else { ((last - first) / MAX_POINTS as i64 / interval_ms + 1) * interval_ms };
    let n_features = training_set.schema.features.len();
    let mut timeline = Timeline {
        step_ms,
        features: vec![Vec::new(); n_features],
        excluded: excluded.collect(),
        ..Timeline::default()
    };
    let mut row = vec![0.0; n_features];
    let mut scores = trained.scores.iter().peekable();
    for (i, timestamp_ms) in training_set.timestamps.iter().enumerate() {
        let begins_ms = if few { *timestamp_ms } else { first + (timestamp_ms - first) / step_ms * step_ms };
        for (feature, value) in row.iter_mut().enumerate() {
            *value = training_set.values[feature * training_set.len() + i];
        }
        while scores.next_if(|(then, _)| then < timestamp_ms).is_some() {}
        let score =
            scores.next_if(|(then, _)| then == timestamp_ms).map_or(f64::NAN, |(_, score)| score.score);
        if timeline.times_ms.last() != Some(&begins_ms) {
            timeline.times_ms.push(begins_ms);
            timeline.score.push(score);
            for (points, value) in timeline.features.iter_mut().zip(&row) {
                points.push([*value; 2]);
            }
            continue;
        }
        if let Some(highest) = timeline.score.last_mut() {
            *highest = highest.max(score);
        }
        for (points, value) in timeline.features.iter_mut().zip(&row) {
            if let Some([least, greatest]) = points.last_mut() {
                *least = least.min(*value);
                *greatest = greatest.max(*value);
            }
        }
    }
    timeline
}

fn features(trained: &Trained, training_set: &TrainingSet) -> Vec<FeatureSummary> {
    let mut sorted = Vec::new();
    columns::names(&trained.model)
        .into_iter()
        .enumerate()
        .map(|(feature, name)| {
            sorted.clear();
            let column = &training_set.values[feature * training_set.len()..][..training_set.len()];
            sorted.extend(column.iter().filter(|value| !value.is_nan()));
            sorted.sort_by(f32::total_cmp);
            let at = |position: usize| sorted.get(position).copied().unwrap_or_default();
            let last = sorted.len().saturating_sub(1);
            FeatureSummary { name, least: at(0), median: at(last / 2), greatest: at(last) }
        })
        .collect()
}
