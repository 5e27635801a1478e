//! The endpoints answer, and take and serve samples.

use crate::doctor::facts::{Answer, EndpointAnswer, Facts, NoAnswer};
use crate::doctor::finding::Finding;

/// The findings of all endpoints.
pub fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts.written.iter().map(written).collect();
    if findings.is_empty() {
        let remedy = "add remote_write to the configuration, or query the sidecar by remote read";
        findings.push(Finding::warning(
            "remote-write",
            "the configuration has no endpoint for scores",
            remedy,
        ));
    }
    findings.extend(facts.written.iter().filter_map(rate_limit));
    findings.extend(facts.read.iter().map(read));
    if facts.read.is_empty() {
        let remedy = "add remote_read or history: without either a model learns only from what arrives";
        findings.push(Finding::warning(
            "history-source",
            "the configuration has no source of history",
            remedy,
        ));
    }
    findings
}

fn written(endpoint: &EndpointAnswer) -> Finding {
    const CHECK: &str = "remote-write";
    let url = &endpoint.url;
    let answer = match &endpoint.answer {
        Ok(answer) => answer,
        Err(NoAnswer::NotAsked) => return Finding::not_checked(CHECK, format!("{url}: --no-write")),
        Err(NoAnswer::Failed(reason)) => return unreachable(CHECK, reason),
    };
    let Answer { status, reason } = answer;
    let refused = format!("{url} answers {status}: {reason}");
    match status {
        200..300 => Finding::ok(CHECK, format!("{url} takes samples")),
        404 => Finding::error(
            CHECK,
            format!("{url} answers 404: the receiver of remote write is off, or the path is wrong"),
            "start Prometheus with --web.enable-remote-write-receiver",
        ),
        401 | 403 => {
            Finding::error(CHECK, refused, "set basic_auth, authorization or oauth2 of the endpoint")
        }
        429 => Finding::not_checked(CHECK, format!("{url} answers 429")),
        415 => Finding::error(CHECK, refused, "set protobuf_message to prometheus.WriteRequest"),
        400..500 => Finding::error(CHECK, refused, "check the address, and the server's log"),
        _ => Finding::error(CHECK, refused, "check the server's log: scores wait until it takes them"),
    }
}

fn rate_limit(endpoint: &EndpointAnswer) -> Option<Finding> {
    const CHECK: &str = "rate-limit";
    let Answer { status, .. } = endpoint.answer.as_ref().ok()?;
    let url = &endpoint.url;
    Some(match status {
        429 => Finding::error(
            CHECK,
            format!("{url} answers 429: the server, or a proxy before it, limits requests"),
            "raise the limit for promforest, and set retry_on_http_429: true in Prometheus' remote_write",
        ),
        _ => Finding::ok(CHECK, format!("{url} does not limit requests")),
    })
}

fn read(endpoint: &EndpointAnswer) -> Finding {
    const CHECK: &str = "history-source";
    match &endpoint.answer {
        Err(NoAnswer::Failed(reason)) => unreachable(CHECK, reason),
        _ => Finding::ok(CHECK, format!("{} serves history", endpoint.url)),
    }
}

/// The finding of a failed request, whose reason names the address.
fn unreachable(check: &'static str, reason: &str) -> Finding {
    Finding::error(check, reason, "start the server, or correct url, tls_config or proxy_url of the endpoint")
}
