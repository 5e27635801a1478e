//! Wires the rooms together: start, reload, shutdown.

mod drift;
pub mod engine;
pub mod gaps;
mod group;
mod groups;
mod keeper;
pub mod metrics;
mod outputs;
mod reading;
mod routes;
mod saver;
pub mod schedule;
mod serving;
mod vital;

use crate::config::{self, Config};
use crate::history::server::Query;
use crate::history::{self, Source};
use crate::http::client::{self, Client, Url};
use crate::http::gate::{self, Gate};
use crate::http::server::{self, Server};
use crate::ingest;
use crate::models::registry::Registry;
use crate::publish::{self, Batch, Position, Windows, sender::Sender};
use crate::snapshot::{self, Folder};
use crate::telemetry::Process;
use crate::train::trainer::{self, Outside};
use engine::{Command, Engine, Parts, Readiness};
use keeper::Keeper;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry as MetricsRegistry;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};
use vital::Vitals;

/// Requests and questions that may wait for the engine. Beyond, requests are answered 503.
const COMMANDS: usize = 1024;
/// Trainings that may wait. Beyond, the engine asks again at its next tick.
const JOBS: usize = 64;
/// Questions to remote read that may wait: one for a hole, one for an audit.
const QUESTIONS: usize = 2;
/// How often the engine looks at the clock.
const TICK: Duration = Duration::from_secs(1);
/// How long the listener, and then the senders, may take to finish at the end.
const DRAIN: Duration = Duration::from_secs(5);

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
    Gate(#[from] gate::Error),
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
    Died(&'static str),
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
    fn load(&self, history: &history::Metrics) -> Result<Loaded, Error> {
        let config = self.config_file.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
        let failed = |url: &Url| {
            let url = url.clone();
            move |source| Error::Client { url, source }
        };
        let targets = config.remote_write.iter();
        let targets = targets.map(|target| Client::new(&target.http).map_err(failed(&target.url)));
        let sources = config.remote_read.iter();
        let sources = sources.map(|source| Source::new(source, history).map_err(failed(&source.url)));
        let registry = Registry::open(&config.registry, &self.storage_path)
            .map_err(|source| Error::Registry { source })?;
        let outside = Outside {
            detectors: config.detectors.clone(),
            sources: sources.collect::<Result<_, _>>()?,
            targets: config.remote_write.iter().map(|target| target.url.clone()).collect(),
            registry,
            registry_config: config.registry.clone(),
        };
        Ok(Loaded {
            targets: targets.collect::<Result<_, _>>()?,
            outside: Arc::new(outside),
            config: Arc::new(config),
        })
    }
}

/// A configuration, and a client for each address in it.
struct Loaded {
    config: Arc<Config>,
    targets: Vec<Client>,
    outside: Arc<Outside>,
}

/// The engine as the other rooms see it.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
}

impl Handle {
    /// Hands over the body of a write request.
    ///
    /// # Errors
    /// What the engine says of it; [`Overloaded`](ingest::Error::Overloaded) when it cannot keep up.
    pub async fn write(&self, received: ingest::Received) -> Result<ingest::Written, ingest::Error> {
        let (reply, answer) = oneshot::channel();
        if self.commands.try_send(Command::Write(received, reply)).is_err() {
            return Err(ingest::Error::Overloaded("too many requests wait"));
        }
        answer.await.unwrap_or(Err(ingest::Error::Overloaded("shutting down")))
    }

    /// Asks something that is read only.
    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, history::server::Error> {
        let (reply, answer) = oneshot::channel();
        let ending = || history::server::Error::Ending;
        self.commands.send(question(reply)).await.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())
    }
}

/// Patterns take their time: of a thread that nothing else waits for.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, history::server::Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| history::server::Error::Ending)
}

impl history::server::Source for Handle {
    type Series = reading::Chosen;

    async fn select(&self, query: Query) -> Result<Vec<reading::Chosen>, history::server::Error> {
        let rough = Arc::new(Query { selector: query.selector.without_patterns(), ..query });
        let patterns = Arc::new(query.selector);
        let (groups, selector) = (self.ask(Command::Groups).await?, patterns.clone());
        let groups: Arc<[u32]> = apart(move || {
            let groups = groups.into_iter().filter(|(_, labels)| reading::may_have(labels, &selector));
            groups.map(|(id, _)| id).collect()
        })
        .await?;
        let (mut series, mut next) = (Vec::new(), Some(0));
        while let Some(from) = next {
            let (query, groups, selector) = (rough.clone(), groups.clone(), patterns.clone());
            let selected = self.ask(|reply| Command::Select { query, groups, from, reply }).await?;
            let choose = move |found: reading::Found| found.choose(&selector);
            series.extend(
                apart(move || selected.found.into_iter().flat_map(choose).collect::<Vec<_>>()).await?,
            );
            next = selected.next;
        }
        Ok(series)
    }
}

/// One target's view of the windows.
struct Target {
    engine: mpsc::WeakSender<Command>,
    number: usize,
}

impl Windows for Target {
    async fn next_batch(&self, max_samples: usize) -> Option<Batch> {
        let (reply, answer) = oneshot::channel();
        let command = Command::NextBatch { target: self.number, max_samples, reply };
        self.engine.upgrade()?.send(command).await.ok()?;
        answer.await.ok()?
    }

    async fn advance(&self, positions: Vec<Position>) {
        if let Some(engine) = self.engine.upgrade() {
            // Without an engine there is no cursor to move.
            let _ = engine.send(Command::Advance { target: self.number, positions }).await;
        }
    }
}

/// The senders of one configuration.
struct Senders {
    bells: Vec<Arc<Notify>>,
    closing: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Senders {
    fn start(
        config: &Config,
        clients: Vec<Client>,
        engine: &mpsc::Sender<Command>,
        metrics: &publish::Metrics,
        vitals: &Vitals,
    ) -> Self {
        let (closing, closed) = watch::channel(false);
        let bells: Vec<Arc<Notify>> = config.remote_write.iter().map(|_| Arc::default()).collect();
        let targets = config.remote_write.iter().zip(clients).zip(&bells).enumerate();
        let tasks = targets.map(|(number, ((config, client), bell))| {
            let sender = Sender {
                windows: Target { engine: engine.downgrade(), number },
                config: config.clone(),
                client,
                metrics: metrics.clone(),
                bell: bell.clone(),
                closing: closed.clone(),
            };
            vitals.spawn("a sender", sender.run())
        });
        Self { tasks: tasks.collect(), bells, closing }
    }

    /// Lets the senders finish what is to be sent, for a while.
    async fn drain(self) {
        self.closing.send_replace(true);
        let deadline = tokio::time::Instant::now() + DRAIN;
        for mut task in self.tasks {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                warn!(component = "publish", "scores are not sent yet: the target did not answer in time");
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

    fn loaded(&self) {
        self.successful.set(1);
        self.timestamp.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }
}

/// Puts configurations into force, one at a time.
struct Reloader {
    options: Options,
    commands: mpsc::Sender<Command>,
    outside: watch::Sender<Arc<Outside>>,
    senders: Mutex<Option<Senders>>,
    publish: publish::Metrics,
    history: history::Metrics,
    metrics: ReloadMetrics,
    vitals: Vitals,
}

impl Reloader {
    /// Reads the file again. A file that is wrong changes nothing.
    async fn reload(&self) -> Result<(), String> {
        let mut senders = self.senders.lock().await;
        let Loaded { config, targets, outside } = self.options.load(&self.history).map_err(|error| {
            self.metrics.successful.set(0);
            let text = crate::yaml::chain(&error);
            error!(component = "config", err = text, "reload failed, the old configuration stays");
            text
        })?;
        // What is under way is finished first: cut off, it would be sent twice.
        if let Some(old) = senders.take() {
            old.drain().await;
        }
        let started = Senders::start(&config, targets, &self.commands, &self.publish, &self.vitals);
        let (done, in_force) = oneshot::channel();
        let bells = started.bells.clone();
        *senders = Some(started);
        self.outside.send_replace(outside);
        let command = Command::Reload { config, bells, done };
        if self.commands.send(command).await.is_err() || in_force.await.is_err() {
            return Err("shutting down".into());
        }
        self.metrics.loaded();
        info!(component = "config", "configuration loaded");
        Ok(())
    }
}

/// Runs the sidecar until it is told to end.
///
/// # Errors
/// [`Error`] when it cannot start, or a part of it fails for good.
pub async fn run(options: Options) -> Result<(), Error> {
    let gate = Arc::new(Gate::open(options.web_config_file.clone())?);
    let vitals = Vitals::default();
    let mut registry = MetricsRegistry::default();
    Process::register(&mut registry);
    let own = registry.sub_registry_with_prefix("promforest");
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    own.register("build", "The build", Info::new(version));
    let reload_metrics = ReloadMetrics::new(own);
    gate.register(own);
    let server_metrics = server::Metrics::new(own);
    let publish_metrics = publish::Metrics::new(own);
    let history_metrics = history::Metrics::new(own);
    let ingest_metrics = ingest::Metrics::new(own);
    let pipeline_metrics = metrics::Metrics::new(own);
    let keeper_metrics = keeper::Metrics::new(own);
    let snapshot_metrics = snapshot::Metrics::new(own);
    let gap_metrics = gaps::Metrics::new(own);
    let read_metrics = history::server::Metrics::new(own);

    let Loaded { config, targets, outside } = options.load(&history_metrics)?;
    let listener = listen(&options.listen_address).await?;
    let address =
        listener.local_addr().map_err(|source| Error::System { what: "read the own address", source })?;
    prepare(&options.storage_path)?;
    let mut signals = Signals::new()?;

    let (commands, received) = mpsc::channel(COMMANDS);
    let (jobs, waiting_jobs) = mpsc::channel(JOBS);
    let (questions, asked) = mpsc::channel(QUESTIONS);
    let (readiness, ready) = watch::channel(Readiness { ready: false, text: "starting".into() });
    let (outside, outside_seen) = watch::channel(outside);
    let senders = Senders::start(&config, targets, &commands, &publish_metrics, &vitals);
    let mut engine = Engine::new(Parts {
        config: config.clone(),
        bells: senders.bells.clone(),
        trainer: jobs,
        questions,
        readiness,
        gaps: gap_metrics.clone(),
        metrics: pipeline_metrics,
        ingest: ingest_metrics.clone(),
        publish: publish_metrics.clone(),
    });
    let folder = Folder::new(options.storage_path.join("snapshots"), snapshot_metrics.clone());
    // Requests wait for it: a sample that is taken in before would open a group of its own.
    engine.restore(folder.load(), Instant::now(), |outcome| snapshot_metrics.found(outcome));
    let vital = vitals.watch("the scoring thread");
    std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            let _vital = vital;
            engine.run(received);
        })
        .map_err(|source| Error::System { what: "start the scoring thread", source })?;
    let trainer = vitals.spawn("training", {
        let engine = commands.downgrade();
        trainer::run(waiting_jobs, outside_seen.clone(), move |group, result| {
            let engine = engine.upgrade();
            async move {
                if let Some(engine) = engine {
                    // An engine that is gone needs no model.
                    let _ = engine.send(Command::Learned { group, result }).await;
                }
            }
        })
    });
    let filler = gaps::run(asked, commands.downgrade(), outside_seen.clone(), gap_metrics);
    let filler = vitals.spawn("gap filling", filler);
    let keeper = Keeper::new(commands.downgrade(), outside_seen, keeper_metrics);
    let keeper = vitals.spawn("the look at the model registry", keeper.run());
    let ticker = vitals.spawn("the clock", tick(commands.downgrade()));
    let (close_saver, saver_closes) = watch::channel(false);
    let saver = vitals.spawn("snapshots", saver::run(commands.downgrade(), folder.clone(), saver_closes));

    reload_metrics.loaded();
    let reloader = Arc::new(Reloader {
        options,
        commands: commands.clone(),
        outside,
        senders: Mutex::new(Some(senders)),
        publish: publish_metrics,
        history: history_metrics,
        metrics: reload_metrics,
        vitals: vitals.clone(),
    });
    let (stop, stopped) = watch::channel(false);
    let state = routes::State {
        engine: Handle { commands },
        receiver: ingest::Receiver::default(),
        reads: history::server::Server::new(read_metrics),
        registry: Arc::new(registry),
        ingest: ingest_metrics,
        readiness: ready,
        snapshots: folder,
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
    let route = move |request| routes::answer(state.clone(), request);
    let server = Server { gate: gate.clone(), metrics: server_metrics };
    let mut server = vitals.spawn("the listener", server.serve(listener, route, stopped));
    let follower = vitals.spawn("the look at the web configuration", async move { gate.follow().await });

    loop {
        tokio::select! {
            part = vitals.died() => return Err(Error::Died(part)),
            wish = signals.next() => match wish {
                Wish::Reload => {
                    // A signal to end does not wait for it.
                    let reloader = reloader.clone();
                    tokio::spawn(async move { reloader.reload().await });
                }
                Wish::End(signal) => {
                    info!(signal, "shutting down");
                    break;
                }
            },
        }
    }
    // Second signal: at once.
    let finish = async {
        stop.send_replace(true);
        if tokio::time::timeout(DRAIN, &mut server).await.is_err() {
            warn!(component = "http", "connections are cut: they did not end in time");
            server.abort();
        }
        follower.abort();
        trainer.abort();
        keeper.abort();
        filler.abort();
        if let Some(senders) = reloader.senders.lock().await.take() {
            senders.drain().await;
        }
        // The cursors stand still now.
        close_saver.send_replace(true);
        // A thread that broke has said so.
        let _ = saver.await;
        ticker.abort();
    };
    tokio::select! {
        () = finish => info!("bye"),
        () = signals.end() => warn!("second signal: ending at once"),
    }
    Ok(())
}

async fn tick(engine: mpsc::WeakSender<Command>) {
    let mut clock = tokio::time::interval(TICK);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let Some(engine) = engine.upgrade() else { return };
        // An engine that is busy looks at the clock a second later.
        let _ = engine.try_send(Command::Tick);
    }
}

/// Makes the folder, and sees whether something can be kept in it: found out later, it would be too late.
fn prepare(storage: &Path) -> Result<(), Error> {
    let probe = storage.join(format!(".probe-{}", std::process::id()));
    let tried = std::fs::create_dir_all(storage)
        .and_then(|()| std::fs::write(&probe, "promforest\n"))
        .and_then(|()| std::fs::remove_file(&probe));
    tried.map_err(|source| Error::Storage { path: storage.into(), source })
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
enum Wish {
    Reload,
    End(&'static str),
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

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.interrupt.recv() => Wish::End("SIGINT"),
            _ = self.terminate.recv() => Wish::End("SIGTERM"),
            _ = self.hangup.recv() => Wish::Reload,
        }
    }

    async fn end(&mut self) {
        while let Wish::Reload = self.next().await {}
    }
}
