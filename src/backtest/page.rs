//! The numbers of a backtest's page.

use super::Replayed;
use crate::detect::Observation;
use crate::report::backtest::{Backtest, Incident, Metric};

/// Points of the plots over time.
const POINTS: usize = 1440;
/// Metrics that are drawn.
const DRAWN: usize = 8;
const DAY_MS: i64 = 86_400_000;

/// Gathers what the page shows.
pub fn page(source: &str, budget: f64, replayed: &Replayed) -> Backtest {
    let incidents = replayed.incidents();
    let n_rows = replayed.timestamps.len();
    let n_each = n_rows.div_ceil(POINTS).max(1);
    // The row of the highest score stands for its stretch.
    let score = |row: usize| replayed.observations[row].as_ref().map_or(f64::NEG_INFINITY, |seen| seen.score);
    let loudest = |first: usize| {
        (first..n_rows.min(first + n_each)).max_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap_or(first)
    };
    let rows: Vec<usize> = (0..n_rows).step_by(n_each).map(loudest).collect();
    let times_ms: Vec<i64> = (0..n_rows).step_by(n_each).map(|first| replayed.timestamps[first]).collect();
    let mut steps: Vec<i64> = times_ms.windows(2).map(|pair| pair[1] - pair[0]).collect();
    steps.sort_unstable();
    let of_rows = |value: &dyn Fn(&Observation) -> f64| -> Vec<f64> {
        rows.iter().map(|row| replayed.observations[*row].as_ref().map_or(f64::NAN, value)).collect()
    };

    let mut weights = vec![0.0; replayed.metrics.len()];
    for (metric, _, share) in incidents.iter().flat_map(|incident| &incident.causes) {
        weights[*metric] += share;
    }
    let mut drawn: Vec<usize> = (0..weights.len()).filter(|metric| weights[*metric] > 0.0).collect();
    drawn.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
    drawn.truncate(DRAWN);
    let metrics = drawn.iter().map(|metric| Metric {
        name: replayed.metrics[*metric].clone(),
        values: of_rows(&|seen| f64::from(seen.values[*metric])),
        usual: of_rows(&|seen| seen.usual[*metric][0])
            .into_iter()
            .zip(of_rows(&|seen| seen.usual[*metric][2]))
            .map(|(low, high)| [low, high])
            .collect(),
    });

    let day = |time_ms: i64| time_ms.div_euclid(DAY_MS);
    let days = match (replayed.timestamps.first(), replayed.timestamps.last()) {
        (Some(first), Some(last)) => day(*first)..day(*last) + 1,
        _ => 0..0,
    };
    let opened = |number: i64| incidents.iter().filter(|incident| day(incident.span_ms.0) == number).count();
    let labelled = replayed.labels.iter().flat_map(|labels| super::runs(labels));
    Backtest {
        source: source.into(),
        facts: vec![
            ("rows".into(), n_rows.to_string()),
            ("scored".into(), replayed.n_scored().to_string()),
            ("metrics".into(), replayed.metrics.len().to_string()),
            ("days".into(), format!("{:.1}", replayed.days())),
        ],
        step_ms: steps.get(steps.len() / 2).copied().unwrap_or(1),
        score: of_rows(&|seen| seen.score),
        threshold: of_rows(&|seen| seen.threshold),
        labelled: labelled
            .map(|run| (replayed.timestamps[run.start], replayed.timestamps[run.end - 1]))
            .collect(),
        metrics: metrics.collect(),
        alerts: days.map(|number| (number * DAY_MS, opened(number))).collect(),
        budget,
        incidents: incidents
            .iter()
            .map(|incident| Incident {
                from_ms: incident.span_ms.0,
                to_ms: incident.span_ms.1,
                peak: incident.peak,
                is_labelled: incident.is_labelled,
                causes: incident
                    .causes
                    .iter()
                    .map(|(metric, reason, share)| {
                        (replayed.metrics[*metric].clone(), reason.phrase(), *share)
                    })
                    .collect(),
            })
            .collect(),
        changes: replayed.changes.iter().map(|change| (change.timestamp_ms, change.what())).collect(),
        times_ms,
    }
}
