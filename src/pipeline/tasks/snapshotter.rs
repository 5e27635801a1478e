//! Writes snapshots of all groups every five minutes, and at the shutdown.
//!
//! The engine hands out one group after another, so that no reply takes longer than the copy of the newest rows of one
//! window. The encoding and the writing happen here.

use crate::pipeline::engine::WeakEngineHandle;
use crate::pipeline::group::snapshot::SnapshotStep;
use crate::snapshot::{SnapshotStore, TooLarge};
use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinError;
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
                warn!(component = "snapshot", limit = ?LAST_ROUND_TIMEOUT, "the last round of snapshots took too long: the history fills in the rest at the next start");
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

/// One round over all groups. `None` when the engine is gone.
async fn write_round(engine: &WeakEngineHandle, mut store: SnapshotStore) -> Option<SnapshotStore> {
    let started = Instant::now();
    let mut names = HashSet::new();
    let (mut failed, mut panicked): (Option<io::Error>, Option<io::Error>) = (None, None);
    let mut after = None;
    while failed.is_none() {
        let Some(SnapshotStep { id, name, snapshot }) = engine.next_snapshot(after).await? else { break };
        after = Some(id);
        names.insert(name.clone());
        let Some(snapshot) = snapshot else { continue };
        match write(&mut store, name.clone(), move || snapshot.encode()).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => failed = Some(error),
            Err(panic) => {
                error!(component = "snapshot", name, err = %panic, "the thread that writes a snapshot panicked: the group keeps its previous snapshot");
                panicked = Some(io::Error::other(panic));
            }
        }
        engine.snapshot_failed(id).await?;
    }
    let mut finished = store.clone();
    let finish = move || {
        finished.finish_round(&names, started.elapsed(), failed.or(panicked));
        finished
    };
    Some(tokio::task::spawn_blocking(finish).await.unwrap_or(store))
}

/// Encodes and writes one snapshot on a thread of its own. A panic there fails this snapshot only.
async fn write(
    store: &mut SnapshotStore,
    name: String,
    encode: impl FnOnce() -> Result<Vec<u8>, TooLarge> + Send + 'static,
) -> Result<io::Result<()>, JoinError> {
    let mut writer = store.clone();
    let write = move || {
        let result = match encode() {
            Ok(bytes) => writer.write(&name, &bytes),
            Err(error) => {
                writer.skip(&name, &error);
                Ok(())
            }
        };
        (writer, result)
    };
    let (writer, result) = tokio::task::spawn_blocking(write).await?;
    *store = writer;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Metrics;
    use prometheus_client::registry::Registry;

    #[tokio::test]
    async fn a_panic_fails_one_snapshot_and_the_next_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = SnapshotStore::new(folder.path().into(), Metrics::new(&mut Registry::default()));
        let first = write(&mut store, "a.snapshot".into(), || panic!("part of the test")).await;
        assert!(first.expect_err("it panicked").is_panic());
        let second = write(&mut store, "b.snapshot".into(), || Ok(b"content".to_vec())).await;
        assert!(second.expect("no panic").is_ok());
        assert_eq!(std::fs::read(folder.path().join("b.snapshot")).expect("a file"), b"content");
    }
}
