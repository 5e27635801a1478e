//! Captured responses of Prometheus in both formats.

use super::*;

/// A captured response of Prometheus in both formats.
fn captured_responses(name: &str) -> [Vec<SeriesSamples>; 2] {
    let samples = decompressed(&capture(&format!("{name}.samples.response.bin")));
    let stream = capture(&format!("{name}.stream.response.bin"));
    [
        decode(&samples, i64::MIN, i64::MAX).expect("valid"),
        decode_stream(&stream, i64::MIN, i64::MAX).expect("valid"),
    ]
}

#[test]
fn decodes_responses_of_prometheus() {
    for series in captured_responses("netdev-rx") {
        assert_eq!(series.len(), 5);
        assert_eq!(compare(&series, "netdev-rx.expected.csv"), []);
    }
}

#[test]
fn keeps_gaps_and_staleness_markers() {
    for series in captured_responses("go-heap-gap") {
        assert_eq!(series.len(), 7);
        let markers = compare(&series, "go-heap-gap.expected.csv");
        assert_eq!(markers.len(), 2, "{markers:?}");
        assert_eq!(markers[0].1, markers[1].1, "both series end with their target");
        // The markers are at the start of a gap of at least the 17 s for which the target was down.
        for (labels, samples) in &series {
            let Some(i) = samples.iter().position(Sample::is_stale) else { continue };
            let gap_ms = samples[i + 1].timestamp_ms - samples[i - 1].timestamp_ms;
            assert!(gap_ms >= 17_000, "{labels}: {gap_ms}");
        }
    }
}

#[test]
fn clips_to_the_range() {
    let message = decompressed(&capture("netdev-rx.samples.response.bin"));
    let all = decode(&message, i64::MIN, i64::MAX).expect("valid");
    let (first, last) = (all[0].1[10], all[0].1[20]);
    let clipped = decode(&message, first.timestamp_ms, last.timestamp_ms).expect("valid");
    assert_eq!(clipped[0].1, all[0].1[10..=20], "both ends are inside");
}
