//! Writes snapshots of all groups every five minutes, and at the shutdown; that of a group with feedback of a person at once.
//!
//! The engine hands out one group after another, so that no reply takes longer than the copy of the newest rows of one
//! window. The encoding and the writing happen here. The round at the shutdown ends in time: the groups that it does not
//! reach keep their previous file.

use crate::pipeline::engine::WeakEngineHandle;
use crate::pipeline::group::deployment::Deployment;
use crate::pipeline::group::snapshot::SnapshotStep;
use crate::snapshot::{SnapshotStore, TooLarge};
use std::collections::HashSet;
use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinError;
use tracing::{error, warn};

/// Pause between two rounds. A start reads five minutes of samples in no time, and the disk is spared.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(300);
/// Time in which the last round begins to write a snapshot.
const LAST_ROUND_BUDGET: Duration = Duration::from_secs(10);
/// Time after which the last round is given up: a write hangs.
const LAST_ROUND_TIMEOUT: Duration = Duration::from_secs(15);
/// Groups that a log line names.
const MAX_LOGGED_GROUPS: usize = 20;

/// Writes a round every five minutes until the engine is gone, and a last one when `closing` turns true. The groups of
/// `urgent` are written when they come.
pub async fn run(
    engine: WeakEngineHandle,
    mut store: SnapshotStore,
    mut urgent: mpsc::Receiver<u32>,
    mut closing: watch::Receiver<bool>,
) {
    loop {
        let is_last = wait_for_round(&engine, &mut store, &mut urgent, &mut closing).await;
        let until = is_last.then(|| Instant::now() + LAST_ROUND_BUDGET);
        let round = write_round(&engine, store, until);
        let done = match is_last {
            true => tokio::time::timeout(LAST_ROUND_TIMEOUT, round).await.unwrap_or_else(|_| {
                warn!(component = "snapshot", limit = ?LAST_ROUND_TIMEOUT, "the last round of snapshots hangs and is given up: the history fills in the rest at the next start");
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

/// Writes urgent groups until the next round. True if that is the last one.
async fn wait_for_round(
    engine: &WeakEngineHandle,
    store: &mut SnapshotStore,
    urgent: &mut mpsc::Receiver<u32>,
    closing: &mut watch::Receiver<bool>,
) -> bool {
    let mut next_round = pin!(tokio::time::sleep(SNAPSHOT_INTERVAL));
    loop {
        tokio::select! {
            () = closed(closing) => return true,
            () = &mut next_round => return false,
            Some(group) = urgent.recv() => write_group(engine, store, group).await,
        }
    }
}

/// Waits until the last round is due.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // The value is a lock, which nothing may hold while it waits.
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Writes one group, if it has changed.
async fn write_group(engine: &WeakEngineHandle, store: &mut SnapshotStore, group: u32) {
    let Some(Some(step)) = engine.next_snapshot(group.checked_sub(1)).await else { return };
    let SnapshotStep { id, name, snapshot: Some(snapshot) } = step else { return };
    let error = match write(store, name.clone(), move || snapshot.encode()).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic.to_string(),
    };
    warn!(
        component = "snapshot",
        file = name,
        error,
        "a snapshot after feedback was not written: the next round writes it"
    );
    engine.snapshot_failed(id).await;
}

/// One round over all groups, as far as it gets until a time. `None` when the engine is gone.
async fn write_round(
    engine: &WeakEngineHandle,
    mut store: SnapshotStore,
    until: Option<Instant>,
) -> Option<SnapshotStore> {
    let started = Instant::now();
    let mut names = HashSet::new();
    let (mut failed, mut panicked): (Option<io::Error>, Option<io::Error>) = (None, None);
    let mut after = None;
    while failed.is_none() {
        if until.is_some_and(|until| Instant::now() >= until) {
            names.extend(leave_rest(&engine.list_deployments().await?, after, &store));
            break;
        }
        let Some(SnapshotStep { id, name, snapshot }) = engine.next_snapshot(after).await? else { break };
        after = Some(id);
        names.insert(name.clone());
        let Some(snapshot) = snapshot else { continue };
        match write(&mut store, name, move || snapshot.encode()).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => failed = Some(error),
            Err(panic) => panicked = Some(io::Error::other(panic)),
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

/// Counts and logs the groups after this one, and returns the names of their files.
fn leave_rest(deployments: &[Deployment], after: Option<u32>, store: &SnapshotStore) -> Vec<String> {
    let rest: Vec<&Deployment> =
        deployments.iter().filter(|deployment| after.is_none_or(|after| deployment.group > after)).collect();
    let text = |deployment: &&Deployment| format!("{} {}", deployment.detector, deployment.labels);
    let groups: Vec<String> = rest.iter().take(MAX_LOGGED_GROUPS).map(text).collect();
    store.count_unreached(rest.len());
    if !rest.is_empty() {
        warn!(component = "snapshot", limit = ?LAST_ROUND_BUDGET, count = rest.len(), groups = groups.join("; "), "the last round of snapshots did not reach every group: the history fills in the rest at the next start");
    }
    rest.iter().map(|deployment| SnapshotStore::file_name(&deployment.detector, &deployment.labels)).collect()
}

/// Encodes and writes one snapshot on a thread of its own. A panic there fails this snapshot only.
async fn write(
    store: &mut SnapshotStore,
    name: String,
    encode: impl FnOnce() -> Result<Vec<u8>, TooLarge> + Send + 'static,
) -> Result<io::Result<()>, JoinError> {
    let mut writer = store.clone();
    let file = name.clone();
    let write = move || {
        let result = match encode() {
            Ok(bytes) => writer.write(&file, &bytes),
            Err(error) => {
                writer.skip(&file, &error);
                Ok(())
            }
        };
        (writer, result)
    };
    let written = tokio::task::spawn_blocking(write).await;
    let (writer, result) = written.inspect_err(|panic| {
        error!(component = "snapshot", name, err = %panic, "the thread that writes a snapshot panicked: the group keeps its previous snapshot");
    })?;
    *store = writer;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::engine;
    use crate::pipeline::engine::tests::{Bench, START_MS, series};
    use crate::prom::{Labels, METRIC_NAME};
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

    /// An engine with three groups.
    fn three_groups() -> Bench {
        let mut bench = Bench::new("");
        for instance in ["a", "b", "c"] {
            let name = (METRIC_NAME, "node_network_receive_bytes_total");
            let labels = [name, ("device", "lo"), ("instance", instance), ("job", "node")];
            bench.send(vec![series(&labels, &[(START_MS, 1.0)])]);
        }
        bench
    }

    #[tokio::test]
    async fn an_urgent_group_alone_is_written_before_the_round() {
        let bench = three_groups();
        let (engine, commands) = engine::channel();
        let running = std::thread::spawn(move || bench.engine.run(commands));
        let folder = tempfile::tempdir().expect("a folder");
        let store = SnapshotStore::new(folder.path().into(), Metrics::new(&mut Registry::default()));
        let weak = engine.downgrade();
        let deployments = weak.list_deployments().await.expect("the engine runs");
        let name = |deployment: &Deployment| {
            folder.path().join(SnapshotStore::file_name(&deployment.detector, &deployment.labels))
        };
        let names: Vec<_> = deployments.iter().map(name).collect();
        let (urgent, urgent_rx) = mpsc::channel(1);
        let (closing, closing_rx) = watch::channel(false);
        let snapshotter = tokio::spawn(run(weak, store, urgent_rx, closing_rx));
        urgent.send(deployments[1].group).await.expect("it waits");
        while !names[1].exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!names[0].exists() && !names[2].exists());
        drop(urgent);
        closing.send_replace(true);
        snapshotter.await.expect("it ends");
        assert!(names.iter().all(|name| name.exists()), "the last round");
        drop(engine);
        running.join().expect("the engine ends");
    }

    #[tokio::test]
    async fn a_round_that_ends_in_time_leaves_the_files_of_the_rest() {
        let bench = three_groups();
        let (engine, commands) = engine::channel();
        let running = std::thread::spawn(move || bench.engine.run(commands));
        let folder = tempfile::tempdir().expect("a folder");
        let mut registry = Registry::default();
        let store = SnapshotStore::new(folder.path().into(), Metrics::new(&mut registry));
        let files = || std::fs::read_dir(folder.path()).expect("a folder").count();
        let weak = engine.downgrade();
        let store = write_round(&weak, store, None).await.expect("the engine runs");
        assert_eq!(files(), 3);
        let gone = folder.path().join(SnapshotStore::file_name("gone", &Labels::default()));
        std::fs::write(&gone, "").expect("written");
        write_round(&weak, store, Some(Instant::now())).await.expect("the engine runs");
        assert_eq!((files(), gone.exists()), (3, false), "only the files of groups stay");
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).expect("encodes");
        assert!(page.contains("snapshot_failures_total{operation=\"shutdown\"} 3"), "{page}");
        drop(engine);
        running.join().expect("the engine ends");
    }
}
