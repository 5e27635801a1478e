//! From `tls_config` to rustls: the authorities that are trusted, and our own certificate.

use super::config::{TlsConfig, Unreadable, Version};
use super::insecure::AnyCertificate;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, InvalidMessage, RootCertStore, version};
use std::io;
use std::sync::{Arc, LazyLock};

/// Why a `tls_config` is of no use. The messages begin with the key that is at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The authorities are no PEM.
    #[error("ca or ca_file: not valid PEM")]
    Ca(#[source] pem::Error),
    /// Valid PEM, but no certificate among it.
    #[error("ca or ca_file: no certificate in it")]
    NoCa,
    /// A certificate that cannot be trusted, whatever it signs.
    #[error("ca or ca_file: not the certificate of an authority")]
    NoAuthority(#[source] rustls::Error),
    /// Our certificate is no PEM.
    #[error("cert or cert_file: not valid PEM")]
    Cert(#[source] pem::Error),
    /// Our key is no PEM, or of a kind that is not known.
    #[error("key or key_file: no private key as PEM")]
    Key(#[source] pem::Error),
    /// A certificate without its key, or the other way round.
    #[error("a certificate and its key go together: cert or cert_file, and key or key_file")]
    Half,
    /// The two do not fit.
    #[error("the client certificate and its key cannot be used")]
    Identity(#[source] rustls::Error),
    /// Nothing is left to speak.
    #[error("no version of TLS is left")]
    Versions(#[source] rustls::Error),
}

/// What the keys of a [`TlsConfig`] hold at one moment, their files read.
#[derive(PartialEq)]
pub struct Material {
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl Material {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Unreadable`] for the first that cannot be read.
    pub fn read(config: &TlsConfig) -> Result<Self, Unreadable> {
        let [ca, cert, key] = [&config.ca, &config.cert, &config.key]
            .map(|text| text.as_ref().map(|text| text.read()).transpose());
        Ok(Self { ca: ca?, cert: cert?, key: key? })
    }
}

/// The authorities that this machine trusts. They are read once: it takes as long as many requests.
static PLATFORM: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // What is no certificate, or what the machine has none of, shows when a server is not trusted.
    roots.add_parsable_certificates(found.certs);
    Arc::new(roots)
});

/// Puts together what rustls needs.
///
/// # Errors
/// [`Error`] when something in `material` is not what its key says, or does not fit the rest.
pub fn build(config: &TlsConfig, material: &Material) -> Result<ClientConfig, Error> {
    let crypto = Arc::new(ring::default_provider());
    let versions: Vec<_> = [(Version::Tls12, &version::TLS12), (Version::Tls13, &version::TLS13)]
        .into_iter()
        .filter(|(version, _)| *version >= config.min_version)
        .filter(|(version, _)| config.max_version.is_none_or(|max_version| *version <= max_version))
        .map(|(_, version)| version)
        .collect();
    let builder = ClientConfig::builder_with_provider(crypto.clone())
        .with_protocol_versions(&versions)
        .map_err(Error::Versions)?;
    let roots = material.ca.as_deref().map_or_else(|| Ok(PLATFORM.clone()), roots)?;
    let builder = if config.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(crypto)))
    } else {
        builder.with_root_certificates(roots)
    };
    match (&material.cert, &material.key) {
        (Some(cert), Some(key)) => {
            let chain: Vec<_> = CertificateDer::pem_slice_iter(cert.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(Error::Cert)?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(Error::Key)?;
            builder.with_client_auth_cert(chain, key).map_err(Error::Identity)
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        _ => Err(Error::Half),
    }
}

fn roots(pem: &str) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(Error::Ca)?).map_err(Error::NoAuthority)?;
    }
    if roots.is_empty() { Err(Error::NoCa) } else { Ok(Arc::new(roots)) }
}

/// The error of rustls among the causes of an error, if there is one.
pub fn cause<'e>(mut error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    loop {
        if let Some(cause) = error.downcast_ref() {
            return Some(cause);
        }
        // An I/O error's source is the source of what it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        error = match wrapped {
            Some(wrapped) => wrapped,
            None => error.source()?,
        };
    }
}

/// What someone should look at who sees this error.
pub fn advice(error: &rustls::Error) -> &'static str {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage as Message};
    match error {
        InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is signed by an authority that is not trusted here: tls_config.ca_file is the place to name it"
        }
        InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "its certificate is for another name: if that is as it should be, tls_config.server_name is the place to say so"
        }
        InvalidCertificate(CertificateError::Other(_)) => {
            "its certificate cannot be used: is it an authority's own, in place of one that it signed?"
        }
        InvalidCertificate(_) => "its certificate is refused",
        AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
            | AlertDescription::HandshakeFailure,
        ) => {
            "it refused us: it may want a client certificate, or another one: tls_config.cert_file and key_file"
        }
        Message(InvalidMessage::InvalidContentType) => "it does not speak TLS: is it an http:// address?",
        _ => "the encrypted connection failed",
    }
}
