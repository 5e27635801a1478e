//! Staleness markers of series whose target, group or detector ends.

use super::*;

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
    let batch = bench.engine.next_batch(0, None, 100, now_ms()).expect("ends");
    assert_eq!((batch.series.len(), batch.positions.len()), (2, 0));
    for remote_write::TimeSeries { labels, samples } in &batch.series {
        let [sample] = samples[..] else { panic!("{labels}: {samples:?}") };
        assert!(sample.is_stale() && (before_ms..=now_ms()).contains(&sample.timestamp_ms), "{labels}");
    }
    // A sender that was cut off is asked again, over another reload too.
    assert_eq!(bench.engine.next_batch(0, None, 100, now_ms()).expect("not dealt with").series, batch.series);
    bench.reload(other, vec![Arc::default()]);
    assert_eq!(bench.engine.next_batch(0, None, 100, now_ms()).expect("not dealt with").series, batch.series);
    bench.engine.advance(0, None, &[], START_MS);
    assert!(bench.engine.next_batch(0, None, 100, now_ms()).is_none(), "no end twice");

    // Who writes these series anew begins after their ends.
    bench.reload(Arc::new(Config::default()), vec![Arc::default()]);
    let now = (now_ms() - START_MS) / 15_000;
    scrape(&mut bench, now - 11);
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, two_features())]));
    [now - 10, now + 2, now + 3].into_iter().for_each(|i| scrape(&mut bench, i));
    let mut lines = Vec::new();
    while let Some(batch) = bench.engine.next_batch(0, None, 100, now_ms() + 60_000) {
        lines.extend(describe(&batch));
        bench.engine.advance(0, None, &batch.positions, START_MS);
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
    let batch = bench.engine.next_batch(0, None, 100, now_ms()).expect("ends");
    assert_eq!(batch.series.len(), 2);
    assert!(batch.series.iter().all(|series| series.samples[0].is_stale()));
}
