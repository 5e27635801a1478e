//! What an answer to one query holds, of either kind: series with their samples, in the range, in order.
//!
//! Chunks reach beyond the range that was asked for, and after samples that came out of order they overlap.
//! So everything is clipped, sorted, and of two samples of one time the first one stays.

use super::{Error, Metrics, Series, Skipped, xor};
use crate::prom::Labels;
use crate::prom::wire::read::{self, Chunk};
use crate::prom::wire::{InvalidSeries, Kind, MAX_SERIES, Reason, Request, Scratch, Version};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Samples of a slice: a week of a host's interfaces, every 15 s, is a fifth of it.
pub const SAMPLE_LIMIT: usize = 4 << 20;

/// `Chunk.type` of samples that [`xor`] decodes.
const XOR: i64 = 1;

/// Collects an answer.
pub struct Answer<'a> {
    start_ms: i64,
    end_ms: i64,
    metrics: &'a Metrics,
    series: Vec<Series>,
    numbers: HashMap<Labels, usize>,
    /// The series of the last frame, which may go on in the next: its labels on the wire, and its number if
    /// it is one that is taken.
    last: Option<(Vec<u8>, Option<usize>)>,
    n_samples: usize,
    label_bytes: Vec<u8>,
}

impl<'a> Answer<'a> {
    /// An answer for `[start_ms, end_ms]`.
    pub fn new(start_ms: i64, end_ms: i64, metrics: &'a Metrics) -> Self {
        let (series, numbers, last, n_samples) = (Vec::new(), HashMap::new(), None, 0);
        Self { start_ms, end_ms, metrics, series, numbers, last, n_samples, label_bytes: Vec::new() }
    }

    /// Takes a frame, a `ChunkedReadResponse`.
    ///
    /// # Errors
    /// [`Error`] when it is none, or not an answer to the only query.
    pub fn frame(&mut self, message: &[u8]) -> Result<(), Error> {
        let mut label_bytes = std::mem::take(&mut self.label_bytes);
        let query_index = read::visit_frame(message, &mut label_bytes, |series| self.chunks(&series))?;
        self.label_bytes = label_bytes;
        if query_index != 0 {
            return Err(Error::QueryIndex { query_index });
        }
        Ok(())
    }

    fn chunks(&mut self, series: &read::Series<'_>) -> Result<(), Error> {
        let number = match &self.last {
            Some((label_bytes, number)) if label_bytes == series.label_bytes => *number,
            _ => {
                let number = self.number(series.labels())?;
                self.last = Some((series.label_bytes.to_vec(), number));
                number
            }
        };
        let Some(number) = number else { return Ok(()) };
        series.visit_chunks(|Chunk { encoding, data }| match encoding {
            XOR => {
                let samples = &mut self.series[number].1;
                let before = samples.len();
                xor::decode(data, samples)?;
                self.clip(number, before)
            }
            // Histograms, integers and floats, without and with start times.
            2 | 3 | 5 | 6 => {
                self.metrics.skip(Skipped::Histogram);
                Ok(())
            }
            encoding => Err(Error::Encoding { encoding }),
        })
    }

    /// Takes a `ReadResponse`.
    ///
    /// # Errors
    /// [`Error`] when it is none, or not an answer to the only query.
    pub fn response(&mut self, message: &[u8]) -> Result<(), Error> {
        let mut result = &[][..];
        let results = read::visit_results(message, |message| result = message)?;
        if results != 1 {
            return Err(Error::Results { results });
        }
        let mut scratch = Scratch::default();
        let result = Request::read(Version::V1, result, 0, i64::MAX, &mut scratch)?;
        self.metrics.skip_many(Skipped::Histogram, result.counts.histograms);
        self.metrics.skip_many(Skipped::InvalidSeries, result.refused.of(Reason::Labels));
        // Of histograms the other kind of answer gives nothing, and neither does this one.
        for series in result.series().filter(|series| series.kind == Kind::Float) {
            let Some(number) = self.number(series.labels())? else { continue };
            let samples = &mut self.series[number].1;
            let before = samples.len();
            samples.extend_from_slice(series.samples);
            self.clip(number, before)?;
        }
        Ok(())
    }

    /// The number of the series with these labels, none for a series that a receiver would refuse too.
    fn number(&mut self, labels: Result<Labels, InvalidSeries>) -> Result<Option<usize>, Error> {
        use InvalidSeries::{NoMetricName, TooLong, TooManyLabels};
        let labels = match labels {
            Err(TooManyLabels { .. } | TooLong { .. } | NoMetricName(_)) => {
                self.metrics.skip(Skipped::InvalidSeries);
                return Ok(None);
            }
            labels => labels?,
        };
        let number = match self.numbers.entry(labels) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(_) if self.series.len() == MAX_SERIES => {
                return Err(Error::TooMany { what: "series", limit: MAX_SERIES });
            }
            Entry::Vacant(entry) => {
                self.series.push((entry.key().clone(), Vec::new()));
                *entry.insert(self.series.len() - 1)
            }
        };
        Ok(Some(number))
    }

    /// Leaves of the samples from `before` on those in the range.
    fn clip(&mut self, number: usize, before: usize) -> Result<(), Error> {
        let samples = &mut self.series[number].1;
        let range = self.start_ms..=self.end_ms;
        let mut kept = before;
        for i in before..samples.len() {
            if range.contains(&samples[i].timestamp_ms) {
                samples[kept] = samples[i];
                kept += 1;
            }
        }
        samples.truncate(kept);
        self.n_samples += kept - before;
        match self.n_samples {
            ..=SAMPLE_LIMIT => Ok(()),
            _ => Err(Error::TooMany { what: "samples", limit: SAMPLE_LIMIT }),
        }
    }

    /// The series that have samples in the range, samples ascending.
    pub fn finish(self) -> Vec<Series> {
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
