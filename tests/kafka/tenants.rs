//! Two tenants with the same targets, by way of one topic.

use crate::cluster::{N_PARTITIONS, Scores, TIMEOUT, TOPIC, detectors, start_router, train};
use crate::support::kafka::Broker;
use crate::support::sidecar::Sidecar;
use crate::support::victoriametrics::read_source;
use crate::support::{http, now_ms, remote_write, wait};
use promforest::config::Config;
use promforest::prom::proto::{Label, TimeSeries, WriteRequest};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// The tenants.
const TENANTS: [&str; 2] = ["a", "b"];
/// Hosts of each tenant.
const N_HOSTS: usize = 4;
/// Rows of each host.
const N_ROWS: i64 = 40;
/// Distance of rows.
const INTERVAL_MS: i64 = 10_000;

/// The scores of a tenant, as the sidecar at an address returns them.
fn scores(address: &str, tenant: &str) -> Scores {
    let text = format!(
        "remote_read: [{{url: 'http://{address}/api/v1/read', headers: {{X-Scope-OrgID: {tenant}}}}}]"
    );
    let source = Config::parse(&text).expect("valid").history.remove(0);
    read_source(&source, r#"{__name__=~"anomaly_score|net_anomaly"}"#, &[], (now_ms() - 3_600_000, now_ms()))
}

/// A row of a tenant's hosts, whose series pretend to be another's.
fn row(tenant: usize, timestamp_ms: i64, row: i64) -> Vec<TimeSeries> {
    let series = |host: usize| {
        let value = ((row * 37 + (host + 5 * tenant) as i64 * 11) % 17) as f64;
        [("load", value), ("temperature", 40.0 + value)].map(|(name, value)| {
            let mut series = remote_write::series(name, host, &[(timestamp_ms, value)]);
            series.labels.push(Label { name: "tenant".into(), value: TENANTS[1 - tenant].into() });
            series
        })
    };
    (0..N_HOSTS).flat_map(series).collect()
}

#[test]
fn nothing_of_one_tenant_reaches_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = Broker::start(folder.path());
    broker.create_topic(TOPIC, N_PARTITIONS, "producer");
    let models = train(folder.path());
    let connection = format!("brokers: ['{}'], by: [job, instance, tenant]", broker.address);
    let (_router, router) = start_router(folder.path(), &connection, "tenants: {}\n");
    let config = format!("tenants: {{}}\nremote_write: []\nremote_read: []\n{}", detectors(&models));
    let reference = Sidecar::start(&[("promforest.yml", &config)]);
    let config = format!("kafka: {{{connection}, topic: {TOPIC}}}\n{config}");
    let mut member = Sidecar::start(&[("promforest.yml", &config)]);
    let (expected_at, found_at) = (reference.address(), member.address());

    let start_ms = now_ms() - (N_ROWS + 1) * INTERVAL_MS;
    for i in 0..N_ROWS {
        for (tenant, id) in TENANTS.iter().enumerate() {
            let body = remote_write::body(row(tenant, start_ms + i * INTERVAL_MS, i));
            for address in [&router, &expected_at] {
                let header = format!("X-Scope-OrgID: {id}\r\n");
                let answer = http::post_body(address, "/api/v1/write", &header, &body).expect("a response");
                assert_eq!(answer.status, 204, "{answer:?}");
            }
        }
    }
    let body = remote_write::body(row(0, now_ms(), 0));
    for (headers, reason) in [("", "is missing"), ("X-Scope-OrgID: a|b\r\n", "several tenants")] {
        let answer = http::post_body(&router, "/api/v1/write", headers, &body).expect("a response");
        assert!(answer.status == 400 && answer.body.contains(reason), "{answer:?}");
    }
    // A record of another program, without the label.
    let nobody = remote_write::series("load", 0, &[(now_ms(), 1.0)]);
    let nobody = WriteRequest { timeseries: vec![nobody], ..Default::default() }.encode_to_vec();
    broker.produce(TOPIC, 0, &N_PARTITIONS.to_string(), &nobody);

    for id in TENANTS {
        wait("the scores of a tenant", TIMEOUT, &mut [&mut member.process], || {
            let expected = scores(&expected_at, id);
            let newest =
                expected.values().filter_map(|samples| samples.last()).map(|sample| sample.timestamp_ms);
            if expected.len() != 2 * N_HOSTS || newest.min() != Some(start_ms + (N_ROWS - 1) * INTERVAL_MS) {
                return Err(format!("the reference has {:?}", expected.keys()));
            }
            let found = scores(&found_at, id);
            if found == expected { Ok(()) } else { Err(format!("{found:?}\n{expected:?}")) }
        });
    }
    assert_ne!(scores(&found_at, "a"), scores(&found_at, "b"), "their values differ");
    let dropped = [("reason", "no_tenant")];
    assert_eq!(member.metric_with("promforest_ingest_samples_dropped_total", &dropped), 1.0);

    // Each group is in one partition, under the tenant of the header.
    let mut partitions: BTreeMap<(String, String), BTreeSet<i32>> = BTreeMap::new();
    for (partition, record) in broker.records(TOPIC, N_PARTITIONS) {
        for series in WriteRequest::decode(&record[..]).expect("a request").timeseries {
            let label = |name: &str| {
                let found =
                    series.labels.iter().filter(|label| label.name == name).map(|label| label.value.clone());
                found.collect::<Vec<_>>().join(",")
            };
            partitions.entry((label("tenant"), label("instance"))).or_default().insert(partition);
        }
    }
    assert_eq!(partitions.remove(&(String::new(), "0".into())), Some(BTreeSet::from([0])));
    assert_eq!(partitions.len(), TENANTS.len() * N_HOSTS, "{partitions:?}");
    assert!(partitions.values().all(|ids| ids.len() == 1), "{partitions:?}");
    let is_moved = |host: usize| {
        let [a, b] = TENANTS.map(|id| &partitions[&(id.into(), host.to_string())]);
        a != b
    };
    assert!((0..N_HOSTS).any(is_moved), "{partitions:?}");
}
