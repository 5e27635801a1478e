//! The whole journey beside real Prometheus servers, an old one and a current one: node_exporter is scraped,
//! its samples are streamed to the program, and the scores that come back are compared with the scrapes,
//! sample by sample. Every scenario runs against both servers at the same time.
//!
//! Rates over 10 s and models of 10 s keep it short; the main scenario takes a minute for both.

mod support;

use serde_json::Value;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use support::prometheus::{Series, list, text};
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, NODE_NETWORK, RANGE_MS, RemoteWriteReceiver, SHORT_TIMEOUT,
    Scraping, Stack, StackApi,
};
use support::{command, each_version, http, in_parallel, now_ms, reference};

/// Prometheus' own batch deadline by default, and 2 s.
const MAX_LAG_MS: i64 = 7_000;

// ------------------------------------------------------------------------------------------ traffic

/// Receives datagrams over lo and does not read them.
struct Sink {
    from: UdpSocket,
    to: UdpSocket,
}

impl Sink {
    const DATAGRAM: usize = 4 << 10;

    fn new() -> Self {
        let open = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        Self { from: open(), to: open() }
    }

    /// Sends whole datagrams of at most this many bytes in total, and returns the number of bytes.
    fn send(&self, bytes: f64) -> f64 {
        let to = self.to.local_addr().expect("a bound socket has an address");
        let datagrams = (bytes / Self::DATAGRAM as f64) as usize;
        for _ in 0..datagrams {
            self.from.send_to(&[0; Self::DATAGRAM], to).expect("lo takes a datagram");
        }
        (datagrams * Self::DATAGRAM) as f64
    }
}

/// The ordinary traffic of a machine: constant, with two bursts in the first minute. A forest that is trained on the
/// bursts takes the traffic of the other scenarios on lo for noise.
struct Traffic {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    const TICK: Duration = Duration::from_millis(20);
    const BYTES_PER_SECOND: f64 = 4e6;
    const BURST_BYTES: f64 = 200e6;
    const BURSTS_AT_SECONDS: [f64; 2] = [20.0, 50.0];

    fn start() -> Self {
        let stop = Arc::<AtomicBool>::default();
        let thread = thread::spawn({
            let stop = stop.clone();
            move || {
                let sink = Sink::new();
                let began = Instant::now();
                let mut sent = 0.0;
                while !stop.load(Ordering::Relaxed) {
                    // By the clock, so that a busy machine has the same traffic.
                    let seconds = began.elapsed().as_secs_f64();
                    let n_bursts = Self::BURSTS_AT_SECONDS.iter().filter(|at| **at <= seconds).count();
                    let due = seconds * Self::BYTES_PER_SECOND + n_bursts as f64 * Self::BURST_BYTES;
                    sent += sink.send(due - sent);
                    thread::sleep(Self::TICK);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// More traffic than before.
    fn send_burst() {
        Sink::new().send(3.0 * Self::BURST_BYTES);
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

// ---------------------------------------------------------------------------------------- scenarios

/// A scrape each second, a rate over a minute, a minute of history, and Prometheus' own batches. Only lo of the default
/// detector's interfaces: the traffic of the others is not under control. A second detector has a shorter range for
/// bursts, which a rate over a minute would show for a minute.
#[test]
fn a_burst_of_traffic_is_detected() {
    const DETECTORS: &str = r#"
  - name: node_network
    match: ['{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device="lo"}']
    by: [job, instance]
    transform: rate(1m)
    training: {min_history: 60s}
    model: {kind: isolation_forest}
  - name: traffic
    match: ['{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device="lo"}']
    transform: rate(5s)
    training: {min_history: 60s}
    model: {kind: isolation_forest}
"#;
    let _traffic = Traffic::start();
    let mut stacks = each_version(|version| {
        let scraping = Scraping { queue: "", ..JOB_NODE };
        let mut stack = Stack::new(version, Collectors::All, &scraping);
        stack.configure(DETECTORS);
        stack.start_promforest();
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        wait_until_ready(&mut stack, Duration::from_secs(120) + MODEL_TIMEOUT);
        stack.wait("the first scores", SHORT_TIMEOUT, |at| at.scores().map(drop));
        stack
    });
    let calm = Duration::from_secs(25);
    in_parallel(stacks.iter_mut().map(|stack| (stack.version, stack)), |stack| {
        check_scores_are_fresh(stack, calm)
    });

    let burst_ms = now_ms();
    Traffic::send_burst();
    in_parallel(stacks.iter_mut().map(|stack| (stack.version, stack)), |stack| {
        check_burst_is_detected(stack, burst_ms);
        stack.check_scores(60_000);
        stack.check_nothing_lost();
        check_own_output_is_ignored(stack);
        check_rules_are_healthy(stack);
        check_dashboards_have_data(stack);
        check_match_reads_prometheus(stack);
    });
}

/// `promforest match --prometheus` finds the columns of every interface that Prometheus has.
fn check_match_reads_prometheus(stack: &Stack) {
    let url = format!("http://127.0.0.1:{}", stack.prometheus_port);
    let output = command::run(&["match", "--prometheus", &url, "--output", "json"]);
    assert_eq!((output.status, &*output.stderr), (0, ""));
    let matched: Value = serde_json::from_str(&output.stdout).expect("JSON");
    let group = &matched[0]["groups"][0];
    assert_eq!(group["labels"]["job"], "node", "{matched}");
    let columns = group["columns"].as_array().expect("columns");
    let lo = "rate(node_network_receive_bytes_total{device=\"lo\"}[1m])";
    assert!(columns.len() >= 4 && columns.iter().any(|column| column == lo), "{columns:?}");
}

/// `/-/ready` is 503 with the progress, then 200.
fn wait_until_ready(stack: &mut Stack, limit: Duration) {
    let mut progress: Vec<u32> = Vec::new();
    stack.wait("promforest is ready", limit, |at| {
        let (status, text) = at.ready()?;
        if status == 200 {
            let all = "node_network: 1 of 1 groups have a model\ntraffic: 1 of 1 groups have a model";
            assert_eq!(text, all);
            return Ok(());
        }
        assert_eq!(status, 503, "{text}");
        let line = text.lines().next().unwrap_or_default();
        if let Some((before, _)) = line.split_once(" % of the 1m of history that a first model needs") {
            let percent = before.strip_prefix("node_network: ").and_then(|text| text.parse().ok());
            progress.push(percent.unwrap_or_else(|| panic!("no number in {text:?}")));
        } else {
            assert!(["starting", "node_network: no samples yet"].contains(&line), "{text}");
        }
        Err(text)
    });
    // The progress is estimated between two reads of the history.
    let is_monotonic = progress.windows(2).all(|pair| pair[1] + 3 >= pair[0]);
    progress.dedup();
    assert!(progress.len() > 10 && is_monotonic, "{}: progress {progress:?}", stack.version);
}

/// For a while, the newest score is at all times about as young as Prometheus' batches allow.
fn check_scores_are_fresh(stack: &mut Stack, period: Duration) {
    let until = Instant::now() + period;
    let mut lags = Vec::new();
    while Instant::now() < until {
        let before_ms = now_ms();
        let newest_ms = stack.wait("a score", SHORT_TIMEOUT, |at| {
            at.scores().map(|scores| scores.timestamps().last().copied().expect("a series has samples"))
        });
        lags.push(before_ms - newest_ms);
        thread::sleep(Duration::from_millis(500));
    }
    assert!(
        lags.iter().all(|lag_ms| (0..=MAX_LAG_MS).contains(lag_ms)),
        "{}: the newest score is this many milliseconds old: {lags:?}\n{}",
        stack.version,
        stack.promforest_tail()
    );
}

/// The scores rise above the highest of the calm before, within a few scrapes.
fn check_burst_is_detected(stack: &mut Stack, burst_ms: i64) {
    stack.wait("the score rises with the traffic", SHORT_TIMEOUT, |at| {
        let samples = at.stored(r#"anomaly_score{detector="traffic"}"#)?.samples;
        let calm = samples.iter().filter(|(at_ms, _)| (burst_ms - 20_000..burst_ms).contains(at_ms));
        let calm: Vec<f64> = calm.map(|(_, score)| *score).collect();
        assert!(calm.len() >= 15, "only {} scores in the calm before", calm.len());
        let highest = calm.iter().copied().fold(f64::MIN, f64::max);
        let since: Vec<f64> = samples.iter().filter(|(at_ms, _)| *at_ms >= burst_ms).map(|s| s.1).collect();
        let traffic = r#"rate(node_network_receive_bytes_total{device="lo"}[5s]) / 1e6"#;
        let traffic = at.prometheus.query_range(traffic, 40, 1)?;
        let traffic: Vec<f64> = traffic.iter().flat_map(|lo| &lo.samples).map(|sample| sample.1).collect();
        let observed = format!("{since:.2?} after {calm:.2?}; lately, in MB/s: {traffic:.1?}");
        let rise = since.iter().position(|score| *score > highest && *score > 1.0).ok_or(&observed)?;
        assert!(rise < 5, "late: {observed}");
        Ok(())
    });
}

/// Prometheus sends the written scores and the metrics of promforest back by remote write.
fn check_own_output_is_ignored(stack: &Stack) {
    let own = stack.metric("promforest_ingest_samples_dropped_total", &[("reason", "own_output")]);
    let written = stack.metric("promforest_remote_write_samples_total", &[]);
    assert!(own > written / 2.0 && written > 40.0, "{}: {written} written, {own} came back", stack.version);
    let page = http::get(&stack.api.promforest, "/metrics").expect("promforest answers").body;
    reference::check_metrics(&page);
    let groups: Vec<&str> =
        page.lines().filter(|line| line.starts_with("promforest_training_progress_ratio{")).collect();
    assert_eq!(groups.len(), 2, "{}: a group of each detector, not {groups:?}", stack.version);
    let instance = format!("instance=\"127.0.0.1:{}\"", stack.exporter_port);
    for group in groups {
        assert!(group.contains("job=\"node\"") && group.contains(&instance), "{}: {group}", stack.version);
    }
}

fn check_rules_are_healthy(stack: &mut Stack) {
    let n_rules = stack.wait("every rule is evaluated", SHORT_TIMEOUT, |at| {
        let data = at.prometheus.data("rules")?;
        let mut n_rules = 0;
        for rule in list(&data["groups"]).iter().flat_map(|group| list(&group["rules"])) {
            if rule["health"] != "ok" {
                return Err(format!("{}: {} {}", rule["name"], rule["health"], rule["lastError"]));
            }
            n_rules += 1;
        }
        Ok(n_rules)
    });
    assert!(n_rules > 0, "{}: no rules", stack.version);
}

/// Queries without data by dashboard, panel and refId: models of the kind isolation_forest have no incidents and no budget,
/// no challenger has an alias, and every group is scored.
const EMPTY_QUERIES: [(&str, &str, &[&str]); 11] = [
    ("fleet", "Incidents", &["A", "B"]),
    ("fleet", "Deviating most", &["B", "C"]),
    ("fleet", "Not scored, and why", &["A", "B", "C"]),
    ("fleet", "Incidents of the last seven days against the budget", &["A"]),
    ("fleet", "Metrics behind incidents", &["A"]),
    ("group", "State", &["A"]),
    ("group", "Incidents a day", &["A", "B"]),
    ("group", "Score and threshold", &["B", "C"]),
    ("group", "$feature", &["A", "B", "C", "D"]),
    ("group", "What deviated", &["A", "B", "C", "D", "E"]),
    ("group", "Correction of the threshold", &["A"]),
];
/// Queries that have data only if something happened in the last minute, or after 240 rows.
const TRANSIENT_QUERIES: [(&str, &str, &[&str]); 5] = [
    ("group", "Drift", &["A"]),
    ("promforest", "Drift", &["A"]),
    ("promforest", "Samples a second, written back", &["B", "C"]),
    ("promforest", "Trainings", &["A"]),
    ("promforest", "Training progress", &["A"]),
];

fn check_dashboards_have_data(stack: &Stack) {
    let exporter = format!("127.0.0.1:{}", stack.exporter_port);
    let own = format!("127.0.0.1:{}", stack.promforest_port);
    let group = [("detector", "node_network"), ("job", "node"), ("instance", &exporter)];
    let feature = [("feature", "metric=\"node_network_receive_bytes_total\""), ("promforest", &own)];
    let itself = [("detector", "node_network"), ("group_job", "node"), ("group_instance", &exporter)];
    let process = [("job", "promforest"), ("instance", &own)];
    check_dashboard_has_data(stack, "fleet", &HashMap::from(group));
    check_dashboard_has_data(stack, "group", &group.into_iter().chain(feature).collect());
    check_dashboard_has_data(stack, "promforest", &itself.into_iter().chain(process).collect());
}

/// Every query of a dashboard returns data, except those of [`EMPTY_QUERIES`], which return none, those of
/// [`TRANSIENT_QUERIES`], and annotations, which need an incident.
fn check_dashboard_has_data(stack: &Stack, name: &str, variables: &HashMap<&str, &str>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("deploy/grafana/dashboards/{name}.json"));
    let dashboard = fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    let dashboard: Value = serde_json::from_str(&dashboard).expect("the dashboard is JSON");
    let prometheus = &stack.api.prometheus;
    let mut wrong = String::new();
    for variable in list(&dashboard["templating"]["list"]).iter().filter(|one| one["type"] == "query") {
        let query = substitute_variables(&text(&variable["query"]["query"]), variables);
        if let Some(expression) =
            query.strip_prefix("query_result(").and_then(|query| query.strip_suffix(')'))
        {
            if let Err(err) = prometheus.query(expression) {
                writeln!(wrong, "variable {}: {err}", variable["name"]).expect("a string takes any text");
            }
            continue;
        }
        let arguments = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')'));
        let (selector, label) = arguments.and_then(|text| text.rsplit_once(", ")).expect("label_values(..)");
        let values = prometheus.label_values(label, selector);
        let wanted = variables[text(&variable["name"]).as_str()];
        if !values.as_ref().is_ok_and(|values| values.iter().any(|value| value == wanted)) {
            writeln!(wrong, "variable {}: {values:?}", variable["name"]).expect("a string takes any text");
        }
    }
    for annotation in list(&dashboard["annotations"]["list"]) {
        let Some(expression) = annotation["expr"].as_str() else { continue };
        let answer = prometheus.query_range(&substitute_variables(expression, variables), 60, 1);
        if let Err(err) = answer {
            writeln!(wrong, "annotation {}: {err}", annotation["name"]).expect("a string takes any text");
        }
    }
    let mut n_queries = 0;
    for panel in list(&dashboard["panels"]) {
        for target in list(&panel["targets"]) {
            n_queries += 1;
            let expression = substitute_variables(&text(&target["expr"]), variables);
            let answer = if target["instant"] == true {
                prometheus.query(&expression)
            } else {
                prometheus.query_range(&expression, 60, 5)
            };
            let is_listed = |list: &[(&str, &str, &[&str])]| {
                list.iter().any(|(board, title, queries)| {
                    (*board, *title) == (name, text(&panel["title"]).as_str())
                        && queries.iter().any(|query| target["refId"] == **query)
                })
            };
            let is_expected = |answer: &Vec<Series>| {
                let has_data = answer.iter().any(|series| !series.samples.is_empty());
                has_data != is_listed(&EMPTY_QUERIES) || is_listed(&TRANSIENT_QUERIES)
            };
            if !answer.as_ref().is_ok_and(is_expected) {
                writeln!(wrong, "panel {}: {expression}: {answer:?}", panel["title"])
                    .expect("a string takes any text");
            }
        }
    }
    assert!(n_queries >= 10 && wrong.is_empty(), "{}: {name}: {n_queries} queries\n{wrong}", stack.version);
}

/// Puts values for a dashboard's variables.
fn substitute_variables(expression: &str, variables: &HashMap<&str, &str>) -> String {
    let own = [("__rate_interval", "10s"), ("__interval", "5s"), ("__range", "60s")];
    let mut expression = expression.to_string();
    for (name, value) in variables.iter().map(|(name, value)| (*name, *value)).chain(own) {
        for form in [
            format!("${{{name}}}"),
            format!("${{{name}:raw}}"),
            format!("${{{name}:pipe}}"),
            format!("${name}"),
        ] {
            expression = expression.replace(&form, value);
        }
    }
    assert!(!expression.contains('$'), "a variable is not known: {expression}");
    expression
}

#[test]
fn f27_a_restart_of_promforest_leaves_no_gap() {
    each_version(|version| {
        let mut stack = Stack::with_scores(version);
        stack.wait_for_score_at(now_ms() + 2_000);

        let status = stack.promforest.take().expect("the program runs").terminate(Duration::from_secs(12));
        assert_eq!(status.code(), Some(0), "{version}: the end by SIGTERM");
        thread::sleep(Duration::from_secs(4));
        stack.start_promforest();
        stack.wait_for_score_at(now_ms() + 3_000);
        stack.check_scores(RANGE_MS);
        stack.check_nothing_lost();

        stack.kill_promforest();
        thread::sleep(Duration::from_secs(4));
        stack.start_promforest();
        stack.wait_for_score_at(now_ms() + 3_000);
        stack.check_scores(RANGE_MS);
        stack.check_nothing_lost();
    });
}

#[test]
fn a_restart_of_prometheus_is_survived() {
    each_version(|version| {
        let mut stack = Stack::with_scores(version);
        stack.wait_for_score_at(now_ms() + 2_000);
        let scored = stack.check_scores(RANGE_MS).samples;
        let retries = stack.metric("promforest_remote_write_retries_total", &[]);

        let began = Instant::now();
        stack.stop_prometheus();
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            assert_eq!(stack.api.ready().expect("promforest answers").0, 200, "{version}");
            thread::sleep(Duration::from_millis(200));
        }
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.wait_for_score_at(now_ms() + 3_000);
        check_backoff(&stack, retries, began.elapsed());

        let scores = stack.check_scores(RANGE_MS).samples;
        assert_eq!(scores[..scored.len()], scored, "{version}: what was there stays");
        assert_eq!(stack.api.ready().expect("promforest answers").0, 200, "{version}");
        stack.check_nothing_lost();
    });
}

/// Pauses of 30 ms that double up to 5 s: nine in the first ten seconds, then one every 5 s.
fn check_backoff(stack: &Stack, retries_before: f64, elapsed: Duration) {
    let retries = stack.metric("promforest_remote_write_retries_total", &[]) - retries_before;
    let max_retries = 9.0 + elapsed.as_secs_f64() / 5.0;
    assert!(retries <= max_retries, "{}: {retries} retries in {elapsed:?}", stack.version);
}

#[test]
fn scores_wait_for_a_receiver() {
    each_version(|version| {
        let mut stack = Stack::new(version, Collectors::Network, &JOB_NODE);
        stack.start_prometheus(RemoteWriteReceiver::Disabled);
        stack.configure(NODE_NETWORK);
        stack.start_promforest();
        stack.wait("promforest tries again", MODEL_TIMEOUT, |at| {
            let retries = at.metric("promforest_remote_write_retries_total", &[])?;
            if retries >= 3.0 { Ok(()) } else { Err(format!("{retries} retries")) }
        });
        let began = Instant::now();
        let retries = stack.metric("promforest_remote_write_retries_total", &[]);
        thread::sleep(Duration::from_secs(4));
        assert_eq!(stack.api.ready().expect("promforest answers").0, 200, "{version}");
        assert!(stack.api.scores().is_err(), "{version}: a receiver that is not enabled has taken scores");

        stack.stop_prometheus();
        let restart_ms = now_ms();
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.wait_for_score_at(restart_ms + 2_000);
        check_backoff(&stack, retries, began.elapsed());
        let n_scored = stack.metric("promforest_rows_total", &[("state", "complete")]);
        stack.wait("every score is written", SHORT_TIMEOUT, |at| {
            let n_written = at.scores()?.samples.len();
            let observed = format!("{n_written} of {n_scored}");
            if n_written as f64 >= n_scored { Ok(()) } else { Err(observed) }
        });
        let scores = stack.check_scores(RANGE_MS).samples;
        assert!(scores[0].0 < restart_ms - 4_000, "{version}: the first score is one after the restart");
        let n_scored = stack.metric("promforest_rows_total", &[("state", "complete")]);
        assert!(scores.len() as f64 <= n_scored, "{version}: {} scores of {n_scored} rows", scores.len());
        stack.check_nothing_lost();
    });
}

#[test]
fn f25_f28_a_reload_keeps_what_did_not_change() {
    each_version(|version| {
        let mut stack = Stack::with_scores(version);
        let rows_without_model = |stack: &Stack| {
            let labels = [("detector", "node_network"), ("state", "no_model")];
            stack.api.metric("promforest_rows_total", &labels).unwrap_or(0.0)
        };
        let successful = |at: &StackApi, wanted: f64| {
            let gauge = at.metric("promforest_config_last_reload_successful", &[])?;
            if gauge == wanted { Ok(()) } else { Err(format!("the gauge is {gauge}")) }
        };
        stack.wait("the configuration counts as loaded", SHORT_TIMEOUT, |at| successful(at, 1.0));
        stack.wait_for_score_at(now_ms() + 1_000);
        let rows_without_model_before = rows_without_model(&stack);

        let broken = stack.configure(&NODE_NETWORK.replace("transform:", "tranform:"));
        let line =
            1 + broken.lines().position(|line| line.contains("tranform")).expect("the file has the typo");
        let answer = http::post(&stack.api.promforest, "/-/reload").expect("promforest answers");
        assert_eq!(answer.status, 500, "{version}: {}", answer.body);
        assert!(answer.body.contains(&format!("promforest.yml:{line}: ")), "{version}: {}", answer.body);
        assert!(answer.body.contains("tranform"), "{version}: {}", answer.body);
        stack.wait("the failure shows", SHORT_TIMEOUT, |at| successful(at, 0.0));
        stack.wait_for_score_at(now_ms() + 1_000);

        // With one more detector; the first one is as before.
        let second =
            NODE_NETWORK.replace("node_network\n", "packets\n").replace("(bytes|packets)", "packets");
        stack.configure(&format!("{NODE_NETWORK}{second}"));
        stack.promforest.as_ref().expect("the program runs").signal("HUP");
        stack.wait("SIGHUP loads the file", SHORT_TIMEOUT, |at| successful(at, 1.0));
        stack.wait("the new detector is at work", SHORT_TIMEOUT, |at| {
            let progress = [("detector", "packets")];
            at.metric("promforest_training_progress_ratio", &progress).map(drop)
        });

        stack.configure(&NODE_NETWORK.replace("rate(10s)", "rate(soon)"));
        stack.promforest.as_ref().expect("the program runs").signal("HUP");
        stack.wait("the failure shows", SHORT_TIMEOUT, |at| successful(at, 0.0));
        let good = stack.configure(NODE_NETWORK);
        let answer = http::post(&stack.api.promforest, "/-/reload").expect("promforest answers");
        assert_eq!(answer.status, 200, "{version}: {} for {good}", answer.body);
        stack.wait("the configuration counts as loaded", SHORT_TIMEOUT, |at| successful(at, 1.0));

        // Rows without a model are counted once their grace of 5 s is over.
        let until_ms = now_ms() + 7_000;
        stack.wait("scores go on", SHORT_TIMEOUT, |at| {
            let newest_ms = at.stored(r#"anomaly_score{detector="node_network"}"#)?.timestamps();
            let newest_ms = newest_ms.last().copied().expect("a series has samples");
            if newest_ms >= until_ms { Ok(()) } else { Err(format!("up to {newest_ms}")) }
        });
        assert_eq!(rows_without_model(&stack), rows_without_model_before, "{version}: rows without a model");
        let (status, text) = stack.api.ready().expect("promforest answers");
        assert_eq!((status, &*text), (200, "node_network: 1 of 1 groups have a model"), "{version}");
        stack.check_nothing_lost();
    });
}

/// One group of two targets that are scraped at different times of the second.
#[test]
fn targets_share_a_group() {
    each_version(|version| {
        // Prometheus spreads scrapes over the interval by a hash of the target's labels: among so many
        // there are two that suit.
        let targets: String = (0..10)
            .map(|i| format!("      - {{targets: ['TARGET'], labels: {{instance: 'host{i}'}}}}\n"))
            .collect();
        let jobs = format!("  - job_name: fleet\n    static_configs:\n{targets}");
        let scraping = Scraping { jobs: &jobs, ..JOB_NODE };
        let mut stack = Stack::new(version, Collectors::Network, &scraping);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        let hosts = stack.wait("two scrapes of every host", SHORT_TIMEOUT, |at| {
            let hosts = at.prometheus.query(r#"up{job="fleet"}[1m]"#)?;
            let n = hosts.iter().filter(|host| host.samples.len() >= 2).count();
            if n == 10 { Ok(hosts) } else { Err(format!("{n} hosts")) }
        });
        let (early, late) = find_staggered_pair(&hosts);
        stack.configure(&format!(
            r#"
  - name: node_network
    match: ['{{__name__=~"node_network_(receive|transmit)_bytes_total", device="lo", instance=~"{early}|{late}"}}']
    by: [job]
    transform: rate(10s)
    window: 10m
    training: {{history: 1h, min_history: 10s, interval: 1h}}
    model: {{kind: isolation_forest}}
"#
        ));
        stack.start_promforest();
        stack.wait("the first scores", MODEL_TIMEOUT, |at| at.scores().map(drop));
        // Long enough for a second model, which reads the times of the scrapes anew.
        let trained = stack.metric("promforest_training_runs_total", &[("outcome", "trained")]);
        stack.wait("a second model", MODEL_TIMEOUT, |at| {
            let runs = at.metric("promforest_training_runs_total", &[("outcome", "trained")])?;
            if runs > trained { Ok(()) } else { Err(format!("{runs} models")) }
        });
        stack.wait_for_score_at(now_ms() + 2_000);

        let scores = stack.api.scores().expect("the series is stored");
        let labels: Vec<(&str, &str)> = scores.labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let expected = [("__name__", "anomaly_score"), ("detector", "node_network"), ("job", "fleet")];
        assert_eq!(labels, expected, "{version}");
        let times = scores.timestamps();
        assert!(times.len() >= 15, "{version}: {} rows", times.len());
        let up = |host| stack.api.stored(&format!("up{{instance=\"{host}\"}}")).expect("it is scraped");
        let range = times[0]..=times[times.len() - 1];
        let expected: Vec<i64> = up(&late).timestamps().into_iter().filter(|t| range.contains(t)).collect();
        stack.assert_same_times(&times, &expected, "rows and scrapes of the later target");
        let n_early = up(&early).timestamps().iter().filter(|t| range.contains(t)).count();
        assert!(n_early.abs_diff(times.len()) <= 1, "{version}: {n_early} for {} rows", times.len());
        stack.check_nothing_lost();
    });
}

/// The instances of two targets of which one is scraped clearly after the other, and clearly before the
/// other's next scrape.
fn find_staggered_pair(hosts: &[Series]) -> (String, String) {
    let pairs = hosts.iter().flat_map(|early| hosts.iter().map(move |late| (early, late)));
    let is_staggered = |(early, late): &(&Series, &Series)| {
        let gap_ms = (late.samples[1].0 - early.samples[1].0).rem_euclid(1000);
        (150..=400).contains(&gap_ms)
    };
    let (early, late) = pairs.into_iter().find(is_staggered).expect("of ten targets two are scraped apart");
    (early.labels["instance"].clone(), late.labels["instance"].clone())
}
