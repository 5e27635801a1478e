//! The pages about the sidecar itself: status, configuration, flags.

use super::data_path::DataPath;
use super::fleet::Fleet;
use super::frame::Frame;
use super::words::format_age;
use crate::report::page;
use crate::report::text::{format_datetime, plural};
use maud::html;

/// Facts about the sidecar.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sidecar {
    /// Version of the program.
    pub version: &'static str,
    /// The part of the targets whose groups are watched, as `0/3`; without it, all.
    pub shard: Option<String>,
    /// Time of the start, in milliseconds since the epoch.
    pub started_ms: i64,
    /// True if `/-/ready` answers 200.
    pub is_ready: bool,
    /// The lines of `/-/ready`.
    pub readiness: Vec<String>,
    /// The 99th percentile of the latest times from a row's last sample to the acknowledgement of its scores.
    pub p99_seconds: Option<f64>,
    /// The place of the models.
    pub registry: String,
    /// The addresses that scores are written to.
    pub endpoints: Vec<String>,
    /// The address of the pages for other machines, if it is configured.
    pub external_url: Option<String>,
}

/// The page `/status`.
pub fn status_page(sidecar: &Sidecar, fleet: &Fleet, data_path: &DataPath, now_ms: i64) -> String {
    let facts = [
        ("version", sidecar.version.to_string()),
        ("running for", format_age(now_ms - sidecar.started_ms)),
        ("started, UTC", format_datetime(sidecar.started_ms / 1000 * 1000)),
        ("shard of the targets", sidecar.shard.clone().unwrap_or_else(|| "all".into())),
        ("groups", plural(fleet.groups().len(), "group")),
        ("model registry", sidecar.registry.clone()),
        ("scores go to", sidecar.endpoints.join(", ")),
    ];
    let body = html! {
        header {
            p.kicker { "Status" }
            h1 { (if sidecar.is_ready { "Ready" } else { "Not ready" }) }
            ul.readiness { @for line in &sidecar.readiness { li { (line) } } }
            (page::facts(&facts.map(|(name, value)| (name.to_string(), value))))
        }
        (data_path.section())
    };
    Frame { title: "Status", root: "", is_refreshed: false }.document(&body)
}

/// The page `/config`: the file in force.
pub fn config_page(yaml: &str) -> String {
    let body = html! {
        header {
            p.kicker { "Configuration" }
            h1 { "Configuration in force" }
            p.summary { "As it was loaded, without comments. Secrets are hidden; a key that is not listed has its default." }
        }
        section {
            @if yaml.is_empty() { p { "No file: every key has its default." } } @else { pre { code { (yaml) } } }
        }
    };
    Frame { title: "Configuration", root: "", is_refreshed: false }.document(&body)
}

/// The page `/flags`.
pub fn flags_page(flags: &[(&'static str, String)]) -> String {
    let body = html! {
        header { p.kicker { "Flags" } h1 { "Command line" } }
        section {
            table {
                thead { tr { th { "flag" } th { "value" } } }
                tbody {
                    @for (name, value) in flags {
                        tr { td.name { "--" (name) } td.name { (value) } }
                    }
                }
            }
        }
    };
    Frame { title: "Flags", root: "", is_refreshed: false }.document(&body)
}

/// The page of an address that does not exist, or of a state that cannot be shown.
pub fn message_page(title: &str, message: &str, root: &'static str) -> String {
    let body = html! {
        header {
            h1 { (title) }
            p.summary { (message) }
            p { a href=(if root.is_empty() { "./" } else { root }) { "All groups" } }
        }
    };
    Frame { title, root, is_refreshed: false }.document(&body)
}
