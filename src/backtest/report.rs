//! Builds the report of a backtest.

use super::{BacktestResult, Incident, runs};
use crate::detect::Assessment;
use crate::report::backtest::{Backtest, FeaturePlot, IncidentEntry};
use crate::report::zone::Zone;
use crate::time::{DAY_MS, median_interval_ms};

/// Maximum number of points in a plot over time.
const MAX_POINTS: usize = 1440;
/// Maximum number of plotted features.
const MAX_DRAWN: usize = 8;

/// The report of a backtest, for a budget in alerts per day, with times in the zone.
pub fn build_report(source: &str, budget: f64, result: &BacktestResult, zone: Zone) -> Backtest {
    let incidents = result.incidents();
    let stretches = Stretches::new(result);
    let times_ms = stretches.times_ms();
    let labelled = result.labels.iter().flat_map(|labels| runs(labels));
    Backtest {
        source: source.into(),
        facts: facts(result),
        step_ms: median_interval_ms(times_ms.iter().copied()).unwrap_or(1),
        score: stretches.values(|assessment| assessment.score),
        threshold: stretches.values(|assessment| assessment.threshold),
        labelled: labelled
            .map(|run| (result.timestamps[run.start], result.timestamps[run.end - 1]))
            .collect(),
        features: features_to_draw(result.features.len(), &incidents)
            .into_iter()
            .map(|feature| stretches.plot(feature))
            .collect(),
        alerts: alerts_per_day(result, &incidents, &zone),
        budget,
        incidents: incidents.iter().map(|incident| entry(result, incident)).collect(),
        changes: result.changes.iter().map(|change| (change.timestamp_ms, change.describe())).collect(),
        times_ms,
        zone,
    }
}

/// Names and values of what is known of the range and its models.
fn facts(result: &BacktestResult) -> Vec<(String, String)> {
    let scored = || result.assessments.iter().flatten();
    let n_accepted = scored().filter(|assessment| assessment.is_level_accepted).count();
    let correction = scored().map(|assessment| assessment.budget_correction).fold(0.0, f64::max);
    [
        ("rows", result.timestamps.len().to_string()),
        ("scored", result.n_scored().to_string()),
        ("metrics", result.features.len().to_string()),
        ("days", format!("{:.1}", result.days())),
        ("models", (1 + result.n_renewals + result.changes.len()).to_string()),
        ("greatest budget correction", format!("{correction:.2}")),
        ("rows at an accepted level", n_accepted.to_string()),
    ]
    .map(|(name, value)| (name.into(), value))
    .into()
}

/// Consecutive rows that share one point of a plot.
struct Stretches<'a> {
    result: &'a BacktestResult,
    /// Rows per stretch.
    n_each: usize,
    /// The row with the highest score of each stretch.
    rows: Vec<usize>,
}

impl<'a> Stretches<'a> {
    fn new(result: &'a BacktestResult) -> Self {
        let n_rows = result.timestamps.len();
        let n_each = n_rows.div_ceil(MAX_POINTS).max(1);
        let score = |row: usize| {
            result.assessments[row].as_ref().map_or(f64::NEG_INFINITY, |assessment| assessment.score)
        };
        let highest = |first: usize| {
            let stretch = first..n_rows.min(first + n_each);
            stretch.max_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap_or(first)
        };
        Self { result, n_each, rows: (0..n_rows).step_by(n_each).map(highest).collect() }
    }

    /// Timestamp of the first row of each stretch.
    fn times_ms(&self) -> Vec<i64> {
        self.result.timestamps.iter().step_by(self.n_each).copied().collect()
    }

    /// A value of the row with the highest score; NaN without a score.
    fn values(&self, value: impl Fn(&Assessment) -> f64) -> Vec<f64> {
        let assessments = self.rows.iter().map(|row| self.result.assessments[*row].as_ref());
        assessments.map(|assessment| assessment.map_or(f64::NAN, &value)).collect()
    }

    fn plot(&self, feature: usize) -> FeaturePlot {
        let lower = self.values(|assessment| assessment.expected_range[feature][0]);
        let upper = self.values(|assessment| assessment.expected_range[feature][2]);
        FeaturePlot {
            name: self.result.features[feature].clone(),
            values: self.values(|assessment| f64::from(assessment.values[feature])),
            expected_range: lower.into_iter().zip(upper).map(|(low, high)| [low, high]).collect(),
        }
    }
}

/// The features with the largest contributions to the incidents, in descending order.
fn features_to_draw(n_features: usize, incidents: &[Incident]) -> Vec<usize> {
    let mut weights = vec![0.0; n_features];
    for (feature, _, share) in incidents.iter().flat_map(|incident| &incident.contributions) {
        weights[*feature] += share;
    }
    let mut drawn: Vec<usize> = (0..n_features).filter(|feature| weights[*feature] > 0.0).collect();
    drawn.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
    drawn.truncate(MAX_DRAWN);
    drawn
}

/// Beginning of each day, and the number of incidents that began on it.
fn alerts_per_day(result: &BacktestResult, incidents: &[Incident], zone: &Zone) -> Vec<(i64, usize)> {
    let day = |time_ms: i64| zone.local_ms(time_ms).div_euclid(DAY_MS);
    let days = match (result.timestamps.first(), result.timestamps.last()) {
        (Some(first), Some(last)) => day(*first)..day(*last) + 1,
        _ => 0..0,
    };
    let n_begun = |number: i64| incidents.iter().filter(|incident| day(incident.span_ms.0) == number).count();
    days.map(|number| (number * DAY_MS, n_begun(number))).collect()
}

fn entry(result: &BacktestResult, incident: &Incident) -> IncidentEntry {
    let contributions = incident.contributions.iter();
    let named = contributions
        .map(|(feature, reason, share)| (result.features[*feature].clone(), reason.phrase(), *share));
    IncidentEntry {
        from_ms: incident.span_ms.0,
        to_ms: incident.span_ms.1,
        peak: incident.peak,
        is_labelled: incident.is_labelled,
        contributions: named.collect(),
    }
}
