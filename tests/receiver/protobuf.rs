//! Messages of version 1.0 that are cut, broken, or larger than their parts.

use crate::encode::{field, key, raw_series, sample, series, varint, watched};
use crate::support::now_ms;
use crate::{
    MIB, Receiver, ValidSeries, assert_malformed, assert_partly_rejected, assert_rejected, write_accepted,
};
use promforest::prom::wire::snappy;

#[test]
fn b18_messages_that_are_cut() {
    let receiver = Receiver::start();
    let good = ValidSeries::new(1);
    let message = good.series();
    for end in 1..message.len() {
        let answer = receiver.write(&message[..end]);
        let text = "the body is not a write request: the message ends inside a field";
        assert_eq!((answer.status, answer.only_line()), (400, text), "cut at {end}");
    }
    assert_eq!(receiver.counts().received(), 0.0);
    assert!(!good.is_duplicate(&receiver));
}

#[test]
fn b19_b20_b21_broken_messages() {
    let receiver = Receiver::start();
    let long = |length: u64| [key(1, 2), varint(length), vec![0; 8]].concat();
    let inside = "the message ends inside a field";
    let timestamp = || [key(2, 0), varint(now_ms() as u64)].concat();
    let in_series = |bytes: Vec<u8>| raw_series(&[watched("bad"), bytes]);
    let in_sample = |bytes: Vec<u8>| in_series(field(2, &bytes));
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("B19: a length of 2^32 - 1", long(u64::from(u32::MAX)), inside),
        ("B19: a length of 2^63", long(1 << 63), inside),
        ("B19: a length of 2^64 - 1", long(u64::MAX), inside),
        ("B19: inside a series", raw_series(&[long(1 << 63)]), inside),
        (
            "B20: a varint of 11 bytes",
            in_sample([key(2, 0), vec![0xff; 10], vec![0x01]].concat()),
            "a varint does not fit 64 bits",
        ),
        (
            "B20: a varint of 70 bits",
            in_sample([key(2, 0), vec![0xff; 9], vec![0x7f]].concat()),
            "a varint does not fit 64 bits",
        ),
        ("B20: field 0", field(0, b""), "0x2 is not a field key"),
        ("B20: a group begins", key(99, 3), "0x31b is not a field key"),
        ("B20: a group ends", key(99, 4), "0x31c is not a field key"),
        ("B20: wire type 6", key(99, 6), "0x31e is not a field key"),
        ("B20: wire type 7", key(99, 7), "0x31f is not a field key"),
        (
            "B21: the series as a number",
            [key(1, 0), vec![1]].concat(),
            "field 1 of WriteRequest has wire type 0",
        ),
        (
            "B21: metadata as a number",
            [key(3, 5), vec![0; 4]].concat(),
            "field 3 of WriteRequest has wire type 5",
        ),
        (
            "B21: samples as a number",
            in_series([key(2, 1), vec![0; 8]].concat()),
            "field 2 of TimeSeries has wire type 1",
        ),
        (
            "B21: labels as a number",
            in_series([key(1, 0), vec![1]].concat()),
            "field 1 of TimeSeries has wire type 0",
        ),
        (
            "B21: the value as an integer",
            in_sample([vec![0x08, 1], timestamp()].concat()),
            "field 1 of Sample has wire type 0",
        ),
        (
            "B21: the timestamp as bytes",
            in_sample(field(2, b"12345678")),
            "field 2 of Sample has wire type 2",
        ),
    ];
    for (i, (what, message, text)) in cases.iter().enumerate() {
        assert_malformed(&receiver, i + 1, what, message, text);
    }
    // The labels are looked into series by series.
    let bad = raw_series(&[field(1, &[0x08, 1]), sample(1.0, now_ms())]);
    assert_partly_rejected(
        &receiver,
        100,
        "B21: a label name as a number",
        &bad,
        "invalid_labels",
        1,
        "a label is not a protobuf message: field 1 of Label has wire type 0",
    );
}

#[test]
fn b22_unknown_fields_are_skipped() {
    let receiver = Receiver::start();
    let unknown = [
        [key(99, 0), vec![0xff, 0xff, 0x01]].concat(),
        [key(98, 1), vec![7; 8]].concat(),
        field(97, b"anything"),
        [key((1 << 29) - 1, 5), vec![7; 4]].concat(),
    ]
    .concat();
    let now = now_ms();
    let with_unknown = |fields: Vec<u8>| [&unknown[..], &fields, &unknown].concat();
    let value = [key(1, 1), 1.0_f64.to_bits().to_le_bytes().to_vec()].concat();
    let inner = with_unknown([value, key(2, 0), varint(now as u64)].concat());
    let message = with_unknown(raw_series(&[with_unknown(
        [with_unknown(watched("known")), field(2, &inner)].concat(),
    )]));
    assert_eq!(write_accepted(&receiver, "B22", &message), (1.0, 0.0, 0.0));
    let without_unknown = series("known", &[(now, 1.0)]);
    assert_eq!(write_accepted(&receiver, "the same without", &without_unknown), (0.0, 1.0, 0.0));
}

#[test]
fn b24_bombs_of_many_empty_messages() {
    let receiver = Receiver::start();
    assert!(!ValidSeries::new(1).is_duplicate(&receiver));
    let before = receiver.process.peak_bytes();
    let many = |tag: u8| [tag, 0].repeat(16_000_000);

    assert_malformed_bomb(&receiver, "series", &many(0x0a), "the request has more than 100000 series");
    let samples = field(1, &[watched("bomb"), many(0x12)].concat());
    assert_malformed_bomb(&receiver, "samples", &samples, "the request has more than 1000000 samples");
    let labels = field(1, &[many(0x0a), sample(1.0, now_ms())].concat());
    assert_partly_rejected(
        &receiver,
        10,
        "B24: labels",
        &labels,
        "invalid_labels",
        1,
        "the series has 16000000 labels, above the limit of 64",
    );

    // The message itself is 32 MiB, and so is a copy of its labels.
    let grown = receiver.process.peak_bytes() - before;
    assert!(grown < 128 * MIB, "{} MiB", grown / MIB);
}

#[track_caller]
fn assert_malformed_bomb(receiver: &Receiver, what: &str, message: &[u8], text: &str) {
    let text = format!("the body is not a write request: {text}");
    assert_rejected(receiver, what, &[], &snappy::compress(message), 400, &text);
}
