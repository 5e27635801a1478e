//! The numbers of a training's page.

use super::Trained;
use super::rows::Rows;
use crate::models::artifact::timestamp;
use crate::models::{Histogram, Trial, columns};
use crate::report::training::{Candidate, Excluded, Feature, Fold, Timeline, Training, Verdict};

/// Points of the plots over time.
const POINTS: usize = 1440;

/// Gathers what the page shows.
pub fn training(name: &str, trained: &Trained, rows: &Rows, verdict: Verdict) -> Training {
    let model = &trained.model;
    let trials: &[Trial] = trained.sweep.as_ref().map_or(&[], |sweep| &sweep.validation.trials);
    let candidate = |trial: &Trial| Candidate { max_samples: trial.max_samples, kl: trial.kl.clone() };
    let fold = |[train, test]: &[Histogram; 2]| Fold {
        kl: train.kl_divergence(test),
        train: train.density(),
        test: test.density(),
    };
    Training {
        model: name.into(),
        group: model.card.group.as_ref().map(ToString::to_string),
        facts: facts(trained, rows),
        verdict,
        sweep: trials.iter().map(candidate).collect(),
        chosen: trained.sweep.as_ref().map_or(0, |sweep| sweep.validation.chosen),
        folds: trained.sweep.iter().flat_map(|sweep| &sweep.folds).map(fold).collect(),
        timeline: timeline(trained, rows),
        features: features(trained, rows),
    }
}

fn facts(trained: &Trained, rows: &Rows) -> Vec<(String, String)> {
    let card = &trained.model.card;
    let mut facts = card.params.clone();
    let mut add = |name: &str, value: String| facts.push((name.into(), value));
    add("features", rows.schema.features.len().to_string());
    add("rows", rows.len().to_string());
    if let Some(history) = &card.history {
        add("from", minute(history.from_ms));
        add("to", minute(history.to_ms));
        add("excluded rows", history.n_excluded.to_string());
    }
    if let Some(validation) = &card.validation {
        add("unseen rows called anomalous", format!("{:.2} %", validation.alert_rate * 100.0));
    }
    add("made by", card.origin.clone());
    facts
}

/// `2026-01-31 12:00 UTC`.
fn minute(ms: i64) -> String {
    let text = timestamp(ms);
    format!("{} UTC", text.get(..16).unwrap_or(&text).replace('T', " "))
}

fn timeline(trained: &Trained, rows: &Rows) -> Timeline {
    let excluded = rows.excluded.iter().map(|(exclusion, n_rows)| Excluded {
        from_ms: exclusion.from_ms,
        to_ms: exclusion.to_ms,
        reason: exclusion.reason.clone(),
        n_rows: *n_rows,
    });
    let (Some(first), Some(last)) = (rows.timestamps.first(), rows.timestamps.last()) else {
        return Timeline { excluded: excluded.collect(), ..Timeline::default() };
    };
    let few = rows.len() <= POINTS;
    let beat_ms = beat_ms(&rows.timestamps);
    let step_ms = if few { beat_ms } else { ((last - first) / POINTS as i64 / beat_ms + 1) * beat_ms };
    let n_features = rows.schema.features.len();
    let mut timeline = Timeline {
        step_ms,
        features: vec![Vec::new(); n_features],
        excluded: excluded.collect(),
        ..Timeline::default()
    };
    let mut row = vec![0.0; n_features];
    let mut scores = trained.scores.iter().peekable();
    for (i, timestamp_ms) in rows.timestamps.iter().enumerate() {
        let begins_ms = if few { *timestamp_ms } else { first + (timestamp_ms - first) / step_ms * step_ms };
        for (feature, value) in row.iter_mut().enumerate() {
            *value = rows.values[feature * rows.len() + i];
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

/// The usual time from one row to the next.
fn beat_ms(timestamps: &[i64]) -> i64 {
    let mut steps: Vec<i64> = timestamps.windows(2).map(|pair| pair[1] - pair[0]).collect();
    steps.sort_unstable();
    steps.get(steps.len() / 2).copied().unwrap_or(1).max(1)
}

fn features(trained: &Trained, rows: &Rows) -> Vec<Feature> {
    let mut sorted = Vec::new();
    columns::names(&trained.model)
        .into_iter()
        .enumerate()
        .map(|(feature, name)| {
            sorted.clear();
            let column = &rows.values[feature * rows.len()..][..rows.len()];
            sorted.extend(column.iter().filter(|value| !value.is_nan()));
            sorted.sort_by(f32::total_cmp);
            let at = |position: usize| sorted.get(position).copied().unwrap_or_default();
            let last = sorted.len().saturating_sub(1);
            Feature { name, least: at(0), median: at(last / 2), greatest: at(last) }
        })
        .collect()
}
