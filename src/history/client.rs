//! The client: reads a range in time slices, each with one request.
//!
//! A slice is used only if its response ends as declared; a response that breaks off yields no samples. A slice
//! that exceeds a limit of either side is halved. The alternative, one request for the whole range, fails on every
//! server with a sample limit and has no bound on memory.

use super::collector::{ResponseCollector, SeriesSamples};
use super::error::Error;
use super::request::{Endpoint, Slice};
use super::{Api, Config, Metrics, export, query, remote_read};
use crate::http::client::{self, Client};
use crate::prom::Selector;
use crate::prom::matcher::Matcher;
use crate::prom::proto::ResponseType;
use crate::tenant::Tenant;
use crate::time::DAY_MS;
use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

/// Length of the first slice.
const MAX_SLICE_MS: i64 = DAY_MS;
/// Slices of this length are not halved.
const MIN_SLICE_MS: i64 = 60_000;
/// Consecutive timeouts after which a slice is no longer halved. The limit bounds the time that a hanging server costs.
const MAX_TIMEOUTS: usize = 2;
/// Longest pause after a slice that is read at a pace.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The share of time that reads of history may take of a source. Reads at a pace of `Half` and `Quarter` share one
/// turn: only one of their requests runs at a time, and each is followed by a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Without pauses, for what is small or cannot wait.
    Immediate,
    /// The pauses are as long as the requests: a group waits for its model.
    Half,
    /// The pauses are three times as long as the requests: a model serves meanwhile.
    Quarter,
}

impl Pace {
    /// The pause after a request.
    fn pause_after(self, took: Duration) -> Duration {
        let factor = match self {
            Self::Immediate => 0,
            Self::Half => 1,
            Self::Quarter => 3,
        };
        (took * factor).min(MAX_PAUSE)
    }
}

/// A client for one source of history.
pub struct HistoryClient {
    /// The block that configures it.
    pub config: Config,
    client: Client,
    pub(super) metrics: Metrics,
    /// The chunks of the remote-read endpoint have an unknown encoding: only samples are requested.
    has_unknown_encoding: AtomicBool,
    /// The tenants whose last read failed; without tenants, `None`. The failures of a run are logged once.
    failing: std::sync::Mutex<BTreeSet<Option<Tenant>>>,
    /// The turn of reads at a pace, with the end of the pause.
    turn: Mutex<Instant>,
}

impl HistoryClient {
    /// A client that has not connected yet.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn new(config: &Config, metrics: &Metrics) -> Result<Self, client::Error> {
        Ok(Self {
            config: config.clone(),
            client: Client::new(&config.http)?,
            metrics: metrics.clone(),
            has_unknown_encoding: AtomicBool::default(),
            failing: std::sync::Mutex::default(),
            turn: Mutex::new(Instant::now()),
        })
    }

    /// Reads the series of a group that match a selector, over `(after_ms, to_ms]`. Calls `on_slice` once for each
    /// complete slice, in order of time; a series may be in several slices. At most one slice is in memory.
    ///
    /// If the requests are divided by tenant, only the series of this tenant are asked for: the request has the tenant's
    /// header and no matcher on its label, and the series that are read have the label.
    ///
    /// # Errors
    /// [`Error`] of the first slice that fails. `on_slice` is not called for that slice; the slices before it are
    /// complete.
    pub async fn read(
        &self,
        tenant: Option<&Tenant>,
        selector: &Selector,
        group: &[Matcher],
        range: (i64, i64),
        mut on_slice: impl FnMut(Vec<SeriesSamples>),
    ) -> Result<(), Error> {
        let on_slice = |series| {
            on_slice(series);
            Ok(())
        };
        self.read_at_pace(Pace::Immediate, tenant, selector, group, range, on_slice).await
    }

    /// [`read`](Self::read) at a pace. An error of `on_slice` ends the read.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), and that of `on_slice`.
    pub async fn read_at_pace(
        &self,
        pace: Pace,
        tenant: Option<&Tenant>,
        selector: &Selector,
        group: &[Matcher],
        range: (i64, i64),
        mut on_slice: impl FnMut(Vec<SeriesSamples>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let matchers = selector.matchers().iter().chain(group);
        let result = match (&self.config.tenants, tenant) {
            (None, _) => {
                let matchers: Vec<Matcher> = matchers.cloned().collect();
                self.read_slices(pace, None, &matchers, range, on_slice).await
            }
            (Some(tenants), Some(tenant)) => {
                let label = &tenants.label;
                let Some(matchers) = label.outward_matchers(matchers, tenant) else { return Ok(()) };
                let with_tenant = |series: Vec<SeriesSamples>| {
                    let add = |(labels, samples)| (label.add(&labels, tenant), samples);
                    on_slice(series.into_iter().map(add).collect())
                };
                self.read_slices(pace, Some(tenant), &matchers, range, with_tenant).await
            }
            (Some(_), None) => return Err(Error::NoTenant),
        };
        if self.changes_outcome(tenant, result.is_err()) {
            let (url, tenant) = (&self.config.url, tenant.map(Tenant::as_str));
            match &result {
                Err(error) => {
                    warn!(component = "history", url = %url, tenant, err = crate::error::chain(error), "history cannot be read; further failures are not logged until it can");
                }
                Ok(()) => info!(component = "history", url = %url, tenant, "history can be read again"),
            }
        }
        result
    }

    /// True if the last read of the tenant had another outcome.
    fn changes_outcome(&self, tenant: Option<&Tenant>, is_failure: bool) -> bool {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_failure {
            return failing.remove(&tenant.cloned());
        }
        // Those that are gone make room.
        if self.config.tenants.as_ref().is_some_and(|tenants| failing.len() > tenants.tenant_limit) {
            failing.clear();
        }
        failing.insert(tenant.cloned())
    }

    async fn read_slices(
        &self,
        pace: Pace,
        tenant: Option<&Tenant>,
        matchers: &[Matcher],
        (after_ms, to_ms): (i64, i64),
        mut on_slice: impl FnMut(Vec<SeriesSamples>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (mut slice_ms, mut timeouts) = (MAX_SLICE_MS, 0);
        let mut start_ms = after_ms + 1;
        while start_ms <= to_ms {
            // The last slice may be shorter than the others.
            let end_ms = to_ms.min(start_ms + slice_ms - 1);
            let slice = Slice { tenant, matchers, start_ms, end_ms };
            let length_ms = slice.length_ms();
            let read = match pace {
                Pace::Immediate => self.read_slice(&slice).await,
                Pace::Half | Pace::Quarter => self.read_in_turn(pace, &slice).await,
            };
            match read {
                Ok(series) => {
                    self.metrics.count_slice("read");
                    let samples: usize = series.iter().map(|(_, samples)| samples.len()).sum();
                    self.metrics.samples.inc_by(samples as u64);
                    on_slice(series)?;
                    (start_ms, timeouts) = (slice.end_ms + 1, 0);
                    continue;
                }
                Err(error) if length_ms <= MIN_SLICE_MS => return Err(self.count_failed(error)),
                Err(error) if error.is_too_large() => {}
                Err(error) if error.is_timeout() && timeouts < MAX_TIMEOUTS => timeouts += 1,
                Err(error) => return Err(self.count_failed(error)),
            }
            self.metrics.count_slice("split");
            slice_ms = length_ms / 2;
        }
        Ok(())
    }

    fn count_failed(&self, error: Error) -> Error {
        self.metrics.count_slice("failed");
        error
    }

    /// Reads a slice when no other read at a pace runs and the pause is over.
    async fn read_in_turn(&self, pace: Pace, slice: &Slice<'_>) -> Result<Vec<SeriesSamples>, Error> {
        let mut resumes_at = self.turn.lock().await;
        tokio::time::sleep_until(*resumes_at).await;
        let started = Instant::now();
        let series = self.read_slice(slice).await;
        let took = started.elapsed();
        self.metrics.seconds.inc_by(took.as_secs_f64());
        *resumes_at = Instant::now() + pace.pause_after(took);
        series
    }

    async fn read_slice(&self, slice: &Slice<'_>) -> Result<Vec<SeriesSamples>, Error> {
        if self.has_unknown_encoding.load(Ordering::Relaxed) {
            return self.fetch(slice, &[ResponseType::Samples]).await;
        }
        match self.fetch(slice, &[ResponseType::StreamedXorChunks, ResponseType::Samples]).await {
            Err(Error::Encoding { encoding }) => {
                self.metrics.count_slice("unknown_encoding");
                if !self.has_unknown_encoding.swap(true, Ordering::Relaxed) {
                    warn!(component = "history", url = %self.config.url, encoding, "unknown chunk encoding, requesting samples instead");
                }
                self.fetch(slice, &[ResponseType::Samples]).await
            }
            result => result,
        }
    }

    /// Reads a slice; the response types are those of remote read.
    async fn fetch(
        &self,
        slice: &Slice<'_>,
        response_types: &[ResponseType],
    ) -> Result<Vec<SeriesSamples>, Error> {
        let Config { api, url, remote_timeout, tenants, .. } = &self.config;
        let tenant = tenants.as_deref().zip(slice.tenant);
        let endpoint = Endpoint { client: &self.client, url, timeout: *remote_timeout, tenant };
        let mut collector = ResponseCollector::new(slice.start_ms, slice.end_ms);
        let received = match api {
            Api::RemoteRead => remote_read::receive(&endpoint, slice, response_types, &mut collector).await,
            Api::Export => export::receive(&endpoint, slice, &mut collector).await,
            Api::Query => query::receive(&endpoint, slice, &mut collector).await,
        };
        self.metrics.count_skipped(collector.skipped());
        received.map(|()| collector.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failures_of_a_tenant_are_told_once_whatever_the_others_do() {
        let config = crate::config::Config::parse("tenants: {tenant_limit: 2}").expect("valid");
        let client = HistoryClient::new(&config.history[0], &Metrics::default()).expect("a client");
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|id| id.parse::<Tenant>().expect("an ID"));
        let told = |tenant: &Tenant, is_failure| client.changes_outcome(Some(tenant), is_failure);
        assert!(!told(&b, false) && told(&a, true), "it failed for the first time");
        assert!(!told(&b, false) && !told(&a, true), "the other goes on");
        assert!(told(&a, false) && !told(&a, false));
        for tenant in [&a, &b, &c, &d] {
            assert!(told(tenant, true));
        }
        assert_eq!(client.failing.lock().expect("no panic").len(), 1, "the memory is bounded");
    }

    #[test]
    fn a_pause_is_a_multiple_of_the_request_with_a_bound() {
        let seconds = |pace: Pace, took| pace.pause_after(Duration::from_secs(took)).as_secs();
        assert_eq!([Pace::Immediate, Pace::Half, Pace::Quarter].map(|pace| seconds(pace, 2)), [0, 2, 6]);
        assert_eq!(seconds(Pace::Quarter, 60), 30);
    }
}
