//! Incidents of jobs: a cause that shows in many groups at once is reported once.
//!
//! A job is the groups of a detector that share the labels of `job_by`. Its incident opens when at least three groups and
//! 30 % of those that are scored have opened an incident within 15 minutes, and lasts until at most one of the groups that
//! opened theirs around that time is still in it: that group is alone.
//!
//! The state is computed at times of a grid, each after the grace period of the rows before it, from the scores of the
//! windows: the order in which rows arrive does not change it. After a start it is computed from the restored windows,
//! so it needs no snapshot. A sample is written at each change, and once a minute.

use crate::pipeline::groups::Groups;
use crate::pipeline::output_series;
use crate::prom::{Labels, Sample};
use crate::time::{self, HOUR_MS};
use std::collections::BTreeMap;

/// Fewest groups that share a cause.
const MIN_GROUPS: usize = 3;
/// Fewest groups that share a cause, in percent of the job's groups.
const MIN_PERCENT: usize = 30;
/// Time within which the incidents of these groups open.
const TOGETHER_MS: i64 = 15 * 60_000;
/// Distance of the times at which a job is evaluated, and of the samples of a job without a change.
const GRID_MS: i64 = 15_000;
const SAMPLE_MS: i64 = 60_000;
/// Time after which the incident of a group is over: it lasts three hours, and opens up to 15 minutes after the job's.
const REPLAYED_MS: i64 = 4 * HOUR_MS;

/// The newest incident of a group at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct GroupIncident {
    start_ms: i64,
    is_open: bool,
}

/// The incident of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct JobIncident {
    opened_ms: Option<i64>,
    /// The incidents of groups up to here belong to an earlier incident of the job.
    closed_ms: Option<i64>,
}

impl JobIncident {
    /// Updates to a time at which the groups have these incidents. `n_groups` counts the groups of the job.
    fn update(&mut self, at_ms: i64, incidents: &[GroupIncident], n_groups: impl FnOnce() -> usize) {
        if let Some(opened_ms) = self.opened_ms {
            let is_member = |incident: &&GroupIncident| (incident.start_ms - opened_ms).abs() <= TOGETHER_MS;
            if incidents.iter().filter(is_member).filter(|incident| incident.is_open).count() > 1 {
                return;
            }
            *self = Self { opened_ms: None, closed_ms: Some(at_ms) };
        }
        let after_ms = self.closed_ms.unwrap_or(i64::MIN).max(at_ms - TOGETHER_MS);
        let n_opened = incidents.iter().filter(|incident| incident.start_ms > after_ms).count();
        if n_opened >= MIN_GROUPS && 100 * n_opened >= MIN_PERCENT * n_groups() {
            self.opened_ms = Some(at_ms);
        }
    }
}

/// The groups of a job, and their shared incident.
#[derive(Debug, Default)]
struct Job {
    group_ids: Vec<u32>,
    grace_ms: i64,
    incident: JobIncident,
    evaluated_ms: Option<i64>,
    /// The incidents of the groups at that time, as they were known then.
    seen: Vec<GroupIncident>,
    /// True if rows before that time were scored after it.
    is_outdated: bool,
    /// The newest sample.
    published: Option<(i64, bool)>,
}

impl Job {
    /// Evaluates the job at the times of the grid up to now, and returns the samples.
    fn advance(&mut self, groups: &Groups, now_ms: i64) -> Vec<Sample> {
        let to_ms = (now_ms - self.grace_ms).div_euclid(GRID_MS) * GRID_MS;
        let is_near = |ms: &i64| (-SAMPLE_MS..=TOGETHER_MS).contains(&(to_ms - ms));
        // The clock may have been set back.
        let Some(evaluated_ms) = self.evaluated_ms.filter(is_near) else {
            self.replay(groups, to_ms);
            return Vec::new();
        };
        let mut samples = Vec::new();
        if to_ms > evaluated_ms {
            self.is_outdated |= self.incidents_at(groups, evaluated_ms) != self.seen;
        }
        for at_ms in (evaluated_ms + GRID_MS..=to_ms).step_by(GRID_MS as usize) {
            // Late rows have changed the past: the state is computed again, once a minute at most.
            match self.is_outdated && at_ms % SAMPLE_MS == 0 {
                true => self.replay(groups, at_ms),
                false => self.evaluate(groups, at_ms),
            }
            let is_open = self.incident.opened_ms.is_some();
            if at_ms % SAMPLE_MS == 0 || self.published.is_none_or(|(_, before)| before != is_open) {
                self.published = Some((at_ms, is_open));
                samples.push(Sample { timestamp_ms: at_ms, value: f64::from(u8::from(is_open)) });
            }
        }
        samples
    }

    /// Computes the state from the incidents of the last hours.
    fn replay(&mut self, groups: &Groups, to_ms: i64) {
        (self.incident, self.is_outdated) = (JobIncident::default(), false);
        let first_ms = to_ms - REPLAYED_MS;
        let has_incident =
            |id: &&u32| groups.get(**id).is_some_and(|group| group.incident_at(to_ms, first_ms).is_some());
        if self.group_ids.iter().filter(has_incident).count() >= MIN_GROUPS {
            let times = (first_ms..=to_ms).step_by(GRID_MS as usize);
            times.for_each(|at_ms| self.evaluate(groups, at_ms));
        }
        self.evaluated_ms = Some(to_ms);
        self.seen = self.incidents_at(groups, to_ms);
    }

    fn incidents_at(&self, groups: &Groups, at_ms: i64) -> Vec<GroupIncident> {
        let of_job = self.group_ids.iter().filter_map(|id| groups.get(*id));
        let incidents = of_job.filter_map(|group| group.incident_at(at_ms, at_ms - REPLAYED_MS));
        incidents.map(|(start_ms, is_open)| GroupIncident { start_ms, is_open }).collect()
    }

    fn evaluate(&mut self, groups: &Groups, at_ms: i64) {
        self.evaluated_ms = Some(at_ms);
        let of_job = || self.group_ids.iter().filter_map(|id| groups.get(*id));
        let incidents = self.incidents_at(groups, at_ms);
        let n_scored = || of_job().filter(|group| group.is_scored_within(at_ms - TOGETHER_MS, at_ms)).count();
        self.incident.update(at_ms, &incidents, n_scored);
        self.seen = incidents;
    }
}

/// The samples of all jobs.
#[derive(Debug, Default, PartialEq)]
pub struct JobSamples {
    /// New samples, by series.
    pub series: Vec<(Labels, Vec<Sample>)>,
    /// Series that end, each with the time of its last sample.
    pub ended: Vec<(Labels, i64)>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct JobIncidents {
    /// By the labels of the series.
    jobs: BTreeMap<Labels, Job>,
    /// Identifies the set of groups that the jobs are made of.
    group_set: Option<(u32, usize)>,
}

impl JobIncidents {
    /// Evaluates every job up to now.
    pub(super) fn advance(&mut self, groups: &Groups, now_ms: i64) -> JobSamples {
        let mut samples = JobSamples::default();
        if self.group_set.replace(groups.set_id()) != Some(groups.set_id()) {
            self.gather(groups, &mut samples);
        }
        for (labels, job) in &mut self.jobs {
            let new = job.advance(groups, now_ms);
            if !new.is_empty() {
                samples.series.push((labels.clone(), new));
            }
        }
        samples
    }

    /// Makes the jobs of the groups. A job of too few groups has no series.
    fn gather(&mut self, groups: &Groups, samples: &mut JobSamples) {
        let mut old = std::mem::take(&mut self.jobs);
        let part = groups.part();
        for (id, group) in groups.iter_from(0).filter(|(_, group)| group.detector.model.opens_incidents()) {
            let labels = output_series::job_incident_labels(&group.detector, &group.labels, part.as_deref());
            let job = self.jobs.entry(labels).or_default();
            job.group_ids.push(id);
            job.grace_ms = time::millis(group.detector.grace);
        }
        self.jobs.retain(|_, job| job.group_ids.len() >= MIN_GROUPS);
        for (labels, job) in &mut self.jobs {
            let Some(old) = old.remove(labels) else { continue };
            let group_ids = std::mem::take(&mut job.group_ids);
            *job = Job { group_ids, grace_ms: job.grace_ms, ..old };
        }
        let last_ms = |(labels, job): (Labels, Job)| Some((labels, job.published?.0));
        samples.ended.extend(old.into_iter().filter_map(last_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    /// The state at each minute, given the first and the last minute of the incident of each group.
    fn opened(n_groups: usize, incidents: &[(i64, i64)], minutes: i64) -> Vec<i64> {
        let mut job = JobIncident::default();
        let mut opened = Vec::new();
        for minute in 0..minutes {
            let started = incidents.iter().filter(|(first, _)| *first <= minute);
            let at: Vec<GroupIncident> = started
                .map(|(first, last)| GroupIncident { start_ms: first * MINUTE, is_open: *last >= minute })
                .collect();
            job.update(minute * MINUTE, &at, || n_groups);
            opened.extend(job.opened_ms.map(|_| minute));
        }
        opened
    }

    #[test]
    fn a_job_has_an_incident_when_enough_groups_open_one_within_a_quarter_of_an_hour() {
        let three = [(10, 40), (15, 50), (24, 60)];
        assert_eq!(opened(10, &three, 80), (24..=50).collect::<Vec<_>>(), "until one is alone");
        assert_eq!(opened(11, &three, 80), [] as [i64; 0], "27 %");
        assert_eq!(opened(3, &three[..2], 80), [] as [i64; 0], "two groups");
        let slow = [(10, 60), (18, 60), (26, 60)];
        assert_eq!(opened(3, &slow, 80), [] as [i64; 0], "over 16 minutes");
    }

    #[test]
    fn incidents_count_for_one_incident_of_the_job() {
        let three = [(10, 12), (11, 12), (12, 20)];
        assert_eq!(opened(3, &three, 40), [12], "not again for the same three");
        let later = [(10, 30), (11, 30), (12, 60), (50, 90)];
        assert_eq!(opened(3, &later, 100), (12..=30).collect::<Vec<_>>(), "another cause is no member");
    }
}
