//! Snapshots and restarts.

use super::sequential::*;
use super::*;
use crate::detect::{AlertScore, IncidentFeedback};
use crate::models::registry::periods::Period;
use crate::train::WriteWatermark;

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
        let rest = bench.engine.next_batch(0, None, 10_000, START_MS * 2);
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

/// Endpoints that were not equally far when the process ended: each goes on where it was.
#[test]
fn f8_an_endpoint_that_lags_behind_gets_the_samples_that_it_missed() {
    let two = "remote_write: [{url: 'http://a/api/v1/write'}, {url: 'http://b/api/v1/write'}]";
    let model = sequential_model();
    let first = |bench: &mut Bench, endpoint: usize| {
        let batch = bench.engine.next_batch(endpoint, None, 10_000, START_MS * 2);
        batch.map(|batch| (batch.series[0].samples[0].timestamp_ms - START_MS) / STEP_MS)
    };
    let mut bench = Bench::new(two);
    push(&mut bench, 190..200);
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, model.clone())]));
    push(&mut bench, 200..260);
    bench.engine.advance(0, None, &[position(255)], time(260));
    bench.engine.advance(1, None, &[position(230)], time(260));
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
    // Without a snapshot, an endpoint that is not read is taken to be where the others are.
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
    let renewed = deployed_as(&model, 2);
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
    assert!(checkpoint.resume(&deployed_as(&model, 2)).is_none());
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
    let batch = again.engine.next_batch(0, None, 100, START_MS * 2).expect("the ends");
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

/// The correction of the rows and that of the answer, after a false alarm of an incident that this score opened.
fn corrections_after_a_false_alarm(opened_by: AlertScore) -> [Option<f64>; 2] {
    let model = sequential_model();
    let mut snapshot = snapshot_of(&mut running(&model, 400));
    let checkpoint = snapshot.0.champion.clone().expect("a model");
    let incident = snapshot.0.incidents.last_mut().expect("an incident");
    incident.opened_by = opened_by;
    let start_ms = incident.start_ms;
    let mut bench = Bench::new("");
    bench.engine.restore(vec![snapshot], Instant::now(), |_| {});
    let warm_start =
        WarmStart { detection: checkpoint.resume(&deployed(&model)).flatten(), ..WarmStart::default() };
    let (_, group) = bench.groups().remove(0);
    group.install(deployed(&model), warm_start, Instant::now(), &mut |_| {});
    let answer = group.apply_feedback(start_ms, IncidentFeedback::False);
    [group.budget_correction(), answer]
}

#[test]
fn a_false_alarm_counts_for_the_score_that_opened_it_also_after_a_restart() {
    let [row, answer] = corrections_after_a_false_alarm(AlertScore::Row);
    assert_eq!(row, answer);
    let [untouched, answer] = corrections_after_a_false_alarm(AlertScore::Lasting);
    assert!(untouched < row && answer.is_some_and(|step| step > 0.29), "{untouched:?} {row:?} {answer:?}");
}

#[test]
fn feedback_that_a_snapshot_lacks_is_applied_once() {
    let model = sequential_model();
    let mut bench = running(&model, 400);
    let snapshot = snapshot_of(&mut bench);
    let incident = *snapshot.0.incidents.last().expect("an incident");
    let feedback = IncidentFeedback::False;
    let expected = bench.groups().remove(0).1.apply_feedback(incident.start_ms, feedback);
    let recorded = Period {
        kind: feedback.into(),
        detector: None,
        groups: "{}".parse().expect("a selector"),
        from_ms: incident.start_ms,
        to_ms: Some(incident.last_ms),
        comment: String::new(),
    };
    for snapshot in [snapshot, snapshot_of(&mut bench)] {
        let checkpoint = snapshot.0.champion.clone().expect("a model");
        let mut bench = Bench::new("");
        bench.engine.restore(vec![snapshot], Instant::now(), |_| {});
        let detection = checkpoint.resume(&deployed(&model)).flatten();
        let warm_start = WarmStart { detection, feedback: vec![recorded.clone()], ..WarmStart::default() };
        let (_, group) = bench.groups().remove(0);
        group.install(deployed(&model), warm_start, Instant::now(), &mut |_| {});
        assert_eq!(group.budget_correction(), expected);
    }
}
