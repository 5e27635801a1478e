//! The state of a group, as the engine hands it out.

use super::words::format_age;
use crate::detect::{self, DeviationReason, IncidentFeedback, OnlineDetector};
use crate::features::Schema;
use crate::http::{encode_query, percent_encode};
use crate::models::ModelInfo;
use crate::prom::{Labels, METRIC_NAME, duration};
use crate::report::text::shorten;
use crate::window::{Score, Window};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Length of the range in milliseconds that the highest score of a group is taken from.
pub const RECENT_MS: i64 = 300_000;

/// Incidents of a day that a summary holds.
pub const MAX_PER_DAY: usize = 100;

/// Length of the time before an open incident that its picture shows.
pub const BEFORE_MS: i64 = 1_800_000;

/// Scores in the picture of an open incident.
pub const MAX_SCORES: usize = 120;

/// Characters of a name that are shown.
const MAX_NAME_CHARS: usize = 120;

/// A group in one line.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupSummary {
    /// Name of the detector.
    pub detector: String,
    /// Labels of the group.
    pub labels: Labels,
    /// Whether the group is scored.
    pub scoring: Scoring,
    /// Timestamp of the newest scored row.
    pub newest_scored_ms: Option<i64>,
    /// Name of the champion, and its version in the registry.
    pub model: Option<(String, Option<u64>)>,
    /// True during maintenance: no incident opens.
    pub is_in_maintenance: bool,
    /// The open incident.
    pub incident: Option<OpenIncident>,
    /// First and last millisecond of each incident of the last 24 hours, ascending, [`MAX_PER_DAY`] at most; an open one
    /// lasts until now.
    pub last_day: Vec<(i64, i64)>,
    /// Incidents per day that opened within the last week.
    pub incidents_per_day: f64,
    /// Budget in alerts per day.
    pub budget: f64,
}

/// Whether a group is scored.
#[derive(Clone, Debug, PartialEq)]
pub enum Scoring {
    /// The row with the highest score within [`RECENT_MS`].
    Scored {
        /// Its score.
        worst: f64,
        /// The score at which an incident opened there.
        threshold: f64,
    },
    /// No row was scored within [`RECENT_MS`].
    NotScored(NotScored),
}

/// The reason why a group is not scored.
#[derive(Clone, Debug, PartialEq)]
pub enum NotScored {
    /// There is too little history for a first model.
    Learning {
        /// Share of the history that a first model needs, in [0, 1].
        progress: f64,
        /// That history.
        required: Duration,
    },
    /// The registry has the model of an earlier process, which does not serve yet.
    Loading,
    /// No sample has arrived for a while.
    TargetDown {
        /// Age of the newest sample, in milliseconds.
        silent_ms: i64,
    },
    /// A label that identifies a feature has another value.
    LabelChanged {
        /// The feature of the model.
        feature: String,
        /// Name of the label.
        label: String,
        /// Its value in the model's feature.
        from: String,
        /// Its value now.
        to: String,
    },
    /// The rows lack features of the model.
    FeatureMissing {
        /// The first of them.
        feature: String,
        /// Their number.
        n_missing: usize,
    },
    /// Scoring waits until a gap is filled.
    FillingGap,
    /// No row was complete.
    NoCompleteRow,
}

impl NotScored {
    /// The reason as an identifier.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Learning { .. } => "learning",
            Self::Loading => "loading",
            Self::TargetDown { .. } => "target_down",
            Self::LabelChanged { .. } => "label_changed",
            Self::FeatureMissing { .. } => "feature_missing",
            Self::FillingGap => "filling_gap",
            Self::NoCompleteRow => "no_complete_row",
        }
    }

    /// The reason in a few words, equal for groups of the same kind.
    pub fn phrase(&self) -> String {
        match self {
            Self::Learning { progress, .. } => format!("learning {:.0}\u{202f}%", 100.0 * progress),
            Self::Loading => "model not loaded yet".into(),
            Self::TargetDown { .. } => "target down".into(),
            Self::LabelChanged { label, .. } => format!("label {label} changed"),
            Self::FeatureMissing { .. } => "feature missing".into(),
            Self::FillingGap => "filling a gap".into(),
            Self::NoCompleteRow => "no complete row".into(),
        }
    }
}

impl fmt::Display for NotScored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Learning { required, .. } => {
                let required = duration::Display(*required);
                write!(f, "{} of the {required} of history that a first model needs", self.phrase())
            }
            Self::TargetDown { silent_ms } => {
                write!(f, "target down: no sample for {}", format_age(*silent_ms))
            }
            Self::LabelChanged { feature, label, from, to } => {
                write!(
                    f,
                    "label {label} changed from {from:?} to {to:?}: {feature} has ended; add {label} to ignore, or wait for the next training"
                )
            }
            Self::FeatureMissing { feature, n_missing: 0 | 1 } => write!(f, "feature missing: {feature}"),
            Self::FeatureMissing { feature, n_missing } => {
                write!(f, "{n_missing} features missing, such as {feature}")
            }
            Self::Loading => f.write_str("the model is not loaded from the registry yet"),
            Self::FillingGap => f.write_str("scoring waits until history has filled a gap"),
            Self::NoCompleteRow => f.write_str(
                "no row was complete within the last five minutes: scrapes are missing, or too far apart for the range of rates",
            ),
        }
    }
}

/// An incident that has not ended.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenIncident {
    /// Timestamp of its first row.
    pub since_ms: i64,
    /// Score of the newest row.
    pub score: f64,
    /// Score at which an incident opens now.
    pub threshold: f64,
    /// Highest score.
    pub peak: f64,
    /// The feedback on it.
    pub feedback: Option<IncidentFeedback>,
    /// Timestamps and scores from [`BEFORE_MS`] before it on, ascending, [`MAX_SCORES`] at most.
    pub scores: Vec<(i64, f64)>,
    /// The features that deviate most, in descending order.
    pub features: Vec<DeviatingFeature>,
}

/// A feature that deviates.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviatingFeature {
    /// Its expression.
    pub name: String,
    /// The kind of deviation.
    pub reason: DeviationReason,
    /// Share of the total deviation, in [0, 1].
    pub share: f64,
    /// Value at the newest row of the incident; NaN if it is not known.
    pub value: f64,
    /// Lower bound, expected value and upper bound; NaN before a first day.
    pub expected_range: [f64; 3],
}

/// An incident within the window.
#[derive(Clone, Debug, PartialEq)]
pub struct PastIncident {
    /// Timestamp of its first row.
    pub from_ms: i64,
    /// Timestamp of its last row.
    pub to_ms: i64,
    /// Features, the kind of deviation and the sum of their shares, in descending order.
    pub contributions: Vec<(Labels, DeviationReason, f64)>,
}

/// A group with its window and models.
pub struct GroupDetail {
    /// The summary.
    pub summary: GroupSummary,
    /// Samples and scores.
    pub window: Window,
    /// The champion.
    pub champion: Option<Arc<ModelInfo>>,
    /// The schema of the champion, with the features as the group has them.
    pub schema: Option<Schema>,
    /// The champion's state after the newest row; `None` for a model without state.
    pub detector: Option<OnlineDetector>,
    /// The challenger.
    pub challenger: Option<Arc<ModelInfo>>,
    /// The incidents that began in the window, ascending.
    pub incidents: Vec<PastIncident>,
    /// The incidents of the last week, ascending.
    pub last_week: Vec<detect::PastIncident>,
    /// The alias of the champion.
    pub alias: String,
    /// Names of the labels whose values identify a group.
    pub by: Vec<String>,
}

/// The path of the page of a group, relative to the root of the pages.
pub fn group_path(detector: &str, labels: &Labels) -> String {
    format!("groups/{}?{}", percent_encode(detector), encode_query(labels.iter()))
}

/// The rows in at most `n` stretches of equal length, each by its highest score.
pub fn highest_of_stretches(rows: &[(i64, Score)], n: usize) -> Vec<(i64, Score)> {
    rows.chunks(rows.len().div_ceil(n).max(1)).filter_map(highest).collect()
}

/// The row with the highest score.
pub fn highest(rows: &[(i64, Score)]) -> Option<(i64, Score)> {
    rows.iter().max_by(|(_, a), (_, b)| a.score.total_cmp(&b.score)).copied()
}

impl GroupSummary {
    /// The path of the group's page, relative to the root of the pages.
    pub fn path(&self) -> String {
        group_path(&self.detector, &self.labels)
    }

    /// The instance, and the values of the other labels; all values if there is no instance. Long ones are cut.
    pub fn short_name(&self) -> (String, String) {
        let values = |skipped: &str| {
            let labels = self.labels.iter().filter(|(name, _)| ![METRIC_NAME, skipped].contains(name));
            shorten(&labels.map(|(_, value)| value).collect::<Vec<_>>().join(" "), MAX_NAME_CHARS)
        };
        match self.labels.get("instance") {
            "" if self.labels.iter().next().is_none() => ("all series".into(), String::new()),
            "" => (values(""), String::new()),
            instance => (shorten(instance, MAX_NAME_CHARS), values("instance")),
        }
    }

    /// True if a row was scored recently.
    pub fn is_scored(&self) -> bool {
        matches!(self.scoring, Scoring::Scored { .. })
    }
}
