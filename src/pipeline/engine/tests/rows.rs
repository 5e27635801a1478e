//! The states of rows, and the samples and requests that are dropped or rejected.

use super::*;

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
        .ingest(ProtocolVersion::V1, None, &ahead, Instant::now(), START_MS)
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
            let result = bench.engine.ingest(
                ProtocolVersion::V1,
                None,
                &body,
                Instant::now(),
                timestamp_ms + ahead_ms,
            );
            if ahead_ms < 0 {
                assert!(matches!(result, Err(ingest::Error::PartialWrite { .. })), "{i}: {result:?}");
                // The sender's next try, or another sender's, once the clock is right.
                bench
                    .engine
                    .ingest(ProtocolVersion::V1, None, &body, Instant::now(), timestamp_ms)
                    .expect("accepted");
            } else {
                result.expect("accepted");
            }
        }
    }
    assert_eq!(bench.content(), undisturbed.content());
    // Nothing is written ahead of the clock, and nothing is forgotten for that.
    assert!(bench.engine.next_batch(0, None, 100, START_MS - HOUR_MS).is_none());
    let batch = bench.engine.next_batch(0, None, 100, START_MS + HOUR_MS).expect("it waited");
    assert_eq!(batch.series[0].samples.len(), 6);
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
    let (evicted, _) = bench.engine.groups.evict(Instant::now() + Duration::from_secs(86_400), now_ms());
    assert_eq!(evicted.len(), 1);
    scrape(&mut bench, 1);
    assert_eq!(bench.groups().len(), 1, "it may come back");
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

#[test]
fn f30_the_limits_are_those_of_the_configuration() {
    let config =
        |limits: &str| format!("global: {{{limits}}}\ndetectors: [{{name: a, match: [rx], by: [host]}}]");
    let of = |host: &str, device: &str| {
        series(&[("__name__", "rx"), ("device", device), ("host", host)], &[(START_MS, 1.0)])
    };
    let dropped = r#"ingest_samples_dropped_total{reason="series_limit"}"#;
    let mut bench = Bench::new(&config("series_limit: 3, group_limit: 2"));
    bench.send(vec![of("a", "eth0"), of("b", "eth0"), of("c", "eth0")]);
    assert_eq!((bench.groups().len(), bench.metric(dropped)), (2, 1), "groups");
    bench.send(vec![of("a", "eth1"), of("a", "eth2")]);
    assert_eq!(bench.metric(dropped), 2, "series");
    let raised = Config::parse(&config("series_limit: 5, group_limit: 3")).expect("valid");
    bench.reload(Arc::new(raised), vec![Arc::default()]);
    bench.send(vec![of("c", "eth0"), of("a", "eth2"), of("a", "eth3")]);
    assert_eq!((bench.groups().len(), bench.metric(dropped)), (3, 3));
    let lowered = Config::parse(&config("series_limit: 1, group_limit: 1")).expect("valid");
    bench.reload(Arc::new(lowered), vec![Arc::default()]);
    bench.send(vec![of("c", "eth0"), of("d", "eth0")]);
    assert_eq!((bench.groups().len(), bench.metric(dropped)), (3, 4), "the known ones go on");
}

/// Labels are memory that whoever writes can take.
#[test]
fn f30_labels_are_bounded_and_counted() {
    let dropped = r#"ingest_samples_dropped_total{reason="series_limit"}"#;
    let mut bench = Bench::new("detectors: [{name: a, match: [rx], by: [host]}]");
    let of_device = |host: usize, device: &str, n_bytes: usize| {
        let (host, value) = (host.to_string(), "v".repeat(n_bytes));
        let labels = [("__name__", "rx"), ("device", device), ("host", &host), ("value", &value)];
        series(&labels, &[(START_MS, 1.0)])
    };
    bench.send(vec![of_device(0, "eth0", 16_300), of_device(0, "eth1", 16_384)]);
    assert_eq!(bench.metric(dropped), 1, "a series has 16 KiB of labels");
    // 16 MiB each time.
    for host in 0..20 {
        bench.send((0..1024).map(|i| of_device(host, &format!("eth{i:04}"), 16_300)).collect());
    }
    let n_ignored = bench.metric(dropped);
    assert!((3000..6000).contains(&n_ignored), "{n_ignored} of 20 * 1024 series");
    bench.send(vec![of_device(100, "eth0", 10)]);
    assert_eq!(bench.metric(dropped), n_ignored, "a short one has room");
    bench.tick(Instant::now() + EVICT_INTERVAL);
    let bytes = bench.metric("window_bytes");
    assert!((240 << 20..260 << 20).contains(&bytes), "{bytes} bytes");
}
