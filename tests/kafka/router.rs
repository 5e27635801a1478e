//! `promforest route`: what a sender is told, and what is in the records.

use crate::cluster::{N_PARTITIONS, TOPIC, start_router};
use crate::support::kafka::Broker;
use crate::support::{http, now_ms, remote_write};
use promforest::prom::proto::v2;
use promforest::prom::wire::snappy;
use prost::Message;

const V2: &str = "Content-Type: application/x-protobuf;proto=io.prometheus.write.v2.Request\r\n";
/// Bytes that the router may ever take: two requests of the largest size, and the queue to Kafka.
const MAX_MEMORY: usize = 700 << 20;

/// A request of version 2.0 whose series share one long label value.
fn v2_request(value: String, n_series: usize) -> Vec<u8> {
    let symbols = vec![String::new(), "__name__".into(), "rx".into(), "text".into(), value];
    let sample = v2::Sample { value: 1.0, timestamp: now_ms(), start_timestamp: 0 };
    let series =
        v2::TimeSeries { labels_refs: vec![1, 2, 3, 4], samples: vec![sample], ..Default::default() };
    snappy::compress(&v2::Request { symbols, timeseries: vec![series; n_series] }.encode_to_vec())
}

#[test]
fn a_router_answers_as_the_sidecar_does_and_503_without_a_broker() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut broker = Broker::start(folder.path());
    broker.create_topic(TOPIC, N_PARTITIONS, "producer");
    let (router, address) = start_router(folder.path(), &format!("brokers: ['{}']", broker.address), "");
    let post = |headers: &str, body: &[u8]| {
        http::post_body(&address, "/api/v1/write", headers, body).expect("a response")
    };
    let n_records = |broker: &Broker| -> i64 {
        broker.watermarks(TOPIC, N_PARTITIONS).iter().map(|(_, next)| next).sum()
    };

    // Two targets, each in its partition; and the same in version 2.0.
    let rows: Vec<_> = (0..8).map(|host| remote_write::series("rx", host, &[(now_ms(), 1.0)])).collect();
    assert_eq!(post("", &remote_write::body(rows.clone())).status, 204);
    let first = n_records(&broker);
    assert!((2..=i64::from(N_PARTITIONS)).contains(&first), "{first}");
    let answer = post(V2, &v2_request("short".into(), 3));
    assert_eq!(answer.status, 204, "{answer:?}");
    assert_eq!(answer.headers["x-prometheus-remote-write-samples-written"], "3");
    assert_eq!(n_records(&broker), first + 1);

    // Invalid requests.
    assert_eq!(post("Content-Type: application/json\r\n", b"{}").status, 415);
    assert_eq!(post("", b"not snappy").status, 400);
    assert_eq!(http::get(&address, "/api/v1/write").expect("a response").status, 405);
    assert_eq!(http::get(&address, "/").expect("a response").status, 404);
    let mut partly = rows.clone();
    partly[0].labels.retain(|label| label.name != "__name__");
    let before = n_records(&broker);
    let answer = post("", &remote_write::body(partly));
    assert!(answer.status == 400 && answer.body.contains("1 invalid_labels"), "{answer:?}");
    assert!(n_records(&broker) > before, "the valid part is there");

    // 30 kB that would be records of a gigabyte.
    assert_eq!(post(V2, &v2_request("x".repeat(15_000), 70_000)).status, 413);
    assert!(router.peak_bytes() < MAX_MEMORY, "{} bytes", router.peak_bytes());

    broker.kill();
    let answer = post("", &remote_write::body(rows.clone()));
    assert_eq!((answer.status, &*answer.headers["retry-after"]), (503, "5"), "{answer:?}");
    broker.restart();
    assert_eq!(post("", &remote_write::body(rows)).status, 204, "{}", router.tail());
    let page = http::get(&address, "/metrics").expect("a page").body;
    let failed = http::metric(&page, "promforest_route_records_total", &[("outcome", "failed")]);
    assert!(failed.is_some_and(|failed| failed >= 1.0), "{page}");
}
