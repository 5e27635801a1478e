//! Gap fills: the groups on hold, the requests for samples, and their results.

use super::Engine;
use crate::detector::Detector;
use crate::history::SeriesSamples;
use crate::pipeline::gaps::{self, FillTurn, Gap};
use crate::prom::Sample;
use crate::series::ColumnRef;
use crate::time::now_ms;
use crate::window::PushOutcome;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;
use tracing::warn;

impl Engine {
    /// Requests the missing samples of the waiting groups of one detector and one tenant. They take turns, so that the
    /// fills of one that fail do not stop the others'.
    fn request_gap_fills(&mut self, now: Instant, now_ms: i64) {
        let mut skipped = BTreeSet::new();
        let mut gaps: BTreeMap<FillTurn, Gap> = BTreeMap::new();
        for id in self.gaps.take_waiting() {
            let Some(group) = self.groups.get_mut(id) else { continue };
            let Some(after_ms) = group.gaps().after_ms() else { continue };
            let detector = group.detector.clone();
            if self.gaps.is_cooling_down(id, now) {
                self.gaps.count_skipped(&detector.name, &self.gap_metrics);
                group.release_hold(now);
                skipped.insert(id);
                continue;
            }
            let to_ms = group.window().newest_ms().unwrap_or(i64::MIN).max(now_ms);
            let after_ms = after_ms.max(group.window().start_ms());
            let tenant = group.tenant().cloned();
            let gap = gaps.entry((detector.name.clone(), tenant.clone())).or_insert_with(|| Gap {
                detector,
                tenant,
                groups: Vec::new(),
                range: (after_ms, to_ms),
            });
            gap.groups.push((id, group.labels.clone()));
            gap.range = (gap.range.0.min(after_ms), gap.range.1.max(to_ms));
        }
        let gap = self.gaps.next_turn(&gaps).and_then(|turn| gaps.remove(&turn));
        for (id, _) in gaps.into_values().flat_map(|gap| gap.groups) {
            self.gaps.enqueue(id);
        }
        if let Some(mut gap) = gap {
            // Groups that lost the same stream and have no newer sample yet share the request.
            for (id, group) in self.groups.iter_mut() {
                let is_alike =
                    Arc::ptr_eq(&group.detector, &gap.detector) && group.tenant() == gap.tenant.as_ref();
                if is_alike && group.join_gap(gap.range.0, now, now_ms) {
                    gap.groups.push((id, group.labels.clone()));
                }
            }
            self.gaps.request(gap);
        }
        self.score_groups(&skipped, now);
    }

    /// Pushes samples of the history. The answer may contain series of groups that were not asked for: a
    /// group that does not exist is not created.
    pub(super) fn apply_backfill(
        &mut self,
        detector: &Arc<Detector>,
        series: &[SeriesSamples],
        now: Instant,
    ) {
        let mut cells: Vec<(ColumnRef, Sample)> = Vec::new();
        for (labels, samples) in series {
            let Some(column_ref) = self.groups.resolve_existing(detector, labels, now) else { continue };
            cells.extend(samples.iter().map(|sample| (column_ref, *sample)));
        }
        // In the order of time, so that no sealed part of a window is touched again.
        cells.sort_by_key(|(_, sample)| sample.timestamp_ms);
        let mut touched = BTreeSet::new();
        let mut stored = 0;
        for (column_ref, sample) in cells {
            let Some(group) = self.groups.get_mut(column_ref.group) else { continue };
            touched.insert(column_ref.group);
            if let (PushOutcome::Stored, _) = group.push(column_ref.column, sample, now) {
                stored += 1;
            }
        }
        self.gap_metrics.count_samples(&detector.name, stored);
        self.gaps.add_samples(stored);
        for id in self.gaps.pending().map(|pending| pending.groups.clone()).unwrap_or_default() {
            if let Some(group) = self.groups.get_mut(id) {
                group.extend_hold(now);
            }
        }
        self.score_groups(&touched, now);
    }

    pub(super) fn finish_gap_fill(&mut self, is_complete: bool, now: Instant) {
        let Some(pending) = self.gaps.finish(is_complete, &self.gap_metrics, now) else { return };
        for id in &pending.groups {
            if let Some(group) = self.groups.get_mut(*id) {
                group.release_hold(now);
            }
        }
        self.score_groups(&pending.groups.into_iter().collect(), now);
        self.request_gap_fills(now, now_ms());
    }

    /// Releases holds that timed out, and requests an audit when one is due.
    pub(super) fn check_gaps(&mut self, now: Instant, now_ms: i64) {
        let mut released = BTreeSet::new();
        let mut n_held = 0;
        // The gap of a tenant waits while the back end of another does not answer.
        for id in self.gaps.delayed().filter(|_| self.groups.config().tenants.is_some()).collect::<Vec<_>>() {
            if let Some(group) = self.groups.get_mut(id) {
                group.extend_hold(now);
            }
        }
        for (id, group) in self.groups.iter_mut() {
            n_held += usize::from(group.gaps().after_ms().is_some());
            if group.gaps().is_expired(now) {
                self.gap_metrics.count_timeout(&group.detector.name);
                warn!(component = "history", detector = group.detector.name, group = %group.labels, "scoring resumes although samples are missing: no source of history answered in time");
                group.release_hold(now);
                released.insert(id);
            }
        }
        self.gap_metrics.set_pending_groups(n_held);
        self.score_groups(&released, now);
        self.request_gap_fills(now, now_ms);
        if let Some(first_series) = self.gaps.audit_due(now)
            && !self.groups.config().history.is_empty()
        {
            let ids: Vec<u32> = self.groups.iter_mut().map(|(id, _)| id).collect();
            let n_groups = ids.len() as u64;
            let indices = first_series..first_series + gaps::SERIES_PER_AUDIT as u64;
            // One column of each group in turn, and the next column in the next turn.
            let series = indices.filter_map(|index| {
                let id = ids.get(index.checked_rem(n_groups)? as usize)?;
                self.groups.get(*id)?.audited_series(index / n_groups)
            });
            self.gaps.request_audit(series.collect());
        }
    }
}
