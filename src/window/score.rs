//! The scores of a row and their columns.

use super::chunk::RowSource;
use std::ops::Range;

/// The role of the model that gives a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ModelRole {
    /// The model in service.
    Champion,
    /// The model that is scored in parallel, for comparison.
    Challenger,
}

impl ModelRole {
    pub(super) const ALL: [Self; 2] = [Self::Champion, Self::Challenger];

    /// The columns of decision and score, and those of the incident state.
    pub(super) fn score_columns(self) -> ([usize; 2], Option<[usize; 2]>) {
        match self {
            Self::Champion => ([0, 1], Some([2, 3])),
            // Only the champion opens incidents.
            Self::Challenger => ([4, 5], None),
        }
    }
}

/// The scores of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// scikit-learn's `decision_function`, in [-1, 1]; negative is anomalous.
    pub decision: f64,
    /// At least 0; an incident opens at [`IncidentState::threshold`].
    pub score: f64,
    /// The incident state, for models that score rows in sequence.
    pub incident_state: Option<IncidentState>,
}

/// The incident state at one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IncidentState {
    /// The score at which an incident opens, about 1.
    pub threshold: f64,
    /// True during an incident.
    pub is_incident: bool,
}

impl Score {
    /// Its cells, as column and value.
    pub(super) fn cells(&self, role: ModelRole) -> impl Iterator<Item = (usize, f64)> {
        let ([decision, score], incident_columns) = role.score_columns();
        let values =
            self.incident_state.map(|state| [state.threshold, f64::from(u8::from(state.is_incident))]);
        let incident_cells = incident_columns
            .zip(values)
            .into_iter()
            .flat_map(|(columns, values)| columns.into_iter().zip(values));
        [(decision, self.decision), (score, self.score)].into_iter().chain(incident_cells)
    }
}

/// The scored rows of the slices, ascending.
pub(super) fn scores<'a>(
    slices: impl Iterator<Item = (&'a dyn RowSource, Range<usize>)>,
    role: ModelRole,
) -> impl Iterator<Item = (i64, Score)> {
    let ([decision, score], incident_columns) = role.score_columns();
    slices.flat_map(move |(rows, range)| {
        range.filter_map(move |row| {
            let decision = rows.value(decision, row)?;
            let score = rows.value(score, row)?;
            let incident_state = incident_columns.and_then(|[threshold, is_incident]| {
                let is_incident = rows.value(is_incident, row)? != 0.0;
                Some(IncidentState { threshold: rows.value(threshold, row)?, is_incident })
            });
            Some((rows.timestamps().at(row), Score { decision, score, incident_state }))
        })
    })
}
