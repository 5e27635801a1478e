//! From configuration to rustls: the authorities that are trusted, and our own certificate. `tls_config` is for
//! what we ask, `tls_server_config` for who asks us.

use super::config::{ReadFileError, TlsConfig, TlsVersion};
use super::insecure::{NoClientVerification, NoVerification};
use super::web_config::{ClientAuth, TlsServerConfig};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    InvalidMessage, RootCertStore, ServerConfig, SignatureScheme, SupportedProtocolVersion, version,
};
use std::io;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};
use webpki::EndEntityCert;

/// Why a `tls_config` is of no use. The messages begin with the key that is at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The authorities are no PEM.
    #[error("{key} or {key}_file: not valid PEM")]
    Ca {
        /// The key.
        key: &'static str,
        /// Why.
        source: pem::Error,
    },
    /// Valid PEM, but no certificate among it.
    #[error("{0} or {0}_file: no certificate in it")]
    EmptyCa(&'static str),
    /// A certificate that cannot be trusted, whatever it signs.
    #[error("{key} or {key}_file: not the certificate of an authority")]
    InvalidCa {
        /// The key.
        key: &'static str,
        /// Why.
        source: rustls::Error,
    },
    /// Our certificate is no PEM.
    #[error("cert or cert_file: not valid PEM")]
    Cert(#[source] pem::Error),
    /// Our key is no PEM, or of a kind that is not known.
    #[error("key or key_file: no private key as PEM")]
    Key(#[source] pem::Error),
    /// A certificate without its key, or the other way round.
    #[error("a certificate and its key go together: cert or cert_file, and key or key_file")]
    CertWithoutKey,
    /// The two do not fit.
    #[error("the certificate and its key cannot be used")]
    Identity(#[source] rustls::Error),
    /// Nobody could be let in by these authorities.
    #[error("client_ca or client_ca_file: cannot verify client certificates with it")]
    ClientCa(#[source] VerifierBuilderError),
    /// A file cannot be read.
    #[error(transparent)]
    ReadFile(#[from] ReadFileError),
    /// Nothing is left to speak.
    #[error("no TLS version is enabled")]
    Versions(#[source] rustls::Error),
}

/// What the keys of a [`TlsConfig`] hold at one moment, their files read.
#[derive(PartialEq)]
pub struct TlsMaterial {
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl TlsMaterial {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Unreadable`] for the first that cannot be read.
    pub fn read(config: &TlsConfig) -> Result<Self, ReadFileError> {
        let [ca, cert, key] = [&config.ca, &config.cert, &config.key]
            .map(|text| text.as_ref().map(|text| text.read()).transpose());
        Ok(Self { ca: ca?, cert: cert?, key: key? })
    }
}

/// The authorities that this machine trusts. They are read once: it takes as long as many requests.
static PLATFORM_ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    // What is no certificate, or what the machine has none of, shows when a server is not trusted.
    roots.add_parsable_certificates(native.certs);
    Arc::new(roots)
});

/// Puts together what rustls needs.
///
/// # Errors
/// [`Error`] when something in `material` is not what its key says, or does not fit the rest.
pub fn build(config: &TlsConfig, material: &TlsMaterial) -> Result<ClientConfig, Error> {
    let crypto = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(crypto.clone())
        .with_protocol_versions(&versions(config.min_version, config.max_version))
        .map_err(Error::Versions)?;
    let roots = material.ca.as_deref().map_or_else(|| Ok(PLATFORM_ROOTS.clone()), |pem| roots("ca", pem))?;
    let builder = if config.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(NoVerification(crypto)))
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

/// Puts together what rustls needs to be asked.
///
/// # Errors
/// [`Error`] when a file cannot be read, is not what its key says, or does not fit the rest.
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

/// Who is let in by a certificate.
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

/// Lets in whom an authority vouches for, and of them who has one of these names.
#[derive(Debug)]
struct AllowedNames {
    verifier: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl AllowedNames {
    /// Is one of the certificate's alternative names one of these, letter by letter?
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

fn versions(min: TlsVersion, max: Option<TlsVersion>) -> Vec<&'static SupportedProtocolVersion> {
    [(TlsVersion::Tls12, &version::TLS12), (TlsVersion::Tls13, &version::TLS13)]
        .into_iter()
        .filter(|(version, _)| *version >= min)
        .filter(|(version, _)| max.is_none_or(|max| *version <= max))
        .map(|(_, version)| version)
        .collect()
}

fn identity(cert: &str, key: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
    Ok((chain.map_err(Error::Cert)?, key.map_err(Error::Key)?))
}

fn roots(key: &'static str, pem: &str) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|source| Error::Ca { key, source })?;
        roots.add(certificate).map_err(|source| Error::InvalidCa { key, source })?;
    }
    if roots.is_empty() { Err(Error::EmptyCa(key)) } else { Ok(Arc::new(roots)) }
}

/// The error of rustls among the causes of an error, if there is one.
pub fn find_rustls_error<'e>(mut error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
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
