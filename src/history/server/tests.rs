use super::*;
use crate::history::xor;
use crate::prom::proto::{
    ChunkedReadResponse, LabelMatcher, Query as ProtoQuery, ReadRequest, ReadResponse, TimeSeries,
};
use bytes::Buf;
use proptest::prelude::*;
use prost::Message;

struct Kept {
    labels: Labels,
    samples: Vec<Sample>,
}

impl Series for Kept {
    fn labels(&self) -> &Labels {
        &self.labels
    }

    fn samples(&self, out: &mut Vec<Sample>) {
        out.extend(&self.samples);
    }
}

fn kept(name: &str, samples: impl IntoIterator<Item = (i64, f64)>) -> Kept {
    let samples = samples.into_iter().map(|(timestamp_ms, value)| Sample { timestamp_ms, value });
    Kept {
        labels: Labels::new([("__name__", name), ("job", "a")]).expect("valid"),
        samples: samples.collect(),
    }
}

/// What two kinds of answers say: for each query its series.
type Said = Vec<Vec<(Labels, Vec<Sample>)>>;

fn named(labels: Vec<crate::prom::proto::Label>) -> Labels {
    let pairs: Vec<(String, String)> = labels.into_iter().map(|label| (label.name, label.value)).collect();
    assert!(pairs.is_sorted(), "{pairs:?}");
    Labels::new(pairs).expect("valid")
}

async fn sent(found: Vec<Vec<Kept>>, form: Form) -> Vec<u8> {
    let plan = Plan::new(found, SAMPLES).await.expect("within the limits");
    let (writer, body) = Body::made();
    let sending = tokio::spawn(async move {
        match form {
            Form::Samples => plan.send_samples(&writer).await,
            Form::Chunks => plan.send_chunks(&writer).await,
        }
        .expect("it is read");
        writer.end().await.expect("it is read");
    });
    let bytes = body.collect().await.expect("whole").to_bytes();
    sending.await.expect("no panic");
    bytes.to_vec()
}

fn from_samples(answer: &[u8]) -> Said {
    let mut buffer = Vec::new();
    let message = snappy::decompress(answer, 1 << 30, &mut buffer).expect("snappy");
    let series = |series: TimeSeries| {
        let sample = |s: &crate::prom::proto::Sample| Sample { timestamp_ms: s.timestamp, value: s.value };
        (named(series.labels), series.samples.iter().map(sample).collect())
    };
    let results = ReadResponse::decode(message).expect("a ReadResponse").results;
    results.into_iter().map(|result| result.timeseries.into_iter().map(series).collect()).collect()
}

/// Reads frames, and holds them to what Prometheus' client needs.
fn from_chunks(mut answer: &[u8], n_queries: usize) -> (Said, usize) {
    let mut said: Said = vec![Vec::new(); n_queries];
    let mut n_frames = 0;
    while answer.has_remaining() {
        let before = answer.remaining();
        let length = prost::decode_length_delimiter(&mut answer).expect("a length");
        let checksum = answer.get_u32();
        let frame = answer.copy_to_bytes(length);
        assert!(before - answer.remaining() <= 1 << 20, "a frame is at most a mebibyte");
        assert_eq!(checksum, crc32c::crc32c(&frame));
        let frame = ChunkedReadResponse::decode(frame).expect("a ChunkedReadResponse");
        let [series] = frame.chunked_series.try_into().expect("one series in each frame");
        let labels = named(series.labels);
        let result = &mut said[usize::try_from(frame.query_index).expect("an index")];
        if result.last().is_none_or(|(last, _)| *last != labels) {
            result.push((labels, Vec::new()));
        }
        let samples = &mut result.last_mut().expect("just there").1;
        for chunk in series.chunks {
            let from = samples.len();
            xor::decode(&chunk.data, samples).expect("a chunk");
            assert!((1..=120).contains(&(samples.len() - from)) && chunk.r#type == 1);
            assert_eq!(samples[from].timestamp_ms, chunk.min_time_ms);
            assert_eq!(samples.last().map(|last| last.timestamp_ms), Some(chunk.max_time_ms));
        }
        n_frames += 1;
    }
    (said, n_frames)
}

/// Bits without a pattern, so that nothing can be compressed.
fn noise(n: usize) -> impl Iterator<Item = (i64, f64)> {
    let mut state = 1_u64;
    (0..n).map(move |i| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (i as i64 * 15_000, f64::from_bits(state ^ state >> 29))
    })
}

#[tokio::test]
async fn both_kinds_say_the_same_sorted_and_each_series_once() {
    let found = || {
        vec![
            vec![
                kept("b", [(1, 1.0), (2, f64::from_bits(crate::prom::STALE_BITS)), (3, -4.0)]),
                kept("empty", []),
                kept("a", noise(20_000)),
                // watched by a second detector, whose window is longer
                kept("b", [(0, 0.5), (1, 1.0), (3, -4.0), (4, f64::NAN)]),
            ],
            vec![],
            vec![kept("c", [(7, 8.0)])],
        ]
    };
    let [one, other] = [from_samples(&sent(found(), Form::Samples).await), {
        from_chunks(&sent(found(), Form::Chunks).await, 3).0
    }];
    assert!(one == other, "{} and {} results", one.len(), other.len());
    let names: Vec<Vec<&str>> =
        one.iter().map(|result| result.iter().map(|(labels, _)| labels.metric_name()).collect()).collect();
    assert_eq!(names, [vec!["a", "b"], vec![], vec!["c"]]);
    let times: Vec<i64> = one[0][1].1.iter().map(|sample| sample.timestamp_ms).collect();
    assert_eq!(times, [0, 1, 2, 3, 4]);
    assert!(one[0][1].1[2].is_stale());
    assert_eq!(one[0][0].1.len(), 20_000);
}

#[tokio::test]
async fn a_series_above_a_mebibyte_takes_several_frames() {
    let (said, n_frames) = from_chunks(&sent(vec![vec![kept("a", noise(300_000))]], Form::Chunks).await, 1);
    assert!((3..6).contains(&n_frames), "{n_frames} frames");
    assert_eq!(said[0].len(), 1);
    assert_eq!(said[0][0].1, kept("a", noise(300_000)).samples);
}

#[tokio::test]
async fn an_answer_above_the_limit_is_refused_before_it_begins() {
    let found = || vec![vec![kept("a", noise(60)), kept("b", noise(41))]];
    assert_eq!(Plan::new(found(), 101).await.expect("within it").n_samples(), 101);
    let error = Plan::new(found(), 100).await.err().expect("above it");
    assert_eq!(error.to_string(), "the query exceeds the limit of 100 samples");
    assert_eq!(error.status(), StatusCode::BAD_REQUEST);
}

/// It has what is asked for, or looks for it for ever.
struct Sought(bool);

impl Source for Sought {
    type Series = Kept;

    async fn select(&self, _: Query) -> Result<Vec<Kept>, Error> {
        if self.0 { Ok(vec![kept("a", noise(3))]) } else { std::future::pending().await }
    }
}

#[tokio::test]
async fn what_takes_too_long_to_find_is_given_up() {
    let metrics = Metrics::new(&mut Registry::default());
    let patience = Duration::from_millis(20);
    let query =
        || Query { start_ms: 1, end_ms: 2, selector: crate::prom::Selector::parse("a").expect("valid") };
    let impatient = Server { patience, ..Server::new(metrics.clone()) };
    let error = impatient.plan(vec![query()], &Sought(false)).await.err().expect("it has an end");
    assert_eq!(error.to_string(), "the query takes longer than 120s");
    assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
    let patient = Server::new(metrics);
    let backwards = Query { start_ms: 2, end_ms: 1, ..query() };
    let plan = patient.plan(vec![query(), backwards], &Sought(true)).await.expect("it is there");
    assert_eq!(plan.n_samples(), 3);
}

#[tokio::test]
async fn nothing_is_made_for_a_client_that_is_gone() {
    let plan = Plan::new(vec![vec![kept("a", noise(300_000))]], SAMPLES).await.expect("within the limits");
    let (writer, body) = Body::made();
    drop(body);
    assert!(plan.send_samples(&writer).await.is_err());
    assert!(plan.send_chunks(&writer).await.is_err());
}

fn query(matchers: Vec<LabelMatcher>) -> ProtoQuery {
    ProtoQuery { start_timestamp_ms: 1, end_timestamp_ms: 2, matchers }
}

fn up() -> LabelMatcher {
    LabelMatcher { r#type: 0, name: "__name__".into(), value: "up".into() }
}

#[test]
fn b70_the_first_kind_that_is_known_is_taken() {
    let request = |accepted: &[i32]| {
        let accepted_response_types = accepted.to_vec();
        Request::decode(
            &ReadRequest { queries: vec![query(vec![up()])], accepted_response_types }.encode_to_vec(),
        )
    };
    for (accepted, form) in [
        (&[][..], Form::Samples),
        (&[0], Form::Samples),
        (&[1], Form::Chunks),
        (&[1, 0], Form::Chunks),
        (&[7, 0, 1], Form::Samples),
        (&[-1, 1], Form::Chunks),
    ] {
        assert_eq!(request(accepted).expect("known").form, form, "{accepted:?}");
    }
    assert!(matches!(request(&[7]), Err(Error::Form(accepted)) if accepted == [7]));
    // The list need not be packed.
    let unpacked = query(vec![up()]).encode_to_vec();
    let message = [&[0x0a, unpacked.len() as u8][..], &unpacked, &[0x10, 0x07, 0x10, 0x01]].concat();
    assert_eq!(Request::decode(&message).expect("valid").form, Form::Chunks);
}

#[test]
fn b75_counts_are_bounded_before_memory_is() {
    let request = |queries| ReadRequest { queries, accepted_response_types: vec![] }.encode_to_vec();
    let refused = |message: &[u8]| Request::decode(message).expect_err("too much").to_string();
    let limit = "the query exceeds the limit of";
    assert_eq!(refused(&request(vec![query(vec![up()]); 10_000])), format!("{limit} 16 queries"));
    assert_eq!(refused(&[0x0a, 0x00].repeat(1 << 20)), format!("{limit} 16 queries"));
    assert_eq!(refused(&request(vec![query(vec![up(); 257])])), format!("{limit} 256 matchers"));
    let pattern = LabelMatcher { r#type: 2, ..up() };
    assert_eq!(refused(&request(vec![query(vec![pattern; 33])])), format!("{limit} 32 regular expressions"));
    assert_eq!(refused(&[0x10, 0x00].repeat(1 << 20)), format!("{limit} 16 accepted response types"));
    assert!(Request::decode(&request(vec![query(vec![up(); 16]); 16])).is_ok());
}

#[test]
fn what_is_wrong_stands_in_one_line() {
    let bad = LabelMatcher { r#type: 2, name: "job".into(), value: "a)(b".into() };
    let message = ReadRequest {
        queries: vec![query(vec![up()]), query(vec![up(), bad])],
        accepted_response_types: vec![],
    };
    let error = Request::decode(&message.encode_to_vec()).expect_err("a pattern that does not compile");
    assert_eq!(
        error.to_string(),
        r#"query 2: selector "{__name__=\"up\", job=~\"a)(b\"}": the pattern "a)(b" does not compile: unopened group"#
    );
}

proptest! {
    /// What the encoder writes, the decoder reads, to the last bit.
    #[test]
    fn chunks_are_read_as_they_were_written(
        samples in prop::collection::vec((any::<i64>(), any::<u64>()), 0..120),
        regular in prop::collection::vec((0..40_i64, 0..4_u64), 0..120),
    ) {
        let any = samples.into_iter().map(|(timestamp_ms, bits)| (timestamp_ms, f64::from_bits(bits)));
        let regular = regular.into_iter().enumerate().map(|(i, (jitter, step))| {
            (i as i64 * 15_000 + jitter * jitter * jitter * jitter, step as f64 * 0.1)
        });
        for samples in [kept("a", any).samples, kept("a", regular).samples] {
            let mut chunk = Vec::new();
            xor::encode::encode(&samples, &mut chunk);
            let mut read = Vec::new();
            xor::decode(&chunk, &mut read).expect("a chunk");
            prop_assert_eq!(read, samples);
        }
    }

    /// No bytes make the server panic.
    #[test]
    fn any_bytes_are_a_request_or_none(message in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::decode(&message);
    }
}
