//! Reloads of the configuration, one at a time.

use super::engine::EngineHandle;
use super::options::{LoadedConfig, Options, ShownConfig};
use super::senders::Senders;
use super::supervisor::Supervisor;
use crate::config::Config;
use crate::telemetry::register;
use crate::train::Backends;
use crate::{history, kafka, remote_write, tenant};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{Mutex, watch};
use tracing::{error, info};

/// Metrics of reloads.
pub struct Metrics {
    successful: Gauge,
    timestamp: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            successful: register(
                registry,
                "config_last_reload_successful",
                "Whether the last attempt to load the configuration succeeded",
            ),
            timestamp: register(
                registry,
                "config_last_reload_success_timestamp_seconds",
                "Time of the last successful load of the configuration",
            ),
        }
    }

    /// Records that a configuration is in force from now on.
    pub fn record_success(&self) {
        self.successful.set(1);
        self.timestamp.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }
}

/// See the [module](self).
pub struct Reloader {
    /// Names the file to read.
    pub options: Options,
    /// The engine.
    pub engine: EngineHandle,
    /// The topic that is read.
    pub kafka: Option<kafka::Config>,
    /// The tenants that requests are divided by; their limits may change.
    pub tenants: Option<Arc<tenant::Config>>,
    /// The clients of training, gap filling and the registry watcher.
    pub backends: watch::Sender<Arc<Backends>>,
    /// The senders of the configuration in force; none after the shutdown.
    pub senders: Mutex<Option<Senders>>,
    /// The configuration in force, as the pages use it.
    pub shown_config: std::sync::Mutex<ShownConfig>,
    /// Metrics of the senders.
    pub remote_write_metrics: remote_write::Metrics,
    /// Metrics of the read clients.
    pub history_metrics: history::Metrics,
    /// Metrics of reloads.
    pub metrics: Metrics,
    /// Supervises the senders.
    pub supervisor: Supervisor,
}

impl Reloader {
    /// Reloads in a task of its own, which goes on when the caller is dropped: a client that hangs up in the middle would
    /// leave the sidecar without senders.
    ///
    /// # Errors
    /// As [`reload`](Self::reload).
    pub async fn reload_detached(self: &Arc<Self>) -> Result<(), String> {
        let reloader = self.clone();
        let task = self.supervisor.spawn("a reload", async move { reloader.reload().await });
        task.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// The configuration in force, as the pages use it.
    pub fn shown_config(&self) -> ShownConfig {
        self.shown_config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The reason why scores are not written, if senders are missing.
    pub fn missing_senders(&self) -> Option<&'static str> {
        match self.senders.try_lock() {
            Ok(senders) if senders.is_none() => Some("remote write: stopped"),
            Ok(_) => None,
            Err(_) => Some("remote write: a reload is in progress"),
        }
    }

    /// A section that has changed and cannot while the process runs.
    fn fixed_section(&self, config: &Config) -> Option<&'static str> {
        let is_same_tenants = match (&config.tenants, &self.tenants) {
            (Some(new), Some(old)) => new.is_same_identity(old),
            (new, old) => new.is_none() && old.is_none(),
        };
        match (config.kafka == self.kafka, is_same_tenants) {
            (false, _) => Some("`kafka`"),
            (_, false) => Some("`tenants`, but for its limits,"),
            _ => None,
        }
    }

    /// Reads the configuration file again and puts it in force. An invalid file changes nothing.
    ///
    /// # Errors
    /// The error with its causes, as text.
    pub async fn reload(&self) -> Result<(), String> {
        let mut senders = self.senders.lock().await;
        let loaded = self.options.load(&self.history_metrics).map_err(|error| crate::error::chain(&error));
        let loaded = loaded.and_then(|loaded| match self.fixed_section(&loaded.config) {
            None => Ok(loaded),
            Some(section) => Err(format!("a change of {section} needs a restart")),
        });
        let LoadedConfig { config, shown_config, endpoints, backends } = loaded.inspect_err(|text| {
            self.metrics.successful.set(0);
            error!(
                component = "config",
                err = text,
                "reload failed, the previous configuration stays in force"
            );
        })?;
        // A request that was cut off would be sent twice.
        if let Some(old) = senders.take() {
            old.drain().await;
        }
        let started =
            Senders::start(&config, endpoints, &self.engine, &self.remote_write_metrics, &self.supervisor);
        let wakeups = started.wakeups.clone();
        *senders = Some(started);
        self.backends.send_replace(backends);
        if self.engine.reload(config, wakeups).await.is_none() {
            return Err("shutting down".into());
        }
        *self.shown_config.lock().unwrap_or_else(PoisonError::into_inner) = shown_config;
        self.metrics.record_success();
        info!(component = "config", "configuration loaded");
        Ok(())
    }
}
