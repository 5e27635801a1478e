//! Native histograms: their count and sum, and those that are rejected.

use super::*;

fn histogram() -> proto::Histogram {
    proto::Histogram {
        count: Some(Count::CountInt(9)),
        sum: 12.5,
        schema: 3,
        zero_threshold: 1e-9,
        zero_count: Some(ZeroCount::ZeroCountInt(2)),
        negative_spans: vec![proto::BucketSpan { offset: -2, length: 1 }],
        negative_deltas: vec![1],
        positive_spans: vec![
            proto::BucketSpan { offset: -3, length: 2 },
            proto::BucketSpan { offset: 1, length: 1 },
        ],
        // 3, 1, 2
        positive_deltas: vec![3, -2, 1],
        timestamp: 1000,
        ..Default::default()
    }
}

fn float_histogram() -> proto::Histogram {
    proto::Histogram {
        count: Some(Count::CountFloat(9.5)),
        zero_count: Some(ZeroCount::ZeroCountFloat(2.0)),
        negative_deltas: vec![],
        negative_counts: vec![1.0],
        positive_deltas: vec![],
        positive_counts: vec![3.0, 1.0, 2.5],
        ..histogram()
    }
}

fn custom_histogram() -> proto::Histogram {
    proto::Histogram {
        count: Some(Count::CountInt(6)),
        schema: -53,
        zero_threshold: 0.0,
        zero_count: None,
        negative_spans: vec![],
        negative_deltas: vec![],
        positive_spans: vec![proto::BucketSpan { offset: 0, length: 3 }],
        custom_values: vec![1.0, 2.0],
        ..histogram()
    }
}

#[test]
fn b45_histograms_become_their_count_and_their_sum() {
    let histograms = vec![histogram(), proto::Histogram { timestamp: 2000, ..float_histogram() }];
    let series = proto::v2::TimeSeries {
        histograms: histograms.clone(),
        exemplars: vec![proto::v2::Exemplar::default()],
        ..v2_series(&[1, 2])
    };
    let v2 = v2(&["", "__name__", "rpc"], vec![series]);
    let label = proto::Label { name: "__name__".into(), value: "rpc".into() };
    let samples = vec![proto::Sample { value: 1.0, timestamp: 1 }];
    let exemplars = vec![proto::Exemplar::default()];
    let series = proto::TimeSeries { labels: vec![label], samples, exemplars, histograms };
    let v1 = proto::WriteRequest { timeseries: vec![series], metadata: Vec::new() }.encode_to_vec();
    for (version, message) in [(ProtocolVersion::V1, v1), (ProtocolVersion::V2, v2)] {
        let parse = parse(version, &message).expect("well formed");
        assert_eq!(
            parse.counts,
            RequestCounts { series: 1, samples: 1, exemplars: 1, histograms: 2, ..RequestCounts::default() }
        );
        assert_eq!(labels(version, &message).expect("valid"), ["rpc", "rpc_count", "rpc_sum"]);
        let (count, sum) = ([(1000, 9.0_f64.to_bits()), (2000, 9.5_f64.to_bits())], 12.5_f64.to_bits());
        assert_eq!(parse.histograms(), [count.to_vec(), vec![(1000, sum), (2000, sum)]]);
        assert_eq!(parse.items.iter().map(|item| item.3).collect::<Vec<_>>(), [1, 0, 0]);
        let mut hashes = parse.hashes.clone();
        hashes.dedup();
        assert_eq!(hashes.len(), 3);
    }
}

#[test]
fn a_stale_histogram_ends_both_series() {
    for count in [Count::CountInt(0), Count::CountFloat(0.0)] {
        let sum = f64::from_bits(crate::prom::STALE_BITS);
        let stale = proto::Histogram { count: Some(count), sum, timestamp: 5, ..Default::default() };
        let read = read_histogram(&stale).expect("valid");
        assert!(read.count().is_stale() && read.sum().is_stale());
        assert_eq!(read.count().timestamp_ms, 5);
    }
}

#[test]
fn b47_inconsistent_histograms_are_rejected() {
    for valid in [histogram(), float_histogram(), custom_histogram(), proto::Histogram::default()] {
        read_histogram(&valid).expect("valid");
    }
    // A NaN observation is counted and is in no bucket.
    let nan = proto::Histogram { sum: f64::NAN, count: Some(Count::CountInt(10)), ..histogram() };
    read_histogram(&nan).expect("valid");
    let span = |offset, length| proto::BucketSpan { offset, length };
    let (integer, float, custom) = (histogram, float_histogram, custom_histogram);
    for (bad, text) in [
        (
            proto::Histogram { count: Some(Count::CountInt(8)), ..integer() },
            "a histogram counts 8 observations, and 9 are in its buckets",
        ),
        (
            proto::Histogram { count: Some(Count::CountInt(10)), ..integer() },
            "a histogram counts 10 observations, and 9 are in its buckets",
        ),
        (
            proto::Histogram { sum: f64::NAN, count: Some(Count::CountInt(8)), ..integer() },
            "a histogram counts 8 observations, and 9 are in its buckets",
        ),
        (proto::Histogram { schema: 99, ..integer() }, "a histogram has the unknown schema 99"),
        (proto::Histogram { schema: -10, ..integer() }, "a histogram has the unknown schema -10"),
        (
            proto::Histogram { positive_deltas: vec![3, -2], ..integer() },
            "the positive spans of a histogram have 3 buckets, and there are 2",
        ),
        (
            proto::Histogram { negative_spans: vec![], ..integer() },
            "the negative spans of a histogram have 0 buckets, and there are 1",
        ),
        (
            proto::Histogram { positive_spans: vec![span(0, 2), span(-1, 1)], ..integer() },
            "a span of a histogram has offset -1 after another one",
        ),
        (
            proto::Histogram { positive_deltas: vec![3, -4, 1], ..integer() },
            "a positive bucket of a histogram has less than 0 observations",
        ),
        (
            proto::Histogram { negative_deltas: vec![i64::MIN], ..integer() },
            "a negative bucket of a histogram has less than 0 observations",
        ),
        (
            proto::Histogram { positive_counts: vec![3.0, -1.0, 2.0], ..float() },
            "a positive bucket of a histogram has less than 0 observations",
        ),
        (
            proto::Histogram { count: Some(Count::CountFloat(-1.0)), ..float() },
            "a histogram of schema 3 has a count below 0",
        ),
        (
            proto::Histogram { custom_values: vec![1.0], ..integer() },
            "a histogram of schema 3 has custom bounds",
        ),
        (
            proto::Histogram { zero_count: Some(ZeroCount::ZeroCountInt(1)), ..custom() },
            "a histogram of schema -53 has a bucket of zero",
        ),
        (
            proto::Histogram { negative_spans: vec![span(0, 0)], ..custom() },
            "a histogram of schema -53 has negative buckets",
        ),
        (
            proto::Histogram { custom_values: vec![2.0, 2.0], ..custom() },
            "the custom bounds of a histogram do not ascend, or are not finite",
        ),
        (
            proto::Histogram { custom_values: vec![1.0, f64::INFINITY], ..custom() },
            "the custom bounds of a histogram do not ascend, or are not finite",
        ),
        (
            proto::Histogram { custom_values: vec![1.0], ..custom() },
            "a histogram has 3 buckets for 1 custom bounds",
        ),
    ] {
        assert_eq!(read_histogram(&bad).expect_err(text).to_string(), text);
        let series = proto::v2::TimeSeries { histograms: vec![bad, integer()], ..v2_series(&[1, 2]) };
        let parse =
            parse(ProtocolVersion::V2, &v2(&["", "__name__", "h"], vec![series])).expect("well formed");
        assert_eq!(parse.rejections.to_string(), format!("1 invalid_histogram; for example: {text}"));
        assert_eq!(
            parse.histograms().iter().map(Vec::len).collect::<Vec<_>>(),
            [1, 1],
            "the valid one is kept"
        );
    }
}
