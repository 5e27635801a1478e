//! The sources of history: samples that were stored before, for training and gap fills.
//!
//! A source is a server with remote read, with VictoriaMetrics' export, or with PromQL's query API. Each is asked for
//! raw samples, one slice of time after the other: PromQL's `query_range` would return values at the steps of a grid,
//! of which no rate is equal to Prometheus'.

pub mod client;
pub mod collector;
pub mod error;
mod export;
mod query;
mod remote_read;
mod request;

use crate::http::Url;
use crate::http::config::{ClientConfig, read_endpoint};
use crate::telemetry::{OneLabel, register};
use crate::tenant;
use crate::yaml::{Key, KeyTable, Section};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub use client::{HistoryClient, Pace};
pub use collector::SeriesSamples;
pub use error::Error;

/// The request that returns raw samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Api {
    /// Prometheus' remote read.
    #[default]
    RemoteRead,
    /// VictoriaMetrics' `/api/v1/export`.
    Export,
    /// PromQL's `/api/v1/query` with a range selector.
    Query,
}

/// A value of `api` that is none.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not one of export, query; a server with remote read stands in remote_read")]
pub struct UnknownApi(String);

impl std::str::FromStr for Api {
    type Err = UnknownApi;

    fn from_str(text: &str) -> Result<Self, UnknownApi> {
        match text {
            "export" => Ok(Self::Export),
            "query" => Ok(Self::Query),
            _ => Err(UnknownApi(text.into())),
        }
    }
}

/// A `history` or `remote_read` block. Of the latter, names and defaults are Prometheus'.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The request that returns samples.
    pub api: Api,
    /// URL of the remote-read endpoint; of the other kinds, the URL before `/api/v1`.
    pub url: Url,
    /// Connection, authentication and proxy.
    pub http: ClientConfig,
    /// Longest duration of one request.
    pub remote_timeout: Duration,
    /// The tenants that the requests are divided by, if there are any.
    pub tenants: Option<Arc<tenant::Config>>,
}

const REMOTE_TIMEOUT: Key = Key::with_default("remote_timeout", "1m", "Longest duration of one request");

/// The keys of a `history` and a `remote_read` block, without those of the HTTP client.
pub const KEY_TABLES: [KeyTable; 2] = [
    KeyTable::new(
        &["history[]"],
        &[
            Key::required(
                "url",
                "http://localhost:8428",
                "URL of the server, up to the path before `/api/v1`",
            ),
            Key::required(
                "api",
                "export",
                "`export`: raw samples from VictoriaMetrics' `/api/v1/export`. `query`: raw samples from \
                 `/api/v1/query` of Prometheus, Thanos, Mimir or Grafana Cloud, which leave out staleness markers",
            ),
            REMOTE_TIMEOUT,
        ],
    ),
    KeyTable::new(
        &["remote_read[]"],
        &[Key::required("url", "http://localhost:9090/api/v1/read", "URL of the endpoint"), REMOTE_TIMEOUT],
    ),
];

impl Default for Config {
    fn default() -> Self {
        let url = "http://localhost:9090/api/v1/read".parse().expect("a URL");
        let remote_timeout = Duration::from_secs(60);
        Self { api: Api::RemoteRead, url, http: ClientConfig::default(), remote_timeout, tenants: None }
    }
}

impl Config {
    /// Reads a `history` block of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let default = Self::default();
        let url_node = section.require("url");
        let url = url_node.as_ref().and_then(|node| node.parse(str::parse::<Url>));
        if let (Some(node), Some(url)) = (&url_node, &url)
            && url.to_string().contains("/api/v1")
        {
            node.error(format!("{url} contains /api/v1: the URL ends before it"));
        }
        let api = section.require("api").and_then(|node| node.parse(str::parse));
        let remote_timeout = section.duration("remote_timeout", default.remote_timeout);
        let http = ClientConfig::read(&mut section);
        section.deny_unknown();
        Self {
            api: api.unwrap_or_default(),
            url: url.unwrap_or(default.url),
            http,
            remote_timeout,
            ..default
        }
    }

    /// Reads a `remote_read` block of the configuration file.
    pub fn read_remote_read(mut section: Section<'_, '_>) -> Self {
        let default = Self::default();
        let url = section.require("url").and_then(|node| read_endpoint(&node, "/api/v1/read"));
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
        Self { api: Api::RemoteRead, url: url.unwrap_or(default.url), http, remote_timeout, ..default }
    }

    /// True if the source serves what this remote-write endpoint stores: both are in one folder of one server. Headers
    /// tell the tenants of one server apart.
    pub fn serves(&self, endpoint: &Url, http: &ClientConfig) -> bool {
        let is_sibling = match self.api {
            Api::RemoteRead => endpoint.is_sibling(&self.url),
            Api::Export | Api::Query => {
                self.url.with_path_and_query("/api/v1/query", &[]).is_ok_and(|url| endpoint.is_sibling(&url))
            }
        };
        is_sibling && http.headers == self.http.headers
    }
}

/// Metrics of the client.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    slices: OneLabel<Counter>,
    samples: Counter,
    seconds: Counter<f64, AtomicU64>,
    skipped: OneLabel<Counter>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            slices: register(
                registry,
                "history_slices",
                "Time slices requested from the sources of history by outcome; a split slice is requested again as \
                 halves, one with unknown_encoding as samples",
            ),
            samples: register(registry, "history_samples", "Samples read from the sources of history"),
            seconds: register(
                registry,
                "history_seconds",
                "Time in which requests for the history of trainings ran, one at a time for each source",
            ),
            skipped: register(
                registry,
                "history_skipped",
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
