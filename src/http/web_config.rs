//! `--web.config.file`: TLS, users, response headers and rate limit of the server, in the format of Prometheus'
//! exporter-toolkit, so that the file of another component can be used unchanged.
//!
//! An unsupported setting is an error and not ignored: otherwise a file would promise protection that is not there.

use super::basic_auth::Users;
use super::config::header_value;
use super::secret::SecretSource;
use super::tls::TlsServerConfig;
use crate::prom::duration;
use crate::yaml::{self, FileError, Node, Section};
use hyper::header::{
    CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS, X_XSS_PROTECTION,
};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The contents of the file. The default admits all requests.
#[derive(Debug, Default)]
pub struct WebConfig {
    /// TLS.
    pub tls: Option<TlsServerConfig>,
    /// Headers of every response.
    pub headers: HeaderMap,
    /// Users with passwords.
    pub users: Users,
    /// Limit on the rate of requests.
    pub rate_limit: Option<RateLimit>,
}

/// `rate_limit`: a token bucket of `burst` requests that gains one request every `interval`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Time in which the bucket gains one request.
    pub interval: Duration,
    /// Size of the bucket.
    pub burst: NonZeroU32,
}

impl WebConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// [`FileError`] with all errors of the file.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        yaml::load(path, Self::read)
    }

    fn read(mut top: Section<'_, '_>) -> Self {
        let tls = top.get("tls_server_config").and_then(Node::section).and_then(TlsServerConfig::read);
        let headers = top.get("http_server_config").and_then(Node::section).map(http_server_headers);
        let users = top.get("basic_auth_users").and_then(|node| users(&node));
        let rate_limit = top.get("rate_limit").and_then(Node::section).and_then(RateLimit::read);
        top.deny_unknown();
        Self { tls, headers: headers.unwrap_or_default(), users: users.unwrap_or_default(), rate_limit }
    }

    /// The files that the configuration names.
    pub fn files(&self) -> Vec<PathBuf> {
        let sources = self.tls.iter().flat_map(TlsServerConfig::sources);
        sources
            .filter_map(|source| match source {
                SecretSource::File(path) => Some(path.clone()),
                SecretSource::Inline(_) => None,
            })
            .collect()
    }
}

/// Headers that may be added to responses, with their allowed values; any value if empty.
const HEADERS: [(&str, HeaderName, &[&str]); 5] = [
    ("Strict-Transport-Security", STRICT_TRANSPORT_SECURITY, &[]),
    ("X-Content-Type-Options", X_CONTENT_TYPE_OPTIONS, &["nosniff"]),
    ("X-Frame-Options", X_FRAME_OPTIONS, &["deny", "sameorigin"]),
    ("X-XSS-Protection", X_XSS_PROTECTION, &[]),
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY, &[]),
];

/// Reads the headers of `http_server_config`.
fn http_server_headers(mut section: Section<'_, '_>) -> HeaderMap {
    // The server supports HTTP/1.1 only, as does every client: both values are accepted.
    section.flag("http2", true);
    let mut headers = HeaderMap::new();
    if let Some(mut section) = section.get("headers").and_then(Node::section) {
        for (key, name, values) in HEADERS {
            let Some(node) = section.get(key) else { continue };
            let Some(value) = header_value(&node) else { continue };
            if !values.is_empty() && !values.iter().any(|allowed| value == *allowed) {
                node.error(format!("must be {}", values.join(" or ")));
            }
            if !value.is_empty() {
                headers.insert(name, value);
            }
        }
        section.deny_unknown();
    }
    section.deny_unknown();
    headers
}

fn users(node: &Node<'_, '_>) -> Option<Users> {
    let mut users = Users::default();
    for (name, node) in node.entries()? {
        if name.contains(':') {
            node.error("a user name must not contain a colon");
        }
        let Some(hash) = node.string() else { continue };
        if let Err(error) = users.add(name, hash) {
            node.error(crate::error::chain(&error));
        }
    }
    Some(users)
}

impl RateLimit {
    fn read(mut section: Section<'_, '_>) -> Option<Self> {
        let interval = section.get("interval").and_then(|node| node.parse(duration::parse));
        let interval = interval.filter(|interval| !interval.is_zero());
        let burst = section.get("burst");
        if interval.is_some() && burst.is_none() {
            section.error("burst is missing: without it all requests are denied");
        }
        let burst = burst.and_then(|node| node.value("a whole number of at least 1"));
        section.deny_unknown();
        Some(Self { interval: interval?, burst: burst? })
    }
}
