//! Native histograms and exemplars, in both versions.

use crate::encode::{field, key, raw_series, sample, series, varint, watched};
use crate::support::now_ms;
use crate::v2::{SymbolTable, assert_written_counts, write_v2_checked};
use crate::{Receiver, partial_rejection_text, write_accepted};
use promforest::prom::proto;
use promforest::prom::proto::histogram::Count;
use promforest::prom::proto::{BucketSpan, Histogram, v2};
use prost::Message;

fn histogram(timestamp: i64) -> Histogram {
    Histogram {
        count: Some(Count::CountInt(6)),
        sum: 12.5,
        schema: 3,
        positive_spans: vec![BucketSpan { offset: -3, length: 3 }],
        positive_deltas: vec![3, -2, 1],
        timestamp,
        ..Default::default()
    }
}

fn float_histogram(timestamp: i64) -> Histogram {
    Histogram {
        count: Some(Count::CountFloat(6.5)),
        positive_deltas: vec![],
        positive_counts: vec![3.0, 1.0, 2.5],
        ..histogram(timestamp)
    }
}

/// A series of histograms in both versions.
fn histograms(name: &str, histograms: &[Histogram], samples: &[(i64, f64)]) -> (Vec<u8>, Vec<u8>) {
    let pairs = [("__name__", name), ("instance", "a"), ("job", "node")];
    let label = |(name, value): &(&str, &str)| proto::Label { name: (*name).into(), value: (*value).into() };
    let v1 = proto::TimeSeries {
        labels: pairs.iter().map(label).collect(),
        samples: samples
            .iter()
            .map(|(timestamp, value)| proto::Sample { value: *value, timestamp: *timestamp })
            .collect(),
        histograms: histograms.to_vec(),
        ..Default::default()
    };
    let mut symbols = SymbolTable::new();
    let v2 = v2::TimeSeries { histograms: histograms.to_vec(), ..symbols.watched(name, samples) };
    (field(1, &v1.encode_to_vec()), symbols.request(vec![v2]))
}

#[test]
fn b45_b47_native_histograms_are_two_series() {
    let receiver = Receiver::start();
    let now = now_ms();
    let (v1, v2) = histograms("h", &[histogram(now), float_histogram(now - 1000)], &[]);
    assert_eq!(write_v2_checked(&receiver, "new", &v2, 204, [0, 2, 0]), (4.0, 0.0));
    assert_eq!(write_accepted(&receiver, "the same in 1.0", &v1), (0.0, 4.0, 0.0));
    // They are what a classic histogram has.
    let classic =
        [series("h_count", &[(now, 6.0), (now - 1000, 6.5)]), series("h_sum", &[(now, 12.5)])].concat();
    assert_eq!(write_accepted(&receiver, "the same as floats", &classic), (0.0, 3.0, 0.0));
    assert_eq!(
        write_accepted(&receiver, "others", &series("h", &[(now, 6.0)])).0,
        1.0,
        "h itself has no value"
    );

    let (v1, v2) = histograms("both", &[histogram(now)], &[(now, 1.0)]);
    assert_eq!(write_v2_checked(&receiver, "B45", &v2, 204, [1, 1, 0]), (3.0, 0.0));
    assert_eq!(write_accepted(&receiver, "B45 in 1.0", &v1), (0.0, 3.0, 0.0));

    let stale =
        Histogram { sum: f64::from_bits(0x7ff0_0000_0000_0002), timestamp: now, ..Default::default() };
    let (v1, v2) = histograms("ended", &[stale], &[]);
    assert_eq!(write_v2_checked(&receiver, "a stale histogram", &v2, 204, [0, 1, 0]), (2.0, 0.0));
    assert_eq!(write_accepted(&receiver, "in 1.0", &v1), (0.0, 2.0, 0.0));
    let marker = f64::from_bits(0x7ff0_0000_0000_0002);
    let ends = [series("ended_count", &[(now, marker)]), series("ended_sum", &[(now, marker)])].concat();
    assert_eq!(write_accepted(&receiver, "both are at their end", &ends), (0.0, 2.0, 0.0));

    let before = receiver.counts().received();
    let count = Some(Count::CountInt(7));
    let custom = Histogram {
        schema: -53,
        zero_count: Some(proto::histogram::ZeroCount::ZeroCountInt(1)),
        ..histogram(now)
    };
    for (bad, text) in [
        (
            Histogram { count, ..histogram(now) },
            "a histogram counts 7 observations, and 6 are in its buckets",
        ),
        (
            Histogram { positive_deltas: vec![3, -2], ..histogram(now) },
            "the positive spans of a histogram have 3 buckets, and there are 2",
        ),
        (Histogram { schema: 99, ..histogram(now) }, "a histogram has the unknown schema 99"),
        (
            Histogram { custom_values: vec![1.0, 2.0], ..custom },
            "a histogram of schema -53 has a bucket of zero",
        ),
    ] {
        let good = histogram(now - 2000);
        let (v1, v2) = histograms("h", &[bad, good], &[]);
        for (version, answer) in [("2.0", receiver.write_v2(&v2)), ("1.0", receiver.write(&v1))] {
            assert_eq!(answer.status, 400, "{version}");
            assert_eq!(answer.only_line(), partial_rejection_text(1, "invalid_histogram", text), "{version}");
        }
        assert_written_counts("B47", &receiver.write_v2(&v2), 400, [0, 1, 0]);
    }
    // Twelve requests with a count and a sum of each of two.
    let counts = receiver.counts();
    assert_eq!(counts.dropped("invalid_histogram"), 12.0 * 2.0);
    assert_eq!(counts.received() - before, 12.0 * 4.0);
    let (_, future) = histograms("h", &[histogram(now + 660_000), histogram(now)], &[]);
    let answer = receiver.write_v2(&future);
    assert_written_counts("from the future", &answer, 400, [0, 1, 0]);
    assert!(
        answer
            .only_line()
            .starts_with("the valid part was accepted, rejected: 1 invalid_timestamp; for example: h_count{")
    );
    let mut symbols = SymbolTable::new();
    let nameless = v2::TimeSeries {
        labels_refs: symbols.labels(&[("job", "node")]),
        histograms: vec![histogram(now)],
        ..Default::default()
    };
    let answer = receiver.write_v2(&symbols.request(vec![nameless]));
    assert_written_counts("no name", &answer, 400, [0, 0, 0]);
    assert!(answer.only_line().contains(" 1 invalid_labels;"), "{answer:?}");
    assert_eq!(
        receiver.counts().value("histograms_total"),
        2.0 + 2.0 + 1.0 + 1.0 + 1.0 + 1.0 + 4.0 * 6.0 + 2.0 + 1.0
    );
}

#[test]
fn b48_exemplars_are_counted() {
    let receiver = Receiver::start();
    let now = now_ms();
    let write = |what: &str, exemplar: v2::Exemplar, status: u16, exemplars: usize| {
        let mut symbols = SymbolTable::new();
        let series = symbols.watched("x", &[(now, 1.0)]);
        let valid =
            v2::Exemplar { labels_refs: symbols.labels(&[("trace_id", "1")]), value: 1.0, timestamp: now };
        let series = v2::TimeSeries { exemplars: vec![exemplar, valid], ..series };
        let answer = receiver.write_v2(&symbols.request(vec![series]));
        assert_written_counts(what, &answer, status, [1, 0, exemplars]);
        answer.body
    };
    let plain = v2::Exemplar { labels_refs: vec![], value: f64::NAN, timestamp: 0 };
    write("no labels, NaN, no timestamp", plain.clone(), 204, 2);
    let text = write("the future", v2::Exemplar { timestamp: now + 700_000, ..plain.clone() }, 400, 1);
    assert!(text.contains("rejected: 1 invalid_exemplar; for example: an exemplar has timestamp"), "{text}");
    let text = write("symbol 99", v2::Exemplar { labels_refs: vec![1, 99], ..plain.clone() }, 400, 1);
    assert!(text.contains("1 invalid_exemplar; for example: an exemplar refers to symbol 99 of"), "{text}");
    write("odd", v2::Exemplar { labels_refs: vec![1], ..plain }, 400, 1);
    assert_eq!(receiver.counts().ignored("exemplar"), 8.0);

    // Prometheus sends them as series of their own.
    let mut symbols = SymbolTable::new();
    let alone =
        v2::TimeSeries { exemplars: vec![v2::Exemplar::default()], ..symbols.watched("nothing_else", &[]) };
    assert_written_counts("B44: alone", &receiver.write_v2(&symbols.request(vec![alone])), 204, [0, 0, 1]);

    // In 1.0 they stand in the series too.
    let v1 = |timestamp: i64| {
        let exemplar = field(3, &[key(3, 0), varint(timestamp as u64)].concat());
        raw_series(&[watched("x"), sample(1.0, now), exemplar])
    };
    assert_eq!(write_accepted(&receiver, "1.0", &v1(now)), (0.0, 1.0, 0.0));
    assert_eq!(receiver.write(&v1(now + 700_000)).status, 400);
}
