//! Both kinds of answers, made while they are sent.
//!
//! A SAMPLES answer is one message, and a message begins with the lengths of its parts. So the series are read
//! twice: once to count, once to send. That they are the same at both times is what [`Series`] promises. Snappy
//! compresses 64 KiB by themselves and begins with the length of everything, which is known by then; so blocks can
//! be compressed one after the other and put together.

use super::{Error, ReadableSeries};
use crate::http::body::{BodyWriter, Disconnected};
use crate::prom::proto::{self, Chunk, ChunkedReadResponse, ChunkedSeries, Label, TimeSeries};
use crate::prom::{Labels, Sample};
use crate::remote_read::xor::encode::encode;
use bytes::Bytes;
use prost::{Message, encode_length_delimiter, length_delimiter_len};

/// Samples of a chunk, as Prometheus cuts them.
const SAMPLES_PER_CHUNK: usize = 120;
/// Bytes of chunks in a frame, as Prometheus fills them: a frame of ours stays a little below a mebibyte.
const MAX_FRAME_BYTES: usize = 1_000_000;
/// Bytes that are sent at once, and that snappy compresses by themselves.
const BLOCK_BYTES: usize = 64 << 10;
/// The key of the only field of a `ReadResponse` and of a `QueryResult`: number 1, length-delimited.
const FIRST_FIELD: u8 = 0x0a;
/// The kind of the chunks.
const XOR: i32 = 1;
/// Series that are read without a pause, in which others have their turn.
const SERIES_PER_YIELD: usize = 64;

/// What is to be sent: for each query its series, sorted, each once and none of them empty.
pub struct ResponsePlan<S> {
    results: Vec<Vec<PlannedSeries<S>>>,
    n_samples: usize,
}

/// A series, all that have its labels.
struct PlannedSeries<S> {
    parts: Vec<S>,
    /// Bytes as a `TimeSeries`.
    length: usize,
}

impl<S: ReadableSeries> ResponsePlan<S> {
    /// Counts what is to be sent.
    ///
    /// # Errors
    /// [`Error::Limit`] when it is more than so many samples.
    pub async fn new(selected: Vec<Vec<S>>, limit: usize) -> Result<Self, Error> {
        let mut plan = Self { results: Vec::new(), n_samples: 0 };
        let (mut samples, mut n_bytes) = (Vec::new(), 0_usize);
        for mut series in selected {
            series.sort_by(|a, b| a.labels().cmp(b.labels()));
            let mut result: Vec<PlannedSeries<S>> = Vec::new();
            for part in series {
                match result.last_mut().filter(|last| last.parts[0].labels() == part.labels()) {
                    Some(last) => last.parts.push(part),
                    None => result.push(PlannedSeries { parts: vec![part], length: 0 }),
                }
            }
            for (i, planned) in result.iter_mut().enumerate() {
                if i % SERIES_PER_YIELD == 0 {
                    tokio::task::yield_now().await;
                }
                planned.read_samples(&mut samples);
                plan.n_samples += samples.len();
                if plan.n_samples > limit {
                    return Err(Error::Limit { what: "samples", limit });
                }
                if !samples.is_empty() {
                    planned.length = to_time_series(planned.labels(), &samples).encoded_len();
                    n_bytes = n_bytes.saturating_add(planned.length);
                }
            }
            result.retain(|planned| planned.length > 0);
            plan.results.push(result);
        }
        // Snappy's own limit, with room for what is around the series.
        let limit = u32::MAX as usize / 2;
        if n_bytes > limit { Err(Error::Limit { what: "bytes", limit }) } else { Ok(plan) }
    }

    /// Samples of the answer.
    pub fn n_samples(&self) -> usize {
        self.n_samples
    }

    /// Sends a `ReadResponse`, compressed.
    ///
    /// # Errors
    /// [`Gone`] when nobody reads it any more.
    pub async fn send_samples(&self, writer: &BodyWriter) -> Result<(), Disconnected> {
        let lengths: Vec<usize> = self
            .results
            .iter()
            .map(|result| result.iter().map(|planned| field_len(planned.length)).sum())
            .collect();
        let mut encoder = SnappyEncoder::new(lengths.iter().map(|length| field_len(*length)).sum());
        let mut samples = Vec::new();
        for (result, length) in self.results.iter().zip(lengths) {
            encoder.begin_field(length);
            for planned in result {
                planned.read_samples(&mut samples);
                encoder.begin_field(planned.length);
                to_time_series(planned.labels(), &samples).encode(&mut encoder.raw).expect("a vector grows");
                encoder.send_full_blocks(writer).await?;
            }
        }
        encoder.finish(writer).await
    }

    /// Sends frames, one for each series, or several for one that is very long.
    ///
    /// # Errors
    /// [`Gone`] when nobody reads it any more.
    pub async fn send_chunks(&self, writer: &BodyWriter) -> Result<(), Disconnected> {
        let (mut samples, mut buffer) = (Vec::new(), Vec::with_capacity(2 * BLOCK_BYTES));
        for (query_index, result) in (0..).zip(&self.results) {
            for planned in result {
                planned.read_samples(&mut samples);
                let mut chunks = samples.chunks(SAMPLES_PER_CHUNK).map(encode_chunk).peekable();
                while chunks.peek().is_some() {
                    let mut frame_chunks: Vec<Chunk> = Vec::new();
                    let mut size = 0;
                    while let Some(chunk) = chunks.next_if(|next| {
                        frame_chunks.is_empty() || size + next.encoded_len() <= MAX_FRAME_BYTES
                    }) {
                        size += field_len(chunk.encoded_len());
                        frame_chunks.push(chunk);
                    }
                    let series =
                        ChunkedSeries { labels: to_proto_labels(planned.labels()), chunks: frame_chunks };
                    let frame = ChunkedReadResponse { chunked_series: vec![series], query_index };
                    append_frame(&frame.encode_to_vec(), &mut buffer);
                    if buffer.len() >= BLOCK_BYTES {
                        writer.send(Bytes::from(std::mem::take(&mut buffer))).await?;
                    }
                }
            }
        }
        if buffer.is_empty() { Ok(()) } else { writer.send(Bytes::from(buffer)).await }
    }
}

impl<S: ReadableSeries> PlannedSeries<S> {
    fn labels(&self) -> &Labels {
        self.parts[0].labels()
    }

    fn read_samples(&self, samples: &mut Vec<Sample>) {
        samples.clear();
        self.parts.iter().for_each(|part| part.append_samples(samples));
        if self.parts.len() > 1 {
            // Two detectors may watch the same series.
            samples.sort_by_key(|sample| sample.timestamp_ms);
            samples.dedup_by_key(|sample| sample.timestamp_ms);
        }
    }
}

fn to_proto_labels(labels: &Labels) -> Vec<Label> {
    labels.iter().map(|(name, value)| Label { name: name.into(), value: value.into() }).collect()
}

/// A zero loses its sign here, as it does in Prometheus' own answers: protobuf does not write a zero.
fn to_time_series(series_labels: &Labels, samples: &[Sample]) -> TimeSeries {
    let sample = |sample: &Sample| proto::Sample { value: sample.value, timestamp: sample.timestamp_ms };
    let samples = samples.iter().map(sample).collect();
    TimeSeries { labels: to_proto_labels(series_labels), samples, ..TimeSeries::default() }
}

fn encode_chunk(samples: &[Sample]) -> Chunk {
    let mut data = Vec::new();
    encode(samples, &mut data);
    let timestamp_ms = |sample: Option<&Sample>| sample.map_or(0, |sample| sample.timestamp_ms);
    Chunk {
        min_time_ms: timestamp_ms(samples.first()),
        max_time_ms: timestamp_ms(samples.last()),
        r#type: XOR,
        data,
    }
}

/// Its length, the checksum of what follows, and the message itself.
fn append_frame(message: &[u8], out: &mut Vec<u8>) {
    encode_length_delimiter(message.len(), out).expect("a vector grows");
    out.extend(crc32c::crc32c(message).to_be_bytes());
    out.extend(message);
}

/// Bytes of a field with a message of so many bytes.
fn field_len(length: usize) -> usize {
    1 + length_delimiter_len(length) + length
}

/// A message that is compressed while it is made.
struct SnappyEncoder {
    raw: Vec<u8>,
    compressed: Vec<u8>,
}

impl SnappyEncoder {
    fn new(length: usize) -> Self {
        let mut compressed = Vec::new();
        encode_length_delimiter(length, &mut compressed).expect("a vector grows");
        Self { raw: Vec::new(), compressed }
    }

    fn begin_field(&mut self, length: usize) {
        self.raw.push(FIRST_FIELD);
        encode_length_delimiter(length, &mut self.raw).expect("a vector grows");
    }

    async fn send_full_blocks(&mut self, writer: &BodyWriter) -> Result<(), Disconnected> {
        let full = self.raw.len() / BLOCK_BYTES * BLOCK_BYTES;
        for block in self.raw[..full].chunks(BLOCK_BYTES) {
            append_compressed(block, &mut self.compressed);
            if self.compressed.len() >= BLOCK_BYTES {
                writer.send(Bytes::from(std::mem::take(&mut self.compressed))).await?;
            }
        }
        self.raw.drain(..full);
        Ok(())
    }

    async fn finish(mut self, writer: &BodyWriter) -> Result<(), Disconnected> {
        self.send_full_blocks(writer).await?;
        append_compressed(&self.raw, &mut self.compressed);
        writer.send(Bytes::from(self.compressed)).await
    }
}

/// Appends what snappy makes of a block, without the length that it puts in front.
fn append_compressed(block: &[u8], out: &mut Vec<u8>) {
    if !block.is_empty() {
        let compressed = crate::prom::wire::snappy::compress(block);
        out.extend(&compressed[length_delimiter_len(block.len())..]);
    }
}
