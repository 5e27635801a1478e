//! Labels outside of `by` that change, and labels that tell series apart.

use super::sequential::*;
use super::*;
use crate::detect::DeviationReason;
use crate::pipeline::output_series::{OutputSeries, job_incident_labels};
use crate::pipeline::serving::Contribution;

/// A scrape of both devices by the exporter in this pod, with one more label.
fn scrape_of(bench: &mut Bench, (name, value): (&str, &str), i: i64) {
    let metric = (METRIC_NAME, "node_network_receive_bytes_total");
    let of_device = |device| {
        let labels = [metric, ("device", device), ("instance", "a"), ("job", "node"), (name, value)];
        series(&labels, &[(START_MS + i * 15_000, i as f64 * 100.0)])
    };
    bench.send(vec![of_device("eth0"), of_device("lo")]);
}

fn serving_pod() -> Bench {
    let mut bench = Bench::new("");
    scrape_of(&mut bench, ("pod", "x"), 0);
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, two_features())]));
    (1..=8).for_each(|i| scrape_of(&mut bench, ("pod", "x"), i));
    bench
}

fn n_scored(bench: &mut Bench) -> usize {
    bench.groups()[0].1.window().scores(ModelRole::Champion, i64::MIN, i64::MAX).count()
}

const CHANGES: &str = r#"feature_label_changes_total{detector="node_network",label="pod",outcome="#;

#[test]
fn a_replaced_pod_goes_on_with_the_features_and_the_model() {
    let mut bench = serving_pod();
    let before = n_scored(&mut bench);
    for i in 9..=12 {
        scrape_of(&mut bench, ("pod", "y"), i);
        bench.tick(Instant::now());
    }
    assert_eq!(n_scored(&mut bench), before + 4);
    assert_eq!(bench.groups()[0].1.n_columns(), 2);
    assert!(bench.jobs.try_recv().is_err(), "the features are the same");
    assert_eq!(bench.metric(&format!("{CHANGES}\"continued\"}}")), 2);
}

#[test]
fn pods_that_exist_at_the_same_time_are_told_apart() {
    let mut bench = Bench::new("");
    for i in 0..3 {
        for pod in ["x", "y", "z"] {
            scrape_of(&mut bench, ("pod", pod), i);
        }
    }
    bench.tick(Instant::now());
    let (_, group) = bench.groups().remove(0);
    let features: Vec<String> = group.window().features().map(|(labels, ..)| labels.to_string()).collect();
    let feature = |pod, device| format!("node_network_receive_bytes_total{{device={device:?}, pod={pod:?}}}");
    assert_eq!(features.len(), 6, "{features:?}");
    for pod in ["x", "y", "z"] {
        assert!(features.contains(&feature(pod, "eth0")) && features.contains(&feature(pod, "lo")));
    }
    assert_eq!(bench.metric(&format!("{CHANGES}\"told_apart\"}}")), 1);
    let dropped = |reason| format!("ingest_samples_dropped_total{{reason={reason:?}}}");
    assert_eq!(bench.metric(&dropped("conflict")), 0, "no series writes over another");
}

#[test]
fn a_model_without_its_features_is_shown() {
    let mut bench = serving();
    (1..=8).for_each(|i| scrape(&mut bench, i));
    for i in 9..=14 {
        let other = |device| rx(device, &[(START_MS + i * 15_000, i as f64 * 100.0)]);
        bench.send(vec![other("eth8"), other("eth9")]);
    }
    bench.tick(Instant::now() + Duration::from_secs(60));
    let group = r#"detector="node_network",instance="a",job="node""#;
    assert_eq!(bench.metric(&format!("missing_features{{{group}}}")), 2);
    let incomplete = bench.metric(r#"rows_total{detector="node_network",state="incomplete"}"#);
    assert_eq!(incomplete, 5, "the first row is within the grace period");
    let text = bench.engine.readiness.sender.borrow().text.clone();
    assert_eq!(text, "node_network: 1 of 1 groups have a model, 1 of them receive none of its features");
}

/// The counters of a scrape plus a constant, with one more label.
fn push_of(bench: &mut Bench, rack: &str, scrapes: std::ops::Range<i64>, plus: f64) {
    for i in scrapes {
        let of_device = |(device, value): (&str, f64)| {
            let labels = [NAME, ("device", device), ("instance", "a"), ("job", "node"), ("rack", rack)];
            series(&labels, &[(time(i), value + plus)])
        };
        bench.send(counters(i).map(of_device).to_vec());
    }
}

fn scores(bench: &mut Bench) -> Vec<(i64, u64)> {
    let groups = bench.groups();
    let scores = groups[0].1.window().scores(ModelRole::Champion, i64::MIN, i64::MAX);
    scores.map(|(then, score)| (then, score.decision.to_bits())).collect()
}

#[test]
fn a_label_that_is_not_ignored_changes_and_the_model_goes_on() {
    for model in [sequential_model(), two_features()] {
        let expected = scores(&mut running(&model, 280));
        let mut bench = running(&model, 240);
        let mut now = Instant::now();
        let label = |outcome: &str| {
            let labels = r#"feature_label_changes_total{detector="node_network",label="rack",outcome="#;
            format!("{labels}{outcome:?}}}")
        };
        // A label appears, changes, and is as before.
        for (i, (rack, scrapes)) in
            [("r1", 240..250), ("r2", 250..262), ("r1", 262..270), ("", 270..280)].into_iter().enumerate()
        {
            push_of(&mut bench, rack, scrapes, 0.0);
            now += Duration::from_secs(60);
            bench.tick(now);
            assert_eq!(bench.metric(&label("continued")), 2 * (i as u64 + 1));
            let group = r#"detector="node_network",instance="a",job="node""#;
            assert_eq!(bench.metric(&format!("missing_features{{{group}}}")), 0, "{rack}");
        }
        assert!(scores(&mut bench) == expected, "not a score is lost or other");
        assert_eq!(bench.metric(r#"rows_total{detector="node_network",state="complete"}"#), 80);
        let text = bench.engine.readiness.sender.borrow().text.clone();
        assert_eq!(text, "node_network: 1 of 1 groups have a model");
        while let Ok(job) = bench.jobs.try_recv() {
            assert_eq!(job.reason, TrainingReason::First, "the features are the same");
        }
    }
}

/// Two racks at the same time: neither is the one that goes on.
#[test]
fn series_that_exist_at_the_same_time_continue_no_features() {
    let mut bench = running(&sequential_model(), 240);
    for i in 240..250 {
        push(&mut bench, [i]);
        push_of(&mut bench, "r1", i..i + 1, 1.0);
    }
    push_of(&mut bench, "r1", 250..260, 1.0);
    bench.tick(Instant::now() + Duration::from_secs(60));
    assert_eq!(bench.groups()[0].1.newest_scored_ms(), Some(time(249)));
    let group = r#"detector="node_network",instance="a",job="node""#;
    assert_eq!(bench.metric(&format!("missing_features{{{group}}}")), 2);
}

/// An external label of Prometheus is on every output of a group, or on none.
#[test]
fn a_label_of_by_is_on_every_output_and_one_of_ignore_on_none() {
    for (key, expected) in
        [("by: [cluster, job, instance]", "west"), ("ignore: [cluster]", ""), ("by: [job, instance]", "")]
    {
        let config = format!("detectors: [{{name: net, match: [node_network_receive_bytes_total], {key}}}]");
        let mut bench = Bench::new(&config);
        scrape_of(&mut bench, ("cluster", "west"), 0);
        let groups = bench.groups();
        let group = &groups[0].1;
        let contribution = Contribution {
            feature: group.window().features().next().expect("two features").0.clone(),
            reason: DeviationReason::Jumped,
            share: 1.0,
            value: 1.0,
            expected_range: [1.0; 3],
        };
        let outputs =
            [ModelRole::Champion, ModelRole::Challenger].into_iter().flat_map(OutputSeries::of_role);
        let contributions = OutputSeries::of_contribution(&contribution, "net", &group.labels);
        for output in outputs.chain(contributions.map(|(output, _)| output)) {
            let labels = output.labels(&group.detector, &group.labels);
            assert_eq!(labels.get("cluster"), expected, "{key}: {labels}");
        }
        let job = job_incident_labels(&group.detector, &group.labels, None);
        assert_eq!(job.get("cluster"), expected, "{key}: {job}");
    }
}
