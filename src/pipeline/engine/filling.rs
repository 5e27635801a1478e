//! Holes: which groups hold, what is asked for them, and what comes of it.

use super::Engine;
use crate::config::Detector;
use crate::history;
use crate::pipeline::gaps::{self, Missing};
use crate::prom::Sample;
use crate::prom::duration::now_ms;
use crate::series::Target;
use crate::window::Push;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use tracing::warn;

impl Engine {
    /// Asks for what is missing in the groups that wait for it, those of one detector.
    fn ask_for_gaps(&mut self, now: Instant, now_ms: i64) {
        let mut waiting = self.gaps.take_waiting();
        let mut skipped = BTreeSet::new();
        let mut asked: Option<Missing> = None;
        while let Some(id) = waiting.pop_first() {
            let Some(group) = self.groups.get_mut(id) else { continue };
            let Some(after_ms) = group.holds_after_ms() else { continue };
            let detector = group.detector.clone();
            if self.gaps.rests(id, now) {
                self.gaps.skipped(&detector.name, &self.gap_metrics);
                group.release(now);
                skipped.insert(id);
                continue;
            }
            let to_ms = group.window().newest_ms().unwrap_or(i64::MIN).max(now_ms);
            let after_ms = after_ms.max(group.window().start_ms());
            match &mut asked {
                None => {
                    let groups = vec![(id, group.labels.clone())];
                    asked = Some(Missing { detector, groups, range: (after_ms, to_ms) });
                }
                Some(missing) if Arc::ptr_eq(&missing.detector, &detector) => {
                    missing.groups.push((id, group.labels.clone()));
                    missing.range = (missing.range.0.min(after_ms), missing.range.1.max(to_ms));
                }
                Some(_) => self.gaps.wait(id),
            }
        }
        if let Some(mut missing) = asked {
            // Who has lost the same stream and was not scraped again yet need not ask for himself.
            for (id, group) in self.groups.iter_mut() {
                if Arc::ptr_eq(&group.detector, &missing.detector)
                    && let Some(newest_ms) = group.shares_hole(missing.range.0, now_ms)
                {
                    group.hold(newest_ms, now);
                    missing.groups.push((id, group.labels.clone()));
                }
            }
            self.gaps.ask(missing);
        }
        self.score(&skipped, now);
    }

    /// Takes in samples that remote write did not bring.
    pub(super) fn filled(&mut self, detector: &Arc<Detector>, series: &[history::Series], now: Instant) {
        let mut cells: Vec<(Target, Sample)> = Vec::new();
        for (labels, samples) in series {
            let Ok(targets) = self.groups.resolve(labels, now) else { continue };
            let of_detector = |target: &Target| {
                self.groups.get(target.group).is_some_and(|g| Arc::ptr_eq(&g.detector, detector))
            };
            let Some(target) = targets.into_iter().find(of_detector) else { continue };
            cells.extend(samples.iter().map(|sample| (target, *sample)));
        }
        // In the order of time, so that no sealed part of a window is touched again.
        cells.sort_by_key(|(_, sample)| sample.timestamp_ms);
        let mut touched = BTreeSet::new();
        let mut stored = 0;
        for (target, sample) in cells {
            let Some(group) = self.groups.get_mut(target.group) else { continue };
            touched.insert(target.group);
            if let (Push::Stored, _) = group.push(target.column, sample, now) {
                stored += 1;
            }
        }
        self.gap_metrics.brought(&detector.name, stored);
        self.gaps.brought(stored);
        for id in self.gaps.asked().map(|asked| asked.groups.clone()).unwrap_or_default() {
            if let Some(group) = self.groups.get_mut(id) {
                group.hold_on(now);
            }
        }
        self.score(&touched, now);
    }

    pub(super) fn fill_done(&mut self, is_whole: bool, now: Instant) {
        let Some(asked) = self.gaps.done(is_whole, &self.gap_metrics, now) else { return };
        for id in &asked.groups {
            if let Some(group) = self.groups.get_mut(*id) {
                group.release(now);
            }
        }
        self.score(&asked.groups.into_iter().collect(), now);
        self.ask_for_gaps(now, now_ms());
    }

    /// Lets groups go on that wait in vain, and has some series counted now and then.
    pub(super) fn look_after_gaps(&mut self, now: Instant, now_ms: i64) {
        let mut released = BTreeSet::new();
        let mut held = 0;
        for (id, group) in self.groups.iter_mut() {
            held += usize::from(group.holds_after_ms().is_some());
            if group.is_held_too_long(now) {
                self.gap_metrics.timed_out(&group.detector.name);
                warn!(component = "history", detector = group.detector.name, group = %group.labels, "scores go on although samples are missing: remote read did not answer in time");
                group.release(now);
                released.insert(id);
            }
        }
        self.gap_metrics.pending(held);
        self.score(&released, now);
        self.ask_for_gaps(now, now_ms);
        if let Some(turn) = self.gaps.audit_due(now)
            && !self.groups.config().remote_read.is_empty()
        {
            let ids: Vec<u32> = self.groups.iter_mut().map(|(id, _)| id).collect();
            let n_groups = ids.len() as u64;
            let numbers = turn..turn + gaps::AUDITED as u64;
            // Group after group, and in each turn through all of them another column.
            let series = numbers.filter_map(|number| {
                let id = ids.get(number.checked_rem(n_groups)? as usize)?;
                self.groups.get(*id)?.audited(number / n_groups)
            });
            self.gaps.audit(series.collect());
        }
    }
}
