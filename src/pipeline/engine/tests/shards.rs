//! Groups of a part of the targets.

use super::*;
use crate::history::SeriesSamples;

const HOSTS: [&str; 4] = ["host0", "host1", "host2", "host3"];

fn shard(text: &str) -> Option<Shard> {
    Some(text.parse().expect("a shard"))
}

fn labels(host: &str) -> Labels {
    let name = (METRIC_NAME, "node_network_receive_bytes_total");
    Labels::new([name, ("device", "lo"), ("instance", host), ("job", "node")]).expect("valid")
}

fn send_all(bench: &mut Bench) {
    for host in HOSTS {
        let labels = labels(host);
        let pairs: Vec<(&str, &str)> = labels.iter().collect();
        bench.send(vec![series(&pairs, &[(START_MS, 1.0)])]);
    }
}

fn hosts(bench: &mut Bench) -> Vec<String> {
    let mut hosts: Vec<String> =
        bench.groups().iter().map(|(_, group)| group.labels.get("instance").to_string()).collect();
    hosts.sort();
    hosts
}

#[test]
fn a_shard_has_the_groups_of_its_targets() {
    let mut bench = Bench::of_shard("", shard("0/2"));
    send_all(&mut bench);
    bench.send(vec![series(
        &[(METRIC_NAME, "other"), ("instance", "host0"), ("job", "node")],
        &[(START_MS, 1.0)],
    )]);
    assert_eq!(hosts(&mut bench), ["host1", "host3"]);
    let dropped = |bench: &Bench, reason: &str| {
        bench.metric(&format!("ingest_samples_dropped_total{{reason=\"{reason}\"}}"))
    };
    assert_eq!((dropped(&bench, "wrong_shard"), dropped(&bench, "unwatched")), (2, 1));
    bench.reload(bench.config(), vec![Arc::default()]);
    send_all(&mut bench);
    assert_eq!(hosts(&mut bench), ["host1", "host3"], "a reload keeps the shard");
    assert_eq!(dropped(&bench, "wrong_shard"), 4);

    let history: Vec<SeriesSamples> = HOSTS
        .iter()
        .map(|host| (labels(host), vec![Sample { timestamp_ms: START_MS + 15_000, value: 2.0 }]))
        .collect();
    let detector = bench.config().detectors[0].clone();
    bench.engine.apply_backfill(&detector, &history, Instant::now());
    assert_eq!(hosts(&mut bench), ["host1", "host3"], "history makes no group");
}

#[test]
fn a_snapshot_of_a_group_of_another_shard_is_not_restored() {
    let mut all = Bench::new("");
    send_all(&mut all);
    let mut snapshots = Vec::new();
    let mut after = None;
    while let Some(step) = all.engine.next_snapshot(after) {
        after = Some(step.id);
        let bytes = step.snapshot.expect("it is new").encode().expect("small");
        snapshots.push(crate::snapshot::decode(&bytes).expect("whole"));
    }
    let mut bench = Bench::of_shard("", shard("1/2"));
    let outcomes = std::cell::RefCell::new(Vec::new());
    bench.engine.restore(snapshots, Instant::now(), |outcome| outcomes.borrow_mut().push(outcome));
    assert_eq!(hosts(&mut bench), ["host0", "host2"]);
    let mut outcomes = outcomes.into_inner();
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["incompatible", "incompatible", "restored", "restored"]);
}

/// Two sidecars would write one series otherwise, with different values.
#[test]
fn the_incident_of_a_job_names_the_shard() {
    let mut bench = Bench::of_shard("", shard("1/2"));
    send_all(&mut bench);
    let bench_part = bench.engine.groups.part();
    let groups = bench.groups();
    let group = &groups[0].1;
    let labels = |part| {
        crate::pipeline::output_series::job_incident_labels(&group.detector, &group.labels, part).to_string()
    };
    assert_eq!(labels(None), r#"anomaly_job_incident{detector="node_network", job="node"}"#);
    assert_eq!(
        labels(bench_part.as_deref()),
        r#"anomaly_job_incident{detector="node_network", job="node", promforest_shard="1"}"#
    );
}
