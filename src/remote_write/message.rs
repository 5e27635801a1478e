//! Encodes the two messages of remote write, 1.0 and 2.0.
//!
//! A message of 2.0 has each text once, and the type and help of each series; its responses count the written
//! samples. Every endpoint supports 1.0, which is the default, as Prometheus'. Messages of 1.0 include type and help
//! once a minute, as Prometheus sends them; the alternative, separate requests, has no benefit for nine names.

use crate::prom::wire::snappy;
use crate::prom::{Labels, METRIC_NAME, Sample, proto};
use bytes::Bytes;
use prost::Message as _;
use std::collections::{BTreeSet, HashMap};
use std::str::FromStr;

/// `GAUGE` of both messages' metadata.
const GAUGE: i32 = 2;

/// Series of a champion: decision, score, threshold and incident.
pub const CHAMPION_SERIES: usize = 4;
/// Series of a challenger: decision and score.
const CHALLENGER_SERIES: usize = 2;
/// Series of a contribution: share, value, expected value and its bounds.
const CONTRIBUTION_SERIES: usize = 5;
/// Most contributions of an incident that are written.
pub const MAX_CONTRIBUTIONS: usize = 3;
/// Most samples of one row: those of both models, and a value or a staleness marker for each series of its contributions
/// and of the previous row's. A request must have room for one row.
pub const MAX_SAMPLES_PER_ROW: usize =
    CHAMPION_SERIES + CHALLENGER_SERIES + 2 * MAX_CONTRIBUTIONS * CONTRIBUTION_SERIES;

/// Names and help of the output series whose names do not depend on the configuration.
pub const OUTPUT_METADATA: [(&str, &str); 9] = [
    ("anomaly_score", "Anomaly score of a row; an incident opens at anomaly_threshold"),
    ("anomaly_threshold", "Anomaly score at which an incident opens: about 1, more after incidents"),
    ("anomaly_incident", "1 during an incident, otherwise 0"),
    ("anomaly_job_incident", "1 while many groups of a job share an incident, otherwise 0"),
    ("anomaly_contribution", "Share of a feature in an incident"),
    ("anomaly_value", "Observed value of a feature in its own units, during an incident"),
    ("anomaly_expected", "Expected value of a feature at this time, during an incident"),
    ("anomaly_expected_lower", "Lower bound of the values expected at this time, during an incident"),
    ("anomaly_expected_upper", "Upper bound of the values expected at this time, during an incident"),
];

/// Help of the series of decisions, whose names begin with the name of a detector.
pub const DECISION_HELP: &str = "Decision of a detector's model in [-1, 1]; negative is an anomaly";

/// The help of an output series; `None` for the names of others.
fn metric_help(metric: &str) -> Option<&'static str> {
    let known = OUTPUT_METADATA.iter().find(|(name, _)| *name == metric).map(|(_, help)| *help);
    known.or_else(|| metric.ends_with("_anomaly").then_some(DECISION_HELP))
}

/// One series of a request. The samples ascend and are not empty.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeSeries {
    /// Labels, with the metric name.
    pub labels: Labels,
    /// The samples.
    pub samples: Vec<Sample>,
}

/// The protobuf message of requests (`protobuf_message`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProtobufMessage {
    /// `prometheus.WriteRequest`, remote write 1.0.
    #[default]
    V1,
    /// `io.prometheus.write.v2.Request`, remote write 2.0.
    V2,
}

/// A name of an unknown message.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is none of prometheus.WriteRequest, io.prometheus.write.v2.Request")]
pub struct UnknownMessage(String);

impl FromStr for ProtobufMessage {
    type Err = UnknownMessage;

    fn from_str(text: &str) -> Result<Self, UnknownMessage> {
        match text {
            "prometheus.WriteRequest" => Ok(Self::V1),
            "io.prometheus.write.v2.Request" => Ok(Self::V2),
            _ => Err(UnknownMessage(text.into())),
        }
    }
}

/// The presence of type and help in a message of 1.0. A message of 2.0 always has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metadata {
    /// One entry for each metric of the message.
    Included,
    /// No entries.
    Omitted,
}

impl ProtobufMessage {
    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::V1 => "application/x-protobuf",
            Self::V2 => "application/x-protobuf;proto=io.prometheus.write.v2.Request",
        }
    }

    /// The value of `X-Prometheus-Remote-Write-Version`.
    pub fn version(self) -> &'static str {
        match self {
            Self::V1 => "0.1.0",
            Self::V2 => "2.0.0",
        }
    }

    /// Encodes and compresses a request's body.
    pub fn encode(self, series: &[TimeSeries], metadata: Metadata) -> Bytes {
        let message = match self {
            Self::V1 => to_v1(series, metadata).encode_to_vec(),
            Self::V2 => to_v2(series).encode_to_vec(),
        };
        snappy::compress(&message).into()
    }
}

fn to_v1(series: &[TimeSeries], metadata: Metadata) -> proto::WriteRequest {
    let label = |(name, value): (&str, &str)| proto::Label { name: name.into(), value: value.into() };
    let sample = |s: &Sample| proto::Sample { value: s.value, timestamp: s.timestamp_ms };
    let timeseries = |series: &TimeSeries| proto::TimeSeries {
        labels: series.labels.iter().map(label).collect(),
        samples: series.samples.iter().map(sample).collect(),
        ..Default::default()
    };
    let names: BTreeSet<&str> = match metadata {
        Metadata::Included => series.iter().map(|series| series.labels.metric_name()).collect(),
        Metadata::Omitted => BTreeSet::new(),
    };
    let to_metadata = |name: &str| {
        let (metric_family_name, help) = (name.to_string(), metric_help(name)?.to_string());
        Some(proto::MetricMetadata { r#type: GAUGE, metric_family_name, help })
    };
    proto::WriteRequest {
        timeseries: series.iter().map(timeseries).collect(),
        metadata: names.into_iter().filter_map(to_metadata).collect(),
    }
}

/// The texts of a message, each once; the first is empty.
struct SymbolInterner<'t> {
    texts: Vec<String>,
    refs: HashMap<&'t str, u32>,
}

impl<'t> SymbolInterner<'t> {
    fn new() -> Self {
        Self { texts: vec![String::new()], refs: HashMap::from([("", 0)]) }
    }

    fn intern(&mut self, text: &'t str) -> u32 {
        *self.refs.entry(text).or_insert_with(|| {
            self.texts.push(text.into());
            (self.texts.len() - 1) as u32
        })
    }
}

fn to_v2(series: &[TimeSeries]) -> proto::v2::Request {
    let mut symbols = SymbolInterner::new();
    let mut timeseries = Vec::with_capacity(series.len());
    for TimeSeries { labels, samples } in series {
        let mut labels_refs = Vec::new();
        for (name, value) in labels.iter() {
            labels_refs.extend([symbols.intern(name), symbols.intern(value)]);
        }
        let metadata = metric_help(labels.get(METRIC_NAME)).map(|help| proto::v2::Metadata {
            r#type: GAUGE,
            help_ref: symbols.intern(help),
            unit_ref: 0,
        });
        let sample =
            |s: &Sample| proto::v2::Sample { value: s.value, timestamp: s.timestamp_ms, start_timestamp: 0 };
        let samples = samples.iter().map(sample).collect();
        timeseries.push(proto::v2::TimeSeries { labels_refs, samples, metadata, ..Default::default() });
    }
    proto::v2::Request { symbols: symbols.texts, timeseries }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, instance: &str, samples: &[(i64, f64)]) -> TimeSeries {
        let labels = Labels::new([(METRIC_NAME, name), ("instance", instance), ("job", "node")]);
        let samples =
            samples.iter().map(|(timestamp_ms, value)| Sample { timestamp_ms: *timestamp_ms, value: *value });
        TimeSeries { labels: labels.expect("valid"), samples: samples.collect() }
    }

    fn decompressed(body: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::new();
        snappy::decompress(body, 1 << 20, &mut buffer).expect("snappy").to_vec()
    }

    #[test]
    fn a_message_of_2_0_has_every_text_once_and_references_in_order() {
        let batch = [
            series("anomaly_score", "a", &[(1, 1.5), (2, f64::from_bits(crate::prom::STALE_BITS))]),
            series("anomaly_score", "node", &[(1, 2.0)]),
            series("net_anomaly", "a", &[(1, -0.1)]),
            series("foreign", "a", &[(1, 0.0)]),
        ];
        let body = ProtobufMessage::V2.encode(&batch, Metadata::Omitted);
        let request = proto::v2::Request::decode(&*decompressed(&body)).expect("a Request");
        let symbols = &request.symbols;
        assert_eq!(symbols[0], "");
        assert_eq!(symbols.iter().collect::<BTreeSet<_>>().len(), symbols.len(), "{symbols:?}");
        let mut used = BTreeSet::from([0]);
        for (sent, series) in request.timeseries.iter().zip(&batch) {
            let texts: Vec<&str> = sent.labels_refs.iter().map(|i| &*symbols[*i as usize]).collect();
            let labels: Vec<&str> = series.labels.iter().flat_map(|(name, value)| [name, value]).collect();
            assert_eq!(texts, labels);
            let bits = |value: f64| value.to_bits();
            let samples: Vec<_> = sent.samples.iter().map(|s| (s.timestamp, bits(s.value))).collect();
            let expected: Vec<_> = series.samples.iter().map(|s| (s.timestamp_ms, bits(s.value))).collect();
            assert_eq!(samples, expected);
            used.extend(&sent.labels_refs);
            match (&sent.metadata, metric_help(series.labels.metric_name())) {
                (Some(metadata), Some(help)) => {
                    assert_eq!((metadata.r#type, &*symbols[metadata.help_ref as usize]), (GAUGE, help));
                    used.insert(metadata.help_ref);
                }
                (sent, known) => assert!(sent.is_none() && known.is_none(), "{sent:?} for {known:?}"),
            }
        }
        assert_eq!(used.len(), symbols.len(), "no text without a reference");
    }

    #[test]
    fn a_message_of_1_0_includes_type_and_help_on_demand() {
        let batch = [series("anomaly_score", "a", &[(1, 1.5)]), series("anomaly_score", "b", &[(1, 1.5)])];
        let encode_metadata = |metadata| {
            let body = ProtobufMessage::V1.encode(&batch, metadata);
            proto::WriteRequest::decode(&*decompressed(&body)).expect("a WriteRequest").metadata
        };
        assert!(encode_metadata(Metadata::Omitted).is_empty());
        let [entry] = &encode_metadata(Metadata::Included)[..] else { panic!("one metric") };
        assert_eq!((&*entry.metric_family_name, entry.r#type), ("anomaly_score", GAUGE));
        assert!(!entry.help.is_empty());
    }

    #[test]
    fn message_names_are_those_of_prometheus() {
        assert_eq!("prometheus.WriteRequest".parse::<ProtobufMessage>().ok(), Some(ProtobufMessage::V1));
        assert_eq!(
            "io.prometheus.write.v2.Request".parse::<ProtobufMessage>().ok(),
            Some(ProtobufMessage::V2)
        );
        let error = "2.0".parse::<ProtobufMessage>().expect_err("no message");
        let text = r#""2.0" is none of prometheus.WriteRequest, io.prometheus.write.v2.Request"#;
        assert_eq!(error.to_string(), text);
    }
}
