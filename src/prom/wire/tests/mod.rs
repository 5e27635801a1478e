//! The parser of write requests on vectors and on messages that prost encodes.

mod equivalence;
mod histograms;
mod series;

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
    let too_many = |version, message: Vec<u8>, what: RequestPart, limit| {
        assert_eq!(parse(version, &message).expect_err(what.as_str()), Malformed::TooMany { what, limit });
    };
    too_many(ProtocolVersion::V1, [0x0a, 0].repeat(MAX_SERIES + 1), RequestPart::Series, MAX_SERIES);
    too_many(
        ProtocolVersion::V2,
        [&[0x22, 0][..], &[0x2a, 0].repeat(MAX_SERIES + 1)].concat(),
        RequestPart::Series,
        MAX_SERIES,
    );
    too_many(ProtocolVersion::V2, [0x22, 0].repeat(MAX_SYMBOLS + 1), RequestPart::Symbols, MAX_SYMBOLS);
    // Samples, exemplars and histograms share one limit.
    for (field, n) in [(0x12, MAX_SAMPLES), (0x1a, MAX_SAMPLES), (0x22, MAX_SAMPLES / 2)] {
        let part = [field, 0].repeat(n + 1);
        let mut length = Vec::new();
        prost::encoding::encode_varint(part.len() as u64, &mut length);
        too_many(
            ProtocolVersion::V1,
            [&[0x0a][..], &length, &part].concat(),
            RequestPart::Samples,
            MAX_SAMPLES,
        );
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

/// An encoded 2.0 request.
fn v2(symbols: &[&str], timeseries: Vec<proto::v2::TimeSeries>) -> Vec<u8> {
    let symbols = symbols.iter().map(ToString::to_string).collect();
    proto::v2::Request { symbols, timeseries }.encode_to_vec()
}

fn v2_series(labels_refs: &[u32]) -> proto::v2::TimeSeries {
    let samples = vec![proto::v2::Sample { value: 1.0, timestamp: 1, start_timestamp: 0 }];
    proto::v2::TimeSeries { labels_refs: labels_refs.to_vec(), samples, ..Default::default() }
}

fn read_histogram(histogram: &proto::Histogram) -> Result<NativeHistogram, InvalidNativeHistogram> {
    histogram::parse(&histogram.encode_to_vec()).expect("well formed")
}
