//! The series that a group writes, each ended where it stops.
//!
//! A series that was written and has no value in the next row ends there, with a staleness marker: that of a
//! challenger that left, the threshold of a model that had one, a cause that is none any more, and all of them at a
//! row that is nothing but markers. So who takes a series away need not think of its end, and none is ended twice.
//! The alternative, a marker from each place that takes something away, forgets the next such place.

use super::serving::Cause;
use crate::config::Detector;
use crate::models::registry;
use crate::prom::{Labels, METRIC_NAME, Sample};
use crate::window::{Score, Voice};
use std::collections::{BTreeMap, BTreeSet};

/// Most samples of a row that has neither a challenger nor causes, nor follows one that had.
pub const SAMPLES_OF_A_PLAIN_ROW: usize = 4;

/// One series of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Output {
    /// A model's decision.
    Decision(Voice),
    /// A model's score.
    Score(Voice),
    /// The threshold of the model in service.
    Threshold,
    /// Whether it sees an incident.
    Incident,
    /// What is behind one: a series of a [`Cause`].
    Cause(Labels),
}

impl Output {
    /// The series of a model's scores. What only the model in service has, no other says.
    pub fn of_voice(voice: Voice) -> [Self; 4] {
        [Self::Decision(voice), Self::Score(voice), Self::Threshold, Self::Incident]
    }

    /// What a score says.
    pub fn of_score(voice: Voice, score: &Score) -> impl Iterator<Item = (Self, f64)> {
        let alarm = score.alarm.map(|alarm| {
            [(Self::Threshold, alarm.threshold), (Self::Incident, f64::from(u8::from(alarm.is_incident)))]
        });
        [(Self::Decision(voice), score.decision), (Self::Score(voice), score.score)]
            .into_iter()
            .chain(alarm.into_iter().flatten())
    }

    /// What a cause says.
    pub fn of_cause(cause: &Cause, detector: &str, group: &Labels) -> impl Iterator<Item = (Self, f64)> {
        cause.series(detector, group).map(|(labels, value)| (Self::Cause(labels), value))
    }

    /// Is it of the model in service itself?
    fn is_plain(&self) -> bool {
        !matches!(self, Self::Decision(Voice::Challenger) | Self::Score(Voice::Challenger) | Self::Cause(_))
    }

    /// The series' labels.
    pub fn labels(&self, detector: &Detector, group: &Labels) -> Labels {
        let of_detector = |name| group.with("detector", &detector.name).with(METRIC_NAME, name);
        // Without a model's name the label is not there.
        let model = |voice: &Voice| match voice {
            Voice::Champion => "",
            Voice::Challenger => registry::CHALLENGER,
        };
        match self {
            Self::Decision(voice) => {
                group.with(METRIC_NAME, &detector.decision_metric()).with("model", model(voice))
            }
            Self::Score(voice) => of_detector("anomaly_score").with("model", model(voice)),
            Self::Threshold => of_detector("anomaly_threshold"),
            Self::Incident => of_detector("anomaly_incident"),
            Self::Cause(labels) => labels.clone(),
        }
    }
}

/// What rows say, by their timestamps; nothing for a row at which everything ended.
pub type Rows = BTreeMap<i64, BTreeMap<Output, f64>>;

/// Where a target is in a group's rows.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// Rows up to here are dealt with.
    pub done_ms: i64,
    /// Rows up to here were handed out: a score that comes later and is older is lost.
    pub handed_out_ms: i64,
    /// Samples of the model in service that are not dealt with.
    pub waiting: usize,
    /// Those that were handed out.
    handed_out: usize,
    /// Series that go on after the rows that are dealt with.
    alive: BTreeSet<Output>,
    /// Those that go on after the rows that were handed out.
    alive_then: BTreeSet<Output>,
}

impl Cursor {
    /// One that begins after this row.
    pub fn after(timestamp_ms: i64) -> Self {
        Self {
            done_ms: timestamp_ms,
            handed_out_ms: timestamp_ms,
            waiting: 0,
            handed_out: 0,
            alive: BTreeSet::new(),
            alive_then: BTreeSet::new(),
        }
    }

    /// Goes on where another process ended: these series are alive, and so many samples wait.
    pub fn resume(&mut self, alive: BTreeSet<Output>, waiting: usize) {
        self.alive_then.clone_from(&alive);
        self.alive = alive;
        self.waiting = waiting;
    }

    /// Are only series of the model in service itself alive?
    pub fn is_plain(&self) -> bool {
        self.alive.iter().all(Output::is_plain)
    }

    /// The series of the next rows, with the ends of those that stop.
    pub fn hand_out(&mut self, rows: &Rows) -> BTreeMap<Output, Vec<Sample>> {
        let mut series: BTreeMap<Output, Vec<Sample>> = BTreeMap::new();
        let mut alive = self.alive.clone();
        for (timestamp_ms, row) in rows {
            for gone in alive.iter().filter(|output| !row.contains_key(output)) {
                series.entry(gone.clone()).or_default().push(Sample::stale(*timestamp_ms));
            }
            for (output, value) in row {
                let sample = Sample { timestamp_ms: *timestamp_ms, value: *value };
                series.entry(output.clone()).or_default().push(sample);
            }
            alive = row.keys().cloned().collect();
            self.handed_out_ms = *timestamp_ms;
        }
        self.alive_then = alive;
        self.handed_out = rows.values().flat_map(BTreeMap::keys).filter(|output| output.is_plain()).count();
        series
    }

    /// The rows that were handed out last are dealt with, up to here.
    pub fn advance(&mut self, timestamp_ms: i64) {
        self.done_ms = self.done_ms.max(timestamp_ms);
        if self.done_ms >= self.handed_out_ms {
            self.alive.clone_from(&self.alive_then);
            self.waiting = self.waiting.saturating_sub(std::mem::take(&mut self.handed_out));
        }
    }

    /// Series that a target may have, and that are not ended.
    pub fn open(&self) -> impl Iterator<Item = &Output> {
        self.alive.union(&self.alive_then)
    }
}

/// The ends of series whose group is gone, for one target.
#[derive(Debug, Default)]
pub struct Ends {
    ends: BTreeMap<Labels, End>,
    /// Those that were handed out.
    handed_out: Vec<(Labels, i64)>,
}

#[derive(Debug)]
struct End {
    timestamp_ms: i64,
    is_written: bool,
}

impl Ends {
    /// Ends are remembered for so long: whoever writes the series anew begins after them. Nothing that is older
    /// than this is written.
    const REMEMBERED_MS: i64 = 3_600_000;

    /// These series of a group that goes end now, or after their last sample.
    pub fn add(&mut self, series: impl Iterator<Item = Labels>, last_ms: i64, now_ms: i64) {
        let timestamp_ms = now_ms.max(last_ms.saturating_add(1));
        self.ends.extend(series.map(|labels| (labels, End { timestamp_ms, is_written: false })));
    }

    /// Is there something to write?
    pub fn are_waiting(&self) -> bool {
        self.ends.values().any(|end| !end.is_written)
    }

    /// The ends that are to be written, none after `to_ms`.
    pub fn hand_out(&mut self, to_ms: i64, max_samples: usize) -> &[(Labels, i64)] {
        self.ends.retain(|_, end| !end.is_written || end.timestamp_ms > to_ms - Self::REMEMBERED_MS);
        let due = self.ends.iter().filter(|(_, end)| !end.is_written && end.timestamp_ms <= to_ms);
        let due = due.map(|(labels, end)| (labels.clone(), end.timestamp_ms));
        self.handed_out = due.take(max_samples).collect();
        &self.handed_out
    }

    /// What was handed out is dealt with.
    pub fn advance(&mut self) {
        for (labels, timestamp_ms) in self.handed_out.drain(..) {
            if let Some(end) = self.ends.get_mut(&labels) {
                end.is_written |= end.timestamp_ms == timestamp_ms;
            }
        }
    }

    /// When a series of a group that is gone was ended.
    pub fn end_of(&self, labels: &Labels) -> Option<i64> {
        self.ends.get(labels).map(|end| end.timestamp_ms)
    }

    /// The same for another sender to the same target.
    pub fn taken_over(&mut self) -> Self {
        Self { ends: std::mem::take(&mut self.ends), handed_out: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(outputs: &[Output]) -> BTreeMap<Output, f64> {
        outputs.iter().map(|output| (output.clone(), 1.0)).collect()
    }

    fn shape(series: &BTreeMap<Output, Vec<Sample>>) -> Vec<(Output, String)> {
        let one =
            |sample: &Sample| format!("{}{} ", sample.timestamp_ms, if sample.is_stale() { "x" } else { "" });
        let text = |samples: &Vec<Sample>| samples.iter().map(one).collect::<String>().trim().to_string();
        series.iter().map(|(output, samples)| (output.clone(), text(samples))).collect()
    }

    use Output::{Incident, Score, Threshold};
    const CHAMPION: Output = Score(Voice::Champion);
    const CHALLENGER: Output = Score(Voice::Challenger);

    #[test]
    fn a_series_ends_once_where_it_stops_and_may_begin_anew() {
        let mut cursor = Cursor::after(0);
        let rows = Rows::from([
            (1, row(&[CHAMPION, CHALLENGER])),
            (2, row(&[CHAMPION])),
            (3, row(&[CHAMPION])),
            (4, row(&[CHAMPION, CHALLENGER])),
            (5, row(&[])),
            (6, row(&[])),
            (7, row(&[CHAMPION])),
        ]);
        let series = cursor.hand_out(&rows);
        assert_eq!(shape(&series), [(CHAMPION, "1 2 3 4 5x 7".into()), (CHALLENGER, "1 2x 4 5x".into())]);
        assert_eq!(cursor.hand_out(&rows), series, "until it is dealt with, the same");
    }

    #[test]
    fn an_end_is_known_from_batch_to_batch() {
        let mut cursor = Cursor::after(0);
        cursor.waiting = 7;
        let first = cursor.hand_out(&Rows::from([(1, row(&[CHAMPION, Threshold, Incident]))]));
        assert_eq!(first.len(), 3);
        cursor.advance(1);
        assert_eq!((cursor.waiting, cursor.is_plain()), (4, true));
        let second = cursor.hand_out(&Rows::from([(2, row(&[CHAMPION]))]));
        let expected = [(CHAMPION, "2".into()), (Threshold, "2x".into()), (Incident, "2x".into())];
        assert_eq!(shape(&second), expected);
        cursor.advance(2);
        assert_eq!(cursor.hand_out(&Rows::from([(3, row(&[]))])).len(), 1);
        cursor.advance(3);
        assert!(cursor.hand_out(&Rows::from([(4, row(&[]))])).is_empty(), "no end twice");
        assert_eq!(cursor.waiting, 3);
    }

    #[test]
    fn ends_of_a_group_that_is_gone_come_after_its_last_sample_and_once() {
        let labels = |name| Labels::new([(METRIC_NAME, name)]).expect("valid");
        let mut ends = Ends::default();
        ends.add([labels("a"), labels("b")].into_iter(), 5_000, 1_000);
        ends.add([labels("c")].into_iter(), 500, 1_000);
        assert_eq!(ends.hand_out(1_000, 10), [(labels("c"), 1_000)], "the others lie in the future");
        ends.advance();
        assert_eq!(ends.hand_out(6_000, 1), [(labels("a"), 5_001)]);
        assert_eq!(ends.hand_out(6_000, 10).len(), 2, "nothing was dealt with");
        ends.advance();
        assert!(!ends.are_waiting() && ends.hand_out(6_000, 10).is_empty());
        assert_eq!(ends.end_of(&labels("b")), Some(5_001));
        ends.hand_out(5_001 + Ends::REMEMBERED_MS, 10);
        assert_eq!(ends.end_of(&labels("b")), None);
    }
}
