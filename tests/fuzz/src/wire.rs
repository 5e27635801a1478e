//! The bytes of remote write and remote read.

use promforest::history;
use promforest::prom::wire::{Malformed, snappy as block, v1};
use promforest::prom::{Labels, Sample, proto};
use prost::Message as _;

/// Small, so that the fuzzer finds both sides of it.
const LIMIT: usize = 1 << 20;

/// A body is decompressed as by the snap crate's own entrance, or refused for a reason that holds.
pub fn snappy(data: &[u8]) {
    let mut buffer = Vec::new();
    let ours = block::decompress(data, LIMIT, &mut buffer);
    match snap::raw::decompress_len(data) {
        Ok(declared) if declared <= LIMIT => {
            let oracle = snap::raw::Decoder::new().decompress_vec(data);
            assert_eq!(ours.as_deref().ok(), oracle.as_deref().ok());
        }
        _ => assert!(ours.is_err()),
    }
    let back = block::compress(data);
    let mut buffer = Vec::new();
    assert_eq!(block::decompress(&back, data.len(), &mut buffer).expect("just compressed"), data);
}

/// What prost reads in a message, the visit reads too. It is stricter in one point: proto3 has no groups.
pub fn write_v1(data: &[u8]) {
    let mut series = Vec::new();
    let visited = v1::visit(data, &mut v1::Scratch::default(), |one| {
        series.push((one.labels(), one.samples.to_vec()));
    });
    let Ok(oracle) = proto::WriteRequest::decode(data) else { return };
    let counts = match visited {
        Ok(counts) => counts,
        Err(Malformed::Key(_) | Malformed::TooMany { .. }) => return,
        Err(error) => panic!("{error}: {oracle:?}"),
    };
    assert_eq!(counts.series, oracle.timeseries.len());
    assert_eq!(counts.metadata, oracle.metadata.len());
    assert_eq!(series.len(), oracle.timeseries.len());
    for ((labels, samples), expected) in series.into_iter().zip(oracle.timeseries) {
        same_labels(labels, expected.labels);
        let expected = expected.samples.iter();
        let expected: Vec<Sample> =
            expected.map(|s| Sample { timestamp_ms: s.timestamp, value: s.value }).collect();
        assert_eq!(samples, expected);
    }
}

/// A label set comes out as it went in; one that is refused breaks a rule.
fn same_labels(labels: Result<Labels, v1::InvalidSeries>, expected: Vec<proto::Label>) {
    let n_labels = expected.len();
    let too_long = expected
        .iter()
        .any(|label| label.name.len() > v1::MAX_NAME_BYTES || label.value.len() > v1::MAX_VALUE_BYTES);
    let expected = Labels::new(expected.into_iter().map(|label| (label.name, label.value)));
    match labels {
        Ok(labels) => assert_eq!(Ok(labels), expected),
        Err(v1::InvalidSeries::Labels(error)) => assert_eq!(Err(error), expected),
        Err(v1::InvalidSeries::NoMetricName(_)) => {
            assert!(expected.is_ok_and(|labels| labels.metric_name().is_empty()));
        }
        Err(v1::InvalidSeries::TooManyLabels { count }) => {
            assert_eq!(count, n_labels);
            assert!(count > v1::MAX_LABELS);
        }
        Err(v1::InvalidSeries::TooLong { .. }) => assert!(too_long),
        // Groups again, which prost skips.
        Err(v1::InvalidSeries::Malformed(Malformed::Key(_))) => {}
        Err(error) => panic!("{error}"),
    }
}

/// The answer to a query is clipped to its range and ordered.
pub fn read_response(data: &[u8]) {
    const RANGE: (i64, i64) = (1_000, 2_000_000_000_000);
    let Ok(series) = history::decode(data, RANGE.0, RANGE.1) else { return };
    for (_, samples) in series {
        assert!(samples.iter().all(|sample| (RANGE.0..=RANGE.1).contains(&sample.timestamp_ms)));
        assert!(samples.is_sorted_by_key(|sample| sample.timestamp_ms));
    }
}

/// Bodies of write requests.
pub fn bodies() -> Vec<Vec<u8>> {
    super::files("captures/remote-write", ".snappy")
}

/// The messages in them.
pub fn messages() -> Vec<Vec<u8>> {
    decompressed(&bodies())
}

/// The messages of answers of remote read.
pub fn answers() -> Vec<Vec<u8>> {
    decompressed(&super::files("captures/remote-read", "samples.response.bin"))
}

fn decompressed(bodies: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let decompress = |body: &Vec<u8>| {
        let mut buffer = Vec::new();
        block::decompress(body, 64 << 20, &mut buffer).expect("a capture is valid").to_vec()
    };
    bodies.iter().map(decompress).collect()
}
