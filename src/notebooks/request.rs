//! A request: the table, the groups, the range of time and the format.

use super::error::{ARROW, Error, PARQUET};
use crate::http::parse_query;
use crate::models::registry::periods::GroupSelector;
use crate::prom::Labels;
use crate::remote_read::server::{self, MAX_QUERIES, MAX_REGEX_MATCHERS, REGEX_BYTES};
use crate::time;

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The samples of the windows, one a row.
    Window,
    /// The scores of the champions, one scored row of a group a row.
    Scores,
}

/// The format of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

impl Format {
    /// The format that the values of `Accept` prefer; Arrow if they prefer neither.
    ///
    /// # Errors
    /// [`Error::NotAcceptable`].
    pub fn negotiate(accept: &str) -> Result<Self, Error> {
        let mut best = None;
        for range in accept.split(',').filter(|range| !range.trim().is_empty()) {
            let mut parts = range.split(';').map(str::trim);
            let format = match &*parts.next().unwrap_or_default().to_ascii_lowercase() {
                ARROW | "application/*" | "*/*" => Self::Arrow,
                PARQUET => Self::Parquet,
                _ => continue,
            };
            let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
            if quality > best.map_or(0.0, |(_, best)| best) {
                best = Some((format, quality));
            }
        }
        match best {
            Some((format, _)) => Ok(format),
            None if accept.trim().is_empty() => Ok(Self::Arrow),
            None => Err(Error::NotAcceptable(accept.into())),
        }
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Arrow => ARROW,
            Self::Parquet => PARQUET,
        }
    }
}

/// A table of some groups in a range of time.
#[derive(Clone, Debug, PartialEq)]
pub struct TableQuery {
    /// The table.
    pub table: Table,
    /// Start of the range, inclusive.
    pub start_ms: i64,
    /// End of the range, inclusive.
    pub end_ms: i64,
    selectors: Vec<GroupSelector>,
}

impl TableQuery {
    /// Reads the query of a URL. Calls `reserve` with the memory that its regular expressions take.
    ///
    /// # Errors
    /// [`Error`] if a parameter is not known, repeated or invalid, or above a limit, and those of `reserve`.
    pub fn parse(
        table: Table,
        query: &str,
        reserve: impl FnOnce(usize) -> Result<(), server::Error>,
    ) -> Result<Self, Error> {
        let (mut texts, mut start_ms, mut end_ms) = (Vec::new(), None, None);
        for (name, value) in parse_query(query) {
            match &*name {
                "match[]" => texts.push(value),
                "start" => set_time("start", &value, &mut start_ms)?,
                "end" => set_time("end", &value, &mut end_ms)?,
                _ => return Err(Error::UnknownParameter(name)),
            }
        }
        if let (Some(start_ms), Some(end_ms)) = (start_ms, end_ms)
            && end_ms < start_ms
        {
            let [start, end] = [start_ms, end_ms].map(time::format_timestamp);
            return Err(Error::Backwards { start, end });
        }
        server::check_limit("selectors", texts.len(), MAX_QUERIES)?;
        // An upper bound, before any pattern is compiled: the operators may stand in values too.
        let n_operators = |text: &String| text.matches("=~").count() + text.matches("!~").count();
        let n_patterns = texts.iter().map(n_operators).sum();
        server::check_limit("regular expressions", n_patterns, MAX_REGEX_MATCHERS)?;
        reserve(n_patterns * REGEX_BYTES)?;
        let selectors = texts.iter().map(|text| text.parse()).collect::<Result<_, _>>();
        Ok(Self {
            table,
            start_ms: start_ms.unwrap_or(i64::MIN),
            end_ms: end_ms.unwrap_or(i64::MAX),
            selectors: selectors.map_err(|source| Error::Selector { source })?,
        })
    }

    /// True if a selector selects this group of a detector, or there is none.
    pub fn selects(&self, detector: &str, group: &Labels) -> bool {
        let labels = group.with("detector", detector);
        self.selectors.is_empty() || self.selectors.iter().any(|selector| selector.matches(&labels))
    }
}

fn set_time(name: &'static str, text: &str, time_ms: &mut Option<i64>) -> Result<(), Error> {
    let parsed_ms = time::parse(text).map_err(|reason| Error::Time { name, reason })?;
    if time_ms.replace(parsed_ms).is_some() { Err(Error::Repeated(name)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::percent_encode;

    fn parse(query: &str) -> Result<TableQuery, Error> {
        TableQuery::parse(Table::Window, query, |_| Ok(()))
    }

    #[test]
    fn the_accept_header_chooses_the_format() {
        for (accept, format) in [
            ("", Some(Format::Arrow)),
            ("*/*", Some(Format::Arrow)),
            ("application/*", Some(Format::Arrow)),
            (ARROW, Some(Format::Arrow)),
            (PARQUET, Some(Format::Parquet)),
            ("Application/Vnd.Apache.Parquet; v=1", Some(Format::Parquet)),
            ("text/html, application/vnd.apache.parquet, */*;q=0.8", Some(Format::Parquet)),
            (
                "application/vnd.apache.parquet;q=0.5, application/vnd.apache.arrow.stream",
                Some(Format::Arrow),
            ),
            ("application/vnd.apache.parquet;q=0", None),
            ("text/csv", None),
        ] {
            assert_eq!(Format::negotiate(accept).ok(), format, "{accept}");
        }
        let message = Format::negotiate("text/csv").expect_err("not available").to_string();
        assert!(message.contains(ARROW) && message.contains(PARQUET), "{message}");
    }

    #[test]
    fn selectors_select_groups_by_detector_and_labels() {
        let group = Labels::new([("instance", "a"), ("job", "node")]).expect("valid");
        let selects = |selectors: &[&str]| {
            let pairs = selectors.iter().map(|text| format!("match[]={}", percent_encode(text)));
            let query = parse(&pairs.collect::<Vec<_>>().join("&")).expect("valid");
            query.selects("net", &group)
        };
        assert!(selects(&[]) && selects(&["{}"]) && selects(&[r#"{detector="net"}"#]));
        assert!(selects(&[r#"{instance="b"}"#, r#"{instance=~"a|c", detector!="disk"}"#]));
        assert!(!selects(&[r#"{detector="disk"}"#]) && !selects(&["up"]));
    }

    #[test]
    fn a_range_includes_both_ends() {
        let range = |query: &str| parse(query).map(|query| (query.start_ms, query.end_ms));
        assert_eq!(range("").expect("valid"), (i64::MIN, i64::MAX));
        assert_eq!(range("start=1.5&end=1970-01-01T00:00:02Z").expect("valid"), (1500, 2000));
        assert_eq!(range("start=2&end=2").expect("valid"), (2000, 2000));
    }

    #[test]
    fn messages_name_what_is_wrong() {
        let many = |n: usize, text: &str| vec![format!("match[]={}", percent_encode(text)); n].join("&");
        for (query, message) in [
            ("match=up".into(), r#"parameter "match" is not known: match[], start and end are"#),
            ("start=1&start=2".into(), "parameter start is there twice"),
            ("end=noon".into(), r#"parameter end: "noon" is no time"#),
            (
                "start=2&end=1".into(),
                "the end 1970-01-01T00:00:01.000Z is before the start 1970-01-01T00:00:02.000Z",
            ),
            (many(1, "{a="), r#"match[]: selector "{a=": expected"#),
            (many(1, r#"{a=~"("}"#), r#"match[]: selector "{a=~\"(\"}": the pattern "(" does not compile: "#),
            (many(17, "{}"), "the query exceeds the limit of 16 selectors"),
            (many(1, &r#"{a=~"b"}"#.repeat(33)), "the query exceeds the limit of 32 regular expressions"),
        ] {
            let error = parse(&query).expect_err("invalid");
            assert!(error.to_string().starts_with(message), "{error}");
        }
    }
}
