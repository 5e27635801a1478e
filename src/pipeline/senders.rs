//! The remote-write senders of one configuration: one task for each endpoint.

use super::DRAIN_TIMEOUT;
use super::engine::{EndpointBatches, EngineHandle};
use super::supervisor::Supervisor;
use crate::config::Config;
use crate::http::client::Client;
use crate::remote_write::{self, sender::Sender};
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::warn;

/// See the [module](self).
pub struct Senders {
    /// Wakes each sender when its endpoint has something to send.
    pub wakeups: Vec<Arc<Notify>>,
    shutdown: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Senders {
    /// Starts a sender for each endpoint; `clients` are theirs, in the same order.
    pub fn start(
        config: &Config,
        clients: Vec<Client>,
        engine: &EngineHandle,
        metrics: &remote_write::Metrics,
        supervisor: &Supervisor,
    ) -> Self {
        let (shutdown, shutdown_rx) = watch::channel(false);
        let wakeups: Vec<Arc<Notify>> = config.remote_write.iter().map(|_| Arc::default()).collect();
        let endpoints = config.remote_write.iter().zip(clients).zip(&wakeups).enumerate();
        let tasks = endpoints.map(|(endpoint, ((config, client), wake))| {
            let sender = Sender {
                source: EndpointBatches { engine: engine.downgrade(), endpoint },
                config: config.clone(),
                client,
                metrics: metrics.clone(),
                wake: wake.clone(),
                closing: shutdown_rx.clone(),
            };
            supervisor.spawn("a remote-write sender", sender.run())
        });
        Self { tasks: tasks.collect(), wakeups, shutdown }
    }

    /// Ends the senders once they have sent what is pending, or after [`DRAIN_TIMEOUT`].
    pub async fn drain(self) {
        self.shutdown.send_replace(true);
        let deadline = tokio::time::Instant::now() + DRAIN_TIMEOUT;
        for mut task in self.tasks {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                warn!(
                    component = "remote_write",
                    "scores are not sent yet: the endpoint did not answer in time"
                );
                task.abort();
            }
        }
    }
}
