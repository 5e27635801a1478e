//! Wires the rooms together: start, reload, shutdown.

mod drift;
pub mod engine;
pub mod gaps;
mod group;
mod groups;
mod registry_watcher;
pub mod metrics;
mod output_series;
mod select;
mod routes;
mod snapshotter;
pub mod schedule;
mod serving;
mod supervisor;
mod tasks;

use crate::config::{self, Config};
use crate::http::Url;
use crate::http::access::{self, AccessControl};
use crate::http::client::{self, Client};
use crate::http::server::{self, Server};
use crate::ingest;
use crate::models::registry::Registry;
use crate::remote_read::{self, ReadClient};
use crate::remote_write::{self, sender::Sender};
use crate::snapshot::{self, SnapshotStore};
use crate::telemetry::ProcessCollector;
use crate::train::{Backends, trainer};
use engine::{EndpointBatches, Engine, EngineDeps, EngineHandle, Readiness, WeakEngineHandle};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry as MetricsRegistry;
use registry_watcher::RegistryWatcher;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use supervisor::Supervisor;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

/// Trainings that may wait. Beyond, the engine asks again at its next tick.
const TRAINING_QUEUE: usize = 64;
/// Questions to remote read that may wait: one for a hole, one for an audit.
const BACKFILL_QUEUE: usize = 2;
/// How often the engine looks at the clock.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the listener, and then the senders, may take to finish at the end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the sidecar did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// A file that the configuration names has changed since it was read.
    #[error("no client for {url}")]
    Client {
        /// The target or source.
        url: Url,
        /// Why.
        source: client::Error,
    },
    /// The same, for the model registry.
    #[error("no client for the model registry")]
    Registry {
        /// Why.
        source: client::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Something of the operating system is missing.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The web configuration is wrong.
    #[error(transparent)]
    Access(#[from] access::Error),
    /// Nothing can be kept.
    #[error("cannot use the storage folder {}", path.display())]
    Storage {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A part panicked; what it said is on standard error.
    #[error("{0} ended unexpectedly")]
    TaskPanicked(&'static str),
}

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file; without one, the defaults.
    pub config_file: Option<PathBuf>,
    /// Where to listen.
    pub listen_address: String,
    /// Who is let in there; without a file, everybody.
    pub web_config_file: Option<PathBuf>,
    /// Where what outlives the process is kept.
    pub storage_path: PathBuf,
}

impl Options {
    fn load(&self, remote_read_metrics: &remote_read::Metrics) -> Result<LoadedConfig, Error> {
        let config = self.config_file.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
        let client_error = |url: &Url| {
            let url = url.clone();
            move |source| Error::Client { url, source }
        };
        let endpoints = config.remote_write.iter();
        let endpoints =
            endpoints.map(|endpoint| Client::new(&endpoint.http).map_err(client_error(&endpoint.url)));
        let sources = config.remote_read.iter();
        let sources = sources
            .map(|source| ReadClient::new(source, remote_read_metrics).map_err(client_error(&source.url)));
        let registry = Registry::open(&config.registry, &self.storage_path)
            .map_err(|source| Error::Registry { source })?;
        let backends = Backends {
            detectors: config.detectors.clone(),
            read_clients: sources.collect::<Result<_, _>>()?,
            endpoints: config.remote_write.iter().map(|endpoint| endpoint.url.clone()).collect(),
            registry,
            registry_config: config.registry.clone(),
        };
        Ok(LoadedConfig {
            endpoints: endpoints.collect::<Result<_, _>>()?,
            backends: Arc::new(backends),
            config: Arc::new(config),
        })
    }
}

/// A configuration, and a client for each address in it.
struct LoadedConfig {
    config: Arc<Config>,
    endpoints: Vec<Client>,
    backends: Arc<Backends>,
}

/// The senders of one configuration.
struct Senders {
    wakeups: Vec<Arc<Notify>>,
    shutdown: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Senders {
    fn start(
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
            supervisor.spawn("a sender", sender.run())
        });
        Self { tasks: tasks.collect(), wakeups, shutdown }
    }

    /// Lets the senders finish what is to be sent, for a while.
    async fn drain(self) {
        self.shutdown.send_replace(true);
        let deadline = tokio::time::Instant::now() + DRAIN_TIMEOUT;
        for mut task in self.tasks {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                warn!(
                    component = "remote_write",
                    "scores are not sent yet: the target did not answer in time"
                );
                task.abort();
            }
        }
    }
}

struct ReloadMetrics {
    successful: Gauge,
    timestamp: Gauge<f64, AtomicU64>,
}

impl ReloadMetrics {
    fn new(registry: &mut MetricsRegistry) -> Self {
        let metrics = Self { successful: Gauge::default(), timestamp: Gauge::default() };
        registry.register(
            "config_last_reload_successful",
            "Whether the last attempt to load the configuration succeeded",
            metrics.successful.clone(),
        );
        registry.register(
            "config_last_reload_success_timestamp_seconds",
            "When the configuration was loaded",
            metrics.timestamp.clone(),
        );
        metrics
    }

    fn record_success(&self) {
        self.successful.set(1);
        self.timestamp.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }
}

/// Puts configurations into force, one at a time.
struct Reloader {
    options: Options,
    engine: EngineHandle,
    backends: watch::Sender<Arc<Backends>>,
    senders: Mutex<Option<Senders>>,
    remote_write_metrics: remote_write::Metrics,
    remote_read_metrics: remote_read::Metrics,
    metrics: ReloadMetrics,
    supervisor: Supervisor,
}

impl Reloader {
    /// Reads the file again. A file that is wrong changes nothing.
    async fn reload(&self) -> Result<(), String> {
        let mut senders = self.senders.lock().await;
        let LoadedConfig { config, endpoints, backends } =
            self.options.load(&self.remote_read_metrics).map_err(|error| {
                self.metrics.successful.set(0);
                let text = crate::error::chain(&error);
                error!(component = "config", err = text, "reload failed, the old configuration stays");
                text
            })?;
        // What is under way is finished first: cut off, it would be sent twice.
        if let Some(old) = senders.take() {
            old.drain().await;
        }
        let new_senders =
            Senders::start(&config, endpoints, &self.engine, &self.remote_write_metrics, &self.supervisor);
        let wakeups = new_senders.wakeups.clone();
        *senders = Some(new_senders);
        self.backends.send_replace(backends);
        if self.engine.reload(config, wakeups).await.is_none() {
            return Err("shutting down".into());
        }
        self.metrics.record_success();
        info!(component = "config", "configuration loaded");
        Ok(())
    }
}

/// Runs the sidecar until it is told to end.
///
/// # Errors
/// [`Error`] when it cannot start, or a part of it fails for good.
pub async fn run(options: Options) -> Result<(), Error> {
    let access = Arc::new(AccessControl::open(options.web_config_file.clone())?);
    let supervisor = Supervisor::default();
    let mut registry = MetricsRegistry::default();
    ProcessCollector::register(&mut registry);
    let prefixed_registry = registry.sub_registry_with_prefix("promforest");
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    prefixed_registry.register("build", "The build", Info::new(version));
    let reload_metrics = ReloadMetrics::new(prefixed_registry);
    access.register(prefixed_registry);
    let server_metrics = server::Metrics::new(prefixed_registry);
    let remote_write_metrics = remote_write::Metrics::new(prefixed_registry);
    let remote_read_metrics = remote_read::Metrics::new(prefixed_registry);
    let ingest_metrics = ingest::Metrics::new(prefixed_registry);
    let pipeline_metrics = metrics::Metrics::new(prefixed_registry);
    let registry_watcher_metrics = registry_watcher::Metrics::new(prefixed_registry);
    let snapshot_metrics = snapshot::Metrics::new(prefixed_registry);
    let gap_metrics = gaps::Metrics::new(prefixed_registry);
    let remote_read_server_metrics = remote_read::server::Metrics::new(prefixed_registry);

    let LoadedConfig { config, endpoints, backends } = options.load(&remote_read_metrics)?;
    let listener = listen(&options.listen_address).await?;
    let address =
        listener.local_addr().map_err(|source| Error::System { what: "read the own address", source })?;
    prepare_storage(&options.storage_path)?;
    let mut signals = Signals::new()?;

    let (engine_handle, commands) = engine::channel();
    let (jobs, jobs_rx) = mpsc::channel(TRAINING_QUEUE);
    let (backfill_requests, backfill_requests_rx) = mpsc::channel(BACKFILL_QUEUE);
    let (readiness, readiness_rx) = watch::channel(Readiness { ready: false, text: "starting".into() });
    let (backends, backends_rx) = watch::channel(backends);
    let senders = Senders::start(&config, endpoints, &engine_handle, &remote_write_metrics, &supervisor);
    let mut engine = Engine::new(EngineDeps {
        config: config.clone(),
        wakeups: senders.wakeups.clone(),
        training_jobs: jobs,
        backfill_requests,
        readiness,
        gap_metrics: gap_metrics.clone(),
        metrics: pipeline_metrics,
        ingest_metrics: ingest_metrics.clone(),
        remote_write_metrics: remote_write_metrics.clone(),
    });
    let snapshot_store = SnapshotStore::new(options.storage_path.join("snapshots"), snapshot_metrics.clone());
    // Requests wait for it: a sample that is taken in before would open a group of its own.
    engine.restore(snapshot_store.load(), Instant::now(), |outcome| snapshot_metrics.count_group(outcome));
    let task_guard = supervisor.guard("the scoring thread");
    std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            let _task_guard = task_guard;
            engine.run(commands);
        })
        .map_err(|source| Error::System { what: "start the scoring thread", source })?;
    let trainer = supervisor.spawn("training", {
        let engine = engine_handle.downgrade();
        trainer::run(jobs_rx, backends_rx.clone(), move |group, outcome| {
            let engine = engine.clone();
            async move {
                // An engine that is gone needs no model.
                let _ = engine.training_done(group, outcome).await;
            }
        })
    });
    let gap_filler = tasks::gap_filler::run(
        backfill_requests_rx,
        engine_handle.downgrade(),
        backends_rx.clone(),
        gap_metrics,
    );
    let gap_filler = supervisor.spawn("gap filling", gap_filler);
    let registry_watcher =
        RegistryWatcher::new(engine_handle.downgrade(), backends_rx, registry_watcher_metrics);
    let registry_watcher = supervisor.spawn("the look at the model registry", registry_watcher.run());
    let ticker = supervisor.spawn("the clock", run_clock(engine_handle.downgrade()));
    let (close_snapshotter, snapshotter_closing) = watch::channel(false);
    let snapshotter = supervisor.spawn(
        "snapshots",
        snapshotter::run(engine_handle.downgrade(), snapshot_store.clone(), snapshotter_closing),
    );

    reload_metrics.record_success();
    let reloader = Arc::new(Reloader {
        options,
        engine: engine_handle.clone(),
        backends,
        senders: Mutex::new(Some(senders)),
        remote_write_metrics: remote_write_metrics,
        remote_read_metrics: remote_read_metrics,
        metrics: reload_metrics,
        supervisor: supervisor.clone(),
    });
    let (stop, stop_rx) = watch::channel(false);
    let app_state = routes::AppState {
        engine: engine_handle,
        receiver: ingest::BodyReceiver::default(),
        remote_read_server: remote_read::server::RemoteReadServer::new(remote_read_server_metrics),
        metrics_registry: Arc::new(registry),
        ingest_metrics,
        readiness: readiness_rx,
        snapshot_store,
        reload: {
            let reloader = reloader.clone();
            Arc::new(move || {
                let reloader = reloader.clone();
                Box::pin(async move { reloader.reload().await })
            })
        },
    };
    let detectors: Vec<&str> = config.detectors.iter().map(|detector| detector.name.as_str()).collect();
    info!(version = env!("CARGO_PKG_VERSION"), address = %address, detectors = detectors.join(","), "listening");
    let route = move |request| routes::handle_request(app_state.clone(), request);
    let server = Server { access: access.clone(), metrics: server_metrics };
    let mut server = supervisor.spawn("the listener", server.serve(listener, route, stop_rx));
    let web_config_watcher =
        supervisor.spawn("the look at the web configuration", async move { access.watch_files().await });

    loop {
        tokio::select! {
            task = supervisor.wait_for_panic() => return Err(Error::TaskPanicked(task)),
            action = signals.next_action() => match action {
                SignalAction::Reload => {
                    // A signal to end does not wait for it.
                    let reloader = reloader.clone();
                    tokio::spawn(async move { reloader.reload().await });
                }
                SignalAction::Shutdown(signal) => {
                    info!(signal, "shutting down");
                    break;
                }
            },
        }
    }
    // Second signal: at once.
    let finish = async {
        stop.send_replace(true);
        if tokio::time::timeout(DRAIN_TIMEOUT, &mut server).await.is_err() {
            warn!(component = "http", "connections are cut: they did not end in time");
            server.abort();
        }
        web_config_watcher.abort();
        trainer.abort();
        registry_watcher.abort();
        gap_filler.abort();
        if let Some(senders) = reloader.senders.lock().await.take() {
            senders.drain().await;
        }
        // The cursors stand still now.
        close_snapshotter.send_replace(true);
        // A thread that broke has said so.
        let _ = snapshotter.await;
        ticker.abort();
    };
    tokio::select! {
        () = finish => info!("bye"),
        () = signals.wait_for_shutdown() => warn!("second signal: ending at once"),
    }
    Ok(())
}

async fn run_clock(engine: WeakEngineHandle) {
    let mut clock = tokio::time::interval(TICK_INTERVAL);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        // An engine that is busy looks at the clock a second later.
        if engine.tick().is_none() {
            return;
        }
    }
}

/// Makes the folder, and sees whether something can be kept in it: found out later, it would be too late.
fn prepare_storage(storage: &Path) -> Result<(), Error> {
    let probe = storage.join(format!(".probe-{}", std::process::id()));
    let result = std::fs::create_dir_all(storage)
        .and_then(|()| std::fs::write(&probe, "promforest\n"))
        .and_then(|()| std::fs::remove_file(&probe));
    result.map_err(|source| Error::Storage { path: storage.into(), source })
}

/// `:9599` listens on every address, as Prometheus' components do.
async fn listen(address: &str) -> Result<TcpListener, Error> {
    let error = |source| Error::Listen { address: address.into(), source };
    if let Some(port) = address.strip_prefix(':') {
        let port =
            port.parse().map_err(|e| error(std::io::Error::new(std::io::ErrorKind::InvalidInput, e)))?;
        let any = SocketAddr::from(([0_u16; 8], port));
        match TcpListener::bind(any).await {
            Ok(listener) => return Ok(listener),
            // A machine without IPv6.
            Err(_) => return TcpListener::bind(SocketAddr::from(([0_u8; 4], port))).await.map_err(error),
        }
    }
    TcpListener::bind(address).await.map_err(error)
}

/// What the outside wants of a process that runs.
enum SignalAction {
    Reload,
    Shutdown(&'static str),
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let signal =
            |kind| signal(kind).map_err(|source| Error::System { what: "listen for signals", source });
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next_action(&mut self) -> SignalAction {
        tokio::select! {
            _ = self.interrupt.recv() => SignalAction::Shutdown("SIGINT"),
            _ = self.terminate.recv() => SignalAction::Shutdown("SIGTERM"),
            _ = self.hangup.recv() => SignalAction::Reload,
        }
    }

    async fn wait_for_shutdown(&mut self) {
        while let SignalAction::Reload = self.next_action().await {}
    }
}
