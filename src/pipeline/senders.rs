//! The remote-write senders of one configuration: one task for each endpoint, and with tenants one for each of them there.
//!
//! A tenant has no queue, only a task that asks the engine for the tenant's next batch: what a tenant's limits delay or
//! reject is a matter of its own. The alternative, one task that serves the tenants in turn, would have to put a failed
//! batch aside and keep every sender's state for each tenant.

use super::DRAIN_TIMEOUT;
use super::engine::{EndpointBatches, EngineHandle, WeakEngineHandle};
use super::supervisor::Supervisor;
use crate::config::Config;
use crate::http::client::Client;
use crate::remote_write::{self, sender::Sender};
use crate::tenant::Tenant;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tracing::warn;

/// The task of each endpoint.
const TASK: &str = "a remote-write sender";

/// See the [module](self).
pub struct Senders {
    /// Wakes each endpoint's task when there is something to send.
    pub wakeups: Vec<Arc<Notify>>,
    shutdown: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Senders {
    /// Starts the task of each endpoint; `clients` are theirs, in the same order.
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
        let tasks = endpoints.map(|(index, ((config, client), wake))| {
            let endpoint = Endpoint {
                engine: engine.downgrade(),
                index,
                config: config.clone(),
                client,
                metrics: metrics.clone(),
                closing: shutdown_rx.clone(),
            };
            match config.tenants {
                None => supervisor.spawn(TASK, endpoint.sender(None, wake.clone()).run()),
                Some(_) => supervisor.spawn(TASK, endpoint.serve_tenants(wake.clone(), supervisor.clone())),
            }
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

/// An endpoint, and what its senders share.
struct Endpoint {
    engine: WeakEngineHandle,
    /// Its index in the configuration.
    index: usize,
    config: remote_write::Config,
    client: Client,
    metrics: remote_write::Metrics,
    closing: watch::Receiver<bool>,
}

impl Endpoint {
    fn sender(&self, tenant: Option<Tenant>, wake: Arc<Notify>) -> Sender<EndpointBatches> {
        Sender {
            source: EndpointBatches {
                engine: self.engine.clone(),
                endpoint: self.index,
                tenant: tenant.clone(),
            },
            config: self.config.clone(),
            tenant,
            client: self.client.clone(),
            metrics: self.metrics.clone(),
            wake,
            closing: self.closing.clone(),
        }
    }

    /// Starts a sender for each tenant that the endpoint lacks samples of, and wakes it, until a shutdown; then waits until
    /// they have sent the rest.
    async fn serve_tenants(mut self, wake: Arc<Notify>, supervisor: Supervisor) {
        let mut tasks = JoinSet::new();
        let mut senders: BTreeMap<Tenant, (Arc<Notify>, AbortHandle)> = BTreeMap::new();
        loop {
            let is_closing = tokio::select! {
                _ = self.closing.wait_for(|closing| *closing) => true,
                () = wake.notified() => false,
            };
            let Some(tenants) = self.engine.tenants_of_endpoint(self.index).await else { break };
            let known: BTreeSet<&Tenant> = tenants.iter().map(|(tenant, _)| tenant).collect();
            senders.retain(|tenant, (_, task)| {
                let is_known = known.contains(tenant);
                // A tenant that is gone has nothing to send.
                if !is_known {
                    task.abort();
                }
                is_known
            });
            for (tenant, _) in tenants.into_iter().filter(|(_, has_unwritten)| *has_unwritten) {
                let (wake, _) = senders.entry(tenant.clone()).or_insert_with(|| {
                    let wake = Arc::new(Notify::new());
                    let guard = supervisor.guard(TASK);
                    let sender = self.sender(Some(tenant), wake.clone()).run();
                    let task = tasks.spawn(async move {
                        let _guard = guard;
                        sender.await;
                    });
                    (wake, task)
                });
                wake.notify_one();
            }
            while tasks.try_join_next().is_some() {}
            if is_closing {
                break;
            }
        }
        while tasks.join_next().await.is_some() {}
    }
}
