//! The settings and the log of librdkafka that consumer and router share.

use super::Config;
use crate::http::ReadFileError;
use crate::http::tls::TlsMaterial;
use crate::telemetry::LogThrottle;
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tracing::{debug, info, warn};

/// Header of each record: the number of partitions that its own was chosen among, as text.
pub const PARTITIONS_HEADER: &str = "partitions";
/// Interval of log lines for one reason.
pub const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate or the password cannot be read.
    #[error(transparent)]
    ReadFile(#[from] ReadFileError),
    /// The client rejects a setting, or has failed for good.
    #[error(transparent)]
    Client(#[from] KafkaError),
}

/// The settings of every client.
///
/// # Errors
/// [`ReadFileError`] for certificates and passwords.
pub fn client_config(config: &Config) -> Result<ClientConfig, ReadFileError> {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", config.brokers.join(","))
        .set("client.id", "promforest")
        // A broker that is back is found within seconds.
        .set("reconnect.backoff.max.ms", "2000")
        .set_log_level(RDKafkaLogLevel::Info);
    let (tls, sasl) = (&config.security.tls, &config.security.sasl);
    let protocol = match (tls, sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    client.set("security.protocol", protocol);
    if let Some(tls) = tls {
        let TlsMaterial { ca, cert, key } = TlsMaterial::read(tls)?;
        if ca.is_none() {
            // The image has a file of authorities, and not the folder that OpenSSL looks in.
            client.set("ssl.ca.location", "probe");
        }
        for (name, pem) in [("ssl.ca.pem", ca), ("ssl.certificate.pem", cert), ("ssl.key.pem", key)] {
            pem.map(|pem| client.set(name, pem));
        }
        if tls.insecure_skip_verify {
            client.set("enable.ssl.certificate.verification", "false");
            client.set("ssl.endpoint.identification.algorithm", "none");
        }
    }
    if let Some(sasl) = sasl {
        client
            .set("sasl.mechanism", &sasl.mechanism)
            .set("sasl.username", &sasl.username)
            .set("sasl.password", sasl.password.read()?);
    }
    Ok(client)
}

/// The log of a client: of its errors one line a minute for each section of the configuration that they point to.
#[derive(Default)]
pub struct ClientLog(Mutex<BTreeMap<&'static str, LogThrottle>>);

impl ClientLog {
    /// Adds an error. The reason is that of librdkafka, which has the broker and the state of the connection.
    pub fn add_error(&self, error: &KafkaError, reason: &str) {
        // It follows errors that have a reason.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        self.warn(if reason.is_empty() { error.to_string() } else { reason.into() });
    }

    /// Adds a line of librdkafka's log.
    pub fn add_line(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};
        match (facility, level) {
            // Closed connections; those that are errors come as such.
            ("FAIL", Warning | Notice | Info) => self.warn(message.into()),
            ("FAIL", _) | (_, Info | Debug) => debug!(component = "kafka", facility, "{message}"),
            (_, Error | Warning | Notice) => info!(component = "kafka", facility, "{message}"),
            (_, Emerg | Alert | Critical) => {
                warn!(component = "kafka", facility, err = message, "the client reports an error");
            }
        }
    }

    fn warn(&self, err: String) {
        let section = section(&err);
        let mut throttles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let throttle = throttles.entry(section).or_insert_with(|| LogThrottle::new(LOG_INTERVAL));
        let Some(count) = throttle.add(1) else { return };
        match section {
            "" => warn!(component = "kafka", err, count, "no answer of Kafka, trying again"),
            _ => warn!(component = "kafka", section, err, count, "no connection to Kafka, trying again"),
        }
    }
}

/// The section of the configuration that an error points to, by the words of librdkafka and OpenSSL.
fn section(error: &str) -> &'static str {
    match error {
        _ if error.contains("SASL") => "kafka.sasl",
        // A broker that goes away, or that wants credentials of a client without any.
        _ if error.contains("closed by peer") && error.contains("state UP") => "",
        // A broker with TLS closes a connection without it before the first answer.
        _ if error.contains("SSL") || error.contains("state APIVERSION_QUERY") => "kafka.tls_config",
        _ => "",
    }
}
