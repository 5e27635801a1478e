//! Samples that were not sent, and scores that were not written, when a process was killed. Real servers are killed, and
//! snapshots are lost and damaged. Every stored score equals that of a backtest of the same rows, and none is missing.

mod support;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, NODE_NETWORK, NODE_NETWORK_EXTENDED, RANGE_MS, RemoteWriteReceiver,
    SHORT_TIMEOUT, Scraping, Stack,
};
use support::{each_version, now_ms};

fn snapshot_dir(stack: &Stack) -> PathBuf {
    stack.dir.path().join("promforest-data/snapshots")
}

/// The one snapshot's file.
fn snapshot_file(stack: &Stack) -> PathBuf {
    let entries = fs::read_dir(snapshot_dir(stack)).expect("a folder of snapshots");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "snapshot"));
    assert_eq!(files.len(), 1, "{}: {files:?}", stack.version);
    files.remove(0)
}

/// Number of snapshots at the start with this outcome.
fn snapshots_with_outcome(stack: &Stack, outcome: &str) -> f64 {
    stack.metric("promforest_snapshot_groups_total", &[("outcome", outcome)])
}

fn gap_fill_samples(stack: &Stack) -> f64 {
    stack.api.metric("promforest_gap_fill_samples_total", &[]).unwrap_or(0.0)
}

fn kill_prometheus(stack: &mut Stack) {
    stack.prometheus.take().expect("the program runs").kill();
}

#[test]
fn f1_to_f7_f14_f16_f22_f45_every_row_is_scored_whatever_process_is_killed() {
    each_version(|version| {
        // Prometheus' own batches: five seconds of samples are lost with it.
        let scraping = Scraping { queue: "", ..JOB_NODE };
        let mut stack = Stack::new(version, Collectors::Network, &scraping);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure(NODE_NETWORK_EXTENDED);
        stack.start_promforest();
        stack.wait("the first scores", Duration::from_secs(90) + MODEL_TIMEOUT, |at| at.scores().map(drop));
        let began_ms = now_ms();

        // Prometheus does not send the samples that were unsent when it was killed: remote read has them.
        stack.wait_for_score_at(began_ms + 3_000);
        let api = stack.api.prometheus.clone();
        stack.with_unsent_scrapes(&[&api], kill_prometheus);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.wait_for_score_at(now_ms() + 4_000);
        assert!(gap_fill_samples(&stack) > 0.0, "{version}: nothing was filled\n{}", stack.promforest_tail());

        // A snapshot of the end, and one that is older than the end.
        stack.promforest.take().expect("the program runs").terminate(SHORT_TIMEOUT);
        snapshot_file(&stack);
        thread::sleep(Duration::from_secs(3));
        stack.start_promforest();
        assert_eq!(snapshots_with_outcome(&stack, "restored"), 1.0, "{version}");
        stack.wait_for_score_at(now_ms() + 3_000);
        stack.kill_promforest();
        thread::sleep(Duration::from_secs(2));
        stack.start_promforest();
        assert_eq!(snapshots_with_outcome(&stack, "restored"), 1.0, "{version}");
        // Also while it reads what it missed.
        stack.kill_promforest();
        stack.start_promforest();
        stack.wait_for_score_at(now_ms() + 3_000);

        // Prometheus dies and comes back while nobody listens.
        stack.kill_promforest();
        thread::sleep(Duration::from_secs(2));
        kill_prometheus(&mut stack);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        thread::sleep(Duration::from_secs(2));
        stack.start_promforest();
        stack.wait_for_score_at(now_ms() + 3_000);

        // Both die, and the snapshot is damaged.
        stack.kill_promforest();
        kill_prometheus(&mut stack);
        let path = snapshot_file(&stack);
        let mut bytes = fs::read(&path).expect("the snapshot");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(&path, &bytes).expect("the folder is writable");
        stack.start_promforest();
        assert_eq!(
            (snapshots_with_outcome(&stack, "corrupt"), snapshots_with_outcome(&stack, "restored")),
            (1.0, 0.0),
            "{version}"
        );
        assert_eq!(fs::read(path.with_extension("corrupt")).ok(), Some(bytes), "{version}: it is kept");
        thread::sleep(Duration::from_secs(2));
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.wait_for_score_at(now_ms() + 3_000);

        // Without any snapshot.
        stack.promforest.take().expect("the program runs").terminate(SHORT_TIMEOUT);
        fs::remove_dir_all(snapshot_dir(&stack)).expect("the folder is writable");
        stack.start_promforest();
        stack.wait_for_score_at(now_ms() + 3_000);
        let compared = stack.check_backtests("node_network", began_ms);
        // A fast machine waits for less, and has fewer rows to show.
        assert!(compared >= 20, "{version}: only {compared} scores");
    });
}

#[test]
fn f15_f20_f21_an_empty_prometheus_and_an_unwritable_snapshot_folder() {
    each_version(|version| {
        let mut stack = Stack::new(version, Collectors::Network, &JOB_NODE);
        // A file in its place: a folder without permissions does not keep root out.
        fs::create_dir_all(stack.dir.path().join("promforest-data")).expect("the folder is writable");
        fs::write(snapshot_dir(&stack), "").expect("the folder is writable");
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure(NODE_NETWORK);
        stack.start_promforest();
        stack.wait("the first scores", MODEL_TIMEOUT, |at| at.scores().map(drop));
        assert_eq!(stack.metric("promforest_snapshot_failures_total", &[("operation", "read")]), 1.0);
        let before = stack.check_scores(RANGE_MS).samples.len();

        kill_prometheus(&mut stack);
        fs::remove_dir_all(stack.dir.path().join("data")).expect("the folder is writable");
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.wait_for_score_at(now_ms() + 4_000);
        // The first row that is sent after it has rates that reach into the window of before.
        let scrapes = stack.api.stored(r#"node_network_receive_bytes_total{device="lo"}"#).expect("stored");
        let scores = stack.api.scores().expect("stored");
        assert!(
            before > 0 && scores.samples[0].0 - scrapes.samples[0].0 <= 3_000,
            "{version}: it begins at once"
        );
        assert_eq!(stack.api.ready().expect("the server answers").0, 200, "{version}");

        let mut promforest = stack.promforest.take().expect("the program runs");
        let log = promforest.log_file();
        let status = promforest.terminate(SHORT_TIMEOUT);
        assert_eq!(status.code(), Some(0), "{version}");
        let log = fs::read_to_string(log).expect("a log");
        assert_eq!(log.matches("snapshots cannot be written").count(), 1, "{version}: {log}");
    });
}
