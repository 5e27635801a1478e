//! Feedback on incidents and maintenance beside real Prometheus servers: a false alarm ends and is learned, a real
//! incident is not, and no incident opens in a maintenance or while an alert of `exclude_alerts` fires.

mod support;

use serde_json::Value;
use std::fs;
use std::time::Duration;
use support::hosts::{Hosts, JOB_OF_FILE};
use support::stack::{
    Collectors, JOB_NODE, NODE_NETWORK_EXTENDED, RemoteWriteReceiver, SHORT_TIMEOUT, Scraping, Stack,
    StackApi,
};
use support::{each_version, http, now_ms};

const HOSTS: [&str; 4] = ["web1", "web2", "web3", "web4"];
/// Fires for one host from the start.
const RULES: &str = r#"
groups:
  - name: planned
    rules: [{alert: Planned, expr: 'up{instance="web4"} == 1'}]
"#;

/// The newest value of a series of a host.
fn newest(at: &StackApi, name: &str, host: &str) -> Result<f64, String> {
    let series = at.stored(&format!(r#"{name}{{detector="node_network", instance="{host}"}}"#))?;
    series.samples.last().map(|sample| sample.1).ok_or_else(|| "no sample".into())
}

fn wait_for(stack: &mut Stack, what: &str, value: f64, read: impl Fn(&StackApi) -> Result<f64, String>) {
    stack.wait(what, Duration::from_secs(120), |at| match read(at)? {
        found if found == value => Ok(()),
        found => Err(found.to_string()),
    });
}

fn correction(at: &StackApi, host: &str) -> f64 {
    at.metric("promforest_alert_budget_correction", &[("instance", host)]).expect("the metric")
}

/// The output and the errors of `promforest feedback`.
fn feedback(stack: &Stack, host: &str, at_ms: i64, feedback: &str) -> (String, String) {
    let url = format!("http://127.0.0.1:{}", stack.promforest_port);
    let (group, at) = (format!("{{instance=\"{host}\"}}"), (at_ms as f64 / 1000.0).to_string());
    let output = stack.command(&["feedback", "--url", &url, "--group", &group, "--at", &at, feedback]);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(output.stdout), text(output.stderr))
}

/// Excluded rows of a training on each host.
fn excluded_rows(stack: &Stack) -> Vec<(String, u64)> {
    let trained = stack.run(&["train", "--output", "json"]);
    let trained: Value = serde_json::from_str(&trained).expect("JSON");
    let host = |model: &Value| {
        model["group"].as_str().expect("a group").split('"').nth(1).unwrap_or_default().to_string()
    };
    let models = trained.as_array().expect("a list").iter();
    models.map(|model| (host(model), model["n_excluded"].as_u64().expect("a number"))).collect()
}

#[test]
fn feedback_and_maintenance_change_what_is_reported_and_learned() {
    each_version(|version| {
        let hosts = Hosts::start();
        let mut stack = Stack::new(version, Collectors::Network, &Scraping { jobs: JOB_OF_FILE, ..JOB_NODE });
        let file = stack.dir.path().join("prometheus.yml");
        let config = fs::read_to_string(&file).expect("the file");
        fs::write(&file, config.replace("rule_files: [", "rule_files: [planned.yml, ")).expect("writable");
        fs::write(stack.dir.path().join("planned.yml"), RULES).expect("writable");
        hosts.write_targets(&stack, &HOSTS);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        let detector =
            NODE_NETWORK_EXTENDED.replace("interval: 1h}", "interval: 1h, exclude_alerts: [Planned]}");
        stack.configure_file("promforest.yml", "registry: {poll_interval: 1s}", &detector);
        stack.start_promforest();
        stack.wait("a model of each host", Duration::from_secs(240), |at| {
            let serves = |host: &&str| {
                at.metric("promforest_model_info", &[("instance", host), ("alias", "champion")]).is_ok()
            };
            match HOSTS.iter().filter(|host| serves(host)).count() {
                4 => Ok(()),
                n => Err(format!("{n} models")),
            }
        });

        let body = r#"{"action": "start", "groups": "{instance=\"web3\"}", "comment": "move"}"#;
        let answer = http::post_json(&stack.api.promforest, "/api/v1/maintenance", body).expect("an answer");
        assert_eq!(answer.status, 200, "{version}: {}", answer.body);
        let listed = stack.run(&["maintenance", "list"]);
        assert!(
            listed.starts_with(r#"{instance="web3"}, from "#)
                && listed.ends_with("until it is ended, active: move\n"),
            "{listed}"
        );
        for host in ["web3", "web4"] {
            wait_for(&mut stack, "a maintenance", 1.0, |at| {
                at.metric("promforest_maintenance_active", &[("instance", host)])
            });
        }
        // Until the last scrapes before it are scored.
        for host in HOSTS {
            wait_for(&mut stack, "calm", 0.0, |at| newest(at, "anomaly_incident", host));
        }
        let before = correction(&stack.api, "web2");
        hosts.set_factor(&HOSTS, 30.0);
        let burst_ms = now_ms();
        for host in ["web1", "web2"] {
            wait_for(&mut stack, "an incident", 1.0, |at| newest(at, "anomaly_incident", host));
        }
        for host in ["web3", "web4"] {
            stack.wait("scores go on", SHORT_TIMEOUT, |at| {
                let (score, threshold) =
                    (newest(at, "anomaly_score", host)?, newest(at, "anomaly_threshold", host)?);
                if score > threshold { Ok(()) } else { Err(format!("{host}: {score} {threshold}")) }
            });
            assert_eq!(newest(&stack.api, "anomaly_incident", host), Ok(0.0), "{version}: {host}");
        }

        // The newest row that is written belongs to the incident.
        let [web1_ms, web2_ms] = ["web1", "web2"].map(|host| {
            let series =
                stack.api.stored(&format!(r#"anomaly_incident{{instance="{host}"}}"#)).expect("incidents");
            series.samples.last().expect("rows").0
        });
        let counted = correction(&stack.api, "web1");
        let (output, errors) = feedback(&stack, "web1", web1_ms, "false");
        assert!(output.contains(r#""feedback":"false""#), "{version}: {output}{errors}");
        wait_for(&mut stack, "the false alarm ends", 0.0, |at| newest(at, "anomaly_incident", "web1"));
        stack.wait("a further step", SHORT_TIMEOUT, |at| {
            let after = correction(at, "web1");
            if after > counted + 0.09 { Ok(()) } else { Err(format!("{counted} {after}")) }
        });
        let (output, errors) = feedback(&stack, "web2", web2_ms, "real");
        assert!(output.contains(r#""feedback":"real""#), "{version}: {output}{errors}");
        stack.wait("no step", SHORT_TIMEOUT, |at| {
            let after = correction(at, "web2");
            if (after - before).abs() < 0.01 { Ok(()) } else { Err(format!("{before} {after}")) }
        });
        assert_eq!(newest(&stack.api, "anomaly_incident", "web2"), Ok(1.0), "{version}: it goes on");
        let (_, errors) = feedback(&stack, "web1", burst_ms - 7_200_000, "false");
        assert!(
            errors.contains("404")
                && errors.contains("has no incident at")
                && errors.contains("the nearest is from"),
            "{errors}"
        );
        let (_, errors) = feedback(&stack, "web9", web1_ms, "false");
        assert!(errors.contains(r#"no group matches {instance="web9"}"#), "{errors}");

        // The restart keeps it, and the same feedback again changes nothing.
        let kept = correction(&stack.api, "web1");
        stack.promforest.take().expect("the program runs").terminate(SHORT_TIMEOUT);
        stack.start_promforest();
        stack.wait("the correction of before", SHORT_TIMEOUT, |at| {
            let found = at.metric("promforest_alert_budget_correction", &[("instance", "web1")])?;
            if (found - kept).abs() < 0.01 { Ok(()) } else { Err(format!("{found}, not {kept}")) }
        });
        let (output, errors) = feedback(&stack, "web1", web1_ms, "false");
        assert!(output.contains(r#""feedback":"false""#), "{version}: {output}{errors}");
        assert!((correction(&stack.api, "web1") - kept).abs() < 0.01, "{version}: once");

        let excluded = excluded_rows(&stack);
        println!("{version}: excluded rows {excluded:?}");
        for (host, n_excluded) in &excluded {
            assert_eq!(*n_excluded > 0, host != "web1", "{version}: {excluded:?}");
        }
        assert!(excluded.len() >= 3, "{version}: {excluded:?}");

        stack.run(&["maintenance", "end", r#"{instance="web3"}"#]);
        wait_for(&mut stack, "an incident after the maintenance", 1.0, |at| {
            newest(at, "anomaly_incident", "web3")
        });
        stack.check_nothing_lost();
    });
}
