//! Splits a write request into records, each of one partition: all series of a target are in the same.
//!
//! A record is a message of remote write 1.0, whatever the request was, so that consumers need one reader. Its values have
//! the bits of the request, and a native histogram is its count and its sum, as everywhere here.

use crate::ingest::AcceptedCounts;
use crate::prom::wire::{ParsedRequest, ProtocolVersion, RejectReason, Rejections, SampleKind, Scratch};
use crate::prom::{Labels, Sample};
use xxhash_rust::xxh3::Xxh3;

/// Bytes after which a record is complete; Kafka's default limit is 1 MB.
const RECORD_BYTES: usize = 256 << 10;
/// Most bytes of the records of one request. Series of version 2.0 share the texts of their labels; in records each has its own.
const MAX_BYTES: usize = 64 << 20;
/// Most bytes of the names and values of a series' labels: no sidecar watches one with more.
const MAX_LABEL_BYTES: usize = 16 << 10;
/// Samples of a series in one record.
const MAX_SAMPLES: usize = 4096;

/// The records of a request.
#[derive(Debug)]
pub struct Split {
    /// Partition and value of each record, in the order of the series.
    pub records: Vec<(i32, Vec<u8>)>,
    /// The part of the request that is in the records.
    pub accepted: AcceptedCounts,
    /// The invalid part.
    pub rejections: Rejections,
}

/// The records would have more than [`MAX_BYTES`].
#[derive(Debug, PartialEq, Eq)]
pub struct TooLarge;

/// The partition of a series, of this many: that of its values of the labels `by`, which are sorted.
pub fn partition(labels: &Labels, by: &[String], n_partitions: usize) -> i32 {
    let mut hasher = Xxh3::new();
    for text in by.iter().flat_map(|name| [name, labels.get(name)]) {
        hasher.update(text.as_bytes());
        // No byte of UTF-8.
        hasher.update(&[0xff]);
    }
    // Kafka numbers partitions with 31 bits.
    (hasher.digest() % n_partitions as u64) as i32
}

/// True if the record has series, and its partition is that of each of them, of this many.
pub fn is_placed(record: &[u8], id: i32, by: &[String], n_partitions: usize) -> bool {
    let mut scratch = Scratch::default();
    let request = ParsedRequest::parse(ProtocolVersion::V1, record, 0, i64::MAX, &mut scratch);
    let Ok(request) = request else { return false };
    let mut series = request.series().peekable();
    series.peek().is_some()
        && series.all(|series| series.labels().is_ok_and(|labels| partition(&labels, by, n_partitions) == id))
}

impl Split {
    /// Splits a request. The records have the labels that `label` makes of those of the request.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn new(
        request: &ParsedRequest<'_>,
        label: impl Fn(Labels) -> Labels,
        by: &[String],
        n_partitions: usize,
    ) -> Result<Self, TooLarge> {
        let mut split = Self {
            records: Vec::new(),
            accepted: AcceptedCounts::default(),
            rejections: request.rejections.clone(),
        };
        let mut open: Vec<Vec<u8>> = vec![Vec::new(); n_partitions];
        let mut n_bytes = 0;
        for series in request.series() {
            let labels = match series.labels() {
                Ok(labels) => label(labels),
                Err(error) => {
                    let count =
                        if series.kind == SampleKind::HistogramSum { 0 } else { series.samples.len() };
                    split.rejections.add(RejectReason::Labels, count, || crate::error::chain(&error));
                    continue;
                }
            };
            split.accepted.exemplars += series.exemplars;
            match series.kind {
                SampleKind::Float => split.accepted.samples += series.samples.len(),
                SampleKind::HistogramCount => split.accepted.histograms += series.samples.len(),
                SampleKind::HistogramSum => {}
            }
            if labels.n_text_bytes() > MAX_LABEL_BYTES {
                continue;
            }
            let id = partition(&labels, by, n_partitions);
            let record = &mut open[id as usize];
            for samples in series.samples.chunks(MAX_SAMPLES) {
                let before = record.len();
                encode_series(&labels, samples, record);
                n_bytes += record.len() - before;
                if n_bytes > MAX_BYTES {
                    return Err(TooLarge);
                }
                if record.len() >= RECORD_BYTES {
                    split.records.push((id, std::mem::take(record)));
                }
            }
        }
        let rest = (0..).zip(open).filter(|(_, record)| !record.is_empty());
        split.records.extend(rest);
        Ok(split)
    }
}

/// Appends field 1 of a `WriteRequest`: a `TimeSeries`. Not prost's encoder, which takes a negative zero for the default.
fn encode_series(labels: &Labels, samples: &[Sample], out: &mut Vec<u8>) {
    let text_length = |text: &str| 1 + varint_length(text.len() as u64) + text.len();
    let label_length = |(name, value): (&str, &str)| text_length(name) + text_length(value);
    let sample_length = |sample: &Sample| 10 + varint_length(sample.timestamp_ms.cast_unsigned());
    let field_length = |length: usize| 1 + varint_length(length as u64) + length;
    let length = labels.iter().map(|label| field_length(label_length(label))).sum::<usize>()
        + samples.iter().map(|sample| field_length(sample_length(sample))).sum::<usize>();
    put_key(1, length, out);
    for label in labels.iter() {
        put_key(1, label_length(label), out);
        for (field, text) in [(1, label.0), (2, label.1)] {
            put_key(field, text.len(), out);
            out.extend_from_slice(text.as_bytes());
        }
    }
    for sample in samples {
        put_key(2, sample_length(sample), out);
        out.push(1 << 3 | 1);
        out.extend_from_slice(&sample.value.to_le_bytes());
        out.push(2 << 3);
        put_varint(sample.timestamp_ms.cast_unsigned(), out);
    }
}

/// Appends key and length of a field of bytes.
fn put_key(field: u8, length: usize, out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    put_varint(length as u64, out);
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_length(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prom::proto::{Label, Sample as WireSample, TimeSeries, WriteRequest};
    use proptest::prelude::*;
    use prost::Message;
    use std::collections::BTreeMap;

    fn by() -> Vec<String> {
        ["instance", "job"].map(String::from).to_vec()
    }

    fn split(timeseries: Vec<TimeSeries>, n_partitions: usize) -> Result<Split, TooLarge> {
        let message = WriteRequest { timeseries, ..Default::default() }.encode_to_vec();
        let mut scratch = Scratch::default();
        let request = ParsedRequest::parse(ProtocolVersion::V1, &message, 0, i64::MAX, &mut scratch);
        Split::new(&request.expect("valid"), |labels| labels, &by(), n_partitions)
    }

    fn series(labels: &[(&str, &str)], samples: &[(i64, f64)]) -> TimeSeries {
        TimeSeries {
            labels: labels.iter().map(|(n, v)| Label { name: (*n).into(), value: (*v).into() }).collect(),
            samples: samples
                .iter()
                .map(|(timestamp, value)| WireSample { timestamp: *timestamp, value: *value })
                .collect(),
            ..Default::default()
        }
    }

    /// Labels of a series, to its times and bits.
    type Content = BTreeMap<Vec<(String, String)>, Vec<(i64, u64)>>;

    fn content(series: impl IntoIterator<Item = TimeSeries>) -> Content {
        let mut content = Content::new();
        for series in series {
            let mut labels: Vec<(String, String)> =
                series.labels.into_iter().map(|label| (label.name, label.value)).collect();
            labels.sort();
            let samples = series.samples.into_iter().map(|s| (s.timestamp, s.value.to_bits()));
            content.entry(labels).or_default().extend(samples);
        }
        content
    }

    #[test]
    fn the_partition_depends_on_the_values_of_by_alone() {
        let labels = |pairs: &[(&str, &str)]| Labels::new(pairs.iter().copied()).expect("valid");
        let of = |pairs: &[(&str, &str)]| partition(&labels(pairs), &by(), 1000);
        let target = [("__name__", "rx"), ("instance", "a:1"), ("job", "node")];
        // A program of another version puts the target into the same partition.
        assert_eq!(of(&target), 379);
        assert_eq!(
            of(&[("__name__", "tx"), ("instance", "a:1"), ("job", "node"), ("device", "lo")]),
            of(&target)
        );
        assert_ne!(of(&[("instance", "a:2"), ("job", "node")]), of(&target));
        assert_ne!(of(&[("instance", "node"), ("job", "a:1")]), of(&target));
    }

    #[test]
    fn records_have_the_labels_that_are_given() {
        let sent = series(&[("__name__", "rx"), ("job", "node"), ("tenant", "b")], &[(1, 1.0)]);
        let message = WriteRequest { timeseries: vec![sent], ..Default::default() }.encode_to_vec();
        let mut scratch = Scratch::default();
        let request = ParsedRequest::parse(ProtocolVersion::V1, &message, 0, i64::MAX, &mut scratch);
        let label = |labels: Labels| labels.with("tenant", "a");
        let split = Split::new(&request.expect("valid"), label, &by(), 1).expect("small");
        let record = WriteRequest::decode(&split.records[0].1[..]).expect("valid").timeseries;
        assert_eq!(record, [series(&[("__name__", "rx"), ("job", "node"), ("tenant", "a")], &[(1, 1.0)])]);
    }

    #[test]
    fn a_record_proves_the_number_of_partitions() {
        let hosts = ["a:1", "a:2", "a:3"].map(|instance| {
            series(&[("__name__", "rx"), ("instance", instance), ("job", "node")], &[(1, 1.0)])
        });
        for (id, record) in split(hosts.to_vec(), 4).expect("small").records {
            assert!(is_placed(&record, id, &by(), 4));
            assert!(!is_placed(&record, (id + 1) % 4, &by(), 4));
        }
        let all = WriteRequest { timeseries: hosts.to_vec(), ..Default::default() }.encode_to_vec();
        assert!((0..4).all(|id| !is_placed(&all, id, &by(), 4)), "targets of several partitions");
        assert!(!is_placed(b"", 0, &by(), 1) && !is_placed(b"\xff", 0, &by(), 1));
    }

    #[test]
    fn a_record_has_a_limit_and_long_series_have_several() {
        let samples: Vec<(i64, f64)> = (0..50_000).map(|i| (i, 0.5)).collect();
        let long = series(&[("__name__", "rx"), ("job", "node")], &samples);
        let split = split(vec![long.clone()], 8).expect("small");
        assert!(split.records.len() > 1);
        assert!(split.records.iter().all(|(_, record)| record.len() < RECORD_BYTES + 100_000));
        let read =
            split.records.iter().flat_map(|(_, r)| WriteRequest::decode(&r[..]).expect("valid").timeseries);
        assert!(content(read) == content([long]));
    }

    #[test]
    fn a_negative_zero_stays() {
        let mut record = Vec::new();
        let labels = Labels::new([("__name__", "rx")]).expect("valid");
        encode_series(&labels, &[Sample { timestamp_ms: -1, value: -0.0 }], &mut record);
        let read = WriteRequest::decode(&record[..]).expect("valid").timeseries;
        let expected = (vec![("__name__".into(), "rx".into())], vec![(-1, (-0.0_f64).to_bits())]);
        assert_eq!(content(read), [expected].into());
    }

    #[test]
    fn labels_that_no_sidecar_watches_are_left_out() {
        let long = "x".repeat(MAX_LABEL_BYTES);
        let split = split(vec![series(&[("__name__", "rx"), ("a", &long)], &[(1, 1.0)])], 2).expect("small");
        assert!(split.records.is_empty() && split.rejections.is_empty());
        assert_eq!(split.accepted.samples, 1);
    }

    #[test]
    fn invalid_series_are_rejected_and_the_others_stay() {
        let nameless = series(&[("job", "node")], &[(1, 1.0), (2, 1.0)]);
        let split = split(vec![nameless, series(&[("__name__", "rx")], &[(1, 1.0)])], 2).expect("small");
        assert_eq!(split.rejections.count(RejectReason::Labels), 2);
        assert_eq!((split.records.len(), split.accepted.samples), (1, 1));
    }

    proptest! {
        /// The records have every sample once, bit for bit, and each target in one partition.
        #[test]
        fn nothing_is_lost(
            picks in proptest::collection::vec((0..6_u8, 0..4_u8, any::<i64>(), any::<u64>()), 0..60),
            n_partitions in 1..9_usize,
        ) {
            let sent: Vec<TimeSeries> = picks.iter().map(|(target, name, timestamp, bits)| {
                let (name, instance) = (format!("m{name}"), format!("host-{target}"));
                let labels = [("__name__", &*name), ("instance", &*instance), ("job", "node")];
                series(&labels, &[(*timestamp, f64::from_bits(*bits))])
            }).collect();
            let split = split(sent.clone(), n_partitions).expect("small");
            let mut partition_of: BTreeMap<String, i32> = BTreeMap::new();
            let mut read = Vec::new();
            for (id, record) in &split.records {
                prop_assert!((0..n_partitions as i32).contains(id));
                for series in WriteRequest::decode(&record[..]).expect("valid").timeseries {
                    let instance = series.labels.iter().find(|label| label.name == "instance").expect("a label");
                    prop_assert_eq!(*partition_of.entry(instance.value.clone()).or_insert(*id), *id);
                    read.push(series);
                }
            }
            prop_assert_eq!(content(read), content(sent));
        }
    }
}
