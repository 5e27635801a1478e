//! Certificates of a test's own, and the program's client.

use promforest::config::Config;
use promforest::http::client::Client;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// A certificate authority.
pub struct Authority {
    /// Its certificate, as PEM.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
pub struct Identity {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// An authority of its own.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for a name or an address.
    pub fn identity(&self, name: &str) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_string()]).expect("a name");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Identity { cert, key: key.serialize_pem() }
    }

    /// Trust in this authority.
    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM")).expect("an authority");
        Arc::new(roots)
    }
}

/// A folder with these files.
pub fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("writable");
    }
    folder
}

/// A client by the keys of a remote write block; paths begin at `folder`.
pub fn client(folder: &Path, keys: &str) -> Client {
    let block = format!("url: http://localhost/\n{}", keys.trim());
    let text = format!("remote_write:\n  - {}\n", block.replace('\n', "\n    "));
    let file = folder.join("promforest.yml");
    fs::write(&file, text).expect("writable");
    let config = Config::load(&file).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config, Config::load(&file).expect("valid"), "the same file is the same configuration");
    Client::new(&config.remote_write[0].http).expect("a client")
}
