//! The default model beside real Prometheus servers: what it wrote live is what a backtest says of the same rows, also
//! across a restart, and an incident comes with its threshold and its causes.

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::Duration;
use support::each_version;
use support::stack::{
    Addresses, Collectors, IN_ORDER, JOB_NODE, MODEL, RemoteWriteReceiver, SOON, Scraping, Stack,
};

/// Traffic on lo that no minute before had.
fn burst() {
    let open = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    let (from, to) = (open(), open());
    let to = to.local_addr().expect("a bound socket has an address");
    for _ in 0..100_000 {
        from.send_to(&[0; 4096], to).expect("lo takes a datagram");
    }
}

#[test]
fn live_is_what_a_backtest_says() {
    each_version(|version| {
        let mut stack = Stack::new(version, Collectors::Network, &Scraping { queue: "", ..JOB_NODE });
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure(IN_ORDER);
        stack.start_promforest();
        stack.wait("the first scores", Duration::from_secs(90) + MODEL, |at| at.scores().map(drop));
        stack.wait("an incident and what is behind it", Duration::from_secs(120), |at| {
            // Until somebody notices: other traffic on lo may have been in the training.
            burst();
            let open = at.stored(r#"anomaly_incident{detector="node_network"}"#)?;
            open.samples.iter().find(|sample| sample.1 == 1.0).ok_or("no incident yet")?;
            let causes =
                at.prometheus.query(r#"anomaly_contribution{detector="node_network", device="lo"}[10m]"#)?;
            let share =
                causes.iter().flat_map(|cause| &cause.samples).map(|sample| sample.1).fold(0.0, f64::max);
            if share > 0.2 { Ok(()) } else { Err(format!("the greatest share is {share}")) }
        });
        // A young model is renewed every quarter of its history. The next one has about half a minute, a third of it
        // before a restart.
        let trained = |at: &Addresses| at.metric("promforest_training_runs_total", &[("outcome", "trained")]);
        let so_far = trained(&stack.at).expect("a training");
        stack.wait("a renewed model", MODEL, |at| match trained(at)? > so_far {
            true => Ok(()),
            false => Err("none yet".into()),
        });
        thread::sleep(Duration::from_secs(12));
        stack.promforest.take().expect("it runs").terminate(SOON);
        stack.start_promforest();
        stack.wait("the model of before serves", SOON, |at| {
            let loaded = at.metric("promforest_training_runs_total", &[("outcome", "loaded")])?;
            if loaded == 1.0 { Ok(()) } else { Err(format!("{loaded} loaded")) }
        });
        let restarted_ms = support::now_ms();
        stack.wait_for_score_at(restarted_ms + 5_000);
        stack.promforest.take().expect("it runs").terminate(SOON);
        compare(&stack, restarted_ms);
    });
}

/// Every score of the version that served on both sides of the restart.
fn compare(stack: &Stack, restarted_ms: i64) {
    let version = &stack.version;
    let config = ["--config.file", "promforest.yml"];
    let run = |args: &[&str]| {
        let output = stack.command(&[args, &config].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{version}: {args:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let listed: Value = serde_json::from_str(&run(&["models", "list", "--output", "json"])).expect("JSON");
    let created_ms = |model: &Value| {
        let created: jiff::Timestamp = model["created"].as_str()?.parse().ok()?;
        Some(created.as_millisecond())
    };
    let listed = listed.as_array().expect("a list");
    let (before, after): (Vec<&Value>, Vec<&Value>) = listed
        .iter()
        .partition(|model| created_ms(model).is_some_and(|created_ms| created_ms < restarted_ms));
    let newest = before.into_iter().max_by_key(|model| created_ms(model)).expect("a model");
    let until_ms = after.into_iter().filter_map(created_ms).min().unwrap_or(i64::MAX);
    let name = format!("{}/{}", newest["model"].as_str().expect("a name"), newest["version"]);
    let created = newest["created"].as_str().expect("a time").to_string();
    run(&["backtest", "--model", &name, "--start", &created, "--output", "scores.csv", "--budget", "2/day"]);
    let csv = fs::read_to_string(stack.dir.path().join("scores.csv")).expect("the scores");
    let mut lines = csv.lines();
    let head: Vec<&str> = lines.next().expect("a head").split(',').collect();
    let at = |name: &str| {
        head.iter().position(|column| *column == name).unwrap_or_else(|| panic!("no {name}: {head:?}"))
    };
    let (time, score, decision) = (at("timestamp"), at("score"), at("decision"));
    let again: BTreeMap<i64, (f64, f64)> = lines
        .filter_map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            let number = |cell: usize| cells[cell].parse::<f64>().ok();
            Some((cells[time].parse().ok()?, (number(score)?, number(decision)?)))
        })
        .collect();
    let stored = |selector: &str| stack.at.stored(selector).unwrap_or_else(|err| panic!("{version}: {err}"));
    let scores = stored(r#"anomaly_score{detector="node_network"}"#).samples;
    let decisions = stored("node_network_anomaly").samples;
    // Fitting and entering the registry took a moment, in which the one before served.
    let first_ms = again.keys().next().expect("rows") + 5_000;
    let mut compared = [0, 0];
    for ((timestamp_ms, live), (_, decision)) in scores.into_iter().zip(decisions) {
        if !(first_ms..until_ms).contains(&timestamp_ms) {
            continue;
        }
        let (score, again) = again
            .get(&timestamp_ms)
            .unwrap_or_else(|| panic!("{version}: {timestamp_ms} is not in the backtest"));
        assert_eq!((live, decision), (*score, *again), "{version}: {timestamp_ms}");
        compared[usize::from(timestamp_ms > restarted_ms)] += 1;
    }
    println!("{version}: {compared:?} scores are equal before and after the restart");
    assert!(
        compared.iter().all(|count| *count >= 5),
        "{version}: {compared:?} of {} scores since {created}",
        again.len()
    );
}
