//! The partitions of a log that the engine gets samples from.
//!
//! A partition that goes to another member leaves its groups behind for a while: after a broker was away the same member
//! mostly gets it back, and goes on where it was.

use super::publish::notify;
use super::{Engine, Group, Groups};
use crate::kafka::intake::{Position, Progress, Record, RecordOutcome};
use crate::pipeline::ledger::{Ledger, NewestRows};
use crate::snapshot::LogPosition;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Partitions {
    assigned: BTreeMap<i32, Ledger>,
    /// For each partition with groups in memory, the offset before which their windows have every record.
    read_to: BTreeMap<i32, i64>,
}

impl Partitions {
    /// Adds the position of a group that is restored.
    pub(super) fn restore(&mut self, LogPosition { partition, offset }: LogPosition) {
        let read_to = self.read_to.entry(partition).or_insert(offset);
        *read_to = offset.min(*read_to);
    }

    /// The position in a partition.
    pub(super) fn position(&self, partition: i32) -> Option<LogPosition> {
        self.read_to.get(&partition).map(|offset| LogPosition { partition, offset: *offset })
    }

    /// Forgets a partition whose groups are gone.
    pub(super) fn forget(&mut self, partition: i32) {
        self.read_to.remove(&partition);
    }

    /// Lets all records wait for the newest rows of all groups, which have new numbers.
    pub(super) fn renumber(&mut self, groups: &Groups) {
        let newest = groups.iter_from(0).filter_map(|(id, group)| Some((id, group.window().newest_ms()?)));
        let rows: NewestRows = newest.collect();
        self.assigned.values_mut().for_each(|ledger| ledger.renumber(&rows));
    }
}

impl Engine {
    /// Takes in a record. The rows of a record that is committed are scored, so that the models go on, and not written.
    pub(super) fn ingest_record(&mut self, record: &Record, now: Instant, now_ms: i64) -> RecordOutcome {
        let mut rows = NewestRows::new();
        let body = (record.compression, &record.value[..]);
        let pushed = self.push_request(record.format, None, body, Some(&mut rows), now, now_ms);
        for (id, newest_ms) in &rows {
            let Some(group) = self.groups.get_mut(*id) else { continue };
            group.set_partition(Some(record.partition));
            if record.is_committed {
                group.mark_written(*newest_ms);
            }
        }
        let result = pushed.and_then(|report| {
            // Groups that have all samples already go on after the row too.
            let touched = report.touched.iter().chain(rows.keys()).copied().collect();
            self.score_groups(&touched, now);
            report.finish().map(drop)
        });
        let end = Position { offset: record.offset + 1, produced_ms: record.produced_ms };
        let is_late = rows.keys().any(|id| self.groups.get(*id).is_some_and(|group| group.is_late(now)));
        if !record.is_committed {
            self.partitions.assigned.entry(record.partition).or_default().record(end, rows);
        }
        self.partitions.read_to.insert(record.partition, end.offset);
        RecordOutcome { result, is_behind: !self.backlog.is_empty() || is_late }
    }

    /// The positions before which every row is written or given up.
    pub(super) fn record_progress(&mut self, now: Instant) -> Progress {
        let groups = &self.groups;
        let is_settled =
            |id: u32, newest_ms: i64| groups.get(id).is_none_or(|group| group.is_settled(newest_ms, now));
        let ledgers = self.partitions.assigned.iter_mut();
        let settled =
            ledgers.filter_map(|(partition, ledger)| Some((*partition, ledger.settle(is_settled)?)));
        let settled = settled.collect();
        let is_late = |(_, group): (u32, &Group)| group.partition().is_some() && group.is_late(now);
        Progress { settled, is_behind: !self.backlog.is_empty() || groups.iter_from(0).any(is_late) }
    }

    /// Adds a partition, whose groups go on. Returns the offset before which their windows have every record. If all of
    /// these are committed, every row of the windows is written.
    pub(super) fn assign_partition(
        &mut self,
        partition: i32,
        committed: Option<i64>,
        now: Instant,
    ) -> Option<i64> {
        self.partitions.assigned.entry(partition).or_default();
        let read_to = self.partitions.read_to.get(&partition).copied();
        let is_written = read_to.zip(committed).is_some_and(|(read_to, committed)| read_to <= committed);
        let mut woken = BTreeSet::new();
        for (id, group) in self.groups.iter_mut().filter(|(_, group)| group.partition() == Some(partition)) {
            group.wake();
            if let Some(newest_ms) = group.window().newest_ms().filter(|_| is_written) {
                group.mark_written(newest_ms);
            }
            notify(&mut self.endpoints, group.tenant(), id);
            woken.insert(id);
        }
        self.score_groups(&woken, now);
        read_to
    }

    /// Removes a partition, whose groups rest.
    pub(super) fn revoke_partition(&mut self, partition: i32, now: Instant) {
        self.partitions.assigned.remove(&partition);
        let Some(linger) = self.groups.config().kafka.as_ref().map(|kafka| kafka.linger) else { return };
        let of_partition = self.groups.iter_mut().filter(|(_, group)| group.partition() == Some(partition));
        of_partition.for_each(|(_, group)| group.rest(now + linger));
    }

    /// Lets the groups of partitions rest until these are assigned. Without a log they have no partition.
    pub(super) fn rest_restored(&mut self, now: Instant) {
        let linger = self.groups.config().kafka.as_ref().map(|kafka| kafka.linger);
        for (_, group) in self.groups.iter_mut().filter(|(_, group)| group.partition().is_some()) {
            match linger {
                Some(linger) => group.rest(now + linger),
                None => group.set_partition(None),
            }
        }
    }
}
