//! The samples and scores of a group, for readers.

use super::Group;
use crate::notebooks::{GroupPart, TableQuery};
use crate::pipeline::select::{GroupMatches, GroupQuery};
use crate::remote_read::server::Query;

impl Group {
    /// Adds the series that a query selects.
    pub fn select(&self, query: &Query, matches: &mut Vec<GroupMatches>) {
        let group_query = GroupQuery {
            query,
            detector: &self.detector,
            group: &self.outward_labels,
            window: &self.window,
            contributions: self.incidents.contributions(),
            stale_rows: self.publication.stale_rows().collect(),
        };
        group_query.collect_matches(matches);
    }

    /// The part of a table that this group has.
    pub fn table_part(&self, query: &TableQuery) -> GroupPart {
        GroupPart::new(query, &self.detector.name, &self.outward_labels, &self.window)
    }
}
