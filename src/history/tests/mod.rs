//! Captured responses of Prometheus, and a server with scripted responses.

mod captures;
mod json;
mod requests;
mod streams;

use super::collector::ResponseCollector;
use super::request::RESPONSE_LIMIT;
use super::*;
use crate::http::body::Body;
use crate::http::client;
use crate::http::response::Response as Reply;
use crate::http::server::Server;
use crate::prom::matcher::Matcher;
use crate::prom::proto::{self, Query, QueryResult, ReadRequest, ReadResponse};
use crate::prom::wire::snappy;
use crate::prom::{Labels, Sample, Selector};
use crate::remote_read::frames::tests::frame;
use crate::remote_read::frames::{ChunkedReader, SAMPLES_CONTENT_TYPE, STREAMED_CONTENT_TYPE};
use crate::remote_read::xor::{self, tests::reference_encode};
use crate::time::DAY_MS;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

fn capture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/data/captures/remote-read/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Decodes a SAMPLES response.
fn decode(message: &[u8], start_ms: i64, end_ms: i64) -> Result<Vec<SeriesSamples>, Error> {
    let mut collector = ResponseCollector::new(start_ms, end_ms);
    collector.push_response(message)?;
    Ok(collector.finish())
}

/// Decodes the frames of a stream.
fn decode_stream(mut stream: &[u8], start_ms: i64, end_ms: i64) -> Result<Vec<SeriesSamples>, Error> {
    let mut collector = ResponseCollector::new(start_ms, end_ms);
    let mut reader = ChunkedReader::default();
    while !stream.is_empty() {
        let (piece, rest) = stream.split_at(stream.len().min(100));
        reader.push(piece);
        while let Some(message) = reader.pop()? {
            collector.push_frame(&message)?;
        }
        stream = rest;
    }
    reader.finish()?;
    Ok(collector.finish())
}

fn decompressed(body: &[u8]) -> Vec<u8> {
    snappy::decompress(body, RESPONSE_LIMIT, &mut Vec::new()).expect("snappy").to_vec()
}

#[test]
fn sorts_unsorted_samples() {
    let sample = |timestamp, value| proto::Sample { timestamp, value };
    let result = QueryResult {
        timeseries: vec![proto::TimeSeries {
            labels: vec![label("b", "2"), label("__name__", "up")],
            samples: vec![sample(30, 3.0), sample(10, 1.0), sample(20, 2.0)],
            ..Default::default()
        }],
    };
    let message = ReadResponse { results: vec![result] }.encode_to_vec();
    let series = decode(&message, 0, 100).expect("valid");
    assert_eq!(series[0].0.to_string(), r#"up{b="2"}"#);
    let times: Vec<i64> = series[0].1.iter().map(|sample| sample.timestamp_ms).collect();
    assert_eq!(times, [10, 20, 30]);
}

fn label(name: &str, value: &str) -> proto::Label {
    proto::Label { name: name.into(), value: value.into() }
}

#[test]
fn b64_b65_rejects_invalid_responses() {
    let twice = QueryResult {
        timeseries: vec![proto::TimeSeries {
            labels: vec![label("a", "1"), label("a", "2")],
            samples: vec![proto::Sample { timestamp: 1, value: 1.0 }],
            ..Default::default()
        }],
    };
    for (response, message) in [
        (ReadResponse { results: Vec::new() }, "remote read: 0 results for one query"),
        (
            ReadResponse { results: vec![QueryResult::default(), QueryResult::default()] },
            "remote read: 2 results for one query",
        ),
        (ReadResponse { results: vec![twice] }, "history: an invalid series: label name \"a\" is not unique"),
    ] {
        let error = decode(&response.encode_to_vec(), 0, 1).expect_err(message);
        assert_eq!(crate::error::chain(&error), message);
    }
    let whole = decompressed(&capture("netdev-rx.samples.response.bin"));
    assert!(matches!(decode(&whole[..whole.len() - 1], 0, 1), Err(Error::Protobuf(_))));
}

/// A message with these series.
fn message(query_index: i64, series: &[(&str, Vec<proto::Chunk>)]) -> Vec<u8> {
    let chunked = |(name, chunks): &(&str, Vec<proto::Chunk>)| proto::ChunkedSeries {
        labels: vec![label("__name__", name)],
        chunks: chunks.clone(),
    };
    let chunked_series = series.iter().map(chunked).collect();
    proto::ChunkedReadResponse { chunked_series, query_index }.encode_to_vec()
}

/// The value of the metric after this response.
fn skipped_count(collector: &ResponseCollector, reason: &'static str) -> u64 {
    let metrics = Metrics::default();
    metrics.count_skipped(collector.skipped());
    metrics.skipped.get_or_create(&[("reason", reason.into())]).get()
}

/// A chunk of a series.
fn chunk(encoding: i32, samples: &[(i64, f64)]) -> proto::Chunk {
    let samples: Vec<Sample> = samples
        .iter()
        .map(|(timestamp_ms, value)| Sample { timestamp_ms: *timestamp_ms, value: *value })
        .collect();
    // The client must ignore these times.
    proto::Chunk { min_time_ms: 7, max_time_ms: -7, r#type: encoding, data: reference_encode(&samples) }
}

/// A frame with these series.
fn framed(query_index: i64, series: &[(&str, Vec<proto::Chunk>)]) -> Vec<u8> {
    frame(&message(query_index, series))
}

/// The labels and samples of a CSV with the columns `labels_json,timestamp_ms,value`.
fn expected(name: &str) -> BTreeMap<Labels, Vec<Sample>> {
    let text = String::from_utf8(capture(name)).expect("UTF-8");
    let mut series: BTreeMap<Labels, Vec<Sample>> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let (json, rest) = line.trim_start_matches('"').split_once("}\",").expect("a quoted object");
        let json = json.replace("\"\"", "\"") + "}";
        let labels: BTreeMap<String, String> = serde_json::from_str(&json).expect("an object");
        let (timestamp, value) = rest.split_once(',').expect("two numbers");
        let sample = Sample {
            timestamp_ms: timestamp.parse().expect("a timestamp"),
            value: value.parse().expect("a value"),
        };
        series.entry(Labels::new(labels).expect("valid")).or_default().push(sample);
    }
    series
}

/// Checks and removes the external labels.
fn strip_external_labels(labels: &Labels) -> Labels {
    let (external, own) = labels.split(&["monitor".into(), "replica".into()]);
    assert_eq!(external.to_string(), r#"{monitor="demo", replica="a"}"#);
    own
}

/// Compares sample by sample; returns the staleness markers, which only remote read has.
fn compare(series: &[SeriesSamples], csv: &str) -> Vec<(String, i64)> {
    let mut expected = expected(csv);
    let mut markers = Vec::new();
    for (labels, samples) in series {
        let labels = strip_external_labels(labels);
        assert!(samples.is_sorted_by_key(|sample| sample.timestamp_ms));
        let (stale, values): (Vec<Sample>, Vec<Sample>) = samples.iter().partition(|s| s.is_stale());
        markers.extend(stale.iter().map(|sample| (labels.metric_name().to_string(), sample.timestamp_ms)));
        assert_eq!(Some(values), expected.remove(&labels), "{labels}");
    }
    assert!(expected.is_empty(), "missing: {:?}", expected.keys());
    markers
}
