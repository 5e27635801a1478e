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
pub use finding::{Finding, Report, Status};
pub use gather::TrialWrite;

/// Gathers the facts of a set-up and checks them. `sidecar` is the address of the running sidecar.
pub async fn examine(config: &Config, sidecar: &Url, trial_write: TrialWrite) -> Report {
    let facts = gather::gather(config, sidecar, trial_write).await;
    Report { findings: checks::all(config, &facts) }
}
