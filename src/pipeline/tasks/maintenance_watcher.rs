//! Reads maintenance from the registry, and the alerts of `exclude_alerts` that fire from Prometheus, and hands both to
//! the engine.

use crate::detector::Detector;
use crate::error::chain;
use crate::history::{Config as HistoryConfig, HistoryClient};
use crate::models::registry::periods::Period;
use crate::pipeline::engine::WeakEngineHandle;
use crate::pipeline::maintenance::{AlertKey, MAX_ALERT_TIMES, MaintenancePlan};
use crate::tenant::Tenant;
use crate::time::{self, now_ms};
use crate::train::Backends;
use crate::train::history::{self, ALERT_LOOKBACK_MS, FiringAlert};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tracing::warn;

/// Longest wait for an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The alerts of a detector at an endpoint, and of one tenant if there are tenants.
struct AlertSource {
    detector: String,
    tenant: Option<Tenant>,
    endpoint: HistoryConfig,
    /// The alerts that fired at the last answer. They fire until the poll after the next; those that were over are recorded.
    alerts: Vec<FiringAlert>,
    /// End of the range of the last answer; `None` without one.
    read_to_ms: Option<i64>,
    /// Time of the last request; `None` before the first.
    asked_at: Option<Instant>,
}

impl AlertSource {
    /// Reads the alerts since the last answer; at first those that rows of the window can meet. Returns what the endpoint
    /// has; `None` if it does not answer in time.
    async fn read(
        &mut self,
        client: &HistoryClient,
        detector: &Detector,
        poll_interval: Duration,
    ) -> Option<Vec<FiringAlert>> {
        self.asked_at = Some(Instant::now());
        let now_ms = now_ms();
        let window_start_ms = now_ms - time::millis(detector.window);
        let since_ms = self.read_to_ms.map_or(window_start_ms, |read_to_ms| read_to_ms.max(window_start_ms));
        let range = (since_ms - ALERT_LOOKBACK_MS, now_ms);
        let read = history::read_firing_alerts(
            client,
            self.tenant.as_ref(),
            &detector.training.exclude_alerts,
            range,
        );
        let read = tokio::time::timeout(READ_TIMEOUT, read).await;
        match read {
            Ok(Ok(found)) => {
                let until_ms = now_ms + 2 * time::millis(poll_interval);
                self.alerts = extend_firing(&found, until_ms);
                self.read_to_ms = Some(now_ms);
                Some(found)
            }
            _ => {
                self.alerts.retain(|alert| alert.to_ms >= now_ms - ALERT_LOOKBACK_MS);
                read.is_ok().then(Vec::new)
            }
        }
    }
}

/// Polls until the engine is gone; at once when `changed` is notified.
pub async fn run(
    engine: WeakEngineHandle,
    mut backends: watch::Receiver<Arc<Backends>>,
    changed: Arc<Notify>,
) {
    let mut plan = MaintenancePlan::default();
    let mut sources = Vec::new();
    let mut was_up = true;
    loop {
        let current = backends.borrow_and_update().clone();
        match read_periods(&current).await {
            Ok(periods) => {
                plan.periods = periods;
                was_up = true;
            }
            // What was read before stays in force.
            Err(error) if std::mem::replace(&mut was_up, false) => {
                warn!(component = "maintenance", err = error, "maintenance cannot be read from the registry");
            }
            Err(_) => {}
        }
        // Endpoints that do not answer do not delay the maintenance of the registry.
        if engine.set_maintenance(plan.clone()).await.is_none() {
            return;
        }
        let Some(read) = read_alerts(&engine, &current, sources).await else { return };
        sources = read;
        let mut alerts: BTreeMap<AlertKey, Vec<FiringAlert>> = BTreeMap::new();
        for source in &sources {
            let of_key = alerts.entry((source.detector.clone(), source.tenant.clone())).or_default();
            let n_free = MAX_ALERT_TIMES.saturating_sub(of_key.len());
            of_key.extend(source.alerts.iter().take(n_free).cloned());
        }
        if std::mem::replace(&mut plan.alerts, alerts) != plan.alerts
            && engine.set_maintenance(plan.clone()).await.is_none()
        {
            return;
        }
        // A notification ends the wait early.
        let _ = tokio::time::timeout(current.registry_config.poll_interval, changed.notified()).await;
    }
}

async fn read_periods(backends: &Backends) -> Result<Vec<Period>, String> {
    match tokio::time::timeout(READ_TIMEOUT, backends.registry.periods()).await {
        Ok(periods) => periods.map_err(|error| chain(&error)),
        Err(_) => Err(format!("no answer within {READ_TIMEOUT:?}")),
    }
}

/// Reads the alerts of each detector at each endpoint, and records them. `None` if the engine is gone.
///
/// After a timeout the endpoint is not asked for the detector's other tenants, which come first in the next round: tenants
/// whose back end hangs would otherwise delay the registry's maintenance by a timeout each.
async fn read_alerts(
    engine: &WeakEngineHandle,
    backends: &Backends,
    mut before: Vec<AlertSource>,
) -> Option<Vec<AlertSource>> {
    let of_detector = |detector: &&Arc<Detector>| !detector.training.exclude_alerts.is_empty();
    let mut sources = Vec::new();
    for detector in backends.detectors.iter().filter(of_detector) {
        let tenants = match detector.tenant_label {
            Some(_) => engine.tenants().await?.into_iter().map(Some).collect(),
            None => vec![None],
        };
        for client in &backends.history_clients {
            let mut of_client = take_sources(&mut before, &detector.name, &tenants, &client.config);
            for source in &mut of_client {
                let poll_interval = backends.registry_config.poll_interval;
                let Some(found) = source.read(client, detector, poll_interval).await else { break };
                if !found.is_empty() {
                    engine.record_alerts(source.detector.clone(), source.tenant.clone(), found).await?;
                }
            }
            sources.append(&mut of_client);
        }
    }
    Some(sources)
}

/// The sources of a detector at an endpoint, that of each tenant, those first that have waited longest.
fn take_sources(
    before: &mut Vec<AlertSource>,
    detector: &str,
    tenants: &[Option<Tenant>],
    endpoint: &HistoryConfig,
) -> Vec<AlertSource> {
    let take_source = |tenant: &Option<Tenant>| {
        let is_same = |source: &AlertSource| {
            (source.detector.as_str(), &source.tenant, &source.endpoint) == (detector, tenant, endpoint)
        };
        match before.iter().position(is_same) {
            Some(position) => before.swap_remove(position),
            None => AlertSource {
                detector: detector.to_string(),
                tenant: tenant.clone(),
                endpoint: endpoint.clone(),
                alerts: Vec::new(),
                read_to_ms: None,
                asked_at: None,
            },
        }
    };
    let mut sources: Vec<AlertSource> = tenants.iter().map(take_source).collect();
    sources.sort_by_key(|source| source.asked_at);
    sources
}

/// The alerts that fire on, until `until_ms`.
fn extend_firing(alerts: &[FiringAlert], until_ms: i64) -> Vec<FiringAlert> {
    let firing = alerts.iter().filter(|alert| alert.is_firing);
    firing.map(|alert| FiringAlert { to_ms: until_ms, ..alert.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prom::Labels;

    /// The first round ended after a timeout of `b`.
    #[test]
    fn tenants_that_have_waited_longest_are_asked_first() {
        let tenants = ["a", "b", "c", "d"].map(|id| Some(id.parse::<Tenant>().expect("an ID")));
        let endpoint = HistoryConfig::default();
        let mut before = take_sources(&mut Vec::new(), "net", &tenants[..3], &endpoint);
        let now = Instant::now();
        before[0].asked_at = Some(now);
        before[1].asked_at = Some(now + Duration::from_secs(1));
        let order = take_sources(&mut before, "net", &tenants, &endpoint);
        let ids: Vec<&str> = order.iter().flat_map(|source| &source.tenant).map(Tenant::as_str).collect();
        assert_eq!(ids, ["c", "d", "a", "b"]);
        assert!(before.is_empty());
    }

    #[test]
    fn alerts_that_fire_on_fire_until_the_poll_after_the_next() {
        let alert =
            |to_ms, is_firing| FiringAlert { labels: Labels::default(), from_ms: 0, to_ms, is_firing };
        let extended = extend_firing(&[alert(800, false), alert(1_000, true)], 1_060);
        assert_eq!(extended.iter().map(|alert| alert.to_ms).collect::<Vec<_>>(), [1_060]);
    }
}
