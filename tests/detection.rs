//! The default model beside real Prometheus servers: what it wrote live is what a backtest says of the same rows, also
//! across a restart, and an incident comes with its threshold and its causes.

mod support;

use serde_json::Value;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::Duration;
use support::stack::{
    Addresses, Collectors, IN_ORDER, JOB_NODE, MODEL, RemoteWriteReceiver, SOON, Scraping, Stack,
};
use support::{each_version, now_ms};

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
        let restarted_ms = now_ms();
        stack.wait_for_score_at(restarted_ms + 5_000);
        stack.promforest.take().expect("it runs").terminate(SOON);
        compare(&stack, restarted_ms);
    });
}

/// When a version was made.
fn created_ms(model: &Value) -> i64 {
    let created: jiff::Timestamp = model["created"].as_str().expect("a time").parse().expect("a time");
    created.as_millisecond()
}

/// Every score of the version that served on both sides of the restart.
fn compare(stack: &Stack, restarted_ms: i64) {
    let version = &stack.version;
    let (before, after): (Vec<Value>, Vec<Value>) =
        stack.models().into_iter().partition(|model| created_ms(model) < restarted_ms);
    let newest = before.iter().max_by_key(|model| created_ms(model)).expect("a model");
    let until_ms = after.iter().map(created_ms).min().unwrap_or(i64::MAX);
    let again = stack.backtest(newest);
    // Fitting and entering the registry took a moment, in which the one before served.
    let first_ms = created_ms(newest) + 5_000;
    let mut compared = [0, 0];
    for (timestamp_ms, live) in stack.said("node_network", "").range(first_ms..until_ms) {
        assert_eq!(again.get(timestamp_ms), Some(live), "{version}: {timestamp_ms}");
        compared[usize::from(*timestamp_ms > restarted_ms)] += 1;
    }
    println!("{version}: {compared:?} scores are equal before and after the restart");
    assert!(
        compared.iter().all(|count| *count >= 5),
        "{version}: {compared:?} of {} scores since {first_ms}",
        again.len()
    );
}

#[test]
fn a_version_that_is_promoted_goes_on_as_if_it_had_served_all_the_while() {
    each_version(|version| {
        let mut stack = Stack::new(version, Collectors::Network, &JOB_NODE);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure_more("promforest.yml", "registry: {poll_interval: 1s}", IN_ORDER);
        stack.start_promforest();
        let serves = |number: &'static str, alias: &'static str| {
            move |at: &Addresses| {
                at.metric("promforest_model_info", &[("version", number), ("alias", alias)]).map(drop)
            }
        };
        stack.wait("a second version", Duration::from_secs(120) + MODEL, serves("2", "champion"));
        stack.wait_for_score_at(now_ms() + 2_000);
        let name = stack.models()[0]["model"].as_str().expect("a name").to_string();
        stack.run(&["models", "promote", &name, "1"]);
        stack.wait("the first version again", SOON, serves("1", "champion"));
        let promoted_ms = now_ms();
        stack.run(&["models", "promote", &name, "2", "--alias", "challenger"]);
        stack.wait("the second beside it", SOON, serves("2", "challenger"));
        stack.wait_for_score_at(now_ms() + 8_000);
        stack.promforest.take().expect("it runs").terminate(SOON);

        let models = stack.models();
        let of = |number: u64| {
            let model = models.iter().find(|model| model["version"] == number);
            model.unwrap_or_else(|| panic!("{version}: no version {number}"))
        };
        let until_ms = models.iter().find(|model| model["version"] == 3).map_or(i64::MAX, created_ms);
        let said = stack.said("node_network", r#"model="""#);
        let first = stack.backtest(of(1));
        // While it served first, and since it was promoted.
        let [once, again] =
            [created_ms(of(1)) + 5_000..created_ms(of(2)), promoted_ms..until_ms].map(|span| {
                let rows = said.range(span);
                rows.inspect(|(at_ms, live)| assert_eq!(first.get(at_ms), Some(*live), "{version}: {at_ms}"))
                    .count()
            });
        let second = stack.backtest(of(2));
        let challenged = stack.at.stored(r#"anomaly_score{model="challenger"}"#).expect("a challenger");
        for (at_ms, score) in &challenged.samples {
            assert_eq!(
                second.get(at_ms).map(|said| said[0]),
                Some(*score),
                "{version}: challenger at {at_ms}"
            );
        }
        let beside = challenged.samples.len();
        println!("{version}: {once}, {again} and {beside} scores are those of a backtest");
        assert!(once >= 5 && again >= 5 && beside >= 5, "{version}: {once}, {again}, {beside}");
    });
}
