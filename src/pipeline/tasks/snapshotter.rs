//! Writes snapshots of all groups every five minutes, and at the shutdown.
//!
//! The engine hands out one group after another, so that no reply takes longer than the copy of the newest rows of one
//! window. The encoding and the writing happen here.

use crate::pipeline::engine::WeakEngineHandle;
use crate::pipeline::group::snapshot::SnapshotStep;
use crate::snapshot::SnapshotStore;
use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{error, warn};

/// Pause between two rounds. A start reads five minutes of samples in no time, and the disk is spared.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(300);
/// Time that the last round may take. Groups that it does not reach keep their previous file.
const LAST_ROUND_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes a round every five minutes until the engine is gone, and a last one when `closing` turns true.
pub async fn run(engine: WeakEngineHandle, mut store: SnapshotStore, mut closing: watch::Receiver<bool>) {
    loop {
        let close = closing.wait_for(|closing| *closing);
        let is_last = tokio::time::timeout(SNAPSHOT_INTERVAL, close).await.is_ok();
        let round = write_round(&engine, store);
        let done = match is_last {
            true => tokio::time::timeout(LAST_ROUND_TIMEOUT, round).await.unwrap_or_else(|_| {
                warn!(component = "snapshot", limit = ?LAST_ROUND_TIMEOUT, "the last round of snapshots took too long: remote read fills in the rest at the next start");
                None
            }),
            false => round.await,
        };
        match done {
            Some(returned) if !is_last => store = returned,
            _ => return,
        }
    }
}

/// One round over all groups. `None` when the engine is gone or the writing thread panicked.
async fn write_round(engine: &WeakEngineHandle, mut store: SnapshotStore) -> Option<SnapshotStore> {
    let started = Instant::now();
    let mut names = HashSet::new();
    let mut failed: Option<io::Error> = None;
    let mut after = None;
    while failed.is_none() {
        let Some(SnapshotStep { id, name, snapshot }) = engine.next_snapshot(after).await? else { break };
        after = Some(id);
        names.insert(name.clone());
        let Some(snapshot) = snapshot else { continue };
        let write = move || {
            let result = match snapshot.encode() {
                Ok(bytes) => store.write(&name, &bytes),
                Err(error) => {
                    store.skip(&name, &error);
                    Ok(())
                }
            };
            (store, result)
        };
        let result = match tokio::task::spawn_blocking(write).await {
            Ok((returned, result)) => {
                store = returned;
                result
            }
            Err(panic) => {
                error!(component = "snapshot", err = %panic, "the thread that writes snapshots panicked: no more snapshots are written");
                return None;
            }
        };
        if let Err(error) = result {
            failed = Some(error);
            engine.snapshot_failed(id).await?;
        }
    }
    let finish = move || {
        store.finish_round(&names, started.elapsed(), failed);
        store
    };
    tokio::task::spawn_blocking(finish).await.ok()
}
