//! The whole way of a sample: requests into the engine, rows, scores, batches.

use super::models::MODELS;
use super::wire;
use prometheus_client::registry::Registry;
use promforest::config::Config;
use promforest::models::DeployedModel;
use promforest::pipeline::engine::{Engine, EngineDeps, Readiness};
use promforest::pipeline::gaps;
use promforest::pipeline::metrics::Metrics;
use promforest::prom::proto::{Label, Sample, TimeSeries, WriteRequest};
use promforest::prom::wire::{ProtocolVersion, snappy};
use promforest::prom::{METRIC_NAME, STALE_BITS};
use promforest::time::now_ms;
use promforest::train::WarmStart;
use promforest::window::ModelRole;
use promforest::{ingest, remote_write};
use prost::Message as _;
use std::sync::{Arc, LazyLock};
use std::time::Instant;
use tokio::sync::{mpsc, watch};

/// Series of the captures, and those of the models.
const CONFIG: &str = r#"
detectors:
  - name: net
    match: ['{__name__=~"rx|node_network_(receive|transmit)_(bytes|packets)_total"}']
    by: [job, instance]
    window: 1h
    transform: rate(1m)
"#;

/// A story is a list of requests, each behind its length in two bytes. They are taken in, models come into service, and
/// the batches are fetched until there are no more.
pub fn receiver(data: &[u8]) {
    static PARSED: LazyLock<Arc<Config>> =
        LazyLock::new(|| Arc::new(Config::parse(CONFIG).expect("a valid configuration")));
    let mut registry = Registry::default();
    let (training_jobs, _receiver) = mpsc::channel(8);
    let (backfill_requests, _receiver) = mpsc::channel(2);
    let (readiness, _) = watch::channel(Readiness { ready: false, text: String::new() });
    let mut engine = Engine::new(EngineDeps {
        wakeups: PARSED.remote_write.iter().map(|_| Arc::default()).collect(),
        config: PARSED.clone(),
        shard: None,
        training_jobs,
        backfill_requests,
        readiness,
        gap_metrics: gaps::Metrics::new(&mut registry),
        metrics: Metrics::new(&mut registry),
        ingest_metrics: ingest::Metrics::new(&mut registry),
        remote_write_metrics: remote_write::Metrics::new(&mut registry),
    });
    let mut rest = data;
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (message, after) = after.split_at(length);
        // A message may be valid in the other version.
        let body = snappy::compress(message);
        for version in [ProtocolVersion::V1, ProtocolVersion::V2] {
            let _ = engine.ingest(version, None, &body, Instant::now(), NOW_MS);
        }
        rest = after;
    }
    for (role, model) in [ModelRole::Champion, ModelRole::Challenger].into_iter().zip(&*MODELS) {
        let deployed = DeployedModel::new(Arc::new(model.clone()), "net".into(), Some(1));
        engine.deploy(0, role, Some(deployed), WarmStart::default(), Instant::now());
    }
    engine.tick(Instant::now(), now_ms());
    let batch = engine.next_batch(0, None, 100, now_ms());
    let _ = engine.list_deployments();
    // A receiver accepts the requests that are written.
    for series in batch.into_iter().flat_map(|batch| batch.series) {
        assert!(!series.labels.metric_name().is_empty());
        assert!(series.samples.is_sorted_by(|a, b| a.timestamp_ms < b.timestamp_ms), "{}", series.labels);
    }
}

const START_MS: i64 = 1_700_000_000_000;
/// After the captures.
const NOW_MS: i64 = START_MS * 2;

/// Captured requests, and a short one of the series that the models know.
pub fn stories() -> Vec<Vec<u8>> {
    let labels = |device: &str| {
        let label = |(name, value): (&str, &str)| Label { name: name.into(), value: value.into() };
        [(METRIC_NAME, "rx"), ("device", device), ("instance", "a"), ("job", "n")].map(label).to_vec()
    };
    let request = |number: i64| {
        let sample = |value| Sample { value, timestamp: START_MS + 15_000 * number };
        let value = if number == 7 { f64::from_bits(STALE_BITS) } else { number as f64 * 1e3 };
        let of = |device| TimeSeries {
            labels: labels(device),
            samples: vec![sample(value)],
            ..Default::default()
        };
        WriteRequest { timeseries: vec![of("eth0"), of("lo")], metadata: vec![] }.encode_to_vec()
    };
    let story = |messages: Vec<Vec<u8>>| {
        let chunk = |message: Vec<u8>| [&(message.len() as u16).to_le_bytes()[..], &message[..]].concat();
        messages.into_iter().flat_map(chunk).collect::<Vec<u8>>()
    };
    let mut captured = wire::messages();
    captured.retain(|message| message.len() < 1 << 13);
    vec![story((0..12).map(request).collect()), story(captured)]
}
