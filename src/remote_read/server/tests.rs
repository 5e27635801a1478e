use super::*;
use crate::prom::proto::{
    ChunkedReadResponse, LabelMatcher, Query as ProtoQuery, ReadRequest, ReadResponse, TimeSeries,
};
use crate::prom::{Labels, Sample};
use crate::remote_read::xor;
use bytes::Buf;
use http_body_util::BodyExt;
use proptest::prelude::*;
use prost::Message;

struct FakeSeries {
    labels: Labels,
    samples: Vec<Sample>,
}

impl ReadableSeries for FakeSeries {
    fn labels(&self) -> &Labels {
        &self.labels
    }

    fn append_samples(&self, out: &mut Vec<Sample>) {
        out.extend(&self.samples);
    }
}

fn fake_series(name: &str, samples: impl IntoIterator<Item = (i64, f64)>) -> FakeSeries {
    let samples = samples.into_iter().map(|(timestamp_ms, value)| Sample { timestamp_ms, value });
    FakeSeries {
        labels: Labels::new([("__name__", name), ("job", "a")]).expect("valid"),
        samples: samples.collect(),
    }
}

/// A decoded response of either format: for each query its series.
type DecodedResults = Vec<Vec<(Labels, Vec<Sample>)>>;

fn to_labels(labels: Vec<crate::prom::proto::Label>) -> Labels {
    let pairs: Vec<(String, String)> = labels.into_iter().map(|label| (label.name, label.value)).collect();
    assert!(pairs.is_sorted(), "{pairs:?}");
    Labels::new(pairs).expect("valid")
}

async fn send_response(selected: Vec<Vec<FakeSeries>>, format: ResponseFormat) -> Vec<u8> {
    let plan = ResponsePlan::new(selected, MAX_SAMPLES).await.expect("within the limits");
    let (writer, body) = Body::channel();
    let sending = tokio::spawn(async move {
        match format {
            ResponseFormat::Samples => plan.send_samples(&writer).await,
            ResponseFormat::Chunks => plan.send_chunks(&writer).await,
        }
        .expect("the body is read");
        writer.end().await.expect("the body is read");
    });
    let bytes = body.collect().await.expect("a complete body").to_bytes();
    sending.await.expect("no panic");
    bytes.to_vec()
}

fn decode_samples(body: &[u8]) -> DecodedResults {
    let mut buffer = Vec::new();
    let message = snappy::decompress(body, 1 << 30, &mut buffer).expect("snappy");
    let series = |series: TimeSeries| {
        let sample = |s: &crate::prom::proto::Sample| Sample { timestamp_ms: s.timestamp, value: s.value };
        (to_labels(series.labels), series.samples.iter().map(sample).collect())
    };
    let results = ReadResponse::decode(message).expect("a ReadResponse").results;
    results.into_iter().map(|result| result.timeseries.into_iter().map(series).collect()).collect()
}

/// Decodes frames, and checks the requirements of Prometheus' client.
fn decode_chunks(mut body: &[u8], n_queries: usize) -> (DecodedResults, usize) {
    let mut results: DecodedResults = vec![Vec::new(); n_queries];
    let mut n_frames = 0;
    while body.has_remaining() {
        let n_before = body.remaining();
        let length = prost::decode_length_delimiter(&mut body).expect("a length");
        let checksum = body.get_u32();
        let frame = body.copy_to_bytes(length);
        assert!(n_before - body.remaining() <= 1 << 20, "a frame has at most 1 MiB");
        assert_eq!(checksum, crc32c::crc32c(&frame));
        let frame = ChunkedReadResponse::decode(frame).expect("a ChunkedReadResponse");
        let [series] = frame.chunked_series.try_into().expect("one series in each frame");
        let labels = to_labels(series.labels);
        let result = &mut results[usize::try_from(frame.query_index).expect("an index")];
        if result.last().is_none_or(|(last, _)| *last != labels) {
            result.push((labels, Vec::new()));
        }
        let samples = &mut result.last_mut().expect("a series was pushed before").1;
        for chunk in series.chunks {
            let start = samples.len();
            xor::decode(&chunk.data, samples).expect("a chunk");
            assert!((1..=120).contains(&(samples.len() - start)) && chunk.r#type == 1);
            assert_eq!(samples[start].timestamp_ms, chunk.min_time_ms);
            assert_eq!(samples.last().map(|last| last.timestamp_ms), Some(chunk.max_time_ms));
        }
        n_frames += 1;
    }
    (results, n_frames)
}

/// Random values, which cannot be compressed.
fn noise(n: usize) -> impl Iterator<Item = (i64, f64)> {
    let mut state = 1_u64;
    (0..n).map(move |i| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (i as i64 * 15_000, f64::from_bits(state ^ state >> 29))
    })
}

#[tokio::test]
async fn both_formats_hold_the_same_sorted_series_each_once() {
    let selected = || {
        vec![
            vec![
                fake_series("b", [(1, 1.0), (2, f64::from_bits(crate::prom::STALE_BITS)), (3, -4.0)]),
                fake_series("empty", []),
                fake_series("a", noise(20_000)),
                // From a second detector with a longer window.
                fake_series("b", [(0, 0.5), (1, 1.0), (3, -4.0), (4, f64::NAN)]),
            ],
            vec![],
            vec![fake_series("c", [(7, 8.0)])],
        ]
    };
    let [samples, chunks] = [decode_samples(&send_response(selected(), ResponseFormat::Samples).await), {
        decode_chunks(&send_response(selected(), ResponseFormat::Chunks).await, 3).0
    }];
    assert!(samples == chunks, "{} and {} results", samples.len(), chunks.len());
    let names: Vec<Vec<&str>> = samples
        .iter()
        .map(|result| result.iter().map(|(labels, _)| labels.metric_name()).collect())
        .collect();
    assert_eq!(names, [vec!["a", "b"], vec![], vec!["c"]]);
    let times: Vec<i64> = samples[0][1].1.iter().map(|sample| sample.timestamp_ms).collect();
    assert_eq!(times, [0, 1, 2, 3, 4]);
    assert!(samples[0][1].1[2].is_stale());
    assert_eq!(samples[0][0].1.len(), 20_000);
}

#[tokio::test]
async fn a_series_above_a_mebibyte_takes_several_frames() {
    let (results, n_frames) = decode_chunks(
        &send_response(vec![vec![fake_series("a", noise(300_000))]], ResponseFormat::Chunks).await,
        1,
    );
    assert!((3..6).contains(&n_frames), "{n_frames} frames");
    assert_eq!(results[0].len(), 1);
    assert_eq!(results[0][0].1, fake_series("a", noise(300_000)).samples);
}

#[tokio::test]
async fn a_response_above_the_limit_is_rejected_before_it_begins() {
    let selected = || vec![vec![fake_series("a", noise(60)), fake_series("b", noise(41))]];
    assert_eq!(ResponsePlan::new(selected(), 101).await.expect("within the limit").n_samples(), 101);
    let error = ResponsePlan::new(selected(), 100).await.err().expect("above the limit");
    assert_eq!(error.to_string(), "the query exceeds the limit of 100 samples");
    assert_eq!(error.status(), StatusCode::BAD_REQUEST);
}

/// Selects a series, or never returns if false.
struct FakeQueryable(bool);

impl Queryable for FakeQueryable {
    type Series = FakeSeries;

    async fn select(&self, _: Query, _: &WorkPermit) -> Result<Vec<FakeSeries>, Error> {
        if self.0 { Ok(vec![fake_series("a", noise(3))]) } else { std::future::pending().await }
    }
}

#[tokio::test]
async fn a_query_that_takes_too_long_is_cancelled() {
    let metrics = Metrics::new(&mut Registry::default());
    let query_timeout = Duration::from_millis(20);
    let query =
        || Query { start_ms: 1, end_ms: 2, selector: crate::prom::Selector::parse("a").expect("valid") };
    let with_short_timeout = RemoteReadServer { query_timeout, ..RemoteReadServer::new(metrics.clone()) };
    let permit = with_short_timeout.permits.acquire().await.expect("a free turn");
    let error = with_short_timeout
        .plan(vec![query()], &FakeQueryable(false), &permit)
        .await
        .err()
        .expect("a timeout");
    assert_eq!(error.to_string(), "the query takes longer than 120s");
    assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
    let server = RemoteReadServer::new(metrics);
    let backwards = Query { start_ms: 2, end_ms: 1, ..query() };
    let plan = server
        .plan(vec![query(), backwards], &FakeQueryable(true), &permit)
        .await
        .expect("the data is available");
    assert_eq!(plan.n_samples(), 3);
}

#[tokio::test]
async fn nothing_is_sent_to_a_client_that_disconnected() {
    let plan = ResponsePlan::new(vec![vec![fake_series("a", noise(300_000))]], MAX_SAMPLES)
        .await
        .expect("within the limits");
    let (writer, body) = Body::channel();
    drop(body);
    assert!(plan.send_samples(&writer).await.is_err());
    assert!(plan.send_chunks(&writer).await.is_err());
}

fn decode(message: &[u8]) -> Result<RemoteReadRequest, Error> {
    RemoteReadRequest::decode(message, |_| Ok(()))
}

fn query(matchers: Vec<LabelMatcher>) -> ProtoQuery {
    ProtoQuery { start_timestamp_ms: 1, end_timestamp_ms: 2, matchers }
}

fn up() -> LabelMatcher {
    LabelMatcher { r#type: 0, name: "__name__".into(), value: "up".into() }
}

#[test]
fn b70_the_first_known_response_type_is_chosen() {
    let request = |accepted: &[i32]| {
        let accepted_response_types = accepted.to_vec();
        decode(&ReadRequest { queries: vec![query(vec![up()])], accepted_response_types }.encode_to_vec())
    };
    for (accepted, format) in [
        (&[][..], ResponseFormat::Samples),
        (&[0], ResponseFormat::Samples),
        (&[1], ResponseFormat::Chunks),
        (&[1, 0], ResponseFormat::Chunks),
        (&[7, 0, 1], ResponseFormat::Samples),
        (&[-1, 1], ResponseFormat::Chunks),
    ] {
        assert_eq!(request(accepted).expect("known").format, format, "{accepted:?}");
    }
    assert!(matches!(request(&[7]), Err(Error::UnknownResponseTypes(accepted)) if accepted == [7]));
    // The list need not be packed.
    let unpacked = query(vec![up()]).encode_to_vec();
    let message = [&[0x0a, unpacked.len() as u8][..], &unpacked, &[0x10, 0x07, 0x10, 0x01]].concat();
    assert_eq!(decode(&message).expect("valid").format, ResponseFormat::Chunks);
}

#[test]
fn b75_counts_are_checked_before_memory_is_allocated() {
    let request = |queries| ReadRequest { queries, accepted_response_types: vec![] }.encode_to_vec();
    let rejection = |message: &[u8]| decode(message).expect_err("too much").to_string();
    let limit = "the query exceeds the limit of";
    assert_eq!(rejection(&request(vec![query(vec![up()]); 10_000])), format!("{limit} 16 queries"));
    assert_eq!(rejection(&[0x0a, 0x00].repeat(1 << 20)), format!("{limit} 16 queries"));
    assert_eq!(rejection(&request(vec![query(vec![up(); 257])])), format!("{limit} 256 matchers"));
    let pattern = LabelMatcher { r#type: 2, ..up() };
    assert_eq!(
        rejection(&request(vec![query(vec![pattern; 33])])),
        format!("{limit} 32 regular expressions")
    );
    assert_eq!(rejection(&[0x10, 0x00].repeat(1 << 20)), format!("{limit} 16 accepted response types"));
    assert!(decode(&request(vec![query(vec![up(); 16]); 16])).is_ok());
}

#[test]
fn error_messages_have_one_line() {
    let bad = LabelMatcher { r#type: 2, name: "job".into(), value: "a)(b".into() };
    let message = ReadRequest {
        queries: vec![query(vec![up()]), query(vec![up(), bad])],
        accepted_response_types: vec![],
    };
    let error = decode(&message.encode_to_vec()).expect_err("a pattern that does not compile");
    assert_eq!(
        error.to_string(),
        r#"query 2: selector "{__name__=\"up\", job=~\"a)(b\"}": the pattern "a)(b" does not compile: unopened group"#
    );
}

proptest! {
    /// The decoder returns the encoded samples bit by bit.
    #[test]
    fn chunks_are_read_as_they_were_written(
        samples in prop::collection::vec((any::<i64>(), any::<u64>()), 0..120),
        regular in prop::collection::vec((0..40_i64, 0..4_u64), 0..120),
    ) {
        let any = samples.into_iter().map(|(timestamp_ms, bits)| (timestamp_ms, f64::from_bits(bits)));
        let regular = regular.into_iter().enumerate().map(|(i, (jitter, step))| {
            (i as i64 * 15_000 + jitter * jitter * jitter * jitter, step as f64 * 0.1)
        });
        for samples in [fake_series("a", any).samples, fake_series("a", regular).samples] {
            let mut chunk = Vec::new();
            xor::encode::encode(&samples, &mut chunk);
            let mut read = Vec::new();
            xor::decode(&chunk, &mut read).expect("a chunk");
            prop_assert_eq!(read, samples);
        }
    }

    /// No bytes make the server panic.
    #[test]
    fn any_bytes_decode_to_a_request_or_an_error(message in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&message);
    }
}
