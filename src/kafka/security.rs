//! Encryption of the connections to Kafka, and the credentials of the client.
//!
//! The keys are those of the HTTP client, but for those that librdkafka has no setting for. The files are read when a
//! client is made.

use crate::http::SecretSource;
use crate::http::tls::{CERTIFICATE_KEYS, TlsConfig};
use crate::yaml::{Key, KeyTable, Node, Section};

/// The mechanisms of `sasl`.
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// The keys of both sections.
pub const KEY_TABLES: [KeyTable; 2] = [
    KeyTable::new(&["kafka.tls_config"], CERTIFICATE_KEYS),
    KeyTable::new(
        &["kafka.sasl"],
        &[
            Key::required("mechanism", "SCRAM-SHA-512", "`PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`"),
            Key::required("username", "promforest", "User name"),
            Key::optional("password", "Password; this key or `password_file` is required"),
            Key::optional("password_file", "File with the password"),
        ],
    ),
];

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Security {
    /// The certificates of encrypted connections; `None` for connections without encryption.
    pub tls: Option<TlsConfig>,
    /// The credentials.
    pub sasl: Option<Sasl>,
}

/// User name and password.
#[derive(Clone, Debug, PartialEq)]
pub struct Sasl {
    /// One of [`MECHANISMS`].
    pub mechanism: String,
    /// The user name.
    pub username: String,
    /// The password.
    pub password: SecretSource,
}

impl Security {
    /// Reads `tls_config` and `sasl` of the section `kafka`.
    pub fn from_section(section: &mut Section<'_, '_>) -> Self {
        let tls = section.get("tls_config").and_then(Node::section).map(|mut tls| {
            tls.reject(
                &["server_name"],
                "a certificate must have the name or the address by which its broker is reached",
            );
            tls.reject(
                &["min_version", "max_version"],
                "the versions of TLS are those of the system's OpenSSL",
            );
            TlsConfig::read_certificates(tls)
        });
        let sasl =
            section.get("sasl").and_then(Node::section).and_then(|sasl| Sasl::read(sasl, tls.is_some()));
        Self { tls, sasl }
    }
}

impl Sasl {
    fn read(mut section: Section<'_, '_>, is_encrypted: bool) -> Option<Self> {
        let mechanism = section.require("mechanism");
        let username = section.require("username").and_then(|node| node.string());
        let password = SecretSource::from_section(&mut section, "password", "password_file");
        let is_empty = |password: &SecretSource| password.read().is_ok_and(|text| text.is_empty());
        match &password {
            None => section.error("password or password_file is missing"),
            Some(password) if is_empty(password) => section.error("the password is empty"),
            Some(_) => {}
        }
        let mechanism = mechanism.and_then(|node| {
            let mechanism = node.text()?;
            if !MECHANISMS.contains(&&*mechanism) {
                node.error(format!("{mechanism:?} is not one of {}", MECHANISMS.join(", ")));
            } else if mechanism == "PLAIN" && !is_encrypted {
                node.warn("the password is sent without encryption: add `tls_config`");
            }
            Some(mechanism)
        });
        section.deny_unknown();
        Some(Self { mechanism: mechanism?, username: username?, password: password? })
    }
}
