//! How to reach the other side, and what to show it: Prometheus' HTTP client configuration.
//!
//! The keys stand beside `url`, with Prometheus' names and defaults, so that a block of its file
//! can be taken over as it is. A file that a key names has to be there when the configuration is
//! read, and is read again whenever it is used: a secret may change without a reload.

use super::tls;
use crate::http::client::Url;
use crate::yaml::{Node, Section};
use hyper::Uri;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::ServerName;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// How one target or source is spoken to.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientConfig {
    /// What is shown to be let in.
    pub auth: Auth,
    /// Encryption.
    pub tls: TlsConfig,
    /// The way there.
    pub proxy: ProxyConfig,
    /// Does an answer that names another address lead there?
    pub follow_redirects: bool,
    /// Sent with every request. Their values do not show in debugging output.
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

/// What is shown to be let in: one kind at most.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Auth {
    /// Nothing.
    #[default]
    None,
    /// `basic_auth`: a name and a password.
    Basic {
        /// The name.
        username: SecretSource,
        /// The password.
        password: SecretSource,
    },
    /// `authorization`: a token that does not change by itself.
    Token {
        /// What stands before it: `Bearer`, say.
        scheme: String,
        /// The token.
        credentials: SecretSource,
    },
    /// `oauth2`: a token that is fetched, and fetched again before it ends.
    OAuth2(Box<OAuth2>),
}

/// Where tokens are fetched: OAuth 2.0's client credentials grant (RFC 6749, section 4.4).
#[derive(Clone, Debug, PartialEq)]
pub struct OAuth2 {
    /// Who asks.
    pub client_id: String,
    /// Its password.
    pub client_secret: SecretSource,
    /// What the token is to be good for.
    pub scopes: Vec<String>,
    /// Whom to ask.
    pub token_url: Url,
    /// Further parameters of the question.
    pub endpoint_params: Vec<(String, Secret)>,
    /// Encryption on the way to `token_url`.
    pub tls: TlsConfig,
    /// The way to `token_url`.
    pub proxy: ProxyConfig,
}

/// `tls_config`: whom to trust, and who we are. All of it is optional.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsConfig {
    /// PEM certificates of the authorities that are trusted, in place of the machine's.
    pub ca: Option<SecretSource>,
    /// Our certificate and what leads from it to its authority, as PEM; together with `key`.
    pub cert: Option<SecretSource>,
    /// Our certificate's private key, as PEM.
    pub key: Option<SecretSource>,
    /// The name that the other side's certificate has to be for, in place of the URL's host.
    pub server_name: Option<ServerName<'static>>,
    /// Lowest version of TLS.
    pub min_version: TlsVersion,
    /// Highest version of TLS.
    pub max_version: Option<TlsVersion>,
    /// Take any certificate.
    pub insecure_skip_verify: bool,
}

/// A version of TLS. The older ones are broken, and nothing here speaks them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2, of 2008.
    #[default]
    Tls12,
    /// 1.3, of 2018.
    Tls13,
}

/// The way to the other side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProxyConfig {
    /// Which proxy.
    pub mode: ProxyMode,
    /// `proxy_connect_header`: shown to the proxy that is asked for a tunnel.
    pub connect_header: HeaderMap,
}

/// Which proxy requests take.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ProxyMode {
    /// None.
    #[default]
    Direct,
    /// `proxy_url`.
    Url {
        /// Its address, which may hold a name and a password.
        url: Secret,
        /// `no_proxy`: hosts that are reached without it.
        no_proxy: String,
    },
    /// `proxy_from_environment`: the one that `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say.
    Environment,
}

/// A text that nobody should see: it prints as `<secret>`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// A text, and where it is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum SecretSource {
    /// In the configuration.
    Inline(Secret),
    /// In a file of its own.
    File(PathBuf),
}

impl Default for SecretSource {
    fn default() -> Self {
        Self::Inline(Secret::default())
    }
}

/// A file that a key names cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct ReadFileError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

/// Bytes that are read of a file: certificates of a few hundred authorities.
const FILE_LIMIT: u64 = 1 << 20;

impl SecretSource {
    /// The text, read from its file each time, without the blanks around it.
    ///
    /// # Errors
    /// [`Unreadable`] when the file cannot be read.
    pub fn read(&self) -> Result<String, ReadFileError> {
        let path = match self {
            Self::Inline(text) => return Ok(text.expose().into()),
            Self::File(path) => path,
        };
        let mut text = String::new();
        match File::open(path).and_then(|file| file.take(FILE_LIMIT).read_to_string(&mut text)) {
            Ok(_) => Ok(text.trim().into()),
            Err(source) => Err(ReadFileError { path: path.clone(), source }),
        }
    }
}

/// Headers that belong to the protocol or to the connection; the list is Prometheus'.
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
    /// Reads the keys that stand beside `url` in a block.
    pub fn read(section: &mut Section<'_, '_>) -> Self {
        let default = Self::default();
        let auth = auth(section);
        let tls = tls_config(section);
        let proxy = ProxyConfig::read(section);
        let follow_redirects = section.flag("follow_redirects", default.follow_redirects);
        let headers = section.get("headers").and_then(|node| headers(&node)).unwrap_or_default();
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
        let username = secret_source(&mut section, "username", "username_file").unwrap_or_default();
        let password = secret_source(&mut section, "password", "password_file").unwrap_or_default();
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
    let credentials = secret_source(&mut section, "credentials", "credentials_file");
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
        let client_secret =
            secret_source(&mut section, "client_secret", "client_secret_file").unwrap_or_default();
        let scopes = section.get("scopes").and_then(|node| node.items()).unwrap_or_default();
        let token_url = section.require("token_url").and_then(|node| node.parse(str::parse));
        let params = section.get("endpoint_params").and_then(|node| node.entries()).unwrap_or_default();
        let tls = tls_config(&mut section);
        let proxy = ProxyConfig::read(&mut section);
        section.deny_unknown();
        let param = |(name, value): (String, Node<'_, '_>)| Some((name, Secret(value.string()?)));
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

fn tls_config(section: &mut Section<'_, '_>) -> TlsConfig {
    section.get("tls_config").and_then(Node::section).map_or_else(TlsConfig::default, TlsConfig::read)
}

impl TlsConfig {
    fn read(mut section: Section<'_, '_>) -> Self {
        let config = Self {
            ca: secret_source(&mut section, "ca", "ca_file"),
            cert: secret_source(&mut section, "cert", "cert_file"),
            key: secret_source(&mut section, "key", "key_file"),
            server_name: section.get("server_name").and_then(|node| server_name(&node)),
            min_version: tls_version(&mut section, "min_version").unwrap_or_default(),
            max_version: tls_version(&mut section, "max_version"),
            insecure_skip_verify: section.flag("insecure_skip_verify", false),
        };
        if config.max_version.is_some_and(|max_version| max_version < config.min_version) {
            section.error("max_version is below min_version");
        } else if let Ok(material) = tls::TlsMaterial::read(&config)
            && let Err(error) = tls::build(&config, &material)
        {
            // Of a file that cannot be read, `text` has said it.
            section.error(crate::error::chain(&error));
        }
        section.deny_unknown();
        config
    }
}

fn server_name(node: &Node<'_, '_>) -> Option<ServerName<'static>> {
    let name = node.string()?;
    let parsed = ServerName::try_from(name.clone()).ok();
    if parsed.is_none() {
        node.error(format!("{name:?} is neither a host name nor an address"));
    }
    parsed
}

/// A version of TLS, by the name that Prometheus has for it.
pub(super) fn tls_version(section: &mut Section<'_, '_>, key: &'static str) -> Option<TlsVersion> {
    let node = section.get(key)?;
    match node.text()?.as_str() {
        "TLS12" => Some(TlsVersion::Tls12),
        "TLS13" => Some(TlsVersion::Tls13),
        other => {
            node.error(format!("{other:?} is not one of TLS12, TLS13"));
            None
        }
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
            // What is wrong is not shown: it may hold a password.
            if !url.parse().is_ok_and(is_proxy) {
                node.error("not an http:// or https:// URL with a host");
            }
            Some(Secret(url))
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

/// The headers of a mapping from a name to a list of values.
fn connect_headers(node: &Node<'_, '_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, list) in node.entries().unwrap_or_default() {
        let Some(name) = header_name(&list, &name) else { continue };
        let values = list.items().unwrap_or_default();
        headers.extend(values.iter().filter_map(header_value).map(|value| (name.clone(), value)));
    }
    headers
}

/// The headers of a mapping from a name to a value, none of them reserved.
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

/// A value that is a header's, and does not show in debugging output.
pub(super) fn header_value(node: &Node<'_, '_>) -> Option<HeaderValue> {
    let Ok(mut value) = HeaderValue::try_from(node.string()?) else {
        node.error("contains a character that a header cannot have");
        return None;
    };
    value.set_sensitive(true);
    Some(value)
}

/// A text that is written under one key, or kept in the file that another one names.
pub(super) fn secret_source(
    section: &mut Section<'_, '_>,
    key: &'static str,
    file_key: &'static str,
) -> Option<SecretSource> {
    let (inline, file) = (section.get(key), section.get(file_key));
    if let (Some(_), Some(file)) = (&inline, &file) {
        file.error(format!("{key} is also set: only one of the two is allowed"));
    }
    let inline = inline.and_then(|node| node.string()).map(|text| SecretSource::Inline(text.into()));
    let file = file.and_then(|node| {
        let file = SecretSource::File(node.file()?);
        if let Err(error) = file.read() {
            node.error(crate::error::chain(&error));
        }
        Some(file)
    });
    inline.or(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(text: &str) -> Result<ClientConfig, Vec<crate::yaml::Error>> {
        crate::yaml::read(text, Path::new("/etc/promforest"), |mut top| {
            let config = ClientConfig::read(&mut top);
            top.deny_unknown();
            config
        })
    }

    #[test]
    fn nothing_written_is_the_default() {
        let default = ClientConfig::default();
        assert!(default.follow_redirects);
        assert_eq!(read(""), Ok(default));
    }

    #[test]
    fn every_value_arrives_where_it_belongs() {
        let config = read(
            "authorization: {credentials: a}\n\
             proxy_url: http://proxy\n\
             no_proxy: near\n\
             follow_redirects: false\n\
             tls_config: {server_name: name, min_version: TLS13, insecure_skip_verify: true}\n\
             headers: {X-Key: b}",
        )
        .expect("valid");
        let inline = |text: &str| SecretSource::Inline(Secret(text.into()));
        assert_eq!(config.auth, Auth::Token { scheme: "Bearer".into(), credentials: inline("a") });
        let (url, no_proxy) = (Secret("http://proxy".into()), "near".into());
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
        assert_eq!(Secret("hunter2".into()).to_string(), "<secret>");
    }
}
