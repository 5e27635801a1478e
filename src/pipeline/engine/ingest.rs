//! Writes the samples of a write request into the windows.
//!
//! A malformed request changes nothing: it is parsed completely before the first sample is pushed. A part that is
//! invalid is rejected alone, and the sender receives its reason.

use super::Engine;
use crate::ingest::{self, AcceptedCounts, DropReason, Metrics as IngestMetrics};
use crate::kafka::Compression;
use crate::pipeline::groups::Groups;
use crate::pipeline::ledger::NewestRows;
use crate::prom::Sample;
use crate::prom::wire::{
    self, ParsedRequest, ProtocolVersion, RejectReason, Rejections, SampleKind, WireSeries, snappy,
};
use crate::series::{ColumnRef, EntryId, IgnoreReason, IndexEntry, SeriesIndex};
use crate::tenant::Tenant;
use crate::window::PushOutcome;
use std::time::Instant;

/// Samples with an earlier timestamp are rejected: the sender most likely wrote seconds in place of milliseconds.
const OLDEST_MS: i64 = 946_684_800_000;
/// Samples further ahead of the local clock are rejected, as in Prometheus.
const MAX_AHEAD_MS: i64 = 600_000;
/// Series whose groups are read ahead together: several groups, and less than a processor's cache.
const PREFETCHED: usize = 256;

impl Engine {
    /// Decodes a compressed write request, pushes its samples and scores the touched rows.
    ///
    /// # Errors
    /// [`ingest::Error`]. After [`PartialWrite`](ingest::Error::PartialWrite) the valid part is stored; after any
    /// other error nothing is.
    pub fn ingest(
        &mut self,
        version: ProtocolVersion,
        tenant: Option<&Tenant>,
        body: &[u8],
        now: Instant,
        now_ms: i64,
    ) -> Result<AcceptedCounts, ingest::Error> {
        let body = (Compression::Snappy, body);
        let report = self.push_request(version, tenant, body, None, now, now_ms)?;
        self.score_groups(&report.touched.iter().copied().collect(), now);
        report.finish()
    }

    /// Decodes a write request and pushes its samples. Adds the newest row of each group to `rows`. The series of a record
    /// have their tenant, those of another request get it.
    pub(super) fn push_request(
        &mut self,
        version: ProtocolVersion,
        tenant: Option<&Tenant>,
        body: (Compression, &[u8]),
        mut rows: Option<&mut NewestRows>,
        now: Instant,
        now_ms: i64,
    ) -> Result<WriteReport, ingest::Error> {
        let latest_ms = now_ms + MAX_AHEAD_MS;
        let seed = self.index.seed(tenant);
        let (request, entry_ids) = self.decoder.decode(version, body, seed, latest_ms, &mut self.index)?;
        let mut report = WriteReport::new(&request);
        for (i, ((series, hash), cached_id)) in
            request.series().zip(request.hashes()).zip(entry_ids).enumerate()
        {
            if i % PREFETCHED == 0 {
                prefetch_groups(entry_ids[i..].iter().take(PREFETCHED), &self.index, &mut self.groups);
            }
            if series.samples.is_empty() {
                report.count_exemplars(&series);
                continue;
            }
            let labelled = LabelledSeries { series: &series, tenant };
            let entry_id = labelled.resolve(*hash, *cached_id, &mut self.groups, &mut self.index, now);
            let entry = self.index.entry(entry_id);
            let mut n_in_range = 0;
            let mut newest_ms = i64::MIN;
            for sample in series.samples {
                if !(OLDEST_MS..=latest_ms).contains(&sample.timestamp_ms) {
                    report.reject_timestamp(&series, sample.timestamp_ms, now_ms);
                    continue;
                }
                n_in_range += 1;
                newest_ms = newest_ms.max(sample.timestamp_ms);
                if let IndexEntry::Watched(columns) = entry {
                    push_sample(*sample, columns, &mut self.groups, &mut report, now);
                }
            }
            if let (Some(rows), IndexEntry::Watched(columns)) = (&mut rows, entry)
                && n_in_range > 0
            {
                for column_ref in columns {
                    let row = rows.entry(column_ref.group).or_insert(newest_ms);
                    *row = newest_ms.max(*row);
                }
            }
            report.count_series(&series, entry, n_in_range);
            if entry == IndexEntry::Ignored(IgnoreReason::OverTenantLimit)
                && let Some(tenant) = labelled.tenant(&self.groups)
            {
                self.ingest_metrics.count_over_tenant_limit(&tenant, n_in_range);
                self.limited_tenants.insert(tenant);
            }
        }
        report.record(&request, &self.ingest_metrics);
        self.conflicts += report.n_conflicts;
        Ok(report)
    }
}

/// Reads the groups of known series ahead of their samples.
fn prefetch_groups<'a>(
    ids: impl Iterator<Item = &'a Option<EntryId>>,
    index: &SeriesIndex,
    groups: &mut Groups,
) {
    let mut last = None;
    for id in ids.flatten() {
        let IndexEntry::Watched(columns) = index.entry(*id) else { continue };
        for column_ref in columns {
            if last.replace(column_ref.group) != Some(column_ref.group) {
                groups.prefetch(column_ref.group);
            }
        }
    }
}

/// The buffers of requests, reused from one to the next.
#[derive(Default)]
pub(super) struct Decoder {
    buffer: Vec<u8>,
    scratch: wire::Scratch,
    /// Index entries of the series of a request.
    entry_ids: Vec<Option<EntryId>>,
}

impl Decoder {
    /// Decompresses and parses a request, and looks up its series: one index entry for each of
    /// [`ParsedRequest::series`].
    fn decode<'d>(
        &'d mut self,
        version: ProtocolVersion,
        (compression, body): (Compression, &'d [u8]),
        seed: u64,
        latest_ms: i64,
        index: &mut SeriesIndex,
    ) -> Result<(ParsedRequest<'d>, &'d [Option<EntryId>]), ingest::Error> {
        wire::shrink_if_large(&mut self.buffer);
        let message = match compression {
            Compression::Snappy => snappy::decompress(body, ingest::BODY_LIMIT, &mut self.buffer)?,
            Compression::None if body.len() > ingest::BODY_LIMIT => return Err(ingest::Error::TooLarge),
            Compression::None => body,
        };
        let request = ParsedRequest::parse(version, message, seed, latest_ms, &mut self.scratch)?;
        index.lookup(request.hashes(), &mut self.entry_ids);
        Ok((request, &self.entry_ids))
    }
}

/// A series, and the tenant of its request.
#[derive(Clone, Copy)]
struct LabelledSeries<'a> {
    series: &'a WireSeries<'a>,
    tenant: Option<&'a Tenant>,
}

impl LabelledSeries<'_> {
    /// The index entry of the series. Decodes the labels and inserts the entry if the series is new or its group is gone.
    fn resolve(
        self,
        hash: u128,
        cached_id: Option<EntryId>,
        groups: &mut Groups,
        index: &mut SeriesIndex,
        now: Instant,
    ) -> EntryId {
        let is_current = |entry_id: &EntryId| match index.entry(*entry_id) {
            IndexEntry::Ignored(_) => true,
            // A group that is evicted and created again has another id, and columns get other numbers.
            IndexEntry::Watched(columns) => columns.iter().all(|column_ref| groups.contains(column_ref)),
        };
        if let Some(entry_id) = cached_id.filter(is_current) {
            return entry_id;
        }
        let resolved = match self.series.labels() {
            Ok(labels) => {
                let newest = self.series.samples.iter().map(|sample| sample.timestamp_ms).max();
                groups.resolve(&groups.with_tenant(labels, self.tenant), newest, now)
            }
            Err(_) => Err(IgnoreReason::InvalidLabels),
        };
        let entry = match &resolved {
            Ok(columns) => IndexEntry::Watched(columns),
            Err(reason) => IndexEntry::Ignored(*reason),
        };
        index.insert(hash, entry)
    }

    /// The tenant of the series; that of a record is in its labels.
    fn tenant(self, groups: &Groups) -> Option<Tenant> {
        self.tenant.cloned().or_else(|| groups.tenant_of(&self.series.labels().ok()?))
    }
}

/// Pushes a sample into the columns of its series. The sample counts as used if at least one column stores it.
fn push_sample(
    sample: Sample,
    columns: &[ColumnRef],
    groups: &mut Groups,
    report: &mut WriteReport,
    now: Instant,
) {
    let (mut is_used, mut is_late, mut unused) = (false, false, None);
    for column_ref in columns {
        let Some(group) = groups.get_mut(column_ref.group) else { continue };
        let (outcome, late) = group.push(column_ref.column, sample, now);
        match outcome {
            PushOutcome::Stored => {
                report.touch(column_ref.group);
                is_used = true;
                is_late |= late;
            }
            PushOutcome::Duplicate => unused = Some(DropReason::Duplicate),
            PushOutcome::Conflict => {
                report.n_conflicts += 1;
                unused = Some(DropReason::Conflict);
            }
            PushOutcome::TooOld => unused = Some(DropReason::TooOld),
        }
    }
    report.n_late += usize::from(is_late);
    if let Some(reason) = unused.filter(|_| !is_used) {
        report.dropped.add(reason, 1);
    }
}

/// The outcome of a write request, for its response and its metrics.
pub(super) struct WriteReport {
    /// Counts of the response.
    accepted: AcceptedCounts,
    rejections: Rejections,
    dropped: DropTally,
    n_received: usize,
    n_late: usize,
    /// Samples that conflict with stored ones.
    n_conflicts: usize,
    /// Ids of the groups that stored samples; one again if samples of others were between its own.
    pub(super) touched: Vec<u32>,
}

impl WriteReport {
    /// A report that contains the parts rejected while parsing.
    fn new(request: &ParsedRequest<'_>) -> Self {
        // Each histogram is two samples: a count and a sum.
        let n_invalid_histogram = 2 * request.rejections.count(RejectReason::Histogram);
        let mut dropped = DropTally::default();
        dropped.add(DropReason::InvalidLabels, request.rejected_samples);
        dropped.add(DropReason::InvalidHistogram, n_invalid_histogram);
        Self {
            accepted: AcceptedCounts::default(),
            rejections: request.rejections.clone(),
            dropped,
            n_received: request.rejected_samples + n_invalid_histogram,
            n_late: 0,
            n_conflicts: 0,
            touched: Vec::new(),
        }
    }

    /// Records that a group stored a sample.
    fn touch(&mut self, group: u32) {
        if self.touched.last() != Some(&group) {
            self.touched.push(group);
        }
    }

    /// Counts a series that has only exemplars. The index does not store it.
    fn count_exemplars(&mut self, series: &WireSeries<'_>) {
        match series.labels() {
            Ok(_) => self.accepted.exemplars += series.exemplars,
            Err(error) => {
                self.rejections.add(RejectReason::Labels, series.exemplars, || crate::error::chain(&error));
            }
        }
    }

    /// Rejects a sample with a timestamp out of range.
    fn reject_timestamp(&mut self, series: &WireSeries<'_>, timestamp_ms: i64, now_ms: i64) {
        // The sum of a histogram has the timestamp of its count, which is rejected already.
        let count = usize::from(series.kind != SampleKind::HistogramSum);
        self.rejections.add(RejectReason::Timestamp, count, || timestamp_error(series, timestamp_ms, now_ms));
        self.dropped.add(DropReason::InvalidTimestamp, 1);
    }

    /// Counts a series with samples, of which `n_in_range` have a valid timestamp.
    fn count_series(&mut self, series: &WireSeries<'_>, entry: IndexEntry<'_>, n_in_range: usize) {
        self.n_received += series.samples.len();
        if let IndexEntry::Ignored(reason) = entry {
            self.dropped.add(reason.into(), n_in_range);
            if reason == IgnoreReason::InvalidLabels {
                let count = if series.kind == SampleKind::HistogramSum { 0 } else { n_in_range };
                self.rejections.add(RejectReason::Labels, count, || {
                    crate::error::chain(
                        &series.labels().expect_err("the index entry says that they are invalid"),
                    )
                });
                return;
            }
        }
        match series.kind {
            SampleKind::Float => self.accepted.samples += n_in_range,
            SampleKind::HistogramCount => self.accepted.histograms += n_in_range,
            SampleKind::HistogramSum => {}
        }
        self.accepted.exemplars += series.exemplars;
    }

    /// Adds the counts to the metrics.
    fn record(&self, request: &ParsedRequest<'_>, metrics: &IngestMetrics) {
        metrics.count_received(&request.counts, self.n_received, &self.rejections);
        metrics.count_late(self.n_late);
        for (reason, count) in self.dropped.iter() {
            metrics.count_dropped(reason, count);
        }
    }

    /// The response.
    pub(super) fn finish(self) -> Result<AcceptedCounts, ingest::Error> {
        match self.rejections.is_empty() {
            true => Ok(self.accepted),
            false => Err(ingest::Error::PartialWrite { rejections: self.rejections, stats: self.accepted }),
        }
    }
}

/// Unused samples of one request, by reason.
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
            IgnoreReason::WrongShard => Self::WrongShard,
            IgnoreReason::OverLimit => Self::SeriesLimit,
            IgnoreReason::OverTenantLimit => Self::TenantSeriesLimit,
            IgnoreReason::TooManyTenants => Self::TenantLimit,
            IgnoreReason::NoTenant => Self::NoTenant,
        }
    }
}

fn timestamp_error(series: &WireSeries<'_>, timestamp_ms: i64, now_ms: i64) -> String {
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
