//! The page of `/metrics`, in the format that the scraper accepts.
//!
//! The registry encodes OpenMetrics only. The text format 0.0.4, the default of tools such as `promtool check metrics`
//! and `curl`, is derived from it line by line: the formats differ in comments alone for the metric types used here.

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::fmt::{self, Write};

/// A format of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFormat {
    /// Prometheus' text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl PageFormat {
    /// The format for an `Accept` header: OpenMetrics if the header prefers it to `text/plain` or accepts both
    /// equally, else text. Parameters other than `q` are not considered.
    pub fn negotiate(accept: &str) -> Self {
        let quality = |types: &[&str]| {
            let ranges = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let media_type = parts.next()?.to_ascii_lowercase();
                let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f64>().ok());
                types.contains(&&*media_type).then_some(quality.unwrap_or(1.0))
            });
            ranges.fold(0.0, f64::max)
        };
        let (open_metrics, text) = (quality(&["application/openmetrics-text"]), quality(&["text/plain"]));
        if open_metrics > 0.0 && open_metrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// The value of the `Content-Type` header.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Encodes all metrics of a registry.
    ///
    /// # Errors
    /// That of a metric that cannot be encoded.
    pub fn encode(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut page = String::new();
        encode(&mut page, registry)?;
        match self {
            Self::OpenMetrics => Ok(page),
            Self::Text => to_text_format(&page),
        }
    }
}

/// Rewrites the comments of an OpenMetrics page: names of counters and infos carry their suffix, there are no units, and
/// no end.
fn to_text_format(page: &str) -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(page.len());
    let mut help = None;
    for line in page.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map(|(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some(help) = help.take() {
                writeln!(text, "# HELP {name}{suffix} {help}")?;
            }
            writeln!(text, "# TYPE {name}{suffix} {kind}")?;
        } else {
            writeln!(text, "{line}")?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::info::Info;

    #[test]
    fn the_text_format_names_counters_and_infos_as_their_samples() {
        let mut registry = Registry::default();
        let counter = Counter::<u64>::default();
        counter.inc();
        registry.register("requests", "Requests", counter);
        registry.register("build", "Version of the program", Info::new([("version", "1")]));
        registry.register("depth", "Depth", Gauge::<i64>::default());
        assert_eq!(
            PageFormat::Text.encode(&registry).expect("it encodes"),
            "# HELP requests_total Requests.\n# TYPE requests_total counter\nrequests_total 1\n\
             # HELP build_info Version of the program.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n\
             # HELP depth Depth.\n# TYPE depth gauge\ndepth 0\n"
        );
        let open_metrics = PageFormat::OpenMetrics.encode(&registry).expect("it encodes");
        assert!(open_metrics.contains("# TYPE requests counter\n") && open_metrics.ends_with("# EOF\n"));
    }

    #[test]
    fn the_accept_header_chooses_the_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, format) in [
            (prometheus, PageFormat::OpenMetrics),
            ("application/openmetrics-text", PageFormat::OpenMetrics),
            (
                "Application/OpenMetrics-Text; version=1.0.0; q=0.5, text/plain; q=0.5",
                PageFormat::OpenMetrics,
            ),
            ("text/plain;version=0.0.4;q=0.6,application/openmetrics-text;q=0.5", PageFormat::Text),
            ("application/openmetrics-text;q=0", PageFormat::Text),
            ("*/*", PageFormat::Text),
            ("text/html,*/*;q=0.8", PageFormat::Text),
            ("", PageFormat::Text),
        ] {
            assert_eq!(PageFormat::negotiate(accept), format, "{accept}");
        }
    }
}
