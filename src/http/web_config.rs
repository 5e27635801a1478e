//! `--web.config.file`: who is let in, and how. Prometheus' exporter-toolkit format, so that the file of another
//! component can be taken over as it is.
//!
//! What we cannot do is an error and not passed over: a file that asks for more protection than there is would be
//! believed.

use super::basic_auth::Users;
use super::config::{SecretSource, TlsVersion, header_value, secret_source, tls_version};
use super::tls;
use crate::prom::duration;
use crate::yaml::{self, FileError, Node, Section};
use hyper::header::{
    CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS, X_XSS_PROTECTION,
};
use rustls::SupportedCipherSuite;
use rustls::crypto::{SupportedKxGroup, ring};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the file says; nothing, and everybody is let in.
#[derive(Debug, Default)]
pub struct WebConfig {
    /// Encryption.
    pub tls: Option<TlsServerConfig>,
    /// Headers of every answer.
    pub headers: HeaderMap,
    /// Who has a password.
    pub users: Users,
    /// How many requests there may be.
    pub rate_limit: Option<RateLimit>,
}

/// `tls_server_config`: who we are, and who is let in.
#[derive(Debug)]
pub struct TlsServerConfig {
    /// Our certificate and what leads from it to its authority, as PEM.
    pub cert: SecretSource,
    /// Our certificate's private key, as PEM.
    pub key: SecretSource,
    /// Who is let in.
    pub client_auth: ClientAuth,
    /// Lowest version of TLS.
    pub min_version: TlsVersion,
    /// Highest version of TLS.
    pub max_version: Option<TlsVersion>,
    /// What TLS 1.2 and 1.3 are spoken with, the best first; all there is when empty.
    pub cipher_suites: Vec<SupportedCipherSuite>,
    /// Is it our order that counts, and not the client's?
    pub prefer_server_cipher_suites: bool,
    /// How keys are agreed upon, the best way first; all there are when empty.
    pub curves: Vec<&'static dyn SupportedKxGroup>,
}

/// `client_auth_type`: what a client has to show.
#[derive(Debug)]
pub enum ClientAuth {
    /// Nothing.
    None,
    /// A certificate that nobody has to vouch for.
    Unverified {
        /// Or none at all?
        is_mandatory: bool,
    },
    /// A certificate that an authority vouches for.
    Verified {
        /// Or none at all?
        is_mandatory: bool,
        /// The authorities, as PEM.
        ca: SecretSource,
        /// Names of which the certificate has to have one; without them any will do.
        allowed_sans: Option<Vec<String>>,
    },
}

/// `rate_limit`: a bucket of `burst` requests that gets one more every `interval`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Time for one request.
    pub interval: Duration,
    /// Requests at once.
    pub burst: NonZeroU32,
}

impl WebConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// [`FileError`] with everything that is wrong in it.
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

    /// The files that it names.
    pub fn files(&self) -> Vec<PathBuf> {
        let Some(tls) = &self.tls else { return Vec::new() };
        let ca = match &tls.client_auth {
            ClientAuth::Verified { ca, .. } => Some(ca),
            ClientAuth::None | ClientAuth::Unverified { .. } => None,
        };
        let sources = [&tls.cert, &tls.key].into_iter().chain(ca);
        sources
            .filter_map(|source| match source {
                SecretSource::File(path) => Some(path.clone()),
                SecretSource::Inline(_) => None,
            })
            .collect()
    }
}

impl TlsServerConfig {
    fn read(mut section: Section<'_, '_>) -> Option<Self> {
        let cert = secret_source(&mut section, "cert", "cert_file");
        let key = secret_source(&mut section, "key", "key_file");
        for (source, name) in [(&cert, "cert"), (&key, "key")] {
            if source.is_none() {
                section.error(format!("{name} or {name}_file is missing"));
            }
        }
        let client_auth = client_auth(&mut section);
        let min_version = tls_version(&mut section, "min_version").unwrap_or_default();
        let max_version = tls_version(&mut section, "max_version");
        let cipher_suites = section.get("cipher_suites").and_then(|node| cipher_suites(&node));
        let prefer_server_cipher_suites = section.flag("prefer_server_cipher_suites", true);
        let curves = section.get("curve_preferences").and_then(|node| curves(&node));
        if max_version.is_some_and(|max_version| max_version < min_version) {
            section.error("max_version is below min_version");
        }
        let config = cert.zip(key).zip(client_auth).map(|((cert, key), client_auth)| Self {
            cert,
            key,
            client_auth,
            min_version,
            max_version,
            cipher_suites: cipher_suites.unwrap_or_default(),
            prefer_server_cipher_suites,
            curves: curves.unwrap_or_default(),
        });
        match config.as_ref().map(tls::build_server) {
            // `text` and the versions have said it.
            None | Some(Ok(_) | Err(tls::Error::ReadFile(_) | tls::Error::Versions(_))) => {}
            Some(Err(error)) => section.error(crate::error::chain(&error)),
        }
        section.deny_unknown();
        config
    }
}

fn client_auth(section: &mut Section<'_, '_>) -> Option<ClientAuth> {
    let kind = section.get("client_auth_type");
    let ca = secret_source(section, "client_ca", "client_ca_file");
    let allowed_sans = section.get("client_allowed_sans");
    let name = kind.as_ref().map_or_else(|| Some("NoClientCert".into()), Node::text)?;
    let is_mandatory = match name.as_str() {
        "NoClientCert" | "RequestClientCert" | "VerifyClientCertIfGiven" => false,
        "RequireAnyClientCert" | "RequireClientCert" | "RequireAndVerifyClientCert" => true,
        other => {
            let node = kind.expect("it has a text that is not the default");
            node.error(format!(
                "{other:?} is not one of NoClientCert, RequestClientCert, RequireAnyClientCert, \
                 VerifyClientCertIfGiven, RequireAndVerifyClientCert"
            ));
            return None;
        }
    };
    if !matches!(name.as_str(), "VerifyClientCertIfGiven" | "RequireAndVerifyClientCert") {
        if ca.is_some() {
            section.error(format!(
                "client_ca_file is set, but client_auth_type {name} does not use it: \
                 write RequireAndVerifyClientCert"
            ));
        }
        if let Some(node) = allowed_sans {
            node.error("needs client_auth_type RequireAndVerifyClientCert, or VerifyClientCertIfGiven");
        }
        return Some(match name.as_str() {
            "NoClientCert" => ClientAuth::None,
            _ => ClientAuth::Unverified { is_mandatory },
        });
    }
    let allowed_sans = allowed_sans.map(|node| {
        let name = |node: &Node<'_, '_>| {
            let name = node.string()?;
            if name.contains('@') {
                node.error("e-mail addresses cannot be compared: use a DNS name, an address or a URI");
            }
            Some(name)
        };
        let names = node.items();
        if names.as_ref().is_some_and(Vec::is_empty) {
            node.error("an empty list denies all clients");
        }
        names.iter().flatten().filter_map(name).collect()
    });
    if ca.is_none() {
        section.error(format!("client_ca or client_ca_file is missing: client_auth_type {name} needs it"));
    }
    Some(ClientAuth::Verified { is_mandatory, ca: ca?, allowed_sans })
}

/// The suites of a list, by the names that Go has for them. Those of TLS 1.3 cannot be chosen, there as here.
fn cipher_suites(list: &Node<'_, '_>) -> Option<Vec<SupportedCipherSuite>> {
    let name = |suite: &SupportedCipherSuite| format!("{:?}", suite.suite());
    let (tls13, tls12): (Vec<_>, Vec<_>) =
        ring::ALL_CIPHER_SUITES.iter().copied().partition(|suite| suite.tls13().is_some());
    let mut suites = tls13.clone();
    let items = list.items()?;
    for item in &items {
        let Some(wanted) = item.text() else { continue };
        if let Some(suite) = tls12.iter().find(|suite| name(suite) == wanted) {
            suites.push(*suite);
        } else if !tls13
            .iter()
            .any(|suite| name(suite).strip_prefix("TLS13").is_some_and(|end| wanted == format!("TLS{end}")))
        {
            let known: Vec<String> = tls12.iter().map(name).collect();
            item.error(format!("{wanted:?} is not one of {}", known.join(", ")));
        }
    }
    (!items.is_empty()).then_some(suites)
}

fn curves(list: &Node<'_, '_>) -> Option<Vec<&'static dyn SupportedKxGroup>> {
    let curve = |item: &Node<'_, '_>| match item.text()?.as_str() {
        "X25519" => Some(ring::kx_group::X25519),
        "CurveP256" => Some(ring::kx_group::SECP256R1),
        "CurveP384" => Some(ring::kx_group::SECP384R1),
        other => {
            item.error(format!("{other:?} is not one of X25519, CurveP256, CurveP384"));
            None
        }
    };
    Some(list.items()?.iter().filter_map(curve).collect())
}

/// The headers that may be added to answers, each with the values that are allowed.
const HEADERS: [(&str, HeaderName, &[&str]); 5] = [
    ("Strict-Transport-Security", STRICT_TRANSPORT_SECURITY, &[]),
    ("X-Content-Type-Options", X_CONTENT_TYPE_OPTIONS, &["nosniff"]),
    ("X-Frame-Options", X_FRAME_OPTIONS, &["deny", "sameorigin"]),
    ("X-XSS-Protection", X_XSS_PROTECTION, &[]),
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY, &[]),
];

/// `http_server_config`: its headers.
fn http_server_headers(mut section: Section<'_, '_>) -> HeaderMap {
    // Every client speaks HTTP/1.1 too, and that is what is spoken here, so that either value can be kept.
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
