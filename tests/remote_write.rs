//! Sending to real Prometheus servers: the two messages of remote write, and where series end.

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, NODE_NETWORK, RANGE_MS, RemoteWriteReceiver, SHORT_TIMEOUT,
    Scraping, Stack, StackApi,
};
use support::{PrometheusVersion, each_version, http, now_ms};

/// Prometheus 3 takes remote write 2.0. 2.42 finds nothing in it, and answers 204 all the same.
#[test]
fn b82_remote_write_2_0_falls_back_to_1_0() {
    each_version(|version| {
        let mut stack = Stack::new(version, Collectors::Network, &JOB_NODE);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        let config = stack.configure(NODE_NETWORK);
        let with_message =
            config.replace("/write'", "/write', protobuf_message: io.prometheus.write.v2.Request");
        assert_ne!(config, with_message);
        fs::write(stack.config_file(), with_message).expect("the folder is writable");
        stack.start_promforest();
        stack.wait("the first scores", MODEL_TIMEOUT, |at| at.scores().map(drop));
        stack.wait_for_score_at(now_ms() + 3_000);
        let fallbacks = match version {
            PrometheusVersion::V2 => 1.0,
            PrometheusVersion::V3 => 0.0,
        };
        assert_eq!(stack.metric("promforest_remote_write_fallbacks_total", &[]), fallbacks, "{version}");
        let first_ms = stack.check_scores(RANGE_MS).samples[0].0;
        stack.check_nothing_lost();
        let scored = stack.metric("promforest_rows_total", &[("state", "complete")]);
        stack.wait("every score is there", SHORT_TIMEOUT, |at| {
            let stored = at.scores()?.samples.len() as f64;
            if stored >= scored { Ok(()) } else { Err(format!("{stored} of {scored} since {first_ms}")) }
        });
    });
}

/// Number of series that a query returns now: none after a staleness marker, and the last sample for five minutes otherwise.
fn n_visible_series(at: &StackApi) -> Result<usize, String> {
    at.prometheus
        .query(r#"{__name__=~"anomaly_score|node_network_anomaly", job="node"}"#)
        .map(|found| found.len())
}

fn wait_until_visible(stack: &mut Stack, what: &str, wanted: usize) {
    stack.wait(what, SHORT_TIMEOUT + MODEL_TIMEOUT, |at| match n_visible_series(at)? {
        found if found == wanted => Ok(()),
        found => Err(format!("{found} series")),
    });
}

#[test]
fn f26_series_end_with_their_target_or_detector_and_not_with_the_process() {
    each_version(|version| {
        let jobs = "  - {job_name: node, file_sd_configs: [{files: [targets.yml]}]}";
        let mut stack = Stack::new(version, Collectors::Network, &Scraping { jobs, ..JOB_NODE });
        let there = format!("- targets: ['127.0.0.1:{}']\n", stack.exporter_port);
        let write_targets = |folder: &Path, targets: &str| {
            // By a rename: Prometheus reads the file at each change.
            fs::write(folder.join("targets.new"), targets).expect("the folder is writable");
            fs::rename(folder.join("targets.new"), folder.join("targets.yml")).expect("the same directory");
        };
        write_targets(stack.dir.path(), &there);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure(NODE_NETWORK);
        stack.start_promforest();
        wait_until_visible(&mut stack, "the first scores", 2);

        // A restart is no end.
        let status = stack.promforest.take().expect("the program runs").terminate(Duration::from_secs(12));
        assert_eq!(status.code(), Some(0), "{version}");
        assert_eq!(n_visible_series(&stack.api), Ok(2), "{version}: after SIGTERM");
        stack.start_promforest();
        stack.wait_for_score_at(now_ms() + 2_000);

        // The target goes, and comes again.
        write_targets(stack.dir.path(), "[]\n");
        wait_until_visible(&mut stack, "the series of a target that is gone have ended", 0);
        write_targets(stack.dir.path(), &there);
        wait_until_visible(&mut stack, "they go on with their target", 2);

        // The detector goes.
        let other = NODE_NETWORK.replace("name: node_network", "name: other");
        stack.configure(&other);
        let answer = http::post(&stack.api.promforest, "/-/reload").expect("promforest answers");
        assert_eq!(answer.status, 200, "{version}: {}", answer.body);
        stack.wait("the series of a detector that is gone have ended", SHORT_TIMEOUT, |at| {
            let left = at
                .prometheus
                .query(r#"{__name__=~"anomaly_score|node_network_anomaly", detector!="other"}"#)?;
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
        let rejected =
            stack.metric("promforest_remote_write_samples_failed_total", &[("reason", "rejected")]);
        assert_eq!(rejected, 0.0, "{version}: no end is out of order");
    });
}
