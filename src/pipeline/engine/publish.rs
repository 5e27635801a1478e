//! Batches of scores for the remote-write endpoints, and their cursors.

use super::Engine;
use super::jobs::JobSamples;
use crate::pipeline::group::Group;
use crate::pipeline::groups::Groups;
use crate::pipeline::output_series::{PendingSamples, PendingStaleMarkers};
use crate::prom::{Labels, Sample};
use crate::remote_write::{self, Batch, CursorPosition, FailureReason, TimeSeries};
use crate::tenant::Tenant;
use crate::time;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use tokio::sync::Notify;

/// Scores written later than this after their timestamp count as backfilled: the look-back of Prometheus, within
/// which an alert sees them.
const BACKFILLED_AFTER_MS: i64 = 300_000;
/// The state of one remote-write endpoint.
pub(super) struct EndpointState {
    pub(super) wake: Arc<Notify>,
    /// By tenant, as a request has the samples of one; without tenants, a single one.
    unwritten: BTreeMap<Option<Tenant>, Unwritten>,
}

/// The samples of a tenant that an endpoint lacks.
#[derive(Default)]
struct Unwritten {
    /// Groups with scores.
    groups: BTreeSet<u32>,
    /// Last group of the last batch; the next batch starts after it, so that all groups are served in turn.
    last_group: Option<u32>,
    /// Staleness markers of groups that are gone.
    stale_markers: PendingStaleMarkers,
    /// Samples of the jobs.
    job_samples: PendingSamples,
}

impl Unwritten {
    /// True if there is anything to be written.
    fn has_any(&self) -> bool {
        !self.groups.is_empty() || self.stale_markers.has_unwritten() || !self.job_samples.is_empty()
    }

    /// The groups with scores, those after the last one first.
    fn groups_in_turn(&self) -> Vec<u32> {
        let last = self.last_group.unwrap_or(u32::MAX);
        let after = self.groups.range((Bound::Excluded(last), Bound::Unbounded));
        after.chain(self.groups.range(..=last)).copied().collect()
    }
}

impl EndpointState {
    /// True if the endpoint lacks anything that is there to be written.
    pub(super) fn has_unwritten(&self) -> bool {
        self.unwritten.values().any(Unwritten::has_any)
    }

    /// Number of groups with scores that the endpoint lacks.
    pub(super) fn n_pending_groups(&self) -> usize {
        self.unwritten.values().map(|unwritten| unwritten.groups.len()).sum()
    }

    /// The tenants that the endpoint has had samples of, each with whether it lacks some.
    pub(super) fn tenants(&self) -> Vec<(Tenant, bool)> {
        let of_tenants = self.unwritten.iter();
        of_tenants.filter_map(|(tenant, unwritten)| Some((tenant.clone()?, unwritten.has_any()))).collect()
    }

    /// Takes over what another sender to the same endpoint has not written of groups that are gone.
    pub(super) fn take_over(&mut self, old: &mut Self) {
        for (tenant, old) in &mut old.unwritten {
            let unwritten = self.unwritten.entry(tenant.clone()).or_default();
            unwritten.stale_markers = old.stale_markers.take_over();
            unwritten.job_samples = old.job_samples.take_over();
        }
    }

    /// Forgets tenants without groups once all is written and their series cannot begin anew before their end.
    pub(super) fn forget_tenants(&mut self, groups: &Groups, now_ms: i64) {
        let present: BTreeSet<&Tenant> = groups.tenants().collect();
        self.unwritten.retain(|tenant, unwritten| {
            unwritten.stale_markers.forget_old(now_ms);
            tenant.as_ref().is_none_or(|tenant| present.contains(tenant))
                || unwritten.has_any()
                || !unwritten.stale_markers.is_empty()
        });
    }

    fn add_group(&mut self, tenant: Option<&Tenant>, id: u32) {
        self.unwritten.entry(tenant.cloned()).or_default().groups.insert(id);
        self.wake.notify_one();
    }
}

impl Engine {
    /// Hands the samples of the jobs to every endpoint.
    pub(super) fn publish_jobs(&mut self, samples: &JobSamples, now_ms: i64) {
        let tenants = self.groups.config().tenants.clone();
        let outward = |labels: &Labels| match &tenants {
            Some(tenants) => (tenants.label.tenant_of(labels), tenants.label.remove(labels)),
            None => (None, labels.clone()),
        };
        for (labels, last_ms) in &samples.ended {
            let (tenant, labels) = outward(labels);
            for state in &mut self.endpoints {
                let unwritten = state.unwritten.entry(tenant.clone()).or_default();
                unwritten.stale_markers.add([labels.clone()].into_iter(), *last_ms, now_ms);
            }
        }
        for (labels, new) in &samples.series {
            let (tenant, labels) = outward(labels);
            for state in &mut self.endpoints {
                let unwritten = state.unwritten.entry(tenant.clone()).or_default();
                let n_failed = unwritten.job_samples.extend(&labels, new);
                self.remote_write_metrics.count_failed(FailureReason::LeftWindow, n_failed);
            }
        }
    }

    /// The tenants that an endpoint has had samples of, each with whether it lacks some.
    pub(super) fn tenants_of_endpoint(&self, endpoint: usize) -> Vec<(Tenant, bool)> {
        self.endpoints.get(endpoint).map(EndpointState::tenants).unwrap_or_default()
    }

    /// The next batch of an endpoint: samples of one tenant, if there are tenants.
    pub fn next_batch(
        &mut self,
        endpoint: usize,
        tenant: Option<&Tenant>,
        max_samples: usize,
        now_ms: i64,
    ) -> Option<Batch> {
        let state = self.endpoints.get_mut(endpoint)?.unwritten.get_mut(&tenant.cloned())?;
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
        for id in state.groups_in_turn() {
            if remaining < remote_write::message::MAX_SAMPLES_PER_ROW {
                break;
            }
            let Some(group) = self.groups.get_mut(id) else {
                state.groups.remove(&id);
                continue;
            };
            self.remote_write_metrics
                .count_failed(FailureReason::LeftWindow, group.take_left_window(endpoint));
            let n_samples = group.collect_unpublished(id, endpoint, to_ms, remaining, &mut batch);
            remaining -= n_samples;
            if n_samples == 0 && group.publication().is_published(endpoint) {
                state.groups.remove(&id);
                continue;
            }
            state.last_group = Some(id);
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
    pub(super) fn advance(
        &mut self,
        endpoint: usize,
        tenant: Option<&Tenant>,
        positions: &[CursorPosition],
        now_ms: i64,
    ) {
        // Older rows were given up, not written.
        let limit = self.groups.config().remote_write.get(endpoint).map(|endpoint| endpoint.sample_age_limit);
        let oldest_ms = now_ms - time::millis(limit.unwrap_or_default());
        let Some(state) = self.endpoints.get_mut(endpoint) else { return };
        let Some(state) = state.unwritten.get_mut(&tenant.cloned()) else { return };
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
                state.groups.remove(&position.group);
            }
        }
    }

    /// Ends the series of a group that is gone, and counts its unwritten samples. `kept` holds the index that each
    /// endpoint had for the group; none for a new endpoint.
    pub(super) fn retire(&mut self, group: &Group, kept: &[Option<usize>], now_ms: i64) {
        for (state, kept) in self.endpoints.iter_mut().zip(kept) {
            let Some(kept) = kept else { continue };
            let (series, last_ms) = group.unterminated_series(*kept);
            let unwritten = state.unwritten.entry(group.tenant().cloned()).or_default();
            unwritten.stale_markers.add(series, last_ms, now_ms);
        }
        self.remote_write_metrics
            .count_failed(FailureReason::Abandoned, group.publication().n_pending_samples());
        self.metrics.remove_group(group);
    }
}

pub(super) fn endpoint_states(wakeups: Vec<Arc<Notify>>) -> Vec<EndpointState> {
    wakeups.into_iter().map(|wake| EndpointState { wake, unwritten: BTreeMap::new() }).collect()
}

/// Marks a group of a tenant as pending for all endpoints and wakes their senders.
pub(super) fn notify(endpoints: &mut [EndpointState], tenant: Option<&Tenant>, id: u32) {
    endpoints.iter_mut().for_each(|endpoint| endpoint.add_group(tenant, id));
}
