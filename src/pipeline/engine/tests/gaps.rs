//! Gaps in the rows, and their fills.

use super::sequential::*;
use super::*;
use crate::history::SeriesSamples;
use crate::pipeline::gaps;
use crate::pipeline::group::gap_guard::HOLD_TIMEOUT;
use crate::pipeline::maintenance::MaintenancePlan;
use crate::train::catch_up;
use crate::train::history::FiringAlert;

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
        let Ok(BackfillRequest::Fill { detector, groups, range, .. }) = bench.backfill_requests.try_recv()
        else {
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

/// The alert was over before its rows came, and the watcher has forgotten it.
#[test]
fn the_rows_of_a_gap_open_no_incident_in_the_time_of_an_alert() {
    let model = sequential_model();
    let incidents = |alert_instance: Option<&str>| {
        let now = Instant::now();
        let mut bench = running(&model, 298);
        push(&mut bench, [320]);
        bench.engine.tick(now, time(320) + 1000);
        let Ok(BackfillRequest::Fill { detector, .. }) = bench.backfill_requests.try_recv() else {
            panic!("not asked")
        };
        let alerts = alert_instance.map(|instance| FiringAlert {
            labels: Labels::new([("alertname", "Planned"), ("instance", instance)]).expect("valid"),
            from_ms: time(299),
            to_ms: time(320),
            is_firing: false,
        });
        let groups = &mut bench.engine.groups;
        groups.record_alerts(&detector.name, None, alerts.into_iter().collect());
        groups.set_maintenance(MaintenancePlan::default());
        bench.engine.apply_backfill(&detector, &in_prometheus(298..320), now);
        bench.engine.finish_gap_fill(true, now);
        bench.tick(now);
        assert_eq!(bench.groups()[0].1.newest_scored_ms(), Some(time(320)));
        let (_, group) = bench.groups().remove(0);
        group
            .window()
            .scores(ModelRole::Champion, time(297), i64::MAX)
            .filter(|(_, score)| score.incident_state.is_some_and(|state| state.is_incident))
            .count()
    };
    assert!(incidents(None) > 0, "the burst is one");
    assert!(incidents(Some("b")) > 0, "the alert of another host");
    assert_eq!(incidents(Some("a")), 0);
}

/// A model that takes over is brought up to date with rows of the past.
#[test]
fn rows_of_the_past_open_no_incident_in_a_suspended_time() {
    let model = sequential_model();
    let history: Vec<SeriesSamples> = in_prometheus(190..303).into_iter().map(without_group_labels).collect();
    let is_open_after = |suspended: &[std::ops::RangeInclusive<i64>]| {
        let start = Box::new(model.fitted.as_online().expect("it scores in order").clone());
        let alerts = &Default::default();
        let detection = catch_up::advance(start, &model, alerts, suspended.into(), &history, time(302));
        detection.alert_state().is_incident_open()
    };
    assert!(is_open_after(&[]), "a burst");
    assert!(!is_open_after(&[time(300)..=time(310)]));
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
    // A row is missing every five, which Prometheus does not have either. Each of the first ones might be a restart.
    for (number, first) in (252..282).step_by(5).enumerate() {
        for i in first..first + 4 {
            push(&mut bench, [i]);
            bench.engine.tick(now, time(i));
        }
        let is_requested = matches!(bench.backfill_requests.try_recv(), Ok(BackfillRequest::Fill { .. }));
        assert_eq!(is_requested, number < 3, "gap {number}");
        if is_requested {
            bench.engine.finish_gap_fill(true, now);
        }
    }
    bench.engine.tick(now, time(281));
    assert_eq!(bench.metric(r#"gap_fills_total{detector="node_network",outcome="skipped"}"#), 3);
    assert_eq!(bench.groups()[0].1.newest_scored_ms(), Some(time(280)));
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
    let Ok(BackfillRequest::Fill { detector, groups, range, .. }) = bench.backfill_requests.try_recv() else {
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
