//! The bytes of remote write and remote read.

use promforest::history::collector::ResponseCollector;
use promforest::prom::proto::{self, v2};
use promforest::prom::wire::{
    InvalidSeries, MAX_LABELS, MAX_NAME_BYTES, MAX_VALUE_BYTES, Malformed, ParsedRequest, ProtocolVersion,
    RequestCounts, SampleKind, Scratch, snappy as block,
};
use promforest::prom::{Labels, Sample};
use promforest::remote_read::frames::ChunkedReader;
use promforest::remote_read::server::{Error as RequestError, RemoteReadRequest, ResponseFormat};
use promforest::remote_read::xor;
use prost::Message as _;
use std::collections::HashMap;
use std::fmt::Debug;

/// Small, so that the fuzzer finds both sides of it.
const LIMIT: usize = 1 << 20;

/// A body is decompressed as by the snap crate's own entrance, or refused for a reason that holds.
pub fn snappy(data: &[u8]) {
    let mut buffer = Vec::new();
    let ours = block::decompress(data, LIMIT, &mut buffer);
    match snap::raw::decompress_len(data) {
        Ok(declared) if declared <= LIMIT => {
            #[allow(clippy::disallowed_methods, reason = "the oracle; the declared length is checked above")]
            let oracle = snap::raw::Decoder::new().decompress_vec(data);
            assert_eq!(ours.as_deref().ok(), oracle.as_deref().ok());
        }
        _ => assert!(ours.is_err()),
    }
    let back = block::compress(data);
    let mut buffer = Vec::new();
    assert_eq!(block::decompress(&back, data.len(), &mut buffer).expect("just compressed"), data);
}

/// The float series of a message as we read it: labels and samples.
type Floats = Vec<(Result<Labels, InvalidSeries>, Vec<Sample>)>;

/// `None` where we are stricter than prost: proto3 has no groups, and a request has bounds.
fn read(version: ProtocolVersion, data: &[u8], oracle: &impl Debug) -> Option<(RequestCounts, Floats)> {
    let mut scratch = Scratch::default();
    match ParsedRequest::parse(version, data, 0, i64::MAX, &mut scratch) {
        Ok(request) => {
            let floats =
                request.series().filter(|one| one.kind == SampleKind::Float && !one.samples.is_empty());
            let floats = floats.map(|series| (series.labels(), series.samples.to_vec())).collect();
            Some((request.counts, floats))
        }
        Err(Malformed::Key(_) | Malformed::TooMany { .. } | Malformed::FirstSymbolNotEmpty) => None,
        Err(error) => panic!("{error}: {oracle:?}"),
    }
}

/// The parser accepts the messages that prost accepts.
pub fn write_v1(data: &[u8]) {
    let Ok(oracle) = proto::WriteRequest::decode(data) else {
        let _ = ParsedRequest::parse(ProtocolVersion::V1, data, 0, 0, &mut Scratch::default());
        return;
    };
    let Some((counts, floats)) = read(ProtocolVersion::V1, data, &oracle) else { return };
    assert_eq!(counts.series, oracle.timeseries.len());
    assert_eq!(counts.metadata, oracle.metadata.len());
    let expected = oracle.timeseries.into_iter();
    let expected: Vec<_> =
        expected.filter(|one| !one.samples.is_empty() && one.labels.len() <= MAX_LABELS).collect();
    assert_eq!(floats.len(), expected.len());
    for ((labels, samples), expected) in floats.into_iter().zip(expected) {
        same_labels(labels, expected.labels);
        let expected = expected.samples.iter();
        let expected: Vec<Sample> =
            expected.map(|s| Sample { timestamp_ms: s.timestamp, value: s.value }).collect();
        assert_eq!(samples, expected);
    }
}

/// The same for version 2.0: series whose references lead nowhere are refused, the others are there.
pub fn write_v2(data: &[u8]) {
    let Ok(oracle) = v2::Request::decode(data) else {
        let _ = ParsedRequest::parse(ProtocolVersion::V2, data, 0, 0, &mut Scratch::default());
        return;
    };
    let Some((_, floats)) = read(ProtocolVersion::V2, data, &oracle) else { return };
    let symbol = |reference: u32| oracle.symbols.get(reference as usize).cloned();
    let valid = oracle.timeseries.iter().filter_map(|one| {
        let (pairs, rest) = one.labels_refs.as_chunks();
        let label =
            |[name, value]: &[u32; 2]| Some(proto::Label { name: symbol(*name)?, value: symbol(*value)? });
        let labels: Vec<_> = pairs.iter().map(label).collect::<Option<_>>()?;
        (rest.is_empty() && labels.len() <= MAX_LABELS && !one.samples.is_empty())
            .then_some((labels, &one.samples))
    });
    let valid: Vec<_> = valid.collect();
    assert_eq!(floats.len(), valid.len());
    for ((labels, samples), (expected, expected_samples)) in floats.into_iter().zip(valid) {
        same_labels(labels, expected);
        let expected = expected_samples.iter();
        let expected: Vec<Sample> =
            expected.map(|s| Sample { timestamp_ms: s.timestamp, value: s.value }).collect();
        assert_eq!(samples, expected);
    }
}

/// A label set comes out as it went in; one that is refused breaks a rule.
fn same_labels(labels: Result<Labels, InvalidSeries>, expected: Vec<proto::Label>) {
    let too_long =
        expected.iter().any(|label| label.name.len() > MAX_NAME_BYTES || label.value.len() > MAX_VALUE_BYTES);
    let expected = Labels::new(expected.into_iter().map(|label| (label.name, label.value)));
    match labels {
        Ok(labels) => assert_eq!(Ok(labels), expected),
        Err(InvalidSeries::Labels(error)) => assert_eq!(Err(error), expected),
        Err(InvalidSeries::NoMetricName(_)) => {
            assert!(expected.is_ok_and(|labels| labels.metric_name().is_empty()));
        }
        Err(InvalidSeries::TooLong { .. }) => assert!(too_long),
        // Groups again, which prost skips.
        Err(InvalidSeries::Malformed(Malformed::Key(_))) => {}
        Err(error) => panic!("{error}"),
    }
}

const RANGE: (i64, i64) = (1_000, 2_000_000_000_000);

/// The answer to a query is clipped to its range and ordered, every time once.
fn in_order(answer: ResponseCollector) {
    for (_, samples) in answer.finish() {
        assert!(!samples.is_empty());
        assert!(samples.iter().all(|sample| (RANGE.0..=RANGE.1).contains(&sample.timestamp_ms)));
        assert!(samples.is_sorted_by(|a, b| a.timestamp_ms < b.timestamp_ms));
    }
}

/// An answer of type SAMPLES.
pub fn read_response(data: &[u8]) {
    let mut collector = ResponseCollector::new(RANGE.0, RANGE.1);
    if collector.push_response(data).is_ok() {
        in_order(collector);
    }
}

/// A message of a stream.
pub fn read_message(data: &[u8]) {
    let mut collector = ResponseCollector::new(RANGE.0, RANGE.1);
    if collector.push_frame(data).is_ok() {
        in_order(collector);
    }
}

/// The frames of a stream are the same whole and byte by byte.
pub fn read_frames(data: &[u8]) {
    let pop = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut frames, mut messages) = (ChunkedReader::default(), Vec::new());
        for piece in pieces {
            frames.push(piece);
            while let Some(message) = frames.pop()? {
                messages.push(message);
            }
        }
        frames.finish().map(|()| messages)
    };
    assert_eq!(pop(&mut std::iter::once(data)).ok(), pop(&mut data.chunks(1)).ok());
}

/// Every request that prost reads is read here too, or rejected with a reason.
pub fn read_request(data: &[u8]) {
    let request = RemoteReadRequest::decode(data, |_| Ok(()));
    let Ok(oracle) = proto::ReadRequest::decode(data) else { return };
    let request = match request {
        Ok(request) => request,
        // Groups again, and what is asked of us is bounded, and has to be selective.
        Err(
            RequestError::Malformed(Malformed::Key(_))
            | RequestError::Limit { .. }
            | RequestError::Query { .. },
        ) => return,
        Err(RequestError::UnknownResponseTypes(types)) => {
            assert!(!types.is_empty() && types == oracle.accepted_response_types);
            return assert!(types.iter().all(|kind| !(0..=1).contains(kind)));
        }
        Err(error) => panic!("{error}: {oracle:?}"),
    };
    let kind = oracle.accepted_response_types.into_iter().find(|kind| (0..=1).contains(kind));
    assert_eq!(request.format == ResponseFormat::Chunks, kind == Some(1));
    assert_eq!(request.queries.len(), oracle.queries.len());
    for (query, expected) in request.queries.into_iter().zip(oracle.queries) {
        let range = (expected.start_timestamp_ms, expected.end_timestamp_ms);
        assert_eq!((query.start_ms, query.end_ms), range);
        assert!(query.selector.matchers().iter().map(proto::LabelMatcher::from).eq(expected.matchers));
    }
}

/// A chunk has the samples that a plain reader of bits finds in it.
pub fn xor(data: &[u8]) {
    let mut samples = Vec::new();
    let decoded = xor::decode(data, &mut samples).map(|()| samples);
    assert_eq!(decoded.ok(), xor::reference::decode(data).ok());
}

/// Bodies of write requests.
pub fn bodies() -> Vec<Vec<u8>> {
    super::files("captures/remote-write", ".snappy")
}

/// The messages in them.
pub fn messages() -> Vec<Vec<u8>> {
    decompressed(&bodies())
}

/// The same messages in version 2.0.
pub fn messages_v2() -> Vec<Vec<u8>> {
    let translate = |message: Vec<u8>| {
        let request = proto::WriteRequest::decode(&message[..]).expect("a capture is valid");
        let mut symbols = vec![String::new()];
        let mut numbers = HashMap::from([(String::new(), 0)]);
        let mut refer = |text: String| {
            *numbers.entry(text).or_insert_with_key(|text| {
                symbols.push(text.clone());
                symbols.len() as u32 - 1
            })
        };
        let series = |one: proto::TimeSeries| v2::TimeSeries {
            labels_refs: one.labels.into_iter().flat_map(|l| [refer(l.name), refer(l.value)]).collect(),
            samples: one
                .samples
                .iter()
                .map(|s| v2::Sample { value: s.value, timestamp: s.timestamp, start_timestamp: 0 })
                .collect(),
            ..v2::TimeSeries::default()
        };
        let timeseries = request.timeseries.into_iter().map(series).collect();
        v2::Request { symbols, timeseries }.encode_to_vec()
    };
    messages().into_iter().map(translate).collect()
}

/// Chunks of several shapes: one sample, steady ones, a staleness marker, every width of a timestamp's change.
pub fn chunks() -> Vec<Vec<u8>> {
    let chunks = [
        "000180a0abfef9623ff0000000000000",
        "000380a0abfef9623ff00000000000009875c25fff6c06",
        "000480a0abfef9623ff8000000000000987530fd002000000000000a8010000000000004",
        "0003003ff000000000000001c004000000000000000a8000000000000001",
        "0011000000000000000000a08d0614000a00161000b78001a0000d0001708000bbc0001d00000e8000178000000000040000\
         bfffffffffffe00001e0000020000000000fffffff000000000000",
    ];
    let byte = |hex: &str, at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    chunks.iter().map(|hex| (0..hex.len()).step_by(2).map(|at| byte(hex, at)).collect()).collect()
}

/// The messages of answers of remote read.
pub fn answers() -> Vec<Vec<u8>> {
    decompressed(&super::files("captures/remote-read", "samples.response.bin"))
}

/// Questions.
pub fn questions() -> Vec<Vec<u8>> {
    decompressed(&super::files("captures/remote-read", ".request.snappy"))
}

/// Streamed answers.
pub fn streams() -> Vec<Vec<u8>> {
    super::files("captures/remote-read", "stream.response.bin")
}

/// The messages in their frames.
pub fn stream_messages() -> Vec<Vec<u8>> {
    let mut frames = ChunkedReader::default();
    let mut messages = Vec::new();
    for stream in streams() {
        frames.push(&stream);
        while let Some(message) = frames.pop().expect("a capture is valid") {
            messages.push(message.to_vec());
        }
    }
    messages
}

fn decompressed(bodies: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let decompress = |body: &Vec<u8>| {
        let mut buffer = Vec::new();
        block::decompress(body, 64 << 20, &mut buffer).expect("a capture is valid").to_vec()
    };
    bodies.iter().map(decompress).collect()
}
