//! The default model beside real Prometheus servers: live scores equal those of a backtest of the same rows, also across
//! a restart, and an incident has its threshold and contributions.

mod support;

use serde_json::Value;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, NODE_NETWORK_EXTENDED, RemoteWriteReceiver, SHORT_TIMEOUT, Scraping,
    Stack, StackApi,
};
use support::{PrometheusVersion, each_version, now_ms};

/// Bursts of traffic on lo, each twice the one before. A young model is renewed within half a minute and learns what raised
/// no incident: bursts of one size, or without a pause, would be usual soon.
struct Bursts {
    n_datagrams: u32,
    next: Instant,
}

impl Bursts {
    /// Time in which a burst leaves the rates, and is scored and written.
    const PAUSE: Duration = Duration::from_secs(20);

    fn new() -> Self {
        Self { n_datagrams: 100_000, next: Instant::now() }
    }

    /// Sends the next burst, if the pause after the one before is over.
    fn send_if_due(&mut self) {
        if Instant::now() < self.next {
            return;
        }
        let open = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let (from, to) = (open(), open());
        let to = to.local_addr().expect("a bound socket has an address");
        for _ in 0..self.n_datagrams {
            from.send_to(&[0; 4096], to).expect("lo takes a datagram");
        }
        self.n_datagrams *= 2;
        self.next = Instant::now() + Self::PAUSE;
    }
}

#[test]
fn live_scores_equal_a_backtest() {
    each_version(|version| {
        let mut stack = Stack::new(version, Collectors::Network, &Scraping { queue: "", ..JOB_NODE });
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure(NODE_NETWORK_EXTENDED);
        stack.start_promforest();
        stack.wait("the first scores", Duration::from_secs(90) + MODEL_TIMEOUT, |at| at.scores().map(drop));
        let mut bursts = Bursts::new();
        stack.wait("an incident and what is behind it", Duration::from_secs(120), |at| {
            // Other traffic on lo may have been in the training.
            bursts.send_if_due();
            let open = at.stored(r#"anomaly_incident{detector="node_network"}"#)?;
            open.samples.iter().find(|sample| sample.1 == 1.0).ok_or("no incident yet")?;
            let contributions =
                at.prometheus.query(r#"anomaly_contribution{detector="node_network", device="lo"}[10m]"#)?;
            let share = contributions
                .iter()
                .flat_map(|contribution| &contribution.samples)
                .map(|sample| sample.1)
                .fold(0.0, f64::max);
            if share > 0.2 { Ok(()) } else { Err(format!("the greatest share is {share}")) }
        });
        check_values(&stack);
        // A young model is renewed every quarter of its history. The next one has about half a minute, a third of it
        // before a restart.
        let trained = |at: &StackApi| at.metric("promforest_training_runs_total", &[("outcome", "trained")]);
        let trained_before = trained(&stack.api).expect("a training");
        // A renewal waits for a minute at most while the score is high.
        let timeout = MODEL_TIMEOUT + Duration::from_secs(60);
        stack.wait("a renewed model", timeout, |at| match trained(at)? > trained_before {
            true => Ok(()),
            false => Err("none yet".into()),
        });
        thread::sleep(Duration::from_secs(12));
        stack.promforest.take().expect("the program runs").terminate(SHORT_TIMEOUT);
        stack.start_promforest();
        stack.wait("the model of before serves", SHORT_TIMEOUT, |at| {
            let loaded = at.metric("promforest_training_runs_total", &[("outcome", "loaded")])?;
            if loaded == 1.0 { Ok(()) } else { Err(format!("{loaded} loaded")) }
        });
        let restarted_ms = now_ms();
        stack.wait_for_score_at(restarted_ms + 5_000);
        stack.promforest.take().expect("the program runs").terminate(SHORT_TIMEOUT);
        compare_with_backtest(&stack, restarted_ms);
    });
}

/// The values of the features behind the incident are their rates, as Prometheus computes them: version 2 includes one
/// sample more at the edge of the range.
fn check_values(stack: &Stack) {
    let query = |expression: &str| {
        stack.api.prometheus.query(expression).unwrap_or_else(|err| panic!("{}: {err}", stack.version))
    };
    let values = query(r#"anomaly_value{detector="node_network", device="lo"}[10m]"#);
    assert!(!values.is_empty(), "{}: no value", stack.version);
    for series in values.iter().filter(|_| stack.version == PrometheusVersion::V3) {
        for (timestamp_ms, value) in &series.samples {
            let (metric, at) = (&series.labels["metric"], *timestamp_ms as f64 / 1000.0);
            let rate = query(&format!(r#"rate({metric}{{job="node", device="lo"}}[10s] @ {at:.3})"#));
            assert_eq!(rate[0].samples[0].1 as f32, *value as f32, "{metric} at {timestamp_ms}");
        }
    }
}

/// Creation time of a version.
fn created_ms(model: &Value) -> i64 {
    let created: jiff::Timestamp = model["created"].as_str().expect("a time").parse().expect("a time");
    created.as_millisecond()
}

/// Every score of the version that served on both sides of the restart, from its first one on.
fn compare_with_backtest(stack: &Stack, restarted_ms: i64) {
    let version = &stack.version;
    let (before, after): (Vec<Value>, Vec<Value>) =
        stack.models().into_iter().partition(|model| created_ms(model) < restarted_ms);
    let newest = before.iter().max_by_key(|model| created_ms(model)).expect("a model");
    let until_ms = after.iter().map(|model| stack.trained_to_ms(model)).min().unwrap_or(i64::MAX - 1);
    let replayed = stack.backtest(newest);
    let live_rows = stack.live_scores("node_network", "");
    let mut rows = live_rows.range(..=until_ms);
    // The version before it scored the rows that came while it was fitted.
    let first = rows.find(|(timestamp_ms, live)| replayed.get(timestamp_ms) == Some(live));
    let (first_ms, _) = first.expect("a score of the version");
    let mut compared = [0, 0];
    for (timestamp_ms, live) in rows {
        assert_eq!(replayed.get(timestamp_ms), Some(live), "{version}: {timestamp_ms}");
        compared[usize::from(*timestamp_ms > restarted_ms)] += 1;
    }
    println!("{version}: {compared:?} scores are equal before and after the restart");
    assert!(
        compared.iter().all(|count| *count >= 5),
        "{version}: {compared:?} of {} scores since {first_ms}",
        replayed.len()
    );
}

#[test]
fn a_promoted_version_continues_as_if_it_had_served_throughout() {
    each_version(|version| {
        let mut stack = Stack::new(version, Collectors::Network, &JOB_NODE);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure_file("promforest.yml", "registry: {poll_interval: 1s}", NODE_NETWORK_EXTENDED);
        stack.start_promforest();
        let serves = |number: &'static str, alias: &'static str| {
            move |at: &StackApi| {
                at.metric("promforest_model_info", &[("version", number), ("alias", alias)]).map(drop)
            }
        };
        stack.wait("a second version", Duration::from_secs(120) + MODEL_TIMEOUT, serves("2", "champion"));
        stack.wait_for_score_at(now_ms() + 2_000);
        let name = stack.models()[0]["model"].as_str().expect("a name").to_string();
        stack.run(&["models", "promote", &name, "1"]);
        stack.wait("the first version again", SHORT_TIMEOUT, serves("1", "champion"));
        let promoted_ms = now_ms();
        stack.run(&["models", "promote", &name, "2", "--alias", "challenger"]);
        stack.wait("the second beside it", SHORT_TIMEOUT, serves("2", "challenger"));
        stack.wait_for_score_at(now_ms() + 8_000);
        let rows_by_state = stack.rows_by_state();
        stack.promforest.take().expect("the program runs").terminate(SHORT_TIMEOUT);
        check_service_of_first(&stack, promoted_ms, &rows_by_state);
        check_challenger(&stack, &rows_by_state);
    });
}

/// The version with this number.
fn find_version(models: &[Value], number: u64) -> &Value {
    let model = models.iter().find(|model| model["version"] == number);
    model.unwrap_or_else(|| panic!("no version {number} of {models:?}"))
}

/// Every score of the first version while it served first, and since it was promoted.
fn check_service_of_first(stack: &Stack, promoted_ms: i64, rows_by_state: &str) {
    let (version, models) = (&stack.version, stack.models());
    let second_ms = stack.trained_to_ms(find_version(&models, 2));
    let third = models.iter().find(|model| model["version"] == 3);
    let third_ms = third.map_or(i64::MAX, |third| stack.trained_to_ms(third));
    let live_rows = stack.live_scores("node_network", r#"model="""#);
    let replayed = stack.backtest(find_version(&models, 1));
    let n_rows = [i64::MIN..=second_ms, promoted_ms..=third_ms.max(promoted_ms)].map(|span| {
        let rows = live_rows.range(span);
        rows.inspect(|(at_ms, live)| {
            assert_eq!(replayed.get(at_ms), Some(*live), "{version}: {at_ms}\n{rows_by_state}");
        })
        .count()
    });
    println!("{version}: {n_rows:?} scores are those of a backtest");
    assert!(n_rows.iter().all(|n| *n >= 5), "{version}: {n_rows:?}\n{rows_by_state}");
}

/// Every score of the second version as the challenger.
fn check_challenger(stack: &Stack, rows_by_state: &str) {
    let (version, models) = (&stack.version, stack.models());
    let replayed = stack.backtest(find_version(&models, 2));
    let scores = stack.live_scores("node_network", r#"model="challenger""#);
    for (at_ms, score) in &scores {
        assert_eq!(replayed.get(at_ms), Some(score), "{version}: challenger at {at_ms}\n{rows_by_state}");
    }
    println!("{version}: {} scores of the challenger are those of a backtest", scores.len());
    assert!(scores.len() >= 5, "{version}: {}\n{rows_by_state}", scores.len());
}
