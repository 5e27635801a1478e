//! Samples reach the sidecar: the `remote_write` of Prometheus, and what arrived.

use crate::config::Config;
use crate::detector::Detector;
use crate::doctor::facts::{Facts, START_UP_MS, Server, Sidecar};
use crate::doctor::finding::Finding;
use crate::doctor::prometheus_config::{Destination, PrometheusConfig};
use crate::doctor::relabel::{RelabelRule, relabel};
use crate::http::hide_query_values;
use crate::prom::{Labels, duration};
use crate::report::text::plain_plural;
use crate::time::{self, format_minute};
use std::sync::Arc;
use std::time::Duration;

/// Age of the newest score above which the stream counts as interrupted: more than the default of `grace`.
const MAX_SILENCE_MS: i64 = 90_000;
/// Share of the scrape interval that samples may wait for their batch, as a divisor.
const DEADLINE_DIVISOR: u32 = 5;
/// A deadline that is never too long.
const SHORT_DEADLINE: Duration = Duration::from_secs(1);

/// The findings of what one server sends.
pub fn all(config: &Config, facts: &Facts, server: &Server) -> Vec<Finding> {
    let prometheus = match &server.config {
        Ok(config) => config,
        Err(reason) => return vec![Finding::not_checked("sender", reason)],
    };
    let destination = match *prometheus.destinations_of(&facts.sidecar_url) {
        [] => return vec![without_sender(facts, server)],
        [destination] => destination,
        [..] => {
            let reason = format!(
                "{} sends to several addresses with the port of {}: name the sidecar as it does, by --url",
                server.url, facts.sidecar_url
            );
            return vec![Finding::not_checked("sender", reason)];
        }
    };
    let sends = format!("{} sends to {}", server.url, hide_query_values(&destination.url));
    vec![
        Finding::ok("sender", sends),
        relabeling(config, facts, server, prometheus, destination),
        deadline(server, prometheus, destination),
    ]
}

/// The finding of a server without a matching `remote_write`.
fn without_sender(facts: &Facts, server: &Server) -> Finding {
    const CHECK: &str = "sender";
    let received = facts.sidecar.as_ref().ok().map(received);
    if received.is_some_and(|samples| samples > 0.0) {
        return Finding::ok(CHECK, format!("{} does not send; another does", server.url));
    }
    let url = facts.sidecar_url.trim_end_matches('/');
    Finding::error(
        CHECK,
        format!("{} has no remote_write to {url}", server.url),
        format!("add remote_write: [{{url: {url}/api/v1/write}}] to prometheus.yml"),
    )
}

/// The finding of the series that relabeling drops or renames, among those of the sidecar's shard.
fn relabeling(
    config: &Config,
    facts: &Facts,
    server: &Server,
    prometheus: &PrometheusConfig,
    destination: &Destination,
) -> Finding {
    const CHECK: &str = "write-relabel";
    let rules = match &destination.relabeling {
        Ok(rules) => rules,
        Err(reason) => return Finding::not_checked(CHECK, reason),
    };
    let shard = facts.sidecar.as_ref().ok().and_then(|sidecar| sidecar.shard);
    if shard.is_none() && rules.iter().any(RelabelRule::is_hashmod) {
        let reason =
            "hashmod divides the series among receivers, and the sidecar has no --shard to compare it with";
        return Finding::not_checked(CHECK, reason);
    }
    let is_own = |series: &&Labels| shard.is_none_or(|shard| shard.contains(series));
    let (mut n_series, mut n_lost, mut example) = (0, 0, None);
    for (detector, selected) in config.detectors.iter().zip(&server.selected) {
        for series in selected.iter().flat_map(|selected| &selected.recent).filter(is_own) {
            n_series += 1;
            let sent = relabel(rules, series, &prometheus.external_labels);
            let is_watched =
                sent.is_some_and(|labels| detector.matchers.iter().any(|matcher| matcher.matches(&labels)));
            if !is_watched {
                n_lost += 1;
                example.get_or_insert(series);
            }
        }
    }
    let of_shard = shard.map(|shard| format!(" of shard {shard}")).unwrap_or_default();
    match example {
        Some(series) => Finding::error(
            CHECK,
            format!(
                "write_relabel_configs drop {n_lost} of {n_series} watched series{of_shard}, such as {series}"
            ),
            "keep these series in write_relabel_configs of the remote_write to promforest",
        ),
        None => Finding::ok(CHECK, format!("all {n_series} watched series{of_shard} are sent")),
    }
}

fn deadline(server: &Server, prometheus: &PrometheusConfig, destination: &Destination) -> Finding {
    const CHECK: &str = "batch-deadline";
    let shown = duration::Display(destination.deadline);
    let Some(interval) = shortest_interval(server, prometheus) else {
        return Finding::not_checked(CHECK, "the interval of the watched series is not known");
    };
    let longest = (interval / DEADLINE_DIVISOR).max(SHORT_DEADLINE);
    let interval = duration::Display(interval);
    if destination.deadline <= longest {
        return Finding::ok(CHECK, format!("samples wait at most {shown}, with scrapes every {interval}"));
    }
    Finding::warning(
        CHECK,
        format!("samples wait up to {shown} for their batch, with scrapes every {interval}"),
        "set queue_config: {batch_send_deadline: 1s} in the remote_write to promforest",
    )
}

/// The shortest scrape interval of the watched jobs.
fn shortest_interval(server: &Server, prometheus: &PrometheusConfig) -> Option<Duration> {
    let series = server.selected.iter().flatten().flat_map(|selected| &selected.recent);
    series.filter_map(|labels| prometheus.interval(labels.get("job"))).min()
}

/// The findings of what arrives at the sidecar.
pub fn arrival(config: &Config, facts: &Facts) -> Vec<Finding> {
    let sidecar = match &facts.sidecar {
        Ok(sidecar) => sidecar,
        Err(reason) => return vec![unreachable(facts, reason)],
    };
    let version = format!("{} runs promforest {}", facts.sidecar_url, sidecar.version);
    vec![
        Finding::ok("sidecar", version),
        samples(facts.now_ms, sidecar),
        scores(config, facts.now_ms, sidecar),
        replicas(sidecar),
        second_writer(sidecar),
    ]
}

fn unreachable(facts: &Facts, reason: &str) -> Finding {
    let url = &facts.sidecar_url;
    if reason.contains(" 429 ") {
        return Finding::error(
            "rate-limit",
            format!("{url}: {reason}"),
            "raise the limit of the proxy before promforest, and set retry_on_http_429: true in Prometheus' remote_write",
        );
    }
    if reason.contains(" 401 ") {
        return Finding::not_checked("sidecar", format!("{url} asks for a password: {reason}"));
    }
    let remedy = "start promforest, or name its address by --url";
    Finding::error("sidecar", format!("{url} does not answer: {reason}"), remedy)
}

/// Samples that the sidecar received since its start.
fn received(sidecar: &Sidecar) -> f64 {
    sidecar.metric("promforest_ingest_samples_total", ("", ""))
}

fn samples(now_ms: i64, sidecar: &Sidecar) -> Finding {
    const CHECK: &str = "samples";
    let received = received(sidecar);
    if let Some(started_ms) = sidecar.started_ms().filter(|_| received == 0.0 && sidecar.is_starting(now_ms))
    {
        let age = (now_ms - started_ms).max(0) / 1000;
        return Finding::waiting(
            CHECK,
            format!(
                "no sample has arrived in the {age} s since the start of promforest; this is an error after {} s",
                START_UP_MS / 1000
            ),
        );
    }
    if received == 0.0 {
        let remedy = "add promforest to remote_write of Prometheus, and see its log for failed requests";
        return Finding::error(CHECK, "no sample has arrived since the start of promforest", remedy);
    }
    let dropped = |reason| sidecar.metric("promforest_ingest_samples_dropped_total", ("reason", reason));
    let unwatched = dropped("unwatched") + dropped("own_output");
    if unwatched >= received {
        let remedy =
            "compare `match` of the detectors with the series that Prometheus sends: promforest match";
        return Finding::error(
            CHECK,
            format!("of {}, none belongs to a detector", counted(received, "sample")),
            remedy,
        );
    }
    let Some(shard) = sidecar.shard else {
        return Finding::ok(
            CHECK,
            format!("samples that have arrived: {received}, not watched: {unwatched}"),
        );
    };
    let of_others = dropped("wrong_shard");
    if unwatched + of_others >= received {
        return Finding::error(
            CHECK,
            format!("of {}, none belongs to a target of shard {shard}", counted(received, "sample")),
            "compare --shard with modulus and regex of write_relabel_configs: the index is the remainder",
        );
    }
    let message = format!(
        "samples that have arrived: {received}, not watched: {unwatched}, of targets outside of shard {shard}: {of_others}"
    );
    Finding::ok(CHECK, message)
}

fn scores(config: &Config, now_ms: i64, sidecar: &Sidecar) -> Finding {
    const CHECK: &str = "scores";
    if sidecar.n_groups == 0 {
        return Finding::not_checked(CHECK, "there are no groups");
    }
    let Some(newest_ms) = sidecar.newest_score_ms else {
        let reasons = sidecar.readiness.join("; ");
        if let Some(until_ms) = first_model_ms(config, now_ms, sidecar) {
            let message = format!("the first scores come about {}: {reasons}", format_minute(until_ms));
            return Finding::waiting(CHECK, message);
        }
        let remedy = "see the log of promforest for failed trainings; the history for a first model is there";
        return Finding::warning(CHECK, format!("no row has a score yet: {reasons}"), remedy);
    };
    let now_ms = now_ms + sidecar.clock_ahead_ms.unwrap_or(0);
    let age_ms = (now_ms - newest_ms).max(0);
    if age_ms > MAX_SILENCE_MS {
        let remedy =
            "see whether Prometheus still sends (prometheus_remote_storage_samples_pending) and its log";
        return Finding::error(CHECK, format!("no row was scored for {} s", age_ms / 1000), remedy);
    }
    Finding::ok(CHECK, format!("the newest score is {} s old", age_ms / 1000))
}

/// The time at which the first detector has the history for a model; `None` if one has it already.
fn first_model_ms(config: &Config, now_ms: i64, sidecar: &Sidecar) -> Option<i64> {
    let missing_ms = |detector: &Arc<Detector>| {
        let of_detector = sidecar.metrics.iter().filter(|(labels, _)| {
            labels.metric_name() == "promforest_training_progress_ratio"
                && labels.get("detector") == detector.name
        });
        let progress = of_detector.map(|(_, ratio)| *ratio).max_by(f64::total_cmp)?;
        let min_history_ms = time::millis(detector.training.min_history) as f64;
        Some(((1.0 - progress.clamp(0.0, 1.0)) * min_history_ms) as i64)
    };
    let missing_ms = config.detectors.iter().filter_map(missing_ms).min()?;
    (missing_ms > 0).then_some(now_ms + missing_ms)
}

/// `1 sample`, `2 samples`, for a count of a metric.
fn counted(count: f64, word: &str) -> String {
    plain_plural(count as usize, word)
}

fn replicas(sidecar: &Sidecar) -> Finding {
    const CHECK: &str = "replicas";
    let groups = sidecar.metric("promforest_interleaved_groups", ("", ""));
    if groups == 0.0 {
        return Finding::ok(CHECK, "each target is sent by one Prometheus");
    }
    Finding::error(
        CHECK,
        format!("rows of {} alternate, as from two replicas of Prometheus", counted(groups, "group")),
        "let one replica send, or add the label of the replica to `by`",
    )
}

fn second_writer(sidecar: &Sidecar) -> Finding {
    const CHECK: &str = "second-writer";
    let samples = sidecar.metric("promforest_remote_write_samples_conflicting_total", ("", ""));
    if samples == 0.0 {
        return Finding::ok(CHECK, "no other program writes the same anomaly series");
    }
    Finding::error(
        CHECK,
        format!("refused, because the endpoint has others of the same series: {}", counted(samples, "score")),
        "stop the other promforest with these detectors, or give one of them another name",
    )
}
