//! Reads a slice by VictoriaMetrics' export: one line of JSON for each few thousand samples of a series.
//!
//! `null` is a staleness marker: VictoriaMetrics stores no other NaN. Without `reduce_mem_usage` the server applies its
//! deduplication, so that the samples are those of its queries: of two replicas of Prometheus, one.

use super::collector::ResponseCollector;
use super::error::Error;
use super::request::{Endpoint, Slice, content_type, format_time};
use crate::prom::Sample;
use bytes::BytesMut;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// Content type of the response.
const CONTENT_TYPE: &str = "application/stream+json";
/// Most samples of a line, as requested.
const MAX_SAMPLES_PER_LINE: usize = 5000;
/// Most bytes of a line: the requested samples with values like 1e308, which have 309 digits, and all labels.
const LINE_LIMIT: usize = 4 << 20;
/// Most bytes of a response, of which one line is in memory. A slice above the limit is halved.
const EXPORT_LIMIT: usize = 512 << 20;

/// Samples of a series.
#[derive(serde::Deserialize)]
struct Line {
    metric: BTreeMap<String, String>,
    values: Vec<ExportValue>,
    timestamps: Vec<i64>,
}

/// A value: a number, `"Infinity"`, `"-Infinity"`, or `null` for a staleness marker.
struct ExportValue(Option<f64>);

impl<'de> Deserialize<'de> for ExportValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl Visitor<'_> for ValueVisitor {
    type Value = ExportValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, \"Infinity\", \"-Infinity\" or null")
    }

    fn visit_f64<E>(self, value: f64) -> Result<ExportValue, E> {
        Ok(ExportValue(Some(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<ExportValue, E> {
        Ok(ExportValue(Some(value as f64)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<ExportValue, E> {
        Ok(ExportValue(Some(value as f64)))
    }

    fn visit_unit<E>(self) -> Result<ExportValue, E> {
        Ok(ExportValue(None))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ExportValue, E> {
        match text {
            "Infinity" => Ok(ExportValue(Some(f64::INFINITY))),
            "-Infinity" => Ok(ExportValue(Some(f64::NEG_INFINITY))),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }
}

/// Reads a slice.
pub async fn receive(
    endpoint: &Endpoint<'_>,
    slice: &Slice<'_>,
    collector: &mut ResponseCollector,
) -> Result<(), Error> {
    let form = [
        ("match[]", slice.promql()),
        ("start", format_time(slice.start_ms)),
        ("end", format_time(slice.end_ms)),
        ("max_rows_per_line", MAX_SAMPLES_PER_LINE.to_string()),
    ];
    let stream = endpoint.post_form("/api/v1/export", &form).await?;
    let mut stream = endpoint.check_status(stream).await?;
    if !content_type(&stream).starts_with(CONTENT_TYPE) {
        return Err(endpoint.content_type_error(&stream, CONTENT_TYPE));
    }
    if !stream.is_delimited() {
        return Err(Error::MissingLength { url: endpoint.url.clone() });
    }
    let mut lines = LineReader::default();
    while let Some(bytes) = stream.next().await? {
        lines.push(&bytes)?;
        while let Some(line) = lines.pop()? {
            push_line(&line, collector)?;
        }
    }
    lines.finish()
}

fn push_line(line: &[u8], collector: &mut ResponseCollector) -> Result<(), Error> {
    let Line { metric, values, timestamps } = serde_json::from_slice(line)?;
    if values.len() != timestamps.len() {
        return Err(Error::Unequal { values: values.len(), timestamps: timestamps.len() });
    }
    let samples = values.iter().zip(timestamps).map(|(ExportValue(value), timestamp_ms)| match value {
        Some(value) => Sample { timestamp_ms, value: *value },
        None => Sample::stale(timestamp_ms),
    });
    collector.push_samples(metric, samples)
}

/// Splits a stream into lines.
#[derive(Default)]
struct LineReader {
    buffer: BytesMut,
    /// Bytes at the start of the buffer that contain no end of a line.
    n_searched: usize,
    n_received: usize,
}

impl LineReader {
    /// Adds received bytes.
    fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.n_received += bytes.len();
        if self.n_received > EXPORT_LIMIT {
            return Err(Error::TooMany { what: "bytes", limit: EXPORT_LIMIT });
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next line; `None` until it is complete.
    fn pop(&mut self) -> Result<Option<BytesMut>, Error> {
        let end = self.buffer[self.n_searched..].iter().position(|byte| *byte == b'\n');
        let length = end.map_or(self.buffer.len(), |end| self.n_searched + end);
        if length > LINE_LIMIT {
            return Err(Error::TooMany { what: "bytes in a line", limit: LINE_LIMIT });
        }
        if end.is_none() {
            self.n_searched = length;
            return Ok(None);
        }
        self.n_searched = 0;
        Ok(Some(self.buffer.split_to(length + 1)))
    }

    /// Checks that the last line is complete.
    fn finish(&self) -> Result<(), Error> {
        match self.buffer.len() {
            0 => Ok(()),
            length => Err(Error::TruncatedLine { length }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(lines: &[&str]) -> Result<Vec<(String, Vec<Sample>)>, Error> {
        let mut collector = ResponseCollector::new(0, 100);
        for line in lines {
            push_line(line.as_bytes(), &mut collector)?;
        }
        Ok(collector.finish().into_iter().map(|(labels, samples)| (labels.to_string(), samples)).collect())
    }

    fn sample(timestamp_ms: i64, value: f64) -> Sample {
        Sample { timestamp_ms, value }
    }

    #[test]
    fn values_are_exact_and_null_is_a_staleness_marker() {
        let lines = [
            r#"{"metric":{"__name__":"a","job":"n"},"values":[0.1,9007199254740993,-0.30000000000000004],"timestamps":[1,2,3]}"#,
            r#"{"metric":{"__name__":"a","job":"n"},"values":[null,"Infinity","-Infinity"],"timestamps":[4,5,6]}"#,
            r#"{"metric":{"__name__":"b"},"values":[12345.678901234567],"timestamps":[101]}"#,
        ];
        let expected = vec![
            sample(1, 0.1),
            sample(2, 9_007_199_254_740_992.0),
            sample(3, -0.300_000_000_000_000_04),
            Sample::stale(4),
            sample(5, f64::INFINITY),
            sample(6, f64::NEG_INFINITY),
        ];
        assert_eq!(collect(&lines).expect("valid"), [(r#"a{job="n"}"#.to_string(), expected)]);
    }

    #[test]
    fn blocks_in_any_order_become_an_ascending_series() {
        let lines = [
            r#"{"metric":{"__name__":"a"},"values":[3,4],"timestamps":[3,4]}"#,
            r#"{"metric":{"__name__":"a"},"values":[1,2,7],"timestamps":[1,2,3]}"#,
        ];
        let series = collect(&lines).expect("valid");
        assert_eq!(series[0].1, [sample(1, 1.0), sample(2, 2.0), sample(3, 3.0), sample(4, 4.0)]);
    }

    #[test]
    fn an_error_names_what_is_wrong() {
        for (line, expected) in [
            (r#"{"metric":{"__name__":"a"},"values":[1,2],"timestamps":[1]}"#, "2 values, 1 timestamps"),
            (
                r#"{"metric":{"__name__":"a"},"values":["NaN"],"timestamps":[1]}"#,
                "invalid value: string \"NaN\"",
            ),
            (r#"{"metric":{"__name__":"a"},"values":[1],"timestamps":[1.5]}"#, "floating point `1.5`"),
            (r#"{"metric":{"__name__":"a"},"values":[1]}"#, "missing field `timestamps`"),
            ("<html>", "expected value at line 1 column 1"),
        ] {
            let text = crate::error::chain(&collect(&[line]).expect_err(expected));
            assert!(text.contains(expected) && text.starts_with("history: "), "{text}");
        }
    }

    #[test]
    fn lines_do_not_depend_on_how_the_stream_is_split_and_are_bounded() {
        let text = b"one\ntwo\n\nthree\n";
        for size in 1..text.len() {
            let (mut reader, mut lines) = (LineReader::default(), Vec::new());
            for piece in text.chunks(size) {
                reader.push(piece).expect("short");
                while let Some(line) = reader.pop().expect("short") {
                    lines.push(line);
                }
            }
            reader.finish().expect("whole lines");
            assert_eq!(lines, [&b"one\n"[..], b"two\n", b"\n", b"three\n"]);
        }
        let mut reader = LineReader::default();
        reader.push(b"no end").expect("short");
        assert!(reader.pop().expect("short").is_none());
        assert!(matches!(reader.finish(), Err(Error::TruncatedLine { length: 6 })));
        reader.push(&vec![b'x'; LINE_LIMIT]).expect("below the limit of the response");
        assert!(reader.pop().expect_err("too long").is_too_large());
        reader.n_received = EXPORT_LIMIT;
        assert!(reader.push(b"x").expect_err("too many").is_too_large());
    }
}
