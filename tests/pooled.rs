//! A new target beside others of its kind that have models: a pooled model scores it until it has a model of its own, and
//! a restart in between loses no row.

mod support;

use std::thread;
use std::time::Duration;
use support::hosts::{Hosts, JOB_OF_FILE};
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, NODE_NETWORK_EXTENDED, RANGE_MS, RemoteWriteReceiver, SHORT_TIMEOUT,
    Scraping, Stack, StackApi,
};
use support::{each_version, now_ms};

/// Length of the history that [`NODE_NETWORK_EXTENDED`] needs for a first model.
const MIN_HISTORY: Duration = Duration::from_secs(60);
const OLD: [&str; 3] = ["web1", "web2", "web3"];
const NEW: &str = "web4";

fn new_host_samples(at: &StackApi, name: &str) -> Result<Vec<(i64, f64)>, String> {
    Ok(at.stored(&format!(r#"{name}{{instance="{NEW}"}}"#))?.samples)
}

/// Waits for a score of the new host at or after this time.
fn wait_until_scored(stack: &mut Stack, to_ms: i64) {
    stack.wait("the new target is scored", SHORT_TIMEOUT, |at| {
        match new_host_samples(at, "anomaly_score")?.last() {
            Some((newest_ms, _)) if *newest_ms >= to_ms => Ok(()),
            newest => Err(format!("{newest:?} before {to_ms}")),
        }
    });
}

#[test]
fn a_new_target_is_scored_from_its_first_row_and_over_a_restart() {
    let hosts = Hosts::start();
    each_version(|version| {
        let mut stack = Stack::new(version, Collectors::Network, &Scraping { jobs: JOB_OF_FILE, ..JOB_NODE });
        hosts.write_targets(&stack, &OLD);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure(NODE_NETWORK_EXTENDED);
        thread::sleep(MIN_HISTORY);
        stack.start_promforest();
        stack.wait("models of the old", MIN_HISTORY + MODEL_TIMEOUT, |at| match at.ready()? {
            (200, _) => Ok(()),
            (_, text) => Err(text),
        });

        hosts.write_targets(&stack, &[&OLD[..], &[NEW]].concat());
        let info = |alias: &'static str| {
            move |at: &StackApi| {
                at.metric("promforest_model_info", &[("instance", NEW), ("alias", alias)]).map(drop)
            }
        };
        stack.wait("a model of the others", SHORT_TIMEOUT, info("pooled"));
        wait_until_scored(&mut stack, now_ms() + 5_000);
        // By SIGTERM, and by SIGKILL.
        stack.promforest.take().expect("the program runs").terminate(SHORT_TIMEOUT);
        thread::sleep(Duration::from_secs(3));
        stack.start_promforest();
        wait_until_scored(&mut stack, now_ms() + 2_000);
        stack.kill_promforest();
        thread::sleep(Duration::from_secs(3));
        stack.start_promforest();
        wait_until_scored(&mut stack, now_ms() + 2_000);
        stack.wait("it is a pooled one again", SHORT_TIMEOUT, info("pooled"));
        stack.wait("a model of its own", MIN_HISTORY + MODEL_TIMEOUT, info("champion"));
        let own_ms = now_ms();
        wait_until_scored(&mut stack, now_ms() + 3_000);

        let get =
            |name: &str| new_host_samples(&stack.api, name).unwrap_or_else(|err| panic!("{version}: {err}"));
        let scrapes: Vec<i64> =
            get("node_network_receive_bytes_total").iter().map(|(timestamp_ms, _)| *timestamp_ms).collect();
        let scores = get("anomaly_score");
        let times: Vec<i64> = scores.iter().map(|(timestamp_ms, _)| *timestamp_ms).collect();
        let last_ms = times[times.len() - 1];
        // Rates use samples of the range before.
        let first_ms = scrapes[0];
        let rows: Vec<i64> =
            scrapes.into_iter().filter(|time| (first_ms + RANGE_MS..=last_ms).contains(time)).collect();
        let incidents = get("anomaly_incident");
        let n_incidents = incidents.windows(2).filter(|pair| pair[1].1 > pair[0].1).count();
        let seconds = |(timestamp_ms, score): &(i64, f64)| ((timestamp_ms - first_ms) / 1000, *score);
        let above_threshold: Vec<(i64, f64)> =
            scores.iter().filter(|(_, score)| *score > 1.0).map(seconds).collect();
        println!(
            "{version}: {} scores of ordinary traffic, {n_incidents} incidents; beyond 1, by seconds: {above_threshold:.2?}; its own \
             model after {} s",
            scores.len(),
            (own_ms - first_ms) / 1000
        );
        stack.assert_same_times(&times, &rows, "scores and rows of the new target");
        stack.check_nothing_lost();
    });
}
