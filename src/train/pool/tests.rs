use super::*;
use crate::config::Config;
use crate::models::FittedModel;
use crate::prom::{Labels, METRIC_NAME, Sample};
use crate::window::build;
use crate::window::grid::Grid;
use std::sync::Arc;

const STEP_MS: i64 = 15_000;
const START_MS: i64 = 1_700_000_000_000;

fn detector(model: &str) -> Arc<Detector> {
    let training = "training: {min_history: 10m, sweep: []}";
    let text =
        format!("detectors: [{{name: net, match: [rx], transform: value, model: {model}, {training}}}]");
    Config::parse(&text).expect("a valid configuration").detectors.remove(0)
}

fn features() -> [Labels; 2] {
    ["eth0", "lo"].map(|device| Labels::new([(METRIC_NAME, "rx"), ("device", device)]).expect("valid"))
}

/// A group with values around this level, for these steps.
fn group(level: f64, steps: std::ops::Range<i64>) -> Window {
    group_of(|noise| level + noise, steps)
}

/// A group whose values vary by this factor.
fn group_with_spread(factor: f64, steps: std::ops::Range<i64>) -> Window {
    group_of(|noise| factor * noise, steps)
}

fn group_of(value: impl Fn(f64) -> f64, steps: std::ops::Range<i64>) -> Window {
    let sample = |i: i64, n: i64| Sample {
        timestamp_ms: START_MS + i * STEP_MS,
        value: value((i * i % (97 + n)) as f64 / 100.0),
    };
    let series: Vec<_> = features()
        .into_iter()
        .zip(0..)
        .map(|(labels, n)| (labels, steps.clone().map(|i| sample(i, n)).collect()))
        .collect();
    build::from_series(series.iter(), 30 * DAY_MS)
}

fn pool(detector: &Detector, windows: Vec<Window>) -> Pool {
    let features = features().to_vec();
    Pool { schema: Schema { features, transform: detector.transform, grid: Grid::Exact }, windows }
}

fn fit(pool: &Pool, detector: &Detector, threads: usize) -> Option<Model> {
    let threads = NonZeroUsize::new(threads).expect("above 0");
    pool.train(detector, START_MS, threads).expect("the parameters suit")
}

#[test]
fn groups_follow_each_other_days_apart_at_their_time_of_day() {
    let detector = detector("{kind: extended_isolation_forest}");
    // The second group overlaps the first, and the third covers more than a day.
    let windows = vec![group(1.0, 0..100), group(2.0, 50..150), group(3.0, 0..6000)];
    let rows = pool(&detector, windows).training_set().expect("rows");
    assert_eq!((rows.len(), rows.timestamps.len()), (6200, 6200));
    let times: Vec<&[i64]> = rows.timestamps.chunk_by(|a, b| b - a == STEP_MS).collect();
    assert_eq!(times.iter().map(|times| times.len()).collect::<Vec<_>>(), [6000, 100, 100]);
    assert_eq!(times[2][0], START_MS, "the first group keeps its times");
    assert_eq!((START_MS + 50 * STEP_MS - times[1][0]) % DAY_MS, 0);
    assert_eq!((START_MS - times[0][0]) % DAY_MS, 0);
    assert!(times.windows(2).all(|pair| pair[1][0] - pair[0][pair[0].len() - 1] >= GAP_MS));
    // Each row has the values of its group.
    let table = rows.table().expect("values, rows and features agree");
    let mut row = [0.0; 2];
    for (number, level) in [(0, 3.0), (5999, 3.0), (6000, 2.0), (6099, 2.0), (6100, 1.0), (6199, 1.0)] {
        table.copy_row(number, &mut row);
        assert!(row.iter().all(|value| (level..level + 1.5).contains(value)), "{number}: {row:?}");
    }
    assert_eq!(rows.to_ms, START_MS + 99 * STEP_MS);
    assert_eq!(rows.observed_ms, (99 + 99 + 5999) * STEP_MS);
}

#[test]
fn all_groups_together_need_enough_history() {
    let detector = detector("{kind: extended_isolation_forest}");
    assert!(fit(&pool(&detector, vec![group(1.0, 0..30)]), &detector, 1).is_none());
    assert!(fit(&pool(&detector, vec![group(1.0, 0..30), group(2.0, 0..30)]), &detector, 1).is_some());
    assert!(fit(&pool(&detector, vec![Window::new(DAY_MS)]), &detector, 1).is_none());
}

#[test]
fn the_model_is_a_function_of_the_rows_and_starts_without_rows() {
    for kind in ["{kind: extended_isolation_forest}", "{kind: isolation_forest}"] {
        let detector = detector(kind);
        let pool = pool(&detector, vec![group(1.0, 0..300), group(2.0, 0..300)]);
        let model = fit(&pool, &detector, 1).expect("enough rows");
        assert_eq!(fit(&pool, &detector, 3).as_ref(), Some(&model), "{kind}");
        assert_eq!((model.card.group.as_ref(), model.card.detector.as_deref()), (None, Some("net")));
        if let FittedModel::Extended(detection) = &model.fitted {
            assert_eq!(detection.newest_ms(), None);
            let mut new = detection.clone();
            let assessment = new
                .assess(START_MS, &[1.5, 1.5])
                .expect("a pooled model accepts rows older than those of its groups");
            assert!(!assessment.incident && assessment.score < 1.0, "{assessment:?}");
        }
    }
}

#[test]
fn differences_between_the_groups_count_as_normal() {
    let detector = detector("{kind: extended_isolation_forest}");
    // The highest score of a group that varies more than the first group and less than the second.
    let score = |windows: Vec<Window>| {
        let model = fit(&pool(&detector, windows), &detector, 1).expect("enough rows");
        let FittedModel::Extended(mut detection) = model.fitted else { panic!("an extended forest") };
        let mut observe = |i: i64| {
            let value = |n: i64| (5 * (i * i % (97 + n))) as f32 / 100.0;
            detection.assess(START_MS + i * STEP_MS, &[value(0), value(1)]).expect("in order").score
        };
        (0..100).map(&mut observe).fold(0.0, f64::max)
    };
    let calm = score(vec![group_with_spread(1.0, 0..300)]);
    let both = score(vec![group_with_spread(1.0, 0..300), group_with_spread(10.0, 0..300)]);
    assert!(both < calm, "{both} beside {calm}");
}
