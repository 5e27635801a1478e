//! Version 2.0 of remote write: its symbol table, its response headers, its equality with version 1.0.

use crate::encode::{field, key, sample, series, varint};
use crate::support::http::Response;
use crate::support::now_ms;
use crate::{MIB, Receiver, V2, partial_rejection_text, write_accepted};
use promforest::prom::proto::v2;
use promforest::prom::wire::snappy;
use prost::Message;

/// Symbols that a request refers to, numbered in the order in which they are first named.
pub struct SymbolTable(Vec<String>);

impl SymbolTable {
    pub fn new() -> Self {
        Self(vec![String::new()])
    }

    pub fn intern(&mut self, text: &str) -> u32 {
        let position = self.0.iter().position(|symbol| symbol == text);
        position.unwrap_or_else(|| {
            self.0.push(text.into());
            self.0.len() - 1
        }) as u32
    }

    pub fn labels(&mut self, pairs: &[(&str, &str)]) -> Vec<u32> {
        pairs.iter().flat_map(|(name, value)| [self.intern(name), self.intern(value)]).collect()
    }

    /// A series that the detector watches.
    pub fn watched(&mut self, name: &str, samples: &[(i64, f64)]) -> v2::TimeSeries {
        let labels_refs = self.labels(&[("__name__", name), ("instance", "a"), ("job", "node")]);
        v2::TimeSeries { labels_refs, samples: v2_samples(samples), ..Default::default() }
    }

    pub fn request(self, timeseries: Vec<v2::TimeSeries>) -> Vec<u8> {
        v2::Request { symbols: self.0, timeseries }.encode_to_vec()
    }
}

pub fn v2_samples(samples: &[(i64, f64)]) -> Vec<v2::Sample> {
    let sample = |(timestamp, value): &(i64, f64)| v2::Sample {
        value: *value,
        timestamp: *timestamp,
        start_timestamp: 0,
    };
    samples.iter().map(sample).collect()
}

/// Checks what a sender of 2.0 is told: samples, histograms, exemplars.
#[track_caller]
pub fn assert_written_counts(what: &str, answer: &Response, status: u16, written: [usize; 3]) {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    for (name, count) in ["samples", "histograms", "exemplars"].iter().zip(written) {
        let header = format!("x-prometheus-remote-write-{name}-written");
        assert_eq!(answer.headers.get(&header), Some(&count.to_string()), "{what}: {answer:?}");
    }
}

/// Writes a request of 2.0, checks what the sender is told, and returns by how much the counters went up:
/// used, duplicate.
#[track_caller]
pub fn write_v2_checked(
    receiver: &Receiver,
    what: &str,
    message: &[u8],
    status: u16,
    written: [usize; 3],
) -> (f64, f64) {
    let before = receiver.counts();
    let answer = receiver.write_v2(message);
    assert_written_counts(what, &answer, status, written);
    let after = receiver.counts();
    (after.stored() - before.stored(), after.dropped("duplicate") - before.dropped("duplicate"))
}

#[test]
fn b5_b7_f37_both_versions_mean_the_same_series() {
    let receiver = Receiver::start();
    let now = now_ms();
    assert_eq!(write_accepted(&receiver, "1.0", &series("x", &[(now, 1.0)])).0, 1.0);
    let message = |samples: &[(i64, f64)]| {
        let mut symbols = SymbolTable::new();
        let series = symbols.watched("x", samples);
        symbols.request(vec![series])
    };
    assert_eq!(write_v2_checked(&receiver, "2.0", &message(&[(now, 1.0)]), 204, [1, 0, 0]), (0.0, 1.0));
    let newer = message(&[(now + 1000, 2.0), (now + 2000, 2.0)]);
    assert_eq!(write_v2_checked(&receiver, "2.0, newer", &newer, 204, [2, 0, 0]), (2.0, 0.0));
    let back = series("x", &[(now + 1000, 2.0), (now + 3000, 3.0)]);
    assert_eq!(write_accepted(&receiver, "1.0 again", &back), (1.0, 1.0, 0.0));
    let body = snappy::compress(&newer);
    for headers in [
        &[("Content-Type", "application/x-protobuf; proto=io.prometheus.write.v2.Request")][..],
        &[("Content-Type", "APPLICATION/X-PROTOBUF ; PROTO=\"io.prometheus.write.v2.Request\"")],
        &[("Content-Type", V2), ("X-Prometheus-Remote-Write-Version", "0.1.0")],
        &[("Content-Type", V2), ("X-Prometheus-Remote-Write-Version", "9.9.9")],
    ] {
        assert_written_counts("B5, B7", &receiver.post(headers, &body), 204, [2, 0, 0]);
    }
    let counts = receiver.counts();
    assert_eq!(counts.responses_for(204, "", "1.0"), 2.0);
    assert_eq!(counts.responses_for(204, "", "2.0"), 6.0);
    assert_eq!(counts.stored(), 4.0, "of ten that were sent");
}

#[test]
fn b9_b23_empty_requests_and_the_other_version() {
    let receiver = Receiver::start();
    assert_eq!(write_v2_checked(&receiver, "B9", &[], 204, [0, 0, 0]).0, 0.0);
    let now = now_ms();
    assert_eq!(
        write_v2_checked(&receiver, "B23: 1.0 as 2.0", &series("x", &[(now, 1.0)]), 204, [0, 0, 0]).0,
        0.0
    );
    let mut symbols = SymbolTable::new();
    let series = symbols.watched("x", &[(now, 1.0)]);
    assert_eq!(write_accepted(&receiver, "B23: 2.0 as 1.0", &symbols.request(vec![series])).0, 0.0);
    assert_eq!(receiver.counts().ignored("other_version"), 2.0);
    let log = receiver.process.log();
    let warned = log.lines().filter(|line| line.contains("have different versions")).count();
    assert_eq!(warned, 1, "once in a minute: {log}");
}

#[test]
fn b8_b10_b18_b20_b24_b43_malformed_requests_of_2_0() {
    let receiver = Receiver::start();
    let before = receiver.process.peak_bytes();
    let assert_rejected_v2 = |what: &str, body: &[u8], text: &str| {
        let answer = receiver.post(&[("Content-Type", V2)], body);
        assert_written_counts(what, &answer, 400, [0, 0, 0]);
        assert_eq!(answer.only_line(), text, "{what}");
    };
    assert_rejected_v2("B8", b"", "the body is not in snappy's block format");
    let assert_malformed_v2 = |what: &str, message: &[u8], text: &str| {
        assert_rejected_v2(
            what,
            &snappy::compress(message),
            &format!("the body is not a write request: {text}"),
        );
    };
    let mut symbols = SymbolTable::new();
    let good = symbols.watched("good", &[(now_ms(), 1.0)]);
    let good = symbols.request(vec![good]);
    assert_malformed_v2("B18", &good[..good.len() - 1], "the message ends inside a field");
    assert_malformed_v2("B20", &[&good[..], &[0x2b]].concat(), "0x2b is not a field key");
    let first = "the first symbol is not the empty one";
    assert_malformed_v2(
        "B43: no symbol",
        &v2::Request { symbols: vec![], timeseries: vec![v2::TimeSeries::default()] }.encode_to_vec(),
        first,
    );
    assert_malformed_v2(
        "B43: another first symbol",
        &v2::Request { symbols: vec!["a".into()], timeseries: vec![] }.encode_to_vec(),
        first,
    );
    assert_malformed_v2(
        "B24: symbols",
        &[0x22, 0].repeat(16_000_000),
        "the request has more than 1000000 symbols",
    );
    let series = [&[0x22, 0][..], &[0x2a, 0].repeat(16_000_000)].concat();
    assert_malformed_v2("B24: series", &series, "the request has more than 100000 series");
    let references =
        [field(4, b""), field(5, &[field(1, &vec![0; 30_000_000]), field(2, b"")].concat())].concat();
    let answer = receiver.write_v2(&references);
    assert_written_counts("B24: references", &answer, 400, [0, 0, 0]);
    assert_eq!(receiver.counts().received(), 1.0);
    let grown = receiver.process.peak_bytes() - before;
    assert!(grown < 160 * MIB, "{} MiB", grown / MIB);
    assert_eq!(write_v2_checked(&receiver, "nothing was used", &good, 204, [1, 0, 0]), (1.0, 0.0));
    let counts = receiver.counts();
    for (reason, count) in
        [("snappy", 1.0), ("malformed", 4.0), ("symbols_limit", 1.0), ("series_limit", 1.0)]
    {
        assert_eq!(counts.responses_for(400, reason, "2.0"), count, "{reason}");
    }
}

#[test]
fn b26_b27_b29_b30_b41_b42_b44_invalid_series_of_2_0_are_rejected_alone() {
    let receiver = Receiver::start();
    let now = now_ms();
    let texts = ["", "__name__", "bad", "job", "node", "instance", "a"];
    let refs = |refs: &[u32]| v2::TimeSeries {
        labels_refs: refs.to_vec(),
        samples: v2_samples(&[(now, 1.0), (now - 1, 1.0)]),
        ..Default::default()
    };
    let metadata = |help_ref, unit_ref| v2::TimeSeries {
        metadata: Some(v2::Metadata { r#type: 1, help_ref, unit_ref }),
        ..refs(&[1, 2, 3, 4, 5, 6])
    };
    let exemplar = v2::Exemplar { labels_refs: vec![3, 4], value: 1.0, timestamp: now };
    let without_samples = v2::TimeSeries { samples: vec![], ..refs(&[1, 2, 3, 4]) };
    let (labels, no_samples) = ("invalid_labels", "no_samples");
    let neither = "a series has neither samples nor histograms nor exemplars";
    // The series, what is refused of it, and how many of its samples are written all the same.
    let cases: Vec<(&str, v2::TimeSeries, usize, &str, &str, usize)> = vec![
        ("B26: no metric name", refs(&[3, 4]), 2, labels, r#"series {job="node"} has no metric name"#, 0),
        ("B26: no label", refs(&[]), 2, labels, "series {} has no metric name", 0),
        (
            "B26: an empty name",
            refs(&[1, 0, 3, 4]),
            2,
            labels,
            r#"series {job="node"} has no metric name"#,
            0,
        ),
        ("B27", refs(&[1, 2, 3, 4, 3, 6]), 2, labels, "label name \"job\" is not unique", 0),
        ("B29", refs(&[1, 2, 0, 4]), 2, labels, "a label has an empty name (its value is \"node\")", 0),
        (
            "B41: odd",
            refs(&[1, 2, 3]),
            2,
            labels,
            "the series has 3 label references, which is not an even number",
            0,
        ),
        ("B41: beyond", refs(&[1, 8]), 2, labels, "the series refers to symbol 8 of 8", 0),
        ("B41: u32::MAX", refs(&[1, u32::MAX]), 2, labels, "the series refers to symbol 4294967295 of 8", 0),
        ("B42: help", metadata(8, 0), 1, "invalid_metadata", "metadata refers to symbol 8 of 8", 2),
        (
            "B42: unit",
            metadata(0, u32::MAX),
            1,
            "invalid_metadata",
            "metadata refers to symbol 4294967295 of 8",
            2,
        ),
        ("B44: nothing", without_samples.clone(), 1, no_samples, neither, 0),
        (
            "B44: exemplars alone, and no name",
            v2::TimeSeries { exemplars: vec![exemplar], labels_refs: vec![3, 4], ..without_samples.clone() },
            1,
            labels,
            r#"series {job="node"} has no metric name"#,
            0,
        ),
        (
            "B44: metadata alone",
            v2::TimeSeries { samples: vec![], ..metadata(2, 2) },
            1,
            no_samples,
            neither,
            0,
        ),
    ];
    for (i, (what, bad, n, reason, text, n_written)) in cases.into_iter().enumerate() {
        // The second time it is remembered.
        for again in 0..2 {
            let before = receiver.counts();
            let good = v2::TimeSeries {
                samples: v2_samples(&[(now - 1000 * (2 * i + again + 1) as i64, 1.0)]),
                ..refs(&[1, 7, 3, 4])
            };
            let symbols = texts.iter().copied().chain(["good"]).map(String::from).collect();
            let message = v2::Request { symbols, timeseries: vec![bad.clone(), good] }.encode_to_vec();
            let answer = receiver.write_v2(&message);
            assert_written_counts(what, &answer, 400, [1 + n_written, 0, 0]);
            assert_eq!(answer.only_line(), partial_rejection_text(n, reason, text), "{what}");
            let after = receiver.counts();
            assert_eq!(after.rejected(reason) - before.rejected(reason), n as f64, "{what}");
            let duplicates = after.dropped("duplicate") - before.dropped("duplicate");
            assert_eq!(after.stored() + duplicates - before.stored(), 1.0 + n_written as f64, "{what}");
        }
    }
    // Symbols that are not UTF-8 cost the series that use them.
    let good = raw_v2(&["good".as_bytes(), b"\xff"], &[&[1, 2, 3, 4], &[1, 2, 3, 5]], now);
    let answer = receiver.write_v2(&good);
    assert_written_counts("B30", &answer, 400, [1, 0, 0]);
    assert_eq!(
        answer.only_line(),
        partial_rejection_text(1, labels, "a label name or value is not UTF-8: \"\u{fffd}\"")
    );
}

/// A request whose symbols are the empty one, `__name__`, `x`, `job` and these, with one sample a series.
fn raw_v2(symbols: &[&[u8]], series: &[&[u8]], timestamp_ms: i64) -> Vec<u8> {
    let symbols = [&b""[..], b"__name__", b"x", b"job"].into_iter().chain(symbols.iter().copied());
    let symbols = symbols.flat_map(|symbol| field(4, symbol));
    let series =
        series.iter().flat_map(|refs| field(5, &[field(1, refs), sample(1.0, timestamp_ms)].concat()));
    symbols.chain(series).collect()
}

#[test]
fn b28_b31_b46_equivalent_encodings_of_2_0_are_the_same_series() {
    let receiver = Receiver::start();
    let now = now_ms();
    let plain = raw_v2(&[b"node"], &[&[1, 2, 3, 4]], now);
    assert_eq!(write_v2_checked(&receiver, "new", &plain, 204, [1, 0, 0]), (1.0, 0.0));
    let unpacked: Vec<u8> = [1, 2, 3, 4].into_iter().flat_map(|r| [key(1, 0), varint(r)].concat()).collect();
    let halves = [field(1, &[1, 2]), sample(1.0, now), field(1, &[3, 4])].concat();
    let metadata = [field(1, &[1, 2, 3, 4]), sample(1.0, now), field(5, &[8, 1]), field(5, &[8, 2])].concat();
    let created = [field(1, &[1, 2, 3, 4]), sample(1.0, now), key(6, 0), varint(now as u64 - 5000)].concat();
    for (what, symbols, fields) in [
        ("B28: unsorted", &[&b"node"[..]][..], [field(1, &[3, 4, 1, 2]), sample(1.0, now)].concat()),
        (
            "B29: an empty value",
            &[b"node", b"empty"],
            [field(1, &[1, 2, 3, 4, 5, 0]), sample(1.0, now)].concat(),
        ),
        ("B46: unpacked", &[b"node"], [unpacked, sample(1.0, now)].concat()),
        ("B46: in two halves", &[b"node"], halves),
        ("B46: metadata twice", &[b"node"], metadata),
        ("B46: created timestamp", &[b"node"], created),
    ] {
        let message = [raw_v2(symbols, &[], now), field(5, &fields)].concat();
        assert_eq!(write_v2_checked(&receiver, what, &message, 204, [1, 0, 0]), (0.0, 1.0), "{what}");
    }
    for name in ["with.dots", "with blanks", "new\nline", "\u{1f332}"] {
        let mut symbols = SymbolTable::new();
        let series = symbols.watched(name, &[(now, 1.0)]);
        assert_eq!(
            write_v2_checked(&receiver, "B31", &symbols.request(vec![series]), 204, [1, 0, 0]),
            (1.0, 0.0)
        );
    }
}

#[test]
fn b32_b33_b35_b36_b38_b39_b40_values_and_times_of_2_0() {
    let receiver = Receiver::start();
    let now = now_ms();
    let message = |samples: &[(i64, f64)]| {
        let mut symbols = SymbolTable::new();
        let series = symbols.watched("x", samples);
        symbols.request(vec![series.clone(), series])
    };
    let odd = [f64::NAN, f64::INFINITY, -0.0, 5e-324, f64::from_bits(0x7ff0_0000_0000_0002)];
    let samples: Vec<(i64, f64)> = odd.iter().enumerate().map(|(i, v)| (now - 1000 * i as i64, *v)).collect();
    assert_eq!(write_v2_checked(&receiver, "B32, B33, B40", &message(&samples), 204, [10, 0, 0]), (5.0, 5.0));
    let other = [(now, 1.0), (now - 7 * 3_600_000, 1.0)];
    assert_eq!(
        write_v2_checked(&receiver, "B38, B39: not used, and written", &message(&other), 204, [4, 0, 0]).0,
        0.0
    );
    let bad = [(0, 1.0), (now / 1000, 1.0), (i64::MIN, 1.0), (now + 660_000, 1.0), (now + 540_000, 1.0)];
    let answer = receiver.write_v2(&message(&bad));
    assert_written_counts("B35, B36", &answer, 400, [2, 0, 0]);
    assert!(
        answer
            .only_line()
            .starts_with("the valid part was accepted, rejected: 8 invalid_timestamp; for example: x{")
    );
}
