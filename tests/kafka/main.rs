//! Kafka between sender and sidecar, with a real broker: every row is scored once, with the bits that it has by HTTP.

#[path = "../support/mod.rs"]
mod support;

mod cluster;
mod faults;
mod members;
mod router;
mod security;
mod tenants;

use cluster::{Cluster, N_PARTITIONS, TOPIC};
use promforest::prom::proto::WriteRequest;
use prost::Message;
use support::{now_ms, remote_write};

/// A sidecar that is killed, and one that is ended, go on with the records after the last commit.
#[test]
fn scores_equal_those_by_http_over_restarts() {
    let mut cluster = Cluster::start("gzip");
    let mut sidecar = cluster.start_member("pf-0");
    cluster.send_rows(60);
    cluster.wait_for_scores(&mut [&mut sidecar]);

    // Records of another program, between two rows: no write request, and samples with headers that `promforest route` does
    // not write.
    let strays: Vec<_> = (0..8).map(|host| remote_write::series("load", host, &[(now_ms(), 1.0)])).collect();
    let strays = WriteRequest { timeseries: strays, ..Default::default() }.encode_to_vec();
    for n_partitions in ["2", "9", "0", "", "many", "99999999999"] {
        cluster.broker.produce(TOPIC, 1, n_partitions, &strays);
    }
    cluster.broker.produce(TOPIC, 1, &N_PARTITIONS.to_string(), b"\xff\xff\xff");
    cluster.send_rows(10);
    cluster.wait_for_scores(&mut [&mut sidecar]);
    assert_eq!(sidecar.metric("promforest_kafka_poison_records_total"), 7.0);
    let log = sidecar.process.log();
    assert!(
        log.contains("partition=1") && log.contains("record skipped") && log.contains("its header"),
        "{log}"
    );

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
