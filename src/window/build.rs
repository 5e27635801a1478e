//! Windows from series, and from parts of other windows.

use super::{Column, Window};
use crate::prom::{Labels, Sample};

/// A feature and its samples.
type FeatureSamples = (Labels, Vec<Sample>);

/// A window of these series. If several have a sample of one feature and time, the first one counts.
pub fn from_series<'s>(series: impl Iterator<Item = &'s FeatureSamples>, length_ms: i64) -> Window {
    let mut window = Window::new(length_ms);
    let mut samples: Vec<(Sample, Column)> = Vec::new();
    for (labels, series) in series {
        if let Some(column) = window.get_or_add_column(labels) {
            samples.extend(series.iter().map(|sample| (*sample, column)));
        }
    }
    // In the order of time, so that no sealed chunk is opened again. The sort is stable: the first sample counts.
    samples.sort_by_key(|(sample, _)| sample.timestamp_ms);
    for (sample, column) in samples {
        window.push(column, sample);
    }
    window
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
    let feature_samples = |(labels, column, _): (&Labels, Column, _)| {
        let mut samples = Vec::new();
        window.samples(column, i64::MIN, to_ms, &mut samples);
        (labels.clone(), samples)
    };
    window.features().map(feature_samples).collect()
}
