//! External labels of Prometheus: it stores none, and adds them to every series of remote write and to every response of
//! remote read. A series has the same labels live and in history, and a group per cluster has `cluster` in `by`.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, NODE_NETWORK, NODE_NETWORK_EXTENDED, RANGE_MS, RemoteWriteReceiver,
    SHORT_TIMEOUT, Scraping, Stack,
};
use support::{each_version, now_ms};

/// Length of the history that [`NODE_NETWORK_EXTENDED`] needs for a first model.
const MIN_HISTORY: Duration = Duration::from_secs(60);

#[test]
fn external_labels_are_the_same_live_and_in_history() {
    each_version(|version| {
        let scraping = Scraping { external_labels: "cluster: a, replica: r1", ..JOB_NODE };
        let mut stack = Stack::new(version, Collectors::Network, &scraping);
        // As deploy/reference/behaviour.md says.
        stack.add_remote_read(", required_matchers: {detector: node_network}, filter_external_labels: false");
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        thread::sleep(MIN_HISTORY + Duration::from_secs(15));
        let of_cluster = NODE_NETWORK_EXTENDED
            .replace("node_network\n", "clustered\n    by: [cluster, replica, job, instance]\n")
            .replace("device=", "cluster=\"a\", device=");
        stack.configure(&format!("{NODE_NETWORK_EXTENDED}{}", of_cluster.trim_start_matches('\n')));
        stack.start_promforest();
        let groups = stack.wait("models of both", MIN_HISTORY + MODEL_TIMEOUT, |at| match at.ready()? {
            (200, text) => Ok(text),
            (_, text) => Err(text),
        });
        let one_each = "node_network: 1 of 1 groups have a model\nclustered: 1 of 1 groups have a model";
        assert_eq!(groups, one_each, "{version}");
        // Four series of a group, and two groups: what remote write brings late is no matter.
        let read = stack.metric("promforest_history_samples_total", &[]);
        assert!(read >= (2 * 4 * MIN_HISTORY.as_secs()) as f64, "{version}: only {read} samples of history");
        let began_ms = now_ms();
        stack.wait_for_score_at(began_ms + 3_000);

        // A restart goes on after the newest score that is stored, with a snapshot or without.
        stack.promforest.take().expect("the program runs").terminate(SHORT_TIMEOUT);
        thread::sleep(Duration::from_secs(3));
        stack.start_promforest();
        stack.wait_for_score_at(now_ms() + 2_000);
        stack.kill_promforest();
        fs::remove_dir_all(stack.dir.path().join("promforest-data/snapshots"))
            .expect("the folder is writable");
        let killed_ms = now_ms();
        thread::sleep(Duration::from_secs(3));
        stack.start_promforest();
        stack.wait_for_score_at(now_ms() + 2_000);
        let written = stack.metric("promforest_remote_write_samples_total", &[]);
        let stored =
            stack.api.prometheus.query(r#"{__name__=~"anomaly_.+|.+_anomaly"}[10m]"#).expect("stored");
        let since =
            stored.iter().flat_map(|series| &series.samples).filter(|(at_ms, _)| *at_ms > killed_ms - 2_000);
        let (before, since) =
            (stored.iter().map(|series| series.samples.len()).sum::<usize>(), since.count());
        // Staleness markers are written too, and a query does not return them.
        assert!(
            written <= (since + 30) as f64 && since + 60 < before,
            "{version}: {written} written, {since} since the end of {before}"
        );
        stack.check_nothing_lost();
        for detector in ["node_network", "clustered"] {
            let compared = stack.check_backtests(detector, began_ms);
            assert!(compared >= 10, "{version}: only {compared} scores");
        }

        // Scores have the labels that `by` names, and a Prometheus that does not store them finds them here.
        stack.stop_prometheus();
        stack.start_prometheus(RemoteWriteReceiver::Disabled);
        stack.wait_for_score_at(now_ms() + 2_000);
        let labels = |detector: &str| {
            let mut series = stack
                .api
                .stored(&format!(r#"anomaly_score{{detector="{detector}"}}"#))
                .expect("one series is stored");
            series
                .labels
                .retain(|name, _| !["__name__", "detector", "instance", "job"].contains(&name.as_str()));
            series.labels
        };
        assert_eq!(labels("node_network"), BTreeMap::new(), "{version}");
        let external = [("cluster", "a"), ("replica", "r1")].map(|(name, value)| (name.into(), value.into()));
        assert_eq!(labels("clustered"), BTreeMap::from(external), "{version}");
    });
}

/// Two servers that differ by an external label send to one promforest. Both are killed with unsent samples, which one
/// gap fill reads; remote read compares external labels by `=` only.
#[test]
fn f14_gaps_of_groups_with_different_external_labels_are_filled() {
    each_version(|version| {
        let [mut stack, mut other] = ["cluster: a", "cluster: b"].map(|external_labels| {
            // Prometheus' own batches: seconds of samples are lost with it.
            let scraping = Scraping { external_labels, queue: "", ..JOB_NODE };
            Stack::new(version, Collectors::Network, &scraping)
        });
        let file = other.dir.path().join("prometheus.yml");
        let config = fs::read_to_string(&file).expect("it was written");
        fs::write(file, config.replace(&other.api.promforest, &stack.api.promforest))
            .expect("the folder is writable");
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        other.start_prometheus(RemoteWriteReceiver::Disabled);
        let detector = NODE_NETWORK.replace("transform", "by: [cluster, job, instance]\n    transform");
        let read = |stack: &Stack| format!("{{url: 'http://{}/api/v1/read'}}", stack.api.prometheus.0);
        let config =
            stack.configure(&detector).replace(&read(&stack), &format!("{}, {}", read(&stack), read(&other)));
        fs::write(stack.config_file(), config).expect("the folder is writable");
        stack.start_promforest();
        let scores = |stack: &Stack, cluster: &str| {
            stack.api.stored(&format!(r#"anomaly_score{{cluster="{cluster}"}}"#))
        };
        let wait_for_scores_of_both = |stack: &mut Stack, to_ms: i64| {
            stack.wait("scores of both", MODEL_TIMEOUT, |at| {
                for cluster in ["a", "b"] {
                    let stored = at.stored(&format!(r#"anomaly_score{{cluster="{cluster}"}}"#))?;
                    let newest_ms = stored.timestamps().last().copied().unwrap_or_default();
                    if newest_ms < to_ms {
                        return Err(format!("{cluster} is {} ms short of it", to_ms - newest_ms));
                    }
                }
                Ok(())
            });
        };
        wait_for_scores_of_both(&mut stack, now_ms());
        // Each dies with scrapes that it has stored and not sent.
        let apis = [stack.api.prometheus.clone(), other.api.prometheus.clone()];
        stack.with_unsent_scrapes(&[&apis[0], &apis[1]], |stack| {
            for prometheus in [&mut stack.prometheus, &mut other.prometheus] {
                prometheus.take().expect("the program runs").kill();
            }
        });
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        other.start_prometheus(RemoteWriteReceiver::Disabled);
        wait_for_scores_of_both(&mut stack, now_ms() + 4_000);
        let filled = stack.metric("promforest_gap_fill_samples_total", &[]);
        assert!(filled > 0.0, "{version}: nothing was filled\n{}", stack.promforest_tail());
        for (cluster, scraping) in [("a", &stack), ("b", &other)] {
            let scores = scores(&stack, cluster).expect("the series is stored").timestamps();
            let scrapes =
                scraping.api.stored(r#"node_network_receive_bytes_total{device="lo"}"#).expect("stored");
            let scrapes = scrapes.timestamps();
            let scored = scrapes.windows(2).filter(|pair| pair[1] - pair[0] < RANGE_MS).map(|pair| pair[1]);
            let span = scores[0]..=scores[scores.len() - 1];
            let scored: Vec<i64> = scored.filter(|timestamp_ms| span.contains(timestamp_ms)).collect();
            stack.assert_same_times(&scores, &scored, &format!("scores and scrapes of {cluster}"));
        }
    });
}
