use super::*;
use crate::config::Config;
use crate::detector::Detector;
use crate::history::SeriesSamples;
use crate::models::{FittedModel, Model, TrainingRange};
use crate::prom::{Labels, METRIC_NAME, Sample};
use crate::report::zone::Zone;
use crate::window::{PushOutcome, Window, build};
use std::num::NonZeroUsize;
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
fn counter(device: &str, steps: std::ops::Range<i64>) -> SeriesSamples {
    let sample =
        |i: i64| Sample { timestamp_ms: START_MS + i * STEP_MS, value: (i * 1500 + i * i % 97) as f64 };
    (feature(device), steps.map(sample).collect())
}

/// A window of these series as history, joined with a live window that has their features.
fn window(series: Vec<SeriesSamples>) -> Window {
    let mut live = Window::new(HISTORY_MS);
    series.iter().for_each(|(labels, _)| assert!(live.get_or_add_column(labels).is_some()));
    build::join(&series, &live, HISTORY_MS)
}

fn rows(detector: &Detector, window: &Window) -> Result<TrainingSet, TrainingSetError> {
    TrainingSet::from_window(detector, window, &[], i64::MAX)
}

fn fit(detector: &Detector, rows: &TrainingSet, threads: usize) -> Trained {
    let threads = NonZeroUsize::new(threads).expect("above 0");
    let fitter = ModelFitter { threads, ..ModelFitter::for_detector(detector, None, START_MS) };
    fitter.fit(rows).expect("the parameters suit")
}

fn trained(detector: &Detector, window: &Window) -> Model {
    fit(detector, &rows(detector, window).expect("rows"), 1).model
}

fn history(model: &Model) -> &TrainingRange {
    model.card.training_range.as_ref().expect("a fitted model has a training range")
}

#[test]
fn waits_for_the_minimum_of_full_rows() {
    let detector = detector("{min_history: 10m}");
    // 40 steps are ten minutes, but the rates of the first minute do not cover their full range.
    let short = rows(&detector, &window(vec![counter("eth0", 0..41)]));
    assert!(matches!(short, Err(TrainingSetError::TooShort { have_ms: 540_000 })), "{short:?}");
    // The rest of the warm-up counts as missing.
    let young = rows(&detector, &window(vec![counter("eth0", 0..2)]));
    assert!(matches!(young, Err(TrainingSetError::TooShort { have_ms: -45_000 })), "{young:?}");
    let model = trained(&detector, &window(vec![counter("eth0", 0..45)]));
    assert_eq!(history(&model).observed_ms, 600_000);
    assert_eq!(
        history(&model).n_rows,
        18,
        "the rows from one minute on, without the first 23, which have no deviation"
    );
}

#[test]
fn a_gap_does_not_count_as_history() {
    let detector = detector("{min_history: 1h}");
    let (labels, mut samples) = counter("eth0", 0..10);
    samples.extend(counter("eth0", 1000..1010).1);
    let outcome = rows(&detector, &window(vec![(labels, samples)]));
    // Twice nine steps and a gap that counts five minutes, minus one minute of warm-up.
    assert!(matches!(outcome, Err(TrainingSetError::TooShort { have_ms: 510_000 })), "{outcome:?}");
}

#[test]
fn the_schema_has_live_features_with_enough_history() {
    let detector = detector("{min_history: 10m}");
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
fn a_feature_joins_with_a_day_or_a_quarter_of_the_longest_history() {
    let detector = detector("{min_history: 10m}");
    let features = |old: i64, young: i64| {
        let series = vec![counter("eth0", 0..old), counter("new", old - young..old)];
        rows(&detector, &window(series)).expect("rows").schema.features
    };
    let both = [feature("eth0"), feature("new")];
    assert_eq!(features(200, 50), both, "all histories are short");
    assert_eq!(features(1000, 200), both[..1], "an hour among four");
    assert_eq!(features(1000, 240), both);
    assert_eq!(features(30_000, 5100), both[..1]);
    assert_eq!(features(30_000, 5300), both, "a day is enough for any age of the others");
}

#[test]
fn a_feature_that_began_later_does_not_shorten_the_history_of_others() {
    let day = 24 * 240;
    let both = window(vec![counter("eth0", 0..2 * day), counter("new", 3 * day / 2..2 * day)]);
    let detector_of = |kind: &str| {
        let text = format!(
            "detectors: [{{name: net, match: [rx], training: {{min_history: 1h}}, model: {{kind: {kind}}}}}]"
        );
        Config::parse(&text).expect("a valid configuration").detectors.remove(0)
    };
    let detector = detector_of("extended_isolation_forest");
    let rows = rows(&detector, &both).expect("rows");
    assert_eq!(rows.schema.features, [feature("eth0"), feature("new")]);
    let [old, new] = [0, 1].map(|column| &rows.values[column * rows.len()..][..rows.len()]);
    assert!(old.iter().all(|value| value.is_finite()));
    let unknown = new.iter().take_while(|value| value.is_nan()).count();
    assert_eq!(
        (rows.len(), unknown),
        (2 * day as usize - 8, 3 * day as usize / 2 - 4),
        "the first four rows of the new feature have no full-range rate"
    );
    assert!(new[unknown..].iter().all(|value| value.is_finite()));

    let trained = fit(&detector, &rows, 2);
    let report = register::prepare("net", None, None, &trained, &rows, &Zone::default()).report;
    assert!(
        report.contains("device=&quot;new&quot;") || report.contains("device=\"new\""),
        "the report shows the new feature"
    );
    assert!(!report.contains("NaN"), "the report starts the plot at the first value");
    let FittedModel::Extended(mut detection) = trained.model.fitted else { panic!("an extended forest") };
    let assessment =
        detection.assess(START_MS + 2 * day * STEP_MS, &[100.0, 100.0]).expect("a row after the last one");
    assert!(
        assessment.expected_range[0].iter().all(|bound| bound.is_finite()),
        "the old feature has a seasonal profile"
    );
    assert!(assessment.expected_range[1].iter().all(|bound| bound.is_nan()), "the new feature has none");

    // A standard forest accepts no missing values.
    let plain =
        TrainingSet::from_window(&detector_of("isolation_forest"), &both, &[], i64::MAX).expect("rows");
    assert_eq!(plain.len(), day as usize / 2 - 4);
}

#[test]
fn history_and_live_window_are_joined_without_duplicates() {
    let detector = detector("{min_history: 10m}");
    let mut live = Window::new(3_600_000);
    let column = live.get_or_add_column(&feature("eth0")).expect("few");
    counter("eth0", 50..100)
        .1
        .into_iter()
        .for_each(|sample| assert_eq!(live.push(column, sample), PushOutcome::Stored));
    let whole = trained(&detector, &window(vec![counter("eth0", 0..100)]));
    for range in [0..100, 0..60] {
        let joined = build::join(&[counter("eth0", range)], &live, HISTORY_MS);
        let model = trained(&detector, &joined);
        assert_eq!(history(&model).n_rows, history(&whole).n_rows);
        assert_eq!(model.fitted, whole.fitted);
    }
    let foreign = build::join(&[counter("eth0", 0..100), counter("not_live", 0..100)], &live, HISTORY_MS);
    assert_eq!(trained(&detector, &foreign).schema.features, [feature("eth0")]);
    let alone = trained(&detector, &build::join(&[], &live, HISTORY_MS));
    assert_eq!(history(&alone).n_rows, 46 - 23);
}

#[test]
fn the_same_history_gives_the_same_forest_on_any_number_of_threads() {
    let detector = detector("{min_history: 10m}");
    let window = window(vec![counter("eth0", 0..400), counter("lo", 0..400)]);
    let rows = rows(&detector, &window).expect("rows");
    let one = fit(&detector, &rows, 1);
    for threads in [2, 7] {
        assert_eq!(fit(&detector, &rows, threads), one);
    }
}

#[test]
fn the_sweep_takes_a_size_that_passes_the_gate() {
    let detector = detector("{min_history: 10m, sweep: [64, 5, 16, 9999]}");
    let window = window(vec![counter("eth0", 0..400), counter("lo", 0..400)]);
    let rows = rows(&detector, &window).expect("rows");
    let Trained { model, sweep, .. } = fit(&detector, &rows, 2);
    let validation = sweep.expect("enough rows").validation;
    let sizes: Vec<usize> = validation.trials.iter().map(|trial| trial.max_samples).collect();
    // 396 full-range rows, of which 373 have all derived features; the smallest training part has 298 of them.
    assert_eq!(sizes, [5, 16, 64, 298]);
    for trial in &validation.trials {
        assert_eq!([trial.kl.len(), trial.quantile_kl.len()], [cross_validation::N_SPLITS; 2]);
    }
    let chosen = size_choice::choose(&validation.trials, |_| Ok::<_, ()>(true)).expect("no error");
    assert_eq!(Some(validation.chosen), chosen, "all sizes pass");
    let size = validation.best().max_samples.to_string();
    assert!(model.card.params.contains(&("max_samples".into(), size)));
    assert!(validation.held_out.incidents_per_day.is_some(), "an extended forest has incidents");
}

#[test]
fn trees_of_256_rows_are_fitted_if_no_size_passes_the_gate() {
    let gate = "gate: {max_alert_rate: 0, max_incidents_per_day: 0, max_kl: 0}";
    let detector = detector(&format!("{{min_history: 10m, sweep: [5, 16], {gate}}}"));
    let window = window(vec![counter("eth0", 0..400), counter("lo", 0..400)]);
    let trained = fit(&detector, &rows(&detector, &window).expect("rows"), 2);
    let validation = trained.sweep.as_ref().expect("enough rows").validation.clone();
    let sizes: Vec<usize> = validation.trials.iter().map(|trial| trial.max_samples).collect();
    assert_eq!((sizes, validation.chosen), (vec![5, 16, 256], 2));
    let params = &trained.model.card.params;
    assert!(params.contains(&("max_samples".into(), "256".into())), "{params:?}");
    assert!(
        !register::check_gate(&detector.training.gate, &trained).is_empty(),
        "the gate has the last word"
    );
}

/// A tree of two rows has depth 1 everywhere.
#[test]
fn a_forest_with_one_decision_is_refused() {
    let text = |max_samples: usize| {
        format!(
            "detectors: [{{name: net, match: [rx], window: 1h, training: {{min_history: 10m}}, \
             model: {{kind: isolation_forest, max_samples: {max_samples}}}}}]"
        )
    };
    let reasons = |max_samples| {
        let detector = Config::parse(&text(max_samples)).expect("a valid configuration").detectors.remove(0);
        let rows = rows(&detector, &window(vec![counter("eth0", 0..400)])).expect("rows");
        register::check_gate(&detector.training.gate, &fit(&detector, &rows, 1))
    };
    assert_eq!(reasons(2), ["the forest has the same decision for all rows"]);
    assert!(reasons(256).is_empty());
}

#[test]
fn exclusions_extend_by_the_range_of_rates() {
    let detector = detector("{min_history: 10m}");
    let window = window(vec![counter("eth0", 0..200)]);
    let all = rows(&detector, &window).expect("rows");
    let exclusion = Exclusion {
        from_ms: START_MS + 100 * STEP_MS,
        to_ms: START_MS + 109 * STEP_MS,
        reason: "release".into(),
    };
    let rows = TrainingSet::from_window(&detector, &window, std::slice::from_ref(&exclusion), i64::MAX)
        .expect("rows");
    // Ten rows, and the rows of one minute after them.
    assert_eq!(rows.excluded, [(exclusion, 14)]);
    assert_eq!(rows.len(), all.len() - 14);
    let everything = Exclusion { from_ms: 0, to_ms: i64::MAX, reason: String::new() };
    assert_eq!(
        TrainingSet::from_window(&detector, &window, &[everything], i64::MAX),
        Err(TrainingSetError::AllExcluded { n_rows: all.len() })
    );
}

#[test]
fn values_that_are_not_finite_are_left_out() {
    let detector = detector("{min_history: 10m}");
    let (labels, mut samples) = counter("eth0", 0..100);
    samples[50].value = f64::INFINITY;
    let model = trained(&detector, &window(vec![(labels, samples)]));
    // The infinite sample is in the range of five rows: that of its own scrape and four more.
    assert!((63..=69).contains(&history(&model).n_rows), "{}", history(&model).n_rows);
}

#[test]
fn an_extended_forest_is_trained_by_the_same_steps() {
    let text = "detectors: [{name: net, match: [rx], window: 1h, training: {min_history: 10m, sweep: [20, 100]}, \
                model: {kind: extended_isolation_forest, n_estimators: 20}}]";
    let detector = Config::parse(text).expect("a valid configuration").detectors.remove(0);
    let rows =
        rows(&detector, &window(vec![counter("eth0", 0..200), counter("eth1", 0..200)])).expect("rows");
    let trained = fit(&detector, &rows, 1);
    assert_eq!(fit(&detector, &rows, 2), trained, "the number of threads does not matter");
    assert_eq!(trained.model.fitted.kind(), crate::models::ModelKind::ExtendedIsolationForest);
    let sizes: Vec<usize> =
        trained.sweep.iter().flat_map(|s| &s.validation.trials).map(|t| t.max_samples).collect();
    assert_eq!(sizes, [20, 100]);
    let params: Vec<&str> = trained.model.card.params.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(params, ["kind", "n_estimators", "max_samples", "ndim", "random_state"]);
}

#[test]
fn a_feature_with_few_rows_or_none_costs_the_others_no_rows() {
    let detector = detector("{min_history: 10m}");
    let both = |early: std::ops::Range<i64>| {
        let (labels, mut samples) = counter("vpn", early);
        samples.extend(counter("vpn", 7000..10_000).1);
        window(vec![counter("eth0", 0..10_000), (labels, samples)])
    };
    let few = rows(&detector, &both(100..108)).expect("rows");
    assert_eq!(few.len(), 9992, "its early samples do not count");
    let most = rows(&detector, &both(0..6000)).expect("rows");
    assert_eq!(most.len(), 8992, "it was present most of the time, and absent for a thousand steps");

    let excluded =
        Exclusion { from_ms: START_MS + 6990 * STEP_MS, to_ms: i64::MAX, reason: "release".into() };
    let without = TrainingSet::from_window(&detector, &both(100..108), &[excluded], i64::MAX).expect("rows");
    assert_eq!((without.schema.features.as_slice(), without.len()), (&[feature("eth0")][..], 6986));
}
