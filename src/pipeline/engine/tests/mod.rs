//! The whole synchronous journey, from compressed bodies to scores.

use super::*;
use crate::features::rate::RateSemantics;
use crate::features::{Schema, Transform};
use crate::forest::{ForestParams, Table};
use crate::ingest::{self, AcceptedCounts};
use crate::models::{DeployedModel, FittedModel, Model, ModelCard, TrainingRange};
use crate::prom::proto::{Label, Sample as ProtoSample, TimeSeries, WriteRequest};
use crate::prom::wire::{ProtocolVersion, snappy};
use crate::prom::{Labels, METRIC_NAME, STALE_BITS, Sample};
use crate::remote_write::{Batch, CursorPosition};
use crate::time::HOUR_MS;
use crate::train::{ShortHistory, TrainingOutcome, TrainingReason, WarmStart};
use crate::window::ModelRole;
use crate::window::grid::Grid;
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use prost::Message;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

mod feedback;
mod gaps;
mod jobs;
mod labels;
mod models;
mod order;
#[cfg(feature = "kafka")]
mod partitions;
mod pool;
mod presence;
mod publish;
mod reload;
mod restart;
mod rows;
mod sequential;
mod shards;
mod stale;
mod status;
mod tenants;
mod training;
mod work;

pub(in crate::pipeline) const START_MS: i64 = 1_700_000_000_000;

/// Bits by group, feature and time.
type Content = BTreeMap<(Labels, Labels, i64), u64>;

pub(in crate::pipeline) struct Bench {
    pub(in crate::pipeline) engine: Engine,
    jobs: mpsc::Receiver<TrainingJob>,
    backfill_requests: mpsc::Receiver<BackfillRequest>,
    registry: Registry,
}

impl Bench {
    pub(in crate::pipeline) fn new(config: &str) -> Self {
        Self::of_shard(config, None)
    }

    fn of_shard(config: &str, shard: Option<Shard>) -> Self {
        let config = Arc::new(Config::parse(config).expect("a valid configuration"));
        let mut registry = Registry::default();
        let (trainer, jobs) = mpsc::channel(8);
        let (requests_tx, backfill_requests) = mpsc::channel(2);
        let (readiness, _) = watch::channel(Readiness { ready: false, text: String::new() });
        let engine = Engine::new(EngineDeps {
            wakeups: config.remote_write.iter().map(|_| Arc::default()).collect(),
            config,
            shard,
            training_jobs: trainer,
            backfill_requests: requests_tx,
            readiness,
            gap_metrics: super::gaps::Metrics::new(&mut registry),
            metrics: Metrics::new(&mut registry),
            ingest_metrics: ingest::Metrics::new(&mut registry),
            remote_write_metrics: remote_write::Metrics::new(&mut registry),
        });
        Self { engine, jobs, backfill_requests, registry }
    }

    /// The configuration in force.
    pub(in crate::pipeline) fn config(&self) -> Arc<Config> {
        self.engine.groups.config().clone()
    }

    fn tick(&mut self, now: Instant) {
        self.engine.tick(now, now_ms());
    }

    fn write(&mut self, body: &[u8]) -> Result<AcceptedCounts, ingest::Error> {
        // Samples after twice the time of the captures are rejected.
        self.engine.ingest(ProtocolVersion::V1, None, body, Instant::now(), START_MS * 2)
    }

    pub(in crate::pipeline) fn send(&mut self, series: Vec<TimeSeries>) {
        self.write(&compress(series)).expect("accepted");
    }

    fn reload(&mut self, config: Arc<Config>, wakeups: Vec<Arc<Notify>>) {
        self.engine.reload(config, wakeups, Instant::now(), now_ms());
    }

    fn groups(&mut self) -> Vec<(u32, &mut super::super::group::Group)> {
        self.engine.groups.iter_mut().collect()
    }

    /// Puts a model into service in every group that has none.
    pub(in crate::pipeline) fn install(&mut self, models: &BTreeMap<Labels, Arc<Model>>) {
        for (_, group) in self.groups() {
            if group.model_info(ModelRole::Champion).is_none()
                && let Some(model) = models.get(&group.labels)
            {
                group.install(deployed(model), WarmStart::default(), Instant::now(), &mut |_| {});
            }
        }
    }

    /// Every sample and every score, by group, feature and time: what the windows hold.
    fn content(&mut self) -> Content {
        let mut content = BTreeMap::new();
        for (_, group) in self.groups() {
            let window = group.window();
            for (feature, column) in window.features() {
                let mut samples = Vec::new();
                window.samples(column, i64::MIN, i64::MAX, &mut samples);
                let cell =
                    |s: &Sample| ((group.labels.clone(), feature.clone(), s.timestamp_ms), s.value.to_bits());
                content.extend(samples.iter().map(cell));
            }
            for (timestamp_ms, score) in window.scores(ModelRole::Champion, i64::MIN, i64::MAX) {
                content.insert(
                    (group.labels.clone(), Labels::default(), timestamp_ms),
                    score.decision.to_bits(),
                );
            }
        }
        content
    }

    fn metric(&self, line: &str) -> u64 {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry).expect("encodes");
        let value = page.lines().find_map(|text| text.strip_prefix(line)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {line} in\n{page}"))
    }
}

fn compress(series: Vec<TimeSeries>) -> Vec<u8> {
    snappy::compress(&WriteRequest { timeseries: series, metadata: Vec::new() }.encode_to_vec())
}

pub(in crate::pipeline) fn series(pairs: &[(&str, &str)], samples: &[(i64, f64)]) -> TimeSeries {
    let label = |(name, value): &(&str, &str)| Label { name: (*name).into(), value: (*value).into() };
    let sample = |(timestamp, value): &(i64, f64)| ProtoSample { timestamp: *timestamp, value: *value };
    TimeSeries {
        labels: pairs.iter().map(label).collect(),
        samples: samples.iter().map(sample).collect(),
        ..Default::default()
    }
}

fn rx(device: &str, samples: &[(i64, f64)]) -> TimeSeries {
    let name = (METRIC_NAME, "node_network_receive_bytes_total");
    series(&[name, ("device", device), ("instance", "a"), ("job", "node")], samples)
}

/// A model of these features, fitted on a grid of rates from 0 to 10.
pub(in crate::pipeline) fn model(features: Vec<Labels>, range_ms: i64) -> Arc<Model> {
    const ROWS: usize = 64;
    let values: Vec<f32> =
        (0..features.len() * ROWS).map(|i| (i * 37 % ROWS) as f32 * 10.0 / ROWS as f32).collect();
    let table = Table::new(&values, ROWS, features.len()).expect("as many values as cells");
    let forest = ForestParams::default().fit(&table, NonZeroUsize::MIN).expect("fits");
    let fitted = FittedModel::IsolationForest(forest);
    let transform = Transform::Rate { range_ms, semantics: RateSemantics::V3 };
    let schema = Schema { features, transform, grid: Grid::Exact };
    let history = TrainingRange {
        from_ms: START_MS,
        to_ms: START_MS,
        observed_ms: 3_600_000,
        n_rows: ROWS,
        n_excluded: 0,
    };
    let card =
        ModelCard { group: Some(Labels::default()), training_range: Some(history), ..ModelCard::default() };
    Arc::new(Model { schema, fitted, card })
}

fn deployed(model: &Arc<Model>) -> DeployedModel {
    deployed_as(model, 1)
}

fn deployed_as(model: &Arc<Model>, version: u64) -> DeployedModel {
    DeployedModel::new(model.clone(), "net".into(), Some(version))
}

fn two_features() -> Arc<Model> {
    let feature = |device: &str| {
        Labels::new([(METRIC_NAME, "node_network_receive_bytes_total"), ("device", device)]).expect("valid")
    };
    model(vec![feature("eth0"), feature("lo")], 60_000)
}

fn scrape(bench: &mut Bench, i: i64) {
    let timestamp_ms = START_MS + i * 15_000;
    for device in ["eth0", "lo"] {
        bench.send(vec![rx(device, &[(timestamp_ms, i as f64 * 100.0)])]);
    }
}

/// A bench whose one group has the model of two features, after one scrape.
fn serving() -> Bench {
    serving_with("")
}

/// The same with a configuration.
fn serving_with(config: &str) -> Bench {
    let mut bench = Bench::new(config);
    scrape(&mut bench, 0);
    let model = two_features();
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, model)]));
    bench
}

/// The content of a batch, a line for each series: its name and the samples' seconds, `x` for a staleness marker.
fn describe(batch: &Batch) -> Vec<String> {
    let sample = |sample: &crate::prom::Sample| {
        let suffix = if sample.is_stale() { "x" } else { "" };
        format!(" {}{suffix}", (sample.timestamp_ms - START_MS) / 1000)
    };
    let series = |series: &remote_write::TimeSeries| {
        let samples: String = series.samples.iter().map(sample).collect();
        format!("{}{samples}", series.labels.metric_name())
    };
    batch.series.iter().map(series).collect()
}

/// Everything that is there to be written, dealt with.
fn drain(bench: &mut Bench, endpoint: usize) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(batch) = bench.engine.next_batch(endpoint, None, 100, START_MS * 2) {
        lines.extend(describe(&batch));
        bench.engine.advance(endpoint, None, &batch.positions, START_MS);
    }
    lines
}

pub(in crate::pipeline) fn send_stale_markers(bench: &mut Bench, i: i64) {
    let at_ms = START_MS + i * 15_000;
    for device in ["eth0", "lo"] {
        bench.send(vec![rx(device, &[(at_ms, f64::from_bits(STALE_BITS))])]);
    }
    bench.tick(Instant::now() + Duration::from_secs(60));
}
