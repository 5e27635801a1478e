//! Several sidecars that share the targets of a real Prometheus, by its own `hashmod` and by `--shard` alone.

mod support;

use promforest::prom::Labels;
use promforest::prom::shard::Shard;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;
use support::hosts::{Hosts, JOB_OF_FILE};
use support::prometheus::{list, text};
use support::stack::{
    Collectors, JOB_NODE, MODEL_TIMEOUT, NODE_NETWORK, RANGE_MS, RemoteWriteReceiver, SHORT_TIMEOUT,
    Scraping, Stack,
};
use support::{PROGRAM, Process, PrometheusVersion, each_version, free_port, http, now_ms, wait};

/// Each of two and of three shards has some of them.
const HOSTS: [&str; 9] = ["host0", "host1", "host2", "host3", "host4", "host5", "host6", "host7", "host8"];
/// Targets that nobody answers for: their `up` carries the hash.
const NAMES: [&str; 6] = ["web1:9100", "10.0.0.1:9100", "a;b", "täglich", " ", "[::1]:80"];

/// One of the sidecars; they share a registry.
struct Sidecar {
    process: Process,
    port: u16,
    number: usize,
    shard: Option<String>,
}

impl Sidecar {
    fn start(stack: &Stack, number: usize, port: u16, shard: Option<String>) -> Self {
        let mut args = vec![
            "--config.file=promforest.yml".into(),
            format!("--storage.path=data-{number}"),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        args.extend(shard.iter().map(|shard| format!("--shard={shard}")));
        let name = format!("promforest-{number}");
        let mut process = Process::start(&name, Path::new(PROGRAM), &args, stack.dir.path());
        wait("the sidecar is healthy", SHORT_TIMEOUT, &mut [&mut process], || {
            let answer =
                http::get(&format!("127.0.0.1:{port}"), "/-/healthy").map_err(|err| err.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.body) }
        });
        Self { process, port, number, shard }
    }

    /// Ends it by SIGTERM, and starts it as another shard.
    fn restart(&mut self, stack: &Stack, shard: String) {
        let status = self.process.terminate(SHORT_TIMEOUT);
        assert_eq!(status.code(), Some(0), "{}", self.process.tail());
        *self = Self::start(stack, self.number, self.port, Some(shard));
    }

    fn get(&self, path: &str) -> String {
        let answer = http::get(&format!("127.0.0.1:{}", self.port), path).expect("the sidecar answers");
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.body
    }

    fn data(&self, path: &str) -> Value {
        serde_json::from_str::<Value>(&self.get(path)).expect("JSON")["data"].take()
    }

    /// The hosts whose groups it has.
    fn hosts(&self) -> BTreeSet<String> {
        let page = |number: u64| self.data(&format!("/api/v1/groups?page={number}"));
        let n_pages = page(1)["pages"].as_u64().expect("a number");
        let pages: Vec<Value> = (1..=n_pages.max(1)).map(page).collect();
        let groups = pages.iter().flat_map(|page| list(&page["groups"]));
        groups.map(|group| text(&group["labels"]["instance"])).collect()
    }

    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        http::metric(&self.get("/metrics"), name, labels).unwrap_or(0.0)
    }
}

/// A Prometheus that scrapes the hosts, and the configuration of sidecars that write to it.
struct Fleet {
    stack: Stack,
    sidecars: Vec<Sidecar>,
    hosts: Vec<String>,
    _exporters: Hosts,
}

/// The program that divides the samples.
#[derive(Clone, Copy, PartialEq)]
enum DividedBy {
    /// Prometheus, by `hashmod`.
    Prometheus,
    /// The sidecars, by `--shard`: each receives everything.
    Sidecars,
}

impl Fleet {
    fn start(version: PrometheusVersion, n_sidecars: usize, divided_by: DividedBy) -> Self {
        Self::of_hosts(version, n_sidecars, divided_by, HOSTS.map(String::from).into(), NODE_NETWORK)
    }

    fn of_hosts(
        version: PrometheusVersion,
        n_sidecars: usize,
        divided_by: DividedBy,
        hosts: Vec<String>,
        detectors: &str,
    ) -> Self {
        let exporters = Hosts::start();
        let stack = Stack::new(version, Collectors::Network, &Scraping { jobs: JOB_OF_FILE, ..JOB_NODE });
        exporters.write_targets(&stack, &hosts.iter().map(String::as_str).collect::<Vec<_>>());
        let models = stack.dir.path().join("models");
        let registry = format!("registry: {{path: '{}', poll_interval: 1s}}", models.display());
        stack.configure_file("promforest.yml", &registry, detectors);
        let mut fleet = Self { stack, sidecars: Vec::new(), hosts, _exporters: exporters };
        let ports: Vec<u16> = (0..n_sidecars).map(|_| free_port()).collect();
        fleet.write_prometheus_config(&ports, divided_by);
        fleet.stack.start_prometheus(RemoteWriteReceiver::Enabled);
        for (number, port) in ports.into_iter().enumerate() {
            let shard = (divided_by == DividedBy::Sidecars).then(|| format!("{number}/{n_sidecars}"));
            let sidecar = Sidecar::start(&fleet.stack, number, port, shard);
            fleet.sidecars.push(sidecar);
        }
        fleet
    }

    fn write_prometheus_config(&self, ports: &[u16], divided_by: DividedBy) {
        let names: String = NAMES
            .iter()
            .map(|name| format!("      - {{targets: ['127.0.0.1:1'], labels: {{instance: '{name}'}}}}\n"))
            .collect();
        let mut config = format!(
            "global: {{scrape_interval: 1s}}\n\
             storage: {{tsdb: {{out_of_order_time_window: 30m}}}}\n\
             scrape_configs:\n{JOB_OF_FILE}\n  \
             - job_name: names\n    \
               static_configs:\n{names}    \
               relabel_configs: [{{source_labels: [job, instance], action: hashmod, modulus: 3, target_label: of_three}}]\n\
             remote_write:\n"
        );
        for (number, port) in ports.iter().enumerate() {
            config += &format!(
                "  - url: http://127.0.0.1:{port}/api/v1/write\n    queue_config: {{batch_send_deadline: 1s}}\n"
            );
            if divided_by == DividedBy::Prometheus {
                config += &format!(
                    "    write_relabel_configs:\n      \
                     - {{source_labels: [job, instance], action: hashmod, modulus: {}, target_label: __tmp_shard}}\n      \
                     - {{source_labels: [__tmp_shard], regex: '{number}', action: keep}}\n      \
                     - {{regex: __tmp_shard, action: labeldrop}}\n",
                    ports.len()
                );
            }
        }
        fs::write(self.stack.dir.path().join("prometheus.yml"), config).expect("the folder is writable");
    }

    /// Waits until every host has a score of a scrape at or after this time.
    fn wait_for_scores_at(&mut self, at_ms: i64) {
        let hosts = &self.hosts;
        self.stack.wait("every host is scored", Duration::from_secs(300), |at| {
            let scores = at.prometheus.query("anomaly_score[10m]")?;
            let newest = |host: &str| {
                let of_host = scores.iter().filter(|series| series.labels["instance"] == host);
                of_host.filter_map(|series| Some(series.samples.last()?.0)).max().unwrap_or(0)
            };
            let late: Vec<&str> =
                hosts.iter().map(String::as_str).filter(|host| newest(host) < at_ms).collect();
            if late.is_empty() { Ok(()) } else { Err(format!("no score of {late:?}")) }
        });
    }

    /// Fails unless each sidecar has exactly the groups of its shard, and says which that is.
    fn check_groups(&self) {
        for sidecar in &self.sidecars {
            let name = format!("{}/{}", sidecar.number, self.sidecars.len());
            let shard: Shard = name.parse().expect("a shard");
            let own = self.hosts.iter().filter(|host| shard.contains(&target("node", host)));
            let own: BTreeSet<String> = own.cloned().collect();
            assert!(!own.is_empty(), "{name}: hosts for every shard");
            assert_eq!(sidecar.hosts(), own, "{}: {name}\n{}", self.stack.version, sidecar.process.tail());
            let shown = sidecar.data("/api/v1/status/runtimeinfo")["shard"].take();
            assert_eq!(shown.as_str(), sidecar.shard.as_deref());
            if let Some(shard) = &sidecar.shard {
                assert!(["/", "/status"].iter().all(|page| sidecar.get(page).contains(shard)), "{shard}");
            }
        }
    }

    /// Fails unless each scrape of each host has one score, from the first score to the last.
    fn check_scores(&self) {
        let query = |selector: &str| {
            let series = self.stack.api.prometheus.query(selector).expect("an answer").into_iter();
            let mut by_host: BTreeMap<String, Vec<Vec<i64>>> = BTreeMap::new();
            series.for_each(|series| {
                by_host.entry(series.labels["instance"].clone()).or_default().push(series.timestamps());
            });
            by_host
        };
        let scores = query(r#"anomaly_score{detector="node_network"}[10m]"#);
        let scrapes = query(r#"node_network_receive_bytes_total{job="node"}[10m]"#);
        assert_eq!(scores.len(), self.hosts.len());
        for (host, scores) in scores {
            let [scores] = &scores[..] else { panic!("{host} has {} series of scores", scores.len()) };
            let (first_ms, last_ms) = (scores[0], scores[scores.len() - 1]);
            let all = &scrapes[&host][0];
            // A pause of the scrapes leaves no two samples in the rate's range.
            let rows: Vec<i64> = all
                .windows(2)
                .filter(|pair| pair[1] - pair[0] < RANGE_MS && (first_ms..=last_ms).contains(&pair[1]))
                .map(|pair| pair[1])
                .collect();
            self.stack.assert_same_times(scores, &rows, &format!("scores and rows of {host}"));
        }
    }

    /// Fails if a score was given up, or refused because another sidecar had written one.
    fn check_nothing_lost(&self) {
        for sidecar in &self.sidecars {
            for name in [
                "promforest_remote_write_samples_failed_total",
                "promforest_remote_write_samples_conflicting_total",
            ] {
                assert_eq!(sidecar.metric(name, &[]), 0.0, "{name}\n{}", sidecar.process.tail());
            }
        }
    }
}

fn target(job: &str, instance: &str) -> Labels {
    Labels::new([("job", job), ("instance", instance)]).expect("valid")
}

fn wrong_shard(sidecar: &Sidecar) -> f64 {
    sidecar.metric("promforest_ingest_samples_dropped_total", &[("reason", "wrong_shard")])
}

/// The shards are those of Prometheus' relabeling.
fn check_hashes(fleet: &mut Fleet) {
    let hashed = fleet.stack.wait("the hashes", SHORT_TIMEOUT, |at| {
        let hashed = at.prometheus.query(r#"up{job="names"}"#)?;
        if hashed.len() == NAMES.len() { Ok(hashed) } else { Err(format!("{hashed:?}")) }
    });
    for series in hashed {
        let instance = &series.labels["instance"];
        let shard: Shard = format!("{}/3", series.labels["of_three"]).parse().expect("a shard");
        assert!(shard.contains(&target("names", instance)), "{instance:?} is not in {shard}");
    }
}

/// `promforest train --shard`: the shards have every host between them, each once. `--group` selects some of them.
fn check_training(stack: &Stack) {
    stack.configure_file("train.yml", "registry: {path: train-models}", NODE_NETWORK);
    let train_only = |parts: &[&str]| -> Vec<String> {
        let args = ["train", "--config.file=train.yml", "--sweep=16", "--output=json"];
        let output = stack.command(&[&args, parts].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {parts:?}: {errors}", stack.version);
        let models: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        list(&models).iter().map(|model| text(&model["model"])).collect()
    };
    let train = |shard: &str| train_only(&["--shard", shard]);
    let mut trained = [train("0/2"), train("1/2")].concat();
    trained.sort();
    assert_eq!(trained, HOSTS.map(|host| format!("node_network.{host}.node")));
    assert!(train("77/10000").is_empty(), "a shard without a group is no failure");
    let mut of_groups = train_only(&["--group", r#"{instance=~"host[34]", job="node"}"#]);
    of_groups.sort();
    assert_eq!(of_groups, ["node_network.host3.node", "node_network.host4.node"]);
}

#[test]
fn two_shards_become_three_and_no_row_is_lost() {
    each_version(|version| {
        let mut fleet = Fleet::start(version, 2, DividedBy::Prometheus);
        fleet.wait_for_scores_at(now_ms());
        check_hashes(&mut fleet);
        fleet.check_groups();
        check_training(&fleet.stack);

        // What Prometheus had not sent is read from it: only that of own groups, whatever else it has.
        fleet.stack.prometheus.take().expect("it runs").kill();
        fleet.stack.start_prometheus(RemoteWriteReceiver::Enabled);
        fleet.wait_for_scores_at(now_ms() + 4_000);
        fleet.check_groups();

        for number in 0..2 {
            let (sidecars, stack) = (&mut fleet.sidecars, &fleet.stack);
            sidecars[number].restart(stack, format!("{number}/3"));
        }
        let Fleet { stack, sidecars, .. } = &mut fleet;
        stack.wait("samples of other shards are counted", SHORT_TIMEOUT, |_| {
            let dropped: Vec<f64> = sidecars.iter().map(wrong_shard).collect();
            if dropped.iter().all(|samples| *samples > 0.0) { Ok(()) } else { Err(format!("{dropped:?}")) }
        });
        let third = Sidecar::start(&fleet.stack, 2, free_port(), Some("2/3".into()));
        fleet.sidecars.push(third);
        let ports: Vec<u16> = fleet.sidecars.iter().map(|sidecar| sidecar.port).collect();
        fleet.write_prometheus_config(&ports, DividedBy::Prometheus);
        fleet.stack.prometheus.as_ref().expect("it runs").signal("HUP");
        fleet.wait_for_scores_at(now_ms() + 5_000);
        fleet.check_groups();
        fleet.check_scores();
        fleet.check_nothing_lost();
    });
}

#[test]
fn shards_divide_what_prometheus_does_not() {
    each_version(|version| {
        let mut fleet = Fleet::start(version, 2, DividedBy::Sidecars);
        fleet.wait_for_scores_at(now_ms() + 5_000);
        fleet.check_groups();
        fleet.check_scores();
        fleet.check_nothing_lost();
        for sidecar in &fleet.sidecars {
            assert!(wrong_shard(sidecar) > 0.0, "{}", sidecar.number);
        }
    });
}

/// Their names are too long for one request for what Prometheus had not sent, and it has the samples of all.
#[test]
fn a_gap_of_many_groups_makes_no_group_of_another_shard() {
    let few_trees = NODE_NETWORK.replace("isolation_forest}", "isolation_forest, n_estimators: 5}");
    assert_ne!(few_trees, NODE_NETWORK);
    each_version(|version| {
        let hosts = (0..130).map(|i| format!("{:x>150}", format!("host{i}"))).collect();
        let mut fleet = Fleet::of_hosts(version, 2, DividedBy::Prometheus, hosts, &few_trees);
        fleet.wait_for_scores_at(now_ms());
        fleet.check_groups();
        fleet.stack.prometheus.take().expect("it runs").kill();
        fleet.stack.start_prometheus(RemoteWriteReceiver::Enabled);
        let Fleet { stack, sidecars, .. } = &mut fleet;
        stack.wait("the gaps are filled", MODEL_TIMEOUT, |_| {
            let fills = |sidecar: &Sidecar| {
                let of = |name| sidecar.metric(name, &[]);
                (
                    of("promforest_gap_fills_total"),
                    of("promforest_gap_fill_samples_total"),
                    of("promforest_gap_fill_pending_groups"),
                )
            };
            let all: Vec<_> = sidecars.iter().map(fills).collect();
            let is_filled =
                |&(fills, samples, pending): &(f64, f64, f64)| fills > 0.0 && samples > 0.0 && pending == 0.0;
            if all.iter().all(is_filled) { Ok(()) } else { Err(format!("{all:?}")) }
        });
        fleet.check_groups();
    });
}
