//! Records of a log: what is committed, what is written again, and what becomes of groups whose partition goes.

use super::sequential::{self, STEP_MS, sequential_model, snapshot_of, time};
use super::*;
use crate::kafka::Compression;
use crate::kafka::intake::{Position, Record, RecordOutcome};
use crate::pipeline::group::log::MAX_WAIT;

const KAFKA: &str = "kafka: {brokers: [a], topic: t, linger: 1m}\n";
const TWO_ENDPOINTS: &str =
    "remote_write: [{url: 'http://a/api/v1/write'}, {url: 'http://b/api/v1/write'}]\n";

/// The record of a scrape: its offset is its number.
fn push(bench: &mut Bench, scrapes: impl IntoIterator<Item = i64>, committed: i64) -> RecordOutcome {
    let mut last = None;
    for i in scrapes {
        let timeseries = sequential::counters(i).map(|(device, value)| rx(device, &[(time(i), value)]));
        let record = Record {
            partition: 3,
            offset: i,
            produced_ms: time(i),
            format: ProtocolVersion::V1,
            compression: Compression::None,
            value: WriteRequest { timeseries: timeseries.to_vec(), metadata: Vec::new() }.encode_to_vec(),
            is_committed: i < committed,
        };
        last = Some(bench.engine.ingest_record(&record, Instant::now(), START_MS * 2));
    }
    last.expect("a record")
}

/// The offset that may be committed.
fn settled(bench: &mut Bench) -> Option<i64> {
    let progress = bench.engine.record_progress(Instant::now());
    progress.settled.get(&3).map(|position: &Position| position.offset)
}

/// A bench with a model after these scrapes, of which those before `committed` are written.
fn running(config: &str, model: &Arc<Model>, to: i64, committed: i64) -> Bench {
    let mut bench = Bench::new(&format!("{KAFKA}{config}"));
    bench.engine.assign_partition(3, None, Instant::now());
    push(&mut bench, 190..200, committed);
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, model.clone())]));
    push(&mut bench, 200..to, committed);
    // Rows before the model's service are given up.
    bench.tick(Instant::now() + Duration::from_secs(120));
    bench
}

/// The first and the last scrape of the next batch.
fn next_batch(bench: &mut Bench) -> Option<(i64, i64)> {
    let batch = bench.engine.next_batch(0, None, 10_000, START_MS * 2)?;
    let samples = &batch.series.iter().find(|series| series.samples.len() > 1)?.samples;
    let scrape = |sample: &Sample| (sample.timestamp_ms - START_MS) / STEP_MS;
    Some((scrape(samples.first()?), scrape(samples.last()?)))
}

#[test]
fn a_record_is_settled_once_every_endpoint_has_its_rows() {
    let mut bench = running(TWO_ENDPOINTS, &sequential_model(), 260, 0);
    assert_eq!(settled(&mut bench), None);
    bench.engine.advance(0, None, &[sequential::position(259)], time(260));
    assert_eq!(settled(&mut bench), None, "the second endpoint lacks them");
    push(&mut bench, [260], 0);
    bench.engine.advance(1, None, &[sequential::position(259)], time(260));
    assert_eq!(settled(&mut bench), Some(260));
    for endpoint in [0, 1] {
        bench.engine.advance(endpoint, None, &[sequential::position(260)], time(260));
    }
    assert_eq!(settled(&mut bench), Some(261));
}

#[test]
fn a_row_that_waits_for_samples_and_a_group_that_waits_for_a_model_hold_the_commit() {
    let model = sequential_model();
    let mut bench = Bench::new(KAFKA);
    bench.engine.assign_partition(3, None, Instant::now());
    push(&mut bench, 190..200, 0);
    bench.tick(Instant::now() + Duration::from_secs(120));
    assert_eq!(settled(&mut bench), None, "a model may come");
    let later = bench.engine.record_progress(Instant::now() + MAX_WAIT);
    assert_eq!(later.settled.get(&3).map(|position| position.offset), Some(200), "none has come");

    let mut bench = running("", &model, 260, 0);
    bench.engine.advance(0, None, &[sequential::position(259)], time(260));
    assert_eq!(settled(&mut bench), Some(260));
    let half = Record {
        partition: 3,
        offset: 260,
        produced_ms: 0,
        format: ProtocolVersion::V1,
        compression: Compression::Snappy,
        value: compress(vec![rx("eth0", &[(time(260), 1e9)])]),
        is_committed: false,
    };
    assert!(bench.engine.ingest_record(&half, Instant::now(), START_MS * 2).result.is_ok());
    assert_eq!(settled(&mut bench), Some(260), "the other half may come");
    push(&mut bench, [261], 0);
    bench.tick(Instant::now() + Duration::from_secs(120));
    assert_eq!(settled(&mut bench), Some(261), "it is given up");
}

#[test]
fn records_before_the_commit_advance_the_model_and_are_not_written() {
    let model = sequential_model();
    let expected = sequential::outcome(&mut running("", &model, 340, 0));
    for committed in [195, 260, 303, 340] {
        let mut bench = running("", &model, 340, committed);
        match next_batch(&mut bench) {
            Some((first, last)) => assert_eq!((first, last), (committed.max(200), 339), "{committed}"),
            None => assert_eq!(committed, 340),
        }
        assert!(sequential::outcome(&mut bench) == expected, "{committed}: other bits");
    }
}

#[test]
fn a_process_goes_on_from_a_snapshot_with_the_records_after_it() {
    let model = sequential_model();
    let expected = sequential::outcome(&mut running("", &model, 340, 0));
    for (saved, committed) in [(260, 280), (303, 303), (303, 310), (300, 340)] {
        let snapshot = snapshot_of(&mut running("", &model, saved, 0));
        let mut bench = Bench::new(KAFKA);
        bench.engine.restore(vec![snapshot], Instant::now(), |_| {});
        assert_eq!(next_batch(&mut bench), None, "another member may have the partition");
        let held = bench.engine.assign_partition(3, Some(committed), Instant::now());
        assert_eq!(held, Some(saved), "the window has the records before it");
        sequential::finish_training(&mut bench, &model, 0..0, Default::default());
        push(&mut bench, saved..340, committed);
        if let Some((first, _)) = next_batch(&mut bench) {
            assert_eq!(first, committed, "{saved}");
        }
        assert!(sequential::outcome(&mut bench) == expected, "{saved} {committed}: other bits");
    }
}

#[test]
fn a_group_rests_without_its_partition_and_goes_without_an_end() {
    let mut bench = running("", &sequential_model(), 260, 0);
    let now = Instant::now();
    bench.engine.revoke_partition(3, now);
    assert_eq!(next_batch(&mut bench), None, "another member writes");
    assert_eq!(settled(&mut bench), None);
    assert_eq!(bench.engine.assign_partition(3, Some(100), now), Some(260));
    assert_eq!(next_batch(&mut bench).map(|(_, last)| last), Some(259), "it goes on");
    bench.engine.advance(0, None, &[sequential::position(255)], time(260));

    bench.engine.revoke_partition(3, now);
    bench.tick(now + Duration::from_secs(300));
    assert!(bench.groups().is_empty());
    let rest = bench.engine.next_batch(0, None, 100, START_MS * 2);
    assert!(rest.is_none(), "no series ends: {rest:?}");
    assert_eq!(bench.metric(r#"remote_write_samples_failed_total{reason="abandoned"}"#), 0);
    assert_eq!(bench.engine.assign_partition(3, Some(100), now), None, "the windows are gone");
}

#[test]
fn a_reload_keeps_the_records_that_wait() {
    let mut bench = running("", &sequential_model(), 260, 0);
    bench.reload(bench.config(), vec![Arc::default()]);
    assert_eq!(settled(&mut bench), None);
    let id = bench.groups()[0].0;
    let position = CursorPosition { group: id, ..sequential::position(259) };
    bench.engine.advance(0, None, &[position], time(260));
    assert_eq!(settled(&mut bench), Some(260));
}
