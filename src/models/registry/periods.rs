//! Times of which a person has said what they were: maintenance, and feedback on incidents.
//!
//! The registry keeps them, because the sidecar and `promforest train` read it, on any machine, and because a snapshot may
//! be deleted at any time.

use crate::detect::{IncidentFeedback, PastIncident};
use crate::error::InvalidPart;
use crate::prom::matcher::{self, Matcher};
use crate::prom::{Labels, Selector};
use crate::time::format_timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Most periods of a registry: the one that ended first makes room.
pub const MAX_PERIODS: usize = 500;
/// Longest text of a period. An MLflow server accepts 5,000 characters for a whole period.
const MAX_TEXT_BYTES: usize = 1000;

/// The kind of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeriodKind {
    /// No incident opens, and the rows are not learned.
    Maintenance,
    /// A real incident: its rows are not learned.
    Real,
    /// A false alarm: its rows are learned.
    False,
}

impl From<IncidentFeedback> for PeriodKind {
    fn from(feedback: IncidentFeedback) -> Self {
        match feedback {
            IncidentFeedback::Real => Self::Real,
            IncidentFeedback::False => Self::False,
        }
    }
}

/// A selector of groups, such as `{job="node"}`; `{}` or the empty text for all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupSelector(Option<Selector>);

impl GroupSelector {
    /// The selector of one group among those by these labels, some of which it may lack.
    ///
    /// # Errors
    /// [`matcher::Error`] if the labels are no selector.
    pub fn of_group(group: &Labels, by: &[String]) -> Result<Self, matcher::Error> {
        Self::text_of_group(group, by).parse()
    }

    /// The text of [`of_group`](Self::of_group). A label that the group lacks has the empty value.
    pub fn text_of_group(group: &Labels, by: &[String]) -> String {
        let names: BTreeSet<&str> = by.iter().map(String::as_str).collect();
        let matchers = names.into_iter().map(|name| matcher::format_equal(name, group.get(name)));
        format!("{{{}}}", matchers.collect::<Vec<_>>().join(", "))
    }

    /// The matchers; none for all groups.
    pub fn matchers(&self) -> &[Matcher] {
        self.0.as_ref().map_or(&[], Selector::matchers)
    }

    /// True if the labels satisfy every matcher.
    pub fn matches(&self, group: &Labels) -> bool {
        self.0.as_ref().is_none_or(|selector| selector.matches(group))
    }

    /// Checks a selector that a person wrote against the labels of groups.
    ///
    /// # Errors
    /// [`UnknownLabel`] if it compares another one, or the name of a metric.
    pub fn check_labels<'a>(&self, by: impl IntoIterator<Item = &'a String>) -> Result<(), UnknownLabel> {
        let known: BTreeSet<&str> = by.into_iter().map(String::as_str).collect();
        let mut names = self.matchers().iter().map(Matcher::name);
        names.find(|name| !known.contains(name)).map_or(Ok(()), |name| {
            let known: Vec<&str> = known.iter().copied().collect();
            let known = match known.is_empty() {
                true => "they have no labels".into(),
                false => format!("their labels are {}", known.join(", ")),
            };
            Err(UnknownLabel { selector: self.to_string(), label: name.into(), known })
        })
    }
}

/// The error for the end of a maintenance that the registry does not have.
pub fn nothing_to_end(detector: Option<&str>, groups: &GroupSelector) -> String {
    let of_detector = detector.map_or_else(String::new, |name| format!(" of detector {name:?}"));
    format!("there is no maintenance of {groups}{of_detector} to end: `promforest maintenance list` has all")
}

/// The error for a selector with a label that no group has.
#[derive(Debug, thiserror::Error)]
#[error("{selector} selects by {label}, which groups do not have: {known}")]
pub struct UnknownLabel {
    selector: String,
    label: String,
    known: String,
}

impl FromStr for GroupSelector {
    type Err = matcher::Error;

    fn from_str(text: &str) -> Result<Self, matcher::Error> {
        let is_all = matches!(text.trim(), "" | "{}");
        if is_all { Ok(Self(None)) } else { Selector::parse_any(text).map(|selector| Self(Some(selector))) }
    }
}

impl TryFrom<String> for GroupSelector {
    type Error = matcher::Error;

    fn try_from(text: String) -> Result<Self, matcher::Error> {
        text.parse()
    }
}

impl From<GroupSelector> for String {
    fn from(selector: GroupSelector) -> Self {
        selector.to_string()
    }
}

impl fmt::Display for GroupSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("{}"),
            Some(selector) => write!(f, "{selector}"),
        }
    }
}

impl PartialEq for GroupSelector {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Period {
    /// Its kind.
    pub kind: PeriodKind,
    /// Name of the detector; `None` for all.
    pub detector: Option<String>,
    /// The groups.
    pub groups: GroupSelector,
    /// First millisecond.
    pub from_ms: i64,
    /// Last millisecond; `None` for a maintenance without an end yet.
    pub to_ms: Option<i64>,
    /// A note.
    pub comment: String,
}

impl Period {
    /// True if the group is one of the period's.
    pub fn concerns(&self, detector: &str, group: &Labels) -> bool {
        self.detector.as_ref().is_none_or(|name| name == detector) && self.groups.matches(group)
    }

    /// Its last millisecond; the maximum for a maintenance without an end yet.
    pub fn end_ms(&self) -> i64 {
        self.to_ms.unwrap_or(i64::MAX)
    }

    /// True at this time.
    pub fn is_active_at(&self, at_ms: i64) -> bool {
        (self.from_ms..=self.end_ms()).contains(&at_ms)
    }

    /// Checks the kind, the range and the lengths of the texts.
    ///
    /// # Errors
    /// [`InvalidPart`].
    pub fn check(&self) -> Result<(), InvalidPart> {
        let limit = format_args!("at most {MAX_TEXT_BYTES} bytes").to_string();
        let texts = [("selector", self.groups.to_string()), ("comment", self.comment.clone())];
        if let Some((part, text)) = texts.into_iter().find(|(_, text)| text.len() > MAX_TEXT_BYTES) {
            return Err(InvalidPart::new(part, text.len(), limit));
        }
        let invalid_end = |end: String| {
            let least = format!("at least {}", format_timestamp(self.from_ms));
            Err(InvalidPart::new("end of a period", end, least))
        };
        match self.to_ms {
            Some(to_ms) if to_ms < self.from_ms => invalid_end(format_timestamp(to_ms)),
            None if self.kind != PeriodKind::Maintenance => invalid_end("null".into()),
            _ => Ok(()),
        }
    }

    /// True if `other` replaces this period: later feedback on an incident, or another end of a maintenance.
    fn is_replaced_by(&self, other: &Self) -> bool {
        let is_maintenance = |period: &Self| period.kind == PeriodKind::Maintenance;
        is_maintenance(self) == is_maintenance(other)
            && (&self.detector, &self.groups, self.from_ms) == (&other.detector, &other.groups, other.from_ms)
    }
}

/// The times of maintenance of a group.
pub fn maintenance_of<'a>(
    periods: &'a [Period],
    detector: &'a str,
    group: &'a Labels,
) -> impl Iterator<Item = RangeInclusive<i64>> + 'a {
    let is_maintenance = |period: &&Period| period.kind == PeriodKind::Maintenance;
    let of_group = periods.iter().filter(is_maintenance).filter(|period| period.concerns(detector, group));
    of_group.map(|period| period.from_ms..=period.end_ms())
}

/// Gives the incidents of a group the feedback that is recorded for them.
pub fn restore_feedback(incidents: &mut [PastIncident], periods: &[Period], detector: &str, group: &Labels) {
    for period in periods.iter().filter(|period| period.concerns(detector, group)) {
        let feedback = match period.kind {
            PeriodKind::Maintenance => continue,
            PeriodKind::Real => IncidentFeedback::Real,
            PeriodKind::False => IncidentFeedback::False,
        };
        if let Some(incident) = incidents.iter_mut().find(|incident| incident.start_ms == period.from_ms) {
            incident.feedback = Some((feedback, period.end_ms()));
        }
    }
}

/// Adds a period, in place of one that it replaces. Positions of the others stay.
pub fn record(periods: &mut Vec<Period>, period: Period) {
    let replaced = periods.iter().position(|old| old.is_replaced_by(&period));
    let first_to_end = || periods.iter().enumerate().min_by_key(|(_, old)| old.end_ms()).map(|(i, _)| i);
    match replaced.or_else(|| first_to_end().filter(|_| periods.len() >= MAX_PERIODS)) {
        Some(position) => periods[position] = period,
        None => periods.push(period),
    }
}

/// Ends the maintenance of these groups that is active or yet to come. Returns the number of periods.
pub fn end_maintenance(
    periods: &mut [Period],
    detector: Option<&str>,
    groups: &GroupSelector,
    at_ms: i64,
) -> usize {
    let is_ended = |period: &&mut Period| {
        period.kind == PeriodKind::Maintenance
            && period.detector.as_deref() == detector
            && period.groups == *groups
            && period.end_ms() > at_ms
    };
    let ended = periods.iter_mut().filter(is_ended);
    ended.map(|period| period.to_ms = Some(at_ms.max(period.from_ms))).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn period(kind: PeriodKind, groups: &str, from_ms: i64, to_ms: Option<i64>) -> Period {
        let groups = groups.parse().expect("a selector");
        Period { kind, detector: None, groups, from_ms, to_ms, comment: String::new() }
    }

    #[test]
    fn a_period_concerns_the_groups_that_its_selector_matches() {
        let group = Labels::new([("job", "node"), ("instance", "a")]).expect("valid");
        for (groups, expected) in [("{}", true), (r#"{job="node"}"#, true), (r#"{job=~"web.*"}"#, false)] {
            let maintenance = period(PeriodKind::Maintenance, groups, 0, None);
            assert_eq!(maintenance.concerns("net", &group), expected, "{groups}");
        }
        let by = ["job", "instance"].map(String::from);
        let of_group = |group: &Labels| GroupSelector::of_group(group, &by).expect("a selector");
        assert!(of_group(&group).matches(&group));
        assert!(!of_group(&group).matches(&group.with("instance", "b")));
        let without_job = group.with("job", "");
        assert_eq!(of_group(&without_job).to_string(), r#"{instance="a", job=""}"#);
        assert!(of_group(&without_job).matches(&without_job) && !of_group(&without_job).matches(&group));
        let without_labels = Labels::default();
        assert!(of_group(&without_labels).matches(&without_labels));
        assert!(!of_group(&without_labels).matches(&group));
        let other = Period { detector: Some("disk".into()), ..period(PeriodKind::Real, "{}", 0, None) };
        assert!(!other.concerns("net", &group));
    }

    #[test]
    fn a_selector_compares_labels_of_groups() {
        let by = ["job", "instance"].map(String::from);
        for (groups, label) in [
            ("{}", None),
            (r#"{job="node", instance!="a"}"#, None),
            (r#"{jab="node"}"#, Some("jab")),
            ("node", Some("__name__")),
        ] {
            let checked = groups.parse::<GroupSelector>().expect("a selector").check_labels(&by);
            assert_eq!(checked.err().map(|error| error.label).as_deref(), label, "{groups}");
        }
    }

    #[test]
    fn feedback_is_replaced_and_the_number_is_bounded() {
        let mut periods = Vec::new();
        record(&mut periods, period(PeriodKind::Real, "{}", 5, Some(9)));
        record(&mut periods, period(PeriodKind::Maintenance, "{}", 5, None));
        record(&mut periods, period(PeriodKind::False, "{}", 5, Some(9)));
        assert_eq!(
            periods.iter().map(|period| period.kind).collect::<Vec<_>>(),
            [PeriodKind::False, PeriodKind::Maintenance]
        );
        (10..1000).for_each(|from| record(&mut periods, period(PeriodKind::Real, "{}", from, Some(from))));
        assert_eq!(periods.len(), MAX_PERIODS);
        assert!(periods.iter().any(|period| period.kind == PeriodKind::Maintenance), "it has not ended");
        assert!(periods.iter().all(|period| period.from_ms == 5 || period.from_ms > 500));
    }

    #[test]
    fn a_maintenance_ends_once() {
        let mut periods = vec![
            period(PeriodKind::Maintenance, r#"{job="a"}"#, 5, None),
            period(PeriodKind::Maintenance, r#"{job="b"}"#, 5, None),
            period(PeriodKind::Maintenance, r#"{job="a"}"#, 50, Some(60)),
        ];
        let groups = r#"{job="a"}"#.parse().expect("a selector");
        assert_eq!(end_maintenance(&mut periods, None, &groups, 20), 2);
        assert_eq!(periods.iter().map(|period| period.to_ms).collect::<Vec<_>>(), [Some(20), None, Some(50)]);
        assert_eq!(end_maintenance(&mut periods, None, &groups, 60), 0);
    }

    #[test]
    fn incidents_get_their_feedback_back() {
        let group = Labels::new([("instance", "a")]).expect("valid");
        let periods = [
            period(PeriodKind::Maintenance, "{}", 10, Some(15)),
            period(PeriodKind::False, r#"{instance="a"}"#, 30, Some(35)),
            period(PeriodKind::Real, r#"{instance="b"}"#, 10, Some(15)),
        ];
        let mut incidents = [PastIncident::new(10, 15), PastIncident::new(30, 40)];
        restore_feedback(&mut incidents, &periods, "net", &group);
        assert_eq!(incidents.map(|incident| incident.feedback), [None, Some((IncidentFeedback::False, 35))]);
        assert_eq!(maintenance_of(&periods, "net", &group).collect::<Vec<_>>(), [10..=15]);
    }

    #[test]
    fn texts_are_bounded_and_a_range_does_not_end_before_it_begins() {
        let valid = period(PeriodKind::Real, "{}", 5, Some(5));
        assert!(valid.check().is_ok());
        assert_eq!(
            Period { to_ms: Some(4), ..valid.clone() }.check().map_err(|error| error.to_string()),
            Err("end of a period is 1970-01-01T00:00:00.004Z, must be at least 1970-01-01T00:00:00.005Z"
                .into())
        );
        let unending = Period { to_ms: None, ..valid.clone() };
        assert!(unending.check().is_err(), "an incident has an end");
        assert!(Period { kind: PeriodKind::Maintenance, ..unending }.check().is_ok());
        assert!(Period { comment: "x".repeat(1001), ..valid }.check().is_err());
    }
}
