//! Requests for trainings, and models that come into service.

use super::sequential::{finish_training, push, sequential_model, time};
use super::*;
use crate::train::WriteWatermark;

#[test]
fn training_is_requested_at_once_later_again_and_when_features_change() {
    let mut bench = serving();
    let now = Instant::now();
    assert!(bench.jobs.try_recv().is_err());
    // lo goes for good: the rows are closed without it.
    for i in 1..5 {
        bench.send(vec![rx("eth0", &[(START_MS + i * 15_000, i as f64)])]);
    }
    bench.tick(now + Duration::from_secs(31));
    let job = bench.jobs.try_recv().expect("a training");
    assert_eq!(job.reason, TrainingReason::LostFeature);
    bench.tick(now + Duration::from_secs(32));
    assert!(bench.jobs.try_recv().is_err(), "one at a time");
    bench.engine.handle_training_outcome(
        job.group,
        TrainingOutcome::TooShort(ShortHistory { have_ms: 0, required_ms: 3_600_000 }),
        now,
    );
    bench.tick(now + Duration::from_secs(55));
    assert!(bench.jobs.try_recv().is_ok(), "the model still lacks a feature");
}

/// A feature that is too young for a model of days is asked about once, and left to the next renewal; one that has
/// come back may be old.
#[test]
fn a_young_feature_causes_one_training_only() {
    let mut bench = Bench::new(
        "detectors: [{name: net, match: [node_network_receive_bytes_total], \
         training: {min_history: 10m, interval: 30d}}]",
    );
    let time = |i: i64| START_MS + i * 15_000;
    let now = Instant::now();
    // A group that has fallen silent is not trained.
    let at = |seconds: u64| now + Duration::from_secs(seconds);
    let scrape = |bench: &mut Bench, devices: &[&str], steps: std::ops::Range<i64>, at: Instant| {
        for i in steps {
            let body = compress(devices.iter().map(|device| rx(device, &[(time(i), i as f64)])).collect());
            bench.engine.ingest(ProtocolVersion::V1, None, &body, at, START_MS * 2).expect("valid");
        }
        bench.tick(at);
        bench.tick(at + Duration::from_secs(31));
    };
    scrape(&mut bench, &["eth0", "lo"], 0..60, now);
    let features = two_features().schema.features.clone();
    let model_of_days = |features: &[Labels], to: i64| {
        let (group, history) = (
            Labels::new([("instance", "a"), ("job", "node")]).expect("valid"),
            TrainingRange {
                from_ms: 0,
                to_ms: time(to),
                observed_ms: 5 * 86_400_000,
                n_rows: 20_000,
                n_excluded: 0,
            },
        );
        let card = ModelCard {
            group: Some(group),
            training_range: Some(history),
            created_ms: now_ms(),
            ..ModelCard::default()
        };
        Arc::new(Model { card, ..Model::clone(&model(features.to_vec(), 60_000)) })
    };
    let finish_training = |bench: &mut Bench, features: &[Labels], to: i64| {
        let job = bench.jobs.try_recv().expect("a training");
        let deployed = deployed(&model_of_days(features, to));
        let outcome =
            TrainingOutcome::Model { deployed, is_new: true, warm_start: WarmStart::default(), seconds: 0.0 };
        bench.engine.handle_training_outcome(job.group, outcome, now);
        job.reason
    };
    assert_eq!(finish_training(&mut bench, &features, 59), TrainingReason::First);
    // A third one comes. History is looked at, and the model is made without it: it is of minutes.
    scrape(&mut bench, &["eth0", "lo", "wg0"], 60..64, at(10));
    assert_eq!(finish_training(&mut bench, &features, 63), TrainingReason::NewFeature);
    scrape(&mut bench, &["eth0", "lo", "wg0"], 64..200, at(700));
    assert!(bench.jobs.try_recv().is_err(), "half an hour of it does not outweigh days");
    // lo goes, and comes back.
    scrape(&mut bench, &["eth0", "wg0"], 200..210, at(1400));
    assert_eq!(finish_training(&mut bench, &features[..1], 209), TrainingReason::LostFeature);
    scrape(&mut bench, &["eth0", "lo", "wg0"], 210..212, at(2800));
    let job = bench.jobs.try_recv().expect("a training");
    assert_eq!(job.reason, TrainingReason::NewFeature);
    let card = Box::new(model_of_days(&features, 211).card.clone());
    let held = TrainingOutcome::Challenger { name: "net".into(), version: 2, card, pinned: 1 };
    bench.engine.handle_training_outcome(job.group, held, now);
    scrape(&mut bench, &["eth0", "lo", "wg0"], 212..214, at(4200));
    assert!(bench.jobs.try_recv().is_err(), "the model with the feature is held");
}

/// A model of minutes is renewed every few rows, and the row in which traffic rises is one of them.
#[test]
fn a_renewal_waits_until_a_deviation_is_judged() {
    let trained =
        TrainingRange { from_ms: 0, to_ms: time(200), observed_ms: 60_000, n_rows: 200, n_excluded: 0 };
    let of_minutes = Model::clone(&sequential_model());
    let card = ModelCard { training_range: Some(trained), created_ms: now_ms(), ..of_minutes.card.clone() };
    let model = Arc::new(Model { card, ..of_minutes });
    let requests_after = |scrapes: i64| {
        let mut bench = Bench::new(
            "detectors: [{name: net, match: [node_network_receive_bytes_total], by: [instance, job], grace: 2m}]",
        );
        push(&mut bench, 190..200);
        finish_training(&mut bench, &model, 0..200, WriteWatermark::default());
        push(&mut bench, 200..scrapes);
        let now = Instant::now();
        [14, 16, 74, 76].map(|seconds| {
            bench.tick(now + Duration::from_secs(seconds));
            bench.jobs.try_recv().ok().map(|job| job.learned_to_ms)
        })
    };
    assert_eq!(requests_after(300), [None, Some(time(299)), None, None], "calm");
    assert_eq!(requests_after(302), [None, None, None, Some(time(301) - 60_000)], "a burst");
}

/// Remote read knows a scrape as soon as it is stored; remote write brings it later, at times in another order.
#[test]
fn rows_that_remote_read_had_first_are_scored() {
    let mut bench = Bench::new("");
    for i in [0, 2] {
        scrape(&mut bench, i);
    }
    let model = two_features();
    let sample = |i: i64| Sample { timestamp_ms: START_MS + i * 15_000, value: i as f64 * 100.0 };
    let samples: Vec<Sample> = [1].into_iter().chain(3..=20).map(sample).collect();
    let recent = model.schema.features.iter().map(|labels| (labels.clone(), samples.clone())).collect();
    let (_, group) = bench.groups().remove(0);
    group.install(
        deployed(&model),
        WarmStart { recent, ..WarmStart::default() },
        Instant::now(),
        &mut |_| {},
    );
    for i in [1].into_iter().chain(3..=20) {
        scrape(&mut bench, i);
    }
    let (_, group) = bench.groups().remove(0);
    let scored: Vec<i64> = group
        .window()
        .scores(ModelRole::Champion, i64::MIN, i64::MAX)
        .map(|(at_ms, _)| (at_ms - START_MS) / 15_000)
        .collect();
    assert_eq!(scored, (1..=20).collect::<Vec<i64>>());
}

/// An alias points to a model of other features.
#[test]
fn f24_a_model_of_other_features_is_rejected_and_the_old_one_stays() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    let before = bench.content();
    let feature = |name| Labels::new([(METRIC_NAME, name)]).expect("valid");
    let other = model(vec![feature("node_load1"), feature("node_load5")], 60_000);
    let (id, _) = bench.groups().remove(0);
    for role in [ModelRole::Champion, ModelRole::Challenger] {
        bench.engine.deploy(id, role, Some(deployed(&other)), WarmStart::default(), Instant::now());
    }
    let n_features = bench.groups()[0].1.model_info(ModelRole::Champion).map(|model| model.n_features);
    assert_eq!((n_features, bench.content()), (Some(2), before));
    assert!(bench.groups()[0].1.model_info(ModelRole::Challenger).is_none());
    assert_eq!(bench.metric("models_rejected_total{detector=\"node_network\"}"), 2);
    scrape(&mut bench, 2);
    assert!(bench.engine.next_batch(0, None, 100, START_MS * 2).is_some(), "scores go on");
}

#[test]
fn a_group_in_training_is_trained_after_a_reload_too() {
    let mut bench = Bench::new("");
    scrape(&mut bench, 0);
    bench.tick(Instant::now());
    let before = bench.jobs.try_recv().expect("a first training");
    bench.reload(Arc::new(Config::default()), vec![Arc::default()]);
    bench.engine.handle_training_outcome(
        before.group,
        TrainingOutcome::TooShort(ShortHistory { have_ms: 0, required_ms: 3_600_000 }),
        Instant::now(),
    );
    bench.tick(Instant::now() + Duration::from_secs(1));
    assert!(bench.jobs.try_recv().is_ok());
}

#[test]
fn a_model_whose_features_are_yet_to_come_is_requested_again() {
    let mut bench = Bench::new("");
    scrape(&mut bench, 0);
    let now = Instant::now();
    bench.tick(now);
    let job = bench.jobs.try_recv().expect("a first training");
    bench.engine.handle_training_outcome(job.group, TrainingOutcome::WaitingForFeatures, now);
    bench.tick(now + Duration::from_secs(1));
    let again = bench.jobs.try_recv().expect("it is asked for again");
    assert_eq!((again.reason, again.first_sample_at), (TrainingReason::First, job.first_sample_at));
}
