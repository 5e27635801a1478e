//! Members that join, and members that are gone for good.

use crate::cluster::{Cluster, N_PARTITIONS, TIMEOUT};
use crate::support::sidecar::Sidecar;
use std::thread;
use std::time::{Duration, Instant};

/// Pause between rows under load.
const ROW_PAUSE: Duration = Duration::from_millis(200);

fn n_partitions(member: &Sidecar) -> f64 {
    member.metric("promforest_kafka_assigned_partitions")
}

/// Sends rows until the members have these numbers of partitions.
fn send_rows_until_assigned(cluster: &mut Cluster, members: &[&Sidecar], wanted: &[f64]) {
    let until = Instant::now() + TIMEOUT;
    loop {
        cluster.send_rows(1);
        let assigned: Vec<f64> = members.iter().map(|member| n_partitions(member)).collect();
        if assigned == wanted {
            return;
        }
        let tails: String = members.iter().map(|member| member.process.tail()).collect();
        assert!(Instant::now() < until, "{assigned:?}\n{tails}");
        thread::sleep(ROW_PAUSE);
    }
}

#[test]
fn members_join_under_load_and_take_over_from_those_that_are_gone() {
    let mut cluster = Cluster::start();
    let mut first = cluster.start_member("pf-0");
    cluster.send_rows(30);
    cluster.wait_for_scores(&mut [&mut first]);

    // The second has no windows: it fills them from the log.
    let mut second = cluster.start_member("pf-1");
    send_rows_until_assigned(&mut cluster, &[&first, &second], &[2.0, 2.0]);
    cluster.send_rows(5);
    cluster.wait_for_scores(&mut [&mut first, &mut second]);
    assert!(second.metric("promforest_kafka_records_total") > 2.0 * 30.0, "{}", second.process.tail());

    // The first has still the groups that it gave away.
    second.kill();
    send_rows_until_assigned(&mut cluster, &[&first], &[f64::from(N_PARTITIONS)]);
    cluster.send_rows(5);
    cluster.wait_for_scores(&mut [&mut first]);
    assert_eq!(first.metric_with("promforest_kafka_rebalances_total", &[("kind", "lost")]), 0.0);

    // The third has nothing.
    first.kill();
    let mut third = cluster.start_member("pf-2");
    send_rows_until_assigned(&mut cluster, &[&third], &[f64::from(N_PARTITIONS)]);
    cluster.send_rows(5);
    cluster.wait_for_scores(&mut [&mut third]);
    cluster.wait_for_commits(&mut third);
    cluster.check_no_conflict(&third);
}
