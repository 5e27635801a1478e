//! The series that a group writes, each ended where it stops.
//!
//! A series that was written and has no value in the next row ends there with a staleness marker: the scores of a
//! removed challenger, the threshold of a replaced model, a contribution of a past incident, and every series at a row
//! of staleness markers only. Code that removes a series therefore does not handle its end, and no series ends twice.
//! The alternative, a marker from each place that removes something, misses the next such place.

use super::serving::Contribution;
use crate::detector::{Detector, SHARD_LABEL};
use crate::models::registry;
use crate::prom::{Labels, METRIC_NAME, Sample};
use crate::remote_write::message::CHAMPION_SERIES;
use crate::window::{ModelRole, Score};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A series of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutputSeries {
    /// The decision of a model.
    Decision(ModelRole),
    /// The score of a model.
    Score(ModelRole),
    /// The threshold of the champion.
    Threshold,
    /// 1 during an incident, else 0.
    Incident,
    /// A series of a [`Contribution`](super::serving::Contribution).
    Contribution(Labels),
}

impl OutputSeries {
    /// The series of a model's scores. Threshold and incident are the champion's only.
    pub fn of_role(role: ModelRole) -> [Self; CHAMPION_SERIES] {
        [Self::Decision(role), Self::Score(role), Self::Threshold, Self::Incident]
    }

    /// The outputs of a score.
    pub fn of_score(role: ModelRole, score: &Score) -> impl Iterator<Item = (Self, f64)> {
        let state = score.incident_state.map(|state| {
            [(Self::Threshold, state.threshold), (Self::Incident, f64::from(u8::from(state.is_incident)))]
        });
        [(Self::Decision(role), score.decision), (Self::Score(role), score.score)]
            .into_iter()
            .chain(state.into_iter().flatten())
    }

    /// The outputs of a contribution.
    pub fn of_contribution(
        contribution: &Contribution,
        detector: &str,
        group: &Labels,
    ) -> impl Iterator<Item = (Self, f64)> {
        contribution.series(detector, group).map(|(labels, value)| (Self::Contribution(labels), value))
    }

    /// True for a series of the champion itself.
    fn is_champion(&self) -> bool {
        !matches!(
            self,
            Self::Decision(ModelRole::Challenger)
                | Self::Score(ModelRole::Challenger)
                | Self::Contribution(_)
        )
    }

    /// The labels of the series.
    pub fn labels(&self, detector: &Detector, group: &Labels) -> Labels {
        let of_detector = |name| group.with("detector", &detector.name).with(METRIC_NAME, name);
        // An empty label is absent.
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

/// The labels of the incident of the job that a group belongs to. The processes that share a job judge their groups apart;
/// `part` is the name of this one.
pub fn job_incident_labels(detector: &Detector, group: &Labels, part: Option<&str>) -> Labels {
    let job = group.split(&detector.job_by).0;
    let labels = job.with("detector", &detector.name).with(METRIC_NAME, "anomaly_job_incident");
    part.map_or(labels.clone(), |part| labels.with(SHARD_LABEL, part))
}

/// The outputs of rows, by timestamp; no outputs for a row where everything ended.
pub type OutputRows = BTreeMap<i64, BTreeMap<OutputSeries, f64>>;

/// Position of an endpoint in the rows of a group.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// Rows up to here are acknowledged.
    pub done_ms: i64,
    /// Rows up to here were handed out. An older score that arrives later is lost.
    pub dispatched_ms: i64,
    /// Samples of the champion that are not acknowledged.
    pub pending_samples: usize,
    /// Samples of those that were handed out.
    dispatched_samples: usize,
    /// Series that are open after the acknowledged rows.
    open_series: BTreeSet<OutputSeries>,
    /// Series that are open after the rows that were handed out.
    open_after_dispatch: BTreeSet<OutputSeries>,
}

impl Cursor {
    /// A cursor that starts after this row.
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

    /// Continues from an earlier process: these series are open, and this many samples are pending.
    pub fn resume(&mut self, open_series: BTreeSet<OutputSeries>, pending_samples: usize) {
        self.open_after_dispatch.clone_from(&open_series);
        self.open_series = open_series;
        self.pending_samples = pending_samples;
    }

    /// True if only series of the champion itself are open.
    pub fn is_champion_only(&self) -> bool {
        self.open_series.iter().all(OutputSeries::is_champion)
    }

    /// The series of the next rows, with the staleness markers of those that end.
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

    /// Acknowledges the rows that were handed out last, up to here.
    pub fn advance(&mut self, timestamp_ms: i64) {
        self.done_ms = self.done_ms.max(timestamp_ms);
        if self.done_ms >= self.dispatched_ms {
            self.open_series.clone_from(&self.open_after_dispatch);
            self.pending_samples =
                self.pending_samples.saturating_sub(std::mem::take(&mut self.dispatched_samples));
        }
    }

    /// Series that are open at the endpoint.
    pub fn unterminated(&self) -> impl Iterator<Item = &OutputSeries> {
        self.open_series.union(&self.open_after_dispatch)
    }
}

/// The staleness markers of groups that are gone, for one endpoint.
#[derive(Debug, Default)]
pub struct PendingStaleMarkers {
    markers: BTreeMap<Labels, StaleMarker>,
    n_unwritten: usize,
    /// Markers that were handed out.
    dispatched: Vec<(Labels, i64)>,
}

#[derive(Debug)]
struct StaleMarker {
    timestamp_ms: i64,
    is_written: bool,
}

impl PendingStaleMarkers {
    /// Retention of the markers: a writer that starts the series anew starts after them. Nothing older than this is
    /// written.
    const RETENTION_MS: i64 = 3_600_000;

    /// Ends these series of a group now, or after their last sample.
    pub fn add(&mut self, series: impl Iterator<Item = Labels>, last_ms: i64, now_ms: i64) {
        let timestamp_ms = now_ms.max(last_ms.saturating_add(1));
        for labels in series {
            let before = self.markers.insert(labels, StaleMarker { timestamp_ms, is_written: false });
            self.n_unwritten += usize::from(before.is_none_or(|marker| marker.is_written));
        }
    }

    /// True if there is a marker to write.
    pub fn has_unwritten(&self) -> bool {
        self.n_unwritten > 0
    }

    /// True if no marker is retained.
    pub fn is_empty(&self) -> bool {
        self.markers.is_empty()
    }

    /// Forgets the written markers that are older than the retention.
    pub fn forget_old(&mut self, now_ms: i64) {
        self.markers
            .retain(|_, marker| !marker.is_written || marker.timestamp_ms > now_ms - Self::RETENTION_MS);
    }

    /// The markers to write, none after `to_ms`.
    pub fn next_markers(&mut self, to_ms: i64, max_samples: usize) -> &[(Labels, i64)] {
        self.forget_old(to_ms);
        let due =
            self.markers.iter().filter(|(_, marker)| !marker.is_written && marker.timestamp_ms <= to_ms);
        let due = due.map(|(labels, marker)| (labels.clone(), marker.timestamp_ms));
        self.dispatched = due.take(max_samples).collect();
        &self.dispatched
    }

    /// Acknowledges the markers that were handed out.
    pub fn advance(&mut self) {
        for (labels, timestamp_ms) in self.dispatched.drain(..) {
            let marker = self.markers.get_mut(&labels).filter(|marker| !marker.is_written);
            if let Some(marker) = marker.filter(|marker| marker.timestamp_ms == timestamp_ms) {
                marker.is_written = true;
                self.n_unwritten -= 1;
            }
        }
    }

    /// The end of a series of a group that is gone.
    pub fn marker_ms(&self, labels: &Labels) -> Option<i64> {
        self.markers.get(labels).map(|marker| marker.timestamp_ms)
    }

    /// The markers for another sender to the same endpoint.
    pub fn take_over(&mut self) -> Self {
        Self { dispatched: Vec::new(), ..std::mem::take(self) }
    }
}

/// Samples of series that belong to no group, for one endpoint, oldest first.
#[derive(Debug, Default)]
pub struct PendingSamples {
    samples: VecDeque<(Labels, Sample)>,
    /// Samples at the front that were handed out.
    n_dispatched: usize,
}

impl PendingSamples {
    /// Most samples that wait: the oldest make room.
    const MAX_SAMPLES: usize = 20_000;

    /// Adds samples of a series. Returns the number of samples that made room.
    pub fn extend(&mut self, labels: &Labels, samples: &[Sample]) -> usize {
        self.samples.extend(samples.iter().map(|sample| (labels.clone(), *sample)));
        let n_excess = self.samples.len().saturating_sub(Self::MAX_SAMPLES);
        self.samples.drain(..n_excess);
        self.n_dispatched = self.n_dispatched.saturating_sub(n_excess);
        n_excess
    }

    /// True if no sample waits.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The oldest samples, by series. Returns the same until they are acknowledged.
    pub fn next_samples(&mut self, max_samples: usize) -> BTreeMap<Labels, Vec<Sample>> {
        self.n_dispatched = max_samples.min(self.samples.len());
        let mut series: BTreeMap<Labels, Vec<Sample>> = BTreeMap::new();
        for (labels, sample) in self.samples.iter().take(self.n_dispatched) {
            series.entry(labels.clone()).or_default().push(*sample);
        }
        series
    }

    /// Acknowledges the samples that were handed out.
    pub fn advance(&mut self) {
        self.samples.drain(..std::mem::take(&mut self.n_dispatched));
    }

    /// The samples for another sender to the same endpoint.
    pub fn take_over(&mut self) -> Self {
        Self { samples: std::mem::take(&mut self.samples), n_dispatched: 0 }
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
    fn pending_samples_are_bounded_and_leave_once_they_are_acknowledged() {
        let labels = Labels::new([(METRIC_NAME, "a")]).expect("valid");
        let samples: Vec<Sample> = (0..5).map(|i| Sample { timestamp_ms: i, value: 0.0 }).collect();
        let mut pending = PendingSamples::default();
        assert_eq!(pending.extend(&labels, &samples), 0);
        let first = pending.next_samples(3);
        assert_eq!(first[&labels], samples[..3]);
        assert_eq!(pending.next_samples(3), first, "until they are dealt with, the same");
        pending.advance();
        assert_eq!(pending.next_samples(9)[&labels], samples[3..]);
        assert_eq!(pending.extend(&labels, &vec![samples[0]; PendingSamples::MAX_SAMPLES - 1]), 1);
        pending.advance();
        assert_eq!(pending.samples.len(), PendingSamples::MAX_SAMPLES - 1, "one of the two made room");
    }

    #[test]
    fn stale_markers_of_a_retired_group_follow_its_last_sample_and_are_sent_once() {
        let labels = |name| Labels::new([(METRIC_NAME, name)]).expect("valid");
        let mut markers = PendingStaleMarkers::default();
        markers.add([labels("a"), labels("b")].into_iter(), 5_000, 1_000);
        markers.add([labels("a")].into_iter(), 5_000, 1_000);
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
