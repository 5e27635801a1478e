//! The section `kafka` of the configuration file.

use super::security::Security;
use crate::prom::duration;
use crate::prom::wire::ProtocolVersion;
use crate::yaml::{Key, KeyTable, Node, Section};
use std::time::Duration;

/// The error of a program without the feature.
pub const NOT_BUILT: &str = "this promforest is built without kafka: cargo build --release --features kafka";

/// Shortest session: its heartbeats are ten times as many.
const MIN_SESSION_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest name of a topic, in bytes; Kafka's own limit.
const MAX_TOPIC_BYTES: usize = 249;

/// The keys of the section.
pub const KEY_TABLES: [KeyTable; 1] = [KeyTable::new(
    &["kafka"],
    &[
        Key::required(
            "brokers",
            "['localhost:9092']",
            "Host and port of some brokers; the others are learned from them",
        ),
        Key::required("topic", "promforest", "Topic of the records"),
        Key::optional(
            "tls_config",
            "Encryption: trusted authorities and the own certificate, see below. `{}` trusts the platform's authorities; \
             without the key connections are not encrypted",
        ),
        Key::optional("sasl", "Credentials: user name and password, see below"),
        Key::with_default(
            "group_id",
            "promforest",
            "Consumer group, which shares the partitions of the topic",
        ),
        Key::optional(
            "group_instance_id",
            "Name of this member of the group, which keeps its partitions over a restart: distinct for each member, as the \
             name of a pod. `--kafka.group-instance-id` replaces it",
        ),
        Key::with_default(
            "by",
            "[job, instance]",
            "Labels that `promforest route` chooses the partition by. Each detector's `by` has all of them, so that a group \
             is in one partition",
        ),
        Key::with_default(
            "format",
            "prometheus.WriteRequest",
            "Message of the values, or `io.prometheus.write.v2.Request`. `promforest route` writes the default",
        ),
        Key::with_default(
            "compression",
            "none",
            "Compression of the values: `none`, as of `promforest route`, or `snappy`, as of remote write",
        ),
        Key::with_default(
            "session_timeout",
            "30s",
            "Time after which the partitions of a member that is away are given to others, at least 1s. Brokers take 6s to 30m, \
             unless they are configured otherwise",
        ),
        Key::with_default(
            "rewind",
            "window",
            "Time before the committed offset that is read again to fill the windows of groups that are not in memory: \
             `window`, the longest of the detectors when the process starts, or a duration",
        ),
        Key::with_default(
            "linger",
            "5m",
            "Time that the groups of a partition stay in memory after the partition is given to another member",
        ),
    ],
)];

/// See the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Host and port of some brokers.
    pub brokers: Vec<String>,
    /// The topic.
    pub topic: String,
    /// Encryption and credentials.
    pub security: Security,
    /// The consumer group.
    pub group_id: String,
    /// The name of this member; a member without a name gets other partitions after a restart.
    pub group_instance_id: Option<String>,
    /// Labels that the partition is chosen by, sorted.
    pub by: Vec<String>,
    /// Message of the values.
    pub format: ProtocolVersion,
    /// Compression of the values.
    pub compression: Compression,
    /// Time after which another member takes over.
    pub session_timeout: Duration,
    /// Time before the committed offset that is read again; `None` for the longest window.
    pub rewind: Option<Duration>,
    /// Time that groups of a revoked partition stay.
    pub linger: Duration,
}

/// Compression of the values, beside that of Kafka's batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// None.
    None,
    /// Snappy's block format.
    Snappy,
}

impl Config {
    /// Reads the section.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let brokers = section.require("brokers").map(|node| read_list(&node)).unwrap_or_default();
        let topic = section.require("topic").and_then(|node| read_topic(&node)).unwrap_or_default();
        let by = section.get("by").map(|node| read_list(&node));
        let mut by = by.unwrap_or_else(|| ["job", "instance"].map(String::from).to_vec());
        by.sort_unstable();
        let config = Self {
            brokers,
            topic,
            security: Security::from_section(&mut section),
            group_id: section.get("group_id").and_then(|node| node.text()).unwrap_or("promforest".into()),
            group_instance_id: section.get("group_instance_id").and_then(|node| node.text()),
            by,
            format: section.get("format").and_then(|node| read_format(&node)).unwrap_or(ProtocolVersion::V1),
            compression: section
                .get("compression")
                .and_then(|node| read_compression(&node))
                .unwrap_or(Compression::None),
            session_timeout: section
                .get("session_timeout")
                .and_then(|node| read_session_timeout(&node))
                .unwrap_or(Duration::from_secs(30)),
            rewind: section.get("rewind").and_then(|node| read_rewind(&node)),
            linger: section.duration("linger", Duration::from_secs(300)),
        };
        if !cfg!(feature = "kafka") {
            section.error(NOT_BUILT);
        }
        section.deny_unknown();
        config
    }
}

/// A list of texts that is not empty.
fn read_list(node: &Node<'_, '_>) -> Vec<String> {
    let items = node.items().unwrap_or_default();
    if items.is_empty() && node.is_list() {
        node.error("must not be empty");
    }
    items.iter().filter_map(Node::text).collect()
}

fn read_topic(node: &Node<'_, '_>) -> Option<String> {
    let topic = node.text()?;
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if topic.len() > MAX_TOPIC_BYTES || !topic.chars().all(is_valid) || topic.is_empty() {
        node.error(format!(
            "{topic:?} is not a topic: write at most {MAX_TOPIC_BYTES} letters, digits, dots, underscores and hyphens"
        ));
    }
    Some(topic)
}

fn read_format(node: &Node<'_, '_>) -> Option<ProtocolVersion> {
    match node.text()?.as_str() {
        "prometheus.WriteRequest" => return Some(ProtocolVersion::V1),
        "io.prometheus.write.v2.Request" => return Some(ProtocolVersion::V2),
        other => node.error(format!(
            "{other:?} is not a message: write prometheus.WriteRequest or io.prometheus.write.v2.Request"
        )),
    }
    None
}

fn read_compression(node: &Node<'_, '_>) -> Option<Compression> {
    match node.text()?.as_str() {
        "none" => return Some(Compression::None),
        "snappy" => return Some(Compression::Snappy),
        other => node.error(format!("{other:?} is not a compression: write none or snappy")),
    }
    None
}

fn read_session_timeout(node: &Node<'_, '_>) -> Option<Duration> {
    let timeout = node.parse(duration::parse)?;
    if timeout < MIN_SESSION_TIMEOUT {
        node.error(format!("must be at least {MIN_SESSION_TIMEOUT:?}"));
    }
    Some(timeout)
}

/// A duration; `None` for the longest window.
fn read_rewind(node: &Node<'_, '_>) -> Option<Duration> {
    if node.text()? == "window" {
        return None;
    }
    node.parse(duration::parse)
}
