//! Remote read: the client that reads history for training and gap fills, and the server that makes the windows
//! queryable.
//!
//! The client requests chunks in a stream of frames: the server need not decode them, and neither side holds the
//! whole response in memory. The alternative, one message with all samples, is used where the server does not
//! support the stream or stores chunks of an unknown encoding.

pub mod client;
pub mod collector;
pub mod error;
pub mod frames;
pub mod server;
pub mod xor;

use crate::http::Url;
use crate::http::config::ClientConfig;
use crate::telemetry::{OneLabel, register};
use crate::yaml::{Key, KeyTable, Section};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use std::time::Duration;

pub use client::ReadClient;
pub use collector::SeriesSamples;
pub use error::Error;

/// A `remote_read` block. Names and defaults are Prometheus'.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// URL of the endpoint.
    pub url: Url,
    /// Connection, authentication and proxy.
    pub http: ClientConfig,
    /// Longest duration of one request.
    pub remote_timeout: Duration,
}

/// The keys of a `remote_read` block, without those of the HTTP client.
pub const KEY_TABLES: [KeyTable; 1] = [KeyTable::new(
    &["remote_read[]"],
    &[
        Key::required("url", "http://localhost:9090/api/v1/read", "URL of the endpoint"),
        Key::with_default("remote_timeout", "1m", "Longest duration of one request"),
    ],
)];

impl Default for Config {
    fn default() -> Self {
        let url = "http://localhost:9090/api/v1/read".parse().expect("a URL");
        Self { url, http: ClientConfig::default(), remote_timeout: Duration::from_secs(60) }
    }
}

impl Config {
    /// Reads a block of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let default = Self::default();
        let url = section.require("url").and_then(|node| node.parse(str::parse));
        let remote_timeout = section.duration("remote_timeout", default.remote_timeout);
        let http = ClientConfig::read(&mut section);
        section.ignore(&["name"], "it names a client in Prometheus' metrics");
        section.ignore(&["read_recent"], "history of any age is read");
        section.ignore(&["filter_external_labels"], "requests have no external labels");
        section.ignore(&["chunked_read_limit"], "the limit of a frame is fixed");
        section.reject(&["required_matchers"], "every endpoint is asked for all series: remove it");
        section.reject(
            &["google_iam"],
            "this kind of authentication is not supported: read through a proxy that adds it",
        );
        section.deny_unknown();
        Self { url: url.unwrap_or(default.url), http, remote_timeout }
    }
}

/// Metrics of the client.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    slices: OneLabel<Counter>,
    samples: Counter,
    skipped: OneLabel<Counter>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            slices: register(
                registry,
                "remote_read_slices",
                "Time slices requested by outcome; a split slice is requested again as halves, one with \
                 unknown_encoding as samples",
            ),
            samples: register(registry, "remote_read_samples", "Samples read by remote read"),
            skipped: register(
                registry,
                "remote_read_skipped",
                "Skipped chunks or samples of native histograms, and skipped invalid series, by reason",
            ),
        }
    }

    fn count_slice(&self, outcome: &'static str) {
        self.slices.get_or_create(&[("outcome", outcome.into())]).inc();
    }

    fn count_skipped(&self, skipped: collector::SkipCounts) {
        let collector::SkipCounts { histograms, invalid_series } = skipped;
        for (reason, count) in [("histogram", histograms), ("invalid_series", invalid_series)] {
            self.skipped.get_or_create(&[("reason", reason.into())]).inc_by(count as u64);
        }
    }
}

#[cfg(test)]
mod tests;
