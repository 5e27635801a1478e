//! The tasks beside the engine: training, gap filling, the registry watcher, snapshots and the clock.
//!
//! Each holds a weak handle, so that no task keeps the engine alive.

pub mod gap_filler;
pub mod maintenance_watcher;
pub mod registry_watcher;
pub mod snapshotter;

use super::SidecarMetrics;
use super::engine::{EngineHandle, WeakEngineHandle};
use super::gaps::BackfillRequest;
use super::supervisor::Supervisor;
use crate::snapshot::SnapshotStore;
use crate::train::trainer::Trainer;
use crate::train::{Backends, TrainingJob};
use registry_watcher::RegistryWatcher;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

/// Trainings that may wait. When the queue is full, the engine asks again at its next tick.
const TRAINING_QUEUE: usize = 64;
/// Requests for history that may wait: one of a gap, one of an audit.
const BACKFILL_QUEUE: usize = 2;
/// Groups with feedback whose snapshots may wait. Those that find no room are in the next round.
const SNAPSHOT_QUEUE: usize = 64;
/// Interval of the engine's clock.
const TICK_INTERVAL: Duration = Duration::from_secs(1);

/// The engine's ends of the queues to the tasks.
pub struct Queues {
    /// Trainings.
    pub training_jobs: mpsc::Sender<TrainingJob>,
    /// Requests for missing samples.
    pub backfill_requests: mpsc::Sender<BackfillRequest>,
}

/// The tasks' ends of the queues.
pub struct Requests {
    training_jobs: mpsc::Receiver<TrainingJob>,
    backfill_requests: mpsc::Receiver<BackfillRequest>,
}

impl Queues {
    /// Both ends of each queue.
    pub fn new() -> (Self, Requests) {
        let (training_jobs, training_jobs_rx) = mpsc::channel(TRAINING_QUEUE);
        let (backfill_requests, backfill_requests_rx) = mpsc::channel(BACKFILL_QUEUE);
        let requests = Requests { training_jobs: training_jobs_rx, backfill_requests: backfill_requests_rx };
        (Self { training_jobs, backfill_requests }, requests)
    }
}

/// The running tasks.
pub struct Tasks {
    trainers: Vec<JoinHandle<()>>,
    gap_filler: JoinHandle<()>,
    registry_watcher: JoinHandle<()>,
    maintenance_watcher: JoinHandle<()>,
    clock: JoinHandle<()>,
    snapshotter: JoinHandle<()>,
    last_snapshots: watch::Sender<bool>,
    /// Wakes the watcher of maintenance.
    pub maintenance_changed: Arc<Notify>,
    /// Ids of groups whose snapshots are not to wait for the next round.
    pub urgent_snapshots: mpsc::Sender<u32>,
}

impl Tasks {
    /// Starts the tasks.
    pub fn spawn(
        requests: Requests,
        engine: &EngineHandle,
        backends: &watch::Receiver<Arc<Backends>>,
        store: &SnapshotStore,
        metrics: &SidecarMetrics,
        supervisor: &Supervisor,
    ) -> Self {
        let weak = || engine.downgrade();
        let trainer = Trainer::new(requests.training_jobs, backends.clone());
        let spawn_trainer = |_| {
            let (trainer, engine) = (trainer.clone(), weak());
            let run = trainer.run(move |group, outcome| {
                let engine = engine.clone();
                async move {
                    // An engine that is gone needs no model.
                    let _ = engine.training_done(group, outcome).await;
                }
            });
            supervisor.spawn("training", run)
        };
        let gap_filler =
            gap_filler::run(requests.backfill_requests, weak(), backends.clone(), metrics.gaps.clone());
        let registry_watcher =
            RegistryWatcher::new(weak(), backends.clone(), metrics.registry_watcher.clone());
        let maintenance_changed = Arc::new(Notify::new());
        let maintenance_watcher =
            maintenance_watcher::run(weak(), backends.clone(), maintenance_changed.clone());
        let (last_snapshots, last_snapshots_rx) = watch::channel(false);
        let (urgent_snapshots, urgent_snapshots_rx) = mpsc::channel(SNAPSHOT_QUEUE);
        let snapshotter = snapshotter::run(weak(), store.clone(), urgent_snapshots_rx, last_snapshots_rx);
        Self {
            trainers: (0..Trainer::n_at_once()).map(spawn_trainer).collect(),
            gap_filler: supervisor.spawn("the gap filler", gap_filler),
            registry_watcher: supervisor.spawn("the model registry watcher", registry_watcher.run()),
            maintenance_watcher: supervisor.spawn("the maintenance watcher", maintenance_watcher),
            clock: supervisor.spawn("the clock", run_clock(weak())),
            snapshotter: supervisor.spawn("the snapshotter", snapshotter),
            last_snapshots,
            maintenance_changed,
            urgent_snapshots,
        }
    }

    /// Ends the tasks that change models or samples.
    pub fn stop_writers(&self) {
        self.trainers.iter().for_each(JoinHandle::abort);
        self.registry_watcher.abort();
        self.maintenance_watcher.abort();
        self.gap_filler.abort();
    }

    /// Writes the last snapshots, and ends what is left.
    pub async fn finish(self) {
        self.last_snapshots.send_replace(true);
        // A panic of the snapshotter is already on standard error.
        let _ = self.snapshotter.await;
        self.clock.abort();
    }
}

async fn run_clock(engine: WeakEngineHandle) {
    let mut clock = tokio::time::interval(TICK_INTERVAL);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        if engine.tick().is_none() {
            return;
        }
    }
}
