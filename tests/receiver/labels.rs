//! Label sets: limits, order, duplicates, and characters.

use crate::encode::{label, labels, raw_series, sample, series, watched};
use crate::support::now_ms;
use crate::{MIB, Receiver, ValidSeries, assert_partly_rejected, write_accepted};

#[test]
fn b25_b26_b27_b29_b30_f32_series_with_invalid_labels_are_rejected_alone() {
    let receiver = Receiver::start();
    let now = now_ms();
    let with = |labels: Vec<u8>| raw_series(&[labels, sample(1.0, now), sample(2.0, now - 1)]);
    let named = |more: Vec<u8>| with([label(b"__name__", b"bad"), more].concat());
    let many: Vec<u8> = (0..10_000).flat_map(|i| label(format!("l{i:04}").as_bytes(), b"x")).collect();
    let forty = "x".repeat(40);
    let cases: Vec<(&str, Vec<u8>, String)> = vec![
        ("B25: labels", named(many), "the series has 10001 labels, above the limit of 64".into()),
        (
            "B25: a value of 1 MiB",
            named(label(b"a", &b"x".repeat(MIB))),
            format!("the label value {forty:?}... has 1048576 bytes, above the limit of 16384"),
        ),
        (
            "B25: a name of 64 KiB",
            named(label(&b"x".repeat(64 << 10), b"v")),
            format!("the label name {forty:?}... has 65536 bytes, above the limit of 1024"),
        ),
        (
            "B26: no metric name",
            with(labels(&[("job", "node"), ("instance", "b")])),
            r#"series {instance="b", job="node"} has no metric name"#.into(),
        ),
        ("B26: no label", with(Vec::new()), "series {} has no metric name".into()),
        (
            "B26: an empty metric name",
            with(labels(&[("__name__", ""), ("job", "node")])),
            r#"series {job="node"} has no metric name"#.into(),
        ),
        (
            "B27: a name twice",
            named(labels(&[("job", "node"), ("job", "other")])),
            "label name \"job\" is not unique".into(),
        ),
        (
            "B27: a name twice, with the same value",
            named(labels(&[("job", "node"), ("job", "node")])),
            "label name \"job\" is not unique".into(),
        ),
        (
            "B29: an empty label name",
            named(labels(&[("", "x")])),
            "a label has an empty name (its value is \"x\")".into(),
        ),
        (
            "B30: a name that is not UTF-8",
            named(label(b"a\xff", b"x")),
            "a label name or value is not UTF-8: \"a\u{fffd}\"".into(),
        ),
        (
            "B30: a value that is not UTF-8",
            named(label(b"a", b"\xc3\x28")),
            "a label name or value is not UTF-8: \"\u{fffd}(\"".into(),
        ),
    ];
    for (i, (what, bad, text)) in cases.iter().enumerate() {
        // The second time it is remembered, and refused all the same.
        assert_partly_rejected(&receiver, 2 * i + 1, what, bad, "invalid_labels", 2, text);
        assert_partly_rejected(&receiver, 2 * i + 2, what, bad, "invalid_labels", 2, text);
    }
    // Several at once: all are counted, the first is shown.
    let all: Vec<u8> = cases[3..].iter().flat_map(|(_, bad, _)| bad.clone()).collect();
    assert_partly_rejected(&receiver, 100, "all", &all, "invalid_labels", 2 * (cases.len() - 3), &cases[3].2);
}

#[test]
fn labels_at_their_limits_are_accepted() {
    let receiver = Receiver::start();
    let many: Vec<u8> = (0..61).flat_map(|i| label(format!("l{i:02}").as_bytes(), b"x")).collect();
    let most = raw_series(&[watched("most"), many, sample(1.0, now_ms())]);
    assert_eq!(write_accepted(&receiver, "64 labels", &most).0, 1.0);
    let longest = label(&b"n".repeat(1024), &b"v".repeat(15_000));
    let longest = raw_series(&[watched("longest"), longest, sample(1.0, now_ms())]);
    assert_eq!(write_accepted(&receiver, "longest name, 16 KiB of labels", &longest).0, 1.0);
    // The label is valid; a series of more than 16 KiB of labels is not kept.
    let long = label(b"n", &b"v".repeat(16_384));
    let long = raw_series(&[watched("long"), long, sample(1.0, now_ms())]);
    assert_eq!(write_accepted(&receiver, "more than 16 KiB of labels", &long).0, 0.0);
}

#[test]
fn an_invalid_series_without_samples_is_no_error() {
    let receiver = Receiver::start();
    let empty = raw_series(&[labels(&[("job", "node")])]);
    let message = [empty, ValidSeries::new(1).series()].concat();
    assert_eq!(write_accepted(&receiver, "nothing is lost", &message), (1.0, 0.0, 0.0));
}

#[test]
fn b28_b29_equivalent_encodings_are_the_same_series() {
    let receiver = Receiver::start();
    let sample = sample(1.0, now_ms());
    let sorted = labels(&[("__name__", "x"), ("a", "1"), ("instance", "a"), ("job", "node")]);
    let plain = raw_series(&[sorted, sample.clone()]);
    assert_eq!(write_accepted(&receiver, "new", &plain), (1.0, 0.0, 0.0));
    let unsorted = labels(&[("job", "node"), ("a", "1"), ("__name__", "x"), ("instance", "a")]);
    let empty = labels(&[("__name__", "x"), ("a", "1"), ("b", ""), ("instance", "a"), ("job", "node")]);
    let (first, second) =
        (labels(&[("__name__", "x"), ("a", "1")]), labels(&[("instance", "a"), ("job", "node")]));
    for (what, message) in [
        ("B28: unsorted", raw_series(&[unsorted, sample.clone()])),
        ("B29: an empty value", raw_series(&[empty, sample.clone()])),
        ("the sample between the labels", raw_series(&[first.clone(), sample.clone(), second.clone()])),
        ("the sample first", raw_series(&[sample.clone(), first, second])),
    ] {
        assert_eq!(write_accepted(&receiver, what, &message), (0.0, 1.0, 0.0), "{what}");
    }
}

#[test]
fn b31_any_utf8_is_a_name() {
    let receiver = Receiver::start();
    for name in ["with.dots", "with blanks", "new\nline", "\u{1f332}", "a\"b\\c", "job{x=\"y\"}", "0"] {
        let message = series(name, &[(now_ms(), 1.0)]);
        assert_eq!(write_accepted(&receiver, name, &message), (1.0, 0.0, 0.0), "{name:?}");
        assert_eq!(write_accepted(&receiver, name, &message), (0.0, 1.0, 0.0), "{name:?}");
        let label_name = [watched("x"), label(name.as_bytes(), b"1"), sample(1.0, now_ms())];
        assert_eq!(write_accepted(&receiver, name, &raw_series(&label_name)).0, 1.0, "{name:?}");
    }
    assert_eq!(receiver.get("/metrics").status, 200, "labels of groups are escaped");
}
