use super::*;
use crate::prom::proto;
use proptest::prelude::*;
use prost::Message;

fn visited(message: &[u8]) -> Result<(Vec<proto::TimeSeries>, Counts), Malformed> {
    let mut all = Vec::new();
    let mut bad_label = None;
    let counts = visit(message, &mut Scratch::default(), |series| {
        let mut labels = Vec::new();
        let mut fields = Reader::new(series.label_bytes);
        while !fields.is_empty() {
            fields.key().expect("a label field");
            match label_pair(fields.bytes().expect("a label")) {
                Ok((name, value)) => labels.push(proto::Label { name: name.into(), value: value.into() }),
                Err(InvalidSeries::Malformed(error)) => bad_label = Some(error),
                Err(error) => panic!("{error}"),
            }
        }
        let samples = series
            .samples
            .iter()
            .map(|s| proto::Sample { value: s.value, timestamp: s.timestamp_ms })
            .collect();
        all.push(proto::TimeSeries { labels, samples, ..Default::default() });
    })?;
    bad_label.map_or(Ok((all, counts)), Err)
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex")).collect()
}

/// `cpu{job="n"}` 1.5 at 1700000000000 and a staleness marker 15 s later.
const VECTOR: &str = "0a3f0a0f0a085f5f6e616d655f5f12036370750a080a036a6f6212016e121009000000000000f83f1080d095ffbc31121009020000000000f07f1098c596ffbc31";

#[test]
fn visits_a_request() {
    let mut seen = 0;
    visit(&hex(VECTOR), &mut Scratch::default(), |series| {
        seen += 1;
        assert_eq!(series.labels().expect("valid").to_string(), r#"cpu{job="n"}"#);
        assert_eq!(series.samples[0], Sample { timestamp_ms: 1_700_000_000_000, value: 1.5 });
        assert!(series.samples[1].is_stale());
    })
    .expect("well formed");
    assert_eq!(seen, 1);
    assert_eq!(visit(&[], &mut Scratch::default(), |_| {}), Ok(Counts::default()));
}

#[test]
fn every_cut_is_an_error_or_a_shorter_message() {
    let message = hex(VECTOR);
    for end in 1..message.len() {
        assert!(visited(&message[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn refuses_what_is_no_request() {
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
    ] {
        assert_eq!(visited(&hex(&bytes.replace(' ', ""))).expect_err(bytes), expected, "{bytes}");
    }
    let empty_series = [0x0a, 0x00].repeat(MAX_SERIES + 1);
    assert_eq!(
        visited(&empty_series).expect_err("too many"),
        Malformed::TooMany { what: "series", limit: MAX_SERIES }
    );
}

#[test]
fn unknown_fields_are_skipped() {
    // field 99 as varint, fixed64, bytes and fixed32 before the vector
    let mut message = hex("98060199060000000000000000 9a0601ff9d0600000000".replace(' ', "").as_str());
    message.extend(hex(VECTOR));
    let (skipped, _) = visited(&message).expect("well formed");
    let (plain, _) = visited(&hex(VECTOR)).expect("well formed");
    assert_eq!(bytes(&skipped), bytes(&plain));
}

#[test]
fn labels_apart_from_each_other_are_gathered() {
    let message = hex(VECTOR);
    let series = &message[2..];
    let (name, job, samples) = (&series[..17], &series[17..27], &series[27..]);
    let mixed = [job, samples, name].concat();
    let request = [&[0x0a, mixed.len() as u8], &mixed[..]].concat();
    visit(&request, &mut Scratch::default(), |series| {
        assert_eq!(series.labels().expect("valid").to_string(), r#"cpu{job="n"}"#);
        assert_eq!(series.samples.len(), 2);
    })
    .expect("well formed");
}

#[test]
fn invalid_series_are_named() {
    let label = |name: &[u8], value: &[u8]| {
        let varint = |n: usize| if n < 128 { vec![n as u8] } else { vec![n as u8 | 0x80, (n >> 7) as u8] };
        let inner = [&[0x0a][..], &varint(name.len()), name, &[0x12], &varint(value.len()), value].concat();
        [&[0x0a][..], &varint(inner.len()), &inner].concat()
    };
    let name = label(b"__name__", b"up");
    let many = label(b"a", b"b").repeat(65);
    for (label_bytes, message) in [
        ([name.clone(), label(b"a", b"1"), label(b"a", b"2")].concat(), "label name \"a\" is not unique"),
        ([name.clone(), label(b"", b"1")].concat(), "a label has an empty name (its value is \"1\")"),
        ([name.clone(), label(b"a", b"\xff")].concat(), "a label name or value is not UTF-8: \"\u{fffd}\""),
        (label(b"job", b"n"), "series {job=\"n\"} has no metric name"),
        (label(b"__name__", b""), "series {} has no metric name"),
        (many, "the series has 65 labels, above the limit of 64"),
        (
            label(&[b'x'; 1025], b"1"),
            "the label name \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"... has 1025 bytes, above the limit of 1024",
        ),
    ] {
        let series = Series { label_bytes: &label_bytes, samples: &[] };
        assert_eq!(series.labels().expect_err(message).to_string(), message);
    }
}

fn any_request() -> impl Strategy<Value = proto::WriteRequest> {
    let label = ("[a-z_]{0,6}", "\\PC{0,9}").prop_map(|(name, value)| proto::Label { name, value });
    let sample = (any::<u64>(), any::<i64>())
        .prop_map(|(bits, timestamp)| proto::Sample { value: f64::from_bits(bits), timestamp });
    let series = (prop::collection::vec(label, 0..5), prop::collection::vec(sample, 0..4))
        .prop_map(|(labels, samples)| proto::TimeSeries { labels, samples, ..Default::default() });
    let metadata = (0..9_i32, "[a-z]{0,4}", "[a-z]{0,4}").prop_map(|(r#type, metric_family_name, help)| {
        proto::MetricMetadata { r#type, metric_family_name, help }
    });
    (prop::collection::vec(series, 0..5), prop::collection::vec(metadata, 0..3))
        .prop_map(|(timeseries, metadata)| proto::WriteRequest { timeseries, metadata })
}

/// NaN payloads included: compare encoded bytes.
fn bytes(series: &[proto::TimeSeries]) -> Vec<u8> {
    proto::WriteRequest { timeseries: series.to_vec(), metadata: Vec::new() }.encode_to_vec()
}

proptest! {
    #[test]
    fn equals_prost_on_any_message(request in any_request()) {
        let (series, counts) = visited(&request.encode_to_vec()).expect("well formed");
        prop_assert_eq!(bytes(&series), bytes(&request.timeseries));
        prop_assert_eq!(counts.series, request.timeseries.len());
        prop_assert_eq!(counts.metadata, request.metadata.len());
    }

    /// Whatever prost reads in a damaged message, the visit reads too; and nothing panics.
    #[test]
    fn equals_prost_on_damaged_messages(
        request in any_request(),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut message = request.encode_to_vec();
        for (index, byte) in cuts {
            if !message.is_empty() {
                let at = index.index(message.len());
                message[at] = byte;
            }
        }
        // prost skips groups, which proto3 does not have: the visit refuses them.
        if let Ok(oracle) = proto::WriteRequest::decode(&message[..])
            && let Ok((series, counts)) = visited(&message)
        {
            prop_assert_eq!(counts.series, oracle.timeseries.len());
            prop_assert_eq!(bytes(&series), bytes(&oracle.timeseries));
        }
    }

    #[test]
    fn survives_any_bytes(message in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = visit(&message, &mut Scratch::default(), |series| { let _ = series.labels(); });
    }
}
