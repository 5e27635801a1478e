//! Prometheus' regular expressions (Go's RE2 dialect, anchored) on the `regex` crate.
//!
//! The two dialects agree but for a few corners, and those are rewritten here: in Go `\d`, `\w`,
//! `\s` and `\b` are ASCII, and inside a character class `[`, `&&`, `--` and `~~` mean themselves.

use regex::{Regex, RegexBuilder};

/// Bounds the memory of a compiled pattern.
const SIZE_LIMIT: usize = 1 << 20;
/// Bytes of a pattern: reading one takes a hundred times its length.
const LENGTH_LIMIT: usize = 128 << 10;

/// Compiles a matcher's pattern: it must match the whole value, and a dot matches a newline, as in
/// Prometheus 3.
///
/// # Errors
/// The engine's own message, for a pattern that it refuses or that grows too large.
pub fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    if pattern.len() > LENGTH_LIMIT {
        let message = format!("{} bytes are above the limit of {LENGTH_LIMIT}", pattern.len());
        return Err(regex::Error::Syntax(message));
    }
    let pattern = from_go(pattern);
    let build = |text: &str| RegexBuilder::new(text).size_limit(SIZE_LIMIT).build();
    // On its own first: `a)(b` is an error, although wrapping would make it a valid pattern.
    build(&pattern)?;
    build(&format!("^(?s:{pattern})$"))
}

fn from_go(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars().peekable();
    let mut in_class = false;
    while let Some(c) = chars.next() {
        match (c, in_class) {
            ('\\', _) => match (chars.next(), in_class) {
                (Some('d'), false) => out.push_str("[0-9]"),
                (Some('D'), false) => out.push_str("[^0-9]"),
                (Some('w'), false) => out.push_str("[0-9A-Za-z_]"),
                (Some('W'), false) => out.push_str("[^0-9A-Za-z_]"),
                (Some('s'), false) => out.push_str(r"[\t\n\f\r ]"),
                (Some('S'), false) => out.push_str(r"[^\t\n\f\r ]"),
                (Some('b'), false) => out.push_str(r"(?-u:\b)"),
                (Some('d'), true) => out.push_str("0-9"),
                (Some('w'), true) => out.push_str("0-9A-Za-z_"),
                (Some('s'), true) => out.push_str(r"\t\n\f\r "),
                (Some('Q'), false) => {
                    let mut literal = String::new();
                    while let Some(c) = chars.next() {
                        if c == '\\' && chars.peek() == Some(&'E') {
                            chars.next();
                            break;
                        }
                        literal.push(c);
                    }
                    out.push_str(&regex::escape(&literal));
                }
                (Some('<'), _) => out.push('<'),
                (Some('>'), _) => out.push('>'),
                (Some(other), _) => out.extend(['\\', other]),
                (None, _) => out.push('\\'),
            },
            ('[', false) => {
                in_class = true;
                out.push('[');
                // `]` as the first member of a class means itself.
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                if chars.next_if_eq(&']').is_some() {
                    out.push_str(r"\]");
                }
            }
            ('[', true) if chars.peek() == Some(&':') => {
                // A named ASCII class such as [:alpha:] is the same in both.
                out.push('[');
                while let Some(c) = chars.next_if(|c| *c != ']') {
                    out.push(c);
                }
                out.extend(chars.next());
            }
            ('[', true) => out.push_str(r"\["),
            (']', true) => {
                in_class = false;
                out.push(']');
            }
            ('&' | '~', true) => out.extend(['\\', c]),
            ('-', true) if chars.peek() == Some(&'-') => out.push_str(r"\-"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_go_does() {
        for (pattern, text, expected) in [
            (".*", "", true),
            (".+", "", false),
            ("a|b", "a", true),
            ("a|b", "ab", false),
            ("(?i)ABC", "abc", true),
            ("x.y", "x\ny", true),
            (r"\w+", "é", false),
            (r"\d+", "٣", false),
            (r"[\w.]+", "a.b", true),
            ("[a&&b]", "&", true),
            ("[a&&b]", "b", true),
            ("[[x]", "[", true),
            ("[]a]", "]", true),
            (r"\Qa.b\E.", "a.bc", true),
            (r"\Qa.b\E", "axb", false),
            ("[[:alpha:]]+", "abc", true),
            ("veth.*|cali.*|tap.*", "veth12", true),
            ("veth.*|cali.*|tap.*", "eth0", false),
        ] {
            let regex = compile(pattern).expect(pattern);
            assert_eq!(regex.is_match(text), expected, "{pattern} on {text:?}");
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for pattern in ["(", "a)(b", "*", r"(?=x)", "(a{1000}){1000}"] {
            assert!(compile(pattern).is_err(), "{pattern}");
        }
    }
}
