//! Frames of the streamed format, and their chunks.

use super::*;

/// Names, timestamps and values.
fn to_tuples(series: Vec<SeriesSamples>) -> Vec<(String, Vec<(i64, f64)>)> {
    let pairs = |samples: Vec<Sample>| samples.iter().map(|s| (s.timestamp_ms, s.value)).collect();
    series.into_iter().map(|(labels, samples)| (labels.to_string(), pairs(samples))).collect()
}

#[test]
fn a_series_may_span_frames_and_the_test_vector_of_the_format_is_decoded() {
    let vector = "488405cc620a460a0f0a085f5f6e616d655f5f12036370750a080a036a6f6212016e12290880d095ffbc3110b0ba97ff\
                  bc3118012217000380a0abfef9623ff00000000000009875c25fff6c06";
    let digit = |at| u8::from_str_radix(&vector[at..at + 2], 16).expect("two digits");
    let stream: Vec<u8> = (0..vector.len()).step_by(2).map(digit).collect();
    let start = 1_700_000_000_000;
    let series = to_tuples(decode_stream(&stream, 0, i64::MAX).expect("a frame"));
    let samples = vec![(start, 1.0), (start + 15_000, 2.0), (start + 30_000, 3.0)];
    assert_eq!(series, [(r#"cpu{job="n"}"#.to_string(), samples)]);

    let stream = [
        framed(0, &[("a", vec![chunk(1, &[(1, 1.0)])])]),
        framed(0, &[("a", vec![chunk(1, &[(2, 2.0)]), chunk(1, &[(3, 3.0)])])]),
        framed(0, &[("b", vec![chunk(1, &[(1, 4.0)])])]),
        framed(0, &[("a", vec![chunk(1, &[(4, 5.0)])])]),
    ];
    let a = vec![(1, 1.0), (2, 2.0), (3, 3.0), (4, 5.0)];
    let series = to_tuples(decode_stream(&stream.concat(), 0, 10).expect("frames"));
    assert_eq!(series, [("a".to_string(), a), ("b".to_string(), vec![(1, 4.0)])]);
}

#[test]
fn b58_b59_frames_without_a_series_and_with_two() {
    let one = |value| vec![chunk(1, &[(1, value)])];
    let stream = [frame(b""), framed(0, &[]), framed(0, &[("a", one(1.0)), ("b", one(2.0))])].concat();
    let series = to_tuples(decode_stream(&stream, 0, 10).expect("frames"));
    assert_eq!(series, [("a".to_string(), vec![(1, 1.0)]), ("b".to_string(), vec![(1, 2.0)])]);
}

#[test]
fn b60_a_frame_for_another_query_is_rejected() {
    for query_index in [1, -1, i64::MAX] {
        let stream = [framed(0, &[]), framed(query_index, &[("a", Vec::new())])].concat();
        let error = decode_stream(&stream, 0, 10).expect_err("another query");
        assert!(matches!(error, Error::QueryIndex { query_index: found } if found == query_index), "{error}");
    }
}

#[test]
fn b61_histograms_are_skipped_and_counted_and_other_encodings_are_errors() {
    let mut collector = ResponseCollector::new(0, 10);
    let mixed = vec![chunk(2, &[]), chunk(1, &[(1, 1.0)]), chunk(3, &[]), chunk(5, &[]), chunk(6, &[])];
    collector.push_frame(&message(0, &[("a", mixed)])).expect("a frame");
    assert_eq!(skipped_count(&collector, "histogram"), 4);
    assert_eq!(to_tuples(collector.finish()), [("a".to_string(), vec![(1, 1.0)])]);
    for encoding in [0, 4, 7, -1] {
        let error = decode_stream(&framed(0, &[("a", vec![chunk(encoding, &[(1, 1.0)])])]), 0, 10);
        assert!(
            matches!(error, Err(Error::Encoding { encoding: found }) if found == i64::from(encoding)),
            "{encoding}"
        );
    }
}

#[test]
fn b62_b65_a_bad_chunk_or_label_set_is_an_error() {
    let mut truncated = chunk(1, &[(1, 1.0), (2, 2.0)]);
    truncated.data.pop();
    let error = decode_stream(&framed(0, &[("a", vec![truncated])]), 0, 10).expect_err("a sample is missing");
    assert!(matches!(error, Error::Chunk(xor::Error::Truncated { .. })), "{error}");
    let labels = vec![label("__name__", "up"), label("a", "1"), label("a", "2")];
    let series = proto::ChunkedSeries { labels, chunks: Vec::new() };
    let message = proto::ChunkedReadResponse { chunked_series: vec![series], query_index: 0 };
    let error = decode_stream(&frame(&message.encode_to_vec()), 0, 10).expect_err("a twice");
    assert_eq!(crate::error::chain(&error), "history: an invalid series: label name \"a\" is not unique");
}

#[test]
fn b63_chunks_are_clipped_and_merged_and_the_first_of_two_samples_stays() {
    let chunks = vec![
        chunk(1, &[(30, 1.0), (40, 1.0), (50, 1.0)]),
        chunk(1, &[(5, 2.0), (20, 2.0), (40, 2.0), (45, 2.0)]),
        chunk(1, &[(50, 3.0), (10, 3.0), (61, 3.0)]),
        chunk(1, &[(100, 4.0)]),
    ];
    let other = vec![chunk(1, &[(1, 1.0), (61, 1.0)])];
    let series = decode_stream(&framed(0, &[("a", chunks), ("outside", other)]), 10, 60).expect("a frame");
    let samples = vec![(10, 3.0), (20, 2.0), (30, 1.0), (40, 1.0), (45, 2.0), (50, 1.0)];
    assert_eq!(to_tuples(series), [("a".to_string(), samples)]);
}

#[test]
fn invalid_series_are_skipped_and_counted() {
    let long = "x".repeat(20_000);
    let mut collector = ResponseCollector::new(0, 10);
    for name in [&long, "up"] {
        collector.push_frame(&message(0, &[(name, vec![chunk(1, &[(1, 1.0)])])])).expect("a frame");
    }
    assert_eq!(skipped_count(&collector, "invalid_series"), 1);
    assert_eq!(to_tuples(collector.finish()), [("up".to_string(), vec![(1, 1.0)])]);
}

#[test]
fn b67_a_slice_with_too_many_series_or_samples_is_too_large() {
    // Series of two bytes, sixteen million of them.
    let mut result = Vec::new();
    prost::encoding::encode_key(1, prost::encoding::WireType::LengthDelimited, &mut result);
    prost::encoding::encode_varint(16 << 20, &mut result);
    result.extend([0x0a, 0x00].repeat(8 << 20));
    assert!(decode(&result, 0, 10).expect_err("series").is_too_large());

    let flat: Vec<(i64, f64)> = (0..60_000).map(|i| (i, 1.0)).collect();
    let chunks = vec![chunk(1, &flat); 10];
    let mut collector = ResponseCollector::new(0, i64::MAX);
    let message = message(0, &[("a", chunks)]);
    let mut n_accepted = 0;
    let error = loop {
        match collector.push_frame(&message) {
            Ok(()) => n_accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_too_large(), "{error}");
    assert_eq!(n_accepted, collector::SAMPLE_LIMIT / 600_000);
}
