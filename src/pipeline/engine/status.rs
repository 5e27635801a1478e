//! The state of the groups for the web pages, handed out in pages of bounded time.

use super::Engine;
use crate::prom::Labels;
use crate::status::group::{GroupDetail, GroupSummary};
use std::time::{Duration, Instant};

/// Time budget of one page of summaries.
const PAGE_BUDGET: Duration = Duration::from_millis(2);

/// A part of the groups.
#[derive(Debug, Default)]
pub struct SummaryPage {
    /// The groups.
    pub groups: Vec<GroupSummary>,
    /// Id of the first group of the next page; none after the last.
    pub next: Option<u32>,
}

impl Engine {
    /// Summaries of the groups from this id on, until the time budget is used up.
    pub(super) fn summaries(&self, from: u32, now: Instant, now_ms: i64) -> SummaryPage {
        let mut page = SummaryPage::default();
        for (id, group) in self.groups.iter_from(from) {
            if !page.groups.is_empty() && now.elapsed() >= PAGE_BUDGET {
                page.next = Some(id);
                break;
            }
            page.groups.push(group.summary(now, now_ms));
        }
        page
    }

    /// A group with its window and models.
    pub(super) fn group_detail(
        &self,
        detector: &str,
        labels: &Labels,
        now: Instant,
        now_ms: i64,
    ) -> Option<Box<GroupDetail>> {
        let group = self.groups.find(detector, labels)?;
        Some(Box::new(group.detail(&self.groups.config().registry.alias, now, now_ms)))
    }
}
