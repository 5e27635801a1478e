//! The partition that a group's samples come from, and the end of each row.

use super::Group;
use std::time::{Duration, Instant};

/// Longest time that a row, or a group without a model, keeps the records of its partition from being committed.
pub const MAX_WAIT: Duration = Duration::from_secs(300);

/// The state of a group whose samples come from a log.
#[derive(Default)]
pub(super) struct LogState {
    /// The partition.
    partition: Option<i32>,
    /// End of the time that the group stays without its partition.
    rests_until: Option<Instant>,
    /// True once it is known whether there is a model.
    is_model_decided: bool,
}

impl Group {
    /// The partition.
    pub fn partition(&self) -> Option<i32> {
        self.log.partition
    }

    /// Records that the samples come from this partition, or from none.
    pub fn set_partition(&mut self, partition: Option<i32>) {
        self.log.partition = partition;
    }

    /// Stays until then without its partition. Nothing is written meanwhile: another member may write the same series.
    pub fn rest(&mut self, until: Instant) {
        self.log.rests_until = Some(until);
    }

    /// Goes on with its partition.
    pub fn wake(&mut self) {
        self.log.rests_until = None;
    }

    /// True without its partition.
    pub fn is_resting(&self) -> bool {
        self.log.rests_until.is_some()
    }

    /// True if no sample has arrived for the length of the window, or another member has the partition.
    pub fn is_expired(&self, now: Instant) -> bool {
        self.log.rests_until.is_some_and(|until| now >= until)
            || now.duration_since(self.last_received) > self.detector.window.max(self.detector.grace)
    }

    /// Records that every row up to here was written before this process, or by another one.
    pub fn mark_written(&mut self, timestamp_ms: i64) {
        self.publication.mark_written(timestamp_ms);
        // The series of the row are open.
        self.cursors_wait = true;
    }

    /// Records whether it is known that there is a model, or none.
    pub fn set_model_decided(&mut self, is_decided: bool) {
        self.log.is_model_decided |= is_decided;
    }

    /// True if a row that is half a window old is not settled: more rows would push it out of the window.
    pub fn is_late(&self, now: Instant) -> bool {
        let half_ms = self.window.length_ms() / 2;
        let old_ms =
            self.window.newest_ms().and_then(|newest_ms| self.window.newest_row_ms(newest_ms - half_ms));
        !self.is_resting() && old_ms.is_some_and(|old_ms| !self.is_settled(old_ms, now))
    }

    /// True if every row up to here is written to every endpoint or given up.
    pub fn is_settled(&self, timestamp_ms: i64, now: Instant) -> bool {
        let is_recent = |since: Instant| now.duration_since(since) < MAX_WAIT;
        let waits_for_model =
            self.models.champion().is_none() && !self.log.is_model_decided && is_recent(self.first_sample_at);
        let key = self.models.row_key(timestamp_ms);
        !waits_for_model
            && !self.cursors_wait
            && !self.rows.open_until(key).any(|row| is_recent(row.since))
            && self.publication.is_published_until(&self.window, timestamp_ms)
    }
}
