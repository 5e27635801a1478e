//! TLS settings and their conversion to rustls: `tls_config` for the client, `tls_server_config` for the server.

mod client;
mod insecure;
mod server;

pub use client::{
    CERTIFICATE_KEYS, CLIENT_KEYS, TlsConfig, TlsMaterial, advice, build_client, find_rustls_error,
};
pub use server::{ClientAuth, TlsServerConfig, build_server};

use super::secret::ReadFileError;
use crate::yaml::Section;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::VerifierBuilderError;
use rustls::{RootCertStore, SupportedProtocolVersion, version};
use std::sync::Arc;

/// An invalid `tls_config` or `tls_server_config`. The messages begin with the key at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The authorities are not valid PEM.
    #[error("{key} or {key}_file: not valid PEM")]
    Ca {
        /// The key.
        key: &'static str,
        /// The cause.
        source: pem::Error,
    },
    /// The PEM contains no certificate.
    #[error("{0} or {0}_file: no certificate in it")]
    EmptyCa(&'static str),
    /// The certificate cannot be the certificate of an authority.
    #[error("{key} or {key}_file: not the certificate of an authority")]
    InvalidCa {
        /// The key.
        key: &'static str,
        /// The cause.
        source: rustls::Error,
    },
    /// The own certificate is not valid PEM.
    #[error("cert or cert_file: not valid PEM")]
    Cert(#[source] pem::Error),
    /// The own key is not valid PEM or of an unknown kind.
    #[error("key or key_file: no private key as PEM")]
    Key(#[source] pem::Error),
    /// A certificate without its key, or a key without its certificate.
    #[error("a certificate and its key go together: cert or cert_file, and key or key_file")]
    CertWithoutKey,
    /// The certificate and the key do not match.
    #[error("the certificate and its key cannot be used")]
    Identity(#[source] rustls::Error),
    /// The authorities cannot verify client certificates.
    #[error("client_ca or client_ca_file: cannot verify client certificates with it")]
    ClientCa(#[source] VerifierBuilderError),
    /// A file cannot be read.
    #[error(transparent)]
    ReadFile(#[from] ReadFileError),
    /// The range of versions is empty.
    #[error("no TLS version is enabled")]
    Versions(#[source] rustls::Error),
}

/// A supported version of TLS. Earlier versions are broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl TlsVersion {
    /// Reads a version by Prometheus' name.
    fn from_section(section: &mut Section<'_, '_>, key: &'static str) -> Option<Self> {
        let node = section.get(key)?;
        match node.text()?.as_str() {
            "TLS12" => Some(Self::Tls12),
            "TLS13" => Some(Self::Tls13),
            other => {
                node.error(format!("{other:?} is not one of TLS12, TLS13"));
                None
            }
        }
    }
}

/// The enabled versions.
fn versions(min: TlsVersion, max: Option<TlsVersion>) -> Vec<&'static SupportedProtocolVersion> {
    [(TlsVersion::Tls12, &version::TLS12), (TlsVersion::Tls13, &version::TLS13)]
        .into_iter()
        .filter(|(version, _)| *version >= min)
        .filter(|(version, _)| max.is_none_or(|max| *version <= max))
        .map(|(_, version)| version)
        .collect()
}

/// Parses the own certificate chain and private key.
fn identity(cert: &str, key: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
    Ok((chain.map_err(Error::Cert)?, key.map_err(Error::Key)?))
}

/// Parses the authorities under `key`.
fn roots(key: &'static str, pem: &str) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|source| Error::Ca { key, source })?;
        roots.add(certificate).map_err(|source| Error::InvalidCa { key, source })?;
    }
    if roots.is_empty() { Err(Error::EmptyCa(key)) } else { Ok(Arc::new(roots)) }
}
