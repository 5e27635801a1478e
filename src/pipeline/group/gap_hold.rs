//! Holds of the scoring while a gap is filled, and the series that an audit counts.

use super::Group;
use crate::pipeline::gaps::{self, AuditedSeries};
use crate::time;
use std::time::Instant;

impl Group {
    /// True if two senders seem to send the rows of this group.
    pub fn is_interleaved(&self) -> bool {
        self.champion.is_some() && self.gaps.is_interleaved()
    }

    /// Holds the scoring: samples are missing after this row.
    pub fn start_hold(&mut self, newest_ms: i64, now: Instant) {
        self.gaps.start_hold(newest_ms, now);
    }

    /// Start of the gap, while the group holds.
    pub fn hold_after_ms(&self) -> Option<i64> {
        self.gaps.after_ms()
    }

    /// The newest row, if it ended with the rows of another group's gap and scoring is not on hold.
    pub fn shares_gap(&self, after_ms: i64, now_ms: i64) -> Option<i64> {
        let newest_ms = self.window.newest_ms()?;
        (self.champion.is_some() && self.gaps.shares_gap(after_ms, newest_ms, now_ms)).then_some(newest_ms)
    }

    /// Extends the hold after a part of a gap fill.
    pub fn extend_hold(&mut self, now: Instant) {
        self.gaps.extend(now);
    }

    /// True if the hold has lasted too long.
    pub fn is_hold_expired(&self, now: Instant) -> bool {
        self.gaps.is_expired(now)
    }

    /// Resumes scoring. Samples that rows older than the grace period lack will not arrive any more.
    pub fn release_hold(&mut self, now: Instant) {
        self.gaps.release();
        let newest_ms = self.window.newest_ms().unwrap_or(i64::MIN);
        let expired = now.checked_sub(self.detector.grace).unwrap_or(now);
        let open_after_ms = newest_ms.saturating_sub(time::millis(self.detector.grace));
        self.rows.expire_until(open_after_ms, expired);
    }

    /// The series of this index, for an audit.
    pub fn audited_series(&self, series_index: u64) -> Option<AuditedSeries> {
        let (newest_ms, start_ms) = (self.window.newest_ms()?, self.window.start_ms());
        let range = gaps::audit_range(newest_ms, start_ms, self.detector.grace);
        let n = self.n_columns() as u64;
        let (feature, column, _) = self.window.features().nth((series_index.checked_rem(n)?) as usize)?;
        Some(AuditedSeries {
            detector: self.detector.clone(),
            group: self.labels.clone(),
            feature: feature.clone(),
            range,
            n_samples: gaps::count_samples(&self.window, column, range),
        })
    }
}
