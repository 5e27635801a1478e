//! The number of samples and rows at each stage since the start, with what is dropped and why.

use crate::report::page::section;
use crate::report::text::number;
use maud::{Markup, html};

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DataPath {
    /// The stages in their order.
    pub stages: Vec<Stage>,
}

/// A stage of the data path.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Its name.
    pub name: &'static str,
    /// The unit of its counts, in the plural.
    pub unit: &'static str,
    /// Number that reached the stage.
    pub count: u64,
    /// Numbers that do not reach the next stage, by reason.
    pub dropped: Vec<(&'static str, u64)>,
}

impl DataPath {
    /// The path of samples received, of rows by state, and of samples written or failed. Reasons without a count are left
    /// out.
    pub fn new(
        (received, dropped): (u64, Vec<(&'static str, u64)>),
        rows: Vec<(&'static str, u64)>,
        (written, failed): (u64, Vec<(&'static str, u64)>),
    ) -> Self {
        let total = |counts: &[(&str, u64)]| counts.iter().map(|(_, count)| count).sum::<u64>();
        let (unwatched, unused): (Vec<_>, Vec<_>) =
            dropped.into_iter().partition(|(reason, _)| UNWATCHED.contains(reason));
        let watched = received.saturating_sub(total(&unwatched));
        let n_rows = total(&rows);
        let (scored, unscored): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|(state, _)| *state == "complete");
        let scored = total(&scored);
        let stage = |name, unit, count, mut dropped: Vec<(&'static str, u64)>| {
            dropped.retain(|(_, count)| *count > 0);
            dropped.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            Stage { name, unit, count, dropped }
        };
        Self {
            stages: vec![
                stage("received", "samples", received, unwatched),
                stage("watched", "samples", watched, unused),
                stage("rows", "rows", n_rows, unscored),
                stage("scored", "rows", scored, Vec::new()),
                stage("output", "samples", written + total(&failed), failed),
                stage("acknowledged", "samples", written, Vec::new()),
            ],
        }
    }

    /// The section of a page.
    pub fn section(&self) -> Markup {
        let body = html! { ol.path { @for stage in &self.stages { (stage.item()) } } };
        section(
            "Data path",
            "Counts since the start; below each stage, what does not reach the next one, and why.",
            &body,
        )
    }
}

impl Stage {
    fn counted_unit(&self) -> &'static str {
        if self.count == 1 { self.unit.trim_end_matches('s') } else { self.unit }
    }

    fn item(&self) -> Markup {
        html! {
            li {
                h3 { (self.name) }
                p.count { b { (number(self.count as f64)) } " " (self.counted_unit()) }
                ul {
                    @for (reason, count) in &self.dropped {
                        li { (number(*count as f64)) " " (reason.replace('_', " ")) }
                    }
                }
            }
        }
    }
}

/// Reasons for which a sample belongs to no group.
const UNWATCHED: [&str; 6] =
    ["unwatched", "own_output", "invalid_labels", "invalid_histogram", "invalid_timestamp", "series_limit"];
