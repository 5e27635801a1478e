//! The remote endpoints of a configuration, and access to the history of a group through them.

use super::history::{self, FiringAlert, ReadSize};
use crate::detector::{Detector, FeatureIdentity};
use crate::error::chain;
use crate::history::{Error, HistoryClient, Pace, SeriesSamples};
use crate::http::Url;
use crate::models::registry::periods::Period;
use crate::models::registry::{self, Registry};
use crate::prom::Labels;
use crate::remote_write;
use crate::report::zone::Zone;
use crate::tenant::Tenant;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time without requests after a source of history or a registry did not answer.
const COOLDOWN: Duration = Duration::from_secs(60);

/// Length of the cooldown of a tenant as a multiple of the time that its read took: the reads of a tenant whose back end hangs
/// take a tenth of the time of the trainings at most.
const TENANT_COOLDOWN_FACTOR: u32 = 9;

/// Time that the registry may take to return maintenance and feedback to a model that is to serve.
const PERIODS_TIMEOUT: Duration = Duration::from_secs(10);

/// The failure of a read that the cooldown prevents.
const IN_COOLDOWN: &str = "the source of history is in cooldown";

/// The detectors and the remote endpoints of a configuration.
pub struct Backends {
    /// The detectors.
    pub detectors: Vec<Arc<Detector>>,
    /// Clients of the sources of history, in the order in which they are asked.
    pub history_clients: Vec<HistoryClient>,
    /// The remote-write endpoints.
    pub endpoints: Vec<remote_write::Config>,
    /// The model registry.
    pub registry: Registry,
    /// Configuration of the registry.
    pub registry_config: registry::Config,
    /// The zone of times in reports.
    pub report_zone: Zone,
}

/// The endpoints in cooldown. One endpoint that hangs would otherwise delay the trainings of all groups. Clones share them.
#[derive(Clone, Default)]
pub struct CircuitBreaker(Arc<Mutex<Cooldowns>>);

#[derive(Default)]
struct Cooldowns {
    /// Sources of history, each with the tenant that it fails for, unless it fails for all, and the end of its cooldown.
    clients: Vec<(Url, Option<Tenant>, Instant)>,
    /// End of the registry's cooldown.
    registry: Option<Instant>,
}

impl CircuitBreaker {
    fn lock(&self) -> MutexGuard<'_, Cooldowns> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the cooldowns that are over.
    pub(super) fn reset_expired(&self, now: Instant) {
        let mut cooldowns = self.lock();
        cooldowns.clients.retain(|(_, _, until)| now < *until);
        cooldowns.registry = cooldowns.registry.filter(|until| now < *until);
    }

    /// Starts the cooldown of a source of history for a tenant; without one, for all. `took` is the time of the read that
    /// failed.
    pub(super) fn open_client(&self, url: &Url, tenant: Option<&Tenant>, now: Instant, took: Duration) {
        let cooldown = tenant.map_or(COOLDOWN, |_| COOLDOWN.max(took * TENANT_COOLDOWN_FACTOR));
        if !self.is_client_open(url, tenant) {
            self.lock().clients.push((url.clone(), tenant.cloned(), now + cooldown));
        }
    }

    /// True during the cooldown of a source of history for a tenant.
    pub(super) fn is_client_open(&self, url: &Url, tenant: Option<&Tenant>) -> bool {
        let is_meant = |open: &Option<Tenant>| open.is_none() || open.as_ref() == tenant;
        self.lock().clients.iter().any(|(open_url, open, _)| open_url == url && is_meant(open))
    }

    /// Starts the cooldown of the registry.
    pub(super) fn open_registry(&self, now: Instant) {
        self.lock().registry = Some(now + COOLDOWN);
    }

    /// True during the cooldown of the registry.
    pub(super) fn is_registry_open(&self) -> bool {
        self.lock().registry.is_some()
    }
}

/// Reads the history of a group from all sources that are not in cooldown.
pub struct GroupReader<'a> {
    /// The endpoints.
    pub backends: &'a Backends,
    /// The endpoints in cooldown.
    pub circuit_breaker: &'a CircuitBreaker,
    /// Detector of the group.
    pub detector: &'a Detector,
    /// Labels of the group.
    pub labels: &'a Labels,
    /// The identity of its features.
    pub identity: FeatureIdentity,
    /// The pace of reading samples.
    pub pace: Pace,
}

/// The history of a group, as far as the endpoints returned it.
pub(super) struct GroupHistory {
    /// Samples, with features as labels.
    pub series: Vec<SeriesSamples>,
    /// Error text of the last endpoint that failed. Endpoints without the API do not count.
    pub failure: Option<String>,
}

impl GroupReader<'_> {
    /// Reads the samples of the group. A history above the limit of a read is a failure without samples.
    pub(super) async fn read(&mut self, range: (i64, i64)) -> GroupHistory {
        let matchers = history::group_matchers(self.detector, self.labels);
        let tenant = self.tenant();
        let mut history = GroupHistory { series: Vec::new(), failure: None };
        let mut size = ReadSize::default();
        for client in &self.backends.history_clients {
            if self.is_in_cooldown(client) {
                history.failure = Some(IN_COOLDOWN.to_string());
                continue;
            }
            let on_series = |series: Vec<SeriesSamples>| {
                size.add(&series)?;
                history.series.extend(series);
                Ok(())
            };
            let group = (tenant.as_ref(), &matchers[..]);
            let started = Instant::now();
            let read = history::read_samples(client, self.detector, group, range, self.pace, on_series);
            if let Err(error) = read.await {
                history.failure = self.failure_of(client, &error, started).or(history.failure);
                if matches!(error, Error::ReadTooLarge { .. }) {
                    history.series = Vec::new();
                    break;
                }
            }
        }
        self.identity.clone().rename(self.detector, &mut history.series);
        history
    }

    /// Reads the times in which alerts of `exclude_alerts` fired. The second value is the error text of the last endpoint
    /// that failed.
    pub(super) async fn read_alerts(&mut self, range: (i64, i64)) -> (Vec<FiringAlert>, Option<String>) {
        let names = &self.detector.training.exclude_alerts;
        let (mut alerts, mut failure) = (Vec::new(), None);
        for client in self.backends.history_clients.iter().filter(|_| !names.is_empty()) {
            if self.is_in_cooldown(client) {
                failure = Some(IN_COOLDOWN.to_string());
                continue;
            }
            let started = Instant::now();
            match history::read_firing_alerts(client, self.tenant().as_ref(), names, range).await {
                Ok(found) => alerts.extend(found),
                Err(error) => failure = self.failure_of(client, &error, started).or(failure),
            }
        }
        (alerts, failure)
    }

    fn tenant(&self) -> Option<Tenant> {
        self.detector.tenant_of(self.labels)
    }

    pub(super) fn is_in_cooldown(&self, client: &HistoryClient) -> bool {
        self.circuit_breaker.is_client_open(&client.config.url, self.tenant().as_ref())
    }

    /// Starts the cooldown of a source that failed in a read since `started`, for all tenants or that of the group; without
    /// an error, it did not answer in time.
    pub(super) fn open_client(&mut self, client: &HistoryClient, error: Option<&Error>, started: Instant) {
        let tenant = self.tenant().filter(|_| !error.is_some_and(Error::is_of_source));
        let (now, took) = (Instant::now(), started.elapsed());
        self.circuit_breaker.open_client(&client.config.url, tenant.as_ref(), now, took);
    }

    /// Starts the cooldown of an endpoint that failed, and returns the error text. `None` for one without the API.
    fn failure_of(&mut self, client: &HistoryClient, error: &Error, started: Instant) -> Option<String> {
        let is_too_large = matches!(error, Error::ReadTooLarge { .. });
        // Without tenants, a group whose history is too large would stop the trainings of all.
        if error.is_recoverable() || is_too_large && self.tenant().is_some() {
            self.open_client(client, Some(error), started);
        }
        (error.is_recoverable() || is_too_large).then(|| chain(error))
    }

    /// Reads maintenance and feedback; none if the registry does not answer in time.
    pub(super) async fn read_periods(&mut self) -> Vec<Period> {
        if self.circuit_breaker.is_registry_open() {
            return Vec::new();
        }
        match tokio::time::timeout(PERIODS_TIMEOUT, self.backends.registry.periods()).await {
            Ok(Ok(periods)) => periods,
            // The training reads them too, and reports the failure.
            Ok(Err(_)) => Vec::new(),
            Err(_) => {
                self.circuit_breaker.open_registry(Instant::now());
                Vec::new()
            }
        }
    }
}
