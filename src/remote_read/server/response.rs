//! Encodes responses of both formats while they are sent.
//!
//! A SAMPLES response is one message, which starts with the lengths of its parts. Therefore the series are read
//! twice, first to compute the lengths and then to send them; [`ReadableSeries`] guarantees the same samples both
//! times. Snappy compresses blocks of 64 KiB independently, after a header with the total length; therefore the blocks
//! are compressed one by one and concatenated.

use super::error::Error;
use super::source::ReadableSeries;
use crate::http::body::{BodyWriter, Disconnected};
use crate::prom::proto::{self, Chunk, ChunkedReadResponse, ChunkedSeries, Label, TimeSeries};
use crate::prom::{Labels, Sample};
use crate::remote_read::frames::append_frame;
use crate::remote_read::xor::encode::encode;
use bytes::Bytes;
use prost::{Message, encode_length_delimiter, length_delimiter_len};

/// Samples of a chunk, as Prometheus cuts them.
const SAMPLES_PER_CHUNK: usize = 120;
/// Bytes of chunks in a frame. With its labels, a frame stays below 1 MiB, as with Prometheus.
const MAX_FRAME_BYTES: usize = 1_000_000;
/// Bytes of a block that snappy compresses independently, and least bytes of one send.
const BLOCK_BYTES: usize = 64 << 10;
/// Key of the only field of a `ReadResponse` and of a `QueryResult`: number 1, length-delimited.
const FIRST_FIELD: u8 = 0x0a;
/// `Chunk.type` of XOR chunks.
const XOR: i32 = 1;
/// Series that are read before the task yields to others.
const SERIES_PER_YIELD: usize = 64;

/// The series of a response: for each query sorted by labels, each label set once, none empty.
pub struct ResponsePlan<S> {
    results: Vec<Vec<PlannedSeries<S>>>,
    n_samples: usize,
}

/// The selected series with one label set.
struct PlannedSeries<S> {
    parts: Vec<S>,
    /// Bytes of the encoded `TimeSeries`.
    length: usize,
}

impl<S: ReadableSeries> ResponsePlan<S> {
    /// Reads all series once, to count their samples and encoded bytes.
    ///
    /// # Errors
    /// [`Error::Limit`] if there are more than `limit` samples, or more bytes than snappy supports.
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
        // Half of snappy's own limit: the rest is room for the fields around the series.
        let limit = u32::MAX as usize / 2;
        if n_bytes > limit { Err(Error::Limit { what: "bytes", limit }) } else { Ok(plan) }
    }

    /// Number of samples in the response.
    pub fn n_samples(&self) -> usize {
        self.n_samples
    }

    /// Sends a compressed `ReadResponse`.
    ///
    /// # Errors
    /// [`Disconnected`] if the client has disconnected.
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

    /// Sends frames, one for each series, or several for a series with more than [`MAX_FRAME_BYTES`].
    ///
    /// # Errors
    /// [`Disconnected`] if the client has disconnected.
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
            // Several detectors may have the same series.
            samples.sort_by_key(|sample| sample.timestamp_ms);
            samples.dedup_by_key(|sample| sample.timestamp_ms);
        }
    }
}

fn to_proto_labels(labels: &Labels) -> Vec<Label> {
    labels.iter().map(|(name, value)| Label { name: name.into(), value: value.into() }).collect()
}

/// Protobuf omits a value of zero: -0.0 becomes 0.0, as in Prometheus' own responses.
fn to_time_series(labels: &Labels, samples: &[Sample]) -> TimeSeries {
    let sample = |sample: &Sample| proto::Sample { value: sample.value, timestamp: sample.timestamp_ms };
    let samples = samples.iter().map(sample).collect();
    TimeSeries { labels: to_proto_labels(labels), samples, ..TimeSeries::default() }
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

/// Bytes of a field that holds a message of `length` bytes.
fn field_len(length: usize) -> usize {
    1 + length_delimiter_len(length) + length
}

/// Compresses a message while it is encoded.
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

/// Appends a compressed block without its length header.
fn append_compressed(block: &[u8], out: &mut Vec<u8>) {
    if !block.is_empty() {
        let compressed = crate::prom::wire::snappy::compress(block);
        out.extend(&compressed[length_delimiter_len(block.len())..]);
    }
}
