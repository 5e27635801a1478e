use super::*;
use crate::config::Config;
use crate::prom::METRIC_NAME;
use crate::window::Push;
use std::sync::Arc;

const STEP_MS: i64 = 15_000;
const START_MS: i64 = 1_700_000_000_000;
const HISTORY_MS: i64 = 5 * 86_400_000;

fn detector(training: &str) -> Arc<Detector> {
    let text = format!("detectors: [{{name: net, match: [rx], window: 1h, training: {training}}}]");
    Config::parse(&text).expect("a valid configuration").detectors.remove(0)
}

fn feature(device: &str) -> Labels {
    Labels::new([(METRIC_NAME, "rx"), ("device", device)]).expect("valid")
}

/// A counter that grows by about 100 a second, scraped from one step to another.
fn counter(device: &str, steps: std::ops::Range<i64>) -> Series {
    let sample =
        |i: i64| Sample { timestamp_ms: START_MS + i * STEP_MS, value: (i * 1500 + i * i % 97) as f64 };
    (feature(device), steps.map(sample).collect())
}

/// These series as history, and a live window that knows their features.
fn window(series: Vec<Series>) -> Window {
    let mut live = Window::new(HISTORY_MS);
    series.iter().for_each(|(labels, _)| assert!(live.column(labels).is_some()));
    join(&series, &live, HISTORY_MS)
}

fn trained(detector: &Detector, window: &Window) -> Model {
    match train(detector, window, NonZeroUsize::MIN).expect("the parameters suit") {
        Outcome::Trained(model) => *model,
        other => panic!("{other:?}"),
    }
}

#[test]
fn waits_for_the_minimum_of_settled_rows() {
    let detector = detector("{minimum: 10m}");
    // 40 steps are ten minutes, but the first minute's rates are not settled.
    let short = train(&detector, &window(vec![counter("eth0", 0..41)]), NonZeroUsize::MIN);
    assert!(matches!(short, Ok(Outcome::TooShort { have_ms: 540_000 })), "{short:?}");
    // What settling still takes is lacking too.
    let young = train(&detector, &window(vec![counter("eth0", 0..2)]), NonZeroUsize::MIN);
    assert!(matches!(young, Ok(Outcome::TooShort { have_ms: -45_000 })), "{young:?}");
    let model = trained(&detector, &window(vec![counter("eth0", 0..45)]));
    assert_eq!(model.observed_ms, 600_000);
    assert_eq!(model.n_rows, 41, "from one minute on");
}

#[test]
fn a_gap_does_not_count_as_history() {
    let detector = detector("{minimum: 1h}");
    let (labels, mut samples) = counter("eth0", 0..10);
    samples.extend(counter("eth0", 1000..1010).1);
    let outcome = train(&detector, &window(vec![(labels, samples)]), NonZeroUsize::MIN);
    // twice nine steps and one gap of five minutes, less the minute to settle
    assert!(matches!(outcome, Ok(Outcome::TooShort { have_ms: 510_000 })), "{outcome:?}");
}

#[test]
fn the_schema_is_what_is_alive_and_was_there_long_enough() {
    let detector = detector("{minimum: 10m}");
    let series = vec![
        counter("eth0", 0..100),
        counter("gone", 0..90),
        counter("new", 95..100),
        counter("a_scrape_short", 0..99),
    ];
    let model = trained(&detector, &window(series));
    assert_eq!(model.schema.features, [feature("a_scrape_short"), feature("eth0")]);
}

#[test]
fn history_and_live_window_are_joined_and_the_same_twice_is_once() {
    let detector = detector("{minimum: 10m}");
    let mut live = Window::new(3_600_000);
    let column = live.column(&feature("eth0")).expect("few");
    counter("eth0", 50..100)
        .1
        .into_iter()
        .for_each(|sample| assert_eq!(live.push(column, sample), Push::Stored));
    let whole = trained(&detector, &window(vec![counter("eth0", 0..100)]));
    for past in [0..100, 0..60] {
        let joined = join(&[counter("eth0", past)], &live, HISTORY_MS);
        let model = trained(&detector, &joined);
        assert_eq!(model.n_rows, whole.n_rows);
        assert_eq!(model.forest, whole.forest);
    }
    let foreign = join(&[counter("eth0", 0..100), counter("not_live", 0..100)], &live, HISTORY_MS);
    assert_eq!(trained(&detector, &foreign).schema.features, [feature("eth0")]);
    let alone = trained(&detector, &join(&[], &live, HISTORY_MS));
    assert_eq!(alone.n_rows, 46);
}

#[test]
fn the_same_history_gives_the_same_forest_on_any_number_of_threads() {
    let detector = detector("{minimum: 10m}");
    let window = window(vec![counter("eth0", 0..400), counter("lo", 0..400)]);
    let one = trained(&detector, &window);
    for threads in [2, 7] {
        let threads = NonZeroUsize::new(threads).expect("above 0");
        let Ok(Outcome::Trained(model)) = train(&detector, &window, threads) else {
            panic!("it trained before")
        };
        assert_eq!(model.forest, one.forest);
    }
}

#[test]
fn values_that_are_not_finite_are_left_out() {
    let detector = detector("{minimum: 10m}");
    let (labels, mut samples) = counter("eth0", 0..100);
    samples[50].value = f64::INFINITY;
    let model = trained(&detector, &window(vec![(labels, samples)]));
    // the infinity is in the range of five rows, the row of its own scrape and four more
    assert!((86..=92).contains(&model.n_rows), "{}", model.n_rows);
}

#[test]
fn a_young_model_is_renewed_soon_and_an_old_one_on_schedule() {
    let config = Config::default().detectors[0].training.clone();
    for (observed_minutes, pause) in [(0, "15s"), (60, "15m"), (24 * 60, "6h"), (5 * 24 * 60, "1d")] {
        assert_eq!(duration::Display(config.pause(observed_minutes * 60_000)).to_string(), pause);
    }
}
