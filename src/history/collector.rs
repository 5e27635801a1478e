//! Collects the response to one query, in either format: series with their samples in the range, ascending.
//!
//! Chunks reach beyond the requested range, and they overlap after samples arrived out of order. Therefore
//! samples are clipped and sorted, and the first of two samples with the same timestamp is kept.

use super::error::Error;
use crate::prom::wire::read_response::{self, WireChunk};
use crate::prom::wire::{
    InvalidSeries, MAX_SERIES, ParsedRequest, ProtocolVersion, RejectReason, SampleKind, Scratch, parse_pairs,
};
use crate::prom::{Labels, Sample};
use crate::remote_read::xor;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Samples of a slice. A week of a host's interfaces, scraped every 15 s, has a fifth of it.
pub const SAMPLE_LIMIT: usize = 4 << 20;

/// `Chunk.type` of samples that [`xor`] decodes.
const XOR: i64 = 1;

/// A series and its samples, ascending, with the staleness markers.
pub type SeriesSamples = (Labels, Vec<Sample>);

/// Parts of a response that are not used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkipCounts {
    /// Chunks or samples of native histograms.
    pub histograms: usize,
    /// Series that the remote-write receiver would reject.
    pub invalid_series: usize,
}

/// Collects one response.
pub struct ResponseCollector {
    start_ms: i64,
    end_ms: i64,
    skipped: SkipCounts,
    series: Vec<SeriesSamples>,
    index_by_labels: HashMap<Labels, usize>,
    /// The series of the last frame, which may continue in the next one: its encoded labels, and its index
    /// unless it is skipped.
    last_series: Option<(Vec<u8>, Option<usize>)>,
    n_samples: usize,
    label_bytes: Vec<u8>,
}

impl ResponseCollector {
    /// A collector for the range `[start_ms, end_ms]`.
    pub fn new(start_ms: i64, end_ms: i64) -> Self {
        Self {
            start_ms,
            end_ms,
            skipped: SkipCounts::default(),
            series: Vec::new(),
            index_by_labels: HashMap::new(),
            last_series: None,
            n_samples: 0,
            label_bytes: Vec::new(),
        }
    }

    /// Adds a frame, a `ChunkedReadResponse`.
    ///
    /// # Errors
    /// [`Error`] if the message is invalid, exceeds a limit or belongs to another query than the first.
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
            // Histograms of integers and floats, without and with start timestamps.
            2 | 3 | 5 | 6 => {
                self.skipped.histograms += 1;
                Ok(())
            }
            encoding => Err(Error::Encoding { encoding }),
        })
    }

    /// Adds a `ReadResponse`.
    ///
    /// # Errors
    /// [`Error`] if the message is invalid, exceeds a limit or has another number of results than one.
    pub fn push_response(&mut self, message: &[u8]) -> Result<(), Error> {
        let mut result = &[][..];
        let results = read_response::visit_results(message, |message| result = message)?;
        if results != 1 {
            return Err(Error::Results { results });
        }
        let mut scratch = Scratch::default();
        let result = ParsedRequest::parse(ProtocolVersion::V1, result, 0, i64::MAX, &mut scratch)?;
        self.skipped.histograms += result.counts.histograms;
        self.skipped.invalid_series += result.rejections.count(RejectReason::Labels);
        // The streamed format has no samples of histograms either.
        for series in result.series().filter(|series| series.kind == SampleKind::Float) {
            let Some(index) = self.series_index(series.labels())? else { continue };
            let samples = &mut self.series[index].1;
            let n_before = samples.len();
            samples.extend_from_slice(series.samples);
            self.clip(index, n_before)?;
        }
        Ok(())
    }

    /// Adds samples of a series, in any order.
    ///
    /// # Errors
    /// [`Error`] if the labels are invalid, or a limit is exceeded.
    pub fn push_samples(
        &mut self,
        labels: impl IntoIterator<Item = (String, String)>,
        samples: impl IntoIterator<Item = Sample>,
    ) -> Result<(), Error> {
        let Some(index) = self.series_index(parse_pairs(labels))? else { return Ok(()) };
        let series = &mut self.series[index].1;
        let n_before = series.len();
        series.extend(samples);
        self.clip(index, n_before)
    }

    /// Counts samples of native histograms, which are not used.
    pub fn count_histograms(&mut self, n_samples: usize) {
        self.skipped.histograms += n_samples;
    }

    /// The index of the series with these labels; `None` if the series is skipped.
    fn series_index(&mut self, labels: Result<Labels, InvalidSeries>) -> Result<Option<usize>, Error> {
        use InvalidSeries::{NoMetricName, TooLong, TooManyLabels};
        let labels = match labels {
            Err(TooManyLabels { .. } | TooLong { .. } | NoMetricName(_)) => {
                self.skipped.invalid_series += 1;
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

    /// Removes the samples outside of the range, of those at `from` and after it.
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

    /// Counts of skipped parts so far.
    pub fn skipped(&self) -> SkipCounts {
        self.skipped
    }

    /// The series that have samples in the range.
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
