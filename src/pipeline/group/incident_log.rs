//! The incidents of a group within its window: their contributions, and the openings of the last week.

use crate::detect::{AlertScore, IncidentFeedback, PastIncident};
use crate::pipeline::serving::{Contribution, RowIncident};
use crate::time::{DAY_MS, HOUR_MS};
use std::collections::VecDeque;

/// Days that openings are kept for.
const KEPT_DAYS: i64 = 7;

/// See the [module](self).
#[derive(Default)]
pub struct IncidentLog {
    /// Contributions by timestamp, ascending; an empty entry at the row after an incident.
    contributions: VecDeque<(i64, Vec<Contribution>)>,
    /// The incidents of the last week, ascending.
    incidents: VecDeque<PastIncident>,
    is_open: bool,
    /// Hours since the epoch at the newest row.
    hour: Option<i64>,
}

impl IncidentLog {
    /// The log of a snapshot.
    pub fn restore(
        contributions: VecDeque<(i64, Vec<Contribution>)>,
        incidents: VecDeque<PastIncident>,
        is_open: bool,
    ) -> Self {
        Self { contributions, incidents, is_open, hour: None }
    }

    /// Records a scored row, and forgets contributions before the window. True if an incident opened or the hour has
    /// changed: the alert budget changes then.
    pub fn record(
        &mut self,
        timestamp_ms: i64,
        incident: RowIncident,
        contributions: Vec<Contribution>,
        window_start_ms: i64,
    ) -> bool {
        while self.contributions.front().is_some_and(|(then, _)| *then <= window_start_ms) {
            self.contributions.pop_front();
        }
        if !contributions.is_empty()
            || self.contributions.back().is_some_and(|(_, before)| !before.is_empty())
        {
            self.contributions.push_back((timestamp_ms, contributions));
        }
        let kept_after_ms = timestamp_ms - KEPT_DAYS * DAY_MS;
        while self.incidents.front().is_some_and(|incident| incident.start_ms <= kept_after_ms) {
            self.incidents.pop_front();
        }
        let hour = timestamp_ms.div_euclid(HOUR_MS);
        let mut has_changed = self.hour.replace(hour) != Some(hour);
        let is_incident = incident != RowIncident::None;
        let opened_by = match incident {
            RowIncident::Opens(score) => score,
            RowIncident::Continues | RowIncident::None => AlertScore::default(),
        };
        let open = self.incidents.back_mut().filter(|_| self.is_open && incident == RowIncident::Continues);
        if let Some(open) = open {
            open.last_ms = open.last_ms.max(timestamp_ms);
        } else if is_incident {
            self.incidents
                .push_back(PastIncident { opened_by, ..PastIncident::new(timestamp_ms, timestamp_ms) });
            has_changed = true;
        }
        self.is_open = is_incident;
        has_changed
    }

    /// Takes over the incidents that Prometheus holds, ascending, if none is known. The last one is open if it reaches
    /// `open_since_ms`.
    pub fn restore_incidents(&mut self, incidents: Vec<PastIncident>, open_since_ms: Option<i64>) {
        if self.incidents.is_empty() {
            let last = incidents.last();
            self.is_open = last.is_some_and(|last| open_since_ms.is_some_and(|ms| last.last_ms >= ms));
            self.incidents = incidents.into();
        }
    }

    /// Ends the open incident: the next row of one belongs to a new incident.
    pub fn end_open(&mut self) {
        self.is_open = false;
    }

    /// The incident that contains a time; the open one has no end yet.
    ///
    /// # Errors
    /// The nearest incident, if any.
    pub fn find(&self, at_ms: i64) -> Result<PastIncident, Option<PastIncident>> {
        let distance_ms = |incident: &&PastIncident| {
            let end_ms = if self.is_open_since(incident.start_ms) { i64::MAX } else { incident.last_ms };
            incident.start_ms.saturating_sub(at_ms).max(at_ms.saturating_sub(end_ms)).max(0)
        };
        let nearest = self.incidents.iter().min_by_key(distance_ms).copied();
        nearest.filter(|incident| distance_ms(&incident) == 0).ok_or(nearest)
    }

    /// Sets the feedback on the incident that started at a time, unless it has the same already. Returns the incidents
    /// before and after it.
    pub fn set_feedback(
        &mut self,
        start_ms: i64,
        feedback: IncidentFeedback,
        now_ms: i64,
    ) -> Option<[Vec<PastIncident>; 2]> {
        let before: Vec<PastIncident> = self.incidents.iter().copied().collect();
        let incident = self.incidents.iter_mut().find(|incident| incident.start_ms == start_ms)?;
        if incident.feedback.is_none_or(|(given, _)| given != feedback) {
            incident.feedback = Some((feedback, now_ms));
        }
        Some([before, self.incidents.iter().copied().collect()])
    }

    /// True if the incident that started at this time is open.
    pub fn is_open_since(&self, start_ms: i64) -> bool {
        self.is_open && self.incidents.back().is_some_and(|incident| incident.start_ms == start_ms)
    }

    /// All entries, by timestamp ascending.
    pub fn contributions(&self) -> &VecDeque<(i64, Vec<Contribution>)> {
        &self.contributions
    }

    /// The entries in `[first_ms, last_ms]`.
    pub fn contributions_between(
        &self,
        first_ms: i64,
        last_ms: i64,
    ) -> impl Iterator<Item = &(i64, Vec<Contribution>)> {
        let start = self.contributions.partition_point(|(then, _)| *then < first_ms);
        self.contributions.range(start..).take_while(move |(then, _)| *then <= last_ms)
    }

    /// Timestamp of the newest entry.
    pub fn newest_ms(&self) -> Option<i64> {
        self.contributions.back().map(|(newest_ms, _)| *newest_ms)
    }

    /// Incidents per day of the last week that count against the budget.
    pub fn per_day(&self) -> f64 {
        self.incidents.iter().filter(|incident| incident.is_counted()).count() as f64 / KEPT_DAYS as f64
    }

    /// The incidents of the last week, ascending.
    pub fn incidents(&self) -> &VecDeque<PastIncident> {
        &self.incidents
    }

    /// The newest incident that opened in `(after_ms, to_ms]`.
    pub fn newest_within(&self, after_ms: i64, to_ms: i64) -> Option<PastIncident> {
        let n = self.incidents.partition_point(|incident| incident.start_ms <= to_ms);
        let newest = self.incidents.get(n.checked_sub(1)?).copied();
        newest.filter(|incident| incident.start_ms > after_ms)
    }

    /// True while an incident is open.
    pub fn is_open(&self) -> bool {
        self.is_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log after rows from time 1 on; each has this part in an incident.
    fn log_of(rows: &[RowIncident]) -> IncidentLog {
        let mut log = IncidentLog::default();
        for (timestamp_ms, incident) in (1..).zip(rows) {
            log.record(timestamp_ms, *incident, Vec::new(), 0);
        }
        log
    }

    fn spans(log: &IncidentLog) -> Vec<(i64, i64)> {
        log.incidents().iter().map(|incident| (incident.start_ms, incident.last_ms)).collect()
    }

    #[test]
    fn an_incident_that_opens_while_another_one_is_open_is_a_new_one() {
        use RowIncident::{Continues, None};
        let opens = RowIncident::Opens(AlertScore::Row);
        let log =
            log_of(&[opens, Continues, RowIncident::Opens(AlertScore::Lasting), Continues, None, opens]);
        assert_eq!(spans(&log), [(1, 2), (3, 4), (6, 6)]);
        let opened_by: Vec<AlertScore> = log.incidents().iter().map(|incident| incident.opened_by).collect();
        assert_eq!(opened_by, [AlertScore::Row, AlertScore::Lasting, AlertScore::Row]);
        assert_eq!(spans(&log_of(&[Continues, Continues])), [(1, 2)], "it opened before the known rows");
    }

    #[test]
    fn a_published_incident_goes_on_if_it_reaches_the_watermark() {
        for (open_since_ms, expected) in
            [(Some(9), vec![(5, 20)]), (Some(10), vec![(5, 9), (20, 20)]), (None, vec![(5, 9), (20, 20)])]
        {
            let mut log = IncidentLog::default();
            log.restore_incidents(vec![PastIncident::new(5, 9)], open_since_ms);
            log.record(20, RowIncident::Continues, Vec::new(), 0);
            assert_eq!(spans(&log), expected, "{open_since_ms:?}");
        }
    }

    #[test]
    fn an_open_incident_has_no_end_until_it_is_ended() {
        let mut log = log_of(&[RowIncident::Opens(AlertScore::Row)]);
        assert_eq!(log.find(500), Ok(PastIncident::new(1, 1)));
        log.end_open();
        assert_eq!(log.find(500), Err(Some(PastIncident::new(1, 1))));
        log.record(2, RowIncident::Opens(AlertScore::Row), Vec::new(), 0);
        assert_eq!(spans(&log), [(1, 1), (2, 2)]);
        assert!(log.is_open_since(2) && !log.is_open_since(1));
    }
}
