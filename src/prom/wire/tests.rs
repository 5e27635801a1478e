use super::histogram::NativeHistogram;
use super::*;
use crate::prom::proto;
use crate::prom::proto::histogram::{Count, ZeroCount};
use proptest::prelude::*;
use prost::Message;

const SEED: u64 = 7;
const LATEST_MS: i64 = i64::MAX;

type Pairs = Vec<(String, String)>;

/// A parsed message that borrows nothing.
#[derive(Debug, Default)]
struct ParsedMessage {
    counts: RequestCounts,
    rejections: Rejections,
    hashes: Vec<u128>,
    items: Vec<ParsedItem>,
}

/// Kind, labels, samples (timestamp and bits) and number of exemplars of an item.
type ParsedItem = (SampleKind, Result<Pairs, String>, Vec<(i64, u64)>, usize);

impl ParsedMessage {
    /// The items of float samples.
    fn floats(&self) -> Vec<(Pairs, Vec<(i64, u64)>)> {
        let floats = self
            .items
            .iter()
            .filter(|(kind, _, samples, _)| *kind == SampleKind::Float && !samples.is_empty());
        floats.map(|(_, labels, samples, _)| (labels.clone().expect("valid"), samples.clone())).collect()
    }

    fn histograms(&self) -> Vec<Vec<(i64, u64)>> {
        let items = self.items.iter().filter(|(kind, ..)| *kind != SampleKind::Float);
        items.map(|(_, _, samples, _)| samples.clone()).collect()
    }
}

fn parse(version: ProtocolVersion, message: &[u8]) -> Result<ParsedMessage, Malformed> {
    let mut scratch = Scratch::default();
    let request = ParsedRequest::parse(version, message, SEED, LATEST_MS, &mut scratch)?;
    let mut items = Vec::new();
    for series in request.series() {
        let pairs = match series.labels {
            LabelFields::V1(fields) => v1::decode_labels(fields),
            LabelFields::V2(fields, symbols) => v2::decode_labels(fields, symbols),
        };
        let owned =
            |pairs: Vec<(&str, &str)>| pairs.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        let samples = series.samples.iter().map(|s| (s.timestamp_ms, s.value.to_bits())).collect();
        items.push((series.kind, pairs.map(owned).map_err(|e| e.to_string()), samples, series.exemplars));
    }
    let hashes = request.hashes().to_vec();
    assert_eq!(hashes.len(), items.len());
    Ok(ParsedMessage { counts: request.counts, rejections: request.rejections, hashes, items })
}

fn labels(version: ProtocolVersion, message: &[u8]) -> Result<Vec<String>, String> {
    let mut scratch = Scratch::default();
    let request =
        ParsedRequest::parse(version, message, SEED, LATEST_MS, &mut scratch).map_err(|e| e.to_string())?;
    request.series().map(|s| s.labels().map(|l| l.to_string()).map_err(|e| e.to_string())).collect()
}

fn hex(text: &str) -> Vec<u8> {
    let text = text.replace(' ', "");
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex")).collect()
}

/// `cpu{job="n"}` 1.5 at 1700000000000 and a staleness marker 15 s later.
const V1_VECTOR: &str = "0a3f0a0f0a085f5f6e616d655f5f12036370750a080a036a6f6212016e121009000000000000f83f1080d095ffbc31121009020000000000f07f1098c596ffbc31";
/// The first sample of the same series in 2.0, with a start timestamp and metadata.
const V2_VECTOR: &str = "220022085f5f6e616d655f5f220363707522036a6f6222016e220968656c70207465787422077365636f6e64732a270a0401020304121709000000000000f83f1080d095ffbc3118f08195ffbc312a06080118052006";
/// The series as older release candidates of 2.0 encode it, with the start timestamp in the series.
const OLD_V2_VECTOR: &str = "220022085f5f6e616d655f5f220363707522036a6f6222016e220968656c70207465787422077365636f6e64732a1f0a0401020304121009000000000000f83f1080d095ffbc3130f08195ffbc31";

#[test]
fn f37_both_versions_yield_the_same_series() {
    let v1 = hex(V1_VECTOR);
    let first = (1_700_000_000_000, 1.5_f64.to_bits());
    let stale = (1_700_000_015_000, crate::prom::STALE_BITS);
    let request = parse(ProtocolVersion::V1, &v1).expect("well formed");
    assert_eq!(request.items[0].2, [first, stale]);
    assert_eq!(labels(ProtocolVersion::V1, &v1).expect("valid"), [r#"cpu{job="n"}"#]);
    for (vector, metadata) in [(V2_VECTOR, 1), (OLD_V2_VECTOR, 0)] {
        let message = hex(vector);
        let request = parse(ProtocolVersion::V2, &message).expect("well formed");
        assert_eq!(request.items[0].2, [first]);
        assert_eq!(
            request.counts,
            RequestCounts { series: 1, samples: 1, metadata, ..RequestCounts::default() }
        );
        assert!(request.rejections.is_empty());
        assert_eq!(labels(ProtocolVersion::V2, &message).expect("valid"), [r#"cpu{job="n"}"#]);
    }
}

#[test]
fn b9_b23_an_empty_message_and_one_of_the_other_version() {
    for version in [ProtocolVersion::V1, ProtocolVersion::V2] {
        assert_eq!(parse(version, &[]).expect("well formed").counts, RequestCounts::default());
    }
    let foreign = RequestCounts { other_version: 1, ..RequestCounts::default() };
    assert_eq!(parse(ProtocolVersion::V2, &hex(V1_VECTOR)).expect("well formed").counts, foreign);
    assert_eq!(parse(ProtocolVersion::V1, &hex(V2_VECTOR)).expect("well formed").counts, foreign);
}

#[test]
fn b18_truncated_messages_are_errors_or_empty() {
    let message = hex(V1_VECTOR);
    for end in 1..message.len() {
        assert!(parse(ProtocolVersion::V1, &message[..end]).is_err(), "truncated at {end}");
    }
    let message = hex(V2_VECTOR);
    for end in 1..message.len() {
        // A message truncated between two fields is valid.
        assert_eq!(
            parse(ProtocolVersion::V2, &message[..end]).map_or(0, |read| read.items.len()),
            0,
            "truncated at {end}"
        );
    }
}

#[test]
fn b19_b20_b21_b24_malformed_requests_are_rejected() {
    for (bytes, expected) in [
        ("0aff ffff ffff ffff ffff 7f", Malformed::Varint),
        ("0aff ffff ff0f", Malformed::Truncated),
        ("0aff ffff ffff ffff ffff 01", Malformed::Truncated),
        ("ffff ffff ffff ffff ffff ff01", Malformed::Varint),
        ("0000", Malformed::Key(0)),
        ("0b", Malformed::Key(0x0b)),
        ("0800", Malformed::WireType { message: "WriteRequest", field: 1, wire_type: 0 }),
        ("0a0210 00", Malformed::WireType { message: "TimeSeries", field: 2, wire_type: 0 }),
        ("0a0412 0208 00", Malformed::WireType { message: "Sample", field: 1, wire_type: 0 }),
        ("0a0422 0218 00", Malformed::WireType { message: "Histogram", field: 3, wire_type: 0 }),
    ] {
        assert_eq!(parse(ProtocolVersion::V1, &hex(bytes)).expect_err(bytes), expected, "{bytes}");
    }
    for (bytes, expected) in [
        ("22ff ffff ff0f", Malformed::Truncated),
        ("2000", Malformed::WireType { message: "Request", field: 4, wire_type: 0 }),
        ("2800", Malformed::WireType { message: "Request", field: 5, wire_type: 0 }),
        ("2200 2a02 1000", Malformed::WireType { message: "TimeSeries", field: 2, wire_type: 0 }),
        ("2200 2a05 0d00 0000 00", Malformed::WireType { message: "TimeSeries", field: 1, wire_type: 5 }),
        ("2200 2a04 2202 1a00", Malformed::WireType { message: "Exemplar", field: 3, wire_type: 2 }),
        ("2200 2a04 2a02 1a00", Malformed::WireType { message: "Metadata", field: 3, wire_type: 2 }),
        ("2200 2a03 0a01 ff", Malformed::Truncated),
    ] {
        assert_eq!(parse(ProtocolVersion::V2, &hex(bytes)).expect_err(bytes), expected, "{bytes}");
    }
    let too_many = |version, message: Vec<u8>, what, limit| {
        assert_eq!(parse(version, &message).expect_err(what), Malformed::TooMany { what, limit });
    };
    too_many(ProtocolVersion::V1, [0x0a, 0].repeat(MAX_SERIES + 1), "series", MAX_SERIES);
    too_many(
        ProtocolVersion::V2,
        [&[0x22, 0][..], &[0x2a, 0].repeat(MAX_SERIES + 1)].concat(),
        "series",
        MAX_SERIES,
    );
    too_many(ProtocolVersion::V2, [0x22, 0].repeat(MAX_SYMBOLS + 1), "symbols", MAX_SYMBOLS);
    // Samples, exemplars and histograms share one limit.
    for (field, n) in [(0x12, MAX_SAMPLES), (0x1a, MAX_SAMPLES), (0x22, MAX_SAMPLES / 2)] {
        let part = [field, 0].repeat(n + 1);
        let mut length = Vec::new();
        prost::encoding::encode_varint(part.len() as u64, &mut length);
        too_many(ProtocolVersion::V1, [&[0x0a][..], &length, &part].concat(), "samples", MAX_SAMPLES);
    }
}

#[test]
fn b43_the_first_symbol_must_be_empty() {
    for message in ["2201 61", "2201 61 2a00", "2a00", "2a00 2201 61"] {
        assert_eq!(
            parse(ProtocolVersion::V2, &hex(message)).expect_err(message),
            Malformed::FirstSymbolNotEmpty,
            "{message}"
        );
    }
    // Symbols may follow the series.
    let late = hex(&["2a11 0a02 0102 120b 09 0000000000000000 1001", "2200 2201 61 2201 62"].concat());
    assert_eq!(
        parse(ProtocolVersion::V2, &late).expect("well formed").floats()[0].0,
        [("a".into(), "b".into())]
    );
}

#[test]
fn b22_unknown_fields_are_skipped() {
    // Field 99 as varint, fixed64, bytes and fixed32, before the vectors.
    let unknown = hex("98060199060000000000000000 9a0601ff9d0600000000");
    for (version, vector) in [(ProtocolVersion::V1, V1_VECTOR), (ProtocolVersion::V2, V2_VECTOR)] {
        let message = [unknown.clone(), hex(vector)].concat();
        let (skipped, plain) = (parse(version, &message), parse(version, &hex(vector)));
        assert_eq!(skipped.expect("well formed").floats(), plain.expect("well formed").floats());
    }
}

#[test]
fn separate_label_fields_are_joined() {
    let message = hex(V1_VECTOR);
    let series = &message[2..];
    let (name, job, samples) = (&series[..17], &series[17..27], &series[27..]);
    let mixed = [job, samples, name].concat();
    let request = [&[0x0a, mixed.len() as u8], &mixed[..]].concat();
    // Two such series: the labels of one are not added to the other.
    let request = [&request[..], &request].concat();
    assert_eq!(labels(ProtocolVersion::V1, &request).expect("valid"), [r#"cpu{job="n"}"#; 2]);
    let parse = parse(ProtocolVersion::V1, &request).expect("well formed");
    assert_eq!(parse.hashes[0], parse.hashes[1]);
    assert_eq!(parse.items[1].2.len(), 2);
}

/// An encoded 2.0 request.
fn v2(symbols: &[&str], timeseries: Vec<proto::v2::TimeSeries>) -> Vec<u8> {
    let symbols = symbols.iter().map(ToString::to_string).collect();
    proto::v2::Request { symbols, timeseries }.encode_to_vec()
}

fn v2_series(labels_refs: &[u32]) -> proto::v2::TimeSeries {
    let samples = vec![proto::v2::Sample { value: 1.0, timestamp: 1, start_timestamp: 0 }];
    proto::v2::TimeSeries { labels_refs: labels_refs.to_vec(), samples, ..Default::default() }
}

#[test]
fn the_hash_of_a_series_does_not_depend_on_symbol_numbers() {
    let hash = |symbols: &[&str], refs: &[u32]| {
        parse(ProtocolVersion::V2, &v2(symbols, vec![v2_series(refs)])).expect("well formed").hashes[0]
    };
    let first = hash(&["", "__name__", "up", "a", "b"], &[1, 2, 3, 4]);
    assert_eq!(first, hash(&["", "b", "a", "up", "__name__"], &[4, 3, 2, 1]));
    assert_eq!(first, hash(&["", "__name__", "up", "up", "a", "b"], &[1, 3, 4, 5]), "the same text twice");
    let mut others = vec![first];
    for refs in [&[1, 2, 4, 3][..], &[1, 2], &[1, 2, 3, 3], &[3, 4, 1, 2], &[1, 2, 3, 4, 0, 0], &[]] {
        let other = hash(&["", "__name__", "up", "a", "b"], refs);
        assert!(!others.contains(&other), "{refs:?}");
        others.push(other);
    }
}

#[test]
fn b25_b26_b27_b29_b30_invalid_series_of_v1_are_named() {
    let label = |name: &[u8], value: &[u8]| {
        let varint = |n: usize| if n < 128 { vec![n as u8] } else { vec![n as u8 | 0x80, (n >> 7) as u8] };
        let inner = [&[0x0a][..], &varint(name.len()), name, &[0x12], &varint(value.len()), value].concat();
        [&[0x0a][..], &varint(inner.len()), &inner].concat()
    };
    let name = label(b"__name__", b"up");
    for (label_bytes, message) in [
        ([name.clone(), label(b"a", b"1"), label(b"a", b"2")].concat(), "label name \"a\" is not unique"),
        ([name.clone(), label(b"", b"1")].concat(), "a label has an empty name (its value is \"1\")"),
        ([name.clone(), label(b"a", b"\xff")].concat(), "a label name or value is not UTF-8: \"\u{fffd}\""),
        (label(b"job", b"n"), "series {job=\"n\"} has no metric name"),
        (label(b"__name__", b""), "series {} has no metric name"),
        (
            label(&[b'x'; 1025], b"1"),
            "the label name \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"... has 1025 bytes, above the limit of 1024",
        ),
    ] {
        let labels = LabelFields::V1(&label_bytes);
        let series = WireSeries { kind: SampleKind::Float, samples: &[], exemplars: 0, labels };
        assert_eq!(series.labels().expect_err(message).to_string(), message);
    }
}

#[test]
fn b26_b27_b29_b41_invalid_series_of_v2_are_named() {
    let symbols = ["", "__name__", "up", "a", "a", "\n"];
    for (refs, message) in [
        (&[1, 2, 3, 2, 4, 2][..], "label name \"a\" is not unique"),
        (&[1, 2, 0, 2], "a label has an empty name (its value is \"up\")"),
        (&[3, 2], "series {a=\"up\"} has no metric name"),
        (&[1, 0], "series {} has no metric name"),
        (&[], "series {} has no metric name"),
    ] {
        assert_eq!(
            labels(ProtocolVersion::V2, &v2(&symbols, vec![v2_series(refs)])).expect_err(message),
            message
        );
    }
    for (refs, message) in [
        (
            &[1, 2, 3][..],
            "1 invalid_labels; for example: the series has 3 label references, which is not an even number",
        ),
        (
            &[1, 2].repeat(65),
            "1 invalid_labels; for example: the series has 65 labels, above the limit of 64",
        ),
        (&[1, 6], "1 invalid_labels; for example: the series refers to symbol 6 of 6"),
        (&[1, u32::MAX], "1 invalid_labels; for example: the series refers to symbol 4294967295 of 6"),
    ] {
        let request = v2(&symbols, vec![v2_series(&[1, 2]), v2_series(refs), v2_series(&[1, 2, 3, 5])]);
        let parse = parse(ProtocolVersion::V2, &request).expect("well formed");
        assert_eq!(parse.rejections.to_string(), message);
        assert_eq!(parse.items.len(), 2, "the valid series are kept");
        assert_eq!(parse.items[1].2.len(), 1);
    }
    assert_eq!(
        labels(ProtocolVersion::V2, &v2(&symbols, vec![v2_series(&[1, 2, 3, 0])])).expect("valid"),
        ["up"],
        "an empty value is no label"
    );
}

#[test]
fn b42_b44_b48_invalid_parts_of_a_v2_series_are_rejected() {
    let exemplar = |refs: &[u32], timestamp| proto::v2::Exemplar {
        labels_refs: refs.to_vec(),
        value: f64::NAN,
        timestamp,
    };
    let metadata = |help_ref, unit_ref| Some(proto::v2::Metadata { r#type: 99, help_ref, unit_ref });
    let mut scratch = Scratch::default();
    let mut parse_series = |series: proto::v2::TimeSeries| {
        let message = v2(&["", "__name__", "up"], vec![series, v2_series(&[1, 2])]);
        let request = ParsedRequest::parse(ProtocolVersion::V2, &message, SEED, 5000, &mut scratch)
            .expect("well formed");
        let exemplars = request.series().map(|series| series.exemplars).sum::<usize>();
        (request.rejections.clone(), request.series().count(), exemplars)
    };
    for (exemplars, metadata, text, n_valid) in [
        (
            vec![exemplar(&[9, 1], 1)],
            None,
            "1 invalid_exemplar; for example: an exemplar refers to symbol 9 of 3",
            0,
        ),
        (
            vec![exemplar(&[1], 1)],
            None,
            "1 invalid_exemplar; for example: an exemplar has 1 label references, which is not an even number",
            0,
        ),
        (
            vec![exemplar(&[], 5001), exemplar(&[], 0)],
            None,
            "1 invalid_exemplar; for example: an exemplar has timestamp 5001, later than 5000",
            1,
        ),
        (vec![], metadata(3, 0), "1 invalid_metadata; for example: metadata refers to symbol 3 of 3", 0),
        (
            vec![],
            metadata(0, u32::MAX),
            "1 invalid_metadata; for example: metadata refers to symbol 4294967295 of 3",
            0,
        ),
    ] {
        let series = proto::v2::TimeSeries { exemplars, metadata, ..v2_series(&[1, 2]) };
        let (rejections, n_items, n_exemplars) = parse_series(series);
        assert_eq!(rejections.to_string(), text);
        assert_eq!((n_items, n_exemplars), (2, n_valid), "its samples are kept: {text}");
    }
    // Prometheus sends exemplars in separate series.
    let exemplars = vec![exemplar(&[1, 2], 1)];
    let (rejections, n_items, n_exemplars) =
        parse_series(proto::v2::TimeSeries { samples: vec![], exemplars, ..v2_series(&[1, 2]) });
    assert_eq!((rejections.is_empty(), n_items, n_exemplars), (true, 2, 1));
    // Neither samples nor histograms nor exemplars.
    for series in [
        proto::v2::TimeSeries { samples: vec![], ..v2_series(&[1, 2]) },
        proto::v2::TimeSeries { samples: vec![], metadata: metadata(2, 2), ..v2_series(&[1, 2]) },
    ] {
        let (rejections, n_items, n_exemplars) = parse_series(series);
        assert_eq!(
            rejections.to_string(),
            "1 no_samples; for example: a series has neither samples nor histograms nor exemplars"
        );
        assert_eq!((n_items, n_exemplars), (1, 0));
    }
}

#[test]
fn b46_unpacked_references_and_repeated_metadata() {
    let packed = hex(V2_VECTOR);
    // 0a04 01020304 becomes four fields, and the metadata is repeated.
    let body = hex(
        "0801 0802 0803 0804 1217 0900 0000 0000 00f8 3f10 80d0 95ff bc31 18f0 8195 ffbc 31 2a06 0801 1805 2006 2a02 1805",
    );
    let start = packed.iter().position(|byte| *byte == 0x2a).expect("the series");
    let unpacked = [&packed[..start], &[0x2a, body.len() as u8], &body].concat();
    let (unpacked, packed) = (parse(ProtocolVersion::V2, &unpacked), parse(ProtocolVersion::V2, &packed));
    let (unpacked, packed) = (unpacked.expect("well formed"), packed.expect("well formed"));
    assert_eq!(unpacked.floats(), packed.floats());
    assert_eq!(unpacked.hashes, packed.hashes);
    assert_eq!((unpacked.counts.metadata, packed.counts.metadata), (2, 1));
    assert!(unpacked.rejections.is_empty());
}

fn histogram() -> proto::Histogram {
    proto::Histogram {
        count: Some(Count::CountInt(9)),
        sum: 12.5,
        schema: 3,
        zero_threshold: 1e-9,
        zero_count: Some(ZeroCount::ZeroCountInt(2)),
        negative_spans: vec![proto::BucketSpan { offset: -2, length: 1 }],
        negative_deltas: vec![1],
        positive_spans: vec![
            proto::BucketSpan { offset: -3, length: 2 },
            proto::BucketSpan { offset: 1, length: 1 },
        ],
        // 3, 1, 2
        positive_deltas: vec![3, -2, 1],
        timestamp: 1000,
        ..Default::default()
    }
}

fn float_histogram() -> proto::Histogram {
    proto::Histogram {
        count: Some(Count::CountFloat(9.5)),
        zero_count: Some(ZeroCount::ZeroCountFloat(2.0)),
        negative_deltas: vec![],
        negative_counts: vec![1.0],
        positive_deltas: vec![],
        positive_counts: vec![3.0, 1.0, 2.5],
        ..histogram()
    }
}

fn custom_histogram() -> proto::Histogram {
    proto::Histogram {
        count: Some(Count::CountInt(6)),
        schema: -53,
        zero_threshold: 0.0,
        zero_count: None,
        negative_spans: vec![],
        negative_deltas: vec![],
        positive_spans: vec![proto::BucketSpan { offset: 0, length: 3 }],
        custom_values: vec![1.0, 2.0],
        ..histogram()
    }
}

fn read_histogram(histogram: &proto::Histogram) -> Result<NativeHistogram, InvalidNativeHistogram> {
    histogram::parse(&histogram.encode_to_vec()).expect("well formed")
}

#[test]
fn b45_histograms_become_their_count_and_their_sum() {
    let histograms = vec![histogram(), proto::Histogram { timestamp: 2000, ..float_histogram() }];
    let series = proto::v2::TimeSeries {
        histograms: histograms.clone(),
        exemplars: vec![proto::v2::Exemplar::default()],
        ..v2_series(&[1, 2])
    };
    let v2 = v2(&["", "__name__", "rpc"], vec![series]);
    let label = proto::Label { name: "__name__".into(), value: "rpc".into() };
    let samples = vec![proto::Sample { value: 1.0, timestamp: 1 }];
    let exemplars = vec![proto::Exemplar::default()];
    let series = proto::TimeSeries { labels: vec![label], samples, exemplars, histograms };
    let v1 = proto::WriteRequest { timeseries: vec![series], metadata: Vec::new() }.encode_to_vec();
    for (version, message) in [(ProtocolVersion::V1, v1), (ProtocolVersion::V2, v2)] {
        let parse = parse(version, &message).expect("well formed");
        assert_eq!(
            parse.counts,
            RequestCounts { series: 1, samples: 1, exemplars: 1, histograms: 2, ..RequestCounts::default() }
        );
        assert_eq!(labels(version, &message).expect("valid"), ["rpc", "rpc_count", "rpc_sum"]);
        let (count, sum) = ([(1000, 9.0_f64.to_bits()), (2000, 9.5_f64.to_bits())], 12.5_f64.to_bits());
        assert_eq!(parse.histograms(), [count.to_vec(), vec![(1000, sum), (2000, sum)]]);
        assert_eq!(parse.items.iter().map(|item| item.3).collect::<Vec<_>>(), [1, 0, 0]);
        let mut hashes = parse.hashes.clone();
        hashes.dedup();
        assert_eq!(hashes.len(), 3);
    }
}

#[test]
fn a_stale_histogram_ends_both_series() {
    for count in [Count::CountInt(0), Count::CountFloat(0.0)] {
        let sum = f64::from_bits(crate::prom::STALE_BITS);
        let stale = proto::Histogram { count: Some(count), sum, timestamp: 5, ..Default::default() };
        let read = read_histogram(&stale).expect("valid");
        assert!(read.count().is_stale() && read.sum().is_stale());
        assert_eq!(read.count().timestamp_ms, 5);
    }
}

#[test]
fn b47_inconsistent_histograms_are_rejected() {
    for valid in [histogram(), float_histogram(), custom_histogram(), proto::Histogram::default()] {
        read_histogram(&valid).expect("valid");
    }
    // A NaN observation is counted and is in no bucket.
    let nan = proto::Histogram { sum: f64::NAN, count: Some(Count::CountInt(10)), ..histogram() };
    read_histogram(&nan).expect("valid");
    let span = |offset, length| proto::BucketSpan { offset, length };
    let (integer, float, custom) = (histogram, float_histogram, custom_histogram);
    for (bad, text) in [
        (
            proto::Histogram { count: Some(Count::CountInt(8)), ..integer() },
            "a histogram counts 8 observations, and 9 are in its buckets",
        ),
        (
            proto::Histogram { count: Some(Count::CountInt(10)), ..integer() },
            "a histogram counts 10 observations, and 9 are in its buckets",
        ),
        (
            proto::Histogram { sum: f64::NAN, count: Some(Count::CountInt(8)), ..integer() },
            "a histogram counts 8 observations, and 9 are in its buckets",
        ),
        (proto::Histogram { schema: 99, ..integer() }, "a histogram has the unknown schema 99"),
        (proto::Histogram { schema: -10, ..integer() }, "a histogram has the unknown schema -10"),
        (
            proto::Histogram { positive_deltas: vec![3, -2], ..integer() },
            "the positive spans of a histogram have 3 buckets, and there are 2",
        ),
        (
            proto::Histogram { negative_spans: vec![], ..integer() },
            "the negative spans of a histogram have 0 buckets, and there are 1",
        ),
        (
            proto::Histogram { positive_spans: vec![span(0, 2), span(-1, 1)], ..integer() },
            "a span of a histogram has offset -1 after another one",
        ),
        (
            proto::Histogram { positive_deltas: vec![3, -4, 1], ..integer() },
            "a positive bucket of a histogram has less than 0 observations",
        ),
        (
            proto::Histogram { negative_deltas: vec![i64::MIN], ..integer() },
            "a negative bucket of a histogram has less than 0 observations",
        ),
        (
            proto::Histogram { positive_counts: vec![3.0, -1.0, 2.0], ..float() },
            "a positive bucket of a histogram has less than 0 observations",
        ),
        (
            proto::Histogram { count: Some(Count::CountFloat(-1.0)), ..float() },
            "a histogram of schema 3 has a count below 0",
        ),
        (
            proto::Histogram { custom_values: vec![1.0], ..integer() },
            "a histogram of schema 3 has custom bounds",
        ),
        (
            proto::Histogram { zero_count: Some(ZeroCount::ZeroCountInt(1)), ..custom() },
            "a histogram of schema -53 has a bucket of zero",
        ),
        (
            proto::Histogram { negative_spans: vec![span(0, 0)], ..custom() },
            "a histogram of schema -53 has negative buckets",
        ),
        (
            proto::Histogram { custom_values: vec![2.0, 2.0], ..custom() },
            "the custom bounds of a histogram do not ascend, or are not finite",
        ),
        (
            proto::Histogram { custom_values: vec![1.0, f64::INFINITY], ..custom() },
            "the custom bounds of a histogram do not ascend, or are not finite",
        ),
        (
            proto::Histogram { custom_values: vec![1.0], ..custom() },
            "a histogram has 3 buckets for 1 custom bounds",
        ),
    ] {
        assert_eq!(read_histogram(&bad).expect_err(text).to_string(), text);
        let series = proto::v2::TimeSeries { histograms: vec![bad, integer()], ..v2_series(&[1, 2]) };
        let parse =
            parse(ProtocolVersion::V2, &v2(&["", "__name__", "h"], vec![series])).expect("well formed");
        assert_eq!(parse.rejections.to_string(), format!("1 invalid_histogram; for example: {text}"));
        assert_eq!(
            parse.histograms().iter().map(Vec::len).collect::<Vec<_>>(),
            [1, 1],
            "the valid one is kept"
        );
    }
}

/// Reference implementation of the validation, on the message of prost.
fn is_valid(h: &proto::Histogram) -> bool {
    let is_float = matches!(h.count, Some(Count::CountFloat(_)));
    let side = |spans: &[proto::BucketSpan], deltas: &[i64], counts: &[f64]| {
        let announced: u64 = spans.iter().map(|span| u64::from(span.length)).sum();
        let buckets = if is_float { counts.len() } else { deltas.len() } as u64;
        let offsets = spans.iter().skip(1).all(|span| span.offset >= 0);
        let mut last = 0_i64;
        let (mut sum, mut ok) = (0_u128, true);
        for delta in deltas {
            match last.checked_add(*delta) {
                Some(next) if next >= 0 => {
                    last = next;
                    sum += next as u128;
                }
                _ => ok = false,
            }
        }
        ok &= counts.iter().all(|count| count.is_nan() || *count >= 0.0);
        (announced == buckets && offsets && ok, sum)
    };
    let (positive, above) = side(&h.positive_spans, &h.positive_deltas, &h.positive_counts);
    let (negative, below) = side(&h.negative_spans, &h.negative_deltas, &h.negative_counts);
    let (zero_int, zero_float) = match h.zero_count {
        Some(ZeroCount::ZeroCountInt(n)) => (n, 0.0),
        Some(ZeroCount::ZeroCountFloat(n)) => (0, n),
        None => (0, 0.0),
    };
    let schema = if h.schema == -53 {
        let bounds = h.custom_values.windows(2).all(|pair| pair[0] < pair[1])
            && h.custom_values.iter().all(|bound| bound.is_finite());
        let reach: i64 =
            h.positive_spans.iter().map(|s| i64::from(s.length) + i64::from(s.offset).max(0)).sum();
        let nothing_below =
            h.negative_spans.is_empty() && h.negative_deltas.is_empty() && h.negative_counts.is_empty();
        bounds
            && reach <= h.custom_values.len() as i64 + 1
            && nothing_below
            && h.zero_threshold == 0.0
            && zero_int == 0
            && zero_float == 0.0
    } else {
        (-9..=52).contains(&h.schema) && h.custom_values.is_empty()
    };
    let counts = match h.count {
        Some(Count::CountFloat(count)) => count >= 0.0 && zero_int == 0 && zero_float >= 0.0,
        Some(Count::CountInt(_)) | None => {
            let count = if let Some(Count::CountInt(count)) = h.count { count } else { 0 };
            let buckets = above + below + u128::from(zero_int);
            zero_float == 0.0
                && if h.sum.is_nan() { buckets <= count.into() } else { buckets == count.into() }
        }
    };
    schema && positive && negative && counts
}

fn any_histogram() -> impl Strategy<Value = proto::Histogram> {
    let spans = || prop::collection::vec((-2..4_i32, 0..3_u32), 0..3);
    let deltas = || prop::collection::vec(-1..4_i64, 0..4);
    let counts =
        || prop::collection::vec(prop_oneof![Just(0.0), Just(2.5), Just(-1.0), Just(f64::NAN)], 0..3);
    let number = prop_oneof![(0..8_u64).prop_map(Ok), prop_oneof![Just(3.0), Just(-1.0)].prop_map(Err)];
    let zero = prop_oneof![
        Just(None),
        (0..3_u64).prop_map(|n| Some(ZeroCount::ZeroCountInt(n))),
        prop_oneof![Just(0.0), Just(1.0), Just(-1.0)].prop_map(|n| Some(ZeroCount::ZeroCountFloat(n)))
    ];
    let custom =
        prop::collection::vec(prop_oneof![Just(1.0), Just(2.0), Just(3.0), Just(f64::INFINITY)], 0..4);
    let schema = prop_oneof![Just(0), Just(52), Just(-53), Just(-60)];
    let sum = prop_oneof![Just(1.0), Just(f64::NAN), Just(f64::from_bits(crate::prom::STALE_BITS))];
    // Half of the histograms have a count that equals the sum of their buckets.
    (
        number,
        any::<bool>(),
        sum,
        schema,
        zero,
        (spans(), deltas(), counts()),
        (spans(), deltas(), counts()),
        custom,
    )
        .prop_map(|(number, fit, sum, schema, zero_count, below, above, custom_values)| {
            let span = |(offset, length): &(i32, u32)| proto::BucketSpan { offset: *offset, length: *length };
            let total = |deltas: &[i64]| {
                let running = deltas.iter().scan(0, |last, delta| {
                    *last += delta;
                    Some(*last)
                });
                running.sum::<i64>().max(0) as u64
            };
            let zero = if let Some(ZeroCount::ZeroCountInt(n)) = zero_count { n } else { 0 };
            let fitting = total(&below.1) + total(&above.1) + zero;
            let count = match number {
                Ok(n) => Count::CountInt(if fit { fitting } else { n }),
                Err(n) => Count::CountFloat(n),
            };
            let fit_spans = |(spans, deltas, counts): &(Vec<(i32, u32)>, Vec<i64>, Vec<f64>)| {
                if !fit {
                    return spans.iter().map(span).collect();
                }
                let length = if matches!(count, Count::CountInt(_)) { deltas.len() } else { counts.len() };
                if length == 0 {
                    Vec::new()
                } else {
                    vec![proto::BucketSpan { offset: 0, length: length as u32 }]
                }
            };
            proto::Histogram {
                count: Some(count),
                sum,
                schema,
                zero_count,
                negative_spans: fit_spans(&below),
                negative_deltas: below.1,
                negative_counts: below.2,
                positive_spans: fit_spans(&above),
                positive_deltas: above.1,
                positive_counts: above.2,
                timestamp: 7,
                custom_values,
                ..Default::default()
            }
        })
}

fn any_sample() -> impl Strategy<Value = (f64, i64)> {
    (any::<u64>(), any::<i64>()).prop_map(|(bits, timestamp)| (f64::from_bits(bits), timestamp))
}

fn any_v1() -> impl Strategy<Value = proto::WriteRequest> {
    let label = ("[a-z_]{0,6}", "\\PC{0,9}").prop_map(|(name, value)| proto::Label { name, value });
    let sample = any_sample().prop_map(|(value, timestamp)| proto::Sample { value, timestamp });
    let labels = || prop::collection::vec(label.clone(), 0..5);
    let exemplar = (labels(), any_sample()).prop_map(|(labels, (value, timestamp))| proto::Exemplar {
        labels,
        value,
        timestamp,
    });
    let series = (
        labels(),
        prop::collection::vec(sample, 0..4),
        prop::collection::vec(exemplar, 0..2),
        prop::collection::vec(any_histogram(), 0..3),
    )
        .prop_map(|(labels, samples, exemplars, histograms)| proto::TimeSeries {
            labels,
            samples,
            exemplars,
            histograms,
        });
    let metadata = (0..9_i32, "[a-z]{0,4}", "[a-z]{0,4}").prop_map(|(r#type, metric_family_name, help)| {
        proto::MetricMetadata { r#type, metric_family_name, help }
    });
    (prop::collection::vec(series, 0..5), prop::collection::vec(metadata, 0..3))
        .prop_map(|(timeseries, metadata)| proto::WriteRequest { timeseries, metadata })
}

fn any_v2() -> impl Strategy<Value = proto::v2::Request> {
    let refs = || prop::collection::vec(prop_oneof![9 => 0..6_u32, 1 => any::<u32>()], 0..7);
    let sample = (any_sample(), any::<i64>()).prop_map(|((value, timestamp), start_timestamp)| {
        proto::v2::Sample { value, timestamp, start_timestamp }
    });
    let exemplar = (refs(), any_sample()).prop_map(|(labels_refs, (value, timestamp))| proto::v2::Exemplar {
        labels_refs,
        value,
        timestamp,
    });
    let metadata = prop::option::of(
        (0..9_i32, 0..8_u32, 0..8_u32).prop_map(|(r#type, help_ref, unit_ref)| proto::v2::Metadata {
            r#type,
            help_ref,
            unit_ref,
        }),
    );
    let series =
        (
            refs(),
            prop::collection::vec(sample, 0..4),
            prop::collection::vec(any_histogram(), 0..3),
            prop::collection::vec(exemplar, 0..3),
            metadata,
        )
            .prop_map(|(labels_refs, samples, histograms, exemplars, metadata)| {
                proto::v2::TimeSeries { labels_refs, samples, histograms, exemplars, metadata }
            });
    (prop::collection::vec("\\PC{0,9}", 4..6), prop::collection::vec(series, 0..5)).prop_map(
        |(mut symbols, timeseries)| {
            symbols.insert(0, String::new());
            proto::v2::Request { symbols, timeseries }
        },
    )
}

fn bits(value: f64, timestamp: i64) -> (i64, u64) {
    (timestamp, value.to_bits())
}

/// Counts, then sums, of the valid histograms of each series that has any.
fn expected_histograms<'a>(all: impl Iterator<Item = &'a Vec<proto::Histogram>>) -> Vec<Vec<(i64, u64)>> {
    let mut expected = Vec::new();
    for histograms in all {
        let valid: Vec<_> = histograms.iter().filter(|h| is_valid(h)).collect();
        if valid.is_empty() {
            continue;
        }
        let count = |h: &&proto::Histogram| match h.count {
            _ if h.sum.to_bits() == crate::prom::STALE_BITS => f64::from_bits(crate::prom::STALE_BITS),
            Some(Count::CountFloat(count)) => count,
            Some(Count::CountInt(count)) => count as f64,
            None => 0.0,
        };
        expected.push(valid.iter().map(|h| bits(count(h), h.timestamp)).collect());
        expected.push(valid.iter().map(|h| bits(h.sum, h.timestamp)).collect());
    }
    expected
}

fn check_v1(read: &ParsedMessage, request: &proto::WriteRequest) -> Result<(), TestCaseError> {
    let with_samples = request.timeseries.iter().filter(|series| !series.samples.is_empty());
    let expected: Vec<(Pairs, Vec<_>)> = with_samples
        .map(|series| {
            let labels =
                series.labels.iter().map(|label| (label.name.clone(), label.value.clone())).collect();
            (labels, series.samples.iter().map(|s| bits(s.value, s.timestamp)).collect())
        })
        .collect();
    prop_assert_eq!(read.floats(), expected);
    prop_assert_eq!(read.histograms(), expected_histograms(request.timeseries.iter().map(|s| &s.histograms)));
    let n_histograms: usize = request.timeseries.iter().map(|s| s.histograms.len()).sum();
    let invalid = request.timeseries.iter().flat_map(|s| &s.histograms).filter(|h| !is_valid(h)).count();
    prop_assert_eq!(read.rejections.count(RejectReason::Histogram), invalid);
    prop_assert_eq!(read.counts.series, request.timeseries.len());
    prop_assert_eq!(read.counts.histograms, n_histograms);
    prop_assert_eq!(
        read.counts.exemplars,
        request.timeseries.iter().map(|s| s.exemplars.len()).sum::<usize>()
    );
    prop_assert_eq!(read.counts.metadata, request.metadata.len());
    Ok(())
}

fn check_v2(read: &ParsedMessage, request: &proto::v2::Request) -> Result<(), TestCaseError> {
    let n = request.symbols.len();
    let in_range = |refs: &[u32]| refs.len().is_multiple_of(2) && refs.iter().all(|r| (*r as usize) < n);
    let valid: Vec<_> = request.timeseries.iter().filter(|series| in_range(&series.labels_refs)).collect();
    let pairs = |refs: &[u32]| -> Pairs {
        let text = |reference: u32| request.symbols[reference as usize].clone();
        refs.chunks(2).map(|pair| (text(pair[0]), text(pair[1]))).collect()
    };
    let with_samples = valid.iter().filter(|series| !series.samples.is_empty());
    let expected: Vec<(Pairs, Vec<_>)> = with_samples
        .map(|s| (pairs(&s.labels_refs), s.samples.iter().map(|s| bits(s.value, s.timestamp)).collect()))
        .collect();
    prop_assert_eq!(read.floats(), expected);
    prop_assert_eq!(read.histograms(), expected_histograms(valid.iter().map(|s| &s.histograms)));
    let is_empty = |s: &&proto::v2::TimeSeries| {
        s.samples.is_empty() && s.histograms.is_empty() && s.exemplars.is_empty()
    };
    prop_assert_eq!(
        read.rejections.count(RejectReason::NoSamples),
        request.timeseries.iter().filter(is_empty).count()
    );
    let exemplars = || request.timeseries.iter().flat_map(|s| &s.exemplars);
    prop_assert_eq!(read.counts.exemplars, exemplars().count());
    let bad = exemplars().filter(|e| !in_range(&e.labels_refs)).count();
    prop_assert_eq!(read.rejections.count(RejectReason::Exemplar), bad);
    let metadata = || request.timeseries.iter().filter_map(|s| s.metadata.as_ref());
    prop_assert!(read.counts.metadata >= metadata().count());
    let bad = metadata().filter(|m| m.help_ref.max(m.unit_ref) as usize >= n).count();
    prop_assert!(read.rejections.count(RejectReason::Metadata) >= bad);
    Ok(())
}

fn corrupt(message: &mut [u8], edits: Vec<(prop::sample::Index, u8)>) {
    for (index, byte) in edits {
        if !message.is_empty() {
            let at = index.index(message.len());
            message[at] = byte;
        }
    }
}

fn any_edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)
}

proptest! {
    #[test]
    fn v1_equals_prost_on_any_message(request in any_v1()) {
        check_v1(&parse(ProtocolVersion::V1, &request.encode_to_vec()).expect("well formed"), &request)?;
    }

    #[test]
    fn v2_equals_prost_on_any_message(request in any_v2()) {
        check_v2(&parse(ProtocolVersion::V2, &request.encode_to_vec()).expect("well formed"), &request)?;
    }

    /// A damaged message that both decoders accept has the same contents in both, and none panics. Prost skips groups,
    /// which proto3 does not have; this decoder rejects them.
    #[test]
    fn v1_equals_prost_on_damaged_messages(request in any_v1(), edits in any_edits()) {
        let mut message = request.encode_to_vec();
        corrupt(&mut message, edits);
        if let Ok(oracle) = proto::WriteRequest::decode(&message[..])
            && let Ok(read) = parse(ProtocolVersion::V1, &message)
            && read.items.iter().all(|(_, labels, ..)| labels.is_ok())
        {
            check_v1(&read, &oracle)?;
        }
    }

    #[test]
    fn v2_equals_prost_on_damaged_messages(request in any_v2(), edits in any_edits()) {
        let mut message = request.encode_to_vec();
        corrupt(&mut message, edits);
        if let Ok(oracle) = proto::v2::Request::decode(&message[..])
            && let Ok(read) = parse(ProtocolVersion::V2, &message)
            && read.items.iter().all(|(_, labels, ..)| labels.is_ok())
        {
            check_v2(&read, &oracle)?;
        }
    }

    #[test]
    fn a_histogram_is_valid_when_the_prost_message_is(histogram in any_histogram()) {
        prop_assert_eq!(read_histogram(&histogram).is_ok(), is_valid(&histogram));
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(message in prop::collection::vec(any::<u8>(), 0..200)) {
        for version in [ProtocolVersion::V1, ProtocolVersion::V2] {
            let _ = labels(version, &message);
            let _ = labels(version, &[&[0x22, 0, 0x2a, 0x80, 0x01][..], &message].concat());
        }
    }
}
