//! The series that a group writes, each ended where it stops.
//!
//! A series that was written and has no value in the next row ends there, with a staleness marker: that of a
//! challenger that left, the threshold of a model that had one, a cause that is none any more, and all of them at a
//! row that is nothing but markers. So who takes a series away need not think of its end, and none is ended twice.
//! The alternative, a marker from each place that takes something away, forgets the next such place.

use super::serving::Contribution;
use crate::detector::Detector;
use crate::models::registry;
use crate::prom::{Labels, METRIC_NAME, Sample};
use crate::window::{ModelRole, Score};
use std::collections::{BTreeMap, BTreeSet};

/// Most samples of a row that has neither a challenger nor causes, nor follows one that had.
pub const MAX_SAMPLES_PER_CHAMPION_ROW: usize = 4;

/// One series of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutputSeries {
    /// A model's decision.
    Decision(ModelRole),
    /// A model's score.
    Score(ModelRole),
    /// The threshold of the model in service.
    Threshold,
    /// Whether it sees an incident.
    Incident,
    /// What is behind one: a series of a [`Contribution`](super::serving::Contribution).
    Contribution(Labels),
}

impl OutputSeries {
    /// The series of a model's scores. What only the model in service has, no other says.
    pub fn of_role(role: ModelRole) -> [Self; 4] {
        [Self::Decision(role), Self::Score(role), Self::Threshold, Self::Incident]
    }

    /// What a score says.
    pub fn of_score(role: ModelRole, score: &Score) -> impl Iterator<Item = (Self, f64)> {
        let alarm = score.incident_state.map(|alarm| {
            [(Self::Threshold, alarm.threshold), (Self::Incident, f64::from(u8::from(alarm.is_incident)))]
        });
        [(Self::Decision(role), score.decision), (Self::Score(role), score.score)]
            .into_iter()
            .chain(alarm.into_iter().flatten())
    }

    /// What a cause says.
    pub fn of_contribution(
        contribution: &Contribution,
        detector: &str,
        group: &Labels,
    ) -> impl Iterator<Item = (Self, f64)> {
        contribution.series(detector, group).map(|(labels, value)| (Self::Contribution(labels), value))
    }

    /// Is it of the model in service itself?
    fn is_champion(&self) -> bool {
        !matches!(
            self,
            Self::Decision(ModelRole::Challenger)
                | Self::Score(ModelRole::Challenger)
                | Self::Contribution(_)
        )
    }

    /// The series' labels.
    pub fn labels(&self, detector: &Detector, group: &Labels) -> Labels {
        let of_detector = |name| group.with("detector", &detector.name).with(METRIC_NAME, name);
        // Without a model's name the label is not there.
        let model = |role: &ModelRole| match role {
            ModelRole::Champion => "",
            ModelRole::Challenger => registry::CHALLENGER,
        };
        match self {
            Self::Decision(role) => {
                group.with(METRIC_NAME, &detector.decision_metric()).with("model", model(role))
            }
            Self::Score(role) => of_detector("anomaly_score").with("model", model(role)),
            Self::Threshold => of_detector("anomaly_threshold"),
            Self::Incident => of_detector("anomaly_incident"),
            Self::Contribution(labels) => labels.clone(),
        }
    }
}

/// What rows say, by their timestamps; nothing for a row at which everything ended.
pub type OutputRows = BTreeMap<i64, BTreeMap<OutputSeries, f64>>;

/// Where a target is in a group's rows.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// Rows up to here are dealt with.
    pub done_ms: i64,
    /// Rows up to here were handed out: a score that comes later and is older is lost.
    pub dispatched_ms: i64,
    /// Samples of the model in service that are not dealt with.
    pub pending_samples: usize,
    /// Those that were handed out.
    dispatched_samples: usize,
    /// Series that go on after the rows that are dealt with.
    open_series: BTreeSet<OutputSeries>,
    /// Those that go on after the rows that were handed out.
    open_after_dispatch: BTreeSet<OutputSeries>,
}

impl Cursor {
    /// One that begins after this row.
    pub fn after(timestamp_ms: i64) -> Self {
        Self {
            done_ms: timestamp_ms,
            dispatched_ms: timestamp_ms,
            pending_samples: 0,
            dispatched_samples: 0,
            open_series: BTreeSet::new(),
            open_after_dispatch: BTreeSet::new(),
        }
    }

    /// Goes on where another process ended: these series are alive, and so many samples wait.
    pub fn resume(&mut self, open_series: BTreeSet<OutputSeries>, pending_samples: usize) {
        self.open_after_dispatch.clone_from(&open_series);
        self.open_series = open_series;
        self.pending_samples = pending_samples;
    }

    /// Are only series of the model in service itself alive?
    pub fn is_champion_only(&self) -> bool {
        self.open_series.iter().all(OutputSeries::is_champion)
    }

    /// The series of the next rows, with the ends of those that stop.
    pub fn next_samples(&mut self, rows: &OutputRows) -> BTreeMap<OutputSeries, Vec<Sample>> {
        let mut series: BTreeMap<OutputSeries, Vec<Sample>> = BTreeMap::new();
        let mut open_series = self.open_series.clone();
        for (timestamp_ms, row) in rows {
            for ended in open_series.iter().filter(|output| !row.contains_key(output)) {
                series.entry(ended.clone()).or_default().push(Sample::stale(*timestamp_ms));
            }
            for (output, value) in row {
                let sample = Sample { timestamp_ms: *timestamp_ms, value: *value };
                series.entry(output.clone()).or_default().push(sample);
            }
            open_series = row.keys().cloned().collect();
            self.dispatched_ms = *timestamp_ms;
        }
        self.open_after_dispatch = open_series;
        self.dispatched_samples =
            rows.values().flat_map(BTreeMap::keys).filter(|output| output.is_champion()).count();
        series
    }

    /// The rows that were handed out last are dealt with, up to here.
    pub fn advance(&mut self, timestamp_ms: i64) {
        self.done_ms = self.done_ms.max(timestamp_ms);
        if self.done_ms >= self.dispatched_ms {
            self.open_series.clone_from(&self.open_after_dispatch);
            self.pending_samples =
                self.pending_samples.saturating_sub(std::mem::take(&mut self.dispatched_samples));
        }
    }

    /// Series that a target may have, and that are not ended.
    pub fn unterminated(&self) -> impl Iterator<Item = &OutputSeries> {
        self.open_series.union(&self.open_after_dispatch)
    }
}

/// The ends of series whose group is gone, for one target.
#[derive(Debug, Default)]
pub struct PendingStaleMarkers {
    markers: BTreeMap<Labels, StaleMarker>,
    /// Those that were handed out.
    dispatched: Vec<(Labels, i64)>,
}

#[derive(Debug)]
struct StaleMarker {
    timestamp_ms: i64,
    is_written: bool,
}

impl PendingStaleMarkers {
    /// Ends are remembered for so long: whoever writes the series anew begins after them. Nothing that is older
    /// than this is written.
    const RETENTION_MS: i64 = 3_600_000;

    /// These series of a group that goes end now, or after their last sample.
    pub fn add(&mut self, series: impl Iterator<Item = Labels>, last_ms: i64, now_ms: i64) {
        let timestamp_ms = now_ms.max(last_ms.saturating_add(1));
        self.markers.extend(series.map(|labels| (labels, StaleMarker { timestamp_ms, is_written: false })));
    }

    /// Is there something to write?
    pub fn has_unwritten(&self) -> bool {
        self.markers.values().any(|marker| !marker.is_written)
    }

    /// The ends that are to be written, none after `to_ms`.
    pub fn next_markers(&mut self, to_ms: i64, max_samples: usize) -> &[(Labels, i64)] {
        self.markers
            .retain(|_, marker| !marker.is_written || marker.timestamp_ms > to_ms - Self::RETENTION_MS);
        let due =
            self.markers.iter().filter(|(_, marker)| !marker.is_written && marker.timestamp_ms <= to_ms);
        let due = due.map(|(labels, marker)| (labels.clone(), marker.timestamp_ms));
        self.dispatched = due.take(max_samples).collect();
        &self.dispatched
    }

    /// What was handed out is dealt with.
    pub fn advance(&mut self) {
        for (labels, timestamp_ms) in self.dispatched.drain(..) {
            if let Some(marker) = self.markers.get_mut(&labels) {
                marker.is_written |= marker.timestamp_ms == timestamp_ms;
            }
        }
    }

    /// When a series of a group that is gone was ended.
    pub fn marker_ms(&self, labels: &Labels) -> Option<i64> {
        self.markers.get(labels).map(|marker| marker.timestamp_ms)
    }

    /// The same for another sender to the same target.
    pub fn take_over(&mut self) -> Self {
        Self { markers: std::mem::take(&mut self.markers), dispatched: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(outputs: &[OutputSeries]) -> BTreeMap<OutputSeries, f64> {
        outputs.iter().map(|output| (output.clone(), 1.0)).collect()
    }

    fn shape(series: &BTreeMap<OutputSeries, Vec<Sample>>) -> Vec<(OutputSeries, String)> {
        let one =
            |sample: &Sample| format!("{}{} ", sample.timestamp_ms, if sample.is_stale() { "x" } else { "" });
        let text = |samples: &Vec<Sample>| samples.iter().map(one).collect::<String>().trim().to_string();
        series.iter().map(|(output, samples)| (output.clone(), text(samples))).collect()
    }

    use OutputSeries::{Incident, Score, Threshold};
    const CHAMPION: OutputSeries = Score(ModelRole::Champion);
    const CHALLENGER: OutputSeries = Score(ModelRole::Challenger);

    #[test]
    fn a_series_ends_once_where_it_stops_and_may_begin_anew() {
        let mut cursor = Cursor::after(0);
        let rows = OutputRows::from([
            (1, row(&[CHAMPION, CHALLENGER])),
            (2, row(&[CHAMPION])),
            (3, row(&[CHAMPION])),
            (4, row(&[CHAMPION, CHALLENGER])),
            (5, row(&[])),
            (6, row(&[])),
            (7, row(&[CHAMPION])),
        ]);
        let series = cursor.next_samples(&rows);
        assert_eq!(shape(&series), [(CHAMPION, "1 2 3 4 5x 7".into()), (CHALLENGER, "1 2x 4 5x".into())]);
        assert_eq!(cursor.next_samples(&rows), series, "until it is dealt with, the same");
    }

    #[test]
    fn open_series_carry_over_from_batch_to_batch() {
        let mut cursor = Cursor::after(0);
        cursor.pending_samples = 7;
        let first = cursor.next_samples(&OutputRows::from([(1, row(&[CHAMPION, Threshold, Incident]))]));
        assert_eq!(first.len(), 3);
        cursor.advance(1);
        assert_eq!((cursor.pending_samples, cursor.is_champion_only()), (4, true));
        let second = cursor.next_samples(&OutputRows::from([(2, row(&[CHAMPION]))]));
        let expected = [(CHAMPION, "2".into()), (Threshold, "2x".into()), (Incident, "2x".into())];
        assert_eq!(shape(&second), expected);
        cursor.advance(2);
        assert_eq!(cursor.next_samples(&OutputRows::from([(3, row(&[]))])).len(), 1);
        cursor.advance(3);
        assert!(cursor.next_samples(&OutputRows::from([(4, row(&[]))])).is_empty(), "no end twice");
        assert_eq!(cursor.pending_samples, 3);
    }

    #[test]
    fn stale_markers_of_a_retired_group_follow_its_last_sample_and_are_sent_once() {
        let labels = |name| Labels::new([(METRIC_NAME, name)]).expect("valid");
        let mut markers = PendingStaleMarkers::default();
        markers.add([labels("a"), labels("b")].into_iter(), 5_000, 1_000);
        markers.add([labels("c")].into_iter(), 500, 1_000);
        assert_eq!(markers.next_markers(1_000, 10), [(labels("c"), 1_000)], "the others lie in the future");
        markers.advance();
        assert_eq!(markers.next_markers(6_000, 1), [(labels("a"), 5_001)]);
        assert_eq!(markers.next_markers(6_000, 10).len(), 2, "nothing was dealt with");
        markers.advance();
        assert!(!markers.has_unwritten() && markers.next_markers(6_000, 10).is_empty());
        assert_eq!(markers.marker_ms(&labels("b")), Some(5_001));
        markers.next_markers(5_001 + PendingStaleMarkers::RETENTION_MS, 10);
        assert_eq!(markers.marker_ms(&labels("b")), None);
    }
}
