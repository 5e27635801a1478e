//! Faults of the broker: away, without the records that are next, with other partitions, without commits.

use crate::cluster::{Cluster, N_PARTITIONS, TIMEOUT, TOPIC};
use crate::support::{http, wait};
use prometheus_client::registry::Registry;
use promforest::kafka::intake::{Intake, Position, Progress, Record, RecordOutcome};
use promforest::kafka::{Compression, Config, Metrics, Security, Source, SourceOptions};
use promforest::prom::wire::ProtocolVersion;
use promforest::telemetry::PageFormat;
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[test]
fn a_broker_that_was_away_and_a_log_that_was_trimmed_lose_no_score() {
    let mut cluster = Cluster::start("snappy");
    cluster.store_samples();
    let mut member = cluster.start_member("pf-0");
    cluster.send_rows(30);
    cluster.wait_for_scores(&mut [&mut member]);

    cluster.broker.kill();
    member.wait_for_metric("promforest_kafka_errors_total", |errors| errors > 0.0);
    cluster.broker.restart();
    cluster.send_rows(10);
    cluster.wait_for_scores(&mut [&mut member]);
    cluster.wait_for_commits(&mut member);

    // The sidecar is away while retention removes rows. History has them.
    member.kill();
    member.write_file("promforest.yml", &cluster.config_with_history("pf-0"));
    cluster.send_rows(5);
    let n_lost = (cluster.n_records() - cluster.n_committed()) as f64;
    cluster.broker.trim(TOPIC, N_PARTITIONS);
    member.restart();
    member.wait_for_metric("promforest_kafka_lost_records_total", |lost| lost == n_lost);
    cluster.send_rows(10);
    cluster.wait_for_scores(&mut [&mut member]);
    cluster.check_no_conflict(&member);

    // Retention passes a member that stands still.
    cluster.wait_for_commits(&mut member);
    member.process.signal("STOP");
    cluster.send_rows(5);
    cluster.broker.trim(TOPIC, N_PARTITIONS);
    member.process.signal("CONT");
    member.wait_for_metric("promforest_kafka_lost_records_total", |lost| lost > n_lost);
    cluster.send_rows(10);
    cluster.wait_for_scores(&mut [&mut member]);
    cluster.check_no_conflict(&member);

    // Other partitions would move the hosts away from their windows.
    cluster.wait_for_commits(&mut member);
    member.process.terminate(TIMEOUT);
    cluster.broker.add_partitions(TOPIC, 2 * N_PARTITIONS as usize);
    cluster.send_rows(1);
    member.restart();
    let address = member.address();
    wait("the records are refused", TIMEOUT, &mut [&mut member.process], || {
        let answer = http::get(&address, "/-/ready").map_err(|error| error.to_string())?;
        let is_refusing = answer.body.contains("the partitions of topic samples changed between 8 and 4");
        if answer.status == 503 && is_refusing { Ok(()) } else { Err(answer.body) }
    });
}

/// Keeps the offsets of the records, and counts each as written.
#[derive(Clone, Default)]
struct Offsets(Arc<Mutex<Vec<i64>>>);

impl Intake for Offsets {
    fn push(&self, record: Record) -> Option<RecordOutcome> {
        self.0.lock().expect("no thread panics with it").push(record.offset);
        Some(RecordOutcome { result: Ok(()), is_behind: false })
    }

    fn progress(&self) -> Option<Progress> {
        let last = self.0.lock().expect("no thread panics with it").last().copied();
        let settled = last.map(|last| (0, Position { offset: last + 1, produced_ms: 1 }));
        Some(Progress { settled: settled.into_iter().collect(), is_behind: false })
    }

    fn assign(&self, _: i32, _: Option<i64>) -> Option<Option<i64>> {
        Some(None)
    }

    fn revoke(&self, _: i32) -> Option<()> {
        Some(())
    }
}

/// A coordinator that refuses commits for a while, which no real broker can be made to do.
#[test]
fn a_commit_that_fails_is_repeated() {
    let mock = MockCluster::new(1).expect("a cluster");
    mock.create_topic(TOPIC, 1, 1).expect("a topic");
    let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED; 3];
    mock.request_errors(RDKafkaApiKey::OffsetCommit, &refused);
    let brokers = mock.bootstrap_servers();
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .create_with_context(DefaultProducerContext)
        .expect("a client");
    let mut registry = Registry::default();
    let config = Config {
        brokers: brokers.split(',').map(String::from).collect(),
        topic: TOPIC.into(),
        security: Security::default(),
        group_id: "sidecars".into(),
        group_instance_id: None,
        by: vec!["job".into()],
        format: ProtocolVersion::V1,
        compression: Compression::None,
        session_timeout: Duration::from_secs(6),
        rewind: None,
        linger: Duration::from_secs(60),
    };
    let metrics = Metrics::new(&mut registry);
    let options = SourceOptions { config, rewind: Duration::from_secs(60), metrics };
    let offsets = Offsets::default();
    let source = Source::start(options, offsets.clone(), ()).expect("a thread");
    let metric = |name, labels: &[(&str, &str)]| {
        let page = PageFormat::Text.encode(&registry).expect("it encodes");
        http::metric(&page, name, labels).unwrap_or(0.0)
    };
    wait("the partition is assigned", TIMEOUT, &mut [], || {
        let n_partitions = metric("kafka_assigned_partitions", &[]);
        if n_partitions == 1.0 { Ok(()) } else { Err(format!("{n_partitions} partitions")) }
    });
    for _ in 0..3 {
        let record = BaseRecord::<(), [u8]>::to(TOPIC).partition(0).payload(b"");
        producer.send(record).map_err(|(error, _)| error).expect("there is room");
    }
    producer.flush(TIMEOUT).expect("an acknowledgement");
    let commits = |outcome| metric("kafka_commits_total", &[("outcome", outcome)]);
    wait("a commit fails, and another does not", TIMEOUT, &mut [], || {
        let seen = (commits("failed"), commits("committed"));
        let read = offsets.0.lock().expect("no thread panics with it").clone();
        if seen.0 >= 1.0 && seen.1 >= 1.0 { Ok(()) } else { Err(format!("{seen:?} after {read:?}")) }
    });
    let read = offsets.0.lock().expect("no thread panics with it").clone();
    assert_eq!(read, [0, 1, 2]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(source.close());
}
