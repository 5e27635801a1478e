//! Gaps, snapshots and restarts, with time as an argument.

use super::*;
use crate::detect::OnlineDetector;
use crate::forest::ExtendedParams;
use crate::pipeline::gaps;
use crate::pipeline::group::gap_guard::HOLD_TIMEOUT;
use crate::pipeline::group::snapshot::GroupSnapshot;
use crate::remote_read::SeriesSamples;
use crate::snapshot;
use crate::time;
use crate::train::{ModelFitter, TrainingSet, WriteWatermark, catch_up, training_set};
use crate::window::build;

const STEP_MS: i64 = 15_000;
const NAME: (&str, &str) = (METRIC_NAME, "node_network_receive_bytes_total");

/// The counters of two devices at a scrape, quiet but for bursts.
fn counters(i: i64) -> [(&'static str, f64); 2] {
    let noise = (i * 7919 % 101) as f64;
    let burst = if (300..306).contains(&(i % 400)) { 1e6 } else { 0.0 };
    let total =
        |scale: f64| (i * 1500) as f64 * scale + noise * scale + burst * (i % 400 - 299).max(0) as f64;
    [("eth0", total(1.0)), ("lo", total(2.0))]
}

fn time(i: i64) -> i64 {
    START_MS + i * STEP_MS
}

fn features() -> Vec<Labels> {
    let feature = |device| Labels::new([NAME, ("device", device)]).expect("valid");
    vec![feature("eth0"), feature("lo")]
}

/// The series of these scrapes as remote read returns them.
fn in_prometheus(scrapes: std::ops::Range<i64>) -> Vec<SeriesSamples> {
    let of_device = |device: usize| {
        let name = counters(0)[device].0;
        let labels =
            Labels::new([NAME, ("device", name), ("instance", "a"), ("job", "node")]).expect("valid");
        let sample = |i: i64| Sample { timestamp_ms: time(i), value: counters(i)[device].1 };
        (labels, scrapes.clone().map(sample).collect())
    };
    vec![of_device(0), of_device(1)]
}

fn push(bench: &mut Bench, scrapes: impl IntoIterator<Item = i64>) {
    for i in scrapes {
        for (device, value) in counters(i) {
            bench.send(vec![rx(device, &[(time(i), value)])]);
        }
    }
}

/// A model that judges one row after the other, trained on the first 200 scrapes.
fn sequential_model() -> Arc<Model> {
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
fn running(model: &Arc<Model>, to: i64) -> Bench {
    let mut bench = Bench::new("");
    push(&mut bench, 190..200);
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, model.clone())]));
    push(&mut bench, 200..to);
    bench
}

/// Everything of the group that is written or will be: samples, scores, what was behind incidents.
fn outcome(bench: &mut Bench) -> (Content, Vec<remote_write::TimeSeries>) {
    let (id, group) = bench.groups().remove(0);
    group.rewind();
    let mut batch = Batch::default();
    group.collect_unpublished(id, 0, i64::MAX / 4, 100_000, &mut batch);
    batch.series.sort_by(|a, b| a.labels.cmp(&b.labels));
    (bench.content(), batch.series)
}

/// The state of the group after a round trip through the bytes of a snapshot.
fn snapshot_of(bench: &mut Bench) -> (GroupState, Window) {
    let step = bench.engine.next_snapshot(None).expect("a group");
    assert!(bench.engine.next_snapshot(Some(step.id)).is_none(), "the only one");
    let bytes = GroupSnapshot::encode(*step.snapshot.expect("it has changed")).expect("small");
    snapshot::decode(&bytes).expect("its own bytes")
}

/// A process that begins with this snapshot, while Prometheus holds `known` and its scores up to `written`.
fn restarted(
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
fn finish_training(
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
        None => model
            .fitted
            .as_online()
            .cloned()
            .map(Box::new)
            .zip(written.min_ms())
            .map(|(detection, to_ms)| catch_up::advance(detection, model, &history, to_ms)),
    };
    let warm_start = WarmStart { recent: history, watermark: written, detection, ..WarmStart::default() };
    let training_outcome =
        TrainingOutcome::Model { deployed: deployed(model), is_new: false, warm_start, seconds: 0.0 };
    bench.engine.handle_training_outcome(job.group, training_outcome, Instant::now());
}

#[test]
fn f3_f4_f7_f45_a_restart_from_a_snapshot_equals_a_process_that_never_stopped() {
    let model = sequential_model();
    let expected = outcome(&mut running(&model, 340));
    assert!(expected.1.len() > 4, "an incident has causes");
    // Before, within and after the incident; the process ends some scrapes later, and Prometheus has part of the scores.
    for (at, killed, written) in
        [(250, 260, 255), (302, 304, 303), (301, 309, 300), (303, 303, 302), (312, 330, 329)]
    {
        let snapshot = snapshot_of(&mut running(&model, at));
        let mut bench = restarted(snapshot, &model, at..killed, Some(written));
        let rest = bench.engine.next_batch(0, 10_000, START_MS * 2);
        if killed - 1 > written {
            let first = rest.expect("rows are not written yet").series[0].samples[0].timestamp_ms;
            assert_eq!(first, time(written + 1), "{at}");
        } else {
            assert!(rest.is_none(), "{at}: {rest:?}");
        }
        push(&mut bench, killed - 2..340);
        assert!(outcome(&mut bench) == expected, "{at} {killed} {written}");
        assert_eq!(bench.metric(r#"remote_write_samples_failed_total{reason="out_of_order"}"#), 0);
    }
}

/// Targets that were not equally far when the process ended: each goes on where it was.
#[test]
fn f8_an_endpoint_that_lags_behind_gets_the_samples_that_it_missed() {
    let two = "remote_write: [{url: 'http://a/api/v1/write'}, {url: 'http://b/api/v1/write'}]";
    let model = sequential_model();
    let first = |bench: &mut Bench, endpoint: usize| {
        let batch = bench.engine.next_batch(endpoint, 10_000, START_MS * 2);
        batch.map(|batch| (batch.series[0].samples[0].timestamp_ms - START_MS) / STEP_MS)
    };
    let mut bench = Bench::new(two);
    push(&mut bench, 190..200);
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, model.clone())]));
    push(&mut bench, 200..260);
    bench.engine.advance(0, &[position(255)], time(260));
    bench.engine.advance(1, &[position(230)], time(260));
    let snapshot = snapshot_of(&mut bench);
    for (endpoint_times, expected) in [
        // The first is read, and had more than the snapshot says, or less.
        ([Some(258), None], [259, 231]),
        ([Some(250), None], [251, 231]),
        // Both are.
        ([Some(258), Some(210)], [259, 211]),
        // Neither is, or they do not answer.
        ([None, None], [256, 231]),
    ] {
        let by_target = endpoint_times.map(|scrape| scrape.map(time)).to_vec();
        let to_ms = by_target.iter().copied().max().flatten();
        let mut bench = Bench::new(two);
        bench.engine.restore(vec![snapshot.clone()], Instant::now(), |_| {});
        finish_training(&mut bench, &model, 250..260, WriteWatermark { to_ms, by_endpoint: by_target });
        assert_eq!(
            [0, 1].map(|endpoint| first(&mut bench, endpoint)),
            expected.map(Some),
            "{endpoint_times:?}"
        );
    }
    // Without a snapshot, who is not read is taken to be where the others are.
    for (endpoint_times, expected) in [([Some(255), Some(230)], [256, 231]), ([Some(255), None], [256, 256])]
    {
        let by_target = endpoint_times.map(|scrape| scrape.map(time)).to_vec();
        let mut bench = Bench::new(two);
        push(&mut bench, 258..260);
        let written = WriteWatermark { to_ms: Some(time(255)), by_endpoint: by_target };
        finish_training(&mut bench, &model, 190..258, written);
        assert_eq!(
            [0, 1].map(|endpoint| first(&mut bench, endpoint)),
            expected.map(Some),
            "{endpoint_times:?}"
        );
    }
}

/// A model of later, which has learned less, judges them on its way to the present; but remote read is to say nothing
/// else of a row than what is written.
#[test]
fn rows_that_were_written_before_are_not_scored_again() {
    let model = sequential_model();
    let mut bench = Bench::new("");
    push(&mut bench, 258..260);
    finish_training(
        &mut bench,
        &model,
        190..258,
        WriteWatermark { to_ms: Some(time(255)), by_endpoint: Vec::new() },
    );
    let scored = |bench: &mut Bench| -> Vec<i64> {
        let (_, group) = bench.groups().remove(0);
        group
            .window()
            .scores(ModelRole::Champion, i64::MIN, i64::MAX)
            .map(|(at, _)| (at - START_MS) / STEP_MS)
            .collect()
    };
    assert_eq!(scored(&mut bench), [256, 257, 258, 259]);
    let warm_start = WarmStart::default();
    let renewed = DeployedModel { version: Some(2), ..deployed(&model) };
    let training_outcome =
        TrainingOutcome::Model { deployed: renewed, is_new: true, warm_start, seconds: 0.0 };
    bench.engine.handle_training_outcome(0, training_outcome, Instant::now());
    push(&mut bench, 260..262);
    assert_eq!(scored(&mut bench), [256, 257, 258, 259, 260, 261]);
}

/// Remote read does not answer at a restart, and then it does or it does not.
#[test]
fn a_model_without_the_history_of_a_restart_serves_at_once() {
    let model = sequential_model();
    let expected = outcome(&mut running(&model, 340));
    for is_filled in [true, false] {
        let now = Instant::now();
        let snapshot = snapshot_of(&mut running(&model, 250));
        let mut bench = Bench::new("");
        bench.engine.restore(vec![snapshot], now, |_| {});
        push(&mut bench, 260..262);
        bench.tick(now);
        let job = bench.jobs.try_recv().expect("its model is asked for");
        let detection = job.checkpoint.and_then(|checkpoint| checkpoint.resume(&deployed(&model))).flatten();
        let warm_start = WarmStart { detection, is_incomplete: true, ..WarmStart::default() };
        let outcome_of_training =
            TrainingOutcome::Model { deployed: deployed(&model), is_new: false, warm_start, seconds: 0.0 };
        bench.engine.handle_training_outcome(job.group, outcome_of_training, now);
        assert!(bench.engine.list_deployments()[0].lacks_history);
        bench.engine.tick(now, time(262));
        let Ok(BackfillRequest::Fill { detector, range, .. }) = bench.backfill_requests.try_recv() else {
            panic!("not asked")
        };
        assert!(range.0 < time(250) && range.1 >= time(261));
        if is_filled {
            bench.engine.apply_backfill(&detector, &in_prometheus(248..262), now);
        }
        bench.engine.finish_gap_fill(is_filled, now);
        push(&mut bench, 262..340);
        bench.tick(now + Duration::from_secs(60));
        assert_eq!(outcome(&mut bench) == expected, is_filled);
        // The rates of the first rows after a gap lack a part of their range.
        let n_scored = bench.metric(r#"rows_total{detector="node_network",state="complete"}"#);
        assert_eq!(n_scored, if is_filled { 90 } else { 76 });
    }
}

/// A model comes after the grace period of rows that it scores.
#[test]
fn a_row_that_was_closed_without_a_model_is_counted_once() {
    let now = Instant::now();
    let mut bench = Bench::new("");
    push(&mut bench, 190..230);
    bench.tick(now + Duration::from_secs(3600));
    let count = |bench: &Bench, state: &str| {
        bench.metric(&format!(r#"rows_total{{detector="node_network",state="{state}"}}"#))
    };
    assert_eq!(count(&bench, "no_model"), 40);
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, sequential_model())]));
    push(&mut bench, 230..235);
    let n_scored = bench.groups()[0].1.window().scores(ModelRole::Champion, i64::MIN, i64::MAX).count();
    assert_eq!(n_scored, 35, "the rows after its training");
    assert_eq!((count(&bench, "no_model"), count(&bench, "complete")), (40, 5));
}

/// The registry's look at the past takes a moment, in which rows come.
#[test]
fn a_challenger_observes_every_row() {
    let model = sequential_model();
    let mut bench = running(&model, 260);
    let history: Vec<SeriesSamples> = in_prometheus(0..256).into_iter().map(without_group_labels).collect();
    let detection = model
        .fitted
        .as_online()
        .cloned()
        .map(Box::new)
        .map(|detection| catch_up::advance(detection, &model, &history, time(255)));
    let (id, _) = bench.groups().remove(0);
    bench.engine.deploy(
        id,
        ModelRole::Challenger,
        Some(deployed(&model)),
        WarmStart { detection, ..WarmStart::default() },
        Instant::now(),
    );
    push(&mut bench, 260..320);
    let (_, group) = bench.groups().remove(0);
    let [champion, challenger] = [ModelRole::Champion, ModelRole::Challenger].map(|role| {
        let scores = group.window().scores(role, time(259), i64::MAX);
        scores.map(|(at, score)| (at, score.decision, score.score)).collect::<Vec<_>>()
    });
    assert_eq!((challenger.len(), challenger == champion), (60, true));
    assert_eq!(
        group.window().scores(ModelRole::Challenger, i64::MIN, time(259)).count(),
        0,
        "of before it says nothing"
    );
}

fn position(i: i64) -> CursorPosition {
    CursorPosition { group: 0, timestamp_ms: time(i), received_at: Instant::now() }
}

/// The rest of a scrape that arrived in part and that Prometheus holds in full.
#[test]
fn f1_f2_a_row_that_a_snapshot_has_in_part_becomes_complete() {
    let model = sequential_model();
    let expected = outcome(&mut running(&model, 340));
    let mut bench = running(&model, 260);
    bench.send(vec![rx("eth0", &[(time(260), counters(260)[0].1)])]);
    let mut bench = restarted(snapshot_of(&mut bench), &model, 260..265, Some(258));
    push(&mut bench, 262..340);
    assert!(outcome(&mut bench) == expected);
}

#[test]
fn without_remote_read_scoring_resumes_from_a_snapshot() {
    let model = sequential_model();
    let snapshot = snapshot_of(&mut running(&model, 260));
    let mut bench = restarted(snapshot, &model, 0..0, None);
    push(&mut bench, 300..310);
    bench.tick(Instant::now() + Duration::from_secs(3600));
    bench.tick(Instant::now() + Duration::from_secs(3660));
    let (_, group) = bench.groups().remove(0);
    let scored: Vec<i64> = group
        .window()
        .scores(ModelRole::Champion, time(259), i64::MAX)
        .map(|(at, _)| (at - START_MS) / STEP_MS)
        .collect();
    // A rate has to reach back over a minute.
    assert_eq!(scored, [304, 305, 306, 307, 308, 309]);
    assert_eq!(bench.metric(r#"rows_total{detector="node_network",state="too_short"}"#), 4);
}

#[test]
fn f22_f24_a_snapshot_of_another_model_or_configuration_is_not_resumed() {
    let model = sequential_model();
    let (state, window) = snapshot_of(&mut running(&model, 260));
    let checkpoint = state.champion.clone().expect("a model");
    let other =
        Arc::new(Model { card: ModelCard { created_ms: 1, ..model.card.clone() }, ..Model::clone(&model) });
    assert!(checkpoint.resume(&deployed(&model)).is_some());
    assert!(checkpoint.resume(&deployed(&other)).is_none());
    assert!(checkpoint.resume(&DeployedModel { version: Some(2), ..deployed(&model) }).is_none());
    for config in [
        "detectors: [{name: other, match: [up]}]",
        "detectors: [{name: node_network, match: [up]}]",
        r#"detectors: [{name: node_network, match: ['{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device!~"veth.*|cali.*|tap.*"}'], transform: rate(2m)}]"#,
    ] {
        let mut bench = Bench::new(config);
        let outcomes = std::cell::RefCell::new(Vec::new());
        bench.engine.restore(vec![(state.clone(), window.clone())], Instant::now(), |outcome| {
            outcomes.borrow_mut().push(outcome)
        });
        assert_eq!(*outcomes.borrow(), ["incompatible"], "{config}");
        assert!(bench.groups().is_empty());
    }
}

#[test]
fn f26_a_stale_marker_that_was_not_written_is_in_the_snapshot() {
    let model = sequential_model();
    let mut bench = running(&model, 260);
    for (device, _) in counters(260) {
        bench.send(vec![rx(device, &[(time(260), f64::from_bits(STALE_BITS))])]);
    }
    bench.tick(Instant::now() + Duration::from_secs(60));
    let mut again = restarted(snapshot_of(&mut bench), &model, 0..260, Some(259));
    let batch = again.engine.next_batch(0, 100, START_MS * 2).expect("the ends");
    let markers = batch.series.iter().flat_map(|series| &series.samples);
    assert!(markers.clone().all(|sample| sample.is_stale() && sample.timestamp_ms == time(260)));
    assert_eq!(markers.count(), 4, "decision, score, threshold and incident");
}

#[test]
fn an_unchanged_group_is_not_written_again() {
    let mut bench = running(&sequential_model(), 210);
    let step = bench.engine.next_snapshot(None).expect("a group");
    assert!(step.snapshot.is_some());
    assert!(bench.engine.next_snapshot(None).expect("a group").snapshot.is_none());
    bench.groups()[0].1.snapshot_failed();
    assert!(bench.engine.next_snapshot(None).expect("a group").snapshot.is_some(), "the disk was full");
    push(&mut bench, 210..211);
    assert!(bench.engine.next_snapshot(None).expect("a group").snapshot.is_some());
}

/// The scrapes of the hole are read, and everything comes out as if they had been sent; also the scrape of which
/// only a part was sent, and where a single one is missing.
#[test]
fn f14_f16_a_gap_in_the_stream_is_filled() {
    let model = sequential_model();
    let expected = outcome(&mut running(&model, 340));
    for (from, to, half) in [(250, 262, false), (250, 251, false), (303, 330, false), (298, 310, true)] {
        let now = Instant::now();
        let mut bench = running(&model, from);
        if half {
            bench.send(vec![rx("lo", &[(time(from), counters(from)[1].1)])]);
            // Long after the grace time.
            bench.tick(now + Duration::from_secs(200));
        }
        push(&mut bench, [to]);
        bench.engine.tick(now, time(to) + 1000);
        let Ok(BackfillRequest::Fill { detector, groups, range }) = bench.backfill_requests.try_recv() else {
            panic!("{from}: not asked")
        };
        assert_eq!(groups.len(), 1);
        assert!(range.0 < time(from) && range.0 > time(from - 3) && range.1 >= time(to), "{from}");
        assert_eq!(bench.metric("gap_fill_pending_groups"), 1);
        assert!(bench.groups()[0].1.newest_scored_ms() < Some(time(from)), "it holds");
        push(&mut bench, to + 1..to + 3);
        let (first, second) = ((range.0 - START_MS) / STEP_MS + 1, (from + to) / 2);
        for part in [first..second, second..to + 1] {
            bench.engine.apply_backfill(&detector, &in_prometheus(part), now);
        }
        bench.engine.finish_gap_fill(true, now);
        bench.tick(now);
        assert_eq!(bench.metric("gap_fill_pending_groups"), 0);
        push(&mut bench, to + 3..340);
        assert!(outcome(&mut bench) == expected, "{from} {to}");
        let filled = (to - from) * 2 - i64::from(half);
        assert_eq!(bench.metric(r#"gap_fill_samples_total{detector="node_network"}"#), filled as u64);
        assert_eq!(bench.metric(r#"gap_fills_total{detector="node_network",outcome="filled"}"#), 1);
        assert_eq!(bench.metric(r#"gaps_detected_total{detector="node_network"}"#), 1);
        assert!(bench.backfill_requests.try_recv().is_err(), "once");
    }
}

#[test]
fn scoring_resumes_after_a_timeout_when_a_gap_is_not_filled() {
    let now = Instant::now();
    let mut bench = running(&sequential_model(), 250);
    push(&mut bench, 260..262);
    bench.engine.tick(now, time(262));
    assert!(matches!(bench.backfill_requests.try_recv(), Ok(BackfillRequest::Fill { .. })));
    assert!(bench.groups()[0].1.newest_scored_ms() < Some(time(250)));
    bench.engine.tick(now + HOLD_TIMEOUT, time(262));
    push(&mut bench, 262..266);
    // The first row after a gap has no rate, which a late sample might change.
    bench.tick(now + Duration::from_secs(60));
    assert_eq!(bench.groups()[0].1.newest_scored_ms(), Some(time(265)));
    assert_eq!(bench.metric(r#"gap_fill_timeouts_total{detector="node_network"}"#), 1);
    bench.engine.finish_gap_fill(false, now);
    assert_eq!(bench.metric(r#"gap_fills_total{detector="node_network",outcome="failed"}"#), 1);
}

#[test]
fn irregular_rows_do_not_cause_repeated_gap_fills() {
    let now = Instant::now();
    let mut bench = running(&sequential_model(), 250);
    push(&mut bench, [252]);
    bench.engine.tick(now, time(252));
    assert!(matches!(bench.backfill_requests.try_recv(), Ok(BackfillRequest::Fill { .. })));
    bench.engine.finish_gap_fill(true, now);
    for i in [253, 255, 256, 258] {
        push(&mut bench, [i]);
        bench.engine.tick(now, time(i));
    }
    assert!(bench.backfill_requests.try_recv().is_err());
    assert_eq!(bench.metric(r#"gap_fills_total{detector="node_network",outcome="skipped"}"#), 2);
    assert_eq!(bench.groups()[0].1.newest_scored_ms(), Some(time(258)));
}

/// The answer to a request of many groups may hold others, such as those of another shard.
#[test]
fn a_gap_of_many_groups_names_them_all_and_makes_no_other() {
    let now = Instant::now();
    let mut bench = Bench::new("");
    let model = two_features();
    let of_host = |host: i64, device: &str| {
        Labels::new([NAME, ("device", device), ("instance", &host.to_string()), ("job", "node")])
            .expect("valid")
    };
    let send = |bench: &mut Bench, i: i64| {
        for host in 0..60 {
            let scrape = ["eth0", "lo"].map(|device| {
                let labels = of_host(host, device);
                series(&labels.iter().collect::<Vec<_>>(), &[(time(i), i as f64)])
            });
            bench.send(scrape.into());
        }
        let labels: Vec<Labels> = bench.groups().iter().map(|(_, group)| group.labels.clone()).collect();
        bench.install(&labels.into_iter().map(|labels| (labels, model.clone())).collect());
    };
    (0..20).for_each(|i| send(&mut bench, i));
    send(&mut bench, 30);
    bench.engine.tick(now, time(30));
    let Ok(BackfillRequest::Fill { detector, groups, .. }) = bench.backfill_requests.try_recv() else {
        panic!("not asked")
    };
    assert_eq!(groups.len(), 60);
    let sample = Sample { timestamp_ms: time(25), value: 25.0 };
    let answer: Vec<SeriesSamples> = (0..90).map(|host| (of_host(host, "lo"), vec![sample])).collect();
    bench.engine.apply_backfill(&detector, &answer, now);
    assert_eq!(bench.groups().len(), 60);
    assert_eq!(bench.metric(r#"gap_fill_samples_total{detector="node_network"}"#), 60);
}

/// The first host to be scraped again asks for those that were silent as long.
#[test]
fn groups_with_the_same_gap_share_one_request() {
    let now = Instant::now();
    let mut bench = Bench::new("");
    let model = two_features();
    let send = |bench: &mut Bench, host: &str, scrapes: std::ops::Range<i64>, offset_ms: i64| {
        for i in scrapes {
            for device in ["eth0", "lo"] {
                let labels = [NAME, ("device", device), ("instance", host), ("job", "node")];
                bench.send(vec![series(&labels, &[(time(i) + offset_ms, i as f64)])]);
            }
            let models =
                bench.groups().iter().map(|(_, group)| (group.labels.clone(), model.clone())).collect();
            bench.install(&models);
        }
    };
    for (host, offset_ms, to) in [("a", 0, 20), ("b", 5000, 20), ("c", 9000, 20), ("gone", 9000, 5)] {
        send(&mut bench, host, 0..to, offset_ms);
    }
    send(&mut bench, "a", 30..31, 0);
    bench.engine.tick(now, time(30));
    let Ok(BackfillRequest::Fill { detector, groups, range }) = bench.backfill_requests.try_recv() else {
        panic!("not asked")
    };
    let hosts: Vec<&str> = groups.iter().map(|group| group.get("instance")).collect();
    assert_eq!(hosts, ["a", "b", "c"]);
    send(&mut bench, "b", 30..31, 5000);
    bench.engine.tick(now, time(31));
    assert!(bench.backfill_requests.try_recv().is_err(), "one question at a time");
    assert_eq!(range, (time(18), time(30)));
    bench.engine.apply_backfill(&detector, &in_prometheus(20..30), now);
    bench.engine.finish_gap_fill(true, now);
    bench.engine.tick(now, time(31));
    assert!(bench.backfill_requests.try_recv().is_err());
    assert_eq!(bench.metric(r#"gap_fills_total{detector="node_network",outcome="filled"}"#), 1);
}

#[test]
fn an_audit_finds_samples_that_never_came() {
    let mut bench = running(&sequential_model(), 230);
    let now = Instant::now();
    bench.engine.tick(now + gaps::AUDIT_INTERVAL, time(230));
    let Ok(BackfillRequest::Audit(series)) = bench.backfill_requests.try_recv() else {
        panic!("not counted")
    };
    let audited = &series[0];
    assert_eq!((audited.group.get("instance"), series.len()), ("a", 20));
    // The grace time is left out: two scrapes.
    assert_eq!(audited.range.1, time(227));
    assert_eq!(audited.n_samples, 38);
    let features: BTreeSet<&str> = series.iter().map(|series| series.feature.get("device")).collect();
    assert_eq!(features.len(), 2);
    // What is late for judging is in the window, and counted.
    let detector = audited.detector.clone();
    let extra =
        vec![(in_prometheus(0..1).remove(0).0, vec![Sample { timestamp_ms: time(220) + 7, value: 1.0 }])];
    let before = bench.content().len();
    bench.engine.apply_backfill(&detector, &extra, now);
    assert_eq!(bench.content().len(), before + 1);
    assert_eq!(bench.metric(r#"gap_fill_samples_total{detector="node_network"}"#), 1);
}

/// Rows that waited for an endpoint are written with their own time, and counted if that is long ago.
#[test]
fn f9_rows_that_are_written_late_are_counted() {
    let mut bench = running(&sequential_model(), 300);
    let batch = bench.engine.next_batch(0, 100_000, START_MS * 2).expect("all of them");
    let rows = batch.series[0].samples.len() as i64;
    assert_eq!(batch.series[0].samples[0].timestamp_ms, time(300 - rows));
    // 50 minutes are 200 rows, five minutes are 20: those between were written late.
    bench.engine.advance(0, &batch.positions, time(300 + 180));
    let late = bench.metric(r#"backfilled_rows_total{detector="node_network"}"#) as i64;
    assert_eq!(late, 299 - (300 + 180 - 200));
    push(&mut bench, 300..301);
    let batch = bench.engine.next_batch(0, 100_000, START_MS * 2).expect("the next");
    bench.engine.advance(0, &batch.positions, time(301));
    assert_eq!(bench.metric(r#"backfilled_rows_total{detector="node_network"}"#) as i64, late, "in time");
}

/// Samples as a group has them.
fn without_group_labels((labels, samples): SeriesSamples) -> SeriesSamples {
    (labels.split(&["instance".into(), "job".into()]).1, samples)
}

/// The model that the group would be trained anew to, while remote read knows the scrapes up to `known`.
fn renewed(bench: &mut Bench, scrapes_to: i64) -> Arc<Model> {
    let group = bench.groups().remove(0).1;
    let (detector, scored_to_ms) = (group.detector.clone(), group.scored_to_ms());
    let history: Vec<SeriesSamples> =
        in_prometheus(0..scrapes_to).into_iter().map(without_group_labels).collect();
    let joined = build::join(&history, group.window(), time::millis(detector.training.history));
    let rows = TrainingSet::from_window(&detector, &joined, &[], scored_to_ms).expect("rows");
    let trained = ModelFitter::for_detector(&detector, None, 0).fit(&rows);
    Arc::new(trained.expect("the parameters suit the rows").model)
}

#[test]
fn a_renewed_model_scores_rows_that_remote_read_had_before_remote_write() {
    let old = sequential_model();
    let mut bench = running(&old, 260);
    // The first half of a row, when the training is asked for: Prometheus has it all, and five more.
    bench.send(vec![rx("eth0", &[(time(260), counters(260)[0].1)])]);
    let to_ms = bench.groups().remove(0).1.scored_to_ms();
    assert_eq!(to_ms, time(260) - 1);
    let new = renewed(&mut bench, 266);
    assert_eq!(new.fitted.newest_ms(), Some(time(259)));

    // The old model goes on while the new one is trained.
    push(&mut bench, 260..263);
    let before = bench.content();
    bench.groups().remove(0).1.install(deployed(&new), WarmStart::default(), Instant::now(), &mut |_| {});
    assert_eq!(bench.content(), before, "scores stay");
    push(&mut bench, 263..300);

    let mut expected = BTreeMap::new();
    for (model, from, to) in [(&old, 260, 263), (&new, 263, 300)] {
        let history: Vec<SeriesSamples> =
            in_prometheus(0..300).into_iter().map(without_group_labels).collect();
        let window = build::from_series(history.iter(), i64::MAX / 4);
        let mut detection = model.fitted.as_online().cloned().map(Box::new).expect("it is ordered");
        let newest_ms = detection.newest_ms().expect("it has seen rows");
        training_set::for_each_full_row(&model.schema, &window, newest_ms, i64::MAX, |at_ms, values| {
            let Some(assessment) = detection.assess(at_ms, values) else { return };
            if (time(from)..time(to)).contains(&at_ms) {
                expected.insert(at_ms, assessment.decision.to_bits());
            }
        });
    }
    assert_eq!(expected.len(), 40);
    let content = bench.content().into_iter();
    let is_new = |at: &i64, feature: &Labels| *at >= time(260) && *feature == Labels::default();
    let scores = content.filter(|((_, feature, at), _)| is_new(at, feature));
    assert_eq!(scores.map(|((_, _, at), bits)| (at, bits)).collect::<BTreeMap<_, _>>(), expected);
}

/// An incident stays open for ten minutes after the deviation, also under a model that has not seen it.
#[test]
fn an_open_incident_survives_a_change_of_model() {
    let model = sequential_model();
    let is_open = |bench: &mut Bench, i: i64| {
        let score = bench.groups().remove(0).1.window().score(ModelRole::Champion, time(i)).expect("scored");
        score.incident_state.expect("it raises some").is_incident
    };
    let mut uninterrupted = running(&model, 400);
    let last = (300..400).rev().find(|i| is_open(&mut uninterrupted, *i)).expect("an incident");
    // It is brought up to date by a past in which nothing happened.
    let mut without_incident = model.fitted.as_online().cloned().map(Box::new).expect("it is ordered");
    let history: Vec<SeriesSamples> = in_prometheus(0..last).into_iter().map(without_group_labels).collect();
    let mut rows = Vec::new();
    training_set::for_each_full_row(
        &model.schema,
        &build::from_series(history.iter(), i64::MAX / 4),
        i64::MIN,
        i64::MAX,
        |_, values| {
            rows.push(values.to_vec());
        },
    );
    let first = last - rows.len() as i64;
    for i in 200..last - 1 {
        // The noise has a period of 101.
        let calm_row = if (300..310).contains(&i) { i - 101 } else { i };
        without_incident.assess(time(i), &rows[(calm_row - first) as usize]);
    }
    let mut bench = running(&model, last - 1);
    let warm_start = WarmStart { detection: Some(without_incident), ..WarmStart::default() };
    bench.groups().remove(0).1.install(deployed(&model), warm_start, Instant::now(), &mut |_| {});
    push(&mut bench, last - 1..=last);
    assert!(is_open(&mut bench, last));
}
