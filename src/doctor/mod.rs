//! Checks of a whole set-up: the configuration, the Prometheus servers that it names, and the running sidecar.
//!
//! The facts are gathered first, and each check is a function of them: a check needs no network, and a fact that cannot be
//! had, such as the configuration of a server that is no Prometheus, leaves the checks of it undone with the reason.

mod facts;
mod finding;
mod gather;
mod known;
mod names;
mod prometheus_config;
mod relabel;
mod rules;
mod checks;

use crate::config::Config;
use crate::http::Url;
use crate::yaml;
pub use finding::{Finding, Report, Status};
pub use gather::TrialWrite;

/// Gathers the facts of a set-up and checks them. `warnings` are those of the configuration file, and `sidecar` is the
/// address of the running sidecar.
pub async fn examine(
    config: &Config,
    warnings: &[yaml::Error],
    sidecar: &Url,
    trial_write: TrialWrite,
) -> Report {
    let facts = gather::gather(config, sidecar, trial_write).await;
    let mut findings = checks::of_configuration(warnings);
    findings.extend(checks::all(config, &facts));
    Report { findings }
}
