//! The sidecar: builds the rooms, connects them, and runs them until a signal ends the process.

mod admin;
mod drift;
pub mod engine;
pub mod gaps;
mod group;
mod group_table;
mod groups;
mod ledger;
mod maintenance;
pub mod metrics;
mod options;
mod output_series;
mod pages;
mod readiness;
mod reload;
#[cfg(feature = "kafka")]
pub mod route;
mod routes;
pub mod schedule;
mod select;
mod senders;
mod serving;
mod signals;
mod supervisor;
mod systemd;
mod tasks;
mod usage;

use crate::build_info::{REVISION, RUST_VERSION, VERSION};
use crate::config::{self, Config};
use crate::detector::DividedGroups;
use crate::http::Url;
use crate::http::access::{self, AccessControl};
use crate::http::client;
use crate::http::response::PagesBeingSent;
use crate::http::server::{self, Server};
use crate::kafka::{Source, SourceOptions};
use crate::notebooks::NotebookServer;
use crate::remote_read::server::RemoteReadServer;
use crate::snapshot::{self, SnapshotStore};
use crate::telemetry::ProcessCollector;
use crate::{history, ingest, kafka, notebooks, remote_read, remote_write};
use admin::AdminApi;
use engine::{CommandReceiver, Engine, EngineDeps, EngineHandle, Readiness};
use options::LoadedConfig;
pub use options::{DEFAULT_URL, Options};
use pages::{CountSources, Pages};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use readiness::ReadinessProbe;
use reload::Reloader;
use sd_notify::NotifyState;
use senders::Senders;
use signals::{SignalAction, Signals};
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use supervisor::Supervisor;
use tasks::{Queues, Tasks, registry_watcher};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// Time that the listener, and after it the senders, may take to finish at a shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The sidecar cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// A group would lie in several shards.
    #[error(transparent)]
    DividedGroups(#[from] DividedGroups),
    /// Two divisions at once.
    #[error(
        "--shard with a `kafka` block: the partitions of the topic divide the targets already, and otherwise; leave one out"
    )]
    ShardOfKafka,
    /// The router's records are of one kind.
    #[cfg(feature = "kafka")]
    #[error(
        "promforest route writes prometheus.WriteRequest without compression: leave `format` and `compression` out of `kafka`, \
         or let what they describe fill the topic"
    )]
    RouteFormat,
    /// A client cannot be built: a file that the configuration names has changed since it was read.
    #[error("no client for {url}")]
    Client {
        /// The endpoint.
        url: Url,
        /// The error.
        source: client::Error,
    },
    /// The client of the model registry cannot be built.
    #[error("no client for the model registry")]
    Registry {
        /// The error.
        source: client::Error,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// The error.
        source: std::io::Error,
    },
    /// A call of the operating system failed.
    #[error("cannot {what}")]
    System {
        /// The call.
        what: &'static str,
        /// The error.
        source: std::io::Error,
    },
    /// The web configuration is invalid.
    #[error(transparent)]
    Access(#[from] access::Error),
    /// The storage directory, or a file in it, cannot be written.
    #[error("cannot use {} for storage", path.display())]
    Storage {
        /// The directory or file.
        path: PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// Another sidecar uses the storage directory: both would write the same snapshots and models.
    #[error(
        "the storage directory {} is in use by another promforest: end that one, or start this one with another --storage.path",
        path.display()
    )]
    StorageInUse {
        /// The directory.
        path: PathBuf,
    },
    /// The configuration has no topic.
    #[error("the configuration has no section `kafka`")]
    NoTopic,
    /// The client of Kafka rejects its settings.
    #[error("no client for Kafka: {0}")]
    Kafka(String),
    /// A task panicked; its message is on standard error.
    #[error("{0} ended unexpectedly")]
    TaskPanicked(&'static str),
    /// The scoring thread handles no command.
    #[error("the scoring thread is stuck")]
    EngineStuck,
}

/// Runs the sidecar until a signal ends it.
///
/// # Errors
/// [`Error`] when it cannot start, when a task panics, or when the scoring thread is stuck.
pub async fn run(options: Options) -> Result<(), Error> {
    Sidecar::build(options).await?.serve().await
}

/// See the [module](self).
struct Sidecar {
    access: Arc<AccessControl>,
    supervisor: Supervisor,
    signals: Signals,
    listener: TcpListener,
    server_metrics: server::Metrics,
    routes: routes::AppState,
    reloader: Arc<Reloader>,
    source: Option<Source>,
    tasks: Tasks,
    /// Held until the last snapshot is written.
    _storage_lock: File,
}

impl Sidecar {
    /// Loads the configuration, restores the snapshots and starts the engine and its tasks. Nothing is accepted yet.
    async fn build(options: Options) -> Result<Self, Error> {
        let access = Arc::new(AccessControl::open(options.web_config_file.clone())?);
        let supervisor = Supervisor::default();
        let (registry, metrics) = SidecarMetrics::register(&access);
        let LoadedConfig { config, shown_config, endpoints, backends } = options.load(&metrics.history)?;
        let listener = options.bind().await?;
        let storage_lock = options.prepare_storage()?;
        let signals = Signals::install()?;

        let (engine, commands) = engine::channel();
        let (readiness, readiness_rx) = watch::channel(Readiness { ready: false, text: "starting".into() });
        let (backends, backends_rx) = watch::channel(backends);
        let (queues, requests) = Queues::new();
        let senders = Senders::start(&config, endpoints, &engine, &metrics.remote_write, &supervisor);
        let mut scoring = Engine::new(EngineDeps {
            config: config.clone(),
            shard: options.shard,
            wakeups: senders.wakeups.clone(),
            training_jobs: queues.training_jobs,
            backfill_requests: queues.backfill_requests,
            readiness,
            gap_metrics: metrics.gaps.clone(),
            metrics: metrics.engine.clone(),
            ingest_metrics: metrics.ingest.clone(),
            remote_write_metrics: metrics.remote_write.clone(),
        });
        let store = SnapshotStore::new(options.storage_path.join("snapshots"), metrics.snapshot.clone());
        // Before the first request: a sample that arrives earlier would create its group anew.
        scoring.restore(store.load(), Instant::now(), |outcome| metrics.snapshot.count_group(outcome));
        start_engine(scoring, commands, &supervisor)?;
        let tasks = Tasks::spawn(requests, &engine, &backends_rx, &store, &metrics, &supervisor);
        let admin = options.enable_admin_api.then(|| {
            let (changed, urgent) = (tasks.maintenance_changed.clone(), tasks.urgent_snapshots.clone());
            AdminApi::new(engine.clone(), backends_rx, changed, urgent)
        });

        let source = start_source(&config, &engine, &metrics, &supervisor)?;
        metrics.reload.record_success();
        let address =
            listener.local_addr().map_err(|source| Error::System { what: "read the own address", source })?;
        log_start(address, &config);
        let own_url = || options::own_url(address, access.policy().acceptor().is_some());
        let url = options.external_url.as_ref().map_or_else(own_url, Url::expose);
        let enable_lifecycle = options.enable_lifecycle;
        let reloader = Arc::new(Reloader {
            options,
            engine: engine.clone(),
            kafka: config.kafka.clone(),
            tenants: config.tenants.clone(),
            backends,
            senders: Mutex::new(Some(senders)),
            shown_config: std::sync::Mutex::new(shown_config),
            remote_write_metrics: metrics.remote_write.clone(),
            history_metrics: metrics.history,
            metrics: metrics.reload,
            supervisor: supervisor.clone(),
        });
        let counts = CountSources {
            ingest: metrics.ingest.clone(),
            engine: metrics.engine,
            remote_write: metrics.remote_write,
        };
        let readiness = ReadinessProbe {
            detectors: readiness_rx,
            reloader: reloader.clone(),
            source_failure: source.as_ref().map(Source::failure),
            snapshot_store: store,
        };
        let pages = Pages::new(counts, readiness.clone(), reloader.clone(), url);
        let remote_read_server = RemoteReadServer::new(metrics.remote_read_server);
        let notebook_server = NotebookServer::new(remote_read_server.permits(), metrics.notebooks);
        let routes = routes::AppState {
            metrics_pages: PagesBeingSent::default(),
            engine,
            tenants: config.tenants.clone(),
            receiver: ingest::body_receiver(),
            remote_read_server,
            notebook_server,
            metrics_registry: Arc::new(registry),
            ingest_metrics: metrics.ingest,
            readiness,
            reloader: reloader.clone(),
            enable_lifecycle,
            pages: Arc::new(pages),
            admin,
        };
        Ok(Self {
            access,
            supervisor,
            signals,
            listener,
            server_metrics: metrics.server,
            routes,
            reloader,
            source,
            tasks,
            _storage_lock: storage_lock,
        })
    }

    /// Accepts requests until a signal ends the process, then shuts down in order. A second signal ends it at once.
    async fn serve(self) -> Result<(), Error> {
        let Self { access, supervisor, mut signals, listener, server_metrics, routes, reloader, .. } = self;
        let (source, tasks) = (self.source, self.tasks);
        let (stop, stop_rx) = watch::channel(false);
        let server = Server { access: access.clone(), metrics: server_metrics };
        let progress = routes.engine.progress();
        let route = move |request| routes::handle_request(routes.clone(), request);
        let server = supervisor.spawn("the listener", server.serve(listener, route, stop_rx));
        let web_config_watcher =
            supervisor.spawn("the web configuration watcher", async move { access.watch_files().await });
        let mut stuck = pin!(progress.wait_until_stuck());
        systemd::notify(NotifyState::Ready);
        let watchdog = supervisor.spawn("the watchdog", systemd::report_to_watchdog());
        loop {
            tokio::select! {
                task = supervisor.wait_for_panic() => return Err(Error::TaskPanicked(task)),
                () = &mut stuck => return Err(Error::EngineStuck),
                action = signals.next_action() => match action {
                    SignalAction::Reload => {
                        // A signal to shut down does not wait for a reload.
                        let reloader = reloader.clone();
                        tokio::spawn(async move { reloader.reload_detached().await });
                    }
                    SignalAction::Shutdown(signal) => {
                        info!(signal, "shutting down");
                        break;
                    }
                },
            }
        }
        systemd::notify(NotifyState::Stopping);
        watchdog.abort();
        stop.send_replace(true);
        web_config_watcher.abort();
        tokio::select! {
            () = shut_down(server, source, tasks, &reloader) => info!("stopped"),
            () = signals.wait_for_shutdown() => warn!("second signal: ending at once"),
        }
        Ok(())
    }
}

/// Ends the listener and the source, then the writers, then the senders, commits what they have written, and writes the last
/// snapshots once the cursors stand still.
async fn shut_down(mut server: JoinHandle<()>, source: Option<Source>, tasks: Tasks, reloader: &Reloader) {
    if let Some(source) = &source {
        source.hold();
    }
    if tokio::time::timeout(DRAIN_TIMEOUT, &mut server).await.is_err() {
        warn!(component = "http", "connections closed that did not end in time");
        server.abort();
    }
    tasks.stop_writers();
    if let Some(senders) = reloader.senders.lock().await.take() {
        senders.drain().await;
    }
    if let Some(source) = source {
        source.close().await;
    }
    tasks.finish().await;
}

/// Starts to read the topic of the configuration, if it has one.
fn start_source(
    config: &Config,
    engine: &EngineHandle,
    metrics: &SidecarMetrics,
    supervisor: &Supervisor,
) -> Result<Option<Source>, Error> {
    let Some(kafka) = &config.kafka else { return Ok(None) };
    let longest = config.detectors.iter().map(|detector| detector.window).max();
    let rewind = kafka.rewind.or(longest).unwrap_or_default();
    let options = SourceOptions { config: kafka.clone(), rewind, metrics: metrics.kafka.clone() };
    let started = Source::start(options, engine.downgrade(), supervisor.guard("the Kafka source"));
    started.map(Some).map_err(|source| Error::System { what: "start the Kafka source", source })
}

fn start_engine(engine: Engine, commands: CommandReceiver, supervisor: &Supervisor) -> Result<(), Error> {
    let guard = supervisor.guard("the scoring thread");
    let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
        let _guard = guard;
        engine.run(commands);
    });
    thread.map(drop).map_err(|source| Error::System { what: "start the scoring thread", source })
}

fn log_start(address: SocketAddr, config: &Config) {
    let detectors: Vec<&str> = config.detectors.iter().map(|detector| detector.name.as_str()).collect();
    info!(version = VERSION, revision = REVISION, address = %address, detectors = detectors.join(","), "listening");
}

/// The metrics of a sidecar that has not started, for the reference.
pub fn metrics_registry() -> Registry {
    SidecarMetrics::register(&AccessControl::default()).0
}

fn register_build(registry: &mut Registry) {
    let build = [("version", VERSION), ("revision", REVISION), ("rustversion", RUST_VERSION)];
    registry.register("build", "Version, revision and compiler of the program", Info::new(build));
}

/// The metrics of all rooms.
struct SidecarMetrics {
    reload: reload::Metrics,
    server: server::Metrics,
    remote_write: remote_write::Metrics,
    history: history::Metrics,
    remote_read_server: remote_read::server::Metrics,
    notebooks: notebooks::Metrics,
    ingest: ingest::Metrics,
    kafka: kafka::Metrics,
    engine: metrics::Metrics,
    registry_watcher: registry_watcher::Metrics,
    snapshot: snapshot::Metrics,
    gaps: gaps::Metrics,
}

impl SidecarMetrics {
    fn register(access: &AccessControl) -> (Registry, Self) {
        let mut registry = Registry::default();
        ProcessCollector::register(&mut registry);
        let own = registry.sub_registry_with_prefix("promforest");
        register_build(own);
        let reload = reload::Metrics::new(own);
        access.register(own);
        let metrics = Self {
            reload,
            server: server::Metrics::new(own),
            remote_write: remote_write::Metrics::new(own),
            history: history::Metrics::new(own),
            ingest: ingest::Metrics::new(own),
            kafka: kafka::Metrics::new(own),
            engine: metrics::Metrics::new(own),
            registry_watcher: registry_watcher::Metrics::new(own),
            snapshot: snapshot::Metrics::new(own),
            gaps: gaps::Metrics::new(own),
            remote_read_server: remote_read::server::Metrics::new(own),
            notebooks: notebooks::Metrics::new(own),
        };
        (registry, metrics)
    }
}
