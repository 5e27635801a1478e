//! Labels of series, and invalid series and parts.

use super::*;

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

/// Packed references of one and two bytes are read together with the sample, others field by field.
#[test]
fn a_series_is_the_same_in_usual_and_in_other_form() {
    let texts: Vec<String> = (1..20_000).map(|i| format!("s{i}")).collect();
    let symbols: Vec<&str> = [""].into_iter().chain(texts.iter().map(String::as_str)).collect();
    let read = |series: Vec<u8>| {
        let mut request = v2(&symbols, Vec::new());
        prost::encoding::bytes::encode(5, &series, &mut request);
        parse(ProtocolVersion::V2, &request).expect("well formed")
    };
    let samples = vec![proto::v2::Sample { value: 1.0, timestamp: 1_700_000_000_000, start_timestamp: 0 }];
    let metadata = Some(proto::v2::Metadata { r#type: 1, help_ref: 19_999, unit_ref: 0 });
    let unlabelled = proto::v2::TimeSeries { samples, metadata, ..Default::default() };
    for refs in [&[1, 2][..], &[127, 128, 7, 300], &[5, 16_383], &[16_384, 5], &[1; 128]] {
        let packed = proto::v2::TimeSeries { labels_refs: refs.to_vec(), ..unlabelled.clone() };
        let mut unpacked = Vec::new();
        refs.iter().for_each(|reference| prost::encoding::uint32::encode(1, reference, &mut unpacked));
        unlabelled.encode(&mut unpacked).expect("a vector has room");
        let (packed, unpacked) = (read(packed.encode_to_vec()), read(unpacked));
        assert_eq!((&packed.hashes, packed.counts), (&unpacked.hashes, unpacked.counts), "{refs:?}");
        assert_eq!((packed.hashes.len(), packed.rejections.is_empty()), (1, true));
        assert_eq!(packed.floats(), unpacked.floats());
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
