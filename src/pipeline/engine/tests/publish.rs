//! Batches of scores: their size, their order and their cursors.

use super::sequential::*;
use super::*;
use crate::pipeline::select::GroupMatches;
use crate::remote_read::server::{self, Query, Queryable, WorkPermits};

#[test]
fn a_row_is_scored_with_its_last_sample_and_published_once() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    let batch = bench.engine.next_batch(0, None, 100, START_MS * 2).expect("a row is scored");
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
    assert_eq!(
        bench.engine.next_batch(0, None, 100, START_MS * 2).expect("not advanced").series,
        batch.series
    );
    bench.engine.advance(0, None, &batch.positions, START_MS);
    assert!(bench.engine.next_batch(0, None, 100, START_MS * 2).is_none());
    scrape(&mut bench, 2);
    let next = bench.engine.next_batch(0, None, 100, START_MS * 2).expect("the next row");
    assert_eq!(next.series[0].samples.len(), 1);
    assert_eq!(next.series[0].samples[0].timestamp_ms, START_MS + 30_000);
}

#[test]
fn batches_keep_their_size_and_rotate_over_the_groups() {
    const SIZE: usize = remote_write::message::MAX_SAMPLES_PER_ROW;
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
    while let Some(batch) = bench.engine.next_batch(0, None, SIZE, START_MS * 2) {
        let samples: usize = batch.series.iter().map(|series| series.samples.len()).sum();
        assert!(samples <= SIZE, "{samples} samples");
        rows += samples / 2;
        groups.extend(batch.positions.iter().map(|position| position.group));
        bench.engine.advance(0, None, &batch.positions, START_MS);
    }
    assert_eq!(rows, 117, "39 rows of three groups have a rate");
    assert_eq!(groups[..3], [0, 1, 2]);
}

/// The pending scores of a challenger are sent even if the challenger was removed meanwhile.
#[test]
fn batches_keep_their_size_after_a_challenger_has_left() {
    let mut bench = serving();
    bench.groups()[0].1.set_challenger(Some(deployed(&two_features())), None);
    (1..=6).for_each(|i| scrape(&mut bench, i));
    bench.groups()[0].1.set_challenger(None, None);
    scrape(&mut bench, 7);
    let mut sizes = Vec::new();
    while let Some(batch) =
        bench.engine.next_batch(0, None, 2 * remote_write::message::MAX_SAMPLES_PER_ROW, START_MS * 2)
    {
        sizes.push(batch.series.iter().map(|series| series.samples.len()).sum::<usize>());
        bench.engine.advance(0, None, &batch.positions, START_MS);
    }
    assert_eq!(sizes, [8, 8, 8, 4], "at last two scores, and the ends of the challenger's series");
}

#[test]
fn f19_scores_from_the_future_wait() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    assert!(bench.engine.next_batch(0, None, 100, START_MS).is_none());
    assert!(bench.engine.next_batch(0, None, 100, START_MS + 15_000).is_some());
}

#[test]
fn a_late_score_is_counted_and_not_sent() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    bench.send(vec![rx("eth0", &[(START_MS + 30_000, 1.0)])]);
    scrape(&mut bench, 3);
    let batch = bench.engine.next_batch(0, None, 100, START_MS * 2).expect("two rows");
    bench.engine.advance(0, None, &batch.positions, START_MS);
    bench.send(vec![rx("lo", &[(START_MS + 30_000, 2.0)])]);
    assert!(bench.engine.next_batch(0, None, 100, START_MS * 2).is_none());
    assert_eq!(bench.metric(r#"remote_write_samples_failed_total{reason="out_of_order"}"#), 2);
    assert_eq!(
        bench.metric(r#"remote_write_samples_failed_total{reason="revised"}"#),
        2,
        "the rate of the row after it"
    );
    assert_eq!(bench.metric("ingest_samples_late_total"), 1);
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
    while let Some(batch) = bench.engine.next_batch(0, None, 100, START_MS * 2) {
        written += batch.series.iter().map(|series| series.samples.len() as u64).sum::<u64>();
        bench.engine.advance(0, None, &batch.positions, START_MS);
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
    let batch = bench.engine.next_batch(0, None, 10_000, START_MS * 2).expect("scores");
    let mut published: Vec<(Labels, Vec<Sample>)> =
        batch.series.into_iter().map(|series| (series.labels, series.samples)).collect();
    published.sort_by(|a, b| a.0.cmp(&b.0));
    let select = |selector: &str| {
        let selector = crate::prom::Selector::parse(selector).expect("a selector");
        let query = Query { start_ms: 0, end_ms: i64::MAX, selector: selector.without_regexes() };
        let groups: Vec<u32> = bench.engine.list_groups().into_iter().map(|(id, ..)| id).collect();
        let select = |group: &Group, matches: &mut Vec<GroupMatches>| group.select(&query, matches);
        let selected = bench.engine.select(&groups, 0, select);
        assert_eq!(selected.next, None);
        let mut series_read: Vec<(Labels, Vec<Sample>)> = Vec::new();
        for series in selected
            .matches
            .into_iter()
            .filter_map(|matches| matches.filter(&selector))
            .flat_map(GroupMatches::into_series)
        {
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

/// The copies of a selection are counted, so that concurrent readers of many series cannot take all memory.
#[tokio::test]
async fn the_memory_of_a_selection_belongs_to_its_request() {
    const LIMIT: usize = 128 << 20;
    let mut bench = Bench::new("detectors: [{name: net, match: [rx], by: [instance], transform: value}]");
    let feature = |i: usize| {
        let device = format!("eth{i}");
        let labels = [(METRIC_NAME, "rx"), ("device", device.as_str()), ("instance", "a")];
        series(&labels, &[(START_MS, i as f64)])
    };
    bench.send((0..100).map(feature).collect());
    let (engine, commands) = channel();
    let view = TenantView { engine, tenant: None };
    let engine = std::thread::spawn(move || bench.engine.run(commands));
    let permits = WorkPermits::new(prometheus_client::metrics::gauge::Gauge::default());
    let query = || Query {
        start_ms: 0,
        end_ms: i64::MAX,
        selector: crate::prom::Selector::parse(r#"{device=~"eth.*"}"#).expect("a selector"),
    };
    let other = permits.acquire().await.expect("a free turn");
    other.reserve(LIMIT - 4096).expect("there is room");
    let permit = permits.acquire().await.expect("a free turn");
    let selected = view.select(query(), &permit).await;
    assert!(matches!(selected, Err(server::Error::OutOfMemory)));
    drop(other);
    assert_eq!(view.select(query(), &permit).await.expect("there is room").len(), 100);
    drop(view);
    engine.join().expect("no panic");
}

/// Rows that waited for an endpoint are written with their own time, and counted if that is long ago.
#[test]
fn f9_rows_that_are_written_late_are_counted() {
    let mut bench = running(&sequential_model(), 300);
    let batch = bench.engine.next_batch(0, None, 100_000, START_MS * 2).expect("all of them");
    let rows = batch.series[0].samples.len() as i64;
    assert_eq!(batch.series[0].samples[0].timestamp_ms, time(300 - rows));
    // 50 minutes are 200 rows, five minutes are 20: those between were written late.
    bench.engine.advance(0, None, &batch.positions, time(300 + 180));
    let late = bench.metric(r#"backfilled_rows_total{detector="node_network"}"#) as i64;
    assert_eq!(late, 299 - (300 + 180 - 200));
    push(&mut bench, 300..301);
    let batch = bench.engine.next_batch(0, None, 100_000, START_MS * 2).expect("the next");
    bench.engine.advance(0, None, &batch.positions, time(301));
    assert_eq!(bench.metric(r#"backfilled_rows_total{detector="node_network"}"#) as i64, late, "in time");
}
