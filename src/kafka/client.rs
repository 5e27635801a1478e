//! The settings and the log of librdkafka that consumer and router share.

use super::Config;
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use tracing::{debug, info, warn};

/// Header of each record: the number of partitions that its own was chosen among, as text.
pub const PARTITIONS_HEADER: &str = "partitions";

/// The settings of every client.
pub fn client_config(config: &Config) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", config.brokers.join(","))
        .set("client.id", "promforest")
        // A broker that is back is found within seconds.
        .set("reconnect.backoff.max.ms", "2000");
    client
}

/// Logs a line of librdkafka. Brokers that are away are errors of the caller too, which has a counter for them.
pub fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            warn!(component = "kafka", facility, err = message, "the client reports an error");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => {
            info!(component = "kafka", facility, "{message}");
        }
        RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => debug!(component = "kafka", facility, "{message}"),
    }
}
