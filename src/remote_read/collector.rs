//! What an answer to one query holds, of either kind: series with their samples, in the range, in order.
//!
//! Chunks reach beyond the range that was asked for, and after samples that came out of order they overlap.
//! So everything is clipped, sorted, and of two samples of one time the first one stays.

use super::{Error, Metrics, SeriesSamples, SkipReason, xor};
use crate::prom::Labels;
use crate::prom::wire::read_response::{self, WireChunk};
use crate::prom::wire::{
    InvalidSeries, MAX_SERIES, ParsedRequest, ProtocolVersion, RejectReason, SampleKind, Scratch,
};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Samples of a slice: a week of a host's interfaces, every 15 s, is a fifth of it.
pub const SAMPLE_LIMIT: usize = 4 << 20;

/// `Chunk.type` of samples that [`xor`] decodes.
const XOR: i64 = 1;

/// Collects an answer.
pub struct ResponseCollector<'a> {
    start_ms: i64,
    end_ms: i64,
    metrics: &'a Metrics,
    series: Vec<SeriesSamples>,
    index_by_labels: HashMap<Labels, usize>,
    /// The series of the last frame, which may go on in the next: its labels on the wire, and its number if
    /// it is one that is taken.
    last_series: Option<(Vec<u8>, Option<usize>)>,
    n_samples: usize,
    label_bytes: Vec<u8>,
}

impl<'a> ResponseCollector<'a> {
    /// An answer for `[start_ms, end_ms]`.
    pub fn new(start_ms: i64, end_ms: i64, metrics: &'a Metrics) -> Self {
        let (series, index_by_labels, last_series, n_samples) = (Vec::new(), HashMap::new(), None, 0);
        Self {
            start_ms,
            end_ms,
            metrics,
            series,
            index_by_labels,
            last_series,
            n_samples,
            label_bytes: Vec::new(),
        }
    }

    /// Takes a frame, a `ChunkedReadResponse`.
    ///
    /// # Errors
    /// [`Error`] when it is none, or not an answer to the only query.
    pub fn push_frame(&mut self, message: &[u8]) -> Result<(), Error> {
        let mut label_bytes = std::mem::take(&mut self.label_bytes);
        let query_index =
            read_response::visit_frame(message, &mut label_bytes, |series| self.push_chunks(&series))?;
        self.label_bytes = label_bytes;
        if query_index != 0 {
            return Err(Error::QueryIndex { query_index });
        }
        Ok(())
    }

    fn push_chunks(&mut self, series: &read_response::WireChunkedSeries<'_>) -> Result<(), Error> {
        let index = match &self.last_series {
            Some((label_bytes, index)) if label_bytes == series.label_bytes => *index,
            _ => {
                let index = self.series_index(series.labels())?;
                self.last_series = Some((series.label_bytes.to_vec(), index));
                index
            }
        };
        let Some(index) = index else { return Ok(()) };
        series.visit_chunks(|WireChunk { encoding, data }| match encoding {
            XOR => {
                let samples = &mut self.series[index].1;
                let n_before = samples.len();
                xor::decode(data, samples)?;
                self.clip(index, n_before)
            }
            // Histograms, integers and floats, without and with start times.
            2 | 3 | 5 | 6 => {
                self.metrics.count_skipped(SkipReason::Histogram);
                Ok(())
            }
            encoding => Err(Error::Encoding { encoding }),
        })
    }

    /// Takes a `ReadResponse`.
    ///
    /// # Errors
    /// [`Error`] when it is none, or not an answer to the only query.
    pub fn push_response(&mut self, message: &[u8]) -> Result<(), Error> {
        let mut result = &[][..];
        let results = read_response::visit_results(message, |message| result = message)?;
        if results != 1 {
            return Err(Error::Results { results });
        }
        let mut scratch = Scratch::default();
        let result = ParsedRequest::parse(ProtocolVersion::V1, result, 0, i64::MAX, &mut scratch)?;
        self.metrics.count_skipped_by(SkipReason::Histogram, result.counts.histograms);
        self.metrics
            .count_skipped_by(SkipReason::InvalidSeries, result.rejections.count(RejectReason::Labels));
        // Of histograms the other kind of answer gives nothing, and neither does this one.
        for series in result.series().filter(|series| series.kind == SampleKind::Float) {
            let Some(index) = self.series_index(series.labels())? else { continue };
            let samples = &mut self.series[index].1;
            let n_before = samples.len();
            samples.extend_from_slice(series.samples);
            self.clip(index, n_before)?;
        }
        Ok(())
    }

    /// The number of the series with these labels, none for a series that a receiver would refuse too.
    fn series_index(&mut self, labels: Result<Labels, InvalidSeries>) -> Result<Option<usize>, Error> {
        use InvalidSeries::{NoMetricName, TooLong, TooManyLabels};
        let labels = match labels {
            Err(TooManyLabels { .. } | TooLong { .. } | NoMetricName(_)) => {
                self.metrics.count_skipped(SkipReason::InvalidSeries);
                return Ok(None);
            }
            labels => labels?,
        };
        let index = match self.index_by_labels.entry(labels) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(_) if self.series.len() == MAX_SERIES => {
                return Err(Error::TooMany { what: "series", limit: MAX_SERIES });
            }
            Entry::Vacant(entry) => {
                self.series.push((entry.key().clone(), Vec::new()));
                *entry.insert(self.series.len() - 1)
            }
        };
        Ok(Some(index))
    }

    /// Leaves of the samples from `before` on those in the range.
    fn clip(&mut self, index: usize, from: usize) -> Result<(), Error> {
        let samples = &mut self.series[index].1;
        let range = self.start_ms..=self.end_ms;
        let mut end = from;
        for i in from..samples.len() {
            if range.contains(&samples[i].timestamp_ms) {
                samples[end] = samples[i];
                end += 1;
            }
        }
        samples.truncate(end);
        self.n_samples += end - from;
        match self.n_samples {
            ..=SAMPLE_LIMIT => Ok(()),
            _ => Err(Error::TooMany { what: "samples", limit: SAMPLE_LIMIT }),
        }
    }

    /// The series that have samples in the range, samples ascending.
    pub fn finish(self) -> Vec<SeriesSamples> {
        let mut series = self.series;
        series.retain(|(_, samples)| !samples.is_empty());
        for (_, samples) in &mut series {
            if !samples.is_sorted_by(|a, b| a.timestamp_ms < b.timestamp_ms) {
                samples.sort_by_key(|sample| sample.timestamp_ms);
                samples.dedup_by_key(|sample| sample.timestamp_ms);
            }
        }
        series
    }
}
