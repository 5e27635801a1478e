//! Each finding appears with its fault, and is absent without it.

use super::{all, of_configuration};
use crate::config::Config;
use crate::doctor::facts::{Answer, EndpointAnswer, Facts, NoAnswer, Selected, Server, Sidecar};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::prometheus_config::PrometheusConfig;
use crate::doctor::rules;
use crate::prom::{Labels, METRIC_NAME};
use crate::yaml;

const NOW_MS: i64 = 1_800_000_000_000;
const PROGRESS: &str = "promforest_training_progress_ratio";
const PROMETHEUS: &str = "
global: {scrape_interval: 15s}
storage: {tsdb: {out_of_order_time_window: 30m}}
scrape_configs: [{job_name: node}, {job_name: promforest, honor_labels: true}]
remote_write: [{url: 'http://localhost:9599/api/v1/write', queue_config: {batch_send_deadline: 1s}}]
";

fn series(pod: &str) -> Labels {
    let labels = [(METRIC_NAME, "rx"), ("instance", "a"), ("job", "node"), ("shard", pod)];
    Labels::new(labels).expect("valid")
}

fn metric(name: &str, label: Option<(&str, &str)>, value: f64) -> (Labels, f64) {
    (Labels::new([(METRIC_NAME, name)].into_iter().chain(label)).expect("valid"), value)
}

fn config(text: &str) -> Config {
    Config::parse(text).expect("valid")
}

fn default_config() -> Config {
    config("detectors: [{name: net, match: [rx]}]")
}

fn endpoint(status: u16) -> EndpointAnswer {
    EndpointAnswer {
        url: "http://localhost:9090/api/v1/write".into(),
        answer: Ok(Answer { status, reason: "no".into() }),
    }
}

/// Facts of a set-up in which nothing is wrong.
fn well() -> Facts {
    let selected = Selected {
        recent: vec![series("x")],
        last_day: vec![series("x")],
        has_day_of_history: true,
        history_since_ms: None,
        metric_names: Vec::new(),
    };
    let server = Server {
        url: "http://localhost:9090/".into(),
        version: Ok("3.0.0".into()),
        clock_ahead_ms: Some(0),
        config: PrometheusConfig::parse(PROMETHEUS),
        rules: Ok(rules::shipped()),
        promforest_jobs: Ok(vec!["promforest".into()]),
        read_back: Some(Ok(true)),
        selected: vec![Ok(selected)],
    };
    let sidecar = Sidecar {
        version: "0.1.0".into(),
        shard: None,
        newest_score_ms: Some(NOW_MS - 5_000),
        readiness: vec!["net: 40 % of the 1h of history that a first model needs".into()],
        n_groups: 1,
        metrics: vec![metric("promforest_ingest_samples_total", None, 100.0)],
        clock_ahead_ms: Some(0),
    };
    Facts {
        now_ms: NOW_MS,
        sidecar_url: "http://localhost:9599/".into(),
        sidecar: Ok(sidecar),
        written: vec![endpoint(204)],
        read: vec![endpoint(200)],
        servers: vec![server],
        memory_bytes: Some(8e9),
    }
}

fn server(facts: &mut Facts) -> &mut Server {
    &mut facts.servers[0]
}

fn sidecar(facts: &mut Facts) -> &mut Sidecar {
    facts.sidecar.as_mut().expect("it runs")
}

fn selected(facts: &mut Facts) -> &mut Selected {
    server(facts).selected[0].as_mut().expect("known")
}

fn set_prometheus(facts: &mut Facts, from: &str, to: &str) {
    assert!(PROMETHEUS.contains(from), "{from}");
    server(facts).config = PrometheusConfig::parse(&PROMETHEUS.replace(from, to));
}

/// The one finding of a check.
#[track_caller]
fn finding(config: &Config, facts: &Facts, check: &str) -> Finding {
    let mut found = all(config, facts);
    found.retain(|finding| finding.check == check);
    assert_eq!(found.len(), 1, "{check}: {found:?}");
    found.remove(0)
}

/// Asserts that a fault changes this check alone to this status, with these words in the message and the remedy.
#[track_caller]
fn assert_found(check: &str, status: Status, words: [&str; 2], change: impl FnOnce(&mut Facts)) {
    let mut facts = well();
    change(&mut facts);
    let found = finding(&default_config(), &facts, check);
    assert_eq!(found.status, status, "{found:?}");
    assert!(found.message.contains(words[0]), "{found:?}");
    assert!(found.remedy.as_deref().unwrap_or_default().contains(words[1]), "{found:?}");
    let others = all(&default_config(), &facts).into_iter().filter(|finding| finding.check != check);
    let wrong: Vec<Finding> =
        others.filter(|finding| matches!(finding.status, Status::Warning | Status::Error)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_set_up_without_faults_has_no_findings() {
    let findings = all(&default_config(), &well());
    let wrong: Vec<&Finding> = findings.iter().filter(|finding| finding.status != Status::Ok).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(findings.len() >= 20, "{findings:?}");
}

/// `node;a` modulo 2 is 1.
const DIVIDED: &str = "write_relabel_configs: [{source_labels: [job, instance], modulus: 2, target_label: __tmp, action: hashmod}, \
                       {source_labels: [__tmp], regex: '1', action: keep}], queue_config";

#[test]
fn a_sender_that_divides_unlike_the_shards_is_found() {
    let divided = |facts: &mut Facts, shard: Option<&str>| {
        set_prometheus(facts, "queue_config", DIVIDED);
        sidecar(facts).shard = shard.map(|shard| shard.parse().expect("a shard"));
    };
    let relabeling = |shard: Option<&str>| {
        let mut facts = well();
        divided(&mut facts, shard);
        let found = finding(&default_config(), &facts, "write-relabel");
        (found.status, found.message)
    };
    assert_eq!(relabeling(Some("1/2")), (Status::Ok, "all 1 watched series of shard 1/2 are sent".into()));
    assert_eq!(relabeling(Some("0/2")), (Status::Ok, "all 0 watched series of shard 0/2 are sent".into()));
    assert_eq!(relabeling(None).0, Status::NotChecked);
    let other = DIVIDED.replace("'1'", "'0'");
    assert_found(
        "write-relabel",
        Status::Error,
        ["drop 1 of 1 watched series of shard 1/2", "keep"],
        |facts| {
            set_prometheus(facts, "queue_config", &other);
            sidecar(facts).shard = Some("1/2".parse().expect("a shard"));
        },
    );
    assert_found(
        "samples",
        Status::Error,
        ["of 100 samples, none belongs to a target of shard 0/2", "--shard"],
        |facts| {
            sidecar(facts).shard = Some("0/2".parse().expect("a shard"));
            let of_others = ("reason", "wrong_shard");
            sidecar(facts).metrics.push(metric(
                "promforest_ingest_samples_dropped_total",
                Some(of_others),
                100.0,
            ));
        },
    );
}

#[test]
fn the_warnings_of_the_configuration_are_found() {
    let [fine] = &of_configuration(&[])[..] else { panic!("one finding") };
    assert_eq!(fine.status, Status::Ok);
    let warning = |line, message: &str| yaml::Error { line, message: message.into() };
    let warnings = [warning(3, "detectors[0].match: up is no counter"), warning(7, "has no effect")];
    let found = of_configuration(&warnings);
    let messages: Vec<&str> = found.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(messages, ["line 3: detectors[0].match: up is no counter", "line 7: has no effect"]);
    assert!(found.iter().all(|finding| finding.status == Status::Warning));
}

#[test]
fn endpoints_that_refuse_or_fail_are_found() {
    let answers = |status| move |facts: &mut Facts| facts.written = vec![endpoint(status)];
    assert_found("remote-write", Status::Error, ["404", "--web.enable-remote-write-receiver"], answers(404));
    assert_found("remote-write", Status::Error, ["401", "basic_auth"], answers(401));
    assert_found("remote-write", Status::Error, ["415", "protobuf_message"], answers(415));
    assert_found("remote-write", Status::Error, ["500", "log"], answers(500));
    assert_found("rate-limit", Status::Error, ["429", "retry_on_http_429"], answers(429));
    let fail = |facts: &mut Facts| facts.written[0].answer = Err(NoAnswer::Failed("refused".into()));
    assert_found("remote-write", Status::Error, ["refused", "start"], fail);
    let fail = |facts: &mut Facts| facts.read[0].answer = Err(NoAnswer::Failed("refused".into()));
    assert_found("history-source", Status::Error, ["refused", "start"], fail);
    let forbid = |facts: &mut Facts| facts.written[0].answer = Err(NoAnswer::NotAsked);
    assert_found("remote-write", Status::NotChecked, ["--no-write", ""], forbid);
    assert_found("remote-write", Status::Warning, ["no endpoint", "remote_write"], |facts| {
        facts.written.clear()
    });
    assert_found("history-source", Status::Warning, ["no source", "remote_read"], |facts| facts.read.clear());
    assert_found("read-back", Status::Error, ["does not show", "tenant"], |facts| {
        server(facts).read_back = Some(Ok(false));
    });
}

#[test]
fn clocks_windows_rules_and_scrapes_are_found() {
    assert_found("clock", Status::Error, ["60 s ahead of", "synchronise"], |facts| {
        server(facts).clock_ahead_ms = Some(60_000);
    });
    assert_found("clock", Status::Error, ["60 s behind", "synchronise"], |facts| {
        server(facts).clock_ahead_ms = Some(-60_000);
    });
    for window in ["0s", "10m"] {
        assert_found("out-of-order-window", Status::Warning, ["late", "30m"], |facts| {
            set_prometheus(
                facts,
                "out_of_order_time_window: 30m",
                &format!("out_of_order_time_window: {window}"),
            );
        });
    }
    assert_found("rules", Status::Warning, ["none", "rule_files"], |facts| {
        server(facts).rules = Ok(Vec::new())
    });
    assert_found("rules", Status::Warning, ["missing: AnomalyIncident", "reload"], |facts| {
        let loaded = server(facts).rules.as_mut().expect("known");
        loaded.retain(|rule| rule.name != "AnomalyIncident");
    });
    assert_found("rules", Status::Warning, ["different: AnomalyIncident", "reload"], |facts| {
        let loaded = server(facts).rules.as_mut().expect("known");
        let rule = loaded.iter_mut().find(|rule| rule.name == "AnomalyIncident").expect("shipped");
        rule.expression.push_str("or0");
    });
    assert_found("scrape", Status::Warning, ["does not scrape", "scrape_configs"], |facts| {
        server(facts).promforest_jobs = Ok(Vec::new());
    });
    assert_found("scrape", Status::Warning, ["exported_", "honor_labels: true"], |facts| {
        set_prometheus(facts, ", honor_labels: true", "");
    });
}

#[test]
fn faults_of_the_stream_are_found() {
    assert_found("write-relabel", Status::Error, ["drop 1 of 1", "keep"], |facts| {
        let rule =
            "write_relabel_configs: [{source_labels: [__name__], regex: rx, action: drop}], queue_config";
        set_prometheus(facts, "queue_config", rule);
    });
    assert_found("batch-deadline", Status::Warning, ["5s", "batch_send_deadline: 1s"], |facts| {
        set_prometheus(facts, "{batch_send_deadline: 1s}", "{}");
    });
    assert_found("samples", Status::Error, ["no sample has arrived", "remote_write"], |facts| {
        sidecar(facts).metrics.clear();
    });
    assert_found("samples", Status::Error, ["of 100 samples, none", "promforest match"], |facts| {
        let unwatched = ("reason", "unwatched");
        sidecar(facts).metrics.push(metric(
            "promforest_ingest_samples_dropped_total",
            Some(unwatched),
            100.0,
        ));
    });
    assert_found("scores", Status::Error, ["no row was scored for 91 s", "Prometheus"], |facts| {
        sidecar(facts).newest_score_ms = Some(NOW_MS - 91_000);
    });
    assert_found("scores", Status::Warning, ["no row has a score yet", "failed trainings"], |facts| {
        sidecar(facts).newest_score_ms = None;
        sidecar(facts).metrics.push(metric(PROGRESS, Some(("detector", "net")), 1.0));
    });
    assert_found("replicas", Status::Error, ["alternate", "replica"], |facts| {
        sidecar(facts).metrics.push(metric("promforest_interleaved_groups", None, 1.0));
    });
    assert_found("second-writer", Status::Error, ["refused", "stop"], |facts| {
        let name = "promforest_remote_write_samples_conflicting_total";
        sidecar(facts).metrics.push(metric(name, None, 1.0));
    });
    assert_found("sidecar", Status::Error, ["does not answer", "--url"], |facts| {
        facts.sidecar = Err("refused".into());
    });
}

#[test]
fn a_server_that_does_not_send_is_found_unless_samples_arrive() {
    let mut facts = well();
    set_prometheus(&mut facts, "9599", "9598");
    assert_eq!(finding(&default_config(), &facts, "sender").status, Status::Ok);
    sidecar(&mut facts).metrics.clear();
    let found = finding(&default_config(), &facts, "sender");
    assert_eq!(found.status, Status::Error, "{found:?}");
    assert!(found.remedy.expect("a remedy").contains("{url: http://localhost:9599/api/v1/write}"));
}

#[test]
fn faults_of_what_a_detector_selects_are_found() {
    assert_found("watched-series", Status::Error, ["watches nothing: rx", "there is rx2"], |facts| {
        let names = vec!["rx2".into(), "other".into()];
        *selected(facts) = Selected { metric_names: names, ..Selected::default() };
        sidecar(facts).n_groups = 0;
    });
    assert_found(
        "unstable-labels",
        Status::Warning,
        ["shard had 3 values", "add `shard` to `ignore`"],
        |facts| {
            selected(facts).last_day = ["x", "y", "z"].map(series).into();
        },
    );
    assert_found("group-labels", Status::Warning, ["external label tier", "add `tier` to `by`"], |facts| {
        set_prometheus(facts, "scrape_interval: 15s", "scrape_interval: 15s, external_labels: {tier: a}");
    });
    assert_found("rate-range", Status::Error, ["every 31s", "rate(2m4s)"], |facts| {
        set_prometheus(facts, "{job_name: node}", "{job_name: node, scrape_interval: 31s}");
    });
    assert_found("rate-range", Status::Ok, ["every 30s", ""], |facts| {
        set_prometheus(facts, "{job_name: node}", "{job_name: node, scrape_interval: 30s}");
    });
    let lacking = config("detectors: [{name: net, match: [rx], by: [cluster, job, instance]}]");
    let found = finding(&lacking, &well(), "group-labels");
    assert!(found.status == Status::Warning && found.message.contains("cluster"), "{found:?}");
}

#[test]
fn what_needs_time_alone_says_until_when() {
    assert_found("history", Status::Waiting, ["complete at 2027-01-16 07:00 UTC", ""], |facts| {
        selected(facts).has_day_of_history = false;
        selected(facts).history_since_ms = Some(NOW_MS - 3_600_000);
    });
    // 60 % of an hour.
    assert_found("scores", Status::Waiting, ["come about 2027-01-15 08:36 UTC", ""], |facts| {
        sidecar(facts).newest_score_ms = None;
        sidecar(facts).metrics.push(metric(PROGRESS, Some(("detector", "net")), 0.4));
    });
    let started = |seconds: f64| metric("process_start_time_seconds", None, NOW_MS as f64 / 1000.0 - seconds);
    for (age, status) in [(119.0, Status::Waiting), (121.0, Status::Error)] {
        assert_found("samples", status, ["no sample has arrived", ""], |facts| {
            sidecar(facts).metrics = vec![started(age)];
        });
    }
    for (age, status) in [(119.0, Status::Waiting), (121.0, Status::Warning)] {
        assert_found("scrape", status, ["promforest", ""], |facts| {
            server(facts).promforest_jobs = Ok(Vec::new());
            sidecar(facts).metrics.push(started(age));
        });
    }
}

#[test]
fn one_thing_is_singular() {
    let findings = all(&default_config(), &well());
    let text: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
    for plural in ["1 groups", "1 samples", "1 snapshots", "1 scores"] {
        assert!(!text.join("\n").contains(plural), "{plural}: {text:?}");
    }
}

#[test]
fn limits_of_size_are_found() {
    // 32 versions of one model are 32 MB.
    for (free, status) in [(31e6, Status::Warning), (33e6, Status::Ok), (f64::NAN, Status::Ok)] {
        let message =
            if free.is_nan() { "not known" } else { "are free, and models and snapshots take up to 31 MiB" };
        assert_found("disk", status, [message, ""], |facts| {
            sidecar(facts).metrics.push(metric("promforest_storage_free_bytes", None, free));
        });
    }
    assert_found("memory", Status::Warning, ["more than half", "window"], |facts| {
        facts.memory_bytes = Some(1000.0);
    });
    assert_found("disk", Status::Error, ["could not be written", "--storage.path"], |facts| {
        sidecar(facts).metrics.push(metric(
            "promforest_snapshot_failures_total",
            Some(("operation", "write")),
            1.0,
        ));
    });
    assert_found("limits", Status::Error, ["beyond the limits", "match"], |facts| {
        let limit = ("reason", "series_limit");
        sidecar(facts).metrics.push(metric("promforest_ingest_samples_dropped_total", Some(limit), 1.0));
    });
}

#[test]
fn a_back_end_without_the_api_leaves_checks_undone() {
    let mut facts = well();
    let missing = || "/api/v1/status/config answers 404".to_string();
    server(&mut facts).config = Err(missing());
    server(&mut facts).rules = Err(missing());
    let findings = all(&default_config(), &facts);
    assert!(findings.iter().all(|finding| matches!(finding.status, Status::Ok | Status::NotChecked)));
    for check in ["sender", "rules", "out-of-order-window", "scrape", "group-labels", "rate-range"] {
        assert_eq!(finding(&default_config(), &facts, check).status, Status::NotChecked, "{check}");
    }
    let silent = server(&mut facts);
    (silent.version, silent.promforest_jobs) = (Err(missing()), Err(missing()));
    assert_eq!(finding(&default_config(), &facts, "prometheus").status, Status::Error);
    facts.servers.clear();
    assert_eq!(finding(&default_config(), &facts, "prometheus").status, Status::NotChecked);
}
