//! Reader of Prometheus' text format 0.0.4 and of OpenMetrics: series and their values.
//!
//! Every line of an exporter's page that is neither blank nor a comment is one series; a line that cannot be read is an
//! error that names it. The crate `prometheus-parse` was the alternative: it splits labels at every comma and equals
//! sign, ends them at the first brace, and drops lines that it cannot read.

use super::labels;
use super::{Labels, METRIC_NAME};

/// Characters of a line that an error shows.
const SHOWN_CHARS: usize = 120;

/// A line that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("line {number} of the page: {text:?}")]
pub struct Error {
    number: usize,
    text: String,
    source: Reason,
}

/// Reasons to reject a line.
#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0:?} follows a label, must be a comma or a closing brace")]
    Separator(char),
    #[error("{0:?} is not a value")]
    Value(String),
    #[error("{0:?} is not a timestamp")]
    Timestamp(String),
    #[error(transparent)]
    Labels(#[from] labels::InvalidLabels),
}

/// Every series of a page, with the target's labels added. A label of the page that the target has too gets the
/// prefix `exported_`, as in Prometheus.
///
/// # Errors
/// [`Error`] for the first line that cannot be read.
pub fn parse_series(page: &str, target: &[(String, String)]) -> Result<Vec<Labels>, Error> {
    Ok(parse_values(page, target)?.into_iter().map(|(labels, _)| labels).collect())
}

/// Every series of a page as [`parse_series`] reads it, with its value.
///
/// # Errors
/// As [`parse_series`].
pub fn parse_values(page: &str, target: &[(String, String)]) -> Result<Vec<(Labels, f64)>, Error> {
    let lines = page.lines().enumerate().map(|(i, line)| (i + 1, line.trim()));
    let series = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let parse = |(number, line): (usize, &str)| {
        parse_line(line, target).map_err(|source| Error {
            number,
            text: line.chars().take(SHOWN_CHARS).collect(),
            source,
        })
    };
    series.map(parse).collect()
}

fn parse_line(line: &str, target: &[(String, String)]) -> Result<(Labels, f64), Reason> {
    let (name, rest) =
        line.split_at(line.find(|c: char| c == '{' || c.is_whitespace()).unwrap_or(line.len()));
    let mut name = (!name.is_empty()).then(|| name.to_string());
    let (mut own, mut sample) = (Vec::new(), rest);
    if let Some(block) = rest.strip_prefix('{') {
        let (pairs, after) = parse_label_block(block)?;
        sample = after;
        for (label, value) in pairs {
            match value {
                Some(value) => own.push((label, value)),
                // Prometheus 3 writes names that are not plain identifiers as `{"a name", label="value"}`.
                None => name = Some(label),
            }
        }
    }
    let name = name.ok_or(Reason::Missing("the metric name"))?;
    let value = parse_value(sample)?;
    let is_of_target = |name: &str| target.iter().any(|(other, _)| other == name);
    let own = own
        .into_iter()
        .map(|(name, value)| (if is_of_target(&name) { format!("exported_{name}") } else { name }, value));
    let name = (METRIC_NAME.to_string(), name);
    Ok((Labels::new([name].into_iter().chain(own).chain(target.iter().cloned()))?, value))
}

/// Labels of a line, where a quoted text without a value is the metric name, and the text after them.
type LabelBlock<'t> = (Vec<(String, Option<String>)>, &'t str);

/// Reads labels up to the closing brace.
fn parse_label_block(mut text: &str) -> Result<LabelBlock<'_>, Reason> {
    let mut pairs = Vec::new();
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix('}') {
            return Ok((pairs, rest));
        }
        let (label, rest) = match text.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = text.find(['=', '}', ',']).ok_or(Reason::Missing("the closing brace"))?;
                (text[..end].trim().to_string(), &text[end..])
            }
        };
        let rest = rest.trim_start();
        let (value, rest) = match rest.strip_prefix('=') {
            Some(value) => {
                let quoted = value.trim_start().strip_prefix('"');
                let (value, rest) = unquote(quoted.ok_or(Reason::Missing("the opening quote of a value"))?)?;
                (Some(value), rest)
            }
            None if text.starts_with('"') => (None, rest),
            None => return Err(Reason::Missing("the equals sign of a label")),
        };
        pairs.push((label, value));
        let rest = rest.trim_start();
        text = match rest.chars().next() {
            Some(',') => &rest[1..],
            Some('}') => rest,
            Some(other) => return Err(Reason::Separator(other)),
            None => return Err(Reason::Missing("the closing brace")),
        };
    }
}

/// Reads a text up to its closing quote, and the rest of the line. The escapes are `\\`, `\"` and `\n`; a backslash
/// before another character stays, as in Prometheus.
fn unquote(text: &str) -> Result<(String, &str), Reason> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[i + 1..])),
            '\\' => match chars.next().map(|(_, escaped)| escaped) {
                Some('n') => value.push('\n'),
                Some(escaped @ ('\\' | '"')) => value.push(escaped),
                Some(other) => value.extend(['\\', other]),
                None => break,
            },
            _ => value.push(c),
        }
    }
    Err(Reason::Missing("the closing quote"))
}

/// Reads the value; checks the optional timestamp and, in OpenMetrics, the optional exemplar after `#`.
fn parse_value(text: &str) -> Result<f64, Reason> {
    let mut fields = text.split_whitespace();
    let field = fields.next().ok_or(Reason::Missing("the value"))?;
    let value = field.parse::<f64>().map_err(|_| Reason::Value(field.into()))?;
    match fields.next() {
        Some(timestamp) if !timestamp.starts_with('#') && timestamp.parse::<f64>().is_err() => {
            Err(Reason::Timestamp(timestamp.into()))
        }
        _ => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    fn parse(page: &str) -> Result<Vec<String>, String> {
        let target = [("instance".to_string(), "host:9100".to_string())];
        let series = parse_series(page, &target).map_err(|error| chain(&error))?;
        Ok(series.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_line_is_a_series() {
        let page = r##"
# HELP http_requests_total Requests, "by" path
# TYPE http_requests_total counter
http_requests_total{path="/users/{id}",code="200"} 1027 1395066363000
http_requests_total{path="/q?a=1&b=2,3",} 3
job:requests:rate5m 1.5e+02
text{quote="say \"hi\"",back="C:\\new",line="a\nb", spaced = "x y" } +Inf
rpc_bucket{le="+Inf"} 17 # {trace_id="a}b"} 0.67 1520879607.789
rpc_sum NaN
up{instance="proxied"}	1
{"my.metric","label.name"="v"} -0.5
# EOF
"##;
        let series = parse(page).expect("valid");
        assert_eq!(
            series,
            [
                r#"http_requests_total{code="200", instance="host:9100", path="/users/{id}"}"#,
                r#"http_requests_total{instance="host:9100", path="/q?a=1&b=2,3"}"#,
                r#"job:requests:rate5m{instance="host:9100"}"#,
                r#"text{back="C:\\new", instance="host:9100", line="a\nb", quote="say \"hi\"", spaced="x y"}"#,
                r#"rpc_bucket{instance="host:9100", le="+Inf"}"#,
                r#"rpc_sum{instance="host:9100"}"#,
                r#"up{exported_instance="proxied", instance="host:9100"}"#,
                r#"my.metric{instance="host:9100", label.name="v"}"#,
            ]
        );
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named() {
        for (line, reason) in [
            ("up", "the value is missing"),
            ("up one", r#""one" is not a value"#),
            ("up 1 now", r#""now" is not a timestamp"#),
            (r#"up{a="b" 1"#, "'1' follows a label, must be a comma or a closing brace"),
            (r#"up{a="b"#, "the closing quote is missing"),
            (r#"up{a=b} 1"#, "the opening quote of a value is missing"),
            ("up{a} 1", "the equals sign of a label is missing"),
            (r#"up{a="1",a="2"} 1"#, r#"label name "a" is not unique"#),
            (r#"{a="1"} 1"#, "the metric name is missing"),
        ] {
            let error = parse(&format!("# TYPE up gauge\n{line}\n")).expect_err(line);
            assert!(error.starts_with(&format!("line 2 of the page: {line:?}: ")), "{error}");
            assert!(error.ends_with(reason), "{error}");
        }
        let long = parse(&format!("a{{b=\"{}\n", "é".repeat(1000))).expect_err("no end");
        assert!(long.chars().count() < 200, "{long}");
    }
}
