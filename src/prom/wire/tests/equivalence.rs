//! The parser against prost on random, damaged and arbitrary messages.

use super::*;

/// Reference implementation of the validation, on the message of prost.
fn is_valid(h: &proto::Histogram) -> bool {
    let is_float = matches!(h.count, Some(Count::CountFloat(_)));
    let side = |spans: &[proto::BucketSpan], deltas: &[i64], counts: &[f64]| {
        let announced: u64 = spans.iter().map(|span| u64::from(span.length)).sum();
        let buckets = if is_float { counts.len() } else { deltas.len() } as u64;
        let offsets = spans.iter().skip(1).all(|span| span.offset >= 0);
        let mut last = 0_i64;
        let (mut sum, mut ok) = (0_u128, true);
        for delta in deltas {
            match last.checked_add(*delta) {
                Some(next) if next >= 0 => {
                    last = next;
                    sum += next as u128;
                }
                _ => ok = false,
            }
        }
        ok &= counts.iter().all(|count| count.is_nan() || *count >= 0.0);
        (announced == buckets && offsets && ok, sum)
    };
    let (positive, above) = side(&h.positive_spans, &h.positive_deltas, &h.positive_counts);
    let (negative, below) = side(&h.negative_spans, &h.negative_deltas, &h.negative_counts);
    let (zero_int, zero_float) = match h.zero_count {
        Some(ZeroCount::ZeroCountInt(n)) => (n, 0.0),
        Some(ZeroCount::ZeroCountFloat(n)) => (0, n),
        None => (0, 0.0),
    };
    let schema = if h.schema == -53 {
        let bounds = h.custom_values.windows(2).all(|pair| pair[0] < pair[1])
            && h.custom_values.iter().all(|bound| bound.is_finite());
        let reach: i64 =
            h.positive_spans.iter().map(|s| i64::from(s.length) + i64::from(s.offset).max(0)).sum();
        let nothing_below =
            h.negative_spans.is_empty() && h.negative_deltas.is_empty() && h.negative_counts.is_empty();
        bounds
            && reach <= h.custom_values.len() as i64 + 1
            && nothing_below
            && h.zero_threshold == 0.0
            && zero_int == 0
            && zero_float == 0.0
    } else {
        (-9..=52).contains(&h.schema) && h.custom_values.is_empty()
    };
    let counts = match h.count {
        Some(Count::CountFloat(count)) => count >= 0.0 && zero_int == 0 && zero_float >= 0.0,
        Some(Count::CountInt(_)) | None => {
            let count = if let Some(Count::CountInt(count)) = h.count { count } else { 0 };
            let buckets = above + below + u128::from(zero_int);
            zero_float == 0.0
                && if h.sum.is_nan() { buckets <= count.into() } else { buckets == count.into() }
        }
    };
    schema && positive && negative && counts
}

fn any_histogram() -> impl Strategy<Value = proto::Histogram> {
    let spans = || prop::collection::vec((-2..4_i32, 0..3_u32), 0..3);
    let deltas = || prop::collection::vec(-1..4_i64, 0..4);
    let counts =
        || prop::collection::vec(prop_oneof![Just(0.0), Just(2.5), Just(-1.0), Just(f64::NAN)], 0..3);
    let number = prop_oneof![(0..8_u64).prop_map(Ok), prop_oneof![Just(3.0), Just(-1.0)].prop_map(Err)];
    let zero = prop_oneof![
        Just(None),
        (0..3_u64).prop_map(|n| Some(ZeroCount::ZeroCountInt(n))),
        prop_oneof![Just(0.0), Just(1.0), Just(-1.0)].prop_map(|n| Some(ZeroCount::ZeroCountFloat(n)))
    ];
    let custom =
        prop::collection::vec(prop_oneof![Just(1.0), Just(2.0), Just(3.0), Just(f64::INFINITY)], 0..4);
    let schema = prop_oneof![Just(0), Just(52), Just(-53), Just(-60)];
    let sum = prop_oneof![Just(1.0), Just(f64::NAN), Just(f64::from_bits(crate::prom::STALE_BITS))];
    // Half of the histograms have a count that equals the sum of their buckets.
    (
        number,
        any::<bool>(),
        sum,
        schema,
        zero,
        (spans(), deltas(), counts()),
        (spans(), deltas(), counts()),
        custom,
    )
        .prop_map(|(number, fit, sum, schema, zero_count, below, above, custom_values)| {
            let span = |(offset, length): &(i32, u32)| proto::BucketSpan { offset: *offset, length: *length };
            let total = |deltas: &[i64]| {
                let running = deltas.iter().scan(0, |last, delta| {
                    *last += delta;
                    Some(*last)
                });
                running.sum::<i64>().max(0) as u64
            };
            let zero = if let Some(ZeroCount::ZeroCountInt(n)) = zero_count { n } else { 0 };
            let fitting = total(&below.1) + total(&above.1) + zero;
            let count = match number {
                Ok(n) => Count::CountInt(if fit { fitting } else { n }),
                Err(n) => Count::CountFloat(n),
            };
            let fit_spans = |(spans, deltas, counts): &(Vec<(i32, u32)>, Vec<i64>, Vec<f64>)| {
                if !fit {
                    return spans.iter().map(span).collect();
                }
                let length = if matches!(count, Count::CountInt(_)) { deltas.len() } else { counts.len() };
                if length == 0 {
                    Vec::new()
                } else {
                    vec![proto::BucketSpan { offset: 0, length: length as u32 }]
                }
            };
            proto::Histogram {
                count: Some(count),
                sum,
                schema,
                zero_count,
                negative_spans: fit_spans(&below),
                negative_deltas: below.1,
                negative_counts: below.2,
                positive_spans: fit_spans(&above),
                positive_deltas: above.1,
                positive_counts: above.2,
                timestamp: 7,
                custom_values,
                ..Default::default()
            }
        })
}

fn any_sample() -> impl Strategy<Value = (f64, i64)> {
    // Around the bounds of a varint of six bytes, as the times of today have.
    let timestamp = prop_oneof![any::<i64>(), (1_i64 << 34)..(1 << 43)];
    (any::<u64>(), timestamp).prop_map(|(bits, timestamp)| (f64::from_bits(bits), timestamp))
}

fn any_v1() -> impl Strategy<Value = proto::WriteRequest> {
    let label = ("[a-z_]{0,6}", "\\PC{0,9}").prop_map(|(name, value)| proto::Label { name, value });
    let sample = any_sample().prop_map(|(value, timestamp)| proto::Sample { value, timestamp });
    let labels = || prop::collection::vec(label.clone(), 0..5);
    let exemplar = (labels(), any_sample()).prop_map(|(labels, (value, timestamp))| proto::Exemplar {
        labels,
        value,
        timestamp,
    });
    let series = (
        labels(),
        prop::collection::vec(sample, 0..4),
        prop::collection::vec(exemplar, 0..2),
        prop::collection::vec(any_histogram(), 0..3),
    )
        .prop_map(|(labels, samples, exemplars, histograms)| proto::TimeSeries {
            labels,
            samples,
            exemplars,
            histograms,
        });
    let metadata = (0..9_i32, "[a-z]{0,4}", "[a-z]{0,4}").prop_map(|(r#type, metric_family_name, help)| {
        proto::MetricMetadata { r#type, metric_family_name, help }
    });
    (prop::collection::vec(series, 0..5), prop::collection::vec(metadata, 0..3))
        .prop_map(|(timeseries, metadata)| proto::WriteRequest { timeseries, metadata })
}

fn any_v2() -> impl Strategy<Value = proto::v2::Request> {
    let refs = || prop::collection::vec(prop_oneof![9 => 0..6_u32, 1 => any::<u32>()], 0..7);
    let start_timestamp = prop_oneof![Just(0), any::<i64>()];
    let sample = (any_sample(), start_timestamp).prop_map(|((value, timestamp), start_timestamp)| {
        proto::v2::Sample { value, timestamp, start_timestamp }
    });
    let exemplar = (refs(), any_sample()).prop_map(|(labels_refs, (value, timestamp))| proto::v2::Exemplar {
        labels_refs,
        value,
        timestamp,
    });
    let metadata = prop::option::of(
        (0..9_i32, 0..8_u32, 0..8_u32).prop_map(|(r#type, help_ref, unit_ref)| proto::v2::Metadata {
            r#type,
            help_ref,
            unit_ref,
        }),
    );
    let series =
        (
            refs(),
            prop::collection::vec(sample, 0..4),
            prop::collection::vec(any_histogram(), 0..3),
            prop::collection::vec(exemplar, 0..3),
            metadata,
        )
            .prop_map(|(labels_refs, samples, histograms, exemplars, metadata)| {
                proto::v2::TimeSeries { labels_refs, samples, histograms, exemplars, metadata }
            });
    (prop::collection::vec("\\PC{0,9}", 4..6), prop::collection::vec(series, 0..5)).prop_map(
        |(mut symbols, timeseries)| {
            symbols.insert(0, String::new());
            proto::v2::Request { symbols, timeseries }
        },
    )
}

fn bits(value: f64, timestamp: i64) -> (i64, u64) {
    (timestamp, value.to_bits())
}

/// Counts, then sums, of the valid histograms of each series that has any.
fn expected_histograms<'a>(all: impl Iterator<Item = &'a Vec<proto::Histogram>>) -> Vec<Vec<(i64, u64)>> {
    let mut expected = Vec::new();
    for histograms in all {
        let valid: Vec<_> = histograms.iter().filter(|h| is_valid(h)).collect();
        if valid.is_empty() {
            continue;
        }
        let count = |h: &&proto::Histogram| match h.count {
            _ if h.sum.to_bits() == crate::prom::STALE_BITS => f64::from_bits(crate::prom::STALE_BITS),
            Some(Count::CountFloat(count)) => count,
            Some(Count::CountInt(count)) => count as f64,
            None => 0.0,
        };
        expected.push(valid.iter().map(|h| bits(count(h), h.timestamp)).collect());
        expected.push(valid.iter().map(|h| bits(h.sum, h.timestamp)).collect());
    }
    expected
}

fn check_v1(read: &ParsedMessage, request: &proto::WriteRequest) -> Result<(), TestCaseError> {
    let with_samples = request.timeseries.iter().filter(|series| !series.samples.is_empty());
    let expected: Vec<(Pairs, Vec<_>)> = with_samples
        .map(|series| {
            let labels =
                series.labels.iter().map(|label| (label.name.clone(), label.value.clone())).collect();
            (labels, series.samples.iter().map(|s| bits(s.value, s.timestamp)).collect())
        })
        .collect();
    prop_assert_eq!(read.floats(), expected);
    prop_assert_eq!(read.histograms(), expected_histograms(request.timeseries.iter().map(|s| &s.histograms)));
    let n_histograms: usize = request.timeseries.iter().map(|s| s.histograms.len()).sum();
    let invalid = request.timeseries.iter().flat_map(|s| &s.histograms).filter(|h| !is_valid(h)).count();
    prop_assert_eq!(read.rejections.count(RejectReason::Histogram), invalid);
    prop_assert_eq!(read.counts.series, request.timeseries.len());
    prop_assert_eq!(read.counts.histograms, n_histograms);
    prop_assert_eq!(
        read.counts.exemplars,
        request.timeseries.iter().map(|s| s.exemplars.len()).sum::<usize>()
    );
    prop_assert_eq!(read.counts.metadata, request.metadata.len());
    Ok(())
}

fn check_v2(read: &ParsedMessage, request: &proto::v2::Request) -> Result<(), TestCaseError> {
    let n = request.symbols.len();
    let in_range = |refs: &[u32]| refs.len().is_multiple_of(2) && refs.iter().all(|r| (*r as usize) < n);
    let valid: Vec<_> = request.timeseries.iter().filter(|series| in_range(&series.labels_refs)).collect();
    let pairs = |refs: &[u32]| -> Pairs {
        let text = |reference: u32| request.symbols[reference as usize].clone();
        refs.chunks(2).map(|pair| (text(pair[0]), text(pair[1]))).collect()
    };
    let with_samples = valid.iter().filter(|series| !series.samples.is_empty());
    let expected: Vec<(Pairs, Vec<_>)> = with_samples
        .map(|s| (pairs(&s.labels_refs), s.samples.iter().map(|s| bits(s.value, s.timestamp)).collect()))
        .collect();
    prop_assert_eq!(read.floats(), expected);
    prop_assert_eq!(read.histograms(), expected_histograms(valid.iter().map(|s| &s.histograms)));
    let is_empty = |s: &&proto::v2::TimeSeries| {
        s.samples.is_empty() && s.histograms.is_empty() && s.exemplars.is_empty()
    };
    prop_assert_eq!(
        read.rejections.count(RejectReason::NoSamples),
        request.timeseries.iter().filter(is_empty).count()
    );
    let exemplars = || request.timeseries.iter().flat_map(|s| &s.exemplars);
    prop_assert_eq!(read.counts.exemplars, exemplars().count());
    let bad = exemplars().filter(|e| !in_range(&e.labels_refs)).count();
    prop_assert_eq!(read.rejections.count(RejectReason::Exemplar), bad);
    let metadata = || request.timeseries.iter().filter_map(|s| s.metadata.as_ref());
    prop_assert!(read.counts.metadata >= metadata().count());
    let bad = metadata().filter(|m| m.help_ref.max(m.unit_ref) as usize >= n).count();
    prop_assert!(read.rejections.count(RejectReason::Metadata) >= bad);
    Ok(())
}

fn corrupt(message: &mut [u8], edits: Vec<(prop::sample::Index, u8)>) {
    for (index, byte) in edits {
        if !message.is_empty() {
            let at = index.index(message.len());
            message[at] = byte;
        }
    }
}

fn any_edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)
}

proptest! {
    #[test]
    fn v1_equals_prost_on_any_message(request in any_v1()) {
        check_v1(&parse(ProtocolVersion::V1, &request.encode_to_vec()).expect("well formed"), &request)?;
    }

    #[test]
    fn v2_equals_prost_on_any_message(request in any_v2()) {
        check_v2(&parse(ProtocolVersion::V2, &request.encode_to_vec()).expect("well formed"), &request)?;
    }

    /// A damaged message that both decoders accept has the same contents in both, and none panics. Prost skips groups,
    /// which proto3 does not have; this decoder rejects them.
    #[test]
    fn v1_equals_prost_on_damaged_messages(request in any_v1(), edits in any_edits()) {
        let mut message = request.encode_to_vec();
        corrupt(&mut message, edits);
        if let Ok(oracle) = proto::WriteRequest::decode(&message[..])
            && let Ok(read) = parse(ProtocolVersion::V1, &message)
            && read.items.iter().all(|(_, labels, ..)| labels.is_ok())
        {
            check_v1(&read, &oracle)?;
        }
    }

    #[test]
    fn v2_equals_prost_on_damaged_messages(request in any_v2(), edits in any_edits()) {
        let mut message = request.encode_to_vec();
        corrupt(&mut message, edits);
        if let Ok(oracle) = proto::v2::Request::decode(&message[..])
            && let Ok(read) = parse(ProtocolVersion::V2, &message)
            && read.items.iter().all(|(_, labels, ..)| labels.is_ok())
        {
            check_v2(&read, &oracle)?;
        }
    }

    #[test]
    fn a_histogram_is_valid_when_the_prost_message_is(histogram in any_histogram()) {
        prop_assert_eq!(read_histogram(&histogram).is_ok(), is_valid(&histogram));
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(message in prop::collection::vec(any::<u8>(), 0..200)) {
        for version in [ProtocolVersion::V1, ProtocolVersion::V2] {
            let _ = labels(version, &message);
            let _ = labels(version, &[&[0x22, 0, 0x2a, 0x80, 0x01][..], &message].concat());
        }
    }
}
