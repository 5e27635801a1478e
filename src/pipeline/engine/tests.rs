//! The whole synchronous journey, from compressed bodies to scores.

use super::*;
use crate::features::rate::RateSemantics;
use crate::features::{Schema, Transform};
use crate::forest::{ForestParams, Table};
use crate::ingest::AcceptedCounts;
use crate::models::{FittedModel, Model, ModelCard, TrainingRange};
use crate::prom::proto::{Label, Sample as ProtoSample, TimeSeries, WriteRequest};
use crate::prom::wire::{ProtocolVersion, snappy};
use crate::prom::{Labels, METRIC_NAME, STALE_BITS, Sample};
use crate::window::grid::Grid;
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use prost::Message;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

mod gaps;
mod pool;

const START_MS: i64 = 1_700_000_000_000;

/// Bits by group, feature and time.
type Content = BTreeMap<(Labels, Labels, i64), u64>;

struct Bench {
    engine: Engine,
    jobs: mpsc::Receiver<TrainingJob>,
    backfill_requests: mpsc::Receiver<BackfillRequest>,
    registry: Registry,
}

impl Bench {
    fn new(config: &str) -> Self {
        let config = Arc::new(Config::parse(config).expect("a valid configuration"));
        let mut registry = Registry::default();
        let (trainer, jobs) = mpsc::channel(8);
        let (requests_tx, backfill_requests) = mpsc::channel(2);
        let (readiness, _) = watch::channel(Readiness { ready: false, text: String::new() });
        let engine = Engine::new(EngineDeps {
            wakeups: config.remote_write.iter().map(|_| Arc::default()).collect(),
            config,
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

    fn tick(&mut self, now: Instant) {
        self.engine.tick(now, now_ms());
    }

    fn write(&mut self, body: &[u8]) -> Result<AcceptedCounts, ingest::Error> {
        // The captures' own time; what is later than this is refused.
        self.engine.write(ProtocolVersion::V1, body, Instant::now(), START_MS * 2)
    }

    fn send(&mut self, series: Vec<TimeSeries>) {
        self.write(&compress(series)).expect("accepted");
    }

    fn reload(&mut self, config: Arc<Config>, wakeups: Vec<Arc<Notify>>) {
        self.engine.reload(config, wakeups, Instant::now(), now_ms());
    }

    fn groups(&mut self) -> Vec<(u32, &mut super::super::group::Group)> {
        self.engine.groups.iter_mut().collect()
    }

    /// Puts a model into service in every group that has none.
    fn install(&mut self, models: &BTreeMap<Labels, Arc<Model>>) {
        for (_, group) in self.groups() {
            if group.deployed(ModelRole::Champion).is_none()
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
            for (feature, column, _) in window.features() {
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

fn series(pairs: &[(&str, &str)], samples: &[(i64, f64)]) -> TimeSeries {
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

fn captures() -> Vec<Vec<TimeSeries>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/captures/remote-write");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the captures")
        .map(|entry| entry.expect("readable").path())
        .collect();
    files.sort();
    let decode = |path: &std::path::PathBuf| {
        let body = std::fs::read(path).expect("readable");
        let mut buffer = Vec::new();
        let message = snappy::decompress(&body, ingest::BODY_LIMIT, &mut buffer).expect("snappy");
        WriteRequest::decode(message).expect("a WriteRequest").timeseries
    };
    files.iter().map(decode).collect()
}

const CAPTURED: &str = r#"
remote_read: []
detectors:
  - name: net
    match: ['{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total"}']
    transform: rate(20s)
"#;

/// A model of these features, fitted on a grid of rates from 0 to 10.
fn model(features: Vec<Labels>, range_ms: i64) -> Arc<Model> {
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
    DeployedModel { model: model.clone(), name: "net".into(), version: Some(1) }
}

/// Models of one device, which all captures have, for the groups of the captures.
fn captured_models(requests: &[Vec<TimeSeries>]) -> BTreeMap<Labels, Arc<Model>> {
    let mut bench = Bench::new(CAPTURED);
    requests.iter().for_each(|request| bench.send(request.clone()));
    let mut models = BTreeMap::new();
    for (_, group) in bench.groups() {
        let features = group.window().features().map(|(labels, ..)| labels.clone());
        let mut eth0: Vec<Labels> = features.filter(|labels| labels.get("device") == "eth0").collect();
        eth0.sort();
        models.insert(group.labels.clone(), model(eth0, 20_000));
    }
    models
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Cuts requests at random series, repeats some pieces, and shuffles them.
fn disturbed(requests: &[Vec<TimeSeries>], random: &mut Random) -> Vec<Vec<TimeSeries>> {
    let mut pieces = Vec::new();
    for request in requests {
        let mut rest = request.clone();
        while rest.len() > 1 && random.below(3) > 0 {
            let piece = rest.split_off(random.below(rest.len()));
            if random.below(4) == 0 {
                pieces.push(piece.clone());
            }
            pieces.push(piece);
        }
        pieces.push(rest);
    }
    for i in (1..pieces.len()).rev() {
        pieces.swap(i, random.below(i + 1));
    }
    pieces
}

#[test]
fn f18_captures_in_any_order_give_the_same_window_and_scores() {
    let requests = captures();
    let models = captured_models(&requests);
    assert_eq!(models.len(), 2, "the exporter is scraped by two jobs");
    let run = |requests: &[Vec<TimeSeries>]| {
        let mut bench = Bench::new(CAPTURED);
        for request in requests {
            bench.send(request.clone());
            bench.install(&models);
        }
        bench.content()
    };
    let expected = run(&requests);
    let scores = expected.keys().filter(|(_, feature, _)| *feature == Labels::default()).count();
    assert!(scores > 10, "{scores} scores");
    for seed in 0..12 {
        assert!(run(&disturbed(&requests, &mut Random(seed))) == expected, "seed {seed}");
    }
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
    let mut bench = Bench::new("");
    scrape(&mut bench, 0);
    let model = two_features();
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, model)]));
    bench
}

#[test]
fn a_row_is_scored_with_its_last_sample_and_published_once() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    let batch = bench.engine.next_batch(0, 100, START_MS * 2).expect("a row is scored");
    let written: Vec<String> = batch.series.iter().map(|series| series.labels.to_string()).collect();
    assert_eq!(
        written,
        [
            r#"node_network_anomaly{instance="a", job="node"}"#,
            r#"anomaly_score{detector="node_network", instance="a", job="node"}"#
        ]
    );
    let [decision, score] = &batch.series[..] else { panic!("two series") };
    assert_eq!(decision.samples[0].timestamp_ms, START_MS + 15_000);
    assert_eq!(score.samples[0].value > 1.0, decision.samples[0].value < 0.0);
    // until the cursor moves the same batch comes again
    assert_eq!(bench.engine.next_batch(0, 100, START_MS * 2).expect("not advanced").series, batch.series);
    bench.engine.advance(0, &batch.positions, START_MS);
    assert!(bench.engine.next_batch(0, 100, START_MS * 2).is_none());
    scrape(&mut bench, 2);
    let next = bench.engine.next_batch(0, 100, START_MS * 2).expect("the next row");
    assert_eq!(next.series[0].samples.len(), 1);
    assert_eq!(next.series[0].samples[0].timestamp_ms, START_MS + 30_000);
}

#[test]
fn batches_keep_their_size_and_rotate_over_the_groups() {
    const SIZE: usize = remote_write::MAX_SAMPLES_PER_ROW;
    let mut bench = Bench::new("");
    let model = two_features();
    let name = (METRIC_NAME, "node_network_receive_bytes_total");
    for i in 0..40_i64 {
        for host in ["a", "b", "c"] {
            for device in ["eth0", "lo"] {
                let labels = [name, ("device", device), ("instance", host), ("job", "node")];
                bench.send(vec![series(&labels, &[(START_MS + i * 15_000, i as f64)])]);
            }
        }
        let models = bench.groups().iter().map(|(_, group)| (group.labels.clone(), model.clone())).collect();
        bench.install(&models);
    }
    let mut rows = 0;
    let mut groups = Vec::new();
    while let Some(batch) = bench.engine.next_batch(0, SIZE, START_MS * 2) {
        let samples: usize = batch.series.iter().map(|series| series.samples.len()).sum();
        assert!(samples <= SIZE, "{samples} samples");
        rows += samples / 2;
        groups.extend(batch.positions.iter().map(|position| position.group));
        bench.engine.advance(0, &batch.positions, START_MS);
    }
    assert_eq!(rows, 117, "39 rows of three groups have a rate");
    assert_eq!(groups[..3], [0, 1, 2]);
}

/// What a challenger said of rows that wait is sent although it has left meanwhile.
#[test]
fn batches_keep_their_size_after_a_challenger_has_left() {
    let mut bench = serving();
    bench.groups()[0].1.set_challenger(Some(deployed(&two_features())), None);
    (1..=6).for_each(|i| scrape(&mut bench, i));
    bench.groups()[0].1.set_challenger(None, None);
    scrape(&mut bench, 7);
    let mut sizes = Vec::new();
    while let Some(batch) = bench.engine.next_batch(0, 2 * remote_write::MAX_SAMPLES_PER_ROW, START_MS * 2) {
        sizes.push(batch.series.iter().map(|series| series.samples.len()).sum::<usize>());
        bench.engine.advance(0, &batch.positions, START_MS);
    }
    assert_eq!(sizes, [8, 8, 8, 4], "at last two scores, and the ends of the challenger's series");
}

#[test]
fn f19_scores_from_the_future_wait() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    assert!(bench.engine.next_batch(0, 100, START_MS).is_none());
    assert!(bench.engine.next_batch(0, 100, START_MS + 15_000).is_some());
}

#[test]
fn a_late_score_is_counted_and_not_sent() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    bench.send(vec![rx("eth0", &[(START_MS + 30_000, 1.0)])]);
    scrape(&mut bench, 3);
    let batch = bench.engine.next_batch(0, 100, START_MS * 2).expect("two rows");
    bench.engine.advance(0, &batch.positions, START_MS);
    bench.send(vec![rx("lo", &[(START_MS + 30_000, 2.0)])]);
    assert!(bench.engine.next_batch(0, 100, START_MS * 2).is_none());
    assert_eq!(bench.metric(r#"remote_write_samples_failed_total{reason="out_of_order"}"#), 2);
    assert_eq!(
        bench.metric(r#"remote_write_samples_failed_total{reason="revised"}"#),
        2,
        "the rate of the row after it"
    );
    assert_eq!(bench.metric("ingest_samples_late_total"), 1);
}

#[test]
fn rows_are_closed_with_a_reason() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    bench.send(vec![rx("eth0", &[(START_MS + 30_000, 1.0)])]);
    let stale = f64::from_bits(STALE_BITS);
    bench.send(vec![rx("eth0", &[(START_MS + 45_000, stale)]), rx("lo", &[(START_MS + 45_000, stale)])]);
    bench.tick(Instant::now() + Duration::from_secs(60));
    for (state, count) in [("complete", 1), ("incomplete", 1), ("stale", 1), ("too_short", 1)] {
        let line = format!(r#"rows_total{{detector="node_network",state="{state}"}}"#);
        assert_eq!(bench.metric(&line), count, "{state}");
    }
    let missing = r#"missing_features{detector="node_network",instance="a",job="node"}"#;
    assert_eq!(bench.metric(missing), 1);
}

#[test]
fn own_outputs_are_ignored_and_everything_is_counted() {
    let mut bench = Bench::new(r#"detectors: [{name: all, match: ['{__name__=~".+"}'], by: [job]}]"#);
    let own = [("anomaly_score", "all"), ("all_anomaly", ""), ("promforest_rows_total", "")];
    for (name, detector) in own {
        bench.send(vec![series(
            &[(METRIC_NAME, name), ("detector", detector), ("job", "x")],
            &[(START_MS, 1.0)],
        )]);
    }
    assert!(bench.groups().is_empty());
    // another detector's, and one that only looks alike
    for (name, detector) in [("anomaly_score", "other"), ("other_anomaly", "")] {
        bench.send(vec![series(
            &[(METRIC_NAME, name), ("detector", detector), ("job", "x")],
            &[(START_MS, 1.0)],
        )]);
    }
    assert_eq!(bench.groups().len(), 1);
    assert_eq!(bench.metric("ingest_samples_total"), 5);
    assert_eq!(bench.metric(r#"ingest_samples_dropped_total{reason="own_output"}"#), 3);
}

#[test]
fn b37_b38_a_sample_of_two_detectors_is_dropped_once_or_not_at_all() {
    let mut bench = Bench::new(
        "detectors: [{name: long, match: [x], window: 2h}, {name: short, match: [x], window: 1h}]",
    );
    let mut send = |minutes: i64, value: f64| {
        bench.send(vec![series(&[(METRIC_NAME, "x")], &[(START_MS + minutes * 60_000, value)])]);
        ["duplicate", "conflict", "too_old"]
            .map(|reason| bench.metric(&format!(r#"ingest_samples_dropped_total{{reason="{reason}"}}"#)))
    };
    assert_eq!(send(0, 1.0), [0, 0, 0]);
    assert_eq!(send(0, 1.0), [1, 0, 0]);
    assert_eq!(send(0, 2.0), [1, 1, 0]);
    assert_eq!(send(-90, 1.0), [1, 1, 0], "too old for one of them alone");
    assert_eq!(send(-150, 1.0), [1, 1, 1]);
    assert_eq!(send(-30, 1.0), [1, 1, 1], "late for both");
    assert_eq!(bench.metric("ingest_samples_late_total"), 2, "as often as samples were");
}

#[test]
fn invalid_series_and_times_are_rejected_and_the_others_used() {
    let mut bench = Bench::new("");
    let year_1970 = START_MS / 1000;
    let body = compress(vec![
        rx("eth0", &[(START_MS, 1.0), (year_1970, 1.0)]),
        series(&[("job", "node")], &[(START_MS, 1.0)]),
        rx("lo", &[(START_MS, 1.0)]),
    ]);
    for _ in 0..2 {
        let error = bench.write(&body).expect_err("two are invalid");
        assert_eq!(
            error.to_string(),
            "the valid part was accepted, rejected: 1 invalid_labels, 1 invalid_timestamp; for example: node_network_receive_bytes_total{device=\"eth0\", instance=\"a\", job=\"node\"} has timestamp 1700000000, before the year 2000: timestamps are in milliseconds"
        );
    }
    assert_eq!(bench.content().len(), 2);
    let ahead = compress(vec![rx("eth0", &[(START_MS + 600_001, 1.0)])]);
    let error = bench
        .engine
        .write(ProtocolVersion::V1, &ahead, Instant::now(), START_MS)
        .expect_err("from the future");
    assert!(error.to_string().contains("600 s ahead of this clock, above the limit of 600 s"), "{error}");
    for (reason, count) in [("invalid_labels", 2), ("invalid_timestamp", 3), ("duplicate", 2)] {
        let line = format!(r#"ingest_samples_dropped_total{{reason="{reason}"}}"#);
        assert_eq!(bench.metric(&line), count, "{reason}");
    }
}

#[test]
fn a_malformed_request_changes_nothing() {
    let mut bench = Bench::new("");
    let mut message = WriteRequest { timeseries: vec![rx("eth0", &[(START_MS, 1.0)])], metadata: Vec::new() }
        .encode_to_vec();
    message.extend([0x0a, 0x7f]);
    assert!(matches!(bench.write(&snappy::compress(&message)), Err(ingest::Error::Malformed(_))));
    assert!(bench.content().is_empty());
}

#[test]
fn training_is_requested_at_once_later_again_and_when_features_change() {
    let mut bench = serving();
    let now = Instant::now();
    assert!(bench.jobs.try_recv().is_err());
    // lo goes for good: after the grace time the schema is not the window's any more
    for i in 1..5 {
        bench.send(vec![rx("eth0", &[(START_MS + i * 15_000, i as f64)])]);
    }
    bench.tick(now + Duration::from_secs(1));
    let job = bench.jobs.try_recv().expect("a training");
    assert_eq!(job.reason, TrainingReason::Schema);
    bench.tick(now + Duration::from_secs(2));
    assert!(bench.jobs.try_recv().is_err(), "one at a time");
    bench.engine.handle_training_outcome(job.group, TrainingOutcome::TooShort { have_ms: 0 }, now);
    bench.tick(now + Duration::from_secs(40));
    assert!(bench.jobs.try_recv().is_ok(), "the model still lacks a feature");
}

/// A feature that is too young for a model of days is asked about once, and left to the next renewal; one that has
/// come back may be old.
#[test]
fn a_young_feature_causes_one_training_only() {
    let mut bench = Bench::new(
        "detectors: [{name: net, match: [node_network_receive_bytes_total], training: {min_history: 10m}}]",
    );
    let time = |i: i64| START_MS + i * 15_000;
    let now = Instant::now();
    // A group that has fallen silent is not trained.
    let at = |seconds: u64| now + Duration::from_secs(seconds);
    let scrape = |bench: &mut Bench, devices: &[&str], steps: std::ops::Range<i64>, at: Instant| {
        for i in steps {
            let body = compress(devices.iter().map(|device| rx(device, &[(time(i), i as f64)])).collect());
            bench.engine.write(ProtocolVersion::V1, &body, at, START_MS * 2).expect("valid");
        }
        bench.tick(at);
    };
    scrape(&mut bench, &["eth0", "lo"], 0..60, now);
    let features = two_features().schema.features.clone();
    let model_of_days = |features: &[Labels], to: i64| {
        let (group, history) = (
            Labels::new([("instance", "a"), ("job", "node")]).expect("valid"),
            TrainingRange {
                from_ms: 0,
                to_ms: time(to),
                observed_ms: 5 * 86_400_000,
                n_rows: 20_000,
                n_excluded: 0,
            },
        );
        let card = ModelCard {
            group: Some(group),
            training_range: Some(history),
            created_ms: now_ms(),
            ..ModelCard::default()
        };
        Arc::new(Model { card, ..Model::clone(&model(features.to_vec(), 60_000)) })
    };
    let finish_training = |bench: &mut Bench, features: &[Labels], to: i64| {
        let job = bench.jobs.try_recv().expect("a training");
        let deployed = deployed(&model_of_days(features, to));
        let outcome =
            TrainingOutcome::Model { deployed, is_new: true, warm_start: WarmStart::default(), seconds: 0.0 };
        bench.engine.handle_training_outcome(job.group, outcome, now);
        job.reason
    };
    assert_eq!(finish_training(&mut bench, &features, 59), TrainingReason::First);
    // A third one comes. History is looked at, and the model is made without it: it is of minutes.
    scrape(&mut bench, &["eth0", "lo", "wg0"], 60..64, at(10));
    assert_eq!(finish_training(&mut bench, &features, 63), TrainingReason::Schema);
    scrape(&mut bench, &["eth0", "lo", "wg0"], 64..200, at(700));
    assert!(bench.jobs.try_recv().is_err(), "half an hour of it does not outweigh days");
    // lo goes, and comes back.
    scrape(&mut bench, &["eth0", "wg0"], 200..210, at(1400));
    assert_eq!(finish_training(&mut bench, &features[..1], 209), TrainingReason::Schema);
    scrape(&mut bench, &["eth0", "lo", "wg0"], 210..212, at(2800));
    assert_eq!(finish_training(&mut bench, &features, 211), TrainingReason::Schema);
}

/// Remote read knows a scrape as soon as it is stored; remote write brings it some seconds later.
#[test]
fn a_row_that_remote_read_had_first_is_scored() {
    let mut bench = Bench::new("");
    scrape(&mut bench, 0);
    scrape(&mut bench, 1);
    let model = two_features();
    let newest = Sample { timestamp_ms: START_MS + 30_000, value: 200.0 };
    let recent = model.schema.features.iter().map(|labels| (labels.clone(), vec![newest])).collect();
    let (_, group) = bench.groups().remove(0);
    group.install(
        deployed(&model),
        WarmStart { recent, ..WarmStart::default() },
        Instant::now(),
        &mut |_| {},
    );
    scrape(&mut bench, 2);
    let (_, group) = bench.groups().remove(0);
    let scored: Vec<i64> = group
        .window()
        .scores(ModelRole::Champion, i64::MIN, i64::MAX)
        .map(|(at_ms, _)| at_ms - START_MS)
        .collect();
    assert_eq!(scored, [15_000, 30_000]);
}

#[test]
fn a_reload_keeps_what_did_not_change() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    let before = bench.content();
    let more = "detectors:\n  - {name: other, match: [up]}\n";
    let default = Arc::new(Config::default());
    bench.reload(default.clone(), vec![Arc::default()]);
    assert_eq!(bench.content(), before);
    scrape(&mut bench, 2);
    assert_eq!(bench.content().len(), before.len() + 3, "two samples and a score");
    let other = Arc::new(Config::parse(more).expect("valid"));
    bench.reload(other, vec![Arc::default()]);
    assert!(bench.content().is_empty());
}

/// What does not touch the window is changed, and the window and the model stay; in another order, and among others.
#[test]
fn f25_a_reload_changes_a_detector_and_keeps_its_window() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    let before = bench.content();
    let detector = |more: &str| {
        let matchers = r#"{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device!~"veth.*|cali.*|tap.*"}"#;
        format!("  - {{name: node_network, match: ['{matchers}'], {more}}}\n")
    };
    let other = "  - {name: other, match: [up]}\n";
    for (i, more) in [
        "alerts: {budget: 1/week}",
        "grace: 20s",
        "training: {interval: 1h}",
        "window: 12h",
        "window: 1h",
        "model: {kind: isolation_forest}",
    ]
    .into_iter()
    .enumerate()
    {
        let parts = [detector(more), other.to_string()];
        let order = if i % 2 == 0 { [1, 0] } else { [0, 1] };
        let text = format!("detectors:\n{}", order.map(|i| parts[i].as_str()).concat());
        bench.reload(Arc::new(Config::parse(&text).expect("valid")), vec![Arc::default()]);
        assert_eq!(bench.content(), before, "{more}");
        assert!(bench.groups()[0].1.deployed(ModelRole::Champion).is_some(), "{more}");
    }
    let (_, group) = bench.groups().remove(0);
    assert!(matches!(group.detector.model, crate::models::ModelParams::IsolationForest(_)), "it is in force");
    scrape(&mut bench, 2);
    assert_eq!(bench.content().len(), before.len() + 3, "scores go on");

    for more in ["by: [instance]", "transform: rate(2m)", "transform: value"] {
        let mut bench = serving();
        let text = format!("detectors:\n{}", detector(more));
        bench.reload(Arc::new(Config::parse(&text).expect("valid")), vec![Arc::default()]);
        assert!(bench.content().is_empty(), "{more}: rows are others");
    }
}

/// This machine's clock is set an hour back, then an hour ahead. Timers are monotonic and rows go by the samples'
/// own times: only what claims to be from the future is refused, and what is refused leaves nothing behind.
#[test]
fn f19_a_clock_that_is_set_changes_no_row_and_no_score() {
    use crate::time::HOUR_MS;
    let mut undisturbed = serving();
    let mut bench = serving();
    for i in 1..=6 {
        scrape(&mut undisturbed, i);
        let timestamp_ms = START_MS + i * 15_000;
        let ahead_ms = [0, -HOUR_MS, HOUR_MS, 0][i as usize % 4];
        for device in ["eth0", "lo"] {
            let body = compress(vec![rx(device, &[(timestamp_ms, i as f64 * 100.0)])]);
            let result =
                bench.engine.write(ProtocolVersion::V1, &body, Instant::now(), timestamp_ms + ahead_ms);
            if ahead_ms < 0 {
                assert!(matches!(result, Err(ingest::Error::PartialWrite { .. })), "{i}: {result:?}");
                // The sender's next try, or another sender's, once the clock is right.
                bench
                    .engine
                    .write(ProtocolVersion::V1, &body, Instant::now(), timestamp_ms)
                    .expect("accepted");
            } else {
                result.expect("accepted");
            }
        }
    }
    assert_eq!(bench.content(), undisturbed.content());
    // Nothing is written ahead of the clock, and nothing is forgotten for that.
    assert!(bench.engine.next_batch(0, 100, START_MS - HOUR_MS).is_none());
    let batch = bench.engine.next_batch(0, 100, START_MS + HOUR_MS).expect("it waited");
    assert_eq!(batch.series[0].samples.len(), 6);
}

/// Somebody points an alias to a model of other features.
#[test]
fn f24_a_model_of_other_features_is_rejected_and_the_old_one_stays() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    let before = bench.content();
    let feature = |name| Labels::new([(METRIC_NAME, name)]).expect("valid");
    let other = model(vec![feature("node_load1"), feature("node_load5")], 60_000);
    let (id, _) = bench.groups().remove(0);
    for role in [ModelRole::Champion, ModelRole::Challenger] {
        bench.engine.deploy(id, role, Some(deployed(&other)), None, Instant::now());
    }
    let n_features = bench.groups()[0]
        .1
        .deployed(ModelRole::Champion)
        .map(|deployed| deployed.model.schema.features.len());
    assert_eq!((n_features, bench.content()), (Some(2), before));
    assert!(bench.groups()[0].1.deployed(ModelRole::Challenger).is_none());
    assert_eq!(bench.metric("models_rejected_total{detector=\"node_network\"}"), 2);
    scrape(&mut bench, 2);
    assert!(bench.engine.next_batch(0, 100, START_MS * 2).is_some(), "scores go on");
}

/// Columns are counted once, whoever makes them, and given back when their group goes.
#[test]
fn watched_series_are_counted_until_their_group_is_evicted() {
    let mut bench = Bench::new("");
    scrape(&mut bench, 0);
    let unknown_feature = Labels::new([(METRIC_NAME, "only_in_history")]).expect("valid");
    let recent = vec![(unknown_feature, vec![Sample { timestamp_ms: START_MS, value: 1.0 }])];
    let (_, group) = bench.groups().remove(0);
    group.install(
        deployed(&two_features()),
        WarmStart { recent, ..WarmStart::default() },
        Instant::now(),
        &mut |_| {},
    );
    assert_eq!(bench.groups()[0].1.n_columns(), 2);
    let (evicted, _) = bench.engine.groups.evict(Instant::now() + Duration::from_secs(86_400));
    assert_eq!(evicted.len(), 1);
    scrape(&mut bench, 1);
    assert_eq!(bench.groups().len(), 1, "it may come back");
}

#[test]
fn a_group_in_training_is_trained_after_a_reload_too() {
    let mut bench = Bench::new("");
    scrape(&mut bench, 0);
    bench.tick(Instant::now());
    let before = bench.jobs.try_recv().expect("a first training");
    bench.reload(Arc::new(Config::default()), vec![Arc::default()]);
    bench.engine.handle_training_outcome(
        before.group,
        TrainingOutcome::TooShort { have_ms: 0 },
        Instant::now(),
    );
    bench.tick(Instant::now() + Duration::from_secs(1));
    assert!(bench.jobs.try_recv().is_ok());
}

#[test]
fn a_model_whose_features_are_yet_to_come_is_requested_again() {
    let mut bench = Bench::new("");
    scrape(&mut bench, 0);
    let now = Instant::now();
    bench.tick(now);
    let job = bench.jobs.try_recv().expect("a first training");
    bench.engine.handle_training_outcome(job.group, TrainingOutcome::WaitingForFeatures, now);
    bench.tick(now + Duration::from_secs(1));
    let again = bench.jobs.try_recv().expect("it is asked for again");
    assert_eq!((again.reason, again.first_sample_at), (TrainingReason::First, job.first_sample_at));
}

#[test]
fn an_endpoint_that_stays_keeps_its_cursor_over_a_reload() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    let other = "remote_write: [{url: 'http://other/'}, {url: 'http://localhost:9090/api/v1/write', remote_timeout: 5s}]";
    bench.reload(Arc::new(Config::parse(other).expect("valid")), vec![Arc::default(), Arc::default()]);
    assert!(
        bench.engine.next_batch(0, 100, START_MS * 2).is_none(),
        "a new target begins with the next score"
    );
    assert!(bench.engine.next_batch(1, 100, START_MS * 2).is_some());
}

#[test]
fn a_full_group_does_not_limit_another_detector() {
    let all = r#"
detectors:
  - {name: hosts, match: ['{__name__=~"rx.*"}'], by: [instance]}
  - {name: fleet, match: ['{__name__=~"rx.*"}'], by: [job]}
"#;
    let mut bench = Bench::new(all);
    let hosts: Vec<String> = (0..crate::window::MAX_FEATURES + 50).map(|i| format!("host{i}")).collect();
    for host in &hosts {
        bench.send(vec![series(
            &[(METRIC_NAME, "rx"), ("instance", host), ("job", "node")],
            &[(START_MS, 1.0)],
        )]);
    }
    assert_eq!(bench.groups().len(), hosts.len() + 1, "a group for every host, and the fleet's");
    let columns = bench.groups().iter().map(|(_, group)| group.n_columns()).max();
    assert_eq!(columns, Some(crate::window::MAX_FEATURES));
}

// ------------------------------------------------------------------------------------ where series end

/// What a batch says, a line for each series: its name and the samples' seconds, `x` for an end.
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
    while let Some(batch) = bench.engine.next_batch(endpoint, 100, START_MS * 2) {
        lines.extend(describe(&batch));
        bench.engine.advance(endpoint, &batch.positions, START_MS);
    }
    lines
}

fn send_stale_markers(bench: &mut Bench, i: i64) {
    let at_ms = START_MS + i * 15_000;
    for device in ["eth0", "lo"] {
        bench.send(vec![rx(device, &[(at_ms, f64::from_bits(STALE_BITS))])]);
    }
    bench.tick(Instant::now() + Duration::from_secs(60));
}

#[test]
fn f26_outputs_end_at_the_row_at_which_their_target_ends_and_begin_anew() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    assert_eq!(drain(&mut bench, 0), ["node_network_anomaly 15", "anomaly_score 15"]);
    send_stale_markers(&mut bench, 2);
    assert_eq!(drain(&mut bench, 0), ["node_network_anomaly 30x", "anomaly_score 30x"]);
    send_stale_markers(&mut bench, 3);
    assert!(drain(&mut bench, 0).is_empty(), "no end twice");
    (8..=9).for_each(|i| scrape(&mut bench, i));
    send_stale_markers(&mut bench, 10);
    let lines = drain(&mut bench, 0);
    assert_eq!(lines, ["node_network_anomaly 135 150x", "anomaly_score 135 150x"], "in one batch");
}

#[test]
fn f26_a_group_that_goes_ends_its_series_after_their_last_sample() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    drain(&mut bench, 0);
    scrape(&mut bench, 2);
    let other = Arc::new(Config::parse("detectors: [{name: other, match: [up]}]").expect("valid"));
    let before_ms = now_ms();
    bench.reload(other.clone(), vec![Arc::default()]);
    assert_eq!(
        bench.metric(r#"remote_write_samples_failed_total{reason="abandoned"}"#),
        2,
        "the row after it"
    );
    let batch = bench.engine.next_batch(0, 100, now_ms()).expect("ends");
    assert_eq!((batch.series.len(), batch.positions.len()), (2, 0));
    for remote_write::TimeSeries { labels, samples } in &batch.series {
        let [sample] = samples[..] else { panic!("{labels}: {samples:?}") };
        assert!(sample.is_stale() && (before_ms..=now_ms()).contains(&sample.timestamp_ms), "{labels}");
    }
    // A sender that was cut off is asked again, over another reload too.
    assert_eq!(bench.engine.next_batch(0, 100, now_ms()).expect("not dealt with").series, batch.series);
    bench.reload(other, vec![Arc::default()]);
    assert_eq!(bench.engine.next_batch(0, 100, now_ms()).expect("not dealt with").series, batch.series);
    bench.engine.advance(0, &[], START_MS);
    assert!(bench.engine.next_batch(0, 100, now_ms()).is_none(), "no end twice");

    // Who writes these series anew begins after their ends.
    bench.reload(Arc::new(Config::default()), vec![Arc::default()]);
    let now = (now_ms() - START_MS) / 15_000;
    scrape(&mut bench, now - 11);
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, two_features())]));
    [now - 10, now + 2, now + 3].into_iter().for_each(|i| scrape(&mut bench, i));
    let mut lines = Vec::new();
    while let Some(batch) = bench.engine.next_batch(0, 100, now_ms() + 60_000) {
        lines.extend(describe(&batch));
        bench.engine.advance(0, &batch.positions, START_MS);
    }
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line.split(' ').count() == 2), "one sample each: {lines:?}");
    assert_eq!(bench.metric(r#"remote_write_samples_failed_total{reason="out_of_order"}"#), 2);
}

#[test]
fn f26_a_group_that_is_silent_for_long_goes_with_an_end() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    drain(&mut bench, 0);
    bench.tick(Instant::now() + Duration::from_secs(86_400));
    assert!(bench.groups().is_empty());
    let batch = bench.engine.next_batch(0, 100, now_ms()).expect("ends");
    assert_eq!(batch.series.len(), 2);
    assert!(batch.series.iter().all(|series| series.samples[0].is_stale()));
}

#[test]
fn f10_each_endpoint_has_its_own_cursor_and_stale_markers() {
    let two = "remote_write: [{url: 'http://a/'}, {url: 'http://b/'}]";
    let mut bench = Bench::new(two);
    scrape(&mut bench, 0);
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, two_features())]));
    scrape(&mut bench, 1);
    assert_eq!(drain(&mut bench, 0), ["node_network_anomaly 15", "anomaly_score 15"]);
    send_stale_markers(&mut bench, 2);
    assert_eq!(drain(&mut bench, 0), ["node_network_anomaly 30x", "anomaly_score 30x"]);
    scrape(&mut bench, 3);
    drain(&mut bench, 0);
    assert_eq!(drain(&mut bench, 1), ["node_network_anomaly 15 30x 45", "anomaly_score 15 30x 45"]);
}

/// Every score is written or counted, also where a target is away for longer than the window reaches.
#[test]
fn f9_scores_that_leave_the_window_unwritten_are_counted() {
    let text = r#"
detectors:
  - {name: node_network, match: ['{__name__=~"node_network_receive_bytes_total"}'], transform: rate(1m), window: 5m, training: {min_history: 1m}}
"#;
    let mut bench = Bench::new(text);
    scrape(&mut bench, 0);
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, two_features())]));
    (1..=80).for_each(|i| scrape(&mut bench, i));
    let mut written = 0;
    while let Some(batch) = bench.engine.next_batch(0, 100, START_MS * 2) {
        written += batch.series.iter().map(|series| series.samples.len() as u64).sum::<u64>();
        bench.engine.advance(0, &batch.positions, START_MS);
    }
    let left_window = bench.metric(r#"remote_write_samples_failed_total{reason="left_window"}"#);
    assert!(left_window > 0 && written > 0, "{written} written, {left_window} left the window");
    assert_eq!(
        written + left_window,
        bench.metric(r#"rows_total{detector="node_network",state="complete"}"#) * 2
    );
}

#[test]
fn remote_read_returns_the_series_that_are_published() {
    use crate::remote_read::server::ReadableSeries as _;
    let mut bench = serving();
    let (_, group) = bench.groups().remove(0);
    group.set_challenger(Some(deployed(&two_features())), None);
    (1..30).for_each(|i| scrape(&mut bench, i));
    let batch = bench.engine.next_batch(0, 10_000, START_MS * 2).expect("scores");
    let mut published: Vec<(Labels, Vec<Sample>)> =
        batch.series.into_iter().map(|series| (series.labels, series.samples)).collect();
    published.sort_by(|a, b| a.0.cmp(&b.0));
    let select = |selector: &str| {
        let selector = crate::prom::Selector::parse(selector).expect("a selector");
        let query = Query { start_ms: 0, end_ms: i64::MAX, selector: selector.without_regexes() };
        let (groups, _): (Vec<u32>, Vec<Labels>) = bench.engine.group_labels().into_iter().unzip();
        let selected = bench.engine.select(&query, &groups, 0);
        assert_eq!(selected.next, None);
        let mut series_read: Vec<(Labels, Vec<Sample>)> = Vec::new();
        for series in selected.matches.into_iter().flat_map(|matches| matches.filter(&selector)) {
            let mut samples = Vec::new();
            series.append_samples(&mut samples);
            if !samples.is_empty() {
                series_read.push((series.labels().clone(), samples));
            }
        }
        series_read.sort_by(|a, b| a.0.cmp(&b.0));
        series_read
    };
    assert_eq!(published.len(), 4, "score and decision of two models");
    assert!(select(r#"{__name__=~".*anomaly.*"}"#) == published);
    let raw = select(r#"{device="eth0"}"#);
    assert_eq!(raw.len(), 1);
    let expected = r#"node_network_receive_bytes_total{device="eth0", instance="a", job="node"}"#;
    assert_eq!((raw[0].0.to_string().as_str(), raw[0].1.len()), (expected, 30));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any order of the samples of a few scrapes, in any pieces, gives the same scores.
    #[test]
    fn f18_samples_in_any_order_give_the_same_scores(seed in any::<u64>(), lost in prop::collection::vec(0..40_usize, 0..4)) {
        let mut random = Random(seed);
        let samples: Vec<TimeSeries> = (0..20_i64)
            .flat_map(|i| ["eth0", "lo"].map(|device| rx(device, &[(START_MS + i * 15_000, (i * i) as f64)])))
            .enumerate()
            .filter(|(i, _)| !lost.contains(i))
            .map(|(_, series)| series)
            .collect();
        let run = |requests: Vec<Vec<TimeSeries>>| {
            let mut bench = Bench::new("remote_read: []");
            let model = two_features();
            for request in requests {
                bench.send(request);
                let models = bench.groups().iter().map(|(_, group)| (group.labels.clone(), model.clone())).collect();
                bench.install(&models);
            }
            bench.content()
        };
        let expected = run(vec![samples.clone()]);
        prop_assert_eq!(run(disturbed(&[samples], &mut random)), expected);
    }
}

#[test]
fn f36_two_replicas_are_distinguished_from_one_that_is_late() {
    let interleaved_groups = |offsets_ms: [i64; 3], replicas_ms: &[i64]| {
        let mut bench = serving();
        for i in 1..12 {
            for phase_ms in replicas_ms {
                let at_ms = START_MS + i * 15_000 + phase_ms + offsets_ms[i as usize % 3];
                for device in ["eth0", "lo"] {
                    bench.send(vec![rx(device, &[(at_ms, (i * 1500 + phase_ms / 10) as f64)])]);
                }
            }
        }
        bench.tick(Instant::now() + EVICT_INTERVAL);
        bench.metric("interleaved_groups")
    };
    assert_eq!(interleaved_groups([0, 3, -5], &[0]), 0);
    assert_eq!(interleaved_groups([0, 4_000, 0], &[0]), 0, "one scrape of three is late");
    assert_eq!(interleaved_groups([0, 3, -5], &[0, 4_000]), 1);

    // Without a phase of its own the first one's values stay.
    let mut bench = serving();
    scrape(&mut bench, 1);
    bench.send(vec![rx("eth0", &[(START_MS + 15_000, 7.0)])]);
    assert_eq!(bench.metric(r#"ingest_samples_dropped_total{reason="conflict"}"#), 1);
}

#[test]
fn f30_groups_are_bounded_and_the_known_ones_go_on() {
    let mut bench = Bench::new("detectors: [{name: a, match: [rx], by: [host]}]");
    let of_host = |host: usize, n: i64, device: &str| {
        let host = host.to_string();
        series(&[("__name__", "rx"), ("device", device), ("host", &host)], &[(START_MS + n * 15_000, 1.0)])
    };
    bench.send((0..20_007).map(|host| of_host(host, 0, "eth0")).collect());
    assert_eq!(bench.groups().len(), 20_000);
    let dropped = r#"ingest_samples_dropped_total{reason="series_limit"}"#;
    assert_eq!(bench.metric(dropped), 7);
    bench.send(vec![of_host(0, 1, "eth0"), of_host(0, 1, "eth1"), of_host(20_006, 1, "eth0")]);
    assert_eq!(bench.metric(dropped), 8, "a known group may have more series");
}
