//! Kafka: a source of samples for the sidecar, and the router that fills it.
//!
//! A record is a write request. `promforest route` puts the series of a target into one partition, so the owner of the
//! partition has whole groups. The committed offset is the cursor: it moves when every row of the records before it is
//! written to every endpoint or given up. After a restart the records before it fill the windows and advance the models, and
//! those after it are written.
//!
//! Members keep their partitions over a restart (static membership), and only partitions that move stop (cooperative
//! assignment). Not taken: the newer group protocol of KIP-848, with which a member that is killed and returns at once ends
//! with a fatal error, and which takes over after 43 s instead of the session's timeout.

pub mod config;
pub mod intake;
pub mod metrics;
#[cfg(feature = "kafka")]
mod client;
#[cfg(feature = "kafka")]
mod consumer;
#[cfg(feature = "kafka")]
mod member;
pub mod options;
#[cfg(feature = "kafka")]
pub mod router;
pub mod security;
#[cfg(feature = "kafka")]
mod split;
pub mod source;
#[cfg(feature = "kafka")]
mod start;

pub use config::{Compression, Config};
pub use intake::{Intake, Progress, Record, RecordOutcome};
pub use metrics::Metrics;
pub use options::SourceOptions;
pub use security::Security;
pub use source::Source;
