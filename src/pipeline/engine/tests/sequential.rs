//! A group of two counters whose model scores rows in order, with time as an argument.

use super::*;
use crate::detect::{OnlineDetector, SuspendedTimes};
use crate::forest::ExtendedParams;
use crate::history::SeriesSamples;
use crate::pipeline::group::snapshot::GroupSnapshot;
use crate::snapshot;
use crate::train::{WriteWatermark, catch_up, training_set};
use crate::window::build;

pub(super) const STEP_MS: i64 = 15_000;
pub(super) const NAME: (&str, &str) = (METRIC_NAME, "node_network_receive_bytes_total");

/// The counters of two devices at a scrape, quiet but for bursts.
pub(super) fn counters(i: i64) -> [(&'static str, f64); 2] {
    let noise = (i * 7919 % 101) as f64;
    let burst = if (300..306).contains(&(i % 400)) { 1e6 } else { 0.0 };
    let total =
        |scale: f64| (i * 1500) as f64 * scale + noise * scale + burst * (i % 400 - 299).max(0) as f64;
    [("eth0", total(1.0)), ("lo", total(2.0))]
}

pub(super) fn time(i: i64) -> i64 {
    START_MS + i * STEP_MS
}

pub(super) fn features() -> Vec<Labels> {
    let feature = |device| Labels::new([NAME, ("device", device)]).expect("valid");
    vec![feature("eth0"), feature("lo")]
}

/// The series of these scrapes as remote read returns them.
pub(super) fn in_prometheus(scrapes: std::ops::Range<i64>) -> Vec<SeriesSamples> {
    let of_device = |device: usize| {
        let name = counters(0)[device].0;
        let labels =
            Labels::new([NAME, ("device", name), ("instance", "a"), ("job", "node")]).expect("valid");
        let sample = |i: i64| Sample { timestamp_ms: time(i), value: counters(i)[device].1 };
        (labels, scrapes.clone().map(sample).collect())
    };
    vec![of_device(0), of_device(1)]
}

pub(super) fn push(bench: &mut Bench, scrapes: impl IntoIterator<Item = i64>) {
    for i in scrapes {
        for (device, value) in counters(i) {
            bench.send(vec![rx(device, &[(time(i), value)])]);
        }
    }
}

/// A model that judges one row after the other, trained on the first 200 scrapes.
pub(super) fn sequential_model() -> Arc<Model> {
    let transform = Transform::Rate { range_ms: 60_000, semantics: RateSemantics::V3 };
    let schema = Schema { features: features(), transform, grid: Grid::Exact };
    let history: Vec<SeriesSamples> = in_prometheus(0..200).into_iter().map(without_group_labels).collect();
    let window = build::from_series(history.iter(), i64::MAX / 4);
    let (mut times, mut by_row) = (Vec::new(), Vec::new());
    training_set::for_each_full_row(&schema, &window, i64::MIN, i64::MAX, |time, values| {
        times.push(time);
        by_row.push(values.to_vec());
    });
    let values: Vec<f32> = (0..2).flat_map(|feature| by_row.iter().map(move |row| row[feature])).collect();
    let table = Table::new(&values, times.len(), 2).expect("its shape");
    let params = ExtendedParams::default();
    let detection = OnlineDetector::fit(&times, &table, &params, 1.0, NonZeroUsize::MIN).expect("it learns");
    let card = ModelCard {
        group: Some(Labels::new([("instance", "a"), ("job", "node")]).expect("valid")),
        ..ModelCard::default()
    };
    Arc::new(Model { schema, fitted: FittedModel::Extended(Box::new(detection)), card })
}

/// A bench whose group has the model, after the scrapes up to this one.
pub(super) fn running(model: &Arc<Model>, to: i64) -> Bench {
    let mut bench = Bench::new("");
    push(&mut bench, 190..200);
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, model.clone())]));
    push(&mut bench, 200..to);
    bench
}

/// Everything of the group that is written or will be: samples, scores, what was behind incidents.
pub(super) fn outcome(bench: &mut Bench) -> (Content, Vec<remote_write::TimeSeries>) {
    let (id, group) = bench.groups().remove(0);
    group.rewind();
    let mut batch = Batch::default();
    group.collect_unpublished(id, 0, i64::MAX / 4, 100_000, &mut batch);
    batch.series.sort_by(|a, b| a.labels.cmp(&b.labels));
    (bench.content(), batch.series)
}

/// The state of the group after a round trip through the bytes of a snapshot.
pub(super) fn snapshot_of(bench: &mut Bench) -> (GroupState, Window) {
    let step = bench.engine.next_snapshot(None).expect("a group");
    assert!(bench.engine.next_snapshot(Some(step.id)).is_none(), "the only one");
    let bytes = GroupSnapshot::encode(*step.snapshot.expect("it has changed")).expect("small");
    snapshot::decode(&bytes).expect("its own bytes")
}

/// A process that begins with this snapshot, while Prometheus holds `known` and its scores up to `written`.
pub(super) fn restarted(
    snapshot: (GroupState, Window),
    model: &Arc<Model>,
    scrapes: std::ops::Range<i64>,
    written: Option<i64>,
) -> Bench {
    let mut bench = Bench::new("");
    let outcomes = std::cell::RefCell::new(Vec::new());
    bench.engine.restore(vec![snapshot], Instant::now(), |outcome| outcomes.borrow_mut().push(outcome));
    assert_eq!(*outcomes.borrow(), ["restored"]);
    let written = WriteWatermark { to_ms: written.map(time), by_endpoint: Vec::new() };
    finish_training(&mut bench, model, scrapes, written);
    bench
}

/// The registry has the model that the group asks for, and this is known of the time before.
pub(super) fn finish_training(
    bench: &mut Bench,
    model: &Arc<Model>,
    scrapes: std::ops::Range<i64>,
    written: WriteWatermark,
) {
    bench.tick(Instant::now());
    let job = bench.jobs.try_recv().expect("its model is asked for");
    let history: Vec<SeriesSamples> = in_prometheus(scrapes)
        .into_iter()
        .map(|(labels, samples)| (labels.split(&job.detector.by).1, samples))
        .collect();
    let detection = match job.checkpoint {
        Some(mark) => mark.resume(&deployed(model)).expect("the same model"),
        None => {
            model.fitted.as_online().cloned().map(Box::new).zip(written.min_ms()).map(|(detection, to_ms)| {
                let alerts = &job.detector.alerts;
                catch_up::advance(detection, model, alerts, SuspendedTimes::default(), &history, to_ms)
            })
        }
    };
    let warm_start = WarmStart { recent: history, watermark: written, detection, ..WarmStart::default() };
    let training_outcome =
        TrainingOutcome::Model { deployed: deployed(model), is_new: false, warm_start, seconds: 0.0 };
    bench.engine.handle_training_outcome(job.group, training_outcome, Instant::now());
}

pub(super) fn position(i: i64) -> CursorPosition {
    CursorPosition { group: 0, timestamp_ms: time(i), received_at: Instant::now() }
}

/// Samples as a group has them.
pub(super) fn without_group_labels((labels, samples): SeriesSamples) -> SeriesSamples {
    (labels.split(&["instance".into(), "job".into()]).1, samples)
}
