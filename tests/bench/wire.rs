//! Benchmarks from the compressed body of a write request to the columns of its series, against prost with a map of
//! decoded label sets.

use divan::Bencher;
use divan::counter::ItemsCount;
use promforest::prom::proto::{Label, Sample, TimeSeries, WriteRequest, v2};
use promforest::prom::wire::{ParsedRequest, ProtocolVersion, Scratch, snappy};
use promforest::prom::{Labels, METRIC_NAME, Selector};
use promforest::series::{ColumnRef, IgnoreReason, IndexEntry, SeriesIndex};
use promforest::window::Window;
use prost::Message;
use std::collections::HashMap;
use std::hint::black_box;

/// Series of a host: node_exporter on a server of 16 processors has about this many.
const SERIES: usize = 1220;
/// Series of a host that are watched: five devices, four metrics.
const WATCHED: usize = 20;
/// Samples of a request: Prometheus 3's default.
const SAMPLES: usize = 2000;

fn main() {
    divan::main();
}

fn series(i: usize) -> TimeSeries {
    let (host, number) = (i / SERIES, i % SERIES);
    let (name, detail) = if number < WATCHED {
        (["receive_bytes", "transmit_bytes", "receive_packets", "transmit_packets"][number % 4], number / 4)
    } else {
        ("cpu_seconds", number)
    };
    let pairs = [
        (METRIC_NAME.to_string(), format!("node_network_{name}_total")),
        ("cluster".into(), "prod-eu1".into()),
        ("device".into(), format!("br-0c6e79cd{detail}")),
        ("instance".into(), format!("host-{host}.example.com:9100")),
        ("job".into(), "node".into()),
    ];
    TimeSeries {
        labels: pairs.into_iter().map(|(name, value)| Label { name, value }).collect(),
        samples: vec![Sample { value: i as f64, timestamp: 1_700_000_000_000 }],
        ..TimeSeries::default()
    }
}

fn body() -> Vec<u8> {
    let request = WriteRequest { timeseries: (0..SAMPLES).map(series).collect(), metadata: Vec::new() };
    snappy::compress(&request.encode_to_vec())
}

/// The same request in version 2.0.
fn body_v2() -> Vec<u8> {
    let mut symbols = vec![String::new()];
    let mut numbers = HashMap::from([(String::new(), 0)]);
    let mut intern = |text: String| {
        *numbers.entry(text).or_insert_with_key(|text| {
            symbols.push(text.clone());
            symbols.len() as u32 - 1
        })
    };
    let timeseries = (0..SAMPLES).map(series).map(|series| v2::TimeSeries {
        labels_refs: series.labels.into_iter().flat_map(|l| [intern(l.name), intern(l.value)]).collect(),
        samples: vec![v2::Sample {
            value: series.samples[0].value,
            timestamp: series.samples[0].timestamp,
            start_timestamp: 0,
        }],
        metadata: Some(v2::Metadata { r#type: 1, ..v2::Metadata::default() }),
        ..v2::TimeSeries::default()
    });
    let timeseries = timeseries.collect();
    snappy::compress(&v2::Request { symbols, timeseries }.encode_to_vec())
}

fn selector() -> Selector {
    Selector::parse(r#"{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total"}"#)
        .expect("a selector")
}

/// The receiver's path: one hash and one lookup per series.
fn bench_read(bencher: Bencher, version: ProtocolVersion, body: Vec<u8>) {
    let selector = selector();
    let mut index = SeriesIndex::default();
    let mut window = Window::new(1000);
    let mut buffer = Vec::new();
    let mut scratch = Scratch::default();
    let mut entry_ids = Vec::new();
    bencher.counter(ItemsCount::new(SAMPLES)).bench_local(move || {
        let message = snappy::decompress(&body, 32 << 20, &mut buffer).expect("snappy");
        let request = ParsedRequest::parse(version, message, index.seed(None), i64::MAX, &mut scratch)
            .expect("well formed");
        index.lookup(request.hashes(), &mut entry_ids);
        let mut watched = 0;
        for ((series, hash), entry_id) in request.series().zip(request.hashes()).zip(&entry_ids) {
            let entry_id = entry_id.unwrap_or_else(|| {
                let labels = series.labels().expect("valid");
                if selector.matches(&labels) {
                    let column = ColumnRef {
                        group: 0,
                        numbering: 0,
                        column: window.get_or_add_column(&labels).expect("the window has few columns"),
                    };
                    index.insert(*hash, IndexEntry::Watched(&[column]))
                } else {
                    index.insert(*hash, IndexEntry::Ignored(IgnoreReason::Unwatched))
                }
            });
            if let IndexEntry::Watched(columns) = index.entry(entry_id) {
                watched += columns.len() * series.samples.len();
            }
        }
        black_box(watched)
    });
}

/// Remote write 1.0.
#[divan::bench]
fn read_v1(bencher: Bencher) {
    bench_read(bencher, ProtocolVersion::V1, body());
}

/// Remote write 2.0.
#[divan::bench]
fn read_v2(bencher: Bencher) {
    bench_read(bencher, ProtocolVersion::V2, body_v2());
}

/// The baseline: prost's message tree, and a map from label sets to columns.
#[divan::bench]
fn prost_tree(bencher: Bencher) {
    let body = body();
    let selector = selector();
    let mut index: HashMap<Labels, bool> = HashMap::new();
    let mut buffer = Vec::new();
    bencher.counter(ItemsCount::new(SAMPLES)).bench_local(move || {
        let message = snappy::decompress(&body, 32 << 20, &mut buffer).expect("snappy");
        let request = WriteRequest::decode(message).expect("well formed");
        let mut watched = 0;
        for series in request.timeseries {
            let labels =
                Labels::new(series.labels.into_iter().map(|label| (label.name, label.value))).expect("valid");
            let is_watched = match index.get(&labels) {
                Some(is_watched) => *is_watched,
                None => {
                    let is_watched = selector.matches(&labels);
                    index.insert(labels, is_watched);
                    is_watched
                }
            };
            watched += usize::from(is_watched) * series.samples.len();
        }
        black_box(watched)
    });
}

/// The part common to both paths.
#[divan::bench]
fn snappy_alone(bencher: Bencher) {
    let body = body();
    let mut buffer = Vec::new();
    bencher.counter(ItemsCount::new(SAMPLES)).bench_local(move || {
        black_box(snappy::decompress(&body, 32 << 20, &mut buffer).expect("snappy").len())
    });
}
