//! Prometheus' regular expressions (Go's RE2 dialect, anchored) on the `regex` crate.
//!
//! The two dialects differ in details: the meaning of `\w`, the members of a class, the set of flags, escapes and
//! repetitions. A pattern is therefore parsed token by token by Go's rules and written in syntax that both dialects
//! read alike. Not taken: rewriting the known differences only, which would pass unknown ones. Two kinds of patterns
//! that Go accepts are rejected: those whose compiled form exceeds the size limit, and those with a repetition
//! directly after flags, as in `a(?i)*`.

use regex::{Error, Regex, RegexBuilder};

/// Most bytes of a compiled pattern.
const SIZE_LIMIT: usize = 1 << 20;
/// Most bytes of a pattern: compilation takes a hundred times its length.
const LENGTH_LIMIT: usize = 128 << 10;
/// Most repetitions, the product for nested ones: Go's limit.
const REPEAT_LIMIT: u32 = 1000;

/// Names of classes between `[:` and `:]`.
const ASCII_CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];

/// Compiles the pattern of a matcher. It is anchored at both ends, and a dot matches a newline, as in Prometheus 3.
///
/// # Errors
/// [`Error`] for a pattern that Go rejects too, or that exceeds the size limits.
pub fn compile(pattern: &str) -> Result<Regex, Error> {
    if pattern.len() > LENGTH_LIMIT {
        return Err(syntax_error(&format!("{} bytes are above the limit of {LENGTH_LIMIT}", pattern.len())));
    }
    let pattern = RegexTranslator::translate(pattern)?;
    RegexBuilder::new(&format!("^(?s:{pattern})$")).size_limit(SIZE_LIMIT).build()
}

fn syntax_error(reason: &str) -> Error {
    Error::Syntax(reason.into())
}

/// An open group, or the whole pattern.
#[derive(Default)]
struct RegexGroup {
    /// Most repetitions of an expression in the group.
    max_repeats: u32,
}

/// Translates a pattern from Go's dialect to the crate's.
struct RegexTranslator<'a> {
    rest: &'a str,
    out: String,
    groups: Vec<RegexGroup>,
    /// Repetitions of the last expression.
    last_repeats: u32,
    /// True if the last token is a repetition, which cannot be repeated directly.
    last_is_repetition: bool,
}

impl<'a> RegexTranslator<'a> {
    fn translate(pattern: &'a str) -> Result<String, Error> {
        let groups = vec![RegexGroup::default()];
        let out = String::with_capacity(pattern.len());
        let mut translator = Self { rest: pattern, out, groups, last_repeats: 1, last_is_repetition: false };
        while let Some(c) = translator.rest.chars().next() {
            translator.translate_token(c)?;
        }
        if translator.groups.len() > 1 {
            return Err(syntax_error("unclosed group"));
        }
        Ok(translator.out)
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn eat(&mut self, prefix: &str) -> bool {
        let rest = self.rest.strip_prefix(prefix);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn push_literal(&mut self, c: char) {
        self.out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
    }

    fn translate_token(&mut self, c: char) -> Result<(), Error> {
        let bounds = match c {
            '*' | '+' | '?' => Some((&self.rest[..1], 1)),
            '{' => parse_repetition(self.rest)?,
            _ => None,
        };
        if let Some((text, repeats)) = bounds {
            return self.translate_repetition(text, repeats);
        }
        self.last_is_repetition = false;
        self.last_repeats = 1;
        self.next();
        match c {
            '(' => self.open_group()?,
            ')' => {
                let group = self.groups.pop().unwrap_or_default();
                let Some(outer) = self.groups.last_mut() else {
                    return Err(syntax_error("unopened group"));
                };
                outer.max_repeats = outer.max_repeats.max(group.max_repeats);
                self.last_repeats = group.max_repeats.max(1);
                self.out.push(')');
            }
            '[' => self.translate_class()?,
            '\\' => self.translate_escape()?,
            '.' | '^' | '$' | '|' => self.out.push(c),
            c => self.push_literal(c),
        }
        Ok(())
    }

    /// Translates a repetition. Greediness does not change whether a whole value matches, so `?` is dropped.
    fn translate_repetition(&mut self, text: &str, repeats: u32) -> Result<(), Error> {
        self.rest = &self.rest[text.len()..];
        self.eat("?");
        if self.last_is_repetition {
            return Err(syntax_error(&format!("a repetition is repeated by {text}")));
        }
        self.last_is_repetition = true;
        self.last_repeats = self.last_repeats.saturating_mul(repeats);
        if self.last_repeats > REPEAT_LIMIT {
            return Err(syntax_error(&format!("{text} repeats more than {REPEAT_LIMIT} times, all in all")));
        }
        if let Some(group) = self.groups.last_mut() {
            group.max_repeats = group.max_repeats.max(self.last_repeats);
        }
        self.out.push_str(text);
        Ok(())
    }

    /// Opens a group, after its `(`.
    fn open_group(&mut self) -> Result<(), Error> {
        if self.eat("?P<") || self.eat("?<") {
            let (name, rest) = self.rest.split_once('>').unwrap_or_default();
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() || !name.chars().all(is_word) {
                return Err(syntax_error("the name of a group is invalid"));
            }
            self.rest = rest;
        } else if self.eat("?") {
            return self.translate_flags();
        }
        self.groups.push(RegexGroup::default());
        self.out.push_str("(?:");
        Ok(())
    }

    /// Translates flags, after their `(?`. Drops `U`, which swaps greediness.
    fn translate_flags(&mut self) -> Result<(), Error> {
        let (mut on, mut off, mut is_off, mut is_seen) = (String::new(), String::new(), false, true);
        let end = loop {
            match self.next() {
                Some(flag @ ('i' | 'm' | 's' | 'U')) => {
                    is_seen = true;
                    on.retain(|c| c != flag);
                    off.retain(|c| c != flag);
                    match (flag, is_off) {
                        ('U', _) => {}
                        (_, false) => on.push(flag),
                        (_, true) => off.push(flag),
                    }
                }
                Some('-') if !is_off => (is_off, is_seen) = (true, false),
                Some(end @ (':' | ')')) if is_seen => break end,
                _ => return Err(syntax_error("a group begins with flags other than i, m, s and U")),
            }
        };
        let minus = if off.is_empty() { "" } else { "-" };
        if end == ':' {
            self.groups.push(RegexGroup::default());
        } else if on.is_empty() && off.is_empty() {
            return Ok(());
        }
        self.out.extend(["(?", &on, minus, &off]);
        self.out.push(end);
        Ok(())
    }

    /// Translates an escape outside of classes, after its backslash.
    fn translate_escape(&mut self) -> Result<(), Error> {
        if self.eat("Q") {
            // In Prometheus, a quotation without an end would also quote the parenthesis that closes the anchored pattern.
            let Some((quoted, rest)) = self.rest.split_once(r"\E") else {
                return Err(syntax_error("a quotation has no end"));
            };
            self.out.push_str(&regex::escape(quoted));
            self.rest = rest;
        } else if self.eat("A") {
            self.out.push_str(r"\A");
        } else if self.eat("z") {
            self.out.push_str(r"\z");
        } else if self.eat("b") {
            self.out.push_str(r"(?-u:\b)");
        } else if self.eat("B") {
            self.out.push_str(r"(?-u:\B)");
        } else if !self.translate_named_class()? {
            let c = self.parse_escaped_char()?;
            self.push_literal(c);
        }
        Ok(())
    }

    /// Translates a named class such as `\d` or `\p{Greek}`, after its backslash. Returns false for other escapes.
    /// The crate accepts more names of Unicode classes than Go.
    fn translate_named_class(&mut self) -> Result<bool, Error> {
        let class = match self.rest.chars().next() {
            Some('d') => "[0-9]",
            Some('D') => "[^0-9]",
            Some('w') => "[0-9A-Za-z_]",
            Some('W') => "[^0-9A-Za-z_]",
            Some('s') => r"[\t\n\f\r ]",
            Some('S') => r"[^\t\n\f\r ]",
            Some('p' | 'P') => {
                let mut is_negative = self.next() == Some('P');
                let mut name = self.next().map(String::from).unwrap_or_default();
                if name == "{" {
                    let (braced, rest) = self.rest.split_once('}').unwrap_or_default();
                    self.rest = rest;
                    is_negative ^= braced.starts_with('^');
                    name = braced.trim_start_matches('^').into();
                }
                if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphabetic() || c == '_') {
                    return Err(syntax_error("a class of Unicode has an invalid name"));
                }
                self.out.push_str(if is_negative { r"\P{" } else { r"\p{" });
                self.out.push_str(&name);
                self.out.push('}');
                return Ok(true);
            }
            _ => return Ok(false),
        };
        self.next();
        self.out.push_str(class);
        Ok(true)
    }

    /// Parses an escaped character, after its backslash.
    fn parse_escaped_char(&mut self) -> Result<char, Error> {
        let escaped = self.rest;
        let character = match self.next() {
            None => return Err(syntax_error("a backslash ends the pattern")),
            Some('a') => Some('\x07'),
            Some('f') => Some('\x0C'),
            Some('n') => Some('\n'),
            Some('r') => Some('\r'),
            Some('t') => Some('\t'),
            Some('v') => Some('\x0B'),
            Some('x') => self.parse_hex_char(),
            Some(digit @ '0'..='7') => {
                let digits = escaped.len() - escaped.trim_start_matches(|c| matches!(c, '0'..='7')).len();
                let (octal, rest) = escaped.split_at(digits.min(3));
                self.rest = rest;
                // A single digit would be a back-reference to a group.
                let is_octal = digit == '0' || octal.len() > 1;
                is_octal.then(|| u32::from_str_radix(octal, 8).ok().and_then(char::from_u32)).flatten()
            }
            Some(c) if c.is_ascii() && !c.is_ascii_alphanumeric() => Some(c),
            Some(_) => None,
        };
        character.ok_or_else(|| {
            let shown: String = escaped.chars().take(1).collect();
            syntax_error(&format!(r"invalid escape \{shown}"))
        })
    }

    /// Parses a hexadecimal character, after its `\x`: two digits, or any number of digits in braces.
    fn parse_hex_char(&mut self) -> Option<char> {
        let digits;
        (digits, self.rest) = match self.rest.strip_prefix('{') {
            Some(rest) => rest.split_once('}')?,
            None => self.rest.split_at_checked(2)?,
        };
        let is_hexadecimal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        char::from_u32(u32::from_str_radix(digits, 16).ok().filter(|_| is_hexadecimal)?)
    }

    /// Translates a class, after its `[`.
    fn translate_class(&mut self) -> Result<(), Error> {
        self.out.push('[');
        if self.eat("^") {
            self.out.push('^');
        }
        let mut is_first = true;
        // A `]` as the first member is a literal.
        while is_first || !self.eat("]") {
            is_first = false;
            if let Some((name, rest)) = self.rest.strip_prefix("[:").and_then(|rest| rest.split_once(":]")) {
                if !ASCII_CLASSES.contains(&name.strip_prefix('^').unwrap_or(name)) {
                    return Err(syntax_error(&format!("there is no class [:{name}:]")));
                }
                self.rest = rest;
                self.out.extend(["[:", name, ":]"]);
                continue;
            }
            let is_escape = self.eat(r"\");
            if is_escape && self.translate_named_class()? {
                continue;
            }
            let first = self.parse_class_member(is_escape)?;
            self.push_literal(first);
            if !self.rest.starts_with("-]") && self.eat("-") {
                let is_escape = self.eat(r"\");
                let last = self.parse_class_member(is_escape)?;
                self.out.push('-');
                self.push_literal(last);
            }
        }
        self.out.push(']');
        Ok(())
    }

    /// Parses a character of a class, after its backslash if it has one.
    fn parse_class_member(&mut self, is_escape: bool) -> Result<char, Error> {
        if is_escape {
            return self.parse_escaped_char();
        }
        self.next().ok_or_else(|| syntax_error("unclosed class"))
    }
}

/// Parses `{n}`, `{n,}` or `{n,m}` at the start of `text`: the repetition's text, and its count for the limit.
/// Returns `None` for other text in braces, which is literal.
fn parse_repetition(text: &str) -> Result<Option<(&str, u32)>, Error> {
    let Some((inner, _)) = text[1..].split_once('}') else { return Ok(None) };
    let (min, max) = match inner.split_once(',') {
        None => (inner, Some(inner)),
        Some((min, "")) => (min, None),
        Some((min, max)) => (min, Some(max)),
    };
    let is_number = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_digit())
            && (text == "0" || !text.starts_with('0'))
    };
    if !is_number(min) || !max.is_none_or(is_number) {
        return Ok(None);
    }
    let text = &text[..inner.len() + 2];
    let number = |text: &str| text.parse().ok().filter(|number| *number <= REPEAT_LIMIT);
    let bounds = number(min).zip(max.map_or(Some(None), |max| number(max).map(Some)));
    match bounds {
        Some((min, Some(max))) if min <= max => Ok(Some((text, max))),
        Some((min, None)) => Ok(Some((text, min.max(1)))),
        _ => Err(syntax_error(&format!("{text} is not a repetition of at most {REPEAT_LIMIT} times"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verified with Go 1.26: `regexp.MatchString("^(?s:" + pattern + ")$", text)`.
    #[test]
    fn matches_as_go_does() {
        for (pattern, text, expected) in [
            (".*", "", true),
            (".+", "", false),
            ("a|b", "a", true),
            ("a|b", "ab", false),
            ("a|b", "xb", false),
            ("(?i)ABC", "abc", true),
            ("(?i:A)BC", "aBC", true),
            ("(?i:A)BC", "abc", false),
            ("(?i-i)A", "a", false),
            ("(?ii)A", "a", true),
            ("(?U)a+?", "aa", true),
            ("()(?)", "", true),
            ("x.y", "x\ny", true),
            ("(?-s)x.y", "x\ny", false),
            ("foo.?bar", "foo\nbar", true),
            (r"\w+", "é", false),
            (r"\w+", "ığ", false),
            (r"\w+", "λ", false),
            (r"\d+", "٣", false),
            (r"\s", "\u{b}", false),
            (r"[\w.]+", "a.b", true),
            (r"[\W]", "é", true),
            (r"[\D]", "٣", true),
            (r"[\D]", "3", false),
            (r"[\S]", "\u{a0}", true),
            (r"[^\S]", " ", true),
            (r"a[\D\d]b", "a1b", true),
            (r"a\b-", "a-", true),
            (r"é\b-", "é-", false),
            (r"é\B-", "é-", true),
            (r"a\Bb", "ab", true),
            ("[a&&b]", "&", true),
            ("[a&&b]", "b", true),
            ("[a~~b]", "~", true),
            ("[+--]", ",", true),
            ("[[x]", "[", true),
            ("[]a]", "]", true),
            ("[^]a]", "b", true),
            ("[a-]", "-", true),
            (r"[\d-z]", "-", true),
            (r"[\d-z]", "5", true),
            (r"[\]\-]+", "-]", true),
            (r"\<a\>", "<a>", true),
            (r"\Qa.b\E.", "a.bc", true),
            (r"\Qa.b\E", "axb", false),
            (r"\Qab\E+", "abb", true),
            ("[[:alpha:]]+", "abc", true),
            ("[[:^alpha:]]", "1", true),
            ("[[:alpha]", ":", true),
            (r"\123\0\x41\x{1F600}", "S\0A😀", true),
            (r"[\101-\103]", "B", true),
            (r"\1012", "A2", true),
            (r"\_\%\a\v", "_%\u{7}\u{b}", true),
            ("{", "{", true),
            ("x{a}", "x{a}", true),
            ("a{,3}", "a{,3}", true),
            ("a{01}", "a{01}", true),
            ("a{2,}b{0}", "aaa", true),
            ("(?P<n>a)(?<m_2>b)(?P<3>c)(?P<n>d)", "abcd", true),
            (r"\p{Greek}\PL\p{^Greek}\pL", "λ1aλ", true),
            ("veth.*|cali.*|tap.*", "veth12", true),
            ("veth.*|cali.*|tap.*", "eth0", false),
        ] {
            let regex = compile(pattern).expect(pattern);
            assert_eq!(regex.is_match(text), expected, "{pattern} on {text:?}");
        }
    }

    #[test]
    fn b71_patterns_that_go_rejects_are_rejected() {
        for pattern in [
            "(",
            ")",
            "a)(b",
            "*",
            "|*",
            "a**",
            "a+*",
            "a{2}{3}",
            "a???",
            "[",
            "[]",
            "[^]",
            r"\",
            r"[a\",
            r"(?=x)",
            "(?!x)",
            "(?<=x)",
            "(?x)a b",
            "(?u)a",
            "(?R)a",
            "(?-u:a)",
            "(?i-)",
            "(?i",
            "(?i--s)",
            "(?P<>a)",
            "(?P<a-b>a)",
            "(?P=n)",
            "a{1001}",
            "a{1,1001}",
            "a{1001,}",
            "a{2,1}",
            "(a{1000}){1000}",
            "((a{11}b)c{11}|d{101}){10}",
            r"\u0041",
            r"\1",
            r"(a)\1",
            r"\8",
            r"\Z",
            r"\G",
            r"\C",
            r"\q",
            r"\é",
            r"\x",
            r"\x4",
            r"\x{}",
            r"\x{110000}",
            r"\x{+41}",
            r"[\b]",
            r"[\z]",
            r"[\Qa]b\E]",
            r"\Qa.b",
            r"[a-\d]",
            "[b-a]",
            "[a--b]",
            "[[:foo:]]",
            "[[::]]",
            r"\p",
            r"\p{",
            r"\p{}",
            r"\p{Nothing}",
            r"\p{Script=Greek}",
        ] {
            assert!(compile(pattern).is_err(), "{pattern}");
        }
        assert!(compile("(a{10}b{100}|c){10}").is_ok());
        assert!(compile(&"a".repeat(LENGTH_LIMIT + 1)).is_err());
    }
}
