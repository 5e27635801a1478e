//! The groups of all detectors, searched and in pages.

use super::group::{GroupSummary, OpenIncident};

/// Groups on one page.
pub const PAGE_SIZE: usize = 500;

/// Characters of a search that count.
const MAX_SEARCH_CHARS: usize = 200;

/// All groups, by detector and labels.
pub struct Fleet {
    groups: Vec<GroupSummary>,
    /// `detector{labels}` of each group in lower case.
    search_texts: Vec<String>,
}

/// A part of the groups.
pub struct FleetPage<'a> {
    /// The groups of the page.
    pub groups: Vec<&'a GroupSummary>,
    /// Number of the page, from 1.
    pub page: usize,
    /// Number of pages, at least 1.
    pub n_pages: usize,
    /// Number of groups on all pages.
    pub n_groups: usize,
}

/// A search with the number of the page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FleetQuery {
    /// The text that a group's detector and labels contain.
    pub search: String,
    /// Number of the page, from 1.
    pub page: usize,
}

impl FleetQuery {
    /// Reads the parameters `q` and `page`. Others, and numbers that are none, are ignored.
    pub fn from_params(params: &[(String, String)]) -> Self {
        let param = |name: &str| params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        Self {
            search: param("q").unwrap_or_default().trim().chars().take(MAX_SEARCH_CHARS).collect(),
            page: param("page").and_then(|page| page.parse().ok()).unwrap_or(1),
        }
    }
}

impl Fleet {
    /// The groups in any order.
    pub fn new(mut groups: Vec<GroupSummary>) -> Self {
        groups.sort_by(|a, b| (&a.detector, &a.labels).cmp(&(&b.detector, &b.labels)));
        let search_text = |group: &GroupSummary| format!("{}{}", group.detector, group.labels).to_lowercase();
        let search_texts = groups.iter().map(search_text).collect();
        Self { groups, search_texts }
    }

    /// All groups.
    pub fn groups(&self) -> &[GroupSummary] {
        &self.groups
    }

    /// The groups with an open incident, by descending score.
    pub fn incidents(&self) -> Vec<(&GroupSummary, &OpenIncident)> {
        let open = self.groups.iter().filter_map(|group| Some((group, group.incident.as_ref()?)));
        let mut open: Vec<_> = open.collect();
        open.sort_by(|(_, a), (_, b)| b.score.total_cmp(&a.score));
        open
    }

    /// Number of groups with a recent score.
    pub fn n_scored(&self) -> usize {
        self.groups.iter().filter(|group| group.is_scored()).count()
    }

    /// Timestamp of the newest scored row.
    pub fn newest_scored_ms(&self) -> Option<i64> {
        self.groups.iter().filter_map(|group| group.newest_scored_ms).max()
    }

    /// One page of the groups that a search finds; the last one beyond it.
    pub fn page(&self, query: &FleetQuery) -> FleetPage<'_> {
        let search = query.search.to_lowercase();
        let all = self.groups.iter().zip(&self.search_texts);
        let found: Vec<&GroupSummary> =
            all.filter(|(_, text)| text.contains(&search)).map(|(group, _)| group).collect();
        let n_pages = found.len().div_ceil(PAGE_SIZE).max(1);
        let page = query.page.clamp(1, n_pages);
        let groups = found.iter().skip((page - 1) * PAGE_SIZE).take(PAGE_SIZE).copied().collect();
        FleetPage { groups, page, n_pages, n_groups: found.len() }
    }
}
