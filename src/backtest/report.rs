//! The numbers of a backtest's page.

use super::BacktestResult;
use crate::detect::Assessment;
use crate::report::backtest::{Backtest, FeaturePlot, IncidentEntry};
use crate::time::DAY_MS;

/// Points of the plots over time.
const MAX_POINTS: usize = 1440;
/// Metrics that are drawn.
const MAX_DRAWN: usize = 8;

/// Gathers what the page shows.
pub fn build_report(source: &str, budget: f64, result: &BacktestResult) -> Backtest {
    let incidents = result.incidents();
    let n_rows = result.timestamps.len();
    let n_each = n_rows.div_ceil(MAX_POINTS).max(1);
    // The row of the highest score stands for its stretch.
    let score = |row: usize| {
        result.assessments[row].as_ref().map_or(f64::NEG_INFINITY, |assessment| assessment.score)
    };
    let highest = |first: usize| {
        (first..n_rows.min(first + n_each)).max_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap_or(first)
    };
    let rows: Vec<usize> = (0..n_rows).step_by(n_each).map(highest).collect();
    let times_ms: Vec<i64> = (0..n_rows).step_by(n_each).map(|first| result.timestamps[first]).collect();
    let mut steps: Vec<i64> = times_ms.windows(2).map(|pair| pair[1] - pair[0]).collect();
    steps.sort_unstable();
    let of_rows = |value: &dyn Fn(&Assessment) -> f64| -> Vec<f64> {
        rows.iter().map(|row| result.assessments[*row].as_ref().map_or(f64::NAN, value)).collect()
    };

    let mut weights = vec![0.0; result.features.len()];
    for (feature, _, share) in incidents.iter().flat_map(|incident| &incident.contributions) {
        weights[*feature] += share;
    }
    let mut drawn: Vec<usize> = (0..weights.len()).filter(|feature| weights[*feature] > 0.0).collect();
    drawn.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
    drawn.truncate(MAX_DRAWN);
    let features = drawn.iter().map(|feature| FeaturePlot {
        name: result.features[*feature].clone(),
        values: of_rows(&|assessment| f64::from(assessment.values[*feature])),
        expected_range: of_rows(&|assessment| assessment.expected_range[*feature][0])
            .into_iter()
            .zip(of_rows(&|assessment| assessment.expected_range[*feature][2]))
            .map(|(low, high)| [low, high])
            .collect(),
    });

    let day = |time_ms: i64| time_ms.div_euclid(DAY_MS);
    let days = match (result.timestamps.first(), result.timestamps.last()) {
        (Some(first), Some(last)) => day(*first)..day(*last) + 1,
        _ => 0..0,
    };
    let n_opened =
        |number: i64| incidents.iter().filter(|incident| day(incident.span_ms.0) == number).count();
    let labelled = result.labels.iter().flat_map(|labels| super::runs(labels));
    Backtest {
        source: source.into(),
        facts: vec![
            ("rows".into(), n_rows.to_string()),
            ("scored".into(), result.n_scored().to_string()),
            ("metrics".into(), result.features.len().to_string()),
            ("days".into(), format!("{:.1}", result.days())),
        ],
        step_ms: steps.get(steps.len() / 2).copied().unwrap_or(1),
        score: of_rows(&|assessment| assessment.score),
        threshold: of_rows(&|assessment| assessment.threshold),
        labelled: labelled
            .map(|run| (result.timestamps[run.start], result.timestamps[run.end - 1]))
            .collect(),
        features: features.collect(),
        alerts: days.map(|number| (number * DAY_MS, n_opened(number))).collect(),
        budget,
        incidents: incidents
            .iter()
            .map(|incident| IncidentEntry {
                from_ms: incident.span_ms.0,
                to_ms: incident.span_ms.1,
                peak: incident.peak,
                is_labelled: incident.is_labelled,
                contributions: incident
                    .contributions
                    .iter()
                    .map(|(feature, reason, share)| {
                        (result.features[*feature].clone(), reason.phrase(), *share)
                    })
                    .collect(),
            })
            .collect(),
        changes: result.changes.iter().map(|change| (change.timestamp_ms, change.describe())).collect(),
        times_ms,
    }
}
