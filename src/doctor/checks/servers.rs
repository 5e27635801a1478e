//! The servers behind the endpoints: their versions, clocks, stores and rules.

use crate::doctor::facts::{Facts, Server};
use crate::doctor::finding::Finding;
use crate::doctor::rules::{self, AlertRule};
use crate::prom::duration;
use crate::time::CLOCK_SKEW_MS;
use std::time::Duration;

/// Least `out_of_order_time_window` that keeps the scores of a usual outage.
const RECOMMENDED_WINDOW: Duration = Duration::from_secs(1800);

/// The findings of one server.
pub fn all(facts: &Facts, server: &Server) -> Vec<Finding> {
    let mut findings = vec![reachable(server)];
    findings.extend(read_back(server));
    findings.push(clock(facts, server));
    findings.push(out_of_order(server));
    findings.push(alert_rules(server));
    findings.push(scrape(facts, server));
    findings
}

/// The finding of a server that answers nothing.
pub fn silent(server: &Server, reason: &str) -> Finding {
    let message = format!("the HTTP API of {} does not answer: {reason}", server.url);
    Finding::error("prometheus", message, "start the server, or let /api/v1 through the proxy before it")
}

fn reachable(server: &Server) -> Finding {
    const CHECK: &str = "prometheus";
    match &server.version {
        Ok(version) => Finding::ok(CHECK, format!("{} has version {version}", server.url)),
        Err(reason) => Finding::not_checked(CHECK, format!("{}: {reason}", server.url)),
    }
}

fn read_back(server: &Server) -> Option<Finding> {
    const CHECK: &str = "read-back";
    Some(match server.read_back.as_ref()? {
        Ok(true) => Finding::ok(CHECK, "the sample of the trial write can be queried"),
        Ok(false) => Finding::error(
            CHECK,
            format!("{} took the sample of the trial write, and does not show it", server.url),
            "let remote_write and Grafana use the same server and tenant",
        ),
        Err(reason) => Finding::not_checked(CHECK, reason),
    })
}

fn clock(facts: &Facts, server: &Server) -> Finding {
    const CHECK: &str = "clock";
    let sidecar_ms = facts.sidecar.as_ref().ok().and_then(|sidecar| sidecar.clock_ahead_ms);
    let Some(server_ms) = server.clock_ahead_ms else {
        return Finding::not_checked(CHECK, format!("{}: no time in its answers", server.url));
    };
    let ahead_ms = server_ms - sidecar_ms.unwrap_or(0);
    let of = if sidecar_ms.is_some() { "the sidecar's" } else { "this machine's" };
    if ahead_ms.abs() <= CLOCK_SKEW_MS {
        return Finding::ok(CHECK, format!("the clocks agree within {} s", CLOCK_SKEW_MS / 1000));
    }
    let direction = if ahead_ms > 0 { "ahead of" } else { "behind" };
    Finding::error(
        CHECK,
        format!("the clock of {} is {} s {direction} {of}", server.url, ahead_ms.abs() / 1000),
        "synchronise both clocks, by chrony or systemd-timesyncd",
    )
}

fn out_of_order(server: &Server) -> Finding {
    const CHECK: &str = "out-of-order-window";
    let window = match &server.config {
        Ok(config) => config.out_of_order_window,
        Err(reason) => return Finding::not_checked(CHECK, reason),
    };
    let shown = duration::Display(window);
    let remedy = "set storage.tsdb.out_of_order_time_window: 30m in prometheus.yml";
    if window.is_zero() {
        let message = format!("{} refuses scores that come late, after an outage", server.url);
        Finding::warning(CHECK, message, remedy)
    } else if window < RECOMMENDED_WINDOW {
        Finding::warning(CHECK, format!("scores that are more than {shown} late are refused"), remedy)
    } else {
        Finding::ok(CHECK, format!("scores may be {shown} late"))
    }
}

fn alert_rules(server: &Server) -> Finding {
    const CHECK: &str = "rules";
    let loaded = match &server.rules {
        Ok(loaded) => loaded,
        Err(reason) => return Finding::not_checked(CHECK, reason),
    };
    let shipped = rules::shipped();
    let is_loaded = |rule: &&AlertRule| loaded.iter().any(|other| other.name == rule.name);
    let (present, missing): (Vec<&AlertRule>, Vec<&AlertRule>) = shipped.iter().partition(is_loaded);
    let changed: Vec<&AlertRule> = present.iter().copied().filter(|rule| !loaded.contains(rule)).collect();
    let remedy = "load promforest.rules.yml of this release by rule_files, and reload Prometheus";
    if present.is_empty() {
        Finding::warning(CHECK, format!("{} has none of promforest's alert rules", server.url), remedy)
    } else if !missing.is_empty() || !changed.is_empty() {
        let message =
            format!("{} has other rules than this release{}", server.url, differences(&missing, &changed));
        Finding::warning(CHECK, message, remedy)
    } else {
        Finding::ok(CHECK, format!("all {} alert rules are loaded", shipped.len()))
    }
}

fn differences(missing: &[&AlertRule], changed: &[&AlertRule]) -> String {
    let list = |what: &str, rules: &[&AlertRule]| match rules {
        [] => String::new(),
        rules => {
            let names: Vec<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
            format!("; {what}: {}", names.join(", "))
        }
    };
    list("missing", missing) + &list("different", changed)
}

fn scrape(facts: &Facts, server: &Server) -> Finding {
    const CHECK: &str = "scrape";
    let (jobs, config) = match (&server.promforest_jobs, &server.config) {
        (Ok(jobs), Ok(config)) => (jobs, config),
        (Err(reason), _) | (_, Err(reason)) => return Finding::not_checked(CHECK, reason),
    };
    let is_starting = facts.sidecar.as_ref().is_ok_and(|sidecar| sidecar.is_starting(facts.now_ms));
    if jobs.is_empty() && is_starting {
        let message = format!("{} has not scraped promforest in the minutes since its start", server.url);
        return Finding::waiting(CHECK, message);
    }
    if jobs.is_empty() {
        return Finding::warning(
            CHECK,
            format!("{} does not scrape promforest's own metrics", server.url),
            "add a job for promforest to scrape_configs, with honor_labels: true",
        );
    }
    let is_renamed = |job: &&String| {
        config.jobs.iter().any(|configured| configured.name == **job && !configured.honor_labels)
    };
    match jobs.iter().find(is_renamed) {
        Some(job) => Finding::warning(
            CHECK,
            format!("job {job} renames the labels job and instance of promforest's metrics to exported_..."),
            "set honor_labels: true for that job",
        ),
        None => Finding::ok(CHECK, format!("scraped by job {}, with its labels", jobs.join(", "))),
    }
}
