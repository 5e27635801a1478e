//! A write request, from its bytes to the cells of the windows.

use super::Engine;
use crate::ingest::{self, Dropped, Written};
use crate::prom::wire::{self, Kind, Reason as Refusal, Version, snappy};
use crate::series::{Entry, Ignored};
use crate::window::Push;
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
        version: Version,
        body: &[u8],
        now: Instant,
        now_ms: i64,
    ) -> Result<Written, ingest::Error> {
        wire::give_back(&mut self.buffer);
        let message = snappy::decompress(body, ingest::BODY_LIMIT, &mut self.buffer)?;
        let (seed, latest_ms) = (self.index.seed(), now_ms + MAX_AHEAD_MS);
        let request = wire::Request::read(version, message, seed, latest_ms, &mut self.scratch)?;
        self.index.lookup(request.hashes(), &mut self.known);

        let mut refused = request.refused.clone();
        let mut written = Written::default();
        // A count and a sum of each.
        let of_invalid_histograms = 2 * request.refused.of(Refusal::Histogram);
        let mut received = request.refused_samples + of_invalid_histograms;
        let mut dropped = Tally::default();
        dropped.add(Dropped::InvalidLabels, request.refused_samples);
        dropped.add(Dropped::InvalidHistogram, of_invalid_histograms);
        let mut touched = BTreeSet::new();
        for ((series, hash), known) in request.series().zip(request.hashes()).zip(&self.known) {
            if series.samples.is_empty() {
                // Exemplars alone: nothing of them is kept, and nothing remembered.
                match series.labels() {
                    Ok(_) => written.exemplars += series.exemplars,
                    Err(error) => {
                        refused.add(Refusal::Labels, series.exemplars, || crate::yaml::chain(&error));
                    }
                }
                continue;
            }
            let known = known.filter(|code| match self.index.entry(*code) {
                Entry::Ignored(_) => true,
                // A group that is gone comes back under another number.
                Entry::Watched(targets) => targets.iter().all(|target| self.groups.contains(target.group)),
            });
            let code = known.unwrap_or_else(|| {
                let resolved = match series.labels() {
                    Ok(labels) => self.groups.resolve(&labels, now),
                    Err(_) => Err(Ignored::Invalid),
                };
                let entry = match &resolved {
                    Ok(targets) => Entry::Watched(targets),
                    Err(ignored) => Entry::Ignored(*ignored),
                };
                self.index.insert(*hash, entry)
            });
            let entry = self.index.entry(code);
            let mut in_time = 0;
            for sample in series.samples {
                if !(OLDEST_MS..=latest_ms).contains(&sample.timestamp_ms) {
                    // A histogram's sum has the time of its count, and is no second mistake.
                    let count = usize::from(series.kind != Kind::HistogramSum);
                    refused
                        .add(Refusal::Timestamp, count, || out_of_time(&series, sample.timestamp_ms, now_ms));
                    dropped.add(Dropped::InvalidTimestamp, 1);
                    continue;
                }
                in_time += 1;
                let Entry::Watched(targets) = entry else { continue };
                // Of several detectors that watch it, one that uses it is enough.
                let (mut is_used, mut is_late, mut unused) = (false, false, None);
                for target in targets {
                    let Some(group) = self.groups.get_mut(target.group) else { continue };
                    let (outcome, late) = group.push(target.column, *sample, now);
                    match outcome {
                        Push::Stored => {
                            touched.insert(target.group);
                            is_used = true;
                            is_late |= late;
                        }
                        Push::Duplicate => unused = Some(Dropped::Duplicate),
                        Push::Conflict => {
                            self.conflicts += 1;
                            unused = Some(Dropped::Conflict);
                        }
                        Push::TooOld => unused = Some(Dropped::TooOld),
                    }
                }
                if is_late {
                    self.ingest.late();
                }
                if let Some(reason) = unused.filter(|_| !is_used) {
                    dropped.add(reason, 1);
                }
            }
            received += series.samples.len();
            if let Entry::Ignored(ignored) = entry {
                dropped.add(ignored.into(), in_time);
                if ignored == Ignored::Invalid {
                    let count = if series.kind == Kind::HistogramSum { 0 } else { in_time };
                    refused.add(Refusal::Labels, count, || {
                        crate::yaml::chain(&series.labels().expect_err("found invalid before"))
                    });
                    continue;
                }
            }
            match series.kind {
                Kind::Float => written.samples += in_time,
                Kind::HistogramCount => written.histograms += in_time,
                Kind::HistogramSum => {}
            }
            written.exemplars += series.exemplars;
        }
        self.ingest.received(&request.counts, received, &refused);
        for (reason, count) in dropped.iter() {
            self.ingest.drop_samples(reason, count);
        }
        self.score(&touched, now);
        if refused.is_empty() { Ok(written) } else { Err(ingest::Error::Invalid { refused, written }) }
    }
}

/// Samples not used, by reason, within one request.
#[derive(Default)]
struct Tally(Vec<(Dropped, usize)>);

impl Tally {
    fn add(&mut self, reason: Dropped, samples: usize) {
        match self.0.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += samples,
            None => self.0.push((reason, samples)),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (Dropped, usize)> {
        self.0.iter().copied()
    }
}

impl From<Ignored> for Dropped {
    fn from(ignored: Ignored) -> Self {
        match ignored {
            Ignored::Unwatched => Self::Unwatched,
            Ignored::Own => Self::Own,
            Ignored::Invalid => Self::InvalidLabels,
            Ignored::OverLimit => Self::OverLimit,
        }
    }
}

fn out_of_time(series: &wire::Series<'_>, timestamp_ms: i64, now_ms: i64) -> String {
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
