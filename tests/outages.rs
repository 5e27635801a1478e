//! Prometheus restarts with an empty database, or with another configuration.

mod support;

use std::fs;
use std::time::Duration;
use support::stack::{RANGE_MS, RemoteWriteReceiver, SHORT_TIMEOUT, Stack};
use support::{each_version, now_ms};

/// The history is lost: the model stays in service, and no model is trained on a shorter history.
#[test]
fn f15_an_empty_database_keeps_the_model_and_the_window() {
    each_version(|version| {
        let mut stack = Stack::with_scores(version);
        let rows = stack.metric("promforest_model_training_rows", &[]);
        stack.stop_prometheus();
        fs::remove_dir_all(stack.dir.path().join("data")).expect("Prometheus has a folder");
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        let back_ms = now_ms();
        stack.wait_for_score_at(back_ms + 2_000);
        let scores = stack.api.scores().expect("the series is stored");
        assert!(
            scores.samples[0].0 >= back_ms - RANGE_MS,
            "{version}: the database was not empty: {scores:?}"
        );
        let trained = |at: &support::stack::StackApi| {
            at.metric("promforest_training_runs_total", &[("outcome", "trained")])
        };
        let trained_before = trained(&stack.api).expect("a training");
        stack.wait("a model after it", Duration::from_secs(60), |at| match trained(at)? > trained_before {
            true => Ok(()),
            false => Err("none yet".into()),
        });
        let later = stack.metric("promforest_model_training_rows", &[]);
        assert!(later > rows, "{version}: a model of {rows} rows, then one of {later}");
        let (status, text) = stack.api.ready().expect("promforest answers");
        assert_eq!((status, &*text), (200, "node_network: 1 of 1 groups have a model"), "{version}");
    });
}

/// The queue of the new configuration begins a little before or after the end of the old one: every scrape has its score.
#[test]
fn f16_another_configuration_of_prometheus_leaves_no_gap() {
    each_version(|version| {
        let mut stack = Stack::with_scores(version);
        let path = stack.dir.path().join("prometheus.yml");
        let config = fs::read_to_string(&path).expect("its configuration");
        for deadline in ["2s", "1500ms", "1s"] {
            let other =
                config.replace("batch_send_deadline: 1s", &format!("batch_send_deadline: {deadline}"));
            fs::write(&path, other).expect("the folder is writable");
            stack.prometheus.as_ref().expect("the program runs").signal("HUP");
            let now = now_ms();
            stack.wait_for_score_at(now + 4_000);
        }
        stack.wait("every scrape has a score", SHORT_TIMEOUT, |at| {
            let scores = at.scores()?.timestamps();
            let scrapes = at.stored(r#"node_network_receive_bytes_total{device="lo"}"#)?.timestamps();
            let last = scores[scores.len() - 1];
            let missing: Vec<i64> = scrapes
                .into_iter()
                .filter(|scrape| (scores[0]..=last).contains(scrape) && !scores.contains(scrape))
                .collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} are lacking")) }
        });
        stack.check_scores(RANGE_MS);
        stack.check_nothing_lost();
    });
}
