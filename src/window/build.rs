//! Windows from series, and from parts of other windows.

use super::{Column, Window};
use crate::prom::{Labels, Sample};
use crate::time::HOUR_MS;

/// A feature and its samples.
type FeatureSamples = (Labels, Vec<Sample>);

/// Span of the samples that are sorted at once. A sorted copy of weeks would take three times the memory of the window.
const SPAN_MS: i64 = HOUR_MS;

/// A window of these series. If several have a sample of one feature and time, the first one counts.
pub fn from_series<'s>(series: impl Iterator<Item = &'s FeatureSamples>, length_ms: i64) -> Window {
    let mut window = Window::new(length_ms);
    let mut remaining: Vec<(Column, &[Sample])> = series
        .filter_map(|(labels, samples)| Some((window.get_or_add_column(labels)?, &samples[..])))
        .collect();
    let mut span: Vec<(Sample, Column)> = Vec::new();
    while let Some(first_ms) = remaining.iter().filter_map(|(_, samples)| samples.first()).map(time_ms).min()
    {
        let to_ms = first_ms.saturating_add(SPAN_MS);
        for (column, samples) in &mut remaining {
            let n_samples = samples.iter().take_while(|sample| sample.timestamp_ms <= to_ms).count();
            let (now, later) = samples.split_at(n_samples);
            span.extend(now.iter().map(|sample| (*sample, *column)));
            *samples = later;
        }
        // In the order of time, so that no sealed chunk is opened again. The sort is stable: the first sample counts.
        span.sort_by_key(|(sample, _)| sample.timestamp_ms);
        for (sample, column) in span.drain(..) {
            window.push(column, sample);
        }
    }
    window
}

fn time_ms(sample: &Sample) -> i64 {
    sample.timestamp_ms
}

/// Joins the history of a group, with features as labels, and its live window. Features that are not live are left out: a
/// model that contains them would wait for them forever. Where both have a sample, that of the history counts.
pub fn join(history: &[FeatureSamples], live: &Window, length_ms: i64) -> Window {
    let live_series = to_series(live, i64::MAX);
    let history = history.iter().filter(|(labels, _)| live.find_column(labels).is_some());
    from_series(history.chain(&live_series), length_ms)
}

/// A copy of a window as it was at `to_ms`, of at most this length.
pub fn truncated(window: &Window, to_ms: i64, length_ms: i64) -> Window {
    from_series(to_series(window, to_ms).iter(), length_ms)
}

fn to_series(window: &Window, to_ms: i64) -> Vec<FeatureSamples> {
    let feature_samples = |(labels, column): (&Labels, Column)| {
        let mut samples = Vec::new();
        window.samples(column, i64::MIN, to_ms, &mut samples);
        (labels.clone(), samples)
    };
    window.features().map(feature_samples).collect()
}
