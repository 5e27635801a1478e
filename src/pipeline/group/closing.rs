//! The final state of a row whose grace period is over.

use super::event::RowState;
use crate::features::Row;

/// The end of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowEnd {
    /// The row needs no state: it is scored, or has samples of other features only.
    None,
    /// The row waits for an earlier row that is closed now.
    Waiting,
    /// The row is closed in this state.
    Closed(RowState),
}

/// The facts about a row that its end depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowFacts {
    /// Number of features of the model.
    pub n_features: usize,
    /// True if the row has a staleness marker.
    pub has_staleness_marker: bool,
    /// True if no feature of the model had a sample for the grace period.
    pub is_model_unfed: bool,
    /// True if the model scores rows in order.
    pub is_sequential: bool,
    /// True if the model has neither scored nor skipped the row.
    pub is_next: bool,
    /// True if the row has a score, here or at an endpoint.
    pub is_scored: bool,
    /// True if the row is older than the model's service.
    pub is_frozen: bool,
}

/// The end of a row that was read as `row`.
pub fn classify(row: &Row, facts: RowFacts) -> RowEnd {
    match row {
        Row::Missing(missing) if missing.len() < facts.n_features => RowEnd::Closed(RowState::Incomplete),
        Row::Missing(_) if facts.has_staleness_marker => RowEnd::Closed(RowState::Stale),
        Row::Missing(_) if facts.is_model_unfed => RowEnd::Closed(RowState::Incomplete),
        Row::Missing(_) => RowEnd::None,
        Row::TooFewSamples(_) => RowEnd::Closed(RowState::TooShort),
        Row::Complete { .. } if !facts.is_sequential => RowEnd::None,
        Row::Complete { .. } if facts.is_next => RowEnd::Waiting,
        Row::Complete { .. } if facts.is_scored => RowEnd::None,
        Row::Complete { .. } if facts.is_frozen => RowEnd::Closed(RowState::NoModel),
        Row::Complete { .. } => RowEnd::Closed(RowState::Late),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_ends_by_its_samples_and_by_the_progress_of_the_model() {
        let two = RowFacts { n_features: 2, ..RowFacts::default() };
        let stale = RowFacts { has_staleness_marker: true, ..two };
        let in_order = RowFacts { is_sequential: true, ..two };
        let complete = Row::Complete { timestamp_ms: 0, is_full_range: true };
        let all_missing = Row::Missing(vec![0, 1]);
        let cases = [
            (&Row::Missing(vec![1]), stale, RowEnd::Closed(RowState::Incomplete)),
            (&all_missing, stale, RowEnd::Closed(RowState::Stale)),
            (&all_missing, two, RowEnd::None),
            (&all_missing, RowFacts { is_model_unfed: true, ..two }, RowEnd::Closed(RowState::Incomplete)),
            (&Row::TooFewSamples(vec![0]), two, RowEnd::Closed(RowState::TooShort)),
            (&complete, two, RowEnd::None),
            (&complete, RowFacts { is_next: true, ..in_order }, RowEnd::Waiting),
            (&complete, RowFacts { is_scored: true, ..in_order }, RowEnd::None),
            (&complete, RowFacts { is_frozen: true, ..in_order }, RowEnd::Closed(RowState::NoModel)),
            (&complete, in_order, RowEnd::Closed(RowState::Late)),
        ];
        for (row, facts, end) in cases {
            assert_eq!(classify(row, facts), end, "{row:?} {facts:?}");
        }
    }
}
