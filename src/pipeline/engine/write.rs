//! A write request, from its bytes to the cells of the windows.

use super::Engine;
use crate::ingest::{self, AcceptedCounts, DropReason};
use crate::prom::wire::{self, ProtocolVersion, RejectReason as Refusal, SampleKind, snappy};
use crate::series::{IgnoreReason, IndexEntry};
use crate::window::PushOutcome;
use std::collections::BTreeSet;
use std::time::Instant;

/// Samples with an earlier timestamp are refused: seconds sent for milliseconds, most likely.
const OLDEST_MS: i64 = 946_684_800_000;
/// Samples this far ahead of this machine's clock are refused, as Prometheus refuses them.
const MAX_AHEAD_MS: i64 = 600_000;

impl Engine {
    /// Takes in a compressed write request: all of it, or, when it is malformed, nothing.
    ///
    /// # Errors
    /// [`ingest::Error`]; [`Invalid`](ingest::Error::Invalid) says that the valid part is in.
    pub fn write(
        &mut self,
        version: ProtocolVersion,
        body: &[u8],
        now: Instant,
        now_ms: i64,
    ) -> Result<AcceptedCounts, ingest::Error> {
        wire::shrink_if_large(&mut self.buffer);
        let message = snappy::decompress(body, ingest::BODY_LIMIT, &mut self.buffer)?;
        let (seed, latest_ms) = (self.index.seed(), now_ms + MAX_AHEAD_MS);
        let request = wire::ParsedRequest::parse(version, message, seed, latest_ms, &mut self.scratch)?;
        self.index.lookup(request.hashes(), &mut self.entry_ids);

        let mut rejections = request.rejections.clone();
        let mut stats = AcceptedCounts::default();
        // A count and a sum of each.
        let invalid_histogram_samples = 2 * request.rejections.count(Refusal::Histogram);
        let mut n_received = request.rejected_samples + invalid_histogram_samples;
        let mut drop_tally = DropTally::default();
        drop_tally.add(DropReason::InvalidLabels, request.rejected_samples);
        drop_tally.add(DropReason::InvalidHistogram, invalid_histogram_samples);
        let mut touched = BTreeSet::new();
        for ((series, hash), cached_id) in request.series().zip(request.hashes()).zip(&self.entry_ids) {
            if series.samples.is_empty() {
                // Exemplars alone: nothing of them is kept, and nothing remembered.
                match series.labels() {
                    Ok(_) => stats.exemplars += series.exemplars,
                    Err(error) => {
                        rejections.add(Refusal::Labels, series.exemplars, || crate::error::chain(&error));
                    }
                }
                continue;
            }
            let cached_id = cached_id.filter(|entry_id| match self.index.entry(*entry_id) {
                IndexEntry::Ignored(_) => true,
                // A group that is gone comes back under another number.
                IndexEntry::Watched(columns) => {
                    columns.iter().all(|column_ref| self.groups.contains(column_ref.group))
                }
            });
            let entry_id = cached_id.unwrap_or_else(|| {
                let resolved = match series.labels() {
                    Ok(labels) => self.groups.resolve(&labels, now),
                    Err(_) => Err(IgnoreReason::InvalidLabels),
                };
                let entry = match &resolved {
                    Ok(columns) => IndexEntry::Watched(columns),
                    Err(reason) => IndexEntry::Ignored(*reason),
                };
                self.index.insert(*hash, entry)
            });
            let entry = self.index.entry(entry_id);
            let mut n_in_range = 0;
            for sample in series.samples {
                if !(OLDEST_MS..=latest_ms).contains(&sample.timestamp_ms) {
                    // A histogram's sum has the time of its count, and is no second mistake.
                    let count = usize::from(series.kind != SampleKind::HistogramSum);
                    rejections.add(Refusal::Timestamp, count, || {
                        timestamp_error(&series, sample.timestamp_ms, now_ms)
                    });
                    drop_tally.add(DropReason::InvalidTimestamp, 1);
                    continue;
                }
                n_in_range += 1;
                let IndexEntry::Watched(columns) = entry else { continue };
                // Of several detectors that watch it, one that uses it is enough.
                let (mut is_used, mut is_late, mut unused) = (false, false, None);
                for column_ref in columns {
                    let Some(group) = self.groups.get_mut(column_ref.group) else { continue };
                    let (outcome, late) = group.push(column_ref.column, *sample, now);
                    match outcome {
                        PushOutcome::Stored => {
                            touched.insert(column_ref.group);
                            is_used = true;
                            is_late |= late;
                        }
                        PushOutcome::Duplicate => unused = Some(DropReason::Duplicate),
                        PushOutcome::Conflict => {
                            self.conflicts += 1;
                            unused = Some(DropReason::Conflict);
                        }
                        PushOutcome::TooOld => unused = Some(DropReason::TooOld),
                    }
                }
                if is_late {
                    self.ingest_metrics.count_late();
                }
                if let Some(reason) = unused.filter(|_| !is_used) {
                    drop_tally.add(reason, 1);
                }
            }
            n_received += series.samples.len();
            if let IndexEntry::Ignored(reason) = entry {
                drop_tally.add(reason.into(), n_in_range);
                if reason == IgnoreReason::InvalidLabels {
                    let count = if series.kind == SampleKind::HistogramSum { 0 } else { n_in_range };
                    rejections.add(Refusal::Labels, count, || {
                        crate::error::chain(&series.labels().expect_err("found invalid before"))
                    });
                    continue;
                }
            }
            match series.kind {
                SampleKind::Float => stats.samples += n_in_range,
                SampleKind::HistogramCount => stats.histograms += n_in_range,
                SampleKind::HistogramSum => {}
            }
            stats.exemplars += series.exemplars;
        }
        self.ingest_metrics.count_received(&request.counts, n_received, &rejections);
        for (reason, count) in drop_tally.iter() {
            self.ingest_metrics.count_dropped(reason, count);
        }
        self.score_groups(&touched, now);
        if rejections.is_empty() { Ok(stats) } else { Err(ingest::Error::PartialWrite { rejections, stats }) }
    }
}

/// Samples not used, by reason, within one request.
#[derive(Default)]
struct DropTally(Vec<(DropReason, usize)>);

impl DropTally {
    fn add(&mut self, reason: DropReason, samples: usize) {
        match self.0.iter_mut().find(|(existing, _)| *existing == reason) {
            Some((_, count)) => *count += samples,
            None => self.0.push((reason, samples)),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (DropReason, usize)> {
        self.0.iter().copied()
    }
}

impl From<IgnoreReason> for DropReason {
    fn from(reason: IgnoreReason) -> Self {
        match reason {
            IgnoreReason::Unwatched => Self::Unwatched,
            IgnoreReason::OwnOutput => Self::OwnOutput,
            IgnoreReason::InvalidLabels => Self::InvalidLabels,
            IgnoreReason::OverLimit => Self::SeriesLimit,
        }
    }
}

fn timestamp_error(series: &wire::WireSeries<'_>, timestamp_ms: i64, now_ms: i64) -> String {
    let name = series.labels().map_or_else(|_| "a series".to_string(), |labels| labels.to_string());
    if timestamp_ms < OLDEST_MS {
        format!("{name} has timestamp {timestamp_ms}, before the year 2000: timestamps are in milliseconds")
    } else {
        let ahead = (timestamp_ms - now_ms) / 1000;
        format!(
            "{name} has timestamp {timestamp_ms}, {ahead} s ahead of this clock, above the limit of {} s",
            MAX_AHEAD_MS / 1000
        )
    }
}
