//! The checks: functions of the configuration and the facts.

mod capacity;
mod detectors;
mod endpoints;
mod sending;
mod servers;
#[cfg(test)]
mod tests;

use super::facts::Facts;
use super::finding::Finding;
use crate::config::Config;
use crate::yaml;

/// The warnings of the configuration file.
pub fn of_configuration(warnings: &[yaml::Error]) -> Vec<Finding> {
    const CHECK: &str = "configuration";
    if warnings.is_empty() {
        return vec![Finding::ok(CHECK, "the configuration has no warnings")];
    }
    let found =
        |warning: &yaml::Error| Finding::warning(CHECK, warning.to_string(), "change this key, or remove it");
    warnings.iter().map(found).collect()
}

/// The findings of all other checks, in the order of the data's way.
pub fn all(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = endpoints::all(facts);
    for server in &facts.servers {
        if let Some(reason) = server.silence() {
            findings.push(servers::silent(server, reason));
            continue;
        }
        findings.extend(servers::all(facts, server));
        findings.extend(sending::all(config, facts, server));
        findings.extend(detectors::all(config, facts, server));
    }
    if facts.servers.is_empty() {
        let reason =
            "no endpoint ends in /api/v1/write or /api/v1/read, so no HTTP API of Prometheus is known";
        findings.push(Finding::not_checked("prometheus", reason));
    }
    findings.extend(sending::arrival(config, facts));
    findings.extend(capacity::all(config, facts));
    findings
}
