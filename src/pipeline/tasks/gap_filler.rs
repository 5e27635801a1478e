//! Reads missing samples from the history: the requests of the gap tracker.
//!
//! A range is read in slices, and a slice reaches the engine in chunks, so that neither an answer nor a command holds
//! a whole gap.

use crate::detector::Detector;
use crate::history::{Pace, SeriesSamples};
use crate::pipeline::engine::WeakEngineHandle;
use crate::pipeline::gaps::{AuditedSeries, BackfillRequest, Metrics};
use crate::pipeline::group::gap_guard::{HOLD_TIMEOUT, MAX_HOLD};
use crate::prom::Labels;
use crate::prom::matcher::Matcher;
use crate::tenant::Tenant;
use crate::train::Backends;
use crate::train::history::{self, ALERT_LOOKBACK_MS, FiringAlert};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info};

/// Time range of one read, in milliseconds.
const SLICE_MS: i64 = 300_000;
/// Groups that one read names at most, and bytes of their labels: servers bound the length of a query, as VictoriaMetrics
/// by 16 KiB.
const GROUPS_PER_READ: usize = 500;
const LABEL_BYTES_PER_READ: usize = 8 << 10;
/// Samples in one command: the engine serves other requests between two commands.
const MAX_SAMPLES_PER_COMMAND: usize = 20_000;
/// Pause before a source that did not answer is read again.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Serves requests until the engine is gone.
pub async fn run(
    mut requests: mpsc::Receiver<BackfillRequest>,
    engine: WeakEngineHandle,
    backends: watch::Receiver<Arc<Backends>>,
    metrics: Metrics,
) {
    let gap_filler = GapFiller { engine, backends, metrics };
    while let Some(request) = requests.recv().await {
        let sent = match request {
            BackfillRequest::Fill { detector, tenant, groups, range } => {
                let is_complete = gap_filler.fill(&detector, tenant.as_ref(), &groups, range).await;
                gap_filler.engine.backfill_done(is_complete).await
            }
            BackfillRequest::Audit(series) => gap_filler.audit(series).await,
        };
        if sent.is_none() {
            return;
        }
    }
}

struct GapFiller {
    engine: WeakEngineHandle,
    backends: watch::Receiver<Arc<Backends>>,
    metrics: Metrics,
}

impl GapFiller {
    /// Reads a range slice by slice, and a slice in batches of groups. False if a part is missing.
    async fn fill(
        &self,
        detector: &Arc<Detector>,
        tenant: Option<&Tenant>,
        groups: &[Labels],
        range: (i64, i64),
    ) -> bool {
        let started = Instant::now();
        let batches: Vec<Vec<Matcher>> =
            batches(groups).into_iter().map(|batch| matchers(detector, batch)).collect();
        let (mut after_ms, to_ms) = range;
        let alerts = tokio::time::timeout(HOLD_TIMEOUT, self.read_alerts(detector, tenant, range)).await;
        let Ok(alerts) = alerts else { return false };
        let (name, tenant_of_alerts) = (detector.name.clone(), tenant.cloned());
        if !alerts.is_empty() && self.engine.record_alerts(name, tenant_of_alerts, alerts).await.is_none() {
            return false;
        }
        while after_ms < to_ms {
            let slice = (after_ms, to_ms.min(after_ms + SLICE_MS));
            for batch in &batches {
                let time_left = MAX_HOLD.saturating_sub(started.elapsed()).min(HOLD_TIMEOUT);
                let read = tokio::time::timeout(time_left, self.read(detector, tenant, batch, slice)).await;
                let Ok(Some(series)) = read else { return false };
                for chunk in split_series(series) {
                    if self.engine.backfill(detector.clone(), chunk).await.is_none() {
                        return false;
                    }
                }
            }
            after_ms = slice.1;
        }
        true
    }

    /// The alerts of `exclude_alerts` that fired in a range, at the sources of history. The rows of the range
    /// are scored after it.
    async fn read_alerts(
        &self,
        detector: &Detector,
        tenant: Option<&Tenant>,
        (after_ms, to_ms): (i64, i64),
    ) -> Vec<FiringAlert> {
        let (names, range) = (&detector.training.exclude_alerts, (after_ms - ALERT_LOOKBACK_MS, to_ms));
        let backends = self.backends.borrow().clone();
        let mut alerts = Vec::new();
        for source in &backends.history_clients {
            loop {
                match history::read_firing_alerts(source, tenant, names, range).await {
                    Ok(found) => alerts.extend(found),
                    // The caller has a timeout.
                    Err(error) if error.is_recoverable() => {
                        tokio::time::sleep(RETRY_DELAY).await;
                        continue;
                    }
                    Err(_) => {}
                }
                break;
            }
        }
        alerts
    }

    /// The samples of a slice from all sources; none if a source fails for good.
    async fn read(
        &self,
        detector: &Detector,
        tenant: Option<&Tenant>,
        matchers: &[Matcher],
        range: (i64, i64),
    ) -> Option<Vec<SeriesSamples>> {
        let backends = self.backends.borrow().clone();
        let mut all = Vec::new();
        for source in &backends.history_clients {
            loop {
                let mut read = Vec::new();
                let on_series = |series| {
                    read.extend(series);
                    Ok(())
                };
                let reading = history::read_samples(
                    source,
                    detector,
                    (tenant, matchers),
                    range,
                    Pace::Immediate,
                    on_series,
                );
                match reading.await {
                    Ok(()) => {
                        all.append(&mut read);
                        break;
                    }
                    // The caller has a timeout.
                    Err(error) if error.is_recoverable() => {
                        debug!(component = "history", url = %source.config.url, err = crate::error::chain(&error), "the source of history did not answer, retrying");
                        tokio::time::sleep(error.retry_after().unwrap_or(RETRY_DELAY)).await;
                    }
                    Err(_) => return None,
                }
            }
        }
        Some(all)
    }

    /// Counts series, and reads the groups of those that lack samples. `None` if the engine is gone.
    async fn audit(&self, series: Vec<AuditedSeries>) -> Option<()> {
        let mut failed: BTreeSet<Tenant> = BTreeSet::new();
        for AuditedSeries { detector, group, feature, range, n_samples } in series {
            let (labels, tenant) = (feature.union(&group), detector.tenant_of(&group));
            let tenant = tenant.as_ref();
            // The gap fills of other tenants wait meanwhile.
            if tenant.is_some_and(|tenant| failed.contains(tenant)) {
                self.metrics.count_audit("failed");
                continue;
            }
            let series_matchers: Vec<Matcher> =
                labels.iter().map(|(name, value)| Matcher::equal(name, value)).collect();
            let count = |read: Vec<SeriesSamples>| -> usize {
                // Several series may have fed one feature, one after the other.
                let is_same = |read_labels: &Labels| {
                    *read_labels == labels || read_labels.split(&detector.ignore).1 == labels
                };
                let same = read.into_iter().filter(|(read_labels, _)| is_same(read_labels));
                let times: BTreeSet<i64> =
                    same.flat_map(|(_, samples)| samples).map(|sample| sample.timestamp_ms).collect();
                times.len()
            };
            let read =
                tokio::time::timeout(HOLD_TIMEOUT, self.read(&detector, tenant, &series_matchers, range))
                    .await;
            let result = match read.ok().flatten().map(count) {
                None => "failed",
                Some(n_stored) if n_stored > n_samples => "missing",
                Some(n_stored) if n_stored < n_samples => "surplus",
                Some(_) => "equal",
            };
            self.metrics.count_audit(result);
            failed.extend(tenant.filter(|_| result == "failed").cloned());
            if result == "missing" {
                info!(component = "history", detector = detector.name, group = %group, series = %feature, "samples are missing, reading them");
                let group_matchers = history::group_matchers(&detector, &group);
                let read =
                    tokio::time::timeout(HOLD_TIMEOUT, self.read(&detector, tenant, &group_matchers, range))
                        .await;
                for chunk in split_series(read.ok().flatten().unwrap_or_default()) {
                    self.engine.backfill(detector.clone(), chunk).await?;
                }
            }
        }
        Some(())
    }
}

/// Splits groups into those of one read each.
fn batches(groups: &[Labels]) -> Vec<&[Labels]> {
    let (mut batches, mut first, mut n_bytes) = (Vec::new(), 0, 0);
    for (i, group) in groups.iter().enumerate() {
        let n_group_bytes = group.n_text_bytes();
        if i > first && (i - first == GROUPS_PER_READ || n_bytes + n_group_bytes > LABEL_BYTES_PER_READ) {
            batches.push(&groups[first..i]);
            (first, n_bytes) = (i, 0);
        }
        n_bytes += n_group_bytes;
    }
    batches.push(&groups[first..]);
    batches
}

/// Selects at least these groups. Remote read matches external labels by `=` only, so with several values
/// series without the label pass too.
fn matchers(detector: &Detector, groups: &[Labels]) -> Vec<Matcher> {
    let of_label = |name: &String| {
        let mut values: BTreeSet<&str> = groups.iter().map(|group| group.get(name)).collect();
        if values.len() > 1 {
            values.insert("");
        }
        Matcher::one_of(name, values)
    };
    detector.by.iter().map(of_label).collect()
}

/// Cuts series into chunks for one command each. A series stays whole.
pub fn split_series(series: Vec<SeriesSamples>) -> Vec<Vec<SeriesSamples>> {
    let mut chunks: Vec<Vec<SeriesSamples>> = Vec::new();
    let mut remaining = 0_usize;
    for (labels, samples) in series {
        if remaining < samples.len() || chunks.is_empty() {
            remaining = MAX_SAMPLES_PER_COMMAND;
            chunks.push(Vec::new());
        }
        remaining = remaining.saturating_sub(samples.len());
        chunks.last_mut().expect("pushed before").push((labels, samples));
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_is_named_in_a_read_of_bounded_length() {
        let group = |i: usize, n_bytes: usize| {
            let instance = format!("{i:0n_bytes$}");
            Labels::new([("instance", instance.as_str()), ("job", "n")]).expect("valid")
        };
        let lengths = |groups: &[Labels]| {
            let batches = batches(groups);
            assert!(batches.concat().iter().eq(groups), "each once, in order");
            batches.iter().map(|batch| batch.len()).collect::<Vec<_>>()
        };
        // "instance" and "job" with their values: 12 bytes and the instance.
        let of = |n_groups, n_bytes| (0..n_groups).map(|i| group(i, n_bytes)).collect::<Vec<_>>();
        assert_eq!(lengths(&of(1200, 4)), [500, 500, 200]);
        assert_eq!(lengths(&of(10, 2036)), [4, 4, 2]);
        assert_eq!(lengths(&of(3, 9000)), [1, 1, 1]);
        assert_eq!(lengths(&of(1, 4)), [1]);
    }
}
