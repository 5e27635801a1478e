//! Selectors such as `name{label="value", other!~"regex"}`, with PromQL's syntax and semantics.

use super::labels::METRIC_NAME;
use super::{Labels, proto, regex};
use std::fmt;

/// A PromQL vector selector. It selects the series that satisfy every matcher.
#[derive(Clone, Debug)]
pub struct Selector {
    text: String,
    matchers: Vec<Matcher>,
}

/// One comparison of a label's value. An absent label has the empty value.
#[derive(Clone, Debug)]
pub struct Matcher {
    name: String,
    value: String,
    match_type: MatchType,
}

#[derive(Clone, Debug)]
enum MatchType {
    Equal,
    NotEqual,
    Regex(::regex::Regex),
    NotRegex(::regex::Regex),
}

/// The error for an invalid selector. Positions count characters from 1.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A syntax error.
    #[error("selector {text:?}: expected {expected} at character {position}")]
    Syntax {
        /// The whole text.
        text: String,
        /// The expected token.
        expected: &'static str,
        /// Position of the error, in characters from 1.
        position: usize,
    },
    /// A pattern does not compile.
    #[error("selector {text:?}: the pattern {pattern:?} does not compile")]
    Regex {
        /// The whole text.
        text: String,
        /// The pattern as written.
        pattern: String,
        /// The error of the regular expression engine.
        source: ::regex::Error,
    },
    /// An unknown matcher type.
    #[error("selector {text:?}: there is no matcher of type {kind}")]
    UnknownType {
        /// The whole text.
        text: String,
        /// The number of the type.
        kind: i32,
    },
    /// The selector would match every series.
    #[error("selector {text:?} matches every series: at least one matcher must not match the empty value")]
    MatchesAll {
        /// The whole text.
        text: String,
    },
}

impl Matcher {
    /// The matcher `name="value"`.
    pub fn equal(name: &str, value: &str) -> Self {
        Self { name: name.into(), value: value.into(), match_type: MatchType::Equal }
    }

    /// The matcher `name=~"a|b"` for literal values.
    pub fn one_of<'v>(name: &str, values: impl IntoIterator<Item = &'v str>) -> Self {
        let mut values = values.into_iter().peekable();
        let first = values.next().unwrap_or_default();
        if values.peek().is_none() {
            return Self::equal(name, first);
        }
        let escaped: Vec<String> = [first].into_iter().chain(values).map(::regex::escape).collect();
        let value = escaped.join("|");
        let match_type = MatchType::Regex(regex::compile(&value).expect("escaped text is a valid pattern"));
        Self { name: name.into(), value, match_type }
    }

    /// The name of the label.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of `=`, or the pattern of `=~`.
    pub fn wanted(&self) -> Option<&str> {
        matches!(self.match_type, MatchType::Equal | MatchType::Regex(_)).then_some(&*self.value)
    }

    /// True if the value satisfies the comparison.
    pub fn matches(&self, value: &str) -> bool {
        match &self.match_type {
            MatchType::Equal => value == self.value,
            MatchType::NotEqual => value != self.value,
            MatchType::Regex(regex) => regex.is_match(value),
            MatchType::NotRegex(regex) => !regex.is_match(value),
        }
    }
}

impl Selector {
    /// Parses a selector in PromQL's syntax, quoted (UTF-8) names included.
    ///
    /// # Errors
    /// [`Error`] if the text is not a selector, a pattern does not compile, or every series would match.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let selector = Self::parse_any(text)?;
        if selector.matchers.iter().all(|matcher| matcher.matches("")) {
            return Err(Error::MatchesAll { text: selector.text });
        }
        Ok(selector)
    }

    /// Parses a selector that may match everything: one of groups, not of series.
    ///
    /// # Errors
    /// [`Error`] if the text is not a selector or a pattern does not compile.
    pub fn parse_any(text: &str) -> Result<Self, Error> {
        SelectorParser { text, rest: text }.parse_selector()
    }

    /// Reads the matchers of a remote read query. Errors show at most 64 characters of a name, value or pattern.
    ///
    /// # Errors
    /// As for [`parse`](Self::parse), and for an unknown matcher type.
    pub fn from_proto(matchers: Vec<proto::LabelMatcher>) -> Result<Self, Error> {
        use proto::label_matcher::Type;
        let promql = to_promql(&matchers);
        let convert = |matcher: proto::LabelMatcher| {
            let kind = matcher.r#type;
            let kind = Type::try_from(kind).map_err(|_| Error::UnknownType { text: promql.clone(), kind })?;
            let compile = || {
                regex::compile(&matcher.value).map_err(|source| Error::Regex {
                    text: promql.clone(),
                    pattern: truncate(&matcher.value),
                    source,
                })
            };
            let match_type = match kind {
                Type::Eq => MatchType::Equal,
                Type::Neq => MatchType::NotEqual,
                Type::Re => MatchType::Regex(compile()?),
                Type::Nre => MatchType::NotRegex(compile()?),
            };
            Ok(Matcher { name: matcher.name, value: matcher.value, match_type })
        };
        let matchers = matchers.into_iter().map(convert).collect::<Result<Vec<_>, Error>>()?;
        if matchers.iter().all(|matcher| matcher.matches("")) {
            return Err(Error::MatchesAll { text: promql });
        }
        Ok(Self { text: promql, matchers })
    }

    /// The selector of these matchers; `None` if it would match every series.
    pub fn of_matchers(matchers: Vec<Matcher>) -> Option<Self> {
        let selects_all = matchers.iter().all(|matcher| matcher.matches(""));
        let texts: Vec<String> = matchers.iter().map(ToString::to_string).collect();
        (!selects_all).then(|| Self { text: format!("{{{}}}", texts.join(",")), matchers })
    }

    /// True if the selector selects the series with these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matchers.iter().all(|matcher| matcher.matches(labels.get(&matcher.name)))
    }

    /// True if the selector may select a series of which only some labels are known.
    pub fn may_match(&self, known: &Labels) -> bool {
        self.matchers.iter().all(|matcher| {
            let value = known.get(&matcher.name);
            value.is_empty() || matcher.matches(value)
        })
    }

    /// The matchers without regular expressions: a cheap selector of a superset of the series.
    pub fn without_regexes(&self) -> Self {
        let is_exact =
            |matcher: &&Matcher| matches!(matcher.match_type, MatchType::Equal | MatchType::NotEqual);
        Self { text: self.text.clone(), matchers: self.matchers.iter().filter(is_exact).cloned().collect() }
    }

    /// The selector as a label set, if every matcher is `=`.
    pub fn to_labels(&self) -> Option<Labels> {
        let equal_pair = |matcher: &Matcher| {
            matches!(matcher.match_type, MatchType::Equal)
                .then(|| (matcher.name.clone(), matcher.value.clone()))
        };
        Labels::new(self.matchers.iter().map(equal_pair).collect::<Option<Vec<_>>>()?).ok()
    }

    /// The matchers; the metric name is one of `__name__`.
    pub fn matchers(&self) -> &[Matcher] {
        &self.matchers
    }
}

/// Two selectors are equal if their texts are equal.
impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Formats as in PromQL: `name="value"`.
impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = match self.match_type {
            MatchType::Equal => "=",
            MatchType::NotEqual => "!=",
            MatchType::Regex(_) => "=~",
            MatchType::NotRegex(_) => "!~",
        };
        f.write_str(&format_matcher(&self.name, operator, &self.value))
    }
}

impl From<&Matcher> for proto::LabelMatcher {
    fn from(matcher: &Matcher) -> Self {
        use proto::label_matcher::Type;
        let kind = match matcher.match_type {
            MatchType::Equal => Type::Eq,
            MatchType::NotEqual => Type::Neq,
            MatchType::Regex(_) => Type::Re,
            MatchType::NotRegex(_) => Type::Nre,
        };
        Self { r#type: kind.into(), name: matcher.name.clone(), value: matcher.value.clone() }
    }
}

/// Most characters of a name or value in an error text.
const MAX_SHOWN_CHARS: usize = 64;

fn truncate(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into(),
    }
}

/// The first eight matchers in PromQL's syntax.
fn to_promql(matchers: &[proto::LabelMatcher]) -> String {
    let format_matcher = |matcher: &proto::LabelMatcher| {
        let operator = ["=", "!=", "=~", "!~"];
        let kind = usize::try_from(matcher.r#type).ok();
        let operator = kind.and_then(|kind| operator.get(kind)).unwrap_or(&"?");
        format!("{}{operator}{:?}", truncate(&matcher.name), truncate(&matcher.value))
    };
    let shown: Vec<String> = matchers.iter().take(8).map(format_matcher).collect();
    let more = if matchers.len() > shown.len() { ", ..." } else { "" };
    format!("{{{}{more}}}", shown.join(", "))
}

/// The text of the matcher `name="value"`; names beyond ASCII identifiers are quoted.
pub fn format_equal(name: &str, value: &str) -> String {
    format_matcher(name, "=", value)
}

fn format_matcher(name: &str, operator: &str, value: &str) -> String {
    let quote = |text: &str| {
        let escaped = text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
        format!("\"{escaped}\"")
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_identifier =
        name.chars().all(is_plain) && !name.starts_with(|c: char| c.is_ascii_digit()) && !name.is_empty();
    let name = if is_identifier { name.into() } else { quote(name) };
    format!("{name}{operator}{}", quote(value))
}

struct SelectorParser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl SelectorParser<'_> {
    fn parse_selector(mut self) -> Result<Selector, Error> {
        let mut matchers = Vec::new();
        self.skip_whitespace();
        if let Some(name) = self.parse_identifier(':') {
            matchers.push(Matcher::equal(METRIC_NAME, &name));
        }
        self.skip_whitespace();
        if self.eat("{") {
            self.parse_matchers(&mut matchers)?;
        }
        self.skip_whitespace();
        if !self.rest.is_empty() {
            return Err(self.syntax_error("the end, as a selector has no functions,"));
        }
        if matchers.is_empty() {
            return Err(self.syntax_error("a metric name or \"{\""));
        }
        Ok(Selector { text: self.text.trim().to_string(), matchers })
    }

    fn parse_matchers(&mut self, matchers: &mut Vec<Matcher>) -> Result<(), Error> {
        loop {
            self.skip_whitespace();
            if self.eat("}") {
                return Ok(());
            }
            matchers.push(self.parse_matcher()?);
            self.skip_whitespace();
            if !self.eat(",") && !self.rest.starts_with('}') {
                return Err(self.syntax_error("\",\" or \"}\""));
            }
        }
    }

    fn parse_matcher(&mut self) -> Result<Matcher, Error> {
        let is_quoted = self.rest.starts_with(['"', '\'', '`']);
        let name = if is_quoted {
            self.parse_quoted()?
        } else {
            self.parse_identifier('_').ok_or_else(|| self.syntax_error("a label name"))?
        };
        self.skip_whitespace();
        // A quoted string alone is the metric name (Prometheus 3).
        if is_quoted && self.rest.starts_with([',', '}']) {
            return Ok(Matcher::equal(METRIC_NAME, &name));
        }
        let compile = |pattern: &str| {
            regex::compile(pattern).map_err(|source| Error::Regex {
                text: self.text.to_string(),
                pattern: pattern.to_string(),
                source,
            })
        };
        let operator = ["=~", "!~", "!=", "="].into_iter().find(|op| self.rest.starts_with(op));
        let Some(operator) = operator else {
            return Err(self.syntax_error("one of = != =~ !~"));
        };
        let mut value_parser = SelectorParser { text: self.text, rest: &self.rest[operator.len()..] };
        value_parser.skip_whitespace();
        let value = value_parser.parse_quoted()?;
        let match_type = match operator {
            "=" => MatchType::Equal,
            "!=" => MatchType::NotEqual,
            "=~" => MatchType::Regex(compile(&value)?),
            _ => MatchType::NotRegex(compile(&value)?),
        };
        self.rest = &self.rest[self.rest.len() - value_parser.rest.len()..];
        Ok(Matcher { name, value, match_type })
    }

    /// Parses a name of ASCII letters, digits (not first), `_` and the character `extra`.
    fn parse_identifier(&mut self, extra: char) -> Option<String> {
        let end = self
            .rest
            .char_indices()
            .find(|(i, c)| {
                !(c.is_ascii_alphabetic() || *c == '_' || *c == extra || *i > 0 && c.is_ascii_digit())
            })
            .map_or(self.rest.len(), |(i, _)| i);
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!name.is_empty()).then(|| name.to_string())
    }

    /// Parses a string in one of PromQL's three quotes. Strings in backticks have no escapes.
    fn parse_quoted(&mut self) -> Result<String, Error> {
        let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '"' | '\'' | '`')) else {
            return Err(self.syntax_error("a quoted string"));
        };
        let mut out = String::new();
        let mut chars = self.rest[1..].char_indices();
        while let Some((i, c)) = chars.next() {
            if c == quote {
                self.rest = &self.rest[i + 2..];
                return Ok(out);
            }
            if c != '\\' || quote == '`' {
                out.push(c);
                continue;
            }
            let escape = chars.next().map(|(_, c)| c);
            let mut char_from_hex = |digits: usize| {
                let hex: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                u32::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == digits).and_then(char::from_u32)
            };
            let decoded = match escape {
                Some('n') => Some('\n'),
                Some('t') => Some('\t'),
                Some('r') => Some('\r'),
                Some('u') => char_from_hex(4),
                Some('U') => char_from_hex(8),
                Some('x') => char_from_hex(2).filter(char::is_ascii),
                Some(c @ ('\\' | '"' | '\'')) => Some(c),
                _ => None,
            };
            let Some(decoded) = decoded else {
                self.rest = &self.rest[i + 1..];
                return Err(self.syntax_error("an escape such as \\\\ \\\" \\n"));
            };
            out.push(decoded);
        }
        self.rest = "";
        Err(self.syntax_error("a closing quote"))
    }

    fn skip_whitespace(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest.strip_prefix(token);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn syntax_error(&self, expected: &'static str) -> Error {
        let consumed = &self.text[..self.text.len() - self.rest.len()];
        Error::Syntax { text: self.text.to_string(), expected, position: consumed.chars().count() + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_formatted_matcher_is_read_back() {
        for (name, value) in [("job", ""), ("host.name", "a\"b\\c\nd\u{200b}"), ("1st", "é"), ("a\"", "'")] {
            let selector = Selector::parse_any(&format!("{{{}}}", format_equal(name, value))).expect(name);
            assert_eq!(selector.to_labels(), Labels::new([(name, value)]).ok(), "{selector}");
        }
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels::new(pairs.iter().copied()).expect("valid")
    }

    #[test]
    fn selects_as_promql_does() {
        let eth0 = labels(&[("__name__", "node_network_receive_bytes_total"), ("device", "eth0")]);
        let veth = labels(&[("__name__", "node_network_receive_bytes_total"), ("device", "veth1")]);
        for (selector, expected) in [
            (r#"{__name__=~"node_network_(receive|transmit)_bytes_total", device!~"veth.*"}"#, true),
            ("node_network_receive_bytes_total", true),
            ("node_network_receive_bytes_total{device='eth0',}", true),
            (r#"{"node_network_receive_bytes_total", "device"!="lo"}"#, true),
            ("node_network_receive_bytes_total{absent=\"\"}", true),
            ("node_network_receive_bytes_total{absent!=\"\"}", false),
            ("node_network_receive_bytes_total{device=`eth.`}", false),
            (r#"{__name__=~"node_network_receive_bytes"}"#, false),
        ] {
            let parsed = Selector::parse(selector).expect(selector);
            assert_eq!(parsed.matches(&eth0), expected, "{selector}");
        }
        let excluding = Selector::parse(r#"{__name__=~"node.*", device!~"veth.*"}"#).expect("parses");
        assert!(!excluding.matches(&veth));
        assert!(excluding.without_regexes().matches(&veth));
        let named = Selector::parse(r#"{device="eth0", __name__=~"up"}"#).expect("parses").without_regexes();
        assert!(named.matches(&eth0) && !named.matches(&veth));
    }

    #[test]
    fn b71_b72_b73_invalid_matchers_are_rejected() {
        let matcher =
            |kind, value: &str| proto::LabelMatcher { r#type: kind, name: "a".into(), value: value.into() };
        for (matchers, message) in [
            (vec![matcher(2, "(")], r#"selector "{a=~\"(\"}": the pattern "(" does not compile"#),
            (vec![matcher(3, "a)(b")], r#"selector "{a!~\"a)(b\"}": the pattern "a)(b" does not compile"#),
            (vec![matcher(9, "b")], r#"selector "{a?\"b\"}": there is no matcher of type 9"#),
            (
                vec![],
                r#"selector "{}" matches every series: at least one matcher must not match the empty value"#,
            ),
            (
                vec![matcher(1, "b"), matcher(2, ".*")],
                r#"selector "{a!=\"b\", a=~\".*\"}" matches every series: at least one matcher must not match the empty value"#,
            ),
        ] {
            assert_eq!(Selector::from_proto(matchers).expect_err(message).to_string(), message);
        }
        let long = Selector::from_proto(vec![matcher(2, &"x".repeat(1 << 20))]).expect_err("long");
        assert!(long.to_string().len() < 300, "{long}");
    }

    #[test]
    fn selectors_survive_the_round_trip_through_protobuf() {
        let parsed = Selector::parse(r#"{__name__=~"up|down", a!="1", b!~"2.*", c="3"}"#).expect("parses");
        let converted = Selector::from_proto(parsed.matchers.iter().map(proto::LabelMatcher::from).collect())
            .expect("valid");
        for (pairs, expected) in [
            (vec![("__name__", "up"), ("c", "3")], true),
            (vec![("__name__", "up"), ("c", "3"), ("b", "21")], false),
            (vec![("__name__", "up"), ("c", "3"), ("a", "1")], false),
            (vec![("__name__", "upper"), ("c", "3")], false),
        ] {
            let labels = labels(&pairs);
            assert_eq!(
                (parsed.matches(&labels), converted.matches(&labels)),
                (expected, expected),
                "{labels}"
            );
            assert_eq!(converted.may_match(&labels), expected);
        }
        assert!(converted.may_match(&Labels::default()));
    }

    #[test]
    fn errors_name_the_problem_and_its_position() {
        for (selector, message) in [
            ("", r#"selector "": expected a metric name or "{" at character 1"#),
            ("up{", r#"selector "up{": expected a label name at character 4"#),
            ("up{a}", r#"selector "up{a}": expected one of = != =~ !~ at character 5"#),
            ("up{a=b}", r#"selector "up{a=b}": expected a quoted string at character 6"#),
            ("up{a=\"b", "selector \"up{a=\\\"b\": expected a closing quote at character 8"),
            ("up x", r#"selector "up x": expected the end, as a selector has no functions, at character 4"#),
            (
                r#"{a=~".*"}"#,
                r#"selector "{a=~\".*\"}" matches every series: at least one matcher must not match the empty value"#,
            ),
            (r#"{a=~"("}"#, r#"selector "{a=~\"(\"}": the pattern "(" does not compile"#),
        ] {
            let error = Selector::parse(selector).expect_err(selector);
            assert_eq!(error.to_string(), message);
        }
    }
}
