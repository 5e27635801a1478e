//! Batches of scores for the remote-write endpoints, and their cursors.

use super::Engine;
use super::jobs::JobSamples;
use crate::pipeline::group::Group;
use crate::pipeline::output_series::{PendingSamples, PendingStaleMarkers};
use crate::prom::{Labels, Sample};
use crate::remote_write::{self, Batch, CursorPosition, FailureReason, TimeSeries};
use crate::time;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use tokio::sync::Notify;

/// Scores written later than this after their timestamp count as backfilled: the look-back of Prometheus, within
/// which an alert sees them.
const BACKFILLED_AFTER_MS: i64 = 300_000;
/// The state of one remote-write endpoint.
pub(super) struct EndpointState {
    /// Groups with scores that the endpoint lacks.
    pub(super) pending: BTreeSet<u32>,
    pub(super) wake: Arc<Notify>,
    /// Last group of the last batch; the next batch starts after it, so that all groups are served in turn.
    pub(super) last_group: u32,
    /// Staleness markers of groups that are gone.
    pub(super) stale_markers: PendingStaleMarkers,
    /// Samples of the jobs.
    pub(super) job_samples: PendingSamples,
}

impl EndpointState {
    /// True if the endpoint lacks anything that is there to be written.
    pub(super) fn has_unwritten(&self) -> bool {
        !self.pending.is_empty() || self.stale_markers.has_unwritten() || !self.job_samples.is_empty()
    }
}

impl Engine {
    /// Hands the samples of the jobs to every endpoint.
    pub(super) fn publish_jobs(&mut self, samples: &JobSamples, now_ms: i64) {
        for state in &mut self.endpoints {
            for (labels, last_ms) in &samples.ended {
                state.stale_markers.add([labels.clone()].into_iter(), *last_ms, now_ms);
            }
            for (labels, new) in &samples.series {
                let n_failed = state.job_samples.extend(labels, new);
                self.remote_write_metrics.count_failed(FailureReason::LeftWindow, n_failed);
            }
        }
    }

    /// The next batch of an endpoint.
    pub fn next_batch(&mut self, endpoint: usize, max_samples: usize, now_ms: i64) -> Option<Batch> {
        let state = self.endpoints.get_mut(endpoint)?;
        // Later scores wait: a Prometheus before 2.54 that stores a sample from the future rejects all others.
        let to_ms = now_ms + time::CLOCK_SKEW_MS;
        let mut batch = Batch::default();
        // In a batch of their own: another group may write one of these series.
        let to_series = |(labels, timestamp_ms): &(Labels, i64)| TimeSeries {
            labels: labels.clone(),
            samples: vec![Sample::stale(*timestamp_ms)],
        };
        batch.series.extend(state.stale_markers.next_markers(to_ms, max_samples).iter().map(to_series));
        if !batch.series.is_empty() {
            return Some(batch);
        }
        // The groups keep half of the batch.
        let job_samples = state.job_samples.next_samples(max_samples / 2);
        let mut remaining = max_samples - job_samples.values().map(Vec::len).sum::<usize>();
        batch.series.extend(job_samples.into_iter().map(|(labels, samples)| TimeSeries { labels, samples }));
        let after = state.pending.range((Bound::Excluded(state.last_group), Bound::Unbounded));
        let order: Vec<u32> = after.chain(state.pending.range(..=state.last_group)).copied().collect();
        for id in order {
            if remaining < remote_write::message::MAX_SAMPLES_PER_ROW {
                break;
            }
            let Some(group) = self.groups.get_mut(id) else {
                state.pending.remove(&id);
                continue;
            };
            self.remote_write_metrics
                .count_failed(FailureReason::LeftWindow, group.take_left_window(endpoint));
            let n_samples = group.collect_unpublished(id, endpoint, to_ms, remaining, &mut batch);
            remaining -= n_samples;
            if n_samples == 0 && group.publication().is_published(endpoint) {
                state.pending.remove(&id);
                continue;
            }
            state.last_group = id;
        }
        for series in &mut batch.series {
            let Some(end_ms) = state.stale_markers.marker_ms(&series.labels) else { continue };
            let before = series.samples.len();
            series.samples.retain(|sample| sample.timestamp_ms > end_ms);
            self.remote_write_metrics.count_failed(FailureReason::OutOfOrder, before - series.samples.len());
        }
        batch.series.retain(|series| !series.samples.is_empty());
        (!batch.positions.is_empty() || !batch.series.is_empty()).then_some(batch)
    }

    /// Moves the cursors of an endpoint.
    pub(super) fn advance(&mut self, endpoint: usize, positions: &[CursorPosition], now_ms: i64) {
        // Older rows were given up, not written.
        let limit = self.groups.config().remote_write.get(endpoint).map(|endpoint| endpoint.sample_age_limit);
        let oldest_ms = now_ms - time::millis(limit.unwrap_or_default());
        let Some(state) = self.endpoints.get_mut(endpoint) else { return };
        state.stale_markers.advance();
        state.job_samples.advance();
        for position in positions {
            let published = self.groups.get_mut(position.group).is_none_or(|group| {
                let to_ms = now_ms - BACKFILLED_AFTER_MS;
                let late = group.publication().rows_between(
                    group.window(),
                    endpoint,
                    position.timestamp_ms,
                    oldest_ms,
                    to_ms,
                );
                self.metrics.count_backfilled(&group.detector.name, late);
                group.advance(endpoint, position.timestamp_ms);
                group.publication().is_published(endpoint)
            });
            if published {
                state.pending.remove(&position.group);
            }
        }
    }

    /// Ends the series of a group that is gone, and counts its unwritten samples. `kept` holds the index that each
    /// endpoint had for the group; none for a new endpoint.
    pub(super) fn retire(&mut self, group: &Group, kept: &[Option<usize>], now_ms: i64) {
        for (state, kept) in self.endpoints.iter_mut().zip(kept) {
            let Some(kept) = kept else { continue };
            let (series, last_ms) = group.unterminated_series(*kept);
            state.stale_markers.add(series, last_ms, now_ms);
        }
        self.remote_write_metrics
            .count_failed(FailureReason::Abandoned, group.publication().n_pending_samples());
        self.metrics.remove_group(group);
    }
}

pub(super) fn endpoint_states(wakeups: Vec<Arc<Notify>>) -> Vec<EndpointState> {
    let state = |wake| EndpointState {
        pending: BTreeSet::new(),
        wake,
        last_group: u32::MAX,
        stale_markers: PendingStaleMarkers::default(),
        job_samples: PendingSamples::default(),
    };
    wakeups.into_iter().map(state).collect()
}

/// Marks a group as pending for all endpoints and wakes their senders.
pub(super) fn notify(endpoints: &mut [EndpointState], id: u32) {
    for endpoint in endpoints {
        endpoint.pending.insert(id);
        endpoint.wake.notify_one();
    }
}
