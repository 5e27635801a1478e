//! Rows that wait until what is missing before them was asked for.

use super::Group;
use crate::pipeline::gaps::{self, AuditedSeries};
use crate::time;
use std::time::Instant;

/// No row is judged before what is missing is there, or was waited for.
#[derive(Clone, Copy, Debug)]
pub struct GapHold {
    /// Samples after this time may be missing.
    after_ms: i64,
    /// When it began.
    since: Instant,
    /// When it ends at the latest.
    until: Instant,
}

impl Group {
    /// Begins to hold where rows are missing between these.
    pub(super) fn track_interval(&mut self, newest_ms: Option<i64>, timestamp_ms: i64, now: Instant) {
        // Several targets have their rows at several times of one slot.
        let is_late = self.intervals.observe(self.row_key(timestamp_ms));
        // Without a model nothing is judged, and training reads the past anyway.
        if let Some(newest_ms) = newest_ms
            && is_late
            && self.gap_hold.is_none()
            && self.champion.is_some()
        {
            self.start_hold(newest_ms, now);
        }
    }

    /// Do two send it, each his own rows?
    pub fn is_interleaved(&self) -> bool {
        self.champion.is_some() && self.intervals.is_interleaved()
    }

    /// Judges no row until told: samples are missing after this one.
    pub fn start_hold(&mut self, newest_ms: i64, now: Instant) {
        // The newest row itself may have come in part.
        let after_ms = newest_ms - self.intervals.interval_ms().unwrap_or(0);
        self.gap_hold = Some(GapHold { after_ms, since: now, until: now + gaps::HOLD_TIMEOUT });
    }

    /// What samples may be missing after, while the group holds.
    pub fn hold_after_ms(&self) -> Option<i64> {
        self.gap_hold.map(|hold| hold.after_ms)
    }

    /// Did the stream of this group end when another's did, and has not gone on? `after_ms` and `now_ms` tell of
    /// the other's hole.
    pub fn shares_gap(&self, after_ms: i64, now_ms: i64) -> Option<i64> {
        let (interval_ms, newest_ms) = (self.intervals.interval_ms()?, self.window.newest_ms()?);
        let is_silent = 2 * (now_ms - newest_ms) > 3 * interval_ms;
        let ended_together = (newest_ms - after_ms).abs() <= 3 * interval_ms;
        (self.champion.is_some() && self.gap_hold.is_none() && is_silent && ended_together)
            .then_some(newest_ms)
    }

    /// A part of the answer came: the next one has its time.
    pub fn extend_hold(&mut self, now: Instant) {
        if let Some(hold) = &mut self.gap_hold {
            hold.until = (now + gaps::HOLD_TIMEOUT).min(hold.since + gaps::MAX_HOLD);
        }
    }

    /// Is what is missing waited for in vain?
    pub fn is_hold_expired(&self, now: Instant) -> bool {
        self.gap_hold.is_some_and(|hold| now >= hold.until)
    }

    /// Judges rows again. What is missing in rows that are older than the grace time is missing for good.
    pub fn release_hold(&mut self, now: Instant) {
        self.gap_hold = None;
        let newest_ms = self.window.newest_ms().unwrap_or(i64::MIN);
        let expired = now.checked_sub(self.detector.grace).unwrap_or(now);
        let open_after_ms = newest_ms.saturating_sub(time::millis(self.detector.grace));
        for (timestamp_ms, since) in self.open_rows.values_mut() {
            if *timestamp_ms <= open_after_ms {
                *since = (*since).min(expired);
            }
        }
    }

    /// A series to be counted here and in Prometheus: one after the other, by this number.
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
