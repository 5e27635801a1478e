//! Features that are gone, and features whose samples are only late.

use super::*;
use crate::time::CLOCK_SKEW_MS;

/// The times of a scrape: on the clock of the engine, and in the samples.
fn at(start: Instant, i: i64) -> (Instant, i64) {
    (start + Duration::from_millis(i.unsigned_abs() * 15_000), START_MS + i * 15_000)
}

fn write(bench: &mut Bench, devices: &[&str], timestamp_ms: i64, value: f64, now: Instant, now_ms: i64) {
    let body = compress(devices.iter().map(|device| rx(device, &[(timestamp_ms, value)])).collect());
    bench.engine.ingest(ProtocolVersion::V1, None, &body, now, now_ms).expect("accepted");
}

/// Scrapes of both devices, each followed by a tick.
fn run(bench: &mut Bench, start: Instant, scrapes: std::ops::RangeInclusive<i64>) {
    for i in scrapes {
        let (now, now_ms) = at(start, i);
        write(bench, &["eth0", "lo"], now_ms, i as f64 * 100.0, now, now_ms);
        bench.engine.tick(now, now_ms);
    }
}

fn scored(bench: &mut Bench) -> Vec<i64> {
    let (_, group) = bench.groups().remove(0);
    let scores = group.window().scores(ModelRole::Champion, i64::MIN, i64::MAX);
    scores.map(|(timestamp_ms, _)| (timestamp_ms - START_MS) / 15_000).collect()
}

/// A group with a model, after eight scrapes since a time.
fn after_eight_scrapes(config: &str) -> (Bench, Instant) {
    let mut bench = serving_with(config);
    let start = Instant::now();
    run(&mut bench, start, 1..=8);
    (bench, start)
}

#[test]
fn a_scrape_in_two_requests_after_a_pause_removes_no_feature() {
    let (mut bench, start) = after_eight_scrapes("remote_read: []");
    let (now, now_ms) = at(start, 16);
    write(&mut bench, &["eth0"], now_ms, 6000.0, now, now_ms);
    for seconds in 0..10 {
        bench.engine.tick(now + Duration::from_secs(seconds), now_ms + 1000 * seconds as i64);
        assert!(bench.jobs.try_recv().is_err(), "after {seconds} s");
    }
    let (_, group) = bench.groups().remove(0);
    assert_eq!(group.missing_feature(&two_features().schema, now_ms), None);
    write(&mut bench, &["lo"], now_ms, 6000.0, now, now_ms + 10_000);
    run(&mut bench, start, 17..=19);
    assert!(bench.jobs.try_recv().is_err());
    assert_eq!(scored(&mut bench)[7..], [8, 17, 18, 19], "the rate of row 16 has one sample");
}

#[test]
fn a_target_that_returns_in_two_requests_after_its_staleness_markers_loses_no_feature() {
    let mut bench = serving();
    let start = Instant::now();
    run(&mut bench, start, 1..=8);
    let stale = f64::from_bits(STALE_BITS);
    let (now, now_ms) = at(start, 9);
    write(&mut bench, &["eth0"], now_ms, stale, now, now_ms);
    bench.engine.tick(now + Duration::from_secs(5), now_ms + 5000);
    write(&mut bench, &["lo"], now_ms, stale, now, now_ms);
    for i in [10, 12, 14] {
        let (now, now_ms) = at(start, i);
        bench.engine.tick(now, now_ms);
    }
    let (now, now_ms) = at(start, 14);
    write(&mut bench, &["eth0"], now_ms, 1.0, now, now_ms);
    bench.engine.tick(now + Duration::from_secs(6), now_ms + 6000);
    assert!(bench.jobs.try_recv().is_err());
}

#[test]
fn samples_ahead_of_the_clock_remove_no_feature_and_close_no_earlier_row() {
    let mut bench = serving();
    let start = Instant::now();
    run(&mut bench, start, 1..=8);
    let (now, now_ms) = at(start, 8);
    for ahead in [39, 40] {
        write(&mut bench, &["eth0"], now_ms + ahead * 15_000, 1.0, now, now_ms);
    }
    run(&mut bench, start, 9..=30);
    assert!(bench.jobs.try_recv().is_err(), "no feature is gone");
    assert_eq!(scored(&mut bench), (1..=30).collect::<Vec<_>>());
    assert_eq!(bench.metric(r#"rows_total{detector="node_network",state="complete"}"#), 30);
}

#[test]
fn a_feature_that_is_gone_is_missed_at_a_closed_row() {
    let mut bench = serving();
    let start = Instant::now();
    run(&mut bench, start, 1..=8);
    for i in 9..=14 {
        let (now, now_ms) = at(start, i);
        write(&mut bench, &["eth0"], now_ms, 1.0, now, now_ms);
        bench.engine.tick(now, now_ms);
    }
    assert_eq!(bench.jobs.try_recv().expect("a training").reason, TrainingReason::LostFeature);
}

#[test]
fn nothing_is_judged_while_a_gap_is_filled() {
    let (mut bench, start) = after_eight_scrapes("remote_read: [{url: 'http://localhost:1'}]");
    let (now, now_ms) = at(start, 16);
    write(&mut bench, &["eth0"], now_ms, 1.0, now, now_ms);
    assert!(bench.groups()[0].1.gaps().is_holding());
    for seconds in 0..9 {
        bench.engine.tick(now + Duration::from_secs(seconds), now_ms);
        assert!(bench.jobs.try_recv().is_err(), "after {seconds} s");
    }
}

#[test]
fn a_scheduled_training_during_a_split_scrape_keeps_all_features() {
    use crate::train::TrainingSet;
    let config = "detectors: [{name: net, match: [node_network_receive_bytes_total], transform: value, training: {min_history: 1m}}]";
    let mut bench = Bench::new(config);
    let start = Instant::now();
    run(&mut bench, start, 0..=40);
    let features = two_features().schema.features.clone();
    let (now, now_ms) = at(start, 60);
    write(&mut bench, &["eth0"], now_ms, 1.0, now, now_ms);
    let (_, group) = bench.groups().remove(0);
    let closed_to_ms = group.judged_at_ms(now_ms);
    let set = TrainingSet::from_open_window(&group.detector, group.window(), &[], i64::MAX, closed_to_ms)
        .expect("rows");
    assert_eq!(set.schema.features, features);
}

#[test]
fn columns_are_kept_while_the_row_that_outdates_them_arrives() {
    let mut bench = Bench::new("");
    let start = Instant::now();
    let devices: Vec<String> = (0..80).map(|i| format!("eth{i}")).collect();
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    let (now, now_ms) = at(start, 0);
    write(&mut bench, &devices, now_ms, 1.0, now, now_ms);
    bench.engine.tick(now + Duration::from_secs(40), now_ms + 40_000);
    // Longer than the window, but not without a sample.
    let pause_ms = bench.groups()[0].1.window().length_ms() + CLOCK_SKEW_MS;
    let (later, later_ms) = (now + Duration::from_secs(3600), now_ms + pause_ms);
    write(&mut bench, &devices[..8], later_ms, 2.0, later, later_ms);
    bench.engine.tick(later, later_ms);
    assert_eq!(bench.groups()[0].1.n_columns(), 80);
    bench.engine.tick(later + Duration::from_secs(100), later_ms + 100_000);
    bench.engine.tick(later + Duration::from_secs(200), later_ms + 200_000);
    assert_eq!(bench.groups()[0].1.n_columns(), 8);
}

#[test]
fn a_group_keeps_its_id_and_its_unwritten_rows_when_columns_are_removed() {
    let mut bench = serving();
    let start = Instant::now();
    let devices: Vec<String> = (0..70).map(|i| format!("ens{i}")).collect();
    let (now, now_ms) = at(start, 0);
    for device in devices.iter().map(String::as_str) {
        write(&mut bench, &[device], now_ms - 3_600_000, 1.0, now, now_ms);
    }
    run(&mut bench, start, 1..=8);
    bench.tick(start + Duration::from_secs(200));
    while bench.jobs.try_recv().is_ok() {}
    let id = bench.groups()[0].0;
    let batch = bench.engine.next_batch(0, None, 100_000, START_MS * 2).expect("rows");
    let (later, later_ms) = at(start, 4 * 60 * 6);
    write(&mut bench, &["eth0", "lo"], later_ms, 1e6, later, later_ms);
    write(&mut bench, &["eth0", "lo"], later_ms + 15_000, 1e6, later, later_ms + 15_000);
    // The hold for the gap ends.
    bench.engine.tick(later + Duration::from_secs(20), later_ms + 20_000);
    let (id_after, group) = bench.groups().remove(0);
    assert_eq!((id_after, group.n_columns()), (id, 2));
    let before = group.publication().n_pending_samples();
    bench.engine.advance(0, None, &batch.positions, later_ms);
    let after = bench.groups()[0].1.publication().n_pending_samples();
    assert!(after < before, "{after} of {before}");
    write(&mut bench, &["eth0", "lo"], later_ms + 30_000, 2e6, later, later_ms + 30_000);
    assert_eq!(bench.groups()[0].1.n_columns(), 2, "samples find their columns by their new numbers");
    assert_eq!(*scored(&mut bench).last().expect("rows"), 4 * 60 * 6 + 2);
}
