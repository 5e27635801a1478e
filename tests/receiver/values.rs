//! Values, timestamps, repetition and order of samples, and samples that are not stored.

use crate::encode::{field, key, labels, raw_series, sample, series, varint, watched};
use crate::support::http::Response;
use crate::support::now_ms;
use crate::{
    Receiver, ValidSeries, assert_partly_rejected, partial_rejection_text, post_head, write_accepted,
};
use promforest::prom::wire::snappy;
use std::io::Write;

#[test]
fn b32_b34_values_keep_their_bits() {
    let receiver = Receiver::start();
    let start = now_ms();
    // Every value is stored, known when it comes again, and differs in its bits from the next.
    let bits = [
        f64::NAN.to_bits(),
        0x7ff8_0000_0000_0001,
        0x7ff0_0000_0000_0002,
        0x7ff0_0000_0000_0001,
        0xfff8_0000_0000_beef,
        f64::INFINITY.to_bits(),
        f64::NEG_INFINITY.to_bits(),
        0.0_f64.to_bits(),
        (-0.0_f64).to_bits(),
        1,
        f64::MAX.to_bits(),
        1.5_f64.to_bits(),
    ];
    for (i, bits_here) in bits.iter().enumerate() {
        let message = |bits: u64| series("v", &[(start - 1000 * i as i64, f64::from_bits(bits))]);
        let other = bits[(i + 1) % bits.len()];
        assert_eq!(write_accepted(&receiver, "new", &message(*bits_here)), (1.0, 0.0, 0.0), "{bits_here:#x}");
        assert_eq!(
            write_accepted(&receiver, "again", &message(*bits_here)),
            (0.0, 1.0, 0.0),
            "{bits_here:#x}"
        );
        assert_eq!(
            write_accepted(&receiver, "other", &message(other)),
            (0.0, 0.0, 1.0),
            "{bits_here:#x} {other:#x}"
        );
    }
    // A sample that is all default on the wire has value 0, at the beginning of 1970.
    let empty = raw_series(&[watched("v"), field(2, b"")]);
    let text = r#"v{instance="a", job="node"} has timestamp 0, before the year 2000: timestamps are in milliseconds"#;
    assert_partly_rejected(&receiver, 3000, "an empty sample", &empty, "invalid_timestamp", 1, text);
}

#[test]
fn b33_staleness_markers() {
    let receiver = Receiver::start();
    let stale = f64::from_bits(0x7ff0_0000_0000_0002);
    let now = now_ms();
    let unknown = series("s", &[(now - 30_000, stale)]);
    assert_eq!(write_accepted(&receiver, "of an unknown series", &unknown), (1.0, 0.0, 0.0));
    let second = series("s", &[(now - 15_000, stale)]);
    assert_eq!(write_accepted(&receiver, "two in a row", &second), (1.0, 0.0, 0.0));
    let value = series("s", &[(now - 15_000, 1.0)]);
    assert_eq!(write_accepted(&receiver, "a value at the time of a marker", &value), (0.0, 0.0, 1.0));
    assert_eq!(write_accepted(&receiver, "the marker stays", &second), (0.0, 1.0, 0.0));
    assert_eq!(write_accepted(&receiver, "and a value later", &series("s", &[(now, 1.0)])), (1.0, 0.0, 0.0));
}

#[test]
fn b35_b36_impossible_timestamps_are_rejected() {
    let receiver = Receiver::start();
    let early = |timestamp: i64| {
        format!(
            r#"t{{instance="a", job="node"}} has timestamp {timestamp}, before the year 2000: timestamps are in milliseconds"#
        )
    };
    for (i, timestamp) in [0, -1, i64::MIN, now_ms() / 1000, 946_684_799_999].into_iter().enumerate() {
        let bad = series("t", &[(timestamp, 1.0)]);
        assert_partly_rejected(
            &receiver,
            i + 1,
            "B35: early",
            &bad,
            "invalid_timestamp",
            1,
            &early(timestamp),
        );
    }
    for (what, timestamp) in
        [("B36: 11 minutes", now_ms() + 660_000), ("B35: microseconds", 1000 * now_ms()), ("B35", i64::MAX)]
    {
        let before = receiver.counts();
        let answer =
            receiver.write(&[series("t", &[(timestamp, 1.0)]), ValidSeries::new(50).series()].concat());
        assert_eq!(answer.status, 400, "{what}");
        let text = answer.only_line();
        let start = format!(
            r#"the valid part was accepted, rejected: 1 invalid_timestamp; for example: t{{instance="a", job="node"}} has timestamp {timestamp}, "#
        );
        assert!(text.starts_with(&start), "{what}: {text}");
        assert!(text.ends_with(" s ahead of this clock, above the limit of 600 s"), "{what}: {text}");
        let after = receiver.counts();
        assert_eq!(after.dropped("invalid_timestamp") - before.dropped("invalid_timestamp"), 1.0);
    }
    // One bad sample among good ones of its series costs itself.
    let now = now_ms();
    let mixed = series("t", &[(now - 2000, 1.0), (7, 2.0), (now - 1000, 3.0)]);
    let before = receiver.counts();
    let answer = receiver.write(&mixed);
    assert_eq!(answer.status, 400);
    assert_eq!(answer.only_line(), partial_rejection_text(1, "invalid_timestamp", &early(7)));
    assert_eq!(receiver.counts().stored() - before.stored(), 2.0);

    let ahead = series("t", &[(now_ms() + 540_000, 1.0)]);
    assert_eq!(write_accepted(&receiver, "B36: 9 minutes", &ahead), (1.0, 0.0, 0.0));
    let first = series("t2", &[(946_684_800_000, 1.0)]);
    assert_eq!(receiver.write(&first).status, 204, "the beginning of the year 2000");
}

#[test]
fn b37_b38_repeated_requests() {
    let receiver = Receiver::start();
    let now = now_ms();
    let message: Vec<u8> =
        (0..10).flat_map(|i| series(&format!("r{i}"), &[(now - 1000, 1.0), (now, 2.0)])).collect();
    assert_eq!(write_accepted(&receiver, "first", &message), (20.0, 0.0, 0.0));
    for i in 0..100 {
        assert_eq!(write_accepted(&receiver, "again", &message), (0.0, 20.0, 0.0), "B37: {i}");
    }
    let other = series("r0", &[(now, 3.0)]);
    assert_eq!(write_accepted(&receiver, "B38: another value", &other), (0.0, 0.0, 1.0));
    assert_eq!(write_accepted(&receiver, "the first stays", &message), (0.0, 20.0, 0.0));
    assert_eq!(write_accepted(&receiver, "the other did not", &other), (0.0, 0.0, 1.0));
}

#[test]
fn b39_b40_any_order() {
    let receiver = Receiver::start();
    let now = now_ms();
    let at = |minutes: i64| now - minutes * 60_000;
    assert_eq!(write_accepted(&receiver, "newest", &series("o", &[(at(0), 1.0)])).0, 1.0);
    let before = receiver.counts();
    assert_eq!(write_accepted(&receiver, "B39: inside", &series("o", &[(at(30), 2.0)])).0, 1.0);
    assert_eq!(write_accepted(&receiver, "B39: barely inside", &series("o", &[(at(359), 2.0)])).0, 1.0);
    let after = receiver.counts();
    assert_eq!(after.value("samples_late_total") - before.value("samples_late_total"), 2.0);
    let before = receiver.counts();
    assert_eq!(
        write_accepted(&receiver, "B39: older than the window", &series("o", &[(at(361), 3.0)])).0,
        0.0
    );
    assert_eq!(receiver.counts().dropped("too_old") - before.dropped("too_old"), 1.0);

    let samples = [(at(3), 3.0), (at(1), 1.0), (at(5), 5.0), (at(2), 2.0)];
    assert_eq!(write_accepted(&receiver, "B40: unsorted", &series("u", &samples)).0, 4.0);
    let mut sorted = samples;
    sorted.sort_by_key(|(timestamp_ms, _)| *timestamp_ms);
    assert_eq!(write_accepted(&receiver, "the same sorted", &series("u", &sorted)), (0.0, 4.0, 0.0));
    let twice = [series("w", &samples[..2]), series("w", &samples[1..])].concat();
    assert_eq!(write_accepted(&receiver, "B40: in two entries", &twice), (4.0, 1.0, 0.0));
}

#[test]
fn b52_a_late_request_is_stored_in_order() {
    let receiver = Receiver::start();
    let now = now_ms();
    let late = snappy::compress(&series("x", &[(now - 1000, 1.0)]));
    let mut stream = receiver.connect();
    let head = post_head(&[("Expect", "100-continue")], late.len());
    stream.write_all(format!("{head}\r\nHost: a\r\n\r\n").as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 100);
    assert_eq!(write_accepted(&receiver, "the later one first", &series("x", &[(now, 2.0)])).0, 1.0);
    stream.write_all(&late).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 204);
    let counts = receiver.counts();
    assert_eq!((counts.stored(), counts.value("samples_late_total")), (2.0, 1.0));
}

#[test]
fn b51_f33_f34_own_outputs_are_ignored() {
    let receiver = Receiver::start();
    let now = now_ms();
    let own_output: Vec<Vec<u8>> = [
        &[("__name__", "net_anomaly"), ("instance", "a"), ("job", "node")][..],
        &[("__name__", "anomaly_score"), ("detector", "net"), ("instance", "a"), ("job", "node")],
        &[("__name__", "anomaly_incident"), ("detector", "net"), ("job", "node")],
        &[("__name__", "promforest_ingest_samples_total"), ("job", "node")],
    ]
    .iter()
    .map(|pairs| raw_series(&[labels(pairs), sample(1.0, now)]))
    .collect();
    assert_eq!(write_accepted(&receiver, "B51", &own_output.concat()), (0.0, 0.0, 0.0));
    let counts = receiver.counts();
    assert_eq!((counts.received(), counts.dropped("own_output")), (4.0, 4.0));
    // Another detector's are no outputs of this process.
    let other = labels(&[("__name__", "anomaly_score"), ("detector", "other"), ("job", "node")]);
    assert_eq!(write_accepted(&receiver, "a stranger's", &raw_series(&[other, sample(1.0, now)])).0, 1.0);
    assert_eq!(receiver.counts().dropped("own_output"), 4.0);
}

#[test]
fn b49_unwatched_series_exemplars_and_metadata_are_counted() {
    let receiver = Receiver::start();
    let now = now_ms();
    let unwatched = raw_series(&[labels(&[("__name__", "up"), ("job", "other")]), sample(1.0, now)]);
    let message =
        [unwatched, raw_series(&[watched("h"), field(3, b""), field(3, b"")]), field(3, b"")].concat();
    assert_eq!(write_accepted(&receiver, "B49: metadata, too", &message), (0.0, 0.0, 0.0));
    let counts = receiver.counts();
    assert_eq!(counts.dropped("unwatched"), 1.0);
    for (kind, count) in [("exemplar", 2.0), ("metadata", 1.0)] {
        assert_eq!(counts.ignored(kind), count, "{kind}");
    }
    // Types that contradict each other, and one that does not exist.
    let family = |kind: u64| field(3, &[key(1, 0), varint(kind), field(2, b"family")].concat());
    assert_eq!(
        write_accepted(&receiver, "B49: metadata alone", &[family(1), family(2), family(99)].concat()).0,
        0.0
    );
    assert_eq!(receiver.counts().ignored("metadata"), 4.0);
}
