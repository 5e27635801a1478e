//! Kafka between sender and sidecar, with a real broker: every row is scored once, with the bits that it has by HTTP.

#[path = "../support/mod.rs"]
mod support;

mod cluster;
mod faults;
mod members;
mod router;
mod security;

use cluster::{Cluster, N_PARTITIONS};

/// A sidecar that is killed, and one that is ended, go on with the records after the last commit.
#[test]
fn scores_equal_those_by_http_over_restarts() {
    let mut cluster = Cluster::start("gzip");
    let mut sidecar = cluster.start_member("pf-0");
    cluster.send_rows(60);
    cluster.wait_for_scores(&mut [&mut sidecar]);

    // Something that is no write request, between two rows.
    cluster.broker.produce(cluster::TOPIC, 1, b"\xff\xff\xff");
    cluster.send_rows(10);
    cluster.wait_for_scores(&mut [&mut sidecar]);
    assert_eq!(sidecar.metric("promforest_kafka_poison_records_total"), 1.0);
    let log = sidecar.process.log();
    assert!(log.contains("partition=1") && log.contains("record skipped"), "{log}");

    // Without a snapshot the windows are filled from the log; rows arrive meanwhile.
    sidecar.kill();
    cluster.send_rows(30);
    sidecar.restart();
    cluster.send_rows(5);
    cluster.wait_for_scores(&mut [&mut sidecar]);
    assert_eq!(sidecar.metric("promforest_kafka_assigned_partitions"), f64::from(N_PARTITIONS));
    cluster.wait_for_commits(&mut sidecar);

    // With a snapshot they are not.
    sidecar.process.terminate(cluster::TIMEOUT);
    let ends = cluster.n_records();
    cluster.send_rows(20);
    sidecar.restart();
    cluster.wait_for_scores(&mut [&mut sidecar]);
    cluster.wait_for_commits(&mut sidecar);
    let n_read = sidecar.metric("promforest_kafka_records_total");
    assert_eq!(
        n_read,
        (cluster.n_records() - ends) as f64,
        "nothing is read twice\n{}",
        sidecar.process.tail()
    );
    sidecar.kill();
    cluster.send_rows(5);
    sidecar.restart();
    cluster.wait_for_scores(&mut [&mut sidecar]);
    sidecar.wait_for_metric("promforest_kafka_records_total", |records| records > 0.0);
    cluster.check_no_conflict(&sidecar);
}
