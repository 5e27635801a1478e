//! Configuration of the HTTP client, with the keys, names and defaults of Prometheus' HTTP client configuration.
//!
//! The keys stand beside `url`, so that a block of Prometheus' file can be copied unchanged. A file that a key names must
//! be readable when the configuration is read.

use super::secret::{Secret, SecretSource};
use super::tls::TlsConfig;
use super::url::Url;
use crate::yaml::{Key, KeyTable, Node, Section};
use hyper::Uri;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

const PROXY_URL: Key = Key::optional("proxy_url", "URL of a proxy, `http://` or `https://`");
const NO_PROXY: Key = Key::optional("no_proxy", "Hosts that bypass `proxy_url`, separated by commas");
const PROXY_FROM_ENVIRONMENT: Key = Key::with_default(
    "proxy_from_environment",
    "false",
    "Whether `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` apply, instead of `proxy_url`",
);
const PROXY_CONNECT_HEADER: Key = Key::optional(
    "proxy_connect_header",
    "Headers of CONNECT requests to the proxy: a mapping from names to lists of values",
);
const TLS_CONFIG: Key = Key::optional("tls_config", "Trusted authorities and the own certificate, see below");

/// The keys of the HTTP client, in every block that has them.
pub const KEY_TABLES: [KeyTable; 5] = [
    KeyTable::new(
        &["remote_write[]", "remote_read[]", "history[]", "registry.mlflow"],
        &[
            Key::optional("basic_auth", "User name and password. At most one kind of credentials is allowed"),
            Key::optional("authorization", "A fixed token"),
            Key::optional("oauth2", "A token that is fetched and renewed: OAuth 2.0's client credentials"),
            TLS_CONFIG,
            PROXY_URL,
            NO_PROXY,
            PROXY_FROM_ENVIRONMENT,
            PROXY_CONNECT_HEADER,
            Key::with_default("follow_redirects", "true", "Whether redirects are followed"),
            Key::optional(
                "headers",
                "Headers of every request: a mapping from names to values. Headers of the protocol are errors",
            ),
        ],
    ),
    KeyTable::new(
        &[
            "remote_write[].basic_auth",
            "remote_read[].basic_auth",
            "history[].basic_auth",
            "registry.mlflow.basic_auth",
        ],
        &[
            Key::optional("username", "User name"),
            Key::optional("username_file", "File with the user name"),
            Key::optional("password", "Password"),
            Key::optional("password_file", "File with the password"),
        ],
    ),
    KeyTable::new(
        &[
            "remote_write[].authorization",
            "remote_read[].authorization",
            "history[].authorization",
            "registry.mlflow.authorization",
        ],
        &[
            Key::with_default("type", "Bearer", "Authentication scheme"),
            Key::optional("credentials", "Token; this key or `credentials_file` is required"),
            Key::optional("credentials_file", "File with the token"),
        ],
    ),
    KeyTable::new(
        &["remote_write[].oauth2", "remote_read[].oauth2", "history[].oauth2", "registry.mlflow.oauth2"],
        &[
            Key::required("client_id", "promforest", "Identifier of the client"),
            Key::optional("client_secret", "Password of the client"),
            Key::optional("client_secret_file", "File with the password of the client"),
            Key::with_default("scopes", "[]", "Scopes requested for the token"),
            Key::required("token_url", "http://localhost/token", "URL of the token endpoint"),
            Key::optional("endpoint_params", "Further parameters of the token request"),
            TLS_CONFIG,
            PROXY_URL,
            NO_PROXY,
            PROXY_FROM_ENVIRONMENT,
            PROXY_CONNECT_HEADER,
        ],
    ),
    KeyTable::new(
        &[
            "remote_write[].tls_config",
            "remote_write[].oauth2.tls_config",
            "remote_read[].tls_config",
            "remote_read[].oauth2.tls_config",
            "history[].tls_config",
            "history[].oauth2.tls_config",
            "registry.mlflow.tls_config",
            "registry.mlflow.oauth2.tls_config",
        ],
        &super::tls::CLIENT_KEYS,
    ),
];

/// Reads the URL of an endpoint. Records a warning for one without a path: a server without one is another API, or a typing
/// error. `usual_path` is that of Prometheus.
pub fn read_endpoint(node: &Node<'_, '_>, usual_path: &str) -> Option<Url> {
    let url: Url = node.parse(str::parse)?;
    if !url.has_path() {
        node.warn(format!("{url} has no path; that of Prometheus is {usual_path}"));
    }
    Some(url)
}

/// Connection and credentials of one endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientConfig {
    /// Credentials.
    pub auth: Auth,
    /// TLS.
    pub tls: TlsConfig,
    /// Proxy.
    pub proxy: ProxyConfig,
    /// True if redirects are followed.
    pub follow_redirects: bool,
    /// Headers of every request. Debug output hides their values.
    pub headers: HeaderMap,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            auth: Auth::None,
            tls: TlsConfig::default(),
            proxy: ProxyConfig::default(),
            follow_redirects: true,
            headers: HeaderMap::new(),
        }
    }
}

/// Credentials: at most one kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Auth {
    /// No credentials.
    #[default]
    None,
    /// `basic_auth`.
    Basic {
        /// The user name.
        username: SecretSource,
        /// The password.
        password: SecretSource,
    },
    /// `authorization`: a fixed token.
    Token {
        /// The authentication scheme, for example `Bearer`.
        scheme: String,
        /// The token.
        credentials: SecretSource,
    },
    /// `oauth2`: a token that the client fetches and renews.
    OAuth2(Box<OAuth2>),
}

/// `oauth2`: OAuth 2.0's client credentials grant (RFC 6749, section 4.4).
#[derive(Clone, Debug, PartialEq)]
pub struct OAuth2 {
    /// The client's identifier.
    pub client_id: String,
    /// The client's password.
    pub client_secret: SecretSource,
    /// The scopes requested for the token.
    pub scopes: Vec<String>,
    /// The token endpoint.
    pub token_url: Url,
    /// Further parameters of the token request.
    pub endpoint_params: Vec<(String, Secret)>,
    /// TLS of the token endpoint.
    pub tls: TlsConfig,
    /// Proxy of the token endpoint.
    pub proxy: ProxyConfig,
}

/// Proxy of a client.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProxyConfig {
    /// The selection of the proxy.
    pub mode: ProxyMode,
    /// `proxy_connect_header`: headers of CONNECT requests to the proxy.
    pub connect_header: HeaderMap,
}

/// Selection of the proxy for a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ProxyMode {
    /// No proxy.
    #[default]
    Direct,
    /// `proxy_url`.
    Url {
        /// The proxy's URL, which may contain credentials.
        url: Secret,
        /// `no_proxy`: hosts that bypass the proxy.
        no_proxy: String,
    },
    /// `proxy_from_environment`: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`.
    Environment,
}

/// Headers of the protocol or the connection, which `headers` must not set; Prometheus' list.
const RESERVED_HEADERS: [&str; 13] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "user-agent",
    "www-authenticate",
    "x-prometheus-remote-read-version",
    "x-prometheus-remote-write-version",
];

impl ClientConfig {
    /// Reads the keys of a block that has a `url`.
    pub fn read(section: &mut Section<'_, '_>) -> Self {
        let default = Self::default();
        let auth = auth(section);
        let tls = TlsConfig::from_section(section);
        let proxy = ProxyConfig::read(section);
        let follow_redirects = section.flag("follow_redirects", default.follow_redirects);
        let headers = section.get("headers").and_then(|node| headers(&node)).unwrap_or_default();
        section.ignore(&["enable_http2"], "requests are HTTP/1.1");
        section.reject(&["http_headers"], "write headers, a mapping from names to values, instead");
        section.reject(&["bearer_token"], "write authorization: {credentials: TOKEN} instead");
        section.reject(&["bearer_token_file"], "write authorization: {credentials_file: FILE} instead");
        Self { auth, tls, proxy, follow_redirects, headers }
    }
}

fn auth(section: &mut Section<'_, '_>) -> Auth {
    let kinds = ["basic_auth", "authorization", "oauth2"].map(|key| (key, section.get(key)));
    let mut present = kinds.iter().filter_map(|(key, node)| Some((key, node.as_ref()?)));
    if let Some((first, _)) = present.next() {
        for (_, second) in present {
            second.error(format!("{first} is also set: only one kind of credentials is allowed"));
        }
    }
    let [basic, token, oauth2] = kinds.map(|(_, node)| node.and_then(Node::section));
    if let Some(mut section) = basic {
        let username =
            SecretSource::from_section(&mut section, "username", "username_file").unwrap_or_default();
        let password =
            SecretSource::from_section(&mut section, "password", "password_file").unwrap_or_default();
        section.deny_unknown();
        Auth::Basic { username, password }
    } else if let Some(section) = token {
        authorization(section)
    } else if let Some(section) = oauth2 {
        OAuth2::read(section).map_or(Auth::None, |oauth2| Auth::OAuth2(Box::new(oauth2)))
    } else {
        Auth::None
    }
}

fn authorization(mut section: Section<'_, '_>) -> Auth {
    let scheme = section.get("type").and_then(|node| {
        let scheme = node.string()?.trim().to_string();
        if scheme.eq_ignore_ascii_case("basic") {
            node.error("write basic_auth, with username and password, instead");
        }
        Some(scheme).filter(|scheme| !scheme.is_empty())
    });
    let credentials = SecretSource::from_section(&mut section, "credentials", "credentials_file");
    if credentials.is_none() {
        section.error("credentials or credentials_file is missing");
    }
    section.deny_unknown();
    let scheme = scheme.unwrap_or_else(|| "Bearer".into());
    Auth::Token { scheme, credentials: credentials.unwrap_or_default() }
}

impl OAuth2 {
    fn read(mut section: Section<'_, '_>) -> Option<Self> {
        let client_id = section.require("client_id").and_then(|node| node.string());
        let client_secret = SecretSource::from_section(&mut section, "client_secret", "client_secret_file")
            .unwrap_or_default();
        let scopes = section.get("scopes").and_then(|node| node.items()).unwrap_or_default();
        let token_url = section.require("token_url").and_then(|node| node.parse(str::parse));
        let params = section.get("endpoint_params").and_then(|node| node.entries()).unwrap_or_default();
        let tls = TlsConfig::from_section(&mut section);
        let proxy = ProxyConfig::read(&mut section);
        section.deny_unknown();
        let param = |(name, value): (String, Node<'_, '_>)| Some((name, Secret::from(value.string()?)));
        Some(Self {
            scopes: scopes.iter().filter_map(Node::string).collect(),
            endpoint_params: params.into_iter().filter_map(param).collect(),
            client_id: client_id?,
            client_secret,
            token_url: token_url?,
            tls,
            proxy,
        })
    }
}

impl ProxyConfig {
    fn read(section: &mut Section<'_, '_>) -> Self {
        let url = section.get("proxy_url").and_then(|node| {
            let url = node.string()?;
            let is_proxy = |uri: Uri| {
                matches!(uri.scheme_str(), Some("http" | "https"))
                    && uri.host().is_some_and(|h| !h.is_empty())
            };
            // The message does not show the value: it may contain a password.
            if !url.parse().is_ok_and(is_proxy) {
                node.error("not an http:// or https:// URL with a host");
            }
            Some(Secret::from(url))
        });
        let no_proxy = section.get("no_proxy");
        let from_environment = section.flag("proxy_from_environment", false);
        let connect_header = section.get("proxy_connect_header");
        if from_environment && url.is_some() {
            section
                .error("proxy_url and proxy_from_environment are both set: only one of the two is allowed");
        }
        if let Some(node) = no_proxy.as_ref().filter(|_| url.is_none()) {
            node.error("needs proxy_url: with proxy_from_environment, NO_PROXY applies");
        }
        if let Some(node) = connect_header.as_ref().filter(|_| url.is_none() && !from_environment) {
            node.error("needs proxy_url or proxy_from_environment");
        }
        let no_proxy = no_proxy.and_then(|node| node.string()).unwrap_or_default();
        let mode = match url {
            Some(url) => ProxyMode::Url { url, no_proxy },
            None if from_environment => ProxyMode::Environment,
            None => ProxyMode::Direct,
        };
        Self { mode, connect_header: connect_header.map(|node| connect_headers(&node)).unwrap_or_default() }
    }
}

/// Parses a mapping from header names to lists of values.
fn connect_headers(node: &Node<'_, '_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, list) in node.entries().unwrap_or_default() {
        let Some(name) = header_name(&list, &name) else { continue };
        let values = list.items().unwrap_or_default();
        headers.extend(values.iter().filter_map(header_value).map(|value| (name.clone(), value)));
    }
    headers
}

/// Parses a mapping from header names to values; reserved headers are errors.
fn headers(node: &Node<'_, '_>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, node) in node.entries()? {
        let (Some(name), Some(value)) = (header_name(&node, &name), header_value(&node)) else { continue };
        if name == AUTHORIZATION {
            node.error("write basic_auth, authorization or oauth2 instead");
        } else if RESERVED_HEADERS.contains(&name.as_str()) {
            node.error("this header belongs to the protocol");
        }
        headers.insert(name, value);
    }
    Some(headers)
}

fn header_name(node: &Node<'_, '_>, name: &str) -> Option<HeaderName> {
    let parsed = name.parse().ok();
    if parsed.is_none() {
        node.error(format!("{name:?} is not a valid header name"));
    }
    parsed
}

/// Parses the value of a header. Debug output hides it.
pub(super) fn header_value(node: &Node<'_, '_>) -> Option<HeaderValue> {
    let Ok(mut value) = HeaderValue::try_from(node.string()?) else {
        node.error("contains a character that a header cannot have");
        return None;
    };
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::super::tls::TlsVersion;
    use super::*;
    use rustls::pki_types::ServerName;
    use std::path::Path;

    fn read(text: &str) -> Result<ClientConfig, Vec<crate::yaml::Error>> {
        crate::yaml::read(text, Path::new("/etc/promforest"), |mut top| {
            let config = ClientConfig::read(&mut top);
            top.deny_unknown();
            config
        })
    }

    #[test]
    fn an_empty_section_is_the_default() {
        let default = ClientConfig::default();
        assert!(default.follow_redirects);
        assert_eq!(read(""), Ok(default));
    }

    #[test]
    fn every_key_sets_its_field() {
        let config = read(
            "authorization: {credentials: a}\n\
             proxy_url: http://proxy\n\
             no_proxy: near\n\
             follow_redirects: false\n\
             tls_config: {server_name: name, min_version: TLS13, insecure_skip_verify: true}\n\
             headers: {X-Key: b}",
        )
        .expect("valid");
        let inline = |text: &str| SecretSource::Inline(Secret::from(text.to_string()));
        assert_eq!(config.auth, Auth::Token { scheme: "Bearer".into(), credentials: inline("a") });
        let (url, no_proxy) = (Secret::from("http://proxy".to_string()), "near".into());
        assert_eq!(config.proxy.mode, ProxyMode::Url { url, no_proxy });
        assert!(!config.follow_redirects);
        assert!(config.tls.insecure_skip_verify);
        assert_eq!((config.tls.min_version, config.tls.max_version), (TlsVersion::Tls13, None));
        assert_eq!(config.tls.server_name, ServerName::try_from("name").ok());
        assert_eq!(config.headers.get("x-key"), Some(&HeaderValue::from_static("b")));
        assert_ne!(read("basic_auth: {password: a}"), read("basic_auth: {password: b}"));
    }

    #[test]
    fn secrets_do_not_show() {
        for text in [
            "basic_auth: {username: hunter2, password: hunter2}",
            "authorization: {credentials: hunter2}",
            "oauth2: {client_id: a, client_secret: hunter2, token_url: 'http://a', endpoint_params: {b: hunter2}}",
            "proxy_url: http://a:hunter2@b\nproxy_connect_header: {c: [hunter2]}",
            "headers: {a: hunter2}",
        ] {
            let shown = format!("{:?}", read(text).expect(text));
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}
