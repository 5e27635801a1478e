//! URLs that the client can request.

use hyper::Uri;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// An `http://` or `https://` URL with a host and without credentials. Clones share it. It prints without the values of its
/// query, which may be tokens: [`Url::expose`] has them.
#[derive(Clone, PartialEq)]
pub struct Url(Arc<Uri>);

/// A text that is not a [`Url`].
#[derive(Debug, thiserror::Error)]
pub enum InvalidUrl {
    /// The text is not a URL.
    #[error("{text:?} is not a URL")]
    Syntax {
        /// The text without credentials and values of a query.
        text: String,
        /// The parser's reason.
        source: hyper::http::uri::InvalidUri,
    },
    /// The scheme is neither `http` nor `https`, or the host is missing.
    #[error("{0:?} is not an http:// or https:// URL with a host")]
    Unsupported(String),
    /// The URL contains credentials, which logs and errors would show.
    #[error("credentials in a URL are not supported: use basic_auth")]
    Credentials,
}

impl FromStr for Url {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let uri: Uri = text.parse().map_err(|source| InvalidUrl::Syntax { text: redact(text), source })?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(InvalidUrl::Credentials);
        }
        let is_supported = matches!(uri.scheme_str(), Some("http" | "https"));
        if is_supported && uri.host().is_some_and(|host| !host.is_empty()) {
            Ok(Self(Arc::new(uri)))
        } else {
            Err(InvalidUrl::Unsupported(redact(text)))
        }
    }
}

/// Encodes all characters but the unreserved ones (RFC 3986, section 2.3).
pub fn percent_encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// The query of these pairs, `a=b&c=d`, percent-encoded; a body of the type `application/x-www-form-urlencoded` too.
pub fn encode_query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let encode = |(name, value)| format!("{}={}", percent_encode(name), percent_encode(value));
    pairs.into_iter().map(encode).collect::<Vec<String>>().join("&")
}

/// The pairs of a query, `a=b&c=d`, decoded; a part without `=` is a name. Bytes that are not UTF-8 become U+FFFD.
pub fn parse_query(query: &str) -> Vec<(String, String)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    let pairs = parts.map(|part| part.split_once('=').unwrap_or((part, "")));
    pairs.map(|(name, value)| (percent_decode(name), percent_decode(value))).collect()
}

/// Decodes `%41` and, as in a form, `+`; other text stays as it is.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let decoded =
            digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        rest = if decoded.is_some() { &after[2..] } else { after };
        bytes.push(decoded.unwrap_or(if *first == b'+' { b' ' } else { *first }));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A URL with `<secret>` in place of the values of its query; another text as it is.
pub fn hide_query_values(text: &str) -> String {
    let base = text.split('?').next().unwrap_or_default();
    match base.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme)) {
        true => hide_values_after_mark(text),
        false => text.into(),
    }
}

/// A URL, absolute or relative, with `<secret>` in place of the values after its `?`.
pub(super) fn hide_values_after_mark(text: &str) -> String {
    let Some((base, query)) = text.split_once('?') else { return text.into() };
    let hide = |part: &str| match part.split_once('=') {
        Some((name, _)) => format!("{name}=<secret>"),
        None if part.is_empty() => String::new(),
        None => "<secret>".into(),
    };
    format!("{base}?{}", query.split('&').map(hide).collect::<Vec<_>>().join("&"))
}

fn is_scheme(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// A text that may be a URL, without what may be credentials: everything before its last `@`, up to a scheme, and the
/// values of a query.
fn redact(text: &str) -> String {
    let Some((credentials, host)) = text.rsplit_once('@') else { return hide_values_after_mark(text) };
    let scheme = credentials.find("://").map_or("", |end| &credentials[..end + 3]);
    format!("{scheme}<secret>@{}", hide_values_after_mark(host))
}

impl Url {
    /// Host and port, as in Prometheus' `instance` label.
    pub fn authority(&self) -> String {
        self.0.authority().map(ToString::to_string).unwrap_or_default()
    }

    /// The URL with the values of its query, for requests and links.
    pub fn expose(&self) -> String {
        self.0.to_string()
    }

    /// The query without its `?`, which may hold secrets.
    pub fn query(&self) -> Option<&str> {
        self.0.query()
    }

    /// True if the URL names more than a server.
    pub fn has_path(&self) -> bool {
        self.0.path().len() > 1
    }

    /// True if both URLs are in one folder of one server, as Prometheus' `/api/v1/write` and `/api/v1/read` are.
    pub fn is_sibling(&self, other: &Self) -> bool {
        let folder = |url: &Self| url.0.path().rsplit_once('/').map(|(folder, _)| folder.to_string());
        self.0.scheme() == other.0.scheme()
            && self.0.authority() == other.0.authority()
            && folder(self) == folder(other)
    }

    /// This URL with a path appended to its own, and a query of percent-encoded names and values in place of its own.
    ///
    /// # Errors
    /// [`InvalidUrl::Syntax`] if the URL becomes too long.
    pub fn with_path_and_query(&self, path: &str, query: &[(&str, String)]) -> Result<Self, InvalidUrl> {
        let scheme = self.0.scheme_str().unwrap_or_default();
        let query = encode_query(query.iter().map(|(name, value)| (*name, value.as_str())));
        let own = self.0.path().trim_end_matches('/');
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{scheme}://{}{own}{path}{mark}{query}", self.authority()).parse()
    }

    /// The URL as hyper's type.
    pub(super) fn as_uri(&self) -> &Uri {
        &self.0
    }

    fn is_encrypted(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    /// True if credentials for this URL may be sent to `next`: to the same host with any port, as in Go's client, but
    /// not from `https` to `http`.
    pub(super) fn may_send_credentials_to(&self, next: &Self) -> bool {
        self.0.host() == next.0.host() && (next.is_encrypted() || !self.is_encrypted())
    }

    /// Resolves a `Location` header relative to this URL (RFC 3986, section 4.2).
    pub(super) fn join(&self, location: &str) -> Result<Self, InvalidUrl> {
        let scheme = self.0.scheme_str().unwrap_or_default();
        let authority = self.authority();
        if location.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme)) {
            location.parse()
        } else if location.starts_with("//") {
            format!("{scheme}:{location}").parse()
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}").parse()
        } else {
            let folder = self.0.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{scheme}://{authority}{folder}/{location}").parse()
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hide_values_after_mark(&self.expose()))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect("a URL")
    }

    #[test]
    fn only_supported_urls_parse() {
        assert_eq!(url("https://host:8443/a?b=c").expose(), "https://host:8443/a?b=c");
        let error = |text: &str| text.parse::<Url>().expect_err("no URL").to_string();
        assert_eq!(error("ftp://host/"), "\"ftp://host/\" is not an http:// or https:// URL with a host");
        for text in [
            "https://me:hunter2@host/",
            "ftp://me:hunter2@host/",
            "me:hunter2@host/a b",
            "http://me:hun/ter2@ho st/",
            "ftp://host/?token=hunter2",
            "http://ho st/?token=hunter2",
            "host/?hunter2 ",
        ] {
            let error = error(text);
            assert!(!error.contains("hun") && !error.contains("ter2"), "{error}");
        }
        assert_eq!(error("ftp://me:hunter2@host/"), "credentials in a URL are not supported: use basic_auth");
        assert_eq!(error("http://me:x@ho st/"), "\"http://<secret>@ho st/\" is not a URL");
    }

    #[test]
    fn a_shown_url_has_no_values_of_its_query() {
        for (text, shown) in [
            ("http://host/write?u=me&p=hunter2", "http://host/write?u=<secret>&p=<secret>"),
            ("https://host/?hunter2", "https://host/?<secret>"),
            ("http://host/write", "http://host/write"),
            ("http://host/?a=hun?ter=2&", "http://host/?a=<secret>&"),
        ] {
            assert_eq!(url(text).to_string(), shown);
            assert_eq!(format!("{:?}", url(text)), format!("{shown:?}"));
        }
        let selector = r#"{page="http://host/?a=b"}"#;
        assert_eq!(hide_query_values(selector), selector);
    }

    #[test]
    fn a_path_and_a_query_are_appended() {
        let base = url("http://host/prometheus/");
        let query = [("match[]", r#"{a=~"b c|é"}"#.to_string()), ("start", "1".to_string())];
        let expected =
            "http://host/prometheus/api/v1/series?match%5B%5D=%7Ba%3D~%22b%20c%7C%C3%A9%22%7D&start=1";
        let joined = base.with_path_and_query("/api/v1/series", &query).expect("short enough");
        assert_eq!(joined.expose(), expected);
    }

    #[test]
    fn a_query_is_decoded_and_a_damaged_one_stays_text() {
        let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
        let text = "a b/é%&=+";
        let query = format!("job={}&&empty&x=1+2", percent_encode(text));
        assert_eq!(parse_query(&query), [pair("job", text), pair("empty", ""), pair("x", "1 2")]);
        assert_eq!(
            parse_query("a=%4&b=%zz&c=%ff&%"),
            [pair("a", "%4"), pair("b", "%zz"), pair("c", "\u{fffd}"), pair("%", "")]
        );
    }

    #[test]
    fn a_location_may_be_relative() {
        let base = url("https://host:8443/a/b?c=d");
        for (location, expected) in [
            ("http://other/x", "http://other/x"),
            ("//other/x?y=1", "https://other/x?y=1"),
            ("/x", "https://host:8443/x"),
            ("/x?back=http://other/", "https://host:8443/x?back=http://other/"),
            ("x?y=2", "https://host:8443/a/x?y=2"),
        ] {
            assert_eq!(base.join(location).expect(location), url(expected));
        }
        assert!(base.join("gopher://other/").is_err());
        assert!(base.join("/a b").is_err());
        assert_eq!(url("http://host").join("x").expect("a path"), url("http://host/x"));
    }

    #[test]
    fn credentials_are_sent_to_the_same_host_only_and_never_downgraded_to_http() {
        let may_send = |from: &str, to: &str| url(from).may_send_credentials_to(&url(to));
        assert!(may_send("http://host/a", "http://host/b"));
        assert!(may_send("http://host/", "https://host/"));
        assert!(may_send("https://host/", "https://host:8443/"));
        assert!(!may_send("https://host/", "http://host/"));
        assert!(!may_send("https://host/", "https://other/"));
        assert!(!may_send("https://host/", "https://host.other/"));
    }
}
