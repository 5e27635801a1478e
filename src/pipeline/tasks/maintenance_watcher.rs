//! Reads maintenance from the registry, and the alerts of `exclude_alerts` that fire from Prometheus, and hands both to
//! the engine.

use crate::error::chain;
use crate::history::Config as HistoryConfig;
use crate::models::registry::periods::Period;
use crate::pipeline::engine::WeakEngineHandle;
use crate::pipeline::maintenance::MaintenancePlan;
use crate::time::{self, now_ms};
use crate::train::Backends;
use crate::train::history::{self, FiringAlert};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tracing::warn;

/// History in which a firing alert is looked for: the look-back of Prometheus.
const ALERT_LOOKBACK_MS: i64 = 300_000;
/// Age of the newest sample of an alert that still fires: rules are evaluated every minute by default.
const MAX_ALERT_AGE_MS: i64 = 90_000;
/// Longest wait for an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The alerts that an endpoint returned last.
struct AlertSource {
    detector: String,
    endpoint: HistoryConfig,
    alerts: Vec<FiringAlert>,
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
        sources = read_alerts(&current, sources).await;
        let named = |source: &AlertSource| {
            let name = source.detector.clone();
            source.alerts.clone().into_iter().map(move |alert| (name.clone(), alert))
        };
        let alerts = sources.iter().flat_map(named).collect();
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

/// The alerts that fire now at each endpoint.
async fn read_alerts(backends: &Backends, mut before: Vec<AlertSource>) -> Vec<AlertSource> {
    let now_ms = now_ms();
    let until_ms = now_ms + 2 * time::millis(backends.registry_config.poll_interval);
    let mut sources = Vec::new();
    for detector in backends.detectors.iter().filter(|detector| !detector.training.exclude_alerts.is_empty())
    {
        for client in &backends.history_clients {
            let range = (now_ms - ALERT_LOOKBACK_MS, now_ms);
            let read = history::read_firing_alerts(client, &detector.training.exclude_alerts, range);
            let answer = tokio::time::timeout(READ_TIMEOUT, read).await;
            let is_same = |old: &AlertSource| old.detector == detector.name && old.endpoint == client.config;
            let old = before.iter().position(is_same).map(|i| before.swap_remove(i).alerts);
            let alerts = match answer {
                Ok(Ok(alerts)) => extend_firing(alerts, now_ms, until_ms),
                _ => drop_expired(old.unwrap_or_default(), now_ms),
            };
            let (detector, endpoint) = (detector.name.clone(), client.config.clone());
            sources.push(AlertSource { detector, endpoint, alerts });
        }
    }
    sources
}

/// Extends the alerts that still fire until the poll after the next.
fn extend_firing(mut alerts: Vec<FiringAlert>, now_ms: i64, until_ms: i64) -> Vec<FiringAlert> {
    let still_firing = alerts.iter_mut().filter(|alert| alert.to_ms >= now_ms - MAX_ALERT_AGE_MS);
    still_firing.for_each(|alert| alert.to_ms = until_ms);
    alerts
}

/// The alerts of an earlier answer that an answer may still have.
fn drop_expired(mut alerts: Vec<FiringAlert>, now_ms: i64) -> Vec<FiringAlert> {
    alerts.retain(|alert| alert.to_ms >= now_ms - ALERT_LOOKBACK_MS);
    alerts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prom::Labels;

    #[test]
    fn alerts_fire_on_without_an_answer_until_they_expire() {
        let alert = |to_ms| FiringAlert { labels: Labels::default(), from_ms: 0, to_ms };
        let ends = |alerts: &[FiringAlert]| alerts.iter().map(|alert| alert.to_ms).collect::<Vec<_>>();
        let now_ms = 1_000_000;
        let answer = extend_firing(vec![alert(800_000), alert(now_ms - 1000)], now_ms, now_ms + 60_000);
        assert_eq!(ends(&answer), [800_000, now_ms + 60_000]);
        assert_eq!(ends(&drop_expired(answer.clone(), now_ms + 30_000)), [800_000, now_ms + 60_000]);
        assert_eq!(ends(&drop_expired(answer.clone(), now_ms + 200_000)), [now_ms + 60_000]);
        assert!(drop_expired(answer, now_ms + 400_000).is_empty());
    }
}
