//! Feedback of people on incidents.

use super::Engine;
use crate::detect::{IncidentFeedback, PastIncident};
use crate::models::registry::periods::GroupSelector;
use crate::pipeline::maintenance::MaintenancePlan;
use crate::prom::Labels;
use crate::time::format_timestamp;
use tracing::info;

/// An incident of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupIncident {
    /// Id of the group.
    pub group: u32,
    /// Name of the detector.
    pub detector: String,
    /// Labels of the group.
    pub labels: Labels,
    /// Names of the labels that groups of the detector have.
    pub by: Vec<String>,
    /// The incident.
    pub incident: PastIncident,
    /// True if it is open.
    pub is_open: bool,
}

/// The reason why a request names no incident.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum FeedbackError {
    /// No group matches.
    #[error("no group matches {groups}{}", format_example(.example.as_ref()))]
    NoGroup {
        /// The selector.
        groups: String,
        /// One of the groups that exist.
        example: Option<Labels>,
    },
    /// Several groups match.
    #[error("{n} groups match {groups}, such as {first} of {detector}: name one, and the detector")]
    SeveralGroups {
        /// The selector.
        groups: String,
        /// Number of groups.
        n: usize,
        /// The first group.
        first: Labels,
        /// Its detector.
        detector: String,
    },
    /// The group has no incident at that time.
    #[error("{group} has no incident at {}{}", format_timestamp(*.at_ms), format_nearest(.nearest.as_ref()))]
    NoIncident {
        /// The group.
        group: Labels,
        /// The time.
        at_ms: i64,
        /// The nearest incident of the last seven days.
        nearest: Option<PastIncident>,
    },
}

fn format_example(example: Option<&Labels>) -> String {
    example.map_or(": there is none yet".into(), |labels| format!("; there is {labels}"))
}

fn format_nearest(nearest: Option<&PastIncident>) -> String {
    let between = |incident: &PastIncident| {
        let (start, end) = (format_timestamp(incident.start_ms), format_timestamp(incident.last_ms));
        format!("; the nearest is from {start} to {end}")
    };
    nearest.map_or_else(|| ", nor any within seven days".into(), between)
}

impl Engine {
    /// Finds the incident at a time of the one group that a selector matches.
    pub(super) fn find_incident(
        &self,
        detector: Option<&str>,
        groups: &GroupSelector,
        at_ms: i64,
    ) -> Result<GroupIncident, FeedbackError> {
        let all = || {
            self.groups
                .iter_from(0)
                .filter(|(_, group)| detector.is_none_or(|name| group.detector.name == name))
        };
        let mut matching = all().filter(|(_, group)| groups.matches(&group.labels));
        let Some((id, group)) = matching.next() else {
            let example = all().next().map(|(_, group)| group.labels.clone());
            return Err(FeedbackError::NoGroup { groups: groups.to_string(), example });
        };
        let (labels, detector) = (group.labels.clone(), group.detector.name.clone());
        let n = 1 + matching.count();
        if n > 1 {
            let groups = groups.to_string();
            return Err(FeedbackError::SeveralGroups { groups, n, first: labels, detector });
        }
        let (incident, is_open) = group
            .find_incident(at_ms)
            .map_err(|nearest| FeedbackError::NoIncident { group: labels.clone(), at_ms, nearest })?;
        let by = group.detector.by.clone();
        Ok(GroupIncident { group: id, detector, labels, by, incident, is_open })
    }

    /// Applies feedback. Returns the correction of the budget after it; `None` without such an incident.
    pub(super) fn apply_feedback(
        &mut self,
        id: u32,
        start_ms: i64,
        feedback: IncidentFeedback,
    ) -> Option<f64> {
        let group = self.groups.get_mut(id)?;
        let correction = group.apply_feedback(start_ms, feedback)?;
        info!(component = "feedback", detector = group.detector.name, group = %group.labels, incident = format_timestamp(start_ms), feedback = ?feedback, correction, "feedback on an incident");
        Some(correction)
    }

    /// Puts a maintenance plan in force.
    pub(super) fn set_maintenance(&mut self, plan: MaintenancePlan) {
        self.groups.set_maintenance(plan);
    }
}
