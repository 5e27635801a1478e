//! Scores for two servers, one of which is down: it receives the missing scores when it is up again, also if promforest
//! was restarted meanwhile.

mod support;

use std::fs;
use std::thread;
use std::time::Duration;
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, NODE_NETWORK, RemoteWriteReceiver, SHORT_TIMEOUT, Stack,
};
use support::{each_version, now_ms};

/// Longer than a batch takes, and than some rows need.
const OUTAGE: Duration = Duration::from_secs(6);

/// Waits until both have scores of now, and returns what they have up to then.
fn both_catch_up(stack: &mut Stack, second: &mut Stack) -> [Vec<(i64, f64)>; 2] {
    let until_ms = now_ms();
    [second, stack].map(|stack| {
        stack.wait_for_score_at(until_ms);
        let mut samples = stack.api.scores().expect("the series is stored").samples;
        samples.retain(|(timestamp_ms, _)| *timestamp_ms <= until_ms);
        samples
    })
}

fn times(scores: &[(i64, f64)]) -> Vec<i64> {
    scores.iter().map(|(timestamp_ms, _)| *timestamp_ms).collect()
}

#[test]
fn f8_one_of_two_endpoints_catches_up_after_an_outage() {
    each_version(|version| {
        let mut stack = Stack::new(version, Collectors::Network, &JOB_NODE);
        // Its own promforest never runs.
        let mut second = Stack::new(version, Collectors::Network, &JOB_NODE);
        second.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        let address = second.api.prometheus.0.clone();
        let with_second_endpoint = |config: &str, what: &str| {
            let more = format!("/{what}'}}, {{url: 'http://{address}/api/v1/{what}'}}]");
            config.replace(&format!("/{what}'}}]"), &more)
        };
        let config = with_second_endpoint(&stack.configure(NODE_NETWORK), "write");
        fs::write(stack.config_file(), &config).expect("the folder is writable");
        stack.start_promforest();
        stack.wait("the first scores", MODEL_TIMEOUT, |at| at.scores().map(drop));
        both_catch_up(&mut stack, &mut second);

        // After SIGTERM, the snapshot has the missing scores.
        second.prometheus.take().expect("the program runs").kill();
        thread::sleep(OUTAGE);
        stack.promforest.take().expect("the program runs").terminate(SHORT_TIMEOUT);
        stack.start_promforest();
        stack.wait_for_score_at(now_ms());
        second.start_prometheus(RemoteWriteReceiver::Enabled);
        let [theirs, ours] = both_catch_up(&mut stack, &mut second);
        assert_eq!(theirs, ours, "{version}\n{}", stack.promforest_tail());

        // After SIGKILL, the snapshot is older than the end.
        second.prometheus.take().expect("the program runs").kill();
        thread::sleep(OUTAGE);
        stack.kill_promforest();
        stack.start_promforest();
        stack.wait_for_score_at(now_ms());
        second.start_prometheus(RemoteWriteReceiver::Enabled);
        let [theirs, ours] = both_catch_up(&mut stack, &mut second);
        stack.assert_same_times(&times(&theirs), &times(&ours), "scores of the second and of the first");

        // Without a snapshot, remote read of the server has its newest score.
        second.prometheus.take().expect("the program runs").kill();
        thread::sleep(OUTAGE);
        stack.kill_promforest();
        fs::remove_dir_all(stack.dir.path().join("promforest-data/snapshots"))
            .expect("the folder is writable");
        fs::write(stack.config_file(), with_second_endpoint(&config, "read"))
            .expect("the folder is writable");
        second.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.start_promforest();
        let [theirs, ours] = both_catch_up(&mut stack, &mut second);
        stack.assert_same_times(&times(&theirs), &times(&ours), "scores of the second and of the first");
        let failed = stack.metric("promforest_remote_write_samples_failed_total", &[]);
        assert_eq!(failed, 0.0, "{version}\n{}", stack.promforest_tail());
    });
}
