//! A new target beside others of its kind that have models: a pooled model scores it until it has a model of its own, and
//! a restart in between loses no row.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::Duration;
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, NODE_NETWORK_EXTENDED, RANGE_MS, RemoteWriteReceiver, SHORT_TIMEOUT,
    Scraping, Stack, StackApi,
};
use support::{each_version, now_ms};

/// Length of the history that [`NODE_NETWORK_EXTENDED`] needs for a first model.
const MIN_HISTORY: Duration = Duration::from_secs(60);
const OLD: [&str; 3] = ["web1", "web2", "web3"];
const NEW: &str = "web4";

/// A number in [0, 1) for each number (splitmix64, finalizer).
fn noise(number: u64) -> f64 {
    let mut x = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

/// The page of a host at a time: ordinary traffic, with an amount and a noise of its own.
fn metrics_page(host: &str, now_ms: i64) -> String {
    let number = u64::from(host.as_bytes()[host.len() - 1]);
    let mut page = String::new();
    for (i, direction) in [(0, "receive"), (1, "transmit")] {
        for (j, (unit, scale)) in [(0, ("bytes", 1e6)), (1, ("packets", 1e3))] {
            // Packets are of all sizes.
            let seed = (number << 40) + (i << 36) + (j << 34) + now_ms.unsigned_abs() / 1000;
            let seconds = now_ms as f64 / 1000.0 % 1e6;
            let load = 0.8 + 0.1 * (number % 5) as f64;
            let total = scale * (load * seconds + 0.4 * noise(seed));
            writeln!(page, "node_network_{direction}_{unit}_total{{device=\"lo\"}} {total}")
                .expect("a string");
        }
    }
    page
}

/// Serves every host at a path of its own, until the end of the process.
fn hosts() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            let length = stream.read(&mut head).unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..length]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let page = metrics_page(path.trim_start_matches('/'), now_ms());
            // A client that closed the connection requests again.
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/plain; version=0.0.4\r\n\
                 Content-Length: {}\r\n\r\n{page}",
                page.len()
            );
        }
    });
    port
}

/// Lets Prometheus scrape these hosts.
fn write_targets(stack: &Stack, port: u16, hosts: &[&str]) {
    let target = |host: &&str| {
        format!(
            "- {{targets: ['127.0.0.1:{port}'], labels: {{instance: {host}, __metrics_path__: /{host}}}}}\n"
        )
    };
    let folder = stack.dir.path();
    // By a rename: Prometheus reads the file at each change.
    fs::write(folder.join("targets.new"), hosts.iter().map(target).collect::<String>())
        .expect("the folder is writable");
    fs::rename(folder.join("targets.new"), folder.join("targets.yml")).expect("the same directory");
}

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
    let port = hosts();
    each_version(|version| {
        let jobs = "  - {job_name: node, file_sd_configs: [{files: [targets.yml]}]}";
        let mut stack = Stack::new(version, Collectors::Network, &Scraping { jobs, ..JOB_NODE });
        write_targets(&stack, port, &OLD);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure(NODE_NETWORK_EXTENDED);
        thread::sleep(MIN_HISTORY);
        stack.start_promforest();
        stack.wait("models of the old", MIN_HISTORY + MODEL_TIMEOUT, |at| match at.ready()? {
            (200, _) => Ok(()),
            (_, text) => Err(text),
        });

        write_targets(&stack, port, &[&OLD[..], &[NEW]].concat());
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
