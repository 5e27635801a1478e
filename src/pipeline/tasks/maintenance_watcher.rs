//! Reads maintenance from the registry, and the alerts of `exclude_alerts` that fire from Prometheus, and hands both to
//! the engine.

use crate::error::chain;
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

/// Polls until the engine is gone; at once when `changed` is notified.
pub async fn run(
    engine: WeakEngineHandle,
    mut backends: watch::Receiver<Arc<Backends>>,
    changed: Arc<Notify>,
) {
    let mut plan = MaintenancePlan::default();
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
        plan.alerts = read_alerts(&current).await;
        if engine.set_maintenance(plan.clone()).await.is_none() {
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

/// The alerts that fire now, each until the poll after the next. An endpoint that does not answer has none.
async fn read_alerts(backends: &Backends) -> Vec<(String, FiringAlert)> {
    let now_ms = now_ms();
    let until_ms = now_ms + 2 * time::millis(backends.registry_config.poll_interval);
    let mut firing = Vec::new();
    for detector in backends.detectors.iter().filter(|detector| !detector.training.exclude_alerts.is_empty())
    {
        for client in &backends.read_clients {
            let range = (now_ms - ALERT_LOOKBACK_MS, now_ms);
            let read = history::read_firing_alerts(client, &detector.training.exclude_alerts, range);
            let Ok(Ok(alerts)) = tokio::time::timeout(READ_TIMEOUT, read).await else { continue };
            firing.extend(alerts.into_iter().map(|alert| {
                let still_fires = alert.to_ms >= now_ms - MAX_ALERT_AGE_MS;
                let to_ms = if still_fires { until_ms } else { alert.to_ms };
                (detector.name.clone(), FiringAlert { to_ms, ..alert })
            }));
        }
    }
    firing
}
