//! Selection of series for remote read: the samples of a group, and its outputs, whether or not they could be
//! written.
//!
//! The engine only lists the series and shares their sealed chunks; the response task collects the samples. All series
//! of a group are of one moment, so no instant has its score and lacks its decision.
//!
//! The engine does not match regular expressions either: a costly one on the labels of a thousand series takes seconds
//! in which no row is scored. The engine compares values only, and returns every series that a query may select; the
//! response task applies the regular expressions.

use super::output_series::OutputSeries;
use super::serving::Contribution;
use crate::detector::Detector;
use crate::prom::{Labels, Sample, Selector};
use crate::remote_read::server::{Query, ReadableSeries};
use crate::window::{Column, ModelRole, Score, View, Window};
use std::collections::VecDeque;
use std::sync::Arc;

/// Labels that outputs have in addition to those of their group.
const RESERVED_LABELS: [&str; 4] = ["detector", "metric", "model", "reason"];

/// The parts of some groups that a query selects.
pub struct SelectionPage<T> {
    /// The matches of each group.
    pub matches: Vec<T>,
    /// Number of groups that were processed, unless all were.
    pub next: Option<usize>,
}

/// The series of one group at one moment.
pub struct GroupMatches {
    series: Vec<(Labels, SeriesKind)>,
    group_view: GroupView,
}

/// A series that may be selected.
pub struct SelectedSeries {
    labels: Labels,
    kind: SeriesKind,
    group_view: Arc<GroupView>,
}

enum SeriesKind {
    Feature(Column),
    Output(OutputSeries),
    /// A series of the contributions of this feature.
    Contribution(OutputSeries, Labels),
}

/// The data behind the series of a group at one moment.
struct GroupView {
    start_ms: i64,
    end_ms: i64,
    detector: String,
    group: Labels,
    view: View,
    contributions: Vec<(i64, Vec<Contribution>)>,
    /// Stale rows, ascending.
    stale_rows: Vec<i64>,
}

/// A group and a query.
pub struct GroupQuery<'a> {
    /// The query.
    pub query: &'a Query,
    /// The detector of the group.
    pub detector: &'a Detector,
    /// Labels of the group.
    pub group: &'a Labels,
    /// Samples and scores.
    pub window: &'a Window,
    /// Contributions, by timestamp ascending.
    pub contributions: &'a VecDeque<(i64, Vec<Contribution>)>,
    /// Stale rows, ascending.
    pub stale_rows: Vec<i64>,
}

/// True if a group with these labels may have a series that is selected.
pub fn may_match(group: &Labels, selector: &Selector) -> bool {
    let has_no_reserved_label = RESERVED_LABELS.iter().all(|name| group.get(name).is_empty());
    !has_no_reserved_label || selector.may_match(group)
}

impl GroupQuery<'_> {
    /// Adds the series that the query selects.
    pub fn collect_matches(self, matches: &mut Vec<GroupMatches>) {
        let selector = &self.query.selector;
        let mut series = Vec::new();
        let mut features = Vec::new();
        for (feature, column) in self.window.features() {
            let labels = feature.union(self.group);
            if selector.matches(&labels) {
                series.push((labels, SeriesKind::Feature(column)));
                features.push(column);
            }
        }
        let roles = [ModelRole::Champion, ModelRole::Challenger];
        let challenger_outputs =
            [OutputSeries::Decision(ModelRole::Challenger), OutputSeries::Score(ModelRole::Challenger)];
        for output in OutputSeries::of_role(ModelRole::Champion).into_iter().chain(challenger_outputs) {
            let labels = output.labels(self.detector, self.group);
            if selector.matches(&labels) {
                series.push((labels, SeriesKind::Output(output)));
            }
        }
        let contributions = self.contributions_in_range();
        for contribution in distinct_contributions(&contributions) {
            for (output, _) in OutputSeries::of_contribution(&contribution, &self.detector.name, self.group) {
                let labels = output.labels(self.detector, self.group);
                if selector.matches(&labels) && !series.iter().any(|(known, _)| *known == labels) {
                    series.push((labels, SeriesKind::Contribution(output, contribution.feature.clone())));
                }
            }
        }
        if series.is_empty() {
            return;
        }
        let (start_ms, end_ms) = (self.query.start_ms, self.query.end_ms);
        // The end of an output depends on the row before the range.
        let has_outputs = series.len() > features.len();
        let after_ms = if has_outputs { i64::MIN } else { start_ms.saturating_sub(1) };
        let roles: &[ModelRole] = if has_outputs { &roles } else { &[] };
        let group_view = GroupView {
            start_ms,
            end_ms,
            detector: self.detector.name.clone(),
            group: self.group.clone(),
            view: self.window.view(&features, roles, after_ms, end_ms),
            contributions,
            stale_rows: self.stale_rows,
        };
        matches.push(GroupMatches { series, group_view });
    }

    /// Contributions of rows in the range of the query, and of those that define where their series end.
    fn contributions_in_range(&self) -> Vec<(i64, Vec<Contribution>)> {
        let is_reached =
            self.contributions.back().is_some_and(|(newest_ms, _)| *newest_ms >= self.query.start_ms);
        let contributions = self.contributions.iter().filter(|_| is_reached);
        contributions.take_while(|(timestamp_ms, _)| *timestamp_ms <= self.query.end_ms).cloned().collect()
    }
}

/// One contribution for each feature and reason, with every kind of value.
fn distinct_contributions(contributions: &[(i64, Vec<Contribution>)]) -> Vec<Contribution> {
    let mut distinct: Vec<Contribution> = Vec::new();
    for contribution in contributions.iter().flat_map(|(_, contributions)| contributions) {
        if !distinct
            .iter()
            .any(|known| known.reason == contribution.reason && known.feature == contribution.feature)
        {
            distinct.push(Contribution { value: 0.0, expected_range: [0.0; 3], ..contribution.clone() });
        }
    }
    distinct
}

impl GroupMatches {
    /// The series that the regular expressions select too; none if they select none. The others are dropped.
    pub fn filter(mut self, selector: &Selector) -> Option<Self> {
        self.series.retain(|(labels, _)| selector.matches(labels));
        let feature =
            |kind: &SeriesKind| if let SeriesKind::Feature(column) = kind { Some(*column) } else { None };
        let features = self.series.iter().filter_map(|(_, kind)| feature(kind)).collect();
        self.group_view.view.retain_features(&features);
        (!self.series.is_empty()).then_some(self)
    }

    /// Memory that is not shared with the window.
    pub fn n_bytes(&self) -> usize {
        let labels = self.series.iter().map(|(labels, _)| labels.n_bytes() + size_of::<SelectedSeries>());
        let GroupView { view, contributions, stale_rows, .. } = &self.group_view;
        let of_row = |(_, of_row): &(i64, Vec<Contribution>)| of_row.len() * size_of::<Contribution>();
        labels.sum::<usize>()
            + view.n_bytes()
            + contributions.iter().map(of_row).sum::<usize>()
            + size_of_val(&stale_rows[..])
    }

    /// The series, which share the data of the group.
    pub fn into_series(self) -> impl Iterator<Item = SelectedSeries> {
        let group_view = Arc::new(self.group_view);
        self.series.into_iter().map(move |(labels, kind)| SelectedSeries {
            labels,
            kind,
            group_view: group_view.clone(),
        })
    }
}

impl ReadableSeries for SelectedSeries {
    fn labels(&self) -> &Labels {
        &self.labels
    }

    fn append_samples(&self, out: &mut Vec<Sample>) {
        let from = out.len();
        match &self.kind {
            SeriesKind::Feature(column) => self.group_view.view.samples(*column, out),
            SeriesKind::Output(output) => {
                let value_of = |role, score: Option<&Score>| {
                    let outputs =
                        score.into_iter().flat_map(move |score| OutputSeries::of_score(role, score));
                    outputs
                        .filter(|(output_series, _)| output_series == output)
                        .map(|(_, value)| value)
                        .next()
                };
                self.group_view.push_rows(out, |_, champion, challenger| {
                    value_of(ModelRole::Champion, Some(champion))
                        .or(value_of(ModelRole::Challenger, challenger))
                });
            }
            SeriesKind::Contribution(output, feature) => {
                let mut contributions = self.group_view.contributions.iter().peekable();
                self.group_view.push_rows(out, |timestamp_ms, _, _| {
                    while contributions.next_if(|(then, _)| *then < timestamp_ms).is_some() {}
                    let (_, contributions) =
                        contributions.peek().filter(|(then, _)| *then == timestamp_ms)?;
                    let contributions =
                        contributions.iter().filter(|contribution| contribution.feature == *feature);
                    contributions
                        .flat_map(|contribution| {
                            OutputSeries::of_contribution(
                                contribution,
                                &self.group_view.detector,
                                &self.group_view.group,
                            )
                        })
                        .filter(|(output_series, _)| output_series == output)
                        .map(|(_, value)| value)
                        .last()
                });
            }
        }
        let (start_ms, end_ms) = (self.group_view.start_ms, self.group_view.end_ms);
        out.truncate(from + out[from..].partition_point(|sample| sample.timestamp_ms <= end_ms));
        let before = out[from..].partition_point(|sample| sample.timestamp_ms < start_ms);
        out.drain(from..from + before);
    }
}

impl GroupView {
    /// Appends the value of every row to a series, and a staleness marker where the next row has none.
    fn push_rows(
        &self,
        out: &mut Vec<Sample>,
        mut value_of: impl FnMut(i64, &Score, Option<&Score>) -> Option<f64>,
    ) {
        let mut challenger = self.view.scores(ModelRole::Challenger).peekable();
        let mut ended = self.stale_rows.iter().copied().peekable();
        let mut is_open = false;
        let push_stale = |out: &mut Vec<Sample>, is_open: &mut bool, timestamp_ms| {
            if std::mem::take(is_open) {
                out.push(Sample::stale(timestamp_ms));
            }
        };
        for (timestamp_ms, score) in self.view.scores(ModelRole::Champion) {
            // A late sample may have completed a stale row: the score stays.
            while let Some(then) = ended.next_if(|then| *then <= timestamp_ms) {
                if then < timestamp_ms {
                    push_stale(out, &mut is_open, then);
                }
            }
            while challenger.next_if(|(then, _)| *then < timestamp_ms).is_some() {}
            let challenger_score =
                challenger.peek().filter(|(then, _)| *then == timestamp_ms).map(|(_, score)| score);
            match value_of(timestamp_ms, &score, challenger_score) {
                Some(value) => {
                    out.push(Sample { timestamp_ms, value });
                    is_open = true;
                }
                None => push_stale(out, &mut is_open, timestamp_ms),
            }
        }
        if let Some(then) = ended.next() {
            push_stale(out, &mut is_open, then);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::detect::DeviationReason;
    use crate::prom::METRIC_NAME;
    use crate::window::IncidentState;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels::new(pairs.iter().copied()).expect("valid")
    }

    fn score(decision: f64, is_incident: bool) -> Score {
        let state = IncidentState { threshold: 0.25, is_incident };
        Score { decision, score: 2.0 * decision, incident_state: Some(state) }
    }

    fn contribution(device: &str, share: f64, value: f64, expected_range: [f64; 3]) -> Contribution {
        let feature = labels(&[(METRIC_NAME, "rx"), ("device", device)]);
        Contribution { feature, reason: DeviationReason::Jumped, share, value, expected_range }
    }

    /// Rows at 1 to 6 seconds with a score, but for the fourth, which is stale; an incident from 2 to 3; a challenger
    /// until 2.
    fn select(selector: &str, start_ms: i64, end_ms: i64) -> Vec<String> {
        let group = labels(&[("instance", "a"), ("job", "node")]);
        let mut window = Window::new(3_600_000);
        let feature = labels(&[(METRIC_NAME, "rx"), ("device", "eth0")]);
        let column = window.get_or_add_column(&feature).expect("few");
        let mut contributions = VecDeque::new();
        for i in [1, 2, 3, 5, 6] {
            let timestamp_ms = i * 1000;
            window.push(column, Sample { timestamp_ms, value: i as f64 });
            window.set_score(ModelRole::Champion, timestamp_ms, score(0.5, (2..=3).contains(&i)));
            if i <= 2 {
                let challenger_score = Score { incident_state: None, ..score(0.125, false) };
                window.set_score(ModelRole::Challenger, timestamp_ms, challenger_score);
            }
        }
        contributions.push_back((2000, vec![contribution("eth0", 0.75, f64::NAN, [f64::NAN; 3])]));
        contributions.push_back((
            3000,
            vec![
                contribution("eth0", 0.5, 7.0, [1.0, 2.0, 3.0]),
                contribution("lo", 0.25, 7.0, [f64::NAN; 3]),
            ],
        ));
        contributions.push_back((5000, Vec::new()));
        let selector = Selector::parse(selector).expect("a selector");
        let query = Query { start_ms, end_ms, selector: selector.without_regexes() };
        let config = Config::parse("detectors: [{name: net, match: [rx]}]").expect("valid");
        let group_query = GroupQuery {
            query: &query,
            detector: &config.detectors[0],
            group: &group,
            window: &window,
            contributions: &contributions,
            stale_rows: vec![4000],
        };
        let mut matches = Vec::new();
        group_query.collect_matches(&mut matches);
        let selected = matches.into_iter().filter_map(|matches| matches.filter(&selector));
        let selected = selected.flat_map(GroupMatches::into_series);
        let text = |series: SelectedSeries| {
            let (mut samples, mut again) = (Vec::new(), Vec::new());
            series.append_samples(&mut samples);
            series.append_samples(&mut again);
            assert_eq!(samples, again);
            let sample = |sample: &Sample| match sample.is_stale() {
                true => format!(" {}:x", sample.timestamp_ms / 1000),
                false => format!(" {}:{}", sample.timestamp_ms / 1000, sample.value),
            };
            format!("{}{}", series.labels(), samples.iter().map(sample).collect::<String>())
        };
        let mut text: Vec<String> = selected.map(text).collect();
        text.sort();
        text
    }

    #[test]
    fn every_series_is_selected_with_its_stale_markers() {
        let all = select(r#"{job="node"}"#, 0, 10_000);
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
                format!(r#"anomaly_value{{{of}device="eth0", {group}, metric="rx"}} 3:7 4:x"#),
                format!(r#"anomaly_value{{{of}device="lo", {group}, metric="rx"}} 3:7 4:x"#),
                format!("net_anomaly{{{group}, model=\"challenger\"}} 1:0.125 2:0.125 3:x"),
                format!("net_anomaly{{{group}}} 1:0.5 2:0.5 3:0.5 4:x 5:0.5 6:0.5"),
                format!(r#"rx{{device="eth0", {group}}} 1:1 2:2 3:3 5:5 6:6"#),
            ]
        );
    }

    #[test]
    fn samples_outside_of_the_queried_range_are_left_out() {
        let score = r#"anomaly_score{model=""}"#;
        let labels = r#"anomaly_score{detector="net", instance="a", job="node"}"#;
        assert_eq!(select(score, 2000, 5000), [format!("{labels} 2:1 3:1 4:x 5:1")]);
        assert_eq!(select(score, 4000, 4000), [format!("{labels} 4:x")]);
        let share = r#"anomaly_contribution{device="lo"}"#;
        let labels = r#"anomaly_contribution{detector="net", device="lo", instance="a", job="node", metric="rx", reason="jumped"}"#;
        assert_eq!(select(share, 3500, 9000), [format!("{labels} 4:x")]);
        assert_eq!(select("rx", 2001, 5999), [r#"rx{device="eth0", instance="a", job="node"} 3:3 5:5"#]);
        assert!(select("rx", 7000, 9000)[0].ends_with('}'), "no sample");
        // A part of the prefiltered series, by regular expressions.
        assert_eq!(
            select(r#"{__name__=~"anomaly_sc.*|x", model!~"ch.*"}"#, 2000, 5000),
            select(score, 2000, 5000)
        );
        assert_eq!(select(r#"{__name__=~"r.", job="node"}"#, 2001, 5999), select("rx", 2001, 5999));
        assert!(select(r#"rx{job="other"}"#, 0, 9000).is_empty());
    }
}
