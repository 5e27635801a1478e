//! What a group has, for whoever asks by remote read: the samples that it watches, and the series that it writes,
//! whether they could be written or not.
//!
//! The engine only tells which series there are, and lets go of what they hold at that moment: sealed chunks are
//! shared. The samples are put together by who sends them. All series of a group are of one moment, so no instant
//! has its score and lacks its decision.
//!
//! Nor does the engine match patterns: some that are costly by intent, on the labels of a thousand series, take
//! seconds in which no row is scored. It compares values only, and hands out what a query may select; who asks
//! leaves out of it what the patterns refuse.

use super::outputs::Output;
use super::serving::Cause;
use crate::config::Detector;
use crate::history::server::{Query, Series};
use crate::prom::{Labels, Sample, Selector};
use crate::window::{Column, Score, View, Voice, Window};
use std::collections::VecDeque;
use std::sync::Arc;

/// Labels that outputs have of their own, whatever their group's are.
const OWN_LABELS: [&str; 4] = ["detector", "metric", "model", "reason"];

/// What some groups have that a query may select.
#[derive(Default)]
pub struct Selected {
    /// By group.
    pub found: Vec<Found>,
    /// How many of the groups that were asked for have been looked at, unless it was all of them.
    pub next: Option<usize>,
}

/// What a group has of it, at one moment.
pub struct Found {
    series: Vec<(Labels, What)>,
    held: Held,
}

/// A series, as it was when it was found.
pub struct Chosen {
    labels: Labels,
    what: What,
    held: Arc<Held>,
}

enum What {
    Feature(Column),
    Output(Output),
    /// A series of this feature's causes.
    Cause(Output, Labels),
}

/// What the series of a group hold at one moment.
struct Held {
    start_ms: i64,
    end_ms: i64,
    detector: String,
    group: Labels,
    view: View,
    causes: Vec<(i64, Vec<Cause>)>,
    /// Rows at which everything ended.
    ended: Vec<i64>,
}

/// A group, and what is asked of it.
pub struct Asked<'a> {
    /// The query.
    pub query: &'a Query,
    /// The group's detector.
    pub detector: &'a Detector,
    /// Its labels.
    pub group: &'a Labels,
    /// Its samples and scores.
    pub window: &'a Window,
    /// What was behind its incidents, by timestamp ascending.
    pub causes: &'a VecDeque<(i64, Vec<Cause>)>,
    /// Rows at which everything ended, ascending.
    pub ended: Vec<i64>,
}

/// May a group with these labels have a series that is selected?
pub fn may_have(group: &Labels, selector: &Selector) -> bool {
    let is_plain = OWN_LABELS.iter().all(|name| group.get(name).is_empty());
    !is_plain || selector.may_match(group)
}

impl Asked<'_> {
    /// Adds what the query selects.
    pub fn answer(self, found: &mut Vec<Found>) {
        let selector = &self.query.selector;
        let mut series = Vec::new();
        let mut features = Vec::new();
        for (feature, column, _) in self.window.features() {
            let labels = feature.union(self.group);
            if selector.matches(&labels) {
                series.push((labels, What::Feature(column)));
                features.push(column);
            }
        }
        let voices = [Voice::Champion, Voice::Challenger];
        let beside = [Output::Decision(Voice::Challenger), Output::Score(Voice::Challenger)];
        for output in Output::of_voice(Voice::Champion).into_iter().chain(beside) {
            let labels = output.labels(self.detector, self.group);
            if selector.matches(&labels) {
                series.push((labels, What::Output(output)));
            }
        }
        let causes = self.causes_in_range();
        for cause in kinds(&causes) {
            for (output, _) in Output::of_cause(&cause, &self.detector.name, self.group) {
                let labels = output.labels(self.detector, self.group);
                if selector.matches(&labels) && !series.iter().any(|(known, _)| *known == labels) {
                    series.push((labels, What::Cause(output, cause.feature.clone())));
                }
            }
        }
        if series.is_empty() {
            return;
        }
        let (start_ms, end_ms) = (self.query.start_ms, self.query.end_ms);
        // An output ends in a row that is told by the one before.
        let has_outputs = series.len() > features.len();
        let after_ms = if has_outputs { i64::MIN } else { start_ms.saturating_sub(1) };
        let voices: &[Voice] = if has_outputs { &voices } else { &[] };
        let held = Held {
            start_ms,
            end_ms,
            detector: self.detector.name.clone(),
            group: self.group.clone(),
            view: self.window.view(&features, voices, after_ms, end_ms),
            causes,
            ended: self.ended,
        };
        found.push(Found { series, held });
    }

    /// What was behind the incidents of rows that the query asks for, and of those that tell where it ends.
    fn causes_in_range(&self) -> Vec<(i64, Vec<Cause>)> {
        let reaches = self.causes.back().is_some_and(|(newest_ms, _)| *newest_ms >= self.query.start_ms);
        let causes = self.causes.iter().filter(|_| reaches);
        causes.take_while(|(timestamp_ms, _)| *timestamp_ms <= self.query.end_ms).cloned().collect()
    }
}

/// One cause for each feature and reason, with all that a cause can tell.
fn kinds(causes: &[(i64, Vec<Cause>)]) -> Vec<Cause> {
    let mut kinds: Vec<Cause> = Vec::new();
    for cause in causes.iter().flat_map(|(_, causes)| causes) {
        if !kinds.iter().any(|kind| kind.reason == cause.reason && kind.feature == cause.feature) {
            kinds.push(Cause { usual: [0.0; 3], ..cause.clone() });
        }
    }
    kinds
}

impl Found {
    /// What of it is selected. Of the rest nothing is held.
    pub fn choose(self, selector: &Selector) -> impl Iterator<Item = Chosen> + use<> {
        let Self { mut series, mut held } = self;
        series.retain(|(labels, _)| selector.matches(labels));
        let feature = |what: &What| if let What::Feature(column) = what { Some(*column) } else { None };
        held.view.keep(&series.iter().filter_map(|(_, what)| feature(what)).collect());
        let held = Arc::new(held);
        series.into_iter().map(move |(labels, what)| Chosen { labels, what, held: held.clone() })
    }
}

impl Series for Chosen {
    fn labels(&self) -> &Labels {
        &self.labels
    }

    fn samples(&self, out: &mut Vec<Sample>) {
        let from = out.len();
        match &self.what {
            What::Feature(column) => self.held.view.samples(*column, out),
            What::Output(output) => {
                let of_scores = |voice, score: Option<&Score>| {
                    let said = score.into_iter().flat_map(move |score| Output::of_score(voice, score));
                    said.filter(|(said, _)| said == output).map(|(_, value)| value).next()
                };
                self.held.rows(out, |_, champion, challenger| {
                    of_scores(Voice::Champion, Some(champion)).or(of_scores(Voice::Challenger, challenger))
                });
            }
            What::Cause(output, feature) => {
                let mut causes = self.held.causes.iter().peekable();
                self.held.rows(out, |timestamp_ms, _, _| {
                    while causes.next_if(|(then, _)| *then < timestamp_ms).is_some() {}
                    let (_, causes) = causes.peek().filter(|(then, _)| *then == timestamp_ms)?;
                    let causes = causes.iter().filter(|cause| cause.feature == *feature);
                    causes
                        .flat_map(|cause| Output::of_cause(cause, &self.held.detector, &self.held.group))
                        .filter(|(said, _)| said == output)
                        .map(|(_, value)| value)
                        .last()
                });
            }
        }
        let (start_ms, end_ms) = (self.held.start_ms, self.held.end_ms);
        out.truncate(from + out[from..].partition_point(|sample| sample.timestamp_ms <= end_ms));
        let before = out[from..].partition_point(|sample| sample.timestamp_ms < start_ms);
        out.drain(from..from + before);
    }
}

impl Held {
    /// Appends what every row says of a series, and its end where one says no more of it.
    fn rows(&self, out: &mut Vec<Sample>, mut said: impl FnMut(i64, &Score, Option<&Score>) -> Option<f64>) {
        let mut challenger = self.view.scores(Voice::Challenger).peekable();
        let mut ended = self.ended.iter().copied().peekable();
        let mut is_alive = false;
        let end = |out: &mut Vec<Sample>, is_alive: &mut bool, timestamp_ms| {
            if std::mem::take(is_alive) {
                out.push(Sample::stale(timestamp_ms));
            }
        };
        for (timestamp_ms, score) in self.view.scores(Voice::Champion) {
            // A late sample may have completed a row that had ended: then the score stays.
            while let Some(then) = ended.next_if(|then| *then <= timestamp_ms) {
                if then < timestamp_ms {
                    end(out, &mut is_alive, then);
                }
            }
            while challenger.next_if(|(then, _)| *then < timestamp_ms).is_some() {}
            let beside = challenger.peek().filter(|(then, _)| *then == timestamp_ms).map(|(_, score)| score);
            match said(timestamp_ms, &score, beside) {
                Some(value) => {
                    out.push(Sample { timestamp_ms, value });
                    is_alive = true;
                }
                None => end(out, &mut is_alive, timestamp_ms),
            }
        }
        if let Some(then) = ended.next() {
            end(out, &mut is_alive, then);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::detect::Reason;
    use crate::prom::METRIC_NAME;
    use crate::window::Alarm;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels::new(pairs.iter().copied()).expect("valid")
    }

    fn score(decision: f64, is_incident: bool) -> Score {
        let alarm = Alarm { threshold: 0.25, is_incident };
        Score { decision, score: 2.0 * decision, alarm: Some(alarm) }
    }

    fn cause(device: &str, share: f64, usual: [f64; 3]) -> Cause {
        let feature = labels(&[(METRIC_NAME, "rx"), ("device", device)]);
        Cause { feature, reason: Reason::Jumped, share, usual }
    }

    /// Rows at 1 to 6 seconds with a score, but for the fourth, at which everything ended; an incident from 2 to 3;
    /// a challenger until 2.
    fn read(selector: &str, start_ms: i64, end_ms: i64) -> Vec<String> {
        let group = labels(&[("instance", "a"), ("job", "node")]);
        let mut window = Window::new(3_600_000);
        let feature = labels(&[(METRIC_NAME, "rx"), ("device", "eth0")]);
        let column = window.column(&feature).expect("few");
        let mut causes = VecDeque::new();
        for i in [1, 2, 3, 5, 6] {
            let timestamp_ms = i * 1000;
            window.push(column, Sample { timestamp_ms, value: i as f64 });
            window.set_score(Voice::Champion, timestamp_ms, score(0.5, (2..=3).contains(&i)));
            if i <= 2 {
                let beside = Score { alarm: None, ..score(0.125, false) };
                window.set_score(Voice::Challenger, timestamp_ms, beside);
            }
        }
        causes.push_back((2000, vec![cause("eth0", 0.75, [f64::NAN; 3])]));
        causes.push_back((3000, vec![cause("eth0", 0.5, [1.0, 2.0, 3.0]), cause("lo", 0.25, [f64::NAN; 3])]));
        causes.push_back((5000, Vec::new()));
        let selector = Selector::parse(selector).expect("a selector");
        let query = Query { start_ms, end_ms, selector: selector.without_patterns() };
        let config = Config::parse("detectors: [{name: net, match: [rx]}]").expect("valid");
        let asked = Asked {
            query: &query,
            detector: &config.detectors[0],
            group: &group,
            window: &window,
            causes: &causes,
            ended: vec![4000],
        };
        let mut found = Vec::new();
        asked.answer(&mut found);
        let chosen = found.into_iter().flat_map(|found| found.choose(&selector));
        let text = |series: Chosen| {
            let (mut samples, mut again) = (Vec::new(), Vec::new());
            series.samples(&mut samples);
            series.samples(&mut again);
            assert_eq!(samples, again);
            let sample = |sample: &Sample| match sample.is_stale() {
                true => format!(" {}:x", sample.timestamp_ms / 1000),
                false => format!(" {}:{}", sample.timestamp_ms / 1000, sample.value),
            };
            format!("{}{}", series.labels(), samples.iter().map(sample).collect::<String>())
        };
        let mut text: Vec<String> = chosen.map(text).collect();
        text.sort();
        text
    }

    #[test]
    fn every_series_is_there_with_its_ends() {
        let all = read(r#"{job="node"}"#, 0, 10_000);
        let of = r#"detector="net", "#;
        let group = r#"instance="a", job="node""#;
        assert_eq!(
            all,
            [
                format!(
                    r#"anomaly_contribution{{{of}device="eth0", {group}, metric="rx", reason="jumped"}} 2:0.75 3:0.5 4:x"#
                ),
                format!(
                    r#"anomaly_contribution{{{of}device="lo", {group}, metric="rx", reason="jumped"}} 3:0.25 4:x"#
                ),
                format!(r#"anomaly_expected_lower{{{of}device="eth0", {group}, metric="rx"}} 3:1 4:x"#),
                format!(r#"anomaly_expected_lower{{{of}device="lo", {group}, metric="rx"}}"#),
                format!(r#"anomaly_expected_upper{{{of}device="eth0", {group}, metric="rx"}} 3:3 4:x"#),
                format!(r#"anomaly_expected_upper{{{of}device="lo", {group}, metric="rx"}}"#),
                format!(r#"anomaly_expected{{{of}device="eth0", {group}, metric="rx"}} 3:2 4:x"#),
                format!(r#"anomaly_expected{{{of}device="lo", {group}, metric="rx"}}"#),
                format!("anomaly_incident{{{of}{group}}} 1:0 2:1 3:1 4:x 5:0 6:0"),
                format!("anomaly_score{{{of}{group}, model=\"challenger\"}} 1:0.25 2:0.25 3:x"),
                format!("anomaly_score{{{of}{group}}} 1:1 2:1 3:1 4:x 5:1 6:1"),
                format!("anomaly_threshold{{{of}{group}}} 1:0.25 2:0.25 3:0.25 4:x 5:0.25 6:0.25"),
                format!("net_anomaly{{{group}, model=\"challenger\"}} 1:0.125 2:0.125 3:x"),
                format!("net_anomaly{{{group}}} 1:0.5 2:0.5 3:0.5 4:x 5:0.5 6:0.5"),
                format!(r#"rx{{device="eth0", {group}}} 1:1 2:2 3:3 5:5 6:6"#),
            ]
        );
    }

    #[test]
    fn a_range_is_cut_out_of_it() {
        let score = r#"anomaly_score{model=""}"#;
        let labels = r#"anomaly_score{detector="net", instance="a", job="node"}"#;
        assert_eq!(read(score, 2000, 5000), [format!("{labels} 2:1 3:1 4:x 5:1")]);
        assert_eq!(read(score, 4000, 4000), [format!("{labels} 4:x")]);
        let share = r#"anomaly_contribution{device="lo"}"#;
        let labels = r#"anomaly_contribution{detector="net", device="lo", instance="a", job="node", metric="rx", reason="jumped"}"#;
        assert_eq!(read(share, 3500, 9000), [format!("{labels} 4:x")]);
        assert_eq!(read("rx", 2001, 5999), [r#"rx{device="eth0", instance="a", job="node"} 3:3 5:5"#]);
        assert!(read("rx", 7000, 9000)[0].ends_with('}'), "no sample");
        // A part of what the comparisons leave, by patterns.
        assert_eq!(
            read(r#"{__name__=~"anomaly_sc.*|x", model!~"ch.*"}"#, 2000, 5000),
            read(score, 2000, 5000)
        );
        assert_eq!(read(r#"{__name__=~"r.", job="node"}"#, 2001, 5999), read("rx", 2001, 5999));
        assert!(read(r#"rx{job="other"}"#, 0, 9000).is_empty());
    }
}
