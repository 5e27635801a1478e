//! TLS of the server.

use super::insecure::NoClientVerification;
use super::{Error, TlsVersion, identity, roots, versions};
use crate::http::secret::SecretSource;
use crate::yaml::{Node, Section};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    SupportedCipherSuite,
};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use webpki::EndEntityCert;

/// `tls_server_config`: the own certificate and the client certificates that are accepted.
#[derive(Debug)]
pub struct TlsServerConfig {
    /// The own certificate chain, as PEM.
    pub cert: SecretSource,
    /// The private key of the own certificate, as PEM.
    pub key: SecretSource,
    /// Requirements on client certificates.
    pub client_auth: ClientAuth,
    /// Lowest version of TLS.
    pub min_version: TlsVersion,
    /// Highest version of TLS.
    pub max_version: Option<TlsVersion>,
    /// Cipher suites of TLS 1.2 and 1.3 in order of preference; all supported ones if empty.
    pub cipher_suites: Vec<SupportedCipherSuite>,
    /// True if the server's order of preference counts, false if the client's.
    pub prefer_server_cipher_suites: bool,
    /// Key exchange groups in order of preference; all supported ones if empty.
    pub curves: Vec<&'static dyn SupportedKxGroup>,
}

/// Requirements on client certificates: `client_auth_type` and the keys that it needs.
#[derive(Debug)]
pub enum ClientAuth {
    /// No certificate is requested.
    None,
    /// A certificate of any issuer.
    Unverified {
        /// True if clients without a certificate are denied.
        is_mandatory: bool,
    },
    /// A certificate that a trusted authority has issued.
    Verified {
        /// True if clients without a certificate are denied.
        is_mandatory: bool,
        /// The trusted authorities, as PEM.
        ca: SecretSource,
        /// Names of which the certificate must have one; any name if absent.
        allowed_sans: Option<Vec<String>>,
    },
}

impl TlsServerConfig {
    /// Reads the section; none if a required key is missing or invalid.
    pub fn read(mut section: Section<'_, '_>) -> Option<Self> {
        let cert = SecretSource::from_section(&mut section, "cert", "cert_file");
        let key = SecretSource::from_section(&mut section, "key", "key_file");
        for (source, name) in [(&cert, "cert"), (&key, "key")] {
            if source.is_none() {
                section.error(format!("{name} or {name}_file is missing"));
            }
        }
        let client_auth = ClientAuth::read(&mut section);
        let min_version = TlsVersion::from_section(&mut section, "min_version").unwrap_or_default();
        let max_version = TlsVersion::from_section(&mut section, "max_version");
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
        match config.as_ref().map(build_server) {
            // Unreadable files and the range of versions are reported already.
            None | Some(Ok(_) | Err(Error::ReadFile(_) | Error::Versions(_))) => {}
            Some(Err(error)) => section.error(crate::error::chain(&error)),
        }
        section.deny_unknown();
        config
    }

    /// The sources of the certificates and the key.
    pub fn sources(&self) -> impl Iterator<Item = &SecretSource> {
        let ca = match &self.client_auth {
            ClientAuth::Verified { ca, .. } => Some(ca),
            ClientAuth::None | ClientAuth::Unverified { .. } => None,
        };
        [&self.cert, &self.key].into_iter().chain(ca)
    }
}

/// Verification of client certificates that a `client_auth_type` selects.
enum Verification {
    None,
    Possession { is_mandatory: bool },
    Authority { is_mandatory: bool },
}

impl Verification {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "NoClientCert" => Self::None,
            "RequestClientCert" => Self::Possession { is_mandatory: false },
            // The exporter toolkit still accepts the second name.
            "RequireAnyClientCert" | "RequireClientCert" => Self::Possession { is_mandatory: true },
            "VerifyClientCertIfGiven" => Self::Authority { is_mandatory: false },
            "RequireAndVerifyClientCert" => Self::Authority { is_mandatory: true },
            _ => return None,
        })
    }
}

impl ClientAuth {
    fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let kind = section.get("client_auth_type");
        let ca = SecretSource::from_section(section, "client_ca", "client_ca_file");
        let allowed_sans = section.get("client_allowed_sans");
        let name = kind.as_ref().map_or_else(|| Some("NoClientCert".into()), Node::text)?;
        let Some(verification) = Verification::from_name(&name) else {
            kind.expect("the default is a valid name").error(format!(
                "{name:?} is not one of NoClientCert, RequestClientCert, RequireAnyClientCert, \
                 VerifyClientCertIfGiven, RequireAndVerifyClientCert"
            ));
            return None;
        };
        if let Verification::Authority { is_mandatory } = verification {
            let allowed_sans = allowed_sans.map(|node| allowed_names(&node));
            if ca.is_none() {
                section.error(format!(
                    "client_ca or client_ca_file is missing: client_auth_type {name} needs it"
                ));
            }
            return Some(Self::Verified { is_mandatory, ca: ca?, allowed_sans });
        }
        if ca.is_some() {
            section.error(format!(
                "client_ca_file is set, but client_auth_type {name} does not use it: \
                 write RequireAndVerifyClientCert"
            ));
        }
        if let Some(node) = allowed_sans {
            node.error("needs client_auth_type RequireAndVerifyClientCert, or VerifyClientCertIfGiven");
        }
        Some(match verification {
            Verification::Possession { is_mandatory } => Self::Unverified { is_mandatory },
            Verification::None | Verification::Authority { .. } => Self::None,
        })
    }
}

/// Parses the list of `client_allowed_sans`.
fn allowed_names(node: &Node<'_, '_>) -> Vec<String> {
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
}

/// Parses a list of cipher suites by Go's names. The suites of TLS 1.3 are always enabled, as in Go.
fn cipher_suites(list: &Node<'_, '_>) -> Option<Vec<SupportedCipherSuite>> {
    let name = |suite: &SupportedCipherSuite| format!("{:?}", suite.suite());
    let (tls13, tls12): (Vec<_>, Vec<_>) =
        ring::ALL_CIPHER_SUITES.iter().copied().partition(|suite| suite.tls13().is_some());
    let mut suites = tls13.clone();
    let items = list.items()?;
    for item in &items {
        let Some(requested) = item.text() else { continue };
        if let Some(suite) = tls12.iter().find(|suite| name(suite) == requested) {
            suites.push(*suite);
        } else if !tls13.iter().any(|suite| {
            name(suite).strip_prefix("TLS13").is_some_and(|end| requested == format!("TLS{end}"))
        }) {
            let known: Vec<String> = tls12.iter().map(name).collect();
            item.error(format!("{requested:?} is not one of {}", known.join(", ")));
        }
    }
    (!items.is_empty()).then_some(suites)
}

/// Parses a list of key exchange groups by Go's names.
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

/// Builds the server configuration of rustls.
///
/// # Errors
/// [`Error`] if a file cannot be read, is invalid or does not match the rest.
pub fn build_server(config: &TlsServerConfig) -> Result<ServerConfig, Error> {
    let default = ring::default_provider();
    let crypto = Arc::new(CryptoProvider {
        cipher_suites: if config.cipher_suites.is_empty() {
            default.cipher_suites
        } else {
            config.cipher_suites.clone()
        },
        kx_groups: if config.curves.is_empty() { default.kx_groups } else { config.curves.clone() },
        ..default
    });
    let builder = ServerConfig::builder_with_provider(crypto.clone())
        .with_protocol_versions(&versions(config.min_version, config.max_version))
        .map_err(Error::Versions)?;
    let (chain, key) = identity(&config.cert.read()?, &config.key.read()?)?;
    let mut server = builder
        .with_client_cert_verifier(client_verifier(config, &crypto)?)
        .with_single_cert(chain, key)
        .map_err(Error::Identity)?;
    server.ignore_client_order = config.prefer_server_cipher_suites;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(server)
}

/// The verifier of client certificates.
fn client_verifier(
    config: &TlsServerConfig,
    crypto: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    match &config.client_auth {
        ClientAuth::None => Ok(WebPkiClientVerifier::no_client_auth()),
        ClientAuth::Unverified { is_mandatory } => {
            Ok(Arc::new(NoClientVerification { crypto: crypto.clone(), is_mandatory: *is_mandatory }))
        }
        ClientAuth::Verified { is_mandatory, ca, allowed_sans } => {
            let roots = roots("client_ca", &ca.read()?)?;
            let builder = WebPkiClientVerifier::builder_with_provider(roots, crypto.clone());
            let builder = if *is_mandatory { builder } else { builder.allow_unauthenticated() };
            let verifier = builder.build().map_err(Error::ClientCa)?;
            Ok(match allowed_sans {
                None => verifier,
                Some(names) => Arc::new(AllowedNames { verifier, names: names.clone() }),
            })
        }
    }
}

/// Accepts certificates that `verifier` accepts and that have one of the names.
#[derive(Debug)]
struct AllowedNames {
    verifier: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl AllowedNames {
    /// True if a subject alternative name of the certificate equals one of the names.
    fn allows(&self, certificate: &CertificateDer<'_>) -> Result<bool, webpki::Error> {
        let certificate = EndEntityCert::try_from(certificate)?;
        let is_address = |name: &str| {
            let address = IpAddr::from_str(name).map(ServerName::from);
            address.is_ok_and(|address| certificate.verify_is_valid_for_subject_name(&address).is_ok())
        };
        let mut names = certificate.valid_dns_names().chain(certificate.valid_uri_names());
        Ok(names.any(|name| self.names.iter().any(|allowed| allowed == name))
            || self.names.iter().any(|allowed| is_address(allowed)))
    }
}

impl ClientCertVerifier for AllowedNames {
    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        match self.allows(end_entity) {
            Ok(true) => Ok(verified),
            Ok(false) => Err(CertificateError::ApplicationVerificationFailure.into()),
            Err(_) => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
