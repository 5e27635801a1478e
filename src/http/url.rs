//! URLs that the client can request.

use hyper::Uri;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// An `http://` or `https://` URL with a host and without credentials. Clones share it.
#[derive(Clone, Debug, PartialEq)]
pub struct Url(Arc<Uri>);

/// A text that is not a [`Url`].
#[derive(Debug, thiserror::Error)]
pub enum InvalidUrl {
    /// The text is not a URL.
    #[error("{text:?} is not a URL")]
    Syntax {
        /// The text.
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
        let uri: Uri = text.parse().map_err(|source| InvalidUrl::Syntax { text: text.into(), source })?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(InvalidUrl::Credentials);
        }
        let is_supported = matches!(uri.scheme_str(), Some("http" | "https"));
        if is_supported && uri.host().is_some_and(|host| !host.is_empty()) {
            Ok(Self(Arc::new(uri)))
        } else {
            Err(InvalidUrl::Unsupported(text.into()))
        }
    }
}

impl Url {
    /// Host and port, as in Prometheus' `instance` label.
    pub fn authority(&self) -> String {
        self.0.authority().map(ToString::to_string).unwrap_or_default()
    }

    /// True if both URLs are in one folder of one server, as Prometheus' `/api/v1/write` and `/api/v1/read` are.
    pub fn is_sibling(&self, other: &Self) -> bool {
        let folder = |url: &Self| url.0.path().rsplit_once('/').map(|(folder, _)| folder.to_string());
        self.0.scheme() == other.0.scheme()
            && self.0.authority() == other.0.authority()
            && folder(self) == folder(other)
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
        let is_scheme = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric());
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
        self.0.fmt(f)
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
        assert_eq!(url("https://host:8443/a?b=c").to_string(), "https://host:8443/a?b=c");
        let error = |text: &str| text.parse::<Url>().expect_err("no URL").to_string();
        assert_eq!(error("ftp://host/"), "\"ftp://host/\" is not an http:// or https:// URL with a host");
        assert!(!error("https://me:hunter2@host/").contains("hunter2"));
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
