//! The parts of a Prometheus configuration that concern promforest, from `/api/v1/status/config`.
//!
//! Keys that are not read here are of no concern: releases and relatives of Prometheus have keys of their own.

use super::known::Known;
use super::relabel::RelabelRule;
use crate::prom::duration;
use crate::yaml::{self, Node, Section};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct PrometheusConfig {
    /// `external_labels`.
    pub external_labels: BTreeMap<String, String>,
    /// `out_of_order_time_window`.
    pub out_of_order_window: Duration,
    /// `scrape_configs`.
    pub jobs: Vec<ScrapeJob>,
    /// `remote_write`.
    pub destinations: Vec<Destination>,
}

/// A `scrape_configs` block.
#[derive(Clone, Debug)]
pub struct ScrapeJob {
    /// `job_name`.
    pub name: String,
    /// `scrape_interval`.
    pub interval: Duration,
    /// `honor_labels`.
    pub honor_labels: bool,
}

/// A `remote_write` block.
#[derive(Clone, Debug)]
pub struct Destination {
    /// `url`.
    pub url: String,
    /// `batch_send_deadline`.
    pub deadline: Duration,
    /// `write_relabel_configs`; `Err` names an action that is not known here.
    pub relabeling: Known<Vec<RelabelRule>>,
}

impl PrometheusConfig {
    /// Reads the YAML of a server.
    ///
    /// # Errors
    /// A text that names the first fault.
    pub fn parse(text: &str) -> Known<Self> {
        yaml::read(text, Path::new(""), Self::read).map_err(|errors| {
            let first = errors.first().map_or_else(|| "it is no mapping".into(), ToString::to_string);
            format!("its configuration cannot be read: {first}")
        })
    }

    fn read(mut top: Section<'_, '_>) -> Self {
        let mut global = top.get("global").and_then(Node::section);
        let interval = global.as_mut().map_or(DEFAULT_INTERVAL, |global| {
            optional_duration(global, "scrape_interval").unwrap_or(DEFAULT_INTERVAL)
        });
        let external = global.and_then(|mut global| global.get("external_labels")?.entries());
        let tsdb = top.get("storage").and_then(Node::section).and_then(|mut storage| storage.get("tsdb"));
        let window = tsdb
            .and_then(Node::section)
            .and_then(|mut tsdb| optional_duration(&mut tsdb, "out_of_order_time_window"));
        Self {
            external_labels: text_entries(external),
            out_of_order_window: window.unwrap_or_default(),
            jobs: sections(&mut top, "scrape_configs").map(|job| ScrapeJob::read(job, interval)).collect(),
            destinations: sections(&mut top, "remote_write").map(Destination::read).collect(),
        }
    }

    /// The interval of a job's scrapes.
    pub fn interval(&self, job: &str) -> Option<Duration> {
        self.jobs.iter().find(|other| other.name == job).map(|job| job.interval)
    }

    /// The destination with the address of the sidecar; else those with its port, which may have another name for the host.
    pub fn destinations_of(&self, sidecar: &str) -> Vec<&Destination> {
        let (host, same_host) = (authority(sidecar), |url: &str| authority(url) == authority(sidecar));
        let port = |authority: &str| authority.rsplit_once(':').map(|(_, port)| port.to_string());
        let same_port = |url: &str| port(&host).is_some() && port(&authority(url)) == port(&host);
        match self.destinations.iter().find(|to| same_host(&to.url)) {
            Some(destination) => vec![destination],
            None => self.destinations.iter().filter(|to| same_port(&to.url)).collect(),
        }
    }
}

/// Prometheus' default.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);
/// Prometheus' default.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);

impl ScrapeJob {
    fn read(mut section: Section<'_, '_>, default: Duration) -> Self {
        Self {
            name: section.get("job_name").and_then(|node| node.text()).unwrap_or_default(),
            interval: optional_duration(&mut section, "scrape_interval").unwrap_or(default),
            honor_labels: section.flag("honor_labels", false),
        }
    }
}

impl Destination {
    fn read(mut section: Section<'_, '_>) -> Self {
        let queue = section.get("queue_config").and_then(Node::section);
        let deadline = queue.and_then(|mut queue| optional_duration(&mut queue, "batch_send_deadline"));
        Self {
            url: section.get("url").and_then(|node| node.text()).unwrap_or_default(),
            deadline: deadline.unwrap_or(DEFAULT_DEADLINE),
            relabeling: sections(&mut section, "write_relabel_configs").map(RelabelRule::read).collect(),
        }
    }
}

/// Host and port of a URL's text, without credentials.
fn authority(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default().replace("localhost", "127.0.0.1")
}

fn sections<'n, 'y>(top: &mut Section<'n, 'y>, key: &'static str) -> impl Iterator<Item = Section<'n, 'y>> {
    let items = top.get(key).and_then(|list| list.items()).unwrap_or_default();
    items.into_iter().filter_map(Node::section)
}

/// A duration that may be zero.
fn optional_duration(section: &mut Section<'_, '_>, key: &'static str) -> Option<Duration> {
    section.get(key)?.parse(duration::parse)
}

fn text_entries(entries: Option<Vec<(String, Node<'_, '_>)>>) -> BTreeMap<String, String> {
    let entries = entries.unwrap_or_default().into_iter();
    entries.filter_map(|(name, value)| Some((name, value.text()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_with_the_defaults_of_prometheus_and_unknown_keys() {
        let config = PrometheusConfig::parse(
            "global: {scrape_interval: 15s, external_labels: {cluster: a, n: 7}}\n\
             otlp: {new: [1]}\n\
             storage: {tsdb: {out_of_order_time_window: 0s}}\n\
             scrape_configs: [{job_name: node}, {job_name: own, scrape_interval: 5s, honor_labels: true}]\n\
             remote_write: [{url: 'http://x:1/a'}, {url: 'http://pf:9599/api/v1/write', queue_config: {batch_send_deadline: 1s}}]",
        )
        .expect("valid");
        assert_eq!(config.external_labels["n"], "7");
        assert_eq!(config.out_of_order_window, Duration::ZERO);
        assert_eq!(config.interval("node"), Some(Duration::from_secs(15)));
        assert!(config.jobs[1].honor_labels && !config.jobs[0].honor_labels);
        assert_eq!(config.destinations[0].deadline, DEFAULT_DEADLINE);
        let found = config.destinations_of("http://localhost:9599");
        assert_eq!(found.iter().map(|to| to.deadline).collect::<Vec<_>>(), [Duration::from_secs(1)]);
        assert!(config.destinations_of("http://localhost:9598").is_empty());
        let two = "remote_write: [{url: 'http://a:9599/api/v1/write'}, {url: 'http://b:9599/api/v1/write'}]";
        let two = PrometheusConfig::parse(two).expect("valid");
        assert_eq!(two.destinations_of("http://localhost:9599").len(), 2);
        assert_eq!(two.destinations_of("http://b:9599")[0].url, "http://b:9599/api/v1/write");
        assert!(PrometheusConfig::parse("").expect("nothing is set").destinations.is_empty());
        assert!(PrometheusConfig::parse("[").is_err());
    }
}
