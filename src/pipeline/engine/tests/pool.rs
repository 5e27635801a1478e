//! A group without history is scored by what others like it have taught.

use super::*;
use crate::pipeline::group::snapshot::GroupSnapshot;
use crate::snapshot;
use crate::time::now_ms;
use crate::train::{ModelFitter, TrainingSet};
use crate::window::Score;

const CONFIG: &str =
    "detectors: [{name: net, match: [rx], by: [instance], transform: value, training: {min_history: 10m}}]";

/// One scrape of a host.
fn scrape(bench: &mut Bench, host: &str, devices: &[&str], i: i64) {
    let sample = |device: &str| {
        let value = f64::from(host.as_bytes()[0]) + (i * i % (97 + device.len() as i64)) as f64;
        let labels = [(METRIC_NAME, "rx"), ("device", device), ("instance", host)];
        series(&labels, &[(START_MS + i * 15_000, value)])
    };
    bench.send(devices.iter().map(|device| sample(device)).collect());
}

fn trained_on_own_history(job: &TrainingJob, version: u64) -> TrainingOutcome {
    let rows =
        TrainingSet::from_window(&job.detector, &job.window, &[], job.learned_to_ms).expect("enough history");
    let fitter = ModelFitter::for_detector(&job.detector, Some(job.labels.clone()), now_ms());
    let model = Arc::new(fitter.fit(&rows).expect("the parameters suit").model);
    let name = format!("net.{}", job.labels.get("instance"));
    let deployed = DeployedModel::new(model, name, Some(version));
    TrainingOutcome::Model { deployed, is_new: true, warm_start: WarmStart::default(), seconds: 1.0 }
}

fn pooled(job: &TrainingJob, have_ms: i64) -> TrainingOutcome {
    let pool = job.pool.as_ref().expect("others like it");
    let model = pool.train(&job.detector, START_MS, NonZeroUsize::MIN).expect("the parameters suit");
    let model = Arc::new(model.expect("enough history"));
    let deployed = DeployedModel::new(model, "net".into(), None);
    let required_ms = crate::time::millis(job.detector.training.min_history);
    let history = ShortHistory { have_ms, required_ms };
    TrainingOutcome::Pooled { history, deployed, warm_start: WarmStart::default(), seconds: 1.0 }
}

/// A bench whose hosts have models of their own of two devices each.
fn bench_with_models(hosts: &[&str]) -> Bench {
    let mut bench = Bench::new(CONFIG);
    for host in hosts {
        (0..200).for_each(|i| scrape(&mut bench, host, &["eth0", "lo"], i));
    }
    bench.tick(Instant::now());
    for _ in hosts {
        let job = bench.jobs.try_recv().expect("a first training");
        assert!(job.pool.is_none(), "nobody to learn from yet");
        bench.engine.handle_training_outcome(job.group, trained_on_own_history(&job, 1), Instant::now());
    }
    bench
}

fn group<'b>(bench: &'b mut Bench, host: &str) -> &'b super::super::super::group::Group {
    let group = bench.groups().into_iter().find(|(_, group)| group.labels.get("instance") == host);
    group.expect("it was scraped").1
}

fn scores(bench: &mut Bench, host: &str) -> Vec<(i64, Score)> {
    group(bench, host).window().scores(ModelRole::Champion, i64::MIN, i64::MAX).collect()
}

#[test]
fn a_new_group_is_scored_from_its_first_row_until_it_has_its_own_model() {
    let mut bench = bench_with_models(&["a", "b", "d"]);
    // The scrape comes in two requests, and then another.
    scrape(&mut bench, "c", &["eth0"], 200);
    let now = Instant::now();
    bench.tick(now);
    let job = bench.jobs.try_recv().expect("a first training");
    assert!(job.pool.is_none(), "it is not like them yet");
    bench.engine.handle_training_outcome(
        job.group,
        TrainingOutcome::TooShort(ShortHistory { have_ms: 0, required_ms: 3_600_000 }),
        now,
    );
    scrape(&mut bench, "c", &["lo"], 200);
    scrape(&mut bench, "c", &["eth0", "lo"], 201);
    bench.tick(now + Duration::from_millis(500));
    let job = bench.jobs.try_recv().expect("another, at once");
    assert_eq!(
        (job.reason, job.pool.as_ref().map(|pool| pool.windows.len())),
        (TrainingReason::First, Some(3))
    );
    let readiness = bench.engine.readiness.sender.subscribe();
    bench.engine.handle_training_outcome(job.group, pooled(&job, 595_000), now);
    let text = readiness.borrow().text.clone();
    assert_eq!(text, "net: 4 of 4 groups have a model, 1 of them a pooled one");
    scrape(&mut bench, "c", &["eth0", "lo"], 202);
    let pooled_scores = scores(&mut bench, "c");
    let times: Vec<i64> = pooled_scores.iter().map(|(timestamp_ms, _)| *timestamp_ms).collect();
    assert_eq!(times, [200, 201, 202].map(|i| START_MS + i * 15_000));
    let info = r#"model_info{detector="net",instance="c",job="",model="net",version="",alias="pooled""#;
    let page = |bench: &Bench| {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &bench.registry).expect("encodes");
        page
    };
    assert!(page(&bench).contains(info), "{}", page(&bench));
    assert_eq!(bench.metric(r#"training_runs_total{detector="net",outcome="pooled"}"#), 1);
    let c = group(&mut bench, "c");
    assert_eq!((c.deployment(2).champion, c.progress(now) < 1.0), (None, true), "it is not there yet");
    assert!(c.checkpoint().is_none());

    // The group's own history is long enough: earlier scores stay.
    (203..280).for_each(|i| scrape(&mut bench, "c", &["eth0", "lo"], i));
    let pooled_scores = scores(&mut bench, "c");
    assert_eq!(pooled_scores.len(), 80);
    bench.tick(now + Duration::from_secs(6));
    let job = bench.jobs.try_recv().expect("a model of its own is due");
    assert_eq!((job.reason, job.pool.is_none()), (TrainingReason::First, true));
    bench.engine.handle_training_outcome(job.group, trained_on_own_history(&job, 1), now);
    assert_eq!(scores(&mut bench, "c"), pooled_scores);
    let c = group(&mut bench, "c");
    let champion = c.deployment(2).champion.expect("it stays");
    assert_eq!((champion.0.as_str(), champion.1, c.progress(now)), ("net.c", Some(1), 1.0));
    assert_eq!(readiness.borrow().text, "net: 4 of 4 groups have a model");
    assert!(!page(&bench).contains(r#"alias="pooled""#));
    scrape(&mut bench, "c", &["eth0", "lo"], 280);
    assert_eq!(scores(&mut bench, "c").len(), 81);
}

/// It is asked about before those that it learns from have their models back.
#[test]
fn after_a_restart_a_group_has_a_pooled_model_as_soon_as_possible() {
    let mut bench = bench_with_models(&["a", "b", "d"]);
    scrape(&mut bench, "c", &["eth0", "lo"], 200);
    let now = Instant::now();
    bench.tick(now);
    let job = bench.jobs.try_recv().expect("a first training");
    bench.engine.handle_training_outcome(job.group, pooled(&job, 0), now);
    scrape(&mut bench, "c", &["eth0", "lo"], 201);
    let before = scores(&mut bench, "c");
    let mut snapshots = Vec::new();
    while let Some(step) = bench.engine.next_snapshot(snapshots.last().map(|(id, _)| *id)) {
        let bytes = GroupSnapshot::encode(*step.snapshot.expect("it has changed")).expect("small");
        snapshots.push((step.id, snapshot::decode(&bytes).expect("its own bytes")));
    }
    let snapshots: Vec<_> = snapshots.into_iter().map(|(_, snapshot)| snapshot).collect();

    let mut bench = Bench::new(CONFIG);
    let now = Instant::now();
    bench.engine.restore(snapshots, now, |outcome| assert_eq!(outcome, "restored"));
    bench.tick(now);
    let mut jobs: Vec<TrainingJob> = std::iter::from_fn(|| bench.jobs.try_recv().ok()).collect();
    jobs.sort_by_key(|job| job.labels.get("instance") != "c");
    assert!(jobs.len() == 4 && jobs[0].pool.is_none());
    bench.engine.handle_training_outcome(
        jobs[0].group,
        TrainingOutcome::TooShort(ShortHistory { have_ms: 0, required_ms: 3_600_000 }),
        now,
    );
    jobs[1..]
        .iter()
        .for_each(|job| bench.engine.handle_training_outcome(job.group, trained_on_own_history(job, 1), now));
    scrape(&mut bench, "c", &["eth0", "lo"], 202);
    bench.tick(now + Duration::from_secs(1));
    let job = bench.jobs.try_recv().expect("it is asked for again");
    bench.engine.handle_training_outcome(job.group, pooled(&job, 0), now + Duration::from_secs(1));
    // Earlier scores stay, and rows that arrived meanwhile are scored.
    let after = scores(&mut bench, "c");
    assert_eq!((&after[..2], after.len()), (&before[..], 3));
    bench.tick(now + Duration::from_secs(3));
    assert!(bench.jobs.try_recv().is_err(), "its own has time");
}

#[test]
fn a_group_with_other_features_waits_for_its_own_model() {
    let mut bench = bench_with_models(&["a", "b", "e"]);
    for (host, devices) in [("c", &["eth0"][..]), ("d", &["eth0", "lo", "eth1"])] {
        scrape(&mut bench, host, devices, 200);
        bench.tick(Instant::now());
        let job = bench.jobs.try_recv().expect("a first training");
        assert_eq!((job.labels.get("instance"), job.pool.is_none()), (host, true));
    }
}

#[test]
fn one_other_group_is_enough_for_a_pooled_model() {
    let mut bench = bench_with_models(&["a"]);
    scrape(&mut bench, "c", &["eth0", "lo"], 200);
    bench.tick(Instant::now());
    let pool = bench.jobs.try_recv().expect("a first training").pool.expect("a pool");
    assert_eq!(pool.windows.len(), 1);
}

#[test]
fn a_group_with_a_pooled_model_is_not_in_the_pool_of_others() {
    let mut bench = bench_with_models(&["a", "b", "e"]);
    for (host, n_others) in [("c", 3), ("d", 3)] {
        scrape(&mut bench, host, &["eth0", "lo"], 200);
        bench.tick(Instant::now());
        let job = bench.jobs.try_recv().expect("a first training");
        assert_eq!(job.pool.as_ref().map(|pool| pool.windows.len()), Some(n_others));
        bench.engine.handle_training_outcome(job.group, pooled(&job, 0), Instant::now());
    }
}

#[test]
fn the_order_in_which_groups_came_does_not_matter() {
    let model = |hosts: &[&str]| {
        let mut bench = bench_with_models(hosts);
        scrape(&mut bench, "z", &["eth0", "lo"], 200);
        bench.tick(Instant::now());
        let job = bench.jobs.try_recv().expect("a first training");
        let TrainingOutcome::Pooled { deployed, .. } = pooled(&job, 0) else { panic!("made just now") };
        deployed.model
    };
    assert_eq!(model(&["a", "b", "c"]), model(&["c", "a", "b"]));
}
