//! TLS of the client.

use super::insecure::NoVerification;
use super::{Error, TlsVersion, identity, roots, versions};
use crate::http::secret::{ReadFileError, SecretSource};
use crate::yaml::{Key, Node, Section};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, InvalidMessage, RootCertStore};
use std::io;
use std::sync::{Arc, LazyLock};

/// The keys of `tls_config`.
pub const CLIENT_KEYS: [Key; 10] = [
    Key::optional("ca", "PEM certificates of the trusted authorities; without them, those of the platform"),
    Key::optional("ca_file", "File with the trusted authorities"),
    Key::optional("cert", "Own certificate chain, as PEM; together with `key`"),
    Key::optional("cert_file", "File with the own certificate chain"),
    Key::optional("key", "Private key of the own certificate, as PEM"),
    Key::optional("key_file", "File with the private key"),
    Key::with_default(
        "insecure_skip_verify",
        "false",
        "Whether the certificate of the server is accepted without verification",
    ),
    Key::optional("server_name", "Name that the server's certificate must have, instead of the URL's host"),
    Key::with_default("min_version", "TLS12", "Lowest version of TLS, `TLS12` or `TLS13`"),
    Key::optional("max_version", "Highest version of TLS"),
];
/// The keys of [`TlsConfig::read_certificates`].
pub const CERTIFICATE_KEYS: &[Key] = CLIENT_KEYS.split_at(7).0;

/// `tls_config`: trusted authorities and the own certificate. All keys are optional.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsConfig {
    /// PEM certificates of the trusted authorities, instead of the platform's.
    pub ca: Option<SecretSource>,
    /// The own certificate chain, as PEM; together with `key`.
    pub cert: Option<SecretSource>,
    /// The private key of the own certificate, as PEM.
    pub key: Option<SecretSource>,
    /// The name that the server's certificate must have, instead of the URL's host.
    pub server_name: Option<ServerName<'static>>,
    /// Lowest version of TLS.
    pub min_version: TlsVersion,
    /// Highest version of TLS.
    pub max_version: Option<TlsVersion>,
    /// True if server certificates are not verified.
    pub insecure_skip_verify: bool,
}

impl TlsConfig {
    /// Reads the `tls_config` of a section.
    pub fn from_section(section: &mut Section<'_, '_>) -> Self {
        section.get("tls_config").and_then(Node::section).map_or_else(Self::default, Self::read)
    }

    fn read(mut section: Section<'_, '_>) -> Self {
        let certificates = Self::certificates(&mut section);
        let config = Self {
            server_name: section.get("server_name").and_then(|node| server_name(&node)),
            min_version: TlsVersion::from_section(&mut section, "min_version").unwrap_or_default(),
            max_version: TlsVersion::from_section(&mut section, "max_version"),
            ..certificates
        };
        if config.max_version.is_some_and(|max_version| max_version < config.min_version) {
            section.error("max_version is below min_version");
        } else {
            config.check(&section);
        }
        section.deny_unknown();
        config
    }

    /// Reads a section that has [`CERTIFICATE_KEYS`] alone.
    pub fn read_certificates(mut section: Section<'_, '_>) -> Self {
        let config = Self::certificates(&mut section);
        config.check(&section);
        section.deny_unknown();
        config
    }

    fn certificates(section: &mut Section<'_, '_>) -> Self {
        Self {
            ca: SecretSource::from_section(section, "ca", "ca_file"),
            cert: SecretSource::from_section(section, "cert", "cert_file"),
            key: SecretSource::from_section(section, "key", "key_file"),
            insecure_skip_verify: section.flag("insecure_skip_verify", false),
            ..Self::default()
        }
    }

    /// Records an error if the certificates cannot be used. `from_section` has reported files that cannot be read.
    fn check(&self, section: &Section<'_, '_>) {
        if let Ok(material) = TlsMaterial::read(self)
            && let Err(error) = build_client(self, &material)
        {
            section.error(crate::error::chain(&error));
        }
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

/// The contents of the files of a [`TlsConfig`] at one time.
#[derive(PartialEq)]
pub struct TlsMaterial {
    /// The trusted authorities.
    pub ca: Option<String>,
    /// The own certificate chain.
    pub cert: Option<String>,
    /// The private key.
    pub key: Option<String>,
}

impl TlsMaterial {
    /// Reads the files.
    ///
    /// # Errors
    /// [`ReadFileError`] of the first file that cannot be read.
    pub fn read(config: &TlsConfig) -> Result<Self, ReadFileError> {
        let [ca, cert, key] = [&config.ca, &config.cert, &config.key]
            .map(|source| source.as_ref().map(SecretSource::read).transpose());
        Ok(Self { ca: ca?, cert: cert?, key: key? })
    }
}

/// The platform's trusted authorities. They are read once: reading takes as long as many requests.
static PLATFORM_ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    // Errors are ignored: a missing authority leads to an error of each request that needs it.
    roots.add_parsable_certificates(native.certs);
    Arc::new(roots)
});

/// Builds the client configuration of rustls.
///
/// # Errors
/// [`Error`] if a part of `material` is invalid or does not match the rest.
pub fn build_client(config: &TlsConfig, material: &TlsMaterial) -> Result<ClientConfig, Error> {
    let crypto = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(crypto.clone())
        .with_protocol_versions(&versions(config.min_version, config.max_version))
        .map_err(Error::Versions)?;
    let roots = material.ca.as_deref().map_or_else(|| Ok(PLATFORM_ROOTS.clone()), |pem| roots("ca", pem))?;
    let builder = if config.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(NoVerification { crypto }))
    } else {
        builder.with_root_certificates(roots)
    };
    match (&material.cert, &material.key) {
        (Some(cert), Some(key)) => {
            let (chain, key) = identity(cert, key)?;
            builder.with_client_auth_cert(chain, key).map_err(Error::Identity)
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        _ => Err(Error::CertWithoutKey),
    }
}

/// The rustls error in the source chain of an error, if any.
pub fn find_rustls_error<'e>(mut error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    loop {
        if let Some(cause) = error.downcast_ref() {
            return Some(cause);
        }
        // The source of an I/O error skips the error that it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        error = match wrapped {
            Some(wrapped) => wrapped,
            None => error.source()?,
        };
    }
}

/// A description of a TLS error, with the setting to check.
pub fn advice(error: &rustls::Error) -> &'static str {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage as Message};
    match error {
        InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is signed by an authority that is not trusted: set tls_config.ca_file"
        }
        InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for another name: if this is expected, set tls_config.server_name",
        InvalidCertificate(CertificateError::Other(_)) => {
            "its certificate cannot be used: it may be an authority's own instead of one that the authority signed"
        }
        InvalidCertificate(_) => "its certificate is rejected",
        AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
            | AlertDescription::HandshakeFailure,
        ) => {
            "it rejected the client: it may require a client certificate, or another one: set tls_config.cert_file and key_file"
        }
        Message(InvalidMessage::InvalidContentType) => "it does not speak TLS: the URL may need http://",
        _ => "the TLS connection failed",
    }
}
